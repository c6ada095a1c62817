"""The rule workbench: a rule is written, checked, tried, previewed and deployed on one page.

The page is one form that holds the texts; every button sends it whole, and the answer holds what
was sent. So nothing is lost by a fault, and a script only sends sooner and takes what it needs of
the answer (`static/workbench.js`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from itertools import zip_longest
from typing import Any, NamedTuple

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError, InputError, RuleError, Unsafe
from cityward.finding import Check
from siem.console import formats, timespan
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.findings import logic, sections
from siem.console.site import Fault, NodeSite, number_in, see_other
from siem.console.triage import text
from siem.console.tuning import PREVIEW_DAYS, Examined, FilterRow, Job, Source, Tried
from siem.console.view import Chart, View, chart, path_of, query_of, time_of
from siem.store.protocol import Conflict, Document, Range
from siem.store.query import quoted
from siem.store.rulebook import Draft, Version, id_in, note_in, overtaken

DAYS_FIRST = 30
VERSIONS_SHOWN = NOTES_SHOWN = 20
DIGITS_MAX = 18
"""Of the number of a version."""
DIFF_MAX = 2_000
"""Longer texts are not compared line by line: that takes the square of their length."""
ASSETS_SHOWN = 12
JUDGED_MAX = 500
"""Judged findings of a rule, newest first, among which the last of each asset is looked up."""
NAMES = ("cw.asset.asset_id", "host.name", "destination.ip", "source.ip", "observer.name")
"""What a preview may call an asset."""
FIELDS_SHOWN = 60
KINDS = ("same", "new", "gone")
BY_TEXT = ("save", "deploy")
"""Acts on the document that the text names."""
READING, KEPT = ("preview", "look", "cancel", "why"), "hunt"
"""Acts whose answers tell of events that are kept, and the part that these are of: a program that
may only tune is told nothing of them."""
DONE = {
    "saved": "The draft is kept; it changes nothing yet.",
    "discarded": "The draft is forgotten.",
    "noted": "The note is kept.",
    "checked": "It is checked; nothing has changed.",
    "ready": "It is checked; nothing has changed before you press Let it count.",
    "deployed": "It counts; the node takes it up within a second.",
    "reverted": "The older version counts again.",
    "taken-back": "What was deployed is taken back; its file counts again.",
}


class Mark(NamedTuple):
    """What stands in the margin of a line; 0: of the whole text."""

    line: int
    severity: str
    what: str


class Condition(NamedTuple):
    """What a change needs before it may count."""

    held: bool
    words: str


@dataclass(frozen=True, slots=True)
class Theirs:
    """What somebody else deployed or saved meanwhile, beside what stands in the editor."""

    what: str
    document: str
    """Its id; a text may name another one than the address of the page."""
    by: str
    time: datetime
    reason: str
    text: str
    samples: str
    change: Sequence[tuple[str, str]]
    """From their text to the one in the editor."""
    samples_change: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a person has before them: the texts, and what else the form holds."""

    text: str
    samples: str
    seen: int
    """Number of the version that they saw; 0: the file."""
    draft: str = ""
    """When the draft that they saw was saved; empty: they saw none."""
    line: str = ""
    collector: str = ""
    days: int = DAYS_FIRST
    job: str = ""
    event: str = ""
    """Id and time of the event of a preview that is explained."""
    reason: str = ""
    back: str = ""
    """Why they go back to an older version."""
    note: str = ""
    says_seen: bool = True
    """False: a program that keeps a draft without a word of what it saw."""

    @property
    def draft_seen(self) -> datetime | None:
        """When the draft that they saw was saved."""
        time = time_of(self.draft)
        return time if isinstance(time, datetime) else None

    @classmethod
    def sent(cls, form: FormData) -> Sheet:
        """What a form holds; browsers end lines with two characters (HTML, 4.10.21.4)."""
        return cls(
            _lines(text(form, "text")),
            _lines(text(form, "samples")),
            number_in(text(form, "seen"), 0, 0, 1 << 53),
            text(form, "draft")[:40],
            _lines(text(form, "line")),
            text(form, "collector")[:80],
            number_in(text(form, "days"), DAYS_FIRST, 1, max(PREVIEW_DAYS)),
            text(form, "job")[:40],
            text(form, "event")[:200],
            text(form, "reason").strip(),
            text(form, "back_reason").strip(),
            _lines(text(form, "note")).strip(),
            "seen" in form,
        )


