"""A real Chromium: sign-in, triage, hunt, accessibility, hostile text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from siem.console.protocol import Heard, Hearing, Sample, Samples, Why
from siem.store.protocol import SavedView, Token
from tests.siem.console import fake
from tests.siem.console.conftest import Served
from tests.siem.console.hostile import STRINGS

pytestmark = pytest.mark.browser

Serve = Callable[[fake.FakeNode], Served]
AXE = Path(__file__).parent / "axe" / "axe.min.js"
FINDING = fake.finding(0, fake._ROWS[0])
MODEL = fake.finding(5, fake._ROWS[5])
EVENT = fake.event(1)
GROUP = fake._group(FINDING)
RULE = "00000000-0000-4000-8000-000000000011"
VIEWS = {
    "findings": "/findings",
    "panel": f"/findings?open={GROUP}&g={GROUP}&f=cw.asset.criticality:5&f=-source.ip:192.0.2.99",
    "flat": "/findings?group=none&status=all&table=1&done=resolve-2",
    "no match": "/findings?f=source.ip:nope",
    "rule finding": f"/findings/{FINDING['finding.id']}",
    "model finding": f"/findings/{MODEL['finding.id']}",
    "hunt": f"/hunt?open={EVENT['event.id']}",
    "original": f"/hunt?open={EVENT['event.id']}&as=original",
    "top values": "/hunt?by=source.ip",
    "query fault": "/hunt?q=source.ip:192.0.2.0/33",
    "nothing in range": "/hunt?from=2020-01-01&to=2020-01-02",
    "event": f"/hunt/{EVENT['event.id']}",
    "rules": "/rules",
    "rules by noise": "/rules?sort=-noise",
    "rule": f"/rules/{RULE}",
    "heavy rule that loses events": "/rules/00000000-0000-4000-8000-000000000005",
    "assets": "/assets",
    "assets, retired": "/assets?state=retired&q=192.0.2",
    "no asset matches": "/assets?q=nope",
    "zones": "/assets?view=zones",
    "asset": "/assets/192.0.2.101",
    "asset of the settings": "/assets/RTU-6",
    "rule with samples": f"/rules/{RULE}?samples=1&done=off",
    "views": "/views",
    "save a view": "/views?link=/findings%3Fq%3Dmodbus&done=saved",
    "api": "/api",
    "first source": "/start?interface=enp1s0",
    "people": "/people",
    "person": "/people/i.vasko?done=roles",
    "tokens": "/tokens",
    "audit": "/audit?verify=1",
    "password": "/password",
    "health": "/health",
    "keys": "/keys",
    "not found": "/findings/nope",
}


def enter(page: Page, served: Served, name: str = "i.vasko") -> None:
    page.goto(f"{served.base}/sign-in")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(fake.PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()


@pytest.fixture(params=[True, False], ids=["with script", "without script"])
def page_of(request: pytest.FixtureRequest, browser: Browser) -> Any:
    context = browser.new_context(
        java_script_enabled=request.param, viewport={"width": 1440, "height": 900}
    )
    yield context.new_page(), request.param
    context.close()


def test_a_finding_is_opened_taken_and_resolved(page_of: Any, serve: Serve) -> None:
    page, scripted = page_of
    served = serve(fake.operator())
    enter(page, served)

    page.get_by_role("link", name="Modbus write, host is no writer", exact=True).click()
    panel = page.get_by_role("complementary")
    expect(panel).to_contain_text("Why it spoke")
    expect(panel).to_contain_text("one of %ot_writers%")
    panel.get_by_role("button", name="Take").click()
    expect(page.get_by_text("1 finding taken by you.")).to_be_visible()
    page.get_by_role("complementary").get_by_role("button", name="Resolve").click()
    if scripted:
        expect(page.get_by_role("dialog")).to_contain_text("Resolve: 1 selected")
    page.get_by_label("False positive").check()
    page.get_by_label("Reason").locator("visible=true").fill("planned change")
    page.get_by_role("button", name="Resolve").locator("visible=true").last.click()
    expect(page.get_by_text("Resolved 1 finding.")).to_be_visible()

    kept = served.node.findings.get(FINDING["finding.id"])
    assert kept is not None
    assert (kept["assignee"], kept["finding.status"], kept["finding.verdict"]) == (
        "i.vasko",
        "resolved",
        "false_positive",
    )
    assert kept["cw.history"][-1]["why"] == "planned change"


def test_many_findings_are_taken_at_once(page_of: Any, serve: Serve) -> None:
    page, _ = page_of
    served = serve(fake.operator())
    enter(page, served)

    page.get_by_label("Select: Interrogation, then control by a new master, RTU-L2").check()
    page.get_by_label("Select: Firmware older than before, GW-12").check()
    page.locator(".foot").get_by_role("button", name="Take").click()

    expect(page.get_by_text("4 findings taken by you.")).to_be_visible()


def test_a_hunt_narrows_by_the_value_menu_and_opens_an_event(page_of: Any, serve: Serve) -> None:
    page, _ = page_of
    served = serve(fake.operator())
    enter(page, served)
    page.get_by_role("link", name="Hunt").click()

    page.get_by_role("searchbox", name="Query").fill("network.protocol:modbus")
    page.keyboard.press("Enter")
    page.get_by_role("region", name="Fields").get_by_text("198.51.100.73", exact=True).click()
    page.get_by_role("link", name="Include").locator("visible=true").click()
    expect(page.get_by_text("80 events", exact=True)).to_be_visible()
    page.locator("tr[data-row]").nth(2).get_by_role("link").first.click()
    expect(page.locator(".evt")).to_contain_text("write_multiple_registers")
    page.get_by_role("link", name="Around this ±5 min").click()

    expect(page.get_by_text("19 events", exact=True)).to_be_visible()


def test_keys_triage_a_finding_in_three_and_can_be_turned_off(page: Page, serve: Serve) -> None:
    served = serve(fake.operator())
    enter(page, served)
    page.wait_for_load_state("load")

    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("a")
    expect(page.get_by_text("14 findings taken by you.")).to_be_visible()
    page.wait_for_load_state("load")
    page.keyboard.type("gh")
    expect(page).to_have_url(f"{served.base}/hunt")
    page.wait_for_load_state("load")
    page.keyboard.press("?")
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    page.get_by_role("button", name="Turn single keys off").first.click()
    expect(page.get_by_text("Single keys are off in this browser.")).to_be_visible()
    page.wait_for_load_state("load")
    page.keyboard.type("gf")

    expect(page).to_have_url(f"{served.base}/keys")


def test_the_brush_zooms_into_the_histogram(page: Page, serve: Serve) -> None:
    served = serve(fake.operator())
    page.set_viewport_size({"width": 1440, "height": 900})
    enter(page, served)
    page.wait_for_load_state("load")  # the script that takes the mouse is there
    box = page.locator("[data-brush] svg").last.bounding_box()
    assert box is not None

    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 20)
    page.mouse.up()

    page.wait_for_url("**from=2026-11-11T15*")
    assert "to=2026-11-11T21" in page.url


def test_the_last_triage_is_undone(page_of: Any, serve: Serve) -> None:
    page, _ = page_of
    served = serve(fake.operator())
    enter(page, served)
    page.goto(f"{served.base}/findings/{FINDING['finding.id']}")

    page.get_by_label("Comment", exact=True).locator("visible=true").fill("asked the shift lead")
    page.get_by_role("button", name="Comment", exact=True).locator("visible=true").click()
    expect(page.get_by_text("Comment kept with 1 finding.")).to_be_visible()
    page.get_by_role("button", name="Take").click()
    expect(page.get_by_text("1 finding taken by you.")).to_be_visible()
    page.get_by_role("button", name="Undo").click()

    expect(page.get_by_text("1 finding as before.")).to_be_visible()
    expect(page.get_by_text("nobody has it")).to_be_visible()


def test_new_rows_wait_behind_a_link(page: Page, serve: Serve) -> None:
    served = serve(fake.operator())
    page.clock.install()
    enter(page, served)
    late = fake.finding(2, fake._ROWS[2], 99) | {"cw.asset.asset_id": "new-1"}
    served.node.findings.documents.append(late)
    page.wait_for_load_state("load")  # the script that looks for new rows is there

    page.clock.run_for(10_500)

    expect(page.get_by_text("1 new since")).to_be_visible()
    expect(page.get_by_role("link", name="reload")).to_be_visible()


def test_the_theme_of_a_person_stays(page: Page, serve: Serve) -> None:
    served = serve(fake.operator())
    enter(page, served)

    page.locator("summary.person").click()
    page.get_by_role("button", name="Dark").click()

    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_an_engineer_approves_new_assets_and_corrects_one(page_of: Any, serve: Serve) -> None:
    page, _ = page_of
    served = serve(fake.operator())
    enter(page, served, "e.ngineer")
    page.get_by_role("link", name="Assets").click()

    page.get_by_label("Select: 192.0.2.101").check()
    page.get_by_label("Select: 192.0.2.102").check()
    page.get_by_label("Reason").fill("walked there")
    page.locator(".foot").get_by_role("button", name="Approve").click()
    expect(page.get_by_text("Approved 2 assets.")).to_be_visible()
    page.goto(f"{served.base}/assets/192.0.2.101")
    page.get_by_label("Name", exact=True).fill("Pump 101")
    page.get_by_label("Roles").fill("ot_writer, scanner")
    page.get_by_role("button", name="Save and confirm").click()
    expect(page.get_by_role("heading", name="Pump 101")).to_be_visible()
    page.goto(f"{served.base}/assets?view=zones")
    page.get_by_label("Select: modbus from office to cz-north").check()
    page.get_by_role("button", name="Approve the ticked").click()
    expect(page.get_by_text("Approved 1 conduit.")).to_be_visible()

    row = served.node.inventory.rows["192.0.2.101"]
    assert (row.state, row.asset.roles) == ("approved", ("ot_writer", "scanner"))
    assert [one["why"] for one in row.history] == ["walked there", ""]


EVERY = slice(None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "theme", "some"),
    [
        (390, "dark", slice(0, None, 2)),
        (1440, "light", slice(1, None, 2)),
        pytest.param(390, "dark", EVERY, marks=pytest.mark.full),
        pytest.param(1440, "light", EVERY, marks=pytest.mark.full),
        pytest.param(390, "light", EVERY, marks=pytest.mark.full),
        pytest.param(1440, "dark", EVERY, marks=pytest.mark.full),
    ],
    ids=["390-dark-half", "1440-light-half", "390-dark", "1440-light", "390-light", "1440-dark"],
)
def test_axe_finds_nothing(
    width: int, theme: Any, some: slice, browser: Browser, serve: Serve
) -> None:
    """A page in one of both widths and themes; in all of them in `full`."""
    served = serve(fake.operator())
    context = browser.new_context(
        viewport={"width": width, "height": 844 if width == 390 else 900}, color_scheme=theme
    )
    page = context.new_page()
    page.goto(f"{served.base}/sign-in")
    found = {"sign-in": _axe(page, context, served.base)}
    # Who is engineer and administrator sees every page and every form.
    enter(page, served, "b.oth")

    for name, path in list(VIEWS.items())[some]:
        page.goto(served.base + path)
        found[name] = _axe(page, context, page.url)

    context.close()
    assert {name: faults for name, faults in found.items() if faults} == {}


def _axe(page: Page, context: BrowserContext, url: str) -> list[str]:
    result = page.evaluate(AXE.read_text() + "\n;axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{one['id']}: {node['target']} {node['failureSummary'][:300]}"
        for one in result["violations"]
        for node in one["nodes"][:3]
    ]


def wider(page: Page, path: str, widths: Sequence[int]) -> dict[tuple[str, int], int]:
    """By how much a page that is open is wider than windows of these widths."""
    found = {}
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        found[path, width] = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return {place: over for place, over in found.items() if over > 0}


def test_no_page_is_wider_than_the_window(page: Page, serve: Serve) -> None:
    served = serve(fake.operator())
    enter(page, served, "b.oth")
    wide = {}

    for path in VIEWS.values():
        page.goto(served.base + path)
        wide |= wider(page, path, (320, 390, 768, 1024, 1440, 2560))

    assert wide == {}


KEPT = (
    "finding.id",
    "event.id",
    "rule.id",
    "finding.severity",
    "finding.status",
    "finding.verdict",
)


def poisoned(value: Any, text: str, name: str = "") -> Any:
    """The value with every text in it replaced."""
    if name in KEPT:
        return value
    if isinstance(value, str):
        return text
    if isinstance(value, dict):
        return {key: poisoned(one, text, key) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [poisoned(one, text) for one in value]
    return value


def hostile_node() -> fake.FakeNode:
    node = fake.operator()
    base_finding, base_event = fake.finding(0, fake._ROWS[0]), fake.event(1)
    base_event["cw.vendor"] = {"x": "y"}
    findings, events, rules, sources = [], [], [], []
    for number, text in enumerate(STRINGS):
        findings.append(poisoned({**base_finding, "finding.id": f"f{number}"}, text))
        events.append(poisoned({**base_event, "event.id": f"e{number}", "message": "m"}, text))
        rule = node.rule_states[number % 2 * 11]
        fields = {
            name: poisoned(getattr(rule, name), text)
            for name in rule.__struct_fields__
            if name not in ("id", "level", "state")
        }
        rules.append(msgspec.structs.replace(rule, id=f"r{number}", **fields))
        sources.append(
            msgspec.structs.replace(
                node.source_states[1], source=text, collector=text, error=text, sample=text
            )
        )
        node.db.audit(text, text, text, fake.NOW)
        node.accounts.save_view(
            SavedView(number, text[:50] or "x", "/findings?q=x", "b.oth"), fake.NOW
        )
        if text.strip() and len(text) <= 200:
            digest = f"{number:064x}"
            token = Token("", "b.oth", text, ("read",))
            node.accounts.add_token(digest, token, "b.oth", fake.NOW)
    node.rule_samples = Samples("x", [Sample(text, text, False, (text,)) for text in STRINGS])
    node.heard = Hearing(
        interfaces=[Heard(text, 1, 1, is_up=True) for text in STRINGS],
        silent=[Why(text, text, text, text) for text in STRINGS],
        file=STRINGS[0],
    )
    node.inventory = hostile_inventory(node.inventory)
    node.findings.documents[:] = findings
    node.events.documents = events
    node.rule_states, node.source_states = rules, sources
    return node


def hostile_inventory(inventory: fake.FakeInventory) -> fake.FakeInventory:
    rows = list(inventory.rows.values())
    areas, ways = inventory.areas, inventory.ways
    made = fake.FakeInventory()
    for number, text in enumerate(STRINGS):
        row = rows[number % len(rows)]
        raw = msgspec.to_builtins(row)
        asset = poisoned({**raw["asset"], "location": "", "roles": ["r"]}, text) | {
            "id": f"a{number}"
        }
        seen = poisoned(msgspec.to_builtins(row.seen), text) if row.seen else None
        if seen and row.seen:
            seen |= {"first_seen": row.seen.first_seen, "last_seen": row.seen.last_seen}
        history = [{"time": fake.NOW.isoformat(), "by": text, "what": text, "why": text}]
        raw |= {"asset": asset, "seen": seen, "aliases": [text], "history": history}
        made.rows[f"a{number}"] = msgspec.convert(raw, type(row))
        way = ways[number % len(ways)]
        ends = {"source": text, "destination": text[::-1], "protocol": text}
        made.ways.append(msgspec.structs.replace(way, id=f"c{number}", **ends))
        made.areas.append(msgspec.structs.replace(areas[number % len(areas)], id=text))
    return made


FORBIDDEN = """() => {
  const seen = [];
  if (window.hit) seen.push('script ran');
  if (document.scripts.length !== 1) seen.push(`${document.scripts.length} scripts`);
  for (const name of ['img', 'iframe', 'object', 'embed', 'base', 'style', 'video', 'math',
                      'marquee', 'meta[http-equiv]'])
    if (document.querySelector(name)) seen.push(name);
  for (const part of document.querySelectorAll('*'))
    for (const {name} of part.attributes)
      if (name.startsWith('on') || name === 'style') seen.push(`${part.tagName} ${name}`);
  for (const part of document.querySelectorAll('a[href], form[action], link[href]')) {
    const to = new URL(part.getAttribute('href') ?? part.getAttribute('action'), location);
    if (to.origin !== location.origin) seen.push(to.href);
  }
  if (document.documentElement.scrollWidth > innerWidth) seen.push('too wide');
  return seen;
}"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("things", "kinds"),
    [
        pytest.param(100, 1, id="one kind of page a string"),
        pytest.param(200, 4, id="every kind of page", marks=pytest.mark.full),
    ],
)
def test_200_hostile_strings_in_every_text_field_run_nowhere(
    things: int, kinds: int, browser: Browser, serve: Serve
) -> None:
    """Every string stands in each list; each that is made from no other on the page of a thing."""
    assert len(set(STRINGS)) == 200
    served = serve(hostile_node())
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
    group = fake._group(served.node.findings.documents[0])
    paths = [
        "/findings?group=none&limit=500&table=1",
        "/findings?limit=500",
        f"/findings?open={group}&more={group}&g={group}",
        "/hunt?limit=500&table=1",
        "/rules",
        "/assets?limit=500",
        "/assets?view=zones",
        "/health",
        "/start",
        "/views",
        "/tokens",
        "/people/b.oth",
        "/audit?limit=500",
        "/rules/r0?samples=1",
    ]
    for number in range(things):
        pages = [f"/findings/f{number}", f"/hunt/e{number}"]
        pages += [f"/rules/r{number}", f"/assets/a{number}"]
        paths += (pages[number % 4 :] + pages)[:kinds]

    for path in paths:
        answer = page.goto(served.base + path, wait_until="load")
        assert answer is not None
        if answer.status != 200:
            said.append(f"{path}: {answer.status}")
        said += [f"{path}: {one}" for one in page.evaluate(FORBIDDEN)]

    context.close()
    assert said == []


