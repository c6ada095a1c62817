"""TriStation: engineering of Triconex safety controllers, one event a datagram, joined by counter.

Understood: connection, ping and every command and answer by name; which commands change program,
mode, outputs or diagnostics of the controller; the project that is downloaded, its program and
function numbers, and a hash over what a download allocates; why a command was rejected; length and
checksum of each datagram.

Not understood: what the answers of status and upload hold, variables by name.

References:
    TriStation is unpublished. Names of commands and answers and the layout of the header are those
    of public research on the TRITON malware (S. Miller, E. Reese: A Totally Tubular Treatise on
    TRITON and TriStation, 2018; Nozomi Networks: tricotools, 2018).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from struct import Struct
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import Fields, Pairs, broken, printable, unreadable

TRISTATION = LogSource(category="ot_protocol", service="tristation")

_HEAD = Struct("<BBH")
_COMMAND = Struct("<HBBHHH")
"""Channel, command, counter, a constant, sum of bytes, length."""
_ALLOCATION = Struct("<HHHHH")
"""Program, next, whole size, offset and size in words."""
_EXECUTE = 5
_REJECTED = 100
_ANSWERS_FROM = 100
_DOWNLOAD_BEGINS = frozenset((0, 1, 59))
_DOWNLOAD_ENDS = frozenset((10, 11))
_ALLOCATES = frozenset((55, 56, 72))
_ALWAYS: Fields = {
    "network.protocol": "tristation",
    "event.category": ["process_control"],
}

TYPES: dict[int, tuple[str, str, str]] = {
    1: ("connection_request", "session", "request"),
    2: ("connection_response", "session", "response"),
    3: ("disconnection_response", "session", "response"),
    4: ("disconnection_request", "session", "request"),
    5: ("command", "", ""),
    6: ("ping", "discovery", "request"),
    7: ("connection_limit_reached", "session", "response"),
    8: ("not_connected", "session", "response"),
    9: ("main_processors_are_dead", "session", "response"),
    10: ("access_denied", "auth", "response"),
    11: ("connection_failed", "session", "response"),
}
"""Type of datagram → name, operation, direction; those above 6 refuse."""

_COMMANDS = (
    "start_download_all start_download_change update_configuration upload_configuration "
    "set_io_addresses allocate_network load_vector_table set_calendar get_calendar "
    "set_scan_time end_download_all end_download_change cancel_download_change attach_tricon "
    "set_io_address_limits configure_module set_multiple_point_values enable_all_points "
    "upload_vector_table get_cp_status run_program halt_program pause_program do_single_scan "
    "get_chassis_status get_minimum_scan_time set_node_number set_io_point_values "
    "get_io_point_values get_mp_status set_retentive_values adjust_clock_calendar "
    "clear_module_alarms get_event_log set_soe_block record_event_log get_soe_data enable_ovd "
    "disable_ovd enable_all_ovds disable_all_ovds process_modbus upload_network set_label "
    "configure_system_variables deconfigure_module get_system_variables get_module_types "
    "begin_conversion_table_download continue_conversion_table_download "
    "end_conversion_table_download get_conversion_table set_icm_status "
    "broadcast_soe_data_available get_module_versions allocate_program allocate_function "
    "clear_retentives set_initial_values start_ts2_program_download set_ts2_data_area "
    "get_ts2_data set_ts2_data set_program_information get_program_information upload_program "
    "upload_function get_point_groups allocate_symbol_table get_io_address resend_io_address "
    "get_program_timing allocate_multiple_functions get_node_number get_symbol_table"
)
COMMANDS = dict(enumerate(_COMMANDS.split())) | {80: "go_to_download_mode"}

_ANSWERS = (
    "command_rejected download_all_permitted download_change_permitted modification_accepted "
    "download_cancelled program_accepted tricon_attached io_addresses_set "
    "get_cp_status_response program_is_running program_is_halted program_is_paused "
    "end_of_single_scan get_chassis_configuration_response scan_period_modified answer_115 "
    "answer_116 module_configured answer_118 get_chassis_status_response vectors_response "
    "get_io_point_values_response calendar_changed configuration_updated "
    "get_minimum_scan_time_response answer_125 node_number_set get_mp_status_response "
    "retentive_values_set soe_block_set module_alarms_cleared get_event_log_response "
    "symbol_table_accepted ovd_enable_accepted ovd_disable_accepted record_event_log_response "
    "upload_network_response get_soe_data_response allocate_network_accepted "
    "load_vector_table_accepted get_calendar_response label_set get_module_types_response "
    "system_variables_configured module_deconfigured answer_145 answer_146 "
    "get_conversion_table_response icm_print_data_sent set_icm_status_response "
    "get_system_variables_response get_module_versions_response process_modbus_response "
    "allocate_program_response allocate_function_response clear_retentives_response "
    "set_initial_values_response set_ts2_data_area_response get_ts2_data_response "
    "set_ts2_data_response set_program_information_response get_program_information_response "
    "upload_program_response upload_function_response get_point_groups_response "
    "allocate_symbol_table_response program_timing_response disable_points_full "
    "allocate_multiple_functions_response get_node_number_response "
    "symbol_table_response"
)
ANSWERS = dict(enumerate(_ANSWERS.split(), _ANSWERS_FROM))

REJECTIONS: dict[int, str] = {
    200: "wrong_command",
    201: "load_in_progress",
    202: "bad_clock_calendar_data",
    203: "control_program_not_halted",
    204: "control_program_checksum_error",
    205: "no_memory_available",
    206: "control_program_not_valid",
    207: "not_loading_a_control_program",
    208: "network_out_of_range",
    209: "not_enough_arguments",
    210: "network_missing",
    211: "download_time_mismatch",
    212: "key_setting_prohibits_operation",
    213: "bad_control_program_version",
    214: "command_not_in_sequence",
    216: "bad_module_index",
    217: "module_address_invalid",
    220: "bad_point_offset",
    221: "invalid_point_type",
    222: "invalid_point_location",
    223: "program_name_invalid",
    227: "invalid_module_type",
    229: "invalid_table_type",
    231: "invalid_network_continuation",
    232: "invalid_scan_time",
    233: "load_busy",
    234: "main_processor_reeducated",
    235: "invalid_chassis_or_slot",
    239: "variable_write_protected",
    240: "node_number_mismatch",
    241: "command_not_allowed",
    242: "invalid_sequence_number",
    243: "time_change_on_non_master",
    244: "no_free_ports",
    245: "invalid_tristation_i_command",
    246: "invalid_tristation_1131_command",
    247: "only_one_chassis_allowed",
    248: "bad_variable_address",
    249: "response_overflow",
    250: "invalid_bus",
    251: "disable_not_allowed",
    252: "invalid_length",
    253: "point_cannot_be_disabled",
    254: "too_many_retentive_variables",
}

_OPERATIONS: dict[int, tuple[str, bool]] = {
    **dict.fromkeys((0, 1, 5, 6, 10, 11, 12, 48, 49, 50, 55, 56, 58, 59, 63, 68, 72),
                    ("program_download", True)),
    **dict.fromkeys((3, 18, 42, 51, 64, 65, 66, 74), ("program_upload", False)),
    **dict.fromkeys((20, 21, 22, 23, 80), ("mode_change", True)),
    **dict.fromkeys((16, 27, 30, 41, 57, 62), ("write", True)),
    **dict.fromkeys((2, 4, 9, 14, 15, 17, 26, 34, 37, 38, 39, 40, 43, 44, 45, 52, 60),
                    ("config", True)),
    **dict.fromkeys((7, 31), ("time_sync", True)),
    32: ("alarm", True),
    13: ("session", True),
    **dict.fromkeys((24, 47, 54, 69, 73), ("discovery", False)),
    **dict.fromkeys((19, 25, 29, 33, 35, 71), ("diagnostic", False)),
}  # fmt: skip
"""Command → operation, and whether it changes the controller; the others read.

