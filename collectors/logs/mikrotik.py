"""MikroTik RouterOS: packets that its firewall logs, logins, changes of the configuration.

Send: `/system logging action set remote remote=` and the node's address, then `/system logging
add topics=firewall action=remote` and the same for `system`, `critical` and `account`; give the
rules of the firewall `log=yes log-prefix=drop`. A syslog reader (`reader = "syslog_udp"`) knows
such lines by itself; for a file write `collector = "mikrotik"`.

Understood: Firewall lines of IPv4 and IPv6 with prefix, chain, interfaces, state, MAC, protocol
and flags, ends; logins that succeeded and failed, by which service; logouts; what was changed.

Not understood: What the rule did, unless its prefix says so (drop, reject, accept); other topics
are kept as text.

References:
    MikroTik, "Log" and "Firewall: Filter" of the RouterOS documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import enveloped
from collectors.logs.marked import around_mark, most_lines, read_marked
from collectors.logs.netfilter import verdict
from collectors.values import address, clean, count, mac, port

MIKROTIK = LogSource(product="mikrotik")

_TOPICS = rb"[a-z0-9-]{2,24}(?:,[a-z0-9!-]{2,24}){0,4},(?:info|warning|error|critical|debug)"
_MARK = re.compile(
    rb"(?:\A|(?<=[ >:]))(?:" + _TOPICS + rb"(?:,[a-z]{2,16}){0,3}:? "
    # Without topics only a prefix that says what the rule did can be told from a host.
    rb"|(?:[\w-]{0,32}(?:drop|den[iy]|reject|block|accept|allow|pass)[\w-]{0,32} )?"
    rb"[\w-]{1,64}: in:(?:\S{1,64}|\(unknown \d+\)) out:"
    rb"|login failure for user |user \S{1,128} logged (?:in|out) )"
)
_TOPICS_AT = re.compile(
    r"(?P<topics>[a-z0-9,!-]{4,120}),(?:info|warning|error|critical|debug)\S*:? "
)
_PACKET = re.compile(
    r"(?P<prefix>.{0,64}?) ?\b(?P<chain>[\w-]{1,64}): in:(?P<in>\(unknown \d+\)|\S{1,64}) "
    r"out:(?P<out>\(unknown \d+\)|[^\s,]{1,64}),? (?:connection-mark:\S{1,64} )?"
    r"(?:connection-state:(?P<state>[\w,]{1,48}) ?)?(?:src-mac (?P<mac>[0-9A-Fa-f:]{17}),? )?,?\s?"
    r"(?:dst-mac \S{17},? )?(?:eth-proto \S{1,12},? )?proto (?P<proto>[\w-]{1,16})"
    r"(?: \((?P<flags>[^)]{1,48})\))?, (?P<a>\S{3,64}?)->(?P<b>[^\s,]{3,64})(?:,.{0,200}?)?"
    r"(?:,? len (?P<len>\d{1,9}))?\Z",
    re.DOTALL,
)
_END = re.compile(r"\[?([0-9A-Fa-f:.]{2,45}?)\]?(?::(\d{1,5}))?\Z")
_FAILED = re.compile(
    r"login failure for user (?P<user>.{0,256}) from (?P<ip>\S{2,64}) via (?P<how>.+)"
)
_LOGGED = re.compile(
    r"user (?P<user>.{1,256}) logged (?P<what>in|out)"
    r"(?: from (?P<ip>\S{2,64}))?(?: via (?P<how>.+))?"
)
_CHANGED = re.compile(r".{1,200}? (?:added|removed|changed|moved|scheduled) by (?P<user>\S{1,256})")
_KNOWN = frozenset(("tcp", "udp", "icmp", "icmpv6", "gre", "esp", "igmp", "sctp"))
MESSAGE_MAX = 2_048


def looks_like_mikrotik(head: bytes) -> bool:
    """Most of the first lines have topics as RouterOS writes them, or its firewall's words."""
    return most_lines(head, _MARK)


@collector(MIKROTIK, looks_like=looks_like_mikrotik, strength=65)
def mikrotik(records: Iterable[Record]) -> Iterator[Event]:
    """Read lines of RouterOS, bare or behind an envelope of syslog."""
    yield from read_marked(records, MIKROTIK, read_mikrotik, "RouterOS")


def read_mikrotik(record: Record) -> Event | None:
    """Read one line; None if it is not of RouterOS."""
    mark = _MARK.search(record.data, 0, 512)
    if mark is None:
        return None
    line = record.data[mark.start() : mark.start() + MESSAGE_MAX].decode(
        "utf-8", "backslashreplace"
    )
    topics, message = "", line.strip()
    if found := _TOPICS_AT.match(line):
        topics, message = found["topics"], line[found.end() :].strip()
    fields: dict[str, Any] = {
        "event.action": "log",
        "event.dataset": "mikrotik.log",
        "message": clean(message),
        "observer.vendor": "MikroTik",
    }
    category = ""
    if found := _PACKET.match(message):
        category = "firewall"
        _packet(found, fields)
    elif found := _FAILED.match(message) or _LOGGED.match(message):
        category = "edge_device"
        _login(found, fields)
    elif found := _CHANGED.match(message):
        category = "edge_device"
        fields.update({"event.action": "device_config", "event.category": ["configuration"]})
        fields["user.name"] = clean(found["user"])
    if topics:
        fields["cw.vendor"] = {**fields.get("cw.vendor", {}), "topics": topics}
    source = LogSource(category=category, product="mikrotik", service=topics.partition(",")[0])
    around = around_mark(record, mark.start())
    return Event(around.time, source, enveloped(around, fields), record)


def _packet(found: re.Match[str], fields: dict[str, Any]) -> None:
    fields.update(verdict(found["prefix"].strip()))
    fields["event.dataset"] = "mikrotik.firewall"
    for side, name in (("source", "a"), ("destination", "b")):
        end = _END.match(found[name])
        if end is not None and (ip := address(end[1])):
            fields[f"{side}.ip"] = ip
            if (number := port(end[2])) is not None:
                fields[f"{side}.port"] = number
    if hardware := mac(found["mac"]):
        fields["source.mac"] = hardware
    for name, field in (("in", "ingress"), ("out", "egress")):
        if not found[name].startswith("("):
            fields[f"observer.{field}.interface.name"] = clean(found[name])
    protocol = found["proto"].lower()
    fields["network.transport"] = protocol if protocol in _KNOWN else clean(protocol)
    if (length := count(found["len"])) is not None:
        fields["network.bytes"] = length
    rest = {"chain": found["chain"], "state": found["state"], "flags": found["flags"]}
    fields["cw.vendor"] = {name: value for name, value in rest.items() if value}


def _login(found: re.Match[str], fields: dict[str, Any]) -> None:
    said = found.groupdict()
    out = said.get("what") == "out"
    fields["event.action"] = "device_logout" if out else "device_login"
    fields["event.category"] = ["authentication"]
    fields["event.outcome"] = "success" if "what" in said else "failure"
    fields["user.name"] = clean(said["user"] or "")
    if not fields["user.name"]:
        del fields["user.name"]
    if said["ip"]:
        ip = address(said["ip"])
        fields["source.ip" if ip else "source.domain"] = ip or clean(said["ip"])
    if said["how"]:
        fields["network.application"] = clean(said["how"].strip()[:64])
