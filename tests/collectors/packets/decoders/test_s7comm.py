"""S7comm, S7comm-plus and ISO transport against a real session and hostile bytes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.cotp import MESSAGE_MAX
from collectors.packets.decoders.mms import Mms
from collectors.packets.decoders.s7comm import MADE_MAX, S7comm
from collectors.packets.decoders.s7comm_plus import S7commPlus
from tests.collectors.packets.decoders.streams import Wire, decoded, session

CAPTURE = "energy/s7comm_snap7_read_write_stop_download.pcap"
EXPECTED = "energy/s7comm_snap7_read_write_stop_download.expected.log"


def data_unit(message: str) -> str:
    """A message in one packet."""
    return f"0300{len(message) // 2 + 7:04x}02f080{message}"


def connection(code: str, calling: str, called: str) -> str:
    """A connection request (`e0`) or confirm (`d0`)."""
    references = "00000001" if code == "e0" else "00010002"
    selectors = f"c1{len(calling) // 2:02x}{calling}c2{len(called) // 2:02x}{called}"
    tpdu = f"{code}{references}00c0010a{selectors}"
    return f"0300{len(tpdu) // 2 + 5:04x}{len(tpdu) // 2:02x}{tpdu}"


CONNECT = connection("e0", "0100", "0102")
CONFIRM = connection("d0", "0100", "0102")
SETUP = "0300001902f08032010000000000080000f0000001000101e0"
SET_UP = "0300001b02f080320300000000000800000000f0000001000100f0"
ITEMS = "120a10020001000484000028120a1001000100008200000b"
WRITE = data_unit("320100000100001a000b0502" + ITEMS + "0004000811000003000101")
WRITTEN = data_unit("3203000001000002000200000502ff05")
STOP = "0300002102f080320100001c000010000029000000000009505f50524f4752414d"
STOPPED = "0300001402f080320300001c0000010000000029"


def wire() -> Wire:
    return Wire(S7comm(session(server="10.0.0.2:102")))


def talk(*pieces: tuple[bool, str]) -> list[dict[str, Any]]:
    line = wire()
    found = [one for who, data in pieces for one in line.send(bytes.fromhex(data), who)]
    return [*found, *line.decoder.end()]


def test_a_connection_says_which_controller_of_the_station_is_meant() -> None:
    asked, answered, setup = talk((True, CONNECT), (False, CONFIRM), (True, SETUP))

    assert asked["event.action"] == "cotp_connection_request"
    assert asked["cw.vendor"] == {
        "tpdu_bytes": 1024,
        "calling_tsap": "0100",
        "called_tsap": "0102",
        "connection": "programming_device",
        "rack": 0,
        "slot": 2,
    }
    assert answered["ot.link_id"] == asked["ot.link_id"]
    assert setup["ot.unit"] == "0.2"


def test_each_written_item_is_an_event_with_area_address_and_value() -> None:
    first, second, answer = talk((True, WRITE), (False, WRITTEN))

    assert first["ot.point.type"] == "data_block"
    assert (first["ot.point.address"], first["ot.value"]) == (5, 17)
    assert first["cw.vendor"]["item"] == "P#DB4.DBX5.0 BYTE 1"
    assert second["ot.point.type"] == "output"
    assert (second["ot.point.address"], second["ot.value"]) == (1, 1)
    assert second["cw.vendor"]["bit"] == 3
    assert first["ot.is_command"]
    assert second["ot.is_command"]
    assert first["ot.link_id"] == second["ot.link_id"] == answer["ot.link_id"]
    assert answer["event.outcome"] == "failure"
    assert answer["ot.exception"] == "address_out_of_range"
    assert answer["cw.vendor"]["failed_items"] == ["2: address_out_of_range"]


def test_a_stop_nobody_answers_is_said_at_the_end() -> None:
    asked, left = talk((True, STOP))

    assert asked["ot.operation"] == "mode_change"
    assert asked["ot.is_command"] is True
    assert left["event.action"] == "s7comm_unanswered"
    assert left["ot.link_id"] == asked["ot.link_id"]


@pytest.mark.parametrize(
    ("group", "sub", "action", "is_command"),
    [
        (1, 8, "s7comm_modify_variable", True),
        (1, 9, "s7comm_force", True),
        (1, 12, "s7comm_memory_reset", True),
        (1, 16, "s7comm_read_job_list", False),
        (15, 1, "s7comm_nc_request_download", True),
    ],
)
def test_what_a_programmer_changes_is_a_command(
    group: int, sub: int, action: str, is_command: bool
) -> None:
    request = data_unit(f"3207000001000008000400011204114{group:x}{sub:02x}000a000000")

    asked = talk((True, request))[0]

    assert (asked["event.action"], asked["ot.is_command"]) == (action, is_command)


def test_functions_that_nobody_knows_are_not_kept_without_end() -> None:
    line = wire()

    for group in range(16):
        for sub in range(256):
            request = f"3207000001000008000400011204114{group:x}{sub:02x}000a000000"
            line.send(bytes.fromhex(data_unit(request)), True)

    assert len(line.decoder._made) == MADE_MAX


def test_an_answer_to_something_else_is_not_joined() -> None:
    asked, answer, left = talk((True, STOP), (False, STOPPED.replace("00000029", "0000001f")))

    assert "ot.link_id" not in answer
    assert "was not asked under this reference" in answer["event.reason"]
    assert left["ot.link_id"] == asked["ot.link_id"]


def test_an_answer_without_a_request_says_so() -> None:
    (answer,) = talk((False, STOPPED))

    assert answer["event.reason"] == "no request was seen for this answer"


def test_a_confirm_in_front_of_its_request_is_no_stranger() -> None:
    confirm, request = talk((False, CONFIRM), (True, CONNECT))

    assert "event.reason" not in confirm
    assert request["event.action"] == "cotp_connection_request"


def test_a_message_in_several_data_units_is_put_together() -> None:
    message = bytes.fromhex(STOP)[7:]
    units = b"".join(
        b"\x03\0\0" + bytes([7 + len(part), 2, 0xF0, mark]) + part
        for part, mark in ((message[:5], 0), (message[5:6], 0), (message[6:], 0x80))
    )

    assert talk((True, units.hex())) == talk((True, STOP))


def test_a_message_without_an_end_has_a_bound() -> None:
    unit = b"\x03\0" + (7 + 1_000).to_bytes(2) + b"\x02\xf0\0" + bytes(1_000)
    line = wire()

    found = [one for _ in range(200) for one in line.send(unit, True)]

    assert [one["event.kind"] for one in found] == ["pipeline_error"]
    assert f"more than {MESSAGE_MAX} bytes" in found[0]["event.reason"]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("0300000702f080", ""),
        ("0400001902f080", "begins with 0300, not 0400"),
        ("030000060290", "transport code 0x90 is not defined"),
        ("0300000802f08032", "begins with 0x32, not 32"),
        ("0300001102f08032050000000000000000", "message type 5 is not defined"),
        ("0300001102f08032010000000000090000", "9 bytes of parameters are announced, 0 are there"),
        (WRITE.replace("0502120a", "0503120a"), "3 items are announced, 2 are there"),
        (WRITE.replace("000400081100", "000400ff1100"), "value 1 has 32 bytes, 7 are there"),
    ],
)
def test_what_is_wrong_is_said(broken: str, why: str) -> None:
    said = [one.get("event.reason", "") for one in talk((True, broken))]

    assert not why or any(why in one for one in said)


def test_after_a_gap_the_next_packet_is_found() -> None:
    line = wire()
    line.send(bytes.fromhex(WRITE)[:20], True)

    line.decoder.gap(True)
    line.rest[True] = b""
    found = line.send(bytes.fromhex(WRITE)[40:] + bytes.fromhex(STOP), True)

    assert "bytes are missing" in found[0]["event.reason"]
    assert [one["event.action"] for one in found[1:]] == ["s7comm_plc_stop"]


def test_the_decoder_keeps_its_promises() -> None:
    conversation = [
        (True, bytes.fromhex(CONNECT)),
        (False, bytes.fromhex(CONFIRM)),
        (True, bytes.fromhex(SETUP)),
        (False, bytes.fromhex(SET_UP)),
        (True, bytes.fromhex(WRITE + STOP)),
        (False, bytes.fromhex(WRITTEN + STOPPED)),
    ]

    check_decoder(S7comm, conversation)


def test_random_bytes_are_nobodys() -> None:
    chance = random.Random(1)
    heads = [b"\x03\0" + chance.randbytes(chance.randint(0, 60)) for _ in range(5_000)]

    for made in (S7comm, S7commPlus, Mms):
        assert not any(made.recognises(head) for head in heads)
    remote_desktop = bytes.fromhex("030000130ee000000000000100080003000000")
    assert not any(made.recognises(remote_desktop) for made in (S7comm, S7commPlus, Mms))


# ---- S7comm-plus

PLUS_CONNECT = connection("e0", "0600", b"SIMATIC-ROOT-ES".hex())
PLUS_OPEN = data_unit("7201001031000004ca000000010000012036000072010000")
PLUS_OPENED = data_unit("7201000a32000004ca000000013672010000")
PLUS_SET = data_unit("7203002f20" + "ab" * 32 + "310000054200000002000003873472030000")


def plus(*pieces: tuple[bool, str]) -> list[dict[str, Any]]:
    line = Wire(S7commPlus(session(server="10.0.0.2:102")))
    return [one for who, data in pieces for one in line.send(bytes.fromhex(data), who)]


def test_the_header_of_s7comm_plus_says_what_is_asked() -> None:
    connect, opened, answered, written = plus(
        (True, PLUS_CONNECT),
        (True, PLUS_OPEN),
        (False, PLUS_OPENED),
        (True, PLUS_SET),
    )

    assert connect["cw.vendor"]["called_tsap"] == "SIMATIC-ROOT-ES"
    assert opened["event.action"] == "s7comm_plus_create_object"
    assert opened["ot.is_command"] is False
    assert answered["ot.link_id"] == opened["ot.link_id"]
    assert written["event.action"] == "s7comm_plus_set_multi_variables"
    assert written["ot.is_command"] is True
    assert written["cw.vendor"]["protected"] is True


def test_s7comm_plus_keeps_its_promises() -> None:
    check_decoder(
        S7commPlus,
        [
            (True, bytes.fromhex(PLUS_CONNECT)),
            (True, bytes.fromhex(PLUS_OPEN)),
            (False, bytes.fromhex(PLUS_OPENED)),
            (True, bytes.fromhex(PLUS_SET)),
        ],
    )


def test_each_of_three_protocols_on_one_port_claims_its_own() -> None:
    heads = {
        S7comm: [CONNECT, SETUP, CONNECT + SETUP, STOPPED],
        S7commPlus: [PLUS_CONNECT, PLUS_OPEN],
    }

    for owner, samples in heads.items():
        for made in (S7comm, S7commPlus, Mms):
            for sample in samples:
                assert made.recognises(bytes.fromhex(sample)) is (made is owner)


# ---- Real files

NAMES = {
    "Setup Communication": "setup_communication",
    "Read SZL": "read_szl",
    "List Blocks": "list_blocks",
    "Get Block Info": "block_info",
    "Start Upload": "start_upload",
    "Upload": "upload",
    "End Upload": "end_upload",
    "Read Clock": "read_clock",
    "Set Clock": "set_clock",
    "Write Variable": "write_var",
    "Read Variable": "read_var",
    "PLC Stop": "plc_stop",
    "PLC Control": "pi_service",
}


def test_a_real_session_agrees_with_the_log_that_zeek_made_of_it(data: Path) -> None:
    found = list(decoded(S7comm, data / CAPTURE, 102))
    messages = dict(reversed(found))
    ours = [
        (
            one["ot.direction"] == "request",
            one["event.sequence"],
            one["ot.function.code"],
            one["ot.function.name"],
            int(one.get("event.code", "0"), 16),
        )
        for _, one in sorted(messages.items())
    ]
    expected = []
    for line in (data / EXPECTED).read_text().splitlines():
        cells = line.split("\t")
        if line.startswith("#"):
            continue
        name = cells[17] if cells[11] == "7" else cells[15]
        expected.append(
            (
                cells[6] == "T",
                int(cells[13]),
                cells[14],
                NAMES[name],
                int(cells[19].replace("-", "0"), 16),
            )
        )

    assert len(ours) == 64
    assert len(expected) == 61
    # Zeek leaves out the two messages in the middle of an answer in parts, and the answer that has
    # an error and no function.
    left_out = [frame for frame in messages if frame in (6, 7, 44)]
    kept = [one for frame, one in zip(sorted(messages), ours, strict=True) if frame not in left_out]
    assert kept == expected


def test_a_real_session_tells_what_was_done_to_the_controller(data: Path) -> None:
    found = list(decoded(S7comm, data / CAPTURE, 102))

    commands = [one["event.action"] for _, one in found if one["ot.is_command"]]
    assert commands == [
        "s7comm_set_clock",
        *["s7comm_write_var"] * 6,
        "s7comm_plc_stop",
        "s7comm_copy_ram_to_rom",
        "s7comm_compress_memory",
        "s7comm_plc_start",
    ]
    moved = [one["ot.program.hash"][:8] for _, one in found if "ot.program.hash" in one]
    assert moved == ["87c8f29f"] * 4
    assert not [one for _, one in found if "event.kind" in one or "event.reason" in one]