29 only asks for a status; the implant of TRITON takes its orders in it, which cannot be told apart.
"""


def _table() -> tuple[int, ...]:
    made = []
    for value in range(256):
        rest = value
        for _ in range(8):
            rest = rest >> 1 ^ (0xA001 if rest & 1 else 0)
        made.append(rest)
    return tuple(made)


_CRC = _table()


def crc(data: bytes) -> int:
    """CRC-16/ARC, which stands low byte first behind every datagram."""
    value = 0
    for byte in data:
        value = value >> 8 ^ _CRC[(value ^ byte) & 255]
    return value


class Tally(msgspec.Struct):
    """What became of the datagrams of a conversation; for tests and for health."""

    commands: int = 0
    answers: int = 0
    rejected: int = 0
    malformed: int = 0


@decoder("tristation", TRISTATION, transport="udp", ports=(1502,), begins=bytes(range(1, 12)))
class Tristation:
    """One conversation of an engineering station and a safety controller."""

    def __init__(self, session: Session) -> None:
        self.tally = Tally()
        self.pairs = Pairs(session)
        self._base = {**session.base, **_ALWAYS}
        self._made: dict[int, Fields] = {}
        self._program: Any = None
        """Hash over what the download allocates, while one goes on."""

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; type, length and checksum of the datagram."""
        if len(head) < 6 or head[0] not in TYPES:
            return False
        _, zero, length = _HEAD.unpack_from(head)
        return zero == 0 and length == len(head) - 6 and _is_whole(head)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        fields = self._datagram(data, time_s)
        self.tally.malformed += "event.kind" in fields
        return len(data), [fields]

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; every datagram stands for itself."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; commands that nobody answered."""
        return self.pairs.end("tristation_unanswered")

    def _datagram(self, data: bytes, time_s: float) -> Fields:
        if len(data) < 6:
            return unreadable(self._base, f"a datagram has at least 6 bytes, not {len(data)}")
        kind, _, length = _HEAD.unpack_from(data)
        if kind not in TYPES:
            return unreadable(self._base, f"type {kind} of a datagram, there are 1 to 11")
        if length != len(data) - 6:
            why = f"the length says {length} bytes, there are {len(data) - 6}"
            return unreadable(self._base, why)
        fields = self._command(data, length, time_s) if kind == _EXECUTE else self._plain(kind)
        if not _is_whole(data):
            broken(fields, "the checksum is wrong")
        return fields

    def _plain(self, kind: int) -> Fields:
        name, operation, direction = TYPES[kind]
        fields: Fields = {
            **self._base,
            "event.action": f"tristation_{name}",
            "ot.function.name": name,
            "ot.operation": operation,
            "ot.direction": direction,
            "ot.is_command": False,
        }
        if kind > 6:
            fields |= {"event.outcome": "failure", "ot.exception": name}
        elif direction == "response":
            fields["event.outcome"] = "success"
        return fields

    def _command(self, data: bytes, length: int, time_s: float) -> Fields:
        if length < _COMMAND.size:
            return unreadable(self._base, f"a command has at least 10 bytes, not {length}")
        _, code, counter, _, _, size = _COMMAND.unpack_from(data, 4)
        body = data[4 + _COMMAND.size : -2]
        fields = self._constants(code).copy()
        fields["event.sequence"] = counter
        if size != length:
            broken(fields, f"the lengths disagree, {length} and {size}")
        if code >= _ANSWERS_FROM:
            return self._answer(code, counter, body, fields, time_s)
        self.tally.commands += 1
        if vendor := self._content(code, body, fields):
            fields["cw.vendor"] = vendor
        self.pairs.ask(counter, fields, time_s)
        return fields

    def _content(self, code: int, body: bytes, fields: Fields) -> dict[str, Any]:
        """What a command says beyond its code."""
        if code in _DOWNLOAD_BEGINS:
            self._program = hashlib.sha256()
            return {"project": printable(body[:8].split(b"\0")[0])} if body else {}
        if code in _DOWNLOAD_ENDS:
            if self._program is not None:
                fields["ot.program.hash"] = self._program.hexdigest()
            self._program = None
        elif code in _ALLOCATES and len(body) >= _ALLOCATION.size:
            program, following, whole, offset, words = _ALLOCATION.unpack_from(body)
            if self._program is not None:
                self._program.update(body[_ALLOCATION.size :])
            fields["ot.point.type"] = "program" if code == 55 else "function"
            fields["ot.point.address"] = program
            return {"next": following, "words": whole, "offset": offset, "words_here": words}
        elif code in (65, 66) and len(body) >= 4:
            fields["ot.point.type"] = "program" if code == 65 else "function"
            fields["ot.point.address"] = int.from_bytes(body[:2], "little")
            return {"index": int.from_bytes(body[2:4], "little")}
        return {}

    def _answer(
        self, code: int, counter: int, body: bytes, fields: Fields, time_s: float
    ) -> Fields:
        self.tally.answers += 1
        asked = self.pairs.answer(counter, fields, time_s)
        if asked:
            for name in _REPEATED:
                if name in asked:
                    fields[name] = asked[name]
        fields["event.outcome"] = "success"
        if code == _REJECTED or code >= 200:
            self.tally.rejected += 1
            why = code if code >= 200 else body[0] if body else 0
            fields["event.outcome"] = "failure"
            fields["event.code"] = str(why)
            fields["ot.exception"] = REJECTIONS.get(why) or f"rejected_{why}"
        return fields

    def _constants(self, code: int) -> Fields:
        made = self._made.get(code)
        if made is None:
            made = self._made[code] = {**self._base, **_constants(code)}
        return made


_REPEATED = ("event.action", "ot.operation", "ot.point.type", "ot.point.address", "cw.vendor")


def _is_whole(data: bytes) -> bool:
    return crc(data[:-2]) == int.from_bytes(data[-2:], "little")


def _constants(code: int) -> Fields:
    if code >= _ANSWERS_FROM:
        name = ANSWERS.get(code) or REJECTIONS.get(code) or f"answer_{code}"
        operation, is_command, direction = "", False, "response"
    else:
        name = COMMANDS.get(code) or f"command_{code}"
        # A command that nobody has described may do anything.
        operation, is_command = _OPERATIONS.get(code) or ("read", code not in COMMANDS)
        direction = "request"
    made: Fields = {
        "event.action": f"tristation_{name}",
        "ot.function.code": str(code),
        "ot.function.name": name,
        "ot.direction": direction,
        "ot.is_command": is_command,
    }
    return {**made, "ot.operation": operation} if operation else made
