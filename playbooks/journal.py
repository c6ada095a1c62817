"""The journal of runs: what it holds, which transitions there are, and who may make the next one.

The journal is the truth about what was done to the world. A run is claimed by compare-and-set for
a short lease, makes one transition, and lets go; each claim has a token higher than all before it,
for all runs together, so that whoever was overtaken is refused by the journal and before a device.
What is to be done is written before it is done. Timers are times in rows: nothing has to be
remembered elsewhere, and losing every message loses no step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

import msgspec

from cityward import Command, Target, TransientError
from playbooks.model import Plan, Planned, Playbook, RunState, Stage, StepState

# ---- The state machine, as data

STEP_EDGES: Mapping[StepState, frozenset[StepState]] = {
    "pending": frozenset({"gated", "done", "failed", "denied", "cancelled", "expired"}),
    "gated": frozenset(
        {"waiting_approval", "intended", "done", "failed", "denied", "cancelled", "expired"}
    ),
    "waiting_approval": frozenset({"gated", "failed", "denied", "cancelled", "expired"}),
    "intended": frozenset(
        {"applied", "rolling_back", "done", "failed", "denied", "cancelled", "expired"}
    ),
    "applied": frozenset({"verified", "rolling_back"}),
    "verified": frozenset({"rolling_back", "done"}),
    "rolling_back": frozenset({"rolled_back"}),
    "rolled_back": frozenset(),
    "done": frozenset(),
    "failed": frozenset(),
    "denied": frozenset(),
    "expired": frozenset(),
    "cancelled": frozenset(),
}
"""What may follow a state of a step. A step that contains others (parallel, a condition with a
completion of its own) is `gated` while they go on; a manual step is `intended` until somebody
answers."""

EffectState = Literal["intended", "applied", "rolling_back", "rolled_back", "done", "failed"]
EFFECT_EDGES: Mapping[EffectState, frozenset[EffectState]] = {
    "intended": frozenset({"applied", "rolling_back", "done", "failed"}),
    "applied": frozenset({"rolling_back"}),
    "rolling_back": frozenset({"rolled_back"}),
    "rolled_back": frozenset(),
    "done": frozenset(),
    "failed": frozenset(),
}
"""`done`: nothing is to be taken back (a mail); `failed`: it never came about."""

RUN_EDGES: Mapping[RunState, frozenset[RunState]] = {
    "planned": frozenset({"running", "waiting", "done", "failed", "denied", "cancelled"}),
    "running": frozenset({"waiting", "done", "failed", "denied", "cancelled"}),
    "waiting": frozenset({"running", "done", "failed", "denied", "cancelled"}),
    "done": frozenset(),
    "failed": frozenset(),
    "denied": frozenset(),
    "cancelled": frozenset(),
}
"""`waiting`: on a person, or on the end of what it has put in force."""

STEP_ENDS = frozenset(state for state, following in STEP_EDGES.items() if not following)
EFFECT_ENDS = frozenset(state for state, following in EFFECT_EDGES.items() if not following)
RUN_ENDS = frozenset(state for state, following in RUN_EDGES.items() if not following)
IN_FORCE: frozenset[EffectState] = frozenset({"intended", "applied", "rolling_back"})
"""The world may be other than it was."""

LEASE = timedelta(seconds=60)
"""Whoever has claimed a run, lives, and says nothing for so long hangs, and is overtaken; who is
dead is at once."""
APPROVAL_LIVES = timedelta(minutes=15)
PAGED_AFTER = 5
"""So many failures to undo, and a person is given the exact steps."""

Queue = Literal["control", "actuate", "enrich", "notify", "rollback"]
QUEUES: tuple[Queue, ...] = ("control", "actuate", "enrich", "notify", "rollback")
"""Where the bell is rung for a run, by what its next transition does; what undoes has a worker of
its own that nothing else can fill."""
UNDOES: Queue = "rollback"
Bell = Callable[[Queue, int], object]
"""Says to workers elsewhere that so many runs of a queue may have something to do."""
Went = Literal["", "success", "failure"]
OrderKind = Literal["cancel", "undo", "answer"]
EntryKind = Literal["state", "refused", "page", "cancel", "undo", "answer", "approved", "note"]
EVIDENCE = "evidence"
_DECIDED = frozenset({"pending", "gated", "waiting_approval", "intended", "applied"})
ORDERS: tuple[OrderKind, ...] = ("cancel", "undo", "answer")


class StepRow(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a run; one in a loop has a row a round."""

    id: str
    """Step, and behind `#` its round."""
    step: str
    parent: str = ""
    """Row of the step that contains it; the join is a query over it."""
    state: StepState = "pending"
    went: Went = ""
    """Where the flow went on from it; empty: not yet."""
    attempt: int = 0
    since: datetime
    deadline: datetime
    again: datetime | None = None
    """Not before then; after something outside did not answer."""
    planned: Planned | None = None
    note: str = ""


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """One change to the world: what is intended, what was there, when it ends."""

    key: str
    step: str
    """Row of the step."""
    actuator: str
    command: Command
    """Its `prior` is what undoing restores, its `until` what the device was told."""
    state: EffectState = "intended"
    until: datetime | None = None
    """It is undone by then; None: nothing to undo."""
    lease: bool = False
    """Renewed while the run is valid, so that it ends when nobody renews it."""
    renew: datetime | None = None
    began: datetime | None = None
    ended: datetime | None = None
    failures: int = 0
    """Of undoing it."""
    again: datetime | None = None
    note: str = ""

    @property
    def is_in_force(self) -> bool:
        """Whether the world may be other than it was."""
        return self.state in IN_FORCE


