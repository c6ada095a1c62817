"""Words of Sigma that an editor offers where they fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from cityward import LogSource
from cityward.fields import FIELDS
from cityward.finding import SEVERITIES
from detectors.sigma.lines import MODIFIERS
from detectors.sigma.lint import STATUS
from detectors.sigma.rule import CorrelationType, Own

KEYS = (
    *(
        "title",
        "id",
        "name",
        "status",
        "description",
        "references",
        "author",
        "date",
        "modified",
        "tags",
    ),
    *("level", "taxonomy", "logsource", "detection", "correlation", "filter", "cw_absence"),
    *("falsepositives", "fields", "related", "license", "cityward"),
)
"""At the edge of a document."""
INSIDE: Mapping[str, Sequence[str]] = {
    "logsource": ("category", "product", "service"),
    "detection": ("selection", "filter", "condition"),
    "correlation": (
        *("type", "rules", "group-by", "timespan", "condition", "generate", "aliases"),
    ),
    "filter": ("rules", "selection", "condition"),
    "cw_absence": ("trigger", "expected", "before", "within", "by"),
    "cityward": Own.__struct_fields__,
}
"""One step in, by what they stand in."""
VALUES: Mapping[str, Sequence[str]] = {
    "level": SEVERITIES[:5],
    "status": sorted(STATUS),
    "taxonomy": ("cityward", "sigma"),
    "type": get_args(CorrelationType),
}
"""Behind a key."""
CONDITION = ("and", "or", "not", "1 of", "all of", "them")


def words(logsources: Iterable[LogSource]) -> Mapping[str, object]:
    """All of them, by where they fit; log sources are those that rules name."""
    known = list(logsources)
    named = {
        part: sorted({getattr(one, part) for one in known} - {""})
        for part in ("category", "product", "service")
    }
    return {
        "keys": KEYS,
        "inside": INSIDE,
        "values": {**VALUES, **named},
        "condition": CONDITION,
        "modifiers": sorted(MODIFIERS),
        "fields": sorted(FIELDS),
    }
