"""Rules and filters as people change them: what the console asks of a node, and what it is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from cityward.finding import Check, Why
from siem.store.protocol import Document
from siem.store.rulebook import Draft, Note, Version

if TYPE_CHECKING:
    from detectors.sigma.lint import Problem
    from detectors.sigma.samples import Outcome


PREVIEW_DAYS = (1, 7, 30, 90)
"""What a preview may ask for."""
FILTER_DAYS_MAX = 366
"""So long a filter may hide, a whole year: then somebody says again that it is harmless."""
Named = tuple[str, str]
"""Id and title of a rule."""


class Source(msgspec.Struct, frozen=True):
    """A document as a person edits it."""

    document: str
    title: str
    kind: str
    text: str
    samples: str
    origin: str
    """`draft`, `deployed`, `file` or `new`."""
    number: int = 0
    """Of the version that counts; 0: the file does, or nothing."""
    draft_by: str = ""
    is_shipped: bool = False
    """It comes with cityward: to change it takes two people."""
    counts: str = ""
    """The text that counts now; empty: none does."""


class Silenced(msgspec.Struct, frozen=True):
    """A finding that was right, and that would not be made any more."""

    rule: str
    title: str
    finding: str
    operator: str
    """Who released it; empty: it is ours."""
    time: datetime
    by: str
    """The person who called it right; the operator, if it is another's."""

    @property
    def which(self) -> str:
        """In words: what was right."""
        if self.operator:
            return f"a sample that {self.operator} released; it can be set aside"
        when = f"{self.time:%Y-%m-%d %H:%M} UTC"
        return f"finding {self.finding[:12]} of {when} was right, says {self.by}"


class Examined(msgspec.Struct, frozen=True):
    """What a change would mean."""

    document: str
    kind: str
    title: str
    text: str
    samples: str
    number: int
    """Of the version that counts now; 0: there is none."""
    problems: tuple[Problem, ...]
    outcomes: tuple[Outcome, ...]
    silenced: tuple[Silenced, ...]
    lacking: tuple[str, ...] = ()
    """What its samples lack to be a proof; that forbids nothing."""
    row: FilterRow | None = None
    """A filter that is to be added, as the list will have it; None if it cannot be loaded."""

    book: int | None = None
    """Of a filter that is to be added: number of the newest version of all documents; it is only
    deployed if nothing has come since."""

    def reasons(self) -> list[str]:
        """What forbids it, in words; empty: it may be deployed."""
        said = [str(one) for one in self.problems if one.severity == "error"]
        said += [
            f"sample {one.name!r} fails: {'; '.join(one.problems)}"
            for one in self.outcomes
            if not one.passed
        ]
        said += [f"{one.title} would not be made any more: {one.which}" for one in self.silenced]
        return said


class Hidden(msgspec.Struct, frozen=True):
    """A finding of the past, and how much of it a filter hides."""

    finding: str
    title: str
    verdict: str
    time: datetime
    events: int
    """Copies of its events that were looked at."""
    hidden: int
    sentence: str = ""
    """What it says: who did what to whom."""

    @property
    def is_whole(self) -> bool:
        """True if nothing of it would be left."""
        return self.hidden == self.events


class FilterRow(msgspec.Struct, frozen=True):
    """A filter that is loaded."""

    id: str
    title: str
    rules: tuple[Named, ...]
    """Those it names; empty: every rule of its log source."""
    heard_by: tuple[Named, ...]
    """Correlations and absences that build on its rules: they do not get what it hides."""
    owner: str
    reason: str
    expires: date | None
    is_expired: bool
    since: datetime | None
    """When it was deployed; None: it stands in a file."""
    is_ours: bool
    """It was deployed here, so it can be taken back here."""


class HideCount(msgspec.Struct, frozen=True):
    """How much a filter hides of the events that are kept, as if it had counted all the time."""

    matches: int | None
    """Of its rules; None: that is not known."""
    days: int
    """The period: so many days back, or fewer if no older events are kept."""
    time: datetime
    """When it was counted."""
    why: str = ""
    """Why it is not known, or not all of it."""

    @property
    def words(self) -> str:
        """In one line: how much, and of which time."""
        if self.matches is None:
            return f"not known: {self.why}"
        days = "1 day" if self.days == 1 else f"{self.days} days"
        much = f"{self.matches:,}" if self.matches else "nothing"
        return f"{much} in {days}" + (f"; {self.why}" if self.why else "")

    @property
    def is_useless(self) -> bool:
        """It hides nothing in all this time."""
        return self.matches == 0 and not self.why


class HideCounts(msgspec.Struct, frozen=True):
    """What is known of it so far."""

    of: Mapping[str, HideCount]
    """By filter."""
    is_over: bool
    """False: it is being counted."""


class Tried(msgspec.Struct, frozen=True):
    """An event of a tried line."""

    fields: Mapping[str, Any]
    logsource: str
    collector: str
    matched: bool
    why: Why
    """Each line of the rule beside what the event has."""
    against: tuple[Check, ...] = ()
    """Just those because of which it is silent."""


