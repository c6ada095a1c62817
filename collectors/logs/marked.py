"""Lines that are known by a mark of their own, with or without an envelope of syslog around it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from functools import lru_cache

import msgspec

from cityward import Event, LogSource, Record
from collectors.logs.envelope import Envelope, envelope, other

Marked = Callable[[Record], Event | None]
"""Reads a whole line; None if it is none of its own. ValueError: it is, but cannot be read."""

HEAD_MAX = 512
"""Where a mark is looked for; an envelope of RFC 5424 rarely has more than 200 bytes."""
_ZONE = re.compile(rb"(\d\d:\d\d:\d\d(?:\.\d{1,9})?) [A-Z]{2,5}\Z")
"""A zone by its letters: nobody knows which one it is, the time is taken as UTC."""
_TIME = re.compile(rb"[*.]?[A-Z][a-z]{2} [ \d]?\d (?:\d{4} )?\d\d:\d\d:\d\d")
_NO_WORD = re.compile(r"[^a-z0-9]+")


def read_marked(
    records: Iterable[Record], logsource: LogSource, read: Marked, what: str
) -> Iterator[Event]:
    """Read each line; one that has not the mark is kept as syslog, or it is malformed."""
    for record in records:
        try:
            event = read(record)
        except ValueError as error:
            yield Event.malformed(record, logsource, why=str(error))
            continue
        yield event or _unmarked(record, logsource, what)


def _unmarked(record: Record, logsource: LogSource, what: str) -> Event:
    try:
        return other(envelope(record.data, record.received), record, 0)
    except ValueError:
        return Event.malformed(record, logsource, why=f"no line of {what}")


def around_mark(record: Record, start: int, message: str = "") -> Envelope:
    """The envelope before a mark at `start`; of the collector's time if there is none."""
    head = record.data[: min(start, HEAD_MAX)].rstrip(b" :")
    if not head:
        return Envelope(record.received, message, time_source="collector")
    found = _around(head, record.received.toordinal())
    if found.time_source == "collector":
        return msgspec.structs.replace(found, time=record.received, message=message)
    return msgspec.structs.replace(found, message=message) if message else found


@lru_cache(maxsize=8_192)
def _around(head: bytes, received_day: int) -> Envelope:
    """Many lines of one device and second have the same head."""
    received = datetime.combine(date.fromordinal(received_day), datetime.min.time(), UTC)
    head = _ZONE.sub(rb"\1", head)
    found, host = _before(head, received), b""
    late = _TIME.search(head) if found is None or found.time_source == "collector" else None
    if late is not None and late.start():
        # Routers may put a number and their name before the time.
        host = head[: late.start()].rstrip(b" :").rpartition(b" ")[2].rpartition(b">")[2]
        priority = found.priority if found else None
        found = _before(head[late.start() :], received)
        if found is not None:
            found = msgspec.structs.replace(found, priority=priority)
    if found is None:
        return Envelope(received, "", time_source="collector")
    named = found.host if found.app == "mark" else found.app or found.host
    if not named and host:
        named = host.decode("utf-8", "backslashreplace")
    if named.isdigit():  # a number of the message
        named = ""
    return msgspec.structs.replace(found, message="", host=named, app="")


def _before(head: bytes, received: datetime) -> Envelope | None:
    try:
        # What stands before the mark is a host, perhaps with a program.
        return envelope(head + b" mark: ", received)
    except ValueError:
        return None


def most_lines(head: bytes, mark: re.Pattern[bytes]) -> bool:
    """More than half of the first lines that are no comment have the mark."""
    lines = [line for line in head.split(b"\n") if line.strip() and line[:1] != b"#"][:40]
    return sum(mark.search(line, 0, HEAD_MAX) is not None for line in lines) > len(lines) // 2


@lru_cache(maxsize=4_096)
def slug(name: str) -> str:
    """A name as a word in snake case, for actions and log sources."""
    return _NO_WORD.sub("_", name[:200].lower()).strip("_")[:64]
