"""Tuning: what a change of the rules would do, before it counts, and what forbids it.

A change is one document – rule, correlation, absence or filter – in the place of the one with its
id, beside all that counts at this node. It may be deployed if nothing is wrong with it, its samples
are green, and no event that a person called right would pass in silence because of it.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from cityward import Event, InputError, RuleError, Unsafe, plugin
from collectors.recognise import recognise
from detectors.sigma import lint
from detectors.sigma.correlation import bases_of
from detectors.sigma.engine import Engine
from detectors.sigma.matchers import Placeholders
from detectors.sigma.rule import Absence, Correlation, Filter, Rule, RuleSet, Speaking
from detectors.sigma.samples import Outcome, parse_samples
from detectors.sigma.texts import written
from detectors.sigma.view import View
from siem import register, ruleset
from siem import samples as runs
from siem.assets import Inventory, from_settings
from siem.config import Settings
from siem.console.tuning import (
    FILTER_DAYS_MAX,
    Examined,
    FilterRow,
    Hidden,
    HideCount,
    Silenced,
    Tried,
)
from siem.hide_counts import counted
from siem.node import event_of
from siem.pushdown import filled
from siem.store.embedded import NodeDb
from siem.store.protocol import Document, Range
from siem.store.query import quoted
from siem.store.rulebook import Version

LOOKED_BACK = timedelta(days=30)
FINDINGS_MAX = 500
"""So many findings, newest first, are asked what a filter would hide of them."""
NEARLY_ALL = 0.9
MANY = 20
"""Of so many findings of a rule, and this part of them, a filter is told that it hides too much."""
LONGEST = timedelta(days=1)
"""After the last event: whatever is absent is missed by then."""
WHO = ("source.ip", "source.mac", "user.name", "cw.asset.asset_id", "host.name")
WHAT = (
    "destination.ip", "destination.port", "ot.operation", "ot.unit", "ot.point.address",
    "ot.function.code", "url.path", "dns.question.name", "process.name", "event.action",
)  # fmt: skip
"""Fields by which a filter tells what is harmless: who does it, and what is done."""
BEFORE_SEEN = {"cw.record.source": "", "cw.record.place": "", "cw.record.number": 0}
"""What an event has that another operator released: its record stays with them."""


class Tuner:
    """Examines and deploys changes at one node; not for several threads at once."""

    def __init__(
        self, settings: Settings, db: NodeDb, library: ruleset.Library | None = None
    ) -> None:
        self._settings = settings
        self._db = db
        self._book = db.rulebook
        self._library = library or ruleset.Library(settings)
        self._book_read = 0
        """Number of the newest version of all when the rules were read."""

    @cached_property
    def rules(self) -> RuleSet:
        """What counts now."""
        self._book_read = self._book.number()  # first, so that nothing comes between unseen
        return ruleset.rules_of(self._settings, self._db, self._library)

    @cached_property
    def placeholders(self) -> Placeholders:
        """Values of `%name%` at this node."""
        return self._inventory.placeholders(self._settings.lists)

    @cached_property
    def _inventory(self) -> Inventory:
        inventory = from_settings(self._settings)
        inventory.use(register.known(self._settings, self._db.inventory.assets(merged=True)))
        return inventory

    # ---- Examine and deploy

    def examine(
        self, text: str, samples: str = "", file: str = "<text>", now: datetime | None = None
    ) -> Examined:
        """What a document would do in the place of the one with its id; nothing changes.

        Args:
            text: YAML of one document.
            samples: YAML of its samples; empty: those that it has already.
            file: Where the text stands, for errors.
            now: When it is to count: a filter must end after it; None: that is not asked.

        Raises:
            RuleError: it is no document, or none that can be loaded; with its line.
        """
        id, kind, title = identity(text, file)
        file = f"rulebook/{id}.yml"
        after = self._with(id, text)
        problems = lint.problems_of(after, Path(file), samples=False) + lint.unseen(text, file)
        last = self._book.newest(id)
        outcomes: tuple[Outcome, ...] = ()
        lacking: tuple[str, ...] = ()
        if kind != "filter":
            samples = samples or (last.samples if last and last.text else self.beside(id))
            outcomes, missing = self._outcomes(id, after, samples)
            problems += [lint.Problem(file, one) for one in missing]
            if outcomes:
                lacking = tuple(lint.lacking(id, after, parse_samples(samples, file)))
        problems += [lint.Problem(file, one) for one in self._without_lists(id, after)]
        if now and (tuning := _filter_in(after, id)):
            problems += _unready(tuning, now.date())
        number = last.number if last else 0
        silenced = tuple(self._silenced(after))
        return Examined(
            id, kind, title, text, samples, number, tuple(problems), outcomes, silenced,
            lacking=lacking,
        )  # fmt: skip

    def deploy(self, one: Examined, by: str, reason: str, now: datetime) -> int:
        """Let a document count from now on; the node takes it up within a second.

        Raises:
            Unsafe: something forbids it.
            InputError: nobody says why.
            Conflict: somebody else has deployed it since it was examined; if it is a filter that is
                to be added, anything.
        """
        if said := one.reasons():
            raise Unsafe("; ".join(said[:3]), one.title, "Mend it; cityward rule check says more.")
        version = Version(
            0, one.document, one.kind, one.title, one.text, one.samples, by, reason, now, True
        )
        number = self._book.deploy(version, seen=one.number, book=one.book)
        self.__dict__.pop("rules", None)
        return number

    def revert(
        self,
        document: str,
        number: int,
        by: str,
        reason: str,
        now: datetime,
        seen: int | None = None,
    ) -> int:
        """Deploy an older version again; 0 takes the document back, so that its file counts.

        Args:
            document: Its id.
            number: Of the version.
            by: Who says it.
            reason: Why.
            now: When.
            seen: Number of the version that the person saw; None: whatever is there.

        Raises:
            InputError: there is no such version, or nobody says why.
            Unsafe: something forbids it.
            Conflict: somebody else has deployed another version since.
        """
        history = self._book.history(document)
        if not history:
            raise InputError(f"{document} was never deployed", "", "See cityward rule history.")
        last = history[0]
        seen = last.number if seen is None else seen
        if number:
            old = next((one for one in history if one.number == number and one.is_whole), None)
            if old is None:
                raise InputError(f"it has no version {number}", document, "See its history.")
            if old.text:
                one = self.examine(old.text, old.samples, now=now)
                return self.deploy(msgspec.structs.replace(one, number=seen), by, reason, now)
        if not last.text:
            raise InputError(f"{document} is taken back already", "", "See its history.")
        if silenced := list(self._silenced(self._with(document, ""))):
            what = f"{silenced[0].title} would not be made any more, and it was right"
            raise Unsafe(what, last.title, "Name it under rules.off, if that is meant.")
        gone = msgspec.structs.replace(
            last, text="", samples="", by=by, reason=reason, time=now, is_whole=True
        )
        self.__dict__.pop("rules", None)
        return self._book.deploy(gone, seen=seen)

    def missed(self, document: str, number: int) -> list[str]:
        """Samples that what counts now must match, and that going back to a version would miss.

        Args:
            document: Id of a rule, correlation or absence that was deployed here.
            number: Of its version; 0: the file.

        Raises:
            RuleError: the older text cannot be loaded any more.
        """
        last = self._book.newest(document)
        if last is None or not last.text:
            return []
        after = self._with(document, self.text_of(document, number)[0] if number else "")
        for refused in after.refused:
            if refused.where.startswith(f"rulebook/{document}.yml"):
                raise refused
        if all(one.id != document for one in after.speaking()):
            return [last.title]  # nothing with this id would be left
        outcomes, _ = self._outcomes(document, after, last.samples)
        return [one.name for one in outcomes if one.kind == "must match" and not one.passed]

    def text_of(self, document: str, number: int) -> tuple[str, str]:
        """Text and samples of a version that is whole; empty: there is none.

        Args:
            document: Its id.
            number: Of its version.
        """
        for one in self._book.history(document):
            if one.number == number and one.is_whole:
                return one.text, one.samples
        return "", ""

    def underneath(self, document: str) -> tuple[Speaking | None, str]:
        """The rule of the file under what was deployed, with its samples; None: there is none."""
        after = self._with(document, "")
        one = next((each for each in after.speaking() if each.id == document), None)
        return one, "" if one is None else ruleset.samples_beside(one)

    def candidate(self, text: str) -> tuple[str, str, RuleSet]:
        """For a backtest: id of the document, of the rule to ask, and what would count with it.

        Raises:
            RuleError: it is no rule that can be loaded.
        """
        id, kind, _ = identity(text)
        after = self._with(id, text)
        if kind == "filter":
            bound = [one.id for one in after.rules if any(f.id == id for f in one.filters)]
            if len(bound) != 1:
                what = f"the filter binds to {len(bound)} rules"
                raise RuleError(what, "<text>", "A preview asks one rule.")
            return id, bound[0], after
        for refused in after.refused:
            if refused.where.startswith(f"rulebook/{id}.yml"):
                raise refused
        return id, id, after

    def attempt(self, text: str, line: str, collector: str = "") -> list[Tried]:
        """What a rule makes of a line, event by event, and why not.

        Raises:
            RuleError: the rule cannot be loaded.
            InputError: it is not on single events, or no collector reads the line.
        """
        engine, rule = self._asked(text)
        name, events = _events(line, collector)
        return [_tried(engine, rule, self._described(one), name) for one in events]

    def explain(self, text: str, event: Document) -> Tried:
        """What a rule makes of an event that is kept, and why not; see `attempt`."""
        engine, rule = self._asked(text)
        return _tried(engine, rule, _event(event), "")

    def _asked(self, text: str) -> tuple[Engine, Rule]:
        """A rule on single events, or the one of a filter, and an engine with it alone."""
        _, id, after = self.candidate(text)
        rule = next((one for one in after.rules if one.id == id), None)
        if rule is None:
            what = "only a rule on single events can be tried on one"
            raise InputError(what, "rule", "Try its rules; samples are for the rest.")
        engine = Engine(runs.alone(rule, after), self.placeholders)
        if state := next((one for one in engine.states() if one.state != "on"), None):
            raise InputError(f"it is not evaluated here: {state.reason}", rule.title, "See lists.")
        return engine, rule

    def _described(self, event: Event) -> Event:
        fields = {**self._inventory.describe(event), **event.fields}
        return msgspec.structs.replace(event, fields=fields)

    def _with(self, id: str, text: str) -> RuleSet:
        """What would count with a document, or without it."""
        texts = {one.file: one.text for one in self._book.deployed() if one.is_whole}
        file = f"rulebook/{id}.yml"
        texts.pop(file, None)
        if text:
            texts[file] = text
        return self._library.with_texts(texts)

    def beside(self, id: str) -> str:
        """The samples of the file with this id; empty: there is none."""
        one = next((each for each in self.rules.speaking() if each.id == id), None)
        return "" if one is None else ruleset.samples_beside(one)

    def _outcomes(
        self, id: str, after: RuleSet, samples: str
    ) -> tuple[tuple[Outcome, ...], list[str]]:
        """What its samples come to, and what is missing of them."""
        one = next((each for each in after.speaking() if each.id == id), None)
        if one is None:
            return (), []  # why is among the refused
        if not samples:
            return (), ["there are no samples"]
        try:
            read = parse_samples(samples, f"rulebook/{id}.test.yml")
        except RuleError as error:
            return (), [f"{error.what} ({error.where})"]
        if not any(case.kind == "must match" for case in read.cases):
            return (), ["no sample must match"]
        return tuple(runs.outcomes(one, after, read)), []

    def _without_lists(self, id: str, after: RuleSet) -> Iterator[str]:
        """What a filter needs and nobody gave: its rules would not be evaluated at all."""
        if one := _filter_in(after, id):
            for name in self._missing(one):
                yield f"%{name}% has no values here, so its rules would say nothing"

    def _missing(self, one: Filter) -> list[str]:
        return sorted(name for name in one.needs if not self.placeholders.get(name))

    # ---- Protected true positives

    def _silenced(self, after: RuleSet) -> Iterator[Silenced]:
        """Findings that were right, and that these rules would not make any more."""
        before, changed = self.rules, changed_rules(self.rules, after)
        now = {one.id: one for one in after.speaking()}
        every = [one for one in before.speaking() if one.id in changed]
        for one in every:
            samples = self._book.protected(one.id)
            if not samples:
                continue
            was = _Again(one, before, self.placeholders)
            then = _Again(now[one.id], after, self.placeholders) if one.id in now else None
            for finding, group in groupby(samples, key=lambda sample: sample.finding):
                events = list(group)
                if lost := _lost(was, then, [_event(sample.event) for sample in events]):
                    first = events[min(lost)]
                    yield Silenced(
                        one.id, one.analytic.name, finding, first.operator,
                        first.event["@timestamp"], first.by,
                    )  # fmt: skip

    # ---- Filters

    def filters(self, today: date, rule: str = "") -> list[FilterRow]:
        """Filters that are loaded, all or those that one rule meets; expired ones first."""
        bound = {one.id: one for base in self._bases(rule) for one in base.filters}
        deployed = {one.document: one for one in self._book.deployed()}
        rows = [
            _row(one, self.rules, today, deployed.get(one.id))
            for one in (bound.values() if rule else self.rules.filters)
        ]
        return sorted(
            rows, key=lambda row: (not row.is_expired, row.expires or date.max, row.title)
        )

    def hide_counts(self, now: datetime) -> dict[str, HideCount]:
        """How much each filter hides of the events that are kept; see `hide_counts.counted`."""
        ids = [one.id for one in self.rules.filters]
        folder = self._settings.state_path / "events"
        return dict(counted(folder, self.rules, self.placeholders, ids, now, threading.Event()))

    def choices(self, finding: Document) -> dict[str, Any]:
        """Fields by which a filter may tell the events of a finding, with their one value."""
        copies = self._db.events_of(finding["finding.id"])
        found: dict[str, Any] = {}
        for name in (*WHO, *WHAT):
            values = [one.get(name) for one in copies]
            first = values[0] if values else None
            if isinstance(first, str | int) and all(one == first for one in values):
                found[name] = first
        return found

    def filter_of(
        self,
        finding: Document,
        fields: Sequence[str],
        *,
        reason: str,
        expires: date,
        by: str,
    ) -> str:
        """A filter, as YAML, that hides what a finding saw.

        Args:
            finding: Of a Sigma rule or correlation.
            fields: Of `choices`; empty: who and what, one of each.
            reason: Why it is harmless.
            expires: From this day on it hides nothing.
            by: Its owner.

        Raises:
            InputError: the finding is of no rule, or has no such field.
        """
        import yaml

        known = self.choices(finding)
        fields = fields or [
            *[name for name in WHO if name in known][:1],
            *[name for name in WHAT if name in known][:1],
        ]
        if missing := [name for name in fields if name not in known]:
            what = f"{missing[0]} is not the same in all events of the finding"
            raise InputError(what, "fields", f"One of: {', '.join(known) or 'none'}.")
        if not fields:
            raise InputError("its events have nothing in common", "", "Write the filter by hand.")
        rules = list(self._bases(str(finding.get("rule.id", ""))))
        if not rules:
            what = f"{finding.get('finding.title', '')} is no finding of a rule that counts here"
            raise InputError(what, "rule.id", "Models are taught by a verdict.")
        logsources = {one.logsource for one in rules}
        source = msgspec.structs.asdict(logsources.pop()) if len(logsources) == 1 else {}
        document = {
            "title": f"Not {' or '.join(one.title for one in rules)}"[:100],
            "id": str(uuid.uuid4()),
            "description": f"Made from finding {finding['finding.id']}.",
            "author": by,
            "taxonomy": "cityward",
            "logsource": {name: value for name, value in source.items() if value},
            "filter": {
                "rules": [one.id for one in rules],
                "known": {name: _plain(known[name]) for name in fields},
                "condition": "not known",
            },
            "cityward": {"reason": reason, "expires": expires},
        }
        return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=90))

    def _bases(self, id: str) -> Iterator[Rule]:
        """The rules on single events that a rule or correlation is made of."""
        one = next((each for each in self.rules.speaking() if each.id == id), None)
        if one is not None:
            yield from runs.alone(one, self.rules).rules

    def added(
        self, text: str, now: datetime, file: str = "<text>"
    ) -> tuple[Examined, list[Hidden]]:
        """A filter that is to be added: what speaks against it, and what it would have hidden.

        Args:
            text: YAML of the filter.
            now: When it is to count.
            file: Where the text stands, for errors.

        Raises:
            RuleError: it is no filter, or none that can be loaded; with its line.
        """
        examined, after = self.ready(text, now, file), self._with(_filter_id(text, file), text)
        one = _filter_in(after, examined.document)
        if one is None:
            return examined, []  # why is among its problems
        looked = list(self._looked(one, after, now))
        problems = (*examined.problems, *_too_much(one, looked))
        row = _row(one, after, now.date())
        return msgspec.structs.replace(examined, problems=problems, row=row), _newest(looked)

    def ready(self, text: str, now: datetime, file: str = "<text>") -> Examined:
        """A filter that is to be added, and what speaks against it; see `added`.

        What is deployed of it counts only if no other document was deployed since: two people who
        add the same at once add it once.
        """
        id = _filter_id(text, file)
        after, examined = self._with(id, text), self.examine(text, file=file, now=now)
        one = _filter_in(after, id)
        twins = tuple(self._twins(one, now.date())) if one else ()
        problems = (*examined.problems, *twins)
        return msgspec.structs.replace(examined, problems=problems, book=self._book_read)

    def hides(self, text: str, now: datetime) -> list[Hidden]:
        """Findings that a filter would have hidden, in whole or in part, newest first.

        It looks at the copies of events that findings keep, of the newest `FINDINGS_MAX`.

        Raises:
            RuleError: it is no filter.
        """
        id = _filter_id(text)
        after = self._with(id, text)
        one = _filter_in(after, id)
        return _newest(self._looked(one, after, now)) if one else []  # `examine` says why not

    def _looked(
        self, one: Filter, after: RuleSet, now: datetime
    ) -> Iterator[tuple[Speaking, int, list[Hidden]]]:
        """By rule: how many findings were looked at, and those that a filter hides of them."""
        is_hidden, bound = self._hiding(one), _bound(one, after)
        span = Range(now - LOOKED_BACK, now + timedelta(minutes=5))
        for rule in self._over(bound):
            query = f"rule.id:{quoted(rule.id)}"
            rows = self._db.search(query, span, sort="-finding.last_seen", limit=FINDINGS_MAX).rows
            yield rule, len(rows), [each for row in rows if (each := self._seen(row, is_hidden))]

    def _seen(self, row: Document, is_hidden: Callable[[Event], bool]) -> Hidden | None:
        """What is hidden of a finding; None: nothing is."""
        copies = [_event(one) for one in self._db.events_of(row["finding.id"])]
        count = sum(map(is_hidden, copies))
        if not count:
            return None
        return Hidden(row["finding.id"], row["finding.title"], row["finding.verdict"],
                      row["finding.last_seen"], len(copies), count,
                      row.get("finding.description") or "")  # fmt: skip

    def _twins(self, one: Filter, today: date) -> Iterator[lint.Problem]:
        """Filters in force that hide the same already, the one with its id among them."""
        for other in self.rules.filters:
            if _hides_like(one, other) and not _is_over(other, today):
                what = f"{other.title} ({other.id}) hides the same already, to {other.own.expires}"
                last = self._book.newest(other.id)
                if last and last.text:
                    what = f"{what}: {last.by} added it, {last.time:%Y-%m-%d %H:%M} UTC"
                yield lint.Problem(one.document.where("filter"), what)

    def _hiding(self, one: Filter) -> Callable[[Event], bool]:
        """Whether a filter hides an event; without a list that it needs, its rules say nothing."""
        if self._missing(one):
            return lambda event: True
        detection = filled(one.detection, one, "filter", self.placeholders)
        return lambda event: not detection.holds(View.of(event))

    def _over(self, rules: set[str]) -> list[Speaking]:
        """The rules, and what builds on them."""
        wanted = with_builders(self.rules, rules)
        return [one for one in self.rules.speaking() if one.id in wanted]


def identity(text: str, file: str = "<text>") -> tuple[str, str, str]:
    """Id, kind and title of the one document of a text.

    Args:
        text: YAML.
        file: Where it stands, for errors.

    Raises:
        RuleError: it is not one, or none that can be loaded; with its line.
    """
    from cityward import documents
    from detectors.sigma.load import read_document

    found = [one for one in documents.parse(text, file) if one.value is not None]
    if len(found) != 1:
        raise RuleError(f"{len(found)} documents", file, "Deploy one at a time.")
    read = read_document(found[0])
    if not found[0].value.get("id"):
        raise RuleError("`id` is missing", f"{file}:1", f"Write id: {uuid.uuid4()}")
    title = read.title if isinstance(read, Filter) else read.analytic.name
    return read.id, kind_of(read), title


def kind_of(one: Speaking | Filter) -> str:
    """What a document is called."""
    return type(one).__name__.lower()


def changed_rules(before: RuleSet, after: RuleSet) -> set[str]:
    """Ids of rules that are not as they were, or build on one that is not."""
    new = {one.id: one for one in after.speaking()}
    changed = {one.id for one in before.speaking() if not _is_same(one, new.get(one.id))}
    return with_builders(before, changed)


def with_builders(rules: RuleSet, ids: Iterable[str]) -> set[str]:
    """These rules, and whatever builds on them."""
    built: list[Correlation | Absence] = [*rules.correlations, *rules.absences]
    found: set[str] = set()
    more = set(ids)
    while more:
        found |= more
        more = {
            one.id for one in built if one.id not in found and not more.isdisjoint(bases_of(one))
        }
    return found


def _is_same(one: Speaking, other: Speaking | None) -> bool:
    return other is not None and _written(one) == _written(other)


def _written(one: Speaking) -> list[Any]:
    """What a rule and its filters say; documents that are shared are told apart at once."""
    filters = one.filters if isinstance(one, Rule) else ()
    return [one.document.value, *(each.document.value for each in filters)]


class _Again:
    """A rule, with what it builds on, that sees protected events once more."""

    def __init__(self, one: Speaking, rules: RuleSet, placeholders: Placeholders) -> None:
        self.one = one
        self._own = runs.alone(one, rules)
        self._placeholders = placeholders

    def speaks(self, events: Sequence[Event]) -> bool:
        """Whether it speaks of the events together."""
        engine = Engine(self._own, self._placeholders)
        found = [*engine.detect(events), *engine.tick(events[-1].time + LONGEST)]
        return any(finding.analytic.id == self.one.id for finding in found)

    def matched(self, events: Sequence[Event]) -> set[int]:
        """Places of the events that it, or a rule it builds on, matches."""
        engine = Engine(self._own, self._placeholders)
        ids = [rule.id for rule in self._own.rules]
        return {n for n, event in enumerate(events) if any(engine.matches(id, event) for id in ids)}


def _lost(was: _Again, then: _Again | None, events: Sequence[Event]) -> set[int]:
    """Places of events that would pass in silence; what several make together is lost as one."""
    is_single = all(isinstance(each.one, Rule) for each in (was, then) if each is not None)
    if not is_single and was.speaks(events):
        return set() if then is not None and then.speaks(events) else {0}
    # What wants more events than are kept of it cannot be asked, but its rules can.
    return was.matched(events) - (set() if then is None else then.matched(events))


def _events(line: str, named: str) -> tuple[str, Sequence[Event]]:
    """The collector of a line, and the events that it makes of it."""
    collectors = plugin.load("collectors")
    specs = {name: part.cityward_spec for name, part in collectors.items()}
    data = line.encode()
    if named and named not in specs:
        todo = "Leave it empty: the one that recognises the line reads it."
        raise InputError(f"no collector is called {named!r}", "collector", todo)
    name = named or recognise(data, "line", specs)
    if name is None:
        raise InputError("no collector recognises the line", "line", "Name its collector.")
    if specs[name].framing == "packets":
        raise InputError(f"{name} reads packets, not lines", "collector", "Choose another one.")
    return name, runs.collect(name, data.splitlines(), [])


def _tried(engine: Engine, rule: Rule, event: Event, collector: str) -> Tried:
    fields = {"@timestamp": event.time, **event.fields}
    matched, why = engine.matches(rule, event), engine.explain(rule, event)
    against = engine.against(rule, event)
    return Tried(fields, str(event.logsource), collector, matched, why, against)


def _filter_id(text: str, file: str = "<text>") -> str:
    id, kind, _ = identity(text, file)
    if kind != "filter":
        raise RuleError(f"this is a {kind}", file, "Give a filter.")
    return id


def _row(one: Filter, rules: RuleSet, today: date, ours: Version | None = None) -> FilterRow:
    """A filter among what counts with it, and the version that was deployed here."""
    titles = {each.id: each.title for each in rules.rules}
    bound = _bound(one, rules)
    above = with_builders(rules, bound) - bound
    return FilterRow(
        one.id,
        one.title,
        tuple((id, titles.get(id, id)) for id in one.rules),
        tuple((each.id, each.analytic.name) for each in rules.speaking() if each.id in above),
        lint.owner_of(one),
        one.own.reason,
        one.own.expires,
        _is_over(one, today),
        ours.time if ours else None,
        ours is not None,
    )


def _bound(one: Filter, rules: RuleSet) -> set[str]:
    """Ids of the rules that a filter tunes."""
    return {rule.id for rule in rules.rules if any(each.id == one.id for each in rule.filters)}


def _is_over(one: Filter, today: date) -> bool:
    return one.own.expires is not None and one.own.expires <= today


def _unready(one: Filter, today: date) -> Iterator[lint.Problem]:
    """What speaks against a filter that is to count from today on; what counts may stay so."""
    if not one.own.reason.strip():
        yield lint.Problem(one.document.where("cityward", "reason"), "the filter has no reason")
    where, ends = one.document.where("cityward", "expires"), one.own.expires
    if _is_over(one, today):
        yield lint.Problem(where, f"the filter ends on {ends}, which is past: name a later day")
    elif ends and ends > (last := today + timedelta(days=FILTER_DAYS_MAX)):
        yield lint.Problem(where, f"the filter ends on {ends}: a year is enough, so by {last}")


def _hides_like(one: Filter, other: Filter) -> bool:
    """Whether two filters hide the same events of the same rules, as they are written."""
    mine, theirs = one.document.value, other.document.value
    return all(mine.get(name) == theirs.get(name) for name in ("taxonomy", "logsource", "filter"))


def _too_much(
    one: Filter, looked: Iterable[tuple[Speaking, int, list[Hidden]]]
) -> Iterator[lint.Problem]:
    """Rules that would say next to nothing with a filter: nobody may have meant that."""
    for rule, count, hidden in looked:
        wholes = sum(each.is_whole for each in hidden)
        if wholes >= max(MANY, NEARLY_ALL * count):
            what = (
                f"it would hide {wholes:,} of the newest {count:,} findings of "
                f"{rule.analytic.name} in {LOOKED_BACK.days} days, nearly all that it says:"
                " name more fields if that is not meant"
            )
            yield lint.Problem(one.document.where("filter"), what, "warning")


def _newest(looked: Iterable[tuple[Speaking, int, list[Hidden]]]) -> list[Hidden]:
    found = [each for _, _, hidden in looked for each in hidden]
    return sorted(found, key=lambda one: one.time, reverse=True)[:FINDINGS_MAX]


def _filter_in(rules: RuleSet, id: str) -> Filter | None:
    return next((one for one in rules.filters if one.id == id), None)


def _event(stored: Mapping[str, Any]) -> Event:
    return event_of({**BEFORE_SEEN, "event.ingested": stored["@timestamp"], **stored})


def _plain(value: Any) -> Any:
    """As Sigma takes it literally."""
    return written(value) if isinstance(value, str) else value
