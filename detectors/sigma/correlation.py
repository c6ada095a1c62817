"""Correlations: several events within a time span."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from cityward.event import Event
from cityward.finding import Finding
from detectors.sigma.rule import Absence, Correlation
from detectors.sigma.view import View


class Match(msgspec.Struct, frozen=True):
    """A rule, or a correlation below, matched."""

    rule: str
    title: str
    event: Event
    view: View


class Correlator:
    """All correlations."""

    def __init__(self, correlations: Sequence[Correlation], absences: Sequence[Absence]) -> None:
        self.correlations = correlations
        self.absences = absences

    def silenced(self) -> frozenset[str]:
        loud = {i for one in self.correlations if one.generate for i in one.rules}
        used = {i for one in (*self.correlations, *self.absences) for i in self.bases(one)}
        return frozenset(used - loud)

    def bases(self, one: Correlation | Absence) -> tuple[str, ...]:
        return one.rules if isinstance(one, Correlation) else (one.trigger, one.expected)

    def kind(self, one: Correlation | Absence) -> Literal["correlation", "absence"]:
        return "correlation" if isinstance(one, Correlation) else "absence"

    def counts(self, one: str) -> dict[str, int]:
        return {"seen": 0, "spoken": 0}

    def see(self, match: Match) -> Iterator[Finding]:
        yield from ()

    def tick(self, now: datetime) -> Iterator[Finding]:
        yield from ()

    def snapshot(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass
