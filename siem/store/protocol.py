"""What a store must do; homes fulfil it (`events.py`, `embedded.py`, later the clusters)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

import msgspec

from cityward.asset import Asset
from cityward.errors import InputError

Document = dict[str, Any]
"""One stored event or finding: flat schema names, `@timestamp` (event) as an aware datetime."""

TIME_MIN = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
TIME_MAX = datetime.fromisoformat("9999-01-01T00:00:00+00:00")


class Range(msgspec.Struct, frozen=True):
    """A span of event time, start included, end not."""

    since: datetime = TIME_MIN
    until: datetime = TIME_MAX


class Page(msgspec.Struct, frozen=True):
    """Some rows of a list and how many there are in all."""

    rows: Sequence[Document]
    total: int
    unread: tuple[str, ...] = ()
    """Files that should have been looked at and cannot be read, with the reason."""


class Change(msgspec.Struct, frozen=True):
    """What a person changes about findings; None leaves it as it is."""

    status: str | None = None
    verdict: str | None = None
    assignee: str | None = None
    """Name of a person; empty string: nobody."""
    suppressed_until: datetime | None = None
    comment: str = ""
    """Reason or comment, kept in the history."""


class Events(Protocol):
    """The events of an operator, newest first; a query is text of the query bar."""

    def search(self, query: str, span: Range, limit: int = 50, offset: int = 0) -> Page:
        """Matching events, newest first."""
        ...

    def get(self, event_id: str, near: datetime | None = None) -> Document | None:
        """One event; `near` is its time, where it is known: it saves reading."""
        ...

    def histogram(
        self, query: str, span: Range, buckets: int = 96
    ) -> Sequence[tuple[datetime, int]]:
        """Start of each bucket and its count; empty if nothing is in the range."""
        ...

    def top_values(
        self, query: str, span: Range, field: str, limit: int = 10
    ) -> tuple[Sequence[tuple[str, int]], int]:
        """Most frequent values with their counts, and how many matching events have the field."""
        ...

    def fields(self, query: str, span: Range) -> Sequence[tuple[str, int]]:
        """Fields that matching events have, with counts, most frequent first."""
        ...


class Findings(Protocol):
    """The findings of an operator; a query is text of the query bar."""

    def search(
        self,
        query: str,
        span: Range,
        sort: str = "-finding.risk",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Matching findings; `sort` is a field name, `-` before it for descending."""
        ...

    def groups(
        self,
        query: str,
        span: Range,
        sort: str = "-finding.risk",
        limit: int = 50,
        offset: int = 0,
    ) -> Page:
        """Findings grouped by rule and asset.

        Rows have `group` (opaque id), `rule.id`, `finding.title`, `cw.asset.asset_id`,
        `cw.asset.zone`, `finding.severity` (worst), `finding.risk` (highest), `finding.status`
        (set), `findings` (how many), `finding.count` (sum), `finding.first_seen`, `.last_seen`,
        `assignee`, `marks` (`grows`, `came back`, `exercise`, `suppressed`), `hours`
        (24 counts of the last 24 h before the end of the range).
        """
        ...

    def members(self, group: str, query: str, span: Range, limit: int = 50) -> Page:
        """Findings of one group, newest first."""
        ...

    def get(self, finding_id: str) -> Document | None:
        """One finding, whole."""
        ...

    def events_of(self, finding_id: str) -> Sequence[Document]:
        """Copies of the events that made it speak, newest first, at most 50."""
        ...

    def related(self, finding_id: str, within_s: float = 7200.0) -> Sequence[Document]:
        """Findings of the same asset or source address near in time."""
        ...

    def counts(self, query: str, span: Range) -> Mapping[str, int]:
        """How many by status, whatever status the query asks for."""
        ...

    def histogram(
        self, query: str, span: Range, buckets: int = 48
    ) -> Sequence[tuple[datetime, Mapping[str, int]]]:
        """Start of each bucket and counts by severity."""
        ...

    def change(
        self,
        ids: Sequence[str],
        change: Change,
        by: str,
        now: datetime,
        revisions: Mapping[str, int] | None = None,
    ) -> int:
        """Triage; raises the revision, writes history and audit; returns how many changed.

        The same act twice changes nothing the second time. `revisions` says which revision of a
        finding the person has seen: if one is another now, nothing changes (`Conflict`).
        """
        ...

    def undoable(self, by: str, now: datetime) -> int:
        """How many findings of a person's last triage can be given back as they were."""
        ...

    def undo(self, by: str, now: datetime) -> int:
        """Give them back; returns how many; those that changed meanwhile stay."""
        ...


