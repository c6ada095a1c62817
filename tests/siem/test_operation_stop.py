"""A node that is told to stop under load: it ends in time, and what it kept is there once."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from struct import pack

import msgspec
import pytest

from siem.store.spool import segments
from tests.collectors.packets.wire import ether, four, udp
from tests.programs import PATIENCE_S, is_crowded

STOP_MAX_S = 10.0
PACKETS = 300_000


def _capture(path: Path) -> None:
    """Datagrams of many short flows over some hours."""
    with path.open("wb") as file:
        file.write(pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1))
        for number in range(PACKETS):
            packet = ether(four(udp(1_024 + number // 30 % 60_000, 4_000, b"x" * 20), 17))
            file.write(pack("<IIII", 1_767_600_000 + number // 10, 0, len(packet), len(packet)))
            file.write(packet)


def _flood(port: int, end: threading.Event) -> None:
    """Two thousand lines a second."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in itertools.count():
            line = f"<38>Jan  5 10:00:00 gw sshd[{number}]: Failed password for root from 192.0.2.7"
            sock.sendto(f"{line} port {number % 60_000} ssh2".encode(), ("127.0.0.1", port))
            if number % 20 == 0 and end.wait(0.01):
                return


def _committed(state: Path) -> Counter[tuple[str, str, int]]:
    """Source, place and number of every event that stands before a commit line."""
    found: Counter[tuple[str, str, int]] = Counter()
    for segment in segments(state / "events"):
        for batch in segment.batches():
            for line in batch.lines.splitlines():
                said = msgspec.json.decode(line)
                record = ("cw.record.source", "cw.record.place", "cw.record.number")
                found[tuple(said[name] for name in record)] += 1  # type: ignore[index]
    return found


@pytest.mark.slow
def test_a_node_under_load_ends_within_ten_seconds_and_loses_nothing_it_kept(
    tmp_path: Path,
) -> None:
    _capture(tmp_path / "big.pcap")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = tmp_path / "cityward.toml"
    config.write_text(
        f'state_dir = "{tmp_path}/state"\nconsole.port = 0\n'
        f'[[source]]\nid = "big"\nreader = "capture"\npath = "{tmp_path}/big.pcap"\n'
        f'[[source]]\nid = "flood"\nreader = "syslog_udp"\nlisten = "127.0.0.1:{port}"\n'
    )
    words = [sys.executable, "-m", "siem.cli", "run", "--config", str(config)]
    node = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    end = threading.Event()
    flood = threading.Thread(target=_flood, args=(port, end))
    flood.start()
    try:
        until_s = time.monotonic() + PATIENCE_S
        before: Counter[tuple[str, str, int]] = Counter()
        while not {"big", "flood"} <= {source for source, _, _ in before}:
            assert time.monotonic() < until_s
            assert node.poll() is None, node.communicate()[1]
            time.sleep(1)
            before = _committed(tmp_path / "state")
        told_s = time.monotonic()
        node.send_signal(signal.SIGTERM)
        _, complaint = node.communicate(timeout=PATIENCE_S)
        took_s = time.monotonic() - told_s
    finally:
        end.set()
        flood.join()
        node.kill()

    assert node.returncode == 0, complaint
    assert took_s <= STOP_MAX_S or is_crowded(), f"it took {took_s:.1f} s"
    after = _committed(tmp_path / "state")
    assert before <= after
    assert set(after.values()) == {1}
