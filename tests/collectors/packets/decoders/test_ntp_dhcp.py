"""NTP and DHCP against real captures, hand-made messages and hostile bytes."""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cityward.checks import check_decoder
from collectors.packets.decoders.dhcp import Dhcp
from collectors.packets.decoders.ntp import Ntp
from tests.collectors.packets.decoders.captured import datagrams, messages

SENT = struct.pack(">II", 2_208_988_800 + 100, 7)


def packet(mode: int, stratum: int = 0, origin: bytes = bytes(8), leap: int = 0) -> bytes:
    first = leap << 6 | 4 << 3 | mode
    head = struct.pack(">BBbbII4s", first, stratum, 6, -20, 0, 0, b"DENY")
    return head + bytes(8) + origin + bytes(8) + SENT


def private(code: int, is_answer: bool = False, items: int = 0, size: int = 0) -> bytes:
    first = 0x17 | (0x80 if is_answer else 0)
    return struct.pack(">BBBBHH", first, 0, 3, code, items, size) + bytes(40 + items * size)


def control(code: int, sequence: int = 1, data: bytes = b"") -> bytes:
    return struct.pack(">BBHHHHH", 0x16, code, sequence, 0, 0, 0, len(data)) + data


def of_ntp(*pieces: tuple[bytes, bool]) -> list[dict[str, Any]]:
    decoder = Ntp(datagrams(server="10.0.0.2:123"))
    found = [one for data, who in pieces for one in decoder.feed(data, who, 90.0, 1)[1]]
    return [*found, *decoder.end()]


def test_the_time_is_asked_and_told() -> None:
    asked, told = of_ntp((packet(3), True), (packet(4, 2, origin=SENT), False))

    assert (asked["event.action"], told["event.action"]) == ("ntp_client", "ntp_server")
    assert told["ot.link_id"] == asked["ot.link_id"]
    assert told["cw.vendor"] == {"version": 4, "stratum": 2, "reference": "68.69.78.89"}
    assert (told["ot.value"], told["ot.unit_of_measure"]) == (10, "s")


@pytest.mark.parametrize(
    ("data", "why"), [(packet(4, 0), "DENY"), (packet(4, 3, leap=3), "clock_not_synchronised")]
)
def test_a_server_that_does_not_know_the_time_says_so(data: bytes, why: str) -> None:
    found = of_ntp((data, False))

    assert (found[0]["event.outcome"], found[0]["ot.exception"]) == ("failure", why)


def test_the_list_of_clients_is_seen_with_all_its_answers() -> None:
    answer = private(42, True, 6, 72)
    more = bytes((answer[0] | 0x40,)) + answer[1:]

    found = of_ntp((private(42), True), (more, False), (answer, False))

    assert [one["event.action"] for one in found] == ["ntp_monlist"] * 3
    assert found[0]["ot.operation"] == "discovery"
    assert len({one["ot.link_id"] for one in found}) == 1
    assert found[2]["ot.point.count"] == 6


def test_changing_a_server_is_a_command() -> None:
    found = of_ntp((control(8, data=b"server"), True), (control(0x88), False))

    assert (found[0]["event.action"], found[0]["ot.is_command"]) == ("ntp_configure", True)
    assert (found[1]["ot.is_command"], found[1]["event.outcome"]) == (False, "success")


@pytest.mark.parametrize(
    ("code", "name", "is_command"),
    [
        (9, "timer_stats", False),
        (10, "configure_peer", True),
        (11, "unconfigure_peer", True),
        (12, "set_system_flag", True),
        (13, "clear_system_flag", True),
        (21, "reset_statistics", True),
        (37, "set_clock_fudge", True),
    ],
)
def test_requests_of_ntpdc_have_the_numbers_of_ntpd(code: int, name: str, is_command: bool) -> None:
    asked = of_ntp((private(code), True))[0]

    assert (asked["ot.function.name"], asked["ot.is_command"]) == (name, is_command)


@pytest.mark.parametrize("data", [b"", b"\x23" * 12, b"\x16\0", b"\x17" * 7, bytes(48)])
def test_what_is_no_ntp_is_an_event(data: bytes) -> None:
    assert of_ntp((data, True))[0]["event.action"] == "unreadable"


