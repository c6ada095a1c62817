"""The window of one group of a correlation, and what is measured in it."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import repeat
from typing import Any

import msgspec

from cityward.event import Event
from cityward.fields import FIELDS
from cityward.finding import EVENTS_KEPT
from detectors.sigma import condition
from detectors.sigma.match import Match, column_of
from detectors.sigma.matchers import number_of
from detectors.sigma.measures import (
    NOTHING,
    Count,
    Distinct,
    Entry,
    Measure,
    Order,
    Ranked,
    Share,
    Sum,
    Together,
    added_up,
    median,
    percentile,
    seen_together,
)
from detectors.sigma.rule import Correlation
from detectors.sigma.view import View, text_of

ENTRIES_MAX = 10_000
"""Base events that one window holds, or what its condition counts to if that is more."""
KEPT_MAX = 100_000
"""Base events that one correlation keeps, and the most that one can count to."""
GRAINS_RULES_MAX = 8
"""For more rules grains are no longer: if that leaves no room, what is oldest goes."""
TOGETHER_MIN = 3
"""Fewer events of a group are sooner taken one by one."""
LATE_ENDS_MAX = 16
"""A late event is looked at in so many of the windows it falls into."""
JUMP_BACK = 3
"""So many events in a row that are too late mean that the clock was set back: begin anew."""

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
    "eq": operator.eq,
    "neq": lambda value, limit: value < limit or value > limit,
}
"""None of them holds of `NOTHING`."""
COUNTED = frozenset({"event_count", "value_count", "temporal", "temporal_ordered"})
"""What is measured is a whole number; to compare it with another such is soonest done."""


class Reached(msgspec.Struct, frozen=True):
    """A window in which the condition holds, and which is now to be spoken of."""

    number: int
    """Place of the event that decided among those that were given together."""
    value: float
    """What was measured."""
    entries: list[Entry]
    """Those of the window."""
    events: list[Event]
    """Those that are still there, oldest first; the one that decided always is."""
    count: int
    """Base events on which the condition held since the window last spoke."""


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
        adds_up = one.type in ("value_sum", "value_avg")
        rules = min(len(one.rules), GRAINS_RULES_MAX)
        self.grain_us = -(-8 * rules * self.span_us // self.most) if adds_up else 0
        """Then numbers that are added up are put together, those of one grain of time each, so that
        a quarter as many entries is enough for two time spans. A sum may hold what left its window
        less than a grain ago. 0: they are not added up."""
        self.texts = one.type == "value_count" or (
            one.type == "value_percentile" and one.percentile is None
        )
        """True if values are compared for equality, not added up."""
        self.compare, self.limit = _condition_of(one)
        """The condition holds if `compare(measured, limit)` does."""
        self.name = one.field[0] if len(one.field) == 1 else None
        self.has_values = bool(one.field)

    def values(self, matches: Sequence[Match]) -> Sequence[tuple[str | float, ...]]:
        """What events bring to a window; nothing if they lack the field."""
        if not self.has_values:
            return [()] * len(matches)
        column = column_of(matches, self.name) if self.name is not None else None
        plain = self._plain(column) if column is not None else None
        if plain is not None:
            return [*zip(plain, strict=True)]
        return [_several(self, match.view) for match in matches]

    def _plain(self, column: Sequence[Any]) -> Sequence[str | float] | None:
        """Values as they are measured, if that is simple for all of them: nearly always."""
        kinds = {*map(type, column)}
        if self.texts:
            return column if kinds <= {str} else None
        if not kinds <= {int, float}:
            return None
        try:
            numbers = [*map(float, column)]
        except OverflowError:  # a whole number of hundreds of digits
            return None
        return numbers if sum(map(abs, numbers)) < _HUGE else None

    def new_measure(self, last: dict[str, int]) -> Measure | None:
        """What is measured as events come; None if it takes a list of them.

        Args:
            last: When values, or rules, were seen last.
        """
        one = self.one
        match one.type:
            case "event_count":
                return Count()
            case "value_count":
                return Distinct(last, self.span_us, self.most)
            case "value_sum":
                return Sum()
            case "value_avg":
                return Sum(mean=True)
            case "value_median":
                return Ranked(None)
            case "value_percentile":
                return Share() if one.percentile is None else Ranked(one.percentile)
            case "temporal":
                return Together(one, last, self.span_us)
            case "temporal_ordered" if one.expression is None:
                return Order(one.rules, self.span_us)
        return None


def _condition_of(one: Correlation) -> tuple[Callable[[float, float], bool], float]:
    if one.expression is not None:
        return operator.gt, 0.0
    is_counted = one.type in COUNTED
    limits = [
        (OPERATORS[name], int(limit) if is_counted and limit.is_integer() else limit)
        for name, limit in one.limits
    ]
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
        *("entries", "late", "fired_us", "touched_us", "since", "cut"),
        *("_terms", "_start", "_measure", "_told"),
    )

    def __init__(self, terms: Terms, kept: Kept | None = None) -> None:
        kept = kept or Kept()
        self.entries = kept.entries
        self.late = kept.late
        self.fired_us = kept.fired_us
        self.touched_us = kept.touched_us
        self.since = kept.since
        self.cut = self._told = kept.cut
        self._terms = terms
        self._begin(kept.last)

    def _begin(self, last: dict[str, int]) -> None:
        """Measure the newest window from its events."""
        self._start = 0
        if self.entries:
            self._start = self._place_of(self.entries[-1].time_us - self._terms.span_us)
        self._measure = self._terms.new_measure(last)
        if self._measure is not None and not last:
            for one in self.entries[self._start :]:
                self._measure.enter(one)

    @property
    def last(self) -> dict[str, int]:
        """Values or rules of the newest window, if they are counted, and when each was last."""
        return self._measure.last if isinstance(self._measure, (Distinct, Together)) else {}

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

    def feed(
        self, run: Sequence[Entry], counts: Counter[str], *, in_order: bool = False
    ) -> Sequence[Reached]:
        """Take events as they come; the windows that they complete and that are to be spoken of.

        An event may be one time span late. Three too late ones in a row begin the window anew:
        the source's clock was set back, or one event came from the future.

        Args:
            run: At least one event.
            counts: Here it is counted that one came too `late`.
            in_order: It is known that each is as new as the one before it, or newer.
        """
        if len(run) >= TOGETHER_MIN and (in_order or _are_in_order(run)) and self._goes_on(run):
            return self._take_all(run)
        said: list[Reached] = []
        for number, entry in enumerate(run):
            if not self.entries or entry.time_us >= self.entries[-1].time_us:
                value = self._take(entry)
                if value is not None:
                    said.append(self._say(entry, number, (value, self._start, len(self.entries))))
            elif self._put(entry):
                found = self._around(entry)
                self.since += found is not None
                if found is not None and not self._is_soon(entry):
                    said.append(self._say(entry, number, found))
            else:
                counts["late"] += 1
        return said

    def _take(self, entry: Entry) -> float | None:
        """Take the newest event; what is measured, if that is to be spoken of."""
        entries, terms, measure = self.entries, self._terms, self._measure
        entries.append(entry)
        if self.late:
            self.late = []
        oldest_us = entry.time_us - terms.span_us
        if measure is not None:
            measure.enter(entry)
        if entries[self._start].time_us < oldest_us:
            self._leave(oldest_us)
        value = self._newest() if measure is None else measure.value(entry)
        size = len(entries)
        if size > EVENTS_KEPT:
            entries[-EVENTS_KEPT - 1].event = None
        if size > terms.full or entries[size // 8].time_us < oldest_us - terms.span_us:
            self._prune()
        if not terms.compare(value, terms.limit):
            return None
        self.since += 1
        return None if self._is_soon(entry) else value

    def _leave(self, oldest_us: int) -> None:
        """What is older leaves the newest window."""
        entries, measure, start = self.entries, self._measure, self._start
        if measure is None or measure.goes_by_time:
            start = self._place_of(oldest_us, start)
        else:
            while entries[start].time_us < oldest_us:
                measure.leave(entries[start])
                start += 1
        self._start = start

    def _goes_on(self, run: Sequence[Entry]) -> bool:
        """True if events, which are in order, can be taken together: they make no other one go."""
        entries, terms, measure = self.entries, self._terms, self._measure
        if measure is None or len(entries) + len(run) > terms.full:
            return False
        oldest_us = run[-1].time_us - terms.span_us
        if not entries:
            return run[0].time_us >= oldest_us
        return (
            run[0].time_us >= entries[-1].time_us
            and (measure.goes_by_time or entries[self._start].time_us >= oldest_us)
            and entries[len(entries) // 8].time_us >= oldest_us - terms.span_us
        )

    def _take_all(self, run: Sequence[Entry]) -> Sequence[Reached]:
        """Take events that go on; nearly always there is nothing to say, or it was said before."""
        entries, terms, measure, fired_us = self.entries, self._terms, self._measure, self.fired_us
        first = len(entries)
        entries += run
        if self.late:
            self.late = []
        oldest_us = run[-1].time_us - terms.span_us
        if entries[self._start].time_us < oldest_us:
            self._leave(oldest_us)
        values = () if measure is None else measure.enter_all(run)
        held = [*map(terms.compare, values, repeat(terms.limit))]
        said: Sequence[Reached] = ()
        if fired_us is not None and oldest_us < fired_us < run[0].time_us + terms.span_us:
            self.since += held.count(True)
        elif True in held:
            said = [*self._said_of(run, values, held)]
        if len(entries) > EVENTS_KEPT:
            self._lose_events(first, len(entries))
        return said

    def _said_of(
        self, run: Sequence[Entry], values: Sequence[float], held: Sequence[bool]
    ) -> Iterator[Reached]:
        """The windows that are to be spoken of."""
        first = len(self.entries) - len(run)
        for number, (entry, value) in enumerate(zip(run, values, strict=True)):
            self.since += held[number]
            if held[number] and not self._is_soon(entry):
                end = first + number + 1
                self._lose_events(first, end)
                start = self._place_of(entry.time_us - self._terms.span_us)
                yield self._say(entry, number, (value, start, end))

    def rest(self) -> Reached | None:
        """What has not been said yet: the last measure is not kept, so it is measured again."""
        newest = self.entries[-1] if self.entries else None
        if not self.since or newest is None or newest.event is None:
            return None
        return self._say(newest, 0, self._around(newest) or (0.0, 0, len(self.entries)))

    def _is_soon(self, entry: Entry) -> bool:
        """True if an event comes within a time span of what was last said."""
        fired_us = self.fired_us
        return fired_us is not None and abs(entry.time_us - fired_us) < self._terms.span_us

    def _say(self, entry: Entry, number: int, where: tuple[float, int, int]) -> Reached:
        value, start, end = where
        entries = self.entries[start:end]
        events = [one.event for one in entries if one.event is not None]
        reached = Reached(number, float(value), entries, events, self.since)
        self.fired_us, self.since = entry.time_us, 0
        return reached

    def _lose_events(self, first: int, end: int) -> None:
        """Entries before the last `EVENTS_KEPT` lose their events, now that others have come."""
        start = first - EVENTS_KEPT if first > EVENTS_KEPT else 0
        for one in self.entries[start : end - EVENTS_KEPT if end > EVENTS_KEPT else 0]:
            one.event = None

    def _put(self, entry: Entry) -> bool:
        """Put a late event in its place; False if it is too late to count."""
        entries, measure = self.entries, self._measure
        if entry.time_us < entries[-1].time_us - self._terms.span_us:
            self.late.append(entry)
            if len(self.late) < JUMP_BACK:
                return False
            self.entries = sorted(self.late, key=_time)
            self.late, self.fired_us = [], None
            self._begin({})
            return True
        self._prune()  # before it is there: it has to be spoken of first
        insort(entries, entry, key=_time)
        self.late = []
        if isinstance(measure, Order):
            self._begin({})
        elif measure is not None:
            measure.enter(entry)
        if len(entries) > EVENTS_KEPT and entries[-EVENTS_KEPT - 1] is not entry:
            entries[-EVENTS_KEPT - 1].event = None
        return True

    def _prune(self) -> None:
        """Forget what no late event can need; many at once, as each time moves all others."""
        entries, terms = self.entries, self._terms
        oldest_us = entries[-1].time_us - 2 * terms.span_us
        if entries[len(entries) // 8].time_us < oldest_us:
            self._drop(self._place_of(oldest_us))
        if len(entries) > terms.full and terms.grain_us:
            self._add_up()
        if len(entries) > terms.full:
            self.cut += len(entries) - terms.most
            self._drop(len(entries) - terms.most)

    def _add_up(self) -> None:
        """What is older than a finding shows becomes one entry a grain of time."""
        end = max(self._start, len(self.entries) - EVENTS_KEPT)
        before = self._in_grains(self.entries[: self._start])
        within = self._in_grains(self.entries[self._start : end])
        self.entries[:end] = [*before, *within]
        self._start = len(before)

    def _in_grains(self, entries: Sequence[Entry]) -> list[Entry]:
        grains: dict[tuple[int, str], list[Entry]] = defaultdict(list)
        for one in entries:
            grains[one.time_us // self._terms.grain_us, one.rule].append(one)
        return sorted(map(added_up, grains.values()), key=_time)

    def _drop(self, number: int) -> None:
        if self._measure is not None:
            for one in self.entries[self._start : number]:
                self._measure.leave(one)
        del self.entries[:number]
        self._start = max(0, self._start - number)

    def _around(self, entry: Entry) -> tuple[float, int, int] | None:
        """The first window around an event in which the condition holds, and what is measured."""
        entries, terms = self.entries, self._terms
        for end in self._ends(entry):
            if end == len(entries):
                start, value = self._start, self._newest()
            else:
                start = self._place_of(entries[end - 1].time_us - terms.span_us)
                value = measured(terms.one, entries[start:end])
            if terms.compare(value, terms.limit):
                return value, start, end
        return None

    def _newest(self) -> float:
        """What is measured in the newest window."""
        if self._measure is None:
            return measured(self._terms.one, self.entries[self._start :])
        return self._measure.value(self.entries[-1])

    def _ends(self, entry: Entry) -> Iterator[int]:
        """Where the windows end that hold the entry: after it, and after later ones."""
        end = bisect_right(self.entries, entry.time_us, key=_time)
        last_us = entry.time_us + self._terms.span_us
        for _ in range(LATE_ENDS_MAX):
            yield end
            if end == len(self.entries) or self.entries[end].time_us > last_us:
                return
            end = bisect_right(self.entries, self.entries[end].time_us, key=_time)

    def _place_of(self, time_us: int, after: int = 0) -> int:
        """Where the entries of this time begin."""
        return bisect_left(self.entries, time_us, after, key=_time)


def entries_max(correlation: Correlation) -> int:
    """How many entries a window of this correlation may hold."""
    if correlation.type not in ("event_count", "value_count"):
        return ENTRIES_MAX
    return min(KEPT_MAX, max([ENTRIES_MAX, *(int(limit) + 1 for _, limit in correlation.limits)]))


def _time(entry: Entry) -> int:
    return entry.time_us


def _are_in_order(run: Sequence[Entry]) -> bool:
    times = [entry.time_us for entry in run]
    return times == sorted(times)


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


def measured(correlation: Correlation, entries: Sequence[Entry]) -> float:
    """The number that the condition is about; `NOTHING` if there is none.

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
            return seen_together(correlation, {entry.rule for entry in entries})
        case "temporal_ordered":
            return _ordered(correlation, entries)
        case "value_sum":
            return math.fsum(numbers) if numbers else NOTHING
        case "value_avg":
            number = len(numbers) + sum(entry.added[1] for entry in entries)
            return math.fsum(numbers) / number if numbers else NOTHING
        case "value_median":
            return median(sorted(numbers)) if numbers else NOTHING
        case "value_percentile" if correlation.percentile is not None:
            return percentile(sorted(numbers), correlation.percentile) if numbers else NOTHING
    newest = entries[-1].values
    return 100.0 * values.count(newest[0]) / len(values) if newest else NOTHING


def _ordered(correlation: Correlation, entries: Sequence[Entry]) -> float:
    """How many of the rules were seen, each not before the one named before it."""
    wanted = correlation.rules
    if correlation.expression is not None:
        seen = {entry.rule for entry in entries}
        if not seen_together(correlation, seen):
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
