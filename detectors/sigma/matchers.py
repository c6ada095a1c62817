"""What a line of a selection compares, as plain data, and the test that each becomes.

A comparison says nothing of its field, so a plan can ask `(field, comparison)` for equality: equal
ones of different rules are one. All of it is plain data that a cache can keep; the tests are made
when they are first asked.

References:
    Sigma specification 2.1.0, "Detection" and appendix "Modifiers".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Literal

import msgspec

from detectors.sigma.regexes import compile_regex
from detectors.sigma.texts import DASHES, Sign, Text, folded
from detectors.sigma.view import View, text_of

Placeholders = Mapping[str, Sequence[str]]
"""Values of `%name%` by name."""
Predicate = Callable[[Any], bool]
"""A test of one value."""
Test = Callable[[View, "str | None"], bool]
"""A test of a field of an event, or of every value of it if the field is None."""


# --- Comparisons -------------------------------------------------------------------------------


class _Comparison(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """One of those below; tens of thousands, which lead back to nothing."""


class Like(_Comparison, frozen=True):
    """A value is a text, with wildcards."""

    text: Text
    """In its normal form (`texts.normal`): folded unless `cased`."""
    cased: bool = False


class Number(_Comparison, frozen=True):
    """A value, or a part of a time, is a number that compares so."""

    how: Literal["eq", "lt", "lte", "gt", "gte"]
    limit: int | float
    part: str = ""
    """Of a time: `minute`, `hour`, `day`, `week`, `month` or `year`, in UTC."""


class Flag(_Comparison, frozen=True):
    """A value is true, or false; `1` is neither."""

    wanted: bool


class Regex(_Comparison, frozen=True):
    """A regular expression of RE2 is found in a value."""

    pattern: str
    flags: str = ""
    """Any of `i`, `m`, `s`."""


class Network(_Comparison, frozen=True):
    """A value is an address of a network."""

    network: str


class Null(_Comparison, frozen=True):
    """The field is missing, or null."""


class Exists(_Comparison, frozen=True):
    """The field is there, or is not."""

    wanted: bool


class Reference(_Comparison, frozen=True):
    """A value compares so with a value of another field of the event."""

    field: str
    how: Literal["equals", "contains", "startswith", "endswith"] = "equals"
    cased: bool = False


class AnyOf(_Comparison, frozen=True):
    """One of several holds: what one value of an `all` stands for."""

    parts: tuple[Like | Number | Regex | Network, ...]


Comparison = Like | Number | Flag | Regex | Network | Null | Exists | Reference | AnyOf


class Item(msgspec.Struct, frozen=True, dict=True, tag=True, array_like=True):
    """A field and what it must be."""

    field: str | None
    """None for keywords: any value of the event."""
    comparisons: tuple[Comparison, ...]
    every: bool
    """True for `all`: each comparison must hold, not only one."""
    negated: bool
    """True for `neq`."""
    wanted: str
    """In words, for people."""

    @cached_property
    def tests(self) -> tuple[Test, ...]:
        """The comparisons as tests; plain words of an "or" are one look-up."""
        if self.every:
            return tuple(test_of(one) for one in self.comparisons)
        words = frozenset(word for one in self.comparisons if (word := plain_word(one)) is not None)
        others = [test_of(one) for one in self.comparisons if plain_word(one) is None]
        looked_up = [_on_values(lambda seen: folded(text_of(seen)) in words)] if words else []
        return (*looked_up, *others)

    def found_in(self, value: Any) -> bool:
        """True if one of the tests holds on this value alone (keywords)."""
        view = View({"": value})
        return any(test(view, "") for test in self.tests)

    def holds(self, view: View) -> bool:
        """True if the event is as wanted; a missing field equals nothing, so `neq` holds on it."""
        found = (test(view, self.field) for test in self.tests)
        return (all(found) if self.every else any(found)) is not self.negated


# --- Tests -------------------------------------------------------------------------------------


def test_of(one: Comparison) -> Test:
    """The test of a field that a comparison is."""
    match one:
        case Exists(wanted):
            return lambda view, field: view.has(field or "") is wanted
        case Null():
            return lambda view, field: all(seen is None for seen in view.values(field or ""))
        case Reference():
            return _reference_test(one)
    return _on_values(predicate_of(one))


def predicate_of(one: Comparison) -> Predicate:
    """The test of one value, never of null: of any comparison that looks at values alone."""
    match one:
        case Like(text, cased):
            return _text_predicate(text, str if cased else folded)
        case Number(how, limit, part):
            return _number_predicate(_COMPARE[how], limit, _TIME_PARTS.get(part))
        case Flag(wanted):
            word = "true" if wanted else "false"
            return lambda seen: seen is wanted or (isinstance(seen, str) and seen.lower() == word)
        case Regex(pattern, flags):
            found = compile_regex(pattern, flags)
            return lambda seen: found(text_of(seen))
        case Network(text):
            network = ip_network(text)
            return lambda seen: (
                (address := address_of(text_of(seen))) is not None and address in network
            )
        case AnyOf(parts):
            predicates = [predicate_of(part) for part in parts]
            return lambda seen: any(predicate(seen) for predicate in predicates)
    raise TypeError(f"{one} looks at more than a value")


def plain_word(one: Comparison) -> str | None:
    """The word that a value must equal, folded, if nothing but equality decides."""
    match one:
        case Like((str(word),), False) if number_of(word) is None:
            return word
        case Like((), False):
            return ""
    return None


def _on_values(predicate: Predicate) -> Test:
    """Holds if one of the field's values does; a field that is missing or null has none."""

    def test(view: View, field: str | None) -> bool:
        values = view.every_value() if field is None else view.values(field)
        return any(value is not None and predicate(value) for value in values)

    return test


