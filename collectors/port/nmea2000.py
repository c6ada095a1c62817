"""NMEA 2000 buses of vessels: logs as `candump -L` writes them, a file of frames a record.

Send: let `candump -L can0` of the gateway write files of a minute or so and read their folder
(`reader = "folder"`, `collector = "nmea2000"`).

Understood: single frames, fast packets and broadcasts of the transport protocol, one event a
message; position, course and speed, GNSS fix, its precision and satellites, heading, depth, wind,
system time, engine, battery; AIS targets, told like those of `ais`; address claims, and as an event
of its own a device that claims an address that another holds; requests, commanded addresses and
group functions, which are commands.

Not understood: makers' own messages and other parameter groups; they become events with their bytes
in hexadecimal. What frames a lost frame belonged to is told once a message. Jumps of the position
are only watched in NMEA 0183.

References:
    NMEA 2000 appendix B as described by canboat 6 (canboat.github.io/canboat/canboat.html);
    ISO 11783-3:2018, 5.2 (identifier), 5.10 (transport protocol); ISO 11783-5:2019 (address claim);
    can-utils, candump, "log file format".
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from math import degrees
from struct import Struct
from typing import Any, NamedTuple

from cityward import Event, LogSource, Record, collector
from collectors.port.ais import AIS
from collectors.values import clean, moment, place

NMEA2000 = LogSource(category="ot_protocol", service="nmea2000")

OPEN_MAX = 1_024
"""How many unfinished messages are remembered."""
TRANSPORT_MAX = 1_785
"""Bytes of a message: 255 frames of seven."""
CLAIMS_MAX = 1_024
"""Of how many addresses, 253 a bus, the holder is remembered."""
LINE_MAX = 256
BROKEN_TOLD = 1_000
"""So many lines of a file are told one by one that are no frame."""
NO_CLOCK_S = 315_532_800.0
"""A time before 1980 is none: the log counts from its start."""

_FRAME = re.compile(
    rb"\(([0-9]{1,12}\.[0-9]{1,9})\) +([A-Za-z0-9_.-]{1,32}) +([0-9A-Fa-f]{8})#([0-9A-Fa-f]{0,16})"
    rb"(?: +[RT])?\r?"
)
Fields = dict[str, Any]


class Value(NamedTuple):
    """One number of a message: all ones, or the largest signed, stand for "not known"."""

    name: str
    at: int
    form: Struct
    scale: float = 1.0


class Group(NamedTuple):
    """A parameter group: what it is called, whether it takes several frames, what is in it."""

    name: str
    is_fast: bool = False
    values: tuple[Value, ...] = ()


U8, S8, U16, S16 = Struct("<B"), Struct("<b"), Struct("<H"), Struct("<h")
U32, S32, U64, S64 = Struct("<I"), Struct("<i"), Struct("<Q"), Struct("<q")
_UNKNOWN = {
    form: (1 << 8 * form.size - (form in (S8, S16, S32, S64))) - 1
    for form in (U8, S8, U16, S16, U32, S32, U64, S64)
}
RAD = 1e-4

REQUEST, CLAIM, COMMANDED, GROUP_FUNCTION = 59_904, 60_928, 65_240, 126_208
TRANSPORT, TRANSPORT_DATA = 60_416, 60_160
POSITION, COURSE, FIX, TIME, SATELLITES = 129_025, 129_026, 129_029, 126_992, 129_540
SHIP, SHIP_B, VOYAGE, NAME_B, TYPE_B = 129_038, 129_039, 129_794, 129_809, 129_810

GROUPS = {
    59_392: Group("acknowledgement"),
    REQUEST: Group("request"),
    CLAIM: Group("address_claim"),
    COMMANDED: Group("commanded_address", True),
    GROUP_FUNCTION: Group("group_function", True),
    126_464: Group("group_list", True),
    126_720: Group("proprietary", True),
    TIME: Group("system_time", False, (Value("day", 2, U16), Value("clock_s", 4, U32, 1e-4))),
    126_993: Group("heartbeat"),
    126_996: Group("product_information", True),
    126_998: Group("configuration_information", True),
    127_245: Group("rudder", False, (Value("position_rad", 4, S16, RAD),)),
    127_250: Group(
        "heading",
        False,
        (
            Value("heading_rad", 1, U16, RAD),
            Value("deviation_rad", 3, S16, RAD),
            Value("variation_rad", 5, S16, RAD),
        ),
    ),
    127_488: Group(
        "engine_rapid",
        False,
        (
            *(Value("instance", 0, U8), Value("speed_rpm", 1, U16, 0.25)),
            *(Value("boost_pa", 3, U16, 100), Value("tilt_percent", 5, S8)),
        ),
    ),
    127_489: Group(
        "engine",
        True,
        (
            *(Value("instance", 0, U8), Value("oil_pressure_pa", 1, U16, 100)),
            *(Value("oil_temperature_k", 3, U16, 0.1), Value("temperature_k", 5, U16, 0.01)),
            *(Value("alternator_v", 7, S16, 0.01), Value("fuel_l_h", 9, S16, 0.1)),
            *(Value("run_s", 11, U32), Value("coolant_pressure_pa", 15, U16, 100)),
            *(Value("fuel_pressure_pa", 17, U16, 1_000), Value("status_1", 20, U16)),
            *(Value("status_2", 22, U16), Value("load_percent", 24, S8)),
            Value("torque_percent", 25, S8),
        ),
    ),
    127_506: Group(
        "dc_status",
        True,
        (
            *(Value("instance", 1, U8), Value("type", 2, U8), Value("charge_percent", 3, U8)),
            *(Value("health_percent", 4, U8), Value("remaining_min", 5, U16)),
            Value("ripple_v", 7, U16, 0.001),
        ),
    ),
    127_508: Group(
        "battery",
        False,
        (
            *(Value("instance", 0, U8), Value("voltage_v", 1, S16, 0.01)),
            *(Value("current_a", 3, S16, 0.1), Value("temperature_k", 5, U16, 0.01)),
        ),
    ),
    128_267: Group(
        "depth", False, (Value("depth_m", 1, U32, 0.01), Value("offset_m", 5, S16, 0.001))
    ),
    POSITION: Group(
        "position", False, (Value("latitude", 0, S32, 1e-7), Value("longitude", 4, S32, 1e-7))
    ),
    COURSE: Group(
        "course_speed", False, (Value("course_rad", 2, U16, RAD), Value("speed_m_s", 4, U16, 0.01))
    ),
    FIX: Group(
        "gnss_fix",
        True,
        (
            *(Value("day", 1, U16), Value("clock_s", 3, U32, 1e-4)),
            *(Value("latitude", 7, S64, 1e-16), Value("longitude", 15, S64, 1e-16)),
            *(Value("altitude_m", 23, S64, 1e-6), Value("satellites", 33, U8)),
            *(Value("hdop", 34, S16, 0.01), Value("pdop", 36, S16, 0.01)),
            Value("geoid_m", 38, S32, 0.01),
        ),
    ),
    129_539: Group(
        "gnss_precision",
        False,
        (
            *(Value("hdop", 2, S16, 0.01), Value("vdop", 4, S16, 0.01)),
            Value("tdop", 6, S16, 0.01),
        ),
    ),
    SATELLITES: Group("satellites", True, (Value("in_view", 2, U8),)),
    SHIP: Group("ais_class_a", True),
    SHIP_B: Group("ais_class_b", True),
    VOYAGE: Group("ais_voyage", True),
    NAME_B: Group("ais_name", True),
    TYPE_B: Group("ais_type", True),
    130_306: Group(
        "wind", False, (Value("wind_m_s", 1, U16, 0.01), Value("wind_angle_rad", 3, U16, RAD))
    ),
}
READINGS = {
    128_267: ("depth_m", "water_depth", "m"),
    130_306: ("wind_m_s", "wind_speed", "m/s"),
    127_488: ("speed_rpm", "engine_speed", "/min"),
    127_508: ("voltage_v", "battery_voltage", "V"),
    127_245: ("position_rad", "rudder_angle", "rad"),
}
"""Value of a group that is its reading, its quantity and unit (UCUM)."""
FIXES = ("none", "autonomous", "differential", "precise", "rtk", "rtk_float", "estimated")
WORTH = {0: "bad", 6: "uncertain", 7: "substituted", 8: "bad"}
"""GNSS method; 7 manual, 8 simulator; any other is good."""
_POSITION_AIS = (
    *(Value("longitude", 5, S32, 1e-7), Value("latitude", 9, S32, 1e-7)),
    *(Value("course_rad", 14, U16, RAD), Value("speed_m_s", 16, U16, 0.01)),
    Value("heading_rad", 21, U16, RAD),
)
_VOYAGE_AIS = (
    *(Value("imo", 5, U32), Value("ship_type", 36, U8), Value("length_m", 37, U16, 0.1)),
    *(Value("beam_m", 39, U16, 0.1), Value("to_starboard_m", 41, U16, 0.1)),
    *(Value("to_bow_m", 43, U16, 0.1), Value("draught_m", 51, U16, 0.01)),
)
_TYPE_AIS = (
    *(Value("ship_type", 5, U8), Value("length_m", 20, U16, 0.1), Value("beam_m", 22, U16, 0.1)),
    *(Value("to_starboard_m", 24, U16, 0.1), Value("to_bow_m", 26, U16, 0.1)),
)
AIS_GROUPS: dict[int, tuple[str, int, tuple[Value, ...], dict[str, slice]]] = {
    SHIP: ("ais_position", 25, _POSITION_AIS, {}),
    SHIP_B: ("ais_position", 23, _POSITION_AIS, {}),
    VOYAGE: (
        "ais_static",
        74,
        _VOYAGE_AIS,
        {"callsign": slice(9, 16), "shipname": slice(16, 36), "destination": slice(53, 73)},
    ),
    NAME_B: ("ais_static", 25, (), {"shipname": slice(5, 25)}),
    TYPE_B: ("ais_static", 28, _TYPE_AIS, {"vendorid": slice(6, 13), "callsign": slice(13, 20)}),
}
"""Action, fewest bytes, numbers and texts."""


class _Frame(NamedTuple):
    time_s: float
    bus: str
    priority: int
    group: int
    source: int
    target: int
    data: bytes


class _Open:
    """A message of which frames are missing."""

    __slots__ = ("data", "group", "next", "sequence", "size")

    def __init__(self, group: int, sequence: int, size: int, data: bytes) -> None:
        self.group, self.sequence, self.size = group, sequence, size
        self.next = 1
        self.data = data


def _frame(line: bytes) -> _Frame | None:
    """Identifier of 29 bits: priority, data page and PDU, source (ISO 11783-3, 5.2)."""
    found = _FRAME.fullmatch(line) if len(line) <= LINE_MAX else None
    if found is None or len(found[4]) % 2:
        return None
    number = int(found[3], 16)
    group, target = number >> 8 & 0x3FFFF, 255
    if group >> 8 & 0xFF < 240:  # PDU 1: the lower byte is who it is for
        group, target = group & 0x3FF00, group & 0xFF
    data = bytes.fromhex(found[4].decode())
    bus = found[2].decode()
    return _Frame(float(found[1]), bus, number >> 26 & 7, group, number & 0xFF, target, data)


def looks_like_nmea2000(head: bytes) -> bool:
    """Frames with identifiers of 29 bits, most of which are groups that only this bus has."""
    lines = [line for line in head[:4_096].split(b"\n") if line.strip() and line[:1] != b"#"]
    lines = (lines[:-1] or lines)[:40]
    frames = [frame for line in lines if (frame := _frame(line))]
    known = sum(frame.group >= GROUP_FUNCTION and frame.group in GROUPS for frame in frames)
    return bool(lines) and len(frames) == len(lines) and known * 2 > len(lines)


@collector(NMEA2000, framing="document", looks_like=looks_like_nmea2000, strength=60)
class Nmea2000:
    """Read logs; unfinished messages and who holds an address are remembered over files."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, int, int], _Open] = OrderedDict()
        self._claims: OrderedDict[tuple[str, int], str] = OrderedDict()

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """One event a message, and one at the end that accounts for all lines of the file."""
        for record in records:
            yield from self._file(record)

    def _file(self, record: Record) -> Iterator[Event]:
        counts = dict.fromkeys(("frames", "messages", "comments", "broken"), 0)
        number = 0
        for line in record.data.split(b"\n"):
            if not line.strip():
                continue
            if line[:1] == b"#":
                counts["comments"] += 1
                continue
            frame = _frame(line)
            if frame is None:
                counts["broken"] += 1
                if counts["broken"] <= BROKEN_TOLD:
                    why = f"no frame of NMEA 2000: {line[:80]!r}"
                    yield Event.malformed(record, NMEA2000, why=why, number=number)
                    number += 1
                continue
            counts["frames"] += 1
            for logsource, fields in self._said(frame):
                counts["messages"] += 1
                time = moment(frame.time_s) if frame.time_s > NO_CLOCK_S else None
                if time is None:
                    fields["cw.time_source"] = "collector"
                yield Event(time or record.received, logsource, fields, record, number)
                number += 1
        fields = {
            "event.kind": "state",
            "event.action": "nmea2000_log_read",
            "event.dataset": "nmea2000.log",
            "cw.time_source": "collector",
            "cw.vendor": dict(counts),
        }
        if not counts["frames"]:
            why = "a log without a frame of NMEA 2000"
            yield Event.malformed(record, NMEA2000, why=why, number=number)
        else:
            yield Event(record.received, NMEA2000, fields, record, number)

    # ---- Frames to messages

    def _said(self, frame: _Frame) -> Iterator[tuple[LogSource, Fields]]:
        data: bytes | None = frame.data
        group = GROUPS.get(frame.group)
        if frame.group in (TRANSPORT, TRANSPORT_DATA):
            yield from self._transported(frame)
            return
        if group is not None and group.is_fast:
            data, reason = self._gathered(frame)
            if reason:
                yield NMEA2000, {**_base(frame), **_broken(reason)}
        if data is not None:
            yield from self._message(frame, data)

    def _gathered(self, frame: _Frame) -> tuple[bytes | None, str]:
        """Fast packet: sequence and counter in the first byte, length in the second of the first.

        Returns:
            The message if it is whole now, and what is wrong.
        """
        data = frame.data
        if len(data) < 2:
            return None, f"a fast packet of {len(data)} bytes"
        sequence, counter = data[0] >> 5, data[0] & 0x1F
        key = (frame.bus, frame.group, frame.source)
        known = self._open.get(key)
        if counter == 0:
            lost = known is not None and known.size > 0
            self._keep(key, _Open(frame.group, sequence, data[1], data[2:]))
            return self._whole(key), "a message lost its last frames" if lost else ""
        if known is None or known.sequence != sequence or known.next != counter:
            if known is not None and known.size == 0 and known.sequence == sequence:
                return None, ""  # told already
            self._keep(key, _Open(frame.group, sequence, 0, b""))
            return None, f"frame {counter} of a message whose frames before it are missing"
        known.data += data[1:]
        known.next += 1
        return self._whole(key), ""

    def _keep(self, key: tuple[str, int, int], one: _Open) -> None:
        self._open[key] = one
        self._open.move_to_end(key)
        if len(self._open) > OPEN_MAX:
            self._open.popitem(last=False)

    def _whole(self, key: tuple[str, int, int]) -> bytes | None:
        one = self._open[key]
        if not 0 < one.size <= len(one.data):
            return None
        del self._open[key]
        return one.data[: one.size]

    def _transported(self, frame: _Frame) -> Iterator[tuple[LogSource, Fields]]:
        """Transport protocol (ISO 11783-3, 5.10): announced, then seven bytes a frame."""
        data, key = frame.data, (frame.bus, TRANSPORT, frame.source)
        if len(data) < 8:
            yield NMEA2000, {**_base(frame), **_broken(f"a transport frame of {len(data)} bytes")}
        elif frame.group == TRANSPORT:
            if data[0] in (16, 32):  # request to send, broadcast announcement
                group = int.from_bytes(data[5:8], "little")
                self._keep(
                    key, _Open(group, 0, min(1_785, int.from_bytes(data[1:3], "little")), b"")
                )
            yield NMEA2000, {**_base(frame), "event.action": "nmea2000_transport"}
        else:
            known = self._open.get(key)
            if known is None or data[0] != known.next:
                self._open.pop(key, None)
                reason = f"frame {data[0]} of a message whose frames before it are missing"
                yield NMEA2000, {**_base(frame), **_broken(reason)}
                return
            known.data += data[1:]
            known.next += 1
            if (whole := self._whole(key)) is not None:
                yield from self._message(frame._replace(group=known.group), whole)

    # ---- Messages to events

    def _message(self, frame: _Frame, data: bytes) -> Iterator[tuple[LogSource, Fields]]:
        if frame.group in AIS_GROUPS:
            yield AIS, _target(frame, data)
            return
        fields = _base(frame)
        vendor = fields["cw.vendor"]
        if frame.group == CLAIM:
            yield NMEA2000, {**fields, **_claim(data, vendor)}
            if taken := self._taken(frame, data):
                yield NMEA2000, {**_base(frame), **taken}
            return
        if frame.group in (REQUEST, COMMANDED, GROUP_FUNCTION):
            yield NMEA2000, {**fields, **_command(frame, data, vendor)}
            return
        group = GROUPS.get(frame.group)
        if group is None or not group.values:
            vendor["data"] = data.hex()
            yield NMEA2000, fields
            return
        values = _numbers(data, group.values)
        _physical(frame.group, values, data, fields)
        vendor.update(values)
        if frame.group == SATELLITES:
            vendor.update(_satellites(data))
        yield NMEA2000, fields

    def _taken(self, frame: _Frame, data: bytes) -> Fields | None:
        """Remember who holds an address; tell when a second device claims it."""
        if len(data) < 8 or frame.source >= 254:  # 254: the device found no address
            return None
        key, name = (frame.bus, frame.source), data[:8].hex()
        before = self._claims.get(key)
        self._claims[key] = name
        self._claims.move_to_end(key)
        if len(self._claims) > CLAIMS_MAX:
            self._claims.popitem(last=False)
        if before is None or before == name:
            return None
        # The smaller NAME keeps the address; the other has to look for a new one.
        wins = bytes.fromhex(name)[::-1] < bytes.fromhex(before)[::-1]
        return {
            "event.kind": "alert",
            "event.action": "nmea2000_address_claimed_twice",
            "event.reason": (
                f"address {frame.source} of device {before} is claimed by {name}, "
                f"which {'wins' if wins else 'loses'}"
            ),
            "cw.vendor": {
                "bus": clean(frame.bus),
                "name": name,
                "name_before": before,
                "wins": wins,
            },
        }


