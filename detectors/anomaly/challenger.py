"""Batch models that audit the online ones: trained on what was, asked about what is new.

They never speak by themselves: an isolation forest and a plane of principal components name the
recent events that differ most from those before, and the caller sees who else spoke of them.

References:
    Liu, Ting, Zhou: Isolation Forest, ICDM 2008.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from cityward import Event

TREES = 200
ROWS_MIN = 200
"""With fewer events to learn from there is no usual."""
VARIANCE = 0.95
"""Share of the variance that the plane keeps."""
SPREAD_MIN = 1e-3
"""A number that never moved: any other value of it is far."""
STRANGE = 1.0 + 1e-6
SCORE_MAX = 1_000.0
SHARE = 0.001
"""An event is strange if it scores worse than all but this share of those learnt from."""

Numbers = NDArray[np.float64]
Number = Callable[[Event], float]


def _field(name: str) -> Number:
    def number(event: Event) -> float:
        value = event.fields.get(name)
        if isinstance(value, str):
            return float(value) if value.isdecimal() else 0.0
        return float(value) if isinstance(value, (int, float)) and abs(value) < 1e300 else 0.0

    return number


def _log(name: str) -> Number:
    plain = _field(name)
    return lambda event: math.log1p(abs(plain(event)))


FEATURES: dict[str, dict[str, Number]] = {
    "ot_protocol": {
        "ot.function.code": _field("ot.function.code"),
        "ot.unit": _field("ot.unit"),
        "ot.point.address": _field("ot.point.address"),
        "ot.point.count": _field("ot.point.count"),
        "ot.value": _log("ot.value"),
        "ot.is_command": _field("ot.is_command"),
        "hour": lambda event: float(event.time.hour),
    },
    "flow": {
        "destination.port": _field("destination.port"),
        "source.bytes": _log("source.bytes"),
        "destination.bytes": _log("destination.bytes"),
        "event.duration": _log("event.duration"),
        "hour": lambda event: float(event.time.hour),
    },
}
"""Numbers of an event by category of its log source; all of one kind share a forest."""


class Strange(msgspec.Struct, frozen=True):
    """One recent event that differs from what was."""

    time: datetime
    source: str
    destination: str
    score: float
    """Multiple of what only `SHARE` of the events learnt from reach; over 1 is strange."""
    feature: str
    """The number that is farthest from its usual middle."""
    observed: float
    usual: float
    """Median of the events learnt from."""


def challenge(
    kind: str, known: Sequence[Event], recent: Sequence[Event], *, seed: int = 0, limit: int = 50
) -> list[Strange]:
    """Learn from the events before, and name the recent ones that differ most, worst first.

    Args:
        kind: A key of `FEATURES`.
        known: Events to learn from; fewer than `ROWS_MIN` give nothing.
        recent: Events to judge.
        seed: Makes the forest repeatable.
        limit: At most so many are named.
    """
    if len(known) < ROWS_MIN or not recent:
        return []
    learnt, asked = _rows(kind, known), _rows(kind, recent)
    middle = np.median(learnt, axis=0)
    spread = np.maximum(learnt.std(axis=0), SPREAD_MIN)
    learnt, scaled = (learnt - middle) / spread, (asked - middle) / spread
    score = np.maximum(_forest(learnt, scaled, seed), _residual(learnt, scaled))
    worst = [int(row) for row in np.argsort(-score, kind="stable")[:limit] if score[row] > STRANGE]
    names = list(FEATURES[kind])
    return [
        Strange(
            time=recent[row].time,
            source=str(recent[row].fields.get("source.ip", "")),
            destination=str(recent[row].fields.get("destination.ip", "")),
            score=round(float(min(score[row], SCORE_MAX)), 3),
            feature=names[(column := int(np.argmax(np.abs(scaled[row]))))],
            observed=round(float(asked[row, column]), 3),
            usual=round(float(middle[column]), 3),
        )
        for row in worst
    ]


def _forest(learnt: Numbers, asked: Numbers, seed: int) -> Numbers:
    """How easily a row is cut off from the others; blind to what lies beyond all it has seen."""
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=TREES, random_state=seed).fit(learnt)
    return _over(-forest.score_samples(learnt), -forest.score_samples(asked))


def _residual(learnt: Numbers, asked: Numbers) -> Numbers:
    """How far a row is from the plane in which the others lie: sees new values and new pairs."""
    from sklearn.decomposition import PCA

    plane = PCA(n_components=VARIANCE, svd_solver="full").fit(learnt)

    def off(rows: Numbers) -> Numbers:
        rebuilt = plane.inverse_transform(plane.transform(rows))
        return np.asarray(np.square(rows - rebuilt).sum(axis=1), np.float64)

    return _over(off(learnt), off(asked))


def _over(learnt: Numbers, asked: Numbers) -> Numbers:
    """Scores as multiples of what only `SHARE` of the events learnt from reach."""
    threshold = max(float(np.quantile(learnt, 1.0 - SHARE)), 1e-6)
    return asked / threshold


def _rows(kind: str, events: Sequence[Event]) -> Numbers:
    numbers = FEATURES[kind].values()
    return np.array([[number(event) for number in numbers] for event in events], np.float64)
