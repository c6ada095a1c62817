"""Values that are not what they look like: YAML 1.1 takes `010`, `on` or `1:30` for no text.

A value is only told if an event that says what stands in the rule, letter for letter, would not be
found by it: `5`, `true` and `null` are what they look like.

References:
    YAML 1.1, "Language-Independent Types": bool, float, int, null, timestamp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date
from typing import Any, NamedTuple

from cityward import documents
from cityward.documents import Place, Unquoted
from cityward.errors import RuleError
from detectors.sigma.lines import compile_item
from detectors.sigma.matchers import Comparison, Exists, Flag, Null, Number, number_of
from detectors.sigma.texts import folded
from detectors.sigma.view import text_of

_NO_VALUES = frozenset({("detection", "condition"), ("filter", "condition"), ("filter", "rules")})


class Misread(NamedTuple):
    """A value that is read as something else than what stands there."""

    line: int
    column: int
    what: str


def misread(text: str, file: str = "<text>") -> Iterator[Misread]:
    """Values of detections, filters and correlations that are not read as they stand there.

    A text that cannot be read has none: `load` says what is wrong with it.
    """
    try:
        found = documents.unquoted(text, file)
    except RuleError:
        return
    for one in found:
        if what := _what(one):
            yield Misread(one.line, one.column, f"`{one.text}` is read as {what}")


def _what(one: Unquoted) -> str:
    """What it is read as, and how the other is written; empty: it is what it looks like."""
    if one.place[:2] == ("correlation", "condition"):
        return "" if "field" in one.place else _as_number(one)
    if len(one.place) < 2 or one.place[0] not in ("detection", "filter"):
        return ""
    if one.place[:2] in _NO_VALUES:
        return ""
    key = _key_of(one.place)
    try:
        (meant, *_) = compile_item(key, one.value).comparisons
    except ValueError:  # it is refused, and told so
        return ""
    if isinstance(meant, Number) and (meant.part or meant.how != "eq"):
        return _as_number(one)
    if _is_found(one, meant, is_cased="cased" in (key or "").split("|")):
        return ""
    return f"{_read_as(one.value)}; write '{one.text}' if the text is meant"


def _key_of(place: Place) -> str | None:
    """The field with its modifiers, behind the name of the selection; None for keywords."""
    return next((one for one in reversed(place[2:]) if isinstance(one, str)), None)


def _is_found(one: Unquoted, meant: Comparison, *, is_cased: bool) -> bool:
    """Whether an event that says what stands there is what is looked for."""
    match meant:
        case Exists():
            return True
        case Null():
            return one.text.lower() == "null"
        case Flag():
            return one.text.lower() in ("true", "false")
        case Number(limit=limit):
            return number_of(one.text) == limit
    fold = str if is_cased else folded
    return fold(text_of(one.value)) == fold(one.text)


def _as_number(one: Unquoted) -> str:
    """The same where nothing but a number can stand: `0x1F` and `1_000` are meant so."""
    if number_of(one.value) is None:
        return ""
    digits = number_of(one.text.replace("_", ""))
    if digits is None and ":" in one.text:
        return f"the number {text_of(one.value)}; write {text_of(one.value)} if that is meant"
    if digits is None or digits == one.value:
        return ""
    return f"the number {text_of(one.value)}; write {digits} if that is meant"


def _read_as(value: Any) -> str:
    if value is None:
        return "null, which is no value"
    if isinstance(value, bool):
        return text_of(value)
    if isinstance(value, float) and math.isnan(value):
        return "nan, which equals nothing"
    kind = "time" if isinstance(value, date) else "number"
    return f"the {kind} {text_of(value)}"
