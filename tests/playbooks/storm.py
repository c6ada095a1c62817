"""Many runs while everything is killed: workers, their trees, the runner, Redis; clocks step.

Drivers: `node` (processes that make transitions themselves), `celery` (workers on a real
redis-server, one that only undoes, and as in a node its own driver behind them, for what they
leave), `deaf` (a worker that has nothing but its messages), `naive` (Celery alone: no journal, a
countdown for the end of an effect), which has to fail.
A process of its own each, so that SIGKILL means it:

    python -m tests.playbooks.storm work FOLDER DRIVER URL
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from celery import Celery

from cityward import Actuator, Command, Target
from playbooks import tasks
from playbooks.journal import QUEUES, RUN_ENDS, UNDOES, Queue
from playbooks.model import Playbook
from playbooks.runner import Runner
from siem.response import LATE
from siem.store import faults
from siem.store.embedded import NodeDb
from siem.store.query import micros
from tests.playbooks.kit import Planner, allows, approved, db_at, deny, playbook, run_of
from tests.playbooks.recorder import Recorder
from tests.programs import PATIENCE_S

STEPS = ("one", "two", "three")
LATE_S = 30.0
"""An effect is undone so long after its end at the latest, with everything being killed."""
OTHERS = tuple(one for one in QUEUES if one != UNDOES)
STILL_S = 20.0
"""Also a driver that does nothing is struck after so long."""
EDGES = (
    *("run-claimed", "run-turn", "run-acted"),
    *(
        f"run-{side}-{state}"
        for side in ("before", "after")
        for state in ("gated", "intended", "applied", "verified", "rolling_back", "rolled_back")
    ),
)
"""Fault points at every edge that a step passes."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a storm."""

    runs: int
    kills: int
    seconds: float
    lost: int
    """Runs that were neither ended nor in the hands of a person."""
    twice: int
    """Effects that the device was told of more than once."""
    missing: int
    """Effects that never came about, although their run says so."""
    late: int
    """Effects that were undone later than `LATE_S` after their end, or never."""
    late_runs: int
    """Runs that went on for more than twice their time."""
    states: dict[str, int] = {}

    @property
    def is_whole(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost or self.twice or self.missing or self.late or self.late_runs)


def clock_of(folder: Path) -> Any:
    """The wall clock, stepped by as much as stands in a file."""
    file = folder / "step"

    def clock() -> datetime:
        try:
            step_s = float(file.read_text() or 0)
        except (OSError, ValueError):
            step_s = 0.0
        return datetime.now(UTC) + timedelta(seconds=step_s)

    return clock


def journal_at(folder: Path) -> NodeDb:
    """The journal, with a clock that may step."""
    db = db_at(folder, clock_of(folder))
    db.runs.is_steady = True
    return db


def runner_at(folder: Path) -> Runner:
    """A runner over the journal and the device of a folder."""
    if once := os.environ.get("STORM_ONCE"):
        # The fault is for one child of a worker, not for all that follow it.
        try:
            Path(once).touch(exist_ok=False)
        except FileExistsError:
            faults._NAME = ""
    db = journal_at(folder)
    actuators: dict[str, Actuator] = {"recorder": Recorder(folder / "device")}
    gate = approved if os.environ.get("STORM_ASKS") else allows
    return Runner(db.runs, actuators, Planner(actuators, db.runs.now), gate)


def book(box_s: float) -> Playbook:
    """Three steps, each with an effect of its own."""
    box = timedelta(seconds=box_s)
    return playbook(
        deny("one", "two", box=box), deny("two", "three", box=box), deny("three", box=box)
    )


# ---- Processes


