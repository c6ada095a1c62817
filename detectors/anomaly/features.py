"""Event → features: what a model looks at, per kind of entity, as slots of one small table.

A feature is a region of the table; a symbol of it is one slot. A symbol is a number made the same
way in every process, so that tables outlive a restart. Two symbols may fall into one slot: then
something new looks known in that feature, hardly ever in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from cityward import Event

ABSENT = 0
CODES_MAX = 65_536


class Codes:
    """Text → number, the same in every process; a bounded memory of what was asked before."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[Any, int] = {None: ABSENT}

    def __call__(self, text: Any) -> int:
        """The number of a text; 0 for None."""
        try:
            code = self._known.get(text)
        except TypeError:  # a list where one value belongs
            return self(str(text))
        if code is None:
            if len(self._known) >= CODES_MAX:
                self._known = {None: ABSENT}
            code = crc32(str(text).encode("utf-8", "surrogatepass")) | 1
            self._known[text] = code
        return code


@dataclass(frozen=True, slots=True)
class Feature:
    """A region of the table."""

    name: str
    """As a person reads it in "why"."""
    bits: int
    """The region has 2**bits slots."""


@dataclass(slots=True)
class Trail:
    """What an entity did just before: transitions and gaps need it."""

    function: int = ABSENT
    time_s: float = 0.0


OT = (
    Feature("source", 8),
    Feature("function", 6),
    Feature("unit", 5),
    Feature("address", 8),
    Feature("quantity", 6),
    Feature("value", 6),
    Feature("exception", 5),
    Feature("transition", 7),
    Feature("gap", 6),
    Feature("function by source", 7),
    Feature("address by function", 8),
    Feature("value by address", 8),
    Feature("cause by type", 6),
)
"""One served device and protocol: its links differ in `source` and its pairs.

The table is the device's and not the link's, so that it can say "nobody wrote": a host that
speaks to a controller for the first time has no history of its own to be compared with.
"""

FLOW = (
    Feature("peer", 8),
    Feature("service", 6),
    Feature("state", 5),
    Feature("bytes out", 6),
    Feature("bytes in", 6),
    Feature("packets", 6),
    Feature("duration", 6),
    Feature("gap", 6),
    Feature("hour class", 5),
    Feature("service by state", 7),
    Feature("bytes by service", 8),
    Feature("service by peer", 8),
)
"""One device that starts conversations."""

_A, _B, _M = 0x9E3779B1, 0x85EBCA6B, 0xFFFFFFFF
SERVICE_PORTS_MAX = 1024
"""A port below is a service, and so is any port that has a name; the others are one class."""


def offsets(features: tuple[Feature, ...]) -> tuple[int, ...]:
    """Where each region begins, and behind the last one the size of the table."""
    found = [0]
    for feature in features:
        found.append(found[-1] + (1 << feature.bits))
    return tuple(found)


def gap_bin(seconds: float) -> int:
    """Two bins an octave from 0.1 ms; time that stands or runs back is a bin of its own."""
    if seconds <= 0.0001:
        return 1
    return min(62, 2 + int(2.0 * math.log2(seconds * 10_000.0)))


def size_of(size: Any) -> float:
    """A size as it is said; 0 for what is no size."""
    return size if isinstance(size, (int, float)) and 0 <= size < 1e300 else 0


def size_bin(size: Any) -> int:
    """Two bins an octave; 0 for what is not given."""
    if not isinstance(size, (int, float)) or not 0 <= size < 1e300:
        return ABSENT
    return min(62, 1 + int(2.0 * math.log2(1.0 + size)))


def value_bin(value: Any) -> int:
    """Sign, octave and quarter of it; 0 for what is no finite number."""
    if not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
        return ABSENT
    mantissa, exponent = math.frexp(value)
    return 4_096 + exponent * 32 + int(mantissa * 8.0)


def _mix(symbol: int, bits: int) -> int:
    return (symbol * _A & _M) >> (32 - bits)


def _pair(one: int, other: int, bits: int) -> int:
    return ((one * _A ^ (other + 0x7F4A7C15) * _B) & _M) >> (32 - bits)


_OT_AT = offsets(OT)
_FLOW_AT = offsets(FLOW)


