"""Matches of rules, and what their events say in a field, many at a time.

Nearly always a field is there, has one plain value and stands nowhere else in an event. Then all
its values are taken at once, and no event is looked at alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import repeat
from operator import contains, itemgetter
from typing import Any

import msgspec

from cityward.event import Event
from detectors.sigma.view import TIME, View, text_of

Key = str | tuple[str, ...]
"""Values of the fields by which a correlation groups: one text, or none or several."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)
_SINGLE = frozenset({str, int, float, bool})


def time_us(time: datetime) -> int:
    """Whole microseconds since 1970: exact, where seconds as a float are not."""
    return (time - _EPOCH) // _US


class Match(msgspec.Struct, frozen=True, gc=False):
    """A rule, or a correlation below, matched."""

    rule: str
    event: Event
    row: Mapping[str, Any]
    """The event's fields, which may be nested."""
    time_us: int
    number: int = 0
    """Its place among those that are given together."""

    @property
    def view(self) -> View:
        """The event as rules see it."""
        return View({TIME: self.event.time, **self.row})


def column_of(matches: Sequence[Match], name: str) -> list[Any] | None:
    """The values of a field; None if an event lacks it, or may also say it in a nested field."""
    rows = [match.row for match in matches]
    try:
        column = [*map(itemgetter(name), rows)]
    except KeyError:
        return None
    is_nested = any(any(map(contains, rows, repeat(holder))) for holder in _holders(name))
    return None if is_nested else column


def keys_of(matches: Sequence[Match], fields: Sequence[str]) -> Sequence[Key | None]:
    """Texts of these fields; None if an event lacks one of them."""
    if not fields:
        return [()] * len(matches)
    columns = [_texts(matches, name) for name in fields]
    plain = [column for column in columns if column is not None]
    if len(plain) < len(columns):
        return [_key(match, fields) for match in matches]
    return plain[0] if len(plain) == 1 else [*zip(*plain, strict=True)]


def texts_of(key: Key) -> tuple[str, ...]:
    """The values of a group, one a field."""
    return (key,) if isinstance(key, str) else key


def key_of(texts: Sequence[str]) -> Key:
    """The group of these values."""
    return texts[0] if len(texts) == 1 else tuple(texts)


@lru_cache(maxsize=1024)
def _holders(name: str) -> list[str]:
    """Names of what may hold a field: `a` and `a.b` of `a.b.c`."""
    return [name[:place] for place, sign in enumerate(name) if sign == "."]


def _texts(matches: Sequence[Match], name: str) -> list[str] | None:
    """A column as texts; None if an event has not just one value."""
    column = column_of(matches, name)
    if column is None:
        return None
    kinds = {*map(type, column)}
    if kinds <= {str}:
        return column
    return [*map(text_of, column)] if kinds <= _SINGLE else None


def _key(match: Match, fields: Sequence[str]) -> Key | None:
    view, found = match.view, []
    for field in fields:
        values = view.values(field)
        if not values or values[0] is None:
            return None
        found.append(",".join(map(text_of, values)))
    return key_of(found)
