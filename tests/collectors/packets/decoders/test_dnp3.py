"""DNP3 against real captures, hand-made frames, tshark and hostile bytes."""

from __future__ import annotations

import random
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cityward.checks import check_decoder
from collectors.packets.decoders.dnp3 import (
    ASSEMBLIES_MAX,
    FRAGMENT_MAX,
    FUNCTIONS,
    NUMBERS,
    OPEN_MAX,
    POINTS_MAX,
    SIZES,
    Dnp3,
    checksum,
    time_text,
)
from tests.collectors.packets.decoders.streams import Wire, decoded, session
from tests.programs import PATIENCE_S

MASTER, OUTSTATION = 3, 4
LATCH_ON = bytes.fromhex("0c01 28 0100 0100 03 01 64000000 64000000 00")
REFUSED = bytes.fromhex("0c01 28 0100 0100 03 01 64000000 64000000 04")
RESTART = b"\xc1\x0d"


def crc(data: bytes) -> bytes:
    """Bit by bit, as the standard draws it."""
    remainder = 0
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0xA6BC if remainder & 1 else 0)
    return (remainder ^ 0xFFFF).to_bytes(2, "little")


def frame(user: bytes = b"", control: int = 0xC4, to: int = OUTSTATION, of: int = MASTER) -> bytes:
    head = struct.pack("<BBBBHH", 5, 0x64, 5 + len(user), control, to, of)
    blocks = (user[at : at + 16] for at in range(0, len(user), 16))
    return head + crc(head) + b"".join(block + crc(block) for block in blocks)


def asks(fragment: bytes, **ends: int) -> bytes:
    return frame(b"\xc0" + fragment, **ends)


def answers(fragment: bytes, of: int = OUTSTATION, to: int = MASTER) -> bytes:
    return frame(b"\xc0" + fragment, 0x44, to, of)


def wire(transport: str = "tcp") -> Wire:
    made = session(server="10.0.0.2:20000")
    made.base["network.transport"] = transport
    return Wire(Dnp3(made))


CONVERSATION = [
    (True, frame(control=0xC9)),
    (False, frame(control=0x0B, to=MASTER, of=OUTSTATION)),
    (True, asks(b"\xc0\x01" + bytes.fromhex("3c02063c03063c0406"))),
    (False, answers(b"\xe0\x81\x80\x00" + bytes.fromhex("1e01000000 01 05000000"))),
    (True, asks(b"\xc0\x00")),
    (True, asks(b"\xc1\x03" + LATCH_ON)),
    (False, answers(b"\xc1\x81\x00\x00" + LATCH_ON)),
    (True, asks(b"\xc2\x04" + LATCH_ON)),
    (False, answers(b"\xc2\x81\x00\x00" + REFUSED)),
    (False, answers(b"\xf7\x82\x02\x00" + bytes.fromhex("0201 28 0100 0700 81"))),
    (True, asks(b"\xd7\x00")),
]


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_the_decoder_keeps_its_promises(transport: Any) -> None:
    conversation = CONVERSATION if transport == "tcp" else CONVERSATION[5:8]

    check_decoder(Dnp3, conversation, transport=transport, mutants_each=3)


def test_a_conversation_is_told() -> None:
    line = wire()

    found = [fields for who, data in CONVERSATION for fields in line.send(data, who)]

    assert [fields["event.action"] for fields in found] == [
        "dnp3_request_link_status",
        "dnp3_link_status",
        "dnp3_read",
        "dnp3_response",
        "dnp3_confirm",
        "dnp3_select",
        "dnp3_response",
        "dnp3_operate",
        "dnp3_response",
        "dnp3_unsolicited_response",
        "dnp3_confirm",
    ]
    assert [fields.get("ot.link_id", "").partition(".")[2] for fields in found] == (
        ["", "", "1", "1", "1", "2", "2", "3", "3", "4", "4"]
    )
    assert {fields["ot.unit"] for fields in found} == {"4"}
    assert found[3]["ot.cause"] == "device_restart"
    assert (found[3]["ot.point.type"], found[3]["ot.value"]) == ("analog_input", 5)
    assert (found[8]["ot.exception"], found[8]["event.outcome"]) == ("not_supported", "failure")
    assert (found[9]["ot.point.address"], found[9]["ot.value"]) == (7, 1)
    assert line.decoder.end() == []


