"""IEC 61850 GOOSE: what protection devices tell each other at once, and what is odd about it.

One event for every state a control block tells; its retransmissions are counted in the next event
(`cw.vendor.frames`: frames since the last one, this one included), so that the frames of all events
are the frames that were seen.

Understood: the header (APPID, simulation), all fields of the message, all values of the data set
and which of them changed. Events of their own are: a control block seen for the first time
(`goose_first_seen`), a new state (`goose_state_change`), states that nobody saw
(`goose_state_jump`), a state number that falls as after a restart or in a replay
(`goose_state_fell`), lost retransmissions (`goose_sequence_gap`), a sequence number that falls
(`goose_sequence_fell`), values that change without a new state (`goose_data_changed`), simulation
switched on or off (`goose_simulation_changed`), another configuration revision, data set, id or
APPID (`goose_configuration_changed`), a message later than the one before allowed (`goose_late`),
and every five minutes the count of what was repeated (`goose_retransmitted`).

Not understood: the names of the values, which only the substation's SCL file knows; signatures of
IEC 62351-6, which are not verified; routable GOOSE over UDP (IEC 61850-90-5); two senders of one
control block, since a conversation is what one sender says: rules compare senders.

References:
    IEC 61850-8-1:2011, annex A (goosePdu, Data) and annex C (header); IEC 61850-7-2:2010, 18.2.3
    (stNum, sqNum); ISO 9506-2 (floating point and time of day).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.ber import BerError, Element, elements, integer
from collectors.packets.decoders.iec61850 import REPORT, frame_of, is_frame
from collectors.packets.decoders.pairs import printable, unreadable

GOOSE = LogSource(category="ot_protocol", service="goose")

ETHERTYPE = 0x88B8
BLOCKS_MAX = 64
"""Control blocks of one sender that are followed; the one that was silent longest gives way."""
VALUES_SHOWN, CHANGES_SHOWN = 128, 16
TEXT_MAX = 256
"""Characters of a name or of a value that are read; the standard allows 129."""
SHAPE_BYTES = 64
"""Header and reference of the control block, by which its last frame is found."""
SUMMARY_S = 300.0
"""After so long without an event what was repeated is said."""
LAST = 0xFFFF_FFFF
"""Behind it numbers begin again at 0 or 1."""
_DEPTH_MAX = 4

_PDU, _ALL_DATA, _ARRAY, _STRUCTURE = 0x61, 0xAB, 0xA1, 0xA2

_TEXTS = {0x80: "gocb_ref", 0x82: "dat_set", 0x83: "go_id"}
_NUMBERS = {
    0x81: "ttl_ms",
    0x85: "st_num",
    0x86: "sq_num",
    0x87: "simulation",
    0x88: "conf_rev",
    0x89: "nds_com",
    0x8A: "entries",
}
_REQUIRED = ("gocb_ref", "st_num", "sq_num")
_CONFIGURATION = ("conf_rev", "dat_set", "go_id", "app_id")
_TIME, _SEQUENCE = 0x84, 0x86

Fields = dict[str, Any]


class Message(NamedTuple):
    """One goosePdu."""

    own: Fields
    """Its fields by name."""
    data: bytes
    """`allData`, as it came."""
    state_time: bytes
    number_at: int
    """Where `sqNum` stands in the frame, and what is behind it."""
    number_stop: int


class Block:
    """What a control block told last."""

    __slots__ = ("frames", "message", "said_s", "shape", "time_s", "values")

    def __init__(self, message: Message, time_s: float) -> None:
        self.message = message
        self.shape: Shape | None = None
        """Of its last frame that was read."""
        self.values = _values(message.data)
        """As text, of the last event."""
        self.time_s = self.said_s = time_s
        self.frames = 0
        """Since the last event."""


class Shape(NamedTuple):
    """A frame without its `sqNum`: what a repetition looks like, and most frames are one."""

    head: bytes
    tail: bytes
    length: int
    block: Block


@decoder("goose", GOOSE, transport="link", ethertypes=(ETHERTYPE,))
class Goose:
    """All control blocks of one sender."""

    def __init__(self, session: Session) -> None:
        self._base: Fields = {**session.base, **REPORT}
        self._blocks: dict[str, Block] = {}
        self._shapes: dict[bytes, Shape] = {}
        """By how a frame begins; forgotten when there are too many."""

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a header whose length fits and a goosePdu behind it."""
        return is_frame(head, _PDU)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        shape = self._shapes.get(data[:SHAPE_BYTES])
        if shape is not None and self._is_repetition(shape, data, time_s):
            return len(data), ()
        try:
            message = _message(data)
        except BerError as error:
            return len(data), [self._unreadable(str(error))]
        name = message.own["gocb_ref"]
        found: list[Fields] = []
        block = self._blocks.pop(name, None)
        if block is None:
            if len(self._blocks) >= BLOCKS_MAX:
                oldest = self._blocks.pop(next(iter(self._blocks)))
                found += self._summary(oldest)
            block = Block(message, time_s)
            said = [("goose_first_seen", "")]
        else:
            said = _news(block, message, time_s)
        self._blocks[name] = block
        before, block.message, block.time_s = block.message, message, time_s
        block.frames += 1
        self._learn(data, message, block)
        if said:
            found += self._tell(block, before, said)
            block.said_s = time_s
        elif abs(time_s - block.said_s) >= SUMMARY_S:
            found += self._summary(block)
            block.said_s = time_s
        return len(data), found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; every frame is whole by itself."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; what was repeated since the last event of each block."""
        blocks = list(self._blocks.values())
        self._blocks.clear()
        self._shapes.clear()
        return [fields for block in blocks for fields in self._summary(block)]

    def _learn(self, data: bytes, message: Message, block: Block) -> None:
        if len(self._shapes) >= BLOCKS_MAX:
            self._shapes.clear()
        at, stop = message.number_at, message.number_stop
        block.shape = Shape(data[:at], data[stop:], len(data), block)
        self._shapes[data[:SHAPE_BYTES]] = block.shape

    def _is_repetition(self, shape: Shape, data: bytes, time_s: float) -> bool:
        """Count a frame that says what the one before said, in time and in order."""
        head, tail, length, block = shape
        if block.shape is not shape:
            return False
        stop = length - len(tail)
        if len(data) != length or not data.startswith(head) or not data.startswith(tail, stop):
            return False
        own = block.message.own
        number, name = int.from_bytes(data[len(head) : stop]), own["gocb_ref"]
        if number not in (own["sq_num"], own["sq_num"] + 1) or self._blocks.get(name) is not block:
            return False
        waited_s = time_s - block.time_s
        if waited_s * 1e3 > own.get("ttl_ms", 0) or abs(time_s - block.said_s) >= SUMMARY_S:
            return False
        self._blocks[name] = self._blocks.pop(name)
        own["sq_num"] = number
        block.time_s = time_s
        block.frames += 1
        return True

    def _tell(self, block: Block, before: Message, said: list[tuple[str, str]]) -> list[Fields]:
        """One event for each thing that is new; the first has the frames since the last event."""
        message = block.message
        was = block.values
        if message.data != before.data:
            block.values = _values(message.data)
        values = block.values
        changed = [
            f"{at}: {old} > {new}"
            for at, (old, new) in enumerate(zip(was, values, strict=False))
            if old != new
        ]
        found = []
        for action, why in said:
            fields = self._fields(block, action)
            fields["ot.value_raw"] = ",".join(values[:VALUES_SHOWN])
            if why:
                fields["event.reason"] = why
            if changed:
                fields["cw.vendor"]["changed"] = ", ".join(changed[:CHANGES_SHOWN])
            if start := _time(message.state_time):
                fields["event.start"] = start
            found.append(fields)
        return found

    def _summary(self, block: Block) -> list[Fields]:
        if not block.frames:
            return []
        return [self._fields(block, "goose_retransmitted") | {"event.kind": "metric"}]

    def _fields(self, block: Block, action: str) -> Fields:
        own = block.message.own
        vendor = {**own, "frames": block.frames}
        block.frames = 0
        fields = {
            **self._base,
            "event.action": action,
            "event.sequence": own["sq_num"],
            "ot.unit": own["gocb_ref"],
            "cw.vendor": vendor,
        }
        if "entries" in own:
            fields["ot.point.count"] = own["entries"]
        return fields

    def _unreadable(self, why: str) -> Fields:
        return unreadable(self._base, why) | {"cw.vendor": {"frames": 1}}


