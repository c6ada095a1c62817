"""Sampled values by hand and from a merging unit."""

from __future__ import annotations

import random
import time
from operator import itemgetter
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.sampled_values import ETHERTYPE, STREAMS_MAX, SampledValues
from tests.collectors.packets.decoders.link import (
    captured,
    frames_of,
    frames_without_ip,
    heard,
    speaker,
)


def tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    return (
        bytes((tag, size)) + value if size < 128 else bytes((tag, 0x82)) + pack(">H", size) + value
    )


def asdu(number: int, stream: str = "MU1", revision: int = 1, synchronised: int = 2) -> bytes:
    parts = (
        tlv(0x80, stream.encode()),
        tlv(0x82, pack(">H", number)),
        tlv(0x83, pack(">I", revision)),
        tlv(0x85, bytes((synchronised,))),
        tlv(0x87, bytes(64)),
    )
    return tlv(0x30, b"".join(parts))


def frame(*asdus: bytes, simulated: bool = False) -> bytes:
    body = tlv(0x60, tlv(0x80, bytes((len(asdus),))) + tlv(0xA2, b"".join(asdus)))
    return pack(">HHHH", 0x4000, 8 + len(body), 0x8000 * simulated, 0) + body


def sent(*numbers: int, step_s: float = 0.001) -> list[dict[str, Any]]:
    """What these samples of one stream give, but for the first event."""
    unit = speaker(SampledValues)
    found: list[dict[str, Any]] = []
    for at, number in enumerate(numbers):
        found += heard(unit, frame(asdu(number)), at * step_s)
    return [*found, *unit.end()][1:]


def counted(fields: dict[str, Any]) -> tuple[str, int, int, int]:
    own = fields["cw.vendor"]
    return fields["event.action"], own["samples"], own["lost"], own["repeated"]


def test_a_stream_seen_for_the_first_time_is_said() -> None:
    (fields,) = heard(speaker(SampledValues), frame(asdu(17)))

    assert fields["event.action"] == "sv_first_seen"
    assert (fields["ot.unit"], fields["event.sequence"]) == ("MU1", 17)
    assert fields["cw.vendor"] == {
        "app_id": "0x4000",
        "simulation": False,
        "conf_rev": 1,
        "dat_set": "",
        "synchronisation": "global",
        "frames": 1,
        "samples": 1,
        "lost": 0,
        "repeated": 0,
        "first": 17,
        "last": 17,
    }


def test_a_second_is_one_event() -> None:
    found = sent(*range(2_500))

    assert [counted(fields) for fields in found] == [
        ("sv_samples", 1000, 0, 0),
        ("sv_samples", 1000, 0, 0),
        ("sv_samples", 499, 0, 0),
    ]
    assert [fields["event.duration"] for fields in found[:2]] == [1_000_000_000] * 2
    assert found[0]["event.kind"] == "metric"


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((0, 1, 5, 6), ("sv_samples_lost", 3, 3, 0)),
        ((3998, 3999, 0, 1), ("sv_samples", 3, 0, 0)),
        ((4797, 4798, 0, 1), ("sv_samples_lost", 3, 1, 0)),
        ((4799, 3), ("sv_samples_lost", 1, 3, 0)),
        ((7, 8, 8, 9), ("sv_samples", 3, 0, 1)),
        ((7, 8, 9, 8), ("sv_samples", 3, 0, 1)),
        ((65534, 65535, 0), ("sv_samples", 2, 0, 0)),
    ],
)
def test_missing_and_repeated_samples_are_counted(
    numbers: tuple[int, ...], expected: tuple[str, int, int, int]
) -> None:
    (fields,) = sent(*numbers)

    assert counted(fields) == expected


@pytest.mark.parametrize(
    ("other", "action", "reason"),
    [
        (
            frame(asdu(2, synchronised=0)),
            "sv_synchronisation_changed",
            "synchronisation was global, it is none",
        ),
        (
            frame(asdu(2), simulated=True),
            "sv_simulation_changed",
            "simulation was False, it is True",
        ),
        (frame(asdu(2, revision=3)), "sv_configuration_changed", "conf_rev was 1, it is 3"),
    ],
)
def test_what_a_stream_says_of_itself_anew_is_an_event(
    other: bytes, action: str, reason: str
) -> None:
    unit = speaker(SampledValues)
    for data in (frame(asdu(0)), frame(asdu(1))):
        heard(unit, data)

    (fields,) = heard(unit, other)

    assert (fields["event.action"], fields["event.reason"]) == (action, reason)
    assert fields["cw.vendor"]["frames"] == 2
    assert unit.end() == []


