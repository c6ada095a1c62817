"""From scores to probabilities, and from a budget to a threshold."""

from __future__ import annotations

import random

import pytest

from detectors.anomaly.calibrate import Budget, Calibration


def _learnt(rows: int = 20_000, seed: int = 1) -> Calibration:
    """Scores of an exponential distribution with mean 10."""
    chance = random.Random(seed)
    made = Calibration()
    for _ in range(rows):
        made.add(chance.expovariate(0.1))
    return made


def test_a_higher_score_is_never_more_probable() -> None:
    calibration = _learnt()

    found = [calibration.p(score / 10) for score in range(3_000)]

    assert found == sorted(found, reverse=True)
    assert found[-1] < 1e-6
    assert found[-1] > 0.0


def test_the_tail_is_that_of_the_distribution_it_learnt() -> None:
    calibration = _learnt()

    # p(score) = exp(-score / 10), within a factor: 39 is the 98 % quantile, 92 is beyond all rows
    assert calibration.start == pytest.approx(39.1, abs=2.0)
    assert calibration.p(10.0) == pytest.approx(0.368, rel=0.05)
    assert calibration.p(46.05) == pytest.approx(0.01, rel=0.2)
    assert calibration.p(69.08) == pytest.approx(0.001, rel=0.5)
    assert 1e-5 < calibration.p(92.1) < 1e-3


def test_a_score_that_is_reached_with_a_probability_has_that_probability() -> None:
    calibration = _learnt()

    for p in (1e-2, 1e-3, 1e-5, 1e-9):
        assert calibration.p(calibration.score_at(p)) == pytest.approx(p, rel=1e-6)


def test_a_score_nobody_saw_is_improbable_even_where_all_rows_were_equal() -> None:
    calibration = Calibration()
    for _ in range(1_000):
        calibration.add(3.0)

    assert calibration.p(3.0) > 0.9
    assert calibration.p(100.0) < 1e-4
    assert calibration.quantile(0.5) == pytest.approx(3.0, abs=0.1)
    assert calibration.highest() == pytest.approx(3.0, abs=0.1)


def test_scores_out_of_all_bounds_are_counted_at_the_edges() -> None:
    calibration = Calibration()
    for score in (-5.0, 0.0, 1e9, 1e300, 250.0):
        calibration.add(score)

    assert calibration.counts[0] == 2.0
    assert calibration.counts[255] == 3.0
    assert sum(calibration.counts) == calibration.rows == 5.0
    assert 0.0 < calibration.p(1e300) <= 1.0
    assert calibration.p(-5.0) == pytest.approx(1.0, abs=0.1)


def test_old_rows_fade_at_a_million() -> None:
    calibration = Calibration()
    calibration.counts[32] = 1_000_000.0
    calibration.rows = 1_000_000.0

    for _ in range(64):
        calibration.add(1.0)

    assert calibration.rows < 500_100.0
    assert sum(calibration.counts) == pytest.approx(calibration.rows)


def test_a_snapshot_gives_the_same_probabilities_and_goes_on_alike() -> None:
    one = _learnt(777)
    other = Calibration.of(one.counts.tobytes(), one.header())
    chance = random.Random(5)

    for _ in range(500):
        score = chance.expovariate(0.1)
        assert one.add(score) == other.add(score)
        assert one.p(score) == other.p(score)


@pytest.mark.parametrize(
    ("counts", "header"), [(b"", [0.0] * 6), (bytes(1024), [0.0] * 5), (bytes(1024), ["x"] * 6)]
)
def test_what_is_no_snapshot_is_refused(counts: bytes, header: list[object]) -> None:
    with pytest.raises(ValueError, match=r"histogram|could not convert"):
        Calibration.of(counts, header)


def test_a_budget_of_findings_a_day_becomes_a_probability_by_the_rate_of_rows() -> None:
    budget = Budget(findings_per_day=0.02, p_max=1e-3)

    # 86,400 rows a day for 100 days: 0.02 findings a day are one row in 4.32 million
    assert budget.p(8_640_000, 8_640_000.0) == pytest.approx(0.02 / 86_400)
    # 200 rows a day: one row in 10,000
    assert budget.p(2_000_000, 864_000_000.0) == pytest.approx(1e-4)
    # young, 2,000 rows in an hour: a tenth of one row in all that were seen
    assert budget.p(2_000, 3_600.0) == pytest.approx(0.1 / 2_000)
    # rows that hardly ever come: never more probable than p_max
    assert budget.p(10, 864_000.0) == 1e-3
    assert budget.p(0, 0.0) == 1e-3


def test_usual_rows_speak_about_as_often_as_the_budget_says() -> None:
    calibration, chance, spoken = _learnt(50_000), random.Random(9), 0
    limit = calibration.score_at(1e-3)

    for _ in range(50_000):
        spoken += chance.expovariate(0.1) >= limit

    assert 10 <= spoken <= 150  # 50 are wanted
