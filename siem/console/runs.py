"""Runs: what playbooks did and do, the newest first."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from siem.console import formats
from siem.console.responses import RUN_GLYPHS, Responses, run_row
from siem.console.site import number_in

ROWS, ROWS_MAX = 50, 200


class Runs(Responses):
    """The list of runs."""

    def listing(self, request: Request) -> Response:
        """Every run with its state and what of it is in force, as a page or for programs."""
        session = self.site.access.enter(request, "playbooks")
        view = self.site.view_of(request)
        limit = number_in(view.one("limit"), ROWS, 1, ROWS_MAX)
        offset = number_in(view.one("offset"), 0, 0, 1_000_000)
        # One more than is shown tells whether there are more.
        found = self.responder.runs.all(limit=limit + 1, offset=offset)
        rows = [run_row(one) for one in found[:limit]]
        if form := formats.form_of(request):
            self.site.exported(session, request)
            return formats.rows(form, rows, offset + len(found), {}, "runs")
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
            more=len(found) > limit,
        )