@dataclass(frozen=True, slots=True)
class Shown:
    """What came of it."""

    fault: Fault | None = None
    theirs: Sequence[Theirs] = ()
    examined: Examined | None = None
    marks: Sequence[Mark] = ()
    unnoticed: Sequence[str] | None = None
    """Lines that no sample misses; None: that was not asked."""
    tried: Sequence[Tried] = ()
    told: Tried | None = None
    """The event that is explained."""
    job: Job | None = None
    status: int = 200
    done: str = ""
    is_asked: bool = False
    """Whether it may count is the next question."""
    said: Mapping[str, Any] = field(default_factory=dict)
    """The answer for programs."""


class Workbench:
    """The page of a document that is worked on."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.node = site.node
        self.tuning = site.node.tuning
        self._acts: Mapping[str, Callable[[str, Sheet, str], Shown]] = {
            "check": self._check,
            "enter": self._enter,
            "note": self._note,
            "prove": self._prove,
            "try": self._try,
            "preview": self._preview,
            "look": self._look,
            "cancel": self._cancel,
            "why": self._why,
        }
        self._changes: Mapping[str, Callable[[str, Sheet, str], tuple[str, dict[str, Any]]]] = {
            "save": self._save,
            "discard": self._discard,
            "deploy": self._deploy,
        }
        """What leaves the page: a note that was typed is kept along."""

    def new(self, request: Request) -> Response:
        """A rule to begin with: a blank one, or what a query on events asks for."""
        session = self.site.access.enter(request, "switch")
        view = self.site.view_of(request)
        try:
            source = self._hunted(request, view) if query_of(view)[0] else self.tuning.blank()
        except CitywardError as error:
            if formats.form_of(request):
                raise
            source, fault = self.tuning.blank(), Fault.of(error)
            shown = replace(self._check_of(source), fault=fault, status=400)
            return self._page(request, session, source, _begin(source, None), shown)
        if formats.form_of(request):
            return formats.json(_told(source, None))
        return self._page(request, session, source, _begin(source, None), self._check_of(source))

    def _hunted(self, request: Request, view: View) -> Source:
        """What the query of a hunt asks for, with the newest event that it finds as a sample."""
        by = self.site.access.enter(request, KEPT).person.name
        query = query_of(view)[0]
        span = timespan.choose(view.one("from"), view.one("to"), self.node.now()).span
        found = self.node.events.search(query, span, limit=1).rows
        if not found:
            what = "no event of this time matches the query"
            raise InputError(what, "query", "Hunt until it finds what the rule is to find.")
        return self.tuning.rule_of(query, found[0], by)

    def edit(self, request: Request, rule_id: str) -> Response:
        """A rule, correlation, absence or filter with its samples, drafts and versions."""
        session = self.site.access.enter(request, "switch")
        source = self.tuning.source(rule_id)
        if source is None:
            what = f"no rule has the id {rule_id[:80]}"
            return self.site.unknown(request, session, "rules", what, "Look in the list of rules.")
        view = self.site.view_of(request)
        draft = self.tuning.draft(rule_id)
        if formats.form_of(request):
            if view.one("job"):
                self.site.access.enter(request, KEPT)
            if job := self._job_of(rule_id, view.one("job")):
                return formats.json(_job(job))
            history = [_version(one) for one in self.tuning.history(rule_id)]
            notes = msgspec.to_builtins(self.tuning.notes(rule_id))
            return formats.json(_told(source, draft) | {"history": history, "notes": notes})
        shown = replace(self._check_of(source), done=DONE.get(view.one("done"), ""))
        return self._page(request, session, source, _begin(source, draft), shown)

    async def change(self, request: Request, rule_id: str) -> Response:
        """Check, try or preview what is sent, keep it as a draft, or let it count."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, rule_id, form)

    async def revert(self, request: Request, rule_id: str) -> Response:
        """Go back to an older version, with a reason; to version 0: to the file."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, rule_id, form, "revert")

    def _change(self, request: Request, rule_id: str, form: FormData, act: str = "") -> Response:
        session = self.site.access.enter_by_form(request, "switch", text(form, "csrf"))
        by, sheet, is_data = session.person.name, Sheet.sent(form), bool(formats.form_of(request))
        act = act or text(form, "act") or "check"
        if act.startswith("why "):  # a button has one value
            act, sheet = "why", replace(sheet, event=act.removeprefix("why ")[:200])
        if act in READING:
            self.site.access.enter(request, KEPT)
        try:
            if sheet.note and (act == "revert" or act in self._changes):
                note_in(sheet.note)  # what cannot be kept along is told before anything counts
            if act == "revert":
                return self._done(request, sheet, by, *self._revert(rule_id, form, by))
            if act in self._changes:
                return self._done(request, sheet, by, *self._changes[act](rule_id, sheet, by))
            if act not in self._acts:
                raise InputError(f"no act is called {act[:40]!r}", "act", "See /api.")
            shown = self._acts[act](rule_id, sheet, by)
        except CitywardError as error:
            if is_data:
                raise
            status = formats.status_of(error)
            shown = replace(self._check(rule_id, sheet, by), fault=Fault.of(error), status=status)
            if isinstance(error, Conflict):
                document = _named(sheet, rule_id) if act in BY_TEXT else rule_id
                sheet, theirs = self._caught_up(document, sheet)
                shown = replace(shown, theirs=theirs)
            elif act == "revert" and isinstance(error, Unsafe):
                sheet = self._older(rule_id, sheet, _number_in(form))
                shown = replace(self._check(rule_id, sheet, by), fault=shown.fault, status=status)
        if is_data:
            return formats.json(shown.said)
        source = self.tuning.source(rule_id) or Source(rule_id, "New rule", "rule", "", "", "new")
        sheet = replace(sheet, job=shown.job.id if shown.job else "")
        if act == "note" and not shown.fault:
            sheet = replace(sheet, note="")
        return self._page(request, session, source, sheet, shown)

    def _done(
        self, request: Request, sheet: Sheet, by: str, done: str, said: dict[str, Any]
    ) -> Response:
        """It has changed; a note that was typed is kept along, for the next page has none."""
        if sheet.note and said["is_there"]:
            self.tuning.note(said["document"], sheet.note, by)
        if formats.form_of(request):
            return formats.json({"done": done, **said})
        to = path_of("rules", said["document"], "edit") if said["is_there"] else "/rules"
        return see_other(f"{to}?done={done}")

    # ---- What changes something

    def _save(self, rule_id: str, sheet: Sheet, by: str) -> tuple[str, dict[str, Any]]:
        last = self._newest(id_in(sheet.text))
        if sheet.says_seen and last is not None and last.number != sheet.seen:
            raise overtaken(last, last.title)
        document = self.tuning.save(sheet.text, sheet.samples, by, sheet.draft_seen)
        return "saved", {
            "document": document, "is_there": True, "draft": _saved_at(self.tuning.draft(document)),
        }  # fmt: skip

    def _discard(self, rule_id: str, sheet: Sheet, by: str) -> tuple[str, dict[str, Any]]:
        self.tuning.discard(rule_id, sheet.draft_seen)
        return "discarded", self._whether_there(rule_id)

    def _deploy(self, rule_id: str, sheet: Sheet, by: str) -> tuple[str, dict[str, Any]]:
        if not sheet.reason:
            raise InputError("the reason is empty", "reason", "Say why it is to count.")
        document = self.tuning.examine(sheet.text, sheet.samples).document
        draft = self.tuning.draft(document)
        if draft and draft.time != sheet.draft_seen and not draft.says(sheet.text, sheet.samples):
            what = f"another draft has been saved since, by {draft.by}"
            raise Conflict(what, "draft", "Look at it before another text counts.")
        seen = sheet.seen if self._newest(document) else 0  # a copy that has got an id of its own
        number = self.tuning.deploy(sheet.text, sheet.samples, by, sheet.reason, seen)
        with suppress(Conflict):  # a draft that was saved this moment stays
            self.tuning.discard(document, sheet.draft_seen)
        return "deployed", {"document": document, "is_there": True, "number": number}

    def _revert(self, rule_id: str, form: FormData, by: str) -> tuple[str, dict[str, Any]]:
        number, sheet = _number_in(form), Sheet.sent(form)
        seen = sheet.seen if "seen" in form else None
        reason = sheet.back or sheet.reason
        done = self.tuning.revert(rule_id, number, by, reason, seen)
        word = "reverted" if number else "taken-back"
        return word, {**self._whether_there(rule_id), "number": done}

    def _whether_there(self, rule_id: str) -> dict[str, Any]:
        return {"document": rule_id, "is_there": self.tuning.source(rule_id) is not None}

    # ---- What only says something

    def _check(self, rule_id: str, sheet: Sheet, by: str) -> Shown:
        return self._examined(rule_id, sheet.text, sheet.samples)

    def _check_of(self, source: Source) -> Shown:
        return self._examined(source.document, source.text, source.samples)

    def _examined(self, rule_id: str, written: str, samples: str) -> Shown:
        try:
            one = self.tuning.examine(written, samples)
        except CitywardError as error:
            marks = [Mark(_line_of(error.where), "error", _sentence(error))]
            said: dict[str, Any] = {"document": rule_id, "reasons": [error.what]}
            return Shown(marks=marks, said=said | {"marks": [one._asdict() for one in marks]})
        marks = [Mark(_line_of(one.where), one.severity, one.what) for one in one.problems]
        marks.sort()
        said = {
            "document": one.document,
            "kind": one.kind,
            "title": one.title,
            "number": one.number,
            "marks": [each._asdict() for each in marks],
            "samples": [msgspec.to_builtins(each) for each in one.outcomes],
            "lacking": one.lacking,
            "silenced": [msgspec.to_builtins(each) for each in one.silenced],
            "reasons": one.reasons(),
        }
        return Shown(examined=one, marks=marks, said=said)

    def _enter(self, rule_id: str, sheet: Sheet, by: str) -> Shown:
        """Enter in a field, without a script: the browser presses the form's first button.

        It does not say in which field, and a form has one such button. So what is done only says
        something, whatever field it was: with a reason the next Enter deploys, with a line it is
        tried.
        """
        checked = self._check(rule_id, sheet, by)
        if sheet.reason:
            return replace(checked, done=DONE["ready"], is_asked=True)
        if sheet.line.strip():
            return self._try(rule_id, sheet, by)
        return replace(checked, done=DONE["checked"])

    def _note(self, rule_id: str, sheet: Sheet, by: str) -> Shown:
        self.tuning.note(rule_id, sheet.note, by)
        return replace(self._check(rule_id, sheet, by), done=DONE["noted"], said={"done": "noted"})

    def _prove(self, rule_id: str, sheet: Sheet, by: str) -> Shown:
        found = self.tuning.unnoticed(sheet.text, sheet.samples)
        checked = self._check(rule_id, sheet, by)
        return replace(checked, unnoticed=found, said={"unnoticed": found})

    def _try(self, rule_id: str, sheet: Sheet, by: str) -> Shown:
        if not sheet.line.strip():
            raise InputError("there is no line", "line", "Paste one as the source sends it.")
        tried = self.tuning.attempt(sheet.text, sheet.line, sheet.collector)
        told = next((one for one in tried if one.matched), next(iter(tried), None))
        checked = self._check(rule_id, sheet, by)
        return replace(
            checked, tried=tried, told=told, said={"events": [_tried(one) for one in tried]}
        )

    def _preview(self, rule_id: str, sheet: Sheet, by: str) -> Shown:
        job = self.tuning.preview(sheet.text, sheet.days, by)
        return replace(self._check(rule_id, sheet, by), job=job, said=_job(job))

    def _look(self, rule_id: str, sheet: Sheet, by: str) -> Shown:
        job = self._job_of(rule_id, sheet.job)
        if job is None:
            raise InputError("this preview is not kept any more", "job", "Begin another.")
        return replace(self._check(rule_id, sheet, by), job=job, said=_job(job))

    def _cancel(self, rule_id: str, sheet: Sheet, by: str) -> Shown:
        self.tuning.cancel(sheet.job)
        return self._look(rule_id, sheet, by)

    def _why(self, rule_id: str, sheet: Sheet, by: str) -> Shown:
        id, _, near = sheet.event.partition(" ")
        time = time_of(near)
        event = self.node.events.get(id, time if isinstance(time, datetime) else None)
        if event is None:
            raise InputError("this event is not kept any more", "event", "Take another one.")
        told = self.tuning.explain(sheet.text, event)
        checked = self._check(rule_id, sheet, by)
        job = self._job_of(rule_id, sheet.job)
        return replace(checked, told=told, job=job, said={"events": [_tried(told)]})

    # ---- The page

    def _page(
        self, request: Request, session: Session, source: Source, sheet: Sheet, shown: Shown
    ) -> Response:
        id, examined, job = source.document, shown.examined, shown.job
        notes = self.tuning.notes(id)
        draft = self.tuning.draft(id)
        filters = self.tuning.filters(id) if source.kind == "rule" else ()
        return self.site.page(
            request,
            session,
            "workbench.html",
            shown.status,
            title=examined.title if examined else source.title,
            current="rules",
            fault=shown.fault,
            theirs=shown.theirs,
            done=shown.done,
            is_asked=shown.is_asked,
            source=source,
            desk=sheet,
            action=path_of("rules", id, "edit"),
            examined=examined,
            marks=shown.marks,
            unnoticed=shown.unnoticed,
            draft=draft,
            conditions=conditions(source, sheet, shown, draft, session.person.name),
            tried=shown.tried,
            told=_explained(shown.told, filters) if shown.told else None,
            job=job,
            is_stale=job is not None and job.text != sheet.text,
            preview=self._previewed(session, job) if job and job.result else None,
            every_days=PREVIEW_DAYS,
            filters=filters,
            protected=self.tuning.protected(id),
            history=self._history(id),
            notes=notes[:NOTES_SHOWN],
            older_notes=len(notes[NOTES_SHOWN:]),
            change=diff(source.counts, sheet.text),
            words=self.tuning.words(),
        )

    def _previewed(self, session: Session, job: Job) -> dict[str, Any]:
        """A preview as the page shows it, with what is known of its assets."""
        drawn = _drawn(job)
        names = [name for name, _ in drawn["assets"]]
        verdicts = self._verdicts(job.result.rule) if session.may("findings") else {}
        known = {name: self.node.inventory.asset(name) for name in names}
        zones = {name: one.asset.zone for name, one in known.items() if one and one.asset.zone}
        return drawn | {"zones": zones, "verdicts": verdicts}

    def _verdicts(self, rule_id: str) -> dict[str, Document]:
        """The finding of each asset that people judged last, of this rule, by the asset's names."""
        query = f"rule.id:{quoted(rule_id)} AND NOT finding.verdict:unknown"
        judged = self.node.findings.search(query, Range(), "-finding.last_seen", JUDGED_MAX)
        found: dict[str, Document] = {}
        for row in judged.rows:
            for name in NAMES:
                if row.get(name):
                    found.setdefault(str(row[name]), row)
        return found

    def _history(self, id: str) -> list[dict[str, Any]]:
        """Versions, newest first, each with what it changed; the first one of its file."""
        versions = self.tuning.history(id)
        if not versions:
            return []
        file, _ = self.tuning.text_of(id, 0)
        return [
            {
                "version": one,
                "is_first": old is None,
                "is_new": not file,
                "lines": diff(old.text or file if old else file, one.text or file),
                "samples": old is not None and bool(one.text) and old.samples != one.samples,
            }
            for one, old in list(zip_longest(versions, versions[1:]))[:VERSIONS_SHOWN]
        ]

    def _newest(self, document: str) -> Version | None:
        return next(iter(self.tuning.history(document)), None)

    def _caught_up(self, document: str, sheet: Sheet) -> tuple[Sheet, list[Theirs]]:
        """What others deployed and saved since; it is shown, so the next click has seen it."""
        theirs = []
        last, draft = self._newest(document), self.tuning.draft(document)
        if last is None:
            sheet = replace(sheet, seen=0)
        elif last.number != sheet.seen:
            what = f"Version {last.number}" if last.text else "What counts since it was taken back"
            texts = (last.text, last.samples) if last.text else self.tuning.text_of(document, 0)
            said = (what, document, last.by, last.time, last.reason)
            theirs.append(_theirs(*said, texts, sheet))
            sheet = replace(sheet, seen=last.number)
        if draft is not None and draft.time != sheet.draft_seen:
            texts = (draft.text, draft.samples)
            theirs.append(_theirs("Draft", document, draft.by, draft.time, "", texts, sheet))
            sheet = replace(sheet, draft=_saved_at(draft))
        return sheet, theirs

    def _older(self, rule_id: str, sheet: Sheet, number: int) -> Sheet:
        """With the older text, so that it can be saved for somebody else to deploy."""
        older, samples = self.tuning.text_of(rule_id, number)
        return replace(sheet, text=older, samples=samples) if older else sheet

    def _job_of(self, document: str, id: str) -> Job | None:
        job = self.tuning.job(id) if id else None
        return job if job is not None and job.document == document else None


