"""Queries for clusters, written out: what is asked of OpenSearch and Elasticsearch alike."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cityward.errors import InputError
from siem.store.dsl import Dsl, decoded, encoded, helpers, order, within_span
from siem.store.findings import FINDING_FIELDS, SORTS
from siem.store.protocol import Range
from siem.store.query import MAX_DEPTH, parse

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOON_MICROS = 1_772_366_400_000_000


def wild(field: str, pattern: str) -> dict[str, Any]:
    return {"wildcard": {field: {"value": pattern}}}


GOLDEN: dict[str, dict[str, Any]] = {
    "": {"match_all": {}},
    "not *": {"match_none": {}},
    "Scan": wild("cw.index.text", "*scan*"),
    "100%*\\*?": wild("cw.index.text", "*100%*\ue001?*"),
    '"a\\\\b?"': wild("cw.index.text", "*a\ue000b\ue002*"),
    "user.name:a\\\\*\\*": wild("user.name", "a\\\\*\\*"),
    '"ΜΕΓΑΣ İ"': wild("cw.index.text", "*μεγασ i*"),
    "finding.title:Jump": wild("cw.index.fold.finding.title", "*jump*"),
    "user.name:Anna": {"term": {"user.name": "Anna"}},
    'user.name:"a*"': {"term": {"user.name": "a*"}},
    "user.name:a*": {"prefix": {"user.name": "a"}},
    "user.name:a?b*": wild("user.name", "a?b*"),
    "source.ip:2001:DB8::1": {"term": {"source.ip.keyword": "2001:db8::1"}},
    "source.ip:192.*": {"prefix": {"source.ip.keyword": "192."}},
    "source.ip:192.0.2.7/24": {"term": {"source.ip": "192.0.2.0/24"}},
    "source.ip:2001:db8::/32": {"term": {"source.ip": "2001:db8::/32"}},
    "source.ip:::/0": {
        "bool": {
            "should": [
                {"range": {"source.ip": {"gte": "::", "lte": "::fffe:ffff:ffff"}}},
                {
                    "range": {
                        "source.ip": {
                            "gte": "::1:0:0:0",
                            "lte": "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                        }
                    }
                },
            ],
            "minimum_should_match": 1,
        }
    },
    "source.port:>1e30": {"match_none": {}},
    "source.port:<1e30": {"exists": {"field": "source.port"}},
    "ot.value:>1e30": {"range": {"ot.value": {"gt": 1e30}}},
    "ot.is_command:true": {"term": {"ot.is_command": True}},
    "finding.count:[2 to 5}": {"range": {"finding.count": {"gte": 2, "lt": 5}}},
    "finding.severity:>=high": {"range": {"cw.index.rank": {"gte": 3}}},
    "finding.last_seen:>=now": {"range": {"cw.index.time.finding.last_seen": {"gte": NOON_MICROS}}},
    "assignee:*": {"term": {"cw.index.has": "assignee"}},
    "cw.vendor.a:*": {"term": {"cw.index.has": "cw.vendor.a"}},
    "cw.vendor.conn_state:S0": {"term": {"cw.index.pairs": "cw.vendor.conn_state=S0"}},
    "cw.vendor.conn_state:S*": wild("cw.index.pairs", "cw.vendor.conn_state=S*"),
    "phys.location:48.1*1": wild("cw.index.pairs", "phys.location=48.1*1"),
    "a and not (b or not c)": {
        "bool": {
            "filter": [wild("cw.index.text", "*a*"), wild("cw.index.text", "*c*")],
            "must_not": [wild("cw.index.text", "*b*")],
        }
    },
    "a or (b or not c)": {
        "bool": {
            "should": [
                wild("cw.index.text", "*a*"),
                wild("cw.index.text", "*b*"),
                {"bool": {"must_not": [wild("cw.index.text", "*c*")]}},
            ],
            "minimum_should_match": 1,
        }
    },
}


@pytest.mark.parametrize("query", GOLDEN)
def test_a_query_becomes_just_this(query: str) -> None:
    assert Dsl(FINDING_FIELDS).query(parse(query, FINDING_FIELDS, NOW)) == GOLDEN[query]


def depth(query: Any) -> int:
    inner = query.values() if isinstance(query, dict) else query if isinstance(query, list) else ()
    own = isinstance(query, dict) and "bool" in query
    return own + max((depth(one) for one in inner), default=0)


def test_the_deepest_query_is_not_too_deep_for_elasticsearch() -> None:
    text = "(a or b and " * MAX_DEPTH + "c" + ")" * MAX_DEPTH

    made = Dsl(FINDING_FIELDS).query(parse(text, FINDING_FIELDS, NOW))

    assert depth(made) == 2 * MAX_DEPTH < 29


DOCUMENT = {
    "finding.id": "f1",
    "finding.title": "Jump Host",
    "finding.severity": "high",
    "finding.last_seen": datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC),
    "related.hosts": ["a", "b"],
    "related.ip": [],
    "phys.location": "48.1,11.5",
    "cw.vendor": {"a": True, "b.c": 1, "d": 0.5, "e": None, "f": ["x"]},
    "cw.evidence": [{"ref": "x"}],
}


def test_what_is_compared_stands_beside_the_document() -> None:
    made = encoded(DOCUMENT, FINDING_FIELDS, ["Jump Host", "a\x1eB*\\"])

    assert made["cw.index"] == {
        "text": ["jump host", "a b\ue001\ue000"],
        "fold": {"finding.title": "jump host"},
        "time": {"finding.last_seen": NOON_MICROS + 1},
        "has": [
            "finding.id", "finding.title", "finding.severity", "finding.last_seen",
            "related.hosts", "phys.location", "cw.vendor", "cw.vendor.a", "cw.vendor.b.c",
            "cw.vendor.d", "cw.vendor.e", "cw.vendor.f",
        ],
        "pairs": [
            "phys.location=48.1,11.5", "cw.vendor.a=true", "cw.vendor.b.c=1", "cw.vendor.d=0.5",
        ],
        "rank": 3,
    }  # fmt: skip
    assert decoded(made, FINDING_FIELDS) == DOCUMENT


def test_templates_have_a_place_for_everything_that_is_compared() -> None:
    made = encoded(DOCUMENT, FINDING_FIELDS, ["a"])["cw.index"]
    places = helpers(FINDING_FIELDS)["properties"]

    assert made.keys() <= places.keys()
    assert made["time"].keys() <= places["time"]["properties"].keys()
    assert made["fold"].keys() <= places["fold"]["properties"].keys()


def test_order_ends_with_the_newest_and_the_id() -> None:
    assert order("-source.ip", SORTS, FINDING_FIELDS, "finding.last_seen", "finding.id") == [
        {"source.ip.keyword": {"order": "desc", "missing": "_last"}},
        {"cw.index.time.finding.last_seen": {"order": "desc", "missing": "_last"}},
        {"finding.id": {"order": "asc", "missing": "_first"}},
    ]
    with pytest.raises(InputError, match="not sorted by"):
        order("user.name", SORTS, FINDING_FIELDS, "finding.last_seen", "finding.id")


def test_all_time_is_no_condition() -> None:
    assert within_span("finding.last_seen", Range()) == []
    assert within_span("finding.last_seen", Range(since=NOW)) == [
        {"range": {"cw.index.time.finding.last_seen": {"gte": NOON_MICROS}}}
    ]
