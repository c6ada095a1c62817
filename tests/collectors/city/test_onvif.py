"""ONVIF: notifications of cameras and doors."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.city.onvif import looks_like_onvif, onvif

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?><s:Envelope '
    'xmlns:s="http://www.w3.org/2003/05/soap-envelope" '
    'xmlns:wsnt="http://docs.oasis-open.org/wsn/b-2" '
    'xmlns:a="http://www.w3.org/2005/08/addressing" '
    'xmlns:tt="http://www.onvif.org/ver10/schema" '
    'xmlns:tns1="http://www.onvif.org/ver10/topics"><s:Body><wsnt:Notify>'
)


def _message(topic: str, source: str, data: str, operation: str = "Changed") -> str:
    def items(said: str) -> str:
        pairs = (pair.split("=") for pair in said.split(",") if pair)
        return "".join(f'<tt:SimpleItem Name="{name}" Value="{value}"/>' for name, value in pairs)

    return (
        "<wsnt:NotificationMessage>"
        f'<wsnt:Topic Dialect="x">{topic}</wsnt:Topic>'
        "<wsnt:ProducerReference><a:Address>http://192.0.2.7/</a:Address></wsnt:ProducerReference>"
        f'<wsnt:Message><tt:Message UtcTime="2026-02-01T10:00:00Z" PropertyOperation="{operation}">'
        f"<tt:Source>{items(source)}</tt:Source><tt:Data>{items(data)}</tt:Data>"
        "</tt:Message></wsnt:Message></wsnt:NotificationMessage>"
    )


def _document(*messages: str) -> bytes:
    return (HEAD + "".join(messages) + "</wsnt:Notify></s:Body></s:Envelope>").encode()


def _read(data: bytes) -> list[Event]:
    return list(onvif([Record(data, "s", 0, NOW)]))


def _one(topic: str, source: str, data: str, operation: str = "Changed") -> Event:
    (event,) = _read(_document(_message(topic, source, data, operation)))
    return event


@pytest.mark.parametrize(
    ("topic", "data", "action", "state"),
    [
        ("tns1:VideoSource/MotionAlarm", "State=true", "video_motion", "motion"),
        ("tns1:VideoSource/MotionAlarm", "State=false", "video_motion", "normal"),
        ("tns1:RuleEngine/TamperDetector/Tamper", "IsTamper=true", "camera_tampered", "tampered"),
        (
            "tns1:VideoSource/GlobalSceneChange/ImagingService",
            "State=1",
            "camera_tampered",
            "occluded",
        ),
        ("tns1:VideoSource/SignalLoss", "State=true", "camera_signal_lost", "offline"),
        ("tns1:Device/Trigger/DigitalInput", "LogicalState=true", "digital_input", "active"),
        (
            "tns1:Device/HardwareFailure/StorageFailure",
            "Failed=true",
            "device_failure",
            "failed",
        ),
        ("tns1:Door/State/DoorAlarm", "State=DoorForcedOpen", "door_alarm", "forced"),
        ("tns1:Door/State/DoorAlarm", "State=DoorOpenTooLong", "door_alarm", "held_open"),
        ("tns1:Door/State/DoorTamper", "State=TamperDetected", "door_tamper", "tampered"),
    ],
)
def test_a_topic_has_its_action_and_state(topic, data, action, state):
    event = _one(topic, "Token=in-1", data)

    assert event.fields["event.action"] == action
    assert event.fields["phys.state"] == state
    assert event.fields["phys.point"] == "in-1"
    assert event.time == datetime(2026, 2, 1, 10, tzinfo=UTC)


def test_a_denied_card_is_a_person_s():
    event = _one(
        "tns1:AccessControl/Denied/Credential",
        "AccessPointToken=gate-2",
        "CredentialToken=card-9,Reason=CredentialExpired",
    )

    assert event.fields["event.action"] == "access_denied"
    assert event.fields["event.outcome"] == "failure"
    assert event.fields["phys.subject"] == "card-9"
    assert event.fields["event.reason"] == "CredentialExpired"
    assert "card-9" not in str(event.fields["cw.vendor"])


def test_an_object_is_told_by_its_class():
    event = _one("tns1:RuleEngine/MyRuleDetector/PeopleDetect", "Source=cam-1", "State=true")

    assert event.fields["phys.object"] == "people"


def test_the_first_word_of_a_topic_is_a_state():
    event = _one("tns1:VideoSource/MotionAlarm", "Source=v1", "State=false", "Initialized")

    assert event.fields["event.kind"] == "state"
    assert event.fields["cw.vendor"]["producer"] == "http://192.0.2.7/"


def test_topics_of_makers_are_kept():
    event = _one("tns1:RuleEngine/tnsacme:Smell", "Source=v1", "Level=3")

    assert event.fields["event.action"] == "onvif_notification"
    assert event.fields["cw.vendor"]["topic"] == "RuleEngine/Smell"
    assert event.fields["cw.vendor"]["data.Level"] == "3"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<a/>", "a document without a notification"),
        (b"hello", "no XML"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "no XML: EntitiesForbidden"),
        (_document("<wsnt:NotificationMessage/>"), "a notification without a topic"),
        (
            _document(_message("a", "", "").replace("2026-02-01T10:00:00Z", "yesterday")),
            "no time in UtcTime: 'yesterday'",
        ),
        (b"<" + b"a" * (4 << 20), "4,194,304 are read"),
    ],
)
def test_what_cannot_be_read_is_told(data, reason):
    (event,) = _read(data)

    assert event.is_malformed
    assert reason in event.fields["event.reason"]


def test_a_document_is_recognised():
    assert looks_like_onvif(_document(_message("a", "", "")))
    assert not looks_like_onvif(b"<Siri/>")


def test_the_collector_keeps_its_promises():
    door = _message("tns1:Door/State/DoorAlarm", "DoorToken=d", "State=DoorForcedOpen")
    check_collector(onvif, [_document(door, _message("tns1:VideoSource/SignalLoss", "", ""))])
