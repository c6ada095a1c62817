"""Hunt: the events of the operator, their fields, and the event itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError
from siem.console import formats, timespan
from siem.console.access import Session
from siem.console.columns import columns
from siem.console.findings import added_chip
from siem.console.site import PAGE_MAX, ROWS_MAX, Fault, NodeSite, number_in, see_other
from siem.console.view import PAGE_ROWS, Chip, View, chart, path_of, plain, query_of, time_of
from siem.store.protocol import Document, Page, Range

LATE_S = 60.0
FIELDS_SHOWN = 60
TOPS: tuple[str, ...] = ("source.ip", "ot.function.name", "event.action", "user.name")
"""Fields whose top values are shown unasked, the first two that are there."""
HIDDEN_FIELDS = frozenset({"event.original"})


@dataclass(frozen=True, slots=True)
class Asked:
    """A list of events as an address asks for it."""

    view: View
    choice: timespan.Choice
    query: str
    by: str
    limit: int
    offset: int


class Hunt:
    """The pages of events."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.node = site.node

    def listing(self, request: Request) -> Response:
        """Events, or the top values of a field, as a page or for programs."""
        session = self.site.access.enter(request, "hunt")
        form = formats.form_of(request)
        view = self.site.view_of(request)
        if added := added_chip(view):
            return see_other(added)
        try:
            asked = self._ask(view, ROWS_MAX if form else PAGE_MAX)
            page = self._rows(asked)
        except CitywardError as error:
            fault = Fault.of(error, view.one("q"), query_of(view)[1])
            if form:
                return formats.error(400, fault.what, fault.where, fault.todo)
            return self._page(request, session, view, fault)
        if form:
            self.site.exported(session, request)
            head = _head(asked) | ({"unread": page.unread} if page.unread else {})
            return formats.rows(form, page.rows, page.total, head, "events")
        return self._page(request, session, view, asked=asked, page=page)

    def one(self, request: Request, event_id: str) -> Response:
        """One event, as a page or as JSON."""
        session = self.site.access.enter(request, "hunt")
        form = formats.form_of(request)
        near = time_of(self.site.view_of(request).one("near"))
        document = self.node.events.get(event_id, near if isinstance(near, datetime) else None)
        if document is None:
            what = f"no event has the id {event_id[:80]}"
            todo = "Look in the list; events are kept for 30 days."
            return self.site.unknown(request, session, "hunt", what, todo)
        if form:
            return formats.json(document)
        view = View("/hunt", self.site.view_of(request).pairs)
        return self.site.page(
            request,
            session,
            "event.html",
            title="Event",
            current="hunt",
            view=view,
            event=shown_event(document),
        )

    def _ask(self, view: View, limit_max: int) -> Asked:
        return Asked(
            view=view,
            choice=timespan.choose(view.one("from"), view.one("to"), self.node.now()),
            query=query_of(view)[0],
            by=_field(view.one("by"), "by"),
            limit=number_in(view.one("limit"), PAGE_ROWS, 0, limit_max),
            offset=number_in(view.one("offset"), 0, 0, 10_000_000),
        )

    def _rows(self, asked: Asked) -> Page:
        events, span = self.node.events, asked.choice.span
        if not asked.by:
            return events.search(asked.query, span, asked.limit, asked.offset)
        values, having = events.top_values(asked.query, span, asked.by, max(asked.limit, 1))
        rows = [
            {"field": asked.by, "value": value, "events": count, "share": count / max(having, 1)}
            for value, count in values
        ]
        return Page(rows, having)

    def _page(
        self,
        request: Request,
        session: Session,
        view: View,
        fault: Fault | None = None,
        *,
        asked: Asked | None = None,
        page: Page | None = None,
    ) -> Response:
        context: dict[str, Any] = {"asked": asked, "page": page, "fault": fault, "unread": ()}
        if asked and page:
            try:
                context |= self._around(asked, page)
            except CitywardError as error:
                context |= {"page": None, "fault": Fault.of(error)}
        return self.site.page(
            request,
            session,
            "hunt.html",
            400 if context["fault"] else 200,
            title="Hunt",
            current="hunt",
            view=view,
            choice=asked.choice if asked else None,
            **context,
        )

    def _around(self, asked: Asked, page: Page) -> dict[str, Any]:
        events, span, query = self.node.events, asked.choice.span, asked.query
        whole = page if not asked.by else events.search(query, span, limit=1)
        total = whole.total
        buckets = events.histogram(query, asked.choice.drawn, 72) if total else ()
        rows = page.rows if not asked.by else ()
        opened = asked.view.one("open")
        return {
            "total": total,
            "unread": whole.unread,
            "chart": chart(
                [(at, {"all": n}) for at, n in buckets], asked.choice.drawn, ("all",), 54, 72
            ),
            "columns": columns(rows, asked.view.one("cols")),
            "opened": next(
                (shown_event(row) for row in rows if row.get("event.id") == opened), None
            ),
            "late": {str(row.get("event.id")) for row in rows if is_late(row)},
            "fields": self._fields(asked, total) if total else [],
            "empty": None if page.rows else self._why_empty(asked),
        }

    def _fields(self, asked: Asked, total: int) -> list[dict[str, Any]]:
        """Fields with the share of events that have them; some with their top values."""
        events, span = self.node.events, asked.choice.span
        found = [one for one in events.fields(asked.query, span) if one[0] not in HIDDEN_FIELDS]
        names = [name for name, _ in found]
        wanted = [name for name in asked.view.all("top") if name in names][:6]
        if not wanted and "top" not in dict(asked.view.pairs):
            wanted = [name for name in TOPS if name in names][:2]
        opened = [
            self._field_with_values(asked, name, count, total)
            for name, count in found
            if name in wanted
        ]
        opened.sort(key=lambda one: wanted.index(one["name"]))
        closed = [
            {"name": name, "count": count, "values": None}
            for name, count in found[:FIELDS_SHOWN]
            if name not in wanted
        ]
        return [
            {
                **one,
                "link": asked.view.link(
                    top=[*(w for w in wanted if w != one["name"]), one["name"]]
                ),
            }
            for one in opened + sorted(closed, key=lambda one: str(one["name"]))
        ]

    def _field_with_values(self, asked: Asked, name: str, count: int, total: int) -> dict[str, Any]:
        if name == "@timestamp":
            return {"name": name, "count": count, "values": []}
        values, having = self.node.events.top_values(asked.query, asked.choice.span, name, 6)
        return {"name": name, "count": min(count, total), "values": values, "having": having}

    def _why_empty(self, asked: Asked) -> dict[str, Any]:
        """Which of the four empty states it is, and the way out."""
        events, span = self.node.events, asked.choice.span
        if total := events.search("", span, limit=1).total:
            for chip in asked.view.chips:
                rest = View("", tuple(p for p in asked.view.pairs if p != ("f", chip.text)))
                if found := events.search(query_of(rest)[0], span, limit=1).total:
                    return {"kind": "match", "chip": chip, "total": found}
            return {"kind": "match", "chip": None, "total": total}
        newest = events.search("", Range(), limit=1).rows
        if newest:
            return {"kind": "range", "newest": newest[0].get("@timestamp")}
        return {"kind": "none", "sources": len(self.node.sources())}


