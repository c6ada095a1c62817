"""The city's common store in a search cluster: one index an operator and month.

Names of indices are built from rights, never from a request. Where a share stands is kept in an
index of places, which says at once – searches lag – whose an id is and where to delete it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec

from cityward.errors import ConfigError, TransientError
from siem.city.commons import Outcome, Rights, Versioned, Write
from siem.city.shares import (
    OPERATOR,
    SHARE_FIELDS,
    SORTS,
    check_record,
    check_tallied,
    conflict,
    faults_of,
    may_be_seen,
    order_of,
    texts,
    whole,
)
from siem.store.dsl import (
    INDEX,
    Dsl,
    Query,
    decoded,
    encoded,
    helpers,
    order,
    page,
    point_in_time,
    walk,
    within_span,
)
from siem.store.faults import fault
from siem.store.lines import UNWRITABLE
from siem.store.protocol import TIME_MAX, Document, Page, Range
from siem.store.protocol_cluster import Cluster, Result
from siem.store.protocol_cluster import Write as Line
from siem.store.query import parse
from siem.store.templates import month_of, retain, template

log = logging.getLogger(__name__)

AT_ONCE = 500
"""Shares or records in one request."""
TALLIED_AT_ONCE = 10_000
"""Values that each index names of a field; of more, the counts of seldom ones could be short."""
TRIES = 3
TOMBSTONE_S = 0.25
"""The cluster's clock of tombstones ticks five times a second."""
_MONTH = r"\d{4}\.\d\d"
SHARED_SETTINGS = {"gc_deletes": "0s"}
"""What was removed may come again at once: what may not is a record of the hub."""
_OF_THE_HUB = dict.fromkeys(("kind", "name", "operator", "month"), "keyword")
_VERSION = re.compile(r"\d{1,19}:[1-9]\d{0,18}")
_CLOSED = "security_exception"
_BUSY = (403, 404, 408, 429)
"""Statuses of an item that may be taken later: a block on writing, an index just deleted, …"""


class Names(msgspec.Struct, frozen=True):
    """Names of everything that the common store has in a cluster."""

    prefix: str = "cw"

    @property
    def records(self) -> str:
        """Index of the hub's memory."""
        return f"{self.prefix}-hub-records"

    @property
    def places(self) -> str:
        """Index that says of each share whose it is and in which month it stands."""
        return f"{self.prefix}-hub-places"

    @property
    def shared(self) -> str:
        """All shares."""
        return f"{self.prefix}-shared-*"

    @property
    def hub(self) -> str:
        """Both."""
        return f"{self.prefix}-hub-*"

    def index(self, operator: str, month: str) -> str:
        """Index of the shares of an operator and month.

        Raises:
            ValueError: one of them is no such thing.
        """
        if not OPERATOR.fullmatch(operator) or not re.fullmatch(_MONTH, month):
            raise ValueError(f"no index has the name of {operator!r} {month!r}")
        return f"{self.prefix}-shared-{operator}-{month}"

    def of(self, operators: Sequence[str] | None) -> str:
        """Pattern of all indices of some operators; empty if they can have none."""
        if operators is None:
            return self.shared
        sound = sorted({one for one in operators if OPERATOR.fullmatch(one)})
        # `op-*` would be those of `op-metro` too: a month has no dash. An exclusion takes from what
        # stands before it, and `op` comes before `op-metro`.
        begins = [f"{self.prefix}-shared-{one}-*" for one in sound]
        return ",".join(f"{begin},-{begin}-*" for begin in begins)

    def templates(self) -> dict[str, dict[str, Any]]:
        """Composable index templates by name."""
        beside = {INDEX: helpers(SHARE_FIELDS)}
        shared = template(self.shared, SHARE_FIELDS, beside, SHARED_SETTINGS)
        shared["template"]["aliases"] = {f"{self.prefix}-shared": {}}
        hub = template(self.hub, _OF_THE_HUB, {"value": {"type": "object", "enabled": False}})
        return {f"{self.prefix}-shared": shared, f"{self.prefix}-hub": hub}


def prepare(cluster: Cluster, names: Names = Names()) -> None:  # noqa: B008 – it is frozen
    """Write the templates and make the indices of the hub; again, it changes nothing."""
    for name, body in names.templates().items():
        cluster.put_template(name, body)
    for name in (names.records, names.places):
        cluster.create_index(name)


