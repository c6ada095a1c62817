"""BACnet/IP against real captures, an independent log, and hostile bytes."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.bacnet import Bacnet
from collectors.packets.decoders.pairs import OPEN_MAX
from tests.collectors.packets.decoders.captured import datagrams, messages
from tests.collectors.packets.decoders.streams import Wire

READ = bytes.fromhex("810a001101040005010c0c023fffff194b")
READ_ACK = bytes.fromhex("810a0017010030010c0c023fffff194b3ec4020001f43f")
WRITE = bytes.fromhex("810a001801040005020f0c0040000119553e44420800003f4908")
SIMPLE_ACK = bytes.fromhex("810a0009010020020f")
DISABLE = bytes.fromhex("810a0017010400050311090519012d0700736563726574")
ERROR = bytes.fromhex("810a000d01005003119104911a")
REGISTER = bytes.fromhex("810500060010")
REFUSED = bytes.fromhex("810000060030")


def sized(data: bytes) -> bytes:
    """With the length that the header should have."""
    return data[:2] + len(data).to_bytes(2) + data[4:]


def one(data: bytes, from_client: bool = True) -> dict[str, Any]:
    return Wire(Bacnet(datagrams())).send(sized(data), from_client)[0]


def test_a_read_and_its_answer_are_joined_and_say_object_property_and_value() -> None:
    line = Wire(Bacnet(datagrams()))

    asked = line.send(READ, True, 1.0)[0]
    answered = line.send(READ_ACK, False, 1.5)[0]

    assert asked["event.action"] == "bacnet_read_property"
    assert asked["ot.operation"] == "read"
    assert asked["ot.is_command"] is False
    assert (asked["ot.point.type"], asked["ot.point.address"]) == ("device", 4_194_303)
    assert asked["cw.vendor"] == {"property": "object_identifier"}
    assert answered["ot.link_id"] == asked["ot.link_id"]
    assert answered["event.duration"] == 500_000_000
    assert answered["ot.value_raw"] == "device,500"


def test_a_write_says_value_and_priority_and_its_answer_repeats_the_object() -> None:
    line = Wire(Bacnet(datagrams()))

    asked = line.send(sized(WRITE), True)[0]
    answered = line.send(SIMPLE_ACK, False)[0]

    assert asked["ot.is_command"] is True
    assert (asked["ot.point.type"], asked["ot.point.address"]) == ("analog_output", 1)
    assert asked["ot.value"] == 34.0
    assert asked["cw.vendor"] == {"property": "present_value", "priority": 8}
    assert (answered["event.outcome"], answered["ot.is_command"]) == ("success", False)
    assert (answered["ot.point.type"], answered["ot.point.address"]) == ("analog_output", 1)


def test_a_wrong_password_is_an_exception_and_no_password_is_kept() -> None:
    line = Wire(Bacnet(datagrams()))

    asked = line.send(sized(DISABLE), True)[0]
    answered = line.send(ERROR, False)[0]

    assert asked["ot.function.sub"] == "disable"
    assert asked["ot.is_command"] is True
    assert asked["cw.vendor"] == {"state": "disable", "duration_min": 5, "password": "present"}
    assert "secret" not in repr(asked)
    assert answered["ot.exception"] == "password_failure"
    assert answered["event.code"] == "security"
    assert answered["event.outcome"] == "failure"


def test_registering_a_foreign_device_and_its_refusal() -> None:
    line = Wire(Bacnet(datagrams()))

    asked = line.send(REGISTER, True)[0]
    answered = line.send(REFUSED, False)[0]

    assert asked["event.action"] == "bacnet_register_foreign_device"
    assert asked["cw.vendor"] == {"ttl_s": 16}
    assert answered["ot.exception"] == "register_foreign_device_nak"
    assert answered["event.action"] == "bacnet_register_foreign_device"
    assert answered["ot.link_id"] == asked["ot.link_id"]


def test_the_same_invoke_id_in_two_networks_is_two_requests() -> None:
    line = Wire(Bacnet(datagrams()))
    first = line.send(
        sized(bytes.fromhex("810a00000124000501 0aff0005010c0c023fffff194b".replace(" ", ""))), True
    )[0]
    second = line.send(
        sized(bytes.fromhex("810a00000124000601 0aff0005010c0c023fffff194b".replace(" ", ""))), True
    )[0]

    answered = line.send(
        sized(bytes.fromhex("810a000001080005010a30010c0c023fffff194b3ec4020001f43f")), False
    )[0]

    assert first["cw.vendor"]["destination_network"] == "5:0a"
    assert first["ot.link_id"] != second["ot.link_id"]
    assert answered["ot.link_id"] == first["ot.link_id"]


def test_what_the_server_asks_has_the_server_as_its_source() -> None:
    assert one(READ)["source.ip"] == "10.0.0.1"
    assert one(READ, False)["source.ip"] == "10.0.0.2"


def test_each_property_of_a_write_to_several_is_an_event() -> None:
    body = "0c004000011e09552e44420800002f39080975 2e91012f1f0c008000021e09552e91012f1f".replace(
        " ", ""
    )
    found = Wire(Bacnet(datagrams())).send(
        sized(bytes.fromhex("810a0000010400050210" + body)), True
    )

    assert [(f["ot.point.type"], f["ot.point.address"], f.get("ot.value")) for f in found] == [
        ("analog_output", 1, 34.0),
        ("analog_output", 1, 1),
        ("analog_value", 2, 1),
    ]
    assert [f["cw.vendor"]["property"] for f in found] == [
        "present_value",
        "units",
        "present_value",
    ]
    assert found[0]["cw.vendor"]["priority"] == 8
    assert all(f["ot.is_command"] for f in found)


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (
            "810b00000120ffff00ff1008",
            {
                "event.action": "bacnet_who_is",
                "cw.vendor": {"range": "all", "destination_network": "65535:"},
            },
        ),
        ("810b00000100100809011a03e8", {"cw.vendor": {"range": "1-1000"}}),
        (
            "810b000001001000c4020001f42205c491002109",
            {
                "event.action": "bacnet_i_am",
                "ot.unit": "500",
                "cw.vendor": {"max_apdu": 1476, "segmentation": 0, "vendor_id": 9},
            },
        ),
        (
            "810b000001001006a4730c1f06b40a1e0000",
            {
                "event.action": "bacnet_time_synchronization",
                "ot.is_command": True,
                "ot.value_raw": "2015-12-31 10:30:00.00",
            },
        ),
        (
            "810a0000018006",
            {"event.action": "bacnet_initialize_routing_table", "ot.is_command": True},
        ),
        (
            "81020004",
            {
                "event.action": "bacnet_read_broadcast_distribution_table",
                "ot.operation": "discovery",
            },
        ),
        (
            "81040000c0a80005bac001001008",
            {
                "event.action": "bacnet_who_is",
                "cw.vendor": {"range": "all", "forwarded_from": "192.168.0.5:47808"},
            },
        ),
        (
            "810a00000104000503140901",
            {
                "event.action": "bacnet_reinitialize_device",
                "ot.function.sub": "warmstart",
                "ot.operation": "restart",
                "cw.vendor": {"state": "warmstart", "password": "absent"},
            },
        ),
        (
            "810a00000100600309",
            {"event.action": "bacnet_reject", "ot.exception": "unrecognized_service"},
        ),
    ],
)
def test_a_message_means_what_the_standard_says(data: str, fields: dict[str, Any]) -> None:
    found = one(bytes.fromhex(data))

    assert {name: found.get(name) for name in fields} == fields
    assert "event.kind" not in found


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("810a0012", "length 18 of 4 bytes"),
        ("810a00070204", "version 2"),
        ("810a0006 0104", "there is no APDU"),
        ("810a000a 0104000502 0f", "the object is missing"),
        ("810a000d 01040005010c 0c023fff", "claims 4 bytes, 3 are left"),
        ("810a0008 01040005", "cut or malformed"),
    ],
)
def test_a_malformed_message_is_an_event_that_says_why(data: str, why: str) -> None:
    whole = bytes.fromhex(data.replace(" ", ""))
    if not whole.endswith(b"\0\x12"):
        whole = sized(whole)

    found = Wire(Bacnet(datagrams())).send(whole, True)[0]

    assert found["event.kind"] == "pipeline_error"
    assert why in found["event.reason"]


def test_open_requests_are_bounded_and_only_commands_are_told_at_the_end() -> None:
    decoder = Bacnet(datagrams())
    line = Wire(decoder)
    for number in range(OPEN_MAX):
        line.send(READ[:8] + bytes([number]) + READ[9:], True)

    asked = line.send(sized(WRITE[:8] + b"\xee" + WRITE[9:]), True)[0]

    assert "64 requests are open" in asked["event.reason"]
    assert [f["event.action"] for f in decoder.end()] == ["bacnet_unanswered"]


def test_the_decoder_keeps_its_promises() -> None:
    conversation = [
        (True, READ),
        (False, READ_ACK),
        (True, sized(WRITE)),
        (False, SIMPLE_ACK),
        (True, sized(DISABLE)),
        (True, REGISTER),
        (False, REFUSED),
    ]

    check_decoder(Bacnet, conversation, transport="udp")


# ---- Real captures


@cache
def all_services(data: Path) -> list[dict[str, Any]]:
    return messages(data / "city/bacnet_all_services.pcap", Bacnet)


def test_all_services_have_the_counts_of_the_independent_parser(data: Path) -> None:
    found = all_services(data)

    actions = Counter(fields["event.action"] for fields in found)
    kinds = Counter(
        (fields["ot.direction"], fields.get("event.outcome", ""))
        for fields in found
        if fields["ot.direction"] != "unsolicited" and "segment" not in fields["event.action"]
    )
    assert kinds["request", ""] == 3_410
    assert kinds["response", "success"] == 3_392 + 13 - 1  # one more complex ack is a segment
    assert kinds["response", "failure"] == 6
    assert actions["bacnet_read_property"] == 6_530
    assert actions["bacnet_write_property"] == 18
    assert actions["bacnet_device_communication_control"] == 8
    assert actions["bacnet_reinitialize_device"] == 8
    # 108 of its 330 unconfirmed requests are BACnet in LLC, without IP; tshark agrees.
    unconfirmed = ("i_am", "i_have", "who_is", "who_has", "time_synchronization")
    assert sum(actions[f"bacnet_{name}"] for name in unconfirmed) == 330 - 108
    assert not [fields for fields in found if "event.kind" in fields]
    assert not [fields for fields in found if "event.reason" in fields]


STATES = {"coldstart", "warmstart", "enable", "disable"}


def test_device_control_agrees_with_the_expected_log(data: Path) -> None:
    log = (data / "city/bacnet_all_services.expected_device_control.log").read_text()
    rows = [line.split("\t") for line in log.splitlines() if not line.startswith("#")]
    names = next(line for line in log.splitlines() if line.startswith("#fields")).split("\t")[1:]
    expected = [dict(zip(names, row, strict=True)) for row in rows]
    found = [
        fields
        for fields in all_services(data)
        if fields["event.action"]
        in ("bacnet_device_communication_control", "bacnet_reinitialize_device")
    ]

    assert len(found) == len(expected) == 16
    for fields, row in zip(found, expected, strict=True):
        is_request = row["is_orig"] == "T"
        assert fields["source.ip"] == row["id.orig_h"]
        assert fields["event.sequence"] == int(row["invoke_id"])
        assert fields["ot.function.name"] == row["pdu_service"]
        assert (fields["ot.direction"] == "request") is is_request
        assert fields["ot.is_command"] is is_request
        if is_request:
            assert fields["cw.vendor"]["state"] == row["device_state"]
            password = "absent" if row["password"] == "(empty)" else "present"
            assert fields["cw.vendor"]["password"] == password
            assert str(fields["cw.vendor"].get("duration_min", "-")) == row["time_duration"]
        else:
            assert fields["event.outcome"] == {"ERROR": "failure"}.get(row["result"], "success")
            exception = fields.get("ot.exception", "-").replace("_", "-")
            assert exception == row["result_code"]


@pytest.mark.parametrize("function", range(13))
def test_a_header_whose_length_is_right_and_whose_content_is_cut_is_no_exception(
    function: int,
) -> None:
    for size in range(4, 12):
        one(bytes([0x81, function, 0, size]) + bytes(size - 4))


def test_the_recon_reads_nine_properties_and_tries_to_become_a_foreign_device(data: Path) -> None:
    found = messages(data / "city/bacnet_quickdraw_recon.pcap", Bacnet)

    assert Counter((f["event.action"], f["ot.direction"]) for f in found) == {
        ("bacnet_read_property", "request"): 9,
        ("bacnet_read_property", "response"): 9,
        ("bacnet_read_broadcast_distribution_table", "request"): 1,
        ("bacnet_read_broadcast_distribution_table", "response"): 1,
        ("bacnet_register_foreign_device", "request"): 1,
        ("bacnet_register_foreign_device", "response"): 1,
    }
    assert [f["cw.vendor"]["property"] for f in found[:4:2]] == [
        "object_identifier",
        "vendor_identifier",
    ]
    assert [f["ot.value_raw"] for f in found if "ot.value_raw" in f][1:5] == [
        "JCI",
        "5.1.0.4400",
        "",
        "KBRNAE",
    ]
