"""Where packets come from: capture files (pcap, pcapng, also gzip'ed) and network interfaces.

References:
    IETF draft-ietf-opsawg-pcap-05, draft-ietf-opsawg-pcapng-03.
"""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from cityward.errors import InputError
from cityward.event import Record
from cityward.plugin import Framing
from collectors.packets.gather import PAD, gather
from collectors.readers import Batch, Clock
from collectors.readers.batch import utc_now

MAX_PACKETS = 65_536
"""Packets of one chunk; the meter sorts by hash and a 16-bit row number in one word."""
BUFFER_BYTES = 8 << 20
"""Bytes read at once. Chunks end by count and bytes only, so a file read again gives the same."""
MAX_CAPLEN = 262_144
"""Largest record of libpcap; a larger one means that the file is damaged there."""
MAX_BLOCK_BYTES = 4 << 20
"""Largest pcapng block that is read."""
MAX_INTERFACES = 65_536
MAX_TIME_NS = 9_000_000_000_000_000_000
"""Year 2255: times beyond are cut to this, so that all arithmetic stays in 64 bits."""
MAX_NOTES = 8

Ints = NDArray[np.int64]
Links = NDArray[np.uint16]


class Columns(NamedTuple):
    """What is known of packets before looking into them, one array each."""

    starts: Ints
    """Offset of the first byte in `data`."""
    caplen: Ints
    """Bytes captured."""
    wirelen: Ints
    """Bytes on the wire."""
    time_ns: Ints
    """Epoch nanoseconds."""
    link: Links
    """LINKTYPE_ number."""

    def some(self, rows: slice | Ints) -> Columns:
        """A part of the packets."""
        starts, caplen, wirelen, time_ns, link = self
        return Columns(starts[rows], caplen[rows], wirelen[rows], time_ns[rows], link[rows])


class Chunk(Sequence[Record]):
    """Packets in the order of arrival; behaves as a sequence of their (empty) records."""

    __slots__ = ("columns", "data", "frame", "live", "received", "source")

    def __init__(
        self,
        source: str,
        data: bytes,
        columns: Columns,
        frame: int,
        received: Any,
        live: bool = False,
    ) -> None:
        """Hold packets.

        Args:
            source: Source id of the reader.
            data: The bytes, with `PAD` zero bytes behind the last packet.
            columns: Where the packets are.
            frame: Number of the first packet, from 1 as Wireshark counts.
            received: When it was read, UTC.
            live: The packets' clock is the wall clock.
        """
        self.source, self.data, self.columns = source, data, columns
        self.frame, self.received, self.live = frame, received, live

    def __len__(self) -> int:
        return len(self.columns.starts)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return Record(b"", self.source, self.frame + index % len(self), self.received)

    def packet(self, index: int) -> bytes:
        """Captured bytes of one packet."""
        start = int(self.columns.starts[index])
        return bytes(self.data[start : start + int(self.columns.caplen[index])])


