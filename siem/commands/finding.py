"""`cityward finding`: what the detectors concluded, and what people make of it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from siem import assembly
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import (
    ConfigFile,
    Output,
    Quiet,
    UsageError,
    as_they_come,
    moment,
    newer,
    readable_query,
    settings_with_state,
    span,
    stopping,
    who,
)
from siem.node import now_utc
from siem.output import Form, text, visible
from siem.store.embedded import NodeDb
from siem.store.protocol import Change, Document, Range

COLUMNS = (
    "finding.severity",
    "finding.title",
    "finding.description",
    "finding.count",
    "finding.last_seen",
    "finding.status",
    "finding.id",
)
CARD = (
    ("severity", "finding.severity"),
    ("risk", "finding.risk"),
    ("status", "finding.status"),
    ("verdict", "finding.verdict"),
    ("assigned to", "assignee"),
    ("asset", "cw.asset.asset_id"),
    ("zone", "cw.asset.zone"),
    ("source", "source.ip"),
    ("destination", "destination.ip"),
    ("technique", "threat.technique.id"),
    ("matches", "finding.count"),
    ("first seen", "finding.first_seen"),
    ("last seen", "finding.last_seen"),
    ("rule", "rule.name"),
)
"""Lines of one finding: word and field."""
EVENTS_SHOWN = 5

Status = Literal["new", "in_progress", "suppressed", "resolved", "archived"]
Verdict = Literal[
    "unknown",
    "true_positive",
    "false_positive",
    "benign",
    "suspicious",
    "test",
    "duplicate",
    "insufficient_data",
]


def list_(
    query: str = "",
    *,
    since: str = "",
    until: str = "",
    limit: int = 50,
    follow: bool = False,
    config: ConfigFile = None,
    output: Output = None,
    quiet: Quiet = False,
) -> int:
    """List findings, highest risk first.

    Example: cityward finding list "finding.severity:>=high AND finding.status:new"

    Args:
        query: What to look for, as in the console's query bar; nothing: every finding.
        since: Only those that matched since then: 24h, 7d, or a time.
        until: End of that span; otherwise now.
        limit: How many are printed at most.
        follow: Go on and print findings as they are made or grow, until Ctrl+C.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
        quiet: Do not say how many there are in all.
    """
    if limit < 1:
        raise UsageError(f"{limit} findings are none", "--limit", "Write a number from 1.")
    form = streams.form_for(output, sys.stdout)
    if follow and form == "json":
        raise UsageError("json has an end, a followed list has none", "-o", "Write -o ndjson.")
    wanted = span(since, until, now_utc())
    with _opened(config) as db, readable_query():
        page = db.search(query, wanted, limit=limit)
        if follow:
            return _follow(db, query, page.rows, form)
        streams.write_findings(page.rows, form, COLUMNS)
    if not quiet:
        said = f"{len(page.rows):,} of {page.total:,} findings"
        print(said if page.total else "No finding matches.", file=sys.stderr)
    return 0


def _follow(db: NodeDb, query: str, first: Any, form: Form) -> int:
    def fresh(since: datetime) -> list[Document]:
        asked = newer(query, "finding.modified", since)
        page = db.search(asked, Range(), sort="finding.last_seen", limit=1000)
        return [_revised(row) for row in page.rows]

    with stopping(threading.Event()) as stop:
        rows = [_revised(row) for row in reversed(first)]
        for number, some in enumerate(as_they_come(rows, fresh, "_revision", stop, now_utc)):
            shown = [{name: row[name] for name in row if name != "_revision"} for row in some]
            streams.write_findings(shown, form, COLUMNS, head=not number)
            sys.stdout.flush()
    return 0


def _revised(row: Document) -> Document:
    return {**row, "_revision": (row["finding.id"], row["finding.revision"])}


def show(
    id: str,
    *,
    config: ConfigFile = None,
    output: Output = None,
) -> int:
    """Show one finding: what, why it spoke, its events and its history.

    Example: cityward finding show 0b8f4e1c

    Args:
        id: Its id, or the beginning of it where only one begins so.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    with _opened(config) as db:
        finding = one_of(db, id)
        events = db.events_of(finding["finding.id"])
    form = streams.form_for(output, sys.stdout)
    if form == "table":
        _card(finding, events)
    else:
        streams.write([{**finding, "events": events}], form, COLUMNS)
    return 0


