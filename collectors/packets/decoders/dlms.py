"""DLMS/COSEM: smart meters, in HDLC frames or behind the wrapper for IP; one event a message.

Understood: associations with their authentication mechanism (none, low, high; never a password)
and result; get, set and action with class, OBIS code, attribute or method and first value; their
answers, data and event notifications, exceptions; connects and disconnects of HDLC. Set and action
are commands; clocks, firmware images and disconnectors are told apart.

Not understood: enciphered messages (told as such), services by short name (told by name only),
blocks and HDLC segments behind the first one, lists of attributes beyond the first, frames that
share one flag.

References:
    IEC 62056-46 (HDLC), IEC 62056-47 (wrapper), IEC 62056-5-3:2023 (services and their encoding),
    IEC 62056-6-2 (classes), DLMS UA Green Book ed. 11.
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Sequence
from struct import Struct
from typing import Any

from cityward import LogSource, Session, decoder
from collectors.packets.decoders import framed
from collectors.packets.decoders.ber import BerError, Element, elements, expect, integer
from collectors.packets.decoders.framed import Framed
from collectors.packets.decoders.pairs import Fields, broken, printable

DLMS = LogSource(category="ot_protocol", service="dlms")

WRAPPED_MAX = 32_768
"""Longest message behind a wrapper that is awaited; a longer one is no message."""
NESTED_MAX = 4
WRONG_SUM = "the checksum of the frame is wrong"

_FLAG = 0x7E
_WRAPPER = Struct(">HHHH")
_SELECTOR = Struct(">H6sb")
_ALWAYS: Fields = {
    "network.protocol": "dlms",
    "event.category": ["process_control"],
}

SERVICES: dict[int, tuple[str, str, str, bool]] = {
    0x05: ("read_by_name", "read", "request", False),
    0x06: ("write_by_name", "write", "request", True),
    0x0C: ("read_by_name", "read", "response", False),
    0x0D: ("write_by_name", "write", "response", False),
    0x0E: ("service_error", "session", "response", False),
    0x0F: ("data_notification", "report", "unsolicited", False),
    0x16: ("unconfirmed_write_by_name", "write", "request", True),
    0x18: ("information_report", "report", "unsolicited", False),
    0x60: ("associate", "auth", "request", False),
    0x61: ("associate", "auth", "response", False),
    0x62: ("release", "session", "request", False),
    0x63: ("release", "session", "response", False),
    0xC0: ("get", "read", "request", False),
    0xC1: ("set", "write", "request", True),
    0xC2: ("event_notification", "report", "unsolicited", False),
    0xC3: ("action", "control", "request", True),
    0xC4: ("get", "read", "response", False),
    0xC5: ("set", "write", "response", False),
    0xC7: ("action", "control", "response", False),
    0xD8: ("exception", "session", "response", False),
    0xD9: ("access", "write", "request", True),
    0xDA: ("access", "write", "response", False),
}
"""Tag of an APDU → service, operation, direction, is it a command."""
CIPHERED = frozenset((*range(0xC8, 0xD0), *range(0xD0, 0xD8), 0xDB, 0xDC, 0xDD, 0xDF))
_BLOCKS = 0xE0

FRAMES: dict[int, tuple[str, str]] = {
    0x83: ("connect", "request"),
    0x63: ("connect", "response"),
    0x43: ("disconnect", "request"),
    0x0F: ("disconnected", "response"),
    0x87: ("frame_reject", "response"),
}
"""Control octet without its poll bit → frame, direction (IEC 62056-46, section 6.4.3)."""

MECHANISMS: dict[int, str] = {
    0: "none",
    1: "low",
    2: "high",
    3: "high_md5",
    4: "high_sha1",
    5: "high_gmac",
    6: "high_sha256",
    7: "high_ecdsa",
}
CONTEXTS: dict[int, str] = {
    1: "logical_name",
    2: "short_name",
    3: "logical_name_ciphered",
    4: "short_name_ciphered",
}
DIAGNOSTICS: dict[int, str] = {
    1: "no_reason_given",
    2: "application_context_not_supported",
    11: "authentication_mechanism_not_recognised",
    12: "authentication_mechanism_required",
    13: "authentication_failure",
    14: "authentication_required",
}
RESULTS: dict[int, str] = {
    1: "hardware_fault",
    2: "temporary_failure",
    3: "read_write_denied",
    4: "object_undefined",
    9: "object_class_inconsistent",
    11: "object_unavailable",
    12: "type_unmatched",
    13: "scope_of_access_violated",
    14: "data_block_unavailable",
    15: "long_get_aborted",
    16: "no_long_get_in_progress",
    17: "long_set_aborted",
    18: "no_long_set_in_progress",
    19: "data_block_number_invalid",
    250: "other_reason",
}
EXCEPTIONS: dict[int, str] = {
    1: "operation_not_possible",
    2: "service_not_supported",
    3: "other_reason",
    4: "pdu_too_long",
    5: "deciphering_error",
    6: "invocation_counter_error",
}

CLASSES: dict[int, str] = {
    1: "data",
    3: "register",
    4: "extended_register",
    5: "demand_register",
    6: "register_activation",
    7: "profile_generic",
    8: "clock",
    9: "script_table",
    10: "schedule",
    11: "special_days_table",
    15: "association_ln",
    17: "sap_assignment",
    18: "image_transfer",
    19: "iec_local_port_setup",
    20: "activity_calendar",
    21: "register_monitor",
    22: "single_action_schedule",
    23: "iec_hdlc_setup",
    25: "mbus_slave_port_setup",
    26: "utility_tables",
    27: "modem_configuration",
    28: "auto_answer",
    29: "auto_connect",
    40: "push_setup",
    41: "tcp_udp_setup",
    42: "ipv4_setup",
    43: "mac_address_setup",
    44: "ppp_setup",
    45: "gprs_modem_setup",
    47: "gsm_diagnostic",
    48: "ipv6_setup",
    61: "register_table",
    62: "compact_data",
    64: "security_setup",
    65: "parameter_monitor",
    67: "sensor_manager",
    68: "arbitrator",
    70: "disconnect_control",
    71: "limiter",
    72: "mbus_client",
    111: "account",
    112: "credit",
    113: "charge",
    115: "token_gateway",
}
_BY_CLASS: dict[int, str] = {8: "time_sync", 18: "firmware", 64: "config", 70: "control"}
"""Operation of a set or an action, where the class says more than the service."""
_REPLY_TO_CHALLENGE = (15, 1)
"""Class and method of the second half of high authentication, which changes nothing."""

_SECRETS = frozenset(
    (
        *((15, "attribute", 7), (15, "method", 2)),  # secret of an association
        (44, "attribute", 5),  # name and password of a dial-in
        (64, "method", 2),  # keys, wrapped
        *((115, "attribute", 2), (115, "method", 1)),  # prepaid token
    )
)
"""Class and member whose value is not told (IEC 62056-6-2)."""
_HIDDEN = "not kept"

_NUMBERS: dict[int, Struct] = {
    3: Struct(">B"),
    5: Struct(">i"),
    6: Struct(">I"),
    15: Struct(">b"),
    16: Struct(">h"),
    17: Struct(">B"),
    18: Struct(">H"),
    20: Struct(">q"),
    21: Struct(">Q"),
    22: Struct(">B"),
    23: Struct(">f"),
    24: Struct(">d"),
}
_TEXTS = frozenset((10, 12))
_FIXED = {25: 12, 26: 5, 27: 4, 13: 1}
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_START = re.compile(rb"\x7e[\xa0-\xaf]|\x00\x01", re.DOTALL)


class Tally(framed.Tally):
    """What became of the bytes of a conversation, and what was said."""

    requests: int = 0
    responses: int = 0
    supervisory: int = 0
    """Frames that only acknowledge; they are no events."""
    segments: int = 0
    """Parts of a message behind its first frame; they are no events."""


class Lane(framed.Lane):
    """One direction."""

    segmented: bool = False
    """The next frame goes on with a message."""


@decoder("dlms", DLMS, transport=("tcp", "udp"), ports=(4059, 4060), begins=b"\x7e\x00")
class Dlms(Framed):
    """One conversation of a head-end and a meter."""

    unanswered = "dlms_unanswered"
    tally: Tally

    def __init__(self, session: Session) -> None:
        super().__init__(session, _ALWAYS, Tally())
        self._lanes: tuple[Lane, Lane] = (Lane(), Lane())
        self._made = {tag: {**self._base, **_constants(tag)} for tag in SERVICES}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a whole HDLC frame with its checksums, or a wrapped APDU."""
        size = Dlms.size(head, 0) if head else 0
        if not 0 < size <= len(head):
            return False
        if head[0] == _FLAG:
            return _frame_fault(head[:size]) == ""
        return head[2:4] != b"\0\0" and head[4:6] != b"\0\0" and _is_apdu(head, 8)

    @staticmethod
    def size(data: bytes, at: int) -> int:
        """See `Framed`."""
        left = len(data) - at
        if data[at] == _FLAG:
            if left < 3:
                return -1 if left < 2 or data[at + 1] >> 4 == 10 else 0
            if data[at + 1] >> 4 != 10:
                return 0
            length = (data[at + 1] & 7) << 8 | data[at + 2]
            return length + 2 if length >= 7 else 0
        if data[at]:
            return 0
        if left < 8:
            return -1 if left < 2 or data[at + 1] == 1 else 0
        version, _, _, length = _WRAPPER.unpack_from(data, at)
        return length + 8 if version == 1 and 0 < length <= WRAPPED_MAX else 0

    @staticmethod
    def next_start(data: bytes, at: int) -> tuple[int, bool]:
        """See `Framed`."""
        for match in _START.finditer(data, at):
            start = match.start()
            size = Dlms.size(data, start)
            if size < 0 or size > len(data) - start:
                return start, True
            if not size:
                continue
            if data[start] == _FLAG and _frame_fault(data[start : start + size]):
                continue
            if data[start] == _FLAG or _is_apdu(data, start + 8):
                return start, False
        return max(at, len(data) - 1), True

    def read(self, data: bytes, from_client: bool, time_s: float) -> Sequence[Fields]:
        """See `Framed`."""
        if data[0] == _FLAG:
            return self._frame(data, self._lanes[from_client], time_s)
        return (self._apdu(data[8:], False, time_s),)

    def cut(self, lane: framed.Lane, left: int) -> str:
        """See `Framed`."""
        return f"{left} bytes at the end of a datagram are cut" if left else ""

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        super().gap(from_client)
        self._lanes[from_client].segmented = False

    # ------------------------------------------------------------------------- HDLC (62056-46)

    def _frame(self, data: bytes, lane: Lane, time_s: float) -> list[Fields]:
        why = _frame_fault(data)
        at = _control_at(data)
        # A frame whose header is whole is read, though a meter would refuse it.
        if why and not (why == WRONG_SUM and _is_whole(data, at + 1)):
            lane.segmented = False
            return [self._unreadable(why)]
        control = data[at]
        if control & 1 and control & 3 == 1:
            self.tally.supervisory += 1
            return []
        if control & 1 and control & 0xEF != 0x03:
            return [self._link(control & 0xEF, time_s)]
        was_segmented, lane.segmented = lane.segmented, bool(data[1] & 8)
        if was_segmented:
            self.tally.segments += 1
            return []
        information = data[at + 3 : -3]
        if information[:2] not in (b"\xe6\xe6", b"\xe6\xe7"):
            return [self._unreadable("a frame holds no LLC header")]
        fields = self._apdu(information[3:], lane.segmented, time_s)
        if why:
            self.tally.malformed += 1
            broken(fields, why)
        return [fields]

    def _link(self, control: int, time_s: float) -> Fields:
        name, direction = FRAMES.get(control) or (f"frame_{control:02x}", "request")
        fields: Fields = {
            **self._base,
            "event.action": f"dlms_{name}",
            "ot.function.name": name,
            "ot.operation": "session",
            "ot.direction": direction,
            "ot.is_command": False,
        }
        if direction == "request":
            self.pairs.ask("link", fields, time_s)
        else:
            asked = self.pairs.answer("link", fields, time_s)
            refused = name != "connect" and not (asked and "disconnect" in asked["event.action"])
            fields["event.outcome"] = "failure" if refused else "success"
            if refused:
                fields["ot.exception"] = name
            elif asked:
                fields["event.action"] = asked["event.action"]
        return fields

    # ------------------------------------------------------------------------- APDUs (62056-5-3)

    def _apdu(self, data: bytes, is_cut: bool, time_s: float) -> Fields:
        tag = data[0] if data else 0
        made = self._made.get(tag)
        if made is None:
            return self._other(tag)
        fields = made.copy()
        own: Fields = {}
        key: Any = "association" if tag < 0x64 else tag & 15 & ~4
        try:
            if tag in (0x60, 0x61):
                own = _association(data)
            elif tag in (0xC0, 0xC1, 0xC3):
                key = (data[2] & 15, tag & 3)
                own = _selected(data, tag, is_cut)
            elif tag in (0xC4, 0xC5, 0xC7):
                key = (data[2] & 15, tag & 3)
                own = _result(data, tag, is_cut)
            elif tag == 0x0F:
                own = {"event.sequence": int.from_bytes(data[1:5])}
            elif tag == 0xC2:
                own = _event(data)
            elif tag == 0xD8:
                own = {"ot.exception": EXCEPTIONS.get(data[2]) or f"error_{data[2]}"}
        except (IndexError, ValueError) as error:
            if not is_cut:
                self.tally.malformed += 1
                broken(own, f"the {fields['ot.function.name']} is malformed: {error}")
        if fields["ot.direction"] == "request":
            fields |= own
            self.tally.requests += 1
            self.pairs.ask(key, fields, time_s)
        elif fields["ot.direction"] == "response":
            self.tally.responses += 1
            self._answer(key, fields, own, time_s)
        else:
            fields |= own
        return fields

    def _answer(self, key: Any, fields: Fields, own: Fields, time_s: float) -> None:
        asked = self.pairs.answer(key, fields, time_s) if key is not None else None
        if asked:
            for name in _REPEATED:
                if name in asked:
                    fields[name] = asked[name]
        if "event.reason" in fields and "event.reason" in own:
            own["event.reason"] = f"{fields['event.reason']}; {own['event.reason']}"
        fields["event.outcome"] = "failure" if "ot.exception" in own else "success"
        vendor = {**fields.get("cw.vendor", {}), **own.pop("cw.vendor", {})}
        if vendor.get("value") == _HIDDEN:
            own = {name: own[name] for name in own if not name.startswith("ot.value")}
        fields |= own
        if vendor:
            fields["cw.vendor"] = vendor
        if fields["ot.function.code"] in ("14", "216"):
            fields["event.outcome"] = "failure"

    def _other(self, tag: int) -> Fields:
        """What is enciphered, a block of something larger, or unknown."""
        if tag not in CIPHERED and tag != _BLOCKS:
            return self._unreadable(f"an APDU has no tag {tag}")
        name = "ciphered" if tag in CIPHERED else "block"
        return {
            **self._base,
            "event.action": f"dlms_{name}",
            "ot.function.code": str(tag),
            "ot.function.name": name,
            "ot.operation": "session",
            "ot.is_command": False,
        }


