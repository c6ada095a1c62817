"""What both drivers hold by construction: undoing goes first, a broken run holds up no other, a
held journal is waited for, and workers elsewhere are rung for."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from cityward import Actuator, Command
from playbooks.journal import Change
from playbooks.runner import Runner
from siem.assembly import db_of
from siem.assets import from_settings
from siem.bell import bell_of
from siem.config import Response as ResponseSettings
from siem.config import Settings
from siem.node import now_utc
from siem.store.runs import RunStore
from tests.playbooks.kit import Clock, Planner, allows, approved, db_at, deny, playbook, run_of
from tests.playbooks.recorder import Recorder
from tests.playbooks.storm import Workers, book, hold, journal_at, redis_at, storm
from tests.programs import PATIENCE_S

MINUTE = timedelta(minutes=1)
needs_redis = pytest.mark.skipif(not shutil.which("redis-server"), reason="no redis-server here")


class World:
    """A journal, a device, a clock, a runner."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.db = db_at(folder, self.clock)
        self.runs: RunStore = self.db.runs
        self.device = Recorder(folder / "device")
        self.actuators: dict[str, Actuator] = {"recorder": self.device}

    def runner(self, gate: object = allows) -> Runner:
        planner = Planner(self.actuators, self.clock)
        return Runner(self.runs, self.actuators, planner, gate)  # type: ignore[arg-type]

    def start(self, *ids: str, box: timedelta = MINUTE) -> None:
        steps = playbook(deny("one", box=box))
        for id in ids:
            assert self.runs.start(run_of(steps, id, self.clock()))

    def told(self) -> list[str]:
        return [f"{verb} {target.split('/')[0]}" for verb, target, _ in self.device.calls()]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.db.close()


def first(made: Iterator[Change | None], count: int) -> list[str]:
    """The runs of the next transitions."""
    return [change.run.id for change in (next(made) for _ in range(count)) if change]


def test_what_has_ended_is_undone_before_anything_begins_however_much_waits(world):
    world.start("old")
    list(world.runner().work())
    world.clock.turn(minutes=1)
    new = [f"new-{number}" for number in range(30)]
    world.start(*new)
    with world.db._writing() as db:  # they have waited for longer than the old one
        db.execute("UPDATE runs SET wake = made - 3600000000 WHERE id <> 'old'")

    list(world.runner().work())

    assert world.told()[:2] == ["deny old", "allow old"]
    assert set(world.told()[2:]) == {f"deny {one}" for one in new}


def test_an_effect_of_a_run_that_goes_on_is_undone_before_what_begins(world):
    steps = playbook(deny("one", "two", box=MINUTE), deny("two", box=timedelta(hours=1)))
    world.runs.start(run_of(steps, "old", world.clock()))
    made = world.runner().work()
    while "deny old" not in world.told():
        next(made)
    for change in made:  # until it stands before its second step
        assert change is not None
        if any(row.id == "two" for row in change.steps):
            break
    world.clock.turn(minutes=1)
    world.start(*(f"new-{number}" for number in range(30)))

    list(world.runner().work())

    assert world.told()[:2] == ["deny old", "allow old"]


def test_what_a_person_wants_undone_is_next_in_the_middle_of_other_work(world):
    world.start("held", box=timedelta(hours=1))
    list(world.runner().work())
    world.start(*(f"new-{number}" for number in range(30)))
    made = world.runner().work()
    first(made, 5)

    world.runs.order("held", "cancel", "ada", "a mistake")

    assert set(first(made, 2)) == {"held"}
    assert world.told()[-1] == "allow held"


def test_a_worker_of_one_queue_does_its_own_work_and_undoes(world):
    world.start("old")
    list(world.runner().work())
    world.clock.turn(minutes=1)
    world.start("new")

    list(world.runner().work(queues=("notify",)))

    assert world.told() == ["deny old", "allow old"]


def test_a_run_that_cannot_be_read_holds_up_no_other(world, caplog):
    world.start("broken", "whole")
    with world.db._writing() as db:
        db.execute("UPDATE runs SET plan = 'x', wake = wake - 1 WHERE id = 'broken'")

    list(world.runner().work())

    assert world.told() == ["deny whole"]
    assert "Run broken does not go on." in caplog.text


def test_a_run_that_never_could_go_on_is_said_once(world, caplog):
    world.start("broken")
    with world.db._writing() as db:
        db.execute("UPDATE runs SET plan = 'x' WHERE id = 'broken'")
    runner = world.runner()

    for _ in range(3):
        list(runner.work())
        world.clock.turn(minutes=1)

    assert caplog.text.count("Run broken does not go on.") == 1


_CLAIMS = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from tests.playbooks.kit import db_at

now = datetime.fromisoformat(sys.argv[2])
assert db_at(Path(sys.argv[1]), lambda: now).runs.claim("r1", now)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_run_of_a_killed_process_is_gone_on_with_at_once_and_first(world, tmp_path):
    world.start("r1")
    words = [sys.executable, "-c", _CLAIMS, str(tmp_path), world.clock().isoformat()]
    subprocess.run(words, check=False, cwd=Path(__file__).parents[2])
    world.start("r0")

    assert first(world.runner().work(), 1) == ["r1"]


