"""GTFS-realtime: trips, vehicles and alerts of real feeds."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest
from google.transit import gtfs_realtime_pb2 as gtfs

from cityward import Record
from collectors.transport.gtfs import gtfs_realtime

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def _read(data: bytes):
    return list(gtfs_realtime([Record(data, "s", 0, NOW)]))


def _feed() -> gtfs.FeedMessage:
    feed = gtfs.FeedMessage()
    feed.header.gtfs_realtime_version = "2.0"
    feed.header.timestamp = 1_700_000_000
    return feed


FEEDS = [
    # file, trip updates, vehicles, alerts, stop-time updates
    ("gtfsrt_nyct_subway_ace_1707397157.pb", (160, 160, 0, 2_862)),
    ("gtfsrt_nyct_subway_ace_1707397217.pb", (157, 157, 0, 2_835)),
    ("gtfsrt_wmata_bus_2345.pb", (324, 0, 0, 8_603)),
    ("gtfsrt_nyct_subway_with_alert.pb", (95, 64, 1, None)),
    ("gtfsrt_vehicle_positions_bullrunner.pb", (0, 10, 0, 0)),
]


@pytest.mark.parametrize(("name", "facts"), FEEDS, ids=[name for name, _ in FEEDS])
def test_every_entity_of_a_feed_is_an_event(data, name, facts):
    found = _read((data / "transport" / name).read_bytes())

    actions = Counter(event.fields["event.action"] for event in found)
    stops = sum(event.fields["cw.vendor"].get("stop_time_updates", 0) for event in found)
    counted = tuple(actions[one] for one in ("trip_update", "vehicle_position", "service_alert"))
    assert counted == facts[:3]
    assert len(found) == sum(facts[:3])
    assert facts[3] in (stops, None)
    assert [event.number for event in found] == list(range(len(found)))


def test_a_feed_without_times_of_its_own_has_that_of_its_header(data):
    found = _read((data / "transport/gtfsrt_vehicle_positions_bullrunner.pb").read_bytes())

    assert {event.time.timestamp() for event in found} == {1_505_314_375}
    assert {event.fields["phys.position"][:5] for event in found} <= {"28.05", "28.06"}
    assert {str(event.logsource) for event in found} == {"*/positioning/avl"}


def test_the_alert_says_what_it_is_about(data):
    found = _read((data / "transport/gtfsrt_nyct_subway_with_alert.pb").read_bytes())

    (alert,) = [event for event in found if event.fields["event.kind"] == "alert"]
    assert alert.fields["message"] == "Train delayed"
    assert alert.fields["ot.trip.route"] == "3"


def test_the_delay_is_that_of_the_last_stop_for_which_one_is_known():
    feed = _feed()
    trip = feed.entity.add(id="1").trip_update
    trip.trip.trip_id = "t"
    trip.delay = 5
    trip.stop_time_update.add(stop_id="a").departure.delay = 30
    trip.stop_time_update.add(stop_id="b").arrival.delay = -60
    trip.stop_time_update.add(stop_id="c").arrival.time = 1_700_000_100

    (event,) = _read(feed.SerializeToString())

    assert event.fields["ot.trip.delay_s"] == -60
    assert event.fields["cw.vendor"]["last_stop"] == "c"


@pytest.mark.parametrize(("latitude", "longitude"), [(91.0, 0.0), (0.0, 181.0), (float("nan"), 0)])
def test_a_position_outside_the_world_is_said(latitude, longitude):
    feed = _feed()
    bus = feed.entity.add(id="1").vehicle
    bus.position.latitude, bus.position.longitude = latitude, longitude

    (event,) = _read(feed.SerializeToString())

    assert event.fields["event.reason"] == "position outside WGS 84"
    assert event.fields["phys.quality"] == "bad"
    assert "phys.position" not in event.fields


def test_a_cut_feed_and_garbage_are_reported(data):
    whole = (data / "transport/gtfsrt_wmata_bus_2345.pb").read_bytes()

    for broken in (whole[:100_001], b"garbage", b"\xff" * 99):
        (event,) = _read(broken)
        assert event.is_malformed
        assert event.fields["event.reason"].startswith("no GTFS-realtime feed")


def test_an_empty_feed_is_an_event():
    (event,) = _read(_feed().SerializeToString())

    assert event.fields["event.action"] == "feed_empty"
    assert event.time.timestamp() == 1_700_000_000