_REPEATED = ("ot.operation", "ot.point.type", "cw.vendor")


def _constants(tag: int) -> Fields:
    name, operation, direction, is_command = SERVICES[tag]
    return {
        "event.action": f"dlms_{name}",
        "ot.function.code": str(tag),
        "ot.function.name": name,
        "ot.operation": operation,
        "ot.direction": direction,
        "ot.is_command": is_command,
    }


# Where messages begin and end.


def _is_apdu(data: bytes, at: int) -> bool:
    return data[at] in SERVICES or data[at] in CIPHERED


def checksum(data: bytes) -> int:
    """CRC-16/X.25 as it stands in a frame, low byte first (IEC 62056-46, section 6.4.2.5)."""
    # The library has the same polynomial, but takes the highest bit first.
    mirrored = crc_hqx(data.translate(_REVERSED), 0xFFFF)
    return (_REVERSED[mirrored & 255] << 8 | _REVERSED[mirrored >> 8]) ^ 0xFFFF


def _control_at(data: bytes) -> int:
    """Where the control octet is, behind two addresses of 1, 2 or 4 octets; 0 if nowhere."""
    at = 3
    for _ in range(2):
        for octets in range(1, 5):
            if at >= len(data) - 3:
                return 0
            at += 1
            if data[at - 1] & 1:
                if octets == 3:
                    return 0
                break
        else:
            return 0
    return at if at < len(data) - 3 else 0


