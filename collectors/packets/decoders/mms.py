"""MMS, which carries IEC 61850-8-1 and ICCP: one event a message, one a written object.

Understood: associations with what both ends propose; confirmed services by name, joined by invoke
id; names of domains and variables of read, write, name lists, data sets and reports; written
values; control by what an object is called (`$CO$…$Oper`, `$SBO`, `$SBOw`, `$Cancel`); file names;
errors, rejects and refused accesses by name; the end of an association.

Not understood: values of reports and of answers to reads, types, journals and event conditions
beyond the name of their service; authentication beyond that there is one.

References:
    ISO 9506-2:2003 (MMS protocol), clauses 7 (PDUs) to 23 (services).
    IEC 61850-8-1:2011, clauses 7 to 23 (mapping: object names, control, reports).
    ITU-T X.225 (session), X.226 (presentation), X.227 (association control).
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.ber import BerError, Element, element, elements, integer, unsigned
from collectors.packets.decoders.cotp import Cotp, first_of
from collectors.packets.decoders.pairs import Fields, broken, printable

IEC61850 = LogSource(category="ot_protocol", service="iec61850")

OBJECTS_MAX = 64
"""Objects of one message that are read."""
LEAVES_MAX = 32
"""Values of one structure that are read."""
OBJECTS_SHOWN = 16
DEPTH_MAX = 8

# ---- Names


class Service(msgspec.Struct, frozen=True):
    """What a confirmed service does."""

    name: str
    operation: str = "diagnostic"
    is_command: bool = False


SERVICES: dict[int, Service] = {
    0: Service("status"),
    1: Service("get_name_list", "discovery"),
    2: Service("identify", "discovery"),
    3: Service("rename", "config", True),
    4: Service("read", "read"),
    5: Service("write", "write", True),
    6: Service("get_variable_access_attributes", "discovery"),
    7: Service("define_named_variable", "config", True),
    8: Service("define_scattered_access", "config", True),
    9: Service("get_scattered_access_attributes", "discovery"),
    10: Service("delete_variable_access", "config", True),
    11: Service("define_named_variable_list", "config", True),
    12: Service("get_named_variable_list_attributes", "discovery"),
    13: Service("delete_named_variable_list", "config", True),
    14: Service("define_named_type", "config", True),
    15: Service("get_named_type_attributes", "discovery"),
    16: Service("delete_named_type", "config", True),
    17: Service("input", "control", True),
    18: Service("output", "control", True),
    19: Service("take_control", "control", True),
    20: Service("relinquish_control", "control", True),
    21: Service("define_semaphore", "config", True),
    22: Service("delete_semaphore", "config", True),
    23: Service("report_semaphore_status"),
    24: Service("report_pool_semaphore_status"),
    25: Service("report_semaphore_entry_status"),
    26: Service("initiate_download_sequence", "program_download", True),
    27: Service("download_segment", "program_download"),
    28: Service("terminate_download_sequence", "program_download", True),
    29: Service("initiate_upload_sequence", "program_upload"),
    30: Service("upload_segment", "program_upload"),
    31: Service("terminate_upload_sequence", "program_upload"),
    32: Service("request_domain_download", "program_download", True),
    33: Service("request_domain_upload", "program_upload"),
    34: Service("load_domain_content", "program_download", True),
    35: Service("store_domain_content", "program_upload"),
    36: Service("delete_domain", "program_download", True),
    37: Service("get_domain_attributes", "discovery"),
    38: Service("create_program_invocation", "program_download", True),
    39: Service("delete_program_invocation", "program_download", True),
    40: Service("start", "mode_change", True),
    41: Service("stop", "mode_change", True),
    42: Service("resume", "mode_change", True),
    43: Service("reset", "mode_change", True),
    44: Service("kill", "mode_change", True),
    45: Service("get_program_invocation_attributes", "discovery"),
    46: Service("obtain_file", "file", True),
    47: Service("define_event_condition", "config", True),
    48: Service("delete_event_condition", "config", True),
    49: Service("get_event_condition_attributes"),
    50: Service("report_event_condition_status"),
    51: Service("alter_event_condition_monitoring", "config", True),
    52: Service("trigger_event", "control", True),
    53: Service("define_event_action", "config", True),
    54: Service("delete_event_action", "config", True),
    55: Service("get_event_action_attributes"),
    56: Service("report_event_action_status"),
    57: Service("define_event_enrollment", "config", True),
    58: Service("delete_event_enrollment", "config", True),
    59: Service("alter_event_enrollment", "config", True),
    60: Service("report_event_enrollment_status"),
    61: Service("get_event_enrollment_attributes"),
    62: Service("acknowledge_event_notification", "alarm", True),
    63: Service("get_alarm_summary", "alarm"),
    64: Service("get_alarm_enrollment_summary", "alarm"),
    65: Service("read_journal", "read"),
    66: Service("write_journal", "write", True),
    67: Service("initialize_journal", "config", True),
    68: Service("report_journal_status"),
    69: Service("create_journal", "config", True),
    70: Service("delete_journal", "config", True),
    71: Service("get_capability_list", "discovery"),
    72: Service("file_open", "file"),
    73: Service("file_read", "file"),
    74: Service("file_close", "file"),
    75: Service("file_rename", "file", True),
    76: Service("file_delete", "file", True),
    77: Service("file_directory", "file"),
}
"""ISO 9506-2, ConfirmedServiceRequest: context tag → service."""
READ, WRITE = 4, 5
UNCONFIRMED = {0: "information_report", 1: "unsolicited_status", 2: "event_notification"}

ACCESS_ERRORS = (
    *("object_invalidated", "hardware_fault", "temporarily_unavailable", "object_access_denied"),
    *("object_undefined", "invalid_address", "type_unsupported", "type_inconsistent"),
    *("object_attribute_inconsistent", "object_access_unsupported", "object_non_existent"),
    "object_value_invalid",
)
ERROR_CLASSES = (
    *("vmd_state", "application_reference", "definition", "resource", "service"),
    *("service_preempt", "time_resolution", "access", "initiate", "conclude", "cancel", "file"),
    "others",
)
ERRORS: dict[tuple[int, int], str] = {
    (7, 1): "object_access_unsupported",
    (7, 2): "object_non_existent",
    (7, 3): "object_access_denied",
    (7, 4): "object_invalidated",
    (11, 1): "filename_ambiguous",
    (11, 2): "file_busy",
    (11, 3): "filename_syntax",
    (11, 4): "content_type_invalid",
    (11, 5): "position_invalid",
    (11, 6): "file_access_denied",
    (11, 7): "file_non_existent",
    (11, 8): "duplicate_filename",
    (11, 9): "insufficient_space",
}
"""Class and code; the other classes by their name and number."""
REJECTS = {
    1: "confirmed_request",
    2: "confirmed_response",
    3: "confirmed_error",
    4: "unconfirmed",
    5: "pdu",
    6: "cancel_request",
    7: "cancel_response",
    8: "cancel_error",
    9: "conclude_request",
    10: "conclude_response",
    11: "conclude_error",
}
"""What kind of message was rejected."""

CONTROLS = {
    "Oper": ("operate", "control"),
    "SBO": ("select", "select"),
    "SBOw": ("select", "select"),
    "Cancel": ("cancel", "control"),
}
"""IEC 61850-8-1, clause 20: last part of a name under `$CO$` → action, operation."""
CONFIGURED = frozenset({"SP", "SG", "SE", "CF", "DC", "RP", "BR", "GO", "LG", "MS", "US", "SV"})
"""Functional constraints whose objects settle how a device behaves and reports."""

# ---- Tags

_A = 0xA0
_DOMAIN_NAME, _VMD_NAME, _AA_NAME = 0xA1, 0x80, 0x82
_IDENTIFIER = 0x1A
_GRAPHIC = 0x19
_BOOLEAN, _BITS, _INTEGER, _UNSIGNED, _FLOAT, _OCTETS, _TEXT = (
    *(0x83, 0x84, 0x85, 0x86, 0x87, 0x89, 0x8A),
)
_MMS_NAME = bytes.fromhex("28ca2202")
"""1.0.9506.2: abstract syntax and application context of MMS begin so."""
_PDUS = frozenset({0xA0, 0xA1, 0xA2, 0xA3, 0xA4, 0x85, 0x86, 0xA7, 0xA8, 0xA9, 0xAA, 0x8B, 0x8C,
                   0xAD})  # fmt: skip
_CONNECT, _ACCEPT, _FINISH, _DISCONNECT, _REFUSE, _ABORT, _ABORTED = 13, 14, 9, 10, 12, 25, 26
_SESSIONS = {
    _CONNECT: ("associate", "request", ""),
    _ACCEPT: ("associate", "response", "success"),
    _REFUSE: ("associate", "response", "failure"),
    _FINISH: ("release", "request", ""),
    _DISCONNECT: ("release", "response", "success"),
    _ABORT: ("abort", "unsolicited", "failure"),
    _ABORTED: ("abort", "response", "success"),
}
"""X.225, clause 8.3: session message → action, direction, outcome."""
_USER_DATA = (0xC1, 0xC2)
_DATA_HEAD = b"\x01\x00\x01\x00"
"""Give tokens and data transfer, both without parameters."""
_REAL = Struct(">f")

Name = tuple[str, str]
"""Domain, or nothing, and item."""


@decoder("mms", IEC61850, ports=(102,), begins=b"\x03")
class Mms(Cotp):
    """One MMS association."""

    protocol = "mms"

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._made: dict[tuple[int, bool], Fields] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`."""
        return first_of(head, _has_mms_selectors, _begins_message)

    def messages(self, data: bytes, from_client: bool, time_s: float) -> list[Fields]:
        """See `Cotp`."""
        try:
            if data.startswith(_DATA_HEAD):
                found: list[Fields] = []
                for pdu in _values(data, element(data, 4, len(data))):
                    found += self._pdu(data, pdu, from_client, time_s)
            else:
                found = [self._session_message(data, from_client, time_s)]
        except BerError as error:
            return [self.unreadable(str(error))]
        for fields in found:
            self.malformed += "event.kind" in fields
        return found

    # ---------------------------------------------------------------- the association

    def _session_message(self, data: bytes, from_client: bool, time_s: float) -> Fields:
        kind = data[0]
        if kind not in _SESSIONS:
            return self.unreadable(f"session message {kind} is not defined")
        name, direction, outcome = _SESSIONS[kind]
        fields: Fields = {**self._always(name, "session"), "ot.direction": direction}
        if outcome:
            fields["event.outcome"] = outcome
        if kind == _REFUSE:
            fields["ot.exception"] = "session_refused"
        at, stop = _user_data(data)
        if at < stop:
            try:
                self._association(data, at, stop, fields)
            except BerError as error:
                broken(fields, str(error))
        if direction == "request":
            self.pairs.ask((from_client, name), fields, time_s)
        elif direction == "response" and kind != _ABORTED:
            self.pairs.answer((not from_client, name), fields, time_s)
        return fields

    def _association(self, data: bytes, at: int, stop: int, fields: Fields) -> None:
        """What ACSE and MMS say inside of a session message."""
        outer = element(data, at, stop)
        if outer.tag == 0x31:
            outer = _presented(data, outer)
        for control in _values(data, outer):
            said: Fields = {}
            for part in elements(data, control.at, control.stop):
                if part.tag in (0xAC, 0xAA) and control.tag in (0x60, 0x61):
                    said["authentication"] = True
                elif part.tag == 0xA2 and control.tag == 0x61:
                    result = element(data, part.at, part.stop)
                    if unsigned(data, result.at, result.stop):
                        fields |= {"event.outcome": "failure", "ot.exception": "rejected"}
                elif part.tag == 0xBE:
                    said |= _initiated(data, part)
            if said:
                fields["cw.vendor"] = said

    # ---------------------------------------------------------------- messages

    def _pdu(self, data: bytes, pdu: Element, from_client: bool, time_s: float) -> list[Fields]:
        if pdu.tag == 0xA0:
            return self._request(data, pdu, from_client, time_s)
        if pdu.tag in (0xA1, 0xA2):
            return [self._answer(data, pdu, from_client, time_s)]
        if pdu.tag == 0xA3:
            return [self._report(data, pdu)]
        return [self._apart(data, pdu, from_client, time_s)]

    def _request(self, data: bytes, pdu: Element, from_client: bool, time_s: float) -> list[Fields]:
        invoke, service = _numbered(data, pdu)
        number = _number(service.tag)
        fields: Fields = {**self._constants(number, True), "event.sequence": invoke}
        found = [fields]
        try:
            if number == WRITE:
                found = _writes(data, service, fields)
            else:
                _ask(data, number, service, fields)
        except BerError as error:
            broken(fields, str(error))
            found = [fields]
        self.pairs.ask((from_client, invoke), found[0], time_s)
        for one in found[1:]:
            one["ot.link_id"] = found[0]["ot.link_id"]
        return found

    def _answer(self, data: bytes, pdu: Element, from_client: bool, time_s: float) -> Fields:
        key_of = not from_client
        if pdu.tag == 0xA1:
            invoke, service = _numbered(data, pdu)
            asked = self.pairs.waits((key_of, invoke))
            number = _number(service.tag)
        else:
            parts = elements(data, pdu.at, pdu.stop)
            invoke = unsigned(data, parts[0].at, parts[0].stop) if parts else 0
            asked = self.pairs.waits((key_of, invoke))
            number = int(asked["ot.function.code"]) if asked else -1
        fields: Fields = {**self._constants(number, False), "event.sequence": invoke}
        if asked and asked["ot.function.code"] != str(number):
            broken(fields, f"answers another service than {asked['ot.function.name']}")
            asked = None
        else:
            self.pairs.answer((key_of, invoke), fields, time_s)
        if asked:
            fields |= {name: asked[name] for name in _REPEATED if name in asked}
        try:
            if pdu.tag == 0xA2:
                fields |= {"event.outcome": "failure", "ot.exception": _service_error(data, parts)}
            else:
                _answered(data, number, service, fields)
        except BerError as error:
            broken(fields, str(error))
        return fields

    def _report(self, data: bytes, pdu: Element) -> Fields:
        service = element(data, pdu.at, pdu.stop)
        name = UNCONFIRMED.get(service.tag & 31, "unconfirmed")
        fields: Fields = {
            **self._always(name, "alarm" if service.tag == 0xA2 else "report"),
            "ot.direction": "unsolicited",
            "ot.function.code": str(service.tag & 31),
            "ot.function.name": name,
        }
        if service.tag != _A:
            return fields
        try:
            parts = elements(data, service.at, service.stop)
            _add_names(fields, _variables(data, parts[0]) if parts else [])
            results = elements(data, parts[1].at, parts[1].stop) if len(parts) > 1 else []
        except BerError as error:
            broken(fields, str(error))
            return fields
        fields["ot.point.count"] = len(results)
        if results and results[0].tag == _TEXT and fields["cw.vendor"].get("item") == "RPT":
            # IEC 61850-8-1, clause 17: a report begins with its identification.
            fields["cw.vendor"]["report"] = printable(data[results[0].at : results[0].stop])
            if len(results) > 2 and results[2].tag == _UNSIGNED:
                fields["event.sequence"] = unsigned(data, results[2].at, results[2].stop)
        return fields

    def _apart(self, data: bytes, pdu: Element, from_client: bool, time_s: float) -> Fields:
        kind = _OTHERS.get(pdu.tag)
        if kind is None:
            return self.unreadable(f"an MMS message has no tag 0x{pdu.tag:02x}")
        name, direction, outcome = kind
        fields: Fields = {**self._always(name, "session"), "ot.direction": direction}
        if outcome:
            fields["event.outcome"] = outcome
        if pdu.tag == 0xA4:
            for part in elements(data, pdu.at, pdu.stop):
                number = unsigned(data, part.at, part.stop)
                if part.tag == 0x80:
                    fields["event.sequence"] = number
                    self.pairs.answer((not from_client, number), fields, time_s)
                else:
                    what = REJECTS.get(part.tag & 31, "message")
                    fields["ot.exception"] = f"reject_{what}_{number}"
        elif direction == "request":
            self.pairs.ask((from_client, name), fields, time_s)
        elif direction == "response":
            self.pairs.answer((not from_client, name), fields, time_s)
        return fields

    def _always(self, name: str, operation: str) -> Fields:
        return {
            **self.base,
            "event.action": f"mms_{name}",
            "ot.operation": operation,
            "ot.is_command": False,
        }

    def _constants(self, number: int, is_request: bool) -> Fields:
        made = self._made.get((number, is_request))
        if made is not None:
            return made
        service = SERVICES.get(number) or Service("unknown_service")
        made = {
            **self._always(service.name, service.operation),
            "ot.is_command": is_request and service.is_command,
            "ot.direction": "request" if is_request else "response",
        }
        if number >= 0:
            made["ot.function.code"] = str(number)
            made["ot.function.name"] = (
                service.name if number in SERVICES else f"additional_service_{number}"
            )
        if not is_request:
            made["event.outcome"] = "success"
        if number in SERVICES:
            self._made[number, is_request] = made
        return made


