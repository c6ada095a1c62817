"""Packets of a network interface, by the kernel's ring (AF_PACKET, TPACKET_V3); needs CAP_NET_RAW.

References:
    Linux, Documentation/networking/packet_mmap.rst; include/uapi/linux/if_packet.h.
"""

from __future__ import annotations

import mmap
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np

from cityward.errors import InputError
from cityward.plugin import Framing
from collectors.packets.capture import MAX_PACKETS, Chunk, Columns
from collectors.packets.gather import PAD, gather
from collectors.packets.ring import Ring
from collectors.readers import Batch, Clock
from collectors.readers.batch import PAUSE_S, utc_now

BLOCK_BYTES = 1 << 20
BLOCKS = 32
BLOCK_TIMEOUT_MS = 100
"""The kernel hands over a block that is not full after this time."""
FRAME_BYTES = 2_048

_SOL_PACKET = 263
_ADD_MEMBERSHIP, _RX_RING, _STATISTICS, _VERSION, _RESERVE, _IGNORE_OUTGOING = 1, 5, 6, 10, 12, 23
_TPACKET_V3, _PROMISCUOUS, _ETH_P_ALL = 2, 1, 3
_USER, _VLAN_VALID, _VLAN_TPID_VALID = 1, 1 << 4, 1 << 6
_LINKTYPES = {1: 1, 772: 1, 65534: 101, 768: 101, 776: 101, 778: 101}
"""ARPHRD_ of the interface → LINKTYPE_: Ethernet, loopback, and tunnels that carry plain IP."""

_BLOCK = Struct("=IIIIII").unpack_from
"""Version, private, status, packets, offset of the first, bytes used."""
_STATUS = Struct("=I")
_NEXT = Struct("=I").unpack_from
_HEADER = np.dtype(
    [(name, "=u4") for name in ("next", "seconds", "nanoseconds", "caplen", "wirelen", "status")]
    + [("mac", "=u2"), ("net", "=u2"), ("hash", "=u4"), ("tci", "=u4"), ("tpid", "=u2")]
)
"""struct tpacket3_hdr up to the VLAN protocol."""


class InterfaceReader:
    """A live interface. What the kernel dropped is said in the next batch."""

    framing: Framing = "packets"

    def __init__(
        self,
        name: str,
        source: str,
        *,
        promiscuous: bool = True,
        ring: Ring | None = None,
        clock: Clock = utc_now,
    ) -> None:
        """Read an interface.

        Args:
            name: As `ip link` shows it.
            source: Source id.
            promiscuous: See also what is addressed to others.
            ring: Keeps the last packets as they are.
            clock: Gives the time of receipt.
        """
        self.name, self.source, self.promiscuous, self.clock = name, source, promiscuous, clock
        self.ring = ring

    def read(self, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        """Yield chunks promptly; frames are numbered on from `place`.

        Raises:
            InputError: there is no such interface, or it may not be opened.
        """
        frame = int(place.get("frames", 0)) + 1 if isinstance(place, dict) else 1
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
                ring = self._open(sock)
                try:
                    yield from self._batches(sock, ring, frame, stop)
                finally:
                    ring.close()
                    if self.ring is not None:
                        self.ring.close()
        except OSError as error:
            todo = "Check the name with `ip link`; the process needs CAP_NET_RAW."
            raise InputError(f"{error.strerror or error}", self.name, todo) from error

    def _open(self, sock: socket.socket) -> mmap.mmap:
        index = socket.if_nametoindex(self.name)
        sock.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
        # Room before each packet for a VLAN tag that the kernel took out.
        sock.setsockopt(_SOL_PACKET, _RESERVE, 4)
        frames = BLOCK_BYTES // FRAME_BYTES * BLOCKS
        ring = Struct("=7I").pack(BLOCK_BYTES, BLOCKS, FRAME_BYTES, frames, BLOCK_TIMEOUT_MS, 0, 0)
        sock.setsockopt(_SOL_PACKET, _RX_RING, ring)
        memory = mmap.mmap(sock.fileno(), BLOCK_BYTES * BLOCKS)
        if self._hardware() == 772:
            # On the loopback interface each packet would be seen twice.
            sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        if self.promiscuous:
            member = Struct("=iHH8s").pack(index, _PROMISCUOUS, 0, b"")
            sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)
        sock.bind((self.name, _ETH_P_ALL))
        return memory

    def _hardware(self) -> int:
        path = Path("/sys/class/net") / self.name / "type"
        return int(path.read_text(encoding="ascii")) if path.exists() else 1

    def _batches(
        self, sock: socket.socket, ring: mmap.mmap, frame: int, stop: threading.Event
    ) -> Iterator[Batch]:
        link = _LINKTYPES.get(self._hardware(), 0xFFFF)
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        block = 0
        while not stop.is_set():
            chunk = None
            parts: list[tuple[bytes, int, int]] = []
            count, until = 0, time.monotonic() + PAUSE_S
            while count < MAX_PACKETS // 2 and len(parts) < BLOCKS // 2 and not stop.is_set():
                at = block * BLOCK_BYTES
                _, _, status, packets, first, used = _BLOCK(ring, at)
                if status & _USER:
                    parts.append((ring[at : at + min(used, BLOCK_BYTES)], first, packets))
                    _STATUS.pack_into(ring, at + 8, 0)
                    count += packets
                    block = (block + 1) % BLOCKS
                    continue
                left = until - time.monotonic()
                if parts or left <= 0:
                    break
                poll.poll(left * 1000)
            for data, columns in _chunks(parts, link):
                chunk = Chunk(self.source, data, columns, frame, self.clock(), live=True)
                frame += len(chunk)
                if self.ring is not None and len(chunk):
                    self.ring.write(data, columns, chunk.received)
                yield Batch(self.source, chunk, {"frames": frame - 1}, lost=_dropped(sock))
            if chunk is None:
                if self.ring is not None:
                    self.ring.rest(self.clock())
                yield Batch(self.source, [], {"frames": frame - 1}, lost=_dropped(sock))


