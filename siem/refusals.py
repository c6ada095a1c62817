"""What a playbook's run refused, and where it needs a person, as findings like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from cityward import Analytic, Event, Finding
from playbooks.journal import Entry, Run


class Journal(Protocol):
    """What of the journal is needed."""

    def said_after(
        self, number: int, kinds: Sequence[str], limit: int = 100
    ) -> list[tuple[str, Entry]]:
        """Lines of some kinds behind a number, with their run."""
        ...

    def get(self, run: str) -> Run | None:
        """One run."""
        ...


class ResponseWatch:
    """Says what a run refused, and where it needs a person: a detector.

    What it says are findings like any other, so people are told on the ways they chose.
    """

    name = "response"

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._at = 0

    def detect(self, events: Sequence[Event]) -> Iterator[Finding]:
        """Events are nothing to it."""
        return iter(())

    def tick(self, now: datetime) -> Iterator[Finding]:
        """What is new in the journal."""
        for run, entry in self._journal.said_after(self._at, ("refused", "page")):
            self._at = entry.number
            yield _told(run, self._journal.get(run), entry)

    def snapshot(self) -> bytes:
        """How far the journal was read."""
        return msgspec.json.encode(self._at)

    def restore(self, state: bytes) -> None:
        """Go on there after a restart."""
        try:
            self._at = msgspec.json.decode(state, type=int)
        except msgspec.MsgspecError as error:
            raise ValueError(str(error)) from error


def _told(id: str, run: Run | None, entry: Entry) -> Finding:
    name = run.playbook.name if run else "a playbook"
    is_refused = entry.kind == "refused"
    title = f"{name}: a step was refused" if is_refused else f"{name}: a person is needed"
    return Finding(
        analytic=Analytic(
            id=f"response.{entry.kind}",
            name="Step refused" if is_refused else "Person needed",
            kind="manual",
            version="1",
            level="medium" if is_refused else "high",
            description="The journal of a playbook's run says so.",
        ),
        title=title,
        description=f"{name}, run {id}: {entry.what}",
        severity="medium" if is_refused else "high",
        group=(("run", id), ("step", entry.about), ("kind", entry.kind)),
        first_seen=entry.time,
        last_seen=entry.time,
        events=(),
        type="response",
        confidence=1.0,
    )
