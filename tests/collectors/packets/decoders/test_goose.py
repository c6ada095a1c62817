"""GOOSE by hand and from captures of a substation."""

from __future__ import annotations

import random
import subprocess
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.goose import BLOCKS_MAX, ETHERTYPE, LAST, Goose
from tests.collectors.packets.decoders.link import (
    captured,
    frames_of,
    frames_without_ip,
    heard,
    speaker,
)

REF = "AA1LD0/LLN0$GO$gcb_A"
OFF, ON = bytes.fromhex("830100"), bytes.fromhex("830101")


def tlv(tag: int, value: bytes) -> bytes:
    size = len(value)
    return (
        bytes((tag, size)) + value if size < 128 else bytes((tag, 0x82)) + pack(">H", size) + value
    )


def goose(
    state: int,
    number: int,
    values: bytes = OFF,
    *,
    ref: str = REF,
    revision: int = 1,
    simulated: bool = False,
    test: bool = False,
    ttl_ms: int = 2000,
) -> bytes:
    pdu = (
        tlv(0x80, ref.encode()),
        tlv(0x81, pack(">H", ttl_ms)),
        tlv(0x82, b"AA1LD0/LLN0$Trip"),
        tlv(0x83, b"Trip"),
        tlv(0x84, bytes.fromhex("488890c124000027")),
        tlv(0x85, pack(">xI", state)),
        tlv(0x86, pack(">xI", number)),
        tlv(0x87, bytes((test,))),
        tlv(0x88, bytes((revision,))),
        tlv(0x89, b"\0"),
        tlv(0x8A, b"\x01"),
        tlv(0xAB, values),
    )
    body = tlv(0x61, b"".join(pdu))
    return pack(">HHHH", 0x3001, 8 + len(body), 0x8000 * simulated, 0) + body


def actions(*frames: bytes, step_s: float = 0.1) -> list[tuple[str, int, str]]:
    """Action, frames and reason of what a sender's frames give, but of the first."""
    device = speaker(Goose)
    found: list[dict[str, Any]] = []
    for at, data in enumerate(frames):
        found += heard(device, data, at * step_s)
    return [
        (one["event.action"], one["cw.vendor"]["frames"], one.get("event.reason", ""))
        for one in (*found, *device.end())
    ][1:]


def test_a_control_block_seen_for_the_first_time_is_said_in_full() -> None:
    (fields,) = heard(speaker(Goose), goose(7, 3, OFF + bytes.fromhex("84020640")))

    assert fields["event.action"] == "goose_first_seen"
    assert fields["event.sequence"] == 3
    assert fields["event.start"] == datetime(2008, 7, 24, 14, 25, 5, 140625, tzinfo=UTC)
    assert fields["ot.unit"] == REF
    assert fields["ot.value_raw"] == "false,01"
    assert fields["cw.vendor"] == {
        "app_id": "0x3001",
        "gocb_ref": REF,
        "dat_set": "AA1LD0/LLN0$Trip",
        "go_id": "Trip",
        "ttl_ms": 2000,
        "st_num": 7,
        "sq_num": 3,
        "simulation": False,
        "conf_rev": 1,
        "nds_com": False,
        "entries": 1,
        "frames": 1,
    }


def test_repetitions_are_counted_in_the_next_state() -> None:
    found = actions(goose(7, 0), goose(7, 1), goose(7, 2), goose(7, 2), goose(8, 0, ON))

    assert found == [("goose_state_change", 4, "")]


def test_what_changed_is_named_by_its_place() -> None:
    device = speaker(Goose)
    heard(device, goose(7, 0, OFF + OFF))

    (fields,) = heard(device, goose(8, 0, OFF + ON))

    assert fields["cw.vendor"]["changed"] == "1: false > true"


def test_repetitions_that_nothing_followed_are_said_at_the_end() -> None:
    assert actions(goose(7, 0), goose(7, 1), goose(7, 2)) == [("goose_retransmitted", 2, "")]


def test_long_repetition_is_said_every_five_minutes() -> None:
    frames = [goose(7, number, ttl_ms=60_000) for number in range(21)]

    found = actions(*frames, step_s=30.0)

    assert found == [("goose_retransmitted", 10, "")] * 2


