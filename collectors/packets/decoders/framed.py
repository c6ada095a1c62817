"""Frames one behind the other: what their decoders do alike.

A decoder says how long a frame is, where the next one may begin, and what a frame means. Here a
frame waits until it is whole, bytes that begin none are said once and passed over until one
begins, and what a gap or the end cuts is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from cityward import Session
from collectors.packets.decoders.pairs import Fields, Pairs, unreadable


class Tally(msgspec.Struct):
    """What became of the bytes of a conversation; for tests and for health."""

    frames: int = 0
    malformed: int = 0
    skipped_bytes: int = 0
    """Passed over in search of the next frame."""


class Lane(msgspec.Struct):
    """One direction."""

    lost: bool = False
    """The boundary of frames is not known."""
    rest: int = 0
    """Bytes of a frame that is not yet whole."""


class Framed:
    """A `Decoder` of frames, over a stream or in datagrams; a protocol fills in the rest."""

    head: ClassVar[int] = 1
    """Bytes that are there before a frame is looked at."""
    noun: ClassVar[str] = "message"
    """What the protocol calls a frame."""
    unanswered: ClassVar[str]
    """Action of a command that nobody answered."""

    def __init__(self, session: Session, always: Fields, tally: Tally | None = None) -> None:
        self.tally = tally or Tally()
        self.pairs = Pairs(session)
        self._base: Fields = {**session.base, **always}
        self._bases = (self._base, self._base)
        """What events begin with that tell of the server, and of the client."""
        self._is_stream = session.base.get("network.transport") != "udp"
        self._lanes = (Lane(), Lane())

    @staticmethod
    def size(data: bytes, at: int) -> int:
        """Bytes of the frame at `at`, 0 if none begins there, -1 if it is too early to say."""
        raise NotImplementedError

    @staticmethod
    def fault(data: bytes, at: int) -> str:
        """Why no frame begins at `at`."""
        return f"{data[at : at + 8].hex()} begins no message"

    @staticmethod
    def next_start(data: bytes, at: int) -> tuple[int, bool]:
        """Where the next frame begins, and True if that is not certain yet."""
        raise NotImplementedError

    def read(self, data: bytes, from_client: bool, time_s: float) -> Sequence[Fields]:
        """Events of one whole frame."""
        raise NotImplementedError

    def cut(self, lane: Lane, left: int) -> str:
        """What to say of the bytes that a datagram leaves; the next datagram begins anew."""
        is_told, lane.lost = lane.lost or not left, False
        return "" if is_told else f"{left} bytes of a datagram are no {self.noun}"

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        found: list[Fields] = []
        at, end, head = 0, len(data), self.head
        while end - at >= head:
            if lane.lost:
                start, lane.lost = self.next_start(data, at)
                self.tally.skipped_bytes += start - at
                at = start
                if lane.lost or end - at < head:
                    break
            size = self.size(data, at)
            if size < 0 or size > end - at:
                break
            if not size:
                found.append(self._unreadable(self.fault(data, at), from_client))
                lane.lost = True
                self.tally.skipped_bytes += 1
                at += 1
                continue
            self.tally.frames += 1
            found += self.read(data[at : at + size], from_client, time_s)
            at += size
        if self._is_stream:
            lane.rest = 0 if lane.lost else end - at
            return at, found
        if why := self.cut(lane, end - at):
            found.append(self._unreadable(why, from_client))
        return end, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        self.tally.skipped_bytes += lane.rest
        lane.lost, lane.rest = True, 0

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; commands that nobody answered, and frames that were cut."""
        found = self.pairs.end(self.unanswered)
        for side, (lane, who) in enumerate(zip(self._lanes, ("server", "client"), strict=True)):
            if lane.rest:
                why = f"the conversation ended {lane.rest} bytes into a {self.noun} of the {who}"
                found.append(self._unreadable(why, bool(side)))
                lane.rest = 0
        return found

    def _unreadable(self, why: str, from_client: bool = True) -> Fields:
        self.tally.malformed += 1
        return unreadable(self._bases[from_client], why)