def conditions(
    source: Source, sheet: Sheet, shown: Shown, draft: Draft | None, by: str
) -> list[Condition]:
    """What it takes to deploy, and whether it is there."""
    examined = shown.examined
    errors = sum(one.severity == "error" for one in shown.marks)
    said = [Condition(not errors, _count(errors, "error") if errors else "it loads")]
    kind = examined.kind if examined else source.kind
    if examined and kind != "filter":
        passed, every = sum(one.passed for one in examined.outcomes), len(examined.outcomes)
        said.append(Condition(0 < every == passed, f"samples {passed} of {every}"))
    if examined:
        lost = len(examined.silenced)
        words = f"{_count(lost, 'true positive')} silenced" if lost else "nothing right is silenced"
        said.append(Condition(not lost, words))
    if source.is_shipped and kind != "filter":
        is_second = draft is not None and draft.is_seconded(sheet.text, sheet.samples, by)
        after = f"second person, after {draft.by}" if draft and is_second else ""
        said.append(Condition(is_second, after or "second person missing"))
    return said


def _theirs(
    what: str,
    document: str,
    by: str,
    time: datetime,
    reason: str,
    texts: tuple[str, str],
    sheet: Sheet,
) -> Theirs:
    changes = (diff(texts[0], sheet.text), diff(texts[1], sheet.samples))
    return Theirs(what, document, by, time, reason, *texts, *changes)