def _base(frame: _Frame) -> Fields:
    group = GROUPS.get(frame.group)
    vendor: Fields = {"bus": clean(frame.bus), "priority": frame.priority}
    if frame.target != 255:
        vendor["target"] = frame.target
    return {
        "event.kind": "metric",
        "event.category": ["process_control"],
        "event.action": f"nmea2000_{group.name if group else 'message'}",
        "event.dataset": "nmea2000.message",
        "network.protocol": "nmea2000",
        "cw.domain": ["physical"],
        "ot.operation": "report",
        "ot.is_command": False,
        "ot.function.code": str(frame.group),
        "ot.unit": str(frame.source),
        "cw.vendor": vendor,
    }


def _broken(reason: str) -> Fields:
    return {
        "event.kind": "pipeline_error",
        "event.action": "unreadable",
        "event.outcome": "failure",
        "event.reason": reason,
    }


def _numbers(data: bytes, values: Iterable[Value]) -> Fields:
    """Numbers that are there and known."""
    found: Fields = {}
    for name, at, form, scale in values:
        if at + form.size > len(data):
            continue
        number = form.unpack_from(data, at)[0]
        if number != _UNKNOWN[form]:
            found[name] = number if scale == 1.0 else round(number * scale, 10)
    return found


def _physical(group: int, values: Fields, data: bytes, fields: Fields) -> None:
    """Put position, course, speed, time and readings in their fields."""
    quality = "good"
    if "latitude" in values and "longitude" in values:
        spot = place(values.pop("latitude"), values.pop("longitude"))
        if spot:
            fields["phys.position"] = spot
        else:
            quality = "bad"
            fields["event.reason"] = "position outside WGS 84"
    elif group in (POSITION, FIX):
        quality = "bad"
        fields["event.reason"] = "the receiver has no fix"
    if "speed_m_s" in values:
        fields["phys.speed"] = values.pop("speed_m_s")
    if "course_rad" in values:
        fields["phys.course"] = round(degrees(values.pop("course_rad")), 4)
    if "day" in values and "clock_s" in values:
        told = moment(values.pop("day") * 86_400 + values.pop("clock_s"))
        if told:
            values["told_time"] = told.isoformat()
    if group == FIX and len(data) > 31:
        method = data[31] >> 4
        values["fix"] = FIXES[method] if method < len(FIXES) else str(method)
        quality = max(quality, WORTH.get(method, "good"), key=_WORSE.index)
    if reading := READINGS.get(group):
        if reading[0] in values:
            fields["phys.reading"] = values[reading[0]]
            fields["phys.quantity"], fields["phys.unit"] = reading[1:]
        else:
            quality = "bad"
    if quality != "good" or group in (POSITION, FIX, COURSE) or group in READINGS:
        fields["phys.quality"] = quality


