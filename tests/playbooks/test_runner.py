"""The runner: one transition at a time, whatever happens in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import Actuator, Command, InputError, Target, TransientError, Unsafe
from playbooks.journal import RUN_ENDS, Change, Overtaken, Run
from playbooks.model import Action, Check, Planned, Step
from playbooks.runner import KEEP_EVERY_S, Runner
from siem.store.embedded import NodeDb
from siem.store.runs import RunStore
from tests.playbooks.kit import (
    ALLOW,
    NOON,
    Clock,
    Planner,
    allows,
    approved,
    db_at,
    deny,
    playbook,
    run_of,
)
from tests.playbooks.recorder import Recorder


class World:
    """A journal, a device, and a clock turned by hand."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.db: NodeDb = db_at(folder, self.clock)
        self.runs: RunStore = self.db.runs
        self.device = Recorder(folder / "device")
        self.actuators: dict[str, Actuator] = {"recorder": self.device}

    def runner(self, gate: Any = allows) -> Runner:
        return Runner(self.runs, self.actuators, Planner(self.actuators, self.clock), gate)

    def start(self, *steps: Step, id: str = "r1", **said: Any) -> str:
        book = playbook(*steps, **{k: said.pop(k) for k in ("start", "stage") if k in said})
        assert self.runs.start(run_of(book, id, self.clock(), **said))
        return id

    def go(self, run: str = "r1", gate: Any = allows, most: int = 60) -> Run:
        """Advance until nothing is due."""
        runner = self.runner(gate)
        for _ in range(most):
            if run not in self.runs.due(self.clock()):
                break
            runner.advance(run)
        return self.now(run)

    def now(self, run: str = "r1") -> Run:
        found = self.runs.get(run)
        assert found is not None
        return found

    def states(self, run: str = "r1") -> dict[str, str]:
        return {row.id: row.state for row in self.now(run).steps}

    def said(self, kind: str, run: str = "r1") -> list[str]:
        return [one.what for one in self.runs.history(run) if one.kind == kind]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.db.close()


def test_an_effect_is_applied_read_back_and_undone_when_its_time_is_over(world):
    world.start(deny("block"))

    run = world.go()
    assert (run.state, world.states()) == ("waiting", {"block": "verified", "end": "done"})
    assert world.device.denied() == {"r1/block"}

    world.clock.turn(minutes=61)
    run = world.go()
    assert (run.state, world.states()) == ("done", {"block": "rolled_back", "end": "done"})
    assert world.device.denied() == set()
    assert [call[0] for call in world.device.calls()] == ["deny", "allow"]


def test_a_step_passes_every_state_in_order(world):
    world.start(deny("block"))
    world.go()
    world.clock.turn(minutes=61)
    world.go()

    said = [one.what for one in world.runs.history("r1") if one.about == "block"]

    assert said == ["gated", "intended", "applied", "verified", "rolling_back", "rolled_back"]


def test_what_is_so_already_is_not_done_again_nor_undone(world):
    world.device.apply(next(world.device.plan("deny", Target("ipv4_net", "r1/block"), NOON)))
    world.start(deny("block"))

    run = world.go()

    assert run.state == "done"
    assert len(world.device.calls()) == 1


def test_a_denied_step_takes_the_way_of_failure_and_says_why(world):
    def gate(run: Run, planned: Planned) -> Sequence[Check]:
        return (Check(5, "untouchable", "deny", "it is a controller"),)

    world.start(deny("block", on_failure="tell"), _end("tell"))

    run = world.go(gate=gate)

    assert (run.state, world.states()) == ("denied", {"block": "denied", "tell": "done"})
    assert (
        "block: cityward does not do this itself:\n- it is a controller\n"
        in (world.said("refused")[0])
    )
    assert world.device.calls() == []


@pytest.mark.parametrize(
    "name", ["global", "operator:op-1", "playbook:playbook--1", "actuator:recorder"]
)
def test_each_switch_stops_what_it_names_whatever_the_gate_says(world, name):
    world.start(deny("block"))
    world.start(deny("block"), id="r2")
    world.runs.switch("actuator:other", "ada", "another", on=True)
    assert world.go("r2").state == "waiting"
    world.runs.switch(name, "ada", "wrong target", on=True)

    assert world.go().state == "denied"

    assert world.device.denied() == {"r2/block"}


