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
import re2

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
    if Sign.ONE in text or Sign.DASH in text:
        return _pattern_predicate(text, fold)
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
    words = [part for part in text if isinstance(part, str)]
    return lambda seen: _in_order(fold(text_of(seen)), words, text)


def _word_predicate(word: str, fold: Callable[[str], str]) -> Predicate:
    number = number_of(word)
    if number is None:
        return lambda seen: fold(text_of(seen)) == word
    return lambda seen: (
        fold(text_of(seen)) == word or (not isinstance(seen, str) and number_of(seen) == number)
    )


def _in_order(seen: str, words: list[str], text: Text) -> bool:
    """True if the words stand in this order; the leftmost place of each is always right."""
    start, end = 0, len(seen)
    if text[0] is not Sign.MANY:
        if not seen.startswith(words[0]):
            return False
        start, words = len(words[0]), words[1:]
    if text[-1] is not Sign.MANY:
        last = words[-1]
        if len(seen) - start < len(last) or not seen.endswith(last):
            return False
        end, words = len(seen) - len(last), words[:-1]
    for word in words:
        place = seen.find(word, start, end)
        if place < 0:
            return False
        start = place + len(word)
    return True


def _pattern_predicate(text: Text, fold: Callable[[str], str]) -> Predicate:
    signs = {Sign.MANY: ".*", Sign.ONE: ".", Sign.DASH: f"[{re2.escape(DASHES)}]"}
    pattern = "".join(
        signs[part] if isinstance(part, Sign) else re2.escape(_clean(part)) for part in text
    )
    found = compile_regex(rf"\A(?:{pattern})\z", "s")
    return lambda seen: found(fold(text_of(seen)))


# --- Regular expressions -----------------------------------------------------------------------


def compile_regex(pattern: str, flags: str = "") -> Callable[[str], bool]:
    """A search in linear time, whatever the pattern.

    Args:
        pattern: RE2 syntax: no look-around, no back-reference.
        flags: Any of `i`, `m`, `s`.

    Raises:
        ValueError: RE2 does not take the pattern; why, in words.
    """
    search = compiled_regex(pattern, flags).search
    return lambda seen: search(_clean(seen)) is not None


def compiled_regex(pattern: str, flags: str = "") -> Any:
    """The same, as RE2's own object."""
    head = f"(?{flags})" if flags else ""
    try:
        return re2.compile(_clean(head + pattern), _options())
    except re2.error as error:
        why = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(why) from error


def regex_set(regexes: Sequence[tuple[str, str]]) -> Any:
    """RE2's own set of patterns with their flags, each of which it takes alone.

    `Match(data)` gives the numbers of those that are found. The number behind the last one is
    always among them, unless RE2 had no room for a search: then it says nothing of any.
    """
    found = re2.Set.SearchSet(_options())
    for pattern, flags in regexes:
        found.Add(_clean(f"(?{flags}:{pattern})"))
    found.Add("")
    found.Compile()
    return found


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    return options


def _clean(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


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

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
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
    if isinstance(value, str) and len(value) <= _NUMBER_MAX and _NUMBER.fullmatch(value):
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
