"""The capture ring: what it keeps, what it forgets, and what is cut out of it."""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from collectors.packets.interface import InterfaceReader
from collectors.packets.ring import Cut, Ring, cut, segments
from tests.collectors.packets.test_interface import ends, received
from tests.collectors.packets.wire import (
    T0,
    Packet,
    chunk,
    chunks,
    datagram,
    ether,
    four,
    seconds,
    six,
    udp,
)
from tests.programs import PATIENCE_S

__all__ = ["ends"]
START = datetime.fromtimestamp(T0 / 1e9, UTC)


def after(seconds_: float) -> datetime:
    return START + timedelta(seconds=seconds_)


def kept(ring: Ring, packets: Sequence[Packet], at_s: float = 0.0, link: int = 1) -> None:
    """Write packets as one chunk."""
    piece = chunk(packets, link=link)
    ring.write(piece.data, piece.columns, after(at_s))


def read(folder: Path) -> list[bytes]:
    """All packets of a ring, in order."""
    return [
        piece.packet(row)
        for one in segments(folder)
        for piece in chunks(one.path)
        for row in range(len(piece))
    ]


def packets_of(path: Path) -> list[Packet]:
    return [
        (int(piece.columns.time_ns[row]), piece.packet(row))
        for piece in chunks(path)
        for row in range(len(piece))
    ]


def cut_of(folder: Path, path: Path, *networks: str, **more: object) -> Cut:
    span = {"since": after(-60), "until": after(3600), **more}
    return cut(folder, path, networks=networks, **span)  # type: ignore[arg-type]


def test_what_is_written_is_read_back_with_its_nanoseconds(tmp_path: Path) -> None:
    ring = Ring(tmp_path / "tap")
    packets = [(T0 + n, datagram("10.0.0.1", n, "10.0.0.2", 2)) for n in range(2_500)]

    kept(ring, packets)

    (only,) = segments(tmp_path / "tap")
    assert packets_of(only.path) == packets
    assert stat.S_IMODE(only.path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "tap").stat().st_mode) == 0o700


def test_the_oldest_segments_go_when_there_are_too_many_bytes(tmp_path: Path) -> None:
    ring = Ring(tmp_path, gb=0.000_1)  # 100 kB
    sizes = []

    for second in range(50):
        kept(
            ring, seconds(*[(second, datagram("10.0.0.1", second, "10.0.0.2", 2, bytes(900)))] * 20)
        )
        sizes.append(sum(one.bytes for one in segments(tmp_path)))

    assert max(sizes) <= 100_000
    assert sizes[-1] > 90_000
    assert read(tmp_path)[-1] == datagram("10.0.0.1", 49, "10.0.0.2", 2, bytes(900))


def test_what_is_too_old_goes_also_when_nothing_comes(tmp_path: Path) -> None:
    ring = Ring(tmp_path, hours=1)
    kept(ring, seconds((0, datagram("10.0.0.1", 1, "10.0.0.2", 2))), at_s=0)
    kept(ring, seconds((1800, datagram("10.0.0.1", 2, "10.0.0.2", 2))), at_s=1800)

    ring.rest(after(3700))
    later = read(tmp_path)
    ring.rest(after(5500))

    assert later == [datagram("10.0.0.1", 2, "10.0.0.2", 2)]
    assert read(tmp_path) == []


def test_another_kind_of_link_is_another_segment(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    piece = chunk(seconds((0, b"a" * 20), (1, b"b" * 20), (2, b"c" * 20)), link=[1, 101, 1])

    ring.write(piece.data, piece.columns, START)

    links = {int(one.columns.link[0]) for part in segments(tmp_path) for one in chunks(part.path)}
    assert links == {1, 101}
    assert sorted(read(tmp_path)) == [b"a" * 20, b"b" * 20, b"c" * 20]


def test_a_process_that_was_killed_leaves_a_ring_that_is_read_and_gone_on_with(
    tmp_path: Path,
) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tests.collectors.packets.test_ring import Ring, datagram, kept, seconds\n"
        "ring = Ring(Path(sys.argv[1]))\n"
        "kept(ring, seconds((0, datagram('10.0.0.1', 1, '10.0.0.2', 2))))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False, timeout=PATIENCE_S
    )
    (before,) = segments(tmp_path)
    with before.path.open("ab") as file:
        file.write(bytes(11))  # half a record

    ring = Ring(tmp_path)
    kept(ring, seconds((0, datagram("10.0.0.1", 2, "10.0.0.2", 2))))

    assert [packet[34:36] for packet in read(tmp_path)] == [b"\0\1", b"\0\2"]


def test_a_disk_that_refuses_is_tried_again_in_a_minute(tmp_path: Path) -> None:
    (tmp_path / "tap").write_text("no folder")
    ring = Ring(tmp_path / "tap")
    packet = datagram("10.0.0.1", 1, "10.0.0.2", 2)

    kept(ring, seconds((0, packet)), at_s=0)
    (tmp_path / "tap").unlink()
    kept(ring, seconds((30, packet)), at_s=30)
    kept(ring, seconds((61, packet)), at_s=61)

    assert ring.unwritten == 2
    assert read(tmp_path / "tap") == [packet]


# ---- Cutting


