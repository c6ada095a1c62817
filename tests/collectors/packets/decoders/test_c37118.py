"""C37.118 against a real capture, hand-made frames and hostile bytes."""

from __future__ import annotations

import random
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cityward.checks import check_decoder
from collectors.packets.decoders.c37118 import COMMANDS, STREAMS_MAX, C37118Stream
from tests.collectors.packets.decoders.streams import Wire, decoded, session


def crc(data: bytes) -> bytes:
    """Bit by bit."""
    remainder = 0xFFFF
    for byte in data:
        remainder ^= byte << 8
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x1021 if remainder & 0x8000 else 0)) & 0xFFFF
    return remainder.to_bytes(2)


def frame(kind: int, content: bytes, stream: int = 7, fraction: int = 500_000) -> bytes:
    head = struct.pack(">BBHHII", 0xAA, kind << 4 | 1, 16 + len(content), stream, 1_000, fraction)
    return head + content + crc(head + content)


def command(code: int, more: bytes = b"", stream: int = 7) -> bytes:
    return frame(4, struct.pack(">H", code) + more, stream)


def station(form: int, name: bytes = b"North", hertz: int = 1) -> bytes:
    """Two phasors, one analog value, one digital word."""
    names = [b"VA", b"IA", b"A1", *(b"D%d" % bit for bit in range(16))]
    return (
        struct.pack(">16sHHHHH", name.ljust(16), 7, form, 2, 1, 1)
        + b"".join(one.ljust(16) for one in names)
        + struct.pack(">IIII", 100_000, 1 << 24 | 200_000, 1, 0xFFFF)
        + struct.pack(">HH", hertz, 3)
    )


def configuration(*stations: bytes, kind: int = 3, stream: int = 7) -> bytes:
    content = struct.pack(">IH", 1_000_000, len(stations)) + b"".join(stations)
    return frame(kind, content + struct.pack(">h", 50), stream)


def configuration_3(form: int, part: int = 0) -> bytes:
    def named(text: bytes) -> bytes:
        return bytes((len(text),)) + text

    names = [b"VA", b"IA", b"A1", *(b"D%d" % bit for bit in range(16))]
    one = named(b"South") + struct.pack(">H16sHHHH", 7, b"g" * 16, form, 2, 1, 1)
    one += b"".join(named(name) for name in names)
    one += struct.pack(">4sff", b"\0\0\0\0", 2.0, 0.0) + struct.pack(">4sff", b"\0\0\x08\0", 3, 0)
    one += bytes(8) + bytes(4) + struct.pack(">fffcii", 1, 2, 3, b"M", 4, 5)
    one += struct.pack(">HH", 0, 9)
    return frame(5, struct.pack(">HIH", part, 1_000_000, 1) + one + struct.pack(">h", -10))


INTEGER = struct.pack(">HhhhhhhhH", 0, 3_000, 4_000, 0, 100, -20, 150, -5, 0x8001)
POLAR = struct.pack(">HHhHhhhhH", 0, 5_000, 15_708, 100, 0, 20, 0, 1, 0)
FLOAT = struct.pack(">HfffffffH", 0, 3.0, 4.0, 0.0, 1.0, 49.98, 1.5, 2.5, 1)


def wire(transport: str = "tcp") -> Wire:
    made = session(server="10.0.0.2:4712")
    made.base["network.transport"] = transport
    return Wire(C37118Stream(made))


CONVERSATION = [
    (True, command(5)),
    (False, configuration(station(0))),
    (True, command(2)),
    (False, frame(0, INTEGER)),
    (True, command(1)),
]


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_the_decoder_keeps_its_promises(transport: Any) -> None:
    check_decoder(C37118Stream, CONVERSATION, transport=transport, mutants_each=5)


def test_a_conversation_is_told() -> None:
    line = wire()

    found = [fields for who, data in CONVERSATION for fields in line.send(data, who)]

    assert [fields["event.action"] for fields in found] == [
        "c37118_send_configuration_2",
        "c37118_configuration_2",
        "c37118_turn_on_transmission",
        "c37118_data",
        "c37118_turn_off_transmission",
    ]
    assert found[0]["ot.link_id"] == found[1]["ot.link_id"]
    assert [fields["ot.is_command"] for fields in found] == [False, False, True, False, True]
    assert {fields["ot.unit"] for fields in found} == {"7"}
    assert found[1]["cw.vendor"]["stations"] == "North"
    assert found[1]["cw.vendor"]["phasors"] == "VA V,IA A"
    assert found[1]["cw.vendor"]["data_rate"] == 50
    assert line.decoder.end() == []