class CaptureReader:
    """A capture file; what can be read of a damaged one is given, the rest is counted.

    A place names the frames read so far. A capture that was not read to its end is read from its
    start again, since flows and streams begin there; its chunks are the same every time.
    """

    framing: Framing = "packets"
    rereads = True
    """After a restart it begins anew, and what it gave already is given again."""

    def __init__(self, path: Path | str, source: str, clock: Clock = utc_now) -> None:
        """Read a capture.

        Args:
            path: pcap or pcapng, gzip'ed or not.
            source: Source id.
            clock: Gives the time of receipt.
        """
        self.path, self.source, self.clock = Path(path), source, clock
        self.notes: list[str] = []
        """What was wrong with the file, in words."""

    def read(self, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        """Yield the packets in chunks.

        Raises:
            InputError: the file cannot be opened or is no capture.
        """
        if isinstance(place, dict) and place.get("done"):
            yield Batch(self.source, [], place, ended=True)
            return
        try:
            with self.path.open("rb") as file:
                yield from self._batches(_plain(file), stop)
        except OSError as error:
            raise InputError(str(error), str(self.path), "Check path and permissions.") from error

    def _batches(self, take: _Take, stop: threading.Event) -> Iterator[Batch]:
        head = take(24)
        form = _form_of(head, str(self.path))
        rest, frame, at_end = head[form.header_bytes :], 1, False
        while not at_end and not stop.is_set():
            wanted = BUFFER_BYTES - len(rest)
            fresh = take(wanted)
            at_end = len(fresh) < wanted
            size = len(rest) + len(fresh)
            data = b"".join((rest, fresh, bytes(PAD)))
            position = 0
            while not stop.is_set():
                columns, position, full = form.walk(data, position, size)
                if len(columns.starts):
                    chunk = Chunk(self.source, data, columns, frame, self.clock())
                    frame += len(chunk)
                    yield Batch(self.source, chunk, {"frames": frame - 1, "done": False})
                if not full:
                    break
            rest = data[position:size]
            at_end = at_end or bool(form.fault)
        if stop.is_set():
            return
        yield self._end(form, take, len(rest), frame - 1)

    def _end(self, form: _Pcap | _Pcapng, take: _Take, left: int, frames: int) -> Batch:
        fault = form.fault or take.fault or ("the last record is cut" if left else "")
        if fault:
            self.notes.append(f"{fault}, behind frame {frames}")
        return Batch(
            self.source,
            [],
            {"frames": frames, "done": True},
            rejected={"bad_record": 1} if fault else {},
            ended=True,
        )


class _Take:
    """Reads exactly as much as asked, less only at the end of the file or where it is damaged."""

    def __init__(self, read1: Callable[[int], bytes]) -> None:
        self.read1 = read1
        self.fault = ""

    def __call__(self, wanted: int) -> bytes:
        parts, missing = [], wanted
        while missing > 0:
            try:
                part = self.read1(min(missing, 1 << 20))
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                self.fault = f"the compressed file is damaged: {error}"
                break
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)


def _plain(file: BufferedReader) -> _Take:
    if file.peek(2)[:2] == b"\x1f\x8b":
        return _Take(gzip.GzipFile(fileobj=file).read1)
    return _Take(file.read1)


def _form_of(head: bytes, where: str) -> _Pcap | _Pcapng:
    if head[:4] == b"\x0a\x0d\x0d\x0a":
        return _Pcapng()
    form = _PCAP_MAGIC.get(head[:4])
    if form is None or len(head) < 24:
        raise InputError(
            f"it begins with {head[:8].hex() or 'nothing'}, no capture does",
            where,
            "Give a pcap or pcapng file.",
        )
    order, fraction_ns = form
    return _Pcap(order, fraction_ns, Struct(order + "I").unpack_from(head, 20)[0] & 0xFFFF)


_PCAP_MAGIC = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
"""First bytes → byte order, nanoseconds of a unit of the fraction."""


class _Pcap:
    """Records of a pcap file."""

    header_bytes = 24

    def __init__(self, order: str, fraction_ns: int, link: int) -> None:
        self.fraction_ns, self.link = fraction_ns, link
        self.fault = ""
        self._caplen = Struct(order + "I").unpack_from
        self._header = np.dtype(
            [(name, order + "u4") for name in ("seconds", "fraction", "caplen", "wirelen")]
        )

    def walk(self, data: bytes, position: int, size: int) -> tuple[Columns, int, bool]:
        """Up to `MAX_PACKETS` whole records, where to go on, and whether there may be more."""
        found: list[int] = []
        append, caplen, last = found.append, self._caplen, size - 16
        for _ in range(MAX_PACKETS):
            if position > last:
                break
            (length,) = caplen(data, position + 8)
            if length > MAX_CAPLEN:
                self.fault = f"a record claims {length} bytes"
                break
            behind = position + 16 + length
            if behind > size:
                break
            append(position)
            position = behind
        return self._columns(data, found), position, len(found) == MAX_PACKETS

    def _columns(self, data: bytes, found: list[int]) -> Columns:
        at = np.array(found, np.int64)
        rows = gather(data, at, self._header)
        seconds = rows["seconds"].astype(np.int64)
        time_ns = seconds * 1_000_000_000 + rows["fraction"].astype(np.int64) * self.fraction_ns
        caplen = rows["caplen"].astype(np.int64)
        wirelen = np.maximum(rows["wirelen"].astype(np.int64), caplen)
        return Columns(at + 16, caplen, wirelen, time_ns, np.full(len(at), self.link, np.uint16))


