"""The query bar on a cluster: conditions → query DSL, alike in OpenSearch and Elasticsearch.

Both makes type and compare a little differently from each other and from SQLite, so what is
compared is written beside the document, under `cw.index`, just as `node.db` keeps it; only
`keyword`, `wildcard`, `long`, `double`, `boolean` and `ip` are ever asked. What templates must have
(`templates.py` builds them from `MAPPINGS`, `helpers` and, for findings, the field table
`findings.FINDING_FIELDS`, which has `assignee` and `marks` too; `dynamic: false`):

| type of the field table | mapping |
| --- | --- |
| `keyword` | `keyword`, `ignore_above` 8191 |
| `text` | `match_only_text`, sub-field `keyword` |
| `ip` | `ip`, `ignore_malformed`, sub-field `keyword` |
| `float`, `double` | `double` |
| `long`, `boolean` | themselves |
| `severity` | `keyword` |
| `date`, `geo_point`, `flat_object` | themselves, for other tools: never asked here |

| beside the document | type | what |
| --- | --- | --- |
| `cw.index.text` | `wildcard` | folded texts, for bare words, without the characters of a pattern |
| `cw.index.fold.NAME` | `wildcard` | folded text of each `text` field |
| `cw.index.time.NAME` | `long` | microseconds since 1970 of each `date` field |
| `cw.index.has` | `keyword` | names of the fields that are there, also `cw.vendor.KEY` |
| `cw.index.pairs` | `keyword` | `NAME=value` of places and of each part of `cw.vendor` |
| `cw.index.rank` | `long` | of the severity |
| `cw.index.group`, `.label` | `keyword` | rule and asset of a finding, and what it is about |
| `cw.index.grown` | `long` | when it grew last |
| `cw.copies` | not indexed | copies of the events of a finding |
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from cityward.errors import InputError
from cityward.finding import SEVERITIES
from siem.store.protocol import TIME_MAX, TIME_MIN, Document, Range
from siem.store.protocol_cluster import Cluster
from siem.store.query import (
    BETWEEN_TEXTS,
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
    Test,
    Within,
    fold,
    micros,
)

INDEX = "cw.index"
"""What is compared, beside the document."""
COPIES = "cw.copies"
HIDDEN = (INDEX, COPIES)
"""What no reader of a document sees."""

IGNORE_ABOVE = 8_191
"""Characters of a `keyword`: Lucene takes 32,766 bytes, and a character has up to four."""
_KEYWORD: Mapping[str, Any] = {"type": "keyword", "ignore_above": IGNORE_ABOVE}
_WITH_KEYWORD: Mapping[str, Any] = {"fields": {"keyword": _KEYWORD}}
MAPPINGS: Mapping[str, Mapping[str, Any]] = {
    "keyword": _KEYWORD,
    "text": {"type": "match_only_text", **_WITH_KEYWORD},
    "ip": {"type": "ip", "ignore_malformed": True, **_WITH_KEYWORD},
    "long": {"type": "long", "ignore_malformed": True},
    "double": {"type": "double", "ignore_malformed": True},
    "float": {"type": "double", "ignore_malformed": True},
    "boolean": {"type": "boolean"},
    "date": {"type": "date", "ignore_malformed": True},
    "geo_point": {"type": "geo_point", "ignore_malformed": True},
    "flat_object": {"type": "flat_object"},
    "severity": _KEYWORD,
}
"""Types of the field table as mappings (`flattened` in Elasticsearch)."""

Query = dict[str, Any]
EVERY: Query = {"match_all": {}}
NONE: Query = {"match_none": {}}


def helpers(types: Mapping[str, str]) -> dict[str, Any]:
    """Mapping of `cw.index` for documents with fields of these types."""
    wildcard, long = {"type": "wildcard"}, {"type": "long"}
    plain = {name: kind.removesuffix("[]") for name, kind in types.items()}
    return {
        "type": "object",
        "dynamic": False,
        "properties": {
            "text": wildcard,
            "fold": _object({name: wildcard for name, kind in plain.items() if kind == "text"}),
            "time": _object({name: long for name, kind in plain.items() if kind == "date"}),
            **dict.fromkeys(("has", "pairs", "group", "label"), _KEYWORD),
            **dict.fromkeys(("rank", "grown"), long),
        },
    }


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "dynamic": False, "properties": dict(properties)}


# ---- Documents


def encoded(document: Document, types: Mapping[str, str], texts: Iterable[str]) -> Document:
    """A document with what is compared beside it.

    Args:
        document: Flat, times as aware datetimes.
        types: Types of its fields, in the words of the field table.
        texts: In which bare words are looked for.
    """
    there: list[str] = []
    pairs: list[str] = []
    fold_: dict[str, Any] = {}
    time: dict[str, int] = {}
    for name, value in document.items():
        kind = types.get(name, "").removesuffix("[]")
        if not kind or value is None or value in ([], {}):
            continue
        there.append(name)
        match kind:
            case "text":
                fold_[name] = _folded(value)
            case "date" if isinstance(value, datetime):
                time[name] = micros(value)
            case "geo_point":
                pairs.append(f"{name}={value}")
            case "flat_object" if isinstance(value, dict):
                there += [f"{name}.{key}" for key in value]
                pairs += [f"{name}.{key}={one}" for key, one in _parts(value)]
    beside: Document = {
        "text": [_folded(text) for text in texts],
        "fold": fold_,
        "time": time,
        "has": there,
        "pairs": pairs,
    }
    if (severity := document.get("finding.severity")) in SEVERITIES:
        beside["rank"] = SEVERITIES.index(severity)
    return document | {INDEX: beside}


def decoded(source: Document, types: Mapping[str, str]) -> Document:
    """A document as it was before `encoded`."""
    document = {name: value for name, value in source.items() if name not in HIDDEN}
    for name, value in document.items():
        if types.get(name) == "date" and isinstance(value, str):
            document[name] = datetime.fromisoformat(value)
    for line in document.get("cw.history", ()):
        if isinstance(line["time"], str):
            line["time"] = datetime.fromisoformat(line["time"])
    return document


def _folded(value: Any) -> Any:
    if isinstance(value, list):
        return [_folded(one) for one in value]
    return fold(str(value)).replace(BETWEEN_TEXTS, " ").translate(_STAND_IN)


def _parts(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys and single values of an object, as the query bar compares them."""
    for key, one in value.items():
        if isinstance(one, bool):
            yield key, "true" if one else "false"
        elif isinstance(one, str | int | float):
            yield key, one if isinstance(one, str) else repr(one)


