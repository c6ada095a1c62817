"""Protected samples between operators: let out, passed on, kept, taken back, end to end."""

from __future__ import annotations

import base64
import json
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from cityward import ConfigError, InputError, Unsafe
from cityward.fields import FIELDS
from siem.city import exchange
from siem.city.intake import Refused
from siem.sharing.compiler import compile_policy
from siem.sharing.envelope import BEGIN, Envelope, Signed, payload_hash, sign
from siem.sharing.external import Plan
from siem.sharing.inbox import newest, told_row
from siem.sharing.ledger import keys_of, prove
from siem.sharing.policy import EXAMPLE, Samples
from siem.sharing.samples import (
    KEPT,
    MAY_LEAVE,
    RELEASED,
    REPLACED,
    TIME,
    checked,
    compared,
    masked,
)
from siem.sharing.tokens import Tokens
from siem.store import faults, rulebook, samples
from siem.store.outgoing import TERMINAL
from siem.store.protocol import Change, Conflict, Range
from tests.playbooks.kit import NOON, Clock
from tests.siem.sharing.sampling import (
    ATTACKER,
    MANY_ID,
    RULE_ID,
    USER,
    Node,
    Town,
    two,
)
from tests.siem.sharing.standin import key_from

PLAN = Plan(["10.0.0.0/8", "192.0.2.0/24"])
AT = datetime(2026, 1, 5, 10, 17, 5, tzinfo=UTC)
NOBODYS = "99999999-1111-4111-8111-111111111111"
EVENT: dict[str, Any] = {
    TIME: "2026-01-05T10:00:00Z",
    "cw.logsource.product": "linux",
    "cw.logsource.service": "sshd",
    "event.action": "ssh_login",
    "event.outcome": "failure",
    "source.ip": "203.0.113.1",
    "user.name": "sample-user-1",
}


# ---- From one operator to the other


def test_what_one_operator_lets_out_no_filter_of_another_may_hide(tmp_path: Path) -> None:
    _, metro, grid = two(tmp_path, Clock())
    metro.release(metro.was_right())
    assert grid.refusal_of("'*'") == []

    for node in (metro, grid):
        node.round()

    (one,) = grid.releasing.foreign(RULE_ID)
    (said,) = grid.refusal_of("'*'")
    assert said == (
        f"Wrong password would not be made any more: a sample that {one.operator} released;"
        " it can be set aside"
    )
    assert metro.releasing.foreign() == []
    (own,) = metro.releasing.own(RULE_ID)
    assert own.release is not None
    assert (own.release.state, own.release.people) == ("taken", ("ada",))


def test_what_several_events_make_together_is_passed_on_and_protected(tmp_path: Path) -> None:
    _, metro, grid = two(tmp_path, Clock())
    metro.release(metro.was_right(count=5, rule=MANY_ID))

    for node in (metro, grid):
        node.round()

    silenced = grid.tuner.examine(_stricter()).silenced
    assert [(one.rule, one.operator) for one in silenced] == [
        (MANY_ID, grid.releasing.foreign()[0].operator)
    ]


def _stricter() -> str:
    from tests.siem.test_tuning import MANY

    return MANY.replace("gte: 3", "gte: 7")


def test_nothing_that_was_replaced_leaves_and_the_ledger_proves_what_did(tmp_path: Path) -> None:
    _, metro, _ = two(tmp_path, Clock())
    id = metro.release(metro.was_right())
    metro.round()

    (line,) = [one for one in metro.db.outgoing.lines() if one.type == "sample"]
    assert not any(name.encode() in line.data for name in (ATTACKER, USER, "gw", "harbour"))
    assert (line.share_id, line.rule, line.approvers) == (id, "samples", ("ada",))
    assert {"source.ip", "user.name", TIME} <= set(line.fields)
    assert "message" not in line.fields
    own, hub = keys_of(metro.key.public_key()), metro.hub.keys
    assert prove(metro.db.outgoing, "op-metro", own, hub).fault == ""
    actions = [one.action for one in metro.db.trail("sample", Range())[0]]
    assert actions == ["sample: released"]


def test_a_person_sees_before_what_will_leave_and_no_more_does(tmp_path: Path) -> None:
    _, metro, _ = two(tmp_path, Clock())
    offer = metro.releasing.offer(metro.was_right()["finding.id"])
    ((before, after),) = offer.events
    assert before["source.ip"] == ATTACKER
    assert after is not None
    assert (after["source.ip"], after["user.name"]) == ("203.0.113.1", "sample-user-1")

    metro.releasing.release(offer.finding, offer.seen, "ada", "it was real")
    metro.round()

    (line,) = [one for one in metro.db.outgoing.lines() if one.type == "sample"]
    assert json.loads(line.data)["payload"] == json.loads(offer.payload)


def test_whose_it_is_is_said_only_where_its_operator_says_so(tmp_path: Path) -> None:
    for name, said in (("hidden", "operator-"), ("named", "op-metro")):
        folder = tmp_path / name
        folder.mkdir()
        town, metro, grid = two(folder, Clock(), operator=name)
        water = Node(folder, "op-water", town)
        metro.release(metro.was_right())
        for node in (metro, grid, water):
            node.round()

        names = [node.releasing.foreign()[0].operator for node in (grid, water)]
        assert all(one.startswith(said) for one in names)
        assert (b"op-metro" in town.letters()) is (name == "named")
        # Two who are told cannot compare.
        assert (names[0] == names[1]) is (name == "named")


