"""The API: described from its routes, the same lists as the pages, changes that can be repeated."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from siem.console.api import CHANGES, LISTS, described
from siem.console.app import make_app
from tests.programs import PATIENCE_S
from tests.siem.console import fake
from tests.siem.console.conftest import Served, csrf_of

ROOT = Path(__file__).parents[3]
BEARER = {"authorization": "Bearer t0ken"}
FINDING = fake.finding(0, fake._ROWS[0])["finding.id"]
Enter = Callable[..., TestClient]


def test_every_route_for_programs_is_described_and_no_other(node: fake.FakeNode) -> None:
    app = make_app(node)

    said = {
        (path, method.upper())
        for path, methods in described(app)["paths"].items()
        for method in methods
    }

    real = {
        (re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path), method)
        for route in app.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
        if route.path.endswith((".json", ".ndjson", ".csv")) or route.path == "/metrics"
    }
    assert said == real
    assert len(said) > 40
    stems = {re.sub(r"\.(json|ndjson|csv)$", "", path) for path, _ in said}
    assert stems <= {*LISTS, *CHANGES}


def test_the_description_is_there_for_a_token_and_as_a_page(client: TestClient) -> None:
    document = client.get("/api/openapi.json", headers=BEARER).json()

    one = document["paths"]["/findings/triage.json"]["post"]
    assert document["openapi"] == "3.1.0"
    assert "409" in one["responses"]
    assert one["description"] == "Needs the scope triage."
    assert client.get("/api/openapi.json").status_code == 401
    page = client.get("/api", headers=BEARER).text
    assert "/assets/{asset_id}.json" in page
    assert 'src="http' not in page


def triage(client: TestClient, **said: Any) -> Any:
    return client.post("/findings/triage.json", headers=BEARER, json=said)


def test_triage_as_json_knows_what_was_seen(client: TestClient, node: fake.FakeNode) -> None:
    revision = client.get(f"/findings/{FINDING}.json", headers=BEARER).json()["finding.revision"]
    said = {"act": "resolve", "id": [FINDING], "verdict": "benign", "comment": "our scanner"}

    first = triage(client, **said, revision={FINDING: revision})
    late = triage(client, **said, revision={FINDING: revision})
    undone = triage(client, act="undo")

    assert (first.status_code, first.json()) == (200, {"changed": 1})
    assert late.status_code == 409
    assert late.json()["error"]["what"] == "another revision"
    assert undone.json() == {"changed": 1}
    assert node.findings.get(FINDING)["finding.status"] == "new"  # type: ignore[index]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"act": "take"}', 400),
        (b'{"act": "nope", "id": "x"}', 400),
        (b'{"act": "resolve", "id": "x"}', 400),
        (b'{"act": "take", "id": "x", "revision": "soon"}', 400),
        (b'["take"]', 400),
        (b"{", 400),
        (b'{"act": {"a": 1}, "id": [[["x"]]]}', 400),
        (b"[" * 5000, 400),
        (b'{"act": "\xff"}', 400),
        ('{"act": "suppress", "id": "x", "until": "²h"}'.encode(), 400),
        (b'{"act": "take", "id": "x"}', 200),
    ],
)
def test_a_body_that_says_nothing_useful_is_refused(
    body: bytes, status: int, client: TestClient
) -> None:
    headers = {**BEARER, "content-type": "application/json"}

    answer = client.post("/findings/triage.json", headers=headers, content=body)

    assert answer.status_code == status


def test_assets_are_changed_as_the_description_says(
    client: TestClient, node: fake.FakeNode
) -> None:
    node.give_token("tuner", "e.ngineer", "tune")
    bearer = {"authorization": "Bearer tuner"}
    new = client.get("/assets.json?state=observed", headers=BEARER).json()["rows"][0]["id"]

    answer = client.post(
        "/assets/change.json", headers=bearer, json={"act": "approve", "id": [new]}
    )

    assert (answer.status_code, answer.json()) == (200, {"changed": 1})


@pytest.mark.parametrize("days", ["0000000001", "0000000019999", "000000001999999999", "²"])
def test_a_number_of_days_that_is_none_is_refused(
    days: str, client: TestClient, node: fake.FakeNode
) -> None:
    node.give_token("keeper", "a.admin", "admin")
    bearer = {"authorization": "Bearer keeper"}
    said = {"act": "add", "name": "desk", "scope": ["read"], "days": days}

    assert client.post("/tokens/change.json", headers=bearer, json=said).status_code == 400


def test_a_list_that_did_not_change_is_not_sent_again(
    client: TestClient, node: fake.FakeNode
) -> None:
    first = client.get("/findings.json?limit=0", headers=BEARER)
    tag = {"if-none-match": first.headers["etag"]}

    same = client.get("/findings.json?limit=0", headers=BEARER | tag)
    node.findings.documents.append(fake.finding(2, fake._ROWS[2], 77))
    node.findings.documents[-1]["cw.asset.asset_id"] = "new-1"
    more = client.get("/findings.json?limit=0", headers=BEARER | tag)

    assert (same.status_code, same.content) == (304, b"")
    assert more.status_code == 200
    assert more.json()["total"] == first.json()["total"] + 1


def test_the_last_triage_is_undone_from_its_notice(signed_in: Enter, node: fake.FakeNode) -> None:
    client = signed_in()
    token = csrf_of(client.get("/findings").text)
    form = {"csrf": token, "id": FINDING, "back": "/findings"}

    done = client.post("/findings/triage", data={**form, "act": "take"})
    page = client.get(done.headers["location"]).text
    undone = client.post("/findings/triage", data={**form, "act": "undo"})

    assert 'value="undo"' in page
    assert undone.headers["location"] == "/findings?done=undo-1"
    assert "1 finding as before." in client.get(undone.headers["location"]).text
    assert node.findings.get(FINDING)["assignee"] == ""  # type: ignore[index]


def test_a_view_is_saved_shared_listed_and_removed(signed_in: Enter, node: fake.FakeNode) -> None:
    client = signed_in()
    link = "/findings?q=finding.severity%3Acritical&sort=finding.count"
    form = {"csrf": csrf_of(client.get("/views").text), "act": "save", "shared": "1"}

    for bad in ("https://elsewhere.example/", "//x", "/settings", "/sign-out"):
        refused = client.post("/views/change", data={**form, "name": "Bad", "link": bad})
        assert refused.status_code == 400
    client.post("/views/change", data={**form, "name": "Night watch", "link": link})
    other = signed_in("e.ngineer").get("/findings").text

    assert "Night watch" in other
    rows = client.get("/views.json").json()["rows"]
    assert [row["name"] for row in rows if row["owner"] == "i.vasko"] == ["Night watch"]
    assert any(row["owner"] == "cityward" for row in rows)
    assert signed_in("a.admin").get("/views.json").json()["rows"] == []
    assert node.accounts.views("x")[0].link == link
    for row in rows:
        assert signed_in().get(row["link"]).status_code == 200


def test_a_rule_shows_its_samples_precision_and_switch(
    signed_in: Enter, node: fake.FakeNode
) -> None:
    rule = "00000000-0000-4000-8000-000000000000"
    for one in node.findings.documents[:3]:
        one["finding.verdict"] = "true_positive"
    node.findings.documents[0]["finding.verdict"] = "false_positive"
    node.findings.documents[0]["rule.id"] = node.findings.documents[1]["rule.id"] = rule
    client = signed_in("e.ngineer")
    before, after = client.get(f"/rules/{rule}").text, client.get(f"/rules/{rule}?samples=1").text
    form = {"csrf": csrf_of(before), "id": rule}

    nothing = client.post("/rules/change", data={**form, "act": "off"})
    done = client.post("/rules/change", data={**form, "act": "off", "reason": "tests at the mill"})

    assert "run them" in before
    assert "1 finding, wanted 0" in after
    assert "<b>50 %</b> of 2" in before
    assert nothing.status_code == 400
    assert done.headers["location"] == f"/rules/{rule}?done=off"
    assert [(one.rule, one.is_on, one.by) for one in node.accounts.switches()] == [
        (rule, False, "e.ngineer")
    ]
    assert "tests at the mill" in client.get(f"/rules/{rule}").text
    assert signed_in().post("/rules/change", data={**form, "act": "on"}).status_code == 403


def test_the_page_of_the_first_source_shows_lines_and_reasons(
    signed_in: Enter, node: fake.FakeNode
) -> None:
    client = signed_in("a.admin")

    page = client.get("/start?interface=enp1s0").text
    unknown = client.get("/start?interface=%22%5D%0Aevil").text

    assert "interface = &#34;enp1s0&#34;" in page
    assert "/var/log/dns.log is not there" in page
    assert "412 of 500 TCP flows have no answer" in page
    assert "Lines for" not in unknown


@pytest.mark.slow
def test_the_commands_of_the_page_work(
    serve: Callable[[fake.FakeNode], Served], node: fake.FakeNode
) -> None:
    served = serve(node)
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    script = "\n".join(re.findall(r"^```sh test\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    environment = {**os.environ, "NODE": served.base, "TOKEN": "t0ken"}

    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert '{"changed":1}' in done.stdout
    assert "409" in done.stdout
    assert node.findings.get(FINDING)["finding.verdict"] == "benign"  # type: ignore[index]
