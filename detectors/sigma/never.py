"""Lines that can never hold, whatever the event, or that say nothing.

A field may have several values, of which one is enough: `f|gt: 5` and `f|lt: 3` both hold of a
list of 1 and 9. So "never" is said only of what no list can bring about; what excludes each other
for one value is told as that. `tags|all: [a, b]` is neither.

References:
    Sigma specification 2.1.0, "Detection", appendix "Modifiers", and "Correlation rules".
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any, NamedTuple

from cityward.documents import Place
from detectors.sigma.lines import compile_item, needs_of
from detectors.sigma.matchers import Exists, Item, Null, Number
from detectors.sigma.rule import Correlation
from detectors.sigma.window import OPERATORS

TOGETHER_MAX = 20
"""So many lines of one field in one map are held against each other."""
_NO_SELECTIONS = frozenset({"condition", "rules", "timeframe"})
_VERBS = {"lt": "less than ", "lte": "at most ", "gt": "more than ", "gte": "at least ", "eq": ""}


class Claim(NamedTuple):
    """What is said of a line."""

    place: Place
    what: str


class Span(NamedTuple):
    """Numbers that there can be, both ends included; None: without end."""

    low: int | None = None
    high: int | None = None
    is_whole: bool = False

    def has(self, one: float) -> bool:
        """True if it is one of them."""
        return (self.low is None or one >= self.low) and (self.high is None or one <= self.high)

    def points(self, limits: Iterable[float]) -> list[float]:
        """Enough of them: what compares with these limits in any way, does so in one of these.

        They are exact, as between two large numbers there may be no float.
        """
        ends = [one for one in (self.low, self.high) if one is not None]
        given = {Fraction(one) for one in (*limits, *ends) if _is_finite(one)}
        near = sorted(given) or [Fraction(0)]
        if self.is_whole:
            found: list[Any] = [math.floor(one) + step for one in near for step in (-1, 0, 1)]
        else:
            between = [(low + high) / 2 for low, high in pairwise(near)]
            found = [-math.inf, near[0] - 1, *near, *between, near[-1] + 1, math.inf]
        return [one for one in found if self.has(one)]


_PARTS = {
    "minute": Span(0, 59, True),
    "hour": Span(0, 23, True),
    "day": Span(1, 31, True),
    "week": Span(1, 53, True),
    "month": Span(1, 12, True),
    "year": Span(1, 9999, True),
}
_NUMBERS = Span()


class Line(NamedTuple):
    """A line of a map."""

    place: Place
    key: str
    values: Any
    item: Item


def of_detection(document: Mapping[str, Any], name: str) -> Iterator[Claim]:
    """What is said of the lines of the section `detection` or `filter` of a document."""
    for selection, value in document[name].items():
        if selection not in _NO_SELECTIONS:
            yield from _within(value, (name, selection))


def _within(value: Any, place: Place) -> Iterator[Claim]:
    if isinstance(value, Mapping):
        yield from _of_map(value, place)
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            yield from _within(one, (*place, index))


def _of_map(given: Mapping[Any, Any], place: Place) -> Iterator[Claim]:
    by_field: defaultdict[str, list[str]] = defaultdict(list)
    for key in given:
        if isinstance(key, str):
            by_field[key.partition("|")[0]].append(key)
    for field, keys in by_field.items():
        if len(keys) > 1 or not _PARTS.keys().isdisjoint(keys[0].split("|")):
            lines = [*_lines(given, keys[:TOGETHER_MAX], place)]
            for line in lines:
                yield from _of_times(line)
            for one, other in combinations(lines, 2):
                if field and (what := _of_two(one, other)):
                    yield Claim(other.place, what)


def _lines(given: Mapping[Any, Any], keys: Iterable[str], place: Place) -> Iterator[Line]:
    """Lines as they are read; what is refused, or waits for a list of the site, is left out."""
    for key in keys:
        try:
            if not needs_of(key, given[key]):
                yield Line((*place, key), key, given[key], compile_item(key, given[key]))
        except ValueError:
            continue


# --- One line: parts of a time ------------------------------------------------------------------


def _of_times(line: Line) -> Iterator[Claim]:
    numbers = [one for one in line.item.comparisons if isinstance(one, Number) and one.part]
    outcomes = [_outcome(one) for one in numbers]
    consequence = _consequence(line.item, outcomes)
    for index, (one, outcome) in enumerate(zip(numbers, outcomes, strict=True)):
        if outcome is not None:
            place = (*line.place, index) if isinstance(line.values, list) else line.place
            yield Claim(place, f"{_about(one, always=outcome)}{consequence}")


def _outcome(one: Number) -> bool | None:
    """True if every time is so, False if none is; None if it depends."""
    compare = OPERATORS[one.how]
    found = {compare(point, one.limit) for point in _PARTS[one.part].points([one.limit])}
    return found.pop() if len(found) == 1 else None


def _about(one: Number, *, always: bool) -> str:
    span, which = _PARTS[one.part], "every" if always else "no"
    compared = f"{_VERBS[one.how]}{one.limit}"
    return f"{which} {one.part} is {compared}: there are {span.low} to {span.high}"


def _consequence(item: Item, outcomes: list[bool | None]) -> str:
    """What follows for the line, if it does for every event."""
    none_holds = (any if item.every else all)(one is False for one in outcomes)
    if not none_holds:
        return ""
    return ", so this always holds" if item.negated else ", so this can never hold"


# --- Two lines of one field ---------------------------------------------------------------------


def _of_two(one: Line, other: Line) -> str:
    """Why both cannot hold of an event; empty: they can."""
    for first, second in ((one, other), (other, one)):
        if _wants_no_value(first.item) and _wants_a_value(second.item):
            return f"this can never hold: `{one.key}` beside it excludes it, as {_VALUE}"
        if _takes_out(first.item, second.item):
            return f"this can never hold: `{one.key}` beside it excludes the same"
    if _exclude(one.item, other.item):
        field = one.item.field
        return (
            f"no single value is both this and what `{one.key}` wants: both hold only of an event "
            f"that has several values of {field}"
        )
    return ""


_VALUE = "one of them wants a value and the other one wants none"


def _wants_no_value(item: Item) -> bool:
    return not item.negated and all(
        isinstance(one, Null) or one == Exists(False) for one in item.comparisons
    )


def _wants_a_value(item: Item) -> bool:
    """True if it does not hold of a field that is missing or null."""
    if item.negated:
        return all(isinstance(one, Null) for one in item.comparisons)
    valued = (not isinstance(one, (Null, Exists)) for one in item.comparisons)
    return any(valued) if item.every else all(valued)


def _takes_out(one: Item, other: Item) -> bool:
    """True if one wants what the other one, negated, does not."""
    if one.negated or not other.negated:
        return False
    wanted, excluded = {*one.comparisons}, {*other.comparisons}
    if other.every and len(excluded) > 1:
        return one.every and excluded <= wanted
    return not wanted.isdisjoint(excluded) if one.every else wanted <= excluded


def _exclude(one: Item, other: Item) -> bool:
    """True if no single number is what both want."""
    if one.negated or other.negated:
        return False
    numbers = [part for part in (*one.comparisons, *other.comparisons) if isinstance(part, Number)]
    if len(numbers) < len(one.comparisons) + len(other.comparisons):
        return False
    if len({part.part for part in numbers}) > 1:
        return False
    span = _PARTS.get(numbers[0].part, _NUMBERS)
    mine, theirs = _wish_of(one), _wish_of(other)
    points = span.points((*mine.limits, *theirs.limits))
    ours = [point for point in points if mine.has(point)]
    return bool(ours) and any(map(theirs.has, points)) and not any(map(theirs.has, ours))


class _Wish(NamedTuple):
    """What one number must be for a line of numbers."""

    how: str
    limits: frozenset[float]
    """One that decides for all that stand there, or for `eq` any of them: lists are long."""

    def has(self, number: float) -> bool:
        if self.how == "eq":
            return number in self.limits
        return any(OPERATORS[self.how](number, limit) for limit in self.limits)


def _wish_of(item: Item) -> _Wish:
    numbers = [one for one in item.comparisons if isinstance(one, Number)]
    how, limits = numbers[0].how, frozenset(one.limit for one in numbers)
    if how != "eq":
        least = (how in ("lt", "lte")) is item.every
        limits = frozenset([min(limits) if least else max(limits)])
    elif item.every and len(limits) > 1:
        limits = frozenset()  # no number is two
    return _Wish(how, limits)


def _is_finite(one: float) -> bool:
    return isinstance(one, int) or math.isfinite(one)


# --- Correlations -------------------------------------------------------------------------------


def of_correlation(one: Correlation) -> Iterator[Claim]:
    """Whether what a correlation measures can be within its limits at all."""
    if not one.limits:
        return
    span, what = _measured(one)
    if not _reaches(one, span):
        why = what if _reaches(one, _NUMBERS) else _EXCLUDE
        yield Claim(("correlation", "condition", one.limits[-1][0]), f"this can never hold: {why}")


_EXCLUDE = "the limits exclude each other"


def _reaches(one: Correlation, span: Span) -> bool:
    points = span.points(limit for _, limit in one.limits)
    return any(all(OPERATORS[name](at, limit) for name, limit in one.limits) for at in points)


def _measured(one: Correlation) -> tuple[Span, str]:
    """What numbers it may measure, in words too."""
    match one.type:
        case "event_count":
            return Span(1, None, True), "a number of events is whole and at least 1"
        case "value_count":  # 0: none of the events has the field
            return Span(0, None, True), "a number of values is whole and at least 0"
        case "temporal":
            rules = len(set(one.rules))
            return Span(1, rules, True), f"it counts which of its {rules} rules were seen"
        case "temporal_ordered":
            rules = len(one.rules)
            return Span(0, rules, True), f"it counts how many of its {rules} rules came in order"
        case "value_percentile" if one.percentile is None:
            return Span(0, 100), "a share is 0 to 100 percent"
    return _NUMBERS, _EXCLUDE