# ---- Conditions → queries


class Dsl:
    """Writes conditions as queries in filter context; none of them has a score."""

    def __init__(self, types: Mapping[str, str]) -> None:
        self._types = types

    def query(self, condition: Condition) -> Query:
        """A condition as a query.

        `not` is moved inwards and like parts are drawn together, since Elasticsearch bounds how
        deep a query may be.
        """
        return self._plain(_inwards(condition, is_not=False))

    def _plain(self, condition: Condition) -> Query:
        match condition:
            case All(parts=()):
                return EVERY
            case Any_(parts=()):
                return NONE
            case All(parts=parts):
                held = [self._plain(part) for part in parts if not isinstance(part, No)]
                refused = [self._plain(part.part) for part in parts if isinstance(part, No)]
                made = {"filter": held, "must_not": refused}
                return {"bool": {name: some for name, some in made.items() if some}}
            case Any_(parts=parts):
                some = [self._plain(part) for part in parts]
                return {"bool": {"should": some, "minimum_should_match": 1}}
            case No(part=part):
                return {"bool": {"must_not": [self._plain(part)]}}
            case _:
                return self._leaf(condition)

    def _leaf(self, test: Test) -> Query:
        match test:
            case Says():
                return _folded_wild(f"{INDEX}.text", test.pattern)
            case Has():
                return {"term": {f"{INDEX}.has": test.field}}
            case Between():
                return self._between(test)
            case Within():
                return _within(test)
            case Like(folded=True):
                return _folded_wild(f"{INDEX}.fold.{test.field}", test.pattern)
        if test.kind == "object" or self._types.get(test.field) == "geo_point":
            if isinstance(test, Is):
                return {"term": {f"{INDEX}.pairs": f"{test.field}={test.value}"}}
            return wild(f"{INDEX}.pairs", (f"{test.field}=", *test.pattern))
        field = f"{test.field}.keyword" if test.kind == "ip" else test.field
        if isinstance(test, Is):
            return {"term": {field: test.value}}
        return wild(field, test.pattern)

    def _between(self, test: Between) -> Query:
        field = {
            "date": f"{INDEX}.time.{test.field}",
            "severity": f"{INDEX}.rank",
        }.get(test.kind, test.field)
        low, high = test.low, test.high
        if self._types.get(test.field, "").removesuffix("[]") not in ("double", "float"):
            # A bound that no long can have is an error to a cluster.
            if (low is not None and low >= _LONG) or (high is not None and high < -_LONG):
                return NONE
            low = None if low is not None and low < -_LONG else low
            high = None if high is not None and high >= _LONG else high
        bounds = {
            "gte" if test.with_low else "gt": low,
            "lte" if test.with_high else "lt": high,
        }
        bounds = {name: value for name, value in bounds.items() if value is not None}
        return {"range": {field: bounds}} if bounds else {"exists": {"field": field}}


