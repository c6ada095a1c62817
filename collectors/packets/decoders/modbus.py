"""Modbus/TCP: one event a message, requests and answers joined by transaction and unit.

What a message means beyond its header is data: tables at the top, one small function for each kind
of content behind the class.

Understood: all public function codes with unit, addresses, counts and values, diagnostics and
device identification, exceptions, Schneider's UMAS (function 90), requests and answers joined.

Not understood: Modbus RTU inside TCP and Modbus/TCP Security.

References:
    MODBUS Application Protocol Specification V1.1b3 (function codes, sub-functions, exceptions).
    MODBUS Messaging on TCP/IP Implementation Guide V1.0b, section 3.1.3 (MBAP header).
    UMAS (function 90) is Schneider Electric's and unpublished; its codes are those that
    researchers and open dissectors agree on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder

MODBUS = LogSource(category="ot_protocol", service="modbus")

LENGTH_MAX = 254
"""MBAP length: unit and at most 253 bytes of PDU."""
UMAS_LENGTH_MAX = 1_030
"""Modicon controllers agree on larger UMAS messages than Modbus allows."""
OPEN_MAX = 64
"""Requests of one conversation that wait for an answer."""
VALUES_SHOWN = 16
"""Values of one message that `ot.value_raw` lists."""

Fields = dict[str, Any]


class Function(msgspec.Struct, frozen=True):
    """What a function code, or a sub-function, does."""

    name: str
    operation: str
    is_command: bool = False
    point: str = ""


FUNCTIONS: dict[int, Function] = {
    1: Function("read_coils", "read", point="coil"),
    2: Function("read_discrete_inputs", "read", point="discrete_input"),
    3: Function("read_holding_registers", "read", point="holding_register"),
    4: Function("read_input_registers", "read", point="input_register"),
    5: Function("write_single_coil", "write", True, "coil"),
    6: Function("write_single_register", "write", True, "holding_register"),
    7: Function("read_exception_status", "diagnostic"),
    8: Function("diagnostics", "diagnostic"),
    11: Function("get_comm_event_counter", "diagnostic"),
    12: Function("get_comm_event_log", "diagnostic"),
    15: Function("write_multiple_coils", "write", True, "coil"),
    16: Function("write_multiple_registers", "write", True, "holding_register"),
    17: Function("report_server_id", "discovery"),
    20: Function("read_file_record", "file", point="file_record"),
    21: Function("write_file_record", "file", True, "file_record"),
    22: Function("mask_write_register", "write", True, "holding_register"),
    23: Function("read_write_multiple_registers", "write", True, "holding_register"),
    24: Function("read_fifo_queue", "read", point="holding_register"),
    43: Function("encapsulated_interface_transport", "discovery"),
    90: Function("umas", "session"),
}

DIAGNOSTICS: dict[int, Function] = {
    0: Function("return_query_data", "diagnostic"),
    1: Function("restart_communications", "restart", True),
    2: Function("return_diagnostic_register", "diagnostic"),
    3: Function("change_ascii_delimiter", "config", True),
    4: Function("force_listen_only_mode", "mode_change", True),
    10: Function("clear_counters", "diagnostic", True),
    11: Function("return_bus_message_count", "diagnostic"),
    12: Function("return_bus_communication_error_count", "diagnostic"),
    13: Function("return_bus_exception_error_count", "diagnostic"),
    14: Function("return_server_message_count", "diagnostic"),
    15: Function("return_server_no_response_count", "diagnostic"),
    16: Function("return_server_nak_count", "diagnostic"),
    17: Function("return_server_busy_count", "diagnostic"),
    18: Function("return_bus_character_overrun_count", "diagnostic"),
    20: Function("clear_overrun_counter", "diagnostic", True),
}

MEI: dict[int, Function] = {
    13: Function("canopen_general_reference", "control", True),
    14: Function("read_device_identification", "discovery"),
}

# "Upload" and "download" are the vendor's words: its upload goes from the engineering station to
# the controller, its download blocks come back from there.
UMAS: dict[int, Function] = {
    0x01: Function("init_communication", "session"),
    0x02: Function("read_id", "discovery"),
    0x03: Function("read_project_info", "discovery"),
    0x04: Function("read_plc_info", "discovery"),
    0x06: Function("read_card_info", "discovery"),
    0x0A: Function("repeat", "diagnostic"),
    0x10: Function("take_reservation", "session", True),
    0x11: Function("release_reservation", "session", True),
    0x12: Function("keep_alive", "session"),
    0x20: Function("read_memory_block", "read"),
    0x22: Function("read_variables", "read"),
    0x23: Function("write_variables", "write", True),
    0x24: Function("read_coils_registers", "read"),
    0x25: Function("write_coils_registers", "write", True),
    0x30: Function("initialize_upload", "program_upload", True),
    0x31: Function("upload_block", "program_upload", True),
    0x32: Function("end_strategy_upload", "program_upload", True),
    0x33: Function("initialize_download", "program_download", True),
    0x34: Function("download_block", "program_download", True),
    0x35: Function("end_strategy_download", "program_download", True),
    0x39: Function("read_ethernet_master_data", "read"),
    0x40: Function("start_plc", "mode_change", True),
    0x41: Function("stop_plc", "mode_change", True),
    0x50: Function("monitor_plc", "read"),
    0x58: Function("check_plc", "diagnostic"),
    0x70: Function("read_io_object", "read"),
    0x71: Function("write_io_object", "write", True),
    0x73: Function("get_status_module", "read"),
}
UMAS_OK, UMAS_REFUSED = 0xFE, 0xFD

EXCEPTIONS: dict[int, str] = {
    1: "illegal_function",
    2: "illegal_data_address",
    3: "illegal_data_value",
    4: "server_device_failure",
    5: "acknowledge",
    6: "server_device_busy",
    7: "negative_acknowledge",
    8: "memory_parity_error",
    10: "gateway_path_unavailable",
    11: "gateway_target_failed_to_respond",
}

DEVICE_ID: dict[int, str] = {
    0: "vendor_name",
    1: "product_code",
    2: "major_minor_revision",
    3: "vendor_url",
    4: "product_name",
    5: "model_name",
    6: "user_application_name",
}

# Function code → (PDU bytes without counted ones, index of the byte that counts the rest or 0).
_REQUEST_SIZES: dict[int, tuple[int, int]] = {
    **dict.fromkeys((1, 2, 3, 4, 5, 6), (5, 0)),
    **dict.fromkeys((7, 11, 12, 17), (1, 0)),
    **dict.fromkeys((15, 16), (6, 5)),
    **dict.fromkeys((20, 21), (2, 1)),
    22: (7, 0),
    23: (10, 9),
    24: (3, 0),
}
_RESPONSE_SIZES: dict[int, tuple[int, int]] = {
    **dict.fromkeys((1, 2, 3, 4, 12, 17, 20, 21, 23), (2, 1)),
    **dict.fromkeys((5, 6, 11, 15, 16), (5, 0)),
    7: (2, 0),
    22: (7, 0),
    24: (3, 2),
}
_MINIMUM: dict[int, int] = {8: 3, 43: 2, 90: 3}
_ADDRESSED = frozenset((1, 2, 3, 4, 5, 6, 15, 16, 22, 24))

_HEAD = Struct(">HHHBB")
_PAIR = Struct(">HH")
_WORD = Struct(">H")
_WORDS = tuple(Struct(f">{count}H") for count in range(VALUES_SHOWN + 1))
_TEXT = tuple(str(number) for number in range(256))
_BITS = tuple(",".join(f"{byte:08b}"[::-1]) for byte in range(256))
_COIL = {0x0000: 0, 0xFF00: 1}

# Where a header may begin: protocol 0 and a length behind the two bytes of the transaction.
_PROTOCOL = re.compile(rb"(?=\x00\x00(?:\x00[\x02-\xff]|[\x01-\x04]))", re.DOTALL)


class Open(msgspec.Struct, frozen=True, gc=False):
    """A request that waits for its answer."""

    code: int
    address: int
    count: int
    link: str
    time_s: float
    sub: int


class Tally(msgspec.Struct):
    """What became of the bytes of a conversation; for tests and for health."""

    requests: int = 0
    responses: int = 0
    exceptions: int = 0
    malformed: int = 0
    unmatched: int = 0
    """Answers whose request was not seen."""
    unanswered: int = 0
    """Requests that nobody answered, or given up because too many were open."""
    skipped_bytes: int = 0
    """Passed over in search of the next message."""


class Lane(msgspec.Struct):
    """One direction."""

    lost: bool = False
    """The boundary of messages is not known."""
    rest: int = 0
    """Bytes of a message that is not yet whole."""


@decoder("modbus", MODBUS, ports=(502,))
class Modbus:
    """One Modbus/TCP conversation."""

    def __init__(self, session: Session) -> None:
        self.tally = Tally()
        self._base = session.base
        self._ends = f"{session.client}>{session.server}"
        self._link = ""
        self._lanes = (Lane(), Lane())
        self._open: dict[int, Open] = {}
        self._requests: dict[int, Fields] = {}
        self._responses: dict[int, Fields] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; whole messages that fit their function code, in either direction."""
        if head[2:4] != b"\0\0":
            return False
        return _looks_like(head, True) or _looks_like(head, False)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if not self._link:
            self._link = _link_prefix(self._ends, time_s)
        lane = self._lanes[from_client]
        read = self._request if from_client else self._response
        found: list[Fields] = []
        at, end = 0, len(data)
        while end - at >= 8:
            if lane.lost:
                start, lane.lost = _next_message(data, at, from_client)
                self.tally.skipped_bytes += start - at
                at = start
                if lane.lost:
                    break
            head = _HEAD.unpack_from(data, at)
            _, protocol, length, _, code = head
            if protocol or length < 2 or (length > LENGTH_MAX and not _is_large(length, code)):
                found.append(self._unreadable(_header_fault(protocol, length)))
                lane.lost = True
                self.tally.skipped_bytes += 1
                at += 1
                continue
            stop = at + 6 + length
            if stop > end:
                break
            fields, size = read(data, at + 7, stop, head, time_s)
            found.append(fields)
            # A length that says more than the function needs may hide messages behind it.
            lies = size and size < length - 1 and _has_header(data, at + 7 + size, stop)
            at = at + 7 + size if lies else stop
        lane.rest = 0 if lane.lost else end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        self.tally.skipped_bytes += lane.rest
        lane.lost, lane.rest = True, 0

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; commands that nobody answered, and messages that were cut."""
        found = [self._unanswered(waits, unit_of) for unit_of, waits in self._open.items()]
        self.tally.unanswered += len(found)
        self._open.clear()
        for lane, who in zip(self._lanes, ("server", "client"), strict=True):
            if lane.rest:
                why = f"the conversation ended {lane.rest} bytes into a message of the {who}"
                found.append(self._unreadable(why))
                lane.rest = 0
        return [fields for fields in found if fields]

    def _request(
        self, data: bytes, at: int, stop: int, head: tuple[int, ...], time_s: float
    ) -> tuple[Fields, int]:
        tid, _, _, unit, code = head
        tally = self.tally
        tally.requests += 1
        constants = self._requests.get(code) or self._request_constants(code)
        link = f"{self._link}{tally.requests}"
        size = _size(_REQUEST_SIZES, code, data, at, stop)
        sub = 0
        if code < 5 and stop - at == 5 and code:
            address, count = _PAIR.unpack_from(data, at + 1)
            fields = {
                **constants,
                "ot.unit": _TEXT[unit],
                "event.sequence": tid,
                "ot.link_id": link,
                "ot.point.address": address,
                "ot.point.count": count,
            }
        else:
            own, sub = self._request_content(data[at:stop], size)
            fields = {
                **constants,
                "ot.unit": _TEXT[unit],
                "event.sequence": tid,
                "ot.link_id": link,
                **own,
            }
            address, count = _awaited(code, fields)
        waiting = self._open
        key = tid << 8 | unit
        if key in waiting or len(waiting) >= OPEN_MAX:
            _say(fields, self._give_up(key))
        waiting[key] = Open(code, address, count, link, time_s, sub)
        return fields, size

    def _give_up(self, key: int) -> str:
        """Forget the request that has the same key, or else the oldest; says so."""
        self.tally.unanswered += 1
        if key in self._open:
            self._open.pop(key)
            return f"transaction {key >> 8} begins again before its request was answered"
        oldest = next(iter(self._open))
        self._open.pop(oldest)
        return f"request {oldest >> 8} given up unanswered, {OPEN_MAX} are open"

    def _request_content(self, pdu: bytes, size: int) -> tuple[Fields, int]:
        code = pdu[0]
        why = _size_fault(code, len(pdu), size) or (
            f"function code {code} of a request has the bit of an exception" if code > 127 else ""
        )
        if why:
            return self._broken(pdu, why), 0
        handler = _REQUESTS.get(code)
        own = handler(pdu) if handler else {}
        if "event.kind" in own:
            self.tally.malformed += 1
        return own, _sub(pdu)

    def _response(
        self, data: bytes, at: int, stop: int, head: tuple[int, ...], time_s: float
    ) -> tuple[Fields, int]:
        tid, _, _, unit, code = head
        self.tally.responses += 1
        key = tid << 8 | unit
        asked = self._open.get(key)
        own: Fields = {"ot.unit": _TEXT[unit], "event.sequence": tid}
        if asked is None:
            self.tally.unmatched += 1
            own["event.reason"] = "no request was seen for this answer"
        elif asked.code != code & 127:
            self.tally.unmatched += 1
            own["event.reason"] = f"answers function {code & 127}, {asked.code} was asked"
            asked = None
        else:
            del self._open[key]
            own["ot.link_id"] = asked.link
            if time_s >= asked.time_s:
                own["event.duration"] = int((time_s - asked.time_s) * 1e9)
            if asked.address >= 0:
                own["ot.point.address"] = asked.address
            if asked.count >= 0:
                own["ot.point.count"] = asked.count
        if code > 127:
            return self._exception(data[at:stop], own, asked), 2
        size = _size(_RESPONSE_SIZES, code, data, at, stop)
        constants = self._responses.get(code) or self._response_constants(code)
        pdu = data[at:stop]
        why = _size_fault(code, stop - at, size)
        handler = _RESPONSES.get(code)
        if why:
            content = self._broken(pdu, why)
        else:
            content = handler(pdu, asked) if handler else {}
            self.tally.malformed += "event.kind" in content
        if "event.reason" in own and "event.reason" in content:
            content["event.reason"] = f"{own['event.reason']}; {content['event.reason']}"
        return {**constants, **own, **content}, size

    def _exception(self, pdu: bytes, own: Fields, asked: Open | None) -> Fields:
        self.tally.exceptions += 1
        constants = self._responses.get(pdu[0] & 127) or self._response_constants(pdu[0] & 127)
        code = pdu[1] if len(pdu) > 1 else 0
        fields = {
            **constants,
            **own,
            **(_constants_of_sub(asked.code, asked.sub) if asked else {}),
            "ot.is_command": False,
            "event.outcome": "failure",
            "event.code": _TEXT[code],
            "ot.exception": EXCEPTIONS.get(code) or f"exception_{code}",
        }
        if len(pdu) != 2:
            fields["event.kind"] = "pipeline_error"
            self.tally.malformed += 1
            _say(fields, f"an exception has 2 bytes, not {len(pdu)}")
        return fields

    def _request_constants(self, code: int) -> Fields:
        made = {**self._base, **_constants(code), "ot.direction": "request"}
        self._requests[code] = made
        return made

    def _response_constants(self, code: int) -> Fields:
        made = {
            **self._base,
            **_constants(code),
            "ot.direction": "response",
            "ot.is_command": False,
            "event.outcome": "success",
        }
        self._responses[code] = made
        return made

    def _broken(self, pdu: bytes, why: str) -> Fields:
        self.tally.malformed += 1
        own: Fields = {"event.kind": "pipeline_error", "event.reason": why}
        if pdu[0] in _ADDRESSED and len(pdu) >= 3:
            own["ot.point.address"] = _WORD.unpack_from(pdu, 1)[0]
        return own

    def _unreadable(self, why: str) -> Fields:
        self.tally.malformed += 1
        return {
            **self._base,
            **_ALWAYS,
            "event.kind": "pipeline_error",
            "event.action": "unreadable",
            "event.outcome": "failure",
            "event.reason": why,
        }

    def _unanswered(self, waits: Open, key: int) -> Fields:
        """Fields of a command nobody answered; empty for anything else, which is only counted."""
        constants = {
            **(self._requests.get(waits.code) or self._request_constants(waits.code)),
            **_constants_of_sub(waits.code, waits.sub),
        }
        if not constants.get("ot.is_command"):
            return {}
        return {
            **constants,
            "event.action": "modbus_unanswered",
            "event.outcome": "unknown",
            "event.reason": f"no answer to the {constants['ot.function.name']} of {waits.link}",
            "event.sequence": key >> 8,
            "ot.is_command": False,
            "ot.unit": _TEXT[key & 255],
            "ot.link_id": waits.link,
            **({"ot.point.address": waits.address} if waits.address >= 0 else {}),
        }


_ALWAYS: Fields = {
    "network.protocol": "modbus",
    "event.category": ["process_control"],
}


def _constants(code: int) -> Fields:
    function = FUNCTIONS.get(code)
    if function is None:
        name = _unknown_name(code)
        return {
            **_ALWAYS,
            "event.action": "modbus_unknown_function",
            "ot.function.code": str(code),
            "ot.function.name": name,
        }
    made = {
        **_ALWAYS,
        "event.action": f"modbus_{function.name}",
        "ot.function.code": str(code),
        "ot.function.name": function.name,
        "ot.operation": function.operation,
        "ot.is_command": function.is_command,
    }
    return {**made, "ot.point.type": function.point} if function.point else made


def _unknown_name(code: int) -> str:
    """How the specification, section 4.1 and annex A, calls a code that it does not define."""
    if 65 <= code <= 72 or 100 <= code <= 110:
        return f"user_defined_{code}"
    if code in (9, 10, 13, 14, 18, 19, 40, 41, 42, 91, 125, 126, 127):
        return f"reserved_{code}"
    return f"unassigned_{code}"


def _sub_constants(kind: str, code: str, function: Function) -> Fields:
    return {
        "event.action": f"modbus_{kind}{function.name}",
        "ot.function.sub": code,
        "ot.operation": function.operation,
        "ot.is_command": function.is_command,
    }


_SUBS: dict[int, dict[int, Fields]] = {
    8: {sub: _sub_constants("", str(sub), of) for sub, of in DIAGNOSTICS.items()},
    43: {sub: _sub_constants("", str(sub), of) for sub, of in MEI.items()},
    90: {sub: _sub_constants("umas_", f"0x{sub:02x}", of) for sub, of in UMAS.items()},
}


def _constants_of_sub(code: int, sub: int) -> Fields:
    table = _SUBS.get(code)
    if table is None:
        return {}
    return table.get(sub) or {"ot.function.sub": f"0x{sub:02x}" if code == 90 else str(sub)}


def _sub(pdu: bytes) -> int:
    """Sub-function of a whole request; 0 where the function has none."""
    if pdu[0] == 8:
        return int.from_bytes(pdu[1:3])
    return pdu[1] if pdu[0] == 43 else pdu[2] if pdu[0] == 90 else 0


# How long a message is, and where the next one begins.


def _is_large(length: int, code: int) -> bool:
    return code == 90 and length <= UMAS_LENGTH_MAX


def _size(sizes: dict[int, tuple[int, int]], code: int, data: bytes, at: int, stop: int) -> int:
    """Bytes of PDU that the function code asks for; 0 if it leaves that open."""
    rule = sizes.get(code)
    if rule is None:
        return 0
    fixed, counted = rule
    if not counted:
        return fixed
    return fixed + data[at + counted] if at + counted < stop else fixed


def _size_fault(code: int, given: int, wanted: int) -> str:
    if wanted and given != wanted:
        return f"function {code} has {wanted} bytes here, the message has {given}"
    least = _MINIMUM.get(code, 1)
    return f"function {code} has at least {least} bytes, not {given}" if given < least else ""


def _header_fault(protocol: int, length: int) -> str:
    if protocol:
        return f"protocol identifier {protocol}, Modbus has 0"
    return f"length {length} in the header, possible is 2 to {LENGTH_MAX}"


def _fits(data: bytes, at: int, from_client: bool) -> int:
    """Length of the message at `at` if its parts agree, -1 if it is not whole, else 0."""
    _, protocol, length, _, code = _HEAD.unpack_from(data, at)
    if protocol or length < 2 or (length > LENGTH_MAX and not _is_large(length, code)):
        return 0
    if code > 127:
        if from_client or length != 3:
            return 0
        if at + 9 > len(data):
            return -1
        return 9 if data[at + 8] in EXCEPTIONS else 0
    if code not in FUNCTIONS:
        return 0
    stop = at + 6 + length
    sizes = _REQUEST_SIZES if from_client else _RESPONSE_SIZES
    counted = sizes.get(code, (0, 0))[1]
    if at + 7 + counted < len(data):
        size = _size(sizes, code, data, at + 7, stop)
        if _size_fault(code, length - 1, size):
            return 0
    return 6 + length if stop <= len(data) else -1


def _next_message(data: bytes, at: int, from_client: bool) -> tuple[int, bool]:
    """Where the next message begins, and True if that is not certain yet."""
    end = len(data)
    keep = max(at, end - 7)
    for match in _PROTOCOL.finditer(data, at + 2):
        start = match.start() - 2
        if end - start < 8:
            break
        size = _fits(data, start, from_client)
        if size < 0:
            keep = min(keep, start)
        elif size and (end - start - size < 8 or _fits(data, start + size, from_client)):
            return start, False
    return keep, True


def _has_header(data: bytes, at: int, stop: int) -> bool:
    """True if a message that fits its function lies inside what another message claims."""
    return stop - at >= 8 and (_fits(data, at, True) > 0 or _fits(data, at, False) > 0)


def _looks_like(head: bytes, from_client: bool) -> bool:
    at, end = 0, len(head)
    while end - at >= 8:
        size = _fits(head, at, from_client)
        if size == 0:
            return at == 0 and _is_scan(head)
        if size < 0:
            # Only a beginning: its length and its count agreed, but nothing behind confirms it.
            return at > 0 or (head[at + 7] != 43 and head[at + 7] != 8)
        at += size
    return at > 0


def _is_scan(head: bytes) -> bool:
    """True for one message with a function code nobody defined: a scan begins like that."""
    length = int.from_bytes(head[4:6])
    return len(head) == 12 and length == 6 and head[2:4] == b"\0\0" and head[7] not in FUNCTIONS


def _link_prefix(ends: str, time_s: float) -> str:
    """Short, and the same when the same capture is read again."""
    return hashlib.blake2b(f"{ends} {time_s}".encode(), digest_size=6).hexdigest() + "."


# Contents of requests: PDU → fields. The size of the PDU has been checked.


def _say(fields: Fields, why: str) -> None:
    fields["event.reason"] = f"{fields['event.reason']}; {why}" if "event.reason" in fields else why


def _impossible(why: str) -> Fields:
    return {"event.kind": "pipeline_error", "event.reason": why}


def _registers(data: bytes, at: int, count: int) -> Fields:
    """First value, and where there are several the list of them."""
    shown = _WORDS[min(count, VALUES_SHOWN)].unpack_from(data, at)
    if count == 1:
        return {"ot.value": shown[0]}
    more = ",…" if count > VALUES_SHOWN else ""
    return {"ot.value": shown[0], "ot.value_raw": ",".join(map(str, shown)) + more}


def _coils(data: bytes, at: int, count: int) -> Fields:
    """First value, and where there are several the list of them; lowest bit first."""
    if count == 1:
        return {"ot.value": data[at] & 1}
    text = _BITS[data[at]]
    if count > 8:
        text = f"{text},{_BITS[data[at + 1]]}"
    more = ",…" if count > VALUES_SHOWN else ""
    return {"ot.value": data[at] & 1, "ot.value_raw": text[: 2 * count - 1] + more}


def _awaited(code: int, fields: Fields) -> tuple[int, int]:
    """Address and count that the answer is about; -1 where the request names none."""
    if code == 23 and "cw.vendor" in fields:
        return fields["cw.vendor"]["read_address"], fields["cw.vendor"]["read_count"]
    return fields.get("ot.point.address", -1), fields.get("ot.point.count", -1)


def _read(pdu: bytes) -> Fields:
    address, count = _PAIR.unpack_from(pdu, 1)
    return {"ot.point.address": address, "ot.point.count": count}


def _write_coil(pdu: bytes) -> Fields:
    address, state = _PAIR.unpack_from(pdu, 1)
    own: Fields = {"ot.point.address": address, "ot.point.count": 1}
    if state in _COIL:
        return {**own, "ot.value": _COIL[state]}
    raw = f"0x{state:04x}"
    return {**own, "ot.value_raw": raw, **_impossible(f"coil value {raw} is neither on nor off")}


def _write_register(pdu: bytes) -> Fields:
    address, value = _PAIR.unpack_from(pdu, 1)
    return {"ot.point.address": address, "ot.point.count": 1, "ot.value": value}


def _write_coils(pdu: bytes) -> Fields:
    own = _read(pdu)
    count = own["ot.point.count"]
    if pdu[5] != (count + 7) // 8:
        return {**own, **_impossible(f"{count} coils do not fill {pdu[5]} bytes")}
    return {**own, **_coils(pdu, 6, count)} if count else own


def _write_registers(pdu: bytes) -> Fields:
    own = _read(pdu)
    count = own["ot.point.count"]
    if pdu[5] != 2 * count:
        return {**own, **_impossible(f"{count} registers do not fill {pdu[5]} bytes")}
    return {**own, **_registers(pdu, 6, count)} if count else own


def _mask_write(pdu: bytes) -> Fields:
    address, both = _WORD.unpack_from(pdu, 1)[0], _PAIR.unpack_from(pdu, 3)
    raw = f"and=0x{both[0]:04x} or=0x{both[1]:04x}"
    return {"ot.point.address": address, "ot.point.count": 1, "ot.value_raw": raw}


def _read_write(pdu: bytes) -> Fields:
    """The written range; the range that is read stands in `cw.vendor`."""
    read_address, read_count = _PAIR.unpack_from(pdu, 1)
    address, count = _PAIR.unpack_from(pdu, 5)
    own: Fields = {
        "ot.point.address": address,
        "ot.point.count": count,
        "cw.vendor": {"read_address": read_address, "read_count": read_count},
    }
    values = pdu[9] // 2
    if pdu[9] != 2 * count:
        own = {**own, **_impossible(f"{count} registers do not fill {pdu[9]} bytes")}
    return {**own, **_registers(pdu, 10, values)} if values else own


def _fifo(pdu: bytes) -> Fields:
    return {"ot.point.address": _WORD.unpack_from(pdu, 1)[0]}


def _file(pdu: bytes) -> Fields:
    """First record of a file request: type 6, file, record, length (sections 6.14 and 6.15)."""
    if len(pdu) < 9:
        return {}
    file, record = _PAIR.unpack_from(pdu, 3)
    length = _WORD.unpack_from(pdu, 7)[0]
    return {"ot.point.address": record, "cw.vendor": {"file": file, "registers": length}}


def _diagnostics(pdu: bytes) -> Fields:
    sub = _WORD.unpack_from(pdu, 1)[0]
    own = _constants_of_sub(8, sub)
    return {**own, "ot.value": _WORD.unpack_from(pdu, 3)[0]} if len(pdu) == 5 else dict(own)


def _encapsulated(pdu: bytes) -> Fields:
    own = _constants_of_sub(43, pdu[1])
    if pdu[1] == 14 and len(pdu) == 4:
        return {**own, "cw.vendor": {"read_device_id": pdu[2], "object": pdu[3]}}
    return dict(own)


def _umas(pdu: bytes) -> Fields:
    own = {**_constants_of_sub(90, pdu[2]), "cw.vendor": {"umas_key": pdu[1]}}
    if pdu[2] == 0x10 and len(pdu) > 8:
        name = pdu[8 : 8 + pdu[7]]
        own["cw.vendor"]["umas_client"] = _printable(name)
    return own


def _printable(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


_REQUESTS: dict[int, Callable[[bytes], Fields]] = {
    **dict.fromkeys((1, 2, 3, 4), _read),
    5: _write_coil,
    6: _write_register,
    8: _diagnostics,
    15: _write_coils,
    16: _write_registers,
    20: _file,
    21: _file,
    22: _mask_write,
    23: _read_write,
    24: _fifo,
    43: _encapsulated,
    90: _umas,
}


# Contents of answers: PDU and what was asked → fields.


def _bits_read(pdu: bytes, asked: Open | None) -> Fields:
    count = asked.count if asked and asked.count >= 0 else 8 * pdu[1]
    if pdu[1] != (count + 7) // 8:
        return _impossible(f"{pdu[1]} bytes answer {count} points")
    return _coils(pdu, 2, count) if count else {}


def _registers_read(pdu: bytes, asked: Open | None) -> Fields:
    count = asked.count if asked and asked.count >= 0 else pdu[1] // 2
    if pdu[1] != 2 * count:
        return _impossible(f"{pdu[1]} bytes answer {count} registers")
    own = _registers(pdu, 2, count) if count else {}
    return own if asked else {"ot.point.count": count, **own}


def _echo(pdu: bytes, asked: Open | None) -> Fields:
    own = _REQUESTS[pdu[0]](pdu) if pdu[0] < 15 or pdu[0] == 22 else _read(pdu)
    if asked and (own["ot.point.address"], own["ot.point.count"]) != (asked.address, asked.count):
        _say(own, f"{asked.count} points at {asked.address} were asked")
    return own


def _queue(pdu: bytes, asked: Open | None) -> Fields:
    """A queue's registers behind two counts: of bytes and of registers (section 6.18)."""
    if len(pdu) < 5:
        return _impossible("the queue has no count")
    count = _WORD.unpack_from(pdu, 3)[0]
    if len(pdu) != 5 + 2 * count:
        return {"ot.point.count": count, **_impossible(f"{len(pdu)} bytes hold {count} registers")}
    return {"ot.point.count": count, **(_registers(pdu, 5, count) if count else {})}


