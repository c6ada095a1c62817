"""The hub proposes, the operator decides: proposals, plans and answers, end to end."""

from __future__ import annotations

from pathlib import Path

from tests.playbooks.kit import Clock
from tests.siem.sharing.proposing import WAY, told_twice


def test_a_person_of_the_city_proposes_and_each_operator_decides_for_itself(
    tmp_path: Path,
) -> None:
    city, metro, grid = told_twice(tmp_path, Clock(), "op-metro", "op-grid")
    city.propose("op-metro", "op-grid")
    for node in (metro, grid):
        node.round()

    assert city.answers() == dict.fromkeys(("op-metro", "op-grid"), "Planned, waits for its people")
    assert metro.device.calls() == grid.device.calls() == []
    (run,) = metro.db.runs.all()
    assert (run.asked_by, run.stage, run.playbook.stage) == ("city: ciso", *["approve_all"] * 2)
    assert metro.one.run == run.id

    assert metro.yes()
    metro.round()
    assert metro.device.denied() == {"203.0.113.9/block"}
    assert city.answers()["op-metro"] == "Applied"
    assert grid.device.calls() == []

    city.clock.turn(hours=1, minutes=1)
    metro.round()
    assert metro.device.denied() == set()
    assert city.answers()["op-metro"] == "Undone, as planned or by its people"


def test_the_hub_proposes_by_itself_where_its_settings_say_so(tmp_path: Path) -> None:
    city, metro, grid = told_twice(tmp_path, Clock(), "op-metro", "op-grid", by_itself=WAY)

    for node in (metro, grid):
        node.round()

    assert metro.one.said.by == "hub"
    assert city.answers() == dict.fromkeys(("op-metro", "op-grid"), "Planned, waits for its people")