class Approval(msgspec.Struct, frozen=True):
    """Somebody's yes to a plan."""

    plan_hash: str
    by: str
    role: str
    time: datetime


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a run's history; those of `ORDERS` are what people want of it."""

    kind: EntryKind
    about: str = ""
    """Row of a step, or key of an effect."""
    what: str
    by: str = ""
    time: datetime
    number: int = 0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it was claimed: everything that the next transition depends on."""

    id: str
    playbook: Playbook
    """As it was when the run began; a newer one changes no run."""
    plan: Plan
    finding: Mapping[str, Any] = {}
    """Its fields when the run began."""
    group: str = ""
    """One open run at a time for the same."""
    state: RunState = "planned"
    stage: Stage = "live"
    """Of the playbook, or stricter: `draft` holds all back, `shadow` all but A0."""
    asked_by: str = ""
    made: datetime
    deadline: datetime
    token: int = 0
    due: datetime | None = None
    """Since when it is, as it was claimed; what is under way goes before what begins."""
    steps: tuple[StepRow, ...] = ()
    effects: tuple[Effect, ...] = ()
    approvals: tuple[Approval, ...] = ()
    orders: tuple[Entry, ...] = ()
    seen: int = 0
    """Number of the last line of its history."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One transition: everything in it is written, or nothing."""

    run: Run
    """As it was claimed."""
    state: RunState | None = None
    plan: Plan | None = None
    steps: tuple[StepRow, ...] = ()
    effects: tuple[Effect, ...] = ()
    entries: tuple[Entry, ...] = ()
    wake: datetime | None = None
    """When to look at it again; None: never, it is over."""
    queue: Queue = "control"
    """What kind of work is next."""


class Overtaken(TransientError):  # noqa: N818 – an order of things, not a fault
    """Somebody with a higher token goes on with it, or was at this target since."""


