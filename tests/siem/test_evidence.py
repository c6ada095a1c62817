"""Evidence through the application: from a ring to the finding's page, with real dissectors."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from cityward import Analytic, Finding, Target
from collectors.packets.ring import Ring
from siem import config, evidence
from siem.actuators import actuators_of
from siem.store.embedded import NodeDb
from tests.collectors.packets.wire import chunk, datagram, segment

NOW = datetime.now(UTC)
READ = bytes.fromhex("000100000006010300000002")


def finding() -> Finding:
    return Finding(
        analytic=Analytic("a", "A", "rule", "1"),
        title="Modbus write, host is no writer",
        description="192.0.2.7 wrote.",
        severity="high",
        group=(("source.ip", "192.0.2.7"),),
        first_seen=NOW - timedelta(minutes=2),
        last_seen=NOW,
        events=(),
    )


@pytest.fixture
def db(tmp_path: Path) -> NodeDb:
    return NodeDb(tmp_path / "node.db", b"k" * 32, clock=lambda: NOW)


def found(db: NodeDb) -> str:
    (id,) = db.keep([finding()], NOW)
    return id


def test_an_entry_is_on_the_finding_once_and_says_so_in_its_history(db: NodeDb) -> None:
    id = found(db)
    tell = evidence.teller(db, lambda: NOW)
    entry = {"ref": "evidence/a.pcap", "kind": "pcap", "bytes": 7}

    tell(id, entry)
    tell(id, entry)
    tell(id, {**entry, "ref": "evidence/b.pcap"})
    tell("nobody", entry)
    after = db.get(id)

    assert after is not None
    assert [one["ref"] for one in after["cw.evidence"]] == ["evidence/a.pcap", "evidence/b.pcap"]
    assert after["finding.revision"] == 3
    assert [one["what"] for one in after["cw.history"]][1:] == [
        "evidence evidence/a.pcap",
        "evidence evidence/b.pcap",
    ]


def test_evidence_stays_when_the_finding_grows_and_has_a_bound(db: NodeDb) -> None:
    id = found(db)

    kept = [db.attach(id, {"ref": f"evidence/{n}.pcap"}, NOW) for n in range(52)]
    found(db)
    after = db.get(id)

    assert after is not None
    assert kept == [True] * 50 + [False] * 2
    assert len(after["cw.evidence"]) == 50


@pytest.mark.slow
def test_packets_of_a_finding_are_cut_hashed_dissected_and_named_on_it(
    db: NodeDb, tmp_path: Path
) -> None:
    ring = Ring(tmp_path / "ring" / "span")
    at = int((NOW - timedelta(minutes=1)).timestamp() * 1e9)
    meant = segment("192.0.2.7", 4000, "192.0.2.9", 502, data=READ)
    piece = chunk([(at, meant), (at + 1, datagram("192.0.2.8", 1, "192.0.2.9", 502))])
    ring.write(piece.data, piece.columns, NOW)
    settings = config.parse(
        {
            "state_dir": str(tmp_path),
            "operator": "op-port",
            "response": {"actuators": {"evidence": {"keep_days": 10}}},
        }
    )
    id = found(db)
    actuator = actuators_of(settings, tell=evidence.teller(db, lambda: NOW))["evidence"]

    (command,) = actuator.plan("copy", Target("ipv4_net", "192.0.2.7"), NOW)
    args = {"finding": id, "since": (NOW - timedelta(minutes=2)).isoformat()}
    for _ in range(2):
        actuator.apply(msgspec.structs.replace(command, key="run1-step1", args=args))
    after = db.get(id)

    assert after is not None
    (entry,) = after["cw.evidence"]
    packets = (tmp_path / entry["ref"]).read_bytes()
    assert packets[40:] == meant
    assert entry["sha256"] == hashlib.sha256(packets).hexdigest()
    assert (entry["kind"], entry["bytes"], entry["holder"]) == ("pcap", len(packets), "op-port")
    lines = (tmp_path / entry["ref"]).with_suffix(".scapy.jsonl").read_text().splitlines()
    assert '"name": "TCP"' in lines[0]
    assert actuator.probe(Target("ipv4_net", "192.0.2.7")).found["sha256"] == entry["sha256"]


def test_the_runner_of_a_node_tells_findings_of_their_evidence(db: NodeDb, tmp_path: Path) -> None:
    from siem.response import Shelf

    settings = config.parse(
        {"state_dir": str(tmp_path), "response": {"actuators": {"evidence": {}}}}
    )
    id = found(db)
    part = Shelf(settings, db, None)._actuators["evidence"]  # type: ignore[arg-type]

    (command,) = part.plan("copy", Target("ipv4_net", "192.0.2.7"), NOW)
    part.apply(msgspec.structs.replace(command, key="k", args={"finding": id}))
    after = db.get(id)

    assert after is not None
    assert [one["kind"] for one in after["cw.evidence"]] == ["pcap"]