def test_a_run_that_a_living_process_has_is_left_to_it_until_its_lease_is_over(world, tmp_path):
    world.start("r1")
    with closing(db_at(tmp_path, world.clock)) as other:
        assert other.runs.claim("r1", world.clock())
        world.clock.turn(seconds=59)
        assert list(world.runner().work()) == []

        world.clock.turn(seconds=1)

        assert first(world.runner().work(), 1) == ["r1"]


def test_what_is_intended_is_on_the_disk_before_the_device_is_touched(world):
    """A transition that only looked need not be: it is made anew."""
    said: list[str] = []
    world.runs._reading().set_trace_callback(said.append)
    apply = world.device.apply
    world.device.apply = lambda command: said.append("the device") or apply(command)
    world.start("one")

    list(world.runner().work())

    begins = next(place for place, line in enumerate(said) if "INSERT INTO effects" in line)
    acts = said.index("the device")
    commits = [place for place, line in enumerate(said) if line == "COMMIT" and place > begins]
    levels = [line for line in said[:begins] if line.startswith("PRAGMA synchronous")]
    assert levels[-1] == "PRAGMA synchronous = FULL"
    assert commits[0] < acts
    assert "PRAGMA synchronous = NORMAL" not in said[begins : commits[0]]


# ---- A journal that somebody holds


def test_what_was_done_while_the_journal_was_held_is_written_and_not_done_again(world, tmp_path):
    world.start("one", box=timedelta(hours=1))
    apply = world.device.apply

    def act_and_hold(command: Command) -> None:
        apply(command)
        held = threading.Event()
        threading.Thread(target=hold, args=(tmp_path / "node.db", 0.5, held)).start()
        held.wait()
        world.runs._reading().execute("PRAGMA busy_timeout = 50")

    world.device.apply = act_and_hold

    list(world.runner().work())

    assert world.told() == ["deny one"]
    assert [one.effect.state for one in world.runs.in_force()] == ["applied"]


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["node", pytest.param("celery", marks=needs_redis)])
def test_runs_wait_for_a_journal_that_is_held_for_twenty_seconds(
    tmp_path: Path, driver: str
) -> None:
    found = storm(tmp_path, driver, runs=15, kills=0, box_s=5, held_s=20)

    assert found.is_whole, found
    assert found.seconds > 20


# ---- The bell


def test_who_says_something_rings_for_those_who_do_it(world):
    world.runs.bell = lambda *rung: rings.append(rung)
    rings: list[tuple[object, ...]] = []
    steps = playbook(deny("one", box=timedelta(hours=1)))
    world.runs.start(run_of(steps, "r1", world.clock()))
    list(world.runner(approved).work())
    run = world.runs.get("r1")

    world.runs.approve("r1", "ada", "analyst", run.plan.hash)
    list(world.runner(approved).work())
    world.runs.order("r1", "undo", "ada", "our partner")
    world.runs.order("r1", "cancel", "ada", "a mistake")

    assert rings == [("control", 1), ("control", 1), ("rollback", 1), ("rollback", 1)]


def test_a_redis_that_is_not_there_is_left_alone_for_a_while_and_nothing_is_lost(world, caplog):
    world.runs.bell = bell_of(_settings("redis://127.0.0.1:1/0"))

    world.start("one", "two")

    assert caplog.text.count("Nobody was rung for") == 1
    assert set(world.runs.due(world.clock())) == {"one", "two"}


def test_a_password_that_is_not_known_here_is_said_and_workers_look_by_themselves(world, caplog):
    settings = _settings("redis://127.0.0.1:1/0", secret="REDIS_PASSWORD")
    world.runs.bell = bell_of(settings, {})

    world.start("one")

    assert "REDIS_PASSWORD is not set" in caplog.text


@needs_redis
def test_a_redis_that_takes_the_connection_and_says_nothing_holds_up_nobody(tmp_path: Path):
    with redis_at(tmp_path) as redis:
        bell = bell_of(_settings(redis.url))
        assert bell is not None
        assert bell("control", 8)
        assert redis.process is not None
        redis.process.send_signal(signal.SIGSTOP)

        assert not bell("control", 8)


@pytest.mark.parametrize("redis", ["", "redis://127.0.0.1:1/0"])
def test_console_commands_and_path_all_ring_where_a_redis_is_named(tmp_path: Path, redis: str):
    settings = msgspec.structs.replace(_settings(redis), state_dir=str(tmp_path))

    with closing(db_of(settings, from_settings(settings), now_utc)) as db:
        assert (db.runs.bell is not None) == bool(redis)


@pytest.mark.slow
@needs_redis
def test_what_a_person_says_reaches_a_worker_that_never_looks_by_itself(tmp_path: Path) -> None:
    with redis_at(tmp_path) as redis, closing(journal_at(tmp_path)) as db:
        workers = Workers(tmp_path, "deaf", redis.url, 1)
        workers.tend()
        db.runs.bell = bell_of(_settings(redis.url))
        try:
            db.runs.start(run_of(book(3600), "r1", db.runs.now()))
            _until(lambda: len(db.runs.in_force()) == 3)
            db.runs.order("r1", "cancel", "ada", "a mistake")
            _until(lambda: not db.runs.in_force())
        finally:
            workers.end()


def _until(is_so: Callable[[], bool], within_s: float = PATIENCE_S) -> None:
    ends_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < ends_s, "it never came about"
        time.sleep(0.05)


def _settings(redis: str, secret: str = "") -> Settings:
    return Settings(response=ResponseSettings(on=True, redis=redis, redis_secret_env=secret))
