"""The batch model that audits the online ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cityward import Event, LogSource, Record
from detectors.anomaly.challenger import challenge

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def _read(number: int, address: int = 100, function: str = "3") -> Event:
    time = NOON + timedelta(seconds=number)
    fields = {
        "source.ip": "192.0.2.1",
        "destination.ip": "192.0.2.9",
        "ot.function.code": function,
        "ot.unit": "1",
        "ot.point.address": address + number % 8,
        "ot.point.count": 1,
        "ot.is_command": function != "3",
    }
    return Event(
        time, LogSource("ot_protocol", service="modbus"), fields, Record(b"", "s", 1, time)
    )


def test_a_write_among_reads_is_the_strangest_and_says_which_number_is_far() -> None:
    known = [_read(number) for number in range(400)]
    recent = [*(_read(number) for number in range(400, 450)), _read(450, 40_000, "16")]

    found = challenge("ot_protocol", known, recent)

    assert found[0].time == NOON + timedelta(seconds=450)
    assert found[0].score > 1.0
    assert (found[0].feature, found[0].observed) == ("ot.point.address", 40_002.0)
    assert found[0].usual == 103.5
    assert len(found) == 1


def test_what_is_as_usual_is_not_named() -> None:
    known = [_read(number) for number in range(800)]

    assert challenge("ot_protocol", known, known[100:200]) == []


def test_too_few_events_teach_nothing() -> None:
    assert challenge("ot_protocol", [_read(1)] * 199, [_read(2, 40_000)]) == []


def test_the_same_seed_gives_the_same_scores() -> None:
    known = [_read(number) for number in range(300)]
    recent = [_read(300, 40_000, "16")]

    assert challenge("ot_protocol", known, recent, seed=3) == challenge(
        "ot_protocol", known, recent, seed=3
    )
