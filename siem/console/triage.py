"""Triage: what a person changes about findings, one or many, by forms that need no script."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError
from cityward.finding import SEVERITIES, VERDICTS
from siem.console import formats, timespan
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.findings import Findings
from siem.console.protocol import Cased
from siem.console.site import ROWS_MAX, NodeSite, back_to, see_other
from siem.console.view import View, path_of
from siem.duties import usual
from siem.store.cases import Incident
from siem.store.protocol import Change

ACTS = {
    "take": "Take",
    "progress": "In progress",
    "resolve": "Resolve",
    "suppress": "Suppress",
    "reopen": "Reopen",
    "comment": "Comment",
    "incident": "Incident",
}
"""Word of the form, verb on the button."""

NEW = "new"
"""Opens an incident over the findings."""

UNDO = "undo"
"""Gives back what the person's last act changed."""

FORGOTTEN = ("done", "open", "more")
COMMENT_MAX = 2000


class Triage:
    """Changes findings, and asks for what a change still needs."""

    def __init__(self, site: NodeSite, findings: Findings) -> None:
        self.site = site
        self.node = site.node
        self.findings = findings

    async def change(self, request: Request) -> Response:
        """Take one act over some findings, or show the form that asks for the rest of it."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, form)

    def _change(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter_by_form(request, "triage", text(form, "csrf"))
        as_data = bool(formats.form_of(request))
        act = text(form, "act")
        back = back_to(text(form, "back"), "/findings")
        now = self.node.now()
        if act == UNDO:
            done = self.node.findings.undo(session.person.name, now)
            return self._done(back, act, done, as_data)
        if act not in ACTS:
            raise CitywardError(
                f"no act is called {act[:40]!r}", "act", f"Choose {', '.join(ACTS)}."
            )
        ids = self._ids(form, back)
        missing = _missing(act, form)
        if not as_data and (not ids or missing):
            return self._ask(request, session, form, act=act, ids=ids, back=back, missing=missing)
        if missing or not ids:
            raise CitywardError(missing or "no id is named", act, "Send it with the rest.")
        if act == "incident":
            return self._to_incident(form, ids, session.person.name, now, as_data=as_data)
        change = _change_of(act, form, session.person.name, now)
        done = self.node.findings.change(
            ids, change, session.person.name, now, _revisions(form, ids)
        )
        return self._done(back, act, done, as_data)

    def _to_incident(
        self, form: FormData, ids: Sequence[str], by: str, now: datetime, *, as_data: bool
    ) -> Response:
        """Let findings join an incident, or open one over them."""
        chosen = text(form, "incident")
        if chosen == NEW:
            found = opened(self.node, text(form, "title"), by, now, ids)
        else:
            found = self.node.cases.join(chosen, ids, by, now)
        if as_data:
            return formats.json({"changed": len(ids), "incident": found.id})
        return see_other(path_of("incidents", found.id))

    def _done(self, back: str, act: str, done: int, as_data: bool) -> Response:
        if as_data:
            return formats.json({"changed": done})
        path, _, query = back.partition("?")
        return see_other(_view(path, query).link(drop=FORGOTTEN, done=f"{act}-{done}"))

    def _ids(self, form: FormData, back: str) -> list[str]:
        """Ids of the findings meant: named ones, those of groups, or all of the query."""
        path, _, query = back.partition("?")
        asked = self.findings.ask(_view(path, query), ROWS_MAX)
        store, span = self.node.findings, asked.choice.span
        if text(form, "whole"):
            rows = store.search(asked.query, span, asked.sort, ROWS_MAX).rows
            return [str(row["finding.id"]) for row in rows]
        ids = [str(one) for one in form.getlist("id") if isinstance(one, str) and one]
        for group in form.getlist("group"):
            if isinstance(group, str) and group:
                members = store.members(group, asked.query, span, ROWS_MAX).rows
                ids += [str(row["finding.id"]) for row in members]
        return list(dict.fromkeys(ids))

    def _ask(
        self,
        request: Request,
        session: Session,
        form: FormData,
        *,
        act: str,
        ids: Sequence[str],
        back: str,
        missing: str,
    ) -> Response:
        return self.site.page(
            request,
            session,
            "ask.html",
            title=ACTS[act],
            current="findings",
            act=act,
            verb=ACTS[act],
            ids=ids,
            back=back,
            missing=missing if text(form, "asked") else "",
            form=form,
            verdicts=VERDICTS,
            open_cases=self.node.cases.all(open_only=True) if act == "incident" else (),
        )


def opened(
    node: Cased, title: str, by: str, now: datetime, findings: Sequence[str], **said: Any
) -> Incident:
    """Open an incident over some findings; its severity is their worst, unless one is said."""
    worst = max(
        (str(one.get("finding.severity", "medium")) for one in node.case_findings(findings)),
        key=SEVERITIES.index,
        default="medium",
    )
    said = {"severity": worst, "duties": usual(node.deadlines), **said}
    return node.cases.open(node.operator, title, by, now, findings=findings, **said)


def text(form: FormData, name: str) -> str:
    """A field of a form as text; what is missing or a file is empty."""
    value = form.get(name)
    return value.replace("\x00", "") if isinstance(value, str) else ""


def _view(path: str, query: str) -> View:
    return View(path, tuple(parse_qsl(query)[:100]))


def _revisions(form: FormData, ids: Sequence[str]) -> dict[str, int]:
    """Which revision of a finding was seen: `id=3` for one, or `3` for all that are named.

    Raises:
        CitywardError: it is no number.
    """
    seen: dict[str, int] = {}
    for said in form.getlist("revision"):
        name, _, number = str(said).rpartition("=")
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise CitywardError(
                f"{number[:40]!r} is no revision", "revision", "Send finding.revision as it was."
            )
        seen |= {name: int(number)} if name else dict.fromkeys(ids, int(number))
    return seen


def _missing(act: str, form: FormData) -> str:
    if act == "resolve" and text(form, "verdict") not in VERDICTS[1:]:
        return "Resolving needs a verdict."
    if act == "suppress" and not text(form, "until"):
        return "Suppressing needs an end."
    if act == "incident" and not text(form, "incident"):
        return "Choose an incident, or open one."
    if act == "incident" and text(form, "incident") == NEW and not text(form, "title").strip():
        return "A new incident needs a title."
    if act == "comment" and not text(form, "comment").strip():
        return "The comment is empty."
    return ""


def _change_of(act: str, form: FormData, who: str, now: datetime) -> Change:
    comment = text(form, "comment").strip()[:COMMENT_MAX]
    fields: dict[str, Any] = {
        "take": {"assignee": who},
        "progress": {"status": "in_progress", "assignee": who},
        "resolve": {"status": "resolved", "verdict": text(form, "verdict")},
        "suppress": {"status": "suppressed"},
        "reopen": {"status": "new", "verdict": "unknown"},
        "comment": {},
    }[act]
    if act == "suppress":
        fields["suppressed_until"] = _until(text(form, "until"), now)
    return Change(**fields, comment=comment)


_LONGEST = timedelta(days=366)


def _until(said: str, now: datetime) -> datetime:
    """End of a suppression: a time, or `4h`, `7d` from now.

    Raises:
        CitywardError: It is no time, is past, or lies more than a year ahead.
    """
    number, unit = said[:-1], said[-1:]
    if number.isascii() and number.isdigit() and len(number) < 6 and unit in "hd":
        until = now + timedelta(hours=int(number) * (24 if unit == "d" else 1))
    else:
        until = timespan.moment(said, "until", now)
    if not now < until <= now + _LONGEST:
        raise CitywardError(
            f"suppression until {said[:60]} is past or longer than a year",
            "until",
            "Choose a time within the next year.",
        )
    return until
