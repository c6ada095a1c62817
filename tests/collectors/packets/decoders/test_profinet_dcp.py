"""PROFINET DCP by hand and from a capture in which a device gets another address."""

from __future__ import annotations

from pathlib import Path
from struct import pack
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.profinet_dcp import BLOCKS_MAX, ETHERTYPE, ProfinetDcp
from tests.collectors.packets.decoders.link import captured, frames_without_ip, heard, speaker

GET, SET, IDENTIFY, HELLO = 3, 4, 5, 6
ADDRESSES = bytes((192, 168, 0, 10, 255, 255, 255, 0, 192, 168, 0, 1))


def dcp(frame_id: int, service: int, kind: int, blocks: bytes, xid: int = 7) -> bytes:
    return pack(">HBBIHH", frame_id, service, kind, xid, 0, len(blocks)) + blocks


def block(option: int, suboption: int, value: bytes, info: int | None = None) -> bytes:
    value = (b"" if info is None else pack(">H", info)) + value
    return pack(">BBH", option, suboption, len(value)) + value + bytes(len(value) % 2)


def told(data: bytes) -> dict[str, Any]:
    (fields,) = heard(speaker(ProfinetDcp), data)
    return fields


def test_a_set_of_an_address_is_a_command() -> None:
    fields = told(dcp(0xFEFD, SET, 0, block(1, 2, ADDRESSES, 1)) + bytes(10))

    assert (fields["event.action"], fields["ot.operation"]) == ("dcp_set", "config")
    assert fields["ot.is_command"] is True
    assert (fields["ot.direction"], fields["event.outcome"]) == ("request", "unknown")
    assert fields["ot.value_raw"] == "192.168.0.10"
    assert fields["cw.vendor"] == {
        "blocks": "ip",
        "permanent": True,
        "ip": "192.168.0.10",
        "netmask": "255.255.255.0",
        "gateway": "192.168.0.1",
    }


def test_a_name_of_station_is_the_unit() -> None:
    blocks = block(5, 1, b"", 0) + block(2, 2, b"pump-7", 0) + block(5, 2, b"", 0)

    fields = told(dcp(0xFEFD, SET, 0, blocks))

    assert (fields["ot.unit"], fields["ot.value_raw"]) == ("pump-7", "pump-7")
    assert fields["cw.vendor"]["blocks"] == "start_transaction,name_of_station,end_transaction"
    assert fields["cw.vendor"]["permanent"] is False


@pytest.mark.parametrize("suboption", [5, 6])
def test_a_reset_to_factory_settings_has_its_own_action(suboption: int) -> None:
    fields = told(dcp(0xFEFD, SET, 0, block(5, suboption, b"", 4)))

    assert (fields["event.action"], fields["ot.operation"]) == ("dcp_factory_reset", "restart")
    assert fields["ot.is_command"] is True


def test_a_device_that_refuses_says_why() -> None:
    fields = told(dcp(0xFEFD, SET, 1, block(5, 4, b"\x06", 0x0102)))

    assert fields["event.outcome"] == "failure"
    assert fields["ot.exception"] == "in_operation_set_not_possible"
    assert fields["event.reason"] == "ip was not set"
    assert fields["ot.is_command"] is False


def test_a_service_that_a_device_does_not_know_fails() -> None:
    fields = told(dcp(0xFEFD, SET, 5, b""))

    assert (fields["event.outcome"], fields["ot.exception"]) == ("failure", "service_not_supported")


def test_a_get_lists_what_it_asks_for() -> None:
    asked = told(dcp(0xFEFD, GET, 0, bytes((1, 2, 2, 2, 2, 99))))
    answered = told(dcp(0xFEFD, GET, 1, block(2, 2, b"pump-7", 0)))

    assert (asked["event.action"], asked["ot.operation"]) == ("dcp_get", "read")
    assert asked["cw.vendor"] == {"blocks": "ip,name_of_station,option_2.99"}
    assert answered["ot.unit"] == "pump-7"
    assert asked["ot.link_id"] == answered["ot.link_id"]