def test_a_relay_block_says_all_that_it_orders() -> None:
    found = wire().send(asks(b"\xc0\x05" + LATCH_ON), True)

    assert len(found) == 1
    assert found[0]["ot.is_command"] is True
    assert found[0]["ot.operation"] == "control"
    assert found[0]["ot.point.type"] == "control_relay_output"
    assert found[0]["ot.point.address"] == 1
    assert (found[0]["ot.value"], found[0]["ot.value_raw"]) == (1, "latch_on")
    assert found[0]["cw.vendor"] == {
        "master": 3,
        "objects": "g12v1",
        "operation_type": "latch_on",
        "trip_close": "nul",
        "control_code": 3,
        "clear": False,
        "queue": False,
        "count": 1,
        "on_ms": 100,
        "off_ms": 100,
    }


def test_each_commanded_point_is_an_event() -> None:
    objects = bytes.fromhex("2901 17 02 05 e8030000 00 06 18fcffff 00") + bytes.fromhex(
        "2903 00 09 09 0000c03f 00"
    )

    found = wire().send(asks(b"\xc0\x05" + objects), True)

    assert [fields["ot.point.address"] for fields in found] == [5, 6, 9]
    assert [fields["ot.value"] for fields in found] == [1000, -1000, 1.5]
    assert len({fields["ot.link_id"] for fields in found}) == 1


@pytest.mark.parametrize("code", sorted(FUNCTIONS))
def test_every_function_has_its_name_and_its_operation(code: int) -> None:
    content = bytes((0xC0, code)) + (b"\0\0" if code > 127 else b"")

    found = wire().send(asks(content) if code < 128 else answers(content), code < 128)

    assert found[0]["ot.function.name"] == FUNCTIONS[code].name
    assert found[0]["ot.operation"] == FUNCTIONS[code].operation
    assert found[0]["ot.is_command"] is FUNCTIONS[code].is_command
    assert "event.kind" not in found[0]


@pytest.mark.parametrize(
    ("objects", "operation", "own"),
    [
        ("3201 07 01 3b6a0b3dff00", "time_sync", {"ot.point.type": "time"}),
        ("5001 00 07 07 00", "write", {"ot.point.address": 7, "ot.value": 0}),
        ("2202 17 01 02 10270000", "config", {"ot.point.address": 2, "ot.value": 10_000}),
        ("0a01 00 03 05 05", "write", {"ot.point.address": 3, "ot.value": 1}),
        ("00f0 00 00 00 02 01 07", "config", {"ot.point.type": "device_attribute"}),
    ],
)
def test_what_is_written_decides_what_a_write_is(
    objects: str, operation: str, own: dict[str, Any]
) -> None:
    line = wire()

    found = line.send(asks(b"\xc0\x02" + bytes.fromhex(objects)), True)
    answer = line.send(answers(b"\xc0\x81\0\0"), False)

    assert "event.reason" not in found[0]
    assert found[0]["ot.operation"] == operation == answer[0]["ot.operation"]
    assert {name: found[0].get(name) for name in own} == own


def test_a_file_is_named_and_its_password_is_not_kept() -> None:
    name = b"/config.xml"
    opened = struct.pack("<HHIHHIIHHH", 26, len(name), 0, 0, 0, 0, 0, 2, 1024, 1)[:26] + name
    login = struct.pack("<HHHHI", 12, 3, 15, 6, 0) + b"bobsecret"

    line = wire()
    write = line.send(asks(b"\xc0\x19\x46\x03\x5b\x01" + _sized(opened)), True)
    logged = line.send(asks(b"\xc1\x1d\x46\x02\x5b\x01" + _sized(login)), True)

    assert write[0]["file.path"] == "/config.xml"
    assert write[0]["cw.vendor"]["file_mode"] == "write"
    assert logged[0]["user.name"] == "bob"
    assert "secret" not in str(logged)


