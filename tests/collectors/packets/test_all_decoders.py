"""Every registered decoder under the same strain: segments in pieces, strangers, damaged bytes."""

from __future__ import annotations

import random
import string
import time
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import mutants, wrong_fields
from cityward.fields import faults
from cityward.plugin import Session
from collectors.packets.capture import MAX_PACKETS
from collectors.packets.packets import Packets
from tests.collectors.packets import conversations
from tests.collectors.packets.conversations import CAPTURES, MADE, Piece, Talk, decoders, heard
from tests.collectors.packets.wire import ACK, FIN, SYN, T0, chunk, collected, segment, unaccounted

TALKS = 6
"""Conversations of each decoder that are cut."""
PIECES = 80
"""Their length."""
SEED = 20_261_128
CLIENT, SERVER = "10.0.0.1", "10.0.0.2"
WINDOW = 8
"""Segments among which the order is changed; a direction holds 32 behind a gap."""
Sent = tuple[bool, int, bytes]
"""From the client or not, sequence number, bytes."""

CLAIMED: dict[str, set[str]] = {
    "city/bacnet_all_services.pcap": {"bacnet"},
    "city/bacnet_quickdraw_recon.pcap": {"bacnet"},
    "city/coap_mqtt.pcap": {"coap", "mqtt", "arp"},
    "city/iot_botnet_telnet_scan.pcap": {"dns", "dhcp", "arp", "ntp", "ssh"},
    "city/mqtt_cleartext_credentials.pcap": {"mqtt"},
    "city/mqtt_publish_without_connect.pcap": {"mqtt", "http"},
    "city/mqtt_zeek.pcap": {"mqtt"},
    "city/rtsp_camera_streams.pcap": {"rtsp"},
    "energy/c37118_pmu_tcp.pcap": {"c37118"},
    "energy/dlms_meter.pcap": {"dlms"},
    "energy/dnp3_icsnpp_example.pcap": {"dnp3"},
    "energy/dnp3_quickdraw_attacks_1.pcap": {"dnp3"},
    "energy/dnp3_request_flood.pcap": {"dnp3"},
    "energy/hartip_session.pcap": {"hartip", "arp"},
    "energy/iec104_control_commands.pcap": {"iec104"},
    "energy/iec104_wattson_normal.pcapng": {"iec104"},
    "energy/iec104_wattson_replay_9clones.pcapng": {"iec104"},
    "energy/iec61850_goose_sample.pcap": {"goose"},
    "energy/iec61850_mms_and_goose.pcap": {"mms", "goose", "ntp", "snmp"},
    "energy/iec61850_sampled_values.pcap": {"sampled_values"},
    "energy/modbus_icsnpp_example.pcap": {"modbus"},
    "energy/modbus_plant1_normal.pcap": {"modbus"},
    "energy/modbus_quickdraw_attacks_1.pcap": {"modbus"},
    "energy/modbus_quickdraw_attacks_2.pcap": {"modbus"},
    "energy/modbus_umas_modicon_attacks.pcap": {"modbus"},
    "energy/opcua_open62541_session.pcap": {"opcua", "dns", "ntp"},
    "energy/s7comm_snap7_read_write_stop_download.pcap": {"s7comm"},
    "energy/triton_tristation_malware.pcap": {"tristation"},
    "network/arp_scan.pcap": {"arp"},
    "network/dns_tunnel_iodine.pcap": {"dns", "arp"},
    "network/ftp_bruteforce.pcap": {"ftp"},
    "network/log4shell.pcap": {"http"},
    "network/netflow9_capture.pcap": {"netflow"},
    "network/ssh_bruteforce_nmap.pcap": {"ssh"},
    "network/web_sql_injection.pcap": {"http"},
    "port/atg_fuel_tank_gauge.pcap": {"tank-gauge"},
    "port/enip_cip_icsnpp_example.pcap": {"enip", "cip_io", "arp"},
    "port/enip_quickdraw_reboot_restart.pcap": {"enip"},
    "port/omron_fins.pcap": {"fins"},
    "port/profinet_dcp_change_ip.pcap": {"profinet_dcp", "arp"},
    "transport/genisys_rail_signalling.pcap": {"genisys"},
    "transport/snmp_v2c_requests.pcap": {"snmp"},
}
"""Capture → what is spoken in it, as tshark says, too; nothing else may be claimed there. KNX, TRDP
and a scan without payload are missing: nobody may claim anything of them."""

