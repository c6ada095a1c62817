"""GENISYS: the code line between a control office and its field stations (signals and switches).

Understood: all messages with their escapes and checksums. A control message gives one event for
each control byte, any other one event a message; answers are joined to the request of their
station. A checksum may start at 0xFFFF, as on the line, or at 0, and may stand unescaped, as some
stations send it.

Not understood: what a bit of an indication or control byte means; that is in the station's drawing.

References:
    Union Switch & Signal, GENISYS Serial Communication Protocol, sections 5.1.1 (message format) to
    5.1.9 (control characters). TCP port 10001 is custom, not assigned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import Pairs, broken, say, turned, unreadable

GENISYS = LogSource(category="ot_protocol", service="genisys")

MESSAGE_MAX = 1_100
"""Bytes of a message: all 256 pairs of address and data, both escaped."""

Fields = dict[str, Any]


class Kind(msgspec.Struct, frozen=True):
    """What a header character says."""

    name: str
    operation: str
    is_answer: bool = False
    is_command: bool = False
    point: str = ""
    """What its pairs of address and data are; empty: it has none."""
    is_secure: bool = True
    """Whether it has a checksum."""


KINDS: dict[int, Kind] = {
    0xF1: Kind("acknowledge", "session", is_answer=True, is_secure=False),
    0xF2: Kind("indication_data", "report", is_answer=True, point="indication"),
    0xF3: Kind("control_checkback", "select", is_answer=True, point="control"),
    0xF9: Kind("common_control", "control", is_command=True, point="control"),
    0xFA: Kind("acknowledge_and_poll", "read"),
    0xFB: Kind("poll", "read"),
    0xFC: Kind("control_data", "control", is_command=True, point="control"),
    0xFD: Kind("recall", "read"),
    0xFE: Kind("execute", "control", is_command=True),
}
"""Header characters (section 5.1.9)."""
POLL, COMMON_CONTROL = 0xFB, 0xF9
ESCAPE, TERMINATOR = 0xF0, 0xF6
MODE_BYTE = 0xE0
"""Address of the byte that configures the station (section 5.1.6)."""
BROADCAST = 0

_STARTS = bytes(KINDS)
_START = re.compile(b"[%b]" % re.escape(_STARTS))
_SEEDS = (0xFFFF, 0)
_ALWAYS: Fields = {
    "network.protocol": "genisys",
    "event.category": ["process_control"],
}

# The remainder of every byte for the polynomial x¹⁶ + x¹⁵ + x² + 1, lowest bit first.
_TABLE: list[int] = []
for _remainder in range(256):
    for _ in range(8):
        _remainder = _remainder >> 1 ^ (0xA001 if _remainder & 1 else 0)
    _TABLE.append(_remainder)


class Message(msgspec.Struct, frozen=True, gc=False):
    """What stands between a header character and its terminator."""

    stop: int
    body: bytes = b""
    """Station and pairs, without escapes."""
    checksum: int = -1
    fault: str = ""


class Tally(msgspec.Struct):
    """What became of the bytes of a conversation; for tests and for health."""

    messages: int = 0
    malformed: int = 0
    skipped_bytes: int = 0
    """Passed over in search of the next message."""


class Lane(msgspec.Struct):
    """One direction."""

    lost: bool = False
    """The boundary of messages is not known."""
    rest: int = 0
    """Bytes of a message that is not yet whole."""


@decoder("genisys", GENISYS, ports=(10001,), begins=_STARTS)
class Genisys:
    """One conversation of a control office with the stations behind one connection."""

    def __init__(self, session: Session) -> None:
        self.tally = Tally()
        base = {**session.base, **_ALWAYS}
        self._bases = (base, turned(base))
        self._pairs = Pairs(session)
        self._lanes = (Lane(), Lane())
        self._made: dict[int, Fields] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; whole messages, one of them with its checksum."""
        at, secured = 0, False
        while at < len(head) and (found := _message(head, at)):
            if found.fault:
                return False
            secured = secured or found.checksum >= 0
            at = found.stop
        return secured and (at == len(head) or head[at] in KINDS)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        found: list[Fields] = []
        at, end = 0, len(data)
        while at < end:
            message = _message(data, at)
            if message is None:
                break
            if message.fault:
                # Told once; what follows is passed over in silence until a message is whole.
                if not lane.lost:
                    found.append(self._unreadable(message))
                lane.lost = True
                start = _next_start(data, at + 1, message.stop)
                self.tally.skipped_bytes += start - at
                at = start
                continue
            lane.lost = False
            self._tell(data[at], message, from_client, time_s, found)
            at = message.stop
        lane.rest = 0 if lane.lost else end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        self.tally.skipped_bytes += lane.rest
        lane.lost, lane.rest = True, 0

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; controls that no station answered, and messages that were cut."""
        found = self._pairs.end("genisys_unanswered")
        for lane, who in zip(self._lanes, ("server", "client"), strict=True):
            if lane.rest:
                self.tally.malformed += 1
                why = f"the conversation ended {lane.rest} bytes into a message of the {who}"
                found.append(unreadable(self._bases[0], why))
                lane.rest = 0
        return found

    def _tell(
        self, code: int, message: Message, from_client: bool, time_s: float, found: list[Fields]
    ) -> None:
        self.tally.messages += 1
        kind, body = KINDS[code], message.body
        station = body[0]
        is_turned = not kind.is_answer and not from_client
        fields = {**self._constants(code, is_turned), "ot.unit": str(station)}
        if message.checksum >= 0:
            fields["cw.vendor"] = {"checksum": f"0x{message.checksum:04x}"}
        if kind.is_answer:
            asked = self._pairs.answer(station, fields, time_s)
            if asked:
                fields["cw.vendor"] = {
                    **fields.get("cw.vendor", {}),
                    "answers": asked["ot.function.name"],
                }
        elif station != BROADCAST and code != COMMON_CONTROL:
            self._pairs.ask(station, fields, time_s)
        pairs = body[1:]
        if not kind.point and pairs:
            self._fault(fields, f"{len(pairs)} bytes of data in a {kind.name}")
        elif len(pairs) & 1:
            self._fault(fields, "an address without its data")
        elif kind.is_command and pairs:
            found += [_of_pair(fields, *pairs[at : at + 2]) for at in range(0, len(pairs), 2)]
            return
        elif kind.point and pairs:
            _add_pairs(fields, pairs)
        elif kind.point:
            say(fields, f"a {kind.name} without data")
        found.append(fields)

    def _constants(self, code: int, is_turned: bool) -> Fields:
        key = code << 1 | is_turned
        made = self._made.get(key)
        if made is None:
            kind = KINDS[code]
            made = {
                **self._bases[is_turned],
                "event.action": f"genisys_{kind.name}",
                "ot.function.code": f"0x{code:02x}",
                "ot.function.name": kind.name,
                "ot.operation": kind.operation,
                "ot.is_command": kind.is_command,
                "ot.direction": "response" if kind.is_answer else "request",
            }
            if kind.is_answer:
                made["event.outcome"] = "success"
            if kind.point:
                made["ot.point.type"] = kind.point
            self._made[key] = made
        return made

    def _fault(self, fields: Fields, why: str) -> None:
        self.tally.malformed += 1
        broken(fields, why)

    def _unreadable(self, message: Message) -> Fields:
        self.tally.malformed += 1
        fields = unreadable(self._bases[0], message.fault)
        if message.body:
            fields["ot.unit"] = str(message.body[0])
        return fields


def _of_pair(fields: Fields, address: int, value: int) -> Fields:
    """One control byte; that of the mode configures the station."""
    own = {
        **fields,
        "ot.point.address": address,
        "ot.point.count": 1,
        "ot.value": float(value),
    }
    if address == MODE_BYTE:
        own["ot.point.type"] = "mode"
        own["ot.operation"] = "config"
    return own


def _add_pairs(fields: Fields, pairs: bytes) -> None:
    fields["ot.point.address"] = pairs[0]
    fields["ot.point.count"] = len(pairs) // 2
    if len(pairs) == 2:
        fields["ot.value"] = float(pairs[1])
    fields["ot.value_raw"] = ",".join(
        f"{address}={value}" for address, value in zip(pairs[::2], pairs[1::2], strict=True)
    )


# Messages: where they end, and whether their checksum is right.


def _message(data: bytes, at: int) -> Message | None:
    """The message at `at`; None if it is not whole yet."""
    kind = KINDS.get(data[at])
    if kind is None:
        begins = _START.search(data, at)
        stop = begins.start() if begins else len(data)
        return Message(stop, fault=f"a message begins with 0xf1 to 0xfe, not 0x{data[at]:02x}")
    first = data.find(TERMINATOR, at + 1, at + MESSAGE_MAX)
    if first < 0:
        if len(data) - at < MESSAGE_MAX:
            return None
        return Message(at + MESSAGE_MAX, fault=f"no end of a {kind.name} in {MESSAGE_MAX} bytes")
    # The terminator may be a byte of an unescaped checksum; then another one follows.
    for stop in (first, first + 1, first + 2):
        if stop >= len(data):
            return None
        if data[stop] == TERMINATOR:
            found = _secured(data[at : at + 1], data[at + 1 : stop], stop + 1)
            if found is None and stop == first:
                found = _unsecured(data[at], data[at + 1 : stop], stop + 1)
            if found is not None:
                return found
    body = _unescaped(data[at + 1 : first]) or b""
    return Message(first + 1, body[:1], fault=f"a {kind.name} with a wrong checksum or escape")


def _secured(header: bytes, given: bytes, stop: int) -> Message | None:
    """A message whose last two bytes are its checksum, escaped or not."""
    if len(given) < 3 or header[0] == 0xF1:
        return None
    whole = _unescaped(given)
    if whole is not None and (found := _checked(header, whole[:-2], whole[-2:], stop)):
        return found
    body = _unescaped(given[:-2])
    return _checked(header, body, given[-2:], stop) if body else None


def _checked(header: bytes, body: bytes, tail: bytes, stop: int) -> Message | None:
    checksum = int.from_bytes(tail, "little")
    if body and any(crc16(header + body, seed) == checksum for seed in _SEEDS):
        return Message(stop, body, checksum)
    return None


def _unsecured(header: int, given: bytes, stop: int) -> Message | None:
    """An acknowledgement, or a poll without a checksum."""
    body = _unescaped(given)
    if body is None or len(body) != 1 or (KINDS[header].is_secure and header != POLL):
        return None
    if header == POLL and any(crc16(bytes((header, body[0])), seed) & 255 == TERMINATOR
                              for seed in _SEEDS):  # fmt: skip
        return None
    return Message(stop, body)


def _unescaped(given: bytes) -> bytes | None:
    """Bytes without their escapes (section 5.1.1.1), None if one is wrong."""
    if not given or max(given) < ESCAPE:
        return given
    found = bytearray()
    escaped = False
    for byte in given:
        if escaped:
            if byte > 15:
                return None
            found.append(ESCAPE + byte)
            escaped = False
        elif byte == ESCAPE:
            escaped = True
        elif byte > ESCAPE:
            return None
        else:
            found.append(byte)
    return None if escaped else bytes(found)


@lru_cache(maxsize=4_096)
def crc16(data: bytes, seed: int) -> int:
    """Checksum of a message without escapes; most of a line's messages are always the same."""
    for byte in data:
        seed = _TABLE[(seed ^ byte) & 255] ^ seed >> 8
    return seed


def _next_start(data: bytes, at: int, stop: int) -> int:
    """Where another message may begin within one that is none, or else behind it.

    It is the last header character there: before that one, none has a terminator of its own. The
    two bytes before a terminator may be those of a checksum.
    """
    inner = stop - 3 if data[stop - 1] == TERMINATOR else stop
    return next((place for place in range(inner - 1, at - 1, -1) if data[place] in KINDS), stop)
