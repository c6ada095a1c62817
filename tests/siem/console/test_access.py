"""Who may see and do what."""

# ruff: noqa: E501 – tables of paths

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient

from siem.console.access import BEFORE, SESSION, Access, Tries, cookie_name
from siem.console.app import make_app
from siem.store.protocol import Person
from tests.siem.console import fake
from tests.siem.console.conftest import csrf_of, sign_in

Enter = Callable[..., TestClient]

EVENT = fake.event(1)["event.id"]
FINDING = fake.finding(0, fake._ROWS[0])["finding.id"]
RULE = "00000000-0000-4000-8000-000000000000"
DATA = re.compile(r"\.(json|ndjson|csv)$|^/metrics$")
LISTS = ("/findings", "/hunt", "/rules", "/health", "/people", "/audit")
PAGES = {
    "findings": [
        "/findings",
        "/findings.json",
        "/findings.ndjson",
        "/findings.csv",
        "/findings?group=none",
        f"/findings/{FINDING}",
        f"/findings/{FINDING}.json",
    ],
    "hunt": ["/hunt", "/hunt.json", "/hunt.ndjson", "/hunt.csv", f"/hunt/{EVENT}", f"/hunt/{EVENT}.json"],
    "rules": ["/rules", "/rules.json", "/rules.ndjson", "/rules.csv", f"/rules/{RULE}", f"/rules/{RULE}.json"],
    "health": ["/health", "/health.json", "/health.ndjson", "/health.csv", "/metrics"],
    "people": [
        "/people", "/people.json", "/people.ndjson", "/people.csv", "/people/i.vasko",
        "/people/i.vasko.json", "/tokens", "/tokens.json", "/tokens.ndjson", "/tokens.csv",
    ],
    "audit": ["/audit", "/audit.json", "/audit.ndjson", "/audit.csv", "/audit?verify=1"],
    "self": ["/keys", "/password"],
}  # fmt: skip
MAY = {
    "a.admin": {"health", "people", "audit", "self"},
    "b.oth": {"findings", "hunt", "rules", "health", "people", "audit", "self"},
    "i.vasko": {"findings", "hunt", "rules", "health", "self"},
    "e.ngineer": {"findings", "hunt", "rules", "health", "self"},
}


@pytest.mark.parametrize("name", MAY)
def test_each_role_gets_its_pages_and_403_for_the_others(name: str, signed_in: Enter) -> None:
    client = signed_in(name)

    answers = {path: client.get(path).status_code for paths in PAGES.values() for path in paths}

    expected = {
        path: 200 if part in MAY[name] else 403 for part, paths in PAGES.items() for path in paths
    }
    assert answers == expected


@pytest.mark.parametrize("name", MAY)
def test_no_page_links_to_a_page_that_the_role_may_not_see(name: str, signed_in: Enter) -> None:
    client = signed_in(name)
    shown = [path for part, paths in PAGES.items() if part in MAY[name] for path in paths]
    forbidden = [f'href="{path}' for path in LISTS if path.lstrip("/") not in MAY[name]]

    texts = [client.get(path).text for path in shown if not DATA.search(path)]

    assert texts
    assert [word for word in forbidden for text in texts if word in text] == []


@pytest.mark.parametrize("path", [path for paths in PAGES.values() for path in paths])
def test_without_sign_in_a_page_leads_to_the_form_and_a_program_gets_401(
    path: str, client: TestClient
) -> None:
    answer = client.get(path)

    if DATA.search(path) or path == "/metrics":
        assert answer.status_code == 401
        assert answer.json()["error"]["what"] == "nobody is signed in"
    else:
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/sign-in?next=")


def test_an_administrator_lands_on_health_and_an_analyst_on_findings(client: TestClient) -> None:
    sign_in(client, "a.admin")
    assert client.get("/").headers["location"] == "/health"

    sign_in(client, "i.vasko")
    assert client.get("/").headers["location"] == "/findings"


def test_the_session_cookie_is_strict_and_out_of_reach_of_scripts(client: TestClient) -> None:
    answer = sign_in(client, "i.vasko")

    cookie = next(one for one in answer.headers.get_list("set-cookie") if one.startswith(SESSION))
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert answer.status_code == 303