def test_who_joins_later_gets_what_is_kept(tmp_path: Path) -> None:
    town, metro, _ = two(tmp_path, Clock())
    metro.release(metro.was_right())
    metro.round()

    late = Node(tmp_path, "op-late", town)
    late.round()

    assert len(late.foreign) == 1


# ---- What forbids it


def test_a_policy_that_does_not_speak_of_samples_lets_none_out(tmp_path: Path) -> None:
    _, metro, _ = two(tmp_path, Clock(), release="none")
    finding = metro.was_right()

    offer = metro.releasing.offer(finding["finding.id"])

    assert offer.why.startswith("the sharing policy lets no sample out")
    assert [after for _, after in offer.events] == [None]
    with pytest.raises(Unsafe, match="lets no sample out"):
        metro.release(finding)


def test_a_rule_that_does_not_match_once_names_are_replaced_keeps_its_sample_here(
    tmp_path: Path,
) -> None:
    _, metro, _ = two(tmp_path, Clock())
    asks(metro, "user.name|re: rossi")
    finding = metro.was_right()

    with pytest.raises(Unsafe, match="would not match any more once all names are replaced"):
        metro.release(finding)


def test_a_rule_that_needs_what_stays_here_says_what(tmp_path: Path) -> None:
    _, metro, _ = two(tmp_path, Clock())
    asks(metro, "process.pid|gte: 7")

    offer = metro.releasing.offer(metro.was_right()["finding.id"])

    assert offer.why.endswith("or what stays here: process.pid.")


def test_a_rule_that_needs_a_word_which_repeats_a_name_says_which(tmp_path: Path) -> None:
    _, metro, _ = two(tmp_path, Clock())
    asks(metro, "event.action|re: ^ssh_", instead="event.action: ssh_login, ")

    offer = metro.releasing.offer(metro.was_right(user="SSH-Login")["finding.id"])

    assert offer.why.endswith("or what stays here: event.action.")


def asks(node: Node, more: str, instead: str = "") -> None:
    """Everybody's rule asks for something more, or for something else."""
    file = Path(node.settings.rules.folders[0]) / "wrong.yml"
    file.write_text(file.read_text().replace(instead, "").replace("failure}", f"failure, {more}}}"))
    node.begin()


# ---- What the rule says itself


@pytest.mark.parametrize(
    ("more", "field", "leaves"),
    [
        (f"user.name: [root, {USER.upper()}]", "user.name", USER),
        ("user.name|startswith: m., user.name|contains: oss", "user.name", "m.oss"),
        ("message|contains|all: [password, Failed, pass]", "message", "password failed"),
        ("process.pid: 7", "process.pid", 7),
        ("message|exists: true", "message", "sample-value-1"),
        ("'cw.vendor.method': password", "cw.vendor.method", "password"),
    ],
)
def test_what_the_rule_says_itself_leaves_and_protects_elsewhere(
    more: str, field: str, leaves: Any, tmp_path: Path
) -> None:
    _, metro, grid = two(tmp_path, Clock())
    asks(grid, more)
    asks(metro, more)
    finding = metro.was_right()

    ((before, after),) = metro.releasing.offer(finding["finding.id"]).events
    metro.release(finding)
    for node in (metro, grid):
        node.round()

    assert after is not None
    assert after[field] == leaves
    assert after["source.ip"] == "203.0.113.1"
    how = "replaced" if "value" in str(leaves) else "in the rule's own words"
    assert (field, how) in [(one.name, one.how) for one in compared(before, after)]
    (event,) = grid.foreign
    assert event[field] == leaves
    assert len(grid.refusal_of("'*'")) == 1


def test_what_the_rule_excepts_is_replaced(tmp_path: Path) -> None:
    _, metro, _ = two(tmp_path, Clock())
    file = Path(metro.settings.rules.folders[0]) / "wrong.yml"
    more = f"failure}}\n  known: {{user.name: {USER}, source.ip: 10.9.9.9}}"
    text = file.read_text().replace("failure}", more)
    file.write_text(text.replace("condition: failed", "condition: failed and not known"))
    metro.begin()

    ((_, after),) = metro.releasing.offer(metro.was_right()["finding.id"]).events

    assert after is not None
    assert after["user.name"] == "sample-user-1"


def test_a_policy_keeps_here_what_the_rule_says_too(tmp_path: Path) -> None:
    _, metro, _ = two(tmp_path, Clock(), drop=frozenset({"cw.vendor"}))
    asks(metro, "'cw.vendor.method': password")

    offer = metro.releasing.offer(metro.was_right()["finding.id"])

    assert "or what stays here: cw.vendor" in offer.why
    kept = Samples(release="person", drop=frozenset({"cw.vendor"}))
    assert not kept.lets_out({"events": [{"cw.vendor.method": "password"}]})


