"""BACnet/IP: building automation, one event a message, requests and answers joined by invoke id.

Understood: BVLC functions (foreign devices, broadcast tables), network messages and routing, every
confirmed and unconfirmed service by name; object, property, priority and value of reads, writes
and notifications; device communication control and reinitialise with their state and whether a
password was given (never the password); errors, rejects and aborts. Each property of a write to
several is an event of its own.

Not understood: segments behind the first one of a message (they are counted), values inside lists
and structures beyond the first, secured messages (clause 24), BACnet/SC and MS/TP.

References:
    ANSI/ASHRAE 135-2020, clauses 6 (network layer), 13 to 17 (services), 20 (encoding), annex J.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from datetime import date
from struct import Struct
from typing import Any, NamedTuple

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.bacnet_names import (
    ABORTS,
    BVLC,
    BVLC_RESULTS,
    COMMUNICATION,
    CONFIRMED,
    ERROR_CLASSES,
    ERRORS,
    NETWORK,
    OBJECTS,
    PROPERTIES,
    REINITIALIZE,
    REJECTS,
    UNCONFIRMED,
    Service,
)
from collectors.packets.decoders.pairs import (
    Fields,
    Pairs,
    broken,
    printable,
    say,
    turned,
    unreadable,
)

BACNET = LogSource(category="ot_protocol", service="bacnet")

TAGS_MAX = 512
"""Tags of one message that are read."""
WRITES_MAX = 64
"""Written properties of one message that are events of their own."""

_OPEN, _CLOSE = 1, 2
_HEAD = Struct(">BBH")
_U16 = Struct(">H")
_F32 = Struct(">f")
_F64 = Struct(">d")
_NPDU = frozenset((0x04, 0x09, 0x0A, 0x0B))
"""BVLC functions that carry a network message."""
_ALWAYS: Fields = {
    "network.protocol": "bacnet",
    "event.category": ["process_control"],
}


class Tag(NamedTuple):
    """One tag (clause 20.2.1); `data[at:stop]` is its contents."""

    number: int
    context: bool
    kind: int
    """0 a value, else `_OPEN` or `_CLOSE`."""
    at: int
    stop: int


class Tally(msgspec.Struct):
    """What became of the messages of a conversation; for tests and for health."""

    confirmed: int = 0
    unconfirmed: int = 0
    simple_acks: int = 0
    complex_acks: int = 0
    segment_acks: int = 0
    errors: int = 0
    rejects: int = 0
    aborts: int = 0
    segments: int = 0
    """Messages that are parts of a larger one."""
    network: int = 0
    bvlc: int = 0
    """BVLC messages that carry nothing but themselves."""
    malformed: int = 0


@decoder("bacnet", BACNET, transport="udp", ports=(47808,), begins=b"\x81")
class Bacnet:
    """One conversation of BACnet/IP; either end may ask."""

    def __init__(self, session: Session) -> None:
        self.tally = Tally()
        self.pairs = Pairs(session)
        base = {**session.base, **_ALWAYS}
        self._bases = (turned(base), base)
        self._made: dict[tuple[bool, str, int], Fields] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; type, function, the whole length, and the network layer's version."""
        if (
            len(head) < 4
            or head[0] != 0x81
            or head[1] > 0x0C
            or _U16.unpack_from(head, 2)[0] != len(head)
        ):
            return False
        at = _npdu_at(head[1])
        if not at:
            return head[1] == 0x0C or len(head) >= 6 or head[1] in (2, 6)
        return len(head) >= at + 3 and head[at] == 1 and not head[at + 1] & 0x50

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        try:
            found = self._message(data, from_client, time_s)
        except (IndexError, ValueError, struct.error) as error:
            found = [
                unreadable(self._bases[from_client], f"the message is cut or malformed: {error}")
            ]
        self.tally.malformed += sum("event.kind" in fields for fields in found)
        return len(data), found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; every datagram stands for itself."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; commands that nobody answered."""
        return self.pairs.end("bacnet_unanswered")

    def _message(self, data: bytes, from_client: bool, time_s: float) -> list[Fields]:
        if len(data) < 4:
            raise ValueError(f"a BVLC header has 4 bytes, not {len(data)}")
        kind, function, length = _HEAD.unpack_from(data)
        if kind != 0x81 or length != len(data) or function not in BVLC:
            why = f"type 0x{kind:02x}, function {function}, length {length} of {len(data)} bytes"
            raise ValueError(why)
        at = _npdu_at(function)
        if not at:
            return [self._bvlc(data, function, from_client, time_s)]
        extra: dict[str, Any] = {}
        if function == 0x04:
            extra["forwarded_from"] = _address(data, 4)
        elif function == 0x09:
            extra["bvlc"] = BVLC[function].name
        return self._npdu(data, at, from_client, time_s, extra)

    # ------------------------------------------------------------------------- BVLC (annex J)

    def _bvlc(self, data: bytes, function: int, from_client: bool, time_s: float) -> Fields:
        self.tally.bvlc += 1
        if function in (0x00, 0x03, 0x07):
            return self._bvlc_answer(data, function, not from_client, time_s)
        fields = self._fields(from_client, "bvlc", function)
        vendor: dict[str, Any] = {}
        if function == 0x05:
            vendor["ttl_s"] = _U16.unpack_from(data, 4)[0]
        elif function == 0x08:
            vendor["entry"] = _address(data, 4)
        elif function == 0x01:
            vendor["entries"] = (len(data) - 4) // 10
            vendor["first_entry"] = _address(data, 4) if len(data) >= 14 else ""
        if vendor:
            fields["cw.vendor"] = vendor
        if function != 0x0C:
            self.pairs.ask((from_client, "bvlc"), fields, time_s)
        return fields

    def _bvlc_answer(self, data: bytes, function: int, asker: bool, time_s: float) -> Fields:
        fields = {**self._fields(asker, "bvlc", function), "ot.direction": "response"}
        asked = self.pairs.answer((asker, "bvlc"), fields, time_s)
        if asked:
            for name in ("event.action", "ot.function.name", "ot.operation"):
                fields[name] = asked[name]
        fields["ot.is_command"] = False
        fields["event.outcome"] = "success"
        if function:
            size = 10
            fields["ot.point.count"] = (len(data) - 4) // size
            return fields
        code = _U16.unpack_from(data, 4)[0]
        fields["event.code"] = f"0x{code:04x}"
        if code:
            fields["event.outcome"] = "failure"
            fields["ot.exception"] = BVLC_RESULTS.get(code) or f"bvlc_result_{code}"
        return fields

    # ------------------------------------------------------------------------- network (clause 6)

    def _npdu(
        self, data: bytes, at: int, from_client: bool, time_s: float, extra: dict[str, Any]
    ) -> list[Fields]:
        version, control = data[at], data[at + 1]
        if version != 1:
            raise ValueError(f"version {version} of the network layer, there is only 1")
        at += 2
        target = sender = b""
        if control & 0x20:
            target, at = _network_address(data, at)
        if control & 0x08:
            sender, at = _network_address(data, at)
        if control & 0x20:
            at += 1  # hop count
        if target:
            extra["destination_network"] = _network_text(target)
        if sender:
            extra["source_network"] = _network_text(sender)
        if control & 0x80:
            self.tally.network += 1
            fields = self._fields(from_client, "network", data[at])
            if data[at] in (0, 1, 2, 3, 4, 5) and len(data) - at >= 3:
                extra["network"] = _U16.unpack_from(data, at + (2 if data[at] == 3 else 1))[0]
            if extra:
                fields["cw.vendor"] = extra
            return [fields]
        if at >= len(data):
            raise ValueError("there is no APDU")
        return self._apdu(data, at, from_client, time_s, extra, (target, sender))

    # ------------------------------------------------------------------------- APDU (clause 20.1)

    def _apdu(
        self, data: bytes, at: int, from_client: bool, time_s: float, extra: dict[str, Any],
        ends: tuple[bytes, bytes],
    ) -> list[Fields]:  # fmt: skip
        kind, tally = data[at] >> 4, self.tally
        target, sender = ends
        if kind == 0:
            tally.confirmed += 1
            return self._confirmed(data, at, from_client, time_s, extra, target)
        if kind == 1:
            tally.unconfirmed += 1
            service = data[at + 1]
            fields = self._fields(from_client, "unconfirmed", service)
            return _told(fields, _content(_UNCONFIRMED.get(service), data, at + 2), extra)
        key = (not from_client, data[at + 1], sender)
        if kind == 3:
            tally.complex_acks += 1
            return [self._complex_ack(data, at, key, time_s, extra)]
        if kind == 4:
            tally.segment_acks += 1
            return [self._segment_ack(data, at, from_client, extra)]
        # What answers and ends: a simple ack, an error, a reject, an abort.
        if kind == 7 and not data[at] & 1:
            key = (from_client, data[at + 1], target)  # the asker gives up
        service = data[at + 2]
        asked = self.pairs.waits(key)
        if kind in (6, 7) and asked:
            service = int(asked["ot.function.code"])
        fields = self._answer(key, service, time_s)
        if kind == 2:
            tally.simple_acks += 1
        elif kind == 5:
            tally.errors += 1
            _failed(fields, *_error(data, at + 3))
        elif kind == 6:
            tally.rejects += 1
            _failed(fields, "reject", REJECTS.get(data[at + 2]) or f"reason_{data[at + 2]}")
        elif kind == 7:
            tally.aborts += 1
            _failed(fields, "abort", ABORTS.get(data[at + 2]) or f"reason_{data[at + 2]}")
        else:
            raise ValueError(f"APDU type {kind}, possible is 0 to 7")
        if kind in (6, 7) and not asked:
            fields["event.action"] = "bacnet_reject" if kind == 6 else "bacnet_abort"
            for name in ("ot.function.code", "ot.function.name", "ot.operation"):
                fields.pop(name, None)
        if extra:
            fields["cw.vendor"] = {**fields.get("cw.vendor", {}), **extra}
        return [fields]

    def _confirmed(
        self, data: bytes, at: int, from_client: bool, time_s: float, extra: dict[str, Any],
        target: bytes,
    ) -> list[Fields]:  # fmt: skip
        flags, invoke = data[at], data[at + 2]
        at += 3
        segment = 0
        if flags & 8:
            self.tally.segments += 1
            segment = data[at]
            extra["segment"] = segment
            extra["more_segments"] = bool(flags & 4)
            at += 2
        service = data[at]
        fields = {
            **self._fields(from_client, "confirmed", service),
            "event.sequence": invoke,
        }
        if segment:
            fields["ot.is_command"] = False
            fields["event.action"] = "bacnet_segment"
            return _told(fields, [{}], extra)
        self.pairs.ask((from_client, invoke, target), fields, time_s)
        contents = _content(_REQUESTS.get(service), data, at + 1, cut=bool(flags & 8))
        found = _told(fields, contents, extra)
        # The answer repeats what was asked for.
        fields.update(found[0])
        return found

    def _complex_ack(
        self, data: bytes, at: int, key: tuple[bool, int, bytes], time_s: float,
        extra: dict[str, Any],
    ) -> Fields:  # fmt: skip
        flags = data[at]
        start, segment = at + 2, 0
        if flags & 8:
            self.tally.segments += 1
            segment = data[start]
            extra["segment"] = segment
            extra["more_segments"] = bool(flags & 4)
            start += 2
        service = data[start]
        if flags & 8 and flags & 4:
            waits = self.pairs.waits(key)
            fields = self._response_fields(key[0], service, key[1])
            if waits:
                fields["ot.link_id"] = waits["ot.link_id"]
        else:
            fields = self._answer(key, service, time_s)
        if segment:
            fields["event.action"] = "bacnet_segment"
            return _told(fields, [{}], extra)[0]
        contents = _content(_ANSWERS.get(service), data, start + 1, cut=bool(flags & 8))
        return _told(fields, contents, extra)[0]

    def _segment_ack(
        self, data: bytes, at: int, from_client: bool, extra: dict[str, Any]
    ) -> Fields:
        refused = bool(data[at] & 2)
        return {
            **self._bases[from_client],
            "event.action": "bacnet_segment_ack",
            "event.outcome": "failure" if refused else "success",
            "event.sequence": data[at + 1],
            "ot.direction": "response",
            "ot.operation": "session",
            "ot.is_command": False,
            "cw.vendor": {**extra, "segment": data[at + 2]},
        }

    def _answer(self, key: tuple[bool, int, bytes], service: int, time_s: float) -> Fields:
        fields = self._response_fields(key[0], service, key[1])
        asked = self.pairs.waits(key)
        if asked and asked["ot.function.code"] != str(service):
            say(fields, f"answers service {service}, {asked['ot.function.code']} was asked")
            return fields
        self.pairs.answer(key, fields, time_s)
        if asked:
            for name in _REPEATED:
                if name in asked:
                    fields[name] = asked[name]
        return fields

    def _response_fields(self, asker: bool, service: int, invoke: int) -> Fields:
        return {
            **self._fields(asker, "confirmed", service),
            "event.sequence": invoke,
            "event.outcome": "success",
            "ot.direction": "response",
            "ot.is_command": False,
        }

    def _fields(self, asker: bool, kind: str, code: int) -> Fields:
        """Constants of a service: `asker` is True where the client asks."""
        key = (asker, kind, code)
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = {**self._bases[asker], **_constants(kind, code)}
        return made.copy()


