"""What the online models find and cost: `python tests/benchmarks/bench_models.py [DATA]`.

Events a CPU second of each model on real and invented traffic, and published metrics of NAB and
SKAB with the settings that a node has; nothing is fitted to a label unless the row says so. NAB is
scored as its profiles say, on the 57 series and 115 windows we have; SKAB by outlier F1 over all
files, the threshold being the 99 % quantile of each file's first 400 rows.
"""

from __future__ import annotations

import csv
import gc
import io
import json
import math
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cityward import Event
from detectors.anomaly.series import Series
from detectors.anomaly.silence import Silence
from detectors.anomaly.surprise import Surprise
from tests.detectors.anomaly.plant import flow, gauge, message, noise
from tests.detectors.anomaly.real import capture_events

Row = dict[str, Any]
REPEATS = 3
PROBATION = 0.15
"""NAB: so much of a series, and no more than of 5,000 rows, is not scored."""
SKAB_TRAIN = 400
SKAB_SKIPPED = ("datetime", "anomaly", "changepoint")


def run(data: Path | None) -> list[Row]:
    """Measure all of it; without real data only the invented traffic."""
    rows = list(speeds(data))
    if data is not None:
        rows += nab(data / "anomaly/nab.tar.gz")
        rows += skab(data / "anomaly/skab.tar.gz")
        rows.append(water_loop(data / "energy/water_loop_valve_anomaly_labelled.csv"))
    return rows


# ---- speed


def speeds(data: Path | None) -> Iterator[Row]:
    """Events a CPU second, best of three, each model alone."""
    polls = [
        message(number * 0.1, 3, number % 50, int(500 + 40 * noise(number)), answer=True)
        for number in range(30_000)
    ]
    flows = [
        flow(number * 0.5, f"10.0.{number % 7}.{number % 31}", (53, 123, 443)[number % 3])
        for number in range(30_000)
    ]
    gauges = [
        gauge(number * 1.0, 2.0 + noise(number), point=f"g{number % 20}")
        for number in range(30_000)
    ]
    inputs = {"polls with values": polls, "flows": flows, "20 gauges": gauges}
    if data is not None:
        inputs["plant capture"] = capture_events(data / "energy/modbus_plant1_normal.pcap")
    for what, events in inputs.items():
        models = {"surprise": Surprise, "series": Series, "silence": Silence}
        for name, make in models.items():
            if (name, what) not in {("surprise", "20 gauges"), ("series", "flows")}:
                yield {"model": name, "input": what, "events_per_cpu_s": _rate(make, events)}
    yield {
        "model": "series without forests",
        "input": "polls with values",
        "events_per_cpu_s": _rate(lambda: Series(forests_max=0), polls),
    }


def _rate(make: Any, events: Sequence[Event]) -> int:
    least_s = math.inf
    for _ in range(REPEATS):
        model = make()
        began_s = time.process_time()
        for _ in model.detect(events):
            pass
        least_s = min(least_s, time.process_time() - began_s)
    return round(len(events) / least_s)


# ---- NAB


def nab(path: Path) -> Iterator[Row]:
    """Scores of the findings, and of the best single limit, as NAB publishes them."""
    with tarfile.open(path) as archive:
        windows = json.load(_member(archive, "labels/combined_windows.json"))
        profiles = json.load(_member(archive, "config/profiles.json"))
        series = {name: list(_nab_rows(archive, name)) for name in windows}
    spoken = {name: _findings(rows) for name, rows in series.items()}
    yield {"data": "NAB", "by": "findings", **_nab_scores(spoken, series, windows, profiles)}
    rare = {name: _rarity(rows) for name, rows in series.items()}
    best: Row = {}
    for decades in (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0):
        alerts = {name: _first_crossings(one, decades) for name, one in rare.items()}
        found = _nab_scores(alerts, series, windows, profiles)
        if not best or found["standard"] > best["standard"]:
            best = {"by": f"one limit, fitted: p < 1e-{decades:g}", **found}
    yield {"data": "NAB", **best}


def _nab_rows(archive: tarfile.TarFile, name: str) -> Iterator[tuple[float, float]]:
    text = io.TextIOWrapper(_member(archive, f"data/{name}"), "utf-8")
    for row in csv.DictReader(text):
        when = datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC)
        yield when.timestamp(), float(row["value"])


def _findings(rows: Iterable[tuple[float, float]]) -> list[int]:
    """Numbers of the rows at which a node would have said something."""
    model, found = Series(), []
    for number, (at_s, value) in enumerate(rows):
        found += [number for _ in model.detect([_reading(at_s, value)])]
    return found


def _rarity(rows: Iterable[tuple[float, float]]) -> list[float]:
    """−log10 p of each row."""
    model, found = Series(), []
    for at_s, value in rows:
        score, votes, sensor = model.score("x", value, at_s)
        found.append(-math.log10(sensor.total.p(score)) if votes else 0.0)
        model.learn(sensor, at_s, value, score, votes)
    return found


def _first_crossings(rarity: Sequence[float], decades: float, rest: int = 100) -> list[int]:
    found: list[int] = []
    for number, one in enumerate(rarity):
        if one >= decades and (not found or number - found[-1] > rest):
            found.append(number)
    return found


