"""The rule workbench in the console: written, checked, tried, previewed, deployed, taken back."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient

from cityward import Asset
from siem import assembly
from siem.console.workbench import diff
from siem.node import document
from siem.store.protocol import AssetRow, Change
from siem.store.rulebook import Version, id_in
from tests.programs import PATIENCE_S
from tests.siem.console.conftest import csrf_of
from tests.siem.console.fake import FakeNode
from tests.siem.test_tuning import NOW, RULE, RULE_ID, SAMPLES, attempts, findings, seen

Enter = Callable[..., TestClient]
ENGINEER, OTHER = "b.oth", "e.ngineer"
EDIT = f"/rules/{RULE_ID}/edit"
LOUDER = RULE.replace("level: medium", "level: high")
DEAF = RULE.replace("failure}", "failure, source.ip: 198.51.100.1}")
DEAF_SAMPLES = SAMPLES.replace("192.0.2.9", "198.51.100.1")
LINE = "2026-01-05T10:00:00Z gw sshd[7]: Failed password for root from 192.0.2.7 port 4000 ssh2"
TUNER = {"authorization": "Bearer tuner"}
HOSTILE = "</textarea><script>alert(1)</script>{{7*7}}"


@pytest.fixture
def node(node: FakeNode) -> FakeNode:
    """One with real findings of a real rule."""
    seen(node.tuning._settings, node.db, [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)])
    node.findings = node.db  # type: ignore[assignment]
    node.clock = NOW
    return node


def form(client: TestClient, **said: Any) -> dict[str, Any]:
    token = csrf_of(client.get("/keys").text)
    return {"csrf": token, "text": RULE, "samples": SAMPLES, "seen": "0", "draft": "", **said}


def post(client: TestClient, path: str = EDIT, **said: Any) -> Any:
    return client.post(path, data=form(client, **said))


def data(client: TestClient, path: str = EDIT, **said: Any) -> Any:
    return client.post(f"{path}.json", data=form(client, **said))


def in_textarea(page: str, name: str) -> str:
    found = re.search(rf'<textarea id="{name}"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)
    assert found
    return html.unescape(found[1])


def theirs_in(page: str) -> list[str]:
    """What others did meanwhile, as the page shows it."""
    found = re.search(r'<div class="theirs"[^>]*>(.*?)</div>\n<div class="bench', page, re.DOTALL)
    assert found
    return found[1].split("<details open>")[1:]


def hidden_in(page: str) -> dict[str, str]:
    """What the form says that the person has seen."""
    return dict(re.findall(r'<input type="hidden" name="(seen|draft)" value="([^"]*)"', page))


def text_of(client: TestClient) -> str:
    return str(client.get(f"{EDIT}.json").json()["text"])


def deployed(node: FakeNode) -> list[Version]:
    return list(node.tuning.history(RULE_ID))


# ---- Opened and checked


def test_a_rule_is_opened_with_its_text_and_its_samples(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    page, said = client.get(EDIT).text, client.get(f"{EDIT}.json").json()

    assert in_textarea(page, "text") == RULE
    assert in_textarea(page, "samples") == SAMPLES
    assert "samples 2 of 2" in page
    assert "its file counts" in page
    assert (said["text"], said["origin"], said["number"], said["draft"]) == (RULE, "file", 0, "")


def test_a_new_rule_is_begun_and_kept(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    blank = client.get("/rules/new.json").json()
    page = client.get("/rules/new").text
    path = f"/rules/{blank['document']}/edit"

    done = post(client, path, act="save", text=blank["text"], samples=blank["samples"])

    assert "samples 2 of 2" in page
    assert done.headers["location"] == f"{path}?done=saved"
    assert "draft of b.oth" in client.get(done.headers["location"]).text
    assert client.get("/rules/nothing/edit").status_code == 404
    assert client.get("/rules/nothing/edit.json").status_code == 404


def test_a_hunt_becomes_a_draft_with_its_newest_event_as_a_sample(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    (event,) = attempts("192.0.2.7", user="ada")
    node.events.documents = [{**document(event), "event.id": "e-1"}]
    asked = "q=user.name%3Aada&f=event.outcome%3Afailure&from=now-24h&top=user.name"

    hunt = client.get(f"/hunt?{asked}").text
    (link,) = re.findall(r'href="(/rules/new\?[^"]*)"', hunt)
    page = client.get(html.unescape(link)).text
    made = client.get(f"/rules/new.json?{asked}").json()
    nothing = client.get("/rules/new?q=user.name%3Anobody")
    unsaid = client.get("/rules/new?q=%40timestamp%3A*")

    assert "top=" not in link
    assert "user.name|cased: ada" in in_textarea(page, "text")
    assert "event.outcome|cased: failure" in in_textarea(page, "text")
    assert "service: sshd" in in_textarea(page, "text")
    assert "samples 1 of 1" in page
    assert (made["origin"], "user.name: ada" in made["samples"]) == ("new", True)
    assert (nothing.status_code, unsaid.status_code) == (400, 400)
    assert "No event of this time matches the query" in nothing.text
    assert "no words for the time @timestamp" in unsaid.text
    assert "/rules/new?" not in client.get("/hunt").text


def test_a_program_that_may_only_tune_makes_no_rule_of_events(
    node: FakeNode, client: TestClient
) -> None:
    node.give_token("tuner", ENGINEER, "tune")

    assert client.get("/rules/new.json?q=user.name%3Aroot", headers=TUNER).status_code == 403
    assert client.get("/rules/new.json", headers=TUNER).status_code == 200


def test_a_fault_is_told_with_its_line_and_the_text_stays(node: FakeNode, signed_in: Enter) -> None:
    client, wrong = signed_in(ENGINEER), RULE.replace("event.outcome:", "event.outcome|foo:")

    page = post(client, act="check", text=wrong.replace("\n", "\r\n"))
    said = data(client, act="check", text=wrong).json()

    assert page.status_code == 200
    assert in_textarea(page.text, "text") == wrong
    assert "Line 7" in page.text
    assert [(one["line"], one["severity"]) for one in said["marks"]] == [(7, "error")]
    assert "foo" in said["marks"][0]["what"]


def test_samples_that_fail_are_told_and_forbid_it(node: FakeNode, signed_in: Enter) -> None:
    client, wrong = signed_in(ENGINEER), RULE.replace("failure", "success")

    page = post(client, act="check", text=wrong).text
    said = data(client, act="check", text=wrong).json()
    refused = data(client, act="deploy", text=wrong, reason="why not")

    assert "samples 0 of 2" in page
    assert all("fails" in one for one in said["reasons"])
    assert [one["problems"] != [] for one in said["samples"]] == [True, True]
    assert refused.status_code == 409
    assert deployed(node) == []


def test_what_samples_lack_and_what_no_sample_misses_is_said_and_forbids_nothing(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    one = SAMPLES.partition("  - {name: a right one")[0]

    page = post(client, act="check", samples=one).text
    said = data(client, act="check", samples=one).json()
    proof = post(client, act="prove", samples=one).text
    proven = data(client, act="prove").json()
    wrong = data(client, act="prove", text=RULE.replace("failure", "success"))

    assert (said["reasons"], said["lacking"]) == ([], [
        "1 of at least 2 cases of kind 'must match'",
        "0 of at least 1 cases of kind 'near miss'",
        "0 of at least 2 cases of kind 'ordinary'",
        "no 'must match' case is raw (records or frames through a collector)",
    ])  # fmt: skip
    (listed,) = re.findall("<div class=[^>]* data-lacking>(.*?)</ul>", page, re.DOTALL)
    assert "0 of at least 2 cases" in listed
    assert "Leave out each line" in page
    assert "failed: event.outcome</li>" in proof
    assert proven["unnoticed"] == ["failed: event.action"]
    assert (wrong.status_code, wrong.json()["error"]["what"]) == (400, "a sample fails as it is")
    deployed = post(client, act="deploy", samples=one, reason="it will be proven")
    assert deployed.status_code == 303


def test_a_character_that_nobody_sees_is_told_at_its_line(node: FakeNode, signed_in: Enter) -> None:
    turned = RULE.replace("Wrong password", "Wrong \u202epassword") + "# \u200b\u200b\n"

    said = data(signed_in(ENGINEER), act="check", text=turned).json()

    unseen = [(one["line"], one["what"]) for one in said["marks"] if "invisible" in one["what"]]
    assert unseen == [
        (2, "an invisible character U+202E, right-to-left override"),
        (9, "an invisible character U+200B, zero width space"),
    ]
    assert said["reasons"] == []


# ---- Tried and previewed


def test_a_line_is_tried_and_explained(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)

    page = post(client, act="try", line=LINE).text
    (said,) = data(client, act="try", line=LINE, text=RULE.replace("failure", "success")).json()[
        "events"
    ]
    nothing = post(client, act="try", line=" ")
    unknown = data(client, act="try", line=LINE, collector="nobody")
    no_line = data(client, act="try", line="what is this")

    assert "The rule speaks." in page
    assert in_textarea(page, "line") == LINE
    assert (said["matched"], said["collector"]) == (False, "syslog")
    assert [one["held"] for one in said["why"]["checks"]] == [True, False]
    assert (nothing.status_code, unknown.status_code) == (400, 400)
    assert "There is no line" in nothing.text
    assert unknown.json()["error"]["what"] == "no collector is called 'nobody'"
    assert no_line.json()["error"]["what"] == "no collector recognises the line"


def test_a_line_that_keeps_the_rule_silent_is_named(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    tuned = RULE.replace("condition: failed", "root: {source.ip: 192.0.2.7, user.name: root}\n"
                         "  other: {user.name: root, source.port: 1}\n"
                         "  condition: failed and not root and not other")  # fmt: skip

    page = post(client, act="try", text=tuned, line=LINE).text
    spoken = post(client, act="try", line=LINE).text

    (because,) = re.findall(r"<b>Because of</b>(.*?)</ul>", page, re.DOTALL)
    named = re.findall(r"<li><span>(not )?<span class=\"mono\">([\w.]+)</span>", because)
    assert sorted(named) == [("not ", "source.ip"), ("not ", "user.name")]
    assert "Because of" not in spoken


def test_the_filter_that_hides_an_event_is_named_among_those_that_do_not(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    harmless = (("192.0.2.7", "Our: scanner"), ("192.0.2.8", "The installer"))
    ids = {}
    for address, title in harmless:
        (one,) = findings(node.db, f"source.ip:{address}")
        until = NOW.date().replace(year=2027)
        made, _, _ = node.tuning.filter_of(one, ["source.ip"], title, until, ENGINEER)
        made = re.sub("^title: .*$", f"title: '{title}'", made, flags=re.MULTILINE)
        ids[title] = node.tuning.examine(made).document
        node.tuning.deploy(made, "", ENGINEER, title, 0)

    page = post(client, act="try", line=LINE).text
    (said,) = data(client, act="try", line=LINE).json()["events"]

    assert "A filter hides the event." in page
    for title, state in (("Our: scanner", "Hides the event"), ("The installer", "Lets it pass")):
        link = f'<h3 class="mt2">Filter <a href="/filters/{ids[title]}">{title}</a></h3>'
        (behind,) = re.findall(f"{link}(.*?)<table", page, re.DOTALL)
        assert state in behind
    assert "<li><span><b>Our: scanner:</b> not" in page
    assert "(filter The installer: not " in said["why"]["condition"]


def test_a_preview_says_what_goes_and_why(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    store = assembly.events_of(node.tuning._settings, lambda: NOW, write=True)
    events = [*attempts("192.0.2.7", count=3), *attempts("192.0.2.8", minute=1)]
    store.append([document(one) for one in events], {})
    store.close()
    narrow = RULE.replace("failure}", "failure, source.ip: 192.0.2.7}")

    judged = [one["finding.id"] for one in findings(node.db)]
    node.db.change(judged, Change(verdict="benign"), ENGINEER, NOW)
    node.inventory.rows["gw"] = AssetRow(Asset(id="gw", zone="dmz"), "approved", "person")

    begun = data(client, act="preview", text=narrow, days="7").json()
    until = time.monotonic() + PATIENCE_S
    while not (job := client.get(f"{EDIT}.json?job={begun['job']}").json())["is_over"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    page = post(client, act="look", text=narrow, job=begun["job"], days="7").text
    stale = post(client, act="look", text=RULE, job=begun["job"]).text
    gone = job["result"]["gone"][0]
    node.events.documents = [document(one) for one in events]
    for number, one in enumerate(node.events.documents):
        one["event.id"] = gone["event"] if number == len(events) - 1 else str(number)
    why = f"why {gone['event']} {gone['time']}"
    told = post(client, act=why, text=narrow, job=begun["job"]).text
    kept = node.tuning.job(begun["job"])
    assert kept
    kept.result = msgspec.structs.replace(kept.result, is_whole=False)
    cancelled = post(client, act="look", text=narrow, job=begun["job"], days="7").text

    assert (job["fault"], job["result"]["total"]["would"], job["result"]["total"]["gone"]) == (
        "", 3, 1,
    )  # fmt: skip
    assert "Sample of what goes" in page
    assert re.search(r"Cost: <b>[\d.]+ µs</b> of a processor for an event, &lt; 1 %", page)
    assert "for the 4 events of its log source in this time" in page
    assert job["cost"]["events"] == 4
    assert re.search(r">gw</a></th><td>dmz</td><td><a[^>]*>Benign</a></td>", page)
    assert ("in 7 days</small>" in page, "of 4 that count today" in page) == (True, True)
    assert "the rest of the 7 days was not looked at" in cancelled
    assert "until it was cancelled</small>" in cancelled
    assert "in 7 days</small>" not in cancelled
    assert "that count today" not in cancelled
    assert 'class="mt stale"' not in page
    assert 'class="mt stale"' in stale
    assert "The rule is silent." in told
    assert "Sample of what goes" in told


def test_a_preview_is_cancelled_and_an_unknown_one_is_said(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    begun = data(client, act="preview", days="7").json()

    cancelled = data(client, act="cancel", job=begun["job"])
    unknown = data(client, act="look", job="nothing")
    days = data(client, act="preview", days="13")
    other = client.get(f"/rules/{RULE_ID}/edit.json?job=nothing").json()

    assert cancelled.json()["job"] == begun["job"]
    assert (unknown.status_code, days.status_code) == (400, 400)
    assert other["origin"] == "file"


# ---- Kept, deployed, taken back


def test_a_change_is_deployed_with_a_reason_and_taken_back(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)

    bare = post(client, act="deploy", text=LOUDER, reason=" ", back_reason="too loud")
    entered = post(client, act="check", text=LOUDER, reason="it was too quiet").text
    done = post(client, act="deploy", text=LOUDER, reason="it was too quiet")
    (version,) = deployed(node)
    page = client.get(done.headers["location"]).text
    unseen = post(client, f"/rules/{RULE_ID}/revert", number="0", back_reason="too loud")
    seen = {"number": "0", "back_reason": "too loud", "seen": str(version.number)}
    back = post(client, f"/rules/{RULE_ID}/revert", **seen)

    assert unseen.status_code == 409
    assert bare.status_code == 400
    assert "The reason is empty" in bare.text
    assert "Where:" not in bare.text
    assert '<details class="drop right" id="deploy">' in bare.text
    assert '<details class="drop right" id="deploy" open>' in entered
    assert in_textarea(bare.text, "text") == LOUDER
    assert (version.text, version.by, version.reason) == (LOUDER, ENGINEER, "it was too quiet")
    assert f"deployed: version {version.number}" in page
    assert "it was too quiet" in page
    assert back.headers["location"] == f"{EDIT}?done=taken-back"
    after = client.get(back.headers["location"]).text
    assert "its file counts again" in after
    assert in_textarea(after, "text") == RULE
    assert "removed: </span>level: high" in after
    assert "removed: </span>title" not in after


def test_an_older_version_is_gone_back_to_and_what_changed_is_shown(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    first = data(client, act="deploy", text=LOUDER, reason="one").json()["number"]
    lower = RULE.replace("level: medium", "level: low")
    second = data(client, act="deploy", text=lower, reason="two", seen=str(first)).json()["number"]

    page = client.get(EDIT).text
    gone = data(client, f"/rules/{RULE_ID}/revert", number="77", reason="x")
    bare = data(client, f"/rules/{RULE_ID}/revert", number=str(first), reason="")
    back = {"number": str(first), "reason": "it was right", "seen": str(second)}
    done = data(client, f"/rules/{RULE_ID}/revert", **back)

    assert "Against its file, as it is today." in page
    assert "removed: </span>level: medium" in page
    assert "added: </span>title" not in page
    assert "added: </span>level: low" in page
    assert "removed: </span>level: high" in page
    assert (gone.status_code, bare.status_code) == (400, 400)
    assert done.json()["done"] == "reverted"
    assert done.json()["number"] > second
    assert text_of(client) == LOUDER


def test_a_version_of_more_digits_than_there_are_takes_nothing_back(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    first = node.tuning.deploy(LOUDER, SAMPLES, ENGINEER, "one", 0)
    said = {"reason": "x", "seen": str(first)}

    long = data(client, f"/rules/{RULE_ID}/revert", number=f"{first:021d}", **said)

    assert long.status_code == 400
    assert long.json()["error"]["where"] == "number"
    assert [one.text for one in deployed(node)] == [LOUDER]
    assert data(client, f"/rules/{RULE_ID}/revert", number="0" * 18, **said).status_code == 200


def test_who_is_late_to_deploy_sees_what_the_other_did_before_they_replace_it(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    node.tuning.deploy(LOUDER, SAMPLES, OTHER, "it was too quiet", 0)

    late = post(client, act="deploy", text=RULE, reason="second", seen="0")
    (first,) = deployed(node)
    program = data(client, act="deploy", text=RULE, reason="second", seen="0").json()
    again = post(client, act="deploy", text=RULE, reason="second", seen=str(first.number))

    said = f"ersion {first.number} has been deployed since, by e.ngineer, 2026-"
    assert (late.status_code, again.status_code) == (409, 303)
    assert f"V{said}" in late.text
    assert "UTC: it was too quiet." in late.text
    assert in_textarea(late.text, "text") == RULE
    assert f'name="seen" value="{first.number}"' in late.text
    (theirs,) = theirs_in(late.text)
    assert "removed: </span>level: high" in theirs
    assert "added: </span>level: medium" in theirs
    assert f"v{said}" in program["error"]["what"]


def test_who_is_late_to_deploy_what_was_taken_back_sees_the_file(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    first = node.tuning.deploy(LOUDER, SAMPLES, OTHER, "one", 0)
    last = node.tuning.revert(RULE_ID, 0, OTHER, "the file was right")

    late = post(client, act="deploy", text=LOUDER, reason="mine", seen=str(first))

    assert "It was taken back since, by e.ngineer" in late.text
    assert f'name="seen" value="{last}"' in late.text
    (theirs,) = theirs_in(late.text)
    assert "removed: </span>level: medium" in theirs


def test_who_is_late_to_save_sees_the_other_draft_before_they_replace_it(
    node: FakeNode, signed_in: Enter
) -> None:
    client, samples = signed_in(ENGINEER), SAMPLES.replace("a wrong one", "theirs")
    node.tuning.save(LOUDER + "# theirs\n", samples, OTHER)

    blind = post(client, act="save", text=RULE)
    draft = client.get(f"{EDIT}.json").json()["draft"]
    knowing = data(client, act="save", text=LOUDER + "# mine\n", draft=draft)

    assert blind.status_code == 409
    assert "Another draft has been saved since, by e.ngineer." in blind.text
    assert "Where:" not in blind.text
    assert in_textarea(blind.text, "text") == RULE
    assert html.unescape(f'name="draft" value="{draft}"') in html.unescape(blind.text)
    (theirs,) = theirs_in(blind.text)
    assert "removed: </span># theirs" in theirs
    assert f"{LOUDER}# theirs\n</textarea>" in html.unescape(theirs)
    assert f"{samples}</textarea>" in html.unescape(theirs)
    assert knowing.status_code == 200
    assert text_of(client).endswith("# mine\n")


def test_who_saves_over_a_newer_version_sees_it_before_they_deploy(
    node: FakeNode, signed_in: Enter
) -> None:
    client, mine = signed_in(ENGINEER), RULE.replace("level: medium", "level: low")
    first = node.tuning.deploy(LOUDER, SAMPLES, ENGINEER, "one", 0)
    second = node.tuning.deploy(RULE, SAMPLES, OTHER, "it was too loud", first)

    late = post(client, act="save", text=mine, seen=str(first))
    program = data(client, act="save", text=mine, seen=str(first))
    assert list(node.tuning.drafts()) == []
    again = post(client, act="save", text=mine, seen=str(second))
    draft = client.get(f"{EDIT}.json").json()["draft"]
    unsaid = form(client, act="save", text=mine, draft=draft)
    del unsaid["seen"]

    assert (late.status_code, program.status_code, again.status_code) == (409, 409, 303)
    assert f"Version {second} has been deployed since, by e.ngineer" in late.text
    (theirs,) = theirs_in(late.text)
    assert "removed: </span>level: medium" in theirs
    assert f'name="seen" value="{second}"' in late.text
    for part in (f"deployed: version {second}", f"<b>Version {second}</b>"):
        before, _, _ = late.text.partition(part)
        assert before.rpartition("data-live=")[2].startswith('"save"')
    assert client.post(f"{EDIT}.json", data=unsaid).status_code == 200


def test_who_deploys_forgets_no_draft_that_they_did_not_see(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    node.tuning.save(LOUDER + "# theirs\n", SAMPLES, OTHER)
    draft = client.get(f"{EDIT}.json").json()["draft"]

    blind = post(client, act="deploy", text=LOUDER, reason="louder")
    assert [one.by for one in node.tuning.drafts()] == [OTHER]
    knowing = post(client, act="deploy", text=LOUDER, reason="louder", draft=draft)

    assert (blind.status_code, knowing.status_code) == (409, 303)
    assert "Another draft has been saved since, by e.ngineer." in blind.text
    (theirs,) = theirs_in(blind.text)
    assert "removed: </span># theirs" in theirs


def test_a_draft_that_is_saved_while_another_text_is_deployed_stays(
    node: FakeNode, signed_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, deploy = signed_in(ENGINEER), node.tuning.deploy
    node.tuning.save(LOUDER + "# mine\n", SAMPLES, ENGINEER)
    draft = client.get(f"{EDIT}.json").json()["draft"]

    def late(*given: Any) -> int:
        node.clock = node.tuning._clock() + timedelta(seconds=1)
        node.tuning.save(LOUDER + "# theirs\n", SAMPLES, OTHER, datetime.fromisoformat(draft))
        return int(deploy(*given))

    monkeypatch.setattr(node.tuning, "deploy", late)
    done = post(client, act="deploy", text=LOUDER, reason="louder", draft=draft)

    assert done.status_code == 303
    assert [one.text for one in deployed(node)] == [LOUDER]
    assert [(one.by, one.text) for one in node.tuning.drafts()] == [(OTHER, LOUDER + "# theirs\n")]


def test_a_draft_that_was_seen_goes_when_another_text_is_deployed(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    node.tuning.save(LOUDER + "# theirs\n", SAMPLES, OTHER)
    draft = client.get(f"{EDIT}.json").json()["draft"]

    post(client, act="deploy", text=LOUDER, reason="louder", draft=draft)

    assert list(node.tuning.drafts()) == []


def test_only_what_was_shown_has_been_seen(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    node.tuning.deploy(LOUDER, SAMPLES, OTHER, "one", 0)
    node.tuning.save(LOUDER, SAMPLES, OTHER)

    late = post(client, act="deploy", text=LOUDER, reason="two", seen="0")

    version, draft = theirs_in(late.text)
    assert "Version 1" in version
    assert "Draft" in draft
    assert "It says the same as yours." in draft


def test_a_draft_of_another_document_is_not_written_over_either(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    blank = client.get("/rules/new.json").json()["document"]
    node.tuning.save(LOUDER, SAMPLES, OTHER)

    blind = post(client, f"/rules/{blank}/edit", act="save", text=RULE)

    assert blind.status_code == 409
    assert in_textarea(blind.text, "text") == RULE
    assert [(one.by, one.text) for one in node.tuning.drafts()] == [(OTHER, LOUDER)]
    (theirs,) = theirs_in(blind.text)
    assert f'another document than this page: <a class="mono" href="{EDIT}">' in theirs
    knowing = post(client, f"/rules/{blank}/edit", act="save", text=RULE, **hidden_in(blind.text))
    assert knowing.headers["location"] == f"{EDIT}?done=saved"


@pytest.mark.parametrize("act", ["save", "deploy"])
def test_a_version_of_another_document_is_seen_before_it_is_replaced(
    node: FakeNode, signed_in: Enter, act: str
) -> None:
    client = signed_in(ENGINEER)
    blank = client.get("/rules/new.json").json()["document"]
    first = node.tuning.deploy(LOUDER, SAMPLES, OTHER, "one", 0)
    said = {"act": act, "text": RULE, "reason": "back"}

    blind = post(client, f"/rules/{blank}/edit", **said)
    knowing = post(client, f"/rules/{blank}/edit", **said, **hidden_in(blind.text))

    assert (blind.status_code, knowing.status_code) == (409, 303)
    (theirs,) = theirs_in(blind.text)
    assert f"Version {first}" in theirs


def test_a_copy_with_an_id_of_its_own_replaces_no_version(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    first = node.tuning.deploy(LOUDER, SAMPLES, OTHER, "one", 0)
    copy = RULE.replace(RULE_ID, client.get("/rules/new.json").json()["document"])
    said = {"text": copy, "reason": "a copy"}

    saved = post(client, act="save", seen=str(first), **said)
    done = post(client, act="deploy", seen=str(first), **said)

    assert (saved.status_code, done.status_code) == (303, 303)
    assert [len(node.tuning.history(one)) for one in (RULE_ID, id_in(copy))] == [1, 1]


def test_who_is_refused_for_another_reason_has_seen_no_newer_draft(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    node.tuning.save(LOUDER, SAMPLES, OTHER)

    refused = post(client, act="deploy", reason="")

    assert refused.status_code == 400
    assert 'name="draft" value=""' in refused.text
    assert theirs_in(refused.text) == []


def test_a_draft_is_discarded(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    node.tuning.save(LOUDER, SAMPLES, OTHER)
    assert "draft of e.ngineer" in client.get(EDIT).text
    listed = client.get("/rules").text
    assert "1 draft waits" in listed
    assert f'href="{EDIT}"' in listed

    blind = post(client, act="discard", text=LOUDER)
    assert blind.status_code == 409
    assert [one.by for one in node.tuning.drafts()] == [OTHER]

    draft = client.get(f"{EDIT}.json").json()["draft"]
    done = post(client, act="discard", text=LOUDER, draft=draft)

    assert done.headers["location"] == f"{EDIT}?done=discarded"
    assert list(node.tuning.drafts()) == []


def test_what_was_right_is_never_silenced_and_leads_to_its_finding(
    node: FakeNode, signed_in: Enter
) -> None:
    (one,) = findings(node.db, "source.ip:192.0.2.8")
    id = one["finding.id"]
    node.db.change([id], Change(verdict="true_positive"), "i.vasko", NOW)
    client = signed_in(ENGINEER)

    page = post(client, act="check", text=DEAF, samples=DEAF_SAMPLES).text
    refused = post(client, act="deploy", text=DEAF, samples=DEAF_SAMPLES, reason="quieter")

    assert "One finding that was right would not be made any more" in page
    assert f'href="/findings/{id}"' in page
    assert refused.status_code == 409
    assert "would not be made any more" in refused.text
    assert deployed(node) == []
    assert f'href="/findings/{id}"' in client.get(EDIT).text


def test_what_comes_with_cityward_lacks_a_second_person_until_one_has_saved_it(
    node: FakeNode, signed_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siem.workbench.shipped_ids", lambda: frozenset((RULE_ID,)))
    client = signed_in(ENGINEER)

    alone = post(client, act="deploy", text=LOUDER, reason="louder")
    node.tuning.save(LOUDER, SAMPLES, OTHER)
    page = client.get(EDIT).text
    fewer = post(client, act="check", text=LOUDER, samples=f"{SAMPLES}# fewer").text
    done = post(client, act="deploy", text=LOUDER, reason="louder, seen by two")

    assert "second person missing" in fewer
    assert alone.status_code == 409
    assert "second person missing" in alone.text
    assert "second person, after e.ngineer" in page
    assert done.status_code == 303
    assert [one.by for one in deployed(node)] == [ENGINEER]


def test_what_would_be_missed_by_going_back_stands_in_the_editor_for_two(
    node: FakeNode, signed_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siem.workbench.shipped_ids", lambda: frozenset((RULE_ID,)))
    client = signed_in(ENGINEER)
    node.tuning.save(DEAF, DEAF_SAMPLES, OTHER)
    number = node.tuning.deploy(DEAF, DEAF_SAMPLES, ENGINEER, "one host alone", 0)
    node.tuning.save(RULE, SAMPLES, OTHER)
    wide = node.tuning.deploy(RULE, SAMPLES, ENGINEER, "every host again", number)
    back = {"number": str(number), "back_reason": "too loud", "seen": str(wide)}

    refused = post(client, f"/rules/{RULE_ID}/revert", **back)

    assert refused.status_code == 409
    assert "It would miss what counts now must find: a wrong one" in refused.text
    assert "another person deploys it" in refused.text
    assert in_textarea(refused.text, "text") == DEAF
    assert in_textarea(refused.text, "samples") == DEAF_SAMPLES


def test_a_note_is_kept_and_nothing_that_is_written_is_lost_by_it(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    blank = client.get("/rules/new.json").json()["document"]

    page = post(client, act="note", text=LOUDER, note="Loud at night:\r\nask the installer.").text
    empty = post(client, act="note", text=LOUDER, note=" ")
    unsaved = post(client, f"/rules/{blank}/edit", act="note", note="too soon")
    (said,) = client.get(f"{EDIT}.json").json()["notes"]

    assert "The note is kept." in page
    assert "<b>b.oth</b><br>Loud at night:<br>ask the installer." in page
    assert in_textarea(page, "text") == LOUDER
    assert in_textarea(page, "note") == ""
    assert (said["text"], said["by"]) == ("Loud at night:\nask the installer.", ENGINEER)
    assert (empty.status_code, unsaved.status_code) == (400, 400)
    assert "This rule is not kept yet" in unsaved.text
    assert in_textarea(unsaved.text, "note") == "too soon"


@pytest.mark.parametrize("act", ["save", "deploy", "discard", "revert"])
def test_a_note_that_was_typed_is_kept_along_with_what_leaves_the_page(
    node: FakeNode, signed_in: Enter, act: str
) -> None:
    client = signed_in(ENGINEER)
    said = {"text": LOUDER, "reason": "it is right", "note": "Loud at night.", "act": act}
    path = EDIT
    if act == "revert":
        node.tuning.deploy(LOUDER, SAMPLES, ENGINEER, "louder", 0)
        path, said["number"] = f"/rules/{RULE_ID}/revert", "0"
        said["seen"] = str(deployed(node)[0].number)

    assert post(client, path, **said).status_code == 303

    assert [(one.text, one.by) for one in node.tuning.notes(RULE_ID)] == [
        ("Loud at night.", ENGINEER)
    ]


@pytest.mark.parametrize("act", ["save", "deploy"])
def test_nothing_counts_beside_a_note_that_cannot_be_kept(
    node: FakeNode, signed_in: Enter, act: str
) -> None:
    long = "x" * 2_001

    refused = post(signed_in(ENGINEER), act=act, reason="it is right", text=LOUDER, note=long)

    assert refused.status_code == 400
    assert "A note has 1 to 2,000 characters, this one 2,001" in refused.text
    assert in_textarea(refused.text, "note") == long
    assert (deployed(node), list(node.tuning.drafts())) == ([], [])


def test_a_note_stays_in_its_field_if_what_it_came_with_is_refused(
    node: FakeNode, signed_in: Enter
) -> None:
    refused = post(signed_in(ENGINEER), act="deploy", note="Loud at night.")

    assert "The reason is empty" in refused.text
    assert in_textarea(refused.text, "note") == "Loud at night."
    assert node.tuning.notes(RULE_ID) == []


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({}, "It is checked; nothing has changed."),
        ({"line": LINE}, "The rule speaks."),
        ({"reason": "it is right"}, "nothing has changed before you press Let it count."),
        ({"reason": "it is right", "line": LINE}, "nothing has changed before you press"),
    ],
)
def test_enter_in_a_field_changes_nothing_whatever_field_it_is(
    node: FakeNode, signed_in: Enter, said: dict[str, str], words: str
) -> None:
    page = post(signed_in(ENGINEER), act="enter", text=LOUDER, note="Loud at night.", **said).text

    assert words in page
    assert ('value="deploy" autofocus' in page) is ("reason" in said)
    assert (in_textarea(page, "text"), in_textarea(page, "note")) == (LOUDER, "Loud at night.")
    assert (deployed(node), node.tuning.notes(RULE_ID)) == ([], [])


def test_the_newest_notes_stand_on_the_page_and_it_says_how_many_are_older(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    for number in range(23):
        node.tuning.note(RULE_ID, f"note {number}.", OTHER)

    page, said = client.get(EDIT).text, client.get(f"{EDIT}.json").json()

    assert re.findall(r"<br>note (\d+)\.", page) == [str(number) for number in range(22, 2, -1)]
    assert f'And 3 older: <a href="{EDIT}.json">' in page
    assert 'data-live="note">23</span>' in page
    assert len(said["notes"]) == 23


# ---- Who may, and what may stand there


def test_an_analyst_reads_rules_and_changes_none(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in("i.vasko")

    assert "/edit" not in client.get(f"/rules/{RULE_ID}").text
    assert "New rule" not in client.get("/rules").text
    for answer in (client.get(EDIT), client.get("/rules/new"), post(client, act="save")):
        assert answer.status_code == 403


@pytest.mark.parametrize(("scopes", "status"), [(("tune",), 403), (("tune", "read"), 200)])
def test_a_program_that_may_only_tune_is_told_nothing_of_kept_events(
    node: FakeNode, client: TestClient, scopes: tuple[str, ...], status: int
) -> None:
    node.give_token("tuner", ENGINEER, *scopes)
    job = node.tuning.preview(RULE, 7, OTHER).id
    node.events.documents = [document(one) for one in attempts("192.0.2.7", count=1)]
    event = node.events.documents[0]["event.id"] = "e-1"
    said = {"text": RULE, "job": job, "days": "7", "event": event}

    answers = [
        client.post(f"{EDIT}.json", data=said | {"act": act}, headers=TUNER)
        for act in ("preview", "look", "why", "cancel")
    ]
    answers.append(client.get(f"{EDIT}.json?job={job}", headers=TUNER))

    assert [one.status_code for one in answers] == [status] * 5
    assert client.post(f"{EDIT}.json", data=said, headers=TUNER).status_code == 200


def test_nothing_changes_without_the_token_of_the_session(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)

    for act in ("check", "save", "deploy", "note"):
        assert post(client, act=act, reason="x", csrf="x").status_code == 403
    assert post(client, f"/rules/{RULE_ID}/revert", number="0", csrf="x").status_code == 403
    assert list(node.tuning.drafts()) == []


def test_hostile_words_of_every_field_are_text(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)
    names = (
        *("text", "samples", "line", "collector", "reason", "seen", "draft", "job", "days", "note"),
    )
    said = dict.fromkeys(names, HOSTILE)
    pages = [
        post(client, act=act, **said)
        for act in ("check", "save", "deploy", "note", "try", "preview", f"why {HOSTILE}", HOSTILE)
    ]
    back = post(client, f"/rules/{RULE_ID}/revert", number=HOSTILE, back_reason=HOSTILE)
    titled = RULE.replace("Wrong password", f"'{HOSTILE}'").replace("failed:", "'<b>failed':")
    shown = post(client, act="try", text=titled, line=LINE.replace("root", "<script>alert"))

    for page in (*pages, back, shown):
        assert page.status_code in (200, 400, 409)
        assert "<script>alert" not in page.text
        assert ">49<" not in page.text
    assert in_textarea(pages[0].text, "text") == HOSTILE


def test_unknown_acts_and_numbers_are_refused(node: FakeNode, signed_in: Enter) -> None:
    client = signed_in(ENGINEER)

    assert data(client, act="dance").status_code == 400
    assert data(client, f"/rules/{RULE_ID}/revert", number="-1", reason="x").status_code == 400
    assert data(client, f"/rules/{RULE_ID}/revert", number="0", reason="x").status_code == 400
    assert data(client, act="save", text="title: no id").status_code == 400
    assert data(client, act="save", text="id: ../hunt").status_code == 400
    assert data(client, act="save", draft="0001-01-01T00:00:00+23:59").status_code == 200


def test_a_difference_names_lines_and_does_not_take_for_ever() -> None:
    assert diff("a\nb\n", "a\nc\n") == [("", "a"), ("del", "b"), ("add", "c")]
    assert diff("same", "same") == []
    assert diff("x\n" * 50_000, "y\n" * 50_000)[0][0] == "gap"


# ---- The list and the page of a rule


def test_rules_are_sorted_by_their_noise(node: FakeNode, signed_in: Enter) -> None:
    rule = node.rules()[3]
    node.rule_states = [*node.rules(), msgspec.structs.replace(rule, id=RULE_ID, title="Loud")]
    one, other = findings(node.db)
    node.db.change([one["finding.id"]], Change(verdict="false_positive"), "i.vasko", NOW)
    node.db.change([other["finding.id"]], Change(verdict="true_positive"), "i.vasko", NOW)
    client = signed_in(ENGINEER)

    first = client.get("/rules.json?sort=-noise").json()["rows"][0]
    page = client.get("/rules?sort=-noise").text

    assert (first["id"], first["noise"], first["judged"]) == (RULE_ID, 1, 2)
    assert '1<span class="muted"> 50 %</span>' in page
    assert page.index("Loud") < page.index(rule.title)


def test_a_long_list_of_rules_comes_in_pages(node: FakeNode, signed_in: Enter) -> None:
    (first, *_) = node.rule_states
    node.rule_states = [
        msgspec.structs.replace(first, id=f"r-{number:03d}", title=f"Rule {number:03d}")
        for number in range(120)
    ]
    client = signed_in(ENGINEER)

    pages = [client.get(f"/rules?sort=title&offset={offset}").text for offset in (0, 50, 100, 150)]
    last = client.get("/rules.json?sort=title&offset=100").json()

    assert [page.count("<tr data-row") for page in pages] == [50, 50, 20, 0]
    assert "51 to 100 of 120 rules" in pages[1]
    assert "Next 50" not in pages[2]
    assert "The list ends before" in pages[3]
    assert (last["total"], [one["id"] for one in last["rows"]][::19]) == (120, ["r-100", "r-119"])


def test_the_page_of_a_deployed_rule_has_its_text_and_its_samples(
    node: FakeNode, signed_in: Enter
) -> None:
    client = signed_in(ENGINEER)
    number = node.tuning.deploy(LOUDER, SAMPLES, ENGINEER, "too quiet", 0)
    (first, *_) = node.rule_states
    file = f"rulebook/{RULE_ID}.yml:2"
    node.rule_states = [msgspec.structs.replace(first, id=RULE_ID, file=file, kind="rule")]

    page = client.get(f"/rules/{RULE_ID}").text
    run = client.get(f"/rules/{RULE_ID}?samples=1").text

    assert "level: high" in re.sub("<[^>]+>", "", page)
    assert "not at hand" not in page
    assert "run them" in page
    assert f"of version {number}" in run
    assert "2 of 2 pass" in run


def test_the_page_of_a_rule_has_its_filters_and_what_may_not_be_silenced(
    node: FakeNode, signed_in: Enter
) -> None:
    state = msgspec.structs.replace(
        node.rules()[3], id=RULE_ID, never_seen=("user.domain",), share=0.25
    )
    node.rule_states = [state]
    (one,) = findings(node.db, "source.ip:192.0.2.7")
    (noisy,) = findings(node.db, "source.ip:192.0.2.8")
    node.db.change([one["finding.id"]], Change(verdict="true_positive"), "i.vasko", NOW)
    until = NOW.date().replace(year=2027)
    made, _, _ = node.tuning.filter_of(noisy, ["source.ip"], "our scanner", until, ENGINEER)
    node.tuning.deploy(made, "", ENGINEER, "our scanner", 0)
    page = signed_in(ENGINEER).get(f"/rules/{RULE_ID}").text

    assert "Not Wrong password" in page
    assert "Never to be silenced" in page
    assert f'href="/findings/{one["finding.id"]}"' in page
    assert f'href="{EDIT}"' in page
    assert "25 % of the time of all rules" in page
    assert "user.domain" in page
    assert "none yet" in page
    node.rule_states = [msgspec.structs.replace(state, canary_at=NOW)]
    assert (
        "not found; a filter or a change hides" in signed_in(ENGINEER).get(f"/rules/{RULE_ID}").text
    )
    assert "canary missed" in signed_in(ENGINEER).get("/rules").text
