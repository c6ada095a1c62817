"""Syslog lines of every program; those of programs and devices that we know are read in depth.

Send: name this node as loghost of the device; `reader = "syslog_udp"` or `"syslog_tcp"` with
`listen = "0.0.0.0:5514"`. Octet-counted and newline framing are both read.

Understood: RFC 3164 and RFC 5424 envelopes with structured data, what journalctl and dmesg print,
Docker's JSON; what is inside goes to the collector that knows it: by the program that wrote it
(sshd, the packet filter, Suricata, filterlog, web servers …), or by the mark of its format (CEF,
LEEF, FortiGate, Cisco, Palo Alto, MikroTik, Windows, Wazuh, OpenCanary).

Not understood: the text of programs that no collector knows; it is kept whole as `message`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec

from cityward import Event, Record, collector
from collectors.logs.cef import read_cef
from collectors.logs.cisco import read_cisco
from collectors.logs.envelope import SYSLOG, Envelope, Reads, envelope, read_lines
from collectors.logs.fortigate import read_fortigate
from collectors.logs.leef import read_leef
from collectors.logs.marked import HEAD_MAX, Marked
from collectors.logs.mikrotik import read_mikrotik
from collectors.logs.netfilter import read_netfilter
from collectors.logs.opencanary import read_opencanary
from collectors.logs.paloalto import read_paloalto
from collectors.logs.pf import READERS as PF_READERS
from collectors.logs.sshd import read_sshd
from collectors.logs.suricata import read_suricata
from collectors.logs.wazuh import read_wazuh
from collectors.logs.web_access import read_web
from collectors.logs.windows import read_windows
from collectors.logs.zoneminder import read_zoneminder

__all__ = ["Envelope", "envelope", "looks_like_syslog", "syslog"]

READERS: dict[str, Reads] = {
    **PF_READERS,
    **dict.fromkeys(("nginx", "apache", "apache2", "httpd", "nginx-access"), read_web),
    "kernel": read_netfilter,
    "sshd": read_sshd,
    "sshd(pam_unix)": read_sshd,
    "sshd-auth": read_sshd,
    "sshd-session": read_sshd,
    "suricata": read_suricata,
    "ulogd": read_netfilter,
    "web_php": read_zoneminder,
}
"""Who reads the message, by the program that wrote it."""

OBJECTS: tuple[Reads, ...] = (read_windows, read_wazuh, read_opencanary, read_suricata)
"""Who may know a JSON object; each looks for its own keys first."""

MARKS: tuple[tuple[re.Pattern[bytes], Marked], ...] = (
    (re.compile(rb"CEF: ?\d"), read_cef),
    (re.compile(rb"LEEF: ?[12]"), read_leef),
    (re.compile(rb"date=\d{4}-\d\d-\d\d[, ]"), read_fortigate),
    (re.compile(rb"%[A-Z][A-Z0-9_-]{1,60}-[0-7]-"), read_cisco),
    (re.compile(rb",\d{4}/\d\d/\d\d \d\d:\d\d:\d\d,[0-9A-Za-z]{5,20},[A-Z]"), read_paloalto),
    (re.compile(rb",(?:info|warning|error|critical)[ ,:]"), read_mikrotik),
    (re.compile(rb": in:\S{1,64} out:"), read_mikrotik),
)
"""Who reads a line, by a mark that stands near its beginning; the one that says no passes it on.

Each begins with a literal sign and is sought for itself: one pattern of all takes ten times longer.
"""

_ANY_DAY = datetime(2000, 3, 1, tzinfo=UTC)


def looks_like_syslog(head: bytes) -> bool:
    """Most of the first lines that are no comment have an envelope with a program."""
    lines = [line for line in head.split(b"\n") if line.strip() and line[:1] != b"#"][:40]
    return sum(map(_has_program, lines)) > len(lines) // 2


def _has_program(line: bytes) -> bool:
    try:
        return bool(envelope(line[:2_000], _ANY_DAY).app)
    except ValueError:
        return False


@collector(SYSLOG, looks_like=looks_like_syslog, strength=30)
def syslog(records: Iterable[Record]) -> Iterator[Event]:
    """Read syslog of any form; a message of no known program is kept as it is.

    References:
        RFC 3164; RFC 5424.
    """
    for record in records:
        event = _marked(record)
        if event is not None:
            yield event
        else:
            yield from read_lines((record,), SYSLOG, _reader_of)


def _reader_of(app: str) -> Reads:
    return READERS.get(app, _by_content)


def _by_content(around: Envelope, record: Record, number: int) -> Event | None:
    """A JSON object is read by the one that knows its keys; a packet by its words."""
    if "{" in around.message[:256]:
        return next((event for read in OBJECTS if (event := read(around, record, number))), None)
    if " SRC=" not in around.message:
        return None
    if rule := _GATEWAY_RULE.match(around.app):
        # UniFi writes the rule where others write the program; what it did is one letter of it.
        said = f"{around.app} {_DID[rule[1]]} {around.message[around.message.find('IN=') :]}"
        around = msgspec.structs.replace(around, message=said, app="kernel")
    return read_netfilter(around, record, number)


_GATEWAY_RULE = re.compile(r"[\w-]{1,100}-([ADR])-\d{1,12}\Z")
_DID = {"A": "accept", "D": "drop", "R": "reject"}


def _marked(record: Record) -> Event | None:
    """The event of a line that has a mark of its own; None if it has none, or is another's."""
    data = record.data
    for mark, read in MARKS:
        if mark.search(data, 0, HEAD_MAX):
            try:
                event = read(record)
            except ValueError:
                continue  # what looks like a format and cannot be read is kept as text
            if event is not None:
                return event
    return None
