"""DHCP: which device asks for an address, how it calls itself, and which server gives it what.

Understood: all message types of version 4 with hardware address, host name, vendor class, asked
and given address, server, router and name servers; what belongs together has the same link.

Not understood: options of makers, relay information, DHCP for IPv6.

References:
    RFC 2131, section 2 (message) and 3 (exchange); RFC 2132 (options).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Any

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import broken, printable, unreadable

DHCP = LogSource(category="network", service="dhcp")

OPTIONS_MAX = 64
"""Options that are read; a message has fewer."""
ADDRESSES_SHOWN = 4

MESSAGES: dict[int, str] = {
    1: "discover",
    2: "offer",
    3: "request",
    4: "decline",
    5: "ack",
    6: "nak",
    7: "release",
    8: "inform",
}
_ANSWERS = {2: "success", 5: "success", 6: "failure"}
_ADDRESSES: dict[int, str] = {3: "router", 6: "name_server", 50: "requested", 54: "server"}
_TEXTS: dict[int, str] = {15: "domain", 60: "vendor_class", 66: "boot_server", 67: "boot_file"}
_HOST_NAME, _LEASE, _TYPE, _MESSAGE, _NAME = 12, 51, 53, 56, 81
_MAGIC = b"\x63\x82\x53\x63"
_OPTIONS_AT = 240
_NOWHERE = bytes(4)

Fields = dict[str, Any]


@decoder("dhcp", DHCP, transport="udp", ports=(67, 68), begins=b"\x01\x02")
class Dhcp:
    """Clients and servers of one pair of addresses; many share the broadcast address."""

    def __init__(self, session: Session) -> None:
        self._always = {
            **session.base,
            "network.protocol": "dhcp",
            "event.category": ["network"],
            "event.type": ["protocol"],
        }

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a request or reply of Ethernet with the number of DHCP in its place."""
        return (
            len(head) > _OPTIONS_AT
            and head[0] in (1, 2)
            and head[1] > 0
            and head[2] <= 16
            and head[236:240] == _MAGIC
        )

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if len(data) < _OPTIONS_AT or data[236:240] != _MAGIC:
            why = f"a message of {len(data)} bytes without the number of DHCP"
            return len(data), [unreadable(self._always, why)]
        return len(data), [self._message(data)]

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; datagrams have no gaps."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; nothing is open: answers go to all, so that they lie in other flows."""
        return ()

    def _message(self, data: bytes) -> Fields:
        vendor: Fields = {}
        own: Fields = {**self._always, "event.action": "dhcp_message", "cw.vendor": vendor}
        number = int.from_bytes(data[4:8])
        own["event.sequence"] = number
        own["ot.link_id"] = f"dhcp.{number:08x}"
        hardware = data[28 : 28 + min(data[2], 16)]
        if hardware.strip(b"\0"):
            own["host.mac"] = [hardware.hex(":")]
        given = next((data[at : at + 4] for at in (16, 12) if data[at : at + 4] != _NOWHERE), b"")
        if given:
            own["host.ip"] = [str(ipaddress.IPv4Address(given))]
        if data[24:28] != _NOWHERE:
            vendor["relay"] = str(ipaddress.IPv4Address(data[24:28]))
        kind = 0
        for code, value in _options(data, own):
            if code == _TYPE and value:
                kind = value[0]
            else:
                _option(code, value, own, vendor)
        name = MESSAGES.get(kind) or f"type_{kind}"
        own["event.action"] = f"dhcp_{name}"
        if not kind:
            own["event.action"] = "dhcp_bootp"
        if kind in _ANSWERS:
            own["event.outcome"] = _ANSWERS[kind]
        return own


def _options(data: bytes, own: Fields) -> Iterator[tuple[int, bytes]]:
    """Options until their end; says so if one is cut."""
    at, end = _OPTIONS_AT, len(data)
    for _ in range(OPTIONS_MAX):
        while at < end and not data[at]:
            at += 1
        if at >= end or data[at] == 255:
            return
        if at + 2 > end or at + 2 + data[at + 1] > end:
            broken(own, f"option {data[at]} is cut")
            return
        yield data[at], data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]


def _option(code: int, value: bytes, own: Fields, vendor: Fields) -> None:
    if code == _HOST_NAME:
        own["host.hostname"] = printable(value.rstrip(b"\0"))
    elif code == _NAME and len(value) > 3:
        # The flag says whether the name is written as DNS does.
        vendor["full_name"] = printable(value[3:])
    elif code in _ADDRESSES and value and not len(value) % 4:
        shown = (value[at : at + 4] for at in range(0, min(len(value), 4 * ADDRESSES_SHOWN), 4))
        vendor[_ADDRESSES[code]] = ",".join(str(ipaddress.IPv4Address(one)) for one in shown)
    elif code in _TEXTS:
        vendor[_TEXTS[code]] = printable(value.rstrip(b"\0"))
    elif code == _LEASE and len(value) == 4:
        vendor["lease_s"] = int.from_bytes(value)
    elif code == _MESSAGE and value:
        own["event.reason"] = printable(value)
