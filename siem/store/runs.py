"""The journal of runs in `node.db`; see `playbooks/journal.py` for what it promises.

Every method is one transaction. A person's order is a line of the run's history, which the next
transition obeys; it also stands in the audit trail.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from functools import cache
from itertools import islice
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, Literal

import msgspec

from cityward import InputError, Target, TransientError
from playbooks.journal import (
    LEASE,
    ORDERS,
    QUEUES,
    RUN_ENDS,
    UNDOES,
    Approval,
    Bell,
    Change,
    Effect,
    Entry,
    OrderKind,
    Overtaken,
    Queue,
    Run,
    StepRow,
    check_change,
)
from siem.store.faults import fault
from siem.store.lines import harmless
from siem.store.query import from_micros, micros
from siem.store.trail import Trail

SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, playbook TEXT NOT NULL, finding TEXT NOT NULL, grp TEXT NOT NULL,
    state TEXT NOT NULL, is_open INTEGER NOT NULL, made INTEGER NOT NULL, ended INTEGER,
    token INTEGER NOT NULL DEFAULT 0, lease_until INTEGER NOT NULL DEFAULT 0, wake INTEGER,
    queue TEXT NOT NULL DEFAULT 'control',
    plan_hash TEXT NOT NULL, plan BLOB NOT NULL, document BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX runs_due ON runs (queue, wake) WHERE is_open = 1;
CREATE INDEX runs_open ON runs (grp) WHERE is_open = 1;
CREATE INDEX runs_leased ON runs (lease_until) WHERE is_open = 1 AND lease_until > 0;
CREATE INDEX runs_by_playbook ON runs (playbook, made);
CREATE INDEX runs_by_finding ON runs (finding);
CREATE INDEX runs_by_time ON runs (made);
CREATE TABLE run_steps (
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, id TEXT NOT NULL,
    place INTEGER NOT NULL, parent TEXT NOT NULL, state TEXT NOT NULL, went TEXT NOT NULL,
    document BLOB NOT NULL, PRIMARY KEY (run, id)
) WITHOUT ROWID;
CREATE TABLE effects (
    key TEXT PRIMARY KEY, run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,
    step TEXT NOT NULL, actuator TEXT NOT NULL, target TEXT NOT NULL, state TEXT NOT NULL,
    began INTEGER, until INTEGER, ended INTEGER, document BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX effects_by_run ON effects (run);
CREATE INDEX effects_in_force ON effects (actuator, target)
    WHERE state IN ('intended', 'applied', 'rolling_back');
CREATE INDEX effects_due ON effects (until)
    WHERE state IN ('intended', 'applied', 'rolling_back');
CREATE TABLE run_approvals (
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, plan_hash TEXT NOT NULL,
    person TEXT NOT NULL, role TEXT NOT NULL, time INTEGER NOT NULL,
    PRIMARY KEY (run, plan_hash, person)
) WITHOUT ROWID;
CREATE TABLE run_events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE, kind TEXT NOT NULL,
    about TEXT NOT NULL, what TEXT NOT NULL, person TEXT NOT NULL, time INTEGER NOT NULL
);
CREATE INDEX run_events_by_run ON run_events (run, number);
CREATE INDEX run_events_by_kind ON run_events (kind, number);
CREATE TABLE run_targets (target TEXT PRIMARY KEY, token INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE run_switches (
    name TEXT PRIMARY KEY, person TEXT NOT NULL, reason TEXT NOT NULL, time INTEGER NOT NULL
) WITHOUT ROWID;
"""
"""Since format 3 of the state; a switch that is there is on: it stops."""

TURNS = 256
"""Files by which processes take turns at targets."""
CLAIMS = "claims"
"""A file without content, of which each claim locks the byte of its token."""
_LOCK = Struct("hhqqi0q")
"""`struct flock` of Linux: kind, whence, begin, length, process (0: of the open file)."""
TURN_S = 5.0
"""So long a runner waits for another that acts on the same target."""
KEPT = timedelta(days=400)
RUNS_MAX = 100_000
HISTORY_MAX = 2_000
"""Lines of a run; of a run that says more, the oldest go, but no order of a person."""
TEXT_MAX = 2_000
CLOCK = "journal_clock"
BREAKER = "breaker_closed:"
"""Begin of the names of the numbers that say when a breaker was last closed."""
_FREE = "is_open = 1 AND wake <= ? AND (lease_until <= ? OR lease_until > ?)"
"""Nobody has it; a lease that ends later than any can is of a clock that was set back since."""
_LONGEST = timedelta(days=31)
"""A run that began so long ago has no step that fails now."""
_TAKEN_BACK: Mapping[str, Queue] = {"cancel": UNDOES, "undo": UNDOES}
_TOKEN = "run_token"
_TOKENS_BACK = 1_000_000


