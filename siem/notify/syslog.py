"""A message as CEF in a syslog envelope, for a SIEM that is there already.

References:
    ArcSight Common Event Format, version 26; RFC 5424 (envelope), RFC 5425 (TLS), RFC 5426 (UDP),
    RFC 6587, 3.4.1 (octet counting).
"""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from siem.notify.answer import TIMEOUT_S, Answer, context_of, place_of
from siem.notify.routes import Route
from siem.notify.text import TEST, line, link_of, mark_of, moment, title
from siem.store.notices import Delivery, Item

FACILITY = 4
"""`auth`: security messages."""
SEVERITY = {
    "informational": (1, 6),
    "low": (3, 5),
    "medium": (5, 4),
    "high": (8, 3),
    "critical": (9, 2),
    "fatal": (10, 1),
}
"""Of CEF (0 to 10), and of syslog (RFC 5424, table 2)."""
NAME_MAX, TEXT_MAX = 400, 1000
CLOSE_S = 3.0
"""So long a receiver may take to close the connection behind us."""
_KEPT = (
    ("msg", "finding.description"),
    ("cat", "finding.type"),
    ("cnt", "finding.count"),
    ("spt", "source.port"),
    ("dpt", "destination.port"),
    ("suser", "user.name"),
    ("shost", "host.name"),
)
_LABELLED = (
    ("findingId", "finding.id"),
    ("asset", "cw.asset.asset_id"),
    ("zone", "cw.asset.zone"),
    ("technique", "threat.technique.id"),
    ("sector", "cw.sector"),
)


def send(delivery: Delivery, route: Route, operator: str) -> Answer:
    """Send a line for each finding of a message.

    Syslog has no receipt. Over TCP and TLS we close our half of the connection and wait for the
    other side to close its own: it has then read everything, and an abort is a failure.

    Raises:
        OSError, TransientError: the server cannot be reached, or broke the connection off.
    """
    lines = [envelope(cef, severity) for cef, severity in _lines(delivery, route, operator)]
    host, port = place_of(route)
    if route.transport == "udp":
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(found[0], socket.SOCK_DGRAM) as out:
            for one in lines:
                out.sendto(one, found[4])
        return Answer(f"{_counted(lines, 'datagram')} sent; UDP has no receipt")
    framed = b"".join(b"%d %s" % (len(one), one) for one in lines)
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as plain:
        if route.transport == "tls":
            with context_of(route).wrap_socket(plain, server_hostname=host) as out:
                out.sendall(framed)
                closed = _closed(out)
        else:
            plain.sendall(framed)
            plain.shutdown(socket.SHUT_WR)
            closed = _closed(plain)
    how = "the receiver closed after it" if closed else "the receiver kept the connection open"
    return Answer(f"{_counted(lines, 'line')} sent; {how}")


def _counted(lines: Sequence[bytes], what: str) -> str:
    return f"1 {what}" if len(lines) == 1 else f"{len(lines)} {what}s"


def _closed(out: socket.socket) -> bool:
    """Whether the other side closes in order within its time.

    Raises:
        OSError: it aborts the connection.
    """
    out.settimeout(CLOSE_S)
    try:
        if isinstance(out, ssl.SSLSocket):
            out.unwrap()
        else:
            while out.recv(4096):
                pass
    except TimeoutError:
        return False
    except ssl.SSLError as error:
        # Many close without the farewell of TLS; an alert says that they did not want us.
        if "ALERT" in (error.reason or ""):
            raise
    return True


def envelope(cef: str, severity: int) -> bytes:
    """A line of syslog."""
    host = re.sub(r"[^\x21-\x7e]", "_", socket.gethostname())[:255] or "-"
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    head = f"<{FACILITY * 8 + severity}>1 {now} {host} cityward - finding - "
    return head.encode() + b"\xef\xbb\xbf" + cef.encode("utf-8", "backslashreplace")


def _lines(delivery: Delivery, route: Route, operator: str) -> Iterator[tuple[str, int]]:
    base = {"externalId": delivery.id, "deviceExternalId": operator}
    if not delivery.message.items:
        yield _cef("test", f"[TEST] {TEST} {delivery.route}", 0, base), 6
    for item in delivery.message.items:
        cef, syslog = SEVERITY[item.finding["finding.severity"]]
        yield cef_of(item, cef, base, link_of(route, item.finding)), syslog


def cef_of(item: Item, severity: int, base: dict[str, Any], link: str = "") -> str:
    """A finding as one line of CEF."""
    finding = item.finding
    said = {**base, "act": item.news}
    said["start"] = int(moment(finding["finding.first_seen"]).timestamp() * 1000)
    said["end"] = int(moment(finding["finding.last_seen"]).timestamp() * 1000)
    said |= {key: finding[name] for key, name in _KEPT if finding.get(name) not in (None, "")}
    for number, (label, name) in enumerate(_LABELLED, 1):
        if finding.get(name):
            said |= {f"cs{number}Label": label, f"cs{number}": finding[name]}
    said |= _addresses(finding)
    if mark := mark_of((item,)):
        said |= {"cs6Label": "mode", "cs6": finding["finding.mode"]}
    if link:
        said["request"] = link
    return _cef(finding["rule.id"], mark + title(finding), severity, said)


def _addresses(finding: dict[str, Any]) -> dict[str, str]:
    """Addresses in the key of their family; what is none is left out."""
    said = {}
    for field, four, six, label in (
        ("source.ip", "src", "c6a2", "Source IPv6 Address"),
        ("destination.ip", "dst", "c6a3", "Destination IPv6 Address"),
    ):
        try:
            address = ipaddress.ip_address(str(finding.get(field, "")))
        except ValueError:
            continue
        if address.version == 4:
            said[four] = str(address)
        else:
            said |= {six: str(address), f"{six}Label": label}
    return said


def _cef(id: str, name: str, severity: int, said: dict[str, Any]) -> str:
    head = "|".join(
        line(one, NAME_MAX).replace("\\", "\\\\").replace("|", "\\|")
        for one in ("CEF:0", "cityward", "cityward", version("cityward"), id, name, str(severity))
    )
    return f"{head}|" + " ".join(f"{key}={_value(value)}" for key, value in said.items())


def _value(value: Any) -> str:
    """A value of an extension: backslash and `=` are escaped, and no line ends within it."""
    return line(value, TEXT_MAX).replace("\\", "\\\\").replace("=", "\\=")
