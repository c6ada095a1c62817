"""Assets: what is there, what is new, who approved it; and a picture of the zones."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError
from siem.console import formats
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.site import (
    PAGE_MAX,
    ROWS_MAX,
    NodeSite,
    back_to,
    number_in,
    see_other,
)
from siem.console.triage import text
from siem.console.view import PAGE_ROWS, View, path_of
from siem.console.zonemap import picture
from siem.store.inventory import document, matches, names_of
from siem.store.protocol import AssetRow, Range
from siem.store.query import from_micros, quoted

SORTS = (
    *("state", "name", "type", "zone", "first_seen", "last_seen", "findings", "criticality"),
    "id",
)
STATES = (("observed", "New"), ("approved", "Approved"), ("retired", "Retired"))
ACTS = {
    "approve": "Approved {}.",
    "correct": "Corrected {}.",
    "retire": "Retired {}.",
    "merge": "Merged {}.",
    "conduits": "Approved {}.",
}
TEXTS = ("name", "type", "zone", "site", "vendor", "model", "owner_role")
FINDINGS_SHOWN = 10
ADDRESSES_ASKED = 8


class Assets:
    """The pages of the inventory."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.node = site.node

    # ---- The list and the picture

    def listing(self, request: Request) -> Response:
        """All assets, or the zones, as a page or for programs."""
        session = self.site.access.enter(request, "assets")
        form = formats.form_of(request)
        view = self.site.view_of(request)
        every = self.node.inventory.assets()
        rows = select(every, view)
        limit = number_in(view.one("limit"), PAGE_ROWS, 0, ROWS_MAX if form else PAGE_MAX)
        offset = number_in(view.one("offset"), 0, 0, 1_000_000)
        shown = rows[offset : offset + limit]
        if form:
            self.site.exported(session, request)
            said = {"query": view.one("q"), "offset": offset, "limit": limit}
            return formats.rows(form, [document(one) for one in shown], len(rows), said, "assets")
        return self.site.page(
            request,
            session,
            "assets.html",
            title="Assets",
            current="assets",
            query_path="/assets",
            query_hint="Address, name, type, zone or protocol",
            rows=[(one, document(one)) for one in shown],
            total=len(rows),
            every=len(every),
            states=Counter(one.state for one in every),
            words=STATES,
            zones=sorted({document(one)["zone"] for one in every} - {""}),
            types=sorted({one.asset.type for one in every} - {""}),
            offset=offset,
            limit=limit,
            notice=notice_of(view),
            learning=learning_of(self.node.inventory.learning()),
            picture=self._picture(every) if view.one("view") == "zones" else None,
        )

    def _picture(self, every: Sequence[AssetRow]) -> Any:
        inventory = self.node.inventory
        return picture(inventory.zones(), inventory.conduits(), every)

    # ---- One asset

    def one(self, request: Request, asset_id: str) -> Response:
        """One asset with what was seen of it, as a page or as JSON."""
        session = self.site.access.enter(request, "assets")
        form = formats.form_of(request) == "json"
        row = self.node.inventory.asset(asset_id)
        if row is None:
            what = f"no asset is called {asset_id[:80]}"
            return self.site.unknown(
                request, session, "assets", what, "Look in the list of assets."
            )
        seen = row.seen
        said = document(row) | {
            "peers": list(seen.peers) if seen else [],
            "words": list(seen.words) if seen else [],
            "history": list(row.history),
        }
        if form:
            return formats.json(said)
        names = {one for other in self.node.inventory.assets() for one in names_of(other)}
        inventory = self.node.inventory
        query = query_about(said)
        return self.site.page(
            request,
            session,
            "asset.html",
            title=row.asset.name or row.asset.id,
            current="assets",
            row=row,
            a=said,
            home=path_of("assets", row.asset.id),
            known=names,
            notice=notice_of(self.site.view_of(request)),
            zones=[zone.id for zone in inventory.zones()],
            query=query,
            findings=self._findings(query) if session.may("findings") else [],
        )

    def _findings(self, query: str) -> Sequence[Mapping[str, Any]]:
        found = self.node.findings.search(query, Range(), "-finding.last_seen", FINDINGS_SHOWN)
        return found.rows

    # ---- Changes

    async def change(self, request: Request) -> Response:
        """Approve, correct, retire or merge, by a form that needs no script."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, form)

    def _change(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter_by_form(request, "inventory", text(form, "csrf"))
        back = back_to(text(form, "back"), "/assets")
        done = self._do(session, form, back, self.node.now())
        if formats.form_of(request):
            return formats.json({"changed": done})
        path, _, query = back.partition("?")
        view = View(path, tuple(_pairs(query)))
        return see_other(view.link(drop=("done",), done=f"{text(form, 'act')}-{done}"))

    def _do(self, session: Session, form: FormData, back: str, now: datetime) -> int:
        act, who, why = text(form, "act"), session.person.name, text(form, "reason").strip()
        inventory = self.node.inventory
        ids = self._ids(form, back)
        if act not in ACTS:
            raise CitywardError(f"no act is called {act[:40]!r}", "act", f"One of {list(ACTS)}.")
        if not ids:
            raise CitywardError("nothing is selected", act, "Tick the rows you mean, then send it.")
        if act == "approve":
            return inventory.approve(ids, who, why, now, **said_of(form))
        if act == "correct":
            return inventory.correct(ids[0], who, why, now, **said_of(form))
        if act == "retire":
            return inventory.retire(ids, who, why, now)
        if act == "conduits":
            return inventory.approve_conduits(ids, who, why, now)
        other = inventory.asset(text(form, "other").strip())
        if other is None:
            what = f"no asset is called {text(form, 'other')[:80]!r}"
            raise CitywardError(what, "merge", "Write its id, its name or an address.")
        return inventory.merge(ids[0], other.asset.id, who, why, now)

    def _ids(self, form: FormData, back: str) -> list[str]:
        """Ids that are ticked, or all of the list's query that can be changed here."""
        if text(form, "whole"):
            path, _, query = back.partition("?")
            rows = select(self.node.inventory.assets(), View(path, tuple(_pairs(query))))
            return [row.asset.id for row in rows if row.origin != "settings"]
        return [str(one) for one in form.getlist("id") if isinstance(one, str) and one]


