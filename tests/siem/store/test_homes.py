"""The contract of a store of findings, on every home: same ids, same order, same counts.

`node.db` makes the findings and the others are given what it has. The home called
`fake_elasticsearch` is our class for Elasticsearch before a proxy that rewrites what differs.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import Asset, Finding
from cityward.errors import InputError
from siem.store import dsl
from siem.store.cluster import ClusterFindings
from siem.store.embedded import NodeDb
from siem.store.findings import FINDING_FIELDS, SORTS
from siem.store.protocol import Change, Conflict, Findings, Page, Range
from siem.store.query import QueryError
from tests.siem.store.homes import CLUSTERS, HOMES, Place, copies, whole
from tests.siem.store.test_embedded import NOON, RULE, Clock, match

ASSETS = {"jump-1": Asset(id="jump-1", type="jump_host", criticality=5, zone="ra-1")}


class Home:
    """A store of findings, and the `node.db` that made them."""

    def __init__(self, db: NodeDb, place: Place | None, clock: Clock) -> None:
        self.db = db
        self.clusters = place.findings(db, clock) if place else None
        self.findings: Findings = self.clusters or db

    def keep(self, matches: Sequence[Finding]) -> list[str]:
        """Keep what was concluded."""
        ids = self.db.keep(matches, 1, now=NOON)
        if self.clusters:
            self.clusters.keep([whole(self.db, one) for one in ids], copies(self.db, ids))
        return ids

    def ids(self, query: str = "", sort: str = "-finding.last_seen") -> list[str]:
        """Of the findings that a query finds."""
        return [row["finding.id"] for row in self.findings.search(query, Range(), sort).rows]

    def last_digits(self, query: str, sort: str = "-finding.last_seen") -> list[str]:
        """Of their source addresses."""
        return [row["source.ip"][-1] for row in self.findings.search(query, Range(), sort).rows]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(tmp_path: Path, clock: Clock) -> Iterator[NodeDb]:
    # A key of its own: a cluster remembers for a while which revision of an id it has deleted.
    db = NodeDb(tmp_path / "node.db", secrets.token_bytes(16), asset_of=ASSETS.get, clock=clock)
    yield db
    db.close()


def home_of(name: str, request: pytest.FixtureRequest, db: NodeDb, clock: Clock) -> Home:
    """A home by its name; SQLite's needs no server."""
    if name == "sqlite":
        return Home(db, None, clock)
    place = request.getfixturevalue("places")[name]
    place.empty()
    return Home(db, place, clock)


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest, db: NodeDb, clock: Clock) -> Home:
    return home_of(request.param, request, db, clock)


@pytest.fixture
def filled(home: Home, clock: Clock) -> Home:
    """Two rules; three sources; one finding an hour."""
    other = msgspec.structs.replace(RULE, id="scan", name="Scan", techniques=("T1046",))
    home.keep([
        match(0, "192.0.2.1"),
        match(-3600, "192.0.2.2", severity="critical"),
        match(-7200, "192.0.2.3", analytic=other, title="Scan", severity="low", asset="gw-1"),
        match(-7201, "192.0.2.3", analytic=other, title="Scan", severity="low", asset="gw-1",
              count=5),
    ])  # fmt: skip
    clock.now = NOON + timedelta(minutes=30)
    return home


# ---- Asking


FOUND = {
    "": ["1", "2", "3"],
    "finding.severity:>=high": ["1", "2"],
    "threat.technique.id:T1046": ["3"],
    "threat.technique.id:T1110*": ["1", "2"],
    "SCAN": ["3"],
    "finding.description:tried": ["1", "2", "3"],
    "source.ip:192.0.2.2/31": ["2", "3"],
    "finding.last_seen:>now-1h": ["1"],
    "finding.created:2026-03-01": ["1", "2", "3"],
    "finding.count:>1": ["3"],
    "cw.asset.criticality:5": ["1", "2"],
    "cw.asset.safety_related:false": ["1", "2"],
    "not cw.asset.asset_id:jump-1": ["3"],
    "assignee:*": [],
}
"""Queries, and what they find in `filled`: last digits of source addresses, newest first."""