def work(folder: Path, driver: str, url: str) -> None:
    """Be a runner, or a worker, until killed."""
    if driver in ("node", "behind"):
        runner, late = runner_at(folder), timedelta() if driver == "node" else LATE
        while True:
            made = sum(1 for _ in runner.work(late=late))
            time.sleep(0 if made else 0.1)
    queues: Sequence[Queue] = {"undoing": (UNDOES,), "deaf": QUEUES}.get(driver, OTHERS)
    if driver == "naive":
        app = naive_app(folder, url)
    else:
        app = tasks.app_of(url, lambda: runner_at(folder), queues=queues)
    if driver == "deaf":
        app.conf.beat_schedule = {}
    tasks.work(app, queues=queues, processes=1 if driver == "undoing" else 2)


def naive_app(folder: Path, url: str) -> Celery:
    """Celery trusted alone: the queue is the truth, `countdown` the timer."""
    app = tasks.app_of(url)
    app.conf.beat_schedule = {}
    app.conf.task_routes = {}
    device = Recorder(folder / "device")

    @app.task(name="naive.apply")
    def apply(run: str, number: int, box_s: float) -> None:
        target = Target("ipv4_net", f"{run}/{STEPS[number]}")
        key = f"{run} {number}"
        device.apply(Command("deny", target, "allow", datetime.now(UTC), key=key))
        app.send_task("naive.undo", args=[run, number], countdown=box_s)
        if number + 1 < len(STEPS):
            app.send_task("naive.apply", args=[run, number + 1, box_s])

    @app.task(name="naive.undo")
    def undo(run: str, number: int) -> None:
        target = Target("ipv4_net", f"{run}/{STEPS[number]}")
        key = f"undo {run} {number}"
        device.apply(Command("allow", target, "deny", datetime.now(UTC), key=key))

    return app


@contextmanager
def redis_at(folder: Path) -> Iterator[Redis]:
    """A redis-server of our own on a free port."""
    server = Redis(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Redis:
    """A redis-server that can be killed, with or without its data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "redis"
        self.folder.mkdir(parents=True, exist_ok=True)
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        words = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        words += ["--dir", str(self.folder), "--appendonly", "yes", "--save", ""]
        words += ["--maxmemory-policy", "noeviction"]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        until_s = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < until_s:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), timeout=1),
            ):
                return
            time.sleep(0.05)
        raise RuntimeError("redis-server does not listen")

    def kill(self, *, data: bool = False) -> None:
        """Kill it, and perhaps take its data away."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if data:
            shutil.rmtree(self.folder)
            self.folder.mkdir()


class Workers:
    """The processes of a driver; each is started again when it is gone."""

    def __init__(self, folder: Path, driver: str, url: str, count: int) -> None:
        self.folder = folder
        self.url = url
        self.drivers = [driver] * count
        if driver == "celery" and count > 1:
            self.drivers[1:] = ["undoing", "behind"]
            count = len(self.drivers)
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * count

    def tend(self, fault: str = "") -> int:
        """Start what is gone; says how many were."""
        gone = 0
        for place, process in enumerate(self.processes):
            if process is None or process.poll() is not None:
                gone += process is not None
                self.processes[place] = self._start(self.drivers[place], fault)
                fault = ""
        return gone

    def _start(self, driver: str, fault: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "tests.playbooks.storm", "work", str(self.folder)]
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                [*words, driver, self.url],
                env=os.environ
                | {"CITYWARD_FAULT": fault, "C_FORCE_ROOT": "1", "PYTHONWARNINGS": "ignore"}
                | {"STORM_ONCE": str(self.folder / f"once-{time.monotonic_ns()}")},
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=Path(__file__).parents[2],
            )

    def kill_tree(self, place: int) -> None:
        """Kill a process and all its children."""
        process = self.processes[place]
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def kill_child(self, chance: random.Random) -> bool:
        """Kill one child of a worker."""
        children = [child for one in self.processes if one for child in _children(one.pid)]
        if not children:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(children), signal.SIGKILL)
        return True

    def end(self) -> None:
        """Kill all."""
        for place in range(len(self.processes)):
            self.kill_tree(place)


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


# ---- The storm