def test_a_denial_says_what_a_person_does_instead(world):
    def kept(run: Run, planned: Planned) -> Sequence[Check]:
        return (Check(4, "known target", "deny", "it is on the keep list."),)

    world.start(deny("block"))

    run = world.go(gate=kept)

    said = (
        "cityward does not do this itself:\n- it is on the keep list.\nBy hand: block r1/block.\n"
        "Take it back by 2026-03-02 13:00 UTC."
    )
    assert world.said("refused") == [f"block: {said}"]
    assert next(row.planned.manual for row in run.steps if row.id == "block") == said


def test_a_target_that_is_none_is_refused_in_words(world):
    def none(run: Run, step: Step) -> Planned:
        raise Unsafe("'x; reboot' is no plain name", "target device", "Act by hand.")

    world.start(deny("block"))
    runner = Runner(world.runs, world.actuators, none, allows)
    while world.now().state not in RUN_ENDS:
        runner.advance("r1")

    assert world.said("refused") == ["block: 'x; reboot' is no plain name. Act by hand."]


def test_the_gate_is_asked_again_directly_before_the_effect(world):
    asked = []

    def gate(run: Run, planned: Planned) -> Sequence[Check]:
        asked.append(run.steps[0].state)
        outcome = "deny" if len(asked) > 1 else "allow"
        return (Check(8, "blast", outcome, "its peer went down"),)

    world.start(deny("block"))

    run = world.go(gate=gate)

    assert asked == ["gated", "intended"]
    assert run.state == "denied" or world.states()["block"] == "rolled_back"
    assert world.device.calls() == []


def test_a_kill_switch_stops_effects_and_not_their_end(world):
    world.start(deny("block"))
    world.start(deny("block"), id="r2")
    world.go("r1")
    world.runs.switch("global", "ada", "exercise", on=True)

    world.go("r2")
    world.clock.turn(minutes=61)
    world.go("r1")

    assert world.now("r2").state == "denied"
    assert world.device.denied() == set()
    assert [call[:2] for call in world.device.calls()] == [
        ("deny", "r1/block"),
        ("allow", "r1/block"),
    ]


def test_a_stop_file_stops_as_a_switch_does(world, tmp_path):
    world.runs.stop_file = tmp_path / "STOP"
    world.runs.stop_file.touch()
    world.start(deny("block"))

    assert world.go().state == "denied"
    assert world.device.calls() == []


@pytest.mark.parametrize("stage", ["draft", "shadow"])
def test_a_playbook_in_shadow_plans_and_holds_back(world, stage):
    world.start(deny("block"), stage=stage)

    run = world.go()

    assert (run.state, run.steps[0].note) == ("done", f"held back: {stage}")
    assert run.steps[0].planned is not None
    assert world.device.calls() == []


def test_a_run_waits_for_a_person_and_goes_on_when_one_says_yes(world):
    world.start(deny("block"))
    run = world.go(gate=approved)
    assert (run.state, world.states()["block"]) == ("waiting", "waiting_approval")
    assert world.device.calls() == []

    assert world.runs.approve("r1", "ada", "analyst", run.plan.hash)
    world.clock.turn(minutes=3)
    world.go(gate=approved)

    assert world.device.denied() == {"r1/block"}


def test_nobody_approves_their_own_request(world):
    world.start(deny("block"), asked_by="ada")
    run = world.go(gate=approved)

    with pytest.raises(InputError):
        world.runs.approve("r1", "ada", "analyst", run.plan.hash)


def test_an_approval_is_void_when_the_world_changed_the_plan(world):
    world.start(deny("block"))
    run = world.go(gate=approved)
    planner = Planner(world.actuators, world.clock)
    runner = Runner(
        world.runs,
        world.actuators,
        lambda run, step: msgspec.structs.replace(planner(run, step), prior={"denied": None}),
        approved,
    )
    world.runs.approve("r1", "ada", "analyst", run.plan.hash)

    for _ in range(6):
        runner.advance("r1")

    assert world.states()["block"] == "waiting_approval"
    assert world.now().plan.hash != run.plan.hash
    assert world.device.calls() == []


def test_nobody_approving_in_time_is_a_failure(world):
    world.start(deny("block"))
    world.go(gate=approved)

    world.clock.turn(minutes=16)

    assert world.go(gate=approved).state == "failed"
    assert world.states()["block"] == "expired"


def test_a_cancelled_run_undoes_what_it_did(world):
    world.start(deny("one", "two"), deny("two"))
    runner = world.runner()
    while world.states().get("two") != "intended":
        runner.advance("r1")

    assert world.runs.order("r1", "cancel", "ada", "a mistake")
    run = world.go()

    assert run.state == "cancelled"
    assert world.device.denied() == set()
    assert not world.runs.order("r1", "cancel", "ada", "again")