def test_nobody_takes_a_word_that_the_rule_does_not_say(tmp_path: Path) -> None:
    town, metro, _ = two(tmp_path, Clock())
    asks(metro, "user.name: [root, admin], url.path|contains: /login, url.query|exists: true")
    good = {"user.name": "root", "url.path": "/login", "url.query": "sample-value-1"}
    assert checked(payload(event=good), "a test", town.words_of).events[0]["url.path"] == "/login"
    bad: list[dict[str, Any]] = [
        {"user.name": "m.rossi"},
        {"user.name": "Root"},
        {"url.path": "/login?m.rossi"},
        {"url.path": ["/login"]},
        {"url.query": "sample-value-m.rossi"},
        {"url.query": "m.rossi"},
        {"url.original": "/login"},
        {"user.name": ["root"]},
        {"url.path": {"/login": 1}},
    ]
    for event in bad:
        with pytest.raises(Unsafe):
            checked(payload(event=event), "a test", town.words_of)
    for event in ({"user.name": "root"}, {"url.path": "/login"}):
        with pytest.raises(Unsafe):  # of a rule that nobody knows
            checked(payload(event=event, rule=NOBODYS), "a test", town.words_of)


def test_what_the_hub_would_refuse_is_not_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, metro, _ = two(tmp_path, Clock())
    finding = metro.was_right()["finding.id"]
    assert metro.releasing.offer(finding).why == ""

    monkeypatch.setattr("siem.sharing.samples.BYTES_MAX", 100)

    assert metro.releasing.offer(finding).why.startswith("a sample that is too long")


def test_a_sample_of_a_rule_that_is_not_shared_stays_here(tmp_path: Path) -> None:
    _, metro, _ = two(tmp_path, Clock())
    own = NOBODYS
    rules = Path(metro.settings.rules.folders[0])
    (rules / "own.yml").write_text((rules / "wrong.yml").read_text().replace(RULE_ID, own))
    finding = metro.was_right(rule=own)

    with pytest.raises(Unsafe, match="none of the shared library"):
        metro.release(finding)


def test_only_what_was_called_right_is_let_out_once_and_with_a_reason(tmp_path: Path) -> None:
    _, metro, _ = two(tmp_path, Clock())
    with pytest.raises(InputError, match="no event of finding nothing is protected"):
        metro.releasing.offer("nothing")
    finding = metro.was_right()
    with pytest.raises(InputError, match="a reason"):
        metro.release(finding, reason=" ")
    with pytest.raises(Conflict, match="something else would leave"):
        metro.releasing.release(finding["finding.id"], "another hash", "ada", "why")

    metro.release(finding)

    with pytest.raises(Conflict, match="released already"):
        metro.release(finding)


def test_where_two_persons_are_needed_one_is_not_enough_and_a_terminal_is_nobody(
    tmp_path: Path,
) -> None:
    town, metro, _ = two(tmp_path, Clock(), release="two_person")
    id = metro.release(metro.was_right())
    for by in ("ada", f"bob{TERMINAL}", "ada"):
        metro.round()
        assert town.kept == []
        assert metro.releasing.own()[0].release.state == "approval"  # type: ignore[union-attr]
        metro.releasing.approve(id, by)
    metro.round()
    assert town.kept == []

    assert metro.releasing.approve(id, "eve")
    metro.round()

    assert len(town.kept) == 1
    (line,) = [one for one in metro.db.outgoing.lines() if one.type == "sample"]
    assert line.approvers == ("ada", f"bob{TERMINAL}", "eve")


@pytest.mark.parametrize("release", ["person", "none"])
def test_what_waits_goes_only_under_the_policy_of_the_moment(release: str, tmp_path: Path) -> None:
    town, metro, _ = two(tmp_path, Clock())
    id = metro.release(metro.was_right())
    metro.policy.samples, metro.policy.hash = Samples(release=release), "p2"

    metro.round()

    assert len(town.kept) == (release == "person")
    state = metro.db.samples.get(id).state  # type: ignore[union-attr]
    assert state == {"person": "taken", "none": "withdrawn"}[release]


# ---- Taking it back


def gone(town: Town, *nodes: Node) -> bool:
    """Whether nothing of any sample is anywhere but in the ledger of who sent it."""
    letters = town.letters()
    kept = b"".join(told.data for node in nodes for told in node.db.outgoing.inbox())
    return (
        all(node.foreign == node.releasing.foreign() == [] for node in nodes)
        and town.kept == []
        and b"sample-user" not in letters
        and b"sample-user" not in kept
    )


def test_what_is_taken_back_vanishes_everywhere(tmp_path: Path) -> None:
    town, metro, grid = two(tmp_path, Clock())
    water = Node(tmp_path, "op-water", town)
    id = metro.release(metro.was_right())
    metro.round()
    grid.hear()  # and water does not
    assert not gone(town, grid)

    assert metro.releasing.withdraw(id, "ada", "we were wrong")
    for node in (metro, grid, water):
        node.round()

    assert gone(town, grid, water)
    assert grid.refusal_of("'*'") == []
    assert not any(one.type == "sample" for one in water.db.outgoing.inbox())
    assert not metro.releasing.withdraw(id, "ada", "again")
    assert b"we were wrong" not in b"".join(one.data for one in metro.db.outgoing.lines())


def test_a_verdict_that_is_taken_back_takes_its_sample_back(tmp_path: Path) -> None:
    town, metro, grid = two(tmp_path, Clock())
    finding = metro.was_right()
    metro.release(finding)
    for node in (metro, grid):
        node.round()

    metro.db.change([finding["finding.id"]], Change(verdict="false_positive"), "ada", NOON)
    for node in (metro, grid):
        node.round()

    assert gone(town, grid)


