"""Satellite receivers: a real one at rest, and what spoofing and loss look like."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from functools import reduce
from operator import xor

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.port.gnss import RECEIVERS_MAX, Gnss, looks_like_gnss
from collectors.port.nmea import distance_m

NOW = datetime(2026, 3, 1, tzinfo=UTC)
RMC = b"$GNRMC,223745.00,A,3806.62964,N,12237.61382,W,0.040,,110720,,,D,V*0E"


def _framed(body: str) -> bytes:
    return f"${body}*{reduce(xor, body.encode(), 0):02X}".encode()


def _read(lines: list[bytes], gnss: Gnss | None = None) -> list[Event]:
    return list((gnss or Gnss())(Record(line, "s", at, NOW) for at, line in enumerate(lines)))


def _rmc(clock: str = "100000.00", north: str = "3806.0", day: str = "110720", state: str = "A"):
    return _framed(f"GPRMC,{clock},{state},{north},N,12237.0,W,10.0,90.0,{day},,,A")


def _actions(events: list[Event]) -> list[str]:
    return [event.fields["event.action"] for event in events]


def test_a_receiver_at_rest_gives_its_sentences_and_no_jump(data):
    lines = (data / "port/gnss_ublox_nmea.log").read_bytes().splitlines()
    found = _read(lines)

    actions = Counter(_actions(found))
    assert len(found) == 1403 + actions["log_comment"] == len(lines)
    assert actions == {
        **{"gnss_position": 183, "gnss_speed": 61, "gnss_time": 61, "log_comment": 11},
        **{"gnss_satellites_used": 244, "gnss_satellites_in_view": 732},
        **{"gnss_error_statistics": 61, "gnss_integrity": 61},
    }
    said = [event for event in found if event.fields["event.dataset"] == "nmea.sentence"]
    assert said[0].time == datetime(2020, 7, 11, 22, 37, 45, tzinfo=UTC)
    assert said[-1].time == datetime(2020, 7, 11, 22, 38, 45, tzinfo=UTC)
    places = [event.fields["phys.position"] for event in said if "phys.position" in event.fields]
    spots = [tuple(map(float, place.split(","))) for place in places]
    assert max(distance_m(spots[0], spot) for spot in spots) < 10
    assert places[0] == "38.110494,-122.626897"
    assert {event.fields.get("phys.quality", "good") for event in said} == {"good"}


def test_a_position_is_told_with_speed_and_course():
    (event,) = _read([_rmc()])

    assert event.time == datetime(2020, 7, 11, 10, tzinfo=UTC)
    assert event.fields["phys.position"] == "38.100000,-122.616667"
    assert event.fields["phys.speed"] == 5.144
    assert event.fields["phys.course"] == 90.0
    assert event.fields["cw.vendor"]["fix"] == "autonomous"


def test_a_jump_is_told_with_distance_and_speed():
    found = _read([_rmc("100000.00", "3806.0"), _rmc("100010.00", "3816.0")])

    assert _actions(found) == ["gnss_position", "gnss_position", "gnss_jump"]
    assert found[2].number == 1
    assert found[2].fields["event.reason"] == "18,533 m in 10 s"
    assert found[2].fields["phys.speed"] == 1853.3
    assert found[2].fields["phys.reading"] > 18_532


def test_what_a_train_drives_is_no_jump():
    found = _read([_rmc("100000.00", "3806.0"), _rmc("100010.00", "3806.5")])

    assert _actions(found) == ["gnss_position", "gnss_position"]


def test_a_fix_is_lost_and_found():
    found = _read([_rmc("100000.00"), _rmc("100001.00", state="V"), _rmc("100002.00")])

    assert _actions(found) == [
        *("gnss_position", "gnss_no_fix", "gnss_fix_lost", "gnss_position", "gnss_fix_found"),
    ]
    assert found[1].fields["phys.quality"] == "bad"
    assert found[2].fields["phys.position"] == "38.100000,-122.616667"


@pytest.mark.parametrize(
    ("clock", "day", "step_s"),
    [
        ("095900.00", "110720", -60.0),
        ("120001.00", "110720", 7201.0),
        ("100001.00", "251100", -619_315_199.0),  # 1024 weeks back
    ],
)
def test_time_that_steps_is_told(clock, day, step_s):
    found = _read([_rmc("100000.00"), _rmc(clock, day=day)])

    assert "gnss_time_jump" in _actions(found)
    assert found[-1].fields["phys.reading"] == step_s


def test_midnight_is_no_step():
    gga = _framed("GPGGA,000000.00,3806.0,N,12237.0,W,1,08,0.9,80.0,M,-29.0,M,,")
    found = _read([_rmc("235959.00"), gga, _rmc("000000.00", day="120720")])

    assert _actions(found) == ["gnss_position"] * 3
    assert found[1].time == datetime(2020, 7, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("quality", "worth"),
    [("1", "good"), ("4", "good"), ("6", "uncertain"), ("7", "substituted"), ("8", "bad")],
)
def test_a_fix_has_its_worth(quality, worth):
    gga = f"GPGGA,000000.00,3806.0,N,12237.0,W,{quality},08,0.9,80.0,M,-29.0,M,,"
    (event,) = _read([_framed(gga)])

    assert event.fields["phys.quality"] == worth
    assert event.fields["cw.vendor"]["satellites"] == 8
    assert event.fields["cw.time_source"] == "collector"  # no sentence has told the day yet


@pytest.mark.parametrize("north", ["9906.0", "3860.0", "x", "-3806.0"])
def test_a_place_that_is_none_is_told(north):
    (event,) = _read([_rmc(north=north)])

    assert event.fields["event.action"] == "gnss_no_fix"
    assert event.fields["phys.quality"] == "bad"
    assert "phys.position" not in event.fields


def test_the_integrity_monitor_names_the_wrong_satellite():
    (event,) = _read([_framed("GPGBS,100000.00,1.0,1.0,3.1,12,,,")])

    assert event.fields["event.reason"] == "satellite 12.0 seems to be wrong"
    assert event.fields["phys.quality"] == "uncertain"


def test_a_damaged_sentence_is_told():
    (event,) = _read([RMC[:-1] + b"F"])

    assert event.is_malformed
    assert event.fields["event.reason"] == "sentence damaged: its checksum is 0E, not 0F"


def test_what_is_not_known_is_kept_as_text():
    found = _read([_framed("HEHDT,274.07,T"), _framed("GPTXT,01,01,02,ANTSTATUS=OPEN")])

    assert found[0].fields["event.action"] == "nmea_sentence"
    assert found[0].fields["cw.vendor"]["values"] == "274.07,T"
    assert found[1].fields["message"] == "ANTSTATUS=OPEN"


def test_receivers_are_told_apart_and_bounded():
    gnss = Gnss()
    lines = []
    for number in range(RECEIVERS_MAX + 10):
        tags = f"s:rx{number}"
        sums = f"{reduce(xor, tags.encode(), 0):02X}"
        lines.append(f"\\{tags}*{sums}\\".encode() + _rmc(north=f"{10 + number % 60}06.0"))

    assert set(_actions(_read(lines, gnss))) == {"gnss_position"}
    assert len(gnss._receivers) == RECEIVERS_MAX


@pytest.mark.parametrize(
    ("head", "is_gnss"),
    [
        (b"# a note\n" + RMC + b"\n", True),
        (b"$HEHDT,274.07,T*03\n", False),
        (b"$GPRMC,\nhello\nhello\n", False),
        (b"", False),
    ],
)
def test_a_file_is_recognised_by_its_sentences(head, is_gnss):
    assert looks_like_gnss(head) is is_gnss


def test_the_collector_keeps_its_promises():
    gsv = b"$GPGSV,4,2,16,16,25,306,30,18,68,358,39,20,63,235,37,21,35,292,,1*6B"
    gsa = b"$GNGSA,A,3,29,20,18,16,51,13,44,26,,,,,0.99,0.54,0.83,1*0E"
    zda = b"$GNZDA,223745.00,11,07,2020,00,00*7A"
    check_collector(Gnss, [RMC, gsv, gsa, zda], mutants_each=100)
