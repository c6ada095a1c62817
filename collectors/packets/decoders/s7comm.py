"""S7comm: one event a message, one a written item; requests and answers joined by PDU reference.

Understood: connections with rack and slot; setup; read and write of variables with area, data
block, address, type and value; upload and download of blocks with a hash of what was moved; program
invocations by name (start, insert, delete, copy RAM to ROM …) and the stop of a controller; user
data: system status lists with order numbers and versions, block lists, clock, passwords, cyclic
reads, forcing; errors by name.

Not understood: the contents of program blocks, BSEND/BRECV, the messages of NC controllers beyond
their names. S7comm-plus is a protocol of its own.

References:
    Siemens publishes no specification; codes are those that open dissectors and clients agree on.
    Siemens, "System Software for S7-300/400, System and Standard Functions", chapter 33 (system
    status lists) and "Communication with SIMATIC", chapter 5 (services).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from struct import Struct

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.cotp import Cotp, first_of
from collectors.packets.decoders.pairs import Fields, broken, printable, say

S7COMM = LogSource(category="ot_protocol", service="s7comm")

ITEMS_SHOWN = 16
"""Items of one message that `cw.vendor` lists."""
ITEMS_MAX = 255
"""One octet counts them."""
BYTES_SHOWN = 32
MADE_MAX = 256
"""Functions whose constants a conversation keeps; whoever tries more of them looks for holes."""

JOB, ACK, ACK_DATA, USER_DATA = 1, 2, 3, 7


class Function(msgspec.Struct, frozen=True):
    """What a function code, a user data function or a program invocation does."""

    name: str
    operation: str
    is_command: bool = False


FUNCTIONS: dict[int, Function] = {
    0x00: Function("cpu_services", "diagnostic"),
    0x04: Function("read_var", "read"),
    0x05: Function("write_var", "write", True),
    0x1A: Function("request_download", "program_download", True),
    0x1B: Function("download_block", "program_download"),
    0x1C: Function("download_ended", "program_download"),
    0x1D: Function("start_upload", "program_upload"),
    0x1E: Function("upload", "program_upload"),
    0x1F: Function("end_upload", "program_upload"),
    0x28: Function("pi_service", "control", True),
    0x29: Function("plc_stop", "mode_change", True),
    0xF0: Function("setup_communication", "session"),
}
"""Jobs and their answers. The controller itself asks for the blocks of a download."""

PI_SERVICES: dict[str, Function] = {
    "_INSE": Function("insert_block", "program_download", True),
    "_INS2": Function("insert_block", "program_download", True),
    "_DELE": Function("delete_block", "program_download", True),
    "P_PROGRAM": Function("plc_start", "mode_change", True),
    "_MODU": Function("copy_ram_to_rom", "config", True),
    "_GARB": Function("compress_memory", "config", True),
}
"""Program invocations of controllers; NC controllers have many more (`_N_…`)."""

USER_FUNCTIONS: dict[int, tuple[str, dict[int, Function]]] = {
    0: (
        "mode_transition",
        {
            0: Function("stop", "report"),
            1: Function("warm_restart", "report"),
            2: Function("run", "report"),
            3: Function("hot_restart", "report"),
            4: Function("hold", "report"),
            6: Function("cold_restart", "report"),
            9: Function("run_redundant", "report"),
            11: Function("link_up", "report"),
            12: Function("update", "report"),
        },
    ),
    1: (
        "programmer_commands",
        {
            1: Function("block_status", "diagnostic"),
            2: Function("variable_status", "read"),
            3: Function("read_interrupt_stack", "diagnostic"),
            4: Function("read_block_stack", "diagnostic"),
            5: Function("read_local_stack", "diagnostic"),
            6: Function("measure_time", "diagnostic"),
            7: Function("force_selection", "control", True),
            8: Function("modify_variable", "write", True),
            9: Function("force", "control", True),
            10: Function("breakpoint", "mode_change", True),
            11: Function("exit_hold", "mode_change", True),
            12: Function("memory_reset", "control", True),
            13: Function("disable_job", "control", True),
            14: Function("enable_job", "control", True),
            15: Function("delete_job", "control", True),
            16: Function("read_job_list", "diagnostic"),
            17: Function("read_job", "diagnostic"),
            18: Function("replace_job", "control", True),
            19: Function("block_status", "diagnostic"),
            22: Function("flash_led", "control", True),
        },
    ),
    2: (
        "cyclic_data",
        {
            1: Function("subscribe", "read"),
            4: Function("unsubscribe", "read"),
            5: Function("subscribe_changes", "read"),
            7: Function("modify_subscription", "read"),
            8: Function("read_record", "read"),
        },
    ),
    3: (
        "block_functions",
        {
            1: Function("list_blocks", "discovery"),
            2: Function("list_blocks_of_type", "discovery"),
            3: Function("block_info", "discovery"),
        },
    ),
    4: (
        "cpu_functions",
        {
            1: Function("read_szl", "discovery"),
            2: Function("message_service", "session"),
            3: Function("diagnostic_message", "report"),
            5: Function("alarm_8_indication", "alarm"),
            6: Function("notify_indication", "alarm"),
            7: Function("alarm_8_lock", "alarm", True),
            8: Function("alarm_8_unlock", "alarm", True),
            9: Function("scan_indication", "alarm"),
            11: Function("alarm_acknowledge", "alarm", True),
            12: Function("alarm_acknowledge_indication", "alarm"),
            13: Function("alarm_lock_indication", "alarm"),
            14: Function("alarm_unlock_indication", "alarm"),
            17: Function("alarm_sq_indication", "alarm"),
            18: Function("alarm_s_indication", "alarm"),
            19: Function("alarm_query", "alarm"),
            22: Function("notify_8_indication", "alarm"),
        },
    ),
    5: (
        "security",
        {1: Function("plc_password", "auth"), 2: Function("clear_password", "auth")},
    ),
    6: ("block_send_receive", {}),
    7: (
        "time_functions",
        {
            1: Function("read_clock", "diagnostic"),
            2: Function("set_clock", "time_sync", True),
            3: Function("read_clock_following", "diagnostic"),
            4: Function("set_clock_following", "time_sync", True),
        },
    ),
    15: (
        "nc_programming",
        {
            1: Function("nc_request_download", "program_download", True),
            2: Function("nc_download_block", "program_download"),
            3: Function("nc_continue_download", "program_download"),
            4: Function("nc_download_ended", "program_download"),
            6: Function("nc_start_upload", "program_upload"),
            7: Function("nc_upload", "program_upload"),
            8: Function("nc_continue_upload", "program_upload"),
        },
    ),
}
"""User data: group → name, sub-functions."""

ERROR_CLASSES: dict[int, str] = {
    0x81: "application_relationship",
    0x82: "object_definition",
    0x83: "no_resources",
    0x84: "service_processing",
    0x85: "supplies",
    0x87: "access",
}
ERRORS: dict[int, str] = {
    0x8104: "function_not_available",
    0x8304: "function_not_available",
    0x8500: "wrong_pdu_size",
    0x8702: "wrong_address",
    0xD201: "block_name_syntax",
    0xD202: "parameter_syntax",
    0xD203: "block_type_syntax",
    0xD204: "no_linked_block",
    0xD205: "linked_block_exists_in_ram",
    0xD206: "linked_block_exists_in_rom",
    0xD207: "not_allowed_in_this_mode",
    0xD208: "too_many_blocks",
    0xD209: "block_not_found",
    0xD20A: "too_many_blocks_in_one_job",
    0xD20B: "too_many_blocks_to_delete",
    0xD20C: "priority_class_does_not_exist",
    0xD20E: "no_block_available",
    0xD210: "block_number_too_big",
    0xD240: "coordination_rules_violated",
    0xD241: "protection_level_forbids",
    0xD242: "protection_violated",
    0xD401: "invalid_szl_id",
    0xD402: "invalid_szl_index",
    0xD404: "module_not_diagnosable",
    0xD406: "job_does_not_exist",
    0xD409: "variable_does_not_exist",
    0xD601: "wrong_password",
    0xD602: "already_logged_in",
    0xD603: "already_logged_out",
    0xD604: "no_password_configured",
    0xD605: "wrong_password_syntax",
}
RETURN_CODES: dict[int, str] = {
    0x00: "reserved",
    0x01: "hardware_fault",
    0x03: "access_denied",
    0x05: "address_out_of_range",
    0x06: "type_not_supported",
    0x07: "type_inconsistent",
    0x0A: "object_does_not_exist",
}
"""Of one item; 0xff is success."""
SUCCESS = 0xFF

AREAS: dict[int, tuple[str, str]] = {
    0x03: ("system_info", "SI"),
    0x05: ("system_flag", "SF"),
    0x06: ("analog_input", "AI"),
    0x07: ("analog_output", "AQ"),
    0x1C: ("counter", "C"),
    0x1D: ("timer", "T"),
    0x1E: ("iec_counter", "IC"),
    0x1F: ("iec_timer", "IT"),
    0x80: ("peripheral", "P"),
    0x81: ("input", "I"),
    0x82: ("output", "Q"),
    0x83: ("flag", "M"),
    0x84: ("data_block", "DB"),
    0x85: ("instance_data_block", "DI"),
    0x86: ("local", "L"),
    0x87: ("previous_local", "V"),
}
"""Area code → point type, and its letters in an address."""
_COUNTED = frozenset({0x1C, 0x1D, 0x1E, 0x1F})
"""Areas whose elements are numbered and not addressed by bytes."""

TYPES: dict[int, tuple[str, Struct | None]] = {
    1: ("BIT", Struct(">B")),
    2: ("BYTE", Struct(">B")),
    3: ("CHAR", Struct(">B")),
    4: ("WORD", Struct(">H")),
    5: ("INT", Struct(">h")),
    6: ("DWORD", Struct(">I")),
    7: ("DINT", Struct(">i")),
    8: ("REAL", Struct(">f")),
    9: ("DATE", Struct(">H")),
    10: ("TIME_OF_DAY", Struct(">I")),
    11: ("TIME", Struct(">i")),
    12: ("S5TIME", Struct(">H")),
    15: ("DATE_AND_TIME", None),
    28: ("COUNTER", Struct(">H")),
    29: ("TIMER", Struct(">H")),
}
_IN_BITS = frozenset({3, 4, 5})
"""Transport sizes of data whose length counts bits."""
BLOCK_TYPES: dict[str, str] = {
    "08": "OB",
    "0A": "DB",
    "0B": "SDB",
    "0C": "FC",
    "0D": "SFC",
    "0E": "FB",
    "0F": "SFB",
}

_HEAD = Struct(">BBHHHH")
_WORD = Struct(">H")
_ITEM = Struct(">BBBBHHB")
_DATA = Struct(">BBH")
_REFERENCE = Struct("<H")
"""Both ends only repeat it; clients on Intel processors count in their own order."""


class Item(msgspec.Struct, frozen=True):
    """One address of a read or write."""

    text: str
    """As Siemens writes it: `P#DB4.DBX2.0 BYTE 16`, `T 29`."""
    kind: str = ""
    """Element type, a name of `TYPES`."""
    count: int = 1
    point: str = ""
    address: int = -1
    """Byte, or number of a timer or counter."""
    bit: int = 0
    block: int = 0


@decoder("s7comm", S7COMM, ports=(102,), begins=b"\x03")
class S7comm(Cotp):
    """One S7 conversation."""

    protocol = "s7comm"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._made: dict[tuple[int, int, int], Fields] = {}
        self._blocks = Blocks()

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`."""
        return first_of(head, _has_s7_selectors, _begins_message)

    def selected(self, calling: bytes, called: bytes) -> Fields:
        """Rack and slot, which say which controller of a station is meant (`ot.unit`)."""
        if not _has_s7_selectors(calling, called):
            return {}
        rack, slot = called[1] >> 5, called[1] & 31
        self.base["ot.unit"] = f"{rack}.{slot}"
        self._made.clear()
        return {"connection": _CONNECTIONS[called[0]], "rack": rack, "slot": slot}

    def messages(self, data: bytes, from_client: bool, time_s: float) -> list[Fields]:
        """See `Cotp`."""
        if len(data) < 10 or data[0] != 0x32:
            return [self.unreadable(f"an S7 message begins with 0x32, not {data[:2].hex()}")]
        _, kind, _, _, parameters, size = _HEAD.unpack_from(data)
        reference = _REFERENCE.unpack_from(data, 4)[0]
        start = 12 if kind in (ACK, ACK_DATA) else 10
        if kind not in (JOB, ACK, ACK_DATA, USER_DATA):
            return [self.unreadable(f"S7 message type {kind} is not defined")]
        if start + parameters > len(data):
            why = f"{parameters} bytes of parameters are announced, {len(data) - start} are there"
            return [self.unreadable(why)]
        one = Message(kind, reference, from_client, time_s, data[start : start + parameters],
                      data[start + parameters :])  # fmt: skip
        if kind == JOB:
            found = self._job(one)
        elif kind == USER_DATA:
            found = [self._user_data(one)]
        else:
            found = [self._answer(one, _WORD.unpack_from(data, 10)[0])]
        if len(one.data) != size:
            broken(found[0], f"{size} bytes of data are announced, {len(one.data)} are there")
        self.malformed += "event.kind" in found[0]
        return found

    # ---------------------------------------------------------------- jobs and their answers

    def _job(self, one: Message) -> list[Fields]:
        code = one.parameters[0] if one.parameters else -1
        fields: Fields = {**self._constants(JOB, code, 0), "event.sequence": one.reference}
        if code == 5:
            return self._write(one, fields)
        content = _JOBS.get(code)
        if content:
            content(one.parameters, fields)
        if code in (0x1C, 0x1F):
            self._blocks.conclude(fields)
        self.pairs.ask((one.from_client, one.reference), fields, one.time_s)
        return [fields]

    def _write(self, one: Message, fields: Fields) -> list[Fields]:
        """One event a written item."""
        items, why = _items(one.parameters)
        values, cut = _values(one.data, len(items))
        found = []
        for number, item in enumerate(items):
            own = {**fields}
            _add_item(own, item)
            if number < len(values):
                _add_value(own, item.kind, item.count, *values[number])
            if len(items) > 1:
                own["cw.vendor"] |= {"item_number": number + 1, "items_in_message": len(items)}
            found.append(own)
        if not found:
            found = [fields]
        if why or cut:
            broken(found[0], why or cut)
        # The answer is about all of them: the first one stands for them.
        self.pairs.ask((one.from_client, one.reference), found[0], one.time_s)
        for own in found[1:]:
            own["ot.link_id"] = found[0]["ot.link_id"]
        return found

    def _answer(self, one: Message, error: int) -> Fields:
        key = (not one.from_client, one.reference)
        asked = self.pairs.waits(key)
        code = one.parameters[0] if one.parameters else -1
        if code < 0 and asked:
            code = int(asked.get("ot.function.code", "-1"), 16)
        fields: Fields = {**self._constants(one.kind, code, 0), "event.sequence": one.reference}
        if asked and asked.get("ot.function.code") != fields.get("ot.function.code"):
            asked = None
            said = fields.get("ot.function.name", "something else")
            say(fields, f"answers {said}, which was not asked under this reference")
            self.pairs.unmatched += 1
        else:
            self.pairs.answer(key, fields, one.time_s)
        if asked:
            fields |= {name: asked[name] for name in _REPEATED if name in asked}
        if error:
            fields |= {
                "event.outcome": "failure",
                "event.code": f"0x{error:04x}",
                "ot.exception": _error(error),
            }
        content = _ANSWERS.get(code)
        if content:
            content(one, fields, asked)
        if code in (0x1B, 0x1E) and not error:
            self._blocks.add(one.data)
        return fields

    # ---------------------------------------------------------------- user data

    def _user_data(self, one: Message) -> Fields:
        parameters = one.parameters
        if len(parameters) < 8:
            return self.unreadable(f"user data with {len(parameters)} bytes of parameters")
        group, sub = parameters[5], parameters[6]
        fields: Fields = {
            **self._constants(USER_DATA, group, sub),
            "event.sequence": one.reference,
        }
        is_answer = group >> 4 == 8
        asked = None
        if group >> 4 == 4:
            _add_asked(group & 15, sub, one.data, fields)
            self.pairs.ask((one.from_client, one.reference), fields, one.time_s)
        elif is_answer:
            asked = self.pairs.answer((not one.from_client, one.reference), fields, one.time_s)
        if is_answer and len(parameters) >= 12:
            error = _WORD.unpack_from(parameters, 10)[0]
            if error:
                fields |= {
                    "event.outcome": "failure",
                    "event.code": f"0x{error:04x}",
                    "ot.exception": _error(error),
                }
            if parameters[9]:
                fields["cw.vendor"] = {"more_follows": True}
        # An answer in parts has a number of its own; behind its first part no list begins.
        begins = len(parameters) < 10 or not parameters[8] or parameters[9]
        if is_answer and group & 15 == 4 and sub == 1 and begins:
            _add_status_list(one.data, fields)
        elif is_answer and asked and "cw.vendor" in asked:
            fields["cw.vendor"] = {**asked["cw.vendor"], **fields.get("cw.vendor", {})}
        return fields

    def _constants(self, kind: int, code: int, sub: int) -> Fields:
        made = self._made.get((kind, code, sub))
        if made is None:
            made = {**self.base, **_meaning(kind, code, sub)}
            if len(self._made) < MADE_MAX:
                self._made[kind, code, sub] = made
        return made


