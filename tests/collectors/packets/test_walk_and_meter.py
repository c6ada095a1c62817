"""Walk and meter against their plain twin, on real captures and on random packets."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from collectors.packets.capture import Chunk
from collectors.packets.flows import plain
from collectors.packets.meter import Meter
from collectors.packets.walk import METERED, REASONS, walk
from tests.collectors.packets.twin import Seen, TwinFlow, TwinMeter
from tests.collectors.packets.wire import (
    ACK,
    FIN,
    RST,
    SYN,
    T0,
    Packet,
    chunk,
    chunks,
    ether,
    four,
    icmp,
    segment,
    six,
    tcp,
    udp,
)

CAPTURES = [
    "energy/modbus_icsnpp_example.pcap",
    "energy/modbus_quickdraw_attacks_1.pcap",
    "energy/modbus_quickdraw_attacks_2.pcap",
    "energy/modbus_umas_modicon_attacks.pcap",
    "energy/dnp3_icsnpp_example.pcap",
    "energy/dnp3_quickdraw_attacks_1.pcap",
    "energy/dnp3_request_flood.pcap",
    "energy/iec104_wattson_normal.pcapng",
    "energy/iec104_wattson_replay_9clones.pcapng",
    "energy/iec104_control_commands.pcap",
    "energy/iec61850_goose_sample.pcap",
    "energy/iec61850_mms_and_goose.pcap",
    "energy/c37118_pmu_tcp.pcap",
    "energy/s7comm_snap7_read_write_stop_download.pcap",
    "energy/opcua_open62541_session.pcap",
    "energy/hartip_session.pcap",
    "energy/dlms_meter.pcap",
    "energy/triton_tristation_malware.pcap",
    "port/enip_quickdraw_reboot_restart.pcap",
    "port/enip_cip_icsnpp_example.pcap",
    "port/profinet_dcp_change_ip.pcap",
    "port/omron_fins.pcap",
    "port/atg_fuel_tank_gauge.pcap",
    "transport/genisys_rail_signalling.pcap",
    "transport/trdp_train_bus.pcapng",
    "transport/snmp_v2c_requests.pcap",
    "city/rtsp_camera_streams.pcap",
    "city/bacnet_all_services.pcap",
    "city/bacnet_quickdraw_recon.pcap",
    "city/knx_ip.pcapng",
    "city/coap_mqtt.pcap",
    "city/mqtt_zeek.pcap",
    "city/mqtt_cleartext_credentials.pcap",
    "city/mqtt_publish_without_connect.pcap",
    "city/iot_botnet_telnet_scan.pcap",
    "network/ssh_bruteforce_nmap.pcap",
    "network/arp_scan.pcap",
    "network/syn_scan.pcap",
    "network/web_sql_injection.pcap",
    "network/log4shell.pcap",
    "network/dns_tunnel_iodine.pcap",
    "network/ftp_bruteforce.pcap",
    "network/netflow9_capture.pcap",
]


def as_seen(piece: Chunk) -> list[Seen]:
    """What the walk says of each packet, in the words of the twin."""
    found, data = walk(piece), np.frombuffer(piece.data, np.uint8)
    rows = []
    for row, reason in enumerate(found.reason.tolist()):
        if reason != METERED:
            rows.append(Seen(reason))
            continue
        family, l3 = int(found.family[row]), int(found.l3[row])
        offset, size = {4: (12, 4), 6: (8, 16), 2: (0, 6)}[family]
        ends = bytes(data[l3 + offset : l3 + offset + 2 * size])
        one, two = ends[:size], ends[size:]
        if family == 2:
            one, two = two, one
        at, length = int(found.payload[row]), int(found.length[row])
        is_tcp = family != 2 and found.protocol[row] == 6
        rows.append(
            Seen(
                reason, family, int(found.protocol[row]), int(found.vlan[row]),
                int(found.bytes[row]), one, two, int(found.sport[row]), int(found.dport[row]),
                int(found.state[row]), int(found.seq[row]) if is_tcp else 0,
                piece.data[at : at + length] if length else b"",
            )
        )  # fmt: skip
    return rows


def as_flows(meter: Meter) -> list[TwinFlow]:
    ended = meter.take_ended()
    if ended is None:
        return []
    found = []
    for flow in plain(ended):
        turn = -1 if flow.turned else 1
        size = {4: 4, 6: 16, 2: 6}[flow.family]
        flags = (flow.flags & 0xFF, flow.flags >> 8)[::turn]
        found.append(
            TwinFlow(
                flow.first_frame, flow.reports, flow.first, flow.start, flow.last,
                tuple(flow.packets[::turn]), tuple(flow.octets[::turn]), flags,
                flow.addresses[:size], flow.addresses[16 : 16 + size], flow.sport, flow.dport,
                flow.reason,
            )
        )  # fmt: skip
    return found


def differences(pieces: Sequence[Chunk]) -> list[object]:
    """Where walk and meter differ from the twin; empty if they agree."""
    meter, twin = Meter(), TwinMeter()
    found: list[object] = []
    flows: list[TwinFlow] = []
    for piece in pieces:
        for row, (mine, other) in enumerate(zip(as_seen(piece), twin.add(piece), strict=True)):
            if mine != (other if other.reason == METERED else Seen(other.reason)):
                found.append((piece.frame + row, mine, other))
        for _ in meter.add(piece, walk(piece)):
            pass
        flows += as_flows(meter)
    meter.end()
    twin.end()
    flows += as_flows(meter)
    ours, theirs = sorted(flows), sorted(twin.ended)
    return (
        found
        + [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
        + ([(len(ours), len(theirs))] if len(ours) != len(theirs) else [])
    )


def cut(pieces: Sequence[Chunk], size: int) -> Iterator[Chunk]:
    """The same packets in smaller chunks."""
    for piece in pieces:
        for at in range(0, len(piece), size):
            columns = piece.columns.some(slice(at, at + size))
            yield Chunk(piece.source, piece.data, columns, piece.frame + at, piece.received)


@pytest.mark.parametrize("name", CAPTURES)
def test_walk_and_meter_agree_with_their_twin_on_real_captures(data: Path, name: str) -> None:
    pieces = chunks(data / name)

    assert differences(pieces) == []
    assert differences(list(cut(pieces, 100))) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["energy/modbus_plant1_normal.pcap", "energy/iec61850_sampled_values.pcap"]
)
def test_walk_and_meter_agree_with_their_twin_on_large_captures(data: Path, name: str) -> None:
    pieces = chunks(data / name)

    assert differences(pieces) == []
    assert differences(list(cut(pieces, 1000))) == []


# Random packets --------------------------------------------------------------------------


def random_transport(r: random.Random) -> tuple[bytes, int]:
    data = bytes(r.randrange(256) for _ in range(r.choice((0, 0, 1, 12, 40))))
    ports = r.randrange(1, 4), r.randrange(1, 4)
    kind = r.randrange(7)
    if kind < 3:
        flags = r.choice((SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK, r.randrange(256)))
        options = bytes(4 * r.choice((0, 0, 1, 5)))
        return tcp(*ports, flags, r.randrange(2**32), data, options), 6
    if kind == 3:
        return udp(*ports, data), 17
    if kind == 4:
        return icmp(r.choice((0, 8, 3, 13)), r.randrange(3)), 1
    if kind == 5:
        return icmp(r.choice((128, 129, 135, 1)), r.randrange(3)), 58
    return data, r.choice((132, 89, 50, 2, 59))


def random_ip(r: random.Random, level: int = 0) -> tuple[bytes, int]:
    """An IP packet and its ethertype."""
    payload, protocol = random_transport(r)
    if level < 4 and r.random() < 0.2:
        payload, kind = random_ip(r, level + 1)
        protocol = 4 if kind == 0x0800 else 41
        if r.random() < 0.5:
            flags = r.choice((0, 0, 0x2000, 0xB000, 0x8000, 1, r.randrange(65536)))
            words = bool(flags & 0xC000) + bool(flags & 0x2000) + bool(flags & 0x1000)
            kind = r.choice((kind, kind, 0x6558))
            head = flags.to_bytes(2, "big") + kind.to_bytes(2, "big")
            payload, protocol = head + bytes(4 * words) + payload, 47
    odd = r.random() < 0.1
    if r.random() < 0.6:
        a, b = f"10.0.0.{r.randrange(1, 4)}", f"10.0.0.{r.randrange(1, 4)}"
        options = bytes(4 * r.choice((0, 0, 0, 1, 10)))
        fragment = r.choice((0, 0, 0, 0x4000, 0x2000, 0x2003, 7))
        length = r.choice((0, 10, 21, r.randrange(65536))) if odd else None
        return four(payload, protocol, a, b, options=options, fragment=fragment, length=length), (
            0x0800
        )
    for _ in range(r.choice((0, 0, 0, 1, 2, 7))):
        kind = r.choice((0, 43, 44, 51, 60))
        size = 0 if kind == 44 else r.randrange(3)
        full = 8 if kind == 44 else size * 4 + 8 if kind == 51 else size * 8 + 8
        offset = r.choice((0, 0, 1, 8)) if kind == 44 else 0
        head = bytes((protocol, size)) + offset.to_bytes(2, "big")
        payload, protocol = head + bytes(full - 4) + payload, kind
    length = r.choice((0, 3, r.randrange(65536))) if odd else None
    return six(payload, protocol, r.randrange(3), r.randrange(3), length), 0x86DD


LINKS = (1, 1, 1, 1, 0, 101, 113, 228, 229, 276, 147)


def random_packet(r: random.Random) -> tuple[bytes, int]:
    """A packet and its link type."""
    inner, kind = random_ip(r)
    link = r.choice(LINKS)
    if link == 1:
        if r.random() < 0.1:
            kind = r.choice((0x0806, 0x88B8, 0x88BA, 0x8892, 0x0026, 0x88CC))
        tags = [r.randrange(4096) for _ in range(r.choice((0, 0, 0, 1, 2, 3, 4)))]
        out = ether(inner, kind, tags)
    elif link == 0:
        family = 2 if kind == 0x0800 else r.choice((10, 24, 28, 30))
        out = family.to_bytes(4, r.choice(("little", "big"))) + inner
    elif link in (113, 276):
        size, at = (16, 14) if link == 113 else (20, 0)
        head = bytearray(size)
        head[at : at + 2] = kind.to_bytes(2, "big")
        out = bytes(head) + inner
    else:
        out = inner
    change = r.random()
    if change < 0.15:
        out = out[: r.randrange(len(out) + 1)]
    elif change < 0.25 and out:
        spoilt = bytearray(out)
        for _ in range(r.randrange(1, 4)):
            spoilt[r.randrange(len(spoilt))] = r.randrange(256)
        out = bytes(spoilt)
    return out, link


def random_chunks(seed: int, packets: int) -> list[Chunk]:
    """Random packets whose clock mostly goes on, sometimes stands, jumps, or runs backwards."""
    r = random.Random(seed)
    time_ns, frame, found = T0, 1, []
    while frame <= packets:
        part: list[Packet] = []
        links, wirelen = [], []
        for _ in range(r.choice((1, 7, 100, 1000))):
            if r.random() < 0.2:
                jump = r.choice((0, 10**6, 6 * 10**9, 61 * 10**9, -(10**9), -(10**11), 10**16))
                time_ns = max(0, min(9 * 10**18, time_ns + jump))
            time_ns += r.randrange(10**9)
            out, link = random_packet(r)
            part.append((time_ns, out))
            links.append(link)
            wirelen.append(len(out) + r.choice((0, 0, 0, 30)))
        found.append(chunk(part, links, frame, wirelen=wirelen))
        frame += len(part)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_walk_and_meter_agree_with_their_twin_on_random_packets(seed: int) -> None:
    assert differences(random_chunks(seed, 2000)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_walk_and_meter_agree_with_their_twin_on_many_random_packets(seed: int) -> None:
    assert differences(random_chunks(seed, 10_000)) == []


def test_random_packets_reach_every_reason() -> None:
    reached = set()
    for piece in random_chunks(1, 4000):
        reached |= set(walk(piece).reason.tolist())

    assert {REASONS[reason] for reason in reached} == set(REASONS) - {"decoded"}


def test_one_flow_of_many_short_conversations_is_cut_exactly() -> None:
    a, b = ("10.0.0.1", 4000), ("10.0.0.2", 80)
    packets: list[Packet] = []
    for number in range(300):
        at = T0 + number * 10**9
        packets += [
            (at, segment(*a, *b, SYN)),
            (at + 1, segment(*b, *a, SYN | ACK)),
            (at + 2, segment(*a, *b, FIN | ACK)),
            (at + 3, segment(*b, *a, FIN | ACK)),
        ]

    meter = Meter()
    piece = chunk(packets)
    for _ in meter.add(piece, walk(piece)):
        pass
    meter.end()
    flows = as_flows(meter)

    assert [flow.first_frame for flow in flows] == list(range(1, 1200, 4))
    assert {flow.packets for flow in flows} == {(2, 2)}
    assert differences([piece]) == []
