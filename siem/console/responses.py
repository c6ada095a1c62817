"""What the pages of playbooks, runs and approvals say in common: plans, effects, the kill switch.

Nothing here decides: the gate and the runner do. These are words for people.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from playbooks import targets
from playbooks.journal import RUN_ENDS, Approval, Run, StepRow
from playbooks.model import Plan, Planned, Playbook
from playbooks.safety import span
from siem.console.access import Session
from siem.console.protocol import Console, Responder
from siem.console.site import NodeSite
from siem.console.view import ago, shown
from siem.store.protocol import Document, Person
from siem.store.runs import InForce, Switch

REASON_MAX = 2_000
APPROVING = ("approver", "analyst")
"""Roles whose yes counts: the process owner's and the SOC's."""
ROLE_NAMES = {"approver": "process owner", "analyst": "SOC"}
NEEDS_TWO = "A3"
"""Action class from which two people of different roles have to say yes."""
GLOBAL = "global"

RUN_GLYPHS = {
    "planned": "blind",
    "running": "degraded",
    "waiting": "degraded",
    "done": "running",
    "failed": "risk",
    "denied": "risk",
    "cancelled": "blind",
}
STEP_GLYPHS = {
    "pending": "blind",
    "gated": "degraded",
    "waiting_approval": "degraded",
    "intended": "degraded",
    "applied": "degraded",
    "verified": "running",
    "rolling_back": "degraded",
    "rolled_back": "blind",
    "done": "running",
    "failed": "risk",
    "denied": "risk",
    "expired": "risk",
    "cancelled": "blind",
}
EFFECT_WORDS = {
    "intended": "about to be applied",
    "applied": "in force",
    "rolling_back": "being undone",
    "rolled_back": "undone",
    "done": "done",
    "failed": "never came about",
}
UNDONE_BY = {
    "device": "The device",
    "lease": "A lease",
    "journal": "cityward",
    "none": "Nothing to undo",
}
TARGET_WORDS = {
    "ipv4_net": "address or network",
    "ipv6_net": "address or network",
    "ipv4_connection": "connection",
    "ipv6_connection": "connection",
    "domain_name": "domain",
    "email_addr": "mail address",
    "mac_addr": "hardware address",
    "uri": "web address",
}
"""Types of targets of OpenC2 in a person's words; others are words already."""
STAGE_WORDS = {
    "draft": "holds everything back",
    "shadow": "only tells people; what it would do is planned and held back",
    "approve_all": "acts after a person said yes to each step",
    "live": "acts; people say yes where the class of a step needs it",
}


@dataclass(frozen=True, slots=True)
class Brake:
    """Whether playbooks may act, as the bar on every page says it."""

    is_on: bool
    """Responses are on in the settings."""
    switches: tuple[Switch, ...]
    by_file: str
    """Path of the file that stops everything; empty: it is not there."""
    in_force: int
    rolling_back: int

    @property
    def stopped(self) -> bool:
        """Whether everything stands."""
        return bool(self.by_file) or any(one.name == GLOBAL for one in self.switches)