@pytest.fixture
def city(tmp_path: Path) -> Path:
    """Rings of two sources."""
    one, two = Ring(tmp_path / "ring" / "one"), Ring(tmp_path / "ring" / "two")
    kept(one, seconds(
        (10, datagram("10.0.0.1", 5000, "10.0.0.2", 502)),
        (11, datagram("10.0.0.2", 502, "10.0.0.1", 5000)),
        (12, datagram("10.0.0.1", 5001, "10.0.0.3", 502)),
        (13, datagram("10.0.0.4", 5000, "10.0.0.2", 503)),
        (900, datagram("10.0.0.1", 5000, "10.0.0.2", 502)),
    ))  # fmt: skip
    kept(two, seconds(
        (10.5, ether(four(udp(5000, 502), 17, "10.0.0.1", "10.0.0.2"), tags=[7])),
        (12.5, ether(six(udp(1, 2), 17, 1, 2), kind=0x86DD)),
        (13.5, ether(bytes.fromhex("0001080006040001000000000000 0a000001") + bytes(10), 0x0806)),
    ))  # fmt: skip
    return tmp_path / "ring"


def test_the_packets_between_two_ends_are_cut_in_order_from_all_sources(
    city: Path, tmp_path: Path
) -> None:
    done = cut_of(city, tmp_path / "cut.pcap", "10.0.0.1", "10.0.0.2", ports=[502], until=after(60))

    times = [round((time_ns - T0) / 1e9, 1) for time_ns, _ in packets_of(tmp_path / "cut.pcap")]
    data = (tmp_path / "cut.pcap").read_bytes()
    assert times == [10, 10.5, 11, 13.5]
    assert (done.packets, done.bytes) == (4, len(data))
    assert done.sha256 == hashlib.sha256(data).hexdigest()
    assert (done.first, done.last) == (after(10), after(13.5))
    assert done.notes == ()
    assert stat.S_IMODE((tmp_path / "cut.pcap").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("networks", "ports", "count"),
    [
        (["10.0.0.0/24"], [], 6),
        (["10.0.0.4"], [], 1),
        (["10.0.0.1"], [5001], 2),
        (["2001:db8::1"], [], 1),
        (["2001:db8::/64", "2001:db8::2"], [], 1),
        (["192.0.2.1"], [], 0),
        (["10.0.0.1", "2001:db8::1"], [], 1),
    ],
)
def test_who_is_meant(
    networks: list[str], ports: list[int], count: int, city: Path, tmp_path: Path
) -> None:
    done = cut_of(city, tmp_path / "cut.pcap", *networks, ports=ports)

    assert done.packets == count


def test_a_file_that_would_be_too_large_keeps_the_first_packets_and_says_so(
    city: Path, tmp_path: Path
) -> None:
    done = cut_of(city, tmp_path / "cut.pcap", "10.0.0.0/24", bytes_most=150)

    assert (done.packets, done.bytes) == (2, (tmp_path / "cut.pcap").stat().st_size)
    assert done.notes == ("4 more packets were there; the first ones are kept",)


def test_what_is_not_there_is_said(city: Path, tmp_path: Path) -> None:
    early = cut_of(city, tmp_path / "a", "10.0.0.1", since=after(-90), until=after(-60))
    other = cut_of(city, tmp_path / "a", "192.0.2.1")
    none = cut_of(tmp_path / "none", tmp_path / "a", "10.0.0.1")

    assert early.notes == ("no ring reaches so far back",)
    assert other.notes == ("no packet of it was seen",)
    assert none.notes == ("no source keeps a ring",)
    assert not (tmp_path / "a").exists()


def test_damaged_segments_are_said_and_the_others_are_read(city: Path, tmp_path: Path) -> None:
    (city / "one" / f"{T0:020}.pcap").write_bytes(b"no capture at all, is it")
    generator = np.random.default_rng(7)
    whole = segments(city / "two")[0].path.read_bytes()
    for number in range(30):
        damaged = bytearray(whole)
        for at in generator.integers(24, len(whole), 5).tolist():
            damaged[at] = int(generator.integers(256))
        (city / "two" / f"{T0 + number:020}.pcap").write_bytes(damaged)

    done = cut_of(city, tmp_path / "cut.pcap", "10.0.0.0/24")

    assert done.packets >= 6
    assert any("could not be read" in one for one in done.notes)


# ---- A real interface


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("tshark"), reason="needs tshark")
def test_packets_of_a_real_interface_are_in_the_cut_as_tshark_sees_them(
    tmp_path: Path, ends: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Ring(tmp_path / "ring" / "live")
    monkeypatch.setattr(
        "tests.collectors.packets.test_interface.InterfaceReader",
        lambda name, source: InterfaceReader(name, source, ring=ring),
    )
    packets = [
        datagram("10.9.0.1" if n % 3 else "10.9.0.7", 4000 + n, "10.9.0.2", 502, bytes([n]) * n)
        for n in range(200)
    ]

    received(ends[1], packets, ends[0])
    now = datetime.now(UTC)
    done = cut(
        tmp_path / "ring",
        tmp_path / "cut.pcap",
        networks=["10.9.0.1", "10.9.0.2"],
        since=now - timedelta(minutes=1),
        until=now,
    )

    meant = [one for one in packets if one[26:30] == b"\x0a\x09\0\1"]
    words = [
        "tshark",
        "-r",
        str(tmp_path / "cut.pcap"),
        "-Y",
        "ip.src==10.9.0.1 && udp.dstport==502",
    ]
    said = subprocess.run(
        [*words, "-T", "fields", "-e", "udp.srcport"], capture_output=True, text=True, check=True
    )
    assert [packet for _, packet in packets_of(tmp_path / "cut.pcap")] == meant
    assert done.packets == 133
    assert said.stdout.split() == [str(int.from_bytes(one[34:36], "big")) for one in meant]