_LONG = 2**63


def _inwards(condition: Condition, *, is_not: bool) -> Condition:
    """A condition, or its contrary, in which only single tests are refused."""
    match condition:
        case No(part=part):
            return _inwards(part, is_not=not is_not)
        case All(parts=parts) | Any_(parts=parts):
            kind = All if isinstance(condition, All) is not is_not else Any_
            made: list[Condition] = []
            for part in parts:
                one = _inwards(part, is_not=is_not)
                made += one.parts if isinstance(one, kind) and one.parts else (one,)
            return kind(tuple(made))
        case _:
            return No(condition) if is_not else condition


def wild(field: str, pattern: Sequence[str]) -> Query:
    """A pattern of the query bar on a `keyword` field."""
    if len(pattern) == 2 and pattern[1] == STAR and pattern[0] not in (ONE, STAR):
        return {"prefix": {field: pattern[0]}}
    made = {STAR: "*", ONE: "?"}
    text = "".join(made.get(piece) or _escaped(piece) for piece in pattern)
    return {"wildcard": {field: {"value": text}}}


_STAND_IN = str.maketrans("\\*?", "\ue000\ue001\ue002")
"""`wildcard` fields of OpenSearch 2.19 do not find what is escaped: there others stand for it."""


def _folded_wild(field: str, pattern: Sequence[str]) -> Query:
    """A folded pattern on a `wildcard` field."""
    made = {STAR: "*", ONE: "?"}
    text = "".join(made.get(piece) or piece.translate(_STAND_IN) for piece in pattern)
    return {"wildcard": {field: {"value": text}}}


def _escaped(text: str) -> str:
    for special in "\\*?":
        text = text.replace(special, "\\" + special)
    return text


# ---- Networks

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
"""Where clusters keep IPv4; to the query bar an address is of one version only."""


def _within(test: Within) -> Query:
    network = ipaddress.ip_network(test.network)
    if isinstance(network, ipaddress.IPv4Network):
        return {"term": {test.field: test.network}}
    if network.subnet_of(_MAPPED):
        return NONE
    if not _MAPPED.subnet_of(network):
        return {"term": {test.field: test.network}}
    below = {"gte": str(network[0]), "lte": str(_MAPPED[0] - 1)}
    above = {"gte": str(_MAPPED[-1] + 1), "lte": str(network[-1])}
    ranges = [{"range": {test.field: one}} for one in (below, above)]
    return {"bool": {"should": ranges, "minimum_should_match": 1}}


# ---- Spans, order, pages


