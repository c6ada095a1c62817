"""The console on the real stores: one file for findings, spool and Parquet for events."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cityward.event import Event, LogSource, Record
from cityward.finding import Analytic, Check, Finding, Why
from siem.console.access import Access
from siem.console.app import make_app
from siem.store.embedded import NodeDb
from siem.store.events import EventStore
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of, sign_in

EVENTS = [
    {**fake.event(number), "cw.operator": "op-energy", "cw.record.number": 0}
    for number in range(200)
]


def match(number: int) -> Finding:
    time = fake.NOW - timedelta(minutes=number)
    address = f"192.0.2.{number % 5}"
    fields = {
        "source.ip": address,
        "destination.ip": "192.0.2.107",
        "event.action": "write",
        "cw.asset.asset_id": "RTU-7",
        "cw.asset.zone": "cz-north",
    }
    record = Record(b"", "tap-north-1", number, time)
    event = Event(time, LogSource("ot_protocol", service="modbus"), fields, record)
    return Finding(
        analytic=Analytic(f"rule-{number % 3}", "Write", "rule", "3f9c", level="high"),
        title=f"Modbus write {number % 3}",
        description=f"{address} wrote to RTU-7 <at night>",
        severity=("low", "high", "critical")[number % 3],
        group=(("source.ip", address),),
        first_seen=time,
        last_seen=time,
        events=(event,),
        why=Why("write", (Check("write", "ot.operation", "is write", "write", True),)),
        fields={"source.ip": address},
    )


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    node = fake.operator()
    db = NodeDb(tmp_path / "node.db", b"key of the operator", clock=node.now)
    db.keep([match(number) for number in range(60)], checkpoint=1)
    events = EventStore(tmp_path / "events", node.now)
    events.append(EVENTS, {"tap-north-1": 200})
    node.findings, node.events = db, events  # type: ignore[assignment]
    client = TestClient(make_app(node, Access(node, fake.HASHER)), follow_redirects=False)
    sign_in(client, "i.vasko")
    yield client
    events.close()
    db.close()


@pytest.mark.parametrize(
    ("path", "key", "query", "total"),
    [
        ("/findings", "group", "", 3),
        ("/findings", "group", "?from=all&sort=finding.count", 3),
        ("/findings", "finding.id", "?group=none", 15),
        ("/findings", "finding.id", "?group=none&status=all&f=-source.ip:192.0.2.1", 12),
        ("/findings", "finding.id", "?group=none&q=source.ip:192.0.2.0/31 and wrote", 6),
        ("/hunt", "event.id", "", 200),
        ("/hunt", "event.id", "?from=all&limit=200", 200),
        ("/hunt", "event.id", "?f=ot.operation:write&limit=20", 40),
        ("/hunt", "event.id", "?q=source.ip:198.51.100.0/24 and event.outcome:success", 38),
    ],
)
def test_every_form_of_a_list_has_the_same_ids(
    path: str, key: str, query: str, total: int, client: TestClient
) -> None:
    page = client.get(path + query)
    document = client.get(f"{path}.json{query}").json()
    table = csv.DictReader(io.StringIO(client.get(f"{path}.csv{query}").text))

    ids = [row[key] for row in document["rows"]]
    assert document["total"] == total
    assert list(dict.fromkeys(re.findall(r'data-key="([^"]+)"', page.text))) == ids
    assert [row[key] for row in table] == ids


def test_a_finding_its_panel_and_its_events_are_shown(client: TestClient) -> None:
    group = client.get("/findings.json").json()["rows"][0]["group"]
    one = client.get("/findings.json?group=none").json()["rows"][0]["finding.id"]

    panel = client.get(f"/findings?open={group}&g={group}").text
    page = client.get(f"/findings/{one}").text

    assert "is write" in panel
    assert "wrote to " in page
    assert "&lt;at night&gt;" in page
    assert "4 matches" in page


@pytest.mark.parametrize("query", ["?from=all", "?from=all&by=source.ip", "?q=user.name:nobody"])
def test_hunt_says_which_files_of_events_it_could_not_read(
    query: str, client: TestClient, tmp_path: Path
) -> None:
    assert "could not be read" not in client.get(f"/hunt{query}").text
    assert "unread" not in client.get("/hunt.json?from=all").json()
    day = tmp_path / "events" / "parquet" / "day=2026-03-01"
    day.mkdir(parents=True)
    (day / f"{0:016d}-{0:016d}.parquet").write_bytes(b"PAR1 and no end")

    page = client.get(f"/hunt{query}").text

    assert "1 file of events could not be read." in page
    assert f"{day}/" in page
    (unread,) = client.get("/hunt.json?from=all").json()["unread"]
    assert str(day) in unread


def test_hunt_shows_fields_top_values_and_an_event(client: TestClient) -> None:
    event = client.get("/hunt.json").json()["rows"][5]["event.id"]

    page = client.get(f"/hunt?top=source.ip&open={event}").text
    top = client.get("/hunt.json?by=source.ip").json()["rows"]
    one = client.get(f"/hunt/{event}")
    data = client.get(f"/hunt/{event}.json").json()

    assert "Around this ±5 min" in page
    assert {row["value"]: row["events"] for row in top} == {
        "192.0.2.20": 80,
        "192.0.2.30": 80,
        "198.51.100.73": 40,
    }
    assert one.status_code == 200
    assert data["source.ip"] == EVENTS[5]["source.ip"]


def test_a_query_fault_points_at_its_character(client: TestClient) -> None:
    for path in ("/findings", "/hunt"):
        answer = client.get(f"{path}?q=event.action:read and nofield:3&f=event.kind:event")

        assert answer.status_code == 400
        assert 'data-at="23"' in answer.text


def test_triage_is_kept_with_its_history(client: TestClient) -> None:
    token = csrf_of(client.get("/findings").text)

    answer = client.post(
        "/findings/triage",
        data={
            "csrf": token,
            "act": "resolve",
            "verdict": "benign",
            "comment": "planned change",
            "whole": "1",
            "back": "/findings?q=finding.severity:critical",
        },
    )

    assert answer.headers["location"].endswith("done=resolve-5")
    rows = client.get("/findings.json?group=none&status=resolved").json()["rows"]
    assert {row["finding.verdict"] for row in rows} == {"benign"}
    assert rows[0]["cw.history"][-1]["by"] == "i.vasko"
    assert rows[0]["cw.history"][-1]["why"] == "planned change"
    assert "planned change" in client.get(f"/findings/{rows[0]['finding.id']}").text


@pytest.mark.parametrize("path", ["/hunt", "/hunt.json", "/findings", "/findings.json"])
@pytest.mark.parametrize(
    "span",
    [
        "from=0001-01-01T00:00:00%2B14:00",
        "from=all&to=9999-12-31T23:59:59-14:00",
        "from=0001-01-01&to=9999-12-31T23:59:59.999999",
    ],
)
def test_a_range_at_the_ends_of_the_calendar_is_a_range(
    path: str, span: str, client: TestClient
) -> None:
    answer = client.get(f"{path}?{span}")

    assert answer.status_code == 200


@pytest.mark.parametrize(
    "near", ["0001-01-01T00:00:00%2B14:00", "0001-01-01", "9999-12-31T23:59:59Z"]
)
def test_no_event_is_near_the_ends_of_the_calendar(near: str, client: TestClient) -> None:
    answer = client.get(f"/hunt/{'0' * 32}.json?near={near}")

    assert answer.status_code == 404
