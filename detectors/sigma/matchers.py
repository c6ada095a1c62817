"""One line of a selection, `field|modifiers: values`, as a test on an event.

References:
    Sigma specification 2.1.0, "Detection" and appendix "Modifiers".
"""

from __future__ import annotations

import base64
import enum
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Protocol

import msgspec
import re2

from detectors.sigma.view import View, text_of

MAX_ALTERNATIVES = 10_000
"""So many texts may one value stand for once dashes, offsets and placeholders are written out."""

Placeholders = Mapping[str, Sequence[str]]
Predicate = Callable[[Any], bool]

DASHES = "-/\u2013\u2014\u2015"
"""Hyphen, slash, en dash, em dash, horizontal bar: what Windows tools take for a dash."""

HOLE = re.compile(r"(?<!\\)%([\w.-]+)%")
"""A placeholder, `%ot_writers%`."""

_STRING_KINDS = frozenset({"contains", "startswith", "endswith"})
_ENCODINGS = frozenset({"base64", "base64offset", "wide", "utf16le", "utf16be", "utf16", "windash"})
_FLAGS = {
    "i": "i",
    "ignorecase": "i",
    "m": "m",
    "multiline": "m",
    "s": "s",
    "dotall": "s",
}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
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
_SIGNS = {"<": "lt", "≤": "lte", ">": "gt", "≥": "gte"}
_KINDS = ("exists", "cidr", "re", "fieldref")

MODIFIERS: frozenset[str] = frozenset(
    {"all", "neq", "cased", "expand", *_KINDS, *_STRING_KINDS, *_ENCODINGS, *_FLAGS}
    | set(_COMPARE)
    | set(_TIME_PARTS)
)
"""Every modifier of Sigma 2.1.0, and the two that pySigma adds (`dotall`, `multiline` …)."""

_ALLOWED: dict[str, frozenset[str]] = {
    "exists": frozenset(),
    "cidr": frozenset({"all", "neq", "expand"}),
    "re": frozenset({"all", "neq", "expand", *_FLAGS, *_STRING_KINDS}),
    "fieldref": frozenset({"all", "neq", "cased", *_STRING_KINDS}),
    "compare": frozenset({"all", "neq", "expand", *_TIME_PARTS}),
    "time": frozenset({"all", "neq", "expand"}),
    "text": frozenset({"all", "neq", "cased", "expand", *_STRING_KINDS, *_ENCODINGS}),
}
"""What may stand beside a kind of comparison."""


class Test(Protocol):
    """One comparison of a field, or of every value of an event if the field is None."""

    def __call__(self, view: View, field: str | None) -> bool:
        """True if it holds."""
        ...


class Item(msgspec.Struct, frozen=True):
    """A field and what it must be."""

    field: str | None
    """None for keywords: any value of the event."""
    tests: tuple[Test, ...]
    every: bool
    """True for `all`: each test must hold, not only one."""
    negated: bool
    """True for `neq`."""
    wanted: str
    """In words, for people."""

    def found_in(self, value: Any) -> bool:
        """True if one of the tests holds on this value alone (keywords)."""
        view = View({"": value})
        return any(test(view, "") for test in self.tests)

    def holds(self, view: View) -> bool:
        """True if the event is as wanted; a missing field equals nothing, so `neq` holds on it."""
        found = (test(view, self.field) for test in self.tests)
        return (all(found) if self.every else any(found)) is not self.negated


def compile_item(key: str | None, raw: Any, placeholders: Placeholders | None = None) -> Item:
    """Read one line of a selection.

    Args:
        key: `field|modifier|modifier`; None or an empty field for keywords.
        raw: A value or a list of values, as YAML gave them.
        placeholders: Values of `%name%`; None checks the line with stand-ins (such an item must
            not be used).

    Raises:
        ValueError: the line is no Sigma, in words.
        KeyError: a placeholder has no value; it is named.
    """
    name, *modifiers = ("" if key is None else key).split("|")
    field = name or None
    kind = _kind_of(modifiers)
    values = raw if isinstance(raw, list) else [raw]
    if not values:
        raise ValueError(f"{key or 'keywords'} has an empty list of values")
    if "exists" in modifiers and field is None:
        raise ValueError("exists needs a field")
    reader = _Reader(field, kind, tuple(modifiers), placeholders)
    every = "all" in modifiers
    tests = _merged(reader, values, every)
    return Item(field, tests, every, "neq" in modifiers, _words(kind, modifiers, values))


