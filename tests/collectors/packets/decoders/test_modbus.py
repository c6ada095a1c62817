"""Modbus/TCP against real captures, the specification's examples and hostile bytes."""

from __future__ import annotations

import json
import random
import struct
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.packets.decoders.modbus import OPEN_MAX, Modbus
from tests.collectors.packets.decoders.streams import Wire, decoded, pieces, session

CASES = json.loads((Path(__file__).parent / "modbus_cases.json").read_text())
Found = list[tuple[int, dict[str, Any]]]

READ = bytes.fromhex("000100000006010300000002")
ANSWER = bytes.fromhex("00010000000701030400010002")


def wire() -> Wire:
    return Wire(Modbus(session()))


def requests(found: Found) -> Counter[str]:
    return Counter(
        fields["ot.function.code"]
        for frame, fields in found
        if frame and fields.get("ot.direction") == "request"
    )


def exceptions(found: Found) -> Counter[str]:
    return Counter(fields["event.code"] for _, fields in found if "ot.exception" in fields)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_message_means_what_the_specification_says(case: dict[str, Any]) -> None:
    found = wire().send(bytes.fromhex(case["hex"]), case["client"])

    assert {name: found[0].get(name) for name in case["fields"]} == case["fields"]
    assert ("event.kind" in found[0]) == ("event.kind" in case["fields"])


def test_request_and_answer_share_a_link_and_the_answer_says_what_was_asked() -> None:
    line = wire()

    asked = line.send(READ, True, 10.0)[0]
    answered = line.send(ANSWER, False, 10.25)[0]

    assert answered["ot.link_id"] == asked["ot.link_id"]
    assert answered["event.duration"] == 250_000_000
    assert answered["ot.point.address"] == 0
    assert answered["ot.value_raw"] == "1,2"
    assert "event.reason" not in answered
    assert line.decoder.end() == []


def test_the_same_transaction_of_two_units_is_two_requests() -> None:
    line = wire()

    first = line.send(READ, True)[0]
    second = line.send(READ[:6] + b"\x02" + READ[7:], True)[0]
    answered = line.send(ANSWER, False)[0]

    assert first["ot.link_id"] != second["ot.link_id"]
    assert answered["ot.link_id"] == first["ot.link_id"]


def test_an_answer_to_another_function_is_said_and_not_joined() -> None:
    line = wire()
    line.send(READ, True)

    answered = line.send(bytes.fromhex("000100000006010600000001"), False)[0]

    assert answered["event.reason"] == "answers function 6, 3 was asked"
    assert "ot.link_id" not in answered


def test_an_answer_with_another_count_than_asked_is_malformed() -> None:
    line = wire()
    line.send(READ, True)

    answered = line.send(bytes.fromhex("0001000000050103020001"), False)[0]

    assert answered["event.kind"] == "pipeline_error"
    assert answered["event.reason"] == "2 bytes answer 2 registers"


def test_an_echo_of_another_address_is_said() -> None:
    line = wire()
    line.send(bytes.fromhex("000100000006010600050001"), True)

    answered = line.send(bytes.fromhex("000100000006010600060001"), False)[0]

    assert answered["event.reason"] == "1 points at 5 were asked"


def test_only_commands_without_an_answer_are_events_at_the_end() -> None:
    line = wire()
    line.send(READ, True)
    write = line.send(bytes.fromhex("000200000006010600050001"), True)[0]

    left = line.decoder.end()

    assert [fields["event.action"] for fields in left] == ["modbus_unanswered"]
    assert left[0]["ot.link_id"] == write["ot.link_id"]
    assert left[0]["event.outcome"] == "unknown"
    assert left[0]["ot.is_command"] is False
    assert line.decoder.tally.unanswered == 2


def test_the_oldest_request_is_given_up_when_too_many_are_open() -> None:
    line = wire()
    sent = [line.send(struct.pack(">H", number) + READ[2:], True)[0] for number in range(66)]

    assert "event.reason" not in sent[OPEN_MAX - 1]
    assert sent[OPEN_MAX]["event.reason"] == "request 0 given up unanswered, 64 are open"
    assert len(line.decoder._open) == OPEN_MAX
    assert line.decoder.tally.unanswered == 2