def _frame_fault(data: bytes) -> str:
    if data[-1] != _FLAG:
        return "a frame does not end where its length says"
    if not _control_at(data):
        return "a frame has no addresses"
    return "" if _is_whole(data, len(data) - 3) else WRONG_SUM


def _is_whole(data: bytes, at: int) -> bool:
    """Whether the checksum at `at` is that of what stands in front of it."""
    return checksum(data[1:at]) == int.from_bytes(data[at : at + 2], "little")


# Contents.


def _name_number(data: bytes, one: Element) -> int:
    """Last arc of the object identifier of a context or a mechanism."""
    return data[one.stop - 1] if one.stop > one.at else 0


def _association(data: bytes) -> Fields:
    """Who is asked for what kind of association, or how that was answered (section 7.2)."""
    whole = expect(data, 0, len(data), data[0])
    vendor: dict[str, Any] = {}
    own: Fields = {"cw.vendor": vendor}
    if data[0] == 0x60:
        vendor["mechanism"] = "none"
    for one in elements(data, whole.at, whole.stop, 32):
        number = _name_number(data, one)
        if one.tag == 0xA1:
            vendor["context"] = CONTEXTS.get(number) or f"context_{number}"
        elif one.tag in (0x8B, 0x89) and (one.tag == 0x8B) is (data[0] == 0x60):
            vendor["mechanism"] = MECHANISMS.get(number) or f"mechanism_{number}"
        elif one.tag == 0xAC and data[0] == 0x60 and vendor["mechanism"] == "low":
            vendor["password"] = "clear"
        elif one.tag == 0xA2 and data[0] == 0x61:
            inside = expect(data, one.at, one.stop, 0x02)
            if integer(data, inside.at, inside.stop):
                own.setdefault("ot.exception", "association_rejected")
        elif one.tag == 0xA3 and data[0] == 0x61:
            why = DIAGNOSTICS.get(number)
            if why:
                own["ot.exception"] = why
    return own


