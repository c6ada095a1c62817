"""The outbox: what leaves, in which order, and that no moment loses or doubles any."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from cityward import Unsafe
from siem.sharing.envelope import BEGIN, Envelope, Signed
from siem.sharing.share import Approval, share_id
from siem.store import outgoing
from siem.store.outgoing import TERMINAL
from siem.store.protocol import Change, Range
from tests.siem.sharing.standin import NOON, FakeHub, FakePolicy, Node, match


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def ids(taken: list[Envelope]) -> list[str]:
    return [one.share_id for one in taken]


def test_a_finding_leaves_as_the_policy_says_and_nothing_else(node: Node) -> None:
    [id] = node.find(match(1))

    [sent] = node.send()

    assert (sent.type, sent.share_id, sent.revision) == ("share", id, 1)
    assert (sent.policy, sent.rule, sent.audiences) == ("p1", "all", ("city-soc",))
    assert sorted(sent.payload) == ["finding.count", "finding.first_seen", "finding.severity"]
    assert node.send() == []


def test_what_was_found_before_sharing_began_stays(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.find(match(1))
    node.db.outgoing.begin(anew=True)

    assert node.send() == []


def test_without_a_policy_only_heartbeats_leave(node: Node) -> None:
    node.policy = None
    node.find(match(1))

    assert node.send() == []
    assert [one.type for one in node.hub.taken] == ["heartbeat"]
    node.policy = FakePolicy()
    assert node.send() == []


def test_envelopes_are_numbered_without_a_gap_and_name_the_one_before(node: Node) -> None:
    node.find(*(match(number) for number in range(5)))
    node.send()
    lines = list(node.db.outgoing.lines())

    assert [one.seq for one in node.hub.taken] == [1, 2, 3, 4, 5, 6]
    assert [one.prev for one in node.hub.taken] == [BEGIN, *(line.hash for line in lines[:-1])]


def test_a_finding_that_grows_is_an_update_once_a_minute_at_most(node: Node) -> None:
    node.find(match(1))
    node.send()
    node.clock.pass_(10)
    node.find(match(1))

    early = node.send()
    node.clock.pass_(60)
    [late] = node.send()

    assert early == []
    assert (late.type, late.revision, late.payload["finding.count"]) == ("update", 2, 2)


def test_what_became_more_severe_is_sent_at_once(node: Node) -> None:
    node.find(match(1, "low"))
    node.send()
    node.find(match(1, "critical"))

    [sent] = node.send()

    assert (sent.type, sent.payload["finding.severity"]) == ("update", "critical")


def test_a_change_of_what_does_not_leave_is_no_reason_to_send(node: Node) -> None:
    node.find(match(1))
    node.send()
    finding = node.db.search("", Range()).rows[0]["finding.id"]
    node.db.change([finding], Change(assignee="me"), "me", node.clock())
    node.clock.pass_(120)

    assert node.send() == []


def test_the_newest_goes_first_then_the_most_severe_then_what_is_older(node: Node) -> None:
    [low] = node.find(match(1, "low"))
    [old] = node.find(match(2, "high"))
    node.outbox.offer()
    node.clock.pass_(1)
    [critical] = node.find(match(3, "critical"))
    node.outbox.offer()
    node.clock.pass_(120)
    [live] = node.find(match(4, "informational"))

    assert ids(node.send()) == [live, critical, old, low]


def test_a_full_outbox_lets_the_oldest_of_the_least_severe_go_and_counts_them(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "OUTGOING_MAX", 2)
    node.find(match(1, "low"))
    node.outbox.offer()
    node.clock.pass_(1)
    node.find(match(2, "low"), match(3, "high"))

    sent = node.send()

    assert [one.payload["finding.severity"] for one in sent] == ["high", "low"]
    assert node.db.outgoing.tally().dropped == 1


# ---- A policy that changes


def test_what_waits_is_made_by_the_policy_at_the_moment_of_sending(node: Node) -> None:
    node.find(match(1))
    node.outbox.offer()
    node.policy = FakePolicy("p2", names=("finding.first_seen",))

    [sent] = node.send()

    assert (sent.policy, sorted(sent.payload)) == ("p2", ["finding.first_seen"])


def test_what_a_new_policy_lets_out_no_more_is_taken_back(node: Node) -> None:
    a, b = node.find(match(1, "low"), match(2, "high"))
    node.send()
    node.policy = FakePolicy("p2", lets_out=lambda one: one["finding.severity"] == "high")
    node.find(match(3))

    sent = node.send()

    assert [(one.type, one.share_id) for one in sent if one.type == "withdraw"] == [("withdraw", a)]
    assert b in node.hub.documents


def test_a_policy_that_fails_lets_nothing_out(node: Node) -> None:
    node.policy = FakePolicy(lets_out=lambda document: bool(document["no such field"]))
    node.find(match(1))

    assert node.send() == []


def test_what_is_judged_anew_is_not_late(node: Node) -> None:
    node.find(match(1))
    node.send()
    node.clock.pass_(3_600)
    node.policy = FakePolicy("p2")

    node.send()

    assert node.hub.taken[-1].type == "heartbeat"
    node.clock.pass_(61)
    node.send()
    assert [one.payload["lag_s"] for one in node.hub.taken if one.type == "heartbeat"] == [0] * 3


def test_what_was_offered_by_a_clock_that_was_ahead_does_not_wait_for_that_day(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path)
    [a] = node.find(match(1))
    node.send()
    node.clock.pass_(3 * 86_400)
    [b] = node.find(match(2))
    node.outbox.offer()
    node.db.outgoing.withdraw("me", "error", node.clock(), share_id=a)
    node.clock.pass_(-3 * 86_400)

    assert [(one.type, one.share_id) for one in node.send()] == [("withdraw", a), ("share", b)]


# ---- Approval


@pytest.mark.parametrize(
    ("approval", "persons"), [("person", ["a.one"]), ("two_person", ["a.one", "b.two"])]
)
def test_a_share_waits_until_enough_people_said_yes(
    tmp_path: Path, approval: Approval, persons: list[str]
) -> None:
    node = Node(tmp_path, FakePolicy(approval=approval))
    [id] = node.find(match(1))
    sent: list[Envelope] = []

    for name in persons:
        assert node.send() == sent == []
        assert [one.share_id for one in node.db.outgoing.waiting("approval")] == [id]
        assert node.db.outgoing.approve(id, name, node.clock())
    sent = node.send()

    assert ids(sent) == [id]
    assert node.db.outgoing.ledger("share_id")[0].approvers == tuple(persons)
    assert not node.db.outgoing.approve(id, "c.three", node.clock())


def test_the_same_person_twice_is_one_person(tmp_path: Path) -> None:
    node = Node(tmp_path, FakePolicy(approval="two_person"))
    [id] = node.find(match(1))
    node.send()
    for _ in range(3):
        node.db.outgoing.approve(id, "a.one", node.clock())

    assert node.send() == []


def test_an_account_of_the_machine_is_no_second_person(tmp_path: Path) -> None:
    node = Node(tmp_path, FakePolicy(approval="two_person"))
    [id] = node.find(match(1))
    node.send()
    for name in ("a.one", f"root{TERMINAL}", f"a.one{TERMINAL}"):
        node.db.outgoing.approve(id, name, node.clock())
    alone = node.send()
    node.db.outgoing.approve(id, "b.two", node.clock())

    assert alone == []
    assert ids(node.send()) == [id]


def test_a_no_holds_for_later_revisions(tmp_path: Path) -> None:
    node = Node(tmp_path, FakePolicy(approval="person"))
    [id] = node.find(match(1))
    node.send()
    node.db.outgoing.approve(id, "a.one", node.clock(), yes=False)
    node.clock.pass_(120)
    node.find(match(1))

    assert node.send() == []
    assert [one.share_id for one in node.db.outgoing.waiting("refused")] == [id]


def test_a_yes_under_another_policy_is_none(tmp_path: Path) -> None:
    node = Node(tmp_path, FakePolicy(approval="person"))
    [id] = node.find(match(1))
    node.send()
    node.db.outgoing.approve(id, "a.one", node.clock())
    node.policy = FakePolicy("p2", approval="person")

    assert node.send() == []


# ---- Withdrawal


@pytest.mark.parametrize("by", ["id", "rule", "time", "token"])
def test_what_was_shared_is_taken_back_and_never_leaves_again(node: Node, by: str) -> None:
    [id] = node.find(match(1, "critical"))
    node.send()
    span = Range(NOON - timedelta(seconds=1), NOON + timedelta(seconds=1))
    asked = {"id": {"share_id": id}, "rule": {"rule": "all"}, "time": {"sent": span}}
    asked["token"] = {"token": "critical"}

    gone = node.db.outgoing.withdraw("me", "error", NOON, note="a slip", **asked[by])  # type: ignore[arg-type]
    node.clock.pass_(200)
    node.find(match(1))
    sent = node.send()

    assert gone == [id]
    assert [(one.type, one.share_id) for one in sent] == [("withdraw", id)]
    assert sent[0].payload == {"reason": "error", "note": "a slip"}
    assert node.hub.documents == {}
    assert "withdrawn (error)" in node.db.audited()[0].action


def test_withdrawals_go_before_everything_else(node: Node) -> None:
    [id] = node.find(match(1))
    node.send()
    node.find(match(2, "fatal"))
    node.outbox.offer()
    node.db.outgoing.withdraw("me", "legal", node.clock(), share_id=id)

    assert [one.type for one in node.send()] == ["withdraw", "share"]


def test_what_waits_to_be_shared_is_taken_back_before_it_left(node: Node) -> None:
    [id] = node.find(match(1))
    node.outbox.offer()

    assert node.db.outgoing.withdraw("me", "error", NOON, share_id=id) == [id]
    assert node.send() == []


def test_nothing_is_taken_back_without_saying_what(node: Node) -> None:
    node.find(match(1))
    node.send()

    assert node.db.outgoing.withdraw("me", "error", NOON) == []
    assert node.db.outgoing.withdraw("me", "error", NOON, token="no such token") == []


def test_what_was_shared_so_long_ago_that_no_hub_holds_it_is_forgotten(node: Node) -> None:
    node.find(match(1), match(2))
    node.send()
    old, kept = (one["finding.id"] for one in node.db.search("", Range()).rows)
    node.db.change([old], Change(status="resolved"), "me", NOON)

    node.db.retain(NOON + timedelta(days=401))

    assert node.db.outgoing.shared(share_id(old)) is None
    assert node.db.outgoing.shared(share_id(kept)) is not None


# ---- The same bytes again


def test_until_there_is_a_receipt_the_very_bytes_go_again(node: Node) -> None:
    node.find(match(1), match(2))
    node.outbox.offer()
    first = node.outbox.next()
    node.find(match(1, "critical"))
    node.clock.pass_(500)

    again = node.again().next()

    assert again == first


def test_what_the_hub_took_before_a_crash_is_not_taken_twice(node: Node) -> None:
    node.find(match(1))
    node.outbox.offer()
    first = node.outbox.next()
    assert first is not None
    node.hub.take(first)
    node.again()
    node.send()

    assert [one.seq for one in node.hub.taken] == [1, 2, 3]
    assert len({one.share_id for one in node.hub.taken if one.type == "share"}) == 1


def receipts(node: Node, signed: Signed) -> dict[str, Signed]:
    good = node.hub.take(signed)
    said = node.hub.taken[-1]
    other = FakeHub(node.key)
    make = node.hub.receipt
    return {
        "of another hub": other.receipt(said, signed.hash),
        "of another operator": make(said, signed.hash, operator="op-port"),
        "of other bytes": make(said, "f" * 64),
        "of another share": make(said, signed.hash, share_id="else"),
        "of another payload": make(said, signed.hash, payload_sha256="e" * 64),
        "of what was not sent": make(said, signed.hash, seq=99),
        "no receipt": node.hub.says("proposal", {}),
        "no members": node.hub.says("receipt", {"seq": 1}),
        "changed": Signed(good.data + b" ", good.signature),
    }


def test_a_receipt_that_does_not_fit_is_refused(node: Node) -> None:
    node.find(match(1))
    node.outbox.offer()
    signed = node.outbox.next()
    assert signed is not None

    for receipt in receipts(node, signed).values():
        with pytest.raises(Unsafe):
            node.outbox.receipted(receipt, node.hub.public)

    assert node.outbox.next() == signed


# ---- Heartbeats


def test_a_heartbeat_goes_every_minute_with_the_head_of_the_ledger(node: Node) -> None:
    node.find(match(1))
    for _ in range(3):
        node.send()
        node.clock.pass_(61)
    beats = [one for one in node.hub.taken if one.type == "heartbeat"]
    lines = {line.seq: line.chain for line in node.db.outgoing.lines()}

    assert len(beats) == 3
    assert beats[2].payload["ledger"] == beats[2].seq - 1
    assert beats[2].payload["ledger_head"] == lines[beats[2].seq - 1]


def test_a_heartbeat_tells_what_waits(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.find(match(1), match(2))
    node.outbox.offer()
    node.clock.pass_(30)
    node.send()

    assert node.hub.taken[0].payload["waiting"] == 2
    assert node.hub.taken[0].payload["lag_s"] == 30
