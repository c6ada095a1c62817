"""Fare gates: who went through, who did not, and how the gate is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cityward import Record
from cityward.checks import check_collector
from collectors.transport.gates import gates, looks_like_gates
from collectors.transport.signals import looks_like_signals

NOW = datetime(2026, 3, 1, tzinfo=UTC)
COMMON = {"time": "2026-03-01T08:00:00+02:00", "station": "ST04", "gate": "ST04-G2"}
VALIDATION = {**COMMON, "event": "validation", "result": "open", "ticket": "9f86d081884c7d65"}
STATE = {**COMMON, "event": "state", "state": "tampered", "previous": "in_service"}


def _line(**said: Any) -> bytes:
    return json.dumps(said).encode()


def _read(data: bytes):
    (event,) = gates([Record(data, "s", 0, NOW)])
    return event


@pytest.mark.parametrize(
    ("result", "action", "outcome", "state"),
    [
        ("open", "gate_opened", "success", "open"),
        ("refused", "gate_refused", "failure", None),
        ("forced", "gate_forced", "failure", "forced"),
    ],
)
def test_a_validation_is_an_event(result, action, outcome, state):
    event = _read(_line(**{**VALIDATION, "result": result}))

    assert event.time == datetime(2026, 3, 1, 6, tzinfo=UTC)
    assert event.fields["event.action"] == action
    assert event.fields["event.outcome"] == outcome
    assert event.fields.get("phys.state") == state
    assert event.fields["phys.subject"] == "9f86d081884c7d65"
    assert (event.fields["phys.point"], event.fields["cw.site"]) == ("ST04-G2", "ST04")


def test_a_state_is_one_and_a_forced_gate_is_said_alike_in_both_forms():
    assert _read(_line(**STATE)).fields["event.action"] == "gate_state"
    assert _read(_line(**STATE)).fields["phys.state_prev"] == "in_service"
    assert _read(_line(**{**STATE, "state": "forced"})).fields["event.action"] == "gate_forced"


def test_a_line_may_come_through_syslog():
    event = _read(b"<134>1 2026-03-01T08:00:00Z afc gate - - - " + _line(**VALIDATION))

    assert event.fields["event.action"] == "gate_opened"


@pytest.mark.parametrize("card", ["4111111111111111", 4111111111111111])
def test_the_number_of_a_payment_card_is_not_kept(card):
    event = _read(_line(**{**VALIDATION, "ticket": card}))

    assert "phys.subject" not in event.fields
    assert "4111" not in str(event.fields)


@pytest.mark.parametrize(
    "strange",
    [
        {**VALIDATION, "time": "soon"},
        {**VALIDATION, "gate": None},
        {**VALIDATION, "result": "maybe"},
        {**STATE, "state": "asleep"},
        {**COMMON, "event": "other"},
        {**COMMON, "event": ["state"]},
    ],
)
def test_a_line_that_is_another_is_said(strange):
    assert _read(_line(**strange)).is_malformed


def test_what_cannot_be_read_is_kept_unless_it_may_hold_a_card():
    strange = _read(_line(**{**STATE, "state": "asleep"}))
    secret = _read(_line(**{**VALIDATION, "result": "maybe", "ticket": "4111111111111111"}))

    assert "asleep" in strange.fields["event.original"]
    assert strange.fields["event.reason"] == "a state that this form does not have: 'asleep'"
    assert "4111" not in str(secret.fields)


def test_only_lines_of_gates_are_recognised():
    assert looks_like_gates(_line(**STATE))
    assert not looks_like_signals(_line(**STATE))
    assert not looks_like_gates(b'{"gauge": "G1", "event": "state"}')


def test_the_collector_keeps_its_promises():
    check_collector(gates, [_line(**VALIDATION), _line(**STATE)])
