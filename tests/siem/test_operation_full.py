"""A full disk: what goes, what waits, what is said, and that nothing acknowledged is lost."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cityward import CitywardError
from collectors.readers import tail
from siem import assembly, authority, logs
from siem import node as node_module
from siem.config import Log, Settings, load
from siem.node import Node
from siem.node import run as run_node
from siem.store import backup, compact, faults
from siem.store.events import EventStore
from siem.store.protocol import Range
from siem.store.room import is_full
from tests.programs import wait_until
from tests.siem.test_node import _end, _found, _kept, _line, _node_folder, _until

pytestmark = pytest.mark.slow

DAYS = 6
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
PATH = (
    "before-commit",
    "before-sync",
    "rotate",
    "rotate-before-rename",
    "rotate-after-rename",
    "keep-before-commit",
)
"""Where the path of a node writes: it waits there, and goes on by itself."""
TIDYING = (
    "compact",
    "compact-before-rename",
    "compact-after-rename",
    "compact-during-delete",
    "merge",
    "merge-during-delete",
)
COPIES = (
    "backup-db",
    "backup-between",
    "backup-write",
    "backup-manifest",
    "backup-before-rename",
    "restore-write",
)
COMMANDS = ("secret", "write-secret")


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """Every test begins with an empty disk."""
    faults.FULL.clear()
    yield
    faults.FULL.clear()


def _lines(folder: Path, count: int) -> Settings:
    config = _node_folder(folder)
    (folder / "auth.log").write_bytes(b"".join(_line(number) for number in range(count)))
    return load(config)


def _node(settings: Settings) -> Node:
    """A node whose segments are small, so that every write of its path happens."""
    made = assembly.node_of(settings)
    made.events._max_bytes = 1
    return made


def _run(made: Node, wanted: int) -> None:
    """Run a node in this process until it has concluded on so many events."""
    conclude = made.conclude

    def concluded(findings):  # type: ignore[no-untyped-def]
        conclude(findings)
        if sum(one.state.events for one in made.sources) >= wanted:
            made.stop.set()

    made.conclude = concluded  # type: ignore[method-assign]
    run_node(made)
    made.close()


@pytest.mark.parametrize("site", PATH)
def test_a_path_that_finds_the_disk_full_waits_says_it_and_loses_nothing(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = _lines(tmp_path, 400)
    made = _node(settings)
    monkeypatch.setattr(tail, "MAX_RECORDS", 50)
    monkeypatch.setattr(node_module, "ROOM_S", 0.01)

    faults.FULL[site] = 3
    with caplog.at_level(logging.WARNING):
        _run(made, 400)

    assert faults.FULL[site] == 0
    said = [one.message for one in caplog.records]
    assert any(one.startswith("The disk is full") for one in said)
    assert "There is room on the disk again." in said
    config = tmp_path / "cityward.toml"
    assert Counter(_kept(config).values()) == {1: 400}
    assert _found(config) == (1, 400)


@pytest.mark.parametrize("site", TIDYING)
def test_tidying_that_finds_the_disk_full_loses_nothing_and_is_done_later(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _filled(tmp_path, days=2, per_day=3, pieces=site.startswith("merge"))
    monkeypatch.setattr(compact, "MERGE_AT", 2)
    faults.FULL[site] = 1

    with pytest.raises(OSError, match="No space"):
        compact.compact(tmp_path, store.last_batch)
    during = store.search("", Range()).total
    for _ in range(2):
        compact.compact(tmp_path, store.last_batch)

    assert (during, store.search("", Range()).total) == (6, 6)
    assert not list(tmp_path.rglob("*.tmp"))
    store.close()


def _document(number: int, at: datetime) -> dict[str, object]:
    return {
        "@timestamp": at,
        "cw.operator": "op",
        "cw.record.source": "s",
        "cw.record.place": str(number),
        "cw.record.number": 0,
        "event.ingested": at,
    }


def _filled(
    folder: Path, days: int = DAYS, per_day: int = 1, *, pieces: bool = False
) -> EventStore:
    """A store that has closed segments, some a day, up to noon of the last day."""
    now = [NOON]
    store = EventStore(folder, lambda: now[0])
    for number in range(days * per_day):
        now[0] = NOON - timedelta(days=days - 1 - number // per_day, minutes=-(number % per_day))
        store._rotate()
        store.append([_document(number, now[0])], {"s": number})
        if pieces:
            compact.compact(folder, store.last_batch - 1)
    now[0] += timedelta(minutes=2)
    store._rotate()
    return store


def test_the_oldest_day_of_events_goes_first_and_those_of_two_days_never(tmp_path: Path) -> None:
    store = _filled(tmp_path)
    compact.compact(tmp_path, store.last_batch)
    held = [path.name for path in sorted((tmp_path / "parquet").iterdir())]

    gone = [store.make_room(NOON, wanted_bytes=1) for _ in range(DAYS)]

    left = [path.parent.name for path in sorted((tmp_path / "parquet").rglob("*.parquet"))]
    assert len(held) == DAYS
    assert left == held[-2:]
    assert [bool(one) for one in gone] == [True] * (DAYS - 2) + [False] * 2
    store.close()


def test_events_go_before_findings_and_no_finding_no_audit_line_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _lines(tmp_path, 50)
    _filled(settings.state_path / "events").close()
    compact.compact(settings.state_path / "events", 2**60)
    made = _node(settings)
    made.clock = lambda: NOON
    made.db.audit("i.vasko", "signed in", "", NOON)
    old = sorted((settings.state_path / "events" / "parquet").rglob("*.parquet"))

    faults.FULL["keep-before-commit"] = 1
    monkeypatch.setattr(node_module, "ROOM_S", 60.0)  # it need not wait: there is what may go
    _run(made, 50)

    left = sorted((settings.state_path / "events" / "parquet").rglob("*.parquet"))
    assert len(old) == DAYS
    assert set(left) < set(old)
    assert old[-2:] == left[-2:]
    assert _found(tmp_path / "cityward.toml") == (1, 50)
    db = assembly.db_of(settings, assembly.from_settings(settings), assembly.now_utc)
    assert [one.action for one in db.audited()] == ["signed in"]
    db.close()


def test_a_node_that_is_told_to_stop_does_not_wait_for_room(tmp_path: Path) -> None:
    settings = _lines(tmp_path, 50)
    made = _node(settings)
    faults.FULL["before-commit"] = 1_000_000

    made.stop.wait = lambda timeout=None: True  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="No space") as caught:
        run_node(made)
    made.close()

    assert is_full(caught.value)
    faults.FULL.clear()
    _run(_node(settings), 50)
    assert _found(tmp_path / "cityward.toml") == (1, 50)


@pytest.mark.parametrize("site", COPIES)
def test_a_copy_that_finds_the_disk_full_leaves_nothing_and_is_whole_the_next_time(
    site: str, tmp_path: Path
) -> None:
    (tmp_path / "node").mkdir()
    settings = _lines(tmp_path / "node", 20)
    _run(_node(settings), 20)

    def copy() -> None:
        file = tmp_path / "b.tar"
        backup.backup(settings.state_path, None, file, operator="op", now=NOON, secrets=True)
        backup.restore(file, tmp_path / "new")

    faults.FULL[site] = 1
    with pytest.raises(CitywardError, match=r"cannot be (written|restored)") as caught:
        copy()
    assert caught.value.exit_code == 5
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "b.tar.part").exists()
    (tmp_path / "b.tar").unlink(missing_ok=True)
    copy()

    assert (tmp_path / "new" / "state" / "node.db").exists()


@pytest.mark.parametrize("site", COMMANDS)
def test_a_secret_that_finds_the_disk_full_is_not_half_there(site: str, tmp_path: Path) -> None:
    def write() -> None:
        assembly.secret_of(tmp_path, "operator.key")
        authority.write_secret(tmp_path / "ca.key", b"key")

    faults.FULL[site] = 1
    with pytest.raises(OSError, match="No space"):
        write()
    half = {one.name: one.stat().st_size for one in tmp_path.iterdir()}
    write()

    assert half in ({}, {"operator.key": 32})
    assert (tmp_path / "ca.key").read_bytes() == b"key"


def test_the_console_says_that_a_judgement_cannot_be_kept(tmp_path: Path) -> None:
    settings = _lines(tmp_path, 5)
    db = assembly.db_of(settings, assembly.from_settings(settings), assembly.now_utc)
    size = db._db.execute("PRAGMA page_count").fetchone()[0]
    db._db.execute(f"PRAGMA max_page_count = {size}")

    def judge() -> None:
        for number in range(10_000):
            db.audit("i.vasko", "judged", f"finding {number} " + "x" * 1_000, NOON)

    with pytest.raises(CitywardError, match="disk is full") as caught:
        judge()
    kept = len(db.audited(limit=10_000))
    db._db.execute(f"PRAGMA max_page_count = {size + 1_000}")
    db.audit("i.vasko", "judged", "the next", NOON)

    assert is_full(caught.value)
    assert len(db.audited(limit=10_000)) == kept + 1
    db.close()


def test_a_log_file_on_a_full_disk_stops_nobody_and_logs_go_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logs.LogFile("/dev/full")
    logger = logging.getLogger("tests.full")
    logger.addHandler(handler)

    logger.error("not lost")

    logger.removeHandler(handler)
    handler.stream = None
    assert "not lost" in capsys.readouterr().err


def test_a_log_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        logs.log_to(Settings(log=Log(file=str(tmp_path / "cityward.log"))))
        root.error("first")
        (tmp_path / "cityward.log").rename(tmp_path / "cityward.log.1")
        root.error("second")
    finally:
        for one in root.handlers:
            if one not in before:
                one.close()
        root.handlers[:] = before

    assert "first" in (tmp_path / "cityward.log.1").read_text()
    assert "second" in (tmp_path / "cityward.log").read_text()


@pytest.mark.parametrize(
    "words", [["asset", "export"], ["config", "show"], ["search", "-o", "csv"]]
)
def test_a_result_that_does_not_fit_onto_the_disk_is_said(words: list[str], tmp_path: Path) -> None:
    settings = _lines(tmp_path, 5)
    _run(_node(settings), 5)
    config = tmp_path / "cityward.toml"

    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "siem.cli", *words, "--config", str(config)],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )

    assert (done.returncode, done.stderr.decode().splitlines()[-3:][0]) == (5, "The disk is full.")


@pytest.mark.root
def test_a_node_on_a_disk_that_is_really_full_waits_and_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root")
    config = _node_folder(tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(state)]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        lines = 6_000
        (tmp_path / "auth.log").write_bytes(b"".join(_line(number) for number in range(100)))
        run = [sys.executable, "-m", "siem.cli", "run", "--path-only", "--config", str(config)]
        log = tmp_path / "said"
        with log.open("wb") as file:
            node = subprocess.Popen(run, stderr=file)
        _until(config, 100, node)
        ballast = state / "ballast"
        free = os.statvfs(state)
        with ballast.open("wb") as file:
            file.write(bytes(free.f_bavail * free.f_frsize - 200_000))
        with (tmp_path / "auth.log").open("ab") as file:
            file.write(b"".join(_line(number) for number in range(100, lines)))
        wait_until(lambda: "The disk is full" in log.read_text(), "it never was full")
        time.sleep(4)
        waits = node.poll() is None
        ballast.unlink()
        _until(config, lines, node)
        _end(node)
        said = log.read_text()
        kept, found = _kept(config, 2 * lines), _found(config)
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)

    assert waits
    assert "There is room on the disk again." in said
    assert (len(kept), set(kept.values())) == (lines, {1})
    assert found == (1, lines)


def test_more_than_twenty_places_that_write_are_tried() -> None:
    assert len({*PATH, *TIDYING, *COPIES, *COMMANDS}) + len(("audit", "log", "export")) >= 20