@pytest.mark.parametrize(
    ("form", "content", "hertz", "own"),
    [
        (0, INTEGER, 49.98, {"phasors": "VA=5000.000@53.130,IA=200.000@90.000",
                             "analogs": "-5", "digitals": "0x8001", "change_hz_s": "1.50"}),
        (1, POLAR, 50.02, {"phasors": "VA=5000.000@90.000,IA=200.000@0.000"}),
        (14, FLOAT, 49.98, {"phasors": "VA=5.000@53.130,IA=1.000@90.000", "analogs": "2.5",
                            "change_hz_s": "1.50"}),
    ],
)  # fmt: skip
def test_data_mean_what_the_configuration_says(
    form: int, content: bytes, hertz: float, own: dict[str, str]
) -> None:
    line = wire()
    line.send(configuration(station(form)), False)

    found = line.send(frame(0, content), False)[0]

    assert found["ot.value"] == pytest.approx(hertz)
    assert found["ot.unit_of_measure"] == "Hz"
    assert {name: found["cw.vendor"][name] for name in own} == own
    assert found["cw.vendor"]["time"] == 1_000.5


def test_data_of_several_stations_are_one_event() -> None:
    line = wire()
    line.send(configuration(station(0), station(14, b"East", 0)), False)

    found = line.send(frame(0, INTEGER + FLOAT), False)

    assert len(found) == 1
    assert found[0]["ot.point.count"] == 2
    assert found[0]["cw.vendor"]["frequency_hz"] == "49.9800,49.9800"


def test_a_configuration_3_is_used_as_well() -> None:
    line = wire()
    line.send(configuration_3(0), False)

    found = line.send(frame(0, INTEGER), False)[0]

    assert found["cw.vendor"]["phasors"] == "VA=10000.000@53.130,IA=300.000@90.000"
    assert found["ot.value"] == pytest.approx(59.98)


def test_a_configuration_3_in_parts_is_said() -> None:
    found = wire().send(configuration_3(0, part=1), False)[0]

    assert found["event.reason"] == "a configuration in several frames is not put together"


def test_data_without_configuration_are_shown_as_bytes() -> None:
    found = wire().send(frame(0, INTEGER), False)[0]

    assert found["event.reason"] == "no configuration of this stream was seen"
    assert found["ot.value_raw"] == INTEGER.hex()
    assert "event.kind" not in found


def test_data_that_do_not_fit_the_configuration_are_said() -> None:
    line = wire()
    line.send(configuration(station(0)), False)

    found = line.send(frame(0, INTEGER + b"\0\0"), False)[0]

    assert found["event.reason"] == "20 bytes of data, the configuration says 18"
    assert found["event.kind"] == "pipeline_error"


def test_a_status_that_is_not_good_is_said() -> None:
    line = wire()
    line.send(configuration(station(0)), False)

    found = line.send(frame(0, b"\xa8\x00" + INTEGER[2:], fraction=0x15 << 24), False)[0]

    assert found["ot.cause"] == "test_mode,unsynchronized,trigger"
    assert found["cw.vendor"]["time_quality"] == 5
    assert found["cw.vendor"]["leap_second"] == "leap_second_pending"


@pytest.mark.parametrize("code", [*COMMANDS, 0x123])
def test_every_command_has_its_name(code: int) -> None:
    found = wire().send(command(code, b"more" if code == 8 else b""), True)[0]

    known = COMMANDS.get(code)
    assert found["ot.function.name"] == (known[0] if known else "user_command_291")
    assert found["ot.is_command"] is (known[2] if known else True)
    assert "event.kind" not in found


def test_a_reserved_command_is_said() -> None:
    assert wire().send(command(7), True)[0]["event.reason"] == "command 7 is reserved"


def test_a_command_of_the_end_that_accepted_is_told_as_its_own() -> None:
    found = wire().send(command(1), False)[0]

    assert (found["source.ip"], found["destination.ip"]) == ("10.0.0.2", "10.0.0.1")


def test_a_header_is_text_that_no_terminal_obeys() -> None:
    line = wire()
    line.send(command(3), True)

    found = line.send(frame(1, b"Station \x1b[2J North"), False)[0]

    assert found["cw.vendor"]["text"] == "Station .[2J North"
    assert found["ot.direction"] == "response"


def test_configurations_that_are_kept_are_bounded() -> None:
    line = wire()

    for number in range(STREAMS_MAX + 9):
        line.send(configuration(station(0), stream=number), False)

    assert len(line.decoder._streams) == STREAMS_MAX


@pytest.mark.parametrize("cut", [1, 30, 300, 340])
def test_a_configuration_that_is_cut_is_said(cut: int) -> None:
    content = configuration(station(0))[14:-2]

    found = wire().send(frame(3, content[:-cut]), False)[0]

    assert found["event.kind"] == "pipeline_error"
    assert found["event.reason"].startswith("configuration: ")


@given(st.binary(min_size=10, max_size=600), st.sampled_from([0, 1, 2, 3, 4, 5]))
def test_no_content_with_a_right_checksum_is_an_exception(content: bytes, kind: int) -> None:
    line = wire()
    line.send(configuration(station(0)), False)

    assert len(line.send(frame(kind, content), False)) == 1


