"""How indices are made and named: templates from the field table, one index an operator and month.

`dynamic: false`: what is not in the field table is kept and not indexed, so no device can invent
fields. An id lives in one index only: findings in the month they were first seen in (all matches of
a fingerprint are of one day), events in the month the node took them in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from cityward.errors import InputError
from cityward.fields import FIELDS
from cityward.fields import FINDING_FIELDS as TABLE_OF_FINDINGS
from siem.store.dsl import INDEX, MAPPINGS, helpers
from siem.store.findings import FINDING_FIELDS
from siem.store.protocol_cluster import Cluster, Refused

PRIORITY = 500
"""Above templates that a cluster brings itself."""
FIELDS_MAX = 2_000
STORED_ONLY = {"type": "keyword", "index": False, "doc_values": False}
OWN_MAPPINGS: Mapping[str, Any] = {"event.original": STORED_ONLY}
"""What is read and never asked for."""
SETTINGS: Mapping[str, Any] = {
    # A month of an operator fits one shard; a cluster of one node is green with it.
    "number_of_shards": 1,
    "auto_expand_replicas": "0-1",
    "mapping.total_fields.limit": FIELDS_MAX,
}
EVENT_SETTINGS: Mapping[str, Any] = {"codec": "best_compression", "refresh_interval": "5s"}

_MONTH = re.compile(r"(\d{4})\.(\d\d)")
DAYS_A_MONTH = 31


class Names(msgspec.Struct, frozen=True):
    """Names of everything that a node has in a cluster."""

    prefix: str
    operator: str

    def findings_in(self, first_seen: datetime) -> str:
        """Index of a finding."""
        return f"{self.prefix}-findings-{self.operator}-{month_of(first_seen)}"

    def events_in(self, month: str) -> str:
        """Index of the events that were taken in in a month."""
        return f"{self.prefix}-events-{self.operator}-{month}"

    @property
    def findings(self) -> str:
        """All findings of this operator, and of no other."""
        return self._own("findings")

    @property
    def events(self) -> str:
        """All events of this operator, and of no other."""
        return self._own("events")

    @property
    def undo(self) -> str:
        """Index of what each person changed last."""
        return f"{self.prefix}-undo-{self.operator}"

    def _own(self, what: str) -> str:
        # `op-*` would be those of `op-metro` too: a month has no dash.
        begin = f"{self.prefix}-{what}-{self.operator}-"
        return f"{begin}*,-{begin}*-*"

    def templates(self) -> dict[str, dict[str, Any]]:
        """Composable index templates by name; they are of all operators of a cluster."""
        kinds = {name: one.type for name, one in (FIELDS | TABLE_OF_FINDINGS).items()}
        findings = kinds | FINDING_FIELDS
        return {
            f"{self.prefix}-findings": template(
                f"{self.prefix}-findings-*", findings, {INDEX: helpers(findings)}
            ),
            f"{self.prefix}-events": template(
                f"{self.prefix}-events-*",
                {name: one.type for name, one in FIELDS.items()},
                settings=EVENT_SETTINGS,
            ),
            f"{self.prefix}-undo": template(f"{self.prefix}-undo-*", {}),
        }


def template(
    pattern: str,
    kinds: Mapping[str, str],
    beside: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Body of a composable index template.

    Args:
        pattern: Of the indices it is for.
        kinds: Types of the fields, in the words of the field table.
        beside: Further properties.
        settings: Further settings of an index.
    """
    properties = {
        name: OWN_MAPPINGS.get(name) or MAPPINGS[kind.removesuffix("[]")]
        for name, kind in sorted(kinds.items())
    }
    return {
        "index_patterns": [pattern],
        "priority": PRIORITY,
        "template": {
            "settings": {"index": {**SETTINGS, **(settings or {})}},
            "mappings": {"dynamic": False, "properties": {**properties, **(beside or {})}},
        },
        "_meta": {"made_by": "cityward"},
    }


def prepare(cluster: Cluster, names: Names) -> None:
    """Write templates and make what is always there; again, it changes nothing."""
    for name, body in names.templates().items():
        cluster.put_template(name, body)
    cluster.create_index(names.undo)


