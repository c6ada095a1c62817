"""`commons.db`: the city's common store in one SQLite file, for a hub without a cluster.

What is `written` is durable. Rights are part of the SQL: what may not be seen is not counted,
not sorted and not told apart from what does not exist.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cityward.finding import SEVERITIES
from siem.city.commons import Outcome, Rights, Versioned, Write
from siem.city.shares import (
    DATES,
    SHARE_FIELDS,
    check_record,
    check_tallied,
    conflict,
    faults_of,
    order_of,
    texts,
    whole,
)
from siem.store.database import Connection, Database
from siem.store.faults import fault
from siem.store.lines import UNWRITABLE
from siem.store.protocol import Document, Page, Range
from siem.store.query import SqliteDialect, folded, from_micros, micros, parse
from siem.store.templates import month_of

log = logging.getLogger(__name__)

SCAN_PAGE = 500

_COLUMNS = {
    "cw.share.id": "share",
    "cw.operator": "operator",
    "cw.marking.tlp": "tlp",
    "finding.first_seen": "first_seen",
    "finding.last_seen": "last_seen",
    "finding.severity": "severity",
}
"""Fields with a column of their own; everything else is read from the JSON document."""
_SCHEMA = (
    """CREATE TABLE shares (
        share TEXT PRIMARY KEY,
        operator TEXT NOT NULL,
        month TEXT NOT NULL,
        revision INTEGER NOT NULL,
        tlp TEXT NOT NULL,
        audiences TEXT NOT NULL,
        first_seen INTEGER NOT NULL,
        last_seen INTEGER NOT NULL,
        severity INTEGER,
        document TEXT NOT NULL,
        folded TEXT NOT NULL
    )""",
    "CREATE INDEX shares_by_time ON shares (last_seen, share)",
    "CREATE INDEX shares_by_month ON shares (operator, month)",
    """CREATE TABLE records (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        version TEXT NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (kind, name)
    ) WITHOUT ROWID""",
)
_STEPS = (_SCHEMA,)
_UPSERT = """INSERT INTO shares VALUES ({marks}) ON CONFLICT (share) DO UPDATE SET
    revision = excluded.revision, tlp = excluded.tlp, audiences = excluded.audiences,
    first_seen = excluded.first_seen, last_seen = excluded.last_seen,
    severity = excluded.severity, document = excluded.document, folded = excluded.folded"""


class SqliteCommons:
    """The common store of a city in one file; any thread or process may ask."""

    def __init__(
        self, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Open, or make, the file.

        Args:
            path: `commons.db`.
            clock: What now is, for relative times in queries.

        Raises:
            ConfigError: the file was written by a newer cityward, or is no database.
        """
        self._database = Database(path, _STEPS, secure=True)
        self._clock = clock
        self._dialect = SqliteDialect(_COLUMNS, "document", "folded")
        self.records = SqliteRecords(self._database)

    # ---- The hub writes

    def put(self, writes: Sequence[Write]) -> list[Outcome]:
        """Index shared findings in one transaction; see the protocol."""
        with self._database.writing() as db:
            outcomes = [_take(db, write) for write in writes]
            fault("commons-put-before-commit")
        fault("commons-put-after-commit")
        return outcomes

    def together(self) -> AbstractContextManager[None]:
        """What is written within becomes durable at the end, all of it or nothing."""
        return self._database.together()

    def remove(self, share_ids: Sequence[str]) -> int:
        """Delete documents, gone for every reader when it returns; returns how many there were."""
        with self._database.writing() as db:
            removed = sum(
                db.execute("DELETE FROM shares WHERE share = ?", (one,)).rowcount
                for one in dict.fromkeys(share_ids)
            )
            fault("commons-remove-before-commit")
        return removed

    def retain(self, before: datetime) -> int:
        """Delete whole months of operators that ended before then; returns how many."""
        month = month_of(before)
        with self._database.writing() as db:
            months = db.execute(
                "SELECT count(*) FROM (SELECT DISTINCT operator, month FROM shares"
                " WHERE month < ?)",
                (month,),
            ).fetchone()[0]
            db.execute("DELETE FROM shares WHERE month < ?", (month,))
        return int(months)

    def purge(self) -> None:
        """Let nothing of what was removed stay in the file, nor in the log beside it."""
        self._database.purge()

    # ---- The hub's own reading

    def scan(self, since: datetime) -> Iterator[Document]:
        """Every shared finding last seen since then, oldest first; for the hub's own joins."""
        place: tuple[int, str] = (micros(since), "")
        while True:
            rows = self._database.here.execute(
                "SELECT share, last_seen, document FROM shares WHERE (last_seen, share) > (?, ?)"
                " ORDER BY last_seen, share LIMIT ?",
                (*place, SCAN_PAGE),
            ).fetchall()
            yield from (_loaded(row["document"]) for row in rows)
            if len(rows) < SCAN_PAGE:
                return
            place = rows[-1]["last_seen"], rows[-1]["share"]

    # ---- People read, within their rights

    def search(
        self,
        rights: Rights,
        query: str,
        span: Range,
        sort: str = "-finding.last_seen",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Shares that may be seen, by `finding.last_seen`; a query is text of the query bar."""
        where, values = self._where(rights, query, span)
        name, is_down = order_of(sort)
        column = _COLUMNS.get(name, f"document ->> '$.\"{name}\"'")
        order = f"{column} {'DESC' if is_down else 'ASC'}, last_seen DESC, share"
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT document FROM shares WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?",
                (*values, limit, offset),
            ).fetchall()
            total = db.execute(f"SELECT count(*) FROM shares WHERE {where}", values).fetchone()[0]
        return Page([_loaded(row["document"]) for row in rows], total)

    def get(self, rights: Rights, share_id: str) -> Document | None:
        """One share; None if there is none, or none that may be seen: the same answer."""
        where, values = _allowed(rights)
        row = self._database.here.execute(
            f"SELECT document FROM shares WHERE share = ? AND {where}", (share_id, *values)
        ).fetchone()
        return _loaded(row["document"]) if row else None

    def tally(
        self, rights: Rights, query: str, span: Range, field: str, limit: int = 20
    ) -> list[tuple[str, int]]:
        """Values of a field with the number of shares that have them, most frequent first.

        Values that fewer shares than the rights' threshold have are left out.
        """
        check_tallied(field)
        where, values = self._where(rights, query, span)
        rows = self._database.here.execute(
            "SELECT CASE one.type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'"
            " ELSE one.atom END AS value, count(DISTINCT share) AS shares"
            f" FROM shares, json_each(document, ?) AS one WHERE one.atom IS NOT NULL AND {where}"
            " GROUP BY 1 HAVING count(DISTINCT share) >= ? ORDER BY 2 DESC, 1 LIMIT ?",
            (f'$."{field}"', *values, rights.threshold, limit),
        )
        return [(str(row["value"]), row["shares"]) for row in rows]

    def _where(self, rights: Rights, query: str, span: Range) -> tuple[str, list[Any]]:
        text, values = self._dialect.where(parse(query, SHARE_FIELDS, self._clock()))
        allowed, rightful = _allowed(rights)
        return f"last_seen >= ? AND last_seen < ? AND {allowed} AND {text}", [
            micros(span.since),
            micros(span.until),
            *rightful,
            *values,
        ]

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()


def _allowed(rights: Rights) -> tuple[str, list[Any]]:
    """What somebody may see, as SQL."""
    seen = (
        f"(tlp IN ({_marks(rights.tlp)}) AND EXISTS (SELECT 1 FROM json_each(audiences)"
        f" WHERE value IN ({_marks(rights.audiences)})))"
    )
    values: list[Any] = [*rights.tlp, *rights.audiences]
    if rights.own:
        seen = f"({seen} OR operator = ?)"
        values.append(rights.own)
    if rights.operators is not None:
        seen = f"({seen} AND operator IN ({_marks(rights.operators)}))"
        values += rights.operators
    return seen, values


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _take(db: Connection, write: Write) -> Outcome:
    """Write one share if it is sound and newer than what is there."""
    if why := faults_of(write):
        return _refuse(why)
    share = write.document["cw.share.id"]
    there = db.execute(
        "SELECT operator, month, revision FROM shares WHERE share = ?", (share,)
    ).fetchone()
    if there and there["operator"] != write.document["cw.operator"]:
        return _refuse(f"another operator has {share}")
    if there and there["revision"] >= write.revision:
        return "old"
    try:
        values = _row(write, there["month"] if there else "")
    except UNWRITABLE as error:
        return _refuse(f"it cannot be written: {error}")
    db.execute(_UPSERT.format(marks=_marks(values)), values)
    return "written"


def _refuse(why: str) -> Outcome:
    log.warning("A share was refused: %s.", why)
    return "refused"


def _row(write: Write, month: str) -> tuple[Any, ...]:
    """A share as a row; it stays in the month that it first came into."""
    document = whole(write.document)
    severity = document.get("finding.severity")
    return (
        document["cw.share.id"],
        document["cw.operator"],
        month or month_of(document["finding.first_seen"]),
        write.revision,
        document["cw.marking.tlp"],
        msgspec.json.encode(list(document.get("cw.share.audiences", ()))).decode(),
        micros(document["finding.first_seen"]),
        micros(document["finding.last_seen"]),
        SEVERITIES.index(severity) if severity in SEVERITIES else None,
        _dumped(document),
        folded(texts(document)),
    )


def _dumped(document: Document) -> str:
    """A document as JSON; times as microseconds, so that they compare."""
    plain = {name: micros(value) if name in DATES else value for name, value in document.items()}
    return msgspec.json.encode(plain).decode()


def _loaded(text: str) -> Document:
    document: Document = msgspec.json.decode(text)
    for name in DATES.intersection(document):
        document[name] = from_micros(document[name])
    return document


# ---- The hub's memory


class SqliteRecords:
    """Small documents by kind and name, in the same file."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, kind: str, name: str) -> Versioned | None:
        """One record."""
        row = self._database.here.execute(
            "SELECT value, version FROM records WHERE kind = ? AND name = ?", (kind, name)
        ).fetchone()
        return Versioned(msgspec.json.decode(row["value"]), row["version"]) if row else None

    def put(self, kind: str, name: str, value: Mapping[str, Any], version: str | None) -> str:
        """Write one; durable when it returns its new version.

        Raises:
            Conflict: another version is there.
            TransientError: the disk is full, or another process holds the file for too long.
        """
        check_record(kind, name)
        # Never used again, so that who saw a record that was deleted cannot overwrite its heir.
        made = secrets.token_hex(8)
        data = msgspec.json.encode(value)
        with self._database.writing() as db:
            if version is None:
                changed = db.execute(
                    "INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?)", (kind, name, made, data)
                )
            else:
                changed = db.execute(
                    "UPDATE records SET version = ?, value = ?"
                    " WHERE kind = ? AND name = ? AND version = ?",
                    (made, data, kind, name, version),
                )
            if changed.rowcount != 1:
                raise conflict(kind, name)
            fault("commons-record-before-commit")
        fault("commons-record-after-commit")
        return made

    def delete(self, kind: str, name: str, version: str) -> None:
        """Take one away; see `put`."""
        with self._database.writing() as db:
            gone = db.execute(
                "DELETE FROM records WHERE kind = ? AND name = ? AND version = ?",
                (kind, name, version),
            )
            if gone.rowcount != 1:
                raise conflict(kind, name)

    def all(self, kind: str) -> Iterator[tuple[str, Versioned]]:
        """All records of a kind, by name."""
        place = ""
        while True:
            rows = self._database.here.execute(
                "SELECT name, value, version FROM records WHERE kind = ? AND name > ?"
                " ORDER BY name LIMIT ?",
                (kind, place, SCAN_PAGE),
            ).fetchall()
            for row in rows:
                yield row["name"], Versioned(msgspec.json.decode(row["value"]), row["version"])
            if len(rows) < SCAN_PAGE:
                return
            place = rows[-1]["name"]
