"""Ships: AIS sentences of receivers and national streams, one event a message.

Send: let the receiver or the stream write NMEA 0183 datagrams to the node (`reader = "udp"`,
`collector = "ais"`), or read its file (`reader = "file"`). Let it add tag blocks with a time
(`c:`): without a clock no jumps are seen.

Understood: VDM and VDO of every talker, of one to nine parts, with tag blocks and the `$PGHP` lines
of Gatehouse; positions (classes A and B, aircraft, long range), names and voyages, base stations,
aids to navigation, safety texts, messages that steer transponders. Besides, as `phys.quality` and
`event.reason`: positions and speeds that cannot be, base stations' messages from ships; and as an
event of its own a track that jumps. Satellite receivers' sentences between them are read as by
`gnss`.

Not understood: most application data of messages 6, 8, 25 and 26 (kept as hexadecimal), positions
on land, ships that radar does not see.

References:
    ITU-R M.1371-5, annex 8; IEC 61162-1:2016, 8.3 (VDM, VDO); IALA guideline 1082; decoded by
    pyais.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from pyais import decode
from pyais.exceptions import AISBaseException, MissingPayloadException

from cityward import Event, LogSource, Record, collector
from collectors.port.gnss import Gnss
from collectors.port.nmea import (
    KNOT,
    Sentence,
    comment,
    distance_m,
    each_line,
    first_lines,
    sentence,
)
from collectors.values import place, real, scalar

AIS = LogSource(category="positioning", service="ais")

PENDING_MAX = 256
"""How many messages of several parts are awaited at once."""
TRACKS_MAX = 50_000
"""Of how many ships the last position is remembered; the sea around Denmark has 5 000."""
JUMP_M = 2_000.0
SHIP_M_S, AIRCRAFT_M_S = 60.0, 300.0
"""Faster than the fastest ferry, or a rescue aircraft."""
FASTEST_KN = 102.2
"""Told by a ship for this speed and any above."""

ACTIONS = {
    1: "ais_position",
    2: "ais_position",
    3: "ais_position",
    4: "ais_base_station",
    5: "ais_static",
    6: "ais_addressed_data",
    7: "ais_acknowledge",
    8: "ais_broadcast_data",
    9: "ais_aircraft_position",
    10: "ais_time_inquiry",
    11: "ais_time_answer",
    12: "ais_safety_message",
    13: "ais_safety_acknowledge",
    14: "ais_safety_broadcast",
    15: "ais_interrogation",
    16: "ais_assignment",
    17: "ais_gnss_correction",
    18: "ais_position",
    19: "ais_position",
    20: "ais_link_management",
    21: "ais_aid_to_navigation",
    22: "ais_channel_management",
    23: "ais_group_assignment",
    24: "ais_static",
    25: "ais_binary",
    26: "ais_binary",
    27: "ais_position",
}
BITS = {
    **dict.fromkeys((1, 2, 3, 4, 9, 11, 18), 168),
    **{5: 420, 19: 306, 21: 268, 24: 156, 27: 94},
}
"""Below this a message is cut short; the last few bits are spare or filled."""
OF_BASE = frozenset((4, 16, 17, 20, 22, 23))
"""Only stations on land may send these: MMSI 00… or, beside marks at sea, 99… (ITU-R M.585)."""
OF_SHIPS = frozenset((1, 2, 3, 9, 18, 19, 27))
"""Positions of what moves; one MMSI for all base stations of a coast is usual."""
GNSS_CORRECTION = 17
NOBODY = frozenset(("123456789", *(f"{digit}" * 9 for digit in range(10))))
"""MMSI that transponders have when nobody has given them one."""
NO_SPEED = {9: 1_023.0, 27: 63.0}
"""Stands for "not available"; elsewhere 102.3 knots."""
NAMED = ("status", "ship_type", "epfd", "aid_type", "station_type", "maneuver")
OWN = frozenset(("lat", "lon", "mmsi", "course"))
DEFECTS = (AISBaseException, ValueError, TypeError, KeyError, IndexError, AttributeError)
"""What pyais raises when bits mean nothing."""


def looks_like_ais(head: bytes) -> bool:
    """Sentences, some of which are AIS."""
    lines = first_lines(head)
    framed = [line for line in lines if line[:1] in b"!$\\" and b"," in line]
    return len(framed) * 2 > len(lines) and any(map(_is_ais, framed))


def _is_ais(line: bytes) -> bool:
    said = line.rpartition(b"!")[2]
    return b"!" in line and said[2:6] in (b"VDM,", b"VDO,")


@collector(AIS, looks_like=looks_like_ais, strength=80)
class Ais:
    """Read sentences; parts of messages, and the last position of each track, are remembered."""

    def __init__(self) -> None:
        self._gnss = Gnss()
        self._parts: dict[tuple[str, ...], dict[int, bytes]] = {}
        self._tracks: dict[str, tuple[datetime, tuple[float, float]]] = {}
        self._stamp: tuple[datetime | None, str] = (None, "")
        """Time and station that a `$PGHP` line says of the message behind it."""

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """One event a sentence: a message, a part of one, or what stands between them."""
        for record in records:
            yield from each_line(record, AIS, self._read)

    def _read(self, line: bytes, record: Record) -> list[Event]:
        if line[:1] == b"#":
            return [comment(line, record, AIS, "ais.comment")]
        said = sentence(line)
        if said.kind in ("VDM", "VDO"):
            return self._heard(said, record)
        if said.kind == "GHP":
            return [self._stamped(said, record)]
        return self._gnss.events(said, record)

    # ---- Sentences

    def _stamped(self, said: Sentence, record: Record) -> Event:
        """`$PGHP,1,year,month,day,hour,minute,second,ms,country,region,station,online,checksum`."""
        try:
            year, month, day, hour, minute, second, ms = map(int, said.values[1:8])
            time = datetime(year, month, day, hour, minute, second, ms * 1_000, tzinfo=UTC)
        except (ValueError, OverflowError):
            raise ValueError("a $PGHP line without a time") from None
        names = ("country", "region", "station", "online")
        vendor = {
            name: scalar(value)
            for name, value in zip(names, said.values[8:12], strict=False)
            if value
        }
        self._stamp = (time, str(vendor.get("station") or vendor.get("region") or ""))
        fields = {
            "event.kind": "state",
            "event.category": ["positioning"],
            "event.action": "ais_reception",
            "event.dataset": "ais.reception",
            "cw.vendor": vendor,
        }
        return Event(time, AIS, fields, record)

    def _heard(self, said: Sentence, record: Record) -> list[Event]:
        time, station = self._stamp
        time, station = said.time or time, said.station or station
        if len(said.values) != 6:
            raise ValueError(f"{len(said.values)} values where {said.kind} has 6")
        total, part = _small(said.values[0]), _small(said.values[1])
        if not 1 <= part <= total:
            raise ValueError(f"part {part} of {total}")
        about: dict[str, Any] = {"talker": said.talker, "channel": said.values[3]}
        if station:
            about["station"] = scalar(station)
        if said.kind == "VDO":
            about["own_ship"] = True
        whole, reason = [said.raw], ""
        if total > 1:
            key = (station, said.talker, said.kind, said.values[2], str(total))
            found, reason = self._gather(key, part, total, said.raw)
            if found is None:
                return [_part(part, total, reason, about, time, record)]
            whole = found
        self._stamp = (None, "")
        return self._message(whole, about, reason, time, record)

    def _gather(
        self, key: tuple[str, ...], part: int, total: int, raw: bytes
    ) -> tuple[list[bytes] | None, str]:
        """The parts of a message if this is its last one, and what is wrong with it."""
        parts, reason = self._parts.pop(key, {}), ""
        if part in parts:
            parts, reason = {}, "the message before it was not completed"
        parts[part] = raw
        if len(parts) == total:
            return [parts[one] for one in sorted(parts)], reason
        self._parts[key] = parts
        if len(self._parts) > PENDING_MAX:
            del self._parts[next(iter(self._parts))]
            reason = reason or "too many messages are incomplete; the oldest is given up"
        return None, reason

    # ---- Messages

    def _message(
        self,
        whole: list[bytes],
        about: dict[str, Any],
        reason: str,
        time: datetime | None,
        record: Record,
    ) -> list[Event]:
        try:
            values: dict[str, Any] = dict(decode(*whole).asdict())
        except MissingPayloadException:
            raise ValueError("an AIS message without content") from None
        except DEFECTS as error:
            raise ValueError(f"no AIS message: {error}"[:200]) from None
        kind = values["msg_type"]
        bits = _bits(whole)
        if bits < BITS.get(kind, 40) or values.get("mmsi") is None or kind not in ACTIONS:
            raise ValueError(f"an AIS message {kind} of {bits} bits is cut short")
        track = f"{values['mmsi']:09d}"
        fields: dict[str, Any] = {
            "event.kind": "state",
            "event.category": ["positioning"],
            "event.action": ACTIONS[kind],
            "event.dataset": "ais.message",
            "cw.domain": ["physical"],
            "phys.track": track,
            "phys.quality": "good",
            "cw.vendor": {**about, **_vendor(values)},
        }
        if time is None:
            fields["cw.time_source"] = "collector"
        if isinstance(text := values.get("text"), str) and text:
            fields["message"] = text
        where = _place(values, fields)
        identity = list(_identity(kind, track))
        if identity and fields["phys.quality"] == "good":
            fields["phys.quality"] = "uncertain"
        if wrong := list(_move(kind, values, fields)):
            fields["phys.quality"] = "bad"
        if said := [*_already(fields), *wrong, *identity, *([reason] if reason else [])]:
            fields["event.reason"] = "; ".join(said)
        found = [Event(time or record.received, AIS, fields, record)]
        moves = kind in OF_SHIPS and not identity
        if moves and where and time and (jump := self._moved(track, time, where)):
            found.append(Event(time, AIS, jump, record, 1))
        return found

    def _moved(
        self, track: str, time: datetime, where: tuple[float, float]
    ) -> dict[str, Any] | None:
        """Remember where a track is, and tell when it got there as nothing gets there."""
        before = self._tracks.pop(track, None)
        self._tracks[track] = (time, where)
        if len(self._tracks) > TRACKS_MAX:
            del self._tracks[next(iter(self._tracks))]
        if before is None:
            return None
        far = distance_m(before[1], where)
        took_s = max(1.0, abs((time - before[0]).total_seconds()))
        limit = AIRCRAFT_M_S if track.startswith("111") else SHIP_M_S
        if far <= JUMP_M or far / took_s <= limit:
            return None
        return {
            "event.kind": "alert",
            "event.category": ["positioning"],
            "event.action": "ais_jump",
            "event.reason": f"{far:,.0f} m in {took_s:,.0f} s",
            "event.dataset": "ais.watch",
            "cw.domain": ["physical", "cyber"],
            "phys.track": track,
            "phys.position": place(*where),
            "phys.speed": round(far / took_s, 1),
            "phys.reading": round(far, 1),
            "phys.quantity": "jump",
            "phys.unit": "m",
            "phys.quality": "bad",
            "cw.vendor": {"position_before": place(*before[1]), "seconds": took_s},
        }


def _part(
    part: int,
    total: int,
    reason: str,
    about: dict[str, Any],
    time: datetime | None,
    record: Record,
) -> Event:
    """A part of a message that is not whole yet; the event of the whole stands at its last part."""
    fields = {
        "event.kind": "event",
        "event.category": ["positioning"],
        "event.action": "ais_part",
        "event.dataset": "ais.part",
        "cw.vendor": {**about, "part": part, "parts": total},
    }
    if reason:
        fields["event.reason"] = reason
    if time is None:
        fields["cw.time_source"] = "collector"
    return Event(time or record.received, AIS, fields, record)


def _small(said: str) -> int:
    if len(said) != 1 or said not in "123456789":
        raise ValueError(f"a number of parts that is none: {said[:8]!r}")
    return int(said)


def _bits(whole: list[bytes]) -> int:
    """Six bits a character, without those that only fill the last one."""
    payloads = [raw.split(b",") for raw in whole]
    fill = payloads[-1][6][:1]
    return 6 * sum(len(one[5]) for one in payloads) - (int(fill) if fill.isdigit() else 0)


def _vendor(values: dict[str, Any]) -> dict[str, Any]:
    """All that has no field of ours; codes as numbers, with their names beside."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if value is None or name in OWN or name.startswith("spare"):
            continue
        if isinstance(value, bytes):
            found[name] = value.hex()
        elif isinstance(value, Enum):
            found[name] = scalar(value.value)
            if name in NAMED:
                found[f"{name}_name"] = value.name
        else:
            found[name] = scalar(value)
    return found


