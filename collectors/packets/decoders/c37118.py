"""IEEE C37.118: phasor measurement units, their concentrators, and who turns their streams off.

Understood: all frame types with their checksum and time quality; commands by name; configurations
1, 2 and 3 (stations, channels, rate); in data frames frequency, its rate of change, phasors, analog
and digital values of the first stations, once a configuration of the stream was seen. One event a
frame.

Not understood: a configuration 3 that is spread over several frames, and data of a stream whose
configuration was sent before we listened or on another connection; they are shown as bytes.

References:
    IEEE C37.118.2-2011, sections 6.2 (message framework), 6.3 (data), 6.4 (configuration), 6.5
    (header), 6.6 (command) and annex F (TCP and UDP, ports 4712 and 4713).
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Sequence
from math import atan2, degrees, hypot
from struct import Struct
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.framed import Framed, Lane
from collectors.packets.decoders.pairs import Fields, broken, printable, say, turned

C37118 = LogSource(category="ot_protocol", service="c37118")

STREAMS_MAX = 16
"""Streams of one conversation whose configuration is kept; a concentrator sends one or few."""
STATIONS_SHOWN = 8
"""Stations of a frame whose values an event shows."""
VALUES_SHOWN = 32
"""Phasors, analog or digital values that an event shows."""
RAW_SHOWN = 64
"""Bytes of a data frame that cannot be read."""
_SEARCHES = 8
"""How often, on average, each byte is looked at in search of the next frame."""
_LOST_FRAME_MAX = 8_192
"""Longest frame that is waited for in search of the next one."""
_LOST_FRAMES_MAX = 64
"""As many beginnings are looked at behind the first one that is not whole."""

DATA, HEADER, CONFIG_1, CONFIG_2, COMMAND, CONFIG_3 = range(6)
FRAMES: dict[int, tuple[str, str, int]] = {
    DATA: ("data", "report", 18),
    HEADER: ("header", "report", 16),
    CONFIG_1: ("configuration_1", "report", 24),
    CONFIG_2: ("configuration_2", "report", 24),
    COMMAND: ("command", "session", 18),
    CONFIG_3: ("configuration_3", "report", 26),
}
"""Frame type → name, operation, bytes at least (section 6.2)."""

COMMANDS: dict[int, tuple[str, str, bool, int]] = {
    1: ("turn_off_transmission", "config", True, -1),
    2: ("turn_on_transmission", "config", True, -1),
    3: ("send_header", "read", False, HEADER),
    4: ("send_configuration_1", "read", False, CONFIG_1),
    5: ("send_configuration_2", "read", False, CONFIG_2),
    6: ("send_configuration_3", "read", False, CONFIG_3),
    8: ("extended_frame", "control", True, -1),
}
"""Command → name, operation, whether it changes something, frame that answers it (table 15)."""
USER_COMMANDS = range(0x100, 0x1000)

DATA_ERRORS = ("", "pmu_error", "test_mode", "data_error")
_FLAGS = ((0x2000, "unsynchronized"), (0x1000, "sorted_by_arrival"), (0x0800, "trigger"),
          (0x0400, "configuration_change"), (0x0200, "data_modified"))  # fmt: skip
"""Bits of STAT (table 7)."""
_LEAPS = ((0x20, "leap_second_occurred"), (0x10, "leap_second_pending"))

_HEAD = Struct(">HHHII")
_WORD = Struct(">H")
_CONFIG = Struct(">IH")
_STATION = Struct(">16sHHHHH")
_STATION_3 = Struct(">H16sHHHH")
_SCALE_3 = Struct(">4sff")
_TAIL_3 = Struct(">fffcii")
_START = re.compile(rb"\xaa[\x01-\x03\x11-\x13\x21-\x23\x31-\x33\x41-\x43\x51-\x53]", re.DOTALL)
_ALWAYS: Fields = {
    "network.protocol": "c37118",
    "event.category": ["process_control"],
}


class Phasor(msgspec.Struct, frozen=True):
    """One phasor channel."""

    name: str
    unit: str
    factor: float
    """Volts or amperes of one bit."""


class Station(msgspec.Struct, frozen=True):
    """What a configuration says of one measurement unit."""

    name: str
    number: int
    form: int
    phasors: tuple[Phasor, ...]
    analogs: int
    digitals: int
    nominal_hz: float

    def layout(self) -> str:
        """Its part of a data frame (section 6.3)."""
        phasor = "ff" if self.form & 2 else "Hh" if self.form & 1 else "hh"
        frequency = "ff" if self.form & 8 else "hh"
        analog = "f" if self.form & 4 else "h"
        shape = phasor * len(self.phasors) + frequency + analog * self.analogs
        return f"H{shape}{'H' * self.digitals}"


class Stream(msgspec.Struct, frozen=True):
    """What a configuration says of a stream."""

    stations: tuple[Station, ...]
    time_base: int
    rate: int
    layout: Struct
    changes: int


@decoder("c37118", C37118, transport=("tcp", "udp"), ports=(4712, 4713), begins=b"\xaa")
class C37118Stream(Framed):
    """One conversation of measurement units or concentrators with who receives their data."""

    head = 16
    noun = "frame"
    unanswered = "c37118_unanswered"

    def __init__(self, session: Session) -> None:
        super().__init__(session, _ALWAYS)
        self._turned = turned(self._base)
        self._streams: dict[int, Stream] = {}
        self._made: dict[int, Fields] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a whole frame with its checksum."""
        return _START.match(head) is not None and len(head) >= 16 and C37118Stream.size(head, 0) > 0

    @staticmethod
    def size(data: bytes, at: int) -> int:
        """See `Framed`; a frame whose checksum is wrong is none."""
        if data[at] != 0xAA or not _START.match(data, at):
            return 0
        size = data[at + 2] << 8 | data[at + 3]
        if size < FRAMES[data[at + 1] >> 4][2]:
            return 0
        stop = at + size
        if stop > len(data):
            return -1
        right = crc_hqx(data[at : stop - 2], 0xFFFF) == data[stop - 2] << 8 | data[stop - 1]
        return size if right else 0

    @staticmethod
    def fault(data: bytes, at: int) -> str:
        """See `Framed`."""
        if not _START.match(data, at):
            return f"a frame begins with 0xaa and its type, not 0x{data[at : at + 2].hex()}"
        name, _, least = FRAMES[data[at + 1] >> 4]
        size, stream = _WORD.unpack_from(data, at + 2)[0], _WORD.unpack_from(data, at + 4)[0]
        if size < least:
            return f"a {name} frame of {size} bytes, it has at least {least}"
        return f"a {name} frame of stream {stream} has a wrong checksum"

    @staticmethod
    def next_start(data: bytes, at: int) -> tuple[int, bool]:
        """See `Framed`."""
        end = len(data)
        keep = end - (data[-1] == 0xAA)
        budget, waiting = _SEARCHES * (end - at), 0
        for match in _START.finditer(data, at):
            start = match.start()
            if end - start < 16 or waiting > _LOST_FRAMES_MAX:
                return min(keep, start), True
            claimed = data[start + 2] << 8 | data[start + 3]
            if claimed > _LOST_FRAME_MAX:
                continue
            size = C37118Stream.size(data, start)
            if size > 0:
                return start, False
            if size < 0:
                keep, waiting = min(keep, start), waiting + 1
            else:
                # A sender of false beginnings must not make us add up the same bytes for ever.
                budget -= claimed if claimed <= end - start else 0
                if budget < 0:
                    return end, True
        return keep, True

    def cut(self, lane: Lane, left: int) -> str:
        """See `Framed`."""
        return f"a datagram ends {left} bytes into a frame" if super().cut(lane, left) else ""

    def read(self, data: bytes, from_client: bool, time_s: float) -> Sequence[Fields]:
        """See `Framed`."""
        sync, size, stream, seconds, fraction = _HEAD.unpack_from(data)
        code = sync >> 4 & 7
        constants = self._made.get(code << 16 | stream) or self._constants(code, stream)
        fields: Fields = {**constants}
        vendor: dict[str, Any] = {"version": sync & 15, "frame_size": size}
        fields["cw.vendor"] = vendor
        if code == COMMAND:
            self._command(data, stream, from_client, time_s, fields, vendor)
            return (fields,)
        known = self._streams.get(stream)
        base = known.time_base if known else 0
        vendor["time"] = seconds + (fraction & 0xFFFFFF) / base if base else float(seconds)
        if fraction >> 24:
            vendor["time_quality"] = fraction >> 24 & 15
            if leaps := [name for bit, name in _LEAPS if fraction >> 24 & bit]:
                vendor["leap_second"] = ",".join(leaps)
        if code == DATA:
            self._data(data, known, fields, vendor)
            return (fields,)
        if self.pairs.waits((stream, code)):
            self.pairs.answer((stream, code), fields, time_s)
            fields["ot.direction"] = "response"
            fields["event.outcome"] = "success"
        if code == HEADER:
            vendor["text"] = printable(data[14:-2])
        else:
            self._configuration(data, code, stream, fields, vendor)
        return (fields,)

    def _command(
        self, data: bytes, stream: int, from_client: bool, time_s: float, fields: Fields,
        vendor: dict[str, Any],
    ) -> None:  # fmt: skip
        code = _WORD.unpack_from(data, 14)[0]
        if not from_client:
            fields.update(self._turned)
        name, operation, is_command, answered_by = COMMANDS.get(code) or (
            f"user_command_{code}" if code in USER_COMMANDS else f"reserved_{code}",
            "control",
            True,
            -1,
        )
        fields["event.action"] = f"c37118_{name}"
        fields["ot.function.sub"] = str(code)
        fields["ot.function.name"] = name
        fields["ot.operation"] = operation
        fields["ot.is_command"] = is_command
        fields["ot.direction"] = "request"
        if len(data) > 18:
            vendor["extended_bytes"] = len(data) - 18
        if code not in COMMANDS and code not in USER_COMMANDS:
            self._broken(fields, f"command {code} is reserved")
        if answered_by >= 0:
            self.pairs.ask((stream, answered_by), fields, time_s)

    def _configuration(
        self, data: bytes, code: int, stream: int, fields: Fields, vendor: dict[str, Any]
    ) -> None:
        if code == CONFIG_3 and (part := _WORD.unpack_from(data, 14)[0]):
            vendor["part"] = part
            say(fields, "a configuration in several frames is not put together")
            return
        try:
            read = _configuration_3(data) if code == CONFIG_3 else _configuration(data)
        except (ValueError, IndexError) as error:
            self._broken(fields, f"configuration: {error}")
            return
        first = read.stations[:STATIONS_SHOWN]
        fields["ot.point.type"] = "pmu"
        fields["ot.point.count"] = len(read.stations)
        vendor["stations"] = ",".join(station.name for station in first)
        vendor["station_ids"] = ",".join(str(station.number) for station in first)
        channels = [
            f"{channel.name} {channel.unit}" for station in first for channel in station.phasors
        ]
        vendor["phasors"] = ",".join(channels[:VALUES_SHOWN])
        vendor["analogs"] = sum(station.analogs for station in read.stations)
        vendor["digitals"] = sum(station.digitals for station in read.stations)
        vendor["data_rate"] = read.rate
        vendor["time_base"] = read.time_base
        vendor["configuration_changes"] = read.changes
        if first:
            vendor["nominal_hz"] = first[0].nominal_hz
        if code == CONFIG_1:
            return  # what the unit could send, not what it sends
        if stream not in self._streams and len(self._streams) >= STREAMS_MAX:
            self._streams.pop(next(iter(self._streams)))
        self._streams[stream] = read

    def _data(
        self, data: bytes, known: Stream | None, fields: Fields, vendor: dict[str, Any]
    ) -> None:
        why = ""
        if known is None:
            why = "no configuration of this stream was seen"
        elif known.layout.size != len(data) - 16:
            why = f"{len(data) - 16} bytes of data, the configuration says {known.layout.size}"
        if why or known is None:
            fields["ot.value_raw"] = data[14 : min(len(data) - 2, 14 + RAW_SHOWN)].hex()
            if known is None:
                say(fields, why)
            else:
                self._broken(fields, why)
            return
        fields["ot.point.count"] = len(known.stations)
        if known.stations:
            _add_values(known.layout.unpack_from(data, 14), known.stations, fields, vendor)

    def _constants(self, code: int, stream: int) -> Fields:
        name, operation, _ = FRAMES[code]
        made = {
            **self._base,
            "event.action": f"c37118_{name}",
            "ot.function.code": str(code),
            "ot.function.name": name,
            "ot.operation": operation,
            "ot.is_command": False,
            "ot.direction": "unsolicited",
            "ot.unit": str(stream),
        }
        if code == DATA:
            made["ot.point.type"] = "pmu"
        if len(self._made) >= STREAMS_MAX * len(FRAMES):
            self._made.clear()
        self._made[code << 16 | stream] = made
        return made

    def _broken(self, fields: Fields, why: str) -> None:
        self.tally.malformed += 1
        broken(fields, why)


