"""The rule workbench of a node: drafts, tries, previews, filters; nothing counts before `deploy`.

It is what the console asks. A preview is a backtest in a thread of its own, one at a time, so that
people who tune do not take the machine from detection.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cityward import CitywardError, InputError, LogSource, Unsafe
from siem import ruleset
from siem.config import Settings
from siem.console.tuning import (
    PREVIEW_DAYS,
    Cost,
    Examined,
    FilterRow,
    Hidden,
    HideCounts,
    Job,
    Source,
    Tried,
)
from siem.hide_counts import Counter as HideCounter
from siem.library import shipped_ids
from siem.store.embedded import NodeDb
from siem.store.protocol import Document, Range
from siem.store.query import quoted
from siem.store.rulebook import Draft, Note, Version, id_in

if TYPE_CHECKING:
    from detectors.sigma.matchers import Placeholders
    from detectors.sigma.rule import RuleSet, Speaking
    from siem.backtest import Progress
    from siem.tuning import Tuner

log = logging.getLogger(__name__)

LINE_MAX = 65_536
"""Characters of a line that is tried."""
TRIED_MAX = 20
"""Events of a tried line that are shown."""
JOBS_KEPT = 20
MEASURED_MAX = 1_000
"""Events by which the cost of a rule is measured."""
PROVE_S = 10.0
"""Of a processor, in which lines of a rule are left out; `cityward rule test` has no such bound."""
NAMED_MAX = 10
"""Lines that are named where it was not enough."""
STOP_S = 5.0
FILES_LOOKED_AT_S = 1.0
"""Whoever changes a file sees it in the workbench after so long at most."""


class Workbench:
    """Fulfils `siem.console.protocol.Tuning` over the files of a node; any thread may ask."""

    def __init__(self, settings: Settings, db: NodeDb, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._db = db
        self._book = db.rulebook
        self._clock = clock
        self._turn = threading.Lock()
        self._stamp: tuple[object, ...] = ()
        self._kept: Tuner | None = None
        self._library: ruleset.Library | None = None
        self._files_seen: tuple[tuple[str, int], ...] = ()
        self._look_again_s = 0.0
        self._tuned: tuple[tuple[int, object], Mapping[str, datetime]] | None = None
        """By the newest version and the files of which it is said."""
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._stops: dict[str, threading.Event] = {}
        self._previews = threading.Lock()
        """Held while one runs."""
        self._hides = HideCounter(settings.state_path / "events", clock, self._previews)

    def read_ahead(self) -> None:
        """Read the rules before a page asks for them: thousands take a while the first time."""
        try:
            with self._turn:
                self._files()
            shipped_ids()
        except Exception:  # the page that asks says what is wrong
            log.exception("The rules cannot be read ahead.")

    # ---- Documents

    def source(self, document: str) -> Source | None:
        """A document to edit: the draft, what is deployed, or its file; None: there is none."""
        draft, last = self._book.draft(document), self._book.newest(document)
        number = last.number if last else 0
        with self._turn:
            tuner = self._tuner
            one = next(
                (each for each in (*tuner.rules.speaking(), *tuner.rules.filters)
                 if each.id == document), None,
            )  # fmt: skip
            beside = tuner.beside(document)
        kind, title, file = ("rule", "", "") if one is None else _facts(one)
        shipped = document in shipped_ids()
        counts, samples, origin = "", beside, "file"
        if last is not None and last.text:
            kind, title, counts, samples = last.kind, last.title, last.text, last.samples
            origin = "deployed"
        elif one is not None:
            counts = _text_of(one, file)
        elif draft is None:
            return None
        text = counts
        if draft is not None:
            text, samples, origin = draft.text, draft.samples, "draft"
        return Source(document, title, kind, text, samples, origin, number,
                      draft.by if draft else "", shipped, counts)  # fmt: skip

    def blank(self) -> Source:
        """A rule to begin with."""
        id = str(uuid.uuid4())
        return Source(id, "New rule", "rule", BLANK.format(id=id), BLANK_SAMPLES, "new")

    def rule_of(self, query: str, newest: Document, by: str) -> Source:
        """A rule made of a query on events, and of the newest event that it found.

        Args:
            query: In words of the query bar.
            newest: The event.
            by: Who makes it.

        Raises:
            CitywardError: the query cannot be read, or asks for what a rule cannot say.
        """
        from cityward.fields import FIELDS
        from siem.rule_making import TITLE, rule_of
        from siem.store.query import parse

        fields = {name: field.type for name, field in FIELDS.items()}
        text, samples = rule_of(query, parse(query, fields, self._clock()), newest, by)
        return Source(id_in(text), TITLE, "rule", text, samples, "new")

    def examine(self, text: str, samples: str = "") -> Examined:
        """What a document would do; nothing changes.

        Raises:
            RuleError: it cannot be loaded; with its line.
        """
        with self._turn:
            return self._tuner.examine(text, samples, now=self._clock())

    def unnoticed(self, text: str, samples: str) -> Sequence[str]:
        """Lines of a rule that could be left out without a sample failing.

        Raises:
            RuleError: it cannot be loaded, or its samples cannot be read.
            InputError: it is not on single events, a sample fails as it is, or it takes too long;
                what was found until then is said.
        """
        with self._turn:
            document, id, after = self._tuner.candidate(text)
        if document != id:
            raise InputError("a filter has no samples", document, "Try its rules.")
        one = next(each for each in after.speaking() if each.id == id)
        return _unnoticed(one, after, samples)

    def save(self, text: str, samples: str, by: str, seen: datetime | None = None) -> str:
        """Keep a draft, whatever it is like; returns the id of its document.

        Args:
            text: YAML of the document, or what is to become it.
            samples: YAML of its samples.
            by: Who writes it.
            seen: When the draft that the person saw was saved; None: they saw none.

        Raises:
            RuleError: it is no YAML, or has no id.
            InputError: it is too long, or there are too many.
            Conflict: somebody else has saved another draft since.
        """
        id = id_in(text)
        self._book.put_draft(Draft(id, text, samples, by, self._clock()), seen)
        return id

    def discard(self, document: str, seen: datetime | None) -> None:
        """Forget the draft that the person saw.

        Raises:
            Conflict: somebody else has saved another draft since.
        """
        self._book.drop_draft(document, seen)

    def draft(self, document: str) -> Draft | None:
        """What somebody writes on."""
        return self._book.draft(document)

    def drafts(self) -> Sequence[Draft]:
        """What people write on."""
        return self._book.drafts()

    def deploy(self, text: str, samples: str, by: str, reason: str, seen: int) -> int:
        """Let a document count from now on.

        Args:
            text: YAML of the document.
            samples: YAML of its samples.
            by: Who says it.
            reason: Why.
            seen: Number of the version that the person saw.

        Raises:
            RuleError: it cannot be loaded.
            Unsafe: something forbids it, or it takes a second person.
            Conflict: somebody else has deployed it since.
        """
        with self._turn:
            one = self._tuner.examine(text, samples, now=self._clock())
            if one.document in shipped_ids() and one.kind != "filter":
                draft = self._book.draft(one.document)
                if draft is None or not draft.is_seconded(text, samples, by):
                    what = "a rule that comes with cityward is changed by two people"
                    raise Unsafe(what, one.title, "Save it; another person deploys that draft.")
            one = msgspec.structs.replace(one, number=seen)
            return self._tuner.deploy(one, by, reason, self._clock())

    def revert(
        self, document: str, number: int, by: str, reason: str, seen: int | None = None
    ) -> int:
        """Go back to an older version, or with 0 to the file; see `Tuner.revert`.

        Whoever is on duty undoes a bad change alone. Only where something would be missed that
        two people wanted to be found, it takes two again.

        Raises:
            Unsafe: also if a rule that comes with cityward would find less than it does now.
        """
        with self._turn:
            tuner = self._tuner
            last = self._book.newest(document)
            takes_two = last is not None and last.kind != "filter" and document in shipped_ids()
            if takes_two and (missed := tuner.missed(document, number)):
                what = f"it would miss what counts now must find: {missed[0]}"
                todo = "Save the older text as a draft; another person deploys it."
                raise Unsafe(what, document, todo)
            return tuner.revert(document, number, by, reason, self._clock(), seen)

    def text_of(self, document: str, number: int) -> tuple[str, str]:
        """Text and samples of a version, or with 0 of the file; empty: there is none."""
        with self._turn:
            if number:
                return self._tuner.text_of(document, number)
            one, samples = self._tuner.underneath(document)
            return ("", "") if one is None else (_text_of(one, one.document.file), samples)

    def history(self, document: str) -> Sequence[Version]:
        """Versions of a document, newest first."""
        return self._book.history(document)

    def notes(self, document: str) -> Sequence[Note]:
        """What people wrote for whoever works on a document next, newest first."""
        return self._book.notes(document)

    def note(self, document: str, text: str, by: str) -> None:
        """Keep a note.

        Raises:
            InputError: there is no such document, or the note is empty or too long.
        """
        if self.source(document) is None:
            raise InputError("this rule is not kept yet", document, "Save it as a draft first.")
        self._book.add_note(document, Note(text, by, self._clock()))

    def protected(self, rule: str) -> Mapping[str, int]:
        """Findings of ours whose events may not be silenced, with how many events each."""
        return Counter(one.finding for one in self._book.protected(rule) if not one.operator)

    # ---- Filters

    def filters(self, rule: str = "") -> Sequence[FilterRow]:
        """Filters that are loaded, those of one rule or all; expired ones first."""
        with self._turn:
            return self._tuner.filters(self._clock().date(), rule)

    def hide_counts(self) -> HideCounts:
        """How much each filter hides of the last 30 days; what is not known yet is counted."""
        with self._turn:
            rules, lists = self._tuner.rules, self._tuner.placeholders
        return self._hides.ask(rules, lists)

    def tuned_at(self) -> Mapping[str, datetime]:
        """When each rule was changed here; see `ruleset.tuned_at`.

        The list of all rules asks it: it waits for nobody's turn while nothing has changed.
        """
        number = self._book.number()
        if self._tuned is None or self._tuned[0] != (number, ruleset.stamp(self._settings)):
            with self._turn:
                found = ruleset.tuned_at(self._tuner.rules, self._db)
                self._tuned = (number, self._files_seen), found
        return self._tuned[1]

    def filter_hides(self, id: str) -> Sequence[Hidden]:
        """Findings of the last 30 days that a loaded filter hides, of those that are kept.

        Raises:
            InputError: there is no such filter.
        """
        source = self.source(id)
        if source is None or source.kind != "filter":
            raise InputError(f"there is no filter {id[:80]}", "id", "Look in the list.")
        with self._turn:
            return self._tuner.hides(source.counts, self._clock())

    def choices(self, finding: Document) -> Mapping[str, Any]:
        """Fields by which a filter may tell the events of a finding."""
        with self._turn:
            return self._tuner.choices(finding)

    def filter_of(
        self, finding: Document, fields: Sequence[str], reason: str, expires: date, by: str
    ) -> tuple[str, Examined, Sequence[Hidden]]:
        """A filter made from a finding, what speaks against it, and what it would have hidden.

        Raises:
            InputError: the finding is of no rule, or has no such field.
        """
        with self._turn:
            tuner = self._tuner
            text = tuner.filter_of(finding, fields, reason=reason, expires=expires, by=by)
            return (text, *tuner.added(text, self._clock()))

    def add(self, one: Examined, by: str, reason: str) -> None:
        """Let a filter count that was made and examined, if it still may: the same is added once.

        Raises:
            Unsafe: something forbids it; also that another one hides the same by now.
            Conflict: another process changed the rules this moment.
        """
        with self._turn:
            tuner, now = self._tuner, self._clock()
            if one.book != self._book.number():
                one = tuner.ready(one.text, now)
            tuner.deploy(one, by, reason, now)

    # ---- Try and preview

    def attempt(self, text: str, line: str, collector: str = "") -> Sequence[Tried]:
        """What a rule makes of a line, by the collector that recognises it; `TRIED_MAX` events.

        Raises:
            RuleError: the rule cannot be loaded.
            InputError: the line is too long, no collector recognises it, or it is no rule on one
                event.
        """
        if len(line) > LINE_MAX:
            what = f"{len(line):,} characters are more than {LINE_MAX:,}"
            raise InputError(what, "line", "Try a shorter one.")
        with self._turn:
            return self._tuner.attempt(text, line, collector)[:TRIED_MAX]

    def explain(self, text: str, event: Document) -> Tried:
        """What a rule makes of an event that is kept; see `attempt` for what it raises."""
        with self._turn:
            return self._tuner.explain(text, event)

    def preview(self, text: str, days: int, by: str) -> Job:
        """Begin to ask the events of some days what a rule would have said; see `job`.

        Raises:
            RuleError: it cannot be loaded.
            InputError: it is a filter, or another number of days.
        """
        if days not in PREVIEW_DAYS:
            raise InputError(f"{days} days", "days", f"Choose one of {PREVIEW_DAYS}.")
        with self._turn:
            id, rule, draft = self._tuner.candidate(text)
            counts, lists = self._tuner.rules, self._tuner.placeholders
        job = Job(uuid.uuid4().hex[:12], id, text, days, by)
        stop = threading.Event()
        self._jobs[job.id], self._stops[job.id] = job, stop
        while len(self._jobs) > JOBS_KEPT:
            old, _ = self._jobs.popitem(last=False)
            self._stops.pop(old).set()
        arguments = (job, rule, draft, counts, lists, stop)
        threading.Thread(target=self._run, args=arguments, name="preview", daemon=True).start()
        return job

    def job(self, id: str) -> Job | None:
        """A preview that was begun."""
        return self._jobs.get(id)

    def cancel(self, id: str) -> None:
        """Stop a preview; it keeps what it had come to."""
        if stop := self._stops.get(id):
            stop.set()

    def close(self) -> None:
        """Stop what runs."""
        for stop in self._stops.values():
            stop.set()
        self._hides.close()
        if self._previews.acquire(timeout=STOP_S):
            self._previews.release()

    def _run(
        self,
        job: Job,
        rule: str,
        draft: RuleSet,
        counts: RuleSet,
        lists: Placeholders,
        stop: threading.Event,
    ) -> None:
        from siem.backtest import backtest
        from siem.store.archive import MEMORY_LIMIT, Looking

        def tell(progress: Progress) -> None:
            job.progress = progress

        try:
            folder = self._settings.state_path / "events"
            with self._previews, closing(Looking(folder, MEMORY_LIMIT)) as looking:
                now = self._clock()
                job.result = backtest(
                    looking,
                    rule,
                    draft,
                    span=Range(now - timedelta(days=job.days), now),
                    now=now,
                    placeholders=lists,
                    against=counts,
                    tell=tell,
                    stop=stop,
                )
            if not stop.is_set() and not job.result.idle:
                job.cost = self._cost(rule, draft, lists, job.days)
        except CitywardError as error:
            job.fault = error.what
        except Exception as error:  # the page says it; the console goes on
            log.exception("A preview of %s failed.", job.document)
            job.fault = f"{type(error).__name__}: {error}"[:300]
        job.is_over = True

    def _cost(self, rule: str, draft: RuleSet, lists: Placeholders, days: int) -> Cost:
        """Ask the newest events of its log source, and see how long it takes."""
        from detectors.sigma.engine import Engine
        from siem.assembly import events_of
        from siem.node import event_of
        from siem.samples import alone

        own = alone(next(one for one in draft.speaking() if one.id == rule), draft)
        query = " OR ".join(sorted({_of_source(one.logsource) for one in own.rules}))
        now = self._clock()
        span = Range(now - timedelta(days=days), now)
        with closing(events_of(self._settings, self._clock, write=False)) as store:
            found = store.search(query, span, limit=MEASURED_MAX)
        events = [event_of(one) for one in reversed(found.rows)]
        if not events:
            return Cost(found.total, 0, 0.0, 0.0)
        engine = Engine(own, lists)
        list(engine.detect(events[:1]))  # what is made only once is no part of it
        began_ns = time.thread_time_ns()
        list(engine.detect(events))
        cpu_us = (time.thread_time_ns() - began_ns) / 1_000 / len(events)
        rate_per_s = found.total / timedelta(days=days).total_seconds()
        return Cost(found.total, len(events), cpu_us, cpu_us * rate_per_s / 1_000_000)

    # ---- For the editor

    def words(self) -> Mapping[str, Any]:
        """What an editor offers, by where it fits."""
        from siem.words import words

        with self._turn:
            return words(rule.logsource for rule in self._tuner.rules.rules)

    @property
    def _tuner(self) -> Tuner:
        """A tuner over the rules and lists that count now; the caller holds the turn."""
        from siem.tuning import Tuner

        library = self._files()
        stamp = (self._db.inventory.version(), self._book.number())
        if self._kept is None or stamp != self._stamp:
            self._kept, self._stamp = Tuner(self._settings, self._db, library), stamp
        return self._kept

    def _files(self) -> ruleset.Library:
        """The files as they are now: a page asks several times, so they are looked at once."""
        if self._library is not None and time.monotonic() < self._look_again_s:
            return self._library
        files = ruleset.stamp(self._settings)
        if self._library is None or files != self._files_seen:
            self._library, self._files_seen = ruleset.Library(self._settings), files
            self._kept = None
        self._look_again_s = time.monotonic() + FILES_LOOKED_AT_S
        return self._library


BLANK = """\
title: What it finds, in one line
id: {id}
status: experimental
description: Why it matters, and what to do.
author: ""
level: medium
taxonomy: cityward
tags: [attack.t0000]
logsource: {{category: authentication}}
detection:
  selection:
    event.action: ssh_login
    event.outcome: failure
  condition: selection
