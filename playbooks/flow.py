"""Where a run goes from a step: pure functions over its rows.

Nothing here acts. A step that contains others – parallel, a loop, a condition with a completion of
its own – has a row that waits for theirs; that they have come to their end is a query.

References:
    CACAO Security Playbooks 2.0, section 4 (workflow steps).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from cityward.when import compile_when
from playbooks.journal import (
    APPROVAL_LIVES,
    EFFECT_ENDS,
    STEP_ENDS,
    Change,
    Run,
    StepRow,
    Went,
    is_joined,
)
from playbooks.model import Plan, Playbook, RunState, Stage, Step

ROWS_MAX = 500
"""Steps of one run, rounds counted; of a playbook that runs in a circle."""
SHORTEST = timedelta(minutes=1)
"""A run that only decides has so long."""
STRICTEST: tuple[Stage, ...] = ("draft", "shadow", "approve_all", "live")
_ROUND = "#"


def new_run(
    id: str,
    playbook: Playbook,
    plan: Plan,
    now: datetime,
    *,
    finding: Mapping[str, Any] | None = None,
    group: str = "",
    stage: Stage = "live",
    asked_by: str = "",
) -> Run:
    """A run that stands before its first step.

    Args:
        id: Of the run; the same id is the same run.
        playbook: As it is now.
        plan: What it would do.
        now: The journal's time.
        finding: Fields of what it is about.
        group: One open run at a time for the same; empty: any number.
        stage: As strict, or stricter than the playbook's own.
        asked_by: Who wanted it; empty: a finding did.
    """
    first = _row(playbook, (), playbook.start, "", now)
    return Run(
        id=id,
        playbook=playbook,
        plan=plan,
        finding=finding or {},
        group=group,
        stage=min(stage, playbook.stage, key=STRICTEST.index),
        asked_by=asked_by,
        made=now,
        deadline=now + longest(playbook),
        steps=(first,),
    )


def group_of(playbook: Playbook, finding: Mapping[str, Any]) -> str:
    """Runs of the same group exclude each other: the same playbook about the same values."""
    values = [str(finding.get(name, "")) for name in playbook.group_by]
    return "\0".join((playbook.id, *(values or [str(finding.get("finding.id", ""))])))


def longest(playbook: Playbook) -> timedelta:
    """How long a run may take when every step takes as long as it may."""
    rounds = max(1, *(step.rounds_max for step in playbook.steps.values()))
    steps = sum((_patience(step) for step in playbook.steps.values()), timedelta()) * rounds
    boxes = [step.safety.time_box or timedelta() for step in playbook.steps.values()]
    return max(SHORTEST, steps + max(boxes, default=timedelta()))


def _patience(step: Step) -> timedelta:
    if step.type != "action":
        return timedelta()
    return step.deadline + (APPROVAL_LIVES if step.safety.action_class != "A0" else timedelta())


def variables(run: Run) -> dict[str, Any]:
    """What conditions see: variables of the plan, the finding, how the steps before ended."""
    steps = run.playbook.steps
    ends = {f"step.{steps[row.step].name}": row.went for row in run.steps if row.went}
    return {**run.plan.variables, **run.finding, **ends}


def go_on(run: Run, row: StepRow, went: Went, now: datetime) -> tuple[StepRow, ...]:
    """The row, left, and the one that follows it."""
    step = run.playbook.steps[row.step]
    left = msgspec.structs.replace(row, went=went, again=None)
    following = _following(run, row, step, went)
    if not following or is_cancelled(run):
        return (left,)
    return left, _row(run.playbook, run.steps, following, row.parent, now)


def _following(run: Run, row: StepRow, step: Step, went: Went) -> str:
    if step.type == "end":
        return ""
    if went == "success":
        return step.on_success or step.on_completion
    if step.on_failure:
        return step.on_failure
    exception = _exception(run, row)
    is_own = exception == run.playbook.exception
    taken = [one for one in run.steps if one.step == exception]
    # Once in a run; that of a called playbook once each time it is called.
    return "" if any(is_own or one.parent == row.parent for one in taken) else exception


def _exception(run: Run, row: StepRow) -> str:
    """Where it goes on from a failure: as the called playbook says that the row is within."""
    rows = {one.id: one for one in run.steps}
    while row.parent:
        row = rows[row.parent]
        if exception := run.playbook.steps[row.step].exception:
            return exception
    return run.playbook.exception


def _row(
    playbook: Playbook, rows: Sequence[StepRow], step: str, parent: str, now: datetime
) -> StepRow:
    rounds = sum(one.step == step for one in rows)
    deadline = now + playbook.steps[step].deadline
    id = f"{step}{_ROUND}{rounds + 1}" if rounds else step
    return StepRow(id=id, step=step, parent=parent, since=now, deadline=deadline)


# ---- Steps that decide


def decide(run: Run, row: StepRow, now: datetime) -> tuple[StepRow, ...]:
    """What follows a step that is no action and stands before its beginning."""
    step = run.playbook.steps[row.step]
    if len(run.steps) >= ROWS_MAX:
        return _fails(run, row, f"more than {ROWS_MAX} steps", now)
    if step.type in ("parallel", "playbook-action"):
        if not step.next_steps:
            return _fails(run, row, "the playbook that it calls is not there", now)
        return _open(run, row, step.next_steps, now)
    if step.type == "if-condition":
        return _branch(run, row, step.on_true if _holds(run, step) else step.on_false, now)
    if step.type == "switch-condition":
        value = variables(run).get(step.switch)
        return _branch(run, row, step.cases.get(str(value)) or step.cases.get("default", ""), now)
    if step.type == "while-condition":
        return _round(run, row, now)
    return go_on(run, _ends(row), "success", now)


def join(run: Run, row: StepRow, now: datetime) -> tuple[StepRow, ...]:
    """What follows a step whose contained steps have all come to their end; none: they have not."""
    if not is_joined(run, row.id):
        return ()
    step = run.playbook.steps[row.step]
    if step.type == "while-condition" and not is_cancelled(run):
        return _round(run, row, now)
    bad = [one for one in run.steps if one.parent == row.id and one.went == "failure"]
    if [one for one in bad if not run.playbook.steps[one.step].on_failure]:
        return _fails(run, row, "a step within it failed", now)
    return go_on(run, _ends(row), "success", now)


def _branch(run: Run, row: StepRow, branch: str, now: datetime) -> tuple[StepRow, ...]:
    step = run.playbook.steps[row.step]
    if not branch:
        return go_on(run, _ends(row), "success", now)
    if step.on_completion:
        return _open(run, row, (branch,), now)
    done = msgspec.structs.replace(_ends(row), went="success")
    return done, _row(run.playbook, run.steps, branch, row.parent, now)


def _round(run: Run, row: StepRow, now: datetime) -> tuple[StepRow, ...]:
    step = run.playbook.steps[row.step]
    if not _holds(run, step) or not step.on_true:
        return go_on(run, _ends(row), "success", now)
    if row.attempt >= step.rounds_max:
        return _fails(run, row, f"after {step.rounds_max} rounds it still holds", now)
    again = msgspec.structs.replace(row, attempt=row.attempt + 1)
    return _open(run, again, (step.on_true,), now)


def _open(run: Run, row: StepRow, within: Sequence[str], now: datetime) -> tuple[StepRow, ...]:
    """The row waits for those within it."""
    rows = list(run.steps)
    for step in within:
        rows.append(_row(run.playbook, rows, step, row.id, now))
    # Those within have deadlines of their own, and the run has one.
    waits = msgspec.structs.replace(row, state="gated", deadline=run.deadline)
    return waits, *rows[len(run.steps) :]


def _ends(row: StepRow) -> StepRow:
    return msgspec.structs.replace(row, state="done")


def _fails(run: Run, row: StepRow, why: str, now: datetime) -> tuple[StepRow, ...]:
    return go_on(run, msgspec.structs.replace(row, state="failed", note=why), "failure", now)


def _holds(run: Run, step: Step) -> bool:
    return compile_when(step.when)(variables(run))


# ---- The run as a whole


def is_cancelled(run: Run) -> bool:
    """Whether a person wants it to end, or its time is over."""
    return any(one.kind == "cancel" for one in run.orders)


def after(change: Change) -> Run:
    """The run as it is when a transition is written."""
    run = change.run
    steps = {row.id: row for row in (*run.steps, *change.steps)}
    effects = {one.key: one for one in (*run.effects, *change.effects)}
    return msgspec.structs.replace(
        run,
        state=change.state or run.state,
        plan=change.plan or run.plan,
        steps=tuple(steps.values()),
        effects=tuple(effects.values()),
    )


def state_of(run: Run) -> RunState:
    """What a run is while it is open, and how it ends when there is nothing left to do."""
    open_ = [row for row in run.steps if not row.went]
    if open_:
        return "waiting" if all(_waits(run, row) for row in open_) else "running"
    if not all(row.state in STEP_ENDS for row in run.steps) or not all(
        one.state in EFFECT_ENDS for one in run.effects
    ):
        return "waiting"
    if is_cancelled(run):
        return "cancelled"
    states = set(_unhappy(run))
    return "denied" if "denied" in states else "failed" if states else "done"


def _waits(run: Run, row: StepRow) -> bool:
    if row.state == "gated":
        return run.playbook.steps[row.step].type != "action"
    return row.state == "waiting_approval" or (
        row.state == "intended" and row.planned is not None and not row.planned.commands
    )


def _unhappy(run: Run) -> Iterator[str]:
    yield from (row.state for row in run.steps if row.went == "failure")
