"""A state that an older version wrote: it is opened, brought up to date, and says the same."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import ConfigError
from siem import assembly
from siem.store import embedded, events
from siem.store.protocol import Range
from siem.store.rulebook import Note
from tests.siem.states import make

STATES = Path(make.__file__).parent


@pytest.fixture(params=[1, 2])
def format_(request: pytest.FixtureRequest) -> int:
    """An older format of the state."""
    return int(request.param)


@pytest.fixture
def old(tmp_path: Path, format_: int) -> Path:
    """The state of a node of that format that died before it had detected everything."""
    with tarfile.open(STATES / f"format_{format_}.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "state"


def _format(state: Path) -> int:
    with sqlite3.connect(state / "node.db") as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def _as_far_as(new: list[dict[str, Any]], old: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Documents with the fields only that the old version knew."""
    return [{name: a.get(name) for name in b} for a, b in zip(new, old, strict=True)]


def test_an_old_state_is_opened_migrated_and_says_the_same(old: Path, format_: int) -> None:
    expected = msgspec.json.decode((STATES / f"format_{format_}.json").read_bytes())
    before = _format(old)

    said: dict[str, Any] = make.said(old, STATES)

    assert (before, _format(old)) == (format_, embedded.FORMAT)
    assert len(said["events"]) == 36
    assert said["events"] == expected["events"]
    assert _as_far_as(said["findings"], expected["findings"]) == expected["findings"]
    assert said["audit"] == expected["audit"]
    assert said["people"] == expected["people"]


@pytest.mark.parametrize("has_them", [False, True])
def test_a_state_of_format_3_gets_the_tables_of_samples_and_keeps_what_is_in_them(
    has_them: bool, tmp_path: Path
) -> None:
    file = tmp_path / "node.db"
    embedded.NodeDb(file, b"k" * 32).close()
    with sqlite3.connect(file) as db:
        if has_them:
            db.execute("INSERT INTO foreign_samples VALUES ('a', 'r', 'o', 1, 2, 3, 0, '', '', 4)")
        else:
            db.execute("DROP TABLE releases")
            db.execute("DROP TABLE foreign_samples")
        db.execute("PRAGMA user_version = 3")

    again = embedded.NodeDb(file, b"k" * 32)

    assert again.samples.releases() == []
    assert [one.id for one in again.samples.foreign()] == (["a"] if has_them else [])
    again.close()
    assert _format(tmp_path) == embedded.FORMAT


def test_a_state_of_format_4_is_told_whose_samples_are_all_set_aside(tmp_path: Path) -> None:
    file = tmp_path / "node.db"
    embedded.NodeDb(file, b"k" * 32).close()
    with sqlite3.connect(file) as db:
        db.execute("INSERT INTO foreign_samples VALUES ('a', 'r', 'o', 1, 2, 3, 0, '', '', 4)")
        db.execute("DROP TABLE operators_aside")
        db.execute("PRAGMA user_version = 4")

    again = embedded.NodeDb(file, b"k" * 32)

    assert again.samples.set_operator_aside("o", "p", "why", datetime(2026, 1, 5, tzinfo=UTC)) == 1
    assert [one.is_operator_aside for one in again.samples.foreign()] == [True]
    again.close()
    assert _format(tmp_path) == embedded.FORMAT


def test_a_state_of_format_5_takes_notes_on_rules(tmp_path: Path) -> None:
    file = tmp_path / "node.db"
    embedded.NodeDb(file, b"k" * 32).close()
    with sqlite3.connect(file) as db:
        db.execute("DROP TABLE rule_notes")
        db.execute("PRAGMA user_version = 5")

    again = embedded.NodeDb(file, b"k" * 32)
    again.rulebook.add_note("r", Note("why so", "p", datetime(2026, 1, 5, tzinfo=UTC)))

    assert [one.text for one in again.rulebook.notes("r")] == ["why so"]
    again.close()
    assert _format(tmp_path) == embedded.FORMAT


def test_what_a_format_has_is_never_changed_once_it_is_out() -> None:
    """Who has that format would not get it: what is new is another format."""
    steps = [hashlib.sha256(step.encode()).hexdigest()[:16] for step in embedded._STEPS]

    assert steps == [
        "f8b2ef009dd3fc37",
        "c126b799aae396e9",
        "36562906a025387d",
        "b866c2409654709f",
        "e0852daced5f808c",
        "155a0e72ffb0abd7",
    ]
    assert len(steps) == embedded.FORMAT


def test_the_findings_of_an_old_state_are_in_the_change_feed(old: Path) -> None:
    node = assembly.node_of(make.settings_of(old, STATES), sources=[])
    kept = {one["finding.id"] for one in node.db.search("", Range()).rows}

    changes = node.db.changes_after(0, 1_000)
    proof = node.db.audit_proof()
    node.close()

    assert {finding for _, finding in changes} == kept
    assert [number for number, _ in changes] == list(range(1, len(kept) + 1))
    assert not proof.fault


def test_an_old_state_is_the_same_at_its_second_start(old: Path) -> None:
    first = make.said(old, STATES)

    assert make.said(old, STATES) == first


@pytest.mark.parametrize("store", ["events", "node.db"])
def test_a_state_of_a_newer_version_is_refused_in_words_and_left_alone(
    old: Path, store: str, tmp_path: Path
) -> None:
    if store == "events":
        (old / "events" / "format").write_text(f"{events.FORMAT + 1}\n")
    else:
        with sqlite3.connect(old / "node.db") as db:
            db.execute(f"PRAGMA user_version = {embedded.FORMAT + 1}")
    shutil.copytree(old, tmp_path / "copy")

    with pytest.raises(ConfigError, match="is newer than") as caught:
        assembly.node_of(make.settings_of(old, STATES), sources=[])

    assert caught.value.todo == "Run the cityward that wrote it, or a newer one."
    for path in (tmp_path / "copy").rglob("*.parquet"):
        assert (old / path.relative_to(tmp_path / "copy")).read_bytes() == path.read_bytes()
