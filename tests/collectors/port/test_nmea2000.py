"""NMEA 2000: a real boat, gpsd's reading of it, and what does not belong on a bus."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.port.nmea2000 import OPEN_MAX, Nmea2000, looks_like_nmea2000

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POSITION = b"(1410714882.622188) can0 09F80102#36729A16021AB80D"
SHIP = [
    b"(1410714884.145289) can0 11F80F01#801A125C23220EF0",
    b"(1410714884.145838) can0 11F80F01#811CB80D60739A16",
    b"(1410714884.146418) can0 11F80F01#8210793F00000600",
    b"(1410714884.146998) can0 11F80F01#8318FFFF0074FFFF",
]
CLAIM = b"(1410714884.687678) can0 18EEFF11#40E2C1DD00C8A0C0"


def _read(lines: list[bytes] | bytes, bus: Nmea2000 | None = None) -> list[Event]:
    data = lines if isinstance(lines, bytes) else b"\n".join(lines)
    return list((bus or Nmea2000())([Record(data, "s", 0, NOW)]))


def _of(events: list[Event], *actions: str) -> list[Event]:
    return [event for event in events if event.fields["event.action"] in actions]


@pytest.fixture(scope="module")
def boat():
    """Events and expected reports of the boat, read once."""
    seen: dict = {}

    def read(data):
        if not seen:
            folder = data / "port"
            seen["events"] = _read((folder / "nmea2000_candump.log").read_bytes())
            lines = (folder / "nmea2000_candump.expected.jsonl").read_text("utf-8").splitlines()
            seen["said"] = [json.loads(line) for line in lines if line.startswith("{")]
        return seen["events"], seen["said"]

    return read


def test_every_frame_of_the_boat_is_accounted_for(data, boat):
    events, _ = boat(data)

    counts = events[-1].fields["cw.vendor"]
    assert counts == {"frames": 10495, "messages": 4328, "comments": 6, "broken": 0}
    assert sum(event.is_malformed for event in events) == 9  # fast packets with lost frames
    assert [event.number for event in events] == list(range(len(events)))
    actions = Counter(event.fields["event.action"] for event in events)
    assert actions["nmea2000_position"] == 2040
    assert actions["nmea2000_course_speed"] == 816
    assert actions["ais_position"] + actions["ais_static"] == 137


def test_depths_are_those_of_gpsd(data, boat):
    events, said = boat(data)

    ours = [event.fields["phys.reading"] for event in _of(events, "nmea2000_depth")]
    assert ours == [one["depth"] for one in said if one["class"] == "ATT"]
    assert len(ours) == 198


def test_positions_times_and_heights_are_those_of_gpsd(data, boat):
    events, said = boat(data)
    fixes = _of(events, "nmea2000_gnss_fix")

    # gpsd repeats what it knows with every report: each of its values must have been told.
    places = {event.fields["phys.position"] for event in _of(events, "nmea2000_position")}
    places |= {event.fields["phys.position"] for event in fixes}
    vendors = [event.fields["cw.vendor"] for event in fixes]
    heights = {round(vendor["altitude_m"], 3) for vendor in vendors}
    times = {vendor["told_time"][:19] for vendor in vendors}
    times |= {
        event.fields["cw.vendor"]["told_time"][:19] for event in _of(events, "nmea2000_system_time")
    }
    speeds = {event.fields["phys.speed"] for event in _of(events, "nmea2000_course_speed")}
    reports = [one for one in said if one["class"] == "TPV"]
    compared, wrong = 0, []
    for one in reports:
        pairs = []
        if "lat" in one:
            pairs.append((f"{one['lat']:.6f},{one['lon']:.6f}", places))
        if "altHAE" in one:
            pairs.append((round(one["altHAE"], 3), heights))
        if "time" in one:
            pairs.append((one["time"][:19], times))
        if "speed" in one:
            pairs.append((one["speed"], speeds))
        compared += len(pairs)
        wrong += [value for value, told in pairs if value not in told]
    assert len(reports) == 3666
    assert compared > 13_000
    assert not wrong


def test_precision_and_satellites_are_those_of_gpsd(data, boat):
    events, said = boat(data)
    sky = [one for one in said if one["class"] == "SKY"]

    precision = [event.fields["cw.vendor"] for event in _of(events, "nmea2000_gnss_precision")]
    told = {(one["hdop"], one["vdop"], one["tdop"]) for one in precision}
    for one in sky:
        assert (one["hdop"], one["vdop"], one["tdop"]) in told
    seen = [event.fields["cw.vendor"] for event in _of(events, "nmea2000_satellites")]
    theirs = [
        (one["nSat"], one["uSat"], [row["PRN"] for row in one["satellites"]])
        for one in sky
        if "satellites" in one
    ]
    ours = [
        (
            vendor["in_view"],
            vendor["used"],
            [int(row.partition("/")[0]) for row in vendor["satellites"].split()],
        )
        for vendor in seen
    ]
    assert ours == theirs


def test_ships_are_those_of_gpsd(data, boat):
    events, said = boat(data)
    said = [one for one in said if one["class"] == "AIS"]
    ours = _of(events, "ais_position", "ais_static")

    compared, wrong = 0, []
    for kinds in ((1, 3), (18,), (5,)):
        theirs = [one for one in said if one["type"] in kinds]
        mine = [event for event in ours if event.fields["cw.vendor"]["msg_type"] in kinds]
        assert 0 <= len(mine) - len(theirs) <= 1  # gpsd leaves the first report of the log out
        for one, event in zip(theirs, mine[-len(theirs) :], strict=True):
            fields, vendor = event.fields, event.fields["cw.vendor"]
            pairs = [(f"{one['mmsi']:09d}", fields["phys.track"])]
            pairs += [
                (one[name], vendor.get(name))
                for name in ("second", "radio", "raim", "accuracy", "status", "repeat", "imo")
                if name in one
            ]
            pairs += [
                (one[name].rstrip(), vendor.get(name, ""))
                for name in ("callsign", "shipname", "destination")
                if name in one
            ]
            # gpsd cuts what it has to the steps of AIS, and shows a course not known as 375.4.
            near = []
            if "lat" in one:
                north, east = map(float, fields["phys.position"].split(","))
                near += [(one["lat"], north, 2.2e-6), (one["lon"], east, 2.2e-6)]
            if one.get("heading", 511) < 511:
                near.append((one["heading"], vendor["heading"], 1.1))
            if one.get("course", 360) < 360:
                near.append((one["course"], fields["phys.course"], 0.11))
            if "speed" in one:
                near.append((one["speed"], fields["phys.speed"] / 0.514444, 0.11))
            pairs += [
                (here, here if abs(here - there) < limit else there) for here, there, limit in near
            ]
            if "draught" in one:
                pairs.append((one["draught"], vendor.get("draught_m")))
            if "shiptype" in one:
                pairs.append((one["shiptype"], vendor.get("ship_type")))
            compared += len(pairs)
            wrong += [(one["type"], *pair) for pair in pairs if pair[0] != pair[1]]
    assert compared > 1_300
    assert not wrong


def test_a_position_is_told():
    event, counted = _read([POSITION])

    assert event.time.isoformat() == "2014-09-14T17:14:42.622188+00:00"
    assert event.fields["phys.position"] == "37.922053,23.016909"
    assert event.fields["ot.function.code"] == "129025"
    assert event.fields["ot.unit"] == "2"
    assert counted.fields["event.action"] == "nmea2000_log_read"


def test_a_fast_packet_is_one_event_also_over_two_files():
    bus = Nmea2000()

    assert len(_read(SHIP[:2], bus)) == 1
    ship, _ = _read(SHIP[2:], bus)
    assert ship.logsource.service == "ais"
    assert ship.fields["phys.track"] == "237118300"
    assert ship.fields["phys.position"] == "37.922083,23.016984"


def test_a_message_seen_from_its_middle_is_told_once():
    found = _read(SHIP[1:])

    assert [event.fields.get("event.reason") for event in found[:-1]] == [
        "frame 1 of a message whose frames before it are missing"
    ]


def test_a_second_device_that_claims_an_address_is_told():
    stranger = CLAIM.replace(b"40E2C1DD", b"41E2C1DD")
    found = _read([CLAIM, CLAIM, stranger])

    (taken,) = _of(found, "nmea2000_address_claimed_twice")
    assert taken.fields["event.kind"] == "alert"
    assert taken.fields["event.reason"] == (
        "address 17 of device 40e2c1dd00c8a0c0 is claimed by 41e2c1dd00c8a0c0, which loses"
    )
    assert len(_of(found, "nmea2000_address_claim")) == 3
    assert found[0].fields["cw.vendor"]["manufacturer"] == 1774


def test_a_device_without_address_takes_none():
    found = _read([CLAIM.replace(b"FF11", b"FFFE"), CLAIM.replace(b"FF11#40", b"FFFE#41")])

    assert not _of(found, "nmea2000_address_claimed_twice")


def test_a_request_names_what_it_asks_for():
    event = _read([b"(1410714884.0) can0 18EAFF11#00EE00"])[0]

    assert event.fields["event.action"] == "nmea2000_request"
    assert event.fields["cw.vendor"]["requested"] == 60928
    assert event.fields["ot.is_command"] is False


def test_a_commanded_address_comes_in_a_broadcast_and_is_a_command():
    found = _read(
        [
            b"(1410714884.0) can0 18ECFF11#20090002FFD8FE00",
            b"(1410714884.1) can0 18EBFF11#0140E2C1DD00C8A0",
            b"(1410714884.2) can0 18EBFF11#02C022FFFFFFFFFF",
        ]
    )

    (order,) = _of(found, "nmea2000_commanded_address")
    assert order.fields["ot.is_command"] is True
    assert order.fields["ot.operation"] == "config"
    assert order.fields["cw.vendor"]["address"] == 0x22


@pytest.mark.parametrize(("function", "is_command"), [("00", False), ("01", True), ("02", False)])
def test_a_group_function_may_be_a_command(function, is_command):
    line = f"(1410714884.0) can0 0DED1102#0006{function}12F001F802".encode()
    event = _read([line])[0]

    assert event.fields["ot.is_command"] is is_command


def test_what_is_no_frame_is_told():
    found = _read([POSITION, b"hello", b"(1.0) can0 123#00", POSITION + b"00" * 200])

    assert [event.is_malformed for event in found] == [False, True, True, True, False]
    assert found[-1].fields["cw.vendor"]["broken"] == 3


def test_memory_is_bounded():
    bus = Nmea2000()
    lines = [b"(1410714884.0) c%d 11F80F01#801A125C23220EF0" % number for number in range(3_000)]

    _read(lines, bus)

    assert len(bus._open) == OPEN_MAX


@pytest.mark.parametrize(
    ("head", "is_it"),
    [
        (b"# a note\n" + POSITION + b"\n", True),
        (b"\n".join(SHIP), True),
        (b"(1410714882.6) can0 123#0011\n", False),
        (b"(1410714882.6) can0 18FEF100#0011223344556677\n", False),  # J1939
        (b"(1410714882.6) can0 0CF00400#0011223344556677\n" + POSITION + b"\nhello\n", False),
        (b"", False),
    ],
)
def test_a_log_is_recognised_by_its_groups(head, is_it):
    assert looks_like_nmea2000(head) is is_it


def test_the_collector_keeps_its_promises():
    check_collector(Nmea2000, [b"\n".join([POSITION, CLAIM, *SHIP])], mutants_each=100)
