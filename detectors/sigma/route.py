"""The events of one log source on their way through its plan, many at a time.

Events that name the same of the fields that matter, with values of the same types, have one
*layout*: what each field of the plan is called there, and what is missing. What holds of the fields
that are looked at first says what else is looked at, the *step*. Events of one step are looked at
together: that costs a look-up for each field, column by column, and one for what the answers
together say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import repeat
from typing import Any, Generic, NamedTuple

from cityward.event import Event, LogSource
from detectors.sigma.ask import NOTHING, Ask, Held
from detectors.sigma.keywords import Keywords, Texts, every_text
from detectors.sigma.knowledge import SAME, Knowledge, Library
from detectors.sigma.matchers import test_of
from detectors.sigma.memory import SHAPE_BYTES, Memory, Room, size_of_answers
from detectors.sigma.native import elsewhere
from detectors.sigma.plan import Expired, Gates, Plan, Rule, Spoken, Verdict
from detectors.sigma.view import THEIRS, TIME, View, taker

Row = Mapping[str, Any]
Values = tuple[Any, ...]
Types = tuple[type, ...]
Column = Callable[[Sequence[Event]], Iterable[Held]]
"""What holds on events as a whole."""

FIRST_FROM = 16
"""Fewer fields are sooner looked at together than some of them first."""
TOGETHER_FROM = 4
"""Fewer events are sooner looked at one by one."""
COLUMN_FROM = 32
"""Fewer values of a field are not worth being skimmed."""
NAME_BYTES = 64
"""A name in a set."""

_LISTS = frozenset({list, tuple})


class Known(NamedTuple):
    """Who knows what holds on one of the values that are taken from an event."""

    place: int
    of: Callable[[Any], Held]
    of_column: Callable[[Sequence[Any]], Iterable[Held]]


class Step(Generic[Rule]):
    """What is looked at, and what the answers together say."""

    def __init__(
        self,
        fields: Sequence[Known],
        columns: Sequence[Column],
        decided: Mapping[tuple[Held, ...], Verdict[Rule]],
    ) -> None:
        self.fields = fields
        self.columns = columns
        self.decided = decided

    def verdicts(
        self, rows: Mapping[int, Values], events: Mapping[int, Event]
    ) -> Iterable[tuple[int, Spoken[Rule]]]:
        """What the plan says of events, by their places; those of which it says nothing left out.

        Args:
            rows: What is taken of the events.
            events: These, and others.
        """
        if len(rows) < TOGETHER_FROM:
            return self._one_by_one(rows, events)
        by_field = [*zip(*rows.values(), strict=True)]
        held: list[Iterable[Held]]
        if len(rows) < COLUMN_FROM:
            held = [map(of, by_field[place]) for place, of, _ in self.fields]
        else:
            held = [of_column(by_field[place]) for place, _, of_column in self.fields]
        if self.columns:
            several = [events[place] for place in rows]
            held += [column(several) for column in self.columns]
        elif not held:
            held.append(repeat(NOTHING, len(rows)))
        verdicts = map(self.decided.__getitem__, zip(*held, strict=True))
        return [(place, one) for place, one in zip(rows, verdicts, strict=True) if one]

    def _one_by_one(
        self, rows: Mapping[int, Values], events: Mapping[int, Event]
    ) -> Iterator[tuple[int, Spoken[Rule]]]:
        for place, values in rows.items():
            held = [of(values[at]) for at, of, _ in self.fields]
            for column in self.columns:
                held += column((events[place],))
            if verdict := self.decided[tuple(held)]:
                yield place, verdict


class Layout(Generic[Rule]):
    """How events are looked at that name the same fields, with values of the same types.

    Args:
        first: Fields that are looked at first.
        steps: What is looked at next, by what holds of these.
    """

    def __init__(
        self, first: Sequence[Known], steps: Mapping[tuple[Held, ...], Step[Rule]]
    ) -> None:
        self._first = first
        self._steps = steps
        self._only = None if first else steps[()]

    def step(self, values: Values) -> Step[Rule]:
        """What is looked at next."""
        if self._only is not None:
            return self._only
        return self._steps[tuple([of(values[place]) for place, of, _ in self._first])]


class Names(Generic[Rule]):
    """What of the fields that matter an event names, in itself and in its nested field."""

    def __init__(
        self,
        names: Sequence[str],
        inner: Sequence[str],
        others: frozenset[str],
        layouts: Memory[Types, Layout[Rule] | Nested[Rule]],
    ) -> None:
        self.take = taker(names)
        """Takes the values that matter."""
        self.take_inner = taker(inner)
        self.others = others
        """What would matter, too."""
        self.layouts = layouts
        """By the types of these values."""


class Nested(Generic[Rule]):
    """Values that do not say all: one is looked into, or the event is made flat."""

    def __init__(
        self, inner: str = "", names: Mapping[tuple[str, ...], Names[Rule]] | None = None
    ) -> None:
        self.inner = inner
        self.names = names
        """What matters by the names in the one; None: the event is made flat."""


class Shapes(Generic[Rule]):
    """The ways in which rows name what matters.

    Args:
        matters: All names that matter; None: any other does, too.
        named: What is known of rows that name these.
        room: Where it is remembered.
    """

    def __init__(
        self,
        matters: frozenset[str] | None,
        named: Callable[[Collection[str]], Names[Rule]],
        room: Room,
    ) -> None:
        self._matters = matters
        bare = named(())
        size = SHAPE_BYTES + NAME_BYTES * len(matters or ())
        self._names: Memory[Collection[str], Names[Rule]] = Memory(room, named, size)
        self._latest: Memory[int, Names[Rule]] = Memory(room, lambda width: bare)
        """By the number of fields, as the next row of so many is likely to name the same."""

    def layout(self, row: Row) -> tuple[Layout[Rule] | Nested[Rule], Values]:
        """How a row is looked at, and what is taken of it."""
        if self._matters is None:
            names = self._names[tuple(row)]
            values = names.take(row)
        else:
            names = self._latest[len(row)]
            try:
                values = names.take(row)
                is_alike = row.keys().isdisjoint(names.others)
            except KeyError:
                is_alike = False
            if not is_alike:
                names = self._latest[len(row)] = self._names[frozenset(row.keys() & self._matters)]
                values = names.take(row)
        return names.layouts[tuple(map(type, values))], values


Piles = defaultdict[Step[Rule], dict[int, Values]]
"""What is taken of events, by their step and their places."""


class Route(Generic[Rule]):
    """The rules of a log source, and the shapes in which its events come."""

    def __init__(self, plan: Plan[Rule], library: Library) -> None:
        self.plan = plan
        self.events = 0
        self.library = library
        self._room = library.room
        self.fields: dict[str, list[Knowledge]] = {}
        """Who knows what is asked of a field."""
        self.keywords: Keywords | None = None
        self.references: list[Ask] = []
        """What is asked of two fields together."""
        for field, asks in plan.fields.items():
            alone = frozenset(ask for ask in asks if not ask.others)
            self.references += asks - alone
            if field is None:
                self.keywords = library.keywords(alone)
            elif alone:
                self.fields[field] = library.of(field, alone)
        self._missing = {
            field: NOTHING.union(*(one.missing for one in several))
            for field, several in self.fields.items()
            if any(one.missing for one in several)
        }
        self._unseen: dict[str, list[Rule]] = {}
        for rule in plan.rules:
            for field in rule.never_seen:
                self._unseen.setdefault(field, []).append(rule)
        self._stands_for: dict[str, list[tuple[int, str]]] = {}
        """A name that events use: the fields it stands for, and how soon it is looked for."""
        compared = {name for ask in self.references for name in (ask.field or "", *ask.others)}
        for field in self.fields.keys() | self._unseen | compared:
            for rank, name in enumerate((field, *elsewhere(field))):
                self._stands_for.setdefault(name, []).append((rank, field))
        self._prefixes = prefixes_of(self._stands_for)
        if self.keywords is not None:
            self._prefixes.add(THEIRS)
        self._matters = frozenset(self._stands_for.keys() | self._prefixes)
        self._plain = Shapes(
            None if self.keywords is not None else self._matters, self._named, self._room
        )
        self._flat = Shapes(
            self._matters, lambda names: self._named(names, is_flat=True), self._room
        )

    def prepare(self, *, for_lines: bool = False) -> None:
        """Make now what else is made on the first event."""
        _ = self._gates, self.plan.gates
        if self.keywords is not None:
            self.keywords.prepare(for_lines=for_lines)

    @cached_property
    def _gates(self) -> Gates:
        if len(self.fields) < FIRST_FROM:
            return Gates.of(frozenset(), self.plan.rules)
        return self.plan.gates

    def sort_in(self, piles: Piles[Rule], place: int, event: Event) -> None:
        """Put what is taken of an event on the pile of its step."""
        self.events += 1
        layout, values = self._plain.layout(event.fields)
        if isinstance(layout, Nested):
            layout, values = self._looked_into(layout, event)
        piles[layout.step(values)][place] = values

    def _looked_into(self, nested: Nested[Rule], event: Event) -> tuple[Layout[Rule], Values]:
        """How an event is looked at of which the values do not say all."""
        row = event.fields
        if nested.names is not None:
            inner = row[nested.inner]
            names = nested.names[tuple(inner)]
            values = names.take(row) + names.take_inner(inner)
            layout = names.layouts[tuple(map(type, values))]
            if isinstance(layout, Layout):
                return layout, values
        layout, values = self._flat.layout(View.of(event).flat)
        return layout, values  # type: ignore[return-value]  # nothing is nested any more

    def _named(
        self,
        names: Collection[str],
        outer: str | None = None,
        inner: tuple[str, ...] = (),
        *,
        is_flat: bool = False,
    ) -> Names[Rule]:
        """How events that name these fields are looked at; `inner` are those within `outer`."""
        taken = [name for name in names if name != outer and name in self._matters]
        taken_inner = [name for name in inner if f"{outer}.{name}" in self._matters]
        every = [*taken, *(f"{outer}.{name}" for name in taken_inner)]
        has_own_time = not is_flat and TIME not in names
        text_of = every_text
        if (words := self.keywords) is not None and not is_flat:
            text_of = Texts([*names], outer, inner, words.looks_at_numbers).of
        layouts: dict[Types, Layout[Rule]] = {}

        def decide(types: Types) -> Layout[Rule] | Nested[Rule]:
            groups = [
                name
                for name, kind in zip(every, types, strict=True)
                if issubclass(kind, Mapping)
                or (kind in _LISTS and name in self._prefixes and not is_flat)
            ]
            if len(groups) == 1 and outer is None:
                (name,) = groups
                if name in self._prefixes and types[every.index(name)] is dict:
                    return within(name)
            if groups or len({*every}) < len(every):  # one name twice
                return Nested()
            kinds = tuple(str if kind in SAME else kind for kind in types)
            if kinds not in layouts:
                named = dict(zip(every, kinds, strict=True))
                layouts[kinds] = self._layout(named, text_of, has_own_time)
            return layouts[kinds]

        def within(name: str) -> Nested[Rule]:
            return Nested(
                name, Memory(self._room, lambda inner: self._named(names, name, inner), SHAPE_BYTES)
            )

        others = self._matters.difference(names)
        return Names(taken, taken_inner, others, Memory(self._room, decide, SHAPE_BYTES))

    def _layout(
        self, kinds: Mapping[str, type], text_of: Callable[[Event], str], has_own_time: bool
    ) -> Layout[Rule]:
        """The layout of events with these names and types."""
        places = {name: place for place, name in enumerate(kinds)}
        named: dict[str, tuple[int, str]] = {}
        """Fields that the event has, and under which name."""
        for name in (*kinds, TIME) if has_own_time else kinds:
            for rank, field in self._stands_for.get(name, ()):
                named[field] = min(named.get(field, (rank, name)), (rank, name))
        for field in named:
            for rule in self._unseen.pop(field, ()):
                rule.never_seen.discard(field)
        absent = [held for field, held in self._missing.items() if field not in named]
        missing = NOTHING.union(*absent)
        first: list[Known] = []
        later: list[tuple[str, Known]] = []
        columns: list[tuple[object, Column]] = [*self._columns(named, text_of)]
        gates = self._gates
        for field, several in self.fields.items():
            if field in named:
                name = named[field][1]
                for one in several:
                    if name not in places:
                        columns.append((field, _time_column(one)))
                        continue
                    known = _known(places[name], one, kinds[name])
                    if field in gates.first:
                        first.append(known)
                    else:
                        later.append((field, known))
        decide, room = self.plan.decide, self._room

        def step(key: tuple[Held, ...]) -> Step[Rule]:
            held = missing.union(*key)
            needed = gates.needed(held)
            return Step(
                [known for field, known in later if field in needed],
                [column for what, column in columns if what in needed],
                Memory(room, lambda key: decide((held, *key)), size_of=size_of_answers),
            )

        return Layout(first, Memory(room, step, SHAPE_BYTES))

    def _columns(
        self, named: Container[str], text_of: Callable[[Event], str]
    ) -> Iterator[tuple[object, Column]]:
        """Columns that look at more of an event than one field, and what in a rule needs them."""
        if (words := self.keywords) is not None:
            yield None, lambda events: [words.held(text_of(event), event) for event in events]
        for ask in self.references:
            if ask.field in named and any(other in named for other in ask.others):
                yield ask, _reference(ask)
        if self.plan.expiries:
            past = self.plan.past
            yield Expired, lambda events: [past(event.time) for event in events]


def verdicts_on(
    events: Mapping[int, Event], route_of: Callable[[LogSource], Route[Rule]]
) -> dict[int, Spoken[Rule]]:
    """Places of events that rules match or fail on, and those rules.

    Args:
        events: These, by their places.
        route_of: The route of a log source.
    """
    piles: Piles[Rule] = defaultdict(dict)
    logsource: LogSource | None = None
    for place, event in events.items():
        if event.logsource != logsource:
            logsource = event.logsource
            route = route_of(logsource)
        if route.plan.rules:
            route.sort_in(piles, place, event)
    found: dict[int, Spoken[Rule]] = {}
    for step, rows in piles.items():
        found.update(step.verdicts(rows, events))
    return found


def _known(place: int, one: Knowledge, kind: type) -> Known:
    """Knows what holds on a value of this type."""
    if kind in SAME:
        return Known(place, one.known.__getitem__, one.of_same)
    of: Callable[[Any], Held] = one.of
    if kind is bool:
        of = {value: one.of(value) for value in (False, True)}.__getitem__
    return Known(place, of, partial(map, of))


def prefixes_of(names: Iterable[str]) -> set[str]:
    """Names of what may hold a field of these names: `a` and `a.b` of `a.b.c`."""
    return {name[:place] for name in names for place, sign in enumerate(name) if sign == "."}


def _time_column(knowledge: Knowledge) -> Column:
    """What holds on the time of an event that has no field of this name."""
    return lambda events: [knowledge.of(event.time) for event in events]


def _reference(ask: Ask) -> Column:
    """A comparison with another field of the event."""
    tests = [test_of(one) for one in ask.comparisons]

    def holds(event: Event) -> bool:
        view = View.of(event)
        return any(test(view, ask.field) for test in tests)

    def held(event: Event) -> Held:
        found = ask.put(holds, (event,))
        return NOTHING if found is None else frozenset((found,))

    return lambda events: map(held, events)