def test_a_policy_that_forbids_it_from_now_on_takes_back_what_is_out(tmp_path: Path) -> None:
    town, metro, grid = two(tmp_path, Clock())
    metro.release(metro.was_right())
    for node in (metro, grid):
        node.round()

    metro.policy.samples, metro.policy.hash = Samples(), "p2"
    for node in (metro, grid):
        node.round()

    assert gone(town, grid)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"drop": frozenset({"event.action"})}),
        ({"operator": "named"}, {"operator": "hidden"}),
    ],
    ids=["a field", "the name"],
)
def test_a_policy_that_lets_less_out_of_it_takes_back_what_is_out_or_waits(
    before: dict[str, Any], after: dict[str, Any], tmp_path: Path
) -> None:
    town, metro, grid = two(tmp_path, Clock(), **before)
    out = metro.release(metro.was_right())
    for node in (metro, grid):
        node.round()
    waits = metro.release(metro.was_right("198.51.100.8"))

    metro.policy.hash = "p2"
    metro.policy.samples = Samples(**{"release": "person", **before, **after})
    for node in (metro, grid):
        node.round()

    states = {one.id: one.state for one in metro.db.samples.releases()}
    assert states == {out: "withdrawn", waits: "withdrawn"}
    assert gone(town, grid)


def test_a_policy_that_says_the_same_of_samples_changes_nothing_of_them(tmp_path: Path) -> None:
    _, metro, grid = two(tmp_path, Clock())
    id = metro.release(metro.was_right())
    metro.round()
    metro.policy.hash = "p2"
    for node in (metro, grid):
        node.round()

    one = metro.db.samples.get(id)
    assert one is not None
    assert (one.state, one.policy) == ("taken", "p2")
    assert len(grid.foreign) == 1


def test_a_hub_that_lost_what_it_had_is_told_again(tmp_path: Path) -> None:
    town, metro, grid = two(tmp_path, Clock())
    first = metro.release(metro.was_right())
    metro.release(metro.was_right("198.51.100.8"))
    metro.round()
    metro.releasing.withdraw(first, "ada", "too early")
    metro.round()

    with metro.db.outgoing.desk() as desk:
        desk.tell_again(0)
    for node in (metro, grid):
        node.round()

    assert sorted(one.state for one in metro.db.samples.releases()) == ["taken", "withdrawn"]
    types = [one.type for one in metro.db.outgoing.lines()]
    assert (types.count("sample"), types.count("withdraw")) == (3, 2)
    assert len(town.kept) == len(grid.foreign) == 1


def test_a_sample_that_was_signed_with_a_lost_key_is_sealed_anew(tmp_path: Path) -> None:
    _, metro, _ = two(tmp_path, Clock())
    metro.send()
    id = metro.release(metro.was_right())
    first = metro.outbox.next()
    assert first is not None
    assert metro.db.samples.get(id).state == "sent"  # type: ignore[union-attr]

    metro.key = key_from("another")
    metro.begin()
    assert metro.outbox.again()

    assert metro.db.samples.get(id).state == "due"  # type: ignore[union-attr]
    lines = [one.state for one in metro.db.outgoing.lines() if one.type == "sample"]
    assert lines == ["refused"]


def test_what_was_taken_back_may_be_let_out_anew(tmp_path: Path) -> None:
    _, metro, grid = two(tmp_path, Clock())
    finding = metro.was_right()
    first = metro.release(finding)
    metro.round()
    metro.releasing.withdraw(first, "ada", "too early")
    metro.round()

    second = metro.release(finding)
    for node in (metro, grid):
        node.round()

    assert second != first
    assert len(grid.foreign) == 1


@pytest.mark.parametrize(
    ("named", "is_gone"),
    [
        ({"rule": "samples"}, True),
        ({"sent": Range(NOON - timedelta(hours=1), NOON + timedelta(hours=1))}, True),
        ({"sent": Range(NOON + timedelta(hours=1), NOON + timedelta(hours=2))}, False),
        ({"rule": "another"}, False),
        ({"token": "j:687:2f1c"}, False),
        ({"share_id": "another", "rule": "samples"}, False),
    ],
)
def test_it_is_taken_back_by_all_that_a_share_is(
    named: dict[str, Any], is_gone: bool, tmp_path: Path
) -> None:
    town, metro, grid = two(tmp_path, Clock())
    id = metro.release(metro.was_right())
    for node in (metro, grid):
        node.round()

    found = metro.db.outgoing.withdraw("ada", "error", town.clock(), **named)
    for node in (metro, grid):
        node.round()

    assert found == ([id] if is_gone else [])
    assert gone(town, grid) is is_gone


def test_the_end_of_a_sample_does_not_say_when_it_was_let_out(tmp_path: Path) -> None:
    town, metro, grid = two(tmp_path, Clock())
    town.clock.turn(minutes=17)
    metro.release(metro.was_right())
    for node in (metro, grid):
        node.round()

    (one,) = grid.releasing.foreign()
    midnight = town.clock().replace(hour=0, minute=0, second=0, microsecond=0)
    assert one.expires == midnight + timedelta(days=91)


def test_a_sample_ends_by_itself(tmp_path: Path) -> None:
    town, metro, grid = two(tmp_path, Clock())
    metro.release(metro.was_right())
    for node in (metro, grid):
        node.round()

    town.clock.turn(days=91)
    town.samples.step()
    grid.db.retain(town.clock())
    grid.hear()

    assert gone(town, grid)
    (own,) = metro.releasing.own()
    assert own.release is None  # and it may be let out anew


