"""SIRI: journeys, vehicles and situations of real and of small deliveries."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

import pytest

from cityward import Record
from cityward.checks import check_collector
from collectors.transport.siri import DEPTH_MAX, siri

NOW = datetime(2026, 3, 1, tzinfo=UTC)

HEAD = (
    '<Siri version="2.0" xmlns="http://www.siri.org.uk/siri"><ServiceDelivery>'
    "<ResponseTimestamp>2026-03-01T10:00:00+02:00</ResponseTimestamp>"
)
TAIL = "</ServiceDelivery></Siri>"


def _document(inside: str) -> bytes:
    return f"{HEAD}{inside}{TAIL}".encode()


CALLS = """
<RecordedCalls><RecordedCall><StopPointRef>a</StopPointRef>
  <AimedDepartureTime>2026-03-01T09:00:00+02:00</AimedDepartureTime>
  <ActualDepartureTime>2026-03-01T09:01:30+02:00</ActualDepartureTime></RecordedCall></RecordedCalls>
<EstimatedCalls><EstimatedCall><StopPointRef>b</StopPointRef>
  <AimedArrivalTime>2026-03-01T10:10:00+02:00</AimedArrivalTime>
  <ExpectedArrivalTime>2026-03-01T10:09:30+02:00</ExpectedArrivalTime></EstimatedCall>
  <EstimatedCall><StopPointRef>c</StopPointRef><Cancellation>%s</Cancellation></EstimatedCall>
