"""What the hub knows besides shared findings, as pages and pictures ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from siem.city.commons import Rights
from siem.store.protocol import Document, Page, Range

LinkState = Literal["linked", "silent", "waiting", "revoked"]
"""`waiting`: enrolled, and not heard of yet."""


class Lost(msgspec.Struct, frozen=True):
    """A source that an operator told of as lost or late, in its heartbeat."""

    source: str
    what: str
    """In words: `no data`, `late by 6 min`."""
    since: datetime | None = None
    is_late: bool = False
    """It still sends, but late; otherwise nothing of it is seen."""


class Duty(msgspec.Struct, frozen=True, kw_only=True):
    """A clock that the law has started."""

    incident: str
    operator: str
    duty: str
    """In words: `NIS2 early warning, 24 h`."""
    began: datetime
    due: datetime
    draft: str = ""
    """State of the draft in words."""
    done: datetime | None = None
    by: str = ""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """An enrolled operator, as the hub knows it from envelopes, heartbeats and its records."""

    operator: str
    name: str = ""
    sector: str = ""
    state: LinkState = "waiting"
    enrolled: datetime | None = None
    heartbeat: datetime | None = None
    """When the last heartbeat came."""
    heard: datetime | None = None
    """When the last envelope of any kind came."""
    seq: int = 0
    """Number of the last envelope that was taken."""
    gaps: int = 0
    """Envelopes that were refused because one before them was missing."""
    refused: int = 0
    """Envelopes and requests that were refused, for whatever reason."""
    version: str = ""
    """Of the node's software."""
    rules: str = ""
    """Version of its rule set, as its heartbeat says."""
    policy: str = ""
    """Content hash of its sharing policy."""
    waiting: int = 0
    """Findings in its outbox, as its heartbeat says."""
    lag_s: float = 0.0
    """How old the oldest of them is."""
    shares: int = 0
    withdrawals: int = 0
    certificate_until: datetime | None = None
    ledger_head: str = ""
    countersigned: datetime | None = None
    """When the hub signed that head."""
    lost: Sequence[Lost] = ()
    mode: str = "normal"
    """What is going on there, as its heartbeat says."""
    clocks: Sequence[Duty] = ()
    """Legal clocks that it tells of."""


class Told(msgspec.Struct, frozen=True):
    """What an operator was told of a campaign, and what it answered."""

    operator: str
    what: str
    at: datetime
    answer: str = ""
    """Empty: none yet."""
    answered: datetime | None = None


class Shares(Protocol):
    """Shared findings as one person may see them; `siem/city/reading.py` fulfils it."""

    @property
    def rights(self) -> Rights:
        """What they may see."""
        ...

    def search(
        self,
        query: str,
        span: Range,
        sort: str = "-finding.last_seen",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Shares, by `finding.last_seen`; a query is text of the query bar."""
        ...

    def get(self, share_id: str) -> Document | None:
        """One share; None if there is none, or none that they may see: the same answer."""
        ...

    def tally(
        self, query: str, span: Range, field: str, limit: int = 20
    ) -> Sequence[tuple[str, int]]:
        """Values of a field with the number of shares that have them, most frequent first."""
        ...
