"""The rule workbench in a real Chromium: keyboard alone, without script, accessibility, width."""

from __future__ import annotations

from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, Request, Route, expect

from siem import assembly
from siem.node import document
from tests.siem.console import fake
from tests.siem.console.conftest import Served
from tests.siem.console.test_browser import Serve, _axe, enter, wider
from tests.siem.test_tuning import NOW, RULE, RULE_ID, SAMPLES, attempts, seen

pytestmark = pytest.mark.browser

EDIT = f"/rules/{RULE_ID}/edit"
LINE = "2026-01-05T10:00:00Z gw sshd[7]: Failed password for root from 192.0.2.7 port 4000 ssh2"
ENGINEER = "b.oth"
LOOKS: tuple[tuple[int, Literal["dark", "light"]], ...] = ((390, "dark"), (1440, "light"))


def tuned() -> fake.FakeNode:
    """A node with a version, a draft and findings of a real rule."""
    node = fake.operator()
    settings, events = node.tuning._settings, attempts("192.0.2.7", count=3)
    seen(settings, node.db, events)
    store = assembly.events_of(settings, lambda: NOW, write=True)
    store.append([document(one) for one in events], {})
    store.close()
    node.findings = node.db  # type: ignore[assignment]
    node.clock = NOW
    return node


def posted(request: Request) -> str:
    """What a page sent; empty: it only asked."""
    return request.post_data or ""


def refuse(page: Page, status: int) -> None:
    """Every form is answered so."""

    def answer(route: Route) -> None:
        if posted(route.request):
            route.fulfill(status=status, content_type="text/html", body="<p>no</p>")
        else:
            route.continue_()

    page.route("**/edit", answer)


def test_from_the_list_of_findings_to_a_filter_that_counts_by_keyboard_alone(
    page: Page, serve: Serve
) -> None:
    node = tuned()
    served = serve(node)
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}/findings?from=all")
    keys = page.keyboard

    keys.press("j")
    keys.press("f")
    page.wait_for_url("**/filters/new?finding=*")
    page.go_back()  # the list does not lead there again
    expect(page.get_by_role("heading", name="Findings", level=1)).to_be_attached()
    keys.press("f")
    page.wait_for_url("**/filters/new?finding=*")
    expect(page.get_by_role("checkbox", name="source.ip")).to_be_focused()
    while page.evaluate("document.activeElement.id") != "why":
        keys.press("Tab")
    keys.type("our scanner")
    while page.evaluate("document.activeElement.value") != "add":
        keys.press("Tab")
    keys.press("Enter")

    page.wait_for_url("**/filters/*?done=added")
    assert [row.reason for row in node.tuning.filters()] == ["our scanner"]


def test_a_rule_is_changed_and_deployed_by_keyboard_alone(page: Page, serve: Serve) -> None:
    served = serve(tuned())
    enter(page, served, ENGINEER)
    page.goto(served.base + EDIT)
    text = page.get_by_role("textbox", name="Text of the rule")
    keys = page.keyboard

    text.focus()
    keys.press("Control+End")
    keys.type("sta")
    keys.press("Control+ ")
    expect(page.get_by_role("option", selected=True)).to_have_text("status")
    active = text.get_attribute("aria-activedescendant")
    expect(page.locator(f"#{active}")).to_have_text("status")
    keys.press("Enter")
    keys.press("Control+ ")
    keys.type("ex")
    expect(page.get_by_role("option")).to_have_text(["experimental"])
    keys.press("Enter")
    expect(text).to_have_value(f"{RULE}status: experimental")
    keys.press("Enter")
    keys.type("colour: blue: red")
    expect(page.locator("#b-count")).to_contain_text("1 error")
    expect(page.locator(".layer .err .msg").first).to_be_visible()
    for _ in "colour: blue: red":
        keys.press("Backspace")
    expect(page.locator("#b-count")).not_to_contain_text("error")
    page.locator("#deploy > summary").focus()
    keys.press("Enter")
    keys.press("Tab")
    keys.type("it is new")
    keys.press("Tab")
    keys.press("Enter")
    expect(page.get_by_role("status").filter(has_text="It counts")).to_be_visible()

    (version,) = served.node.tuning.history(RULE_ID)
    assert (version.text, version.reason) == (f"{RULE}status: experimental\n", "it is new")


