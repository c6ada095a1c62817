"""Filters in the console: from a finding to a filter that counts, and back."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from siem import hide_counts
from siem.store.protocol import Change
from siem.tuning import Tuner
from tests.programs import PATIENCE_S
from tests.siem.console.conftest import csrf_of
from tests.siem.console.fake import FakeNode
from tests.siem.test_hide_counts import keep
from tests.siem.test_tuning import (
    FILTER,
    FILTER_ID,
    MANY,
    MANY_ID,
    NOW,
    RULE_ID,
    attempts,
    findings,
    seen,
)

Enter = Callable[..., TestClient]
ENGINEER = "b.oth"


@pytest.fixture
def node(node: FakeNode) -> FakeNode:
    """One with real findings of a real rule."""
    seen(node.tuning._settings, node.db, [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)])
    node.findings = node.db  # type: ignore[assignment]
    node.clock = NOW
    return node


def id_of(node: FakeNode, source: str) -> str:
    (one,) = findings(node.db, f"source.ip:{source}")
    return str(one["finding.id"])


def fill(
    client: TestClient, node: FakeNode, seen: Sequence[str] = ("source.ip",), **said: Any
) -> dict[str, Any]:
    """What the form sends, of a page that shows what these fields hide."""
    id = id_of(node, "192.0.2.8")
    page = client.get("/filters/new", params={"finding": id, "field": seen}).text
    return {
        **sent_along(page),
        "finding": id,
        "field": list(seen),
        "reason": "our scanner",
        "days": "30",
        **said,
    }


def sent_along(page: str) -> dict[str, Any]:
    """What a form says of the page that it stands on."""
    (mark,) = re.findall('name="shown" value="([^"]*)"', page)
    opened = re.findall('name="open" value="([^"]*)"', page)
    return {"csrf": csrf_of(page), "shown": mark, "open": opened}


def _sentence(node: FakeNode, id: str) -> str:
    """What a finding says."""
    return str(node.db.get(id)["finding.description"])  # type: ignore[index]


def test_from_a_finding_in_two_clicks_to_a_filter_that_counts(
    node: FakeNode, signed_in: Enter
) -> None:
    client, id = signed_in(ENGINEER), id_of(node, "192.0.2.8")
    finding = client.get(f"/findings/{id}").text
    assert f'href="/filters/new?finding={id}"' in finding

    form = client.get(f"/filters/new?finding={id}").text
    assert "1 finding of the last 30 days<" in form
    assert "in part" not in form
    assert _sentence(node, id) in form
    assert 'name="field" value="source.ip" checked' in form
    done = client.post("/filters/add", data=fill(client, node))

    (row,) = node.tuning.filters()
    assert (done.status_code, done.headers["location"]) == (303, f"/filters/{row.id}?done=added")
    assert (row.owner, row.reason) == (ENGINEER, "our scanner")
    page = client.get(done.headers["location"]).text
    assert "The filter counts" in page
    assert "192.0.2.8" in page
    assert "our scanner" in client.get("/filters").text


@pytest.mark.parametrize("resolve", ["", "1"])
def test_what_it_hides_is_resolved_if_that_is_asked_for(
    node: FakeNode, signed_in: Enter, resolve: str
) -> None:
    client = signed_in(ENGINEER)
    id, other = id_of(node, "192.0.2.8"), id_of(node, "192.0.2.7")
    said = fill(client, node, reason="our scanner", resolve=resolve)

    assert "Also resolve the finding that it hides" in client.get(f"/filters/new?finding={id}").text
    assert client.post("/filters/add", data=said).status_code == 303

    found = [node.db.get(one) for one in (id, other)]
    states = [(one["finding.status"], one["finding.verdict"]) for one in found if one]
    hidden = ("resolved", "benign") if resolve else ("new", "unknown")
    assert states == [hidden, ("new", "unknown")]


def test_the_page_of_a_filter_shows_what_counts_and_no_draft(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    client.post("/filters/add", data=fill(client, node))
    (row,) = node.tuning.filters()
    counts = client.get(f"/filters/{row.id}.json").json()["text"]

    node.tuning.save(counts.replace("192.0.2.8", "203.0.113.1"), "", ENGINEER)

    assert "192.0.2.8" in counts
    assert client.get(f"/filters/{row.id}.json").json()["text"] == counts
    assert "203.0.113.1" not in client.get(f"/filters/{row.id}").text


def test_who_may_only_tune_resolves_nothing(node: FakeNode, client: TestClient) -> None:
    node.give_token("tuner", ENGINEER, "tune")
    said = {
        "finding": id_of(node, "192.0.2.8"), "field": ["source.ip"], "reason": "x", "resolve": "1",
    }  # fmt: skip

    refused = client.post("/filters/add.json", data=said, headers={"authorization": "Bearer tuner"})

    assert refused.status_code == 403
    assert node.tuning.filters() == []


def test_other_fields_are_looked_at_before_anything_counts(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    said = fill(client, node, field=["user.name"], act="show", reason="a & b")

    shown = client.post("/filters/add", data=said)
    form = client.get(shown.headers["location"]).text

    assert "csrf" not in shown.headers["location"]
    assert "2 findings of the last 30 days<" in form
    assert 'value="a &amp; b"' in form
    assert node.tuning.filters() == []


@pytest.mark.parametrize("resolve", ["", "1"])
def test_more_than_was_shown_is_neither_hidden_nor_resolved(
    node: FakeNode, signed_in: Enter, resolve: str
) -> None:
    client = signed_in(ENGINEER)
    stale = fill(client, node, ["source.ip", "user.name"], field=["user.name"], resolve=resolve)

    answer = client.post("/filters/add", data=stale)
    kept = ticked(answer.text), ('name="resolve" value="1" checked' in answer.text)

    assert answer.status_code == 409
    assert "What it would hide is not what was shown, so nothing was added" in answer.text
    assert "2 findings of the last 30 days<" in answer.text
    assert 'value="our scanner"' in answer.text
    assert kept == (["user.name"], bool(resolve))
    assert node.tuning.filters() == []
    assert {one["finding.status"] for one in findings(node.db)} == {"new"}

    again = stale | sent_along(answer.text)
    assert client.post("/filters/add", data=again).status_code == 303
    assert client.post("/filters/add", data=again | {"shown": ""}).status_code == 409


def test_a_finding_that_came_meanwhile_is_not_resolved_with_those_that_were_shown(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    said = fill(client, node, ["user.name"], resolve="1")
    late = attempts("192.0.2.9", minute=30)
    seen(node.tuning._settings, node.db, late)

    assert client.post("/filters/add", data=said).status_code == 303

    states = {one["source.ip"]: one["finding.status"] for one in findings(node.db)}
    assert states == {"192.0.2.7": "resolved", "192.0.2.8": "resolved", "192.0.2.9": "new"}


def test_a_program_is_held_to_what_it_was_shown(node: FakeNode, signed_in: Enter) -> None:
    client, id = signed_in(ENGINEER), id_of(node, "192.0.2.8")
    told = client.get(f"/filters/new.json?finding={id}&field=source.ip").json()
    said = fill(client, node, shown=told["shown"], field=["user.name"])

    assert client.post("/filters/add.json", data=said).status_code == 409
    assert client.post("/filters/add.json", data=said | {"field": "source.ip"}).status_code == 200


def ticked(page: str) -> list[str]:
    return re.findall('name="field" value="([^"]+)" checked', page)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"field": []}, "No field is ticked."),
        ({"reason": "x" * 2_001}, "A reason of 1 to 2,000 characters"),
        ({"reason": "  "}, "The reason is empty."),
    ],
)
def test_a_form_that_is_refused_comes_again_with_all_that_was_typed(
    node: FakeNode, signed_in: Enter, said: dict[str, Any], why: str
) -> None:
    client = signed_in(ENGINEER)

    answer = client.post("/filters/add", data=fill(client, node, days="90", **said))

    form = answer.text.partition('action="/filters/add"')[2]
    assert (answer.status_code, answer.headers["content-type"][:9]) == (400, "text/html")
    assert why in form.partition("Show what it hides")[0]
    assert ticked(form) == said.get("field", ["source.ip"])
    assert ("It would have hidden <a" in form) is bool(ticked(form))
    assert f'value="{said.get("reason", "our scanner").strip()}"' in form
    assert '<option value="90" selected>' in form


def test_the_same_filter_is_not_added_twice_by_going_back(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    said = fill(client, node)

    codes = [client.post("/filters/add", data=said).status_code for _ in range(2)]
    again = client.post("/filters/add", data=said).text

    (row,) = node.tuning.filters()
    assert codes == [303, 409]
    assert f"{row.title} ({row.id}) hides the same already" in again
    assert 'value="our scanner"' in again


def test_two_people_who_add_the_same_filter_at_once_add_it_once(
    node: FakeNode, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = (ENGINEER, "e.ngineer")
    for name in people:
        node.give_token(name, name, "tune")
    said = {
        "finding": id_of(node, "192.0.2.8"), "field": ["source.ip"], "reason": "our scanner",
    }  # fmt: skip
    both, looked_at = threading.Barrier(2, timeout=PATIENCE_S), node.tuning.filter_of

    def together(*given: Any) -> Any:
        found = looked_at(*given)
        both.wait()  # neither adds before the other has looked
        return found

    def add(name: str) -> Response:
        head = {"authorization": f"Bearer {name}"}
        return client.post("/filters/add.json", data=said, headers=head)

    monkeypatch.setattr(node.tuning, "filter_of", together)
    with ThreadPoolExecutor() as pool:
        answers = dict(zip(people, pool.map(add, people), strict=True))

    (row,) = node.tuning.filters()
    (late,) = (name for name in people if name != row.owner)
    assert [answers[name].status_code for name in (row.owner, late)] == [200, 409]
    assert f"hides the same already, to {row.expires}: {row.owner} added it" in answers[late].text


def test_a_filter_is_not_added_beside_one_that_another_program_adds_this_moment(
    node: FakeNode, signed_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = signed_in(ENGINEER)
    said, book = fill(client, node), node.db.rulebook
    finding = node.db.get(id_of(node, "192.0.2.8"))
    assert finding is not None
    until = (NOW + timedelta(days=30)).date()
    other = Tuner(node.tuning._settings, node.db)
    text = other.filter_of(finding, ["source.ip"], reason="by command", expires=until, by="c.line")
    deploy = book.deploy

    def later(*given: Any, **named: Any) -> int:
        monkeypatch.setattr(book, "deploy", deploy)
        other.deploy(other.added(text, NOW)[0], "c.line", "by command", NOW)
        return deploy(*given, **named)

    monkeypatch.setattr(book, "deploy", later)
    answer = client.post("/filters/add", data=said)

    (row,) = node.tuning.filters()
    assert (answer.status_code, row.reason) == (409, "by command")
    assert f"C.line deployed {row.title} meanwhile." in answer.text
    assert f"({row.id}) hides the same already" in answer.text


def two_filters(node: FakeNode) -> None:
    """One that hides three of the events that are kept, and one that hides none."""
    keep(node.tuning._settings, attempts("192.0.2.7", count=3))
    for number, source in enumerate(("192.0.2.7", "192.0.2.99")):
        text = FILTER.replace("SOURCE", source).replace(FILTER_ID, f"{FILTER_ID[:-1]}{number}")
        text = text.replace("Not the scanner", f"Not {source}")
        node.tuning.deploy(text, "", ENGINEER, "because", 0)


def test_the_list_says_how_much_each_filter_hides_and_begins_with_what_can_go(
    node: FakeNode, signed_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hide_counts, "WAIT_S", PATIENCE_S)
    two_filters(node)
    client = signed_in(ENGINEER)

    page = client.get("/filters").text
    rows = client.get("/filters.json").json()["rows"]

    first, second = page.partition("<tbody>")[2].split("</tr>")[:2]
    assert "Not 192.0.2.99" in first
    assert 'nothing</span><span class="how">in 1 day<' in first
    assert '3 matches</span><span class="how">in 1 day<' in second
    assert "being counted" not in page
    assert "later.js" not in page
    said = [(one["title"], one["hides"], one["hides_days"], one["hides_why"]) for one in rows]
    assert said == [("Not 192.0.2.99", 0, 1, ""), ("Not 192.0.2.7", 3, 1, "")]


def test_the_list_does_not_wait_for_what_is_still_being_counted(
    node: FakeNode, signed_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hide_counts, "WAIT_S", 0.0)
    two_filters(node)
    client = signed_in(ENGINEER)

    with node.tuning._previews:
        page = client.get("/filters").text
        (row, _) = client.get("/filters.json").json()["rows"]

    assert page.count('<span class="muted">being counted</span>') == 2
    assert 'being counted: <a href="/filters">look again</a>' in page
    assert (row["hides"], row["hides_why"]) == (None, "it is being counted")


def test_a_filter_from_a_correlation_names_the_rule_and_all_that_listen_to_it(
    node: FakeNode, signed_in: Enter
) -> None:
    settings = node.tuning._settings
    (Path(settings.rules.folders[0]) / "many.yml").write_text(MANY)
    seen(settings, node.db, attempts("192.0.2.5", count=3, minute=40))
    (many,) = findings(node.db, f"rule.id:{MANY_ID}")

    page = signed_in(ENGINEER).get(f"/filters/new?finding={many['finding.id']}").text

    assert f'It binds to the rule <a href="/rules/{RULE_ID}">Wrong password</a>' in page
    assert (
        f'<a href="/rules/{MANY_ID}">Many wrong passwords</a> builds on it and does not get' in page
    )
    assert "title: Not Wrong password" in page


def test_the_page_of_a_correlation_shows_the_filters_of_the_rules_below_it(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    (Path(node.tuning._settings.rules.folders[0]) / "many.yml").write_text(MANY)
    state = msgspec.structs.replace(node.rules()[3], id=MANY_ID, kind="correlation")
    node.rule_states = [state]
    client.post("/filters/add", data=fill(client, node))

    page = client.get(f"/rules/{MANY_ID}").text

    (row,) = node.tuning.filters()
    assert f'href="/filters/{row.id}">Not Wrong password</a>' in page


def test_what_was_right_is_never_hidden(node: FakeNode, signed_in: Enter) -> None:
    node.db.change([id_of(node, "192.0.2.8")], Change(verdict="true_positive"), "i.vasko", NOW)
    client = signed_in(ENGINEER)

    form = client.get(f"/filters/new?finding={id_of(node, '192.0.2.8')}").text
    refused = client.post("/filters/add.json", data=fill(client, node))

    assert "Add the filter" not in form
    why = form.partition('action="/filters/add"')[2].partition("Show what it hides")[0]
    assert "It would hide what was right" in why
    assert "Wrong password of 2026-01-05 10:01 UTC" in why
    assert "called a true positive by i.vasko" in why
    assert 'tabindex="-1" autofocus' in why
    assert refused.status_code == 409
    assert "would not be made any more" in refused.json()["error"]["what"]
    assert node.tuning.filters() == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"reason": " "}, "the reason is empty"),
        ({"reason": "x" * 2_001}, "a reason of 1 to 2,000 characters"),
        ({"field": []}, "no field is ticked"),
        ({"field": ["source.bytes"]}, "not the same in all events"),
        ({"finding": "nothing"}, "no such finding"),
    ],
)
def test_what_is_missing_is_said(
    node: FakeNode, signed_in: Enter, said: dict[str, Any], why: str
) -> None:
    client = signed_in(ENGINEER)

    answer = client.post("/filters/add.json", data=fill(client, node, **said))

    assert answer.status_code == 400
    assert why in answer.json()["error"]["what"]


def test_a_filter_is_taken_back_with_a_reason(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    client.post("/filters/add", data=fill(client, node))
    (row,) = node.tuning.filters()
    csrf = csrf_of(client.get(f"/filters/{row.id}").text)

    bare = client.post("/filters/remove.json", data={"csrf": csrf, "id": row.id, "reason": ""})
    done = client.post("/filters/remove", data={"csrf": csrf, "id": row.id, "reason": "it moved"})
    again = client.post("/filters/remove.json", data={"csrf": csrf, "id": row.id, "reason": "x"})

    assert (bare.status_code, done.status_code, again.status_code) == (400, 303, 400)
    assert node.tuning.filters() == []
    assert "Nothing is hidden" in client.get("/filters?done=removed").text


def test_nothing_changes_without_the_token_of_the_session(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)

    assert client.post("/filters/add", data=fill(client, node, csrf="x")).status_code == 403
    assert node.tuning.filters() == []


def test_programs_get_the_same(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    before = client.get(f"/filters/new.json?finding={id_of(node, '192.0.2.8')}").json()
    client.post("/filters/add", data=fill(client, node))
    (row,) = client.get("/filters.json").json()["rows"]
    one = client.get(f"/filters/{row['id']}.json").json()

    assert before["choices"]["source.ip"] == "192.0.2.8"
    assert [each["finding"] for each in before["hidden"]] == [id_of(node, "192.0.2.8")]
    assert row["rules"][0]["title"] == "Wrong password"
    assert "condition: not known" in one["text"]
    assert client.get("/filters/none.json").status_code == 404
    assert client.get("/filters/none").status_code == 404
    assert client.get("/filters/new?finding=none").status_code == 404
    assert client.get("/filters.csv").text.startswith("id,title")


def test_a_program_that_may_only_tune_is_told_nothing_of_a_finding(
    node: FakeNode, client: TestClient
) -> None:
    path = f"/filters/new.json?finding={id_of(node, '192.0.2.8')}"
    node.give_token("tuner", ENGINEER, "tune")
    node.give_token("reader", ENGINEER, "tune", "read")

    told = [
        client.get(path, headers={"authorization": f"Bearer {one}"}).status_code
        for one in ("tuner", "reader")
    ]

    assert told == [404, 200]


def test_hostile_words_of_a_reason_are_text(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    client.post("/filters/add", data=fill(client, node, reason="<script>alert(1)</script>{{7*7}}"))

    page = client.get("/filters").text

    assert "<script>alert" not in page
    assert "{{7*7}}" in page