_OTHERS = {
    0xA4: ("reject", "response", "failure"),
    0x85: ("cancel", "request", ""),
    0x86: ("cancel", "response", "success"),
    0xA7: ("cancel", "response", "failure"),
    0xA8: ("initiate", "request", ""),
    0xA9: ("initiate", "response", "success"),
    0xAA: ("initiate", "response", "failure"),
    0x8B: ("conclude", "request", ""),
    0x8C: ("conclude", "response", "success"),
    0xAD: ("conclude", "response", "failure"),
}
"""Tag of a message → action, direction, outcome."""
_REPEATED = ("event.action", "ot.operation", "ot.unit", "ot.point.count", "cw.vendor")
"""What an answer repeats of its request."""


def _has_mms_selectors(calling: bytes, called: bytes) -> bool:
    """Selectors of two octets that begin with zero, as IEC 61850-8-1 stations have them."""
    return len(called) == 2 and called[0] == 0 and len(calling) == 2 and calling[0] == 0


def _begins_message(data: bytes) -> bool:
    if data.startswith(_DATA_HEAD):
        # Fully encoded data, one presentation value, its context, one MMS message.
        head = data[4:40]
        return len(head) > 2 and head[0] == 0x61 and _has_message(head)
    return data[:1] in (b"\x0d", b"\x0e") and _MMS_NAME in data[:512]


