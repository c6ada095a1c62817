"""The events of one log source on their way through its plan, many at a time.

Events that name the same fields, with values of the same types, have one *layout*: what each field
of the plan is called there, and what is missing. So an event costs a look-up for each of its fields
that rules name, column by column, and one for what the answers together say.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Generic

from cityward.event import Event
from detectors.sigma.find import NOTHING, Ask, Held
from detectors.sigma.keywords import Keywords, Texts, every_text
from detectors.sigma.knowledge import SAME, Knowledge, Library
from detectors.sigma.matchers import test_of
from detectors.sigma.memory import SHAPE_BYTES, Memory, size_of_answers
from detectors.sigma.native import elsewhere
from detectors.sigma.plan import Expired, Plan, Rule, Spoken, Verdict
from detectors.sigma.view import THEIRS, TIME, View, taker

Row = Mapping[str, Any]
Values = tuple[Any, ...]
Types = tuple[type, ...]
Column = Callable[[Sequence[Event]], Iterable[Held]]
"""What holds on events as a whole."""

_LISTS = frozenset({list, tuple})


Known = tuple[int, Callable[[Any], Held]]
"""A place among the values that are taken from an event, and who knows what holds there."""


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
        self, values: Sequence[Values], events: Sequence[Event]
    ) -> Iterator[Verdict[Rule]]:
        """What the plan says of each event."""
        by_field = [*zip(*values, strict=True)]
        held: list[Iterable[Held]] = [map(known, by_field[place]) for place, known in self.fields]
        held += [column(events) for column in self.columns]
        if not held:
            held.append(repeat(NOTHING, len(events)))
        return map(self.decided.__getitem__, zip(*held, strict=True))


class Layout(Generic[Rule]):
    """How events are looked at that name the same fields, with values of the same types."""

    def __init__(
        self, first: Sequence[Known], steps: Mapping[tuple[Held, ...], Step[Rule]]
    ) -> None:
        self.first = first
        self.steps = steps
        """What is looked at next, by what holds of the first fields."""


class Nested:
    """Values that do not say all: one is looked into first, or the event is made flat."""

    def __init__(self, inner: str | None = None) -> None:
        self.inner = inner


class Names(Generic[Rule]):
    """Events that name the same fields, in the event and in its nested field."""

    def __init__(
        self,
        names: Sequence[str],
        inner: Sequence[str],
        layouts: Memory[Types, Layout[Rule] | Nested],
    ) -> None:
        self.take = taker(names)
        """Takes the values that matter."""
        self.take_inner = taker(inner)
        self.layouts = layouts


class Pile(Generic[Rule]):
    """Events of one layout, and their places in a batch."""

    __slots__ = ("events", "layout", "places", "values")

    def __init__(self, layout: Layout[Rule]) -> None:
        self.layout = layout
        self.places: list[int] = []
        self.events: list[Event] = []
        self.values: list[Values] = []

    def verdicts(self) -> Iterator[tuple[int, Spoken[Rule]]]:
        """Places of events that rules match or fail on, and those rules."""
        if not self.layout.first:
            yield from self._step((), range(len(self.places)))
            return
        by_field = [*zip(*self.values, strict=True)]
        keys = zip(
            *(map(known, by_field[place]) for place, known in self.layout.first), strict=True
        )
        alike: dict[tuple[Held, ...], list[int]] = {}
        for number, key in enumerate(keys):
            alike.setdefault(key, []).append(number)
        for key, numbers in alike.items():
            yield from self._step(key, numbers)

    def _step(
        self, key: tuple[Held, ...], numbers: Sequence[int]
    ) -> Iterator[tuple[int, Spoken[Rule]]]:
        values, events = self.values, self.events
        if len(numbers) < len(events):
            values = [values[number] for number in numbers]
            events = [events[number] for number in numbers]
        verdicts = self.layout.steps[key].verdicts(values, events)
        for number, verdict in zip(numbers, verdicts, strict=True):
            if verdict:
                yield self.places[number], verdict


Piles = dict[int, Pile[Rule]]
"""Piles by the identity of their layout."""


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
        self._names: Memory[tuple[Any, ...], Names[Rule]] = Memory(
            self._room, self._named, SHAPE_BYTES
        )
        self._nested: Memory[tuple[Any, ...], Names[Rule]] = Memory(
            self._room, lambda names: self._named(*names), SHAPE_BYTES
        )
        self._flat: Memory[tuple[Any, ...], Names[Rule]] = Memory(
            self._room, lambda names: self._named(names, is_flat=True), SHAPE_BYTES
        )

    def prepare(self, *, for_lines: bool = False) -> None:
        """Make now what else is made on the first event."""
        _ = self.plan.gates
        if self.keywords is not None:
            self.keywords.prepare(for_lines=for_lines)

    def sort_in(self, piles: Piles[Rule], place: int, event: Event) -> None:
        """Put an event on the pile of its layout."""
        self.events += 1
        row: Row = event.fields
        names = self._names[tuple(row)]
        values = names.take(row)
        layout = names.layouts[tuple(map(type, values))]
        if type(layout) is Nested and layout.inner is not None:
            inner = row[layout.inner]
            names = self._nested[tuple(row), layout.inner, tuple(inner)]
            values = names.take(row) + names.take_inner(inner)
            layout = names.layouts[tuple(map(type, values))]
        if type(layout) is Nested:
            row = View.of(event).flat
            names = self._flat[tuple(row)]
            values = names.take(row)
            layout = names.layouts[tuple(map(type, values))]
        pile = piles.get(id(layout))
        if pile is None:
            pile = piles[id(layout)] = Pile(layout)  # type: ignore[arg-type]
        pile.places.append(place)
        pile.events.append(event)
        pile.values.append(values)

    def _named(
        self,
        names: tuple[str, ...],
        outer: str | None = None,
        inner: tuple[str, ...] = (),
        *,
        is_flat: bool = False,
    ) -> Names[Rule]:
        """How events that name these fields are looked at; `inner` are those within `outer`."""
        taken = [name for name in names if name != outer and self._matters(name)]
        whole = {name: f"{outer}.{name}" for name in inner}
        taken_inner = [name for name in inner if self._matters(whole[name])]
        every = [*taken, *(whole[name] for name in taken_inner)]
        if len({*names, *whole.values()}) < len(names) + len(inner):  # one name twice
            return Names((), (), Memory(self._room, lambda _: Nested()))
        texts = None
        if (words := self.keywords) is not None and not is_flat:
            texts = Texts(names, outer, inner, words.looks_at_numbers)
        has_own_time = not is_flat and TIME not in names

        def decide(types: Types) -> Layout[Rule] | Nested:
            groups = [
                name
                for name, kind in zip(every, types, strict=True)
                if issubclass(kind, Mapping)
                or (kind in _LISTS and name in self._prefixes and not is_flat)
            ]
            if not groups:
                return self._layout(dict(zip(every, types, strict=True)), texts, has_own_time)
            kinds = {kind for name, kind in zip(every, types, strict=True) if name in groups}
            is_one = len(groups) == 1 and kinds == {dict} and outer is None
            return Nested(groups[0] if is_one and groups[0] in self._prefixes else None)

        return Names(taken, taken_inner, Memory(self._room, decide, SHAPE_BYTES))

    def _matters(self, name: str) -> bool:
        return name in self._stands_for or name in self._prefixes

    def _layout(
        self, kinds: Mapping[str, type], texts: Texts | None, has_own_time: bool
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
        columns: list[tuple[object, Column]] = [*self._columns(named, texts)]
        gates = self.plan.gates
        for field, several in self.fields.items():
            if field in named:
                name = named[field][1]
                for one in several:
                    if name not in places:
                        columns.append((field, _time_column(one)))
                        continue
                    look_up = one.known.__getitem__ if kinds[name] in SAME else one.of
                    if field in gates.first:
                        first.append((places[name], look_up))
                    else:
                        later.append((field, (places[name], look_up)))
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
        self, named: Container[str], texts: Texts | None
    ) -> Iterator[tuple[object, Column]]:
        """Columns that look at more of an event than one field, and what in a rule needs them."""
        if (words := self.keywords) is not None:
            text_of = every_text if texts is None else texts.of
            yield None, lambda events: [words.held(text_of(event), event) for event in events]
        for ask in self.references:
            if ask.field in named and any(other in named for other in ask.others):
                yield ask, _reference(ask)
        if self.plan.expiries:
            past = self.plan.past
            yield Expired, lambda events: [past(event.time) for event in events]


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
