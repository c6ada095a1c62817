"""The spool: segments of event lines, in which a commit line makes a batch durable."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from siem.store.lines import LINE_MAX_BYTES

COMMIT = b'{"cw.batch":'
HEADER = b'{"cw.segment":'


class Commit(msgspec.Struct, frozen=True):
    """The line that makes a batch durable."""

    batch: int = msgspec.field(name="cw.batch")
    events: int
    crc: int
    """CRC-32 of the event lines and the places as they stand."""
    places: msgspec.Raw


class Header(msgspec.Struct, frozen=True):
    """The first line of a segment."""

    format: int = msgspec.field(name="cw.segment")
    first: int
    """Number of its first batch."""
    opened: datetime
    places: dict[str, Any]
    """Where every source stood when the segment began."""


_COMMIT_DECODER = msgspec.json.Decoder(Commit)
_HEADER_DECODER = msgspec.json.Decoder(Header)


def commit_line(batch: int, lines: bytes, events: int, places: bytes) -> bytes:
    """The closing line of a batch."""
    crc = zlib.crc32(places, zlib.crc32(lines))
    return b'{"cw.batch":%d,"events":%d,"crc":%d,"places":%s}\n' % (batch, events, crc, places)


class Segment(msgspec.Struct, frozen=True):
    """One file of the spool."""

    path: Path
    first: int
    """Number of its first batch."""

    def header(self) -> Header | None:
        """Its first line; None if it was never written whole."""
        try:
            with self.path.open("rb") as file:
                line = file.readline(LINE_MAX_BYTES * 64)
            return _HEADER_DECODER.decode(line) if line.endswith(b"\n") else None
        except msgspec.MsgspecError:
            return None

    def header_bytes(self) -> int:
        """Length of its first line."""
        with self.path.open("rb") as file:
            return len(file.readline())

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Batches up to the last whole commit line, from where one ended; 0: all."""
        with self.path.open("rb") as file:
            file.seek(start)
            end = start or len(file.readline())
            lines: list[bytes] = []
            for line in file:
                if not line.endswith(b"\n"):
                    return  # its rest is still being written
                end += len(line)
                commit = _commit_of(line)
                if commit is None:
                    lines.append(line)
                    continue
                data = b"".join(lines)
                lines = []
                crc = zlib.crc32(bytes(commit.places), zlib.crc32(data))
                yield Batch(commit, data, end, crc == commit.crc)


class Batch(msgspec.Struct, frozen=True):
    """Some events that were made durable together."""

    commit: Commit
    lines: bytes
    end: int
    """Where it ends in its file."""
    is_sound: bool
    """False: its sum does not fit, it was damaged on the disk after it was written."""


def _commit_of(line: bytes) -> Commit | None:
    if not line.startswith(COMMIT):
        return None
    try:
        return _COMMIT_DECODER.decode(line)
    except msgspec.MsgspecError:
        return None


def segments(folder: Path) -> list[Segment]:
    """Files of the spool, oldest first; the last one is the one that is written."""
    found = [
        Segment(path, int(path.stem)) for path in (folder / "spool").glob("*.ndjson")
        if path.stem.isdigit()
    ]  # fmt: skip
    return sorted(found, key=lambda one: one.first)


def pairs(found: Sequence[Segment]) -> Iterator[tuple[Segment, Segment | None]]:
    """Each segment with the one behind it; the last has none."""
    return zip_longest(found, found[1:])


def committed(data: bytes) -> int:
    """Length up to the end of the last whole commit line; 0: none."""
    end = data.rfind(b"\n") + 1
    while end > 0:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if data.startswith(COMMIT, start):
            return end
        end = start
    return 0


def sync_folder(path: Path) -> None:
    """Make names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