@pytest.mark.parametrize(
    ("frame", "action", "reason"),
    [
        (goose(9, 0), "goose_state_jump", "state 7 was followed by 9: 1 were not seen"),
        (goose(5, 0), "goose_state_fell", "state 7 was followed by 5"),
        (
            goose(1, 0),
            "goose_state_fell",
            "state 7 was followed by 1, as after a restart of the device",
        ),
        (goose(7, 9), "goose_sequence_gap", "5 repetitions between 3 and 9 were not seen"),
        (goose(7, 1), "goose_sequence_fell", "repetition 3 was followed by 1"),
        (goose(7, 4, ON), "goose_data_changed", "values changed without a new state"),
        (
            goose(7, 4, simulated=True),
            "goose_simulation_changed",
            "what the control block tells is simulated now",
        ),
        (
            goose(7, 4, test=True),
            "goose_simulation_changed",
            "what the control block tells is simulated now",
        ),
        (
            goose(7, 4, revision=2),
            "goose_configuration_changed",
            "conf_rev was 1, it is 2",
        ),
    ],
)
def test_what_is_odd_is_an_event_of_its_own(frame: bytes, action: str, reason: str) -> None:
    assert actions(goose(7, 3), frame) == [(action, 1, reason)]


def test_several_odd_things_of_a_frame_are_several_events_and_one_frame() -> None:
    found = actions(goose(7, 3), goose(7, 4), goose(9, 0, revision=2))

    assert [(action, frames) for action, frames, _ in found] == [
        ("goose_configuration_changed", 2),
        ("goose_state_jump", 0),
    ]


def test_a_message_that_comes_too_late_is_said() -> None:
    found = actions(goose(7, 3, ttl_ms=1000), goose(7, 4), step_s=1.5)

    assert found == [
        (
            "goose_late",
            1,
            "1500 ms after the last one, which was to be followed in 1000 ms",
        )
    ]


def test_numbers_that_begin_again_behind_the_last_one_are_no_fault() -> None:
    found = actions(goose(LAST, LAST), goose(LAST, 1), goose(1, 0))

    assert found == [("goose_state_change", 2, "")]


def test_the_control_blocks_of_a_sender_are_bounded_and_none_is_lost() -> None:
    device = speaker(Goose)
    names = [f"B{number}" for number in range(BLOCKS_MAX + 10)]
    found = []

    for name in names:
        found += heard(device, goose(1, 0, ref=name)) + heard(device, goose(1, 1, ref=name))
    found += device.end()

    assert sum(fields["cw.vendor"]["frames"] for fields in found) == 2 * len(names)
    assert len(device._blocks) == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("8301ff", "true"),
        ("84020640", "01"),
        ("8501fe", "-2"),
        ("860200ff", "255"),
        ("87050842f60000", "123"),
        ("8702aabb", "aabb"),
        ("8a026869", "hi"),
        ("9108488890c124000027", "2008-07-24T14:25:05.140625Z"),
        ("a206830100850105", "false,5"),
        ("8c0400112233", "00112233"),
        ("8300", "false"),
        ("8400", ""),
    ],
)
def test_values_are_read_by_their_kind(value: str, text: str) -> None:
    (fields,) = heard(speaker(Goose), goose(1, 0, bytes.fromhex(value)))

    assert fields["ot.value_raw"] == text


def test_what_is_cut_or_no_goose_is_reported_and_counted() -> None:
    whole = goose(1, 0)
    reasons = []
    for data in (b"\x30", whole[:-1], whole[:8] + b"\x62" + whole[9:], whole[:8] + b"\x61\0"):
        (fields,) = heard(speaker(Goose), data)
        assert (fields["event.kind"], fields["cw.vendor"]) == ("pipeline_error", {"frames": 1})
        reasons.append(fields["event.reason"])

    assert reasons == [
        "1 bytes are no GOOSE header",
        f"the header claims {len(whole)} bytes, {len(whole) - 1} were captured",
        "tag 0x62 is no goosePdu",
        f"the header claims {len(whole)} bytes, 10 were captured",
    ]


