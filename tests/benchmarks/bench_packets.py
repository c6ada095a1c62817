"""Packets to flows and messages per second of CPU: `python tests/benchmarks/bench_packets.py`.

Captures are made anew, the same each time: *mixed* (every shared Ethernet capture but sampled
values, in rounds with shifted addresses), *small* (short packets, 4,000 flows), *many* (100,000
live flows, 10 % IPv6), *flood* (each packet a SYN of a new source) and *modbus* (the plant capture
in rounds). softflowd and nfstream read the same files in the same run, if they are there; theirs
is the CPU of the whole process, start included, ours that of reading, metering and the events.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from collectors.packets.capture import CaptureReader
from collectors.packets.packets import Packets

ROOT = Path(__file__).parent.parent.parent
PACKETS = 1_000_000
STEP_US = 10
THEIRS_MAX_S = 60.0
"""Another program that has not ended by then is ended, and its row says failed."""
REPEATS = 3
"""The fastest of as many runs counts: other work on the machine only ever adds."""

Row = dict[str, Any]
_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1)


def run(data: Path | None = None, packets: int = PACKETS) -> list[Row]:
    """Measure all of it.

    Args:
        data: Folder of the shared real data; without it *mixed* and *modbus* are left out.
        packets: Packets of each capture, about.

    Returns:
        A row for each capture and tool: packets and events or flows, and packets a CPU second.
    """
    makers: dict[str, Callable[[], Iterator[bytes]]] = {
        "small": _small,
        "many": _many,
        "flood": _flood,
    }
    if data is not None:
        makers = {"mixed": lambda: _mixed(data), "modbus": lambda: _modbus(data), **makers}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="cityward-bench-") as folder:
        for name, make in makers.items():
            path = Path(folder) / f"{name}.pcap"
            count = _write(path, make(), packets)
            rows += [
                {"input": name, "tool": tool, "packets": count, **found}
                for tool, found in _measured(path, count)
            ]
            path.unlink()
    return rows


def _measured(path: Path, count: int) -> Iterator[tuple[str, Row]]:
    yield "cityward, flows only", _ours(path, "flows")
    yield "cityward, with decoders", _ours(path, "decoders")
    if shutil.which("softflowd"):
        command = ["softflowd", "-d", "-6", "-m", "200000", "-r", str(path)]
        command += ["-p", str(path.parent / "pid"), "-c", "none"]
        yield "softflowd", _theirs(command, count)
    if importlib.util.find_spec("nfstream"):
        code = (
            "import nfstream, sys\n"
            "s = nfstream.NFStreamer(sys.argv[1], n_dissections=0, n_meters=1)\n"
            "print(sum(1 for _ in s))"
        )
        yield "nfstream, no nDPI", _theirs([sys.executable, "-c", code, str(path)], count, 1)


def _ours(path: Path, kind: str) -> Row:
    """In a process of its own, like the others."""
    best: Row = {}
    for _ in range(REPEATS):
        words = [sys.executable, str(Path(__file__)), "one", kind, str(path)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        said = subprocess.run(words, check=True, capture_output=True, env=env).stdout
        found = json.loads(said)
        if not best or found["packets_per_cpu_s"] > best["packets_per_cpu_s"]:
            best = found
    return best


def one(path: Path, kind: str) -> Row:
    """Read one capture in this process."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    collector = Packets({} if kind == "flows" else None)
    packets = events = 0
    began_s = time.process_time()
    for batch in CaptureReader(path, "bench").read(None, threading.Event()):
        packets += len(batch.records)
        for _ in collector(batch.records):
            events += 1
    for _ in collector.end():
        events += 1
    spent_s = time.process_time() - began_s
    return {
        "events": events,
        "packets_per_cpu_s": round(packets / spent_s),
        "events_per_cpu_s": round(events / spent_s),
    }


def _theirs(command: list[str], count: int, repeats: int = REPEATS) -> Row:
    """CPU of another program and of the processes it starts."""
    least_s = float("inf")
    for _ in range(repeats):
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        watch = threading.Timer(THEIRS_MAX_S, child.kill)
        watch.start()
        _, status, usage = os.wait4(child.pid, 0)
        watch.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            return {"events": None, "packets_per_cpu_s": None, "events_per_cpu_s": None}
        least_s = min(least_s, usage.ru_utime + usage.ru_stime)
    return {
        "events": None,
        "packets_per_cpu_s": round(count / least_s),
        "events_per_cpu_s": None,
    }


# Captures --------------------------------------------------------------------------------


