"""S7comm-plus of S7-1200 and S7-1500: one event a message, by what its header says.

Understood: connections by their selectors; version, operation, function and sequence of each
message; whether it carries a digest that protects it; messages in several parts.

Not understood: what a request is about (objects, attributes, values: versions 2 and 3 protect or
encrypt them). So a change of a variable, of the program and of the mode are one function.

References:
    Siemens publishes no specification; codes are those that open dissectors agree on.
"""

from __future__ import annotations

from struct import Struct

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.cotp import Cotp, first_of
from collectors.packets.decoders.pairs import Fields
from collectors.packets.decoders.s7comm import Function

S7COMM_PLUS = LogSource(category="ot_protocol", service="s7comm_plus")

KEEP_ALIVE = 0xFE
VERSIONS = (1, 2, 3, KEEP_ALIVE)
DIGEST = 32
"""Octets of the digest in front of a message of version 3."""
FUNCTIONS: dict[int, Function] = {
    0x04BB: Function("explore", "discovery"),
    0x04CA: Function("create_object", "control", True),
    0x04D4: Function("delete_object", "control", True),
    0x04F2: Function("set_variable", "write", True),
    0x04FC: Function("get_link", "read"),
    0x0524: Function("get_variable", "read"),
    0x0542: Function("set_multi_variables", "write", True),
    0x054C: Function("get_multi_variables", "read"),
    0x0556: Function("begin_sequence", "session"),
    0x0560: Function("end_sequence", "session"),
    0x056B: Function("invoke", "control", True),
    0x057C: Function("set_variables_streamed", "write", True),
    0x0586: Function("get_variables_streamed", "read"),
    0x0590: Function("get_variables_address", "discovery"),
    0x059A: Function("abort", "session"),
    0x05A9: Function("error", "diagnostic"),
    0x05B3: Function("init_tls", "session"),
}
REQUEST, RESPONSE, NOTIFICATION = 0x31, 0x32, 0x33
OPERATIONS: dict[int, str] = {
    REQUEST: "request",
    RESPONSE: "response",
    NOTIFICATION: "unsolicited",
    0x02: "response",
}
"""Operation → direction."""
NO_SESSION = 0x120
"""Session of a request that opens one."""
_HEAD = Struct(">BBH")
_MESSAGE = Struct(">BHHHH")
_SESSION = Struct(">IBI")
"""Session, flags, and the object that a deletion names."""
_CREATE, _DELETE = 0x04CA, 0x04D4


class Part(msgspec.Struct):
    """What a direction has sent of a message in parts."""

    is_open: bool = False


@decoder("s7comm_plus", S7COMM_PLUS, ports=(102,), begins=b"\x03")
class S7commPlus(Cotp):
    """One S7comm-plus conversation."""

    protocol = "s7comm_plus"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._parts = (Part(), Part())

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`."""
        return first_of(head, _has_selectors, _begins_message)

    def messages(self, data: bytes, from_client: bool, time_s: float) -> list[Fields]:
        """See `Cotp`."""
        if len(data) < 4 or data[0] != 0x72 or data[1] not in VERSIONS:
            why = f"an S7comm-plus message begins with 0x72 and a version, not {data[:2].hex()}"
            return [self.unreadable(why)]
        _, version, length = _HEAD.unpack_from(data)
        if version == KEEP_ALIVE:
            return []
        if 4 + length > len(data):
            why = f"{length} bytes are announced, {len(data) - 4} are there"
            return [self.unreadable(why)]
        part = self._parts[from_client]
        continues, part.is_open = part.is_open, len(data) == 4 + length
        if continues:
            return []
        at, protected = 4, False
        if version == 3 and length and data[at] == DIGEST:
            at, protected = at + 1 + DIGEST, True
        if at + 10 > 4 + length:
            return [self._encrypted(version, length)]
        operation, _, code, _, sequence = _MESSAGE.unpack_from(data, at)
        if operation not in OPERATIONS:
            return [self._encrypted(version, length)]
        fields = self._fields(operation, code)
        fields["cw.vendor"] = {"version": version, "protected": protected, "bytes": length}
        if operation == NOTIFICATION:
            return [fields]
        fields["event.sequence"] = sequence
        if operation == REQUEST:
            if _is_of_session(data, at + 9, code):
                fields |= {"ot.operation": "session", "ot.is_command": False}
            self.pairs.ask((from_client, sequence), fields, time_s)
        else:
            self.pairs.answer((not from_client, sequence), fields, time_s)
        return [fields]

    def _fields(self, operation: int, code: int) -> Fields:
        direction = OPERATIONS[operation]
        function = FUNCTIONS.get(code)
        if operation == NOTIFICATION:
            function = Function("notification", "report")
        name = function.name if function else f"function_0x{code:04x}"
        fields: Fields = {
            **self.base,
            "event.action": f"s7comm_plus_{function.name if function else 'unknown_function'}",
            "ot.operation": function.operation if function else "diagnostic",
            "ot.is_command": bool(function and function.is_command and direction == "request"),
            "ot.direction": direction,
            "ot.function.name": name,
        }
        if operation != NOTIFICATION:
            fields["ot.function.code"] = f"0x{code:04x}"
        if direction == "response":
            fields["event.outcome"] = "success"
        return fields

    def _encrypted(self, version: int, length: int) -> Fields:
        """A message whose operation cannot be seen: TLS, or a part whose first one is missing."""
        return {
            **self.base,
            "event.action": "s7comm_plus_opaque",
            "event.reason": "encrypted, or a part of a message whose beginning is missing",
            "ot.operation": "session",
            "ot.is_command": False,
            "cw.vendor": {"version": version, "bytes": length},
        }


def _is_of_session(data: bytes, at: int, code: int) -> bool:
    """Whether an object that is made or deleted is the session itself."""
    if code not in (_CREATE, _DELETE) or at + _SESSION.size > len(data):
        return False
    session, _, named = _SESSION.unpack_from(data, at)
    return session == NO_SESSION if code == _CREATE else bool(session == named)


def _has_selectors(calling: bytes, called: bytes) -> bool:
    return called.startswith(b"SIMATIC-ROOT-")


def _begins_message(data: bytes) -> bool:
    return len(data) >= 4 and data[0] == 0x72 and data[1] in VERSIONS
