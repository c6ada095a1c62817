"""Assets in the console: one query in every form, rights, and forms that need no script."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from siem.console.zonemap import picture
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of

Enter = Callable[..., TestClient]


def act(client: TestClient, **fields: Any) -> Any:
    back = fields.pop("back", "/assets")
    token = csrf_of(client.get(back).text)
    return client.post("/assets/change", data={"csrf": token, "back": back, **fields})


@pytest.mark.parametrize(
    "query", ["", "?state=observed", "?q=modbus+cz-north", "?sort=-findings&limit=7&offset=3"]
)
def test_the_same_query_gives_the_same_assets_in_every_form(signed_in: Enter, query: str) -> None:
    client = signed_in()

    page = client.get(f"/assets{query}").text
    rows = client.get(f"/assets.json{query}").json()["rows"]
    lines = client.get(f"/assets.ndjson{query}").content.splitlines()
    table = list(csv.DictReader(io.StringIO(client.get(f"/assets.csv{query}").text)))

    ids = [row["id"] for row in rows]
    assert ids
    assert [msgspec.json.decode(line)["id"] for line in lines] == ids
    assert [row["id"] for row in table] == ids
    assert [part.split('"')[0] for part in page.split('data-key="')[1:]] == ids


def test_what_came_back_is_on_top_then_what_is_new(signed_in: Enter) -> None:
    rows = signed_in().get("/assets.json?limit=100").json()["rows"]

    states = [row["state"] for row in rows]
    assert rows[0]["id"] == "192.0.2.107"
    assert states == ["retired", *["observed"] * 40, *["approved"] * 22, "retired"]


def test_an_analyst_sees_and_an_administrator_does_not(signed_in: Enter) -> None:
    client = signed_in()

    page = client.get("/assets")
    refused = client.post("/assets/change", data={"csrf": csrf_of(page.text), "act": "approve"})

    assert page.status_code == 200
    assert 'value="approve"' not in page.text
    assert refused.status_code == 403
    assert signed_in("a.admin").get("/assets").status_code == 403


def test_nobody_sees_anything_without_signing_in(client: TestClient) -> None:
    assert client.get("/assets").headers["location"].startswith("/sign-in")
    assert client.get("/assets.json").status_code == 401


def test_a_form_of_another_session_changes_nothing(signed_in: Enter, node: fake.FakeNode) -> None:
    client = signed_in("e.ngineer")

    answer = client.post("/assets/change", data={"csrf": "x", "act": "retire", "id": "RTU-0"})

    assert answer.status_code == 403
    assert node.inventory.rows["RTU-0"].state == "approved"


def test_the_whole_query_is_approved_without_what_the_settings_hold(
    signed_in: Enter, node: fake.FakeNode
) -> None:
    client = signed_in("e.ngineer")

    done = act(client, back="/assets?q=192.0.2.1", act="approve", whole="1", reason="inventory day")

    assert done.headers["location"] == "/assets?q=192.0.2.1&done=approve-63"
    assert {row.state for row in node.inventory.rows.values()} == {"approved"}
    assert node.inventory.rows["RTU-6"].origin == "settings"


def test_an_asset_is_corrected_merged_and_retired(signed_in: Enter, node: fake.FakeNode) -> None:
    client = signed_in("e.ngineer")
    one = {"id": "192.0.2.101", "back": "/assets/192.0.2.101"}

    said = {"whole_record": "1", "name": "Pump", "criticality": "4", "addresses": "192.0.2.101"}
    act(client, act="correct", never_touch="1", **said, **one)
    act(client, act="merge", other="192.0.2.102", reason="second card", **one)
    last = act(client, act="retire", reason="scrapped", **one)

    row = node.inventory.rows["192.0.2.101"]
    assert last.headers["location"] == "/assets/192.0.2.101?done=retire-1"
    assert (row.state, row.asset.name, row.asset.criticality) == ("retired", "Pump", 4)
    assert row.asset.never_touch
    assert row.asset.addresses == ("192.0.2.101", "192.0.2.102")
    assert row.aliases == ("192.0.2.102",)
    assert client.get("/assets/192.0.2.102").status_code == 200


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"act": "nope", "id": "RTU-0"}, "no act is called"),
        ({"act": "retire"}, "nothing is selected"),
        ({"act": "merge", "id": "RTU-0", "other": "nope"}, "no asset is called"),
        ({"act": "merge", "id": "RTU-0", "other": "RTU-0"}, "cannot be merged"),
        (
            {"act": "approve", "id": "RTU-0", "whole_record": "1", "criticality": "9"},
            "criticality 9",
        ),
    ],
)
def test_what_cannot_be_done_is_said(signed_in: Enter, fields: dict[str, str], said: str) -> None:
    answer = act(signed_in("e.ngineer"), **fields)

    assert answer.status_code == 400
    assert said in answer.text.lower()


@pytest.mark.parametrize("query", ["?sort=colour", "?state=purple"])
def test_a_word_that_is_none_is_named(signed_in: Enter, query: str) -> None:
    answer = signed_in().get(f"/assets.json{query}")

    assert answer.status_code == 400
    assert "Write" in answer.json()["error"]["todo"]


def test_one_asset_is_there_as_a_page_and_as_json(signed_in: Enter) -> None:
    client = signed_in()

    page, data = client.get("/assets/192.0.2.101").text, client.get("/assets/192.0.2.101.json")

    assert "write_multiple_registers" in page
    assert "commands it" in page
    assert data.json()["writers"] == ["198.51.100.73"]
    assert client.get("/assets/nope").status_code == 404
    assert client.get("/assets/nope.json").status_code == 404


def test_a_node_that_learns_says_until_when(signed_in: Enter, node: fake.FakeNode) -> None:
    until = int((fake.NOW + timedelta(hours=3)).timestamp() * 1e6)
    node.inventory.numbers = {"until": until, "full": 7}

    page = signed_in().get("/assets").text

    assert "Still learning" in page
    assert "06:14" in page
    assert "7 sights of more assets were refused" in page


def test_without_assets_or_zones_the_page_says_why(signed_in: Enter, node: fake.FakeNode) -> None:
    node.inventory = fake.FakeInventory()
    client = signed_in()

    assert "No asset is known yet" in client.get("/assets").text
    assert "No zone is declared" in client.get("/assets?view=zones").text


def test_the_picture_has_a_box_for_each_zone_and_a_line_for_each_way(node: fake.FakeNode) -> None:
    inventory = node.inventory

    drawn = picture(inventory.zones(), inventory.conduits(), inventory.assets())

    assert [box.zone.id for box in drawn.boxes][:3] == ["external", "office", "dmz-1"]
    assert len(drawn.boxes) == 8
    assert len(drawn.lines) == 8
    both = next(line for line in drawn.lines if len(line.conduits) == 2)
    assert both.label.endswith("modbus, tcp/3389")
    assert not both.is_approved
    for box in drawn.boxes:
        assert box.x >= 0
        assert box.x + box.width <= 100