def test_a_cut_message_is_said_at_the_end() -> None:
    line = wire()

    assert line.send(READ[:9], True) == []
    left = line.decoder.end()

    assert left[0]["event.kind"] == "pipeline_error"
    assert left[0]["event.reason"] == (
        "the conversation ended 9 bytes into a message of the client"
    )


def test_a_message_hidden_behind_a_length_that_lies_is_found() -> None:
    line = wire()
    hidden = bytes.fromhex("000200000006010600050001")
    lie = READ[:4] + struct.pack(">H", 6 + len(hidden)) + READ[6:]

    found = line.send(lie + hidden, True)

    assert [fields.get("event.kind") for fields in found] == ["pipeline_error", None]
    assert found[1]["event.action"] == "modbus_write_single_register"


def test_after_rubbish_the_next_message_is_read() -> None:
    line = wire()

    found = line.send(b"\xff\x00\x11GET / HTTP/1.0\r\n\r\n" + READ + READ, True)

    assert [fields.get("event.kind") for fields in found] == ["pipeline_error", None, None]
    assert line.decoder.tally.skipped_bytes == 21


def test_after_a_gap_the_next_message_is_read() -> None:
    line = wire()
    line.decoder.gap(True)

    found = line.send(READ[5:] + READ + READ, True)

    assert [fields["event.action"] for fields in found] == ["modbus_read_holding_registers"] * 2
    assert "event.kind" not in found[0]


@given(
    st.sampled_from((1, 2, 3, 4)),
    st.integers(0, 65_535),
    st.integers(1, 125),
    st.tuples(st.integers(0, 255), st.integers(0, 65_535)),
    st.data(),
)
def test_what_was_written_into_a_read_is_read_again(
    code: int, address: int, count: int, ids: tuple[int, int], data: st.DataObject
) -> None:
    unit, tid = ids
    values = data.draw(
        st.lists(st.integers(0, 1 if code < 3 else 65_535), min_size=count, max_size=count)
    )
    if code < 3:
        bits = sum(bit << index for index, bit in enumerate(values))
        body = bits.to_bytes((count + 7) // 8, "little")
    else:
        body = struct.pack(f">{count}H", *values)
    line = wire()

    asked = line.send(struct.pack(">HHHBBHH", tid, 0, 6, unit, code, address, count), True)[0]
    head = struct.pack(">HHHBBB", tid, 0, 3 + len(body), unit, code, len(body))
    answered = line.send(head + body, False)[0]

    for fields in (asked, answered):
        assert (fields["ot.point.address"], fields["ot.point.count"]) == (address, count)
        assert (fields["ot.unit"], fields["event.sequence"]) == (str(unit), tid)
    assert answered["ot.value"] == values[0]
    shown = ",".join(map(str, values[:16])) + (",…" if count > 16 else "")
    assert answered.get("ot.value_raw", str(values[0])) == shown


@given(st.integers(0, 65_535), st.lists(st.integers(0, 65_535), min_size=1, max_size=123))
def test_what_was_written_into_a_write_is_read_again(address: int, values: list[int]) -> None:
    body = struct.pack(f">HHB{len(values)}H", address, len(values), 2 * len(values), *values)

    found = wire().send(struct.pack(">HHHBB", 7, 0, 2 + len(body), 1, 16) + body, True)[0]

    assert found["ot.is_command"] is True
    assert (found["ot.point.address"], found["ot.point.count"]) == (address, len(values))
    assert found["ot.value"] == values[0]


def test_random_bytes_are_never_an_exception_nor_recognised() -> None:
    chance = random.Random(1)
    line, recognised = wire(), 0
    for number in range(20_000):
        data = chance.randbytes(chance.randrange(80))
        recognised += Modbus.recognises(data)
        line.send(data, bool(number & 1))
        if len(data) % 17 == 0:
            line.decoder.gap(bool(number & 1))

    assert recognised == 0


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 255), st.binary(max_size=40))))
def test_any_content_behind_a_right_header_is_never_an_exception(
    messages: list[tuple[bool, int, bytes]],
) -> None:
    line, seen = wire(), 0
    for from_client, code, body in messages:
        head = struct.pack(">HHHBB", len(body) & 1, 0, 2 + len(body), 1, code)
        seen += len(line.send(head + body, from_client))

    line.decoder.end()

    assert seen >= len(messages) or line.decoder.tally.malformed


