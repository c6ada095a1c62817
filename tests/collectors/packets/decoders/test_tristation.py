"""TriStation against the traffic of TRITON, and hostile bytes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.tristation import Tristation, crc
from tests.collectors.packets.decoders.captured import datagrams, messages
from tests.collectors.packets.decoders.streams import Wire

CONNECT = bytes.fromhex("0100000001fc")
CONNECTED = bytes.fromhex("0200000001b8")
STATUS = bytes.fromhex("05000a0000001300000027000a005010")
RUN = bytes.fromhex("05000a00000014c00000e8000a00eeee")
NOT_HALTED = bytes.fromhex("05000c00010164c0000009020c00cb000937")


def command(code: int, body: bytes = b"", counter: int = 1, channel: int = 0) -> bytes:
    size = 10 + len(body)
    inner = (
        channel.to_bytes(2, "little")
        + bytes((code, counter, 0, 0, 0, 0))
        + size.to_bytes(2, "little")
    )
    whole = b"\x05\0" + size.to_bytes(2, "little") + inner + body
    return whole + crc(whole).to_bytes(2, "little")


def line() -> Wire:
    return Wire(Tristation(datagrams()))


def test_a_rejected_command_says_what_was_asked_and_why_not() -> None:
    wire = line()

    asked = wire.send(RUN, True, 1.0)[0]
    answered = wire.send(NOT_HALTED, False, 1.5)[0]

    assert asked["event.action"] == "tristation_run_program"
    assert (asked["ot.operation"], asked["ot.is_command"]) == ("mode_change", True)
    assert answered["event.action"] == "tristation_run_program"
    assert answered["ot.link_id"] == asked["ot.link_id"]
    assert answered["ot.exception"] == "control_program_not_halted"
    assert (answered["event.outcome"], answered["ot.is_command"]) == ("failure", False)


def test_the_end_of_a_download_has_the_hash_of_what_was_allocated() -> None:
    wire = line()
    wire.send(command(1, b"PLANT\0\0\0" + bytes(20)), True)
    wire.send(command(55, bytes.fromhex("03000100020000000100") + b"abcd"), True)
    part = wire.send(command(55, bytes.fromhex("03000100020001000100") + b"efgh"), True)[0]

    ended = wire.send(command(11), True)[0]

    assert part["ot.point.address"] == 3
    assert part["cw.vendor"] == {"next": 1, "words": 2, "offset": 1, "words_here": 1}
    assert ended["ot.program.hash"] == (
        "9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab"
    )


def test_a_refused_connection_is_an_exception() -> None:
    whole = b"\x0a\0\0\0"

    found = line().send(whole + crc(whole).to_bytes(2, "little"), False)[0]

    assert found["ot.exception"] == "access_denied"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x05\0", "at least 6 bytes"),
        (STATUS[:-1], "the length says 10 bytes, there are 9"),
        (STATUS[:-1] + b"\xff", "the checksum is wrong"),
        (b"\x0c" + STATUS[1:], "type 12"),
        (b"\x05\0\x02\0\x13\0\0\0", "a command has at least 10 bytes, not 2"),
    ],
)
def test_a_malformed_datagram_is_an_event_that_says_why(data: bytes, why: str) -> None:
    found = line().send(data, True)[0]

    assert found["event.kind"] == "pipeline_error"
    assert why in found["event.reason"]


def test_a_command_without_an_answer_is_told_at_the_end() -> None:
    wire = line()
    wire.send(STATUS, True)
    wire.send(RUN, True)

    assert [f["event.action"] for f in wire.decoder.end()] == ["tristation_unanswered"]


def test_other_protocols_are_not_taken_for_it() -> None:
    chance = random.Random(3)

    assert not any(
        Tristation.recognises(bytes([chance.randint(1, 11), 0, 10, 0]) + chance.randbytes(12))
        for _ in range(2_000)
    )


def test_the_decoder_keeps_its_promises() -> None:
    check_decoder(
        Tristation,
        [(True, CONNECT), (False, CONNECTED), (True, STATUS), (True, RUN), (False, NOT_HALTED)],
        transport="udp",
        mutants_each=60,
    )


def test_the_malware_does_what_the_description_of_its_capture_says(data: Path) -> None:
    found = messages(data / "energy/triton_tristation_malware.pcap", Tristation)

    asked = [f for f in found if f["ot.direction"] == "request"]
    commands: list[dict[str, Any]] = [f for f in found if f["ot.is_command"]]
    assert len(found) == 896
    assert len(asked) == 448
    assert Counter(f.get("ot.function.code") for f in asked) == {
        "19": 338, "66": 72, "65": 26, "1": 3, "55": 3, "11": 3, "20": 1, None: 2,
    }  # fmt: skip
    assert [f["ot.function.name"] for f in commands] == [
        *("start_download_change", "allocate_program", "allocate_program", "end_download_change"),
        *("start_download_change", "end_download_change"),
        *("start_download_change", "allocate_program", "end_download_change"),
        "run_program",
    ]
    assert {f["cw.vendor"]["project"] for f in asked if f.get("ot.function.code") == "1"} == {
        "NOZOMI"
    }
    assert len({f["ot.program.hash"] for f in commands if "ot.program.hash" in f}) == 3
    assert {f["source.ip"] for f in found} == {"192.168.1.88"}
    assert Counter(f.get("ot.exception") for f in found if "ot.exception" in f) == {
        "network_out_of_range": 15,
        "control_program_not_halted": 1,
    }
    assert not [f for f in found if "event.kind" in f or "event.reason" in f]
