"""The homes of findings that tests compare: `node.db` and both makes of cluster."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from siem.store.cluster import ClusterFindings
from siem.store.dsl import MAPPINGS, helpers
from siem.store.elasticsearch import ElasticsearchCluster
from siem.store.embedded import NodeDb
from siem.store.findings import FINDING_FIELDS
from siem.store.opensearch import OpenSearchCluster
from siem.store.protocol_cluster import Cluster
from tests.fake_elasticsearch import fake_elasticsearch
from tests.opensearch import Server, forget
from tests.siem.store.test_embedded import Clock

CLUSTERS = ("opensearch", "fake_elasticsearch")
HOMES = ("sqlite", *CLUSTERS)


class Place:
    """A cluster with indices for findings, emptied for each test."""

    def __init__(self, cluster: Cluster, prefix: str) -> None:
        self.cluster = cluster
        self.prefix = prefix

    def findings(self, db: NodeDb, clock: Clock) -> ClusterFindings:
        """The store that speaks of it; what people do is said in the trail of `db`."""
        return ClusterFindings(
            self.cluster,
            lambda time: f"{self.prefix}-findings-{time:%Y.%m}",
            f"{self.prefix}-findings-*",
            f"{self.prefix}-undo",
            audit=db.audit,
            clock=clock,
        )

    def empty(self) -> None:
        """Take all findings away."""
        self.cluster.delete_by_query(f"{self.prefix}-*", {"match_all": {}})


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
        made = {name: Place(one, f"{prefix}-{name[0]}") for name, one in makes.items()}
        for place in made.values():
            place.cluster.put_template(place.prefix, template(f"{place.prefix}-*"))
            for name in ("findings-2026.02", "findings-2026.03", "undo"):
                place.cluster.create_index(f"{place.prefix}-{name}")
        yield made
        for place in made.values():
            place.cluster.close()
        forget(opensearch, prefix)


def template(pattern: str) -> dict[str, Any]:
    properties: dict[str, Any] = {
        name: MAPPINGS[kind.removesuffix("[]")] for name, kind in FINDING_FIELDS.items()
    }
    properties |= {"cw.index": helpers(FINDING_FIELDS)}
    return {
        "index_patterns": [pattern],
        "priority": 500,
        "template": {
            "settings": {"number_of_replicas": 0, "mapping.total_fields.limit": 2000},
            "mappings": {"dynamic": False, "properties": properties},
        },
    }
