"""What the city's common store must do; homes: SQLite, OpenSearch, Elasticsearch.

It holds two things. *Shared findings*: one document a share, in one index per operator and month of
`finding.first_seen`, newest revision wins. *Records*: small documents of the hub's own memory –
last envelope of each operator, receipts, tombstones, the lease, people – each with a version that
a writer must know (compare and set), so that a hub that lost its lease cannot write any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Literal, Protocol

import msgspec

from siem.store.protocol import Document, Page, Range

CITY = "city"
"""Operator of what the hub itself concludes."""

TLP = ("clear", "green", "amber", "amber+strict", "red")
"""From open to closed; `red` is never indexed at the hub."""

Audience = str
"""`city-soc`, `peers`, `prefecture`, `police`, `civil-protection`, `csirt`."""


class Rights(msgspec.Struct, frozen=True):
    """What somebody may see of shared findings; every read of people carries them."""

    audiences: tuple[Audience, ...]
    """Shares that name one of these may be seen …"""
    tlp: tuple[str, ...]
    """… if they carry one of these markings."""
    own: str = ""
    """Operator whose shares are seen whole, whatever their audience; empty: none."""
    operators: tuple[str, ...] | None = None
    """Only shares of these operators; None: of all."""
    threshold: int = 1
    """Counts below it are not told."""


CITY_SOC = Rights(audiences=("city-soc",), tlp=TLP[:4])
"""The CISO and the city's own analysts."""


class Write(msgspec.Struct, frozen=True):
    """A shared finding to be indexed: its flat document, with `cw.share.id` and its revision."""

    document: Document
    revision: int


Outcome = Literal["written", "old", "refused", "later"]
"""`old`: a newer or the same revision is there; `refused`: the home will never take this document
(the log says why); `later`: the home is busy, and trying again may help."""


class Versioned(msgspec.Struct, frozen=True):
    """A record, and the version that a writer has to name to change it."""

    value: dict[str, Any]
    version: str


class Records(Protocol):
    """Small documents by kind and name."""

    def get(self, kind: str, name: str) -> Versioned | None:
        """One record."""
        ...

    def put(self, kind: str, name: str, value: Mapping[str, Any], version: str | None) -> str:
        """Write one; durable when it returns its new version.

        Args:
            kind: `link`, `receipt`, `tombstone`, `lease`, `person`, `audit` …
            name: Within its kind.
            value: Replaces what was there.
            version: Version it replaces; None: there must be none yet.

        Raises:
            Conflict: another version is there.
            TransientError: the home does not answer.
        """
        ...

    def delete(self, kind: str, name: str, version: str) -> None:
        """Take one away; see `put`."""
        ...

    def all(self, kind: str) -> Iterator[tuple[str, Versioned]]:
        """All records of a kind, by name."""
        ...


class Commons(Protocol):
    """The common store of the city."""

    @property
    def records(self) -> Records:
        """The hub's own memory."""
        ...

    def put(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        """Index shared findings, each by itself; those `written` are durable.

        Raises:
            TransientError: the home does not answer; nothing is known of any of them.
        """
        ...

    def together(self) -> AbstractContextManager[None]:
        """What a thread writes within may become durable only at the end, but then in one go.

        A home without transactions makes each write durable by itself, in the order given.
        """
        ...

    def remove(self, share_ids: Sequence[str]) -> int:
        """Delete documents, gone for every reader when it returns; returns how many there were."""
        ...

    def scan(self, since: datetime) -> Iterator[Document]:
        """Every shared finding last seen since then, oldest first; for the hub's own joins."""
        ...

    def search(
        self,
        rights: Rights,
        query: str,
        span: Range,
        sort: str = "-finding.last_seen",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Shares that may be seen, by `finding.last_seen`; a query is text of the query bar."""
        ...

    def get(self, rights: Rights, share_id: str) -> Document | None:
        """One share; None if there is none, or none that may be seen: the same answer."""
        ...

    def tally(
        self, rights: Rights, query: str, span: Range, field: str, limit: int = 20
    ) -> Sequence[tuple[str, int]]:
        """Values of a field with the number of shares that have them, most frequent first."""
        ...

    def retain(self, before: datetime) -> int:
        """Delete whole months that ended before then; returns how many."""
        ...

    def purge(self) -> None:
        """Let nothing of what was removed stay on a disk."""
        ...

    def close(self) -> None:
        """Let go of the home."""
        ...
