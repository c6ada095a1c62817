"""Traffic signal controllers: modes, plans, conflicts, doors, priority and logins."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cityward import Record
from cityward.checks import check_collector
from collectors.transport.gates import looks_like_gates
from collectors.transport.signals import looks_like_signals, signals

NOW = datetime(2026, 3, 1, tzinfo=UTC)
COMMON = {"time": "2026-03-01T08:00:00+02:00", "controller": "sig-014"}
LINES: dict[str, dict[str, Any]] = {
    "phase": {"phase": 2, "state": "green"},
    "plan": {"plan": 3, "previous": 1, "user": "m.keller"},
    "mode": {"mode": "flash", "previous": "normal", "cause": "conflict"},
    "conflict": {"phases": [2, 6]},
    "door": {"door": "cabinet", "state": "open"},
    "priority": {
        "vehicle": "B-771", "class": "transit", "state": "granted", "request": "r-9",
        "latitude": 40.64, "longitude": 22.94, "speed": 8.5,
    },
    "login": {"user": "admin", "method": "pin", "result": "success", "is_default": True,
              "source": "10.4.0.9"},
}  # fmt: skip


def _line(kind: str, **more: Any) -> bytes:
    return json.dumps({**COMMON, "event": kind, **LINES.get(kind, {}), **more}).encode()


def _read(data: bytes):
    (event,) = signals([Record(data, "s", 0, NOW)])
    return event


@pytest.mark.parametrize(
    ("kind", "action", "state", "operation"),
    [
        ("phase", "signal_phase", "green", "report"),
        ("plan", "signal_plan", "3", "mode_change"),
        ("mode", "signal_mode", "flash", "mode_change"),
        ("conflict", "signal_conflict", None, "alarm"),
        ("door", "cabinet_door", "open", "report"),
        ("priority", "priority_request", "granted", "control"),
        ("login", "login", None, "auth"),
    ],
)
def test_every_kind_of_line_is_an_event(kind, action, state, operation):
    event = _read(_line(kind))

    assert event.time == datetime(2026, 3, 1, 6, tzinfo=UTC)
    assert event.fields["event.action"] == action
    assert event.fields.get("phys.state") == state
    assert event.fields["ot.operation"] == operation
    assert event.fields["host.name"] == event.fields["phys.point"] == "sig-014"


def test_a_priority_request_says_who_asks_and_where_it_is():
    event = _read(_line("priority"))

    assert event.fields["phys.track"] == "B-771"
    assert event.fields["phys.priority_class"] == "transit"
    assert event.fields["phys.position"] == "40.640000,22.940000"
    assert event.fields["event.outcome"] == "success"
    assert event.fields["ot.link_id"] == "r-9"


def test_a_position_outside_the_world_stays_with_the_vendor():
    event = _read(_line("priority", latitude=91))

    assert "phys.position" not in event.fields
    assert event.fields["cw.vendor"]["latitude"] == 91


def test_a_login_says_how_and_whether_the_pin_is_a_default():
    event = _read(_line("login"))

    assert event.fields["event.outcome"] == "success"
    assert event.fields["user.name"] == "admin"
    assert event.fields["source.ip"] == "10.4.0.9"
    assert event.fields["cw.vendor"] == {"method": "pin", "result": "success", "is_default": True}


@pytest.mark.parametrize(
    "strange",
    [
        _line("mode", mode=None),
        _line("mode", time="soon"),
        _line("mode", controller=""),
        _line("dance"),
        b"[]",
    ],
)
def test_a_line_that_is_another_is_said(strange):
    assert _read(strange).is_malformed


def test_only_lines_of_controllers_are_recognised():
    for kind in LINES:
        assert looks_like_signals(_line(kind))
        assert not looks_like_gates(_line(kind))
    assert not looks_like_signals(b'{"controller": "c", "time": 1}')


def test_the_collector_keeps_its_promises():
    check_collector(signals, [_line(kind) for kind in LINES], mutants_each=60)