def select(rows: Sequence[AssetRow], view: View) -> list[AssetRow]:
    """Assets that fit the address, sorted; those that nobody has approved yet come first.

    Raises:
        CitywardError: The list cannot be sorted so, or no state is called so.
    """
    state, sort = view.one("state"), view.one("sort", "state")
    key = sort.removeprefix("-")
    if key not in SORTS:
        raise CitywardError(
            f"assets cannot be sorted by {sort[:60]!r}", "sort", f"Write {', '.join(SORTS)}."
        )
    if state and state not in dict(STATES):
        raise CitywardError(
            f"no state is called {state[:40]!r}", "state", f"Write {', '.join(dict(STATES))}."
        )
    words, zone, kind = view.one("q").split(), view.one("zone"), view.one("type")
    found = [
        row
        for row in rows
        if matches(row, words, state=state, zone=zone) and (not kind or row.asset.type == kind)
    ]
    found.sort(key=lambda row: row.seen.first_seen.timestamp() if row.seen else 0.0, reverse=True)
    found.sort(key=lambda row: _key(row, key), reverse=sort.startswith("-"))
    return found


def _key(row: AssetRow, key: str) -> Any:
    if key == "state":
        return -1 if row.is_back else ("observed", "approved", "retired").index(row.state)
    value = document(row)[key]
    if key == "name":
        return (row.asset.name or row.asset.id).lower()
    if isinstance(value, datetime):
        return value.timestamp()
    if key in ("first_seen", "last_seen"):
        return 0.0
    return value.lower() if isinstance(value, str) else value


def said_of(form: FormData) -> dict[str, Any]:
    """What a form says of an asset; a form that does not have the fields says nothing."""
    if not text(form, "whole_record"):
        return {}
    said: dict[str, Any] = {name: text(form, name).strip() for name in TEXTS}
    said["criticality"] = text(form, "criticality") or "2"
    said["never_touch"] = bool(text(form, "never_touch"))
    said["safety_related"] = bool(text(form, "safety_related"))
    for name in ("roles", "addresses"):
        said[name] = tuple(dict.fromkeys(text(form, name).replace(",", " ").split()))
    return said


def query_about(said: Mapping[str, Any]) -> str:
    """Findings about an asset, in words of the query bar: by its id, and by its addresses."""
    parts = [f"cw.asset.asset_id:{quoted(said['id'])}"]
    for address in said["addresses"][:ADDRESSES_ASKED]:
        try:
            ip = str(ipaddress.ip_address(address))
        except ValueError:
            continue
        parts += [f"source.ip:{quoted(ip)}", f"destination.ip:{quoted(ip)}"]
    return " OR ".join(parts)


def notice_of(view: View) -> str:
    """What the last act did, from its short word in the address."""
    act, _, count = view.one("done").partition("-")
    if act not in ACTS or not count.isdecimal() or len(count) > 9:
        return ""
    what = "conduit" if act == "conduits" else "asset"
    named = f"1 {what}" if count == "1" else f"{int(count):,} {what}s"
    return ACTS[act].format(named)


def learning_of(numbers: Mapping[str, int]) -> dict[str, Any]:
    """What the page says of the learning: until when it lasts, and what was not kept."""
    refused = numbers.get("full", 0)
    until = numbers.get("until")
    return {"until": from_micros(until) if until else None, "refused": refused}


def _pairs(query: str) -> list[tuple[str, str]]:
    return parse_qsl(query)[:100]
