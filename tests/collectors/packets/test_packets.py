"""The packet collector: payload to decoders, numbers of events, bounds, hostile captures."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, LogSource, Session, decoder, plugin
from cityward.fields import faults
from collectors.packets import streams
from collectors.packets.capture import MAX_PACKETS, Chunk
from collectors.packets.packets import Packets, is_capture
from tests.collectors.packets.wire import (
    ACK,
    FIN,
    RECEIVED,
    SYN,
    T0,
    Packet,
    batches,
    chunk,
    chunks,
    collected,
    datagram,
    ether,
    four,
    pcap,
    seconds,
    segment,
    tcp,
    unaccounted,
)

FAKE = LogSource(category="ot_protocol", service="fake")
MARK = b"FK"
CLIENT, SERVER = ("10.0.0.1", 40_000), ("10.0.0.2", 7000)


def message(text: str) -> bytes:
    """`FK`, length, text."""
    return MARK + bytes((len(text),)) + text.encode()


@decoder("fake", FAKE, ports=[7000])
class Fake:
    """Length and text; says what it is told."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @staticmethod
    def recognises(head: bytes) -> bool:
        return head[:2] == MARK and len(head) >= 3

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[dict[str, Any]]]:
        at, found = 0, []
        while at + 3 <= len(data) and at + 3 + data[at + 2] <= len(data):
            text = data[at + 3 : at + 3 + data[at + 2]].decode("latin-1")
            if data[at : at + 2] != MARK:
                text = "?"
            found.append(self._say(text, "request" if from_client else "response"))
            at += 3 + data[at + 2]
        return at, found

    def gap(self, from_client: bool) -> None:
        self.lost = from_client

    def end(self) -> Sequence[dict[str, Any]]:
        return [self._say("end", "unsolicited")]

    def _say(self, text: str, direction: str) -> dict[str, Any]:
        own = {"event.action": "said", "ot.value_raw": text, "ot.direction": direction}
        return {**self.session.base, **own}


@decoder("fakeudp", FAKE, transport="udp", ports=[7001])
class FakeDatagram(Fake):
    """The same in datagrams."""


class Raises(Fake):
    """Breaks its promise."""

    def feed(self, *_: Any) -> tuple[int, Sequence[dict[str, Any]]]:
        raise ValueError("no")


def there(data: bytes = b"", seq: int = 1, flags: int = ACK) -> bytes:
    return segment(*CLIENT, *SERVER, flags, seq, data)


def back(data: bytes = b"", seq: int = 1, flags: int = ACK) -> bytes:
    return segment(*SERVER, *CLIENT, flags, seq, data)


def run(
    packets: Sequence[Packet], decoders: dict[str, Any] | None = None, size: int = MAX_PACKETS
) -> list[Event]:
    """Events of a source, in chunks of a size."""
    collector = Packets({"fake": Fake, "fakeudp": FakeDatagram} if decoders is None else decoders)
    pieces = [chunk(packets[at : at + size], frame=at + 1) for at in range(0, len(packets), size)]
    events = collected(collector, pieces)
    assert unaccounted(collector, events) == 0
    assert [fault for event in events for fault in faults(event.fields)] == []
    assert len({(event.record.place, event.number) for event in events}) == len(events)
    return events


def said(events: Sequence[Event]) -> list[str]:
    return [e.fields["ot.value_raw"] for e in events if e.logsource == FAKE]


def test_a_message_knows_its_frame_its_ends_and_its_flow() -> None:
    events = run(
        seconds(
            (0, there(seq=0, flags=SYN)),
            (1, back(seq=0, flags=SYN | ACK)),
            (2, there(message("read"))),
            (3, back(message("42"))),
        )
    )

    ask, answer, end, flow = events
    assert (ask.record.place, ask.number, ask.record.source) == (3, 0, "test")
    assert ask.record.received == RECEIVED
    assert answer.time - ask.time == timedelta(seconds=1)
    assert ask.logsource == FAKE
    for event in (ask, answer):
        assert (event.fields["source.ip"], event.fields["source.port"]) == CLIENT
        assert (event.fields["destination.ip"], event.fields["destination.port"]) == SERVER
        assert event.fields["network.protocol"] == "fake"
        assert event.fields["network.community_id"] == flow.fields["network.community_id"]
    assert [e.fields["ot.direction"] for e in (ask, answer)] == ["request", "response"]
    assert (end.record.place, end.number) == (1, 2_000_000)
    assert (flow.record.place, flow.number) == (1, 1_000_000)
    assert flow.fields["network.protocol"] == flow.fields["network.application"] == "fake"


