"""The inventory: what it says of an event, and which lists it gives to rules."""

from __future__ import annotations

from typing import Any

import pytest

from cityward import Asset, ConfigError, Event, LogSource, Record
from cityward.checks import NOW
from cityward.fields import faults
from siem.assets import Inventory
from siem.config import Zone

ZONES = (
    Zone(id="grid", type="supervisory", networks=("192.0.2.0/24", "2001:db8::/32"), purdue=2),
    Zone(id="bay-7", type="control", networks=("192.0.2.64/26",), purdue=1),
    Zone(id="internet", type="external", networks=("0.0.0.0/0",)),
)
ASSETS = (
    Asset(id="scada-1", addresses=("192.0.2.5",), zone="grid", roles=("ot_writer",)),
    Asset(
        id="rtu-7", name="RTU Seven", addresses=("192.0.2.70", "02:00:00:00:00:07"), zone="bay-7",
        purdue=0.5, site="Substation 7", roles=("iec104_master", "ot_writer"),
    ),
    Asset(id="gauge-3", addresses=("G3",)),
)  # fmt: skip


@pytest.fixture
def inventory() -> Inventory:
    return Inventory(ASSETS, ZONES)


def event(**fields: Any) -> Event:
    named = {name.replace("_", "."): value for name, value in fields.items()}
    return Event(NOW, LogSource(), named, Record(b"", "src", 1, NOW))


def test_both_ends_get_zone_and_asset(inventory):
    said = inventory.describe(event(source_ip="192.0.2.5", destination_ip="192.0.2.70"))

    assert said == {
        "cw.source.zone": "grid",
        "cw.source.zone_type": "supervisory",
        "cw.source.purdue": 2.0,
        "cw.source.asset_id": "scada-1",
        "cw.destination.zone": "bay-7",
        "cw.destination.zone_type": "control",
        "cw.destination.purdue": 0.5,
        "cw.destination.asset_id": "rtu-7",
        "cw.asset.zone": "bay-7",
        "cw.asset.zone_type": "control",
        "cw.asset.purdue": 0.5,
        "cw.asset.asset_id": "rtu-7",
        "cw.site": "Substation 7",
    }
    assert faults(said) == []


@pytest.mark.parametrize(
    ("address", "zone"),
    [
        ("192.0.2.65", "bay-7"),
        ("192.0.2.128", "grid"),
        ("2001:db8::9", "grid"),
        ("198.51.100.1", "internet"),
        ("2001:db9::1", None),
        ("no address", None),
    ],
)
def test_the_narrowest_network_gives_the_zone(inventory, address, zone):
    assert inventory.describe(event(source_ip=address)).get("cw.source.zone") == zone


def test_a_stranger_is_given_no_asset(inventory):
    said = inventory.describe(event(source_ip="203.0.113.1", destination_ip="203.0.113.2"))

    assert [name for name in said if name.endswith("asset_id")] == []


@pytest.mark.parametrize("name", ["rtu-7", "RTU Seven", "rtu seven", "192.0.2.70", "RTU-7"])
def test_an_asset_is_found_by_any_of_its_names(inventory, name):
    found = inventory.find(name)

    assert found is not None
    assert found.id == "rtu-7"


def test_a_mac_address_counts_where_there_is_no_ip(inventory):
    named = Event(NOW, LogSource(), {"source.mac": "02:00:00:00:00:07"}, event().record)

    assert inventory.describe(named)["cw.source.asset_id"] == "rtu-7"


def test_a_named_device_is_the_affected_one(inventory):
    said = inventory.describe(event(phys_point="G3", destination_ip="192.0.2.70"))

    assert said["cw.asset.asset_id"] == "gauge-3"


def test_without_an_inventory_nothing_is_said():
    assert Inventory((), ()).describe(event(source_ip="192.0.2.5", host_name="x")) == {}


@pytest.mark.parametrize("value", [None, 7, "", "\x00", "x" * 10_000, ["192.0.2.5"]])
def test_a_strange_value_is_no_fault(inventory, value):
    described = inventory.describe(event(host_name=value, phys_point=value))

    assert "cw.asset.asset_id" not in described


def test_roles_and_zones_give_the_lists_of_rules(inventory):
    given = inventory.placeholders({"dispatch_servers": ["192.0.2.9"]})

    assert given == {
        "ot_writers": ("02:00:00:00:00:07", "192.0.2.5", "192.0.2.70"),
        "iec104_masters": ("02:00:00:00:00:07", "192.0.2.70"),
        "supervisory_nets": ("192.0.2.0/24", "2001:db8::/32"),
        "control_nets": ("192.0.2.64/26",),
        "external_nets": ("0.0.0.0/0",),
        "own_nets": ("192.0.2.0/24", "2001:db8::/32", "192.0.2.64/26"),
        "dispatch_servers": ("192.0.2.9",),
    }


def test_a_list_of_the_settings_replaces_that_of_the_inventory(inventory):
    assert inventory.placeholders({"ot_writers": ["192.0.2.1"]})["ot_writers"] == ("192.0.2.1",)


def test_a_list_that_nobody_gave_is_not_there():
    assert Inventory((), ()).placeholders({}) == {}


@pytest.mark.parametrize("network", ["192.0.2.1/24", "192.0.2.0/33", "grid", ""])
def test_a_network_that_is_none_names_its_zone(network):
    with pytest.raises(ConfigError) as said:
        Inventory((), (Zone(id="z", type="iot", networks=(network,)),))

    assert said.value.where == "zone z"