_TABLES: dict[str, dict[int, Service]] = {
    "bvlc": BVLC,
    "network": NETWORK,
    "confirmed": CONFIRMED,
    "unconfirmed": UNCONFIRMED,
}
_REPEATED = ("ot.unit", "ot.point.type", "ot.point.address", "ot.point.count", "cw.vendor")


def _constants(kind: str, code: int) -> Fields:
    service = _TABLES[kind].get(code) or Service(f"unknown_{kind}_{code}", "", kind == "confirmed")
    direction = "unsolicited" if kind in ("unconfirmed", "network") else "request"
    made: Fields = {
        "event.action": f"bacnet_{service.name}",
        "ot.function.code": str(code),
        "ot.function.name": service.name,
        "ot.is_command": service.is_command,
        "ot.direction": direction,
    }
    return {**made, "ot.operation": service.operation} if service.operation else made


def _told(fields: Fields, contents: Sequence[Fields], extra: dict[str, Any]) -> list[Fields]:
    """One event for each content."""
    found = []
    for own in contents:
        one = {**fields, **own}
        if "event.reason" in own and "event.reason" in fields:
            one["event.reason"] = f"{fields['event.reason']}; {own['event.reason']}"
        if extra:
            one["cw.vendor"] = {**one.get("cw.vendor", {}), **extra}
        found.append(one)
    return found


