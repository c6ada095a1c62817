"""Assets from a CMDB and from NetBox: what is understood, what is said with its line."""

from __future__ import annotations

import json

import pytest

from cityward import InputError
from siem import cmdb

TABLE = b"""Host,IP,Class,Importance,Zone,Serial
modicon-1,192.0.2.70/24;02:00:00:00:00:07,PLC,high,bay-7,123
"panel
two",192.0.2.7,Operator Panel,medium,lobby,9
odd,not-an-ip,Toaster,9,,
,,,,,
modicon-1,192.0.2.71,PLC,high,bay-7,124
"""
NETBOX = {
    "count": 2,
    "results": [
        {
            "id": 7,
            "name": "RTU Seven",
            "device_type": {"model": "X20", "manufacturer": {"name": "Acme"}},
            "role": {"name": "Remote Terminal Unit", "slug": "rtu"},
            "site": {"name": "Substation 7", "slug": "substation-7"},
            "primary_ip4": {"address": "192.0.2.70/26"},
            "primary_ip6": None,
            "status": {"value": "active"},
        },
        {"id": 8, "name": None, "role": {"slug": "camera"}},
    ],
}


def read(data: bytes, **mapping: str) -> cmdb.Read:
    return cmdb.read(data, mapping=mapping, zones={"bay-7"})


def test_a_table_becomes_assets_and_what_is_not_understood_is_said_with_its_line() -> None:
    found = read(TABLE)

    plc, panel, odd = found.assets
    assert (plc.id, plc.type, plc.criticality, plc.zone) == ("modicon-1", "plc", 4, "bay-7")
    assert plc.addresses == ("192.0.2.70", "02-00-00-00-00-07", "192.0.2.71")
    assert (panel.id, panel.type, panel.criticality, panel.zone) == ("panel-two", "hmi", 3, "")
    assert (odd.addresses, odd.type, odd.criticality) == (("not-an-ip",), "toaster", 2)
    assert found.rejected == 1
    assert found.problems == [
        "line 3: 'lobby' is no zone of the settings; left empty",
        "line 5: 'not-an-ip' is no IP or MAC address; kept as a name",
        "line 5: the type 'toaster' is unknown; kept as it is",
        "line 5: criticality '9' cannot be; left empty",
        "line 6: no id, no name and no address; left out",
        "line 7: modicon-1 is there twice; its addresses are joined",
        "columns that are not taken: Serial",
    ]


def test_a_column_is_taken_as_it_is_mapped() -> None:
    found = cmdb.read(
        b"Box;Where\nx1;North\n", mapping={"Box": "id", "Where": "site"}, zones=frozenset()
    )

    assert [(one.id, one.site) for one in found.assets] == [("x1", "North")]
    with pytest.raises(InputError, match="is no field"):
        read(TABLE, Host="colour")


def test_devices_of_netbox_are_read_from_its_json() -> None:
    found = read(json.dumps(NETBOX).encode())

    (rtu,) = found.assets
    assert (rtu.id, rtu.name, rtu.type) == ("rtu-seven", "RTU Seven", "rtu")
    assert (rtu.vendor, rtu.model, rtu.site) == ("Acme", "X20", "Substation 7")
    assert rtu.addresses == ("192.0.2.70",)
    assert found.rejected == 1
    assert "line 2: no id, no name and no address; left out" in found.problems


def test_the_table_export_of_netbox_keeps_its_own_ids_and_types_apart() -> None:
    table = (
        b"ID,Name,Status,Role,Manufacturer,Type,Site,IP Address\n"
        b"7,sw-1,Active,Access Switch,Acme,X48,Depot,192.0.2.2/24\n"
    )

    (switch,) = read(table).assets

    assert (switch.id, switch.type, switch.model, switch.vendor) == (
        "sw-1",
        "switch",
        "X48",
        "Acme",
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"name",
        b"{",
        b"[1, 2",
        b'\xff\xfe"',
        b'name,ip\n"x',
        b"[" * 100_000,
        b"\x00,\x00\n\x00",
    ],
)
def test_what_is_no_list_of_assets_is_refused_or_gives_none(data: bytes) -> None:
    try:
        found = read(data)
    except InputError:
        return

    assert all(one.id for one in found.assets)


def test_hostile_cells_stay_text() -> None:
    table = b"name,ip\n=cmd|' /C calc'!A0,192.0.2.1\n<b>x</b>,192.0.2.2\n\xff\xfe,192.0.2.3\n"

    found = read(table)

    assert len(found.assets) == 3
    json.dumps([one.name for one in found.assets]).encode()
