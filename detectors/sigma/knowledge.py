"""What is known of a field: all that rules ask of it, and what held on the values that came."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import filterfalse, repeat
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from msgspec import UNSET, UnsetType

from detectors.sigma.ask import Ask, Held
from detectors.sigma.databases import Databases
from detectors.sigma.find import Finder
from detectors.sigma.keywords import Keywords
from detectors.sigma.memory import Memory, Room
from detectors.sigma.view import View

SAME = frozenset({str, int, type(None)})
"""Types whose values can be looked up as they are; `True` and `1.0` would be found as `1`."""
ONLY_UNSET = frozenset({UnsetType})
_SAME_OR_UNSET = SAME | ONLY_UNSET
_TYPED = frozenset({bool, float})
_LISTS = frozenset({list, tuple})
_PLAIN = SAME | _TYPED

FRESH_FROM = 8
"""Of a column with so many texts that are not known, the others are skimmed."""
SKIMMED = 32
"""So many values are skimmed at once …"""
SPEAKING_MAX = 2
"""… until so many times something was found."""
SHORT_LETTERS = 500
"""Letters of a text that is skimmed."""


class Knowledge:
    """A field's matchers and what they have said: shared by all routes that ask something of it."""

    def __init__(self, asks: frozenset[Ask], room: Room, databases: Databases) -> None:
        self.asks = asks
        self.finder = Finder(asks, databases, room)
        self.missing = self.finder.held(None)
        self.known: Memory[Any, Held] = Memory(room, self._decide)
        self._column: Sequence[Any] = ()
        """The values that are looked up now …"""
        self._fresh = 0
        """… and how many of its texts were not known."""

    def _decide(self, key: Any) -> Held:
        """A key is the value, or types and values if the value alone would not do."""
        if key is UNSET:
            return self.missing
        if type(key) is str:
            self._fresh += 1
            if self._fresh == FRESH_FROM:
                self._skim()
        if type(key) is not tuple:
            return self.finder.held_on(key)
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

    def of_column(self, values: Sequence[Any], kinds: AbstractSet[type]) -> Iterable[Held]:
        """What holds on values that are no groups; `UNSET` stands for a missing field.

        Args:
            values: These.
            kinds: Their types.
        """
        if kinds == ONLY_UNSET:
            return repeat(self.missing, len(values))
        if kinds <= _SAME_OR_UNSET:
            return self.of_same(values)
        return [
            self.known[value] if type(value) in _SAME_OR_UNSET else self.of(value)
            for value in values
        ]

    def of_same(self, values: Sequence[Any]) -> Iterable[Held]:
        """What holds on values that can be looked up as they are."""
        self._column, self._fresh = values, 0
        held = [*map(self.known.__getitem__, values)]
        self._column = ()
        return held

    def _skim(self) -> None:
        """Know of many values at once that nothing is found in them, as in most that are fresh."""
        if (nothing := self.finder.nothing) is None:
            return
        fresh = filterfalse(self.known.__contains__, {*self._column})
        texts = [one for one in fresh if type(one) is str and len(one) <= SHORT_LETTERS]
        speaking = 0
        for start in range(0, len(texts), SKIMMED):
            some = texts[start : start + SKIMMED]
            if self.finder.finds_nothing(some):
                self.known.learn(some, nothing)
            elif (speaking := speaking + 1) == SPEAKING_MAX:
                return


class Library:
    """All that is known.

    What the rules ask at first of a field is known together: a route learns more than it asked,
    but each value is decided once for all routes. What rules ask later is known beside it.
    """

    def __init__(
        self, rules: Iterable[frozenset[object]], room: Room, databases: Databases
    ) -> None:
        self.room = room
        self.databases = databases
        self._first: dict[str | None, set[Ask]] = defaultdict(set)
        for ask in frozenset[object]().union(*rules):
            if isinstance(ask, Ask) and not ask.others:
                self._first[ask.field].add(ask)
        self._known: dict[str, Knowledge] = {}
        self._later: WeakSet[Knowledge] = WeakSet()
        self._keywords: WeakValueDictionary[frozenset[Ask], Keywords] = WeakValueDictionary()

    def of(self, field: str, asks: frozenset[Ask]) -> list[Knowledge]:
        """Who knows what is asked of a field."""
        first = self._known.get(field)
        if first is None:
            first = self._known[field] = self._new(frozenset(self._first[field]))
        found = []
        for one in (first, *self._later):
            if not asks.isdisjoint(one.asks):
                found.append(one)
                asks -= one.asks
        if asks:
            found.append(self._new(asks))
            self._later.add(found[-1])
        return found

    def keywords(self, asks: frozenset[Ask]) -> Keywords:
        """What finds these keywords; for all routes that ask for the same it is one."""
        found = self._keywords.get(asks)
        if found is None:
            found = self._keywords[asks] = Keywords(asks, self.databases)
        return found

    def prepare(self) -> None:
        """Make now what else is made on the first value of each field."""
        for one in self._known.values():
            one.finder.scanner.prepare()

    def _new(self, asks: frozenset[Ask]) -> Knowledge:
        return Knowledge(asks, self.room, self.databases)
