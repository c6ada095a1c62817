"""The search cluster of the settings, and a node's copying into it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cityward import ConfigError
from siem import assembly, config
from siem.assets import from_settings
from siem.config import Settings
from siem.node import Node, now_utc
from siem.store.bulk import BulkWriter
from siem.store.dead_letters import DeadLetters
from siem.store.mirror import Kept, Mirror, policies, retain_all
from siem.store.protocol import Range
from siem.store.protocol_cluster import Cluster
from siem.store.tail import EventTail
from siem.store.templates import (
    Names,
    differences,
    month_of,
    months_before,
    prepare,
    put_ism_policies,
)
from siem.store.templates import retain as retain_months

TIMEOUT_S = 30.0
AT_ONCE = 500


def connect(
    said: config.Cluster,
    environment: Mapping[str, str] = os.environ,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Cluster:
    """A client of the cluster; nothing is asked yet.

    Raises:
        ConfigError: its password or its certificates are not where the settings say.
    """
    ca = Path(said.ca_file).expanduser() if said.ca_file else None
    password = password_of(said, environment)
    # Each client takes a third of a second to load: only the one that is needed.
    if said.kind == "elasticsearch":
        from siem.store.elasticsearch import ElasticsearchCluster

        return ElasticsearchCluster(
            said.urls, user=said.user, password=password, ca=ca, timeout_s=timeout_s
        )
    from siem.store.opensearch import OpenSearchCluster

    return OpenSearchCluster(
        said.urls, user=said.user, password=password, ca=ca, timeout_s=timeout_s
    )


def password_of(said: config.Cluster, environment: Mapping[str, str] = os.environ) -> str:
    """The password that the settings name; empty if they name none.

    Raises:
        ConfigError: it is not there.
    """
    if said.secret_file:
        path = Path(said.secret_file).expanduser()
        try:
            password = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the password cannot be read: {error}", "cluster.secret_file", "Check the file."
            ) from error
        where, todo = "cluster.secret_file", "Write the password into it."
    elif said.secret_env:
        password = environment.get(said.secret_env, "")
        where, todo = "cluster.secret_env", f"Set {said.secret_env} where the service is started."
    else:
        return ""
    if not password:
        raise ConfigError("there is no password", where, todo)
    return password


class Attached:
    """The cluster of a node or a hub, for the commands."""

    def __init__(self, settings: Settings, said: config.Cluster) -> None:
        self.settings = settings
        self.said = said
        self.cluster = connect(said)
        self.dead = dead_letters_of(settings)
        self.names = names_of(settings, said)

    def close(self) -> None:
        """Let go of it."""
        self.cluster.close()

    def writer(self, stop: threading.Event) -> BulkWriter:
        """What sends documents again."""
        return BulkWriter(self.cluster, self.dead, stop)

    def prepare(self) -> Iterator[str]:
        """Make it ready; tells what was done, a line each."""
        if self.settings.hub:
            from siem.city import cluster as city
            from siem.city import roles

            names = city.Names(self.said.prefix)
            city.prepare(self.cluster, names)
            yield f"templates  {', '.join(names.templates())}"
            yield roles.told(self.cluster, names)
            return
        prepare(self.cluster, self.names)
        yield f"templates  {', '.join(self.names.templates())}"
        if put_ism_policies(self.cluster, policies(self.names, kept_of(self.said))):
            yield "old months are deleted by Index State Management, and by the node"
        else:
            yield "old months are deleted by the node: the cluster has no Index State Management"

    def retain(self, now: datetime) -> list[str]:
        """Delete whole months that are not kept any more; tells which indices."""
        if self.settings.hub:
            prefix = f"{self.said.prefix}-shared-*"
            return retain_months(self.cluster, prefix, months_before(now, self.said.months))
        return retain_all(self.cluster, self.names, kept_of(self.said), now)

    def compared(self, now: datetime) -> Iterator[dict[str, Any]]:
        """What is here and there, a row each."""
        if self.settings.hub:
            from siem.city import cluster as city

            templates = city.Names(self.said.prefix).templates()
        else:
            templates = self.names.templates()
        wrong = differences(self.cluster, templates)
        yield _row("templates", len(templates), len(templates) - len(wrong), "; ".join(wrong))
        yield _row("dead letters", len(self.dead), "", "refused" if len(self.dead) else "")
        if self.settings.hub or not (self.settings.state_path / "node.db").is_file():
            return
        self.cluster.refresh(f"{self.names.findings}")
        yield self._findings(now)
        if self.said.events:
            yield self._events()

    def _findings(self, now: datetime) -> dict[str, Any]:
        db = assembly.db_of(self.settings, from_settings(self.settings), now_utc)
        since = months_before(now, self.said.months)
        number = here = missing = older = 0
        try:
            while changes := db.changes_after(number, AT_ONCE):
                number = changes[-1][0]
                revisions = {
                    id: document["finding.revision"]
                    for _, id in changes
                    if (document := db.get(id))
                    and month_of(document["finding.first_seen"]) >= since
                }
                there = self._revisions(list(revisions))
                here += len(revisions)
                missing += len(revisions.keys() - there.keys())
                older += sum(there.get(id, at) < at for id, at in revisions.items())
        finally:
            db.close()
        parts = ((missing, "are missing"), (older, "are older there"))
        said = ", ".join(f"{count} {what}" for count, what in parts if count)
        return _row("findings", here, here - missing, said)

    def _revisions(self, ids: Sequence[str]) -> dict[str, int]:
        body = {
            "query": {"ids": {"values": ids}},
            "size": len(ids),
            "_source": ["finding.revision"],
        }
        found = self.cluster.search(self.names.findings, body)["hits"]["hits"] if ids else []
        return {hit["_id"]: hit["_source"]["finding.revision"] for hit in found}

    def _events(self) -> dict[str, Any]:
        events = assembly.events_of(self.settings, now_utc, write=False)
        try:
            here = events.search("", Range(), limit=0).total
        finally:
            events.close()
        self.cluster.refresh(self.names.events)
        there = self.cluster.count(self.names.events, {"match_all": {}})
        # There they may stay longer than here.
        return _row("events", here, there, f"{here - there} are missing" if there < here else "")


def _row(what: str, here: object, there: object, wrong: str) -> dict[str, Any]:
    return {"what": what, "here": here, "there": there, "state": wrong or "ok"}


def attach(settings: Settings) -> Attached:
    """The cluster of the settings.

    Raises:
        ConfigError: there is none, or see `connect`.
    """
    if settings.cluster is None:
        raise ConfigError("there is no cluster", "[cluster]", "Name one: docs/opensearch.md.")
    return Attached(settings, settings.cluster)


def names_of(settings: Settings, said: config.Cluster) -> Names:
    """Names of what a node has in its cluster."""
    return Names(said.prefix, settings.operator)


def dead_letters_of(settings: Settings) -> DeadLetters:
    """What the cluster refused."""
    return DeadLetters(settings.state_path / "cluster" / "dead-letters.ndjson")


def kept_of(said: config.Cluster) -> Kept:
    """What is copied, and for how long it stays."""
    return Kept(said.events, said.months, said.events_months)


def mirror_of(settings: Settings, node: Node) -> Mirror | None:
    """What copies a node's findings and events, not yet started; None: there is no cluster.

    Raises:
        ConfigError: see `connect`.
    """
    if settings.cluster is None:
        return None
    said, cluster, dead = settings.cluster, connect(settings.cluster), dead_letters_of(settings)
    return Mirror(
        node.db,
        EventTail(settings.state_path / "events"),
        lambda: node.events.last_batch,
        cluster,
        lambda stop: BulkWriter(cluster, dead, stop),
        names_of(settings, said),
        kept_of(said),
        node.clock,
        url=said.url,
    )
