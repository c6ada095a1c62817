"""The page of the city's proposals at an operator: what it says, and what people decide there."""

from __future__ import annotations

import json
from datetime import timedelta

import msgspec
import pytest
from starlette.testclient import TestClient

from playbooks.flow import new_run
from siem.console.access import Access
from siem.console.app import make_app
from siem.store import proposals
from siem.store.proposals import Proposed, Said
from tests.playbooks.kit import deny, playbook, run_of
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of, sign_in
from tests.siem.console.fake import NOW, FakeNode

ID = "a1" * 16
HOSTILE = "<script>alert(1)</script>\"'${x}{{7*7}}"


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


def enter(node: FakeNode, name: str = "i.vasko") -> TestClient:
    client = TestClient(make_app(node, Access(node, fake.HASHER)), follow_redirects=False)
    assert sign_in(client, name).status_code == 303
    return client


def propose(node: FakeNode, **said: object) -> None:
    one = Proposed(
        id=ID, campaign="c-1", received=NOW, expires=NOW + timedelta(hours=24),
        said=Said(
            playbook="external-scanner", action="Block it for 1 h", reason="it scans us all",
            by="ciso", indicator="j:687:00ff", tlp="green", pap="green",
        ),
        changed=NOW,
    )  # fmt: skip

    with node.db.outgoing.desk() as desk:
        desk.propose(msgspec.structs.replace(one, **said))


def planned(node: FakeNode, asked_by: str = "city: ciso", run: str = "") -> str:
    """The engine has planned it, or found a run about the same; its run."""
    one = node.db.proposals.get(ID)
    assert one is not None
    run = run or one.own_run
    book = playbook(deny("block"))
    plan = run_of(book, "203.0.113.9", node.db.runs.now()).plan
    node.db.runs.start(new_run(run, book, plan, node.db.runs.now(), asked_by=asked_by))
    node.db.proposals.settle(one, "planned", "", NOW, run=run, about="f-1")
    return run


def post(client: TestClient, **form: str) -> int:
    csrf = csrf_of(client.get("/sharing/proposals").text)
    return client.post(
        "/sharing/proposals/change", data={"csrf": csrf, "id": ID, **form}
    ).status_code


def test_without_a_proposal_the_page_says_when_there_will_be_one(node: FakeNode) -> None:
    assert "The city has proposed nothing" in enter(node).get("/sharing/proposals").text


def test_a_proposal_stands_with_what_the_city_said_and_what_became_of_it(node: FakeNode) -> None:
    propose(node)
    run = planned(node)

    text = enter(node).get("/sharing/proposals").text

    for said in ("Block it for 1 h", "the city: ciso", "it scans us all", run, "j:687:00ff"):
        assert said in text
    assert "Planned, waits for a person" in text
    assert f'href="/approvals/{run}"' in text


def test_the_run_says_that_the_city_proposed_it(node: FakeNode) -> None:
    propose(node)
    run = planned(node)

    assert "Proposed by the city: Block it for 1 h" in enter(node).get(f"/runs/{run}").text


def test_programs_get_the_same(node: FakeNode) -> None:
    propose(node)

    (row,) = enter(node).get("/sharing/proposals.json").json()["rows"]

    assert (row["proposal"], row["state"], row["by"]) == (ID, "new", "ciso")


def test_a_page_that_has_not_all_says_so_and_programs_get_all(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siem.console.proposals.SHOWN", 2)
    for number in range(3):
        propose(node, id=f"{number:032x}")
    client = enter(node)

    page = client.get("/sharing/proposals").text

    assert page.count("<article") == 2
    assert "The newest 2 stand here" in page
    assert client.get("/sharing/proposals.json").json()["total"] == 3


def test_who_declines_gives_a_reason_of_the_list_and_the_note_stays_here(node: FakeNode) -> None:
    propose(node)
    run = planned(node)
    client = enter(node)

    assert post(client, act="decline", why="because of Anna") == 400
    assert post(client, act="decline", why="harm", note="the pump of Anna hangs on it") == 303

    (one,) = node.db.proposals.all()
    assert (one.state, one.why, one.person) == ("declined", "harm", "i.vasko")
    assert [entry.kind for entry in node.db.runs.history(run)] == ["cancel"]
    with node.db.outgoing.desk() as desk:
        answer = desk.next_answer()
    assert answer is not None
    assert json.dumps((answer.state, answer.why)) == '["declined", "harm"]'


@pytest.mark.parametrize("asked_by", ["", "city: another"])
def test_a_run_that_something_else_began_goes_on_when_the_proposal_is_declined(
    node: FakeNode, asked_by: str
) -> None:
    propose(node)
    planned(node, asked_by, run="r1")

    assert post(enter(node), act="decline", why="later") == 303
    assert node.db.runs.history("r1") == []


def test_what_was_declined_may_be_planned_all_the_same(node: FakeNode) -> None:
    propose(node, state="not possible", why="no finding")
    client = enter(node)

    assert post(client, act="accept") == 303

    (one,) = node.db.proposals.all()
    assert (one.state, one.accepted, one.person) == ("new", 1, "i.vasko")
    assert post(client, act="accept") == 409


def test_what_is_over_is_decided_no_more(node: FakeNode) -> None:
    propose(node, expires=NOW - timedelta(minutes=1))
    client = enter(node)

    assert post(client, act="decline", why="later") == 409
    assert post(client, act="burn") == 400


def test_what_the_city_said_is_shown_as_text(node: FakeNode) -> None:
    said = Said(playbook=HOSTILE, action=HOSTILE, reason=HOSTILE, by=HOSTILE, indicator=HOSTILE)
    propose(node, said=said, campaign=HOSTILE)
    run = planned(node, asked_by=f"{proposals.ASKED_BY}{HOSTILE}")
    client = enter(node)

    for path in ("/sharing/proposals", f"/runs/{run}"):
        text = client.get(path).text
        assert "<script>alert" not in text
        assert "49" not in text.partition("Proposed by")[2][:200]