def test_a_mutated_configuration_with_a_right_checksum_is_no_exception() -> None:
    chance = random.Random(3)
    for original in (configuration(station(0))[14:-2], configuration_3(0)[14:-2]):
        kind = 3 if original[:4] == b"\0\x0f\x42\x40" else 5
        for _ in range(400):
            content = bytearray(original)
            for _ in range(chance.randrange(1, 4)):
                content[chance.randrange(len(content))] = chance.randrange(256)
            line = wire()
            line.send(frame(kind, bytes(content)), False)
            line.send(frame(0, INTEGER), False)


def test_a_wrong_checksum_is_an_event_and_the_next_frame_is_read() -> None:
    bad = bytearray(command(1))
    bad[15] = 2

    found = wire().send(bytes(bad) + command(2), True)

    assert [one["event.action"] for one in found] == ["unreadable", "c37118_turn_on_transmission"]
    assert found[0]["event.reason"] == "a command frame of stream 7 has a wrong checksum"


def test_after_a_gap_the_next_frame_is_found() -> None:
    line = wire()
    line.send(frame(0, FLOAT)[:20], False)
    line.decoder.gap(False)
    line.rest[False] = b""

    # The beginning of a frame that would be very long stands before the real one.
    found = line.send(b"\x01\xaa\x01\xff\xff" + frame(0, INTEGER) + command(1), False)

    assert [one["event.action"] for one in found] == ["c37118_data", "c37118_turn_off_transmission"]


def test_the_same_events_however_tcp_cuts_the_stream() -> None:
    bad = bytearray(command(1))
    bad[15] = 2
    stream = configuration(station(0)) + bytes(bad) + b"junk" + frame(0, INTEGER) + command(2)
    whole = wire().send(stream, True)

    for size in (1, 3, 17):
        line = wire()
        cut = [
            one
            for at in range(0, len(stream), size)
            for one in line.send(stream[at : at + size], True)
        ]
        assert cut == whole


def test_a_cut_frame_is_said_at_the_end_or_with_its_datagram() -> None:
    line = wire()

    assert line.send(command(1)[:17], True) == []
    assert line.decoder.end()[0]["event.reason"] == (
        "the conversation ended 17 bytes into a frame of the client"
    )
    assert wire("udp").send(command(1)[:17], True)[0]["event.reason"] == (
        "a datagram ends 17 bytes into a frame"
    )


def test_false_beginnings_do_not_take_for_ever() -> None:
    line = wire()
    line.decoder.gap(True)
    started = time.process_time()

    line.decoder.feed(b"\xaa\x01\x40\x00" * 16_000, True, 0.0, 1)

    assert time.process_time() - started < 1


def test_false_beginnings_in_small_segments_do_not_take_for_ever() -> None:
    decoder, rest = wire().decoder, b""
    decoder.gap(True)
    started = time.process_time()

    for _ in range(1_000):
        rest += b"\xaa\x01" * 32
        rest = rest[decoder.feed(rest, True, 0.0, 1)[0] :]

    assert time.process_time() - started < 2
    assert len(rest) < 16_384


def test_random_bytes_are_never_an_exception_nor_recognised() -> None:
    chance = random.Random(1)
    for _ in range(2_000):
        data = b"\xaa\x01\x00" + chance.randbytes(chance.randrange(60))
        assert not C37118Stream.recognises(data)
        wire().send(data, True)


# ---- Real capture


def test_the_capture_is_read_as_its_log_says(data: Path) -> None:
    log = (data / "energy/c37118_pmu_tcp.expected_data.log").read_text()
    lines = [line.split("\t") for line in log.splitlines() if line and line[0] != "#"]
    wanted = Counter((*cells[2:6], cells[8], cells[11]) for cells in lines)

    found: Counter[tuple[str, ...]] = Counter()
    others: list[str] = []
    rows: list[dict[str, Any]] = []
    for _, fields in decoded(C37118Stream, data / "energy/c37118_pmu_tcp.pcap", 4712):
        assert "event.reason" not in fields
        if fields["event.action"] != "c37118_data":
            others.append(fields["event.action"])
            continue
        rows.append(fields)
        ends = [str(fields[f"{side}.{part}"]) for side in ("source", "destination")
                for part in ("ip", "port")]  # fmt: skip
        found[(*ends, str(fields["cw.vendor"]["frame_size"]), str(fields["ot.point.count"]))] += 1

    assert found == wanted
    assert others == [
        "c37118_send_configuration_2",
        "c37118_configuration_2",
        "c37118_turn_on_transmission",
        "c37118_turn_off_transmission",
    ]
    # As tshark reads the first one.
    assert rows[0]["cw.vendor"]["phasors"] == (
        "V1LPM=100044.349@-89.929,VALPM=100038.474@-89.926,"
        "VBLPM=100044.419@150.069,VCLPM=100050.144@30.069"
    )
    assert (rows[0]["ot.value"], rows[0]["ot.cause"]) == (50, "trigger")