# ------------------------------------------------------------------------- what is new


def _news(block: Block, message: Message, time_s: float) -> list[tuple[str, str]]:
    """What this message says that the one before did not: action and reason of each thing."""
    was, now = block.message.own, message.own
    found = []
    if was["simulation"] != now["simulation"]:
        state = "is simulated now" if now["simulation"] else "is simulated no more"
        found.append(("goose_simulation_changed", f"what the control block tells {state}"))
    for name in _CONFIGURATION:
        if was.get(name) != now.get(name):
            why = f"{name} was {was.get(name)}, it is {now.get(name)}"
            found.append(("goose_configuration_changed", why))
    found += _numbers(was, now, message.data != block.message.data)
    waited_ms, allowed_ms = (time_s - block.time_s) * 1e3, was.get("ttl_ms", 0)
    if allowed_ms and waited_ms > allowed_ms:
        why = f"{waited_ms:.0f} ms after the last one, which was to be followed in {allowed_ms} ms"
        found.append(("goose_late", why))
    return found


def _numbers(was: Fields, now: Fields, has_other_data: bool) -> list[tuple[str, str]]:
    state, last = now["st_num"], was["st_num"]
    if state == last:
        return _sequence(was["sq_num"], now["sq_num"], has_other_data)
    if state == last + 1 or (last == LAST and state < 2):
        return [("goose_state_change", "")]
    if state > last:
        why = f"state {last} was followed by {state}: {state - last - 1} were not seen"
        return [("goose_state_jump", why)]
    again = ", as after a restart of the device" if state < 2 and now["sq_num"] < 2 else ""
    return [("goose_state_fell", f"state {last} was followed by {state}{again}")]


