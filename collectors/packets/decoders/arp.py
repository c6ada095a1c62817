"""ARP: who asks for which IPv4 address, who answers, and who announces itself.

Understood: requests and replies between Ethernet and IPv4 addresses; probes (RFC 5227), which ask
whether an address is free; gratuitous requests and replies, by which a host announces its address;
a sender in the body that is not the sender of the frame.

Not understood: reverse and inverse ARP and other kinds of addresses, which are said with their
numbers only; whether an address belongs to whoever answers for it, since a conversation is what one
sender says: rules compare senders.

References:
    RFC 826 (packet format); RFC 5227, sections 1.1 and 3 (probe, announcement).
"""

from __future__ import annotations

from collections.abc import Sequence
from socket import inet_ntoa
from struct import Struct
from typing import Any

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import unreadable

ARP = LogSource(category="network", service="arp")

ETHERTYPE = 0x0806
OPERATIONS: dict[int, str] = {
    1: "arp_request",
    2: "arp_reply",
    3: "rarp_request",
    4: "rarp_reply",
    8: "inarp_request",
    9: "inarp_reply",
}
"""RFC 5494 and the IANA registry "ARP parameters"."""
REQUEST, REPLY = 1, 2
_ETHERNET_IPV4 = (1, 0x0800, 6, 4)
_NOWHERE = bytes(4)

_HEAD = Struct(">HHBBH")
_BODY = Struct(">6s4s6s4s")

Fields = dict[str, Any]


@decoder("arp", ARP, transport="link", ethertypes=(ETHERTYPE,))
class Arp:
    """What one sender asks and answers."""

    def __init__(self, session: Session) -> None:
        self._of = session.client
        self._base = {**session.base, "event.kind": "event", "event.category": ["network"]}
        self._base["event.outcome"] = "unknown"

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`."""
        return len(head) >= 28 and _HEAD.unpack_from(head)[:4] == _ETHERNET_IPV4

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        return len(data), [self._read(data)]

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; every frame is whole by itself."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; nothing is kept."""
        return ()

    def _read(self, data: bytes) -> Fields:
        if len(data) < _HEAD.size:
            return self._unreadable(f"{len(data)} bytes are no ARP packet")
        *kinds, operation = _HEAD.unpack_from(data)
        action = OPERATIONS.get(operation)
        code = {"ot.function.code": str(operation)}
        if action is None:
            return self._unreadable(f"operation {operation} is not known") | code
        if tuple(kinds) != _ETHERNET_IPV4:
            hardware, protocol, *sizes = kinds
            why = f"addresses of kinds {hardware} and 0x{protocol:04x}, of {sizes} bytes"
            return {**self._base, **code, "event.action": action, "event.reason": why}
        if len(data) < _HEAD.size + _BODY.size:
            return self._unreadable("the addresses are cut") | code
        of, source, to, target = _BODY.unpack_from(data, _HEAD.size)
        fields: Fields = {**self._base, **code, "event.action": action}
        fields["destination.ip"] = inet_ntoa(target)
        if source != _NOWHERE:
            fields["source.ip"] = inet_ntoa(source)
        vendor: Fields = {"arp_kind": _kind(operation, source, target)}
        if operation == REPLY:
            vendor["target_mac"] = _mac(to)
        if _mac(of) != self._of:
            vendor["sender_mac"] = _mac(of)
            fields["event.reason"] = "the sender in the body is not the sender of the frame"
        fields["cw.vendor"] = vendor
        return fields

    def _unreadable(self, why: str) -> Fields:
        return unreadable(self._base, why)


def _kind(operation: int, source: bytes, target: bytes) -> str:
    """`probe`, `gratuitous` or `ordinary`."""
    if operation == REQUEST and source == _NOWHERE:
        return "probe"
    return "gratuitous" if source == target else "ordinary"


def _mac(raw: bytes) -> str:
    return raw.hex("-").upper()
