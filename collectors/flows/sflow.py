"""sFlow 5: packets that switches sample, and the counters of their interfaces.

Send: point sFlow of the switch at the node (`reader = "udp"`, `listen = "0.0.0.0:6343"`,
`collector = "sflow"`). A file with the payload of a datagram is read, too.

Understood: one event a sampled packet, with addresses, ports, TCP flags, ICMP type, VLAN, sampling
rate, interfaces, next hop, autonomous systems and users as far as the switch adds them; one metric
a set of counters of an interface, an Ethernet port, a processor; gaps in the sequence. One sampled
packet stands for `cw.vendor.sampling` packets.

Not understood: sFlow 2 and 4; what is inside tunnels; counters of hosts, applications and vendors,
which are named in `cw.vendor.formats` and no more.

References:
    sFlow.org, sFlow Version 5 (July 2004), section 5.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.flows.ends import Fields, ends
from collectors.flows.header import packet
from collectors.values import clean

SFLOW = LogSource(category="flow", service="sflow")

AGENTS_MAX = 4_096
"""Sequences that are remembered; who was silent for longest goes."""
SAMPLES_MAX = 1_024
RECORDS_MAX = 64
"""Samples of a datagram, records of a sample."""
GAP_MAX = 1_000_000
"""A larger step is a restart of the agent."""
RESTART_MS = 60_000
"""An uptime that falls by more is a restart; by less, the datagram is late."""
TEXT_MAX = 256

FLOW_SAMPLE, COUNTERS_SAMPLE, FLOW_EXPANDED, COUNTERS_EXPANDED = 1, 2, 3, 4
HEADER, ETHERNET, IPV4, IPV6 = 1, 2, 3, 4
SWITCH, ROUTER, GATEWAY, USER = 1_001, 1_002, 1_003, 1_004

INTERFACE = Struct("!IIQIIQ6IQ6I")
INTERFACE_NAMES = (
    *("interface", "type", "speed", "direction", "status"),
    *("in_bytes", "in_unicast", "in_multicast", "in_broadcast", "in_discards", "in_errors"),
    *("in_unknown", "out_bytes", "out_unicast", "out_multicast", "out_broadcast"),
    *("out_discards", "out_errors", "promiscuous"),
)
PORT = Struct("!13I")
PORT_NAMES = (
    *("alignment_errors", "fcs_errors", "single_collisions", "multiple_collisions"),
    *("test_errors", "deferred", "late_collisions", "excessive_collisions"),
    *("transmit_errors", "carrier_errors", "too_long", "receive_errors", "symbol_errors"),
)
PROCESSOR = Struct("!IIIQQ")
PROCESSOR_NAMES = ("cpu_5s", "cpu_1m", "cpu_5m", "memory_total", "memory_free")
COUNTERS = {
    1: ("interface_counters", INTERFACE, INTERFACE_NAMES),
    2: ("port_counters", PORT, PORT_NAMES),
    1_001: ("processor_counters", PROCESSOR, PROCESSOR_NAMES),
}
"""Standard counter records: action, layout, names."""

_WORD = Struct("!I")
_PAIR = Struct("!II")
_TAIL = Struct("!IIII")
_FLOW = Struct("!8I")
_FLOW_WIDE = Struct("!11I")
_SAMPLED = Struct("!IIII")
_IP4 = Struct("!II4s4sIIII")
_IP6 = Struct("!II16s16sIIII")
_SWITCH = Struct("!IIII")
_LONG = 1 << 32
_ADDRESS_BYTES = {1: 4, 2: 16}


class Samples:
    """What is remembered of agents: how far their sequences have come."""

    def __init__(self) -> None:
        self._heard: OrderedDict[tuple[str, int], tuple[int, int]] = OrderedDict()

    def read(self, data: bytes) -> Iterator[Fields]:
        """What a datagram says."""
        agent, at = _address(data, 4)
        if len(data) < 8 or _word(data, 0) != 5 or agent is None or len(data) < at + _TAIL.size:
            yield _unreadable(f"{len(data)} bytes are no sFlow 5", {})
            return
        sub_agent, sequence, uptime_ms, count = _TAIL.unpack_from(data, at)
        vendor: Fields = {"sub_agent": sub_agent, "uptime_ms": uptime_ms}
        about: Fields = {"observer.ip": [agent], "cw.time_source": "collector", "cw.vendor": vendor}
        lost = self._lost((agent, sub_agent), sequence, uptime_ms)
        if lost:
            yield {
                **about,
                "event.kind": "state",
                "event.dataset": "sflow.agent",
                "event.action": "flows_lost",
                "event.outcome": "failure",
                "event.reason": f"{lost} export messages of this agent did not arrive",
                "cw.vendor": {**vendor, "lost": lost, "lost_unit": "export messages"},
            }
        at += _TAIL.size
        found = 0
        for kind, body in _parts(data, at, min(count, SAMPLES_MAX)):
            found += 1
            yield from _sample(kind, body, about)
        if found < count:
            yield _unreadable(f"{count} samples announced, {found} read", about)
        elif not count:
            yield {
                **about,
                "event.kind": "state",
                "event.dataset": "sflow.agent",
                "event.action": "flows_none",
                "event.reason": "a message without samples",
            }

    def _lost(self, key: tuple[str, int], sequence: int, uptime_ms: int) -> int:
        """How many datagrams are missing before this one; late ones and restarts are none."""
        before = self._heard.get(key)
        self._heard[key] = sequence, uptime_ms
        self._heard.move_to_end(key)
        if len(self._heard) > AGENTS_MAX:
            self._heard.popitem(last=False)
        if before is None:
            return 0
        step = (sequence - before[0]) % _LONG
        if step >= _LONG >> 1 and before[1] - uptime_ms < RESTART_MS:
            self._heard[key] = before
        return step - 1 if 1 < step <= GAP_MAX else 0


def _sample(kind: int, body: bytes, about: Fields) -> Iterator[Fields]:
    if kind in (FLOW_SAMPLE, FLOW_EXPANDED):
        yield _flow(kind, body, about)
    elif kind in (COUNTERS_SAMPLE, COUNTERS_EXPANDED):
        yield from _counters(kind, body, about)
    else:
        yield {
            **about,
            "event.kind": "event",
            "event.dataset": "sflow.agent",
            "event.action": "sflow_sample",
            "event.reason": "a sample of a format that is not decoded",
            "cw.vendor": {**about["cw.vendor"], "formats": _format(kind), "bytes": len(body)},
        }


def _flow(kind: int, body: bytes, about: Fields) -> Fields:
    """One sampled packet."""
    layout = _FLOW if kind == FLOW_SAMPLE else _FLOW_WIDE
    if len(body) < layout.size:
        return _unreadable(f"{len(body)} bytes are no flow sample", about)
    numbers = layout.unpack_from(body)
    if kind == FLOW_SAMPLE:
        _, source, rate, pool, drops, came, went, count = numbers
        source &= 0xFFFFFF
        came_kind, came, went_kind, went = came >> 30, came & _VALUE, went >> 30, went & _VALUE
    else:
        _, _, source, rate, pool, drops, came_kind, came, went_kind, went, count = numbers
    vendor: Fields = {
        **about["cw.vendor"],
        "sampling": rate,
        "pool": pool,
        "drops": drops,
        "data_source": source,
    }
    vendor |= _interface("in_if", came_kind, came) | _interface("out_if", went_kind, went)
    fields: Fields = {}
    unknown: list[str] = []
    read = 0
    for number, part in _parts(body, layout.size, min(count, RECORDS_MAX)):
        read += 1
        reader = RECORDS.get(number)
        own, more = reader(part) if reader else ({}, {})
        if not own and not more:
            unknown.append(_format(number))
        # The head of the packet says more than what the switch made of it.
        fields = {**own, **fields}
        vendor = {**more, **vendor}
    if unknown:
        vendor["formats"] = ", ".join(unknown)
    if read < count:
        vendor["records_missing"] = count - read
    if "source.bytes" in fields:
        fields["source.packets"] = fields["network.packets"] = 1
        fields["network.bytes"] = fields["source.bytes"]
    return {
        **about,
        "event.category": ["network"],
        "event.dataset": "sflow.flow",
        "event.action": "packet_sampled",
        "event.outcome": "unknown",
        **fields,
        "cw.vendor": vendor,
    }


_VALUE = 0x3FFF_FFFF


def _interface(name: str, kind: int, value: int) -> Fields:
    """An index, or why there is none (packet dropped, or sent to several)."""
    if kind == 0:
        return {name: value}
    return {f"{name}_dropped": value} if kind == 1 else {f"{name}_count": value}


def _counters(kind: int, body: bytes, about: Fields) -> Iterator[Fields]:
    """One metric a record of counters."""
    at = 12 if kind == COUNTERS_SAMPLE else 16
    if len(body) < at:
        yield _unreadable(f"{len(body)} bytes are no counter sample", about)
        return
    source, count = _word(body, at - 8), _word(body, at - 4)
    vendor: Fields = {**about["cw.vendor"], "data_source": source & 0xFFFFFF}
    base: Fields = {**about, "event.kind": "metric", "event.dataset": "sflow.counters"}
    unknown, read = [], 0
    for number, part in _parts(body, at, min(count, RECORDS_MAX)):
        read += 1
        known = COUNTERS.get(number)
        if known is None or len(part) < known[1].size:
            unknown.append(_format(number))
            continue
        action, layout, names = known
        values = dict(zip(names, layout.unpack_from(part), strict=True))
        yield {**base, "event.action": action, "cw.vendor": {**vendor, **values}}
    if unknown or not read:
        said = {**vendor, "formats": ", ".join(unknown)}
        yield {**base, "event.action": "other_counters", "cw.vendor": said}
    if read < count:
        yield _unreadable(f"{count} counter records announced, {read} read", about)


# ---- Records of a flow sample


def _sampled_header(part: bytes) -> tuple[Fields, Fields]:
    if len(part) < _SAMPLED.size:
        return {}, {}
    kind, length, _, size = _SAMPLED.unpack_from(part)
    fields, vendor = packet(kind, part[_SAMPLED.size : _SAMPLED.size + size])
    return {**fields, "source.bytes": length}, vendor


def _sampled_ethernet(part: bytes) -> tuple[Fields, Fields]:
    if len(part) < 24:
        return {}, {}
    fields = {
        "source.bytes": _word(part, 0),
        "source.mac": part[4:10].hex("-").upper(),
        "destination.mac": part[12:18].hex("-").upper(),
    }
    return fields, {"ethertype": _word(part, 20)}


def _sampled_ip(part: bytes) -> tuple[Fields, Fields]:
    layout, family = (_IP4, socket.AF_INET) if len(part) < _IP6.size else (_IP6, socket.AF_INET6)
    if len(part) < layout.size:
        return {}, {}
    length, protocol, one, two, sport, dport, flags, tos = layout.unpack_from(part)
    names = socket.inet_ntop(family, one), socket.inet_ntop(family, two)
    fields = ends(*names, protocol, sport, dport)
    return {**fields, "source.bytes": length}, {"tcp_flags": flags, "tos": tos}


def _switch(part: bytes) -> tuple[Fields, Fields]:
    if len(part) < _SWITCH.size:
        return {}, {}
    source, _, destination, priority = _SWITCH.unpack_from(part)
    fields = {"network.vlan.id": str(source)} if 0 < source < 4_096 else {}
    return fields, {"vlan": source, "post_vlan": destination, "priority": priority}


def _router(part: bytes) -> tuple[Fields, Fields]:
    hop, at = _address(part, 0)
    if hop is None or len(part) < at + 8:
        return {}, {}
    source, destination = _PAIR.unpack_from(part, at)
    return {}, {"next_hop": hop, "src_mask": source, "dst_mask": destination}


def _gateway(part: bytes) -> tuple[Fields, Fields]:
    hop, at = _address(part, 0)
    if hop is None or len(part) < at + 12:
        return {}, {}
    own, source = _PAIR.unpack_from(part, at)
    fields = {"source.as.number": source} if source else {}
    return fields, {"next_hop": hop, "router_as": own}


def _user(part: bytes) -> tuple[Fields, Fields]:
    if len(part) < 8:
        return {}, {}
    size = _word(part, 4)
    name = clean(part[8 : 8 + min(size, TEXT_MAX)].decode("utf-8", "backslashreplace"))
    return ({"user.name": name} if name else {}), {"user": name}


RECORDS: dict[int, Any] = {
    HEADER: _sampled_header,
    ETHERNET: _sampled_ethernet,
    IPV4: _sampled_ip,
    IPV6: _sampled_ip,
    SWITCH: _switch,
    ROUTER: _router,
    GATEWAY: _gateway,
    USER: _user,
}
"""Standard flow records; enterprise ones are only named."""


# ---- XDR


def _parts(data: bytes, at: int, count: int) -> Iterator[tuple[int, bytes]]:
    """Whole parts of format, length and bytes."""
    for _ in range(count):
        if len(data) < at + _PAIR.size:
            return
        kind, size = _PAIR.unpack_from(data, at)
        at += _PAIR.size
        if len(data) < at + size:
            return
        yield kind, data[at : at + size]
        at += size + -size % 4


def _address(data: bytes, at: int) -> tuple[str | None, int]:
    size = _ADDRESS_BYTES.get(_word(data, at)) if len(data) >= at + 4 else None
    if size is None or len(data) < at + 4 + size:
        return None, at
    raw = data[at + 4 : at + 4 + size]
    return socket.inet_ntop(socket.AF_INET if size == 4 else socket.AF_INET6, raw), at + 4 + size


def _word(data: bytes, at: int) -> int:
    (value,) = _WORD.unpack_from(data, at)
    return int(value)


def _format(number: int) -> str:
    return f"{number >> 12}:{number & 0xFFF}"


def _unreadable(why: str, about: Fields) -> Fields:
    return {
        **about,
        "event.kind": "pipeline_error",
        "event.action": "unreadable",
        "event.outcome": "failure",
        "event.reason": why,
        "event.dataset": "sflow.agent",
    }


def is_sflow(head: bytes) -> bool:
    """Whether a datagram is sFlow 5: version, agent, and samples that fill it to its end."""
    if len(head) < 28 or _word(head, 0) != 5:
        return False
    agent, at = _address(head, 4)
    if agent is None or len(head) < at + _TAIL.size:
        return False
    count = _word(head, at + 12)
    at += _TAIL.size
    if not 0 < count <= SAMPLES_MAX:
        return False
    sizes = [8 + len(part) + -len(part) % 4 for _, part in _parts(head, at, count)]
    return len(sizes) == count and at + sum(sizes) == len(head)


@collector(SFLOW, framing="document", looks_like=is_sflow, strength=60)
class Sflow:
    """Reads datagrams of sFlow 5; remembers how far each agent has counted."""

    def __init__(self) -> None:
        self._samples = Samples()

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """Events of each datagram."""
        for record in records:
            for number, fields in enumerate(self._samples.read(record.data)):
                yield Event(record.received, SFLOW, fields, record, number)
