"""The packet walk and the flow meter once more, packet by packet in plain Python.

It follows the rules in the docstrings of `walk.py` and `meter.py`, shares no code with them but the
numbers of reasons and protocols, and is slow.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from collectors.packets import walk as w
from collectors.packets.capture import Chunk

EXTENSIONS = {0, 43, 44, 51, 60, 135, 139, 140}
TAGS = {0x8100, 0x88A8, 0x9100}
LINK_BYTES = {1: 14, 0: 4, 101: 0, 113: 16, 228: 0, 229: 0, 276: 20}
MAC_TYPES = [0x0806, 0x88B8, 0x88BA, 0x8892]
NEEDED = {6: 20, 17: 8, 132: 12, 1: 4, 58: 4}
IDLE, ACTIVE, LINGER, SWEEP = 60 * 10**9, 300 * 10**9, 5 * 10**9, 10**9


class Seen(NamedTuple):
    """What one packet is."""

    reason: int
    family: int = 0
    protocol: int = 0
    vlan: int = 0
    octets: int = 0
    source: bytes = b""
    destination: bytes = b""
    sport: int = 0
    dport: int = 0
    state: int = 0
    seq: int = 0
    payload: bytes = b""


def walk_packet(data: bytes, link: int, wirelen: int) -> Seen:
    """Walk through one packet."""
    if link not in LINK_BYTES:
        return Seen(w.LINK)
    size = LINK_BYTES[link]
    if len(data) < (size or 1):
        return Seen(w.TRUNCATED)
    kind = _kind(data, link)
    at, vlan, depth = size, 0, 0
    while kind in TAGS:
        if depth == 3:
            return Seen(w.VLAN)
        if at + 4 > len(data):
            return Seen(w.TRUNCATED)
        control, kind = struct.unpack_from(">HH", data, at)
        if depth == 0:
            vlan = control & 0xFFF
        at += 4
        depth += 1
    if link == 1 and kind in MAC_TYPES:
        number = MAC_TYPES.index(kind)
        return Seen(w.METERED, w.MAC, number, vlan, wirelen, data[6:12], data[:6])
    if kind not in (0x0800, 0x86DD):
        return Seen(w.OTHER_L3)
    return _ip(data, at, kind == 0x0800, wirelen, 0)._replace(vlan=vlan)


def _kind(data: bytes, link: int) -> int:
    if link in (1, 113, 276):
        at = {1: 12, 113: 14, 276: 0}[link]
        return int(struct.unpack_from(">H", data, at)[0])
    if link == 0:
        values = {struct.unpack_from(order + "I", data)[0] for order in "<>"}
        if values & {2}:
            return 0x0800
        return 0x86DD if values & {10, 24, 28, 30} else 0
    version = {228: 4, 229: 6}.get(link, data[0] >> 4)
    return {4: 0x0800, 6: 0x86DD}.get(version, 0)


def _ip(data: bytes, at: int, is_four: bool, wirelen: int, level: int) -> Seen:
    if is_four:
        if at + 20 > len(data):
            return Seen(w.TRUNCATED)
        size = (data[at] & 15) * 4
        if data[at] >> 4 != 4 or size < 20:
            return Seen(w.BAD_HEADER)
        if at + size > len(data):
            return Seen(w.TRUNCATED)
        total, _, fragment = struct.unpack_from(">HHH", data, at + 2)
        if fragment & 0x1FFF:
            return Seen(w.FRAGMENT)
        if total < size:
            total = wirelen - at
        protocol, l4 = data[at + 9], at + size
        ends = data[at + 12 : at + 16], data[at + 16 : at + 20]
    else:
        if at + 40 > len(data):
            return Seen(w.TRUNCATED)
        if data[at] >> 4 != 6:
            return Seen(w.BAD_HEADER)
        (length,) = struct.unpack_from(">H", data, at + 4)
        total = length + 40 if length else wirelen - at
        protocol, l4 = data[at + 6], at + 40
        ends = data[at + 8 : at + 24], data[at + 24 : at + 40]
        depth = 0
        while protocol in EXTENSIONS:
            if depth == 6:
                return Seen(w.EXTENSIONS)
            if l4 + 8 > len(data):
                return Seen(w.TRUNCATED)
            size = {44: 8, 51: data[l4 + 1] * 4 + 8}.get(protocol, data[l4 + 1] * 8 + 8)
            if l4 + size > len(data):
                return Seen(w.TRUNCATED)
            later = protocol == 44 and struct.unpack_from(">H", data, l4 + 2)[0] & 0xFFF8
            protocol, l4 = data[l4], l4 + size
            if later:
                return Seen(w.FRAGMENT)
            depth += 1
    inner = _tunnel(data, l4, protocol)
    if isinstance(inner, Seen):
        return inner
    if inner is not None:
        if level == 2:
            return Seen(w.TUNNEL)
        return _ip(data, inner[0], inner[1], wirelen, level + 1)
    family = w.IPV4 if is_four else w.IPV6
    return _transport(data, l4, at + total, Seen(w.METERED, family, protocol, 0, total, *ends))


def _tunnel(data: bytes, l4: int, protocol: int) -> tuple[int, bool] | Seen | None:
    """Where IP goes on inside, and whether it is IPv4."""
    if protocol == 4:
        return l4, True
    if protocol == 41:
        return l4, False
    if protocol != 47:
        return None
    if l4 + 4 > len(data):
        return Seen(w.TRUNCATED)
    flags, kind = struct.unpack_from(">HH", data, l4)
    size = 4 + 4 * (bool(flags & 0xC000) + bool(flags & 0x2000) + bool(flags & 0x1000))
    if l4 + size > len(data):
        return Seen(w.TRUNCATED)
    if flags & 7 or kind not in (0x0800, 0x86DD):
        return None
    return l4 + size, kind == 0x0800


def _transport(data: bytes, l4: int, stop: int, seen: Seen) -> Seen:
    protocol = seen.protocol
    if l4 + NEEDED.get(protocol, 0) > len(data):
        return Seen(w.TRUNCATED)
    if protocol in (1, 58):
        kind, code = data[l4], data[l4 + 1]
        pairs = w.ICMP_PAIRS if protocol == 1 else w.ICMP6_PAIRS
        return seen._replace(sport=kind, dport=pairs.get(kind, code))
    if protocol not in (6, 17, 132):
        return seen
    sport, dport = struct.unpack_from(">HH", data, l4)
    seen = seen._replace(sport=sport, dport=dport)
    stop = min(stop, len(data))
    if protocol == 17:
        return seen._replace(payload=data[l4 + 8 : max(stop, l4 + 8)])
    if protocol == 132:
        return seen
    offset, flags = data[l4 + 12] >> 4, data[l4 + 13]
    payload = data[l4 + max(offset, 5) * 4 : max(stop, 0)]
    state = (w.FIN if flags & 1 else 0) | (w.RST if flags & 4 else 0)
    if flags & 2:
        state |= w.SYN_ACK if flags & 16 else w.SYN
    state |= w.DATA if payload else 0
    (seq,) = struct.unpack_from(">I", data, l4 + 4)
    return seen._replace(state=state, seq=seq, payload=payload)


class TwinFlow(NamedTuple):
    """A report on a flow; side 0 is who was seen first."""

    first_frame: int
    reports: int
    first: int
    start: int
    last: int
    packets: tuple[int, ...]
    octets: tuple[int, ...]
    flags: tuple[int, ...]
    source: bytes
    destination: bytes
    sport: int
    dport: int
    reason: int


Key = tuple[int, int, tuple[bytes, int], tuple[bytes, int]]


class TwinMeter:
    """Flows in a dict."""

    def __init__(self) -> None:
        self.open: dict[Key, TwinFlow] = {}
        self.ended: list[TwinFlow] = []
        self.swept: int | None = None

    def add(self, chunk: Chunk) -> list[Seen]:
        """Merge a chunk; what each packet is."""
        all_seen = []
        columns = chunk.columns
        times = columns.time_ns.tolist()
        for row in range(len(chunk)):
            # Length fields count from the link header on.
            seen = walk_packet(chunk.packet(row), int(columns.link[row]), int(columns.wirelen[row]))
            all_seen.append(seen)
            if seen.reason == w.METERED:
                self._packet(chunk.frame + row, times[row], seen)
        self._sweep(times[-1])
        return all_seen

    def end(self) -> None:
        for key in list(self.open):
            self._report(key, 6)

    def _packet(self, frame: int, time: int, seen: Seen) -> None:
        one, two = (seen.source, seen.sport), (seen.destination, seen.dport)
        key = (seen.family, seen.protocol, min(one, two), max(one, two))
        flow = self.open.get(key)
        if flow is not None:
            reason = self._ends(flow, time, seen.state)
            if reason:
                self._report(key, reason)
                flow = None
                if reason == 2:
                    was = self.ended[-1]
                    flow = was._replace(
                        reports=was.reports + 1, start=time, packets=(0, 0), octets=(0, 0)
                    )
        if flow is None:
            flow = TwinFlow(frame, 0, time, time, time, (0, 0), (0, 0), (0, 0), *one, *two, 0)  # type: ignore[arg-type]
            flow = flow._replace(
                source=seen.source, sport=seen.sport, destination=seen.destination, dport=seen.dport
            )
        side = 0 if one == (flow.source, flow.sport) else 1
        packets, octets, flags = list(flow.packets), list(flow.octets), list(flow.flags)
        packets[side] += 1
        octets[side] += seen.octets
        flags[side] |= seen.state
        self.open[key] = flow._replace(
            last=time,
            packets=tuple(packets),
            octets=tuple(octets),
            flags=tuple(flags),
        )

    @staticmethod
    def _closed(flow: TwinFlow) -> int:
        one, two = flow.flags
        if (one | two) & w.RST:
            return 4
        return 3 if one & two & w.FIN else 0

    def _ends(self, flow: TwinFlow, time: int, state: int) -> int:
        gap = abs(time - flow.last)
        closed = self._closed(flow)
        if closed and (gap > LINGER or state & w.SYN):
            return closed
        if gap > IDLE:
            return 1
        return 2 if time - flow.start >= ACTIVE else 0

    def _sweep(self, now: int) -> None:
        if self.swept is not None and abs(now - self.swept) < SWEEP:
            return
        self.swept = now
        for key, flow in list(self.open.items()):
            gap = abs(now - flow.last)
            if gap > LINGER and self._closed(flow):
                self._report(key, self._closed(flow))
            elif gap > IDLE:
                self._report(key, 1)

    def _report(self, key: Key, reason: int) -> None:
        self.ended.append(self.open.pop(key)._replace(reason=reason))
