"""Satellite receivers: NMEA 0183 sentences with position, time and what they are worth.

Send: let the receiver, or a serial server before it, write its sentences as datagrams to the node
(`reader = "udp"`, `collector = "gnss"`), or read its file (`reader = "file"`).

Understood: RMC, GGA, GLL (position), VTG (speed), ZDA (time), GSA, GSV (satellites), GST, GBS
(errors), TXT, with every talker, checksum and tag block, one event a sentence. Besides, each an
event of its own: the position jumps farther than anything drives, the time jumps, the fix is lost
or found again.

Not understood: other sentences and makers' own; they become events with their values as text. A
spoofer that leads a receiver away slowly is not seen here.

References:
    IEC 61162-1:2016, 8.3; u-blox M9 SPG 4.04 interface description, "NMEA protocol".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.port.nmea import (
    KNOT,
    Sentence,
    comment,
    distance_m,
    each_line,
    first_lines,
    sentence,
)
from collectors.values import clean, place, real

GNSS = LogSource(category="positioning", service="gnss")

RECEIVERS_MAX = 256
"""Of how many receivers of one source the last fix is remembered."""
JUMP_M, JUMP_M_S = 500.0, 120.0
"""Farther and faster than this no ship, train or bus moves between two fixes."""
BACK, AHEAD = timedelta(seconds=-1), timedelta(hours=1)
"""A receiver's time may step so far; GNSS week rollovers and spoofers step farther."""
HALF_DAY = timedelta(hours=12)

SYSTEMS = {
    "GP": "gps",
    "GL": "glonass",
    "GA": "galileo",
    "GB": "beidou",
    "BD": "beidou",
    "GQ": "qzss",
    "GI": "navic",
    "GN": "combined",
}
FIXES = {
    "0": "none",
    "1": "autonomous",
    "2": "differential",
    "3": "precise",
    "4": "rtk",
    "5": "rtk_float",
    "6": "estimated",
    "7": "manual",
    "8": "simulator",
}
"""GGA, quality indicator."""
MODES = {
    "A": "autonomous",
    "D": "differential",
    "E": "estimated",
    "F": "rtk_float",
    "M": "manual",
    "N": "none",
    "P": "precise",
    "R": "rtk",
    "S": "simulator",
}
"""RMC, GLL, VTG, mode indicator."""
WORTH = {"none": "bad", "estimated": "uncertain", "manual": "substituted", "simulator": "bad"}
"""Of a fix; any other is good."""

ACTIONS = {
    "RMC": "gnss_position",
    "GGA": "gnss_position",
    "GLL": "gnss_position",
    "VTG": "gnss_speed",
    "ZDA": "gnss_time",
    "GSA": "gnss_satellites_used",
    "GSV": "gnss_satellites_in_view",
    "GST": "gnss_error_statistics",
    "GBS": "gnss_integrity",
    "TXT": "gnss_message",
}
NAMES: dict[str, tuple[str, ...]] = {
    "GSA": (
        *("selection", "dimensions", *(f"satellite_{one}" for one in range(1, 13))),
        *("pdop", "hdop", "vdop", "system_id"),
    ),
    "GST": (
        *("", "rms_m", "major_m", "minor_m", "orientation"),
        *("latitude_error_m", "longitude_error_m", "altitude_error_m"),
    ),
    "GBS": (
        *("", "latitude_error_m", "longitude_error_m", "altitude_error_m", "failed_satellite"),
        *("missed_probability", "bias_m", "bias_error_m", "system_id", "signal_id"),
    ),
    "GSV": ("parts", "part", "in_view"),
    "ZDA": ("", "day", "month", "year", "zone_hours", "zone_minutes"),
    "TXT": ("parts", "part", "identifier"),
}
"""What the values mean, in order; empty: told elsewhere."""


class _Receiver:
    """What is remembered of one receiver."""

    __slots__ = ("day", "fixed", "time", "when", "where")

    def __init__(self) -> None:
        self.day: date | None = None
        self.time: datetime | None = None
        self.fixed: bool | None = None
        self.where: tuple[float, float] | None = None
        self.when: datetime | None = None