Role = Literal["ciso", "engineer", "analyst", "approver", "peer", "authority", "administrator"]
ROLES: tuple[Role, ...] = (
    *("ciso", "engineer", "analyst", "approver"),
    *("peer", "authority", "administrator"),
)
"""The one that sees most of what happens comes first: there a person with several begins."""
NODE_ROLES: tuple[Role, ...] = ("engineer", "analyst", "approver", "administrator")
"""`approver`: a process owner, who says yes or no to what playbooks would do."""
HUB_ROLES: tuple[Role, ...] = ("ciso", "peer", "authority", "administrator")
"""`peer`: somebody of an operator, who sees what it has shared and what is for all operators."""
AUTHORITIES = ("prefecture", "police", "civil-protection", "csirt")
"""Audiences of those with the role `authority`."""

SCOPES = ("read", "triage", "respond", "tune", "admin")
"""What a token may do: read lists, change findings, start, approve and undo responses, change
assets and rules, people and tokens."""


class Person(msgspec.Struct, frozen=True):
    """Somebody who may sign in."""

    name: str
    roles: tuple[Role, ...]
    password_hash: str
    """Argon2id, as the library writes it."""
    disabled: bool = False
    one_time: bool = False
    """The password was given by somebody else, and has to be changed at the next sign-in."""
    epoch: int = 0
    """Raised to end all sessions of before."""
    seen: datetime | None = None
    """When they came in last."""
    audience: str = ""
    """Of an authority: which one; of a peer: the operator it belongs to; otherwise empty."""

    @property
    def role(self) -> Role:
        """The strongest of the roles."""
        return next((one for one in ROLES if one in self.roles), "analyst")


class Token(msgspec.Struct, frozen=True):
    """A token for programs, without the token itself."""

    id: str
    """First 12 digits of its hash: it names the token and opens nothing."""
    person: str
    """Whose rights it has, as far as its scopes go."""
    name: str
    scopes: tuple[str, ...]
    created: datetime | None = None
    expires: datetime | None = None
    """None: it does not end by itself."""
    used: datetime | None = None
    """When it was used last, to the minute."""
    revoked: datetime | None = None


class SavedView(msgspec.Struct, frozen=True):
    """A link of the console that somebody has named."""

    number: int
    name: str
    link: str
    owner: str
    shared: bool = False
    """Everybody of the operator sees it."""


OFF_IN_SETTINGS = "off in the settings (rules.off)"
"""Why a rule is off that people cannot switch on in the console."""


class Switch(msgspec.Struct, frozen=True):
    """A rule that somebody switched off, or on again."""

    rule: str
    is_on: bool
    reason: str
    by: str
    time: datetime


class Conflict(InputError):  # noqa: N818 – a state, not a fault
    """What was to be changed has changed meanwhile."""


class SourceState(msgspec.Struct, frozen=True):
    """What a source has sent so far, for Health."""

    source: str
    collector: str
    records: int = 0
    events: int = 0
    rejected: int = 0
    malformed: int = 0
    lost: int = 0
    cut: int = 0
    """Records of which only the beginning was taken, since they were too long."""
    late: int = 0
    last_event: datetime | None = None
    """Time of the newest event."""
    last_received: datetime | None = None
    rate_per_min: float = 0.0
    """Events a minute over the last five minutes."""
    lag_s: float = 0.0
    """Time of receipt minus event time, newest batch."""
    state: str = "waiting"
    """`waiting`, `running`, `ended`, `failed`."""
    error: str = ""
    sample: str = ""
    """The newest record that could not be read, shortened."""