def _sequence(last: int, number: int, has_other_data: bool) -> list[tuple[str, str]]:
    found = []
    if has_other_data:
        found.append(("goose_data_changed", "values changed without a new state"))
    if number > last + 1:
        why = f"{number - last - 1} repetitions between {last} and {number} were not seen"
        found.append(("goose_sequence_gap", why))
    elif number < last and not (last == LAST and number < 2):
        found.append(("goose_sequence_fell", f"repetition {last} was followed by {number}"))
    return found


# ------------------------------------------------------------------------- reading


def _message(data: bytes) -> Message:
    """Read one frame.

    Raises:
        BerError: it is none; the text says why.
    """
    frame = frame_of(data, _PDU, "goosePdu", "GOOSE header")
    own: Fields = {"app_id": frame.app_id, "simulation": False}
    values, state_time, number = b"", b"", (0, 0)
    for one in elements(data, frame.pdu.at, frame.pdu.stop):
        tag, at, stop = one
        if tag in _TEXTS:
            own[_TEXTS[tag]] = printable(data[at:stop], TEXT_MAX)
        elif tag in _NUMBERS:
            own[_NUMBERS[tag]] = _number(_NUMBERS[tag], data[at:stop])
            number = (at, stop) if tag == _SEQUENCE else number
        elif tag == _TIME:
            state_time = data[at:stop]
        elif tag == _ALL_DATA:
            values = data[at:stop]
    for name in _REQUIRED:
        if name not in own:
            raise BerError(f"the message has no {name}")
    # Edition 1 has it in the message as "test", edition 2 in the header too.
    own["simulation"] = bool(own["simulation"]) or frame.is_simulated
    if "nds_com" in own:
        own["nds_com"] = own["nds_com"] > 0
    return Message(own, values, state_time, *number)


def _number(name: str, raw: bytes) -> int:
    """An INT32U, which some write without its leading zero; or a boolean.

    Raises:
        BerError: it is too large for one, or empty.
    """
    value = int.from_bytes(raw[:8])
    if not 0 < len(raw) <= 5 or value > LAST:
        raise BerError(f"{name} is {len(raw)} bytes long, no number of 32 bits")
    return value


def _values(data: bytes) -> list[str]:
    """All values of a data set as text, structures flattened; what is cut is said."""
    found: list[str] = []
    try:
        _collect(data, 0, len(data), 0, found)
    except BerError as error:
        found.append(f"? {error}")
    return found


def _collect(data: bytes, at: int, stop: int, depth: int, found: list[str]) -> None:
    for one in elements(data, at, stop):
        if one.tag in (_ARRAY, _STRUCTURE) and depth < _DEPTH_MAX:
            _collect(data, one.at, one.stop, depth + 1, found)
        else:
            found.append(_value(data, one))


def _value(data: bytes, one: Element) -> str:
    read = _VALUES.get(one.tag)
    raw = data[one.at : one.stop]
    try:
        return (read(raw) if read else raw.hex())[:TEXT_MAX]
    except (ValueError, struct.error):
        return raw.hex()[:TEXT_MAX]


def _bits(raw: bytes) -> str:
    unused = raw[0] if raw else 0
    if unused > 7 or len(raw) < 2:
        return raw.hex()
    size = 8 * (len(raw) - 1)
    return f"{int.from_bytes(raw[1:]):0{size}b}"[: size - unused]


def _real(raw: bytes) -> str:
    """Width of the exponent, then IEEE 754."""
    kind = {5: ">f", 9: ">d"}[len(raw)] if len(raw) in (5, 9) else ""
    return f"{struct.unpack(kind, raw[1:])[0]:.7g}" if kind else raw.hex()


def _time(raw: bytes) -> datetime | None:
    """UtcTime: seconds, a fraction in 24 bits, quality."""
    if len(raw) != 8:
        return None
    seconds, fraction = struct.unpack(">II", raw)
    return datetime.fromtimestamp(seconds + (fraction >> 8) / (1 << 24), UTC)


_VALUES: dict[int, Callable[[bytes], str]] = {
    0x83: lambda raw: "true" if any(raw) else "false",
    0x84: _bits,
    0x85: lambda raw: str(integer(raw, 0, len(raw))),
    0x86: lambda raw: str(int.from_bytes(raw)),
    0x87: _real,
    **dict.fromkeys((0x8A, 0x90), lambda raw: printable(raw, TEXT_MAX)),
    0x91: lambda raw: f"{_time(raw):%Y-%m-%dT%H:%M:%S.%fZ}" if len(raw) == 8 else raw.hex(),
}
"""Tag → value of a data set as text (IEC 61850-8-1, annex A.2, Data)."""