def looks_like_gnss(head: bytes) -> bool:
    """Most of the first lines are sentences of a satellite receiver."""
    lines = first_lines(head)
    hits = sum(line[:1] in b"$\\" and _of_receiver(line.rpartition(b"$")[2]) for line in lines)
    return bool(lines) and hits * 2 > len(lines)


def _of_receiver(said: bytes) -> bool:
    return said[:2].decode("latin-1") in SYSTEMS and said[2:5].decode("latin-1") in ACTIONS


@collector(GNSS, looks_like=looks_like_gnss, strength=70)
class Gnss:
    """Read sentences; the last fix of each receiver is remembered, to see jumps."""

    def __init__(self) -> None:
        self._receivers: dict[str, _Receiver] = {}

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """One event a sentence, and one more for each jump."""
        for record in records:
            yield from each_line(record, GNSS, self._read)

    def _read(self, line: bytes, record: Record) -> list[Event]:
        if line[:1] == b"#":
            return [comment(line, record, GNSS, "nmea.comment")]
        return self.events(sentence(line), record)

    def events(self, said: Sentence, record: Record) -> list[Event]:
        """What a sentence says, and what it is against the one before."""
        receiver = self._of(said.station)
        try:
            fields, news = _READS.get(said.kind, _other)(said, receiver)
        except ValueError as error:
            return [Event.malformed(record, GNSS, why=f"{said.kind}: {error}")]
        time = receiver.time or said.time
        if time is None:
            fields["cw.time_source"] = "collector"
        found = [Event(time or record.received, GNSS, fields, record)]
        for number, one in enumerate(news, start=1):
            if said.station:
                one["phys.point"] = said.station
            found.append(Event(found[0].time, GNSS, {**_NEWS, **one}, record, number))
        return found

    def _of(self, station: str) -> _Receiver:
        receiver = self._receivers.get(station)
        if receiver is None:
            receiver = self._receivers[station] = _Receiver()
            if len(self._receivers) > RECEIVERS_MAX:
                del self._receivers[next(iter(self._receivers))]
        return receiver


Fields = dict[str, Any]
Read = tuple[Fields, list[Fields]]
_NEWS: Fields = {
    "event.kind": "alert",
    "event.category": ["positioning"],
    "event.dataset": "nmea.watch",
    "cw.domain": ["physical", "cyber"],
}


def _base(said: Sentence) -> Fields:
    vendor: Fields = {"talker": said.talker, "sentence": said.kind}
    if said.talker in SYSTEMS:
        vendor["system"] = SYSTEMS[said.talker]
    point = {"phys.point": said.station} if said.station else {}
    return {
        **point,
        "event.kind": "metric",
        "event.category": ["positioning"],
        "event.action": ACTIONS.get(said.kind, "nmea_sentence"),
        "event.dataset": "nmea.sentence",
        "cw.domain": ["physical"],
        "cw.vendor": vendor,
    }


def _value(said: Sentence, at: int) -> str:
    return said.values[at] if at < len(said.values) else ""


# ---- Positions


def _rmc(said: Sentence, receiver: _Receiver) -> Read:
    news = _tell_time(receiver, _value(said, 0), _day(_value(said, 8)))
    fields = _base(said)
    fields["event.kind"] = "state"
    if (knots := real(_value(said, 6))) is not None:
        fields["phys.speed"] = round(knots * KNOT, 3)
    _course(fields, _value(said, 7))
    fix = MODES.get(_value(said, 11), "autonomous") if _value(said, 1) == "A" else "none"
    return fields, news + _fix(fields, receiver, said.values[2:6], fix)


def _gga(said: Sentence, receiver: _Receiver) -> Read:
    news = _tell_time(receiver, _value(said, 0), None)
    fields = _base(said)
    fields["event.kind"] = "state"
    for at, name in ((6, "satellites"), (7, "hdop"), (8, "altitude_m"), (10, "geoid_m")):
        if (number := real(_value(said, at))) is not None:
            fields["cw.vendor"][name] = number
    fix = FIXES.get(_value(said, 5), "none")
    return fields, news + _fix(fields, receiver, said.values[1:5], fix)


