"""Community ID: the name of a flow that Zeek, Suricata and Wireshark give it too.

References:
    Corelight Community ID specification, version 1, seed 0.
"""

from __future__ import annotations

from binascii import b2a_base64
from hashlib import sha1

from collectors.packets.walk import ICMP, ICMP6, ICMP6_PAIRS, ICMP_PAIRS

_SEED = b"\0\0"
_HAS_PORTS = frozenset((6, 17, 132))


def community_id(source: bytes, destination: bytes, protocol: int, sport: int, dport: int) -> str:
    """Hash a flow; which side is which makes no difference.

    Args:
        source: Raw address, 4 or 16 bytes.
        destination: Raw address.
        protocol: IP protocol number.
        sport: Port of TCP, UDP, SCTP; for ICMP the type.
        dport: Port; for ICMP the type of its answer, or the code where it has none.
    """
    if protocol in (ICMP, ICMP6):
        # A type without an answer is one-way, and is never turned.
        pairs = ICMP_PAIRS if protocol == ICMP else ICMP6_PAIRS
        turn = sport in pairs and (destination, dport) < (source, sport)
    elif protocol in _HAS_PORTS:
        turn = (destination, dport) < (source, sport)
    else:
        text = min(source, destination) + max(source, destination)
        return _hashed(_SEED + text + bytes((protocol, 0)))
    if turn:
        source, destination, sport, dport = destination, source, dport, sport
    ports = (sport << 16 | dport).to_bytes(4, "big")
    return _hashed(_SEED + source + destination + bytes((protocol, 0)) + ports)


def _hashed(text: bytes) -> str:
    digest = sha1(text, usedforsecurity=False).digest()
    return "1:" + b2a_base64(digest, newline=False).decode()
