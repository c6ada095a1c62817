"""CoAP: what is asked of a small device over UDP, and what it answers; one event a message.

Understood: CoAP 1 over UDP: requests and responses joined by token, empty acknowledgements and
resets by message id, URI, observation, blocks, content format; PUT, POST, DELETE and their like
are commands.

Not understood: CoAP over DTLS, TCP or WebSocket, the drafts before the RFC, and what a payload
means: of it only the size is kept, and the text where it is short and printable.

References:
    RFC 7252, sections 3 (message format), 4 (joining), 5.10 and 12 (options, codes).
    RFC 7641 (Observe), RFC 7959 (blocks), RFC 8132 (FETCH, PATCH, iPATCH).
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import link_prefix, printable, say, unreadable
from collectors.packets.secrets import without_secrets
from collectors.values import real

COAP = LogSource(category="ot_protocol", service="coap")

OPEN_MAX = 64
"""Requests of one conversation that wait for their response."""
OPTIONS_MAX = 64
"""Options of one message that are looked at."""
VALUE_MAX = 128
"""Bytes of a payload up to which its text is kept."""
TEXT_MAX = 512
"""Characters of a path or query that are kept."""

METHODS: dict[int, tuple[str, str, bool]] = {
    1: ("get", "read", False),
    2: ("post", "write", True),
    3: ("put", "write", True),
    4: ("delete", "write", True),
    5: ("fetch", "read", False),
    6: ("patch", "write", True),
    7: ("ipatch", "write", True),
}
"""Name and operation of a request code, and whether it can change a device."""

RESPONSES = {
    0x41: "created",
    0x42: "deleted",
    0x43: "valid",
    0x44: "changed",
    0x45: "content",
    0x5F: "continue",
    0x80: "bad_request",
    0x81: "unauthorized",
    0x82: "bad_option",
    0x83: "forbidden",
    0x84: "not_found",
    0x85: "method_not_allowed",
    0x86: "not_acceptable",
    0x88: "request_entity_incomplete",
    0x89: "conflict",
    0x8C: "precondition_failed",
    0x8D: "request_entity_too_large",
    0x8F: "unsupported_content_format",
    0x96: "unprocessable_entity",
    0x9D: "too_many_requests",
    0xA0: "internal_server_error",
    0xA1: "not_implemented",
    0xA2: "bad_gateway",
    0xA3: "service_unavailable",
    0xA4: "gateway_timeout",
    0xA5: "proxying_not_supported",
    0xA8: "hop_limit_reached",
}
"""RFC 7252, section 12.1.2, and the registry behind it."""

TYPES = ("confirmable", "non_confirmable", "acknowledgement", "reset")

OPTIONS: dict[int, tuple[str, str, int, int]] = {
    1: ("if_match", "bytes", 0, 8),
    3: ("uri_host", "text", 1, 255),
    4: ("etag", "bytes", 1, 8),
    5: ("if_none_match", "number", 0, 0),
    6: ("observe", "number", 0, 3),
    7: ("uri_port", "number", 0, 2),
    8: ("location_path", "text", 0, 255),
    9: ("oscore", "bytes", 0, 255),
    11: ("uri_path", "text", 0, 255),
    12: ("content_format", "number", 0, 2),
    14: ("max_age_s", "number", 0, 4),
    15: ("uri_query", "text", 0, 255),
    16: ("hop_limit", "number", 1, 1),
    17: ("accept", "number", 0, 2),
    20: ("location_query", "text", 0, 255),
    23: ("block2", "block", 0, 3),
    27: ("block1", "block", 0, 3),
    28: ("size2", "number", 0, 4),
    35: ("proxy_uri", "text", 1, 1034),
    39: ("proxy_scheme", "text", 1, 255),
    60: ("size1", "number", 0, 4),
    252: ("echo", "bytes", 1, 40),
    258: ("no_response", "number", 0, 1),
    292: ("request_tag", "bytes", 0, 8),
}
"""Name, form, least and most bytes of each option (RFC 7252, table 4, and the registry)."""

Fields = dict[str, Any]

_HEAD = Struct(">BBH")
_NAMING = frozenset((3, 11, 15, 35))
"""Options that say what a request is about."""


class MalformedError(ValueError):
    """A message that is not as the standard says; the text says why."""


class Asked(msgspec.Struct, gc=False):
    """A request that waits for its response."""

    link: str
    time_s: float
    shown: Fields
    number: int
    observes: bool


_BEGINS = bytes(first for first in range(0x40, 0x80) if first & 15 <= 8)
"""Version 1, and a token that is not too long."""


@decoder("coap", COAP, transport="udp", ports=(5683,), begins=_BEGINS)
class Coap:
    """One CoAP conversation of two ends."""

    def __init__(self, session: Session) -> None:
        self._base = {**session.base, **_ALWAYS}
        self._ends = f"{session.client}>{session.server}"
        self._link = ""
        self._count = 0
        self._open: dict[tuple[bool, bytes], Asked] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a message whose known options have possible lengths."""
        if len(head) < 4 or head[0] >> 6 != 1 or not _is_possible(head):
            return False
        try:
            options, _, _ = _read(head)
        except MalformedError:
            return False
        if not all(_is_plausible(*option) for option in options):
            return False
        # A request names a resource; a response without options has nothing by which to know it.
        named = {number for number, _ in options}
        return bool(named & _NAMING) if head[1] < 32 else bool(named) and head[1] in RESPONSES

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if not self._link:
            self._link = link_prefix(self._ends, time_s)
        if not data:
            return 0, ()
        try:
            return len(data), [self._message(data, from_client, time_s)]
        except MalformedError as error:
            return len(data), [self._unreadable(str(error))]

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; each datagram stands for itself."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; commands that nobody answered."""
        left = [
            {
                **self._base,
                **asked.shown,
                "event.action": "coap_unanswered",
                "event.outcome": "unknown",
                "event.reason": f"no response to the {asked.shown['ot.function.name']}",
                "event.sequence": asked.number,
                "ot.is_command": False,
                "ot.link_id": asked.link,
            }
            for asked in self._open.values()
            if METHODS[int(asked.shown["ot.function.code"][2:])][2]
        ]
        self._open.clear()
        return left

    def _message(self, data: bytes, from_client: bool, time_s: float) -> Fields:
        if len(data) < 4:
            raise MalformedError(f"{len(data)} bytes, a message has at least 4")
        first, code, number = _HEAD.unpack_from(data, 0)
        if first >> 6 != 1:
            raise MalformedError(f"version {first >> 6}")
        if not _is_possible(data):
            raise MalformedError(f"code {_dotted(code)} in a {TYPES[first >> 4 & 3]} message")
        options, token, payload = _read(data)
        fields = {
            **self._base,
            "event.sequence": number,
            "ot.function.code": _dotted(code),
            "ot.function.sub": TYPES[first >> 4 & 3],
            "ot.is_command": False,
        }
        if code == 0:
            return self._empty(fields, number, from_client, first >> 4 & 3)
        vendor = _vendor(options)
        if code < 32:
            self._request(fields, code, options, token, from_client, time_s)
        else:
            self._response(fields, code, token, from_client, time_s)
        if payload:
            vendor["payload_bytes"] = len(payload)
            _value(fields, payload)
        if vendor:
            fields["cw.vendor"] = vendor
        return fields

    def _request(
        self, fields: Fields, code: int, options: Sequence[tuple[int, bytes]], token: bytes,
        from_client: bool, time_s: float,
    ) -> None:  # fmt: skip
        name, operation, is_command = METHODS[code]
        shown: Fields = {
            "event.action": f"coap_{name}",
            "ot.function.name": name,
            "ot.function.code": _dotted(code),
            "ot.operation": operation,
            **_url(options),
        }
        if shown["url.path"] == "/.well-known/core":
            # RFC 6690: the list of all that the device offers.
            shown["ot.operation"] = "discovery"
        observes = any(number == 6 for number, _ in options)
        fields |= shown
        fields["ot.is_command"] = is_command
        fields["ot.direction"] = "request"
        key = (from_client, token)
        before = self._open.get(key)
        if before and before.number == fields["event.sequence"] and before.shown == shown:
            fields["ot.link_id"] = before.link
            say(fields, "sent again")
            return
        if before is None and len(self._open) >= OPEN_MAX:
            self._open.pop(next(iter(self._open)))
            say(fields, f"a request given up unanswered, {OPEN_MAX} are open")
        self._count += 1
        link = fields["ot.link_id"] = f"{self._link}{self._count}"
        self._open[key] = Asked(link, time_s, shown, fields["event.sequence"], observes)

    def _response(
        self, fields: Fields, code: int, token: bytes, from_client: bool, time_s: float
    ) -> None:
        name = RESPONSES.get(code) or f"code_{_dotted(code)}"
        key = (not from_client, token)
        asked = self._open.get(key)
        if asked:
            # `ot.function.code` stays the response's own.
            fields |= {k: asked.shown[k] for k in asked.shown if k != "ot.function.code"}
            fields["ot.link_id"] = asked.link
            if time_s >= asked.time_s:
                fields["event.duration"] = int((time_s - asked.time_s) * 1e9)
            if not asked.observes:
                del self._open[key]
        else:
            fields["event.action"] = "coap_response"
            fields["ot.function.name"] = "response"
            say(fields, "no request was seen for this response")
        fields["ot.direction"] = "response"
        fields["event.code"] = name
        fields["event.outcome"] = "failure" if code >= 0x80 else "success"
        if code >= 0x80:
            fields["ot.exception"] = name

    def _empty(self, fields: Fields, number: int, from_client: bool, kind: int) -> Fields:
        """An acknowledgement, a reset or a ping (RFC 7252, section 4.3)."""
        name = ("ping", "ping", "acknowledgement", "reset")[kind]
        fields["event.action"] = f"coap_{name}"
        fields["ot.function.name"] = name
        fields["ot.operation"] = "session"
        fields["ot.direction"] = "request" if kind < 2 else "response"
        if kind > 1:
            for (sender, _), asked in self._open.items():
                if asked.number == number and sender != from_client:
                    fields["ot.link_id"] = asked.link
        if kind == 3:
            fields["event.outcome"] = "failure"
        return fields

    def _unreadable(self, why: str) -> Fields:
        return unreadable(self._base, why)