class Message(msgspec.Struct):
    """One message in its parts."""

    kind: int
    reference: int
    from_client: bool
    time_s: float
    parameters: bytes
    data: bytes


class Blocks:
    """Program blocks that are being moved: their bytes as one hash."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._bytes = 0

    def add(self, data: bytes) -> None:
        """Take the data of one answer: length, a mark, the bytes."""
        if len(data) >= 4:
            piece = data[4 : 4 + _WORD.unpack_from(data)[0]]
            self._hash.update(piece)
            self._bytes += len(piece)

    def conclude(self, fields: Fields) -> None:
        """Say what was moved, and begin anew."""
        if self._bytes:
            fields["ot.program.hash"] = self._hash.hexdigest()
            fields["cw.vendor"] = {**fields.get("cw.vendor", {}), "program_bytes": self._bytes}
        self.__init__()  # type: ignore[misc]


_CONNECTIONS = {1: "programming_device", 2: "operator_panel", 3: "basic"}
_REPEATED = (
    *("ot.operation", "ot.function.sub", "ot.point.type", "ot.point.address", "ot.point.count"),
    "cw.vendor",
)
"""What an answer repeats of its request."""


def _has_s7_selectors(calling: bytes, called: bytes) -> bool:
    """Type of connection, and rack and slot in one octet; MMS does not begin with such a type."""
    return len(called) == 2 and called[0] in _CONNECTIONS and len(calling) == 2


def _begins_message(data: bytes) -> bool:
    return (
        len(data) >= 4
        and data[0] == 0x32
        and data[1] in (JOB, ACK, ACK_DATA, USER_DATA)
        and data[2:4] == b"\0\0"
    )


def _meaning(kind: int, code: int, sub: int) -> Fields:
    """What all messages of one kind and function have in common."""
    if kind == USER_DATA:
        group, subs = USER_FUNCTIONS.get(code & 15, (f"group_{code & 15}", {}))
        function = subs.get(sub) or Function(f"{group}_{sub}", "diagnostic")
        direction = {4: "request", 8: "response"}.get(code >> 4, "unsolicited")
        known = True
    else:
        found = FUNCTIONS.get(code)
        known = found is not None
        function = found or Function("unknown_function", "diagnostic")
        direction = "request" if kind == JOB else "response"
    made: Fields = {
        "event.action": f"s7comm_{function.name}",
        "ot.operation": function.operation,
        "ot.is_command": function.is_command and direction == "request",
        "ot.direction": direction,
    }
    if code >= 0:
        made["ot.function.code"] = f"0x{code:02x}"
        made["ot.function.name"] = function.name if known else f"function_0x{code:02x}"
    if kind == USER_DATA:
        made["ot.function.sub"] = f"0x{sub:02x}"
    if direction == "response":
        made["event.outcome"] = "success"
    return made


def _error(code: int) -> str:
    return ERRORS.get(code) or ERROR_CLASSES.get(code >> 8) or f"error_0x{code:04x}"


# Items of a read or write: address and value.


def _items(parameters: bytes) -> tuple[list[Item], str]:
    """Addresses behind function and count, and what is wrong with them."""
    count = parameters[1] if len(parameters) > 1 else 0
    at = 2
    found: list[Item] = []
    for number in range(count):
        if at + 2 > len(parameters) or at + 2 + parameters[at + 1] > len(parameters):
            return found, f"{count} items are announced, {number} are there"
        stop = at + 2 + parameters[at + 1]
        found.append(_item(parameters[at:stop]))
        at = stop + (parameters[at + 1] & 1 if parameters[at + 2 : at + 3] != b"\x10" else 0)
    return found, ""


def _item(data: bytes) -> Item:
    if len(data) != 12 or data[0] != 0x12 or data[2] != 0x10:
        syntax = f"0x{data[2]:02x}" if len(data) > 2 else "none"
        return Item(f"syntax {syntax}: {data[3:BYTES_SHOWN].hex()}", point="symbol")
    _, _, _, kind, count, block, area = _ITEM.unpack_from(data)
    place = int.from_bytes(data[9:12])
    name = TYPES[kind][0] if kind in TYPES else f"type_{kind}"
    point, letters = AREAS.get(area) or (f"area_0x{area:02x}", f"?{area:02x}")
    if area in _COUNTED:
        text = f"{letters} {place}" if count == 1 else f"{letters} {place} ×{count}"
        return Item(text, name, count, point, place)
    address, bit = place >> 3, place & 7
    prefix = f"{letters}{block}.{letters}X" if area in (0x84, 0x85) else f"{letters} "
    text = f"P#{prefix}{address}.{bit} {name} {count}"
    return Item(text, name, count, point, address, bit, block)


def _add_item(fields: Fields, item: Item) -> None:
    said: Fields = {"item": item.text}
    if item.kind:
        said["type"] = item.kind
    if item.block:
        said["data_block"] = item.block
    if item.kind == "BIT":
        said["bit"] = item.bit
    fields["cw.vendor"] = said
    fields["ot.point.type"] = item.point
    fields["ot.point.count"] = item.count
    if item.address >= 0:
        fields["ot.point.address"] = item.address


def _values(data: bytes, count: int) -> tuple[list[tuple[int, bytes]], str]:
    """Return code and bytes of each item, and what is wrong with them."""
    at = 0
    found: list[tuple[int, bytes]] = []
    for number in range(count):
        if at + 4 > len(data):
            if at + 1 == len(data):
                found.append((data[at], b""))
                continue
            return found, f"{count} values belong here, {number} are there"
        code, size, length = _DATA.unpack_from(data, at)
        octets = (length + 7) // 8 if size in _IN_BITS else length
        if at + 4 + octets > len(data):
            return found, f"value {number + 1} has {octets} bytes, {len(data) - at - 4} are there"
        found.append((code, data[at + 4 : at + 4 + octets]))
        at += 4 + octets + (octets & 1)
    return found, ""


def _add_value(fields: Fields, kind: str, count: int, code: int, value: bytes) -> None:
    """The number where there is one, else the bytes."""
    layout = _LAYOUTS.get(kind)
    if layout and count == 1 and layout.size == len(value):
        number = layout.unpack(value)[0]
        if abs(number) < float("inf"):
            fields["ot.value"] = number
            return
    if value:
        more = "…" if len(value) > BYTES_SHOWN else ""
        fields["ot.value_raw"] = value[:BYTES_SHOWN].hex() + more


_LAYOUTS = dict(TYPES.values())


def _read(parameters: bytes, fields: Fields) -> None:
    items, why = _items(parameters)
    if items:
        _add_item(fields, items[0])
    if len(items) > 1:
        fields["ot.point.count"] = len(items)
        fields["cw.vendor"] = {"items": [item.text for item in items[:ITEMS_SHOWN]]}
    if why:
        broken(fields, why)


def _was_read(one: Message, fields: Fields, asked: Fields | None) -> None:
    count = one.parameters[1] if len(one.parameters) > 1 else 0
    values, why = _values(one.data, count)
    if why:
        broken(fields, why)
    _add_results([code for code, _ in values], fields)
    if count == 1 and values and values[0][0] == SUCCESS:
        kind = asked.get("cw.vendor", {}).get("type", "") if asked else ""
        points = asked.get("ot.point.count", 0) if asked else 0
        _add_value(fields, kind, points, *values[0])


def _was_written(one: Message, fields: Fields, asked: Fields | None) -> None:
    count = one.parameters[1] if len(one.parameters) > 1 else 0
    if len(one.data) < count:
        broken(fields, f"{count} results belong here, {len(one.data)} are there")
    _add_results(list(one.data[:count]), fields)
    if count > 1:
        fields["ot.point.count"] = count


def _add_results(codes: list[int], fields: Fields) -> None:
    """Which items failed; the first of them is the exception."""
    failed = {
        number: RETURN_CODES.get(code) or f"result_0x{code:02x}"
        for number, code in enumerate(codes, 1)
        if code != SUCCESS
    }
    if failed:
        shown = [f"{number}: {why}" for number, why in failed.items()][:ITEMS_SHOWN]
        fields["event.outcome"] = "failure"
        fields["ot.exception"] = next(iter(failed.values()))
        fields["cw.vendor"] = {**fields.get("cw.vendor", {}), "failed_items": shown}


# Other jobs.


def _setup(parameters: bytes, fields: Fields) -> None:
    if len(parameters) != 8:
        broken(fields, f"a setup has 8 bytes of parameters, not {len(parameters)}")
        return
    calling, called, size = (_WORD.unpack_from(parameters, at)[0] for at in (2, 4, 6))
    fields["cw.vendor"] = {"parallel_jobs": [calling, called], "pdu_bytes": size}


def _transfer(parameters: bytes, fields: Fields) -> None:
    """Block that is to be moved: `_`, type, number, file system; for a download its sizes."""
    if len(parameters) < 9:
        return
    stop = 9 + parameters[8]
    name = printable(parameters[9:stop])
    said: Fields = {"file": name}
    if len(name) == 9:
        said["block"] = f"{BLOCK_TYPES.get(name[1:3], name[1:3])} {name[3:8].lstrip('0') or '0'}"
    if len(parameters) >= stop + 14:
        text = printable(parameters[stop + 1 : stop + 14])
        said |= {"load_bytes": text[1:7], "code_bytes": text[7:13]}
    fields["cw.vendor"] = said


def _invoke(parameters: bytes, fields: Fields) -> None:
    """Program invocation: argument and name, each behind its length."""
    size = _WORD.unpack_from(parameters, 8)[0] if len(parameters) >= 10 else 0
    named = 10 + size
    if named >= len(parameters):
        broken(fields, "the program invocation has no name")
        return
    name = printable(parameters[named + 1 : named + 1 + parameters[named]])
    argument = printable(parameters[10:named])
    fields["ot.function.sub"] = name
    if argument:
        fields["cw.vendor"] = {"argument": argument}
    service = PI_SERVICES.get(name)
    if service:
        fields["event.action"] = f"s7comm_{service.name}"
        fields["ot.operation"] = service.operation


def _stop(parameters: bytes, fields: Fields) -> None:
    if len(parameters) > 7:
        fields["ot.function.sub"] = printable(parameters[7 : 7 + parameters[6]])


_JOBS: dict[int, Callable[[bytes, Fields], None]] = {
    0x04: _read,
    **dict.fromkeys((0x1A, 0x1B, 0x1C, 0x1D), _transfer),
    0x28: _invoke,
    0x29: _stop,
    0xF0: _setup,
}


def _invoked(one: Message, fields: Fields, asked: Fields | None) -> None:
    if asked:
        fields["event.action"] = asked["event.action"]


def _set_up(one: Message, fields: Fields, asked: Fields | None) -> None:
    _setup(one.parameters, fields)


_ANSWERS: dict[int, Callable[[Message, Fields, Fields | None], None]] = {
    0x04: _was_read,
    0x05: _was_written,
    0x28: _invoked,
    0xF0: _set_up,
}


# Contents of user data: return code, size, length, then what the function is about.


def _add_asked(group: int, sub: int, data: bytes, fields: Fields) -> None:
    if group == 4 and sub == 1 and len(data) >= 8:
        listed, index = (_WORD.unpack_from(data, at)[0] for at in (4, 6))
        fields["cw.vendor"] = {"status_list": f"0x{listed:04x}", "index": f"0x{index:04x}"}
    elif group == 3 and sub in (2, 3) and len(data) > 4:
        text = printable(data[4:12])
        number = f" {text[2:7].lstrip('0') or '0'}" if sub == 3 else ""
        fields["cw.vendor"] = {"block": f"{BLOCK_TYPES.get(text[:2], text[:2])}{number}"}
    elif group == 7 and sub in (2, 4) and len(data) >= 14:
        year, month, day, hour, minute, second = (f"{byte:02x}" for byte in data[6:12])
        fields["cw.vendor"] = {"time": f"20{year}-{month}-{day}T{hour}:{minute}:{second}"}


_COMPONENTS = {
    1: "station_name",
    2: "module_name",
    3: "plant",
    4: "copyright",
    5: "serial_number",
    7: "module_type",
    8: "memory_card",
}
_MODES = {4: "stop", 5: "start", 6: "start", 7: "start", 8: "run", 10: "hold", 13: "defect"}


def _add_status_list(data: bytes, fields: Fields) -> None:
    """Order number, firmware, names or mode out of a part of the system status list."""
    if len(data) < 12:
        return
    number, index, size, count = (_WORD.unpack_from(data, at)[0] for at in (4, 6, 8, 10))
    said: Fields = {"status_list": f"0x{number:04x}", "index": f"0x{index:04x}"}
    for row in range(min(count, ITEMS_MAX)):
        record = data[12 + row * size : 12 + (row + 1) * size]
        if len(record) < size or size < 4:
            break
        key = _WORD.unpack_from(record)[0]
        if number & 0xFF == 0x11 and size == 28:
            if key == 1:
                said["order_number"] = printable(record[2:22]).strip()
            elif key == 7 and record[24:25] == b"V":
                fields["ot.firmware.version"] = f"V{record[25]}.{record[26]}.{record[27]}"
        elif number & 0xFF == 0x1C and key in _COMPONENTS:
            said[_COMPONENTS[key]] = printable(record[2:34].rstrip(b"\0"))
        elif number & 0xFF == 0x24:
            said["mode"] = _MODES.get(record[3] & 15) or f"mode_{record[3] & 15}"
    fields["cw.vendor"] = {**fields.get("cw.vendor", {}), **said}
