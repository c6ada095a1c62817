"""People, tokens for programs, saved views, switched rules: what people set up in `node.db`."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from datetime import datetime, timedelta

import msgspec

from cityward.errors import InputError, TransientError
from siem.store.inventory import raise_version
from siem.store.lines import harmless
from siem.store.protocol import (
    AUTHORITIES,
    NODE_ROLES,
    ROLES,
    SCOPES,
    Conflict,
    Person,
    Role,
    SavedView,
    Switch,
    Token,
)
from siem.store.query import from_micros, micros
from siem.store.trail import Trail, digest

SCHEMA = """
ALTER TABLE people RENAME COLUMN role TO roles;
ALTER TABLE people ADD COLUMN disabled INTEGER NOT NULL DEFAULT 0;
ALTER TABLE people ADD COLUMN one_time INTEGER NOT NULL DEFAULT 0;
ALTER TABLE people ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;
ALTER TABLE people ADD COLUMN seen INTEGER;
ALTER TABLE tokens ADD COLUMN name TEXT NOT NULL DEFAULT '';
ALTER TABLE tokens ADD COLUMN scopes TEXT NOT NULL DEFAULT 'read triage';
ALTER TABLE tokens ADD COLUMN created INTEGER;
ALTER TABLE tokens ADD COLUMN expires INTEGER;
ALTER TABLE tokens ADD COLUMN used INTEGER;
ALTER TABLE tokens ADD COLUMN revoked INTEGER;
CREATE TABLE views (
    number INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, name TEXT NOT NULL,
    link TEXT NOT NULL, shared INTEGER NOT NULL, UNIQUE (owner, name)
);
CREATE TABLE switches (
    rule TEXT PRIMARY KEY, is_on INTEGER NOT NULL, reason TEXT NOT NULL, person TEXT NOT NULL,
    time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE undo (person TEXT PRIMARY KEY, time INTEGER NOT NULL, state BLOB NOT NULL)
    WITHOUT ROWID;
"""
"""Since format 2 of the state."""
AUDIENCE_SCHEMA = "ALTER TABLE people ADD COLUMN audience TEXT NOT NULL DEFAULT '';\n"
"""Since format 3."""

NAME_MAX = 200
OPERATOR = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
ENDINGS = (".json", ".ndjson", ".csv")
"""A name that ends so would be the list of another page."""
PEOPLE_MAX, TOKENS_MAX, VIEWS_MAX = 10_000, 10_000, 200
USED_EVERY = timedelta(minutes=1)
"""How exact the last use of a token is: not every request writes."""


class Accounts:
    """The tables of people; made by `NodeDb`, on its connections."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        reading: Callable[[], sqlite3.Connection],
        trail: Trail,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._trail = trail
        self.offers = NODE_ROLES
        """Roles that people may be given; a hub has others."""

    # ---- People

    def person(self, name: str) -> Person | None:
        """Somebody by name, also one who may not sign in any more."""
        row = self._reading().execute("SELECT * FROM people WHERE name = ?", (name,)).fetchone()
        return _person(row) if row else None

    def people(self) -> list[Person]:
        """Everybody, by name."""
        return [_person(row) for row in self._reading().execute("SELECT * FROM people ORDER BY 1")]

    def put(self, person: Person, by: str, action: str, now: datetime) -> None:
        """Add a person, or change one as they were read, and say so in the audit trail.

        Args:
            person: A change has the epoch after the one that was read, so that of two at the same
                time the later does not undo the earlier, for instance that they were disabled.
            by: Who does it.
            action: What it is.
            now: The node's time.

        Raises:
            InputError: a role is none, or nobody could administer the node any more.
            Conflict: somebody else has added or changed the person meanwhile.
        """
        self._check(person)
        with self._writing() as db:
            row = db.execute("SELECT * FROM people WHERE name = ?", (person.name,)).fetchone()
            before = _person(row) if row else None
            if before and person.epoch != before.epoch + 1:
                raise Conflict(
                    f"{person.name} was changed meanwhile", "name", "Look again, then decide."
                )
            if before is None and _count(db, "people") >= PEOPLE_MAX:
                raise InputError(f"more than {PEOPLE_MAX:,} people", "people", "Remove some.")
            if before and _administers(before) and not _administers(person):
                _refuse_last(db, person.name)
            _write(db, person)
            if person.disabled:
                # For good: who lets somebody in again does not think of their programs.
                db.execute(
                    "UPDATE tokens SET revoked = ? WHERE person = ? AND revoked IS NULL",
                    (micros(now), person.name),
                )
            self._trail.add(db, by, action, person.name, now, _proof(before), _proof(person))

    def add(self, person: Person) -> None:
        """Add a person or change one without a line in the audit trail: before there is a node."""
        self._check(person)
        with self._writing() as db:
            _write(db, person)

    def _check(self, person: Person) -> None:
        _check_name(person.name)
        wrong = [one for one in person.roles if one not in self.offers]
        if wrong or not person.roles:
            what = f"no role is called {wrong[0][:40]!r} here" if wrong else "a person needs a role"
            raise InputError(what, "role", f"One of {', '.join(self.offers)}.")
        is_authority, is_peer = "authority" in person.roles, "peer" in person.roles
        said = person.audience
        if is_authority and said not in AUTHORITIES:
            what = f"{said[:40]!r} is no authority"
            raise InputError(what, "audience", f"One of {', '.join(AUTHORITIES)}.")
        if is_peer and (is_authority or not OPERATOR.fullmatch(said)):
            what = "a peer belongs to one operator, and is no authority"
            raise InputError(what, "audience", "Name the operator: op-metro.")
        if said and not (is_authority or is_peer):
            raise InputError("only authorities and peers have an audience", "audience", "Drop it.")

    def signed_in(self, name: str, now: datetime) -> None:
        """Remember when somebody came in last."""
        with self._writing() as db:
            db.execute("UPDATE people SET seen = ? WHERE name = ?", (micros(now), name))

    # ---- Tokens

    def tokens(self) -> list[Token]:
        """All tokens, the newest first; never the token itself."""
        rows = self._reading().execute("SELECT * FROM tokens ORDER BY created DESC, sha256")
        return [_token(row) for row in rows]

    def add_token(self, sha256: str, token: Token, by: str, now: datetime) -> None:
        """Keep the hash of a token, and say so in the audit trail.

        Raises:
            InputError: a scope is none, nobody is called so, or there are too many.
        """
        wrong = [one for one in token.scopes if one not in SCOPES]
        if wrong or not token.scopes:
            what = f"no scope is called {wrong[0][:40]!r}" if wrong else "a token without a scope"
            raise InputError(what, "scope", f"One of {', '.join(SCOPES)}.")
        if not token.name.strip() or len(token.name) > NAME_MAX:
            raise InputError("a token needs a name of 1 to 200 characters", "name", "Name it.")
        with self._writing() as db:
            if not db.execute("SELECT 1 FROM people WHERE name = ?", (token.person,)).fetchone():
                raise InputError(f"nobody is called {token.person[:80]!r}", "person", "Add them.")
            if _count(db, "tokens") >= TOKENS_MAX:
                raise InputError(f"more than {TOKENS_MAX:,} tokens", "tokens", "Revoke some.")
            expires = micros(token.expires) if token.expires else None
            db.execute(
                "INSERT INTO tokens (sha256, person, name, scopes, created, expires)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (sha256, token.person, harmless(token.name), " ".join(token.scopes), micros(now),
                 expires),
            )  # fmt: skip
            self._trail.add(db, by, f"token: added, {' '.join(token.scopes)}", _about(token), now,
                            "", digest(token))  # fmt: skip

    def revoke(self, id: str, by: str, now: datetime) -> bool:
        """Make a token worthless; False if none is called so or it was before."""
        with self._writing() as db:
            row = db.execute(
                "SELECT * FROM tokens WHERE sha256 GLOB ? AND revoked IS NULL", (f"{id}*",)
            ).fetchone()
            if row is None or not _is_id(id):
                return False
            before = _token(row)
            db.execute(
                "UPDATE tokens SET revoked = ? WHERE sha256 = ?", (micros(now), row["sha256"])
            )
            after = msgspec.structs.replace(before, revoked=now)
            self._trail.add(
                db, by, "token: revoked", _about(before), now, digest(before), digest(after)
            )
            return True

    def holder_of(self, sha256: str, now: datetime) -> tuple[Person, Token] | None:
        """Whom a token belongs to; None if it is over, revoked, or its person disabled."""
        db = self._reading()
        row = db.execute("SELECT * FROM tokens WHERE sha256 = ?", (sha256,)).fetchone()
        if row is None or row["revoked"] or (row["expires"] and row["expires"] <= micros(now)):
            return None
        person = self.person(row["person"])
        if person is None or person.disabled:
            return None
        token = _token(row)
        if token.used is None or now - token.used > USED_EVERY:
            # A full disk must not keep a program from reading.
            with suppress(TransientError), self._writing() as writing:
                writing.execute(
                    "UPDATE tokens SET used = ? WHERE sha256 = ?", (micros(now), sha256)
                )
        return person, token

    # ---- Saved views

    def views(self, person: str) -> list[SavedView]:
        """Views of a person, and those that others share; by name."""
        rows = self._reading().execute(
            "SELECT * FROM views WHERE owner = ? OR shared ORDER BY name, number", (person,)
        )
        return [
            SavedView(row["number"], row["name"], row["link"], row["owner"], bool(row["shared"]))
            for row in rows
        ]

    def save_view(self, view: SavedView, now: datetime) -> None:
        """Keep a view; one of the same owner and name is replaced.

        Raises:
            InputError: it has no name, or the person has too many.
        """
        name = harmless(view.name.strip())
        if not name or len(name) > 60:
            raise InputError("a view needs a name of 1 to 60 characters", "name", "Name it.")
        with self._writing() as db:
            owned = db.execute("SELECT count(*) FROM views WHERE owner = ?", (view.owner,))
            if owned.fetchone()[0] >= VIEWS_MAX:
                raise InputError(f"more than {VIEWS_MAX} views", "views", "Remove one.")
            db.execute(
                "INSERT INTO views (owner, name, link, shared) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (owner, name) DO UPDATE SET link = excluded.link,"
                " shared = excluded.shared",
                (view.owner, name, view.link, view.shared),
            )
            self._trail.add(db, view.owner, "view: saved", name, now, "", digest(view))

    def remove_view(self, number: int, owner: str, now: datetime) -> bool:
        """Take a view of this owner away; False if they have none of this number."""
        with self._writing() as db:
            row = db.execute(
                "DELETE FROM views WHERE number = ? AND owner = ? RETURNING name", (number, owner)
            ).fetchone()
            if row:
                self._trail.add(db, owner, "view: removed", row["name"], now)
            return row is not None

    # ---- Rules that people switched

    def switches(self) -> list[Switch]:
        """Rules that people have switched off or on again, with who and why."""
        rows = self._reading().execute("SELECT * FROM switches ORDER BY rule")
        return [
            Switch(row["rule"], bool(row["is_on"]), row["reason"], row["person"],
                   from_micros(row["time"]))
            for row in rows
        ]  # fmt: skip

    def switch(self, one: Switch) -> bool:
        """Switch a rule; the path takes it up within a second. False if it is so already.

        Raises:
            InputError: nobody says why.
        """
        reason = harmless(one.reason.strip())
        if not reason or len(reason) > 2000:
            raise InputError("a reason of 1 to 2,000 characters is needed", "reason", "Say why.")
        with self._writing() as db:
            row = db.execute("SELECT is_on FROM switches WHERE rule = ?", (one.rule,)).fetchone()
            was_on = bool(row["is_on"]) if row else True
            if was_on == one.is_on:
                return False
            db.execute(
                "INSERT OR REPLACE INTO switches VALUES (?, ?, ?, ?, ?)",
                (one.rule, one.is_on, reason, one.by, micros(one.time)),
            )
            raise_version(db)
            word = "on" if one.is_on else "off"
            self._trail.add(db, one.by, f"rule: {word}. {reason}", one.rule, one.time,
                            digest({"on": was_on}), digest({"on": one.is_on}))  # fmt: skip
            return True


