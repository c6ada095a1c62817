"""Omron FINS over UDP and TCP: one event a message, requests and answers joined by service id.

Understood: every command of the memory, parameter, program, mode, clock, file and forcing groups by
name, and which of them change the controller; memory area, address and count of reads, writes,
fills and forced bits, the first value; program areas, file names; the clock that is set; addresses
of the nodes; end codes; opening and errors of FINS/TCP.

Not understood: what program areas, parameter areas and error logs hold.

References:
    Omron W227 (FINS Commands Reference Manual), sections 3 to 5; W342 (Communications Commands,
    CS/CJ series), section 5; W421 (Ethernet units), section 7 (FINS/TCP).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, NamedTuple

from cityward import LogSource, Session, decoder
from collectors.packets.decoders import framed
from collectors.packets.decoders.framed import Framed
from collectors.packets.decoders.pairs import (
    Fields,
    broken,
    printable,
    say,
    turned,
)

FINS = LogSource(category="ot_protocol", service="fins")

FRAME_MAX = 4_096
"""Longest FINS frame over TCP that is awaited; 2 012 bytes are the most that units agree on."""

_HEADER = 12
_MAGIC = b"FINS"
_TCP = Struct(">4sIII")
_U16 = Struct(">H")
_RESPONSE, _NO_ANSWER = 0x40, 0x01
_ALWAYS: Fields = {
    "network.protocol": "fins",
    "event.category": ["process_control"],
}


class Command(NamedTuple):
    """What a command does."""

    name: str
    operation: str
    is_command: bool = False


COMMANDS: dict[int, Command] = {
    0x0101: Command("memory_area_read", "read"),
    0x0102: Command("memory_area_write", "write", True),
    0x0103: Command("memory_area_fill", "write", True),
    0x0104: Command("multiple_memory_area_read", "read"),
    0x0105: Command("memory_area_transfer", "write", True),
    0x0201: Command("parameter_area_read", "read"),
    0x0202: Command("parameter_area_write", "config", True),
    0x0203: Command("parameter_area_clear", "config", True),
    0x0220: Command("data_link_table_read", "read"),
    0x0221: Command("data_link_table_write", "config", True),
    0x0304: Command("program_area_protect", "config", True),
    0x0305: Command("program_area_protect_clear", "config", True),
    0x0306: Command("program_area_read", "program_upload"),
    0x0307: Command("program_area_write", "program_download", True),
    0x0308: Command("program_area_clear", "program_download", True),
    0x0401: Command("run", "mode_change", True),
    0x0402: Command("stop", "mode_change", True),
    0x0403: Command("reset", "restart", True),
    0x0501: Command("controller_data_read", "discovery"),
    0x0502: Command("connection_data_read", "discovery"),
    0x0601: Command("controller_status_read", "diagnostic"),
    0x0602: Command("network_status_read", "diagnostic"),
    0x0603: Command("data_link_status_read", "diagnostic"),
    0x0620: Command("cycle_time_read", "diagnostic"),
    0x0701: Command("clock_read", "read"),
    0x0702: Command("clock_write", "time_sync", True),
    0x0801: Command("loop_back_test", "diagnostic"),
    0x0802: Command("broadcast_test_results_read", "diagnostic"),
    0x0803: Command("broadcast_test_data_send", "diagnostic"),
    0x0920: Command("message_read_or_clear", "alarm"),
    0x0C01: Command("access_right_acquire", "session", True),
    0x0C02: Command("access_right_forced_acquire", "session", True),
    0x0C03: Command("access_right_release", "session", True),
    0x2101: Command("error_clear", "alarm", True),
    0x2102: Command("error_log_read", "diagnostic"),
    0x2103: Command("error_log_clear", "diagnostic", True),
    0x2140: Command("write_access_log_read", "diagnostic"),
    0x2141: Command("write_access_log_clear", "diagnostic", True),
    0x2201: Command("file_name_read", "file"),
    0x2202: Command("single_file_read", "file"),
    0x2203: Command("single_file_write", "file", True),
    0x2204: Command("memory_card_format", "file", True),
    0x2205: Command("file_delete", "file", True),
    0x2206: Command("volume_label_create_or_delete", "file", True),
    0x2207: Command("file_copy", "file", True),
    0x2208: Command("file_name_change", "file", True),
    0x2209: Command("file_data_check", "file"),
    0x220A: Command("memory_area_file_transfer", "file", True),
    0x220B: Command("parameter_area_file_transfer", "file", True),
    0x220C: Command("program_area_file_transfer", "program_download", True),
    0x220F: Command("file_memory_index_read", "file"),
    0x2210: Command("file_memory_read", "file"),
    0x2211: Command("file_memory_write", "file", True),
    0x2215: Command("directory_create_or_delete", "file", True),
    0x2301: Command("forced_set_reset", "control", True),
    0x2302: Command("forced_set_reset_cancel", "control", True),
    0x230A: Command("multiple_forced_status_read", "read"),
    0x2601: Command("name_set", "config", True),
    0x2602: Command("name_delete", "config", True),
    0x2603: Command("name_read", "discovery"),
}

AREAS: dict[int, str] = {
    0x02: "dm_bit",
    0x06: "task_bit",
    0x07: "clock_pulse",
    0x09: "timer_counter_flag",
    0x0A: "em_current_bit",
    **{0x20 + bank: f"em{bank}_bit" for bank in range(16)},
    0x30: "cio_bit",
    0x31: "work_bit",
    0x32: "holding_bit",
    0x33: "auxiliary_bit",
    0x46: "task_status",
    **{0x50 + bank: f"em{bank}_word" for bank in range(16)},
    0x70: "cio_bit_forced",
    0x71: "work_bit_forced",
    0x72: "holding_bit_forced",
    0x00: "cio_bit_cv",
    0x01: "auxiliary_bit_cv",
    0x80: "cio_word_cv",
    0x81: "timer_counter_value_cv",
    0x82: "dm_word",
    0x89: "timer_counter_value",
    0x98: "em_current_word",
    0x9C: "register",
    **{0xA0 + bank: f"em{bank}_word" for bank in range(16)},
    0xB0: "cio_word",
    0xB1: "work_word",
    0xB2: "holding_word",
    0xB3: "auxiliary_word",
    0xBC: "data_register",
    0xDC: "index_register",
}
"""Memory area codes of CS/CJ series, and those of CV series that are others (W342, 5-2-2)."""

END_CODES: dict[int, str] = {
    0x0001: "service_interrupted",
    0x0101: "local_node_not_in_network",
    0x0102: "token_timeout",
    0x0103: "retries_exceeded",
    0x0104: "too_many_send_frames",
    0x0105: "node_address_range_error",
    0x0106: "node_address_duplication",
    0x0201: "destination_node_not_in_network",
    0x0202: "unit_missing",
    0x0203: "third_node_missing",
    0x0204: "destination_node_busy",
    0x0205: "response_timeout",
    0x0301: "communications_controller_error",
    0x0302: "cpu_unit_error",
    0x0303: "controller_error",
    0x0304: "unit_number_error",
    0x0401: "undefined_command",
    0x0402: "not_supported_by_model",
    0x0501: "destination_address_not_in_routing_table",
    0x0502: "no_routing_tables",
    0x0503: "routing_table_error",
    0x0504: "too_many_relays",
    0x1001: "command_too_long",
    0x1002: "command_too_short",
    0x1003: "elements_do_not_match_data",
    0x1004: "command_format_error",
    0x1005: "header_error",
    0x1101: "area_classification_missing",
    0x1102: "access_size_error",
    0x1103: "address_range_error",
    0x1104: "address_range_exceeded",
    0x1106: "program_missing",
    0x1109: "relational_error",
    0x110A: "duplicate_data_access",
    0x110B: "response_too_long",
    0x110C: "parameter_error",
    0x2002: "protected",
    0x2003: "table_missing",
    0x2004: "data_missing",
    0x2005: "program_missing",
    0x2006: "file_missing",
    0x2007: "data_mismatch",
    0x2101: "read_only",
    0x2102: "protected",
    0x2103: "too_many_files_open",
    0x2105: "program_missing",
    0x2106: "file_missing",
    0x2107: "file_exists",
    0x2108: "cannot_change",
    0x2201: "not_possible_during_execution",
    0x2202: "not_possible_while_stopped",
    0x2203: "wrong_mode_program",
    0x2204: "wrong_mode_debug",
    0x2205: "wrong_mode_monitor",
    0x2206: "wrong_mode_run",
    0x2207: "node_not_polling_node",
    0x2208: "step_cannot_be_executed",
    0x2301: "file_device_missing",
    0x2302: "memory_missing",
    0x2303: "clock_missing",
    0x2401: "data_link_table_error",
    0x2502: "memory_error",
    0x2503: "io_setting_error",
    0x2504: "too_many_io_points",
    0x2505: "cpu_bus_error",
    0x2506: "io_duplication",
    0x2507: "io_bus_error",
    0x2509: "sysmac_bus_2_error",
    0x250A: "cpu_bus_unit_error",
    0x250D: "sysmac_bus_number_duplication",
    0x250F: "memory_content_error",
    0x2510: "sysmac_bus_terminator_missing",
    0x2601: "no_protection",
    0x2602: "wrong_password",
    0x2604: "protected",
    0x2605: "service_already_executing",
    0x2606: "service_stopped",
    0x2607: "no_execution_right",
    0x2608: "settings_required",
    0x2609: "required_items_not_set",
    0x260A: "number_already_defined",
    0x260B: "error_will_not_clear",
    0x3001: "no_access_right",
    0x4001: "aborted",
}
"""Main and sub response code (W342, section 5-1-3)."""

_TCP_COMMANDS: dict[int, str] = {
    0: "open",
    1: "open",
    2: "frame",
    3: "send_error",
    6: "confirm",
}
_TCP_ERRORS: dict[int, str] = {
    1: "header_is_not_fins",
    2: "data_too_long",
    3: "command_not_supported",
    0x20: "all_connections_in_use",
    0x21: "node_already_connected",
    0x22: "protected_node",
    0x23: "client_node_address_out_of_range",
    0x24: "node_address_in_use",
    0x25: "no_node_address_free",
}
_MODES = {1: "debug", 2: "monitor", 4: "run"}


class Tally(framed.Tally):
    """What became of the bytes of a conversation, and what was said."""

    requests: int = 0
    responses: int = 0


@decoder("fins", FINS, transport=("udp", "tcp"), ports=(9600,), begins=b"F\x80\x81\xc0\xc1")
class Fins(Framed):
    """One conversation of FINS; either end may ask."""

    head = _TCP.size
    unanswered = "fins_unanswered"
    tally: Tally

    def __init__(self, session: Session) -> None:
        super().__init__(session, _ALWAYS, Tally())
        self._bases = (turned(self._base), self._base)
        self._made: dict[tuple[bool, int], Fields] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a FINS frame with a command that there is, or the header of FINS/TCP."""
        if head[:4] == _MAGIC:
            return len(head) >= _TCP.size and _tcp_fault(head, 0) == ""
        return len(head) >= _HEADER and _is_frame(head)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if not self._is_stream and data[:4] != _MAGIC:
            return len(data), [self._frame(data, from_client, time_s)]
        return super().feed(data, from_client, time_s, frame)

    @staticmethod
    def size(data: bytes, at: int) -> int:
        """See `Framed`."""
        return 0 if _tcp_fault(data, at) else 8 + int(_TCP.unpack_from(data, at)[1])

    @staticmethod
    def fault(data: bytes, at: int) -> str:
        """See `Framed`."""
        return _tcp_fault(data, at)

    @staticmethod
    def next_start(data: bytes, at: int) -> tuple[int, bool]:
        """See `Framed`."""
        start = data.find(_MAGIC, at)
        return (len(data) - 3, True) if start < 0 else (start, False)

    def cut(self, lane: framed.Lane, left: int) -> str:
        """See `Framed`."""
        return "the datagram is cut" if left else ""

    def read(self, data: bytes, from_client: bool, time_s: float) -> Sequence[Fields]:
        """See `Framed`; a message of FINS/TCP (W421, section 7-4)."""
        _, _, command, error = _TCP.unpack_from(data)
        if command == 2 and not error:
            return (self._frame(data[_TCP.size :], from_client, time_s),)
        name = _TCP_COMMANDS[command]
        fields: Fields = {
            **self._bases[from_client if command != 1 else not from_client],
            "event.action": f"fins_tcp_{name}",
            "ot.function.name": f"tcp_{name}",
            "ot.operation": "session",
            "ot.direction": "response" if command in (1, 3) else "request",
            "ot.is_command": False,
        }
        if len(data) >= 24 and command == 1:
            fields["cw.vendor"] = {"client_node": data[19], "server_node": data[23]}
        if error:
            fields |= {
                "event.outcome": "failure",
                "ot.exception": _TCP_ERRORS.get(error) or f"tcp_error_{error}",
            }
        elif command == 1:
            fields["event.outcome"] = "success"
        return (fields,)

    def _frame(self, data: bytes, from_client: bool, time_s: float) -> Fields:
        if len(data) < _HEADER:
            why = f"a FINS frame has at least {_HEADER} bytes, not {len(data)}"
            return self._unreadable(why, from_client)
        control, _, _, target_net, target, target_unit, net, node, unit, service = data[:10]
        code = _U16.unpack_from(data, 10)[0]
        is_response = bool(control & _RESPONSE)
        asker = from_client is not is_response
        fields = self._constants(asker, code).copy()
        fields["event.sequence"] = service
        if target_net or target or target_unit or net or node or unit:
            fields["cw.vendor"] = {
                "from": f"{net}.{node}.{unit}",
                "to": f"{target_net}.{target}.{target_unit}",
            }
        # Who asks and who is asked, as the frame names them.
        ends = data[3:9] if is_response else data[6:9] + data[3:6]
        key = (ends, service, code)
        if is_response:
            self.tally.responses += 1
            self._answer(data, code, key, fields, time_s)
            return fields
        self.tally.requests += 1
        self._content(_REQUESTS.get(code), data, _HEADER, fields)
        if not control & _NO_ANSWER:
            self.pairs.ask(key, fields, time_s)
        return fields

    def _answer(self, data: bytes, code: int, key: Any, fields: Fields, time_s: float) -> None:
        fields |= {"ot.direction": "response", "ot.is_command": False, "event.outcome": "success"}
        asked = self.pairs.answer(key, fields, time_s)
        if asked:
            for name in _REPEATED:
                if name in asked:
                    fields[name] = asked[name]
        if len(data) < _HEADER + 2:
            self.tally.malformed += 1
            broken(fields, "the answer has no end code")
            fields["event.outcome"] = "unknown"
            return
        # The highest bit says that a relay failed, bits 7 and 6 that the unit has an error.
        end = _U16.unpack_from(data, _HEADER)[0] & 0x7F3F
        fields["event.code"] = f"0x{end:04x}"
        if end:
            fields["event.outcome"] = "failure"
            fields["ot.exception"] = END_CODES.get(end) or f"end_code_0x{end:04x}"
            return
        self._content(_ANSWERS.get(code), data, _HEADER + 2, fields)

    def _content(
        self, read: Callable[[bytes, int], Fields] | None, data: bytes, at: int, fields: Fields
    ) -> None:
        if read is None:
            return
        try:
            own = read(data, at)
        except (IndexError, ValueError):
            self.tally.malformed += 1
            broken(fields, f"the {fields['ot.function.name']} is cut, {len(data) - at} bytes")
            return
        if "event.reason" in own:
            say(fields, own.pop("event.reason"))
        if "cw.vendor" in own and "cw.vendor" in fields:
            own["cw.vendor"] = {**fields["cw.vendor"], **own["cw.vendor"]}
        fields |= own

    def _constants(self, asker: bool, code: int) -> Fields:
        made = self._made.get((asker, code))
        if made is None:
            made = {**self._bases[asker], **_constants(code)}
            if len(self._made) < 512:
                self._made[asker, code] = made
        return made