LOSSES = {
    "late": ("event", "too late for its window"),
    "ungrouped": ("event", "without a field by which it is grouped"),
    "evicted": ("group", "gone for want of room"),
    "cut": ("event", "cut from a full window"),
}
"""What a correlation may lose: of what, and how it is told."""


class RuleState(msgspec.Struct, frozen=True):
    """What the node knows of a rule, for the Rules page."""

    id: str
    title: str
    level: str
    state: str
    """`on`, `not evaluated`, `refused`."""
    reason: str = ""
    """Why it is not evaluated: `needs %ot_writers%`, file and line of the fault."""
    file: str = ""
    kind: str = "rule"
    logsource: str = ""
    techniques: Sequence[str] = ()
    tactics: Sequence[str] = ()
    author: str = ""
    license: str = ""
    status: str = ""
    description: str = ""
    falsepositives: Sequence[str] = ()
    evaluated: int = 0
    """Events that its log source brought."""
    matches: int = 0
    arriving: bool = False
    """True if its log source has brought an event since the start."""
    never_seen: Sequence[str] = ()
    """Fields it looks at that no event had since the start."""
    share: float = 0.0
    """Part of the time of all rules that it takes, sampled."""
    heavy: bool = False
    """True if that is more than a quarter, while rules take a tenth of a processor or more."""
    canary_at: datetime | None = None
    """When it was last shown a sample that it must find; None: it has none, or not yet."""
    canary_found: bool = False
    """Whether it found it."""
    faults: int = 0
    """Events on which it failed; it was passed over there."""
    lost: Mapping[str, int] = {}
    """Correlations: what did not count, by reason (`LOSSES`)."""
    text: str = ""
    """The document as it stands in its file."""

    @property
    def losses(self) -> list[str]:
        """What a correlation lost, in words."""
        return [_loss(name, count) for name, count in self.lost.items()]

    @property
    def remarks(self) -> list[str]:
        """What whoever counts on it has to know, in words; nothing of one that is well."""
        if self.reason or self.state != "on":
            return [self.reason or self.state]
        return [*self._weight(), *self._silence(), *self.troubles]

    @property
    def troubles(self) -> list[str]:
        """What keeps it from finding what it should, in words."""
        return [*self._troubles()] if self.state == "on" else []

    def _weight(self) -> Iterator[str]:
        if self.heavy:
            yield f"takes {self.share:.0%} of the time of all rules"

    def _silence(self) -> Iterator[str]:
        if not self.arriving and self.kind != "filter":
            since = "since the rules were read last" if self.evaluated else "yet"
            yield f"nothing has arrived for it {since}"

    def _troubles(self) -> Iterator[str]:
        if self.faults:
            yield f"failed on {_many(self.faults, 'event')}, and was passed over there"
        if self.canary_at and not self.canary_found:
            yield "did not find the sample that it must find"
        if self.never_seen:
            yield f"no event had {', '.join(self.never_seen)}"
        for name, count in self.lost.items():
            if name != "ungrouped" or count == self.evaluated:  # that some have no group is usual
                yield _loss(name, count)


def _loss(name: str, count: int) -> str:
    of, how = LOSSES[name]
    return f"{_many(count, of)} {how}"


def _many(count: int, of: str) -> str:
    return f"{count:,} {of if count == 1 else of + 's'}"


# ---- Inventory

AssetState = Literal["observed", "approved", "retired"]
Origin = Literal["learnt", "person", "settings"]
Mode = Literal["normal", "maintenance", "exercise", "test"]