def needs_of(key: str | None, raw: Any) -> frozenset[str]:
    """Names of the placeholders a line needs."""
    if key is None or "expand" not in key.split("|")[1:]:
        return frozenset()
    values = raw if isinstance(raw, list) else [raw]
    return frozenset(
        name for value in values if isinstance(value, str) for name in HOLE.findall(value)
    )


def _kind_of(modifiers: Sequence[str]) -> str:
    given = set(modifiers)
    if unknown := given - MODIFIERS:
        raise ValueError(f"unknown modifier {sorted(unknown)[0]!r}")
    if len(given) != len(modifiers):
        raise ValueError(f"a modifier stands twice in {'|'.join(modifiers)}")
    kinds = [kind for kind in _KINDS if kind in given]
    kinds += ["compare"] if given & set(_COMPARE) else []
    kinds += ["time"] if given & set(_TIME_PARTS) and "compare" not in kinds else []
    if len(kinds) > 1:
        raise ValueError(f"{kinds[0]} cannot stand with {kinds[1]}")
    kind = kinds[0] if kinds else "text"
    own = {kind} | (set(_COMPARE) if kind == "compare" else set())
    own |= set(_TIME_PARTS) if kind == "time" else set()
    if misplaced := given - own - _ALLOWED[kind]:
        raise ValueError(f"{sorted(misplaced)[0]} cannot stand with {kind}")
    for family in (set(_COMPARE), set(_TIME_PARTS)):
        if len(given & family) > 1:
            raise ValueError(f"{' and '.join(sorted(given & family))} exclude each other")
    return kind


def _merged(reader: _Reader, values: Sequence[Any], every: bool) -> tuple[Test, ...]:
    """A test for each value; plain words of an "or" become one look-up."""
    tests: list[Test] = []
    words: set[str] = set()
    for value in values:
        word = None if every else reader.plain_word(value)
        if word is None:
            tests.append(reader.test(value))
        else:
            words.add(word)
    if words:
        tests.insert(0, _ValueTest(lambda seen: text_of(seen).lower() in words))
    return tuple(tests)


class _ValueTest:
    """Holds if one of the field's values does; a field that is missing or null has none."""

    __slots__ = ("predicate",)

    def __init__(self, predicate: Predicate) -> None:
        self.predicate = predicate

    def __call__(self, view: View, field: str | None) -> bool:
        values = view.every_value() if field is None else view.values(field)
        return any(value is not None and self.predicate(value) for value in values)


