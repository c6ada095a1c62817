"""sFlow 5: samples of packets and counters, byte by byte, and as tshark reads them."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest

from cityward import Event
from cityward.checks import check_collector, check_decoder, events_of, records
from collectors.flows.sflow import Samples, Sflow, is_sflow
from collectors.packets.decoders.netflow import SflowDatagrams
from tests.collectors.packets import wire
from tests.programs import PATIENCE_S, program

AGENT = bytes((192, 0, 2, 254))
OCTETS = 7_000_000_000


def part(kind: int, body: bytes) -> bytes:
    return struct.pack("!II", kind, len(body)) + body + bytes(-len(body) % 4)


def datagram(*samples: bytes, sequence: int = 1, uptime_ms: int = 90_000) -> bytes:
    head = struct.pack("!II4sIIII", 5, 1, AGENT, 0, sequence, uptime_ms, len(samples))
    return head + b"".join(samples)


def flow(*parts: bytes, came: int = 3, went: int = 4) -> bytes:
    head = struct.pack("!8I", 7, 3, 512, 10_240, 2, came, went, len(parts))
    return part(1, head + b"".join(parts))


def wide(*parts: bytes) -> bytes:
    head = struct.pack("!11I", 7, 0, 3, 512, 10_240, 2, 0, 70_000, 1, 256, len(parts))
    return part(3, head + b"".join(parts))


def sampled(frame: bytes, kind: int = 1) -> bytes:
    head = frame[:128]
    return part(1, struct.pack("!4I", kind, len(frame) + 4, 4, len(head)) + head)


def interface() -> bytes:
    numbers = (3, 6, 10**9, 1, 3, OCTETS, 1, 2, 3, 4, 5, 6, OCTETS * 2, 7, 8, 9, 10, 11, 0)
    return part(1, struct.pack("!IIQIIQ6IQ6I", *numbers))


def counters(*parts: bytes) -> bytes:
    return part(2, struct.pack("!III", 9, 3, len(parts)) + b"".join(parts))


SWITCH = part(1_001, struct.pack("!4I", 12, 0, 13, 0))
ROUTER = part(1_002, struct.pack("!I4sII", 1, bytes((10, 9, 8, 7)), 24, 16))
SYN = wire.ether(wire.four(wire.tcp(40_000, 502, wire.SYN), 6), tags=(12,))


def read(*messages: bytes) -> list[Event]:
    return [event for events in events_of(Sflow, records(messages)) for event in events]


def test_a_sampled_packet_has_the_fields_of_a_flow() -> None:
    (event,) = read(datagram(flow(sampled(SYN), SWITCH, ROUTER)))

    vendor = event.fields.pop("cw.vendor")
    assert event.fields == {
        "cw.time_source": "collector",
        "event.action": "packet_sampled",
        "event.category": ["network"],
        "event.dataset": "sflow.flow",
        "event.outcome": "unknown",
        "observer.ip": ["192.0.2.254"],
        "source.ip": "10.0.0.1",
        "source.port": 40_000,
        "source.mac": "02-00-00-00-00-02",
        "source.bytes": 62,
        "source.packets": 1,
        "destination.ip": "10.0.0.2",
        "destination.port": 502,
        "destination.mac": "02-00-00-00-00-01",
        "network.type": "ipv4",
        "network.transport": "tcp",
        "network.vlan.id": "12",
        "network.bytes": 62,
        "network.packets": 1,
        "network.community_id": "1:/+JBy2Q1zp1KkEWqSPgaxJf5R90=",
    }
    assert vendor["sampling"] == 512
    assert (vendor["in_if"], vendor["out_if"], vendor["tcp_flags"]) == (3, 4, 2)
    assert (vendor["next_hop"], vendor["src_mask"], vendor["post_vlan"]) == ("10.9.8.7", 24, 13)


def test_packets_are_read_through_tags_labels_extensions_and_fragments() -> None:
    label = struct.pack("!I", 16 << 12 | 1 << 8 | 64)
    frames = {
        "mpls": wire.ether(label + wire.four(wire.udp(1, 2), 17), 0x8847),
        "six": wire.ether(wire.six(b"\x11\0" + bytes(6) + wire.udp(3, 4), 0), 0x86DD),
        "icmp": wire.ether(wire.four(wire.icmp(8), 1)),
        "later": wire.ether(wire.four(wire.udp(5, 6), 17, fragment=100)),
        "arp": wire.ether(bytes(28), 0x0806),
    }
    found = {name: read(datagram(flow(sampled(one))))[0].fields for name, one in frames.items()}

    assert found["mpls"]["destination.port"] == 2
    assert found["six"]["source.ip"] == "2001:db8::1"
    assert found["six"]["destination.port"] == 4
    assert found["icmp"]["cw.vendor"]["icmp_type"] == 8
    assert "source.port" not in found["later"]
    assert found["later"]["cw.vendor"]["fragment"] is True
    assert found["arp"]["cw.vendor"]["ethertype"] == 0x0806


def test_wide_indexes_and_drops_are_kept_apart() -> None:
    (event,) = read(datagram(wide(sampled(SYN))))

    vendor = event.fields["cw.vendor"]
    assert (vendor["in_if"], vendor["out_if_dropped"]) == (70_000, 256)


def test_counters_become_metrics() -> None:
    (event, other) = read(datagram(counters(interface(), part(2_001, bytes(20)))))

    assert event.fields["event.kind"] == "metric"
    assert event.fields["event.action"] == "interface_counters"
    assert event.fields["cw.vendor"]["in_bytes"] == OCTETS
    assert event.fields["cw.vendor"]["out_errors"] == 11
    assert other.fields["cw.vendor"]["formats"] == "0:2001"


def test_a_gap_is_said_once_and_a_restart_or_a_late_datagram_is_none() -> None:
    one = flow(sampled(SYN))
    samples = Samples()
    steps = ((10, 0), (11, 1), (15, 2), (13, 2), (16, 3), (1, -80_000), (2, -79_000))
    found = [
        [
            fields["cw.vendor"]["lost"]
            for fields in samples.read(datagram(one, sequence=number, uptime_ms=90_000 + ms))
            if fields["event.action"] == "flows_lost"
        ]
        for number, ms in steps
    ]

    assert found == [[], [], [3], [], [], [], []]


def test_agents_that_somebody_makes_up_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.flows.sflow.AGENTS_MAX", 50)
    samples = Samples()
    for number in range(500):
        list(samples.read(struct.pack("!6II", 5, 1, number, 0, 1, 1, 0)))

    assert len(samples._heard) == 50


def test_what_is_cut_or_strange_is_said() -> None:
    cut = read(datagram(flow(sampled(SYN)))[:-30])
    strange = read(datagram(part(4_096 | 9, bytes(8))))
    missing = read(datagram(flow(sampled(SYN)[:-40])))

    assert [event.is_malformed for event in cut] == [True]
    assert strange[0].fields["cw.vendor"]["formats"] == "1:9"
    assert missing[0].fields["cw.vendor"]["records_missing"] == 1


def test_the_collector_and_the_decoder_keep_their_promises() -> None:
    good = [datagram(flow(sampled(SYN), SWITCH, ROUTER)), datagram(counters(interface()))]
    check_collector(Sflow, good, mutants_each=150)
    check_decoder(SflowDatagrams, [(True, one) for one in good], mutants_each=100)


def test_only_whole_datagrams_are_recognised() -> None:
    good = datagram(flow(sampled(SYN)), counters(interface()))

    assert is_sflow(good)
    assert not is_sflow(good[:-1])
    assert not is_sflow(good + bytes(4))
    assert not is_sflow(bytes(64))


@pytest.mark.slow
def test_tshark_reads_the_same(tmp_path: Path) -> None:
    tshark = program("tshark")
    good = datagram(flow(sampled(SYN), SWITCH, ROUTER), wide(sampled(SYN)), counters(interface()))
    frame = wire.ether(wire.four(wire.udp(40_000, 6343, good), 17))
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1)
    capture = tmp_path / "sflow.pcap"
    capture.write_bytes(head + struct.pack("<IIII", 1, 0, len(frame), len(frame)) + frame)
    names = ("sampling_rate", "sample_pool", "dropped_packets")
    columns = [f"sflow.flow_sample.{name}" for name in names]
    columns += ["sflow_245.ifinoct", "sflow_245.ifouterr", "sflow_245.vlan.in"]
    columns += ["sflow_245.nexthop", "sflow_245.header.frame_length", "tcp.dstport"]
    out = subprocess.run(
        [tshark, "-r", str(capture), "-T", "json", *(f"-e{name}" for name in columns)],
        check=True, capture_output=True, timeout=PATIENCE_S,
    ).stdout  # fmt: skip

    (theirs,) = (packet["_source"]["layers"] for packet in json.loads(out))
    first, second, metric = (event.fields for event in read(good))
    flows = (first["cw.vendor"], second["cw.vendor"])
    assert theirs["sflow.flow_sample.sampling_rate"] == [str(one["sampling"]) for one in flows]
    assert theirs["sflow.flow_sample.sample_pool"] == [str(one["pool"]) for one in flows]
    assert theirs["sflow.flow_sample.dropped_packets"] == [str(one["drops"]) for one in flows]
    assert theirs["sflow_245.ifinoct"] == [str(metric["cw.vendor"]["in_bytes"])]
    assert theirs["sflow_245.ifouterr"] == [str(metric["cw.vendor"]["out_errors"])]
    assert theirs["sflow_245.vlan.in"] == [first["network.vlan.id"]]
    assert theirs["sflow_245.nexthop"] == [flows[0]["next_hop"]]
    assert theirs["sflow_245.header.frame_length"] == [str(first["source.bytes"])] * 2
    assert theirs["tcp.dstport"] == [str(first["destination.port"])] * 2