def test_an_identify_for_a_name_says_which() -> None:
    fields = told(dcp(0xFEFE, IDENTIFY, 0, block(2, 2, b"pump-7")))

    assert (fields["event.action"], fields["ot.operation"]) == ("dcp_identify", "discovery")
    assert fields["ot.unit"] == "pump-7"


def test_a_hello_is_asked_by_nobody() -> None:
    fields = told(dcp(0xFEFC, HELLO, 0, block(2, 2, b"pump-7", 0)))

    assert (fields["event.action"], fields["ot.direction"]) == ("dcp_hello", "unsolicited")


def test_cyclic_frames_stay_in_their_flow() -> None:
    assert heard(speaker(ProfinetDcp), b"\x80\x00" + bytes(40)) == []


def test_what_is_cut_or_unknown_is_reported() -> None:
    reasons = [
        told(data)["event.reason"]
        for data in (
            b"",
            b"\xfe\xfd\x04",
            dcp(0xFEFD, 9, 0, b""),
            dcp(0xFEFD, SET, 0, block(1, 2, ADDRESSES, 1))[:-1],
            dcp(0xFEFD, SET, 0, b"\x01\x02\x00\xff"),
            dcp(0xFEFD, SET, 0, block(5, 3, b"", 0) * (BLOCKS_MAX + 1)),
        )
    ]

    assert reasons == [
        "0 bytes are no DCP header",
        "3 bytes are no DCP header",
        "service 9 of type 0 is not known",
        "the header claims 18 bytes of blocks, 17 are there",
        "block 1.2 claims 255 bytes, 0 are there",
        "more than 64 blocks",
    ]


def test_a_broken_set_still_is_a_command() -> None:
    fields = told(dcp(0xFEFD, SET, 0, block(1, 2, ADDRESSES, 1) + b"\x01\x02\x00\xff"))

    assert fields["ot.is_command"] is True
    assert fields["ot.value_raw"] == "192.168.0.10"
    assert fields["event.kind"] == "pipeline_error"


def test_dcp_keeps_what_a_decoder_promises() -> None:
    frames = [
        (True, dcp(0xFEFE, IDENTIFY, 0, block(255, 255, b""))),
        (True, dcp(0xFEFF, IDENTIFY, 1, block(2, 2, b"pump-7", 0) + block(2, 4, b"\1\0", 0))),
        (True, dcp(0xFEFD, SET, 0, block(1, 2, ADDRESSES, 1))),
    ]

    check_decoder(ProfinetDcp, frames, transport="link")


def test_a_host_reads_and_then_changes_the_address_of_a_device(data: Path) -> None:
    events = captured(ProfinetDcp, data / "port" / "profinet_dcp_change_ip.pcap")

    assert [event.record.place for event in events] == [1, 2, 3, 4]
    asked, answered, command, done = (event.fields for event in events)
    assert asked["cw.vendor"] == {"blocks": "all"}
    assert (answered["cw.vendor"]["ip"], answered["ot.unit"]) == ("192.168.0.6", "X208-BORD")
    assert answered["cw.vendor"]["station_type"] == "INC"
    assert answered["cw.vendor"]["vendor_id"] == "0x002a"
    assert answered["cw.vendor"]["device_role"] == "io_device"
    assert (command["ot.is_command"], command["ot.value_raw"]) == (True, "192.168.0.10")
    assert command["source.mac"] == asked["source.mac"] == "00-0C-29-BA-09-EA"
    assert (done["event.outcome"], done["ot.is_command"]) == ("success", False)
    assert asked["ot.link_id"] == answered["ot.link_id"]
    assert command["ot.link_id"] == done["ot.link_id"] != asked["ot.link_id"]


def test_no_other_frame_is_taken_for_dcp(data: Path) -> None:
    assert not any(map(ProfinetDcp.recognises, frames_without_ip(data, ETHERTYPE)))
