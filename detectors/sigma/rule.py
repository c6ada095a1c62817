"""What is loaded from Sigma documents: rules, correlations, absences and filters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from itertools import chain
from typing import Literal

import msgspec

from cityward.documents import Document
from cityward.errors import RuleError
from cityward.event import LogSource
from cityward.finding import Analytic
from detectors.sigma import condition as conditions
from detectors.sigma.condition import Condition
from detectors.sigma.matchers import Item, Reference
from detectors.sigma.view import View

Cause = Literal["malicious", "error", "malfunction", "hazard", "normal", "unknown"]
Impact = Literal[
    "loss_of_view",
    "loss_of_control",
    "loss_of_safety",
    "loss_of_availability",
    "data_loss",
    "none",
    "unknown",
]


class Own(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """What a document says to cityward alone, under its attribute `cityward`."""

    sentence: str = ""
    """The finding's sentence, with fields in braces: `{source.ip} wrote {ot.point.address}`."""
    cause: Cause = "unknown"
    impact: tuple[Impact, ...] = ()
    category: tuple[str, ...] = ()
    """IDMEFv2 categories."""
    confidence: float = 0.5
    type: str = ""
    """`finding.type`; empty means `detection`, or `correlation` for a correlation."""
    expires: date | None = None
    """Filters: from this day on, UTC, it filters nothing."""
    reason: str = ""
    """Filters: why what it hides is harmless."""


class Several(msgspec.Struct, frozen=True, tag=True, array_like=True, gc=False):
    """Lines of a selection that must all hold, or alternatives of which one must."""

    every: bool
    parts: tuple[Selection, ...]

    def holds(self, view: View) -> bool:
        """True if the parts hold as `every` says."""
        found = (part.holds(view) for part in self.parts)
        return all(found) if self.every else any(found)


Selection = Item | Several


class Detection(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Selections and the conditions over them; one condition is enough."""

    selections: Mapping[str, Selection]
    conditions: tuple[tuple[str, Condition], ...]
    """As written, and as read."""

    def holds(self, view: View) -> bool:
        """True if the event is what is looked for."""
        return self.held(view) is not None

    def held(self, view: View) -> tuple[str, Condition] | None:
        """The first condition that holds."""
        for text, condition in self.conditions:
            if conditions.holds(condition, lambda name: self.selections[name].holds(view)):
                return text, condition
        return None

    def fields(self) -> frozenset[str]:
        """Every field that a selection looks at, those that others are compared with too."""
        items = [item for one in self.selections.values() for item in items_of(one)]
        compared = chain.from_iterable(item.comparisons for item in items)
        return frozenset(
            [item.field for item in items if item.field]
            + [one.field for one in compared if isinstance(one, Reference)]
        )


class Filter(msgspec.Struct, frozen=True, tag=True, tag_field="kind", array_like=True):
    """A condition that is ANDed to rules: the way to tune them."""

    id: str
    title: str
    logsource: LogSource
    rules: tuple[str, ...]
    """Ids or names; empty means any rule of the log source."""
    detection: Detection
    needs: frozenset[str]
    own: Own
    document: Document


class Rule(msgspec.Struct, frozen=True, tag=True, tag_field="kind", array_like=True):
    """A rule on one event."""

    name: str
    """Sigma `name`, by which correlations refer to it; may be empty."""
    logsource: LogSource
    detection: Detection
    needs: frozenset[str]
    """Placeholders without which it cannot be evaluated, its filters' included."""
    analytic: Analytic
    own: Own
    taxonomy: str
    document: Document
    filters: tuple[Filter, ...] = ()

    @property
    def id(self) -> str:
        """UUID of the document."""
        return self.analytic.id

    @property
    def title(self) -> str:
        """One line for people."""
        return self.analytic.name


CorrelationType = Literal[
    "event_count",
    "value_count",
    "temporal",
    "temporal_ordered",
    "value_sum",
    "value_avg",
    "value_percentile",
    "value_median",
]


class Correlation(msgspec.Struct, frozen=True, tag=True, tag_field="kind", array_like=True):
    """A rule on several events within a time span."""

    name: str
    type: CorrelationType
    rules: tuple[str, ...]
    """Ids or names of rules and correlations, in the order written."""
    timespan_s: int
    group_by: tuple[str, ...]
    aliases: Mapping[str, Mapping[str, str]]
    """Alias to rule reference to the field that stands for it there."""
    limits: tuple[tuple[str, float], ...]
    """Operator and number; all must hold."""
    field: tuple[str, ...]
    """What is counted, summed …; several fields count as one value."""
    percentile: float | None
    expression: Condition | None
    """Boolean condition over rule references (temporal types)."""
    generate: bool
    """True if its base rules also speak for themselves."""
    condition_text: str
    analytic: Analytic
    own: Own
    document: Document

    @property
    def id(self) -> str:
        """UUID of the document."""
        return self.analytic.id

    def fields(self, base: str) -> frozenset[str]:
        """What it takes of the events of one of its rules: groups, and values."""
        groups = (self.aliases.get(name, {}).get(base, name) for name in self.group_by)
        return frozenset([*groups, *self.field])


class Absence(msgspec.Struct, frozen=True, tag=True, tag_field="kind", array_like=True):
    """`cw_absence`: the trigger was seen and the event it should come with was not."""

    name: str
    trigger: str
    expected: str
    within_s: int
    """How long after the trigger the expected event may come."""
    before_s: int
    """How long before it."""
    group_by: tuple[str, ...]
    analytic: Analytic
    own: Own
    document: Document

    @property
    def id(self) -> str:
        """UUID of the document."""
        return self.analytic.id

    def fields(self, base: str) -> frozenset[str]:
        """What it takes of the events of trigger and expected alike: groups."""
        return frozenset(self.group_by)


Speaking = Rule | Correlation | Absence
"""What findings are made of."""


class RuleSet(msgspec.Struct, frozen=True):
    """What a folder gave."""

    rules: tuple[Rule, ...] = ()
    correlations: tuple[Correlation, ...] = ()
    """Base before what builds on it."""
    absences: tuple[Absence, ...] = ()
    filters: tuple[Filter, ...] = ()
    refused: tuple[RuleError, ...] = ()
    """The `RuleError` of everything that could not be loaded."""

    def speaking(self) -> list[Rule | Correlation | Absence]:
        """Everything that may give findings."""
        return [*self.rules, *self.correlations, *self.absences]


def items_of(selection: Selection) -> Iterator[Item]:
    """Every line of a selection."""
    if isinstance(selection, Item):
        yield selection
    else:
        for part in selection.parts:
            yield from items_of(part)