def test_ntp_keeps_its_promises() -> None:
    asked, told = packet(3), packet(4, 2, origin=SENT)
    check_decoder(Ntp, [(True, asked), (False, told)], mutants_each=30)
    check_decoder(Ntp, [(True, private(42)), (False, private(42, True, 2, 72))], mutants_each=30)
    check_decoder(Ntp, [(True, control(2)), (False, control(0x82))], mutants_each=30)


def lease(kind: int, *options: bytes, op: int = 1, given: bytes = bytes(4)) -> bytes:
    head = struct.pack(">BBBBIHH", op, 1, 6, 0, 0xBEEF, 0, 0) + bytes(4) + given + bytes(8)
    mac = bytes.fromhex("b827ebc7e9c9") + bytes(10)
    inside = b"".join((bytes((53, 1, kind)), *options))
    return head + mac + bytes(192) + b"\x63\x82\x53\x63" + inside + b"\xff"


def option(code: int, data: bytes) -> bytes:
    return bytes((code, len(data))) + data


ASKED = lease(3, option(12, b"cam-7"), option(60, b"udhcp 1.2"), option(50, bytes((10, 0, 0, 9))))
GIVEN = lease(5, option(54, bytes((10, 0, 0, 1))), op=2, given=bytes((10, 0, 0, 9)))


def of_dhcp(data: bytes) -> dict[str, Any]:
    used, found = Dhcp(datagrams("0.0.0.0:68", "255.255.255.255:67")).feed(data, True, 0, 1)
    assert used == len(data)
    return found[0]


def test_a_device_asks_for_an_address_and_gets_one() -> None:
    asked, given = of_dhcp(ASKED), of_dhcp(GIVEN)

    assert (asked["event.action"], given["event.action"]) == ("dhcp_request", "dhcp_ack")
    assert (asked["host.hostname"], asked["host.mac"]) == ("cam-7", ["b8:27:eb:c7:e9:c9"])
    assert asked["cw.vendor"] == {"vendor_class": "udhcp 1.2", "requested": "10.0.0.9"}
    assert (given["host.ip"], given["cw.vendor"]["server"]) == (["10.0.0.9"], "10.0.0.1")
    assert asked["ot.link_id"] == given["ot.link_id"] == "dhcp.0000beef"


def test_a_refusal_has_its_reason() -> None:
    found = of_dhcp(lease(6, option(56, b"no free address"), op=2))

    assert (found["event.outcome"], found["event.reason"]) == ("failure", "no free address")


def test_an_option_that_is_cut_is_said() -> None:
    found = of_dhcp(ASKED[:-3])

    assert found["event.kind"] == "pipeline_error"
    assert "option 50 is cut" in found["event.reason"]


def test_what_is_no_dhcp_is_an_event() -> None:
    assert of_dhcp(bytes(300))["event.action"] == "unreadable"


def test_dhcp_keeps_its_promises() -> None:
    check_decoder(Dhcp, [(True, ASKED), (False, GIVEN)], mutants_each=60)


@given(st.binary(min_size=1, max_size=60))
def test_other_bytes_are_neither(data: bytes) -> None:
    assert not Dhcp.recognises(data)
    assert not Ntp.recognises(data[:7])
    assert not Ntp.recognises(b"\x00" + data)


def test_clocks_of_a_substation_are_read(data: Path) -> None:
    found = messages(data / "energy/iec61850_mms_and_goose.pcap", Ntp)

    assert Counter(one["event.action"] for one in found) == {"ntp_client": 26, "ntp_server": 26}
    assert not any("event.reason" in one for one in found)


def test_the_network_of_a_camera_is_read(data: Path) -> None:
    found = messages(data / "city/iot_botnet_telnet_scan.pcap", Ntp, Dhcp)

    assert Counter(one["event.action"] for one in found) == {
        "ntp_client": 69,
        "ntp_server": 67,
        "dhcp_discover": 48,
        "dhcp_offer": 47,
        "dhcp_request": 5,
        "dhcp_ack": 3,
    }