def test_a_person_undoes_one_effect_and_the_other_holds(world):
    world.start(deny("one", "two"), deny("two"))
    run = world.go()

    world.runs.order("r1", "undo", "ada", "our partner", about=run.effects[0].key)
    world.go()

    assert len(world.device.denied()) == 1
    assert [one.effect.state for one in world.runs.in_force()] == ["applied"]


def test_an_effect_that_cannot_be_undone_pages_a_person_with_the_steps(world):
    world.start(deny("block"))
    world.go()
    world.device.failing = {"allow"}
    world.clock.turn(minutes=61)
    for _ in range(8):
        world.go()
        world.clock.turn(minutes=2)
    (page,) = world.said("page")
    assert "r1/block" in page
    assert '{"denied":false}' in page

    world.device.failing = set()
    run = world.go()

    assert run.state == "done"
    assert world.device.denied() == set()


def test_an_effect_that_held_for_longer_than_it_should_is_undone_and_told_of(world):
    world.start(deny("block"))
    world.start(deny("block"), id="r2")
    world.go()
    world.go("r2")
    world.clock.turn(minutes=64)
    world.go("r2")

    world.clock.turn(minutes=30)  # nobody looked
    run = world.go()

    assert (run.state, world.device.denied()) == ("done", set())
    assert world.said("page") == [
        "deny of r1/block by recorder held until now, and should have ended at"
        " 2026-03-02 13:00 UTC. It is undone; see why nothing did so."
    ]
    assert world.said("page", "r2") == []


def test_a_device_that_does_not_answer_is_tried_until_the_deadline(world):
    world.device.failing = {"deny"}
    world.start(deny("block"))
    world.go()
    world.clock.turn(seconds=2)
    world.device.failing = set()
    world.go()
    assert world.device.denied() == {"r1/block"}

    world.device.failing = {"deny"}
    world.start(deny("block"), id="r2")
    for _ in range(20):
        world.go("r2")
        world.clock.turn(seconds=30)
    assert world.now("r2").state == "failed"
    assert "r2/block" not in world.device.denied()


def test_two_runs_on_one_target_end_with_the_later(world):
    world.start(deny("block"))
    world.start(deny("block", actuator="twin"), id="r2")
    world.actuators["twin"] = _Always(world.device)
    world.go("r1")
    world.clock.turn(minutes=30)
    # The second wants it to go on for longer: the device is told again.
    book = playbook(deny("again", actuator="recorder"))
    run = run_of(book, "r3", world.clock())
    plan = msgspec.structs.replace(run.plan, variables={"address": "r1"})
    steps = {**book.steps, "again": _aimed(book.steps["again"], "r1/block")}
    book = msgspec.structs.replace(book, steps=steps)
    world.runs.start(msgspec.structs.replace(run, plan=plan, playbook=book))
    world.actuators["recorder"] = _Always(world.device)
    world.go("r3")

    world.clock.turn(minutes=31)
    world.go("r1")
    assert world.now("r1").state == "done"
    assert "r1/block" in world.device.denied()

    world.clock.turn(minutes=30)
    world.go("r3")
    assert "r1/block" not in world.device.denied()


def test_a_runner_that_was_overtaken_writes_nothing(world):
    world.start(deny("block"))
    slow = world.runs.claim("r1", world.clock())
    assert slow is not None
    assert world.runs.claim("r1", world.clock()) is None
    world.clock.turn(seconds=61)
    assert world.runs.claim("r1", world.clock()) is not None

    from playbooks.journal import Change

    with pytest.raises(Overtaken):
        world.runs.record(Change(run=slow))


def test_a_thread_that_was_overtaken_does_not_let_go_of_what_another_has(world, tmp_path):
    world.start(deny("block"))
    slow = world.runs.claim("r1", world.clock())
    world.clock.turn(seconds=61)
    assert world.runs.claim("r1", world.clock())
    with pytest.raises(Overtaken):
        world.runs.record(Change(run=slow))

    other = db_at(tmp_path, world.clock)
    assert other.runs.claim("r1", world.clock()) is None
    other.close()


def test_a_journal_that_says_no_at_once_is_asked_now_and_then(world, monkeypatch):
    asked, record = [], world.runs.record

    def full(change: Change) -> None:
        asked.append(change)
        if len(asked) < 3:
            raise TransientError("the disk is full", "node.db")
        record(change)

    slept: list[float] = []
    monkeypatch.setattr("playbooks.runner.time.sleep", slept.append)
    monkeypatch.setattr(world.runs, "record", full)
    world.start(deny("block"))

    assert world.runner().advance("r1") is not None

    assert len(asked) == 3
    assert slept == [KEEP_EVERY_S] * 2