def test_values_that_break_off_are_said_within_the_event() -> None:
    (fields,) = heard(speaker(Goose), goose(1, 0, OFF + b"\x83\x05"))

    assert fields["ot.value_raw"].startswith("? the element at byte 3 claims 5 bytes")


def test_goose_keeps_what_a_decoder_promises() -> None:
    frames = [(True, data) for data in (goose(1, 0), goose(1, 1), goose(2, 0, ON))]

    check_decoder(Goose, frames, transport="link")


def test_frames_known_by_their_shape_mean_what_they_mean_when_read() -> None:
    draw = random.Random(61850)
    quick, slow = speaker(Goose), speaker(Goose)
    state, number, time_s = 5, 0, 0.0
    quick_found: list[dict[str, Any]] = []
    slow_found: list[dict[str, Any]] = []

    for _ in range(3_000):
        state, number = draw.choice([(state, number + 1)] * 12 + [(state + 1, 0), (state, 3)])
        time_s += draw.choice([0.1, 0.2, 0.5, 20.0])
        data = goose(
            state,
            number,
            draw.choice([OFF] * 9 + [ON]),
            ref=draw.choice([REF, REF[:-1] + "B"]),
            ttl_ms=draw.choice([30_000] * 9 + [10]),
        )
        quick_found += heard(quick, data, time_s)
        slow_found += heard(slow, data, time_s)
        slow._shapes.clear()

    assert quick_found == slow_found
    assert quick.end() == slow.end()


def test_every_frame_of_the_substation_is_in_an_event(data: Path) -> None:
    by_block = defaultdict(list)
    for event in captured(Goose, data / "energy" / "iec61850_goose_sample.pcap"):
        by_block[event.fields["ot.unit"][:8]].append(event)

    states = {
        name: [e.fields["cw.vendor"]["st_num"] for e in events] for name, events in by_block.items()
    }
    assert {name: frames_of(events) for name, events in by_block.items()} == {
        "AA1C1Q05": 167,
        "AA1C1Q07": 164,
        "AA1C1Q01": 120,
    }
    assert {name: (min(of), max(of)) for name, of in states.items()} == {
        "AA1C1Q05": (35855, 35954),
        "AA1C1Q07": (35799, 35887),
        "AA1C1Q01": (36705, 36768),
    }
    assert all(sorted(of) == of for of in states.values())
    said = {e.fields["event.action"] for events in by_block.values() for e in events}
    # These devices do send new values in a repetition, 18 times.
    assert said == {
        "goose_first_seen",
        "goose_state_change",
        "goose_data_changed",
        "goose_retransmitted",
    }


def test_goose_among_other_protocols_is_found(data: Path) -> None:
    events = captured(Goose, data / "energy" / "iec61850_mms_and_goose.pcap")

    assert frames_of(events) == 34
    assert len({e.fields["ot.unit"] for e in events}) == 3
    assert not [e for e in events if e.is_malformed]


@pytest.mark.slow
def test_states_and_values_agree_with_tshark(data: Path) -> None:
    capture = data / "energy" / "iec61850_goose_sample.pcap"
    names = ("frame.number", "goose.stNum", "goose.sqNum", "goose.confRev", "goose.boolean")
    columns = [part for name in names for part in ("-e", name)]
    told = subprocess.run(
        ["tshark", "-r", str(capture), "-T", "fields", *columns],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = {}
    for line in told.stdout.splitlines():
        frame, *rest = line.split("\t")
        expected[int(frame)] = rest

    shown = 0
    for event in captured(Goose, capture):
        if event.fields["event.kind"] != "event":
            continue
        own = event.fields["cw.vendor"]
        state, number, revision, booleans = expected[int(event.record.place)]
        values = event.fields["ot.value_raw"].split(",")
        mine = ["1" if value == "true" else "0" for value in values if value in ("true", "false")]
        assert [str(own[name]) for name in ("st_num", "sq_num", "conf_rev")] == [
            state,
            number,
            revision,
        ]
        assert ",".join(mine) == booleans.replace("True", "1").replace("False", "0")
        shown += 1
    assert shown == 271


def test_no_other_frame_is_taken_for_goose(data: Path) -> None:
    assert not any(map(Goose.recognises, frames_without_ip(data, ETHERTYPE)))
