"""Sharing in a real Chromium: a decision without script, accessibility, width."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.siem.console import fake
from tests.siem.console.test_browser import Serve, _axe, enter, wider
from tests.siem.console.test_sharing import with_sharing

pytestmark = pytest.mark.browser

PATHS = (
    "/sharing",
    "/sharing?audience=police",
    "/sharing/waiting",
    "/sharing/ledger?verify=1",
    "/sharing/inbox?readers=1",
)


def test_without_script_a_person_refuses_what_waits(browser: Browser, serve: Serve) -> None:
    served = serve(with_sharing(fake.operator(), sent=True))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    enter(page, served, "i.vasko")

    page.goto(f"{served.base}/sharing")
    page.get_by_role("link", name="Waits for a yes").click()
    page.get_by_label("Reason").first.fill("it names one person")
    page.get_by_role("button", name="Refuse").first.click()

    expect(page.get_by_role("status")).to_contain_text("1 share said no to")
    assert len(served.node.db.outgoing.waiting("refused")) == 1
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1440, "light")])
def test_axe_finds_nothing(width: int, theme: Any, browser: Browser, serve: Serve) -> None:
    served = serve(with_sharing(fake.operator()))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    enter(page, served, "i.vasko")
    found = {}
    for path in PATHS:
        page.goto(served.base + path)
        found[path] = _axe(page, context, page.url)

    context.close()
    assert {path: faults for path, faults in found.items() if faults} == {}


def test_no_page_is_wider_than_the_window(page: Page, serve: Serve) -> None:
    served = serve(with_sharing(fake.operator()))
    enter(page, served, "i.vasko")
    wide = {}
    for path in PATHS:
        page.goto(served.base + path)
        wide |= wider(page, path, (320, 1440))

    assert wide == {}