def test_who_got_a_sample_cannot_take_it_back_in_the_name_of_who_let_it_out(tmp_path: Path) -> None:
    town, metro, grid = two(tmp_path, Clock())
    water = Node(tmp_path, "op-water", town)
    metro.release(metro.was_right())
    for node in (metro, grid, water):
        node.round()
    (got,) = grid.releasing.foreign()

    for id in (got.id, metro.releasing.own()[0].release.id):  # type: ignore[union-attr]
        assert town.samples.withdrawn("op-grid", id) == 0
    town.samples.step()
    water.hear()

    assert len(water.foreign) == 1


# ---- Older ones


class _First(msgspec.Struct):
    """What the first versions read of an envelope."""

    type: Literal[
        "share", "update", "withdraw", "heartbeat", "receipt", "evidence_request",
        "evidence_answer", "proposal", "proposal_answer",
    ]  # fmt: skip


def set_back(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub of a first version: what it does not know it refuses, and takes nothing behind it."""
    take = town.ends.exchange.take

    def old(operator: str, signed: Signed) -> Signed:
        try:
            msgspec.json.decode(signed.data, type=_First)
        except msgspec.ValidationError as error:
            raise Refused(403, f"no envelope: {error}", "envelope", "") from error
        return take(operator, signed)

    monkeypatch.setattr(exchange, "ADDED", ())
    monkeypatch.setattr(town.ends.exchange, "take", old)


def test_an_older_hub_gets_no_sample_and_a_person_reads_that_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    town, metro, _ = two(tmp_path, Clock(), release="two_person")
    with monkeypatch.context() as patch:
        set_back(town, patch)
        id = metro.release(metro.was_right())
        metro.round()
        assert metro.db.samples.get(id).state == "approval"  # type: ignore[union-attr]
        metro.releasing.approve(id, "eve")
        metro.round()
        (own,) = metro.releasing.own()
        assert RELEASED[own.release.state] == (  # type: ignore[union-attr]
            "waits until the hub understands samples"
        )
        assert not metro.outbox.store.has_release(metro.policy.hash)
        town.clock.turn(minutes=2)
        metro.round()

    town.clock.turn(minutes=2)
    metro.round()  # it is up to date, as the answer to the next heartbeat says
    metro.round()

    assert len(town.kept) == 1
    assert metro.db.samples.get(id).state == "taken"  # type: ignore[union-attr]


def test_what_waits_for_a_newer_hub_is_taken_back_without_a_word_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    town, metro, _ = two(tmp_path, Clock())
    set_back(town, monkeypatch)
    id = metro.release(metro.was_right())
    metro.round()

    assert metro.releasing.withdraw(id, "ada", "we were wrong")
    metro.round()

    assert {one.type for one in metro.db.outgoing.lines()} == {"heartbeat"}
    assert metro.db.samples.get(id).state == "withdrawn"  # type: ignore[union-attr]


def test_a_hub_that_was_set_back_refuses_a_sample_and_takes_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    town, metro, _ = two(tmp_path, Clock())
    metro.round()  # the hub says that it understands samples
    id = metro.release(metro.was_right())
    with monkeypatch.context() as patch:
        set_back(town, patch)
        with pytest.raises(Refused, match="no envelope"):
            metro.send()

        assert metro.outbox.again()
        town.clock.turn(minutes=2)
        metro.send()
        assert not metro.outbox.again()

        assert metro.db.samples.get(id).state == "older"  # type: ignore[union-attr]
        lines = list(metro.db.outgoing.lines())
        assert [(one.type, one.state) for one in lines] == [
            ("heartbeat", "receipted"), ("sample", "refused"), ("heartbeat", "receipted"),
        ]  # fmt: skip

    town.clock.turn(minutes=2)
    metro.round()
    metro.round()
    assert len(town.kept) == 1


def test_a_type_that_only_a_newer_hub_knows_is_kept_shown_and_gone_over(
    tmp_path: Path, caplog: Any
) -> None:
    town, metro, _ = two(tmp_path, Clock())

    says = {"cw.campaign.operators": 7, "finding.title": ["rain"]}
    metro.hear_this(letter(town, type="weather", payload=says), letter(town))

    assert len(metro.foreign) == 1
    assert "The hub sent a weather, which this version does not understand" in caplog.text
    (row,) = newest([told_row(one) for one in metro.db.outgoing.inbox()])
    assert (row["type"], row["title"]) == ("weather", "Not understood: bring this node up to date")
    assert (row["operators"], row["payload"]) == ([], says)


# ---- What comes in is hostile


def payload(**changes: Any) -> dict[str, Any]:
    said = {"rule": RULE_ID, "events": [{**EVENT, **changes.pop("event", {})}], **changes}
    return {name: value for name, value in said.items() if value is not None}


BAD: dict[str, dict[str, Any]] = {
    "a real address": {"event": {"source.ip": "198.51.100.7"}},
    "an address in another form": {"event": {"source.ip": "203.0.113.001"}},
    "a receiver's own address": {"event": {"source.ip": "10.1.2.3"}},
    "a real name": {"event": {"user.name": "m.rossi"}},
    "a real host": {"event": {"host.name": "gw"}},
    "a real MAC address": {"event": {"source.mac": "00-11-22-33-44-55"}},
    "a real domain": {"event": {"dns.question.name": "port.example.com"}},
    "a register that is real": {"event": {"ot.point.address": 40_001}},
    "free text": {"event": {"message": "Failed password for m.rossi"}},
    "a sentence for a word": {"event": {"event.action": "Failed password for m.rossi of gw 7"}},
    "a field that there is not": {"event": {"acme.secret": "x"}},
    "a number for a word": {"event": {"event.action": 7}},
    "a word for a number": {"event": {"source.port": "22"}},
    "truth for a number": {"event": {"source.port": True}},
    "no number": {"event": {"ot.value": float("inf")}},
    "an endless list": {"event": {"event.category": ["a"] * 21}},
    "an empty list": {"event": {"event.category": []}},
    "a list of lists": {"event": {"event.category": [["a"]]}},
    "a field within a field": {"event": {"event.action": {"a": "b"}}},
    "a word that is long": {"event": {"event.action": "x" * 49}},
    "a word that breaks": {"event": {"event.action": "a\nb"}},
    "an address in a word": {"event": {"event.action": "login_from_10_9_9_9"}},
    "an address as a word": {"event": {"event.code": "fe80::1"}},
    "a MAC address as a word": {"event": {"event.code": "00-11-22-33-44-55"}},
    "a path of a program": {"event": {"process.name": "/home/rossi/run.sh"}},
    "the group of an address": {"event": {"source.ip": "ff02::1:ff12:3456"}},
    "no time": {"event": {TIME: None}},
    "a time without a zone": {"event": {TIME: "2026-01-05T10:00:00"}},
    "a time that cannot be": {"event": {TIME: "0001-01-01T00:00:00Z"}},
    "no event": {"events": []},
    "too many events": {"events": [EVENT] * 21},
    "events out of order": {"events": [{**EVENT, TIME: "2026-01-05T11:00:00Z"}, EVENT]},
    "a rule that is none": {"rule": "../../etc/passwd"},
    "no rule": {"rule": None},
    "events that are none": {"events": ["x"]},
    "too many bytes": {"events": [{**EVENT, "cw.logsource.category": "x" * 70_000}]},
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_sample_is_none_for_anybody(name: str) -> None:
    said = payload(**BAD[name])

    with pytest.raises(Unsafe):
        checked(said, "a test")


def letter(town: Town, key: Any = None, **said: Any) -> tuple[bytes, str]:
    """An envelope with a sample, signed by the hub or by whom a test says."""
    content = said.pop("payload", payload(operator="operator-1"))
    made: dict[str, Any] = {
        "type": "sample", "sent": NOON, "operator": "city", "key_id": "0" * 16, "seq": 1,
        "prev": BEGIN, "share_id": "0b8f4e1c-0000-4000-8000-000000000001", "tlp": "green",
        "expires": NOON + timedelta(days=90), "payload": content,
        "payload_sha256": payload_hash(content),
    }  # fmt: skip
    signed = sign(Envelope(**made | said), key or town.ends.operators.signing_key)
    return signed.data, base64.b64encode(signed.signature).decode()


@pytest.fixture(scope="module")
def evening(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Operators that tests of what comes in change nothing of."""
    return two(tmp_path_factory.mktemp("town"), Clock())


BAD_LETTERS: dict[str, dict[str, Any]] = {
    "of nobody": {"payload": payload()},
    "of a name that is none": {"payload": payload(operator="Nobody\n")},
    "a real name": {"payload": payload(operator="a", event={"user.name": "m.rossi"})},
    "without an end": {"expires": None},
    "for ever": {"expires": NOON + timedelta(days=4_000)},
    "over already": {"expires": NOON - timedelta(days=1)},
    "an id that is none": {"share_id": "../x"},
}


@pytest.mark.parametrize("name", BAD_LETTERS)
def test_a_node_takes_no_sample_that_is_none_and_goes_on(
    name: str, evening: Any, caplog: Any
) -> None:
    town, metro, _ = evening
    heard = metro.db.outgoing.heard()

    metro.hear_this(letter(town, **BAD_LETTERS[name]))

    assert metro.foreign == []
    assert "A sample of another operator is not taken" in caplog.text
    assert metro.db.outgoing.heard() == heard + 1
    assert metro.db.outgoing.inbox()[0].data == b""


def test_a_forged_sample_is_not_even_heard(evening: Any) -> None:
    town, metro, _ = evening
    before = metro.db.outgoing.heard()

    with pytest.raises(Unsafe, match="the signature does not hold"):
        metro.hear_this(letter(town, key=key_from("a thief")))

    assert (metro.db.outgoing.heard(), metro.foreign) == (before, [])


def test_a_sample_counts_once_however_often_it_comes(tmp_path: Path) -> None:
    town, metro, _ = two(tmp_path, Clock())

    metro.hear_this(*[letter(town)] * 3)

    assert len(metro.foreign) == len(metro.releasing.foreign()) == 1
    rows = [told_row(one) for one in metro.db.outgoing.inbox()]
    assert newest(rows) == []


def test_samples_of_others_are_bounded_and_take_no_place_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rulebook, "FINDINGS_PROTECTED", 1)
    town, metro, _ = two(tmp_path, Clock())
    ours = metro.was_right()
    letters = [
        letter(
            town,
            share_id=f"0b8f4e1c-0000-4000-8000-{n:012}",
            payload=payload(operator=f"operator-{n // 100}"),
        )
        for n in range(700)
    ]

    metro.hear_this(*letters)

    assert len(metro.foreign) == samples.FOREIGN_OF_RULE_MAX
    of = [one.operator for one in metro.releasing.foreign()]
    assert {of.count(one) for one in of} == {samples.OF_RULE_MAX}
    own = [one.finding for one in metro.db.rulebook.protected() if not one.operator]
    assert own == [ours["finding.id"]]

    metro.was_right("198.51.100.9")  # one of ours has to go, none of theirs
    own = [one.finding for one in metro.db.rulebook.protected() if not one.operator]
    assert len(own) == 1
    assert len(metro.foreign) == samples.FOREIGN_OF_RULE_MAX


