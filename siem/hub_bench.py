"""What one hub takes: shared findings a second over the real channel, with signatures and receipts.

The hub is a process of its own; operators are threads here, each with one envelope on its way, as
nodes send. So with one operator the figure is the time of a round; with more it is what the hub
can do.
"""

from __future__ import annotations

import http.client
import multiprocessing
import resource
import socket
import ssl
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from siem.city.authority import FOLDER, Operators
from siem.city.cluster import Names
from siem.city.exchange import Exchange
from siem.city.lease import Lease
from siem.city.port import Limits, Port
from siem.clusters import connect
from siem.common_store import commons_of
from siem.config import HUB_OPERATOR, Cluster, Hub, Settings
from siem.node import now_utc
from siem.sharing.certificates import new_key
from siem.sharing.envelope import BEGIN, Envelope, key_id, payload_hash, sign
from siem.sharing.identity import known_by, public_text
from siem.sharing.wire import MESSAGES

SECONDS = 5.0
OPERATORS = (1, 4, 16)
UNLIMITED = Limits(operator_per_s=1e9, operator_burst=1e9, address_per_s=1e9, address_burst=1e9)


def rows(
    cluster: Cluster | None, operators: Sequence[int] = OPERATORS, seconds: float = SECONDS
) -> Iterator[dict[str, Any]]:
    """One row for each number of operators.

    Args:
        cluster: Where the common store is, under a prefix of its own; None: in a file.
        operators: How many send at once.
        seconds: How long each row is measured.
    """
    for count in operators:
        with tempfile.TemporaryDirectory() as folder, _apart(cluster) as own:
            settings = Settings(operator=HUB_OPERATOR, state_dir=folder, hub=Hub(), cluster=own)
            yield _row(settings, count, seconds)


@contextmanager
def _apart(cluster: Cluster | None) -> Iterator[Cluster | None]:
    """The same cluster with indices of its own, which are gone afterwards."""
    if cluster is None:
        yield None
        return
    prefix = f"{cluster.prefix}-bench-{uuid.uuid4().hex[:8]}"
    try:
        yield msgspec.structs.replace(cluster, prefix=prefix)
    finally:
        client = connect(cluster)
        client.delete_indices(client.indices(f"{prefix}-*"))
        for name in Names(prefix).templates():
            client.request("DELETE", f"/_index_template/{name}")
        client.close()


def _row(settings: Settings, count: int, seconds: float) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    hub = context.Process(target=_hub, args=(settings, theirs), daemon=True)
    hub.start()
    port = ours.recv()
    commons = commons_of(settings, now_utc)
    admitting = Operators(commons.records, settings.state_path / FOLDER, now_utc)
    senders = [_Sender(f"op-{n}", admitting, settings.state_path) for n in range(count)]
    commons.close()
    ours.send("begin")
    begun_s = time.monotonic()
    threads = [threading.Thread(target=one.run, args=(port, begun_s + seconds)) for one in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.monotonic() - begun_s
    ours.send("end")
    cpu_s, memory_mb = ours.recv()
    hub.join(10)
    times = sorted(one for sender in senders for one in sender.times_ms)
    return {
        "home": settings.cluster.kind if settings.cluster else "sqlite",
        "operators": count,
        "shares": len(times),
        "shares_per_s": round(len(times) / took_s),
        "median_ms": round(statistics.median(times), 2),
        "p95_ms": round(times[int(len(times) * 0.95)], 2),
        "hub_cpu_ms": round(cpu_s * 1_000 / len(times), 2),
        "hub_memory_mb": memory_mb,
    }


def _hub(settings: Settings, pipe: Connection) -> None:
    """The hub's process; it says what it used between the two words."""
    commons = commons_of(settings, now_utc)
    operators = Operators(commons.records, settings.state_path / FOLDER, now_utc)
    operators.make()
    lease = Lease(commons.records, "bench", alone=True, ttl_s=3_600.0)
    lease.step()
    exchange = Exchange(commons, operators, lease, lambda *_: None, now_utc)
    port = Port(exchange, socket.create_server(("127.0.0.1", 0)), ["localhost"], UNLIMITED)
    port.start()
    pipe.send(port.address[1])
    pipe.recv()
    before = resource.getrusage(resource.RUSAGE_SELF)
    pipe.recv()
    after = resource.getrusage(resource.RUSAGE_SELF)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    pipe.send((used_s, after.ru_maxrss // 1_024))
    port.stop()
    commons.close()


class _Sender:
    """An operator with one envelope on its way."""

    def __init__(self, name: str, operators: Operators, folder: Path) -> None:
        self.times_ms: list[float] = []
        self._name = name
        self._key = Ed25519PrivateKey.generate()
        key, request = new_key(name)
        token = operators.add(name)
        _, enrolled = operators.enrol(token, request, public_text(self._key.public_key()))
        file = folder / f"{name}.pem"
        file.write_bytes(key + enrolled.certificate.encode())
        self._context: ssl.SSLContext = known_by(operators.authority.certificate)
        self._context.load_cert_chain(file)

    def run(self, port: int, until_s: float) -> None:
        channel = http.client.HTTPSConnection("localhost", port, context=self._context)
        seq, before = 0, BEGIN
        while time.monotonic() < until_s:
            seq += 1
            signed = sign(self._envelope(seq, before), self._key)
            before = signed.hash
            begun_s = time.monotonic()
            channel.request("POST", MESSAGES, signed.lines())
            answer = channel.getresponse()
            body = answer.read()
            self.times_ms.append((time.monotonic() - begun_s) * 1_000)
            if answer.status != http.client.OK:
                raise RuntimeError(f"the hub refuses: {body.decode()}")
        channel.close()

    def _envelope(self, seq: int, before: str) -> Envelope:
        now = datetime.now(UTC)
        payload: dict[str, Any] = {
            "finding.type": "detection",
            "finding.title": "Remote Modbus write from outside",
            "finding.severity": "high",
            "finding.first_seen": now.isoformat(),
            "finding.last_seen": now.isoformat(),
            "finding.count": seq,
            "finding.mode": "exercise",
            "rule.id": "6f1f2c34-0000-4000-8000-000000000001",
            "source.token": [f"j:687:{uuid.uuid4().hex}" for _ in range(3)],
            "threat.technique.id": ["T0855", "T0836"],
            "cw.asset.type": "plc",
            "phys.location": "45.44,12.33",
        }
        return Envelope(
            type="share", sent=now, operator=self._name, key_id=key_id(self._key.public_key()),
            seq=seq, prev=before, share_id=str(uuid.uuid4()), revision=1, policy="bench",
            rule="external", audiences=("city-soc",), tlp="amber", pap="amber",
            expires=now + timedelta(days=30), payload=payload,
            payload_sha256=payload_hash(payload),
        )  # fmt: skip