@pytest.mark.parametrize(
    ("name", "password"),
    [("i.vasko", "wrong"), ("nobody", fake.PASSWORD), ("", ""), ("i.vasko", "")],
)
def test_a_wrong_name_or_password_says_the_same(
    name: str, password: str, client: TestClient
) -> None:
    answer = sign_in(client, name, password)

    assert answer.status_code == 401
    assert "Name or password do not fit." in answer.text
    assert not any(name.startswith(SESSION) for name in client.cookies)


def test_a_changed_cookie_is_no_session(signed_in: Enter, node: fake.FakeNode) -> None:
    client = signed_in()
    name = cookie_name(SESSION, node.secret)
    value = client.cookies[name]
    client.cookies.clear()
    client.cookies.set(name, value[:-3] + ("abc" if value[-3:] != "abc" else "abd"))

    answer = client.get("/findings")

    assert answer.status_code == 303


def test_a_new_password_or_role_ends_the_sessions_of_before(
    signed_in: Enter, node: fake.FakeNode
) -> None:
    client = signed_in()
    before = client.get("/findings").status_code
    node.accounts.add(Person("i.vasko", ("analyst",), fake.HASHER.hash("another")))

    after = client.get("/findings").status_code

    assert (before, after) == (200, 303)


def test_signing_out_ends_the_session(signed_in: Enter) -> None:
    client = signed_in()
    token = csrf_of(client.get("/findings").text)

    client.post("/sign-out", data={"csrf": token})

    assert client.get("/findings").status_code == 303


def test_a_copy_of_the_cookie_is_worth_nothing_after_signing_out(
    signed_in: Enter, node: fake.FakeNode
) -> None:
    client = signed_in()
    name = cookie_name(SESSION, node.secret)
    copy = client.cookies[name]
    client.post("/sign-out", data={"csrf": csrf_of(client.get("/findings").text)})
    client.cookies.set(name, copy)

    answer = client.get("/findings")

    assert answer.status_code == 303


def test_two_nodes_on_one_host_keep_a_session_each(node: fake.FakeNode) -> None:
    other = fake.operator()
    other.secret = b"of another node " * 2
    jar = httpx.Cookies()
    first, second = (
        TestClient(make_app(one, Access(one, fake.HASHER)), follow_redirects=False)
        for one in (node, other)
    )
    first.cookies = second.cookies = jar
    forms = [csrf_of(one.get("/sign-in").text) for one in (first, second)]

    for one, token in zip((first, second), forms, strict=True):
        one.post("/sign-in", data={"csrf": token, "name": "i.vasko", "password": fake.PASSWORD})

    assert [one.get("/findings").status_code for one in (first, second)] == [200, 200]


def test_many_tries_at_once_are_no_more_than_ten(client: TestClient) -> None:
    data = {"csrf": csrf_of(client.get("/sign-in").text), "name": "i.vasko", "password": "wrong"}

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: client.post("/sign-in", data=data), range(40)))

    assert Counter(one.status_code for one in answers) == {401: 10, 429: 30}


def test_after_ten_failures_a_name_waits_also_with_the_right_password(client: TestClient) -> None:
    for _ in range(10):
        sign_in(client, "i.vasko", "wrong")

    refused = sign_in(client, "i.vasko")
    other = sign_in(client, "e.ngineer")

    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert other.status_code == 303


def test_a_host_with_many_addresses_of_ipv6_tries_no_more_often(node: fake.FakeNode) -> None:
    access = Access(node, fake.HASHER)

    for number in range(30):
        access.check_password(f"name {number}", "wrong", f"2001:db8:0:1::{number:x}")

    assert access.wait_s("another", "2001:db8:0:1::ffff") > 0
    assert access.wait_s("another", "2001:db8:0:2::1") == 0
    assert access.wait_s("another", "::ffff:192.0.2.1") == 0


def test_tries_forget_after_their_window_and_stay_bounded() -> None:
    now = [0.0]
    tries = Tries(allowed=3, window_s=60.0, kept=100, tick=lambda: now[0])
    for _ in range(3):
        tries.failed("a")
    waits = tries.wait_s("a")
    now[0] = 61.0

    for number in range(1000):
        tries.failed(f"name {number}")

    assert waits == 60.0
    assert tries.wait_s("a") == 0.0
    assert len(tries._failed) == 100


FORMS = [
    ("/findings/triage", {"act": "take", "id": FINDING}),
    ("/findings/triage.json", {"act": "take", "id": FINDING}),
    ("/settings", {"theme": "dark"}),
    ("/sign-out", {}),
]


