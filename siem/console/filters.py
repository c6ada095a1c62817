"""Filters: who hides what, why and until when; and a new one from a finding, in two clicks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError, InputError, Unsafe
from siem.console import formats
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.site import Fault, NodeSite, number_in, see_other
from siem.console.triage import text
from siem.console.tuning import (
    FILTER_DAYS_MAX,
    Examined,
    FilterRow,
    Hidden,
    HideCount,
    HideCounts,
)
from siem.console.view import path_of
from siem.store.protocol import Change, Conflict, Document

DAYS = (7, 30, 90, 365)
DAYS_FIRST = 30
CLOSED = ("resolved", "archived", "deleted")
TICKED = 2
"""So many fields are ticked when the form opens: who, and what."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """The form of a new filter as somebody has filled it in, and what they saw beside it."""

    fields: tuple[str, ...]
    reason: str
    days: int
    resolve: bool
    """Also resolve what it hides."""
    shown: str = ""
    """The mark of the `Look` that was on the page."""
    seen: frozenset[str] = frozenset()
    """Findings there that could be resolved."""

    @classmethod
    def sent(cls, form: FormData) -> Sheet:
        """What a form or a program says."""
        return cls(
            tuple(one for one in form.getlist("field") if isinstance(one, str)),
            text(form, "reason").strip(),
            number_in(text(form, "days"), DAYS_FIRST, 1, FILTER_DAYS_MAX),
            bool(text(form, "resolve")),
            text(form, "shown"),
            frozenset(one for one in form.getlist("open") if isinstance(one, str)),
        )


@dataclass(frozen=True, slots=True)
class Look:
    """What a filter that is not added yet would do."""

    made: str = ""
    """Its text."""
    examined: Examined | None = None
    hidden: Sequence[Hidden] = ()
    mark: str = ""
    """Of all that decides what it hides: whoever adds it says that they saw just this."""
    fault: Fault | None = None

    @property
    def is_refused(self) -> bool:
        """Something speaks against it."""
        return self.examined is not None and bool(self.examined.reasons())

    def problems(self, severity: str) -> list[str]:
        """What is wrong with it, in words."""
        found = self.examined.problems if self.examined else ()
        return [one.what for one in found if one.severity == severity]


class Filters:
    """The pages of filters."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.node = site.node
        self.tuning = site.node.tuning

    def listing(self, request: Request) -> Response:
        """Every filter that is loaded, as a page or for programs."""
        session = self.site.access.enter(request, "rules")
        counts = self.tuning.hide_counts()
        rows = _useless_first(self.tuning.filters(), counts)
        view = self.site.view_of(request)
        if form := formats.form_of(request):
            self.site.exported(session, request)
            listed = [_row(one) | _hides(counts.of.get(one.id)) for one in rows]
            return formats.rows(form, listed, len(rows), {}, "filters")
        return self.site.page(
            request,
            session,
            "filters.html",
            title="Filters",
            current="rules",
            rows=rows,
            counts=counts,
            counted=min((one.time for one in counts.of.values()), default=None),
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
        days = number_in(view.one("days"), DAYS_FIRST, 1, FILTER_DAYS_MAX)
        sheet = Sheet(
            tuple(asked or [*choices][:TICKED]), view.one("reason"), days, bool(view.one("resolve"))
        )
        if formats.form_of(request):
            look = self._look(finding, choices, sheet, session.person.name)
            return formats.json({"choices": choices, "fields": sheet.fields, **_told(look)})
        return self._form(request, session, finding, sheet)

    async def add(self, request: Request) -> Response:
        """Let a filter from a finding count."""
        form = await body_of(request)
        if text(form, "act") == "show" and text(form, "field") and not formats.form_of(request):
            names = ("finding", "field", "reason", "days", "resolve")
            pairs = [(name, value) for name, value in form.multi_items() if name in names]
            return see_other(f"/filters/new?{urlencode(pairs)}")
        return await run_in_threadpool(self._added, request, form)

    def _added(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter_by_form(request, "switch", text(form, "csrf"))
        sheet = Sheet.sent(form)
        if sheet.resolve:
            self.site.access.enter(request, "triage")
        finding = self.node.findings.get(text(form, "finding"))
        if finding is None:
            raise InputError("there is no such finding", "finding", "Name one that is there.")
        is_data = formats.wants_data(request)
        try:
            if not is_data and not sheet.shown:
                raise _changed()
            id = self._add(finding, sheet, session.person.name)
        except CitywardError as error:
            if is_data:
                raise
            return self._form(request, session, finding, sheet, error)
        if is_data:
            return formats.json({"filter": id, "done": "added"})
        return see_other(f"{path_of('filters', id)}?done=added")

    def _add(self, finding: Document, sheet: Sheet, by: str) -> str:
        if not sheet.fields:
            raise InputError("no field is ticked", "field", "Tick who or what is harmless.")
        if not sheet.reason:
            raise InputError("the reason is empty", "reason", "Say why it is harmless.")
        until = self._until(sheet.days)
        _, examined, hidden = self.tuning.filter_of(finding, sheet.fields, sheet.reason, until, by)
        if sheet.shown and sheet.shown != _mark(self.tuning.choices(finding), sheet, examined):
            raise _changed()
        if said := examined.reasons():
            raise Unsafe("; ".join(said[:3]), examined.title, "Tick other fields.")
        self.tuning.add(examined, by, sheet.reason)
        if sheet.resolve:
            change = Change(status="resolved", verdict="benign", comment=sheet.reason)
            ids = [one.finding for one in self._open(hidden)]
            seen = [id for id in ids if id in sheet.seen] if sheet.shown else ids
            self.node.findings.change(seen, change, by, self.node.now())
        return examined.document

    def _form(
        self,
        request: Request,
        session: Session,
        finding: Document,
        sheet: Sheet,
        error: CitywardError | None = None,
    ) -> Response:
        """The form as it is filled in, what it would hide now, and why it was not added."""
        choices = self.tuning.choices(finding)
        look = self._look(finding, choices, sheet, session.person.name)
        if error and not (isinstance(error, Unsafe) and look.is_refused):
            look = replace(look, fault=Fault.of(error))
        return self.site.page(
            request,
            session,
            "filter_new.html",
            formats.status_of(error) if error else 200,
            title="New filter",
            current="rules",
            finding=finding,
            choices=choices,
            filled=sheet,
            every_days=sorted({*DAYS, sheet.days}),
            look=look,
            resolvable=self._open(look.hidden) if session.may("triage") else [],
        )

    def _look(self, finding: Document, choices: Mapping[str, Any], sheet: Sheet, by: str) -> Look:
        if not sheet.fields:
            return Look()
        try:
            made, examined, hidden = self.tuning.filter_of(
                finding, sheet.fields, sheet.reason or "…", self._until(sheet.days), by
            )
        except CitywardError as error:
            return Look(fault=Fault.of(error))
        return Look(made, examined, hidden, _mark(choices, sheet, examined))

    # ---- And back

    async def remove(self, request: Request) -> Response:
        """Take a filter back that was deployed here."""
        form = await body_of(request)
        return await run_in_threadpool(self._removed, request, form)

    def _removed(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter_by_form(request, "switch", text(form, "csrf"))
        id, reason = text(form, "id"), text(form, "reason").strip()
        if not any(one.id == id and one.is_ours for one in self.tuning.filters()):
            what = f"no filter {id[:80]} was deployed here"
            raise InputError(what, "id", "A filter in a file is removed there.")
        self.tuning.revert(id, 0, session.person.name, reason)
        if formats.form_of(request):
            return formats.json({"filter": id, "done": "removed"})
        return see_other("/filters?done=removed")

    def _open(self, hidden: Sequence[Hidden]) -> list[Hidden]:
        """Findings that are hidden whole, and that nobody has judged or closed yet."""
        wholes = [one for one in hidden if one.is_whole and one.verdict == "unknown"]
        known = [(one, self.node.findings.get(one.finding)) for one in wholes]
        return [one for one, now in known if now and now["finding.status"] not in CLOSED]

    def _until(self, days: int) -> date:
        return (self.node.now() + timedelta(days=days)).date()

    def _unknown(self, request: Request, session: Session, what: str) -> Response:
        return self.site.unknown(request, session, "rules", what, "Look in the list of filters.")


def _mark(choices: Mapping[str, Any], sheet: Sheet, examined: Examined) -> str:
    """Whatever decides what is hidden, in few letters: fields, their values, rules."""
    known = [(name, value) for name, value in choices.items() if name in sheet.fields]
    row = examined.row
    decides = msgspec.json.encode([known, row and row.rules, row and row.heard_by])
    return hashlib.sha256(decides).hexdigest()[:16]


def _changed() -> Conflict:
    what = "what it would hide is not what was shown, so nothing was added"
    return Conflict(what, "field", "Look at what it hides now, then add it.")


def _told(look: Look) -> dict[str, Any]:
    """A look for programs."""
    one = look.examined
    return {
        "text": look.made,
        "reasons": one.reasons() if one else [],
        "warnings": look.problems("warning"),
        "hidden": msgspec.to_builtins(look.hidden),
        "silenced": msgspec.to_builtins(one.silenced if one else ()),
        "shown": look.mark,
    }


def _useless_first(rows: Sequence[FilterRow], counts: HideCounts) -> list[FilterRow]:
    """After those that have ended, those that hide nothing: they can go."""

    def rank(row: FilterRow) -> int:
        count = counts.of.get(row.id)
        return 0 if row.is_expired else 1 if count and count.is_useless else 2

    return sorted(rows, key=rank)


def _hides(one: HideCount | None) -> Document:
    """How much a filter hides, for programs; nothing is known of it before it is counted."""
    if one is None:
        return {"hides": None, "hides_days": None, "hides_why": "it is being counted"}
    return {"hides": one.matches, "hides_days": one.days, "hides_why": one.why}


def _row(one: FilterRow) -> Document:
    said = msgspec.to_builtins(one)
    for name in ("rules", "heard_by"):
        said[name] = [{"id": id, "title": title} for id, title in said[name]]
    return dict(said)