class _Reader:
    """Turns the values of one line into tests."""

    def __init__(
        self,
        field: str | None,
        kind: str,
        modifiers: tuple[str, ...],
        placeholders: Placeholders | None,
    ) -> None:
        self.field = field
        self.kind = kind
        self.modifiers = modifiers
        self.placeholders = placeholders

    def plain_word(self, value: Any) -> str | None:
        """The word itself, folded, if the value is one that only equality decides."""
        if self.modifiers or self.field is None or not isinstance(value, str):
            return None
        parts = parse_text(value)
        if len(parts) > 1 or any(isinstance(part, Sign) for part in parts):
            return None
        word = "".join(str(part) for part in parts)
        return None if number_of(word) is not None else word.lower()

    def test(self, value: Any) -> Test:
        if isinstance(value, (list, dict)):
            raise ValueError(f"{value!r} is no value")
        return {
            "exists": self._exists,
            "cidr": self._cidr,
            "re": self._regex,
            "fieldref": self._fieldref,
            "compare": self._compare,
            "time": self._compare,
            "text": self._plain,
        }[self.kind](value)

    def _exists(self, value: Any) -> Test:
        if not isinstance(value, bool):
            raise ValueError(f"exists wants true or false, not {value!r}")
        return lambda view, field: view.has(field or "") is value

    def _cidr(self, value: Any) -> Test:
        expanded = "expand" in self.modifiers
        texts = self._expanded(value, "192.0.2.0/24")
        networks = [ip_network(text, strict=not expanded) for text in texts]

        def inside(seen: Any) -> bool:
            address = _address(text_of(seen))
            return address is not None and any(address in network for network in networks)

        return _ValueTest(inside)

    def _regex(self, value: Any) -> Test:
        flags = "".join(sorted({_FLAGS[name] for name in self.modifiers if name in _FLAGS}))
        head = r"\A" if "startswith" in self.modifiers else ""
        tail = r"\z" if "endswith" in self.modifiers else ""
        texts = self._expanded(value, "x")
        patterns = [compile_regex(f"{head}(?:{text})", flags, tail) for text in texts]
        return _ValueTest(lambda seen: any(found(text_of(seen)) for found in patterns))

    def _fieldref(self, value: Any) -> Test:
        if not isinstance(value, str) or not value:
            raise ValueError(f"fieldref wants a field name, not {value!r}")
        parts = parse_text(value)
        if any(isinstance(part, Sign) for part in parts):
            raise ValueError(f"fieldref wants a field name without wildcards, not {value!r}")
        other = "".join(str(part) for part in parts)
        compare = _pair_compare(set(self.modifiers))

        def test(view: View, field: str | None) -> bool:
            pairs = itertools.product(view.values(field or ""), view.values(other))
            return any(a is not None and b is not None and compare(a, b) for a, b in pairs)

        return test

    def _compare(self, value: Any) -> Test:
        texts = self._expanded(value, "0")
        limits = [_number_wanted(text) for text in texts]
        names = [name for name in self.modifiers if name in _COMPARE]
        compare = _COMPARE[names[0]] if names else lambda seen, limit: seen == limit
        part = next((_TIME_PARTS[name] for name in self.modifiers if name in _TIME_PARTS), None)

        def holds(seen: Any) -> bool:
            number = number_of(seen) if part is None else _time_part(seen, part)
            return number is not None and any(compare(number, limit) for limit in limits)

        return _ValueTest(holds)

    def _plain(self, value: Any) -> Test:
        if value is None:
            if self.field is None:
                raise ValueError("null is no keyword")
            if _STRING_KINDS & set(self.modifiers) or _ENCODINGS & set(self.modifiers):
                raise ValueError(f"null cannot stand with {'|'.join(self.modifiers)}")
            return lambda view, field: all(seen is None for seen in view.values(field or ""))
        if self.field is not None and not self.modifiers:
            if isinstance(value, bool):
                return _ValueTest(_equals_flag(value))
            if isinstance(value, (int, float)):
                return _ValueTest(_equals_number(value))
        texts = self._encoded(value)
        cased = "cased" in self.modifiers
        predicates = [_text_predicate(text, cased) for text in texts]
        if len(predicates) == 1:
            return _ValueTest(predicates[0])
        return _ValueTest(lambda seen: any(predicate(seen) for predicate in predicates))

    def _expanded(self, value: Any, stand_in: str) -> list[str]:
        """A value as written, with its placeholders filled in."""
        if value is None or isinstance(value, bool):
            raise ValueError(f"{value!r} cannot stand with {'|'.join(self.modifiers)}")
        text = _scalar_text(value)
        if "expand" not in self.modifiers:
            return [text]
        names = HOLE.findall(text)
        choices = [self._values_of(name, stand_in) for name in names]
        _bound(choices)
        literal = HOLE.split(text)[::2]
        escape = re2.escape if self.kind == "re" else str
        return [
            "".join(itertools.chain(*zip(literal, map(escape, chosen), strict=False), literal[-1:]))
            for chosen in itertools.product(*choices)
        ]

    def _values_of(self, name: str, stand_in: str) -> Sequence[str]:
        if self.placeholders is None:
            return [stand_in]
        values = self.placeholders.get(name)
        if not values:
            raise KeyError(name)
        return [str(value) for value in values]

    def _encoded(self, value: Any) -> list[Text]:
        """The texts a value stands for once its modifiers are applied, in the order written."""
        texts = self._filled(parse_text(_scalar_text(value)))
        for modifier in self.modifiers:
            if step := _STEPS.get(modifier):
                texts = [done for text in texts for done in step(text)]
                if len(texts) > MAX_ALTERNATIVES:
                    raise ValueError(f"one value stands for more than {MAX_ALTERNATIVES} texts")
        if self.field is None and not _STRING_KINDS & set(self.modifiers):
            texts = [_around(text) for text in texts]
        return texts

    def _filled(self, text: Text) -> list[Text]:
        if "expand" not in self.modifiers:
            return [text]
        choices: list[Sequence[Text]] = []
        for part in text:
            if isinstance(part, Sign):
                choices.append([(part,)])
                continue
            for index, piece in enumerate(HOLE.split(part)):
                if index % 2:
                    choices.append([(one,) for one in self._values_of(piece, "x")])
                elif piece:
                    choices.append([(piece.replace("\\%", "%"),)])
        _bound(choices)
        return [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*choices)]


def _bound(choices: Iterable[Sequence[Any]]) -> None:
    total = 1
    for choice in choices:
        total *= len(choice)
        if total > MAX_ALTERNATIVES:
            raise ValueError(f"placeholders stand for more than {MAX_ALTERNATIVES} texts")


# --- Texts: words with wildcards ---------------------------------------------------------------