class _Interface(NamedTuple):
    link: int
    snaplen: int
    unit_ns: float
    """Nanoseconds of one tick."""
    offset_s: int


class _Pcapng:
    """Blocks of a pcapng file; every section has its own byte order and interfaces."""

    header_bytes = 0
    _SECTION, _INTERFACE, _OLD, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 2, 3, 6

    def __init__(self) -> None:
        self.fault = ""
        self.interfaces: list[_Interface] = []
        self._time_ns = 0
        self._set_order("<")

    def _set_order(self, order: str) -> None:
        self.order = order
        self._two = Struct(order + "II").unpack_from
        self._enhanced = np.dtype(
            [
                (name, order + "u4")
                for name in ("kind", "length", "interface", "high", "low", "caplen", "wirelen")
            ]
        )

    def walk(self, data: bytes, position: int, size: int) -> tuple[Columns, int, bool]:
        """Up to `MAX_PACKETS` whole packets, where to go on, and whether there may be more."""
        parts: list[Columns] = []
        found: list[int] = []
        count = 0
        while count < MAX_PACKETS and position + 12 <= size:
            kind, length = self._two(data, position)
            if kind == self._SECTION:
                parts.append(self._columns(data, found))
                found = []
                length = self._section(data, position)
            if length < 12 or length % 4 or length > MAX_BLOCK_BYTES:
                self.fault = self.fault or f"a block claims {length} bytes"
            if self.fault or position + length > size:
                break
            if kind in (self._ENHANCED, self._OLD, self._SIMPLE):
                if self._holds(data, position, kind, length):
                    found.append(position)
                    count += 1
                else:
                    self.fault = "a packet is larger than its block or of no known interface"
                    break
            elif kind == self._INTERFACE:
                self._add_interface(data[position : position + length])
            position += length
        parts.append(self._columns(data, found))
        return _joined(parts), position, count == MAX_PACKETS

    def _section(self, data: bytes, position: int) -> int:
        """Begin a section; its length in the byte order it names."""
        magic = data[position + 8 : position + 12]
        if magic not in (b"\x4d\x3c\x2b\x1a", b"\x1a\x2b\x3c\x4d"):
            self.fault = "a section header without byte order"
            return 0
        self._set_order("<" if magic == b"\x4d\x3c\x2b\x1a" else ">")
        self.interfaces = []
        return int(self._two(data, position)[1])

    def _add_interface(self, block: bytes) -> None:
        if len(block) < 20 or len(self.interfaces) >= MAX_INTERFACES:
            self.fault = "an interface block that cannot be read"
            return
        link, _, snaplen = Struct(self.order + "HHI").unpack_from(block, 8)
        unit_ns, offset_s = 1000.0, 0
        for code, value in self._options(block[16:-4]):
            if code == 9 and value:
                unit_ns = _unit_ns(value[0])
            elif code == 14 and len(value) == 8:
                offset_s = Struct(self.order + "q").unpack(value)[0]
        offset_s = max(-(10**10), min(10**10, offset_s))
        self.interfaces.append(_Interface(link, snaplen or MAX_CAPLEN, unit_ns, offset_s))

    def _options(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        head = Struct(self.order + "HH").unpack_from
        at = 0
        while at + 4 <= len(data):
            code, length = head(data, at)
            if code == 0:
                return
            yield code, data[at + 4 : at + 4 + length]
            at += 4 + (length + 3 & ~3)

    def _holds(self, data: bytes, position: int, kind: int, length: int) -> bool:
        """Whether a packet block holds what it claims."""
        if kind == self._SIMPLE:
            return length >= 16 and bool(self.interfaces)
        if length < 32:
            return False
        interface, caplen = self._two(data, position + 8)[0], self._two(data, position + 20)[0]
        if kind == self._OLD:
            interface = Struct(self.order + "H").unpack_from(data, position + 8)[0]
        return bool(caplen <= min(length - 32, MAX_CAPLEN) and interface < len(self.interfaces))

    def _columns(self, data: bytes, found: list[int]) -> Columns:
        at = np.array(found, np.int64)
        if not found:
            return Columns(at, at, at, at, at.astype(np.uint16))
        rows = gather(data, at, self._enhanced)
        kind = rows["kind"]
        interface = rows["interface"].astype(np.int64)
        old, simple = kind == self._OLD, kind == self._SIMPLE
        if old.any():
            low_half = interface & 0xFFFF if self.order == "<" else interface >> 16
            interface = np.where(old, low_half, interface)
        if simple.any():
            interface = np.where(simple, 0, interface)
        link = np.array([one.link for one in self.interfaces], np.uint16)[interface]
        starts, caplen = at + 28, rows["caplen"].astype(np.int64)
        wirelen = np.maximum(rows["wirelen"].astype(np.int64), caplen)
        time_ns = self._times(rows, interface)
        if simple.any():
            wire = rows["interface"].astype(np.int64)  # the original length stands there
            room = np.minimum(rows["length"].astype(np.int64) - 16, self.interfaces[0].snaplen)
            starts = np.where(simple, at + 12, starts)
            caplen = np.where(simple, np.minimum(np.minimum(wire, room), MAX_CAPLEN), caplen)
            wirelen = np.where(simple, np.maximum(wire, caplen), wirelen)
            time_ns = self._carried(time_ns, simple)
        self._time_ns = int(time_ns[-1])
        return Columns(starts, caplen, wirelen, time_ns, link)

    def _times(self, rows: NDArray[Any], interface: Ints) -> Ints:
        ticks = (rows["high"].astype(np.uint64) << np.uint64(32)) | rows["low"]
        time_ns = np.zeros(len(ticks), np.int64)
        for number in np.unique(interface).tolist():
            of_it = interface == number
            one = self.interfaces[number]
            time_ns[of_it] = _scaled(ticks[of_it], one.unit_ns, one.offset_s)
        return time_ns

    def _carried(self, time_ns: Ints, simple: NDArray[np.bool_]) -> Ints:
        """A simple packet block has no time: it takes that of the packet before it."""
        source = np.where(simple, -1, np.arange(len(time_ns)))
        source = np.maximum.accumulate(source)
        return np.where(source < 0, self._time_ns, time_ns[np.maximum(source, 0)])


def _unit_ns(resolution: int) -> float:
    power = resolution & 0x7F
    return 1e9 / (2.0**power if resolution & 0x80 else 10.0**power)


def _scaled(ticks: NDArray[np.uint64], unit_ns: float, offset_s: int) -> Ints:
    """Ticks as nanoseconds: exact for whole units up to the bound, else in double precision."""
    unit = round(unit_ns)
    if unit >= 1 and unit == unit_ns and unit <= MAX_TIME_NS:
        bounded = np.minimum(ticks, np.uint64(MAX_TIME_NS // unit)).astype(np.int64) * unit
    elif unit_ns < 1 and 1 / unit_ns == round(1 / unit_ns) and 1 / unit_ns < 2**63:
        bounded = (ticks // np.uint64(round(1 / unit_ns))).astype(np.int64)
    else:
        bounded = np.minimum(ticks.astype(np.float64) * unit_ns, MAX_TIME_NS).astype(np.int64)
    bounded = np.minimum(bounded, MAX_TIME_NS)
    if not offset_s:
        return bounded
    moved = bounded.astype(np.float64) + offset_s * 1e9
    exact = bounded + np.int64(max(-(9 * 10**9), min(9 * 10**9, offset_s))) * 1_000_000_000
    inside = (moved > 0) & (moved < MAX_TIME_NS)
    return np.where(inside, exact, np.where(moved > 0, MAX_TIME_NS, 0)).astype(np.int64)


def _joined(parts: list[Columns]) -> Columns:
    filled = [part for part in parts if len(part.starts)] or parts[:1]
    if len(filled) == 1:
        return filled[0]
    return Columns(*(np.concatenate(column) for column in zip(*filled, strict=True)))
