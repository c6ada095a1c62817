"""The runner: claims a run, makes one transition, lets it go.

It may be killed at any moment, started many times over, and called twice at once: what it intends
is in the journal before it acts, and the one after it asks the device before acting again. It
knows nothing of queues; `tasks.py` and the node's own thread call `advance`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec

from cityward import Actuator, CitywardError, Command, State, TransientError, Unsafe
from playbooks.flow import after, decide, go_on, is_cancelled, join, state_of
from playbooks.journal import (
    APPROVAL_LIVES,
    PAGED_AFTER,
    QUEUES,
    RUN_ENDS,
    Change,
    Effect,
    Entry,
    EntryKind,
    Journal,
    Overtaken,
    Queue,
    Run,
    StepRow,
    action_key,
    give_up_at,
    queue_of,
    wake_at,
)
from playbooks.model import Check, Plan, Planned, Step, StepState, outcome_of
from playbooks.plan import form, task

log = logging.getLogger(__name__)

AGAIN = timedelta(seconds=1)
AGAIN_MAX = timedelta(minutes=1)
"""Between tries at something that does not answer; it doubles."""
VERIFY_WITHIN = timedelta(seconds=30)
"""For a step that does not say by when its effect has to be seen."""
DEVICE_LEASE, RENEW_EVERY = timedelta(minutes=10), timedelta(minutes=3)
"""A device that is told of a leased effect forgets it after so long without a renewal."""
LATE = timedelta(minutes=5)
"""Somebody is told of an effect that held for so long behind its end."""
SLACK = timedelta(seconds=5)
"""A device that counts in seconds may end so much before what it was told."""
HELD_S = 20.0
"""A journal that cannot be written is tried for at least so long, when something was done."""
KEEP_EVERY_S = 0.2
MANUAL = "manual"


class Planner(Protocol):
    """What an action step would do in the world as it is now."""

    def __call__(self, run: Run, step: Step) -> Planned:
        """Commands that are missing, the state found, dependants.

        Raises:
            TransientError: the actuator's program does not answer.
            Unsafe: the actuator has no such verb or target.
        """
        ...


class Gate(Protocol):
    """The twelve checks, for the world as it is now."""

    def __call__(self, run: Run, planned: Planned) -> Sequence[Check]:
        """Each says allow, needs approval or deny, with the facts it saw."""
        ...


class Runner:
    """One transition at a time over a journal.

    Args:
        journal: The truth.
        actuators: By name.
        plan: What a step would do now.
        gate: What may be done now.
    """

    def __init__(
        self,
        journal: Journal,
        actuators: Mapping[str, Actuator],
        plan: Planner,
        gate: Gate,
    ) -> None:
        self._journal = journal
        self._actuators = actuators
        self._plan = plan
        self._gate = gate
        self._broken: set[str] = set()

    def advance(self, run_id: str) -> Change | None:
        """Make one transition of a run.

        Returns:
            It, with when to look again and for what; None: it is over, or somebody else has it.
        """
        run = self._journal.claim(run_id, self._journal.now())
        if run is None:
            return None
        try:
            change = self._finished(run, self._next(run, self._journal.now()))
            self._keep(change)
        except Overtaken as error:
            log.info("Run %s was overtaken: %s.", run_id, error.what)
            return None
        return change

    def _keep(self, change: Change) -> None:
        """Write a transition; a journal that somebody holds is waited for: the world has changed.

        Raises:
            Overtaken: somebody else goes on with the run.
            TransientError: the journal does not answer; what was done is found by asking for it.
        """
        until_s = time.monotonic() + HELD_S
        while True:
            try:
                return self._journal.record(change)
            except Overtaken:
                raise
            except TransientError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(KEEP_EVERY_S)  # a full disk says no at once

    def now(self) -> datetime:
        """The time of the journal."""
        return self._journal.now()

    def work(
        self, queues: Sequence[Queue] = QUEUES, late: timedelta = timedelta()
    ) -> Iterator[Change | None]:
        """Make one transition after the other until none is due.

        Before each the journal is asked anew, so that whatever has to be undone goes before all
        that begins, however much of it there is.

        Args:
            queues: What kinds of work are done beside undoing.
            late: What is due for less than that is left to others.

        Yields:
            Each transition; None for what somebody else has done meanwhile.

        Raises:
            TransientError: the journal does not answer.
        """
        while due := self._journal.due(self._journal.now() - late, 1, queues):
            (run,) = due
            try:
                yield self.advance(run)
            except CitywardError:
                raise
            except Exception:  # its lease has to run out before it is tried again: others go on
                if run not in self._broken:
                    log.exception("Run %s does not go on.", run)
                self._broken.add(run)
                yield None

    def due(self) -> Mapping[str, Queue]:
        """Runs whose time has come: a lease that ran out, a timer, something that is new."""
        return self._journal.due(self._journal.now())

    def _next(self, run: Run, now: datetime) -> Change:
        """The transition that is due, the end of effects before all else."""
        looks: tuple[Callable[[Run, datetime], Change | None], ...] = (
            self._cancelled,
            self._undo_due,
            self._ends_due,
            self._given_up,
            self._steps_due,
            self._joined,
        )
        for look in looks:
            if (change := look(run, now)) is not None:
                return change
        return Change(run=run)

    def _finished(self, run: Run, change: Change) -> Change:
        """The transition with the state of the run that follows from it, and its next timer."""
        now = self._journal.now()
        then = after(change)
        state = state_of(then)
        entries = change.entries
        if state != run.state:
            entries = (*entries, _entry("state", "", f"run {state}", now))
        then = msgspec.structs.replace(then, state=state)
        wake = None if state in RUN_ENDS else run.due or now
        if wake and not _goes_on(change):
            wake = max(wake_at(then) or now, now + AGAIN)
        return msgspec.structs.replace(
            change, state=state, entries=entries, wake=wake, queue=queue_of(then)
        )

    # ---- Ends

    def _cancelled(self, run: Run, now: datetime) -> Change | None:
        """A person wants it to end, or its time is over: nothing begins, all is undone."""
        if not is_cancelled(run):
            return None
        rows, effects = [], _undone(run, lambda effect: True)
        touched = {one.step for one in effects}
        for row in run.steps:
            if row.went and row.id not in touched:
                continue
            if row.id in touched:
                rows.append(_moved(row, "rolling_back", row.note, went=row.went or "failure"))
            elif row.state in _BEFORE and not any(
                one.step == row.id and one.is_in_force for one in run.effects
            ):
                rows.append(_moved(row, "cancelled", "the run was cancelled", went="failure"))
        if not rows and not effects:
            return None
        return Change(run=run, steps=tuple(rows), effects=effects, entries=_states(rows, now))

    def _ends_due(self, run: Run, now: datetime) -> Change | None:
        """Effects whose time is over, or that a person wants undone."""
        wanted = [one for one in run.orders if one.kind == "undo"]

        def is_due(effect: Effect) -> bool:
            began = effect.began or run.made
            by_person = any(
                one.about == effect.key or (not one.about and one.time >= began) for one in wanted
            )
            # Also one that is intended only: what would be over does not begin.
            is_over = effect.until is not None and effect.until <= now
            return by_person or is_over

        effects = _undone(run, is_due)
        return self._ended(run, effects, now) if effects else None

    def _ended(self, run: Run, effects: tuple[Effect, ...], now: datetime) -> Change:
        """Effects that are to be taken back, with their steps."""
        rows = []
        for row in run.steps:
            if row.id in {one.step for one in effects} and row.state != "rolling_back":
                back = _moved(row, "rolling_back", row.note)
                rows += (
                    [back] if row.went else list(go_on(run, _noted(back, "undone"), "failure", now))
                )
        return Change(run=run, steps=tuple(rows), effects=effects, entries=_states(rows, now))

    def _undo_due(self, run: Run, now: datetime) -> Change | None:
        """Take one effect back, until it is seen to be gone; renew one that would end too early."""
        for effect in run.effects:
            if effect.state == "rolling_back" and (effect.again is None or effect.again <= now):
                return self._undo(run, effect, now)
            is_worn = effect.renew is not None and effect.renew <= now
            if effect.state == "applied" and is_worn and (not effect.until or now < effect.until):
                return self._renew(run, effect, now)
        return None

    def _given_up(self, run: Run, now: datetime) -> Change | None:
        if is_cancelled(run) or now < give_up_at(run):
            return None
        what = "it has not ended within twice its time; what it did is undone. Look at its steps."
        entries = (_entry("page", "", what, now), _entry("cancel", "", what, now))
        return Change(run=run, entries=entries)

    def _joined(self, run: Run, now: datetime) -> Change | None:
        for row in run.steps:
            is_open = row.state == "gated" and row.planned is None and not row.went
            if is_open and (rows := join(run, row, now)):
                return Change(run=run, steps=rows, entries=_states(rows, now))
        return None

    # ---- Steps

    def _steps_due(self, run: Run, now: datetime) -> Change | None:
        looks: Mapping[StepState, Callable[[Run, StepRow, Step, datetime], Change | None]] = {
            "intended": self._intended,
            "applied": self._applied,
            "gated": self._gated,
            "waiting_approval": self._waiting,
            "pending": self._pending,
        }
        for state, look in looks.items():
            for row in run.steps:
                is_due = row.again is None or row.again <= now
                if row.state == state and not row.went and is_due:
                    step = run.playbook.steps[row.step]
                    if (change := look(run, row, step, now)) is not None:
                        return change
        return None

    def _pending(self, run: Run, row: StepRow, step: Step, now: datetime) -> Change:
        """A step that decides is decided; an action is planned in the world as it is now."""
        if step.type != "action":
            rows = decide(run, row, now)
            return Change(run=run, steps=rows, entries=_states(rows, now))
        planned = self._planned(run, row, step, now)
        if isinstance(planned, Change):
            return planned
        gated = msgspec.structs.replace(_moved(row, "gated", ""), planned=planned, since=now)
        gated = msgspec.structs.replace(gated, attempt=0, again=None)
        return Change(run=run, steps=(gated,), entries=_states((gated,), now))

    def _planned(self, run: Run, row: StepRow, step: Step, now: datetime) -> Planned | Change:
        """What an action would do now; or what follows from that it cannot be planned."""
        try:
            return self._plan(run, step)
        except TransientError as error:
            return self._later(run, row, error, now)
        except Unsafe as error:
            why = f"{error.what}. {error.todo}"
            return _refused(self._left(run, row, "denied", why, now), row, why, now)
        except Exception as error:  # whatever an actuator of a stranger does
            log.exception("Step %s of run %s could not be planned.", step.name, run.id)
            return self._left(run, row, "failed", f"{type(error).__name__}: {error}", now)

    def _gated(self, run: Run, row: StepRow, step: Step, now: datetime) -> Change | None:
        """The gate decides; what is allowed is intended, and nothing was done yet."""
        if (planned := row.planned) is None:
            return None  # it waits for the steps within it
        if run.stage == "draft" or (run.stage == "shadow" and planned.action_class != "A0"):
            return self._left(run, row, "done", f"held back: {run.stage}", now)
        if _is_new(run.plan, planned):
            # The world has changed the plan: what people said yes to is another one.
            run_now = msgspec.structs.replace(run, approvals=())
            planned = msgspec.structs.replace(planned, checks=self._checks(run_now, planned))
            plan = _plan_with(run.plan, planned, row.since)
        else:
            planned = msgspec.structs.replace(planned, checks=self._checks(run, planned))
            plan = None
        row = msgspec.structs.replace(row, planned=planned)
        change = self._gate_said(run, row, step, planned, plan or run.plan, now)
        return msgspec.structs.replace(change, plan=plan)

    def _gate_said(
        self, run: Run, row: StepRow, step: Step, planned: Planned, plan: Plan, now: datetime
    ) -> Change:
        if planned.outcome == "deny":
            planned = msgspec.structs.replace(planned, manual=form(planned, step))
            row = msgspec.structs.replace(row, planned=planned)
            change = self._left(run, row, "denied", _reasons(planned, "deny"), now)
            return _refused(change, row, planned.manual, now)
        if planned.outcome == "needs approval":
            return self._asks(run, row, planned, plan, now)
        if planned.actuator == MANUAL:
            row = _moved(row, "intended", "")
            deadline = max(row.deadline, now + step.deadline)
            row = msgspec.structs.replace(row, deadline=deadline, since=now)
            page = _entry("page", row.id, planned.manual or planned.name, now)
            return Change(run=run, steps=(row,), entries=(*_states((row,), now), page))
        if not planned.commands:
            return self._left(run, row, "done", "it is so already", now)
        row = msgspec.structs.replace(_moved(row, "intended", ""), since=now)
        effects = tuple(self._effects(run, row, step, planned, now))
        return Change(run=run, steps=(row,), effects=effects, entries=_states((row,), now))

    def _asks(self, run: Run, row: StepRow, planned: Planned, plan: Plan, now: datetime) -> Change:
        """It waits for a yes to this plan; the yeses that are there were not enough."""
        waits = msgspec.structs.replace(
            _moved(row, "waiting_approval", _reasons(planned, "needs approval")),
            attempt=_yeses(run, plan),
            deadline=max(row.deadline, now + APPROVAL_LIVES),
        )
        return Change(run=run, steps=(waits,), entries=_states((waits,), now))

    def _waiting(self, run: Run, row: StepRow, step: Step, now: datetime) -> Change | None:
        if _yeses(run, run.plan) > row.attempt:
            # Planned anew: what was approved must still be what would be done.
            planned = self._planned(run, row, step, now)
            if isinstance(planned, Change):
                return planned
            again = msgspec.structs.replace(_moved(row, "gated", ""), planned=planned, since=now)
            return Change(run=run, steps=(again,), entries=_states((again,), now))
        if now >= row.deadline:
            return self._left(run, row, "expired", "nobody approved it in time", now)
        return None

    def _intended(self, run: Run, row: StepRow, step: Step, now: datetime) -> Change | None:
        planned = row.planned
        assert planned is not None  # what is intended was planned
        if planned.actuator == MANUAL:
            return self._answered(run, row, now)
        effect = next((e for e in run.effects if e.step == row.id and e.state == "intended"), None)
        if effect is None:
            return self._all_applied(run, row, (), now)
        try:
            done = self._act(run, planned, effect)
        except TransientError as error:
            return self._later(run, row, error, now)
        except Unsafe as error:
            return self._breaks_off(run, row, "denied", error.what, now)
        except Exception as error:  # whatever an actuator of a stranger does
            log.exception("Effect %s of run %s failed.", effect.key, run.id)
            return self._breaks_off(run, row, "failed", f"{type(error).__name__}: {error}", now)
        open_ = [e for e in run.effects if e.step == row.id and e.state == "intended"]
        if len(open_) > 1:
            return Change(run=run, effects=(done,))
        return self._all_applied(run, row, (done,), now)

    def _all_applied(
        self, run: Run, row: StepRow, effects: tuple[Effect, ...], now: datetime
    ) -> Change:
        then = {one.key: one for one in (*run.effects, *effects) if one.step == row.id}
        if all(one.state == "done" for one in then.values()):
            change = self._left(run, row, "done", "", now)
            return msgspec.structs.replace(change, effects=effects)
        row = msgspec.structs.replace(_moved(row, "applied", ""), since=now, attempt=0, again=None)
        return Change(run=run, steps=(row,), effects=effects, entries=_states((row,), now))

    def _answered(self, run: Run, row: StepRow, now: datetime) -> Change | None:
        """A person's answer to a manual step, or that there was none in time."""
        said = [one for one in run.orders if one.kind == "answer" and one.about == row.id]
        if said:
            state: StepState = "failed" if said[-1].what.startswith("failed") else "done"
            return self._left(run, row, state, said[-1].what, now)
        if now < row.deadline:
            return None
        change = self._left(run, row, "expired", "nobody did it in time", now)
        planned = row.planned
        what = f"not done in time: {planned.manual or planned.name if planned else row.step}"
        page = _entry("page", row.id, what, now)
        return msgspec.structs.replace(change, entries=(*change.entries, page))

    def _applied(self, run: Run, row: StepRow, step: Step, now: datetime) -> Change | None:
        """Read back: it is as it should be, will be soon, or is taken back."""
        verify = step.safety.verify
        try:
            is_so = all(
                self._is_so(effect, verify.expect if verify else {})
                for effect in run.effects
                if effect.step == row.id and effect.state == "applied"
            )
        except Exception as error:
            log.warning("Step %s of run %s cannot be read back: %s.", step.name, run.id, error)
            is_so = False
        if is_so:
            rows = go_on(run, _moved(row, "verified", ""), "success", now)
            return Change(run=run, steps=rows, entries=_states(rows, now))
        if now < row.since + (verify.within if verify else VERIFY_WITHIN):
            later = _tried(row, now)
            return Change(run=run, steps=(later,))
        return self._breaks_off(run, row, "failed", "its effect was not seen", now)

    # ---- The world

    def _act(self, run: Run, planned: Planned, effect: Effect) -> Effect:
        """Make it so, unless it is; then look.

        Raises:
            TransientError: the program does not answer, or it is not so yet.
            Unsafe: the gate has changed its mind.
        """
        command = msgspec.structs.replace(effect.command, token=run.token)
        actuator = self._actuator(effect.actuator)
        with self._journal.turn(effect.actuator, command.target, run.token):
            if not command.undo:
                self._ask_again(run, planned)
                actuator.apply(command)
                return _moved_effect(effect, "done", self._journal.now(), command)
            if not _holds(actuator.probe(command.target), command):
                self._ask_again(run, planned)
                actuator.apply(command)
                if not actuator.probe(command.target).is_applied:
                    raise TransientError("the device does not show it yet", effect.actuator)
        return _moved_effect(effect, "applied", self._journal.now(), command)

    def _ask_again(self, run: Run, planned: Planned) -> None:
        checks = self._checks(run, planned)
        if outcome_of(checks) != "allow":
            refused = [one.why for one in checks if one.outcome != "allow"]
            raise Unsafe("; ".join(refused) or "the gate did not answer", planned.name)

    def _checks(self, run: Run, planned: Planned) -> tuple[Check, ...]:
        """What the gate says; the kill switch is looked at here, whatever gate was handed in.

        What a person is asked to do is no effect of ours: no switch stops it.
        """
        if planned.actuator == MANUAL:
            return tuple(self._gate(run, planned))
        ids = (run.playbook.id, *(one.id for one in run.playbook.called))
        names = {"global", f"operator:{run.plan.operator}", f"actuator:{planned.actuator}"}
        names |= {f"playbook:{id}" for id in ids}
        if on := names & set(self._journal.stopped()):
            return (Check(1, "kill switch", "deny", f"stopped: {', '.join(sorted(on))}"),)
        return tuple(self._gate(run, planned))

    def _is_so(self, effect: Effect, expect: Mapping[str, Any]) -> bool:
        state = self._actuator(effect.actuator).probe(effect.command.target)
        # It was acknowledged when it was applied, and that is all that can be known.
        seen = {"is_applied": state.is_applied or not state.is_known, **state.found}
        return all(seen.get(name) == value for name, value in (expect or _APPLIED).items())

    def _undo(self, run: Run, effect: Effect, now: datetime) -> Change:
        """Take an effect back and see that it is gone; after some failures a person is asked."""
        command = effect.command
        try:
            actuator = self._actuator(effect.actuator)
            with self._journal.turn(effect.actuator, command.target, run.token):
                if other := self._other_holder(run, effect):
                    return self._is_undone(run, effect, f"it goes on for run {other}", now)
                held = _may_hold(actuator.probe(command.target), command, now)
                if held:
                    actuator.apply(_undoing(run, effect))
                    if not _is_back(actuator.probe(command.target), command):
                        raise TransientError("the device still shows it", effect.actuator)
        except Overtaken:  # at this target, by another run: a higher token comes with the next try
            tried = msgspec.structs.replace(effect, again=now + AGAIN)
            return Change(run=run, effects=(tried,))
        except Exception as error:  # it is tried again, whatever it was
            return self._not_undone(run, effect, error, now)
        change = self._is_undone(run, effect, "", self._journal.now())
        return _said_late(change, effect, self._journal.now()) if held else change

    def _other_holder(self, run: Run, effect: Effect) -> str:
        """Another run that wants the same to go on; it has taken over the state found before."""
        for other, one in self._journal.holds(effect.actuator, effect.command.target):
            if (
                other != run.id
                and one.state == "applied"
                and one.command.verb == (effect.command.verb)
            ):
                return other
        return ""

    def _is_undone(self, run: Run, effect: Effect, note: str, now: datetime) -> Change:
        gone = msgspec.structs.replace(
            effect, state="rolled_back", ended=now, again=None, note=note or effect.note
        )
        row = next(row for row in run.steps if row.id == effect.step)
        others = [e for e in run.effects if e.step == row.id and e.key != effect.key]
        rows: tuple[StepRow, ...] = ()
        if not any(one.is_in_force for one in others) and row.state == "rolling_back":
            rows = (_moved(row, "rolled_back", row.note),)
        return Change(run=run, steps=rows, effects=(gone,), entries=_states(rows, now))

    def _not_undone(self, run: Run, effect: Effect, error: Exception, now: datetime) -> Change:
        failures = effect.failures + 1
        log.warning("Effect %s could not be undone, try %d: %s.", effect.key, failures, error)
        tried = msgspec.structs.replace(
            effect, failures=failures, again=now + _pause(failures), note=str(error)[:500]
        )
        page = (
            (_entry("page", effect.key, by_hand(effect), now),) if failures == PAGED_AFTER else ()
        )
        return Change(run=run, effects=(tried,), entries=page)

    def _renew(self, run: Run, effect: Effect, now: datetime) -> Change:
        """Tell the device for a little longer; if that fails the effect ends by itself.

        What it has forgotten, or a person took back at the device, is over: only the gate begins it
        anew.
        """
        assert effect.until is not None  # a lease has an end
        until = min(now + DEVICE_LEASE, effect.until)
        command = msgspec.structs.replace(effect.command, until=until, token=run.token)
        try:
            actuator = self._actuator(effect.actuator)
            with self._journal.turn(effect.actuator, command.target, run.token):
                if not _may_hold(actuator.probe(command.target), effect.command, now):
                    gone = msgspec.structs.replace(effect, note="the device holds it no more")
                    return self._ended(run, (_rolling_back(gone),), now)
                actuator.apply(command)
        except Exception as error:
            log.warning("Effect %s could not be renewed: %s.", effect.key, error)
            return Change(run=run, effects=(_renewed(effect, effect.command, now + AGAIN),))
        return Change(run=run, effects=(_renewed(effect, command, now + RENEW_EVERY),))

    def _effects(
        self, run: Run, row: StepRow, step: Step, planned: Planned, now: datetime
    ) -> Iterator[Effect]:
        """What is intended, with the state to restore: that from before any effect of ours."""
        box, is_lease = step.safety.time_box, step.safety.rollback == "lease"
        for number, command in enumerate(planned.commands):
            ends = planned.until or (now + box if box else command.until)
            until = ends if command.undo else None
            told = (min(until, now + DEVICE_LEASE) if is_lease else until) if until else now
            holders = self._journal.holds(planned.actuator, command.target)
            prior = holders[0][1].command.prior if holders else planned.prior or command.prior
            yield Effect(
                key=action_key(run.id, row.id, command.target, f"{number} {command.verb}"),
                step=row.id,
                actuator=planned.actuator,
                until=until,
                lease=is_lease and until is not None,
                began=now,
                renew=now + RENEW_EVERY if is_lease and until else None,
                command=msgspec.structs.replace(
                    command,
                    until=told if until else command.until,
                    key=action_key(run.id, row.id, command.target, f"{number} {command.verb}"),
                    token=run.token,
                    prior=prior,
                ),
            )

    def _actuator(self, name: str) -> Actuator:
        if name not in self._actuators:
            raise Unsafe(f"there is no actuator {name} here", "response.actuators", "Set it up.")
        return self._actuators[name]

    # ---- Ways out of a step

    def _later(self, run: Run, row: StepRow, error: TransientError, now: datetime) -> Change:
        """Something outside did not answer: again in a while, until the step's time is over."""
        if now >= row.deadline:
            return self._breaks_off(run, row, "failed", f"until its deadline: {error.what}", now)
        later = msgspec.structs.replace(_tried(row, now), note=error.what)
        if row.state == "waiting_approval":  # its number is that of the yeses that were not enough
            later = msgspec.structs.replace(later, attempt=row.attempt)
        return Change(run=run, steps=(later,))

    def _left(self, run: Run, row: StepRow, state: StepState, note: str, now: datetime) -> Change:
        went = "success" if state == "done" else "failure"
        rows = go_on(run, _moved(row, state, note), went, now)  # type: ignore[arg-type]
        return Change(run=run, steps=rows, entries=_states(rows, now))

    def _breaks_off(
        self, run: Run, row: StepRow, state: StepState, why: str, now: datetime
    ) -> Change:
        """A step that has perhaps changed the world is taken back before it has failed."""
        mine = [one for one in run.effects if one.step == row.id]
        back = tuple(
            _rolling_back(one)
            for one in mine
            if one.command.undo and one.state in ("intended", "applied")
        )
        unsent = tuple(
            msgspec.structs.replace(one, state="failed", ended=now)
            for one in mine
            if not one.command.undo and one.state == "intended"
        )
        change = self._left(run, row, "rolling_back" if back else state, why, now)
        change = msgspec.structs.replace(change, effects=(*back, *unsent))
        if state != "denied" or row.planned is None:
            return change
        instead = task(row.planned, run.playbook.steps[row.step])
        return _refused(change, row, "\n".join((why, *instead)), now)


