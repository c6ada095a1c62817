"""Incidents in the console: from findings to a case, its clocks, its drafts, its submission."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from siem.store.cases import Incident
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of


@pytest.fixture
def client(signed_in: Callable[..., TestClient]) -> TestClient:
    return signed_in()


def post(client: TestClient, path: str, **form: Any) -> Any:
    return client.post(path, data={"csrf": csrf_of(client.get("/keys").text), **form})


def opened(node: fake.FakeNode, **said: Any) -> Incident:
    known = [one["finding.id"] for one in node.findings.documents[:2]]
    said = {"duties": ["nis2-early-warning", "nis2-notification"], "findings": known, **said}
    return node.cases.open("op-energy", "Writes to the heating", "i.vasko", fake.NOW, **said)


def test_findings_become_an_incident_whose_severity_is_their_worst(
    client: TestClient, node: fake.FakeNode
) -> None:
    rows = node.findings.documents[:3]
    ids = [row["finding.id"] for row in rows]

    asked = post(client, "/findings/triage", act="incident", id=ids)
    assert "open a new one" in asked.text
    answer = post(
        client,
        "/findings/triage",
        act="incident",
        asked="1",
        id=ids,
        incident="new",
        title="Heating is written to",
    )

    (made,) = node.cases.all()
    assert answer.headers["location"] == f"/incidents/{made.id}"
    assert list(made.findings) == ids
    worst = max((row["finding.severity"] for row in rows), key=fake.SEVERITIES.index)
    assert made.severity == worst
    assert "nis2-early-warning" in made.duties


def test_an_incident_is_opened_on_the_board(client: TestClient, node: fake.FakeNode) -> None:
    answer = post(
        client, "/incidents/change", act="open", title="Card readers flap", severity="low"
    )

    (made,) = node.cases.all()
    assert answer.headers["location"].startswith(f"/incidents/{made.id}")
    assert (made.title, made.severity, made.opened_by) == ("Card readers flap", "low", "i.vasko")


def test_a_finding_can_join_an_incident_that_is_open(
    client: TestClient, node: fake.FakeNode
) -> None:
    made = opened(node, findings=[])
    one = node.findings.documents[0]["finding.id"]

    post(client, "/findings/triage", act="incident", asked="1", id=one, incident=made.id)

    assert _get(node, made.id).findings == (one,)


def test_the_board_shows_what_is_due_first(client: TestClient, node: fake.FakeNode) -> None:
    opened(node, aware_at=fake.NOW - timedelta(hours=20))

    page = client.get("/incidents").text

    assert "Writes to the heating" in page
    assert "NIS2 early warning: 4 h left" in page
    assert "No incident is open" not in page


def test_an_empty_board_says_how_one_is_opened(client: TestClient) -> None:
    assert "No incident is open" in client.get("/incidents").text


def test_a_program_gets_the_same_with_clocks(client: TestClient, node: fake.FakeNode) -> None:
    made = opened(node, aware_at=fake.NOW - timedelta(hours=30))

    (row,) = client.get("/incidents.json").json()["rows"]
    one = client.get(f"/incidents/{made.id}.json").json()

    assert row["id"] == one["id"] == made.id
    assert [(c["duty"], c["state"]) for c in one["clocks"]] == [
        ("nis2-early-warning", "overdue"),
        ("nis2-notification", "runs"),
    ]


def test_a_person_changes_the_case_and_the_clock_starts(
    client: TestClient, node: fake.FakeNode
) -> None:
    made = opened(node)

    answer = post(
        client,
        "/incidents/change",
        act="change",
        id=made.id,
        revision=made.revision,
        title=made.title,
        stage="contained",
        cause="malicious",
        owner="i.vasko",
        services="District heating, Street charging",
        aware_at="2026-11-12T02:58",
        duties=["", "nis2-early-warning"],
    )

    assert answer.status_code == 303
    assert "Kept." in client.get(answer.headers["location"]).text
    kept = _get(node, made.id)
    assert (kept.stage, kept.cause, kept.owner) == ("contained", "malicious", "i.vasko")
    assert kept.services == ("District heating", "Street charging")
    assert kept.duties == ("nis2-early-warning",)
    page = client.get(f"/incidents/{made.id}").text
    assert "23 h 43 min <small>left</small>" in page


def test_awareness_lies_in_the_past(client: TestClient, node: fake.FakeNode) -> None:
    made = opened(node)

    answer = post(
        client, "/incidents/change", act="change", id=made.id, aware_at="2027-01-01T00:00"
    )

    assert answer.status_code == 400
    assert _get(node, made.id).aware_at is None


def test_who_saw_an_older_state_is_told(client: TestClient, node: fake.FakeNode) -> None:
    made = opened(node)
    node.cases.note(made.id, "meanwhile", "e.ngineer", fake.NOW)

    answer = post(
        client,
        "/incidents/change",
        act="change",
        id=made.id,
        revision=made.revision,
        stage="closed",
    )

    assert answer.status_code == 409
    assert _get(node, made.id).stage == "new"


def test_a_draft_is_written_submitted_by_a_person_and_kept(
    client: TestClient, node: fake.FakeNode
) -> None:
    made = opened(node, aware_at=fake.NOW - timedelta(hours=1))
    at = f"/incidents/{made.id}/draft/nis2-early-warning"
    assert "from the case" in client.get(at).text

    said = {"id": made.id, "duty": "nis2-early-warning", "back": at}
    post(client, "/incidents/change", act="answer", **said, **{"a.contact": "duty desk, 117"})
    assert "duty desk, 117" in client.get(at).text
    post(client, "/incidents/change", act="submit", **said, to="CSIRT", reference="C-42")

    (sent,) = _get(node, made.id).submissions
    assert (sent.by, sent.to, sent.reference) == ("i.vasko", "CSIRT", "C-42")
    assert "duty desk, 117" in sent.text
    page = client.get(at).text
    assert "Sent by" in page
    assert "It was submitted" not in page


def test_notes_tasks_and_their_end_stand_in_the_timeline(
    client: TestClient, node: fake.FakeNode
) -> None:
    made = opened(node)

    post(client, "/incidents/change", act="note", id=made.id, text="Control room called")
    post(client, "/incidents/change", act="task", id=made.id, text="Close the port")
    post(client, "/incidents/change", act="done", id=made.id, number=1)

    page = client.get(f"/incidents/{made.id}").text
    assert "Control room called" in page
    assert "done: Close the port" in page


@pytest.mark.parametrize("act", ["open", "note", "split", "answer", "submit", "merge", "x"])
def test_what_is_missing_is_said(act: str, client: TestClient, node: fake.FakeNode) -> None:
    made = opened(node)

    answer = post(client, "/incidents/change", act=act, id=made.id)

    assert answer.status_code == 400
    assert len(node.cases.all()) == 1


def test_an_unknown_incident_or_duty_is_not_found(client: TestClient, node: fake.FakeNode) -> None:
    made = opened(node)

    for path in ("/incidents/2026-9999", f"/incidents/{made.id}/draft/x", "/incidents/x.json"):
        assert client.get(path).status_code == 404


def test_a_form_of_another_session_is_refused(client: TestClient, node: fake.FakeNode) -> None:
    answer = client.post("/incidents/change", data={"csrf": "x", "act": "open", "title": "x"})

    assert answer.status_code == 403
    assert node.cases.all() == []


def test_hostile_text_is_text(client: TestClient, node: fake.FakeNode) -> None:
    made = opened(node, summary="<script>alert(1)</script>")
    node.cases.note(made.id, '"><img src=x onerror=alert(1)>', "i.vasko", fake.NOW)

    for path in ("/incidents", f"/incidents/{made.id}", f"/incidents/{made.id}/draft/cer-first"):
        page = client.get(path).text
        assert "<script>alert" not in page
        assert "<img" not in page


def _get(node: fake.FakeNode, id: str) -> Incident:
    found = node.cases.get(id)
    assert found is not None
    return found
