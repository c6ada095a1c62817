"""A rule as a query on the events that a node copies to a search cluster.

What it finds is what the engine finds on the same events. The index has values as they came
(`store/templates.py`): texts as `keyword`, addresses also as networks, and what a source says
beyond the field table in `cw.vendor`, where all is text. A query string of Lucene finds no pattern
there, so a rule is written in the query DSL.

What the index does not hold, or holds otherwise than the event had it, cannot be asked: such a rule
is refused (`Inexpressible`), with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from cityward.event import LogSource
from cityward.fields import FIELDS
from detectors.sigma.ask import Ask
from detectors.sigma.filter import NARROWER
from detectors.sigma.matchers import (
    AnyOf,
    Comparison,
    Exists,
    Flag,
    Like,
    Network,
    Null,
    Number,
    Reference,
    Regex,
    number_of,
    predicate_of,
)
from detectors.sigma.native import elsewhere
from detectors.sigma.plan import Expired, Tree
from detectors.sigma.texts import Sign
from detectors.sigma.view import THEIRS, TIME
from siem import lucene, lucene_regex
from siem.lucene import Inexpressible
from siem.store.dsl import EVERY, NONE, Dsl, Query
from siem.store.query import Within
from siem.store.templates import OWN_MAPPINGS

CLAUSES_MAX = 1_024
"""Single conditions of one query: `indices.query.bool.max_clause_count` of OpenSearch."""
LENGTH_MAX = 50_000
"""Characters of the expressions of one query: each is made an automaton whenever it is asked."""
LONG = 2**63
TEMPLATE = "{{"
"""A monitor is a template of Mustache, in which this begins what is put in (`rule_export`)."""

_NETWORKS = Dsl({})
_TEXTS = frozenset({"keyword", "severity", "text", "ip"})
_NUMBERS = frozenset({"long", "double", "float"})


def query_of(logsource: LogSource, tree: Tree) -> Query:
    """The query that finds what a rule matches.

    Args:
        logsource: That of the rule.
        tree: Its condition, filters included, lists filled in.

    Raises:
        Inexpressible: a part of it cannot be asked there.
    """
    made = _every([*_from(logsource), _query(tree)])
    if (clauses := _clauses(made)) > CLAUSES_MAX:
        raise Inexpressible(f"{clauses:,} single conditions; a query may have {CLAUSES_MAX:,}")
    if (length := sum(map(len, _expressions(made)))) > LENGTH_MAX:
        raise Inexpressible(f"{length:,} characters of expressions are too much for one query")
    return made


def _from(logsource: LogSource) -> Iterator[Query]:
    """What an event's log source has to be (`filter.covers`)."""
    for part in ("category", "product", "service"):
        wanted = getattr(logsource, part)
        if wanted:
            words = {wanted, *(NARROWER.get(wanted, ()) if part == "category" else ())}
            yield _texts(_Exact(f"cw.logsource.{part}"), [Like((one,)) for one in sorted(words)])


# --- Conditions --------------------------------------------------------------------------------


def _query(tree: Tree) -> Query:
    if tree.leaf is not None:
        held = _expired(tree.leaf) if isinstance(tree.leaf, Expired) else _asked(tree.leaf)
        return _not(held) if tree.negated else held
    parts = [_query(part) for part in tree.parts]
    return _every(parts) if tree.every else _some(parts)


def _expired(one: Expired) -> Query:
    return {"range": {TIME: {"gte": one.at.isoformat()}}}


def _every(parts: Iterable[Query]) -> Query:
    """All of them; what is refused stands beside what is wanted."""
    wanted: list[Query] = []
    refused: list[Query] = []
    for part in parts:
        if part == NONE:
            return NONE
        inner = part.get("bool", {})
        if part != EVERY and inner and inner.keys() <= {"filter", "must_not"}:
            wanted += inner.get("filter", ())
            refused += inner.get("must_not", ())
        elif part != EVERY:
            wanted.append(part)
    if len(wanted) == 1 and not refused:
        return wanted[0]
    made = {"filter": wanted, "must_not": refused}
    made = {name: some for name, some in made.items() if some}
    return {"bool": made} if made else EVERY


def _some(parts: Sequence[Query]) -> Query:
    """At least one of them."""
    if EVERY in parts:
        return EVERY
    parts = [one for one in parts if one != NONE]
    if len(parts) < 2:
        return parts[0] if parts else NONE
    return {"bool": {"should": list(parts), "minimum_should_match": 1}}