def _has_message(head: bytes) -> bool:
    """Tags of the first levels, also where the end is not there yet."""
    at = 0
    for tag in (0x61, 0x30, 0x02, 0xA0):
        if at + 2 > len(head) or head[at] != tag:
            return False
        octets = head[at + 1] & 127 if head[at + 1] > 127 else 0
        if octets > 2:
            return False
        at += 2 + octets + (head[at + 1] if tag == 0x02 else 0)
    return at < len(head) and head[at] in _PDUS


# Session and presentation.


def _user_data(data: bytes) -> tuple[int, int]:
    """Where the user data of a session message stand."""
    at, stop = _sized(data, 1)
    stop = min(stop, len(data))
    while at + 1 < stop:
        kind = data[at]
        at, end = _sized(data, at + 1)
        if kind in _USER_DATA:
            return at, min(end, len(data))
        at = end
    return 0, 0


def _sized(data: bytes, at: int) -> tuple[int, int]:
    """Begin and end of what a length indicator (X.225, 8.2.5) announces."""
    if at >= len(data):
        return at, at
    if data[at] != 0xFF:
        return at + 1, at + 1 + data[at]
    return at + 3, at + 3 + int.from_bytes(data[at + 1 : at + 3])


def _presented(data: bytes, connect: Element) -> Element:
    """User data of a presentation connect or accept (X.226, clause 8.2)."""
    for normal in elements(data, connect.at, connect.stop):
        if normal.tag == 0xA2:
            for part in elements(data, normal.at, normal.stop):
                if part.tag == 0x61:
                    return part
    raise BerError("a presentation connect without user data")


