"""The packet filter of Linux: log lines of iptables, nftables and ufw.

Send: give the rule a log action (`log prefix "DROP: "` in nftables, `-j LOG` in iptables) and send
the kernel's messages by syslog, or read `/var/log/kern.log` (`reader = "file"`).

Understood: interfaces, addresses, ports, protocol, TCP flags, MAC addresses, lengths, and whether
the prefix says that the packet was dropped or let through.

Not understood: counters and connection-tracking events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.logs.envelope import Envelope, enveloped, read_lines
from collectors.values import address, clean, count, mac, port

NETFILTER = LogSource(category="firewall", product="linux", service="netfilter")

_MESSAGE = re.compile(
    r"(?:\[ {0,8}\d{1,10}\.\d{1,9}\] ?)?(?P<prefix>.{0,200}?)IN=(?P<rest>\S* .*)", re.S
)
_PAIR = re.compile(r"([A-Z][A-Z0-9]{0,15})=(\S{0,512})")
_FLAGS = frozenset(("SYN", "ACK", "FIN", "RST", "PSH", "URG", "ECE", "CWR", "DF", "MF", "CE"))
MESSAGE_MAX = 4_096
"""Characters of a message that are read; the kernel writes about 300."""

_DENIED = re.compile(r"drop|block|reject|den(?:y|ied)|ban|invalid", re.I)
_ALLOWED = re.compile(r"accept|allow|pass|permit", re.I)


def looks_like_netfilter(head: bytes) -> bool:
    """Most of the first lines are of the packet filter."""
    lines = [line for line in head.split(b"\n") if line.strip()][:40]
    good = sum(b" IN=" in line and b" SRC=" in line and b" PROTO=" in line for line in lines)
    return good > len(lines) // 2


@collector(NETFILTER, looks_like=looks_like_netfilter, strength=60)
def netfilter(records: Iterable[Record]) -> Iterator[Event]:
    """Read kernel log lines of the packet filter.

    References:
        linux/net/netfilter/nf_log_syslog.c; RFC 3164.
    """
    yield from read_lines(records, NETFILTER, lambda _app: read_netfilter)


def read_netfilter(around: Envelope, record: Record, number: int) -> Event | None:
    """Read one message; None if it is not of the packet filter."""
    message = around.message[:MESSAGE_MAX]
    found = _MESSAGE.match(message)
    if found is None or "SRC=" not in message:
        return None
    words, fields, vendor = f"IN={found['rest']}", verdict(found["prefix"].strip()), {}
    inner = words.find("[", 1)  # an ICMP error quotes the packet that caused it
    if inner > 0:
        vendor["quoted"] = clean(words[inner:])
        words = words[:inner]
    for name, value in _PAIR.findall(words):
        _take(name, value, fields, vendor)
    flags = [word for word in words.split() if word in _FLAGS]
    if flags:
        vendor["flags"] = " ".join(flags)
    fields["message"] = clean(message)
    if vendor:
        fields["cw.vendor"] = vendor
    return Event(around.time, NETFILTER, enveloped(around, fields), record, number)


def verdict(prefix: str) -> dict[str, Any]:
    """What the filter did, by the words that its administrator chose as prefix."""
    fields: dict[str, Any] = {
        "event.category": ["network"],
        "event.dataset": "netfilter.log",
        "event.action": "packet_logged",
    }
    if prefix:
        fields["rule.name"] = clean(prefix.strip("[]: "))
    if _DENIED.search(prefix):
        return {**fields, "event.action": "packet_denied", "event.type": ["denied"]}
    if _ALLOWED.search(prefix):
        return {**fields, "event.action": "packet_allowed", "event.type": ["allowed"]}
    return fields


_ADDRESSES = {"SRC": "source.ip", "DST": "destination.ip"}
_PORTS = {"SPT": "source.port", "DPT": "destination.port"}
_INTERFACES = {"IN": "observer.ingress.interface.name", "OUT": "observer.egress.interface.name"}
_PROTOCOLS = {"1": "icmp", "2": "igmp", "6": "tcp", "17": "udp", "47": "gre", "50": "esp"}
"""Numbers the kernel writes for what it does not name; IANA protocol numbers."""


def _take(name: str, value: str, fields: dict[str, Any], vendor: dict[str, Any]) -> None:
    """Put one `NAME=value` where it belongs; the first of a name counts."""
    field, checked = _field(name, value)
    if name == "MAC" and value:
        # Destination, source and type of the Ethernet header in one word.
        for side, octets in (("destination", value[:17]), ("source", value[18:35])):
            if hardware := mac(octets):
                fields.setdefault(f"{side}.mac", hardware)
    if field and checked is not None and field not in fields:
        fields[field] = checked
    elif value and name not in vendor:
        vendor[name] = clean(value)


def _field(name: str, value: str) -> tuple[str, Any]:
    if name in _ADDRESSES:
        return _ADDRESSES[name], address(value)
    if name in _PORTS:
        return _PORTS[name], port(value)
    if name in _INTERFACES:
        return _INTERFACES[name], clean(value) or None
    if name == "PROTO":
        return "network.transport", _PROTOCOLS.get(value, clean(value.lower())) or None
    if name == "LEN":
        # The first is the length of the IP packet; UDP has one of its own behind it.
        return "network.bytes", count(value)
    return "", None
