"""Small playbooks, a plan and a gate for tests of the runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from cityward import Actuator, Analytic, Finding, Target
from playbooks.flow import new_run
from playbooks.journal import Run
from playbooks.model import Action, Check, Plan, Planned, Playbook, Safety, Step
from siem.store.embedded import NodeDb

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
ALLOW = Check(1, "all", "allow", "nothing speaks against it")


class Clock:
    """A clock that is turned by hand."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def turn(self, **by: float) -> None:
        """Let time pass."""
        self.now += timedelta(**by)


def deny(name: str, then: str = "end", *, box: timedelta | None = None, **said: Any) -> Step:
    """A step that denies the address of the run: one of its own, by its name."""
    action = Action(
        actuator=said.pop("actuator", "recorder"),
        verb="deny",
        target={"type": "ipv4_net", "value": f"${{address}}/{name}"},
    )
    safety = Safety(
        action_class="A1", time_box=box or timedelta(hours=1), rollback=said.pop("by", "journal")
    )
    return Step(
        id=name, name=name, type="action", action=action, safety=safety, on_completion=then, **said
    )


def playbook(*steps: Step, start: str = "", **said: Any) -> Playbook:
    """A playbook that begins with its first step."""
    end, fails = Step(id="end", name="end", type="end"), Step(id="fails", name="fails", type="end")
    return Playbook(
        id="playbook--1",
        name="block",
        description="",
        version="1",
        steps={step.id: step for step in (*steps, end, fails)},
        start=start or steps[0].id,
        exception="fails",
        **{"stage": "live", **said},
    )


class Planner:
    """Plans a step by asking its actuator, as the real one does."""

    def __init__(self, actuators: dict[str, Actuator], clock: Any) -> None:
        self.actuators = actuators
        self.clock = clock

    def __call__(self, run: Run, step: Step) -> Planned:
        assert step.action is not None
        value = step.action.target.get("value", "").replace(
            "${address}", str(run.plan.variables.get("address", ""))
        )
        target = Target(step.action.target.get("type", ""), value)
        until = self.clock() + (step.safety.time_box or timedelta(minutes=5))
        commands = (
            tuple(self.actuators[step.action.actuator].plan(step.action.verb, target, until))
            if step.action.actuator != "manual"
            else ()
        )
        return Planned(
            step=step.id,
            name=step.name,
            action_class=step.safety.action_class,
            actuator=step.action.actuator,
            target=target,
            commands=commands,
            prior=commands[0].prior if commands else {},
            until=until,
            manual="Do it." if step.action.actuator == "manual" else "",
        )


def allows(run: Run, planned: Planned) -> Sequence[Check]:
    """A gate that is open."""
    return (ALLOW,)


def approved(run: Run, planned: Planned) -> Sequence[Check]:
    """A gate that asks one person."""
    if any(one.plan_hash == run.plan.hash for one in run.approvals):
        return (ALLOW,)
    return (Check(12, "approvals", "needs approval", "a person has to say yes"),)


def run_of(book: Playbook, id: str, now: datetime, **said: Any) -> Run:
    """A run whose address is its id."""
    plan = Plan(
        playbook=book.id,
        version=book.version,
        finding="f-1",
        revision=1,
        operator="op-1",
        made=now,
        actions=(),
        variables={"address": id},
    )
    return new_run(id, book, plan, now, **said)


def finding_of(rule: str, now: datetime) -> Finding:
    """A finding of a rule that found one address."""
    return Finding(
        analytic=Analytic(id=rule, name=rule, kind="rule", version="1"),
        title=rule, description=rule, severity="high", group=(("source.ip", rule),),
        first_seen=now, last_seen=now, events=(),
    )  # fmt: skip


class Shelf:
    """One playbook that fits everything; the address of a run is its finding's rule."""

    def __init__(self, db: NodeDb, book: Playbook) -> None:
        self.db = db
        self.book = book

    def fitting(self, finding: Mapping[str, Any]) -> list[Playbook]:
        """The one."""
        return [self.book]

    def plan(self, book: Playbook, finding: Mapping[str, Any]) -> Plan:
        """What it would do."""
        plan = run_of(book, finding["rule.id"], self.db.runs.now()).plan
        return msgspec.structs.replace(plan, finding=finding["finding.id"])


def db_at(folder: Path, clock: Any) -> NodeDb:
    """A state folder with a journal."""
    return NodeDb(folder / "node.db", b"k" * 32, clock=clock)
