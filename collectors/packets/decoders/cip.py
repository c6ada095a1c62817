"""CIP messages inside of EtherNet/IP: which service was asked of which object, and what came of it.

References:
    ODVA, The CIP Networks Library, volume 1: chapter 2 (messages), appendix A (services), appendix
    B (status codes), appendix C (paths and data types), chapter 3 and 5 (objects).
    Rockwell Automation 1756-PM020, "Logix 5000 Controllers Data Access" (tags).
    Rockwell Automation 1770-6.5.16, "DF1 Protocol and Command Set" (PCCC).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

import msgspec

from collectors.packets.decoders.pairs import Fields, broken, printable

PARTS_MAX = 256
"""Services of one packet that are looked at."""
DEPTH_MAX = 3
"""How deep packets hold packets."""
BYTES_SHOWN = 32
SEGMENTS_MAX = 32


class Service(msgspec.Struct, frozen=True):
    """What a service does."""

    name: str
    operation: str = "diagnostic"
    is_command: bool = False


GET_ALL, RESET, CREATE, DELETE, MULTIPLE, UNCONNECTED_SEND = 0x01, 0x05, 0x08, 0x09, 0x0A, 0x52
FORWARD_OPEN, LARGE_FORWARD_OPEN = 0x54, 0x5B
READ_TAG, WRITE_TAG, READ_TAG_PART, WRITE_TAG_PART = 0x4C, 0x4D, 0x52, 0x53

COMMON: dict[int, Service] = {
    0x01: Service("get_attributes_all", "read"),
    0x02: Service("set_attributes_all", "config", True),
    0x03: Service("get_attribute_list", "read"),
    0x04: Service("set_attribute_list", "config", True),
    0x05: Service("reset", "restart", True),
    0x06: Service("start", "mode_change", True),
    0x07: Service("stop", "mode_change", True),
    0x08: Service("create", "config", True),
    0x09: Service("delete", "config", True),
    0x0A: Service("multiple_service_packet", "read"),
    0x0D: Service("apply_attributes", "config", True),
    0x0E: Service("get_attribute_single", "read"),
    0x10: Service("set_attribute_single", "config", True),
    0x11: Service("find_next_object_instance", "discovery"),
    0x15: Service("restore", "config", True),
    0x16: Service("save", "config", True),
    0x17: Service("no_operation"),
    0x18: Service("get_member", "read"),
    0x19: Service("set_member", "config", True),
    0x1A: Service("insert_member", "config", True),
    0x1B: Service("remove_member", "config", True),
    0x1C: Service("group_sync", "time_sync"),
}
"""Volume 1, appendix A: the same for all objects."""

OBJECTS: dict[tuple[int, int], Service] = {
    (0x06, 0x4E): Service("forward_close", "session"),
    (0x06, 0x52): Service("unconnected_send", "session"),
    (0x06, 0x54): Service("forward_open", "session"),
    (0x06, 0x56): Service("get_connection_data"),
    (0x06, 0x57): Service("search_connection_data"),
    (0x06, 0x5A): Service("get_connection_owner"),
    (0x06, 0x5B): Service("large_forward_open", "session"),
    (0x37, 0x4B): Service("initiate_upload", "file"),
    (0x37, 0x4C): Service("initiate_download", "firmware", True),
    (0x37, 0x4D): Service("initiate_partial_read", "file"),
    (0x37, 0x4E): Service("initiate_partial_write", "firmware", True),
    (0x37, 0x4F): Service("upload_transfer", "file"),
    (0x37, 0x50): Service("download_transfer", "firmware", True),
    (0x37, 0x51): Service("clear_file", "firmware", True),
    (0x67, 0x4B): Service("execute_pccc", "read"),
    (0x6B, 0x55): Service("list_tags", "discovery"),
    (0x6C, 0x4C): Service("read_template", "discovery"),
}
"""Class and service: connection manager, file object, and those of Logix controllers."""

TAGS: dict[int, Service] = {
    0x4C: Service("read_tag", "read"),
    0x4D: Service("write_tag", "write", True),
    0x4E: Service("modify_tag", "write", True),
    0x52: Service("read_tag_fragmented", "read"),
    0x53: Service("write_tag_fragmented", "write", True),
    0x55: Service("list_tags", "discovery"),
}
"""Logix services of a tag, which a symbolic path or an instance of the symbol class names."""

PCCC_COMMANDS: dict[int, Service] = {
    0x00: Service("pccc_protected_write", "write", True),
    0x01: Service("pccc_unprotected_read", "read"),
    0x02: Service("pccc_protected_bit_write", "write", True),
    0x05: Service("pccc_unprotected_bit_write", "write", True),
    0x08: Service("pccc_unprotected_write", "write", True),
}
"""Commands that have no function (Allen-Bradley 1770-6.5.16, chapter 7)."""
PCCC: dict[tuple[int, int], Service] = {
    (0x06, 0x00): Service("pccc_echo", "diagnostic"),
    (0x06, 0x01): Service("pccc_read_diagnostic_counters", "diagnostic"),
    (0x06, 0x03): Service("pccc_diagnostic_status", "diagnostic"),
    (0x06, 0x09): Service("pccc_read_link_parameters", "diagnostic"),
    (0x06, 0x0A): Service("pccc_set_link_parameters", "config", True),
    (0x07, 0x00): Service("pccc_disable_outputs", "control", True),
    (0x07, 0x01): Service("pccc_enable_outputs", "control", True),
    (0x07, 0x03): Service("pccc_enable_scanning", "mode_change", True),
    (0x07, 0x04): Service("pccc_enter_download_mode", "program_download", True),
    (0x07, 0x05): Service("pccc_leave_download_mode", "program_download", True),
    (0x07, 0x06): Service("pccc_enter_upload_mode", "program_upload"),
    (0x0F, 0x00): Service("pccc_word_range_write", "write", True),
    (0x0F, 0x01): Service("pccc_word_range_read", "read"),
    (0x0F, 0x02): Service("pccc_bit_write", "write", True),
    (0x0F, 0x03): Service("pccc_file_write", "write", True),
    (0x0F, 0x04): Service("pccc_file_read", "read"),
    (0x0F, 0x05): Service("pccc_download", "program_download", True),
    (0x0F, 0x06): Service("pccc_upload", "program_upload"),
    (0x0F, 0x07): Service("pccc_shutdown", "mode_change", True),
    (0x0F, 0x08): Service("pccc_physical_write", "write", True),
    (0x0F, 0x09): Service("pccc_physical_read", "read"),
    (0x0F, 0x0A): Service("pccc_restart", "restart", True),
    (0x0F, 0x11): Service("pccc_get_edit_resource", "session"),
    (0x0F, 0x12): Service("pccc_return_edit_resource", "session"),
    (0x0F, 0x17): Service("pccc_physical_read", "read"),
    (0x0F, 0x18): Service("pccc_physical_write", "write", True),
    (0x0F, 0x26): Service("pccc_modify", "write", True),
    (0x0F, 0x29): Service("pccc_read_section_size", "read"),
    (0x0F, 0x3A): Service("pccc_set_mode", "mode_change", True),
    (0x0F, 0x41): Service("pccc_disable_forces", "control", True),
    (0x0F, 0x50): Service("pccc_download_all", "program_download", True),
    (0x0F, 0x52): Service("pccc_download_completed", "program_download", True),
    (0x0F, 0x53): Service("pccc_upload_all", "program_upload"),
    (0x0F, 0x55): Service("pccc_upload_completed", "program_upload"),
    (0x0F, 0x57): Service("pccc_initialize_memory", "program_download", True),
    (0x0F, 0x5E): Service("pccc_modify_compatibility_file", "config", True),
    (0x0F, 0x67): Service("pccc_typed_write", "write", True),
    (0x0F, 0x68): Service("pccc_typed_read", "read"),
    (0x0F, 0x79): Service("pccc_modify", "write", True),
    (0x0F, 0x80): Service("pccc_change_mode", "mode_change", True),
    (0x0F, 0x81): Service("pccc_open_file", "session"),
    (0x0F, 0x82): Service("pccc_close_file", "session"),
    (0x0F, 0x88): Service("pccc_execute_multiple", "program_download", True),
    (0x0F, 0x8F): Service("pccc_apply_port_configuration", "config", True),
    (0x0F, 0xA1): Service("pccc_typed_read", "read"),
    (0x0F, 0xA2): Service("pccc_typed_read", "read"),
    (0x0F, 0xA7): Service("pccc_file_read", "read"),
    (0x0F, 0xA9): Service("pccc_typed_write", "write", True),
    (0x0F, 0xAA): Service("pccc_typed_write", "write", True),
    (0x0F, 0xAB): Service("pccc_masked_write", "write", True),
    (0x0F, 0xAF): Service("pccc_file_write", "write", True),
}
"""Command and function of PLC-5, SLC and MicroLogix controllers (the same chapter)."""
PCCC_UNKNOWN = Service("pccc_unknown_function", "control", True)
"""A function that nobody has described may do anything."""

CLASSES: dict[int, str] = {
    0x01: "identity",
    0x02: "message_router",
    0x03: "devicenet",
    0x04: "assembly",
    0x05: "connection",
    0x06: "connection_manager",
    0x07: "register",
    0x0F: "parameter",
    0x37: "file",
    0x43: "time_sync",
    0x47: "device_level_ring",
    0x48: "quality_of_service",
    0x5D: "cip_security",
    0x67: "pccc",
    0x68: "program",
    0x6B: "symbol",
    0x6C: "template",
    0x8B: "wall_clock",
    0x8E: "controller",
    0xAC: "controller_changes",
    0xF4: "port",
    0xF5: "tcp_ip_interface",
    0xF6: "ethernet_link",
}
"""Those of ODVA, and those of Logix controllers whose use is known."""
IDENTITY, CONNECTION_MANAGER, PCCC_OBJECT, SYMBOL = 0x01, 0x06, 0x67, 0x6B

STATUSES: dict[int, str] = {
    0x01: "connection_failure",
    0x02: "resource_unavailable",
    0x03: "invalid_parameter_value",
    0x04: "path_segment_error",
    0x05: "path_destination_unknown",
    0x06: "partial_transfer",
    0x07: "connection_lost",
    0x08: "service_not_supported",
    0x09: "invalid_attribute_value",
    0x0A: "attribute_list_error",
    0x0B: "already_in_requested_state",
    0x0C: "object_state_conflict",
    0x0D: "object_already_exists",
    0x0E: "attribute_not_settable",
    0x0F: "privilege_violation",
    0x10: "device_state_conflict",
    0x11: "reply_data_too_large",
    0x12: "fragmentation_of_primitive",
    0x13: "not_enough_data",
    0x14: "attribute_not_supported",
    0x15: "too_much_data",
    0x16: "object_does_not_exist",
    0x17: "fragmentation_sequence",
    0x18: "no_stored_attribute_data",
    0x19: "store_operation_failure",
    0x1A: "request_too_large_for_router",
    0x1B: "response_too_large_for_router",
    0x1C: "missing_attribute_list_entry",
    0x1D: "invalid_attribute_list",
    0x1E: "embedded_service_error",
    0x1F: "vendor_specific_error",
    0x20: "invalid_parameter",
    0x21: "write_once_already_written",
    0x22: "invalid_reply",
    0x25: "key_failure_in_path",
    0x26: "path_size_invalid",
    0x27: "unexpected_attribute",
    0x28: "invalid_member",
    0x29: "member_not_settable",
    0x2B: "unknown_modbus_error",
    0xFF: "general_error",
}
"""Volume 1, appendix B. A partial transfer is no failure: more is asked for."""
PARTIAL, EMBEDDED_ERROR = 0x06, 0x1E

TYPES: dict[int, tuple[str, Struct]] = {
    0xC1: ("BOOL", Struct("<B")),
    0xC2: ("SINT", Struct("<b")),
    0xC3: ("INT", Struct("<h")),
    0xC4: ("DINT", Struct("<i")),
    0xC5: ("LINT", Struct("<q")),
    0xC6: ("USINT", Struct("<B")),
    0xC7: ("UINT", Struct("<H")),
    0xC8: ("UDINT", Struct("<I")),
    0xCA: ("REAL", Struct("<f")),
    0xCB: ("LREAL", Struct("<d")),
    0xD1: ("BYTE", Struct("<B")),
    0xD2: ("WORD", Struct("<H")),
    0xD3: ("DWORD", Struct("<I")),
}
_WORD = Struct("<H")
_PAIR = Struct("<HH")
_IDENTITY = Struct("<HHHBBHIB")
_OPEN = Struct("<BBIIHHIB3xIHIHBB")
_LARGE_OPEN = Struct("<BBIIHHIB3xIIIIBB")


class Path(NamedTuple):
    """Where a request goes."""

    class_id: int = -1
    instance: int = -1
    attribute: int = -1
    tag: str = ""
    """Symbolic name, with its parts and elements."""
    route: str = ""
    """Ports and addresses in front: `1/0` is slot 0 of the backplane."""
    fault: str = ""


class Request(NamedTuple):
    """One request."""

    service: int
    path: Path
    data: bytes


class Answer(NamedTuple):
    """One answer."""

    service: int
    status: int
    extended: int
    """First word of the additional status, -1 if there is none."""
    data: bytes


# How a message is built.


def read_request(message: bytes) -> Request:
    """Take a request apart.

    Raises:
        ValueError: it is too short for what it announces.
    """
    if len(message) < 2:
        raise ValueError(f"a CIP request has at least 2 bytes, not {len(message)}")
    start = 2 + 2 * message[1]
    if start > len(message):
        raise ValueError(f"a path of {start - 2} bytes is announced, {len(message) - 2} are there")
    return Request(message[0], read_path(message[2:start]), message[start:])


def read_answer(message: bytes) -> Answer:
    """Take an answer apart.

    Raises:
        ValueError: it is too short for what it announces.
    """
    if len(message) < 4:
        raise ValueError(f"a CIP answer has at least 4 bytes, not {len(message)}")
    start = 4 + 2 * message[3]
    if start > len(message):
        raise ValueError(f"a status of {start - 4} bytes is announced, {len(message) - 4} are left")
    extended = _WORD.unpack_from(message, 4)[0] if message[3] else -1
    return Answer(message[0] & 0x7F, message[2], extended, message[start:])


@lru_cache(maxsize=4_096)
def read_path(data: bytes) -> Path:
    """Read the segments of a padded path (volume 1, appendix C-1)."""
    found = {"class_id": -1, "instance": -1, "attribute": -1}
    tag, route, fault = "", "", ""
    at, end, count = 0, len(data), 0
    while at < end and count < SEGMENTS_MAX:
        count += 1
        kind = data[at]
        if kind >> 5 == 1:
            if kind & 3 == 3:
                fault = f"a path has no segment 0x{kind:02x}"
                break
            size = 1 << (kind & 3)
            start = at + 1 if size == 1 else at + 2
            value = int.from_bytes(data[start : start + size], "little")
            at = start + size
            if kind == 0x34:
                # An electronic key: format, then eight octets.
                at = start + 9
            elif kind & 0x1C == 0x08 and tag:
                tag += f"[{value}]"
            elif (kind & 0x1C) in _LOGICAL:
                found[_LOGICAL[kind & 0x1C]] = value
        elif kind == 0x91 and at + 1 < end:
            size = data[at + 1]
            tag += ("." if tag else "") + printable(data[at + 2 : at + 2 + size])
            at += 2 + size + (size & 1)
        elif kind >> 5 == 0:
            at, hop = _hop(data, at)
            route += (", " if route else "") + hop
        elif kind == 0x80 and at + 1 < end:
            at += 2 + 2 * data[at + 1]
        else:
            fault = f"a path has no segment 0x{kind:02x}"
            break
        if at > end:
            fault = "the path is cut"
    return Path(**found, tag=tag, route=route, fault=fault)


_LOGICAL = {0x00: "class_id", 0x04: "instance", 0x10: "attribute"}


def _hop(data: bytes, at: int) -> tuple[int, str]:
    """One port segment: where it ends, and port and address."""
    kind, port = data[at], data[at] & 15
    start = at + 1
    size = 1
    if kind & 16:
        size = data[start] if start < len(data) else 0
        start += 1
    if port == 15:
        port = int.from_bytes(data[start : start + 2], "little")
        start += 2
    address = data[start : start + size]
    end = start + size
    shown = printable(address) if kind & 16 else str(int.from_bytes(address, "little"))
    return end + ((end - at) & 1), f"{port}/{shown}"


def embedded(data: bytes) -> tuple[list[bytes], str]:
    """Messages in a multiple service packet, and what is wrong with it."""
    if len(data) < 2:
        return [], "a packet of services without a count"
    count = _WORD.unpack_from(data)[0]
    if 2 + 2 * count > len(data):
        return [], f"{count} services are announced in {len(data)} bytes"
    offsets = [_WORD.unpack_from(data, 2 + 2 * number)[0] for number in range(count)]
    found: list[bytes] = []
    for number, start in enumerate(offsets[:PARTS_MAX]):
        stop = offsets[number + 1] if number + 1 < count else len(data)
        if not 2 + 2 * count <= start < stop <= len(data):
            return found, f"service {number + 1} of {count} does not lie in the packet"
        found.append(data[start:stop])
    return found, f"{count} services, {PARTS_MAX} are read" if count > PARTS_MAX else ""


def unwrapped(data: bytes) -> tuple[bytes, str]:
    """Message in an unconnected send, and its route (volume 1, 3-5.5.4).

    Raises:
        ValueError: it is too short for what it announces.
    """
    size = _WORD.unpack_from(data, 2)[0] if len(data) >= 4 else 0
    after = 4 + size + (size & 1)
    if not size or 4 + size > len(data):
        raise ValueError(f"a message of {size} bytes is announced, {len(data) - 4} are there")
    route = ""
    if len(data) > after:
        route = read_path(data[after + 2 : after + 2 + 2 * data[after]]).route
    return data[4 : 4 + size], route


def is_routed(request: Request) -> bool:
    """Whether a request holds another one and its way."""
    is_manager = request.path.class_id == CONNECTION_MANAGER
    return is_manager and request.service == UNCONNECTED_SEND


def is_plain(request: Request) -> bool:
    """Whether a request is whole, no command and holds no other."""
    service, path, _ = request
    if path.fault or service == MULTIPLE or path.class_id == PCCC_OBJECT:
        return False
    return not meaning(service, path.class_id, bool(path.tag))["ot.is_command"]


def opens(answer: Answer) -> bool:
    """Whether an answer opens a connection; its data begin with the identifiers of both ways."""
    opened = answer.service in (FORWARD_OPEN, LARGE_FORWARD_OPEN) and not answer.status
    return opened and len(answer.data) >= 8


# What it means.


@lru_cache(maxsize=4_096)
def meaning(service: int, class_id: int, has_tag: bool) -> Fields:
    """Constants of a service of an object; copy before you change them."""
    known = OBJECTS.get((class_id, service))
    if known is None and (has_tag or class_id == SYMBOL):
        known = TAGS.get(service)
    if known is None:
        known = COMMON.get(service)
    operation = known.operation if known else "diagnostic"
    if service in (CREATE, DELETE) and _is_vendors(class_id):
        # Programs of Logix controllers are made of such objects.
        operation = "program_download"
    elif service == RESET and class_id not in (-1, IDENTITY):
        operation = "control"
    name = known.name if known else f"service_0x{service:02x}"
    fields: Fields = {
        "event.action": f"cip_{known.name if known else 'object_service'}",
        "ot.operation": operation,
        "ot.is_command": bool(known and known.is_command),
        "ot.function.code": f"0x{service:02x}",
        "ot.function.name": name,
    }
    if has_tag:
        fields["ot.point.type"] = "tag"
    elif class_id >= 0:
        fields["ot.point.type"] = CLASSES.get(class_id) or f"class_0x{class_id:02x}"
    return fields


def _is_vendors(class_id: int) -> bool:
    """Classes that a maker may define (volume 1, table 4-4.1)."""
    return 0x64 <= class_id <= 0xC7 or 0x300 <= class_id <= 0x4FF


def describe(request: Request, route: str = "") -> Fields:
    """What a request asks of which object."""
    path = request.path
    fields = {**meaning(request.service, path.class_id, bool(path.tag))}
    fields["ot.direction"] = "request"
    said: Fields = {}
    if path.class_id >= 0:
        said["class"] = f"0x{path.class_id:02x}"
    if path.instance >= 0:
        fields["ot.point.address"] = path.instance
    if path.attribute >= 0:
        said["attribute"] = path.attribute
    if path.tag:
        fields["ot.point.tag"] = path.tag
    if route or path.route:
        fields["ot.unit"] = route or path.route
    content = _content(request, fields)
    if content:
        said |= content
    if said:
        fields["cw.vendor"] = said
    if path.fault:
        broken(fields, path.fault)
    return fields


def _content(request: Request, fields: Fields) -> Fields:
    service, path, data = request
    if path.tag or path.class_id == SYMBOL:
        if service in (READ_TAG, READ_TAG_PART) and len(data) >= 2:
            fields["ot.point.count"] = _WORD.unpack_from(data)[0]
        elif service in (WRITE_TAG, WRITE_TAG_PART) and len(data) >= 4:
            kind, count = _PAIR.unpack_from(data)
            fields["ot.point.count"] = count
            skipped = 4 if service == WRITE_TAG else 8
            return _add_value(fields, kind, count, data[skipped:])
        return {}
    if path.class_id == CONNECTION_MANAGER:
        return _opened(service, data)
    if path.class_id == PCCC_OBJECT and service == 0x4B:
        return _pccc(data, fields)
    if service == 0x10 and data:
        fields["ot.value_raw"] = _hex(data)
    return {}


def _add_value(fields: Fields, kind: int, count: int, data: bytes) -> Fields:
    """The value of a tag; says its type."""
    name, layout = TYPES.get(kind, (f"type_0x{kind:04x}", None))
    if layout and count == 1 and len(data) >= layout.size:
        value = layout.unpack_from(data)[0]
        if abs(value) < float("inf"):
            fields["ot.value"] = value
            return {"type": name}
    if data:
        fields["ot.value_raw"] = _hex(data)
    return {"type": name}


def _hex(data: bytes) -> str:
    return data[:BYTES_SHOWN].hex() + ("…" if len(data) > BYTES_SHOWN else "")


def _opened(service: int, data: bytes) -> Fields:
    """What a connection is to be (volume 1, 3-5.5.2)."""
    layout = _LARGE_OPEN if service == LARGE_FORWARD_OPEN else _OPEN
    if service not in (FORWARD_OPEN, LARGE_FORWARD_OPEN) or len(data) < layout.size:
        return {}
    _, _, _, _, serial, vendor, _, _, there_us, _, back_us, _, trigger, words = layout.unpack_from(
        data
    )
    path = read_path(data[layout.size : layout.size + 2 * words])
    target = CLASSES.get(path.class_id) or f"class_0x{max(path.class_id, 0):02x}"
    return {
        "connection_serial": serial,
        "originator_vendor": vendor,
        "interval_us": [there_us, back_us],
        "transport_class": trigger & 15,
        "target": target,
        **({"route": path.route} if path.route else {}),
    }


def _pccc(data: bytes, fields: Fields) -> Fields:
    """Function of a PCCC command: behind the requester's identity, whose length is first."""
    start = data[0] if data else 0
    if start >= len(data):
        return {}
    command = data[start]
    service = PCCC_COMMANDS.get(command)
    if service is None and start + 5 <= len(data):
        service = PCCC.get((command, data[start + 4])) or PCCC_UNKNOWN
        fields["ot.function.sub"] = f"0x{data[start + 4]:02x}"
    if service:
        fields["event.action"] = f"cip_{service.name}"
        fields["ot.operation"] = service.operation
        fields["ot.is_command"] = service.is_command
    return {} if command == 0x0F else {"pccc_command": f"0x{command:02x}"}


