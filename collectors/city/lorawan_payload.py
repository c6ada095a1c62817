"""Payloads of LoRaWAN sensors that nobody decoded on the way: Milesight channels, Cayenne LPP.

References:
    Milesight, "LoRaWAN Communication Protocol" of each sensor (channel, type, value);
    myDevices, "Cayenne Low Power Payload" (channel, IPSO object − 3200, value big-endian).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from struct import Struct
from typing import Any, NamedTuple

MILESIGHT_PORT = 85
_MAKER = re.compile(r"MILESIGHT|\b(?:AM|AT|CT|DS|EM|GS|TS|UC|VS|WS|WT)\d{3}")
"""Names of the maker and of its series."""
MEASURES_MAX = 256
"""Measurements of one payload; 242 bytes are the most that LoRaWAN carries."""


class Field(NamedTuple):
    """One value of a channel."""

    name: str
    form: str
    """As `struct` writes it."""
    scale: float = 1
    """Divisor."""
    unit: str = ""
    words: Mapping[int, str] | None = None
    """States of a value that is no measurement."""
    bits: tuple[str, ...] = ()
    """Names of its bits, the lowest first, where each is a state of its own."""
    bad: int | None = None
    """A value that says that nothing could be measured."""


class Measure(NamedTuple):
    """What was measured: a number with its unit, or a state."""

    name: str
    value: float | str
    unit: str = ""


Layout = tuple[Field, ...]
Key = tuple[int, int]
"""Channel and type."""

PERCENT, CELSIUS = "%", "Cel"
# Of the buzzer, sensors also send 0x55, which the decoder of the maker takes for no.
_YES = dict.fromkeys(range(256), "no") | {1: "yes"}
_TILT = {0: "normal", 1: "tilt"}
_OPEN = {0: "closed", 1: "open"}
_SWITCH = {0: "close", 1: "open"}
_LEAK = {0: "normal", 1: "leak"}
_PIR = {0: "idle", 1: "trigger"}
_OCCUPIED = {0: "vacant", 1: "occupied"}
_THRESHOLD = {0: "normal", 1: "trigger"}
_ALARM = {0: "normal", 1: "threshold alarm"}
_WATER = {
    0: "normal",
    1: "water outage timeout alarm",
    2: "water outage timeout alarm release",
    3: "water flow timeout alarm",
    4: "water flow timeout alarm release",
}
_RELEASE = {0: "threshold alarm release", 1: "threshold alarm", 3: "high frequency alarm"}

TEMPERATURE = Field("temperature", "h", 10, CELSIUS)
HUMIDITY = Field("humidity", "B", 2, PERCENT)
DISTANCE = Field("distance", "H", 1, "mm")
_DIGITAL = "B"

MILESIGHT: dict[Key, Layout] = {
    (0x01, 0x75): (Field("battery", "B", 1, PERCENT),),
    (0x02, 0x67): (TEMPERATURE,),
    (0x03, 0x67): (TEMPERATURE,),
    (0x83, 0x67): (TEMPERATURE, Field("temperature_alarm", "B", words=_ALARM)),
    (0x03, 0x68): (HUMIDITY,),
    (0x04, 0x68): (HUMIDITY,),
    (0x09, 0x68): (HUMIDITY,),
    (0x05, 0x6A): (Field("activity", "H"),),
    (0x06, 0x65): (
        Field("illumination", "H", 1, "lx"),
        Field("infrared_and_visible", "H"),
        Field("infrared", "H"),
    ),
    (0x06, 0xCB): (Field("light_level", "B"),),
    (0x07, 0x7D): (Field("co2", "H", 1, "[ppm]"),),
    (0x05, 0x7D): (Field("co2", "H", 1, "[ppm]"),),
    (0x08, 0x7D): (Field("tvoc", "H"),),
    (0x09, 0x73): (Field("pressure", "H", 10, "hPa"),),
    (0x06, 0x73): (Field("pressure", "H", 10, "hPa"),),
    (0x0A, 0x7D): (Field("hcho", "H", 100, "mg/m3"),),
    (0x0B, 0x7D): (Field("pm2_5", "H", 1, "ug/m3"),),
    (0x0C, 0x7D): (Field("pm10", "H", 1, "ug/m3"),),
    (0x0D, 0x7D): (Field("o3", "H", 100, "[ppm]"),),
    (0x0E, 0x01): (Field("beep", "B", words=_YES),),
    (0x03, 0x94): (Field("illumination", "I", 1, "lx"),),
    (0x03, 0x7B): (Field("pressure", "H", 1, "kPa"),),
    (0x03, 0x77): (Field("water_level", "H", 1, "cm"),),
    (0x05, 0x7F): (Field("ec", "H", 1, "uS/cm"),),
    (0x03, 0x82): (DISTANCE,),
    (0x02, 0x82): (DISTANCE,),
    (0x04, 0x82): (DISTANCE,),
    (0x84, 0x82): (DISTANCE, Field("distance_alarm", "B", words=_ALARM)),
    (0x04, 0xD6): (Field("remaining", "B", 1, PERCENT),),
    (0x03, 0x97): (Field("total_current", "I", 100, "A.h"),),
    (0x04, 0x98): (Field("current", "H", 100, "A", bad=0xFFFF),),
    (0x84, 0x98): (
        Field("current_max", "H", 100, "A"),
        Field("current_min", "H", 100, "A"),
        Field("current", "H", 100, "A"),
        Field("alarm", "B"),
    ),
    (0x03, 0xCF): (
        Field("angle_x", "h", 100, "deg"),
        Field("angle_y", "h", 100, "deg"),
        Field("angle_z", "h", 100, "deg"),
        Field(
            "threshold",
            "B",
            words=_THRESHOLD,
            bits=("threshold_x", "threshold_y", "threshold_z"),
        ),
    ),
    (0x05, 0x5B): (
        Field("weighting", "B"),
        Field("LAF", "H", 10, "dB"),
        Field("LAeq", "H", 10, "dB"),
        Field("LAFmax", "H", 10, "dB"),
    ),
    (0x05, 0xCC): (Field("periodic_counter_in", "H"), Field("periodic_counter_out", "H")),
    (0x03, 0xD2): (Field("total_counter_in", "I"),),
    (0x04, 0xD2): (Field("total_counter_out", "I"),),
    (0x84, 0xCC): (
        Field("total_in", "H"),
        Field("total_out", "H"),
        Field("total_count_alarm", "B", words=_RELEASE),
    ),
    (0x85, 0xCE): (
        Field("period_in", "H"),
        Field("period_out", "H"),
        Field("period_count_alarm", "B", words=_RELEASE),
    ),
    (0x85, 0xCC): (
        Field("period_in", "H"),
        Field("period_out", "H"),
        Field("period_count_alarm", "B", words=_RELEASE),
    ),
    (0x07, 0xD5): tuple(Field(f"region_{number}_count", "B") for number in range(1, 9)),
    (0x08, 0xD5): tuple(Field(f"region_{number}_count", "B") for number in range(9, 17)),
    (0x85, 0xE1): (
        Field("water_conv", "H", 10),
        Field("pulse_conv", "H", 10),
        Field("water", "f"),
        Field("water_alarm", "B", words=_WATER),
    ),
    (0x04, 0x88): (
        Field("latitude", "i", 1e6, "deg"),
        Field("longitude", "i", 1e6, "deg"),
        Field("position_status", "B"),
    ),
    (0xFF, 0x2E): (Field("press", "B", words={1: "short", 2: "long", 3: "double"}),),
}
"""What a channel means, where it means the same on every sensor that has it."""

_AM: Mapping[Key, Layout] = {(0x05, 0x00): (Field("pir", _DIGITAL, words=_PIR),)}
_POSITION: Mapping[Key, Layout] = {
    (channel, 0x00): (Field("position", _DIGITAL, words=_TILT),) for channel in (4, 5)
}
_LINES: Mapping[Key, Layout] = {
    (channel, 0xD2): (Field(f"line_{line}_total_{way}", "I"),)
    for line, first in ((1, 3), (2, 6), (3, 9), (4, 12))
    for channel, way in ((first, "in"), (first + 1, "out"))
}
MODELS: dict[str, Mapping[Key, Layout]] = {
    "AM307": _AM,
    "AM308": _AM,
    "AM319": _AM,
    "AT101": _POSITION,
    "EM300-CL": {
        (3, 0xED): (
            Field(
                "liquid", "B", words={0: "uncalibrated", 1: "full", 2: "critical", 0xFF: "error"}
            ),
        )
    },
    "EM300-MCS": {(6, 0x00): (Field("magnet_status", _DIGITAL, words=_OPEN),)},
    "EM300-MLD": {(5, 0x00): (Field("leakage_status", _DIGITAL, words=_LEAK),)},
    "EM300-SLD": {(5, 0x00): (Field("leakage_status", _DIGITAL, words=_LEAK),)},
    "EM310-UDL": _POSITION,
    "EM400": _POSITION,
    "EM500-SMTC": {(4, 0x68): (Field("moisture", "B", 2, PERCENT),)},
    "GS301": {
        (4, 0x7D): (Field("nh3", "H", 100, "[ppm]"),),
        (5, 0x7D): (Field("h2s", "H", 100, "[ppm]"),),
    },
    "GS101": {
        (5, 0x8E): (Field("state", "B", words={0: "normal", 1: "alarm"}),),
        (6, 0x01): (Field("valve", "B", words=_SWITCH),),
        (7, 0x01): (Field("relay", "B", words=_SWITCH),),
    },
    "VS133": _LINES,
    "VS330": {
        (3, 0x8E): (Field("occupancy", "B", words=_OCCUPIED),),
        (4, 0x8E): (Field("calibration", "B", words={0: "failed", 1: "success"}),),
    },
    "VS34": {(3, 0x00): (Field("occupancy", _DIGITAL, words=_OCCUPIED),)},
    "WS202": {
        (3, 0x00): (Field("pir", _DIGITAL, words=_PIR),),
        (4, 0x00): (Field("daylight", _DIGITAL, words={0: "dark", 1: "light"}),),
    },
    "WS301": {
        (3, 0x00): (Field("magnet_status", _DIGITAL, words=_OPEN),),
        (4, 0x00): (Field("tamper_status", _DIGITAL, words={0: "installed", 1: "uninstalled"}),),
    },
    "WS303": {(3, 0x00): (Field("leakage_status", _DIGITAL, words=_LEAK),)},
}
"""What a channel means on one model; a name stands for all models that begin so."""

ATTRIBUTES = {
    0x01: 1,
    0x08: 6,
    0x09: 2,
    0x0A: 2,
    0x0B: 1,
    0x0F: 1,
    0x16: 8,
    0x1F: 4,
    0xFE: 1,
    0xFF: 2,
}
"""Channel 0xFF says what the sensor is: type → bytes, which are passed over."""

_WIFI, _WIFI_BYTES = (0x06, 0xD9), 9

CAYENNE: dict[int, Layout] = {
    0x00: (Field("digital_input", "B"),),
    0x01: (Field("digital_output", "B"),),
    0x02: (Field("analog_input", "h", 100),),
    0x03: (Field("analog_output", "h", 100),),
    0x65: (Field("illumination", "H", 1, "lx"),),
    0x66: (Field("presence", "B"),),
    0x67: (Field("temperature", "h", 10, CELSIUS),),
    0x68: (Field("humidity", "B", 2, PERCENT),),
    0x71: tuple(Field(f"acceleration_{axis}", "h", 1_000, "[g]") for axis in "xyz"),
    0x73: (Field("pressure", "H", 10, "hPa"),),
    0x86: tuple(Field(f"rotation_{axis}", "h", 100, "deg/s") for axis in "xyz"),
}
"""Type → value; a channel is only a number."""
_CAYENNE_GPS, _CAYENNE_GPS_BYTES = 0x88, 9


def _packed(table: Mapping[Any, Layout], order: str = "<") -> dict[Any, tuple[Struct, Layout]]:
    return {
        key: (Struct(order + "".join(one.form for one in fields)), fields)
        for key, fields in table.items()
    }


_MILESIGHT = _packed(MILESIGHT)
_OF_MODEL = {name: {**_MILESIGHT, **_packed(table)} for name, table in MODELS.items()}
_CAYENNE = _packed(CAYENNE, ">")


def model_of(*said: Any) -> str | None:
    """The model of Milesight that one of these names speaks of.

    Returns:
        A key of `MODELS`; empty for a sensor of Milesight that needs none; None for any other.
    """
    found = None
    for name in said:
        if not isinstance(name, str):
            continue
        upper = name[:256].upper().replace("_", "-")
        for model in MODELS:
            if model in upper:
                return model
        if _MAKER.search(upper):
            found = ""
    return found


def decode(payload: bytes, port: int | None, model: str | None) -> tuple[list[Measure], bytes]:
    """Measurements of a payload and the rest of it that is not understood.

    Sensors of Milesight are known by their name, or by port 85, to which nothing else is bound; a
    payload on another port is taken for Cayenne LPP only if it is so to its last byte.
    """
    if model is not None or port == MILESIGHT_PORT:
        return _milesight(payload, _OF_MODEL.get(model or "", _MILESIGHT))
    found = _cayenne(payload)
    return (found, b"") if found else ([], payload)


def _milesight(
    payload: bytes, table: Mapping[Any, tuple[Struct, Layout]]
) -> tuple[list[Measure], bytes]:
    found: list[Measure] = []
    at = 0
    while len(payload) >= at + 2 and len(found) < MEASURES_MAX:
        key = payload[at], payload[at + 1]
        known = table.get(key)
        if known is None:
            size = _passed(key)
            if size is None and key[1] == 0x00 and len(payload) > at + 2:
                found.append(Measure(f"digital_{key[0]}", float(payload[at + 2])))
                size = 1
            if size is None or len(payload) < at + 2 + size:
                break
            at += 2 + size
            continue
        layout, fields = known
        if len(payload) < at + 2 + layout.size:
            break
        values = layout.unpack_from(payload, at + 2)
        for field, value in zip(fields, values, strict=True):
            found += _measure(field, value)
        at += 2 + layout.size
    return found, payload[at:]


def _passed(key: Key) -> int | None:
    """How many bytes of a channel are no measurement."""
    if key == _WIFI:
        return _WIFI_BYTES
    return ATTRIBUTES.get(key[1]) if key[0] == 0xFF else None


def _measure(field: Field, value: Any) -> Iterator[Measure]:
    if field.words is not None:
        if not field.bits:
            yield Measure(field.name, field.words.get(value, f"unknown {value}"))
        for place, name in enumerate(field.bits):
            yield Measure(name, field.words[value >> place & 1])
        return
    # A float of four bytes has seven digits.
    number = float(f"{value / field.scale:.7g}") if field.form == "f" else value / field.scale
    if value == field.bad or not math.isfinite(number):
        yield Measure(field.name, "unreadable")
        return
    yield Measure(field.name, round(number, 6), field.unit)


def _cayenne(payload: bytes) -> list[Measure]:
    """All of it, or nothing: a byte string is easily taken for what it is not."""
    found: list[Measure] = []
    at = 0
    while at + 2 < len(payload):
        channel, kind = payload[at], payload[at + 1]
        at += 2
        if kind == _CAYENNE_GPS:
            raw = payload[at : at + _CAYENNE_GPS_BYTES]
            if len(raw) < _CAYENNE_GPS_BYTES:
                return []
            for name, begin, scale, unit in (
                *(("latitude", 0, 1e4, "deg"), ("longitude", 3, 1e4, "deg")),
                ("altitude", 6, 100, "m"),
            ):
                number = int.from_bytes(raw[begin : begin + 3], "big", signed=True) / scale
                found.append(Measure(f"{name}_{channel}", number, unit))
            at += _CAYENNE_GPS_BYTES
            continue
        known = _CAYENNE.get(kind)
        if known is None or len(payload) < at + known[0].size:
            return []
        for field, value in zip(known[1], known[0].unpack_from(payload, at), strict=True):
            for one in _measure(field, value):
                found.append(one._replace(name=f"{one.name}_{channel}"))
        at += known[0].size
    return found if at == len(payload) else []
