"""MQTT: one event a control packet, acknowledgements joined by packet identifier.

Understood: MQTT 3.1, 3.1.1 and 5.0 over TCP: all packet types, client and user name, whether a
password or a will was sent, topics, QoS, retain, reason codes, topic aliases, properties; QoS 1 and
2 handshakes are joined, and a subscription with several filters is one event a filter.

Not understood: MQTT inside TLS or WebSocket, and what a payload means: of it only the size is kept,
and the text where it is short and printable. A password is never kept.

References:
    MQTT Version 3.1.1, OASIS Standard, sections 2 and 3.
    MQTT Version 5.0, OASIS Standard, sections 2.2.2 (properties), 2.4 (reason codes) and 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import link_prefix, say, unreadable
from collectors.packets.secrets import is_secret, without_secrets
from collectors.values import real

MQTT = LogSource(category="ot_protocol", service="mqtt")

CONTROL_MAX = 16_384
"""Bytes of a packet other than PUBLISH that is looked into; a longer one is only counted."""
HEAD_MAX = 8_192
"""Bytes of topic and properties of a PUBLISH that are looked into."""
VALUE_MAX = 128
"""Bytes of a payload up to which its text is kept."""
OPEN_MAX = 64
"""Packets of one conversation that wait for an acknowledgement."""
ALIASES_MAX = 256
"""Topic aliases that are remembered for each direction."""
FILTERS_MAX = 64
"""Filters of one subscription that are events."""
PROPERTIES_MAX = 32
"""Properties of one packet that are kept."""
TEXT_MAX = 512
"""Characters of a text of a property that are kept."""

COMMAND_LEVELS = frozenset(
    (
        *("cmnd", "cmd", "command", "commands", "set", "control", "controls", "rpc", "write"),
        *("desired", "downlink", "ncmd", "dcmd"),
    )
)
"""Topic levels by which devices take orders: Tasmota, Zigbee2MQTT, Homie, Shelly, AWS shadows,
ThingsBoard, LoRaWAN servers, Sparkplug B."""

Fields = dict[str, Any]


class Kind(msgspec.Struct, frozen=True):
    """A control packet type."""

    name: str
    flags: int
    """What the lower half of the first byte has to be; -1: anything."""
    sides: str
    """Who sends it: `c`lient, `s`erver."""
    operation: str = "session"


KINDS: dict[int, Kind] = {
    1: Kind("connect", 0, "c"),
    2: Kind("connack", 0, "s"),
    3: Kind("publish", -1, "cs", "report"),
    4: Kind("puback", 0, "cs", "report"),
    5: Kind("pubrec", 0, "cs", "report"),
    6: Kind("pubrel", 2, "cs", "report"),
    7: Kind("pubcomp", 0, "cs", "report"),
    8: Kind("subscribe", 2, "c", "read"),
    9: Kind("suback", 0, "s", "read"),
    10: Kind("unsubscribe", 2, "c", "read"),
    11: Kind("unsuback", 0, "s", "read"),
    12: Kind("pingreq", 0, "c"),
    13: Kind("pingresp", 0, "s"),
    14: Kind("disconnect", 0, "cs"),
    15: Kind("auth", 0, "cs", "auth"),
}

CONNECT_CODES = {
    0: "accepted",
    1: "unacceptable_protocol_version",
    2: "identifier_rejected",
    3: "server_unavailable",
    4: "bad_user_name_or_password",
    5: "not_authorized",
}
"""MQTT 3.1.1, table 3.1."""

REASONS = {
    0x00: "success",
    0x04: "disconnect_with_will",
    0x10: "no_matching_subscribers",
    0x11: "no_subscription_existed",
    0x18: "continue_authentication",
    0x19: "reauthenticate",
    0x80: "unspecified_error",
    0x81: "malformed_packet",
    0x82: "protocol_error",
    0x83: "implementation_specific_error",
    0x84: "unsupported_protocol_version",
    0x85: "client_identifier_not_valid",
    0x86: "bad_user_name_or_password",
    0x87: "not_authorized",
    0x88: "server_unavailable",
    0x89: "server_busy",
    0x8A: "banned",
    0x8B: "server_shutting_down",
    0x8C: "bad_authentication_method",
    0x8D: "keep_alive_timeout",
    0x8E: "session_taken_over",
    0x8F: "topic_filter_invalid",
    0x90: "topic_name_invalid",
    0x91: "packet_identifier_in_use",
    0x92: "packet_identifier_not_found",
    0x93: "receive_maximum_exceeded",
    0x94: "topic_alias_invalid",
    0x95: "packet_too_large",
    0x96: "message_rate_too_high",
    0x97: "quota_exceeded",
    0x98: "administrative_action",
    0x99: "payload_format_invalid",
    0x9A: "retain_not_supported",
    0x9B: "qos_not_supported",
    0x9C: "use_another_server",
    0x9D: "server_moved",
    0x9E: "shared_subscriptions_not_supported",
    0x9F: "connection_rate_exceeded",
    0xA0: "maximum_connect_time",
    0xA1: "subscription_identifiers_not_supported",
    0xA2: "wildcard_subscriptions_not_supported",
}
"""MQTT 5.0, table 2.6."""

PROPERTIES: dict[int, tuple[str, str]] = {
    0x01: ("payload_format", "byte"),
    0x02: ("message_expiry_s", "four"),
    0x03: ("content_type", "text"),
    0x08: ("response_topic", "text"),
    0x09: ("correlation_data", "bytes"),
    0x0B: ("subscription_id", "varint"),
    0x11: ("session_expiry_s", "four"),
    0x12: ("assigned_client_id", "text"),
    0x13: ("server_keep_alive_s", "two"),
    0x15: ("authentication_method", "text"),
    0x16: ("authentication_data", "bytes"),
    0x17: ("request_problem_information", "byte"),
    0x18: ("will_delay_s", "four"),
    0x19: ("request_response_information", "byte"),
    0x1A: ("response_information", "text"),
    0x1C: ("server_reference", "text"),
    0x1F: ("reason_string", "text"),
    0x21: ("receive_maximum", "two"),
    0x22: ("topic_alias_maximum", "two"),
    0x23: ("topic_alias", "two"),
    0x24: ("maximum_qos", "byte"),
    0x25: ("retain_available", "byte"),
    0x26: ("user", "pair"),
    0x27: ("maximum_packet_size", "four"),
    0x28: ("wildcard_subscription_available", "byte"),
    0x29: ("subscription_id_available", "byte"),
    0x2A: ("shared_subscription_available", "byte"),
}
"""MQTT 5.0, table 2.4: name and form of each property; of `bytes` only the size is kept."""

_FIXED = {"byte": 1, "two": 2, "four": 4}
_WORD = Struct(">H")
_QOS = ("0", "1", "2")
# Where a packet with a text may begin: its type, its remaining length, the length of the text.
_LENGTH = rb"(?:[\x03-\x7f]|[\x80-\xff]{1,2}[\x01-\x7f])"
_BEGINNING = re.compile(
    rb"(?=\x10" + _LENGTH + rb"\x00[\x04\x06]MQ"
    rb"|[\x30-\x35\x3a-\x3d]" + _LENGTH + rb"[\x00-\x0f]|[\x82\xa2]" + _LENGTH + rb")",
    re.DOTALL,
)
_ANSWERS = {4: 3, 5: 3, 6: 5, 7: 6, 9: 8, 11: 10}
"""Acknowledgement → packet type that it answers."""
_PROTOCOLS = {b"\x00\x04MQTT": (4, 5), b"\x00\x06MQIsdp": (3,)}
_VERSIONS = {3: "3.1", 4: "3.1.1", 5: "5.0"}


class MalformedError(ValueError):
    """A packet that is not as the standard says; the text says why."""


class Open(msgspec.Struct, gc=False):
    """A packet that waits for its acknowledgement."""

    link: str
    time_s: float
    topic: str = ""


class Lane(msgspec.Struct):
    """One direction."""

    lost: bool = False
    """The boundary of packets is not known."""
    skip: int = 0
    """Bytes of a payload that are still to come and not looked at."""
    rest: int = 0
    """Bytes of a packet that is not yet whole."""
    aliases: dict[int, str] = {}


_BEGINS = bytes(
    kind << 4 | flags
    for kind, one in KINDS.items()
    for flags in ((one.flags,) if one.flags >= 0 else range(16))
)
"""First bytes of a packet."""


@decoder("mqtt", MQTT, ports=(1883,), begins=_BEGINS)
class Mqtt:
    """One MQTT connection."""

    def __init__(self, session: Session) -> None:
        self._base = session.base
        self._ends = f"{session.client}>{session.server}"
        self._link = ""
        self._count = 0
        self._version = 0
        self._begun = False
        self._client_id = ""
        self._user = ""
        self._lanes = (Lane(), Lane())
        self._open: dict[tuple[bool, int, int], Open] = {}
        self._constants: dict[tuple[int, bool], Fields] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a CONNECT, or whole packets among which one has a topic."""
        return _looks_like(head)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if not self._link:
            self._link = link_prefix(self._ends, time_s)
        lane = self._lanes[from_client]
        found: list[Fields] = []
        at, end = 0, len(data)
        if lane.skip:
            at = min(lane.skip, end)
            lane.skip -= at
        while at < end:
            if lane.lost:
                at, lane.lost = _next_packet(data, at)
                if lane.lost:
                    break
            length, body = _remaining(data, at + 1)
            if body == 0:
                break
            first = data[at]
            why = _header_fault(first, length)
            if why:
                found.append(self._unreadable(why, from_client))
                lane.lost = True
                at += 1
                continue
            wanted = self._wanted(first, length, data, body)
            if wanted < 0 or body + wanted > end:
                break
            self._packet(first, length, data[body : body + wanted], from_client, time_s, found)
            at = body + length
            if at > end:
                lane.skip, at = at - end, end
        lane.rest = 0 if lane.lost else end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        lane.lost, lane.skip, lane.rest = True, 0, 0

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; what nobody acknowledged, and packets that were cut."""
        found = []
        for (from_client, kind, number), waits in self._open.items():
            constants = self._constants_of(kind, from_client)
            name = KINDS[kind].name
            found.append(
                {
                    **constants,
                    "event.action": "mqtt_unanswered",
                    "event.outcome": "unknown",
                    "event.reason": f"nobody acknowledged the {name}",
                    "event.sequence": number,
                    "ot.is_command": False,
                    "ot.link_id": waits.link,
                    **({"ot.mqtt.topic": waits.topic} if waits.topic else {}),
                }
            )
        self._open.clear()
        for lane, from_client in zip(self._lanes, (False, True), strict=True):
            if lane.rest or lane.skip:
                who = "client" if from_client else "server"
                why = f"the conversation ended within a packet of the {who}"
                found.append(self._unreadable(why, from_client))
                lane.rest = lane.skip = 0
        return found

    def _wanted(self, first: int, length: int, data: bytes, body: int) -> int:
        """How much of a packet has to be there to read it; -1 if that is not known yet."""
        if first >> 4 != 3:
            return length if length <= CONTROL_MAX else 0
        if length <= VALUE_MAX:
            return length
        if len(data) < body + 2:
            return -1
        topic: int = _WORD.unpack_from(data, body)[0]
        head = 2 + topic + (2 if first & 6 else 0)
        if head > length:
            return 2
        if self._version == 5:
            size, start = _remaining(data, body + head)
            if start == 0:
                return -1
            if size < 0:
                return head
            head = min(start - body + size, length)
        if head > HEAD_MAX:
            return 0
        return head if length - head > VALUE_MAX else length

    def _packet(
        self, first: int, length: int, body: bytes, from_client: bool, time_s: float,
        found: list[Fields],
    ) -> None:  # fmt: skip
        kind = first >> 4
        said = len(found)
        try:
            if length and not body:
                raise MalformedError(f"its head is longer than the {HEAD_MAX} bytes looked into")
            if kind == 3:
                found.append(self._publish(first, length, body, from_client, time_s))
            else:
                found += _READERS[kind](self, kind, body, from_client, time_s)
        except MalformedError as error:
            why = f"{KINDS[kind].name} of {length} bytes: {error}"
            found.append(self._unreadable(why, from_client))
        if not self._begun:
            self._begun = True
            if kind != 1 and len(found) > said:
                say(found[said], "no CONNECT was seen before this packet")

    # ------------------------------------------------------------------------- packets

    def _connect(self, kind: int, body: bytes, from_client: bool, time_s: float) -> list[Fields]:
        name, at = _bytes(body, 0)
        version = body[at] if at < len(body) else 0
        if version not in _PROTOCOLS.get(body[:at], ()):
            raise MalformedError(f"protocol {_printable(name)!r} version {version}")
        if len(body) < at + 4:
            raise MalformedError("it ends within its header")
        flags, keep_alive = body[at + 1], _WORD.unpack_from(body, at + 2)[0]
        if flags & 1 or flags >> 3 & 3 == 3 or (not flags & 4 and flags & 0x38):
            raise MalformedError(f"connect flags 0x{flags:02x}")
        at += 4
        vendor: Fields = {
            "version": _VERSIONS[version],
            "keep_alive_s": keep_alive,
            "clean_start": bool(flags & 2),
        }
        if version == 5:
            said, at = _properties(body, at)
            vendor |= said
        client_id, at = _text(body, at)
        if flags & 4:
            if version == 5:
                said, at = _properties(body, at)
                vendor |= {f"will_{key.removeprefix('will_')}": said[key] for key in said}
            topic, at = _text(body, at)
            will, at = _bytes(body, at)
            vendor |= {"will_topic": topic, "will_bytes": len(will), "will_qos": flags >> 3 & 3}
            vendor["will_retain"] = bool(flags & 32)
        own: Fields = {}
        if flags & 128:
            user, at = _text(body, at)
            own["user.name"] = user
        vendor["user_name_sent"] = bool(flags & 128)
        vendor["password_in_clear"] = bool(flags & 64)
        if flags & 64:
            _, at = _bytes(body, at)
        if at != len(body):
            raise MalformedError(f"{len(body) - at} bytes are left over")
        again = bool(self._client_id or self._version)
        self._version, self._client_id = version, client_id
        self._user = own.get("user.name", "")
        self._constants.clear()
        fields = self._fields(kind, from_client)
        fields |= own
        fields["event.type"] = ["start"]
        fields["ot.function.sub"] = vendor["version"]
        fields["cw.vendor"] = vendor
        if flags & 192:
            fields["event.category"] = ["authentication", "network"]
            fields["ot.operation"] = "auth"
        if again and self._begun:
            say(fields, "a second CONNECT on one connection")
        self._wait(fields, kind, from_client, 0, time_s)
        return [fields]

    def _connack(self, kind: int, body: bytes, from_client: bool, time_s: float) -> list[Fields]:
        if len(body) < 2 or body[0] > 1:
            raise MalformedError("its flags are none")
        fields = self._fields(kind, from_client)
        if self._user:
            fields["user.name"] = self._user
        vendor: Fields = {"session_present": bool(body[0])}
        if len(body) > 2:
            said, at = _properties(body, 2)
            if at != len(body):
                raise MalformedError(f"{len(body) - at} bytes are left over")
            self._version = self._version or 5
            vendor |= said
        names = REASONS if self._version == 5 else CONNECT_CODES
        _judge(fields, body[1], names, 0x80 if self._version == 5 else 1)
        fields["cw.vendor"] = vendor
        self._answered(fields, (not from_client, 1, 0), time_s)
        return [fields]

    def _publish(
        self, first: int, length: int, body: bytes, from_client: bool, time_s: float
    ) -> Fields:
        topic, at = _text(body, 0)
        qos = first >> 1 & 3
        fields = self._fields(3, from_client)
        vendor: Fields = {"retain": bool(first & 1), "qos": qos}
        number = 0
        if qos:
            if len(body) < at + 2:
                raise MalformedError("it ends before its packet identifier")
            number = _WORD.unpack_from(body, at)[0]
            at += 2
            if not number:
                raise MalformedError("packet identifier 0")
            fields["event.sequence"] = number
        if self._version == 5:
            said, at = _properties(body, at)
            vendor |= said
            topic = self._resolved(topic, said.get("topic_alias"), from_client, fields)
        if not topic and self._version != 5:
            raise MalformedError("it has no topic")
        if "#" in topic or "+" in topic:
            raise MalformedError(f"its topic {_shown(topic)!r} has a wildcard")
        if first & 8:
            vendor["duplicate"] = True
        vendor["payload_bytes"] = length - at
        fields["ot.mqtt.topic"] = _shown(topic)
        fields["ot.function.sub"] = _QOS[qos]
        fields["cw.vendor"] = vendor
        if COMMAND_LEVELS & set(topic.lower().split("/")):
            fields["ot.operation"], fields["ot.is_command"] = "control", True
        if 0 < length - at <= VALUE_MAX and len(body) == length:
            _value(fields, body[at:])
        if qos:
            self._wait(fields, 3, from_client, number, time_s, topic)
        return fields

    def _resolved(self, topic: str, alias: Any, from_client: bool, fields: Fields) -> str:
        """A topic in full, also where an alias stands for it (MQTT 5.0, section 3.3.2.3.4)."""
        aliases = self._lanes[from_client].aliases
        if topic:
            if alias and (alias in aliases or len(aliases) < ALIASES_MAX):
                aliases[alias] = topic
            return topic
        if alias not in aliases:
            say(fields, f"topic alias {alias} was not seen defined")
        return aliases.get(alias, "")

    def _acknowledgement(
        self, kind: int, body: bytes, from_client: bool, time_s: float
    ) -> list[Fields]:
        """PUBACK, PUBREC, PUBREL and PUBCOMP."""
        if len(body) < 2:
            raise MalformedError("it has no packet identifier")
        number = _WORD.unpack_from(body, 0)[0]
        fields = self._fields(kind, from_client)
        fields["event.sequence"] = number
        code = 0
        if len(body) > 2:
            code = body[2]
            if len(body) > 3:
                said, at = _properties(body, 3)
                if at != len(body):
                    raise MalformedError(f"{len(body) - at} bytes are left over")
                if said:
                    fields["cw.vendor"] = said
        _judge(fields, code, REASONS, 0x80)
        # A PUBREL comes from whoever published and answers the PUBREC of the other side.
        waits = self._answered(fields, (not from_client, _ANSWERS[kind], number), time_s)
        if kind in (5, 6) and code < 0x80:
            topic = waits.topic if waits else ""
            self._wait(fields, kind, from_client, number, time_s, topic)
        return [fields]

    def _subscribe(self, kind: int, body: bytes, from_client: bool, time_s: float) -> list[Fields]:
        """SUBSCRIBE and UNSUBSCRIBE: one event a filter."""
        try:
            number, filters, said = _filters(kind, body, self._version == 5)
        except MalformedError:
            if self._version:
                raise
            # The CONNECT that says the version was not seen.
            number, filters, said = _filters(kind, body, True)
            self._version = 5
        found = []
        for topic, options in filters[:FILTERS_MAX]:
            fields = self._fields(kind, from_client)
            fields["event.sequence"] = number
            fields["ot.mqtt.topic"] = _shown(topic)
            if kind == 8:
                fields["ot.function.sub"] = _QOS[options & 3]
            if said:
                fields["cw.vendor"] = said
            found.append(fields)
        if len(filters) > FILTERS_MAX:
            say(found[-1], f"{len(filters) - FILTERS_MAX} filters more are not shown")
        self._wait(found[0], kind, from_client, number, time_s, filters[0][0])
        for fields in found[1:]:
            fields["ot.link_id"] = found[0]["ot.link_id"]
        return found

    def _suback(self, kind: int, body: bytes, from_client: bool, time_s: float) -> list[Fields]:
        if len(body) < 2:
            raise MalformedError("it has no packet identifier")
        number = _WORD.unpack_from(body, 0)[0]
        fields = self._fields(kind, from_client)
        fields["event.sequence"] = number
        at = 2
        if self._version == 5:
            said, at = _properties(body, 2)
            if said:
                fields["cw.vendor"] = said
        codes = body[at:]
        if not codes and kind == 9:
            raise MalformedError("it has no reason codes")
        _judge(fields, max(codes, default=0), REASONS, 0x80)
        if codes:
            fields["ot.value_raw"] = ",".join(map(str, codes[:FILTERS_MAX]))
        self._answered(fields, (not from_client, _ANSWERS[kind], number), time_s)
        return [fields]

    def _ping(self, kind: int, body: bytes, from_client: bool, time_s: float) -> list[Fields]:
        if body:
            raise MalformedError("it has a content")
        return [self._fields(kind, from_client)]

    def _disconnect(self, kind: int, body: bytes, from_client: bool, time_s: float) -> list[Fields]:
        """DISCONNECT and AUTH; only MQTT 5.0 has something in them."""
        fields = self._fields(kind, from_client)
        if body:
            if len(body) > 1:
                said, at = _properties(body, 1)
                if at != len(body):
                    raise MalformedError(f"{len(body) - at} bytes are left over")
                if said:
                    fields["cw.vendor"] = said
            _judge(fields, body[0], REASONS, 0x80)
        if kind == 14:
            fields["event.type"] = ["end"]
        return [fields]

    # ------------------------------------------------------------------------- fields

    def _fields(self, kind: int, from_client: bool) -> Fields:
        """Fresh fields of a packet, which all packets of its kind and direction share."""
        known = self._constants.get((kind, from_client))
        return dict(known or self._constants_of(kind, from_client))

    def _constants_of(self, kind: int, from_client: bool) -> Fields:
        what = KINDS[kind]
        answer = kind in _ANSWERS or kind in (2, 13)
        asked = "request" if from_client else "unsolicited"
        made: Fields = {
            **self._base,
            **_ALWAYS,
            "event.action": f"mqtt_{what.name}",
            "ot.function.code": str(kind),
            "ot.function.name": what.name,
            "ot.operation": what.operation,
            "ot.is_command": False,
            "ot.direction": "response" if answer else asked,
        }
        if self._client_id:
            made["ot.mqtt.client_id"] = _shown(self._client_id)
        if ("c" if from_client else "s") not in what.sides:
            who = "client" if from_client else "server"
            made["event.reason"] = f"the {who} does not send a {what.name}"
        self._constants[kind, from_client] = made
        return made

    def _wait(
        self, fields: Fields, kind: int, from_client: bool, number: int, time_s: float,
        topic: str = "",
    ) -> None:  # fmt: skip
        if "ot.link_id" not in fields:
            self._count += 1
            fields["ot.link_id"] = f"{self._link}{self._count}"
        key = (from_client, kind, number)
        if key not in self._open and len(self._open) >= OPEN_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]
            name = KINDS[oldest[1]].name
            say(fields, f"{name} {oldest[2]} given up unanswered, {OPEN_MAX} are open")
        self._open[key] = Open(fields["ot.link_id"], time_s, _shown(topic))

    def _answered(self, fields: Fields, key: tuple[bool, int, int], time_s: float) -> Open | None:
        waits = self._open.pop(key, None)
        if waits is None:
            say(fields, f"no {KINDS[key[1]].name} was seen that this answers")
            return None
        fields["ot.link_id"] = waits.link
        if waits.topic:
            fields["ot.mqtt.topic"] = waits.topic
        if time_s >= waits.time_s:
            fields["event.duration"] = int((time_s - waits.time_s) * 1e9)
        return waits

    def _unreadable(self, why: str, from_client: bool) -> Fields:
        direction = "request" if from_client else "response"
        return unreadable({**self._base, **_ALWAYS, "ot.direction": direction}, why)


_READERS: dict[int, Callable[[Mqtt, int, bytes, bool, float], list[Fields]]] = {
    1: Mqtt._connect,
    2: Mqtt._connack,
    **dict.fromkeys((4, 5, 6, 7), Mqtt._acknowledgement),
    8: Mqtt._subscribe,
    9: Mqtt._suback,
    10: Mqtt._subscribe,
    11: Mqtt._suback,
    12: Mqtt._ping,
    13: Mqtt._ping,
    14: Mqtt._disconnect,
    15: Mqtt._disconnect,
}

_ALWAYS: Fields = {
    "network.protocol": "mqtt",
    "event.category": ["network"],
}


def _judge(fields: Fields, code: int, names: dict[int, str], bad: int) -> None:
    """What a reason code means for the outcome."""
    name = names.get(code) or f"code_{code}"
    fields["event.code"] = str(code)
    if code >= bad:
        fields["event.outcome"], fields["ot.exception"] = "failure", name
    else:
        fields["event.outcome"] = "success"


def _value(fields: Fields, payload: bytes) -> None:
    """The payload, where it is printable text; as a number where it is one."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return
    if not text.isprintable():
        return
    fields["ot.value_raw"] = without_secrets(text)
    value = real(text) if text[-1:].isdigit() else None
    if value is not None:
        fields["ot.value"] = value


