"""Filters in a real Chromium: what is stale, what is refused, accessibility, width."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from siem import hide_counts
from siem.store.protocol import Change
from tests.siem.console import fake
from tests.siem.console.test_browser import Serve, _axe, enter, wider
from tests.siem.test_hide_counts import keep
from tests.siem.test_tuning import FILTER, NOW, attempts, findings, seen

pytestmark = pytest.mark.browser

ENGINEER = "b.oth"
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
LONG = "Not the scanner of the harbour office that looks for weak passwords every night"


@pytest.fixture
def node() -> fake.FakeNode:
    """One with findings of two sources, of which one was right, and a filter that has ended."""
    node = fake.operator()
    settings = node.tuning._settings
    old = FILTER.replace("SOURCE", "192.0.2.99").replace("2026-03-01", "2026-01-01")
    folder = Path(settings.rules.folders[0])
    (folder / "old.yml").write_text(old.replace("Not the scanner", LONG))
    seen(settings, node.db, [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)])
    node.db.change([id_of(node, "192.0.2.7")], Change(verdict="true_positive"), "i.vasko", NOW)
    node.findings = node.db  # type: ignore[assignment]
    node.clock = NOW
    return node


def id_of(node: fake.FakeNode, source: str) -> str:
    (one,) = findings(node.db, f"source.ip:{source}")
    return str(one["finding.id"])


@pytest.mark.parametrize("scripted", [True, False])
def test_a_list_is_said_to_be_older_than_the_ticks_as_long_as_it_is(
    browser: Browser, serve: Serve, node: fake.FakeNode, scripted: bool
) -> None:
    served = serve(node)
    page = browser.new_context(java_script_enabled=scripted).new_page()
    enter(page, served, ENGINEER)
    page.goto(f"{served.base}/filters/new?finding={id_of(node, '192.0.2.8')}")
    stale = page.get_by_text("The ticks are newer than")

    expect(stale.first).to_be_hidden()
    page.get_by_role("checkbox", name="source.ip").uncheck()
    expect(stale).to_have_count(2)
    for one in stale.all():
        expect(one).to_be_visible()
    page.get_by_role("checkbox", name="source.ip").check()
    expect(stale.first).to_be_hidden()
    page.get_by_role("checkbox", name="source.ip").uncheck()
    page.get_by_role("textbox", name="Reason").fill("our scanner")
    page.get_by_role("button", name="Add the filter").click()

    expect(page.get_by_text("It would hide what was right.")).to_be_in_viewport()
    expect(page.get_by_text("is not what was shown")).to_be_in_viewport()
    expect(page.get_by_role("textbox", name="Reason")).to_have_value("our scanner")
    expect(page.get_by_role("checkbox", name="source.ip")).not_to_be_checked()
    assert [one.title for one in node.tuning.filters()] == [LONG]


@pytest.mark.parametrize("width", [390, 900, 1440])
def test_why_a_filter_is_refused_stands_where_the_page_opens(
    page: Page, serve: Serve, node: fake.FakeNode, width: int
) -> None:
    served = serve(node)
    enter(page, served, ENGINEER)
    page.set_viewport_size({"width": width, "height": 700})

    page.goto(f"{served.base}/filters/new?finding={id_of(node, '192.0.2.7')}")

    why = page.locator("#why-not")
    expect(why).to_be_focused()
    expect(why).to_be_in_viewport(ratio=0.9)
    expect(why).to_contain_text("Wrong password of 2026-01-05 10:00 UTC")


def test_the_list_on_a_phone_says_what_it_says_elsewhere(
    page: Page, serve: Serve, node: fake.FakeNode
) -> None:
    served = serve(node)
    enter(page, served, ENGINEER)
    page.set_viewport_size({"width": 390, "height": 900})
    page.goto(f"{served.base}/filters")

    row = page.get_by_role("row", name=LONG)
    for word in ("Expired", LONG, "it looks for weak passwords at night", "a.ana", "a file"):
        expect(row.get_by_text(word, exact=True)).to_be_in_viewport(ratio=1)


def test_numbers_come_to_a_list_that_did_not_wait_for_them(
    page: Page, serve: Serve, node: fake.FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hide_counts, "WAIT_S", 0.0)
    keep(node.tuning._settings, attempts("192.0.2.99", count=3))
    served = serve(node)
    enter(page, served, ENGINEER)
    row = page.get_by_role("row", name=LONG)

    with node.tuning._previews:
        page.goto(f"{served.base}/filters")
        expect(row).to_contain_text("being counted")
    row.evaluate("row => row.dataset.same = 1")

    expect(row).to_contain_text("nothing")
    expect(page.locator("[data-counting]")).to_have_count(0)
    expect(page.locator("#counted")).to_contain_text("counted 12:00")
    assert row.get_attribute("data-same") == "1"


def test_axe_finds_nothing_and_no_page_is_wider_than_the_window(
    page: Page, context: BrowserContext, serve: Serve, node: fake.FakeNode
) -> None:
    served = serve(node)
    enter(page, served, ENGINEER)
    (row,) = node.tuning.filters()
    paths = ["/filters", f"/filters/{row.id}"]
    paths += [f"/filters/new?finding={id_of(node, f'192.0.2.{n}')}" for n in (7, 8)]
    found: dict[tuple[str, int, str], list[str]] = {}
    wide: dict[tuple[str, int], int] = {}
    for path in paths:
        page.goto(served.base + path)
        if box := page.get_by_role("checkbox", name="user.name").all():
            box[0].uncheck()
        for width in (390, 1440):
            for theme in THEMES:
                page.set_viewport_size({"width": width, "height": 900})
                page.emulate_media(color_scheme=theme, reduced_motion="reduce")
                found[path, width, theme] = _axe(page, context, page.url)
        wide |= wider(page, path, (320, 390, 900, 1440))

    assert {place: faults for place, faults in found.items() if faults} == {}
    assert wide == {}
