"""How many messages a second of CPU the decoders read: `python tests/benchmarks/bench_decoders.py`.

Synthetic conversations in segments of one message, as polling gives them; best of five.
"""

from __future__ import annotations

import struct
import time
from typing import Any

from cityward import Session
from collectors.packets.decoders.iec104 import Iec104
from collectors.packets.decoders.modbus import Modbus

BASE: dict[str, Any] = {
    "source.ip": "10.0.0.1",
    "source.port": 40_000,
    "destination.ip": "10.0.0.2",
    "destination.port": 502,
    "network.transport": "tcp",
    "network.community_id": "1:LQU9qZlK+B5F3KDmev6m5PMibrg=",
}
Segments = list[tuple[bytes, bool]]


def modbus_polls(pairs: int) -> Segments:
    """Reads of ten registers and of sixteen coils by turns, each with its answer."""
    found: Segments = []
    for number in range(pairs):
        tid = number & 0xFFFF
        if number & 1:
            found.append((struct.pack(">HHHBBHH", tid, 0, 6, 1, 3, 100, 10), True))
            found.append((struct.pack(">HHHBBB10H", tid, 0, 23, 1, 3, 20, *range(10)), False))
        else:
            found.append((struct.pack(">HHHBBHH", tid, 0, 6, 1, 1, 100, 16), True))
            found.append((struct.pack(">HHHBBBH", tid, 0, 5, 1, 1, 2, 0xA5A5), False))
    return found


def modbus_writes(pairs: int) -> Segments:
    """Writes of one register, each with its answer."""
    found: Segments = []
    for number in range(pairs):
        message = struct.pack(">HHHBBHH", number & 0xFFFF, 0, 6, 1, 6, 7, number & 0xFFFF)
        found += [(message, True), (message, False)]
    return found


def iec104_measurements(frames: int) -> Segments:
    """Nine measured values a frame, cyclic."""
    body = b"".join(struct.pack("<I", 800 + index)[:3] + bytes(5) for index in range(9))
    found: Segments = []
    for number in range(frames):
        head = struct.pack("<BBHH", 0x68, 10 + len(body), number << 1 & 0xFFFF, 0)
        found.append((head + struct.pack("<BBBBH", 13, 9, 1, 0, 4) + body, False))
    return found


def rate_per_s(made: Any, segments: Segments) -> float:
    """Messages per second of CPU, best of five."""
    best = 0.0
    for _ in range(5):
        decoder = made(Session(BASE, "10.0.0.1:40000", "10.0.0.2:502"))
        feed, messages = decoder.feed, 0
        began = time.process_time()
        for frame, (data, from_client) in enumerate(segments, 1):
            messages += len(feed(data, from_client, frame / 1_000, frame)[1])
        best = max(best, messages / (time.process_time() - began))
        assert messages == len(segments)
    return best


def main() -> None:
    """Print one line a case."""
    for name, made, segments in (
        ("modbus reads", Modbus, modbus_polls(50_000)),
        ("modbus writes", Modbus, modbus_writes(50_000)),
        ("iec104 measurements", Iec104, iec104_measurements(50_000)),
    ):
        print(f"{name:20} {rate_per_s(made, segments):>10,.0f} messages/s")


if __name__ == "__main__":
    main()