_ALWAYS: Fields = {
    "network.protocol": "coap",
    "event.category": ["network"],
}


def _dotted(code: int) -> str:
    return f"{code >> 5}.{code & 31:02d}"


def _is_possible(data: bytes) -> bool:
    """Whether type and code go together (RFC 7252, table 1)."""
    kind, code = data[0] >> 4 & 3, data[1]
    if code == 0:
        return len(data) == 4 and not data[0] & 15 and kind != 1
    if code in METHODS:
        return kind < 2
    return kind < 3 and (code in RESPONSES or code >> 5 in (2, 4, 5))


def _read(data: bytes) -> tuple[list[tuple[int, bytes]], bytes, bytes]:
    """Options, token and payload (RFC 7252, section 3)."""
    size = data[0] & 15
    if size > 8:
        raise MalformedError(f"a token of {size} bytes, 8 are possible")
    at = 4 + size
    if at > len(data):
        raise MalformedError("the token is cut")
    token = data[4:at]
    options: list[tuple[int, bytes]] = []
    number = 0
    while at < len(data):
        if data[at] == 0xFF:
            if at + 1 == len(data):
                raise MalformedError("a payload marker without a payload")
            return options, token, data[at + 1 :]
        delta, length = data[at] >> 4, data[at] & 15
        at += 1
        delta, at = _extended(data, at, delta)
        length, at = _extended(data, at, length)
        number += delta
        if at + length > len(data) or number > 65_535:
            raise MalformedError(f"option {number} is cut")
        known = OPTIONS.get(number)
        if known and not known[2] <= length <= known[3]:
            raise MalformedError(f"option {known[0]} of {length} bytes")
        if len(options) >= OPTIONS_MAX:
            raise MalformedError(f"more than {OPTIONS_MAX} options")
        options.append((number, data[at : at + length]))
        at += length
    return options, token, b""