</EstimatedCalls>"""


def _timetable(inside: str) -> bytes:
    return _document(
        "<EstimatedTimetableDelivery><EstimatedJourneyVersionFrame><EstimatedVehicleJourney>"
        "<LineRef>L1</LineRef><FramedVehicleJourneyRef><DataFrameRef>2026-03-01</DataFrameRef>"
        "<DatedVehicleJourneyRef>T9</DatedVehicleJourneyRef></FramedVehicleJourneyRef>"
        f"<VehicleRef>17</VehicleRef>{inside}"
        "</EstimatedVehicleJourney></EstimatedJourneyVersionFrame></EstimatedTimetableDelivery>"
    )


def _vehicles(inside: str) -> bytes:
    return _document(
        "<VehicleMonitoringDelivery><VehicleActivity>"
        "<RecordedAtTime>2026-03-01T09:59:50+02:00</RecordedAtTime><MonitoredVehicleJourney>"
        "<LineRef>L1</LineRef><FramedVehicleJourneyRef><DatedVehicleJourneyRef>T9"
        "</DatedVehicleJourneyRef></FramedVehicleJourneyRef><VehicleRef>17</VehicleRef>"
        f"{inside}</MonitoredVehicleJourney></VehicleActivity></VehicleMonitoringDelivery>"
    )


VEHICLE = _vehicles(
    "<VehicleLocation><Longitude>22.9444</Longitude><Latitude>40.6401</Latitude></VehicleLocation>"
    "<Bearing>271.5</Bearing><Velocity>8.5</Velocity><Delay>-PT1M30S</Delay>"
)
SITUATIONS = _document(
    "<SituationExchangeDelivery><Situations><PtSituationElement>"
    "<CreationTime>2026-03-01T08:00:00+02:00</CreationTime><SituationNumber>S7</SituationNumber>"
    "<ValidityPeriod><StartTime>2026-03-01T09:00:00+02:00</StartTime></ValidityPeriod>"
    "<EquipmentReason>signalFailure</EquipmentReason><Severity>severe</Severity>"
    "<Summary>No trams</Summary><Description>Signals fail.</Description>"
    "<Affects><Networks><AffectedNetwork><AffectedLine><LineRef>L1</LineRef></AffectedLine>"
    "<AffectedLine><LineRef>L2</LineRef></AffectedLine></AffectedNetwork></Networks></Affects>"
    "</PtSituationElement></Situations></SituationExchangeDelivery>"
)


def _read(data: bytes):
    return list(siri([Record(data, "s", 0, NOW)]))


def test_the_norwegian_railway_is_126_journeys_with_all_their_calls(data):
    found = _read((data / "transport/siri_et_bane_nor_rail.xml").read_bytes())

    vendors = [event.fields["cw.vendor"] for event in found]
    actions = Counter(event.fields["event.action"] for event in found)
    assert len(found) == 126
    assert sum(vendor["estimated_calls"] for vendor in vendors) == 1_084
    assert sum(vendor["recorded_calls"] for vendor in vendors) == 756
    # Eleven cancellations: of one whole journey, and of ten calls.
    assert actions == {"trip_update": 122, "trip_shortened": 3, "trip_cancelled": 1}
    assert sum(vendor.get("cancelled_calls", 0) for vendor in vendors) == 10
    assert [event.number for event in found] == list(range(126))
    assert {event.time.isoformat() for event in found} == {"2018-08-29T07:33:02.942000+00:00"}
    assert found[0].fields["ot.trip.id"] == "NSB:ServiceJourney:1-710-1617"
    assert found[0].fields["phys.track"] == "1617"


def test_a_journey_says_its_delay_at_the_last_call_for_which_one_is_known():
    (event,) = _read(_timetable(CALLS % "true"))

    assert event.fields["ot.trip.id"] == "T9"
    assert event.fields["ot.trip.route"] == "L1"
    assert event.fields["ot.trip.delay_s"] == -30
    assert event.fields["event.action"] == "trip_shortened"
    assert event.fields["cw.vendor"]["cancelled_calls"] == 1


@pytest.mark.parametrize(
    ("inside", "action"),
    [
        (CALLS % "false", "trip_update"),
        ("<Cancellation>true</Cancellation>" + CALLS % "false", "trip_cancelled"),
        ("<ExtraJourney>true</ExtraJourney>", "trip_added"),
        (
            "<EstimatedCalls><EstimatedCall><Cancellation>true</Cancellation></EstimatedCall>"
            "</EstimatedCalls>",
            "trip_cancelled",
        ),
    ],
)
def test_a_journey_is_what_its_calls_and_it_say(inside, action):
    (event,) = _read(_timetable(inside))

    assert event.fields["event.action"] == action


def test_a_vehicle_has_position_speed_course_and_delay():
    (event,) = _read(VEHICLE)

    assert str(event.logsource) == "*/positioning/avl"
    assert event.time == datetime(2026, 3, 1, 7, 59, 50, tzinfo=UTC)
    assert event.fields["phys.position"] == "40.640100,22.944400"
    assert (event.fields["phys.speed"], event.fields["phys.course"]) == (8.5, 271.5)
    assert event.fields["ot.trip.delay_s"] == -90
    assert event.fields["phys.track"] == "17"


def test_a_position_outside_the_world_is_said():
    (event,) = _read(
        _vehicles(
            "<VehicleLocation><Longitude>1</Longitude><Latitude>91</Latitude></VehicleLocation>"
            "<Bearing>361</Bearing>"
        )
    )

    assert event.fields["event.reason"] == "position outside WGS 84"
    assert event.fields["cw.vendor"]["bearing"] == "361"
    assert "phys.position" not in event.fields


def test_a_situation_is_an_alert():
    (event,) = _read(SITUATIONS)

    assert event.fields["event.kind"] == "alert"
    assert event.fields["message"] == "No trams"
    assert event.fields["ot.trip.route"] == "L1"
    assert event.fields["event.start"] == datetime(2026, 3, 1, 7, tzinfo=UTC)
    vendor = event.fields["cw.vendor"]
    assert (vendor["reason"], vendor["severity"], vendor["lines"]) == (
        "signalFailure", "severe", 2,
    )  # fmt: skip


def test_a_delivery_without_parts_and_one_that_is_refused_are_said():
    (empty,) = _read(_document("<VehicleMonitoringDelivery/>"))
    (refused,) = _read(
        _document(
            "<VehicleMonitoringDelivery><Status>false</Status><ErrorCondition><AccessNotAllowedError/>"
            "<Description>no key</Description></ErrorCondition></VehicleMonitoringDelivery>"
        )
    )

    assert empty.fields["event.action"] == "feed_empty"
    assert refused.fields["event.action"] == "feed_refused"
    assert refused.fields["event.reason"] == "no key"


def test_a_delivery_that_nobody_reads_is_said_beside_what_is_read():
    other = "<StopMonitoringDelivery><MonitoredStopVisit/></StopMonitoringDelivery>"
    (alone,) = _read(_document(other))
    _, beside = _read(VEHICLE.replace(TAIL.encode(), (other + TAIL).encode()))

    for event in (alone, beside):
        assert event.fields["event.reason"] == (
            "SIRI cannot be read: nobody reads a StopMonitoringDelivery"
        )


def test_what_came_before_a_cut_is_kept():
    whole = VEHICLE.decode().replace(
        "</VehicleActivity>", "</VehicleActivity><VehicleActivity><A>" + "x" * 40_000
    )

    first, cut = _read(whole.encode())

    assert first.fields["event.action"] == "vehicle_position"
    assert cut.is_malformed
    assert (first.number, cut.number) == (0, 1)


@pytest.mark.parametrize(
    "strange",
    [
        b'<!DOCTYPE a [<!ENTITY b "c">]><Siri>&b;</Siri>',
        b"<Siri>" + b"<a>" * (DEPTH_MAX + 1),
        b'<?xml version="1.0" encoding="utf-7"?><Siri/>',
        b'<Siri><VehicleActivity>' + b"<a/>" * 20_001 + b"</VehicleActivity></Siri>",
        b"<html><body>busy</body></html>",
        b"<Siri>",
    ],
)  # fmt: skip
def test_what_is_no_delivery_is_one_event_that_says_so(strange):
    (event,) = _read(strange)

    assert event.is_malformed


def test_the_collector_keeps_its_promises():
    check_collector(siri, [_timetable(CALLS % "true"), VEHICLE, SITUATIONS])
