"""Findings: groups, their members, the finding and why it spoke."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError
from cityward.finding import SEVERITIES, VERDICTS
from playbooks.journal import Run
from playbooks.model import Playbook
from siem.console import formats, timespan
from siem.console.access import Session
from siem.console.columns import columns
from siem.console.site import PAGE_MAX, ROWS_MAX, Fault, NodeSite, number_in, see_other
from siem.console.view import (
    PAGE_ROWS,
    Chip,
    Piece,
    View,
    chart,
    pieces,
    plain,
    query_of,
    shown,
    time_of,
)
from siem.store.protocol import Document, Page, Range

log = logging.getLogger(__name__)

TABS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("open", "Open", ("new", "in_progress")),
    ("new", "New", ("new",)),
    ("in_progress", "In progress", ("in_progress",)),
    ("suppressed", "Suppressed", ("suppressed",)),
    ("resolved", "Resolved", ("resolved",)),
    ("all", "All", ()),
)
"""Word of the address, word on the screen, statuses."""

SORTS = (
    "finding.risk",
    "finding.severity",
    "finding.count",
    "finding.first_seen",
    "finding.last_seen",
)
MEMBERS_SHOWN = 3
RUNS_SHOWN = 10
"""Of playbooks, on the page of a finding."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A list of findings as an address asks for it."""

    view: View
    choice: timespan.Choice
    query: str
    without_status: str
    shift: int
    status: str
    sort: str
    grouped: bool
    limit: int
    offset: int


