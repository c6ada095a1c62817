"""Every comparison that rules make with a field, decided on a value in one go.

Words are looked up in a table or found by one scan (Hyperscan if it is installed), numbers and
networks in tables. What a value must have for a comparison to hold is looked for first; only then
the comparison itself is asked, as the plain walk would ask it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from ipaddress import ip_network
from itertools import chain
from sys import getsizeof
from time import perf_counter_ns
from typing import Any, TypeVar

from detectors.sigma.ask import NOTHING, Ask, Held
from detectors.sigma.databases import Databases
from detectors.sigma.matchers import (
    NUMBER,
    AnyOf,
    Comparison,
    Exists,
    Like,
    Network,
    Null,
    Number,
    Predicate,
    Regex,
    Test,
    address_of,
    number_of,
    predicate_of,
    test_of,
)
from detectors.sigma.memory import ENTRY_BYTES, Memory, Room, size_of_answers
from detectors.sigma.regexes import counts_far, needed, regex_set
from detectors.sigma.texts import Sign, dashes_written_out, folded, normal
from detectors.sigma.view import View, text_of
from detectors.sigma.words import EDGE, Scanner, part_of, word_of

TOGETHER = 20
"""So many regular expressions are looked for in one pass."""

TOGETHER_FROM = 3
"""Fewer are asked one by one."""

REGEXES_SAMPLED = 256
"""Of so many passes one is timed, and each regular expression beside it."""

NEEDED_FROM = 3
"""A regular expression is only looked for beside a word of so many letters, if it needs one."""

DASHED_MAX = 2
"""A text with so many dashes is as many texts as there are kinds of dashes."""


Outcomes = Memory[tuple[Held, tuple[object, ...]], Held]
"""All that holds, by what holds for certain and what those say that are asked."""
Key = TypeVar("Key")
Hit = tuple[Ask, "Predicate | None"]
"""What may hold, and who has the last word; None if it holds for certain."""

has_number = re.compile(EDGE + NUMBER.pattern.lower().encode() + EDGE).search
"""Finds a number among texts between edges, in lower case."""


class _Wanted:
    """What may hold if something is found in a value: a part, the whole of it, a number."""

    def __init__(self) -> None:
        self.parts: dict[bytes, list[Hit]] = defaultdict(list)
        self.wholes: dict[str, list[Hit]] = defaultdict(list)
        self.numbers: dict[float, list[Hit]] = defaultdict(list)
        self.counts: dict[float, list[Hit]] = defaultdict(list)
        """Numbers that are no texts."""
        self.networks: dict[tuple[int, int], dict[int, list[Hit]]] = {}
        """By version and length of a prefix, and that."""
        self.regexes: list[tuple[Ask, Regex]] = []
        """Those of which no word is known that a text must have."""


class Finder:
    """All that is asked of one field.

    Whatever can be found in a value has a number. Many values differ and have the same numbers:
    what holds then is remembered.

    Args:
        asks: What is asked.
        databases: Makes what finds words.
        room: Where it is remembered what holds.
    """

    def __init__(self, asks: Iterable[Ask], databases: Databases, room: Room) -> None:
        self._whole: list[tuple[Ask, Test]] = []
        self._others: list[Hit] = []
        self._every: list[tuple[Ask, Comparison]] = []
        self._foreign: list[Hit] = []
        """What is asked of letters beyond ASCII, whatever is found."""
        wanted = _Wanted()
        for ask in asks:
            for one in ask.comparisons:
                self._add(wanted, ask, one)
        self._hits: list[Sequence[Hit]] = []
        """What may hold, by the number of what is found."""
        parts = self._number(dict(sorted(wanted.parts.items())))  # as a database that is kept
        self._wholes = self._number(wanted.wholes)
        self._numbers = self._number(wanted.numbers)
        self._counts = self._number(wanted.counts)
        self._networks = {size: self._number(some) for size, some in wanted.networks.items()}
        self._regexes = [*self._in_sets(wanted.regexes)]
        self._foreign_number = len(self._hits)
        self._hits.append(self._foreign)
        self.scanner = Scanner([*parts], databases)
        self._scan = self.scanner.found if parts else None
        self._of_missing = self._of_view({})
        self._of_null = self._of_view({"": None})
        self._of_any = self._of_view({"": 0})
        self._told: Memory[frozenset[int], Told] = Memory(room, self._tell, size_of=_size_of_told)
        self._outcomes: Outcomes = Memory(room, _held_by, size_of=_size_of_outcome)

    def _of_view(self, fields: dict[str, Any]) -> Held:
        """What holds whatever the value is."""
        view = View(fields)
        return NOTHING.union(ask for ask, test in self._whole if test(view, ""))

    def _add(self, wanted: _Wanted, ask: Ask, one: Comparison) -> None:
        match one:
            case Like():
                self._add_text(wanted, ask, one)
                return
            case Null() | Exists():
                self._whole.append((ask, test_of(one)))
                return
            case AnyOf(parts):
                for part in parts:
                    self._add(wanted, ask, part)
                return
            case Number("eq", limit, ""):
                wanted.numbers[limit].append((ask, None))
            case Network(text):
                network = ip_network(text)
                start = int(network.network_address) >> network.max_prefixlen - network.prefixlen
                table = wanted.networks.setdefault((network.version, network.prefixlen), {})
                table.setdefault(start, []).append((ask, None))
            case Regex(pattern) if len(word := word_of([needed(pattern)])) >= NEEDED_FROM:
                self._foreign.append((ask, predicate_of(one)))
                wanted.parts[word.encode()].append(self._foreign[-1])
            case Regex(pattern) if r"\Q" not in pattern and not counts_far(pattern):
                wanted.regexes.append((ask, one))
            case _:
                self._others.append((ask, predicate_of(one)))
        self._every.append((ask, one))

    def _add_text(self, wanted: _Wanted, ask: Ask, one: Like) -> None:
        text, cased = one.text, one.cased
        match text:
            case ():
                wanted.wholes[""].append((ask, None))
            case (str(whole),):
                wanted.wholes[folded(whole)].append((ask, predicate_of(one) if cased else None))
                if (number := number_of(whole)) is not None:
                    wanted.counts[number].append((ask, None))
            case _ if 0 < text.count(Sign.DASH) <= DASHED_MAX and Sign.MANY in text:
                for plain in dashes_written_out(text):
                    self._add_text(wanted, ask, Like(normal(plain, cased=True), cased))
                return
            case _ if found := part_of(text, cased):
                word, is_enough = found
                wanted.parts[word].append((ask, None if is_enough else predicate_of(one)))
            case _:
                self._others.append((ask, predicate_of(one)))
        self._every.append((ask, one))

    def _number(self, hits: Mapping[Key, Sequence[Hit]]) -> dict[Key, int]:
        """Give each thing that can be found a number."""
        start = len(self._hits)
        self._hits += hits.values()
        return {key: start + place for place, key in enumerate(hits)}

    def _in_sets(self, regexes: list[tuple[Ask, Regex]]) -> Iterator[Regexes]:
        if len(regexes) < TOGETHER_FROM:
            self._others += [(ask, predicate_of(one)) for ask, one in regexes]
            return
        regexes.sort(key=lambda one: one[1].pattern)  # asks have no order, and alike ones are quick
        for start in range(0, len(regexes), TOGETHER):
            part = regexes[start : start + TOGETHER]
            try:
                some = Regexes(part, len(self._hits))
            except ValueError:  # each is so long that there is no room for all
                self._others += [(ask, predicate_of(one)) for ask, one in part]
                continue
            self._hits += some.hits
            yield some

    def held(self, values: Sequence[Any] | None) -> Held:
        """What holds on the values of a field; None if the event does not have it."""
        if values is None:
            return self._of_missing
        given = [value for value in values if value is not None]
        if len(given) < 2:
            return self.held_on(given[0] if given else None)
        found: list[int] = []
        for value in given:
            numbers = self._found(value)
            if numbers is None:
                return self._asked_all.held(given)
            found += numbers
        return self._told[frozenset(found)].held(given)

    def held_on(self, value: Any) -> Held:
        """What holds on the only value of a field."""
        if value is None:
            return self._of_null
        numbers = self._found(value)
        if numbers is None:
            return self._asked_all.held((value,))
        told = self._told[frozenset(numbers)]
        return told.held((value,)) if told.doubtful else told.sure

    @cached_property
    def nothing(self) -> Held | None:
        """What holds on a text in which nothing is found; None if it takes more to say.

        The text, folded, is of ASCII.
        """
        if self._networks or self._regexes:
            return None
        told = self._told[frozenset()]
        return None if told.doubtful else told.sure

    def finds_nothing(self, texts: Iterable[str]) -> bool:
        """True if all of the texts, folded, are of ASCII, and nothing is found in any of them.

        It takes one scan: no word reaches beyond an edge. Networks and regular expressions are
        not looked for.
        """
        lower = [*map(str.lower, texts)]
        if not self._wholes.keys().isdisjoint(lower):
            return False
        try:
            data = EDGE + EDGE.join([text.encode("ascii") for text in lower]) + EDGE
        except UnicodeEncodeError:
            return False
        if self._numbers and has_number(data):
            return False
        return self._scan is None or not self._scan(data)

    @cached_property
    def _asked_all(self) -> Told:
        """What leaves everything to be asked."""
        every = [(ask, predicate_of(one)) for ask, one in self._every]
        return Told(self._of_any, every, self._outcomes)

    def _found(self, value: Any) -> list[int] | None:
        """Numbers of what is found in a value; None: it has a half of a character, as no UTF-8."""
        written = value if type(value) is str else text_of(value)
        text = folded(written)
        try:
            data = text.encode()
        except UnicodeEncodeError:
            return None
        found = [] if self._scan is None else [*self._scan(EDGE + data + EDGE)]
        if (whole := self._wholes.get(text)) is not None:
            found.append(whole)
        if self._numbers or self._counts:
            found += self._numbered(value)
        if self._networks:
            found += self._within(written)
        for regexes in self._regexes:
            found += regexes.found(value)
        if self._foreign and not data.isascii():
            found.append(self._foreign_number)
        return found

    def _numbered(self, value: Any) -> Iterator[int]:
        if (number := number_of(value)) is not None:
            if number in self._numbers:
                yield self._numbers[number]
            if number in self._counts and not isinstance(value, str):
                yield self._counts[number]

    def _within(self, text: str) -> Iterator[int]:
        address = address_of(text)
        if address is not None:
            bits = int(address)
            for (version, length), table in self._networks.items():
                if version == address.version:
                    number = table.get(bits >> address.max_prefixlen - length)
                    if number is not None:
                        yield number

    def _tell(self, found: frozenset[int]) -> Told:
        """What it says of a value if this is found."""
        hits = [*self._others, *chain.from_iterable(self._hits[number] for number in found)]
        sure = self._of_any.union(ask for ask, test in hits if test is None)
        return Told(sure, hits, self._outcomes)


class Told:
    """What holds on a value in which certain things are found.

    Args:
        sure: What holds in any case.
        hits: What may hold.
        outcomes: What else holds.
    """

    __slots__ = ("_outcomes", "doubtful", "sure")

    def __init__(self, sure: Held, hits: Iterable[Hit], outcomes: Outcomes) -> None:
        self.sure = outcomes[sure, ()]
        tests: dict[Ask, list[Predicate]] = defaultdict(list)
        for ask, test in hits:
            if test is not None and ask not in sure:
                tests[ask].append(test)
        self.doubtful = [(ask, _any_of(several)) for ask, several in tests.items()]
        self._outcomes = outcomes

    def held(self, given: Sequence[Any]) -> Held:
        """What holds on values once those have spoken that have the last word."""
        return self._outcomes[
            self.sure, tuple([ask.put(test, given) for ask, test in self.doubtful])
        ]


def _held_by(key: tuple[Held, tuple[object, ...]]) -> Held:
    sure, outcome = key
    return sure.union(outcome) - {None}


def _any_of(tests: Sequence[Predicate]) -> Predicate:
    return tests[0] if len(tests) == 1 else lambda value: any(test(value) for test in tests)


class Regexes:
    """Regular expressions that are looked for in one pass over a value.

    Args:
        regexes: These.
        start: The number of the first one; what stands for all has that behind the last.
    """

    def __init__(self, regexes: Sequence[tuple[Ask, Regex]], start: int) -> None:
        self._each = [(ask, predicate_of(one)) for ask, one in regexes]
        self.hits: list[Sequence[Hit]] = [[(ask, None)] for ask, _ in regexes]
        self.hits.append(self._each)
        self._match = regex_set([(one.pattern, one.flags) for _, one in regexes]).Match
        self._start = start
        self._all = len(regexes)
        self._count = 0

    def found(self, value: Any) -> list[int]:
        """Numbers of those that are found; of all, to be asked, if RE2 has no room for them."""
        self._count += 1
        text = text_of(value).encode()
        if self._count % REGEXES_SAMPLED == 0:
            self._share_time(value, text)
        numbers = self._match(text)
        if self._all not in (numbers or ()):
            return [self._start + self._all]
        return [self._start + number for number in numbers if number < self._all]

    def _share_time(self, value: Any, text: bytes) -> None:
        """Each bears the part of the pass that it would take alone."""
        start_ns = perf_counter_ns()
        self._match(text)
        whole_ns = perf_counter_ns() - start_ns
        alone_ns: list[int] = []
        for ask, test in self._each:
            start_ns = perf_counter_ns()
            ask.put(test, (value,))
            alone_ns.append(perf_counter_ns() - start_ns)
        for (ask, _), one_ns in zip(self._each, alone_ns, strict=True):
            ask.spent_ns += REGEXES_SAMPLED * whole_ns * one_ns // max(sum(alone_ns), 1)


def _size_of_told(found: frozenset[int]) -> int:
    """About how many bytes it takes to remember what this tells."""
    return getsizeof(found) + ENTRY_BYTES


def _size_of_outcome(key: tuple[Held, tuple[object, ...]]) -> int:
    sure, outcome = key
    return getsizeof(sure) + size_of_answers(outcome)
