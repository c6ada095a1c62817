"""OpenSearch 2 as a home: the only file that knows its client."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from opensearchpy import JSONSerializer, OpenSearch
from opensearchpy.exceptions import (
    ConflictError,
    ConnectionTimeout,
    SerializationError,
    SSLError,
    TransportError,
)
from opensearchpy.exceptions import ConnectionError as Unreachable

from cityward.errors import ConfigError, TransientError
from siem.store.protocol import Conflict
from siem.store.protocol_cluster import Health, Kind, Refused, Result, Stored

BUSY = frozenset((408, 429, 502, 503, 504))
CLOSED = frozenset((401, 403))
_MISSING = 404
CONNECTIONS = 4
"""Kept open at most: two bulk requests on their way, and those who read."""
DONE = Result(200)
_NDJSON = {"content-type": "application/x-ndjson"}
_ABSENT = {"ignore_unavailable": "true", "allow_no_indices": "true"}
_NOTHING: dict[str, Any] = {"hits": {"total": {"value": 0, "relation": "eq"}, "hits": []}}
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class _Error(msgspec.Struct, gc=False):
    type: str = ""
    reason: str = ""


class _Item(msgspec.Struct, gc=False):
    status: int
    error: _Error | None = None


class _Bulk(msgspec.Struct):
    items: list[dict[str, _Item]] = []
    errors: bool = False


_bulk_answer = msgspec.json.Decoder(_Bulk).decode


class _Json(JSONSerializer):  # type: ignore[misc, unused-ignore]
    """Encodes by msgspec and leaves answers as they came: who asked knows their form."""

    def dumps(self, data: Any) -> Any:
        return data if isinstance(data, bytes | str) else _encode(data)

    def loads(self, s: str) -> Any:
        return s


class OpenSearchCluster:
    """Fulfils `protocol_cluster.Cluster`; any thread may ask."""

    kind: Kind = "opensearch"

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

        Raises:
            ConfigError: the file of certificates cannot be read.
        """
        self.hosts = list(hosts)
        options: dict[str, Any] = {"http_auth": (user, password)} if user else {}
        if any(host.startswith("https:") for host in self.hosts):
            options["ssl_context"] = _trust(ca)
        # What fails is told to the caller, who counts it; the client would log every attempt.
        logging.getLogger("opensearch").setLevel(logging.CRITICAL)
        self._client = OpenSearch(
            self.hosts,
            timeout=timeout_s,
            max_retries=0,
            retry_on_timeout=False,
            pool_maxsize=CONNECTIONS,
            serializer=_Json(),
            **options,
        )

    # ---- Documents

    def bulk(self, writes: Sequence[bytes], *, refresh: bool = False) -> Sequence[Result]:
        """Send writes and tell what became of each of them, in order."""
        if not writes:
            return []
        # Of each item only what may be asked for: the answer is else as long as the question.
        params = {"filter_path": "errors,items.*.status,items.*.error.type,items.*.error.reason"}
        if refresh:
            params["refresh"] = "true"
        said = self._send("POST", "/_bulk", b"".join(writes), params, _NDJSON)
        try:
            answer = _bulk_answer(said)
        except msgspec.DecodeError:
            answer = _Bulk()
        if len(answer.items) != len(writes):
            raise TransientError("the cluster's answer is cut short", self._where, "Try again.")
        if not answer.errors:
            return [DONE] * len(writes)
        return [_result(item) for one in answer.items for item in one.values()]

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
        path = f"/{_path(index)}/_search/point_in_time"
        found = self._ask("POST", path, params={"keep_alive": f"{keep_alive_s}s"}, missing={})
        return str(found["pit_id"]) if found else None

    def close_pit(self, pit: str) -> None:
        """Let go of it."""
        self._ask("DELETE", "/_search/point_in_time", {"pit_id": [pit]}, missing={})

    def get(self, index: str, id: str) -> Stored | None:
        """One document as written last; None without it or its index."""
        found = self._ask("GET", _document(index, id), missing={})
        if not found.get("found"):
            return None
        return Stored(found["_source"], _version(found))

    def put(self, index: str, id: str, source: Mapping[str, Any], version: str | None) -> str:
        """Write one document; returns its new version."""
        params = _versioned(version) if version else {"op_type": "create"}
        return _version(
            self._ask("PUT", _document(index, id), source, params | {"refresh": "true"})
        )

    def delete(self, index: str, id: str, version: str | None = None) -> bool:
        """Delete one document; False if there was none."""
        params = (_versioned(version) if version else {}) | {"refresh": "true"}
        found = self._ask("DELETE", _document(index, id), params=params, missing={})
        return bool(found.get("result") == "deleted")

    def delete_by_query(self, index: str, query: Mapping[str, Any]) -> int:
        """Delete what matches; returns how many."""
        params = _ABSENT | {"refresh": "true", "conflicts": "proceed"}
        path = f"/{_path(index)}/_delete_by_query"
        deleted = 0
        while True:
            # What is not searchable yet would stay, and what changed meanwhile is left out.
            self.refresh(index)
            found = self._ask("POST", path, {"query": query}, params, missing={})
            deleted += int(found.get("deleted", 0))
            if not found.get("version_conflicts"):
                return deleted

    def refresh(self, index: str) -> None:
        """Make what was written visible to searches."""
        self._ask("POST", f"/{_path(index)}/_refresh", params=_ABSENT, missing={})

    # ---- Indices

    def put_template(self, name: str, body: Mapping[str, Any]) -> None:
        """Write a composable index template."""
        self._ask("PUT", f"/_index_template/{_path(name)}", body)

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
        path = f"/{_path(pattern)}/_settings/index.uuid"
        return sorted(self._ask("GET", path, params=_ABSENT, missing={}))

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
        """State and version.

        Raises:
            ConfigError: it is another kind of server.
        """
        version = self._ask("GET", "/").get("version", {})
        if (made := version.get("distribution", "elasticsearch")) != "opensearch":
            raise ConfigError(
                f"this is {made}, no OpenSearch",
                self._where,
                f'Set kind = "{made}" if you mean it.',
            )
        status = self._ask("GET", "/_cluster/health")["status"]
        return Health(status, f"opensearch {version['number']}")

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
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        missing: Any = ...,
    ) -> Any:
        """One call; `missing`: what a 404 means; left out: it is refused."""
        try:
            said = self._send(method, path, body, params)
            return _decode(said) if said else {}
        except Refused as error:
            if error.status == _MISSING and missing is not ...:
                return missing
            raise
        except msgspec.DecodeError as error:
            raise TransientError(
                f"no JSON came back: {error}", self._where, "Look what answers there."
            ) from error

    def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str:
        with self._telling():
            said: str = self._client.transport.perform_request(
                method, path, params=dict(params or {}), body=body, headers=headers
            )
            return said

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Errors of the client as ours."""
        try:
            yield
        except ConflictError as error:
            raise Conflict("another version is there", self._where, "Read it again.") from error
        except SSLError as error:
            raise ConfigError(
                f"the cluster's certificate is not trusted: {error.error}",
                self._where,
                "Name its authority in ca_file.",
            ) from error
        except ConnectionTimeout as error:
            raise TransientError(
                "the cluster does not answer in time", self._where, "Look whether it is well."
            ) from error
        except Unreachable as error:
            raise TransientError(
                f"the cluster cannot be reached: {error.error}", self._where, "See if it runs."
            ) from error
        except TransportError as error:
            raise self._meant(error) from error
        except SerializationError as error:
            raise TransientError(
                f"the cluster's answer cannot be read: {error}", self._where, "Try again."
            ) from error

    def _meant(self, error: TransportError) -> ConfigError | TransientError | Refused:
        status, what = error.status_code, _said(error)
        # A block that somebody set, or a full disk, answers 403 too.
        if status in BUSY or "cluster_block_exception" in what:
            return TransientError(
                f"the cluster is busy: {status} {what}", self._where, "Try again."
            )
        if status in CLOSED:
            return ConfigError(
                f"the cluster does not let us in: {status} {what}",
                self._where,
                "Check name, password and role.",
            )
        return Refused(
            f"the cluster refuses: {status} {what}",
            self._where,
            "Look at its log.",
            status if isinstance(status, int) else 0,
        )


def _said(error: TransportError) -> str:
    """Type of an error and its reason, in one line."""
    told = error.info.get("error") if isinstance(error.info, dict) else error.info
    if isinstance(told, dict):
        told = f"{told.get('type', '')}: {told.get('reason', '')}"
    return " ".join(str(told or error.error).split())[:300]


def _trust(ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"no certificates: {error}", str(ca), "Check the file.") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _path(index: str) -> str:
    return quote(index, safe="*,-")


def _document(index: str, id: str) -> str:
    return f"/{_path(index)}/_doc/{quote(id, safe='')}"


def _version(found: Mapping[str, Any]) -> str:
    return f"{found['_seq_no']}:{found['_primary_term']}"


def _versioned(version: str) -> dict[str, str]:
    number, _, term = version.partition(":")
    return {"if_seq_no": number, "if_primary_term": term}


def _result(item: _Item) -> Result:
    error = item.error
    return Result(item.status, error.type, error.reason) if error else Result(item.status)
