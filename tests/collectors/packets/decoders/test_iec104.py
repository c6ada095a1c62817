"""IEC 60870-5-104 against real captures, hand-made frames and hostile bytes."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.packets.decoders.iec104 import CAUSES, OPEN_MAX, TYPES, Iec104, time_tag
from tests.collectors.packets.decoders.streams import Wire, decoded, pieces, session
from tests.programs import PATIENCE_S

CASES = json.loads((Path(__file__).parent / "iec104_cases.json").read_text())

SELECT = bytes.fromhex("2d010600030094110081")
EXECUTE = bytes.fromhex("2d010600030094110001")
CONFIRM = bytes.fromhex("2d010700030094110001")
TERMINATE = bytes.fromhex("2d010a00030094110001")


def wire() -> Wire:
    return Wire(Iec104(session(server="10.0.0.2:2404")))


def i_frame(asdu: bytes, sent: int = 0, received: int = 0) -> bytes:
    return struct.pack("<BBHH", 0x68, 4 + len(asdu), sent << 1, received << 1) + asdu


def s_frame(received: int) -> bytes:
    return struct.pack("<BBHH", 0x68, 4, 1, received << 1)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_frame_means_what_the_standard_says(case: dict[str, Any]) -> None:
    found = wire().send(bytes.fromhex(case["hex"]), case["client"])

    assert {name: found[0].get(name) for name in case["fields"]} == case["fields"]
    assert ("event.kind" in found[0]) == ("event.kind" in case["fields"])


def test_a_command_its_confirmation_and_its_end_share_a_link() -> None:
    line = wire()

    asked = line.send(i_frame(EXECUTE), True)[0]
    confirmed = line.send(i_frame(CONFIRM, 0, 1), False)[0]
    ended = line.send(i_frame(TERMINATE, 1, 1), False)[0]

    assert asked["ot.is_command"] is True
    assert asked["ot.link_id"] == confirmed["ot.link_id"] == ended["ot.link_id"]
    assert (confirmed["ot.is_command"], confirmed["event.outcome"]) == (False, "success")
    assert ended["ot.cause"] == "activation_termination"
    assert line.decoder.end() == []


def test_each_object_of_a_command_is_an_event() -> None:
    asdu = bytes.fromhex("2d0206000300") + bytes.fromhex("01000001") + bytes.fromhex("02000080")

    found = wire().send(i_frame(asdu), True)

    assert [fields["ot.point.address"] for fields in found] == [1, 2]
    assert [fields["ot.value"] for fields in found] == [1, 0]
    assert [fields["ot.operation"] for fields in found] == ["control", "select"]


def test_a_command_nobody_confirmed_is_an_event_at_the_end() -> None:
    line = wire()
    asked = line.send(i_frame(EXECUTE), True)[0]

    left = line.decoder.end()

    assert [fields["event.action"] for fields in left] == ["iec104_unanswered"]
    assert left[0]["ot.link_id"] == asked["ot.link_id"]
    assert left[0]["ot.is_command"] is False


def test_the_oldest_command_is_given_up_when_too_many_are_open() -> None:
    line = wire()
    found = [
        line.send(i_frame(EXECUTE[:6] + bytes((number, 0, 0, 1)), number), True)[0]
        for number in range(OPEN_MAX + 1)
    ]

    assert "event.reason" not in found[OPEN_MAX - 1]
    assert found[OPEN_MAX]["event.reason"] == (
        "command (45, 3, 0) given up unanswered, 64 are open"
    )
    assert len(line.decoder._open) == OPEN_MAX


def test_a_repeated_frame_is_said_and_the_count_goes_on() -> None:
    line = wire()
    line.send(i_frame(SELECT, 5), True)
    line.send(i_frame(EXECUTE, 6), True)

    repeated = line.send(i_frame(SELECT, 5), True)[0]
    following = line.send(i_frame(EXECUTE, 7), True)[0]

    assert repeated["event.reason"] == "I-frame 5 was sent already, 7 is next"
    assert repeated["cw.vendor"]["sequence"] == "repeated"
    assert "event.reason" not in following
    assert line.decoder.tally.out_of_order == 1


def test_a_jump_of_the_numbers_is_said_once() -> None:
    line = wire()
    line.send(i_frame(SELECT, 5), True)

    jumped = line.send(i_frame(EXECUTE, 9), True)[0]
    following = line.send(i_frame(EXECUTE, 10), True)[0]

    assert jumped["event.reason"] == "I-frame 9 where 6 is next"
    assert "event.reason" not in following


def test_numbers_begin_again_behind_32767() -> None:
    line = wire()
    line.send(i_frame(SELECT, 32_767), True)

    assert "event.reason" not in line.send(i_frame(EXECUTE, 0), True)[0]


def test_s_frames_are_counted_and_only_a_wrong_one_is_an_event() -> None:
    line = wire()
    line.send(i_frame(CONFIRM, 0), False)

    right = line.send(s_frame(1), True)
    ahead = line.send(s_frame(4), True)
    back = line.send(s_frame(0), True)

    assert right == []
    assert ahead[0]["event.reason"] == "acknowledges 4, only 1 were sent"
    assert back[0]["event.reason"] == "acknowledges 0 after 1"
    assert line.decoder.tally.s_frames == 3


def test_after_a_gap_numbers_are_taken_as_they_come() -> None:
    line = wire()
    line.send(i_frame(SELECT, 5), True)
    line.decoder.gap(True)

    found = line.send(i_frame(SELECT, 6)[4:] + i_frame(EXECUTE, 9), True)

    assert [fields["event.sequence"] for fields in found] == [9]
    assert "event.reason" not in found[0]


def test_after_rubbish_the_next_frame_is_read() -> None:
    line = wire()

    found = line.send(b"h\x00hello, h\xff" + i_frame(SELECT, 5) + i_frame(EXECUTE, 6), True)

    assert [fields.get("event.kind") for fields in found] == ["pipeline_error", None, None]


def test_a_frame_hidden_behind_a_length_that_lies_is_found() -> None:
    line = wire()
    hidden = i_frame(EXECUTE, 1)
    lie = bytearray(i_frame(SELECT, 0) + hidden)
    lie[1] += len(hidden)

    found = line.send(bytes(lie), True)

    assert [fields.get("event.kind") for fields in found] == ["pipeline_error", None]
    assert found[1]["event.sequence"] == 1


def test_a_cut_frame_is_said_at_the_end() -> None:
    line = wire()

    assert line.send(i_frame(SELECT)[:9], False) == []
    assert line.decoder.end()[0]["event.reason"] == (
        "the conversation ended 9 bytes into a frame of the server"
    )


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("5984240b1c0615", "2021-06-28T11:36:33.881"),
        ("000080000101e3", "2099-01-01T00:00:00.000 invalid"),
        ("60ea00000101 15", "2021-01-01T00:00:60.000 invalid"),
        ("00000018010115", "2021-01-01T24:00:00.000 invalid"),
        ("00000000000015", "2021-00-00T00:00:00.000 invalid"),
        ("598424", "36:33.881"),
    ],
)
def test_time_tags(tag: str, said: str) -> None:
    data = bytes.fromhex(tag)

    assert time_tag(data, 0, len(data)) == said


@given(
    st.sampled_from(sorted(number for number in TYPES if number < 65)),
    st.integers(1, 8),
    st.booleans(),
    st.integers(0, 2**24 - 9),
    st.data(),
)
def test_every_type_with_any_content_is_read(
    number: int, count: int, in_sequence: bool, address: int, data: st.DataObject
) -> None:
    kind = TYPES[number]
    places = [struct.pack("<I", address + index)[:3] for index in range(count)]
    bodies = [data.draw(st.binary(min_size=kind.size, max_size=kind.size)) for _ in range(count)]
    cause = 6 if number > 44 else 3
    asdu = struct.pack("<BBBBH", number, count | in_sequence << 7, cause, 9, 77)
    if in_sequence:
        asdu += places[0] + b"".join(bodies)
    else:
        asdu += b"".join(place + body for place, body in zip(places, bodies, strict=True))
    line = wire()

    found = line.send(i_frame(asdu), number > 44)

    assert Iec104.recognises(i_frame(asdu))
    assert not [fields for fields in found if "event.kind" in fields]
    assert all(fields["ot.function.name"] == kind.name for fields in found)
    assert all(fields["ot.common_address"] == "77" for fields in found)
    if number > 44:
        assert [fields["ot.point.address"] for fields in found] == [
            address + index for index in range(count)
        ]
    else:
        assert [fields["ot.point.count"] for fields in found] == [count]
        assert found[0]["ot.point.address"] == address


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 127))
def test_a_float_setpoint_is_read_as_it_was_sent(value: float, qualifier: int) -> None:
    asdu = bytes.fromhex("320106000400b72003") + struct.pack("<fB", value, qualifier | 128)

    found = wire().send(i_frame(asdu), True)[0]

    assert found["ot.value"] == value
    assert found["cw.vendor"]["qualifier"] == qualifier
    assert found["ot.operation"] == "select"


def test_random_bytes_are_never_an_exception_nor_recognised() -> None:
    chance = random.Random(1)
    line, recognised = wire(), 0
    for number in range(20_000):
        data = chance.randbytes(chance.randrange(80))
        recognised += Iec104.recognises(data)
        line.send(data, bool(number & 1))
        if len(data) % 17 == 0:
            line.decoder.gap(bool(number & 1))

    line.decoder.end()

    assert recognised == 0


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 255), st.binary(min_size=8, max_size=60))))
def test_any_asdu_in_a_right_frame_is_an_event(frames: list[tuple[bool, int, bytes]]) -> None:
    line = wire()
    for number, (from_client, kind, body) in enumerate(frames):
        found = line.send(i_frame(bytes((kind,)) + body, number), from_client)
        assert found

    line.decoder.end()

    assert line.decoder.tally.i_frames >= len(frames)


@pytest.mark.parametrize("step", [1, 3, 7])
def test_how_the_stream_is_split_changes_nothing(data: Path, step: int) -> None:
    whole, split = wire(), wire()
    expected: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for piece in pieces(data / "energy" / "iec104_control_commands.pcap", 2404):
        from_client = piece.destination.endswith(":2404")
        expected += whole.send(piece.data, from_client)
        for at in range(0, len(piece.data), step):
            found += split.send(piece.data[at : at + step], from_client)

    assert len(expected) == 72 + 4
    assert found == expected


def test_control_commands_are_named_frame_by_frame(data: Path) -> None:
    found = list(decoded(Iec104, data / "energy" / "iec104_control_commands.pcap", 2404))

    asked = " ".join(
        f"{frame}:{fields['ot.function.code']}"
        for frame, fields in found
        if fields.get("ot.cause") == "activation"
    )
    assert asked == (
        "9:58 13:58 25:45 29:45 39:63 43:63 51:50 55:50 63:50 67:50 73:100 91:46 109:46 115:59"
        " 119:59 133:59 137:59 154:61 158:61"
    )
    assert sum("ot.cause" in fields for _, fields in found) == 72
    assert sum(fields["event.action"].startswith("iec104_testfr") for _, fields in found) == 4
    assert not [fields for _, fields in found if "event.reason" in fields]
    by_frame = dict(found)
    assert [by_frame[frame]["ot.operation"] for frame in (9, 13)] == ["select", "control"]
    assert (by_frame[39]["ot.point.address"], by_frame[39]["ot.value"]) == (5021, 123.0)
    assert by_frame[41]["ot.link_id"] == by_frame[39]["ot.link_id"]
    assert by_frame[79]["ot.link_id"] == by_frame[73]["ot.link_id"]


def test_control_commands_agree_with_tshark(data: Path) -> None:
    capture = data / "energy" / "iec104_control_commands.pcap"
    names = "frame.number iec60870_asdu.typeid iec60870_asdu.causetx iec60870_asdu.ioa"
    columns = [part for name in names.split() for part in ("-e", name)]
    said = subprocess.run(
        ["tshark", "-r", str(capture), "-Y", "iec60870_asdu", "-T", "fields", *columns],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout
    theirs = [
        [cell.split(",")[0] for cell in line.split("\t")] for line in said.splitlines() if line
    ]

    ours = [
        [
            str(frame),
            fields["ot.function.code"],
            str(fields["cw.vendor"]["cause_code"]),
            str(fields["ot.point.address"]),
        ]
        for frame, fields in decoded(Iec104, capture, 2404)
        if "ot.cause" in fields
    ]
    assert len(theirs) == 72
    assert ours == theirs


def test_wattson_baseline_has_the_known_types_and_causes(data: Path) -> None:
    found = list(decoded(Iec104, data / "energy" / "iec104_wattson_normal.pcapng", 2404))

    counts = Counter(
        f"{fields['ot.function.code']}/{fields['cw.vendor']['cause_code']}" for _, fields in found
    )
    assert counts == {
        "13/1": 400,
        "13/5": 64,
        "102/5": 64,
        "50/6": 48,
        "50/7": 48,
        "13/20": 16,
        "103/6": 16,
        "103/7": 16,
        "100/6": 16,
        "100/7": 16,
        "100/10": 16,
    }
    assert not [fields for _, fields in found if "event.reason" in fields]
    assert all(
        "ot.link_id" in fields for _, fields in found if fields["ot.direction"] != "unsolicited"
    )


def test_each_labelled_clone_is_said(data: Path) -> None:
    """TCP itself drops these clones, as it has their bytes; here every frame is fed.

    A clone that was put before the connection it comes from looks like its beginning; then the
    number goes back at the original, up to which everything is said to be repeated.
    """
    folder, name = data / "energy", "iec104_wattson_replay_9clones"
    labels = (folder / f"{name}.labels.txt").read_text()
    found = decoded(Iec104, folder / f"{name}.pcapng", 2404, again=True)

    said = {
        frame
        for frame, fields in found
        if fields.get("cw.vendor", {}).get("sequence") == "repeated"
    }

    assert labels.count("Cloned packet: ") == 9
    later_of_pairs = {95, 371, 428, 609, 656, 517} | {548, 599, 657}
    assert later_of_pairs <= said
    early_clones = {*range(353, 371), *range(412, 428), *range(648, 656)}
    assert said - later_of_pairs <= early_clones


def test_the_baseline_has_no_frame_out_of_order_even_without_tcp(data: Path) -> None:
    capture = data / "energy" / "iec104_wattson_normal.pcapng"

    found = list(decoded(Iec104, capture, 2404, again=True))

    assert len(found) == 720
    assert not [fields for _, fields in found if "event.reason" in fields]


@pytest.mark.parametrize(
    "captures", ["iec104_*", pytest.param("*", marks=[pytest.mark.slow, pytest.mark.full])]
)
def test_no_other_protocol_of_the_captures_is_taken_for_iec104(captures: str, data: Path) -> None:
    """What tshark finds in all captures in `full`; what each begins with: test_all_decoders."""
    taken, own = {}, {}
    for capture in sorted(data.rglob(f"{captures}.pcap*")):
        try:
            read = pieces(capture)
        except subprocess.CalledProcessError:
            continue  # a capture that tshark cannot read
        count = sum(Iec104.recognises(piece.data) for piece in read)
        if capture.name.startswith("iec104_"):
            own[capture.name] = len(read) - count
        elif count:
            taken[capture.name] = count

    assert taken == {}
    assert set(own.values()) == {0}
    assert len(own) == 3


def test_every_type_and_cause_has_its_own_name() -> None:
    assert len({kind.name for kind in TYPES.values()}) == len(TYPES) == 67
    assert len(set(CAUSES.values())) == len(CAUSES)