def _dropped(sock: socket.socket) -> int:
    """Packets the kernel dropped since the last call."""
    _, drops, _ = Struct("=III").unpack(sock.getsockopt(_SOL_PACKET, _STATISTICS, 12))
    return int(drops)


def _chunks(parts: list[tuple[bytes, int, int]], link: int) -> Iterator[tuple[bytes, Columns]]:
    """Blocks as chunks of at most `MAX_PACKETS`."""
    if not parts:
        return
    data = bytearray().join([*(part for part, _, _ in parts), bytes(PAD)])
    found: list[int] = []
    base = 0
    for part, first, packets in parts:
        position = base + first
        for _ in range(packets):
            if position + _HEADER.itemsize > base + len(part):
                break
            found.append(position)
            position += _NEXT(data, position)[0]
        base += len(part)
    at = np.array(found, np.int64)
    rows = gather(data, at, _HEADER)
    starts = at + rows["mac"]
    caplen, wirelen = rows["caplen"].astype(np.int64), rows["wirelen"].astype(np.int64)
    tagged = rows["status"] & _VLAN_VALID > 0
    if tagged.any():
        _put_tags_back(data, starts, rows, np.flatnonzero(tagged))
        more = np.where(tagged, 4, 0)
        starts, caplen, wirelen = starts - more, caplen + more, wirelen + more
    time_ns = rows["seconds"].astype(np.int64) * 1_000_000_000 + rows["nanoseconds"]
    columns = Columns(starts, caplen, wirelen, time_ns, np.full(len(at), link, np.uint16))
    whole = bytes(data)
    for begin in range(0, len(at), MAX_PACKETS):
        some = slice(begin, begin + MAX_PACKETS)
        yield whole, columns.some(some)


def _put_tags_back(data: bytearray, starts: Any, rows: Any, tagged: Any) -> None:
    """Insert VLAN tags the hardware took out, into the room before each packet."""
    for row in tagged.tolist():
        start = int(starts[row])
        has_type = int(rows["status"][row]) & _VLAN_TPID_VALID
        kind = int(rows["tpid"][row]) if has_type else 0x8100
        data[start - 4 : start + 8] = data[start : start + 12]
        tag = kind << 16 | int(rows["tci"][row]) & 0xFFFF
        data[start + 8 : start + 12] = tag.to_bytes(4, "big")
