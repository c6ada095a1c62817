"""A playbook that calls another: one plan, one run, undone together; never in a circle."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from playbooks import playbook
from playbooks.calls import DEPTH_MAX, linked
from playbooks.model import Playbook, Step
from playbooks.plan import plan
from playbooks.safety import gate
from siem.store.stages import Staged, staged
from tests.playbooks import kit
from tests.playbooks.test_playbook import KNOWN, line_of
from tests.playbooks.test_runner import World as Device
from tests.playbooks.world import NOW, World, action, actuators, finding
from tests.playbooks.world import playbook as playbook_of

FILE = """\
name: {name}
description: Calls.
created_by: night shift
created: 2026-11-28
workflow_exception: end
workflow:
  start: {{type: start, on_completion: {first}}}
{steps}
  end: {{type: end}}
"""
CALL = "  {step}: {{type: playbook-action, playbook_id: {called}, on_completion: {then}}}"


def write(folder: Path, name: str, *called: str) -> Path:
    """A playbook that calls others one after another."""
    steps = [f"call-{number}" for number in range(len(called))]
    lines = [
        CALL.format(step=step, called=other, then=then)
        for step, other, then in zip(steps, called, [*steps[1:], "end"], strict=False)
    ]
    path = folder / f"{name}.yml"
    first = (*steps, "end")[0]
    path.write_text(FILE.format(name=name, first=first, steps="\n".join(lines) or "# calls none"))
    return path


def read(folder: Path) -> playbook.Loaded:
    return playbook.read_folders([folder], KNOWN, (), NOW)


def pair(stage: str = "live", **said: object) -> Playbook:
    """`outer` blocks nothing itself; `inner`, which it calls, does."""
    inner = playbook_of(
        action("block"), id="playbook--inner", name="inner", version="7", **{"stage": stage, **said}
    )
    call = Step(
        id="playbook-action--1",
        name="call",
        type="playbook-action",
        playbook=inner.id,
        on_completion="action--after",
    )
    after = action("after", "mail", "set", {}, action_class="A0", on_completion="end--1")
    outer = playbook_of(call, after, id="playbook--outer", name="outer")
    found, faults = linked({one.id: one for one in (outer, inner)})
    assert faults == []
    return found["playbook--outer"]


# ---- Loading


def test_a_playbook_has_the_steps_of_those_it_calls(tmp_path):
    write(tmp_path, "Outer", "Middle", "Inner")
    write(tmp_path, "Middle", "Inner")
    write(tmp_path, "Inner")

    loaded = read(tmp_path)

    assert loaded.refused == ()
    outer = next(one for one in loaded.playbooks if one.name == "Outer")
    assert {one.name for one in outer.called} == {"Middle", "Inner"}
    assert [step.name for step in outer.steps.values()] == [
        *("start", "call-0", "call-0/start", "call-0/call-0", "call-0/call-0/start"),
        *("call-0/call-0/end", "call-0/end", "call-1", "call-1/start", "call-1/end", "end"),
    ]


def test_another_version_of_what_is_called_is_another_version_of_who_calls(tmp_path):
    write(tmp_path, "Outer", "Inner")
    path = write(tmp_path, "Inner")
    before = {one.name: one.version for one in read(tmp_path).playbooks}

    path.write_text(path.read_text().replace("Calls.", "Calls nobody."))
    after = {one.name: one.version for one in read(tmp_path).playbooks}

    assert all(before[name] != after[name] for name in ("Outer", "Inner"))


def test_a_circle_is_refused_at_each_call_in_it_and_names_the_way(tmp_path):
    paths = [write(tmp_path, *names) for names in (("A", "B"), ("B", "C"), ("C", "A"))]
    write(tmp_path, "Caller", "A")
    write(tmp_path, "Fine")

    loaded = read(tmp_path)

    assert [one.name for one in loaded.playbooks] == ["Fine"]
    said = {one.where.partition(":")[0].rpartition("/")[2]: one for one in loaded.refused}
    assert {name: one.what for name, one in said.items()} == {
        "A.yml": "A → B → C → A is a circle of calls",
        "B.yml": "B → C → A → B is a circle of calls",
        "C.yml": "C → A → B → C is a circle of calls",
        "Caller.yml": "A, which it calls, is refused",
    }
    line = line_of(paths[0].read_text(), "playbook_id")
    assert said["A.yml"].where == f"{paths[0]}:{line}"


def test_a_playbook_that_calls_itself_is_refused(tmp_path):
    write(tmp_path, "A", "A")

    assert [one.what for one in read(tmp_path).refused] == ["A → A is a circle of calls"]


def test_calls_are_no_deeper_than_somebody_can_oversee(tmp_path):
    names = [f"P{number}" for number in range(DEPTH_MAX + 2)]
    for name, called in pairwise(names):
        write(tmp_path, name, called)
    write(tmp_path, names[-1])

    loaded = read(tmp_path)

    assert {one.name for one in loaded.playbooks} == set(names[1:])
    assert [one.what for one in loaded.refused] == ["its calls are more than 3 deep"]


def test_a_playbook_with_all_that_it_calls_is_bounded(tmp_path):
    write(tmp_path, "Leaf", *(["Inner"] * 20))
    write(tmp_path, "Inner")
    write(tmp_path, "Outer", *(["Leaf"] * 4))
    path = write(tmp_path, "More", "Outer")

    refused = {
        one.where.rpartition("/")[2].partition(":")[0]: one for one in read(tmp_path).refused
    }

    assert refused["Outer.yml"].what == "with what it calls Outer has more than 200 steps"
    assert refused["More.yml"].what == "Outer, which it calls, is refused"
    assert refused["More.yml"].where.startswith(str(path))


def test_a_call_that_leads_nowhere_names_its_line(tmp_path):
    path = write(tmp_path, "A", "Nobody")

    (refused,) = read(tmp_path).refused

    assert refused.what == "it calls a playbook that is not there"
    assert refused.where == f"{path}:{line_of(path.read_text(), 'playbook_id')}"


# ---- Plan and gate


def test_what_is_called_is_part_of_the_plan_and_of_its_hash():
    made = plan(pair(), finding(), World(), actuators())
    other = plan(msgspec.structs.replace(pair(), version="8"), finding(), World(), actuators())

    assert [(one.name, one.outcome) for one in made.actions] == [
        ("call/block", "needs approval"),
        ("after", "allow"),
    ]
    assert made.actions[0].until == NOW + timedelta(hours=1)
    assert made.hash != other.hash


def test_a_denial_within_takes_its_own_exception_and_then_the_callers():
    made = plan(pair(), finding(), World(spoke=()), actuators())

    assert [one.name for one in made.actions] == ["call/block", "call/tell", "after"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"signed_by": ""}, "No key that counts here has signed inner."),
        ({"signed_by": "stranger"}, "No key that counts here has signed inner."),
        ({"stage": "shadow"}, "inner is in shadow: it shows what it would do, and does not act."),
        ({"stage": "draft"}, "inner is a draft."),
        ({"valid_until": NOW}, "inner was valid until 2026-11-12 03:00."),
    ],
)
def test_a_playbook_is_worth_no_more_than_one_it_calls(said, why):
    made = plan(pair(**said), finding(), World(), actuators())

    checks = {check.number: check for check in made.actions[0].checks}
    assert (checks[2].outcome, checks[2].why.startswith(why)) == ("deny", True)


@pytest.mark.parametrize("name", ["playbook--inner", "inner", "playbook--outer"])
def test_a_switch_of_either_stops_what_is_called(name):
    book, world = pair(), World()
    planned = plan(book, finding(), world, actuators()).actions[0]

    checks = gate(planned, book, finding(), World(on=[f"playbook:{name}"]))

    assert checks[0].outcome == "deny"


def test_who_calls_goes_no_further_than_what_is_called():
    book = msgspec.structs.replace(pair("approve_all"), stage="approve_all")
    word = Staged("shadow", "7", "ann", "looks odd", NOW)
    stale = Staged("shadow", "6", "ann", "looks odd", NOW)

    assert staged(book, {}).stage == "approve_all"
    assert staged(book, {"playbook--inner": word}).stage == "shadow"
    assert staged(book, {"playbook--inner": stale}).stage == "approve_all"


# ---- Runs


@pytest.fixture
def device(tmp_path):
    made = Device(tmp_path)
    yield made
    made.db.close()


def start(device: Device, *inner: Step, **call: str) -> None:
    """A run of a playbook that calls one made of `inner`."""
    called = msgspec.structs.replace(kit.playbook(*inner), id="playbook--2", name="inner")
    step = Step(
        id="call", name="call", type="playbook-action", playbook=called.id, **{
            "on_completion": "end", **call,
        },
    )  # fmt: skip
    outer = kit.playbook(step, kit.deny("more"), start="call")
    whole, faults = linked({one.id: one for one in (outer, called)})
    assert faults == []
    assert device.runs.start(kit.run_of(whole[outer.id], "r1", device.clock()))


def names(device: Device) -> dict[str, str]:
    run = device.now()
    return {run.playbook.steps[row.step].name: row.state for row in run.steps}


def test_a_call_goes_on_when_all_within_has_ended_and_is_undone_with_the_caller(device):
    start(device, kit.deny("block", box=timedelta(minutes=10)), on_completion="more")

    device.go()
    assert device.device.denied() == {"r1/block", "r1/more"}
    assert names(device) == {
        "call": "done", "call/block": "verified", "call/end": "done", "more": "verified",
        "end": "done",
    }  # fmt: skip

    device.clock.turn(minutes=11)  # its own time box ends first
    device.go()
    assert device.device.denied() == {"r1/more"}
    device.clock.turn(minutes=50)
    assert device.go().state == "done"
    assert device.device.denied() == set()


def test_a_cancelled_caller_takes_back_what_was_called(device):
    start(device, kit.deny("block"))
    device.go()

    device.runs.order("r1", "cancel", "ann", "wrong")

    assert device.go().state == "cancelled"
    assert device.device.denied() == set()


def test_a_failure_within_takes_its_exception_and_then_the_callers_failure_path(device):
    start(device, kit.deny("block", actuator="nobody"), on_completion="", on_success="more",
          on_failure="fails")  # fmt: skip

    assert device.go().state == "failed"
    assert names(device) == {
        "call": "failed", "call/block": "failed", "call/fails": "done", "fails": "done",
    }  # fmt: skip


def test_what_is_called_in_a_loop_has_its_failure_path_each_time(device):
    called = msgspec.structs.replace(
        kit.playbook(kit.deny("block", actuator="nobody")), id="playbook--2", name="inner"
    )
    call = Step(id="call", name="call", type="playbook-action", playbook=called.id,
                on_success="end", on_failure="end")  # fmt: skip
    loop = Step(id="loop", name="loop", type="while-condition", when={"address": "r1"},
                rounds_max=2, on_true="call", on_success="end", on_failure="fails")  # fmt: skip
    outer = kit.playbook(loop, call)
    whole, _ = linked({one.id: one for one in (outer, called)})
    assert device.runs.start(kit.run_of(whole[outer.id], "r1", device.clock()))

    run = device.go()

    ends = [run.playbook.steps[row.step].name for row in run.steps if row.state == "done"]
    assert ends.count("call/fails") == 2


def test_a_called_playbook_that_is_not_there_fails_its_step(device):
    step = Step(id="call", name="call", type="playbook-action", playbook="playbook--9",
                on_completion="end")  # fmt: skip
    device.start(step)

    assert device.go().state == "failed"
    assert names(device) == {"call": "failed", "fails": "done"}


def test_a_check_tells_of_calls_and_knows_what_is_beside_a_file(tmp_path):
    path = write(tmp_path, "Outer", "Inner", "Campaign across operators", "Nobody")
    write(tmp_path, "Inner", "Fine")
    write(tmp_path, "Fine")
    known = {**playbook.specs(), **KNOWN}

    faults = playbook.faults_of_calls([path], known)

    assert [one.what for one in faults] == ["it calls a playbook that is not there"]
    assert playbook.faults_of_calls([tmp_path / "Inner.yml"], known) == []
    assert playbook.faults_of_calls([], known) == []
