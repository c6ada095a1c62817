"""Where the city's common store is, as the settings say: a file of the hub, or a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cityward import ConfigError
from siem.city.commons import Commons
from siem.city.sqlite import SqliteCommons
from siem.config import Cluster, Settings

FILE = "commons.db"


def commons_of(settings: Settings, clock: Callable[[], datetime]) -> Commons:
    """The common store; the caller closes it.

    Raises:
        ConfigError: the cluster's password or authorities cannot be read.
    """
    if settings.cluster is None:
        settings.state_path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return SqliteCommons(settings.state_path / FILE, clock=clock)
    from siem.city.cluster import ClusterCommons, Names
    from siem.store.opensearch import OpenSearchCluster

    said = settings.cluster
    cluster = OpenSearchCluster(
        said.urls,
        user=said.user,
        password=_password(said),
        ca=Path(said.ca_file).expanduser() if said.ca_file else None,
    )
    return ClusterCommons(cluster, names=Names(said.prefix), clock=clock)


def _password(said: Cluster) -> str:
    if said.secret_env:
        found = os.environ.get(said.secret_env)
        if found is None:
            what = f"the variable {said.secret_env} is not set"
            raise ConfigError(what, "cluster.secret_env", "Set it for the service.")
        return found
    if not said.secret_file:
        return ""
    try:
        return Path(said.secret_file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        what = f"the password cannot be read: {error}"
        raise ConfigError(what, f"cluster.secret_file {said.secret_file}", "Check it.") from error
