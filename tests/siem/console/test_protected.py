"""The page of protected samples: what people see before, let out, take back and set aside."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from starlette.testclient import TestClient

from siem.console.access import Access
from siem.console.app import make_app
from siem.console.protected import GLYPHS
from siem.sharing.compiler import compile_policy
from siem.sharing.external import Plan
from siem.sharing.policy import EXAMPLE, Policy, Samples
from siem.sharing.samples import RELEASED
from siem.sharing.tokens import Tokens
from siem.store.protocol import Change, Range, RuleState, Switch
from siem.store.samples import Foreign, State
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of, sign_in
from tests.siem.console.fake import NOW, FakeNode
from tests.siem.test_tuning import RULE, RULE_ID, attempts, right

FOREIGN = "5f1c9a02-0000-4000-8000-000000000001"
PATH = f"/rules/{RULE_ID}/protected"
HOSTILE = "<script>alert(1)</script>"


def policy(**samples: Any) -> Policy:
    made = compile_policy(
        EXAMPLE.read_bytes(), "p.yml", plan=Plan(["10.0.0.0/8"]), tokens=Tokens(b"k" * 32)
    )
    return msgspec.structs.replace(made, samples=Samples(**{"release": "person", **samples}))


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    """A node with a finding that was right, whose policy lets samples out."""
    from detectors.sigma.engine import Engine
    from detectors.sigma.load import load_folder

    node = FakeNode()
    node.sharing.said = policy()
    (tmp_path / "wrong.yml").write_text(RULE)
    engine = Engine(load_folder(tmp_path))
    found = engine.detect(attempts("198.51.100.7", user=HOSTILE))
    node.db.keep(list(found), checkpoint=1, now=NOW)
    right(node.db, f"rule.id:{RULE_ID}")
    node.rule_states = [RuleState(id=RULE_ID, title="Wrong password", level="medium", state="on")]
    monkeypatch.setattr(node.findings, "get", node.db.get)
    return node


def enter(node: FakeNode, name: str = "i.vasko") -> TestClient:
    client = TestClient(make_app(node, Access(node, fake.HASHER)), follow_redirects=False)
    assert sign_in(client, name).status_code == 303
    return client


def finding(node: FakeNode) -> str:
    return node.db.rulebook.protected()[0].finding


def post(client: TestClient, way: str, **form: str) -> int:
    csrf = csrf_of(client.get("/keys").text)
    return client.post(f"{PATH}/{way}", data={"csrf": csrf, **form}).status_code


def came(node: FakeNode) -> None:
    foreign = Foreign(
        id=FOREIGN, rule=RULE_ID, operator="operator-1", received=NOW,
        expires=NOW + timedelta(days=9),
        events=({"@timestamp": NOW, "event.action": "ssh_login", "event.outcome": "failure",
                 "cw.logsource.product": "linux", "cw.logsource.service": "sshd"},),
    )  # fmt: skip
    with node.db.outgoing.desk() as desk:
        assert desk.samples.take(foreign) == ""


def test_each_field_stands_beside_what_would_leave_of_it(node: FakeNode) -> None:
    page = enter(node).get(f"{PATH}?finding={finding(node)}").text

    assert "198.51.100.7" in page
    assert "<b>203.0.113.1</b>" in page.replace('<span class="brk">', "").replace(
        "</span></b>", "</b>"
    )
    assert "sample-user-1" in page
    assert "under a name that stands for us" in page
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page


def test_who_shares_lets_it_out_with_a_reason_and_takes_it_back(node: FakeNode) -> None:
    client, id = enter(node), finding(node)
    seen = node.releases.offer(id).seen
    assert post(client, "share", act="release", id=id, seen=seen, reason=" ") == 400
    assert post(client, "share", act="release", id=id, seen="another", reason="why") == 409

    assert post(client, "share", act="release", id=id, seen=seen, reason="it was real") == 303

    (out,) = node.db.samples.releases()
    assert (out.state, out.people, out.reason) == ("due", ("i.vasko",), "it was real")
    page = client.get(PATH).text
    assert "Waits to be sent" in page
    assert "it was real" in page
    assert post(client, "share", act="withdraw", id=out.id, reason="too early") == 303
    assert post(client, "share", act="withdraw", id=out.id, reason="too early") == 409
    assert "Taken back" in client.get(PATH).text
    actions = {one.action for one in node.trail("sample", Range())[0]}
    assert actions == {"sample: released", "sample: withdrawn"}


def test_a_policy_that_forbids_it_is_said_and_there_is_no_button(node: FakeNode) -> None:
    node.sharing.said = policy(release="none")
    client, id = enter(node), finding(node)

    page = client.get(f"{PATH}?finding={id}").text

    assert "the sharing policy lets no sample out" in page
    assert 'value="release"' not in page
    assert post(client, "share", act="release", id=id, seen="", reason="why") == 409


def test_a_second_person_says_yes_where_the_policy_wants_two(node: FakeNode) -> None:
    node.accounts.add(msgspec.structs.replace(node.accounts.person("i.vasko"), name="s.econd"))
    id = finding(node)
    first, second = enter(node), enter(node, "s.econd")
    seen = node.releases.offer(id).seen
    assert post(first, "share", act="release", id=id, seen=seen, reason="it was real") == 303
    (out,) = node.db.samples.releases()
    with node.db.outgoing.desk() as desk:
        desk.samples.hold(out.id, "approval", NOW)  # as the outbox does

    assert 'value="approve"' not in first.get(PATH).text
    assert post(first, "share", act="approve", id=out.id) == 409
    assert 'value="approve"' in second.get(PATH).text
    assert f"{PATH}?finding={id}#offer" in second.get("/sharing/waiting").text
    said = node.sharing.said
    node.sharing.said = policy(release="two_person", drop=frozenset({"source.port"}))
    assert post(second, "share", act="approve", id=out.id) == 409
    node.sharing.said = said
    assert post(second, "share", act="approve", id=out.id) == 303

    assert node.db.samples.releases()[0].people == ("i.vasko", "s.econd")


def test_what_waits_for_a_newer_hub_says_so_and_can_be_taken_back(node: FakeNode) -> None:
    client, id = enter(node), finding(node)
    seen = node.releases.offer(id).seen
    assert post(client, "share", act="release", id=id, seen=seen, reason="it was real") == 303
    (out,) = node.db.samples.releases()
    with node.db.outgoing.desk() as desk:
        desk.samples.hold(out.id, "older", NOW)  # as the outbox does

    page = client.get(PATH).text

    assert "Waits until the hub understands samples" in page
    assert 'value="withdraw"' in page
    assert "What would leave</a>" not in page
    assert RELEASED.keys() == GLYPHS.keys() == set(get_args(State))
    assert post(client, "share", act="withdraw", id=out.id, reason="we were wrong") == 303


def test_who_tunes_sets_a_sample_of_another_operator_aside_and_lets_it_count_again(
    node: FakeNode,
) -> None:
    came(node)
    client = enter(node, "e.ngineer")
    page = client.get(f"{PATH}?sample={FOREIGN}").text
    assert "of another operator" in page
    assert "operator-1" in page
    assert "ssh_login" in page
    assert post(client, "judge", act="aside", id=FOREIGN, reason="") == 400

    assert post(client, "judge", act="aside", id=FOREIGN, reason="our historian") == 303
    assert post(client, "judge", act="aside", id=FOREIGN, reason="our historian") == 409
    page = client.get(PATH).text
    assert "Set aside" in page
    assert "our historian" in page
    assert post(client, "judge", act="back", id=FOREIGN, reason="it was not") == 303

    assert not node.db.samples.foreign()[0].is_aside


def test_who_tunes_sets_all_of_another_operator_aside(node: FakeNode) -> None:
    came(node)
    client = enter(node, "e.ngineer")
    assert "Set all of this operator aside" in client.get(PATH).text

    assert post(client, "judge", act="aside-all", id=FOREIGN, reason="they test with us") == 303
    assert post(client, "judge", act="aside-all", id=FOREIGN, reason="they test with us") == 409
    page = client.get(PATH).text
    assert "Set aside, with all of this operator" in page
    assert "Let all of this operator count again" in page
    assert node.db.samples.operators_aside() == ["operator-1"]
    assert post(client, "judge", act="back-all", id=FOREIGN, reason="no more") == 303

    assert not node.db.samples.foreign()[0].is_aside
    assert node.db.samples.operators_aside() == []
    assert post(client, "judge", act="all", id=FOREIGN, reason="why") == 400
    assert post(client, "judge", act="aside-all", id="nothing", reason="why") == 409


def test_a_program_that_may_tune_sets_it_aside_and_none_lets_anything_out(node: FakeNode) -> None:
    came(node)
    node.give_token("tuner", "e.ngineer", "tune")
    node.give_token("all", "i.vasko", "read", "triage", "respond", "tune")
    client = TestClient(make_app(node, Access(node, fake.HASHER)), follow_redirects=False)

    done = client.post(
        f"{PATH}/judge.json",
        json={"act": "aside", "id": FOREIGN, "reason": "why"},
        headers={"Authorization": "Bearer tuner"},
    )
    seen = node.releases.offer(finding(node)).seen
    out = client.post(
        f"{PATH}/share",
        data={"act": "release", "id": finding(node), "seen": seen, "reason": "why"},
        headers={"Authorization": "Bearer all"},
    )

    assert (done.status_code, done.json()["done"]) == (200, "aside")
    assert out.status_code == 403
    assert node.db.samples.releases() == []


def test_a_change_that_a_foreign_sample_forbids_leads_to_it_and_not_to_a_finding(
    node: FakeNode,
) -> None:
    came(node)
    client = enter(node, "e.ngineer")
    other = RULE.replace("failure}", "success}")
    csrf = csrf_of(client.get("/keys").text)

    page = client.post(
        f"/rules/{RULE_ID}/edit", data={"csrf": csrf, "act": "check", "text": other, "samples": ""}
    ).text

    assert f'<a href="{PATH}">Wrong password</a>, a sample of operator-1' in page
    assert f'href="/findings/{FOREIGN}"' not in page


def test_the_pages_of_the_rule_lead_to_its_protected_samples(node: FakeNode) -> None:
    came(node)

    assert f'href="{PATH}">1 of other operators' in enter(node).get(f"/rules/{RULE_ID}").text
    assert f'href="{PATH}"' in enter(node, "e.ngineer").get(f"/rules/{RULE_ID}/edit").text


def test_of_a_rule_that_there_is_not_there_is_no_page(node: FakeNode) -> None:
    assert enter(node).get("/rules/none/protected").status_code == 404
    other = f"{PATH}?finding=nothing"
    assert "event of finding nothing is protected" in enter(node).get(other).text


# ---- A rule is not switched off over what was right


def switch(node: FakeNode, act: str, *ids: str) -> Any:
    client = enter(node, "e.ngineer")
    csrf = csrf_of(client.get("/keys").text)
    form = {"csrf": csrf, "act": act, "id": ids or (RULE_ID,), "reason": "too loud"}
    return client.post("/rules/change", data=form)


def test_a_rule_that_was_right_is_not_switched_off_and_says_why(node: FakeNode) -> None:
    other = msgspec.structs.replace(node.rules()[0], id="another", title="Another")
    node.rule_states = [other, *node.rules()]

    answer = switch(node, "off", "another", RULE_ID)
    page = enter(node, "e.ngineer").get(f"/rules/{RULE_ID}").text

    assert answer.status_code == 409
    assert f"silence what was right: finding {finding(node)}" in answer.text
    assert "rules.off in the settings file" in answer.text
    assert node.accounts.switches() == []
    assert "It cannot be switched off here:" in page
    assert 'name="act" value="off"' not in page
    assert 'name="act" value="off"' in enter(node, "e.ngineer").get("/rules/another").text


def test_a_finding_that_is_kept_no_more_forbids_nothing(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.findings, "get", lambda _: None)

    assert switch(node, "off").status_code == 303


def test_a_program_may_not_switch_it_off_either(node: FakeNode) -> None:
    node.give_token("tun3r", "e.ngineer", "read", "tune")
    client = TestClient(make_app(node, Access(node, fake.HASHER)))

    answer = client.post(
        "/rules/change.json",
        headers={"authorization": "Bearer tun3r"},
        json={"act": "off", "id": [RULE_ID], "reason": "too loud"},
    )

    assert answer.status_code == 409
    assert answer.json()["error"]["where"] == "Wrong password"
    assert node.accounts.switches() == []


def test_a_sample_of_another_operator_forbids_it_until_it_is_set_aside(node: FakeNode) -> None:
    node.db.change([finding(node)], Change(verdict="benign"), "i.vasko", NOW)
    came(node)

    refused = switch(node, "off")
    node.releases.set_aside(FOREIGN, "e.ngineer", "not ours")
    done = switch(node, "off")

    assert refused.status_code == 409
    assert "what was right: a sample of operator-1" in refused.text
    assert done.status_code == 303


def test_a_rule_that_was_right_can_always_be_switched_on(node: FakeNode) -> None:
    node.accounts.switch(Switch(RULE_ID, False, "before it was right", "ada", NOW))

    page = enter(node, "e.ngineer").get(f"/rules/{RULE_ID}").text

    assert 'name="act" value="on"' in page
    assert switch(node, "on").status_code == 303
