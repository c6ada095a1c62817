"""What a correlation measures over its newest window, kept true as events come and go.

Each costs the same however many events or distinct values the window holds; a sum is exact, so
that a limit is reached when it is reached. `window.measure` says the same of a list of events, and
the tests hold both against each other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from heapq import heappop, heappush, heapreplace
from itertools import accumulate, chain, count
from operator import truediv
from typing import Any

import msgspec

from cityward.event import Event
from detectors.sigma import condition
from detectors.sigma.rule import Correlation

NOTHING = math.nan
"""What is measured where there is nothing to measure."""
NEVER = -(1 << 62)
"""Before every event, in microseconds."""
WHOLE_MAX = 2.0**53
"""Up to here a float holds every whole number."""


ITSELF = (1, 0)
"""A base event that nothing was added to."""


class Entry(msgspec.Struct, gc=False):
    """A base event in a window; nothing that it holds leads back to it."""

    time_us: int
    rule: str
    values: tuple[str | float, ...]
    """What is counted or summed."""
    event: Event | None
    """None once so many newer ones are there that a finding would not show it."""
    added: tuple[int, int] = ITSELF
    """So many base events it stands for, and so many more values than its own are in their sum
    (`Window` puts old ones together, to add them up); one field, as each takes time to be made."""


class Measure(ABC):
    """A number over the entries that are in the newest window; there may be one a group."""

    __slots__ = ()

    goes_by_time = False
    """True if it knows by their times which events are in the window, and not by `leave`."""

    @abstractmethod
    def enter(self, entry: Entry) -> None:
        """An event is in the window."""

    def leave(self, entry: Entry) -> None:  # noqa: B027 – nothing to do where time says it
        """It is so no more."""

    @abstractmethod
    def value(self, newest: Entry) -> float:
        """The number; `NOTHING` if there is none."""

    def enter_all(self, run: Sequence[Entry]) -> Sequence[float]:
        """Events enter, oldest first, and none has to leave; the number after each of them."""
        enter, value, found = self.enter, self.value, []
        for entry in run:
            enter(entry)
            found.append(value(entry))
        return found


def _values_of(run: Iterable[Entry]) -> list[Any]:
    return [*chain.from_iterable([entry.values for entry in run])]


class Count(Measure):
    """How many events there are."""

    __slots__ = ("_number",)

    def __init__(self) -> None:
        self._number = 0

    def enter(self, entry: Entry) -> None:
        """It is one more."""
        self._number += 1

    def leave(self, entry: Entry) -> None:
        """It is one less."""
        self._number -= 1

    def value(self, newest: Entry) -> float:
        """So many."""
        return self._number

    def enter_all(self, run: Sequence[Entry]) -> Sequence[float]:
        """Nothing has to be looked at."""
        before = self._number
        self._number += len(run)
        return range(before + 1, self._number + 1)


class Distinct(Measure):
    """How many different values there are.

    Args:
        last: Values, and when each was seen last.
        span_us: For so long it counts.
        most: So many are known, those seen last; they stay when a full window loses their events.
    """

    __slots__ = ("_leaving", "_most", "_span_us", "last")

    goes_by_time = True

    def __init__(self, last: dict[Any, int], span_us: int, most: int) -> None:
        self.last = last
        self._span_us = span_us
        self._most = most
        self._leaving: list[tuple[int, Any]] = sorted((us, value) for value, us in last.items())
        """Each value once, by a time at which it was seen: a heap."""

    def enter(self, entry: Entry) -> None:
        """Its values were seen."""
        last, time_us = self.last, entry.time_us
        for value in entry.values:
            seen_us = last.get(value)
            if seen_us is None:
                heappush(self._leaving, (time_us, value))
                last[value] = time_us
                if len(last) > self._most:
                    self._forget_oldest()
            elif seen_us < time_us:
                last[value] = time_us

    def value(self, newest: Entry) -> float:
        """So many within the window."""
        leaving, oldest_us = self._leaving, newest.time_us - self._span_us
        if leaving and leaving[0][0] < oldest_us:
            self._forget(oldest_us)
        return len(self.last)

    def enter_all(self, run: Sequence[Entry]) -> Sequence[float]:
        """Where each value is known, and goes on to be, only its time changes."""
        leaving, last = self._leaving, self.last
        values = _values_of(run)
        seen = dict(zip(values, [entry.time_us for entry in run], strict=False))
        is_simple = len(values) == len(run) and seen.keys() <= last.keys()
        if not is_simple or leaving[0][0] < run[-1].time_us - self._span_us:
            return super().enter_all(run)
        last.update(seen)
        return [len(last)] * len(run)

    def _forget(self, oldest_us: int) -> None:
        """Values that were not seen since; a heap knows which, whatever came late."""
        leaving, last = self._leaving, self.last
        while leaving and leaving[0][0] < oldest_us:
            value = leaving[0][1]
            if last[value] < oldest_us:
                heappop(leaving)
                del last[value]
            else:
                heapreplace(leaving, (last[value], value))

    def _forget_oldest(self) -> None:
        leaving, last = self._leaving, self.last
        while leaving[0][0] < last[leaving[0][1]]:
            value = leaving[0][1]
            heapreplace(leaving, (last[value], value))
        del last[heappop(leaving)[1]]


class Together(Measure):
    """How many of the rules were seen, or whether a condition over them holds.

    Args:
        one: Its rules, and its condition.
        last: Rules, and when each was seen last.
        span_us: For so long it counts.
    """

    __slots__ = ("_one", "_span_us", "last")

    goes_by_time = True

    def __init__(self, one: Correlation, last: dict[str, int], span_us: int) -> None:
        self.last = last
        self._one = one
        self._span_us = span_us

    def enter(self, entry: Entry) -> None:
        """Its rule was seen."""
        if self.last.get(entry.rule, NEVER) < entry.time_us:
            self.last[entry.rule] = entry.time_us

    def value(self, newest: Entry) -> float:
        """So many; with a condition 1 if it holds."""
        oldest_us = newest.time_us - self._span_us
        return seen_together(self._one, {rule for rule, us in self.last.items() if us >= oldest_us})


def seen_together(correlation: Correlation, seen: Collection[str]) -> float:
    """How many rules were seen; 1 or 0 if there is a condition over them."""
    if correlation.expression is None:
        return len(seen)
    return condition.holds(correlation.expression, seen.__contains__)


class Sum(Measure):
    """Of numbers, exact: what was rounded off is kept beside it (Shewchuk 1997, `math.fsum`)."""

    __slots__ = ("_mean", "number", "parts")

    def __init__(self, mean: bool = False) -> None:
        self._mean = mean
        self.parts = [0.0]
        """What adds up to the sum, and to which nothing is rounded off."""
        self.number = 0

    def enter(self, entry: Entry) -> None:
        """Its numbers are added."""
        parts = self.parts
        self.number += entry.added[1]
        for number in entry.values:
            value = float(number)
            self.number += 1
            if len(parts) == 1:
                (old,) = parts
                new = old + value
                if new - old == value and new - value == old:  # nothing was rounded off
                    parts[0] = new
                    continue
            self._add(value)

    def leave(self, entry: Entry) -> None:
        """Its numbers are taken off again."""
        self.number -= entry.added[1]
        for value in entry.values:
            self._add(-float(value))
            self.number -= 1

    def enter_all(self, run: Sequence[Entry]) -> Sequence[float]:
        """Whole numbers need not be looked at one by one: nothing is rounded off."""
        numbers: list[float] = _values_of(run)
        sums = [*accumulate(numbers, initial=self.parts[0])]
        is_whole = len(self.parts) == 1 and all(map(float.is_integer, (sums[0], *numbers)))
        if (
            not is_whole
            or len(numbers) != len(run)
            or not -WHOLE_MAX <= min(sums) <= max(sums) <= WHOLE_MAX
        ):
            return super().enter_all(run)
        first = self.number + 1
        self.number += len(numbers)
        self.parts[0] = sums[-1]
        del sums[0]
        return [*map(truediv, sums, count(first))] if self._mean else sums

    def _add(self, more: float) -> None:
        parts, place = self.parts, 0
        for part in parts:
            if abs(more) < abs(part):
                more, part = part, more  # noqa: PLW2901 – the larger one comes first
            high = more + part
            if low := part - (high - more):
                parts[place] = low
                place += 1
            more = high
        parts[place:] = [more]

    def value(self, newest: Entry) -> float:
        """The sum, or the mean."""
        if not self.number:
            return NOTHING
        parts = self.parts
        total = parts[0] if len(parts) == 1 else math.fsum(parts)
        return total / self.number if self._mean else total


def added_up(several: Sequence[Entry]) -> Entry:
    """One entry for several, oldest first: what they add up to, exact, and how many they were."""
    exact = Sum()
    for one in several:
        exact.enter(one)
    values = tuple(part for part in exact.parts if part) or ((0.0,) if exact.number else ())
    newest, events = several[-1], sum(one.added[0] for one in several)
    added = events, exact.number - len(values)
    return Entry(newest.time_us, newest.rule, values, None, added)


class Ranked(Measure):
    """A percentile; the median if no percent is given."""

    __slots__ = ("_numbers", "_percent")

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

    def value(self, newest: Entry) -> float:
        """The number at the rank."""
        if not self._numbers:
            return NOTHING
        if self._percent is None:
            return median(self._numbers)
        return percentile(self._numbers, self._percent)


class Share(Measure):
    """How many percent of all values are the newest event's."""

    __slots__ = ("_number", "_seen")

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

    def value(self, newest: Entry) -> float:
        """The share of the newest event's value."""
        if not newest.values:
            return NOTHING
        return 100.0 * self._seen[newest.values[0]] / self._number


