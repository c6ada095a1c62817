"""HART-IP against a real session, and hostile bytes."""

from __future__ import annotations

import random
from collections import Counter
from functools import reduce
from operator import xor
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.hartip import Hartip
from tests.collectors.packets.decoders.captured import messages
from tests.collectors.packets.decoders.streams import Wire, session

START = bytes.fromhex("010000000002000d0100007530")
STARTED = bytes.fromhex("010100000002000d010000ea60")
READ = bytes.fromhex("010003000004001182264e0000d2010039")
ANSWER = bytes.fromhex("010103000004001886264e0000d2010700d0fb0000000011")


def command(code: int, kind: int = 0, body: bytes = b"") -> bytes:
    delimiter = b"\x82" if kind == 0 else b"\x86"
    frame = delimiter + bytes.fromhex("264e0000d2") + bytes((code, len(body))) + body
    frame += bytes([reduce(xor, frame)])
    return bytes((1, kind, 3, 0, 0, 9)) + (8 + len(frame)).to_bytes(2) + frame


def line() -> Wire:
    return Wire(Hartip(session()))


def test_a_read_and_its_answer_are_joined() -> None:
    wire = line()

    asked = wire.send(READ, True, 1.0)[0]
    answered = wire.send(ANSWER, False, 1.5)[0]

    assert asked["event.action"] == "hartip_read_primary_variable"
    assert asked["ot.unit"] == "264e0000d2"
    assert asked["ot.is_command"] is False
    assert answered["ot.link_id"] == asked["ot.link_id"]
    assert answered["event.outcome"] == "success"


def test_a_write_is_a_command_and_its_refusal_an_exception() -> None:
    wire = line()

    asked = wire.send(command(35, body=bytes(9)), True)[0]
    refused = wire.send(command(35, 1, b"\x07\0"), False)[0]

    assert (asked["ot.operation"], asked["ot.is_command"]) == ("config", True)
    assert refused["ot.exception"] == "response_code_7"
    assert refused["ot.is_command"] is False


@pytest.mark.parametrize(("code", "outcome"), [(8, "success"), (9, "failure"), (14, "success")])
def test_a_warning_is_no_refusal(code: int, outcome: str) -> None:
    wire = line()
    wire.send(command(35, body=bytes(9)), True)

    assert wire.send(command(35, 1, bytes([code, 0])), False)[0]["event.outcome"] == outcome


def test_a_command_that_nobody_described_may_control() -> None:
    asked = line().send(command(200), True)[0]

    assert (asked["ot.operation"], asked["ot.is_command"]) == ("control", True)


def test_a_wrong_checksum_and_a_cut_frame_are_told() -> None:
    wire = line()

    wrong = wire.send(READ[:-1] + b"\0", True)[0]
    cut = wire.send(bytes.fromhex("010003000005000a8226"), True)[0]

    assert wrong["event.reason"] == "the checksum of the HART frame is wrong"
    assert cut["event.reason"] == "a HART frame is cut, 2 bytes"


def test_behind_a_gap_the_next_message_is_found() -> None:
    wire = line()
    wire.decoder.gap(True)

    found = wire.send(READ[9:] + READ, True)

    assert [f["event.action"] for f in found] == ["hartip_read_primary_variable"]


def test_other_protocols_are_not_taken_for_it() -> None:
    chance = random.Random(8)

    assert not any(Hartip.recognises(b"\x01" + chance.randbytes(30)) for _ in range(20_000))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_the_decoder_keeps_its_promises(transport: Any) -> None:
    conversation = [(True, START), (False, STARTED), (True, READ), (False, ANSWER)]

    check_decoder(Hartip, conversation, transport=transport, mutants_each=50)


def test_the_session_has_the_messages_of_its_description(data: Path) -> None:
    found = messages(data / "energy/hartip_session.pcap", Hartip)

    kinds = Counter(
        f["event.action"] if f["ot.operation"] == "session" else "command" for f in found
    )
    # A fifth close is no message: an ICMP error quotes one (frame 27).
    assert kinds == {
        "command": 36,
        "hartip_session_close": 4,
        "hartip_keep_alive": 4,
        "hartip_session_initiate": 4,
    }
    assert not [f for f in found if "event.kind" in f]
