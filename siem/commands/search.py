"""`cityward search`: the events of a node."""

from __future__ import annotations

import sys
import threading
from datetime import datetime

from siem import assembly
from siem import output as streams
from siem.commands.common import (
    ConfigFile,
    Output,
    Quiet,
    UsageError,
    as_they_come,
    newer,
    readable_query,
    settings_with_state,
    span,
    stopping,
)
from siem.node import now_utc
from siem.output import Form, visible
from siem.store.events import EventStore
from siem.store.protocol import Document, Page, Range

COLUMNS = (
    "@timestamp",
    "event.action",
    "source.ip",
    "destination.ip",
    "host.name",
    "user.name",
    "phys.point",
    "phys.quantity",
    "phys.reading",
    "phys.unit",
    "event.outcome",
    "event.reason",
)
FOLLOW_MAX = 10_000
"""Events that are printed at most each second; of more, the newest."""


def search(
    query: str = "",
    *,
    since: str = "24h",
    until: str = "",
    limit: int = 100,
    follow: bool = False,
    config: ConfigFile = None,
    output: Output = None,
    quiet: Quiet = False,
) -> int:
    """Search the events of this node, newest first.

    The query is that of the console's query bar: words, field:value, ranges, AND, OR, NOT. It
    leaves with 7 if a file of events could not be read.
    Example: cityward search "event.outcome:failure AND user.name:root" --since 7d

    Args:
        query: What to look for; nothing: every event.
        since: Start of the span: 24h, 7d, a time, or all.
        until: End of the span; otherwise now.
        limit: How many events are printed at most.
        follow: Go on and print events as they come, oldest first, until Ctrl+C.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
        quiet: Do not say how many there are in all.
    """
    if limit < 1:
        raise UsageError(f"{limit} events are none", "--limit", "Write a number from 1.")
    settings = settings_with_state(config)
    now = now_utc()
    wanted = span("" if since == "all" else since, until, now)
    events = assembly.events_of(settings, now_utc, write=False)
    form = streams.form_for(output, sys.stdout)
    if follow and form == "json":
        raise UsageError("json has an end, a followed search has none", "-o", "Write -o ndjson.")
    try:
        with readable_query():
            if follow:
                return _follow(events, query, wanted, limit, form)
            page = events.search(query, wanted, limit=limit)
    finally:
        events.close()
    streams.write(page.rows, form, COLUMNS)
    if not quiet:
        said = f"{len(page.rows):,} of {page.total:,} events"
        print(said if page.total else _nothing(since), file=sys.stderr)
    return _told(page)


def _told(page: Page) -> int:
    """What could not be looked at is said, asked or not; returns how to leave."""
    count = len(page.unread)
    if count:
        files = "1 file" if count == 1 else f"{count:,} files"
        print(visible(f"{files} could not be read, so events may be missing:"), file=sys.stderr)
        for one in page.unread:
            print(visible(f"  {one}"), file=sys.stderr)
    return 7 if count else 0


def _nothing(since: str) -> str:
    more = "" if since == "all" else "; --since all looks at everything that is kept"
    return f"No event matches{more}."


def _follow(events: EventStore, query: str, wanted: Range, limit: int, form: Form) -> int:
    began = events.search(query, wanted, limit=limit)
    _told(began)
    first = list(reversed(began.rows))

    def fresh(since: datetime) -> list[Document]:
        page = events.search(newer(query, "event.ingested", since), Range(), limit=FOLLOW_MAX)
        return list(reversed(page.rows))

    with stopping(threading.Event()) as stop:
        for number, rows in enumerate(as_they_come(first, fresh, "event.id", stop, now_utc)):
            streams.write(rows, form, COLUMNS, head=not number)
            sys.stdout.flush()
    return 0
