"""Samples at the hub: what it takes of an operator, and how the channel goes on behind what not."""

from __future__ import annotations

import base64
import json
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from siem.city import samples as city_samples
from siem.city.intake import Refused
from siem.city.letters import LETTER
from siem.city.links import hearing
from siem.city.samples import SAMPLE, Samples
from siem.sharing.envelope import Signed, payload_hash, verified
from siem.store.samples import OF_RULE_MAX
from tests.siem.city.city import NOW, Hub, Node, receipt

RULE = "11111111-1111-4111-8111-111111111111"
EVENT = {
    "@timestamp": "2026-03-01T10:00:00Z",
    "event.action": "ssh_login",
    "source.ip": "203.0.113.1",
    "user.name": "sample-user-1",
}


def passing(hub: Hub, *rules: str) -> Samples:
    """The samples of a hub whose operators share some rules."""
    made = Samples(
        hub.commons.records,
        hub.exchange.letters,
        lambda: [one.name for one in hub.operators.all()],
        lambda: rules or (RULE,),
        b"of a test",
        hub.clock,
    )
    hub.exchange.samples = made
    return made


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path)


def sample(node: Node, **named: Any) -> Signed:
    """The next envelope of an operator, with a sample."""
    event = {**EVENT, **named.pop("event", {})}
    said = {"rule": RULE, "events": [event], **named.pop("said", {})}
    payload = named.pop("payload", said)
    marks = {"audiences": ("peers",), "tlp": "green", "pap": "green", "revision": 0}
    return node.share(**{"type": "sample", "payload": payload, **marks, **named})


def refusal(hub: Hub, node: Node, signed: Signed) -> str:
    """Why the hub does not keep it; it is receipted all the same."""
    return str(receipt(hub.exchange.take(node.name, signed), hub).did.get("refused", ""))