def _values(data: bytes, outer: Element) -> Iterator[Element]:
    """Messages inside of fully encoded presentation data (X.226, clause 8.4)."""
    if outer.tag != 0x61:
        raise BerError(f"presentation data begin with tag 0x{outer.tag:02x}, 0x61 belongs there")
    for listed in elements(data, outer.at, outer.stop):
        for part in elements(data, listed.at, listed.stop):
            if part.tag == _A:
                yield element(data, part.at, part.stop)


def _initiated(data: bytes, user: Element) -> Fields:
    """What both ends propose in an initiate message."""
    said: Fields = {}
    for external in elements(data, user.at, user.stop):
        for part in elements(data, external.at, external.stop):
            if part.tag != _A:
                continue
            pdu = element(data, part.at, part.stop)
            if pdu.tag not in (0xA8, 0xA9):
                continue
            for one in elements(data, pdu.at, pdu.stop):
                if one.tag in _PROPOSALS:
                    said[_PROPOSALS[one.tag]] = unsigned(data, one.at, one.stop)
    return said


_PROPOSALS = {0x80: "pdu_bytes", 0x81: "calls_of_client", 0x82: "calls_of_server", 0x83: "nesting"}


# What a message is about.


def _numbered(data: bytes, pdu: Element) -> tuple[int, Element]:
    """Invoke id and service of a confirmed message."""
    parts = elements(data, pdu.at, pdu.stop)
    if len(parts) < 2 or parts[0].tag != 0x02:
        raise BerError("a confirmed message has an invoke id and a service")
    invoke = unsigned(data, parts[0].at, parts[0].stop)
    if invoke > 0xFFFF_FFFF:
        raise BerError(f"an invoke id has 32 bits, not {invoke}")
    service = next((part for part in parts[1:] if part.tag != 0x30), parts[1])
    return invoke, service