def _selected(data: bytes, tag: int, is_cut: bool) -> Fields:
    """Class, OBIS code, attribute or method, and the first value (sections 7.3.2 to 7.3.4)."""
    kind = data[1]
    own: Fields = {"event.sequence": data[2] & 15, "ot.function.sub": str(kind)}
    if tag == 0xC0 and kind == 2:  # the next block
        return own
    if tag != 0xC0 and kind in (3, 6) and tag == 0xC1:  # another block of what was begun
        return own
    at = 3
    if kind not in (1, 2) or (tag == 0xC3 and kind == 2):
        own["ot.point.count"] = data[at]
        at += 1
    if at + _SELECTOR.size > len(data):
        raise ValueError("class, code and attribute have 9 bytes")
    number, code, member = _SELECTOR.unpack_from(data, at)
    at += _SELECTOR.size
    which = "method" if tag == 0xC3 else "attribute"
    own["ot.point.type"] = CLASSES.get(number) or f"class_{number}"
    is_secret = (number, which, member) in _SECRETS
    hidden = {"value": _HIDDEN} if is_secret else {}
    own["cw.vendor"] = {"obis": ".".join(map(str, code)), which: member, **hidden}
    if tag == 0xC0:
        return own
    if number in _BY_CLASS:
        own["ot.operation"] = _BY_CLASS[number]
    if tag == 0xC3 and (number, member) == _REPLY_TO_CHALLENGE:
        own |= {"ot.operation": "auth", "ot.is_command": False}
        return own
    is_plain = not is_secret and (tag == 0xC3 or (kind == 1 and not data[at]))
    return own | _value(data, at + 1, is_cut) if is_plain and at + 1 < len(data) else own


