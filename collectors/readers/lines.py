"""Bytes in chunks of any size in, lines out; the same lines however the bytes were cut."""

from __future__ import annotations

from typing import NamedTuple

LINE_MAX_BYTES = 1 << 20
"""A longer line is delivered cut."""
CUT_BYTES = 64 << 10
"""What is left of a record that was too long."""


class Line(NamedTuple):
    """A line that is not blank."""

    start: int
    """Offset of its first byte."""
    data: bytes
    """Without its line end (LF or CR LF)."""
    cut: bool
    """True if it was longer than `LINE_MAX_BYTES` and only its beginning is here."""


class LineCutter:
    """Cuts text into lines and holds at most one unfinished line.

    Args:
        start: Offset of the first byte that will come.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = start
        """Offset of the line that is not finished; all before it was given out."""
        self._held = bytearray()
        self._length = 0
        self._solid = False

    def feed(self, chunk: bytes) -> list[Line]:
        """Lines that are whole now."""
        *whole, rest = chunk.split(b"\n")
        found: list[Line] = []
        for part in whole:
            self._add(part)
            self._close(found, len(b"\n"))
        self._add(rest)
        return found

    def end(self) -> list[Line]:
        """The last line, which has no line end."""
        found: list[Line] = []
        self._close(found, 0)
        return found

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        if not self._too_long():
            self._held += part
            return
        # Whether a line is blank is asked of all of it, also of what is not kept.
        self._solid = self._solid or (part != b"" and not part.isspace())
        if len(self._held) < CUT_BYTES:
            self._held += part[: CUT_BYTES - len(self._held)]
        elif len(self._held) > CUT_BYTES:
            self._solid = self._solid or not self._held.isspace()
            del self._held[CUT_BYTES:]

    def _too_long(self) -> bool:
        # One byte more may be held than a line may have: it can be the CR of the line end.
        return self._length > LINE_MAX_BYTES + 1

    def _close(self, found: list[Line], end_bytes: int) -> None:
        data = bytes(self._held)
        cut = self._too_long()
        if not cut:
            data = data.removesuffix(b"\r")
            cut = len(data) > LINE_MAX_BYTES
        if self._solid or (data and not data.isspace()):
            found.append(Line(self.start, data[:CUT_BYTES] if cut else data, cut))
        self.start += self._length + end_bytes
        self._held.clear()
        self._length = 0
        self._solid = False