_APPLIED: Mapping[str, Any] = {"is_applied": True}
_BEFORE = ("pending", "gated", "waiting_approval", "intended")


def by_hand(effect: Effect) -> str:
    """The exact steps for a person who has to undo an effect."""
    command = effect.command
    found = msgspec.json.encode(command.prior, order="deterministic").decode()
    return (
        f"{effect.actuator} could not undo {command.verb} of {command.target.type}"
        f" {command.target.value} ({effect.note}). 1. Look whether it still holds at"
        f" {effect.actuator}. 2. {command.undo.capitalize()} {command.target.value} there, so that"
        f" it is again as it was found: {found}. 3. Answer here that it is done."
    )


def _refused(change: Change, row: StepRow, what: str, now: datetime) -> Change:
    """With a line that becomes a finding: why it was not done, and what a person does instead."""
    name = change.run.playbook.steps[row.step].name
    refused = _entry("refused", row.id, f"{name}: {what}", now)
    return msgspec.structs.replace(change, entries=(*change.entries, refused))


def _said_late(change: Change, effect: Effect, now: datetime) -> Change:
    """With an alarm, if it held for longer than anybody was told."""
    if effect.until is None or now <= effect.until + LATE:
        return change
    command = effect.command
    what = (
        f"{command.verb} of {command.target.value} by {effect.actuator} held until now, and should"
        f" have ended at {effect.until:%Y-%m-%d %H:%M} UTC. It is undone; see why nothing did so."
    )
    page = _entry("page", effect.key, what, now)
    return msgspec.structs.replace(change, entries=(*change.entries, page))