def diff(before: str, after: str) -> list[tuple[str, str]]:
    """Lines that differ and their neighbours, each with `add`, `del`, `gap` or nothing."""
    old, new = before.splitlines(), after.splitlines()
    if old == new:
        return []
    if max(len(old), len(new)) > DIFF_MAX:
        return [("gap", f"longer than {DIFF_MAX:,} lines: not compared")]
    kinds = {"+": "add", "-": "del", "@": "gap"}
    lines = list(difflib.unified_diff(old, new, lineterm="", n=2))[2:]
    if lines[0].startswith(("@@ -1", "@@ -0")):
        del lines[0]  # nothing is left out before the first line
    return [(kinds.get(line[:1], ""), "…" if line.startswith("@@") else line[1:]) for line in lines]


def _begin(source: Source, draft: Draft | None) -> Sheet:
    return Sheet(source.text, source.samples, source.number, _saved_at(draft))


def _named(sheet: Sheet, rule_id: str) -> str:
    """The document that a text names; the one of the page, if it names none."""
    try:
        return id_in(sheet.text)
    except RuleError:
        return rule_id


def _saved_at(draft: Draft | None) -> str:
    return draft.time.astimezone(UTC).isoformat() if draft else ""


def _number_in(form: FormData) -> int:
    """The version that a form names; 0: the file."""
    number = text(form, "number")
    if not (number.isascii() and number.isdigit() and len(number) <= DIGITS_MAX):
        raise InputError(f"{number[:40]!r} is no version", "number", "Name one of its history.")
    return int(number)


