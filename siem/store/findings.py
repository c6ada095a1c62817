"""Findings as every home keeps them: fields, groups, and what triage makes of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from cityward import fields
from cityward.errors import InputError
from cityward.fields import FIELDS
from cityward.finding import STATUSES, VERDICTS
from siem.store.protocol import Change, Conflict, Document
from siem.store.query import from_micros, micros

FINDING_FIELDS: dict[str, str] = {
    **{name: one.type for table in (FIELDS, fields.FINDING_FIELDS) for name, one in table.items()},
    "finding.severity": "severity",
    "finding.suppressed_until": "date",
    "assignee": "keyword",
    "marks": "keyword[]",
}
"""What a query over findings may ask for."""
DATES = frozenset(name for name, kind in FINDING_FIELDS.items() if kind == "date")

SORTS = (
    "finding.risk",
    "finding.severity",
    "finding.count",
    "finding.first_seen",
    "finding.last_seen",
    "finding.title",
    "finding.status",
    "finding.verdict",
    "finding.type",
    "rule.id",
    "cw.asset.asset_id",
    "cw.asset.zone",
    "source.ip",
    "assignee",
)
"""What a list of findings may be sorted by."""
MARKS = ("grows", "came back", "exercise", "suppressed")
GROWS_FOR = timedelta(hours=1)
HISTORY_KEPT = 200

# ---- What they are about

EXTRA = ("cw.why", "cw.history", "cw.evidence")
"""What no query asks for is kept apart, so that queries read less."""


def label(document: Document) -> str:
    """What the finding is about in a list of groups: its asset, else an address or a name."""
    names = ("cw.asset.asset_id", "destination.ip", "host.name", "source.ip", "user.name")
    return next((str(document[name]) for name in names if document.get(name)), "")


def texts(document: Document) -> Iterator[str]:
    """Every text of a finding, for bare words; its history and its proof are left out."""
    for name, value in document.items():
        if name in EXTRA:
            continue
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (one for one in value if isinstance(one, str))


def group_of(document: Document) -> str:
    """Opaque id of the group of a finding: its rule and what it is about."""
    said = f"{document['rule.id']}\n{label(document)}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


# ---- Triage

UNDO_FOR = timedelta(minutes=10)
TRIAGE = (
    "finding.status",
    "finding.verdict",
    "finding.suppressed_until",
    "finding.closed",
    "assignee",
)
"""What triage changes of a finding, and what undoing gives back."""


class Before(msgspec.Struct, frozen=True):
    """A finding that somebody changed: how its triage was, and how they left it."""

    id: str
    was: Document
    after: Document


def set_mark(document: Document, mark: str, *, on: bool = True) -> None:
    """Put a mark on a finding, or take it off."""
    marks = [one for one in document.get("marks", ()) if one != mark]
    document["marks"] = [*marks, mark] if on else marks


def note(document: Document, now: datetime, by: str, what: str, why: str) -> None:
    """A line of history; the first ones and the newest are kept."""
    history = [
        *document.get("cw.history", ()),
        {"time": now.isoformat(), "by": by, "what": what, "why": why[:2000]},
    ]
    if len(history) > HISTORY_KEPT:
        del history[HISTORY_KEPT // 4]
    document["cw.history"] = history


def words(change: Change) -> str:
    """What a change does, for history and audit trail."""
    said = []
    if change.status is not None:
        said.append(f"status {change.status}")
    if change.suppressed_until is not None:
        said.append(f"until {change.suppressed_until.astimezone(UTC):%Y-%m-%dT%H:%MZ}")
    if change.verdict is not None:
        said.append(f"verdict {change.verdict}")
    if change.assignee is not None:
        said.append(f"assigned to {change.assignee}" if change.assignee else "assigned to nobody")
    return ", ".join(said) or "comment"


def triage_of(document: Document) -> Document:
    """What triage changes of a finding, comparable; None for what it does not have."""
    values = {name: document.get(name) for name in TRIAGE}
    return {n: micros(v) if isinstance(v, datetime) else v for n, v in values.items()}


def check_revision(document: Document, seen: int | None) -> None:
    """Refuse (`Conflict`) if a finding has another revision than the one somebody has seen."""
    found = document["finding.revision"]
    if seen is not None and seen != found:
        raise Conflict(
            f"finding {document['finding.id']} has revision {found}, not {seen}",
            "revision",
            "Read it again, then decide.",
        )


def judged(before: Document, change: Change, by: str, now: datetime) -> Document | None:
    """A finding after triage; None if that changes nothing, or was said already."""
    after = dict(before)
    for name, value in (
        ("finding.status", change.status),
        ("finding.verdict", change.verdict),
        ("assignee", change.assignee),
        ("finding.suppressed_until", change.suppressed_until),
    ):
        if value is not None:
            after[name] = value
    said = (by, words(change), change.comment)
    last = before.get("cw.history", [{}])[-1]
    is_again = (last.get("by"), last.get("what"), last.get("why")) == said
    if after == before and (not change.comment or is_again):
        return None
    status = after["finding.status"]
    if status in ("new", "in_progress", "suppressed"):
        after.pop("finding.closed", None)
    else:
        after.setdefault("finding.closed", now)
    if status != "suppressed":
        after.pop("finding.suppressed_until", None)
    # Somebody has looked: what was news is none any more.
    set_mark(after, "suppressed", on=status == "suppressed")
    set_mark(after, "grows", on=False)
    set_mark(after, "came back", on=False)
    after["finding.revision"] += 1
    after["finding.modified"] = now
    note(after, now, by, words(change), change.comment)
    return after


def check(change: Change) -> None:
    """Refuse (`InputError`) a change that is none."""
    if change.status is not None and change.status not in STATUSES:
        raise InputError(f"{change.status!r} is no status", "status", f"One of {STATUSES}.")
    if change.verdict is not None and change.verdict not in VERDICTS:
        raise InputError(f"{change.verdict!r} is no verdict", "verdict", f"One of {VERDICTS}.")
    if len(change.comment) > 2000:
        raise InputError("a comment of more than 2,000 characters", "comment", "Shorten it.")


def left(found: Document | None, one: Before) -> bool:
    """Whether a finding is still as somebody left it."""
    return found is not None and triage_of(found) == one.after


def given_back(found: Document, one: Before, by: str, now: datetime) -> Document:
    """A finding with its triage as it was before somebody changed it."""
    after = {name: value for name, value in found.items() if name not in TRIAGE}
    for name, value in one.was.items():
        if value is not None:
            after[name] = from_micros(value) if name in DATES else value
    set_mark(after, "suppressed", on=after["finding.status"] == "suppressed")
    set_mark(after, "grows", on=False)
    after["finding.revision"] += 1
    after["finding.modified"] = now
    note(after, now, by, "undone", "")
    return after


def marks_now(marks: Sequence[str], grown_at: int | None, now: datetime) -> list[str]:
    """Marks as of now: `grows` only for an hour after the last match."""
    grows = grown_at is not None and now - from_micros(grown_at) <= GROWS_FOR
    return [mark for mark in marks if mark != "grows" or grows]
