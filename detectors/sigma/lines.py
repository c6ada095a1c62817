"""One line of a selection, `field|modifiers: values`, read.

References:
    Sigma specification 2.1.0, "Detection" and appendix "Modifiers".
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from ipaddress import ip_network
from typing import Any

import re2

from detectors.sigma import texts
from detectors.sigma.matchers import (
    TIME_PARTS,
    AnyOf,
    Comparison,
    Exists,
    Flag,
    Item,
    Like,
    Network,
    Null,
    Number,
    Placeholders,
    Reference,
    Regex,
    number_of,
)
from detectors.sigma.regexes import compiled_regex
from detectors.sigma.texts import Sign, Text
from detectors.sigma.view import text_of

COMPARISONS_MAX = 150_000
"""Comparisons of one document, values that stand for several written out."""
PROGRAM_MAX = 1_000_000
"""Steps of all regular expressions of one document; one alone has up to some 300,000."""
SIGNS_MAX = 100
"""Of one text so many `?`, and dashes of any kind: a value is looked through as often as a
text has of them. No text of SigmaHQ has more than four."""

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
_ORDERS = ("lt", "lte", "gt", "gte")
_KINDS = ("exists", "cidr", "re", "fieldref")

MODIFIERS: frozenset[str] = frozenset(
    {"all", "neq", "cased", "expand", *_KINDS, *_STRING_KINDS, *_ENCODINGS, *_FLAGS}
    | set(_ORDERS)
    | set(TIME_PARTS)
)
"""Every modifier of Sigma 2.1.0, and the two that pySigma adds (`dotall`, `multiline` …)."""

_ALLOWED: dict[str, frozenset[str]] = {
    "exists": frozenset(),
    "cidr": frozenset({"all", "neq", "expand"}),
    "re": frozenset({"all", "neq", "expand", *_FLAGS, *_STRING_KINDS}),
    "fieldref": frozenset({"all", "neq", "cased", *_STRING_KINDS}),
    "compare": frozenset({"all", "neq", "expand", *TIME_PARTS}),
    "time": frozenset({"all", "neq", "expand"}),
    "text": frozenset({"all", "neq", "cased", "expand", *_STRING_KINDS, *_ENCODINGS}),
}
"""What may stand beside a kind of comparison."""


class Budget:
    """What the lines of one document may still stand for."""

    def __init__(self) -> None:
        self.comparisons = COMPARISONS_MAX
        self.program = PROGRAM_MAX

    def spend(self, comparisons: int = 0, program: int = 0) -> None:
        """Count what a line stands for; refuse what would fill a machine's memory."""
        self.comparisons -= comparisons
        self.program -= program
        if self.comparisons < 0:
            raise ValueError(f"the values stand for more than {COMPARISONS_MAX} texts")
        if self.program < 0:
            raise ValueError(f"the regular expressions have more than {PROGRAM_MAX} steps")