def _not(part: Query) -> Query:
    if part in (EVERY, NONE):
        return NONE if part == EVERY else EVERY
    return {"bool": {"must_not": [part]}}


def _clauses(part: Any) -> int:
    if isinstance(part, list):
        return sum(map(_clauses, part))
    if not isinstance(part, dict):
        return 0
    inner = part.get("bool")
    if inner is None:
        return 1
    return sum(_clauses(some) for some in inner.values())


def _expressions(part: Any) -> Iterator[str]:
    if isinstance(part, list):
        for one in part:
            yield from _expressions(one)
    elif isinstance(part, dict):
        for one in part.get("regexp", {}).values():
            yield one["value"]
        for some in part.get("bool", {}).values():
            yield from _expressions(some)


# --- What is asked of a field ------------------------------------------------------------------


class _Exact(msgspec.Struct, frozen=True):
    """A name under which the index has a field, and how."""

    name: str
    kind: str = "keyword"
    """In the words of the field table; `vendor` for what stands in `cw.vendor`."""
    is_list: bool = False

    @property
    def texts(self) -> str:
        """Where its values stand as texts."""
        return f"{self.name}.keyword" if self.kind in ("ip", "text") else self.name

    def pattern(self, expression: str) -> Query:
        """An expression that a whole value must be."""
        name = self.texts
        if self.kind == "vendor":
            # The cluster puts name and value into one expression.
            name = f"{THEIRS}.{lucene.escaped(self.name.removeprefix(f'{THEIRS}.'))}"
            expression = f"({expression})" if set(expression) & set("|&") else expression
        return {"regexp": {name: {"value": expression}}}

    def words(self, words: Sequence[str]) -> Query:
        """Values that are one of these."""
        if len(words) == 1:
            return {"term": {self.texts: words[0]}}
        return {"terms": {self.texts: list(words)}}

    def there(self) -> Query:
        """That it has a value."""
        return self.pattern(".*") if self.kind == "vendor" else {"exists": {"field": self.texts}}


def _places(field: str) -> list[_Exact]:
    """Where the index has a field, as the engine looks for it.

    Raises:
        Inexpressible: it is not there as the event has it.
    """
    found = []
    for name in (field, *elsewhere(field)):
        if name.startswith(f"{THEIRS}."):
            found.append(_Exact(name, "vendor"))
        elif name in FIELDS:
            if name in OWN_MAPPINGS:
                raise Inexpressible(f"{name} is stored there and cannot be searched")
            if name in _MADE_THERE:
                raise Inexpressible(f"{name} is given to events when they are copied")
            kind = FIELDS[name].type
            if kind in _OTHERWISE:
                raise Inexpressible(f"{name} is no single value there")
            found.append(_Exact(name, kind.removesuffix("[]"), kind.endswith("[]")))
    return found


_MADE_THERE = frozenset({"event.id"})
_OTHERWISE = frozenset({"flat_object", "geo_point"})


def _asked(ask: Ask) -> Query:
    if ask.field is None:
        raise Inexpressible("words in any field: the record itself cannot be searched there")
    places = _places(ask.field)
    return _some([_one_of(places, comparisons) for comparisons in _alike(ask.comparisons)])


def _alike(comparisons: Iterable[Comparison]) -> list[list[Comparison]]:
    """Comparisons in an order of their own, those of a kind together."""
    by_kind: dict[str, list[Comparison]] = {}
    for one in sorted(_flat(comparisons), key=repr):
        kind = type(one).__name__ + (str(one.cased) if isinstance(one, Like) else "")
        by_kind.setdefault(kind, []).append(one)
    return list(by_kind.values())


def _flat(comparisons: Iterable[Comparison]) -> Iterator[Comparison]:
    for one in comparisons:
        if isinstance(one, AnyOf):
            yield from one.parts
        else:
            yield one


def _one_of(places: Sequence[_Exact], wanted: Sequence[Comparison]) -> Query:
    """Comparisons of one kind on a field, wherever it stands; only the first place counts."""
    first = wanted[0]
    if isinstance(first, Null):
        return _not(_some([place.there() for place in places]))
    if isinstance(first, Exists):
        held = _some([_known(place) for place in places])
        return _some([held if one.wanted else _not(held) for one in wanted])  # type: ignore[union-attr]
    if isinstance(first, Reference):
        raise Inexpressible("a field is compared with another one")
    return _some(
        [
            _every([_compared(place, wanted), *(_not(one.there()) for one in places[:number])])
            for number, place in enumerate(places)
        ]
    )