def _undoing(run: Run, effect: Effect) -> Command:
    command = effect.command
    key = action_key(run.id, effect.step, command.target, f"undo {effect.key}")
    return msgspec.structs.replace(
        command, verb=command.undo, undo=command.verb, key=key, token=run.token
    )


def _undone(run: Run, is_due: Callable[[Effect], bool]) -> tuple[Effect, ...]:
    """Effects that are to be taken back now."""
    return tuple(
        _rolling_back(one)
        for one in run.effects
        if one.state in ("intended", "applied") and one.command.undo and is_due(one)
    )


def _rolling_back(effect: Effect) -> Effect:
    return msgspec.structs.replace(effect, state="rolling_back", again=None)


def _holds(state: State, command: Command) -> bool:
    """Whether what a command asks for is so, for as long as it asks."""
    return state.is_applied and (state.until is None or state.until >= command.until - SLACK)


def _may_hold(state: State, command: Command, now: datetime) -> bool:
    """Whether it holds, or a device that cannot be asked was told so for longer than until now."""
    return state.is_applied or (not state.is_known and now < command.until)


def _is_back(state: State, command: Command) -> bool:
    """Whether it is again as it was found: what a person had done before us stays done."""
    if not state.is_applied:
        return True
    prior = dict(command.prior)
    if until := prior.pop("until", None):
        ends = datetime.fromisoformat(str(until))
        if state.until is None or state.until > ends + SLACK:
            return False
    return bool(prior) and all(state.found.get(name) == value for name, value in prior.items())