def _sized(content: bytes) -> bytes:
    return len(content).to_bytes(2, "little") + content


def test_opening_a_file_to_read_it_is_no_command() -> None:
    opened = struct.pack("<HHIHHIIHHH", 26, 1, 0, 0, 0, 0, 0, 1, 1024, 1)[:26] + b"f"
    opened = opened[:20] + b"\x01\x00" + opened[22:]

    found = wire().send(asks(b"\xc0\x19\x46\x03\x5b\x01" + _sized(opened)), True)

    assert found[0]["cw.vendor"]["file_mode"] == "read"
    assert found[0]["ot.is_command"] is False


def test_a_changed_key_is_a_command() -> None:
    content = struct.pack("<IH", 1, 7) + b"\0" * 20

    found = wire().send(asks(b"\xc0\x20\x78\x06\x5b\x01" + _sized(content)), True)

    assert found[0]["cw.vendor"]["authentication"] == "session_key_change"
    assert found[0]["cw.vendor"]["authentication_user"] == 7
    assert (found[0]["ot.operation"], found[0]["ot.is_command"]) == ("auth", True)


def test_a_broadcast_is_visible_and_waits_for_no_answer() -> None:
    line = wire()

    found = line.send(asks(RESTART, to=65_535), True)

    assert found[0]["ot.unit"] == "65535"
    assert line.decoder.end() == []


def test_a_refusal_is_said_by_its_indication() -> None:
    line = wire()
    line.send(asks(b"\xc0\x12"), True)

    found = line.send(answers(b"\xc0\x81\x10\x01"), False)

    assert found[0]["ot.cause"] == "need_time,no_func_code_support"
    assert found[0]["ot.exception"] == "no_func_code_support"
    assert found[0]["event.outcome"] == "failure"
    assert found[0]["cw.vendor"]["answers"] == "stop_application"


def test_the_fragments_of_an_answer_belong_to_one_request() -> None:
    line = wire()
    asked = line.send(asks(b"\xc5\x01\x3c\x01\x06"), True)[0]

    parts = [
        *line.send(answers(b"\xa5\x81\0\0"), False),
        *line.send(answers(b"\x26\x81\0\0"), False),
        *line.send(answers(b"\x67\x81\0\0"), False),
    ]
    confirm = line.send(asks(b"\xc7\x00"), True)[0]

    assert {one["ot.link_id"] for one in [*parts, confirm]} == {asked["ot.link_id"]}
    assert line.decoder.end() == []


def test_an_answer_and_a_confirmation_nobody_asked_for_are_said() -> None:
    line = wire()

    answer = line.send(answers(b"\xc5\x81\0\0"), False)[0]
    confirm = line.send(asks(b"\xc5\x00"), True)[0]

    assert answer["event.reason"] == "no request was seen for this answer"
    assert confirm["event.reason"] == ("confirms what was not seen or asked for no confirmation")


def test_a_command_nobody_answered_is_an_event_at_the_end() -> None:
    line = wire()
    asked = line.send(asks(RESTART), True)[0]
    line.send(asks(b"\xc2\x01\x3c\x01\x06"), True)

    left = line.decoder.end()

    assert [fields["event.action"] for fields in left] == ["dnp3_unanswered"]
    assert left[0]["ot.link_id"] == asked["ot.link_id"]
    assert (left[0]["event.outcome"], left[0]["ot.is_command"]) == ("unknown", False)
    assert line.decoder.tally.unanswered == 2


def test_requests_that_wait_are_bounded() -> None:
    line = wire()

    for number in range(OPEN_MAX + 10):
        found = line.send(asks(RESTART, to=number), True)

    assert found[0]["event.reason"].endswith("given up unanswered, 64 are open")
    assert len(line.decoder._open) == OPEN_MAX


def test_a_request_of_the_end_that_accepted_is_told_as_its_own() -> None:
    found = wire().send(asks(RESTART), False)

    assert (found[0]["source.ip"], found[0]["destination.ip"]) == ("10.0.0.2", "10.0.0.1")


