"""The events of one log source on their way through its plan, many at a time.

Events with the same names and types of fields have one *layout*: what each field of the plan is
called there, and what is missing. So an event costs a look-up for each field, column by column, and
one for what the answers together say.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any, Generic
from weakref import WeakValueDictionary

from cityward.event import Event
from detectors.sigma.find import NOTHING, Ask, Finder, Held
from detectors.sigma.keywords import Keywords, Place, Texts
from detectors.sigma.matchers import Reference, test_of
from detectors.sigma.memory import Memory, Room
from detectors.sigma.native import elsewhere
from detectors.sigma.plan import Plan, Rule, Verdict
from detectors.sigma.view import View

TIME = "@timestamp"

Row = Mapping[str, Any]
Shape = tuple[Any, ...]
"""Names and types of an event's fields; then the name of its nested field and names and types in
there, or None if the event was made flat."""

_SAME = frozenset({str, int, type(None)})
"""Types whose values can be looked up as they are; `True` and `1.0` would be found as `1`."""
_TYPED = frozenset({bool, float})
_LISTS = frozenset({list, tuple})


class Knowledge:
    """A field's matchers and what they have said: shared by all routes that ask the same of it."""

    def __init__(self, asks: Iterable[Ask], room: Room) -> None:
        self.finder = Finder(asks)
        self.missing = self.finder.held(None)
        self.known: Memory[Any, Held] = Memory(room, self._decide)

    def _decide(self, key: Any) -> Held:
        """A key is the value, or types and values if the value alone would not do."""
        if type(key) is not tuple:
            return self.finder.held((key,))
        types, values = key
        return self.finder.held(values if type(types) is tuple else (values,))

    def of(self, value: Any) -> Held:
        """What holds on a value of any type."""
        kind = type(value)
        if kind in _TYPED:
            return self.known[kind, value]
        if kind in _LISTS:
            types = tuple(map(type, value))
            if _PLAIN.issuperset(types):
                return self.known[types, tuple(value)]
        return self.finder.held(View({"": value}).values(""))


_PLAIN = _SAME | _TYPED


class Layout(Generic[Rule]):
    """How events of one shape are looked at."""

    def __init__(
        self, columns: Sequence[Column], decided: Mapping[tuple[Held, ...], Verdict[Rule]]
    ) -> None:
        self.columns = columns
        self.decided = decided


class Nested:
    """A shape that does not say all: a field is looked into first, or the event is made flat."""

    def __init__(self, inner: str | None = None) -> None:
        self.inner = inner


class Pile(Generic[Rule]):
    """Events of one layout, and their places in a batch."""

    __slots__ = ("events", "inner", "layout", "places", "rows")

    def __init__(self, layout: Layout[Rule]) -> None:
        self.layout = layout
        self.places: list[int] = []
        self.events: list[Event] = []
        self.rows: list[Row] = []
        self.inner: list[Row] = []

    def verdicts(self) -> Iterator[Verdict[Rule]]:
        """What the plan says of each event."""
        columns = [column(self) for column in self.layout.columns]
        return map(self.layout.decided.__getitem__, zip(*columns, strict=True))


Piles = dict[int, Pile[Rule]]
"""Piles by the identity of their layout."""
Column = Callable[[Pile[Any]], Iterable[Held]]
"""What holds on a field, for each event of a pile."""


