"""Keywords: what rules look for in any value of an event, found by one pass over its text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec

from cityward.event import Event
from cityward.event import text_of as record_text
from detectors.sigma.ask import NOTHING, Ask, Held
from detectors.sigma.databases import Databases
from detectors.sigma.matchers import AnyOf, Comparison, Like, Test, test_of
from detectors.sigma.texts import folded
from detectors.sigma.view import TIME, View, is_said, taker, text_of
from detectors.sigma.words import EDGE, Scanner, part_of

BETWEEN = "\n"
"""Stands between values; what has it in itself may have been found where there is nothing."""

SCAN_FROM = 3
"""So few words are looked for one by one: an event has much text."""

_NUMBERS = frozenset({int, float, bool, datetime})
_OF_NUMBERS = re.compile(r"[0-9a-fxtz:.+-]*", re.ASCII)
"""What may stand in the text of a number or a time."""

_ASCII = re.compile(rb"[\x00-\x7f]+")
_OF_FLOATS = re.compile(rb"[0-9e.+\x80-\xff-]*")
_OF_TIMES = re.compile(rb"[0-9-]*t?[0-9:.+-]*")
_BETWEEN_LETTERS = re.compile(rb"[0-9{}\[\]:, .+-]+")
_HIDING = (
    *(rb"\u00", rb"\/"),  # signs of ASCII that need not be written so
    *(rb"\u212a", rb"\u0130", "\u212a".encode(), "\u0130".encode()),  # small, they have such signs
    *(b'"cw.', b'"cw"'),  # what a rule asks for may be in there
)
"""What is in a line of JSON that says something in other signs than expected."""


class Keywords:
    """The keywords of a plan."""

    def __init__(self, asks: Iterable[Ask], databases: Databases) -> None:
        self._tests: dict[Ask, list[Test]] = {}
        self._words: dict[bytes, list[tuple[Ask, bool]]] = defaultdict(list)
        self._others: list[tuple[Ask, bool]] = []
        for ask in asks:
            self._tests[ask] = [test_of(one) for one in ask.comparisons]
            for one in ask.comparisons:
                self._add(ask, one)
        words = sorted(self._words)
        self._hits = [self._words[word] for word in words]
        self._databases = databases
        self._scanner = Scanner(words, databases, SCAN_FROM)
        self._scan = self._scanner.found
        self.looks_at_numbers = any(_is_of_numbers(word.decode()) for word in self._words)
        """True if a word could be found in a number, a flag or a time."""

    def prepare(self, *, for_lines: bool = False) -> None:
        """Make now what else is made on the first event, or on the first line of JSON."""
        self._scanner.prepare()
        if for_lines and self.raw is not None:
            self.raw.scanner.prepare()

    @cached_property
    def raw(self) -> Raw | None:
        """What finds them in lines of JSON; None if that takes the values themselves."""
        if self._others or any(map(_is_said_otherwise, self._words)):
            return None
        return Raw(self._words, self._databases)

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

    def held(self, text: str, event: Event) -> Held:
        """Which keywords hold on an event.

        Args:
            text: Every value that the event has, as one text.
            event: The event, which is asked itself where text does not say all.
        """
        try:
            data = folded(text).encode()
        except UnicodeEncodeError:  # half of a character, which UTF-8 cannot hold
            hits = [(ask, False) for ask in self._tests]
        else:
            hits = [*self._others]
            for number in self._scan(data):
                hits += self._hits[number]
        if not hits:
            return NOTHING
        sure = frozenset(ask for ask, is_enough in hits if is_enough)
        open_asks = {ask for ask, is_enough in hits if not is_enough} - sure
        if not open_asks:
            return sure
        views = (View.of(event),)
        return sure.union(self._put(ask, views) for ask in open_asks) - {None}

    def _put(self, ask: Ask, views: Sequence[View]) -> object:
        return ask.put(lambda view: any(test(view, None) for test in self._tests[ask]), views)


class Raw:
    """What tells of a line of JSON which keywords the values in it may have.

    Args:
        words: What is in any value that has a keyword, in lower case; that, and whether what is
            in it is enough to say so.
        databases: Makes what finds them.
    """

    def __init__(
        self, words: Mapping[bytes, Sequence[tuple[Ask, bool]]], databases: Databases
    ) -> None:
        hits: dict[bytes, list[tuple[Ask, bool]]] = defaultdict(list)
        for word, several in words.items():
            raw = _in_json(word)
            hits[raw] += [(ask, is_enough and raw == word) for ask, is_enough in several]
        self._words = sorted(hits)
        self._asks = [frozenset(ask for ask, _ in hits[word]) for word in self._words]
        self._is_enough = [
            _is_of_strings(word) and all(is_enough for _, is_enough in hits[word])
            for word in self._words
        ]
        self.scanner = Scanner([*self._words, *_HIDING], databases, 1, any_case=True)
        """Finds the numbers of what is in a line; none: no keyword is, and nothing hides."""

    def asks(self, numbers: Sequence[int]) -> frozenset[Ask] | None:
        """The keywords that may be in a line; None: it may say anything in other signs."""
        if any(number >= len(self._asks) for number in numbers):
            return None
        return frozenset[Ask]().union(*(self._asks[number] for number in numbers))

    def held(self, numbers: Sequence[int], names: Sequence[str]) -> Held | None:
        """The keywords that are in a line whose texts stand there as they are.

        Args:
            numbers: What is found in the line.
            names: All its members.

        Returns:
            None: it takes the values themselves to tell.
        """
        asks = self.asks(numbers)
        if asks is None or not all(self._is_enough[number] for number in numbers):
            return None
        found = [self._words[number].decode() for number in numbers]
        lower = [name.lower() for name in names]
        return None if any(word in name for word in found for name in lower) else asks


def _in_json(word: bytes) -> bytes:
    """What of a word is in a line of JSON, in letters of either case."""
    longest = max(_ASCII.findall(word), key=len, default=b"")
    return msgspec.json.encode(longest.decode())[1:-1].lower()


def _is_of_strings(word: bytes) -> bool:
    """True if a word that is in a line of JSON is in a string there, as other letters are rare."""
    others = (b"true", b"false", b"null")
    return not all(
        any(letters in other for other in others) for letters in _BETWEEN_LETTERS.split(word)
    )


def _is_said_otherwise(word: bytes) -> bool:
    """True if a word could be in a number in other signs than in the line, or in the event's time.

    Where all of its signs are beyond ASCII, nothing of it can be looked for in the line.
    """
    return any(one.fullmatch(word) for one in (_OF_FLOATS, _OF_TIMES))


def _is_of_numbers(word: str) -> bool:
    special = any(word in text for text in ("true", "false", "inf", "nan"))
    return special or _OF_NUMBERS.fullmatch(word) is not None


def every_text(event: Event) -> str:
    """The texts of an event of any shape, as one."""
    values = View.of(event).every_value()
    return BETWEEN.join(text_of(value) for value in values if value is not None)


class Texts:
    """What text events have that name the same fields.

    Args:
        names: The names of an event's fields.
        outer: The field that holds others.
        inner: The names of those.
        with_numbers: True if numbers, flags and times belong to it.
    """

    def __init__(
        self, names: Sequence[str], outer: str | None, inner: Sequence[str], with_numbers: bool
    ) -> None:
        self._names = [name for name in names if name != outer and is_said(name)]
        self._outer = outer
        self._inner = [name for name in inner if is_said(f"{outer}.{name}")]
        self._skipped = {type(None)} | (set() if with_numbers else _NUMBERS)
        self._with_time = with_numbers and TIME not in names
        self._with_record = "event.original" not in names
        self._takers: tuple[Callable[[Mapping[str, Any]], tuple[Any, ...]], ...] = ()

    def of(self, event: Event) -> str:
        """The texts of an event, as one."""
        row = event.fields
        inner = {} if self._outer is None else row[self._outer]
        if not self._takers:
            self._takers = (*_split(self._names, row), *_split(self._inner, inner))
        take, take_others, take_inner, take_other_inner = self._takers
        try:
            texts = [BETWEEN.join(take(row)), BETWEEN.join(take_inner(inner))]
        except TypeError:  # what was text in the first event is none here
            return every_text(event)
        for value in take_others(row) + take_other_inner(inner):
            kind = type(value)
            if kind in self._skipped:
                continue
            if kind is list and all(type(one) is str for one in value):
                texts += value
            elif kind is str or kind in _NUMBERS:
                texts.append(text_of(value))
            else:
                return every_text(event)
        if self._with_time:
            texts.append(text_of(event.time))
        if self._with_record and event.record.data:
            texts.append(record_text(event.record.data))
        return BETWEEN.join(texts)


def _split(
    names: Sequence[str], row: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, Any]], tuple[Any, ...]]]:
    """What takes the fields that are text in this event, and what takes the others."""
    yield taker([name for name in names if type(row[name]) is str])
    yield taker([name for name in names if type(row[name]) is not str])