# Configurations.


def _configuration(data: bytes) -> Stream:
    """Configuration 1 or 2 (section 6.4, table 9)."""
    time_base, count = _CONFIG.unpack_from(data, 14)
    at, end = 20, len(data) - 2
    stations = []
    changes = 0
    for _ in range(count):
        _need(at + 26, end)
        name, number, form, phasors, analogs, digitals = _STATION.unpack_from(data, at)
        at += 26
        names = at
        at += 16 * (phasors + analogs + 16 * digitals)
        units = at
        at += 4 * (phasors + analogs + digitals)
        _need(at + 4, end)
        channels = tuple(
            Phasor(
                _name(data[names + 16 * index : names + 16 * index + 16]),
                "A" if data[units + 4 * index] & 1 else "V",
                int.from_bytes(data[units + 4 * index + 1 : units + 4 * index + 4]) * 1e-5,
            )
            for index in range(phasors)
        )
        hertz = 50.0 if data[at + 1] & 1 else 60.0
        changes = _WORD.unpack_from(data, at + 2)[0]
        at += 4
        stations.append(Station(_name(name), number, form, channels, analogs, digitals, hertz))
    return _stream(data, at, stations, time_base, changes)


def _configuration_3(data: bytes) -> Stream:
    """Configuration 3 in one frame (section 6.4, table 11)."""
    time_base, count = _CONFIG.unpack_from(data, 16)
    at, end = 22, len(data) - 2
    stations = []
    changes = 0
    for _ in range(count):
        name, at = _counted(data, at, end)
        _need(at + 26, end)
        number, _, form, phasors, analogs, digitals = _STATION_3.unpack_from(data, at)
        at += 26
        names = []
        for _ in range(phasors + analogs + 16 * digitals):
            channel, at = _counted(data, at, end)
            names.append(channel)
        scales = at
        at += 12 * phasors + 8 * analogs + 4 * digitals + _TAIL_3.size
        _need(at + 4, end)
        channels = []
        for index in range(phasors):
            flags, factor, _ = _SCALE_3.unpack_from(data, scales + 12 * index)
            channels.append(Phasor(names[index], "A" if flags[2] & 8 else "V", factor))
        hertz = 50.0 if data[at + 1] & 1 else 60.0
        changes = _WORD.unpack_from(data, at + 2)[0]
        at += 4
        stations.append(Station(name, number, form, tuple(channels), analogs, digitals, hertz))
    return _stream(data, at, stations, time_base, changes)


