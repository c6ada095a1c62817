"""What the hub takes, and what it never does: in order, once, and only what may be shared."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from cityward import TransientError
from siem.city import letters
from siem.city.exchange import RECEIPT, TOMBSTONE
from siem.city.hub import forget
from siem.city.intake import INT64, OLDEST, Refused
from siem.city.joins import id_of
from siem.sharing import envelope as envelopes
from siem.sharing.envelope import Envelope, Receipt, Signed, payload_hash, sign
from siem.store.protocol import Conflict
from tests.siem.city.city import FINDING, NOW, Hub, Node, receipt, share_id


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path)


@pytest.fixture
def node(hub: Hub) -> Node:
    return hub.enrolled("op-grid")


def refused(hub: Hub, node: Node, signed: Signed) -> Refused:
    before = hub.everything()
    with pytest.raises(Refused) as error:
        hub.exchange.take(node.name, signed)
    assert hub.everything() == before
    assert f"{node.name}: exchange refused: {error.value.what}" in hub.trail[-1]
    return error.value


def not_kept(hub: Hub, node: Node, signed: Signed) -> Receipt:
    """In turn and authentic, so it is receipted; but nothing of it is kept."""
    before, told = hub.everything(), len(hub.shares)
    said = receipt(hub.exchange.take(node.name, signed), hub)
    assert said.did["refused"]
    assert hub.everything() == before
    assert len(hub.shares) == told
    assert f"{node.name}: exchange refused: {said.did['refused']}" in hub.trail[-1]
    assert hub.exchange.take(node.name, signed)
    hub.exchange.take(node.name, node.share())
    return said


# ---- taken


def test_a_share_becomes_a_document_with_marks_of_certificate_and_envelope(hub, node):
    sent = node.share()

    said = receipt(hub.exchange.take("op-grid", sent), hub)

    (document,) = hub.everything()
    assert document["cw.operator"] == "op-grid"
    assert document["cw.sector"] == "energy.electricity"
    assert document["cw.marking.tlp"] == "amber"
    assert document["cw.share.id"] == share_id(sent)
    assert document["cw.share.audiences"] == ["city-soc"]
    assert document["finding.first_seen"] == NOW - timedelta(hours=1)
    assert document["source.token"] == ["j:687:2f1c", "j:687:99aa"]
    assert (said.seq, said.hash, said.position) == (1, sent.hash, 1)
    assert said.index == "cw-shared-op-grid-2026.03"
    assert hub.shares == [document]


def test_the_same_envelope_again_gets_its_old_receipt_and_changes_nothing(hub, node):
    first, second = node.share(), node.share()
    answers = [hub.exchange.take("op-grid", one) for one in (first, second)]

    assert hub.exchange.take("op-grid", second) == answers[1]
    assert hub.exchange.take("op-grid", first) == answers[0]
    assert len(hub.everything()) == 2
    assert len(hub.shares) == 2


def test_a_share_that_is_known_gets_its_old_receipt_whatever_its_number(hub, node):
    answer = hub.exchange.take("op-grid", node.share(share_id=KNOWN))
    hub.exchange.take("op-grid", node.share())
    set_back = sign(node.envelope(share_id=KNOWN, seq=1, prev="f" * 64), node.key)

    assert hub.exchange.take("op-grid", set_back) == answer


KNOWN = "6f1f2c34-0000-4000-8000-000000000001"


def test_a_newer_revision_replaces_and_an_older_one_never_does(hub, node):
    for revision in (2, 3, 1):
        hub.exchange.take("op-grid", node.share(share_id=KNOWN, revision=revision))

    (document,) = hub.everything()
    assert document["cw.share.revision"] == 3


def test_a_policy_that_lets_out_less_replaces_what_the_same_revision_said(hub, node):
    hub.exchange.take("op-grid", node.share(share_id=KNOWN))
    less = {name: FINDING[name] for name in FINDING if name != "finding.title"}

    hub.exchange.take("op-grid", node.share(type="update", share_id=KNOWN, payload=less))

    (document,) = hub.everything()
    assert "finding.title" not in document


def test_a_heartbeat_is_countersigned_and_shown_with_its_operator(hub, node):
    sent = node.beat(version="1.2", ledger=7, ledger_head="ab", waiting=3)

    answer = hub.exchange.take("op-grid", sent)

    countersigned = {"ledger": 7, "ledger_head": "ab"}
    assert receipt(answer, hub).did == {"countersigned": countersigned, "takes": ["sample"]}
    assert hub.exchange.take("op-grid", sent) == answer
    (link,) = hub.exchange.links()
    assert (link.state, link.version, link.waiting, link.ledger_head) == ("linked", "1.2", 3, "ab")
    assert hub.beats == ["op-grid"]


def test_fields_that_a_newer_node_knows_are_passed_over_and_the_receipt_says_so(hub, node):
    sent = node.share(payload={**FINDING, "ot.newer": 1})

    assert receipt(hub.exchange.take("op-grid", sent), hub).did == {"passed_over": ["ot.newer"]}
    assert "ot.newer" not in hub.everything()[0]


def test_a_type_that_only_a_newer_node_knows_is_receipted_as_refused_and_the_next_is_taken(
    hub, node
):
    sent = node.share(type="weather", share_id="ö" * 64, revision=INT64 - 1)
    said = receipt(hub.exchange.take("op-grid", sent), hub).did
    hub.exchange.take("op-grid", node.share())

    assert said["refused"] == "a weather, which this hub does not understand"
    assert len(hub.everything()) == 1
    (link,) = hub.exchange.links()
    assert (link.seq, link.refused) == (2, 1)
    assert any("a weather, which this hub does not understand" in line for line in hub.trail)


@pytest.mark.parametrize(
    "named", [{"type": "Weather\n"}, {"type": "w" * 33}, {"type": ""}, {"share_id": "ö" * 65}]
)
def test_a_type_that_no_version_has_is_refused(named, hub, node):
    with pytest.raises(Refused, match="a type or an id that is none"):
        hub.exchange.take("op-grid", node.share(**{"type": "weather", **named}))


def test_a_type_that_is_the_hubs_own_is_refused(hub, node):
    with pytest.raises(Refused, match="a proposal is not an operator's to send"):
        hub.exchange.take("op-grid", node.share(type="proposal"))


def test_an_envelope_of_the_version_before_is_taken(hub, node, monkeypatch):
    sent = node.share(pap="", expires=None)
    for module in (envelopes, __import__("siem.city.intake", fromlist=["VERSION"])):
        monkeypatch.setattr(module, "VERSION", 2)

    hub.exchange.take("op-grid", sent)

    assert len(hub.everything()) == 1


def test_what_a_newer_envelope_has_more_is_passed_over(hub, node):
    plain = msgspec.to_builtins(node.envelope())
    data = msgspec.json.encode({**plain, "weather": "fine"})

    hub.exchange.take("op-grid", Signed(data, node.key.sign(data)))

    assert len(hub.everything()) == 1


# ---- taken back


def test_what_is_withdrawn_is_gone_and_never_comes_back(hub, node):
    hub.exchange.take("op-grid", node.share(share_id=KNOWN))

    said = receipt(hub.exchange.take("op-grid", node.withdraw(KNOWN)), hub)

    assert said.did == {"removed": 1, "withdrawn": "2026-03-01T12:00:00Z", "campaigns": 0}
    assert hub.everything() == []
    assert hub.gone == [KNOWN]
    not_kept(hub, node, node.share(share_id=KNOWN, revision=2))
    for _, tomb in hub.commons.records.all("tombstone"):
        assert tomb.value == {"reason": "error", "at": "2026-03-01T12:00:00Z", "revision": 0}


def test_nobody_withdraws_what_is_of_another_operator(hub, node):
    other = hub.enrolled("op-port")
    hub.exchange.take("op-port", other.share(share_id=KNOWN))

    said = receipt(hub.exchange.take("op-grid", node.withdraw(KNOWN)), hub)

    assert said.did["removed"] == 0
    assert len(hub.everything()) == 1


def test_a_share_past_its_time_is_withdrawn_by_the_hub_and_a_newer_one_may_come(hub, node):
    hub.exchange.take("op-grid", node.share(share_id=KNOWN, expires=NOW + timedelta(hours=1)))
    hub.now += timedelta(hours=2)

    assert hub.exchange.expire(hub.now) == 1
    assert hub.everything() == []
    assert hub.gone == [KNOWN]
    assert hub.exchange.expire(hub.now) == 0
    hub.exchange.take("op-grid", node.share(share_id=KNOWN, revision=2))
    hub.exchange.expire(hub.now)
    assert len(hub.everything()) == 1


def test_an_operator_can_compare_what_the_hub_holds_with_its_ledger(hub, node):
    sent = [node.share(share_id=KNOWN), node.share(share_id=KNOWN, revision=2), node.share()]
    other = hub.enrolled("op-port")
    for one in sent:
        hub.exchange.take("op-grid", one)
    hub.exchange.take("op-port", other.share())

    held = {one["share_id"]: one for one in hub.exchange.mirror("op-grid")}

    sha = payload_hash(dict(FINDING))
    assert held == {
        KNOWN: {"share_id": KNOWN, "revision": 2, "payload_sha256": sha},
        share_id(sent[2]): {"share_id": share_id(sent[2]), "revision": 1, "payload_sha256": sha},
    }


# ---- refused

BAD: dict[str, tuple[int, dict[str, object]]] = {
    "from the future": (400, {"sent": NOW + timedelta(hours=25)}),
    "a time without a zone": (400, {"sent": NOW.replace(tzinfo=None)}),
    "in another name": (403, {"operator": "op-port"}),
    "of another key": (403, {"key_id": "0" * 16}),
    "a campaign": (403, {"derived_from": (KNOWN,)}),
    "a path for an id": (400, {"share_id": "../../etc/passwd"}),
    "markup for a rule": (400, {"rule": "x\u202e"}),
    "a receipt": (400, {"type": "receipt"}),
    "a proposal": (400, {"type": "proposal"}),
    "a newer version": (400, {"v": 2}),
    "not the payload": (403, {"payload_sha256": "0" * 64}),
    "a gap": (409, {"seq": 3}),
    "not behind it": (409, {"prev": "0" * 63 + "1"}),
}


@pytest.mark.parametrize("name", BAD)
def test_an_envelope_that_may_not_be_is_refused_in_words(hub, node, name):
    status, named = BAD[name]

    error = refused(hub, node, sign(node.envelope(**named), node.key))

    assert error.status == status
    assert error.what
    assert error.todo


@pytest.mark.parametrize(
    "named",
    [
        {"tlp": "red"},
        {"tlp": ""},
        {"pap": "grey"},
        {"audiences": ("peers",)},
        {"audiences": ()},
        {"audiences": ("press",)},
        {"revision": 0},
    ],
    ids=str,
)
def test_a_share_whose_marks_may_not_be_is_receipted_as_refused(hub, node, named):
    not_kept(hub, node, node.share(**named))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cw.operator", "op-port"),
        ("cw.marking.tlp", "clear"),
        ("cw.share.id", KNOWN),
        ("cw.campaign.operators", ["op-port"]),
        ("<script>", 1),
        ("../x", 1),
        ("finding.severity", "dreadful"),
        ("cw.sector", "press"),
        ("finding.count", "12"),
        ("finding.count", 1 << 70),
        ("finding.count", True),
        ("finding.confidence", "0.5"),
        ("finding.first_seen", "yesterday"),
        ("finding.first_seen", "2026-03-01T11:00:00"),
        ("finding.first_seen", "2026-03-03T11:00:00Z"),
        ("finding.first_seen", "2019-01-01T11:00:00Z"),
        ("finding.last_seen", "2090-01-01T11:00:00Z"),
        ("source.ip", "j:687:2f1c"),
        ("source.token", "j:687:2f1c"),
        ("source.token", ["x"] * 501),
        ("finding.title", "x" * 8_001),
        ("finding.title", {"a": 1}),
        ("phys.location", "91,0"),
        ("cw.vendor", {"a": {"b": 1}}),
    ],
)
def test_a_payload_that_no_share_has_is_receipted_as_refused(hub, node, name, value):
    not_kept(hub, node, node.share(payload={**FINDING, name: value}))


def test_a_share_without_the_time_that_names_its_index_is_refused(hub, node):
    not_kept(hub, node, node.share(payload={"finding.title": "x"}))


def test_an_id_that_another_operator_has_is_refused(hub, node):
    other = hub.enrolled("op-port")
    hub.exchange.take("op-port", other.share(share_id=KNOWN))

    not_kept(hub, node, node.share(share_id=KNOWN, revision=2))


def test_who_takes_back_what_another_has_shared_changes_nothing_there(hub, node):
    other = hub.enrolled("op-port")
    hub.exchange.take("op-port", other.share(share_id=KNOWN))
    did = receipt(hub.exchange.take("op-grid", node.withdraw(KNOWN)), hub).did
    hub.exchange.expire(hub.now)
    hub.another().exchange.expire(hub.now)

    assert did["removed"] == 0
    assert [one["cw.operator"] for one in hub.everything()] == ["op-port"]


def test_nobody_takes_an_id_that_is_the_hubs_to_give(hub, node):
    campaign = id_of("a rule and a token that an operator knows")

    assert refused(hub, node, node.share(share_id=campaign)).status == 400
    assert refused(hub, node, node.withdraw(campaign)).status == 400


def test_what_is_prolonged_while_it_expires_stays(hub, node, monkeypatch):
    hub.exchange.take("op-grid", node.share(share_id=KNOWN, expires=NOW + timedelta(hours=1)))
    hub.now = NOW + timedelta(hours=2)
    found = hub.commons.search

    def meanwhile(*args, **named):
        page = found(*args, **named)
        monkeypatch.undo()
        newer = node.share(share_id=KNOWN, revision=2, expires=NOW + timedelta(days=9))
        hub.exchange.take("op-grid", newer)
        return page

    monkeypatch.setattr(hub.commons, "search", meanwhile)
    hub.exchange.expire(hub.now)

    assert [one["cw.share.revision"] for one in hub.everything()] == [2]


def test_a_node_that_was_set_back_or_cloned_is_refused_and_told_what_is_expected(hub, node):
    first = node.share()
    hub.exchange.take("op-grid", first)
    node.seq, node.hash = 0, "0" * 64

    error = refused(hub, node, node.share())

    assert error.status == 409
    assert error.said["expected"] == {"seq": 2, "prev": first.hash}
    (link,) = hub.exchange.links()
    assert (link.refused, link.gaps, link.seq) == (1, 0, 1)


def test_a_gap_is_counted_with_its_operator(hub, node):
    hub.exchange.take("op-grid", node.share())
    node.seq += 1

    refused(hub, node, node.share())

    assert hub.exchange.links()[0].gaps == 1


@pytest.mark.parametrize("said", [{"waiting": "many"}, {"version": "x" * 100_000}], ids=str)
def test_a_heartbeat_that_is_none_or_says_too_much_is_receipted_as_refused(hub, node, said):
    not_kept(hub, node, node.share(type="heartbeat", share_id="", revision=0, payload=said))
    assert hub.exchange.links()[0].heartbeat is None


def test_a_withdrawal_without_a_reason_is_receipted_as_refused(hub, node):
    hub.exchange.take("op-grid", node.share(share_id=KNOWN))
    said = {"reason": "mood"}
    bad = node.share(type="withdraw", share_id=KNOWN, revision=0, payload=said)

    assert "refused" in receipt(hub.exchange.take("op-grid", bad), hub).did
    assert [one["cw.share.id"] for one in hub.everything()] == [KNOWN]


def test_who_is_not_enrolled_or_was_revoked_is_refused(hub, node):
    refused(hub, Node("op-nobody"), node.share())
    hub.operators.revoke("op-grid")

    refused(hub, node, node.share())

    assert hub.exchange.links()[0].state == "revoked"


# ---- what the hub says


def test_letters_are_kept_for_as_many_as_an_operator_keeps(hub, node, monkeypatch):
    monkeypatch.setattr(letters, "LETTERS_MAX", 3)
    for number in range(5):
        hub.exchange.letters.send("op-grid", "proposal", {"n": number})

    assert [one.n for one in hub.exchange.letters.inbox("op-grid", 0)] == [3, 4, 5]
    assert [one.n for one in hub.exchange.letters.inbox("op-grid", 4)] == [5]
    assert len(list(hub.commons.records.all(letters.LETTER))) == 3


def test_what_is_remembered_of_shares_does_not_outlive_them_for_ever(hub, node):
    old = node.share(share_id=KNOWN)
    hub.exchange.take("op-grid", old)
    hub.exchange.take("op-grid", node.withdraw(KNOWN))
    hub.now += timedelta(days=300)
    hub.exchange.take("op-grid", node.share(sent=hub.now))
    limits = {RECEIPT: hub.now - timedelta(days=121), TOMBSTONE: hub.now - OLDEST}

    assert forget(hub.commons.records, limits) == 2
    assert len(list(hub.commons.records.all(RECEIPT))) == 1
    assert len(list(hub.commons.records.all(TOMBSTONE))) == 1
    hub.now += timedelta(days=101)
    assert forget(hub.commons.records, {TOMBSTONE: hub.now - OLDEST}) == 1


def test_letters_to_an_operator_are_a_chain_of_their_own(hub, node):
    for text in ("one", "two"):
        hub.exchange.letters.send("op-grid", "proposal", {"text": text}, tlp="amber")

    lines = list(hub.exchange.letters.inbox("op-grid", 0))

    first, second = (msgspec.json.decode(one.data, type=Envelope) for one in lines)
    assert [one.n for one in lines] == [1, 2]
    assert [first.payload, second.payload] == [{"text": "one"}, {"text": "two"}]
    assert second.prev == envelopes.Signed(lines[0].data.encode(), b"").hash
    assert list(hub.exchange.letters.inbox("op-grid", 1)) == [lines[1]]
    assert list(hub.exchange.letters.inbox("op-port", 0)) == []


# ---- another hub


def test_a_hub_that_was_fenced_off_acknowledges_nothing(hub, node):
    hub.exchange.take("op-grid", node.share())
    other = hub.another()
    sent = node.share()

    for _ in range(2):
        with pytest.raises(TransientError):
            hub.exchange.take("op-grid", sent)

    other.exchange.take("op-grid", sent)
    assert len(other.everything()) == 2
    assert not hub.lease.step()


def test_a_hub_that_is_overtaken_while_it_takes_does_not_acknowledge(hub, node, monkeypatch):
    hub.exchange.take("op-grid", node.share(share_id=KNOWN))
    late = node.share(share_id=KNOWN, revision=2)
    put = hub.commons.put

    def slow(writes):
        monkeypatch.setattr(hub.commons, "put", put)
        other = hub.another()
        other.exchange.take("op-grid", late)
        other.exchange.take("op-grid", node.withdraw(KNOWN))
        return put(writes)

    monkeypatch.setattr(hub.commons, "put", slow)
    # A file would let the other hub wait; each write by itself, as in a cluster, is what counts.
    monkeypatch.setattr(hub.commons, "together", nullcontext)

    with pytest.raises((TransientError, Conflict)):
        hub.exchange.take("op-grid", late)

    assert hub.everything() == []