def _is_new(plan: Plan, planned: Planned) -> bool:
    """Whether a plan said something else of an action, or nothing."""
    said = next((one for one in plan.actions if one.step == planned.step), None)
    return said is None or _what(said) != _what(planned)


def _plan_with(plan: Plan, planned: Planned, now: datetime) -> Plan:
    """The plan with one action as it is now."""
    said = [one.step for one in plan.actions]
    place = said.index(planned.step) if planned.step in said else len(said)
    # As if it had been planned with the others: the plan's hash counts from when that was made.
    then = _shifted(planned, plan.made - now)
    actions = (*plan.actions[:place], then, *plan.actions[place + 1 :])
    return msgspec.structs.replace(plan, actions=actions)


def _what(planned: Planned) -> Any:
    commands = [(one.verb, one.target, one.undo, one.args, one.prior) for one in planned.commands]
    what = (planned.action_class, planned.actuator, planned.target, planned.prior)
    return what, commands


def _shifted(planned: Planned, by: timedelta) -> Planned:
    commands = tuple(msgspec.structs.replace(one, until=one.until + by) for one in planned.commands)
    until = planned.until + by if planned.until else None
    return msgspec.structs.replace(planned, commands=commands, until=until)


def _yeses(run: Run, plan: Plan) -> int:
    return sum(one.plan_hash == plan.hash for one in run.approvals)