def _shown(text: str) -> str:
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}…"


def _printable(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data[:TEXT_MAX])


# Parts of a packet: value and where it ends.


def _remaining(data: bytes, at: int) -> tuple[int, int]:
    """A variable byte integer (section 2.2.3, 1.5.5) and what is behind it; start 0: not whole yet.

    The value is -1 if it has more than four bytes or more bytes than it needs.
    """
    value = 0
    for number in range(4):
        if at + number >= len(data):
            return 0, 0
        byte = data[at + number]
        value |= (byte & 127) << 7 * number
        if byte < 128:
            return (-1 if number and not byte else value), at + number + 1
    return -1, at + 4


def _bytes(body: bytes, at: int) -> tuple[bytes, int]:
    start = at + 2
    if start > len(body):
        raise MalformedError("it ends within a length")
    stop = start + _WORD.unpack_from(body, at)[0]
    if stop > len(body):
        raise MalformedError(f"a text of {stop - start} bytes, {len(body) - start} are left")
    return body[start:stop], stop


def _text(body: bytes, at: int) -> tuple[str, int]:
    raw, stop = _bytes(body, at)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise MalformedError("a text is not UTF-8") from None
    if "\0" in text:
        raise MalformedError("a text has a null character")
    return text, stop


def _properties(body: bytes, at: int) -> tuple[Fields, int]:
    """Properties of MQTT 5.0 (section 2.2.2) and where they end."""
    size, at = _remaining(body, at)
    stop = at + size
    if size < 0 or not at or stop > len(body):
        raise MalformedError("its properties are cut")
    found: Fields = {}
    body = body[:stop]
    cut = 0
    while at < stop:
        name, form = PROPERTIES.get(body[at], ("", ""))
        if not name:
            raise MalformedError(f"property 0x{body[at]:02x} does not exist")
        value, at = _property(form, body, at + 1)
        if form == "pair":
            name, value = f"user.{value[0]}", "***" if is_secret(value[0]) else value[1]
        if len(found) < PROPERTIES_MAX:
            found[name] = value
        else:
            cut += 1
    if cut:
        found["properties_not_shown"] = cut
    return found, stop