def _result(data: bytes, tag: int, is_cut: bool) -> Fields:
    kind = data[1]
    own: Fields = {"event.sequence": data[2] & 15}
    at = 3
    if tag == 0xC4 and kind == 2:
        own["cw.vendor"] = {"last_block": bool(data[3]), "block": int.from_bytes(data[4:8])}
        if data[8]:
            own["ot.exception"] = RESULTS.get(data[9]) or f"result_{data[9]}"
        return own
    if tag == 0xC4 and kind == 3:
        own["ot.point.count"] = data[at]
        at += 1
    if tag == 0xC4:
        if data[at]:
            own["ot.exception"] = RESULTS.get(data[at + 1]) or f"result_{data[at + 1]}"
            return own
        return own | _value(data, at + 1, is_cut)
    if kind == 1 and data[at]:
        own["ot.exception"] = RESULTS.get(data[at]) or f"result_{data[at]}"
    return own


def _event(data: bytes) -> Fields:
    at = 2 + (data[2] + 1 if data[1] else 0)
    if at + _SELECTOR.size > len(data):
        raise ValueError("class, code and attribute have 9 bytes")
    number, code, member = _SELECTOR.unpack_from(data, at)
    return {
        "ot.point.type": CLASSES.get(number) or f"class_{number}",
        "cw.vendor": {"obis": ".".join(map(str, code)), "attribute": member},
    }


