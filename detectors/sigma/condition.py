"""The language of conditions: names, `and`, `or`, `not`, `1 of`, `all of`.

Rules use it over selections, filters too, temporal correlations over rule names.

References:
    Sigma specification 2.1.0, "Condition". `not` binds tightest, then `and`, then `or`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import msgspec

MAX_DEPTH = 64
"""Brackets and negations within each other."""
MAX_TOKENS = 20_000
MAX_NAMES = 20_000
"""Names that the patterns of one condition stand for."""
MAX_LOOKED = 250_000
"""Names that the patterns of one condition are compared with."""


class Name(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """A selection, or a rule of a correlation."""

    name: str


class Not(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """What is inside must not hold."""

    part: Condition


class Group(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """Several parts of which every one must hold, or at least one."""

    every: bool
    parts: tuple[Condition, ...]


Condition = Name | Not | Group

_TOKEN = re.compile(r"\s*(?:([()])|([\w.*-]+)|(\S))")
_WORDS = frozenset({"and", "or", "not", "of"})


def parse(text: str, names: Sequence[str] | None = None) -> Condition:
    """Read a condition.

    Args:
        text: The condition as written.
        names: What may be named, for patterns (`1 of filter_*`); None allows any name and no
            pattern.

    Raises:
        ValueError: what is wrong, in words.
    """
    if "|" in text:
        raise ValueError("pipe aggregation is deprecated; write a correlation document")
    return _Parser(text, names).whole()


def holds(condition: Condition, holds_name: Callable[[str], bool]) -> bool:
    """Decide a condition from what is known of its names."""
    if isinstance(condition, Name):
        return holds_name(condition.name)
    if isinstance(condition, Not):
        return not holds(condition.part, holds_name)
    found = (holds(part, holds_name) for part in condition.parts)
    return all(found) if condition.every else any(found)


def named(condition: Condition, negated: bool = False) -> Iterator[tuple[str, bool]]:
    """Every name in the order written, and whether the condition wants it not to hold."""
    if isinstance(condition, Name):
        yield condition.name, negated
    elif isinstance(condition, Not):
        yield from named(condition.part, not negated)
    else:
        for part in condition.parts:
            yield from named(part, negated)


class _Parser:
    def __init__(self, text: str, names: Sequence[str] | None) -> None:
        self.names = names
        self.known = frozenset(names or ())
        self.selected: dict[str, tuple[Name, ...]] = {}
        self.named = self.looked = 0
        self.tokens = list(_tokens(text))
        self.place = 0
        self.depth = 0

    def whole(self) -> Condition:
        if not self.tokens:
            raise ValueError("the condition is empty")
        found = self._or()
        if self._peek():
            raise ValueError(f"{self._peek()!r} is not expected in the condition")
        return found

    def _peek(self, ahead: int = 0) -> str:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else ""

    def _word(self, ahead: int = 0) -> str:
        return self._peek(ahead).lower()

    def _take(self) -> str:
        token = self._peek()
        self.place += 1
        return token

    def _or(self) -> Condition:
        return self._chain("or", self._and)

    def _and(self) -> Condition:
        return self._chain("and", self._not)

    def _chain(self, word: str, inner: Callable[[], Condition]) -> Condition:
        parts = [inner()]
        while self._word() == word:
            self._take()
            parts.append(inner())
        return parts[0] if len(parts) == 1 else Group(word == "and", tuple(parts))

    def _not(self) -> Condition:
        if self._word() != "not":
            return self._operand()
        self._take()
        return Not(self._deeper(self._not))

    def _deeper(self, inner: Callable[[], Condition]) -> Condition:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"the condition is nested deeper than {MAX_DEPTH}")
        found = inner()
        self.depth -= 1
        return found

    def _operand(self) -> Condition:
        token = self._take()
        if token == "(":
            found = self._deeper(self._or)
            if self._take() != ")":
                raise ValueError("a bracket of the condition is not closed")
            return found
        if not token:
            raise ValueError("the condition ends too early")
        if self._word() == "of":
            return self._quantified(token.lower())
        if token == ")" or token.lower() in _WORDS:
            raise ValueError(f"{token!r} is not expected in the condition")
        if "*" in token:
            raise ValueError(f"pattern {token!r} needs `1 of` or `all of` before it")
        if self.names is not None and token not in self.known:
            raise ValueError(f"selection {token!r} is not defined")
        return Name(token)

    def _quantified(self, quantity: str) -> Condition:
        self._take()
        pattern = self._take()
        if quantity not in ("1", "any", "all"):
            raise ValueError(f"`{quantity} of` is no Sigma; write `1 of` or `all of`")
        found = self._selected(pattern)
        if not found:
            raise ValueError(f"`{quantity} of {pattern}` selects nothing")
        self.named += len(found)
        if self.named > MAX_NAMES:
            raise ValueError(f"the patterns of the condition stand for more than {MAX_NAMES} names")
        return Group(quantity == "all", found)

    def _selected(self, pattern: str) -> tuple[Name, ...]:
        if pattern not in self.selected:
            names = self.names or ()
            self.looked += len(names)
            if self.looked > MAX_LOOKED:
                raise ValueError("the condition has too many patterns for so many selections")
            selects = _selector(pattern)
            self.selected[pattern] = tuple(Name(name) for name in names if selects(name))
        return self.selected[pattern]


def _tokens(text: str) -> Iterator[str]:
    text = text.strip()
    for count, found in enumerate(_TOKEN.finditer(text)):
        if found[3]:
            raise ValueError(f"{found[3]!r} is not expected in the condition")
        if count >= MAX_TOKENS:
            raise ValueError(f"the condition has more than {MAX_TOKENS} words")
        yield found[0].strip()


def _selector(pattern: str) -> Callable[[str], bool]:
    """`them` is everything but names with a leading underscore; so is a pattern without one."""
    if pattern == "them":
        return lambda name: not name.startswith("_")
    found = re.compile(re.escape(pattern).replace(r"\*", ".*")).fullmatch
    if pattern.startswith("_"):
        return lambda name: found(name) is not None
    return lambda name: not name.startswith("_") and found(name) is not None
