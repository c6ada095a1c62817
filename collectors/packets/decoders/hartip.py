"""HART-IP over TCP and UDP: field devices behind a gateway, joined by sequence number.

Understood: sessions, keep-alives, publications and refusals; HART commands by name, which of them
change a device, its long or short address, whether a device reports an error; the checksum of
each command.

Not understood: data of commands, commands behind a sub-device, audit logs, sessions with security.

References:
    FieldComm TS20085 (HART-IP), IEC 61158-6-20 (frames), FieldComm TS20127 and TS20151 (universal
    and common practice commands).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import xor
from struct import Struct

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.framed import Framed, Lane
from collectors.packets.decoders.pairs import Fields, broken

HARTIP = LogSource(category="ot_protocol", service="hartip")

MESSAGE_MAX = 2_048
"""Longest message that is awaited."""

_HEAD = Struct(">BBBBHH")
_TYPES = {0: "request", 1: "response", 2: "unsolicited", 15: "response"}
_REFUSAL = 15
_NAMES = {0: "session_initiate", 1: "session_close", 2: "keep_alive", 3: "command"}
_COMMAND = 3
_ALWAYS: Fields = {
    "network.protocol": "hartip",
    "event.category": ["process_control"],
}

READS: dict[int, str] = {
    0: "read_unique_identifier",
    1: "read_primary_variable",
    2: "read_loop_current",
    3: "read_dynamic_variables",
    7: "read_loop_configuration",
    8: "read_variable_classifications",
    9: "read_device_variables",
    11: "read_identifier_by_tag",
    12: "read_message",
    13: "read_tag_descriptor_date",
    14: "read_transducer_information",
    15: "read_device_information",
    16: "read_final_assembly_number",
    20: "read_long_tag",
    21: "read_identifier_by_long_tag",
    33: "read_selected_variables",
    48: "read_additional_status",
    50: "read_variable_assignments",
    54: "read_variable_information",
}
WRITES: dict[int, tuple[str, str]] = {
    6: ("write_polling_address", "config"),
    17: ("write_message", "config"),
    18: ("write_tag_descriptor_date", "config"),
    19: ("write_final_assembly_number", "config"),
    22: ("write_long_tag", "config"),
    34: ("write_damping", "config"),
    35: ("write_range_values", "config"),
    36: ("set_upper_range", "config"),
    37: ("set_lower_range", "config"),
    38: ("reset_configuration_changed", "config"),
    39: ("eeprom_control", "config"),
    40: ("fix_loop_current", "control"),
    41: ("self_test", "diagnostic"),
    42: ("reset_device", "restart"),
    43: ("set_zero", "config"),
    44: ("write_units", "config"),
    45: ("trim_loop_current_zero", "config"),
    46: ("trim_loop_current_gain", "config"),
    47: ("write_transfer_function", "config"),
    49: ("write_transducer_serial_number", "config"),
    51: ("write_variable_assignments", "config"),
    53: ("write_variable_units", "config"),
    59: ("write_number_of_preambles", "config"),
    71: ("lock_device", "config"),
    79: ("write_device_variable", "write"),
}


_ERRORS = frozenset((*range(1, 8), *range(9, 14), *range(15, 24), 32, 35, 36, 64))
"""Response codes that refuse a command (HCF_SPEC-307); the others warn, as 8 and 14 do."""


@decoder("hartip", HARTIP, transport=("tcp", "udp"), ports=(5094,), begins=b"\x01")
class Hartip(Framed):
    """One session of HART-IP."""

    head = _HEAD.size
    unanswered = "hartip_unanswered"

    def __init__(self, session: Session) -> None:
        super().__init__(session, _ALWAYS)

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a header whose parts agree, and a HART frame with its checksum."""
        if len(head) < _HEAD.size or not _is_header(head, 0):
            return False
        _, kind, name, status, _, length = _HEAD.unpack_from(head)
        if length > len(head) or (kind == 0 and status):
            return False
        if name == _COMMAND:
            return length > _HEAD.size + 4 and not reduce(xor, head[_HEAD.size : length])
        # A session begins with the kind of the master and its time-out; the others have nothing.
        return length == 13 and head[8] < 2 if name == 0 else length == _HEAD.size == len(head)

    @staticmethod
    def size(data: bytes, at: int) -> int:
        """See `Framed`."""
        size: int = _HEAD.unpack_from(data, at)[5]
        return size if _is_header(data, at) else 0

    @staticmethod
    def next_start(data: bytes, at: int) -> tuple[int, bool]:
        """See `Framed`."""
        while len(data) - at >= _HEAD.size:
            if _is_header(data, at):
                return at, Hartip.size(data, at) > len(data) - at
            at += 1
        return at, True

    def cut(self, lane: Lane, left: int) -> str:
        """See `Framed`."""
        return f"{left} bytes of a datagram are cut" if left else ""

    def read(self, data: bytes, from_client: bool, time_s: float) -> Sequence[Fields]:
        """See `Framed`."""
        _, kind, name, status, sequence, _ = _HEAD.unpack_from(data)
        fields: Fields = {
            **self._base,
            "event.action": f"hartip_{_NAMES[name]}",
            "event.sequence": sequence,
            "ot.function.name": _NAMES[name],
            "ot.operation": "session",
            "ot.direction": _TYPES[kind],
            "ot.is_command": False,
        }
        failed = f"status_{status}" if kind and status else ""
        if name == _COMMAND and kind != _REFUSAL:
            failed = _hart(data[_HEAD.size :], kind == 0, fields) or failed
            self.tally.malformed += "event.kind" in fields
        if kind == 0:
            self.pairs.ask((name, sequence), fields, time_s)
        elif kind != 2:
            self.pairs.answer((name, sequence), fields, time_s)
            failed = failed or ("refused" if kind == _REFUSAL else "")
            fields["event.outcome"] = "failure" if failed else "success"
        if failed:
            fields["ot.exception"] = failed
        return (fields,)


def _is_header(data: bytes, at: int) -> bool:
    version, kind, name, _, _, length = _HEAD.unpack_from(data, at)
    known = version == 1 and kind in _TYPES and name in _NAMES
    return known and _HEAD.size <= length <= MESSAGE_MAX


def _hart(data: bytes, is_request: bool, fields: Fields) -> str:
    """Command of a HART frame (IEC 61158-6-20); the error that its answer reports."""
    at = 1 + (5 if data[:1] and data[0] & 0x80 else 1) + (data[0] >> 5 & 3 if data else 0)
    if len(data) < at + 3 or len(data) < at + 3 + data[at + 1]:
        broken(fields, f"a HART frame is cut, {len(data)} bytes")
        return ""
    if reduce(xor, data):
        broken(fields, "the checksum of the HART frame is wrong")
    code, size = data[at], data[at + 1]
    # A command that nobody has described may do anything.
    name, operation = (
        (READS[code], "read")
        if code in READS
        else WRITES.get(code) or (f"command_{code}", "control")
    )
    fields |= {
        "event.action": f"hartip_{name}",
        "ot.function.code": str(code),
        "ot.function.name": name,
        "ot.operation": operation,
        "ot.is_command": is_request and code not in READS,
        "ot.unit": data[1:6].hex() if data[0] & 0x80 else str(data[1] & 63),
    }
    answer = data[at + 2] if not is_request and size >= 2 else 0
    if answer & 0x80:
        return f"communication_0x{answer:02x}"
    return f"response_code_{answer}" if answer in _ERRORS else ""