_WORSE = ("good", "uncertain", "substituted", "bad")


def _satellites(data: bytes) -> Fields:
    """Twelve bytes a satellite: number, elevation, azimuth, signal, residual, use."""
    rows, used = [], 0
    for at in range(3, len(data) - 11, 12):
        number, signal = data[at], S16.unpack_from(data, at + 5)[0] / 100
        rows.append(f"{number}/{signal:g}")
        used += data[at + 11] & 0xF in (2, 5)
    return {"satellites": clean(" ".join(rows)), "used": used}


def _claim(data: bytes, vendor: Fields) -> Fields:
    """NAME of a device (ISO 11783-5, 4.3)."""
    if len(data) < 8:
        return _broken(f"an address claim of {len(data)} bytes")
    name = int.from_bytes(data[:8], "little")
    vendor |= {
        "name": data[:8].hex(),
        "identity": name & 0x1FFFFF,
        "manufacturer": name >> 21 & 0x7FF,
        "device_instance": name >> 32 & 0xFF,
        "function": name >> 40 & 0xFF,
        "class": name >> 49 & 0x7F,
        "industry": name >> 60 & 7,
        "can_move": bool(name >> 63),
    }
    return {"event.kind": "state", "ot.operation": "session", "cw.vendor": vendor}


def _command(frame: _Frame, data: bytes, vendor: Fields) -> Fields:
    """Requests, the order to take an address, and group functions."""
    told: Fields = {"event.kind": "event", "ot.direction": "request", "cw.vendor": vendor}
    vendor["data"] = data.hex()
    if frame.group == REQUEST and len(data) >= 3:
        vendor["requested"] = int.from_bytes(data[:3], "little")
        return {**told, "ot.operation": "read"}
    if frame.group == COMMANDED and len(data) >= 9:
        vendor |= {"name": data[:8].hex(), "address": data[8]}
        return {**told, "ot.operation": "config", "ot.is_command": True}
    if frame.group == GROUP_FUNCTION and len(data) >= 4:
        # 0 request, 1 command, 2 acknowledge, 3 read, 4 its reply, 5 write, 6 its reply
        vendor |= {"function": data[0], "about": int.from_bytes(data[1:4], "little")}
        orders = data[0] in (1, 5)
        told["ot.function.sub"] = str(data[0])
        if data[0] in (2, 4, 6):
            told["ot.direction"] = "response"
        return {**told, "ot.operation": "config" if orders else "read", "ot.is_command": orders}
    name = GROUPS[frame.group].name
    return {**told, **_broken(f"a {name.replace('_', ' ')} of {len(data)} bytes")}


