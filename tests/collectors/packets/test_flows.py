"""Flow events: names, direction, states, ends and floods."""

from __future__ import annotations

import socket
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward import Event
from cityward.fields import faults
from collectors.packets.community_id import community_id
from collectors.packets.packets import Packets
from tests.collectors.packets.wire import (
    ACK,
    FIN,
    RST,
    SYN,
    T0,
    Packet,
    chunk,
    chunks,
    collected,
    datagram,
    ether,
    four,
    icmp,
    seconds,
    segment,
    six,
    tcp,
    udp,
    unaccounted,
)

A, B = ("10.0.0.1", 40_000), ("10.0.0.2", 8080)
BEGIN = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def there(flags: int, data: bytes = b"", seq: int = 0) -> bytes:
    return segment(*A, *B, flags, seq, data)


def back(flags: int, data: bytes = b"", seq: int = 0) -> bytes:
    return segment(*B, *A, flags, seq, data)


def flows(*packets: tuple[float, bytes], **settings: Any) -> list[Event]:
    collector = Packets({}, **settings)
    events = collected(collector, [chunk(seconds(*packets))])
    assert unaccounted(collector, events) == 0
    assert [fault for event in events for fault in faults(event.fields)] == []
    return events


def test_a_flow_says_who_spoke_to_whom_how_much_and_how_long() -> None:
    (event,) = flows(
        (0, there(SYN)),
        (0.1, back(SYN | ACK)),
        (0.2, there(ACK, b"hello")),
        (0.3, back(ACK, b"hi")),
        (0.4, there(FIN | ACK)),
        (1.5, back(FIN | ACK)),
    )

    assert event.fields == {
        "source.ip": "10.0.0.1",
        "destination.ip": "10.0.0.2",
        "network.type": "ipv4",
        "network.transport": "tcp",
        "network.community_id": "1:wRMtbTX++eajkWGJNFUlbK3rrGk=",
        "source.port": 40_000,
        "destination.port": 8080,
        "event.action": "flow_ended",
        "event.category": ["network"],
        "event.dataset": "packets.flow",
        "event.outcome": "success",
        "event.reason": "end",
        "event.start": BEGIN,
        "event.end": BEGIN + timedelta(seconds=1.5),
        "event.duration": 1_500_000_000,
        "source.packets": 3,
        "source.bytes": 125,
        "destination.packets": 3,
        "destination.bytes": 122,
        "network.packets": 6,
        "network.bytes": 247,
        "cw.vendor": {"conn_state": "SF"},
    }
    assert event.time == BEGIN + timedelta(seconds=1.5)
    assert (event.record.source, event.record.place, event.number) == ("test", 1, 1_000_000)


STATES = {
    "S0": [there(SYN)],
    "REJ": [there(SYN), back(RST | ACK)],
    "S1": [there(SYN), back(SYN | ACK), there(ACK)],
    "S2": [there(SYN), back(SYN | ACK), there(FIN | ACK)],
    "S3": [there(SYN), back(SYN | ACK), back(FIN | ACK)],
    "SF": [there(SYN), back(SYN | ACK), there(FIN | ACK), back(FIN | ACK), there(RST)],
    "RSTO": [there(SYN), back(SYN | ACK), there(RST)],
    "RSTR": [there(SYN), back(SYN | ACK), back(RST)],
    "RSTOS0": [there(SYN), there(RST)],
    "RSTRH": [back(SYN | ACK), back(RST)],
    "SH": [there(SYN), there(FIN | ACK)],
    "SHR": [back(SYN | ACK), back(FIN | ACK)],
    "OTH": [there(ACK, b"x"), back(ACK, b"y")],
}
FAILED = {"S0", "REJ", "RSTO", "RSTR", "RSTOS0", "RSTRH", "SH"}


@pytest.mark.parametrize("state", STATES)
def test_connection_states_are_those_of_zeek(state: str) -> None:
    (event,) = flows(*((number / 10, packet) for number, packet in enumerate(STATES[state])))

    assert event.fields["cw.vendor"] == {"conn_state": state}
    assert (event.fields["event.outcome"] == "failure") == (state in FAILED)
    assert event.fields["source.ip"] == "10.0.0.1"


def test_who_sent_the_syn_is_the_source_also_if_the_answer_was_seen_first() -> None:
    (event,) = flows((0, back(SYN | ACK)), (0.1, there(SYN)))

    assert (event.fields["source.port"], event.fields["destination.port"]) == (40_000, 8080)


def test_without_syn_the_side_with_the_system_port_is_the_server() -> None:
    (event,) = flows(
        (0, segment("10.0.0.2", 443, "10.0.0.1", 40_000, ACK, 0, b"x")),
        (1, segment("10.0.0.1", 40_000, "10.0.0.2", 443, ACK, 0, b"x")),
    )

    assert event.fields["destination.port"] == 443


