"""What both makes of search cluster have in common: the REST interface, and what answers mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from cityward.errors import ConfigError, TransientError
from siem.store.protocol_cluster import Kind, Refused, Result, Stored

_MISSING = 404
BUSY = frozenset((408, 429, 502, 503, 504))
CLOSED = frozenset((401, 403))
_NDJSON = {"content-type": "application/x-ndjson"}
DONE = Result(200)
ABSENT = {"ignore_unavailable": "true", "allow_no_indices": "true"}
_NOTHING: dict[str, Any] = {"hits": {"total": {"value": 0, "relation": "eq"}, "hits": []}}
encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class _Error(msgspec.Struct, gc=False):
    type: str = ""
    reason: str = ""


class _Item(msgspec.Struct, gc=False):
    status: int
    error: _Error | None = None


class _Bulk(msgspec.Struct):
    items: list[dict[str, _Item]] = []
    errors: bool = True


_bulk_answer = msgspec.json.Decoder(_Bulk).decode


class RestCluster:
    """Calls of `protocol_cluster.Cluster` over one request of a client; any thread may ask."""

    kind: Kind

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = list(hosts)

    def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> str | bytes:
        """The answer to one request as it came.

        Raises:
            CitywardError: as `protocol_cluster.Cluster` says; 404 is a `Refused` too.
        """
        raise NotImplementedError

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
        found = self._ask("POST", f"/{path_of(index)}/_search", body, ABSENT, missing=_NOTHING)
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
        params = ABSENT | {"refresh": "true", "conflicts": "proceed"}
        path = f"/{path_of(index)}/_delete_by_query"
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
        self._ask("POST", f"/{path_of(index)}/_refresh", params=ABSENT, missing={})

    # ---- Indices

    def put_template(self, name: str, body: Mapping[str, Any]) -> None:
        """Write a composable index template."""
        self._ask("PUT", f"/_index_template/{path_of(name)}", body)

    def template(self, name: str) -> dict[str, Any] | None:
        """A composable index template as the cluster has it."""
        found = self._ask("GET", f"/_index_template/{path_of(name)}", missing={})
        templates = found.get("index_templates", [])
        return templates[0]["index_template"] if templates else None

    def create_index(self, name: str) -> bool:
        """Make an index after its template; False if it was there."""
        try:
            self._ask("PUT", f"/{path_of(name)}")
        except Refused as error:
            if "resource_already_exists_exception" in error.what:
                return False
            raise
        return True

    def indices(self, pattern: str) -> Sequence[str]:
        """Names of the indices that fit, sorted."""
        path = f"/{path_of(pattern)}/_settings/index.uuid"
        return sorted(self._ask("GET", path, params=ABSENT, missing={}))

    def delete_indices(self, names: Iterable[str]) -> int:
        """Delete whole indices by their exact names; returns how many there were."""
        gone = 0
        for name in names:
            if set(name) & set("*,?") or name.startswith(("-", "_")):
                raise ValueError(f"{name} is no exact name")
            found = self._ask("DELETE", f"/{path_of(name)}", missing={})
            gone += bool(found.get("acknowledged"))
        return gone

    # ---- The cluster

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Any other call of the REST interface; None for 404."""
        return self._ask(method, path, body, missing=None)

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

    def _meant(self, status: int | str, what: str) -> ConfigError | TransientError | Refused:
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


def said_of(info: Any, otherwise: object) -> str:
    """Type of an error and its reason, in one line."""
    told = info.get("error") if isinstance(info, dict) else info
    if isinstance(told, dict):
        told = f"{told.get('type', '')}: {told.get('reason', '')}"
    return " ".join(str(told or otherwise).split())[:300]


def path_of(index: str) -> str:
    """Names or a pattern as a part of a path."""
    return quote(index, safe="*,-")


def _document(index: str, id: str) -> str:
    return f"/{path_of(index)}/_doc/{quote(id, safe='')}"


def _version(found: Mapping[str, Any]) -> str:
    return f"{found['_seq_no']}:{found['_primary_term']}"


def _versioned(version: str) -> dict[str, str]:
    number, _, term = version.partition(":")
    return {"if_seq_no": number, "if_primary_term": term}


def _result(item: _Item) -> Result:
    error = item.error
    return Result(item.status, error.type, error.reason) if error else Result(item.status)
