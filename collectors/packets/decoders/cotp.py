"""ISO transport on TCP: what S7 and MMS share below their messages.

Packets (TPKT) are cut out of the stream, connections are told with their selectors, data units are
put together; the protocol above gets whole messages.

References:
    RFC 1006, section 6 (packet format).
    ISO/IEC 8073 / ITU-T X.224, section 13 (structure and encoding of TPDUs), class 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Any

import msgspec

from cityward import Session
from collectors.packets.decoders.pairs import Pairs, printable, unreadable

MESSAGE_MAX = 65_536
"""Bytes of one message that is put together; MMS agrees on 64 000 at most."""
LOST_PACKET_MAX = 8_200
"""Longest packet that is waited for while the boundary is searched: the largest TPDU is 8 192."""
SELECTOR_MAX = 32
"""Bytes of a transport selector."""

CR, CC, DR, DC, DT, ED, ER = 0xE0, 0xD0, 0x80, 0xC0, 0xF0, 0x10, 0x70
TPDUS: dict[int, tuple[str, str, str]] = {
    CR: ("connection_request", "request", ""),
    CC: ("connection_confirm", "response", "success"),
    DR: ("disconnect_request", "request", ""),
    DC: ("disconnect_confirm", "response", "success"),
    ED: ("expedited_data", "unsolicited", ""),
    ER: ("error", "response", "failure"),
}
"""TPDU code → name, direction, outcome; data has messages of its own."""
DISCONNECT_REASONS: dict[int, str] = {
    0: "reason_not_specified",
    1: "congestion_at_tsap",
    2: "session_not_attached_to_tsap",
    3: "address_unknown",
    128: "normal_disconnect",
    129: "remote_congestion",
    130: "negotiation_failed",
    131: "duplicate_source_reference",
    132: "mismatched_references",
    133: "protocol_error",
    135: "reference_overflow",
    136: "connection_refused_on_network",
    138: "header_length_invalid",
}
REJECT_CAUSES: dict[int, str] = {
    0: "reason_not_specified",
    1: "invalid_parameter_code",
    2: "invalid_tpdu_type",
    3: "invalid_parameter_value",
}
_SIZE, _CALLING, _CALLED = 0xC0, 0xC1, 0xC2
_HEAD = Struct(">BBHBB")
_REFERENCES = Struct(">HH")
_LEAST = {CR: 6, CC: 6, DR: 6, DC: 5, DT: 2, ED: 4, ER: 4}
"""Shortest header of each TPDU, its length octet not counted."""
_PACKET = re.compile(rb"\x03\x00")

Fields = dict[str, Any]
Selectors = tuple[bytes, bytes]
"""Calling and called."""


class Lane(msgspec.Struct):
    """One direction."""

    begun: bool = False
    lost: bool = False
    """The boundary of packets is not known."""
    rest: int = 0
    """Bytes of a packet that is not yet whole."""
    parts: bytearray = msgspec.field(default_factory=bytearray)
    """Data units of a message whose last one has not come."""
    too_long: bool = False
    cut: int = 0
    """Bytes of a message of which more is missing."""


class Cotp:
    """One conversation on ISO transport; a protocol fills in `messages`."""

    protocol = ""

    def __init__(self, session: Session) -> None:
        self.malformed = 0
        self.skipped_bytes = 0
        """Passed over in search of the next packet."""
        self.pairs = Pairs(session)
        self.base: Fields = {
            **session.base,
            "network.protocol": self.protocol,
            "event.category": ["process_control"],
        }
        self._lanes = (Lane(), Lane())

    def messages(self, data: bytes, from_client: bool, time_s: float) -> list[Fields]:
        """Events of one whole message."""
        raise NotImplementedError

    def selected(self, calling: bytes, called: bytes) -> Fields:
        """What the selectors of a connection say to this protocol, for `cw.vendor`."""
        return {}

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        found: list[Fields] = []
        if lane.cut:
            found.append(self.unreadable(_missing(lane)))
        at, end = 0, len(data)
        if not lane.begun and data:
            # A capture may begin with a keep-alive, which repeats one byte as zero (RFC 1122,
            # section 4.2.3.6).
            at, lane.begun = int(data[0] == 0), True
        while end - at >= 6:
            if lane.lost:
                start, lane.lost = _next_packet(data, at)
                self.skipped_bytes += start - at
                at = start
                if lane.lost:
                    break
            _, _, length, header, code = _HEAD.unpack_from(data, at)
            why = packet_fault(data, at)
            if why:
                found.append(self.unreadable(why))
                lane.lost = True
                self.skipped_bytes += 1
                at += 1
                continue
            stop = at + length
            if stop > end:
                break
            if code & 0xF0 == DT:
                whole = self._unit(lane, data, at, stop, found)
                if whole:
                    found += self.messages(whole, from_client, time_s)
            else:
                found.append(self._other(data[at + 4 : at + 5 + header], from_client, time_s))
            at = stop
        lane.rest = 0 if lane.lost else end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        self.skipped_bytes += lane.rest
        lane.cut += len(lane.parts) + lane.rest
        lane.parts.clear()
        lane.lost, lane.rest, lane.too_long = True, 0, False

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; commands that nobody answered, and messages that were cut."""
        found = self.pairs.end(f"{self.protocol}_unanswered")
        for lane, who in zip(self._lanes, ("server", "client"), strict=True):
            if lane.cut:
                found.append(self.unreadable(_missing(lane)))
            open_bytes = lane.rest + len(lane.parts)
            if open_bytes:
                why = f"the conversation ended {open_bytes} bytes into a message of the {who}"
                found.append(self.unreadable(why))
                lane.rest = 0
                lane.parts.clear()
        return found

    def unreadable(self, why: str) -> Fields:
        """The event of what cannot be read."""
        self.malformed += 1
        return unreadable(self.base, why)

    def _unit(self, lane: Lane, data: bytes, at: int, stop: int, found: list[Fields]) -> bytes:
        """Take one data unit; the whole message with its last one, else nothing."""
        start = at + 5 + data[at + 4]
        is_last = data[at + 6] > 127
        if is_last and not lane.parts and not lane.too_long:
            return data[start:stop]
        if not lane.too_long:
            lane.parts += data[start:stop]
            if len(lane.parts) > MESSAGE_MAX:
                why = f"a message of more than {MESSAGE_MAX} bytes without an end"
                found.append(self.unreadable(why))
                lane.too_long = True
                lane.parts.clear()
        if not is_last:
            return b""
        whole = bytes(lane.parts)
        lane.parts.clear()
        lane.too_long = False
        return whole

    def _other(self, tpdu: bytes, from_client: bool, time_s: float) -> Fields:
        """Event of a TPDU that carries no message."""
        code = tpdu[1] & 0xF0
        name, direction, outcome = TPDUS[code]
        fields: Fields = {
            **self.base,
            "event.action": f"cotp_{name}",
            "ot.operation": "session",
            "ot.is_command": False,
            "ot.direction": direction,
            "ot.function.code": f"0x{code:02x}",
            "ot.function.name": name,
        }
        if outcome:
            fields["event.outcome"] = outcome
        if code in (CR, CC):
            self._connection(tpdu, code, from_client, fields, time_s)
        elif code == DR:
            reason = DISCONNECT_REASONS.get(tpdu[6]) or f"reason_{tpdu[6]}"
            fields["cw.vendor"] = {"disconnect_reason": reason}
            if tpdu[6] not in (0, 128):
                fields |= {"event.outcome": "failure", "ot.exception": reason}
        elif code == ER:
            fields["ot.exception"] = REJECT_CAUSES.get(tpdu[4]) or f"cause_{tpdu[4]}"
        return fields

    def _connection(
        self, tpdu: bytes, code: int, from_client: bool, fields: Fields, time_s: float
    ) -> None:
        said: Fields = {}
        calling = called = b""
        for kind, value in _parameters(tpdu):
            if kind == _SIZE and value and 7 <= value[0] <= 16:
                said["tpdu_bytes"] = 1 << value[0]
            elif kind == _CALLING:
                calling = value[:SELECTOR_MAX]
            elif kind == _CALLED:
                called = value[:SELECTOR_MAX]
        said |= {"calling_tsap": _selector(calling), "called_tsap": _selector(called)}
        said |= self.selected(calling, called)
        if tpdu[6] >> 4:
            said["class"] = tpdu[6] >> 4
        fields["cw.vendor"] = said
        destination, source = _REFERENCES.unpack_from(tpdu, 2)
        if code == CR:
            self.pairs.ask(("cotp", from_client, source), fields, time_s)
        elif self.pairs.waits(key := ("cotp", not from_client, destination)):
            # While a conversation is being recognised its confirm may come before its request.
            self.pairs.answer(key, fields, time_s)


