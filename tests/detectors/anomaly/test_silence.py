"""Silence: who is quiet for longer than they ever were is told, in time alone, and once."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import pytest

from cityward import Event, Finding
from detectors.anomaly.silence import Silence, speaker_of
from detectors.anomaly.state import pack
from tests.detectors.anomaly.plant import (
    CONTROLLER,
    DAY_S,
    FLOW,
    START,
    event,
    flow,
    gauge,
    message,
    noise,
)

MINUTE_S = 60.0


def heard(model: Silence, events: Iterable[Event]) -> list[Finding]:
    return list(model.detect(list(events)))


def ticked(model: Silence, at_s: float) -> list[Finding]:
    return list(model.tick(START + timedelta(seconds=at_s)))


def speaks(point: str, since_s: float, until_s: float, every_s: float = MINUTE_S) -> list[Event]:
    """Readings of a gauge, each a little early or late."""
    return [
        gauge(since_s + number * every_s + 3.0 * noise(number), 2.0, point=point)
        for number in range(int((until_s - since_s) / every_s))
    ]


def three_gauges(until_s: float, since_s: float = 0.0) -> list[Event]:
    both = [one for point in ("a", "b", "c") for one in speaks(f"bridge-{point}", since_s, until_s)]
    return sorted(both, key=lambda one: one.time)


def test_who_falls_silent_is_told_once_in_tick_with_numbers() -> None:
    model = Silence()
    heard(model, three_gauges(3_600.0))
    others = [one for one in three_gauges(3_960.0, 3_600.0) if "a" not in one.fields["phys.point"]]

    found = heard(model, others[:4]) + ticked(model, 3_720.0)
    assert found == []
    [spoken] = heard(model, others[4:]) + ticked(model, 3_960.0)

    assert spoken.title == "Silent for longer than ever"
    assert spoken.description == (
        "no message from bridge-a for 6 min; longest pause in 58 min was 64 s"
    )
    assert spoken.analytic.id == "model.silence.speaker"
    assert spoken.severity == "medium"
    assert spoken.type == "anomaly"
    assert spoken.category == ("availability",)
    assert spoken.group == (("observer.name", "gauges"), ("phys.point", "bridge-a"))
    assert spoken.events == ()
    assert (spoken.why.unit, spoken.why.threshold) == ("s", 191.1)
    assert ticked(model, 4_000.0) == []
    assert ticked(model, 4_050.0) == []


def test_who_speaks_again_may_fall_silent_again() -> None:
    model = Silence()
    heard(model, speaks("bridge-a", 0.0, 3_600.0))
    first = ticked(model, 4_000.0)

    heard(model, speaks("bridge-a", 4_020.0, 7_200.0))

    assert len(first) == 1
    assert ticked(model, 7_300.0) == []
    assert len(ticked(model, 9_000.0)) == 1


def test_when_a_whole_source_is_silent_that_is_one_finding() -> None:
    model = Silence()
    heard(model, three_gauges(3_600.0))

    [found] = ticked(model, 4_200.0)

    assert found.title == "Source is silent"
    assert found.analytic.id == "model.silence.source"
    assert found.description.startswith("no message from source gauges for 11 min; longest pause")
    assert found.group == (("observer.name", "gauges"),)


def test_after_the_pause_of_a_whole_source_nobody_of_it_was_silent() -> None:
    model = Silence()
    heard(model, three_gauges(3_600.0))
    ticked(model, 7_200.0)

    assert heard(model, three_gauges(9_000.0, 7_200.0)) == []
    assert ticked(model, 9_010.0) == []


def test_a_source_that_has_ended_is_not_silent() -> None:
    model = Silence()
    heard(model, three_gauges(3_600.0))

    model.end("gauges")
    model.end("nobody")

    assert ticked(model, 10 * 3_600.0) == []


def test_a_file_of_last_year_stands_still_at_its_end() -> None:
    model = Silence()
    year_s = 365 * DAY_S
    old = [
        event(one.time.timestamp() - START.timestamp(), one.fields, one.logsource, "f", year_s)
        for one in three_gauges(3_600.0)
    ]

    assert heard(model, old) == []
    assert ticked(model, year_s + 3_600.0) == []


def test_within_a_file_its_own_time_tells_who_is_silent() -> None:
    model = Silence()
    year_s = 365 * DAY_S
    rows = [
        one
        for one in three_gauges(7_200.0)
        if one.fields["phys.point"] != "bridge-a" or one.time < START + timedelta(hours=1)
    ]

    [found] = heard(
        model, (event((one.time - START).total_seconds(), one.fields, one.logsource, "f", year_s)
                for one in rows)
    )  # fmt: skip

    assert found.severity == "low"
    assert dict(found.group)["phys.point"] == "bridge-a"


@pytest.mark.parametrize("jump_s", [-400 * DAY_S, -3_600.0, 2 * DAY_S, 400 * DAY_S])
def test_a_clock_that_jumps_is_no_silence(jump_s: float) -> None:
    model = Silence()
    heard(model, three_gauges(3_600.0))

    after = heard(model, three_gauges(7_200.0 + jump_s, 3_660.0 + jump_s))

    assert after == []
    assert model.jumps == 1
    assert ticked(model, 7_200.0 + jump_s) == []


def test_who_comes_and_goes_as_they_like_is_not_missed() -> None:
    model = Silence()
    irregular = [
        gauge(number * 60.0 + (number // 10) ** 3 * 30.0, 2.0, point="door") for number in range(80)
    ]
    host = [
        event(number * 60.0, flow(0.0, "10.0.0.20").fields, FLOW, "gauges") for number in range(80)
    ]

    heard(model, [*irregular, *host, *three_gauges(36_000.0)])

    assert [one.description for one in ticked(model, 36_100.0)] == []


def test_who_spoke_a_few_times_is_not_missed() -> None:
    # the first day of a small site: a gauge that reports each quarter of an hour
    model = Silence()
    heard(model, [*speaks("new", 0.0, 25 * 900.0, 900.0), *three_gauges(25 * 900.0)])

    heard(model, three_gauges(20 * 3_600.0, 25 * 900.0))

    assert ticked(model, 20 * 3_600.0) == []


def test_a_burst_counts_as_one_message() -> None:
    model = Silence()
    polls = [
        message(minute * 60.0 + 0.01 * number, 3, number, 5, answer=True)
        for minute in range(60)
        for number in range(20)
    ]
    heard(model, polls)

    [found] = ticked(model, 60 * 60.0 + 200.0)

    assert found.group == (("destination.ip", CONTROLLER), ("observer.name", "tap"))
    assert "after 59 pauses" in found.why.checks[0].saw


@pytest.mark.parametrize(
    ("event", "found"),
    [
        (gauge(0.0, 2.0), ("phys.point", "bridge-3")),
        (message(0.0, 3, 1, 5, answer=True), ("destination.ip", CONTROLLER)),
        (message(0.0, 3, 1), None),
        (flow(0.0, "10.0.0.20"), None),
    ],
)
def test_gauges_and_controllers_speak_hosts_do_not(
    event: Event, found: tuple[str, str] | None
) -> None:
    assert speaker_of(event) == found


# ---- bounds, and life after a restart


def test_speakers_and_sources_are_bounded_and_counted() -> None:
    model = Silence(speakers_max=100, sources_max=10)

    heard(model, (gauge(float(at), 1.0, point=f"gauge-{at}") for at in range(1_000)))
    assert (len(model), model.evicted) == (101, 900)

    heard(
        model,
        (event(float(at), {}, source=f"source-{at}") for at in range(100)),
    )
    assert len(model) == 10
    assert model.evicted == 900 + 91


def test_after_a_restart_it_goes_on_and_the_time_nobody_listened_is_no_silence() -> None:
    model = Silence()
    heard(model, three_gauges(3_600.0))
    other = Silence()

    other.restore(model.snapshot())

    assert other.snapshot() == model.snapshot()
    # down for two hours; nothing is said before it is heard, nor of the time between
    assert ticked(other, 3 * 3_600.0) == []
    assert heard(other, three_gauges(3.5 * 3_600.0, 3 * 3_600.0)) == []
    assert [one.title for one in ticked(other, 3.7 * 3_600.0)] == ["Source is silent"]


def test_a_snapshot_of_another_version_is_refused_and_changes_nothing() -> None:
    model = Silence()
    heard(model, three_gauges(600.0))
    before = model.snapshot()

    with pytest.raises(ValueError, match="is wanted"):
        model.restore(pack(model.name, 99, {}))

    assert model.snapshot() == before
