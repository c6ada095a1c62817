"""EtherNet/IP with CIP: one event a message, and one for each command that a packet holds.

Understood: sessions, lists of identities and services; connected and unconnected messages; messages
through a route, several services in one packet; services of CIP objects and of Logix controllers by
name, with class, instance and attribute or with the name of the tag; values of written and read
tags; forward open and close; PCCC of older controllers; the status of each answer by name.

Not understood: contents of objects other than the identity, tags of structured types, CIP Safety
and CIP Security. Cyclic data (UDP 2222) are a protocol of its own here: `cip_io`.

References:
    ODVA, The CIP Networks Library, volume 2 (EtherNet/IP Adaptation of CIP), chapter 2
    (encapsulation, common packet format).
    For CIP itself see `cip.py`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from struct import Struct

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders import cip, framed
from collectors.packets.decoders.framed import Framed
from collectors.packets.decoders.pairs import Fields, broken, printable, say

ENIP = LogSource(category="ot_protocol", service="enip")

LENGTH_MAX = 65_511
ITEMS_MAX = 16
CONNECTIONS_MAX = 64
SERVICES_SHOWN = 16


class Command(msgspec.Struct, frozen=True):
    """What an encapsulation command does."""

    name: str
    operation: str
    is_answered: bool = True


NOP, LIST_SERVICES, LIST_IDENTITY, LIST_INTERFACES = 0x00, 0x04, 0x63, 0x64
REGISTER, UNREGISTER, SEND_RR_DATA, SEND_UNIT_DATA = 0x65, 0x66, 0x6F, 0x70
COMMANDS: dict[int, Command] = {
    NOP: Command("nop", "session", False),
    LIST_SERVICES: Command("list_services", "discovery"),
    LIST_IDENTITY: Command("list_identity", "discovery"),
    LIST_INTERFACES: Command("list_interfaces", "discovery"),
    REGISTER: Command("register_session", "session"),
    UNREGISTER: Command("unregister_session", "session", False),
    SEND_RR_DATA: Command("send_rr_data", "diagnostic"),
    SEND_UNIT_DATA: Command("send_unit_data", "diagnostic"),
    0x72: Command("indicate_status", "diagnostic"),
    0x73: Command("cancel", "session"),
    0xC8: Command("start_dtls", "session"),
}
"""Volume 2, table 2-3.2."""
STATUSES: dict[int, str] = {
    0x00: "success",
    0x01: "invalid_command",
    0x02: "insufficient_memory",
    0x03: "incorrect_data",
    0x64: "invalid_session",
    0x65: "invalid_length",
    0x69: "unsupported_protocol_revision",
    0x6A: "encapsulated_service_not_allowed",
}
"""Volume 2, table 2-3.3."""
_LISTS = frozenset({LIST_SERVICES, LIST_IDENTITY, LIST_INTERFACES})
_DATA = frozenset({SEND_RR_DATA, SEND_UNIT_DATA})
_CIP_IDENTITY, _SERVICES = 0x0C, 0x0100
_CONNECTED_ADDRESS, _CONNECTED_DATA, _UNCONNECTED_DATA = 0xA1, 0xB1, 0xB2

_HEAD = Struct("<HHII8sI")
_NO_CONTEXT = bytes(8)
_WORD = Struct("<H")
_LONG = Struct("<I")
_ITEM = Struct("<HH")
_IDENTIFIERS = Struct("<II")
_COMMAND = re.compile(rb"[\x04\x63\x64\x65\x66\x6f\x70]\0")


_ALWAYS: Fields = {
    "network.protocol": "enip",
    "event.category": ["process_control"],
}


class Tally(framed.Tally):
    """What became of the bytes of a conversation, and what was asked."""

    services: dict[int, int] = msgspec.field(default_factory=dict)
    """CIP services of requests, also those within packets and routed messages."""


class Packet(msgspec.Struct):
    """What a data message carries in its items."""

    connection: int = 0
    sequence: int = -1
    message: bytes = b""
    fault: str = ""


_BEGINS = bytes(command for command in COMMANDS if command != NOP)


@decoder("enip", ENIP, transport=("tcp", "udp"), ports=(44_818,), begins=_BEGINS)
class Enip(Framed):
    """One EtherNet/IP conversation."""

    head = _HEAD.size
    unanswered = "cip_unanswered"
    tally: Tally

    def __init__(self, session: Session) -> None:
        super().__init__(session, _ALWAYS, Tally())
        self._made: dict[tuple[int, str], Fields] = {}
        self._back: dict[int, int] = {}
        """Connection of answers → that of requests."""
        self._asked_on: dict[int, int] = {}
        """Sequence → connection of the newest request that has it."""

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`."""
        return _fits(head, 0) > 0 and head[0] != NOP

    @staticmethod
    def size(data: bytes, at: int) -> int:
        """See `Framed`."""
        if _header_fault(data, at):
            return 0
        return _HEAD.size + int(_WORD.unpack_from(data, at + 2)[0])

    @staticmethod
    def fault(data: bytes, at: int) -> str:
        """See `Framed`."""
        return _header_fault(data, at)

    @staticmethod
    def next_start(data: bytes, at: int) -> tuple[int, bool]:
        """See `Framed`."""
        for match in _COMMAND.finditer(data, at):
            fits = _fits(data, match.start())
            if fits:
                return match.start(), fits < 0
        return max(at, len(data) - 1), True

    # ---------------------------------------------------------------- encapsulation

    def read(self, data: bytes, from_client: bool, time_s: float) -> list[Fields]:
        """See `Framed`."""
        command, length, session, status, context, _ = _HEAD.unpack_from(data)
        said: Fields = {
            "command": COMMANDS[command].name,
            "session": f"0x{session:08x}",
            "bytes": length,
        }
        if context != _NO_CONTEXT:
            said["sender_context"] = context.hex()
        if command in _DATA and length:
            packet = _packet(data)
            if packet.message:
                key, is_answer = self._key(command, session, context, packet)
                found = (
                    [self._answer(packet, key, said, time_s)]
                    if is_answer
                    else self._request(packet, key, said, time_s)
                )
                for fields in found[:1]:
                    if status:
                        _refuse(fields, status)
                    if packet.fault:
                        broken(fields, packet.fault)
                self.tally.malformed += "event.kind" in found[0]
                return found
        direction = _direction(command, length, status, from_client)
        fields = {**self._constants(command, direction), "cw.vendor": said}
        if status:
            _refuse(fields, status)
        if command in (LIST_IDENTITY, LIST_SERVICES) and length:
            _add_lists(data, fields)
        if command in _DATA:
            broken(fields, _packet(data).fault or "a data message without a CIP message")
        if direction == "request" and COMMANDS[command].is_answered:
            self.pairs.ask((command, context), fields, time_s)
        elif direction == "response":
            self.pairs.answer((command, context), fields, time_s)
        self.tally.malformed += "event.kind" in fields
        return [fields]

    def _constants(self, command: int, direction: str) -> Fields:
        made = self._made.get((command, direction))
        if made is None:
            of = COMMANDS[command]
            made = {
                **self._base,
                "event.action": f"enip_{of.name}",
                "ot.operation": of.operation,
                "ot.is_command": False,
                "ot.direction": direction,
                "ot.function.code": f"0x{command:02x}",
                "ot.function.name": of.name,
            }
            if direction == "response":
                made["event.outcome"] = "success"
            self._made[command, direction] = made
        return made

    def _key(
        self, command: int, session: int, context: bytes, packet: Packet
    ) -> tuple[Hashable, bool]:
        """By what request and answer are joined, and which of both this is."""
        is_answer = packet.message[0] > 127
        if packet.sequence < 0:
            return (session, context), is_answer
        if not is_answer:
            if len(self._asked_on) >= CONNECTIONS_MAX:
                self._asked_on.pop(next(iter(self._asked_on)))
            self._asked_on[packet.sequence] = packet.connection
            return (packet.connection, packet.sequence), False
        connection = self._back.get(packet.connection)
        if connection is None:
            # The opening of the connection was not seen: its first answer shows the other way.
            connection = self._asked_on.get(packet.sequence, 0)
            if connection:
                self._remember(packet.connection, connection)
        return (connection, packet.sequence), True

    def _remember(self, back: int, there: int) -> None:
        if len(self._back) >= CONNECTIONS_MAX:
            self._back.pop(next(iter(self._back)))
        self._back[back] = there

    # ---------------------------------------------------------------- CIP

    def _request(self, packet: Packet, key: Hashable, said: Fields, time_s: float) -> list[Fields]:
        parts: list[Fields] = []
        own = self._described(packet.message, "", parts, 0)
        fields = {**self._base, **own}
        fields["cw.vendor"] = {**said, **own.get("cw.vendor", {})}
        if packet.sequence >= 0:
            fields["event.sequence"] = packet.sequence
        # A packet is no command itself, but one that holds some must be answered.
        waits = {**fields, "ot.is_command": True} if parts else fields
        self.pairs.ask(key, waits, time_s)
        found = [{**waits, "ot.is_command": fields.get("ot.is_command", False)}]
        for number, part in enumerate(parts, 1):
            vendor = {**said, **part.get("cw.vendor", {}), "part_of_packet": number}
            link = {"ot.link_id": waits["ot.link_id"], "cw.vendor": vendor}
            found.append({**self._base, **part, **link})
        return found

    def _described(
        self, message: bytes, route: str, parts: list[Fields], depth: int, is_part: bool = False
    ) -> Fields:
        """What a request asks; commands inside of a packet of services go to `parts`.

        Of a part that is no command only the meaning is wanted.
        """
        try:
            request = cip.read_request(message)
            self._count(request.service)
            if depth < cip.DEPTH_MAX and cip.is_routed(request):
                inner, way = cip.unwrapped(request.data)
                return self._described(inner, way, parts, depth + 1)
        except ValueError as error:
            fields: Fields = {"event.action": "unreadable", "event.outcome": "failure"}
            broken(fields, str(error))
            return fields
        if is_part and cip.is_plain(request):
            return cip.meaning(request.service, request.path.class_id, bool(request.path.tag))
        fields = cip.describe(request, route)
        if request.service == cip.MULTIPLE and depth < cip.DEPTH_MAX:
            self._add_parts(request, route, fields, parts, depth)
        return fields

    def _add_parts(
        self, request: cip.Request, route: str, fields: Fields, parts: list[Fields], depth: int
    ) -> None:
        messages, why = cip.embedded(request.data)
        names = []
        for message in messages:
            inner = self._described(message, route, parts, depth + 1, is_part=True)
            names.append(str(inner.get("ot.function.name", "unreadable")))
            if inner.get("ot.is_command") or "event.kind" in inner:
                parts.append(inner)
        fields["ot.point.count"] = len(messages)
        vendor = {"services": cip.counted(iter(names))[:SERVICES_SHOWN]}
        fields["cw.vendor"] = {**fields.get("cw.vendor", {}), **vendor}
        if why:
            broken(fields, why)

    def _count(self, service: int) -> None:
        services = self.tally.services
        services[service] = services.get(service, 0) + 1

    def _answer(self, packet: Packet, key: Hashable, said: Fields, time_s: float) -> Fields:
        try:
            answer = cip.read_answer(packet.message)
        except ValueError as error:
            return self._unreadable(str(error))
        code = f"0x{answer.service:02x}"
        fields: Fields = {**self._base}
        asked = self.pairs.waits(key)
        if asked and asked.get("ot.function.code") not in (code, None):
            self.pairs.unmatched += 1
            say(fields, f"answers service {code}, {asked['ot.function.name']} was asked")
            asked = None
        else:
            self.pairs.answer(key, fields, time_s)
        fields |= (
            {name: asked[name] for name in _REPEATED if name in asked}
            if asked
            else {**cip.meaning(answer.service, -1, False)}
        )
        vendor = {**asked["cw.vendor"], **said} if asked else said
        fields |= {
            "ot.is_command": False,
            "ot.direction": "response",
            "event.outcome": "success",
            "cw.vendor": vendor,
        }
        if packet.sequence >= 0:
            fields["event.sequence"] = packet.sequence
        cip.conclude(answer, asked, fields)
        if answer.service == cip.MULTIPLE and answer.status in (0, cip.EMBEDDED_ERROR):
            _add_answers(answer, fields)
        elif cip.opens(answer):
            there, back = _IDENTIFIERS.unpack_from(answer.data)
            self._remember(back, there)
        return fields


