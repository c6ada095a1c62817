"""Notifications in the console: who sees them, who sends a test, what is listed."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from siem import config
from siem.notify.routes import routes_of
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of
from tests.siem.console.hostile import STRINGS
from tests.siem.test_notify import MAIL, match


def with_routes(node: fake.FakeNode) -> fake.FakeNode:
    """Three routes: one works, one is refused, one is only escalated to."""
    hook = {
        "to": "webhook",
        "url": "https://hook.example/cityward",
        "secret_env": "HOOK",
        "exercises": True,
    }
    said = [
        {**MAIL, "digest": "daily 07:30", "quiet_hours": "22:00-06:00"}
        | {"escalate_after_min": 30, "escalate_to": "chief"},
        {**hook, "id": "desk", "when": {"finding.severity": ["high", "critical"]}},
        {**MAIL, "id": "chief", "when": None},
    ]
    node.routes = routes_of(config.parse({"route": said}).route)
    node.notices.begin(list(node.routes.values()), fake.NOW)
    at = fake.NOW - timedelta(minutes=9)
    node.db.keep([match(at)], checkpoint=1, now=fake.NOW)
    node.notices.plan(node.routes, fake.NOW)
    for _ in range(2):
        test = node.notices.add_test(node.routes["duty"], at)
        node.notices.sent(test.id, test.receivers, "250 2.0.0 queued as 4711", at)
    (due,) = node.notices.deliveries("desk")
    again = fake.NOW + timedelta(minutes=4)
    node.notices.failed(due.id, due.receivers, "HTTP 503 Service Unavailable", fake.NOW, again)
    return node


@pytest.fixture
def routed(node: fake.FakeNode) -> fake.FakeNode:
    return with_routes(node)


Enter = Callable[..., TestClient]


def test_routes_show_their_state_trouble_first(routed: fake.FakeNode, signed_in: Enter) -> None:
    page = signed_in("e.ngineer").get("/routes").text

    assert page.index('data-key="desk"') < page.index('data-key="duty"')
    assert "HTTP 503 Service Unavailable" in page
    assert "only what is escalated to it" in page
    assert "Send a test" not in page


def test_health_says_which_route_fails_and_why(routed: fake.FakeNode, signed_in: Enter) -> None:
    client = signed_in("a.admin")

    assert "Tried again: HTTP 503 Service Unavailable" in client.get("/health").text
    figures = client.get("/metrics").text
    assert 'cityward_notifications{route="desk",state="retrying"} 1.0' in figures


def test_a_node_without_routes_says_so(signed_in: Enter) -> None:
    assert "Nobody is told" in signed_in().get("/routes").text
    assert "Nothing was delivered" in signed_in().get("/deliveries").text


def test_an_administrator_sends_a_test_and_it_is_audited(
    routed: fake.FakeNode, signed_in: Enter
) -> None:
    client = signed_in("a.admin")
    token = csrf_of(client.get("/routes").text)
    done = client.post("/routes/test", data={"csrf": token, "route": "chief"})

    assert done.headers["location"] == "/routes?test=chief"
    assert "on its way over chief" in client.get("/routes?test=chief").text
    (test,) = routed.notices.deliveries("chief")
    assert (test.kind, test.state) == ("test", "due")
    assert ("a.admin", "route: test", "chief") in routed.said


@pytest.mark.parametrize("name", ["i.vasko", "e.ngineer"])
def test_others_send_no_test(routed: fake.FakeNode, signed_in: Enter, name: str) -> None:
    client = signed_in(name)
    token = csrf_of(client.get("/routes").text)

    assert client.post("/routes/test", data={"csrf": token, "route": "chief"}).status_code == 403
    assert routed.notices.deliveries("chief") == []


def test_a_test_needs_the_token_of_the_form(routed: fake.FakeNode, signed_in: Enter) -> None:
    client = signed_in("a.admin")

    assert client.post("/routes/test", data={"csrf": "x", "route": "chief"}).status_code == 403


def test_an_unknown_route_is_said(routed: fake.FakeNode, signed_in: Enter) -> None:
    client = signed_in("a.admin")
    token = csrf_of(client.get("/routes").text)

    assert client.post("/routes/test", data={"csrf": token, "route": "x"}).status_code == 400


def test_an_administrator_does_not_see_what_was_found(
    routed: fake.FakeNode, signed_in: Enter
) -> None:
    client = signed_in("a.admin")

    assert "Password guessed" not in client.get("/routes").text + client.get("/deliveries").text
    assert "Password guessed" not in client.get("/deliveries.ndjson").text


def test_deliveries_are_listed_for_programs(routed: fake.FakeNode, signed_in: Enter) -> None:
    client = signed_in()
    listed = client.get("/deliveries.json?route=desk").json()
    rows = list(csv.DictReader(io.StringIO(client.get("/deliveries.csv").text)))

    assert (listed["total"], listed["rows"][0]["about"]) == (1, "Password guessed")
    assert listed["rows"][0]["answer"] == "HTTP 503 Service Unavailable"
    assert [row["route"] for row in rows] == ["duty", "duty", "desk"]
    assert client.get("/routes.json").json()["rows"][0]["route"] == "desk"


def test_hostile_answers_are_shown_as_text(node: fake.FakeNode, signed_in: Enter) -> None:
    with_routes(node)
    for text in STRINGS:
        test = node.notices.add_test(node.routes["duty"], fake.NOW)
        node.notices.failed(test.id, test.receivers, text, fake.NOW, None)
    client = signed_in()

    for page in (client.get("/routes").text, client.get("/deliveries?limit=500").text):
        assert "<script>" not in page
        assert [
            char for char in page if char != "\n" and not (char.isprintable() or char == "\t")
        ] == []