@pytest.mark.parametrize("step", [1, 3, 7])
def test_how_the_stream_is_split_changes_nothing(data: Path, step: int) -> None:
    capture = data / "energy" / "modbus_icsnpp_example.pcap"
    whole, split = wire(), wire()
    expected: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for piece in pieces(capture, 502):
        from_client = piece.destination.endswith(":502")
        expected += whole.send(piece.data, from_client)
        for at in range(0, len(piece.data), step):
            found += split.send(piece.data[at : at + step], from_client)

    assert len(expected) == 48
    assert found == expected


def test_icsnpp_example_has_one_request_of_almost_every_function(data: Path) -> None:
    found = list(decoded(Modbus, data / "energy" / "modbus_icsnpp_example.pcap", 502))

    assert len(found) == 48
    assert not [fields for _, fields in found if "event.kind" in fields]
    asked = requests(found)
    assert asked["3"] == 3
    assert [asked[code] for code in ("4", "23", "22", "2")] == [2] * 4
    assert {int(code) for code in asked} == {*range(1, 9), *range(15, 18), *range(20, 25), 43}
    assert exceptions(found) == {"2": 1}


def test_icsnpp_example_agrees_with_the_expected_log(data: Path) -> None:
    """Each row of modbus_detailed; where we differ it is for a reason named here."""
    log = (data / "energy" / "modbus_icsnpp_example.expected_detailed.log").read_text()
    rows = [line.split("\t") for line in log.splitlines()]
    names = next(row[1:] for row in rows if row[0] == "#fields")
    logged = [dict(zip(names, row, strict=True)) for row in rows if not row[0].startswith("#")]
    logged = [row for row in logged if "id.orig_p" in row]
    found = list(decoded(Modbus, data / "energy" / "modbus_icsnpp_example.pcap", 502))
    pairs: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for _, fields in found:
        key = (str(fields["source.port"]), str(fields["event.sequence"]), fields["ot.unit"])
        pairs.setdefault(key, []).append(fields)

    assert len(logged) == 26
    assert {(row["id.orig_p"], row["tid"], row["unit"]) for row in logged} == set(pairs)
    for row in logged:
        asked, answered = pairs[row["id.orig_p"], row["tid"], row["unit"]]
        # icsnpp writes requests without a body (7, 17) twice and unmatched; we join them too.
        assert asked["ot.link_id"] == answered["ot.link_id"]
        # Names of 17 and 43 follow V1.1b3 here, older texts there.
        renamed = {
            "REPORT_SLAVE_ID": "report_server_id",
            "ENCAP_INTERFACE_TRANSPORT": "encapsulated_interface_transport",
        }
        assert asked["ot.function.name"] == renamed.get(row["func"], row["func"].lower())
        # The written and read ranges of 23 stand in another log of icsnpp's; ours has them.
        if row["address"] != "-":
            assert str(asked["ot.point.address"]) == row["address"]
        # Its 0 for file records is the count of their bytes; for a queue it is in the answer.
        if row["quantity"] not in "-0":
            assert str(asked["ot.point.count"]) == row["quantity"]
        assert _values(asked) == row["request_values"] or row["request_values"] == "-"
        assert _values(answered) == row["response_values"] or row["response_values"] == "-"
        if row["request_subfunction_code"] != "-":
            said = row["request_subfunction_code"].lower().replace(" ", "_")
            assert asked["event.action"] == f"modbus_{said}" == answered["event.action"]
            assert (asked["ot.value"], row["request_data"]) == (0, r"\x00\x00")
        if row["mei_type"] != "-":
            said = row["mei_type"].lower().replace(" ", "_")
            assert asked["event.action"] == f"modbus_{said}"
        exception = row["exception_code"].lower()
        assert answered.get("ot.exception", "-") == exception
    # response_data of coils is the padding of their last byte: it means nothing and is left out.


def _values(fields: dict[str, Any]) -> str:
    return str(fields.get("ot.value_raw", fields.get("ot.value", "-")))