class Findings:
    """The pages of findings."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.node = site.node

    def listing(self, request: Request) -> Response:
        """Findings or groups of them, as a page or for programs."""
        session = self.site.access.enter(request, "findings")
        form = formats.form_of(request)
        view = self.site.view_of(request)
        if added := added_chip(view):
            return see_other(added)
        try:
            asked = self.ask(view, ROWS_MAX if form else PAGE_MAX)
            page = self.rows(asked)
        except CitywardError as error:
            fault = _fault_of(error, view)
            if form:
                return formats.error(400, fault.what, fault.where, fault.todo)
            return self._page(request, session, view, fault)
        if form:
            self.site.exported(session, request)
            listed = formats.rows(form, page.rows, page.total, _head(asked), "findings")
            return formats.tagged(request, listed, form, page.total, page.rows)
        return self._page(request, session, view, asked=asked, page=page)

    def one(self, request: Request, finding_id: str) -> Response:
        """One finding, as a page or as JSON."""
        session = self.site.access.enter(request, "findings")
        form = formats.form_of(request)
        document = self.node.findings.get(finding_id)
        if document is None:
            what = f"no finding has the id {finding_id[:80]}"
            todo = "Look in the list; findings are kept for a year."
            return self.site.unknown(request, session, "findings", what, todo)
        if form:
            return formats.json({**document, "events": self.node.findings.events_of(finding_id)})
        view = View("/findings", self.site.view_of(request).pairs)
        return self.site.page(
            request,
            session,
            "finding.html",
            title=str(document.get("finding.title", "Finding")),
            current="findings",
            finding=self.detail(document),
            view=view,
            verdicts=VERDICTS,
            notice=notice_of(view),
            undoable=self._undoable(session, view),
            fitting=self._fitting(session, document),
            runs=self._runs(session, finding_id),
        )

    def _fitting(self, session: Session, document: Document) -> Sequence[Playbook]:
        """Playbooks whose trigger holds, for whoever may see them."""
        try:
            return self.node.response.fitting(document) if session.may("playbooks") else ()
        except CitywardError as error:
            # What is wrong with the settings says the page of playbooks.
            log.warning("Playbooks cannot be read: %s.", error.what)
            return ()

    def _runs(self, session: Session, finding_id: str) -> Sequence[Run]:
        """What playbooks did about it, the newest first."""
        if not session.may("playbooks"):
            return ()
        return self.node.response.runs.all(finding=finding_id, limit=RUNS_SHOWN)

    def _undoable(self, session: Session, view: View) -> int:
        """How many findings the notice of the last act offers to give back."""
        if not notice_of(view) or view.one("done").startswith("undo"):
            return 0
        return self.node.findings.undoable(session.person.name, self.node.now())

    def ask(self, view: View, limit_max: int) -> Asked:
        """Read what an address asks for.

        Raises:
            CitywardError: A word of the address is not known.
        """
        status = view.one("status", "open")
        statuses = {name: wanted for name, _, wanted in TABS}
        sort = view.one("sort", "-finding.risk")
        if status not in statuses:
            raise CitywardError(
                f"no status is called {status[:40]!r}", "status", f"Write {', '.join(statuses)}."
            )
        if sort.removeprefix("-") not in SORTS:
            raise CitywardError(
                f"the list cannot be sorted by {sort[:60]!r}", "sort", f"Write {', '.join(SORTS)}."
            )
        query, shift = query_of(view, _status_query(statuses[status]))
        return Asked(
            view=view,
            choice=timespan.choose(view.one("from"), view.one("to"), self.node.now()),
            query=query,
            without_status=query_of(view)[0],
            shift=shift,
            status=status,
            sort=sort,
            grouped=view.one("group", "rule") != "none",
            limit=number_in(view.one("limit"), PAGE_ROWS, 0, limit_max),
            offset=number_in(view.one("offset"), 0, 0, 1_000_000),
        )

    def rows(self, asked: Asked) -> Page:
        """The rows that both a page and a program get."""
        read = self.node.findings.groups if asked.grouped else self.node.findings.search
        return read(asked.query, asked.choice.span, asked.sort, asked.limit, asked.offset)

    def detail(self, document: Document) -> dict[str, Any]:
        """All that panel and page say of a finding."""
        finding_id = str(document["finding.id"])
        events = list(self.node.findings.events_of(finding_id))
        related = list(self.node.findings.related(finding_id))
        why = why_of(document)
        return {
            "doc": document,
            "id": finding_id,
            "sentence": pieces(str(document.get("finding.description", "")), document),
            "why": why,
            "is_model": document.get("cw.analytic.type") == "model",
            "logic": logic(why),
            "sections": sections(why["checks"]),
            "terms": terms(why["checks"]),
            "asset": asset_of(document),
            "events": events,
            "event_columns": columns(events),
            "entities": entities(document),
            "related": related,
            "history": history_of(document),
            "evidence": evidence_of(document),
            "classified": classified(document),
            "hunt": hunt_link(document),
        }

    def _page(
        self,
        request: Request,
        session: Session,
        view: View,
        fault: Fault | None = None,
        *,
        asked: Asked | None = None,
        page: Page | None = None,
    ) -> Response:
        context: dict[str, Any] = {"asked": asked, "page": page, "fault": fault}
        if asked and page:
            context |= self._around(asked, page)
        return self.site.page(
            request,
            session,
            "findings.html",
            400 if fault else 200,
            title="Findings",
            current="findings",
            view=view,
            choice=asked.choice if asked else None,
            tabs=TABS,
            verdicts=VERDICTS,
            severities=tuple(reversed(SEVERITIES)),
            notice=notice_of(view),
            undoable=self._undoable(session, view),
            **context,
        )

    def _around(self, asked: Asked, page: Page) -> dict[str, Any]:
        span = asked.choice.span
        counts = self.node.findings.counts(asked.without_status, span)
        opened = asked.view.all("open")[:20]
        selected, chosen = self._selected(asked)
        histogram = self.node.findings.histogram(asked.query, asked.choice.drawn, 48)
        return {
            "counts": {
                name: sum(counts.get(one, 0) for one in wanted) if wanted else sum(counts.values())
                for name, _, wanted in TABS
            },
            "chart": chart(histogram, asked.choice.drawn, SEVERITIES[::-1]),
            "members": {group: self._members(asked, group) for group in opened},
            "selected": selected,
            "chosen": chosen,
            "empty": None if page.rows else self._why_empty(asked),
        }

    def _members(self, asked: Asked, group: str) -> Page:
        limit = 200 if group in asked.view.all("more") else MEMBERS_SHOWN
        return self.node.findings.members(group, asked.query, asked.choice.span, limit)

    def _selected(self, asked: Asked) -> tuple[dict[str, Any] | None, str]:
        """The finding in the panel, and the id of the row that is marked."""
        if finding_id := asked.view.one("id"):
            document = self.node.findings.get(finding_id)
            return (self.detail(document) if document else None), finding_id
        if group := asked.view.one("g"):
            found = self.node.findings.members(group, asked.query, asked.choice.span, 200).rows
            worst = max(found, key=lambda one: one.get("finding.risk") or 0, default=None)
            return (self.detail(worst) if worst else None), group
        return None, ""

    def _why_empty(self, asked: Asked) -> dict[str, Any]:
        """Which of the four empty states it is, and the way out."""
        findings, span = self.node.findings, asked.choice.span
        if sum(findings.counts("", span).values()):
            for chip in asked.view.chips:
                rest = View("", tuple(p for p in asked.view.pairs if p != ("f", chip.text)))
                without = query_of(
                    rest, _status_query({name: wanted for name, _, wanted in TABS}[asked.status])
                )
                if total := findings.search(without[0], span, limit=1).total:
                    return {"kind": "match", "chip": chip, "total": total}
            return {"kind": "match", "chip": None, "total": sum(findings.counts("", span).values())}
        newest = findings.search("", Range(), "-finding.last_seen", limit=1).rows
        if newest:
            return {"kind": "range", "newest": newest[0].get("finding.last_seen")}
        return {"kind": "none", "sources": len(self.node.sources())}


def _fault_of(error: CitywardError, view: View) -> Fault:
    more = "" if view.one("status") == "all" else "x"
    return Fault.of(error, view.one("q"), query_of(view, more)[1])


def _status_query(statuses: Sequence[str]) -> str:
    said = " OR ".join(f"finding.status:{one}" for one in statuses)
    return f"({said})" if len(statuses) > 1 else said


def _head(asked: Asked) -> dict[str, Any]:
    return {
        "query": asked.query,
        "from": timespan.word(asked.choice.span.since),
        "to": timespan.word(asked.choice.span.until),
        "group": "rule" if asked.grouped else "none",
        "sort": asked.sort,
        "limit": asked.limit,
        "offset": asked.offset,
    }


def added_chip(view: View) -> str:
    """Where the small form "+ Filter" leads: the view with its chip; empty if it was not sent."""
    field = view.one("add_field").strip()
    if not field:
        return ""
    sign = "-" if view.one("add_not") else ""
    chip = Chip.read(f"{sign}{field}:{view.one('add_value').strip()}")
    rest = View(view.path, tuple(p for p in view.pairs if not p[0].startswith("add_")))
    return rest.adding(chip) if chip else rest.link()


_DONE = {
    "take": "{} taken by you.",
    "progress": "{} in progress.",
    "resolve": "Resolved {}.",
    "suppress": "Suppressed {}.",
    "reopen": "Reopened {}.",
    "comment": "Comment kept with {}.",
    "undo": "{} as before.",
}


def notice_of(view: View) -> str:
    """What the last act did, from its short word in the address."""
    act, _, count = view.one("done").partition("-")
    if act not in _DONE or not count.isdecimal() or len(count) > 9:
        return ""
    named = "1 finding" if count == "1" else f"{int(count):,} findings"
    return _DONE[act].format(named)


def why_of(document: Document) -> dict[str, Any]:
    """The proof behind the sentence; an empty one if the document has none."""
    why = document.get("why") or document.get("cw.why") or {}
    if not isinstance(why, Mapping):
        why = {}
    checks = [check for check in why.get("checks") or () if isinstance(check, Mapping)]
    return {
        "condition": why.get("condition") or "",
        "checks": checks,
        "score": why.get("score"),
        "threshold": why.get("threshold"),
        "unit": why.get("unit") or "",
    }


def logic(why: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """The condition in parts; True marks the name of a selection."""
    names = {str(check.get("selection", "")) for check in why["checks"]}
    parts = re.split(r"([\w*%.-]+)", shown(why["condition"])[:2000])
    return [(part in names and bool(part), part) for part in parts if part]


def sections(checks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The walk of a rule by selection, each with its result in words."""
    made = []
    for name, group in groupby(checks, key=lambda check: check.get("selection", "")):
        members = list(group)
        held = sum(bool(check.get("held")) for check in members)
        negated = bool(members[0].get("negated"))
        if held == len(members):
            result = "both held" if held == 2 else "held" if held == 1 else f"all {held} held"
        elif held and not negated:
            result = f"{held} of {len(members)} held"
        else:
            result = "did not hold, as wanted" if negated else "did not hold"
        made.append({"name": name, "negated": negated, "result": result, "checks": members})
    return made