def _number(tag: int) -> int:
    """Number of a context tag of one or more octets."""
    if tag < 0x100:
        return tag & 31
    return tag & 127 if tag < 0x1_0000 else (tag & 0x7F00) >> 1 | tag & 127


def _object_name(data: bytes, part: Element) -> Name:
    if part.tag == _DOMAIN_NAME:
        texts = elements(data, part.at, part.stop, 2)
        if len(texts) == 2:
            return _text(data, texts[0]), _text(data, texts[1])
    return ("", _text(data, part))


def _text(data: bytes, part: Element) -> str:
    return printable(data[part.at : part.stop])


def _variables(data: bytes, spec: Element) -> list[Name]:
    """Names in a VariableAccessSpecification: a list of variables, or the name of such a list."""
    if spec.tag == 0xA1:
        return [_object_name(data, element(data, spec.at, spec.stop))]
    found = []
    for one in elements(data, spec.at, spec.stop, OBJECTS_MAX):
        inner = element(data, one.at, one.stop)
        if inner.tag == _A and one.tag == 0x30:
            found.append(_object_name(data, element(data, inner.at, inner.stop)))
    return found


def _add_names(fields: Fields, names: list[Name]) -> None:
    said: Fields = {}
    if names:
        domain, item = names[0]
        if domain:
            fields["ot.unit"] = domain
        said["item"] = item
        fields["ot.point.count"] = len(names)
    if len(names) > 1:
        said["items"] = [f"{domain}/{item}" for domain, item in names[:OBJECTS_SHOWN]]
    fields["cw.vendor"] = said


