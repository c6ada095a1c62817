"""`cityward incident`: cases, their legal clocks, and drafts of what has to be told."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, NamedTuple

from cyclopts import Parameter

from cityward import InputError
from siem import assembly, duties
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import ConfigFile, Output, moment, settings_with_state, who
from siem.node import now_utc
from siem.output import visible
from siem.store.cases import Incident, Submission
from siem.store.embedded import NodeDb
from siem.store.protocol import Document

COLUMNS = ("id", "severity", "stage", "title", "owner", "findings", "next_duty", "due")
CLOCKS = ("incident", "duty", "state", "due", "left", "draft", "name")


class Opened(NamedTuple):
    """The state of a node, and the duties that hold there."""

    db: NodeDb
    operator: str
    deadlines: duties.Duties

    def known(self, id: str) -> Incident:
        """One incident.

        Raises:
            InputError: there is none.
        """
        found = self.db.cases.get(id)
        if found is None:
            todo = "cityward incident list --closed names them."
            raise InputError(f"there is no incident {id!r}", "ID", todo)
        return found

    def findings(self, one: Incident) -> list[Document]:
        """Its findings that are there, oldest first."""
        found = [finding for finding in map(self.db.get, one.findings) if finding is not None]
        return sorted(found, key=lambda finding: finding["finding.first_seen"])

    def clocks(self, one: Incident, now: datetime) -> list[duties.Clock]:
        """Its clocks, those that are due first first."""
        return duties.clocks(one, self.deadlines, now, self.findings(one))


def list_(
    *words: str, closed: bool = False, config: ConfigFile = None, output: Output = None
) -> int:
    """List incidents, those changed last first.

    Example: cityward incident list

    Args:
        words: Words of the title, a service, the owner or the number.
        closed: Also those that are closed.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    now = now_utc()
    rows = []
    with _opened(config) as node:
        for one in node.db.cases.all(open_only=not closed, words=" ".join(words)):
            running = [c for c in node.clocks(one, now) if c.state in ("runs", "overdue")]
            rows.append(
                {
                    **{name: getattr(one, name) for name in COLUMNS[:5]},
                    "findings": len(one.findings),
                    "next_duty": running[0].duty.id if running else "",
                    "due": running[0].due if running else None,
                }
            )
    streams.write(rows, streams.form_for(output, sys.stdout), COLUMNS)
    if not rows:
        print("No incident is open." if not closed else "There is no incident.", file=sys.stderr)
    return 0


def open_(
    title: str,
    *findings: str,
    severity: str = "",
    aware: str = "",
    service: Annotated[list[str] | None, Parameter(negative=())] = None,
    config: ConfigFile = None,
) -> int:
    """Open an incident; the time of awareness starts its legal clocks.

    Example: cityward incident open "Unknown writer at the heating" --aware 2h --severity high

    Args:
        title: What happened, in a line.
        findings: Ids of findings that belong to it.
        severity: informational to fatal; otherwise medium.
        aware: Since when it is known: 2h ago, or a time; it can be said later.
        service: A service that is affected; once for each.
        config: Settings file; otherwise the first one found counts.
    """
    now = now_utc()
    said: dict[str, Any] = {"services": service or ()}
    said |= {"severity": severity} if severity else {}
    said |= {"aware_at": moment(aware, "--aware", now)} if aware else {}
    with _opened(config) as node:
        usual = duties.usual(node.deadlines)
        made = node.db.cases.open(
            node.operator, title, who(), now, findings=findings, duties=usual, **said
        )
    print(made.id)
    if not aware:
        print("No clock runs: say since when it is known with incident set.", file=sys.stderr)
    return 0


