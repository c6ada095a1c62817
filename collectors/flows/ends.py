"""What names a reported flow: the same fields as those of our own meter."""

from __future__ import annotations

import socket
from typing import Any

from collectors.packets.community_id import community_id
from collectors.packets.flows import TRANSPORTS
from collectors.packets.walk import ICMP, ICMP6, ICMP6_PAIRS, ICMP_PAIRS, SCTP, TCP, UDP
from collectors.values import address

Fields = dict[str, Any]
_PORTED = frozenset((TCP, UDP, SCTP))
_NAMED = frozenset((*_PORTED, ICMP, ICMP6))


def ends(source: Any, destination: Any, protocol: Any, sport: Any, dport: Any) -> Fields:
    """`source.*`, `destination.*` and `network.*` of a flow, as far as they were reported.

    Args:
        source: Address as text.
        destination: Address as text.
        protocol: IP protocol number.
        sport: Port; for ICMP the type.
        dport: Port; for ICMP the code.
    """
    fields: Fields = {}
    one, two = address(source), address(destination)
    if one is not None:
        fields["source.ip"] = one
    if two is not None:
        fields["destination.ip"] = two
    if known := one or two:
        fields["network.type"] = "ipv6" if ":" in known else "ipv4"
    if not isinstance(protocol, int) or not 0 <= protocol <= 255:
        return fields
    fields["network.transport"] = TRANSPORTS.get(protocol, str(protocol))
    if protocol in _PORTED:
        if _is_port(sport):
            fields["source.port"] = sport
        if _is_port(dport):
            fields["destination.port"] = dport
    if one is None or two is None or (":" in one) != (":" in two):
        return fields
    if protocol not in _NAMED:
        sport = dport = 0
    if _is_port(sport) and _is_port(dport):
        if protocol in (ICMP, ICMP6):
            dport = (ICMP_PAIRS if protocol == ICMP else ICMP6_PAIRS).get(sport, dport)
        name = community_id(_packed(one), _packed(two), protocol, sport, dport)
        fields["network.community_id"] = name
    return fields


def _is_port(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= 65_535


def _packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
