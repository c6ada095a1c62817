"""The audit trail: what people did, and whether anybody has touched the record of it."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from siem.console import formats, timespan
from siem.console.site import PAGE_MAX, ROWS_MAX, Site, number_in
from siem.console.view import PAGE_ROWS
from siem.store.trail import Audited


class Audit:
    """The page of the audit trail."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.node = site.node

    def listing(self, request: Request) -> Response:
        """Who did what, as a page or for programs; with `verify=1` the chain is proved."""
        session = self.site.access.enter(request, "audit")
        form = formats.form_of(request)
        view = self.site.view_of(request)
        choice = timespan.choose(view.one("from") or "all", view.one("to"), self.node.now())
        limit = number_in(view.one("limit"), PAGE_ROWS, 0, ROWS_MAX if form else PAGE_MAX)
        offset = number_in(view.one("offset"), 0, 0, 10_000_000)
        rows, total = self.node.trail(view.one("q"), choice.span, limit, offset)
        proof = self.node.audit_proof() if view.one("verify") else None
        if form:
            self.site.exported(session, request)
            said: dict[str, Any] = {"query": view.one("q"), "limit": limit, "offset": offset}
            if proof:
                said |= {"proof": {"lines": proof.lines, "head": proof.head, "fault": proof.fault}}
            return formats.rows(form, [document(one) for one in rows], total, said, "audit")
        return self.site.page(
            request,
            session,
            "audit.html",
            title="Audit",
            current="audit",
            query_path="/audit",
            query_hint="Person, action or target",
            choice=choice,
            rows=rows,
            total=total,
            limit=limit,
            offset=offset,
            proof=proof,
        )


def document(line: Audited) -> dict[str, Any]:
    """A line as programs read it."""
    return {
        "number": line.number,
        "time": line.time,
        "person": line.by,
        "action": line.action,
        "target": line.about,
        "before": line.before,
        "after": line.after,
        "previous": line.previous,
        "hash": line.hash,
    }
