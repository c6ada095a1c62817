"""The common store of the city: one contract over its homes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward.errors import ConfigError, InputError
from siem.city.cluster import Names
from siem.city.commons import CITY_SOC, Commons, Rights
from siem.city.sqlite import SqliteCommons
from siem.store.protocol import Conflict, Range
from siem.store.protocol_cluster import Cluster
from siem.store.query import QueryError
from tests.siem.city.homes import CLUSTERS, EVERYBODY, HOMES, NOON, a_cluster, emptied, share

PEERS = Rights(audiences=("peers",), tlp=("clear", "green"), own="op-metro")


def ids(commons: Commons, rights: Rights = EVERYBODY, query: str = "", **more: Any) -> list[str]:
    """Ids of a search, in order."""
    page = commons.search(rights, query, Range(), **more)
    assert page.total >= len(page.rows)
    return [row["cw.share.id"] for row in page.rows]


@pytest.fixture(scope="module", params=HOMES)
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[Cluster, Names] | None]:
    """Each home in turn; None for the file."""
    if request.param == "sqlite":
        yield None
        return
    with a_cluster(request.getfixturevalue("opensearch"), request.param) as found:
        yield found


@pytest.fixture
def commons(cluster: tuple[Cluster, Names] | None, tmp_path: Path) -> Iterator[Commons]:
    """An empty common store."""
    if cluster is None:
        file = SqliteCommons(tmp_path / "commons.db", clock=lambda: NOON)
        yield file
        file.close()
        return
    with emptied(*cluster) as home:
        yield home


# ---- Shared findings


def test_a_share_is_found_as_it_was_put(commons: Commons) -> None:
    write = share("s1")

    outcomes = commons.put([write])

    assert outcomes == ["written"]
    assert commons.get(CITY_SOC, "s1") == write.document
    assert commons.search(CITY_SOC, "", Range()).rows == [write.document]


def test_the_newest_revision_wins_in_any_order(commons: Commons) -> None:
    first = commons.put([share("s1", 2), share("s1", 1), share("s1", 2), share("s1", 5)])
    again = commons.put([share("s1", 4)])

    assert list(first) == ["written", "old", "old", "written"]
    assert list(again) == ["old"]
    assert commons.search(EVERYBODY, "", Range()).total == 1
    found = commons.get(EVERYBODY, "s1")
    assert found is not None
    assert found["cw.share.revision"] == 5


def test_a_share_stays_in_the_month_that_it_first_came_into(commons: Commons) -> None:
    commons.put([share("s1", 1), share("s2", 1, finding__first_seen=NOON + timedelta(days=40))])
    commons.put([share("s1", 2, finding__first_seen=NOON + timedelta(days=40))])

    months = commons.retain(datetime(2026, 4, 1, tzinfo=UTC))

    assert months == 1
    assert ids(commons) == ["s2"]


def test_whole_months_are_deleted_once_they_ended(commons: Commons) -> None:
    commons.put([share("s1"), share("s2", cw__operator="op-port")])

    early = commons.retain(datetime(2026, 3, 31, 23, tzinfo=UTC))
    late = commons.retain(datetime(2026, 4, 1, tzinfo=UTC))

    assert (early, late) == (0, 2)
    assert ids(commons) == []


def test_an_operator_cannot_write_over_the_share_of_another(commons: Commons) -> None:
    commons.put([share("s1")])

    outcomes = commons.put([share("s1", 9, cw__operator="op-port")])

    assert list(outcomes) == ["refused"]
    found = commons.get(EVERYBODY, "s1")
    assert found is not None
    assert found["cw.operator"] == "op-metro"


UNSOUND: list[dict[str, Any]] = [
    {"cw__share__id": ""},
    {"cw__share__id": "a b"},
    {"cw__operator": "../x"},
    {"cw__operator": "op*"},
    {"cw__operator": "Op"},
    {"cw__operator": None},
    {"cw__marking__tlp": "red"},
    {"cw__marking__tlp": None},
    {"cw__share__audiences": "city-soc"},
    {"finding__first_seen": None},
    {"finding__first_seen": NOON.replace(tzinfo=None)},
    {"finding__severity": "mild"},
    {"finding__count": 2**63},
    {"finding__title": "\ud800"},
    {"source__ip": "j:7:aa"},
    {"phys__location": "here"},
]


def test_what_is_not_sound_is_refused_and_its_neighbours_are_taken(commons: Commons) -> None:
    unsound = [share("s2", **changed) for changed in UNSOUND]

    outcomes = commons.put([share("s1"), *unsound, share("s3")])

    assert list(outcomes) == ["written", *["refused"] * len(UNSOUND), "written"]
    assert ids(commons) == ["s1", "s3"]


def test_what_is_removed_is_gone_and_counted_once(commons: Commons) -> None:
    commons.put([share("s1"), share("s2"), share("s3")])

    removed = commons.remove(["s1", "s3", "s1", "no such"])

    assert removed == 2
    assert ids(commons) == ["s2"]
    assert commons.get(EVERYBODY, "s1") is None
    assert commons.put([share("s1", 1)]) == ["written"]


def test_a_scan_gives_everything_since_then_oldest_first(commons: Commons) -> None:
    times = [NOON + timedelta(seconds=number // 3) for number in range(1_200)]
    commons.put([share(f"s{n:04}", finding__last_seen=time) for n, time in enumerate(times)])

    found = [one["cw.share.id"] for one in commons.scan(times[7])]

    assert found == [f"s{number:04}" for number in range(6, 1_200)]


def test_a_share_without_a_last_time_was_seen_once(commons: Commons) -> None:
    commons.put([share("s1", finding__last_seen=None)])

    page = commons.search(EVERYBODY, "", Range(NOON, NOON + timedelta(seconds=1)))

    assert [row["finding.last_seen"] for row in page.rows] == [NOON]


# ---- Rights


def test_rights_are_audience_and_marking_or_own_and_never_another_operator(
    commons: Commons,
) -> None:
    commons.put(
        [
            share("mine"),
            share("peers", cw__operator="op-port", **_for("green", "peers", "city-soc")),
            share("closed", cw__operator="op-port", **_for("amber", "peers")),
            share("police", cw__operator="op-port", **_for("clear", "police")),
            share("nobody", cw__operator="op-port", **_for("clear")),
        ]
    )

    assert ids(commons, PEERS) == ["mine", "peers"]
    assert ids(commons, CITY_SOC) == ["mine", "peers"]
    assert ids(commons, Rights(("peers",), ("amber",))) == ["closed"]
    assert ids(commons, Rights(("peers",), ("green",), operators=("op-metro",))) == []
    assert ids(commons, Rights(("peers",), ("green",), operators=())) == []
    assert ids(commons, Rights((), (), own="op-port")) == ["closed", "nobody", "peers", "police"]
    assert ids(commons, Rights((), ())) == []


def test_what_may_not_be_seen_is_as_if_it_were_not(commons: Commons) -> None:
    seen = share("s1", cw__operator="op-port", **_for("green", "peers"))
    hidden = share("s0", cw__operator="op-port", rule__id="secret", **_for("green", "police"))
    commons.put([seen])
    before = _answers(commons)

    commons.put([hidden])

    assert _answers(commons) == before
    assert commons.get(PEERS, "s0") is commons.get(PEERS, "no such") is None


def test_counts_under_the_threshold_are_not_told(commons: Commons) -> None:
    commons.put([share(f"a{n}", rule__id="often") for n in range(3)])
    commons.put([share(f"b{n}", rule__id="seldom") for n in range(2)])
    at_three = Rights(CITY_SOC.audiences, CITY_SOC.tlp, threshold=3)

    assert commons.tally(CITY_SOC, "", Range(), "rule.id") == [("often", 3), ("seldom", 2)]
    assert commons.tally(at_three, "", Range(), "rule.id") == [("often", 3)]


def test_a_tally_counts_shares_and_not_values(commons: Commons) -> None:
    commons.put([share("s1", source__token=["j:1:a", "j:1:a", "j:1:b"]), share("s2")])
    commons.put([share("s3", source__token=["j:1:b"], cw__conduit__allowed=False)])

    assert commons.tally(EVERYBODY, "", Range(), "source.token", 2) == [("j:1:b", 2), ("j:1:a", 1)]
    assert commons.tally(EVERYBODY, "", Range(), "cw.conduit.allowed") == [("false", 1)]


def _for(tlp: str, *audiences: str) -> dict[str, Any]:
    return {"cw__marking__tlp": tlp, "cw__share__audiences": list(audiences)}


def _answers(commons: Commons) -> list[object]:
    return [
        commons.get(PEERS, "s0"),
        commons.search(PEERS, "", Range()),
        commons.search(PEERS, "secret", Range()),
        commons.search(PEERS, "rule.id:*", Range()),
        commons.search(PEERS, "not rule.id:secret", Range()),
        commons.tally(PEERS, "", Range(), "rule.id"),
        commons.tally(PEERS, "", Range(), "cw.operator"),
    ]


# ---- Queries and sorting


def test_queries_ask_for_fields_and_bare_words(commons: Commons) -> None:
    commons.put(
        [
            share("s1", finding__severity="high", source__ip="192.0.2.7", finding__count=4),
            share("s2", finding__title="Door FORCED at depot", finding__count=9),
        ]
    )

    for query, expected in {
        "finding.severity:>=high": ["s1"],
        "source.ip:192.0.2.0/24": ["s1"],
        "forced": ["s2"],
        "source.token:j\\:7\\:* and finding.count:>4": ["s2"],
        "not cw.operator:op-metro": [],
        "finding.first_seen:>=now-1h": ["s1", "s2"],
    }.items():
        assert ids(commons, query=query) == expected, query


def test_sorting_is_total_and_no_value_is_the_least_one(commons: Commons) -> None:
    commons.put([share("s1"), share("s2", finding__risk=3), share("s3", finding__risk=70)])
    later = NOON + timedelta(seconds=1)
    commons.put([share("s4", finding__risk=3, finding__severity="high", finding__last_seen=later)])

    assert ids(commons, sort="finding.risk") == ["s1", "s4", "s2", "s3"]
    assert ids(commons, sort="-finding.risk") == ["s3", "s4", "s2", "s1"]
    assert ids(commons, sort="-finding.severity") == ["s4", "s1", "s2", "s3"]
    assert ids(commons, sort="-finding.risk", limit=2, offset=1) == ["s4", "s2"]


def test_what_cannot_be_asked_is_said(commons: Commons) -> None:
    with pytest.raises(QueryError):
        ids(commons, query="cw.secret:1")
    with pytest.raises(InputError):
        ids(commons, sort="finding.title")
    with pytest.raises(InputError):
        commons.tally(EVERYBODY, "", Range(), "finding.title")


def test_indices_are_named_from_rights_and_op_is_not_op_metro(
    cluster: tuple[Cluster, Names] | None, commons: Commons
) -> None:
    commons.put([share("s1"), share("s2", cw__operator="op"), share("s3", cw__operator="op.x")])

    for operators, expected in {
        ("op",): ["s2"],
        ("op", "op-metro"): ["s1", "s2"],
        ("op.x", "op-none"): ["s3"],
        ("op-none",): [],
        ("*",): [],
        ("op*", "cw-hub-records", "../_all", "-x", ""): [],
    }.items():
        rights = Rights(CITY_SOC.audiences, CITY_SOC.tlp, operators=operators)
        assert ids(commons, rights) == expected, operators
        if cluster is not None:
            home, names = cluster
            found = home.indices(names.of(operators)) if names.of(operators) else []
            assert len(found) == len(expected), operators


# ---- Records


def test_a_record_is_changed_only_by_who_knows_its_version(commons: Commons) -> None:
    records = commons.records
    first = records.put("link", "op-metro", {"seq": 1}, None)
    second = records.put("link", "op-metro", {"seq": 2}, first)

    for version in (None, first, "0:0", "nonsense"):
        with pytest.raises(Conflict):
            records.put("link", "op-metro", {"seq": 3}, version)
    with pytest.raises(Conflict):
        records.put("link", "op-port", {"seq": 3}, second)
    with pytest.raises(Conflict):
        records.delete("link", "op-metro", first)

    found = records.get("link", "op-metro")
    assert found is not None
    assert (found.value, found.version) == ({"seq": 2}, second)


def test_a_version_is_never_used_again(commons: Commons) -> None:
    first = commons.records.put("lease", "hub", {"by": "a"}, None)
    commons.records.delete("lease", "hub", first)
    assert commons.records.get("lease", "hub") is None

    again = commons.records.put("lease", "hub", {"by": "b"}, None)

    assert again != first
    with pytest.raises(Conflict):
        commons.records.put("lease", "hub", {"by": "a"}, first)


def test_records_of_a_kind_come_by_name_as_written_last(commons: Commons) -> None:
    names = [f"r{number:03}" for number in range(40)]
    for name in reversed(names):
        commons.records.put("receipt", name, {"of": name}, None)
    commons.records.put("person", "ann", {}, None)

    found = [(name, one.value) for name, one in commons.records.all("receipt")]

    assert found == [(name, {"of": name}) for name in names]


def test_a_name_that_not_every_home_takes_is_refused(commons: Commons) -> None:
    for kind, name in (("link", ""), ("link", "a" * 401), ("Li/nk", "a")):
        with pytest.raises(InputError):
            commons.records.put(kind, name, {}, None)


def test_what_is_written_together_can_be_read_within(commons: Commons) -> None:
    with commons.together():
        commons.put([share("s1")])
        version = commons.records.put("link", "op-metro", {"seq": 1}, None)
        within = ids(commons), commons.get(EVERYBODY, "s1"), commons.remove(["no such"])
        commons.records.put("link", "op-metro", {"seq": 2}, version)

    assert within == (["s1"], share("s1").document, 0)
    found = commons.records.get("link", "op-metro")
    assert found is not None
    assert found.value == {"seq": 2}


def test_what_is_written_together_in_the_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    home = SqliteCommons(tmp_path / "commons.db")
    home.records.put("link", "op-metro", {"seq": 1}, None)

    def too_late() -> None:
        with home.together():
            home.put([share("s1")])
            home.records.put("link", "op-metro", {"seq": 2}, None)

    with pytest.raises(Conflict):
        too_late()

    assert ids(home) == []
    home.put([share("s1")])
    assert ids(home) == ["s1"]
    home.close()


# ---- Faults of a cluster


@pytest.mark.parametrize("cluster", CLUSTERS, indirect=True)
def test_a_cluster_that_is_blocked_is_asked_later(
    cluster: tuple[Cluster, Names], commons: Commons
) -> None:
    home, names = cluster
    commons.put([share("s1")])
    index = f"/{names.index('op-metro', '2026.03')}"

    home.request("PUT", f"{index}/_settings", {"index.blocks.write": True})
    blocked = commons.put([share("s1", 2), share("s2", cw__operator="op-port")])
    home.request("PUT", f"{index}/_settings", {"index.blocks.write": None})
    after = commons.put([share("s1", 2), share("s2", cw__operator="op-port")])

    assert list(blocked) == ["later", "written"]
    assert list(after) == ["written", "old"]


@pytest.mark.parametrize("cluster", CLUSTERS, indirect=True)
def test_an_index_that_somebody_deleted_is_made_again(
    cluster: tuple[Cluster, Names], commons: Commons
) -> None:
    commons.put([share("s1")])
    cluster[0].delete_indices([cluster[1].index("op-metro", "2026.03")])

    first = commons.put([share("s1", 2)])
    second = commons.put([share("s1", 2)])

    assert (list(first), list(second)) == (["later"], ["written"])
    assert ids(commons) == ["s1"]


# ---- The file


def test_what_was_removed_is_not_on_the_disk_once_it_is_purged(tmp_path: Path) -> None:
    home = SqliteCommons(tmp_path / "commons.db")
    home.put([share(f"s{number}", finding__title=f"CANARY {number}") for number in range(50)])
    home.remove([f"s{number}" for number in range(50)])

    home.purge()

    files = list(tmp_path.iterdir())
    assert len(files) == 3
    assert not [one for one in files if b"CANARY" in one.read_bytes().upper()]
    home.close()


def test_a_file_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    home = SqliteCommons(tmp_path / "commons.db")
    home._database.here.execute("PRAGMA user_version = 99")
    home.close()

    with pytest.raises(ConfigError, match="newer"):
        SqliteCommons(tmp_path / "commons.db")
