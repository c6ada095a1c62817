"""Dissectors in processes of their own: what they say, and what hostile captures do to them."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from collectors.packets import dissect as dissecting
from collectors.packets.dissect import Dissection, Limits, dissect
from tests.collectors.packets.wire import T0, datagram, ether, four, pcap, segment
from tests.programs import PATIENCE_S

READ = bytes.fromhex("000100000006010300000002")
GOOD = segment("10.0.0.1", 5000, "10.0.0.2", 502, data=READ)
DEEP = ether(b"\0\1\x81\0" * 10_000, 0x8100)
TUNNELS = ether(b"".join(four(b"", 4, length=20 * (3000 - n)) for n in range(3000)))


def capture(folder: Path, *packets: bytes) -> Path:
    path = folder / "cut.pcap"
    path.write_bytes(pcap([(T0 + n, packet) for n, packet in enumerate(packets)]))
    return path


def rows(done: Dissection) -> list[dict[str, Any]]:
    assert done.path is not None
    return [json.loads(line) for line in done.path.read_text().splitlines()]


def still_running(folder: Path, patience_s: float = 5.0) -> list[str]:
    """Programs that still look at a capture of this test; a killed child may take a moment."""
    until = time.monotonic() + patience_s
    while (found := _looking_at(folder)) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def _looking_at(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Put a worker of our own in the place of scapy's."""
    (folder / "worker.py").write_text(
        "import json, os, sys, time\nskip = int(sys.argv[2])\n" + code
    )
    monkeypatch.setitem(dissecting.WORKERS, "scapy", str(folder / "worker.py"))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("tshark"), reason="needs tshark")
def test_both_dissectors_say_what_is_in_a_packet(tmp_path: Path) -> None:
    pytest.importorskip("pyshark")
    path = capture(tmp_path, GOOD, datagram("10.0.0.1", 1, "10.0.0.2", 2))

    scapy, tshark = dissect(path)

    assert (scapy.frames, tshark.frames) == (2, 2)
    assert scapy.notes == tshark.notes == ()
    assert [one["name"] for one in rows(scapy)[0]["layers"]][:3] == ["Ethernet", "IP", "TCP"]
    assert rows(scapy)[0]["layers"][1]["fields"]["src"] == "10.0.0.1"
    assert [one["name"] for one in rows(tshark)[0]["layers"]] == [
        "eth",
        "ip",
        "tcp",
        "mbtcp",
        "modbus",
    ]
    assert rows(tshark)[0]["layers"][4]["fields"]["func_code"] == "3"
    assert stat.S_IMODE((tmp_path / "cut.scapy.jsonl").stat().st_mode) == 0o600


@pytest.mark.slow
def test_ten_thousand_layers_and_mutated_packets_leave_the_others_readable(tmp_path: Path) -> None:
    dice = random.Random(7)
    mutated = [
        bytes(b if dice.random() > 0.05 else dice.randrange(256) for b in GOOD) for _ in range(60)
    ]
    path = capture(tmp_path, GOOD, DEEP, *mutated, TUNNELS[:65_000], GOOD)

    tools = ["scapy", "tshark"] if shutil.which("tshark") else ["scapy"]
    for done in dissect(path, tools=tools):
        last = rows(done)[-1]
        assert last["frame"] == 64
        assert len(last["layers"]) >= 3
        assert all(len(one.get("layers", ())) <= 64 for one in rows(done))
    assert still_running(tmp_path) == []


def test_a_worker_that_dies_is_started_again_behind_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "for frame in range(skip + 1, 6):\n"
        "    if frame in (2, 4):\n        os.kill(os.getpid(), 11)\n"
        "    print(json.dumps({'frame': frame}), flush=True)\n"
        "print(json.dumps({'end': 5}))\n"
    )
    program(tmp_path, monkeypatch, code)

    (done,) = dissect(capture(tmp_path, GOOD), tools=["scapy"])

    assert (done.frames, done.deaths, done.notes) == (3, (2, 4), ())
    assert [(row["frame"], row.get("fault")) for row in rows(done)] == [
        (1, None),
        (2, "the worker died: SIGSEGV"),
        (3, None),
        (4, "the worker died: SIGSEGV"),
        (5, None),
    ]


@pytest.mark.parametrize(
    ("code", "deaths", "notes"),
    [
        ("bytearray(3 << 30)\n", (1, 2), ("given up behind frame 2: it died too often",)),
        ("while True: pass\n", (1, 2), ("given up behind frame 2: it died too often",)),
        ("time.sleep(60)\n", (), ("its time was over behind frame 0",)),
        ("while True: print('x' * 4000)\n", (), ("it said no JSON behind frame 0",)),
        ("while True: print('x' * 4000, end='')\n", (), ("it said too much behind frame 0",)),
        ("sys.exit(3)\n", (), ("scapy is not installed",)),
        ("os.fork() or time.sleep(60)\n", (), ("its time was over behind frame 0",)),
    ],
    ids=["memory", "processor", "wall clock", "no JSON", "too much", "missing", "a child"],
)
def test_limits_hold(
    code: str, deaths: tuple[int, ...], notes: tuple[str, ...],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    program(tmp_path, monkeypatch, code)
    is_idle = "sleep" in code
    limits = Limits(cpu_s=1, wall_s=1.5 if is_idle else 60, starts=2, bytes_out=1 << 20)
    (done,) = dissect(capture(tmp_path, GOOD), tools=["scapy"], limits=limits)

    assert (done.frames, done.path, done.deaths, done.notes) == (0, None, deaths, notes)
    assert still_running(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_worker_has_no_network_and_nothing_of_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT_STORE_PASSWORD", "x")
    said = "{'frame': 1, 'links': open('/proc/self/net/dev').read(), 'env': dict(os.environ)}"
    program(tmp_path, monkeypatch, f"print(json.dumps({said})); print(json.dumps({{'end': 1}}))\n")

    (done,) = dissect(capture(tmp_path, GOOD), tools=["scapy"])
    (row,) = rows(done)

    links = [line.split(":")[0].strip() for line in row["links"].splitlines()[2:]]
    assert links == ["lo"]
    assert "PORT_STORE_PASSWORD" not in row["env"]


def test_dissecting_works_from_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "print(json.dumps({'end': 0}))\n")
    found: list[Dissection] = []
    path = capture(tmp_path, GOOD)

    thread = threading.Thread(target=lambda: found.extend(dissect(path, tools=["scapy"])))
    thread.start()
    thread.join(PATIENCE_S)

    assert [one.notes for one in found] == [()]
