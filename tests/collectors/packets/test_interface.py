"""A live interface: a pair of virtual Ethernet ends."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from cityward import InputError
from collectors.packets.capture import Chunk
from collectors.packets.interface import InterfaceReader
from collectors.packets.packets import Packets
from collectors.readers import Batch
from tests.collectors.packets.wire import datagram, ether, four, udp
from tests.programs import PATIENCE_S


@pytest.fixture
def ends() -> Iterator[tuple[str, str]]:
    """Two ends of a cable."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    one, two = f"cw{os.getpid() % 100_000}a", f"cw{os.getpid() % 100_000}b"
    made = subprocess.run(
        ["ip", "link", "add", one, "type", "veth", "peer", "name", two],
        check=False,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("no virtual Ethernet here")
    for end in (one, two):
        subprocess.run(["ip", "link", "set", end, "up"], check=True)
    yield one, two
    subprocess.run(["ip", "link", "del", one], check=True)


def received(name: str, packets: list[bytes], sender: str) -> list[Batch]:
    """What a reader gives until it has seen as many packets of ours."""
    stop, found = threading.Event(), []
    ready = threading.Event()

    def read() -> None:
        for batch in InterfaceReader(name, "live").read(None, stop):
            found.append(batch)
            ready.set()

    reading = threading.Thread(target=read)
    reading.start()
    try:
        assert ready.wait(PATIENCE_S)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind((sender, 0))
            for packet in packets:
                sock.send(packet)
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and len(_ours(found)) < len(packets):
            time.sleep(0.02)
    finally:
        stop.set()
        reading.join(PATIENCE_S)
    assert not reading.is_alive()
    return found


def _ours(batches: list[Batch]) -> list[bytes]:
    """Packets from our MAC address, which the kernel of either end does not use."""
    return [
        packet
        for batch in batches
        if isinstance(batch.records, Chunk)
        for packet in (batch.records.packet(row) for row in range(len(batch.records)))
        if packet[6:12] == b"\x02\0\0\0\0\x02"
    ]


@pytest.mark.root
def test_packets_arrive_as_they_were_sent(ends: tuple[str, str]) -> None:
    packets = [datagram("10.0.0.1", 1, "10.0.0.2", 2, bytes([n])) for n in range(50)]

    found = received(ends[1], packets, ends[0])

    assert _ours(found) == packets
    assert sum(batch.lost for batch in found) == 0
    assert found[-1].place == {"frames": sum(len(batch.records) for batch in found)}


@pytest.mark.root
def test_a_vlan_tag_that_the_kernel_took_out_is_put_back(ends: tuple[str, str]) -> None:
    packet = ether(four(udp(1, 2, b"tagged"), 17), tags=[100])

    found = received(ends[1], [packet], ends[0])
    collector = Packets({})
    events = [e for batch in found for e in collector(batch.records)] + list(collector.end())

    assert _ours(found) == [packet]
    tagged = [e.fields for e in events if e.fields.get("destination.port") == 2]
    assert [fields["network.vlan.id"] for fields in tagged] == ["100"]
    assert [fields["source.bytes"] for fields in tagged] == [34]


@pytest.mark.root
def test_an_idle_interface_gives_empty_batches_so_that_time_passes(ends: tuple[str, str]) -> None:
    stop = threading.Event()
    reading = InterfaceReader(ends[1], "live").read({"frames": 7}, stop)

    empty = next(batch for batch in reading if not len(batch.records))
    stop.set()

    assert empty.source == "live"
    assert empty.place["frames"] >= 7


def test_an_unknown_interface_is_named() -> None:
    with pytest.raises(InputError, match="nosuch0"):
        next(InterfaceReader("nosuch0", "live").read(None, threading.Event()))
