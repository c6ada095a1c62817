"""Omron FINS against a capture of nearly every command, an independent log, and hostile bytes."""

from __future__ import annotations

import random
import re
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.fins import COMMANDS, Fins
from tests.collectors.packets.decoders.captured import datagrams, messages
from tests.collectors.packets.decoders.streams import Wire, session

ASK = bytes.fromhex("800002000200000100")
ANSWER = bytes.fromhex("c00002000100000200")


def ask(code: int, body: str = "", service: int = 0x7A) -> bytes:
    return ASK + bytes([service]) + code.to_bytes(2) + bytes.fromhex(body)


def answer(code: int, end: int = 0, body: str = "", service: int = 0x7A) -> bytes:
    return ANSWER + bytes([service]) + code.to_bytes(2) + end.to_bytes(2) + bytes.fromhex(body)


def tcp(command: int, body: bytes = b"", error: int = 0) -> bytes:
    return struct.pack(">4sIII", b"FINS", 8 + len(body), command, error) + body


def line() -> Wire:
    return Wire(Fins(datagrams()))


def test_a_read_and_its_answer_are_joined() -> None:
    wire = line()

    asked = wire.send(ask(0x0101, "82006400 0001"), True, 1.0)[0]
    answered = wire.send(answer(0x0101, 0, "002a"), False, 1.5)[0]

    assert asked["event.action"] == "fins_memory_area_read"
    assert (asked["ot.point.type"], asked["ot.point.address"]) == ("dm_word", 100)
    assert asked["cw.vendor"] == {"from": "0.1.0", "to": "0.2.0"}
    assert answered["ot.link_id"] == asked["ot.link_id"]
    assert answered["ot.value"] == 42
    assert answered["ot.point.address"] == 100
    assert answered["event.duration"] == 500_000_000


@pytest.mark.parametrize(
    ("code", "body", "fields"),
    [
        (0x0102, "82006400 0001 1234", {"ot.operation": "write", "ot.value": 0x1234}),
        (0x0102, "30000a03 0001 01", {"ot.point.type": "cio_bit", "ot.value": 1}),
        (0x0103, "b1000000 000a ffff", {"ot.point.type": "work_word", "ot.point.count": 10}),
        (0x0105, "82000000 b0000500 0002", {"ot.point.type": "cio_word", "ot.point.address": 5}),
        (0x0401, "ffff 04", {"ot.operation": "mode_change", "ot.function.sub": "run"}),
        (0x0401, "ffff", {"ot.function.sub": "monitor"}),
        (0x0402, "", {"event.action": "fins_stop", "ot.operation": "mode_change"}),
        (0x0307, "ffff 00000000 8010", {"ot.operation": "program_download", "ot.point.count": 16}),
        (0x0702, "2603011230", {"ot.operation": "time_sync", "ot.value_raw": "26-03-01 12:30:00"}),
        (0x2301, "0001 0001 30000a03", {"ot.operation": "control", "ot.function.sub": "set"}),
        (0x2205, "0001", {"ot.operation": "file"}),
        (0x0999, "", {"event.action": "fins_command_0x0999"}),
    ],
)
def test_a_command_says_what_it_changes(code: int, body: str, fields: dict[str, Any]) -> None:
    found = line().send(ask(code, body), True)[0]

    assert {name: found.get(name) for name in fields} == fields
    assert found["ot.is_command"] is True
    assert "event.kind" not in found


def test_an_end_code_is_an_exception_without_the_bits_of_relay_and_unit() -> None:
    wire = line()
    wire.send(ask(0x0402), True)

    refused = wire.send(answer(0x0402, 0xA242 & 0xFFFF), False)[0]

    assert refused["event.code"] == "0x2202"
    assert refused["ot.exception"] == "not_possible_while_stopped"
    assert refused["event.outcome"] == "failure"


def test_a_command_that_wants_no_answer_does_not_wait_for_one() -> None:
    wire = line()
    wire.send(b"\x81" + ask(0x0402)[1:], True)

    assert wire.decoder.end() == []


def test_a_command_that_nobody_answered_is_told_at_the_end() -> None:
    wire = line()
    wire.send(ask(0x0402), True)

    assert [f["event.action"] for f in wire.decoder.end()] == ["fins_unanswered"]


def test_what_the_server_asks_has_the_server_as_its_source() -> None:
    assert line().send(ask(0x0402), False)[0]["source.ip"] == "10.0.0.2"


def test_a_stream_opens_and_carries_frames() -> None:
    wire = Wire(Fins(session()))

    opened = wire.send(tcp(0, bytes(4)), True)[0]
    given = wire.send(tcp(1, bytes.fromhex("0000000100000002")), False)[0]
    asked = wire.send(tcp(2, ask(0x0402)), True)[0]
    full = wire.send(tcp(3, error=0x20), False)[0]

    assert opened["event.action"] == "fins_tcp_open"
    assert given["cw.vendor"] == {"client_node": 1, "server_node": 2}
    assert asked["event.action"] == "fins_stop"
    assert full["ot.exception"] == "all_connections_in_use"


