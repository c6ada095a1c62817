"""Notifications in a real Chromium: a test without script, accessibility, width."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.siem.console import fake
from tests.siem.console.test_browser import Serve, _axe, enter, wider
from tests.siem.console.test_routes import with_routes

pytestmark = pytest.mark.browser

PATHS = ("/routes", "/routes?test=duty", "/deliveries", "/deliveries?route=chief", "/health")


@pytest.mark.parametrize("scripted", [True, False])
def test_an_administrator_sends_a_test(browser: Browser, serve: Serve, scripted: bool) -> None:
    served = serve(with_routes(fake.operator()))
    context = browser.new_context(java_script_enabled=scripted)
    page = context.new_page()
    enter(page, served, "a.admin")

    page.get_by_role("link", name="3 routes").click()
    page.get_by_role("button", name="Send a test over chief").click()

    expect(page.get_by_role("status")).to_contain_text("A test is on its way over chief")
    assert len(served.node.notices.deliveries("chief")) == 1
    context.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1440, "light")])
def test_axe_finds_nothing(width: int, theme: Any, browser: Browser, serve: Serve) -> None:
    served = serve(with_routes(fake.operator()))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    enter(page, served, "b.oth")
    found = {}
    for path in PATHS:
        page.goto(served.base + path)
        found[path] = _axe(page, context, page.url)

    context.close()
    assert {path: faults for path, faults in found.items() if faults} == {}


def test_no_page_is_wider_than_the_window(page: Page, serve: Serve) -> None:
    served = serve(with_routes(fake.operator()))
    enter(page, served, "b.oth")
    wide = {}
    for path in PATHS:
        page.goto(served.base + path)
        wide |= wider(page, path, (320, 1440))

    assert wide == {}
