"""WebSocket frames of one direction → whole messages; used by `http.py` after an upgrade.

References:
    RFC 6455, section 5 (framing, masking, fragments, control frames, closing).
    RFC 7692, section 7 (permessage-deflate).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec

MESSAGE_MAX = 32_768
"""Bytes of a message that are kept; of a longer one only the size is said."""
CONTROL_MAX = 125
"""Bytes of a control frame (section 5.5)."""

OPCODES = {1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}
"""Section 5.2; 0 goes on with the message before."""
_TAIL = b"\x00\x00\xff\xff"


class Message(msgspec.Struct, frozen=True, gc=False):
    """One whole message, or what is wrong with the frames."""

    name: str = ""
    data: bytes = b""
    size: int = 0
    """Bytes on the wire, before they were inflated."""
    code: int = 0
    """Status of a close (section 7.4)."""
    fault: str = ""

    @property
    def is_text(self) -> bool:
        """True for text that is here in full."""
        return self.name == "text" and bool(self.data)


class Frames:
    """One direction of a WebSocket."""

    def __init__(self, from_client: bool, deflates: bool) -> None:
        self._masked = from_client
        self._deflates = deflates
        self._inflate = zlib.decompressobj(-15)
        self._lost = False
        self._opcode = 0
        """Of the message that is being put together."""
        self._is_deflated = False
        self._kept = bytearray()
        self._size = 0
        self._left = 0
        """Bytes of the frame that are still to come."""
        self._mask = b""
        self._done = 0
        """Bytes of the frame that are done with."""
        self._final = True
        self._control: int = 0
        """Opcode of a control frame; it may come between fragments."""
        self._aside = bytearray()

    def gap(self) -> None:
        """Bytes are missing; the next segment is taken to begin with a frame if it can."""
        self._lost, self._left, self._opcode, self._control = True, 0, 0, 0
        self._kept.clear()
        self._size = 0
        # What was said before is missing: what refers to it cannot be inflated, and is not guessed.
        self._inflate = zlib.decompressobj(-15)

    def feed(self, data: bytes, at: int) -> tuple[int, Sequence[Message]]:
        """Bytes used from `at` on, and messages that are whole now."""
        found: list[Message] = []
        start, end = at, len(data)
        while at < end:
            if self._left:
                used = min(self._left, end - at)
                self._take(data[at : at + used])
                at += used
                if not self._left:
                    found += self._frame_done()
                continue
            size = self._begin(data, at)
            if size == 0:
                break
            if size < 0:
                if not self._lost:
                    found.append(Message(fault="bytes that are no WebSocket frame"))
                self.gap()
                at = end
                break
            at += size
            if not self._left:
                found += self._frame_done()
        return at - start, found

    def _begin(self, data: bytes, at: int) -> int:
        """Read the head of a frame; its size, 0 if it is not whole, -1 if it is none."""
        if at + 2 > len(data):
            return 0
        first, second = data[at], data[at + 1]
        opcode, length = first & 15, second & 127
        size = 2
        if length > 125:
            wide = 2 if length == 126 else 8
            size += wide
            if at + size > len(data):
                return 0
            length = int.from_bytes(data[at + 2 : at + size])
            if length < (126 if wide == 2 else 65_536) or length >> 63:
                return -1
        if opcode not in OPCODES and opcode:
            return -1
        is_control = opcode >= 8
        if first & 0x30 or (first & 0x40 and (not self._deflates or is_control or not opcode)):
            return -1
        if bool(second & 128) != self._masked or (is_control and not first & 128):
            return -1
        if (is_control and length > CONTROL_MAX) or (self._lost and length > MESSAGE_MAX):
            return -1
        if not is_control and bool(opcode) == bool(self._opcode) and not self._lost:
            # A message may not begin within another, nor go on without one.
            return -1
        if self._masked:
            if at + size + 4 > len(data):
                return 0
            self._mask = data[at + size : at + size + 4]
            size += 4
        if self._lost and not is_control and not opcode:
            return -1
        self._lost = False
        self._left, self._done, self._control = length, 0, opcode if is_control else 0
        if is_control:
            self._aside.clear()
        else:
            self._final = bool(first & 128)
            if opcode:
                self._opcode, self._is_deflated = opcode, bool(first & 64)
        return size

    def _take(self, part: bytes) -> None:
        kept = self._aside if self._control else self._kept
        room = MESSAGE_MAX - len(kept)
        if room > 0:
            kept += _unmasked(part[:room], self._mask, self._done) if self._masked else part[:room]
        if not self._control:
            self._size += len(part)
        self._left -= len(part)
        self._done += len(part)

    def _frame_done(self) -> list[Message]:
        if self._control:
            opcode, data = self._control, bytes(self._aside)
            self._control = 0
            code = int.from_bytes(data[:2]) if opcode == 8 and len(data) >= 2 else 0
            return [Message(OPCODES[opcode], b"", len(data), code)]
        if not self._final:
            return []
        name, size = OPCODES[self._opcode], self._size
        data = bytes(self._kept) if size <= MESSAGE_MAX else b""
        self._kept.clear()
        self._opcode = self._size = 0
        if self._is_deflated:
            data = self._inflated(data)
        return [Message(name, data, size)]

    def _inflated(self, data: bytes) -> bytes:
        """The message in clear; empty if it is too long or a part before it is missing."""
        try:
            found = self._inflate.decompress(data + _TAIL, MESSAGE_MAX + 1)
        except zlib.error:
            found = b""
        if self._inflate.unconsumed_tail or self._inflate.eof or len(found) > MESSAGE_MAX:
            self._inflate = zlib.decompressobj(-15)
            return b""
        return found


def _unmasked(part: bytes, mask: bytes, done: int) -> bytes:
    """Section 5.3, all bytes at once."""
    turn = done & 3
    turned = mask[turn:] + mask[:turn]
    size = len(part)
    key = (turned * (size // 4 + 1))[:size]
    return (int.from_bytes(part) ^ int.from_bytes(key)).to_bytes(size)
