"""A device that notes every command it was given: a fake, in a file that no kill takes away."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

from cityward import Command, State, Target, TransientError, actuator


@actuator("recorder", verbs={"deny": "allow"}, targets=("ipv4_net",), rollback="journal")
class Recorder:
    """Denies addresses, and says how often it was told to.

    Args:
        path: Its memory.
        slow_s: It has done what it was told so long before it says so.
    """

    def __init__(self, path: Path, slow_s: float = 0.0) -> None:
        self.path = path
        self.slow_s = slow_s
        self.failing: set[str] = set()
        """Verbs that it does not do."""
        with closing(self._open()) as db:
            db.executescript(
                "PRAGMA journal_mode = WAL;"
                "CREATE TABLE IF NOT EXISTS calls (number INTEGER PRIMARY KEY, verb TEXT,"
                " target TEXT, key TEXT, token INTEGER, changed INTEGER, time REAL);"
                "CREATE TABLE IF NOT EXISTS denied (target TEXT PRIMARY KEY);"
            )

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        db.execute("PRAGMA synchronous = OFF")
        return db

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """The command, unless it holds."""
        if not self.probe(target).is_applied:
            yield Command(verb, target, "allow", until, prior={"denied": False})

    def apply(self, command: Command) -> None:
        """Do it, and note it."""
        if command.verb in self.failing:
            raise TransientError(f"no {command.verb} today", "recorder")
        with closing(self._open()) as db:
            db.execute("BEGIN IMMEDIATE")
            target = command.target.value
            if command.verb == "deny":
                done = db.execute("INSERT OR IGNORE INTO denied VALUES (?)", (target,))
            else:
                done = db.execute("DELETE FROM denied WHERE target = ?", (target,))
            call = (command.verb, target, command.key, command.token, done.rowcount, time.time())
            db.execute(
                "INSERT INTO calls (verb, target, key, token, changed, time)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                call,
            )
            db.execute("COMMIT")
        time.sleep(self.slow_s)

    def probe(self, target: Target) -> State:
        """Whether it is denied."""
        with closing(self._open()) as db:
            row = db.execute("SELECT 1 FROM denied WHERE target = ?", (target.value,)).fetchone()
        return State(row is not None, found={"denied": row is not None})

    def calls(self) -> list[tuple[str, str, str]]:
        """Verb, target and key of every command, in order."""
        with closing(self._open()) as db:
            return db.execute("SELECT verb, target, key FROM calls ORDER BY number").fetchall()

    def denied(self) -> set[str]:
        """What is denied now."""
        with closing(self._open()) as db:
            return {row[0] for row in db.execute("SELECT target FROM denied")}