def ot_slots(fields: Mapping[str, Any], time_s: float, trail: Trail, codes: Codes) -> list[int]:
    """One slot a feature of `OT`; moves the trail on."""
    get = fields.get
    at = _OT_AT
    direction = codes(get("ot.direction"))
    function = (
        codes(get("ot.function.code")) ^ (direction >> 3) ^ (codes(get("ot.function.sub")) >> 5)
    )
    source = codes(get("source.ip"))
    unit = codes(get("ot.unit") or get("ot.common_address"))
    address = get("ot.point.address")
    spot = address + 1 if isinstance(address, int) else codes(address)
    value = value_bin(get("ot.value"))
    if not value and (raw := get("ot.value_raw")) and get("ot.is_command"):
        value = codes(raw)
    cause = codes(get("ot.cause")) ^ (codes(get("ot.point.type")) >> 7)
    quantity = get("ot.point.count") or 0
    if not isinstance(quantity, int):
        quantity = codes(quantity)
    slots = [
        _mix(source, 8),
        at[1] + _mix(function, 6),
        at[2] + _mix(unit, 5),
        at[3] + _mix(spot, 8),
        at[4] + _mix(quantity, 6),
        at[5] + _mix(value, 6),
        at[6] + _mix(codes(get("ot.exception")), 5),
        at[7] + _pair(trail.function, function, 7),
        at[8] + gap_bin(time_s - trail.time_s),
        at[9] + _pair(source, function, 7),
        at[10] + _pair(spot, function ^ unit, 8),
        at[11] + _pair(value, spot ^ (function >> 9), 8),
        at[12] + _mix(cause, 6),
    ]
    trail.function = function
    trail.time_s = time_s
    return slots


def flow_slots(fields: Mapping[str, Any], time_s: float, trail: Trail, codes: Codes) -> list[int]:
    """One slot a feature of `FLOW`; moves the trail on."""
    get = fields.get
    at = _FLOW_AT
    peer = codes(get("destination.ip"))
    service = codes(service_of(fields))
    state = codes(conn_state_of(fields))
    bytes_out = size_bin(get("source.bytes"))
    duration = get("event.duration")
    sent, received = size_of(get("source.packets")), size_of(get("destination.packets"))
    slots = [
        _mix(peer, 8),
        at[1] + _mix(service, 6),
        at[2] + _mix(state, 5),
        at[3] + bytes_out,
        at[4] + size_bin(get("destination.bytes")),
        at[5] + size_bin(sent + received),
        at[6] + gap_bin(duration / 1e9 if isinstance(duration, int) else 0.0),
        at[7] + gap_bin(time_s - trail.time_s),
        at[8] + int(time_s // 14_400) % 6 + (8 if int(time_s // 86_400 + 3) % 7 > 4 else 0),
        at[9] + _pair(state, service, 7),
        at[10] + _pair(bytes_out, service, 8),
        at[11] + _pair(peer, service, 8),
    ]
    trail.time_s = time_s
    return slots


def service_of(fields: Mapping[str, Any]) -> str:
    """The service of a flow in few classes: a protocol by name, a known port, or "high"."""
    named = fields.get("network.protocol")
    transport = fields.get("network.transport") or "ip"
    port = fields.get("destination.port")
    if named:
        return str(named)
    if not isinstance(port, int):
        return str(transport)
    return f"{transport}/{port if port < SERVICE_PORTS_MAX else 'high'}"


def conn_state_of(fields: Mapping[str, Any]) -> str:
    """How a conversation went, in Zeek's words where the source has them."""
    vendor = fields.get("cw.vendor")
    said = vendor.get("conn_state") if isinstance(vendor, Mapping) else None
    return str(said or fields.get("event.outcome") or "unknown")


@dataclass(frozen=True, slots=True)
class EntityKind:
    """Which events belong to which entity, and how they become slots."""

    id: str
    """Last part of the model's id: `model.surprise.<id>`."""
    category: str
    """Of the log source."""
    features: tuple[Feature, ...]
    slots: Callable[[Mapping[str, Any], float, Trail, Codes], list[int]]
    key_fields: tuple[str, ...]
    """What tells one entity from another; an event without the first one has no entity."""

    def key(self, event: Event) -> str | None:
        """Name of the entity of an event."""
        get = event.fields.get
        first = get(self.key_fields[0])
        if not first:
            return None
        return "|".join([str(first), *(str(get(name) or "") for name in self.key_fields[1:])])


KINDS = (
    EntityKind("ot_link", "ot_protocol", OT, ot_slots, ("destination.ip", "network.protocol")),
    EntityKind("flow_link", "flow", FLOW, flow_slots, ("source.ip",)),
)
