"""RTSP against a real capture, the standard's forms and hostile bytes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.rtsp import Rtsp
from tests.collectors.packets.decoders.streams import Wire, decoded, session

DIGEST = 'Authorization: Digest username="viewer", realm="cam", response="0123456789abcdef"'


def request(method: str, cseq: int, *names: str, url: str = "rtsp://10.0.0.2:554/s1") -> bytes:
    return "\r\n".join([f"{method} {url} RTSP/1.0", f"CSeq: {cseq}", *names, "", ""]).encode()


def response(status: str, cseq: int, *names: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"RTSP/1.0 {status}", f"CSeq: {cseq}", *names, "", ""]).encode() + body


TALK = [
    (True, request("OPTIONS", 1, "User-Agent: VLC")),
    (False, response("200 OK", 1, "Public: DESCRIBE, PLAY", "Server: cam")),
    (True, request("DESCRIBE", 2)),
    (False, response("401 Unauthorized", 2, 'WWW-Authenticate: Digest realm="cam"')),
    (True, request("DESCRIBE", 3, DIGEST)),
    (False, response("200 OK", 3, "Content-Length: 6", body=b"v=0\r\nx")),
    (False, b"$\0\0\x05abc\r\n$\1\0\x04RTCP" + response("200 OK", 9)),
]


def said(*talk: tuple[bool, bytes]) -> list[dict[str, Any]]:
    line = Wire(Rtsp(session()))
    found = [fields for who, data in talk for fields in line.send(data, who)]
    return [*found, *line.decoder.end()]


def test_the_decoder_keeps_its_promises() -> None:
    check_decoder(Rtsp, TALK, mutants_each=8)


def test_requests_and_responses_are_joined_and_media_is_passed_over() -> None:
    found = said(*TALK)

    assert [one["event.action"] for one in found] == [
        *("rtsp_options",) * 2, *("rtsp_describe",) * 4, "rtsp_response",
    ]  # fmt: skip
    assert [one["ot.link_id"] for one in found[:6:2]] == [one["ot.link_id"] for one in found[1:6:2]]
    assert found[0]["user_agent.original"] == "VLC"
    assert found[1]["cw.vendor"]["server"] == "cam"
    assert (found[0]["url.domain"], found[0]["url.path"]) == ("10.0.0.2", "/s1")
    assert found[6]["event.reason"] == "no request was seen for this response"


def test_a_refused_login_and_the_user_of_a_login_are_said_without_secrets() -> None:
    found = said(*TALK)

    assert (found[3]["event.outcome"], found[3]["event.code"]) == ("failure", "401")
    assert found[3]["event.category"] == ["authentication", "network"]
    assert (found[5]["event.outcome"], found[5]["user.name"]) == ("success", "viewer")
    assert "0123456789abcdef" not in repr(found)


def test_a_password_in_the_url_is_not_kept() -> None:
    (found, _) = said((True, request("PLAY", 1, url="rtsp://admin:12345@cam/live?pwd=6789x")))

    assert found["url.original"] == "rtsp://***@cam/live?pwd=***"
    assert found["url.domain"] == "cam"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x80abc\r\n\r\n", "no request line: '\\\\x80abc'"),
        (b"RTSP/1.0 99 no\r\n\r\n", "no status line: 'RTSP/1.0 99 no'"),
        (b"PLAY rtsp://a RTSP/1.0\r\n\r\n", "no CSeq"),
        (b"PLAY rtsp://a RTSP/1.0\r\nCSeq: 1\r\nContent-Length: x\r\n\r\n",
         "Content-Length is no length"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_the_next_request_is_read(data: bytes, why: str) -> None:
    found = said((True, data), (True, request("PAUSE", 8)))

    assert found[0]["event.reason"] == why
    assert found[1]["event.action"] == "rtsp_pause"


def test_after_a_gap_the_next_head_is_found() -> None:
    line = Wire(Rtsp(session()))
    line.send(b"$\0\x10\x00abc", True)
    line.decoder.gap(True)

    found = line.send(b"lost media\n" + request("TEARDOWN", 5), True)

    assert [one["event.action"] for one in found] == ["rtsp_teardown"]


def test_http_and_sip_are_not_claimed() -> None:
    others = [
        b"OPTIONS * HTTP/1.1\r\n\r\n",
        b"OPTIONS sip:a@b SIP/2.0\r\n\r\n",
        b"$\0\0\x04abcd",
        b"PLAY something else\r\n",
    ]

    assert [one for one in others if Rtsp.recognises(one)] == []


def test_the_requests_and_replies_of_the_cameras_are_read(data: Path) -> None:
    found = [fields for _, fields in decoded(Rtsp, data / "city/rtsp_camera_streams.pcap", 8554)]

    asked = Counter(
        one["ot.function.name"] for one in found if one.get("ot.direction") == "request"
    )
    answered = Counter(one["event.code"] for one in found if "event.code" in one)
    assert {one.get("event.kind") for one in found} == {None}
    assert answered == {"200": 30}
    # Each packet is in the capture two to four times; tshark's counts (SETUP 45, DESCRIBE 24,
    # PLAY 20) are of packets, these are of requests.
    assert asked == {"setup": 12, "options": 6, "describe": 6, "play": 6, "get_parameter": 5}
    assert {one["user_agent.original"] for one in found if "user_agent.original" in one} == {
        "LibVLC/3.0.16 (LIVE555 Streaming Media v2016.11.28)"
    }
    servers = {one["cw.vendor"]["server"] for one in found if "server" in one.get("cw.vendor", {})}
    assert servers == {"VLC/3.0.12"}
