"""pfSense and OPNsense: what their packet filter logs, and logins to their web interface.

Send: pfSense: Status, System Logs, Settings, "Enable Remote Logging", firewall events and system
events. OPNsense: System, Settings, Logging, Remote, application `filterlog` and `audit`. A syslog
reader (`reader = "syslog_udp"`) knows such lines by itself; for a file write `collector = "pf"`.

Understood: `filterlog` of IPv4 and IPv6 with TCP, UDP, ICMP and the rest: rule, interface, verdict,
ends, flags, lengths; CARP without ends; failed and good logins of the web interface.

Not understood: Which rule a tracker number is; it is in `rule.id`.

References:
    Netgate, "Raw Filter Log Format"; OPNsense, src/opnsense/scripts/filter (labels of rules).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import Envelope, enveloped, read_lines
from collectors.logs.marked import most_lines
from collectors.values import address, clean, count, port

PF = LogSource(category="firewall", product="pfsense", service="filterlog")
GUI = LogSource(category="edge_device", product="pfsense", service="webgui")

_MARK = re.compile(rb"\bfilterlog\b|webConfigurator authentication|Web GUI authentication")
_GUI = re.compile(
    r"(?:\S{1,128}: )?(?:webConfigurator|Web GUI) (?P<how>authentication error|authentication "
    r"success|Successful login|Session timed out)\S* (?:for )?(?:user )?"
    r"'(?P<user>[^']{0,256})'(?: from:? ?(?P<ip>[0-9A-Fa-f.:]{2,45}))?"
)
_OK = re.compile(
    r"(?:\S{1,128}: )?Successful login for user '(?P<user>[^']{1,256})' from:? ?"
    r"(?P<ip>[0-9A-Fa-f.:]{2,45})"
)
ACTIONS = {"block": "packet_denied", "reject": "packet_denied", "pass": "packet_allowed"}
COLUMNS_MAX = 64

# Columns by number, from 0. Those before 9 are common.
_RULE, _TRACKER, _INTERFACE, _REASON, _ACTION, _DIRECTION, _VERSION = 0, 3, 4, 5, 6, 7, 8
_V4, _V6 = 19, 16
"""Where the part of the transport begins."""


def looks_like_pf(head: bytes) -> bool:
    """Most of the first lines are of filterlog or of the web interface's login."""
    return most_lines(head, _MARK)


@collector(PF, looks_like=looks_like_pf, strength=70)
def pf(records: Iterable[Record]) -> Iterator[Event]:
    """Read syslog of the packet filter and of the web interface."""
    yield from read_lines(records, PF, lambda app: READERS.get(app, read_pf_login))


def read_filterlog(around: Envelope, record: Record, number: int) -> Event | None:
    """Read one line of filterlog; None if it is none."""
    parts = around.message.strip().split(",", COLUMNS_MAX)
    if len(parts) < 9 or parts[_VERSION] not in ("4", "6"):
        return None
    action = parts[_ACTION]
    fields: dict[str, Any] = {
        "event.category": ["network"],
        "event.dataset": "pf.filterlog",
        "event.action": ACTIONS.get(action, "packet_logged"),
        "message": clean(around.message[:2_048]),
        "observer.ingress.interface.name": clean(parts[_INTERFACE]),
        "network.type": f"ipv{parts[_VERSION]}",
        "network.direction": {"in": "inbound", "out": "outbound"}.get(parts[_DIRECTION], "unknown"),
    }
    if action in ACTIONS:
        fields["event.type"] = ["denied" if action != "pass" else "allowed"]
    if rule := parts[_TRACKER] if parts[_TRACKER] not in ("", "0") else parts[_RULE]:
        fields["rule.id"] = clean(rule)
    if parts[_REASON]:
        fields["event.reason"] = clean(parts[_REASON])
    vendor = (_v4 if parts[_VERSION] == "4" else _v6)(parts, fields)
    if vendor:
        fields["cw.vendor"] = vendor
    return Event(around.time, PF, enveloped(around, fields), record, number)


def _v4(parts: list[str], fields: dict[str, Any]) -> dict[str, Any]:
    # tos, ecn, ttl, id, offset, flags, number and name of the protocol, length, source, destination
    if len(parts) < 20:
        return {}
    fields["network.transport"] = clean(parts[16].lower())
    _ends(parts, 17, fields)
    return {"ttl": clean(parts[11]), **_transport(parts, 20, fields)}


def _v6(parts: list[str], fields: dict[str, Any]) -> dict[str, Any]:
    # class, flow label, hop limit, name and number of the protocol, length, source, destination
    if len(parts) < 17:
        return {}
    fields["network.transport"] = clean(parts[12].lower())
    _ends(parts, 14, fields)
    return {"ttl": clean(parts[11]), **_transport(parts, 17, fields)}


def _ends(parts: list[str], at: int, fields: dict[str, Any]) -> None:
    length, source, destination = count(parts[at]), address(parts[at + 1]), address(parts[at + 2])
    if length is not None:
        fields["network.bytes"] = length
    if source:
        fields["source.ip"] = source
    if destination:
        fields["destination.ip"] = destination


def _transport(parts: list[str], at: int, fields: dict[str, Any]) -> dict[str, Any]:
    protocol = fields["network.transport"]
    if protocol in ("tcp", "udp") and len(parts) > at + 1:
        for number, field in ((at, "source.port"), (at + 1, "destination.port")):
            if (found := port(parts[number])) is not None:
                fields[field] = found
        flags = parts[at + 3] if protocol == "tcp" and len(parts) > at + 3 else ""
        return {"flags": clean(flags)} if flags else {}
    kind = parts[at] if len(parts) > at else ""
    return {"type": clean(kind)} if kind else {}


def read_pf_login(around: Envelope, record: Record, number: int) -> Event | None:
    """Read one message of the web interface about a login; None if it is another one."""
    found = _GUI.match(around.message) or _OK.match(around.message)
    if found is None:
        return None
    fields: dict[str, Any] = {
        "event.category": ["authentication"],
        "event.action": "device_login",
        "event.outcome": "failure" if "error" in found[0][:128] else "success",
        "event.dataset": "pf.webgui",
        "message": clean(around.message[:2_048]),
    }
    if found["user"]:
        fields["user.name"] = clean(found["user"])
    if ip := address(found["ip"]):
        fields["source.ip"] = ip
    return Event(around.time, GUI, enveloped(around, fields), record, number)


READERS = {
    "filterlog": read_filterlog,
    "php-fpm": read_pf_login,
    "audit": read_pf_login,
    "php": read_pf_login,
}
"""By the program that wrote the line."""
