"""Protected samples in a real Chromium: let out and set aside by clicks; accessibility, widths."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser

from siem.console.access import Access
from siem.console.app import make_app
from tests.siem.console.conftest import Served
from tests.siem.console.fake import HASHER, FakeNode
from tests.siem.console.test_browser import _axe, enter
from tests.siem.console.test_protected import PATH, came, finding
from tests.siem.console.test_protected import node as node  # noqa: PLC0414

pytestmark = pytest.mark.browser

LOOK = os.environ.get("CITYWARD_LOOK", "")
"""Folder for pictures of the pages."""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
def test_a_sample_is_let_out_and_one_of_another_operator_set_aside_by_clicks(
    width: int, browser: Browser, serve_app: Callable[[Any], str], node: FakeNode
) -> None:
    came(node)
    faults: dict[str, Any] = {}
    served = Served(serve_app(make_app(node, Access(node, HASHER))), node)
    context = browser.new_context(viewport={"width": width, "height": 1000})
    page = context.new_page()

    def look(name: str) -> None:
        faults[name] = _axe(page, context, page.url)
        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        faults[f"{name}, width"] = [over] if over > 0 else []
        if LOOK:
            page.screenshot(path=f"{LOOK}/{name}-{width}.png", full_page=True)

    enter(page, served, "i.vasko")
    page.goto(f"{served.base}{PATH}")
    page.get_by_role("link", name="What would leave").click()
    look("protected-offer")
    page.get_by_label("Reason", exact=True).fill("The same tool may come to others.")
    page.get_by_role("button", name="Let it out").click()
    assert page.get_by_text("Waits to be sent").is_visible()
    look("protected-out")
    context.clear_cookies()

    enter(page, served, "e.ngineer")
    page.goto(f"{served.base}{PATH.removesuffix('/protected')}")
    assert page.get_by_text("It cannot be switched off here:").is_visible()
    look("protected-rule")
    page.goto(f"{served.base}{PATH}")
    page.get_by_role("link", name="1 event").click()
    look("protected-theirs")
    page.get_by_text("Set aside", exact=True).first.click()
    page.get_by_label("Reason", exact=True).fill("Our historian does that.")
    page.get_by_role("button", name="Set it aside").click()
    assert page.get_by_text("Our historian does that.").is_visible()
    look("protected-aside")

    assert {name: one for name, one in faults.items() if one} == {}
    assert node.db.samples.releases()[0].finding == finding(node)
    assert node.db.samples.foreign()[0].is_aside
    context.close()
