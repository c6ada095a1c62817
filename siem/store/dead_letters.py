"""What a cluster will never take: kept as lines of JSON until somebody mends the cause."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

log = logging.getLogger(__name__)

MAX_BYTES = 64 * 1024 * 1024
"""What comes beyond is counted only: the node itself still has it."""


class DeadLetter(msgspec.Struct, frozen=True):
    """One document, why it was refused, and the very write that can be sent again."""

    time: datetime
    error: str
    reason: str
    action: msgspec.Raw
    source: msgspec.Raw = msgspec.Raw(b"null")

    def lines(self) -> bytes:
        """The write as it stood in the request."""
        source = bytes(self.source)
        return bytes(self.action) + b"\n" + (b"" if source == b"null" else source + b"\n")


_decode = msgspec.json.Decoder(DeadLetter).decode
_END = b"\n"
_encode = msgspec.json.Encoder().encode


class DeadLetters:
    """A bounded file of them, durable when `add` returns; processes may share it."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        """Name the file; it is made with the first letter."""
        self.path = path
        self._max_bytes = max_bytes
        self.dropped = 0
        """Letters for which there was no room, since the start."""

    def add(self, refused: Sequence[tuple[bytes, str, str]]) -> None:
        """Keep writes with the type of error and the reason.

        Args:
            refused: Encoded pair, type of error, reason.
        """
        now = datetime.now(UTC)
        lines = []
        for write, error, reason in refused:
            action, _, source = write.rstrip(b"\n").partition(b"\n")
            letter = DeadLetter(
                now,
                error,
                reason[:2_000],
                msgspec.Raw(action),
                msgspec.Raw(source or b"null"),
            )
            lines.append(_encode(letter) + b"\n")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(), self.path.open("a+b", buffering=0) as file:
            os.fchmod(file.fileno(), 0o600)
            size = file.seek(0, os.SEEK_END)
            kept = []
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                kept.append(_END)  # what was being written when the power went
            room = self._max_bytes - size
            for line in lines:
                room -= len(line)
                if room >= 0:
                    kept.append(line)
            dropped = len(lines) - sum(line is not _END for line in kept)
            self.dropped += dropped
            rest = memoryview(b"".join(kept))
            while rest:
                rest = rest[file.write(rest) :]
            os.fdatasync(file.fileno())
        if dropped:
            log.error("%s is full; replay it, or put it aside.", self.path)

    def __len__(self) -> int:
        try:
            with self.path.open("rb") as file:
                return sum(1 for _ in file)
        except FileNotFoundError:
            return 0

    def __iter__(self) -> Iterator[DeadLetter]:
        """Letters, oldest first; a torn line is passed over."""
        yield from _letters(self.path)

    def taken(self) -> Iterator[DeadLetter]:
        """Letters to be sent again: they are in a file aside until all of them were.

        What a replay that was interrupted has left comes first.
        """
        aside = self.path.with_suffix(".replaying")
        if aside.exists():
            yield from _letters(aside)
            aside.unlink()
        with self._locked():
            if not self.path.exists():
                return
            self.path.rename(aside)
        yield from _letters(aside)
        aside.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.path.with_suffix(".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _letters(path: Path) -> Iterator[DeadLetter]:
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    yield _decode(line)
                except msgspec.MsgspecError:
                    log.warning("A line of %s cannot be read.", path)
    except FileNotFoundError:
        return
