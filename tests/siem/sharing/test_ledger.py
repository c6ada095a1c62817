"""The ledger: whoever changes it is found out, and the record is named."""

from __future__ import annotations

import base64
import sqlite3
from pathlib import Path

import msgspec
import pytest

from siem.sharing.envelope import Envelope, Signed, payload_hash, sign
from siem.sharing.ledger import Proof, exported, keys_of, prove
from siem.store import outgoing
from tests.siem.sharing.standin import OPERATOR, FakeHub, Node, match


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """A node that sent a heartbeat and four shares; the fourth share is still on its way."""
    made = Node(tmp_path)
    made.find(*(match(number) for number in range(4)))
    made.send(most=4)
    made.outbox.next()
    return made


def proof(node: Node) -> Proof:
    own, hubs = keys_of(node.key.public_key()), keys_of(node.hub.public)
    return prove(node.db.outgoing, OPERATOR, own, hubs)


def tamper(node: Node, *statements: str, values: tuple[object, ...] = ()) -> None:
    """As somebody who can write the file; triggers do not stop them."""
    raw = sqlite3.connect(node.db.path)
    for name in ("ledger_unchanged", "ledger_receipted", "ledger_kept"):
        raw.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        raw.execute(statement, values)
    raw.commit()
    raw.close()


def test_a_ledger_that_nobody_touched_is_whole(node: Node) -> None:
    found = proof(node)

    assert (found.fault, found.lines, found.receipted) == ("", 5, 4)
    assert found.head == node.db.outgoing.head().chain


def test_an_empty_ledger_is_whole(tmp_path: Path) -> None:
    assert proof(Node(tmp_path)) == Proof()


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE ledger SET data = data || ' ' WHERE seq = 3", "record 3: its bytes were changed"),
        ("UPDATE ledger SET rule = 'else' WHERE seq = 2", "record 2 was changed"),
        ("UPDATE ledger SET approvers = '[\"x\"]' WHERE seq = 2", "record 2 was changed"),
        ("UPDATE ledger SET fields = '[]' WHERE seq = 4", "record 4 was changed"),
        ("UPDATE ledger SET sent = sent + 1 WHERE seq = 4", "record 4 was changed"),
        ("UPDATE ledger SET signature = zeroblob(64) WHERE seq = 2", "record 2 was changed"),
        ("UPDATE ledger SET chain = 'x' WHERE seq = 1", "record 1 was changed"),
        ("UPDATE ledger SET approvers = 7, sent = 'x' WHERE seq = 4", "record 4 was changed"),
        ("DELETE FROM ledger WHERE seq = 1", "record 1 is missing"),
        ("DELETE FROM ledger WHERE seq = 3", "record 3 is missing"),
        ("DELETE FROM ledger WHERE seq = 5", "record 5 is missing: there were 5"),
        ("DELETE FROM ledger", "record 1 is missing: there were 5"),
        ("UPDATE ledger SET seq = 9 WHERE seq = 5", "record 5 is missing"),
        (
            "UPDATE ledger SET receipt = NULL, state = 'sent' WHERE seq = 2",
            "record 2 lost its receipt",
        ),
        (
            "UPDATE ledger SET receipt = NULL WHERE seq = 2",
            "record 2 lost its receipt, or has one that it should not have",
        ),
        (
            "UPDATE ledger SET receipt_signature = zeroblob(64) WHERE seq = 2",
            "record 2: its receipt does not fit, the signature does not hold",
        ),
        (
            "UPDATE ledger SET receipt = (SELECT receipt FROM ledger WHERE seq = 3),"
            " receipt_signature = (SELECT receipt_signature FROM ledger WHERE seq = 3)"
            " WHERE seq = 2",
            "record 2: its receipt does not fit, a receipt of something else",
        ),
        ("UPDATE ledger SET receipt = 'x' WHERE seq = 2", "record 2: its receipt is none"),
        (
            "UPDATE settings SET value = '{}' WHERE name = 'ledger_head'",
            "the last record is 5, its seal names 0",
        ),
        (
            "UPDATE settings SET value = replace(value, '\"seq\":5', '\"seq\":4')"
            " WHERE name = 'ledger_head'",
            "the seal of the last record was changed",
        ),
        (
            "INSERT INTO settings VALUES ('ledger_anchor', '{\"seq\":1}')",
            "the seal of its begin was changed",
        ),
    ],
)
def test_the_first_record_that_was_tampered_with_is_named(
    node: Node, statement: str, fault: str
) -> None:
    tamper(node, statement)

    assert proof(node).fault == fault