def is_late(event: Mapping[str, Any]) -> bool:
    """True if an event came more than a minute after it happened."""
    seen, kept = time_of(event.get("@timestamp")), time_of(event.get("event.ingested"))
    if not isinstance(seen, datetime) or not isinstance(kept, datetime):
        return False
    return (kept - seen).total_seconds() > LATE_S


def shown_event(event: Document) -> dict[str, Any]:
    """An event with its fields in order and the addresses of its neighbours."""
    fields: list[tuple[str, Any]] = []
    for name in sorted(event):
        value = event[name]
        if name in HIDDEN_FIELDS:
            continue
        if isinstance(value, Mapping):
            fields += [(f"{name}.{key}", one) for key, one in sorted(value.items())]
        else:
            fields.append((name, value))
    return {
        "doc": event,
        "id": str(event.get("event.id", "")),
        "fields": fields,
        "original": event.get("event.original"),
        "json": bytes(formats.json(event).body).decode(),
        "links": _links(event),
    }


def _links(event: Document) -> list[tuple[str, str]]:
    time = time_of(event.get("@timestamp"))
    page = View(path_of("hunt", str(event.get("event.id", ""))), ())
    if not isinstance(time, datetime):
        return [("As a page", page.path)]
    links = [("As a page", page.link(near=timespan.word(time)))]
    five = timedelta(minutes=5)
    around = View(
        "/hunt", (("from", timespan.word(time - five)), ("to", timespan.word(time + five)))
    )
    links.insert(0, ("Around this ±5 min", around.link()))
    for name, label in (
        ("network.community_id", "Same flow"),
        ("cw.asset.asset_id", "Same asset"),
        ("cw.record.source", "Same source"),
    ):
        if event.get(name):
            links.insert(-1, (label, around.adding(Chip(name, plain(event[name])))))
    return links


def _field(name: str, where: str) -> str:
    if name and (
        not name.replace(".", "").replace("_", "").replace("@", "").replace("-", "").isalnum()
    ):
        raise CitywardError(
            f"{name[:60]!r} is no name of a field", where, "Write a name like source.ip."
        )
    return name


def _head(asked: Asked) -> dict[str, Any]:
    return {
        "query": asked.query,
        "from": timespan.word(asked.choice.span.since),
        "to": timespan.word(asked.choice.span.until),
        "by": asked.by,
        "limit": asked.limit,
        "offset": asked.offset,
    }
