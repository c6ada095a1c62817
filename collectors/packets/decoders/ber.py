"""Basic Encoding Rules: where the parts of a message begin and end, and what the small ones say.

Lengths are definite, tags have at most three octets, nothing recurs: whoever reads a structure asks
for the elements of one level and goes down into those that it knows.

References:
    ITU-T X.690 (02/2021), clauses 8.1 (tag, length, contents), 8.3 (integer), 8.19 (object
    identifier).
"""

from __future__ import annotations

from typing import NamedTuple

ELEMENTS_MAX = 1_024
"""Elements of one level that are read."""
OID_OCTETS_MAX = 128
INTEGER_OCTETS_MAX = 16
_LENGTH_OCTETS_MAX = 4
_TAG_OCTETS_MAX = 3


class BerError(ValueError):
    """The bytes are no BER; the text says where and why."""


class Element(NamedTuple):
    """One element; `data[at:stop]` is its contents."""

    tag: int
    """All identifier octets as one number: 0x30 a sequence, 0xa0 context 0, 0x5f27 …"""
    at: int
    stop: int


def element(data: bytes, at: int, stop: int) -> Element:
    """Read the element at `at`; it must end at `stop` or before.

    Raises:
        BerError: it does not.
    """
    start, tag = at, 0
    for octet in range(_TAG_OCTETS_MAX + 1):
        if at >= stop:
            raise BerError(f"the tag at byte {start} is cut")
        byte = data[at]
        tag = tag << 8 | byte
        at += 1
        if (octet == 0 and byte & 31 != 31) or (octet and byte < 128):
            break
    else:
        raise BerError(f"the tag at byte {start} has more than {_TAG_OCTETS_MAX} octets")
    if at >= stop:
        raise BerError(f"the length at byte {at} is cut")
    length = data[at]
    at += 1
    if length > 127:
        octets = length & 127
        if not 0 < octets <= _LENGTH_OCTETS_MAX:
            raise BerError(f"the length at byte {at - 1} is indefinite or has {octets} octets")
        if at + octets > stop:
            raise BerError(f"the length at byte {at - 1} is cut")
        length = int.from_bytes(data[at : at + octets])
        at += octets
    if at + length > stop:
        raise BerError(f"the element at byte {start} claims {length} bytes, {stop - at} are left")
    return Element(tag, at, at + length)


def elements(data: bytes, at: int, stop: int, most: int = ELEMENTS_MAX) -> list[Element]:
    """All elements of one level; behind the first `most` nothing is read.

    Raises:
        BerError: they do not fill the bytes.
    """
    found: list[Element] = []
    while at < stop and len(found) < most:
        one = element(data, at, stop)
        found.append(one)
        at = one.stop
    return found


def expect(data: bytes, at: int, stop: int, tag: int) -> Element:
    """Read the element at `at`, which must have this tag.

    Raises:
        BerError: it has another one, or is none.
    """
    one = element(data, at, stop)
    if one.tag != tag:
        raise BerError(f"the tag at byte {at} is 0x{one.tag:02x}, 0x{tag:02x} belongs there")
    return one


def integer(data: bytes, at: int, stop: int) -> int:
    """Contents of an integer, two's complement.

    Raises:
        BerError: it has no octet, or more than anyone counts with.
    """
    if not 0 < stop - at <= INTEGER_OCTETS_MAX:
        raise BerError(f"the integer at byte {at} has {stop - at} octets")
    return int.from_bytes(data[at:stop], signed=True)


def unsigned(data: bytes, at: int, stop: int) -> int:
    """Contents of a counter or a gauge, which some write without the leading zero.

    Raises:
        BerError: it has no octet, or more than anyone counts with.
    """
    return integer(data, at, stop) % (1 << 8 * (stop - at))


def oid(data: bytes, at: int, stop: int) -> str:
    """Contents of an object identifier in dotted form.

    Raises:
        BerError: it is empty, cut or too long.
    """
    if not 0 < stop - at <= OID_OCTETS_MAX:
        raise BerError(f"the object identifier at byte {at} has {stop - at} octets")
    if data[stop - 1] > 127:
        raise BerError(f"the object identifier at byte {at} is cut")
    arcs: list[int] = []
    value = 0
    for byte in data[at:stop]:
        value = value << 7 | byte & 127
        if byte < 128:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))