def _failed(fields: Fields, kind: str, code: str) -> None:
    fields["event.outcome"] = "failure"
    fields["event.code"] = kind
    fields["ot.exception"] = code


# Addresses.


def _npdu_at(function: int) -> int:
    """Where the network message begins; 0 if the function carries none."""
    if function not in _NPDU:
        return 0
    return 10 if function == 0x04 else 4


def _address(data: bytes, at: int) -> str:
    if len(data) < at + 6:
        raise ValueError("an address of BACnet/IP has 6 bytes")
    return f"{'.'.join(map(str, data[at : at + 4]))}:{_U16.unpack_from(data, at + 4)[0]}"


def _network_address(data: bytes, at: int) -> tuple[bytes, int]:
    """Network number and address behind it (clause 6.2.2), and where they end."""
    stop = at + 3 + data[at + 2]
    if stop > len(data):
        raise ValueError("the address of a network is cut")
    return data[at : at + 2] + data[at + 3 : stop], stop


def _network_text(address: bytes) -> str:
    return f"{_U16.unpack_from(address)[0]}:{address[2:].hex()}"


# Tags and values (clause 20.2).


def _tags(data: bytes, at: int, cut: bool) -> list[Tag]:
    """All tags of a message; those in front of the end of a first segment where it is `cut`."""
    found: list[Tag] = []
    end = len(data)
    while at < end and len(found) < TAGS_MAX:
        byte = data[at]
        at += 1
        number, context, length = byte >> 4, bool(byte & 8), byte & 7
        try:
            if number == 15:
                number = data[at]
                at += 1
            if context and length in (6, 7):
                found.append(Tag(number, True, length - 5, at, at))
                continue
            if length == 5:
                length, at = _long_length(data, at)
        except (IndexError, ValueError):
            length = end
        if not context and number == 1:  # a boolean is in its tag
            found.append(Tag(1, False, 0, at - 1, at))
            continue
        if at + length > end:
            if cut:
                return found
            raise ValueError(f"tag {number} claims {length} bytes, {end - at} are left")
        found.append(Tag(number, context, 0, at, at + length))
        at += length
    return found


