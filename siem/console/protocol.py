"""What the console needs from the node behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from siem.store.protocol import Assets, Events, Findings, Person, RuleState, SourceState


class Usage(msgspec.Struct, frozen=True):
    """How much of its place a part of the store takes."""

    name: str
    used_bytes: int
    limit_bytes: int
    """0: no limit is set."""


class Console(Protocol):
    """A node as its console sees it; `siem` fulfils it."""

    @property
    def operator(self) -> str:
        """Stable id, e.g. `op-metro`."""
        ...

    @property
    def sector(self) -> str:
        """Its sector, as the schema lists them."""
        ...

    @property
    def secret(self) -> bytes:
        """Signs sessions; stays the same over restarts, never leaves the state folder."""
        ...

    @property
    def findings(self) -> Findings:
        """Where findings are kept."""
        ...

    @property
    def events(self) -> Events:
        """Where events are kept."""
        ...

    @property
    def inventory(self) -> Assets:
        """What is known of its assets, zones and conduits."""
        ...

    def now(self) -> datetime:
        """The clock of the node; a demo turns it faster."""
        ...

    def person(self, name: str) -> Person | None:
        """Who may sign in under this name."""
        ...

    def holder_of(self, token_sha256: str) -> Person | None:
        """Whom a token for programs belongs to, by the hexadecimal hash of the token."""
        ...

    def sources(self) -> Sequence[SourceState]:
        """What every source has sent."""
        ...

    def rules(self) -> Sequence[RuleState]:
        """What is known of every rule."""
        ...

    def rule_text(self, rule: RuleState) -> str:
        """A rule as it stands in its file; empty if it is not at hand."""
        ...

    def disk(self) -> Sequence[Usage]:
        """How full the store is."""
        ...

    def facts(self) -> Mapping[str, str]:
        """What else Health says of store and node: name to words, in order."""
        ...

    def audit(self, by: str, action: str, about: str, now: datetime) -> None:
        """Keep what a person did: sign-ins, exports, settings; triage is kept by the store."""
        ...