def _missing(lane: Lane) -> str:
    missing, lane.cut = lane.cut, 0
    return f"bytes are missing behind {missing} bytes of a message"


def _selector(value: bytes) -> str:
    """As text if it is some, else in hex."""
    text = printable(value)
    return text if len(value) > 2 and "." not in text.strip(".") else value.hex()


def _parameters(tpdu: bytes) -> Iterator[tuple[int, bytes]]:
    """Variable part of a connection request or confirm."""
    at = 7
    while at + 2 <= len(tpdu) and at + 2 + tpdu[at + 1] <= len(tpdu):
        yield tpdu[at], tpdu[at + 2 : at + 2 + tpdu[at + 1]]
        at += 2 + tpdu[at + 1]


def packet_fault(data: bytes, at: int) -> str:
    """Say what is wrong with the head of a packet, of which six bytes are there."""
    version, reserved, length, header, code = _HEAD.unpack_from(data, at)
    if version != 3 or reserved:
        return f"a packet begins with 0300, not {version:02x}{reserved:02x}"
    least = _LEAST.get(code & 0xF0)
    if least is None:
        return f"transport code 0x{code:02x} is not defined"
    if header < least:
        return f"a transport header 0x{code:02x} of {header} bytes, it has at least {least}"
    if length < 5 + header:
        return f"a packet of {length} bytes has no room for its header of {header}"
    return ""


