"""Rules as what a search cluster runs itself: queries, and monitors of OpenSearch.

Every rule is either written as a query that finds what the engine finds, its filters and lists
included, or is told with the reason why it cannot be.

References:
    OpenSearch 2.19, Alerting, monitors; pySigma-backend-opensearch 2.0, format `monitor_rule`.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import msgspec

from detectors.sigma.correlation import Correlator, kind_of
from detectors.sigma.engine import Engine
from detectors.sigma.matchers import Placeholders
from detectors.sigma.rule import Rule, RuleSet, Speaking
from siem.lucene import Inexpressible
from siem.rule_query import query_of
from siem.store.dsl import Query
from siem.store.templates import Names

EVERY_MIN = 5
"""Minutes between two looks of a monitor."""
OVERLAP_MIN = 1
"""A monitor looks back so much further, since events come to the cluster a little later."""

LIMITS = (
    "A value of more than 8,191 characters is not indexed: to a query it is missing. In cw.vendor "
    "what has more than 8,000 may be cut.",
    "A null or an empty list among a source's own fields is to a query as if it were missing.",
    "A number among a source's own fields is compared as it was written: 1.0 is not 1 as a text; "
    "a number in a text that is written with a shifted point, 50e-1, is none.",
    "An IPv4 address in the digits of IPv6, ::ffff:a00:1, is found in fields of type ip only; one "
    "of IPv6 with a zone, fe80::1%eth0, elsewhere only.",
)
"""What the index does not say as the event does; no rule is refused for it."""

_SEVERITY = {"critical": "1", "high": "2", "medium": "3", "low": "4", "informational": "5"}


class Written(msgspec.Struct, frozen=True):
    """A rule, and the query that it is."""

    rule: Rule
    query: Query
    speaks: bool
    """False if only correlations look at what it matches."""


class Left(msgspec.Struct, frozen=True):
    """A document that is no query, and why."""

    id: str
    title: str
    kind: str
    file: str
    """With its line."""
    reason: str


class Export(msgspec.Struct, frozen=True):
    """What became of rules."""

    written: tuple[Written, ...]
    left: tuple[Left, ...]


def export(
    rules: RuleSet,
    placeholders: Placeholders,
    wanted: Container[str] | None = None,
    off: Container[str] = (),
) -> Export:
    """Write rules as queries.

    Args:
        rules: With the filters that tune them.
        placeholders: Values of `%name%`, as they are now.
        wanted: Ids of the documents to write; None: all.
        off: Ids of those that are switched off, which are written for nobody.
    """
    engine = Engine(rules, placeholders)
    silent = Correlator(rules).silenced
    idle = {one.id: one.reason for one in engine.states() if one.state != "on"}
    written: list[Written] = []
    left: list[Left] = []
    for one in rules.speaking():
        if one.id in off or (wanted is not None and one.id not in wanted):
            continue
        try:
            if not isinstance(one, Rule):
                raise Inexpressible(_SEVERAL)
            if one.id in idle:
                raise Inexpressible(f"not evaluated here: {idle[one.id]}")
            query = query_of(one.logsource, engine.tree(one))
            written.append(Written(one, query, one.id not in silent))
        except Inexpressible as error:
            left.append(_left(one, str(error)))
    return Export(tuple(written), tuple(left))


_SEVERAL = "it counts or orders events; a query looks at one"


def _left(one: Speaking, reason: str) -> Left:
    kind = "rule" if isinstance(one, Rule) else kind_of(one)
    return Left(one.id, one.analytic.name, kind, one.document.where(), reason)


# --- Documents ---------------------------------------------------------------------------------


def queries(given: Export, names: Names) -> dict[str, Any]:
    """All queries as one document, with what is none beside them."""
    made = [
        {**_described(one.rule), "speaks": one.speaks, "index": names.events, "query": one.query}
        for one in given.written
    ]
    return {"queries": made, **_beside(given)}


def monitors(given: Export, names: Names) -> dict[str, Any]:
    """A monitor a rule that speaks for itself, in the format `monitor_rule` of pySigma."""
    made = [_monitor(one, names) for one in given.written if one.speaks]
    return {"monitors": made, **_beside(given)}


def _beside(given: Export) -> dict[str, Any]:
    return {"not_expressible": [msgspec.to_builtins(one) for one in given.left], "limits": LIMITS}


def _described(rule: Rule) -> dict[str, Any]:
    about = rule.analytic
    return {
        "id": rule.id,
        "title": rule.title,
        "level": about.level,
        "author": about.author,
        "license": about.license,
        "tags": list(about.tags),
        "file": rule.document.where(),
    }


def _monitor(one: Written, names: Names) -> dict[str, Any]:
    about = one.rule.analytic
    since = f"{{{{period_end}}}}||-{EVERY_MIN + OVERLAP_MIN}m"
    taken_in = {"gte": since, "lte": "{{period_end}}", "format": "epoch_millis"}
    recent = {"range": {"event.ingested": taken_in}}
    return {
        "type": "monitor",
        "name": f"SIGMA - {about.name}",
        "description": about.description,
        "enabled": True,
        "schedule": {"period": {"interval": EVERY_MIN, "unit": "MINUTES"}},
        "inputs": [
            {
                "search": {
                    "indices": names.events.split(","),
                    "query": {"size": 1, "query": {"bool": {"filter": [recent, one.query]}}},
                }
            }
        ],
        "tags": [tag.replace(".", "-", 1) for tag in about.tags],
        "triggers": [
            {
                "name": "generated-trigger",
                "severity": _SEVERITY[about.level],
                "condition": {
                    "script": {
                        "source": "ctx.results[0].hits.total.value > 0",
                        "lang": "painless",
                    }
                },
                "actions": [],
            }
        ],
        "sigma_meta_data": {"rule_id": one.rule.id, "threat": []},
        "references": list(about.references),
    }