def _lines(sent: str) -> str:
    return sent.replace("\r\n", "\n").replace("\r", "\n")


def _line_of(where: str) -> int:
    found = re.search(r":(\d{1,7})(?::\d+)?$", where)
    return int(found[1]) if found else 0


def _sentence(error: CitywardError) -> str:
    rest = f" {error.todo}" if isinstance(error, RuleError) and error.todo else ""
    return f"{error.what}.{rest}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


# ---- For programs


def _told(source: Source, draft: Draft | None) -> dict[str, Any]:
    return dict(msgspec.to_builtins(source), draft=_saved_at(draft))


def _version(one: Version) -> dict[str, Any]:
    return dict(msgspec.to_builtins(one))


def _tried(one: Tried) -> dict[str, Any]:
    return {
        "matched": one.matched,
        "collector": one.collector,
        "logsource": one.logsource,
        "fields": dict(one.fields),
        "why": msgspec.to_builtins(one.why),
        "against": msgspec.to_builtins(one.against),
    }


def _job(job: Job) -> dict[str, Any]:
    progress = msgspec.to_builtins(job.progress) if job.progress else None
    result = msgspec.to_builtins(job.result) if job.is_over and job.result else None
    return {
        "job": job.id,
        "days": job.days,
        "by": job.by,
        "is_over": job.is_over,
        "fault": job.fault,
        "progress": progress,
        "result": result,
        "cost": msgspec.to_builtins(job.cost) if job.is_over else None,
    }