def addresses(*words: str) -> Sequence[str]:
    """Ten words, each in a place of its own; those that no page refuses share one."""
    q, f, since, sort, status, opened, group, id_, by, done = words
    return (
        f"/hunt?q={q}",
        f"/findings?f=source.ip:{f}",
        f"/hunt?from={since}",
        f"/findings?sort={sort}",
        f"/hunt?by={by}",
        f"/hunt?status={status}&g={group}&id={id_}&done={done}",
        f"/findings?open={opened}&g={group}&id={id_}&done={done}",
    )


@pytest.mark.parametrize("count", [100, pytest.param(200, marks=pytest.mark.full)])
def test_hostile_words_of_the_address_run_nowhere(
    count: int, browser: Browser, serve: Serve
) -> None:
    """The second hundred are the first behind a sign that turns the direction of writing."""
    served = serve(fake.operator())
    page = browser.new_page()
    said: list[str] = []
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    enter(page, served)

    for first in range(0, count, 10):
        texts = STRINGS[first : first + 10]
        for address in addresses(*(quote(text[:1500]) for text in texts)):
            answer = page.goto(served.base + address)
            assert answer is not None
            assert answer.status in (200, 400), (address, texts)
            said += page.evaluate(FORBIDDEN)

    page.close()
    assert said == []