def focused(page: Page) -> str:
    """Which element has the focus: its id, or what it is."""
    return str(page.evaluate("document.activeElement.id || document.activeElement.className"))


def test_enter_in_a_field_does_what_the_button_beside_it_does(page: Page, serve: Serve) -> None:
    served = serve(tuned())
    served.node.tuning.deploy(RULE, SAMPLES, ENGINEER, "as it was", 0)
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}{EDIT}#t-try")
    page.get_by_label("A line, as its source sends it").fill(LINE)
    page.get_by_label("Collector").press("Enter")
    expect(page.locator("[data-told]")).to_contain_text("The rule speaks.")
    assert focused(page) == "collector"

    page.get_by_role("link", name="History").press("Enter")
    assert focused(page) == "t-history"
    page.get_by_label("Reason to go back").fill("it was right")
    page.keyboard.press("Enter")
    page.locator("#b-deploy").press("Enter")
    page.get_by_label("Reason", exact=True).fill("I mean it")
    page.keyboard.press("Enter")
    page.wait_for_url("**/edit?done=deployed")

    assert "note ok" in focused(page)
    assert [one.reason for one in served.node.tuning.history(RULE_ID)] == ["I mean it", "as it was"]


def test_whoever_saves_by_key_goes_on_where_they_were(page: Page, serve: Serve) -> None:
    served = serve(tuned())
    long = RULE + "# line\n" * 200
    served.node.tuning.deploy(long, SAMPLES, ENGINEER, "it is long", 0)
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}{EDIT}#t-try")
    text = page.get_by_role("textbox", name="Text of the rule")
    text.evaluate("it => { it.focus(); it.setSelectionRange(900, 903); it.scrollTop = 500; }")

    place = "it => [it.selectionStart, it.selectionEnd, it.scrollTop]"
    served.node.tuning.save(RULE, SAMPLES, "e.ngineer")
    page.keyboard.press("Control+s")
    expect(page.locator("#b-theirs")).to_contain_text("by e.ngineer")
    assert (focused(page), text.evaluate(place)) == ("text", [900, 903, 500])
    for _ in range(2):  # theirs was seen, then ours
        page.keyboard.press("Control+s")
        expect(page.locator("#b-notes")).to_contain_text("The draft is kept")
        expect(page.locator("#b-draft")).to_have_text(f"draft of {ENGINEER}")
        assert (focused(page), text.evaluate(place)) == ("text", [900, 903, 500])
        assert page.locator("#b-theirs").inner_html() == ""
    assert page.url.endswith("/edit#t-try")
    assert [one.by for one in served.node.tuning.drafts()] == [ENGINEER]


def test_whoever_signed_in_again_on_another_page_saves_here(
    page: Page, context: BrowserContext, serve: Serve
) -> None:
    served = serve(tuned())
    enter(page, served, ENGINEER)
    page.goto(served.base + EDIT)
    context.clear_cookies()
    page.locator("#text").press("Control+s")
    notes = page.locator("#b-notes")
    expect(notes).to_contain_text("The draft is not kept: the session is over")

    other = context.new_page()
    enter(other, served, ENGINEER)
    page.keyboard.press("Control+s")

    expect(notes).to_contain_text("The draft is kept")
    assert [one.by for one in served.node.tuning.drafts()] == [ENGINEER]


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (403, "you may not do it any more"),
        (413, "it is longer than the node takes"),
        (429, "the node answers 429"),
        (503, "the node failed, and its log says why"),
    ],
)
def test_a_save_that_is_refused_says_why(page: Page, serve: Serve, status: int, why: str) -> None:
    served = serve(tuned())
    enter(page, served, ENGINEER)
    page.goto(served.base + EDIT)
    refuse(page, status)

    page.locator("#text").press("Control+s")

    expect(page.locator("#b-notes [role=alert]")).to_have_text(
        f"The draft is not kept: {why}. The text is still here."
    )
    assert served.node.tuning.drafts() == []