def _stream(data: bytes, at: int, stations: list[Station], time_base: int, changes: int) -> Stream:
    if at + 2 != len(data) - 2:
        raise ValueError(f"{len(data) - 4 - at} bytes more than its {len(stations)} stations have")
    rate = int.from_bytes(data[at : at + 2], signed=True)
    layout = Struct(">" + "".join(station.layout() for station in stations))
    return Stream(tuple(stations), time_base & 0xFFFFFF, rate, layout, changes)


def _need(at: int, end: int) -> None:
    if at > end:
        raise ValueError(f"its stations need {at - end} bytes more than it has")


def _counted(data: bytes, at: int, end: int) -> tuple[str, int]:
    _need(at + 1, end)
    stop = at + 1 + data[at]
    _need(stop, end)
    return _name(data[at + 1 : stop]), stop


def _name(data: bytes) -> str:
    return printable(data.rstrip(b" \0"))


# Data.


def _add_values(
    values: tuple[Any, ...], stations: tuple[Station, ...], fields: Fields, vendor: dict[str, Any]
) -> None:
    """Values of the first stations as text, the frequency of the first one as number."""
    at, status = 0, 0
    frequencies: list[str] = []
    changes: list[str] = []
    phasors: list[str] = []
    analogs: list[str] = []
    digitals: list[str] = []
    for station in stations[:STATIONS_SHOWN]:
        status |= values[at]
        at += 1
        for channel in station.phasors:
            phasors.append(_phasor(channel, station.form, values[at], values[at + 1]))
            at += 2
        hertz, change = values[at], values[at + 1]
        at += 2
        if not station.form & 8:
            # Millihertz from the nominal frequency, hundredths of hertz in a second (table 6).
            hertz, change = station.nominal_hz + hertz / 1_000, change / 100
        if not frequencies and hertz - hertz == 0:
            fields["ot.value"] = hertz
            fields["ot.unit_of_measure"] = "Hz"
        frequencies.append(f"{hertz:.4f}")
        changes.append(f"{change:.2f}")
        stop = at + station.analogs
        analogs += [f"{value:g}" for value in values[at:stop]]
        at = stop + station.digitals
        digitals += [f"0x{value:04x}" for value in values[stop:at]]
    if status:
        fields["ot.cause"] = _status(status)
    vendor["frequency_hz"] = ",".join(frequencies)
    vendor["change_hz_s"] = ",".join(changes)
    for name, texts in (("phasors", phasors), ("analogs", analogs), ("digitals", digitals)):
        if texts:
            vendor[name] = ",".join(texts[:VALUES_SHOWN])


def _phasor(channel: Phasor, form: int, first: float, second: float) -> str:
    """Magnitude and angle in degrees."""
    if form & 1:
        magnitude, angle = first, second if form & 2 else second / 10_000
    else:
        magnitude, angle = hypot(first, second), atan2(second, first)
    if not form & 2:
        magnitude *= channel.factor
    return f"{channel.name}={magnitude:.3f}@{degrees(angle):.3f}"


def _status(bits: int) -> str:
    names = [name for bit, name in _FLAGS if bits & bit]
    if error := DATA_ERRORS[bits >> 14]:
        names.insert(0, error)
    return ",".join(names) or f"0x{bits:04x}"
