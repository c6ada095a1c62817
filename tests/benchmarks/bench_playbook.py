"""Speed of playbook runs, and a storm of kills: `cityward bench playbook`.

The device is a recorder in a file, so the figures are those of journal, runner and queue. Driver,
leases and intervals are those of a node.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from cityward import Actuator, Target
from playbooks import tasks
from playbooks.model import Rate
from playbooks.runner import Runner
from siem.response import Response
from siem.store.embedded import NodeDb
from tests.playbooks.kit import (
    Planner,
    Shelf,
    allows,
    approved,
    deny,
    finding_of,
    playbook,
    run_of,
)
from tests.playbooks.recorder import Recorder
from tests.playbooks.storm import STEPS, Workers, book, journal_at, redis_at, storm

DRIVERS = ("node", "celery")
BOX_S = 3600.0
"""Effects outlast what is measured here."""
RUNS = 60
TRANSITIONS = 4 * len(STEPS) + 1
"""Of a run, until it waits for the end of its effects."""
SAMPLES = 30
WITHIN_S = 120.0
OFTEN = Rate(per_hour=10_000, at_once=10_000, cooldown=timedelta())


def rows(runs: int) -> Iterator[dict[str, Any]]:
    """One row a figure."""
    rate, cpu_ms = _node_rate()
    yield _row("node: transitions a second", rate)
    yield _row("node: CPU of a transition, ms", cpu_ms)
    for workers in (1, 2):
        yield _row(f"celery: transitions a second, {workers} workers of 2", _celery_rate(workers))
    for driver in DRIVERS:
        planned, applied = _latencies(driver)
        for name, times in (("finding to planned", planned), ("approval to effect", applied)):
            yield _row(f"{driver}: {name}, ms, median", statistics.median(times))
            yield _row(f"{driver}: {name}, ms, 95 %", statistics.quantiles(times, n=20)[-1])
    yield _row("celery: recovery after a killed worker, s", _recovery())
    for driver in DRIVERS:
        with tempfile.TemporaryDirectory(prefix="cityward-bench-") as folder:
            kills, box_s = max(1, runs // 10), max(20.0, runs / 8)
            found = storm(
                Path(folder), driver, runs=runs, kills=kills, box_s=box_s, within_s=2 * runs + 300
            )
        said = msgspec.to_builtins(found)
        for name in ("runs", "kills", "seconds", "lost", "twice", "missing", "late", "late_runs"):
            yield _row(f"{driver}, storm: {name}", said[name])


def _row(name: str, value: float) -> dict[str, Any]:
    return {"figure": name, "value": round(value, 2)}


@contextmanager
def _home(driver: str = "node", workers: int = 0, fault: str = "") -> Iterator[tuple[Path, NodeDb]]:
    """A folder with a journal; with Redis and workers, if the driver is Celery."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cityward-bench-")))
        db = journal_at(folder)
        stack.callback(db.close)
        if driver == "celery":
            redis = stack.enter_context(redis_at(folder))
            app = tasks.app_of(redis.url)
            db.runs.bell = tasks.Bell(lambda: app)
            crew = Workers(folder, driver, redis.url, workers)
            crew.drivers, crew.processes = [driver] * workers, [None] * workers
            stack.callback(crew.end)
            crew.tend(fault)
        yield folder, db


def _runner(folder: Path, db: NodeDb, gate: Any = allows) -> Runner:
    actuators: dict[str, Actuator] = {"recorder": Recorder(folder / "device")}
    return Runner(db.runs, actuators, Planner(actuators, db.runs.now), gate)


def _until(is_so: Callable[[], object]) -> float:
    """Wait; the seconds that it took."""
    began_s = time.perf_counter()
    while not is_so():
        if time.perf_counter() - began_s > WITHIN_S:
            raise RuntimeError(f"it never came about within {WITHIN_S:g} s")
        time.sleep(0.005)
    return time.perf_counter() - began_s


# ---- Transitions a second


def _node_rate() -> tuple[float, float]:
    with _home() as (folder, db):
        runner = _runner(folder, db)
        for number in range(RUNS):
            db.runs.start(run_of(book(BOX_S), f"run-{number}", db.runs.now()))
        began_s, cpu_s = time.perf_counter(), time.process_time()
        made = sum(change is not None for change in runner.work())
        seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
        return made / seconds, 1_000 * cpu_s / made


def _celery_rate(workers: int) -> float:
    """From the first message to the last effect, without the start of the workers."""
    with _home("celery", workers) as (_, db):
        db.runs.start(run_of(book(BOX_S), "first", db.runs.now()))
        _until(lambda: db.runs.counts().get("waiting"))
        bell, db.runs.bell = db.runs.bell, None
        for number in range(RUNS):
            db.runs.start(run_of(book(BOX_S), f"run-{number}", db.runs.now()))
        assert bell is not None
        bell("control", RUNS)
        return RUNS * TRANSITIONS / _until(lambda: db.runs.counts().get("waiting", 0) > RUNS)


# ---- How long people wait


def _latencies(driver: str) -> tuple[list[float], list[float]]:
    """A finding is kept, until its run waits for a yes; a yes is kept, until the device did it."""
    os.environ["STORM_ASKS"] = "1"
    planned, applied = [], []
    with _home(driver, 1) as (folder, db):
        steps = playbook(deny("one", box=timedelta(seconds=BOX_S)), rate=OFTEN)
        shelf: Any = Shelf(db, steps)
        runners = (_runner(folder, db, approved), _runner(folder, db, approved))
        response = Response(db, shelf, *runners)
        device = Recorder(folder / "device")
        response.start()
        try:
            for number in range(SAMPLES + 1):
                rule = f"rule-{number}"
                db.keep([finding_of(rule, db.runs.now())], db.checkpoint()[0] + 1)
                planned.append(1_000 * _until(db.runs.waiting))
                (run,) = (one for one in db.runs.all(limit=1) if one.steps)
                db.runs.approve(run.id, "ada", "analyst", run.plan.hash)
                target = Target("ipv4_net", f"{rule}/one")
                applied.append(1_000 * _until(lambda at=target: device.probe(at).is_applied))
        finally:
            response.stop()
            del os.environ["STORM_ASKS"]
    return planned[1:], applied[1:]  # the first waits for the workers to start


# ---- After a kill


def _recovery() -> float:
    """From the kill of a worker between effect and journal until another has gone on."""
    with _home("celery", 1, "run-acted:1") as (folder, db):
        device = Recorder(folder / "device")
        db.runs.start(run_of(book(BOX_S), "run-0", db.runs.now()))
        _until(device.calls)
        return _until(lambda: [one for one in db.runs.in_force() if one.effect.state == "applied"])


def main(words: Sequence[str]) -> None:
    """`json RUNS` for the command, `RUNS` for people."""
    found = list(rows(int(words[-1])))
    print(json.dumps(found) if words[0] == "json" else "\n".join(str(row) for row in found))


if __name__ == "__main__":
    main(sys.argv[1:])
