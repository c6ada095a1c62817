"""The head of one sampled packet, read plainly: link, tags, addresses, ports.

References:
    IEEE 802.3, 802.1Q; RFC 3032 (MPLS), RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 792.
"""

from __future__ import annotations

import socket
from struct import Struct
from typing import Any

from collectors.flows.ends import Fields, ends
from collectors.packets.walk import ICMP, ICMP6, SCTP, TCP, UDP

ETHERNET, IP4, IP6 = 1, 11, 12
"""Kinds of a sampled header (sFlow 5, `header_protocol`)."""
_TAGS = frozenset((0x8100, 0x88A8, 0x9100))
_MPLS = frozenset((0x8847, 0x8848))
_TYPE_IP4, _TYPE_IP6 = 0x0800, 0x86DD
_EXTENSIONS = frozenset((0, 43, 60))
_FRAGMENT = 44
DEPTH = 8
"""Tags, labels or extension headers that are passed over."""

_SHORT = Struct("!H")
_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")


def packet(kind: int, head: bytes) -> tuple[Fields, Fields]:
    """Fields of a packet, as far as its head reaches, and what is vendor's.

    Args:
        kind: What it begins with (`ETHERNET`, `IP4`, `IP6`).
        head: Its first bytes.
    """
    if kind == ETHERNET:
        return _ethernet(head)
    if kind in (IP4, IP6):
        return _ip(head)
    return {}, {"header_protocol": kind}


def _ethernet(head: bytes) -> tuple[Fields, Fields]:
    if len(head) < 14:
        return {}, {"cut": True}
    fields: Fields = {
        "source.mac": head[6:12].hex("-").upper(),
        "destination.mac": head[:6].hex("-").upper(),
    }
    at, depth = 12, 0
    while (kind := _word(head, at)) in _TAGS and depth < DEPTH:
        tag = _word(head, at + 2)
        if tag is not None and tag & 0xFFF:
            fields.setdefault("network.vlan.id", str(tag & 0xFFF))
        at, depth = at + 4, depth + 1
    at += 2
    if kind in _MPLS:
        for _ in range(DEPTH):
            label, at = head[at : at + 4], at + 4
            if len(label) < 4 or label[2] & 1:
                break
        kind = _TYPE_IP6 if head[at : at + 1] and head[at] >> 4 == 6 else _TYPE_IP4
    if kind not in (_TYPE_IP4, _TYPE_IP6):
        return fields, {} if kind is None else {"ethertype": kind}
    inner, vendor = _ip(head[at:])
    return {**fields, **inner}, vendor


def _ip(head: bytes) -> tuple[Fields, Fields]:
    version = head[0] >> 4 if head else 0
    if version == 4 and len(head) >= _IPV4.size:
        first, tos, _, _, fragment, ttl, protocol, _, source, destination = _IPV4.unpack_from(head)
        at = (first & 15) * 4
        names = socket.inet_ntoa(source), socket.inet_ntoa(destination)
        is_later = bool(fragment & 0x1FFF)
    elif version == 6 and len(head) >= _IPV6.size:
        word, _, protocol, ttl, source, destination = _IPV6.unpack_from(head)
        tos, at, is_later = word >> 20 & 255, _IPV6.size, False
        names = (
            socket.inet_ntop(socket.AF_INET6, source),
            socket.inet_ntop(socket.AF_INET6, destination),
        )
        protocol, at, is_later = _beyond_extensions(head, protocol, at)
    else:
        return {}, {"cut": True}
    vendor: Fields = {"tos": tos, "ttl": ttl}
    if is_later:
        vendor["fragment"] = True
        return ends(*names, protocol, None, None), vendor
    sport, dport = _ports(head, at, protocol, vendor)
    return ends(*names, protocol, sport, dport), vendor


def _beyond_extensions(head: bytes, protocol: int, at: int) -> tuple[int, int, bool]:
    """Protocol, where it begins, and whether it is in an earlier fragment."""
    is_later = False
    for _ in range(DEPTH):
        if len(head) < at + 8:
            break
        if protocol in _EXTENSIONS:
            protocol, at = head[at], at + 8 + head[at + 1] * 8
        elif protocol == _FRAGMENT:
            is_later = is_later or bool((_word(head, at + 2) or 0) & 0xFFF8)
            protocol, at = head[at], at + 8
        else:
            break
    return protocol, at, is_later


def _ports(head: bytes, at: int, protocol: int, vendor: Fields) -> tuple[Any, Any]:
    """Ports; type and code of ICMP, which become vendor's; the flags of TCP."""
    if protocol in (ICMP, ICMP6):
        if len(head) < at + 2:
            return None, None
        vendor["icmp_type"], vendor["icmp_code"] = head[at], head[at + 1]
        return head[at], head[at + 1]
    if protocol not in (TCP, UDP, SCTP):
        return None, None
    if protocol == TCP and len(head) > at + 13:
        vendor["tcp_flags"] = head[at + 13]
    return _word(head, at), _word(head, at + 2)


def _word(head: bytes, at: int) -> int | None:
    if len(head) < at + 2:
        return None
    (value,) = _SHORT.unpack_from(head, at)
    return int(value)
