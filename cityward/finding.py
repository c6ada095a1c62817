"""Finding: what a detector concluded, in words a duty officer understands."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from cityward.event import Event

Severity = Literal["informational", "low", "medium", "high", "critical", "fatal"]
SEVERITIES: tuple[Severity, ...] = (
    "informational",
    "low",
    "medium",
    "high",
    "critical",
    "fatal",
)
"""From least to worst. `fatal` only when physical harm is confirmed."""

STATUSES = ("new", "in_progress", "suppressed", "resolved", "archived", "deleted")
VERDICTS = (
    "unknown",
    "true_positive",
    "false_positive",
    "benign",
    "suspicious",
    "test",
    "duplicate",
    "insufficient_data",
)

GROUP_FIELDS = (
    "source.ip",
    "destination.ip",
    "host.name",
    "user.name",
    "phys.point",
    "phys.track",
)
"""What makes two matches of one rule the same finding, unless a correlation groups otherwise."""

EVENTS_KEPT = 50
"""A finding carries copies of at most so many of its events: the first ones and the newest."""


class Analytic(msgspec.Struct, frozen=True, gc=False):
    """The rule or model that spoke."""

    id: str
    """UUID of a Sigma document, or the name of a model (`model.surprise.ot_link`)."""
    name: str
    kind: Literal["rule", "correlation", "model", "indicator", "manual"]
    version: str
    """Content hash of the rule, version of the model."""
    ruleset: str = "cityward"
    level: Severity = "medium"
    status: str = "stable"
    author: str = ""
    license: str = ""
    references: tuple[str, ...] = ()
    techniques: tuple[str, ...] = ()
    """ATT&CK ids as written: `T1692.001`."""
    tactics: tuple[str, ...] = ()
    framework: str = ""
    """`attack-ics`, `attack-enterprise` or empty."""
    tags: tuple[str, ...] = ()
    falsepositives: tuple[str, ...] = ()
    description: str = ""


class Check(msgspec.Struct, frozen=True):
    """One line of "why it spoke": a field, what the rule wanted, what was seen."""

    selection: str
    """Name of the selection, or of the group of terms of a model."""
    field: str
    wanted: str
    """In words: `is modbus`, `one of %ot_writers%`, `usual 0 to 900`."""
    saw: str
    held: bool
    negated: bool = False
    """True if the condition wanted the selection not to hold."""
    bits: float | None = None
    """Models: what this term added to the score, in bits."""
    filter: str | UnsetType = UNSET
    """A rule that is tried: id of the filter of which the line is. No finding keeps it."""


class Why(msgspec.Struct, frozen=True):
    """Why a detector spoke: the proof behind the sentence."""

    condition: str = ""
    """The condition as written, or the name of the score."""
    checks: tuple[Check, ...] = ()
    score: float | None = None
    threshold: float | None = None
    unit: str = ""
    """Unit of score and threshold, e.g. `bits`."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a detector says of some events; the store gives it its id and makes it grow.

    A detector yields one Finding a match. Matches with the same analytic, group and day become one
    stored finding (`finding.fingerprint`, see `siem/store/embedded.py`).
    """

    analytic: Analytic
    title: str
    """One line, at most 45 characters where it can be: `Modbus write, host is no writer`."""
    description: str
    """The sentence: what, on what, why it matters, with numbers."""
    severity: Severity
    group: tuple[tuple[str, str], ...]
    """Field names and values that make this match the same finding as another one, sorted."""
    first_seen: datetime
    last_seen: datetime
    events: tuple[Event, ...]
    """The events that made it speak, oldest first, at most `EVENTS_KEPT`."""
    count: int = 1
    """How many matches this finding stands for; all but the first are repeats."""
    type: str = "detection"
    """`detection`, `anomaly`, `correlation`, `hazard`, `posture`, `health`, `response`."""
    confidence: float = 0.5
    cause: str = "unknown"
    category: tuple[str, ...] = ()
    impact: tuple[str, ...] = ()
    why: Why = Why()
    fields: Mapping[str, Any] = {}
    """Key entities and the deciding event's values only (`source.*`, `ot.*` …)."""
    tags: tuple[str, ...] = ()


def group_of(event: Event) -> tuple[tuple[str, str], ...]:
    """The default group of a match: its `GROUP_FIELDS`, as the collector wrote them.

    References:
        Fingerprint rule of the schema: taken before the inventory describes the event.
    """
    fields = event.fields
    return tuple((name, _text(fields[name])) for name in GROUP_FIELDS if name in fields)


def _text(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return hex(value) if isinstance(value, int) else repr(type(value))


def severity_rank(severity: str) -> int:
    """0 for informational up to 5 for fatal."""
    return SEVERITIES.index(severity)
