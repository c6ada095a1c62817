"""Proposals in a real Chromium, at the hub and at an operator: accessibility, widths, by clicks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser

from siem.city.known import Told
from siem.console.access import Access
from siem.console.app import make_app, make_city_app
from tests.siem.city import fake_hub
from tests.siem.city.fake_hub import NOW as HUB_NOW
from tests.siem.console.conftest import Served
from tests.siem.console.fake import HASHER, FakeNode
from tests.siem.console.test_browser import _axe, enter
from tests.siem.console.test_proposed import planned, propose

pytestmark = pytest.mark.browser

LOOK = os.environ.get("CITYWARD_LOOK", "")
"""Folder for pictures of the pages."""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1440])
def test_a_proposal_goes_through_both_consoles_by_clicks(
    width: int,
    browser: Browser,
    serve_app: Callable[[Any], str],
) -> None:
    hub, node = fake_hub.saltmere(), FakeNode()
    what = "Proposed by m.tarn: External scanner at the perimeter (block at nftables for 1 h). Why"
    hub.answers = [
        *hub.answers[:3],
        Told("op-grid", what, HUB_NOW, "Planned, waits for a person", HUB_NOW),
    ]
    propose(node)
    propose(node, id="b2" * 16, state="not possible", why="no playbook")
    run = planned(node)
    context = browser.new_context(viewport={"width": width, "height": 1000})
    page = context.new_page()
    faults: dict[str, Any] = {}

    def look(name: str) -> None:
        faults[name] = _axe(page, context, page.url)
        faults[f"{name}, width"] = [
            over
            for over in [page.evaluate("document.documentElement.scrollWidth - innerWidth")]
            if over > 0
        ]
        if LOOK:
            page.screenshot(path=f"{LOOK}/{name}-{width}.png", full_page=True)

    city = Served(serve_app(make_city_app(hub, Access(hub, HASHER))), hub)
    enter(page, city, "m.tarn")
    page.goto(f"{city.base}/campaigns/c-1")
    look("campaign")
    page.get_by_role("checkbox", name="op-metro").uncheck()
    page.get_by_label("Reason").fill("it scans us all")
    page.get_by_role("button", name="Propose").click()
    look("proposed")
    context.clear_cookies()
    served = Served(serve_app(make_app(node, Access(node, HASHER))), node)
    enter(page, served, "i.vasko")
    page.goto(f"{served.base}/sharing/proposals")
    look("proposals")
    page.goto(f"{served.base}/runs/{run}")
    look("run")
    page.goto(f"{served.base}/sharing/proposals")
    page.get_by_text("Decline", exact=True).first.click()
    page.get_by_label("Because").first.select_option("harm")
    page.get_by_role("button", name="Decline").first.click()
    look("declined")

    context.close()
    assert {name: found for name, found in faults.items() if found} == {}
    assert hub.proposed[0][2:4] == (("op-grid", "op-port"), "it scans us all")
    assert sorted(one.state for one in node.db.proposals.all()) == ["declined", "not possible"]