def _gll(said: Sentence, receiver: _Receiver) -> Read:
    news = _tell_time(receiver, _value(said, 4), None)
    fields = _base(said)
    fields["event.kind"] = "state"
    fix = MODES.get(_value(said, 6), "autonomous") if _value(said, 5) == "A" else "none"
    return fields, news + _fix(fields, receiver, said.values[:4], fix)


def _fix(fields: Fields, receiver: _Receiver, said: list[str], fix: str) -> list[Fields]:
    """Say where the receiver is and what that is worth; news if it moved as nothing moves."""
    fields["cw.vendor"]["fix"] = fix
    fields["phys.quality"] = WORTH.get(fix, "good")
    where = _where(said)
    spot = place(*where) if where else None
    if spot:
        fields["phys.position"] = spot
    elif any(said):
        fix = "none"
        fields["phys.quality"] = "bad"
        fields["event.reason"] = f"no position: {clean(','.join(said))}"
    fixed = fix != "none" and spot is not None
    if not fixed:
        fields["event.action"] = "gnss_no_fix"
        fields.setdefault("event.reason", "the receiver has no fix")
    news = _moved(receiver, where) if fixed and where else []
    if receiver.fixed is not None and receiver.fixed != fixed:
        news.append({"event.action": "gnss_fix_found" if fixed else "gnss_fix_lost"})
        if not fixed and receiver.where:
            news[-1]["phys.position"] = place(*receiver.where)
    receiver.fixed = fixed
    if fixed:
        receiver.where, receiver.when = where, receiver.time
    return news


def _where(said: list[str]) -> tuple[float, float] | None:
    """Degrees from `ddmm.mm,N,dddmm.mm,E`."""
    if len(said) < 4:
        return None
    north, east = _degrees(said[0], said[1], "NS"), _degrees(said[2], said[3], "EW")
    return None if north is None or east is None else (north, east)


def _degrees(said: str, side: str, sides: str) -> float | None:
    value = real(said)
    if value is None or value < 0 or len(side) != 1 or side not in sides:
        return None
    whole, minutes = divmod(value, 100)
    if minutes >= 60:
        return None
    return (whole + minutes / 60) * (1 if side == sides[0] else -1)


def _moved(receiver: _Receiver, where: tuple[float, float]) -> list[Fields]:
    if receiver.where is None:
        return []
    far = distance_m(receiver.where, where)
    took_s = 1.0
    if receiver.time and receiver.when:
        took_s = max(1.0, abs((receiver.time - receiver.when).total_seconds()))
    if far <= JUMP_M or far / took_s <= JUMP_M_S:
        return []
    return [
        {
            "event.action": "gnss_jump",
            "event.reason": f"{far:,.0f} m in {took_s:,.0f} s",
            "phys.position": place(*where),
            "phys.speed": round(far / took_s, 1),
            "phys.reading": round(far, 1),
            "phys.quantity": "jump",
            "phys.unit": "m",
            "phys.quality": "bad",
            "cw.vendor": {"position_before": place(*receiver.where), "seconds": took_s},
        }
    ]


# ---- Time


def _zda(said: Sentence, receiver: _Receiver) -> Read:
    day = _date(_value(said, 3), _value(said, 2), _value(said, 1))
    return _named(said), _tell_time(receiver, _value(said, 0), day)


def _day(said: str) -> date | None:
    """A date from `ddmmyy`."""
    if len(said) != 6:
        return None
    century = "19" if said[4:] >= "80" else "20"
    return _date(century + said[4:], said[2:4], said[:2])


def _date(year: str, month: str, day: str) -> date | None:
    if not all(part.isascii() and part.isdigit() and len(part) <= 4 for part in (year, month, day)):
        return None
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        return None


def _tell_time(receiver: _Receiver, clock: str, day: date | None) -> list[Fields]:
    """Set the receiver's time; news if it steps as time does not."""
    into = _into_day(clock)
    if into is None:
        return []
    before = receiver.time
    given = day or receiver.day
    if given is None or not 1980 <= given.year <= 9000:
        return []
    now = datetime(given.year, given.month, given.day, tzinfo=UTC) + into
    if day is None and before is not None:
        # A sentence without date, around midnight, belongs to the day that is nearer.
        if now - before > HALF_DAY:
            now -= timedelta(days=1)
        elif before - now > HALF_DAY:
            now += timedelta(days=1)
    receiver.day, receiver.time = now.date(), now
    if before is None or BACK <= now - before <= AHEAD:
        return []
    step_s = round((now - before).total_seconds(), 3)
    return [
        {
            "event.action": "gnss_time_jump",
            "event.reason": f"from {before:%Y-%m-%d %H:%M:%S} to {now:%Y-%m-%d %H:%M:%S}",
            "phys.reading": step_s,
            "phys.quantity": "time_step",
            "phys.unit": "s",
            "phys.quality": "bad",
        }
    ]