def compile_item(
    key: str | None,
    raw: Any,
    placeholders: Placeholders | None = None,
    budget: Budget | None = None,
) -> Item:
    """Read one line of a selection.

    Args:
        key: `field|modifier|modifier`; None or an empty field for keywords.
        raw: A value or a list of values, as YAML gave them.
        placeholders: Values of `%name%`; None checks the line with stand-ins (such an item must
            not be used).
        budget: What the document may still stand for; None is a whole document's.

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
    if field is None and kind in ("exists", "fieldref"):
        raise ValueError(f"{kind} needs a field")
    reader = _Reader(field, kind, tuple(modifiers), placeholders, budget or Budget())
    every = "all" in modifiers
    found: list[Comparison] = []
    for value in values:
        alternatives = reader.read(value)
        if every and len(alternatives) > 1:
            found.append(AnyOf(tuple(alternatives)))  # type: ignore[arg-type]
        else:
            found += alternatives
    words = _words(kind, modifiers, values)
    return Item(field, tuple(found), every, "neq" in modifiers, words)


def needs_of(key: str | None, raw: Any) -> frozenset[str]:
    """Names of the placeholders a line needs."""
    if key is None or "expand" not in key.split("|")[1:]:
        return frozenset()
    values = raw if isinstance(raw, list) else [raw]
    return frozenset(
        name for value in values if isinstance(value, str) for name in HOLE.findall(value)
    )


def _kind_of(modifiers: Sequence[str]) -> str:
    if not modifiers:
        return "text"
    given = set(modifiers)
    if unknown := given - MODIFIERS:
        raise ValueError(f"unknown modifier {min(unknown)!r}")
    if len(given) != len(modifiers):
        raise ValueError(f"a modifier stands twice in {'|'.join(modifiers)}")
    orders, parts = given.intersection(_ORDERS), given.intersection(TIME_PARTS)
    for family in (orders, parts):
        if len(family) > 1:
            raise ValueError(f"{' and '.join(sorted(family))} exclude each other")
    kinds = [kind for kind in _KINDS if kind in given]
    kinds += ["compare"] if orders else ["time"] if parts else []
    if len(kinds) > 1:
        raise ValueError(f"{kinds[0]} cannot stand with {kinds[1]}")
    kind = kinds[0] if kinds else "text"
    if misplaced := given - {kind} - orders - parts - _ALLOWED[kind]:
        raise ValueError(f"{min(misplaced)} cannot stand with {kind}")
    return kind


class _Reader:
    """Turns the values of one line into comparisons."""

    def __init__(
        self,
        field: str | None,
        kind: str,
        modifiers: tuple[str, ...],
        placeholders: Placeholders | None,
        budget: Budget,
    ) -> None:
        self.field = field
        self.modifiers = modifiers
        self.is_regex = kind == "re"
        self.cased = "cased" in modifiers
        self.expands = "expand" in modifiers
        self.strings = [one for one in modifiers if one in _STRING_KINDS]
        self.steps = [step for one in modifiers if (step := texts.step_of(one))]
        self.placeholders = placeholders
        self.budget = budget
        self._read: Callable[[Any], list[Comparison]] = {
            "exists": self._exists,
            "cidr": self._cidr,
            "re": self._regex,
            "fieldref": self._fieldref,
            "compare": self._number,
            "time": self._number,
            "text": self._text,
        }[kind]

    def read(self, value: Any) -> list[Comparison]:
        """What one value stands for: one of these must hold."""
        if isinstance(value, (list, dict)):
            raise ValueError(f"{_short(value)} is no value")
        found = self._read(value)
        self.budget.spend(comparisons=len(found))
        return found

    def _exists(self, value: Any) -> list[Comparison]:
        if not isinstance(value, bool):
            raise ValueError(f"exists wants true or false, not {_short(value)}")
        return [Exists(value)]

    def _cidr(self, value: Any) -> list[Comparison]:
        return [self._network(text) for text in self._expanded(value, "192.0.2.0/24")]

    def _network(self, text: str) -> Network:
        network = ip_network(text, strict=not self.expands)
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= 96:  # addresses seen are unmapped too
            network = ip_network(f"{mapped}/{network.prefixlen - 96}")
        return Network(str(network))

    def _regex(self, value: Any) -> list[Comparison]:
        flags = "".join(sorted({_FLAGS[name] for name in self.modifiers if name in _FLAGS}))
        head = r"\A" if "startswith" in self.strings else ""
        tail = r"\z" if "endswith" in self.strings else ""
        found: list[Comparison] = []
        for text in self._expanded(value, "x"):
            pattern = f"{head}(?:{text}){tail}" if head or tail else text
            try:
                compiled = compiled_regex(pattern, flags)
            except ValueError as error:
                raise ValueError(f"regular expression {text[:80]!r}: {error}") from error
            self.budget.spend(program=compiled.programsize)
            found.append(Regex(pattern, flags))
        return found

    def _fieldref(self, value: Any) -> list[Comparison]:
        if not isinstance(value, str) or not value:
            raise ValueError(f"fieldref wants a field name, not {_short(value)}")
        parts = texts.parse(value)
        if any(isinstance(part, Sign) for part in parts):
            raise ValueError(f"fieldref wants a field name without wildcards, not {value!r}")
        other = "".join(str(part) for part in parts)
        match sorted(self.strings):
            case []:
                return [Reference(other, "equals", self.cased)]
            case ["startswith"]:
                return [Reference(other, "startswith", self.cased)]
            case ["endswith"]:
                return [Reference(other, "endswith", self.cased)]
        return [Reference(other, "contains", self.cased)]

    def _number(self, value: Any) -> list[Comparison]:
        how = next((name for name in self.modifiers if name in _ORDERS), "eq")
        part = next((name for name in self.modifiers if name in TIME_PARTS), "")
        found: list[Comparison] = []
        for text in self._expanded(value, "0"):
            limit = number_of(text)
            if limit is None:
                raise ValueError(f"{_short(text)} is no number")
            found.append(Number(how, limit, part))  # type: ignore[arg-type]
        return found

    def _text(self, value: Any) -> list[Comparison]:
        if value is None:
            if self.field is None:
                raise ValueError("null is no keyword")
            if self.steps:
                raise ValueError(f"null cannot stand with {'|'.join(self.modifiers)}")
            return [Null()]
        if self.field is not None and not self.steps and not self.expands:
            if isinstance(value, bool):
                return [Flag(value)]
            if isinstance(value, (int, float)):
                return [Number("eq", value)]
        found = [texts.normal(text, cased=self.cased) for text in self._encoded(value)]
        for one in found:
            if len(one) > SIGNS_MAX and sum(map(_is_one_letter, one)) > SIGNS_MAX:
                raise ValueError(f"a text has more than {SIGNS_MAX} of `?` and dashes of any kind")
        return [Like(one, self.cased) for one in found]

    def _expanded(self, value: Any, stand_in: str) -> list[str]:
        """A value as written, with its placeholders filled in."""
        if value is None or isinstance(value, bool):
            raise ValueError(f"{value!r} cannot stand with {'|'.join(self.modifiers)}")
        text = _scalar_text(value)
        if not self.expands:
            return [text]
        choices = [self._values_of(name, stand_in) for name in HOLE.findall(text)]
        texts.bound(choices)
        literal = HOLE.split(text)[::2]
        escape = re2.escape if self.is_regex else str
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

    def _encoded(self, value: Any) -> Iterable[Text]:
        """The texts a value stands for once its modifiers are applied, in the order written."""
        found = self._filled(texts.parse(_scalar_text(value)))
        for step in self.steps:
            found = [done for text in found for done in step(text)]
            if len(found) > texts.MAX_ALTERNATIVES:
                what = f"one value stands for more than {texts.MAX_ALTERNATIVES} texts"
                raise ValueError(what)
        if self.field is None and not self.strings:
            return map(texts.around, found)
        return found

    def _filled(self, text: Text) -> list[Text]:
        if not self.expands:
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
        texts.bound(choices)
        return [tuple(itertools.chain(*chosen)) for chosen in itertools.product(*choices)]


def _is_one_letter(part: str | Sign) -> bool:
    return part is Sign.ONE or part is Sign.DASH


def _scalar_text(value: Any) -> str:
    if isinstance(value, (str, int, float, bool, date, datetime)):
        return text_of(value)
    raise ValueError(f"{_short(value)} is no value")


# --- Words for people --------------------------------------------------------------------------

_SHOWN = 5
_SHOWN_MAX = 120
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
    part = next((f"{name} " for name in modifiers if name in TIME_PARTS), "")
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
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 3]}…"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 3]}…"