class Cost(msgspec.Struct, frozen=True):
    """What a rule takes of a processor, measured on events of its log source that are kept."""

    events: int
    """Of its log source, in the days of the preview."""
    measured: int
    """So many of them, the newest, it was asked of."""
    cpu_us: float
    """Microseconds of a processor that it takes for one; 0.0: there was none to ask."""
    share: float
    """Part of one processor that it takes at this rate."""


class Job(msgspec.Struct):
    """A preview: under way, or what came out."""

    id: str
    document: str
    text: str
    """Of which it speaks: a preview of an older text is stale."""
    days: int
    by: str
    progress: Any = None
    result: Any = None
    cost: Cost | None = None
    fault: str = ""
    is_over: bool = False


class Tuning(Protocol):
    """Rules and filters of a node as people change them; nothing counts before `deploy`.

    What it raises: `RuleError` for a document that cannot be loaded, `InputError` for what is not
    there, `Unsafe` for what is forbidden, `Conflict` if somebody else was faster.
    """

    def source(self, document: str) -> Source | None:
        """A document to edit: the draft, what is deployed, or its file."""
        ...

    def blank(self) -> Source:
        """A rule to begin with."""
        ...

    def rule_of(self, query: str, newest: Document, by: str) -> Source:
        """A rule made of a query on events, and of the newest event that it found."""
        ...

    def examine(self, text: str, samples: str = "") -> Examined:
        """What a document would do; nothing changes."""
        ...

    def unnoticed(self, text: str, samples: str) -> Sequence[str]:
        """Lines of a rule that could be left out without a sample failing."""
        ...

    def save(self, text: str, samples: str, by: str, seen: datetime | None = None) -> str:
        """Keep a draft, whatever it is like, in the place of the one seen; id of its document."""
        ...

    def discard(self, document: str, seen: datetime | None) -> None:
        """Forget the draft that was seen."""
        ...

    def draft(self, document: str) -> Draft | None:
        """What somebody writes on."""
        ...

    def drafts(self) -> Sequence[Draft]:
        """What people write on, newest first."""
        ...

    def deploy(self, text: str, samples: str, by: str, reason: str, seen: int) -> int:
        """Let a document count from now on; returns the number of its version."""
        ...

    def revert(
        self, document: str, number: int, by: str, reason: str, seen: int | None = None
    ) -> int:
        """Go back to an older version, or with 0 to the file, if it is still the one seen."""
        ...

    def text_of(self, document: str, number: int) -> tuple[str, str]:
        """Text and samples of a version, or with 0 of the file; empty: there is none."""
        ...

    def history(self, document: str) -> Sequence[Version]:
        """Versions of a document, newest first."""
        ...

    def notes(self, document: str) -> Sequence[Note]:
        """What people wrote for whoever works on a document next, newest first."""
        ...

    def note(self, document: str, text: str, by: str) -> None:
        """Keep a note of a document that is there."""
        ...

    def protected(self, rule: str) -> Mapping[str, int]:
        """Findings whose events may not be silenced, with how many events each."""
        ...

    def filters(self, rule: str = "") -> Sequence[FilterRow]:
        """Filters that are loaded, those of one rule or all; expired ones first."""
        ...

    def hide_counts(self) -> HideCounts:
        """How much each filter hides of the last 30 days; what is not known yet is counted."""
        ...

    def tuned_at(self) -> Mapping[str, datetime]:
        """When each rule was changed here, by its id."""
        ...

    def filter_hides(self, id: str) -> Sequence[Hidden]:
        """Findings of the last 30 days that a loaded filter hides, of those that are kept."""
        ...

    def choices(self, finding: Document) -> Mapping[str, Any]:
        """Fields by which a filter may tell the events of a finding, with their one value."""
        ...

    def filter_of(
        self, finding: Document, fields: Sequence[str], reason: str, expires: date, by: str
    ) -> tuple[str, Examined, Sequence[Hidden]]:
        """A filter made from a finding, what speaks against it, and what it would have hidden."""
        ...

    def add(self, one: Examined, by: str, reason: str) -> None:
        """Let a filter count that was made and examined; the same is added once."""
        ...

    def attempt(self, text: str, line: str, collector: str = "") -> Sequence[Tried]:
        """What a rule makes of a line, by the collector that recognises it."""
        ...

    def explain(self, text: str, event: Document) -> Tried:
        """What a rule makes of an event that is kept."""
        ...

    def preview(self, text: str, days: int, by: str) -> Job:
        """Begin to ask the events of some days what a rule would have said."""
        ...

    def job(self, id: str) -> Job | None:
        """A preview that was begun."""
        ...

    def cancel(self, id: str) -> None:
        """Stop a preview; it keeps what it had come to."""
        ...

    def words(self) -> Mapping[str, Any]:
        """What an editor offers, by where it fits."""
        ...
