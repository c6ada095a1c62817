"""Protected samples that leave and that come, in `node.db`.

A release is what a person let out of a finding that was right: the very events that they saw, made
nobody's, kept here until they are sent and as long as they are out. A foreign sample is what a
person at another operator let out; its events stand among the protected ones (`rulebook.py`),
unless somebody here set it aside.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec

from cityward.errors import InputError
from siem.store.lines import harmless
from siem.store.protocol import Conflict, Document, Range
from siem.store.query import from_micros, micros
from siem.store.trail import Trail

SCHEMA = """
CREATE TABLE IF NOT EXISTS releases (
    id TEXT PRIMARY KEY, finding TEXT NOT NULL, rule TEXT NOT NULL, state TEXT NOT NULL,
    policy TEXT NOT NULL, payload BLOB NOT NULL, people TEXT NOT NULL, reason TEXT NOT NULL,
    time INTEGER NOT NULL, expires INTEGER NOT NULL DEFAULT 0, why TEXT NOT NULL DEFAULT '',
    changed INTEGER NOT NULL, seq INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS releases_by_finding ON releases (finding, time);
CREATE INDEX IF NOT EXISTS releases_by_state ON releases (state);
CREATE TABLE IF NOT EXISTS foreign_samples (
    id TEXT PRIMARY KEY, rule TEXT NOT NULL, operator TEXT NOT NULL, events INTEGER NOT NULL,
    received INTEGER NOT NULL, expires INTEGER NOT NULL, aside INTEGER NOT NULL DEFAULT 0,
    person TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', changed INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS foreign_by_rule ON foreign_samples (rule, operator);
"""
"""Since format 4 of the state; some files of format 3 have them already."""
ASIDE_SCHEMA = """
CREATE TABLE IF NOT EXISTS operators_aside (
    operator TEXT PRIMARY KEY, person TEXT NOT NULL, reason TEXT NOT NULL, time INTEGER NOT NULL
) WITHOUT ROWID;
"""
"""Since format 5; some files of format 4 have it already."""

SAMPLES = "samples"
"""What stands in the place of a rule's name where the part of the policy on samples let it out."""
EVENTS_MAX = 20
"""Of one sample."""
OF_RULE_MAX = 10
"""Samples of one rule that one operator has out."""
OF_OPERATOR_MAX = 200
FOREIGN_OF_RULE_MAX = 50
"""Of all operators together."""
FOREIGN_MAX = 1_000
KEPT_FOR = timedelta(days=400)
REASON_MAX = 2_000

State = Literal[
    "due", "approval", "older", "sent", "taken", "refused", "withdraw", "withdrawn"
]  # fmt: skip
"""`approval`: somebody more has to say yes; `older`: the hub does not say that it understands
samples, and would take nothing behind one; `sent`: on its way; `taken`: the hub has it, `refused`:
it does not keep it; `withdraw`: the hub is still to be told."""
OUT: tuple[State, ...] = ("sent", "taken")
OPEN: tuple[State, ...] = ("due", "approval", "older", *OUT)
_OUT, _OPEN = (f"({', '.join(repr(one) for one in states)})" for states in (OUT, OPEN))


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What a person let out of a finding."""

    id: str
    """Under which it leaves."""
    finding: str
    rule: str
    state: State = "due"
    policy: str
    """Content hash of the policy that it was held against last."""
    payload: bytes
    """JSON of what leaves: no more, no less."""
    people: tuple[str, ...]
    """Who said yes, the first of them released it."""
    reason: str
    """Stays here."""
    time: datetime
    expires: datetime | None = None
    """Set when it is sent."""
    why: str = ""
    """Why it was taken back, by a word that leaves; or why the hub does not keep it."""
    changed: datetime
    seq: int = 0

    def is_over(self, now: datetime) -> bool:
        """Whether it was out, and has ended by itself."""
        return self.state in OUT and self.expires is not None and self.expires <= now


class Foreign(msgspec.Struct, frozen=True, kw_only=True):
    """What another operator let out."""

    id: str
    rule: str
    operator: str
    """By the name that the hub says; perhaps one that only stands for it."""
    received: datetime
    expires: datetime
    events: tuple[Document, ...] = ()
    """As they came; read them back by `RulebookStore.protected`."""
    count: int = 0
    is_aside: bool = False
    is_operator_aside: bool = False
    """What else comes of its operator forbids nothing either."""
    person: str = ""
    """Who set it aside, or let it count again …"""
    reason: str = ""
    """… and why."""
    changed: datetime | None = None


class SampleStore:
    """Releases and foreign samples, on the connections of a `NodeDb`; any thread may ask."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        reading: Callable[[], sqlite3.Connection],
        trail: Trail,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._trail = trail

    # ---- what leaves

    def releases(self, rule: str = "", finding: str = "") -> list[Release]:
        """What was let out, of a rule, a finding, or all; the newest first."""
        rows = self._reading().execute(
            "SELECT * FROM releases WHERE ?1 IN ('', rule) AND ?2 IN ('', finding)"
            " ORDER BY time DESC, id",
            (rule, finding),
        )
        return [_release(row) for row in rows]

    def get(self, id: str) -> Release | None:
        """One of them."""
        row = self._reading().execute("SELECT * FROM releases WHERE id = ?", (id,)).fetchone()
        return _release(row) if row else None

    def release(self, one: Release) -> None:
        """Let it out; the outbox sends it when enough people said yes.

        Raises:
            InputError: nobody says why, or enough of this rule is out.
            Conflict: the finding is out already.
        """
        reason = _reason(one.reason)
        with self._writing() as db:
            still = f"state IN {_OPEN} AND (expires = 0 OR expires > ?)"
            if db.execute(
                f"SELECT 1 FROM releases WHERE finding = ? AND {still}",
                (one.finding, micros(one.time)),
            ).fetchone():
                raise Conflict("it is released already", one.finding, "Look at it.")
            of_rule = db.execute(
                f"SELECT count(*) FROM releases WHERE rule = ? AND {still}",
                (one.rule, micros(one.time)),
            ).fetchone()[0]
            if of_rule >= OF_RULE_MAX:
                what = f"{OF_RULE_MAX} samples of this rule are out"
                raise InputError(what, one.rule, "Take one of them back.")
            people = [harmless(each) for each in one.people]
            try:
                db.execute(
                    "INSERT INTO releases (id, finding, rule, state, policy, payload, people,"
                    " reason, time, changed) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        one.id, one.finding, one.rule, one.state, one.policy, one.payload,
                        msgspec.json.encode(people).decode(), reason, micros(one.time),
                        micros(one.time),
                    ),
                )  # fmt: skip
            except sqlite3.IntegrityError as error:
                raise Conflict("it is released already", one.finding, "Look at it.") from error
            about = f"{one.id} of finding {one.finding}: {reason}"
            self._trail.add(db, people[0], "sample: released", about, one.time)

    def approve(self, id: str, by: str, now: datetime) -> bool:
        """Say yes as one more; False if it does not wait for that, or they have said so."""
        by = harmless(by)
        with self._writing() as db:
            row = db.execute(
                "SELECT * FROM releases WHERE id = ? AND state = 'approval'", (id,)
            ).fetchone()
            if row is None or by in _release(row).people:
                return False
            people = msgspec.json.encode((*_release(row).people, by)).decode()
            db.execute(
                "UPDATE releases SET people = ?, state = 'due', changed = ? WHERE id = ?",
                (people, micros(now), id),
            )
            self._trail.add(db, by, "sample: approved", id, now)
        return True

    def withdraw(self, id: str, by: str, reason: str, now: datetime) -> bool:
        """Take it back, for good; False if it is not out. The reason stays here.

        Raises:
            InputError: nobody says why.
        """
        by, reason = harmless(by), _reason(reason)
        with self._writing() as db:
            done = SampleDesk(db).take_back("consent", now, id=id)
            if done:
                self._trail.add(db, by, "sample: withdrawn", f"{id}: {reason}", now)
        return bool(done)

    # ---- what comes

    def foreign(self, rule: str = "") -> list[Foreign]:
        """Samples of others, of a rule or all, the newest first."""
        rows = self._reading().execute(
            "SELECT *, operator IN (SELECT operator FROM operators_aside) AS is_operator_aside"
            " FROM foreign_samples WHERE ? IN ('', rule) ORDER BY received DESC, id",
            (rule,),
        )
        return [_foreign(row) for row in rows]

    def set_aside(
        self, id: str, by: str, reason: str, now: datetime, *, aside: bool = True
    ) -> bool:
        """Let a sample of another operator forbid nothing here, or again; False if it is so.

        Raises:
            InputError: nobody says why.
        """
        by, reason = harmless(by), _reason(reason)
        with self._writing() as db:
            done = db.execute(
                "UPDATE foreign_samples SET aside = ?1, person = ?2, reason = ?3, changed = ?4"
                " WHERE id = ?5 AND aside <> ?1",
                (aside, by, reason, micros(now), id),
            ).rowcount
            if done:
                word = "set aside" if aside else "counts again"
                self._trail.add(db, by, f"sample: {word}", f"{id}: {reason}", now)
        return bool(done)

    def set_operator_aside(
        self, operator: str, by: str, reason: str, now: datetime, *, aside: bool = True
    ) -> int | None:
        """Let all samples of an operator forbid nothing here, also those that come later, or again.

        Args:
            operator: By the name that the hub says.
            by: Who says so.
            reason: Why.
            now: The node's time.
            aside: False: let them count again, also those that were set aside one by one.

        Returns:
            How many samples this changed; None: it is so already, or nothing is of it.

        Raises:
            InputError: nobody says why.
        """
        by, reason = harmless(by), _reason(reason)
        with self._writing() as db:
            done = db.execute(
                "UPDATE foreign_samples SET aside = ?1, person = ?2, reason = ?3, changed = ?4"
                " WHERE operator = ?5 AND aside <> ?1",
                (aside, by, reason, micros(now), operator),
            ).rowcount
            is_known = db.execute(
                "SELECT EXISTS (SELECT 1 FROM foreign_samples WHERE operator = ?)", (operator,)
            ).fetchone()[0]
            if not aside:
                changed = db.execute(
                    "DELETE FROM operators_aside WHERE operator = ?", (operator,)
                ).rowcount
            elif is_known:
                changed = db.execute(
                    "INSERT OR IGNORE INTO operators_aside VALUES (?, ?, ?, ?)",
                    (operator, by, reason, micros(now)),
                ).rowcount
            else:
                changed = 0
            if done or changed:
                word = "set aside" if aside else "count again"
                about = f"all of {operator}, {done}: {reason}"
                self._trail.add(db, by, f"sample: {word}", about, now)
        return done if done or changed else None

    def operators_aside(self) -> list[str]:
        """Operators of whom nothing forbids anything here."""
        rows = self._reading().execute("SELECT operator FROM operators_aside ORDER BY operator")
        return [row["operator"] for row in rows]

    def retain(self, db: sqlite3.Connection, now: datetime) -> None:
        """Let go of what is over, within its transaction."""
        over = [
            row["id"]
            for row in db.execute(
                "SELECT id FROM foreign_samples WHERE expires <= ?", (micros(now),)
            )
        ]
        for id in over:
            SampleDesk(db).forget(id)
        db.execute(
            f"DELETE FROM releases WHERE changed < ? AND state NOT IN {_OPEN}"
            " AND state <> 'withdraw'",
            (micros(now - KEPT_FOR),),
        )
        db.execute(
            f"DELETE FROM releases WHERE state IN {_OUT} AND expires > 0 AND expires < ?",
            (micros(now - KEPT_FOR),),
        )


class SampleDesk:
    """What the outbox, and who hears the hub, do within one transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    # ---- what leaves

    def next(self, *, may_leave: bool) -> Release | None:
        """What the hub is to be told next: first what is taken back."""
        row = self._db.execute(
            "SELECT * FROM releases WHERE state = 'withdraw' OR (state = 'due' AND ?)"
            " ORDER BY state <> 'withdraw', time, id LIMIT 1",
            (may_leave,),
        ).fetchone()
        return _release(row) if row else None

    def hold(self, id: str, state: State, now: datetime) -> None:
        """It does not leave yet: somebody more has to say yes, or the hub is too old."""
        self._db.execute(
            "UPDATE releases SET state = ?, changed = ? WHERE id = ?", (state, micros(now), id)
        )

    def understood(self) -> None:
        """The hub says that it understands samples now."""
        self._db.execute("UPDATE releases SET state = 'due' WHERE state = 'older'")

    def set_sent(self, one: Release, seq: int, now: datetime, expires: datetime | None) -> None:
        """It, or that it is taken back, is on its way."""
        state = "withdrawn" if one.state == "withdraw" else "sent"
        until = micros(expires) if expires else micros(one.expires) if one.expires else 0
        self._db.execute(
            "UPDATE releases SET state = ?, seq = ?, changed = ?, expires = ? WHERE id = ?",
            (state, seq, micros(now), until, one.id),
        )

    def receipted(self, seq: int, refused: str, now: datetime) -> None:
        """The hub has answered."""
        self._db.execute(
            "UPDATE releases SET state = ?, why = ?, changed = ? WHERE seq = ? AND state = 'sent'",
            ("refused" if refused else "taken", harmless(refused[:200]), micros(now), seq),
        )

    def again(self, behind: int) -> None:
        """The hub has nothing of what was sent behind a number: it is told again."""
        self._db.execute(
            "UPDATE releases SET state = iif(state = 'withdrawn', 'withdraw', 'due'), seq = 0"
            f" WHERE seq > ? AND (state IN {_OUT} OR state = 'withdrawn')",
            (behind,),
        )

    def under_another(self, policy: str) -> list[Release]:
        """What is out, or is to go, and was not held against this policy yet."""
        rows = self._db.execute(
            f"SELECT * FROM releases WHERE policy <> ? AND state IN {_OPEN} ORDER BY id", (policy,)
        )
        return [_release(row) for row in rows]

    def open(self, id: str, sent: Range | None) -> list[str]:
        """What is out, or is to go: this one or all, and what was sent in a span."""
        query = f"SELECT id FROM releases WHERE ? IN ('', id) AND state IN {_OPEN}"
        values: list[object] = [id]
        if sent:
            query += (
                " AND EXISTS (SELECT 1 FROM ledger WHERE ledger.share_id = releases.id"
                " AND ledger.sent >= ? AND ledger.sent < ?)"
            )
            values += [micros(sent.since), micros(sent.until)]
        return [row["id"] for row in self._db.execute(f"{query} ORDER BY id", values)]

    def set_policy(self, id: str, policy: str) -> None:
        """It may leave under this policy, too."""
        self._db.execute("UPDATE releases SET policy = ? WHERE id = ?", (policy, id))

    def take_back(self, why: str, now: datetime, *, id: str = "", finding: str = "") -> int:
        """Take back one of them, what is out of a finding, or all; returns how many."""
        return self._db.execute(
            f"UPDATE releases SET state = iif(state IN {_OUT}, 'withdraw', 'withdrawn'), why = ?,"
            f" changed = ? WHERE state IN {_OPEN} AND ? IN ('', id) AND ? IN ('', finding)",
            (why, micros(now), id, finding),
        ).rowcount

    # ---- what comes

    def take(self, one: Foreign) -> str:
        """Keep a sample that came; the same one again changes nothing. Why not; empty: it is."""
        if self._db.execute("SELECT 1 FROM foreign_samples WHERE id = ?", (one.id,)).fetchone():
            return ""
        every, of_rule, of_operator, of_both = self._db.execute(
            "SELECT count(*), count(*) FILTER (WHERE rule = ?1),"
            " count(*) FILTER (WHERE operator = ?2),"
            " count(*) FILTER (WHERE rule = ?1 AND operator = ?2) FROM foreign_samples",
            (one.rule, one.operator),
        ).fetchone()
        if every >= FOREIGN_MAX or of_operator >= OF_OPERATOR_MAX:
            return f"{every:,} are kept, {of_operator:,} of this operator"
        if of_rule >= FOREIGN_OF_RULE_MAX or of_both >= OF_RULE_MAX:
            return f"{of_rule:,} of its rule are kept, {of_both:,} of this operator"
        self._db.execute(
            "INSERT INTO foreign_samples (id, rule, operator, events, received, expires, changed)"
            " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?5)",
            (
                one.id, one.rule, one.operator, len(one.events), micros(one.received),
                micros(one.expires),
            ),
        )  # fmt: skip
        self._db.execute(
            "UPDATE foreign_samples SET aside = 1, person = said.person, reason = said.reason"
            " FROM operators_aside AS said WHERE said.operator = foreign_samples.operator"
            " AND foreign_samples.id = ?",
            (one.id,),
        )
        self._db.executemany(
            "INSERT INTO protected VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (f"{one.id}/{n}", one.rule, one.id, one.operator, _dumped(event), one.operator,
                 micros(one.received))
                for n, event in enumerate(one.events[:EVENTS_MAX])
            ],
        )  # fmt: skip
        return ""

    def forget(self, id: str) -> None:
        """It was taken back, or is over: nothing that it said stays here."""
        self._db.execute("DELETE FROM protected WHERE finding = ? AND operator <> ''", (id,))
        # Its number stays: what comes next from the hub is counted from there.
        self._db.execute(
            "UPDATE inbox SET data = x'', signature = x'' WHERE share_id = ? AND type = 'sample'",
            (id,),
        )
        self._db.execute("DELETE FROM foreign_samples WHERE id = ?", (id,))


def has_due(db: sqlite3.Connection, policy: str) -> bool:
    """Whether the outbox has something to do with a release.

    Args:
        db: The state.
        policy: Content hash of the one in force; empty: there is none, so nothing leaves.
    """
    return bool(
        db.execute(
            "SELECT EXISTS (SELECT 1 FROM releases WHERE state = 'withdraw' OR (?1 <> '' AND"
            f" (state = 'due' OR (policy <> ?1 AND state IN {_OPEN}))))",
            (policy,),
        ).fetchone()[0]
    )


def _reason(said: str) -> str:
    reason = str(harmless(said.strip()))
    if not reason or len(reason) > REASON_MAX:
        raise InputError("a reason of 1 to 2,000 characters is needed", "reason", "Say why.")
    return reason


def _dumped(event: Document) -> str:
    """As protected events are kept; a sample has no other times."""
    return msgspec.json.encode({**event, "@timestamp": micros(event["@timestamp"])}).decode()


def _release(row: sqlite3.Row) -> Release:
    said: dict[str, Any] = dict(row)
    said |= {name: from_micros(row[name]) for name in ("time", "changed")}
    said["expires"] = from_micros(row["expires"]) if row["expires"] else None
    said["people"] = msgspec.json.decode(row["people"], type=tuple[str, ...])
    said["payload"] = bytes(row["payload"])
    return Release(**said)


def _foreign(row: sqlite3.Row) -> Foreign:
    said: dict[str, Any] = dict(row)
    said |= {name: from_micros(row[name]) for name in ("received", "expires", "changed")}
    said["count"], said["events"] = said["events"], ()
    said["is_aside"] = bool(said.pop("aside"))
    said["is_operator_aside"] = bool(said["is_operator_aside"])
    return Foreign(**said)