def _long_length(data: bytes, at: int) -> tuple[int, int]:
    if data[at] < 254:
        return data[at], at + 1
    size = 2 if data[at] == 254 else 4
    if at + 1 + size > len(data):
        raise ValueError("a length is cut")
    return int.from_bytes(data[at + 1 : at + 1 + size]), at + 1 + size


def _number(data: bytes, tag: Tag) -> int:
    """Contents of an unsigned or an enumerated."""
    if not 0 < tag.stop - tag.at <= 8:
        raise ValueError(f"a number has {tag.stop - tag.at} bytes")
    return int.from_bytes(data[tag.at : tag.stop]) & 0x7FFF_FFFF_FFFF_FFFF


def _text(data: bytes, tag: Tag) -> str:
    """Contents of a character string: its first byte is the character set (clause 20.2.9)."""
    charset, text = data[tag.at], data[tag.at + 1 : tag.stop]
    if charset == 4:
        return printable(text[:1_000].decode("utf-16-be", "replace").encode("utf-8", "replace"))
    return printable(text)


def _object(data: bytes, tag: Tag) -> tuple[str, int]:
    """Object type and instance."""
    if tag.stop - tag.at != 4:
        raise ValueError(f"an object identifier has 4 bytes, not {tag.stop - tag.at}")
    value = int.from_bytes(data[tag.at : tag.stop])
    return OBJECTS.get(value >> 22) or f"object_type_{value >> 22}", value & 0x3F_FFFF