def test_several_samples_in_a_frame_are_one_frame() -> None:
    unit = speaker(SampledValues)

    found = heard(unit, frame(asdu(0, "A"), asdu(0, "B"))) + heard(unit, frame(asdu(1, "A")))
    found += unit.end()

    assert sum(fields["cw.vendor"]["frames"] for fields in found) == 2
    assert sum(fields["cw.vendor"]["samples"] for fields in found) == 3


def test_the_streams_of_a_sender_are_bounded_and_no_frame_is_lost() -> None:
    unit = speaker(SampledValues)
    found = []

    for number in range(STREAMS_MAX + 10):
        found += heard(unit, frame(asdu(0, f"MU{number}")))
        found += heard(unit, frame(asdu(1, f"MU{number}")))
        assert len(unit._streams) <= STREAMS_MAX
    found += unit.end()

    assert sum(fields["cw.vendor"]["frames"] for fields in found) == 2 * (STREAMS_MAX + 10)


def test_what_is_cut_or_no_sample_is_reported() -> None:
    whole = frame(asdu(0))
    reasons = [
        heard(speaker(SampledValues), data)[0]["event.reason"]
        for data in (b"", whole[:-1], whole[:8] + b"\x61" + whole[9:], frame(), frame(b"\x30\0"))
    ]

    assert reasons == [
        "0 bytes are no header of sampled values",
        f"the header claims {len(whole)} bytes, {len(whole) - 1} were captured",
        "tag 0x61 is no savPdu",
        "the message has no sample",
        "the sample at byte 17 has no svID or no counter of 16 bits",
    ]


def test_sampled_values_keep_what_a_decoder_promises() -> None:
    frames = [(True, frame(asdu(number))) for number in range(3)]

    check_decoder(SampledValues, frames, transport="link")


def test_frames_known_by_their_shape_mean_what_they_mean_when_read() -> None:
    draw = random.Random(61850)
    quick, slow = speaker(SampledValues), speaker(SampledValues)
    quick_found: list[dict[str, Any]] = []
    slow_found: list[dict[str, Any]] = []
    numbers = dict.fromkeys((f"MU{number}" for number in range(12)), 0)

    for at in range(4_000):
        names = draw.choices(list(numbers)[: draw.choice((3, 12))], k=draw.choice((1, 1, 1, 2)))
        parts = []
        for name in names:
            numbers[name] = (numbers[name] + draw.choice((0, 1, 1, 1, 1, 1, 1, 5))) % 4_000
            parts.append(asdu(numbers[name], name, draw.choice([1] * 30 + [2])))
        data = frame(*parts, simulated=draw.random() < 0.02)
        quick_found += heard(quick, data, at / 100)
        slow_found += heard(slow, data, at / 100)
        slow._shapes.clear()

    assert quick_found == slow_found
    by_stream = itemgetter("ot.unit")
    assert sorted(quick.end(), key=by_stream) == sorted(slow.end(), key=by_stream)


def test_every_frame_of_the_merging_unit_is_in_an_event(data: Path) -> None:
    events = captured(SampledValues, data / "energy" / "iec61850_sampled_values.pcap")

    own = [event.fields["cw.vendor"] for event in events]
    assert [event.fields["event.action"] for event in events] == ["sv_first_seen"] + [
        "sv_samples"
    ] * 3
    assert frames_of(events) == sum(one["samples"] for one in own) == 10_161
    assert {event.fields["ot.unit"] for event in events} == {"4001"}
    assert {event.fields["source.mac"] for event in events} == {"CA-FE-C0-FF-EE-69"}
    assert {event.fields["network.vlan.id"] for event in events} == {"1"}
    assert [(one["lost"], one["repeated"]) for one in own] == [(0, 0)] * 4
    assert sum(event.fields["event.duration"] for event in events) == pytest.approx(
        2.12e9, abs=0.01e9
    )


def test_a_usual_sample_is_counted_in_microseconds() -> None:
    unit = speaker(SampledValues)
    frames = [frame(asdu(number)) for number in range(4_000)]

    began = time.process_time()
    for at, data in enumerate(frames):
        unit.feed(data, True, at / 4_000, at)
    took = time.process_time() - began

    assert took / len(frames) < 20e-6


def test_no_other_frame_is_taken_for_a_sample(data: Path) -> None:
    assert not any(map(SampledValues.recognises, frames_without_ip(data, ETHERTYPE)))
