"""CEF and LEEF: headers, extensions, what they mean."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.logs.cef import cef, looks_like_cef
from collectors.logs.leef import leef
from tests.collectors.suites import crowdsec_parsed

NOW = datetime(2026, 3, 1, tzinfo=UTC)

LINE = (
    rb"<134>Sep 19 08:26:10 fw CEF:0|secu\|rity|threat\\man|1.0|100|worm \| stopped|10|"
    rb"src=10.0.0.1 dst=2.1.2.2 spt=1232 dpt=445 smac=00:0D:60:AF:1B:61 act=blocked a \= b "
    rb"suser=Ann Lee proto=TCP cs1Label=Rule Name cs1=No in/out cn1Label=Count cn1=12 "
    rb"msg=Two\nlines rt=1566202370000 request=http://h/x?a\=b dvc=192.0.2.9 "
    rb"deviceExternalId=SN1 c6a2Label=Source IPv6 Address"
)


def _read(line: bytes, collector: Any = cef) -> Event:
    event: Event
    (event,) = collector([Record(line, "s", 0, NOW)])
    return event


def test_header_and_extension_are_unescaped_and_sorted() -> None:
    event = _read(LINE)

    fields = event.fields
    assert event.time == datetime(2019, 8, 19, 8, 12, 50, tzinfo=UTC)
    assert (fields["observer.vendor"], fields["observer.product"]) == ("secu|rity", r"threat\man")
    assert (fields["event.code"], fields["event.severity"]) == ("100", 10)
    assert (fields["source.ip"], fields["source.port"]) == ("10.0.0.1", 1232)
    assert (fields["destination.ip"], fields["destination.port"]) == ("2.1.2.2", 445)
    assert fields["source.mac"] == "00-0D-60-AF-1B-61"
    assert fields["user.name"] == "Ann Lee"
    assert fields["url.original"] == "http://h/x?a=b"
    assert fields["message"] == "Two\nlines"
    assert (fields["host.name"], fields["observer.ip"]) == ("fw", ["192.0.2.9"])
    assert fields["observer.serial_number"] == "SN1"
    assert fields["cw.vendor"]["Rule Name"] == "No in/out"
    assert fields["cw.vendor"]["Count"] == "12"
    assert fields["cw.vendor"]["act"] == "blocked a = b"
    assert fields["event.action"] == "packet_denied"
    assert (event.logsource.category, event.logsource.product) == ("firewall", "secu_rity")


@pytest.mark.parametrize(
    ("name", "said", "action", "outcome"),
    [
        ("Login", "outcome=failure", "login", "failure"),
        ("User login failed", "duser=x", "login", "failure"),
        ("Admin logged in", "duser=x", "login", "success"),
        ("Traffic", "act=allow src=1.1.1.1 dpt=5", "packet_allowed", None),
        ("Disk full", "", "disk_full", None),
    ],
)
def test_words_have_their_meaning(name: Any, said: Any, action: Any, outcome: Any) -> None:
    event = _read(f"CEF:0|v|p|1|7|{name}|Low|{said}".encode())

    assert event.fields["event.action"] == action
    assert event.fields.get("event.outcome") == outcome
    assert event.fields["event.severity"] == 3
    assert (event.time, event.fields["cw.time_source"]) == (NOW, "collector")


@pytest.mark.parametrize(
    "time", ["Oct 26 2025 19:59:41.239", "2025-10-26T19:59:41.239Z", "1761508781239"]
)
def test_each_form_of_time_is_read(time: Any) -> None:
    event = _read(f"CEF:0|v|p|1|7|n|5|rt={time}".encode())

    assert event.time == datetime(2025, 10, 26, 19, 59, 41, 239_000, tzinfo=UTC)


def test_crowdsec_and_we_read_the_same_of_unifi(data: Path) -> None:
    lines, expected = crowdsec_parsed(data / "logs/suite_crowdsec_hub_tests.tar.gz", "unifi-cef")
    names = {
        "source_ip": "source.ip",
        "source_port": "source.port",
        "destination_ip": "destination.ip",
        "destination_port": "destination.port",
        "event_signature_id": "event.code",
        "event_severity": "event.severity",
        "vendor": "observer.vendor",
        "product": "observer.product",
        "device_version": "observer.version",
        "message": "message",
        "host": "host.name",
        "admin_user": "user.name",
        "ips_signature": "rule.name",
        "ips_signature_id": "rule.id",
    }
    claimed = 0

    for line, want in zip(lines, expected, strict=True):
        event = _read(line)
        for name, field in names.items():
            if name in want:
                claimed += 1
                assert str(event.fields[field]) == want[name], name

    assert claimed >= 30
    assert len(lines) == 3


def test_the_unifi_file_has_an_admin_and_two_threats(data: Path) -> None:
    raw = (data / "logs/unifi_cef.log").read_bytes()

    found = [_read(line) for line in raw.split(b"\n") if line]

    assert looks_like_cef(raw)
    assert [event.fields["event.code"] for event in found] == ["544", "201", "201"]
    assert [event.fields.get("event.kind") for event in found] == [None, "alert", "alert"]
    assert (found[0].fields["event.action"], found[0].fields["user.name"]) == (
        "login",
        "Secure Admin",
    )
    assert found[2].time == datetime(2025, 10, 26, 19, 1, 31, 807_000, tzinfo=UTC)
    assert found[2].fields["event.type"] == ["denied"]


LEEF_1 = (
    b"<13>1 2019-01-18T11:07:53.520Z 192.0.2.7 LEEF:1.0|Lancope|StealthWatch|1.0|41|"
    b"src=192.0.2.0\tdst=172.50.123.1\tsev=5\tcat=anomaly\tsrcPort=81\tdstPort=21\tusrName=joe b\t"
    b"devTime=Jan 18 2019 11:07:53\tfoo=bar"
)
LEEF_2 = b"LEEF:2.0|V|P|2|Login Failed|x5E|usrName=joe^src=192.0.2.1^url=http://x/?a=b"


def test_both_versions_of_leef_are_read() -> None:
    first, second = _read(LEEF_1, leef), _read(LEEF_2, leef)

    assert first.time == datetime(2019, 1, 18, 11, 7, 53, tzinfo=UTC)
    assert first.fields["source.ip"] == "192.0.2.0"
    assert (first.fields["destination.port"], first.fields["user.name"]) == (21, "joe b")
    assert first.fields["event.severity"] == 5
    assert first.fields["cw.vendor"]["foo"] == "bar"
    assert second.fields["url.original"] == "http://x/?a=b"
    assert (second.fields["event.action"], second.fields["event.outcome"]) == ("login", "failure")


@pytest.mark.parametrize("sign", ["^", "0x5e", "x5E"])
def test_the_delimiter_of_version_2_is_a_sign_or_hexadecimal(sign: Any) -> None:
    event = _read(f"LEEF:2.0|V|P|2|7|{sign}|src=192.0.2.1^dst=192.0.2.2".encode(), leef)

    assert event.fields["destination.ip"] == "192.0.2.2"


def test_a_line_of_another_kind_is_kept_and_half_a_header_is_malformed() -> None:
    assert _read(b"Feb 12 14:10:21 gw app[1]: x").fields["event.action"] == "log"
    assert _read(b"hello").is_malformed
    assert _read(b"CEF:0|a|b").is_malformed
    assert _read(b"LEEF:1.0|a|b", leef).is_malformed


def test_cef_and_leef_keep_the_promises_of_a_collector() -> None:
    check_collector(cef, [LINE, b"CEF:0|v|p|1|7|n|5|src=1.1.1.1"])
    check_collector(leef, [LEEF_1, LEEF_2])


def test_a_long_header_takes_no_long_time() -> None:
    for line in (b"CEF:0|" + b"\\" * 500_000, b"CEF:0|v|p|1|7|n|5|" + b"a " * 300_000):
        assert re.match(b"CEF", line)
        _read(line)
