"""What the city proposed to this operator, and what became of it, in `node.db`.

A proposal is kept once, however often it arrives, and everything about it is one row: what the
city said, the run that this node's own engine made of it, what was decided here, and how much of
that the hub was told. So a kill at any moment neither loses nor repeats anything.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Literal

import msgspec

from siem.store.lines import harmless
from siem.store.query import from_micros, micros
from siem.store.trail import Trail

SCHEMA = """
CREATE TABLE proposals (
    id TEXT PRIMARY KEY,
    campaign TEXT NOT NULL,
    received INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    state TEXT NOT NULL,
    why TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT '',
    person TEXT NOT NULL DEFAULT '',
    finding TEXT NOT NULL DEFAULT '',
    run TEXT NOT NULL DEFAULT '',
    changed INTEGER NOT NULL,
    is_withdrawn INTEGER NOT NULL DEFAULT 0,
    accepted INTEGER NOT NULL DEFAULT 0,
    answered TEXT NOT NULL DEFAULT '',
    seq INTEGER NOT NULL DEFAULT 0,
    said BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX proposals_by_run ON proposals (run);
"""
"""Since format 3 of the state."""

State = Literal[
    "new", "planned", "approved", "applied", "undone", "done", "declined", "not possible", "expired"
]
"""`new`: the engine has not looked at it yet; all others are answers. `done`: nothing stays."""
Why = Literal[
    "", "shadow", "off", "no playbook", "no finding", "too often", "refused", "failed",
    "not needed", "harm", "other way", "later", "declined", "time", "withdrawn",
]  # fmt: skip
"""The reasons that may leave: words of this list, never somebody's own."""
DECLINES: tuple[Why, ...] = ("not needed", "harm", "other way", "later")
"""Why a person says no."""
ASKED_BY = "city: "
"""Who asked for a run of a proposal: this, and the name of the person at the hub. No account here
is called so, and whoever it is cannot approve it."""
OPEN: tuple[State, ...] = ("new", "planned", "approved", "applied")
"""States that change by themselves."""
OPEN_MAX = 200
"""Open proposals; what comes above is refused, and the log says so."""
KEPT_FOR = timedelta(days=400)
NOTE_MAX = 500
_OPEN = ", ".join(f"'{one}'" for one in OPEN)
_OPEN_YET = "state IN ('new', 'planned', 'approved')"
_AGAIN = "(state IN ('declined', 'not possible') OR why = 'shadow')"
_UNANSWERED = "state <> 'new' AND answered <> state || '/' || why"


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """What the city said; none of it is believed, all of it is shown as the city's word."""

    playbook: str
    """By the name it goes by at this node."""
    action: str
    indicator: str = ""
    """A join token that this operator has shared itself; empty: none is meant."""
    reason: str
    by: str
    shares: tuple[str, ...] = ()
    """Our own shares that are meant."""
    tlp: str = ""
    pap: str = ""


class Proposed(msgspec.Struct, frozen=True, kw_only=True):
    """A proposal of the city, and how it stands here."""

    id: str
    campaign: str
    received: datetime
    expires: datetime
    said: Said
    state: State = "new"
    why: Why = ""
    note: str = ""
    """Of who declined it; stays here."""
    person: str = ""
    """Who accepted or declined it here."""
    finding: str = ""
    run: str = ""
    changed: datetime
    is_withdrawn: bool = False
    """The city took its campaign back."""
    accepted: int = 0
    """How often a person had it planned anew."""
    answered: str = ""
    """State and reason that the hub was told last."""

    @property
    def own_run(self) -> str:
        """Id of the run that it starts: one, whatever is killed meanwhile; accepted anew, another.

        Its `run` is another one where a run about the same was there already.
        """
        said = f"proposal\0{self.id}\0{self.accepted}"
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    @property
    def may_be_planned(self) -> bool:
        """Whether a person may have it planned anew."""
        return self.state in ("declined", "not possible") or self.why == "shadow"


class ProposalStore:
    """The table of proposals, on the connections of a `NodeDb`; any thread may ask."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        reading: Callable[[], sqlite3.Connection],
        trail: Trail,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._trail = trail

    # ---- reading

    def all(self, limit: int = 200) -> list[Proposed]:
        """Proposals, the newest first."""
        return self._rows("ORDER BY received DESC, id LIMIT ?", limit)

    def open(self, limit: int = OPEN_MAX) -> list[Proposed]:
        """Those that change by themselves, the oldest first."""
        return self._rows(f"WHERE state IN ({_OPEN}) ORDER BY received, id LIMIT ?", limit)

    def waiting(self) -> int:
        """How many nobody has acted on yet."""
        query = "SELECT count(*) FROM proposals WHERE state IN ('new', 'planned')"
        return int(self._reading().execute(query).fetchone()[0])

    def get(self, id: str) -> Proposed | None:
        """One of them."""
        return next(iter(self._rows("WHERE id = ?", id)), None)

    def of_run(self, run: str) -> Proposed | None:
        """The proposal that a run came of, or answers."""
        return next(iter(self._rows("WHERE run = ? ORDER BY received LIMIT 1", run)), None)

    def _rows(self, where: str, *values: object) -> list[Proposed]:
        rows = self._reading().execute(f"SELECT * FROM proposals {where}", values)
        return [_proposed(row) for row in rows]

    # ---- what becomes of one

    def settle(
        self,
        one: Proposed,
        state: State,
        why: Why,
        now: datetime,
        *,
        run: str = "",
        about: str = "",
    ) -> bool:
        """Say how it stands, unless a person has said otherwise since it was read.

        Args:
            one: As it was read.
            state: How it stands now.
            why: Why.
            now: The node's time.
            run: The run that was made of it; empty: as before.
            about: The finding that it is about; empty: as before.
        """
        if (state, why) == (one.state, one.why) and run in ("", one.run):
            return False
        with self._writing() as db:
            done = db.execute(
                "UPDATE proposals SET state = ?, why = ?, run = ?, finding = ?, changed = ?"
                " WHERE id = ? AND state = ? AND why = ?",
                (
                    state, why, run or one.run, about or one.finding, micros(now),
                    one.id, one.state, one.why,
                ),
            ).rowcount  # fmt: skip
        return bool(done)

    def accept(self, id: str, by: str, now: datetime) -> bool:
        """Have the engine plan what it could not before, held back, or what somebody declined."""
        return self._decide(id, "new", "", by, "", now, _AGAIN)

    def decline(self, id: str, by: str, why: Why, note: str, now: datetime) -> bool:
        """Say no to what is not in force; the note stays here."""
        return self._decide(id, "declined", why, by, note, now, _OPEN_YET)

    def _decide(
        self, id: str, state: State, why: Why, by: str, note: str, now: datetime, before: str
    ) -> bool:
        by, note = harmless(by), harmless(note[:NOTE_MAX])
        with self._writing() as db:
            done = db.execute(
                "UPDATE proposals SET state = ?1, why = ?2, person = ?3, note = ?4, changed = ?5,"
                " run = iif(?1 = 'new', '', run), accepted = accepted + (?1 = 'new')"
                f" WHERE id = ?6 AND {before} AND expires > ?5 AND NOT is_withdrawn",
                (state, why, by, note, micros(now), id),
            ).rowcount
            if done:
                what = "proposal: declined" if state == "declined" else "proposal: accepted"
                about = ": ".join(part for part in (id, why, note) if part)
                self._trail.add(db, by, what, about, now)
        return bool(done)

    def retain(self, db: sqlite3.Connection, now: datetime) -> None:
        """Let go of what is long over, within its transaction."""
        db.execute(
            f"DELETE FROM proposals WHERE state NOT IN ({_OPEN}) AND changed < ?",
            (micros(now - KEPT_FOR),),
        )


# ---- on a connection of the outbox


def take(db: sqlite3.Connection, one: Proposed) -> bool:
    """Keep a proposal that came; the same one again changes nothing. False: too many are open."""
    if db.execute("SELECT 1 FROM proposals WHERE id = ?", (one.id,)).fetchone():
        return True
    count = db.execute(f"SELECT count(*) FROM proposals WHERE state IN ({_OPEN})").fetchone()[0]
    if count >= OPEN_MAX:
        return False
    db.execute(
        "INSERT INTO proposals (id, campaign, received, expires, state, why, changed, said)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            one.id, one.campaign, micros(one.received), micros(one.expires), one.state, one.why,
            micros(one.changed), msgspec.json.encode(one.said),
        ),
    )  # fmt: skip
    return True


def withdraw(db: sqlite3.Connection, campaign: str) -> None:
    """The city took a campaign back: what it proposed of it is not to be planned any more."""
    db.execute("UPDATE proposals SET is_withdrawn = 1 WHERE campaign = ?", (campaign,))


def has_answer(db: sqlite3.Connection) -> bool:
    """Whether the hub was not told yet how one stands."""
    query = f"SELECT EXISTS (SELECT 1 FROM proposals WHERE {_UNANSWERED})"
    return bool(db.execute(query).fetchone()[0])


def next_answer(db: sqlite3.Connection) -> Proposed | None:
    """The one that waits longest for the hub to be told how it stands."""
    row = db.execute(
        f"SELECT * FROM proposals WHERE {_UNANSWERED} ORDER BY changed LIMIT 1"
    ).fetchone()
    return _proposed(row) if row else None


def set_answered(db: sqlite3.Connection, one: Proposed, seq: int) -> None:
    """The hub is told how it stands, by an envelope of that number."""
    db.execute(
        "UPDATE proposals SET answered = ?, seq = ? WHERE id = ?",
        (f"{one.state}/{one.why}", seq, one.id),
    )


def answer_again(db: sqlite3.Connection, behind: int) -> None:
    """The hub has nothing of what was sent behind a number: it is answered again."""
    db.execute("UPDATE proposals SET answered = '', seq = 0 WHERE seq > ?", (behind,))


def _proposed(row: sqlite3.Row) -> Proposed:
    return Proposed(
        id=row["id"],
        campaign=row["campaign"],
        received=from_micros(row["received"]),
        expires=from_micros(row["expires"]),
        said=msgspec.json.decode(row["said"], type=Said),
        state=row["state"],
        why=row["why"],
        note=row["note"],
        person=row["person"],
        finding=row["finding"],
        run=row["run"],
        changed=from_micros(row["changed"]),
        is_withdrawn=bool(row["is_withdrawn"]),
        accepted=row["accepted"],
        answered=row["answered"],
    )
