"""Traffic that another program builds: what scapy puts into a packet, the walk takes out of it."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import pytest

from collectors.packets.capture import CaptureReader
from collectors.packets.packets import Packets

PACKETS = 300


def _built(chance: random.Random) -> list[tuple[Any, dict[str, Any]]]:
    """Packets of every shape that the walk knows, each with the flow it must become."""
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
    from scapy.layers.l2 import GRE, Dot1Q, Ether

    found = []
    for number in range(PACKETS):
        six = chance.random() < 0.4
        source = f"2001:db8::{number + 1:x}" if six else f"192.0.2.{number % 250 + 1}"
        target = "2001:db8:1::9" if six else "198.51.100.9"
        sport, dport = 20_000 + number, chance.choice([80, 502, 2404, 47_808])
        kind = chance.choice(["tcp", "udp"])
        upper = (
            TCP(sport=sport, dport=dport, flags="S")
            if kind == "tcp"
            else UDP(sport=sport, dport=dport) / (b"x" * chance.randrange(40))
        )
        inner = IPv6(src=source, dst=target) if six else IP(src=source, dst=target)
        if six and chance.random() < 0.5:
            inner /= chance.choice([IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt()])
        packet = inner / upper
        if chance.random() < 0.2:
            packet = IP(src="203.0.113.1", dst="203.0.113.2") / GRE() / packet
        frame = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        for vlan in chance.choice([[], [7], [7, 9]]):
            frame /= Dot1Q(vlan=vlan)
        wanted = {
            "source.ip": source,
            "destination.ip": target,
            "source.port": sport,
            "destination.port": dport,
            "network.transport": kind,
        }
        found.append((frame / packet, wanted))
    echo = Ether() / IP(src="192.0.2.77", dst="192.0.2.78") / ICMP() / b"ping"
    found.append((echo, {"source.ip": "192.0.2.77", "network.transport": "icmp"}))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_scapy_builds_becomes_the_flows_that_it_meant(tmp_path: Path, seed: int) -> None:
    from scapy.utils import wrpcap

    built = _built(random.Random(seed))
    path = tmp_path / "built.pcap"
    wrpcap(str(path), [packet for packet, _ in built])
    collector = Packets({})

    flows = []
    for batch in CaptureReader(path, "built").read(None, threading.Event()):
        flows += collector(batch.records)
    flows += collector.end()

    by_frame = {int(flow.record.place): flow.fields for flow in flows}
    for frame, (_, wanted) in enumerate(built, 1):
        seen = {name: by_frame[frame].get(name) for name in wanted}
        assert seen == wanted, f"frame {frame}"
    assert len(flows) == len(built)
