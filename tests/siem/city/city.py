"""A hub for tests, and operators that speak to it: a chain of signed envelopes each."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from siem.city.authority import Operators
from siem.city.commons import Commons
from siem.city.exchange import Exchange
from siem.city.lease import Lease
from siem.city.sqlite import SqliteCommons
from siem.sharing.certificates import new_key
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
from siem.sharing.identity import public_text
from siem.sharing.wire import Heartbeat, Withdrawal
from siem.store.protocol import Document

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
FINDING: Mapping[str, Any] = {
    "finding.type": "detection",
    "finding.title": "External attacker scans",
    "finding.severity": "high",
    "finding.first_seen": "2026-03-01T11:00:00Z",
    "finding.last_seen": "2026-03-01T11:30:00Z",
    "finding.count": 12,
    "finding.mode": "exercise",
    "source.token": ["j:687:2f1c", "j:687:99aa"],
    "threat.technique.id": ["T0846"],
}


class Hub:
    """An exchange, on the SQLite home if no other is given; its clock is turned by hand."""

    def __init__(self, state: Path, now: datetime = NOW, commons: Commons | None = None) -> None:
        self.now = now
        self.state = state
        self.trail: list[str] = []
        self.beats: list[str] = []
        self.shares: list[Document] = []
        self.gone: list[str] = []
        self.commons: Commons = commons or SqliteCommons(state / "commons.db", clock=self.clock)
        self.operators = Operators(self.commons.records, state / "exchange", self.clock)
        self.operators.make()
        self.lease = Lease(self.commons.records, "hub", alone=True, ttl_s=3_600.0)
        self.lease.step()
        self.exchange = Exchange(
            self.commons, self.operators, self.lease, self.audit, self.clock, self
        )

    def another(self) -> Hub:
        """A second hub on the same state, which becomes the active one."""
        is_file = isinstance(self.commons, SqliteCommons)
        return Hub(self.state, self.now, None if is_file else self.commons)

    def clock(self) -> datetime:
        return self.now

    def audit(self, by: str, action: str, about: str, now: datetime) -> None:
        self.trail.append(f"{by}: {action}: {about}")

    def shared(self, document: Document) -> None:
        self.shares.append(document)

    def withdrawn(self, operator: str, share_ids: Sequence[str]) -> Mapping[str, Any]:
        self.gone += share_ids
        return {"campaigns": 0}

    def heard(self, operator: str, heartbeat: Heartbeat) -> None:
        self.beats.append(operator)

    def everything(self) -> list[Document]:
        return list(self.commons.scan(datetime(2000, 1, 1, tzinfo=UTC)))

    def enrolled(self, name: str) -> Node:
        node = Node(name)
        token = self.operators.add(name, "energy.electricity")
        self.operators.enrol(token, node.request, node.signing_key)
        return node


class Node:
    """An operator's end: what it sends next follows what it sent before."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.key = Ed25519PrivateKey.generate()
        self.signing_key = public_text(self.key.public_key())
        self.private, self.request = new_key(name)
        self.seq, self.hash = 0, BEGIN

    def envelope(self, **named: Any) -> Envelope:
        payload = named.pop("payload", dict(FINDING))
        said: dict[str, Any] = {
            "type": "share", "sent": NOW, "operator": self.name,
            "key_id": key_id(self.key.public_key()), "seq": self.seq + 1, "prev": self.hash,
            "share_id": str(uuid.uuid4()), "revision": 1, "policy": "p1", "rule": "external",
            "audiences": ("city-soc",), "tlp": "amber", "pap": "amber",
            "expires": NOW + timedelta(days=30), "payload": payload,
            "payload_sha256": payload_hash(payload),
        }  # fmt: skip
        return Envelope(**said | named)

    def sealed(self, envelope: Envelope) -> Signed:
        """Signed, and the one that the next follows."""
        signed = sign(envelope, self.key)
        self.seq, self.hash = envelope.seq, signed.hash
        return signed

    def share(self, **named: Any) -> Signed:
        return self.sealed(self.envelope(**named))

    def withdraw(self, share_id: str, **named: Any) -> Signed:
        said = msgspec.to_builtins(Withdrawal(reason="error"))
        return self.share(type="withdraw", share_id=share_id, revision=0, payload=said, **named)

    def beat(self, **said: Any) -> Signed:
        payload = msgspec.to_builtins(Heartbeat(**said))
        return self.share(type="heartbeat", share_id="", revision=0, payload=payload)


def receipt(answer: Signed, hub: Hub) -> Receipt:
    envelope = verified(answer, hub.operators.signing_key.public_key())
    return msgspec.convert(envelope.payload, Receipt)


def share_id(signed: Signed) -> str:
    return msgspec.json.decode(signed.data, type=Envelope).share_id
