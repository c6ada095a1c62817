"""UniFi Protect: a console's list of events, and what may be wrong in one."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.city.video import looks_like_unifi, unifi_video

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MOTION = {"id": "1", "type": "motion", "start": 1640293400462, "end": 1640293402462, "camera": "c1"}


def _read(data: bytes) -> list[Event]:
    return list(unifi_video([Record(data, "s", 0, NOW)]))


def _one(**more: object) -> Event:
    (event,) = _read(json.dumps([{**MOTION, **more}]).encode())
    return event


def test_the_console_has_all_its_events(data):
    found = _read((data / "city/unifi_video_access_events.json").read_bytes())

    assert len(found) == 1351
    assert Counter(event.fields["event.action"] for event in found) == {
        **{"video_motion": 628, "sensor_motion": 546, "video_object_detected": 93},
        **{"video_access": 24, "light_motion": 19, "door_opened": 15, "door_closed": 13},
        **{"device_disconnected": 6, "doorbell_rung": 3, "fingerprint_read": 2},
        **{"device_adopted": 1, "card_read": 1},
    }
    lost = [e.fields for e in found if e.fields["event.action"] == "device_disconnected"]
    assert {(one["event.reason"], one["phys.state"]) for one in lost} == {
        ("CONNECTION_LOSS", "offline")
    }
    card = next(e for e in found if e.fields["event.action"] == "card_read")
    assert card.fields["phys.subject"] == "64B2A621"
    assert "64B2A621" not in str(card.fields["cw.vendor"])
    assert card.logsource.category == "physical_access"
    fingers = [e.fields for e in found if e.fields["event.action"] == "fingerprint_read"]
    assert [one["event.outcome"] for one in fingers] == ["success", "failure"]
    adopted = next(e for e in found if e.fields["event.action"] == "device_adopted")
    assert adopted.fields["user.name"] == "Christopher Bailey"
    assert [event.number for event in found] == list(range(1351))


def test_an_event_has_start_end_and_place():
    event = _one()

    assert event.time.isoformat() == "2021-12-23T21:03:20.462000+00:00"
    assert event.fields["event.duration"] == 2_000_000_000
    assert event.fields["phys.point"] == "c1"


def test_a_licence_plate_is_a_person_s():
    event = _one(
        type="smartDetectZone",
        smartDetectTypes=["licensePlate"],
        score=88,
        metadata={"licensePlate": {"name": "B-AB 123"}},
    )

    assert event.fields["phys.subject"] == "B-AB 123"
    assert event.fields["phys.object"] == "vehicle"
    assert "B-AB 123" not in str(event.fields["cw.vendor"])


def test_a_card_that_nobody_has_is_a_failure():
    event = _one(type="nfcCardScanned", metadata={"nfc": {"nfcId": "AA", "userId": None}})

    assert event.fields["event.outcome"] == "failure"


def test_a_kind_that_is_new_is_kept_under_its_name():
    event = _one(type="somethingNew")

    assert event.fields["event.action"] == "unifi_event"
    assert event.fields["cw.vendor"]["type"] == "somethingNew"


def test_lines_are_read_as_well_and_a_broken_one_is_told():
    good = json.dumps(MOTION).encode()
    found = _read(good + b"\n{broken\n" + good)

    assert [event.is_malformed for event in found] == [False, True, False]


@pytest.mark.parametrize(
    "data", [b"[]", b"[1]", b'[{"start": 1}]', b'[{"type": "motion", "start": "x"}]', b"[", b"{}"]
)
def test_what_is_no_event_is_told(data):
    (event,) = _read(data)

    assert event.is_malformed


def test_a_list_is_recognised():
    head = json.dumps([{**MOTION, "smartDetectTypes": []}]).encode()

    assert looks_like_unifi(head)
    assert not looks_like_unifi(b'{"type": "motion"}')


def test_the_collector_keeps_its_promises():
    more = {"smartDetectTypes": ["person"], "metadata": {"nfc": {"nfcId": "6", "userId": "u"}}}
    check_collector(unifi_video, [json.dumps([{**MOTION, **more}]).encode()])