def test_a_lower_token_than_the_last_at_a_target_is_refused(world):
    target = Target("ipv4_net", "192.0.2.7")
    with world.runs.turn("recorder", target, 7):
        pass

    with pytest.raises(Overtaken), world.runs.turn("recorder", target, 6):
        pass


def test_a_clock_that_was_set_back_holds_up_no_run(world):
    world.start(deny("block"))
    assert world.runs.claim("r1", world.clock() + timedelta(hours=1)) is not None

    assert world.runs.claim("r1", world.clock()) is not None


def test_the_time_of_the_journal_does_not_step_with_the_clock(world):
    world.runs.is_steady = True
    world.start(deny("block"))
    before = world.runs.now()

    world.clock.turn(hours=-1)
    behind = world.runs.now()
    world.clock.turn(hours=2)
    ahead = world.runs.now()

    assert timedelta() <= behind - before < timedelta(seconds=5)
    assert timedelta() <= ahead - before < timedelta(seconds=5)


def test_a_stop_leaves_people_free_to_act(world):
    manual = Step(
        id="call", name="call", type="action", action=Action(actuator="manual"),
        on_completion="end",
    )  # fmt: skip
    world.runs.switch("global", "ada", "too much at once", on=True)
    world.start(manual)

    assert world.go("r1").state == "waiting"
    assert world.said("page", "r1") == ["Do it."]


def test_a_manual_step_waits_for_an_answer_and_says_so_when_there_is_none(world):
    manual = Step(
        id="call", name="call", type="action", action=Action(actuator="manual"),
        on_completion="end",
    )  # fmt: skip
    world.start(manual)
    world.start(manual, id="r2")
    assert world.go("r1").state == "waiting"
    world.go("r2")

    world.runs.order("r1", "answer", "ada", "done: they know", about="call")
    assert world.go("r1").state == "done"
    world.clock.turn(minutes=6)
    assert world.go("r2").state == "failed"
    assert world.said("page", "r2") == ["Do it.", "not done in time: Do it."]


def test_parallel_steps_join_when_all_have_ended(world):
    both = Step(
        id="both", name="both", type="parallel", next_steps=("one", "two"), on_completion="last"
    )
    world.start(both, deny("one"), deny("two"), deny("last"))

    world.go()

    assert world.states()["both"] == "done"
    assert world.device.denied() == {"r1/one", "r1/two", "r1/last"}
    assert world.device.calls()[-1][1] == "r1/last"


@pytest.mark.parametrize(("address", "way"), [("r1", "one"), ("r2", "two")])
def test_a_condition_chooses_the_way(world, address, way):
    ask = Step(
        id="ask", name="ask", type="if-condition", when={"address": "r1"}, on_true="one",
        on_false="two",
    )  # fmt: skip
    world.start(ask, deny("one"), deny("two"), id=address)

    world.go(address)

    assert world.device.denied() == {f"{address}/{way}"}


def test_a_loop_ends_after_its_rounds(world):
    loop = Step(
        id="loop", name="loop", type="while-condition", when={"address": "r1"}, on_true="one",
        rounds_max=3, on_completion="end",
    )  # fmt: skip
    world.start(loop, deny("one"))

    world.go()

    assert world.states()["loop"] == "failed"
    assert {"one", "one#2", "one#3"} <= set(world.states())
    assert "one#4" not in world.states()


def test_a_run_that_does_not_end_asks_a_person_within_twice_its_time(world):
    both = Step(id="both", name="both", type="parallel", next_steps=("one",), on_completion="end")
    world.start(both, deny("one"))
    run = world.now()
    world.device.failing = {"deny", "allow"}
    world.runner().advance("r1")

    world.clock.turn(seconds=2 * (run.deadline - run.made).total_seconds() + 1)
    run = world.go()

    assert run.state in RUN_ENDS or world.said("page")


def test_a_leased_effect_is_renewed_and_the_device_is_told_of_little_at_a_time(world):
    world.start(deny("block", by="lease"))
    run = world.go()
    assert run.effects[0].command.until == NOON + timedelta(minutes=10)

    world.clock.turn(minutes=3)
    run = world.go()

    assert run.effects[0].command.until == NOON + timedelta(minutes=13)
    assert run.effects[0].until == NOON + timedelta(hours=1)


