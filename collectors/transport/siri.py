"""Public transport in real time: SIRI 2 XML, one poll answer or file a record.

Send: Let the node ask the service for `et`, `vm` or `sx` (`reader = "http"`, its `url`,
`collector = "siri"`), or read files of it (`reader = "folder"`).

Understood: Estimated timetables (ET): a journey is an event, with its line, vehicle, delay and how
many of its calls are recorded, estimated and cancelled; vehicle monitoring (VM): position, speed,
course and delay; situations (SX): cause, severity and text of an alert. What the producer says
that it cannot deliver.

Not understood: The single calls of a journey, stop monitoring, connections, requests and
subscriptions; SOAP around a delivery is passed over.

References:
    CEN/TS 15531 (SIRI 2.0), parts 3 (ET, VM) and 5 (SX); siri-cen.eu/xsd.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from io import BytesIO
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import iterparse

from cityward import Event, LogSource, Record, collector
from collectors.values import clean, moment, place, real

TRIPS = LogSource(category="public_transport", service="siri")
POSITIONS = LogSource(category="positioning", service="avl")

DELIVERIES = frozenset(
    ("EstimatedTimetableDelivery", "VehicleMonitoringDelivery", "SituationExchangeDelivery")
)
DELIVERIES_MAX = 16
DEPTH_MAX = 64
PART_MAX = 20_000
"""Elements of one journey, vehicle or situation; a train has some twenty calls of twenty."""
SPEED_MAX = 1e4

_DURATION = re.compile(
    r"(-?)P(?:(\d{1,4})D)?(?:T(?:(\d{1,5})H)?(?:(\d{1,7})M)?(?:(\d{1,9})(?:\.\d{1,9})?S)?)?"
)
"""ISO 8601, without years and months, whose length nobody knows."""

ROUTE = ("LineRef",)
TRIP = (
    "DatedVehicleJourneyRef",
    "FramedVehicleJourneyRef/DatedVehicleJourneyRef",
    "EstimatedVehicleJourneyCode",
    "VehicleJourneyRef",
)
"""Where the id of a journey may stand; the first one counts."""
JOURNEY_SAYS = {
    "direction": "DirectionRef",
    "operator": "OperatorRef",
    "mode": "VehicleMode",
    "data_source": "DataSource",
    "origin": "OriginRef",
    "destination": "DestinationRef",
    "destination_name": "DestinationName",
    "day": "FramedVehicleJourneyRef/DataFrameRef",
    "monitored": "Monitored",
    "occupancy": "Occupancy",
    "in_congestion": "InCongestion",
}
"""What journeys and vehicles say besides."""
SITUATION_SAYS = {
    "situation": "SituationNumber",
    "version": "Version",
    "report_type": "ReportType",
    "progress": "Progress",
    "severity": "Severity",
    "priority": "Priority",
    "cause": "AlertCause",
    "planned": "Planned",
    "participant": "ParticipantRef",
}
REASONS = ("MiscellaneousReason", "PersonnelReason", "EquipmentReason", "EnvironmentReason")
ENDS = (
    (("ActualDepartureTime", "ExpectedDepartureTime"), "AimedDepartureTime"),
    (("ActualArrivalTime", "ExpectedArrivalTime"), "AimedArrivalTime"),
)
"""What came or is expected, and what was planned, at either end of a stop."""

Made = tuple[LogSource, dict[str, Any], datetime | None]


def looks_like_siri(head: bytes) -> bool:
    """XML whose first elements are in the name space of SIRI, or called so."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:4_096]
    return start[:1] == b"<" and (b"www.siri.org.uk/siri" in start or b"<Siri" in start)


@collector(TRIPS, framing="document", looks_like=looks_like_siri, strength=80)
def siri(records: Iterable[Record]) -> Iterator[Event]:
    """Read deliveries: one event a journey, a vehicle and a situation."""
    for record in records:
        number = 0
        try:
            for logsource, fields, time in _delivered(record.data):
                fields["cw.time_source"] = "source" if time else "collector"
                yield Event(time or record.received, logsource, fields, record, number)
                number += 1
            if not number:
                why = "XML without a delivery of SIRI"
                yield Event.malformed(record, TRIPS, why=why)
        except (ParseError, ValueError, LookupError) as error:
            why = f"SIRI cannot be read: {error}"
            yield Event.malformed(record, TRIPS, why=why, number=number)


