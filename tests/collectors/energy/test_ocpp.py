"""OCPP as central systems log it: whatever is around a message, it is read alike."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cityward import Record
from cityward.checks import check_collector
from collectors.energy.ocpp import STATIONS_MAX, Ocpp, looks_like_ocpp

NOW = datetime(2026, 3, 1, tzinfo=UTC)
RESET = [2, "s1", "Reset", {"type": "Hard"}]
ACCEPTED = [3, "s1", {"status": "Accepted"}]
STATUS = [2, "c1", "StatusNotification", {"connectorId": 1, "errorCode": "NoError", "status": "X"}]


def _around(message: Any, **said: Any) -> bytes:
    line = {"ts": "2026-03-01T08:00:00Z", "cp": "CP-17", "dir": "out", "msg": message, **said}
    return json.dumps({name: value for name, value in line.items() if value is not None}).encode()


def _steve(text: str) -> bytes:
    return (
        f"[INFO ] 2026-03-01 08:00:00,123 de.rwth.idsg.steve.ocpp.ws.WebSocketLogger (qtp-7) - "
        f"[chargeBoxId=CP-17, sessionId=0a1b2c3d] {text}"
    ).encode()


def _read(*lines: bytes, ocpp: Ocpp | None = None):
    collect = ocpp or Ocpp()
    return list(collect(Record(line, "csms", place, NOW) for place, line in enumerate(lines)))


LINES = {
    "an object": _around(RESET),
    "the message as text": _around(json.dumps(RESET)),
    "other names": json.dumps(
        {"timestamp": 1772352000, "chargePointId": "CP-17", "direction": "Sent", "payload": RESET}
    ).encode(),
    "without a direction": _around(RESET, dir=None),
    "SteVe": _steve(f"Sending: {json.dumps(RESET)}"),
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_command_is_read_whatever_is_around_it(line):
    assert looks_like_ocpp(line)

    (event,) = _read(line)

    assert event.time.replace(microsecond=0) == datetime(2026, 3, 1, 8, tzinfo=UTC)
    assert event.fields["event.action"] == "ocpp_reset"
    assert event.fields["ot.charger.id"] == "CP-17"
    assert event.fields["ot.is_command"] is True
    assert event.fields["cw.vendor"]["sender"] == "central_system"
    assert event.fields["host.name"] == "csms"


def test_a_bare_message_is_read_with_the_time_it_came():
    (event,) = _read(json.dumps(RESET).encode())

    assert event.time == NOW
    assert event.fields["cw.time_source"] == "collector"
    assert event.fields["ot.is_command"] is True
    assert "ot.charger.id" not in event.fields


@pytest.mark.parametrize("direction", ["in", None])
def test_an_answer_is_joined_to_its_call(direction):
    _, answer = _read(
        _around(RESET, dir="out" if direction else None),
        _around(ACCEPTED, dir=direction, ts="2026-03-01T08:00:02Z"),
    )

    assert answer.fields["event.action"] == "ocpp_reset"
    assert answer.fields["ot.direction"] == "response"
    assert answer.fields["event.outcome"] == "success"
    assert answer.fields["event.duration"] == 2_000_000_000


def test_calls_of_two_stations_with_one_id_are_kept_apart():
    found = _read(
        _around([2, "1", "Heartbeat", {}], dir="in", cp="A"),
        _around([2, "1", "Heartbeat", {}], dir="in", cp="B"),
        _around([3, "1", {}], dir="out", cp="A"),
        _around([3, "1", {}], dir="out", cp="B"),
    )

    assert {event.fields.get("event.reason") for event in found} == {None}
    assert [event.fields["ot.charger.id"] for event in found] == ["A", "B", "A", "B"]
    assert len({event.fields["ot.link_id"] for event in found}) == 2


def test_an_answer_nobody_asked_for_is_said():
    (event,) = _read(_around(ACCEPTED, dir="in"))

    assert event.fields["event.reason"] == "no call was seen for this answer"


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("Connection is established", "ocpp_connected"),
        ("Connection is closed, status: CloseStatus[code=1006, reason=null]", "ocpp_disconnected"),
        ("Sending ping message", "ocpp_log"),
    ],
)
def test_connections_of_steve_are_events(text, action):
    (event,) = _read(_steve(text))

    assert event.fields["event.action"] == action
    assert event.fields["message"] == text
    assert event.time == datetime(2026, 3, 1, 8, 0, 0, 123_000, tzinfo=UTC)


def test_secrets_and_tokens_are_not_kept():
    change = [2, "1", "ChangeConfiguration", {"key": "AuthorizationKey", "value": "5ecret"}]
    authorize = [2, "2", "Authorize", {"idTag": "04AABB"}]

    found = _read(_around(change), _around(authorize, dir="in"), b'{"password": "5ecret"')

    assert "5ecret" not in str([event.fields for event in found])
    assert found[1].fields["phys.subject"] == "04AABB"
    assert "04AABB" not in str(found[1].fields["event.original"])
    assert found[2].is_malformed


def test_a_line_without_a_secret_keeps_its_text():
    (event,) = _read(_around(STATUS, dir="in"))

    assert "event.original" not in event.fields  # the node writes it


@pytest.mark.parametrize(
    "strange", [b"{}", b'{"msg": 5}', _around("hello"), b"hello", _around([9, "x", {}])]
)
def test_a_line_that_is_another_is_said(strange):
    (event,) = _read(strange)

    assert event.is_malformed


def test_stations_are_forgotten_when_there_are_too_many():
    ocpp = Ocpp()
    _read(*(_around(STATUS, cp=f"CP-{at}") for at in range(STATIONS_MAX + 5)), ocpp=ocpp)

    assert len(ocpp._stations) == STATIONS_MAX


def test_only_lines_of_ocpp_are_recognised():
    assert looks_like_ocpp(json.dumps(RESET).encode())
    assert looks_like_ocpp(_steve("Connection is established"))
    for strange in (
        b'[2, "x", "Dance", {}]',
        b'{"time": 1, "station": "a", "message": "hello"}',
        b'{"timestamp": "2024-05-01", "rule": {"level": 5}, "message": "[2 times]"}',
        b"[INFO ] Starting",
    ):
        assert not looks_like_ocpp(strange)


def test_the_collector_keeps_its_promises():
    check_collector(
        Ocpp, [*LINES.values(), _around(ACCEPTED, dir="in"), _steve("Connection is established")],
        mutants_each=60,
    )  # fmt: skip