def conclude(answer: Answer, asked: Fields | None, fields: Fields) -> None:
    """What an answer says: status, and the content that is known."""
    if answer.status not in (0, PARTIAL):
        fields["event.outcome"] = "failure"
        fields["event.code"] = f"0x{answer.status:02x}"
        fields["ot.exception"] = STATUSES.get(answer.status) or f"status_0x{answer.status:02x}"
        if answer.extended >= 0:
            _add(fields, {"additional_status": f"0x{answer.extended:04x}"})
        return
    if answer.status == PARTIAL:
        _add(fields, {"more_follows": True})
    if not asked:
        return
    if asked.get("ot.point.type") == "identity" and answer.service == GET_ALL:
        _add(fields, identity(answer.data, fields))
        return
    is_tag = asked.get("ot.point.type") in ("tag", "symbol")
    if is_tag and answer.service == READ_TAG and len(answer.data) >= 2:
        kind = _WORD.unpack_from(answer.data)[0]
        count = asked.get("ot.point.count", 0)
        _add(fields, _add_value(fields, kind, count, answer.data[2:]))


def _add(fields: Fields, said: Fields) -> None:
    fields["cw.vendor"] = {**fields.get("cw.vendor", {}), **said}


def identity(data: bytes, fields: Fields) -> Fields:
    """Maker, product and version of a device (volume 1, 5-2.2)."""
    if len(data) < _IDENTITY.size:
        return {}
    vendor, kind, product, major, minor, status, serial, size = _IDENTITY.unpack_from(data)
    fields["ot.firmware.version"] = f"{major}.{minor:03}"
    return {
        "vendor_id": vendor,
        "device_type": kind,
        "product_code": product,
        "product_name": printable(data[_IDENTITY.size : _IDENTITY.size + size]),
        "serial_number": f"{serial:08x}",
        "status": f"0x{status:04x}",
    }


def counted(names: Iterator[str]) -> list[str]:
    """How often each name is there: `get_attribute_list ×9`."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return [f"{name} ×{count}" for name, count in counts.items()]