def _object_fields(data: bytes, tag: Tag) -> Fields:
    kind, instance = _object(data, tag)
    fields: Fields = {"ot.point.type": kind, "ot.point.address": instance}
    if kind == "device":
        fields["ot.unit"] = str(instance)
    return fields


def _property(number: int) -> str:
    return PROPERTIES.get(number) or f"property_{number}"


def _value(data: bytes, tag: Tag) -> Fields:
    """What an application value says, as a number or as text."""
    at, stop, kind = tag.at, tag.stop, tag.number
    size = stop - at
    if tag.context or tag.kind:
        return {}
    if kind == 0:
        return {"ot.value_raw": "null"}
    if kind == 1:
        return {"ot.value": data[at] & 1}
    if kind in (2, 9):
        return {"ot.value": _number(data, tag)}
    if kind == 3 and 0 < size <= 8:
        return {"ot.value": int.from_bytes(data[at:stop], signed=True)}
    if kind in (4, 5) and size == (4 if kind == 4 else 8):
        number = (_F32 if kind == 4 else _F64).unpack_from(data, at)[0]
        return {"ot.value": number} if abs(number) < float("inf") else {"ot.value_raw": str(number)}
    if kind == 7 and size:
        return {"ot.value_raw": _text(data, tag)}
    if kind == 12 and size == 4:
        return {"ot.value_raw": "{},{}".format(*_object(data, tag))}
    if kind in (10, 11) and size == 4:
        return {"ot.value_raw": (_date if kind == 10 else _time)(data, at)}
    return {"ot.value_raw": data[at : min(stop, at + 32)].hex()}


def _date(data: bytes, at: int) -> str:
    year, month, day, _ = data[at : at + 4]
    try:
        return date(1900 + year, month, day).isoformat()
    except ValueError:
        return "any" if data[at : at + 3] == b"\xff\xff\xff" else data[at : at + 4].hex()


