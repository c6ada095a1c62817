"""How fast a node's documents get into its cluster, beside bodies that were made before.

The plain run posts the same documents, encoded and put together beforehand, over two connections of
the standard library, and reads no more of the answer than its length. What a node needs on top –
ids, encoding, the fate of each item – is the difference. Both alternate: a warm server helps
neither.
"""

from __future__ import annotations

import base64
import http.client
import ssl
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from cityward import InputError
from siem.clusters import connect, password_of
from siem.config import Cluster as Said
from siem.store.bulk import FLIGHTS, BulkWriter, Chunk, chunked
from siem.store.cluster import stored
from siem.store.dead_letters import DeadLetters
from siem.store.mirror import event_write
from siem.store.protocol import Document
from siem.store.protocol_cluster import Cluster, Write
from siem.store.templates import Names, prepare

DOCUMENTS = 20_000
ROUNDS = 3
BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


def rows(said: Said, documents: int = DOCUMENTS, rounds: int = ROUNDS) -> Iterator[dict[str, Any]]:
    """One row for events and one for findings.

    Args:
        said: The cluster, under a prefix of its own.
        documents: Of each kind and round.
        rounds: The median counts.
    """
    own = msgspec.structs.replace(said, prefix=f"{said.prefix}-bench-{uuid.uuid4().hex[:8]}")
    cluster, names = connect(own), Names(own.prefix, "op-bench")
    prepare(cluster, names)
    try:
        lines = [msgspec.json.encode(_event(number)) for number in range(documents)]
        yield _row(
            "events",
            own,
            cluster,
            names.events_in("2026.03"),
            lambda: ((None, event_write(line, names)) for line in lines),
            documents,
            rounds,
        )
        findings = [_finding(number) for number in range(documents // 4)]
        yield _row(
            "findings",
            own,
            cluster,
            names.findings_in(BEGAN),
            lambda: ((None, _finding_write(one, names)) for one in findings),
            len(findings),
            rounds,
        )
    finally:
        cluster.delete_indices(cluster.indices(f"{own.prefix}-*"))
        for name in names.templates():
            cluster.request("DELETE", f"/_index_template/{name}")
        cluster.close()


def _row(
    what: str,
    said: Said,
    cluster: Cluster,
    index: str,
    writes: Callable[[], Iterator[tuple[None, bytes]]],
    documents: int,
    rounds: int,
) -> dict[str, Any]:
    bodies = [b"".join(some) for _, some in chunked(writes(), None)]
    plain: list[float] = []
    ours: list[float] = []
    for number in range(rounds + 1):
        one = _timed(cluster, index, documents, lambda: _post(said, bodies))
        other = _timed(cluster, index, documents, lambda: _write(cluster, chunked(writes(), None)))
        if number:  # the first round warms up
            plain.append(documents / one)
            ours.append(documents / other)
    return {
        "documents": what,
        "count": documents,
        "bytes_each": sum(map(len, bodies)) // documents,
        "per_s": round(statistics.median(ours)),
        "plain_per_s": round(statistics.median(plain)),
        "share": round(statistics.median(a / b for a, b in zip(ours, plain, strict=True)), 2),
    }


def _timed(cluster: Cluster, index: str, documents: int, write: Callable[[], None]) -> float:
    cluster.create_index(index)
    began_s = time.perf_counter()
    write()
    took_s = time.perf_counter() - began_s
    cluster.refresh(index)
    if (found := cluster.count(index, {"match_all": {}})) != documents:
        raise InputError(f"{found} documents arrived of {documents}", index, "Look at its log.")
    cluster.delete_indices([index])
    return took_s


def _write(cluster: Cluster, chunks: Iterator[Chunk[None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        dead = DeadLetters(Path(folder) / "dead.ndjson")
        for _ in BulkWriter(cluster, dead, threading.Event()).flow(chunks):
            pass


def _post(said: Said, bodies: Sequence[bytes]) -> None:
    """As many connections as the writer has requests on their way, each with its share."""
    threads = [
        threading.Thread(target=_post_some, args=(said, bodies[number::FLIGHTS]))
        for number in range(FLIGHTS)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


def _post_some(said: Said, bodies: Sequence[bytes]) -> None:
    address = urlsplit(said.urls[0])
    host, port = address.hostname or "", address.port or 9_200
    headers = {"Content-Type": "application/x-ndjson"}
    if said.user:
        login = f"{said.user}:{password_of(said)}".encode()
        headers["Authorization"] = "Basic " + base64.b64encode(login).decode()
    connection: http.client.HTTPConnection
    if address.scheme == "https":
        context = ssl.create_default_context(cafile=said.ca_file or None)
        connection = http.client.HTTPSConnection(host, port, context=context)
    else:
        connection = http.client.HTTPConnection(host, port)
    for body in bodies:
        connection.request("POST", "/_bulk?filter_path=errors", body, headers)
        connection.getresponse().read()
    connection.close()


def _event(number: int) -> Document:
    at = BEGAN + timedelta(milliseconds=number)
    return {
        "@timestamp": at,
        "event.kind": "event",
        "event.category": ["process_control"],
        "event.action": "modbus_write_register",
        "event.outcome": "success",
        "event.dataset": "packets",
        "event.ingested": at,
        "source.ip": f"192.0.2.{number % 250}",
        "source.port": 40_000 + number % 20_000,
        "destination.ip": f"198.51.100.{number % 40}",
        "destination.port": 502,
        "network.protocol": "modbus",
        "network.transport": "tcp",
        "network.community_id": f"1:{number:027d}=",
        "ot.operation": "write",
        "ot.is_command": True,
        "ot.function.code": "6",
        "ot.function.name": "write_single_register",
        "ot.point.address": number % 1_000,
        "ot.value": number / 7,
        "ot.link_id": f"{number:016x}",
        "cw.operator": "op-bench",
        "cw.sector": "energy.electricity",
        "cw.domain": ["cyber"],
        "cw.logsource.product": "modbus",
        "cw.record.source": "wire",
        "cw.record.place": str(number),
        "cw.record.number": 0,
        "cw.vendor": {"transaction": number},
    }


def _finding(number: int) -> Document:
    at = BEGAN + timedelta(seconds=number)
    return {
        "finding.id": str(uuid.UUID(int=number)),
        "finding.revision": 1,
        "finding.type": "detection",
        "finding.title": "A register was written by a machine that never wrote one",
        "finding.description": f"192.0.2.{number % 250} wrote register {number} of rtu-7.",
        "finding.status": "new",
        "finding.verdict": "unknown",
        "finding.severity": "high",
        "finding.risk": 75,
        "finding.confidence": 0.7,
        "finding.first_seen": at,
        "finding.last_seen": at,
        "finding.count": 1,
        "finding.created": at,
        "finding.modified": at,
        "rule.id": "8b5db9da-5732-4afb-9b5b-4a1a3b8a2f0e",
        "rule.name": "A register was written by a machine that never wrote one",
        "threat.technique.id": ["T0855"],
        "source.ip": f"192.0.2.{number % 250}",
        "destination.ip": "198.51.100.7",
        "cw.operator": "op-bench",
        "cw.sector": "energy.electricity",
        "cw.asset.asset_id": "rtu-7",
        "cw.marking.tlp": "amber+strict",
    }


def _finding_write(finding: Document, names: Names) -> bytes:
    index, id = names.findings_in(finding["finding.first_seen"]), finding["finding.id"]
    encoded = msgspec.json.encode(stored(finding))
    return Write(index, id, encoded, finding["finding.revision"]).lines()