def test_behind_a_gap_the_next_message_of_a_stream_is_found() -> None:
    wire = Wire(Fins(session()))
    wire.send(tcp(0, bytes(4)), True)
    wire.decoder.gap(True)

    found = wire.send(b"\0\x13FIN" + tcp(2, ask(0x0402)), True)

    assert [f["event.action"] for f in found] == ["fins_stop"]


def test_bytes_that_are_no_message_are_said_once_and_not_with_each_segment() -> None:
    wire = Wire(Fins(session()))

    found = [one for _ in range(9) for one in wire.send(bytes(range(64, 128)), True)]

    assert [f["event.kind"] for f in found] == ["pipeline_error"]
    assert [f["event.action"] for f in wire.send(tcp(2, ask(0x0402)), True)] == ["fins_stop"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (ASK, "at least 12 bytes, not 9"),
        (ask(0x0102, "8200"), "the memory_area_write is cut, 2 bytes"),
        (answer(0x0402)[:12], "the answer has no end code"),
    ],
)
def test_a_malformed_frame_is_an_event_that_says_why(data: bytes, why: str) -> None:
    found = line().send(data, True)[0]

    assert found["event.kind"] == "pipeline_error"
    assert why in found["event.reason"]


def test_other_protocols_are_not_taken_for_it() -> None:
    chance = random.Random(6)

    assert not any(Fins.recognises(b"\x80" + chance.randbytes(40)) for _ in range(20_000))
    assert not Fins.recognises(b"FINS are parts of fish, says the book")


def test_the_decoder_keeps_its_promises() -> None:
    plain = [
        (True, ask(0x0101, "820064000001")),
        (False, answer(0x0101, 0, "002a")),
        (True, ask(0x0402)),
        (False, answer(0x0402)),
    ]
    check_decoder(Fins, plain, transport="udp", mutants_each=50)
    stream = [(True, tcp(0, bytes(4))), (False, tcp(1, bytes(8)))]
    stream += [(who, tcp(2, data)) for who, data in plain]
    check_decoder(Fins, stream, transport="tcp", mutants_each=50)


OURS = {
    "message_read_|_message_clear_|_fal/fals_read": "message_read_or_clear",
    "volume_label_create_delete": "volume_label_create_or_delete",
    "parameter_area_file_transer": "parameter_area_file_transfer",  # sic
}
"""Names that we write otherwise than the parser of the log."""


def expected(row: list[str]) -> tuple[str, str, str]:
    """Kind, name and end code of a record."""
    name = row[23].rpartition(" (")[0].lower().replace(" ", "_")
    end = re.search(r"\(0x(\w{4})\)", row[24])
    return row[13].split()[0], OURS.get(name, name), end[1].lower() if end else ""


def seen(fields: dict[str, Any]) -> tuple[str, str, str]:
    kind = "Response" if fields["ot.direction"] == "response" else "Command"
    return kind, fields["ot.function.name"], fields.get("event.code", "")[2:]


def test_every_record_of_the_expected_log_is_an_event(data: Path) -> None:
    log = (data / "port/omron_fins.expected_general.log").read_text()
    rows = [line.split("\t") for line in log.splitlines() if not line.startswith("#")]
    frames = [
        fields
        for fields in messages(data / "port/omron_fins.pcap", Fins)
        if fields["event.action"] != "fins_unanswered"
    ]

    assert len(frames) == len(rows) == 243
    assert {f["event.sequence"] for f in frames} == {0x7A}
    wanted, got = Counter(map(expected, rows)), Counter(map(seen, frames))
    # The log leaves out end codes that are on the wire: of two messages, and 0203.
    assert wanted - got == {
        ("Response", "message_read_or_clear", ""): 2,
        ("Response", "memory_area_read", ""): 1,
    }
    assert got - wanted == {
        ("Response", "message_read_or_clear", "0000"): 2,
        ("Response", "memory_area_read", "0203"): 1,
    }
    # Its numbers of the commands for programs are three too low; W342 and the wire have ours.
    assert {f["ot.function.code"] for f in frames if "program_area_p" in f["event.action"]} == {
        "0x0304",
        "0x0305",
    }


def test_names_and_numbers_are_those_of_the_expected_log(data: Path) -> None:
    log = (data / "port/omron_fins.expected_general.log").read_text()
    names = dict(re.findall(r"\t([^\t]+) \(0x(\w{4})\)\t", log))

    for name, code in names.items():
        said = name.lower().replace(" ", "_")
        number = int(code, 16)
        number += 3 if number >> 8 == 3 else 0
        assert COMMANDS[number].name == OURS.get(said, said)
    assert len(names) > 50
