"""What GOOSE and sampled values share: the header of their frames, and what their events say first.

References:
    IEC 61850-8-1 annex C and IEC 61850-9-2 section 5.3.3 (APPID, length, reserved words).
"""

from __future__ import annotations

from struct import Struct
from typing import Any, NamedTuple

from collectors.packets.decoders.ber import BerError, Element, element

REPORT: dict[str, Any] = {
    "event.kind": "event",
    "event.category": ["process_control"],
    "event.outcome": "unknown",
    "ot.operation": "report",
    "ot.is_command": False,
    "ot.direction": "unsolicited",
}
"""Nobody is asked, and nobody answers."""
_HEAD = Struct(">HHHH")
_SIMULATED = 0x8000


class Frame(NamedTuple):
    """A frame behind its ethertype."""

    app_id: str
    is_simulated: bool
    pdu: Element


def is_frame(head: bytes, tag: int) -> bool:
    """A header whose length fits, and a message of this tag behind it."""
    if len(head) < 10 or head[8] != tag:
        return False
    return 10 <= (head[2] << 8 | head[3]) <= len(head)


def frame_of(data: bytes, tag: int, name: str, header: str) -> Frame:
    """Read the header, so called, and find the message of this tag and name behind it.

    Raises:
        BerError: it is none; the text says why.
    """
    if len(data) < _HEAD.size:
        raise BerError(f"{len(data)} bytes are no {header}")
    app_id, length, reserved, _ = _HEAD.unpack_from(data)
    if not _HEAD.size < length <= len(data):
        raise BerError(f"the header claims {length} bytes, {len(data)} were captured")
    pdu = element(data, _HEAD.size, length)
    if pdu.tag != tag:
        raise BerError(f"tag 0x{pdu.tag:02x} is no {name}")
    return Frame(f"0x{app_id:04x}", reserved & _SIMULATED > 0, pdu)
