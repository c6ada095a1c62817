"""The window of one group of a correlation, and what is measured in it."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush, heapreplace
from typing import Any

import msgspec

from cityward.event import Event
from cityward.fields import FIELDS
from cityward.finding import EVENTS_KEPT
from detectors.sigma import condition
from detectors.sigma.matchers import number_of
from detectors.sigma.measures import (
    NEVER,
    Entry,
    Measure,
    Order,
    Ranked,
    Share,
    Sum,
    median,
    percentile,
)
from detectors.sigma.rule import Correlation
from detectors.sigma.view import TIME, View, flat, text_of

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


class Match(msgspec.Struct, frozen=True, gc=False):
    """A rule, or a correlation below, matched."""

    rule: str
    event: Event
    row: Mapping[str, Any]
    """The event's fields, flat."""

    @classmethod
    def of(cls, rule: str, event: Event) -> Match:
        """The match of a rule."""
        return cls(rule, event, flat(event))

    @property
    def view(self) -> View:
        """The event as rules see it."""
        return View({TIME: self.event.time, **self.row})


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


class Terms:
    """What the windows of one correlation have in common."""

    def __init__(self, one: Correlation) -> None:
        self.one = one
        self.span_us = one.timespan_s * 1_000_000
        self.most = entries_max(one)
        self.full = self.most + self.most // 8
        """When there are more entries, room is made."""
        self.counts_values = one.type == "value_count"
        self.texts = self.counts_values or (
            one.type == "value_percentile" and one.percentile is None
        )
        """True if values are compared for equality, not added up."""
        self.knows_rules = one.type == "temporal"
        self.counts_events = one.type == "event_count"
        self.compare, self.limit = _condition_of(one)
        """The condition holds if `compare(measured, limit)` does."""
        self.name = one.field[0] if len(one.field) == 1 else None
        self.has_values = bool(one.field)

    def values(self, match: Match) -> tuple[str | float, ...]:
        """What an event brings to a window; nothing if it lacks the field."""
        value: Any = match.row.get(self.name) if self.name is not None else None
        kind = type(value)
        if self.texts:
            return (value,) if kind is str else _several(self, match.view)
        if (kind is int or kind is float) and -_HUGE < value < _HUGE:
            return (float(value),)
        return _several(self, match.view)

    def new_measure(self) -> Measure | None:
        """What is measured as events come; None if times alone say it, or a list is needed."""
        one = self.one
        match one.type:
            case "value_sum":
                return Sum()
            case "value_avg":
                return Sum(mean=True)
            case "value_median":
                return Ranked(None)
            case "value_percentile":
                return Share() if one.percentile is None else Ranked(one.percentile)
            case "temporal_ordered" if one.expression is None:
                return Order(one.rules, self.span_us)
        return None


def _condition_of(one: Correlation) -> tuple[Callable[[float, float], bool], float]:
    if one.expression is not None:
        return operator.gt, 0.0
    limits = [(OPERATORS[name], limit) for name, limit in one.limits]
    if len(limits) == 1:
        return limits[0]
    return lambda value, _: all(compare(value, limit) for compare, limit in limits), 0.0


class Kept(msgspec.Struct):
    """A window in a snapshot."""

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
    """Values (`value_count`) or rules (`temporal`) of the newest window, and when each was last."""
    cut: int = 0
    """Entries that went because the window was full."""