def test_a_save_that_fails_is_told_in_the_place_of_the_one_that_went_well(
    page: Page, context: BrowserContext, serve: Serve
) -> None:
    served = serve(tuned())
    enter(page, served, ENGINEER)
    page.goto(served.base + EDIT)
    text, notes = page.get_by_role("textbox", name="Text of the rule"), page.locator("#b-notes")
    text.press("Control+s")
    expect(notes).to_contain_text("The draft is kept")

    context.set_offline(True)
    text.press("Control+End")
    page.keyboard.type("# newer")
    page.keyboard.press("Control+s")
    gone = "The draft is not kept: the node is away. The text is still here."
    expect(notes).to_have_text(gone)
    context.set_offline(False)
    page.keyboard.press("Control+s")

    expect(notes).to_contain_text("The draft is kept")
    assert [one.text for one in served.node.tuning.drafts()] == [f"{RULE}# newer"]


def test_what_is_saved_while_a_save_is_under_way_goes_after_it(page: Page, serve: Serve) -> None:
    served = serve(tuned())
    enter(page, served, ENGINEER)
    page.goto(served.base + EDIT)
    sent: list[Request] = []
    page.on("request", lambda one: sent.append(one) if "act=save" in posted(one) else None)

    with page.expect_response(lambda answer: "newer" in posted(answer.request)):
        page.evaluate("""() => {
            const save = document.querySelector("[data-save]");
            save.click();
            document.getElementById("text").value += "# newer";
            save.click();
            save.click();
        }""")

    expect(page.locator("#b-notes")).to_contain_text("The draft is kept")
    assert [one.text for one in served.node.tuning.drafts()] == [f"{RULE}# newer"]
    assert len(sent) == 2


def test_what_is_typed_while_a_note_is_kept_stays(page: Page, serve: Serve) -> None:
    served = serve(tuned())
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}{EDIT}#t-notes")
    note, kept = page.locator("#note"), page.locator("#b-noted")
    keep = """typed => {
        const button = document.querySelector('[value="note"]');
        button.click();
        if (typed) document.getElementById("note").value += typed;
        else button.click();
    }"""

    note.fill("Loud at night.")
    page.evaluate(keep, " Ask the installer.")
    expect(kept).to_contain_text("Loud at night.")
    expect(note).to_have_value("Loud at night. Ask the installer.")
    note.fill("Ask the installer.")
    page.evaluate(keep, "")
    expect(kept).to_contain_text("Ask the installer.")
    expect(note).to_have_value("")

    notes = [one.text for one in served.node.tuning.notes(RULE_ID)]
    assert sorted(notes) == ["Ask the installer.", "Loud at night."]


def test_whoever_wrote_a_note_is_asked_before_it_is_left_behind(page: Page, serve: Serve) -> None:
    served = serve(tuned())
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}{EDIT}#t-notes")
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    note = page.locator("#note")
    note.click()
    page.keyboard.type("Loud at night.")
    with page.expect_event("dialog"):
        page.evaluate("location.assign('/rules')")
    expect(note).to_have_value("Loud at night.")

    page.locator('[value="note"]').click()
    expect(note).to_have_value("")
    page.locator("#text").press("Control+End")
    page.keyboard.type("# newer")
    with page.expect_event("dialog"):
        page.evaluate("location.assign('/rules')")
    assert asked == ["beforeunload", "beforeunload"]


def edited(browser: Browser, served: Served, *, scripted: bool, tab: str = "") -> Page:
    """The workbench in a browser with or without scripts."""
    page = browser.new_context(java_script_enabled=scripted).new_page()
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}{EDIT}{tab}")
    return page