def test_several_messages_of_a_frame_are_numbered() -> None:
    events = run(seconds((0, there(message("a") + message("b") + message("c")))))

    numbers = [(e.record.place, e.number, e.fields["ot.value_raw"]) for e in events[:3]]
    assert numbers == [(1, 0, "a"), (1, 1, "b"), (1, 2, "c")]


def test_a_message_over_several_segments_belongs_to_the_last() -> None:
    whole = message("abcdef")

    events = run(
        seconds((0, there(whole[:4])), (1, there(whole[4:6], 5)), (2, there(whole[6:], 7)))
    )

    assert [(e.record.place, e.fields["ot.value_raw"]) for e in events[:1]] == [(3, "abcdef")]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_messages_on_a_port_nobody_expects_are_recognised_and_all_read(size: int) -> None:
    a, b = ("10.0.0.1", 1111), ("10.0.0.2", 2222)
    seq, packets = 1, []
    for number in range(20):
        data = message(f"{number:02}")
        packets.append((T0 + number, segment(*a, *b, ACK, seq, data)))
        seq += len(data)

    events = run(packets, size=size)

    assert said(events) == [f"{number:02}" for number in range(20)] + ["end"]


def test_after_three_strange_payloads_a_flow_on_an_unexpected_port_is_looked_at_no_more() -> None:
    a, b = ("10.0.0.1", 1111), ("10.0.0.2", 2222)
    strange = [(T0 + n, segment(*a, *b, ACK, 1 + n, b"x")) for n in range(3)]

    events = run([*strange, (T0 + 9, segment(*a, *b, ACK, 4, message("late")))])

    assert said(events) == []


def test_on_its_expected_port_a_protocol_may_begin_within_a_message() -> None:
    events = run(seconds((0, there(b"tail of a message", 1)), (1, there(message("next"), 18))))

    assert said(events) == ["next", "end"]


def test_a_head_that_comes_in_pieces_on_its_expected_port_is_put_together() -> None:
    whole = message("hello")

    events = run(seconds((0, there(whole[:2])), (1, there(whole[2:], 3))))

    assert said(events) == ["hello", "end"]


def test_something_else_on_an_expected_port_invents_nothing() -> None:
    packets = [(T0 + n, there(b"GET / HTTP/1.1\r\n", 1 + 16 * n)) for n in range(40)]

    events = run(packets)

    assert said(events) == []
    assert "network.protocol" not in events[0].fields


def test_datagrams_are_decoded_one_by_one() -> None:
    events = run(
        seconds(
            (0, datagram("10.0.0.1", 5, "10.0.0.2", 7001, message("a"))),
            (1, datagram("10.0.0.2", 7001, "10.0.0.1", 5, message("b"))),
            (2, datagram("10.0.0.1", 5, "10.0.0.2", 7001, b"FK")),
            (3, datagram("10.0.0.1", 5, "10.0.0.2", 7001, message("c"))),
        )
    )

    assert said(events) == ["a", "b", "c", "end"]
    assert [e.fields["ot.direction"] for e in events[:3]] == ["request", "response", "request"]


def test_the_side_with_the_expected_port_is_the_server_if_no_syn_was_seen() -> None:
    events = run(seconds((0, back(message("answer"))), (1, there(message("ask")))))

    assert [e.fields["source.port"] for e in events[:2]] == [40_000, 40_000]
    assert [e.fields["ot.direction"] for e in events[:2]] == ["response", "request"]


def test_segments_out_of_order_are_decoded_in_order() -> None:
    one, two, three = message("one"), message("two"), message("three")

    events = run(
        seconds(
            (0, there(seq=0, flags=SYN)),
            (1, there(one, 1)),
            (2, there(three, 13)),
            (3, there(two, 7)),
            (4, there(two, 7)),
        )
    )

    numbers = [(e.record.place, e.number, e.fields["ot.value_raw"]) for e in events[:3]]
    assert numbers == [(2, 0, "one"), (4, 0, "two"), (4, 1, "three")]


