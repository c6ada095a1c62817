"""The API for programs, described from the routes that are really there.

A list for programs is the page's own list: the same function, the same query, the same rights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from siem.console import formats
from siem.console.access import OPENS
from siem.console.people import SCOPE_WORDS
from siem.console.site import ROWS_MAX, Site
from siem.console.triage import ACTS as TRIAGE_ACTS
from siem.store.proposals import DECLINES

VERSION = "1"
ENDINGS = (".json", ".ndjson", ".csv")

_TEXT: dict[str, Any] = {"type": "string"}
_NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0}

WORDS: dict[str, tuple[dict[str, Any], str]] = {
    "q": (_TEXT, "Query, as in the query bar of the page"),
    "f": ({"type": "array", "items": _TEXT}, "Filter field:value, -field:value to exclude"),
    "from": (_TEXT, "Begin: now-24h (default), now/d, all, or ISO 8601"),
    "to": (_TEXT, "End: now (default), or ISO 8601"),
    "sort": (_TEXT, "Field; - before it for descending"),
    "closed": (_TEXT, "1: also incidents that are closed"),
    "limit": (_NUMBER | {"maximum": ROWS_MAX}, "Rows, 50 if it is not given"),
    "offset": (_NUMBER, "Rows that are left out at the beginning"),
    "status": (_TEXT, "open (default), new, in_progress, suppressed, resolved, all"),
    "group": (_TEXT, "rule (default) groups by rule and asset, none gives each finding"),
    "by": (_TEXT, "Field whose top values are given instead of events"),
    "since": (_TEXT, "Findings last seen in so long a time: 24h, 7d (default) or 30d"),
    "audience": (_TEXT, "Only what this audience would be told"),
    "state": (_TEXT, "Only those of this state"),
    "zone": (_TEXT, "Only assets of this zone"),
    "type": (_TEXT, "Only assets of this type"),
    "only": (_TEXT, "trouble: only sources in trouble"),
    "verify": (_TEXT, "1: prove the chain; the answer has proof"),
    "route": (_TEXT, "Only deliveries of this route"),
    "near": (_TEXT, "Time of the event, if it is known: it saves reading"),
    "finding": (_TEXT, "Id of the finding that is meant"),
    "field": ({"type": "array", "items": _TEXT}, "Field that tells what is harmless"),
    "days": (_NUMBER, "How long the filter hides, 30 if it is not given"),
    "samples": (_TEXT, "1: run the samples of the rule"),
    "job": (_TEXT, "Id of a preview that was begun: how far it is, what came out"),
}
"""Words of addresses: schema and what they mean."""

LISTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "/findings": (
        "findings",
        ("q", "f", "from", "to", "status", "group", "sort", "limit", "offset"),
    ),
    "/hunt": ("hunt", ("q", "f", "from", "to", "by", "limit", "offset")),
    "/rules": ("rules", ("q", "state", "sort", "limit", "offset")),
    "/filters": ("rules", ()),
    "/filters/new": ("switch", ("finding", "field", "days")),
    "/filters/{filter_id}": ("rules", ()),
    "/assets": ("assets", ("q", "state", "zone", "type", "sort", "limit", "offset")),
    "/health": ("health", ("only",)),
    "/routes": ("routes", ()),
    "/deliveries": ("routes", ("route", "limit", "offset")),
    "/views": ("self", ()),
    "/people": ("people", ("q",)),
    "/tokens": ("people", ()),
    "/audit": ("audit", ("q", "from", "to", "verify", "limit", "offset")),
    "/findings/{finding_id}": ("findings", ()),
    "/hunt/{event_id}": ("hunt", ("near",)),
    "/rules/new": ("switch", ("q", "f", "from", "to")),
    "/rules/{rule_id}/edit": ("switch", ("job",)),
    "/rules/{rule_id}": ("rules", ("samples",)),
    "/assets/{asset_id}": ("assets", ()),
    "/people/{name}": ("people", ()),
    "/sharing": ("sharing", ("since", "audience", "limit")),
    "/sharing/waiting": ("sharing", ()),
    "/sharing/ledger": ("sharing", ("q", "limit", "offset")),
    "/sharing/inbox": ("sharing", ()),
    "/sharing/proposals": ("sharing", ()),
    "/playbooks": ("playbooks", ()),
    "/playbooks/{playbook_id}": ("playbooks", ()),
    "/playbooks/{playbook_id}/plan": ("plan", ("finding",)),
    "/runs": ("playbooks", ("limit", "offset")),
    "/runs/{run_id}": ("playbooks", ()),
    "/approvals": ("approvals", ()),
    "/approvals/{run_id}": ("approvals", ()),
    "/in-force": ("playbooks", ("limit", "offset")),
    "/incidents": ("incidents", ("q", "closed", "limit", "offset")),
    "/incidents/{incident_id}": ("incidents", ()),
    "/city": ("city", ("state", "from", "to")),
    "/campaigns": ("campaigns", ("q", "f", "from", "to", "limit", "offset")),
    "/campaigns/{campaign_id}": ("campaigns", ()),
    "/shared": ("shared", ("q", "f", "from", "to", "sort", "limit", "offset")),
    "/shared/{share_id}": ("shared", ()),
    "/operators": ("operators", ("q",)),
    "/duties": ("duties", ("q",)),
    "/operators/{name}": ("operators", ()),
    "/api/openapi": ("self", ()),
    "/metrics": ("metrics", ()),
}
"""Address without ending: the part of the console it is, and the words it understands."""


def _body(required: tuple[str, ...], **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _word(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


_IDS = {"type": "array", "items": _TEXT}
CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "/findings/triage": (
        "triage",
        _body(
            ("act",),
            act=_word(*TRIAGE_ACTS, "undo"),
            id=_IDS,
            verdict=_TEXT | {"description": "Needed by resolve"},
            until=_TEXT | {"description": "Needed by suppress: 24h, 7d, or ISO 8601"},
            comment=_TEXT | {"description": "Reason or comment, at most 2,000 characters"},
            incident=_TEXT | {"description": "Needed by incident: its id, or new with a title"},
            title=_TEXT,
            revision={
                "type": "object",
                "additionalProperties": {"type": "integer"},
                "description": "By id, finding.revision as it was read; another one now gives 409",
            },
        ),
    ),
    "/incidents/change": (
        "cases",
        _body(
            ("act",),
            act=_word(
                *("open", "change", "join", "leave", "note", "task", "done"),
                *("answer", "submit", "merge", "split"),
            ),
            id=_TEXT | {"description": "Of the incident; not for open"},
            finding=_IDS,
            title=_TEXT,
            stage=_TEXT,
            severity=_TEXT,
            cause=_TEXT,
            owner=_TEXT,
            aware_at=_TEXT | {"description": "ISO 8601; starts the legal clocks"},
            text=_TEXT | {"description": "Of a note or a task"},
            duty=_TEXT | {"description": "Needed by answer and submit"},
            reference=_TEXT,
        ),
    ),
    "/assets/change": (
        "inventory",
        _body(
            ("act", "id"),
            act=_word("approve", "correct", "retire", "merge", "conduits"),
            id=_IDS,
            reason=_TEXT,
        ),
    ),
    "/rules/change": (
        "switch",
        _body(("act", "id", "reason"), act=_word("on", "off"), id=_IDS, reason=_TEXT),
    ),
    "/rules/{rule_id}/edit": (
        "switch",
        _body(
            ("act", "text"),
            act=_word(
                *("check", "save", "discard", "deploy", "note"),
                *("prove", "try", "preview", "look", "cancel", "why"),
            )
            | {"description": "The last four read kept events: they need the scope read, too"},
            text=_TEXT | {"description": "YAML of the document"},
            samples=_TEXT | {"description": "YAML of its samples; empty: those that it has"},
            reason=_TEXT | {"description": "Needed by deploy"},
            seen=_NUMBER | {"description": "number as it was read; another one now gives 409"},
            draft=_TEXT | {"description": "draft as it was read; another one now gives 409"},
            note=_TEXT | {"description": "Needed by note; save, discard and deploy keep it along"},
            line=_TEXT | {"description": "Needed by try: a line as its source sends it"},
            collector=_TEXT | {"description": "Reads the line; empty: the one that recognises it"},
            days=_NUMBER | {"description": "Of preview: 1, 7, 30 or 90"},
            job=_TEXT | {"description": "Needed by look and cancel: what preview gave"},
            event=_TEXT | {"description": "Needed by why: id of an event, a space, and its time"},
        ),
    ),
    "/rules/{rule_id}/revert": (
        "switch",
        _body(
            ("number", "reason"),
            number=_NUMBER | {"description": "Of the version to go back to; 0: to the file"},
            reason=_TEXT,
            seen=_NUMBER | {"description": "number as it was read; another one now gives 409"},
        ),
    ),
    "/rules/{rule_id}/protected/judge": (
        "switch",
        _body(
            ("act", "id", "reason"),
            act=_word("aside", "back", "aside-all", "back-all"),
            id=_TEXT | {"description": "Of a sample that another operator let out"},
            reason=_TEXT,
        ),
    ),
    "/filters/add": (
        "switch",
        _body(
            ("finding", "field", "reason"),
            finding=_TEXT,
            field=_IDS | {"description": "Fields whose values tell what is harmless"},
            reason=_TEXT,
            days=_NUMBER | {"description": "How long it hides; 30 if it is not said, at most 366"},
            resolve=_TEXT
            | {"description": "Resolve what it hides whole, as benign; needs the scope triage"},
            shown=_TEXT | {"description": "shown as it was read; another one now gives 409"},
            open=_IDS | {"description": "With shown: of what it hides, just these are resolved"},
        ),
    ),
    "/filters/remove": ("switch", _body(("id", "reason"), id=_TEXT, reason=_TEXT)),
    "/playbooks/start": (
        "plan",
        _body(
            ("playbook", "finding", "plan"),
            playbook=_TEXT,
            finding=_TEXT,
            plan=_TEXT | {"description": "Hash of the plan that was seen; another now gives 409"},
        ),
    ),
    "/playbooks/stage": (
        "stage",
        _body(
            ("playbook", "stage", "reason"),
            playbook=_TEXT,
            stage=_word("draft", "shadow", "approve_all", "live")
            | {"description": "live: after 20 runs in shadow as it is now; 409 before"},
            reason=_TEXT,
        ),
    ),
    "/playbooks/breaker": ("halt", _body(("actuator", "reason"), actuator=_TEXT, reason=_TEXT)),
    "/playbooks/stop": (
        "halt",
        _body(
            ("act", "reason"),
            act=_word("stop", "release"),
            name=_TEXT | {"description": "global (default), playbook:ID or actuator:NAME"},
            reason=_TEXT,
        ),
    ),
    "/runs/change": (
        "halt",
        _body(
            ("act", "id"),
            act=_word("undo", "cancel", "done", "failed"),
            id=_TEXT | {"description": "Of the run"},
            about=_TEXT | {"description": "Effect to undo, none: all; or step to answer"},
            reason=_TEXT | {"description": "Needed by cancel"},
        ),
    ),
    "/approvals/answer": (
        "approve",
        _body(
            ("answer", "id", "reason"),
            answer=_word("approve", "refuse"),
            id=_TEXT | {"description": "Of the run"},
            plan=_TEXT | {"description": "Needed by approve: hash of the plan that was seen"},
            reason=_TEXT,
        ),
    ),
    "/sharing/proposals/change": (
        "plan",
        _body(
            ("act", "id"),
            act=_word("accept", "decline"),
            id=_TEXT | {"description": "Of the proposal"},
            why=_word(*DECLINES) | {"description": "Needed by decline; it leaves"},
            note=_TEXT | {"description": "Why in your own words; it stays here"},
        ),
    ),
    "/campaigns/propose": (
        "propose",
        _body(
            ("id", "playbook", "operator", "reason"),
            id=_TEXT | {"description": "Of the campaign"},
            playbook=_TEXT | {"description": "Name of the file of a playbook that ships"},
            operator=_IDS | {"description": "Operators that were told of the campaign"},
            reason=_TEXT | {"description": "Each of them reads it; it names no operator"},
        ),
    ),
    "/routes/test": ("send", _body(("route",), route=_TEXT)),
    "/people/change": (
        "people",
        _body(
            ("act", "name"),
            act=_word("add", "roles", "disable", "enable", "reset", "end"),
            name=_TEXT,
            role=_IDS,
        ),
    ),
    "/tokens/change": (
        "people",
        _body(
            ("act",),
            act=_word("add", "revoke"),
            id=_TEXT,
            name=_TEXT,
            person=_TEXT,
            scope=_IDS,
            days=_NUMBER,
        ),
    ),
}
"""Address without ending: the part it changes, and what is sent."""

COMPARED = (
    *("/findings/triage", "/people/change", "/playbooks/start", "/approvals/answer"),
    "/rules/{rule_id}/edit",
)
"""Changes that are refused if somebody else was faster."""

_ERROR = {
    "type": "object",
    "properties": {"error": _body((), what=_TEXT, where=_TEXT, todo=_TEXT)},
}
_ANSWERS = {
    "400": "The request cannot be understood; the answer says what, where, what to do",
    "401": "No token, or one that is over or revoked",
    "403": "The token or its person may not",
    "404": "There is no such thing",
    "409": "It has changed since it was read",
}


class Api:
    """The description for programs and the page for people."""

    def __init__(self, site: Site, app: FastAPI) -> None:
        self.site = site
        self.app = app

    def document(self, request: Request) -> Response:
        """What a program may ask, as an OpenAPI document."""
        self.site.access.enter(request, "self")
        return formats.json(described(self.app))

    def page(self, request: Request) -> Response:
        """What a program may ask, as a page."""
        session = self.site.access.enter(request, "self")
        base = str(request.base_url).rstrip("/")
        return self.site.page(
            request, session, "api.html", title="API", current="", base=base,
            operations=list(operations(self.app)), scopes=SCOPE_WORDS, answers=_ANSWERS,
        )  # fmt: skip


def operations(app: FastAPI) -> Iterator[dict[str, Any]]:
    """Every operation for programs that the console has, in the order of its routes."""
    for route in app.routes:
        if not isinstance(route, APIRoute):
            continue
        path = re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path)
        form = next((one for one in ENDINGS if path.endswith(one)), "")
        if not form and path != "/metrics":
            continue
        stem = path.removesuffix(form)
        for method in sorted(route.methods or ()):
            changes = method == "POST"
            part, words = CHANGES[stem] if changes else LISTS[stem]
            yield {
                "path": path,
                "method": method,
                "form": form.lstrip("."),
                "summary": (route.endpoint.__doc__ or "").strip().partition("\n")[0],
                "part": part,
                "scope": scope_of(part),
                "names": re.findall(r"\{(\w+)\}", path),
                "words": [] if changes else [(name, *WORDS[name]) for name in words],
                "body": words if changes else None,
                "is_list": not changes and "{" not in path and form not in ("",),
            }


def scope_of(part: str) -> str:
    """The scope that opens a part; `read` for what every token may."""
    return next((scope for scope, parts in OPENS.items() if part in parts), "read")


def described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document (OpenAPI 3.1.0)."""
    paths: dict[str, Any] = {}
    for one in operations(app):
        paths.setdefault(one["path"], {})[one["method"].lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cityward",
            "version": VERSION,
            "description": "Lists and changes of one operator's node. Send a token with every "
            "request, as Authorization: Bearer.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR},
        },
    }


