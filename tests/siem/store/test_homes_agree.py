"""Whatever is kept and whatever is asked: every home gives the same answers as `node.db`."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cityward.finding import SEVERITIES
from siem.store.cluster import GROUP_SORTS, ClusterFindings
from siem.store.dsl import Dsl
from siem.store.embedded import NodeDb
from siem.store.findings import FINDING_FIELDS, SORTS
from siem.store.protocol import Change, Findings, Range
from siem.store.query import parse
from tests.siem.store.homes import Place, copies, whole
from tests.siem.store.test_embedded import NOON, RULE, Clock, match

pytestmark = pytest.mark.slow

LETTERS = "aAbBσΣİ.*?%_\\'\"[ ]/:-1=\u001f🚋"
words = st.text(LETTERS, min_size=1, max_size=5)
addresses = st.sampled_from(
    ["192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8::1", "2001:DB8::1", "::1", "no address"]
)
numbers = st.integers(-4, 4)
micro = st.sampled_from([0, 0, 1, -1, 500, 3_600_000_000, -7_200_000_000, -86_400_000_000])
times = micro.map(lambda some: NOON + timedelta(microseconds=some))
fields = st.fixed_dictionaries(
    {"source.ip": addresses},
    optional={
        "message": words,
        "user.name": words,
        "related.hosts": st.lists(words, max_size=3),
        "related.ip": st.lists(addresses, max_size=2),
        "source.port": st.one_of(numbers, st.sampled_from([2**62, 2**53 + 1])),
        "ot.value": st.one_of(numbers.map(float), st.sampled_from([0.1, 1e300])),
        "ot.is_command": st.booleans(),
        "event.created": times,
        "phys.location": st.sampled_from(["48.1,11.5", "48.1,11.50", "nowhere"]),
        "cw.asset.zone": words,
        "cw.vendor": st.fixed_dictionaries(
            {}, optional={"a": words, "b": st.booleans(), "c.d": numbers, "e": st.just(0.5)}
        ),
    },
)


class Kept(msgspec.Struct, frozen=True):
    """What a test keeps: a match, and what somebody did with it."""

    seen: datetime
    rule: str
    severity: str
    title: str
    count: int
    fields: dict[str, Any]
    change: Change | None


kept = st.builds(
    Kept,
    times,
    st.sampled_from(["r1", "r2"]),
    st.sampled_from(SEVERITIES),
    words,
    st.integers(1, 3),
    fields,
    st.one_of(
        st.none(),
        st.builds(
            Change,
            status=st.sampled_from(["resolved", "in_progress", "suppressed"]),
            assignee=st.sampled_from([None, "", "anna", "Bob"]),
        ),
    ),
)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\u001f", "*") + '"'


def bare(text: str) -> str:
    """A word with wildcards left as they are, and everything else escaped."""
    return "".join(
        one if one in "*?" or one.isalnum() else "\\" + one for one in text.replace("\u001f", "?")
    )


asked_values = st.one_of(words.map(quoted), words.map(bare))
comparisons = st.sampled_from(["", ">", ">=", "<", "<="])
leaves = st.one_of(
    asked_values,
    st.builds(
        "{}:{}".format,
        st.sampled_from(
            ["message", "finding.title", "user.name", "related.hosts", "cw.asset.zone", "tags"]
        ),
        asked_values,
    ),
    st.builds(
        "cw.vendor.{}:{}".format,
        st.sampled_from(["a", "b", "c.d", "e"]),
        st.one_of(asked_values, st.sampled_from(["true", "1", "-1", "0.5", "0*", "*"])),
    ),
    st.builds(
        "{}:{}".format,
        st.sampled_from(["source.ip", "related.ip"]),
        st.sampled_from(
            ["192.0.2.0/24", "192.0.0.0/9", "0.0.0.0/0", "2001:db8::/32", "::/0", "192.0.2.1",
             "192.*", "2001:db8::1", "*:*", "::ffff:192.0.2.0/120", "::/1"]
        ),
    ),
    st.builds("{}:*".format, st.sampled_from([
        "message", "user.name", "related.hosts", "related.ip", "source.port", "ot.value",
        "ot.is_command", "event.created", "phys.location", "cw.vendor", "assignee",
        "finding.closed", "finding.severity", "finding.title",
    ])),
    st.builds(
        "{}:{}{}".format,
        st.sampled_from(["source.port", "ot.value", "finding.count", "finding.confidence"]),
        comparisons,
        st.one_of(numbers, st.sampled_from([0.1, 0.5, 1e300, -1e300, 2**53, 10**17])),
    ),
    st.builds("finding.severity:{}{}".format, comparisons, st.sampled_from(SEVERITIES)),
    st.builds("ot.is_command:{}".format, st.sampled_from(["true", "false"])),
    st.builds(
        "{}:{}{}".format,
        st.sampled_from(["finding.last_seen", "event.created", "finding.closed"]),
        comparisons,
        st.sampled_from(["2026-03-01", "now", "now-2h", "2026-03-01T12:00:00.000001Z"]),
    ),
    st.builds("phys.location:{}".format, st.sampled_from(['"48.1,11.5"', "48.1*", "nowhere"])),
    st.builds(
        "assignee:{}".format, st.sampled_from(["anna", "b*", "B*", '""', "(anna or Bob)"])
    ),
)  # fmt: skip
queries = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds("({} and {})".format, inner, inner),
        st.builds("({} OR {})".format, inner, inner),
        st.builds("not {}".format, inner),
        st.builds("{} {}".format, inner, inner),
    ),
    max_leaves=5,
)


class Asked(msgspec.Struct, frozen=True):
    """One look at a store."""

    query: str
    span: Range
    sort: str
    group_sort: str
    limit: int
    offset: int
    buckets: int


asked = st.builds(
    Asked,
    st.one_of(st.just(""), queries),
    st.sampled_from(
        [Range(), Range(NOON - timedelta(hours=2), NOON), Range(NOON, NOON + timedelta(hours=2))]
    ),
    st.builds("{}{}".format, st.sampled_from(["", "-"]), st.sampled_from(SORTS)),
    st.builds(
        "{}{}".format,
        st.sampled_from(["", "-"]),
        st.sampled_from(sorted(GROUP_SORTS)),
    ),
    st.integers(0, 10),
    st.integers(0, 4),
    st.integers(1, 5),
)


def answers(findings: Findings, one: Asked) -> dict[str, Any]:
    """Everything that a store says to one look."""
    page = findings.search(one.query, one.span, one.sort, one.limit, one.offset)
    groups = findings.groups(one.query, one.span, one.group_sort, one.limit, one.offset)
    some = [row["group"] for row in groups.rows[:1]]
    return {
        "ids": [row["finding.id"] for row in page.rows],
        "rows": list(page.rows),
        "total": page.total,
        "groups": [*groups.rows, groups.total],
        "members": [findings.members(group, one.query, one.span) for group in some],
        "counts": findings.counts(one.query, one.span),
        "histogram": findings.histogram(one.query, one.span, one.buckets),
        "related": [findings.related(row["finding.id"]) for row in page.rows[:1]],
    }


@contextmanager
def filled(folder: Path, stored: list[Kept]) -> Iterator[tuple[NodeDb, list[str]]]:
    """A `node.db` with findings, and their ids."""
    db = NodeDb(folder / f"{uuid.uuid4()}.db", secrets.token_bytes(16), clock=Clock())
    matches = [
        match(
            0,
            title=one.title,
            severity=one.severity,
            count=one.count,
            analytic=msgspec.structs.replace(RULE, id=one.rule, name=one.rule),
            asset="",
            group=(("number", str(number)),),
            first_seen=one.seen,
            last_seen=one.seen,
            fields=one.fields,
        )
        for number, one in enumerate(stored)
    ]
    ids = db.keep(matches, 1, now=NOON)
    for finding_id, one in zip(ids, stored, strict=True):
        if one.change:
            db.change([finding_id], one.change, "anna", NOON)
    yield db, ids
    db.close()


def mirrored(place: Place, db: NodeDb, ids: list[str]) -> ClusterFindings:
    """The same findings in a cluster, and no others."""
    place.empty()
    findings = place.findings(db, Clock())
    assert findings.keep([whole(db, one) for one in ids], copies(db, ids)) == len(ids)
    return findings


def agree(
    places: Mapping[str, Place], folder: Path, stored: list[Kept], looks: list[Asked]
) -> None:
    with filled(folder, stored) as (db, ids):
        for name, place in places.items():
            findings = mirrored(place, db, ids)
            for look in looks:
                assert answers(findings, look) == answers(db, look), (name, look.query)


def agree_on_queries(place: Place, folder: Path, stored: list[Kept], texts: list[str]) -> None:
    """One request asks all queries, so many can be tried."""
    ids_of = {"ids": {"terms": {"field": "finding.id", "size": 100}}}
    conditions = [Dsl(FINDING_FIELDS).query(parse(text, FINDING_FIELDS, NOON)) for text in texts]
    asked = {str(n): {"filter": one, "aggs": ids_of} for n, one in enumerate(conditions)}
    with filled(folder, stored) as (db, ids):
        mirrored(place, db, ids)
        found = place.cluster.search(place.names.findings, {"size": 0, "aggs": asked})
        for number, text in enumerate(texts):
            buckets = found["aggregations"][str(number)]["ids"]["buckets"]
            expected = {row["finding.id"] for row in db.search(text, Range()).rows}
            assert {bucket["key"] for bucket in buckets} == expected, text


ANY = settings(
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


QUICK = [Phase.explicit, Phase.generate]


@settings(ANY, max_examples=4, phases=QUICK)
@given(st.lists(kept, min_size=4, max_size=9), st.lists(asked, min_size=6, max_size=6))
def test_every_home_gives_the_same_answers(
    places: Mapping[str, Place], tmp_path: Path, stored: list[Kept], looks: list[Asked]
) -> None:
    agree(places, tmp_path, stored, looks)


@settings(ANY, max_examples=12, phases=QUICK)
@given(st.lists(kept, min_size=8, max_size=12), st.lists(queries, min_size=30, max_size=40))
def test_every_query_finds_the_same(
    places: Mapping[str, Place], tmp_path: Path, stored: list[Kept], texts: list[str]
) -> None:
    agree_on_queries(places["opensearch"], tmp_path, stored, texts)


@pytest.mark.full
@settings(ANY, max_examples=200)
@given(st.lists(kept, min_size=1, max_size=9), st.lists(asked, min_size=1, max_size=12))
def test_every_home_gives_the_same_answers_for_long(
    places: Mapping[str, Place], tmp_path: Path, stored: list[Kept], looks: list[Asked]
) -> None:
    agree(places, tmp_path, stored, looks)


@pytest.mark.full
@settings(ANY, max_examples=500)
@given(st.lists(kept, min_size=1, max_size=12), st.lists(queries, min_size=1, max_size=60))
def test_every_query_finds_the_same_for_long(
    places: Mapping[str, Place], tmp_path: Path, stored: list[Kept], texts: list[str]
) -> None:
    agree_on_queries(places["opensearch"], tmp_path, stored, texts)