def _nab_scores(
    alerts: dict[str, list[int]], series: dict[str, Any], windows: dict[str, Any], profiles: Any
) -> Row:
    """The normalised scores of the three profiles: 0 says nothing, 100 is perfect.

    References:
        Lavin and Ahmad 2015, "Evaluating real-time anomaly detection algorithms", section 3.
    """
    found: Row = {}
    number = sum(map(len, windows.values()))
    for profile, said in profiles.items():
        costs = said["CostMatrix"]
        raw = sum(_nab_raw(alerts[name], series[name], windows[name], costs) for name in windows)
        null = -costs["fnWeight"] * number
        found[profile] = round(100 * (raw - null) / (costs["tpWeight"] * number - null), 1)
    found["alerts"] = sum(map(len, alerts.values()))
    return found


def _nab_raw(alerts: Sequence[int], rows: Any, windows: Any, costs: Any) -> float:
    """Raw score of one series: early hits are worth more, false alarms far from a window cost."""
    times = [at_s for at_s, _ in rows]
    probation = math.floor(PROBATION * min(len(rows), 5_000))
    spans = [
        (_index(times, _epoch(begin)), _index(times, _epoch(end), last=True))
        for begin, end in windows
    ]
    hit: set[int] = set()
    score: float = 0.0
    for alert in sorted(one for one in alerts if one >= probation):
        inside = next((at for at, (low, high) in enumerate(spans) if low <= alert <= high), None)
        if inside is not None:
            low, high = spans[inside]
            if inside not in hit:
                hit.add(inside)
                score += (
                    costs["tpWeight"]
                    * _sigmoid(-(high - alert + 1) / (high - low + 1))
                    / (_sigmoid(-1.0))
                )
            continue
        before = [span for span in spans if span[1] < alert]
        far = (alert - before[-1][1]) / max(before[-1][1] - before[-1][0], 1) if before else 4.0
        score += costs["fpWeight"] * (_sigmoid(far) if far <= 3.0 else -1.0)
    missed: float = costs["fnWeight"] * (len(spans) - len(hit))
    return float(score - missed)


def _sigmoid(place: float) -> float:
    return 2.0 / (1.0 + math.exp(5.0 * place)) - 1.0


def _epoch(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def _index(times: Sequence[float], at_s: float, last: bool = False) -> int:
    if last:
        return max(number for number, one in enumerate(times) if one <= at_s)
    return min(number for number, one in enumerate(times) if one >= at_s)


# ---- SKAB


def skab(path: Path) -> Iterator[Row]:
    """Outlier F1 over the labelled files, and the false alarms on the file without anomaly."""
    with tarfile.open(path) as archive:
        names = sorted(name for name in archive.getnames() if name.endswith(".csv"))
        files = {name: list(_skab_rows(_member(archive, name))) for name in names}
    free = {name: rows for name, rows in files.items() if "anomaly-free" in name}
    labelled = {name: rows for name, rows in files.items() if name not in free}
    yield {"data": "SKAB", "files": len(labelled), **_f1(labelled.values())}
    for name, rows in free.items():
        said = len(_skab_findings(rows))
        yield {"data": name, "rows": len(rows), "findings of 8 sensors": said}


def water_loop(path: Path) -> Row:
    """The one labelled file of the energy folder, and what a node would have said of it."""
    with path.open("rb") as file:
        rows = list(_skab_rows(file))
    said = _skab_findings(rows)
    inside = sum(rows[number]["anomaly"] == "1.0" for number in said)
    return {"data": path.name, **_f1([rows]), "findings": len(said), "inside the window": inside}


def _f1(files: Iterable[Sequence[dict[str, str]]]) -> Row:
    hits = false = missed = ordinary = 0
    for rows in files:
        scores = _skab_scores(rows)
        limit = sorted(scores[:SKAB_TRAIN])[int(0.99 * SKAB_TRAIN)]
        for row, score in zip(rows, scores, strict=True):
            anomaly, told = row["anomaly"] == "1.0", score > limit
            hits += anomaly and told
            missed += anomaly and not told
            false += told and not anomaly
            ordinary += not anomaly
    return {
        "f1": round(2 * hits / (2 * hits + false + missed), 3),
        "false_alarms_pct": round(100 * false / ordinary, 1),
        "missed_pct": round(100 * missed / (hits + missed), 1),
    }


def _skab_rows(file: Any) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(io.TextIOWrapper(file, "utf-8"), delimiter=";")


def _skab_scores(rows: Sequence[dict[str, str]]) -> list[float]:
    """Decades of improbability of each row, added over its sensors."""
    model, found = Series(), []
    for row in rows:
        at_s, total = _epoch(row["datetime"]), 0.0
        for name, value in row.items():
            if name not in SKAB_SKIPPED:
                score, votes, sensor = model.score(name, float(value), at_s)
                model.learn(sensor, at_s, float(value), score, votes)
                total += score
        found.append(total)
    return found


def _skab_findings(rows: Sequence[dict[str, str]]) -> list[int]:
    model, found = Series(), []
    for number, row in enumerate(rows):
        events = [
            _reading(_epoch(row["datetime"]), float(value), name)
            for name, value in row.items()
            if name not in SKAB_SKIPPED
        ]
        found += [number for _ in model.detect(events)]
    return found


def _reading(at_s: float, value: float, point: str = "x") -> Event:
    from tests.detectors.anomaly.plant import START

    return gauge(at_s - START.timestamp(), value, point=point)


def _member(archive: tarfile.TarFile, name: str) -> Any:
    file = archive.extractfile(name)
    if file is None:
        raise FileNotFoundError(name)
    return file


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    default = Path(__file__).parents[3] / "shared/data"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    for one in run(folder if folder.is_dir() else None):
        print("  ".join(f"{name}={value}" for name, value in one.items()), flush=True)
