"""The store that backtests are measured on is what it says, and a walk finds the same in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from siem import backtest_bench
from siem.store.archive import archives


def test_a_backtest_of_the_measured_store_finds_what_a_walk_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backtest_bench, "DAYS", 4)
    monkeypatch.setattr(backtest_bench, "WEEK", 2)
    monkeypatch.setattr(backtest_bench, "WALKED", 5_000)
    folder = tmp_path / "events"
    backtest_bench.make(folder, 10_000)

    walked = backtest_bench.walk("a rare login", 10_000)
    found = backtest_bench.measure(folder, "a rare login")
    many = backtest_bench.measure(backtest_bench.linked(folder, 3), "a rare login")

    assert len(archives(folder)) == 4
    assert (found["events"], found["files"]) == (10_000, 4)
    assert found["found"] == 2 * walked["found"] > 0  # the second week has what the first has
    assert (many["events"], many["found"]) == (30_000, 3 * found["found"])


def test_its_events_have_some_35_fields_and_never_change() -> None:
    events = [backtest_bench._event(number, backtest_bench.BEGIN) for number in range(2_000)]

    assert 30 < sum(map(len, events)) / len(events) < 40
    assert events == [backtest_bench._event(n, backtest_bench.BEGIN) for n in range(2_000)]


def test_its_memory_is_its_own_and_not_that_of_who_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backtest_bench, "DAYS", 1)
    backtest_bench.make(tmp_path, 100)
    ballast = bytearray(b"x" * 400_000_000)

    alone = backtest_bench._alone("measure", str(tmp_path), "no such value")

    assert len(ballast) == 400_000_000
    assert 20 < alone["peak_rss_mb"] < 300