@dataclass(frozen=True, slots=True)
class Ask:
    """A run that waits for people to say yes."""

    run: Run
    rows: tuple[StepRow, ...]
    """Its steps that wait, each with what is planned."""

    @property
    def planned(self) -> Planned:
        """The strictest action that waits."""
        every = [row.planned for row in self.rows if row.planned is not None]
        return max(every, key=lambda one: one.action_class)

    @property
    def needed(self) -> int:
        """People who have to say yes."""
        return 2 if self.planned.action_class >= NEEDS_TWO else 1

    @property
    def yes(self) -> tuple[Approval, ...]:
        """Who said yes to the plan as it is."""
        return tuple(one for one in self.run.approvals if one.plan_hash == self.run.plan.hash)

    @property
    def is_answered(self) -> bool:
        """Whether people have said enough since it was asked, and the runner looks next."""
        yes = len(self.yes)
        return yes >= self.needed and any(row.attempt < yes for row in self.rows)

    @property
    def until(self) -> datetime:
        """When it is void."""
        return min(row.deadline for row in self.rows)

    @property
    def title(self) -> str:
        """The question, in a line."""
        planned = self.planned
        lasts = length_of(planned, self.run.plan)
        said = planned.name
        if " " not in said and planned.commands:
            # A step whose name is one word says less than what it does.
            said = f"{planned.commands[0].verb.capitalize()} {targets.words(planned.target)}"
        return f"{said}{lasts and f' for {lasts}'}?"

    def role_of(self, person: Person) -> str:
        """The role in which somebody would say yes: one that is still missing, if they have it."""
        own = [role for role in APPROVING if role in person.roles]
        given = {one.role for one in self.yes}
        return next((role for role in own if role not in given), own[0] if own else "")

    def why_not(self, person: Person) -> str:
        """Why somebody's yes does not count; empty: it does."""
        role = self.role_of(person)
        if self.run.asked_by == person.name:
            return "You asked for it; somebody else has to decide."
        if any(one.by == person.name for one in self.yes):
            return "You have said yes already; somebody else has to as well."
        if self.needed > 1 and any(one.role == role for one in self.yes):
            missing = next(name for name in APPROVING if name != role)
            return f"The second yes has to come from the {ROLE_NAMES[missing]}."
        return ""


def ask_of(run: Run | None) -> Ask | None:
    """What a run asks people; None: it waits for no yes, or has it and goes on in a moment."""
    if run is None or run.state in RUN_ENDS:
        return None
    waiting = (row for row in run.steps if row.state == "waiting_approval")
    rows = tuple(row for row in waiting if row.planned is not None)
    ask = Ask(run, rows)
    return ask if rows and not ask.is_answered else None


def asks(responder: Responder) -> list[Ask]:
    """Every run that waits for a yes, the one that is void first first."""
    found = [ask for run in responder.runs.all(open_only=True) if (ask := ask_of(run))]
    return sorted(found, key=lambda one: one.until)


def brake_of(responder: Responder) -> Brake:
    """The kill switch as it is now."""
    runs = responder.runs
    held = runs.in_force()
    file = runs.stop_file
    return Brake(
        is_on=responder.is_on,
        switches=tuple(runs.switches()),
        by_file=str(file) if file is not None and file.exists() else "",
        in_force=sum(one.effect.state != "rolling_back" for one in held),
        rolling_back=sum(one.effect.state == "rolling_back" for one in held),
    )


def length_of(planned: Planned, plan: Plan) -> str:
    """How long an action would hold, in words, also where its turn comes later; empty: nothing."""
    said = next((one for one in plan.actions if one.step == planned.step), planned)
    if said.until is None:
        return ""
    return span(timedelta(seconds=round((said.until - plan.made).total_seconds())))


def diff_of(planned: Planned, lasts: str = "") -> Iterator[tuple[str, str]]:
    """An action as a difference to the world: a mark, and the line.

    Args:
        planned: The action.
        lasts: How long it would hold from a yes on; empty: it says until when.
    """
    target = f"{planned.target.type} {planned.target.value}".strip()
    yield "head", f"{planned.actuator}, {target}" if planned.target.value else planned.actuator
    if not planned.commands:
        said = planned.manual or "it is so already: nothing would be sent"
        # The reasons of a denial stand below, with their checks.
        yield from (("same", line) for line in said.splitlines() if not line.startswith("- "))
        return
    for name, value in planned.prior.items():
        yield "gone", f"{name}  {shown(value)}"
    for one in planned.commands:
        until = f"  to {planned.until:%H:%M} UTC" if planned.until else ""
        ends = f"  for {lasts}" if lasts else until
        yield "new", f"{one.verb} {one.target.type} {one.target.value}{ends}"
        for name, value in one.args.items():
            yield "new", f"    {name}  {shown(value)}"


