"""ZoneMinder, a video recorder: logins to its web interface, and what else that interface logs.

Send: In ZoneMinder: Options, Logging: LOG_LEVEL_FILE or LOG_LEVEL_SYSLOG at least Info. Follow the
file `web_php.log` (`reader = "file"`, `collector = "zoneminder"`), or name the node as loghost of
the machine's syslog.

Understood: Both date formats of the file (until PHP 8.1 and after), syslog, and Apache's error log
in which older versions write; failed and good logins with user and address.

Not understood: The other messages; they are kept with their level. A named time zone: the time is
taken as UTC.

References:
    ZoneMinder, web/includes/logger.php and auth.php, versions 1.30 to 1.36.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import Envelope, envelope, enveloped
from collectors.logs.marked import most_lines
from collectors.values import address, clean

ZONEMINDER = LogSource(category="video", product="zoneminder")

_OWN = re.compile(
    r"(?P<time>\d\d/\d\d/\d\d,? \d{1,2}:\d\d:\d\d(?: [AP]M)?)(?: (?P<zone>[A-Z]{2,5}))?"
    r"(?:\.(?P<part>\d{1,6}))? (?P<app>[\w-]{1,64})\[(?P<pid>\d{1,10})\]\.(?P<level>[A-Z0-9]{3}) "
)
_MARK = re.compile(
    rb"^\d\d/\d\d/\d\d,? \d{1,2}:\d\d:\d\d[ A-Z.\d]{0,16} zm?[\w-]{1,64}\[\d+\]\.[A-Z0-9]{3} "
    rb"|^\d\d/\d\d/\d\d,? \d{1,2}:\d\d:\d\d[ A-Z.\d]{0,16} web_\w{1,16}\[\d+\]\.[A-Z0-9]{3} "
    rb"|(?:WAR|ERR|INF) \[(?:Login|Could not retrieve user)"
)
_APACHE = re.compile(
    r"\[[A-Z][a-z]{2} (?P<month>[A-Z][a-z]{2}) (?P<day>[ \d]\d) (?P<clock>\d\d:\d\d:\d\d)"
    r"(?:\.(?P<part>\d{1,6}))? (?P<year>\d{4})\] (?:\[[^\]]{1,64}\] ){0,3}"
    r"\[client (?P<ip>[0-9A-Fa-f.:]{2,45}?)(?::\d{1,5})?\] (?=(?:WAR|ERR|INF|FAT) \[)"
)
_SAID = re.compile(
    r"(?:(?P<level>[A-Z]{3}) )?(?:\[(?P<ip>[0-9A-Fa-f.:]{2,45})\] )?\[(?P<message>.*)", re.S
)
_DENIED = re.compile(r'Login denied for user "(?P<user>.{0,256})"\]')
_UNKNOWN = re.compile(r"Could not retrieve user (?P<user>.{0,256}) details\]")
_ALLOWED = re.compile(r'Login successful for user "(?P<user>.{0,256})"\]')
_TOKEN = re.compile(r"Unable to authenticate user\. (?P<why>[^\]]{1,200})")
LEVELS = {"INF": "info", "WAR": "warning", "ERR": "error", "FAT": "fatal", "PNC": "panic"}
LINE_MAX = 4_096


def looks_like_zoneminder(head: bytes) -> bool:
    """Most of the first lines have the date and the program as ZoneMinder writes them."""
    return most_lines(head, _MARK)


@collector(ZONEMINDER, looks_like=looks_like_zoneminder, strength=72)
def zoneminder(records: Iterable[Record]) -> Iterator[Event]:
    """Read lines of ZoneMinder's own files, of syslog and of Apache's error log."""
    for record in records:
        try:
            yield _read(record)
        except ValueError as error:
            yield Event.malformed(record, ZONEMINDER, why=str(error))


def _read(record: Record) -> Event:
    line = record.data[:LINE_MAX].decode("utf-8", "backslashreplace")
    if line.startswith("#"):
        around = Envelope(record.received, line, time_source="collector")
    elif found := _OWN.match(line):
        time = _time(found["time"])
        if found["part"]:
            time = time.replace(microsecond=int((found["part"] + "00000")[:6]))
        said = f"{found['level']} {line[found.end() :]}"
        around = Envelope(time, said, app=found["app"], pid=int(found["pid"]))
    elif found := _APACHE.match(line):
        at = f"{found['month']} {found['day']} {found['year']} {found['clock']}"
        around = envelope(f"{at} apache: ".encode(), record.received)
        said = f"{line[found.end() : found.end() + 3]} [{found['ip']}] {line[found.end() + 4 :]}"
        around = msgspec.structs.replace(around, message=said)
    else:
        around = envelope(record.data, record.received)
    return read_zoneminder(around, record, 0)


@lru_cache(maxsize=4_096)
def _time(value: str) -> datetime:
    parts = value.replace(",", "").split()
    form = "%m/%d/%y %I:%M:%S %p" if len(parts) == 3 else "%m/%d/%y %H:%M:%S"
    return datetime.strptime(" ".join(parts), form).replace(tzinfo=UTC)


def read_zoneminder(around: Envelope, record: Record, number: int) -> Event:
    """Read one message; one that speaks of no login is kept with its level."""
    fields: dict[str, Any] = {
        "event.action": "log",
        "event.dataset": "zoneminder.web",
        "event.category": ["video"],
        "message": clean(around.message),
    }
    found = _SAID.match(around.message)
    said = found["message"] if found else around.message
    if found:
        if found["level"]:
            fields["log.level"] = LEVELS.get(found["level"], found["level"].lower())
        if ip := address(found["ip"]):
            fields["source.ip"] = ip
    for pattern, outcome, reason in MEANINGS:
        if login := pattern.match(said):
            _login(login.groupdict(), outcome, reason, fields)
            break
    return Event(around.time, ZONEMINDER, enveloped(around, fields), record, number)


MEANINGS = (
    (_DENIED, "failure", "wrong password"),
    (_UNKNOWN, "failure", "unknown user"),
    (_TOKEN, "failure", ""),
    (_ALLOWED, "success", ""),
)
"""What is said about a login."""


def _login(said: dict[str, str], outcome: str, reason: str, fields: dict[str, Any]) -> None:
    fields["event.category"] = ["authentication"]
    fields["event.action"] = "video_login" if "user" in said else "video_token"
    fields["event.outcome"] = outcome
    if why := reason or said.get("why"):
        fields["event.reason"] = clean(why)
    if said.get("user"):
        fields["user.name"] = clean(said["user"])
