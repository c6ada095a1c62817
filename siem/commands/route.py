"""`cityward route`: whom the node tells of findings, and what was delivered."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from cyclopts import Parameter, validators

from siem import assembly
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import ConfigFile, Output, UsageError, settings_of
from siem.config import Settings
from siem.node import now_utc
from siem.notify.routes import Route, delivery_row, route_row, routes_of, words
from siem.notify.worker import attempt
from siem.store.notices import NoticeStore, Tally

COLUMNS = ("route", "to", "receivers", "when", "sent", "waiting", "retrying", "dead", "last")
DELIVERY_COLUMNS = ("time", "route", "state", "about", "receivers", "attempts", "answer")

Many = Annotated[int, Parameter(validator=validators.Number(gte=1, lte=10_000))]


def list_(*, config: ConfigFile = None, output: Output = None) -> int:
    """List the routes: to whom, when, what was delivered, what failed.

    Example: cityward route list

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings, _ = settings_of(config)
    routes = routes_of(settings.route)
    with _notices(settings) as notices:
        rows = [
            route_row(said, notices.tally(str(said["route"])) if notices else Tally())
            for said in words(routes)
        ]
    form = streams.form_for(output, sys.stdout)
    if form == "table":
        rows = [one | {"when": _condition(one["when"])} for one in rows]
    streams.write(rows, form, COLUMNS)
    if not rows:
        print("No route is set; add a [[route]] to the settings file.", file=sys.stderr)
    return 0


def send_test(id: str, *, config: ConfigFile = None, output: Output = None) -> int:
    """Send a test message over a route, now, and show what its server answered.

    Example: cityward route test duty

    Args:
        id: Its id in the settings file.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings, origin = settings_of(config)
    route = _route(routes_of(settings.route), id, origin)
    with _notices(settings, make=True) as notices:
        assert notices is not None
        delivery = notices.add_test(route, now_utc(), taken=True)
        sent = attempt(delivery, route, settings.operator, notices, now_utc(), last=True)
        done = notices.delivery(delivery.id) or delivery
    streams.write([delivery_row(done)], streams.form_for(output, sys.stdout), DELIVERY_COLUMNS)
    return 0 if sent else 5


def deliveries(
    route: str = "", *, limit: Many = 50, config: ConfigFile = None, output: Output = None
) -> int:
    """List what was delivered, newest first: when, to whom, and what the server answered.

    Example: cityward route deliveries duty --limit 20

    Args:
        route: Of this route only; none: of all.
        limit: How many at most.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings, _ = settings_of(config)
    with _notices(settings) as notices:
        found = notices.deliveries(route, limit) if notices else []
    rows = [delivery_row(one) for one in found]
    streams.write(rows, streams.form_for(output, sys.stdout), DELIVERY_COLUMNS)
    return 0


def _condition(when: Mapping[str, Any] | None) -> str:
    """Which findings a route is told of, for a person."""
    if when is None:
        return "escalations only"
    return "; ".join(f"{name} {streams.text(one)}" for name, one in when.items()) or "all"


def _route(routes: Mapping[str, Route], id: str, origin: str) -> Route:
    if id not in routes:
        raise UsageError(f"there is no route {id!r}", origin, "cityward route list names them.")
    return routes[id]


@contextmanager
def _notices(settings: Settings, *, make: bool = False) -> Iterator[NoticeStore | None]:
    """The outbox of the node; None if no node has run here, and none shall be made."""
    if not make and not (settings.state_path / "node.db").is_file():
        yield None
        return
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        yield db.notices
    finally:
        db.close()