def in_force_rows(responder: Responder) -> list[Document]:
    """What is in force now, the oldest first, as list and page tell it."""
    runs: dict[str, Run | None] = {}
    rows = []
    for held in responder.runs.in_force():
        if held.run not in runs:
            runs[held.run] = responder.runs.get(held.run)
        rows.append(_in_force_row(held, runs[held.run]))
    return rows


def _in_force_row(held: InForce, run: Run | None) -> Document:
    effect = held.effect
    return {
        "effect": effect.key,
        "what": effect.command.verb,
        "target": f"{effect.command.target.type} {effect.command.target.value}".strip(),
        "actuator": effect.actuator,
        "state": effect.state,
        "since": effect.began,
        "until": effect.until,
        "run": held.run,
        "playbook": run.playbook.name if run else held.playbook,
        "finding": held.finding,
        "why": str(run.finding.get("finding.title", "")) if run else "",
        "asked_by": held.asked_by,
        "approved_by": list(held.approved_by),
        "failures": effect.failures,
        "note": effect.note,
    }


def run_row(run: Run) -> Document:
    """A run in a list."""
    return {
        "run": run.id,
        "state": run.state,
        "stage": run.stage,
        "playbook": run.playbook.name,
        "playbook_id": run.playbook.id,
        "finding": run.plan.finding,
        "title": str(run.finding.get("finding.title", "")),
        "targets": _targets(run),
        "asked_by": run.asked_by,
        "made": run.made,
        "in_force": sum(one.is_in_force for one in run.effects),
        "undone": sum(one.state == "rolled_back" for one in run.effects),
        "plan": run.plan.hash,
    }


def _targets(run: Run) -> list[str]:
    """What a run acts on, in words; telling and collecting act on nothing."""
    acting = (one for one in run.plan.actions if one.action_class != "A0" and one.target.value)
    return list(dict.fromkeys(targets.words(one.target) for one in acting))


def class_of(playbook: Playbook) -> str:
    """The strictest class of its steps."""
    acting = (one for one in playbook.steps.values() if one.action is not None)
    return max((one.safety.action_class for one in acting), default="A0")


def actuators_in(playbooks: Sequence[Playbook]) -> list[str]:
    """Names of the actuators of their steps; a person is none."""
    steps = (step for one in playbooks for step in one.steps.values())
    return sorted({step.action.actuator for step in steps if step.action} - {"manual"})


def outcome_counts(planned: Planned) -> Mapping[str, int]:
    """How many checks said what."""
    said = [one.outcome for one in planned.checks]
    return {one: said.count(one) for one in ("allow", "needs approval", "deny")}


def left_of(until: datetime | None, now: datetime) -> str:
    """What is left until an end, in words."""
    if until is None:
        return "no end is set"
    seconds = (until - now).total_seconds()
    return f"{ago(seconds)} left" if seconds > 0 else f"due since {ago(-seconds)}"


class Responses:
    """What these pages share: the node, and the bar with the kill switch."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.node: Console = site.node

    @property
    def responder(self) -> Responder:
        """Playbooks and runs of the node."""
        return self.node.response

    def page(
        self, request: Request, session: Session, template: str, status: int = 200, **context: Any
    ) -> Response:
        """A page of this part, below the kill switch."""
        return self.site.page(
            request,
            session,
            template,
            status,
            brake=brake_of(self.responder),
            may_halt=session.may("halt"),
            names=self._names(),
            saved_as=self.site.view_of(request).one("done"),
            roles=ROLE_NAMES,
            kinds=TARGET_WORDS,
            **context,
        )

    def unknown(
        self, request: Request, session: Session, what: str, current: str = "playbooks"
    ) -> Response:
        """Nothing is called so."""
        return self.site.unknown(request, session, current, what, "Look in the list.")

    def _names(self) -> Sequence[tuple[str, str]]:
        """What can be stopped alone: name of the switch, and words."""
        playbooks = self.responder.playbooks()
        return [
            *((f"playbook:{one.id}", f"Playbook: {one.name}") for one in playbooks),
            *((f"actuator:{one}", f"Actuator: {one}") for one in actuators_in(playbooks)),
        ]
