"""Duties: every legal clock of the city that the hub is told of, soonest first."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from siem.city.commons import CITY
from siem.city.known import Duty
from siem.console import formats
from siem.console.city import clocks
from siem.console.city_site import CitySite


class Duties:
    """The list of all clocks."""

    def __init__(self, site: CitySite) -> None:
        self.site = site
        self.node = site.node

    def listing(self, request: Request) -> Response:
        """Clocks that run in the city, as a page or for programs."""
        session = self.site.access.enter(request, "duties")
        form, view = formats.form_of(request), self.site.view_of(request)
        words = view.one("q").casefold().split()
        every = self.node.duties(session.person)
        rows = [one for one in every if all(word in _text(one) for word in words)]
        if form:
            self.site.exported(session, request)
            listed: list[dict[str, Any]] = [msgspec.structs.asdict(one) for one in rows]
            return formats.rows(form, listed, len(listed), {}, "duties")
        return self.site.hub_page(
            request,
            session,
            "duties.html",
            title="Duties",
            current="duties",
            query_path="/duties",
            query_hint="Operator, duty or number of the incident",
            rows=clocks(rows, self.node.now()),
            every=len(every),
            city=CITY,
        )


def _text(one: Duty) -> str:
    return f"{one.operator} {one.duty} {one.incident}".casefold()