_REPEATED = (
    # Some captures hold both directions as one.
    *("source.ip", "source.port", "destination.ip", "destination.port"),
    *("ot.point.type", "ot.point.address", "ot.point.count", "cw.vendor"),
)


def _constants(code: int) -> Fields:
    command = COMMANDS.get(code)
    name = command.name if command else f"command_0x{code:04x}"
    return {
        "event.action": f"fins_{name}",
        "ot.function.code": f"0x{code:04x}",
        "ot.function.name": name,
        "ot.direction": "request",
        # A command that nobody has described may do anything.
        "ot.is_command": command.is_command if command else True,
        **({"ot.operation": command.operation} if command else {}),
    }


def _is_frame(data: bytes) -> bool:
    """Whether control, reserved byte, gateways and command are those of FINS (W342, 5-1-1)."""
    if data[0] & 0xBE != 0x80 or data[1] or data[2] > 7:
        return False
    return _U16.unpack_from(data, 10)[0] in COMMANDS and (not data[0] & 0x40 or len(data) >= 14)


def _tcp_fault(data: bytes, at: int) -> str:
    magic, length, command, _ = _TCP.unpack_from(data, at)
    if magic != _MAGIC:
        return f"{data[at : at + 4].hex()} begins no message of FINS/TCP"
    if command not in _TCP_COMMANDS:
        return f"FINS/TCP has no command {command}"
    if not 8 <= length <= FRAME_MAX:
        return f"a message of FINS/TCP has 8 to {FRAME_MAX} bytes, not {length}"
    return ""


