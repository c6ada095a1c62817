"""Inventory in `node.db`: what the path learnt, what people say of it, and the calendar.

The path writes what it has seen, people write what they say; the two stand in columns of their own,
so neither overwrites the other. Whatever a person changes raises a version, by which the path
knows that it has to read again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

import msgspec

from cityward.asset import Asset
from cityward.errors import InputError
from siem.store.lines import harmless
from siem.store.protocol import AssetRow, AssetState, Conduit, Learnt, ModeEntry, Observed
from siem.store.trail import digest

SCHEMA = """
CREATE TABLE assets (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL DEFAULT 'observed',
    record TEXT NOT NULL DEFAULT '',
    seen TEXT NOT NULL DEFAULT '',
    aliases TEXT NOT NULL DEFAULT '[]',
    merged_into TEXT NOT NULL DEFAULT '',
    history TEXT NOT NULL DEFAULT '[]'
) WITHOUT ROWID;
CREATE TABLE conduits (
    id TEXT PRIMARY KEY, state TEXT NOT NULL DEFAULT 'observed', seen TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE calendar (number INTEGER PRIMARY KEY AUTOINCREMENT, entry TEXT NOT NULL);
CREATE INDEX findings_by_label ON findings (label, status);
"""
"""Since format 2 of the state."""

VERSION = "inventory_version"
LEARNING = "learning_"
"""Begin of the names of the learner's numbers."""
HISTORY_KEPT = 100
REASON_MAX = 2000
EDITABLE = frozenset(Asset.__struct_fields__) - {"id", "last_confirmed"}
"""What a person may say of an asset; the rest is said by the state."""

_RECORD = msgspec.json.Decoder(Asset)
_SEEN = msgspec.json.Decoder(Observed)


class Audit(Protocol):
    """Adds a line to the audit trail, within a transaction."""

    def __call__(
        self,
        db: sqlite3.Connection,
        by: str,
        action: str,
        about: str,
        now: datetime,
        before: str = "",
        after: str = "",
    ) -> None:
        """Say who did what to what; digests say from what to what."""
        ...


class Kept(msgspec.Struct, frozen=True):
    """One row: an asset that was seen, that a person knows, or both."""

    id: str
    state: AssetState
    record: Asset | None
    seen: Observed | None
    aliases: tuple[str, ...] = ()
    merged_into: str = ""
    history: tuple[dict[str, str], ...] = ()

    @property
    def asset(self) -> Asset:
        """What is said of it; of one that was only seen, what was seen."""
        if self.record is not None:
            return self.record
        return as_asset(self.seen) if self.seen else Asset(id=self.id)


def as_asset(seen: Observed) -> Asset:
    """What events say of an asset, as a record that a person may approve."""
    return Asset(
        id=seen.id,
        name=seen.names[0] if seen.names else "",
        addresses=tuple(seen.addresses),
        vendor=seen.vendor,
        model=seen.model,
        firmware=seen.firmware,
        zone=seen.zone,
    )


class InventoryStore:
    """The tables of the inventory; made by `NodeDb`, on its connections."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        reading: Callable[[], sqlite3.Connection],
        audit: Audit,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._audit = audit

    # ---- The path

    def keep(self, db: sqlite3.Connection, learnt: Learnt) -> None:
        """Keep what was learnt, within the transaction of the checkpoint."""
        db.executemany(
            "INSERT INTO assets (id, seen) VALUES (?, ?)"
            " ON CONFLICT (id) DO UPDATE SET seen = excluded.seen",
            [(one.id, _dumped(one)) for one in learnt.assets],
        )
        db.executemany(
            "INSERT INTO conduits (id, seen) VALUES (?, ?)"
            " ON CONFLICT (id) DO UPDATE SET seen = excluded.seen",
            [(one.id, _dumped(one)) for one in learnt.conduits],
        )
        db.executemany(
            "INSERT OR REPLACE INTO numbers VALUES (?, ?)",
            [(LEARNING + name, value) for name, value in learnt.numbers.items()],
        )

    def version(self) -> int:
        """Raised by whatever a person changes."""
        row = self._reading().execute("SELECT value FROM numbers WHERE name = ?", (VERSION,))
        found = row.fetchone()
        return int(found[0]) if found else 0

    def learning(self) -> dict[str, int]:
        """The learner's numbers by name."""
        rows = self._reading().execute(
            "SELECT name, value FROM numbers WHERE name GLOB ?", (LEARNING + "*",)
        )
        return {name.removeprefix(LEARNING): value for name, value in rows}

    # ---- Reading

    def assets(self, *, merged: bool = False) -> list[Kept]:
        """All assets by id; with `merged` also those that are part of another now."""
        rows = self._reading().execute("SELECT * FROM assets ORDER BY id").fetchall()
        return [_kept(row) for row in rows if merged or not row["merged_into"]]

    def conduits(self) -> list[Conduit]:
        """Traffic between zones, by id."""
        rows = self._reading().execute("SELECT * FROM conduits ORDER BY id").fetchall()
        return [
            msgspec.structs.replace(
                msgspec.json.decode(row["seen"], type=Conduit), state=row["state"]
            )
            for row in rows
        ]

    def entries(self) -> list[ModeEntry]:
        """The calendar, in the order of its making."""
        rows = self._reading().execute("SELECT * FROM calendar ORDER BY number").fetchall()
        return [
            msgspec.structs.replace(
                msgspec.json.decode(row["entry"], type=ModeEntry), number=row["number"]
            )
            for row in rows
        ]

    def open_findings(self) -> dict[str, int]:
        """How many findings are open, by what they are about: an asset id, an address, a name."""
        rows = self._reading().execute(
            "SELECT label, count(*) FROM findings WHERE status IN ('new', 'in_progress')"
            " GROUP BY label"
        )
        return dict(tuple(row) for row in rows)

    # ---- What people do

    def say(
        self, ids: Sequence[str], state: AssetState, by: str, why: str, now: datetime, **said: Any
    ) -> int:
        """Give assets a state, and what a person says of them; a new id makes a new asset.

        Raises:
            InputError: a field is unknown, or its value impossible.
        """
        _check(why)
        by, why = harmless(by), harmless(why)
        with self._writing() as db:
            done = [
                one for one in dict.fromkeys(ids) if self._say(db, one, state, by, why, now, said)
            ]
            self._changed(db, done)
        return len(done)

    def _say(
        self,
        db: sqlite3.Connection,
        id: str,
        state: AssetState,
        by: str,
        why: str,
        now: datetime,
        said: Mapping[str, Any],
    ) -> bool:
        row = db.execute("SELECT * FROM assets WHERE id = ?", (id,)).fetchone()
        before = _kept(row) if row else Kept(id, "observed", None, None)
        record = spoken(before.asset, said)
        if state == "approved":
            record = msgspec.structs.replace(record, last_confirmed=now.date().isoformat())
        same = msgspec.structs.replace(record, last_confirmed=before.asset.last_confirmed)
        if row and state == before.state and same == before.asset and not why:
            return False
        what = _what(before, state, same)
        self._write(db, before, state, record, before.aliases, _noted(before, now, by, what, why))
        was, made = digest(before.asset) if row else "", digest(record)
        self._audit(db, by, f"asset: {what}", id, now, was, made)
        return True

    def merge(self, id: str, other: str, by: str, why: str, now: datetime) -> int:
        """Make `other` a part of `id`: its addresses are joined, its id is an alias.

        Raises:
            InputError: one of them is not there, or they are one already.
        """
        _check(why)
        by, why = harmless(by), harmless(why)
        with self._writing() as db:
            found = {
                row["id"]: _kept(row)
                for row in db.execute("SELECT * FROM assets WHERE id IN (?, ?)", (id, other))
                if not row["merged_into"]
            }
            if len(found) != 2:
                missing = next((one for one in (id, other) if one not in found), other)
                raise InputError(
                    f"{missing!r} cannot be merged", "merge", "Name two different assets."
                )
            into, gone = found[id], found[other]
            addresses = dict.fromkeys((*into.asset.addresses, *gone.asset.addresses))
            addresses |= dict.fromkeys(gone.seen.addresses if gone.seen else ())
            record = msgspec.structs.replace(into.asset, addresses=tuple(addresses))
            aliases = tuple(dict.fromkeys((*into.aliases, *gone.aliases, other)))
            history = _noted(into, now, by, f"merged {other} into it", why)
            self._write(db, into, into.state, record, aliases, history)
            gone_history = _noted(gone, now, by, f"merged into {id}", why)
            self._write(db, gone, gone.state, gone.record, gone.aliases, gone_history, id)
            was, made = digest(into.asset), digest(record)
            self._audit(db, by, f"asset: merged {other} into it", id, now, was, made)
            self._changed(db, [id])
        return 1

    def approve_conduits(self, ids: Sequence[str], by: str, why: str, now: datetime) -> int:
        """Approve traffic between zones; returns how many were not yet."""
        _check(why)
        with self._writing() as db:
            done = [
                one
                for one in dict.fromkeys(ids)
                if db.execute(
                    "UPDATE conduits SET state = 'approved' WHERE id = ? AND state <> 'approved'",
                    (one,),
                ).rowcount
            ]
            for one in done:
                self._audit(db, harmless(by), f"conduit: approved. {harmless(why)}", one, now)
            self._changed(db, done)
        return len(done)

    def add_entry(self, entry: ModeEntry, now: datetime) -> int:
        """Add to the calendar; returns the number of the entry."""
        _check(entry.reason)
        with self._writing() as db:
            text = _dumped(harmless(msgspec.to_builtins(entry)))
            cursor = db.execute("INSERT INTO calendar (entry) VALUES (?)", (text,))
            number = cursor.lastrowid or 0
            self._audit(db, entry.by, f"calendar: {entry.mode}", f"entry {number}", now)
            self._changed(db, [number])
        return number

    def remove_entry(self, number: int, by: str, now: datetime) -> bool:
        """Take out of the calendar; False if it was not there."""
        with self._writing() as db:
            gone = db.execute("DELETE FROM calendar WHERE number = ?", (number,)).rowcount > 0
            if gone:
                self._audit(db, harmless(by), "calendar: removed", f"entry {number}", now)
                self._changed(db, [number])
        return gone

    def _write(
        self,
        db: sqlite3.Connection,
        before: Kept,
        state: AssetState,
        record: Asset | None,
        aliases: Sequence[str],
        history: Sequence[Mapping[str, str]],
        merged_into: str = "",
    ) -> None:
        db.execute(
            "INSERT INTO assets (id, state, record, aliases, merged_into, history)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET state = excluded.state,"
            " record = excluded.record, aliases = excluded.aliases,"
            " merged_into = excluded.merged_into, history = excluded.history",
            (
                before.id,
                state,
                _dumped(record) if record is not None else "",
                _dumped(aliases),
                merged_into,
                _dumped(history),
            ),
        )

    @staticmethod
    def _changed(db: sqlite3.Connection, done: Iterable[object]) -> None:
        if any(True for _ in done):
            raise_version(db)


def raise_version(db: sqlite3.Connection) -> None:
    """A person changed something that the path has to take up."""
    db.execute(
        "INSERT INTO numbers VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1",
        (VERSION,),
    )


def spoken(asset: Asset, said: Mapping[str, Any]) -> Asset:
    """An asset with what a person says of it; texts are read as the field wants them.

    Raises:
        InputError: a field is unknown, or its value impossible.
    """
    if unknown := sorted(said.keys() - EDITABLE):
        raise InputError(
            f"{unknown[0]!r} is nothing that is said of an asset",
            unknown[0],
            f"One of: {', '.join(sorted(EDITABLE))}.",
        )
    raw = msgspec.to_builtins(asset) | harmless(dict(said))
    try:
        made = msgspec.convert(raw, Asset, strict=False)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        raise InputError(what, where.strip("`$.") or asset.id, "Correct the value.") from error
    if not 1 <= made.criticality <= 5:
        raise InputError(f"criticality {made.criticality}", "criticality", "Write 1 to 5.")
    return made


def names_of(row: AssetRow) -> set[str]:
    """Whatever an asset is called: id, name, aliases, addresses."""
    seen = row.seen.addresses if row.seen else ()
    return {row.asset.id, row.asset.name, *row.aliases, *row.asset.addresses, *seen} - {""}


def matches(row: AssetRow, words: Sequence[str], *, state: str = "", zone: str = "") -> bool:
    """Whether all words stand in what is known of an asset, and state and zone fit."""
    if state and row.state != state:
        return False
    if not words and not zone:
        return True
    said = document(row)
    if zone and said["zone"] != zone:
        return False
    listed = ("addresses", "speaks", "roles", "names", "aliases")
    plain = ("id", "state", "name", "type", "zone", "origin", "vendor", "model", "site")
    texts = [*(str(said[name]) for name in plain), *(one for name in listed for one in said[name])]
    text = " ".join(texts).lower()
    return all(word.lower() in text for word in words)


def document(row: AssetRow) -> dict[str, Any]:
    """An asset as programs read it; the same fields in the same order everywhere."""
    asset, seen = row.asset, row.seen
    return {
        "id": asset.id,
        "state": row.state,
        "name": asset.name,
        "type": asset.type,
        "zone": asset.zone or (seen.zone if seen else ""),
        "addresses": list(dict.fromkeys((*asset.addresses, *(seen.addresses if seen else ())))),
        "speaks": list(seen.speaks) if seen else [],
        "first_seen": seen.first_seen if seen else None,
        "last_seen": seen.last_seen if seen else None,
        "findings": row.findings,
        "criticality": asset.criticality,
        "origin": row.origin,
        "roles": list(asset.roles),
        "vendor": asset.vendor,
        "model": asset.model,
        "firmware": asset.firmware,
        "site": asset.site,
        "location": asset.location,
        "purdue": asset.purdue,
        "safety_related": asset.safety_related,
        "never_touch": asset.never_touch,
        "essential_function": asset.essential_function,
        "serves": list(asset.serves),
        "depends_on": list(asset.depends_on),
        "owner_role": asset.owner_role,
        "last_confirmed": asset.last_confirmed,
        "names": list(seen.names) if seen else [],
        "writers": list(seen.writers) if seen else [],
        "aliases": list(row.aliases),
    }


def _what(before: Kept, state: AssetState, record: Asset) -> str:
    changed = [
        name
        for name in Asset.__struct_fields__
        if getattr(record, name) != getattr(before.asset, name)
    ]
    word = state if state != before.state or not changed else "corrected"
    return f"{word} ({', '.join(changed)})" if changed else word


def _noted(
    before: Kept, now: datetime, by: str, what: str, why: str
) -> tuple[Mapping[str, str], ...]:
    """History with one line more; the first ones and the newest are kept."""
    line = {"time": now.isoformat(), "by": by, "what": what, "why": why}
    history = [*before.history, line]
    if len(history) > HISTORY_KEPT:
        del history[HISTORY_KEPT // 4]
    return tuple(history)


def _check(why: str) -> None:
    if len(why) > REASON_MAX:
        raise InputError(
            f"a reason of more than {REASON_MAX:,} characters", "reason", "Shorten it."
        )


def _kept(row: sqlite3.Row) -> Kept:
    return Kept(
        row["id"],
        row["state"],
        _RECORD.decode(row["record"]) if row["record"] else None,
        _SEEN.decode(row["seen"]) if row["seen"] else None,
        tuple(msgspec.json.decode(row["aliases"])) if row["aliases"] != "[]" else (),
        row["merged_into"],
        tuple(msgspec.json.decode(row["history"])) if row["history"] != "[]" else (),
    )


def _dumped(value: Any) -> str:
    return msgspec.json.encode(value).decode()
