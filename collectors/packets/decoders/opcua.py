"""OPC UA binary over TCP: one event a message, requests and answers joined by request id.

Understood: hello, acknowledge, error, secure channels with their policy and mode, every service by
name, messages in several chunks; who opens a session and as whom (never the password, but whether
it went in clear); the first node of reads, browses and monitored items; every node that is written
or method that is called, with its value; the first value read, status codes. Messages that are
only signed are read as if they were not.

Not understood: encrypted messages (the first of each direction is an event, the rest is counted),
what stands behind the first 32 KiB of a message, values that are structures, history and queries.

References:
    OPC 10000-6 (1.05), sections 5.2 (binary encoding), 6.7 (chunks) and 7.1 (TCP).
    OPC 10000-4 (1.05), section 5 (services).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, NamedTuple

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.opcua_names import (
    IDENTITIES,
    REQUESTS,
    RESPONSES,
    SECURITY_MODES,
    SERVICE_FAULT,
    status_name,
)
from collectors.packets.decoders.pairs import (
    Fields,
    Pairs,
    broken,
    name_of,
    printable,
    say,
    unreadable,
)

OPCUA = LogSource(category="ot_protocol", service="opcua")

CHUNK_MAX = 1 << 24
"""Longest chunk that anyone agrees on; a longer one is no message."""
KEPT = 32_768
"""As much of a chunk, and of a message of several, is read."""
OPEN_MESSAGES = 16
"""Messages of one direction whose last chunk has not come."""
POINTS_MAX = 64
"""Nodes of one write or call that are events of their own."""
NESTED_MAX = 8
CLOSE = 452
"""Encoding of the request that closes a secure channel."""

_PLAIN = {b"HEL": "hello", b"ACK": "acknowledge", b"ERR": "error", b"RHE": "reverse_hello"}
_SECURE = {b"OPN": "open_secure_channel", b"MSG": "message", b"CLO": "close_secure_channel"}
_NAMES = {**_PLAIN, **_SECURE}
_START = re.compile(rb"(?:HEL|ACK|ERR|RHE|OPN|CLO)F|MSG[FCA]")

_LEAST = {b"HEL": 32, b"ACK": 28, b"ERR": 16, b"RHE": 16, b"OPN": 24, b"MSG": 24, b"CLO": 24}

_U32 = Struct("<I")

_ALWAYS: Fields = {
    "network.protocol": "opcua",
    "event.category": ["process_control"],
}


class MalformedError(ValueError):
    """A message does not hold what its encoding promises."""


class SecuredError(ValueError):
    """A message that nobody can read without the keys."""


class Reader:
    """Builtin types of section 5.2 in order; raises `MalformedError` where bytes are missing."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, size: int) -> bytes:
        """The next bytes."""
        at = self.at
        if size < 0 or at + size > len(self.data):
            raise MalformedError(f"{size} bytes are wanted at byte {at} of {len(self.data)}")
        self.at = at + size
        return self.data[at : at + size]

    def u8(self) -> int:
        """A byte."""
        return self.take(1)[0]

    def u16(self) -> int:
        """A UInt16."""
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        """A UInt32."""
        return int.from_bytes(self.take(4), "little")

    def octets(self) -> bytes | None:
        """A string or byte string; None for null."""
        size = int.from_bytes(self.take(4), "little", signed=True)
        return None if size < 0 else self.take(size)

    def text(self) -> str:
        """A string, as an event keeps it; empty for null."""
        return printable(self.octets() or b"")

    def count(self) -> int:
        """Length of an array; null has none. No element is shorter than a byte."""
        size = int.from_bytes(self.take(4), "little", signed=True)
        if size > len(self.data):
            raise MalformedError(f"an array claims {size} elements")
        return max(size, 0)

    def node(self) -> str:
        """A NodeId or ExpandedNodeId, as people write it (section 5.3.1.10)."""
        flags = self.u8()
        kind = flags & 0x3F
        if kind == 0:
            found = f"i={self.u8()}"
        elif kind == 1:
            found = _named(self.u8(), f"i={self.u16()}")
        elif kind == 2:
            found = _named(self.u16(), f"i={self.u32()}")
        elif kind == 3:
            found = _named(self.u16(), f"s={self.text()}")
        elif kind == 4:
            found = _named(self.u16(), f"g={_guid(self.take(16))}")
        elif kind == 5:
            space = self.u16()
            found = _named(space, f"b={(self.octets() or b'')[:32].hex()}")
        else:
            raise MalformedError(f"{kind} is no kind of a node id")
        if flags & 0x80:
            self.octets()
        if flags & 0x40:
            self.u32()
        return found

    def localized(self) -> str:
        """A LocalizedText without its locale."""
        mask = self.u8()
        if mask & 1:
            self.octets()
        return self.text() if mask & 2 else ""

    def qualified(self) -> str:
        """A QualifiedName."""
        space = self.u16()
        return _named(space, self.text())

    def extension(self) -> tuple[str, bytes]:
        """An ExtensionObject: its type and, where it has one, its body."""
        node, kind = self.node(), self.u8()
        return node, (self.octets() or b"") if kind else b""

    def diagnostic(self, depth: int = 0) -> None:
        """A DiagnosticInfo, which nobody needs, passed over."""
        if depth > NESTED_MAX:
            raise MalformedError("diagnostics are nested too deep")
        mask = self.u8()
        self.take(4 * (mask & 15).bit_count())
        if mask & 0x10:
            self.octets()
        if mask & 0x20:
            self.u32()
        if mask & 0x40:
            self.diagnostic(depth + 1)

    def value(self, depth: int = 0) -> Fields:
        """A DataValue: its value, and its status where it is not good."""
        mask = self.u8()
        own = self.variant(depth) if mask & 1 else {}
        if mask & 2:
            status = self.u32()
            if status >> 30:
                own["ot.exception"] = status_name(status)
        self.take(8 * bool(mask & 4) + 2 * bool(mask & 0x10))
        self.take(8 * bool(mask & 8) + 2 * bool(mask & 0x20))
        return own

    def variant(self, depth: int = 0) -> Fields:
        """A Variant: its first value, and how many there are."""
        if depth > NESTED_MAX:
            raise MalformedError("values are nested too deep")
        mask = self.u8()
        kind = mask & 0x3F
        if not mask & 0x80:
            return self._scalar(kind, depth) if kind else {}
        size = self.count()
        own: Fields = {}
        for place in range(size):
            one = self._scalar(kind, depth)
            own = own if place else one
        if mask & 0x40:
            self.take(4 * self.count())
        return {**own, "ot.point.count": size}

    def _scalar(self, kind: int, depth: int) -> Fields:
        if kind in _NUMBERS:
            form = _NUMBERS[kind]
            value = form.unpack(self.take(form.size))[0]
            if isinstance(value, float) and not abs(value) < float("inf"):
                return {"ot.value_raw": str(value)}
            return {"ot.value": min(value, 2**63 - 1)}
        if kind in (12, 16):
            return {"ot.value_raw": self.text()}
        if kind == 15:
            return {"ot.value_raw": (self.octets() or b"")[:32].hex()}
        if kind == 14:
            return {"ot.value_raw": _guid(self.take(16))}
        if kind in (17, 18):
            return {"ot.value_raw": self.node()}
        if kind == 19:
            return {"ot.value_raw": status_name(self.u32())}
        if kind == 20:
            return {"ot.value_raw": self.qualified()}
        if kind == 21:
            return {"ot.value_raw": self.localized()}
        if kind == 22:
            return {"ot.value_raw": self.extension()[0]}
        if kind == 23:
            return self.value(depth + 1)
        if kind == 24:
            return self.variant(depth + 1)
        if kind == 25:
            self.diagnostic()
            return {}
        raise MalformedError(f"{kind} is no type of a value")


