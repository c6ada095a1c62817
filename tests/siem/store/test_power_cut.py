"""The power goes: whatever the disk kept of what was not synced, nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from siem.sharing.ledger import keys_of, prove
from siem.store.embedded import NodeDb
from siem.store.events import EventStore
from tests.siem.sharing.standin import KEY, NOON, OPERATOR, key_from
from tests.siem.store.crash import Disk, Op, traced

ROOT = Path(__file__).parents[3]
WRITER = Path(__file__).with_name("crash_writer.py")
STEPS = 40
NODE = keys_of(key_from("node").public_key())
HUB = keys_of(key_from("hub").public_key())


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """Images are in memory: nothing of them has to outlive this test."""
    memory = Path("/dev/shm")
    # Of a run that was killed a folder is left, and its number comes again.
    folder = Path(tempfile.mkdtemp(prefix="cityward-", dir=memory if memory.is_dir() else tmp_path))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the right writer wrote."""
    return tmp_path_factory.mktemp("right") / "state"


@pytest.fixture(scope="module")
def done(state: Path) -> list[Op]:
    """What it did, in order."""
    return ops(state, "FULL")


def ops(state: Path, synchronous: str) -> list[Op]:
    """What a writer does."""
    state.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = (sys.executable, str(WRITER), str(state), str(STEPS), synchronous)
    return traced(words, state, environment)


def images(
    done: list[Op], state: Path, target: Path, count: int
) -> Iterator[tuple[Path, list[bytes]]]:
    """States after a power cut at random moments, and what had been said until then."""
    dice = random.Random(7)
    begin = next(n for n, op in enumerate(done) if op.data.startswith(b"begin"))
    moments = sorted(dice.randint(begin, len(done)) for _ in range(count))
    disk, at = Disk(state), 0
    for number, moment in enumerate(moments):
        for op in done[at:moment]:
            disk.do(op)
        at = moment
        image = target / str(number)
        disk.image(image, dice)
        yield image, list(disk.said)
        shutil.rmtree(image)


def faults(image: Path, said: list[bytes]) -> list[str]:
    """What is lost or corrupt."""
    try:
        return [*_of_db(image, said), *_of_events(image, said)]
    except Exception as error:  # any way in which it does not open is one
        return [repr(error)]


def _of_db(image: Path, said: list[bytes]) -> Iterator[str]:
    db = NodeDb(image / "node.db", KEY)
    try:
        [sound] = db._db.execute("PRAGMA integrity_check").fetchone()
        if sound != "ok":
            yield str(sound)
        kept = {finding for _, finding in db.changes_after(0, 1_000_000)}
        ledger = {line.seq: line for line in db.outgoing.lines()}
        for kind, *words in (line.decode().split() for line in said):
            if kind == "finding" and (words[0] not in kept or db.get(words[0]) is None):
                yield f"finding {words[0]} is lost"
            line = ledger.get(int(words[0])) if kind in ("sent", "receipted") else None
            if kind == "sent" and (line is None or line.hash != words[1]):
                yield f"envelope {words[0]} is lost, its number would come again"
            if kind == "receipted" and (line is None or line.state != "receipted"):
                yield f"the receipt of {words[0]} is lost"
        if fault := prove(db.outgoing, OPERATOR, NODE, HUB).fault:
            yield fault
    finally:
        db.close()


def _of_events(image: Path, said: list[bytes]) -> Iterator[str]:
    events = EventStore(image / "events", lambda: NOON)
    try:
        there = [number for number, _ in events.replay(0)]
    finally:
        events.close()
    wanted = [int(line.split()[1]) for line in said if line.startswith(b"batch")]
    if there != list(range(1, len(there) + 1)) or len(there) < len(wanted):
        yield f"batches {there[-3:]} are there, {wanted[-1:]} was acknowledged"


@pytest.mark.parametrize(
    "count",
    [pytest.param(200, marks=pytest.mark.slow), pytest.param(1_000, marks=pytest.mark.full)],
)
def test_nothing_acknowledged_is_lost_and_nothing_is_corrupt(
    state: Path, done: list[Op], fast: Path, count: int
) -> None:
    found = [
        (image.name, fault)
        for image, said in images(done, state, fast, count)
        for fault in faults(image, said)
    ]

    assert found == []


@pytest.mark.slow
def test_a_database_that_does_not_sync_is_found_out(tmp_path: Path, fast: Path) -> None:
    state = tmp_path / "state"
    done = ops(state, "OFF")

    broken = sum(bool(faults(*image)) for image in images(done, state, fast, 40))

    assert broken > 10


def test_what_was_synced_is_in_every_image(tmp_path: Path) -> None:
    disk, dice = Disk(tmp_path), random.Random(1)
    path = str(tmp_path / "a")
    for op in (Op("make", path), Op("write", path, 0, b"kept"), Op("sync", path)):
        disk.do(op)
    disk.do(Op("write", path, 4, b"x" * 1024))

    seen = set()
    for number in range(50):
        disk.image(tmp_path / str(number), dice)
        seen.add((tmp_path / str(number) / "a").read_bytes())

    assert all(one.startswith(b"kept") for one in seen)
    assert {len(one) for one in seen} >= {4, 4 + 1024}


@pytest.mark.slow
def test_the_disk_is_at_its_end_what_the_process_left(state: Path, done: list[Op]) -> None:
    disk = Disk(state)
    for op in done:
        disk.do(op)

    for path, file in disk._names.items():
        file.sync()
        assert path.endswith("-shm") or Path(path).read_bytes() == bytes(file.kept), path
    with sqlite3.connect(state / "node.db") as db:
        assert db.execute("SELECT count(*) FROM findings").fetchone() == (STEPS,)
