"""`cityward playbook run, approve, refuse, undo, stop, start`: what people decide at a terminal.

Who types is the account of the machine; for a yes it has to be a person of this node as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from cyclopts import Parameter

from cityward import InputError, Unsafe
from playbooks.journal import OrderKind
from playbooks.model import Stage
from siem import assembly
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import ConfigFile, Output, UsageError, settings_with_state, who
from siem.console.responses import ask_of, asks, in_force_rows
from siem.node import now_utc
from siem.output import visible
from siem.responding import ResponseDesk
from siem.store.embedded import NodeDb
from siem.store.stages import SHADOW_RUNS

Switch = Annotated[bool, Parameter(negative=())]

IN_FORCE = (
    *("effect", "what", "target", "actuator", "state", "since", "until"),
    *("asked_by", "approved_by", "why", "run"),
)
GLOBAL = "global"


def run(which: str, *, finding: str, live: Switch = False, config: ConfigFile = None) -> int:
    """Plan a playbook for a finding; with --live start it, and let it ask for approval.

    Leaves with 6 if it may not start.
    Example: cityward playbook run external-scanner --finding 0b8f4e1c

    Args:
        which: Name, id or file name of a playbook that counts here.
        finding: Id of the finding, or its beginning if no other begins so.
        live: Start it; otherwise nothing but the plan is made.
        config: Settings file; otherwise the first one found counts.
    """
    from siem.commands.playbook_plan import told

    with _desk(config) as (desk, db):
        one, about = desk.known(which), _finding(db, finding)
        made = desk.plan(one.id, about)
        for line in told(made, one, db.get(about) or {}):
            print(visible(line))
        if live:
            started = desk.start(one.id, about, who(), made.hash)
            print(f"Run {started} is started. Somebody else approves it:", file=sys.stderr)
            print(f"cityward playbook approve {started} --reason …", file=sys.stderr)
    return 0


def approve(run: str = "", *, reason: str = "", plan: str = "", config: ConfigFile = None) -> int:
    """Say yes to the plan of a run; without a run list what waits.

    You need the role analyst or approver at this node, and cannot approve what you started.
    Leaves with 6 if your yes does not count. Example: cityward playbook approve

    Args:
        run: Id of the run.
        reason: Why; it goes into the journal with your name.
        plan: Beginning of the hash of the plan that you saw; if another holds now, nothing is
            approved.
        config: Settings file; otherwise the first one found counts.
    """
    with _desk(config) as (desk, db):
        if not run:
            return _waiting(desk)
        _needs(reason)
        ask = ask_of(desk.runs.get(run))
        if ask is None:
            raise Unsafe(f"run {run} waits for no yes", "RUN", "See cityward playbook approve.")
        person = db.person(who())
        role = ask.role_of(person) if person is not None and not person.disabled else ""
        if person is None or not role:
            todo = "Ask somebody who is; see cityward person list."
            raise Unsafe(f"{who()} is no analyst or approver of this node", run, todo)
        if why := ask.why_not(person):
            raise Unsafe(why.rstrip("."), run, "Nothing was approved.")
        seen = ask.run.plan.hash
        is_seen = seen.startswith(plan) and desk.runs.approve(run, person.name, role, seen, reason)
        if not is_seen:
            todo = "Nothing was approved; look at the run as it is now."
            raise Unsafe("the plan is not the one that you saw", run, todo)
        print(f"{ask.title} Your yes to plan {seen[:16]} is kept, as {role}.", file=sys.stderr)
    return 0


def refuse(run: str, *, reason: str, config: ConfigFile = None) -> int:
    """Say no: the run is cancelled, and what it did is undone.

    Example: cityward playbook refuse 5b8c0f3e9a417d26 --reason "that is our own scanner"

    Args:
        run: Id of the run.
        reason: Why; it goes into the journal with your name.
        config: Settings file; otherwise the first one found counts.
    """
    with _desk(config) as (desk, _):
        _needs(reason)
        _order(desk, run, "cancel", f"refused: {reason}")
    print(f"Run {run} is refused.", file=sys.stderr)
    return 0


def undo(effect: str, *, reason: str = "", config: ConfigFile = None) -> int:
    """Take back now what is in force; it needs no approval.

    Example: cityward playbook undo 7ba799ca --reason "the partner called"

    Args:
        effect: Its id as `playbook list --in-force` shows it, or its beginning; or the id of a
            run, for all that it did.
        reason: Why; it goes into the journal with your name.
        config: Settings file; otherwise the first one found counts.
    """
    with _desk(config) as (desk, _):
        held = desk.runs.in_force()
        found = [one for one in held if effect and one.effect.key.startswith(effect)]
        of_run = any(one.run == effect for one in held)
        if len(found) != 1 and not of_run:
            what = f"{len(found) or 'no'} effects in force begin with {effect!r}"
            raise InputError(what, "EFFECT", "See cityward playbook list --in-force.")
        run, about = (effect, "") if of_run else (found[0].run, found[0].effect.key)
        _order(desk, run, "undo", reason or "undone by a person", about)
    print(f"{effect} is being undone; playbook list --in-force shows when.", file=sys.stderr)
    return 0


def stop(*, reason: str, playbook: str = "", actuator: str = "", config: ConfigFile = None) -> int:
    """Stop everything, a playbook or an actuator: nothing new is applied until `start`.

    What is in force ends at its time; `undo` takes it back now. Without the command the file STOP
    in the state folder does the same. Example: cityward playbook stop --reason "wrong target"

    Args:
        reason: Why; everybody sees it on every page of playbooks.
        playbook: Only this one, by name or id.
        actuator: Only this one.
        config: Settings file; otherwise the first one found counts.
    """
    return _switch(reason, playbook, actuator, config, on=True)


def start(*, reason: str, playbook: str = "", actuator: str = "", config: ConfigFile = None) -> int:
    """Let what was stopped go on; leaves with 6 while a file stops everything.

    Example: cityward playbook start --reason "the list is mended"

    Args:
        reason: Why.
        playbook: Only this one, by name or id.
        actuator: Only this one.
        config: Settings file; otherwise the first one found counts.
    """
    return _switch(reason, playbook, actuator, config, on=False)


def stage(
    which: str, stage: Stage | None = None, *, reason: str = "", config: ConfigFile = None
) -> int:
    """Say how far a playbook may go at this node; without a stage, how far it may, and why.

    It goes live after 20 runs in shadow as it is now, or with a waiver (`playbook sign --waive`);
    leaves with 6 before. A changed file begins anew.
    Example: cityward playbook stage external-scanner approve_all --reason "the plans were right"

    Args:
        which: Name, id or file name of a playbook that counts here.
        stage: draft (never runs), shadow (tells, and shows what it would do), approve_all (a person
            says yes to each step), live.
        reason: Why; it goes into the audit trail with your name.
        config: Settings file; otherwise the first one found counts.
    """
    with _desk(config) as (desk, _):
        if stage is not None:
            _needs(reason)
            desk.set_stage(desk.known(which).id, stage, who(), reason)
        one = desk.known(which)
        shown = f"{desk.shadow_runs(one)} of {SHADOW_RUNS} runs in shadow as it is now"
    waived = f"; {one.waived_by} has signed a waiver" if one.waived_by else ""
    print(visible(f"{one.name} is in stage {one.stage}. {shown}{waived}."))
    return 0


def in_force(config: str | None, output: Output) -> int:
    """What is in force now, for `playbook list --in-force`."""
    with _desk(config) as (desk, _):
        rows = in_force_rows(desk)
    streams.write(rows, streams.form_for(output, sys.stdout), IN_FORCE)
    if not rows:
        print("Nothing is in force.", file=sys.stderr)
    return 0


def _switch(reason: str, playbook: str, actuator: str, config: str | None, *, on: bool) -> int:
    if playbook and actuator:
        raise UsageError("a playbook and an actuator are named", "--playbook", "Name one.")
    _needs(reason)
    with _desk(config) as (desk, _):
        name = GLOBAL
        if playbook:
            name = f"playbook:{desk.known(playbook).id}"
        elif actuator:
            name = f"actuator:{actuator}"
        desk.runs.switch(name, who(), reason, on=on)
        file = desk.runs.stop_file
        if not on and name == GLOBAL and file is not None and file.exists():
            raise Unsafe("a file stops everything still", str(file), "Delete it, if you may.")
    said = "Everything" if name == GLOBAL else name
    print(f"{said} {'is stopped' if on else 'goes on'}.", file=sys.stderr)
    return 0


def _waiting(desk: ResponseDesk) -> int:
    found = asks(desk)
    for one in found:
        planned, yes = one.planned, ", ".join(a.by for a in one.yes) or "nobody yet"
        print(visible(f"{one.run.id}  {one.title}"))
        print(visible(f"   {planned.actuator}, {planned.target.value}, {planned.undo}"))
        until = f"{one.until:%H:%M} UTC"
        print(visible(f"   class {planned.action_class}, yes: {yes}; void at {until}"))
        print(f"   plan {one.run.plan.hash[:16]}")
    if not found:
        print("Nothing waits for a yes.", file=sys.stderr)
    return 0


def _order(desk: ResponseDesk, run: str, kind: OrderKind, what: str, about: str = "") -> None:
    if not desk.runs.order(run, kind, who(), what, about):
        raise InputError(f"no run {run} is open", "RUN", "Nothing was changed.")


def _needs(reason: str) -> None:
    if not reason.strip():
        raise UsageError("a reason is missing", "--reason", "Say why, in a line.")


def _finding(db: NodeDb, begin: str) -> str:
    from siem.commands.playbook_plan import _found

    found = db.get(begin) or _found(db, begin)
    if found is None:
        what = f"there is no finding {begin}, or several begin so"
        raise InputError(what, "--finding", "See cityward finding list.")
    return str(found["finding.id"])


@contextmanager
def _desk(config: str | None) -> Iterator[tuple[ResponseDesk, NodeDb]]:
    settings = settings_with_state(config)
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    events = assembly.events_of(settings, now_utc, write=False)
    try:
        yield ResponseDesk(settings, db, events, now_utc), db
    finally:
        events.close()
        db.close()
