"""Elasticsearch 9 as a home: the only file that knows its client.

Queries, templates and documents are those of `opensearch.py`; what differs is here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from elasticsearch import ApiError, ConflictError, Elasticsearch, NotFoundError, TransportError
from elasticsearch.exceptions import SSLError, UnsupportedProductError

from cityward.errors import ConfigError, TransientError
from siem.store.protocol import Conflict
from siem.store.protocol_cluster import Health, Kind, Refused, Result, Stored

TYPES = {"flat_object": "flattened"}
"""Types of a mapping that have another name than in OpenSearch."""
_BUSY = (408, 429, 502, 503, 504)
_CLOSED = (401, 403)
_NDJSON = {"content-type": "application/x-ndjson", "accept": "application/json"}
_JSON = {"content-type": "application/json", "accept": "application/json"}
_ABSENT = {"ignore_unavailable": "true", "allow_no_indices": "true"}
_NOTHING: dict[str, Any] = {"hits": {"total": {"value": 0, "relation": "eq"}, "hits": []}}


class ElasticsearchCluster:
    """Fulfils `protocol_cluster.Cluster`; any thread may ask."""

    kind: Kind = "elasticsearch"

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        user: str = "",
        password: str = "",
        ca: Path | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        """Take up connections; nothing is asked yet.

        Args:
            hosts: URLs of its nodes.
            user: Name of an account; empty: none.
            password: Its password.
            ca: Certificates that vouch for the nodes; None: those of the machine.
            timeout_s: For each answer.
        """
        self.hosts = list(hosts)
        options: dict[str, Any] = {"ca_certs": str(ca)} if ca else {}
        if user:
            options["basic_auth"] = (user, password)
        # Trying again is for the caller, who knows what may be repeated.
        self._client = Elasticsearch(
            self.hosts, request_timeout=timeout_s, max_retries=0, retry_on_timeout=False, **options
        )

    # ---- Documents

    def bulk(self, writes: Sequence[bytes], *, refresh: bool = False) -> Sequence[Result]:
        """Send writes and tell what became of each of them, in order."""
        if not writes:
            return []
        params = {"refresh": "true"} if refresh else {}
        found = self._ask("POST", "/_bulk", b"".join(writes), params, _NDJSON)
        return [_result(*item.values()) for item in found["items"]]

    def search(self, index: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer of a search; nothing without an index."""
        if "pit" in body:
            return self._whole(self._ask("POST", "/_search", body))
        found = self._ask("POST", f"/{_path(index)}/_search", body, _ABSENT, missing=_NOTHING)
        return self._whole(found)

    def _whole(self, found: dict[str, Any]) -> dict[str, Any]:
        """Refuse an answer that some shards did not take part in: it would be a wrong one."""
        if found.get("timed_out") or found.get("_shards", {}).get("failed"):
            raise TransientError("some shards did not answer", self._where, "Try again.")
        return found

    def count(self, index: str, query: Mapping[str, Any]) -> int:
        """How many documents match."""
        body = {"query": query, "size": 0, "track_total_hits": True}
        return int(self.search(index, body)["hits"]["total"]["value"])

    def open_pit(self, index: str, keep_alive_s: int = 60) -> str | None:
        """Id of a point in time; None if there are no such indices."""
        if not self.indices(index):
            return None
        params = {"keep_alive": f"{keep_alive_s}s", "ignore_unavailable": "true"}
        return str(self._ask("POST", f"/{_path(index)}/_pit", params=params)["id"])

    def close_pit(self, pit: str) -> None:
        """Let go of it."""
        self._ask("DELETE", "/_pit", {"id": pit}, missing={})

    def get(self, index: str, id: str) -> Stored | None:
        """One document as written last; None without it or its index."""
        found = self._ask("GET", f"/{_path(index)}/_doc/{quote(id, safe='')}", missing={})
        if not found.get("found"):
            return None
        return Stored(found["_source"], f"{found['_seq_no']}:{found['_primary_term']}")

    def put(self, index: str, id: str, source: Mapping[str, Any], version: str | None) -> str:
        """Write one document; returns its new version."""
        params = _versioned(version) if version else {"op_type": "create"}
        path = f"/{_path(index)}/_doc/{quote(id, safe='')}"
        found = self._ask("PUT", path, source, params | {"refresh": "true"})
        return f"{found['_seq_no']}:{found['_primary_term']}"

    def delete(self, index: str, id: str, version: str | None = None) -> bool:
        """Delete one document; False if there was none."""
        params = (_versioned(version) if version else {}) | {"refresh": "true"}
        path = f"/{_path(index)}/_doc/{quote(id, safe='')}"
        found = self._ask("DELETE", path, params=params, missing={})
        return bool(found.get("result") == "deleted")

    def delete_by_query(self, index: str, query: Mapping[str, Any]) -> int:
        """Delete what matches; returns how many."""
        params = _ABSENT | {"refresh": "true", "conflicts": "proceed"}
        path = f"/{_path(index)}/_delete_by_query"
        deleted = 0
        while True:
            # What changed meanwhile was left out: it is looked at again.
            found = self._ask("POST", path, {"query": query}, params, missing={})
            deleted += int(found.get("deleted", 0))
            if not found.get("version_conflicts"):
                return deleted

    def refresh(self, index: str) -> None:
        """Make what was written visible to searches."""
        self._ask("POST", f"/{_path(index)}/_refresh", params=_ABSENT, missing={})

    # ---- Indices

    def put_template(self, name: str, body: Mapping[str, Any]) -> None:
        """Write a composable index template; types get the names they have here."""
        self._ask("PUT", f"/_index_template/{_path(name)}", renamed(body))

    def template(self, name: str) -> dict[str, Any] | None:
        """A composable index template as the cluster has it."""
        found = self._ask("GET", f"/_index_template/{_path(name)}", missing={})
        templates = found.get("index_templates", [])
        return templates[0]["index_template"] if templates else None

    def create_index(self, name: str) -> bool:
        """Make an index after its template; False if it was there."""
        try:
            self._ask("PUT", f"/{_path(name)}")
        except Refused as error:
            if "resource_already_exists_exception" in error.what:
                return False
            raise
        return True

    def indices(self, pattern: str) -> Sequence[str]:
        """Names of the indices that fit, sorted."""
        found = self._ask(
            "GET", f"/{_path(pattern)}/_settings/index.uuid", params=_ABSENT, missing={}
        )
        return sorted(found)

    def delete_indices(self, names: Iterable[str]) -> int:
        """Delete whole indices by their exact names; returns how many there were."""
        gone = 0
        for name in names:
            if set(name) & set("*,?") or name.startswith(("-", "_")):
                raise ValueError(f"{name} is no exact name")
            found = self._ask("DELETE", f"/{_path(name)}", missing={})
            gone += bool(found.get("acknowledged"))
        return gone

    # ---- The cluster

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Any other call of the REST interface; None for 404."""
        return self._ask(method, path, body, missing=None)

    def health(self) -> Health:
        """State and version."""
        status = self._ask("GET", "/_cluster/health")["status"]
        return Health(status, f"elasticsearch {self._ask('GET', '/')['version']['number']}")

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    @property
    def _where(self) -> str:
        return ", ".join(self.hosts)

    def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] = _JSON,
        missing: Any = ...,
    ) -> Any:
        """One call.

        Args:
            method: Of HTTP.
            path: Quoted.
            body: Encoded, or what is to be.
            params: Of the path.
            headers: Of the body; the client says which version of the interface they mean.
            missing: What a 404 means; left out: it is refused.
        """
        try:
            with self._telling():
                data = (
                    body if body is None or isinstance(body, bytes) else msgspec.json.encode(body)
                )
                sent = dict(headers) if data is not None else {"accept": headers["accept"]}
                return self._client.perform_request(
                    method, path, params=params, headers=sent, body=data
                ).body
        except NotFoundError as error:
            if missing is not ...:
                return missing
            raise Refused(f"the cluster has no {path}", self._where, str(error)) from error

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Errors of the client as ours."""
        begun = time.monotonic()
        try:
            yield
        except NotFoundError:
            raise
        except ConflictError as error:
            raise Conflict("another version is there", self._where, "Read it again.") from error
        except UnsupportedProductError as error:
            raise ConfigError(
                "this is no Elasticsearch", self._where, 'Set kind = "opensearch" if it is one.'
            ) from error
        except ApiError as error:
            raise self._meant(error) from error
        except SSLError as error:
            raise ConfigError(
                f"the cluster's certificate is not trusted: {error}", self._where, "Name its CA."
            ) from error
        except TransportError as error:
            waited = time.monotonic() - begun
            raise TransientError(
                f"the cluster does not answer after {waited:.1f} s: {error}",
                self._where,
                "Look whether it runs.",
            ) from error

    def _meant(self, error: ApiError) -> ConfigError | TransientError | Refused:
        if error.status_code in _BUSY:
            return TransientError(f"the cluster is busy: {error}", self._where, "Try again.")
        if error.status_code in _CLOSED:
            return ConfigError(
                f"the cluster does not let us in: {error}", self._where, "Check name and password."
            )
        return Refused(f"the cluster refuses: {error}", self._where, "Look at its log.")


def renamed(body: Any) -> Any:
    """A mapping with the names that types have in Elasticsearch."""
    if isinstance(body, Mapping):
        return {
            key: TYPES.get(value, value)
            if key == "type" and isinstance(value, str)
            else renamed(value)
            for key, value in body.items()
        }
    return [renamed(one) for one in body] if isinstance(body, list | tuple) else body


def _path(index: str) -> str:
    return quote(index, safe="*,-")


def _versioned(version: str) -> dict[str, str]:
    number, _, term = version.partition(":")
    return {"if_seq_no": number, "if_primary_term": term}


def _result(item: Mapping[str, Any]) -> Result:
    error = item.get("error") or {}
    return Result(item["status"], error.get("type", ""), error.get("reason", ""))
