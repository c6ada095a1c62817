"""The web console: routes, headers, and what becomes of errors."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlencode

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cityward.errors import CitywardError
from siem.console import formats
from siem.console.access import Access, MustChange, NotSignedIn, NotYours
from siem.console.api import Api
from siem.console.approvals import Approvals
from siem.console.assets import Assets
from siem.console.audit import Audit
from siem.console.campaigns import Campaigns
from siem.console.city import City
from siem.console.city_protocol import CityConsole
from siem.console.city_site import CitySite
from siem.console.door import Door
from siem.console.duties import Duties
from siem.console.filters import Filters
from siem.console.findings import Findings
from siem.console.first import First
from siem.console.health import Health
from siem.console.hunt import Hunt
from siem.console.incidents import Incidents
from siem.console.operators import Operators
from siem.console.people import People
from siem.console.playbooks import Playbooks
from siem.console.proposals import Proposals
from siem.console.protected import Protected
from siem.console.protocol import Cased, Console
from siem.console.routes import Routes
from siem.console.rules import Rules
from siem.console.runs import Runs
from siem.console.shared import Shared
from siem.console.sharing import Sharing
from siem.console.site import HERE, Fault, NodeSite, Site, see_other
from siem.console.triage import Triage
from siem.console.views import Views
from siem.console.workbench import Workbench

log = logging.getLogger(__name__)

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
BODY_MAX = 1 << 20
"""Largest form that is read, bytes."""

ENDINGS = ("", ".json", ".ndjson", ".csv")


def make_app(node: Console, access: Access | None = None) -> FastAPI:
    """The console of a node, ready to be served."""
    site = NodeSite(node, access or Access(node))
    app = _bare()
    _node_routes(app, site)
    return _finished(app, site)


def make_city_app(hub: CityConsole, access: Access | None = None) -> FastAPI:
    """The console of a hub, ready to be served."""
    site = CitySite(hub, access or Access(hub))
    app = _bare()
    _city_routes(app, site)
    return _finished(app, site)


def _bare() -> FastAPI:
    return FastAPI(title="cityward", docs_url=None, redoc_url=None, openapi_url=None)


def _finished(app: FastAPI, site: Site) -> FastAPI:
    """With what every console has: door, people, audit trail, views, errors, headers."""
    _common_routes(app, site)
    _errors(app, site)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    app.add_middleware(_Guard)
    return app


def _add(app: FastAPI, path: str, endpoint: Callable[..., Any], method: str = "GET") -> None:
    app.add_api_route(
        path, endpoint, methods=[method], response_model=None, include_in_schema=False
    )


def _add_lists(app: FastAPI, pages: Mapping[str, Callable[..., Any]]) -> None:
    """Pages that are lists, each also for programs."""
    for path, page in pages.items():
        for ending in ENDINGS:
            _add(app, path + ending, page)


def _common_routes(app: FastAPI, site: Site) -> None:
    people, audit, views = People(site), Audit(site), Views(site)
    api, door = Api(site, app), Door(site)
    add = partial(_add, app)
    _add_lists(
        app,
        {
            "/views": views.listing,
            "/people": people.listing,
            "/tokens": people.tokens,
            "/audit": audit.listing,
        },
    )
    for ending in (".json", ""):
        add("/people/change" + ending, people.change, "POST")
        add("/people/{name}" + ending, people.one)
        add("/tokens/change" + ending, people.change_token, "POST")
    add("/views/change", views.change, "POST")
    add("/api", api.page)
    add("/api/openapi.json", api.document)
    add("/password", people.password_form)
    add("/password", people.password, "POST")
    add("/", door.start)
    add("/sign-in", door.form)
    add("/sign-in", door.sign_in, "POST")
    add("/sign-out", door.sign_out, "POST")
    add("/settings", door.set, "POST")
    add("/keys", door.keys)


def _case_routes(app: FastAPI, site: Site, node: Cased, findings_at: str = "findings") -> None:
    """Incidents, at a node and at the hub."""
    incidents, add = Incidents(site, node, findings_at), partial(_add, app)
    _add_lists(app, {"/incidents": incidents.listing})
    for ending in (".json", ""):
        add("/incidents/change" + ending, incidents.change, "POST")
        add("/incidents/{incident_id}" + ending, incidents.one)
    add("/incidents/{incident_id}/draft/{duty_id}", incidents.draft)


def _sharing_routes(app: FastAPI, site: NodeSite) -> None:
    sharing, proposals = Sharing(site, site.node), Proposals(site)
    _add_lists(
        app,
        {
            "/sharing": sharing.preview,
            "/sharing/waiting": sharing.waiting,
            "/sharing/ledger": sharing.ledger,
            "/sharing/inbox": sharing.inbox,
            "/sharing/proposals": proposals.listing,
        },
    )
    _add(app, "/sharing/change", sharing.change, "POST")
    for ending in (".json", ""):
        _add(app, "/sharing/proposals/change" + ending, proposals.change, "POST")


def _response_routes(app: FastAPI, site: NodeSite) -> None:
    playbooks, approvals, add = Playbooks(site), Approvals(site), partial(_add, app)
    _add_lists(
        app,
        {
            "/playbooks": playbooks.listing,
            "/approvals": approvals.listing,
            "/runs": Runs(site).listing,
            "/in-force": playbooks.in_force,
        },
    )
    for ending in (".json", ""):
        add("/playbooks/start" + ending, playbooks.start, "POST")
        add("/playbooks/stage" + ending, playbooks.stage, "POST")
        add("/playbooks/stop" + ending, playbooks.stop, "POST")
        add("/playbooks/breaker" + ending, playbooks.breaker, "POST")
        add("/runs/change" + ending, playbooks.change, "POST")
        add("/approvals/answer" + ending, approvals.answer, "POST")
        add("/playbooks/{playbook_id}/plan" + ending, playbooks.plan)
        add("/playbooks/{playbook_id}" + ending, playbooks.one)
        add("/runs/{run_id}" + ending, playbooks.run)
        add("/approvals/{run_id}" + ending, approvals.one)


def _node_routes(app: FastAPI, site: NodeSite) -> None:
    _sharing_routes(app, site)
    _response_routes(app, site)
    _case_routes(app, site, site.node)
    findings, hunt, rules = Findings(site), Hunt(site), Rules(site)
    assets, routes, health = Assets(site), Routes(site), Health(site)
    filters, bench = Filters(site), Workbench(site)
    triage, protected = Triage(site, findings), Protected(site)
    add = partial(_add, app)
    _add_lists(
        app,
        {
            "/findings": findings.listing,
            "/hunt": hunt.listing,
            "/rules": rules.listing,
            "/filters": filters.listing,
            "/assets": assets.listing,
            "/health": health.page,
            "/routes": routes.listing,
            "/deliveries": routes.deliveries,
        },
    )
    for ending in (".json", ""):
        add("/findings/triage" + ending, triage.change, "POST")
        add("/findings/{finding_id}" + ending, findings.one)
        add("/hunt/{event_id}" + ending, hunt.one)
        add("/rules/change" + ending, rules.change, "POST")
        add("/filters/new" + ending, filters.new)
        add("/filters/add" + ending, filters.add, "POST")
        add("/filters/remove" + ending, filters.remove, "POST")
        add("/filters/{filter_id}" + ending, filters.one)
        add("/rules/new" + ending, bench.new)
        add("/rules/{rule_id}/edit" + ending, bench.edit)
        add("/rules/{rule_id}/edit" + ending, bench.change, "POST")
        add("/rules/{rule_id}/revert" + ending, bench.revert, "POST")
        add("/rules/{rule_id}/protected/judge" + ending, protected.judge, "POST")
        add("/rules/{rule_id}" + ending, rules.one)
        add("/assets/change" + ending, assets.change, "POST")
        add("/assets/{asset_id:path}" + ending, assets.one)
        add("/routes/test" + ending, routes.test, "POST")
    add("/rules/{rule_id}/protected", protected.page)
    add("/rules/{rule_id}/protected/share", protected.share, "POST")
    add("/metrics", health.metrics)
    add("/start", First(site).page)


def _city_routes(app: FastAPI, site: CitySite) -> None:
    _case_routes(app, site, site.node, "shared")
    city, campaigns, duties = City(site), Campaigns(site), Duties(site)
    shared, operators = Shared(site), Operators(site)
    add = partial(_add, app)
    _add_lists(
        app,
        {
            "/city": city.page,
            "/campaigns": campaigns.listing,
            "/shared": shared.listing,
            "/operators": operators.listing,
            "/duties": duties.listing,
        },
    )
    for ending in (".json", ""):
        add("/campaigns/propose" + ending, campaigns.propose, "POST")
        add("/campaigns/{campaign_id}" + ending, campaigns.one)
        add("/shared/{share_id}" + ending, shared.one)
        add("/operators/{name}" + ending, operators.one)


def _errors(app: FastAPI, site: Site) -> None:
    def not_signed_in(request: Request, _: Exception) -> Response:
        if formats.wants_data(request) or request.url.path == "/metrics":
            return formats.error(
                401, "nobody is signed in", request.url.path, "Sign in, or send a token."
            )
        onward = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return see_other(f"/sign-in?{urlencode({'next': onward})}")

    def not_yours(request: Request, error: Exception) -> Response:
        part = error.part if isinstance(error, NotYours) else ""
        roles = error.person.roles if isinstance(error, NotYours) and error.person else ("nobody",)
        if part == "form":
            what, todo = "this form is from another session", "Go back, load the page, try again."
        else:
            what = f"{part} is not for the role {' or '.join(roles)}, or not for this token"
            todo = "Ask whoever keeps the people of this node for the role."
        return _said(site, request, 403, Fault(what, "", todo))

    def must_change(request: Request, _: Exception) -> Response:
        if formats.wants_data(request):
            return formats.error(403, "the password is a one-time one", "", "Change it: /password.")
        return see_other("/password")

    def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, CitywardError)
        return _said(site, request, formats.status_of(error), Fault.of(error))

    def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        what = {404: "no page has this address", 405: "this address takes no such request"}.get(
            status, "the request cannot be read"
        )
        return _said(
            site,
            request,
            status,
            Fault(what, request.url.path, f"Begin at {site.shell.nav[0].word}."),
        )

    def fault(request: Request, error: Exception) -> Response:
        number = secrets.token_hex(4)
        log.error("Page failed, id %s.", number, exc_info=error)
        said = Fault("a fault of ours", f"id {number}, in the log", "Tell us the id.")
        answer = _said(site, request, 500, said)
        # This answer is made outside of the guard.
        _protect(answer.headers, request.url.path)
        return answer

    app.add_exception_handler(NotSignedIn, not_signed_in)
    app.add_exception_handler(MustChange, must_change)
    app.add_exception_handler(NotYours, not_yours)
    app.add_exception_handler(CitywardError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, fault)


def _said(site: Site, request: Request, status: int, fault: Fault) -> Response:
    if formats.wants_data(request):
        return formats.error(status, fault.what, fault.where, fault.todo)
    session = None if status == 500 else site.access.session(request)
    if session is None:
        context = {"fault": fault, "operator": site.node.operator, "title": "Error"}
        return site.html(request, "bare_error.html", context, status)
    return site.page(
        request,
        session,
        "error.html",
        status,
        title="Not yours to see" if status == 403 else "Error",
        current="",
        fault=fault,
        status_code=status,
        home=site.shell.start(session.person.role),
    )


class _Guard:
    """Headers on every answer, and a limit on every body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > BODY_MAX:
                raise HTTPException(413)
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _protect(MutableHeaders(scope=message), scope["path"])
            await send(message)

        await self.app(scope, limited, guarded)


def _protect(headers: MutableHeaders, path: str) -> None:
    headers.update(HEADERS)
    if not path.startswith("/static/"):
        headers["cache-control"] = "no-store"
