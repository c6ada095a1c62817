"""Words for a duty officer: the one sentence of a finding.

A rule writes it under its attribute `cityward`, with fields in braces; what stands in square
brackets is left out if one of its fields is missing:

    sentence: "{source.ip} wrote {ot.point.type} {ot.point.address} of {destination.ip}[, value
      {ot.value}]."

Correlations also have `{count}` (events in the window), `{value}` (what was compared) and
`{timespan}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from detectors.sigma.view import text_of

SENTENCE_MAX = 600
VALUE_MAX = 120
LIST_MAX = 10
"""Of a list so many values are shown."""
_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
_FIELD = re.compile(r"\{([\w.@]+)\}")
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_MISSING = "(unknown)"


def say(template: str, fields: Mapping[str, Any]) -> str:
    """Fill a template in; a field that the event lacks is said to be unknown."""

    def optional(found: re.Match[str]) -> str:
        names = _FIELD.findall(found[1])
        return found[1] if all(_has(fields, name) for name in names) else ""

    def value(found: re.Match[str]) -> str:
        return shown(fields[found[1]]) if _has(fields, found[1]) else _MISSING

    text = _FIELD.sub(value, _OPTIONAL.sub(optional, template))
    return _cut(" ".join(text.split()), SENTENCE_MAX)


def fields_of(template: str) -> list[str]:
    """Names that a template mentions."""
    return _FIELD.findall(template)


def first_sentence(description: str, title: str) -> str:
    """What a rule says if it has no sentence of its own."""
    text = " ".join(description.split()) or title
    return _cut(_END.split(text, maxsplit=1)[0], SENTENCE_MAX)


def shown(value: Any) -> str:
    """A value as people read it: short, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    if isinstance(value, (list, tuple)):
        parts = [*map(shown, value[:LIST_MAX]), *["…"] * (len(value) > LIST_MAX)]
        return _cut(", ".join(parts), VALUE_MAX)
    text = "".join(char if char.isprintable() else "·" for char in text_of(value)[: VALUE_MAX + 1])
    return _cut(text, VALUE_MAX)


def timespan(seconds: float) -> str:
    """A time span in words: `90 s`, `10 min`, `24 h`."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s" if seconds < 3600 else f"{seconds / 3600:.4g} h"


def _has(fields: Mapping[str, Any], name: str) -> bool:
    return fields.get(name) is not None


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
