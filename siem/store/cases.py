"""Cases: incidents, with what belongs to them and who did what, in `node.db`.

An incident gathers findings, tasks, answers for drafts and submissions. Every change raises its
revision, writes a line of its history and one of the audit trail. Merging and splitting keep ids:
a merged incident stays, and says where it went.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import msgspec

from cityward.errors import InputError
from cityward.finding import SEVERITIES
from siem.store.lines import harmless
from siem.store.protocol import Conflict
from siem.store.query import micros
from siem.store.trail import Trail

SCHEMA = """
CREATE TABLE incidents (
    id TEXT PRIMARY KEY, stage TEXT NOT NULL, opened INTEGER NOT NULL, changed INTEGER NOT NULL,
    document TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX incidents_by_stage ON incidents (stage, changed);
"""
"""Since format 3 of the state."""

STAGES = ("new", "investigating", "contained", "recovering", "closed", "merged")
"""`merged` is where merging leads; the others are chosen."""
CAUSES = ("unknown", "malicious", "error", "malfunction", "hazard")
TITLE_MAX, TEXT_MAX = 200, 4_000
FINDINGS_MAX, TASKS_MAX, HISTORY_MAX = 5_000, 500, 2_000


class Step(msgspec.Struct, frozen=True):
    """One line of the history."""

    time: datetime
    by: str
    what: str
    why: str = ""


class Task(msgspec.Struct, frozen=True):
    """Something that somebody has to do."""

    number: int
    text: str
    by: str
    done_by: str = ""
    done_at: datetime | None = None


class Submission(msgspec.Struct, frozen=True):
    """That a duty was done: who sent what to whom, and when."""

    duty: str
    by: str
    time: datetime
    to: str
    reference: str = ""
    """The recipient's number for it."""
    text: str = ""
    """What was sent, as the draft stood."""


class Incident(msgspec.Struct, frozen=True, kw_only=True):
    """One case."""

    id: str
    operator: str
    title: str
    stage: str = "new"
    severity: str = "medium"
    cause: str = "unknown"
    summary: str = ""
    opened: datetime
    opened_by: str
    aware_at: datetime | None = None
    """Starts the legal clocks."""
    closed: datetime | None = None
    owner: str = ""
    findings: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    duties: tuple[str, ...] = ()
    """Ids of the duties that stand on it."""
    answers: dict[str, dict[str, str]] = {}
    """What people wrote into drafts: duty, field, text."""
    submissions: tuple[Submission, ...] = ()
    tasks: tuple[Task, ...] = ()
    merged_into: str = ""
    revision: int = 1
    history: tuple[Step, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it goes on."""
        return self.stage not in ("closed", "merged")


Mark = Callable[[sqlite3.Connection, Sequence[str], str, str, datetime], list[str]]
"""Writes the id of the incident (or none) on findings, in the transaction; says which exist."""

_CHOICES = {"stage": STAGES[:-1], "severity": SEVERITIES, "cause": CAUSES}
_OPEN = "stage NOT IN ('closed', 'merged')"
_FREE = ("title", "summary", "owner", "aware_at", "services", "duties")


class CaseStore:
    """The incidents of an operator or a hub; made by `NodeDb`, on its connections.

    Args:
        writing: A transaction.
        reading: A connection.
        mark: Writes an incident's id on findings.
        trail: Where what people do is kept.
    """

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        reading: Callable[[], sqlite3.Connection],
        mark: Mark,
        trail: Trail,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._mark = mark
        self._trail = trail

    # ---- Reading

    def get(self, id: str) -> Incident | None:
        """One incident."""
        return _get(self._reading(), id)

    def running(self) -> int:
        """How many are open."""
        row = self._reading().execute(f"SELECT count(*) FROM incidents WHERE {_OPEN}").fetchone()
        return int(row[0])

    def all(self, *, open_only: bool = False, words: str = "") -> list[Incident]:
        """Incidents in which all words stand, those changed last first."""
        where = f"WHERE {_OPEN}" if open_only else ""
        rows = self._reading().execute(
            f"SELECT document FROM incidents {where} ORDER BY changed DESC, id"
        )
        found = [msgspec.json.decode(row[0], type=Incident) for row in rows]
        wanted = words.casefold().split()
        return [one for one in found if _says(one, wanted)]

    # ---- Changing

    def open(
        self,
        operator: str,
        title: str,
        by: str,
        now: datetime,
        *,
        findings: Sequence[str] = (),
        **said: Any,
    ) -> Incident:
        """Open a case; see `change` for what may be said.

        Raises:
            InputError: it has no title, or says what cannot be.
        """
        by, title, findings = harmless((by, title.strip(), list(findings)))
        with self._writing() as db:
            made = Incident(
                id=_next_id(db, now), operator=operator, title=title, opened=now, opened_by=by
            )
            made = _said(made, said)
            joined = self._mark(db, findings, made.id, by, now)
            made = msgspec.structs.replace(made, findings=tuple(joined))
            return self._keep(db, made, by, "opened", "", now)

    def change(
        self, id: str, by: str, now: datetime, why: str = "", seen: int | None = None, **said: Any
    ) -> Incident:
        """Change what is said of an incident.

        Args:
            id: Which one.
            by: Who.
            now: When.
            why: Their reason.
            seen: Revision that the person has seen.
            **said: `title`, `stage`, `severity`, `cause`, `summary`, `owner`, `aware_at`,
                `services`, `duties`.

        Raises:
            InputError: there is none, or a value cannot be.
            Conflict: another revision is there.
        """

        def changed(one: Incident) -> tuple[Incident, str]:
            after = _said(one, said)
            if "stage" in said:
                closed = now if after.stage == "closed" else None
                after = msgspec.structs.replace(after, closed=closed)
            named = [name for name in said if getattr(one, name) != getattr(after, name)]
            return after, ", ".join(f"{name} {_word(getattr(after, name))}" for name in named)

        return self._change(id, by, now, changed, why, seen)

    def join(self, id: str, findings: Sequence[str], by: str, now: datetime) -> Incident:
        """Add findings; one that belongs to another incident changes over."""
        with self._writing() as db:
            one = self._known(db, id)
            moved = self._mark(db, harmless(list(findings)), one.id, by, now)
            for other in self._others(db, one.id, moved):
                rest = tuple(f for f in other.findings if f not in moved)
                left = msgspec.structs.replace(other, findings=rest)
                self._keep(
                    db, left, by, f"{len(other.findings) - len(rest)} findings left", "", now
                )
            after = msgspec.structs.replace(
                one, findings=tuple(dict.fromkeys((*one.findings, *moved)))
            )
            if len(after.findings) > FINDINGS_MAX:
                raise InputError(
                    f"more than {FINDINGS_MAX:,} findings", f"incident {id}", "Open another one."
                )
            return self._keep(db, after, by, f"{len(moved)} findings joined", "", now)

    def leave(self, id: str, findings: Sequence[str], by: str, now: datetime) -> Incident:
        """Take findings out."""
        with self._writing() as db:
            one = self._known(db, id)
            gone = [finding for finding in findings if finding in one.findings]
            self._mark(db, gone, "", by, now)
            rest = tuple(finding for finding in one.findings if finding not in gone)
            after = msgspec.structs.replace(one, findings=rest)
            return self._keep(db, after, by, f"{len(gone)} findings left", "", now)

    def note(self, id: str, text: str, by: str, now: datetime) -> Incident:
        """Write a note into the history."""
        text = _text(text, "note")
        return self._change(id, by, now, lambda one: (one, "note"), text, always=True)

    def add_task(self, id: str, text: str, by: str, now: datetime) -> Incident:
        """Say what has to be done."""
        text = _text(text, "task")

        def added(one: Incident) -> tuple[Incident, str]:
            if len(one.tasks) >= TASKS_MAX:
                raise InputError(f"{TASKS_MAX} tasks", f"incident {id}", "Close some first.")
            task = Task(len(one.tasks) + 1, text, by)
            return msgspec.structs.replace(one, tasks=(*one.tasks, task)), f"task: {text}"

        return self._change(id, by, now, added)

    def do_task(self, id: str, number: int, by: str, now: datetime) -> Incident:
        """Say that a task is done."""

        def done(one: Incident) -> tuple[Incident, str]:
            task = next((task for task in one.tasks if task.number == number), None)
            if task is None:
                raise InputError(f"there is no task {number}", f"incident {id}", "See its tasks.")
            if task.done_at is not None:
                return one, ""
            after = msgspec.structs.replace(task, done_by=by, done_at=now)
            tasks = tuple(after if one_ is task else one_ for one_ in one.tasks)
            return msgspec.structs.replace(one, tasks=tasks), f"done: {task.text}"

        return self._change(id, by, now, done)

    def answer(
        self, id: str, duty: str, answers: Mapping[str, str], by: str, now: datetime
    ) -> Incident:
        """Write into the draft of a duty; an empty text leaves it to the case again."""

        def answered(one: Incident) -> tuple[Incident, str]:
            kept = dict(one.answers.get(duty, {}))
            for name, text in answers.items():
                if text.strip():
                    kept[name] = text.strip()[:TEXT_MAX]
                else:
                    kept.pop(name, None)
            return msgspec.structs.replace(
                one, answers={**one.answers, duty: kept}
            ), f"draft {duty}"

        return self._change(id, by, now, answered)

    def submit(self, id: str, submission: Submission, now: datetime) -> Incident:
        """Record that a person has sent what a duty asks for; once for each duty."""
        by = submission.by

        def submitted(one: Incident) -> tuple[Incident, str]:
            if submission.duty not in one.duties:
                todo = "Put it on the incident first."
                raise InputError(f"{submission.duty} does not stand on it", f"incident {id}", todo)
            if any(old.duty == submission.duty for old in one.submissions):
                raise InputError(
                    f"{submission.duty} was submitted already",
                    f"incident {id}",
                    "Write what came later as a note.",
                )
            if submission.time > now:
                raise InputError("the time is not past", "time", "Say when it was sent.")
            after = (*one.submissions, harmless_submission(submission))
            what = f"submitted {submission.duty} to {submission.to} {submission.reference}".rstrip()
            return msgspec.structs.replace(one, submissions=after), what

        return self._change(id, by, now, submitted)

    def merge(self, id: str, other: str, by: str, now: datetime) -> Incident:
        """Make another incident a part of this one; its id stays, and says where it went.

        The earlier time of awareness counts: merging never gives a clock more time.
        """
        with self._writing() as db:
            one, gone = self._known(db, id), self._known(db, other)
            if id == other:
                raise InputError("an incident is no part of itself", "other", "Name another one.")
            if gone.submissions:
                raise InputError(
                    f"{other} has submissions", "other", f"Merge {id} into {other} instead."
                )
            aware = min((t for t in (one.aware_at, gone.aware_at) if t is not None), default=None)
            self._mark(db, gone.findings, id, by, now)
            number = len(one.tasks)
            tasks = [
                msgspec.structs.replace(task, number=number + at)
                for at, task in enumerate(gone.tasks, 1)
            ]
            kept = msgspec.structs.replace(
                one,
                findings=tuple(dict.fromkeys((*one.findings, *gone.findings))),
                services=tuple(dict.fromkeys((*one.services, *gone.services))),
                duties=tuple(dict.fromkeys((*one.duties, *gone.duties))),
                tasks=(*one.tasks, *tasks),
                aware_at=aware,
                severity=max(one.severity, gone.severity, key=SEVERITIES.index),
            )
            gone = msgspec.structs.replace(gone, stage="merged", merged_into=id, closed=now)
            self._keep(db, gone, by, f"merged into {id}", "", now)
            return self._keep(db, kept, by, f"{other} merged into it", "", now)

    def split(
        self, id: str, findings: Sequence[str], title: str, by: str, now: datetime
    ) -> Incident:
        """Make an incident of its own of some findings; the clocks go on with the same begin."""
        with self._writing() as db:
            one = self._known(db, id)
            moved = tuple(finding for finding in one.findings if finding in findings)
            if not moved:
                raise InputError("no finding of it is named", f"incident {id}", "Name some.")
            made = Incident(
                id=_next_id(db, now),
                operator=one.operator,
                title=_text(title, "title", TITLE_MAX),
                opened=now,
                opened_by=by,
                aware_at=one.aware_at,
                severity=one.severity,
                cause=one.cause,
                duties=one.duties,
                findings=moved,
            )
            self._mark(db, moved, made.id, by, now)
            rest = tuple(finding for finding in one.findings if finding not in moved)
            left = msgspec.structs.replace(one, findings=rest)
            self._keep(db, left, by, f"{len(moved)} findings split off into {made.id}", "", now)
            return self._keep(db, made, by, f"split off {id}", "", now)

    # ---- Keeping

    def _change(
        self,
        id: str,
        by: str,
        now: datetime,
        act: Callable[[Incident], tuple[Incident, str]],
        why: str = "",
        seen: int | None = None,
        *,
        always: bool = False,
    ) -> Incident:
        by, why = harmless((by, why[:TEXT_MAX]))
        with self._writing() as db:
            one = self._known(db, id)
            if seen is not None and seen != one.revision:
                raise Conflict(
                    f"{id} has revision {one.revision}, you saw {seen}", "revision", "Look again."
                )
            after, what = act(one)
            if not what or (after == one and not always):
                return one
            return self._keep(db, after, by, harmless(what), why, now)

    def _known(self, db: sqlite3.Connection, id: str) -> Incident:
        found = _get(db, id)
        if found is None:
            raise InputError(f"there is no incident {id[:40]!r}", "incident", "See the list.")
        if found.merged_into:
            raise InputError(f"{id} was merged", "incident", f"Go on with {found.merged_into}.")
        return found

    def _others(self, db: sqlite3.Connection, id: str, findings: Sequence[str]) -> list[Incident]:
        rows = db.execute(
            "SELECT document FROM incidents WHERE id <> ? AND stage <> 'merged'", (id,)
        )
        every = (msgspec.json.decode(row[0], type=Incident) for row in rows.fetchall())
        return [one for one in every if not set(findings).isdisjoint(one.findings)]

    def _keep(
        self, db: sqlite3.Connection, one: Incident, by: str, what: str, why: str, now: datetime
    ) -> Incident:
        before = _get(db, one.id)
        history = (*one.history, Step(now, by, what, why))[-HISTORY_MAX:]
        revision = before.revision + 1 if before else 1
        kept = msgspec.structs.replace(one, history=history, revision=revision)
        text = msgspec.json.encode(kept).decode()
        db.execute(
            "INSERT OR REPLACE INTO incidents VALUES (?, ?, ?, ?, ?)",
            (kept.id, kept.stage, micros(kept.opened), micros(now), text),
        )
        self._trail.add(db, by, f"incident: {what}", f"{kept.id} {why}".rstrip(), now)
        return kept


def harmless_submission(one: Submission) -> Submission:
    """A submission whose texts can be written."""
    return Submission(**harmless(msgspec.structs.asdict(one)))


def _get(db: sqlite3.Connection, id: str) -> Incident | None:
    row = db.execute("SELECT document FROM incidents WHERE id = ?", (harmless(id),)).fetchone()
    return msgspec.json.decode(row[0], type=Incident) if row else None


def _next_id(db: sqlite3.Connection, now: datetime) -> str:
    """`2026-0007`: people read it out on the telephone."""
    year = f"{now.year:04}-"
    row = db.execute(
        "SELECT max(CAST(substr(id, 6) AS INTEGER)) FROM incidents WHERE id LIKE ?", (f"{year}%",)
    ).fetchone()
    return f"{year}{(row[0] or 0) + 1:04}"


def _said(one: Incident, said: Mapping[str, Any]) -> Incident:
    """An incident with what somebody says of it."""
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name in _CHOICES:
            if value not in _CHOICES[name]:
                todo = ", ".join(_CHOICES[name])
                raise InputError(
                    f"{str(value)[:40]!r} is no {name}", name, f"Choose one of {todo}."
                )
            values[name] = value
        elif name in ("services", "duties"):
            values[name] = tuple(
                dict.fromkeys(harmless(text)[:TITLE_MAX] for text in value if text)
            )
        elif name == "aware_at":
            if value is not None and value.tzinfo is None:
                raise InputError("a time needs its offset", name, "Write Z behind it.")
            values[name] = value
        elif name in _FREE:
            most = TEXT_MAX if name == "summary" else TITLE_MAX
            values[name] = harmless(str(value).strip())[:most]
        else:
            raise InputError(f"{name!r} cannot be changed", name, "")
    made = msgspec.structs.replace(one, **values)
    if not made.title:
        raise InputError("it has no title", "title", "Say in a line what happened.")
    return made


def _text(text: str, what: str, most: int = TEXT_MAX) -> str:
    text = harmless(text.strip())[:most]
    if not text:
        raise InputError(f"the {what} is empty", what, "Write something.")
    return text


def _word(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return str(value)[:TITLE_MAX] or "nobody"


def _says(one: Incident, wanted: Sequence[str]) -> bool:
    if not wanted:
        return True
    text = " ".join((one.id, one.title, one.owner, one.summary, one.severity, *one.services))
    return all(word in text.casefold() for word in wanted)
