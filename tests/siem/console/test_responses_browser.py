"""Responses in a real Chromium: a yes without script, the kill switch, accessibility, width."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from siem.store.protocol import Person
from tests.siem.console import fake
from tests.siem.console.fake_response import SCANNER, VENDOR, library
from tests.siem.console.test_browser import Serve, _axe, enter, wider

pytestmark = pytest.mark.browser

FINDING = fake.finding(0, fake._ROWS[0])["finding.id"]
PATHS = (
    "/approvals",
    "/approvals/run-a3",
    "/playbooks",
    f"/playbooks/{VENDOR}",
    f"/playbooks/{SCANNER}/plan?finding={FINDING}",
    "/runs",
    "/runs/run-held",
    "/in-force",
)


def with_runs(node: fake.FakeNode) -> fake.FakeNode:
    """A run that waits for its second yes, and one that holds; one actuator is stopped."""
    everything = ("analyst", "engineer", "approver")
    node.accounts.add(Person("a.ll", everything, fake.HASHER.hash(fake.PASSWORD)))
    node.response.shelf, node.response.is_on = library(), True
    run = node.response.waiting(VENDOR, FINDING, "i.vasko", "run-a3")
    node.response.runs.approve(run.id, "n.okerren", "analyst", run.plan.hash, "seen it")
    node.response.applied(SCANNER, FINDING, "i.vasko", "run-held")
    node.response.runs.switch("actuator:nftables", "e.ngineer", "maintenance", on=True)
    return node


def test_on_a_phone_without_script_an_approver_says_yes(browser: Browser, serve: Serve) -> None:
    served = serve(with_runs(fake.operator()))
    context = browser.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    page = context.new_page()
    enter(page, served, "t.lindqvar")
    expect(page).to_have_url(f"{served.base}/approvals")

    page.get_by_role("link", name="Close vendor remote access").click()
    approve = page.get_by_role("button", name="Approve")
    expect(approve).to_be_in_viewport()
    page.get_by_label("Reason", exact=True).locator("visible=true").fill("not their work")
    approve.click()

    expect(page.get_by_role("status")).to_contain_text("Your yes is kept.")
    assert len(served.node.response.get("run-a3").approvals) == 2
    context.close()


def test_everything_is_stopped_and_goes_on_with_a_reason_each(page: Page, serve: Serve) -> None:
    served = serve(with_runs(fake.operator()))
    enter(page, served, "t.lindqvar")

    page.get_by_text("Stop all").click()
    page.get_by_label("Reason").locator("visible=true").fill("wrong target")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_role("region", name="Kill switch")).to_contain_text("Everything is stopped")
    page.get_by_text("Release").last.click()
    page.get_by_label("Reason").locator("visible=true").fill("mended")
    page.get_by_role("button", name="Let it go on").locator("visible=true").click()

    expect(page.get_by_role("status")).to_contain_text("It goes on.")
    assert served.node.response.runs.stopped() == ["actuator:nftables"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1440, "light")])
def test_axe_finds_nothing(width: int, theme: Any, browser: Browser, serve: Serve) -> None:
    served = serve(with_runs(fake.operator()))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    enter(page, served, "a.ll")
    found = {}
    for path in PATHS:
        page.goto(served.base + path)
        found[path] = _axe(page, context, page.url)

    context.close()
    assert {path: faults for path, faults in found.items() if faults} == {}


def test_no_page_is_wider_than_the_window(page: Page, serve: Serve) -> None:
    served = serve(with_runs(fake.operator()))
    enter(page, served, "a.ll")
    wide = {}
    for path in PATHS:
        page.goto(served.base + path)
        wide |= wider(page, path, (320, 1440))

    assert wide == {}