class Switch(msgspec.Struct, frozen=True):
    """A kill switch that is on."""

    name: str
    by: str
    reason: str
    time: datetime


class InForce(msgspec.Struct, frozen=True):
    """One effect that holds, with the run that made it."""

    run: str
    playbook: str
    finding: str
    asked_by: str
    approved_by: tuple[str, ...]
    effect: Effect


class _Anchor(msgspec.Struct, frozen=True):
    """A moment at which the journal's time was the clock's."""

    boot: str
    ticks_ns: int
    time: datetime


class _Kept(msgspec.Struct, frozen=True):
    """What of a run never changes."""

    playbook: Any
    finding: Any
    group: str
    stage: str
    asked_by: str
    made: datetime
    deadline: datetime


class RunStore:
    """The tables of responses; made by `NodeDb`, on its connections; any thread may ask.

    Args:
        writing: A transaction.
        reading: A connection.
        trail: Where what people do is kept.
        clock: The node's time.
        folder: Where processes take turns at targets.
    """

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        reading: Callable[[], sqlite3.Connection],
        trail: Trail,
        clock: Callable[[], datetime],
        folder: Path,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._trail = trail
        self._clock = clock
        self._folder = folder
        self.is_steady = False
        """Whether time goes on evenly when somebody sets the clock; not where the clock that was
        handed in is itself turned faster."""
        self.stop_file: Path | None = None
        """A file that stops everything while it is there."""
        self.bell: Bell | None = None
        """Rings for workers when people or findings give a run something to do."""
        self._held: dict[str, tuple[int, BinaryIO]] = {}
        """Tokens and locks, which say that the claims of this process are those of a living one."""

    # ---- Time

    def now(self) -> datetime:
        """The time of the journal.

        With `is_steady`: that of the clock when no run was open last, and what has passed since.
        """
        if not self.is_steady:
            return self._clock()
        boot, ticks_ns = _ticks()
        found = _anchor(self._reading())
        if found is None or found.boot != boot:
            found = self._set_anchor(boot, ticks_ns, found)
        return found.time + timedelta(microseconds=(ticks_ns - found.ticks_ns) // 1_000)

    def _set_anchor(self, boot: str, ticks_ns: int, before: _Anchor | None) -> _Anchor:
        with self._writing() as db:
            now = self._clock()
            # A machine whose clock has lost its battery wakes up in the past.
            made = _Anchor(boot, ticks_ns, max(now, before.time) if before else now)
            other = _anchor(db)
            if other is not None and other.boot == boot:
                return other
            _write_anchor(db, made)
        return made

    @contextmanager
    def _unsynced(self) -> Iterator[sqlite3.Connection]:
        """A transaction that outlives every process, but perhaps not a loss of power.

        Claims and tokens are for runners; after a loss of power there is none to be told apart.
        And what a transition has seen of the world is seen again by the one that is made anew.
        """
        connection = self._reading()
        connection.execute("PRAGMA synchronous = NORMAL")
        try:
            with self._writing() as db:
                yield db
        finally:
            connection.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def _at_once(self) -> Iterator[sqlite3.Connection]:
        """What stands in the journal at one moment."""
        db = self._reading()
        db.execute("BEGIN")
        try:
            yield db
        finally:
            db.rollback()

    # ---- The runner

    def start(self, run: Run) -> bool:
        """Keep a new run; False if it is there, or another of its group is open."""
        kept = _Kept(
            run.playbook, run.finding, run.group, run.stage, run.asked_by, run.made, run.deadline
        )
        with self._writing() as db:
            if run.group and _one(db, "SELECT 1 FROM runs WHERE grp = ? AND is_open", run.group):
                return False
            if self.is_steady and not _one(db, "SELECT 1 FROM runs WHERE is_open = 1"):
                boot, ticks_ns = _ticks()
                _write_anchor(db, _Anchor(boot, ticks_ns, self._clock()))
            row = (
                run.id, run.playbook.id, run.plan.finding, run.group, run.state, micros(run.made),
                micros(run.made), run.plan.hash, _json(run.plan), _json(kept),
            )  # fmt: skip
            made = db.execute(
                "INSERT OR IGNORE INTO runs (id, playbook, finding, grp, state, is_open, made,"
                " wake, plan_hash, plan, document) VALUES (?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?)",
                row,
            ).rowcount
            if made:
                _write_steps(db, run.id, run.steps, 0)
                if run.asked_by:
                    what = f"{run.id} by playbook {run.playbook.name}"
                    self._trail.add(db, run.asked_by, "response: started", what, run.made)
            fault("run-start")
        if made:
            self._ring("control")
        return bool(made)

    def claim(self, run: str, now: datetime, lease: timedelta = LEASE) -> Run | None:
        """Take a run for one transition; None if none is due or somebody has it.

        Who has it and is dead has it no longer, however long the lease.
        """
        due = "id = ? AND is_open = 1 AND wake <= ?"
        found = _one(self._reading(), f"SELECT * FROM runs WHERE {due}", run, micros(now))
        if found is None or (_is_leased(found, now, lease) and self._lives(found["token"])):
            return None
        with self._unsynced() as db:
            (token,) = db.execute(
                f"INSERT INTO numbers VALUES ('{_TOKEN}', 1)"
                " ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value"
            ).fetchone()
            taken = db.execute(
                f"UPDATE runs SET lease_until = ?, token = ? WHERE {due} AND token = ?",
                (micros(now + lease), token, run, micros(now), found["token"]),
            ).rowcount
            if taken:  # before anybody can see the claim
                self._hold(run, token)
        fault("run-claimed")
        # Behind the claim: who cannot be read holds up nobody until the lease is over.
        return self.get(run) if taken else None

    def _hold(self, run: str, token: int) -> None:
        """Say that the claim of this token is that of a living process, until `record`."""
        self._let_go(run, token)
        self._folder.mkdir(parents=True, exist_ok=True)
        file = open(self._folder / CLAIMS, "ab")  # noqa: SIM115 – until `record`
        self._held[run] = token, file
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _byte(token))

    def _lives(self, token: int) -> bool:
        """Whether the process that has this claim is there; the system knows."""
        try:
            with open(self._folder / CLAIMS, "rb") as file:
                said = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _byte(token))
        except FileNotFoundError:
            return False
        return bool(_LOCK.unpack(said)[0] != fcntl.F_UNLCK)

    def _let_go(self, run: str, token: int) -> None:
        """Of a thread that was overtaken the claim is another's, who lives."""
        if run in self._held and self._held[run][0] <= token:
            self._held.pop(run)[1].close()

    def record(self, change: Change) -> None:
        """Write a transition and let the run go.

        Raises:
            Overtaken: somebody else has claimed it since; nothing was written.
            ValueError: the state machine has no such edge.
        """
        check_change(change)
        run, state = change.run, change.state or change.run.state
        is_over = state in RUN_ENDS
        now = micros(self.now())
        fault(f"run-before-{_edge(change)}")
        with self._writing() if _lasts(change) else self._unsynced() as db:
            taken = db.execute(
                "UPDATE runs SET lease_until = 0, state = ?, is_open = ?, wake = ?, ended = ?,"
                " queue = ? WHERE id = ? AND token = ? AND is_open = 1",
                (
                    state, not is_over, micros(change.wake) if change.wake else None,
                    now if is_over else None, change.queue, run.id, run.token,
                ),
            ).rowcount  # fmt: skip
            if not taken:
                self._let_go(run.id, run.token)
                raise Overtaken(f"run {run.id} is somebody else's, token {run.token} is old")
            if change.plan is not None:
                db.execute(
                    "UPDATE runs SET plan = ?, plan_hash = ? WHERE id = ?",
                    (_json(change.plan), change.plan.hash, run.id),
                )
            _write_steps(db, run.id, change.steps, len(run.steps))
            _write_effects(db, run.id, change.effects)
            _write_entries(db, run.id, change.entries)
            # What a person said while it was under way is looked at next.
            said = db.execute(
                "SELECT kind FROM run_events WHERE run = ? AND number > ? AND person <> ''",
                (run.id, run.seen),
            )
            for kind in said.fetchall():
                _wake(db, run.id, kind[0])
        self._let_go(run.id, run.token)
        fault(f"run-after-{_edge(change)}")

    @contextmanager
    def turn(self, actuator: str, target: Target, token: int) -> Iterator[None]:
        """The right to act on a target: one process at a time, and no lower token than the last.

        Raises:
            Overtaken: a higher token was seen for this target.
            TransientError: somebody acts on it.
        """
        name = _target(actuator, target)
        number = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % TURNS
        self._folder.mkdir(parents=True, exist_ok=True)
        # A lock of the system: it goes with the process that has it, however that ends.
        with open(self._folder / str(number), "ab") as file:
            _lock(file.fileno(), name)
            with self._unsynced() as db:
                seen = _one(db, "SELECT token FROM run_targets WHERE target = ?", name)
                if seen and seen["token"] > token:
                    raise Overtaken(f"token {seen['token']} was at {name}, {token} is old")
                db.execute("INSERT OR REPLACE INTO run_targets VALUES (?, ?)", (name, token))
            fault("run-turn")
            yield
            fault("run-acted")

    def holds(self, actuator: str, target: Target) -> Sequence[tuple[str, Effect]]:
        """What is in force on a target, with its run."""
        rows = self._reading().execute(
            "SELECT run, document FROM effects WHERE actuator = ? AND target = ?"
            " AND state IN ('intended', 'applied', 'rolling_back')",
            (actuator, _target(actuator, target)),
        )
        return [(row["run"], msgspec.json.decode(row["document"], type=Effect)) for row in rows]

    def due(
        self, now: datetime, limit: int = 100, queues: Sequence[Queue] = QUEUES
    ) -> Mapping[str, Queue]:
        """Runs that nobody has and whose time has come.

        First all where an effect is to be undone, whatever the queues; then those of the queues,
        the longest overdue first.
        """
        db, at = self._reading(), (micros(now), micros(now), micros(now + LEASE))
        leased = db.execute(
            "SELECT * FROM runs WHERE is_open = 1 AND lease_until > 0 AND wake <= ?", (micros(now),)
        )
        # Whoever has died over it may have been undoing.
        dead = [row["id"] for row in leased if not self._lives(row["token"])]
        over = db.execute(
            "SELECT runs.id FROM effects JOIN runs ON runs.id = effects.run"
            " WHERE effects.state IN ('intended', 'applied', 'rolling_back')"
            f" AND effects.until <= ? AND {_FREE} ORDER BY effects.until LIMIT ?",
            (micros(now), *at, limit),
        )
        found: dict[str, Queue] = dict.fromkeys([*dead, *(row["id"] for row in over)], UNDOES)
        begins: list[tuple[int, str, Queue]] = []
        for queue in dict.fromkeys((UNDOES, *queues)):
            if len(found) >= limit:
                break
            rows = db.execute(
                f"SELECT id, wake FROM runs WHERE queue = ? AND {_FREE} ORDER BY wake LIMIT ?",
                (queue, *at, limit),
            )
            if queue == UNDOES:
                found |= {row["id"]: UNDOES for row in rows}
            else:
                begins += [(row["wake"], row["id"], queue) for row in rows]
        for _, id, queue in sorted(begins):
            found.setdefault(id, queue)
        return dict(islice(found.items(), limit))

    def stopped(self) -> Sequence[str]:
        """Kill switches that are on: `global`, `playbook:…`, `actuator:…`; rows and the file."""
        names = [row["name"] for row in self._reading().execute("SELECT name FROM run_switches")]
        if self.stop_file is not None and self.stop_file.exists():
            names.append("global")
        return names

    # ---- People

    def approve(self, run: str, by: str, role: str, plan_hash: str, why: str = "") -> bool:
        """Say yes to the plan of a run; False if it is over or its plan is another.

        Raises:
            InputError: it is their own request.
        """
        by, why, now = harmless(by), harmless(why[:TEXT_MAX]), self.now()
        with self._writing() as db:
            found = _run(db, run)
            if found is None or found.state in RUN_ENDS or found.plan.hash != plan_hash:
                return False
            if found.asked_by == by:
                raise InputError("nobody approves their own request", run, "Ask somebody else.")
            db.execute(
                "INSERT OR REPLACE INTO run_approvals VALUES (?, ?, ?, ?, ?)",
                (run, plan_hash, by, role, micros(now)),
            )
            what = f"plan {plan_hash[:12]}, as {role}{why and f': {why}'}"
            self._order(db, run, Entry(kind="approved", what=what, by=by, time=now))
        self._ring("control")
        return True

    def order(self, run: str, kind: OrderKind, by: str, what: str, about: str = "") -> bool:
        """Want something of a run; False if it is over.

        Args:
            run: Which one.
            kind: `cancel` it, `undo` an effect, or `answer` a manual step.
            by: Who.
            what: Their reason; of an answer it begins with `done` or `failed`.
            about: Key of the effect (none: all that hold), row of the step.
        """
        with self._writing() as db:
            if not _one(db, "SELECT 1 FROM runs WHERE id = ? AND is_open = 1", run):
                return False
            by, what, about = harmless((by, what[:TEXT_MAX], about))
            said = Entry(kind=kind, about=about, what=what, by=by, time=self.now())
            self._order(db, run, said)
        self._ring(_TAKEN_BACK.get(kind, "control"))
        return True

    def _ring(self, queue: Queue) -> None:
        if self.bell is not None:
            self.bell(queue, 1)

    def _order(self, db: sqlite3.Connection, run: str, said: Entry) -> None:
        _write_entries(db, run, (said,))
        _wake(db, run, said.kind)
        about = f"{run} {said.about} {said.what}"
        self._trail.add(db, said.by, f"response: {said.kind}", about, said.time)

    def switch(self, name: str, by: str, reason: str, *, on: bool) -> None:
        """Stop everything (`global`), a playbook or an actuator, or let it go on."""
        by, name, reason = harmless((by, name, reason[:TEXT_MAX]))
        now = self.now()
        with self._writing() as db:
            if on:
                db.execute(
                    "INSERT OR REPLACE INTO run_switches VALUES (?, ?, ?, ?)",
                    (name, by, reason, micros(now)),
                )
            else:
                db.execute("DELETE FROM run_switches WHERE name = ?", (name,))
            what = "response: stopped" if on else "response: goes on"
            self._trail.add(db, by, what, f"{name}: {reason}", now)

    def switches(self) -> list[Switch]:
        """Kill switches that are on, as rows."""
        rows = self._reading().execute("SELECT * FROM run_switches ORDER BY name")
        return [
            Switch(row["name"], row["person"], row["reason"], from_micros(row["time"]))
            for row in rows
        ]

    # ---- Reading

    def get(self, run: str) -> Run | None:
        """One run as it stands."""
        with self._at_once() as db:
            return _run(db, run)

    def all(
        self, *, open_only: bool = False, finding: str = "", limit: int = 200, offset: int = 0
    ) -> list[Run]:
        """Runs, the newest first."""
        where = "WHERE is_open = 1" if open_only else "WHERE TRUE"
        where += " AND finding = ?" if finding else ""
        rows = self._reading().execute(
            f"SELECT id FROM runs {where} ORDER BY made DESC, id LIMIT ? OFFSET ?",
            (*([finding] if finding else []), limit, offset),
        )
        return [one for row in rows.fetchall() if (one := self.get(row["id"])) is not None]

    def history(self, run: str, limit: int = HISTORY_MAX) -> list[Entry]:
        """What happened to a run, in order."""
        rows = self._reading().execute(
            "SELECT * FROM run_events WHERE run = ? ORDER BY number LIMIT ?", (run, limit)
        )
        return [_entry(row) for row in rows]

    def said_after(
        self, number: int, kinds: Sequence[str], limit: int = 100
    ) -> list[tuple[str, Entry]]:
        """Lines of some kinds of all runs behind a number, in order, with their run."""
        marks = ", ".join("?" * len(kinds))
        rows = self._reading().execute(
            f"SELECT * FROM run_events WHERE number > ? AND kind IN ({marks})"
            " ORDER BY number LIMIT ?",
            (number, *kinds, limit),
        )
        return [(row["run"], _entry(row)) for row in rows]

    def in_force(self) -> list[InForce]:
        """What may be other in the world than it was, the oldest first."""
        rows = self._reading().execute(
            "SELECT effects.run, effects.document, runs.playbook, runs.finding, runs.plan_hash,"
            " runs.document AS kept FROM effects JOIN runs ON runs.id = effects.run"
            " WHERE effects.state IN ('intended', 'applied', 'rolling_back')"
            " ORDER BY effects.began"
        )
        return [
            InForce(
                row["run"],
                row["playbook"],
                row["finding"],
                msgspec.json.decode(row["kept"])["asked_by"],
                tuple(
                    one["person"]
                    for one in self._reading().execute(
                        "SELECT person FROM run_approvals WHERE run = ? ORDER BY time",
                        (row["run"],),
                    )
                ),
                msgspec.json.decode(row["document"], type=Effect),
            )
            for row in rows.fetchall()
        ]

    def last_of(self, group: str) -> datetime | None:
        """When the last run of a group began."""
        row = _one(self._reading(), "SELECT max(made) AS made FROM runs WHERE grp = ?", group)
        return from_micros(row["made"]) if row and row["made"] is not None else None

    # ---- What the gate asks (`siem.facts.Rows`)

    def runs_but(self, playbook: str, since: datetime, but: str) -> int:
        """Runs of a playbook that began since then, one left out."""
        return self._count("playbook = ? AND made >= ? AND id <> ?", playbook, micros(since), but)

    def open_but(self, playbook: str, but: str) -> int:
        """Open runs of a playbook, one left out."""
        return self._count("playbook = ? AND is_open = 1 AND id <> ?", playbook, but)

    def _count(self, where: str, *values: object) -> int:
        row = _one(self._reading(), f"SELECT count(*) AS count FROM runs WHERE {where}", *values)
        return int(row["count"]) if row else 0

    def last_command(self, playbook: str, target: Target, but: str) -> datetime | None:
        """When runs of a playbook, one left out, last began to act on a target."""
        row = _one(
            self._reading(),
            "SELECT max(began) AS began FROM effects JOIN runs ON runs.id = effects.run"
            " WHERE runs.playbook = ? AND runs.id <> ? AND effects.state <> 'failed'"
            " AND json_extract(effects.document, '$.command.target.type') = ?"
            " AND json_extract(effects.document, '$.command.target.value') = ?",
            playbook,
            but,
            target.type,
            target.value,
        )
        return from_micros(row["began"]) if row and row["began"] is not None else None

    def commands_since(self, actuator: str, since: datetime) -> int:
        """Effects of an actuator that began since then."""
        row = _one(
            self._reading(),
            "SELECT count(*) AS count FROM effects WHERE actuator = ? AND began >= ?",
            actuator,
            micros(since),
        )
        return int(row["count"]) if row else 0

    def targets_but(self, but: str) -> list[Target]:
        """Targets of what is in force, one run left out."""
        rows = self._reading().execute(
            "SELECT json_extract(document, '$.command.target.type') AS type,"
            " json_extract(document, '$.command.target.value') AS value FROM effects"
            " WHERE state IN ('intended', 'applied', 'rolling_back') AND run <> ?",
            (but,),
        )
        return [Target(row["type"], row["value"]) for row in rows]

    def failures(self, actuator: str) -> list[datetime]:
        """When steps of an actuator failed since a person last closed its breaker."""
        rows = self._reading().execute(
            "SELECT json_extract(run_steps.document, '$.since') AS since FROM runs"
            " JOIN run_steps ON run_steps.run = runs.id WHERE runs.made >= ?"
            " AND run_steps.state IN ('failed', 'rolling_back', 'rolled_back')"
            " AND run_steps.went = 'failure'"
            " AND json_extract(run_steps.document, '$.note') <> 'undone'"
            " AND json_extract(run_steps.document, '$.planned.actuator') = ?"
            # What a person ended, or the gate refused in the end, is no fault of the device.
            " AND NOT EXISTS (SELECT 1 FROM run_events WHERE run_events.run = runs.id"
            " AND (kind = 'cancel' OR (kind = 'refused' AND about = run_steps.id)))",
            (micros(self._closed(actuator) - _LONGEST), actuator),
        )
        times = (datetime.fromisoformat(row["since"]) for row in rows)
        return sorted(time for time in times if time > self._closed(actuator))

    def rollbacks(self, actuator: str) -> list[datetime]:
        """When people took back what an actuator did, since its breaker was last closed."""
        rows = self._reading().execute(
            "SELECT DISTINCT run_events.number, run_events.time FROM run_events"
            " JOIN effects ON effects.run = run_events.run"
            " AND run_events.about IN ('', effects.key)"
            " WHERE run_events.kind IN ('undo', 'cancel') AND run_events.person <> ''"
            " AND run_events.time > ? AND effects.actuator = ? AND effects.began IS NOT NULL"
            " AND effects.until IS NOT NULL ORDER BY run_events.number",
            (micros(self._closed(actuator)), actuator),
        )
        return [from_micros(row["time"]) for row in rows]

    def close_breaker(self, actuator: str, by: str, reason: str) -> None:
        """Count failures and rollbacks of an actuator from now on."""
        by, actuator, reason = harmless((by, actuator, reason[:TEXT_MAX]))
        now = self.now()
        with self._writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO numbers VALUES (?, ?)", (BREAKER + actuator, micros(now))
            )
            self._trail.add(db, by, "response: breaker closed", f"{actuator}: {reason}", now)

    def _closed(self, actuator: str) -> datetime:
        row = _one(self._reading(), "SELECT value FROM numbers WHERE name = ?", BREAKER + actuator)
        return from_micros(row["value"] if row else 0)

    def waiting(self) -> int:
        """How many open runs wait for somebody's yes."""
        row = _one(
            self._reading(),
            "SELECT count(DISTINCT run_steps.run) AS count FROM run_steps JOIN runs"
            " ON runs.id = run_steps.run"
            " WHERE runs.is_open = 1 AND run_steps.state = 'waiting_approval'",
        )
        return int(row["count"]) if row else 0

    def counts(self) -> dict[str, int]:
        """Runs by state."""
        rows = self._reading().execute("SELECT state, count(*) AS n FROM runs GROUP BY state")
        return {row["state"]: row["n"] for row in rows}

    def retain(self, db: sqlite3.Connection, now: datetime) -> None:
        """Let go of runs that are long over; an open run never goes."""
        db.execute("DELETE FROM runs WHERE is_open = 0 AND ended < ?", (micros(now - KEPT),))
        surplus = db.execute("SELECT count(*) FROM runs").fetchone()[0] - RUNS_MAX
        if surplus > 0:
            db.execute(
                "DELETE FROM runs WHERE id IN (SELECT id FROM runs WHERE is_open = 0"
                " ORDER BY ended LIMIT ?)",
                (surplus,),
            )
        db.execute(
            "DELETE FROM run_targets WHERE token <"
            f" (SELECT value FROM numbers WHERE name = '{_TOKEN}') - {_TOKENS_BACK}"
        )


