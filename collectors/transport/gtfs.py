"""Public transport in real time: GTFS-realtime feeds, one poll answer or file a record.

Send: let the node ask the feed (`reader = "http"`, `url` of the feed,
`collector = "gtfs-realtime"`), or read files of it (`reader = "folder"`).

Understood: trip updates with delays, vehicle positions with speed and course, service alerts with
cause and effect, cancelled trips.

Not understood: extensions of single operators (NYCT, MTA).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from google.transit import gtfs_realtime_pb2 as gtfs

from cityward import Event, LogSource, Record, collector
from collectors.values import LONG_MAX, clean, moment, place, real

TRIPS = LogSource(category="public_transport", service="gtfs_realtime")
POSITIONS = LogSource(category="positioning", service="avl")


def looks_like_gtfs(head: bytes) -> bool:
    """A FeedMessage begins with its header, and that with its version."""
    # Field 1 as a message of at most 127 bytes; in it field 1 as text: `1.0`, `2.0` …
    return (
        len(head) > 8
        and head[0] == 0x0A
        and 5 <= head[1] <= 127
        and head[2:4] == b"\x0a\x03"
        and head[4:5].isdigit()
        and head[5:6] == b"."
        and head[6:7].isdigit()
    )


@collector(TRIPS, framing="document", looks_like=looks_like_gtfs, strength=60)
def gtfs_realtime(records: Iterable[Record]) -> Iterator[Event]:
    """Read feeds: one event a trip update, a vehicle and an alert.

    References:
        GTFS Realtime reference 2.0 (gtfs.org); time is POSIX seconds.
    """
    for record in records:
        feed = gtfs.FeedMessage()
        try:
            feed.ParseFromString(record.data)
        except (DecodeError, ValueError, RecursionError) as error:
            yield Event.malformed(record, TRIPS, why=f"no GTFS-realtime feed: {error}")
            continue
        number = 0
        for event in _events(feed, record):
            yield Event(event.time, event.logsource, event.fields, record, number)
            number += 1
        if not number:
            yield _empty(feed, record)


def _events(feed: Any, record: Record) -> Iterator[Event]:
    of_feed = _time(feed.header.timestamp)
    for entity in feed.entity:
        vendor = {"entity": _said(entity.id)}
        if entity.is_deleted:
            vendor["is_deleted"] = "true"
        if entity.HasField("trip_update"):
            fields, time = _trip_update(entity.trip_update, vendor)
            yield _event(TRIPS, fields, vendor, time or of_feed, record)
        if entity.HasField("vehicle"):
            fields, time = _vehicle(entity.vehicle, vendor)
            yield _event(POSITIONS, fields, vendor, time or of_feed, record)
        if entity.HasField("alert"):
            yield _event(TRIPS, _alert(entity.alert, vendor), vendor, of_feed, record)


def _event(
    logsource: LogSource,
    fields: dict[str, Any],
    vendor: dict[str, Any],
    time: datetime | None,
    record: Record,
) -> Event:
    own = {
        **fields,
        "cw.time_source": "collector" if time is None else "source",
        "cw.vendor": dict(vendor),
    }
    return Event(time or record.received, logsource, own, record)


def _empty(feed: Any, record: Record) -> Event:
    """A feed without an entity is news, too: nothing runs, or the feed is broken."""
    time = _time(feed.header.timestamp)
    fields = {
        "event.kind": "state",
        "event.action": "feed_empty",
        "event.dataset": "gtfs_realtime.feed",
        "cw.domain": ["availability"],
        "cw.time_source": "source" if time else "collector",
    }
    return Event(time or record.received, TRIPS, fields, record)


def _time(epoch_s: int) -> datetime | None:
    return moment(epoch_s) if 0 < epoch_s <= LONG_MAX else None


def _trip(trip: Any, vendor: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if trip.trip_id:
        fields["ot.trip.id"] = _said(trip.trip_id)
    if trip.route_id:
        fields["ot.trip.route"] = _said(trip.route_id)
    for name in ("start_date", "start_time"):
        if value := getattr(trip, name):
            vendor[name] = _said(value)
    if trip.HasField("direction_id"):
        vendor["direction_id"] = trip.direction_id
    if trip.HasField("schedule_relationship"):
        vendor["schedule_relationship"] = _name(
            gtfs.TripDescriptor.ScheduleRelationship, trip.schedule_relationship
        )
    return fields


def _trip_update(update: Any, vendor: dict[str, Any]) -> tuple[dict[str, Any], datetime | None]:
    fields = {
        "event.kind": "state",
        "event.action": "trip_update",
        "event.dataset": "gtfs_realtime.trip_update",
        "cw.domain": ["availability"],
        **_trip(update.trip, vendor),
    }
    if update.vehicle.id:
        fields["phys.track"] = _said(update.vehicle.id)
    stops = update.stop_time_update
    vendor["stop_time_updates"] = len(stops)
    if stops:
        vendor["first_stop"], vendor["last_stop"] = (
            _said(stops[0].stop_id),
            _said(stops[-1].stop_id),
        )
    delay = _delay(update)
    if delay is not None:
        fields["ot.trip.delay_s"] = delay
    if vendor.get("schedule_relationship") in ("CANCELED", "DELETED"):
        fields["event.action"] = "trip_cancelled"
    return fields, _time(update.timestamp)


def _delay(update: Any) -> int | None:
    """Delay at the last stop for which one is known, s; else that of the whole trip."""
    for stop in reversed(update.stop_time_update):
        for end in ("departure", "arrival"):
            if stop.HasField(end) and getattr(stop, end).HasField("delay"):
                return int(getattr(stop, end).delay)
    return int(update.delay) if update.HasField("delay") else None


def _vehicle(vehicle: Any, vendor: dict[str, Any]) -> tuple[dict[str, Any], datetime | None]:
    fields = {
        "event.kind": "state",
        "event.category": ["positioning"],
        "event.action": "vehicle_position",
        "event.dataset": "gtfs_realtime.vehicle_position",
        "cw.domain": ["physical"],
        **_trip(vehicle.trip, vendor),
    }
    if track := vehicle.vehicle.id or vehicle.vehicle.label:
        fields["phys.track"] = _said(track)
    if vehicle.stop_id:
        vendor["stop"] = _said(vehicle.stop_id)
    for name, kind in (
        ("current_status", gtfs.VehiclePosition.VehicleStopStatus),
        ("congestion_level", gtfs.VehiclePosition.CongestionLevel),
        ("occupancy_status", gtfs.VehiclePosition.OccupancyStatus),
    ):
        if vehicle.HasField(name):
            vendor[name] = _name(kind, getattr(vehicle, name))
    if vehicle.HasField("position"):
        fields.update(_position(vehicle.position, vendor))
    return fields, _time(vehicle.timestamp)


def _position(position: Any, vendor: dict[str, Any]) -> dict[str, Any]:
    where = place(position.latitude, position.longitude)
    if where is None:
        vendor["latitude"], vendor["longitude"] = str(position.latitude), str(position.longitude)
        return {
            "event.outcome": "failure",
            "event.reason": "position outside WGS 84",
            "phys.quality": "bad",
        }
    found: dict[str, Any] = {"phys.position": where}
    for name, field, limit in (("speed", "phys.speed", 1e4), ("bearing", "phys.course", 360)):
        if position.HasField(name):
            value = real(getattr(position, name))
            if value is not None and 0 <= value <= limit:
                found[field] = round(value, 3)
            else:
                vendor[name] = str(getattr(position, name))
    return found


def _alert(alert: Any, vendor: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "event.kind": "alert",
        "event.action": "service_alert",
        "event.dataset": "gtfs_realtime.alert",
        "cw.domain": ["availability"],
    }
    for informed in alert.informed_entity[:1]:
        fields.update(_trip(informed.trip, vendor))
        if informed.route_id:
            fields["ot.trip.route"] = _said(informed.route_id)
        if informed.stop_id:
            vendor["stop"] = _said(informed.stop_id)
    vendor["informed_entities"] = len(alert.informed_entity)
    if alert.HasField("cause"):
        vendor["cause"] = _name(gtfs.Alert.Cause, alert.cause)
    if alert.HasField("effect"):
        vendor["effect"] = _name(gtfs.Alert.Effect, alert.effect)
    for translation in alert.header_text.translation[:1]:
        fields["message"] = _said(translation.text)
    for translation in alert.description_text.translation[:1]:
        vendor["description"] = _said(translation.text)
    return fields


def _said(value: str | bytes) -> str:
    """Text of a feed; where it is no UTF-8 the library gives the bytes."""
    return clean(value if isinstance(value, str) else value.decode("utf-8", "backslashreplace"))


def _name(kind: Any, value: int) -> str:
    return str(kind.Name(value)) if value in kind.values() else str(value)
