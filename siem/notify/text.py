"""What a message says. What findings quote of attackers is shown, and never obeyed or linked."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from cityward.finding import SEVERITIES
from siem.notify.routes import DRY, Route
from siem.store.notices import Delivery, Item
from siem.store.protocol import Document

SUBJECT_MAX = 160
LINE_MAX = 1000
NEWS = {
    "made": "is new",
    "raised": "is worse than before",
    "back": "came back after it was settled",
    "escalated": "was taken by nobody",
}
WHY = {
    "digest": "what came since the last one",
    "quiet": "what came in the quiet hours",
    "limit": "what was more than the route may send in an hour",
}
TEST = "Test of the route"


def subject(delivery: Delivery, operator: str) -> str:
    """One line: how bad, what, where; what is not real says so first."""
    items = delivery.message.items
    if not items:
        return _head(f"[TEST] {TEST} {delivery.route} of {operator}")
    worst = max((one.finding["finding.severity"] for one in items), key=SEVERITIES.index)
    mark = mark_of(items)
    if delivery.findings > 1:
        said = f"{delivery.findings} findings, worst {worst}"
    else:
        said = f"[{worst}] {title(items[0].finding)}"
    return _head(f"{mark}{said} ({operator})")


def _head(said: str) -> str:
    """A header's text: an encoded word (RFC 2047) would be decoded to whatever it hides."""
    return line(said, SUBJECT_MAX).replace("=?", "= ?")


def body(delivery: Delivery, route: Route, operator: str) -> str:
    """The text of a mail."""
    return "\n".join(_lines(delivery, route, operator)) + "\n"


def _lines(delivery: Delivery, route: Route, operator: str) -> Iterator[str]:
    message = delivery.message
    if not message.items:
        yield "This is a test. Nothing was found; the route works."
    elif delivery.kind == "digest":
        reasons = [WHY[one] for one in message.why.split(", ") if one in WHY]
        yield f"{delivery.findings} findings: {' and '.join(reasons)}."
    if mark_of(message.items):
        yield "Some of this is an exercise or a test, and marked so."
    for item in message.items:
        yield ""
        yield from _finding(item, route)
    if message.more:
        yield f"\n{message.more} more findings are in the console."
    if message.full:
        yield "\nThis route has reached its limit: what is more comes at the next full hour."
    yield ""
    yield "-- "
    yield line(f"cityward at {operator}, route {delivery.route}, delivery {delivery.id}")


def _finding(item: Item, route: Route) -> Iterator[str]:
    finding = item.finding
    severity = str(finding["finding.severity"]).upper()
    yield defanged(line(f"{mark_of((item,))}{severity}: {title(finding)}"))
    yield defanged(line(finding.get("finding.description", "")))
    for name, label in (
        ("cw.asset.asset_id", "asset"),
        ("cw.asset.zone", "zone"),
        ("source.ip", "source"),
        ("destination.ip", "destination"),
        ("user.name", "user"),
        ("threat.technique.id", "technique"),
    ):
        if finding.get(name):
            yield defanged(line(f"  {label}: {text(finding[name])}"))
    yield line(
        f"  seen: {time_of(finding['finding.first_seen'])} to"
        f" {time_of(finding['finding.last_seen'])} UTC, {finding['finding.count']} times"
    )
    yield f"  risk: {finding['finding.risk']}; it {NEWS[item.news]}"
    if link := link_of(route, finding):
        yield f"  {link}"


def title(finding: Document) -> str:
    """What was found, and on what."""
    asset = finding.get("cw.asset.asset_id")
    said = str(finding["finding.title"])
    return f"{said}: {text(asset)}" if asset and str(asset) not in said else said


def link_of(route: Route, finding: Document) -> str:
    """Address of a finding in the console, if the route knows it."""
    base = route.said.link.rstrip("/")
    return f"{base}/findings/{finding['finding.id']}" if base else ""


def mark_of(items: tuple[Item, ...]) -> str:
    """The mark of what is not real: `[EXERCISE] `."""
    modes = {str(one.finding.get("finding.mode")) for one in items}
    return "".join(f"[{mode.upper()}] " for mode in DRY if mode in modes)


def text(value: Any) -> str:
    """A value of a finding, or several."""
    return ", ".join(map(text, value)) if isinstance(value, (list, tuple)) else str(value)


def line(value: Any, most: int = LINE_MAX) -> str:
    """Text from outside as one line, no longer than is readable."""
    said = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text(value)
    )
    return said if len(said) <= most else f"{said[: most - 1]}…"


def defanged(said: str) -> str:
    """Text in which no mail program finds an address to link to."""
    return said.replace("://", "[:]//").replace("www.", "www[.]")


def time_of(value: Any) -> str:
    """A time of a message, which is JSON, for people."""
    return f"{moment(value):%Y-%m-%d %H:%M:%S}"


def moment(value: Any) -> datetime:
    """A time of a message, which is JSON."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
