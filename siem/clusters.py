"""The search cluster of the settings, and a node's copying into it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cityward import ConfigError
from siem import config
from siem.config import Settings
from siem.node import Node
from siem.store.bulk import BulkWriter
from siem.store.dead_letters import DeadLetters
from siem.store.mirror import Kept, Mirror
from siem.store.protocol_cluster import Cluster
from siem.store.tail import EventTail
from siem.store.templates import Names

TIMEOUT_S = 30.0


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