def _property(form: str, body: bytes, at: int) -> tuple[Any, int]:
    size = _FIXED.get(form)
    if size:
        if at + size > len(body):
            raise MalformedError("a property is cut")
        return int.from_bytes(body[at : at + size]), at + size
    if form == "varint":
        value, stop = _remaining(body, at)
        if value < 0 or not stop:
            raise MalformedError("a property is cut")
        return value, stop
    if form == "bytes":
        raw, stop = _bytes(body, at)
        return f"{len(raw)} bytes", stop
    text, stop = _text(body, at)
    if form == "pair":
        more, stop = _text(body, stop)
        return (text[:64], _shown(more)), stop
    return _shown(text), stop


def _filters(kind: int, body: bytes, has_properties: bool) -> tuple[int, list[Any], Fields]:
    """Packet identifier, filters with their options, properties."""
    if len(body) < 5:
        raise MalformedError("it has no filter")
    number = _WORD.unpack_from(body, 0)[0]
    if not number:
        raise MalformedError("packet identifier 0")
    said: Fields = {}
    at = 2
    if has_properties:
        said, at = _properties(body, 2)
    filters = []
    while at < len(body):
        topic, at = _text(body, at)
        options = 0
        if kind == 8:
            options = body[at] if at < len(body) else 3
            at += 1
        if not topic or options & 3 == 3 or (options > 2 and not has_properties):
            raise MalformedError(f"filter {_shown(topic)!r} with options {options}")
        filters.append((topic, options))
    if not filters:
        raise MalformedError("it has no filter")
    return number, filters, said


