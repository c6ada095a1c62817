"""Notifications: whom the node tells, what was delivered, and a test over each route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError
from siem.console import formats
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.protocol import Console
from siem.console.site import PAGE_MAX, ROWS_MAX, NodeSite, number_in, see_other
from siem.console.triage import text
from siem.console.view import PAGE_ROWS
from siem.notify.routes import delivery_row, route_row, words
from siem.store.notices import Delivery, Tally

NEWEST = 20
"""Deliveries that stand below the routes."""
STATES = {
    "sent": ("Delivered", "running"),
    "due": ("Tried again", "degraded"),
    "dead": ("Given up", "risk"),
}
"""Word and sign of a delivery that was tried."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A route as it is set, with its state in one word."""

    said: Mapping[str, Any]
    tally: Tally
    word: str
    glyph: str

    @property
    def id(self) -> str:
        """Its name in the settings."""
        return str(self.said["route"])


class Routes:
    """The pages of routes and of deliveries."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.node = site.node

    def listing(self, request: Request) -> Response:
        """Routes with what they last delivered, as a page or for programs."""
        session = self.site.access.enter(request, "routes")
        form = formats.form_of(request)
        rows = shown_routes(self.node)
        if form:
            self.site.exported(session, request)
            listed = [route_row(one.said, one.tally) for one in rows]
            return formats.rows(form, listed, len(rows), {}, "routes")
        return self.site.page(
            request,
            session,
            "routes.html",
            title="Notifications",
            current="health",
            rows=rows,
            newest=self._listed(self.node.notices.deliveries(limit=NEWEST), session),
            total=self.node.notices.count(),
            states=STATES,
            sent_by=self._sent_by(request),
        )

    def deliveries(self, request: Request) -> Response:
        """What was delivered, newest first, as a page or for programs."""
        session = self.site.access.enter(request, "routes")
        form = formats.form_of(request)
        view = self.site.view_of(request)
        route = view.one("route")
        limit = number_in(view.one("limit"), PAGE_ROWS, 0, ROWS_MAX if form else PAGE_MAX)
        offset = number_in(view.one("offset"), 0, 0, 10_000_000)
        found = self._listed(self.node.notices.deliveries(route, limit, offset), session)
        total = self.node.notices.count(route)
        if form:
            self.site.exported(session, request)
            said = {"route": route, "limit": limit, "offset": offset}
            return formats.rows(form, found, total, said, "deliveries")
        return self.site.page(
            request,
            session,
            "deliveries.html",
            title="Deliveries",
            current="health",
            rows=found,
            routes=list(self.node.routes),
            total=total,
            limit=limit,
            offset=offset,
            states=STATES,
        )

    async def test(self, request: Request) -> Response:
        """Send a test over a route, by a form that needs no script or as JSON."""
        form = await body_of(request)
        return await run_in_threadpool(self._test, request, form)

    def _test(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter_by_form(request, "send", text(form, "csrf"))
        id = text(form, "route")
        route = self.node.routes.get(id)
        if route is None:
            what = f"no route is called {id[:60]!r}"
            raise CitywardError(what, "route", f"One of {', '.join(self.node.routes)}.")
        now = self.node.now()
        self.node.audit(session.person.name, "route: test", id, now)
        delivery = self.node.notices.add_test(route, now)
        if formats.form_of(request):
            return formats.json({"delivery": delivery.id})
        return see_other(f"/routes?test={id}")

    def _sent_by(self, request: Request) -> str:
        """The route over which a test was just sent."""
        asked = self.site.view_of(request).one("test")
        return asked if asked in self.node.routes else ""

    def _listed(self, found: Sequence[Delivery], session: Session) -> list[dict[str, Any]]:
        """Deliveries as programs read them; what was found is for those who may see findings."""
        rows = [delivery_row(one) for one in found]
        if not session.may("findings"):
            for row in rows:
                row["about"] = ""
        return rows


def shown_routes(node: Console) -> list[Shown]:
    """The routes of a node with what became of their deliveries, trouble first."""
    rows = []
    for said in words(node.routes):
        tally = node.notices.tally(str(said["route"]))
        word, glyph = STATES[tally.last.state] if tally.last else ("Not used yet", "blind")
        rows.append(Shown(said, tally, word, glyph))
    trouble = [glyph for _, glyph in reversed(STATES.values())]
    return sorted(rows, key=lambda one: trouble.index(one.glyph) if one.glyph in trouble else 9)
