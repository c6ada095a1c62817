"""kill -9: what was acknowledged is there once, whatever moment the process died in."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import duckdb
import msgspec
import pytest

from siem.store import compact
from siem.store.events import EventStore
from siem.store.protocol import Range
from tests.programs import PATIENCE_S

ROOT = Path(__file__).parents[3]
WRITER = Path(__file__).with_name("writer.py")
POINTS = (
    "before-commit",
    "during-write",
    "before-sync",
    "after-commit",
    "rotate",
    "rotate-before-rename",
    "rotate-after-rename",
    "compact",
    "compact-before-rename",
    "compact-after-rename",
    "compact-during-delete",
    "merge",
    "merge-during-delete",
)


class Verdict(msgspec.Struct, frozen=True):
    lost: int
    twice: int


class Oracle:
    """Stands outside of the process, and remembers what it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.acknowledged = 0
        self._console: EventStore | None = None

    def run(self, batches: int, variant: str, fault: str = "", after_s: float = 0.0) -> bool:
        """Let the process write; True if it was killed."""
        environment = {**os.environ, "CITYWARD_FAULT": fault, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, str(WRITER), str(self.folder), str(batches), variant],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ) as process:
            if after_s:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(after_s)
                process.send_signal(signal.SIGKILL)
            said, complaint = process.communicate(timeout=PATIENCE_S)
        assert process.returncode in (0, -signal.SIGKILL), complaint.decode()
        numbers = [int(line) for line in said.split(b"\n")[:-1]]
        self.acknowledged = max([self.acknowledged, *numbers])
        return process.returncode != 0

    def judge(self, *, anew: bool = True) -> Verdict:
        """What a console sees right now, one that stays open or anew, against what was
        acknowledged."""
        if anew:
            self.close()
        self._console = self._console or EventStore(self.folder, write=False)
        rows = self._console.search("", Range(), limit=1_000_000).rows
        held = Counter(row["event.sequence"] for row in rows)
        lost = sum(number not in held for number in range(self.acknowledged))
        return Verdict(lost, sum(count - 1 for count in held.values()))

    def close(self) -> None:
        if self._console:
            self._console.close()
            self._console = None


@pytest.fixture
def oracle(tmp_path: Path) -> Iterator[Oracle]:
    made = Oracle(tmp_path)
    yield made
    made.close()


def tidied(folder: Path) -> Counter[int]:
    """Events of the files themselves, after a last compaction, without our own reading code."""
    compact.compact(folder, 2**60)
    held: Counter[int] = Counter()
    for path in folder.glob("parquet/*/*.parquet"):
        rows = duckdb.sql(f"SELECT \"event.sequence\" FROM read_parquet('{path}')").fetchall()
        held.update(row[0] for row in rows)
    for path in folder.glob("spool/*.ndjson"):
        for line in path.read_bytes().splitlines():
            if line.startswith(b'{"@timestamp"'):
                held[msgspec.json.decode(line)["event.sequence"]] += 1
    return held


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """Twenty batches that a whole process wrote."""
    made = Oracle(tmp_path_factory.mktemp("begun"))
    made.run(20, "right")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, pytest.param(3, marks=pytest.mark.full)])
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_named_point_loses_and_doubles_nothing(
    begun: Oracle, oracle: Oracle, point: str, nth: int
) -> None:
    shutil.copytree(begun.folder, oracle.folder, dirs_exist_ok=True)
    oracle.acknowledged = begun.acknowledged

    was_killed = oracle.run(60, "right", f"{point}:{nth}")
    right_after = oracle.judge()
    oracle.run(20, "right")
    at_the_end = oracle.judge(anew=False)

    assert was_killed
    assert right_after == Verdict(lost=0, twice=0)
    assert at_the_end == Verdict(lost=0, twice=0)
    assert tidied(oracle.folder) == Counter(range(oracle.acknowledged))


@pytest.mark.slow
@pytest.mark.parametrize("kills", [10, pytest.param(30, marks=pytest.mark.full)])
def test_kills_at_random_moments_lose_and_double_nothing(oracle: Oracle, kills: int) -> None:
    dice = random.Random(4)

    killed = 0
    for _ in range(kills):
        killed += oracle.run(5_000, "right", after_s=dice.uniform(0.0, 1.0))
        assert oracle.judge(anew=False) == Verdict(lost=0, twice=0)
    oracle.run(5, "right")

    assert oracle.judge() == Verdict(lost=0, twice=0)
    assert killed == kills
    assert oracle.acknowledged > 10 * kills
    assert tidied(oracle.folder) == Counter(range(oracle.acknowledged))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "fault", "expected"),
    [
        ("early", "before-commit:5", Verdict(lost=10, twice=0)),
        ("two_steps", "between:5", Verdict(lost=0, twice=10)),
    ],
)
def test_the_oracle_sees_a_writer_that_is_broken(
    oracle: Oracle, variant: str, fault: str, expected: Verdict
) -> None:
    oracle.run(20, variant, fault)
    lost = oracle.judge().lost
    oracle.run(3, variant)

    assert Verdict(lost, oracle.judge().twice) == expected


@pytest.mark.slow
def test_the_oracle_sees_a_compaction_that_deletes_before_it_renames(oracle: Oracle) -> None:
    oracle.run(20, "delete_first", "compact-before-rename")

    assert oracle.judge().lost > 0