def test_queries_over_findings(filled: Home) -> None:
    assert {query: filled.last_digits(query) for query in FOUND} == FOUND


def test_a_fault_in_a_query_is_said_with_its_character(filled: Home) -> None:
    with pytest.raises(QueryError) as caught:
        filled.findings.groups("scan finding.sevrity:high", Range())

    assert caught.value.where == "query, character 6"
    assert caught.value.todo == "Write finding.severity."


def test_findings_are_sorted_and_other_sorts_are_refused(filled: Home) -> None:
    assert filled.last_digits("", "-finding.severity") == ["2", "1", "3"]
    assert filled.last_digits("", "finding.first_seen") == ["3", "2", "1"]
    with pytest.raises(InputError, match="not sorted by x"):
        filled.findings.search("", Range(), "x; DROP TABLE findings")


def test_groups_are_rule_and_asset(filled: Home) -> None:
    page = filled.findings.groups("", Range(NOON - timedelta(days=1), NOON + timedelta(days=1)))

    assert page.total == 2
    first, second = page.rows
    group = first.pop("group")
    hours = [0] * 24
    hours[23], hours[22] = 1, 1
    assert first == {
        "rule.id": RULE.id,
        "finding.title": "Password guessed at the jump host",
        "finding.description": "192.0.2.1 tried 12 names in 60 s",
        "cw.asset.asset_id": "jump-1",
        "cw.asset.zone": "ra-1",
        "finding.severity": "critical",
        "finding.risk": 93,
        "finding.status": ["new"],
        "findings": 2,
        "finding.count": 2,
        "finding.first_seen": NOON - timedelta(hours=1),
        "finding.last_seen": NOON,
        "assignee": "",
        "marks": [],
        "hours": hours,
    }
    assert second["cw.asset.asset_id"] == "gw-1"
    assert second["finding.count"] == 6
    members = filled.findings.members(group, "", Range())
    assert [row["source.ip"] for row in members.rows] == ["192.0.2.1", "192.0.2.2"]
    assert filled.findings.members(group, "finding.severity:critical", Range()).total == 1


def test_groups_come_page_by_page(filled: Home) -> None:
    pages = [filled.findings.groups("", Range(), limit=1, offset=offset) for offset in range(3)]

    assert [page.total for page in pages] == [2, 2, 2]
    assert [len(page.rows) for page in pages] == [1, 1, 0]


def test_counts_histogram_and_related(filled: Home) -> None:
    newest = filled.findings.search("", Range(), "-finding.last_seen").rows[0]["finding.id"]
    filled.findings.change([newest], Change(status="in_progress"), "i.vasko", NOON)
    span = Range(NOON - timedelta(hours=3), NOON + timedelta(hours=1))

    assert filled.findings.counts("", span) == {"new": 2, "in_progress": 1}
    assert filled.findings.histogram("", span, 4) == [
        (NOON - timedelta(hours=3), {}),
        (NOON - timedelta(hours=2), {"low": 1}),
        (NOON - timedelta(hours=1), {"critical": 1}),
        (NOON, {"high": 1}),
    ]
    assert [one["source.ip"] for one in filled.findings.related(newest)] == ["192.0.2.2"]


# ---- Triage


def test_triage_in_bulk_writes_history_and_audit(filled: Home) -> None:
    ids = filled.ids("", "-finding.risk")
    change = Change(status="resolved", verdict="benign", assignee="i.vasko", comment="our scanner")

    changed = filled.findings.change([*ids, ids[0], "no-such-id"], change, "i.vasko", NOON)
    again = filled.findings.change(
        ids, msgspec.structs.replace(change, comment=""), "i.vasko", NOON
    )

    assert (changed, again) == (3, 0)
    found = filled.findings.get(ids[0])
    assert found is not None
    assert found["finding.closed"] == NOON
    assert found["finding.revision"] == 2
    assert found["cw.history"][-1] == {
        "time": NOON,
        "by": "i.vasko",
        "what": "status resolved, verdict benign, assigned to i.vasko",
        "why": "our scanner",
    }
    assert [(one.by, one.about) for one in filled.db.audited()] == [
        ("i.vasko", one) for one in reversed(ids)
    ]
    assert filled.last_digits("assignee:i.vasko") == ["1", "2", "3"]


