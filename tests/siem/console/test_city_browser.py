"""The hub's console in a real Chromium: accessibility, widths, print, hostile text of operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from siem.city.known import Duty, Link, Lost, Told
from siem.store.protocol import Document
from tests.siem.city import fake_hub
from tests.siem.city.fake_hub import NOW, FakeHub
from tests.siem.console.conftest import Served
from tests.siem.console.hostile import STRINGS
from tests.siem.console.test_browser import FORBIDDEN, _axe, enter, wider

pytestmark = pytest.mark.browser

Serve = Callable[[FakeHub], Served]
VIEWS = {
    "city": "/city",
    "districts as a list": "/city?map=list&state=degraded",
    "kiosk": "/city?kiosk=1",
    "campaigns": "/campaigns",
    "campaign": "/campaigns/c-1",
    "shared findings": "/shared?f=cw.operator:op-grid",
    "query fault": "/shared?q=source.ip:(",
    "shared finding": "/shared/s-9",
    "operators": "/operators",
    "operator": "/operators/op-metro",
}


@pytest.fixture
def hub() -> FakeHub:
    made = fake_hub.saltmere()
    made.clocks = fake_hub.duties()
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(390, "dark"), (1440, "light")])
def test_axe_finds_nothing(
    width: int, theme: Any, browser: Browser, serve_city: Serve, hub: FakeHub
) -> None:
    served = serve_city(hub)
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    enter(page, served, "b.oth")
    found = {}

    for name, path in VIEWS.items():
        page.goto(served.base + path)
        found[name] = _axe(page, context, page.url)

    context.close()
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_no_page_is_wider_than_the_window(page: Page, serve_city: Serve, hub: FakeHub) -> None:
    served = serve_city(hub)
    enter(page, served, "b.oth")
    wide = {}

    for path in VIEWS.values():
        page.goto(served.base + path)
        wide |= wider(page, path, (320, 768, 1440))

    assert wide == {}


def test_the_briefing_prints_without_the_shell(page: Page, serve_city: Serve, hub: FakeHub) -> None:
    served = serve_city(hub)
    enter(page, served, "m.tarn")
    page.emulate_media(media="print")

    expect(page.get_by_text("Heating is at risk in Northbank")).to_be_visible()
    expect(page.get_by_role("img", name="Map of Saltmere")).to_be_visible()
    expect(page.get_by_role("navigation", name="Main")).to_be_hidden()
    assert page.evaluate("getComputedStyle(document.body).page") == "amber-strict"


def test_keys_lead_through_the_hub(page: Page, serve_city: Serve, hub: FakeHub) -> None:
    served = serve_city(hub)
    enter(page, served, "m.tarn")
    page.wait_for_load_state("load")

    for key, path in (("m", "/campaigns"), ("f", "/shared"), ("o", "/operators"), ("c", "/city")):
        page.keyboard.type(f"g{key}")
        expect(page).to_have_url(served.base + path)
        page.wait_for_load_state("load")


KEPT = (
    "cw.share.id",
    "cw.operator",
    "cw.marking.tlp",
    "cw.share.audiences",
    "finding.severity",
)
SHOWN = 10
"""Pages of single ones; the lists have all strings, and the macros are those of the node."""


def hostile_hub() -> FakeHub:
    """Operators that put hostile strings into every text that they may share."""
    base = {"finding.description": "x", "rule.name": "x", "cw.sector": "x", "cw.site": "x",
            "cw.asset.type": "plc", "source.token": ["x"], "threat.technique.id": ["x"],
            "finding.status": "x", "network.protocol": "x", "cw.vendor": {"x": "y"}}  # fmt: skip
    shares: list[Document] = []
    texts = [text for text in STRINGS if len(text.encode(errors="replace")) < 8_000]
    for number, text in enumerate(texts):
        share = fake_hub.share(f"h-{number}", "op-grid", number + 1, finding__severity="high")
        own = {name: poisoned(value, text) for name, value in (share | base).items()}
        shares.append(own | {"finding.title": text} | {name: share[name] for name in KEPT})
        join = {"cw.campaign.join": text, "cw.campaign.tokens": [text], "cw.operator": "city"}
        who = {"cw.campaign.operators": [text, text], "cw.campaign.sectors": [text]}
        rests = {"cw.share.derived_from": [f"h-{number}", f"h-{number + 1}"]}
        campaign = fake_hub.share(f"c-{number}", "city", number + 1, finding__severity="high")
        shares.append(campaign | {"finding.title": text, "finding.description": text}
                      | join | who | rests)  # fmt: skip
    hub = FakeHub(shares)
    for number, text in enumerate(texts):
        hub.linked.append(
            Link(operator=f"op-{number}", name=text, sector=text, state="silent", version=text,
                 rules=text, policy=text, ledger_head=text, heartbeat=NOW,
                 lost=(Lost(text, text, NOW),))
        )  # fmt: skip
        if number < SHOWN:
            hub.answers.append(Told(text, text, NOW, text, NOW))
    hub.linked.append(Link(operator="op-grid", state="linked"))
    hub.clocks = [
        Duty(incident=text, operator=text, duty=text, draft=text, began=NOW, due=NOW)
        for text in texts[:20]
    ]
    return hub


def poisoned(value: Any, text: str) -> Any:
    if isinstance(value, str):
        return text
    if isinstance(value, list):
        return [text for _ in value]
    return {text: text} if isinstance(value, dict) else value


@pytest.mark.slow
def test_hostile_strings_of_operators_run_nowhere(browser: Browser, serve_city: Serve) -> None:
    hub = hostile_hub()
    served = serve_city(hub)
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    said: list[str] = []
    page.on("dialog", lambda dialog: (said.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: said.append(f"error {error}"))
    page.on("console", lambda line: said.append(f"console {line.text}"))
    context.on(
        "request",
        lambda request: None if request.url.startswith(served.base) else said.append(request.url),
    )
    enter(page, served, "b.oth")
    paths = ["/city", "/city?map=list", "/campaigns?limit=500", "/operators"]
    paths += ["/shared?limit=500&from=all"]
    for number in range(SHOWN):
        paths += [f"/shared/h-{number}", f"/campaigns/c-{number}"]

    for path in paths:
        answer = page.goto(served.base + path, wait_until="load")
        assert answer is not None
        if answer.status != 200:
            said.append(f"{path}: {answer.status}")
        said += [f"{path}: {one}" for one in page.evaluate(FORBIDDEN)]

    context.close()
    assert said == []


@pytest.fixture
def serve_city(serve_app: Callable[[Any], str]) -> Serve:
    from siem.console.access import Access
    from siem.console.app import make_city_app
    from tests.siem.console.fake import HASHER

    def start(hub: FakeHub) -> Served:
        return Served(serve_app(make_city_app(hub, Access(hub, HASHER))), hub)

    return start