class Journal(Protocol):
    """The home of runs; every method is one transaction."""

    def now(self) -> datetime:
        """The time of the journal, which does not step when a clock is set."""
        ...

    def start(self, run: Run) -> bool:
        """Keep a new run; False if it is there, or another of its group is open."""
        ...

    def claim(self, run: str, now: datetime, lease: timedelta = LEASE) -> Run | None:
        """Take a run for one transition; None if none is due or somebody has it."""
        ...

    def record(self, change: Change) -> None:
        """Write a transition and let the run go.

        Raises:
            Overtaken: somebody else has claimed it since; nothing was written.
            ValueError: the state machine has no such edge.
        """
        ...

    def turn(self, actuator: str, target: Target, token: int) -> AbstractContextManager[None]:
        """The right to act on a target: one process at a time, and no lower token than the last.

        Raises:
            Overtaken: a higher token was seen for this target.
            TransientError: somebody acts on it.
        """
        ...

    def holds(self, actuator: str, target: Target) -> Sequence[tuple[str, Effect]]:
        """What is in force on a target, with its run."""
        ...

    def due(
        self, now: datetime, limit: int = 100, queues: Sequence[Queue] = QUEUES
    ) -> Mapping[str, Queue]:
        """Runs that nobody has and whose time has come.

        First all where an effect is to be undone, whatever the queues; then those of the queues,
        the longest overdue first.
        """
        ...

    def stopped(self) -> Sequence[str]:
        """Kill switches that are on: `global`, `playbook:…`, `actuator:…`."""
        ...


# ---- Pure functions


def action_key(run: str, row: str, target: Target, action: str) -> str:
    """Names an effect once and for all, however often it is tried."""
    said = msgspec.json.encode((run, row, target.type, target.value, action))
    return hashlib.sha256(said).hexdigest()[:40]


def check_change(change: Change) -> None:
    """See that a transition follows the edges.

    Raises:
        ValueError: it does not.
    """
    run = change.run
    steps = {row.id: row.state for row in run.steps}
    effects = {one.key: one.state for one in run.effects}
    wrong = [
        *_wrong(STEP_EDGES, ((steps.get(row.id), row.state, row.id) for row in change.steps)),
        *_wrong(EFFECT_EDGES, ((effects.get(e.key), e.state, e.key) for e in change.effects)),
        *_wrong(RUN_EDGES, [(run.state, change.state or run.state, run.id)]),
    ]
    if wrong:
        raise ValueError(f"no such transition: {', '.join(wrong)}")


def _wrong(
    edges: Mapping[Any, frozenset[Any]], changes: Iterable[tuple[Any, Any, str]]
) -> Iterator[str]:
    for before, after, name in changes:
        if before is None:
            if after not in ("pending", "intended"):
                yield f"{name} begins as {after}"
        elif after != before and after not in edges[before]:
            yield f"{name} from {before} to {after}"


def is_joined(run: Run, parent: str) -> bool:
    """Whether the flow has come to the end of everything that a row contains."""
    return all(row.went for row in run.steps if row.parent == parent)


def wake_at(run: Run) -> datetime | None:
    """The next timer of a run: deadlines, ends of effects, renewals, new tries."""
    if run.state in RUN_ENDS:
        return None
    times = [give_up_at(run)] if not any(one.kind == "cancel" for one in run.orders) else []
    for row in run.steps:
        if not row.went and (row.state != "gated" or row.planned is not None):
            times += [row.again or row.deadline, row.deadline]
    for one in run.effects:
        if one.state in ("intended", "applied"):
            times += [time for time in (one.until, one.renew) if time]
        elif one.state == "rolling_back" and one.again:
            times.append(one.again)
    return min(times, default=None)


def queue_of(run: Run) -> Queue:
    """What kind of work the next transition of a run is."""
    states = {one.state for one in run.effects}
    if "rolling_back" in states:
        return UNDOES
    if "intended" in states:
        acts = next(one for one in run.effects if one.state == "intended")
        if acts.command.undo:
            return "actuate"
        return "enrich" if acts.actuator == EVIDENCE else "notify"
    if "applied" in states and not any(row.state in _DECIDED for row in run.steps):
        return UNDOES
    return "control"


def give_up_at(run: Run) -> datetime:
    """When a run that has not ended asks a person."""
    return run.made + 2 * (run.deadline - run.made)