def test_a_change_that_is_none_is_refused(filled: Home) -> None:
    ids = filled.ids()
    for change in (Change(status="open"), Change(verdict="maybe"), Change(comment="x" * 2001)):
        with pytest.raises(InputError):
            filled.findings.change(ids, change, "me", NOON)


def test_the_last_triage_can_be_undone_unless_somebody_changed_it_since(
    filled: Home, clock: Clock
) -> None:
    ids = filled.ids("", "-finding.risk")
    filled.findings.change(ids[:1], Change(assignee="anna"), "anna", NOON)
    filled.findings.change(ids[:2], Change(status="resolved", verdict="benign"), "i.vasko", NOON)
    filled.findings.change(ids[1:2], Change(verdict="false_positive"), "anna", NOON)

    undone = (filled.findings.undoable("i.vasko", NOON), filled.findings.undo("i.vasko", NOON))

    assert undone == (1, 1)
    found = filled.findings.get(ids[0])
    assert found is not None
    assert (found["finding.status"], found["finding.verdict"], found["assignee"]) == (
        "new",
        "unknown",
        "anna",
    )
    assert "finding.closed" not in found
    assert found["cw.history"][-1]["what"] == "undone"
    assert filled.findings.undoable("i.vasko", NOON) == 0
    assert filled.findings.undoable("anna", NOON + timedelta(minutes=11)) == 0


def test_a_revision_that_is_not_the_one_seen_changes_nothing(filled: Home) -> None:
    ids = filled.ids("", "-finding.risk")
    filled.findings.change(ids[1:2], Change(assignee="anna"), "anna", NOON)
    change = Change(status="resolved", verdict="benign")

    with pytest.raises(Conflict):
        filled.findings.change(ids, change, "i.vasko", NOON, {ids[0]: 1, ids[1]: 1})

    assert {row["finding.status"] for row in filled.findings.search("", Range()).rows} == {"new"}
    assert filled.findings.change(ids[:2], change, "i.vasko", NOON, {ids[0]: 1, ids[1]: 2}) == 2


def test_the_same_comment_twice_is_one(home: Home) -> None:
    (one,) = home.keep([match()])

    changed = [
        home.findings.change([one], Change(comment="seen"), who, NOON)
        for who in ("a", "a", "b", "a")
    ]

    assert changed == [1, 0, 1, 1]


# ---- Hostile text

HOSTILE = ["'; DROP TABLE findings; --", "\x00", "<script>", '"]}', "\u202e", "%_*?", "é" * 50]


def test_hostile_text_is_kept_as_text(home: Home) -> None:
    ids = {
        text: home.keep([
            match(0, f"192.0.2.{number}", title=text, description=text, asset=f"asset-{number}",
                  fields={"user.name": text, "source.ip": text})
        ])
        for number, text in enumerate(HOSTILE)
    }  # fmt: skip
    for text, made in ids.items():
        home.findings.change(made, Change(comment=text, assignee=text), text, NOON)

    for text, (one,) in ids.items():
        found = home.findings.get(one)
        assert found is not None
        assert {found[name] for name in ("finding.title", "user.name", "assignee")} == {text}
        assert found["cw.history"][-1]["by"] == text
    rows = home.findings.groups("", Range()).rows
    assert {row["finding.title"] for row in rows} == set(HOSTILE)


# ---- What is particular to clusters


@pytest.fixture(params=CLUSTERS)
def city(request: pytest.FixtureRequest, db: NodeDb, clock: Clock) -> Home:
    """A home that is a cluster."""
    return home_of(request.param, request, db, clock)


def revised(document: dict[str, Any], revision: int) -> dict[str, Any]:
    return document | {"finding.revision": revision, "finding.count": revision}


