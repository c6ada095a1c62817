"""Routes as the settings file says them, and what cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from cityward.finding import Severity

PORT_MAX = 65_535
PER_HOUR_MAX = 10_000
ESCALATE_MAX_MIN = 10_080
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_SERVER = re.compile(r"[\x21-\x7e]+:(\d{1,5})")
_CLOCK = r"([01]\d|2[0-3]):([0-5]\d)"
DIGEST = re.compile(rf"immediately|hourly|daily {_CLOCK}")
QUIET = re.compile(rf"{_CLOCK}-{_CLOCK}")
MAILBOX = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")
TRANSPORTS = {"mail": ("starttls", "tls", "tcp"), "syslog": ("tls", "tcp", "udp"), "webhook": ()}
"""How each kind of server may be spoken to; the first is meant by `auto`."""
_WORD = re.compile(r"[\x21-\x7e]+")


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom the node tells of findings, by mail, webhook or syslog."""

    id: str
    """Stable name of the route; what was delivered is kept under it."""
    to: Literal["mail", "webhook", "syslog"]
    """How it tells: `mail` (SMTP), `webhook` (signed HTTPS POST of JSON), `syslog` (CEF)."""
    when: dict[str, Any] | None = None
    """Which findings: fields and what they must be, e.g. `{"finding.severity" = ["high"]}`; `{}` is
    all of them, none is only what other routes escalate to it."""
    server: str = ""
    """Address and port of the mail or syslog server: `mail.example:587`, `siem.example:6514`."""
    transport: Literal["auto", "starttls", "tls", "tcp", "udp"] = "auto"
    """How that server is spoken to: mail `starttls`, `tls` or, on this machine only, `tcp`; syslog
    `tls`, `tcp` or `udp`. `auto` is `starttls` for mail, `tls` for syslog."""
    url: str = ""
    """Address of the webhook; `https://`, except on this machine."""
    sender: str = ""
    """Address that the mail comes from."""
    receivers: tuple[str, ...] = ()
    """Addresses that the mail goes to."""
    user: str = ""
    """Name of this node at the mail server."""
    secret_env: str = ""
    """Variable of the environment that holds the password at the mail server, or the secret that
    signs what is posted."""
    ca_file: str = ""
    """Certificates of the authorities that the server is believed by; empty: the system's."""
    link: str = ""
    """Address of the console as the receivers open it; messages link to their finding."""
    digest: str = "immediately"
    """When it tells: `immediately`, `hourly`, or once a day: `daily 07:30`."""
    quiet_hours: str = ""
    """Hours in which it waits: `22:00-06:00`."""
    breaks_quiet: Severity = "critical"
    """Severity from which a finding does not wait for the end of the quiet hours."""
    zone: str = "UTC"
    """Time zone of digest and quiet hours: `Europe/Paris`."""
    escalate_after_min: int = 0
    """Minutes after a message in which somebody must take its finding; 0: no escalation."""
    escalate_to: str = ""
    """Route that is told if nobody did."""
    max_per_hour: int = 20
    """Messages of single findings in a clock hour; what is more comes together at the next full
    hour. 0: no limit."""
    exercises: bool = False
    """Tell of findings of an exercise or a test, too; they are marked as such."""


def wrong_routes(every: Sequence[Route]) -> Iterator[tuple[str, str]]:
    """What cannot be: the key of the setting, and why."""
    routes = {route.id: route for route in every}
    named = {route.escalate_to for route in every}
    for number, route in enumerate(every):
        wrong = (*_wrong_receiver(route), *_wrong_time(route), *_wrong_escalation(route, routes))
        yield from ((f"route[{number}].{key}", what) for key, what in wrong)
        if route.when is None and route.id not in named:
            yield f"route[{number}].when", "it is missing: which findings? All of them are {}"


def _wrong_receiver(route: Route) -> Iterator[tuple[str, str]]:
    """Where it sends: an address that can be, and no secret in clear over a network."""
    if not _NAME.fullmatch(route.id):
        yield "id", f"{route.id!r} is no id: lower case, digits, -, _, ."
    if route.to == "webhook":
        if not _WORD.fullmatch(route.url) or not _is_https(route.url):
            yield "url", f"{route.url!r} is no https:// address"
        if not route.secret_env:
            yield "secret_env", "a webhook needs a secret that signs what is posted"
        return
    if not _is_server(route.server):
        yield "server", f"{route.server!r} is no address:port"
    if route.transport not in ("auto", *TRANSPORTS[route.to]):
        yield "transport", f"{route.to} is not spoken over {route.transport}"
    if route.to == "mail":
        if route.transport == "tcp" and not _is_here(route.server.rpartition(":")[0]):
            yield "transport", "mail without TLS goes to this machine only"
        if not route.receivers:
            yield "receivers", "mail needs receivers"
        for one in (route.sender, *route.receivers):
            if not MAILBOX.fullmatch(one):
                yield "sender, receivers", f"{one!r} is no mail address"


def _wrong_time(route: Route) -> Iterator[tuple[str, str]]:
    if not DIGEST.fullmatch(route.digest):
        yield "digest", f"{route.digest!r} is none of immediately, hourly, daily 07:30"
    if route.quiet_hours and not QUIET.fullmatch(route.quiet_hours):
        yield "quiet_hours", f"{route.quiet_hours!r} are no hours; write 22:00-06:00"
    try:
        ZoneInfo(route.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        yield "zone", f"{route.zone!r} is no time zone of this machine"
    if not 0 <= route.max_per_hour <= PER_HOUR_MAX:
        yield "max_per_hour", f"{route.max_per_hour} is not 0 to {PER_HOUR_MAX}"


def _wrong_escalation(route: Route, routes: Mapping[str, Route]) -> Iterator[tuple[str, str]]:
    if not 0 <= route.escalate_after_min <= ESCALATE_MAX_MIN:
        yield "escalate_after_min", f"{route.escalate_after_min} is not 0 to {ESCALATE_MAX_MIN}"
    if bool(route.escalate_to) != bool(route.escalate_after_min):
        yield "escalate_to", "escalate_to and escalate_after_min need each other"
    passed, onward = {route.id}, route.escalate_to
    while onward:
        if onward in passed:
            yield "escalate_to", f"escalations from {route.id} come back to {onward}"
            return
        if onward not in routes:
            yield "escalate_to", f"{onward!r} is no route of this file"
            return
        passed.add(onward)
        onward = routes[onward].escalate_to


def _is_server(text: str) -> bool:
    found = _SERVER.fullmatch(text)
    return found is not None and 0 < int(found[1]) <= PORT_MAX


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.username is not None or not host:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_here(host))


def _is_here(host: str) -> bool:
    """Whether a host is this machine by its name or address."""
    return host.strip("[]") in ("localhost", "127.0.0.1", "::1")