_NUMBERS: dict[int, Struct] = {
    1: Struct("<B"),
    2: Struct("<b"),
    3: Struct("<B"),
    4: Struct("<h"),
    5: Struct("<H"),
    6: Struct("<i"),
    7: Struct("<I"),
    8: Struct("<q"),
    9: Struct("<Q"),
    10: Struct("<f"),
    11: Struct("<d"),
    13: Struct("<q"),
}


def _named(space: int, name: str) -> str:
    return f"ns={space};{name}" if space else name


def _guid(data: bytes) -> str:
    one, two, three = (data[a:b][::-1].hex() for a, b in ((0, 4), (4, 6), (6, 8)))
    return f"{one}-{two}-{three}-{data[8:10].hex()}-{data[10:].hex()}"


class Tally(msgspec.Struct):
    """What became of the bytes of a conversation; for tests and for health."""

    chunks: dict[str, int] = msgspec.field(default_factory=dict)
    requests: int = 0
    responses: int = 0
    encrypted: int = 0
    malformed: int = 0
    skipped_bytes: int = 0
    """Passed over in search of the next message."""


class Part(msgspec.Struct):
    """A message whose last chunk has not come."""

    body: bytes = b""
    chunks: int = 1
    cut: bool = False


class Lane(msgspec.Struct):
    """One direction."""

    lost: bool = False
    """The boundary of messages is not known."""
    rest: int = 0
    """Bytes of a message that is not yet whole."""
    skip: int = 0
    """Bytes of a long chunk that are passed over unread."""
    encrypted: bool = False
    """An encrypted message has been told."""
    open: dict[int, Part] = msgspec.field(default_factory=dict)
    """Request id → chunks so far."""