def test_a_sample_that_is_set_aside_forbids_nothing_and_may_count_again(tmp_path: Path) -> None:
    town, metro, _ = two(tmp_path, Clock())
    metro.hear_this(letter(town))
    (one,) = metro.releasing.foreign()
    assert len(metro.refusal_of("'*'")) == 1

    assert metro.releasing.set_aside(one.id, "ada", "our historian does that")
    assert not metro.releasing.set_aside(one.id, "ada", "again")
    assert metro.refusal_of("'*'") == []
    metro.hear_this(letter(town))  # it stays aside
    assert metro.refusal_of("'*'") == []
    (aside,) = metro.releasing.foreign()
    assert (aside.is_aside, aside.person, aside.reason) == (True, "ada", "our historian does that")
    assert metro.releasing.set_aside(one.id, "bob", "it was not", aside=False)

    assert len(metro.refusal_of("'*'")) == 1
    trail = [(one.by, one.action) for one in metro.db.trail("sample", Range())[0]]
    assert trail == [("bob", "sample: counts again"), ("ada", "sample: set aside")]
    with pytest.raises(InputError, match="a reason"):
        metro.releasing.set_aside(one.id, "ada", "")


# ---- What leaves, in every form


def _some(random: random.Random, name: str) -> Any:
    """A value of a field that something real could have."""
    kind = FIELDS[name].type
    address = random.choice(
        [f"10.{random.randrange(256)}.3.{random.randrange(1, 255)}", "198.51.100.7", "8.8.8.8",
         "192.0.2.44", "fe80::1%eth0", "2a00:1450::7", "fd12::9", "239.1.2.3", "172.20.1.1"]
    )  # fmt: skip
    one: Any = {
        "ip": address,
        "long": random.randrange(100_000),
        "double": random.random(),
        "float": random.random(),
        "boolean": random.random() < 0.5,
        "date": AT,
        "keyword": random.choice(["Rossi-77", "pump/7-north", "tcp", "a sentence of Rossi-77"]),
        "text": "Rossi-77 was here",
        "geo_point": "45.4,9.1",
        "flat_object": {"a": "Rossi-77"},
    }[kind.removesuffix("[]")]
    return [one] if kind.endswith("[]") else one