def _add_meaning(fields: Fields, item: str) -> None:
    """What a name of IEC 61850 says about what is done: functional constraint and control."""
    parts = item.split("$")
    if len(parts) < 2:
        return
    fields["cw.vendor"]["functional_constraint"] = parts[1]
    if parts[1] == "CO":
        control = next((CONTROLS[part] for part in parts[2:] if part in CONTROLS), None)
        if control and (fields["ot.is_command"] or control[0] == "select"):
            fields["event.action"] = f"mms_{control[0]}"
            fields["ot.operation"] = control[1]
            fields["ot.is_command"] = True
    elif fields["ot.is_command"] and parts[1] in CONFIGURED:
        fields["ot.operation"] = "config"


def _ask(data: bytes, number: int, service: Element, fields: Fields) -> None:
    """Add what a request other than a write is about."""
    if number == READ:
        for part in elements(data, service.at, service.stop):
            if part.tag == 0xA1:
                names = _variables(data, element(data, part.at, part.stop))
                _add_names(fields, names)
                if names and names[0][1].endswith("$SBO"):
                    _add_meaning(fields, names[0][1])
        return
    if number == 1:
        _add_scope(data, service, fields)
    elif 26 <= number <= 45:
        text = _first_text(data, service)
        if text:
            fields["ot.unit"] = text
    elif 46 <= number <= 77:
        name = _first_text(data, service, _GRAPHIC)
        if name:
            fields["file.name"] = name
    elif (service.stop > service.at and service.tag & 0x20) or number in (6, 11, 12, 13):
        _add_names(fields, _first_names(data, service))