@decoder("opcua", OPCUA, ports=(4840,), begins=b"HAEROMC")
class Opcua:
    """One connection of OPC UA."""

    def __init__(self, session: Session) -> None:
        self.tally = Tally()
        self.pairs = Pairs(session)
        self._base = {**session.base, **_ALWAYS}
        self._lanes = (Lane(), Lane())
        self._policy = ""
        self._mode = ""
        self._made: dict[tuple[bool, int], Fields] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a message type, its chunk type and a length that it can have."""
        if len(head) < 12 or not _is_header(head, 0):
            return False
        if head[:3] in (b"HEL", b"ACK", b"ERR"):
            # Buffer sizes are a fifth of what is possible; versions are small.
            return head[:3] == b"ERR" or int.from_bytes(head[8:12], "little") < 256
        return True

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        lane, found = self._lanes[from_client], list[Fields]()
        at, end = 0, len(data)
        while True:
            if lane.skip:
                passed = min(lane.skip, end - at)
                lane.skip -= passed
                at += passed
            if lane.lost:
                start, lane.lost = _next(data, at)
                self.tally.skipped_bytes += start - at
                at = start
            if lane.lost or end - at < 8:
                break
            if not _is_header(data, at):
                found.append(unreadable(self._base, f"{data[at : at + 8].hex()} begins no message"))
                self.tally.malformed += 1
                self.tally.skipped_bytes += 1
                lane.lost = True
                at += 1
                continue
            size = _U32.unpack_from(data, at + 4)[0]
            kept = min(size, KEPT)
            if end - at < kept:
                break
            found += self._chunk(data[at : at + kept], size, lane, from_client, time_s)
            at += kept
            lane.skip = size - kept
        lane.rest = 0 if lane.lost else end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        self.tally.skipped_bytes += lane.rest
        lane.lost, lane.rest, lane.skip = True, 0, 0
        lane.open.clear()

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; commands that nobody answered, and messages that were cut."""
        found = self.pairs.end("opcua_unanswered")
        for lane, who in zip(self._lanes, ("server", "client"), strict=True):
            rest = lane.rest or lane.skip or len(lane.open)
            if rest:
                why = f"the conversation ended within a message of the {who}"
                found.append(unreadable(self._base, why))
            lane.rest = lane.skip = 0
            lane.open.clear()
        return found

    # ------------------------------------------------------------------------- chunks (6.7)

    def _chunk(
        self, data: bytes, size: int, lane: Lane, from_client: bool, time_s: float
    ) -> list[Fields]:
        kind = data[:3]
        name = kind.decode("ascii")
        self.tally.chunks[name] = self.tally.chunks.get(name, 0) + 1
        try:
            if kind in _PLAIN:
                return [self._plain(kind, data, from_client)]
            if kind == b"OPN":
                return self._opened(data, size, from_client, time_s)
            request = _U32.unpack_from(data, 20)[0]
            part = lane.open.pop(request, None)
            if part is None:
                if self._policy != "None" and not _is_service(data):
                    raise SecuredError
                part = Part(chunks=0)
            return self._joined(data, size, lane, request, part, from_client, time_s)
        except SecuredError:
            self.tally.encrypted += 1
            if lane.encrypted:
                return []
            lane.encrypted = True
            return [self._encrypted(from_client)]
        except MalformedError as error:
            self.tally.malformed += 1
            return [unreadable(self._base, f"a {name} message is malformed: {error}")]

    def _joined(
        self, data: bytes, size: int, lane: Lane, request: int, part: Part, from_client: bool,
        time_s: float,
    ) -> list[Fields]:  # fmt: skip
        """Put chunks together (section 6.7.2), up to `KEPT` bytes; read the whole."""
        last = data[3:4]
        if last == b"A":
            reader = Reader(data, 24)
            fields = self._fields(from_client, 0)
            fields |= {"event.action": "opcua_aborted", "event.outcome": "failure"}
            fields["ot.exception"] = status_name(reader.u32())
            return [fields]
        body = data[24:]
        if self._policy not in ("", "None") and (last == b"C" or part.chunks):
            body = body[: -_signature(self._policy)]
        part.cut |= size > len(data) or len(part.body) + len(body) > KEPT
        part.body = (part.body + body)[:KEPT]
        part.chunks += 1
        if last == b"C":
            lane.open[request] = part
            if len(lane.open) > OPEN_MESSAGES:
                lane.open.pop(next(iter(lane.open)))
                return [unreadable(self._base, f"more than {OPEN_MESSAGES} messages are not whole")]
            return []
        found = self._message(part.body, part.cut, request, from_client, time_s)
        if part.chunks > 1:
            for fields in found:
                fields["cw.vendor"] = {**fields.get("cw.vendor", {}), "chunks": part.chunks}
        return found

    def _plain(self, kind: bytes, data: bytes, from_client: bool) -> Fields:
        reader = Reader(data, 8)
        fields = {
            **self._base,
            "event.action": f"opcua_{_PLAIN[kind]}",
            "ot.function.name": _PLAIN[kind],
            "ot.operation": "session",
            "ot.is_command": False,
            "ot.direction": "request" if kind in (b"HEL", b"RHE") else "response",
        }
        if kind == b"HEL":
            reader.take(20)
            fields["url.original"] = reader.text()
        elif kind == b"RHE":
            uri = reader.text()
            fields |= {"url.original": reader.text(), "cw.vendor": {"server_uri": uri}}
        elif kind == b"ERR":
            fields |= {"event.outcome": "failure", "ot.exception": status_name(reader.u32())}
            if text := reader.text():
                fields["event.reason"] = text
        else:
            fields["event.outcome"] = "success"
        return fields

    def _opened(self, data: bytes, size: int, from_client: bool, time_s: float) -> list[Fields]:
        """Policy in clear (section 6.7.2.3); the rest only where the policy is None."""
        reader = Reader(data, 12)
        self._policy = reader.text().rpartition("#")[2]
        reader.octets()
        reader.octets()
        if self._policy != "None":
            # What may answer or ask is told; its number and mode are encrypted.
            fields = self._fields(from_client, 446 if from_client else 449)
            fields["cw.vendor"] = {"security_policy": self._policy}
            return [fields]
        reader.take(4)
        request = reader.u32()
        return self._message(data[reader.at :], size > len(data), request, from_client, time_s)

    def _encrypted(self, from_client: bool) -> Fields:
        fields = self._fields(from_client, 0)
        vendor = {"security_policy": self._policy} if self._policy else {}
        return {**fields, "event.action": "opcua_encrypted", "cw.vendor": vendor}

    # ------------------------------------------------------------------------- services (part 4)

    def _message(
        self, body: bytes, cut: bool, request: int, from_client: bool, time_s: float
    ) -> list[Fields]:
        reader = Reader(body)
        number = _type_of(reader)
        asks = number in REQUESTS or (number not in RESPONSES and from_client)
        fields = self._fields(asks, number)
        fields["event.sequence"] = request
        if asks:
            self.tally.requests += 1
            if number != CLOSE:  # which nobody answers
                self.pairs.ask(request, fields, time_s)
            return self._request(reader, number, fields, cut)
        self.tally.responses += 1
        self._response(reader, number, fields, cut, request, time_s)
        return [fields]

    def _request(self, reader: Reader, number: int, fields: Fields, cut: bool) -> list[Fields]:
        found: list[Fields] = []
        try:
            reader.node()
            reader.take(8)
            vendor: dict[str, Any] = {"handle": reader.u32()}
            fields["cw.vendor"] = vendor
            reader.take(4)
            reader.octets()
            reader.take(4)
            reader.extension()
            read = _REQUESTS.get(number)
            if read:
                read(reader, found)
        except MalformedError as error:
            if not cut:
                self._broken(fields, error)
        if number == 446:
            self._secured(fields, found)
        if not found:
            return [fields]
        made = []
        for own in found:
            own["cw.vendor"] = {**vendor, **own.get("cw.vendor", {})}
            made.append({**fields, **own})
        fields.update(found[0])  # the answer repeats what was asked for
        return made

    def _secured(self, fields: Fields, found: list[Fields]) -> None:
        vendor: dict[str, Any] = {"security_policy": self._policy}
        if found:
            self._mode = found[0]["cw.vendor"]["security_mode"]
        fields["cw.vendor"] = {**fields.get("cw.vendor", {}), **vendor}
        for own in found:
            own["cw.vendor"] |= vendor

    def _response(
        self, reader: Reader, number: int, fields: Fields, cut: bool, request: int, time_s: float
    ) -> None:
        asked = self.pairs.answer(request, fields, time_s)
        if asked:
            wanted = REQUESTS.get(int(asked["ot.function.code"]))
            is_it = number == SERVICE_FAULT or RESPONSES.get(number) == wanted
            if not is_it:
                say(fields, f"answers {fields['ot.function.name']}, {name_of(asked)} was asked")
            for name in _REPEATED if is_it else ():
                if name in asked:
                    fields[name] = asked[name]
        try:
            reader.take(8)
            reader.u32()
            status = reader.u32()
            fields["event.outcome"] = "failure" if status >> 31 else "success"
            if status >> 31:
                fields["ot.exception"] = status_name(status)
                return
            reader.diagnostic()
            for _ in range(reader.count()):
                reader.octets()
            reader.extension()
            read = _RESPONSES.get(number)
            if read:
                fields |= read(reader)
        except MalformedError as error:
            if not cut:
                self._broken(fields, error)
        if "ot.exception" in fields:
            fields["event.outcome"] = "failure"

    def _broken(self, fields: Fields, error: MalformedError) -> None:
        self.tally.malformed += 1
        broken(fields, f"the {fields['ot.function.name']} is malformed: {error}")

    def _fields(self, asks: bool, number: int) -> Fields:
        made = self._made.get((asks, number))
        if made is None:
            made = {**self._base, **_constants(asks, number)}
            if len(self._made) < 256:
                self._made[asks, number] = made
        return made.copy()