def roles_of(words: Iterable[str]) -> tuple[Role, ...]:
    """Roles in their fixed order, each once."""
    said = set(words)
    return tuple(one for one in ROLES if one in said)


def _check_name(name: str) -> None:
    is_name = name.strip() == name and 0 < len(name) <= NAME_MAX and name.isprintable()
    if not is_name or "/" in name or name.endswith(ENDINGS):
        what = "a name of 1 to 200 printable characters without / is needed"
        raise InputError(what, "name", "Name them otherwise.")


def _administers(person: Person) -> bool:
    return "administrator" in person.roles and not person.disabled


def _refuse_last(db: sqlite3.Connection, name: str) -> None:
    others = [_person(row) for row in db.execute("SELECT * FROM people WHERE name <> ?", (name,))]
    if not any(_administers(one) for one in others):
        raise InputError(
            f"{name} is the last administrator", "roles", "Make somebody else one first."
        )


def _write(db: sqlite3.Connection, person: Person) -> None:
    db.execute(
        "INSERT INTO people (name, roles, password_hash, disabled, one_time, epoch, audience)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET roles = excluded.roles,"
        " password_hash = excluded.password_hash, disabled = excluded.disabled,"
        " one_time = excluded.one_time, epoch = excluded.epoch, audience = excluded.audience",
        (person.name, " ".join(roles_of(person.roles)), person.password_hash, person.disabled,
         person.one_time, person.epoch, person.audience),
    )  # fmt: skip


def _person(row: sqlite3.Row) -> Person:
    return Person(
        row["name"],
        tuple(row["roles"].split()),
        row["password_hash"],
        bool(row["disabled"]),
        bool(row["one_time"]),
        row["epoch"],
        from_micros(row["seen"]) if row["seen"] else None,
        row["audience"],
    )


def _token(row: sqlite3.Row) -> Token:
    times = {
        name: from_micros(row[name]) if row[name] else None
        for name in ("created", "expires", "used", "revoked")
    }
    return Token(
        row["sha256"][:12], row["person"], row["name"], tuple(row["scopes"].split()), **times
    )


def _proof(person: Person | None) -> str:
    """Digest of a person; of the password only whether it changed, never what it is."""
    return digest(msgspec.structs.replace(person, seen=None)) if person else ""


def _about(token: Token) -> str:
    return f"{token.id} {token.name} of {token.person}"


def _is_id(id: str) -> bool:
    return len(id) >= 8 and all(one in "0123456789abcdef" for one in id)


def _count(db: sqlite3.Connection, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