class Observed(msgspec.Struct, gc=False):
    """What events have said of an asset; the learner of the path changes it as they come."""

    id: str
    first_seen: datetime
    last_seen: datetime
    addresses: list[str] = []
    names: list[str] = []
    """Names it gave itself: DHCP, mDNS, LLDP, identity of a controller."""
    vendor: str = ""
    model: str = ""
    firmware: str = ""
    zone: str = ""
    speaks: list[str] = []
    """Protocols, each with its part: `modbus server`, `iec104 client`."""
    words: list[str] = []
    """Functions and actions of control protocols, as the events name them."""
    peers: list[str] = []
    writers: list[str] = []
    """Addresses that sent it a command."""


class Conduit(msgspec.Struct, gc=False):
    """Traffic between two zones, by protocol and port.

    References:
        IEC 62443-3-2, zones and conduits.
    """

    id: str
    source: str
    """Zone that starts it."""
    destination: str
    protocol: str
    port: int
    first_seen: datetime
    last_seen: datetime
    state: AssetState = "observed"


class Learnt(msgspec.Struct, frozen=True):
    """What the path has learnt since it last said so; commits with the checkpoint."""

    assets: Sequence[Observed] = ()
    conduits: Sequence[Conduit] = ()
    numbers: Mapping[str, int] = {}
    """Counters and times of the learning, by name."""


class AssetRow(msgspec.Struct, frozen=True):
    """One asset as people see it: what they said of it, and what was seen."""

    asset: Asset
    state: AssetState
    origin: Origin
    seen: Observed | None = None
    aliases: tuple[str, ...] = ()
    """Ids that were merged into it."""
    history: tuple[Mapping[str, str], ...] = ()
    """Who did what when and why, oldest first: `time`, `by`, `what`, `why`."""
    findings: int = 0
    """Open findings about it."""

    @property
    def is_back(self) -> bool:
        """Retired, and seen since."""
        retired = max((one["time"] for one in self.history if one["what"] == "retired"), default="")
        return bool(
            self.state == "retired" and self.seen and self.seen.last_seen.isoformat() > retired
        )


class ZoneRow(msgspec.Struct, frozen=True):
    """A zone as the settings declare it."""

    id: str
    type: str
    purdue: float | None = None
    networks: tuple[str, ...] = ()


class ModeEntry(msgspec.Struct, frozen=True):
    """A span of the calendar in which another mode than the usual one holds."""

    since: datetime
    until: datetime
    mode: Mode
    site: str = ""
    zone: str = ""
    assets: tuple[str, ...] = ()
    reason: str = ""
    by: str = ""
    number: int = 0
    """Of the entry in the state; 0: it stands in the settings."""


class Assets(Protocol):
    """The inventory of an operator, as the console and the command see and change it."""

    def assets(self) -> Sequence[AssetRow]:
        """All that are known, in a fixed order."""
        ...

    def asset(self, name: str) -> AssetRow | None:
        """The asset with this id, alias or address."""
        ...

    def conduits(self) -> Sequence[Conduit]:
        """Traffic between zones that was seen."""
        ...

    def zones(self) -> Sequence[ZoneRow]:
        """Zones of the settings."""
        ...

    def learning(self) -> Mapping[str, int]:
        """Counters of the learning, by name; times as microseconds since 1970."""
        ...

    def approve(self, ids: Sequence[str], by: str, why: str, now: datetime, **said: object) -> int:
        """Approve assets, with what a person says of them; returns how many changed."""
        ...

    def correct(self, id: str, by: str, why: str, now: datetime, **said: object) -> int:
        """Change what is said of an asset."""
        ...

    def retire(self, ids: Sequence[str], by: str, why: str, now: datetime) -> int:
        """Say that assets are gone."""
        ...

    def merge(self, id: str, other: str, by: str, why: str, now: datetime) -> int:
        """Make two one: addresses are joined, the other id is an alias from now on."""
        ...

    def approve_conduits(self, ids: Sequence[str], by: str, why: str, now: datetime) -> int:
        """Approve traffic between zones."""
        ...
