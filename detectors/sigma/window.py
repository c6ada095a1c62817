"""The window of one group of a correlation, and what is measured in it."""

from __future__ import annotations

import operator
import statistics
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from cityward.event import Event
from cityward.fields import FIELDS
from cityward.finding import EVENTS_KEPT
from detectors.sigma import condition
from detectors.sigma.matchers import number_of
from detectors.sigma.rule import Correlation
from detectors.sigma.view import View, text_of

ENTRIES_MAX = 10_000
"""Base events that one window holds, or what its condition counts to if that is more."""
KEPT_MAX = 100_000
"""Base events that one correlation keeps, and the most that one can count to."""
LATE_ENDS_MAX = 16
"""A late event is looked at in so many of the windows it falls into."""
JUMP_BACK = 3
"""So many events in a row that are too late mean that the clock was set back: begin anew."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
    "eq": operator.eq,
    "neq": operator.ne,
}


def time_us(time: datetime) -> int:
    """Whole microseconds since 1970: exact, where seconds as a float are not."""
    return (time - _EPOCH) // _US


class Entry(msgspec.Struct):
    """A base event in a window."""

    time_us: int
    rule: str
    values: tuple[str | float, ...]
    """What is counted or summed."""
    event: Event | None
    """None once so many newer ones are there that a finding would not show it."""


class Reached(msgspec.Struct, frozen=True):
    """A window in which the condition holds; to be read before the next event comes."""

    value: float
    """What was measured."""
    all_entries: list[Entry]
    start: int
    end: int

    @property
    def entries(self) -> list[Entry]:
        """Those of the window."""
        return self.all_entries[self.start : self.end]

    @property
    def events(self) -> list[Event]:
        """Those that are still there, oldest first; the one that decided always is."""
        return [entry.event for entry in self.entries if entry.event is not None]


UNKNOWN = -1
"""Not by any clock yet: the next tick says when."""


class Window(msgspec.Struct):
    """What one group has seen."""

    entries: list[Entry] = []
    """By time; twice the time span is kept, so that a late event finds whole windows."""
    late: list[Entry] = []
    """Those in a row that were too late."""
    fired_us: int | None = None
    """When it last spoke."""
    touched_us: int = UNKNOWN
    """When its newest event came, by the clock of `tick`: a log may be read long after its time."""
    since: int = 0
    """Base events on which the condition held since then."""
    last: dict[str, int] = {}
    """Values of the newest window and when each was seen last, oldest first (`value_count`)."""
    cut: int = 0
    """Entries that went because the window was full."""

    def take(self, entry: Entry, correlation: Correlation) -> bool:
        """Put an event in its place; False if it is too late to count.

        An event may be one time span late. Three too late ones in a row begin the window anew:
        the source's clock was set back, or one event came from the future.
        """
        span_us = correlation.timespan_s * 1_000_000
        anew = bool(self.entries) and entry.time_us < self.entries[-1].time_us - span_us
        if anew:
            self.late.append(entry)
            if len(self.late) < JUMP_BACK:
                return False
            self.entries = sorted(self.late, key=_time)
            self.fired_us = None
        else:
            insort(self.entries, entry, key=_time)
        self.late = []
        if correlation.type == "value_count":
            in_order = self.entries[-1] is entry and not anew
            self._note([entry] if in_order else self.entries, in_order, span_us)
            while len(self.last) > entries_max(correlation):
                del self.last[next(iter(self.last))]
        self._prune(entry, span_us, correlation)
        return True

    def _note(self, entries: Sequence[Entry], in_order: bool, span_us: int) -> None:
        """Keep `last` true: what is counted costs the same for ten values and for ten thousand."""
        if not in_order:
            self.last = {}
        for one in entries:
            for value in one.values:
                self.last.pop(str(value), None)
                self.last[str(value)] = one.time_us
        oldest = self.entries[-1].time_us - span_us
        while self.last and self.last[next(iter(self.last))] < oldest:
            del self.last[next(iter(self.last))]

    def _prune(self, entry: Entry, span_us: int, correlation: Correlation) -> None:
        oldest = self.entries[-1].time_us - 2 * span_us
        if self.entries[0].time_us < oldest:
            del self.entries[: bisect_left(self.entries, oldest, key=_time)]
        most = entries_max(correlation)
        if len(self.entries) > most:
            self.cut += len(self.entries) - most
            del self.entries[:-most]
        if len(self.entries) > EVENTS_KEPT and self.entries[-EVENTS_KEPT - 1] is not entry:
            self.entries[-EVENTS_KEPT - 1].event = None

    def reached(self, entry: Entry, correlation: Correlation) -> Reached | None:
        """The first window around an event in which the condition holds."""
        span_us = correlation.timespan_s * 1_000_000
        for end in self._ends(entry, span_us):
            start = bisect_left(self.entries, self.entries[end - 1].time_us - span_us, key=_time)
            value = self._measure(correlation, start, end)
            if value is not None and _holds(correlation, value):
                return Reached(value, self.entries, start, end)
        return None

    def _measure(self, correlation: Correlation, start: int, end: int) -> float | None:
        if correlation.type == "event_count":
            return float(end - start)
        if correlation.type == "value_count" and end == len(self.entries):
            return float(len(self.last))
        return measure(correlation, self.entries[start:end])

    def _ends(self, entry: Entry, span_us: int) -> Iterator[int]:
        """Where the windows end that hold the entry: after it, and after later ones."""
        end = bisect_right(self.entries, entry.time_us, key=_time)
        for _ in range(LATE_ENDS_MAX):
            yield end
            if end == len(self.entries) or self.entries[end].time_us > entry.time_us + span_us:
                return
            end = bisect_right(self.entries, self.entries[end].time_us, key=_time)


def entries_max(correlation: Correlation) -> int:
    """How many entries a window of this correlation may hold."""
    if correlation.type not in ("event_count", "value_count"):
        return ENTRIES_MAX
    return min(KEPT_MAX, max([ENTRIES_MAX, *(int(limit) + 1 for _, limit in correlation.limits)]))


def _time(entry: Entry) -> int:
    return entry.time_us


def _holds(correlation: Correlation, value: float) -> bool:
    if correlation.expression is not None:
        return value > 0
    return all(OPERATORS[name](value, limit) for name, limit in correlation.limits)


def values_of(correlation: Correlation, view: View) -> tuple[str | float, ...]:
    """What an event brings to a window; nothing if it lacks the field."""
    if not correlation.field:
        return ()
    columns = [view.values(name) for name in correlation.field]
    if len(columns) > 1:
        texts = [",".join(text_of(one) for one in column) for column in columns if column]
        return ("\x1f".join(texts),) if len(texts) == len(columns) else ()
    present = [one for one in columns[0] if one is not None]
    if counts_texts(correlation):
        return tuple(text_of(one) for one in present)
    numbers = (number_of(one) for one in present)
    return tuple(float(one) for one in numbers if one is not None and abs(one) < 1e300)


def counts_texts(correlation: Correlation) -> bool:
    """True if values are compared for equality, not added up."""
    kind = correlation.type
    return kind == "value_count" or (kind == "value_percentile" and correlation.percentile is None)


def measure(correlation: Correlation, entries: Sequence[Entry]) -> float | None:
    """The number that the condition is about; None if there is none.

    `value_percentile` without `percentile` is the share in percent of the newest event's value
    among all (the specification's example: a process that is less than 1 % of all).
    """
    values = [value for entry in entries for value in entry.values]
    numbers = [value for value in values if isinstance(value, (int, float))]
    match correlation.type:
        case "event_count":
            return float(len(entries))
        case "value_count":
            return float(len(set(values)))
        case "temporal":
            return _temporal(correlation, entries)
        case "temporal_ordered":
            return _ordered(correlation, entries)
        case "value_sum":
            return float(sum(numbers)) if numbers else None
        case "value_avg":
            return statistics.fmean(numbers) if numbers else None
        case "value_median":
            return statistics.median(numbers) if numbers else None
        case "value_percentile" if correlation.percentile is not None:
            return _percentile(numbers, correlation.percentile) if numbers else None
    newest = entries[-1].values
    return 100.0 * values.count(newest[0]) / len(values) if newest else None


def _temporal(correlation: Correlation, entries: Sequence[Entry]) -> float:
    seen = {entry.rule for entry in entries}
    if correlation.expression is None:
        return float(len(seen))
    return float(condition.holds(correlation.expression, seen.__contains__))


def _ordered(correlation: Correlation, entries: Sequence[Entry]) -> float:
    """How many of the rules were seen, each not before the one named before it."""
    wanted = correlation.rules
    if correlation.expression is not None:
        if not _temporal(correlation, entries):
            return 0.0
        seen = {entry.rule for entry in entries}
        named = condition.named(correlation.expression)
        wanted = tuple(rule for rule, negated in named if not negated and rule in seen)
    times: dict[str, list[int]] = {}
    for entry in entries:
        times.setdefault(entry.rule, []).append(entry.time_us)
    reached_us = 0 if not entries else entries[0].time_us
    for done, rule in enumerate(wanted):
        known = times.get(rule, [])
        place = bisect_left(known, reached_us)
        if place == len(known):
            return 0.0 if correlation.expression is not None else float(done)
        reached_us = known[place]
    return float(len(wanted))


def _percentile(numbers: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy and most databases have it."""
    ranked = sorted(numbers)
    place = (len(ranked) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)


def with_dates(event: Event) -> Event:
    """An event that was read back from JSON, its dates as dates again."""
    fields: dict[str, Any] = {
        name: datetime.fromisoformat(value)
        if isinstance(value, str) and name in FIELDS and FIELDS[name].type == "date"
        else value
        for name, value in event.fields.items()
    }
    return msgspec.structs.replace(event, fields=fields)
