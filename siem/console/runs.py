"""Runs: what playbooks did and do, the newest first."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from siem.console import formats
from siem.console.responses import RUN_GLYPHS, Responses, run_row
from siem.console.site import PAGE_MAX, ROWS_MAX, number_in
from siem.console.view import PAGE_ROWS


class Runs(Responses):
    """The list of runs."""

    def listing(self, request: Request) -> Response:
        """Every run with its state and what of it is in force, as a page or for programs."""
        session = self.site.access.enter(request, "playbooks")
        view = self.site.view_of(request)
        form, runs = formats.form_of(request), self.responder.runs
        limit = number_in(view.one("limit"), PAGE_ROWS, 1, ROWS_MAX if form else PAGE_MAX)
        offset = number_in(view.one("offset"), 0, 0, 1_000_000)
        total = sum(runs.counts().values())
        rows = [run_row(one) for one in runs.all(limit=limit, offset=offset)]
        if form:
            self.site.exported(session, request)
            return formats.rows(form, rows, total, {"offset": offset, "limit": limit}, "runs")
        return self.page(
            request,
            session,
            "runs.html",
            title="Runs",
            current="playbooks",
            rows=rows,
            glyphs=RUN_GLYPHS,
            offset=offset,
            limit=limit,
            more=offset + limit < total,
        )