def test_the_first_segments_are_put_in_order_behind_the_syn() -> None:
    one, two = message("one"), message("two")
    collector = Packets({"fake": Fake})

    events = collected(
        collector,
        [chunk(seconds((0, there(seq=0, flags=SYN)), (1, there(two, 7)), (2, there(one, 1))))],
    )

    assert said(events) == ["one", "two", "end"]
    assert collector.counts["tcp_gaps"] == 0


def test_where_the_first_segment_is_lost_a_gap_is_counted() -> None:
    collector = Packets({"fake": Fake})
    packets = seconds((0, there(seq=0, flags=SYN)), (1, there(message("two"), 7)))

    events = collected(collector, [chunk(packets)])

    assert said(events) == ["two", "end"]
    assert collector.counts["tcp_gaps"] == 1


def test_an_answer_shows_that_a_first_segment_will_not_come() -> None:
    packets = seconds(
        (0, there(seq=0, flags=SYN)),
        (1, back(seq=0, flags=SYN | ACK)),
        (2, there(message("two"), 7)),
        (3, back(message("yes"))),
        (4, there(message("three"), 13)),
    )

    assert said(run(packets)) == ["two", "yes", "three", "end"]


def test_syns_without_payload_are_remembered_within_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 3)
    collector = Packets({"fake": Fake})

    list(
        collector(
            chunk([(T0 + n, segment(f"10.0.1.{n}", 1, *SERVER, SYN, 9)) for n in range(9)]),
        )
    )

    assert len(collector.streams._starts) == 3


def test_strange_segments_behind_a_gap_end_with_their_flow() -> None:
    strange = [(T0 + n, there(b"?", 1 + n)) for n in range(15)]
    held = [(T0 + 20 + n, there(b"?", 30 + 2 * n)) for n in range(9)]
    collector = Packets({"fake": Fake})

    events = collected(collector, [chunk([*strange, *held])])

    assert [event.logsource.category for event in events] == ["flow"]
    assert collector.counts["tcp_gaps"] > 0


def test_behind_a_lost_segment_decoding_goes_on() -> None:
    packets = seconds((0, there(message("one"), 1)))
    packets += [(T0 + 1 + n, there(message("xyz"), 13 + 6 * n)) for n in range(40)]
    collector = Packets({"fake": Fake})

    events = collected(collector, [chunk(packets)])

    assert said(events) == ["one", *["xyz"] * 40, "end"]
    assert collector.counts["tcp_gaps"] == 1


def test_a_new_connection_between_the_same_ports_is_a_new_conversation() -> None:
    packets = seconds(
        (0, there(seq=0, flags=SYN)),
        (1, there(message("one"))),
        (2, there(seq=7, flags=FIN | ACK)),
        (2, back(seq=1, flags=FIN | ACK)),
        (3, there(seq=900, flags=SYN)),
        (4, there(message("two"), 901)),
    )

    events = run(packets)

    assert said(events) == ["one", "two", "end", "end"]
    assert [e.record.place for e in events if e.number >= 1_000_000] == [1, 1, 5, 5]
    flows = [e for e in events if e.logsource.category == "flow"]
    assert [e.fields["network.protocol"] for e in flows] == ["fake", "fake"]


def test_a_decoder_that_raises_is_reported_and_heard_no_more() -> None:
    collector = Packets({"fake": Raises})

    events = collected(
        collector, [chunk(seconds((0, there(message("a"))), (1, there(message("b"), 5))))]
    )

    errors = [e for e in events if e.is_malformed]
    assert len(errors) == 1
    assert "ValueError" in errors[0].fields["event.reason"]
    assert [e.fields["network.packets"] for e in events if not e.is_malformed] == [2]
    assert collector.counts["decoder_faults"] == 1


def test_conversations_beyond_the_bound_push_out_the_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "MAX_STREAMS", 3)
    collector = Packets({"fake": Fake})
    packets = [
        (T0 + n, segment(f"10.0.1.{n}", 1, *SERVER, ACK, 1, message(str(n)))) for n in range(5)
    ]

    events = collected(collector, [chunk(packets)])

    assert said(events)[:5] == ["0", "1", "2", "3", "4"]
    assert collector.counts["streams_crowded_out"] == 2
    assert collector.counts["streams_open"] == 0


def test_an_unknown_link_type_is_reported_once_and_counted() -> None:
    collector = Packets({})
    one = chunk([(T0, b"x")] * 3, link=147)
    two = chunk([(T0, b"x")] * 3, link=147, frame=4)

    events = collected(collector, [one, two])

    assert [(e.record.place, e.is_malformed) for e in events] == [(1, True)]
    assert "147" in events[0].fields["event.reason"]
    assert collector.counts["rejected.link"] == 6