# ---- For the eye


def _explained(one: Tried, filters: Sequence[FilterRow]) -> dict[str, Any]:
    """As the walk of a finding has it, the rule by itself and each of its filters."""
    why = msgspec.to_builtins(one.why)
    against = [(_filter_of(check), check) for check in one.against]
    hiding = {check.filter for check in one.against if check.filter}
    titles = {check.filter or "": _filter_of(check) for check in one.why.checks}
    known = {row.id for row in filters}
    return {
        "tried": one,
        "why": why,
        "logic": logic(why),
        "parts": [
            {
                "title": title,
                "id": id if id in known else "",
                "hides": id in hiding,
                "why": why,
                "terms": [],
                "sections": sections([one for one in why["checks"] if one.get("filter", "") == id]),
            }
            for id, title in titles.items()
        ],
        "is_hidden": bool(hiding),
        "against": against,
        "fields": sorted(one.fields.items())[:FIELDS_SHOWN],
    }


def _filter_of(check: Check) -> str:
    """Title of the filter in which a line stands; empty: in the rule itself."""
    named = check.selection.removeprefix("filter ")
    return named.rpartition(": ")[0] if check.filter else ""


def _drawn(job: Job) -> dict[str, Any]:
    """A preview as the page shows it."""
    result = job.result
    days = {day: _kinds(counts) for day, counts in result.days}
    first, last = result.since.date(), result.until.date()
    every = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    span = Range(_midnight(first), _midnight(last + timedelta(days=1)))
    buckets = [(_midnight(day), days.get(day.isoformat(), {})) for day in every]
    drawn: Chart | None = chart(buckets, span, KINDS, 86)
    assets = [(name, _kinds(counts)) for name, counts in result.assets]
    rest = assets[ASSETS_SHOWN:]
    return {
        "result": result,
        "same": result.total.would - result.total.new,
        "chart": drawn,
        "assets": assets[:ASSETS_SHOWN],
        "rest": len(rest),
        "others": {kind: sum(one[kind] for _, one in rest) for kind in KINDS},
    }


def _kinds(counts: Any) -> dict[str, int]:
    return {"same": counts.would - counts.new, "new": counts.new, "gone": counts.gone}


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
