"""Findings start runs, and runs go on beside the path."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward import Actuator, Command, Target, TransientError
from playbooks.model import Plan, Playbook
from playbooks.runner import Runner
from siem import config
from siem.actuators import actuators_of
from siem.refusals import ResponseWatch
from siem.response import Response, response_of, run_id
from siem.store.protocol import Document
from tests.playbooks.kit import (
    Clock,
    Planner,
    Shelf,
    allows,
    db_at,
    deny,
    finding_of,
    playbook,
    run_of,
)
from tests.playbooks.recorder import Recorder
from tests.playbooks.storm import hold
from tests.programs import PATIENCE_S, wait_until


class Node:
    """A node's state with a driver that is turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.db = db_at(folder, self.clock)
        self.device = Recorder(folder / "device")
        actuators: dict[str, Actuator] = {"recorder": self.device}
        planner = Planner(actuators, self.db.runs.now)
        self.runner = Runner(self.db.runs, actuators, planner, allows)
        self.rung: list[tuple[str, int]] = []
        self.response = self.driver(playbook(deny("block")))

    def driver(self, book: Playbook, *, bell: bool = False) -> Response:
        self.db.runs.bell = (lambda *rung: self.rung.append(rung)) if bell else None
        shelf: Any = Shelf(self.db, book)
        made = Response(self.db, shelf, self.runner, self.runner)
        made.begin()
        return made

    def find(self, rule: str, times: int = 1) -> None:
        one = finding_of(rule, self.clock())
        self.db.keep([one] * times, self.db.checkpoint()[0] + 1)

    def turn(self, most: int = 40) -> None:
        for _ in range(most):
            if not self.response.turn():
                return


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.db.close()


def test_a_finding_starts_a_run_and_the_node_goes_on_with_it(node):
    node.find("a")

    node.turn()

    (run,) = node.db.runs.all()
    assert (run.state, run.finding["rule.id"]) == ("waiting", "a")
    assert node.device.denied() == {"a/block"}


def test_a_finding_that_grows_starts_nothing_again(node):
    node.find("a")
    node.turn()
    node.clock.turn(hours=2)
    node.turn()

    node.find("a")
    node.turn()

    assert len(node.db.runs.all()) == 1


def test_findings_of_before_the_first_start_start_nothing(tmp_path):
    node = Node(tmp_path)
    node.db.keep_setting("response_changes", b"0")
    node.find("old")
    with node.db._writing() as db:
        db.execute("DELETE FROM settings WHERE name = 'response_changes'")
    node.response.begin()

    node.turn()

    assert node.db.runs.all() == []
    node.db.close()


def test_a_killed_driver_has_missed_no_finding(node):
    node.find("a")
    node.find("b")
    fresh = node.driver(playbook(deny("block")))

    while fresh.turn():
        pass

    assert node.device.denied() == {"a/block", "b/block"}


def test_a_finding_waits_for_a_journal_that_somebody_holds(node, tmp_path):
    node.find("a")
    node.db.runs._reading().execute("PRAGMA busy_timeout = 50")
    held, over = threading.Event(), threading.Event()
    holder = threading.Thread(target=hold, args=(tmp_path / "node.db", PATIENCE_S, held, over))
    holder.start()
    held.wait()
    try:
        with pytest.raises(TransientError):
            node.turn()
    finally:
        over.set()
    holder.join()

    node.turn()

    assert node.device.denied() == {"a/block"}


def test_while_nothing_can_begin_what_has_begun_goes_on(node):
    def is_away(book: Playbook, finding: Document) -> Plan:
        raise TransientError("the event store does not answer", "cluster")

    assert node.db.runs.start(run_of(playbook(deny("block")), "r1", node.clock()))
    node.response._shelf.plan = is_away
    node.find("a")

    for _ in range(3):
        with pytest.raises(TransientError):
            node.response.turn()

    assert node.device.denied() == {"r1/block"}