def _reference_test(one: Reference) -> Test:
    other, compare = one.field, _pair_compare(one)

    def test(view: View, field: str | None) -> bool:
        pairs = itertools.product(view.values(field or ""), view.values(other))
        return any(a is not None and b is not None and compare(a, b) for a, b in pairs)

    return test


def _pair_compare(one: Reference) -> Callable[[Any, Any], bool]:
    fold: Callable[[str], str] = str if one.cased else folded
    match one.how:
        case "contains":
            return lambda a, b: fold(text_of(b)) in fold(text_of(a))
        case "startswith":
            return lambda a, b: fold(text_of(a)).startswith(fold(text_of(b)))
        case "endswith":
            return lambda a, b: fold(text_of(a)).endswith(fold(text_of(b)))
    return lambda a, b: (
        fold(text_of(a)) == fold(text_of(b))
        or (number_of(a) is not None and number_of(a) == number_of(b))
    )


# --- Texts -------------------------------------------------------------------------------------


def _text_predicate(text: Text, fold: Callable[[str], str]) -> Predicate:
    """Compare texts, without regard to case unless asked."""
    match text:
        case ():
            return lambda seen: text_of(seen) == ""
        case (str(word),):
            return _word_predicate(word, fold)
        case (Sign.MANY,):
            return lambda seen: True
        case (Sign.MANY, str(word), Sign.MANY):
            return lambda seen: word in fold(text_of(seen))
        case (str(word), Sign.MANY):
            return lambda seen: fold(text_of(seen)).startswith(word)
        case (Sign.MANY, str(word)):
            return lambda seen: fold(text_of(seen)).endswith(word)
    parts = _parts(text)
    return lambda seen: _in_order(fold(text_of(seen)), parts, text)


def _word_predicate(word: str, fold: Callable[[str], str]) -> Predicate:
    number = number_of(word)
    if number is None:
        return lambda seen: fold(text_of(seen)) == word
    return lambda seen: (
        fold(text_of(seen)) == word or (not isinstance(seen, str) and number_of(seen) == number)
    )


