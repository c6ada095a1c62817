"""Incidents, drafts and duties in a real Chromium: accessibility, widths, hostile text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from siem.console.access import Access
from siem.console.app import make_city_app
from siem.store.cases import CaseStore, Submission
from tests.siem.city import fake_hub
from tests.siem.console import fake
from tests.siem.console.conftest import Served
from tests.siem.console.hostile import STRINGS
from tests.siem.console.test_browser import FORBIDDEN, _axe, enter, wider

pytestmark = pytest.mark.browser

Pages = dict[str, Sequence[str]]
DUTIES = ("nis2-early-warning", "nis2-notification")
PLAIN = "Writes to the heating"
TITLE_MAX = 200


def fill(cases: CaseStore, now: datetime, finding: str, texts: Sequence[str]) -> Sequence[str]:
    """A case that has everything, one duty submitted; and one for each text, for the board.

    Returns:
        The pages of the first, and the board.
    """
    said = {"summary": "\n".join(texts)[:4000], "services": texts[:20], "owner": texts[0][:60]}
    aware = {"aware_at": now - timedelta(hours=23), "duties": DUTIES}
    full = cases.open("op-energy", PLAIN, "b.oth", now, findings=[finding], **said, **aware)
    for text in texts:
        cases.open("op-energy", text[:TITLE_MAX].strip() or PLAIN, text[:60], now)
        cases.note(full.id, text, text[:60], now)
    for text in texts[:40]:
        cases.add_task(full.id, text, "b.oth", now)
    cases.answer(full.id, DUTIES[1], {"what": "\n".join(texts)[:4000]}, "b.oth", now)
    sent = Submission(DUTIES[0], "b.oth", now, texts[0], texts[-1], "\n".join(texts)[:4000])
    cases.submit(full.id, sent, now)
    one = f"/incidents/{full.id}"
    return "/incidents", f"{one}?done=submit", *(f"{one}/draft/{duty}" for duty in DUTIES)


@pytest.fixture
def filled(serve: Any, serve_app: Callable[[Any], str]) -> Callable[[Sequence[str]], Pages]:
    """A node and a hub with the same cases, and their pages."""

    def made(texts: Sequence[str]) -> Pages:
        node, hub = fake.operator(), fake_hub.saltmere()
        hub.clocks = fake_hub.duties()
        finding = node.findings.documents[0]["finding.id"]
        here = fill(node.cases, fake.NOW, finding, texts)
        there = fill(hub.cases, fake_hub.NOW, "c-1", texts)
        base = serve_app(make_city_app(hub, Access(hub, fake.HASHER)))
        return {serve(node).base: here, base: [*there, "/duties"]}

    return made


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1440, "light")])
def test_axe_finds_nothing(width: int, theme: Any, browser: Browser, filled: Any) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    found = {}

    for base, paths in filled([PLAIN]).items():
        enter(page, Served(base, None), "b.oth")
        for path in paths:
            page.goto(base + path)
            found[path] = _axe(page, context, page.url)

    context.close()
    assert {path: faults for path, faults in found.items() if faults} == {}


def test_no_page_is_wider_than_the_window(page: Page, filled: Any) -> None:
    wide = {}

    for base, paths in filled([PLAIN]).items():
        enter(page, Served(base, None), "b.oth")
        for path in paths:
            page.goto(base + path)
            wide |= wider(page, path, (320, 390, 1440))

    assert wide == {}


@pytest.mark.slow
def test_hostile_strings_run_nowhere(browser: Browser, filled: Any) -> None:
    texts = [text for text in STRINGS if text.strip() and len(text) < 4_000]
    served = filled(texts)
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    said: list[str] = []
    page.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: said.append(f"error {error}"))
    page.on("console", lambda line: said.append(f"console {line.text}"))
    context.on(
        "request",
        lambda asked: None if asked.url.startswith(tuple(served)) else said.append(asked.url),
    )

    for base, paths in served.items():
        enter(page, Served(base, None), "b.oth")
        for path in paths:
            answer = page.goto(base + path, wait_until="load")
            assert answer is not None
            if answer.status != 200:
                said.append(f"{path}: {answer.status}")
            said += [f"{path}: {one}" for one in page.evaluate(FORBIDDEN)]

    context.close()
    assert said == []
