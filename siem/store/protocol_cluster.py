"""What we ask of a search cluster; homes fulfil it (`opensearch.py`, `elasticsearch.py`).

Bodies of searches and templates are what the REST interface takes, alike in both; only this
handful of calls is used, so that either client can be replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from cityward.errors import CitywardError
from siem.store.protocol import Document

Kind = Literal["opensearch", "elasticsearch"]


class Write(msgspec.Struct, frozen=True, gc=False):
    """One line pair of a bulk request, encoded once and sent as often as needed."""

    index: str
    id: str
    source: bytes
    """The document as JSON, without a line break; empty to delete."""
    version: int | None = None
    """External version: the newest wins. None: created once (`create`), or deleted."""

    def lines(self) -> bytes:
        """The pair as it stands in the request."""
        where: dict[str, Any] = {"_index": self.index, "_id": self.id}
        if self.version is not None:
            where |= {"version": self.version, "version_type": "external"}
        if not self.source:
            return _encode({"delete": where}) + b"\n"
        action = "create" if self.version is None else "index"
        return b"%s\n%s\n" % (_encode({action: where}), self.source)


_encode = msgspec.json.Encoder().encode


class Result(msgspec.Struct, frozen=True, gc=False):
    """What became of one write of a bulk request."""

    status: int
    """HTTP status of this item: 200/201 done, 409 an equal or newer one is there, 429, 400 …"""
    error: str = ""
    """Type of the error, as `mapper_parsing_exception`."""
    reason: str = ""
    """The same in words."""


class Stored(msgspec.Struct, frozen=True):
    """One document, and the version that a writer has to name to change it."""

    source: Document
    version: str
    """`sequence number:primary term`, opaque to callers."""


class Health(msgspec.Struct, frozen=True):
    """How a cluster is."""

    status: Literal["green", "yellow", "red"]
    version: str
    """Distribution and number: `opensearch 2.19.4`."""


class Refused(CitywardError):  # noqa: N818 – an answer, not a fault of ours
    """The cluster understood a request and will not do it, however often it is asked."""

    exit_code = 7

    def __init__(self, what: str, where: str = "", todo: str = "", status: int = 0) -> None:
        """See `CitywardError`; `status` is that of HTTP, 0: not known."""
        super().__init__(what, where, todo)
        self.status = status


class Cluster(Protocol):
    """A search cluster.

    Every call raises `TransientError` where the cluster does not answer in time, is busy (429) or
    a shard is missing (503): nothing is known of what was asked; `ConfigError` where it does not
    let us in (401, 403, TLS); `Refused` for everything else that is no answer.
    """

    kind: Kind

    def bulk(self, writes: Sequence[bytes], *, refresh: bool = False) -> Sequence[Result]:
        """Send writes, each as `Write.lines()`, and tell what became of each of them, in order.

        Args:
            writes: Encoded pairs.
            refresh: Wait until a search can see them.
        """
        ...

    def search(self, index: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer of a search, as REST gives it.

        Args:
            index: Name or pattern; one that is not there is an empty one. Empty where the body
                has a `pit`.
            body: Of the request.
        """
        ...

    def count(self, index: str, query: Mapping[str, Any]) -> int:
        """How many documents match."""
        ...

    def open_pit(self, index: str, keep_alive_s: int = 60) -> str | None:
        """Id of a point in time over what stands in these indices now; None if there are none."""
        ...

    def close_pit(self, pit: str) -> None:
        """Let go of it; one that is gone already is no fault."""
        ...

    def get(self, index: str, id: str) -> Stored | None:
        """One document, as written last (not: as searchable); None without it or its index."""
        ...

    def put(self, index: str, id: str, source: Mapping[str, Any], version: str | None) -> str:
        """Write one document, durable when it returns its new version.

        Args:
            index: Exact name.
            id: Of the document.
            source: Replaces what was there.
            version: `Stored.version` that it replaces; None: there must be none yet.

        Raises:
            Conflict: another version is there.
        """
        ...

    def delete(self, index: str, id: str, version: str | None = None) -> bool:
        """Delete one document; False if there was none. See `put` for the version."""
        ...

    def delete_by_query(self, index: str, query: Mapping[str, Any]) -> int:
        """Delete what matches, gone for every search when it returns; returns how many."""
        ...

    def refresh(self, index: str) -> None:
        """Make what was written visible to searches."""
        ...

    def put_template(self, name: str, body: Mapping[str, Any]) -> None:
        """Write a composable index template."""
        ...

    def template(self, name: str) -> dict[str, Any] | None:
        """A composable index template as the cluster has it."""
        ...

    def create_index(self, name: str) -> bool:
        """Make an index after its template; False if it was there."""
        ...

    def indices(self, pattern: str) -> Sequence[str]:
        """Names of the indices that fit, sorted."""
        ...

    def delete_indices(self, names: Iterable[str]) -> int:
        """Delete whole indices by their exact names; returns how many there were."""
        ...

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Any other call of the REST interface: its answer as JSON; None for 404."""
        ...

    def health(self) -> Health:
        """State and version."""
        ...

    def close(self) -> None:
        """Let go of the connections."""
        ...
