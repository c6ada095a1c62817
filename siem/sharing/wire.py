"""What node and hub put into envelopes and requests: the forms that both ends read.

Fields that a newer end adds are passed over by an older one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from siem.sharing.envelope import BEGIN
from siem.store.proposals import State, Why

ENROL = "/exchange/v1/enrol"
RENEW = "/exchange/v1/renew"
AUTHORITY = "/exchange/v1/authority"
"""The authority's certificate (PEM), for who has a token and compares it with its fingerprint."""
MESSAGES = "/exchange/v1/messages"
INBOX = "/exchange/v1/inbox"
MIRROR = "/exchange/v1/mirror"
"""What the hub holds of the asker."""
ACCESS = "/exchange/v1/access"
"""Who read what the asker shared."""

TOKEN_PREFIX = "cwo1."
"""How the token of an operator begins."""

Reason = Literal["error", "false_positive", "consent", "legal", "expired"]
"""Why something is taken back."""


class Enrolling(msgspec.Struct, frozen=True, kw_only=True):
    """Asked with a token that serves once, over a connection whose server is known."""

    token: str
    csr: str
    """PEM; its subject's common name is the operator."""
    signing_key: str
    """Ed25519, raw, in base64."""
    seq: int = 0
    """The last envelope in the node's ledger, and its hash: a hub that has less – a new one, or one
    that was restored – goes on behind it."""
    prev: str = BEGIN


class Enrolled(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub answers."""

    certificate: str
    """PEM, with its chain."""
    signing_key: str
    """The hub's: Ed25519, raw, in base64."""
    seq: int = 0
    """Last envelope that the hub took of this operator before; a node goes on behind it …"""
    prev: str = BEGIN
    """… and names its hash."""
    had: int | None = None
    """What the hub had before it went on behind the node: what came later it has to hear again."""


class Renewing(msgspec.Struct, frozen=True, kw_only=True):
    """Asked over mutual TLS with the certificate that runs out."""

    csr: str


class Renewed(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub answers."""

    certificate: str


class LostSource(msgspec.Struct, frozen=True):
    """A source of which nothing comes."""

    source: str
    what: str
    """In words: `no data`, `failed`."""
    since: datetime | None = None


class RunningClock(msgspec.Struct, frozen=True, kw_only=True):
    """A legal clock of an incident: which duty and by when, nothing of the case."""

    incident: str
    """Its number at the operator."""
    duty: str
    """In words: `NIS2 early warning, 24h`."""
    began: datetime
    due: datetime
    draft: str = ""
    """In words: `4 of 6 fields`."""


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a `heartbeat`; the receipt countersigns the ledger's head."""

    version: str = ""
    """Of the node's software."""
    rules: str = ""
    """Version of its rule set."""
    policy: str = ""
    """Content hash of its sharing policy; empty: nothing leaves."""
    mode: str = "normal"
    running: int = 0
    """Sources that run."""
    lost: tuple[LostSource, ...] = ()
    hears: tuple[str, ...] = ()
    """Types of envelopes that the node understands besides those that all do, see `ADDED`."""
    clocks: tuple[RunningClock, ...] = ()
    """Where the operator's settings tell the city of its legal clocks."""
    waiting: int = 0
    """Findings in the outbox."""
    lag_s: float = 0.0
    """How old the oldest of them is."""
    dropped: int = 0
    """Findings that were never sent, since the outbox was full."""
    ledger: int = 0
    """Number of the last envelope before this one …"""
    ledger_head: str = ""
    """… and the ledger's hash up to it."""


class Withdrawal(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a `withdraw`."""

    reason: Reason
    note: str = ""


def _text(length: int, pattern: str = r"\A[^\x00-\x1f\x7f]*\Z") -> msgspec.Meta:
    return msgspec.Meta(max_length=length, pattern=pattern)


ProposalId = Annotated[str, _text(32, r"\A[0-9a-f]{32}\Z")]


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a `proposal`: what the city would have an operator plan, which decides.

    The envelope names the campaign, until when it counts, and the operator's own shares that are
    meant; nothing in it is of another operator.
    """

    id: ProposalId
    operator: str
    """Whom it is for: what was said to one operator is nothing to another."""
    playbook: Annotated[str, _text(80, r"\A[\w][\w .,()/-]*\Z")]
    """By the name that it goes by there; how long and how it acts, the operator's own says."""
    action: Annotated[str, _text(200)]
    """What it does, in words."""
    indicator: Annotated[str, _text(200)] = ""
    """A join token that the operator has shared itself; empty: none is meant."""
    reason: Annotated[str, _text(500)]
    by: Annotated[str, _text(100)]
    """The person at the hub, or `hub`."""


class ProposalAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a `proposal_answer`: how it stands, and why by a word of a list."""

    proposal: ProposalId
    state: State
    why: Why = ""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The payload of a `sample`: events of a finding that was right, made nobody's.

    What its events may hold says `siem/sharing/samples.py`.
    """

    rule: Annotated[str, _text(36, r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
    """Of the shared library; its id is the same at every operator."""
    events: Annotated[tuple[dict[str, Any], ...], msgspec.Meta(min_length=1, max_length=20)]
    """The oldest first."""
    is_named: bool = False
    """Other operators may be told whose it is."""
    operator: Annotated[str, _text(64, r"\A([a-z0-9][a-z0-9_.-]{0,63})?\Z")] = ""
    """Only the hub says it: who released it, or a name that stands for them."""


class Held(msgspec.Struct, frozen=True):
    """One line of the mirror: a share of the asker, as the hub holds it."""

    share_id: str
    revision: int
    payload_sha256: str


class InboxLine(msgspec.Struct, frozen=True):
    """One line of the inbox: an envelope of the hub, and its place."""

    n: int
    signature: str
    """Base64."""
    data: str
    """The envelope's JSON, as it was signed."""