def test_what_cannot_be_metered_is_counted_by_reason() -> None:
    collector = Packets({})
    packets = [
        ether(four(tcp(1, 2), 6))[:40],
        ether(b"\x45" + bytes(10)),
        ether(four(b"x" * 20, 6, fragment=5)),
        ether(b"x" * 40, 0x88CC),
        ether(b"x" * 40, 0x0800),
        ether(b"", 0x0800, [1, 2, 3, 4]),
        ether(four(four(four(four(tcp(1, 2), 6), 4), 4), 4)),
    ]

    collected(collector, [chunk([(T0, packet) for packet in packets])])

    counts = collector.counts
    assert {name: count for name, count in counts.items() if name.startswith("rejected.")} == {
        "rejected.truncated": 2,
        "rejected.bad_header": 1,
        "rejected.fragment": 1,
        "rejected.tunnel": 1,
        "rejected.vlan": 1,
        "rejected.other_l3": 1,
    }
    assert counts["packets"] == 7
    assert counts["merged"] == 0


def test_time_ends_flows_of_an_interface_but_not_of_a_capture() -> None:
    packets = [(T0, datagram(*CLIENT, *SERVER))]
    live, still = Packets({}), Packets({})
    list(live(chunk(packets, live=True)))
    list(still(chunk(packets)))
    now = RECEIVED.fromtimestamp(T0 / 1e9 + 100, RECEIVED.tzinfo)

    assert [e.fields["event.reason"] for e in live.tick(now)] == ["idle"]
    assert list(still.tick(now)) == []


def test_records_that_are_no_chunk_are_reported() -> None:
    record = chunk([(T0, b"x")])[0]

    events = list(Packets({})([record]))

    assert [event.is_malformed for event in events] == [True]


def test_an_empty_batch_gives_nothing() -> None:
    assert list(Packets({})([])) == []
    assert list(Packets({})(chunk([]))) == []


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [True, False])
def test_captures_are_recognised_by_their_first_bytes(order: str, nano: bool) -> None:
    assert is_capture(pcap([], order=order, nano=nano))
    assert not is_capture(b"Mar  1 12:00:00 host sshd[1]: hello")


# Real captures with the decoders that are registered ---------------------------------------


def read(data: Path, name: str) -> list[Event]:
    collector = Packets()
    events = collected(collector, chunks(data / name))
    assert unaccounted(collector, events) == 0
    assert [fault for event in events for fault in faults(event.fields)] == []
    assert len({(event.record.place, event.number) for event in events}) == len(events)
    return events


