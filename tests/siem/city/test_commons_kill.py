"""kill -9 on the common store: what was acknowledged is there, once, in its newest revision."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

from siem.city.commons import Commons, Rights
from siem.city.sqlite import SqliteCommons
from siem.store.protocol import TIME_MIN, Conflict, Range
from tests.opensearch import Server
from tests.programs import PATIENCE_S
from tests.siem.city import writer
from tests.siem.city.homes import a_cluster

ROOT = Path(__file__).parents[3]
SEED = 7
ALL = Rights(("city-soc",), ("green",))
POINTS = (
    "commons-put-before-commit",
    "commons-put-after-commit",
    "commons-record-before-commit",
    "commons-record-after-commit",
)


class Oracle:
    """Stands outside of the process, and remembers what it was told."""

    def __init__(self, home: str, shares: int) -> None:
        self.home = home
        self.shares = shares
        self.acknowledged = 0

    def run(self, fault: str = "", after_s: float = 0.0) -> bool:
        """Let the process write; True if it was killed."""
        environment = {**os.environ, "CITYWARD_FAULT": fault, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            [sys.executable, writer.__file__, self.home, str(self.shares), str(SEED)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        ) as process:
            first = b""
            if after_s:
                assert process.stdout is not None
                first = process.stdout.readline()
                time.sleep(after_s)
                process.send_signal(signal.SIGKILL)
            said, complaint = process.communicate(timeout=240)
        assert process.returncode in (0, -signal.SIGKILL), complaint.decode()
        numbers = [int(line) for line in (first + said).split(b"\n")[:-1] if line]
        self.acknowledged = max([self.acknowledged, *numbers])
        return process.returncode != 0

    def judge(self, commons: Commons) -> None:
        """Everything that was acknowledged is there, and nothing twice or older."""
        link = commons.records.get("link", "test")
        assert (link.value["seq"] if link else 0) - self.acknowledged in (0, 1)
        sent = writer.plan(self.shares, SEED)
        least: dict[str, int] = {}
        most: dict[str, int] = {}
        for place, (number, revision) in enumerate(sent[: (self.acknowledged + 2) * writer.BATCH]):
            name = f"share-{number}"
            most[name] = max(revision, most.get(name, 0))
            if place < self.acknowledged * writer.BATCH:
                least[name] = max(revision, least.get(name, 0))
        found = [(one["cw.share.id"], one["cw.share.revision"]) for one in commons.scan(TIME_MIN)]
        held = dict(found)
        assert len(held) == len(found) == commons.search(ALL, "", Range(), limit=1).total
        assert all(held[name] >= revision for name, revision in least.items())
        assert all(revision <= most[name] for name, revision in held.items())


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_named_point_loses_and_doubles_nothing(tmp_path: Path, point: str) -> None:
    oracle = Oracle(str(tmp_path / "commons.db"), 200)

    was_killed = oracle.run(f"{point}:3")
    commons = SqliteCommons(tmp_path / "commons.db")
    oracle.judge(commons)
    oracle.run()

    assert was_killed
    oracle.judge(commons)
    _is_whole(commons, 200)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shares", "kills"), [(20_000, 5), pytest.param(200_000, 40, marks=pytest.mark.full)]
)
def test_each_share_is_there_once_in_its_newest_revision_however_often_it_was_put(
    tmp_path: Path, shares: int, kills: int
) -> None:
    oracle = Oracle(str(tmp_path / "commons.db"), shares)
    dice = random.Random(4)

    killed = sum(oracle.run(after_s=dice.uniform(0.05, 0.5)) for _ in range(kills))
    commons = SqliteCommons(tmp_path / "commons.db")
    oracle.judge(commons)
    oracle.run()

    assert killed == kills
    _is_whole(commons, shares)


def _is_whole(commons: Commons, shares: int) -> None:
    newest: dict[str, int] = {}
    for number, revision in writer.plan(shares, SEED):
        newest[f"share-{number}"] = max(revision, newest.get(f"share-{number}", 0))
    found = [(one["cw.share.id"], one["cw.share.revision"]) for one in commons.scan(TIME_MIN)]
    assert len(found) == shares
    assert dict(found) == newest
    assert commons.search(ALL, "", Range(), limit=1).total == shares


def _race(home: str, name: str, rounds: int) -> list[int]:
    """Take a record in each round against another process; rounds that were won."""
    records = writer.open_home(home).records
    won = []
    for number in range(rounds):
        while (found := records.get("lease", "race")) is None or found.value["round"] < number:
            time.sleep(0.0005)
        if found.value["round"] > number:
            continue
        try:
            records.put("lease", "race", {"round": number + 1, "by": name}, found.version)
        except Conflict:
            continue
        won.append(number)
    return won


def race(home: str, rounds: int) -> None:
    """Two processes write over the same version; exactly one of them may win each time."""
    records = writer.open_home(home).records
    with get_context("spawn").Pool(2) as pool:
        runs = [pool.apply_async(_race, (home, name, rounds)) for name in ("a", "b")]
        records.put("lease", "race", {"round": 0}, None)
        won = [number for run in runs for number in run.get(timeout=PATIENCE_S)]

    assert sorted(won) == list(range(rounds))
    found = records.get("lease", "race")
    assert found is not None
    assert found.value["round"] == rounds


def test_of_two_processes_that_write_over_one_version_exactly_one_wins(tmp_path: Path) -> None:
    race(str(tmp_path / "commons.db"), 100)


# ---- The same on a cluster, trimmed


@pytest.fixture
def there(opensearch: Server) -> Iterator[str]:
    """A prepared cluster, as the writer takes it."""
    with a_cluster(opensearch, "opensearch") as (_, names):
        told = {name: getattr(opensearch, name) for name in ("url", "user", "password", "ca_file")}
        yield json.dumps(told | {"prefix": names.prefix})


@pytest.mark.slow
def test_on_a_cluster_exactly_one_wins_too(there: str) -> None:
    race(there, 20)


@pytest.mark.slow
def test_on_a_cluster_each_share_is_there_once_in_its_newest_revision_too(there: str) -> None:
    oracle = Oracle(there, 1_000)
    dice = random.Random(4)
    points = ("commons-put-before-commit:3", "commons-put-after-commit:5")

    killed = sum(oracle.run(point) for point in points)
    killed += sum(oracle.run(after_s=dice.uniform(0.05, 0.3)) for _ in range(2))
    commons = writer.open_home(there)
    oracle.judge(commons)
    oracle.run()

    assert killed == 4
    _is_whole(commons, 1_000)
    commons.close()