# Contents: frame and where its text begins → fields.


def _area(data: bytes, at: int) -> Fields:
    """Memory area, address and bit (W342, section 5-2-2)."""
    kind, address, bit = data[at], _count(data, at + 1), data[at + 3]
    own: Fields = {
        "ot.point.type": AREAS.get(kind) or f"area_0x{kind:02x}",
        "ot.point.address": address,
    }
    if own["ot.point.type"].endswith(("bit", "forced", "bit_cv")):
        own["cw.vendor"] = {"bit": bit}
    return own


def _count(data: bytes, at: int) -> int:
    return data[at] << 8 | data[at + 1]


def _read(data: bytes, at: int) -> Fields:
    own = _area(data, at)
    return {**own, "ot.point.count": _count(data, at + 4)}


def _write(data: bytes, at: int) -> Fields:
    own = _read(data, at)
    if own["ot.point.count"]:
        is_bit = "bit" in own["ot.point.type"]
        own["ot.value"] = data[at + 6] if is_bit else _count(data, at + 6)
    return own


def _multiple(data: bytes, at: int) -> Fields:
    return {**_area(data, at), "ot.point.count": (len(data) - at) // 4}


def _transfer(data: bytes, at: int) -> Fields:
    """From one range to another: the point is where it goes."""
    origin, target = _area(data, at), _area(data, at + 4)
    said = f"{origin['ot.point.type']} {origin['ot.point.address']}"
    vendor = {**target.get("cw.vendor", {}), "origin": said}
    return {**target, "ot.point.count": _count(data, at + 8), "cw.vendor": vendor}


def _parameters(data: bytes, at: int) -> Fields:
    return {
        "ot.point.type": f"parameter_area_0x{_count(data, at):04x}",
        "ot.point.address": _count(data, at + 2),
        "ot.point.count": _count(data, at + 4) & 0x7FFF,
    }


def _program(data: bytes, at: int) -> Fields:
    """Program number, first byte and how many (W342, section 5-3-8)."""
    count = _count(data, at + 6)
    return {
        "ot.point.type": "program",
        "ot.point.address": int.from_bytes(data[at + 2 : at + 6]),
        "ot.point.count": count & 0x7FFF,
        "cw.vendor": {"program": _count(data, at), "is_last": bool(count & 0x8000)},
    }


def _program_number(data: bytes, at: int) -> Fields:
    return {"ot.point.type": "program", "cw.vendor": {"program": _count(data, at)}}


def _run(data: bytes, at: int) -> Fields:
    if len(data) < at + 3:
        return {"ot.function.sub": "monitor"}
    return {"ot.function.sub": _MODES.get(data[at + 2]) or f"mode_{data[at + 2]}"}


def _clock(data: bytes, at: int) -> Fields:
    """Year to minute, and where they are given second and day of the week, in BCD."""
    year, month, day, hour, minute = data[at : at + 5]
    second = data[at + 5] if len(data) > at + 5 else 0
    return {
        "ot.value_raw": f"{year:02x}-{month:02x}-{day:02x} {hour:02x}:{minute:02x}:{second:02x}"
    }


def _forced(data: bytes, at: int) -> Fields:
    """How many bits are forced, the first of them, and to what (W342, section 5-3-35)."""
    count = _count(data, at)
    if not count:
        return {"ot.point.count": 0}
    own = {**_area(data, at + 4), "ot.point.count": count}
    kind = _count(data, at + 2)
    said = {0: "reset", 1: "set", 0x8000: "release_off", 0x8001: "release_on", 0xFFFF: "release"}
    own["ot.function.sub"] = said.get(kind) or f"0x{kind:04x}"
    if kind in (0, 1):
        own["ot.value"] = kind
    return own


def _file(data: bytes, at: int) -> Fields:
    """Disk and name of a file, eight letters and three."""
    name = printable(data[at + 2 : at + 14].split(b"\0")[0]).strip()
    return {"file.name": name, "cw.vendor": {"disk": _count(data, at)}} if name else {}


def _controller(data: bytes, at: int) -> Fields:
    """Model and version (W342, section 5-3-17)."""
    model = printable(data[at : at + 20]).strip(" .")
    version = printable(data[at + 20 : at + 40]).strip(" .")
    own: Fields = {"cw.vendor": {"model": model}} if model else {}
    return {**own, "ot.firmware.version": version} if version else own


def _value_read(data: bytes, at: int) -> Fields:
    """The first word; of a read of bits each has a byte."""
    left = len(data) - at
    if not left:
        return {}
    return {"ot.value": _count(data, at) if left > 1 and not left & 1 else data[at]}


_REQUESTS: dict[int, Callable[[bytes, int], Fields]] = {
    0x0101: _read,
    0x0102: _write,
    0x0103: _write,
    0x0104: _multiple,
    0x0105: _transfer,
    0x0201: _parameters,
    0x0202: _parameters,
    0x0203: _parameters,
    **dict.fromkeys((0x0304, 0x0305, 0x0308), _program_number),
    **dict.fromkeys((0x0306, 0x0307), _program),
    0x0401: _run,
    0x0702: _clock,
    **dict.fromkeys((0x2202, 0x2203), _file),
    0x2301: _forced,
}
_ANSWERS: dict[int, Callable[[bytes, int], Fields]] = {
    0x0101: _value_read,
    0x0501: _controller,
    0x0701: _clock,
}