@pytest.mark.parametrize("scripted", [True, False])
def test_a_note_that_was_typed_is_kept_by_deploy(
    browser: Browser, serve: Serve, scripted: bool
) -> None:
    served = serve(tuned())
    page = edited(browser, served, scripted=scripted, tab="#t-notes")
    page.locator("#note").fill("Loud at night.")
    page.locator("#deploy > summary").click()
    reason, count = page.get_by_label("Reason", exact=True), page.locator('[value="deploy"]')
    reason.fill("it is right")

    if not scripted:
        with page.expect_navigation():
            reason.press("Enter")
        expect(count).to_be_focused()
        expect(page.get_by_role("status").filter(has_text="It is checked")).to_be_visible()
        assert served.node.tuning.history(RULE_ID) == []
        page.keyboard.press("Shift+Tab")
        expect(reason).to_have_value("it is right")
        page.keyboard.press("Tab")
    with page.expect_navigation():
        (reason if scripted else count).press("Enter")

    expect(page.get_by_role("status").filter(has_text="It counts")).to_be_visible()
    (version,) = served.node.tuning.history(RULE_ID)
    assert version.reason == "it is right"
    assert [one.text for one in served.node.tuning.notes(RULE_ID)] == ["Loud at night."]


def test_a_draft_is_kept_without_the_note_that_is_still_being_written(
    page: Page, serve: Serve
) -> None:
    served = serve(tuned())
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}{EDIT}#t-notes")
    page.locator("#note").fill("Loud at")

    page.locator("#note").press("Control+s")

    expect(page.locator("#b-notes")).to_contain_text("The draft is kept")
    expect(page.locator("#note")).to_have_value("Loud at")
    assert served.node.tuning.notes(RULE_ID) == []


def test_enter_beside_a_line_tries_it_without_scripts_and_a_note_has_several_lines(
    browser: Browser, serve: Serve
) -> None:
    served = serve(tuned())
    page = edited(browser, served, scripted=False, tab="#t-notes")
    note = page.locator("#note")

    note.fill("Loud at night:")
    note.press("Enter")
    page.keyboard.type("ask the installer.")
    page.get_by_role("link", name="Try a line").click()
    page.get_by_label("A line, as its source sends it").fill(LINE)
    with page.expect_navigation():
        page.get_by_label("Collector").press("Enter")

    expect(page.locator("[data-told]")).to_contain_text("The rule speaks.")
    expect(note).to_have_value("Loud at night:\nask the installer.")
    assert served.node.tuning.notes(RULE_ID) == []


def test_a_new_rule_is_saved_where_it_is_found_again(page: Page, serve: Serve) -> None:
    served = serve(tuned())
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}/rules/new")

    page.locator("#text").press("Control+s")

    expect(page.locator("#b-draft")).to_have_text(f"draft of {ENGINEER}")
    (draft,) = served.node.tuning.drafts()
    assert page.url == f"{served.base}/rules/{draft.document}/edit"


@pytest.mark.parametrize("scripted", [True, False])
def test_a_line_is_tried_and_a_preview_asked_for(
    browser: Browser, serve: Serve, scripted: bool
) -> None:
    served = serve(tuned())
    page = edited(browser, served, scripted=scripted)
    proofs = page.get_by_role("navigation", name="Proofs of the rule")

    proofs.get_by_role("link", name="Try a line").click()
    page.get_by_label("A line, as its source sends it").fill(LINE)
    page.get_by_role("button", name="Try", exact=True).click()
    told = page.get_by_role("region", name="Explanation of the selected event")
    expect(told).to_contain_text("The rule speaks.")
    proofs.get_by_role("link", name="Preview").click()
    page.get_by_role("button", name="Preview", exact=True).click()
    preview = page.locator("#b-preview")
    if not scripted:
        again = preview.locator("[data-look]")
        expect(again.or_(preview.locator(".facts")).first).to_be_visible()
        while again.count():
            with page.expect_navigation():  # between pages there is nothing to count
                again.click()
    expect(preview).to_contain_text("3in 30 days")
    if scripted:
        page.get_by_role("textbox", name="Text of the rule").press("Control+End")
        page.keyboard.type("# newer")
        expect(preview).to_contain_text("The text is newer than this preview.")
        expect(preview.locator(".stale-note")).to_be_visible()
        asked: list[str] = []

        def leave(dialog: Dialog) -> None:
            asked.append(dialog.type)
            dialog.accept()

        page.on("dialog", leave)
        page.goto(f"{served.base}/rules")
        assert asked == ["beforeunload"]
    page.context.close()