def test_a_leased_effect_that_somebody_took_back_at_the_device_does_not_come_back(world):
    world.start(deny("block", by="lease"))
    world.go()
    world.device.apply(Command("allow", Target("ipv4_net", "r1/block"), "deny", NOON))

    world.clock.turn(minutes=3)
    run = world.go()

    assert run.state == "done"
    assert (run.effects[0].state, world.device.denied()) == ("rolled_back", set())
    assert [call[0] for call in world.device.calls()] == ["deny", "allow"]


@pytest.mark.parametrize("by_key", [True, False])
def test_what_a_person_wants_undone_while_it_is_being_done_is_undone(world, by_key):
    world.start(deny("block"))
    while world.states() != {"block": "intended"}:
        world.runner().advance("r1")
    (effect,) = world.now().effects

    def gate(run: Run, planned: Planned) -> Sequence[Check]:
        world.clock.turn(seconds=1)
        assert world.runs.order("r1", "undo", "ada", "a partner", effect.key if by_key else "")
        world.clock.turn(seconds=1)
        return (ALLOW,)

    world.runner(gate).advance("r1")
    assert world.device.denied() == {"r1/block"}

    assert world.go().effects[0].state == "rolled_back"
    assert world.device.denied() == set()


def test_a_yes_is_not_lost_to_a_device_that_does_not_answer_for_a_moment(world):
    world.start(deny("block"))
    run = world.go(gate=approved)
    world.runs.approve("r1", "ada", "analyst", run.plan.hash)
    away = _Away(world.device, TransientError("busy", "recorder"))
    world.actuators["recorder"] = away
    world.go(gate=approved)
    assert world.states() == {"block": "waiting_approval"}

    world.actuators["recorder"] = world.device
    world.clock.turn(seconds=5)
    world.go(gate=approved)

    assert world.states()["block"] == "verified"


def test_what_its_actuator_refuses_after_the_yes_is_denied_in_words(world):
    world.start(deny("block"))
    run = world.go(gate=approved)
    world.runs.approve("r1", "ada", "analyst", run.plan.hash)
    world.actuators["recorder"] = _Away(world.device, Unsafe("it charges somebody", "r", "Wait."))

    run = world.go(gate=approved)

    assert (run.state, world.states()["block"]) == ("denied", "denied")
    assert "it charges somebody" in world.said("refused")[0]


def test_who_was_overtaken_at_a_target_undoes_a_moment_later(world):
    world.start(deny("block"))
    world.go()
    target = world.now().effects[0].command.target
    token = world.now().token
    with world.runs.turn("recorder", target, token + 3):
        pass  # a run that was claimed later was here before
    world.runs.order("r1", "undo", "ada", "a partner")

    run = world.go()
    assert run.effects[0].state == "rolling_back"
    world.clock.turn(seconds=2)

    assert world.go().effects[0].state == "rolled_back"


def test_what_people_do_stands_in_the_audit_trail(world):
    world.start(deny("block"), asked_by="bob")
    run = world.go(gate=approved)
    world.runs.approve("r1", "ada", "analyst", run.plan.hash)
    world.runs.order("r1", "cancel", "ada", "a mistake")
    world.runs.switch("global", "ada", "exercise", on=True)

    said = [(one.by, one.action) for one in world.db.audited(10)]

    assert said == [
        ("ada", "response: stopped"),
        ("ada", "response: cancel"),
        ("ada", "response: approved"),
        ("bob", "response: started"),
    ]


class _Away:
    """A device that cannot plan."""

    def __init__(self, device: Recorder, error: Exception) -> None:
        self.device = device
        self.error = error

    def plan(self, verb: str, target: Target, until: Any) -> Iterator[Any]:
        raise self.error

    def apply(self, command: Any) -> None:
        self.device.apply(command)

    def probe(self, target: Target) -> Any:
        return self.device.probe(target)


class _Always:
    """A device that is told again although it holds, as one that is given more time."""

    def __init__(self, device: Recorder) -> None:
        self.device = device

    def plan(self, verb: str, target: Target, until: Any) -> Iterator[Any]:
        yield Command(verb, target, "allow", until, prior={"denied": True})

    def apply(self, command: Any) -> None:
        self.device.apply(command)

    def probe(self, target: Target) -> Any:
        return self.device.probe(target)


def _aimed(step: Step, value: str) -> Step:
    assert step.action is not None
    action = msgspec.structs.replace(step.action, target={"type": "ipv4_net", "value": value})
    return msgspec.structs.replace(step, action=action)


def _end(name: str) -> Step:
    return Step(id=name, name=name, type="end")
