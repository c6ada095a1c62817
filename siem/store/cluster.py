"""Findings of an operator in a search cluster: they answer just as those of `node.db` do.

One index an operator and month of `finding.first_seen`, so that an id lives in one index only; the
revision is the external version, so that an older one that comes late changes nothing. Several
findings do not change all or nothing here: each does by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from cityward.errors import InputError, TransientError
from cityward.finding import EVENTS_KEPT, SEVERITIES, STATUSES
from siem.store.dsl import (
    COPIES,
    HIDDEN,
    INDEX,
    Dsl,
    Query,
    decoded,
    encoded,
    order,
    page,
    point_in_time,
    sort_field,
    within_span,
)
from siem.store.findings import (
    FINDING_FIELDS,
    MARKS,
    SORTS,
    UNDO_FOR,
    Before,
    check,
    check_revision,
    given_back,
    group_of,
    judged,
    label,
    left,
    marks_now,
    texts,
    triage_of,
    words,
)
from siem.store.lines import harmless
from siem.store.protocol import Change, Conflict, Document, Page, Range
from siem.store.protocol_cluster import Cluster, Refused, Result, Write
from siem.store.query import from_micros, micros, parse, steps
from siem.store.templates import Names
from siem.store.trail import digest

Audit = Callable[[str, str, str, datetime, str, str], None]
"""By whom, what, about which id, when, and digests of before and after."""

ATTEMPTS = 5
"""How often a finding is read anew and changed, if somebody else changes it at the same time."""
AT_ONCE = 200
"""Whole findings in one request: with copies of events each may have some 50 kB."""
GROUPS_AT_ONCE = 500
"""Each has 24 hours: well below the 65,536 buckets that a cluster gives at once."""
GROUPS_A_PAGE = 10_000
RELATED_MAX = 50
HOUR = 3_600_000_000

LAST = f"{INDEX}.time.finding.last_seen"
FIRST = f"{INDEX}.time.finding.first_seen"
RANK = f"{INDEX}.rank"
GROUP = f"{INDEX}.group"


def stored(finding: Document, copies: Sequence[Document] = ()) -> Document:
    """A finding as it stands in a cluster, with copies of its events, newest first."""
    made = encoded(finding, FINDING_FIELDS, texts(finding))
    made[INDEX] |= {"group": group_of(finding), "label": label(finding)}
    if "grows" in finding.get("marks", ()):
        made[INDEX]["grown"] = micros(finding["finding.modified"])
    if finding.get("assignee") == "":
        # Nobody: a column of `node.db` has nothing there either.
        made["assignee"] = None
        made[INDEX]["has"].remove("assignee")
    if copies:
        made[COPIES] = list(copies)
    return made


def read(source: Document) -> Document:
    """A finding as it was before `stored`."""
    found = decoded(source, FINDING_FIELDS)
    if found.get("assignee", "") is None:
        found["assignee"] = ""
    return found


class ClusterFindings:
    """Findings of one operator; fulfils `protocol.Findings`."""

    def __init__(
        self,
        cluster: Cluster,
        names: Names,
        *,
        audit: Audit = lambda *said: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Take up the indices.

        Args:
            cluster: Where they are; it has been prepared (`templates.prepare`).
            names: Names of the operator's indices.
            audit: Is told of each finding that somebody changed.
            clock: What now is.
        """
        self._cluster = cluster
        self._names = names
        self._known: set[str] = set()
        self._audit = audit
        self._clock = clock
        self._dsl = Dsl(FINDING_FIELDS)

    def keep(
        self,
        findings: Sequence[Document],
        copies: Mapping[str, Sequence[Document]] | None = None,
    ) -> int:
        """Write findings, each if it is newer than what is there; returns how many were written.

        Args:
            findings: Whole.
            copies: Copies of their events by finding, newest first.
        """
        copies = copies or {}
        writes = []
        for one in findings:
            index = self._names.findings_in(one["finding.first_seen"])
            if index not in self._known:
                self._cluster.create_index(index)
                self._known.add(index)
            writes.append(self._write(index, one, copies.get(one["finding.id"], ())))
        return sum(self._done(writes))

    def _write(self, index: str, finding: Document, copies: Sequence[Document]) -> Write:
        return Write(
            index,
            finding["finding.id"],
            msgspec.json.encode(stored(finding, copies)),
            finding["finding.revision"],
        )

    def _done(self, writes: Sequence[Write]) -> list[bool]:
        """Send them; False for those that came too late."""
        done: list[bool] = []
        for start in range(0, len(writes), AT_ONCE):
            lines = [one.lines() for one in writes[start : start + AT_ONCE]]
            results = self._cluster.bulk(lines, refresh=True)
            for result in results:
                _settled(result)
            done += [result.status != 409 for result in results]
        return done

    # ---- Reading

    def search(
        self,
        query: str,
        span: Range,
        sort: str = "-finding.risk",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Findings whose last match lies in the span."""
        keys = order(sort, SORTS, FINDING_FIELDS, "finding.last_seen", "finding.id")
        return self._page(self._query(query, span), keys, limit, offset)

    def _query(self, query: str, span: Range, *more: Query) -> Query:
        condition = parse(query, FINDING_FIELDS, self._clock())
        spans = within_span("finding.last_seen", span)
        return {"bool": {"filter": [*spans, *more, self._dsl.query(condition)]}}

    def _page(self, query: Query, keys: Sequence[Query], limit: int, offset: int = 0) -> Page:
        rows, total = page(self._cluster, self._names.findings, query, keys, limit, offset)
        return Page([self._document(row) for row in rows], total)

    def _document(self, source: Document) -> Document:
        found = read(source)
        marks = found.get("marks", ())
        found["marks"] = marks_now(marks, micros(found["finding.modified"]), self._clock())
        return found

    def members(self, group: str, query: str, span: Range, limit: int = 50) -> Page:
        """Findings of one group, newest first."""
        asked = self._query(query, span, {"term": {GROUP: group}})
        return self._page(asked, _NEWEST, limit)

    def get(self, finding_id: str) -> Document | None:
        """One finding, or None."""
        found = self._hits([finding_id])
        return self._document(found[finding_id]["_source"]) if found else None

    def _hits(self, ids: Sequence[str]) -> dict[str, Any]:
        """Answers for these ids, with the index each stands in, whole."""
        found: dict[str, Any] = {}
        for start in range(0, len(ids), AT_ONCE):
            some = list(ids[start : start + AT_ONCE])
            body = {"query": {"ids": {"values": some}}, "size": len(some)}
            answer = self._cluster.search(self._names.findings, body)
            found |= {hit["_id"]: hit for hit in answer["hits"]["hits"]}
        return found

    def events_of(self, finding_id: str) -> list[Document]:
        """Copies of the events that made it speak, newest first."""
        found = self._hits([finding_id])
        copies = found[finding_id]["_source"].get(COPIES, []) if found else []
        return [decoded(one, FINDING_FIELDS) for one in copies[:EVENTS_KEPT]]

    def related(self, finding_id: str, within_s: float = 7200.0) -> list[Document]:
        """Findings of the same asset or source address whose last match is near, newest first."""
        found = self.get(finding_id)
        if found is None:
            return []
        near = int(within_s * 1e6)
        same = [
            {"term": {field: found[name]}}
            for name, field in (
                ("cw.asset.asset_id", "cw.asset.asset_id"),
                ("source.ip", "source.ip.keyword"),
            )
            if found.get(name) is not None
        ]
        span = {
            "gte": micros(found["finding.first_seen"]) - near,
            "lte": micros(found["finding.last_seen"]) + near,
        }
        query = {
            "bool": {
                "filter": [{"range": {LAST: span}}, {"bool": {"should": same}}],
                "must_not": [{"ids": {"values": [finding_id]}}],
            }
        }
        return list(self._page(query, _NEWEST, RELATED_MAX).rows) if same else []

    def counts(self, query: str, span: Range) -> dict[str, int]:
        """How many by status."""
        asked = {"status": {"terms": {"field": "finding.status", "size": len(STATUSES)}}}
        found = self._aggregated(self._query(query, span), asked)
        return {one["key"]: one["doc_count"] for one in found["status"]["buckets"]} if found else {}

    def histogram(
        self, query: str, span: Range, buckets: int = 48
    ) -> list[tuple[datetime, Mapping[str, int]]]:
        """Start of each bucket and counts by severity; empty if nothing is in the range."""
        asked = self._query(query, span)
        found = self._aggregated(
            asked, {"first": {"min": {"field": LAST}}, "last": {"max": {"field": LAST}}}
        )
        if not found or found["first"]["value"] is None:
            return []
        start, step = steps(
            span, int(found["first"]["value"]), int(found["last"]["value"]), buckets
        )
        starts = [start + step * place for place in range(buckets)]
        ranges: list[Query] = [{"from": one, "to": one + step} for one in starts]
        del ranges[-1]["to"]
        severities = {"terms": {"field": RANK, "size": len(SEVERITIES)}}
        found = self._aggregated(
            asked,
            {"time": {"range": {"field": LAST, "ranges": ranges}, "aggs": {"n": severities}}},
        )
        return [
            (
                from_micros(one),
                {SEVERITIES[n["key"]]: n["doc_count"] for n in bucket["n"]["buckets"]},
            )
            for one, bucket in zip(starts, found["time"]["buckets"], strict=True)
        ]

    def _aggregated(self, query: Query, asked: Query) -> Any:
        """Answers to aggregations; empty if there is no index yet."""
        body = {"query": query, "size": 0, "aggs": asked}
        return self._cluster.search(self._names.findings, body).get("aggregations", {})

    # ---- Groups

    def groups(
        self,
        query: str,
        span: Range,
        sort: str = "-finding.risk",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Findings grouped by rule and asset; see the protocol for the columns."""
        name = sort.removeprefix("-")
        if name not in GROUP_SORTS:
            raise InputError(
                f"findings are not sorted by {name}", "sort", f"One of {sorted(GROUP_SORTS)}."
            )
        asked = self._query(query, span)
        ranked = self._ranked(asked, name, down=sort.startswith("-"))
        shown = ranked[offset : offset + limit]
        if not shown:
            return Page([], len(ranked))
        newest = max(last for _, last in shown) + 1
        if span.since.year > 1970:  # else it is about what there is, not about now
            newest = max(newest, micros(self._clock()))
        until = min(micros(span.until), newest)
        rows: list[Document] = []
        for start in range(0, len(shown), GROUPS_AT_ONCE):
            some = [group for group, _ in shown[start : start + GROUPS_AT_ONCE]]
            rows += self._described(asked, some, until)
        return Page(rows, len(ranked))

    def _ranked(self, asked: Query, sort: str, *, down: bool) -> list[tuple[str, int]]:
        """Every group and its newest time, in order.

        A cluster sorts groups only approximately where they lie in several indices, so all of
        them are read with what they are sorted by.
        """
        by = GROUP_SORTS[sort]
        found: list[tuple[Any, int, str]] = []
        sources = [{"group": {"terms": {"field": GROUP}}}]
        groups: Query = {"size": GROUPS_A_PAGE, "sources": sources}
        body = {
            "query": asked,
            "size": 0,
            "aggs": {
                "groups": {
                    "composite": groups,
                    "aggs": {"last": {"max": {"field": LAST}}} | ({"by": by} if by else {}),
                }
            },
        }
        with point_in_time(self._cluster, self._names.findings) as pit:
            while pit is not None:
                answer = self._cluster.search("", body | {"pit": {"id": pit, "keep_alive": "1m"}})
                made = answer["aggregations"]["groups"]
                found += [
                    (_value(one), int(one["last"]["value"]), one["key"]["group"])
                    for one in made["buckets"]
                ]
                if len(made["buckets"]) < GROUPS_A_PAGE:
                    break
                groups["after"] = made["after_key"]
        found.sort(key=lambda one: (-one[1], one[2]))
        found.sort(key=lambda one: (one[0] is not None, one[0]), reverse=down)
        return [(group, last) for _, last, group in found]

    def _described(self, asked: Query, groups: Sequence[str], until: int) -> list[Document]:
        hours = [
            {"from": until - age * HOUR + 1, "to": until - (age - 1) * HOUR + 1}
            for age in range(24, 0, -1)
        ]
        found = self._aggregated(
            {"bool": {"filter": [asked, {"terms": {GROUP: list(groups)}}]}},
            {
                "groups": {
                    "terms": {"field": GROUP, "size": len(groups)},
                    "aggs": {
                        **_GROUP_PARTS,
                        "hours": {
                            "range": {"field": LAST, "ranges": hours},
                            "aggs": {"n": {"sum": {"field": "finding.count"}}},
                        },
                    },
                }
            },
        )
        made = {one["key"]: self._group(one) for one in found["groups"]["buckets"]}
        # One that has gone meanwhile is left out.
        return [made[group] for group in groups if group in made]

    def _group(self, found: Mapping[str, Any]) -> Document:
        """One row of the list: what its newest finding says, and what all of them share."""
        said = read(found["newest"]["hits"]["hits"][0]["_source"])
        statuses = {one["key"] for one in found["status"]["buckets"]}
        marks = {one["key"] for one in found["marks"]["buckets"]}
        grown = found["grown"]["value"]
        return {
            "group": found["key"],
            "rule.id": said["rule.id"],
            "finding.title": said["finding.title"],
            "finding.description": said.get("finding.description") or "",
            "cw.asset.asset_id": label(said),
            "cw.asset.zone": said.get("cw.asset.zone") or "",
            "finding.severity": SEVERITIES[int(found["severity"]["value"])],
            "finding.risk": int(found["risk"]["value"]),
            "finding.status": [one for one in STATUSES if one in statuses],
            "findings": found["doc_count"],
            "finding.count": int(found["count"]["value"]),
            "finding.first_seen": from_micros(int(found["first"]["value"])),
            "finding.last_seen": from_micros(int(found["last"]["value"])),
            "assignee": said.get("assignee") or "",
            "marks": marks_now(
                [one for one in MARKS if one in marks],
                None if grown is None else int(grown),
                self._clock(),
            ),
            "hours": [int(one["n"]["value"]) for one in found["hours"]["buckets"]],
        }

    # ---- Triage

    def change(
        self,
        ids: Sequence[str],
        change: Change,
        by: str,
        now: datetime,
        revisions: Mapping[str, int] | None = None,
    ) -> int:
        """Triage of some findings, each by itself; see the protocol.

        Raises:
            InputError: a status or verdict is not one, or a comment is too long.
            Conflict: a finding has another revision than the one that was seen.
        """
        check(change)
        by, change = harmless(by), Change(**harmless(msgspec.structs.asdict(change)))
        waiting = list(dict.fromkeys(ids))
        hits = self._hits(waiting)
        for one in hits:
            check_revision(hits[one]["_source"], (revisions or {}).get(one))
        done: list[Before] = []
        for attempt in range(ATTEMPTS):
            if attempt:
                hits = self._hits(waiting)
            made = [
                (before, after, hits[one])
                for one in waiting
                if one in hits
                and (after := judged(before := read(hits[one]["_source"]), change, by, now))
            ]
            late = self._triaged(made, by, words(change), now)
            done += [
                Before(before["finding.id"], triage_of(before), triage_of(after))
                for before, after, _ in made
                if before["finding.id"] not in late
            ]
            waiting = late
            if not late or any(one in (revisions or {}) for one in late):
                break
        if done:
            self._remember(by, now, done)
        if waiting:
            raise Conflict(
                f"{len(waiting)} findings changed meanwhile", "revision", "Read them again."
            )
        return len(done)

    def _triaged(
        self, made: Sequence[tuple[Document, Document, Any]], by: str, said: str, now: datetime
    ) -> list[str]:
        """Write changed findings, and say so in the audit trail; returns those it is too late for.

        What a changed finding was before comes with the hit it was read from.
        """
        writes = [
            self._write(hit["_index"], after, hit["_source"].get(COPIES, ()))
            for _, after, hit in made
        ]
        late = []
        for (before, after, _), is_done in zip(made, self._done(writes), strict=True):
            if is_done:
                about = before["finding.id"]
                self._audit(by, f"finding: {said}", about, now, digest(before), digest(after))
            else:
                late.append(before["finding.id"])
        return late

    def undoable(self, by: str, now: datetime) -> int:
        """How many findings of a person's last triage can be given back as they were."""
        return sum(1 for _ in self._undoable(harmless(by), now))

    def undo(self, by: str, now: datetime) -> int:
        """Give the findings of a person's last triage back, those that nobody changed since."""
        by = harmless(by)
        made = [
            (before, given_back(before, one, by, now), hit)
            for before, one, hit in self._undoable(by, now)
        ]
        late = self._triaged(made, by, "undone", now)
        self._cluster.delete(self._names.undo, _key(by))
        return len(made) - len(late)

    def _undoable(self, by: str, now: datetime) -> Iterator[tuple[Document, Before, Any]]:
        kept = self._cluster.get(self._names.undo, _key(by))
        if kept is None or now - from_micros(kept.source["time"]) > UNDO_FOR:
            return
        changed = [msgspec.convert(one, Before) for one in kept.source["changed"]]
        hits = self._hits([one.id for one in changed])
        for one in changed:
            if one.id in hits and left(found := read(hits[one.id]["_source"]), one):
                yield found, one, hits[one.id]

    def _remember(self, by: str, now: datetime, done: Sequence[Before]) -> None:
        state = {"time": micros(now), "changed": msgspec.to_builtins(done)}
        for _ in range(ATTEMPTS):
            kept = self._cluster.get(self._names.undo, _key(by))
            try:
                self._cluster.put(self._names.undo, _key(by), state, kept.version if kept else None)
            except Conflict:
                continue
            return


_NEWEST = order("-finding.last_seen", SORTS, FINDING_FIELDS, "finding.last_seen", "finding.id")


def _key(by: str) -> str:
    return hashlib.sha256(by.encode()).hexdigest()[:32]


def _settled(result: Result) -> None:
    """Raise if a write neither was done nor came too late."""
    if result.status in (429, 503) or result.status >= 500:
        raise TransientError(
            f"the cluster is busy: {result.error} {result.reason}", "findings", "Try again."
        )
    if result.status not in (200, 201, 409):
        raise Refused(
            f"the cluster does not take a finding: {result.error} {result.reason}",
            "findings",
            "Look at its template.",
        )


def _ends(field: str, direction: str) -> Query:
    """First value of a keyword in this order."""
    return {"terms": {"field": field, "size": 1, "order": {"_key": direction}}}


GROUP_SORTS: Mapping[str, Query | None] = {
    "finding.risk": {"max": {"field": "finding.risk"}},
    "finding.severity": {"max": {"field": RANK}},
    "finding.count": {"sum": {"field": "finding.count"}},
    "finding.first_seen": {"min": {"field": FIRST}},
    "finding.last_seen": {"max": {"field": LAST}},
    "findings": None,
    "finding.title": _ends(sort_field("finding.title", FINDING_FIELDS), "desc"),
    "finding.status": _ends("finding.status", "asc"),
    "rule.id": _ends("rule.id", "desc"),
    "cw.asset.asset_id": _ends(f"{INDEX}.label", "desc"),
    "cw.asset.zone": _ends("cw.asset.zone", "desc"),
    "assignee": _ends("assignee", "desc"),
}
"""What groups are sorted by; None: how many findings they have."""

_GROUP_PARTS: Mapping[str, Query] = {
    "severity": {"max": {"field": RANK}},
    "risk": {"max": {"field": "finding.risk"}},
    "count": {"sum": {"field": "finding.count"}},
    "first": {"min": {"field": FIRST}},
    "last": {"max": {"field": LAST}},
    "grown": {"max": {"field": f"{INDEX}.grown"}},
    "status": {"terms": {"field": "finding.status", "size": len(STATUSES)}},
    "marks": {"terms": {"field": "marks", "size": 10 * len(MARKS)}},
    "newest": {"top_hits": {"size": 1, "sort": _NEWEST, "_source": {"excludes": HIDDEN}}},
}


def _value(bucket: Mapping[str, Any]) -> Any:
    """What a group is sorted by."""
    by = bucket.get("by")
    if by is None:
        return bucket["doc_count"]
    if "buckets" in by:
        return by["buckets"][0]["key"] if by["buckets"] else None
    return by["value"]
