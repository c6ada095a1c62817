"""The state of each service, from shared findings, campaigns and heartbeats."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

import siem
from cityward.errors import ConfigError
from siem.city.commons import Write
from siem.city.known import Link, Lost
from siem.city.picture import Picture, picture, told
from siem.city.shares import SHARE_FIELDS
from siem.city.sqlite import SqliteCommons
from siem.city.town import Town, read
from siem.city.watch import Watch, look_around
from siem.store.query import parse
from tests.siem.city.fake_hub import DATA, LINKS, NOW, SILENT, evening, minutes_ago, share

TOWN = read(DATA / "saltmere-services.yml", DATA / "saltmere.geojson")
HEALTHY = [msgspec.structs.replace(one, lost=()) for one in LINKS]
LONG_AGO = minutes_ago(600)
PLC = {"cw__asset__type": "plc", "finding__severity": "high"}


def seen(*shares: dict[str, Any], links: list[Link] | None = None, whole: bool = True) -> Picture:
    return picture(TOWN, shares, HEALTHY if links is None else links, NOW, is_whole=whole)


def state_of(shown: Picture, service: str) -> str:
    return next(one.state for one in shown.standings if one.service.id == service)


def test_a_quiet_city_runs_and_says_who_sees_it() -> None:
    shown = seen()

    assert {one.state for one in shown.standings} == {"running"}
    assert shown.headline == "All eleven services run, as far as four linked operators see."
    assert (shown.districts, shown.blind) == ({}, [])


def test_the_evening_of_saltmere_is_one_sentence_with_numbers() -> None:
    shown = seen(*evening(), links=[*LINKS, SILENT])

    assert shown.headline == (
        "Heating is at risk in Northbank: 4,100 homes; terminal in East Basin: 6 berths. "
        "Two services are degraded, gauges are blind. One campaign runs at three operators."
    )
    heating = shown.of("at risk")[0]
    assert (heating.why, heating.since) == ("Modbus write, host is no writer", minutes_ago(23))
    assert (heating.affected, heating.campaign) == (4100, "c-1")
    assert shown.districts["northbank"] == "at risk"
    assert shown.districts["old-quay"] == "degraded"
    assert "high-meadow" not in shown.districts
    assert [one.name for one in shown.blind] == [
        "op-city, gauges", "op-metro, vehicles", "op-water", "op-water", "River gauges",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"finding__severity": "high"}, "at risk"),
        ({"finding__severity": "critical", "finding__impact": ["loss_of_view"]}, "degraded"),
        ({"finding__severity": "medium", "finding__impact": ["loss_of_availability"]}, "degraded"),
        ({"finding__severity": "high",
          "finding__impact": ["loss_of_view", "loss_of_control"]}, "at risk"),
        ({"finding__severity": "medium", "finding__type": "hazard"}, "at risk"),
        ({"finding__severity": "medium"}, "running"),
        ({"finding__severity": "low", "finding__impact": ["loss_of_view"]}, "running"),
        ({"finding__severity": "high", "finding__status": "resolved"}, "running"),
        ({"finding__severity": "high", "finding__verdict": "false_positive"}, "running"),
        ({"finding__severity": "nonsense"}, "running"),
    ],
)  # fmt: skip
def test_what_a_share_makes_of_the_service_it_touches(fields: dict[str, Any], state: str) -> None:
    shown = seen(share("a", "op-grid", 10, cw__asset__type="plc", **fields))

    assert state_of(shown, "district-heating") == state
    assert state_of(shown, "electricity") == "running"


def test_a_medium_finding_of_a_severe_campaign_is_a_risk() -> None:
    medium = share("a", "op-grid", 10, cw__asset__type="plc")
    joined = {"cw__campaign__join": "token", "cw__share__derived_from": ["a", "b"]}
    campaign = share("c", "city", 10, finding__severity="high", **joined)

    assert state_of(seen(medium, campaign), "district-heating") == "at risk"
    assert seen(medium, campaign).campaigns[0].derived_from == ["a", "b"]


def test_another_operators_finding_touches_nothing() -> None:
    assert state_of(seen(share("a", "op-port", 10, **PLC)), "district-heating") == "running"


def test_the_place_of_a_finding_says_which_district() -> None:
    inside = next(one for one in TOWN.districts if one.id == "tanners-row")
    assert inside.label
    spot = f"{inside.label[1]},{inside.label[0]}"

    shown = seen(share("a", "op-grid", 10, phys__location=spot, **PLC))

    assert [place.name for place in shown.standings[0].places] == ["Tanners' Row"]
    assert shown.standings[0].affected == 3600


@pytest.mark.parametrize("spot", ["", "x", "1,2,3", "nan,nan", "91,0", None])
def test_a_place_that_is_none_is_passed_over(spot: Any) -> None:
    shown = seen(share("a", "op-grid", 10, phys__location=spot, **PLC))

    assert [place.id for place in shown.standings[0].places] == ["northbank"]


@pytest.mark.parametrize(
    ("link", "why"),
    [
        (msgspec.structs.replace(SILENT, operator="op-grid"), "op-grid is silent"),
        (Link(operator="op-grid", state="revoked"), "op-grid is revoked"),
        (Link(operator="op-grid"), "op-grid has not been heard of yet"),
        (None, "op-grid is not enrolled"),
        (Link(operator="op-grid", state="linked", lost=(Lost("tap", "no data"),)), "tap: no data"),
    ],
)
def test_a_service_that_nobody_sees_is_blind(link: Link | None, why: str) -> None:
    others = [one for one in HEALTHY if one.operator != "op-grid"]

    shown = seen(links=[*others, link] if link else others)

    heating = next(one for one in shown.standings if one.service.id == "district-heating")
    assert (heating.state, heating.why, heating.affected) == ("blind", why, 7700)


def test_a_source_that_is_late_or_one_of_many_blinds_nothing() -> None:
    late = Link(operator="op-grid", state="linked", lost=(Lost("tap", "late", is_late=True),))
    other = Link(operator="op-grid", state="linked", lost=(Lost("bastion", "no data"),))

    for link in (late, other):
        assert state_of(seen(links=[*HEALTHY[:1], link]), "district-heating") == "running"


def test_trouble_stays_known_when_its_operator_falls_silent() -> None:
    silent = msgspec.structs.replace(SILENT, operator="op-grid")

    shown = seen(share("a", "op-grid", 10, **PLC), links=[silent])

    heating = next(one for one in shown.standings if one.service.id == "district-heating")
    assert heating.state == "at risk"
    assert heating.why.endswith("; op-grid is silent")


def test_who_sees_only_some_shares_is_told_nothing_of_the_rest() -> None:
    shown = seen(share("a", "op-grid", 10, **PLC), links=[], whole=False)

    assert [one.service.id for one in shown.standings] == ["district-heating"]
    assert shown.blind == []
    assert seen(links=[], whole=False).headline.startswith("Nothing that was given to you")


def test_an_exercise_is_marked_and_a_mixture_is_not() -> None:
    real = share("a", "op-port", 10, cw__asset__type="crane_plc", finding__severity="high")
    played = share("b", "op-grid", 10, finding__mode="exercise", **PLC)

    assert seen(played).exercise
    assert not seen(played, real).exercise
    assert [one.exercise for one in seen(played, real).of("at risk")] == [True, False]


def test_counts_below_the_threshold_are_not_told() -> None:
    assert [told(count, 3) for count in (0, 1, 2, 3, 4100)] == ["0", "<3", "<3", "3", "4,100"]
    assert told(1, 1) == "1"


def test_every_service_has_a_query_that_the_list_understands() -> None:
    for one in TOWN.services:
        parse(one.query, SHARE_FIELDS, NOW)


# The files


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("city: x", "no services file"),
        ("- 1", "no services file"),
        ("city: [", "no services file"),
        ("city: x\nservices: [{id: a, name: A, sector: s, operator: o, colour: red}]", "colour"),
        ("city: x\nservices: [{id: a, name: A, sector: s, operator: o, districts: {nowhere: 1}}]",
         "no district is called nowhere"),
        ("city: x\nservices: [{id: a, name: A, sector: s, operator: o},"
         " {id: a, name: B, sector: s, operator: o}]", "two services are called a"),
        ("city: x\nservices: [{id: a, name: A, sector: s, operator: o,"
         " touched_by: [{when: {finding.risk: []}}]}]", "an empty list never holds"),
    ],
)  # fmt: skip
def test_a_services_file_that_cannot_be_is_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "services.yml").write_text(text)

    with pytest.raises(ConfigError, match=what):
        read(tmp_path / "services.yml", DATA / "saltmere.geojson")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"features": [{"geometry": null}]}',
        '{"features": [{"properties": {"name": "a"}, "geometry":'
        ' {"type": "Polygon", "coordinates": [[[NaN, 1]]]}}]}',
        '{"features": [{"properties": {}, "geometry": {"type": "Polygon", "coordinates": []}}]}',
        '{"features": [{"properties": {"name": "a"}, "geometry":'
        ' {"type": "Polygon", "coordinates": [[["a", 1]]]}}]}',
        "[" * 100_000,
    ],
)
def test_a_map_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "map.json").write_text(text)

    with pytest.raises(ConfigError):
        read(None, tmp_path / "map.json")


def test_the_files_of_the_page_are_read(tmp_path: Path) -> None:
    text = (Path(siem.__file__).parent.parent / "docs" / "hub.md").read_text("utf-8")
    for name in ("services.yml", "districts.geojson"):
        block = text.partition(f"file={name}\n")[2].partition("```")[0]
        (tmp_path / name).write_text(block, "utf-8")

    town = read(tmp_path / "services.yml", tmp_path / "districts.geojson")

    assert [one.amount for one in town.services] == [7700]
    assert [one.name for one in town.districts] == ["Northbank", "Tanners' Row"]
    assert [one.name for one in town.waters] == ["Orle"]


def test_without_files_there_is_a_city_without_services() -> None:
    shown = picture(read(None), evening(), HEALTHY, NOW)

    assert shown.standings == []
    assert shown.headline.startswith("No services are named yet")
    assert "One campaign runs" in shown.headline
    assert Town().name == "City"


# What changed


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(SqliteCommons(tmp_path / "commons.db", clock=lambda: NOW).records)


def changed(watch: Watch, since: datetime = LONG_AGO) -> list[str]:
    return [f"{one.name}: {one.before} → {one.after}" for one in watch.changes(since)]


def test_changes_are_kept_once_and_told_newest_first(watch: Watch) -> None:
    trouble = share("a", "op-grid", 10, **PLC)
    watch.look(seen(), NOW - timedelta(minutes=20))
    assert changed(watch) == []

    watch.look(seen(trouble), NOW)
    watch.look(seen(trouble), NOW + timedelta(minutes=1))
    watch.look(seen(), NOW + timedelta(minutes=2))

    assert changed(watch) == [
        "District heating: at risk → running",
        "District heating: running → at risk",
    ]
    assert watch.changes(LONG_AGO)[1].at == minutes_ago(10)
    assert changed(watch, NOW) == ["District heating: at risk → running"]


def test_an_operator_that_falls_silent_and_a_campaign_are_changes(watch: Watch) -> None:
    watch.look(seen(), NOW - timedelta(minutes=50))
    silent = msgspec.structs.replace(HEALTHY[0], state="silent", heartbeat=minutes_ago(41))

    watch.look(seen(evening()[-1], links=[silent, *HEALTHY[1:]]), NOW)

    said = changed(watch)
    assert "op-city: linked → silent" in said
    assert "Edge, remote access, then OT write:  → began" in said


def test_the_hub_keeps_changes_also_when_nobody_looks(tmp_path: Path) -> None:
    commons = SqliteCommons(tmp_path / "commons.db", clock=lambda: NOW)
    commons.put([Write(one, 1) for one in evening()])

    look_around(commons, TOWN, HEALTHY, NOW)
    commons.remove(["s-9"])
    look_around(commons, TOWN, HEALTHY, NOW + timedelta(minutes=1))

    assert changed(Watch(commons.records))[0] == "District heating: at risk → running"


def test_a_campaign_is_one_change_although_each_audience_has_a_document_of_it(
    tmp_path: Path,
) -> None:
    commons = SqliteCommons(tmp_path / "commons.db", clock=lambda: NOW)
    (campaign,) = (one for one in evening() if one["cw.operator"] == "city")
    told = {"cw.share.id": "for-peers", "cw.share.audiences": ["peers"]}
    commons.put([Write(campaign, 1), Write(campaign | told, 1)])

    look_around(commons, TOWN, HEALTHY, NOW)

    found = Watch(commons.records).changes(LONG_AGO)
    assert [one.about for one in found if one.kind == "campaign"] == [campaign["cw.share.id"]]


def test_the_changes_that_are_kept_are_bounded(watch: Watch, monkeypatch: Any) -> None:
    monkeypatch.setattr("siem.city.watch.CHANGES_MAX", 5)
    for number in range(8):
        shares = [share("a", "op-grid", 10, **PLC)] if number % 2 else []
        watch.look(seen(*shares), NOW + timedelta(minutes=number))

    assert len(watch.changes(LONG_AGO)) == 5


def test_a_visit_ends_after_half_an_hour(watch: Watch) -> None:
    def visit(minutes: float) -> datetime | None:
        return watch.visit("m.tarn", NOW + timedelta(minutes=minutes))

    assert [visit(0), visit(5), visit(25)] == [None, None, None]
    assert visit(60) == NOW + timedelta(minutes=25)
    assert visit(70) == NOW + timedelta(minutes=25)
    assert watch.visit("nobody " * 100, NOW) is None
