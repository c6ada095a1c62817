"""Shared findings: what operators let out, as far as the reader may see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError
from siem.city.picture import is_campaign, is_exercise
from siem.city.shares import SORTS
from siem.console import formats
from siem.console.access import Session
from siem.console.city_site import CitySite
from siem.console.findings import added_chip
from siem.console.site import PAGE_MAX, ROWS_MAX, Fault, number_in, see_other
from siem.console.timespan import Choice, choose, word
from siem.console.view import PAGE_ROWS, View, path_of, plain, query_of, shown
from siem.store.protocol import Document, Page, Range
from siem.store.query import quoted

FACETS: tuple[tuple[str, str, int], ...] = (
    ("cw.operator", "Operator", 5),
    ("cw.sector", "Sector", 4),
    ("threat.technique.id", "Technique", 4),
    ("cw.marking.tlp", "TLP", 4),
)
"""Fields whose values stand above the list: name, head, how many."""
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("finding.severity", "Severity", ""),
    ("", "Finding", ""),
    ("cw.operator", "Operator", "c-zone"),
    ("cw.sector", "Sector", "c-status"),
    ("finding.count", "Count", "num"),
    ("finding.first_seen", "First seen", "num c-first"),
    ("finding.last_seen", "Last seen", "num"),
)
"""Field that is sorted by, head and class of each column."""
ABOUT = ("cw.share.", "cw.marking.", "cw.policy")
"""Beginnings of fields that say how it was shared, not what it is."""
RESTS_MAX = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """A list of shares as an address asks for it."""

    view: View
    choice: Choice
    query: str
    shift: int
    sort: str
    limit: int
    offset: int


class Shared:
    """The pages of shared findings."""

    def __init__(self, site: CitySite) -> None:
        self.site = site
        self.node = site.node

    def listing(self, request: Request) -> Response:
        """Shared findings, the newest first, as a page or for programs."""
        session = self.site.access.enter(request, "shared")
        form = formats.form_of(request)
        view = self.site.view_of(request)
        if added := added_chip(view):
            return see_other(added)
        try:
            asked = self._ask(view, ROWS_MAX if form else PAGE_MAX)
            reading = self.site.reading(session)
            page = reading.search(
                asked.query, asked.choice.span, asked.sort, asked.limit, asked.offset
            )
        except CitywardError as error:
            fault = Fault.of(error, view.one("q"), query_of(view)[1])
            if form:
                return formats.error(400, fault.what, fault.where, fault.todo)
            return self._page(request, session, view, fault=fault)
        if form:
            self.site.exported(session, request)
            listed = formats.rows(form, page.rows, page.total, _head(asked), "shared")
            return formats.tagged(request, listed, form, page.total, page.rows)
        facets = [
            (name, head, reading.tally(asked.query, asked.choice.span, name, most))
            for name, head, most in FACETS
        ]
        empty = None if page.rows else self._why_empty(session, asked)
        return self._page(
            request, session, view, asked=asked, page=page, facets=facets, empty=empty
        )

    def _ask(self, view: View, limit_max: int) -> Asked:
        sort = view.one("sort", "-finding.last_seen")
        if sort.removeprefix("-") not in SORTS:
            raise CitywardError(
                f"the list cannot be sorted by {sort[:60]!r}", "sort", f"Write {', '.join(SORTS)}."
            )
        query, shift = query_of(view)
        return Asked(
            view=view,
            choice=choose(view.one("from"), view.one("to"), self.node.now()),
            query=query,
            shift=shift,
            sort=sort,
            limit=number_in(view.one("limit"), PAGE_ROWS, 0, limit_max),
            offset=number_in(view.one("offset"), 0, 0, 1_000_000),
        )

    def _page(
        self,
        request: Request,
        session: Session,
        view: View,
        *,
        fault: Fault | None = None,
        asked: Asked | None = None,
        page: Page | None = None,
        **context: Any,
    ) -> Response:
        return self.site.hub_page(
            request,
            session,
            "shared.html",
            400 if fault else 200,
            shown=page.rows if page else (),
            title="Shared findings",
            current="shared",
            view=view,
            choice=asked.choice if asked else self.site.choice(view, self.node.now()),
            fault=fault,
            asked=asked,
            page=page,
            columns=COLUMNS,
            is_campaign=is_campaign,
            is_exercise=is_exercise,
            link_of=link_of,
            **({"facets": (), "empty": None} | context),
        )

    def _why_empty(self, session: Session, asked: Asked) -> dict[str, Any]:
        """Which of the empty states it is, and the way out."""
        reading, span = self.site.reading(session), asked.choice.span
        if total := reading.search("", span, limit=1).total:
            for chip in asked.view.chips:
                rest = View("", tuple(p for p in asked.view.pairs if p != ("f", chip.text)))
                if found := reading.search(query_of(rest)[0], span, limit=1).total:
                    return {"kind": "match", "chip": chip, "total": found}
            return {"kind": "match", "chip": None, "total": total}
        newest = reading.search("", Range(), limit=1).rows
        if newest:
            return {"kind": "range", "newest": newest[0].get("finding.last_seen")}
        return {"kind": "none"}

    def one(self, request: Request, share_id: str) -> Response:
        """One shared finding, as a page or as JSON."""
        session = self.site.access.enter(request, "shared")
        form = formats.form_of(request)
        reading = self.site.reading(session)
        found = reading.get(share_id)
        if found is None:
            what = f"no shared finding has the id {share_id[:80]}, or it is not for you"
            todo = "Look in the list; one that was withdrawn is gone."
            return self.site.unknown(request, session, "shared", what, todo)
        if form:
            return formats.json(found)
        joined = self._campaigns(session, share_id)
        return self.site.hub_page(
            request,
            session,
            "share.html",
            shown=[found, *joined],
            title=str(found.get("finding.title") or "Shared finding"),
            current="shared",
            view=View("/shared", ()),
            share=found,
            fields=_fields(found, about=False),
            about=_fields(found, about=True),
            campaigns=joined,
            is_exercise=is_exercise(found),
            is_campaign=is_campaign(found),
        )

    def _campaigns(self, session: Session, share_id: str) -> Sequence[Document]:
        """Campaigns that rest on a share; none for who is not told what they rest on."""
        try:
            return (
                self.site.reading(session)
                .search(f"cw.share.derived_from:{quoted(share_id)}", Range(), limit=RESTS_MAX)
                .rows
            )
        except CitywardError:
            return ()


def link_of(share: Document) -> str:
    """The page of a share: a campaign has one of its own."""
    part = "campaigns" if is_campaign(share) else "shared"
    return path_of(part, str(share.get("cw.share.id", "")))


def _fields(share: Document, *, about: bool) -> list[tuple[str, list[tuple[Any, str]]]]:
    """Fields with their values, as the query bar and as people read them."""
    made = []
    for name, value in sorted(share.items()):
        if name.startswith(ABOUT) is not about or name == "finding.title":
            continue
        values = value if isinstance(value, list | tuple) else [value]
        read = [(one if isinstance(one, dict) else plain(one), shown(one)) for one in values]
        made.append((name, read))
    return made


def _head(asked: Asked) -> dict[str, Any]:
    return {
        "query": asked.query,
        "from": word(asked.choice.span.since),
        "to": word(asked.choice.span.until),
        "sort": asked.sort,
        "limit": asked.limit,
        "offset": asked.offset,
    }
