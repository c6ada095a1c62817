"""How far each playbook may go at this node: what an engineer said, beside what its file says.

Nothing goes `live` before this very version of it has run 20 times in shadow, or somebody has
signed that it may without; until then what its file says of that counts as `shadow`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime

import msgspec

from cityward import InputError, Unsafe
from playbooks.flow import STRICTEST
from playbooks.model import Called, Playbook, Stage
from siem.store.lines import harmless
from siem.store.trail import Trail

KEY = "playbook_stages"
REASON_MAX = 2_000
SHADOW_RUNS = 20
"""Of one version, before it may go live."""


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

    def shadow_runs(self, playbook: Playbook) -> int:
        """How often this version has come to its end in shadow."""
        query = (
            "SELECT count(*) FROM runs WHERE playbook = ? AND state IN ('done', 'failed', 'denied')"
            " AND json_extract(document, '$.stage') = 'shadow'"
            " AND json_extract(document, '$.playbook.version') = ?"
        )
        (count,) = self._reading().execute(query, (playbook.id, playbook.version)).fetchone()
        return int(count)

    def put(self, playbook: Playbook, stage: Stage, by: str, reason: str, now: datetime) -> None:
        """Say how far this version of a playbook may go.

        Raises:
            InputError: a reason is missing.
            Unsafe: it has not run in shadow often enough to go live.
        """
        by, reason = harmless((by, reason.strip()[:REASON_MAX]))
        if not reason:
            raise InputError("the reason is empty", "reason", "Say why, in a line.")
        if stage == "live" and not playbook.waived_by:
            self._has_shown(playbook)
        with self._writing() as db:
            word = Staged(stage, playbook.version, by, reason, now)
            said = {**_read(db), playbook.id: word}
            row = (KEY, msgspec.json.encode(said))
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", row)
            what = f"{playbook.id}: {reason}"
            self._trail.add(db, by, f"response: stage {stage}", what, now)

    def _has_shown(self, playbook: Playbook) -> None:
        if (count := self.shadow_runs(playbook)) < SHADOW_RUNS:
            what = f"{playbook.name} ran {count} of {SHADOW_RUNS} times in shadow as it is now"
            todo = "Let it run on, or sign a waiver: cityward playbook sign FILE --key KEY --waive."
            raise Unsafe(what, "stage live", todo)


def staged(one: Playbook, said: Mapping[str, Staged]) -> Playbook:
    """A playbook with the stage that somebody said for this very version; otherwise its file's.

    It goes no further than the strictest of those it calls.
    """
    called = tuple(
        msgspec.structs.replace(other, stage=_stage(other, said)) for other in one.called
    )
    stages = (_stage(one, said), *(other.stage for other in called))
    return msgspec.structs.replace(one, stage=min(stages, key=STRICTEST.index), called=called)


def held_to(one: Playbook, said: Mapping[str, Staged]) -> Playbook:
    """A run's playbook, no further than what was said of this very version since it began."""
    every: tuple[Playbook | Called, ...] = (one, *one.called)
    stages = (one.stage, *(said[other.id].stage for other in every if _is_said(other, said)))
    return msgspec.structs.replace(one, stage=min(stages, key=STRICTEST.index))


def _is_said(one: Playbook | Called, said: Mapping[str, Staged]) -> bool:
    return one.id in said and said[one.id].version == one.version


def _stage(one: Playbook | Called, said: Mapping[str, Staged]) -> Stage:
    if _is_said(one, said):
        return said[one.id].stage
    return "shadow" if one.stage == "live" and not one.waived_by else one.stage


def _read(db: sqlite3.Connection) -> dict[str, Staged]:
    row = db.execute("SELECT value FROM settings WHERE name = ?", (KEY,)).fetchone()
    return msgspec.json.decode(row["value"], type=dict[str, Staged]) if row else {}