def _already(fields: dict[str, Any]) -> list[str]:
    return [fields["event.reason"]] if "event.reason" in fields else []


def _place(values: dict[str, Any], fields: dict[str, Any]) -> tuple[float, float] | None:
    """Put the position; 91, 181 say that the ship does not know it."""
    north, east = real(values.get("lat")), real(values.get("lon"))
    if north is None or east is None:
        return None
    if values["msg_type"] == GNSS_CORRECTION:
        # Its positions are in tenths of a minute; pyais 3.3 divides by ten only.
        north, east = north / 60, east / 60
    spot = place(north, east)
    if spot:
        fields["phys.position"] = spot
        return north, east
    if round(north, 1) == 91 or round(abs(east), 1) == 181:
        fields["phys.quality"] = "uncertain"
        fields["event.reason"] = "the sender does not know its position"
    else:
        fields["phys.quality"] = "bad"
        fields["event.reason"] = f"position outside WGS 84: {north}, {east}"
    return None


def _move(kind: int, values: dict[str, Any], fields: dict[str, Any]) -> Iterator[str]:
    """Put speed and course; tell what cannot be."""
    speed, course = real(values.get("speed")), real(values.get("course"))
    if speed is not None and speed < NO_SPEED.get(kind, 102.3):
        fields["phys.speed"] = round(speed * KNOT, 3)
        if kind != 9 and speed >= FASTEST_KN:
            yield f"speed of {speed} knots or more"
    if course is not None and 0 <= course < 360:
        fields["phys.course"] = course
    elif course is not None and 360 < course < 511:
        yield f"course of {course}°"


def _identity(kind: int, track: str) -> Iterator[str]:
    """MMSI that nobody has (ITU-R M.585-9), and messages that only stations on land may send."""
    if track in NOBODY or len(track) > 9:
        yield f"MMSI {track} is nobody's"
    elif kind in OF_BASE and not track.startswith(("00", "99")):
        yield f"a base station's message {kind} from MMSI {track}"