def test_the_newest_revision_wins_in_whatever_order_they_come(city: Home) -> None:
    assert city.clusters is not None
    (one,) = city.db.keep([match()], 1, now=NOON)
    document = whole(city.db, one)

    written = [city.clusters.keep([revised(document, number)]) for number in (2, 1, 2, 5, 4)]

    assert written == [1, 0, 0, 1, 0]
    found = city.clusters.get(one)
    assert found is not None
    assert (found["finding.revision"], found["finding.count"]) == (5, 5)


def test_any_offset_is_reached_beyond_the_window(
    city: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = city.keep([match(second // 3, f"192.0.2.{second}") for second in range(20)])
    expected = [one["finding.id"] for one in city.db.search("", Range(), "assignee", 99).rows]
    monkeypatch.setattr(dsl, "WINDOW", 6)

    pages = [city.findings.search("", Range(), "assignee", 5, offset) for offset in range(0, 35, 5)]

    assert [row["finding.id"] for page in pages for row in page.rows] == expected
    assert {page.total for page in pages} == {len(ids)}
    assert city.clusters is not None
    walked = dsl.walk(
        city.clusters._cluster, city.clusters._names.findings, dsl.EVERY,
        dsl.order("assignee", SORTS, FINDING_FIELDS, "finding.last_seen", "finding.id"), size=6,
    )  # fmt: skip
    assert [one["finding.id"] for one in walked] == expected


def test_whoever_changes_a_finding_at_the_same_time_loses_nothing(
    city: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert city.clusters is not None
    (one,) = city.keep([match()])
    read = city.clusters._hits
    others: list[int] = []
    place = ClusterFindings(city.clusters._cluster, city.clusters._names)

    def meanwhile(ids: Sequence[str]) -> dict[str, Any]:
        found = read(ids)
        if len(others) < 2:
            others.append(1)
            change = Change(comment=f"other {len(others)}")
            place.change(ids, change, "bob", NOON)
        return found

    monkeypatch.setattr(city.clusters, "_hits", meanwhile)
    assert city.clusters.change([one], Change(assignee="anna"), "anna", NOON) == 1
    others.clear()
    with pytest.raises(Conflict):
        city.clusters.change([one], Change(assignee="eve"), "eve", NOON, {one: 4})

    found = city.clusters.get(one)
    assert found is not None
    assert [line["why"] for line in found["cw.history"]] == [
        "1 events", "other 1", "other 2", "", "other 1",
    ]  # fmt: skip
    assert found["assignee"] == "anna"


def test_a_query_at_its_bounds_is_answered(city: Home) -> None:
    (one,) = city.keep([match()])
    several = " or ".join(str(number) for number in range(490))

    for query in (
        f"user.name:({several}) or tried",
        f"{'x' * 200} or tried",
        f"{'xy' * 96}*x*y*x or tried",
        f"xxx*{'x' * 25}???????{'x' * 25} or tried",
        f"user.name:x?*?{'xy' * 26}????? or tried",
        f'user.name:"{"x" * 3_900}" or tried',
        "(a or b and " * 12 + "c" + ")" * 12 + " or tried",
    ):
        assert city.ids(query) == [one]


def test_without_any_index_there_is_nothing(city: Home, clock: Clock) -> None:
    assert city.clusters is not None
    names = msgspec.structs.replace(city.clusters._names, operator="op-none")
    findings = ClusterFindings(city.clusters._cluster, names, clock=clock)

    assert findings.search("", Range()) == findings.groups("", Range()) == Page([], 0)
    assert findings.counts("", Range()) == {}
    assert findings.histogram("", Range()) == []
    assert findings.get("x") is None
    assert findings.events_of("x") == findings.related("x") == []
    assert findings.change(["x"], Change(comment="x"), "anna", NOON) == 0
    assert (findings.undoable("anna", NOON), findings.undo("anna", NOON)) == (0, 0)


def test_an_operator_sees_nothing_of_one_whose_name_begins_like_its_own(
    city: Home, clock: Clock
) -> None:
    assert city.clusters is not None
    (one,) = city.keep([match()])
    names = msgspec.structs.replace(city.clusters._names, operator="op")

    assert ClusterFindings(city.clusters._cluster, names, clock=clock).get(one) is None