def _known(place: _Exact) -> Query:
    """That a field is there, whatever its value."""
    if place.kind == "vendor" or place.is_list:
        raise Inexpressible(f"whether {place.name} is there without a value is not known there")
    return place.there()


def _compared(place: _Exact, wanted: Sequence[Comparison]) -> Query:
    if place.kind == "boolean":
        holds = [predicate_of(one) for one in wanted]
        flags = [flag for flag in (False, True) if any(hold(flag) for hold in holds)]
        return _some([{"term": {place.name: flag}} for flag in flags])
    if place.kind in _NUMBERS:
        return _some([_as_number(place, one) for one in wanted])
    if place.kind not in _TEXTS and place.kind != "vendor":
        raise Inexpressible(f"{place.name} is no text there")
    likes = [one for one in wanted if isinstance(one, Like)]
    return _texts(place, likes) if likes else _some([_as_text(place, one) for one in wanted])


# --- Numbers -----------------------------------------------------------------------------------


def _as_number(place: _Exact, one: Comparison) -> Query:
    """A comparison on a field of numbers."""
    match one:
        case Number(part=part) if part:
            return NONE
        case Number(how, limit):
            return _limited(place, how, limit)
        case Like((str(word),)):
            number = number_of(word)
            return NONE if number is None else _limited(place, "eq", number)
        case Like((Sign.MANY,)):
            return place.there()
        case Like(()) | Flag():
            return NONE
    raise Inexpressible(f"{place.name} is a number there, and is compared as a text")


def _limited(place: _Exact, how: str, limit: float) -> Query:
    if how == "eq":
        how_low, how_high = "gte", "lte"
    else:
        how_low, how_high = (how, "") if how.startswith("g") else ("", how)
    if place.kind == "long" and not -LONG <= limit < LONG:
        if how == "eq" or (limit > 0) is how.startswith("g"):
            return NONE
        return place.there()
    if place.kind != "long" and abs(limit) > 1e300:
        raise Inexpressible(f"{limit} is no number there")
    return {"range": {place.name: {name: limit for name in (how_low, how_high) if name}}}


# --- Texts -------------------------------------------------------------------------------------


def _texts(place: _Exact, likes: Sequence[Like]) -> Query:
    """That a value is one of these texts."""
    if any(one.text == (Sign.MANY,) for one in likes):
        return place.there()
    if place.kind == "vendor":
        for one in likes:
            _refuse_number(place, one)
    words = [(one, _word(place, one)) for one in likes]
    plain = sorted({word for _, word in words if word is not None})
    patterns = lucene.any_of(one for one, word in words if word is None)
    found = [place.words(plain)] if plain else []
    return _some([*found, *map(place.pattern, patterns)])


def _word(place: _Exact, one: Like) -> str | None:
    """The one value that a text stands for; an expression has a backslash within a `{{`."""
    word = lucene.word_of(one)
    return None if word is None or TEMPLATE in place.texts or TEMPLATE in word else word


def _refuse_number(place: _Exact, one: Like) -> None:
    """There, a number is the text that it was written as: it may be written in one way only."""
    match one.text:
        case (str(word),) if (number := number_of(word)) is not None and str(number) != word:
            raise Inexpressible(f"{word} may be a number or a text in {place.name}")


def _as_text(place: _Exact, one: Comparison) -> Query:
    """A comparison on a field whose values stand there as texts."""
    match one:
        case Number(part=part) if part:
            raise Inexpressible(f"a part of a time, and {place.name} is a text there")
        case Number("eq", limit):
            return place.pattern(lucene.number(limit))
        case Number():
            raise Inexpressible(f"{place.name} is a text there, and is compared as a number")
        case Flag(wanted):
            return _texts(place, [Like(("true" if wanted else "false",))])
        case Regex(pattern, flags):
            return _some([place.pattern(one) for one in lucene_regex.regex(pattern, flags)])
        case Network(network) if place.kind == "ip":
            return _NETWORKS.query(Within(place.name, "ip", place.is_list, network))
        case Network(network):
            return place.pattern(lucene.network(network))
    raise Inexpressible(f"{type(one).__name__} is not known there")