def _write(path: Path, packets: Iterator[bytes], most: int) -> int:
    """A capture of at most so many packets, one every 10 µs."""
    count = 0
    with path.open("wb") as file:
        file.write(_HEADER)
        for packet in packets:
            if count == most:
                break
            seconds, micros = divmod(count * STEP_US, 1_000_000)
            size = len(packet)
            file.write(struct.pack("<IIII", 1_700_000_000 + seconds, micros, size, size) + packet)
            count += 1
    return count


def _tcp(a: int, b: int, sport: int, dport: int, data: bytes = b"", flags: int = 16) -> bytes:
    return (
        b"\2\0\0\0\0\1\2\0\0\0\0\2\x08\0"
        + struct.pack(">BBHHHBBHII", 0x45, 0, 40 + len(data), 0, 0, 64, 6, 0, a, b)
        + struct.pack(">HHIIBBHHH", sport, dport, 0, 0, 0x50, flags, 8192, 0, 0)
        + data
    )


def _tcp6(a: int, b: int, sport: int, dport: int, data: bytes = b"") -> bytes:
    return (
        b"\2\0\0\0\0\1\2\0\0\0\0\2\x86\xdd"
        + struct.pack(">IHBB", 6 << 28, 20 + len(data), 6, 64)
        + struct.pack(">QQQQ", 0x20010DB8 << 32, a, 0x20010DB8 << 32, b)
        + struct.pack(">HHIIBBHHH", sport, dport, 0, 0, 0x50, 16, 8192, 0, 0)
        + data
    )


def _flows(r: random.Random, count: int) -> list[tuple[int, int, int, int]]:
    ports = (80, 443, 22, 8080)
    return [
        (r.getrandbits(32), r.getrandbits(32), r.randrange(10_000, 65_536), r.choice(ports))
        for _ in range(count)
    ]


def _small() -> Iterator[bytes]:
    r = random.Random(1)
    flows = _flows(r, 4_000)
    while True:
        a, b, sport, dport = r.choice(flows)
        data = bytes(r.randrange(13))
        yield _tcp(a, b, sport, dport, data) if r.random() < 0.5 else _tcp(b, a, dport, sport, data)


def _many() -> Iterator[bytes]:
    r = random.Random(2)
    flows = _flows(r, 100_000)
    while True:
        number = r.randrange(len(flows))
        a, b, sport, dport = flows[number]
        make = _tcp6 if number % 10 == 0 else _tcp
        yield make(a, b, sport, dport, b"data") if r.random() < 0.5 else make(b, a, dport, sport)


def _flood() -> Iterator[bytes]:
    r = random.Random(3)
    while True:
        yield _tcp(r.getrandbits(32), 0x0A000001, r.getrandbits(16), 80, b"", 2)


def _frames(path: Path) -> list[bytes]:
    found = []
    for batch in CaptureReader(path, "bench").read(None, threading.Event()):
        chunk: Any = batch.records
        found += [
            chunk.packet(row) for row in range(len(chunk)) if int(chunk.columns.link[row]) == 1
        ]
    return found


def _rounds(frames: list[bytes]) -> Iterator[bytes]:
    """The same packets again and again, between other addresses each time."""
    number = 0
    while True:
        for frame in frames:
            if frame[12:14] == b"\x08\0" and len(frame) >= 34:
                changed = bytearray(frame)
                changed[27] ^= number & 0xFF
                changed[31] ^= number & 0xFF
                yield bytes(changed)
            else:
                yield frame
        number += 1


def _mixed(data: Path) -> Iterator[bytes]:
    names = sorted(
        path
        for folder in ("energy", "port", "transport", "city", "network")
        for path in (data / folder).glob("*.pcap*")
        if "sampled_values" not in path.name
    )
    return _rounds([frame for name in names for frame in _frames(name)])


def _modbus(data: Path) -> Iterator[bytes]:
    return _rounds(_frames(data / "energy" / "modbus_plant1_normal.pcap"))


def _print(rows: list[Row]) -> None:
    for row in rows:
        rate, events = row["packets_per_cpu_s"], row["events_per_cpu_s"]
        told = f"{rate / 1e6:6.2f}M packets/s" if rate else "failed"
        more = f"{row['events']:>9,} events, {events / 1e3:6.0f}k/s" if events else ""
        print(f"{row['input']:8}{row['tool']:26}{row['packets']:>10,} packets {told}  {more}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        print(json.dumps(one(Path(sys.argv[3]), sys.argv[2])))
    else:
        place = Path(os.environ.get("CITYWARD_DATA", ROOT.parent / "shared" / "data"))
        found = run(place if place.is_dir() else None)
        print(json.dumps(found)) if sys.argv[1:2] == ["json"] else _print(found)
