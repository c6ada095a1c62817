"""Health: what arrives, what is lost or cannot be read, how full the store is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from siem.console import formats
from siem.console.protocol import Console, Usage
from siem.console.routes import shown_routes
from siem.console.site import NodeSite, node_state, rule_counts, rules_of
from siem.console.view import ago, number
from siem.store.protocol import SourceState

SILENT_S = 900.0
"""A running source without an event for so long is shown as silent."""
LAG_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Shown:
    """A source with its state in one word."""

    source: SourceState
    word: str
    glyph: str
    rank: int
    since_s: float | None
    """Seconds since it last sent something."""


class Health:
    """The page of health, and the figures for a monitor."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.node = site.node
        self._registry = CollectorRegistry()
        self._registry.register(_Figures(site.node))

    def page(self, request: Request) -> Response:
        """Sources and store, as a page or for programs."""
        session = self.site.access.enter(request, "health")
        form = formats.form_of(request)
        view = self.site.view_of(request)
        now = self.node.now()
        every = sorted(
            (shown_source(one, now) for one in self.node.sources()),
            key=lambda one: (one.rank, one.source.source),
        )
        trouble = [one for one in every if one.rank < 3]
        rows = trouble if view.one("only") == "trouble" else every
        if form:
            listed = [{**msgspec.structs.asdict(one.source), "word": one.word} for one in rows]
            said = {"operator": self.node.operator, "now": now}
            return formats.rows(form, listed, len(rows), said, "health")
        rules = rules_of(self.node)
        return self.site.page(
            request,
            session,
            "health.html",
            title="Health",
            current="health",
            rows=rows,
            every=every,
            trouble=trouble,
            sentence=sentence(every, now),
            disk=[(one, _share(one)) for one in self.node.disk()],
            facts=self.node.facts(),
            cannot=[rule for rule in rules if rule.state != "on"],
            quiet=[rule for rule in rules if rule.state == "on" and not rule.arriving],
            rule_total=len(rules),
            told=shown_routes(self.node),
        )

    def metrics(self, request: Request) -> Response:
        """Figures in the text format of Prometheus."""
        self.site.access.enter(request, "metrics")
        return Response(
            generate_latest(self._registry), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


def shown_source(source: SourceState, now: datetime) -> Shown:
    """One word for the state of a source, worst first."""
    newest = source.last_received or source.last_event
    since_s = (now - newest).total_seconds() if newest else None
    if source.state == "failed":
        return Shown(source, "Failed", "risk", 0, since_s)
    if source.state == "running" and since_s is not None and since_s > SILENT_S:
        return Shown(source, "Silent", "blind", 1, since_s)
    if source.lost or source.rejected:
        return Shown(source, "Loses", "risk", 1, since_s)
    if source.malformed:
        return Shown(source, "Malformed", "degraded", 2, since_s)
    if source.state == "running" and source.lag_s > LAG_LIMIT_S:
        return Shown(source, "Late", "degraded", 2, since_s)
    if source.state == "waiting":
        return Shown(source, "Waiting", "blind", 3, since_s)
    if source.state == "ended":
        return Shown(source, "Ended", "running", 5, since_s)
    return Shown(source, "Running", "running", 4, since_s)


def sentence(every: Sequence[Shown], now: datetime) -> str:
    """The state of the sources in one sentence with numbers."""
    if not every:
        return "No source is set up."
    words = [one.word for one in every]
    said = [
        f"{_count(words.count(word))} {verb}"
        for word, verb in (
            ("Failed", "failed"),
            ("Silent", "silent"),
            ("Loses", "losing records"),
            ("Malformed", "sending records that cannot be read"),
            ("Late", "late"),
        )
        if words.count(word)
    ]
    state = node_state([one.source for one in every], now)
    lost = f"{state['lost']:,} records were lost" if state["lost"] else "nothing was lost"
    first = (
        f"Of {_sources(len(every))}, {', '.join(said)}"
        if said
        else f"{_sources(len(every))}, all well"
    )
    rate = f"{number(float(state['rate_per_s']))} events/s"
    lag = f", {ago(float(state['lag_s']))} from source to store" if state["lag_s"] else ""
    return f"{first}; {lost}. {rate}{lag}."


def _sources(count: int) -> str:
    return "1 source" if count == 1 else f"{count:,} sources"


def _count(count: int) -> str:
    names = ("no", "one", "two", "three", "four", "five", "six")
    return names[count] if count < len(names) else f"{count:,}"


def _share(usage: Usage) -> str:
    if usage.limit_bytes <= 0:
        return "0%"
    return f"{min(100.0, 100 * usage.used_bytes / usage.limit_bytes):.0f}%"


_COUNTED = (
    ("records", "Records read"),
    ("events", "Events made"),
    ("rejected", "Records that became no event"),
    ("malformed", "Events that only say that a record could not be read"),
    ("lost", "Records known to be lost"),
    ("late", "Events that came late"),
)


class _Figures(Collector):
    """Reads the node's state when a monitor asks."""

    def __init__(self, node: Console) -> None:
        self.node = node

    def collect(self) -> Any:
        """One family a figure."""
        sources = self.node.sources()
        for name, meaning in _COUNTED:
            family = CounterMetricFamily(f"cityward_{name}", meaning, labels=["source"])
            for source in sources:
                family.add_metric([source.source], getattr(source, name))
            yield family
        yield self._gauge("cityward_lag_seconds", "Receipt minus event time", "lag_s")
        yield self._gauge("cityward_events_per_minute", "Rate over five minutes", "rate_per_min")
        rules = GaugeMetricFamily("cityward_rules", "Rules by state", labels=["state"])
        counts = rule_counts(rules_of(self.node))
        rules.add_metric(["on"], counts["rules_on"])
        rules.add_metric(["not_on"], counts["rules_off"])
        yield rules
        told = GaugeMetricFamily(
            "cityward_notifications", "Deliveries by route and state", labels=["route", "state"]
        )
        for route in self.node.routes:
            tally = self.node.notices.tally(route)
            for state in ("sent", "waiting", "retrying", "dead"):
                told.add_metric([route, state], getattr(tally, state))
        yield told
        disk = GaugeMetricFamily("cityward_disk_used_bytes", "Store by part", labels=["part"])
        for usage in self.node.disk():
            disk.add_metric([usage.name], usage.used_bytes)
        yield disk

    def describe(self) -> Any:
        """Nothing before somebody asks."""
        return []

    def _gauge(self, name: str, meaning: str, field: str) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, meaning, labels=["source"])
        for source in self.node.sources():
            family.add_metric([source.source], getattr(source, field))
        return family
