"""Requests to Elasticsearch as they leave us, and its errors in our words; no server is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest
from elastic_transport import (
    ApiResponseMeta,
    ConnectionTimeout,
    HttpHeaders,
    NodeConfig,
    TlsError,
    Transport,
)

from cityward.errors import CitywardError, ConfigError, TransientError
from siem.store.elasticsearch import _SERIALIZERS, ElasticsearchCluster
from siem.store.protocol import Conflict
from siem.store.protocol_cluster import Health, Refused, Result, Stored, Write
from siem.store.templates import ism_policy, put_ism_policies

JSON = "application/vnd.elasticsearch+json; compatible-with=9"
LINES = "application/vnd.elasticsearch+x-ndjson; compatible-with=9"


class Wire:
    """What was sent, and what comes back."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, str, Any]] = []
        self.answers: list[tuple[int, Any]] = []
        self.product = "Elasticsearch"

    def perform_request(
        self,
        method: str,
        target: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> tuple[ApiResponseMeta, Any]:
        assert options["max_retries"] in (0, None) or options["max_retries"].value == 0
        assert headers is not None
        assert headers["accept"] == JSON
        data = None if body is None else _SERIALIZERS["application/json"].dumps(body)
        self.sent.append((method, target, headers.get("content-type", ""), data))
        status, answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        told = HttpHeaders({"x-elastic-product": self.product})
        node = NodeConfig("http", "es", 9200)
        return ApiResponseMeta(status, "1.1", told, 0.1, node), msgspec.json.encode(answer)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    monkeypatch.setattr(
        Transport,
        "perform_request",
        lambda _, *said, **options: wire.perform_request(*said, **options),
    )
    return wire


@pytest.fixture
def cluster(wire: Wire) -> Iterator[ElasticsearchCluster]:
    made = ElasticsearchCluster(["http://es:9200"], user="cityward", password="secret")
    yield made
    made.close()


DOCUMENT = {"found": True, "_source": {"a": 1}, "_seq_no": 7, "_primary_term": 2}
ABSENT = "ignore_unavailable=true&allow_no_indices=true"
ITEMS = "filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason"
TEMPLATE = {"template": {"settings": {"index": {}}}}
NOTHING = {"hits": {"total": {"value": 0, "relation": "eq"}, "hits": []}}

GOLDEN: Mapping[
    str,
    tuple[
        Callable[[ElasticsearchCluster], Any],
        list[tuple[int, Any]],
        list[tuple[str, str, str, bytes | None]],
        Any,
    ],
] = {
    "bulk": (
        lambda one: one.bulk([Write("i", "1", b'{"a":1}', 3).lines(), Write("i", "2", b"").lines()],
                             refresh=True),
        [(200, {"errors": True, "items": [
            {"index": {"status": 201}},
            {"delete": {"status": 400, "error": {"type": "t", "reason": "r"}}},
        ]})],
        [("POST", f"/_bulk?{ITEMS}&refresh=true", LINES,
          b'{"index":{"_index":"i","_id":"1","version":3,"version_type":"external"}}\n{"a":1}\n'
          b'{"delete":{"_index":"i","_id":"2"}}\n')],
        [Result(201), Result(400, "t", "r")],
    ),
    "search": (
        lambda one: one.search("cw-*,-cw-x", {"size": 1}),
        [(404, {"error": {"type": "index_not_found_exception"}})],
        [("POST", f"/cw-*,-cw-x/_search?{ABSENT}", JSON, b'{"size":1}')],
        NOTHING,
    ),
    "search of a point in time": (
        lambda one: one.search("", {"pit": {"id": "p"}}),
        [(200, NOTHING)],
        [("POST", "/_search", JSON, b'{"pit":{"id":"p"}}')],
        NOTHING,
    ),
    "open_pit": (
        lambda one: one.open_pit("cw-*"),
        [(200, {"cw-a": {}}), (200, {"id": "p"})],
        [("GET", f"/cw-*/_settings/index.uuid?{ABSENT}", "", None),
         ("POST", f"/cw-*/_pit?{ABSENT}&keep_alive=60s", "", None)],
        "p",
    ),
    "close_pit": (
        lambda one: one.close_pit("p"),
        [(404, {})],
        [("DELETE", "/_pit", JSON, b'{"id":"p"}')],
        None,
    ),
    "get": (
        lambda one: one.get("i", "a/b"),
        [(200, DOCUMENT)],
        [("GET", "/i/_doc/a%2Fb", "", None)],
        Stored({"a": 1}, "7:2"),
    ),
    "put anew": (
        lambda one: one.put("i", "1", {"a": 1}, None),
        [(201, DOCUMENT)],
        [("PUT", "/i/_doc/1?op_type=create&refresh=true", JSON, b'{"a":1}')],
        "7:2",
    ),
    "put": (
        lambda one: one.put("i", "1", {"a": 1}, "6:2"),
        [(200, DOCUMENT)],
        [("PUT", "/i/_doc/1?if_seq_no=6&if_primary_term=2&refresh=true", JSON, b'{"a":1}')],
        "7:2",
    ),
    "delete": (
        lambda one: one.delete("i", "1", "6:2"),
        [(200, {"result": "deleted"})],
        [("DELETE", "/i/_doc/1?if_seq_no=6&if_primary_term=2&refresh=true", "", None)],
        True,
    ),
    "put_template": (
        lambda one: one.put_template("t", {"template": {"mappings": {"properties": {
            "type": {"type": "keyword"}, "cw.vendor": {"type": "flat_object"}}}}}),
        [(200, {"acknowledged": True})],
        [("PUT", "/_index_template/t", JSON,
          b'{"template":{"mappings":{"properties":{"type":{"type":"keyword"},'
          b'"cw.vendor":{"type":"flattened"}}}}}')],
        None,
    ),
    "create_index that is there": (
        lambda one: one.create_index("i"),
        [(400, {"error": {"type": "resource_already_exists_exception"}})],
        [("PUT", "/i", "", None)],
        False,
    ),
    "delete_indices": (
        lambda one: one.delete_indices(["i"]),
        [(200, {"acknowledged": True})],
        [("DELETE", "/i", "", None)],
        1,
    ),
    "put_ism_policies": (
        lambda one: put_ism_policies(one, [("cw-f", ism_policy(["cw-f-*"], 13))]),
        [(200, {}),
         (200, {"index_templates": [{"index_template": TEMPLATE}]}),
         (200, {}), (200, {})],
        [("PUT", "/_ilm/policy/cw-f", JSON,
          b'{"policy":{"phases":{"hot":{"actions":{}},'
          b'"delete":{"min_age":"434d","actions":{"delete":{}}}}}}'),
         ("GET", "/_index_template/cw-f", "", None),
         ("PUT", "/_index_template/cw-f", JSON,
          b'{"template":{"settings":{"index":{"lifecycle":{"name":"cw-f"}}}}}'),
         ("PUT", "/cw-f-*/_settings", JSON, b'{"index":{"lifecycle":{"name":"cw-f"}}}')],
        True,
    ),
    "health": (
        lambda one: one.health(),
        [(200, {"version": {"number": "9.4.0"}}), (200, {"status": "green"})],
        [("GET", "/", "", None), ("GET", "/_cluster/health", "", None)],
        Health("green", "elasticsearch 9.4.0"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_a_call_sends_just_this(cluster: ElasticsearchCluster, wire: Wire, name: str) -> None:
    call, answers, sent, expected = GOLDEN[name]
    wire.answers = list(answers)

    assert call(cluster) == expected
    assert wire.sent == sent


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (401, {}, ConfigError),
        (403, {"error": {"type": "security_exception"}}, ConfigError),
        (403, {"error": {"type": "cluster_block_exception"}}, TransientError),
        (429, {"error": {"type": "circuit_breaking_exception"}}, TransientError),
        (503, {"error": {"type": "unavailable"}}, TransientError),
        (409, {"error": {"type": "version_conflict_engine_exception"}}, Conflict),
        (400, {"error": {"type": "parsing_exception"}}, Refused),
        (0, ConnectionTimeout("late"), TransientError),
        (0, TlsError("self-signed"), ConfigError),
        (200, {"_shards": {"failed": 1}, "hits": {}}, TransientError),
    ],
)
def test_an_error_says_who_acts_next(
    cluster: ElasticsearchCluster, wire: Wire, status: int, answer: Any, error: type[CitywardError]
) -> None:
    wire.answers = [(status, answer)]

    with pytest.raises(error) as caught:
        cluster.search("i", {})

    assert caught.value.where == "http://es:9200"
    assert caught.value.todo


def test_what_is_no_elasticsearch_is_said(cluster: ElasticsearchCluster, wire: Wire) -> None:
    wire.product = ""
    wire.answers = [(200, {"status": "green"})]

    with pytest.raises(ConfigError, match="no Elasticsearch"):
        cluster.health()


def test_a_pattern_deletes_no_index(cluster: ElasticsearchCluster) -> None:
    for name in ("cw-*", "a,b", "_all", "-a"):
        with pytest.raises(ValueError, match="no exact name"):
            cluster.delete_indices([name])


def test_a_body_is_json(cluster: ElasticsearchCluster, wire: Wire) -> None:
    wire.answers = [(200, {"ok": True}), (404, {})]

    assert cluster.request("PUT", "/_ilm/policy/p", {"a": "é"}) == {"ok": True}
    assert cluster.request("GET", "/_ilm/policy/q") is None
    assert msgspec.json.decode(wire.sent[0][3] or b"") == {"a": "é"}