def test_who_speaks_alone_is_the_source() -> None:
    (event,) = flows((0, datagram("10.0.0.1", 514, "10.0.0.2", 40_000)))

    assert event.fields["source.port"] == 514
    assert event.fields["event.outcome"] == "unknown"
    assert event.fields["cw.vendor"] == {"conn_state": "S0"}


def test_silence_ends_a_flow_and_the_next_packet_begins_another() -> None:
    events = flows((0, datagram(*A, *B)), (59, datagram(*B, *A)), (120, datagram(*A, *B)))

    assert [(e.record.place, e.fields["event.reason"]) for e in events] == [(1, "idle"), (3, "end")]


def test_a_long_flow_is_reported_while_it_lasts_and_counts_anew() -> None:
    events = flows(*((number * 50, datagram(*A, *B)) for number in range(14)))

    said = [
        (e.number, e.fields["event.action"], e.fields["event.reason"], e.fields["source.packets"])
        for e in events
    ]
    assert said == [
        (1_000_000, "flow_continues", "active", 6),
        (1_000_001, "flow_continues", "active", 6),
        (1_000_002, "flow_ended", "end", 2),
    ]
    assert [e.fields["cw.vendor"]["report"] for e in events] == [1, 2, 3]
    assert {e.record.place for e in events} == {1}


def test_after_fin_a_flow_ends_five_seconds_later() -> None:
    events = flows((0, there(FIN | ACK)), (1, back(FIN | ACK)), (5, there(ACK)), (11, there(ACK)))

    assert [(e.record.place, e.fields["event.reason"]) for e in events] == [(1, "fin"), (4, "end")]


def test_after_a_reset_a_new_syn_is_a_new_attempt() -> None:
    packets = [(number, packet) for number in range(3) for packet in (there(SYN), back(RST | ACK))]

    events = flows(*packets)

    assert [e.record.place for e in events] == [1, 3, 5]
    assert {e.fields["cw.vendor"]["conn_state"] for e in events} == {"REJ"}


def test_a_repeated_syn_is_the_same_attempt() -> None:
    (event,) = flows((0, there(SYN)), (1, there(SYN)), (3, there(SYN)), (31, there(SYN)))

    assert event.fields["source.packets"] == 4


@pytest.mark.parametrize("jump", [-1e9, -62, 61, 5e8])
def test_a_clock_that_jumps_ends_flows_and_time_goes_on(jump: float) -> None:
    collector = Packets({})
    one = chunk(seconds((0, datagram(*A, *B)), (1, datagram("10.0.0.3", 1, "10.0.0.4", 2))))
    two = chunk(seconds((1 + jump, datagram(*A, *B))), frame=3)

    events = [*collector(one), *collector(two)]
    counts = collector.counts

    assert [e.fields["event.reason"] for e in events] == ["idle", "idle"]
    assert counts["flows_open"] == 1
    assert all(e.fields["event.duration"] >= 0 for e in events)


def test_icmp_requests_and_answers_are_one_flow() -> None:
    (event,) = flows(
        (0, ether(four(icmp(8), 1, "10.0.0.2", "10.0.0.1"))),
        (1, ether(four(icmp(0), 1, "10.0.0.1", "10.0.0.2"))),
    )

    assert event.fields["source.ip"] == "10.0.0.2"
    assert event.fields["network.transport"] == "icmp"
    assert event.fields["cw.vendor"] == {"conn_state": "OTH", "icmp_type": 8}
    assert "source.port" not in event.fields


def test_ipv6_is_metered_by_its_whole_address() -> None:
    (event,) = flows((0, ether(six(udp(1, 2, b"x"), 17, 5, 6), 0x86DD)))

    assert event.fields["source.ip"] == "2001:db8::5"
    assert event.fields["destination.ip"] == "2001:db8::6"
    assert event.fields["network.type"] == "ipv6"
    assert event.fields["source.bytes"] == 49


def test_a_flow_in_a_tunnel_is_the_inner_one() -> None:
    inner = four(udp(1, 2, b"x"), 17, "192.168.1.1", "192.168.1.2")
    gre = b"\x20\0\x08\0" + bytes(4) + inner
    (event,) = flows((0, ether(four(gre, 47), tags=[7])))

    assert event.fields["source.ip"] == "192.168.1.1"
    assert event.fields["network.vlan.id"] == "7"
    assert event.fields["source.bytes"] == 29


@pytest.mark.parametrize(("vlan_in_key", "count"), [(False, 1), (True, 2)])
def test_a_site_may_tell_the_same_addresses_in_two_vlans_apart(
    vlan_in_key: bool, count: int
) -> None:
    packet = four(udp(1, 2), 17)

    events = flows(
        (0, ether(packet, tags=[1])), (0, ether(packet, tags=[2])), vlan_in_key=vlan_in_key
    )

    assert len(events) == count