READ_HERE = ("modbus", "iec104")
"""Counted in every capture; any other protocol where its row says so, it has tests of its own."""
PROTOCOLS = {
    "energy/modbus_icsnpp_example.pcap": {"modbus": 48},
    "energy/modbus_quickdraw_attacks_2.pcap": {"modbus": 281},
    "energy/modbus_umas_modicon_attacks.pcap": {"modbus": 180},
    "energy/iec104_wattson_normal.pcapng": {"iec104": 720},
    "energy/iec104_control_commands.pcap": {"iec104": 76},
    "energy/dnp3_icsnpp_example.pcap": {},
    "energy/c37118_pmu_tcp.pcap": {},
    "energy/s7comm_snap7_read_write_stop_download.pcap": {},
    "energy/opcua_open62541_session.pcap": {"opcua": 68},
    "energy/iec61850_mms_and_goose.pcap": {},
    "energy/triton_tristation_malware.pcap": {"tristation": 896},
    "energy/dlms_meter.pcap": {"dlms": 86},
    "energy/hartip_session.pcap": {"hartip": 48},
    "port/enip_cip_icsnpp_example.pcap": {},
    "port/enip_quickdraw_reboot_restart.pcap": {},
    "port/omron_fins.pcap": {"fins": 243},
    "transport/genisys_rail_signalling.pcap": {},
    "city/rtsp_camera_streams.pcap": {},
    "city/coap_mqtt.pcap": {},
    "city/iot_botnet_telnet_scan.pcap": {},
    "city/bacnet_all_services.pcap": {"bacnet": 7_049},
    "network/ssh_bruteforce_nmap.pcap": {},
    "network/log4shell.pcap": {},
    "network/web_sql_injection.pcap": {},
    "network/ftp_bruteforce.pcap": {},
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_are_found_where_they_are_and_nowhere_else(data: Path, name: str) -> None:
    events = read(data, name)

    counted = {*READ_HERE, *PROTOCOLS[name]}
    messages = Counter(
        e.logsource.service
        for e in events
        if e.logsource.service in counted and e.number < 1_000_000
    )
    assert dict(messages) == PROTOCOLS[name]


def test_the_plant_capture_is_decoded_whole(data: Path) -> None:
    events = read(data, "energy/modbus_plant1_normal.pcap")

    modbus = [e for e in events if e.logsource.service == "modbus" and e.number < 1_000_000]
    requests = [e for e in modbus if e.fields["ot.direction"] == "request"]
    assert len(modbus) == 15_976
    assert {e.fields["source.ip"] for e in modbus} == {"141.81.0.10"}
    assert Counter(e.fields["ot.function.code"] for e in requests).most_common(1)[0][0] == "4"
    assert not any(e.is_malformed for e in events)


def test_the_same_capture_read_again_gives_the_same_events(data: Path) -> None:
    name = "energy/modbus_quickdraw_attacks_1.pcap"

    first, second = read(data, name), read(data, name)

    assert [(e.time, e.record.place, e.number, e.fields) for e in first] == [
        (e.time, e.record.place, e.number, e.fields) for e in second
    ]


# Hostile captures ----------------------------------------------------------------------------


def mutated(r: random.Random, whole: bytes) -> bytes:
    """A capture with some bytes changed, cut out, doubled, or cut off behind its header."""
    out = bytearray(whole)
    for _ in range(r.randrange(1, 6)):
        at, size = r.randrange(24, len(out)), r.randrange(1, 60)
        kind = r.randrange(5)
        if kind == 0:
            out[at] = r.randrange(256)
        elif kind == 1:
            out[at : at + 4] = r.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
        elif kind == 2:
            del out[at : at + size]
        elif kind == 3:
            out[at:at] = out[at : at + size]
        else:
            out[at : at + size] = r.randbytes(size)
        if len(out) < 30:
            break
    if r.random() < 0.2:
        del out[r.randrange(24, len(out) + 1) :]
    return bytes(out)


HOSTILE = (
    "energy/modbus_quickdraw_attacks_1.pcap",
    "energy/iec104_control_commands.pcap",
    "energy/iec104_wattson_normal.pcapng",
    "energy/opcua_open62541_session.pcap",
    "transport/trdp_train_bus.pcapng",
    "network/log4shell.pcap",
    "city/mqtt_publish_without_connect.pcap",
)


PARTS = (4_000, 4_000, 4_000, 1_000_000)
"""Bytes of a capture that a mutant is made of: in few of them a change hits more often."""


def survive(data: Path, tmp_path: Path, seed: int, count: int) -> None:
    """Read mutants: no exception, each packet accounted, every event well-formed."""
    r = random.Random(seed)
    names = [data / name for name in HOSTILE]
    path = tmp_path / "mutant"
    decoders = plugin.load("decoders")
    for _ in range(count):
        path.write_bytes(mutated(r, r.choice(names).read_bytes()[: r.choice(PARTS)]))
        found = batches(path)
        collector = Packets(decoders, slots=r.choice((16, 64, 4096)))
        events = collected(collector, (b.records for b in found if isinstance(b.records, Chunk)))
        assert sum(len(batch.records) for batch in found) == collector.counts["packets"]
        assert unaccounted(collector, events) == 0
        assert [fault for event in events for fault in faults(event.fields)] == []
        counts = collector.counts
        assert (counts["flows_open"], counts["streams_open"]) == (0, 0)
        assert collector.streams.budget.bytes == 0


@pytest.mark.parametrize("seed", range(4))
def test_mutated_captures_are_survived_and_accounted(data: Path, tmp_path: Path, seed: int) -> None:
    survive(data, tmp_path, seed, 100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [*range(100, 104), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(104, 120))],
)
def test_very_many_mutated_captures_are_survived_and_accounted(
    data: Path, tmp_path: Path, seed: int
) -> None:
    """Here some 200,000 packets; each decoder has 5,000 damaged messages of its own besides."""
    survive(data, tmp_path, seed, 1_000)