def within_span(field: str, span: Range) -> list[Query]:
    """Queries for a span of a `date` field; none for all time."""
    bounds = {}
    if span.since > TIME_MIN:
        bounds["gte"] = micros(span.since)
    if span.until < TIME_MAX:
        bounds["lt"] = micros(span.until)
    return [{"range": {f"{INDEX}.time.{field}": bounds}}] if bounds else []


def sort_field(name: str, types: Mapping[str, str]) -> str:
    """The field by which documents are sorted as by `name`."""
    if name == "finding.severity":
        return f"{INDEX}.rank"
    kind = types[name]
    if kind == "date":
        return f"{INDEX}.time.{name}"
    return f"{name}.keyword" if kind in ("ip", "text") else name


def order(
    sort: str, allowed: Iterable[str], types: Mapping[str, str], newest: str, tie: str
) -> list[Query]:
    """Sort keys: what was asked, the newest first, and at last a keyword no two documents share.

    A missing value is the smallest, as in SQLite.

    Args:
        sort: A field name, `-` before it for descending.
        allowed: Names that may be sorted by.
        types: Types of the fields.
        newest: `date` field that says what is newest.
        tie: `keyword` field with the id.

    Raises:
        InputError: the name may not be sorted by.
    """
    name = sort.removeprefix("-")
    if name not in allowed:
        raise InputError(f"findings are not sorted by {name}", "sort", f"One of {sorted(allowed)}.")
    keys = [(name, sort.startswith("-")), (newest, True), (tie, False)]
    return [
        {
            sort_field(key, types): {
                "order": "desc" if down else "asc",
                "missing": "_last" if down else "_first",
            }
        }
        for key, down in keys
    ]


WINDOW = 10_000
"""`index.max_result_window`: what lies beyond is reached by a point in time only."""


@contextmanager
def point_in_time(cluster: Cluster, index: str) -> Iterator[str | None]:
    """A view of indices that does not change while it is paged through; None: no index."""
    pit = cluster.open_pit(index)
    try:
        yield pit
    finally:
        if pit is not None:
            cluster.close_pit(pit)


def walk(
    cluster: Cluster, index: str, query: Query, keys: Sequence[Query], size: int = 1_000
) -> Iterator[Document]:
    """Every document that matches, in order, of one point in time; as it is stored."""
    body: Query = {"query": query, "sort": keys, "size": size, "_source": {"excludes": HIDDEN}}
    with point_in_time(cluster, index) as pit:
        while pit is not None:
            found = cluster.search("", body | {"pit": {"id": pit, "keep_alive": "1m"}})
            hits = found["hits"]["hits"]
            yield from (hit["_source"] for hit in hits)
            if len(hits) < size:
                return
            body["search_after"] = hits[-1]["sort"]


def page(
    cluster: Cluster, index: str, query: Query, keys: Sequence[Query], limit: int, offset: int = 0
) -> tuple[list[Document], int]:
    """Some documents in order, as they are stored, and how many match; any offset."""
    body: Query = {
        "query": query,
        "sort": keys,
        "size": limit,
        "from": offset,
        "track_total_hits": True,
        "_source": {"excludes": HIDDEN},
    }
    if offset + limit <= WINDOW:
        found = cluster.search(index, body)
    else:
        found = _beyond(cluster, index, body)
    return [hit["_source"] for hit in found["hits"]["hits"]], found["hits"]["total"]["value"]


def _beyond(cluster: Cluster, index: str, body: Query) -> dict[str, Any]:
    """The answer to a search whose `from` lies beyond the window."""
    skip, limit = body.pop("from"), body["size"]
    nothing = {"hits": {"hits": [], "total": {"value": 0}}}
    with point_in_time(cluster, index) as pit:
        if pit is None:
            return nothing
        body["pit"] = {"id": pit, "keep_alive": "1m"}
        while skip:
            step = min(skip, WINDOW)
            found = cluster.search("", body | {"size": step, "_source": False})
            hits = found["hits"]["hits"]
            if len(hits) < step:
                return found | {"hits": found["hits"] | {"hits": []}}
            skip -= step
            body["search_after"] = hits[-1]["sort"]
        return cluster.search("", body | {"size": min(limit, WINDOW)})
