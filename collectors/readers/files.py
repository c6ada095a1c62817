"""Lines and documents of one file, or of standard input."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cityward.errors import InputError
from cityward.event import Record
from cityward.plugin import Framing
from collectors.readers.batch import PAUSE_S, Batch, Clock, utc_now
from collectors.readers.tail import Lines, Stream, Tail
from collectors.readers.text import Text, open_raw

DOCUMENT_MAX_BYTES = 64 << 20


class FileReader:
    """One file, or standard input (`-`), as lines or as one document.

    A record's place is the offset of its line in the uncompressed text. When a followed file is
    rotated, offsets go on counting behind those of the file before, so that no place is used twice.
    A followed document is a record each time it is replaced; its place is its change time, ns.

    Args:
        path: The file; `-` for standard input.
        source: Id of the source.
        framing: `lines` or `document` (≤ 64 MiB).
        follow: Go on when the end is reached, also over rotation by rename and by copy-truncate.
        clock: Gives `Record.received`.
    """

    def __init__(
        self,
        path: str | Path,
        source: str,
        framing: Framing = "lines",
        follow: bool = False,
        *,
        clock: Clock = utc_now,
    ) -> None:
        self.path = path
        self.source = source
        self.framing: Framing = framing
        self.follow = follow
        self._clock = clock

    def read(self, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        """Yield batches from `place` on.

        Raises:
            InputError: the file cannot be opened or read. A followed file is waited for instead.
        """
        try:
            if self.framing == "document":
                yield from self._documents(place, stop)
            else:
                yield from self._lines(place, stop)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read: {error.strerror or error}",
                f"source {self.source}",
                "Name a file that is there and that this account may read.",
            ) from error

    def _lines(self, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        lines = self._open(place, stop)
        try:
            while not stop.is_set():
                taken = lines.take()
                yield taken.batch(self.source, self.source, self._clock, lines.place())
                if taken.ended:
                    return
                if not taken.full:
                    stop.wait(lines.pause_s)
        finally:
            lines.close()

    def _open(self, place: Any | None, stop: threading.Event) -> Lines:
        if str(self.path) == "-":
            return Stream(sys.stdin.fileno(), place, stop)
        path = Path(self.path)
        if is_stream(path):
            return Stream(os.open(path, os.O_RDONLY | os.O_NONBLOCK), place, stop)
        return Tail(path, place, self.follow)

    def _documents(self, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        if self.follow and str(self.path) != "-":
            yield from self._versions(Path(self.path), place, stop)
            return
        if place is None:
            read = read_document(self.path, self.source, 0, self._clock, stop)
            yield Batch(self.source, read[0], "done", rejected=read[1], ended=True)
        else:
            yield Batch(self.source, [], place, ended=True)

    def _versions(self, path: Path, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        last = seen = place
        while not stop.is_set():
            now = version_of(path)
            # A document that is still being written is left until it has kept still for a while.
            if now is not None and now == seen and now != last:
                records, rejected = read_document(path, self.source, now[1], self._clock, stop)
                last = now
                yield Batch(self.source, records, last, rejected=rejected)
            else:
                yield Batch(self.source, [], last)
            seen = now
            stop.wait(PAUSE_S)


def is_stream(path: Path) -> bool:
    """True for pipes and the like, which can be read once only."""
    return path.exists() and not path.is_file() and not path.is_dir()


def version_of(path: Path) -> list[int] | None:
    """Size and change time (ns) of a file; None if it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def read_document(
    path: str | Path, source: str, place: int, clock: Clock, stop: threading.Event
) -> tuple[list[Record], dict[str, int]]:
    """A whole file as one record, or the reason why it is none.

    Raises:
        OSError: the file cannot be read.
    """
    if str(path) == "-" or is_stream(Path(path)):
        fd = sys.stdin.fileno() if str(path) == "-" else os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        data, why = _whole(Text(_waiting_read(fd, stop)), stop)
    else:
        with open_raw(Path(path)) as file:
            data, why = _whole(Text(file.read), stop)
    if why:
        return [], {why: 1}
    return [Record(data, source, place, clock())], {}


def _waiting_read(fd: int, stop: threading.Event) -> Callable[[int], bytes | None]:
    def read(size: int) -> bytes | None:
        while not stop.is_set():
            if select.select([fd], [], [], PAUSE_S)[0]:
                return os.read(fd, size)
        return b""

    return read


def _whole(text: Text, stop: threading.Event) -> tuple[bytes, str]:
    chunks: list[bytes] = []
    size = 0
    while (chunk := text.read()) is not None:
        chunks.append(chunk)
        size += len(chunk)
        if size > DOCUMENT_MAX_BYTES:
            return b"", "document_too_long"
    if text.fault:
        return b"", "gzip_broken"
    if not text.whole:
        return b"", "gzip_cut"
    return b"".join([*chunks, text.rest()]), "stopped" if stop.is_set() else ""