def storm(
    folder: Path,
    driver: str,
    *,
    runs: int,
    kills: int,
    box_s: float = 20.0,
    within_s: float = 600.0,
    workers: int = 2,
    held_s: float = 0.0,
    seed: int = 1,
) -> Outcome:
    """Start runs, kill until so many kills were made, wait for the end, count.

    Args:
        folder: Of the journal, the device, Redis.
        driver: `node`, `celery` or `naive`.
        runs: How many, three steps each.
        kills: How many, spread over the time in which runs are open.
        box_s: How long an effect lasts.
        within_s: After so long it is looked at whatever is open.
        workers: Processes.
        held_s: Another process holds the journal for so long, when the first effect is in force.
        seed: Of the order of kills.
    """
    chance = random.Random(seed)
    began_s = time.monotonic()
    folder.mkdir(exist_ok=True)
    device = Recorder(folder / "device")
    db = journal_at(folder)
    made = 0
    with contextlib.ExitStack() as stack:
        stack.callback(db.close)
        redis = stack.enter_context(redis_at(folder)) if driver != "node" else None
        url = redis.url if redis else "-"
        crew = Workers(folder, driver, url, workers)
        stack.callback(crew.end)
        crew.tend()
        app = tasks.app_of(url) if redis else None
        # Half at once, the others between the kills: each hits a driver that has work.
        begun = range(runs if not kills else runs // 2)
        _start(db, app, driver, begun, box_s)
        if held_s:
            while not db.runs.in_force():
                time.sleep(0.02)
            hold(folder / "node.db", held_s)
        edges = list(EDGES)
        chance.shuffle(edges)
        gap_s = max(0.15, min(1.0, box_s / kills)) if kills else 1.0
        done, waited_s = 0, 0.0
        while time.monotonic() - began_s < within_s:
            crew.tend()
            if len(begun) == runs and _is_over(db, device, driver, runs):
                break
            # Who is only just starting is not killed: a kill hits work under way.
            is_at_work = done < (done := len(device.calls())) or waited_s > STILL_S
            if made < kills and is_at_work:
                made += _strike(made, crew, redis, folder, edges, chance)
                _repeat(app, driver, chance)
                more = range(len(begun), len(begun) + -(-(runs - len(begun)) // (kills - made + 1)))
                _start(db, app, driver, more, box_s)
                begun, waited_s = range(more.stop), 0.0
            elif made >= kills:
                (folder / "step").unlink(missing_ok=True)
            time.sleep(gap_s)
            waited_s += gap_s
        seconds = time.monotonic() - began_s
        return _count(db, device, driver, runs, made, seconds, box_s)


def hold(
    file: Path,
    seconds: float,
    held: threading.Event | None = None,
    over: threading.Event | None = None,
) -> None:
    """Hold the right to write to a journal, and say so when it is had; no longer than needed."""
    with closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        if held is not None:
            held.set()
        (over or threading.Event()).wait(seconds)
        db.execute("ROLLBACK")


def _start(db: NodeDb, app: Celery | None, driver: str, runs: range, box_s: float) -> None:
    steps = book(box_s)
    for number in runs:
        id = f"run-{number}"
        if driver == "naive" and app is not None:
            app.send_task("naive.apply", args=[id, 0, box_s])
            continue
        db.runs.start(run_of(steps, id, db.runs.now()))
    if app is not None and driver == "celery":
        tasks.Bell(lambda: app)("control", len(runs))


def _strike(
    number: int,
    crew: Workers,
    redis: Redis | None,
    folder: Path,
    edges: list[str],
    chance: random.Random,
) -> int:
    """One kill, of the next kind; says how many processes died of it."""
    kind = number % 5
    if kind == 0 or (kind == 3 and redis is None):  # at the next edge of the state machine
        edge = edges[number % len(edges)]
        crew.kill_tree(chance.randrange(len(crew.processes)))
        crew.tend(f"{edge}:{chance.randint(1, 5)}")
        return 1
    if kind == 1:
        return int(crew.kill_child(chance)) or _killed_tree(crew, chance)
    if kind == 2:
        return _killed_tree(crew, chance)
    if kind == 3 and redis is not None:
        redis.kill(data=number % 10 == 3)
        redis.start()
        return 1
    (folder / "step").write_text(str(chance.choice([-3600, 0, 3600])))
    crew.tend()
    return _killed_tree(crew, chance)


def _killed_tree(crew: Workers, chance: random.Random) -> int:
    crew.kill_tree(chance.randrange(len(crew.processes)))
    crew.tend()
    return 1


def _repeat(app: Celery | None, driver: str, chance: random.Random) -> None:
    """Deliver a message five times."""
    if app is not None and driver == "celery":
        tasks.Bell(lambda: app)(chance.choice(QUEUES), 5)


def _is_over(db: NodeDb, device: Recorder, driver: str, runs: int) -> bool:
    if driver == "naive":  # only the device knows
        return len({call[:2] for call in device.calls()}) == 2 * len(STEPS) * runs
    counts = db.runs.counts()
    return sum(counts.get(state, 0) for state in RUN_ENDS) == runs


def _count(
    db: NodeDb, device: Recorder, driver: str, runs: int, kills: int, seconds: float, box_s: float
) -> Outcome:
    told: Counter[str] = Counter()
    times: dict[tuple[str, str], float] = {}
    with closing(device._open()) as file:
        for verb, target, key, time_s in file.execute(
            "SELECT verb, target, key, time FROM calls ORDER BY number"
        ):
            told[f"{verb} {key}"] += 1
            times[verb, target] = time_s
    twice = sum(count > 1 for count in told.values())
    all_ = [f"run-{number}" for number in range(runs)]
    targets = [f"{run}/{step}" for run in all_ for step in STEPS]
    now_s = time.time()
    late = sum(
        ("deny", one) in times
        and times.get(("allow", one), now_s) > times["deny", one] + box_s + LATE_S
        for one in targets
    )
    states = db.runs.counts()
    if driver == "naive":
        missing = sum(("deny", one) not in times for one in targets)
        return Outcome(runs=runs, kills=kills, seconds=seconds, lost=0, twice=twice,
                       missing=missing, late=late, late_runs=0)  # fmt: skip
    lost = missing = late_runs = 0
    for id in all_:
        run = db.runs.get(id)
        history = db.runs.history(id)
        asks = any(one.kind == "page" for one in history)
        lost += run is None or (run.state not in RUN_ENDS and not asks)
        if run is None:
            continue
        missing += sum(
            one.state in ("applied", "rolled_back")
            and not one.note
            and ("deny", one.command.target.value) not in times
            and any(row.id == one.step and row.went == "success" for row in run.steps)
            for one in run.effects
        )
        ended = max((micros(one.time) for one in history), default=0)
        limit = micros(run.made + 2 * (run.deadline - run.made))
        late_runs += ended > limit and not asks
    return Outcome(
        runs=runs, kills=kills, seconds=round(seconds, 1), lost=lost, twice=twice,
        missing=missing, late=late, late_runs=late_runs, states=states,
    )  # fmt: skip


def main(words: Sequence[str]) -> None:
    """`work FOLDER DRIVER URL`, or `storm DRIVER RUNS KILLS BOX_S WITHIN_S WORKERS`."""
    if words[0] == "work":
        work(Path(words[1]), words[2], words[3])
        return
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    numbers = [float(word) for word in words[2:]]
    found = storm(
        folder, words[1], runs=int(numbers[0]), kills=int(numbers[1]), box_s=numbers[2],
        within_s=numbers[3], workers=int(numbers[4]),
    )  # fmt: skip
    print(json.dumps(msgspec.to_builtins(found)), folder)


if __name__ == "__main__":
    main(sys.argv[1:])