_REPEATED = (
    "event.action",
    "ot.function.name",
    "ot.operation",
    "ot.point.type",
    "ot.point.address",
    "ot.point.count",
    "user.name",
    "cw.vendor",
)


def _constants(asks: bool, number: int) -> Fields:
    service = (REQUESTS if asks else RESPONSES).get(number)
    made: Fields = {
        "event.action": f"opcua_{service.name}" if service else "opcua_unknown_service",
        "ot.function.code": str(number),
        "ot.function.name": service.name if service else f"service_{number}",
        "ot.is_command": bool(asks and service and service.is_command),
        "ot.direction": "request" if asks else "response",
    }
    return {**made, "ot.operation": service.operation} if service else made


def _is_header(data: bytes, at: int) -> bool:
    """Whether the 8 bytes at `at` begin a chunk."""
    kind = data[at : at + 3]
    if kind not in _NAMES or not (data[at + 3] == 70 or (kind == b"MSG" and data[at + 3] in b"CA")):
        return False
    return _LEAST[kind] <= int.from_bytes(data[at + 4 : at + 8], "little") <= CHUNK_MAX


def _next(data: bytes, at: int) -> tuple[int, bool]:
    """Where the next message begins, and True if that is not certain yet."""
    for match in _START.finditer(data, at):
        start = match.start()
        if len(data) - start < 8:
            return start, True
        if _is_header(data, start):
            return start, False
    return max(at, len(data) - 3), True