LUCKY: dict[str, tuple[int, str]] = {
    "coap": (4, "neither a magic number nor a checksum: 14 bytes of text can be a whole GET"),
}
"""Decoder → how many of the random heads it may claim, and why so many."""
HEADS = 20_000
MUTANTS = 2_000
INPUT_MAX_S = 0.5
"""CPU that one damaged input may cost."""


@pytest.fixture
def real(request: pytest.FixtureRequest) -> Path | None:
    """The real captures where they are; the made conversations are tried without them, too."""
    try:
        found: Path = request.getfixturevalue("data")
    except pytest.skip.Exception:
        return None
    return found


def talks_of(name: str, data: Path | None) -> list[Talk]:
    found = conversations.of(name, data)
    if not found:
        assert name in CAPTURES or name in MADE, f"{name} has neither a capture nor a conversation"
        pytest.skip("no real data")
    return found


def test_every_decoder_has_a_conversation() -> None:
    assert set(decoders()) == CAPTURES.keys() | MADE.keys()


# ---- Segments in pieces, twice, in another order, lost


def sent(pieces: list[Piece]) -> list[Sent]:
    """Segments of a conversation behind its handshake."""
    seq = {True: 1, False: 1}
    found = []
    for who, data in pieces:
        for at in range(0, len(data), 1_400):
            part = data[at : at + 1_400]
            found.append((who, seq[who], part))
            seq[who] += len(part)
    return found


def cut(segments: list[Sent], chance: random.Random, whole: int) -> list[Sent]:
    """Each in up to four parts; the first ones whole, where no port says what to expect."""
    found = segments[:whole]
    for who, seq, data in segments[whole:]:
        places = sorted({0, *(chance.randrange(len(data)) for _ in range(chance.randrange(4)))})
        for start, stop in zip(places, [*places[1:], len(data)], strict=True):
            found.append((who, seq + start, data[start:stop]))
    return found


def shuffled(segments: list[Sent], chance: random.Random, whole: int) -> list[Sent]:
    """Another order within what one side says before the other speaks, some twice."""
    found, window = segments[:whole], list[Sent]()
    for one in [*segments[whole:], None]:
        if one is None or len(window) == WINDOW or (window and window[0][0] != one[0]):
            chance.shuffle(window)
            found += window
            found += [again for again in window if chance.random() < 0.2]
            window = []
        if one is not None:
            window.append(one)
    return found


def lossy(segments: list[Sent], chance: random.Random, whole: int) -> list[Sent]:
    """Without some; but the last of each side, behind which nothing shows that it is missing."""
    last = {who: at for at, (who, _, _) in enumerate(segments)}
    return [
        one
        for at, one in enumerate(segments)
        if at < whole or at in last.values() or chance.random() > 0.15
    ]