@pytest.mark.parametrize("seed", range(5))
def test_whatever_events_hold_what_leaves_is_a_sample_and_names_nobody(seed: int) -> None:
    some = random.Random(seed)
    names = sorted(FIELDS.keys() - {TIME})
    events = [
        {TIME: AT + timedelta(seconds=n)} | {name: _some(some, name) for name in names}
        for n in range(20)
    ]

    made = masked(events, PLAN)

    plain = json.loads(json.dumps(made, default=lambda time: time.isoformat()))
    checked({"rule": RULE_ID, "events": plain}, "a test")
    text = json.dumps(plain).lower()
    for hidden in ("rossi", "pump", "198.51.100.7", "8.8.8.8", "192.0.2.44", "2a00", "239.1"):
        assert hidden not in text, hidden


def test_the_same_name_is_replaced_by_the_same_and_distances_of_time_stay() -> None:
    events = [
        {TIME: AT, "source.ip": "10.1.1.1", "destination.ip": "198.51.100.7", "user.name": "a"},
        {TIME: AT + timedelta(seconds=7), "source.ip": "198.51.100.7", "user.name": "b"},
        {TIME: AT + timedelta(seconds=9), "source.ip": "10.1.1.1", "user.name": "a"},
    ]

    first, second, third = masked(events, PLAN)

    assert first[TIME] == datetime(2026, 1, 5, 10, tzinfo=UTC)
    assert third[TIME] - first[TIME] == timedelta(seconds=9)
    assert (first["source.ip"], first["destination.ip"]) == ("10.254.253.1", "203.0.113.1")
    assert second["source.ip"] == first["destination.ip"]
    assert first["user.name"] == third["user.name"] != second["user.name"]


def test_what_is_ours_outside_and_special_stays_so() -> None:
    said = {"198.51.100.7": "203.0.113.1", "192.0.2.9": "192.0.2.1", "192.168.1.1": "192.168.253.1",
            "127.0.0.1": "127.0.0.1", "224.0.0.251": "224.0.0.251", "239.1.2.3": "233.252.0.1",
            "fe80::1": "fe80::fdfe:1", "2a00::1": "2001:db8:2::1"}  # fmt: skip

    for real, made in said.items():
        assert masked([{TIME: AT, "source.ip": real}], PLAN)[0]["source.ip"] == made


def test_a_word_that_repeats_a_name_stays_here() -> None:
    event = {TIME: AT, "user.name": "rossi", "event.action": "login_rossi", "event.code": "4625"}

    (made,) = masked([event], PLAN)
    (less,) = masked([event], PLAN, frozenset({"event.code", "user.name"}))

    assert made.keys() == {TIME, "user.name", "event.code"}
    assert less.keys() == {TIME}


