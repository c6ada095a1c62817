"""A rule made of a query on events: what somebody hunts for becomes a draft.

The query says what is to be found, the newest event that it found says the log source, and becomes
the first sample. What a rule has no words for – times of events – is refused with the reason. In a
query capitals count and in a rule they do not, unless it says `cased`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cityward import InputError
from detectors.sigma.texts import written
from siem.store.protocol import Document
from siem.store.query import (
    ONE,
    STAR,
    All,
    Any_,
    Between,
    Condition,
    Has,
    Is,
    Like,
    No,
    Says,
    Within,
)

LOGSOURCE = "cw.logsource."
"""Fields of an event that say its log source."""
THEIRS = "cw.vendor"
"""What a source says beyond the field table."""
TITLE = "What it finds, in one line"
WHO = ("source.ip", "user.name", "cw.asset.asset_id", "host.name", "source.mac")
TO = ("destination.ip", "url.domain", "host.name", "observer.name")
NOT_SAID = ("@timestamp", "event.id", "event.ingested", "event.original", "event.hash")
"""Of an event, what a sample does without."""
SAID = ("message", "event.original")
"""Where a bare word mostly stands."""
VALUE_MAX = 500
"""Characters of a value that a sample repeats, if the query does not name its field."""

_Item = tuple[str, Any]
"""Field with modifiers, and its value."""


def rule_of(query: str, condition: Condition, newest: Document, by: str) -> tuple[str, str]:
    """A rule and its samples, as YAML.

    Args:
        query: What was typed, for the description.
        condition: What it means.
        newest: An event that it found.
        by: Who makes it.

    Raises:
        InputError: the query asks for nothing, or for what a rule cannot say.
    """
    import yaml

    logsource, rest = _apart(condition)
    if rest == All(()):
        what = "the query asks for nothing but a log source" if logsource else "the query is empty"
        raise InputError(what, "query", "Say what is to be found, for example a field's value.")
    logsource = {
        **{part: str(newest.get(LOGSOURCE + part) or "") for part in _PARTS}, **logsource,
    }  # fmt: skip
    made = _Detection()
    text = made.expression(rest)
    document = {
        "title": TITLE,
        "id": str(uuid.uuid4()),
        "status": "experimental",
        "description": f"Made from the hunt {query}",
        "author": by,
        "level": "medium",
        "taxonomy": "cityward",
        "logsource": {part: value for part, value in logsource.items() if value},
        "detection": {**made.selections, "condition": text},
        "falsepositives": [""],
        "cityward": {"sentence": _sentence(newest)},
    }
    case = {
        "name": "the newest event of the hunt",
        "kind": "must match",
        "events": [_sample(newest, made.fields)],
    }
    return _yaml(yaml.safe_dump, document), _yaml(yaml.safe_dump, {"cases": [case]})


def _yaml(dump: Callable[..., Any], value: Any) -> str:
    return str(dump(value, sort_keys=False, allow_unicode=True, width=90))


_PARTS = ("category", "product", "service")


def _apart(condition: Condition) -> tuple[dict[str, str], Condition]:
    """What a query says of the log source, and the rest of it."""
    logsource: dict[str, str] = {}
    rest = []
    for part in _parts(condition):
        if isinstance(part, Is) and part.field.startswith(LOGSOURCE):
            logsource[part.field.removeprefix(LOGSOURCE)] = str(part.value)
        else:
            rest.append(part)
    return logsource, rest[0] if len(rest) == 1 else All(tuple(rest))


def _parts(condition: Condition) -> Iterator[Condition]:
    """What must hold together, however it is nested."""
    if not isinstance(condition, All):
        yield condition
        return
    for part in condition.parts:
        yield from _parts(part)


class _Detection:
    """Selections by name, and what they come to."""

    def __init__(self) -> None:
        self.selections: dict[str, Any] = {}
        self.fields: set[str] = set()

    def expression(self, condition: Condition, name: str = "selection") -> str:
        """The condition in Sigma's words; its selections are noted."""
        match condition:
            case No():
                return f"not {self._inner(condition.part, 'other')}"
            case All():
                return self._all(list(_parts(condition)), name)
            case Any_():
                return self._any(condition.parts, name)
        return self._selection(dict(self._items(condition)), name)

    def _inner(self, condition: Condition, name: str) -> str:
        text = self.expression(condition, name)
        return f"({text})" if " " in text else text

    def _all(self, parts: Sequence[Condition], name: str) -> str:
        """Plain tests share a selection, as far as no field stands in it twice."""
        if not parts:
            what = "a part of the query asks for nothing"
            raise InputError(what, "query", "Leave the * out, or name a field.")
        together: dict[str, Any] = {}
        others: list[Condition] = []
        for part in parts:
            items = self._items(part) if not isinstance(part, (All, Any_, No, Says)) else []
            if items and not any(key in together for key, _ in items):
                together.update(items)
            else:
                others.append(part)
        said = [self._selection(together, name)] if together else []
        return " and ".join([*said, *(self._inner(one, name) for one in others)])

    def _any(self, parts: Sequence[Condition], name: str) -> str:
        """Values of one field are a list."""
        tests = [one for one in parts if not isinstance(one, (All, Any_, No, Says))]
        items = [self._items(one) for one in tests]
        keys = {key for each in items for key, _ in each}
        if len(tests) == len(parts) and len(keys) == 1 and all(len(each) == 1 for each in items):
            values = [value for ((_, value),) in items]
            if keys.isdisjoint({f"{tests[0].field}|exists"}):
                return self._selection({keys.pop(): values}, name)
        return " or ".join(self._inner(one, name) for one in parts)

    def _selection(self, value: Any, name: str) -> str:
        if set(value) == {""}:  # words alone
            value = [value[""]]
        free = name
        while free in self.selections:
            free = f"{name}_{len(self.selections) + 1}"
        self.selections[free] = value
        return free

    def _items(self, test: Condition) -> list[_Item]:
        """One test as lines of a selection."""
        if isinstance(test, Says):
            self.fields.update(SAID)
            return [("", _literal(_without_stars(test.pattern)))]
        assert not isinstance(test, (All, Any_, No))
        field = test.field
        self.fields.add(field)
        if test.kind == "date":
            todo = "Leave it out; a rule sees each event once, as it comes."
            raise InputError(f"a rule has no words for the time {field}", "query", todo)
        if field == "event.id":  # it is only made when an event is read
            what, todo = "an event that comes has no event.id yet", "Say what it is like."
            raise InputError(what, "query", todo)
        match test:
            case Has():
                return [(f"{field}|exists", True)]
            case Is(value=bool()):
                return [(field, test.value)]
            case Is():
                return [(_cased(test, (str(test.value),)), _literal((str(test.value),)))]
            case Within():
                return [(f"{field}|cidr", test.network)]
            case Like():
                return [(_cased(test, test.pattern), _literal(test.pattern))]
        return list(_limits(field, test))


