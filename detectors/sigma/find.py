"""Every comparison that rules make with a field, decided on a value in one go.

Words are looked up in a table or found by one scan (Hyperscan if it is installed), numbers and
networks in tables. What a value must have for a comparison to hold is looked for first; only then
the comparison itself is asked, as the plain walk would ask it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from ipaddress import ip_network
from time import perf_counter_ns
from typing import Any

from detectors.sigma.databases import Databases
from detectors.sigma.matchers import (
    AnyOf,
    Comparison,
    Exists,
    Like,
    Network,
    Null,
    Number,
    Predicate,
    Reference,
    Regex,
    Test,
    address_of,
    number_of,
    predicate_of,
    regex_set,
    test_of,
)
from detectors.sigma.texts import Sign, Text, dashes_written_out, folded, normal
from detectors.sigma.view import View, text_of

log = logging.getLogger(__name__)

SCAN_FROM = 24
"""So many words are sooner found by a scan than one by one."""

SAMPLED = 8
"""Of so many tests one is timed."""

TOGETHER = 20
"""So many regular expressions are looked for in one pass."""

REGEXES_SAMPLED = 256
"""Of so many passes one is timed, and each regular expression beside it."""

DASHED_MAX = 2
"""A text with so many dashes is as many texts as there are kinds of dashes."""

EDGE = b"\xff"
"""Stands before and behind a value: no text has this byte in UTF-8."""


class Ask:
    """One thing that rules ask of a field: whether any of some comparisons holds.

    Equal ones of different rules are one object, so that what holds is a set of objects.
    """

    __slots__ = ("__weakref__", "_count", "comparisons", "failed", "field", "others", "spent_ns")

    def __init__(self, field: str | None, comparisons: frozenset[Comparison]) -> None:
        self.field = field
        self.comparisons = comparisons
        self.failed = Failed()
        self.others = {one.field for one in comparisons if isinstance(one, Reference)}
        """Fields with which it compares: then a value alone says nothing."""
        self.spent_ns = 0
        """Time that its tests took: one in `SAMPLED` is timed."""
        self._count = 0

    def put(self, test: Callable[[Any], bool], values: Iterable[Any]) -> object:
        """Itself if it holds on one of the values, its failure if it fails, otherwise None."""
        self._count += 1
        start_ns = perf_counter_ns() if self._count % SAMPLED == 0 else 0
        try:
            return self if any(map(test, values)) else None
        except Exception:  # what fails must not silence the others
            if not self.failed.is_told:
                self.failed.is_told = True
                log.exception("What rules ask of %s fails on a value.", self.field or "keywords")
            return self.failed
        finally:
            if start_ns:
                self.spent_ns += SAMPLED * (perf_counter_ns() - start_ns)


class Failed:
    """Stands among what holds for an `Ask` that raised an error."""

    is_told = False


def is_look_up(ask: Ask) -> bool:
    """True if tables alone decide it."""
    return all(
        (isinstance(one, Like) and not one.cased and _is_whole(one.text))
        or (isinstance(one, Number) and one.how == "eq" and not one.part)
        for one in ask.comparisons
    )


def _is_whole(text: Text) -> bool:
    return not text or (len(text) == 1 and isinstance(text[0], str))


Held = frozenset[object]
"""Every `Ask` that holds, and the `Failed` of those that failed."""
NOTHING: Held = frozenset()

Hit = tuple[Ask, "Predicate | None"]
"""What may hold, and who has the last word; None if it holds for certain."""


class Finder:
    """All that is asked of one field."""

    def __init__(self, asks: Iterable[Ask], databases: Databases) -> None:
        self._whole: list[tuple[Ask, Test]] = []
        self._words: dict[str, list[Hit]] = defaultdict(list)
        self._parts: dict[bytes, list[Hit]] = defaultdict(list)
        self._numbers: dict[float, list[Hit]] = defaultdict(list)
        self._counts: dict[float, list[Hit]] = defaultdict(list)
        self._networks: dict[tuple[int, int], dict[int, list[Hit]]] = {}
        self._others: list[Hit] = []
        self._every: list[tuple[Ask, Comparison]] = []
        regexes: list[tuple[Ask, Regex]] = []
        for ask in asks:
            sure = (ask, None)
            for one in ask.comparisons:
                if isinstance(one, Regex) and r"\Q" not in one.pattern:
                    regexes.append((ask, one))
                    self._every.append((ask, one))
                else:
                    self._add(ask, one, sure)
        regexes.sort(key=lambda one: one[1].pattern)  # asks have no order, and alike ones are quick
        self._regexes = [
            Regexes(regexes[start : start + TOGETHER]) for start in range(0, len(regexes), TOGETHER)
        ]
        words = sorted(self._parts)  # asks have no order, a database that is kept has one
        self._has_numbers = bool(self._numbers or self._counts)
        self._hits = [self._parts[word] for word in words]
        self.scanner = Scanner(words, databases)
        self._scan = self.scanner.found
        self._of_missing = self._of_view({})
        self._of_null = self._of_view({"": None})
        self._of_any = self._of_view({"": 0})

    def _of_view(self, fields: dict[str, Any]) -> Held:
        """What holds whatever the value is."""
        view = View(fields)
        return NOTHING.union(ask for ask, test in self._whole if test(view, ""))

    def _add(self, ask: Ask, one: Comparison, sure: Hit) -> None:
        match one:
            case Like():
                self._add_text(ask, one, sure)
                return
            case Null() | Exists():
                self._whole.append((ask, test_of(one)))
                return
            case AnyOf(parts):
                for part in parts:
                    self._add(ask, part, sure)
                return
            case Number("eq", limit, ""):
                self._numbers[limit].append(sure)
            case Network(text):
                network = ip_network(text)
                table = self._networks.setdefault((network.version, network.prefixlen), {})
                start = int(network.network_address) >> network.max_prefixlen - network.prefixlen
                table.setdefault(start, []).append(sure)
            case _:
                self._others.append((ask, predicate_of(one)))
        self._every.append((ask, one))

    def _add_text(self, ask: Ask, one: Like, sure: Hit) -> None:
        text, cased = one.text, one.cased
        match text:
            case ():
                self._words[""].append(sure)
            case (str(whole),):
                self._words[folded(whole)].append((ask, predicate_of(one)) if cased else sure)
                if (number := number_of(whole)) is not None:
                    self._counts[number].append(sure)
            case _ if 0 < text.count(Sign.DASH) <= DASHED_MAX and Sign.MANY in text:
                for plain in dashes_written_out(text):
                    self._add_text(ask, Like(normal(plain, cased=True), cased), sure)
                return
            case _ if found := part_of(text, cased):
                word, is_enough = found
                self._parts[word].append(sure if is_enough else (ask, predicate_of(one)))
            case _:
                self._others.append((ask, predicate_of(one)))
        self._every.append((ask, one))

    def held(self, values: Sequence[Any] | None) -> Held:
        """What holds on the values of a field; None if the event does not have it."""
        if values is None:
            return self._of_missing
        given = [value for value in values if value is not None]
        if not given:
            return self._of_null
        hits = self._hit(given)
        if not hits:
            return self._of_any
        found: set[object] = {*self._of_any}
        for ask, test in hits:
            if ask not in found:
                found.add(ask if test is None else ask.put(test, given))
        found.discard(None)
        return frozenset(found)

    def _hit(self, given: Sequence[Any]) -> list[Hit]:
        """What may hold."""
        hits = [*self._others]
        parts = [b""]
        for value in given:
            text = folded(value if type(value) is str else text_of(value))
            try:
                parts.append(text.encode())
            except UnicodeEncodeError:  # half of a character, which UTF-8 cannot hold
                return [(ask, predicate_of(one)) for ask, one in self._every]
            if text in self._words:
                hits += self._words[text]
            if self._has_numbers:
                hits += self._numbered(value)
            if self._networks:
                hits += self._within(text)
        for regexes in self._regexes:
            for value in given:
                hits += regexes.found(value)
        if self._hits:
            parts.append(b"")
            for number in self._scan(EDGE.join(parts)):
                hits += self._hits[number]
        return hits

    def _numbered(self, value: Any) -> Iterator[Hit]:
        number = number_of(value)
        if number is not None:
            yield from self._numbers.get(number, ())
            if not isinstance(value, str):
                yield from self._counts.get(number, ())

    def _within(self, text: str) -> Iterator[Hit]:
        address = address_of(text)
        if address is not None:
            bits = int(address)
            for (version, length), table in self._networks.items():
                if version == address.version:
                    yield from table.get(bits >> address.max_prefixlen - length, ())


class Regexes:
    """Regular expressions that are looked for in one pass over a value."""

    def __init__(self, regexes: Sequence[tuple[Ask, Regex]]) -> None:
        self._sure: list[Hit] = [(ask, None) for ask, _ in regexes]
        self._each: list[tuple[Ask, Predicate]] = [(ask, predicate_of(one)) for ask, one in regexes]
        self._match = regex_set([(one.pattern, one.flags) for _, one in regexes]).Match
        self._count = 0

    def found(self, value: Any) -> Sequence[Hit]:
        """Those that are found; all, to be asked one by one, if RE2 has no room for them."""
        self._count += 1
        text = text_of(value).encode()
        if self._count % REGEXES_SAMPLED == 0:
            self._share_time(value, text)
        numbers = self._match(text)
        if not numbers or len(self._sure) not in numbers:
            return self._each
        return [self._sure[number] for number in numbers if number < len(self._sure)]

    def _share_time(self, value: Any, text: bytes) -> None:
        """Each bears the part of the pass that it would take alone."""
        start_ns = perf_counter_ns()
        self._match(text)
        whole_ns = perf_counter_ns() - start_ns
        alone_ns: list[int] = []
        for _, test in self._each:
            start_ns = perf_counter_ns()
            test(value)
            alone_ns.append(perf_counter_ns() - start_ns)
        for (ask, _), one_ns in zip(self._each, alone_ns, strict=True):
            ask.spent_ns += REGEXES_SAMPLED * whole_ns * one_ns // max(sum(alone_ns), 1)


def part_of(text: Text, cased: bool) -> tuple[bytes, bool] | None:
    """Bytes that a value has if it is like the text, and whether they are enough to say so."""
    before, after, is_enough = b"", b"", False
    match text:
        case (Sign.MANY, str(longest), Sign.MANY):
            is_enough = not cased
        case (str(longest), Sign.MANY):
            before, is_enough = EDGE, not cased
        case (Sign.MANY, str(longest)):
            after, is_enough = EDGE, not cased
        case _:
            longest = max((part for part in text if isinstance(part, str)), key=len, default="")
    if not longest:
        return None
    try:
        return before + folded(longest).encode() + after, is_enough
    except UnicodeEncodeError:
        return None


class Scanner:
    """Finds which of many words data has.

    Args:
        words: The words.
        scan_from: Fewer are looked for one by one.
        databases: Makes what finds more in one scan, when it is first asked or is to get ready.
        any_case: True if ASCII letters of either case are the same; words are in lower case.
    """

    def __init__(
        self,
        words: Sequence[bytes],
        databases: Databases,
        scan_from: int = SCAN_FROM,
        any_case: bool = False,
    ) -> None:
        self._words = words
        self._any_case = any_case
        self._databases = databases
        self._is_many = len(words) >= scan_from
        self._found: list[int] = []

    @cached_property
    def _database(self) -> Any:
        return self._databases.of(self._words, self._any_case) if self._is_many else None

    def prepare(self) -> None:
        """Make now what else is made on the first value."""
        self.found(b"")

    def found(self, data: bytes) -> list[int]:
        """Numbers of the words that are in the data."""
        if self._database is None:
            data = data.lower() if self._any_case else data
            return [number for number, word in enumerate(self._words) if word in data]
        self._found.clear()
        self._database.scan(data, match_event_handler=self._take)
        return self._found

    def _take(self, number: int, *_: object) -> None:
        self._found.append(number)