def test_two_filters_of_one_title_are_told_apart(page: Page, serve: Serve) -> None:
    served = serve(tuned())
    ids = [f"7c0de9a4-5a4b-4d52-9a3e-2f0f5b6f1d1{number}" for number in (1, 2)]
    for id, address in zip(ids, ("192.0.2.8", "192.0.2.7"), strict=True):
        known = f"filter: {{rules: [{RULE_ID}], known: {{source.ip: {address}}}, "
        served.node.tuning.deploy(
            f"title: Not wrong password\nid: {id}\nauthor: b.oth\nlogsource: {{service: sshd}}\n"
            f"{known}condition: not known}}\n"
            "cityward: {reason: ours, expires: 2027-01-01}\n",
            "", ENGINEER, "ours", 0,
        )  # fmt: skip
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}{EDIT}#t-try")
    page.get_by_label("A line, as its source sends it").fill(LINE)
    page.get_by_role("button", name="Try", exact=True).click()

    told = page.locator("[data-told]")
    expect(told).to_contain_text("A filter hides the event.")
    for id, state in zip(ids, ("Lets it pass", "Hides the event"), strict=True):
        heading = told.locator("h3").filter(has=page.locator(f'a[href="/filters/{id}"]'))
        expect(heading).to_have_text("Filter Not wrong password")
        expect(heading.locator("+ p")).to_have_text(state)
        expect(heading.locator("+ p + div tbody")).to_have_count(1)


@pytest.mark.parametrize("width", [390, 900, 1440])
def test_what_it_takes_to_deploy_stands_below_the_title(
    page: Page, serve: Serve, width: int
) -> None:
    served = serve(tuned())
    long = "A very long title that somebody wrote who does not know that titles should be short"
    served.node.tuning.save(RULE.replace("Wrong password", long), SAMPLES, ENGINEER)
    enter(page, served, ENGINEER)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(served.base + EDIT)

    boxes = []
    for said in (long, f"draft of {ENGINEER}", "its file counts", "samples 2 of 2", "Save draft"):
        part = page.locator(".bar").get_by_text(said).locator("visible=true")
        assert part.evaluate("it => it.scrollWidth <= it.clientWidth || it.clientWidth === 0")
        boxes.append(part.bounding_box())
    boxes.append(page.locator("#b-deploy").bounding_box())
    assert all(box and box["x"] + box["width"] <= width for box in boxes)
    _, draft, *_, deploy = [box["y"] for box in boxes if box]
    assert deploy < draft


@pytest.mark.slow
def test_axe_finds_nothing(page: Page, context: BrowserContext, serve: Serve) -> None:
    served = serve(tuned())
    tuning = served.node.tuning
    source = tuning.source(RULE_ID)
    assert source is not None
    tuning.deploy(RULE.replace("medium", "high"), source.samples, ENGINEER, "louder", 0)
    tuning.save(RULE.replace("medium", "low"), source.samples, ENGINEER)
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}{EDIT}#t-try")
    page.get_by_label("A line, as its source sends it").fill(LINE)
    page.get_by_role("button", name="Try", exact=True).click()
    expect(page.locator("[data-told]")).to_be_attached()
    page.goto(f"{served.base}{EDIT}#t-preview")
    page.get_by_role("button", name="Preview", exact=True).click()
    expect(page.locator("#b-preview .facts")).to_be_visible()
    found: dict[str, list[str]] = {}
    for part in ("samples", "try", "preview", "notes", "history", "deploy"):
        if part == "deploy":
            page.locator("#deploy > summary").click()
        else:
            page.evaluate(f"location.hash = 't-{part}'")
        for width, theme in LOOKS:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            found[f"{part} {width} {theme}"] = _axe(page, context, page.url)

    assert {part: faults for part, faults in found.items() if faults} == {}


def test_no_page_is_wider_than_the_window(page: Page, serve: Serve) -> None:
    served = serve(tuned())
    enter(page, served, ENGINEER)
    wide: dict[tuple[str, int], int] = {}
    for path in (EDIT, f"{EDIT}#t-history", "/rules/new", "/rules", "/filters"):
        page.goto(served.base + path)
        wide |= wider(page, path, (320, 390, 1440))

    assert wide == {}
