"""IEC 60870-5-104: telecontrol between a control centre and its substations.

An I-frame with monitoring data gives one event; one with commands gives one for each object. Frames
that start, stop and test the transfer are events of their own. S-frames only acknowledge: they are
counted, and are an event where they acknowledge what cannot be.

Understood: start, stop and test of the transfer, all types of monitoring and control with cause,
common address, object address, value, quality and time tag; activation, confirmation and
termination joined; sequence faults.

Not understood: file transfer beyond its headers, and private types.

References:
    IEC 60870-5-104:2006, sections 5 (APCI, sequence numbers) and 8 (type identifications).
    IEC 60870-5-101:2003, section 7.2 (information elements) and 7.3 (ASDUs).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder

IEC104 = LogSource(category="ot_protocol", service="iec104")

OPEN_MAX = 64
"""Commands of one conversation that wait for a confirmation or for their end."""
SEQUENCE = 32_768
"""Numbers of I-frames count to here and begin again (section 5.1)."""
BROADCAST = 0xFFFF
"""Common address of all stations."""
_CONSTANTS_MAX = 512

Fields = dict[str, Any]


class Element(msgspec.Struct, frozen=True):
    """What an information element says."""

    value: float | None = None
    quality: int = 0
    """Bits IV, NT, SB, BL, OV as they stand in QDS, SIQ and DIQ."""
    qualifier: int | None = None
    select: bool = False


class Type(msgspec.Struct, frozen=True):
    """One type identification."""

    name: str
    action: str
    point: str
    size: int
    """Bytes of an information element with its time tag, without the address."""
    read: Callable[[bytes, int], Element]
    tag: int = 0
    """Bytes of the time tag at its end: 7, 3 or none."""
    operation: str = "report"
    is_command: bool = False


_HEAD = Struct("<BBHH")
_ASDU = Struct("<BBBBH")
_I16 = Struct("<h")
_U16 = Struct("<H")
_I32 = Struct("<i")
_U32 = Struct("<I")
_F32 = Struct("<f")


# Information elements (-101, section 7.2.6): bytes, place → what they say.


def _single(data: bytes, at: int) -> Element:
    return Element(data[at] & 1, data[at] & 0xF0)


def _double(data: bytes, at: int) -> Element:
    return Element(data[at] & 3, data[at] & 0xF0)


def _step(data: bytes, at: int) -> Element:
    value = data[at] & 0x7F
    return Element(value - 128 if value > 63 else value, data[at + 1])


def _bits(data: bytes, at: int) -> Element:
    return Element(_U32.unpack_from(data, at)[0], data[at + 4])


def _normal(data: bytes, at: int) -> Element:
    return Element(_I16.unpack_from(data, at)[0] / 32_768, data[at + 2])


def _normal_bare(data: bytes, at: int) -> Element:
    return Element(_I16.unpack_from(data, at)[0] / 32_768)


def _scaled(data: bytes, at: int) -> Element:
    return Element(_I16.unpack_from(data, at)[0], data[at + 2])


def _float(data: bytes, at: int) -> Element:
    return Element(_F32.unpack_from(data, at)[0], data[at + 4])


def _counter(data: bytes, at: int) -> Element:
    return Element(_I32.unpack_from(data, at)[0], data[at + 4] & 0x80)


def _protection(data: bytes, at: int) -> Element:
    return Element(data[at] & 3, data[at] & 0xF8)


def _protection_packed(data: bytes, at: int) -> Element:
    return Element(data[at] & 0x3F, data[at + 1])


def _status(data: bytes, at: int) -> Element:
    return Element(_U16.unpack_from(data, at)[0], data[at + 4])


def _single_command(data: bytes, at: int) -> Element:
    return Element(data[at] & 1, 0, data[at] >> 2 & 31, data[at] > 127)


def _double_command(data: bytes, at: int) -> Element:
    return Element(data[at] & 3, 0, data[at] >> 2 & 31, data[at] > 127)


def _normal_setpoint(data: bytes, at: int) -> Element:
    value = _I16.unpack_from(data, at)[0] / 32_768
    return Element(value, 0, data[at + 2] & 127, data[at + 2] > 127)


def _scaled_setpoint(data: bytes, at: int) -> Element:
    return Element(_I16.unpack_from(data, at)[0], 0, data[at + 2] & 127, data[at + 2] > 127)


def _float_setpoint(data: bytes, at: int) -> Element:
    return Element(_F32.unpack_from(data, at)[0], 0, data[at + 4] & 127, data[at + 4] > 127)


def _bits_command(data: bytes, at: int) -> Element:
    return Element(_U32.unpack_from(data, at)[0])


def _normal_parameter(data: bytes, at: int) -> Element:
    return Element(_I16.unpack_from(data, at)[0] / 32_768, 0, data[at + 2])


def _scaled_parameter(data: bytes, at: int) -> Element:
    return Element(_I16.unpack_from(data, at)[0], 0, data[at + 2])


def _float_parameter(data: bytes, at: int) -> Element:
    return Element(_F32.unpack_from(data, at)[0], 0, data[at + 4])


def _qualifier(data: bytes, at: int) -> Element:
    return Element(qualifier=data[at])


def _word(data: bytes, at: int) -> Element:
    return Element(_U16.unpack_from(data, at)[0])


def _nothing(data: bytes, at: int) -> Element:
    return Element()


def _select_file(data: bytes, at: int) -> Element:
    return Element(_U16.unpack_from(data, at)[0], 0, data[at + 3])


def _monitored(
    name: str, action: str, size: int, read: Callable[[bytes, int], Element], tag: int = 0
) -> Type:
    return Type(name, action, action, size + tag, read, tag)


def _commanded(
    name: str, action: str, size: int, read: Callable[[bytes, int], Element], tag: int = 0
) -> Type:
    return Type(name, action, action, size + tag, read, tag, "control", True)


TYPES: dict[int, Type] = {
    1: _monitored("M_SP_NA_1", "single_point", 1, _single),
    2: _monitored("M_SP_TA_1", "single_point", 1, _single, 3),
    3: _monitored("M_DP_NA_1", "double_point", 1, _double),
    4: _monitored("M_DP_TA_1", "double_point", 1, _double, 3),
    5: _monitored("M_ST_NA_1", "step_position", 2, _step),
    6: _monitored("M_ST_TA_1", "step_position", 2, _step, 3),
    7: _monitored("M_BO_NA_1", "bitstring", 5, _bits),
    8: _monitored("M_BO_TA_1", "bitstring", 5, _bits, 3),
    9: _monitored("M_ME_NA_1", "measured_normalised", 3, _normal),
    10: _monitored("M_ME_TA_1", "measured_normalised", 3, _normal, 3),
    11: _monitored("M_ME_NB_1", "measured_scaled", 3, _scaled),
    12: _monitored("M_ME_TB_1", "measured_scaled", 3, _scaled, 3),
    13: _monitored("M_ME_NC_1", "measured_float", 5, _float),
    14: _monitored("M_ME_TC_1", "measured_float", 5, _float, 3),
    15: _monitored("M_IT_NA_1", "integrated_total", 5, _counter),
    16: _monitored("M_IT_TA_1", "integrated_total", 5, _counter, 3),
    17: _monitored("M_EP_TA_1", "protection_event", 3, _protection, 3),
    18: _monitored("M_EP_TB_1", "protection_start_events", 4, _protection_packed, 3),
    19: _monitored("M_EP_TC_1", "protection_output_circuits", 4, _protection_packed, 3),
    20: _monitored("M_PS_NA_1", "packed_single_points", 5, _status),
    21: _monitored("M_ME_ND_1", "measured_normalised", 2, _normal_bare),
    30: _monitored("M_SP_TB_1", "single_point", 1, _single, 7),
    31: _monitored("M_DP_TB_1", "double_point", 1, _double, 7),
    32: _monitored("M_ST_TB_1", "step_position", 2, _step, 7),
    33: _monitored("M_BO_TB_1", "bitstring", 5, _bits, 7),
    34: _monitored("M_ME_TD_1", "measured_normalised", 3, _normal, 7),
    35: _monitored("M_ME_TE_1", "measured_scaled", 3, _scaled, 7),
    36: _monitored("M_ME_TF_1", "measured_float", 5, _float, 7),
    37: _monitored("M_IT_TB_1", "integrated_total", 5, _counter, 7),
    38: _monitored("M_EP_TD_1", "protection_event", 3, _protection, 7),
    39: _monitored("M_EP_TE_1", "protection_start_events", 4, _protection_packed, 7),
    40: _monitored("M_EP_TF_1", "protection_output_circuits", 4, _protection_packed, 7),
    45: _commanded("C_SC_NA_1", "single_command", 1, _single_command),
    46: _commanded("C_DC_NA_1", "double_command", 1, _double_command),
    47: _commanded("C_RC_NA_1", "regulating_step_command", 1, _double_command),
    48: _commanded("C_SE_NA_1", "setpoint_normalised", 3, _normal_setpoint),
    49: _commanded("C_SE_NB_1", "setpoint_scaled", 3, _scaled_setpoint),
    50: _commanded("C_SE_NC_1", "setpoint_float", 5, _float_setpoint),
    51: _commanded("C_BO_NA_1", "bitstring_command", 4, _bits_command),
    58: _commanded("C_SC_TA_1", "single_command", 1, _single_command, 7),
    59: _commanded("C_DC_TA_1", "double_command", 1, _double_command, 7),
    60: _commanded("C_RC_TA_1", "regulating_step_command", 1, _double_command, 7),
    61: _commanded("C_SE_TA_1", "setpoint_normalised", 3, _normal_setpoint, 7),
    62: _commanded("C_SE_TB_1", "setpoint_scaled", 3, _scaled_setpoint, 7),
    63: _commanded("C_SE_TC_1", "setpoint_float", 5, _float_setpoint, 7),
    64: _commanded("C_BO_TA_1", "bitstring_command", 4, _bits_command, 7),
    70: Type("M_EI_NA_1", "end_of_initialisation", "station", 1, _qualifier),
    100: Type("C_IC_NA_1", "interrogation", "station", 1, _qualifier, 0, "read"),
    101: Type("C_CI_NA_1", "counter_interrogation", "station", 1, _qualifier, 0, "read"),
    102: Type("C_RD_NA_1", "read", "", 0, _nothing, 0, "read"),
    103: Type("C_CS_NA_1", "clock_synchronisation", "station", 7, _nothing, 7, "time_sync", True),
    104: Type("C_TS_NA_1", "test_command", "station", 2, _word, 0, "diagnostic"),
    105: Type("C_RP_NA_1", "reset_process", "station", 1, _qualifier, 0, "restart", True),
    106: Type("C_CD_NA_1", "delay_acquisition", "station", 2, _word, 0, "diagnostic"),
    107: Type("C_TS_TA_1", "test_command", "station", 9, _word, 7, "diagnostic"),
    110: Type(
        "P_ME_NA_1", "parameter_normalised", "parameter", 3, _normal_parameter, 0, "config", True
    ),
    111: Type(
        "P_ME_NB_1", "parameter_scaled", "parameter", 3, _scaled_parameter, 0, "config", True
    ),
    112: Type("P_ME_NC_1", "parameter_float", "parameter", 5, _float_parameter, 0, "config", True),
    113: Type("P_AC_NA_1", "parameter_activation", "parameter", 1, _qualifier, 0, "config", True),
    120: Type("F_FR_NA_1", "file_ready", "file", 6, _word, 0, "file", True),
    121: Type("F_SR_NA_1", "section_ready", "file", 7, _word, 0, "file", True),
    122: Type("F_SC_NA_1", "call_file", "file", 4, _select_file, 0, "file"),
    123: Type("F_LS_NA_1", "last_section", "file", 5, _word, 0, "file", True),
    124: Type("F_AF_NA_1", "acknowledge_file", "file", 4, _word, 0, "file"),
    125: Type("F_SG_NA_1", "segment", "file", 4, _word, 0, "file", True),
    126: Type("F_DR_TA_1", "directory", "file", 13, _word, 7, "file"),
    127: Type("F_SC_NB_1", "query_log", "file", 16, _word, 7, "file"),
}

CAUSES: dict[int, str] = {
    1: "periodic",
    2: "background_scan",
    3: "spontaneous",
    4: "initialised",
    5: "request",
    6: "activation",
    7: "activation_con",
    8: "deactivation",
    9: "deactivation_con",
    10: "activation_termination",
    11: "return_information_remote",
    12: "return_information_local",
    13: "file_transfer",
    14: "authentication",
    15: "session_key_maintenance",
    16: "user_role_maintenance",
    20: "interrogated_by_station",
    **{20 + group: f"interrogated_by_group_{group}" for group in range(1, 17)},
    37: "counters_interrogated",
    **{37 + group: f"counters_interrogated_by_group_{group}" for group in range(1, 5)},
    44: "unknown_type",
    45: "unknown_cause",
    46: "unknown_common_address",
    47: "unknown_information_object",
}

U_FRAMES: dict[int, tuple[str, str, str]] = {
    0x07: ("startdt_act", "session", "request"),
    0x0B: ("startdt_con", "session", "response"),
    0x13: ("stopdt_act", "session", "request"),
    0x23: ("stopdt_con", "session", "response"),
    0x43: ("testfr_act", "diagnostic", "request"),
    0x83: ("testfr_con", "diagnostic", "response"),
}
"""First control byte → function, operation, direction (section 5.1, figure 7)."""

_ASKING = frozenset((6, 8))
_CONFIRMING = frozenset((7, 9, 10))
_REFUSING = frozenset((44, 45, 46, 47))
_UNASKED = frozenset((1, 2, 3, 4, 11, 12))
_ENDING = frozenset((10, 44, 45, 46, 47))
_QUALITY = ((0x80, "invalid"), (0x40, "not_topical"), (0x20, "substituted"), (0x10, "blocked"))
_SEGMENT = 125
_DELETE_FILE = 4
_START = re.compile(rb"\x68[\x04-\xfd]", re.DOTALL)
_ALWAYS: Fields = {
    "network.protocol": "iec104",
    "event.category": ["process_control"],
}


class Open(msgspec.Struct, gc=False):
    """A command that has not ended."""

    link: str
    constants: Fields
    address: int
    common: int
    answered: bool = False


class Tally(msgspec.Struct):
    """What became of the bytes of a conversation; for tests and for health."""

    i_frames: int = 0
    s_frames: int = 0
    u_frames: int = 0
    objects: int = 0
    malformed: int = 0
    out_of_order: int = 0
    """Frames whose numbers do not follow."""
    unanswered: int = 0
    skipped_bytes: int = 0
    """Passed over in search of the next frame."""


class Lane(msgspec.Struct):
    """One direction; numbers are -1 while they are not known."""

    lost: bool = False
    """The boundary of frames is not known."""
    rest: int = 0
    """Bytes of a frame that is not yet whole."""
    next_sent: int = -1
    acknowledged: int = -1


@decoder("iec104", IEC104, ports=(2404,), begins=b"\x68")
class Iec104:
    """One connection between a controlling station (the client) and a controlled one."""

    def __init__(self, session: Session) -> None:
        self.tally = Tally()
        self._base = {**session.base, **_ALWAYS}
        self._ends = f"{session.client}>{session.server}"
        self._link = ""
        self._links = 0
        self._lanes = (Lane(), Lane())
        self._open: dict[tuple[int, int, int], Open] = {}
        self._made: dict[int, Fields] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; whole frames whose parts agree, and nothing between them."""
        at, end = 0, len(head)
        while end - at >= 6:
            size = _fits(head, at)
            if size == 0:
                return False
            if size < 0:
                break
            at += size
        return at > 0 and (at == end or head[at] == 0x68)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if not self._link:
            self._link = _link_prefix(self._ends, time_s)
        lane = self._lanes[from_client]
        found: list[Fields] = []
        at, end = 0, len(data)
        while end - at >= 6:
            if lane.lost:
                start, lane.lost = _next_frame(data, at)
                self.tally.skipped_bytes += start - at
                at = start
                if lane.lost:
                    break
            start, length, sending, receiving = _HEAD.unpack_from(data, at)
            why = _header_fault(start, length, sending, receiving)
            if why:
                found.append(self._unreadable(why))
                lane.lost = True
                self.tally.skipped_bytes += 1
                at += 1
                continue
            stop = at + 2 + length
            if stop > end:
                break
            if not sending & 1:
                stop = self._i_frame(data, at, stop, from_client, found)
            elif sending & 3 == 1:
                self._s_frame(receiving >> 1, from_client, found)
            else:
                self._u_frame(sending & 0xFF, found)
            at = stop
        lane.rest = 0 if lane.lost else end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        self.tally.skipped_bytes += lane.rest
        lane.lost, lane.rest = True, 0
        lane.next_sent = lane.acknowledged = -1

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; commands that nobody confirmed, and frames that were cut."""
        found = [
            self._unanswered(key[0], waits)
            for key, waits in self._open.items()
            if not waits.answered and waits.constants.get("ot.is_command")
        ]
        self.tally.unanswered += sum(not waits.answered for waits in self._open.values())
        self._open.clear()
        for lane, who in zip(self._lanes, ("server", "client"), strict=True):
            if lane.rest:
                why = f"the conversation ended {lane.rest} bytes into a frame of the {who}"
                found.append(self._unreadable(why))
                lane.rest = 0
        return found

    def _u_frame(self, control: int, found: list[Fields]) -> None:
        self.tally.u_frames += 1
        name, operation, direction = U_FRAMES[control]
        found.append(
            {
                **self._base,
                "event.action": f"iec104_{name}",
                "ot.function.code": f"0x{control:02x}",
                "ot.function.name": name,
                "ot.operation": operation,
                "ot.is_command": False,
                "ot.direction": direction,
            }
        )

    def _s_frame(self, receiving: int, from_client: bool, found: list[Fields]) -> None:
        self.tally.s_frames += 1
        why, word = self._acknowledges(receiving, from_client)
        if why:
            self.tally.out_of_order += 1
            found.append(
                {
                    **self._base,
                    "event.action": "iec104_supervisory",
                    "event.reason": why,
                    "ot.function.name": "supervisory",
                    "ot.operation": "session",
                    "ot.is_command": False,
                    "cw.vendor": {"sequence": word},
                }
            )

    def _i_frame(
        self, data: bytes, at: int, stop: int, from_client: bool, found: list[Fields]
    ) -> int:
        """Read one I-frame; returns where the next frame begins."""
        self.tally.i_frames += 1
        _, _, sending, receiving = _HEAD.unpack_from(data, at)
        why, word = self._follows(sending >> 1, from_client)
        late, late_word = self._acknowledges(receiving >> 1, from_client)
        vendor: dict[str, Any] = {}
        if why or late:
            self.tally.out_of_order += 1
            vendor["sequence"] = word or late_word
            why = f"{why}; {late}" if why and late else why or late
        number, variable, cause, originator, common = _ASDU.unpack_from(data, at + 6)
        constants = self._made.get(number << 9 | cause << 1 | from_client)
        if constants is None:
            constants = self._constants(number, cause, from_client)
        fields: Fields = {
            **constants,
            "event.sequence": sending >> 1,
            "ot.common_address": str(common),
        }
        vendor["cause_code"] = cause & 63
        vendor["originator"] = originator
        if cause & 128:
            vendor["test"] = True
        if cause & 64:
            vendor["negative"] = True
        fields["cw.vendor"] = vendor
        if why:
            _say(fields, why)
        size = _asdu_size(number, variable)
        kind = TYPES.get(number)
        fault = _asdu_fault(number, variable, stop - at - 6, size)
        if fault or kind is None:
            if fault:
                self.tally.malformed += 1
                fields["event.kind"] = "pipeline_error"
                _say(fields, fault)
            found.append(fields)
            # A length that says more than the ASDU needs may hide frames behind it.
            hidden = at + 6 + size
            return hidden if 9 <= size < stop - at - 6 and _hides(data, hidden, stop) else stop
        if "event.kind" in constants:
            self.tally.malformed += 1
        self._objects(data, at + 6, fields, kind, found)
        return stop

    def _objects(
        self, data: bytes, at: int, fields: Fields, kind: Type, found: list[Fields]
    ) -> None:
        """Add the events of one ASDU whose size is right."""
        number, variable, cause, _, common = _ASDU.unpack_from(data, at)
        count = variable & 127
        self.tally.objects += count
        one_each = kind.operation in ("control", "config")
        first = data[at + 6] | data[at + 7] << 8 | data[at + 8] << 16
        for index in range(count if one_each else 1):
            if variable & 128:
                place, address = at + 9 + index * kind.size, first + index
            else:
                place = at + 9 + index * (kind.size + 3)
                address = data[place - 3] | data[place - 2] << 8 | data[place - 1] << 16
            own = {**fields, "cw.vendor": {**fields["cw.vendor"]}}
            own["ot.point.address"] = address
            own["ot.point.count"] = 1 if one_each else count
            _add_element(own, kind, number, data, place)
            link = self._linked((number, common, address), cause & 63, bool(cause & 64), own)
            if link:
                own["ot.link_id"] = link
            found.append(own)

    def _linked(self, key: tuple[int, int, int], cause: int, negative: bool, own: Fields) -> str:
        """Id that joins a command with its confirmation, what it asked for, and its end."""
        number, common, address = key
        if own["ot.direction"] == "request" and number < 120:
            self._links += 1
            if key not in self._open and len(self._open) >= OPEN_MAX:
                oldest = next(iter(self._open))
                if not self._open.pop(oldest).answered:
                    self.tally.unanswered += 1
                    _say(own, f"command {oldest} given up unanswered, {OPEN_MAX} are open")
            waits = Open(f"{self._link}{self._links}", own, address, common)
            self._open.pop(key, None)
            self._open[key] = waits
            return waits.link
        if own["ot.direction"] != "response":
            return ""
        if 20 <= cause <= 36:
            key = (100, common, 0)
        elif 37 <= cause <= 41:
            key = (101, common, 0)
        elif cause == 5:
            key = (102, common, address)
        found = self._open.get(key)
        if found is None:
            key = (key[0], BROADCAST, key[2])
            found = self._open.get(key)
        if found is None:
            return ""
        found.answered = True
        if cause in _ENDING or cause == 5 or negative:
            del self._open[key]
        return found.link

    def _follows(self, sent: int, from_client: bool) -> tuple[str, str]:
        """Say what is wrong with the number of an I-frame (section 5.1)."""
        lane = self._lanes[from_client]
        expected, ahead = lane.next_sent, (sent - lane.next_sent) % SEQUENCE
        if expected >= 0 and ahead >= SEQUENCE // 2:
            return f"I-frame {sent} was sent already, {expected} is next", "repeated"
        lane.next_sent = (sent + 1) % SEQUENCE
        if expected >= 0 and ahead:
            return f"I-frame {sent} where {expected} is next", "jump"
        return "", ""

    def _acknowledges(self, received: int, from_client: bool) -> tuple[str, str]:
        """Say what is wrong with an acknowledgement; it never goes back nor runs ahead."""
        lane, other = self._lanes[from_client], self._lanes[not from_client]
        if lane.acknowledged >= 0 and (received - lane.acknowledged) % SEQUENCE >= SEQUENCE // 2:
            why = f"acknowledges {received} after {lane.acknowledged}"
            return why, "acknowledgement_back"
        if other.next_sent >= 0 and 0 < (received - other.next_sent) % SEQUENCE < SEQUENCE // 2:
            why = f"acknowledges {received}, only {other.next_sent} were sent"
            return why, "acknowledgement_ahead"
        lane.acknowledged = received
        return "", ""

    def _constants(self, number: int, cause: int, from_client: bool) -> Fields:
        kind = TYPES.get(number)
        code = cause & 63
        direction = _direction(number, code, from_client)
        made: Fields = {
            **self._base,
            "event.action": f"iec104_{kind.action}" if kind else "iec104_unknown_type",
            "ot.function.code": str(number),
            "ot.function.name": kind.name if kind else _unknown_name(number),
            "ot.operation": kind.operation if kind else "auth" if 81 <= number <= 95 else "report",
            "ot.is_command": bool(kind and kind.is_command and direction == "request"),
            "ot.cause": CAUSES.get(code) or f"cause_{code}",
            "ot.direction": direction,
        }
        if kind and kind.point:
            made["ot.point.type"] = kind.point
        if cause & 64 or code in _REFUSING:
            made["event.outcome"] = "failure"
            made["ot.exception"] = CAUSES[code] if code in _REFUSING else "negative"
        elif code in _CONFIRMING:
            made["event.outcome"] = "success"
        why = _cause_fault(number, code)
        if why:
            made |= {"event.kind": "pipeline_error", "event.reason": why}
        elif direction == "request" and not from_client and number < 120:
            made["event.reason"] = "asked by the station that was connected to"
        if len(self._made) < _CONSTANTS_MAX:
            self._made[number << 9 | cause << 1 | from_client] = made
        return made

    def _unreadable(self, why: str) -> Fields:
        self.tally.malformed += 1
        return {
            **self._base,
            "event.kind": "pipeline_error",
            "event.action": "unreadable",
            "event.outcome": "failure",
            "event.reason": why,
        }

    def _unanswered(self, number: int, waits: Open) -> Fields:
        why = f"no confirmation of the {TYPES[number].action} {waits.link}"
        return {
            **waits.constants,
            "event.action": "iec104_unanswered",
            "event.outcome": "unknown",
            "event.reason": why,
            "ot.is_command": False,
        }


def _direction(number: int, cause: int, from_client: bool) -> str:
    """Who speaks to whom, by type and cause; only files need the direction of the bytes."""
    if number >= 81 and number not in range(100, 114):
        return "request" if from_client else "response"
    if cause in _ASKING or (cause == 5 and number == 102):
        return "request"
    return "unsolicited" if cause in _UNASKED else "response"


def _cause_fault(number: int, cause: int) -> str:
    """Say which cause a type cannot have (-101, section 7.3)."""
    if cause not in CAUSES:
        return f"cause {cause} is not defined"
    if number < 45 or number == 70:
        wrong = cause in _ASKING or cause in _CONFIRMING
    elif number < 65 or number in (100, 101, 105, 113):
        wrong = cause not in _ASKING | _CONFIRMING | _REFUSING
    else:
        wrong = False
    return f"type {number} cannot have the cause {CAUSES[cause]}" if wrong else ""


def _unknown_name(number: int) -> str:
    if number > 127:
        return f"private_{number}"
    return f"security_{number}" if number == 41 or 81 <= number <= 95 else f"reserved_{number}"


def _add_element(own: Fields, kind: Type, number: int, data: bytes, at: int) -> None:
    """Value, quality, qualifier, select bit and time tag of one information object."""
    element, vendor = kind.read(data, at), own["cw.vendor"]
    if element.value is not None:
        if math.isfinite(element.value):
            own["ot.value"] = element.value
        else:
            own["ot.value_raw"] = str(element.value)
    if element.qualifier is not None:
        vendor["qualifier"] = element.qualifier
    if element.quality:
        vendor["quality"] = _quality(element.quality)
    if element.select:
        own["ot.operation"] = "select"
    if number == 101 and element.qualifier is not None and element.qualifier & 0xC0:
        own["ot.is_command"] = own["ot.direction"] == "request"
    if number == 122 and element.qualifier is not None and element.qualifier & 15 == _DELETE_FILE:
        own["ot.is_command"] = own["ot.direction"] == "request"
    if kind.tag:
        vendor["time_tag"] = time_tag(data, at + kind.size - kind.tag, kind.tag)


def _quality(bits: int) -> str:
    names = [name for bit, name in _QUALITY if bits & bit]
    return ",".join([*names, "overflow"] if bits & 1 else names) or f"0x{bits:02x}"


def time_tag(data: bytes, at: int, size: int) -> str:
    """CP56Time2a as ISO 8601 without a zone, CP24Time2a as minute and second (-101, 7.2.6.18).

    Stations differ in whether they send local time or UTC, so none is claimed.
    """
    second, millisecond = divmod(_U16.unpack_from(data, at)[0], 1_000)
    minute = data[at + 2] & 63
    text = f"{minute:02}:{second:02}.{millisecond:03}"
    wrong = data[at + 2] > 127 or minute > 59 or second > 59
    if size == 7:
        hour, day, month, year = (
            data[at + 3 + index] & bits for index, bits in enumerate((31, 31, 15, 127))
        )
        text = f"{2_000 + year}-{month:02}-{day:02}T{hour:02}:{text}"
        wrong |= hour > 23 or not day or not 1 <= month <= 12 or year > 99
    return f"{text} invalid" if wrong else text


# How long a frame is, and where the next one begins.


def _header_fault(start: int, length: int, sending: int, receiving: int) -> str:
    if start != 0x68:
        return f"a frame starts with 0x68, not 0x{start:02x}"
    if not 4 <= length <= 253:
        return f"length {length} of a frame, possible is 4 to 253"
    if not sending & 1:
        if receiving & 1:
            return "the receive number of an I-frame has its lowest bit set"
        return "" if length >= 10 else f"an I-frame of {length} bytes has no room for its ASDU"
    if length != 4:
        return f"an S- or U-frame of {length} bytes, it has 4"
    if sending & 3 == 1:
        return "" if sending == 1 and not receiving & 1 else "an S-frame with other bits set"
    known = sending in U_FRAMES and not receiving
    return "" if known else f"U-frame 0x{sending & 0xFF:02x} with not exactly one function"


def _asdu_size(number: int, variable: int) -> int:
    """Bytes of an ASDU by its type and count, 0 where that is open."""
    kind = TYPES.get(number)
    if kind is None or number == _SEGMENT:
        return 0
    count = variable & 127
    if variable & 128:
        return 9 + count * kind.size
    return 6 + count * (3 + kind.size)


def _asdu_fault(number: int, variable: int, given: int, wanted: int) -> str:
    if number not in TYPES:
        private = number > 127 or number == 41 or 81 <= number <= 95
        return "" if private else f"type {number} is not defined"
    if not variable & 127:
        return f"type {number} without an object"
    if wanted and given != wanted:
        return f"{variable & 127} objects of type {number} have {wanted} bytes, not {given}"
    if number == _SEGMENT and given < 13:
        return f"a segment of a file has at least 13 bytes, not {given}"
    return ""


def _fits(data: bytes, at: int) -> int:
    """Length of the frame at `at` if its parts agree, -1 if it is not whole, else 0."""
    start, length, sending, receiving = _HEAD.unpack_from(data, at)
    if _header_fault(start, length, sending, receiving):
        return 0
    stop = at + 2 + length
    if sending & 1:
        return 6
    if at + 9 > len(data):
        return -1
    number, variable, cause = data[at + 6], data[at + 7], data[at + 8] & 63
    size = _asdu_size(number, variable)
    if number not in TYPES or _asdu_fault(number, variable, length - 4, size):
        return 0
    if cause not in CAUSES or _cause_fault(number, cause):
        return 0
    return 2 + length if stop <= len(data) else -1


def _next_frame(data: bytes, at: int) -> tuple[int, bool]:
    """Where the next frame begins, and True if that is not certain yet."""
    end = len(data)
    keep = max(at, end - 5)
    for match in _START.finditer(data, at):
        start = match.start()
        if end - start < 6:
            break
        size = _fits(data, start)
        if size < 0:
            keep = min(keep, start)
        elif size and (end - start - size < 6 or _fits(data, start + size)):
            return start, False
    return keep, True


def _hides(data: bytes, at: int, stop: int) -> bool:
    """True if a frame that fits lies inside what another frame claims."""
    return stop - at >= 6 and _fits(data, at) != 0


def _link_prefix(ends: str, time_s: float) -> str:
    """Short, and the same when the same capture is read again."""
    return hashlib.blake2b(f"{ends} {time_s}".encode(), digest_size=6).hexdigest() + "."


def _say(fields: Fields, why: str) -> None:
    fields["event.reason"] = f"{fields['event.reason']}; {why}" if "event.reason" in fields else why