def show(id: str, *, config: ConfigFile = None, output: Output = None) -> int:
    """Show one incident: what belongs to it, its clocks, its history.

    Example: cityward incident show 2026-0001

    Args:
        id: Its number.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    import msgspec

    form = streams.form_for(output, sys.stdout)
    with _opened(config) as node:
        one = node.known(id)
        if form != "table":
            streams.write([msgspec.to_builtins(one)], form, ())
            return 0
        findings, running = node.findings(one), node.clocks(one, now_utc())
    print(f"{one.id}  {visible(one.title)}")
    print(f"{one.severity}, {one.stage}, cause {one.cause}, {visible(one.owner) or 'nobody'}")
    if one.summary:
        print(visible(one.summary))
    for clock in running:
        print(f"  {clock.duty.name:<36} {_state(clock, now_utc())}")
    for finding in findings:
        print(f"  {finding['finding.id'][:8]}  {visible(str(finding['finding.title']))}")
    for step in one.history:
        why = f" – {visible(step.why)}" if step.why else ""
        print(f"  {step.time:%Y-%m-%d %H:%M}  {visible(step.by)}: {visible(step.what)}{why}")
    return 0


def set_(
    id: str,
    *findings: str,
    stage: str = "",
    severity: str = "",
    cause: str = "",
    owner: str | None = None,
    summary: str | None = None,
    aware: str = "",
    duty: Annotated[list[str] | None, Parameter(negative=())] = None,
    note: str = "",
    reason: str = "",
    config: ConfigFile = None,
) -> int:
    """Say something of an incident, or let findings join it.

    Example: cityward incident set 2026-0001 --stage contained --note "port 7 is closed"

    Args:
        id: Its number.
        findings: Ids of findings that join it.
        stage: new, investigating, contained, recovering or closed.
        severity: informational to fatal.
        cause: unknown, malicious, error, malfunction or hazard.
        owner: Who has it; empty: nobody.
        summary: What happened, for drafts.
        aware: Since when it is known: 2h ago, or a time; starts the clocks.
        duty: A duty that stands on it; once for each, they replace the others.
        note: A line for its history.
        reason: Why it is changed.
        config: Settings file; otherwise the first one found counts.
    """
    now, by = now_utc(), who()
    given = {"stage": stage, "severity": severity, "cause": cause}
    said: dict[str, Any] = {name: value for name, value in given.items() if value}
    said |= {"owner": owner} if owner is not None else {}
    said |= {"summary": summary} if summary is not None else {}
    said |= {"aware_at": moment(aware, "--aware", now)} if aware else {}
    with _opened(config) as node:
        for one in duty or ():
            _duty(node, one)
        said |= {"duties": duty} if duty else {}
        if findings:
            node.db.cases.join(id, findings, by, now)
        if said:
            node.db.cases.change(id, by, now, reason, **said)
        if note:
            node.db.cases.note(id, note, by, now)
        done = node.known(id)
    print(f"{id} has revision {done.revision}", file=sys.stderr)
    return 0


def clock(id: str = "", *, config: ConfigFile = None, output: Output = None) -> int:
    """List legal clocks: of one incident, or of all that are open; leaves with 3 if one is overdue.

    Example: cityward incident clock 2026-0001

    Args:
        id: Number of an incident; otherwise of every open one.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    now = now_utc()
    rows = []
    with _opened(config) as node:
        chosen = [node.known(id)] if id else node.db.cases.all(open_only=True)
        for one in chosen:
            for running in node.clocks(one, now):
                duty = running.duty
                rows.append(
                    {
                        "incident": one.id,
                        "duty": duty.id,
                        "state": running.state,
                        "due": running.due,
                        "left": _state(running, now),
                        "draft": f"{running.filled} of {len(duty.fields)}",
                        "name": duty.name,
                    }
                )
    streams.write(rows, streams.form_for(output, sys.stdout), CLOCKS)
    if not rows:
        print("No clock stands on an open incident.", file=sys.stderr)
    return 3 if any(row["state"] == "overdue" for row in rows) else 0


def draft(id: str, duty: str, *, config: ConfigFile = None) -> int:
    """Print the draft of a duty, filled from the case; the node never sends it.

    Example: cityward incident draft 2026-0001 nis2-early-warning

    Args:
        id: Number of the incident.
        duty: Id of the duty, as incident clock lists it.
        config: Settings file; otherwise the first one found counts.
    """
    with _opened(config) as node:
        one, wanted = node.known(id), _duty(node, duty)
        answers = duties.draft(one, wanted, node.findings(one))
    print(f"{wanted.name}\n{wanted.law}\nTo: {wanted.to}\nIncident {one.id}")
    for answer in answers:
        print(f"\n{answer.asked.asks}\n{visible(answer.text) or '…'}")
    return 0


def submit(
    id: str,
    duty: str,
    *,
    to: str = "",
    time: str = "",
    reference: str = "",
    config: ConfigFile = None,
) -> int:
    """Record that a person has sent what a duty asks for, with the draft as it stands.

    Example: cityward incident submit 2026-0001 nis2-early-warning --reference C-42

    Args:
        id: Number of the incident.
        duty: Id of the duty.
        to: To whom; otherwise whom the duty names.
        time: When: 10m ago, or a time; otherwise now.
        reference: The recipient's number for it.
        config: Settings file; otherwise the first one found counts.
    """
    now = now_utc()
    with _opened(config) as node:
        one, wanted = node.known(id), _duty(node, duty)
        answers = duties.draft(one, wanted, node.findings(one))
        said = "\n\n".join(f"{a.asked.asks}\n{a.text}" for a in answers if a.text)
        at = moment(time, "--time", now) if time else now
        sent = Submission(wanted.id, who(), at, to or wanted.to, reference, said)
        node.db.cases.submit(id, sent, now)
    print(
        f"{wanted.name} of {id} is recorded as submitted {at:%Y-%m-%d %H:%M} UTC", file=sys.stderr
    )
    return 0


def _duty(node: Opened, id: str) -> duties.Duty:
    found = node.deadlines.get(id)
    if found is None:
        known = ", ".join(node.deadlines)
        raise InputError(f"no duty is called {id!r}", "DUTY", f"One of {known}.")
    return found


def _state(clock: duties.Clock, now: datetime) -> str:
    if clock.due is None:
        return f"waits for {clock.after}"
    if clock.state in ("submitted", "submitted late"):
        return clock.state
    seconds = abs((clock.due - now).total_seconds())
    lasting = f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{lasting} {'left' if clock.state == 'runs' else 'overdue'}"


@contextmanager
def _opened(config: str | None) -> Iterator[Opened]:
    settings = settings_with_state(config)
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        yield Opened(db, settings.operator, assembly.deadlines_of(settings))
    finally:
        db.close()
