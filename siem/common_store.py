"""Where the city's common store is, as the settings say: a file of the hub, or a cluster."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from siem.city.commons import Commons
from siem.city.sqlite import SqliteCommons
from siem.config import Settings

FILE = "commons.db"


def commons_of(settings: Settings, clock: Callable[[], datetime]) -> Commons:
    """The common store; the caller closes it.

    Raises:
        ConfigError: the cluster's password or authorities cannot be read.
        TransientError: the cluster does not answer.
    """
    if settings.cluster is None:
        settings.state_path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return SqliteCommons(settings.state_path / FILE, clock=clock)
    from siem.city.cluster import ClusterCommons, Names, prepare
    from siem.clusters import connect

    cluster, names = connect(settings.cluster), Names(settings.cluster.prefix)
    prepare(cluster, names)
    return ClusterCommons(cluster, names=names, clock=clock)
