"""Series: a step, a spike, a line that does not move any more; ordinary readings say nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import pytest

from cityward import Event, Finding
from detectors.anomaly.series import CHANNELS, HST_WINDOW, Series, reading
from detectors.anomaly.state import pack
from tests.detectors.anomaly.plant import DAY_S, gauge, message, noise

QUARTER_S = 900.0
DAYS = 20
ROWS = int(DAYS * DAY_S / QUARTER_S)
NOW_S = DAYS * DAY_S


def tide(number: int) -> float:
    """A water level: half a metre up and down each day, and 2 cm of noise."""
    at_s = number * QUARTER_S
    return round(2.0 + 0.5 * math.sin(2 * math.pi * at_s / DAY_S) + 0.02 * noise(number), 3)


def levels(first: int, rows: int) -> list[Event]:
    """Readings each quarter of an hour."""
    return [gauge(number * QUARTER_S, tide(number)) for number in range(first, first + rows)]


def told(model: Series, events: Iterable[Event]) -> list[Finding]:
    return list(model.detect(list(events)))


@pytest.fixture(scope="module")
def learnt() -> bytes:
    """The state after twenty ordinary days, in which nothing was said."""
    model = Series(forests_max=0)
    assert told(model, levels(0, ROWS)) == []
    return model.snapshot()


@pytest.fixture
def model(learnt: bytes) -> Series:
    """A model that knows twenty ordinary days."""
    made = Series(forests_max=0)
    made.restore(learnt)
    return made


def test_a_step_is_told_with_what_was_expected_and_again_once_it_is_sure(model: Series) -> None:
    stepped = [
        gauge((ROWS + number) * QUARTER_S, tide(ROWS + number) + 3.0) for number in range(40)
    ]

    found, surer = told(model, stepped)

    assert found.analytic.id == "model.series.sensor"
    assert found.severity == "low"
    assert found.type == "anomaly"
    assert found.title == "Reading outside all that was ever read"
    assert found.description == (
        "water_level of bridge-3 is 5.005 m, expected 1.7502 ± 0.2436 m; "
        "usual 1.484 to 2.514 m in 20 days"
    )
    assert found.group == (("phys.point", "bridge-3"), ("phys.quantity", "water_level"))
    assert found.first_seen == stepped[0].time
    assert (surer.group, surer.first_seen) == (found.group, stepped[4].time)
    assert found.why.unit == "decades"
    assert found.why.score is not None
    assert found.why.score >= 4.0


def test_a_spike_is_told_at_once_or_within_five_rows(model: Series) -> None:
    spike = gauge(NOW_S, 60.0)

    found = told(model, [spike, *levels(ROWS + 1, 30)])

    assert len(found) == 1
    assert found[0].first_seen.timestamp() - spike.time.timestamp() <= 5 * QUARTER_S


def test_a_line_that_does_not_move_any_more_is_told() -> None:
    model = Series(forests_max=0)
    told(model, (gauge(at * 60.0, round(4.0 + noise(at), 2)) for at in range(3_000)))

    found = told(model, (gauge((3_000 + at) * 60.0, 4.01) for at in range(200)))

    # at once when it is longer than ever, and again when it is sure
    said = "water_level of bridge-3 stays at 4.01 m for {} readings, longest before 1, in 2 days"
    assert [one.title for one in found] == ["Reading does not move any more"] * 2
    assert [one.description for one in found] == [said.format(5), said.format(82)]


def test_a_rate_that_was_never_seen_is_told(model: Series) -> None:
    # within the usual range all the time, but up and down by half its width each quarter
    shaken = [
        gauge((ROWS + number) * QUARTER_S, 2.0 + (0.45 if number % 2 else -0.45))
        for number in range(40)
    ]

    found = told(model, shaken)

    assert found
    assert "change" in [check.field for check in found[0].why.checks[:2]]


def test_ordinary_days_stay_without_a_word(model: Series) -> None:
    assert told(model, levels(ROWS, 20 * 96)) == []


def test_a_sensor_is_not_spoken_of_before_it_has_settled() -> None:
    model = Series()
    wild = [gauge(number * 60.0, 1e6 * noise(number * number)) for number in range(300)]

    assert told(model, wild) == []


def test_a_counter_that_only_rises_and_a_switch_stay_without_a_word() -> None:
    model = Series(forests_max=0)
    meter = [gauge(number * QUARTER_S, number * 1.25, point="meter") for number in range(3_000)]
    switch = [
        gauge(number * QUARTER_S + 1.0, float(number // 40 % 2), point="gate")
        for number in range(3_000)
    ]
    idle = [gauge(number * QUARTER_S + 2.0, 0.0, point="rain") for number in range(3_000)]

    assert told(model, [*meter, *switch, *idle]) == []
    assert len(model) == 3


def test_a_state_that_lasts_is_told_twice_a_day_at_most(model: Series) -> None:
    # a pump runs dry for three days
    high = [
        gauge((ROWS * QUARTER_S) + number * 10.0, 9.0 + 0.01 * noise(number))
        for number in range(3 * 8_640)
    ]

    found = told(model, high)

    assert 1 <= len(found) <= 6


def test_one_strange_day_does_not_become_usual(model: Series) -> None:
    key = "bridge-3|water_level"
    before = model._sensors[key].high

    told(model, (gauge((ROWS + number) * QUARTER_S, 50.0) for number in range(96)))

    sensor = model._sensors[key]
    assert sensor.high == before
    assert 1.0 < sensor.level < 3.0


# ---- what is a reading


@pytest.mark.parametrize(
    ("event", "found"),
    [
        (gauge(0.0, 2.5), ("bridge-3|water_level", 2.5)),
        (gauge(0.0, 2.5, more={"phys.quality": "bad"}), None),
        (gauge(0.0, float("nan")), None),
        (gauge(0.0, float("inf")), None),
        (gauge(0.0, 1e15), None),
        (gauge(0.0, True), None),
        (gauge(0.0, 2.5, more={"phys.reading": "2.5"}), None),
        (gauge(0.0, 2.5, more={"phys.point": None}), None),
        (
            message(0.0, 3, 7, 450, answer=True),
            ("10.0.1.7|1|holding_register|7|1", 450.0),
        ),
        (message(0.0, 3, 7, answer=True), None),
        (message(0.0, 6, 7, 450), None),
        (message(0.0, 6, 7, 450, answer=True, more={"ot.is_command": True}), None),
    ],
)
def test_what_is_no_reading_belongs_to_no_series(
    event: Event, found: tuple[str, float] | None
) -> None:
    assert reading(event) == found


# ---- the forest


def forest_rows(rows: int, first: int = 0) -> Sequence[Event]:
    return [gauge(number * 60.0, 2.0 + noise(number)) for number in range(first, first + rows)]


def test_the_forest_votes_once_it_has_seen_enough_and_the_finding_says_who_voted() -> None:
    model = Series()
    told(model, forest_rows(3_000))

    found, *_ = told(model, [gauge(3_000 * 60.0 + 60.0 * at, 40.0) for at in range(6)])

    assert "river" in found.why.condition.partition("votes: ")[2]
    assert "river" in [check.field for check in found.why.checks]


def test_after_a_restart_the_forest_is_left_out_until_it_is_rebuilt() -> None:
    model = Series()
    told(model, forest_rows(2_000))
    other = Series()
    other.restore(model.snapshot())
    key = "bridge-3|water_level"

    votes = []
    for event in forest_rows(2 * HST_WINDOW + 10, first=2_000):
        _, channels, sensor = other.score(key, event.fields["phys.reading"], 0.0)
        votes.append("river" in channels)
        assert sensor.forest is not None

    assert votes == [False] * (2 * HST_WINDOW) + [True] * 10


def test_forests_go_to_the_first_who_come() -> None:
    model = Series(forests_max=1)
    told(model, forest_rows(400))
    told(model, (gauge(number * 60.0, noise(number), point="other") for number in range(400)))

    assert [sensor.forest is not None for sensor in model._sensors.values()] == [True, False]


# ---- bounds, and life after a restart


def test_sensors_are_bounded_and_the_least_recently_seen_makes_room() -> None:
    model = Series(sensors_max=50)

    told(model, (gauge(at * 1.0, 1.0, point=f"sensor-{at}") for at in range(1_000)))

    assert (len(model), model.evicted) == (50, 950)
    assert next(iter(model._sensors)) == "sensor-950|water_level"


def test_a_forest_of_a_forgotten_sensor_makes_room_for_another() -> None:
    model = Series(sensors_max=1, forests_max=1)

    for name in ("a", "b"):
        told(model, (gauge(at * 1.0, noise(at), point=name) for at in range(400)))

    assert [sensor.forest is not None for sensor in model._sensors.values()] == [True]


def test_after_a_restart_the_same_readings_give_the_same_scores(model: Series) -> None:
    other = Series(forests_max=0)
    other.restore(model.snapshot())
    key = "bridge-3|water_level"
    ahead = [*levels(ROWS, 300), *(gauge(NOW_S + at * QUARTER_S, 9.0) for at in range(300, 310))]

    for event in ahead:
        value, at_s = event.fields["phys.reading"], event.time.timestamp()
        one, votes, _ = model.score(key, value, at_s)
        again, votes_again, _ = other.score(key, value, at_s)
        assert again == pytest.approx(one, abs=1e-6)
        assert votes == votes_again
        assert told(model, [event]) == told(other, [event])
    assert model.snapshot() == other.snapshot()


def test_a_snapshot_of_another_version_is_refused_and_changes_nothing(model: Series) -> None:
    before = model.snapshot()

    with pytest.raises(ValueError, match="is wanted"):
        model.restore(pack(model.name, 99, {}))

    assert model.snapshot() == before


def test_a_sensor_costs_about_a_quarter_of_a_forest_and_no_more(model: Series) -> None:
    arrays = sum(len(one.counts) * 4 for one in model._sensors["bridge-3|water_level"].channels)

    assert arrays == 1024 * len(CHANNELS)
    assert len(model.snapshot()) < 12_000
