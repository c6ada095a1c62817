"""TCP bytes in order, one direction at a time, with bounded memory.

References:
    RFC 9293, section 3.4 (sequence numbers).
"""

from __future__ import annotations

from collections.abc import Iterator

HELD_SEGMENTS = 32
"""Segments behind a gap that wait for it, for each direction."""
HELD_BYTES = 65_536
STALE_SEGMENTS = 4
"""As many far too old segments in a row mean a new connection whose start was not seen."""
STALE_BYTES = 1 << 20
_WORD = 0xFFFF_FFFF
_HALF = 0x8000_0000


class Budget:
    """Bytes that all directions together may keep waiting."""

    __slots__ = ("bytes", "max_bytes")

    def __init__(self, max_bytes: int = 16 << 20) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0


class Direction:
    """One direction of a TCP connection.

    What was delivered once stays: of overlapping segments the first data win. A gap is given up
    when too much waits behind it; then `None` is delivered in its place.
    """

    __slots__ = (
        "_bytes",
        "_done",
        "_picked_up",
        "_stale",
        "budget",
        "held",
        "lost",
        "next",
        "overlaps",
        "rest",
        "start",
    )

    def __init__(self, budget: Budget) -> None:
        self.next: int | None = None
        """Sequence number expected; None until the first segment, which may be mid-stream."""
        self.start: int | None = None
        """Sequence number behind the SYN, if it was seen."""
        self.held: list[tuple[int, bytes]] = []
        """Segments behind a gap, in sequence."""
        self.rest = b""
        """Delivered, and not yet consumed by the decoder."""
        self.lost = self.overlaps = 0
        self.budget = budget
        self._bytes = self._stale = 0
        self._picked_up: int | None = None
        """Where a stream without a SYN was joined; nothing before it has been delivered."""
        self._done: tuple[int, int] | None = None
        """Bytes delivered ahead of `next`."""

    def syn(self, seq: int) -> bool:
        """A SYN came; True if it begins a connection other than the one followed so far."""
        first = seq + 1 & _WORD
        if self.next == first or any(seg == first for seg, _ in self.held):
            return False
        renewed = self.next is not None and not self._is_behind(first)
        if self.next is None or renewed:
            self.close()
            self.next = self.start = first
        return renewed

    def is_stuck(self) -> bool:
        """Whether segments wait for the very first one."""
        return bool(self.held) and self.next == self.start

    def accept(self, seq: int, data: bytes) -> Iterator[bytes | None]:
        """Take a segment and deliver what is in order now; None stands for a gap given up."""
        if self.next is None:
            self.next = self._picked_up = seq
        elif self._picked_up is not None and self._is_before(seq, len(data)):
            # The first segment seen was not the first sent: go back, and skip it when it comes.
            self._done, self.next, self._picked_up = (self._picked_up, self.next), seq, None
            self.lost += 1
            yield None
        ahead = _distance(self.next, seq)
        if ahead > 0:
            self._hold(seq, data)
            if self._is_full():
                yield from self.flush(once=True)
            return
        if ahead <= -STALE_BYTES:
            self._stale += 1
            if self._stale < STALE_SEGMENTS:
                return
            self.close()
            self.next, self.lost, ahead = seq, self.lost + 1, 0
            yield None
        self._stale = 0
        if ahead < 0:
            self.overlaps += 1
            data = data[-ahead:]
        if data:
            self._advance(len(data))
            yield data
        if self._done and self._done[0] == self.next:
            self.next, self._done = self._done[1], None
            yield None
        yield from self._release()

    def flush(self, *, once: bool = False) -> Iterator[bytes | None]:
        """Give up the gap, or with `once` unset every gap, and deliver what waits behind."""
        while self.held:
            self.lost += 1
            self.next = self.held[0][0]
            yield None
            yield from self._release()
            if once and not self._is_full():
                return

    def keep(self, rest: bytes) -> None:
        """Put back what the decoder did not consume."""
        self.budget.bytes += len(rest) - len(self.rest)
        self.rest = rest

    def close(self) -> None:
        """Forget what waits."""
        self.keep(b"")
        self.budget.bytes -= self._bytes
        self._bytes = self._stale = 0
        self.held = []
        self._picked_up = self._done = None

    def _advance(self, count: int) -> None:
        assert self.next is not None
        self.next = self.next + count & _WORD

    def _is_before(self, seq: int, count: int) -> bool:
        """Whether a segment ends where the stream was joined, or somewhat before."""
        assert self._picked_up is not None
        return -HELD_BYTES < _distance(self._picked_up, seq) <= -count < 0

    def _is_behind(self, seq: int) -> bool:
        """A retransmitted SYN stands at most a little before what was delivered."""
        assert self.next is not None
        return -HELD_BYTES < _distance(self.next, seq) <= 0

    def _is_full(self) -> bool:
        return (
            len(self.held) > HELD_SEGMENTS
            or self._bytes > HELD_BYTES
            or self.budget.bytes > self.budget.max_bytes
        )

    def _hold(self, seq: int, data: bytes) -> None:
        """Insert what no held segment covers; the data that came first win."""
        assert self.next is not None
        base = self.next
        start, stop = _distance(base, seq), _distance(base, seq) + len(data)
        pieces: list[tuple[int, bytes]] = []
        at = start
        for held_seq, held in self.held:
            a = _distance(base, held_seq)
            z = a + len(held)
            if z <= at:
                continue
            if a >= stop:
                break
            self.overlaps += 1
            if a > at:
                pieces.append((base + at & _WORD, data[at - start : a - start]))
            at = max(at, z)
        if at < stop:
            pieces.append((base + at & _WORD, data[at - start :]))
        if not pieces:
            return
        added = sum(len(piece) for _, piece in pieces)
        self._bytes += added
        self.budget.bytes += added
        self.held = sorted(self.held + pieces, key=lambda one: _distance(base, one[0]))

    def _release(self) -> Iterator[bytes]:
        """Deliver held segments that are in order now."""
        assert self.next is not None
        while self.held:
            seq, data = self.held[0]
            ahead = _distance(self.next, seq)
            if ahead > 0:
                return
            self.held.pop(0)
            self._bytes -= len(data)
            self.budget.bytes -= len(data)
            data = data[-ahead:] if ahead else data
            if data:
                self._advance(len(data))
                yield data


def _distance(base: int, seq: int) -> int:
    """How far `seq` is ahead of `base`, around the end of the numbers; negative if behind."""
    return ((seq - base + _HALF) & _WORD) - _HALF