# ---- Rows


def _one(db: sqlite3.Connection, query: str, *values: object) -> sqlite3.Row | None:
    found: sqlite3.Row | None = db.execute(query, values).fetchone()
    return found


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _run(db: sqlite3.Connection, id: str) -> Run | None:
    row = _one(db, "SELECT * FROM runs WHERE id = ?", id)
    if row is None:
        return None
    steps = db.execute("SELECT document FROM run_steps WHERE run = ? ORDER BY place", (id,))
    effects = db.execute("SELECT document FROM effects WHERE run = ? ORDER BY began, key", (id,))
    yes = db.execute("SELECT * FROM run_approvals WHERE run = ? ORDER BY time", (id,))
    marks = ", ".join(f"'{one}'" for one in ORDERS)
    orders = db.execute(
        f"SELECT * FROM run_events WHERE run = ? AND kind IN ({marks}) ORDER BY number", (id,)
    )
    seen = db.execute("SELECT max(number) FROM run_events WHERE run = ?", (id,)).fetchone()[0]
    kept = msgspec.json.decode(row["document"])
    return msgspec.convert(
        {
            **kept,
            "id": id,
            "state": row["state"],
            "token": row["token"],
            "due": from_micros(row["wake"]) if row["wake"] is not None else None,
            "plan": msgspec.json.decode(row["plan"]),
            "steps": [msgspec.json.decode(one["document"]) for one in steps],
            "effects": [msgspec.json.decode(one["document"]) for one in effects],
            "approvals": [
                Approval(one["plan_hash"], one["person"], one["role"], from_micros(one["time"]))
                for one in yes
            ],
            "orders": [_entry(one) for one in orders],
            "seen": seen or 0,
        },
        Run,
    )


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(
        kind=row["kind"],
        about=row["about"],
        what=row["what"],
        by=row["person"],
        time=from_micros(row["time"]),
        number=row["number"],
    )


