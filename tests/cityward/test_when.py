"""The small condition language: exact, one of, ranges, there or not."""

from __future__ import annotations

import pytest

from cityward import ConfigError
from cityward.when import compile_when

FINDING = {
    "finding.severity": "high",
    "finding.risk": 71,
    "cw.sector": "energy.electricity",
    "threat.technique.id": ["T0855", "T0836"],
    "cw.conduit.allowed": False,
    "finding.confidence": 0.4,
    "empty": "",
}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({}, True),
        ({"finding.severity": "high"}, True),
        ({"finding.severity": "High"}, False),
        ({"finding.severity": "low"}, False),
        ({"finding.severity": ["low", "high"]}, True),
        ({"finding.severity": ["low", "medium"]}, False),
        ({"finding.severity": "high", "cw.sector": "energy.gas"}, False),
        ({"finding.severity": "high", "cw.sector": "energy.electricity"}, True),
        ({"finding.risk": 71}, True),
        ({"finding.risk": "71"}, False),
        ({"finding.risk": ">=71"}, True),
        ({"finding.risk": ">71"}, False),
        ({"finding.risk": "<= 71"}, True),
        ({"finding.risk": "<71"}, False),
        ({"finding.risk": "70..72"}, True),
        ({"finding.risk": "71..71"}, True),
        ({"finding.risk": "72..80"}, False),
        ({"finding.risk": [5, ">=70"]}, True),
        ({"finding.confidence": "<0.5"}, True),
        ({"finding.confidence": "-1..0.3"}, False),
        ({"finding.severity": ">=3"}, False),
        ({"threat.technique.id": "T0836"}, True),
        ({"threat.technique.id": ["T0001", "T0855"]}, True),
        ({"threat.technique.id": "T0001"}, False),
        ({"cw.conduit.allowed": False}, True),
        ({"cw.conduit.allowed": 0}, False),
        ({"cw.conduit.allowed": "<1"}, False),
        ({"finding.risk": "*"}, True),
        ({"empty": "*"}, True),
        ({"gone": "*"}, False),
        ({"gone": None}, True),
        ({"finding.risk": None}, False),
        ({"gone": "x"}, False),
        ({"gone": "<5"}, False),
    ],
)
def test_a_condition_holds_if_all_of_its_fields_fit(condition, holds):
    assert compile_when(condition)(FINDING) is holds


def test_true_is_no_number():
    when = compile_when({"risk": 1})

    assert not when({"risk": True})
    assert when({"risk": 1.0})


@pytest.mark.parametrize(
    ("condition", "what", "where"),
    [
        ("finding.risk > 70", "'finding.risk > 70' is no condition", "share"),
        (["a"], "['a'] is no condition", "share"),
        ({"finding.risk": []}, "an empty list never holds", "share.finding.risk"),
        ({"a": {"b": 1}}, "{'b': 1} is no value", "share.a"),
        ({"a": [1, {"b": 1}]}, "{'b': 1} is no value", "share.a"),
    ],
)
def test_a_condition_that_cannot_be_says_where(condition, what, where):
    with pytest.raises(ConfigError) as said:
        compile_when(condition, "share")

    assert (said.value.what, said.value.where) == (what, where)
