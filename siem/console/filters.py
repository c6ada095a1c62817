"""Filters: who hides what, why and until when; and a new one from a finding, in two clicks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError, InputError
from siem.console import formats
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.site import Fault, NodeSite, number_in, see_other
from siem.console.triage import text
from siem.console.tuning import FilterRow, Hidden
from siem.console.view import path_of
from siem.store.protocol import Change, Document

DAYS = (7, 30, 90, 365)
DAYS_FIRST = 30
CLOSED = ("resolved", "archived", "deleted")
TICKED = 2
"""So many fields are ticked when the form opens: who, and what."""


class Filters:
    """The pages of filters."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.node = site.node
        self.tuning = site.node.tuning

    def listing(self, request: Request) -> Response:
        """Every filter that is loaded, as a page or for programs."""
        session = self.site.access.enter(request, "rules")
        rows = self.tuning.filters()
        view = self.site.view_of(request)
        if form := formats.form_of(request):
            self.site.exported(session, request)
            return formats.rows(form, [_row(one) for one in rows], len(rows), {}, "filters")
        return self.site.page(
            request,
            session,
            "filters.html",
            title="Filters",
            current="rules",
            rows=rows,
            notice=view.one("done"),
        )

    def one(self, request: Request, filter_id: str) -> Response:
        """What a filter says, and what it has hidden in the last 30 days."""
        session = self.site.access.enter(request, "rules")
        row = next((one for one in self.tuning.filters() if one.id == filter_id), None)
        if row is None:
            return self._unknown(request, session, f"no filter has the id {filter_id[:80]}")
        source, hidden = self.tuning.source(filter_id), self.tuning.filter_hides(filter_id)
        if formats.form_of(request):
            said = {"text": source.counts if source else "", "hidden": msgspec.to_builtins(hidden)}
            return formats.json(_row(row) | said)
        return self.site.page(
            request,
            session,
            "filter.html",
            title=row.title,
            current="rules",
            row=row,
            lines=(source.counts if source else "").splitlines(),
            hidden=hidden,
            history=self.tuning.history(filter_id),
            notice=self.site.view_of(request).one("done"),
        )

    # ---- A new one

    def new(self, request: Request) -> Response:
        """The form for a filter from a finding, with what it would have hidden."""
        session = self.site.access.enter(request, "switch")
        view = self.site.view_of(request)
        id = view.one("finding")
        finding = self.node.findings.get(id) if session.may("findings") else None
        if finding is None:
            return self._unknown(request, session, f"no finding {id[:80]}, or it is not for you")
        choices = self.tuning.choices(finding)
        asked = [one for one in view.all("field") if one in choices]
        fields = asked or [*choices][:TICKED]
        days = number_in(view.one("days"), DAYS_FIRST, 1, max(DAYS))
        said: dict[str, Any] = {"text": "", "reasons": [], "hidden": [], "silenced": []}
        fault = None
        try:
            made, examined, hidden = self.tuning.filter_of(
                finding, fields, view.one("reason") or "…", self._until(days), session.person.name
            )
            said = {
                "text": made,
                "reasons": examined.reasons(),
                "hidden": hidden,
                "silenced": examined.silenced,
            }
        except CitywardError as error:
            fault = Fault.of(error)
        if formats.form_of(request):
            rest = {name: msgspec.to_builtins(value) for name, value in said.items()}
            return formats.json({"choices": choices, "fields": fields, **rest})
        return self.site.page(
            request,
            session,
            "filter_new.html",
            title="New filter",
            current="rules",
            finding=finding,
            choices=choices,
            fields=fields,
            reason=view.one("reason"),
            days=days,
            every_days=DAYS,
            fault=fault,
            lines=said["text"].splitlines(),
            reasons=said["reasons"],
            hidden=said["hidden"],
            resolvable=len(self._open(said["hidden"])) if session.may("triage") else 0,
            silenced=said["silenced"],
        )

    async def add(self, request: Request) -> Response:
        """Let a filter from a finding count."""
        form = await body_of(request)
        if text(form, "act") == "show" and not formats.form_of(request):
            names = ("finding", "field", "reason", "days")
            pairs = [(name, value) for name, value in form.multi_items() if name in names]
            return see_other(f"/filters/new?{urlencode(pairs)}")
        return await run_in_threadpool(self._changed, request, form, self._add)

    async def remove(self, request: Request) -> Response:
        """Take a filter back that was deployed here."""
        form = await body_of(request)
        return await run_in_threadpool(self._changed, request, form, self._remove)

    def _changed(self, request: Request, form: FormData, change: Any) -> Response:
        session = self.site.access.enter_by_form(request, "switch", text(form, "csrf"))
        if text(form, "resolve"):
            self.site.access.enter(request, "triage")
        id, done = change(form, session.person.name)
        if formats.form_of(request):
            return formats.json({"filter": id, "done": done})
        return see_other(f"{path_of('filters', id)}?done={done}" if done == "added" else
                         f"/filters?done={done}")  # fmt: skip

    def _add(self, form: FormData, by: str) -> tuple[str, str]:
        finding = self.node.findings.get(text(form, "finding"))
        if finding is None:
            raise InputError("there is no such finding", "finding", "Name one that is there.")
        fields = [one for one in form.getlist("field") if isinstance(one, str)]
        reason = text(form, "reason").strip()
        if not reason:
            raise InputError("the reason is empty", "reason", "Say why it is harmless.")
        if not fields:
            raise InputError("no field is ticked", "field", "Tick who or what is harmless.")
        days = number_in(text(form, "days"), DAYS_FIRST, 1, max(DAYS))
        until = self._until(days)
        made, examined, hidden = self.tuning.filter_of(finding, fields, reason, until, by)
        self.tuning.deploy(made, "", by, reason, 0)
        if text(form, "resolve"):
            change = Change(status="resolved", verdict="benign", comment=reason)
            ids = [one.finding for one in self._open(hidden)]
            self.node.findings.change(ids, change, by, self.node.now())
        return examined.document, "added"

    def _open(self, hidden: Sequence[Hidden]) -> list[Hidden]:
        """Findings that are hidden whole, and that nobody has judged or closed yet."""
        wholes = [one for one in hidden if one.is_whole and one.verdict == "unknown"]
        known = [(one, self.node.findings.get(one.finding)) for one in wholes]
        return [one for one, now in known if now and now["finding.status"] not in CLOSED]

    def _remove(self, form: FormData, by: str) -> tuple[str, str]:
        id, reason = text(form, "id"), text(form, "reason").strip()
        if not any(one.id == id and one.is_ours for one in self.tuning.filters()):
            what = f"no filter {id[:80]} was deployed here"
            raise InputError(what, "id", "A filter in a file is removed there.")
        self.tuning.revert(id, 0, by, reason)
        return id, "removed"

    def _until(self, days: int) -> date:
        return (self.node.now() + timedelta(days=days)).date()

    def _unknown(self, request: Request, session: Session, what: str) -> Response:
        return self.site.unknown(request, session, "rules", what, "Look in the list of filters.")


def _row(one: FilterRow) -> Document:
    rules: Sequence[Mapping[str, str]] = [{"id": id, "title": title} for id, title in one.rules]
    return {**msgspec.to_builtins(one), "rules": rules}