def test_two_records_in_the_wrong_order_are_found(node: Node) -> None:
    columns = "type, share_id, finding, data, signature, hash, chain, receipt, receipt_signature"
    tamper(
        node,
        f"UPDATE ledger AS l SET ({columns}) ="
        f" (SELECT {columns} FROM ledger AS o WHERE o.seq = 5 - l.seq) WHERE seq IN (2, 3)",
    )

    assert proof(node).fault == "record 2 was changed"


def test_who_has_the_operators_keys_cannot_make_the_hub_have_taken_something_else(
    node: Node,
) -> None:
    """The last record before the one on its way is made anew, with signature, chain and seal."""
    store = node.db.outgoing
    lines = list(store.lines())
    said = msgspec.json.decode(lines[0].data, type=Envelope)
    payload = {**said.payload, "waiting": 0, "dropped": 7}
    forged = sign(
        msgspec.structs.replace(said, payload=payload, payload_sha256=payload_hash(payload)),
        node.key,
    )
    line = msgspec.structs.replace(
        lines[0], data=forged.data, signature=forged.signature, hash=forged.hash
    )
    chain = store.chained(line, outgoing.BEGIN)
    tamper(
        node,
        "UPDATE ledger SET data = ?, signature = ?, hash = ?, chain = ? WHERE seq = 1",
        values=(forged.data, forged.signature, forged.hash, chain),
    )

    assert proof(node).fault == "record 1: its receipt does not fit, a receipt of something else"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET data = 'x' WHERE seq = 1",
        "UPDATE ledger SET state = 'sent' WHERE seq = 1",
        "UPDATE ledger SET receipt = 'x' WHERE seq = 1",
        "DELETE FROM ledger WHERE seq = 5",
    ],
)
def test_the_database_itself_refuses_to_change_a_line(node: Node, statement: str) -> None:
    raw = sqlite3.connect(node.db.path)

    with pytest.raises(sqlite3.IntegrityError):
        raw.execute(statement)


def test_a_receipt_of_another_hub_is_none(node: Node) -> None:
    own, other = keys_of(node.key.public_key()), keys_of(FakeHub(node.key).public)

    found = prove(node.db.outgoing, OPERATOR, own, other)

    assert found.fault == "record 1: its receipt was signed by a key that is not the hub's"


def test_retention_takes_the_oldest_and_the_rest_still_proves_itself(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "LEDGER_MAX", 2)

    node.db.retain(node.clock())

    assert [line.seq for line in node.db.outgoing.lines()] == [4, 5]
    assert proof(node).fault == ""


def test_a_ledger_that_goes_on_behind_a_lost_one_is_whole(tmp_path: Path) -> None:
    node = Node(tmp_path)
    with node.db.outgoing.desk() as desk:
        desk.go_on(41, "a" * 64)
    node.hub.seq, node.hub.hash = 41, "a" * 64
    node.find(match(1))
    node.send()

    assert [line.seq for line in node.db.outgoing.lines()] == [42, 43]
    assert proof(node).fault == ""


def test_search_finds_what_left_and_who_said_yes(node: Node) -> None:
    store = node.db.outgoing
    share = store.ledger()[0].share_id

    assert [line.seq for line in store.ledger(share)] == [5]
    assert [line.type for line in store.ledger("heartbeat")] == ["heartbeat"]
    assert store.ledger("no such word") == []


def test_the_export_holds_all_that_proves_a_line(node: Node) -> None:
    first = next(iter(exported(node.db.outgoing)))
    signed = Signed(first["receipt"].encode(), base64.b64decode(first["receipt_signature"]))

    node.hub.public.verify(signed.signature, signed.data)
