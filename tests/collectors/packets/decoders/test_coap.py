"""CoAP against real captures, the standard's examples and hostile bytes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.coap import OPEN_MAX, Coap
from collectors.packets.packets import Packets
from tests.collectors.packets.decoders.streams import session
from tests.collectors.packets.wire import chunks, collected

GET = bytes.fromhex("420112340790b8736570617261746510d12311")
CONTENT = bytes.fromhex("624512340790c0") + b"\xff21.5"
PUT = bytes.fromhex("4103123599b46c616d7002") + b"on\xffon"
DENIED = bytes.fromhex("618312359911 00".replace(" ", ""))
EMPTY = bytes.fromhex("6000e91b")
RESET = bytes.fromhex("70001234")
TALK = [(True, GET), (False, CONTENT), (True, PUT), (False, DENIED), (True, EMPTY)]


def said(*talk: tuple[bool, bytes]) -> list[dict[str, Any]]:
    coap = Coap(session())
    found: list[dict[str, Any]] = []
    for at, (who, data) in enumerate(talk):
        found += coap.feed(data, who, float(at), at)[1]
    return [*found, *coap.end()]


def test_the_decoder_keeps_its_promises() -> None:
    check_decoder(Coap, TALK, mutants_each=20)


def test_a_request_and_its_response_are_joined_by_token() -> None:
    get, content = said(*TALK[:2])

    assert (get["event.action"], get["url.path"]) == ("coap_get", "/separate")
    assert get["cw.vendor"] == {"content_format": 0, "size1": 17}
    assert content["ot.link_id"] == get["ot.link_id"]
    assert (content["event.code"], content["ot.function.code"]) == ("content", "2.05")
    assert (content["ot.value"], content["event.duration"]) == (21.5, 1_000_000_000)


def test_a_put_is_a_command_and_its_refusal_a_failure() -> None:
    put, denied = said(*TALK[2:4])

    assert (put["ot.is_command"], put["url.path"]) == (True, "/lamp/on")
    assert put["ot.value_raw"] == "on"
    assert (denied["event.outcome"], denied["ot.exception"]) == ("failure", "forbidden")
    assert denied["url.path"] == "/lamp/on"


def test_a_command_nobody_answered_is_said_at_the_end_and_a_read_is_not() -> None:
    found = said((True, GET), (True, PUT))

    assert [one["event.action"] for one in found[2:]] == ["coap_unanswered"]


def test_a_request_sent_again_is_said_and_keeps_its_link() -> None:
    first, again = said((True, GET), (True, GET))

    assert again["event.reason"] == "sent again"
    assert again["ot.link_id"] == first["ot.link_id"]


def test_open_requests_are_bounded() -> None:
    many = [(True, GET[:4] + number.to_bytes(2) + GET[6:]) for number in range(OPEN_MAX + 1)]

    assert f"{OPEN_MAX} are open" in said(*many)[-1]["event.reason"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("4001", "2 bytes, a message has at least 4"),
        ("80010001", "version 2"),
        ("49010001" + "00" * 9, "a token of 9 bytes, 8 are possible"),
        ("42010001aa", "the token is cut"),
        ("40010001b9616263", "option 11 is cut"),
        ("40010001ff", "a payload marker without a payload"),
        ("40010001f0", "an option whose length is none"),
        ("40010001c4aabbccdd", "option content_format of 4 bytes"),
        ("60010001", "code 0.01 in a acknowledgement message"),
        ("40000001aa", "code 0.00 in a confirmable message"),
        ("40010001" + "b0" + "00" * 70, "more than 64 options"),
    ],
)
def test_a_malformed_message_is_said(data: str, why: str) -> None:
    (found,) = said((True, bytes.fromhex(data)))

    assert (found["event.kind"], found["event.reason"]) == ("pipeline_error", why)


def test_random_bytes_and_other_protocols_are_not_claimed() -> None:
    chance = random.Random(6)
    strange = [chance.randbytes(chance.randint(4, 120)) for _ in range(20_000)]
    others = [
        bytes.fromhex("123401000001000000000000076578616d706c6503636f6d0000010001"),
        bytes.fromhex("810a001101040005010c0c023fffff194b"),
        b"M-SEARCH * HTTP/1.1\r\n",
        bytes.fromhex("302602010104067075626c6963a019020100"),
        EMPTY,
    ]

    claimed = [one for one in strange if Coap.recognises(one)]
    assert claimed == []
    assert [one for one in others if Coap.recognises(one)] == []


# ---- Real capture


def test_coap_of_the_capture_is_read_whole_also_where_ndpi_says_dropbox(data: Path) -> None:
    events = collected(Packets(), chunks(data / "city/coap_mqtt.pcap"))
    found = [one.fields for one in events if one.fields.get("event.dataset") == "packets.coap"]
    standard = [one for one in found if one["destination.port"] == 5683]
    others = [one for one in found if one["destination.port"] != 5683]

    # nDPI: CoAP 19 packets of 8 flows. Five of them, each alone in its flow, are of a draft before
    # the RFC (a count of options where the length of the token is now). Its 800 packets of Dropbox
    # go to Dropbox's port, but they are CoAP: Uri-Port 17500, content format JSON.
    assert len(standard) == 14
    assert len({one["source.port"] for one in standard}) == 3
    assert len(others) == 800
    assert {one.get("event.kind") for one in found} == {None}
    assert {one["cw.vendor"].get("uri_port") for one in others if one["ot.is_command"]} == {17_500}
    assert Counter(one["event.action"] for one in standard) == {
        **{"coap_get": 4, "coap_put": 4, "coap_post": 2, "coap_delete": 2},
        "coap_acknowledgement": 2,
    }
