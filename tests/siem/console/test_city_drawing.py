"""The map and the timelines of the hub, as numbers."""

from __future__ import annotations

import re
from datetime import timedelta

from siem.city.picture import campaign, picture
from siem.city.town import District, Service, Town, Water
from siem.console.campaigns import LANES_MAX, lanes
from siem.console.city_map import WIDTH, draw
from tests.siem.city.fake_hub import LINKS, NOW, evening, saltmere, share

CAMPAIGN = campaign(evening()[-1])


def test_districts_keep_their_shape_and_their_labels_stay_inside() -> None:
    town = saltmere().town
    drawn = draw(town, picture(town, evening(), LINKS, NOW))

    assert drawn is not None
    assert (drawn.width, 300 < drawn.height < 450) == (520, True)
    for tile in drawn.tiles:
        for path in tile.paths:
            assert re.fullmatch(r"M[-\d. ]+z", path)
            numbers = [float(one) for one in re.findall(r"-?[\d.]+", path)]
            assert all(-1 <= one <= WIDTH + 1 for one in numbers)
        if tile.back:
            x, _, width, _ = tile.back
            assert x >= -0.1
            assert x + width <= WIDTH + 0.1
    said = {tile.id: (tile.state, tile.sub) for tile in drawn.tiles}
    assert said["northbank"] == ("at risk", "heating, 4,100 homes")
    assert said["high-meadow"] == ("running", "")
    assert said["lockside"] == ("blind", "gauges")


def test_odd_maps_are_drawn_all_the_same() -> None:
    point = District("p", "A very long name of a district that fills the map", [[(1.0, 1.0)] * 4])
    tall = District("t", "Tall", [[(0.0, -80.0), (0.001, -80.0), (0.001, 80.0)]])
    service = Service(id="s", name="S", sector="x", operator="o", unit="", districts={"p": 3})
    for districts in ([point], [tall], [point, tall], [District("e", "Empty", [[]]), tall]):
        town = Town("T", [service], districts, [Water("", [], is_area=True)])
        drawn = draw(town, picture(town, [], [], NOW))
        assert drawn is not None
        assert 0 <= drawn.height <= 700
    assert draw(Town(), picture(Town(), [], [], NOW)) is None


def test_a_timeline_has_a_lane_an_operator_and_the_worst_of_what_is_close() -> None:
    close = [
        share(f"n-{number}", "op-a", 60 + number / 100, finding__severity=severity)
        for number, severity in enumerate(("low", "critical", "medium", "nonsense"))
    ]
    drawn = lanes(CAMPAIGN, [*close, share("far", "op-b", 300), share("late", "op-a", 5)])

    assert drawn is not None
    assert [(lane.operator, lane.count) for lane in drawn.lanes] == [("op-b", 1), ("op-a", 5)]
    assert [spot.severity for spot in drawn.lanes[1].spots] == ["critical", "medium"]
    assert drawn.lanes[1].worst == "critical"
    assert drawn.said.startswith("Campaign by operator over time: op-b from 2026-11-11 22:14")
    for lane in drawn.lanes:
        assert 0 <= float(lane.since[:-1]) <= float(lane.until[:-1]) <= 100


def test_a_timeline_of_many_operators_or_of_one_moment() -> None:
    many = [share(f"m-{number}", f"op-{number}", number) for number in range(LANES_MAX + 3)]
    assert (drawn := lanes(CAMPAIGN, many)) is not None
    assert (len(drawn.lanes), drawn.more) == (LANES_MAX, 3)

    moment = share("o", "op-a", 0) | {"finding.last_seen": NOW}
    assert (drawn := lanes(CAMPAIGN, [moment])) is not None
    assert drawn.lanes[0].spots[0].id == "o"
    weeks = [moment, moment | {"finding.first_seen": NOW - timedelta(days=30)}]
    assert (drawn := lanes(CAMPAIGN, weeks)) is not None
    assert drawn.marks[2].text.endswith("Oct")
    assert lanes(CAMPAIGN, []) is None