def test_frames_without_ip_are_flows_between_mac_addresses() -> None:
    events = flows(
        (0, ether(bytes(46), 0x88B8, to=b"\x01\x0c\xcd\x01\0\0", of=b"\0\x1a\xb6\0\0\x01")),
        (1, ether(bytes(46), 0x88B8, to=b"\x01\x0c\xcd\x01\0\0", of=b"\0\x1a\xb6\0\0\x01")),
        (1, ether(bytes(46), 0x0806, to=b"\xff" * 6)),
    )

    goose, arp = (event.fields for event in events)
    assert goose["source.mac"] == "00-1A-B6-00-00-01"
    assert goose["destination.mac"] == "01-0C-CD-01-00-00"
    assert (goose["network.protocol"], goose["source.packets"]) == ("goose", 2)
    assert goose["source.bytes"] == 120
    assert (arp["network.type"], arp["source.packets"]) == ("arp", 1)


# Bounds ------------------------------------------------------------------------------------


def test_a_full_table_evicts_who_was_silent_longest() -> None:
    collector = Packets({}, slots=64)
    packets = [(T0 + n * 10**6, datagram(f"10.0.{n // 250}.{n % 250}", 1, *B)) for n in range(1000)]

    events = collected(collector, [chunk(packets)])

    assert unaccounted(collector, events) == 0
    evicted = [e.record.place for e in events if e.fields["event.reason"] == "evicted"]
    assert len(evicted) == collector.counts["flows_evicted"] >= 936
    assert evicted == sorted(evicted)


