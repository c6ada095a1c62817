"""What the journal tells the gate: how often, what holds, whether a breaker is open."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from cityward import Target
from playbooks.journal import Run
from playbooks.runner import Runner
from playbooks.safety import is_breaker_open
from siem.store.embedded import NodeDb
from tests.playbooks.kit import NOON, Clock, Planner, allows, db_at, deny, playbook, run_of
from tests.playbooks.recorder import Recorder

HOUR = timedelta(hours=1)


class Place:
    """A journal, a device, and a runner between them."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.db: NodeDb = db_at(folder, self.clock)
        self.device = Recorder(folder / "device.db")
        actuators = {"recorder": self.device}
        self.runner = Runner(self.db.runs, actuators, Planner(actuators, self.clock), allows)

    def go(self, id: str, turns: int = 12) -> Run:
        """Start a run and let it go on."""
        book = playbook(deny("a", box=HOUR))
        self.db.runs.start(run_of(book, id, self.clock.now))
        self.turn(id, turns)
        found = self.db.runs.get(id)
        assert found is not None
        return found

    def turn(self, id: str, turns: int = 12) -> None:
        for _ in range(turns):
            self.runner.advance(id)
            self.clock.turn(seconds=2)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.db.close()


def test_runs_and_commands_are_counted_without_the_run_that_asks(place):
    first, second = place.go("10.1"), place.go("10.2")
    rows = place.db.runs
    target = first.effects[0].command.target

    assert rows.runs_but("playbook--1", NOON, "") == 2
    assert rows.runs_but("playbook--1", NOON, first.id) == 1
    assert rows.runs_but("playbook--1", place.clock.now, "") == 0
    assert rows.open_but("playbook--1", second.id) == 1
    assert rows.commands_since("recorder", NOON) == 2
    assert rows.commands_since("nftables", NOON) == 0
    assert rows.last_command("playbook--1", target, "") == first.effects[0].began
    assert rows.last_command("playbook--1", target, first.id) is None
    assert rows.last_command("playbook--1", Target("ipv4_net", "192.0.2.1"), "") is None


def test_what_holds_is_told_without_the_run_that_asks(place):
    first, second = place.go("10.1"), place.go("10.2")
    held = [run.effects[0].command.target for run in (first, second)]
    rows = place.db.runs

    assert sorted(one.value for one in rows.targets_but("")) == sorted(one.value for one in held)
    assert rows.targets_but(first.id) == [held[1]]
    place.clock.turn(hours=2)
    place.turn(first.id)
    assert rows.targets_but("") == [held[1]]


def test_rollbacks_by_people_open_the_breaker_and_a_person_closes_it(place):
    rows = place.db.runs
    for id in ("10.1", "10.2"):
        place.go(id)
        rows.order(id, "undo", "ada", "the partner called")

    for id in ("10.1", "10.2"):
        place.turn(id)
    assert len(rows.rollbacks("recorder")) == 2
    assert rows.failures("recorder") == []
    assert rows.rollbacks("nftables") == []
    assert is_breaker_open(rows.failures("recorder"), rows.rollbacks("recorder"))
    place.clock.turn(hours=30)
    assert is_breaker_open(rows.failures("recorder"), rows.rollbacks("recorder"))

    rows.close_breaker("recorder", "ada", "it was the partner's fault")

    assert rows.rollbacks("recorder") == []
    assert any("breaker closed" in str(line) for line in place.db.audited())


def test_failures_of_an_actuator_are_told_with_their_time(place):
    place.device.failing.add("deny")
    failed = place.go("10.1", 200)

    times = place.db.runs.failures("recorder")

    assert [one.state for one in failed.steps if one.step == "a"] == ["rolled_back"]
    assert len(times) == 1
    assert NOON < times[0] <= place.clock.now
    assert place.db.runs.failures("nftables") == []
    place.db.runs.close_breaker("recorder", "ada", "mended")
    assert place.db.runs.failures("recorder") == []