class _Part:
    """What stands between two `*`: a word, or words with signs of which each is one letter."""

    def __init__(self, signs: Text) -> None:
        self.letters = sum(len(one) if isinstance(one, str) else 1 for one in signs)
        if len(signs) == 1 and isinstance(signs[0], str):
            self._word = signs[0]
            self.place = self._place_of_word
        else:
            written = [
                _ONE_LETTER[one] if isinstance(one, Sign) else re.escape(one) for one in signs
            ]
            self._search = re.compile("".join(written), re.DOTALL).search
            self.place = self._place_of_pattern

    def _place_of_word(self, seen: str, start: int, end: int) -> int:
        return seen.find(self._word, start, end)

    def _place_of_pattern(self, seen: str, start: int, end: int) -> int:
        found = self._search(seen, start, end)
        return -1 if found is None else found.start()


_ONE_LETTER = {Sign.ONE: ".", Sign.DASH: f"[{re.escape(DASHES)}]"}


def _parts(text: Text) -> list[_Part]:
    parts: list[list[str | Sign]] = [[]]
    for one in text:
        if one is Sign.MANY:
            parts.append([])
        else:
            parts[-1].append(one)
    return [_Part(tuple(one)) for one in parts if one]


def _in_order(seen: str, parts: Sequence[_Part], text: Text) -> bool:
    """True if the parts stand in this order; the leftmost place of each is always right."""
    start, end = 0, len(seen)
    if text[0] is not Sign.MANY:
        letters = parts[0].letters
        if parts[0].place(seen, 0, letters) != 0:
            return False
        start, parts = letters, parts[1:]
        if Sign.MANY not in text:
            return start == end
    if text[-1] is not Sign.MANY:
        last = end - parts[-1].letters
        if last < start or parts[-1].place(seen, last, end) != last:
            return False
        end, parts = last, parts[:-1]
    for part in parts:
        place = part.place(seen, start, end)
        if place < 0:
            return False
        start = place + part.letters
    return True


# --- Numbers, times, addresses -----------------------------------------------------------------

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda seen, limit: seen == limit,
    "lt": lambda seen, limit: seen < limit,
    "lte": lambda seen, limit: seen <= limit,
    "gt": lambda seen, limit: seen > limit,
    "gte": lambda seen, limit: seen >= limit,
}
_TIME_PARTS: dict[str, Callable[[datetime], int]] = {
    "minute": lambda time: time.minute,
    "hour": lambda time: time.hour,
    "day": lambda time: time.day,
    "week": lambda time: time.isocalendar().week,
    "month": lambda time: time.month,
    "year": lambda time: time.year,
}
TIME_PARTS = tuple(_TIME_PARTS)

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""A text that is one."""
_NUMBER_MAX = 400
"""Longer digits are no number: turning them into one takes quadratic time."""


def number_of(value: Any) -> float | int | None:
    """A number, or a text that is one; None otherwise. A flag is no number, and no NaN comes."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if value == value else None  # noqa: PLR0124 – NaN alone differs from itself
    if isinstance(value, str) and len(value) <= _NUMBER_MAX and NUMBER.fullmatch(value):
        try:
            return int(value)
        except ValueError:
            return float(value)
    return None


def _number_predicate(
    compare: Callable[[float, float], bool],
    limit: float,
    part: Callable[[datetime], int] | None,
) -> Predicate:
    def holds(seen: Any) -> bool:
        number = number_of(seen) if part is None else _time_part(seen, part)
        return number is not None and compare(number, limit)

    return holds


def _time_part(value: Any, part: Callable[[datetime], int]) -> int | None:
    """A part of a time, UTC; None if the value is no time."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    try:
        return part(value.astimezone(UTC) if value.tzinfo else value)
    except OverflowError:
        return None


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """The address that a text is; an IPv4 address written as IPv6 is the former."""
    return _address(text) if len(text) <= _ADDRESS_MAX else None


_ADDRESS_MAX = 100
"""Longer texts are no address, and thousands of them no memory."""


@lru_cache(maxsize=4096)
def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
