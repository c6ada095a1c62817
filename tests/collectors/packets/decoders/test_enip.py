"""EtherNet/IP, CIP and cyclic data against real sessions and hostile bytes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from struct import pack
from typing import Any

import pytest

from cityward import Session
from cityward.checks import check_decoder
from cityward.fields import faults
from collectors.packets.decoders.cip_io import CipIo
from collectors.packets.decoders.enip import Enip
from tests.collectors.packets.decoders.streams import Wire, pieces, session

BENIGN = "port/enip_cip_icsnpp_example.pcap"
EXPECTED = "port/enip_cip_icsnpp_example.expected_enip.log"
RESTART = "port/enip_quickdraw_reboot_restart.pcap"


def enip(command: int, data: bytes = b"", *, status: int = 0, context: bytes = bytes(8)) -> bytes:
    return pack("<HHII8sI", command, len(data), 0x11, status, context, 0) + data


def unconnected(message: bytes, context: bytes = b"\1" + bytes(7)) -> bytes:
    items = pack("<IHHHHHH", 0, 0, 2, 0, 0, 0xB2, len(message)) + message
    return enip(0x6F, items, context=context)


def connected(message: bytes, connection: int = 0x70, sequence: int = 1) -> bytes:
    items = pack("<IHHHHIHHH", 0, 0, 2, 0xA1, 4, connection, 0xB1, len(message) + 2, sequence)
    return enip(0x70, items + message)


def cip(service: int, path: bytes, data: bytes = b"") -> bytes:
    return bytes([service, len(path) // 2]) + path + data


def replied(service: int, data: bytes = b"", status: int = 0) -> bytes:
    return bytes([service | 0x80, 0, status, 0]) + data


def tag(name: str) -> bytes:
    return b"\x91" + bytes([len(name)]) + name.encode() + bytes(len(name) & 1)


def together(*messages: bytes) -> bytes:
    offsets, at = [], 2 + 2 * len(messages)
    for message in messages:
        offsets.append(at)
        at += len(message)
    head = pack(f"<{len(messages) + 1}H", len(messages), *offsets)
    return cip(0x0A, b"\x20\x02\x24\x01", head + b"".join(messages))


CONTROLLER = b"\x20\x8e\x24\x01"
IDENTITY = b"\x20\x01\x24\x01"
STOP = connected(cip(0x07, CONTROLLER))
STOPPED = connected(replied(0x07), 0x71)
WRITE = connected(cip(0x4D, tag("Pump"), pack("<HHi", 0xC4, 1, 42)), sequence=2)
WRITTEN = connected(replied(0x4D), 0x71, 2)
WHO = pack("<HHHBBHIB", 1, 14, 150, 20, 11, 0x3060, 0xDEADBEEF, 6) + b"1756-L"
IO = bytes.fromhex("02000280080003064b00db943f00b1000600a587e80f0300")


def wire() -> Wire:
    return Wire(Enip(session(server="10.0.0.2:44818")))


def talk(*conversation: tuple[bool, bytes]) -> list[dict[str, Any]]:
    line = wire()
    found = [one for who, data in conversation for one in line.send(data, who)]
    return [*found, *line.decoder.end()]


def test_a_controller_that_is_stopped_is_a_change_of_mode() -> None:
    stop, stopped = talk((True, STOP), (False, STOPPED))

    assert stop["event.action"] == "cip_stop"
    assert stop["ot.operation"] == "mode_change"
    assert stop["ot.is_command"] is True
    assert (stop["ot.point.type"], stop["ot.point.address"]) == ("controller", 1)
    assert stopped["ot.link_id"] == stop["ot.link_id"]
    assert (stopped["ot.direction"], stopped["ot.is_command"]) == ("response", False)


def test_a_written_tag_has_its_name_type_and_value() -> None:
    write, written = talk((True, WRITE), (False, WRITTEN))

    assert write["event.action"] == "cip_write_tag"
    assert (write["ot.point.tag"], write["ot.value"]) == ("Pump", 42)
    assert write["cw.vendor"]["type"] == "DINT"
    assert written["event.outcome"] == "success"


def test_a_read_tag_gives_its_value_with_the_answer() -> None:
    path = tag("Program:Main") + tag("Level") + b"\x28\x03"
    read, answer = talk(
        (True, unconnected(cip(0x4C, path, b"\1\0"))),
        (False, unconnected(replied(0x4C, pack("<Hf", 0xCA, 1.5)))),
    )

    assert read["ot.point.tag"] == "Program:Main.Level[3]"
    assert answer["ot.value"] == 1.5
    assert answer["ot.point.tag"] == read["ot.point.tag"]


def test_a_message_through_a_route_is_what_it_holds() -> None:
    reset = cip(0x05, IDENTITY)
    routed = cip(0x52, b"\x20\x06\x24\x01", b"\x05\x9d" + pack("<H", len(reset)) + reset)
    found = talk((True, unconnected(routed + b"\x01\x00\x01\x03")))[0]

    assert found["event.action"] == "cip_reset"
    assert found["ot.operation"] == "restart"
    assert found["ot.unit"] == "1/3"


def test_commands_in_a_packet_of_services_are_events_of_their_own() -> None:
    create = cip(0x08, b"\x20\x6a\x24\x01")
    packet = together(cip(0x03, IDENTITY, b"\1\0\1\0"), create, create)

    whole, first, second, left = talk((True, connected(packet)))

    assert whole["ot.is_command"] is False
    assert whole["cw.vendor"]["services"] == ["get_attribute_list ×1", "create ×2"]
    assert first["ot.operation"] == second["ot.operation"] == "program_download"
    assert first["ot.is_command"] is True
    assert first["ot.link_id"] == whole["ot.link_id"]
    assert left["event.action"] == "cip_unanswered"


def test_a_failed_service_in_a_packet_is_named() -> None:
    packet = together(cip(0x03, IDENTITY), cip(0x03, IDENTITY))
    bad = replied(0x03, status=5)
    head = pack("<3H", 2, 6, 6 + len(bad))
    answers = replied(0x0A, head + bad + replied(0x03), status=0x1E)

    refused = talk((True, unconnected(packet)), (False, unconnected(answers)))[1]

    assert refused["event.outcome"] == "failure"
    assert refused["ot.exception"] == "path_destination_unknown"
    assert refused["cw.vendor"]["failed_services"] == ["1: path_destination_unknown"]


def test_a_status_is_the_exception_of_the_answer() -> None:
    refused = talk((True, STOP), (False, connected(replied(0x07, status=0x0F), 0x71)))[1]

    assert refused["ot.exception"] == "privilege_violation"
    assert refused["event.code"] == "0x0f"


def test_connections_are_told_apart_by_what_opened_them() -> None:
    ways = pack("<BBIIHHIB3xIHIHBB", 10, 5, 0, 0x99, 7, 1, 1, 0, 10_000, 2, 20_000, 2, 0xA3, 2)
    opening = cip(0x54, b"\x20\x06\x24\x01", ways + b"\x20\x02\x24\x01")
    opened = replied(0x54, pack("<IIHHI", 0x70, 0x99, 7, 1, 1))

    found = talk(
        (True, unconnected(opening)),
        (False, unconnected(opened)),
        (True, connected(cip(0x01, IDENTITY), 0x70, 5)),
        (True, connected(cip(0x01, IDENTITY), 0x80, 5)),
        (False, connected(replied(0x01, WHO), 0x99, 5)),
    )

    assert found[0]["cw.vendor"]["target"] == "message_router"
    assert found[0]["cw.vendor"]["interval_us"] == [10_000, 20_000]
    assert found[4]["ot.link_id"] == found[2]["ot.link_id"]
    assert found[4]["ot.firmware.version"] == "20.011"
    assert found[4]["cw.vendor"]["product_name"] == "1756-L"


def test_a_list_of_identities_tells_the_device_also_by_datagram() -> None:
    base = {"network.transport": "udp", "source.ip": "10.0.0.2", "destination.ip": "10.0.0.1"}
    decoder = Enip(Session(base, "10.0.0.2:44818", "10.0.0.1:40000"))
    body = pack("<HH", 1, 0x0C) + pack("<H", 18 + len(WHO)) + bytes(18) + WHO

    asked = decoder.feed(enip(0x63), False, 1.0, 1)[1][0]
    answer = decoder.feed(enip(0x63, body), True, 1.1, 2)[1][0]

    assert (asked["ot.direction"], asked["ot.operation"]) == ("request", "discovery")
    assert answer["ot.direction"] == "response"
    assert answer["cw.vendor"]["serial_number"] == "deadbeef"


def test_a_command_of_an_older_controller_is_known_by_its_function() -> None:
    requester = b"\x07\x01\x00\x01\x00\x00\x00"
    stop = cip(0x4B, b"\x20\x67\x24\x01", requester + b"\x0f\x00\x01\x00\x80\x01")
    found = talk((True, unconnected(stop)))[0]

    assert found["event.action"] == "cip_pccc_change_mode"
    assert found["ot.operation"] == "mode_change"
    assert found["ot.is_command"] is True


@pytest.mark.parametrize(
    ("message", "action", "is_command"),
    [
        (b"\x08\0\1\0\x10\0\xff", "cip_pccc_unprotected_write", True),
        (b"\x01\0\1\0\x10\0\x02", "cip_pccc_unprotected_read", False),
        (b"\x07\0\1\0\0", "cip_pccc_disable_outputs", True),
        (b"\x0f\0\1\0\x41", "cip_pccc_disable_forces", True),
        (b"\x0f\0\1\0\x26", "cip_pccc_modify", True),
        (b"\x0f\0\1\0\xfe", "cip_pccc_unknown_function", True),
    ],
)
def test_what_an_older_controller_is_told_to_change_is_a_command(
    message: bytes, action: str, is_command: bool
) -> None:
    request = cip(0x4B, b"\x20\x67\x24\x01", b"\x07\x01\0\x01\0\0\0" + message)
    found = talk((True, unconnected(request)))[0]

    assert (found["event.action"], found["ot.is_command"]) == (action, is_command)


def test_a_path_whose_number_has_no_width_is_malformed() -> None:
    request = cip(0x10, b"\x27\0" + b"\xff" * 8, b"\1")
    found = talk((True, unconnected(request)))[0]

    assert found["event.kind"] == "pipeline_error"
    assert "ot.point.address" not in found


def test_a_command_nobody_answers_and_an_answer_nobody_asked_for_are_said() -> None:
    left = talk((True, STOP))[-1]
    assert left["event.action"] == "cip_unanswered"
    lonely = talk((False, STOPPED))[0]
    assert lonely["event.reason"] == "no request was seen for this answer"
    other = talk((True, STOP), (False, connected(replied(0x06), 0x71)))[1]
    assert other["event.reason"] == "answers service 0x06, stop was asked"


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (enip(0x99), "command 0x0099 is not defined"),
        (enip(0x70, status=0x55), "status 0x00000055 is not defined"),
        (connected(b"\x07\x09\x20"), "a path of 18 bytes is announced, 1 are there"),
        (connected(b"\x87\x00"), "a CIP answer has at least 4 bytes, not 2"),
        (enip(0x6F, bytes(6) + pack("<HHH", 2, 0, 0)), "2 items are announced, 1 are there"),
        (connected(cip(0x07, b"\xe0\x00")), "a path has no segment 0xe0"),
        (connected(cip(0x0A, IDENTITY, b"\xff\xff")), "65535 services are announced in 2 bytes"),
        (connected(cip(0x0A, IDENTITY, pack("<3H", 2, 6, 6))), "does not lie in the packet"),
        (connected(cip(0x52, b"\x20\x06\x24\x01", b"\1\1\x99\x99")), "are there"),
        (enip(0x70)[:20], "ended 20 bytes into a message of the client"),
    ],
)
def test_what_is_wrong_is_said(broken: bytes, why: str) -> None:
    said = [one.get("event.reason", "") for one in talk((True, broken))]

    assert any(why in one for one in said)


def test_after_a_gap_the_next_message_is_found() -> None:
    line = wire()
    line.send(STOP[:30], True)
    line.decoder.gap(True)
    line.rest[True] = b""

    found = line.send(WRITE[9:] + STOP, True)

    assert [one["event.action"] for one in found] == ["cip_stop"]


def test_packets_within_packets_have_a_bound() -> None:
    message = cip(0x07, CONTROLLER)
    for _ in range(20):
        message = together(message, message) if len(message) < 8_000 else together(message)

    found = talk((True, connected(message)))

    assert len(found) < 20


def test_the_decoder_keeps_its_promises() -> None:
    routed = unconnected(replied(0x01, WHO))
    conversation = [
        (True, enip(0x65, b"\1\0\0\0")),
        (False, enip(0x65, b"\1\0\0\0")),
        (True, unconnected(cip(0x01, IDENTITY))),
        (False, routed),
        (True, STOP + WRITE),
        (False, STOPPED + WRITTEN),
        (True, enip(0x66)),
    ]

    check_decoder(Enip, conversation, mutants_each=20)


def test_the_decoder_keeps_its_promises_with_datagrams() -> None:
    check_decoder(Enip, [(True, enip(0x63)), (False, enip(0x04))], transport="udp")
    check_decoder(CipIo, [(True, IO), (False, IO)])


def test_neither_random_bytes_nor_zeros_are_recognised() -> None:
    chance = random.Random(1)
    heads = [chance.randbytes(chance.randint(0, 80)) for _ in range(5_000)]

    assert not any(made.recognises(head) for made in (Enip, CipIo) for head in heads)
    assert not Enip.recognises(bytes(64))
    assert not CipIo.recognises(STOP)
    assert not Enip.recognises(IO)


# ---- Cyclic data


def cyclic(*sequences: tuple[int, int, float]) -> list[dict[str, Any]]:
    base = {"network.transport": "udp", "source.ip": "10.0.0.1", "destination.ip": "10.0.0.2"}
    decoder = CipIo(Session(base, "10.0.0.1:2222", "10.0.0.2:2222"))
    found: list[dict[str, Any]] = []
    for sequence, value, time_s in sequences:
        data = pack("<HHHIIHHHB", 2, 0x8002, 8, 0x4B, sequence, 0xB1, 3, sequence & 0xFFFF, value)
        found += decoder.feed(data, True, time_s, 1)[1]
    found += decoder.end()
    assert not [fault for fields in found for fault in faults(fields)]
    return found


def test_cyclic_data_are_told_once_a_second_and_no_packet_is_lost_by_count() -> None:
    found = cyclic((1, 5, 0.0), (2, 5, 0.2), (4, 6, 0.4), (4, 6, 0.5), (5, 6, 1.1), (6, 6, 1.2))

    assert [one["cw.vendor"]["packets"] for one in found] == [1, 4, 1]
    assert [one["event.action"] for one in found] == ["cip_io_begins", "cip_io_data", "cip_io_data"]
    told = found[1]["cw.vendor"]
    assert (told["changes"], told["missing"], told["repeated"]) == (1, 1, 1)


def test_a_sender_that_counts_anew_is_followed_after_one_window() -> None:
    before = [(9_000 + at, 5, at / 10) for at in range(5)]
    after = [(1 + at, 5 + at // 11, 0.5 + at / 10) for at in range(20)]

    found = cyclic(*before, *after)

    assert found[-1]["event.sequence"] == 20
    assert [one["cw.vendor"].get("changes") for one in found] == [None, None, 1, None]


def test_many_connections_have_a_bound_and_lose_no_packet() -> None:
    base = {"network.transport": "udp"}
    decoder = CipIo(Session(base, "a", "b"))
    packets = 0
    for number in range(600):
        for sequence in (1, 2):
            data = pack("<HHHIIHH", 2, 0x8002, 8, number, sequence, 0xB1, 0)
            for one in decoder.feed(data, True, 0.0, 1)[1]:
                packets += one["cw.vendor"]["packets"]
    assert len(decoder._windows) == 256

    packets += sum(one["cw.vendor"]["packets"] for one in decoder.end())
    assert packets == 1_200


# ---- Real files


def messages(data: Path, name: str) -> tuple[list[dict[str, Any]], Counter[int]]:
    """Events of a capture with one conversation, and services of its requests."""
    lines: dict[int, Wire] = {}
    found: list[dict[str, Any]] = []
    for piece in pieces(data / name, 44_818):
        line = lines.setdefault(piece.stream, wire())
        is_request = piece.destination.endswith(":44818")
        found += line.send(piece.data, is_request, piece.time_s, piece.frame)
    services: Counter[int] = Counter()
    for line in lines.values():
        found += line.decoder.end()
        services.update(line.decoder.tally.services)
    return found, services


def test_a_real_session_agrees_with_the_log_that_zeek_made_of_it(data: Path) -> None:
    ours = []
    for one in messages(data, BENIGN)[0]:
        said = one["cw.vendor"]
        assert "event.kind" not in one
        assert "event.reason" not in one
        is_request = one["ot.direction"] == "request"
        context = said.get("sender_context", "0" * 16)
        ours.append((is_request, said["command"], said["bytes"], said["session"], f"0x{context}"))
    expected = []
    for line in (data / EXPECTED).read_text().splitlines():
        cells = line.split("\t")
        if not line.startswith("#"):
            command = cells[12].lower().replace(" ", "_")
            expected.append((cells[6] == "T", command, int(cells[13]), cells[14], cells[16]))

    assert len(expected) == 269
    assert ours == expected


def test_a_real_engineering_session_tells_stop_download_and_start(data: Path) -> None:
    found, services = messages(data, RESTART)

    wanted = {0x4C: 310, 0x03: 656, 0x0A: 58, 0x4B: 10, 0x52: 21, 0x54: 5, 0x08: 43}
    assert {code: services[code] for code in wanted} == wanted
    commands = Counter(
        (one["event.action"], one["ot.operation"]) for one in found if one.get("ot.is_command")
    )
    assert commands[("cip_stop", "mode_change")] == 1
    assert commands[("cip_start", "mode_change")] == 1
    assert commands[("cip_reset", "control")] == 1
    assert commands[("cip_create", "program_download")] == 43
    assert not [one for one in found if "event.kind" in one]