class Sign(enum.Enum):
    """What stands in a text for characters it does not name."""

    MANY = "*"
    ONE = "?"
    DASH = "-"
    """One of `DASHES`."""


Text = tuple[str | Sign, ...]
"""A value's words and the wildcards between them."""


def parse_text(value: str) -> Text:
    r"""Split a value at its wildcards; `\*`, `\?` and `\\` are the characters themselves."""
    parts: list[str | Sign] = []
    word: list[str] = []
    place = 0
    while place < len(value):
        char = value[place]
        if char == "\\" and value[place + 1 : place + 2] in ("*", "?", "\\"):
            place += 1
            word.append(value[place])
        elif char in "*?":
            if word:
                parts.append("".join(word))
                word = []
            parts.append(Sign(char))
        else:
            word.append(char)
        place += 1
    if word:
        parts.append("".join(word))
    return tuple(parts)


def _around(text: Text) -> Text:
    return (Sign.MANY, *text, Sign.MANY)


def _plain_bytes(text: Text) -> bytes:
    if any(isinstance(part, Sign) for part in text):
        raise ValueError("wildcards cannot be encoded as base64")
    return "".join(str(part) for part in text).encode("utf-8", "surrogateescape")


def _base64(text: Text) -> Iterator[Text]:
    for plain in _dashes_written_out(text):
        yield (base64.b64encode(_plain_bytes(plain)).decode(),)


def _base64_offset(text: Text) -> Iterator[Text]:
    """The three forms a text has within base64, without the characters its neighbours change."""
    for plain in _dashes_written_out(text):
        data = _plain_bytes(plain)
        for offset in range(3):
            start = (0, 2, 3)[offset]
            end = (None, -3, -2)[(len(data) + offset) % 3]
            yield (base64.b64encode(b" " * offset + data)[start:end].decode(),)


def _dashes_written_out(text: Text) -> Iterator[Text]:
    choices = [DASHES if part is Sign.DASH else (part,) for part in text]
    _bound(choices)
    yield from itertools.product(*choices)


def _encode(codec: str, mark: bytes = b"") -> Callable[[Text], Iterator[Text]]:
    """Each word as the bytes of an encoding; what is no UTF-8 is kept for a base64 behind it."""

    def step(text: Text) -> Iterator[Text]:
        marked: Text = (mark.decode("utf-8", "surrogateescape"),) if mark else ()
        yield marked + tuple(
            part
            if isinstance(part, Sign)
            else part.encode(codec, "surrogatepass").decode("utf-8", "surrogateescape")
            for part in text
        )

    return step


def _windash(text: Text) -> Iterator[Text]:
    """A dash or slash that begins a word becomes any of the five."""
    parts: list[str | Sign] = []
    for part in text:
        if isinstance(part, Sign):
            parts.append(part)
            continue
        place = 0
        for found in re.finditer(r"\B[-/]\b", part):
            if found.start() > place:
                parts.append(part[place : found.start()])
            parts.append(Sign.DASH)
            place = found.end()
        if place < len(part):
            parts.append(part[place:])
    yield tuple(parts)


_STEPS: dict[str, Callable[[Text], Iterable[Text]]] = {
    "contains": lambda text: [_around(text)],
    "startswith": lambda text: [(*text, Sign.MANY)],
    "endswith": lambda text: [(Sign.MANY, *text)],
    "base64": _base64,
    "base64offset": _base64_offset,
    "wide": _encode("utf-16-le"),
    "utf16le": _encode("utf-16-le"),
    "utf16be": _encode("utf-16-be"),
    "utf16": _encode("utf-16-le", mark=b"\xff\xfe"),
    "windash": _windash,
}


def _text_predicate(text: Text, cased: bool) -> Predicate:
    """Compare texts, without regard to case unless asked."""
    fold: Callable[[str], str] = str if cased else str.lower
    shape = tuple(
        key if key is Sign.MANY else fold("".join(str(part) for part in group))
        for key, group in itertools.groupby(text, lambda part: part if part is Sign.MANY else None)
    )
    if any(part in (Sign.ONE, Sign.DASH) for part in text):
        return _pattern_predicate(text, fold)
    many = Sign.MANY
    match shape:
        case ():
            return lambda seen: text_of(seen) == ""
        case (str(word),):
            number = number_of(word)
            return lambda seen: (
                fold(text_of(seen)) == word
                or (number is not None and not isinstance(seen, str) and number_of(seen) == number)
            )
        case (Sign.MANY,):
            return lambda seen: True
        case (Sign.MANY, str(word), Sign.MANY):
            return lambda seen: word in fold(text_of(seen))
        case (str(word), Sign.MANY):
            return lambda seen: fold(text_of(seen)).startswith(word)
        case (Sign.MANY, str(word)):
            return lambda seen: fold(text_of(seen)).endswith(word)
    words = [part for part in shape if part is not many]
    return lambda seen: _in_order(fold(text_of(seen)), [str(word) for word in words], shape)