def kept(hub: Hub) -> list[str]:
    return [name for name, _ in hub.commons.records.all(SAMPLE)]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a real name": ({"event": {"user.name": "m.rossi"}}, "a value of user.name"),
    "free text": ({"event": {"message": "m.rossi was here"}}, "which no sample may hold"),
    "nothing": ({"payload": {}}, "no sample"),
    "too much": ({"said": {"events": [EVENT] * 21}}, "no sample"),
    "a rule that is not shared": (
        {"said": {"rule": str(uuid.uuid4())}}, "a sample of a rule that is not shared",
    ),
    "in another's name": ({"said": {"operator": "op-grid"}}, "a sample that says whose it is"),
    "for the city alone": ({"audiences": ("city-soc",)}, "not all operators may read"),
    "marked closed": ({"tlp": "amber"}, "not all operators may read"),
    "over": ({"expires": NOW - timedelta(days=1)}, "over, or never ends"),
    "for ever": ({"expires": NOW + timedelta(days=4_000)}, "over, or never ends"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_sample_is_receipted_as_refused_and_the_next_is_taken(
    name: str, hub: Hub
) -> None:
    passing(hub)
    node = hub.enrolled("op-metro")
    said, why = BAD[name]

    assert why in refusal(hub, node, sample(node, **said))
    assert kept(hub) == []

    assert refusal(hub, node, sample(node)) == ""
    assert len(kept(hub)) == 1
    assert any("exchange refused" in line for line in hub.trail)
    assert any("op-metro: sample: taken: " in line for line in hub.trail)


def test_an_id_that_is_none_is_no_envelope(hub: Hub) -> None:
    passing(hub)
    node = hub.enrolled("op-metro")

    with pytest.raises(Refused, match="no share id"):
        hub.exchange.take("op-metro", sample(node, share_id="../x"))


def test_the_same_id_with_something_else_in_it_is_refused(hub: Hub) -> None:
    passing(hub)
    node, id = hub.enrolled("op-metro"), str(uuid.uuid4())
    assert refusal(hub, node, sample(node, share_id=id)) == ""
    (before,) = hub.commons.records.all(SAMPLE)

    assert "another sample" in refusal(
        hub, node, sample(node, share_id=id, event={"event.action": "logout"})
    )

    assert list(hub.commons.records.all(SAMPLE)) == [before]


def test_what_was_taken_back_stays_taken_back(hub: Hub) -> None:
    samples = passing(hub)
    node, id = hub.enrolled("op-metro"), str(uuid.uuid4())
    hub.enrolled("op-grid")
    hub.exchange.take("op-metro", sample(node, share_id=id))
    samples.step()

    answer = receipt(hub.exchange.take("op-metro", node.withdraw(id)), hub)

    assert answer.did["samples_told"] == 1
    assert "taken back" in refusal(hub, node, sample(node, share_id=id))
    samples.step()
    assert kept(hub) == []


def test_of_one_rule_an_operator_has_a_bounded_number_out(hub: Hub) -> None:
    passing(hub)
    node, other = hub.enrolled("op-metro"), hub.enrolled("op-grid")

    said = [refusal(hub, node, sample(node)) for _ in range(OF_RULE_MAX + 1)]

    assert said[:-1] == [""] * OF_RULE_MAX
    assert said[-1].startswith(f"{OF_RULE_MAX} samples of this rule are kept")
    assert refusal(hub, other, sample(other)) == ""


def test_samples_are_looked_through_only_if_something_is_new_or_a_minute_is_over(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = passing(hub)
    node, id = hub.enrolled("op-metro"), str(uuid.uuid4())
    looks: list[int] = []
    every = samples._all
    monkeypatch.setattr(samples, "_all", lambda: looks.append(1) or every())

    def looked() -> int:
        looks.clear()
        samples.step()
        samples.step()
        return len(looks)

    assert (looked(), looked()) == (1, 0)
    hub.exchange.take("op-metro", sample(node, share_id=id))
    assert looked() == 1
    hub.enrolled("op-grid")
    assert looked() == 1
    hub.exchange.take("op-metro", node.withdraw(id))
    assert looked() == 1
    hub.now += timedelta(minutes=1)
    assert looked() == 1
    hub.now -= timedelta(hours=1)  # the clock was put right
    assert looked() == 1


def test_who_lets_out_and_takes_back_again_and_again_fills_nobodys_letters(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(city_samples, "AT_ONCE", 3)
    passing(hub)
    node, other = hub.enrolled("op-metro"), hub.enrolled("op-grid")
    said = []
    for _ in range(4):
        said.append(refusal(hub, node, sample(node, share_id=(id := str(uuid.uuid4())))))
        hub.exchange.take("op-metro", node.withdraw(id))

    assert said == ["", "", "", "more than 200 new samples a day"]
    assert refusal(hub, other, sample(other)) == ""
    hub.now += timedelta(days=1)
    assert refusal(hub, node, sample(node)) == ""


def test_what_a_newer_node_says_besides_is_passed_on_to_nobody(hub: Hub) -> None:
    samples = passing(hub)
    node = hub.enrolled("op-metro")
    hub.enrolled("op-grid")

    assert refusal(hub, node, sample(node, said={"note": "m.rossi was here"})) == ""
    samples.step()

    (line,) = hub.exchange.letters.inbox("op-grid", 0)
    assert '"type":"sample"' in line.data
    assert "m.rossi" not in line.data


def test_a_hub_that_passes_none_on_says_so(hub: Hub) -> None:
    node = hub.enrolled("op-metro")

    assert refusal(hub, node, sample(node)) == "this hub passes no samples on"


def test_it_goes_to_all_but_who_sent_it_once_and_as_it_came(hub: Hub) -> None:
    samples = passing(hub)
    node = hub.enrolled("op-metro")
    for name in ("op-grid", "op-water"):
        hub.enrolled(name)
    hub.exchange.take("op-metro", sample(node))

    assert (samples.step(), samples.step()) == (2, 0)

    names = [name for name, _ in hub.commons.records.all(LETTER)]
    assert [name.partition("/")[0] for name in names] == ["op-grid", "op-water"]
    (line,) = hub.exchange.letters.inbox("op-grid", 0)
    assert payload_hash({"rule": RULE, "events": [EVENT]}) not in line.data
    assert '"source.ip":"203.0.113.1"' in line.data
    assert "op-metro" not in line.data


def test_who_does_not_say_that_it_understands_samples_gets_none_until_it_does(hub: Hub) -> None:
    samples = passing(hub)
    samples._operators = lambda: hearing(hub.operators, hub.commons.records, SAMPLE, hub.now)
    node, grid = hub.enrolled("op-metro"), hub.enrolled("op-grid")
    hub.exchange.take("op-metro", sample(node))
    for said, letters in (((), 0), (("weather",), 0), (("sample", "weather"), 1)):
        hub.exchange.take("op-grid", grid.beat(hears=said))
        samples.step()
        assert len(list(hub.exchange.inbox("op-grid", 0))) == letters

    hub.now = NOW + timedelta(days=31)  # its certificate has ended
    assert hearing(hub.operators, hub.commons.records, SAMPLE, hub.now) == []


def test_a_node_that_was_set_back_gets_no_sample_that_was_left_before(hub: Hub) -> None:
    samples = passing(hub)
    node, grid = hub.enrolled("op-metro"), hub.enrolled("op-grid")
    hub.exchange.take("op-metro", sample(node))
    samples.step()
    hub.exchange.take("op-grid", grid.beat())

    (line,) = hub.exchange.inbox("op-grid", 0)

    said = verified(
        Signed(line.data.encode(), base64.b64decode(line.signature)),
        hub.operators.signing_key.public_key(),
    )
    assert (line.n, said.seq, said.type) == (1, 1, "withdraw")
    hub.exchange.take("op-grid", grid.beat(hears=("sample",)))
    (line,) = hub.exchange.inbox("op-grid", 0)
    assert '"type":"sample"' in line.data


def test_what_is_taken_back_while_it_is_passed_on_goes_to_nobody_else(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = passing(hub)
    node, id = hub.enrolled("op-metro"), str(uuid.uuid4())
    for name in ("op-grid", "op-water"):
        hub.enrolled(name)
    hub.exchange.take("op-metro", sample(node, share_id=id))
    send = hub.exchange.letters.send

    def sent(operator: str, *args: Any, **named: Any) -> int:
        samples.withdrawn("op-metro", id)
        return send(operator, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(hub.exchange.letters, "send", sent)
        assert samples.step() == 1
    samples.step()

    first, *others = [line.data for line in hub.exchange.letters.inbox("op-grid", 0)]
    assert all('"type":"withdraw"' in one for one in (first, *others))
    water = [line.data for line in hub.exchange.letters.inbox("op-water", 0)]
    assert not any('"type":"sample"' in one for one in water)
    assert kept(hub) == []


def test_who_may_have_got_a_letter_before_a_kill_is_told_that_it_is_taken_back(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = passing(hub)
    node, id = hub.enrolled("op-metro"), str(uuid.uuid4())
    hub.enrolled("op-grid")
    hub.exchange.take("op-metro", sample(node, share_id=id))
    note = samples._note

    def killed(name: str, receiver: str, number: int) -> Any:
        assert not number, "killed behind the letter"
        return note(name, receiver, number)

    with monkeypatch.context() as patch:
        patch.setattr(samples, "_note", killed)
        with pytest.raises(AssertionError, match="killed"):
            samples.step()
    hub.exchange.take("op-metro", node.withdraw(id))
    passing(hub).step()

    got = [line.data for line in hub.exchange.letters.inbox("op-grid", 0)]
    assert ['"type":"sample"' in one for one in got] == [True, False]
    assert '"type":"withdraw"' in got[1]


def test_two_operators_who_use_one_id_take_back_their_own(hub: Hub) -> None:
    samples = passing(hub)
    one, other, id = hub.enrolled("op-metro"), hub.enrolled("op-grid"), str(uuid.uuid4())
    hub.enrolled("op-water")
    for node in (one, other):
        assert refusal(hub, node, sample(node, share_id=id)) == ""
    samples.step()

    hub.exchange.take("op-grid", other.withdraw(id))
    samples.step()

    assert kept(hub) == [f"op-metro/{id}"]
    letters = [json.loads(line.data) for line in hub.exchange.letters.inbox("op-water", 0)]
    gone = {letter["share_id"] for letter in letters if letter["type"] == "withdraw"}
    (left,) = [letter for letter in letters if letter["type"] == "sample"]
    assert left["share_id"] not in gone


def test_what_is_taken_back_is_not_on_the_disk_of_the_hub_once_it_is_purged(
    hub: Hub, tmp_path: Path
) -> None:
    samples = passing(hub)
    node, id = hub.enrolled("op-metro"), str(uuid.uuid4())
    hub.enrolled("op-grid")
    hub.exchange.take("op-metro", sample(node, share_id=id, event={"event.action": "canary"}))
    samples.step()

    def files_with_it() -> list[str]:
        return [one.name for one in tmp_path.glob("commons.db*") if b"canary" in one.read_bytes()]

    assert files_with_it()

    hub.exchange.take("op-metro", node.withdraw(id))
    samples.step()
    hub.commons.purge()

    assert files_with_it() == []


def test_a_letter_that_is_blanked_keeps_its_number_and_says_nothing(hub: Hub) -> None:
    samples = passing(hub)
    node, id = hub.enrolled("op-metro"), str(uuid.uuid4())
    hub.enrolled("op-grid")
    hub.exchange.take("op-metro", sample(node, share_id=id))
    samples.step()
    hub.exchange.take("op-metro", node.withdraw(id))
    samples.step()

    first, second = hub.exchange.letters.inbox("op-grid", 0)

    assert (first.n, second.n) == (1, 2)
    assert "sample-user" not in first.data
    assert '"type":"withdraw"' in first.data
    hub.exchange.letters.blank("op-grid", 99)  # one that there is not