def _time(data: bytes, at: int) -> str:
    hour, minute, second, hundredth = data[at : at + 4]
    return f"{hour:02}:{minute:02}:{second:02}.{hundredth:02}"


def _error(data: bytes, at: int) -> tuple[str, str]:
    """Class and code of an error, which some services wrap (clause 18)."""
    numbers = [_number(data, tag) for tag in _tags(data, at, True) if not (tag.kind or tag.context)]
    if len(numbers) < 2:
        raise ValueError("an error has a class and a code")
    group, code = numbers[:2]
    return (
        ERROR_CLASSES.get(group) or f"class_{group}",
        ERRORS.get(code) or f"error_{code}",
    )


# Contents of services: data and its tags → fields of each event.

Read = Callable[[bytes, list[Tag]], list[Fields]]


def _content(read: Read | None, data: bytes, at: int, cut: bool = False) -> list[Fields]:
    """Fields of what a service carries; a content that is not as the standard wants it says so."""
    if read is None:
        return [{}]
    try:
        return read(data, _tags(data, at, cut)) or [{}]
    except (ValueError, IndexError) as error:
        own: Fields = {}
        broken(own, f"the content of the service is malformed: {error or 'a part is missing'}")
        return [own]


def _context(tags: Sequence[Tag], number: int) -> Tag | None:
    """The first value with that context number at the outermost level."""
    depth = 0
    for tag in tags:
        if tag.kind == _OPEN:
            depth += 1
        elif tag.kind == _CLOSE:
            depth -= 1
        elif not depth and tag.context and tag.number == number:
            return tag
    return None


def _inside(tags: Sequence[Tag], number: int) -> Sequence[Tag]:
    """Tags between the opening and the closing one of that number at the outermost level."""
    depth, begin = 0, -1
    for place, tag in enumerate(tags):
        if tag.kind == _OPEN:
            if not depth and tag.number == number:
                begin = place + 1
            depth += 1
        elif tag.kind == _CLOSE:
            depth -= 1
            if not depth and begin >= 0:
                return tags[begin:place]
    return tags[begin:] if begin >= 0 else ()


def _needed(tags: Sequence[Tag], number: int, what: str) -> Tag:
    tag = _context(tags, number)
    if tag is None:
        raise ValueError(f"{what} is missing")
    return tag


def _one_property(data: bytes, tags: Sequence[Tag]) -> Fields:
    """Object, property and place in an array: context 0, 1 and 2."""
    own = _object_fields(data, _needed(tags, 0, "the object"))
    vendor: dict[str, Any] = {
        "property": _property(_number(data, _needed(tags, 1, "the property")))
    }
    if index := _context(tags, 2):
        vendor["array_index"] = _number(data, index)
    own["cw.vendor"] = vendor
    return own


def _values(data: bytes, tags: Sequence[Tag]) -> Fields:
    """The first of the values, and how many there are."""
    if not tags:
        return {}
    own = _value(data, tags[0])
    if len(tags) > 1:
        own["ot.point.count"] = len(tags)
    return own


def _read_property(data: bytes, tags: list[Tag]) -> list[Fields]:
    return [_one_property(data, tags)]


def _property_read(data: bytes, tags: list[Tag]) -> list[Fields]:
    return [{**_one_property(data, tags), **_values(data, _inside(tags, 3))}]


def _write_property(data: bytes, tags: list[Tag]) -> list[Fields]:
    own = {**_one_property(data, tags), **_values(data, _inside(tags, 3))}
    if priority := _context(tags, 4):
        own["cw.vendor"]["priority"] = _number(data, priority)
    return [own]


def _several(data: bytes, tags: list[Tag], property_tag: int, value_tag: int) -> list[Fields]:
    """One for each property of each object."""
    found: list[Fields] = []
    of: Fields = {}
    depth, place = 0, 0
    while place < len(tags):
        tag = tags[place]
        if tag.kind:
            if depth == 1 and tag.kind == _OPEN and found and tag.number == value_tag:
                found[-1].update(_values(data, _inside(tags[place:], value_tag)))
            depth += 1 if tag.kind == _OPEN else -1
        elif not depth and tag.context and tag.number == 0:
            of = _object_fields(data, tag)
        elif depth == 1 and tag.context and tag.number == property_tag:
            found.append({**of, "cw.vendor": {"property": _property(_number(data, tag))}})
        elif depth == 1 and tag.context and tag.number == 3 and found and value_tag == 2:
            found[-1]["cw.vendor"]["priority"] = _number(data, tag)
        place += 1
        if len(found) > WRITES_MAX:
            break
    return found