def differences(cluster: Cluster, templates: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a cluster's templates are not as they should be, in words; empty: all is well."""
    found = []
    for name, wanted in templates.items():
        there = cluster.template(name)
        if there is None:
            found.append(f"template {name} is missing")
            continue
        mapping = there["template"]["mappings"]["properties"]
        missing = wanted["template"]["mappings"]["properties"].keys() - mapping.keys()
        if missing:
            some = ", ".join(sorted(missing)[:3])
            found.append(f"template {name} lacks {len(missing)} fields: {some}")
    return found


# ---- Months


def month_of(time: datetime) -> str:
    """`2026.03`, UTC."""
    at = time.astimezone(UTC)
    return f"{at.year:04d}.{at.month:02d}"


def months_before(now: datetime, months: int) -> str:
    """The oldest month of so many that are kept, the running one included."""
    if months < 1:
        raise InputError(f"{months} months are none", "months", "At least one.")
    year, month = divmod(now.astimezone(UTC).year * 12 + now.astimezone(UTC).month - months, 12)
    return f"{max(year, 0):04d}.{month + 1:02d}"


def retain(cluster: Cluster, pattern: str, oldest: str) -> list[str]:
    """Delete the indices of whole months before the oldest that is kept; tells which."""
    old = [name for name in cluster.indices(pattern) if (month := _month(name)) and month < oldest]
    if old:
        cluster.delete_indices(old)
    return old


def _month(index: str) -> str:
    tail = index.rpartition("-")[2]
    return tail if _MONTH.fullmatch(tail) else ""


def ism_policy(patterns: Sequence[str], months: int) -> dict[str, Any]:
    """A policy of Index State Management that deletes what `retain` would.

    The age of an index counts from when it was made, so a month more is waited.

    References:
        OpenSearch 2.19, Index State Management, policies.
    """
    return {
        "policy": {
            "description": f"cityward: whole months, {months} are kept",
            "default_state": "kept",
            "states": [
                {
                    "name": "kept",
                    "actions": [],
                    "transitions": [
                        {
                            "state_name": "gone",
                            "conditions": {"min_index_age": f"{(months + 1) * DAYS_A_MONTH}d"},
                        }
                    ],
                },
                {"name": "gone", "actions": [{"delete": {}}], "transitions": []},
            ],
            "ism_template": [{"index_patterns": list(patterns), "priority": PRIORITY}],
        }
    }


def put_ism_policies(cluster: Cluster, policies: Iterable[tuple[str, dict[str, Any]]]) -> bool:
    """Write policies; False where the cluster has no Index State Management.

    To Elasticsearch they go as policies of its life cycles, named by the template of their name.
    """
    if cluster.kind == "elasticsearch":
        for name, body in policies:
            _put_ilm_policy(cluster, name, body)
        return True
    for name, body in policies:
        path = f"/_plugins/_ism/policies/{name}"
        try:
            found = cluster.request("GET", path)
            if found:
                at = f"if_seq_no={found['_seq_no']}&if_primary_term={found['_primary_term']}"
                cluster.request("PUT", f"{path}?{at}", body)
            elif cluster.request("PUT", path, body) is None:
                return False
        except Refused as error:
            if "no handler found" in error.what or "no_handler" in error.what:
                return False
            raise
    return True


def ilm_policy(ism: Mapping[str, Any]) -> dict[str, Any]:
    """A policy of Index State Management as one of Elasticsearch's life cycles.

    References:
        Elasticsearch 9, Index lifecycle management, delete phase.
    """
    age = ism["policy"]["states"][0]["transitions"][0]["conditions"]["min_index_age"]
    gone = {"min_age": age, "actions": {"delete": {}}}
    return {"policy": {"phases": {"hot": {"actions": {}}, "delete": gone}}}


def _put_ilm_policy(cluster: Cluster, name: str, ism: Mapping[str, Any]) -> None:
    cluster.request("PUT", f"/_ilm/policy/{name}", ilm_policy(ism))
    lifecycle = {"lifecycle": {"name": name}}
    if made := cluster.template(name):
        made["template"]["settings"]["index"] |= lifecycle
        cluster.put_template(name, made)
    for one in ism["policy"]["ism_template"]:
        for pattern in one["index_patterns"]:
            cluster.request("PUT", f"/{pattern}/_settings", {"index": lifecycle})
