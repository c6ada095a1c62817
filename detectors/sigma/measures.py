"""What a correlation measures over its newest window, kept true as events come and go.

Each costs the same however many events or distinct values the window holds; a sum is exact, so
that a limit is reached when it is reached. `window.measure` says the same of a list of events, and
the tests hold both against each other.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import msgspec

from cityward.event import Event

NEVER = -(1 << 62)
"""Before every event, in microseconds."""


class Entry(msgspec.Struct, gc=False):
    """A base event in a window; nothing that it holds leads back to it."""

    time_us: int
    rule: str
    values: tuple[str | float, ...]
    """What is counted or summed."""
    event: Event | None
    """None once so many newer ones are there that a finding would not show it."""


class Measure(Protocol):
    """A number over the entries that are in the newest window."""

    def enter(self, entry: Entry) -> None:
        """An event is in the window."""
        ...

    def leave(self, entry: Entry) -> None:
        """It is so no more."""
        ...

    def value(self, newest: Entry) -> float | None:
        """The number; None if there is none."""
        ...


class Sum:
    """Of numbers, exact: what was rounded off is kept beside it (Shewchuk 1997, `math.fsum`)."""

    def __init__(self, mean: bool = False) -> None:
        self._mean = mean
        self._parts = [0.0]
        self._number = 0

    def enter(self, entry: Entry) -> None:
        """Its numbers are added."""
        parts = self._parts
        for number in entry.values:
            value = float(number)
            self._number += 1
            if len(parts) == 1:
                (old,) = parts
                new = old + value
                if new - old == value and new - value == old:  # nothing was rounded off
                    parts[0] = new
                    continue
            self._add(value)

    def leave(self, entry: Entry) -> None:
        """Its numbers are taken off again."""
        for value in entry.values:
            self._add(-float(value))
            self._number -= 1

    def _add(self, more: float) -> None:
        parts, place = self._parts, 0
        for part in parts:
            if abs(more) < abs(part):
                more, part = part, more  # noqa: PLW2901 – the larger one comes first
            high = more + part
            if low := part - (high - more):
                parts[place] = low
                place += 1
            more = high
        parts[place:] = [more]

    def value(self, newest: Entry) -> float | None:
        """The sum, or the mean."""
        if not self._number:
            return None
        parts = self._parts
        total = parts[0] if len(parts) == 1 else math.fsum(parts)
        return total / self._number if self._mean else total


class Ranked:
    """A percentile; the median if no percent is given."""

    def __init__(self, percent: float | None) -> None:
        self._percent = percent
        self._numbers: list[float] = []

    def enter(self, entry: Entry) -> None:
        """Its numbers take their rank."""
        for value in entry.values:
            insort(self._numbers, float(value))

    def leave(self, entry: Entry) -> None:
        """Its numbers leave their rank."""
        for value in entry.values:
            del self._numbers[bisect_left(self._numbers, float(value))]

    def value(self, newest: Entry) -> float | None:
        """The number at the rank."""
        if not self._numbers:
            return None
        if self._percent is None:
            return median(self._numbers)
        return percentile(self._numbers, self._percent)


class Share:
    """How many percent of all values are the newest event's."""

    def __init__(self) -> None:
        self._seen: Counter[str | float] = Counter()
        self._number = 0

    def enter(self, entry: Entry) -> None:
        """Its values are counted."""
        self._seen.update(entry.values)
        self._number += len(entry.values)

    def leave(self, entry: Entry) -> None:
        """Its values count no more."""
        self._number -= len(entry.values)
        for value in entry.values:
            self._seen[value] -= 1
            if not self._seen[value]:
                del self._seen[value]

    def value(self, newest: Entry) -> float | None:
        """The share of the newest event's value."""
        if not newest.values:
            return None
        return 100.0 * self._seen[newest.values[0]] / self._number


class Order:
    """How many of the rules were seen, each not before the one named before it.

    For each rule the latest time at which a sequence began that has come as far as this rule.
    """

    def __init__(self, rules: Sequence[str], span_us: int) -> None:
        self._rules = rules
        self._places: dict[str, list[int]] = {}
        for place, rule in enumerate(rules):
            self._places.setdefault(rule, []).append(place)
        self._span_us = span_us
        self._begun = self._before = [NEVER] * len(rules)
        self._now_us = NEVER
        self._now: set[str] = set()
        """Rules of the newest time: those of one time may stand in any order."""

    def enter(self, entry: Entry) -> None:
        """Sequences go on, or begin; it is the newest event."""
        if entry.time_us != self._now_us:  # nearly always: only its own places change
            self._now_us, self._now, self._before = entry.time_us, {entry.rule}, self._begun
            self._begun = begun = [*self._begun]
            for place in self._places.get(entry.rule, ()):
                earlier = begun[place - 1] if place else entry.time_us
                begun[place] = max(begun[place], earlier)
            return
        if entry.rule in self._now:
            return
        self._now.add(entry.rule)
        begun, earlier = list(self._before), entry.time_us
        for place, rule in enumerate(self._rules):
            if rule in self._now and earlier > begun[place]:
                begun[place] = earlier
            earlier = begun[place]
        self._begun = begun

    def leave(self, entry: Entry) -> None:
        """What began before the window is seen by its time."""

    def value(self, newest: Entry) -> float | None:
        """So many rules of the longest sequence that began within the window."""
        oldest_us, done = newest.time_us - self._span_us, 0
        for begun_us in self._begun:
            if begun_us < oldest_us:
                break
            done += 1
        return float(done)


def median(ranked: Sequence[float]) -> float:
    """The middle one, or the mean of the middle two."""
    half, is_odd = divmod(len(ranked), 2)
    return ranked[half] if is_odd else (ranked[half - 1] + ranked[half]) / 2


def percentile(ranked: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy and most databases have it."""
    place = (len(ranked) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)
