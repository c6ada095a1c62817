"""Fakes for the tests of the operator's end: a hub, a policy, findings; none is the real thing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cityward.event import Event, LogSource, Record
from cityward.finding import Analytic, Check, Finding, Severity, Why
from siem.sharing.envelope import (
    BEGIN,
    Envelope,
    Receipt,
    Signed,
    key_id,
    payload_hash,
    sign,
    verified,
)
from siem.sharing.outbox import Outbox
from siem.sharing.policy import Samples
from siem.sharing.share import Approval, Share, share_id
from siem.store.embedded import NodeDb
from siem.store.protocol import Document

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
KEY = b"k" * 32
OPERATOR = "op-metro"


class Clock:
    """Time that a test turns."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class FakePolicy:
    """Lets out whatever a test says, by rule `all`."""

    def __init__(
        self,
        hash: str = "p1",
        *,
        approval: Approval = "auto",
        audiences: tuple[str, ...] = ("city-soc",),
        lets_out: Callable[[Document], bool] = lambda document: True,
        names: tuple[str, ...] = ("finding.severity", "finding.first_seen", "finding.count"),
    ) -> None:
        self.audiences, self.answers = audiences, "reason"
        self.samples = Samples()
        self.hash, self.approval, self.lets_out, self.names = hash, approval, lets_out, names

    def share(self, document: Document, now: datetime) -> Share | None:
        if not self.lets_out(document):
            return None
        return Share(
            share_id=share_id(document["finding.id"]),
            finding=document["finding.id"],
            revision=document["finding.revision"],
            policy=self.hash,
            rule="all",
            audiences=self.audiences,
            tlp="green",
            pap="amber",
            expires=document["finding.last_seen"] + timedelta(days=900),
            payload={name: document[name] for name in self.names},
            kept=(),
            approval=self.approval,
        )


class FakeHub:
    """Takes envelopes as the protocol says, in memory."""

    def __init__(self, node: Ed25519PrivateKey, key: Ed25519PrivateKey | None = None) -> None:
        self.key = key or Ed25519PrivateKey.generate()
        self.public = self.key.public_key()
        self.node = node.public_key()
        self.seq, self.hash = 0, BEGIN
        self.taken: list[Envelope] = []
        self.receipts: dict[tuple[str, str, int, int], Signed] = {}
        self.documents: dict[str, Envelope] = {}

    def take(self, signed: Signed) -> Signed:
        said = verified(signed, self.node)
        known = (said.share_id, said.payload_sha256, said.revision, said.seq)
        if known in self.receipts:
            return self.receipts[known]
        if (said.seq, said.prev) != (self.seq + 1, self.hash):
            raise ValueError(f"{said.seq} does not follow {self.seq}")
        self.taken.append(said)
        if said.type in ("share", "update"):
            self.documents[said.share_id] = said
        elif said.type == "withdraw":
            self.documents.pop(said.share_id, None)
        self.seq, self.hash = said.seq, signed.hash
        self.receipts[known] = self.receipt(said, signed.hash)
        return self.receipts[known]

    def receipt(self, said: Envelope, hash: str, **changes: Any) -> Signed:
        receipt = Receipt(
            share_id=said.share_id,
            payload_sha256=said.payload_sha256,
            operator=said.operator,
            seq=said.seq,
            hash=hash,
            position=len(self.taken),
        )
        receipt = msgspec.structs.replace(receipt, **changes)
        return self.says("receipt", msgspec.to_builtins(receipt), share_id=said.share_id)

    def says(self, type: Any, payload: dict[str, Any], share_id: str = "") -> Signed:
        return sign(
            Envelope(
                type=type,
                sent=NOON,
                operator="city",
                key_id=key_id(self.public),
                seq=1,
                prev=BEGIN,
                share_id=share_id,
                payload=payload,
                payload_sha256=payload_hash(payload),
            ),
            self.key,
        )


def key_from(name: str) -> Ed25519PrivateKey:
    """The same key in every process."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


RULE = Analytic(id="r-1", name="guessed", kind="rule", version="1", level="high")


def match(number: int, severity: Severity = "high", at: datetime = NOON) -> Finding:
    """A match; equal numbers become one finding."""
    fields = {"source.ip": f"192.0.2.{number % 250}", "event.ingested": at}
    event = Event(at, LogSource(service="sshd"), fields, Record(b"", "auth", number, at))
    return Finding(
        analytic=RULE,
        title=f"finding {number}",
        description="somebody tried",
        severity=severity,
        group=(("number", str(number)),),
        first_seen=at,
        last_seen=at,
        events=(event,),
        why=Why("selection", (Check("selection", "event.outcome", "is failure", "f", True),)),
    )


class Node:
    """A node's store with an outbox, a hub that is a fake, and a clock."""

    def __init__(self, folder: Path, policy: FakePolicy | None = None) -> None:
        self.clock = Clock()
        self.key = key_from("node")
        self.policy: FakePolicy | None = policy or FakePolicy()
        self.db = NodeDb(folder / "node.db", KEY, clock=self.clock)
        self.hub = FakeHub(self.key)
        self.batch = 0
        self.outbox = self.again()

    def again(self) -> Outbox:
        """An outbox as after a restart."""
        self.outbox = Outbox(
            self.db.outgoing, OPERATOR, self.key, lambda: self.policy, clock=self.clock
        )
        return self.outbox

    def find(self, *matches: Finding) -> list[str]:
        """Findings are kept; their share ids."""
        self.batch += 1
        return [share_id(one) for one in self.db.keep(matches, self.batch, now=self.clock())]

    def send(self, most: int = 1_000) -> list[Envelope]:
        """Send what is due; what the hub took, but for heartbeats."""
        before = len(self.hub.taken)
        while self.outbox.offer():
            pass
        for _ in range(most):
            signed = self.outbox.next()
            if signed is None:
                break
            self.outbox.receipted(self.hub.take(signed), self.hub.public)
        return [one for one in self.hub.taken[before:] if one.type != "heartbeat"]