def _add_scope(data: bytes, service: Element, fields: Fields) -> None:
    """Which kind of names are asked for, and of which domain (get name list)."""
    for part in elements(data, service.at, service.stop):
        if part.tag in (0xA0, 0xA1):
            inner = element(data, part.at, part.stop)
            if part.tag == 0xA1 and inner.tag == 0x81:
                fields["ot.unit"] = _text(data, inner)
            elif part.tag == 0xA0 and inner.tag == 0x80:
                kind = unsigned(data, inner.at, inner.stop)
                fields["cw.vendor"] = {"object_class": _CLASSES.get(kind) or f"class_{kind}"}


_CLASSES = {0: "variable", 2: "variable_list", 8: "journal", 9: "domain", 10: "invocation"}


def _first_names(data: bytes, service: Element) -> list[Name]:
    """Names of objects on the first levels of a service."""
    found: list[Name] = []
    waiting = [(service, 0)]
    looked = 0
    while waiting and len(found) < OBJECTS_MAX and looked < 4 * OBJECTS_MAX:
        part, depth = waiting.pop(0)
        for one in elements(data, part.at, part.stop, OBJECTS_MAX):
            looked += 1
            if one.tag == _DOMAIN_NAME and data[one.at : one.at + 1] == bytes([_IDENTIFIER]):
                found.append(_object_name(data, one))
            elif one.tag in (_VMD_NAME, _AA_NAME):
                found.append(("", _text(data, one)))
            elif one.tag & 0x20 and depth < DEPTH_MAX:
                waiting.append((one, depth + 1))
    return found


def _first_text(data: bytes, part: Element, wanted: int = 0) -> str:
    """The first text, or the first of one kind, on the way down."""
    for _ in range(DEPTH_MAX):
        inner = elements(data, part.at, part.stop, 4) if _is_constructed(part.tag) else []
        if not inner:
            return _text(data, part) if not wanted or part.tag == wanted else ""
        part = next((one for one in inner if one.tag == wanted), inner[0])
    return ""


def _is_constructed(tag: int) -> bool:
    while tag > 0xFF:
        tag >>= 8
    return bool(tag & 0x20)


def _writes(data: bytes, service: Element, fields: Fields) -> list[Fields]:
    """One event a written variable."""
    parts = elements(data, service.at, service.stop, 2)
    names = _variables(data, parts[0]) if parts else []
    values = elements(data, parts[1].at, parts[1].stop, OBJECTS_MAX) if len(parts) > 1 else []
    found = []
    for number, name in enumerate(names):
        own = {**fields}
        _add_names(own, [name])
        _add_meaning(own, name[1])
        if number < len(values):
            _add_value(data, values[number], own)
        found.append(own)
    if len(names) != len(values) and not (parts and parts[0].tag == 0xA1):
        broken(found[0] if found else fields, f"{len(values)} values for {len(names)} variables")
    return found or [fields]


