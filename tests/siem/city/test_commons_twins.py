"""The homes of the common store are twins: whatever is shared and asked, they answer alike."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from siem.city.cluster import Names
from siem.city.commons import TLP, Commons, Rights, Write
from siem.city.shares import SORTS
from siem.city.sqlite import SqliteCommons
from siem.store.protocol import TIME_MIN, Range
from siem.store.protocol_cluster import Cluster
from tests.siem.city.homes import CLUSTERS, NOON, a_cluster, emptied, share

OPERATORS = ("op", "op-metro", "op-metro.2", "op-port")
AUDIENCES = ("city-soc", "peers", "police")
WORDS = ("Scan", "STRASSE", "straße", "İzmir", "Σίσυφος", "a*b", "c?d", 'e"f', "back\\slash", "x y")
TOKENS = ("j:7:aa", "j:7:ab", "p:7:bb", "l:cc")
ADDRESSES = ("192.0.2.7", "192.0.2.200", "198.51.100.1", "2001:db8::7", "2001:db8:1::")
FIELDS = ("source.token", "cw.operator", "rule.id", "finding.severity", "source.ip", "finding.risk")

times = st.integers(0, 40 * 86_400_000_000).map(lambda n: NOON + timedelta(microseconds=n))
maybe = st.none


@st.composite
def writes(draw: st.DrawFn) -> Write:
    """A share of one of a few ids, which are each one operator's most of the time."""
    number = draw(st.integers(0, 9))
    more: dict[str, Any] = {
        "cw__operator": OPERATORS[number % 4]
        if draw(st.integers(0, 9))
        else draw(st.sampled_from(OPERATORS)),
        "cw__share__audiences": draw(st.lists(st.sampled_from(AUDIENCES), max_size=3)),
        "cw__marking__tlp": draw(st.sampled_from(TLP)),
        "finding__first_seen": draw(times),
        "finding__last_seen": draw(maybe() | times),
        "finding__title": draw(st.lists(st.sampled_from(WORDS), max_size=3).map(" ".join)),
        "finding__severity": draw(maybe() | st.sampled_from(("low", "high", "fatal"))),
        "source__token": draw(st.lists(st.sampled_from(TOKENS), max_size=3)),
    }
    for name, values in {
        "finding__risk": st.integers(-5, 100),
        "finding__confidence": st.floats(0, 1),
        "rule__id": st.sampled_from(("r1", "r2", "R1")),
        "source__ip": st.sampled_from(ADDRESSES),
        "cw__conduit__allowed": st.booleans(),
        "cw__share__expires": times,
        "phys__location": st.just("43.5,16.4"),
    }.items():
        if (value := draw(maybe() | values)) is not None:
            more[name] = value
    return share(f"share-{number}", draw(st.integers(1, 4)), **more)


tests = st.sampled_from(
    (
        "finding.severity:>=high",
        "finding.risk:[3 to 50]",
        "finding.risk:<=0",
        "finding.confidence:>0.5",
        "source.ip:192.0.2.0/24",
        "source.ip:192.0.2.*",
        "source.ip:2001:db8::/32",
        "source.token:j\\:7\\:a?",
        "source.token:*",
        "rule.id:r1",
        "rule.id:(r1 or R1)",
        "cw.conduit.allowed:false",
        "cw.share.expires:<now+10d",
        "finding.first_seen:[2026-03-20 to 2026-04-02]",
        "phys.location:*",
        "phys.location:43.5*",
        "cw.operator:op-m*",
        "finding.title:straße",
        "finding.title:a\\*b",
        "scan",
        "strasse",
        "σίσυφος",
        "izmir",
        '"e\\"f"',
        "back\\\\slash",
        "op-port",
        "c?d",
        "no-such-word",
    )
)
queries = st.recursive(
    st.just("") | tests,
    lambda inner: st.one_of(
        st.builds("({}) and ({})".format, tests, inner.filter(bool)),
        st.builds("({}) or ({})".format, tests, inner.filter(bool)),
        st.builds("not ({})".format, inner.filter(bool)),
    ),
    max_leaves=4,
)
rights = st.builds(
    Rights,
    audiences=st.lists(st.sampled_from(AUDIENCES), unique=True).map(tuple),
    tlp=st.lists(st.sampled_from(TLP[:4]), unique=True).map(tuple),
    own=st.sampled_from(("", *OPERATORS)),
    operators=maybe()
    | st.lists(st.sampled_from((*OPERATORS, "*", "op-none")), unique=True).map(tuple),
    threshold=st.integers(1, 3),
)
spans = st.builds(lambda a, b: Range(min(a, b), max(a, b)), times, times) | st.just(Range())
questions = st.tuples(
    rights,
    queries,
    spans,
    st.sampled_from([*SORTS, *(f"-{one}" for one in SORTS)]),
    st.integers(0, 4),
    st.sampled_from(FIELDS),
)


def answers(commons: Commons, question: tuple[Any, ...]) -> list[Any]:
    """Everything that somebody can learn of a question."""
    who, query, span, sort, offset, field = question
    page = commons.search(who, query, span, sort, 5, offset)
    seen = [commons.get(who, f"share-{number}") for number in (0, 1, 5, 11)]
    ids = [row["cw.share.id"] for row in page.rows]
    return [ids, page.total, page.rows, list(commons.tally(who, query, span, field, 4)), seen]


@pytest.fixture(scope="module", params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[Cluster, Names]]:
    with a_cluster(request.getfixturevalue("opensearch"), request.param) as found:
        yield found


@pytest.mark.slow
@settings(
    max_examples=5,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    shares=st.lists(writes(), min_size=5, max_size=25),
    asked=st.lists(questions, min_size=5, max_size=6),
    removed=st.lists(st.sampled_from([f"share-{number}" for number in range(12)]), max_size=2),
)
def test_homes_answer_alike(
    cluster: tuple[Cluster, Names],
    tmp_path_factory: pytest.TempPathFactory,
    shares: list[Write],
    asked: list[tuple[Any, ...]],
    removed: list[str],
) -> None:
    path: Path = tmp_path_factory.mktemp("twins") / "commons.db"
    file = SqliteCommons(path, clock=lambda: NOON)
    with emptied(*cluster) as there:
        assert list(file.put(shares)) == list(there.put(shares))
        assert file.remove(removed) == there.remove(removed)
        assert list(file.scan(TIME_MIN)) == list(there.scan(TIME_MIN))
        for question in asked:
            assert answers(file, question) == answers(there, question), question
        end = NOON + timedelta(days=25)
        # How many months differs: an index whose last share was removed is still one.
        assert file.retain(end) <= there.retain(end)
        assert list(file.scan(TIME_MIN)) == list(there.scan(TIME_MIN))
    file.close()
