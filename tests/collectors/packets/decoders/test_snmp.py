"""SNMP against real captures, hand-made messages and hostile bytes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cityward.checks import check_decoder
from collectors.packets.decoders.snmp import Snmp
from tests.collectors.packets.decoders.captured import datagrams, messages

NAME = bytes.fromhex("2b06010201010600")
"""1.3.6.1.2.1.1.6.0, the location of a device."""


def tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes((tag, 0x82)) + len(body).to_bytes(2) + body


def number(value: int) -> bytes:
    return tlv(2, value.to_bytes(4, signed=True))


def pdu(tag: int, value: bytes, status: int = 0, name: bytes = NAME) -> bytes:
    variable = tlv(0x30, tlv(6, name), value)
    return tlv(tag, number(77), number(status), number(0), tlv(0x30, variable))


def plain(inside: bytes, community: bytes = b"s3cr3t", version: int = 1) -> bytes:
    return tlv(0x30, number(version), tlv(4, community), inside)


def secured(flags: int, inside: bytes) -> bytes:
    head = tlv(0x30, number(1), number(65_507), tlv(4, bytes((flags,))), number(3))
    parts = (tlv(4, b"\x80\0\x1f"), number(1), number(2), tlv(4, b"ada"), tlv(4), tlv(4))
    return tlv(0x30, number(3), head, tlv(4, tlv(0x30, *parts)), inside)


SET = plain(pdu(0xA3, tlv(4, b"STOP")))
ANSWER = plain(pdu(0xA2, tlv(4, b"STOP")))


def read(*pieces: tuple[bytes, bool]) -> list[dict[str, Any]]:
    decoder = Snmp(datagrams(server="10.0.0.2:161"))
    found = [one for data, who in pieces for one in decoder.feed(data, who, 1.0, 1)[1]]
    return [*found, *decoder.end()]


def test_setting_a_value_is_a_command_and_its_answer_is_joined() -> None:
    asked, answered = read((SET, True), (ANSWER, False))

    assert (asked["event.action"], asked["ot.operation"]) == ("snmp_set_request", "config")
    assert (asked["ot.is_command"], answered["ot.is_command"]) == (True, False)
    assert (asked["ot.point.tag"], asked["ot.value_raw"]) == ("1.3.6.1.2.1.1.6.0", "STOP")
    assert answered["ot.link_id"] == asked["ot.link_id"]
    assert (answered["event.outcome"], answered["ot.operation"]) == ("success", "config")


def test_a_refusal_is_a_failure() -> None:
    found = read((SET, True), (plain(pdu(0xA2, tlv(5), status=17)), False))

    assert (found[1]["event.outcome"], found[1]["ot.exception"]) == ("failure", "not_writable")


def test_a_setting_nobody_answered_is_said() -> None:
    assert read((SET, True))[1]["event.action"] == "snmp_unanswered"


@pytest.mark.parametrize(
    ("community", "kind"), [(b"public", "default"), (b"s3cr3t", "own"), (b"", "empty")]
)
def test_of_a_community_only_its_kind_and_a_mark_are_kept(community: bytes, kind: str) -> None:
    found = read((plain(pdu(0xA0, tlv(5)), community), True))

    assert found[0]["cw.vendor"]["community"] == kind
    assert len(found[0]["cw.vendor"]["community_mark"]) == 2
    assert "s3cr3t" not in repr(found)


def test_a_request_id_that_no_store_keeps_is_malformed() -> None:
    listed = tlv(0x30, tlv(0x30, tlv(6, NAME), tlv(5)))
    wide = tlv(0xA0, tlv(2, b"\x7f" + bytes(15)), number(0), number(0), listed)

    found = read((plain(wide), True))

    assert "event.sequence" not in found[0]


def test_a_community_that_is_set_is_not_kept() -> None:
    secret = bytes.fromhex("2b060106031201010102")
    found = read((plain(pdu(0xA3, tlv(4, b"hush"), name=secret)), True))

    assert found[0]["ot.point.tag"].startswith("1.3.6.1.6.3.18.")
    assert "hush" not in repr(found)


def test_version_3_names_user_and_engine() -> None:
    scoped = tlv(0x30, tlv(4), tlv(4), pdu(0xA0, tlv(5)))

    clear, hidden = read((secured(1, scoped), True), (secured(3, tlv(4, b"\x12\x34")), True))

    assert (clear["user.name"], clear["event.action"]) == ("ada", "snmp_get_request")
    assert clear["cw.vendor"] == {
        "version": "3",
        "security": "authenticated",
        "engine_id": "80001f",
    }
    assert (hidden["event.action"], hidden["cw.vendor"]["security"]) == (
        "snmp_encrypted",
        "encrypted",
    )


def test_a_trap_of_version_1_says_what_happened() -> None:
    inside = tlv(
        0xA4, tlv(6, NAME), tlv(0x40, bytes((10, 0, 0, 9))), number(4), number(0), number(5),
        tlv(0x30),
    )  # fmt: skip

    found = read((plain(inside, version=0), False))

    assert (found[0]["event.action"], found[0]["ot.cause"]) == (
        "snmp_trap",
        "authentication_failure",
    )
    assert found[0]["cw.vendor"]["agent"] == "10.0.0.9"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x30\x82\xff\xff\x02", "claims 65535 bytes"),
        (plain(b"\xbf\x81\x00\x00"), "no PDU has the tag"),
        (plain(tlv(0xA0, number(1))), "has four parts"),
        (plain(pdu(0xA0, b"")), "has no name and value"),
        (tlv(0x30, number(1)), "a version, a community and data"),
        (tlv(0x30, number(9), tlv(4), tlv(5)), "version 9 is not known"),
        (SET + b"\0", "1 bytes lie behind the message"),
    ],
)
def test_a_broken_message_is_an_event_that_says_why(data: bytes, why: str) -> None:
    found = read((data, True))

    assert found[0]["event.kind"] == "pipeline_error"
    assert why in found[0]["event.reason"]


def test_the_decoder_keeps_its_promises() -> None:
    check_decoder(Snmp, [(True, SET), (False, ANSWER)], mutants_each=60)


@given(st.binary(max_size=100))
def test_random_bytes_are_no_snmp(data: bytes) -> None:
    assert not Snmp.recognises(b"\x30" + data[:7])


def test_real_requests_are_read(data: Path) -> None:
    found = messages(data / "transport/snmp_v2c_requests.pcap", Snmp)

    assert Counter(one["ot.function.name"] for one in found) == {
        "get_request": 3,
        "get_next_request": 1,
        "response": 4,
    }
    assert {one["cw.vendor"]["community"] for one in found} == {"own"}
    assert not any("event.reason" in one for one in found)
    assert "R0_C" not in repr(found)


def test_a_substation_is_read_with_the_community_of_the_factory(data: Path) -> None:
    found = messages(data / "energy/iec61850_mms_and_goose.pcap", Snmp)

    assert Counter(one["cw.vendor"]["community"] for one in found) == {"default": 14}