# What is a packet, and where the next one begins.


def _header_fault(first: int, length: int) -> str:
    kind = KINDS.get(first >> 4)
    if kind is None:
        return "packet type 0 does not exist"
    if length < 0:
        return f"the remaining length of a {kind.name} is none"
    if kind.flags < 0:
        wrong = first & 6 == 6 or (first & 8 and not first & 6)
    else:
        wrong = first & 15 != kind.flags
    return f"flags {first & 15} of a {kind.name}" if wrong else ""


def _fits(data: bytes, at: int) -> tuple[int, bool]:
    """Length of the packet at `at` if its parts agree, else 0; and True if it shows a text."""
    length, body = _remaining(data, at + 1)
    if not body or _header_fault(data[at], length):
        return 0, False
    kind, left = data[at] >> 4, data[body : body + min(length, 300)]
    size = body - at + length
    if kind == 1:
        return (size if _is_connect(left) else 0), True
    if kind == 3:
        return (size if _has_topic(left, 0, length) else 0), True
    if kind in (8, 10):
        fits = length >= 5 and left[:2] not in (b"", b"\0\0")
        start = 2 if left[2:3] != b"\0" or left[3:4] == b"" or _has_topic(left, 2, length) else 3
        return (size if fits and _has_topic(left, start, length) else 0), True
    least, most = _SIZES[kind]
    return (size if least <= length <= most else 0), False