def _next_packet(data: bytes, at: int) -> tuple[int, bool]:
    """Where the next packet begins, and True if that is not certain yet."""
    end = len(data)
    for match in _PACKET.finditer(data, at):
        start = match.start()
        if end - start < 6:
            return start, True
        if packet_fault(data, start):
            continue
        stop = start + int.from_bytes(data[start + 2 : start + 4])
        if stop - start > LOST_PACKET_MAX:
            continue
        if stop > end:
            return start, True
        if end - stop < 6 or not packet_fault(data, stop):
            return start, False
    return max(at, end - 1), True


def first_of(
    head: bytes, by_selectors: Callable[[bytes, bytes], bool], by_data: Callable[[bytes], bool]
) -> bool:
    """True if the first packets are those of a protocol.

    Its first message decides; until there is one, the selectors of the connection may.

    Args:
        head: First bytes of a direction.
        by_selectors: Whether calling and called selector are such as only this protocol has.
        by_data: Whether a first data unit is one of this protocol.
    """
    at, end = 0, len(head)
    chosen: Selectors | None = None
    while end - at >= 7 and not packet_fault(head, at):
        _, _, length, header, code = _HEAD.unpack_from(head, at)
        if code & 0xF0 == DT:
            return header == 2 and by_data(head[at + 7 : at + length])
        if code not in (CR, CC) or at + length > end or at + 5 + header != at + length:
            return False
        found = dict(_parameters(head[at + 4 : at + 5 + header]))
        chosen = (found.get(_CALLING, b""), found.get(_CALLED, b""))
        at += length
    return chosen is not None and at == end and by_selectors(*chosen)