def test_segments_become_one_message_however_tcp_cuts_them() -> None:
    message = b"\xc0\x81\0\0" + bytes.fromhex("1e02 01 0000 c700") + b"\x01\x02\x00" * 200
    parts = [message[at : at + 249] for at in range(0, len(message), 249)]
    stream = b"".join(
        frame(bytes([(number == 0) << 6 | (number == len(parts) - 1) << 7 | number]) + part,
              0x44, MASTER, OUTSTATION)
        for number, part in enumerate(parts)
    )  # fmt: skip
    whole = wire().send(stream, False)

    for size in (1, 7, 100):
        line = wire()
        cut = [
            fields
            for at in range(0, len(stream), size)
            for fields in line.send(stream[at : at + size], False)
        ]
        assert cut == whole

    assert len(whole) == 1
    assert (whole[0]["ot.point.address"], whole[0]["ot.point.count"]) == (0, 200)


@pytest.mark.parametrize(
    ("heads", "why"),
    [
        ([0x40, 0x82], "segment 2 of a fragment where 1 is next"),
        ([0x81], "segment 1 of a fragment whose beginning was not seen"),
        ([0x40, 0xC0], "a fragment begins 2 bytes into another"),
    ],
)
def test_a_segment_out_of_place_is_an_event(heads: list[int], why: str) -> None:
    line = wire()

    found = [
        fields for head in heads for fields in line.send(frame(bytes([head]) + b"\xc0\x0d"), True)
    ]

    assert found[0]["event.reason"] == why
    assert found[0]["event.kind"] == "pipeline_error"


def test_fragments_that_are_begun_are_bounded() -> None:
    line = wire()

    for number in range(ASSEMBLIES_MAX + 5):
        line.send(frame(b"\x40\xc0\x02", of=number), True)

    assert len(line.decoder._lanes[True].assemblies) == ASSEMBLIES_MAX
    assert line.decoder.tally.malformed == 5