def _type_of(reader: Reader) -> int:
    """Number of the encoding of a message; 0 if it is none of the standard's."""
    text = reader.node()
    return int(text[2:]) if text.startswith("i=") else 0


def _is_service(data: bytes) -> bool:
    """Whether behind the headers of a chunk a service begins that we know."""
    try:
        number = _type_of(Reader(data, 24))
    except MalformedError:
        return False
    return number in REQUESTS or number in RESPONSES


def _signature(policy: str) -> int:
    """Bytes of a signature behind each chunk (OPC 10000-7)."""
    return 20 if policy in ("Basic128Rsa15", "Basic256") else 32


# Contents of requests: each puts the fields of its events into a list, so that what was read in
# front of a malformed part is kept.


class Point(NamedTuple):
    """A node as an event tells it."""

    node: str
    attribute: int = 13

    def fields(self) -> Fields:
        """What an event says of it."""
        vendor: dict[str, Any] = {"node": self.node}
        if self.attribute != 13:
            vendor["attribute"] = self.attribute
        own: Fields = {"cw.vendor": vendor, "ot.point.type": "node"}
        # Behind its namespace, if it has one; names of other kinds may hold the same letters.
        number = self.node.partition(";")[2] if self.node.startswith("ns=") else self.node
        return {**own, "ot.point.address": int(number[2:])} if number.startswith("i=") else own


