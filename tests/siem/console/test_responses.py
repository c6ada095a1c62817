"""Playbooks in the console: plan, start, approve, what is in force, undo, the kill switch."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from playbooks.calls import linked
from playbooks.model import Step
from siem.console.app import make_app
from siem.console.responses import ask_of
from siem.store.protocol import Person
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of, sign_in
from tests.siem.console.fake_response import SCANNER, VENDOR, library
from tests.siem.console.hostile import STRINGS

FINDING = fake.finding(0, fake._ROWS[0])["finding.id"]
OTHER = fake.finding(1, fake._ROWS[1])["finding.id"]


@pytest.fixture
def node() -> fake.FakeNode:
    made = fake.operator()
    made.response.shelf, made.response.is_on = library(), True
    return made


@pytest.fixture
def client(signed_in: Callable[..., TestClient]) -> TestClient:
    return signed_in()


def post(client: TestClient, path: str, **form: Any) -> Any:
    return client.post(path, data={"csrf": csrf_of(client.get("/keys").text), **form})


def enter(node: fake.FakeNode, name: str) -> TestClient:
    from siem.console.access import Access

    client = TestClient(make_app(node, Access(node, fake.HASHER)), follow_redirects=False)
    sign_in(client, name)
    return client


def yes(client: TestClient, run: Any, plan: str = "") -> Any:
    said = {"id": run.id, "plan": plan or run.plan.hash, "reason": "the vendor did not call"}
    return post(client, "/approvals/answer", answer="approve", **said)


# ---- Plan and start


def test_a_finding_names_the_playbooks_that_fit_and_leads_to_a_plan(client: TestClient) -> None:
    page = client.get(f"/findings/{FINDING}").text
    plan = client.get(f"/playbooks/{SCANNER}/plan?finding={FINDING}").text

    assert "Playbooks that fit" in page
    assert f"/playbooks/{SCANNER}/plan?finding={FINDING}" in page
    assert "nothing was sent" in plan
    assert "deny ipv4_net 198.51.100.73  to 07:14 UTC" in plan
    assert "12 safety checks with the facts they saw" in plan


def test_a_plan_is_started_by_who_saw_it_and_then_waits(
    client: TestClient, node: fake.FakeNode
) -> None:
    plan = node.response.plan(SCANNER, FINDING).hash

    answer = post(client, "/playbooks/start", playbook=SCANNER, finding=FINDING, plan=plan)

    (run,) = node.response.runs.all()
    assert answer.headers["location"] == f"/runs/{run.id}?done=started"
    assert run.asked_by == "i.vasko"


def test_a_plan_that_is_not_the_one_that_was_seen_starts_nothing(
    client: TestClient, node: fake.FakeNode
) -> None:
    answer = post(client, "/playbooks/start", playbook=SCANNER, finding=FINDING, plan="0" * 64)

    assert answer.status_code == 409
    assert node.response.runs.all() == []


def test_while_responses_are_off_a_page_says_so_and_nothing_starts(
    client: TestClient, node: fake.FakeNode
) -> None:
    node.response.is_on = False
    plan = node.response.plan(SCANNER, FINDING).hash

    page = client.get(f"/playbooks/{SCANNER}/plan?finding={FINDING}").text
    answer = post(client, "/playbooks/start", playbook=SCANNER, finding=FINDING, plan=plan)

    assert "Responses are off" in page
    assert "Start, and ask for approval" not in page
    assert answer.status_code == 409
    assert node.response.runs.all() == []


# ---- Approvals


def test_an_approval_says_what_why_on_what_for_how_long_and_how_it_is_undone(
    node: fake.FakeNode,
) -> None:
    node.response.waiting(VENDOR, FINDING, "i.vasko", "run-a3")
    page = enter(node, "t.lindqvar").get("/approvals/run-a3").text

    assert "Close vendor remote access into cz-north for 4 h?" in page
    assert "198.51.100.73 wrote register 2 of RTU-7" in page
    assert "from the last yes on" in page
    assert "A lease" in page
    assert "eng-vendor-1" in page
    assert "11 of 12 allow, again before the effect" in page
    assert "expires in 11 min" in page
    assert page.index('value="refuse"') < page.index('value="approve"')


def test_a_yes_is_kept_with_role_reason_and_the_hash_that_was_seen(node: fake.FakeNode) -> None:
    run = node.response.waiting(SCANNER, FINDING, "i.vasko")

    answer = yes(enter(node, "t.lindqvar"), run)

    assert answer.headers["location"] == f"/runs/{run.id}?done=approved"
    (kept,) = node.response.get(run.id).approvals
    assert (kept.by, kept.role, kept.plan_hash) == ("t.lindqvar", "approver", run.plan.hash)
    said = node.response.runs.history(run.id)[-1]
    assert (said.kind, said.by) == ("approved", "t.lindqvar")
    assert "the vendor did not call" in said.what


def test_nobody_approves_their_own_request(client: TestClient, node: fake.FakeNode) -> None:
    run = node.response.waiting(SCANNER, FINDING, "i.vasko")

    page = client.get(f"/approvals/{run.id}").text
    answer = yes(client, run)

    assert "You asked for it" in page
    assert 'value="approve"' not in page
    assert answer.status_code == 409
    assert node.response.get(run.id).approvals == ()


def test_a3_needs_two_people_of_different_roles(node: fake.FakeNode) -> None:
    for name, role in (("n.okerren", "analyst"), ("s.oc", "analyst")):
        node.accounts.add(Person(name, (role,), fake.HASHER.hash(fake.PASSWORD)))
    run = node.response.waiting(VENDOR, FINDING, "i.vasko")

    first = yes(enter(node, "n.okerren"), run)
    same_role = yes(enter(node, "s.oc"), run)
    page = enter(node, "t.lindqvar").get(f"/approvals/{run.id}").text
    second = yes(enter(node, "t.lindqvar"), run)

    assert (first.status_code, same_role.status_code, second.status_code) == (303, 409, 303)
    assert "Approval 2 of 2" in page
    assert "yes: n.okerren, SOC" in page
    assert {one.role for one in node.response.get(run.id).approvals} == {"analyst", "approver"}


def test_who_has_both_roles_says_yes_in_the_one_that_is_missing(node: fake.FakeNode) -> None:
    run = node.response.waiting(VENDOR, FINDING, "i.vasko")
    both = Person("b.oth", ("analyst", "approver"), "")
    node.response.runs.approve(run.id, "t.lindqvar", "approver", run.plan.hash)

    ask = ask_of(node.response.get(run.id))

    assert ask is not None
    assert (ask.role_of(both), ask.why_not(both)) == ("analyst", "")


def test_a_yes_to_a_plan_that_the_world_has_changed_is_void(node: fake.FakeNode) -> None:
    run = node.response.waiting(SCANNER, FINDING, "i.vasko")

    answer = yes(enter(node, "t.lindqvar"), run, plan="f" * 64)

    assert answer.status_code == 409
    assert "not the one that you saw" in answer.text
    assert node.response.get(run.id).approvals == ()


@pytest.mark.parametrize("said", [{"answer": "refuse"}, {"answer": "maybe", "reason": "x"}])
def test_an_answer_needs_a_reason_and_is_yes_or_no(
    said: dict[str, str], node: fake.FakeNode
) -> None:
    run = node.response.waiting(SCANNER, FINDING, "i.vasko")

    answer = post(enter(node, "t.lindqvar"), "/approvals/answer", id=run.id, **said)

    assert answer.status_code == 400
    assert node.response.get(run.id).orders == ()


def test_a_no_cancels_the_run_with_its_reason(node: fake.FakeNode) -> None:
    run = node.response.waiting(SCANNER, FINDING, "i.vasko")

    post(enter(node, "t.lindqvar"), "/approvals/answer", id=run.id, answer="refuse", reason="ours")

    (order,) = node.response.get(run.id).orders
    assert (order.kind, order.by, order.what) == ("cancel", "t.lindqvar", "refused: ours")


def test_a_program_approves_through_the_same_door(node: fake.FakeNode) -> None:
    run = node.response.waiting(SCANNER, FINDING)
    node.give_token("duty", "t.lindqvar", "read", "respond")
    client = TestClient(make_app(node), headers={"authorization": "Bearer duty"})

    (row,) = client.get("/approvals.json").json()["rows"]
    said = {"id": row["run"], "plan": row["plan"], "answer": "approve", "reason": "checked"}
    answer = client.post("/approvals/answer.json", json=said)
    again = client.post("/approvals/answer.json", json=said)

    assert answer.json() == {"run": run.id, "done": "approved"}
    assert again.status_code == 409
    assert len(node.response.get(run.id).approvals) == 1


def test_what_waits_stands_beside_the_word_and_an_empty_list_says_so(node: fake.FakeNode) -> None:
    client = enter(node, "t.lindqvar")
    assert client.get("/").headers["location"] == "/approvals"
    assert "Nothing waits for a yes" in client.get("/approvals").text

    node.response.waiting(SCANNER, FINDING)

    assert '1<span class="sr"> waiting' in client.get("/approvals").text


def test_a_question_that_has_its_yes_is_asked_no_more(node: fake.FakeNode) -> None:
    approver = enter(node, "t.lindqvar")
    one = node.response.waiting(SCANNER, FINDING, "i.vasko")
    two = node.response.waiting(VENDOR, OTHER, "i.vasko")

    for run in (one, two):
        yes(approver, run)

    asked = approver.get("/approvals.json").json()["rows"]
    assert [row["run"] for row in asked] == [two.id], "the second person is still to say yes"
    assert "It waits for a yes" not in approver.get(f"/runs/{one.id}").text
    assert "It waits for a yes" in approver.get(f"/runs/{two.id}").text


# ---- In force, undo


def test_in_force_says_what_since_when_until_when_by_whom_and_why(
    client: TestClient, node: fake.FakeNode
) -> None:
    run = node.response.applied(SCANNER, FINDING, "i.vasko")
    node.response.runs.approve(run.id, "t.lindqvar", "approver", run.plan.hash)

    page = client.get("/in-force").text
    (row,) = client.get("/in-force.json").json()["rows"]
    (cells,) = csv.DictReader(io.StringIO(client.get("/in-force.csv").text))

    assert "4 h left" in page
    assert "i.vasko; yes: t.lindqvar" in page
    assert "Modbus write, host is no writer" in page
    assert (row["what"], row["target"]) == ("deny", "ipv4_net 198.51.100.73")
    assert (row["asked_by"], row["approved_by"]) == ("i.vasko", ["t.lindqvar"])
    assert cells["run"] == run.id


def test_undo_needs_no_yes_and_is_an_order_to_the_run(node: fake.FakeNode) -> None:
    run = node.response.applied(SCANNER, FINDING, "i.vasko")
    (effect,) = run.effects

    answer = post(
        enter(node, "e.ngineer"),
        "/runs/change",
        act="undo",
        id=run.id,
        about=effect.key,
        back="/in-force",
    )

    assert answer.headers["location"] == "/in-force?done=undo"
    (order,) = node.response.get(run.id).orders
    assert (order.kind, order.by, order.about) == ("undo", "e.ngineer", effect.key)


def test_a_run_shows_plan_checks_journal_and_the_time_left(
    client: TestClient, node: fake.FakeNode
) -> None:
    run = node.response.applied(SCANNER, FINDING, "i.vasko")
    node.clock += timedelta(hours=1)

    page = client.get(f"/runs/{run.id}").text

    assert "<b>3 h left</b>" in page
    assert "deny ipv4_net 198.51.100.73" in page
    assert "Two independent analytics agree." in page
    assert "Cancel and undo" in page
    assert client.get(f"/runs/{run.id}.json").json()["plan"]["finding"] == FINDING


def test_runs_are_listed_the_newest_first_a_page_at_a_time(
    client: TestClient, node: fake.FakeNode
) -> None:
    assert "No playbook has run." in client.get("/runs").text
    for finding, name in ((FINDING, "first"), (OTHER, "second"), (OTHER, "third")):
        node.response.applied(SCANNER, finding, "i.vasko", name)
        node.clock += timedelta(minutes=1)

    newest = client.get("/runs.json?limit=1").json()
    oldest = client.get("/runs.json?limit=1&offset=2").json()

    assert [one["run"] for one in (*newest["rows"], *oldest["rows"])] == ["third", "first"]
    assert (newest["total"], oldest["total"]) == (3, 3)
    assert oldest["rows"][0]["in_force"] == 1
    assert oldest["rows"][0]["targets"] == ["198.51.100.73"]
    assert "1 in force" in client.get("/runs").text
    assert "Next 1" in client.get("/runs?limit=1").text
    assert "Next 1" in client.get("/runs?limit=1&offset=1").text
    assert "Next" not in client.get("/runs?limit=1&offset=2").text


@pytest.mark.parametrize("act", ["cancel", "nothing"])
def test_cancelling_needs_a_reason_and_an_unknown_act_is_said(
    act: str, client: TestClient, node: fake.FakeNode
) -> None:
    run = node.response.applied(SCANNER, FINDING)

    assert post(client, "/runs/change", act=act, id=run.id).status_code == 400
    assert node.response.get(run.id).orders == ()


# ---- The kill switch, stages


def test_stop_all_stands_on_every_page_of_this_part_until_somebody_releases_it(
    client: TestClient, node: fake.FakeNode
) -> None:
    assert "Playbooks may act" in client.get("/playbooks").text
    post(client, "/playbooks/stop", act="stop", reason="wrong target")

    run = node.response.applied(SCANNER, FINDING)
    for path in (
        "/playbooks",
        f"/playbooks/{SCANNER}",
        "/approvals",
        "/runs",
        "/in-force",
        f"/runs/{run.id}",
    ):
        page = client.get(path).text
        assert "Everything is stopped</b> by i.vasko" in page, path
        assert "wrong target" in page
    assert node.response.runs.stopped() == ["global"]
    answer = post(enter(node, "t.lindqvar"), "/playbooks/stop", act="release", reason="mended")

    assert answer.headers["location"] == "/playbooks?done=released"
    assert node.response.runs.stopped() == []


def test_one_playbook_or_actuator_is_stopped_alone(client: TestClient, node: fake.FakeNode) -> None:
    post(client, "/playbooks/stop", act="stop", name="actuator:nftables", reason="maintenance")

    assert node.response.runs.stopped() == ["actuator:nftables"]
    assert "Stopped: Actuator: nftables" in client.get("/approvals").text


@pytest.mark.parametrize(
    "said",
    [{"act": "stop"}, {"act": "x", "reason": "x"}, {"act": "stop", "name": "x", "reason": "x"}],
)
def test_stopping_needs_a_reason_and_a_name_that_is_known(
    said: dict[str, str], client: TestClient, node: fake.FakeNode
) -> None:
    assert post(client, "/playbooks/stop", **said).status_code == 400
    assert node.response.runs.stopped() == []


def test_a_file_that_stops_everything_is_named(
    client: TestClient, node: fake.FakeNode, tmp_path: Any
) -> None:
    node.response.runs.stop_file = tmp_path / "STOP"
    (tmp_path / "STOP").touch()

    page = client.get("/approvals").text

    assert "Everything is stopped</b> by the file" in page
    assert str(tmp_path / "STOP") in page


def test_an_engineer_changes_a_stage_with_a_reason(node: fake.FakeNode) -> None:
    client = enter(node, "e.ngineer")

    answer = post(client, "/playbooks/stage", playbook=SCANNER, stage="shadow", reason="new site")

    assert answer.headers["location"] == f"/playbooks/{SCANNER}?done=stage"
    assert node.response.playbooks()[0].stage == "shadow"
    assert post(client, "/playbooks/stage", playbook=SCANNER, stage="live").status_code == 400
    assert (
        post(client, "/playbooks/stage", playbook=SCANNER, stage="x", reason="x").status_code == 400
    )


def test_the_page_of_a_playbook_says_how_often_it_ran_in_shadow(client: TestClient) -> None:
    page = client.get(f"/playbooks/{SCANNER}").text
    said = client.get(f"/playbooks/{SCANNER}.json").json()

    assert "<b>0 of 20</b> runs in shadow as it is now" in page
    assert said["shadow_runs"] == 0


def test_a_step_that_calls_leads_to_what_it_calls(client: TestClient, node: fake.FakeNode) -> None:
    scanner, vendor = library()
    step = Step(id="call", name="Do as for a scanner", type="playbook-action",
                playbook=scanner.id, on_completion="end")  # fmt: skip
    steps = {**vendor.steps, step.id: step}
    caller = msgspec.structs.replace(vendor, steps=steps, start=step.id)
    whole, _ = linked({one.id: one for one in (scanner, caller)})
    node.response.shelf = list(whole.values())

    page = client.get(f"/playbooks/{VENDOR}").text

    assert f'calls <a href="/playbooks/{SCANNER}">External scanner at the perimeter</a>' in page
    assert "first within it: Do as for a scanner/Start" in page
    assert "Do as for a scanner/Block the scanner" in page


def test_runs_in_shadow_are_compared_with_what_people_said_of_the_findings(
    client: TestClient, node: fake.FakeNode
) -> None:
    node.response.set_stage(SCANNER, "shadow", "eve", "new")
    for number, about in enumerate((FINDING, OTHER)):
        node.response.begun(SCANNER, about, id=f"run-{number}")
    node.findings.get(OTHER)["finding.verdict"] = "false_positive"

    page = client.get(f"/playbooks/{SCANNER}").text

    assert "<dd>nobody has judged: 1</dd>" in page
    assert "<dd>people judged wrong: 1</dd>" in page


def test_an_open_breaker_is_seen_and_closed_by_a_person_with_a_reason(
    client: TestClient, node: fake.FakeNode
) -> None:
    runs = node.response.runs
    for number in range(2):
        run = node.response.applied(SCANNER, FINDING, "ada", f"run-{number}")
        runs.order(run.id, "undo", "ada", "the partner called")
    said = {"actuator": "nftables", "reason": "the list is mended"}

    for path in ("/playbooks", f"/playbooks/{SCANNER}"):
        page = client.get(path).text
        assert "its circuit breaker is open, nothing is given to it" in page
        assert "0 failures and 2 rollbacks since it was last closed" in page
        assert "Close the breaker" in page
    assert post(client, "/playbooks/breaker", actuator="nftables").status_code == 400
    assert post(client, "/playbooks/breaker", **said | {"actuator": "x"}).status_code == 400
    assert len(runs.rollbacks("nftables")) == 2

    answer = post(client, "/playbooks/breaker", **said)

    assert answer.headers["location"] == "/playbooks?done=closed"
    assert runs.rollbacks("nftables") == []
    assert "circuit breaker is open" not in client.get("/playbooks").text
    assert "its circuit breaker is closed" in client.get(f"/playbooks/{SCANNER}").text


def test_the_library_shows_stage_trigger_and_runs(client: TestClient, node: fake.FakeNode) -> None:
    node.response.waiting(SCANNER, FINDING)
    node.response.applied(VENDOR, OTHER)

    page = client.get("/playbooks").text
    rows = client.get("/playbooks.json").json()["rows"]

    assert "In progress" in page
    assert [(one["name"], one["class"], one["open"]) for one in rows] == [
        ("External scanner at the perimeter", "A1", 1),
        ("Stranger writes to a controller", "A3", 1),
    ]
    assert "if all else fails" in client.get(f"/playbooks/{VENDOR}").text


def test_what_is_not_there_is_not_found(client: TestClient) -> None:
    for path in ("/playbooks/x", "/runs/x", "/approvals/x", "/runs/x.json", "/playbooks/x/plan"):
        assert client.get(path).status_code == 404


# ---- Strangers' text


def test_hostile_text_is_text_on_every_page(client: TestClient, node: fake.FakeNode) -> None:
    for number, said in enumerate(STRINGS):
        document = {**node.findings.documents[0], "finding.id": f"h{number}"}
        document |= {"finding.title": said, "finding.description": said, "source.ip": said}
        node.findings.documents.append(document)
        node.response.waiting(SCANNER, f"h{number}", "i.vasko", f"run-h{number}")
    shelf = [msgspec.structs.replace(one, description='"><img src=x>') for one in library()]
    node.response.shelf = shelf
    paths = [
        f"/{part}/run-h{number}" for number in range(len(STRINGS)) for part in ("approvals", "runs")
    ]

    for path in (*paths, "/approvals", "/playbooks", f"/playbooks/{SCANNER}"):
        page = client.get(path).text
        assert "<img" not in page, path
        assert "<script>" not in page, path


def test_a_step_of_one_word_is_asked_for_by_what_it_does(node: fake.FakeNode) -> None:
    run = node.response.waiting(SCANNER, FINDING, "i.vasko")
    (row,) = (one for one in run.steps if one.planned)
    assert row.planned is not None
    terse = msgspec.structs.replace(row.planned, name="block")
    steps = (msgspec.structs.replace(row, planned=terse),)

    ask = ask_of(msgspec.structs.replace(run, steps=steps))

    assert ask is not None
    assert ask.title == "Deny 198.51.100.73 for 4 h?"