class ClusterCommons:
    """The common store of a city in a cluster that `prepare` has made ready."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        writer: Cluster | None = None,
        names: Names = Names(),  # noqa: B008 – it is frozen
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take up the indices.

        Args:
            cluster: Where they are.
            writer: The same with an account that cannot read shares; None: `cluster` writes.
            names: Of the indices.
            clock: What now is, for relative times in queries.
        """
        self._cluster = cluster
        self._writer = writer or cluster
        self._names = names
        self._clock = clock
        self._dsl = Dsl(SHARE_FIELDS)
        self._made: set[str] = set()
        self.records = ClusterRecords(cluster, names.records)

    # ---- The hub writes

    def put(self, writes: Sequence[Write]) -> list[Outcome]:
        """Index shared findings, each by itself; see the protocol."""
        outcomes: list[Outcome] = []
        for start in range(0, len(writes), AT_ONCE):
            outcomes += self._put(writes[start : start + AT_ONCE])
        return outcomes

    def _put(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        sound: dict[int, Write] = {}
        for number, write in enumerate(writes):
            if why := faults_of(write):
                outcomes[number] = _refuse(why)
            else:
                sound[number] = write
        places, fresh = self._take_places(list(sound.values()))
        lines: dict[int, Line] = {}
        for number, write in sound.items():
            place = places.get(write.document["cw.share.id"])
            if place is None:
                outcomes[number] = "later"
            elif place["operator"] != write.document["cw.operator"]:
                outcomes[number] = _refuse("another operator has a share of this id")
            else:
                try:
                    lines[number] = self._line(write, place["month"])
                except UNWRITABLE as error:
                    outcomes[number] = _refuse(f"it cannot be written: {error}")
        fault("commons-put-before-commit")
        outcomes |= self._send(lines)
        for _ in range(TRIES):
            gone = [
                one for one in lines if outcomes[one] == "old" and self._is_gone(lines[one], fresh)
            ]
            if not gone:
                break
            time.sleep(TOMBSTONE_S)
            outcomes |= self._send({one: lines[one] for one in gone})
        fault("commons-put-after-commit")
        return [outcomes[number] for number in range(len(writes))]

    def _is_gone(self, line: Line, fresh: Collection[str]) -> bool:
        """Whether a share is older only than what was removed a moment ago."""
        return line.id in fresh and self._cluster.get(line.index, line.id) is None

    def _take_places(
        self, writes: Sequence[Write]
    ) -> tuple[dict[str, Mapping[str, str]], Collection[str]]:
        """Place of each share, and the shares that had none.

        Who comes first has the id, and its first month stays its month.
        """
        wanted = {
            one.document["cw.share.id"]: {
                "operator": one.document["cw.operator"],
                "month": month_of(one.document["finding.first_seen"]),
            }
            for one in reversed(writes)
        }
        lines = [
            Line(self._names.places, share, msgspec.json.encode(place)).lines()
            for share, place in wanted.items()
        ]
        results = self._bulk(lines)
        made = dict(zip(wanted, results, strict=True))
        there = [share for share, result in made.items() if result.status == 409]
        fresh = {
            share: wanted[share] for share, result in made.items() if result.status in (200, 201)
        }
        return self._places(self._writer, there) | fresh, fresh

    def _places(self, asked: Cluster, shares: Sequence[str]) -> dict[str, Mapping[str, str]]:
        """Places of those of these shares that have one."""
        if not shares:
            return {}
        path = f"/{self._names.places}/_mget"
        answer = asked.request("POST", path, {"ids": list(shares)}) or {"docs": []}
        return {one["_id"]: one["_source"] for one in answer["docs"] if one.get("found")}

    def _line(self, write: Write, month: str) -> Line:
        document = whole(write.document)
        index = self._names.index(document["cw.operator"], month)
        source = encoded(document, SHARE_FIELDS, texts(document))
        return Line(index, document["cw.share.id"], msgspec.json.encode(source), write.revision)

    def _send(self, lines: Mapping[int, Line]) -> dict[int, Outcome]:
        if not lines:
            return {}
        for index in {line.index for line in lines.values()} - self._made:
            self._writer.create_index(index)
            self._made.add(index)
        results = self._bulk([line.lines() for line in lines.values()])
        outcomes: dict[int, Outcome] = {}
        for (number, line), result in zip(lines.items(), results, strict=True):
            if result.status == 404:
                self._made.discard(line.index)
            outcomes[number] = _outcome(result)
        return outcomes

    def _bulk(self, lines: Sequence[bytes]) -> Sequence[Result]:
        results = self._writer.bulk(lines) if lines else []
        for result in results:
            if result.error == _CLOSED:
                raise ConfigError(
                    f"the cluster does not let us write: {_CLOSED} {result.reason}",
                    "commons",
                    "Give the account the role of the exchange.",
                )
        return results

    def together(self) -> AbstractContextManager[None]:
        """A cluster knows no transactions: each write is durable by itself."""
        return nullcontext()

    def remove(self, share_ids: Sequence[str]) -> int:
        """Delete documents, gone for every reader when it returns; returns how many there were."""
        removed = 0
        shares = list(dict.fromkeys(share_ids))
        for start in range(0, len(shares), AT_ONCE):
            places = self._places(self._cluster, shares[start : start + AT_ONCE])
            if not places:
                continue
            documents = [
                Line(self._names.index(place["operator"], place["month"]), share, b"").lines()
                for share, place in places.items()
            ]
            removed += _deleted(self._cluster.bulk(documents, refresh=True))
            fault("commons-remove-before-commit")
            # Last, so that one who is interrupted finds them again.
            _deleted(
                self._cluster.bulk(
                    [Line(self._names.places, share, b"").lines() for share in places]
                )
            )
        return removed

    def retain(self, before: datetime) -> int:
        """Delete whole months of operators that ended before then; returns how many."""
        month = month_of(before)
        gone = retain(self._cluster, self._names.shared, month)
        self._made.difference_update(gone)
        self._cluster.refresh(self._names.places)
        self._cluster.delete_by_query(self._names.places, {"range": {"month": {"lt": month}}})
        return len(gone)

    def purge(self) -> None:
        """Let nothing of what was removed stay in a segment; the cluster does it by itself."""
        how = "only_expunge_deletes=true&wait_for_completion=false"
        every = f"{self._names.shared},{self._names.records}"
        self._cluster.request("POST", f"/{every}/_forcemerge?{how}")

    def refresh(self) -> None:
        """Let searches see what was put; by itself that takes a second."""
        self._cluster.refresh(self._names.shared)

    # ---- The hub's own reading

    def scan(self, since: datetime) -> Iterator[Document]:
        """Every shared finding last seen since then, oldest first; for the hub's own joins."""
        self.refresh()
        query = {"bool": {"filter": within_span("finding.last_seen", Range(since, TIME_MAX))}}
        for source in walk(self._cluster, self._names.shared, query, _OLDEST):
            yield decoded(source, SHARE_FIELDS)

    # ---- People read, within their rights

    def search(
        self,
        rights: Rights,
        query: str,
        span: Range,
        sort: str = "-finding.last_seen",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Shares that may be seen, by `finding.last_seen`; a query is text of the query bar."""
        order_of(sort)
        keys = order(sort, SORTS, SHARE_FIELDS, "finding.last_seen", "cw.share.id")
        asked = self._query(rights, query, span)
        if not (index := self._names.of(rights.operators)):
            return Page([], 0)
        rows, total = page(self._cluster, index, asked, keys, limit, offset)
        return Page([decoded(row, SHARE_FIELDS) for row in rows], total)

    def get(self, rights: Rights, share_id: str) -> Document | None:
        """One share as written last; None if there is none, or none that may be seen."""
        place = self._places(self._cluster, [share_id]).get(share_id) if share_id else None
        if place is None:
            return None
        if rights.operators is not None and place["operator"] not in rights.operators:
            return None
        index = self._names.index(place["operator"], place["month"])
        found = self._cluster.get(index, share_id)
        if found is None:
            return None
        document = decoded(found.source, SHARE_FIELDS)
        return document if may_be_seen(rights, document) else None

    def tally(
        self, rights: Rights, query: str, span: Range, field: str, limit: int = 20
    ) -> list[tuple[str, int]]:
        """Values of a field with the number of shares that have them, most frequent first.

        Values that fewer shares than the rights' threshold have are left out.
        """
        check_tallied(field)
        asked = self._query(rights, query, span)
        if not (index := self._names.of(rights.operators)) or limit < 1:
            return []
        kind = SHARE_FIELDS[field].removesuffix("[]")
        terms = {
            "field": f"{field}.keyword" if kind == "ip" else field,
            "size": limit,
            "shard_size": max(limit, TALLIED_AT_ONCE),
            "min_doc_count": max(1, rights.threshold),
            "order": [{"_count": "desc"}, {"_key": "asc"}],
        }
        body = {"query": asked, "size": 0, "aggs": {"values": {"terms": terms}}}
        found = self._cluster.search(index, body).get("aggregations")
        buckets = found["values"]["buckets"] if found else []
        return [(str(one.get("key_as_string", one["key"])), one["doc_count"]) for one in buckets]

    def _query(self, rights: Rights, query: str, span: Range) -> Query:
        condition = parse(query, SHARE_FIELDS, self._clock())
        spans = within_span("finding.last_seen", span)
        return {"bool": {"filter": [*_allowed(rights), *spans, self._dsl.query(condition)]}}

    def close(self) -> None:
        """Let go of the connections."""
        self._cluster.close()
        if self._writer is not self._cluster:
            self._writer.close()


_OLDEST = [{f"{INDEX}.time.finding.last_seen": "asc"}, {"cw.share.id": "asc"}]


def _allowed(rights: Rights) -> list[Query]:
    """What somebody may see, as queries that all must hold."""
    seen: list[Query] = [
        {
            "bool": {
                "filter": [
                    {"terms": {"cw.marking.tlp": list(rights.tlp)}},
                    {"terms": {"cw.share.audiences": list(rights.audiences)}},
                ]
            }
        }
    ]
    if rights.own:
        seen.append({"term": {"cw.operator": rights.own}})
    allowed: list[Query] = [{"bool": {"should": seen, "minimum_should_match": 1}}]
    if rights.operators is not None:
        allowed.append({"terms": {"cw.operator": list(rights.operators)}})
    return allowed


def _outcome(result: Result) -> Outcome:
    if result.status in (200, 201):
        return "written"
    if result.status == 409:
        return "old"
    if result.status in _BUSY or result.status >= 500:
        return "later"
    return _refuse(f"{result.error} {result.reason}")


def _refuse(why: str) -> Outcome:
    log.warning("A share was refused: %s.", why)
    return "refused"


def _deleted(results: Sequence[Result]) -> int:
    """How many documents a bulk has deleted.

    Raises:
        TransientError: the cluster was busy with one of them.
    """
    for result in results:
        if result.status not in (200, 404):
            raise TransientError(
                f"a share was not removed: {result.error} {result.reason}", "commons", "Try again."
            )
    return sum(result.status == 200 for result in results)


# ---- The hub's memory


class ClusterRecords:
    """Small documents by kind and name, in an index of their own."""

    def __init__(self, cluster: Cluster, index: str) -> None:
        self._cluster = cluster
        self._index = index

    def get(self, kind: str, name: str) -> Versioned | None:
        """One record."""
        found = self._cluster.get(self._index, f"{kind}:{name}")
        return Versioned(found.source["value"], found.version) if found else None

    def put(self, kind: str, name: str, value: Mapping[str, Any], version: str | None) -> str:
        """Write one; durable when it returns its new version.

        Raises:
            Conflict: another version is there.
            TransientError: the cluster does not answer.
        """
        check_record(kind, name)
        if version is not None and not _VERSION.fullmatch(version):
            raise conflict(kind, name)
        fault("commons-record-before-commit")
        # No refresh, as `Cluster.put` asks for: `get` needs none, and `all` does it itself.
        number, _, term = (version or "").partition(":")
        how = f"if_seq_no={number}&if_primary_term={term}" if version else "op_type=create"
        path = f"/{self._index}/_doc/{quote(f'{kind}:{name}', safe='')}?{how}"
        answer = self._cluster.request("PUT", path, {"kind": kind, "name": name, "value": value})
        if answer is None:
            raise ConfigError(
                f"the cluster has no index {self._index}", "commons", "Run cityward store init."
            )
        fault("commons-record-after-commit")
        return f"{answer['_seq_no']}:{answer['_primary_term']}"

    def delete(self, kind: str, name: str, version: str) -> None:
        """Take one away; see `put`."""
        there = _VERSION.fullmatch(version)
        if not there or not self._cluster.delete(self._index, f"{kind}:{name}", version):
            raise conflict(kind, name)

    def all(self, kind: str) -> Iterator[tuple[str, Versioned]]:
        """All records of a kind, by name."""
        self._cluster.refresh(self._index)
        body: Query = {
            "query": {"term": {"kind": kind}},
            "sort": [{"name": "asc"}],
            "size": AT_ONCE,
            "seq_no_primary_term": True,
        }
        with point_in_time(self._cluster, self._index) as pit:
            while pit is not None:
                found = self._cluster.search("", body | {"pit": {"id": pit, "keep_alive": "1m"}})
                hits = found["hits"]["hits"]
                for hit in hits:
                    version = f"{hit['_seq_no']}:{hit['_primary_term']}"
                    yield hit["_source"]["name"], Versioned(hit["_source"]["value"], version)
                if len(hits) < AT_ONCE:
                    return
                body["search_after"] = hits[-1]["sort"]
