"""The file drop: the same envelopes as files, and the other side that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from siem.sharing import drop
from siem.sharing.drop import ANSWERS, Drop, answer, read_drop, refuse
from siem.sharing.identity import Hub, Identity, public_text
from siem.sharing.ledger import keys_of, prove
from tests.siem.sharing.standin import OPERATOR, Node, match


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "drop"


@pytest.fixture
def carrier(node: Node, folder: Path, tmp_path: Path) -> Drop:
    return Drop(node.outbox, folder, Identity(tmp_path), node.clock)


def leave(carrier: Drop) -> None:
    while carrier.turn():
        pass


def take(node: Node, folder: Path) -> int:
    """As the hub's end does."""
    count = 0
    for one in read_drop(folder):
        answer(one, node.hub.take(one.signed))
        count += 1
    return count


def join(node: Node, tmp_path: Path) -> None:
    hub = Hub(url="", operator=OPERATOR, authority="", signing_keys=(public_text(node.hub.public),))
    Identity(tmp_path).keep_hub(hub)


def test_envelopes_lie_in_their_order_and_the_ledger_says_that_nobody_answered(
    node: Node, carrier: Drop, folder: Path
) -> None:
    node.find(*(match(number) for number in range(3)))

    leave(carrier)

    found = list(read_drop(folder))
    assert [one.path.name for one in found] == [
        f"{OPERATOR}.{number:015d}.cwe" for number in (1, 2, 3, 4)
    ]
    assert {one.operator for one in found} == {OPERATOR}
    assert {line.state for line in node.db.outgoing.lines()} == {"not receipted"}
    assert prove(node.db.outgoing, OPERATOR, keys_of(node.key.public_key()), {}).fault == ""


def test_the_hub_takes_them_and_what_was_taken_is_gone(
    node: Node, carrier: Drop, folder: Path
) -> None:
    ids = node.find(*(match(number) for number in range(3)))
    leave(carrier)

    assert take(node, folder) == 4
    assert sorted(node.hub.documents) == sorted(ids)
    assert take(node, folder) == 0


def test_receipts_that_somebody_carries_back_are_kept(
    node: Node, carrier: Drop, folder: Path, tmp_path: Path
) -> None:
    node.find(match(1))
    leave(carrier)
    take(node, folder)
    join(node, tmp_path)
    (folder / ANSWERS / "x.cwr").write_bytes(b"none\n{}\n")

    leave(carrier)

    lines = list(node.db.outgoing.lines())
    own, hubs = keys_of(node.key.public_key()), keys_of(node.hub.public)
    assert {line.state for line in lines} == {"receipted"}
    assert prove(node.db.outgoing, OPERATOR, own, hubs).fault == ""
    assert [one.name for one in (folder / ANSWERS).iterdir()] == ["x.cwr.refused"]


def test_an_envelope_that_lies_there_twice_changes_nothing(
    node: Node, carrier: Drop, folder: Path
) -> None:
    node.find(match(1))
    leave(carrier)
    kept = {path: path.read_bytes() for path in folder.glob("*.cwe")}
    take(node, folder)
    for path, data in kept.items():
        path.write_bytes(data)

    take(node, folder)

    assert [one.seq for one in node.hub.taken] == [1, 2]


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"AAAA\n{}", b"!\n{}", b"AAAA\n" + b"[" * 5_000, b"AAAA\n" + b" " * 300_000],
)
def test_what_is_no_envelope_is_set_aside(folder: Path, data: bytes) -> None:
    folder.mkdir()
    (folder / "a.cwe").write_bytes(data)

    assert list(read_drop(folder)) == []
    assert [one.name for one in folder.iterdir()] == ["a.cwe.refused"]


def test_what_the_hub_refuses_is_set_aside(node: Node, carrier: Drop, folder: Path) -> None:
    leave(carrier)
    [one] = read_drop(folder)

    refuse(one, "a gap")

    assert list(read_drop(folder)) == []
    assert [path.suffix for path in folder.iterdir()] == [".refused"]


def test_with_a_drop_that_nobody_empties_the_rest_waits(
    node: Node, carrier: Drop, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drop, "FILES_MAX", 2)
    node.find(*(match(number) for number in range(5)))

    leave(carrier)
    held = node.db.outgoing.tally().waiting
    take(node, folder)
    leave(carrier)
    state = node.db.outgoing.link()

    assert held == 4
    assert (state.state, "envelopes lie in" in state.error) == ("drop", True)
    assert node.db.outgoing.tally().waiting == 2


def test_a_folder_that_cannot_be_written_is_said_and_nothing_is_lost(
    node: Node, carrier: Drop, folder: Path
) -> None:
    folder.write_text("a file where the folder should be")
    node.find(match(1))

    assert not carrier.turn()
    state = node.db.outgoing.link()
    folder.unlink()
    leave(carrier)

    assert state.error
    assert len(list(read_drop(folder))) == 2