def _delivered(data: bytes) -> Iterator[Made]:
    """Walk a document; each part is made into an event and forgotten when it ends."""
    part: Element | None = None
    size = parts = 0
    deliveries: set[str] = set()
    time: datetime | None = None
    above: list[Element] = []
    for kind, element in iterparse(BytesIO(data), events=("start", "end"), forbid_dtd=True):
        name = _name(element)
        if kind == "start":
            above.append(element)
            if len(above) > DEPTH_MAX:
                raise ValueError(f"XML nested deeper than {DEPTH_MAX}")
            if part is None and name in PARTS:
                part, size = element, 0
            if part is None and name.endswith("Delivery") and name != "ServiceDelivery":
                deliveries.add(name[:64])
                if len(deliveries) > DELIVERIES_MAX:
                    raise ValueError(f"more than {DELIVERIES_MAX} kinds of deliveries")
            continue
        above.pop()
        size += 1
        if part is not None and size > PART_MAX:
            raise ValueError(f"a {_name(part)} of more than {PART_MAX} elements")
        if part is not None and element is part:
            yield PARTS[name](_Part(part), time)
            part, parts = None, parts + 1
        elif part is None and name in ("ResponseTimestamp", "RecordedAtTime"):
            time = moment((element.text or "").strip()) or time
        if part is None and above:
            above[-1].clear()  # else a long document would be held whole
    if others := sorted(deliveries - DELIVERIES):
        raise ValueError(f"nobody reads a {others[0]}")
    if deliveries and not parts:
        yield TRIPS, _state("feed_empty", "siri.delivery"), time


def _name(element: Element) -> str:
    """Name without its name space."""
    return str(element.tag).rpartition("}")[2]


class _Part:
    """An element, asked by paths of names without name spaces."""

    def __init__(self, element: Element) -> None:
        self._element = element

    def all(self, path: str) -> list[Element]:
        """Elements at the end of a path."""
        found = [self._element]
        for step in path.split("/"):
            found = [child for one in found for child in one if _name(child) == step]
        return found

    def said(self, *paths: str) -> str | None:
        """Text at the first path that has some."""
        for path in paths:
            for element in self.all(path):
                if text := (element.text or "").strip():
                    return clean(text)
        return None

    def told(self, table: dict[str, str]) -> dict[str, Any]:
        """What a table of paths finds, for `cw.vendor`."""
        return {key: said for key, path in table.items() if (said := self.said(path))}


def _state(action: str, dataset: str, kind: str = "state") -> dict[str, Any]:
    return {
        "event.kind": kind,
        "event.action": action,
        "event.dataset": dataset,
        "cw.domain": ["availability"],
    }


def _of_trip(journey: _Part) -> dict[str, Any]:
    named = {
        "ot.trip.id": journey.said(*TRIP),
        "ot.trip.route": journey.said(*ROUTE),
        "phys.track": journey.said("VehicleRef"),
    }
    return {name: value for name, value in named.items() if value}


def _journey(journey: _Part, time: datetime | None) -> Made:
    recorded = [_Part(one) for one in journey.all("RecordedCalls/RecordedCall")]
    estimated = [_Part(one) for one in journey.all("EstimatedCalls/EstimatedCall")]
    cancelled = sum(_is_cancelled(call) for call in (*recorded, *estimated))
    fields = {**_state("trip_update", "siri.estimated_timetable"), **_of_trip(journey)}
    vendor = journey.told(JOURNEY_SAYS)
    vendor |= {"recorded_calls": len(recorded), "estimated_calls": len(estimated)}
    if cancelled:
        vendor["cancelled_calls"] = cancelled
        fields["event.action"] = "trip_shortened"
    calls = len(recorded) + len(estimated)
    if journey.said("Cancellation") == "true" or (calls and cancelled == calls):
        fields["event.action"] = "trip_cancelled"
    elif journey.said("ExtraJourney") == "true":
        fields["event.action"] = "trip_added"
    delay = _delay([*recorded, *estimated])
    if delay is not None:
        fields["ot.trip.delay_s"] = delay
    fields["cw.vendor"] = vendor
    return TRIPS, fields, moment(journey.said("RecordedAtTime")) or time


def _is_cancelled(call: _Part) -> bool:
    return call.said("Cancellation") == "true"