def test_a_fragment_without_end_is_given_up() -> None:
    line = wire()
    found = list(line.send(frame(b"\x40" + b"x" * 249), True))

    for number in range(1, FRAGMENT_MAX // 249 + 2):
        found += line.send(frame(bytes([number & 63]) + b"x" * 249), True)

    assert f"a fragment of more than {FRAGMENT_MAX} bytes" in {one["event.reason"] for one in found}
    assert not line.decoder._lanes[True].assemblies


def test_a_wrong_checksum_is_an_event_and_the_next_frame_is_read() -> None:
    good = asks(RESTART)
    bad_block = good[:-1] + bytes([good[-1] ^ 1])
    bad_header = good[:9] + bytes([good[9] ^ 1]) + good[10:]

    for bad, why in (
        (bad_block, "a block of a frame from 3 to 4 has a wrong checksum"),
        (bad_header, "the header of a frame has a wrong checksum"),
    ):
        found = wire().send(bad + good, True)
        assert [fields.get("event.reason") for fields in found] == [why, None]
        assert found[1]["event.action"] == "dnp3_cold_restart"


def test_a_frame_in_a_damaged_frame_is_found() -> None:
    outer = bytearray(frame(b"\xc0" * 11 + asks(RESTART)))
    outer[10] ^= 1

    found = wire().send(bytes(outer[:21]) + asks(RESTART) + bytes(24), True)

    assert "dnp3_cold_restart" in [fields["event.action"] for fields in found]


def test_after_a_gap_the_next_frame_is_found() -> None:
    line = wire()
    line.send(asks(RESTART)[:7], True)
    line.decoder.gap(True)
    line.rest[True] = b""

    found = line.send(asks(RESTART)[3:] + b"\x05\x64\x05" + asks(b"\xc0\x0e"), True)

    assert [fields["event.action"] for fields in found] == ["dnp3_warm_restart"]


def test_a_cut_frame_is_said_at_the_end_or_with_its_datagram() -> None:
    line = wire()

    assert line.send(asks(RESTART)[:9], True) == []
    assert line.decoder.end()[0]["event.reason"] == (
        "the conversation ended 9 bytes into a frame of the client"
    )
    assert wire("udp").send(asks(RESTART)[:-1], True)[0]["event.reason"] == (
        "a datagram ends 14 bytes into a frame"
    )


@pytest.mark.parametrize(
    ("objects", "why"),
    [
        ("0c01 28", "the range of g12v1 is cut"),
        ("0c", "1 bytes behind the last object"),
        ("0c01 2a 0100", "qualifier 0x2a of g12v1 is not defined"),
        ("0c01 00 05 04", "g12v1 from 5 to 4"),
        ("0c01 28 0200 0100 03016400000064000000 00", "2 objects g12v1 need 13 bytes more"),
        ("5501 07 01", "how long an object g85v1 is, is not known; the rest is not read"),
        ("4603 5b 02 0100 00 05", "2 objects g70v3 need more bytes than there are"),
        ("1e01 02 00000000 ffffffff", "objects g30v1 need"),
        ("4603 6b 01 ffffffff", "1 objects g70v3 need"),
    ],
)
def test_objects_that_do_not_fit_are_said(objects: str, why: str) -> None:
    found = wire().send(asks(b"\xc0\x02" + bytes.fromhex(objects)), True)

    assert why in found[0]["event.reason"]
    assert found[0]["event.kind"] == "pipeline_error"
    assert found[0]["event.action"] == "dnp3_write"


def test_packed_points_are_bounded() -> None:
    fragment = b"\xc0\x02" + bytes.fromhex("0a01 01 0000 e703") + bytes(125)

    found = wire().send(asks(fragment), True)

    assert len(found) == POINTS_MAX
    assert found[-1]["event.reason"] == "488 more points of this message are not listed"


def test_undefined_functions_of_both_layers_are_said() -> None:
    line = wire()

    assert line.send(asks(b"\xc0\x50"), True)[0]["event.reason"] == "function 80 is not defined"
    assert line.send(frame(control=0xC7), True)[0]["event.reason"] == (
        "link function 7 is not defined"
    )
    assert line.send(frame(b"ab", control=0xC0), True)[0]["event.reason"] == (
        "2 bytes of user data in a reset_link"
    )


@given(
    st.sampled_from(sorted(FUNCTIONS)),
    st.lists(
        st.tuples(
            st.sampled_from([*SIZES, 0x0101, 0x0301, 0x0A01, 0x0C03, 0x5001, 0x00F0, 0x4603, 0x4602,
                             0x4605, 0x4607, 0x4608, 0x7801, 0x7806, 0x3C01]),
            st.sampled_from([0x00, 0x01, 0x06, 0x07, 0x08, 0x17, 0x28, 0x39, 0x47, 0x4B, 0x5B]),
            st.binary(max_size=60),
        ),
        max_size=3,
    ),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_no_object_is_an_exception(code: int, objects: list[tuple[int, int, bytes]]) -> None:
    fragment = bytes((0xC0, code)) + (b"\0\0" if code > 127 else b"")
    for kind, qualifier, content in objects:
        fragment += kind.to_bytes(2) + bytes((qualifier,)) + content

    send = asks if code < 128 else answers
    assert wire().send(send(fragment), code < 128)


def test_a_relay_block_that_says_its_own_size_is_not_read_as_one() -> None:
    found = wire().send(asks(b"\xc0\x05\x0c\x01\x5b\x01\x02\x00ab"), True)

    assert len(found) == 1
    assert "ot.value_raw" not in found[0]


@given(st.binary(max_size=16))
def test_checksums_are_those_of_the_standard(data: bytes) -> None:
    assert checksum(data).to_bytes(2, "little") == crc(data)


def test_numbers_lie_within_their_objects() -> None:
    for kind, (shape, offset) in NUMBERS.items():
        assert offset + shape.size <= SIZES[kind], f"g{kind >> 8}v{kind & 255}"


def test_times_are_read_even_where_no_calendar_reaches() -> None:
    assert time_text(1_097_487_541_483) == "2004-10-11T09:39:01.483+00:00"
    assert time_text(2**48 - 1) == "281474976710655 ms"


def test_random_bytes_are_never_an_exception_nor_recognised() -> None:
    chance = random.Random(1)
    for _ in range(1_000):
        data = chance.randbytes(chance.randrange(60))
        assert not Dnp3.recognises(data)
        fragment = bytes((0xC0, chance.choice((1, 2, 3, 5, 25, 32, 129)))) + data
        line = wire()
        line.send(b"\x05\x64" + data, True)
        wire().send(asks(fragment), True)


# ---- Real captures

_CONTROL = {3: "SELECT", 4: "OPERATE", 129: "RESPONSE"}


def _as_their_log(fields: dict[str, Any]) -> list[str]:
    vendor = fields["cw.vendor"]
    status = vendor.get("status", "-")
    return [
        "F" if fields["ot.direction"] == "response" else "T",
        "Control Relay Output Block",
        _CONTROL[int(fields["ot.function.code"])],
        str(fields["ot.point.address"]),
        vendor["trip_close"].capitalize(),
        vendor["operation_type"].replace("_", " ").title(),
        "T" if vendor["clear"] else "F",
        str(vendor["count"]),
        str(vendor["on_ms"]),
        str(vendor["off_ms"]),
        status.capitalize(),
    ]


def test_all_controls_of_the_example_are_those_of_its_log(data: Path) -> None:
    log = (data / "energy/dnp3_icsnpp_example.expected_control.log").read_text()
    lines = [line.split("\t") for line in log.splitlines() if line and line[0] != "#"]
    wanted = [[cells[6], *cells[11:]] for cells in lines]

    found = [
        _as_their_log(fields)
        for _, fields in decoded(Dnp3, data / "energy/dnp3_icsnpp_example.pcap", 20_000)
        if fields.get("ot.point.type") == "control_relay_output"
    ]

    different = [(ours, theirs) for ours, theirs in zip(found, wanted, strict=True)
                 if ours != theirs]  # fmt: skip
    assert different == []


def test_the_attacks_are_seen_in_their_frames(data: Path) -> None:
    frames: dict[str, list[int]] = {}
    broadcasts = []
    for number, fields in decoded(Dnp3, data / "energy/dnp3_quickdraw_attacks_1.pcap", 20_000):
        frames.setdefault(fields["event.action"], []).append(number)
        if fields.get("ot.unit") == "65535":
            broadcasts.append(number)

    assert frames["dnp3_disable_unsolicited"] == [11, 86, 124, 130, 135, 154, 156]
    assert frames["dnp3_cold_restart"] == [70, 76]
    assert frames["dnp3_warm_restart"] == [143, 146]
    assert frames["dnp3_stop_application"] == [163, 166, 174, 176]
    assert frames["dnp3_write"] == [7, 33, 88, 128, 133, 137]
    assert len(frames["dnp3_unsolicited_response"]) == 30
    assert broadcasts == [154, 156, 174, 176]


def test_the_flood_is_seen_whole(data: Path) -> None:
    found = Counter(
        fields["event.action"]
        for _, fields in decoded(Dnp3, data / "energy/dnp3_request_flood.pcap", 20_000)
    )

    assert found == {"dnp3_select": 33, "dnp3_unanswered": 16}


# ---- Twin: what tshark reads of random messages


def _random_fragment(chance: random.Random) -> bytes:
    code = chance.choice([1, 2, 3, 4, 5, 6, 7, 13, 20, 21, 129, 130])
    fragment = bytes((0xC0 | chance.randrange(16), code))
    if code > 127:
        fragment = bytes((fragment[0] | (0x10 if code == 130 else 0), code))
        fragment += chance.randbytes(1) + bytes((chance.randrange(64),))
    if code in (13,):
        return fragment
    for _ in range(chance.randrange(1, 4)):
        fragment += _random_objects(chance, code)
    return fragment


_MONITORED = (1, 2, 3, 4, 10, 11, 20, 21, 22, 23, 30, 32, 40, 42)
_UNREAD = {0x0403, *(group << 8 | one for group in (20, 21, 22, 23) for one in (3, 4, 7, 8))}
"""Deltas, which tshark does not read, and g4v3, behind which it stops."""


def _random_objects(chance: random.Random, code: int) -> bytes:
    if code in (20, 21):
        return bytes((60, chance.randrange(2, 5), 6))
    kinds = {2: [0x2201, 0x2202, 0x5001], 7: [0x1400, 0x1600]}
    control = [0x0C01, 0x2901, 0x2902, 0x2903, 0x2904]
    monitored = [kind for kind in SIZES if kind >> 8 in _MONITORED and kind not in _UNREAD]
    kind = chance.choice(
        kinds.get(code) or (control if code in (3, 4, 5, 6) else [*monitored, 0x0101, 0x0A01])
    )
    count = chance.randrange(1, 6)
    first = chance.randrange(200)
    head = kind.to_bytes(2)
    has_data = code in (2, 3, 4, 5, 6, 129, 130)
    if kind in (0x0101, 0x0A01, 0x5001):
        body = chance.randbytes(1) if has_data else b""
        return head + bytes((0, first, first + count - 1)) + body
    size = SIZES.get(kind, 0) if has_data else 0
    # Of frozen points tshark does not read indexes.
    if chance.random() < 0.5 or code == 7:
        body = chance.randbytes(size * count)
        return head + b"\x01" + struct.pack("<HH", first, first + count - 1) + body
    body = b"".join(
        struct.pack("<H", first + number) + chance.randbytes(size) for number in range(count)
    )
    return head + b"\x28" + struct.pack("<H", count) + body


@pytest.mark.slow
def test_random_messages_mean_what_tshark_reads(tmp_path: Path) -> None:
    chance = random.Random(7)
    fragments = [_random_fragment(chance) for _ in range(1_000)]
    packets = [
        asks(one, of=number + 10) if one[1] < 128 else answers(one, to=number + 10)
        for number, one in enumerate(fragments)
    ]
    capture = tmp_path / "random.pcap"
    capture.write_bytes(_pcap(packets))
    wanted = "al.func al.seq dst src al.obj al.iin al.point_index al.index"
    names = [f"dnp3.{name}" for name in wanted.split()]
    said = subprocess.run(
        ["tshark", "-r", str(capture), "-T", "fields", *(x for n in names for x in ("-e", n))],
        capture_output=True, text=True, check=True, timeout=PATIENCE_S,
    ).stdout.splitlines()  # fmt: skip

    for fragment, packet, line in zip(fragments, packets, said, strict=True):
        code, sequence, to, of, objects, iin, inner, before = line.split("\t")
        found = wire("udp").send(packet, fragment[1] < 128)
        assert found[0]["ot.function.code"] == code
        assert found[0]["event.sequence"] == int(sequence)
        assert found[0]["ot.unit"] == (to if fragment[1] < 128 else of)
        theirs = ",".join(f"g{int(x, 16) >> 8}v{int(x, 16) & 255}" for x in objects.split(",") if x)
        assert found[0]["cw.vendor"].get("objects", "") == theirs, fragment.hex()
        assert "event.kind" not in found[0], fragment.hex()
        if iin:
            bits = bin(int(iin, 16)).count("1")
            assert len([x for x in found[0].get("ot.cause", "").split(",") if x]) == bits
        if fragment[1] in (3, 4, 5, 6):
            ours = [fields["ot.point.address"] for fields in found]
            assert sorted(ours) == sorted(int(one) for one in f"{inner},{before}".split(",") if one)


def _pcap(packets: list[bytes]) -> bytes:
    """Raw IPv4 with UDP, from port 20000 to port 20000."""
    out = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 101)
    for number, data in enumerate(packets):
        size = 28 + len(data)
        ip = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, 17, 0, b"\x0a\0\0\x01", b"\x0a\0\0\x02"
        )
        udp = struct.pack(">HHHH", 20_000, 20_000, 8 + len(data), 0)
        out += struct.pack("<IIII", number, 0, size, size) + ip + udp + data
    return out
