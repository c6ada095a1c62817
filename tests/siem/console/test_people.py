"""People, tokens and the audit trail in the console."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from siem.store.protocol import Person
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of, sign_in

Enter = Callable[..., TestClient]


def act(client: TestClient, path: str, **fields: Any) -> Any:
    token = csrf_of(client.get("/people").text)
    return client.post(path, data={"csrf": token, **fields})


def secret_of(text: str) -> str:
    found = re.search(r'id="secret">([^<]+)<', text)
    assert found
    return html.unescape(found[1])


def test_a_new_person_chooses_a_password_before_anything_opens(
    signed_in: Enter, node: fake.FakeNode
) -> None:
    client = signed_in("a.admin")
    said = {"act": "add", "name": "n.ew", "role": ["analyst", "administrator"]}
    password = secret_of(act(client, "/people/change", **said).text)
    client.cookies.clear()

    sign_in(client, "n.ew", password)
    start = client.get("/").headers["location"]
    shut = (client.get("/findings").headers["location"], client.get("/findings.json").status_code)
    fields = {"csrf": csrf_of(client.get("/password").text), "password": password}
    weak = client.post("/password", data={**fields, "new": "short", "again": "short"})
    new = {"new": "a pump at the river", "again": "a pump at the river"}
    done = client.post("/password", data={**fields, **new})

    assert start == "/password"
    assert shut == ("/password", 403)
    assert weak.status_code == 400
    assert done.headers["location"] == "/"
    assert client.get("/").headers["location"] == "/findings"
    assert client.get("/people").status_code == 200
    assert node.accounts.person("n.ew").one_time is False  # type: ignore[union-attr]


@pytest.mark.parametrize("what", ["disable", "end", "reset", "roles"])
def test_an_act_of_the_administrator_ends_the_sessions(
    what: str, client: TestClient, node: fake.FakeNode
) -> None:
    sign_in(client, "i.vasko")
    copy = dict(client.cookies)
    client.cookies.clear()
    sign_in(client, "a.admin")

    done = act(client, "/people/change", act=what, name="i.vasko", role="engineer")

    client.cookies.clear()
    client.cookies.update(copy)
    assert done.status_code in (200, 303)
    assert client.get("/findings").status_code == 303
    assert node.db.audited(limit=1)[0].action.startswith(f"person: {what}")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"act": "roles", "name": "nobody"}, "nobody is called"),
        ({"act": "roles", "name": "i.vasko", "role": "king"}, "needs a role"),
        ({"act": "nope", "name": "i.vasko"}, "no act is called"),
        ({"act": "add", "name": "i.vasko", "role": "analyst"}, "is there already"),
        ({"act": "add", "name": "x\u202ey", "role": "analyst"}, "printable"),
    ],
)
def test_what_cannot_be_done_with_a_person_is_said(
    fields: dict[str, str], said: str, signed_in: Enter
) -> None:
    answer = act(signed_in("a.admin"), "/people/change", **fields)

    assert answer.status_code == 400
    assert said in answer.text.lower()


def test_a_token_opens_what_its_scopes_and_its_person_allow(
    client: TestClient, node: fake.FakeNode
) -> None:
    for secret, person, scopes in (
        ("reader", "i.vasko", ("read",)),
        ("tuner", "i.vasko", ("read", "tune")),
        ("keeper", "b.oth", ("admin",)),
    ):
        node.give_token(secret, person, *scopes)
    one = {"act": "take", "id": fake.finding(0, fake._ROWS[0])["finding.id"]}

    def asked(secret: str, path: str, **data: str) -> int:
        bearer = {"authorization": f"Bearer {secret}"}
        if data:
            return client.post(path, headers=bearer, data=data).status_code
        return client.get(path, headers=bearer).status_code

    assert asked("reader", "/findings.csv") == 200
    assert asked("reader", "/findings/triage.json", **one) == 403
    assert asked("t0ken", "/findings/triage.json", **one) == 200
    assert asked("tuner", "/assets/change.json", act="approve", id="RTU-0") == 403
    assert asked("keeper", "/findings.json") == 403
    assert asked("keeper", "/people.json") == 200
    assert asked("reader", "/people.json") == 403


def test_a_token_is_made_shown_once_and_revoked(signed_in: Enter, node: fake.FakeNode) -> None:
    client = signed_in("a.admin")
    fields = {"act": "add", "name": "desk", "person": "i.vasko", "scope": "read", "days": "1"}
    secret = secret_of(act(client, "/tokens/change", **fields).text)
    bearer = {"authorization": f"Bearer {secret}"}

    works = client.get("/findings.json", headers=bearer).status_code
    listed = client.get("/tokens").text
    token = next(one for one in node.accounts.tokens() if one.name == "desk")
    node.clock += timedelta(days=2)
    over = client.get("/findings.json", headers=bearer).status_code
    node.clock -= timedelta(days=2)
    act(client, "/tokens/change", act="revoke", id=token.id)
    revoked = client.get("/findings.json", headers=bearer).status_code

    assert (works, over, revoked) == (200, 401, 401)
    assert "desk" in listed
    assert secret not in listed
    assert secret not in str(node.db.audited())


def test_the_trail_says_who_did_what_and_proves_itself(
    signed_in: Enter, node: fake.FakeNode
) -> None:
    client = signed_in("a.admin")
    client.get("/people.csv")
    client.post("/sign-in", data={"csrf": "x"})

    rows = client.get("/audit.json?verify=1").json()
    words = client.get("/audit.json?q=EXPORT+people").json()["rows"]

    assert [row["action"] for row in rows["rows"][:2]] == ["export", "sign-in"]
    assert rows["proof"]["fault"] == ""
    assert [row["target"] for row in words] == ["/people.csv"]
    assert "lines are as they were written" in client.get("/audit?verify=1").text
    node.db._db.execute("DROP TRIGGER audit_unchanged")
    node.db._db.execute("UPDATE audit SET action = 'nothing' WHERE number = 2")
    assert "line 2 was changed" in client.get("/audit?verify=1").text


def test_a_wrong_password_is_in_the_trail(client: TestClient, node: fake.FakeNode) -> None:
    sign_in(client, "i.vasko", "wrong")

    line = node.db.audited(limit=1)[0]
    assert (line.by, line.action) == ("i.vasko", "sign-in refused")


def test_a_password_in_the_field_of_the_name_is_not_in_the_trail(
    client: TestClient, node: fake.FakeNode
) -> None:
    sign_in(client, fake.PASSWORD, "")

    line = node.db.audited(limit=1)[0]
    assert (line.by, line.action) == ("unknown name", "sign-in refused")


def test_a_disabled_person_stays_outside(client: TestClient, node: fake.FakeNode) -> None:
    node.accounts.add(
        Person("i.vasko", ("analyst",), fake.HASHER.hash(fake.PASSWORD), disabled=True)
    )

    assert sign_in(client, "i.vasko").status_code == 401
    assert (
        client.get("/findings.json", headers={"authorization": "Bearer t0ken"}).status_code == 401
    )
