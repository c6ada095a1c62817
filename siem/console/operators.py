"""Operators: how each is linked to the hub, what it sent and what it took back."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from siem.city.known import Link
from siem.console import formats
from siem.console.city_site import CitySite, silent_s
from siem.console.view import View, ago

GLYPHS = {"linked": "running", "silent": "risk", "waiting": "degraded", "revoked": "blind"}
"""Glyph of a link's state."""
ORDER = ("silent", "waiting", "linked", "revoked")
"""Trouble first."""
ENDS_SOON = timedelta(days=7)
"""A certificate that has not been renewed by then needs somebody: nodes renew at two thirds."""


class Operators:
    """The pages of operators."""

    def __init__(self, site: CitySite) -> None:
        self.site = site
        self.node = site.node

    def listing(self, request: Request) -> Response:
        """Operators and how they are linked, as a page or for programs."""
        session = self.site.access.enter(request, "operators")
        form = formats.form_of(request)
        view = self.site.view_of(request)
        words = view.one("q").lower().split()
        every = self.site.links()
        rows = [one for one in every if all(word in _text(one) for word in words)]
        rows.sort(key=lambda one: (ORDER.index(one.state), one.operator))
        if form:
            self.site.exported(session, request)
            return formats.rows(form, [document(one) for one in rows], len(rows), {}, "operators")
        now = self.node.now()
        return self.site.hub_page(
            request,
            session,
            "operators.html",
            title="Operators",
            current="operators",
            query_path="/operators",
            query_hint="Operator, sector or state",
            rows=rows,
            every=len(every),
            glyphs=GLYPHS,
            heard={one.operator: silent_s(one, now) for one in rows},
            ends_soon=now + ENDS_SOON,
            facts=self.node.facts(),
        )

    def one(self, request: Request, name: str) -> Response:
        """One operator, as a page or as JSON."""
        session = self.site.access.enter(request, "operators")
        form = formats.form_of(request)
        found = next((one for one in self.site.links() if one.operator == name), None)
        if found is None:
            what, todo = f"no operator is called {name[:80]}", "Look in the list of operators."
            return self.site.unknown(request, session, "operators", what, todo)
        if form:
            return formats.json(document(found))
        now = self.node.now()
        services = [one for one in self.node.town.services if one.operator == name]
        return self.site.hub_page(
            request,
            session,
            "operator.html",
            title=name,
            current="operators",
            link=found,
            glyph=GLYPHS[found.state],
            sections=sections(found, now),
            services=services,
            may_see_shares=session.may("shared"),
            shares_link=View("/shared", (("from", "all"),)).link(q=f'cw.operator:"{name}"'),
        )


def sections(link: Link, now: datetime) -> list[tuple[str, list[tuple[str, Any]]]]:
    """What is known of a link, in groups of label and value."""
    silent = silent_s(link, now)
    until = link.certificate_until
    return [
        (
            "Link",
            [
                ("State", link.state),
                ("Last heartbeat", f"{ago(silent)} ago" if silent is not None else "never"),
                ("Enrolled", link.enrolled),
                ("Certificate ends", f"in {ago((until - now).total_seconds())}" if until else None),
                ("Software", link.version),
            ],
        ),
        (
            "What came",
            [
                ("Last envelope", f"number {link.seq:,}"),
                ("Sequence gaps", f"{link.gaps:,}"),
                ("Refused", f"{link.refused:,}"),
                ("Shares", f"{link.shares:,}"),
                ("Withdrawals", f"{link.withdrawals:,}"),
                ("Waits there", f"{link.waiting:,}, the oldest {ago(link.lag_s)}"),
            ],
        ),
        (
            "What it runs by",
            [
                ("Rule set", link.rules),
                ("Policy", link.policy),
                ("Ledger head", link.ledger_head),
                ("Countersigned", link.countersigned),
            ],
        ),
    ]


def document(link: Link) -> dict[str, Any]:
    """A link as programs read it."""
    return msgspec.structs.asdict(link) | {"lost": [msgspec.to_builtins(one) for one in link.lost]}


def _text(link: Link) -> str:
    return " ".join((link.operator, link.name, link.sector, link.state)).lower()