def _write_several(data: bytes, tags: list[Tag]) -> list[Fields]:
    found = _several(data, tags, 0, 2)
    if len(found) > WRITES_MAX:
        del found[WRITES_MAX:]
        say(found[-1], f"more than {WRITES_MAX} properties are written, the others are not shown")
    return found


def _read_several(data: bytes, tags: list[Tag]) -> list[Fields]:
    """The first property, and how many there are."""
    found = _several(data, tags, 0, -1)
    return [{**found[0], "ot.point.count": len(found)}] if found else []


def _several_read(data: bytes, tags: list[Tag]) -> list[Fields]:
    found = _several(data, tags, 2, 4)
    return [{**found[0], "ot.point.count": len(found)}] if found else []


def _first_object(number: int) -> Read:
    """A service of which only the object is told: the context tag it stands in."""

    def read(data: bytes, tags: list[Tag]) -> list[Fields]:
        return [_object_fields(data, _needed(tags, number, "the object"))]

    return read


def _notified(data: bytes, tags: list[Tag]) -> list[Fields]:
    """A change of value: who says it, of what, and the first value (clause 13.6)."""
    own = _object_fields(data, _needed(tags, 2, "the object"))
    own["ot.unit"] = str(_object(data, _needed(tags, 1, "the device"))[1])
    values = _inside(tags, 4)
    if values:
        own["cw.vendor"] = {"property": _property(_number(data, values[0]))}
        own |= _values(data, _inside(values, 2)[:1])
    return [own]


def _event_notified(data: bytes, tags: list[Tag]) -> list[Fields]:
    """An alarm or event: who says it, of what, with what priority (clause 13.8)."""
    own = _object_fields(data, _needed(tags, 2, "the object"))
    own["ot.unit"] = str(_object(data, _needed(tags, 1, "the device"))[1])
    vendor: dict[str, Any] = {}
    for number, name in (
        (4, "notification_class"),
        (5, "priority"),
        (6, "event_type"),
        (11, "to_state"),
    ):
        if tag := _context(tags, number):
            vendor[name] = _number(data, tag)
    if tag := _context(tags, 7):
        vendor["message"] = _text(data, tag)
    own["cw.vendor"] = vendor
    return [own]


def _password(vendor: dict[str, Any], tags: Sequence[Tag], number: int) -> dict[str, Any]:
    tag = _context(tags, number)
    return {**vendor, "password": "present" if tag and tag.stop - tag.at > 1 else "absent"}


def _communication(data: bytes, tags: list[Tag]) -> list[Fields]:
    state = _number(data, _needed(tags, 1, "what to do"))
    vendor: dict[str, Any] = {"state": COMMUNICATION.get(state) or f"state_{state}"}
    if minutes := _context(tags, 0):
        vendor["duration_min"] = _number(data, minutes)
    return [{"ot.function.sub": vendor["state"], "cw.vendor": _password(vendor, tags, 2)}]


def _reinitialize(data: bytes, tags: list[Tag]) -> list[Fields]:
    state = _number(data, _needed(tags, 0, "the state"))
    name = REINITIALIZE.get(state) or f"state_{state}"
    own: Fields = {"ot.function.sub": name, "cw.vendor": _password({"state": name}, tags, 1)}
    return [own if state < 2 else {**own, "ot.operation": "config"}]


def _who_is(data: bytes, tags: list[Tag]) -> list[Fields]:
    low, high = _context(tags, 0), _context(tags, 1)
    if low is None or high is None:
        return [{"cw.vendor": {"range": "all"}}]
    first, last = _number(data, low), _number(data, high)
    return [{"cw.vendor": {"range": f"{first}-{last}"}}]