def _read_value_id(reader: Reader) -> Fields:
    own = Point(reader.node(), reader.u32()).fields()
    reader.octets()
    reader.qualified()
    return own


def _first(reader: Reader, found: list[Fields], read: Callable[[Reader], Fields]) -> None:
    """The first element of an array, and how many there are."""
    size = reader.count()
    if size:
        found.append({**read(reader), "ot.point.count": size})


def _each(reader: Reader, found: list[Fields], read: Callable[[Reader, Fields], None]) -> None:
    """One event for each element of an array."""
    for place in range(reader.count()):
        if place == POINTS_MAX:
            say(found[-1], f"more than {POINTS_MAX} nodes are named, the others are not shown")
            return
        own: Fields = {}
        found.append(own)
        read(reader, own)


def _read(reader: Reader, found: list[Fields]) -> None:
    reader.take(12)
    _first(reader, found, _read_value_id)


def _write_one(reader: Reader, own: Fields) -> None:
    own |= Point(reader.node(), reader.u32()).fields()
    reader.octets()
    own |= reader.value()


def _write(reader: Reader, found: list[Fields]) -> None:
    _each(reader, found, _write_one)


def _call_one(reader: Reader, own: Fields) -> None:
    on = reader.node()
    method = reader.node()
    own |= {**Point(method).fields(), "ot.point.type": "method"}
    own["cw.vendor"]["object"] = on
    for place in range(reader.count()):
        value = reader.variant()
        if not place:
            own |= {name: value[name] for name in ("ot.value", "ot.value_raw") if name in value}


