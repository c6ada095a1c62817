"""The audit trail: what people did, as a chain in which no line can be changed unseen.

Every line carries a keyed hash over itself and the hash of the line before it. The key is the
operator's, a file of its own: who can write the database but not read that file cannot make a line
that fits. A sealed head says which line is the last, a sealed anchor what retention took away.
"""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from siem.store.lines import UNWRITABLE, harmless
from siem.store.protocol import Range
from siem.store.query import from_micros, micros

SCHEMA = """
ALTER TABLE audit ADD COLUMN before TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN after TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN previous TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN hash TEXT NOT NULL DEFAULT '';
CREATE TRIGGER audit_unchanged BEFORE UPDATE ON audit WHEN old.hash <> '' BEGIN
    SELECT RAISE(ABORT, 'lines of the audit trail are never changed');
END;
CREATE TRIGGER audit_kept BEFORE DELETE ON audit
    WHEN old.number > coalesce((SELECT value FROM numbers WHERE name = 'audit_anchor'), 0) BEGIN
    SELECT RAISE(ABORT, 'lines of the audit trail are only taken by retention');
END;
"""
"""Since format 2 of the state."""

ACTION_MAX, ABOUT_MAX = 200, 2000
WORDS_MAX = 20
BEGIN = "0" * 64
"""What the first line names as the hash before it."""


class Audited(msgspec.Struct, frozen=True):
    """One line of the audit trail."""

    number: int
    time: datetime
    by: str
    action: str
    about: str
    before: str = ""
    """Digest of what was changed, as it was; empty if nothing was changed or it was new."""
    after: str = ""
    """Digest of it as it is since then."""
    previous: str = ""
    hash: str = ""


class Proof(msgspec.Struct, frozen=True):
    """What looking at the whole chain came to."""

    lines: int
    head: str
    """Hash of the last line; written down elsewhere it proves the chain up to it."""
    fault: str = ""
    """What does not fit, and at which line; empty if all fits."""