_REPEATED = (
    *("event.action", "ot.operation", "ot.function.code", "ot.function.name", "ot.function.sub"),
    *("ot.unit", "ot.point.type", "ot.point.address", "ot.point.count", "ot.point.tag"),
)
"""What an answer repeats of its request."""


def _refuse(fields: Fields, status: int) -> None:
    fields["event.outcome"] = "failure"
    fields["event.code"] = f"0x{status:02x}"
    fields["ot.exception"] = STATUSES.get(status) or f"status_0x{status:02x}"


def _direction(command: int, length: int, status: int, from_client: bool) -> str:
    """Lists are asked without content, also by who is searched for by a broadcast."""
    if command in _LISTS:
        return "response" if length or status else "request"
    return "request" if from_client else "response"


def _add_answers(answer: cip.Answer, fields: Fields) -> None:
    """Which services of a packet failed."""
    messages, why = cip.embedded(answer.data)
    failed = []
    for number, message in enumerate(messages, 1):
        status = message[2] if len(message) > 2 else 0
        if status not in (0, cip.PARTIAL):
            name = cip.STATUSES.get(status) or f"status_0x{status:02x}"
            failed.append(f"{number}: {name}")
    if failed:
        fields["event.outcome"] = "failure"
        fields["ot.exception"] = failed[0].partition(": ")[2]
        shown = {"failed_services": failed[:SERVICES_SHOWN]}
        fields["cw.vendor"] = {**fields["cw.vendor"], **shown}
    if why:
        broken(fields, why)


