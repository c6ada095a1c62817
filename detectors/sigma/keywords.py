"""Keywords: what rules look for in any value of an event, found by one pass over its text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cityward.event import Event
from cityward.event import text_of as record_text
from detectors.sigma.find import EDGE, NOTHING, Ask, Held, part_of, scanner
from detectors.sigma.matchers import AnyOf, Comparison, Like, Test, test_of
from detectors.sigma.view import View, is_said, text_of

BETWEEN = "\n"
"""Stands between values; what has it in itself may have been found where there is nothing."""

SCAN_FROM = 3
"""So few words are looked for one by one: an event has much text."""

_OF_TIMES = frozenset("0123456789-:+.tz")


class Place(NamedTuple):
    """Where a field stands in an event."""

    name: str
    kind: type
    is_inner: bool
    """True if it stands in the nested field."""


class Keywords:
    """The keywords of a plan."""

    def __init__(self, asks: Iterable[Ask]) -> None:
        self._tests: dict[Ask, list[Test]] = {}
        self._words: dict[bytes, list[tuple[Ask, bool]]] = defaultdict(list)
        self._others: list[tuple[Ask, bool]] = []
        for ask in asks:
            self._tests[ask] = [test_of(one) for one in ask.comparisons]
            for one in ask.comparisons:
                self._add(ask, one)
        self._hits = list(self._words.values())
        self._scan = scanner(list(self._words), SCAN_FROM)
        self.looks_at_times = any(_OF_TIMES.issuperset(word.decode()) for word in self._words)
        """True if a word could be found in the time of an event."""

    def _add(self, ask: Ask, one: Comparison) -> None:
        match one:
            case AnyOf(parts):
                for part in parts:
                    self._add(ask, part)
            case Like(text, cased) if found := part_of(text, cased):
                anchored, is_enough = found
                word = anchored.strip(EDGE)
                is_enough = is_enough and word == anchored and BETWEEN.encode() not in word
                self._words[word].append((ask, is_enough))
            case _:
                self._others.append((ask, False))

    def held(self, texts: Sequence[str], event: Event) -> Held:
        """Which keywords hold on an event.

        Args:
            texts: Each value that the event has as text.
            event: The event, which is asked itself where text does not say all.
        """
        try:
            data = BETWEEN.join(texts).lower().encode()
        except UnicodeEncodeError:  # half of a character, which UTF-8 cannot hold
            hits = [(ask, False) for ask in self._tests]
        else:
            hits = [*self._others]
            for number in self._scan(data):
                hits += self._hits[number]
        if not hits:
            return NOTHING
        view = View.of(event)
        return frozenset(ask for ask, is_enough in hits if is_enough or self._holds(ask, view))

    def _holds(self, ask: Ask, view: View) -> bool:
        return any(test(view, None) for test in self._tests[ask])


class Texts:
    """What text events of one layout have for keywords.

    Args:
        places: Where fields stand: their name and type there, and whether that is the nested field.
        with_time: True if the time of an event belongs to it.
    """

    def __init__(self, places: Mapping[str, Place], with_time: bool) -> None:
        said = {name: place for name, place in places.items() if is_said(name)}
        self._outer = [p.name for p in said.values() if p.kind is str and not p.is_inner]
        self._inner = [p.name for p in said.values() if p.kind is str and p.is_inner]
        self._others = [(name, p) for name, p in said.items() if p.kind is not str]
        self._has_original = "event.original" in places
        self._with_time = with_time

    def of(self, event: Event, row: Mapping[str, Any], inner: Mapping[str, Any]) -> list[str]:
        """The texts of an event."""
        texts = [row[name] for name in self._outer]
        texts += [inner[name] for name in self._inner]
        for whole, place in self._others:
            value = (inner if place.is_inner else row)[place.name]
            if place.kind is int:
                texts.append(text_of(value))
            else:
                texts += map(text_of, View({whole: value}).every_value())
        if self._with_time:
            texts.append(text_of(event.time))
        if not self._has_original and event.record.data:
            texts.append(record_text(event.record.data))
        return texts