def terms(checks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The terms of a model, largest first, with their share of the largest."""
    measured = [check for check in checks if isinstance(check.get("bits"), int | float)]
    measured.sort(key=lambda check: -float(check["bits"]))
    top = max((float(check["bits"]) for check in measured), default=1.0) or 1.0
    return [
        {**check, "width": f"{max(0.0, 100 * float(check['bits']) / top):.0f}%"}
        for check in measured
    ]


_ASSET = (
    ("What", "cw.asset.name"),
    ("Type", "cw.asset.type"),
    ("NodeSite", "cw.site"),
    ("Zone", "cw.asset.zone"),
    ("Purdue level", "cw.asset.purdue"),
    ("Criticality", "cw.asset.criticality"),
    ("Essential", "cw.asset.essential_function"),
    ("Serves", "cw.asset.serves"),
    ("Spare", "cw.asset.redundancy_group"),
)


def asset_of(document: Document) -> list[tuple[str, str, Any]]:
    """Label, field and value of what is known of the affected asset."""
    known = [(label, name, document.get(name)) for label, name in _ASSET]
    return [(label, name, value) for label, name, value in known if value not in (None, "", [])]


_CLASSES = (
    ("Technique", "threat.technique.id"),
    ("Tactic", "threat.tactic.id"),
    ("Framework", "threat.framework"),
    ("Type", "finding.type"),
    ("Category", "finding.category"),
    ("Cause", "finding.cause"),
    ("Impact", "finding.impact"),
    ("Confidence", "finding.confidence"),
    ("Verdict", "finding.verdict"),
    ("Tags", "tags"),
    ("Rule", "rule.name"),
    ("Author", "rule.author"),
    ("Licence", "rule.license"),
    ("Revision", "finding.revision"),
)


_ENTITIES = ("source.", "destination.", "host.", "user.", "ot.", "phys.", "url.", "process.")


def entities(document: Document) -> list[tuple[str, Any]]:
    """Key entities and values of the deciding event."""
    return [
        (name, value)
        for name, value in sorted(document.items())
        if name.startswith(_ENTITIES) and isinstance(value, str | int | float) and value != ""
    ][:24]


def classified(document: Document) -> list[tuple[str, str, list[Any]]]:
    """Label, field and values of the classification."""
    made = []
    for label, name in _CLASSES:
        value = document.get(name)
        values = value if isinstance(value, list | tuple) else [value]
        values = [one for one in values if one not in (None, "")]
        if values:
            made.append((label, name, list(values)))
    return made


def history_of(document: Document) -> list[dict[str, Any]]:
    """Who did what when, newest first."""
    entries = [one for one in document.get("cw.history") or () if isinstance(one, Mapping)]
    made = [
        {
            "time": time_of(one.get("time") or one.get("when")),
            "by": one.get("by") or one.get("who") or "",
            "what": one.get("what") or one.get("action") or "",
            "why": one.get("why") or one.get("comment") or "",
        }
        for one in entries
    ]
    return made[::-1][:200]


def evidence_of(document: Document) -> list[Mapping[str, Any]]:
    """Evidence entries that can be shown."""
    return [one for one in document.get("cw.evidence") or () if isinstance(one, Mapping)][:50]


def hunt_link(document: Document) -> dict[str, str]:
    """Addresses of Hunt around a finding: its entities, and five minutes around its last event."""
    first = time_of(document.get("finding.first_seen"))
    last = time_of(document.get("finding.last_seen"))
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return {"own": "/hunt", "around": "/hunt"}
    chips = [
        Chip(name, plain(document[name])).text
        for name in ("source.ip", "destination.ip", "host.name", "user.name")
        if document.get(name)
    ]
    own = View("/hunt", tuple(("f", chip) for chip in chips))
    minute, five = timedelta(minutes=1), timedelta(minutes=5)
    return {
        "own": own.link(from_=timespan.word(first - minute), to=timespan.word(last + minute)),
        "around": View("/hunt", ()).link(
            from_=timespan.word(last - five), to=timespan.word(last + five)
        ),
    }


__all__ = ["Findings", "Piece", "added_chip", "notice_of"]