def _add_lists(data: bytes, fields: Fields) -> None:
    """The first item of a list of identities or services."""
    for kind, content in _items(data, _HEAD.size):
        if kind == _CIP_IDENTITY:
            # Version of the encapsulation and a socket address stand in front.
            fields["cw.vendor"] = {**fields["cw.vendor"], **cip.identity(content[18:], fields)}
        elif kind == _SERVICES:
            name = printable(content[4:20].rstrip(b"\0"))
            fields["cw.vendor"] = {**fields["cw.vendor"], "service": name}


def _items(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Items of the common packet format (volume 2, 2-6) that are whole."""
    count = _WORD.unpack_from(data, at)[0] if at + 2 <= len(data) else 0
    at += 2
    for _ in range(min(count, ITEMS_MAX)):
        if at + 4 > len(data):
            return
        kind, size = _ITEM.unpack_from(data, at)
        if at + 4 + size > len(data):
            return
        yield kind, data[at + 4 : at + 4 + size]
        at += 4 + size


def _packet(data: bytes) -> Packet:
    """Address and message of a data message: behind interface handle and timeout."""
    found = Packet()
    start = _HEAD.size + 6
    count = _WORD.unpack_from(data, start)[0] if start + 2 <= len(data) else 0
    seen = 0
    for kind, content in _items(data, start):
        seen += 1
        if kind == _CONNECTED_ADDRESS and len(content) >= 4:
            found.connection = _LONG.unpack_from(content)[0]
        elif kind == _CONNECTED_DATA and len(content) >= 2:
            found.sequence = _WORD.unpack_from(content)[0]
            found.message = content[2:]
        elif kind == _UNCONNECTED_DATA:
            found.message = content
    if seen < count:
        found.fault = f"{count} items are announced, {seen} are there"
    return found


# Where a message begins.


def _header_fault(data: bytes, at: int) -> str:
    command, length, _, status, _, options = _HEAD.unpack_from(data, at)
    if command not in COMMANDS:
        return f"encapsulation command 0x{command:04x} is not defined"
    if length > LENGTH_MAX:
        return f"length {length} in the header, possible is {LENGTH_MAX}"
    if status not in STATUSES:
        return f"encapsulation status 0x{status:08x} is not defined"
    return f"options 0x{options:08x}, they are 0" if options else ""


def _fits(data: bytes, at: int) -> int:
    """1 if a message with a content of its kind begins at `at`, -1 if that is open, else 0."""
    left = len(data) - at
    if left < _HEAD.size:
        return -1
    if _header_fault(data, at):
        return 0
    command, length, session, status, _, _ = _HEAD.unpack_from(data, at)
    if command in _DATA:
        if not length:
            return int(status != 0)
        if left < _HEAD.size + 8:
            return -1
        interface = _LONG.unpack_from(data, at + _HEAD.size)[0]
        items = _WORD.unpack_from(data, at + _HEAD.size + 6)[0]
        return int(length >= 16 and not interface and 2 <= items <= 4 and session > 0)
    if command == REGISTER:
        return int(length in (0, 4))
    if command == UNREGISTER:
        return int(not length and session > 0)
    if command in _LISTS:
        if not length:
            return 1
        if left < _HEAD.size + 2:
            return -1
        return int(length >= 2 and _WORD.unpack_from(data, at + _HEAD.size)[0] <= ITEMS_MAX)
    return int(command == NOP and not length)