@pytest.mark.parametrize(("path", "form"), FORMS)
@pytest.mark.parametrize("token", ["", "x" * 32, "ünlesbar"])
def test_a_form_without_the_token_of_its_session_changes_nothing(
    path: str, form: dict[str, str], token: str, signed_in: Enter, node: fake.FakeNode
) -> None:
    client = signed_in()

    answer = client.post(path, data={**form, "csrf": token})

    assert answer.status_code == 403
    assert node.findings.get(FINDING)["assignee"] == ""  # type: ignore[index]
    assert client.get("/findings").status_code == 200


def test_the_sign_in_form_works_only_in_the_browser_that_got_it(
    client: TestClient, node: fake.FakeNode
) -> None:
    token = csrf_of(client.get("/sign-in").text)
    client.cookies.delete(cookie_name(BEFORE, node.secret))

    answer = client.post(
        "/sign-in", data={"csrf": token, "name": "i.vasko", "password": fake.PASSWORD}
    )

    assert answer.status_code == 403


def test_an_administrator_cannot_change_findings(signed_in: Enter, node: fake.FakeNode) -> None:
    client = signed_in("a.admin")
    token = csrf_of(client.get("/health").text)

    answer = client.post("/findings/triage", data={"csrf": token, "act": "take", "id": FINDING})

    assert answer.status_code == 403
    assert node.findings.get(FINDING)["assignee"] == ""  # type: ignore[index]


def test_a_program_reads_and_changes_with_its_token(
    client: TestClient, node: fake.FakeNode
) -> None:
    bearer = {"authorization": "Bearer t0ken"}

    listed = client.get("/findings.json", headers=bearer)
    changed = client.post(
        "/findings/triage.json", headers=bearer, data={"act": "take", "id": FINDING}
    )

    assert listed.json()["total"] == 18
    assert changed.json() == {"changed": 1}
    assert node.findings.get(FINDING)["assignee"] == "i.vasko"  # type: ignore[index]


@pytest.mark.parametrize(
    "bearer", ["Bearer", "Bearer ", "Bearer wrong", "Basic aS52YXNrbzp4", f"Bearer {hashlib.sha256(b't0ken').hexdigest()}"]
)  # fmt: skip
def test_a_wrong_token_is_nobody(bearer: str, client: TestClient) -> None:
    answer = client.get("/findings.json", headers={"authorization": bearer})

    assert answer.status_code == 401


@pytest.mark.parametrize(
    "onward", ["https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere.example", "javascript:x", "/x\r\ny: z"]
)  # fmt: skip
def test_sign_in_leads_nowhere_else(onward: str, client: TestClient) -> None:
    token = csrf_of(client.get("/sign-in").text)

    answer = client.post(
        "/sign-in",
        data={"csrf": token, "name": "i.vasko", "password": fake.PASSWORD, "next": onward},
    )

    assert answer.headers["location"] == "/"


@pytest.mark.parametrize(
    "path", ["/sign-in", "/findings", "/findings.json", "/nowhere", "/static/cityward.css"]
)
def test_every_answer_carries_the_strict_policy(path: str, signed_in: Enter) -> None:
    headers = signed_in().get(path).headers

    assert headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_also_a_fault_of_ours_carries_the_strict_policy(
    node: fake.FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(node, Access(node, fake.HASHER))
    client = TestClient(app, follow_redirects=False, raise_server_exceptions=False)
    sign_in(client, "i.vasko")
    monkeypatch.setattr(node, "disk", lambda: 1 // 0)

    answer = client.get("/health")

    assert answer.status_code == 500
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def test_no_page_has_inline_script_or_style(signed_in: Enter) -> None:
    client = signed_in()
    paths = [path for paths in PAGES.values() for path in paths if not DATA.search(path)]

    texts = [client.get(path).text for path in (*paths, "/sign-in")]

    assert [text for text in texts if " style=" in text or "<style" in text] == []
    assert [
        text
        for text in texts
        if text.count("<script") != text.count('<script type="module" src="/static/')
    ] == []
    assert [text for text in texts if " onclick" in text or " onload" in text] == []


def test_a_form_over_the_limit_is_refused(signed_in: Enter) -> None:
    answer = signed_in().post("/settings", content=b"a=" + b"x" * (2 << 20), headers={
        "content-type": "application/x-www-form-urlencoded"})  # fmt: skip

    assert answer.status_code == 413