class Trail:
    """Adds to the chain, reads it and proves it; the caller brings connection and transaction."""

    def __init__(self, operator_key: bytes) -> None:
        self._key = hmac.digest(operator_key, b"audit trail", "sha256")

    def add(
        self,
        db: sqlite3.Connection,
        by: str,
        action: str,
        about: str,
        now: datetime,
        before: str = "",
        after: str = "",
    ) -> None:
        """Add one line, within a transaction that may write."""
        number, previous = self._next(db)
        by, action, about = harmless((by, action[:ACTION_MAX], about[:ABOUT_MAX]))
        said = (number, micros(now), by, action, about, before, after, previous)
        line = self._hash(*said)
        db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*said, line))
        self._seal(db, "head", number, line)

    def take_up(self, db: sqlite3.Connection) -> None:
        """Chain the lines of a file that had no chain yet, or none at all."""
        number, previous = 0, BEGIN
        rows = db.execute("SELECT * FROM audit ORDER BY number").fetchall()
        for row in rows:
            line = self._hash(*tuple(row)[:7], previous)
            db.execute(
                "UPDATE audit SET previous = ?, hash = ? WHERE number = ?",
                (previous, line, row["number"]),
            )
            number, previous = row["number"], line
        if rows:
            self._anchor(db, rows[0]["number"] - 1, BEGIN)
        self._seal(db, "head", number, previous)

    def forget(self, db: sqlite3.Connection, most: int) -> int:
        """Let the oldest lines go, so that so many stay; the chain begins behind them."""
        last = db.execute(
            "SELECT number, hash FROM audit WHERE number <= (SELECT max(number) FROM audit) - ?"
            " ORDER BY number DESC LIMIT 1",
            (most,),
        ).fetchone()
        if last is None:
            return 0
        self._anchor(db, last["number"], last["hash"])
        return db.execute("DELETE FROM audit WHERE number <= ?", (last["number"],)).rowcount

    def lines(self, db: sqlite3.Connection, limit: int, before: int | None = None) -> list[Audited]:
        """The newest first; `before` a number for the next page."""
        rows = db.execute(
            "SELECT * FROM audit WHERE number < ? ORDER BY number DESC LIMIT ?",
            (2**62 if before is None else before, limit),
        )
        return [_line(row) for row in rows]

    def search(
        self, db: sqlite3.Connection, words: str, span: Range, limit: int, offset: int
    ) -> tuple[list[Audited], int]:
        """Lines of a span in which all words stand, newest first, and how many there are."""
        where = "time >= ? AND time < ?"
        marks: list[Any] = [micros(span.since), micros(span.until)]
        for word in words.split()[:WORDS_MAX]:
            where += " AND instr(lower(person || ' ' || action || ' ' || about), ?) > 0"
            marks.append(word.lower())
        rows = db.execute(
            f"SELECT * FROM audit WHERE {where} ORDER BY number DESC LIMIT ? OFFSET ?",
            (*marks, limit, offset),
        ).fetchall()
        total = db.execute(f"SELECT count(*) FROM audit WHERE {where}", marks).fetchone()[0]
        return [_line(row) for row in rows], int(total)

    def every(self, db: sqlite3.Connection) -> Iterator[Audited]:
        """All lines, the oldest first."""
        for row in db.execute("SELECT * FROM audit ORDER BY number"):
            yield _line(row)

    def proof(self, db: sqlite3.Connection) -> Proof:
        """Look at the whole chain and its two seals; the caller holds a read transaction."""
        number, previous = self._start(db)
        number -= 1
        count, fault = 0, self._broken_seal(db, "anchor")
        for one in self.every(db):
            count += 1
            if not fault and one.number != number + 1:
                fault = f"line {number + 1} is missing"
            elif not fault and one.previous != previous:
                fault = f"line {one.number} does not follow the line before it"
            elif not fault and not hmac.compare_digest(one.hash, self._hash_of(one)):
                fault = f"line {one.number} was changed"
            number, previous = one.number, one.hash
        sealed = _sealed(db, "head")
        fault = fault or self._broken_seal(db, "head")
        if not fault and sealed and (sealed["number"], sealed["hash"]) != (number, previous):
            fault = f"the last line is {number}, there were {sealed['number']}"
        elif not fault and sealed is None:
            fault = "the seal of the last line is missing"
        return Proof(count, previous if count else "", fault)

    def _next(self, db: sqlite3.Connection) -> tuple[int, str]:
        """Number of the next line and the hash before it.

        The seal says it, not the last line that is there: a new line must not close the gap that
        somebody left. Where the seal itself was touched, a gap is left for the proof to name.
        """
        sealed = _sealed(db, "head")
        if sealed and not self._broken_seal(db, "head"):
            return sealed["number"] + 1, sealed["hash"]
        last = db.execute("SELECT coalesce(max(number), 0) FROM audit").fetchone()[0]
        return last + 2, BEGIN

    def _start(self, db: sqlite3.Connection) -> tuple[int, str]:
        """Number of the first line and the hash before it."""
        sealed = _sealed(db, "anchor")
        return (sealed["number"] + 1, sealed["hash"]) if sealed else (1, BEGIN)

    def _anchor(self, db: sqlite3.Connection, number: int, line: str) -> None:
        db.execute("INSERT OR REPLACE INTO numbers VALUES ('audit_anchor', ?)", (number,))
        self._seal(db, "anchor", number, line)

    def _seal(self, db: sqlite3.Connection, name: str, number: int, line: str) -> None:
        said = {"number": number, "hash": line, "seal": self._hash(name, number, line)}
        db.execute(
            "INSERT OR REPLACE INTO settings VALUES (?, ?)",
            (f"audit_{name}", msgspec.json.encode(said)),
        )

    def _broken_seal(self, db: sqlite3.Connection, name: str) -> str:
        sealed = _sealed(db, name)
        if sealed is None:
            return ""
        wanted = self._hash(name, sealed["number"], sealed["hash"])
        what = {"head": "last line", "anchor": "lines that retention took"}[name]
        fits = hmac.compare_digest(wanted, str(sealed["seal"]))
        return "" if fits else f"the seal of the {what} was changed"

    def _hash_of(self, one: Audited) -> str:
        return self._hash(
            one.number, micros(one.time), one.by, one.action, one.about, one.before, one.after,
            one.previous,
        )  # fmt: skip

    def _hash(self, *said: Any) -> str:
        return hmac.digest(self._key, msgspec.json.encode(said), "sha256").hex()


def digest(value: Any) -> str:
    """Short proof of what something was; the same value always has the same."""
    if value is None:
        return ""
    plain = msgspec.to_builtins(value)
    try:
        said = msgspec.json.encode(plain, order="deterministic")
    except UNWRITABLE:
        said = msgspec.json.encode(harmless(plain), order="deterministic")
    return hashlib.sha256(said).hexdigest()[:32]


def _sealed(db: sqlite3.Connection, name: str) -> dict[str, Any] | None:
    row = db.execute("SELECT value FROM settings WHERE name = ?", (f"audit_{name}",)).fetchone()
    if row is None:
        return None
    try:
        found = msgspec.json.decode(row[0])
        return {"number": int(found["number"]), "hash": str(found["hash"]), "seal": found["seal"]}
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        return {"number": 0, "hash": "", "seal": ""}


def _line(row: sqlite3.Row) -> Audited:
    return Audited(
        row["number"], from_micros(row["time"]), row["person"], row["action"], row["about"],
        row["before"], row["after"], row["previous"], row["hash"],
    )  # fmt: skip