falsepositives: [""]
cityward:
  sentence: "{{source.ip}} failed to sign in as {{user.name}}"
"""
BLANK_SAMPLES = """\
cases:
  - name: what it must find
    kind: must match
    events:
      - {event.action: ssh_login, event.outcome: failure, source.ip: 192.0.2.7, user.name: root}
  - name: one field away from it
    kind: near miss
    events:
      - {event.action: ssh_login, event.outcome: success, source.ip: 192.0.2.7, user.name: root}
"""


def _unnoticed(one: Speaking, rules: RuleSet, samples: str) -> list[str]:
    """Lines of a rule that could be left out; see `Workbench.unnoticed`."""
    from detectors.sigma.rule import Rule
    from detectors.sigma.samples import mutants, parse_samples, tried_mutants
    from siem.samples import alone, collect, outcomes

    began_s, title = time.thread_time(), one.analytic.name
    if not isinstance(one, Rule):
        raise InputError("only a rule on single events has such lines", title, "Try its rules.")
    read = parse_samples(samples, f"rulebook/{one.id}.test.yml")
    if any(not each.passed for each in outcomes(one, rules, read)):
        raise InputError("a sample fails as it is", title, "Mend it first.")
    found: list[str] = []
    tried = tried_mutants(read, one, alone(one, rules), collect)
    for looked_at, (line, is_noticed) in enumerate(tried):
        if time.thread_time() - began_s > PROVE_S:
            raise _stopped(looked_at, sum(1 for _ in mutants(one)), found)
        if not is_noticed:
            found.append(line)
    return found


def _stopped(looked_at: int, every: int, found: Sequence[str]) -> InputError:
    """How far it came in its time, and what was found until then."""
    names = ", ".join(found[:NAMED_MAX]) + (" …" if len(found) > NAMED_MAX else "")
    said = f"{len(found)} of them no sample misses: {names}" if found else "a sample misses each"
    what = f"{looked_at} of {every} lines were looked at in {PROVE_S:g} s of a processor; {said}"
    return InputError(what, "samples", "cityward rule test looks at all, for as long as it takes.")


def _of_source(source: LogSource) -> str:
    """The log source as a query on events; a category has those that are narrower."""
    from detectors.sigma.filter import NARROWER

    parts = []
    for part, value in msgspec.structs.asdict(source).items():
        if value:
            words = [value, *sorted(NARROWER.get(value, ()) if part == "category" else ())]
            parts.append(f"cw.logsource.{part}:({' OR '.join(map(quoted, words))})")
    return f"({' AND '.join(parts)})"


def _facts(one: Any) -> tuple[str, str, str]:
    from siem.tuning import kind_of

    title = one.title if hasattr(one, "title") else one.analytic.name
    return kind_of(one), title, one.document.file


def _text_of(one: Any, file: str) -> str:
    """The text of a document that stands in a file, alone or among others."""
    import yaml

    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    from cityward import documents

    is_alone = len([each for each in documents.parse(text, file) if each.value is not None]) == 1
    return text if is_alone else str(yaml.safe_dump(one.document.value, sort_keys=False))
