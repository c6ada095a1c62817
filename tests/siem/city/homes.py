"""Homes of the common store for tests, and a share to put into them."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from siem.city.cluster import ClusterCommons, Names, prepare
from siem.city.commons import Outcome, Rights, Write
from siem.store.elasticsearch import ElasticsearchCluster
from siem.store.opensearch import OpenSearchCluster
from siem.store.protocol import Document
from siem.store.protocol_cluster import Cluster
from tests.fake_elasticsearch import fake_elasticsearch
from tests.opensearch import Server, forget

CLUSTERS = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("opensearch", "elasticsearch (fake)")
]
HOMES = ["sqlite", *CLUSTERS]
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
EVERYBODY = Rights(
    audiences=("city-soc", "peers", "police"), tlp=("clear", "green", "amber", "amber+strict")
)


def share(name: str, revision: int = 1, **changed: Any) -> Write:
    """A shared finding; names of fields are written with `__` for a dot."""
    document: Document = {
        "cw.share.id": name,
        "cw.share.revision": revision,
        "cw.share.audiences": ["city-soc"],
        "cw.operator": "op-metro",
        "cw.sector": "transport.public",
        "cw.marking.tlp": "amber",
        "finding.first_seen": NOON,
        "finding.last_seen": NOON,
        "finding.title": f"Scan {name}",
        "finding.severity": "medium",
        "source.token": ["j:7:aa", "p:7:bb"],
    }
    named = {key.replace("__", "."): value for key, value in changed.items()}
    document |= {key: value for key, value in named.items() if value is not None}
    for key, value in named.items():
        if value is None:
            del document[key]
    return Write(document, revision)


class Prompt(ClusterCommons):
    """Lets searches see at once what was put, as the file does."""

    def put(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes = super().put(writes)
        self.refresh()
        return outcomes


@contextlib.contextmanager
def a_cluster(server: Server, home: str) -> Iterator[tuple[Cluster, Names]]:
    """A prepared cluster; Elasticsearch is a real OpenSearch behind a proxy that plays it."""
    names = Names(f"cw-{uuid.uuid4().hex[:10]}")
    with contextlib.ExitStack() as stack:
        stack.callback(forget, server, names.prefix)
        if home == "opensearch":
            cluster: Cluster = client(server, server.user, server.password)
        else:
            fake = stack.enter_context(fake_elasticsearch(server.url, server.ca_file))
            cluster = ElasticsearchCluster([fake.url], user=server.user, password=server.password)
        stack.callback(cluster.close)
        prepare(cluster, names)
        yield cluster, names


def client(server: Server, user: str, password: str) -> OpenSearchCluster:
    """A client of the server."""
    return OpenSearchCluster([server.url], user=user, password=password, ca=Path(server.ca_file))


@contextlib.contextmanager
def emptied(cluster: Cluster, names: Names) -> Iterator[Prompt]:
    """The common store of a cluster, which is empty afterwards."""
    try:
        yield Prompt(cluster, names=names, clock=lambda: NOON)
    finally:
        cluster.delete_indices(cluster.indices(names.shared))
        for index in (names.records, names.places):
            cluster.refresh(index)
            cluster.delete_by_query(index, {"match_all": {}})