class Order(Measure):
    """How many of the rules were seen, each not before the one named before it.

    For each rule the latest time at which a sequence began that has come as far as this rule.
    """

    __slots__ = ("_before", "_begun", "_now", "_now_us", "_places", "_rules", "_span_us")

    goes_by_time = True

    def __init__(self, rules: tuple[str, ...], span_us: int) -> None:
        self._rules = rules
        self._places = _places_of(rules)
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

    def enter_all(self, run: Sequence[Entry]) -> Sequence[float]:
        """What comes again at the same time changes nothing."""
        done = NOTHING
        found: list[float] = []
        for entry in run:
            if not found or entry.time_us != self._now_us or entry.rule not in self._now:
                self.enter(entry)
                done = self.value(entry)
            found.append(done)
        return found

    def value(self, newest: Entry) -> float:
        """So many rules of the longest sequence that began within the window."""
        oldest_us, done = newest.time_us - self._span_us, 0
        for begun_us in self._begun:
            if begun_us < oldest_us:
                break
            done += 1
        return done


@lru_cache(maxsize=1024)
def _places_of(rules: tuple[str, ...]) -> Mapping[str, list[int]]:
    """Where each rule stands among them."""
    places: dict[str, list[int]] = {}
    for place, rule in enumerate(rules):
        places.setdefault(rule, []).append(place)
    return places


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