def _cased(test: Is | Like, pattern: Iterable[str]) -> str:
    """The field, with what tells a rule that capitals count, as they do in the query."""
    text = "".join(pattern)
    counts = test.kind in ("keyword", "object") and text.lower() != text.upper()
    return f"{test.field}|cased" if counts else test.field


def _limits(field: str, test: Between) -> Iterator[_Item]:
    if test.low is None and test.high is None:
        yield f"{field}|exists", True
    if test.low is not None and test.low == test.high and test.with_low and test.with_high:
        yield field, test.low
        return
    if test.low is not None:
        yield f"{field}|{'gte' if test.with_low else 'gt'}", test.low
    if test.high is not None:
        yield f"{field}|{'lte' if test.with_high else 'lt'}", test.high


def _literal(pattern: Iterable[str]) -> str:
    """A pattern as Sigma takes it; what is no wildcard stands for itself."""
    return "".join(one[1:] if one in (STAR, ONE) else written(one) for one in pattern)


def _without_stars(pattern: Sequence[str]) -> Sequence[str]:
    """Words are looked for anywhere without being told so."""
    first = 1 if pattern[:1] == (STAR,) else 0
    last = len(pattern) - (1 if pattern[-1:] == (STAR,) else 0)
    return pattern[first:last]


def _sentence(event: Document) -> str:
    who = next((name for name in WHO if event.get(name)), "")
    whom = next((name for name in TO if event.get(name) and name != who), "")
    said = f"{{{who}}} did what it should not" if who else "Somebody did what nobody should"
    return said + (f" to {{{whom}}}." if whom else ".")


def _sample(event: Document, named: set[str]) -> Mapping[str, Any]:
    """What a sample repeats of an event: what the query names, and what the source said."""
    found: dict[str, Any] = {}
    for name, value in event.items():
        is_ours = name.startswith("cw.") and name != THEIRS
        if (is_ours or name in NOT_SAID) and name not in named:
            continue
        if isinstance(value, Mapping):
            found[name] = {
                str(key): one
                for key, one in value.items()
                if _is_short(one) or f"{name}.{key}" in named
            }
        elif _is_short(value) or name in named:
            found[name] = value
    return found


def _is_short(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_short, value))
    return isinstance(value, (bool, int, float)) or (
        isinstance(value, str) and len(value) <= VALUE_MAX
    )
