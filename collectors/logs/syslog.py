"""Syslog lines of every program; sshd, the packet filter and Suricata are read in depth.

Send: name this node as loghost of the device; `reader = "syslog_udp"` or `"syslog_tcp"` with
`listen = "0.0.0.0:5514"`. Octet-counted and newline framing are both read.

Understood: RFC 3164 and RFC 5424 envelopes with structured data, what journalctl and dmesg print,
Docker's JSON; what is inside goes to the collector that knows it.

Not understood: the text of programs that no collector knows; it is kept whole as `message`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from cityward import Event, Record, collector
from collectors.logs.envelope import SYSLOG, Envelope, Reads, envelope, other, read_lines
from collectors.logs.netfilter import read_netfilter
from collectors.logs.sshd import read_sshd
from collectors.logs.suricata import read_suricata

__all__ = ["Envelope", "envelope", "looks_like_syslog", "syslog"]

READERS: dict[str, Reads] = {
    "kernel": read_netfilter,
    "sshd": read_sshd,
    "sshd(pam_unix)": read_sshd,
    "sshd-auth": read_sshd,
    "sshd-session": read_sshd,
    "suricata": read_suricata,
    "ulogd": read_netfilter,
}
"""Who reads the message, by the program that wrote it."""

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
    yield from read_lines(records, SYSLOG, lambda app: READERS.get(app, other))
