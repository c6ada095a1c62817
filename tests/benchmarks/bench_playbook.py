"""Speed of playbook runs, and a storm of kills: `cityward bench playbook`.

The device is a recorder in a file, so the figures are those of journal, runner and queue.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from cityward import Actuator
from playbooks import tasks
from playbooks.runner import Runner
from siem.store.runs import RunStore
from tests.playbooks.kit import Planner, allows, approved, deny, playbook, run_of
from tests.playbooks.recorder import Recorder
from tests.playbooks.storm import STEPS, Workers, book, journal_at, redis_at, storm

BOX_S = 3600.0
"""Effects outlast what is measured here."""
RUNS = 60
SAMPLES = 40


def rows(runs: int) -> Iterator[dict[str, Any]]:
    """One row a figure."""
    yield _row("node: transitions a second", _node_rate())
    for processes in (1, 2):
        yield _row(f"celery: transitions a second, {processes} workers", _celery_rate(processes))
    planned, applied = _latencies()
    for name, times in (("finding to planned, ms", planned), ("approval to effect, ms", applied)):
        yield _row(f"{name}, median", statistics.median(times))
        yield _row(f"{name}, 95 %", statistics.quantiles(times, n=20)[-1])
    yield _row("recovery after a killed worker, s", _recovery())
    for driver in ("node", "celery"):
        with tempfile.TemporaryDirectory(prefix="cityward-bench-") as folder:
            kills, box_s = max(1, runs // 10), max(20.0, runs / 10)
            found = storm(
                Path(folder), driver, runs=runs, kills=kills, box_s=box_s, within_s=runs + 300
            )
        said = msgspec.to_builtins(found)
        for name in ("runs", "kills", "seconds", "lost", "twice", "missing", "late", "late_runs"):
            yield _row(f"{driver}, storm: {name}", said[name])


def _row(name: str, value: float) -> dict[str, Any]:
    return {"figure": name, "value": round(value, 2)}


def _runner(folder: Path, runs: RunStore, gate: Any = allows) -> Runner:
    actuators: dict[str, Actuator] = {"recorder": Recorder(folder / "device")}
    return Runner(runs, actuators, Planner(actuators, runs.now), gate)


def _node_rate() -> float:
    with tempfile.TemporaryDirectory(prefix="cityward-bench-") as name:
        folder = Path(name)
        db = journal_at(folder)
        runner = _runner(folder, db.runs)
        for number in range(RUNS):
            db.runs.start(run_of(book(BOX_S), f"run-{number}", db.runs.now()))
        began_s = time.perf_counter()
        made = sum(change is not None for change in runner.work())
        rate = made / (time.perf_counter() - began_s)
        db.close()
    return rate


def _celery_rate(processes: int) -> float:
    """Transitions from the first that was seen to the last, without the start of the workers."""
    with tempfile.TemporaryDirectory(prefix="cityward-bench-") as name, redis_at(Path(name)) as red:
        folder = Path(name)
        db = journal_at(folder)
        crew = Workers(folder, "celery", red.url, 1 if processes == 1 else 2)
        crew.drivers = ["celery"] * len(crew.drivers)
        crew.tend()
        try:
            _until(db.runs, "first", 1, red.url)
            for number in range(RUNS):
                db.runs.start(run_of(book(BOX_S), f"run-{number}", db.runs.now()))
            began_s = time.perf_counter()
            _ring(red.url, RUNS)
            while db.runs.counts().get("waiting", 0) < RUNS + 1:
                time.sleep(0.02)
            seconds = time.perf_counter() - began_s
        finally:
            crew.end()
            db.close()
    return RUNS * (4 * len(STEPS) + 1) / seconds


def _ring(url: str, count: int) -> None:
    tasks.Bell(lambda: tasks.app_of(url))("control", count)


def _until(runs: RunStore, id: str, count: int, url: str) -> float:
    """Start a run and wait until it has put so many effects in force; seconds it took."""
    began_s = time.perf_counter()
    runs.start(run_of(book(BOX_S), id, runs.now()))
    _ring(url, 1)
    while sum(one.run == id and one.effect.state == "applied" for one in runs.in_force()) < count:
        time.sleep(0.01)
    while runs.counts().get("waiting", 0) < 1:
        time.sleep(0.01)
    return time.perf_counter() - began_s


def _latencies() -> tuple[list[float], list[float]]:
    """A run is there, until it is planned; a yes is there, until the device was told."""
    planned, applied = [], []
    with tempfile.TemporaryDirectory(prefix="cityward-bench-") as name:
        folder = Path(name)
        db = journal_at(folder)
        runner = _runner(folder, db.runs, approved)
        steps = playbook(deny("one", box=timedelta(seconds=BOX_S)))
        for number in range(SAMPLES):
            id = f"run-{number}"
            began_s = time.perf_counter()
            db.runs.start(run_of(steps, id, db.runs.now()))
            _advance(runner, db.runs, id, "gated")
            planned.append(1_000 * (time.perf_counter() - began_s))
            _advance(runner, db.runs, id, "waiting_approval")
            run = db.runs.get(id)
            assert run is not None
            began_s = time.perf_counter()
            db.runs.approve(id, "ada", "analyst", run.plan.hash)
            _advance(runner, db.runs, id, "applied")
            applied.append(1_000 * (time.perf_counter() - began_s))
        db.close()
    return planned, applied


def _advance(runner: Runner, runs: RunStore, id: str, state: str) -> None:
    for _ in range(20):
        run = runs.get(id)
        if run is not None and run.steps[0].state == state:
            return
        runner.advance(id)
    raise RuntimeError(f"{id} is not {state}")


def _recovery() -> float:
    """From the kill of a worker between effect and journal until another has gone on."""
    with tempfile.TemporaryDirectory(prefix="cityward-bench-") as name, redis_at(Path(name)) as red:
        folder = Path(name)
        db = journal_at(folder)
        crew = Workers(folder, "celery", red.url, 1)
        crew.tend("run-acted:1")
        device = Recorder(folder / "device")
        try:
            db.runs.start(run_of(book(BOX_S), "run-0", db.runs.now()))
            _ring(red.url, 1)
            while not device.calls():
                time.sleep(0.005)
            began_s = time.perf_counter()
            while not [one for one in db.runs.in_force() if one.effect.state == "applied"]:
                time.sleep(0.01)
            return time.perf_counter() - began_s
        finally:
            crew.end()
            db.close()


def main(words: Sequence[str]) -> None:
    """`json RUNS` for the command, `RUNS` for people."""
    found = list(rows(int(words[-1])))
    print(json.dumps(found) if words[0] == "json" else "\n".join(str(row) for row in found))


if __name__ == "__main__":
    main(sys.argv[1:])
