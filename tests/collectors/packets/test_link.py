"""Frames without IP to decoders, and decoders that need not be asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, LogSource, Session, decoder
from cityward.fields import faults
from collectors.packets.capture import MAX_PACKETS
from collectors.packets.link import IDLE_NS
from collectors.packets.packets import Packets
from collectors.packets.streams import Registry
from collectors.packets.walk import TCP, UDP
from tests.collectors.packets.wire import (
    T0,
    Packet,
    chunk,
    chunks,
    collected,
    datagram,
    ether,
    seconds,
    segment,
    unaccounted,
)

TEST = LogSource(category="ot_protocol", service="test")
ONE, TWO, ALL = b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b", b"\xff" * 6


class Counts:
    """Says how many frames it saw and what is in this one; what begins with `-` it keeps."""

    def __init__(self, session: Session) -> None:
        self.session, self.count = session, 0

    @staticmethod
    def recognises(head: bytes) -> bool:
        return head[:1] in b"ab"

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[dict[str, Any]]]:
        self.count += 1
        if data[:1] == b"!":
            raise ValueError("no")
        if data[:1] == b"-":
            return len(data), []
        return len(data), [self._say(data.decode("latin-1"))]

    def gap(self, from_client: bool) -> None: ...

    def end(self) -> Sequence[dict[str, Any]]:
        return [self._say("end")]

    def _say(self, text: str) -> dict[str, Any]:
        own = {"event.action": "said", "ot.value_raw": text, "event.sequence": self.count}
        return {**self.session.base, **own}


@decoder("one", TEST, transport="link", ethertypes=(0x88B5,))
class One(Counts):
    """Of a kind that is not metered."""


@decoder("goosy", TEST, transport="link", ethertypes=(0x88B8,))
class Goosy(Counts):
    """Of a kind that is metered."""


@decoder("second", TEST, transport=("link", "udp"), ethertypes=(0x88B5,), ports=[7000])
class Second(Counts):
    """Of the same kind as `One`, told apart by structure; also in datagrams."""

    @staticmethod
    def recognises(head: bytes) -> bool:
        return head[:1] == b"s"


@decoder("both", TEST, transport=("tcp", "udp"), ports=[9000], begins=b"a")
class Both(Counts):
    """On two transports."""


def made(*decoders: Any) -> Packets:
    return Packets({one.cityward_spec.name: one for one in decoders})


def run(collector: Packets, packets: Sequence[Packet], size: int = MAX_PACKETS) -> list[Event]:
    pieces = [chunk(packets[at : at + size], frame=at + 1) for at in range(0, len(packets), size)]
    events = collected(collector, pieces)
    assert unaccounted(collector, events) == 0
    assert [fault for event in events for fault in faults(event.fields)] == []
    assert len({(event.record.place, event.number) for event in events}) == len(events)
    return events


def said(events: Sequence[Event]) -> list[tuple[Any, int, Any, Any]]:
    """Frame, number, text and count of what the decoders said."""
    return [
        (e.record.place, e.number, e.fields["ot.value_raw"], e.fields["event.sequence"])
        for e in events
        if e.logsource == TEST and "ot.value_raw" in e.fields
    ]


def frame(data: bytes, of: bytes = ONE, to: bytes = ALL, kind: int = 0x88B5, tag: int = 0) -> bytes:
    return ether(data, kind, [tag] if tag else [], of=of, to=to)


@pytest.mark.parametrize("size", [1, 2, MAX_PACKETS])
def test_all_frames_of_one_kind_from_one_sender_are_a_conversation(size: int) -> None:
    collector = made(One)

    events = run(
        collector,
        seconds(
            (0, frame(b"a")),
            (1, frame(b"b", TWO)),
            (2, frame(b"-")),
            (3, frame(b"c", tag=7)),
            (4, frame(b"d")),
        ),
        size,
    )

    assert said(events) == [
        (1, 0, "a", 1),
        (2, 0, "b", 1),
        (4, 0, "c", 1),
        (5, 0, "d", 3),
        (2, 2_000_000, "end", 1),
        (4, 2_000_000, "end", 1),
        (1, 2_000_000, "end", 3),
    ]
    assert (collector.counts["rejected.decoded"], collector.counts["merged"]) == (5, 0)


def test_an_event_names_both_hardware_addresses_the_kind_and_the_network() -> None:
    (event, *_) = run(made(One), seconds((0, frame(b"a", tag=7))))

    assert event.logsource == TEST
    assert event.fields == {
        "source.mac": "02-00-00-00-00-0A",
        "destination.mac": "FF-FF-FF-FF-FF-FF",
        "network.type": "0x88b5",
        "network.protocol": "one",
        "network.vlan.id": "7",
        "event.dataset": "packets.one",
        "event.action": "said",
        "ot.value_raw": "a",
        "event.sequence": 1,
    }


def test_an_event_of_a_frame_to_another_address_says_that_one() -> None:
    events = run(made(One), seconds((0, frame(b"a")), (1, frame(b"b", to=TWO))))

    to = [event.fields["destination.mac"][-2:] for event in events]
    assert to == ["FF", "0B", "FF"]


def test_metered_frames_stay_in_their_flow() -> None:
    collector = made(Goosy)

    events = run(collector, seconds((0, frame(b"a", kind=0x88B8)), (1, frame(b"-", kind=0x88B8))))

    flow = next(e for e in events if e.logsource.category == "flow")
    assert (flow.fields["network.type"], flow.fields["network.packets"]) == ("goose", 2)
    assert [text for _, _, text, _ in said(events)] == ["a", "end"]
    assert "rejected.decoded" not in collector.counts


def test_frames_that_no_decoder_takes_are_counted_as_before() -> None:
    collector = made(One)

    run(collector, seconds((0, frame(b"a", kind=0x88CC)), (1, frame(b"a"))))

    assert collector.counts["rejected.other_l3"] == 1
    assert collector.counts["rejected.decoded"] == 1


def test_data_is_what_was_captured_behind_the_ethertype() -> None:
    events = run(made(One), seconds((0, frame(b"")), (1, frame(b"abc", tag=3)), (2, frame(b"d"))))

    assert [text for _, _, text, _ in said(events)][:3] == ["", "abc", "d"]


def test_of_two_decoders_of_one_kind_the_one_that_recognises_a_frame_reads_it() -> None:
    events = run(made(One, Second), seconds((0, frame(b"a")), (1, frame(b"s")), (2, frame(b"?"))))

    who = [(e.fields["network.protocol"], e.fields["ot.value_raw"]) for e in events]
    assert who == [("one", "a"), ("second", "s"), ("one", "?"), ("second", "end"), ("one", "end")]


def test_a_decoder_that_raises_is_heard_no_more_on_its_conversation_only() -> None:
    collector = made(One)

    events = run(collector, seconds((0, frame(b"!")), (1, frame(b"a")), (2, frame(b"b", TWO))))

    assert events[0].fields["event.kind"] == "pipeline_error"
    assert "ValueError('no')" in events[0].fields["event.reason"]
    assert [text for _, _, text, _ in said(events)] == ["b", "end"]
    assert collector.counts["decoder_faults"] == 1


def test_the_conversation_that_was_silent_longest_gives_way_and_is_counted() -> None:
    collector = made(One)
    collector.links.max_conversations = 2
    senders = [bytes((2, 0, 0, 0, 0, number)) for number in (1, 2, 1, 3)]

    events = run(collector, seconds(*((n, frame(b"a", of)) for n, of in enumerate(senders))))

    assert said(events)[3] == (2, 2_000_000, "end", 1)
    assert (collector.counts["links_crowded_out"], collector.counts["links_open"]) == (1, 0)


def test_a_flood_of_senders_is_bounded() -> None:
    collector = made(One)
    senders = (b"\x06" + number.to_bytes(5, "big") for number in range(20_000))

    collector_events = list(collector(chunk([(T0, frame(b"-", of)) for of in senders])))

    assert collector.counts["links_open"] == 8_192
    assert collector.counts["links_crowded_out"] == len(collector_events) == 20_000 - 8_192


def test_a_conversation_ends_after_long_silence_of_its_sender() -> None:
    late = IDLE_NS / 1e9 + 1

    events = run(
        made(One), seconds((0, frame(b"a")), (1, frame(b"-", TWO)), (late, frame(b"b", TWO))), 1
    )

    assert said(events)[1:3] == [(3, 0, "b", 2), (1, 2_000_000, "end", 1)]
    assert said(events)[-1] == (2, 2_000_000, "end", 2)


def test_a_decoder_on_two_transports_reads_both() -> None:
    events = run(
        made(Both, Second),
        seconds(
            (0, segment("10.0.0.1", 5, "10.0.0.2", 9000, data=b"at")),
            (1, datagram("10.0.0.1", 5, "10.0.0.2", 9000, b"au")),
            (2, datagram("10.0.0.1", 5, "10.0.0.2", 7000, b"su")),
        ),
    )

    heard = [
        (e.fields["network.transport"], e.fields["network.protocol"], e.fields["ot.value_raw"])
        for e in events
        if e.logsource == TEST
    ]
    assert heard[:3] == [("tcp", "both", "at"), ("udp", "both", "au"), ("udp", "second", "su")]


def test_only_decoders_that_may_begin_so_are_asked() -> None:
    asked: list[str] = []

    def fake(name: str, begins: bytes = b"", ports: Sequence[int] = ()) -> Any:
        class Fake(Counts):
            @staticmethod
            def recognises(head: bytes) -> bool:
                asked.append(name)
                return False

        return decoder(name, TEST, begins=begins, ports=ports)(Fake)

    decoders = [fake("a", b"ax"), fake("any"), fake("b", b"b"), fake("x", b"x", [9])]
    registry = Registry({one.cityward_spec.name: one for one in decoders})

    assert registry.recognise(TCP, 1, 2, b"x1") is None
    assert registry.recognise(TCP, 1, 9, b"x1") is None
    assert registry.recognise(UDP, 1, 2, b"x1") is None
    assert registry.recognise(TCP, 1, 2, b"") is None

    assert asked == ["a", "any", "x", "x", "a", "any"]
    assert registry.expects(TCP, 9, 1)
    assert not registry.expects(UDP, 9, 1)


@pytest.mark.parametrize(
    "name",
    [
        "energy/iec61850_goose_sample.pcap",
        "energy/iec61850_sampled_values.pcap",
        "port/profinet_dcp_change_ip.pcap",
        "network/arp_scan.pcap",
    ],
)
def test_no_broken_frame_is_lost_or_breaks_a_decoder(data: Path, name: str) -> None:
    draw = random.Random(name)
    whole = [piece.packet(row) for piece in chunks(data / name) for row in range(len(piece))]
    packets = []
    for number in range(3_000):
        frame = bytearray(whole[number % len(whole)])
        for _ in range(draw.choice((0, 1, 1, 3))):
            frame[draw.randrange(12, len(frame))] = draw.randrange(256)
        packets.append((T0 + number * 1_000_000, bytes(frame[: draw.randint(0, 2 * len(frame))])))
    collector = Packets()

    events = run(collector, packets, 500)

    assert collector.counts["decoder_faults"] == 0
    assert any(event.is_malformed for event in events)