def _i_am(data: bytes, tags: list[Tag]) -> list[Fields]:
    own = _object_fields(data, tags[0])
    own["cw.vendor"] = {
        "max_apdu": _number(data, tags[1]),
        "segmentation": _number(data, tags[2]),
        "vendor_id": _number(data, tags[3]),
    }
    return [own]


def _who_has(data: bytes, tags: list[Tag]) -> list[Fields]:
    if tag := _context(tags, 2):
        return [_object_fields(data, tag)]
    return [{"cw.vendor": {"object_name": _text(data, _needed(tags, 3, "object and name"))}}]


def _i_have(data: bytes, tags: list[Tag]) -> list[Fields]:
    own = _object_fields(data, tags[1])
    own["ot.unit"] = str(_object(data, tags[0])[1])
    return [{**own, "cw.vendor": {"object_name": _text(data, tags[2])}}]


def _set_time(data: bytes, tags: list[Tag]) -> list[Fields]:
    return [{"ot.value_raw": f"{_date(data, tags[0].at)} {_time(data, tags[1].at)}"}]


def _file(data: bytes, tags: list[Tag]) -> list[Fields]:
    """The file, and from where how much (clause 14): by octets or by records."""
    own = _object_fields(data, tags[0])
    if len(tags) > 2 and tags[1].kind == _OPEN:
        start = int.from_bytes(data[tags[2].at : tags[2].stop][:8], signed=True)
        vendor: dict[str, Any] = {
            "access": "record" if tags[1].number else "stream",
            "start": start,
        }
        if len(tags) > 3 and not tags[3].kind:
            text = tags[3].number == 6
            vendor["count"] = tags[3].stop - tags[3].at if text else _number(data, tags[3])
        own["cw.vendor"] = vendor
    return [own]


def _create(data: bytes, tags: list[Tag]) -> list[Fields]:
    inside = _inside(tags, 0)
    if inside and inside[0].number == 1:
        return [_object_fields(data, inside[0])]
    kind = _number(data, inside[0]) if inside else 0
    return [{"ot.point.type": OBJECTS.get(kind) or f"object_type_{kind}"}]


def _plain_object(data: bytes, tags: list[Tag]) -> list[Fields]:
    return [_object_fields(data, tags[0])]


def _private(data: bytes, tags: list[Tag]) -> list[Fields]:
    vendor, service = _needed(tags, 0, "the vendor"), _needed(tags, 1, "the service")
    said = {"vendor_id": _number(data, vendor), "service": _number(data, service)}
    return [{"cw.vendor": said}]


def _message_text(data: bytes, tags: list[Tag]) -> list[Fields]:
    own: Fields = {"ot.unit": str(_object(data, _needed(tags, 0, "the device"))[1])}
    if tag := _context(tags, 3):
        own["cw.vendor"] = {"message": _text(data, tag)}
    return [own]


def _life_safety(data: bytes, tags: list[Tag]) -> list[Fields]:
    own: Fields = {"ot.value": _number(data, _needed(tags, 2, "the operation"))}
    if tag := _context(tags, 3):
        own |= _object_fields(data, tag)
    return [own]


_REQUESTS: dict[int, Read] = {
    0: _first_object(1),
    1: _notified,
    2: _event_notified,
    5: _first_object(1),
    6: _file,
    7: _file,
    8: _read_property,
    9: _read_property,
    10: _create,
    11: _plain_object,
    12: _read_property,
    14: _read_several,
    15: _write_property,
    16: _write_several,
    17: _communication,
    18: _private,
    19: _message_text,
    20: _reinitialize,
    26: _read_property,
    27: _life_safety,
    28: _first_object(1),
}
_ANSWERS: dict[int, Read] = {
    10: _plain_object,
    12: _property_read,
    14: _several_read,
    18: _private,
    26: _read_property,
}
_UNCONFIRMED: dict[int, Read] = {
    0: _i_am,
    1: _i_have,
    2: _notified,
    3: _event_notified,
    4: _private,
    5: _message_text,
    6: _set_time,
    7: _who_has,
    8: _who_is,
    9: _set_time,
}
