"""Tank gauges against a real conversation, and hostile bytes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.tank_gauge import ANSWER_MAX, TankGauge
from tests.collectors.packets.decoders.captured import messages
from tests.collectors.packets.decoders.streams import Wire, session

REPORT = (
    b"\x01\r\nI20100\r\nJAN 22, 2026 3:06 PM\r\n\r\nNORTH DEPOT\r\n\r\nIN-TANK INVENTORY\r\n\r\n"
    b"TANK PRODUCT             VOLUME TC VOLUME\r\n"
    b"  1  SUPER                 8394      8529\r\n"
    b"  2  DIESEL                5430      5595\r\n\x03"
)
ASK = b"\x01I20100\n"
SET = b"\x01123456S60201REGULAR\r\n"


def line() -> Wire:
    return Wire(TankGauge(session()))


def test_an_inquiry_and_its_report_are_joined() -> None:
    wire = line()

    asked = wire.send(ASK, True, 1.0)[0]
    answered = wire.send(REPORT, False, 1.5)[0]

    assert asked["event.action"] == "tank_gauge_get_in_tank_inventory"
    assert asked["ot.is_command"] is False
    assert answered["ot.link_id"] == asked["ot.link_id"]
    assert answered["event.duration"] == 500_000_000
    assert answered["ot.point.count"] == 2
    assert answered["cw.vendor"]["report"][2] == "IN-TANK INVENTORY"


def test_a_setting_is_a_command_and_its_security_code_is_not_kept() -> None:
    found = line().send(SET, True)[0]

    assert found["event.action"] == "tank_gauge_set_tank_product_label"
    assert (found["ot.is_command"], found["ot.operation"]) == (True, "config")
    assert found["ot.point.address"] == 1
    assert found["ot.value_raw"] == "REGULAR"
    assert found["cw.vendor"] == {"security_code": "present"}
    assert "123456" not in repr(found)


def test_a_gauge_that_does_not_know_a_command_says_so() -> None:
    wire = line()
    asked = wire.send(b"\x01I10100\r\n", True)[0]

    refused = wire.send(b"9999FF1B\n", False)[0]

    assert refused["ot.exception"] == "unknown_command"
    assert refused["event.action"] == "tank_gauge_get_system_status"
    assert refused["ot.link_id"] == asked["ot.link_id"]


def test_an_answer_without_an_end_is_told_with_the_next_inquiry_or_at_the_end() -> None:
    wire = line()
    wire.send(ASK, True, 1.0)
    assert wire.send(REPORT[:-1], False, 2.0) == []

    answered, asked = wire.send(ASK, True, 60.0)
    wire.send(REPORT[:-1], False, 61.0)
    left = wire.decoder.end()

    assert answered["event.duration"] == 1_000_000_000
    assert asked["ot.direction"] == "request"
    assert [f["ot.direction"] for f in left] == ["response"]


def test_a_setting_that_was_not_ended_and_nobody_answered_is_told_at_the_end() -> None:
    wire = line()

    assert wire.send(SET[:-2], True) == []
    left = wire.decoder.end()

    assert [f["event.action"] for f in left] == [
        "tank_gauge_set_tank_product_label",
        "tank_gauge_unanswered",
    ]


def test_a_long_answer_is_bounded() -> None:
    wire = line()
    wire.send(ASK, True)
    for _ in range(20):
        wire.send(b"\nI20100\n" + b"x" * 1_900, False)

    found = wire.decoder.end()[0]

    assert len(wire.decoder._text) == 0
    assert found["event.kind"] == "pipeline_error"
    assert str(ANSWER_MAX) in found["event.reason"]
    assert len(repr(found)) < 5_000


@pytest.mark.parametrize(
    ("data", "from_client", "why"),
    [
        (b"\x01HELLO THERE, GAUGE\n", True, "what begins here is no command"),
        (b"HTTP/1.1 200 OK\x03", False, "no answer begins so: 'HTTP/1.1 200 OK'"),
    ],
)
def test_what_is_none_of_it_is_told(data: bytes, from_client: bool, why: str) -> None:
    found = line().send(data, from_client)[0]

    assert found["event.kind"] == "pipeline_error"
    assert found["event.reason"] == why


def test_starts_without_a_command_are_said_once_and_the_next_command_is_read() -> None:
    found = line().send(b"\x01x" * 5_000 + ASK, True)

    assert [f["event.action"] for f in found] == ["unreadable", "tank_gauge_get_in_tank_inventory"]


def test_behind_a_gap_the_next_command_is_found() -> None:
    wire = line()
    wire.send(b"\x01S60", True)
    wire.decoder.gap(True)
    wire.rest[True] = b""

    found = wire.send(b"201ABC\r\n" + ASK, True)

    assert [f["event.action"] for f in found] == ["tank_gauge_get_in_tank_inventory"]


def test_other_protocols_are_not_taken_for_it() -> None:
    chance = random.Random(7)

    assert not any(TankGauge.recognises(b"\x01" + chance.randbytes(30)) for _ in range(20_000))
    assert not TankGauge.recognises(b"I20100 is the name of a bus stop")
    genisys = bytes.fromhex("fa0180c0f6")
    assert not TankGauge.recognises(genisys)


def test_the_decoder_keeps_its_promises() -> None:
    conversation = [
        (True, ASK),
        (False, REPORT),
        (True, b"\xff\xf4\xff\xfd\x06" + SET + b"\x01i20500"),
        (False, b"\x01i20500260122150601\x03"),
        (True, b"\x01I40600\n"),
        (False, b"9999FF1B\n"),
    ]

    check_decoder(TankGauge, conversation, mutants_each=60)


def test_the_gauge_on_the_internet_is_asked_six_things_and_knows_two(data: Path) -> None:
    found = messages(data / "port/atg_fuel_tank_gauge.pcap", TankGauge)

    asked = [f["ot.function.code"] for f in found if f["ot.direction"] == "request"]
    answered = [f for f in found if f["ot.direction"] == "response"]
    assert asked == ["I20100", "I20100", "I10100", "I20500", "I30100", "I40600", "I20600"]
    assert [f["event.outcome"] for f in answered] == [
        *("success", "failure", "success", "failure", "failure", "failure"),
    ]
    assert answered[0]["cw.vendor"]["station"] == "AVIA"
    assert answered[0]["ot.point.count"] == 4
    assert {f["source.ip"] for f in found} == {"192.168.0.105"}