def events(
    make: Any, talk: Talk, segments: list[Sent]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Messages of a conversation in TCP, and the counts of the collector."""
    port = talk.dport
    there = (CLIENT, 40_000, SERVER, port)
    back = (SERVER, port, CLIENT, 40_000)
    packets = [segment(*there, SYN, 0), segment(*back, SYN | ACK, 0), segment(*there, ACK, 1, b"")]
    packets += [segment(*(there if who else back), ACK, seq, data) for who, seq, data in segments]
    packets += [segment(*there, FIN | ACK, 1 << 24), segment(*back, FIN | ACK, 1 << 24)]
    assert len(packets) < MAX_PACKETS
    collector = Packets({make.cityward_spec.name: make} if make else None)
    found = collected(collector, [chunk([(T0, packet) for packet in packets])])
    assert unaccounted(collector, found) == 0
    assert collector.counts["decoder_faults"] == 0
    messages = [dict(event.fields) for event in found if event.logsource.category != "flow"]
    assert [fault for fields in messages for fault in faults(fields)] == []
    assert not any("the decoder of" in fields.get("event.reason", "") for fields in messages)
    return messages, collector.counts


STREAMED = sorted(
    name for name, made in decoders().items() if "tcp" in made.cityward_spec.transports
)


def streams_of(name: str, data: Path | None) -> Iterator[tuple[Talk, list[Sent], int]]:
    """Conversations in TCP, their segments, and how many of these stay whole."""
    made = decoders()[name]
    found = [
        talk
        for talk in talks_of(name, data)
        if talk.transport == "tcp" and any(made.recognises(piece) for _, piece in talk.pieces[:1])
    ]
    if not found:
        pytest.skip("no conversation in TCP")
    for talk in found[:TALKS]:
        segments, whole = sent(talk.pieces[:PIECES]), 0
        if not made.cityward_spec.ports:
            # Nobody looks at its SYNs: a side is followed from its first segment on.
            whole = 1 + next(at for at, one in enumerate(segments) if one[0] != segments[0][0])
        yield talk, segments, whole


@pytest.mark.parametrize("name", STREAMED)
def test_however_segments_are_cut_and_ordered_the_messages_are_the_same(
    name: str, real: Path | None
) -> None:
    chance = random.Random(SEED)
    for talk, segments, whole in streams_of(name, real):
        clean, _ = events(None, talk, segments)
        assert clean
        parts = cut(segments, chance, whole)

        assert events(None, talk, parts)[0] == clean
        assert events(None, talk, shuffled(parts, chance, whole))[0] == clean


@pytest.mark.parametrize("name", STREAMED)
def test_where_segments_are_lost_it_is_said(name: str, real: Path | None) -> None:
    chance = random.Random(SEED)
    for talk, segments, whole in streams_of(name, real):
        clean, _ = events(None, talk, segments)
        for _ in range(3):
            found, counts = events(None, talk, lossy(cut(segments, chance, whole), chance, whole))

            is_told = any(one.get("event.kind") == "pipeline_error" for one in found)
            assert found == clean or counts["tcp_gaps"] or is_told


# ---- Strangers


@pytest.mark.parametrize("folder", ["city", "energy", "network", "port", "transport"])
def test_what_another_protocol_says_first_is_not_claimed(folder: str, data: Path) -> None:
    for capture in sorted((data / folder).glob("*.pcap*")):
        claims, several = Counter[str](), []
        for head, ethertype in _heads(capture):
            who = [
                name
                for name, made in decoders().items()
                if _asks(made.cityward_spec, head.transport, head.data, ethertype)
                and made.recognises(head.data)
            ]
            claims.update(who)
            several += [who] if len(who) > 1 else []

        assert claims.keys() == CLAIMED.get(f"{folder}/{capture.name}", set()), capture.name
        assert several == []


def _heads(capture: Path) -> Iterator[tuple[conversations.Heard, int]]:
    """First payload of each direction of each flow, and its ethertype where it has no flow."""
    seen = set()
    for one in heard(capture, 20_000):
        if one.data and (one.key, one.side) not in seen:
            seen.add((one.key, one.side))
            yield one, one.key[0] if one.transport == "link" else 0


def _asks(spec: Any, transport: str, head: bytes, ethertype: int = 0) -> bool:
    """Whether the registry asks a decoder at all."""
    return (
        transport in spec.transports
        and (transport != "link" or ethertype in spec.ethertypes)
        and (not spec.begins or head[0] in spec.begins)
    )


@pytest.mark.parametrize("name", sorted(decoders()))
def test_what_is_recognised_begins_as_the_decoder_says(name: str, real: Path | None) -> None:
    made, begins = decoders()[name], decoders()[name].cityward_spec.begins
    heads = [piece for talk in talks_of(name, real) for _, piece in talk.pieces[:PIECES]]
    heads += [first.to_bytes() + head[1:] for head in heads[:20] for first in range(256)]

    assert (
        not begins
        or [head for head in heads if head and head[0] not in begins and made.recognises(head)]
        == []
    )


@cache
def strangers() -> list[bytes]:
    """Random bytes and random text, short ones more often."""
    chance = random.Random(SEED)
    sizes = [1 + int(1_400 * chance.random() ** 4) for _ in range(HEADS)]
    letters = (string.ascii_letters + string.digits + " /.:-\r\n").encode()
    return [
        chance.randbytes(size) if number % 2 else bytes(chance.choices(letters, k=size))
        for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("name", sorted(decoders()))
def test_random_heads_are_not_claimed(name: str) -> None:
    recognises, begins = decoders()[name].recognises, decoders()[name].cityward_spec.begins
    claimed = [head for head in strangers() if recognises(head)]
    # The same again, with the first byte that the decoder wants to see.
    begins = begins or bytes(range(256))
    turned = [
        begins[number % len(begins)].to_bytes() + head[1:]
        for number, head in enumerate(strangers()[: HEADS // 2])
    ]
    claimed += [head for head in turned if recognises(head)]

    assert len(claimed) <= LUCKY.get(name, (0, ""))[0], claimed[:5]


# ---- Damaged bytes


def strain(name: str, data: Path | None, count: int) -> float:
    """Feed a decoder with damaged messages within its conversations; the costliest one's CPU."""
    made = decoders()[name]
    talks = talks_of(name, data)
    inputs = [
        (talk, at) for talk in talks[:TALKS] for at in range(min(len(talk.pieces), PIECES // 4))
    ]
    each, slowest = -(-count // len(inputs)), 0.0
    for number, (talk, at) in enumerate(inputs):
        who, piece = talk.pieces[at]
        part: Any = None
        for turn, damaged in enumerate(mutants(piece, SEED + number, each)):
            if turn % 16 == 0:
                part = made(_session(talk))
                for before_who, before in talk.pieces[max(0, at - 8) : at]:
                    part.feed(before, before_who, T0 / 1e9, 1)
            began_s = time.thread_time()
            made.recognises(damaged)
            used, found = part.feed(damaged, who, T0 / 1e9, 1)
            if turn % 16 == 15:
                part.gap(who)
                found = [*found, *part.end()]
            slowest = max(slowest, time.thread_time() - began_s)
            assert 0 <= used <= len(damaged)
            if turn % 4 == 0:
                problems = [why for fields in found for why in wrong_fields(fields)]
                assert problems == [], damaged
    return slowest


def _session(talk: Talk) -> Session:
    if talk.transport == "link":
        ends = "02-00-00-00-00-01", "02-00-00-00-00-02"
        return Session({"source.mac": ends[0], "destination.mac": ends[1]}, *ends)
    base = {
        "network.transport": talk.transport,
        "source.ip": CLIENT,
        "source.port": talk.sport,
        "destination.ip": SERVER,
        "destination.port": talk.dport,
    }
    return Session(base, f"{CLIENT}:{talk.sport}", f"{SERVER}:{talk.dport}")


@pytest.mark.parametrize("name", sorted(decoders()))
def test_damaged_messages_raise_nothing_and_cost_little(name: str, real: Path | None) -> None:
    assert strain(name, real, MUTANTS) < INPUT_MAX_S


@cache
def _of_all(data: Path | None) -> list[list[Piece]]:
    """The beginning of a conversation or two of each decoder."""
    return [
        talk.pieces[:15] for name in decoders() for talk in conversations.of(name, data, 200)[:2]
    ]


@pytest.mark.parametrize("name", sorted(decoders()))
def test_what_other_protocols_say_within_a_conversation_raises_nothing(
    name: str, real: Path | None
) -> None:
    own, made = talks_of(name, real)[0], decoders()[name]
    for pieces in _of_all(real):
        part, rest = made(_session(own)), {True: b"", False: b""}
        for number, (who, piece) in enumerate([*own.pieces[:3], *pieces]):
            given = rest[who] + piece
            used, found = part.feed(given, who, T0 / 1e9, number)
            assert 0 <= used <= len(given)
            assert [why for fields in found for why in wrong_fields(fields)] == []
            rest[who] = given[used:] if own.transport == "tcp" else b""
            if number % 5 == 4:
                part.gap(who)
                rest[who] = b""
        part.end()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(decoders()))
def test_many_damaged_messages_raise_nothing(name: str, real: Path | None) -> None:
    assert strain(name, real, 5_000) < INPUT_MAX_S


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(decoders()))
def test_very_many_damaged_messages_raise_nothing(name: str, real: Path | None) -> None:
    assert strain(name, real, 100_000) < INPUT_MAX_S
