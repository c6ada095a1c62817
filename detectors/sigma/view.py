"""An event as rules see it: flat names, each with its values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any

from cityward.event import Event
from cityward.event import text_of as record_text
from detectors.sigma.native import elsewhere

TIME = "@timestamp"
"""The name under which an event has its time."""

DEPTH_MAX = 32
"""Nested input deeper than this is not looked into."""

_OURS = "cw."
"""What the node adds about an event is no part of what its source said: keywords skip it …"""
THEIRS = "cw.vendor"
"""… except what the source says beyond the field table, within this field."""


class View:
    """One event: names to values, nested input flattened with dots, lists as several values."""

    __slots__ = ("_fields", "_flat", "_raw")

    def __init__(self, fields: Mapping[str, Any], raw: bytes = b"") -> None:
        self._fields = fields
        self._flat: Mapping[str, Any] | None = None
        self._raw: bytes | str = raw

    @classmethod
    def of(cls, event: Event) -> View:
        """The event's fields and its time; keywords also see the record it was read from."""
        fields = {TIME: event.time, **event.fields}
        data = event.record.data
        return cls(fields, data if "event.original" not in fields else b"")

    @property
    def flat(self) -> Mapping[str, Any]:
        """All names with their values."""
        if self._flat is None:
            fields = self._fields
            self._flat = _flatten(fields) if _is_nested(fields) else fields
        return self._flat

    def has(self, name: str) -> bool:
        """True if the field is there, whatever its value (Sigma 2.1.0, modifier `exists`)."""
        return self._found(name) is not None

    def values(self, name: str) -> Sequence[Any]:
        """The field's values: none if it is missing, several if it is a list."""
        found = self._found(name)
        return () if found is None else found

    def _found(self, name: str) -> Sequence[Any] | None:
        """The values under the field's own name or where else it may stand; None: it is missing."""
        found = self._said(name)
        if found is None:
            for other in elsewhere(name):
                if (found := self._said(other)) is not None:
                    break
        return found

    def _said(self, name: str) -> Sequence[Any] | None:
        """The values under this name; the event is made flat only if a nested field may have it."""
        if self._flat is None and self._fields.keys().isdisjoint(_holders(name)):
            if name not in self._fields:
                return None
            value = self._fields[name]
            if type(value) in _PLAIN:
                return (value,)
        if name not in self.flat:
            return None
        value = self.flat[name]
        return value if isinstance(value, (list, tuple)) else (value,)

    def every_value(self) -> Iterator[Any]:
        """Each value that the source said, for keywords."""
        if isinstance(self._raw, bytes):  # of a feed it is long, and seldom asked for
            self._raw = record_text(self._raw)
        if self._raw:
            yield self._raw
        for name in self.flat:
            if is_said(name):
                yield from self.values(name)


@lru_cache(maxsize=65_536)
def _holders(name: str) -> frozenset[str]:
    """Names of what may hold a field: `a` and `a.b` of `a.b.c`, and what has no name itself."""
    return frozenset(
        {"", *(name[:place] for place, sign in enumerate(name) if sign == ".")} - {name}
    )


def taker(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """What takes the values of these fields from a mapping that has them all."""
    if len(names) > 1:
        return itemgetter(*names)
    if names:
        (name,) = names
        return lambda row: (row[name],)
    return lambda row: ()


def is_said(name: str) -> bool:
    """True if a field is what the source said, and not what the node adds."""
    return not name.startswith(_OURS) or name.startswith(f"{THEIRS}.")


def text_of(value: Any) -> str:
    """A value as rules compare it: a flag is `true`, a whole number has no point."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    try:
        return str(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return hex(value)


_PLAIN = frozenset({str, int, float, bool, datetime, type(None)})
"""Types of nearly every value: the abstract test for a mapping costs more than all else here."""


def _is_nested(fields: Mapping[str, Any]) -> bool:
    if _PLAIN.issuperset(map(type, fields.values())):
        return False
    return any(
        isinstance(value, Mapping)
        or (isinstance(value, (list, tuple)) and any(_is_group(one) for one in value))
        for value in fields.values()
        if type(value) not in _PLAIN
    )


def _is_group(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple))


def _flatten(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Nested parts flattened; the many plain values are taken as they are."""
    plain = {name: value for name, value in fields.items() if type(value) in _PLAIN}
    nested = {name: value for name, value in fields.items() if name not in plain}
    flat: dict[str, list[Any]] = {}
    several: set[str] = set()
    for name, value in nested.items():
        _put(flat, several, str(name), value, 1)
    for name, values in flat.items():
        if name in plain:
            plain[name] = [plain[name], *values]
        else:
            plain[name] = values if name in several or len(values) != 1 else values[0]
    return plain


def _put(flat: dict[str, list[Any]], several: set[str], name: str, value: Any, depth: int) -> None:
    if depth > DEPTH_MAX:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _put(flat, several, f"{name}.{key}", inner, depth + 1)
    elif isinstance(value, (list, tuple)):
        several.add(name)
        flat.setdefault(name, [])
        for one in value:
            _put(flat, several, name, one, depth + 1)
    else:
        flat.setdefault(name, []).append(value)
