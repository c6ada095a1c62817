"""The envelope of a syslog line, in all the forms seen in the wild."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Any

import msgspec

from cityward import Event, LogSource, Record
from collectors.values import clean, read_json

SYSLOG = LogSource(service="syslog")

# fmt: off
FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
)
"""RFC 5424 table 1, by number; names as in syslog(3)."""
SEVERITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
"""RFC 5424 table 2, by number."""
MONTHS = {
    "Jan": 1, "Feb": 2, "Mar": 3, "Apr": 4, "May": 5, "Jun": 6,
    "Jul": 7, "Aug": 8, "Sep": 9, "Oct": 10, "Nov": 11, "Dec": 12,
}
# fmt: on
REPEATS_MAX = 50
"""Events one record may become when it says `message repeated n times`."""


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """What stands around a syslog message."""

    time: datetime
    message: str
    host: str = ""
    app: str = ""
    pid: int | None = None
    priority: int | None = None
    """Facility times 8 plus severity."""
    time_source: str = "source"
    """`collector` if the line has no time."""
    year_guessed: bool = False
    msgid: str = ""
    structured: str = ""
    """Structured data of RFC 5424 as written."""

    @property
    def facility(self) -> str:
        """Name of the facility; empty without a priority."""
        return "" if self.priority is None else FACILITIES[self.priority >> 3]

    @property
    def severity(self) -> str:
        """Name of the severity; empty without a priority."""
        return "" if self.priority is None else SEVERITIES[self.priority & 7]


# One pattern a form. Neighbouring parts never match the same sign without a bound, so each is
# linear in the length of the line.
_TAG = (
    # A host never ends with a colon; some gateways write theirs twice.
    r"(?:(?P<host>[^\s\[\]]{0,254}[^\s\[\]:]) +(?:(?P=host) +)?)??"
    r"(?:(?P<app>[^\s\[\]:]{1,128})(?:\[(?P<pid>[^\]\s]{0,64})\])?: ?"
    r"|\[(?P<box>[\w.-]{1,64})\]:? )"
)
_PRI = r"(?:<(?P<pri>\d{1,3})>)?"
_BSD = re.compile(
    _PRI + r"(?:\d{1,10}: )?"  # Cisco counts its messages
    r"[*.]?(?P<time>[A-Z][a-z]{2}  ?\d{1,2} (?:(?P<year>\d{4}) )?\d\d:\d\d:\d\d)"
    r"(?P<part>\.\d{1,9})?(?: (?P<late>(?:19|20)\d\d)(?=:? ))?(?: (?:UTC|GMT|Z)(?=:? ))?:? +"
    rf"(?:{_TAG}|(?P<only>[^\s\[\]:]{{1,255}}) +)?(?P<message>.*)",
    re.DOTALL,
)
_ISO = re.compile(
    _PRI + r"(?P<time>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?"
    r"(?: ?(?:Z|[+-]\d\d:?\d\d))?|\d{9,10}\.\d{1,9}):? +"
    r"(?:(?:stdout|stderr) [FP] )?"  # container runtimes
    rf"(?:{_TAG})?(?P<message>.*)",
    re.DOTALL,
)
_RFC5424 = re.compile(
    r"<(?P<pri>\d{1,3})>\d{1,2} (?P<time>\S{1,40}) (?P<host>\S{1,255}) (?P<app>\S{1,128}) "
    r"(?P<pid>\S{1,128}) (?P<msgid>\S{1,64}) "
    r'(?P<sd>-|(?:\[(?:[^\]"]|"(?:[^"\\]|\\.)*+")*+\])++)'
    r"(?: (?:\ufeff)?(?P<message>.*))?\Z",
    re.DOTALL,
)
_UNTIMED = re.compile(rf"<(?P<pri>\d{{1,3}})>(?:{_TAG})?(?P<message>.*)", re.DOTALL)
_DMESG = re.compile(r"\[ {0,8}\d{1,10}\.\d{6}\] ")
_REPEATED = re.compile(r"message repeated (\d{1,9}) times: \[ ?(.*)\]\s*\Z", re.DOTALL)


def envelope(data: bytes, received: datetime) -> Envelope:
    """Read what stands around a message.

    A time without a year is dated by `received`: the latest year in which it is not more than a
    day after; a time without a zone is UTC.

    Raises:
        ValueError: the line has no structure of syslog, or its time is none.

    References:
        RFC 3164 section 4; RFC 5424 section 6; output forms of rsyslog, journalctl and dmesg;
        JSON files of Docker.
    """
    line = data.decode("utf-8", "backslashreplace")
    if found := _BSD.match(line):
        pri, stamp, year, part, late, host, app, pid, box, only, message = found.groups()
        time = _dated(stamp, late, received.toordinal())
        if part:
            time = time.replace(microsecond=int((part[1:] + "00000")[:6]))
        return Envelope(
            time,
            message,
            host or only or "",
            app or box or "",
            _pid(pid),
            _priority(pri),
            year_guessed=not (year or late),
        )
    if found := _RFC5424.match(line):
        return _modern(found, received)
    if found := _ISO.match(line):
        pri, stamp, host, app, pid, box, message = found.groups()
        app = app or box or ""
        return Envelope(_absolute(stamp), message, host or "", app, _pid(pid), _priority(pri))
    if found := _UNTIMED.match(line):
        pri, host, app, pid, box, message = found.groups()
        app = app or box or ""
        return Envelope(received, message, host or "", app, _pid(pid), _priority(pri), "collector")
    if _DMESG.match(line):
        return Envelope(received, line, app="kernel", time_source="collector")
    if line.startswith('{"log":'):
        return _docker(data, received)
    raise ValueError("no form of syslog: neither a priority nor a time at its start")


def _modern(found: re.Match[str], received: datetime) -> Envelope:
    pri, stamp, host, app, pid, msgid, structured, message = (
        None if part == "-" else part for part in found.groups()
    )
    return Envelope(
        time=received if stamp is None else _absolute(stamp),
        message=message or "",
        host=host or "",
        app=app or "",
        pid=_pid(pid),
        priority=_priority(pri),
        time_source="collector" if stamp is None else "source",
        msgid=msgid or "",
        structured=structured or "",
    )


def _docker(data: bytes, received: datetime) -> Envelope:
    line = read_json(data)
    log, stamp = line.get("log"), line.get("time")
    if not isinstance(log, str) or not isinstance(stamp, str):
        raise ValueError("a container's line without log or time")
    inner = log.rstrip("\r\n").encode("utf-8", "backslashreplace")
    try:
        return envelope(inner, received) if not inner.startswith(b"{") else _bare(inner, stamp)
    except ValueError:
        return _bare(inner, stamp)


def _bare(message: bytes, stamp: str) -> Envelope:
    return Envelope(_absolute(stamp), message.decode("utf-8", "backslashreplace"))


def _pid(pid: str | None) -> int | None:
    return int(pid) if pid and len(pid) <= 10 and pid.isascii() and pid.isdigit() else None


def _priority(pri: str | None) -> int | None:
    if pri is None:
        return None
    number = int(pri)
    return number if number <= 191 else None


@lru_cache(maxsize=16_384)
def _dated(stamp: str, late: str | None, received_day: int) -> datetime:
    """A time `Feb  7 16:01:07` or `Feb 7 2005 16:01:07`; without a year it gets the nearest."""
    parts = stamp.split()
    month, day, clock = MONTHS.get(parts[0], 0), int(parts[1]), parts[-1]
    # A leap second is written as 60, which Python's clock does not know.
    hour, minute, second = int(clock[:2]), int(clock[3:5]), min(int(clock[6:8]), 59)
    year = parts[2] if len(parts) == 4 else late
    try:
        dated = int(year) if year else _nearest_year(month, day, received_day + 1)
        return datetime(dated, month, day, hour, minute, second, tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"no time: {stamp!r}") from None


def _nearest_year(month: int, day: int, last_day: int) -> int:
    latest = date.fromordinal(last_day).year
    for year in range(latest, max(latest - 9, 0), -1):
        if (month, day) == (2, 29) and not _leaps(year):
            continue
        if date(year, month, day).toordinal() <= last_day:
            return year
    raise ValueError(f"no day {month}-{day}")


def _leaps(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


@lru_cache(maxsize=16_384)
def _absolute(stamp: str) -> datetime:
    """ISO 8601 or epoch seconds; without a zone it is UTC."""
    try:
        if stamp[4:5] != "-":
            return datetime.fromtimestamp(float(stamp), UTC)
        head, gap, zone = stamp.rpartition(" ")
        time = datetime.fromisoformat(head + zone if gap and zone[:1] in "+-Z" else stamp)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"no time: {stamp!r}") from None


Reads = Callable[[Envelope, Record, int], Event | None]
"""Reads the message of a program; None if the message is none of its own."""


def read_lines(
    records: Iterable[Record], logsource: LogSource, reader_of: Callable[[str], Reads]
) -> Iterator[Event]:
    """Open each line and hand its message to the reader of its program.

    A message that its line says was repeated becomes as many events, at most `REPEATS_MAX`.
    """
    for record in records:
        try:
            around = envelope(record.data, record.received)
        except ValueError as error:
            yield Event.malformed(record, logsource, why=str(error))
            continue
        read = reader_of(around.app)
        if around.message.startswith("message repeated "):
            yield from _repeated(around, record, read)
        else:
            yield read(around, record, 0) or other(around, record, 0)


def _repeated(around: Envelope, record: Record, read: Reads) -> Iterator[Event]:
    times = 1
    if said := _REPEATED.match(around.message):
        times = max(int(said[1]), 1)
        around = msgspec.structs.replace(around, message=said[2])
    for number in range(min(times, REPEATS_MAX)):
        event = read(around, record, number) or other(around, record, number)
        note = {**event.fields.get("cw.vendor", {}), "repeated": times}
        yield msgspec.structs.replace(event, fields={**event.fields, "cw.vendor": note})


def other(around: Envelope, record: Record, number: int) -> Event:
    """The event of a message that nobody reads in depth."""
    own = {
        "event.action": "log",
        "event.dataset": "syslog.log",
        "message": clean(around.message),
    }
    return Event(around.time, SYSLOG, enveloped(around, own), record, number)


def enveloped(around: Envelope, own: dict[str, Any]) -> dict[str, Any]:
    """Fields of the envelope with those of the message, which win."""
    fields: dict[str, Any] = {"cw.time_source": around.time_source}
    if around.host:
        fields["host.name"] = clean(around.host)
    if around.app:
        fields["process.name"] = clean(around.app)
    if around.pid is not None:
        fields["process.pid"] = around.pid
    if around.priority is not None:
        fields["log.syslog.priority"] = around.priority
        fields["log.syslog.facility.name"] = around.facility
        fields["log.syslog.severity.name"] = around.severity
    if around.msgid:
        fields["log.syslog.msgid"] = clean(around.msgid)
    fields.update(own)
    noted: dict[str, Any] = {}
    if around.year_guessed:
        noted["year"] = "guessed"
    if around.structured:
        noted["structured_data"] = clean(around.structured)
    if noted:
        fields["cw.vendor"] = {**noted, **fields.get("cw.vendor", {})}
    return fields
