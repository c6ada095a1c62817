"""Every route of the console against every role and every scope; no route is left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from siem.console.access import Access
from siem.console.app import make_app
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of, sign_in

ROLES = {
    "analyst": "i.vasko",
    "engineer": "e.ngineer",
    "approver": "t.lindqvar",
    "administrator": "a.admin",
}
PEOPLE = ("analyst", "engineer")
READERS = (*PEOPLE, "approver")
KEEPERS = (*PEOPLE, "administrator")
ALL = (*READERS, "administrator")
RIGHTS: dict[str, tuple[tuple[str, ...], str]] = {
    "GET /findings": (READERS, "read"),
    "GET /findings/{finding_id}": (READERS, "read"),
    "GET /incidents": (READERS, "read"),
    "GET /incidents/{incident_id}": (READERS, "read"),
    "GET /incidents/{incident_id}/draft/{duty_id}": (READERS, "read"),
    "POST /incidents/change": (PEOPLE, "triage"),
    "GET /playbooks": (READERS, "read"),
    "GET /playbooks/{playbook_id}": (READERS, "read"),
    "GET /playbooks/{playbook_id}/plan": (("analyst",), "respond"),
    "GET /runs": (READERS, "read"),
    "GET /runs/{run_id}": (READERS, "read"),
    "GET /approvals": (READERS, "read"),
    "GET /approvals/{run_id}": (READERS, "read"),
    "GET /in-force": (READERS, "read"),
    "POST /playbooks/start": (("analyst",), "respond"),
    "POST /playbooks/stage": (("engineer",), "tune"),
    "POST /playbooks/stop": (READERS, "respond"),
    "POST /playbooks/breaker": (READERS, "respond"),
    "POST /runs/change": (READERS, "respond"),
    "POST /approvals/answer": (("analyst", "approver"), "respond"),
    "GET /sharing": (("analyst",), "read"),
    "GET /sharing/waiting": (("analyst",), "read"),
    "GET /sharing/ledger": (("analyst",), "read"),
    "GET /sharing/inbox": (("analyst",), "read"),
    "GET /sharing/proposals": (("analyst",), "read"),
    "POST /sharing/change": (("analyst",), ""),
    "POST /sharing/proposals/change": (("analyst",), "respond"),
    "GET /hunt": (PEOPLE, "read"),
    "GET /hunt/{event_id}": (PEOPLE, "read"),
    "GET /rules": (PEOPLE, "read"),
    "GET /rules/{rule_id}": (PEOPLE, "read"),
    "GET /assets": (READERS, "read"),
    "GET /assets/{asset_id}": (READERS, "read"),
    "GET /health": (ALL, "read"),
    "GET /metrics": (KEEPERS, "read"),
    "GET /start": (ALL, "read"),
    "GET /routes": (KEEPERS, "read"),
    "GET /deliveries": (KEEPERS, "read"),
    "GET /views": (ALL, "read"),
    "GET /keys": (ALL, "read"),
    "GET /password": (ALL, "read"),
    "GET /api": (ALL, "read"),
    "GET /api/openapi": (ALL, "read"),
    "GET /people": (("administrator",), "admin"),
    "GET /people/{name}": (("administrator",), "admin"),
    "GET /tokens": (("administrator",), "admin"),
    "GET /audit": (("administrator",), "admin"),
    "POST /findings/triage": (PEOPLE, "triage"),
    "GET /filters": (PEOPLE, "read"),
    "GET /filters/new": (("engineer",), "tune"),
    "GET /filters/{filter_id}": (PEOPLE, "read"),
    "POST /filters/add": (("engineer",), "tune"),
    "POST /filters/remove": (("engineer",), "tune"),
    "POST /rules/change": (("engineer",), "tune"),
    "GET /rules/new": (("engineer",), "tune"),
    "GET /rules/{rule_id}/edit": (("engineer",), "tune"),
    "POST /rules/{rule_id}/edit": (("engineer",), "tune"),
    "POST /rules/{rule_id}/revert": (("engineer",), "tune"),
    "GET /rules/{rule_id}/protected": (PEOPLE, "read"),
    "POST /rules/{rule_id}/protected/share": (("analyst",), ""),
    "POST /rules/{rule_id}/protected/judge": (("engineer",), "tune"),
    "POST /assets/change": (("engineer",), "tune"),
    "POST /routes/test": (("administrator",), "admin"),
    "POST /people/change": (("administrator",), "admin"),
    "POST /tokens/change": (("administrator",), "admin"),
    "POST /views/change": (ALL, ""),
    "POST /password": (ALL, ""),
    "POST /settings": (ALL, "read"),
}
"""Roles that may, and the scope that a token needs for it; none: no token may."""
OPEN = {"GET /", "GET /sign-in", "POST /sign-in", "POST /sign-out"}
"""Routes for whoever comes; the tests of access have them."""
SCOPES = ("read", "triage", "respond", "tune", "admin")
IDS = {"{asset_id}": "RTU-0", "{name}": "i.vasko"}


def routes(app: Any) -> Iterator[tuple[str, str, str]]:
    """What a route is called in the table, its method, and an address of it."""
    for route in app.routes:
        if isinstance(route, APIRoute):
            path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
            stem = re.sub(r"\.(json|ndjson|csv)$", "", path)
            for method in route.methods or ():
                address = re.sub(r"\{\w+\}", lambda found: IDS.get(found[0], "none"), path)
                yield f"{method} {stem}", method, address


@pytest.fixture
def app(node: fake.FakeNode) -> Any:
    return make_app(node, Access(node, fake.HASHER))


@pytest.fixture
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(app, follow_redirects=False) as client:
        yield client


def test_every_route_is_in_the_table(app: Any) -> None:
    assert {name for name, _, _ in routes(app)} == RIGHTS.keys() | OPEN


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_a_role_gets_what_the_table_says_and_nothing_else(
    role: str, app: Any, client: TestClient
) -> None:
    sign_in(client, ROLES[role])
    token = csrf_of(client.get("/keys").text)

    wrong = []
    for name, method, address in routes(app):
        if name in OPEN:
            continue
        answer = client.request(method, address, data={"csrf": token} if method == "POST" else None)
        if (answer.status_code == 403) != (role not in RIGHTS[name][0]):
            wrong.append((address, answer.status_code))

    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_opens_what_the_table_says_and_no_more_than_its_person_may(
    scope: str, app: Any, node: fake.FakeNode, client: TestClient
) -> None:
    for role, person in ROLES.items():
        node.give_token(f"{scope} {role}", person, scope)

    wrong = []
    for name, method, address in routes(app):
        if name in OPEN:
            continue
        for role in ROLES:
            bearer = {"authorization": f"Bearer {scope} {role}"}
            status = client.request(method, address, headers=bearer).status_code
            roles, needed = RIGHTS[name]
            if (status == 403) != (role not in roles or scope != needed):
                wrong.append((address, role, status))

    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["form", "json"])
def test_no_request_with_a_cookie_alone_changes_anything(
    kind: str, app: Any, node: fake.FakeNode
) -> None:
    every = {name for name in (*RIGHTS, "POST /sign-out") if name.startswith("POST")}
    refused = set()
    for person in ROLES.values():
        client = TestClient(app, follow_redirects=False)
        sign_in(client, person)
        for name, method, address in routes(app):
            if name in every:
                sent: dict[str, Any] = {"act": "add", "csrf": "", "name": "x"}
                answer = client.request(
                    method, address, **{"data" if kind == "form" else kind: sent}
                )
                assert answer.status_code == 403, (person, address)
                refused.add(name)

    assert refused == every


def test_without_sign_in_no_route_opens(app: Any, client: TestClient) -> None:
    answers = {
        address: client.request(method, address).status_code
        for name, method, address in routes(app)
        if name not in OPEN
    }

    assert {address for address, status in answers.items() if status not in (303, 401)} == set()