class Route(Generic[Rule]):
    """The rules of a log source, and the shapes in which its events come."""

    def __init__(
        self, plan: Plan[Rule], shared: WeakValueDictionary[frozenset[Ask], Knowledge], room: Room
    ) -> None:
        self.plan = plan
        self.events = 0
        self._room = room
        self._fields: dict[str, Knowledge] = {}
        self._keywords: Keywords | None = None
        self._references: list[Ask] = []
        for field, asks in plan.fields.items():
            alone = frozenset(ask for ask in asks if not _refers(ask))
            self._references += asks - alone
            if field is None:
                self._keywords = Keywords(alone)
            elif alone:
                known = shared.get(alone)
                if known is None:
                    known = shared[alone] = Knowledge(alone, room)
                self._fields[field] = known
        self._unseen: dict[str, list[Rule]] = {}
        for rule in plan.rules:
            for name in rule.never_seen:
                self._unseen.setdefault(name, []).append(rule)
        self._prefixes = {
            name[:place]
            for field in self._unseen.keys() | self._fields
            for name in (field, *elsewhere(field))
            for place, sign in enumerate(name)
            if sign == "."
        }
        self._layouts: Memory[Shape, Layout[Rule] | Nested] = Memory(room, self._layout)

    def sort_in(self, piles: Piles[Rule], place: int, event: Event) -> None:
        """Put an event on the pile of its layout."""
        self.events += 1
        row: Row = event.fields
        inner: Row = row
        shape: Shape = (tuple(row), tuple(map(type, row.values())))
        layout = self._layouts[shape]
        if type(layout) is Nested and layout.inner is not None:
            inner = row[layout.inner]
            shape += (layout.inner, tuple(inner), tuple(map(type, inner.values())))
            layout = self._layouts[shape]
        if type(layout) is Nested:
            row = View.of(event).flat
            layout = self._layouts[tuple(row), tuple(map(type, row.values())), None]
        pile = piles.get(id(layout))
        if pile is None:
            pile = piles[id(layout)] = Pile(layout)  # type: ignore[arg-type]
        pile.places.append(place)
        pile.events.append(event)
        pile.rows.append(row)
        pile.inner.append(inner)

    def _layout(self, shape: Shape) -> Layout[Rule] | Nested:
        """How events of a shape are looked at."""
        names, types, *nested = shape
        places = {n: Place(n, kind, False) for n, kind in zip(names, types, strict=True)}
        if not nested:
            groups = [name for name in names if self._is_group(name, places[name].kind)]
            if groups:
                is_dict = len(groups) == 1 and places[groups[0]].kind is dict
                return Nested(groups[0] if is_dict else None)
        elif nested[0] is not None:
            outer, inner_names, inner_types = nested
            for name, kind in zip(inner_names, inner_types, strict=True):
                whole = f"{outer}.{name}"
                if type(name) is not str or whole in places or self._is_group(whole, kind):
                    return Nested()
                places[whole] = Place(name, kind, True)
        is_flat = nested == [None]
        return self._looked_at(
            {name: place for name, place in places.items() if not issubclass(place.kind, Mapping)},
            has_own_time=not is_flat and TIME not in names,
        )

    def _is_group(self, name: str, kind: type) -> bool:
        """True if a field of this type may hold fields that rules name."""
        if issubclass(kind, Mapping):
            return name in self._prefixes or self._keywords is not None
        return name in self._prefixes and kind in _LISTS

    def _looked_at(self, places: Mapping[str, Place], has_own_time: bool) -> Layout[Rule]:
        """The layout of events whose fields stand in these places."""
        names = {*places, TIME} if has_own_time else places.keys()
        for field in [one for one in self._unseen if _named(one, names)]:
            for rule in self._unseen.pop(field):
                rule.never_seen.discard(field)
        missing: set[object] = set()
        columns: list[Column] = []
        for field, knowledge in self._fields.items():
            name = _named(field, names)
            if name is None:
                missing |= knowledge.missing
            elif name in places:
                columns.append(_column(knowledge, places[name]))
            else:
                columns.append(_time_column(knowledge))
        columns += self._whole_columns(places, has_own_time)
        decide = self.plan.decide
        decided: Memory[tuple[Held, ...], Verdict[Rule]] = Memory(
            self._room, lambda key: decide(missing.union(*key))
        )
        return Layout(columns or [lambda pile: repeat(NOTHING, len(pile.events))], decided)

    def _whole_columns(self, places: Mapping[str, Place], has_own_time: bool) -> Iterator[Column]:
        """Columns that look at more of an event than one field."""
        if (words := self._keywords) is not None:
            texts = Texts(places, has_own_time and words.looks_at_times)
            yield lambda pile: [
                words.held(texts.of(event, row, inner), event)
                for event, row, inner in zip(pile.events, pile.rows, pile.inner, strict=True)
            ]
        for ask in self._references:
            yield _reference(ask)
        if expiries := self.plan.expiries:
            days = [one.at for one in expiries]
            past = [frozenset[object](expiries[:count]) for count in range(len(expiries) + 1)]
            yield lambda pile: [past[bisect_right(days, event.time)] for event in pile.events]


def _named(field: str, names: Container[str]) -> str | None:
    """The name under which an event with these names has a field (`View.has`)."""
    return next((name for name in (field, *elsewhere(field)) if name in names), None)


def _column(knowledge: Knowledge, place: Place) -> Column:
    """What holds on a field that stands in a place."""
    value_of = itemgetter(place.name)
    look_up = knowledge.known.__getitem__ if place.kind in _SAME else knowledge.of
    if place.is_inner:
        return lambda pile: map(look_up, map(value_of, pile.inner))
    return lambda pile: map(look_up, map(value_of, pile.rows))


def _time_column(knowledge: Knowledge) -> Column:
    """What holds on the time of an event, which the event itself does not name."""
    return lambda pile: [knowledge.of(event.time) for event in pile.events]


def _refers(ask: Ask) -> bool:
    return any(isinstance(one, Reference) for one in ask.comparisons)


def _reference(ask: Ask) -> Column:
    """A comparison with another field of the event."""
    tests = [test_of(one) for one in ask.comparisons]
    holds = frozenset({ask})

    def held(event: Event) -> Held:
        view = View.of(event)
        return holds if any(test(view, ask.field) for test in tests) else NOTHING

    return lambda pile: map(held, pile.events)
