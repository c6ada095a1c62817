"""What one correlation says, found the plain way: every event is kept, every window counted anew.

It is slow, forgets nothing and knows one field to group by. The engine has to agree with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import median
from typing import NamedTuple


class Seen(NamedTuple):
    """A base event."""

    at_s: int
    rule: str
    group: str
    value: float | None


class Said(NamedTuple):
    """A finding."""

    group: str
    stands_for: int
    value: float
    at_s: tuple[int, ...]


Measure = Callable[[Sequence[Seen]], float | None]
"""What is measured of a window, by time; None if there is nothing to measure."""
Holds = Callable[[float], bool]

ENDS_MAX = 16
BACK = 3


class Group:
    """The events of one group, by time."""

    def __init__(self, span_s: int, measure: Measure, holds: Holds) -> None:
        self._span_s = span_s
        self._measure = measure
        self._holds = holds
        self.events: list[Seen] = []
        self._late: list[Seen] = []
        self._fired_s: int | None = None
        self.open = 0
        """Events on which the condition held since it was last said."""

    def see(self, event: Seen) -> Said | None:
        """Take an event."""
        newest_s = max((one.at_s for one in self.events), default=event.at_s)
        if event.at_s < newest_s - self._span_s:
            self._late.append(event)
            if len(self._late) < BACK:
                return None
            self.events, self._late, self._fired_s = self._late, [], None
        else:
            self.events.append(event)
            self._late = []
        self.events.sort(key=lambda one: one.at_s)
        for end_s in self._ends(event):
            window = self._window(end_s)
            value = self._measure(window)
            if value is not None and self._holds(value):
                return self._say(event, window, value)
        return None

    def _ends(self, event: Seen) -> list[int]:
        """When windows end that hold the event."""
        last_s = event.at_s + self._span_s
        ends = {one.at_s for one in self.events if event.at_s <= one.at_s <= last_s}
        return sorted(ends)[:ENDS_MAX]

    def _window(self, end_s: int) -> list[Seen]:
        return [one for one in self.events if end_s - self._span_s <= one.at_s <= end_s]

    def _say(self, event: Seen, window: Sequence[Seen], value: float) -> Said | None:
        self.open += 1
        if self._fired_s is not None and abs(event.at_s - self._fired_s) < self._span_s:
            return None
        count, self.open, self._fired_s = self.open, 0, event.at_s
        return Said(event.group, count, value, tuple(one.at_s for one in window))


def number(events: Sequence[Seen]) -> float:
    """How many events."""
    return len(events)


def different(events: Sequence[Seen]) -> float:
    """How many values."""
    return len({one.value for one in events if one.value is not None})


def total(events: Sequence[Seen]) -> float | None:
    """The sum, exact."""
    return float(sum(map(Fraction, numbers))) if (numbers := _numbers(events)) else None


def mean(events: Sequence[Seen]) -> float | None:
    """The sum as a float, by the number."""
    exact = total(events)
    return None if exact is None else exact / len(_numbers(events))


def middle(events: Sequence[Seen]) -> float | None:
    """The median."""
    return median(numbers) if (numbers := _numbers(events)) else None


def ninetieth(events: Sequence[Seen]) -> float | None:
    """The 90th percentile, linear between the two nearest ranks."""
    ranked = sorted(_numbers(events))
    if not ranked:
        return None
    place = (len(ranked) - 1) * 90 / 100
    low, high = ranked[math.floor(place)], ranked[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def share(events: Sequence[Seen]) -> float | None:
    """How many percent of the values are the newest event's."""
    numbers = _numbers(events)
    newest = events[-1].value
    return None if newest is None else 100.0 * numbers.count(newest) / len(numbers)


def rules(events: Sequence[Seen]) -> float:
    """How many of the rules."""
    return len({one.rule for one in events})


def in_order(*wanted: str) -> Measure:
    """How many of these rules, each not before the one that is named before it."""

    def measure(events: Sequence[Seen]) -> float:
        since_s = events[0].at_s
        for done, rule in enumerate(wanted):
            times = [one.at_s for one in events if one.rule == rule and one.at_s >= since_s]
            if not times:
                return done
            since_s = min(times)
        return len(wanted)

    return measure


def when(condition: Callable[[set[str]], bool]) -> Measure:
    """1 if this holds of the rules that were seen."""
    return lambda events: float(condition({one.rule for one in events}))


def in_order_when(condition: Callable[[set[str]], bool], *named: str) -> Measure:
    """How many of the named rules were seen, if this holds of them and they come in their order."""

    def measure(events: Sequence[Seen]) -> float:
        seen = {one.rule for one in events}
        wanted = [rule for rule in named if rule in seen]
        done = in_order(*wanted)(events)
        return done if condition(seen) and done == len(wanted) else 0.0

    return measure


def _numbers(events: Sequence[Seen]) -> list[float]:
    return [one.value for one in events if one.value is not None]