def test_the_same_capture_gives_the_same_events_in_the_same_order_also_when_flows_are_evicted() -> (
    None
):
    packets = [
        (T0 + n // 3 * 10**9, datagram(f"10.0.{n % 7}.{n * 7 % 250}", n % 5, *B))
        for n in range(5000)
    ]

    first = collected(Packets({}, slots=64), [chunk(packets)])
    second = collected(Packets({}, slots=64), [chunk(packets)])

    assert [(e.record.place, e.number, e.fields) for e in first] == [
        (e.record.place, e.number, e.fields) for e in second
    ]


def flood(count: int, *, ports: int = 1) -> list[Packet]:
    """SYNs of as many sources within one second."""
    return [
        (
            T0 + n * (10**9 // count),
            segment(
                f"{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}.7", 9, "10.9.9.9", 80 + n % ports, SYN
            ),
        )
        for n in range(count)
    ]


def test_a_flood_is_folded_by_destination_port_and_second() -> None:
    collector = Packets({})

    events = collected(collector, [chunk(flood(10_000, ports=2))])

    folded = [e for e in events if e.fields["event.reason"] == "folded"]
    assert len(events) == 2_002
    assert [e.fields["destination.port"] for e in folded] == [80, 81]
    assert folded[0].fields["destination.ip"] == "10.9.9.9"
    assert folded[0].fields["event.outcome"] == "failure"
    assert folded[0].fields["cw.vendor"] == {
        "conn_state": "S0",
        "flows": 4_000,
        "sources": 4_000,
        "destinations": 1,
        "ports": 1,
    }
    assert "source.ip" not in folded[0].fields
    assert collector.counts["flows_folded"] == 8_000
    assert unaccounted(collector, events) == 0
    assert [fault for event in folded for fault in faults(event.fields)] == []


def test_a_flood_over_all_ports_is_folded_more_coarsely() -> None:
    events = collected(Packets({}), [chunk(flood(12_000, ports=6_000))])

    folded = [e for e in events if e.fields["event.reason"] == "folded"]
    assert len(folded) == 1
    assert folded[0].fields["cw.vendor"]["ports"] == 6_000
    assert folded[0].fields["destination.ip"] == "10.9.9.9"


def test_two_thousand_unanswered_flows_in_a_second_are_told_one_by_one() -> None:
    events = collected(Packets({}), [chunk(flood(2_000))])

    assert len(events) == 2_000
    assert {e.fields["event.reason"] for e in events} == {"end"}


def test_answered_flows_are_never_folded() -> None:
    packets: list[Packet] = []
    for number in range(3_000):
        a = (f"10.1.{number // 250}.{number % 250}", 1000)
        packets += [(T0 + number, segment(*a, *B, SYN)), (T0 + number, segment(*B, *a, SYN | ACK))]

    events = collected(Packets({}), [chunk(packets)])

    assert len(events) == 3_000


# Community ID ------------------------------------------------------------------------------


def packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


@pytest.mark.parametrize(
    ("source", "destination", "protocol", "sport", "dport", "expected"),
    [
        ("128.232.110.120", "66.35.250.204", 6, 34855, 80, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        ("66.35.250.204", "128.232.110.120", 6, 80, 34855, "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
        ("192.168.1.52", "8.8.8.8", 17, 54585, 53, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
        ("8.8.8.8", "192.168.1.52", 17, 53, 54585, "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
        ("192.168.0.89", "192.168.0.1", 1, 8, 0, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
        ("192.168.0.1", "192.168.0.89", 1, 0, 8, "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
        ("192.168.0.89", "192.168.0.1", 1, 20, 1, "1:tz/fHIDUHs19NkixVVoOZywde+I="),
        ("192.168.170.8", "192.168.170.56", 132, 7, 7, "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs="),
        ("fe80::260:97ff:fe07:69ea", "ff02::1", 58, 134, 133, "1:pkvHqCL88/tg1k4cPigmZXUtL00="),
        (
            "fe80::200:86ff:fe05:80da", "fe80::260:97ff:fe07:69ea", 58, 135, 136,
            "1:dGHyGvjMfljg6Bppwm3bg0LO8TY=",
        ),
    ],
)  # fmt: skip
def test_community_id_is_that_of_the_published_examples(
    source: str, destination: str, protocol: int, sport: int, dport: int, expected: str
) -> None:
    assert community_id(packed(source), packed(destination), protocol, sport, dport) == expected


# Facts of the real captures --------------------------------------------------------------------


def read(data: Path, name: str) -> list[Event]:
    collector = Packets({})
    events = collected(collector, chunks(data / name))
    assert unaccounted(collector, events) == 0
    return events


def test_the_syn_scan_tries_a_thousand_ports(data: Path) -> None:
    events = read(data, "network/syn_scan.pcap")

    tried = [e.fields for e in events if e.fields["source.ip"] == "172.16.0.8"]
    states = {
        fields["destination.port"]: fields["cw.vendor"]["conn_state"]
        for fields in tried
        if fields["cw.vendor"]["conn_state"] != "S0"
    }
    assert len({fields["destination.port"] for fields in tried}) == 1000
    assert {port for port, state in states.items() if state != "REJ"} == {22, 53, 80}


def test_the_botnet_scan_sends_syns_that_nobody_answers(data: Path) -> None:
    events = read(data, "city/iot_botnet_telnet_scan.pcap")

    scan = [
        e.fields
        for e in events
        if int(e.record.place) >= 1085
        and e.fields.get("source.ip") == "192.168.2.16"
        and e.fields["network.transport"] == "tcp"
    ]
    # A display filter finds 634 to 137: two are quoted in ICMP errors that somebody else sent.
    assert sum(fields["source.packets"] for fields in scan) == 632
    assert len({fields["destination.ip"] for fields in scan}) == 136
    # Five ports are closed and say so; nobody lets it in.
    states = Counter(fields["cw.vendor"]["conn_state"] for fields in scan)
    assert set(states) == {"S0", "REJ"}
    assert states["REJ"] == 5
    assert {fields["event.outcome"] for fields in scan} == {"failure"}


def test_the_ssh_guesser_makes_67_connections(data: Path) -> None:
    events = read(data, "network/ssh_bruteforce_nmap.pcap")

    pairs = {(e.fields["source.ip"], e.fields["destination.port"]) for e in events}
    assert len(events) == 67
    assert pairs == {("147.32.80.40", 902)}


def test_sampled_values_are_one_flow_of_one_merging_unit(data: Path) -> None:
    (event,) = read(data, "energy/iec61850_sampled_values.pcap")

    assert event.fields["network.protocol"] == "sv"
    assert event.fields["source.packets"] == 10_161


def test_the_triton_malware_talks_448_packets_each_way(data: Path) -> None:
    events = read(data, "energy/triton_tristation_malware.pcap")

    assert {e.fields["source.port"] for e in events} == {33_279}
    assert sum(e.fields["source.packets"] for e in events) == 448
    assert sum(e.fields["destination.packets"] for e in events) == 448


def test_the_arp_sweep_is_metered_by_mac_address(data: Path) -> None:
    events = read(data, "network/arp_scan.pcap")

    arp = [e.fields for e in events if e.fields["network.type"] == "arp"]
    assert sum(fields["network.packets"] for fields in arp) == 519


def test_a_reset_is_not_a_closed_port_if_the_connection_was_open() -> None:
    (event,) = flows(
        (0, segment(*A, *B, SYN)), (1, segment(*B, *A, SYN | ACK)), (2, segment(*B, *A, RST))
    )

    assert event.fields["cw.vendor"]["conn_state"] == "RSTR"


def test_options_of_tcp_are_no_payload() -> None:
    packet = ether(four(tcp(1, 2, SYN, 0, b"", bytes(20)), 6))

    (event,) = flows((0, packet))

    assert event.fields["source.bytes"] == 60
