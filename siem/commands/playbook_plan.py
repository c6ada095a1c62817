"""`cityward playbook plan` and `breaker`: what would be done, and whether an actuator may act."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from cityward import InputError
from cityward.command import Command
from playbooks import calls, targets
from playbooks import playbook as files
from playbooks.model import Check, Plan, Planned, Playbook
from playbooks.plan import plan
from playbooks.safety import is_breaker_open
from siem import assembly
from siem.actuators import actuators_of, specs
from siem.assets import from_settings
from siem.commands.common import ConfigFile, Output, settings_with_state, who
from siem.config import Settings
from siem.facts import book_of
from siem.node import now_utc
from siem.output import visible
from siem.playbooks import keys_of, playbooks_of
from siem.store.embedded import NodeDb
from siem.store.protocol import Document, Range
from siem.store.stages import staged

SIGNS = {"allow": "ok", "needs approval": "?", "deny": "NO"}
_ID = re.compile(r"[0-9a-f-]{4,36}")
OUTCOMES = {
    "allow": "would be done",
    "needs approval": "waits for a yes",
    "deny": "not done",
}
TOLD = {"manual": "a person is asked"}
"""What is no actuator."""


def plan_(which: str, *, finding: str, config: ConfigFile = None, output: Output = None) -> int:
    """Show what a playbook would do about a finding now; nothing is sent.

    Example: cityward playbook plan external-scanner --finding 5e0f7f2e-6f36-5a0e-9a53-8d1d3c3c8f11

    Args:
        which: A file, or the name, id or file name of a playbook that counts here.
        finding: Id of the finding, or its beginning if no other begins so.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table or json.
    """
    settings = settings_with_state(config)
    one = _playbook(which, settings)
    with (
        closing(assembly.db_of(settings, from_settings(settings), now_utc)) as db,
        closing(assembly.events_of(settings, now_utc, write=False)) as events,
    ):
        about = db.get(finding) or _found(db, finding)
        if about is None:
            what = f"there is no finding {finding}, or several begin so"
            raise InputError(what, "--finding", "See cityward finding list.")
        one = staged(one, db.stages.all())
        facts = book_of(settings, db, events, specs()).at(now_utc())
        made = plan(one, about, facts, actuators_of(settings))
    if output in ("json", "ndjson"):
        said = {"hash": made.hash, **msgspec.to_builtins(made)}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(said), indent=2).decode() + "\n")
    else:
        for line in told(made, one, about):
            print(visible(line))
    return 0


def breaker(actuator: str, *, close: str = "", config: ConfigFile = None) -> int:
    """Say whether the circuit breaker of an actuator is open, or close it.

    It opens after three failures, or two rollbacks by people, within an hour. Leaves with 1 if it
    is open. Example: cityward playbook breaker nftables --close "the gateway has its disk back"

    Args:
        actuator: Its name in the settings.
        close: Close it; the reason, which stands in the audit trail.
        config: Settings file; otherwise the first one found counts.
    """
    settings = settings_with_state(config)
    if actuator not in settings.response.actuators:
        todo = f"Named are: {', '.join(sorted(settings.response.actuators)) or 'none'}."
        raise InputError(f"no actuator is called {actuator}", "response.actuators", todo)
    with closing(assembly.db_of(settings, from_settings(settings), now_utc)) as db:
        if close:
            db.runs.close_breaker(actuator, who(), close)
        failures, rollbacks = db.runs.failures(actuator), db.runs.rollbacks(actuator)
    is_open = is_breaker_open(failures, rollbacks)
    state = "open: nothing is given to it" if is_open else "closed"
    counts = f"{len(failures)} failures and {len(rollbacks)} rollbacks since it was last closed"
    print(f"The circuit breaker of {actuator} is {state}. {counts}.")
    return 1 if is_open else 0


def told(made: Plan, playbook: Playbook, finding: Document) -> Iterator[str]:
    """A plan as a person reads it before saying yes."""
    title, severity = finding.get("finding.title", ""), finding.get("finding.severity", "")
    yield f"{playbook.name}: what it would do about {title} ({severity})"
    yield f"Planned {made.made:%Y-%m-%d %H:%M} UTC for {made.operator}. Nothing was sent."
    for number, one in enumerate(made.actions, 1):
        yield ""
        yield from _action(number, one)
    yield ""
    counts = Counter(_outcome(one) for one in made.actions)
    yield ", ".join(f"{count} {what}" for what, count in counts.items()) or "Nothing to do"
    yield f"Plan {made.hash[:16]}; an approval is for this plan, and for no other."


def _action(number: int, one: Planned) -> Iterator[str]:
    yield f"{number}  {one.name} ({one.action_class}, {one.actuator}): {_outcome(one)}"
    is_planned = one.actuator not in TOLD and not any(check.number == 0 for check in one.checks)
    if one.commands:
        for command in one.commands:
            yield f"   does     {_command(command)}"
    elif one.target != targets.NOWHERE and is_planned:
        yield f"   does     nothing: {targets.words(one.target)} is so already"
    if one.undo:
        yield f"   ends     {one.undo}"
    if one.action_class != "A0" and one.actuator not in TOLD:
        yield f"   affects  {', '.join(one.dependants[:12]) or 'nothing that depends on it'}"
    # What all is well with is one line: a person reads what is not.
    fine = [str(check.number) for check in one.checks if check.outcome == "allow"]
    if fine:
        yield f"   checks   {len(fine)} of {len(one.checks)} have nothing against it"
    for check in one.checks:
        if check.outcome != "allow":
            yield f"   {SIGNS[check.outcome]:<8} {_check(check)}"
    label = "task" if one.actuator in TOLD else "instead"
    # The reasons stand above, with their checks.
    lines = [line for line in one.manual.splitlines() if one.outcome != "deny" or _is_task(line)]
    for line in lines:
        yield f"   {label:<8} {line}"
        label = ""


def _is_task(line: str) -> bool:
    return not line.startswith(("- ", "cityward does not"))


def _outcome(one: Planned) -> str:
    if one.outcome == "allow" and one.actuator in TOLD:
        return TOLD[one.actuator]
    return OUTCOMES[one.outcome]


def _command(one: Command) -> str:
    args = "".join(f" {name}={value}" for name, value in one.args.items())
    until = f", until {one.until:%Y-%m-%d %H:%M} UTC" if one.undo else ""
    return f"{one.verb} {targets.words(one.target)}{args}".replace("  ", " ") + until


def _check(one: Check) -> str:
    return f"{one.number} {one.name}: {one.why}" if one.number else one.why


def _found(db: NodeDb, begin: str) -> Document | None:
    """The only finding whose id begins so."""
    if not _ID.fullmatch(begin):
        return None
    rows = db.search(f"finding.id:{begin}*", Range(), limit=2).rows
    return rows[0] if len(rows) == 1 else None


def _playbook(which: str, settings: Settings) -> Playbook:
    """A playbook that counts here, or a file."""
    loaded = playbooks_of(settings, now_utc())
    for one in loaded.playbooks:
        if which.lower() in (one.id, one.name.lower(), Path(one.file).stem.lower()):
            return one
    path = Path(which)
    if not path.is_file():
        raise InputError(f"there is no playbook {which}", "", "See cityward playbook list.")
    one = files.read_signed(path, specs(), keys_of(settings), now_utc())
    others = {known.id: known for known in loaded.playbooks}
    return calls.with_called(one, others)