def _status(pdu: bytes, asked: Open | None) -> Fields:
    return {"ot.value": pdu[1]}


def _server_id(pdu: bytes, asked: Open | None) -> Fields:
    return {"cw.vendor": {"server_id": _printable(pdu[2:])}}


def _diagnosed(pdu: bytes, asked: Open | None) -> Fields:
    return {**_diagnostics(pdu), "ot.is_command": False}


def _identified(pdu: bytes, asked: Open | None) -> Fields:
    """Objects of a device identification (section 6.21)."""
    own: Fields = {**_constants_of_sub(43, pdu[1]), "ot.is_command": False}
    if pdu[1] != 14 or len(pdu) < 7:
        return own
    said: dict[str, str] = {}
    at = 7
    for _ in range(pdu[6]):
        if at + 2 > len(pdu) or at + 2 + pdu[at + 1] > len(pdu):
            return {**own, "cw.vendor": said, **_impossible("the list of objects is cut")}
        name = DEVICE_ID.get(pdu[at]) or f"object_{pdu[at]}"
        said[name] = _printable(pdu[at + 2 : at + 2 + pdu[at + 1]])
        at += 2 + pdu[at + 1]
    if "major_minor_revision" in said:
        own["ot.firmware.version"] = said["major_minor_revision"]
    return {**own, "cw.vendor": said}


def _umas_answered(pdu: bytes, asked: Open | None) -> Fields:
    own: Fields = {**_constants_of_sub(90, asked.sub)} if asked else {}
    own["ot.is_command"] = False
    own["cw.vendor"] = {"umas_key": pdu[1]}
    if pdu[2] == UMAS_REFUSED:
        own |= {"event.outcome": "failure", "ot.exception": f"umas_{pdu[3:7].hex() or 'refused'}"}
    elif pdu[2] != UMAS_OK:
        own["event.outcome"] = "unknown"
    return own


_RESPONSES: dict[int, Callable[[bytes, Open | None], Fields]] = {
    **dict.fromkeys((1, 2), _bits_read),
    **dict.fromkeys((3, 4, 23), _registers_read),
    **dict.fromkeys((5, 6, 15, 16, 22), _echo),
    7: _status,
    8: _diagnosed,
    17: _server_id,
    24: _queue,
    43: _identified,
    90: _umas_answered,
}