def _write_steps(db: sqlite3.Connection, run: str, rows: Sequence[StepRow], place: int) -> None:
    db.executemany(
        "INSERT INTO run_steps VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (run, id) DO UPDATE SET"
        " state = excluded.state, went = excluded.went, document = excluded.document",
        [
            (run, row.id, place + number, row.parent, row.state, row.went, _json(row))
            for number, row in enumerate(rows)
        ],
    )


def _write_effects(db: sqlite3.Connection, run: str, effects: Sequence[Effect]) -> None:
    db.executemany(
        "INSERT INTO effects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
        " state = excluded.state, began = excluded.began, until = excluded.until,"
        " ended = excluded.ended, document = excluded.document",
        [
            (
                one.key, run, one.step, one.actuator, _target(one.actuator, one.command.target),
                one.state, _micros(one.began), _micros(one.until), _micros(one.ended), _json(one),
            )
            for one in effects
        ],
    )  # fmt: skip


def _write_entries(db: sqlite3.Connection, run: str, entries: Sequence[Entry]) -> None:
    db.executemany(
        "INSERT INTO run_events (run, kind, about, what, person, time) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (run, one.kind, one.about, harmless(one.what[:TEXT_MAX]), one.by, micros(one.time))
            for one in entries
        ],
    )
    db.execute(
        "DELETE FROM run_events WHERE run = ? AND person = '' AND number <= (SELECT number FROM"
        " run_events WHERE run = ? ORDER BY number DESC LIMIT 1 OFFSET ?)",
        (run, run, HISTORY_MAX),
    )


