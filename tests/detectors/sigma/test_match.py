"""What many events say in a field is what each says by itself, as rules see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.sigma.load import load_text
from detectors.sigma.match import Match, column_of, keys_of, time_us
from detectors.sigma.view import TIME, View, text_of
from detectors.sigma.window import Terms
from tests.detectors.sigma.city import event
from tests.detectors.sigma.test_correlation import correlated

PLAIN = st.one_of(
    st.sampled_from(["x", "10.0.0.1", "7", "-0.5"]), st.sampled_from([7, 7.0, True, 2.5, 10**400])
)
VALUES = st.one_of(PLAIN, st.none(), st.lists(PLAIN, max_size=2))
NESTED = st.dictionaries(st.sampled_from(["ip", "port"]), VALUES, max_size=2)
ROWS = st.fixed_dictionaries(
    {}, optional={"source": st.one_of(VALUES, NESTED), "source.ip": VALUES, "user": VALUES}
)
ALIKE = st.fixed_dictionaries({"source.ip": PLAIN, "user": PLAIN})


def match_on(row: Mapping[str, Any]) -> Match:
    seen = event(0, **row)
    return Match("rule", seen, row, time_us(seen.time))


def said(row: Mapping[str, Any], name: str) -> list[Any]:
    return [*View({TIME: event(0).time, **row}).values(name)]


@pytest.mark.parametrize("fields", [("user",), ("source.ip",), ("source.ip", "user"), ()])
@settings(max_examples=60, deadline=None)
@given(rows=st.one_of(st.lists(ROWS, max_size=4), st.lists(ALIKE, max_size=4)))
def test_events_belong_to_the_group_that_each_names(
    fields: tuple[str, ...], rows: list[dict[str, Any]]
) -> None:
    found = keys_of([match_on(row) for row in rows], fields)

    for row, key in zip(rows, found, strict=True):
        values = [said(row, name) for name in fields]
        if all(one and one[0] is not None for one in values):
            texts = tuple(",".join(map(text_of, one)) for one in values)
            assert key == (texts[0] if len(fields) == 1 else texts)
        else:
            assert key is None


@pytest.mark.parametrize("kind", ["value_count", "value_sum"])
@settings(max_examples=60, deadline=None)
@given(rows=st.one_of(st.lists(ROWS, max_size=4), st.lists(ALIKE, max_size=4)))
def test_events_bring_to_a_window_what_each_brings_alone(
    kind: str, rows: list[dict[str, Any]]
) -> None:
    section = f"type: {kind}, rules: a, timespan: 1m, condition: {{field: user, gte: 1}}"
    terms = Terms(load_text(correlated(section)).correlations[0])

    together = terms.values([match_on(row) for row in rows])

    for row, values in zip(rows, together, strict=True):
        present = [value for value in said(row, "user") if value is not None]
        if kind == "value_count":
            assert values == tuple(map(text_of, present))
        else:
            assert values == tuple(
                number for one in present if (number := as_number(one)) is not None
            )


def as_number(value: Any) -> float | None:
    """What is added up; flags are none, and what is too large for a float neither."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (ValueError, OverflowError):
        return None


def test_a_field_that_may_also_stand_in_another_is_looked_for_in_each_event() -> None:
    flat, nested = {"source.ip": "x"}, {"source": {"ip": "y"}, "source.ip": "x"}

    assert column_of([match_on(flat)], "source.ip") == ["x"]
    assert column_of([match_on(flat), match_on(nested)], "source.ip") is None
    assert keys_of([match_on(nested)], ["source.ip"]) == ["x,y"]
