"""The rulebook: documents that people deployed at this node, every version of them, in `node.db`.

The newest version of a document counts, in the place of a file with the same id; a version without
text gives the place back to the file. Each is sealed with a key of the operator: who can write the
database but not read that key deploys nothing. Beside it stand drafts, and the protected samples:
events of findings that a person called right, which no change may silence.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import msgspec

from cityward.errors import InputError, RuleError
from siem.store.inventory import raise_version
from siem.store.lines import harmless
from siem.store.protocol import Conflict, Document
from siem.store.query import from_micros, micros
from siem.store.samples import SampleDesk
from siem.store.trail import Trail

SCHEMA = """
CREATE TABLE rulebook (
    number INTEGER PRIMARY KEY AUTOINCREMENT, document TEXT NOT NULL, kind TEXT NOT NULL,
    title TEXT NOT NULL, text TEXT NOT NULL, samples TEXT NOT NULL, person TEXT NOT NULL,
    reason TEXT NOT NULL, time INTEGER NOT NULL, seal TEXT NOT NULL
);
CREATE INDEX rulebook_by_document ON rulebook (document, number);
CREATE TABLE drafts (
    document TEXT PRIMARY KEY, text TEXT NOT NULL, samples TEXT NOT NULL, person TEXT NOT NULL,
    time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE protected (
    id TEXT PRIMARY KEY, rule TEXT NOT NULL, finding TEXT NOT NULL, operator TEXT NOT NULL,
    event TEXT NOT NULL, person TEXT NOT NULL, time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX protected_by_rule ON protected (rule, time);
CREATE INDEX protected_by_finding ON protected (finding);
"""
"""Since format 3 of the state."""
NOTES_SCHEMA = """
CREATE TABLE IF NOT EXISTS rule_notes (
    number INTEGER PRIMARY KEY, document TEXT NOT NULL, text TEXT NOT NULL, person TEXT NOT NULL,
    time INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS rule_notes_by_document ON rule_notes (document, number);
"""
"""Since format 6."""

TEXT_MAX, REASON_MAX = 1_000_000, 2_000
SAID_MAX = 200
"""Characters of a reason that stand in an error."""
VERSIONS_KEPT = 200
"""Of one document; the oldest go."""
NOTES_KEPT = 200
"""Of one document; the oldest go."""
DOCUMENTS_MAX = 5_000
DRAFTS_MAX = 500
EVENTS_PROTECTED = 20
"""Of one finding: the newest that made it speak."""
FINDINGS_PROTECTED = 200
"""Of one rule; the oldest go."""


class Version(msgspec.Struct, frozen=True):
    """What somebody deployed."""

    number: int
    document: str
    """Id of the rule or filter."""
    kind: str
    title: str
    text: str
    """YAML; empty: the document is taken back, and a file with its id counts again."""
    samples: str
    """YAML of its samples; may be empty."""
    by: str
    reason: str
    time: datetime
    is_whole: bool
    """False: it is not as it was deployed, and does not count."""

    @property
    def file(self) -> str:
        """What stands for its file in messages."""
        return f"rulebook/{self.document}.yml"


class Draft(msgspec.Struct, frozen=True):
    """What somebody writes on; it changes nothing."""

    document: str
    text: str
    samples: str
    by: str
    time: datetime

    def is_seconded(self, text: str, samples: str, by: str) -> bool:
        """True if another person than who saved it deploys just these texts."""
        return self.says(text, samples) and self.by != by

    def says(self, text: str, samples: str) -> bool:
        """True if it holds just these texts."""
        return (self.text, self.samples) == (text, samples)


class Note(msgspec.Struct, frozen=True):
    """What somebody wrote for whoever works on a document next."""

    text: str
    by: str
    time: datetime


class Protected(msgspec.Struct, frozen=True):
    """An event of a finding that a person called right."""

    rule: str
    finding: str
    """Its id; that of the sample, if it is another operator's."""
    operator: str
    """Empty: it was seen here; otherwise who released it."""
    event: Document
    by: str
    time: datetime


class RulebookStore:
    """Versions, drafts and protected samples, on the connections of a `NodeDb`."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        reading: Callable[[], sqlite3.Connection],
        operator_key: bytes,
        trail: Trail,
        loaded: Callable[[str], Document],
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._key = hmac.digest(operator_key, b"rulebook", "sha256")
        self._trail = trail
        self._loaded = loaded

    # ---- Versions

    def deployed(self) -> list[Version]:
        """The newest version of every document that is not taken back, by id."""
        rows = self._reading().execute(
            "SELECT * FROM rulebook WHERE number IN"
            " (SELECT max(number) FROM rulebook GROUP BY document)"
            " AND text <> '' ORDER BY document"
        )
        return [self._version(row) for row in rows]

    def number(self) -> int:
        """Of the newest version of all."""
        return self._number(self._reading())

    @staticmethod
    def _number(db: sqlite3.Connection) -> int:
        return _count(db, "SELECT coalesce(max(number), 0) FROM rulebook")

    def history(self, document: str, limit: int = VERSIONS_KEPT) -> list[Version]:
        """Versions of a document, newest first."""
        rows = self._reading().execute(
            "SELECT * FROM rulebook WHERE document = ? ORDER BY number DESC LIMIT ?",
            (document, limit),
        )
        return [self._version(row) for row in rows]

    def newest(self, document: str) -> Version | None:
        """The version that counts, or the one that took the document back; None: there is none."""
        return self._last(self._reading(), document)

    def _last(self, db: sqlite3.Connection, document: str) -> Version | None:
        found = db.execute(
            "SELECT * FROM rulebook WHERE document = ? ORDER BY number DESC LIMIT 1", (document,)
        ).fetchone()
        return None if found is None else self._version(found)

    def deploy(self, one: Version, seen: int | None = None, book: int | None = None) -> int:
        """Write a version; it counts from now on. Returns its number.

        A draft that says just this goes with it; another one stays, whoever wrote it.

        Args:
            one: Its `number` and `is_whole` do not matter.
            seen: Number of the version that the person saw, 0 for none; None: whatever is there.
            book: Newest number of all documents, as it was looked at; None: whatever there is.

        Raises:
            InputError: nobody says why, or it is too much.
            Conflict: somebody else has deployed another version since, or with `book` anything.
        """
        reason = harmless(one.reason.strip())
        if not reason or len(reason) > REASON_MAX:
            raise InputError("a reason of 1 to 2,000 characters is needed", "reason", "Say why.")
        for text in (one.text, one.samples):
            if len(text) > TEXT_MAX:
                what = f"{len(text):,} characters are more than {TEXT_MAX:,}"
                raise InputError(what, one.document, "Split it.")
        with self._writing() as db:
            last = self._last(db, one.document)
            if seen is not None and seen != (last.number if last else 0):
                raise overtaken(last, one.title)
            if book is not None and book != self._number(db):
                row = db.execute("SELECT * FROM rulebook ORDER BY number DESC LIMIT 1").fetchone()
                raise _changed_since(self._version(row), one.title)
            if last is None and _count(db, "SELECT count(DISTINCT document) FROM rulebook") >= (
                DOCUMENTS_MAX
            ):
                what = f"{DOCUMENTS_MAX:,} documents are deployed already"
                raise InputError(what, one.document, "Put rules into a folder of rules.folders.")
            parts = (
                one.document, one.kind, harmless(one.title), one.text, one.samples,
                harmless(one.by), reason, micros(one.time),
            )  # fmt: skip
            number = db.execute(
                "INSERT INTO rulebook (document, kind, title, text, samples, person, reason, time,"
                " seal) VALUES (?, ?, ?, ?, ?, ?, ?, ?, '')",
                parts,
            ).lastrowid
            # With its number: no older version is put in front again past us.
            seal = self._seal((number, *parts))
            db.execute("UPDATE rulebook SET seal = ? WHERE number = ?", (seal, number))
            db.execute(
                "DELETE FROM rulebook WHERE document = ?1 AND number NOT IN (SELECT number FROM"
                " rulebook WHERE document = ?1 ORDER BY number DESC LIMIT ?2)",
                (one.document, VERSIONS_KEPT),
            )
            db.execute(
                "DELETE FROM drafts WHERE document = ? AND text = ? AND samples = ?",
                (one.document, one.text, one.samples),
            )
            raise_version(db)
            word = "deployed" if one.text else "taken back"
            before, after = last.text if last else "", one.text
            self._trail.add(
                db, one.by, f"{one.kind}: {word}. {reason}", one.document, one.time,
                _digest(before), _digest(after),
            )  # fmt: skip
        return int(number or 0)

    def _version(self, row: sqlite3.Row) -> Version:
        *parts, seal = tuple(row)
        return Version(
            row["number"],
            row["document"],
            row["kind"],
            row["title"],
            row["text"],
            row["samples"],
            row["person"],
            row["reason"],
            from_micros(row["time"]),
            hmac.compare_digest(self._seal(parts), seal),
        )

    def _seal(self, parts: Sequence[Any]) -> str:
        return hmac.new(self._key, msgspec.json.encode(parts), "sha256").hexdigest()

    # ---- Drafts

    def drafts(self) -> list[Draft]:
        """What people write on, newest first."""
        rows = self._reading().execute("SELECT * FROM drafts ORDER BY time DESC")
        return [_draft(row) for row in rows]

    def draft(self, document: str) -> Draft | None:
        """The draft of a document."""
        return _draft_in(self._reading(), document)

    def put_draft(self, one: Draft, seen: datetime | None = None) -> None:
        """Keep a draft; it replaces the one before it. The same one sent twice is kept once.

        Args:
            one: The draft.
            seen: When the draft that the person saw was saved; None: they saw none.

        Raises:
            InputError: it is too long, or there are too many.
            Conflict: somebody else has saved another one since.
        """
        if max(len(one.text), len(one.samples)) > TEXT_MAX:
            raise InputError(f"more than {TEXT_MAX:,} characters", one.document, "Split it.")
        one = msgspec.structs.replace(one, by=harmless(one.by))
        with self._writing() as db:
            known = _draft_in(db, one.document)
            if known is not None and known.by == one.by and known.says(one.text, one.samples):
                return
            _refuse_unseen(known, seen)
            if known is None and _count(db, "SELECT count(*) FROM drafts") >= DRAFTS_MAX:
                raise InputError(
                    f"{DRAFTS_MAX} drafts are kept", one.document, "Deploy or drop some."
                )
            row = (one.document, one.text, one.samples, one.by, micros(one.time))
            db.execute("INSERT OR REPLACE INTO drafts VALUES (?, ?, ?, ?, ?)", row)

    def drop_draft(self, document: str, seen: datetime | None) -> None:
        """Forget the draft that the person saw; see `put_draft`.

        Raises:
            Conflict: somebody else has saved another one since.
        """
        with self._writing() as db:
            _refuse_unseen(_draft_in(db, document), seen)
            db.execute("DELETE FROM drafts WHERE document = ?", (document,))

    # ---- Notes

    def notes(self, document: str) -> list[Note]:
        """What people wrote of a document, newest first."""
        rows = self._reading().execute(
            "SELECT text, person, time FROM rule_notes WHERE document = ? ORDER BY number DESC",
            (document,),
        )
        return [Note(row["text"], row["person"], from_micros(row["time"])) for row in rows]

    def add_note(self, document: str, one: Note) -> None:
        """Keep a note; the same one sent twice is kept once.

        Raises:
            InputError: it is empty, or too long.
        """
        text, by = note_in(one.text), harmless(one.by)
        last = next(iter(self.notes(document)), None)
        if last is not None and (last.text, last.by) == (text, by):
            return
        with self._writing() as db:
            db.execute(
                "INSERT INTO rule_notes (document, text, person, time) VALUES (?, ?, ?, ?)",
                (document, text, by, micros(one.time)),
            )
            db.execute(
                "DELETE FROM rule_notes WHERE document = ?1 AND number NOT IN (SELECT number FROM"
                " rule_notes WHERE document = ?1 ORDER BY number DESC LIMIT ?2)",
                (document, NOTES_KEPT),
            )
            self._trail.add(db, by, "note on a rule", document, one.time, after=_digest(text))

    # ---- Protected samples

    def protected(self, rule: str = "", finding: str = "") -> list[Protected]:
        """Protected events, of a rule, a finding, or all, by finding and time; ours before others'.

        What another operator released and somebody here set aside is none.
        """
        named = {name: one for name, one in (("rule", rule), ("finding", finding)) if one}
        where = "".join(f"{name} = ? AND " for name in named)
        rows = self._reading().execute(
            f"SELECT * FROM protected WHERE {where}(operator = '' OR finding NOT IN"
            " (SELECT id FROM foreign_samples WHERE aside)) ORDER BY rule, finding, id",
            tuple(named.values()),
        )
        found = [
            Protected(
                row["rule"],
                row["finding"],
                row["operator"],
                self._loaded(row["event"]),
                row["person"],
                from_micros(row["time"]),
            )
            for row in rows
        ]
        return sorted(
            found, key=lambda one: (one.rule, one.operator, one.finding, one.event["@timestamp"])
        )

    def judged(self, db: sqlite3.Connection, finding: Document, by: str, now: datetime) -> None:
        """A finding has a verdict: its events are protected from now on, or no longer.

        Args:
            db: Inside the transaction that writes the verdict.
            finding: As it is then.
            by: Whose verdict it is.
            now: When.

        What was released of a finding that is no longer right is taken back.
        """
        id, rule = finding["finding.id"], finding.get("rule.id", "")
        if finding["finding.verdict"] != "true_positive":
            db.execute("DELETE FROM protected WHERE finding = ? AND operator = ''", (id,))
            SampleDesk(db).take_back("false_positive", now, finding=id)
            return
        rows = db.execute(
            "SELECT event, document FROM finding_events WHERE finding = ? ORDER BY number DESC"
            " LIMIT ?",
            (id, EVENTS_PROTECTED),
        )
        kept = [
            (_digest(f"{rule}\0{id}\0{row['event']}"), rule, id, "", row["document"],
             harmless(by), micros(now))
            for row in rows
        ]  # fmt: skip
        _protect(db, rule, kept)


def _protect(db: sqlite3.Connection, rule: str, rows: Sequence[tuple[Any, ...]]) -> None:
    db.executemany("INSERT OR IGNORE INTO protected VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    # Samples of others have bounds of their own: they take no place of ours.
    db.execute(
        "DELETE FROM protected WHERE rule = ?1 AND operator = '' AND finding NOT IN (SELECT finding"
        " FROM protected WHERE rule = ?1 AND operator = '' GROUP BY finding"
        " ORDER BY max(time) DESC LIMIT ?2)",
        (rule, FINDINGS_PROTECTED),
    )


def _refuse_unseen(known: Draft | None, seen: datetime | None) -> None:
    if known is not None and (seen is None or micros(known.time) != micros(seen)):
        what = f"another draft has been saved since, by {known.by}"
        raise Conflict(what, "draft", "Look at it before you replace it.")


def overtaken(last: Version | None, title: str) -> Conflict:
    """Who was faster with which version, when and why."""
    todo = "Look at what counts now before you replace it."
    if last is None:
        return Conflict("the version that was seen is not there any more", title, todo)
    done = f"version {last.number} has been deployed" if last.text else "it was taken back"
    when = f"{last.time:%Y-%m-%d %H:%M} UTC"
    reason = last.reason if len(last.reason) <= SAID_MAX else f"{last.reason[: SAID_MAX - 1]}…"
    return Conflict(f"{done} since, by {last.by}, {when}: {reason}", title, todo)


def _changed_since(newest: Version, title: str) -> Conflict:
    """Who changed the rules while somebody looked at what a new document would do to them."""
    done = "deployed" if newest.text else "took back"
    what = f"{newest.by} {done} {newest.title} meanwhile"
    return Conflict(what, title, "Look at what it hides now, then add it.")


def note_in(text: str) -> str:
    """A note as it is kept.

    Raises:
        InputError: it is empty, or too long.
    """
    text = harmless(text.strip())
    if not text or len(text) > REASON_MAX:
        what = f"a note has 1 to {REASON_MAX:,} characters, this one {len(text):,}"
        raise InputError(what, "note", "Write what the next one should know.")
    return text


def id_in(text: str) -> str:
    """Id of the document that a text is, or is to become.

    Raises:
        RuleError: it is no YAML, or has no id.
    """
    from cityward import documents

    found = [one for one in documents.parse(text) if isinstance(one.value, dict)]
    if len(found) != 1 or not isinstance(found[0].value.get("id"), str):
        raise RuleError("it has no id", "<text>:1", f"Write id: {uuid.uuid4()}")
    try:
        return str(uuid.UUID(found[0].value["id"]))
    except ValueError as error:
        todo = f"Write id: {uuid.uuid4()}"
        raise RuleError("its id is no UUID", "<text>:1", todo) from error


def _draft_in(db: sqlite3.Connection, document: str) -> Draft | None:
    row = db.execute("SELECT * FROM drafts WHERE document = ?", (document,)).fetchone()
    return None if row is None else _draft(row)


def _draft(row: sqlite3.Row) -> Draft:
    return Draft(
        row["document"], row["text"], row["samples"], row["person"], from_micros(row["time"])
    )


def _count(db: sqlite3.Connection, query: str) -> int:
    return int(db.execute(query).fetchone()[0])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest() if text else ""
