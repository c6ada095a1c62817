"""An event as rules see it: flat names, each with its values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
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

    __slots__ = ("_raw", "flat")

    def __init__(self, fields: Mapping[str, Any], raw: bytes = b"") -> None:
        self.flat: Mapping[str, Any] = _flatten(fields) if _is_nested(fields) else fields
        self._raw: bytes | str = raw

    @classmethod
    def of(cls, event: Event) -> View:
        """The event's fields and its time; keywords also see the record it was read from."""
        fields = {TIME: event.time, **event.fields}
        data = event.record.data
        return cls(fields, data if "event.original" not in fields else b"")

    def has(self, name: str) -> bool:
        """True if the field is there, whatever its value (Sigma 2.1.0, modifier `exists`)."""
        return self._found(name) is not None

    def values(self, name: str) -> tuple[Any, ...] | list[Any]:
        """The field's values: none if it is missing, several if it is a list."""
        found = self._found(name)
        if found is None:
            return ()
        value = self.flat[found]
        return value if isinstance(value, (list, tuple)) else (value,)

    def _found(self, name: str) -> str | None:
        """The name under which this event has a field, its own or where else it may stand."""
        if name in self.flat:
            return name
        for other in elsewhere(name):
            if other in self.flat:
                return other
        return None

    def every_value(self) -> Iterator[Any]:
        """Each value that the source said, for keywords."""
        if isinstance(self._raw, bytes):  # of a feed it is long, and seldom asked for
            self._raw = record_text(self._raw)
        if self._raw:
            yield self._raw
        for name in self.flat:
            if is_said(name):
                yield from self.values(name)


def flat(event: Event) -> Mapping[str, Any]:
    """The fields of an event as a view has them, without its time."""
    return _flatten(event.fields) if _is_nested(event.fields) else event.fields


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
    _put(flat, several, "", nested, 0)
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
            _put(flat, several, f"{name}.{key}" if name else str(key), inner, depth + 1)
    elif isinstance(value, (list, tuple)):
        several.add(name)
        flat.setdefault(name, [])
        for one in value:
            _put(flat, several, name, one, depth + 1)
    else:
        flat.setdefault(name, []).append(value)
