"""The contract of actuators: it passes what is right, and names the promise that is broken."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from cityward import Command, State, Target, TransientError, Unsafe, actuator
from cityward.checks import check_actuator, check_actuator_alone

DOOR = Target("device", "door-7")


@actuator("doors", verbs={"deny": "allow"}, targets=("device",), action_class="A2")
class Doors:
    """Locks doors; `world` is the program."""

    def __init__(self) -> None:
        self.world: dict[str, str] = {"door-7": "open", "door-8": "locked"}
        self.is_there = True

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        if verb != "deny":
            raise Unsafe("no verb")
        state = self.probe(target)
        if not state.is_applied:
            yield Command(verb, target, "allow", until, prior=state.found)

    def apply(self, command: Command) -> None:
        door = self.door(command.target)
        if command.verb not in ("deny", "allow"):
            raise Unsafe("no verb")
        self.world[door] = "locked" if command.verb == "deny" else command.prior["was"]

    def probe(self, target: Target) -> State:
        was = self.world[self.door(target)]
        return State(was == "locked", found={"was": was})

    def door(self, target: Target) -> str:
        if target.type != "device" or target.value not in self.world:
            raise Unsafe("no door")
        if not self.is_there:
            raise TransientError("no answer")
        return target.value


class Planner(Doors):
    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        for command in super().plan(verb, target, until):
            self.apply(command)
            yield command


class Talker(Doors):
    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        list(super().plan(verb, target, until))
        yield Command(verb, target, "allow", until, prior={"was": "open"})


class Silent(Doors):
    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        list(super().plan(verb, target, until))
        return iter(())


class Endless(Doors):
    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        for command in super().plan(verb, target, until):
            yield Command(verb, target, "allow", until.replace(year=2999), prior=command.prior)


class Unkept(Doors):
    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        for command in super().plan(verb, target, until):
            yield Command(verb, target, "allow", until, prior={**command.prior, "at": until})


class Toggle(Doors):
    def apply(self, command: Command) -> None:
        was = self.world.get(command.target.value)
        super().apply(command)
        if command.verb == "deny" and was == "locked":
            self.world["door-7"] = "open"


class Counter(Doors):
    def apply(self, command: Command) -> None:
        super().apply(command)
        self.world["times"] = self.world.get("times", "") + "I"


class Opener(Doors):
    def apply(self, command: Command) -> None:
        super().apply(command)
        if command.verb == "allow":
            self.world["door-7"] = "wide open"


class Lazy(Doors):
    def apply(self, command: Command) -> None:
        self.door(command.target)
        if command.verb not in ("deny", "allow"):
            raise Unsafe("no verb")


class Shell(Doors):
    def door(self, target: Target) -> str:
        said = f"true {target.value}"[:2_000].replace("\0", "").encode("utf-8", "replace")
        subprocess.run(said, shell=True, check=False, capture_output=True)
        return super().door(target)


class Guest(Doors):
    def door(self, target: Target) -> str:
        return target.value if target.value in self.world else "door-7"


class Crash(Doors):
    def door(self, target: Target) -> str:
        return {one: one for one in self.world}[target.value]


class Anything(Doors):
    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        return super().plan("deny", target, until)


def marked(**named: Any) -> Any:
    said: dict[str, Any] = {"verbs": {"deny": "allow"}, "targets": ("device",), **named}
    return actuator("doors", **said)(type("Other", (Doors,), {}))


def test_an_actuator_that_keeps_its_promises_passes_and_leaves_the_world_as_it_was():
    doors = Doors()

    check_actuator(doors, DOOR, look=lambda: dict(doors.world))

    assert doors.world == {"door-7": "open", "door-8": "locked"}


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Planner, "changes the world by planning"),
        (Talker, "plans deny again, though it holds"),
        (Silent, "plans nothing for deny"),
        (Endless, "plans another end than was asked"),
        (Unkept, "gives back as something else"),
        (Toggle, "takes back deny when it is told twice"),
        (Counter, "does more when it is told deny twice"),
        (Opener, "and brings back"),
        (Lazy, "does not show that deny holds"),
        (Shell, "executes what strangers write"),
        (Guest, "takes the target"),
        (Crash, "raises KeyError instead of Unsafe"),
        (Anything, "takes the verb ''"),
        (marked(rollback="none"), "does not say who ends"),
        (marked(verbs={"deny": ""}), "does not say how deny is taken back"),
        (marked(verbs={"deny": "allow", "allow": "deny"}), "is a verb itself"),
        (marked(verbs={}), "has no verb"),
        (marked(action_class="A4"), "no class A4"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_a_broken_promise_is_named(tmp_path, monkeypatch, kind, sentence):
    monkeypatch.chdir(tmp_path)
    doors = kind()

    with pytest.raises(AssertionError, match=sentence):
        check_actuator(doors, DOOR, look=lambda: dict(doors.world))


def test_a_target_on_which_something_holds_is_no_sample():
    with pytest.raises(AssertionError, match="on which something holds"):
        check_actuator(Doors(), Target("device", "door-8"))


def test_an_actuator_without_its_program_claims_nothing():
    doors = Doors()
    with pytest.raises(AssertionError, match="acts as if its program were there"):
        check_actuator_alone(doors, DOOR)

    doors.is_there = False

    check_actuator_alone(doors, DOOR)