_SIZES = {
    **dict.fromkeys((2, 4, 5, 6, 7), (2, 256)),
    **dict.fromkeys((9, 11), (2, 256)),
    **dict.fromkeys((12, 13), (0, 0)),
    **dict.fromkeys((14, 15), (0, 256)),
}


def _is_connect(body: bytes) -> bool:
    for name, versions in _PROTOCOLS.items():
        if body.startswith(name) and len(body) > len(name):
            return body[len(name)] in versions
    return False


def _has_topic(body: bytes, at: int, length: int) -> bool:
    """True if a printable text that is not empty begins here and ends within the packet."""
    if at + 3 > len(body):
        return False
    stop = at + 2 + _WORD.unpack_from(body, at)[0]
    if stop == at + 2 or stop > length:
        return False
    try:
        text = body[at + 2 : stop].decode("utf-8", "strict" if stop <= len(body) else "ignore")
    except UnicodeDecodeError:
        return False
    return text.isprintable() and bool(text)


def _looks_like(head: bytes) -> bool:
    at, shows = 0, False
    if head[:1] == b"\x10":
        size, body = _remaining(head, 1)
        return size > 0 and _is_connect(head[body : body + 10])
    if head[:2] == b"\x20\x02":
        return len(head) == 4 and head[2] < 2 and head[3] < 6
    while at < len(head):
        size, text = _fits(head, at)
        if not size:
            return False
        shows |= text
        at += size
    # A last packet that is only a beginning proves little; others before it do.
    return shows and (at == len(head) or at - size > 0 or len(head) >= 64)


def _next_packet(data: bytes, at: int) -> tuple[int, bool]:
    """Where the next packet begins, and True if that is not certain yet."""
    end = len(data)
    for match in _BEGINNING.finditer(data, at):
        start = match.start()
        size, _ = _fits(data, start)
        follows = start + size
        if size and follows <= end and (follows == end or _fits(data, follows)[0]):
            return start, False
    return max(at, end - 320), True