def _call(reader: Reader, found: list[Fields]) -> None:
    _each(reader, found, _call_one)


def _browse(reader: Reader, found: list[Fields]) -> None:
    reader.node()
    reader.take(16)
    _first(reader, found, lambda each: Point(each.node()).fields())


def _monitor(reader: Reader, found: list[Fields]) -> None:
    reader.take(8)
    _first(reader, found, _read_value_id)


def _nodes(reader: Reader, found: list[Fields]) -> None:
    _first(reader, found, lambda each: Point(each.node()).fields())


def _add_node(reader: Reader) -> Fields:
    parent, reference = reader.node(), reader.node()
    own = Point(reader.node()).fields()
    own["cw.vendor"] |= {"parent": parent, "reference": reference, "name": reader.qualified()}
    return own


def _add_nodes(reader: Reader, found: list[Fields]) -> None:
    _first(reader, found, _add_node)


def _open_channel(reader: Reader, found: list[Fields]) -> None:
    reader.take(4)
    renewed, mode = reader.u32(), reader.u32()
    vendor = {"security_mode": SECURITY_MODES.get(mode) or f"mode_{mode}", "renewed": bool(renewed)}
    found.append({"cw.vendor": vendor})


def _create_session(reader: Reader, found: list[Fields]) -> None:
    vendor = {"application": reader.text()}
    reader.octets()
    reader.localized()
    reader.take(4)
    reader.octets()
    reader.octets()
    for _ in range(reader.count()):
        reader.octets()
    reader.octets()
    own: Fields = {"cw.vendor": vendor, "url.original": reader.text()}
    vendor["session"] = reader.text()
    found.append(own)


def _activate_session(reader: Reader, found: list[Fields]) -> None:
    """Who logs in (OPC 10000-4, section 7.41): never the password, but whether it is in clear."""
    reader.octets()
    reader.octets()
    for _ in range(2 * reader.count()):
        reader.octets()
    for _ in range(reader.count()):
        reader.octets()
    node, body = reader.extension()
    identity = IDENTITIES.get(int(node[2:]) if node.startswith("i=") else 0) or "unknown"
    vendor = {"identity": identity}
    own: Fields = {"cw.vendor": vendor}
    found.append(own)
    if identity == "user_name":
        token = Reader(body)
        token.octets()
        if name := token.text():
            own["user.name"] = name
        token.octets()
        vendor["password"] = "encrypted" if token.octets() else "clear"


_REQUESTS: dict[int, Callable[[Reader, list[Fields]], None]] = {
    446: _open_channel,
    461: _create_session,
    467: _activate_session,
    488: _add_nodes,
    500: _nodes,
    527: _browse,
    560: _nodes,
    631: _read,
    673: _write,
    712: _call,
    751: _monitor,
}


# Contents of answers.


def _statuses(reader: Reader) -> Fields:
    """The first status that is bad."""
    for _ in range(reader.count()):
        status = reader.u32()
        if status >> 31:
            return {"ot.exception": status_name(status)}
    return {}


def _first_status(reader: Reader) -> Fields:
    """Status of the first result; what stands behind it is not read."""
    status = reader.u32() if reader.count() else 0
    return {"ot.exception": status_name(status)} if status >> 31 else {}


def _values_read(reader: Reader) -> Fields:
    size = reader.count()
    return {**reader.value(), "ot.point.count": size} if size else {}


_RESPONSES: dict[int, Callable[[Reader], Fields]] = {
    491: _first_status,
    497: _statuses,
    503: _statuses,
    509: _statuses,
    530: _first_status,
    634: _values_read,
    676: _statuses,
    715: _first_status,
    754: _first_status,
    784: _statuses,
    850: _statuses,
}