def _wake(db: sqlite3.Connection, run: str, kind: str) -> None:
    """What a person wants of a run is due before newer runs; what they want undone, before all."""
    db.execute("UPDATE runs SET wake = made WHERE id = ? AND is_open = 1", (run,))
    if queue := _TAKEN_BACK.get(kind):
        db.execute("UPDATE runs SET queue = ? WHERE id = ?", (queue, run))


def _is_leased(row: sqlite3.Row, now: datetime, lease: timedelta) -> bool:
    # A lease that ends later than any can is of a clock that was set back since.
    return micros(now) < int(row["lease_until"]) <= micros(now + lease)


def _byte(token: int) -> bytes:
    """The lock that stands for a token: it needs no room, and goes with the process that has it."""
    return _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, token, 1, 0)


def _lasts(change: Change) -> bool:
    """Whether a transition must outlive a loss of power.

    What is intended must, before the world is touched: it says what to ask the device for. What
    cannot be asked for must, so that no mail is sent again. All else is found anew by asking.
    """
    return any(one.state in ("intended", "done") for one in change.effects)


def _edge(change: Change) -> str:
    """Name of a transition, for the kill tests: the state that the first changed thing has now."""
    changed: list[Any] = [*change.steps, *change.effects]
    state: Literal["wait"] | str = changed[0].state if changed else change.state or "wait"
    return state


def _micros(time: datetime | None) -> int | None:
    return micros(time) if time is not None else None


def _target(actuator: str, target: Target) -> str:
    return f"{actuator} {target.type} {target.value}"


def _lock(file: int, name: str) -> None:
    until = time.monotonic() + TURN_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise TransientError(f"somebody acts on {name}", "journal", "Try again.") from None
            time.sleep(0.02)
        else:
            return


# ---- Time that does not step


def _ticks() -> tuple[str, int]:
    """Which start of the machine this is, and nanoseconds since then, suspension included."""
    return _boot(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _anchor(db: sqlite3.Connection) -> _Anchor | None:
    row = _one(db, "SELECT value FROM settings WHERE name = ?", CLOCK)
    return msgspec.json.decode(row["value"], type=_Anchor) if row else None


def _write_anchor(db: sqlite3.Connection, anchor: _Anchor) -> None:
    db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (CLOCK, _json(anchor)))