def _in_order(seen: str, words: list[str], shape: tuple[Any, ...]) -> bool:
    """True if the words stand in this order; the leftmost place of each is always right."""
    start, end = 0, len(seen)
    if shape[0] is not Sign.MANY:
        if not seen.startswith(words[0]):
            return False
        start, words = len(words[0]), words[1:]
    if shape[-1] is not Sign.MANY:
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
        signs[part] if isinstance(part, Sign) else re2.escape(_clean(fold(part))) for part in text
    )
    found = compile_regex(rf"\A(?:{pattern})", "s", r"\z")
    return lambda seen: found(fold(text_of(seen)))


# --- Regular expressions -----------------------------------------------------------------------


def compile_regex(pattern: str, flags: str = "", tail: str = "") -> Callable[[str], bool]:
    """A search in linear time, whatever the pattern.

    Args:
        pattern: RE2 syntax: no look-around, no back-reference.
        flags: Any of `i`, `m`, `s`.
        tail: Put behind the pattern.

    Raises:
        ValueError: RE2 does not take the pattern.
    """
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    head = f"(?{flags})" if flags else ""
    try:
        compiled = re2.compile(_clean(head + pattern + tail), options)
    except re2.error as error:
        why = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"regular expression {pattern[:80]!r}: {why}") from error
    return lambda seen: compiled.search(_clean(seen)) is not None


def _clean(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


# --- Numbers, flags, times, addresses ----------------------------------------------------------

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


def _number_wanted(text: str) -> float | int:
    number = number_of(text)
    if number is None:
        raise ValueError(f"{text!r} is no number")
    return number


def _equals_number(wanted: float) -> Predicate:
    return lambda seen: number_of(seen) == wanted


def _equals_flag(wanted: bool) -> Predicate:
    word = "true" if wanted else "false"
    return lambda seen: (
        (isinstance(seen, bool) and seen is wanted)
        or (isinstance(seen, str) and seen.lower() == word)
    )


def _scalar_text(value: Any) -> str:
    if isinstance(value, (str, int, float, bool, date, datetime)):
        return text_of(value)
    raise ValueError(f"{value!r} is no value")


def _pair_compare(modifiers: set[str]) -> Callable[[Any, Any], bool]:
    fold: Callable[[str], str] = str if "cased" in modifiers else str.lower
    kinds = modifiers & _STRING_KINDS
    if not kinds:
        return lambda a, b: (
            fold(text_of(a)) == fold(text_of(b))
            or (number_of(a) is not None and number_of(a) == number_of(b))
        )
    if len(kinds) > 1 or "contains" in kinds:
        return lambda a, b: fold(text_of(b)) in fold(text_of(a))
    if "startswith" in kinds:
        return lambda a, b: fold(text_of(a)).startswith(fold(text_of(b)))
    return lambda a, b: fold(text_of(a)).endswith(fold(text_of(b)))


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


@lru_cache(maxsize=4096)
def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


# --- Words for people --------------------------------------------------------------------------

_SHOWN = 5
_VERBS = {
    "contains": "contains",
    "startswith": "starts with",
    "endswith": "ends with",
    "re": "matches",
    "cidr": "is in",
    "fieldref": "equals field",
    "lt": "is less than",
    "lte": "is at most",
    "gt": "is more than",
    "gte": "is at least",
}


def _words(kind: str, modifiers: Sequence[str], values: Sequence[Any]) -> str:
    if kind == "exists":
        return "is there" if values[0] is True else "is not there"
    verb = next((_VERBS[name] for name in modifiers if name in _VERBS), "is")
    part = next((f"{name} " for name in modifiers if name in _TIME_PARTS), "")
    link = " and " if "all" in modifiers else ", "
    shown = link.join(_shown(value) for value in values[:_SHOWN])
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    several = "one of " if len(values) > 1 and "all" not in modifiers else ""
    if not several and "expand" in modifiers and verb == "is":
        several = "one of "
    how = [name for name in modifiers if name in _ENCODINGS or name == "cased"]
    extra = f" ({', '.join(how)})" if how else ""
    negation = "not: " if "neq" in modifiers else ""
    return f"{negation}{part}{verb} {several}{shown}{more}{extra}"


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = text_of(value)
    return text if len(text) <= 120 else f"{text[:117]}…"
