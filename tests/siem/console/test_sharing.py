"""The pages of sharing: preview, what waits for a yes, the ledger, the inbox; who may decide."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from cityward import ConfigError
from cityward.event import Event, LogSource, Record
from cityward.finding import Analytic, Finding, Severity
from siem.sharing.compiler import BASELINE, compile_policy
from siem.sharing.external import Plan
from siem.sharing.outbox import Outbox
from siem.sharing.readers import Read
from siem.sharing.tokens import Hmac, Tokens
from siem.store.outgoing import Told
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of
from tests.siem.sharing.standin import FakeHub, key_from

EXAMPLE = (BASELINE.parent / "example.yml").read_bytes()
SAW: tuple[tuple[str, Severity, dict[str, Any], tuple[str, ...]], ...] = (
    (
        "SSH passwords guessed from one address",
        "high",
        {"source.ip": "203.0.113.7", "destination.ip": "10.7.4.20", "destination.port": 22,
         "cw.asset.asset_id": "jump-1", "cw.asset.type": "jump_host", "network.protocol": "ssh",
         "user.name": "m.rossi", "event.action": "login"},
        (),
    ),
    (
        "Modbus write, host is no writer",
        "critical",
        {"source.ip": "10.7.9.9", "cw.source.zone": "field-3", "destination.ip": "10.7.4.31",
         "ot.operation": "write",
         "cw.asset.asset_id": "rtu-7", "cw.asset.type": "rtu", "cw.asset.zone_type": "control"},
        (),
    ),
    (
        "Access at night with a badge of day staff",
        "medium",
        {"user.name": "b.keller", "phys.subject": "badge 4711", "phys.point": "door-3"},
        ("insider",),
    ),
    ("New device in a zone", "low", {"source.ip": "10.7.2.2"}, ()),
)  # fmt: skip
"""Findings: title, severity, fields, tags."""


def finding(number: int) -> Finding:
    title, severity, fields, tags = SAW[number % len(SAW)]
    at = fake.NOW - timedelta(minutes=7 * number + 2)
    record = Record(b"", "auth", number, at)
    event = Event(at, LogSource(service="sshd"), {**fields, "cw.domain": ["cyber"]}, record)
    return Finding(
        analytic=Analytic(
            id=f"r-{number}", name=title, kind="rule", version="1", level=severity, tags=tags,
            techniques=("T1110.001",),
        ),
        title=title,
        description=f"{fields.get('source.ip', 'somebody')} did it 8 times within 2 min",
        severity=severity,
        group=(("number", str(number)),),
        first_seen=at - timedelta(minutes=1),
        last_seen=at,
        events=(event,),
        fields=event.fields,
        tags=tags,
    )  # fmt: skip


def with_sharing(node: fake.FakeNode, *, sent: bool = True) -> fake.FakeNode:
    """A node with a policy, of which some was sent, some waits, and to whom the city spoke."""
    plan = Plan(["10.0.0.0/8"])
    text = EXAMPLE.replace(b"op-local", b"op-energy").replace(b"op-example", b"op-energy")
    tokens = Tokens(b"l" * 32, Hmac(b"r" * 32))
    node.sharing.said = compile_policy(text, "policy.yml", plan=plan, tokens=tokens)
    node.findings = node.db  # type: ignore[assignment]
    key = key_from("node")
    box = Outbox(node.db.outgoing, "op-energy", key, node.sharing.policy, clock=node.now)
    node.db.keep([finding(number) for number in range(9)], 1, now=node.now())
    hub = FakeHub(key)
    while box.offer():
        pass
    while sent and (signed := box.next()) is not None:
        box.receipted(hub.take(signed), hub.public)
    campaign = {
        "finding.title": "One attacker at 2 operators",
        "finding.description": "The same address was seen at op-energy and op-metro within 24 h.",
        "finding.severity": "high",
        "finding.mode": "exercise",
        "cw.campaign.operators": ["op-energy", "op-metro"],
        "cw.campaign.join": "token",
        "threat.technique.id": ["T1110.001"],
    }
    said = hub.says("share", campaign, share_id="5f0c0000-0000-5000-8000-000000000001")
    with node.db.outgoing.desk() as desk:
        desk.tell(Told(1, node.now(), "share", "5f0c", said.data, said.signature))
    return node


def waiting(node: fake.FakeNode) -> str:
    """The share that waits for a yes."""
    [one] = node.db.outgoing.waiting("approval", 1)
    return one.share_id


def test_the_preview_shows_both_columns_per_audience(
    node: fake.FakeNode, signed_in: Callable[..., TestClient]
) -> None:
    client = signed_in()
    with_sharing(node)

    page = client.get("/sharing").text

    assert "Kept here" in page
    assert "Leaves" in page
    assert "tokens that join at other operators" in page
    assert "m.rossi" in page
    peers = client.get("/sharing.json?audience=peers").json()
    assert {row["rule"] for row in peers["rows"]} == {"external-attackers"}
    assert "m.rossi" not in str([row["leaves"] for row in peers["rows"]])
    assert "would be told nothing" in client.get("/sharing?audience=police").text


def test_without_a_policy_the_page_says_that_nothing_leaves(
    node: fake.FakeNode, signed_in: Callable[..., TestClient]
) -> None:
    page = signed_in().get("/sharing").text

    assert "There is no policy, so nothing leaves" in page


def test_a_refused_policy_is_shown_with_its_reason(
    node: fake.FakeNode, signed_in: Callable[..., TestClient]
) -> None:
    node.sharing.fault = ConfigError(
        "user.name can identify a person", "p.yml:7, x", "Write local."
    )

    page = signed_in().get("/sharing").text

    assert "so nothing leaves" in page
    assert "p.yml:7, x" in page


def test_two_persons_let_a_share_leave_each_with_a_reason(
    node: fake.FakeNode, signed_in: Callable[..., TestClient]
) -> None:
    client = signed_in()
    share = waiting(with_sharing(node))
    page = client.get("/sharing/waiting").text
    token = csrf_of(page)
    assert "0 of 2 said yes" in page
    assert "b.keller" not in page

    told = {"csrf": token, "act": "approve", "share": share, "back": "/sharing/waiting"}
    assert client.post("/sharing/change", data=told).status_code == 400
    done = client.post("/sharing/change", data={**told, "note": "it is grave"})

    assert done.headers["location"] == "/sharing/waiting?done=approve&count=1"
    assert node.db.outgoing.approvers(share, node.sharing.said.hash, "staff-accounts") == (
        "i.vasko",
    )
    assert (("i.vasko"), "sharing: reason", f"{share}: it is grave") in node.said


def test_a_person_withdraws_what_a_rule_let_out(
    node: fake.FakeNode, signed_in: Callable[..., TestClient]
) -> None:
    client = signed_in()
    with_sharing(node)
    page = client.get("/sharing/ledger").text
    assert "Receipted" in page
    token = csrf_of(page)

    told = {"csrf": token, "act": "withdraw", "rule": "grave", "reason": "error", "note": "wrong"}
    assert client.post("/sharing/change", data={**told, "note": ""}).status_code == 400
    assert client.post("/sharing/change", data={**told, "rule": ""}).status_code == 400
    assert client.post("/sharing/change", data={**told, "reason": "mood"}).status_code == 400
    assert client.post("/sharing/change", data={**told, "csrf": "x"}).status_code == 403
    done = client.post("/sharing/change", data={**told, "back": "/sharing/ledger"})

    assert done.headers["location"] == "/sharing/ledger?done=withdraw&count=2"
    assert node.db.outgoing.tally().withdrawn == 2
    assert "2 shares taken back" in client.get(done.headers["location"]).text


def test_the_ledger_is_searched_and_verified(
    node: fake.FakeNode, signed_in: Callable[..., TestClient]
) -> None:
    client = signed_in()
    with_sharing(node)
    node.sharing.proved = msgspec.structs.replace(node.sharing.proved, fault="record 3 was changed")

    rows = client.get("/sharing/ledger.json?q=external-attackers").json()["rows"]

    assert {row["rule"] for row in rows} == {"external-attackers"}
    assert "record 3 was changed" in client.get("/sharing/ledger?verify=1").text


def test_what_the_city_said_stands_in_the_inbox(
    node: fake.FakeNode, signed_in: Callable[..., TestClient]
) -> None:
    client = signed_in()
    with_sharing(node)

    page = client.get("/sharing/inbox").text

    assert "One attacker at 2 operators" in page
    assert "joined by <b>token</b>" in page
    assert client.get("/sharing/inbox.json").json()["rows"][0]["join"] == "token"


@pytest.mark.parametrize("name", ["e.ngineer", "a.admin"])
def test_sharing_is_for_analysts(
    name: str, node: fake.FakeNode, signed_in: Callable[..., TestClient]
) -> None:
    client = signed_in(name)

    assert client.get("/sharing").status_code == 403
    assert client.post("/sharing/change", data={"csrf": "x"}).status_code == 403


def test_who_read_ours_is_asked_of_the_hub_on_demand(
    node: fake.FakeNode, signed_in: Callable[..., TestClient]
) -> None:
    client = signed_in()
    node.sharing.reads = [
        Read(day="2026-11-12", person="c.iso", reads=3, shares=21, first=fake.NOW, last=fake.NOW)
    ]

    assert "c.iso" not in client.get("/sharing/inbox").text
    assert "c.iso" in client.get("/sharing/inbox?readers=1").text
    node.sharing.fault = ConfigError("this node has joined no hub yet", "hub.json", "Join one.")
    assert "joined no hub yet" in client.get("/sharing/inbox?readers=1").text
