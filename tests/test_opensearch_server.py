"""The real OpenSearch that tests and people start by one script."""

from __future__ import annotations

import pytest

from tests.opensearch import Server

pytestmark = pytest.mark.slow


def test_it_is_the_pinned_build_with_the_security_plugin(opensearch: Server) -> None:
    status, answer = opensearch.ask("GET", "/")
    _, plugins = opensearch.ask("GET", "/_cat/plugins?format=json")

    assert status == 200
    assert answer["version"]["number"] == "2.19.4"
    assert {one["component"] for one in plugins} == {
        "opensearch-job-scheduler",
        "opensearch-security",
    }


def test_a_node_is_master_of_its_own_indices_only(opensearch: Server, index_prefix: str) -> None:
    def ask(method: str, path: str, body: object = None) -> int:
        return opensearch.ask(
            method, path, body, user=opensearch.user, password=opensearch.password
        )[0]

    assert ask("PUT", f"/{index_prefix}-a") == 200
    assert ask("PUT", f"/{index_prefix}-a/_doc/1", {"a": 1}) == 201
    assert ask("POST", f"/{index_prefix}-a/_search/point_in_time?keep_alive=1m") == 200
    assert ask("PUT", "/other") == 403
    assert ask("GET", "/.opendistro_security/_search") == 403
    assert opensearch.ask("GET", "/", user=opensearch.user, password="wrong")[0] == 401


def test_an_index_of_ours_is_never_made_by_a_mere_write(
    opensearch: Server, index_prefix: str
) -> None:
    status, _ = opensearch.ask("PUT", f"/{index_prefix}-b/_doc/1", {"a": 1})

    assert status == 404
