"""The rule workbench in a real Chromium: keyboard alone, without script, accessibility, width."""

from __future__ import annotations

from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, expect

from siem import assembly
from siem.node import document
from tests.siem.console import fake
from tests.siem.console.test_browser import Serve, _axe, enter, wider
from tests.siem.test_tuning import NOW, RULE, RULE_ID, attempts, seen

pytestmark = pytest.mark.browser

EDIT = f"/rules/{RULE_ID}/edit"
LINE = "2026-01-05T10:00:00Z gw sshd[7]: Failed password for root from 192.0.2.7 port 4000 ssh2"
ENGINEER = "b.oth"
SLOW_MS = 15_000
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


def test_a_rule_is_changed_and_deployed_by_keyboard_alone(page: Page, serve: Serve) -> None:
    served = serve(tuned())
    enter(page, served, ENGINEER)
    page.goto(served.base + EDIT)
    page.set_default_timeout(SLOW_MS)
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
    expect(page.locator("#b-count")).to_contain_text("1 error", timeout=SLOW_MS)
    expect(page.locator(".layer .err .msg").first).to_be_visible()
    for _ in "colour: blue: red":
        keys.press("Backspace")
    expect(page.locator("#b-count")).not_to_contain_text("error", timeout=SLOW_MS)
    page.locator("#deploy > summary").focus()
    keys.press("Enter")
    keys.press("Tab")
    keys.type("it is new")
    keys.press("Tab")
    keys.press("Enter")
    expect(page.get_by_role("status").filter(has_text="It counts")).to_be_visible(timeout=SLOW_MS)

    (version,) = served.node.tuning.history(RULE_ID)
    assert (version.text, version.reason) == (f"{RULE}status: experimental\n", "it is new")


@pytest.mark.parametrize("scripted", [True, False])
def test_a_line_is_tried_and_a_preview_asked_for(
    browser: Browser, serve: Serve, scripted: bool
) -> None:
    served = serve(tuned())
    context = browser.new_context(java_script_enabled=scripted)
    context.set_default_timeout(SLOW_MS)
    page = context.new_page()
    enter(page, served, ENGINEER)
    page.goto(served.base + EDIT)
    proofs = page.get_by_role("navigation", name="Proofs of the rule")

    proofs.get_by_role("link", name="Try a line").click()
    page.get_by_label("A line, as its source sends it").fill(LINE)
    page.get_by_role("button", name="Try", exact=True).click()
    told = page.get_by_role("region", name="Explanation of the selected event")
    expect(told).to_contain_text("The rule speaks.", timeout=SLOW_MS)
    proofs.get_by_role("link", name="Preview").click()
    page.get_by_role("button", name="Preview", exact=True).click()
    preview = page.locator("#b-preview")
    if not scripted:
        expect(preview.locator(".facts, [data-look]").first).to_be_visible(timeout=SLOW_MS)
        while preview.locator("[data-look]").count():
            preview.locator("[data-look]").click()
    expect(preview).to_contain_text("3in 30 days", timeout=SLOW_MS)
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
    context.close()


@pytest.mark.slow
def test_axe_finds_nothing(page: Page, context: BrowserContext, serve: Serve) -> None:
    served = serve(tuned())
    tuning = served.node.tuning
    source = tuning.source(RULE_ID)
    assert source is not None
    tuning.deploy(RULE.replace("medium", "high"), source.samples, ENGINEER, "louder", 0)
    tuning.save(RULE.replace("medium", "low"), source.samples, ENGINEER)
    context.set_default_timeout(SLOW_MS)
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}{EDIT}#t-try")
    page.get_by_label("A line, as its source sends it").fill(LINE)
    page.get_by_role("button", name="Try", exact=True).click()
    expect(page.locator("[data-told]")).to_be_attached(timeout=SLOW_MS)
    page.goto(f"{served.base}{EDIT}#t-preview")
    page.get_by_role("button", name="Preview", exact=True).click()
    expect(page.locator("#b-preview .facts")).to_be_visible(timeout=SLOW_MS)
    found: dict[str, list[str]] = {}
    for part in ("try", "preview", "history", "deploy"):
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