def _delay(calls: list[_Part]) -> int | None:
    """Delay at the last call for which one is known, s; as for GTFS-realtime."""
    for call in reversed(calls):
        if _is_cancelled(call):
            continue
        for comes, aimed in ENDS:
            now, planned = moment(call.said(*comes)), moment(call.said(aimed))
            if now and planned:
                return int((now - planned).total_seconds())
    return None


def _vehicle(activity: _Part, time: datetime | None) -> Made:
    found = activity.all("MonitoredVehicleJourney")
    journey = _Part(found[0]) if found else activity
    vendor = journey.told(JOURNEY_SAYS)
    fields = {
        **_state("vehicle_position", "siri.vehicle_monitoring"),
        "event.category": ["positioning"],
        "cw.domain": ["physical"],
        **_of_trip(journey),
        **_position(journey, vendor),
    }
    delay = _seconds(journey.said("Delay"))
    if delay is not None:
        fields["ot.trip.delay_s"] = delay
    if stop := journey.said("MonitoredCall/StopPointRef"):
        vendor["stop"] = stop
    fields["cw.vendor"] = vendor
    return POSITIONS, fields, moment(activity.said("RecordedAtTime")) or time


def _position(journey: _Part, vendor: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    latitude = journey.said("VehicleLocation/Latitude")
    longitude = journey.said("VehicleLocation/Longitude")
    if latitude or longitude:
        if where := place(latitude, longitude):
            found["phys.position"] = where
        else:
            vendor["latitude"], vendor["longitude"] = latitude or "", longitude or ""
            found["event.outcome"] = "failure"
            found["event.reason"] = "position outside WGS 84"
            found["phys.quality"] = "bad"
    for name, field, limit in (
        ("Velocity", "phys.speed", SPEED_MAX),
        ("Bearing", "phys.course", 360.0),
    ):
        if said := journey.said(name):
            value = real(said)
            if value is not None and 0 <= value <= limit:
                found[field] = round(value, 3)
            else:
                vendor[name.lower()] = said
    return found


def _seconds(duration: str | None) -> int | None:
    found = _DURATION.fullmatch(duration or "")
    if found is None or not any(found.groups()[1:]):
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups()[1:])
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return -total if found[1] else total


def _situation(situation: _Part, time: datetime | None) -> Made:
    fields = _state("service_alert", "siri.situation_exchange", kind="alert")
    vendor = situation.told(SITUATION_SAYS)
    if reason := situation.said(*REASONS):
        vendor["reason"] = reason
    if summary := situation.said("Summary", "Description"):
        fields["message"] = summary
    if description := situation.said("Description"):
        vendor["description"] = description
    networks = "Affects/Networks/AffectedNetwork/AffectedLine"
    lines = situation.all(networks)
    stops = situation.all("Affects/StopPoints/AffectedStopPoint")
    if route := situation.said(f"{networks}/LineRef"):
        fields["ot.trip.route"] = route
    if trip := situation.said(
        "Affects/VehicleJourneys/AffectedVehicleJourney/VehicleJourneyRef",
        "Affects/VehicleJourneys/AffectedVehicleJourney/FramedVehicleJourneyRef/DatedVehicleJourneyRef",
    ):
        fields["ot.trip.id"] = trip
    vendor |= {"lines": len(lines), "stops": len(stops)}
    since = moment(situation.said("ValidityPeriod/StartTime"))
    until = moment(situation.said("ValidityPeriod/EndTime"))
    if since:
        fields["event.start"] = since
    if until:
        fields["event.end"] = until
    fields["cw.vendor"] = vendor
    return TRIPS, fields, moment(situation.said("VersionedAtTime", "CreationTime")) or time


def _refused(error: _Part, time: datetime | None) -> Made:
    """The producer says that it cannot deliver."""
    fields = _state("feed_refused", "siri.delivery")
    fields["event.outcome"] = "failure"
    fields["event.reason"] = error.said("Description", "OtherError/ErrorText") or "no delivery"
    return TRIPS, fields, time


PARTS: dict[str, Callable[[_Part, datetime | None], Made]] = {
    "EstimatedVehicleJourney": _journey,
    "VehicleActivity": _vehicle,
    "PtSituationElement": _situation,
    "RoadSituationElement": _situation,
    "ErrorCondition": _refused,
}
"""What a delivery consists of."""