class Window:
    """What one group has seen."""

    __slots__ = (
        *("entries", "late", "fired_us", "touched_us", "since", "last", "cut"),
        *("_terms", "_start", "_measure", "_leaving", "_told"),
    )

    def __init__(self, terms: Terms, kept: Kept | None = None) -> None:
        kept = kept or Kept()
        self.entries = kept.entries
        self.late = kept.late
        self.fired_us = kept.fired_us
        self.touched_us = kept.touched_us
        self.since = kept.since
        self.last = kept.last
        self.cut = self._told = kept.cut
        self._terms = terms
        self._start = 0
        self._measure = terms.new_measure()
        self._leaving: list[tuple[int, Any]] = sorted(
            (time, value) for value, time in self.last.items()
        )
        """Each value of `last` once, by a time at which it was seen: a heap."""
        self._again()

    def kept(self) -> Kept:
        """What a snapshot keeps of it."""
        return Kept(
            self.entries,
            self.late,
            self.fired_us,
            self.touched_us,
            self.since,
            self.last,
            self.cut,
        )

    def newly_cut(self) -> int:
        """Entries that went for want of room since this was asked last."""
        more, self._told = self.cut - self._told, self.cut
        return more

    def take(self, entry: Entry) -> bool:
        """Put an event in its place; False if it is too late to count.

        An event may be one time span late. Three too late ones in a row begin the window anew:
        the source's clock was set back, or one event came from the future.
        """
        entries = self.entries
        if not entries or entry.time_us >= entries[-1].time_us:
            self.add(entry)
            return True
        if entry.time_us < entries[-1].time_us - self._terms.span_us:
            self.late.append(entry)
            if len(self.late) < JUMP_BACK:
                return False
            self._begin_anew()
            return True
        insort(entries, entry, key=_time)
        self.late = []
        if isinstance(self._measure, Order):
            self._again()
        else:
            self._enter(entry)
        self._leave()
        self._prune(entry)
        return True

    def add(self, entry: Entry) -> float | None:
        """Take the newest event; what is measured now. Nearly every event comes this way."""
        entries, terms, measure = self.entries, self._terms, self._measure
        entries.append(entry)
        if self.late:
            self.late = []
        oldest_us = entry.time_us - terms.span_us
        if measure is not None:
            measure.enter(entry)
        start = self._start
        if entries[start].time_us < oldest_us:
            start = self._slide(start, oldest_us)
        value: float | None
        if measure is not None:
            value = measure.value(entry)
        elif terms.counts_events:
            value = len(entries) - start
        elif terms.counts_values:
            self._enter_values(entry)
            if self._leaving and self._leaving[0][0] < oldest_us:
                self._forget(oldest_us)
            value = len(self.last)
        else:
            self._enter(entry)
            value = self._newest()
        size = len(entries)
        if size > EVENTS_KEPT:
            entries[-EVENTS_KEPT - 1].event = None
        if size > terms.full or (
            start > size // 8 and entries[size // 8].time_us < oldest_us - terms.span_us
        ):
            self._prune(entry)
        return value

    def _slide(self, start: int, oldest_us: int) -> int:
        """The newest window begins later: what is before it leaves."""
        entries, measure = self.entries, self._measure
        while entries[start].time_us < oldest_us:
            if measure is not None:
                measure.leave(entries[start])
            start += 1
        self._start = start
        return start

    def _begin_anew(self) -> None:
        self.entries = sorted(self.late, key=_time)
        self.late, self.fired_us = [], None
        self.last, self._leaving = {}, []
        self._again()
        if self._measure is None:
            for one in self.entries:
                self._enter(one)
        self._leave()

    def _again(self) -> None:
        """Measure the newest window from its events."""
        if self.entries:
            oldest_us = self.entries[-1].time_us - self._terms.span_us
            self._start = bisect_left(self.entries, oldest_us, key=_time)
        self._measure = self._terms.new_measure()
        if self._measure is not None:
            for one in self.entries[self._start :]:
                self._measure.enter(one)

    def _enter(self, entry: Entry) -> None:
        """Measure an event; `last` stays true when a full window loses events."""
        terms = self._terms
        if self._measure is not None:
            self._measure.enter(entry)
        elif terms.counts_values:
            self._enter_values(entry)
        elif terms.knows_rules and self.last.get(entry.rule, NEVER) < entry.time_us:
            self.last[entry.rule] = entry.time_us

    def _enter_values(self, entry: Entry) -> None:
        last: dict[Any, int] = self.last
        time_us = entry.time_us
        for value in entry.values:
            seen_us = last.get(value)
            if seen_us is None:
                heappush(self._leaving, (time_us, value))
                last[value] = time_us
                if len(last) > self._terms.most:
                    self._forget_oldest()
            elif seen_us < time_us:
                last[value] = time_us

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

    def _leave(self) -> None:
        """What is no more in the newest window."""
        oldest_us = self.entries[-1].time_us - self._terms.span_us
        self._slide(self._start, oldest_us)
        if self._terms.counts_values:
            self._forget(oldest_us)

    def _prune(self, entry: Entry) -> None:
        """Forget what no late event can need; many at once, as each time moves all others."""
        entries, most = self.entries, self._terms.most
        oldest_us = entries[-1].time_us - 2 * self._terms.span_us
        if entries[len(entries) // 8].time_us < oldest_us:
            self._drop(bisect_left(entries, oldest_us, key=_time))
        if len(entries) > self._terms.full:
            self.cut += len(entries) - most
            self._drop(len(entries) - most)
        if len(entries) > EVENTS_KEPT and entries[-EVENTS_KEPT - 1] is not entry:
            entries[-EVENTS_KEPT - 1].event = None

    def _drop(self, number: int) -> None:
        if self._measure is not None:
            for one in self.entries[self._start : number]:
                self._measure.leave(one)
        del self.entries[:number]
        self._start = max(0, self._start - number)

    def newest(self, value: float) -> Reached:
        """The newest window, in which this was measured."""
        return Reached(float(value), self.entries, self._start, len(self.entries))

    def reached(self, entry: Entry) -> Reached | None:
        """The first window around an event in which the condition holds."""
        entries, span_us = self.entries, self._terms.span_us
        for end in self._ends(entry):
            if end == len(entries):
                return self._checked(self._newest(), self._start, end)
            start = bisect_left(entries, entries[end - 1].time_us - span_us, key=_time)
            found = self._checked(measure(self._terms.one, entries[start:end]), start, end)
            if found is not None:
                return found
        return None

    def _checked(self, value: float | None, start: int, end: int) -> Reached | None:
        if value is None or not self._terms.compare(value, self._terms.limit):
            return None
        return Reached(value, self.entries, start, end)

    def _newest(self) -> float | None:
        """What is measured in the newest window."""
        one = self._terms.one
        if self._terms.counts_events:
            return float(len(self.entries) - self._start)
        if self._measure is not None:
            return self._measure.value(self.entries[-1])
        if self._terms.counts_values:
            return float(len(self.last))
        if self._terms.knows_rules:
            oldest_us = self.entries[-1].time_us - self._terms.span_us
            return _seen_together(one, {r for r, us in self.last.items() if us >= oldest_us})
        return measure(one, self.entries[self._start :])

    def _ends(self, entry: Entry) -> Iterator[int]:
        """Where the windows end that hold the entry: after it, and after later ones."""
        end = bisect_right(self.entries, entry.time_us, key=_time)
        last_us = entry.time_us + self._terms.span_us
        for _ in range(LATE_ENDS_MAX):
            yield end
            if end == len(self.entries) or self.entries[end].time_us > last_us:
                return
            end = bisect_right(self.entries, self.entries[end].time_us, key=_time)


def entries_max(correlation: Correlation) -> int:
    """How many entries a window of this correlation may hold."""
    if correlation.type not in ("event_count", "value_count"):
        return ENTRIES_MAX
    return min(KEPT_MAX, max([ENTRIES_MAX, *(int(limit) + 1 for _, limit in correlation.limits)]))


def _time(entry: Entry) -> int:
    return entry.time_us


def _several(terms: Terms, view: View) -> tuple[str | float, ...]:
    """What an event brings, whatever it is and wherever it stands; several fields are one value."""
    columns = [view.values(name) for name in terms.one.field]
    if len(columns) > 1:
        texts = [",".join(text_of(one) for one in column) for column in columns if column]
        return ("\x1f".join(texts),) if len(texts) == len(columns) else ()
    present = [one for one in columns[0] if one is not None]
    if terms.texts:
        return tuple(text_of(one) for one in present)
    return tuple(number for one in present for number in _number(one))


def _number(value: Any) -> tuple[float, ...]:
    number = number_of(value)
    return () if number is None or not -_HUGE < number < _HUGE else (float(number),)


_HUGE = 1e300


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
            return _seen_together(correlation, {entry.rule for entry in entries})
        case "temporal_ordered":
            return _ordered(correlation, entries)
        case "value_sum":
            return math.fsum(numbers) if numbers else None
        case "value_avg":
            return math.fsum(numbers) / len(numbers) if numbers else None
        case "value_median":
            return median(sorted(numbers)) if numbers else None
        case "value_percentile" if correlation.percentile is not None:
            return percentile(sorted(numbers), correlation.percentile) if numbers else None
    newest = entries[-1].values
    return 100.0 * values.count(newest[0]) / len(values) if newest else None


def _seen_together(correlation: Correlation, seen: set[str]) -> float:
    if correlation.expression is None:
        return float(len(seen))
    return float(condition.holds(correlation.expression, seen.__contains__))


def _ordered(correlation: Correlation, entries: Sequence[Entry]) -> float:
    """How many of the rules were seen, each not before the one named before it."""
    wanted = correlation.rules
    if correlation.expression is not None:
        seen = {entry.rule for entry in entries}
        if not _seen_together(correlation, seen):
            return 0.0
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


def with_dates(event: Event) -> Event:
    """An event that was read back from JSON, its dates as dates again."""
    fields: dict[str, Any] = {
        name: datetime.fromisoformat(value)
        if isinstance(value, str) and name in FIELDS and FIELDS[name].type == "date"
        else value
        for name, value in event.fields.items()
    }
    return msgspec.structs.replace(event, fields=fields)