def test_quickdraw_1_shows_diagnostics_abuse_frame_by_frame(data: Path) -> None:
    found = list(decoded(Modbus, data / "energy" / "modbus_quickdraw_attacks_1.pcap", 502))

    frames: dict[str, list[int]] = {}
    for frame, fields in found:
        if fields.get("ot.direction") == "request" and frame:
            frames.setdefault(fields["event.action"], []).append(frame)
    assert frames["modbus_force_listen_only_mode"] == [8, 10, 12]
    assert frames["modbus_restart_communications"] == [15, 17, 20]
    assert frames["modbus_clear_counters"] == [23, 26]
    assert frames["modbus_read_device_identification"] == [32, 34]
    assert frames["modbus_report_server_id"] == [40, 43]
    assert frames["modbus_read_coils"] == [51, 54]
    assert frames["modbus_read_holding_registers"] == [57]
    assert frames["modbus_write_single_coil"] == [60, 63]
    assert frames["modbus_write_single_register"] == [66]
    assert exceptions(found) == {"6": 5, "5": 5, "11": 4}
    assert [frame for frame, fields in found if fields["event.action"] == "unreadable"] == [76, 113]


def test_quickdraw_2_shows_every_function_code_and_its_refusal(data: Path) -> None:
    found = list(decoded(Modbus, data / "energy" / "modbus_quickdraw_attacks_2.pcap", 502))

    assert len([frame for frame, _ in found if frame]) == 281
    assert {int(code) for code in requests(found)} == set(range(128))
    assert exceptions(found) == {"1": 104, "3": 18, "2": 8}


def test_umas_capture_shows_reservation_and_transfer_of_the_program(data: Path) -> None:
    found = list(decoded(Modbus, data / "energy" / "modbus_umas_modicon_attacks.pcap", 502))

    asked = [(frame, fields) for frame, fields in found if fields["ot.direction"] == "request"]
    subs = Counter(fields["ot.function.sub"] for _, fields in asked)
    frames = {fields["ot.function.sub"]: frame for frame, fields in asked}
    assert requests(found) == {"90": 90}
    assert (subs["0x34"], subs["0x20"], subs["0x04"], subs["0x58"]) == (53, 12, 7, 3)
    assert (frames["0x10"], frames["0x33"], frames["0x35"]) == (49, 76, 186)
    assert [
        fields["cw.vendor"]["umas_client"]
        for _, fields in asked
        if fields["ot.function.sub"] == "0x10"
    ] == ["USER-714E74F21B"]
    assert all("ot.link_id" in fields for _, fields in found)


def test_plant_polling_is_read_without_a_fault(data: Path) -> None:
    found = list(decoded(Modbus, data / "energy" / "modbus_plant1_normal.pcap", 502))

    assert requests(found) == {"4": 2768, "15": 2115, "2": 1574, "1": 1519, "16": 14}
    assert exceptions(found) == {}
    assert not [fields for _, fields in found if "event.kind" in fields]
    assert {fields["source.ip"] for _, fields in found} == {"141.81.0.10"}
    # 7 990 requests and 7 986 answers; two commands of the last moment stay open.
    assert Counter(fields["event.action"] for frame, fields in found if not frame) == {
        "modbus_unanswered": 2
    }
    assert len(found) == 7_990 + 7_986 + 2


@pytest.mark.slow
@pytest.mark.full
def test_no_other_protocol_of_the_captures_is_taken_for_modbus(data: Path) -> None:
    """Everything that is said in them; what each begins with: test_all_decoders."""
    taken = {}
    for capture in sorted(data.rglob("*.pcap*")):
        if capture.name.startswith("modbus_"):
            continue
        try:
            count = sum(Modbus.recognises(piece.data) for piece in pieces(capture))
        except subprocess.CalledProcessError:
            continue  # a capture that tshark cannot read
        if count:
            taken[capture.name] = count

    assert taken == {}


def test_modbus_is_recognised_in_either_direction_and_amid_a_stream(data: Path) -> None:
    known = [
        Modbus.recognises(piece.data)
        for name in ("modbus_icsnpp_example", "modbus_umas_modicon_attacks")
        for piece in pieces(data / "energy" / f"{name}.pcap", 502)
    ]

    assert len(known) == 48 + 180
    assert all(known)