def _target(frame: _Frame, data: bytes) -> Fields:
    """An AIS message that a transponder on this bus heard."""
    action, fewest, values, texts = AIS_GROUPS[frame.group]
    base = _base(frame)
    if len(data) < fewest:
        return {**base, **_broken(f"an AIS message of {len(data)} bytes where {fewest} are needed")}
    numbers = _numbers(data, values)
    vendor: Fields = {**base["cw.vendor"], "msg_type": data[0] & 0x3F, "repeat": data[0] >> 6}
    fields: Fields = {
        **base,
        "event.kind": "state",
        "event.category": ["positioning"],
        "event.action": action,
        "phys.track": f"{U32.unpack_from(data, 1)[0]:09d}",
        "cw.vendor": vendor,
    }
    for name, where in texts.items():
        said = data[where].split(b"\xff")[0].split(b"@")[0].decode("latin-1").rstrip(" \0")
        if said:
            vendor[name] = clean(said)
    if action == "ais_position":
        _physical(POSITION, numbers, data, fields)
        vendor |= {
            "accuracy": bool(data[13] & 1),
            "raim": bool(data[13] & 2),
            "second": data[13] >> 2,
        }
        vendor["radio"] = int.from_bytes(data[18:21], "little") & 0x7FFFF
        if frame.group == SHIP:
            vendor["status"] = data[25] & 0xF if len(data) > 25 else 15
        if "heading_rad" in numbers:
            vendor["heading"] = round(degrees(numbers.pop("heading_rad")))
    if frame.group == VOYAGE:
        vendor |= {"ais_version": data[73] & 3, "epfd": data[73] >> 2 & 0xF}
    vendor |= numbers
    return fields
