"""How far each playbook may go at this node: what an engineer said, beside what its file says."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime

import msgspec

from cityward import InputError
from playbooks.flow import STRICTEST
from playbooks.model import Called, Playbook, Stage
from siem.store.lines import harmless
from siem.store.trail import Trail

KEY = "playbook_stages"
REASON_MAX = 2_000


class Staged(msgspec.Struct, frozen=True):
    """Somebody's word on a playbook; it counts for that version alone."""

    stage: Stage
    version: str
    by: str
    reason: str
    time: datetime


class StageStore:
    """One row of the settings, on the connections of a `NodeDb`; any thread may ask."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sqlite3.Connection]],
        reading: Callable[[], sqlite3.Connection],
        trail: Trail,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._trail = trail

    def all(self) -> Mapping[str, Staged]:
        """What was said, by the id of the playbook."""
        return _read(self._reading())

    def put(
        self, playbook: str, version: str, stage: Stage, by: str, reason: str, now: datetime
    ) -> None:
        """Say how far a version of a playbook may go.

        Raises:
            InputError: a reason is missing.
        """
        by, reason = harmless((by, reason.strip()[:REASON_MAX]))
        if not reason:
            raise InputError("the reason is empty", "reason", "Say why, in a line.")
        with self._writing() as db:
            said = {**_read(db), playbook: Staged(stage, version, by, reason, now)}
            row = (KEY, msgspec.json.encode(said))
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", row)
            self._trail.add(db, by, f"response: stage {stage}", f"{playbook}: {reason}", now)


def staged(one: Playbook, said: Mapping[str, Staged]) -> Playbook:
    """A playbook with the stage that somebody said for this very version; otherwise its file's.

    It goes no further than the strictest of those it calls.
    """
    called = tuple(
        msgspec.structs.replace(other, stage=_stage(other, said)) for other in one.called
    )
    stages = (_stage(one, said), *(other.stage for other in called))
    return msgspec.structs.replace(one, stage=min(stages, key=STRICTEST.index), called=called)


def _stage(one: Playbook | Called, said: Mapping[str, Staged]) -> Stage:
    word = said.get(one.id)
    return word.stage if word is not None and word.version == one.version else one.stage


def _read(db: sqlite3.Connection) -> dict[str, Staged]:
    row = db.execute("SELECT value FROM settings WHERE name = ?", (KEY,)).fetchone()
    return msgspec.json.decode(row["value"], type=dict[str, Staged]) if row else {}
