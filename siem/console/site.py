"""What all pages share: the node behind them, the shell around them, answers in both forms."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from cityward.errors import CitywardError
from siem.console import formats, timespan, view
from siem.console.access import LANDS_ON, Access, Session
from siem.console.protocol import Console, Home
from siem.store.protocol import RuleState, SavedView, SourceState

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
PAGE_MAX = 500
"""Most rows of a page for people; programs may ask for `ROWS_MAX`."""
ROWS_MAX = 10_000
SAVED_SHOWN = 8
"""Saved views in the navigation; the page of views has all."""
TEXT_MAX = 4_000
"""Longest value of an address that is read."""


class Entry(NamedTuple):
    """A word of the navigation."""

    part: str
    """Of the console, as the rights name it."""
    path: str
    word: str
    key: str
    """Pressed after `g`, it leads there."""
    unit: str = "in all"
    """What the count beside it counts."""
    icon: str = ""
    """Empty: the one that is called like the part."""


@dataclass(frozen=True, slots=True)
class Shell:
    """What the frame around the pages is, for one kind of console."""

    nav: tuple[Entry, ...]
    lists: tuple[str, ...]
    """Pages whose own list the query bar asks."""
    timed: tuple[str, ...]
    """Pages that have the time picker."""
    search: tuple[str, str]
    """Where the query bar leads from the other pages, and what it is called there."""
    lands_on: Mapping[str, str]
    """Where a role begins; any other at `otherwise`."""
    otherwise: str
    state: str
    """Template of the line at the bottom."""
    scope: str
    """Whose picture it is, at the top."""

    def start(self, role: str) -> str:
        """Where a role begins."""
        return self.lands_on.get(role, self.otherwise)

    def part_of(self, link: str) -> str:
        """The part of the console that a link leads to; empty for one that leads elsewhere."""
        path = link.partition("?")[0]
        return next(
            (one.part for one in self.nav if path == one.path or path.startswith(f"{one.path}/")),
            "",
        )


NODE_SHELL = Shell(
    nav=(
        Entry("findings", "/findings", "Findings", "f", "new"),
        Entry("hunt", "/hunt", "Hunt", "h"),
        Entry("incidents", "/incidents", "Incidents", "i", "open"),
        Entry("approvals", "/approvals", "Approvals", "v", "waiting", "people"),
        Entry("playbooks", "/playbooks", "Playbooks", "b", "in force"),
        Entry("rules", "/rules", "Rules", "r"),
        Entry("assets", "/assets", "Assets", "a"),
        Entry("sharing", "/sharing", "Sharing", "s"),
        Entry("health", "/health", "Health", "e"),
        Entry("people", "/people", "People", "p"),
        Entry("audit", "/audit", "Audit", "u"),
    ),
    lists=("/findings", "/hunt"),
    timed=("/findings", "/hunt"),
    search=("/findings", "Query findings"),
    lands_on=LANDS_ON,
    otherwise="/health",
    state="state_node.html",
    scope="",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """An error on a page: what, where, what to do; for a query also the character."""

    what: str
    where: str
    todo: str
    at: int | None = None
    """Place in the text of the query bar, from 1."""

    @classmethod
    def of(cls, error: CitywardError, bar: str | None = None, shift: int = 0) -> Fault:
        """A fault of ours, with its place in the text of the query bar if it is there.

        Args:
            error: What was raised.
            bar: The person's text; a place behind it is in a filter. None: there is no bar.
            shift: Characters that the console wrote before the person's text.
        """
        found = re.search(r"character (\d{1,6})", error.where)
        if found is None or bar is None:
            return cls(error.what, error.where, error.todo)
        before = len(bar) - len(bar.lstrip())
        at = max(1, int(found[1]) - shift + before)
        if at > len(bar.rstrip()) + 1 or not bar.strip():
            return cls(error.what, "query, one of the filters", error.todo)
        return cls(error.what, f"query, character {at}", error.todo, at)


class Site:
    """A console: what is behind it, its door, its shell, its templates."""

    shell: Shell
    node: Home

    def __init__(self, node: Home, access: Access) -> None:
        self.node = node
        self.access = access
        self.templates = _environment()

    def counts(self, session: Session, now: datetime) -> dict[str, str]:
        """Counts beside the words of the navigation, by part."""
        return {}

    def state(self, session: Session, now: datetime) -> dict[str, Any]:
        """What the line at the bottom says."""
        return {}

    def view_of(self, request: Request) -> view.View:
        """The view that an address names; endings and overlong values are left out."""
        form = formats.form_of(request)
        path = request.url.path.removesuffix(f".{form}") if form else request.url.path
        pairs = tuple(
            (key, value.replace("\x00", ""))
            for key, value in request.query_params.multi_items()
            if len(key) <= 40 and len(value) <= TEXT_MAX
        )
        return view.View(path, pairs[:100])

    def page(
        self,
        request: Request,
        session: Session,
        template: str,
        status: int = 200,
        **context: Any,
    ) -> Response:
        """A page within the shell."""
        now = self.node.now()
        shown_view = context.pop("view", None) or self.view_of(request)
        choice = context.pop("choice", None) or self.choice(shown_view, now)
        shell = {
            "view": shown_view,
            "choice": choice,
            "now": now,
            "session": session,
            "operator": self.node.operator,
            "shell": self.shell,
            "nav": [entry for entry in self.shell.nav if session.may(entry.part)],
            "saved": self._saved(session),
            "nav_counts": self.counts(session, now),
            "state": self.state(session, now),
            "quick": timespan.QUICK,
            "fault": None,
            "query_path": shown_view.path if shown_view.path in self.shell.lists else "",
            "here": _here(request),
        }
        return self.html(request, template, {**shell, **context}, status)

    def unknown(
        self, request: Request, session: Session, current: str, what: str, todo: str
    ) -> Response:
        """Nothing is called so.

        Args:
            request: What was asked.
            session: Who asks.
            current: Part of the console in which it was looked for.
            what: What there is not.
            todo: Where to look instead.
        """
        if formats.form_of(request):
            return formats.error(404, what, request.url.path, todo)
        return self.page(
            request, session, "error.html", 404, title="Not found", current=current,
            fault=Fault(what, "", todo),
        )  # fmt: skip

    def html(
        self, request: Request, template: str, context: Mapping[str, Any], status: int = 200
    ) -> Response:
        """A page, with what the browser asked for by its cookies."""
        looks = {
            "theme": _cookie(request, "theme", ("light", "dark")),
            "keys_off": _cookie(request, "keys", ("off",)) == "off",
            "folded": _cookie(request, "fold", ("on",)) == "on",
        }
        text = self.templates.get_template(template).render({**looks, **context})
        return HTMLResponse(text.encode("utf-8", "backslashreplace"), status)

    def exported(self, session: Session, request: Request) -> None:
        """Keep that a list left the console as a file."""
        if formats.form_of(request) in ("csv", "ndjson"):
            about = self.view_of(request).link(request.url.path)
            self.node.audit(session.person.name, "export", about, self.node.now())

    def choice(self, asked: view.View, now: datetime) -> timespan.Choice:
        """The range of a view; one that cannot be read becomes the default."""
        try:
            return timespan.choose(asked.one("from"), asked.one("to"), now)
        except CitywardError:
            return timespan.choose("", "", now)

    def _saved(self, session: Session) -> list[SavedView]:
        """Views of people that stand in the navigation."""
        kept = [] if session.by_token else self.node.accounts.views(session.person.name)
        may = {one.path for one in self.shell.nav if session.may(one.part)}
        return [one for one in kept if one.link.partition("?")[0] in may][:SAVED_SHOWN]


class NodeSite(Site):
    """The console of a node."""

    shell = NODE_SHELL
    node: Console

    def counts(self, session: Session, now: datetime) -> dict[str, str]:
        """New findings of the last 24 h, and how many rules there are."""
        counts: dict[str, str] = {}
        try:
            if session.may("findings"):
                span = timespan.choose("", "", now).span
                new = self.node.findings.counts("", span).get("new", 0)
                counts["findings"] = view.number(new) if new else ""
            if session.may("incidents"):
                running = self.node.cases.running()
                counts["incidents"] = view.number(running) if running else ""
            counts |= self._response_counts(session)
            if session.may("rules"):
                counts["rules"] = view.number(len(rules_of(self.node)))
        except CitywardError as error:
            log.warning("Counts beside the navigation failed: %s.", error.what)
        return counts

    def _response_counts(self, session: Session) -> dict[str, str]:
        """What waits for a yes, and what is in force."""
        if not session.may("playbooks"):
            return {}
        runs = self.node.response.runs
        waiting, held = runs.waiting(), len(runs.in_force())
        said = {"approvals": waiting, "playbooks": held}
        return {part: view.number(count) for part, count in said.items() if count}

    def state(self, session: Session, now: datetime) -> dict[str, Any]:
        """How sources and rules do."""
        sources, rules = self.node.sources(), rules_of(self.node)
        return {**node_state(sources, now), **rule_counts(rules)}


def node_state(sources: Sequence[SourceState], now: datetime) -> dict[str, Any]:
    """The line at the bottom of every page."""
    failed = [source for source in sources if source.state == "failed"]
    events = sum(source.events for source in sources)
    late = sum(source.late for source in sources)
    return {
        "failed": len(failed),
        "sources": len(sources),
        "lag_s": max((source.lag_s for source in sources if source.rate_per_min > 0), default=0.0),
        "lost": sum(source.lost for source in sources),
        "late": view.share(late, events) if late else "0",
        "rate_per_s": sum(source.rate_per_min for source in sources) / 60,
        "malformed": sum(source.malformed for source in sources),
    }


def rules_of(node: Console) -> list[RuleState]:
    """The rules of a node; filters are none, and have a page of their own."""
    return [one for one in node.rules() if one.kind != "filter"]


def rule_counts(rules: Sequence[RuleState]) -> dict[str, int]:
    """How many rules are on, and how many cannot fire."""
    on = sum(rule.state == "on" for rule in rules)
    return {"rules_on": on, "rules_off": len(rules) - on}


def number_in(text: str, otherwise: int, least: int, most: int) -> int:
    """A whole number of an address, kept within its limits."""
    return min(max(int(text), least), most) if text.isascii() and text.isdigit() else otherwise


def back_to(path: str, otherwise: str = "/") -> str:
    """A path of ours to return to; anything that could lead elsewhere is refused."""
    is_ours = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if is_ours and path.isprintable() and "\\" not in path else otherwise


def see_other(path: str) -> RedirectResponse:
    """Go on by GET."""
    return RedirectResponse(path, 303)


def _here(request: Request) -> str:
    query = f"?{request.url.query}" if request.url.query else ""
    return request.url.path + query if request.method == "GET" else "/"


def _cookie(request: Request, name: str, allowed: tuple[str, ...]) -> str:
    value = request.cookies.get(f"cityward_{name}", "")
    return value if value in allowed else ""


@cache
def _environment() -> Environment:
    """One for all consoles of a process: a template is compiled once."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    for name in ("shown", "brief", "middle", "clock", "iso", "ago", "size", "number", "initials"):
        environment.filters[name] = getattr(view, name)
    environment.filters["words"] = view.title_case
    environment.filters["glyph"] = view.severity_glyph
    environment.globals.update(
        spark=view.spark, share=view.share, path_of=view.path_of, fold_chars=view.FOLD_CHARS
    )
    return environment
