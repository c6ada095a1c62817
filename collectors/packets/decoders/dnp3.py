"""DNP3: masters and outstations of substations and waterworks, from the link layer up.

Understood: link frames with the CRC of every block, transport segments put together again, all
function codes by name, internal indications, object headers, one event for each commanded point
(relay output blocks, analog outputs, written outputs and dead-bands), time, file and authentication
objects. Requests, responses and their confirmations are joined by address and sequence.

Not understood: values of messages with more than one point, data sets, and what Secure
Authentication proves: its objects are named, its codes are not checked.

References:
    IEEE 1815-2012, clauses 4 (application layer), 8 (transport function), 9 (data link layer) and
    annex A (object library).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import (
    broken,
    link_prefix,
    printable,
    say,
    turned,
    unreadable,
)

DNP3 = LogSource(category="ot_protocol", service="dnp3")

OPEN_MAX = 64
"""Requests of one conversation that wait for an answer; as many fragments for a confirmation."""
FRAGMENT_MAX = 16_384
"""Bytes of a fragment; the standard asks for 2 048, some devices are configured for more."""
BROADCAST = 65_533
"""This and the two addresses above it are every outstation (clause 9.2.5)."""
ASSEMBLIES_MAX = 16
"""Fragments of one direction that are being put together, one for each pair of addresses."""
POINTS_MAX = 512
"""Events of one message; packed bits could name thousands of points in a few bytes."""
OBJECTS_SHOWN = 16
_CONSTANTS_MAX = 512

Fields = dict[str, Any]


class Function(msgspec.Struct, frozen=True):
    """What an application function code does (clause 4.4)."""

    name: str
    operation: str
    is_command: bool = False
    is_answered: bool = True


FUNCTIONS: dict[int, Function] = {
    0: Function("confirm", "session", is_answered=False),
    1: Function("read", "read"),
    2: Function("write", "write", True),
    3: Function("select", "select", True),
    4: Function("operate", "control", True),
    5: Function("direct_operate", "control", True),
    6: Function("direct_operate_no_ack", "control", True, False),
    7: Function("immediate_freeze", "control", True),
    8: Function("immediate_freeze_no_ack", "control", True, False),
    9: Function("freeze_and_clear", "control", True),
    10: Function("freeze_and_clear_no_ack", "control", True, False),
    11: Function("freeze_at_time", "control", True),
    12: Function("freeze_at_time_no_ack", "control", True, False),
    13: Function("cold_restart", "restart", True),
    14: Function("warm_restart", "restart", True),
    15: Function("initialize_data", "config", True),
    16: Function("initialize_application", "mode_change", True),
    17: Function("start_application", "mode_change", True),
    18: Function("stop_application", "mode_change", True),
    19: Function("save_configuration", "config", True),
    20: Function("enable_unsolicited", "config", True),
    21: Function("disable_unsolicited", "config", True),
    22: Function("assign_class", "config", True),
    23: Function("delay_measurement", "time_sync"),
    24: Function("record_current_time", "time_sync"),
    25: Function("open_file", "file", True),
    26: Function("close_file", "file"),
    27: Function("delete_file", "file", True),
    28: Function("get_file_info", "file"),
    29: Function("authenticate_file", "auth"),
    30: Function("abort_file", "file", True),
    31: Function("activate_config", "config", True),
    32: Function("authentication_request", "auth"),
    33: Function("authentication_request_no_ack", "auth", is_answered=False),
    129: Function("response", "report"),
    130: Function("unsolicited_response", "report"),
    131: Function("authentication_response", "auth"),
}
CONFIRM, WRITE = 0, 2
_CONTROLS = frozenset((2, 3, 4, 5, 6))
_FREEZE_AT_TIME = frozenset((11, 12))
_WITH_DATA = frozenset((2, 3, 4, 5, 6, *range(25, 34), 129, 130, 131))
"""Functions whose objects have contents; those of the others only name points."""
RESPONSE, UNSOLICITED, AUTHENTICATION = 129, 130, 131

WRITES: dict[int, str] = {0: "config", 34: "config", 50: "time_sync", 70: "file", 120: "auth"}
"""What writing an object of a group is, other than a write."""

PRIMARY: dict[int, tuple[str, str, bool]] = {
    0: ("reset_link", "session", False),
    1: ("reset_user_process", "restart", True),
    2: ("test_link", "diagnostic", False),
    3: ("confirmed_user_data", "session", False),
    4: ("unconfirmed_user_data", "session", False),
    9: ("request_link_status", "diagnostic", False),
}
SECONDARY: dict[int, tuple[str, str, bool]] = {
    0: ("link_ack", "session", False),
    1: ("link_nack", "session", False),
    11: ("link_status", "diagnostic", False),
    14: ("link_not_functioning", "diagnostic", False),
    15: ("link_not_supported", "session", False),
}
"""Link function → name, operation, whether it is a command (clause 9.2.4)."""
_USER_DATA = (3, 4)

IIN: tuple[str, ...] = (
    "broadcast", "class_1_events", "class_2_events", "class_3_events",
    "need_time", "local_control", "device_trouble", "device_restart",
    "no_func_code_support", "object_unknown", "parameter_error", "event_buffer_overflow",
    "already_executing", "config_corrupt", "reserved_1", "reserved_2",
)  # fmt: skip
"""Internal indications from IIN1.0 to IIN2.7 (clause 4.5)."""
_REFUSED = 0x1700
"""Those that say that the request was not carried out: IIN2.0, 2.1, 2.2 and 2.4."""

STATUS: dict[int, str] = {
    0: "success", 1: "timeout", 2: "no_select", 3: "format_error", 4: "not_supported",
    5: "already_active", 6: "hardware_error", 7: "local", 8: "too_many_operations",
    9: "not_authorized", 10: "automation_inhibit", 11: "processing_limited", 12: "out_of_range",
    13: "downstream_local", 14: "already_complete", 15: "blocked", 16: "canceled",
    17: "blocked_other_master", 18: "downstream_fail", 126: "non_participating", 127: "undefined",
}  # fmt: skip
"""Control status codes (annex A, group 12)."""
OPERATION_TYPES = ("nul", "pulse_on", "pulse_off", "latch_on", "latch_off")
TRIP_CLOSE = ("nul", "close", "trip", "reserved")

GROUPS: dict[int, str] = {
    0: "device_attribute",
    **dict.fromkeys((1, 2), "binary_input"),
    **dict.fromkeys((3, 4), "double_bit_input"),
    **dict.fromkeys((10, 11), "binary_output"),
    **dict.fromkeys((12, 13), "control_relay_output"),
    **dict.fromkeys((20, 22), "counter"),
    **dict.fromkeys((21, 23), "frozen_counter"),
    **dict.fromkeys((30, 32), "analog_input"),
    **dict.fromkeys((31, 33), "frozen_analog_input"),
    34: "analog_dead_band",
    **dict.fromkeys((40, 42), "analog_output_status"),
    **dict.fromkeys((41, 43), "analog_output"),
    50: "time", 51: "common_time", 52: "time_delay", 60: "class", 70: "file",
    80: "internal_indication", 81: "storage", 82: "device_profile", 83: "private_registration",
    **dict.fromkeys((85, 86, 87, 88), "data_set"),
    90: "application", 91: "operation_status", 101: "bcd", 102: "octet",
    **dict.fromkeys((110, 111), "octet_string"),
    **dict.fromkeys((112, 113), "virtual_terminal"),
    120: "authentication",
    **dict.fromkeys((121, 122), "security_statistic"),
}  # fmt: skip

_COUNTED = {1: 5, 2: 3, 3: 5, 4: 3, 5: 11, 6: 9, 7: 11, 8: 9}
_TIMED = {1: 5, 2: 3, 3: 11, 4: 9, 5: 5, 6: 9, 7: 11, 8: 15}
_SET = {1: 5, 2: 3, 3: 5, 4: 9}
_TEXT = {length: length for length in range(1, 256)}
_SIZES_OF_GROUP: dict[int, dict[int, int]] = {
    1: {2: 1}, 2: {1: 1, 2: 7, 3: 3}, 3: {2: 1}, 4: {1: 1, 2: 7, 3: 3}, 10: {2: 1},
    11: {1: 1, 2: 7}, 12: {1: 11, 2: 11}, 13: {1: 1, 2: 7},
    20: {1: 5, 2: 3, 3: 5, 4: 3, 5: 4, 6: 2, 7: 4, 8: 2},
    21: {1: 5, 2: 3, 3: 5, 4: 3, 5: 11, 6: 9, 7: 11, 8: 9, 9: 4, 10: 2, 11: 4, 12: 2},
    22: _COUNTED, 23: _COUNTED,
    30: {1: 5, 2: 3, 3: 4, 4: 2, 5: 5, 6: 9},
    31: {1: 5, 2: 3, 3: 11, 4: 9, 5: 4, 6: 2, 7: 5, 8: 9},
    32: _TIMED, 33: _TIMED, 34: {1: 2, 2: 4, 3: 4}, 40: _SET, 41: _SET, 42: _TIMED, 43: _TIMED,
    50: {1: 6, 2: 10, 3: 6, 4: 11}, 51: {1: 6, 2: 6}, 52: {1: 2, 2: 2}, 81: {1: 3},
    101: {1: 2, 2: 4, 3: 8}, 102: {1: 1}, 120: {3: 6, 4: 2}, 121: {1: 7}, 122: {1: 7, 2: 13},
    110: _TEXT, 111: _TEXT, 112: _TEXT, 113: _TEXT,
}  # fmt: skip
SIZES: dict[int, int] = {
    group << 8 | variation: size
    for group, of in _SIZES_OF_GROUP.items()
    for variation, size in of.items()
}
"""Bytes of an object by group and variation (annex A)."""
BITS: dict[int, int] = {0x0101: 1, 0x0301: 2, 0x0A01: 1, 0x0C03: 1, 0x5001: 1}
"""Bits of an object that is packed."""
_ATTRIBUTES = 0

_I16, _I32, _F32, _F64 = Struct("<h"), Struct("<i"), Struct("<f"), Struct("<d")
_U16, _U32 = Struct("<H"), Struct("<I")
_ANALOG = {1: (_I32, 1), 2: (_I16, 1), 3: (_I32, 1), 4: (_I16, 1), 5: (_F32, 1), 6: (_F64, 1),
           7: (_F32, 1), 8: (_F64, 1)}  # fmt: skip
_COUNTER = {1: (_U32, 1), 2: (_U16, 1), 3: (_U32, 1), 4: (_U16, 1)}
_WIDE_COUNTER = {5: (_U32, 1), 6: (_U16, 1), 7: (_U32, 1), 8: (_U16, 1)}
_OUTPUT = {1: (_I32, 0), 2: (_I16, 0), 3: (_F32, 0), 4: (_F64, 0)}
_NUMBERS: dict[int, dict[int, tuple[Struct, int]]] = {
    20: {**_COUNTER, 5: (_U32, 0), 6: (_U16, 0), 7: (_U32, 0), 8: (_U16, 0)},
    21: {**_COUNTER, **_WIDE_COUNTER, 9: (_U32, 0), 10: (_U16, 0)},
    22: {**_COUNTER, **_WIDE_COUNTER}, 23: {**_COUNTER, **_WIDE_COUNTER},
    30: {1: (_I32, 1), 2: (_I16, 1), 3: (_I32, 0), 4: (_I16, 0), 5: (_F32, 1), 6: (_F64, 1)},
    31: {1: (_I32, 1), 2: (_I16, 1), 3: (_I32, 1), 4: (_I16, 1), 5: (_I32, 0), 6: (_I16, 0),
         7: (_F32, 1), 8: (_F64, 1)},
    32: _ANALOG, 33: _ANALOG, 42: _ANALOG,
    34: {1: (_U16, 0), 2: (_U32, 0), 3: (_F32, 0)},
    40: {1: (_I32, 1), 2: (_I16, 1), 3: (_F32, 1), 4: (_F64, 1)},
    41: _OUTPUT,
    43: _ANALOG,
    52: {1: (_U16, 0), 2: (_U16, 0)},
}  # fmt: skip
NUMBERS: dict[int, tuple[Struct, int]] = {
    group << 8 | variation: where
    for group, of in _NUMBERS.items()
    for variation, where in of.items()
}
"""Where in an object its number stands, by group and variation."""
_FLAGGED = {0x0102: 7, 0x0201: 7, 0x0202: 7, 0x0203: 7, 0x0302: 6, 0x0401: 6, 0x0402: 6,
            0x0403: 6, 0x0A02: 7, 0x0B01: 7, 0x0B02: 7, 0x0D01: 7, 0x0D02: 7}  # fmt: skip
"""Objects whose state is in the high bits of their flags, and from which bit."""

AUTHENTICATION_OBJECTS: dict[int, str] = {
    1: "challenge", 2: "reply", 3: "aggressive_mode", 4: "session_key_status_request",
    5: "session_key_status", 6: "session_key_change", 7: "error", 8: "user_certificate",
    9: "mac", 10: "user_status_change", 11: "update_key_change_request",
    12: "update_key_change_reply", 13: "update_key_change", 14: "update_key_change_signature",
    15: "update_key_change_confirmation",
}  # fmt: skip
_KEYS = frozenset((6, 10, 11, 13, 14, 15))
"""Authentication objects that change who may do what."""
_USER_AT = {1: 4, 2: 4, 3: 4, 4: 0, 6: 4, 7: 4}
FILE_MODES = {0: "delete", 1: "read", 2: "write", 3: "append"}

_START = b"\x05\x64"
_LINK = Struct("<HBBHHH")
_CROB = Struct("<BBIIB")
_STATUS_AT = {0x0C01: 10, 0x0C02: 10, 0x2901: 4, 0x2902: 2, 0x2903: 4, 0x2904: 8}
"""Where in a control object its status stands."""
_PER_POINT_ASKED = frozenset((10, 12, 34, 40, 41))
_PER_POINT_ANSWERED = frozenset((12, 41))
_RANGES: dict[int, Struct] = {
    0: Struct("<BB"), 1: Struct("<HH"), 2: Struct("<II"),
    3: Struct("<BB"), 4: Struct("<HH"), 5: Struct("<II"),
}  # fmt: skip
_COUNTS: dict[int, Struct] = {7: Struct("<B"), 8: Struct("<H"), 9: Struct("<I"), 11: Struct("<B")}
_ALL = 6
_PREFIX_SIZES = (0, 1, 2, 4, 1, 2, 4)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The remainder of a 16-bit reflected checksum (polynomial 0x3D65, clause 9.2.3) for every byte, and
# for every two bytes at once, which halves the time of a frame.
_BYTE: list[int] = []
for _remainder in range(256):
    for _ in range(8):
        _remainder = _remainder >> 1 ^ (0xA6BC if _remainder & 1 else 0)
    _BYTE.append(_remainder)
_LOW = [_BYTE[_BYTE[low] & 255] ^ _BYTE[low] >> 8 for low in range(256)]
_WORD = [high ^ low for high in _BYTE for low in _LOW]
_HEADER, _BLOCK = Struct("<5H"), Struct("<9H")
_WORDS = tuple(Struct(f"<{count}H") for count in range(9))

_ALWAYS: Fields = {
    "network.protocol": "dnp3",
    "event.category": ["process_control"],
}


class Open(msgspec.Struct, frozen=True):
    """A request that waits for its answer."""

    constants: Fields
    link: str
    time_s: float
    turned: bool
    master: int


class Assembly(msgspec.Struct):
    """A fragment that is being put together."""

    data: bytearray
    following: int
    """Number of the segment that comes next."""


class Header(msgspec.Struct, frozen=True, gc=False):
    """An object header, and where its objects are."""

    kind: int
    """Group in the high, variation in the low byte."""
    first: int
    """Index of the first object, -1 if it has none."""
    count: int
    at: int
    prefix: int = 0
    """Bytes of the index or size before each object."""
    is_sized: bool = False
    has_data: bool = False


class Tally(msgspec.Struct):
    """What became of the bytes of a conversation; for tests and for health."""

    frames: int = 0
    requests: int = 0
    responses: int = 0
    malformed: int = 0
    unmatched: int = 0
    """Answers whose request was not seen."""
    unanswered: int = 0
    skipped_bytes: int = 0
    """Passed over in search of the next frame."""


class Lane(msgspec.Struct):
    """One direction."""

    assemblies: dict[int, Assembly]
    lost: bool = False
    """The boundary of frames is not known."""
    rest: int = 0
    """Bytes of a frame that is not yet whole."""


@decoder("dnp3", DNP3, transport=("tcp", "udp"), ports=(20000,), begins=b"\x05")
class Dnp3:
    """One conversation between masters and outstations."""

    def __init__(self, session: Session) -> None:
        self.tally = Tally()
        base = {**session.base, **_ALWAYS}
        self._bases = (base, turned(base))
        self._is_udp = base.get("network.transport") == "udp"
        self._ends = f"{session.client}>{session.server}"
        self._link = ""
        self._links = 0
        self._lanes = (Lane({}), Lane({}))
        self._open: dict[int, Open] = {}
        self._series: dict[int, Open] = {}
        self._confirms: dict[int, str] = {}
        self._made: dict[int, Fields] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a header with its checksum."""
        return len(head) >= 10 and head[:2] == _START and _is_header(head, 0)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if not self._link:
            self._link = link_prefix(self._ends, time_s)
        lane = self._lanes[from_client]
        if self._is_udp:
            lane.lost = False
        found: list[Fields] = []
        at, end = 0, len(data)
        while end - at >= 10:
            if lane.lost:
                start, lane.lost = _next_frame(data, at)
                self.tally.skipped_bytes += start - at
                at = start
                if lane.lost:
                    break
            why = _header_fault(data, at)
            if why:
                found.append(self._unreadable(why))
                lane.lost = True
                self.tally.skipped_bytes += 1
                at += 1
                continue
            users = data[at + 2] - 5
            stop = at + 10 + users + 2 * ((users + 15) // 16)
            if stop > end:
                break
            user = _user_data(data, at + 10, stop)
            if user is None:
                self._damaged(data, at, found)
                # Whoever hides a frame behind a length finds no more cover than in a real device.
                lane.lost = True
                at += 2
                continue
            self._frame(data, at, user, from_client, time_s, found)
            at = stop
        if self._is_udp:
            if at < end and not lane.lost:
                found.append(self._unreadable(f"a datagram ends {end - at} bytes into a frame"))
            return end, found
        lane.rest = 0 if lane.lost else end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        self.tally.skipped_bytes += lane.rest
        lane.lost, lane.rest = True, 0
        lane.assemblies.clear()

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; commands that nobody answered, and messages that were cut."""
        self.tally.unanswered += len(self._open)
        found = [
            self._unanswered(asked)
            for asked in self._open.values()
            if asked.constants["ot.is_command"]
        ]
        self._open.clear()
        for lane, who in zip(self._lanes, ("server", "client"), strict=True):
            if lane.rest:
                why = f"the conversation ended {lane.rest} bytes into a frame of the {who}"
                found.append(self._unreadable(why))
                lane.rest = 0
            for begun in lane.assemblies.values():
                why = f"the conversation ended {len(begun.data)} bytes into a fragment of the {who}"
                found.append(self._unreadable(why))
            lane.assemblies.clear()
        return found

    # ---- Link layer and transport function

    def _frame(
        self, data: bytes, at: int, user: bytes, from_client: bool, time_s: float,
        found: list[Fields],
    ) -> None:  # fmt: skip
        self.tally.frames += 1
        _, _, control, destination, source, _ = _LINK.unpack_from(data, at)
        code = control & 15
        is_data = control & 64 and code in _USER_DATA
        if not is_data or not user:
            found.append(self._link_frame(control, destination, source, user, from_client))
            return
        lane = self._lanes[from_client]
        key = source << 16 | destination
        head, begun = user[0], lane.assemblies.get(key)
        if head & 0x40:
            if begun is not None:
                why = f"a fragment begins {len(begun.data)} bytes into another"
                found.append(self._segment_fault(why, control, destination, source))
            if head & 0x80:
                lane.assemblies.pop(key, None)
                self._fragment(user[1:], destination, source, from_client, time_s, found)
                return
            begun = self._begin(lane, key, found)
        elif begun is None:
            why = f"segment {head & 63} of a fragment whose beginning was not seen"
            found.append(self._segment_fault(why, control, destination, source))
            return
        elif begun.following != head & 63:
            why = f"segment {head & 63} of a fragment where {begun.following} is next"
            found.append(self._segment_fault(why, control, destination, source))
            del lane.assemblies[key]
            return
        begun.data += user[1:]
        begun.following = head + 1 & 63
        if len(begun.data) > FRAGMENT_MAX:
            why = f"a fragment of more than {FRAGMENT_MAX} bytes"
            found.append(self._segment_fault(why, control, destination, source))
            del lane.assemblies[key]
        elif head & 0x80:
            del lane.assemblies[key]
            self._fragment(bytes(begun.data), destination, source, from_client, time_s, found)

    def _begin(self, lane: Lane, key: int, found: list[Fields]) -> Assembly:
        lane.assemblies.pop(key, None)
        if len(lane.assemblies) >= ASSEMBLIES_MAX:
            oldest = next(iter(lane.assemblies))
            lost = lane.assemblies.pop(oldest)
            why = f"{len(lost.data)} bytes of a fragment given up, {ASSEMBLIES_MAX} are begun"
            found.append(self._unreadable(why))
        begun = lane.assemblies[key] = Assembly(bytearray(), 0)
        return begun

    def _link_frame(
        self, control: int, destination: int, source: int, user: bytes, from_client: bool
    ) -> Fields:
        is_primary, code = bool(control & 64), control & 15
        of_master = bool(control & 128)
        name, operation, is_command = (PRIMARY if is_primary else SECONDARY).get(
            code, (f"link_function_{code}", "session", False)
        )
        fields: Fields = {
            **self._bases[is_primary and of_master and not from_client],
            "event.action": f"dnp3_{name}",
            "ot.function.code": f"link_{code}",
            "ot.function.name": name,
            "ot.operation": operation,
            "ot.is_command": is_command,
            "ot.direction": "request" if is_primary else "response",
            "ot.unit": str(destination if of_master else source),
            "cw.vendor": {"link_source": source, "link_destination": destination},
        }
        if code not in (PRIMARY if is_primary else SECONDARY):
            self._fault(fields, f"link function {code} is not defined")
        elif is_primary and code in _USER_DATA:
            self._fault(fields, "a frame of user data without user data")
        elif user:
            self._fault(fields, f"{len(user)} bytes of user data in a {name}")
        elif not is_primary and code in (1, 14, 15):
            fields["event.outcome"] = "failure"
            fields["ot.exception"] = name
        return fields

    def _damaged(self, data: bytes, at: int, found: list[Fields]) -> None:
        _, _, control, destination, source, _ = _LINK.unpack_from(data, at)
        why = f"a block of a frame from {source} to {destination} has a wrong checksum"
        found.append(self._segment_fault(why, control, destination, source))

    def _segment_fault(self, why: str, control: int, destination: int, source: int) -> Fields:
        fields = self._unreadable(why)
        fields["ot.unit"] = str(destination if control & 128 else source)
        return fields

    # ---- Application layer

    def _fragment(
        self, data: bytes, destination: int, source: int, from_client: bool, time_s: float,
        found: list[Fields],
    ) -> None:  # fmt: skip
        if len(data) < 2:
            found.append(self._unreadable(f"a fragment of {len(data)} bytes, it has at least 2"))
        elif data[1] < 128:
            self._request(data, destination, source, from_client, time_s, found)
        else:
            self._response(data, destination, source, from_client, time_s, found)

    def _request(
        self, data: bytes, outstation: int, master: int, from_client: bool, time_s: float,
        found: list[Fields],
    ) -> None:  # fmt: skip
        self.tally.requests += 1
        control, code = data[0], data[1]
        sequence = control & 15
        fields: Fields = {
            **self._constants(code, not from_client, outstation),
            "event.sequence": sequence,
        }
        vendor: dict[str, Any] = {"master": master}
        fields["cw.vendor"] = vendor
        function = FUNCTIONS.get(code)
        headers, why = _headers(data, 2, code)
        if code == WRITE and headers and (operation := WRITES.get(headers[0].kind >> 8)):
            fields["ot.operation"] = operation
        if function is None:
            self._fault(fields, f"function {code} is not defined")
        if control & 0xC0 != 0xC0 and code:
            self._fault(fields, "a request of more than one fragment")
        if code == CONFIRM:
            link = self._confirms.pop(_key(master, outstation, control & 31), "")
            fields["ot.link_id"] = link or self._next_link()
            if not link:
                say(fields, "confirms what was not seen or asked for no confirmation")
        else:
            fields["ot.link_id"] = self._next_link()
            if outstation < BROADCAST and (function is None or function.is_answered):
                asked = Open({**fields}, fields["ot.link_id"], time_s, not from_client, master)
                self._await(_key(master, outstation, sequence), asked, fields)
        self._tell(data, headers, why, code, _PER_POINT_ASKED, fields, vendor, found)

    def _await(self, key: int, asked: Open, fields: Fields) -> None:
        if self._open.pop(key, None) is not None:
            self.tally.unanswered += 1
            sequence = fields["event.sequence"]
            say(fields, f"sequence {sequence} begins again before its request was answered")
        elif len(self._open) >= OPEN_MAX:
            self.tally.unanswered += 1
            oldest = self._open.pop(next(iter(self._open)))
            say(fields, f"request {oldest.link} given up unanswered, {OPEN_MAX} are open")
        self._open[key] = asked

    def _response(
        self, data: bytes, master: int, outstation: int, from_client: bool, time_s: float,
        found: list[Fields],
    ) -> None:  # fmt: skip
        self.tally.responses += 1
        control, code = data[0], data[1]
        asked = self._asked(control, code, master, outstation)
        fields: Fields = {
            **self._constants(code, asked.turned if asked else False, outstation),
            "event.sequence": control & 15,
        }
        vendor: dict[str, Any] = {"master": master}
        fields["cw.vendor"] = vendor
        if code not in FUNCTIONS:
            self._fault(fields, f"function {code} is not defined")
        if asked is not None:
            self._join(fields, vendor, asked, time_s)
        else:
            fields["ot.link_id"] = self._next_link()
            if code != UNSOLICITED:
                self.tally.unmatched += 1
                say(fields, "no request was seen for this answer")
        if control & 0x20:
            self._expect_confirm(_key(master, outstation, control & 31), fields["ot.link_id"])
        if len(data) < 4:
            self._fault(fields, "an answer without its internal indications")
            found.append(fields)
            return
        indications = data[2] | data[3] << 8
        if indications:
            fields["ot.cause"] = _indications(indications)
            if indications & _REFUSED and code != UNSOLICITED:
                fields["ot.exception"] = _indications(indications & _REFUSED)
                fields["event.outcome"] = "failure"
        headers, why = _headers(data, 4, code)
        self._tell(data, headers, why, code, _PER_POINT_ANSWERED, fields, vendor, found)

    def _asked(self, control: int, code: int, master: int, outstation: int) -> Open | None:
        """Request of an answer; its later fragments have numbers of their own (clause 4.2.2.5)."""
        if code == UNSOLICITED:
            return None
        pair = master << 16 | outstation
        if control & 0x80:
            asked = self._open.pop(_key(master, outstation, control & 15), None)
        else:
            asked = self._series.get(pair)
        if control & 0x40:
            self._series.pop(pair, None)
        elif asked is not None:
            if len(self._series) >= OPEN_MAX:
                self._series.pop(next(iter(self._series)))
            self._series[pair] = asked
        return asked

    def _join(self, fields: Fields, vendor: dict[str, Any], asked: Open, time_s: float) -> None:
        fields["ot.link_id"] = asked.link
        vendor["answers"] = asked.constants["ot.function.name"]
        if operation := asked.constants.get("ot.operation"):
            fields["ot.operation"] = operation
        if time_s >= asked.time_s:
            fields["event.duration"] = int((time_s - asked.time_s) * 1e9)

    def _expect_confirm(self, key: int, link: str) -> None:
        if len(self._confirms) >= OPEN_MAX:
            self._confirms.pop(next(iter(self._confirms)))
        self._confirms[key] = link

    def _tell(
        self, data: bytes, headers: list[Header], why: str, code: int,
        per_point: frozenset[int], fields: Fields, vendor: dict[str, Any], found: list[Fields],
    ) -> None:  # fmt: skip
        """One event for each commanded point, or one for the message."""
        if why:
            self._fault(fields, why)
        if not headers:
            found.append(fields)
            return
        vendor["objects"] = _shown(headers)
        for header in headers[:OBJECTS_SHOWN]:
            if (group := header.kind >> 8) in _DETAILS:
                _DETAILS[group](data, header, fields, vendor)
        is_answer = code > 127
        named = [
            one
            for one in headers
            if one.kind >> 8 in per_point and one.count and one.has_data and not one.is_sized
        ]
        if named and (is_answer or code in _CONTROLS):
            self._points(data, named, is_answer, fields, vendor, found)
            return
        # The time that precedes what happened then is not what the message is about.
        first = next((one for one in headers if one.kind >> 8 not in _TIMES), headers[0])
        _add_summary(data, first, fields)
        found.append(fields)

    def _points(
        self, data: bytes, headers: list[Header], is_answer: bool, fields: Fields,
        vendor: dict[str, Any], found: list[Fields],
    ) -> None:  # fmt: skip
        left = POINTS_MAX
        for header in headers:
            count = min(left, header.count)
            left -= count
            for index, at, bit in _objects(data, header, count):
                own = {
                    **fields,
                    "ot.point.type": GROUPS[header.kind >> 8],
                    "ot.point.count": 1,
                    "cw.vendor": {**vendor},
                }
                if index >= 0:
                    own["ot.point.address"] = index
                _add_point(data, header.kind, at, bit, is_answer, own)
                found.append(own)
        more = sum(header.count for header in headers) - POINTS_MAX
        if more > 0:
            say(found[-1], f"{more} more points of this message are not listed")

    # ---- Fields

    def _constants(self, code: int, turned: bool, outstation: int) -> Fields:
        key = outstation << 9 | code << 1 | turned
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= _CONSTANTS_MAX:
                self._made.clear()
            function = FUNCTIONS.get(code)
            made = {
                **self._bases[turned],
                "event.action": f"dnp3_{function.name}" if function else "dnp3_unknown_function",
                "ot.function.code": str(code),
                "ot.function.name": function.name if function else f"reserved_{code}",
                "ot.is_command": bool(function and function.is_command),
                "ot.direction": _direction(code),
                "ot.unit": str(outstation),
            }
            if function:
                made["ot.operation"] = function.operation
            if code in (RESPONSE, AUTHENTICATION):
                made["event.outcome"] = "success"
            self._made[key] = made
        return made

    def _next_link(self) -> str:
        self._links += 1
        return f"{self._link}{self._links}"

    def _fault(self, fields: Fields, why: str) -> None:
        if "event.kind" not in fields:
            self.tally.malformed += 1
        broken(fields, why)

    def _unreadable(self, why: str) -> Fields:
        self.tally.malformed += 1
        return unreadable(self._bases[0], why)

    def _unanswered(self, asked: Open) -> Fields:
        constants = asked.constants
        name = constants["ot.function.name"]
        return {
            **constants,
            "event.kind": "event",
            "event.action": "dnp3_unanswered",
            "event.outcome": "unknown",
            "event.reason": f"no answer to the {name} of {asked.link}",
            "ot.is_command": False,
        }


def _direction(code: int) -> str:
    return "request" if code < 128 else "unsolicited" if code == UNSOLICITED else "response"


def _key(master: int, outstation: int, sequence: int) -> int:
    """Bit 4 of the sequence is that of unsolicited fragments."""
    return master << 21 | outstation << 5 | sequence


def _indications(bits: int) -> str:
    return ",".join(name for bit, name in enumerate(IIN) if bits >> bit & 1)


def _shown(headers: list[Header]) -> str:
    shown = [f"g{one.kind >> 8}v{one.kind & 255}" for one in headers[:OBJECTS_SHOWN]]
    more = len(headers) - OBJECTS_SHOWN
    return ",".join([*shown, f"and {more} more"] if more > 0 else shown)


# Frames: checksums, and where the next one begins.


def checksum(data: bytes) -> int:
    """Of at most 16 bytes, as it stands behind them (clause 9.2.3)."""
    remainder, words = 0, len(data) // 2
    for word in _WORDS[words].unpack_from(data):
        remainder = _WORD[remainder ^ word]
    if len(data) & 1:
        remainder = _BYTE[(remainder ^ data[-1]) & 255] ^ remainder >> 8
    return remainder ^ 0xFFFF


def _is_header(data: bytes, at: int) -> bool:
    a, b, c, d, given = _HEADER.unpack_from(data, at)
    of = _WORD
    return data[at + 2] >= 5 and of[of[of[of[a] ^ b] ^ c] ^ d] ^ 0xFFFF == given


def _header_fault(data: bytes, at: int) -> str:
    if data[at : at + 2] != _START:
        return f"a frame starts with 0x0564, not 0x{data[at : at + 2].hex()}"
    if data[at + 2] < 5:
        return f"length {data[at + 2]} of a frame, it is at least 5"
    return "" if _is_header(data, at) else "the header of a frame has a wrong checksum"


def _user_data(data: bytes, at: int, stop: int) -> bytes | None:
    """User data without its checksums, None if one of them is wrong."""
    # Written out for whole blocks: checksums are what most of the time of a frame goes to.
    of, blocks = _WORD, []
    while stop - at >= 18:
        a, b, c, d, e, f, g, h, given = _BLOCK.unpack_from(data, at)
        if of[of[of[of[of[of[of[of[a] ^ b] ^ c] ^ d] ^ e] ^ f] ^ g] ^ h] ^ 0xFFFF != given:
            return None
        blocks.append(data[at : at + 16])
        at += 18
    if at < stop:
        block = data[at : stop - 2]
        if checksum(block) != data[stop - 2] | data[stop - 1] << 8:
            return None
        blocks.append(block)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def _next_frame(data: bytes, at: int) -> tuple[int, bool]:
    """Where the next frame begins, and True if that is not certain yet."""
    end = len(data)
    while (at := data.find(_START, at)) >= 0:
        if end - at < 10:
            return at, True
        if _is_header(data, at):
            return at, False
        at += 1
    return end - (data[-1] == _START[0]), True


# Objects.


def _headers(data: bytes, at: int, code: int) -> tuple[list[Header], str]:
    """Object headers of a fragment, and what is wrong behind the last of them."""
    found: list[Header] = []
    end = len(data)
    while at < end:
        if end - at < 3:
            return found, f"{end - at} bytes behind the last object"
        kind = data[at] << 8 | data[at + 1]
        qualifier = data[at + 2]
        reach, prefix = qualifier & 15, qualifier >> 4
        at += 3
        first, count = -1, 0
        shape = _RANGES.get(reach) or _COUNTS.get(reach)
        if (shape is None and reach != _ALL) or prefix > 6 or (prefix and kind in BITS):
            return found, f"qualifier 0x{qualifier:02x} of {_named(kind)} is not defined"
        if shape is not None:
            if end - at < shape.size:
                return found, f"the range of {_named(kind)} is cut"
            if reach < _ALL:
                first, last = shape.unpack_from(data, at)
                count = last - first + 1
                if count < 1:
                    return found, f"{_named(kind)} from {first} to {last}"
            else:
                (count,) = shape.unpack_from(data, at)
            at += shape.size
        is_sized = prefix > 3
        has_data = is_sized or code in _WITH_DATA or (code in _FREEZE_AT_TIME and kind >> 8 == 50)
        header = Header(kind, first, count, at, _PREFIX_SIZES[prefix], is_sized, has_data)
        at, why = _behind(data, header)
        if why:
            return found, why
        if header.first < 0 and header.prefix and not is_sized and count:
            header = msgspec.structs.replace(header, first=_index(data, header.at, header.prefix))
        found.append(header)
    return found, ""


def _behind(data: bytes, header: Header) -> tuple[int, str]:
    """Where the objects of a header end, and what is wrong with them."""
    at, end = header.at, len(data)
    kind, count, prefix = header.kind, header.count, header.prefix
    if not header.has_data:
        at += count * prefix
    elif header.is_sized or kind >> 8 == _ATTRIBUTES:
        for _ in range(count):
            if at + prefix > end or (not header.is_sized and at + 2 > end):
                return end, f"{count} objects {_named(kind)} need more bytes than there are"
            if header.is_sized:
                at += prefix + _index(data, at, prefix)
            else:
                at += 2 + data[at + 1]
    elif bits := BITS.get(kind):
        at += (count * bits + 7) // 8 + count * prefix
    elif count:
        size = SIZES.get(kind)
        if size is None:
            return end, f"how long an object {_named(kind)} is, is not known; the rest is not read"
        at += count * (size + prefix)
    if at > end:
        return end, f"{count} objects {_named(kind)} need {at - end} bytes more than there are"
    return at, ""


def _named(kind: int) -> str:
    return f"g{kind >> 8}v{kind & 255}"


def _index(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def _objects(data: bytes, header: Header, count: int) -> Iterator[tuple[int, int, int]]:
    """Index (-1: none), place and first bit of objects of one size."""
    at, prefix = header.at, header.prefix
    bits = BITS.get(header.kind)
    if bits:
        for number in range(count):
            place = number * bits
            yield header.first + number if header.first >= 0 else -1, at + place // 8, place % 8
        return
    size = SIZES.get(header.kind, 0)
    for number in range(count):
        if prefix:
            yield _index(data, at, prefix), at + prefix, 0
        else:
            yield header.first + number if header.first >= 0 else -1, at, 0
        at += prefix + size


def _add_summary(data: bytes, header: Header, fields: Fields) -> None:
    """What the first header names; its value if it is a single one."""
    fields["ot.point.type"] = GROUPS.get(header.kind >> 8) or f"group_{header.kind >> 8}"
    if header.first >= 0:
        fields["ot.point.address"] = header.first
    if header.count:
        fields["ot.point.count"] = header.count
    if header.count == 1 and header.has_data and not header.is_sized:
        _, at, bit = next(_objects(data, header, 1))
        _add_value(data, header.kind, at, bit, fields)


def _add_value(data: bytes, kind: int, at: int, bit: int, fields: Fields) -> None:
    if kind in NUMBERS:
        shape, offset = NUMBERS[kind]
        value = shape.unpack_from(data, at + offset)[0]
        if value - value == 0:  # neither infinite nor no number
            fields["ot.value"] = float(value)
        else:
            fields["ot.value_raw"] = str(value)
    elif kind in _FLAGGED:
        fields["ot.value"] = float(data[at] >> _FLAGGED[kind])
    elif kind in BITS:
        fields["ot.value"] = float(data[at] >> bit & (1 << BITS[kind]) - 1)


def _add_point(data: bytes, kind: int, at: int, bit: int, is_answer: bool, fields: Fields) -> None:
    """Value, control code and status of a commanded point."""
    vendor = fields["cw.vendor"]
    if kind in (0x0C01, 0x0C02):
        control, count, on_ms, off_ms, _ = _CROB.unpack_from(data, at)
        operation, trip = control & 15, control >> 6
        name = OPERATION_TYPES[operation] if operation < 5 else f"undefined_{operation}"
        vendor["operation_type"], vendor["trip_close"] = name, TRIP_CLOSE[trip]
        vendor["control_code"] = control
        vendor["clear"] = bool(control & 32)
        vendor["queue"] = bool(control & 16)
        vendor["count"], vendor["on_ms"], vendor["off_ms"] = count, on_ms, off_ms
        fields["ot.value_raw"] = f"{TRIP_CLOSE[trip]},{name}" if trip else name
        if trip in (1, 2):
            fields["ot.value"] = float(trip == 1)
        elif 0 < operation < 5:
            fields["ot.value"] = float(operation & 1)
    else:
        _add_value(data, kind, at, bit, fields)
    place = _STATUS_AT.get(kind)
    if place is not None and is_answer:
        status = data[at + place] & 127
        vendor["status"] = STATUS.get(status) or f"reserved_{status}"
        if status:
            fields["ot.exception"] = vendor["status"]
            fields["event.outcome"] = "failure"


def _add_time(data: bytes, header: Header, fields: Fields, vendor: dict[str, Any]) -> None:
    if header.has_data and header.count and not header.is_sized:
        vendor["time"] = time_text(_index(data, header.at + header.prefix, 6))


def time_text(epoch_ms: int) -> str:
    """DNP3 time, milliseconds since 1970 UTC in 48 bits, as ISO 8601."""
    try:
        found = _EPOCH + timedelta(milliseconds=epoch_ms)
    except OverflowError:
        return f"{epoch_ms} ms"
    return found.isoformat(timespec="milliseconds")


def _add_file(data: bytes, header: Header, fields: Fields, vendor: dict[str, Any]) -> None:
    """Name, mode and handle of a file (annex A, group 70); passwords are not kept."""
    if not header.is_sized or not header.count:
        return
    size = _index(data, header.at, header.prefix)
    at = header.at + header.prefix
    content, variation = data[at : at + size], header.kind & 255
    vendor["file_object"] = variation
    if variation == 2 and size >= 12:
        place, length = _index(content, 0, 2), _index(content, 2, 2)
        if name := printable(content[place : place + length]):
            fields["user.name"] = name
    elif variation in (3, 7) and size >= 20:
        place, length = _index(content, 0, 2), _index(content, 2, 2)
        if name := printable(content[place : place + length]):
            fields["file.path"] = name
        if variation == 3 and size >= 26:
            mode = _index(content, 20, 2)
            vendor["file_mode"] = FILE_MODES.get(mode) or f"mode_{mode}"
            if mode == 1 and fields["ot.function.code"] == "25":
                fields["ot.is_command"] = False
    elif variation in (4, 5, 6) and size >= 8:
        vendor["file_handle"] = _index(content, 0, 4)
        if variation == 5:
            vendor["file_block"] = _index(content, 4, 4) & 0x7FFFFFFF
    elif variation == 8 and (name := printable(content)):
        fields["file.path"] = name


def _add_authentication(
    data: bytes, header: Header, fields: Fields, vendor: dict[str, Any]
) -> None:
    variation = header.kind & 255
    name = AUTHENTICATION_OBJECTS.get(variation) or f"object_{variation}"
    vendor["authentication"] = name
    if variation in _KEYS and fields["ot.direction"] == "request":
        fields["ot.is_command"] = True
    place = _USER_AT.get(variation)
    if place is not None and header.has_data and header.count:
        at = header.at + header.prefix + place
        if at + 2 <= len(data):
            vendor["authentication_user"] = _index(data, at, 2)


_TIMES = (50, 51)
_DETAILS = {50: _add_time, 51: _add_time, 70: _add_file, 120: _add_authentication}