def _into_day(clock: str) -> timedelta | None:
    """Time of day from `hhmmss.ss`; 60 seconds are a leap second."""
    if len(clock) < 6 or not (clock[:6].isascii() and clock[:6].isdigit()):
        return None
    seconds = real(clock[4:])
    hours, minutes = int(clock[:2]), int(clock[2:4])
    if seconds is None or hours > 23 or minutes > 59 or not 0 <= seconds < 61:
        return None
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


# ---- The rest


def _vtg(said: Sentence, receiver: _Receiver) -> Read:
    fields = _base(said)
    _course(fields, _value(said, 0))
    if (knots := real(_value(said, 4))) is not None:
        fields["phys.speed"] = round(knots * KNOT, 3)
    fix = MODES.get(_value(said, 8), "autonomous")
    fields["phys.quality"] = WORTH.get(fix, "good")
    return fields, []


def _course(fields: Fields, said: str) -> None:
    course = real(said)
    if course is not None and 0 <= course <= 360:
        fields["phys.course"] = course


def _gsa(said: Sentence, receiver: _Receiver) -> Read:
    fields = _named(said)
    used = [one for one in said.values[2:14] if one]
    vendor = fields["cw.vendor"]
    fields["cw.vendor"] = {
        name: value for name, value in vendor.items() if not name.startswith("satellite_")
    }
    fields["cw.vendor"] |= {"used": len(used), "satellites": clean(" ".join(used))}
    fields["phys.quality"] = "good" if _value(said, 1) in ("2", "3") else "bad"
    return fields, []


def _gsv(said: Sentence, receiver: _Receiver) -> Read:
    """Four values a satellite – number, elevation, azimuth, carrier to noise – then the signal."""
    fields = _named(said)
    rows = [said.values[at : at + 4] for at in range(3, len(said.values) - 3, 4)]
    noise = [level for row in rows if (level := real(row[3])) is not None]
    vendor = fields["cw.vendor"]
    vendor["satellites"] = clean(" ".join("/".join(row) for row in rows))
    vendor["tracked"] = len(noise)
    if noise:
        vendor["strongest_dbhz"] = max(noise)
    return fields, []


def _gbs(said: Sentence, receiver: _Receiver) -> Read:
    _tell_time(receiver, _value(said, 0), None)
    fields = _named(said)
    failed = fields["cw.vendor"].get("failed_satellite")
    fields["phys.quality"] = "good" if failed is None else "uncertain"
    if failed is not None:
        fields["event.reason"] = f"satellite {failed} seems to be wrong"
    return fields, []


def _gst(said: Sentence, receiver: _Receiver) -> Read:
    return _named(said), _tell_time(receiver, _value(said, 0), None)


def _txt(said: Sentence, receiver: _Receiver) -> Read:
    fields = _named(said)
    fields["message"] = clean(",".join(said.values[3:])) or "(empty)"
    return fields, []


def _other(said: Sentence, receiver: _Receiver) -> Read:
    fields = _base(said)
    fields["event.kind"] = "event"
    fields["cw.vendor"]["values"] = clean(",".join(said.values))
    return fields, []


def _named(said: Sentence) -> Fields:
    fields = _base(said)
    vendor = fields["cw.vendor"]
    for name, value in zip(NAMES[said.kind], said.values, strict=False):
        if name and value:
            number = real(value)
            vendor[name] = clean(value) if number is None else number
    return fields


_READS = {
    "RMC": _rmc,
    "GGA": _gga,
    "GLL": _gll,
    "VTG": _vtg,
    "ZDA": _zda,
    "GSA": _gsa,
    "GSV": _gsv,
    "GST": _gst,
    "GBS": _gbs,
    "TXT": _txt,
}