@pytest.mark.parametrize(
    ("name", "real", "word"),
    [
        ("user.name", "m.rossi", "user_m_rossi_logged_in"),
        ("user.email", "M.Rossi@saltmere.example", "m.rossi"),
        ("user.name", "HARBOUR\\m.rossi", "m_rossi"),
        ("user.name", "Müller", "user_m_ller_logged_in"),
        ("user.id", 123_456, "123456"),
        ("host.name", "scada-01.saltmere.example", "scada_01_is_down"),
        ("source.mac", "00-11-22-33-44-55", "001122334455"),
        ("cw.operator", "op-metro", "op_metro_login"),
        ("observer.serial_number", "SN-778811", "sn778811"),
        ("user.name", "ada", "login_of_ada"),
        ("host.name", "gw.saltmere.example", "gw down"),
    ],
)
def test_a_name_that_is_written_in_another_way_stays_here_too(
    name: str, real: Any, word: str
) -> None:
    (made,) = masked([{TIME: AT, name: real, "event.action": word, "event.code": "4625"}], PLAN)

    assert made.keys() - {name} == {TIME, "event.code"}


def test_a_short_name_that_is_a_word_does_not_hide_it() -> None:
    event = {TIME: AT, "user.name": "ftp", "network.application": "ftp", "event.code": "ftps_22"}
    event |= {"user.id": "22"}

    assert masked([event], PLAN)[0].keys() == event.keys()


def test_a_number_of_an_object_is_no_address() -> None:
    event = {TIME: AT, "event.code": "1.3.6.1.6.3.1.1.5.3", "tls.version": "1.2"}

    assert masked([event], PLAN)[0].keys() == event.keys()


def test_a_list_that_is_too_long_stays_here() -> None:
    event = {TIME: AT, "event.category": ["network"] * 21, "event.type": ["denied"] * 20}

    assert masked([event], PLAN)[0].keys() == {TIME, "event.type"}


def test_no_field_is_both_kept_and_replaced_and_all_are_of_the_schema() -> None:
    assert not KEPT & REPLACED
    assert FIELDS.keys() >= MAY_LEAVE


# ---- The policy


def compiled(more: str) -> Samples:
    text = EXAMPLE.read_text().replace("samples: {release: person}", more)
    assert more in text
    return compile_policy(text.encode(), "p.yml", plan=PLAN, tokens=Tokens(b"k" * 32)).samples


def test_a_policy_says_who_lets_samples_out_and_what_stays() -> None:
    said = compiled("samples: {release: two_person, operator: named, drop: [ot.value]}")

    assert (said.people, said.operator, said.drop) == (2, "named", frozenset({"ot.value"}))
    assert said.retention == timedelta(days=90)
    assert compiled("").release == "none"
    assert compiled("samples: {release: person}").people == 1


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("samples: {release: auto}", "'auto' is no release"),
        ("samples: {operator: whoever}", "'whoever' is no operator"),
        ("samples: {drop: [acme.x]}", "acme.x is no field of an event"),
        ("samples: {to: [police]}", "'to' is no key here"),
        ("samples: yes", "is no mapping of keys"),
    ],
)
def test_a_policy_that_says_it_wrongly_is_refused(more: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        compiled(more)


# ---- kill -9


POINTS = (
    "seal-before-commit:2", "seal-after-commit:2", "sample-kept", "exchange-receipt:2",
    "exchange-link:2", "receipt-before-commit:2", "receipt-after-commit:2", "sample-before-letter",
    "sample-after-letter", "sample-before-letter:2", "sample-after-letter:2", "exchange-letter",
    "seal-before-commit:3", "seal-after-commit:3", "exchange-remove", "exchange-receipt:3",
    "sample-end", "sample-end:2",
)  # fmt: skip


def a_week(folder: Path, *, takes_back: bool) -> tuple[Town, list[Node]]:
    """A sample is let out and perhaps taken back; again after a kill, it goes on."""
    town = Town(folder, Clock())
    nodes = [Node(folder, name, town) for name in ("op-metro", "op-grid", "op-water")]
    metro = nodes[0]
    if not metro.db.checkpoint()[0]:
        metro.release(metro.was_right())
    for node in nodes * 2:
        node.round()
    if takes_back:
        metro.releasing.withdraw(metro.db.samples.releases()[0].id, "ada", "too early")
        for node in nodes * 2:
            node.round()
    return town, nodes


def killed(folder: Path, point: str) -> None:
    """The week, up to a point."""
    child = os.fork()
    if not child:
        try:
            faults._NAME, _, faults._NTH = point.partition(":")
            a_week(folder, takes_back=True)
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{point} was not passed"


@pytest.mark.parametrize("point", POINTS)
def test_after_a_kill_nothing_is_lost_and_nothing_is_there_twice(
    point: str, tmp_path: Path
) -> None:
    killed(tmp_path, point)

    town, (metro, *others) = a_week(tmp_path, takes_back=False)

    state = metro.db.samples.releases()[0].state
    assert state in ("taken", "withdrawn")
    for node in others:
        assert len(node.foreign) == len(node.releasing.foreign()) == (state == "taken")
    if state == "withdrawn":
        assert gone(town, *others)
    types = [one.type for one in metro.db.outgoing.lines()]
    assert types.count("sample") == 1
    assert types.count("withdraw") == (state == "withdrawn")
