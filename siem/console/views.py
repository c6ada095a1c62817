"""Saved views: a link of the console with a name, for oneself or for everybody of the operator."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import InputError
from siem.console import formats
from siem.console.access import NotYours, Session
from siem.console.body import body_of
from siem.console.site import Shell, Site, back_to, see_other
from siem.console.triage import text
from siem.store.protocol import SavedView

LINK_MAX = 4_000
SHIPPED = "cityward"
"""Owner of the views that come with the console."""

_ALL: tuple[tuple[str, str], ...] = (
    ("Commands to controllers", "/hunt?q=ot.is_command%3Atrue"),
    ("What cannot be read", "/hunt?q=event.kind%3Apipeline_error"),
    ("Nobody has it yet", "/findings?status=new&from=now-7d&sort=-finding.last_seen"),
)
_BY_SECTOR: dict[str, tuple[tuple[str, str], ...]] = {
    "energy": (
        ("Switching by IEC 104", "/hunt?q=network.protocol%3Aiec104+and+ot.is_command%3Atrue"),
        ("Relays and GOOSE", "/hunt?q=network.protocol%3A(goose+or+mms)"),
    ),
    "transport": (
        ("Signals and signs", "/hunt?q=network.protocol%3A(ntcip+or+genisys+or+snmp)"),
        ("Chargers", "/hunt?q=network.protocol%3Aocpp"),
    ),
    "port": (
        ("Cranes", "/hunt?q=network.protocol%3A(s7comm+or+enip+or+fins)"),
        ("Remote access", "/findings?status=all&from=now-7d&q=vpn"),
    ),
    "water": (("Pumps and gauges", "/hunt?q=network.protocol%3A(modbus+or+dnp3)"),),
    "city": (
        ("Buildings", "/hunt?q=network.protocol%3Abacnet"),
        ("Cameras", "/hunt?q=network.protocol%3A(rtsp+or+onvif)"),
    ),
}
"""Views by the first words of a sector's name."""
_LIKE = {"transport.maritime": "port", "administration": "city", "emergency": "city"}


def shipped(sector: str) -> list[SavedView]:
    """The views that come with the console for a sector."""
    key = next((kind for head, kind in _LIKE.items() if sector.startswith(head)), "")
    key = key or sector.partition(".")[0]
    return [
        SavedView(0, name, link, SHIPPED, shared=True)
        for name, link in (*_BY_SECTOR.get(key, ()), *_ALL)
    ]


class Views:
    """The page of saved views."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.node = site.node

    def listing(self, request: Request) -> Response:
        """One's own views, shared ones and shipped ones, as a page or for programs."""
        session = self.site.access.enter(request, "self")
        form = formats.form_of(request)
        rows = self._seen_by(session)
        if form:
            listed = [document(one) for one in rows]
            return formats.rows(form, listed, len(rows), {}, "views")
        view = self.site.view_of(request)
        return self.site.page(
            request, session, "views.html", title="Views", current="views", rows=rows,
            link=page_of(self.site.shell, view.one("link")), notice=view.one("done") == "saved",
        )  # fmt: skip

    def _seen_by(self, session: Session) -> list[SavedView]:
        kept = self.node.accounts.views(session.person.name)
        every = [*kept, *shipped(self.node.sector)]
        return [one for one in every if session.may(self.site.shell.part_of(one.link))]

    async def change(self, request: Request) -> Response:
        """Save a view or take one of one's own away."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, form)

    def _change(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter(request, "self")
        if session.by_token or not self.site.access.check_form(session, text(form, "csrf")):
            raise NotYours(session.person, "form")
        name, now = session.person.name, self.node.now()
        if text(form, "act") == "remove":
            number = text(form, "number")
            if number.isascii() and number.isdecimal() and len(number) < 12:
                self.node.accounts.remove_view(int(number), name, now)
            return see_other("/views")
        link = page_of(self.site.shell, text(form, "link"))
        if not link:
            raise InputError("no page of this console is named", "link", "Save it from its page.")
        shared = text(form, "shared") == "1"
        view = SavedView(0, text(form, "name"), link, name, shared)
        self.node.accounts.save_view(view, now)
        return see_other("/views?done=saved")


def page_of(shell: Shell, link: str) -> str:
    """A link to a page of ours that can be saved; empty for any other."""
    is_ours = back_to(link, "") == link and len(link) <= LINK_MAX and bool(shell.part_of(link))
    return link if is_ours else ""


def document(view: SavedView) -> dict[str, Any]:
    """A view as programs read it."""
    return msgspec.structs.asdict(view)