def _value(data: bytes, at: int, is_cut: bool, depth: int = 0) -> Fields:
    """The first value, in arrays and structures the first of their first (section 9.5)."""
    try:
        kind = data[at]
        at += 1
        if kind in (1, 2):
            count, at = _length(data, at)
            if not count or depth == NESTED_MAX:
                return {"ot.point.count": count}
            return {**_value(data, at, is_cut, depth + 1), "ot.point.count": count}
        if kind in _NUMBERS:
            form = _NUMBERS[kind]
            if at + form.size > len(data):
                raise IndexError
            value = form.unpack_from(data, at)[0]
            if isinstance(value, float) and not abs(value) < float("inf"):
                return {"ot.value_raw": str(value)}
            return {"ot.value": value}
        if kind == 0:
            return {"ot.value_raw": "null"}
        size = _FIXED.get(kind)
        if size is None:
            size, at = _length(data, at)
            if kind == 4:
                size = (size + 7) // 8
        if kind not in _FIXED and kind not in (4, 9, *_TEXTS):
            raise ValueError(f"{kind} is no type of a value")
        if at + size > len(data):
            raise IndexError
        text = data[at : at + size]
        return {"ot.value_raw": printable(text) if kind in _TEXTS else text[:32].hex()}
    except IndexError:
        if is_cut:
            return {}
        raise ValueError("a value is cut") from None


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A length as in BER, and where it ends."""
    first = data[at]
    if first < 128:
        return first, at + 1
    octets = first & 127
    if not 0 < octets <= 4:
        raise BerError(f"a length has {octets} octets")
    if at + 1 + octets > len(data):
        raise IndexError
    return int.from_bytes(data[at + 1 : at + 1 + octets]), at + 1 + octets
