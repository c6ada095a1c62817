"""The handful of calls to a real OpenSearch, and its errors in our words."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cityward import ConfigError, TransientError
from siem.store.opensearch import OpenSearchCluster
from siem.store.protocol import Conflict
from siem.store.protocol_cluster import Refused, Write
from tests.opensearch import Server
from tests.programs import PATIENCE_S

pytestmark = pytest.mark.slow

MAPPINGS = {"dynamic": False, "properties": {"n": {"type": "long"}, "ip": {"type": "ip"}}}


@pytest.fixture
def cluster(opensearch: Server, index_prefix: str) -> Iterator[OpenSearchCluster]:
    made = _client(opensearch)
    made.put_template(
        f"{index_prefix}-t",
        {
            "index_patterns": [f"{index_prefix}-*"],
            "template": {"mappings": MAPPINGS, "settings": {"number_of_replicas": 0}},
        },
    )
    yield made
    made.close()


def _client(server: Server, **options: object) -> OpenSearchCluster:
    told: dict[str, object] = {
        "user": server.user,
        "password": server.password,
        "ca": Path(server.ca_file),
    }
    return OpenSearchCluster([server.url], **(told | options))  # type: ignore[arg-type]


def test_a_bulk_request_tells_what_became_of_each_write(
    cluster: OpenSearchCluster, index_prefix: str
) -> None:
    index = f"{index_prefix}-a"
    assert cluster.create_index(index)
    assert not cluster.create_index(index)
    writes = [
        Write(index, "1", b'{"n":1}', version=3),
        Write(index, "1", b'{"n":0}', version=2),
        Write(index, "2", b'{"n":2}'),
        Write(index, "2", b'{"n":2}'),
        Write(index, "3", b'{"ip":"no address"}'),
        Write(f"{index_prefix}-none", "4", b"{}"),
    ]

    results = cluster.bulk([one.lines() for one in writes], refresh=True)

    assert [one.status for one in results] == [201, 409, 201, 409, 400, 404]
    assert results[4].error == "mapper_parsing_exception"
    assert results[5].error == "index_not_found_exception"
    assert cluster.count(index, {"match_all": {}}) == 2
    assert [one.status for one in cluster.bulk([Write(index, "2", b"").lines()])] == [200]


def test_a_record_is_changed_only_by_who_knows_its_version(
    cluster: OpenSearchCluster, index_prefix: str
) -> None:
    index = f"{index_prefix}-r"
    cluster.create_index(index)

    first = cluster.put(index, "lease/hub 1", {"n": 1}, None)
    second = cluster.put(index, "lease/hub 1", {"n": 2}, first)

    with pytest.raises(Conflict):
        cluster.put(index, "lease/hub 1", {"n": 3}, None)
    with pytest.raises(Conflict):
        cluster.put(index, "lease/hub 1", {"n": 3}, first)
    with pytest.raises(Conflict):
        cluster.delete(index, "lease/hub 1", first)
    found = cluster.get(index, "lease/hub 1")
    assert found is not None
    assert (found.source, found.version) == ({"n": 2}, second)
    assert cluster.delete(index, "lease/hub 1", second)
    assert not cluster.delete(index, "lease/hub 1")
    assert cluster.get(index, "lease/hub 1") is None


def test_a_point_in_time_does_not_see_what_came_later(
    cluster: OpenSearchCluster, index_prefix: str
) -> None:
    index = f"{index_prefix}-p"
    assert cluster.open_pit(f"{index_prefix}-p*") is None
    cluster.create_index(index)
    cluster.bulk([Write(index, str(n), b'{"n":1}').lines() for n in range(3)], refresh=True)

    pit = cluster.open_pit(f"{index_prefix}-p*")
    assert pit is not None
    cluster.delete_by_query(index, {"match_all": {}})
    found = cluster.search("", {"pit": {"id": pit, "keep_alive": "1m"}, "size": 10})
    cluster.close_pit(pit)
    cluster.close_pit(pit)

    assert len(found["hits"]["hits"]) == 3
    assert cluster.count(index, {"match_all": {}}) == 0


def test_what_is_not_there_is_empty(cluster: OpenSearchCluster, index_prefix: str) -> None:
    assert cluster.search(f"{index_prefix}-x", {})["hits"]["hits"] == []
    assert cluster.count(f"{index_prefix}-x*", {"match_all": {}}) == 0
    assert cluster.get(f"{index_prefix}-x", "1") is None
    assert cluster.indices(f"{index_prefix}-*") == []
    assert cluster.delete_indices([f"{index_prefix}-x"]) == 0
    assert cluster.template("no-such") is None
    assert cluster.request("GET", f"/{index_prefix}-x/_doc/1") is None
    with pytest.raises(ValueError, match="exact"):
        cluster.delete_indices([f"{index_prefix}-*"])


def test_templates_and_whole_indices_come_and_go(
    cluster: OpenSearchCluster, index_prefix: str
) -> None:
    template = cluster.template(f"{index_prefix}-t")
    assert template is not None
    assert template["index_patterns"] == [f"{index_prefix}-*"]
    for month in ("2026.01", "2026.02"):
        cluster.create_index(f"{index_prefix}-{month}")

    assert cluster.indices(f"{index_prefix}-*") == [
        f"{index_prefix}-2026.01",
        f"{index_prefix}-2026.02",
    ]
    assert cluster.delete_indices([f"{index_prefix}-2026.01"]) == 1
    assert cluster.indices(f"{index_prefix}-*") == [f"{index_prefix}-2026.02"]


def test_health_says_what_server_it_is(cluster: OpenSearchCluster) -> None:
    health = cluster.health()

    assert health.version == "opensearch 2.19.4"
    assert health.status in ("green", "yellow")


def test_a_block_that_somebody_set_is_a_matter_of_time(
    cluster: OpenSearchCluster, index_prefix: str
) -> None:
    index = f"{index_prefix}-b"
    cluster.create_index(index)
    cluster.request("PUT", f"/{index}/_settings", {"index.blocks.write": True})

    with pytest.raises(TransientError, match="cluster_block_exception"):
        cluster.put(index, "1", {"n": 1}, None)
    [result] = cluster.bulk([Write(index, "1", b"{}").lines()])
    assert (result.status, result.error) == (403, "cluster_block_exception")


def test_who_may_not_come_in_is_told_to_mend_the_settings(
    opensearch: Server, index_prefix: str
) -> None:
    with pytest.raises(ConfigError, match="401"):
        _client(opensearch, password="wrong").health()
    with pytest.raises(ConfigError, match="certificate is not trusted"):
        _client(opensearch, ca=None).health()
    with pytest.raises(ConfigError, match="no certificates"):
        _client(opensearch, ca=Path("/no/such.pem"))
    with pytest.raises(ConfigError, match="403"):
        _client(opensearch).create_index("foreign")
    with pytest.raises(Refused, match="parsing_exception"):
        _client(opensearch).search(f"{index_prefix}*", {"query": {"nonsense": {}}})


def test_silence_and_nobody_there_are_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(TransientError, match="in time"):
            OpenSearchCluster([f"http://127.0.0.1:{port}"], timeout_s=0.3).health()
    with pytest.raises(TransientError, match="cannot be reached"):
        OpenSearchCluster([f"http://127.0.0.1:{port}"], timeout_s=0.3).health()


def test_what_is_no_cluster_is_no_fault_of_ours() -> None:
    def answer(text: bytes) -> None:
        with server:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(text)

    for text, expected in (
        (b"SSH-2.0-OpenSSH\r\n", TransientError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", TransientError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{}", TransientError),
        (b"HTTP/1.1 301 Gone\r\nContent-Length: 0\r\n\r\n", Refused),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 28\r\n\r\n{"version":{"number":"9.1"}}', ConfigError),
    ):
        server = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=answer, args=(text,))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(expected):
            OpenSearchCluster([url], timeout_s=PATIENCE_S).health()
        thread.join()