def _add_value(data: bytes, value: Element, fields: Fields) -> None:
    """A number where the first value is one; the values of a structure as a list."""
    leaves = list(_leaves(data, value))
    if not leaves:
        return
    if isinstance(leaves[0], int | float):
        if abs(leaves[0]) < float("inf"):
            fields["ot.value"] = leaves[0]
        else:
            fields["ot.value_raw"] = str(leaves[0])
    if len(leaves) > 1 or isinstance(leaves[0], str):
        fields["ot.value_raw"] = ",".join(str(leaf) for leaf in leaves)


def _leaves(data: bytes, value: Element) -> Iterator[int | float | str]:
    """Values of a structure from left to right."""
    waiting, count = [(value, 0)], 0
    while waiting and count < LEAVES_MAX:
        part, depth = waiting.pop()
        if part.tag in (0xA1, 0xA2):
            if depth < DEPTH_MAX:
                inner = elements(data, part.at, part.stop, LEAVES_MAX)
                waiting += [(one, depth + 1) for one in reversed(inner)]
            continue
        count += 1
        yield _leaf(data, part)


def _leaf(data: bytes, part: Element) -> int | float | str:
    content = data[part.at : part.stop]
    if part.tag == _BOOLEAN and len(content) == 1:
        return int(content != b"\0")
    if part.tag == _INTEGER and len(content) <= 8:
        return integer(data, part.at, part.stop)
    if part.tag == _UNSIGNED and len(content) <= 8:
        # Above 63 bits no store keeps it as a number.
        number = unsigned(data, part.at, part.stop)
        return number if number < 1 << 63 else str(number)
    if part.tag == _FLOAT and len(content) == 5:
        return float(_REAL.unpack_from(content, 1)[0])
    if part.tag == _TEXT:
        return printable(content)
    return content[: DEPTH_MAX * 4].hex()


# What an answer says.


def _answered(data: bytes, number: int, service: Element, fields: Fields) -> None:
    if number == WRITE:
        _add_failures(data, elements(data, service.at, service.stop, OBJECTS_MAX), fields)
    elif number == READ:
        parts = elements(data, service.at, service.stop)
        if parts:
            results = elements(data, parts[-1].at, parts[-1].stop, OBJECTS_MAX)
            _add_failures(data, results, fields)
            if len(results) == 1 and results[0].tag != 0x80:
                _add_value(data, results[0], fields)
    elif number == 1:
        parts = elements(data, service.at, service.stop)
        if parts and parts[0].tag == _A:
            fields["ot.point.count"] = len(elements(data, parts[0].at, parts[0].stop))
    elif number == 2:
        texts = [_text(data, part) for part in elements(data, service.at, service.stop, 3)]
        named = zip(("vendor", "model", "revision"), texts, strict=False)
        fields["cw.vendor"] = dict(named)
        if len(texts) > 2:
            fields["ot.firmware.version"] = texts[2]


def _add_failures(data: bytes, results: list[Element], fields: Fields) -> None:
    failed = []
    for number, part in enumerate(results, 1):
        if part.tag == 0x80 and part.stop - part.at <= 2:
            code = unsigned(data, part.at, part.stop)
            why = ACCESS_ERRORS[code] if code < len(ACCESS_ERRORS) else f"access_error_{code}"
            failed.append((number, why))
    if failed:
        fields |= {"event.outcome": "failure", "ot.exception": failed[0][1]}
        if len(results) > 1:
            shown = [f"{number}: {why}" for number, why in failed[:OBJECTS_SHOWN]]
            fields["cw.vendor"] = {**fields.get("cw.vendor", {}), "failed_items": shown}


def _service_error(data: bytes, parts: list[Element]) -> str:
    """Class and code of a service error (ISO 9506-2, clause 7.4)."""
    for part in parts:
        if part.tag != 0xA2:
            continue
        chosen = element(data, part.at, part.stop)
        coded = element(data, chosen.at, chosen.stop)
        kind, code = coded.tag & 31, unsigned(data, coded.at, coded.stop)
        name = ERROR_CLASSES[kind] if kind < len(ERROR_CLASSES) else f"class_{kind}"
        return ERRORS.get((kind, code)) or f"{name}_{code}"
    return "service_error"
