"""The inventory in `node.db`: kept with the checkpoint, changed by people, upgraded from before."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cityward.errors import InputError
from siem.store import embedded
from siem.store.embedded import NodeDb
from siem.store.protocol import Conduit, Learnt, ModeEntry, Observed

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[NodeDb]:
    made = NodeDb(tmp_path / "node.db", b"key", clock=lambda: NOON)
    yield made
    made.close()


def seen(id: str, **more: object) -> Observed:
    return Observed(id, NOON, NOON, [id], **more)  # type: ignore[arg-type]


def conduit(id: str = "a>b/modbus/502") -> Conduit:
    return Conduit(id, "a", "b", "modbus", 502, NOON, NOON)


def test_what_was_learnt_commits_with_the_checkpoint(db: NodeDb) -> None:
    learnt = Learnt([seen("192.0.2.5", zone="grid")], [conduit()], {"since": 7})

    db.keep([], checkpoint=3, learnt=learnt)

    (row,) = db.inventory.assets()
    assert (row.state, row.asset.zone, row.asset.addresses) == ("observed", "grid", ("192.0.2.5",))
    assert [one.id for one in db.inventory.conduits()] == ["a>b/modbus/502"]
    assert db.inventory.learning() == {"since": 7}
    assert db.checkpoint()[0] == 3
    assert db.inventory.version() == 0


def test_the_path_and_people_do_not_overwrite_each_other(db: NodeDb) -> None:
    db.keep([], checkpoint=1, learnt=Learnt([seen("192.0.2.5")]))
    db.inventory.say(["192.0.2.5"], "approved", "kim", "walked there", NOON, name="RTU Five")
    later = seen("192.0.2.5", speaks=["modbus server"])
    db.keep([], checkpoint=2, learnt=Learnt([later]))

    (row,) = db.inventory.assets()
    assert (row.state, row.asset.name, row.asset.last_confirmed) == (
        "approved",
        "RTU Five",
        "2026-01-05",
    )
    assert row.seen is not None
    assert row.seen.speaks == ["modbus server"]
    assert db.inventory.version() == 1


def test_every_change_says_who_when_and_why(db: NodeDb) -> None:
    db.inventory.say(["rtu-7"], "approved", "kim", "new in bay 7", NOON, type="rtu")
    db.inventory.say(["rtu-7"], "approved", "lee", "typo", NOON, criticality="5")
    db.inventory.say(["rtu-7"], "retired", "lee", "scrapped", NOON)
    unchanged = db.inventory.say(["rtu-7"], "retired", "lee", "", NOON)

    (row,) = db.inventory.assets()
    assert [(one["by"], one["what"], one["why"]) for one in row.history] == [
        ("kim", "approved (type)", "new in bay 7"),
        ("lee", "corrected (criticality)", "typo"),
        ("lee", "retired", "scrapped"),
    ]
    assert unchanged == 0
    assert [one.action for one in db.audited()] == [
        "asset: retired",
        "asset: corrected (criticality)",
        "asset: approved (type)",
    ]


@pytest.mark.parametrize(
    "said",
    [{"colour": "red"}, {"criticality": 9}, {"criticality": "much"}, {"never_touch": "perhaps"}],
)
def test_what_cannot_be_said_of_an_asset_is_refused_and_nothing_changes(
    db: NodeDb, said: dict[str, object]
) -> None:
    with pytest.raises(InputError):
        db.inventory.say(["rtu-7"], "approved", "kim", "", NOON, **said)

    assert db.inventory.assets() == []
    assert db.audited() == []


def test_two_become_one_and_the_other_id_is_remembered(db: NodeDb) -> None:
    db.keep([], checkpoint=1, learnt=Learnt([seen("192.0.2.5"), seen("02-00-00-00-00-05")]))

    db.inventory.merge("192.0.2.5", "02-00-00-00-00-05", "kim", "same box", NOON)

    (row,) = db.inventory.assets()
    assert row.asset.addresses == ("192.0.2.5", "02-00-00-00-00-05")
    assert row.aliases == ("02-00-00-00-00-05",)
    assert [one.merged_into for one in db.inventory.assets(merged=True)] == ["192.0.2.5", ""]
    with pytest.raises(InputError):
        db.inventory.merge("192.0.2.5", "02-00-00-00-00-05", "kim", "", NOON)
    with pytest.raises(InputError):
        db.inventory.merge("192.0.2.5", "192.0.2.5", "kim", "", NOON)


def test_the_calendar_and_conduits_are_kept_and_audited(db: NodeDb) -> None:
    db.keep([], checkpoint=1, learnt=Learnt(conduits=[conduit()]))
    entry = ModeEntry(NOON, NOON + timedelta(hours=2), "maintenance", zone="bay-7", by="kim")

    number = db.inventory.add_entry(entry, NOON)
    assert db.inventory.approve_conduits(["a>b/modbus/502", "no such"], "kim", "", NOON) == 1

    assert [(one.number, one.mode, one.zone) for one in db.inventory.entries()] == [
        (number, "maintenance", "bay-7")
    ]
    assert db.inventory.conduits()[0].state == "approved"
    assert db.inventory.remove_entry(number, "kim", NOON)
    assert not db.inventory.remove_entry(number, "kim", NOON)
    assert db.inventory.entries() == []
    assert db.inventory.version() == 3


def test_a_state_of_format_1_is_brought_up_and_keeps_what_it_holds(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "node.db")
    old.executescript(embedded._SCHEMA + "PRAGMA user_version = 1;")
    old.execute("INSERT INTO numbers VALUES ('checkpoint', 41)")
    old.commit()
    old.close()

    db = NodeDb(tmp_path / "node.db", b"key")
    db.keep([], checkpoint=42, learnt=Learnt([seen("192.0.2.5")]))
    db.close()

    again = NodeDb(tmp_path / "node.db", b"key")
    assert again.checkpoint()[0] == 42
    assert len(again.inventory.assets()) == 1
    again.close()


def test_texts_that_are_no_utf_8_are_kept_harmless(db: NodeDb) -> None:
    db.inventory.say(["x"], "approved", "k\udcffm", "why\ud800", NOON, name="n\udfff")

    (row,) = db.inventory.assets()
    assert row.asset.name == "n\\udfff"
