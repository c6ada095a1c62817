"""The group of a finding, whatever a sender wrote into its fields."""

from __future__ import annotations

from datetime import UTC, datetime

from cityward import Event, LogSource, Record
from cityward.finding import group_of

TIME = datetime(2026, 1, 5, tzinfo=UTC)


def test_a_number_too_long_to_be_written_is_still_a_group() -> None:
    fields = {"source.ip": "192.0.2.7", "user.name": 10**5_000}
    event = Event(TIME, LogSource(), fields, Record(b"", "x", 0, TIME))

    group = dict(group_of(event))

    assert group["source.ip"] == "192.0.2.7"
    assert group["user.name"] == hex(10**5_000)
