"""The homes of findings that tests compare: `node.db` and both makes of cluster."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from siem.store.cluster import ClusterFindings
from siem.store.elasticsearch import ElasticsearchCluster
from siem.store.embedded import NodeDb
from siem.store.opensearch import OpenSearchCluster
from siem.store.protocol_cluster import Cluster
from siem.store.templates import Names, prepare
from tests.fake_elasticsearch import fake_elasticsearch
from tests.opensearch import Server, forget
from tests.siem.store.test_embedded import Clock

CLUSTERS = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("opensearch", "fake_elasticsearch")
]
HOMES = ["sqlite", *CLUSTERS]


class Place:
    """A cluster with indices for findings, emptied for each test."""

    def __init__(self, cluster: Cluster, names: Names) -> None:
        self.cluster = cluster
        self.names = names
        prepare(cluster, names)

    def findings(self, db: NodeDb, clock: Clock) -> ClusterFindings:
        """The store that speaks of it; what people do is said in the trail of `db`."""
        return ClusterFindings(self.cluster, self.names, audit=db.audit, clock=clock)

    def empty(self) -> None:
        """Take all findings away."""
        for names in (self.names.findings, self.names.undo):
            self.cluster.delete_by_query(names, {"match_all": {}})


def whole(db: NodeDb, finding_id: str) -> dict[str, Any]:
    found = db.get(finding_id)
    assert found is not None
    return found


def copies(db: NodeDb, ids: Sequence[str]) -> Mapping[str, Sequence[dict[str, Any]]]:
    return {one: db.events_of(one) for one in ids}


@pytest.fixture(scope="session")
def places(opensearch: Server) -> Iterator[Mapping[str, Place]]:
    """Both makes of cluster over the one server."""
    user, password, ca = opensearch.user, opensearch.password, opensearch.ca_file
    prefix = f"cw-{uuid.uuid4().hex[:10]}"
    with ExitStack() as stack:
        fake = stack.enter_context(fake_elasticsearch(opensearch.url, ca))
        makes: Mapping[str, Cluster] = {
            "opensearch": OpenSearchCluster(
                [opensearch.url], user=user, password=password, ca=Path(ca) if ca else None
            ),
            "fake_elasticsearch": ElasticsearchCluster([fake.url], user=user, password=password),
        }
        made = {
            name: Place(one, Names(f"{prefix}-{name[0]}", "op-metro"))
            for name, one in makes.items()
        }
        yield made
        for place in made.values():
            place.cluster.close()
        forget(opensearch, prefix)