def _is_plausible(number: int, value: bytes) -> bool:
    known = OPTIONS.get(number)
    if known is None or number > 60:
        return False
    if known[1] != "text":
        return True
    return value.isascii() and value.decode("ascii").isprintable()


def _extended(data: bytes, at: int, nibble: int) -> tuple[int, int]:
    if nibble < 13:
        return nibble, at
    size = nibble - 12
    if size == 3 or at + size > len(data):
        raise MalformedError("an option whose length is none")
    return int.from_bytes(data[at : at + size]) + (13 if size == 1 else 269), at + size


def _url(options: Sequence[tuple[int, bytes]]) -> Fields:
    path = "/".join(_text(value) for number, value in options if number == 11)
    query = "&".join(_text(value) for number, value in options if number == 15)
    fields: Fields = {"url.path": f"/{path}"[:TEXT_MAX]}
    if query:
        fields["url.query"] = without_secrets(query[:TEXT_MAX])
    for number, value in options:
        if number == 3:
            fields["url.domain"] = _text(value)
        if number == 35:
            fields["url.full"] = without_secrets(_text(value)[:TEXT_MAX])
    return fields


def _vendor(options: Sequence[tuple[int, bytes]]) -> Fields:
    """Options that have no field of their own."""
    vendor: Fields = {}
    for number, value in options:
        name, form, *_ = OPTIONS.get(number) or (f"option_{number}", "bytes", 0, 0)
        if number in (3, 11, 15, 35):
            continue
        if form == "number":
            vendor[name] = int.from_bytes(value)
        elif form == "block":
            # Number, more to come, size as a power of two (RFC 7959, section 2.2).
            block = int.from_bytes(value)
            vendor[name] = f"{block >> 4}/{block >> 3 & 1}/{16 << (block & 7)}"
        elif form == "text":
            before = vendor.get(name)
            vendor[name] = (f"{before}/" if before else "") + _text(value)
        else:
            vendor[name] = value[:32].hex()
    return vendor


def _text(value: bytes) -> str:
    return printable(value, TEXT_MAX)


def _value(fields: Fields, payload: bytes) -> None:
    """The payload, where it is short and printable; as a number where it is one."""
    if len(payload) > VALUE_MAX:
        return
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return
    if not text.isprintable():
        return
    fields["ot.value_raw"] = without_secrets(text)
    value = real(text)
    if value is not None:
        fields["ot.value"] = value
