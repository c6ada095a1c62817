"""Packets and captures built byte by byte."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cityward import Event
from collectors.packets.capture import CaptureReader, Chunk, Columns
from collectors.packets.gather import PAD
from collectors.packets.packets import Packets
from collectors.readers import Batch

RECEIVED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
T0 = 1_700_000_000_000_000_000
"""2023-11-14 22:13:20 UTC in nanoseconds."""

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
Packet = tuple[int, bytes]
"""Epoch nanoseconds, bytes."""


def ip(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def ether(payload: bytes, kind: int = 0x0800, tags: Sequence[int] = (), **macs: bytes) -> bytes:
    """An Ethernet frame; `tags` are VLAN ids from the outside in."""
    marks = b"".join(struct.pack(">HH", 0x8100, tag) for tag in tags)
    target = macs.get("to", b"\x02\0\0\0\0\x01")
    return target + macs.get("of", b"\x02\0\0\0\0\x02") + marks + struct.pack(">H", kind) + payload


def four(
    payload: bytes, protocol: int, a: str = "10.0.0.1", b: str = "10.0.0.2", *,
    options: bytes = b"", fragment: int = 0, length: int | None = None,
) -> bytes:  # fmt: skip
    size = 20 + len(options)
    total = size + len(payload) if length is None else length
    head = struct.pack(
        ">BBHHHBBH", 0x40 | size // 4, 0, total & 0xFFFF, 1, fragment, 64, protocol, 0
    )
    return head + ip(a) + ip(b) + options + payload


def six(payload: bytes, protocol: int, a: int = 1, b: int = 2, length: int | None = None) -> bytes:
    said = len(payload) if length is None else length
    net = bytes.fromhex("20010db8000000000000000000000000")[:12]
    return (
        struct.pack(">IHBB", 6 << 28, said & 0xFFFF, protocol, 64)
        + net + a.to_bytes(4, "big") + net + b.to_bytes(4, "big") + payload
    )  # fmt: skip


def tcp(
    sport: int, dport: int, flags: int = ACK, seq: int = 0, data: bytes = b"", options: bytes = b""
) -> bytes:
    offset = (20 + len(options)) // 4 << 4
    return struct.pack(
        ">HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, 0, offset, flags, 8192, 0, 0
    ) + (options + data)


def udp(sport: int, dport: int, data: bytes = b"") -> bytes:
    return struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data


def icmp(kind: int, code: int = 0) -> bytes:
    return struct.pack(">BBHHH", kind, code, 0, 1, 1)


def segment(
    a: str, sport: int, b: str, dport: int, flags: int = ACK, seq: int = 0, data: bytes = b""
) -> bytes:
    """A TCP segment in IPv4 in Ethernet."""
    return ether(four(tcp(sport, dport, flags, seq, data), 6, a, b))


def datagram(a: str, sport: int, b: str, dport: int, data: bytes = b"x") -> bytes:
    """A UDP datagram in IPv4 in Ethernet."""
    return ether(four(udp(sport, dport, data), 17, a, b))


def pcap(packets: Iterable[Packet], link: int = 1, order: str = "<", nano: bool = True) -> bytes:
    unit = 1 if nano else 1000
    magic = 0xA1B23C4D if nano else 0xA1B2C3D4
    out = [struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, link)]
    for time_ns, data in packets:
        seconds, rest = divmod(time_ns, 10**9)
        out.append(struct.pack(order + "IIII", seconds, rest // unit, len(data), len(data)) + data)
    return b"".join(out)


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    """A block of pcapng."""
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(
    link: int = 1, order: str = "<", resolution: int | None = None, offset_s: int = 0,
    snaplen: int = 0,
) -> bytes:  # fmt: skip
    options = b""
    if resolution is not None:
        options += struct.pack(order + "HHB3x", 9, 1, resolution)
    if offset_s:
        options += struct.pack(order + "HHq", 14, 8, offset_s)
    if options:
        options += bytes(4)
    return block(1, struct.pack(order + "HHI", link, 0, snaplen) + options, order)


def enhanced(number: int, ticks: int, data: bytes, order: str = "<") -> bytes:
    head = struct.pack(order + "IIIII", number, ticks >> 32, ticks & 0xFFFFFFFF, *[len(data)] * 2)
    return block(6, head + data, order)


def chunk(
    packets: Sequence[Packet], link: int | Sequence[int] = 1, frame: int = 1, live: bool = False,
    wirelen: Sequence[int] | None = None,
) -> Chunk:  # fmt: skip
    sizes = np.array([len(data) for _, data in packets], np.int64)
    starts = np.cumsum(sizes) - sizes
    times = np.array([time_ns for time_ns, _ in packets], np.int64)
    links = np.broadcast_to(np.asarray(link, np.uint16), len(packets)).copy()
    wire = sizes if wirelen is None else np.array(wirelen, np.int64)
    data = b"".join(data for _, data in packets) + bytes(PAD)
    return Chunk("test", data, Columns(starts, sizes, wire, times, links), frame, RECEIVED, live)


def batches(path: Path) -> list[Batch]:
    reader = CaptureReader(path, "test", lambda: RECEIVED)
    return list(reader.read(None, threading.Event()))


def chunks(path: Path) -> list[Chunk]:
    return [batch.records for batch in batches(path) if isinstance(batch.records, Chunk)]


def collected(collector: Packets, pieces: Iterable[Chunk]) -> list[Event]:
    """All events of a source that ends."""
    events: list[Event] = []
    for piece in pieces:
        events += collector(piece)
    return events + list(collector.end())


def seconds(*packets: tuple[float, bytes]) -> list[Packet]:
    """Packets at seconds after `T0`."""
    return [(T0 + round(at * 1e9), data) for at, data in packets]


def unaccounted(collector: Packets, events: Sequence[Event]) -> int:
    """Packets that are neither in a flow event nor rejected with a reason; 0 if all is well."""
    counts = collector.counts
    rejected = sum(count for name, count in counts.items() if name.startswith("rejected."))
    in_flows: int = sum(
        event.fields.get("network.packets", 0)
        for event in events
        if event.logsource.category == "flow"
    )
    return counts["packets"] - rejected - in_flows