def _reasons(planned: Planned, outcome: str) -> str:
    return "; ".join(one.why for one in planned.checks if one.outcome == outcome)


def _renewed(effect: Effect, command: Command, renew: datetime) -> Effect:
    return msgspec.structs.replace(effect, command=command, renew=renew)


def _moved(row: StepRow, state: StepState, note: str, *, went: str | None = None) -> StepRow:
    left = {} if went is None else {"went": went}
    return msgspec.structs.replace(row, state=state, note=note, **left)


def _noted(row: StepRow, note: str) -> StepRow:
    return msgspec.structs.replace(row, note=note)


def _moved_effect(effect: Effect, state: str, now: datetime, command: Command) -> Effect:
    ended = now if state == "done" else None
    # It began when it was intended: who wanted it undone since, wanted that.
    return msgspec.structs.replace(effect, state=state, ended=ended, command=command)


def _tried(row: StepRow, now: datetime) -> StepRow:
    return msgspec.structs.replace(row, attempt=row.attempt + 1, again=now + _pause(row.attempt))


def _pause(attempt: int) -> timedelta:
    return min(AGAIN_MAX, AGAIN * (1 << min(attempt, 10)))


def _goes_on(change: Change) -> bool:
    """Whether another transition may be due at once: something has moved."""
    before = {row.id: row.state for row in change.run.steps}
    effects = {one.key: one.state for one in change.run.effects}
    return (
        any(before.get(row.id) != row.state or row.went for row in change.steps)
        or any(effects.get(one.key) != one.state for one in change.effects)
        or any(one.kind == "cancel" for one in change.entries)
    )


def _entry(kind: EntryKind, about: str, what: str, now: datetime) -> Entry:
    return Entry(kind=kind, about=about, what=what, time=now)


def _states(rows: Sequence[StepRow], now: datetime) -> tuple[Entry, ...]:
    return tuple(
        _entry("state", row.id, f"{row.state}: {row.note}" if row.note else row.state, now)
        for row in rows
    )
