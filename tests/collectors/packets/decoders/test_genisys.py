"""GENISYS against a real capture, hand-made messages and hostile bytes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cityward.checks import check_decoder
from collectors.packets.decoders.genisys import KINDS, MESSAGE_MAX, Genisys, crc16
from tests.collectors.packets.decoders.streams import Wire, decoded, pieces, session

POLL = bytes.fromhex("fb018340f6")
ACKNOWLEDGE = bytes.fromhex("f101f6")
RECALL = bytes.fromhex("fd0180e0f6")
INDICATIONS = bytes.fromhex("f20109050a060c050f0512fcf6")


def crc(data: bytes, seed: int = 0xFFFF) -> bytes:
    """Bit by bit."""
    for byte in data:
        seed ^= byte
        for _ in range(8):
            seed = seed >> 1 ^ (0xA001 if seed & 1 else 0)
    return seed.to_bytes(2, "little")


def escaped(data: bytes) -> bytes:
    return b"".join(bytes((0xF0, one & 15)) if one >= 0xF0 else bytes((one,)) for one in data)


def message(header: int, body: bytes, *, seed: int = 0xFFFF, plain_crc: bool = False) -> bytes:
    tail = crc(bytes((header,)) + body, seed)
    inner = escaped(body) + (tail if plain_crc else escaped(tail))
    return bytes((header,)) + inner + b"\xf6"


CONTROL = message(0xFC, bytes((1, 3, 5, 4, 255)))
CHECKBACK = message(0xF3, bytes((1, 3, 5, 4, 255)))
EXECUTE = message(0xFE, b"\x01")


def wire() -> Wire:
    return Wire(Genisys(session(server="10.0.0.2:10001")))


def test_the_decoder_keeps_its_promises() -> None:
    conversation = [
        (True, POLL),
        (False, INDICATIONS),
        (True, CONTROL),
        (False, CHECKBACK),
        (True, EXECUTE),
        (False, ACKNOWLEDGE),
    ]

    check_decoder(Genisys, conversation, mutants_each=8)


def test_a_control_is_an_event_for_each_byte_and_joined_to_its_answers() -> None:
    line = wire()

    asked = line.send(CONTROL, True)
    checked = line.send(CHECKBACK, False)[0]
    ordered = line.send(EXECUTE, True)[0]
    done = line.send(ACKNOWLEDGE, False)[0]

    assert [(one["ot.point.address"], one["ot.value"]) for one in asked] == [(3, 5), (4, 255)]
    assert {one["ot.unit"] for one in asked} == {"1"}
    assert all(one["ot.is_command"] and one["ot.operation"] == "control" for one in asked)
    assert checked["ot.link_id"] == asked[0]["ot.link_id"] == asked[1]["ot.link_id"]
    assert (checked["ot.is_command"], checked["ot.value_raw"]) == (False, "3=5,4=255")
    assert ordered["ot.is_command"] is True
    assert done["ot.link_id"] == ordered["ot.link_id"] != asked[0]["ot.link_id"]
    assert done["cw.vendor"]["answers"] == "execute"
    assert line.decoder.end() == []


def test_the_mode_of_a_station_is_configuration() -> None:
    found = wire().send(message(0xFC, bytes((1, 0xE0, 0x08))), True)[0]

    assert (found["ot.operation"], found["ot.point.type"]) == ("config", "mode")


def test_a_common_control_waits_for_nobody() -> None:
    line = wire()

    found = line.send(message(0xF9, bytes((0, 1, 1))), True)[0]

    assert (found["event.action"], found["ot.unit"]) == ("genisys_common_control", "0")
    assert found["ot.is_command"] is True
    assert line.decoder.end() == []


def test_a_control_nobody_answered_is_an_event_at_the_end() -> None:
    line = wire()
    line.send(CONTROL, True)

    left = line.decoder.end()

    assert [one["event.action"] for one in left] == ["genisys_unanswered"]
    assert left[0]["ot.is_command"] is False


def test_an_answer_nobody_asked_for_is_said() -> None:
    found = wire().send(INDICATIONS, False)[0]

    assert found["event.reason"] == "no request was seen for this answer"


def test_requests_of_the_end_that_accepted_are_told_as_its_own() -> None:
    found = wire().send(POLL, False)[0]

    assert (found["source.ip"], found["destination.ip"]) == ("10.0.0.2", "10.0.0.1")


@given(
    st.sampled_from([0xF2, 0xF3, 0xF9, 0xFC]),
    st.integers(0, 255),
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=1, max_size=40),
    st.sampled_from([0xFFFF, 0]),
)
def test_every_message_is_read_whatever_is_in_it(
    header: int, station: int, pairs: list[tuple[int, int]], seed: int
) -> None:
    body = bytes((station, *(one for pair in pairs for one in pair)))
    data = message(header, body, seed=seed)

    found = wire().send(data + POLL, True)

    assert Genisys.recognises(data)
    told = found[:-1]
    assert {one["ot.unit"] for one in told} == {str(station)}
    if KINDS[header].is_command:
        assert [(one["ot.point.address"], one["ot.value"]) for one in told] == pairs
    else:
        assert told[0]["ot.value_raw"] == ",".join(f"{a}={b}" for a, b in pairs)


@pytest.mark.parametrize("low", [0xF6, 0xF0, 0xFC, 0x12])
def test_a_checksum_may_stand_unescaped(low: int) -> None:
    chance = random.Random(low)
    body = b""
    while crc(b"\xfc" + body)[0] != low:
        body = bytes((1, *chance.choices(range(200), k=4)))

    found = wire().send(message(0xFC, body, plain_crc=True) + POLL, True)

    assert [one["event.action"] for one in found] == ["genisys_control_data"] * 2 + ["genisys_poll"]


def test_a_poll_may_have_no_checksum_but_does_not_prove_what_it_is() -> None:
    found = wire().send(b"\xfb\x07\xf6", True)[0]

    assert (found["event.action"], found["ot.unit"]) == ("genisys_poll", "7")
    assert not Genisys.recognises(b"\xfb\x07\xf6")
    assert not Genisys.recognises(ACKNOWLEDGE)


def test_a_wrong_checksum_is_an_event_and_the_next_message_is_read() -> None:
    bad = bytearray(CONTROL)
    bad[3] ^= 1

    found = wire().send(bytes(bad) + POLL, True)

    assert [one["event.action"] for one in found] == ["unreadable", "genisys_poll"]
    assert found[0]["event.reason"] == "a control_data with a wrong checksum or escape"
    assert found[0]["ot.unit"] == "1"


def test_a_message_whose_end_is_missing_does_not_swallow_the_next() -> None:
    found = wire().send(CONTROL[:5] + POLL + POLL, True)

    assert [one["event.action"] for one in found] == ["unreadable", "genisys_poll", "genisys_poll"]


def test_after_a_gap_the_next_message_is_found() -> None:
    line = wire()
    line.send(INDICATIONS[:4], False)
    line.decoder.gap(False)
    line.rest[False] = b""

    found = line.send(INDICATIONS[6:] + ACKNOWLEDGE + POLL, False)

    assert [one["event.action"] for one in found] == ["genisys_acknowledge", "genisys_poll"]


@pytest.mark.parametrize(
    ("header", "body", "why"),
    [
        (0xFD, b"\x01\x02\x03", "2 bytes of data in a recall"),
        (0xF2, b"\x01\x02", "an address without its data"),
        (0xF2, b"\x01", "a indication_data without data"),
    ],
)
def test_data_out_of_place_is_said(header: int, body: bytes, why: str) -> None:
    found = wire().send(message(header, body), header > 0xF8)

    assert why in found[0]["event.reason"]


def test_the_same_events_however_tcp_cuts_the_stream() -> None:
    bad = bytearray(CONTROL)
    bad[3] ^= 1
    stream = POLL + bytes(bad) + b"junk" + CONTROL[:5] + EXECUTE + b"\xf6\xf6" + CONTROL + POLL
    whole = wire().send(stream, True)

    for size in range(1, 9):
        line = wire()
        cut = [
            one
            for at in range(0, len(stream), size)
            for one in line.send(stream[at : at + size], True)
        ]
        assert cut == whole


def test_a_cut_message_is_said_at_the_end() -> None:
    line = wire()

    assert line.send(CONTROL[:5], True) == []
    assert line.decoder.end()[0]["event.reason"] == (
        "the conversation ended 5 bytes into a message of the client"
    )


def test_a_message_without_end_is_given_up() -> None:
    line = wire()

    found = line.send(b"\xf2" + b"\x01" * 3_000 + POLL, True)

    assert [one["event.action"] for one in found] == ["unreadable", "genisys_poll"]
    assert found[0]["event.reason"] == f"no end of a indication_data in {MESSAGE_MAX} bytes"


def test_random_bytes_are_never_an_exception_nor_recognised() -> None:
    chance = random.Random(1)
    alphabet = bytes(range(0xF0, 0x100)) + b"\x00\x01\x02"
    for number in range(2_000):
        size = chance.randrange(60)
        data = chance.randbytes(size) if number & 1 else bytes(chance.choices(alphabet, k=size))
        assert not Genisys.recognises(data)
        wire().send(data, True)


@given(st.binary(max_size=40))
def test_checksums_are_those_of_the_polynomial(data: bytes) -> None:
    assert crc16(data, 0xFFFF).to_bytes(2, "little") == crc(data)


# ---- Real captures


@pytest.mark.parametrize(
    "name",
    ["energy/modbus_quickdraw_attacks_1.pcap", "energy/iec104_control_commands.pcap",
     "energy/dnp3_quickdraw_attacks_1.pcap", "energy/c37118_pmu_tcp.pcap"],
)  # fmt: skip
def test_other_protocols_are_not_claimed(name: str, data: Path) -> None:
    assert not [one.frame for one in pieces(data / name) if Genisys.recognises(one.data)]


_THEIR_NAMES = {
    "poll": "Poll",
    "acknowledge": "Acknowledge Client",
    "indication_data": "Indication Data",
    "recall": "Recall Header",
}


def test_all_messages_of_the_capture_are_those_of_its_log(data: Path) -> None:
    """Their `crc_calculated` starts at 0 and never agrees; the line starts at 0xFFFF."""
    log = (data / "transport/genisys_rail_signalling.expected.log").read_text()
    lines = [line.split("\t") for line in log.splitlines() if line and line[0] != "#"]
    wanted = Counter((*cells[2:6], *cells[7:11], cells[12]) for cells in lines)

    found: Counter[tuple[str, ...]] = Counter()
    links: Counter[str] = Counter()
    for _, fields in decoded(Genisys, data / "transport/genisys_rail_signalling.pcap", 10_001):
        found[_as_their_log(fields)] += 1
        links[fields["ot.link_id"]] += 1
        assert "event.reason" not in fields

    assert wanted - found == Counter()
    assert found == wanted
    assert set(links.values()) == {2}


def _as_their_log(fields: dict[str, Any]) -> tuple[str, ...]:
    checksum = fields.get("cw.vendor", {}).get("checksum")
    return (
        fields["source.ip"],
        str(fields["source.port"]),
        fields["destination.ip"],
        str(fields["destination.port"]),
        _THEIR_NAMES[fields["ot.function.name"]],
        fields["ot.unit"],
        fields["ot.direction"],
        f"0x{int(checksum, 16):02x}" if checksum else "-",
        fields.get("ot.value_raw", "-"),
    )
