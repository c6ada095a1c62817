"""Sentences: who does what to what, since when that is new, and which number was usual."""

from __future__ import annotations

from typing import Any

import pytest

from detectors.anomaly.words import flow_sentence, number, ot_sentence, saw, span, title


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1.0, "0 s"),
        (89.0, "89 s"),
        (360.0, "6 min"),
        (5_400.0, "2 h"),
        (172_799.0, "48 h"),
        (41 * 86_400.0, "41 days"),
    ],
)
def test_a_length_of_time_is_said_as_a_person_says_it(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_numbers_have_no_needless_digits() -> None:
    assert [number(one) for one in (5, 0.1 + 0.2, 1234567.89, "on")] == [
        "5", "0.3", "1.23457e+06", "on",
    ]  # fmt: skip


def test_a_write_to_a_register_nobody_wrote_reads_as_in_the_style_guide() -> None:
    fields = {
        "source.ip": "10.0.0.8",
        "destination.ip": "10.0.1.7",
        "ot.operation": "write",
        "ot.direction": "request",
        "ot.point.type": "holding_register",
        "ot.point.address": 2,
        "ot.value": 65_280,
    }

    said = ot_sentence("address by function", fields, 41 * 86_400.0, True, (0.0, 900.0))

    assert said == (
        "10.0.0.8 writes register 2 of 10.0.1.7, which nobody wrote in 41 days; "
        "value 65280, usual 0 to 900"
    )
    assert title("address by function", fields) == "Writes a register nobody wrote before"


def test_an_answer_is_told_of_the_one_who_answers() -> None:
    fields = {
        "source.ip": "10.0.0.9",
        "destination.ip": "10.0.1.7",
        "ot.direction": "unsolicited",
        "ot.function.name": "measured_float",
        "ot.value": 50.25,
    }

    said = ot_sentence("value", fields, 600.0, False, None)

    assert said == (
        "10.0.1.7 answers measured_float to 10.0.0.9; value this device never had, "
        "rare in 10 min; value 50.25"
    )


def test_a_flow_is_told_with_its_bytes() -> None:
    fields = {"source.ip": "10.0.0.5", "destination.ip": "10.0.1.7", "source.bytes": 300}

    assert flow_sentence("bytes out", fields, "tcp/502", "SF", 7_200.0, False) == (
        "10.0.0.5 uses tcp/502 of 10.0.1.7; sends an unusual amount of data, rare in 2 h; "
        "300 bytes out, 0 in, ended SF"
    )


@pytest.mark.parametrize("fields", [{}, {"ot.value": []}, {"ot.point.address": "x"}])
def test_a_sentence_comes_of_whatever_an_event_lacks(fields: dict[str, Any]) -> None:
    assert ot_sentence("function", fields, 0.0, True, None).startswith("A host sends")
    assert flow_sentence("peer", fields, "ip", "unknown", 0.0, True).startswith("A host uses")
    assert title("function", fields) == "Function never used on this device"
    assert saw("function by source", fields)
    assert saw("unit", fields) == "none"