def set_(
    *ids: str,
    status: Status | None = None,
    verdict: Verdict | None = None,
    assignee: str | None = None,
    until: str = "",
    reason: Annotated[str, Parameter(name=["--reason"])] = "",
    config: ConfigFile = None,
) -> int:
    """Set what you make of findings; it stays in their history, with your account's name.

    Example: cityward finding set 0b8f4e1c --status resolved --verdict benign --reason "drill"

    Args:
        ids: Ids of the findings, or their beginnings.
        status: New status; resolved needs a verdict, suppressed needs --until.
        verdict: What it was.
        assignee: Name of a person; an empty one: nobody.
        until: End of a suppression: 4h, 7d from now, or a time within a year.
        reason: Why; kept in the history.
        config: Settings file; otherwise the first one found counts.
    """
    if not ids:
        raise UsageError("no finding was named", "cityward finding set", "Name at least one id.")
    change = _change(status, verdict, assignee, until, reason)
    with _opened(config) as db:
        found = [one_of(db, one)["finding.id"] for one in ids]
        changed = db.change(found, change, who(), now_utc())
    print(f"{changed:,} of {len(found):,} findings changed", file=sys.stderr)
    return 0


def _change(
    status: str | None, verdict: str | None, assignee: str | None, until: str, reason: str
) -> Change:
    """The same conditions as the console's forms have."""
    if status is None and verdict is None and assignee is None and not reason:
        raise UsageError("nothing is to be changed", "cityward finding set", "Add --status …")
    if status == "resolved" and verdict in (None, "unknown"):
        raise UsageError("resolving needs a verdict", "--verdict", "Say what it was.")
    if (status == "suppressed") != bool(until):
        raise UsageError("suppressing needs an end, and only that", "--until", "Write 4h or 7d.")
    if len(reason) > 2000:
        raise UsageError("a reason of more than 2,000 characters", "--reason", "Shorten it.")
    end = moment(until, "--until", now_utc(), ahead=True) if until else None
    return Change(
        status=status, verdict=verdict, assignee=assignee, suppressed_until=end, comment=reason
    )


@contextmanager
def _opened(config: str | None) -> Iterator[NodeDb]:
    settings = settings_with_state(config)
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        yield db
    finally:
        db.close()


def one_of(db: NodeDb, named: str) -> Document:
    """The finding of this id, or the only one whose id begins so."""
    if found := db.get(named):
        return found
    if len(named) >= 4 and named.replace("-", "").isalnum():
        page = db.search(f"finding.id:{named}*", Range(), limit=2)
        if page.total == 1:
            return page.rows[0]
        if page.total > 1:
            raise UsageError(
                f"{page.total} findings begin with {named}", "ID", "Write more of the id."
            )
    raise UsageError(
        f"there is no finding {visible(named)[:60]!r}", "ID", "cityward finding list names them."
    )


def _card(finding: Document, events: Any) -> None:
    print(visible(finding["finding.title"]))
    print(visible(finding["finding.description"]))
    print()
    for word, name in CARD:
        if finding.get(name) not in (None, "", []):
            print(f"{word:<12} {visible(text(finding[name]))}")
    print(f"{'id':<12} {finding['finding.id']}")
    _why(finding.get("cw.why", {}))
    _evidence(events)
    print("\nhistory")
    for line in finding.get("cw.history", ()):
        by = f" by {line['by']}" if line["by"] else ""
        why = f": {line['why']}" if line["why"] else ""
        print(visible(f"  {line['time']:%Y-%m-%d %H:%M:%S}Z  {line['what']}{by}{why}"))


def _why(why: Mapping[str, Any]) -> None:
    if not why:
        return
    print("\nwhy it spoke" + (f": {visible(why['condition'])}" if why.get("condition") else ""))
    if why.get("score") is not None:
        unit = why.get("unit", "")
        print(
            f"  score {why['score']:.1f} {unit}, threshold {why.get('threshold') or 0:.1f} {unit}"
        )
    for check in why.get("checks", ()):
        held = "yes" if check["held"] else "no "
        bits = f"  {check['bits']:+.1f} bits" if check.get("bits") is not None else ""
        line = f"{check['field']} {check['wanted']}; saw {check['saw']}"
        print(f"  {held}  {visible(check['selection'])}: {visible(line)}{bits}")


def _evidence(events: Any) -> None:
    print(f"\nevents ({len(events)} kept, newest first)")
    for event in events[:EVENTS_SHOWN]:
        said = event.get("event.original") or event.get("message") or _short(event)
        print(f"  {text(event['@timestamp'])}  {visible(said)[:300]}")
    if len(events) > EVENTS_SHOWN:
        print(f"  … {len(events) - EVENTS_SHOWN} more: cityward finding show … -o json")


def _short(event: Document) -> str:
    names = ("event.action", "source.ip", "destination.ip", "network.protocol", "ot.function.name")
    return ", ".join(f"{name} {text(event[name])}" for name in names if event.get(name))
