"""MQTT against Zeek's and Suricata's captures, the standard's forms and hostile bytes."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.mqtt import OPEN_MAX, Mqtt
from tests.collectors.packets.decoders.streams import Wire, decoded, session


def text(value: str) -> bytes:
    return len(value.encode()).to_bytes(2) + value.encode()


def packet(first: int, body: bytes = b"") -> bytes:
    length, size = b"", len(body)
    while True:
        size, low = size >> 7, size & 127
        length += bytes([low | (128 if size else 0)])
        if not size:
            return bytes([first]) + length + body


CONNECT = packet(0x10, b"\0\4MQTT\4\xc6\0\x3c" + text("pump-7") + text("city/will") + text("gone")
                 + text("operator") + text("hunter2"))  # fmt: skip
CONNACK = packet(0x20, b"\0\0")
SUBSCRIBE = packet(0x82, b"\0\1" + text("city/+/state") + b"\1" + text("$SYS/#") + b"\0")
SUBACK = packet(0x90, b"\0\1\1\x80")
PUBLISH = packet(0x32, text("city/pump/set") + b"\0\2" + b"21.5")
PUBACK = packet(0x40, b"\0\2")
TALK = [
    (True, CONNECT),
    (False, CONNACK),
    (True, SUBSCRIBE),
    (False, SUBACK),
    (True, PUBLISH),
    (False, PUBACK),
    (True, packet(0xC0)),
    (False, packet(0xD0)),
    (False, packet(0x31, text("city/big") + b"x" * 500)),
    (True, packet(0xA2, b"\0\3" + text("$SYS/#"))),
    (False, packet(0xB0, b"\0\3")),
    (True, packet(0xE0)),
]
CONNECT_5 = packet(0x10, b"\0\4MQTT\5\2\0\x3c\x05\x11\0\0\0\x0a" + text("cam"))
TALK_5 = [
    (True, CONNECT_5),
    (False, packet(0x20, b"\0\0\x03\x22\0\x0a")),
    (True, packet(0x30, text("a/b") + b"\x10\x23\0\1\x26" + text("who") + text("me5") + b"\1\0"
                  + b"on")),
    (True, packet(0x30, text("") + b"\x03\x23\0\1" + b"off")),
    (True, packet(0x82, b"\0\7\0" + text("a/#") + b"\x2c")),
    (False, packet(0x90, b"\0\7\0\x87")),
    (False, packet(0xE0, b"\x8e\0")),
]  # fmt: skip


def said(talk: list[tuple[bool, bytes]]) -> list[dict[str, Any]]:
    line = Wire(Mqtt(session()))
    found = [fields for who, data in talk for fields in line.send(data, who)]
    return [*found, *line.decoder.end()]


@pytest.mark.parametrize("talk", [TALK, TALK_5], ids=["3.1.1", "5.0"])
def test_the_decoder_keeps_its_promises(talk: list[tuple[bool, bytes]]) -> None:
    check_decoder(Mqtt, talk, mutants_each=15)


def test_a_connect_shows_who_and_that_a_password_was_in_clear_but_never_the_password() -> None:
    connect = said(TALK)[0]

    assert connect["ot.mqtt.client_id"] == "pump-7"
    assert connect["user.name"] == "operator"
    assert connect["cw.vendor"]["password_in_clear"] is True
    assert connect["cw.vendor"]["will_topic"] == "city/will"
    assert connect["ot.operation"] == "auth"
    assert "hunter2" not in repr(said(TALK))


def test_a_subscription_is_one_event_a_filter_and_a_refusal_is_a_failure() -> None:
    found = said(TALK)

    topics = [one["ot.mqtt.topic"] for one in found if one["event.action"] == "mqtt_subscribe"]
    suback = next(one for one in found if one["event.action"] == "mqtt_suback")
    assert topics == ["city/+/state", "$SYS/#"]
    assert (suback["event.outcome"], suback["ot.exception"]) == ("failure", "unspecified_error")
    assert suback["ot.link_id"] == found[2]["ot.link_id"] == found[3]["ot.link_id"]


def test_a_publish_to_a_topic_of_orders_is_a_command_and_its_number_is_a_value() -> None:
    publish = next(one for one in said(TALK) if one["event.action"] == "mqtt_publish")

    assert (publish["ot.is_command"], publish["ot.operation"]) == (True, "control")
    assert (publish["ot.value"], publish["ot.value_raw"]) == (21.5, "21.5")


def test_of_a_large_payload_only_the_size_is_kept() -> None:
    big = next(one for one in said(TALK) if one.get("ot.mqtt.topic") == "city/big")

    assert big["cw.vendor"] == {"retain": True, "qos": 0, "payload_bytes": 500}
    assert "ot.value_raw" not in big


def test_version_5_has_aliases_properties_and_reasons() -> None:
    found = said(TALK_5)

    assert [one.get("ot.mqtt.topic") for one in found[2:4]] == ["a/b", "a/b"]
    assert found[2]["cw.vendor"]["user.who"] == "me5"
    assert found[2]["cw.vendor"]["payload_format"] == 0
    assert found[3]["ot.value_raw"] == "off"
    assert found[5]["ot.exception"] == "not_authorized"
    assert found[6]["ot.exception"] == "session_taken_over"


def test_a_token_in_a_property_or_payload_is_not_kept() -> None:
    own = b"\x26" + text("auth_token") + text("s3cret")
    payload = b'{"user":"ann","password":"s3cret"}'
    publish = packet(0x30, text("a/b") + bytes([len(own)]) + own + payload)

    found = said([(True, CONNECT_5), (True, publish)])[1]

    assert found["cw.vendor"]["user.auth_token"] == "***"
    assert found["ot.value_raw"] == '{"user":"ann","password":"***"}'


def test_a_session_seen_from_the_middle_is_said_once() -> None:
    found = said(TALK[2:])

    reasons = [one["event.reason"] for one in found if "event.reason" in one]
    assert reasons == ["no CONNECT was seen before this packet"]


def test_a_publish_that_nobody_acknowledged_is_said_at_the_end() -> None:
    left = said([*TALK[:2], (True, PUBLISH)])[-1]

    assert left["event.action"] == "mqtt_unanswered"
    assert left["ot.mqtt.topic"] == "city/pump/set"


def test_open_packets_are_bounded_and_the_oldest_is_given_up() -> None:
    numbered = [
        (True, packet(0x32, text("t") + number.to_bytes(2) + b"x"))
        for number in range(1, OPEN_MAX + 2)
    ]

    found = said([*TALK[:2], *numbered])

    assert f"given up unanswered, {OPEN_MAX} are open" in found[OPEN_MAX + 2]["event.reason"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x30\x80\x80\x80\x80\x01", "the remaining length of a publish is none"),
        (b"\x30\x85\x00abcde", "the remaining length of a publish is none"),
        (b"\x36\x05\0\1a\0\1", "flags 6 of a publish"),
        (b"\x80\x05\0\1\0\1a", "flags 0 of a subscribe"),
        (b"\0\0", "packet type 0 does not exist"),
        (packet(0x32, text("a") + b"\0\0"), "publish of 5 bytes: packet identifier 0"),
        (packet(0x30, text("a/#")), "publish of 5 bytes: its topic 'a/#' has a wildcard"),
        (packet(0x30, b"\0\x09ab"), "publish of 4 bytes: a text of 9 bytes, 2 are left"),
        (packet(0x30, b"\xff\xff" + b"a" * 300), "a text of 65535 bytes, 0 are left"),
        (packet(0x82, b"\0\1" + text("a") + b"\3"), "filter 'a' with options 3"),
    ],
)
def test_a_malformed_packet_is_said_and_the_next_one_is_read(data: bytes, why: str) -> None:
    line = Wire(Mqtt(session()))
    line.send(CONNECT, True)

    found = [*line.send(data, True), *line.send(SUBSCRIBE + packet(0xC0), True)]

    assert found[0]["event.kind"] == "pipeline_error"
    assert why in found[0]["event.reason"]
    assert found[-1]["event.action"] == "mqtt_pingreq"


def test_after_a_gap_the_next_packet_is_found_by_its_structure() -> None:
    line = Wire(Mqtt(session()))
    line.send(CONNECT, True)
    line.decoder.gap(True)

    found = line.send(b"rest of a lost payload" + PUBLISH + packet(0xC0), True)

    assert [one["event.action"] for one in found] == ["mqtt_publish", "mqtt_pingreq"]


def test_random_bytes_and_other_protocols_are_not_claimed() -> None:
    chance = random.Random(7)
    strange = [chance.randbytes(chance.randint(2, 200)) for _ in range(20_000)]
    others = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        bytes.fromhex("000100000006010300000002"),
        bytes.fromhex("680407000000"),
        bytes.fromhex("300c020101600702010304008000"),
        bytes.fromhex("1603010200010001fc0303") + bytes(200),
    ]

    assert [one for one in (*strange, *others) if Mqtt.recognises(one)] == []


# ---- Real captures


def test_every_message_of_zeeks_capture_is_read_and_its_publish_log_agrees(data: Path) -> None:
    found = [fields for _, fields in decoded(Mqtt, data / "city/mqtt_zeek.pcap", 1883)]

    assert Counter(one["ot.function.name"] for one in found) == {
        "connect": 2,
        "connack": 2,
        "publish": 3,
        "subscribe": 1,
        "suback": 1,
        "pingreq": 5,
        "pingresp": 5,
        "disconnect": 1,
    }
    log = (data / "city/mqtt_zeek.expected_publish.log").read_text().splitlines()
    expected = [tuple(line.split("\t")[3:]) for line in log if not line.startswith("#")]
    # (orig port, resp, resp port, from client, retain, qos, status, topic, payload, size)
    publishes = [one for one in found if one["event.action"] == "mqtt_publish"]
    ours = [
        (
            *(str(one["source.port"]), one["destination.ip"], str(one["destination.port"])),
            "T" if one["ot.direction"] == "request" else "F",
            "T" if one["cw.vendor"]["retain"] else "F",
            *("at most once", "ok", one["ot.mqtt.topic"], one["ot.value_raw"]),
            str(one["cw.vendor"]["payload_bytes"]),
        )
        for one in publishes
        if one["cw.vendor"]["qos"] == 0
    ]
    assert ours == expected


def test_credentials_in_clear_are_seen_and_the_password_is_nowhere(data: Path) -> None:
    found = [x for _, x in decoded(Mqtt, data / "city/mqtt_cleartext_credentials.pcap", 1883)]

    assert len(found) == 4
    assert found[0]["ot.mqtt.client_id"] == "myvoiceismypassport"
    assert found[0]["user.name"] == "user"
    assert found[0]["cw.vendor"]["password_in_clear"] is True
    assert found[2]["ot.mqtt.topic"] == "topicX"
    assert "'pass'" not in repr(found)


def test_one_session_without_connect_is_said_once(data: Path) -> None:
    name = "city/mqtt_publish_without_connect.pcap"
    found = [fields for _, fields in decoded(Mqtt, data / name, 1883)]

    said = [one for one in found if "no CONNECT was seen" in one.get("event.reason", "")]
    counts = Counter(one["ot.function.name"] for one in found)
    assert len(said) == 1
    assert (counts["publish"], counts["subscribe"], counts["connect"]) == (3, 3, 1)


def test_mqtt_on_another_port_is_read_whole(data: Path) -> None:
    found = [fields for _, fields in decoded(Mqtt, data / "city/coap_mqtt.pcap", 17_501)]

    assert {one.get("event.kind") for one in found} == {None}
    assert len({one["source.port"] for one in found}) == 4