def _operation(one: dict[str, Any]) -> dict[str, Any]:
    named = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT} for name in one["names"]
    ]
    asked = [
        {"name": name, "in": "query", "schema": schema, "description": said}
        for name, schema, said in one["words"]
    ]
    kind = formats.TYPES.get(one["form"], "text/plain").partition(";")[0]
    schema = _schema_of(one)
    answers: dict[str, Any] = {
        "200": {"description": one["summary"], "content": {kind: {"schema": schema}}}
    }
    for status, said in _ANSWERS.items():
        if status != "409" or one["path"].removesuffix(".json") in COMPARED:
            error = {"schema": {"$ref": "#/components/schemas/Error"}}
            answers[status] = {"description": said, "content": {"application/json": error}}
    made = {
        "summary": one["summary"],
        "description": f"Needs the scope {one['scope']}.",
        "operationId": re.sub(r"\W+", "_", f"{one['method'].lower()}{one['path']}").strip("_"),
        "parameters": [*named, *asked],
        "responses": answers,
    }
    if one["body"] is not None:
        content = {"application/json": {"schema": one["body"]}}
        made["requestBody"] = {"required": True, "content": content}
    return made


def _schema_of(one: dict[str, Any]) -> dict[str, Any]:
    if one["form"] != "json":
        return _TEXT
    if not one["is_list"] or one["path"].startswith("/api"):
        return {"type": "object"}
    rows = {"type": "array", "items": {"type": "object"}}
    return _body(("total", "rows"), total=_NUMBER, rows=rows)
