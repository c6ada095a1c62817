"""From a raw score to a probability, and from a false-alarm budget to a threshold."""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np

BINS = 256
BINS_PER_OCTAVE = 32.0
"""A bin is 2 % wide above a score of 1; the last one begins at 249."""
TAIL = 0.98
"""The generalised Pareto tail begins at this quantile."""
REFIT_ROWS = 64
COUNTS_MAX = 1_000_000.0
"""At so many rows all counters are halved: old rows fade, float32 stays exact enough."""
PRIOR_ROWS = 5.0
"""So many rows of a prior tail keep the fit sane while hardly any row is in the tail."""
SHAPE_MAX = 0.3
DAY_S = 86_400.0
BEYOND = 0.1
"""How far beyond one in all rows the tail is believed."""


class Calibration:
    """What scores are usual: a log histogram of 256 counters and a generalised Pareto tail.

    The tail is fitted anew every 64 rows, so the hot path only compares with two numbers.

    References:
        Pickands 1975 (peaks over threshold); Hosking and Wallis 1987 (fit by moments).
    """

    __slots__ = ("_until_refit", "counts", "fraction", "rows", "scale", "shape", "start")

    def __init__(self) -> None:
        self.counts = array("f", bytes(4 * BINS))
        self.rows = 0.0
        self.start = 0.0
        """Score at which the tail begins."""
        self.fraction = 1.0
        """Share of the rows in the tail."""
        self.scale = 1.0
        self.shape = 0.0
        self._until_refit = 1

    def add(self, score: float, rows: float = 1.0) -> bool:
        """Learn the score of one row, or of some alike; True if the tail was fitted anew."""
        at = int(BINS_PER_OCTAVE * math.log2(1.0 + score)) if score > 0.0 else 0
        self.counts[at if at < BINS else BINS - 1] += rows
        self.rows += rows
        self._until_refit -= 1
        if self._until_refit > 0:
            return False
        self._until_refit = min(REFIT_ROWS, max(1, int(self.rows / 4)))
        self._refit()
        return True

    def p(self, score: float) -> float:
        """Probability of a score at least so high, by what was learnt; never 0."""
        if score < self.start:
            at = int(BINS_PER_OCTAVE * math.log2(1.0 + score)) if score > 0.0 else 0
            if not at:
                return (self.rows + 0.5) / (self.rows + 1.0)
            counts = np.frombuffer(self.counts, np.float32)
            return (float(np.add.reduce(counts[at:])) + 0.5) / (self.rows + 1.0)
        over = (score - self.start) / self.scale
        tail = (
            math.exp(-min(over, 700.0))
            if self.shape < 1e-6
            else (1.0 + self.shape * over) ** (-1.0 / self.shape)
        )
        return max(self.fraction * tail, 1e-300)

    def score_at(self, p: float) -> float:
        """The score that is reached with probability `p`, at least where the tail begins."""
        ratio = max(self.fraction / p, 1.0)
        if self.shape < 1e-6:
            return self.start + self.scale * math.log(ratio)
        return self.start + self.scale / self.shape * (math.pow(ratio, self.shape) - 1.0)

    def quantile(self, q: float) -> float:
        """Upper edge of the bin that holds quantile `q` of what was learnt."""
        sums = np.cumsum(np.frombuffer(self.counts, np.float32), dtype=np.float64)
        return float(_EDGES[min(BINS, int(np.searchsorted(sums, q * sums[-1])) + 1)])

    def highest(self) -> float:
        """Upper edge of the highest score that was learnt and is not forgotten."""
        seen = np.flatnonzero(np.frombuffer(self.counts, np.float32) >= 0.5)
        return float(_EDGES[int(seen[-1]) + 1]) if len(seen) else 0.0

    def forget(self, above: float) -> None:
        """Forget the scores above a score: what had them would score otherwise now."""
        counts = np.frombuffer(self.counts, np.float32)
        counts[_EDGES[:-1] >= above] = 0.0
        self.rows = float(counts.sum(dtype=np.float64))
        self._refit()

    def _refit(self) -> None:
        counts = np.frombuffer(self.counts, np.float32)
        if self.rows > COUNTS_MAX:
            counts *= np.float32(0.5)
            self.rows *= 0.5
        sums = np.cumsum(counts, dtype=np.float64)
        first = min(BINS - 1, int(np.searchsorted(sums, TAIL * sums[-1])) + 1)
        self.start = float(_EDGES[first])
        tail = counts[first:].astype(np.float64)
        number = float(tail.sum())
        over = _MIDDLES[first:] - self.start
        prior = 0.1 * self.start + 0.5
        total = number + PRIOR_ROWS
        mean = (float(tail @ over) + PRIOR_ROWS * prior) / total
        square = (float(tail @ (over * over)) + PRIOR_ROWS * 2.0 * prior * prior) / total
        spread = max(square - mean * mean, 1e-9)
        self.shape = min(SHAPE_MAX, max(0.0, 0.5 * (1.0 - mean * mean / spread)))
        self.scale = max(mean * (1.0 - self.shape), 1e-6)
        self.fraction = (number + 1.0) / (self.rows + 2.0)

    def header(self) -> list[float]:
        """What is not in `counts`, for a snapshot."""
        return [
            self.rows, self.start, self.fraction, self.scale, self.shape, float(self._until_refit)
        ]  # fmt: skip

    @classmethod
    def of(cls, counts: bytes, header: list[Any]) -> Calibration:
        """Take back what `header()` and `counts` said.

        Raises:
            ValueError: it is not that.
        """
        made = cls()
        if len(counts) != 4 * BINS or len(header) != 6:
            raise ValueError("no histogram of 256 counters")
        made.counts = array("f", counts)
        made.rows, made.start, made.fraction, made.scale, made.shape, until = map(float, header)
        made._until_refit = int(until)
        return made


class Budget:
    """How often a model may speak of one entity without a cause."""

    __slots__ = ("findings_per_day", "p_max")

    def __init__(self, findings_per_day: float = 0.02, p_max: float = 1e-3) -> None:
        """Set a budget.

        Args:
            findings_per_day: False alarms a day and entity that an operator accepts.
            p_max: However rarely rows come, only rows at most this probable are spoken of.
        """
        self.findings_per_day = findings_per_day
        self.p_max = p_max

    def p(self, rows: float, watched_s: float) -> float:
        """The probability at which to speak, from the rate at which rows come.

        What is ten times rarer than one row in all that were seen cannot be told from what is a
        million times rarer; so young entities cost a little more than the budget, in all
        0.1 findings each time their rows grow e-fold.
        """
        per_day = rows / max(watched_s, 1.0) * DAY_S
        p = max(self.findings_per_day / max(per_day, 1.0), BEYOND / max(rows, 1.0))
        return min(self.p_max, p)


_EDGES = np.exp2(np.arange(BINS + 1) / BINS_PER_OCTAVE) - 1.0
_MIDDLES = (_EDGES[:-1] + _EDGES[1:]) / 2.0
