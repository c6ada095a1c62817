"""Events that are looked at alike, and those that only seem to be."""

from __future__ import annotations

from typing import Any

import pytest

from detectors.sigma.engine import BATCH
from tests.detectors.sigma.city import engine, event, rule_of

NOT_B = "  s:\n    a: 1\n  t:\n    b|exists: true\n  condition: s and not t\n"
FLAG = "  s:\n    a: 'true'\n  condition: s\n"
NUMBER = "  s:\n    a: 1\n  condition: s\n"
LISTED = "  s:\n    a: 2\n  condition: s\n"
INNER = "  s:\n    a: 1\n    b.c: 2\n  condition: s\n"
DEEP = "  s:\n    a: 1\n    b.c.d: 2\n  condition: s\n"
NULL = "  s:\n    a: 1\n    b: null\n  condition: s\n"
KEYWORD = "  s:\n    - evil\n  t:\n    a: 1\n  condition: s and t\n"
COMPARED = "  s:\n    a|fieldref: b\n  condition: s\n"


@pytest.mark.parametrize("batch", [1, 3, BATCH])
@pytest.mark.parametrize(
    ("rule", "rows", "matching"),
    [
        (NOT_B, [{"a": 1, "x": 1}, {"a": 1, "b": 1}, {"b": 1, "a": 1}, {"a": 1, "y": 1}], [0, 3]),
        (NOT_B, [{"a": 1, "b": 1}, {"x": 1, "a": 1}, {"x": 1, "y": 1}], [1]),
        (FLAG, [{"a": 1}, {"a": True}, {"a": 1.0}, {"a": "true"}, {"a": False}], [1, 3]),
        (NUMBER, [{"a": True}, {"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": None}], [1, 2, 3]),
        (LISTED, [{"a": [1, 2]}, {"a": [1]}, {"a": 2}, {"a": []}, {"a": [[2]]}], [0, 2, 4]),
        (INNER, [{"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"d": 2}}, {"a": 1, "b.c": 2}], [0, 2]),
        (INNER, [{"a": 1, "b": 2}, {"a": 1, "b": [{"c": 2}]}, {"a": 1, "b": {"c": [2]}}], [1, 2]),
        (DEEP, [{"a": 1, "b": {"c": {"d": 2}}}, {"a": 1, "b": {"c": 2}}], [0]),
        (NULL, [{"a": 1, "x": 1}, {"a": 1, "b": 1}, {"a": 1, "b": None}], [0, 2]),
        (KEYWORD, [{"a": 1, "x": "evil"}, {"a": 1, "x": 1}, {"a": 1, "y": "evil"}], [0, 2]),
        (COMPARED, [{"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 1}, {"b": 1, "a": 1}], [0, 3]),
    ],
)
def test_events_that_differ_in_little_are_told_apart(
    rule: str, rows: list[dict[str, Any]], matching: list[int], batch: int
) -> None:
    one = engine(rule_of(rule))
    events = [event(**row) for row in rows] * 2

    starts = range(0, len(events), batch)
    found = [
        start + place for start in starts for place, _ in one.matched(events[start : start + batch])
    ]

    assert found == [*matching, *(len(rows) + place for place in matching)]