def test_what_acts_for_a_time_goes_by_the_clock_of_the_journal(tmp_path):
    file = tmp_path / "cityward.toml"
    file.write_text(f"[response.actuators.simulator]\nfile = '{tmp_path}/denied'\n")
    clock, address = Clock(), Target("ipv4_net", "192.0.2.7")
    device = actuators_of(config.load(file), clock=clock)["simulator"]
    device.apply(Command("deny", address, "allow", clock() + timedelta(minutes=10)))

    clock.turn(minutes=9)
    assert device.probe(address).is_applied
    clock.turn(minutes=2)
    assert not device.probe(address).is_applied


def test_a_plan_that_breaks_holds_up_no_other_finding(node, caplog):
    def breaks(book: Playbook, finding: Document) -> Plan:
        if finding["rule.id"] == "a":
            raise ValueError("a stranger's actuator")
        return plan(book, finding)

    plan = node.response._shelf.plan
    node.response._shelf.plan = breaks
    node.find("a")
    node.find("b")

    node.turn()

    assert node.device.denied() == {"b/block"}
    assert "Playbook block did not start." in caplog.text


def test_a_playbook_runs_no_more_often_than_it_may(node):
    for number in range(6):
        node.find(f"rule-{number}")

    node.turn()

    assert len(node.db.runs.all()) == 3


def test_a_playbook_in_shadow_plans_for_findings_and_does_nothing(node):
    node.response = node.driver(playbook(deny("block"), stage="shadow"))
    node.find("a")

    node.turn()

    (run,) = node.db.runs.all()
    assert run.state == "done"
    assert node.device.calls() == []


def test_with_workers_elsewhere_the_node_rings_and_goes_on_with_what_is_late(node):
    node.response = node.driver(playbook(deny("block")), bell=True)
    node.find("a")
    node.turn()
    assert node.rung == [("control", 1)]
    assert node.device.calls() == []

    for _ in range(12):
        node.clock.turn(seconds=16)
        node.turn()

    assert node.device.denied() == {"a/block"}


def test_the_driver_runs_in_a_thread_of_its_own_and_ends(node):
    node.response.start()
    node.find("a")
    wait_until(node.device.denied)

    node.response.stop()

    assert node.device.denied() == {"a/block"}
    assert not {"response", "undoing"} & {one.name for one in threading.enumerate()}


def test_a_refused_step_is_a_finding(node):
    book = playbook(deny("block"))
    node.db.runs.start(run_of(book, "r1", node.clock()))
    node.db.runs.switch("global", "ada", "exercise", on=True)
    node.turn()
    watch = ResponseWatch(node.db.runs)

    (found,) = watch.tick(node.clock())

    assert (found.title, found.type) == ("block: a step was refused", "response")
    assert "stopped: global" in found.description
    assert "By hand: block r1/block." in found.description
    again = ResponseWatch(node.db.runs)
    again.restore(watch.snapshot())
    assert list(again.tick(node.clock())) == []


def test_the_id_of_a_run_is_of_its_playbook_and_finding():
    book = playbook(deny("block"))

    assert run_id(book, {"finding.id": "a"}) != run_id(book, {"finding.id": "b"})


def test_what_is_in_force_is_undone_though_responses_were_switched_off(node):
    node.find("a")
    node.turn()
    assert node.device.denied() == {"a/block"}
    node.find("b")
    shelf: Any = Shelf(node.db, playbook(deny("block")))
    off = Response(node.db, shelf, node.runner, node.runner, is_on=False)

    off.start()
    node.clock.turn(hours=2)
    wait_until(lambda: node.device.denied() == set())
    off.stop()

    (run,) = node.db.runs.all()
    assert run.finding["rule.id"] == "a"
    assert node.db.runs.in_force() == []


def test_a_node_whose_responses_are_off_has_a_driver_only_while_something_is_in_force(
    node, tmp_path
):
    settings = config.Settings(state_dir=str(tmp_path))
    assert response_of(settings, node.db, None) is None  # type: ignore[arg-type]
    node.find("a")
    node.turn()

    made = response_of(settings, node.db, None)  # type: ignore[arg-type]

    assert made is not None
    assert made._is_on is False
