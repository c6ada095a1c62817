"""Windows events: native names for the rules, common fields for people."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.logs.windows import looks_like_windows, windows
from tests.collectors.suites import member, members

NOW = datetime(2026, 3, 1, tzinfo=UTC)

BEAT = json.dumps(
    {
        "@timestamp": "2024-05-01T10:00:00.123Z",
        "message": "An account failed to log on.",
        "winlog": {
            "channel": "Security",
            "event_id": 4625,
            "computer_name": "dc1",
            "record_id": 7,
            "provider_name": "Microsoft-Windows-Security-Auditing",
            "event_data": {
                "TargetUserName": "ann",
                "TargetDomainName": "CITY",
                "IpAddress": "192.0.2.9",
                "IpPort": "1628",
                "LogonType": "3",
            },
        },
    }
).encode()
FLAT = json.dumps(
    {
        "EventID": 1,
        "Channel": "Microsoft-Windows-Sysmon/Operational",
        "Hostname": "ws5",
        "UtcTime": "2020-09-22 04:11:49.123",
        "Image": r"C:\Windows\System32\cmd.exe",
        "CommandLine": "cmd /c whoami",
        "ParentImage": r"C:\Windows\explorer.exe",
        "User": r"CITY\ann",
        "ProcessId": "0x14a0",
        "Hashes": "SHA1=x,MD5=" + "A" * 32 + ",SHA256=" + "b" * 64,
    }
).encode()
XML = (
    b'<Event xmlns="http://schemas.microsoft.com/win/2004/08/events/event"><System>  <Provider '
    b'Name="Microsoft-Windows-Security-Auditing" Guid="{5}" />   <EventID>4625</EventID>   '
    b'<TimeCreated SystemTime="2022-04-29T12:36:01.9027913Z" />   <Channel>Security</Channel>  '
    b"<Computer>ex1</Computer></System><EventData>  "
    b'<Data Name="TargetUserName">a &amp; b</Data>   <Data Name="IpAddress">192.168.9.212</Data>'
    b"</EventData></Event>"
)


def _read(line: bytes) -> Event:
    (event,) = windows([Record(line, "s", 0, NOW)])
    return event


def test_a_failed_login_of_winlogbeat_names_who_and_whence() -> None:
    event = _read(BEAT)

    fields = event.fields
    assert event.time == datetime(2024, 5, 1, 10, 0, 0, 123_000, tzinfo=UTC)
    assert (fields["event.action"], fields["event.outcome"]) == ("login", "failure")
    assert (fields["user.name"], fields["user.domain"]) == ("ann", "CITY")
    assert (fields["source.ip"], fields["source.port"]) == ("192.0.2.9", 1628)
    assert (fields["host.name"], fields["event.code"]) == ("dc1", "4625")
    assert fields["cw.vendor"]["LogonType"] == "3"
    assert str(event.logsource) == "windows/*/security"


def test_a_process_of_sysmon_has_native_and_common_names() -> None:
    event = _read(FLAT)

    fields, native = event.fields, event.fields["cw.vendor"]
    assert event.time == datetime(2020, 9, 22, 4, 11, 49, 123_000, tzinfo=UTC)
    assert str(event.logsource) == "windows/process_creation/sysmon"
    assert native["Image"] == fields["process.executable"] == r"C:\Windows\System32\cmd.exe"
    assert (fields["process.name"], fields["process.parent.name"]) == ("cmd.exe", "explorer.exe")
    assert (fields["process.pid"], fields["user.name"]) == (5280, "ann")
    assert (fields["file.hash.md5"], fields["file.hash.sha256"]) == ("a" * 32, "b" * 64)
    assert native["EventID"] == 1


def test_rendered_xml_is_read_with_its_entities() -> None:
    event = _read(XML)

    assert event.time.replace(microsecond=0) == datetime(2022, 4, 29, 12, 36, 1, tzinfo=UTC)
    assert event.fields["user.name"] == "a & b"
    assert event.fields["source.ip"] == "192.168.9.212"
    assert event.fields["event.provider"] == "Microsoft-Windows-Security-Auditing"


@pytest.mark.parametrize(
    ("code", "channel", "category"),
    [
        (3, "Microsoft-Windows-Sysmon/Operational", "network_connection"),
        (13, "Microsoft-Windows-Sysmon/Operational", "registry_set"),
        (22, "Microsoft-Windows-Sysmon/Operational", "dns_query"),
        (4688, "Security", "process_creation"),
        (4104, "Microsoft-Windows-PowerShell/Operational", "ps_script"),
        (4104, "Security", ""),
    ],
)
def test_the_category_is_sigmas(code: int, channel: str, category: str) -> None:
    event = _read(json.dumps({"EventID": code, "Channel": channel}).encode())

    assert event.logsource.category == category
    assert event.logsource.product == "windows"


def test_sigmahqs_events_have_every_native_value(data: Path) -> None:
    with tarfile.open(data / "sigma/sigmahq_regression.tar.gz") as tar:
        read = {one.name: tar.extractfile(one) for one in tar if one.isfile()}
        texts = {name: part.read() for name, part in read.items() if part is not None}
    claimed, differences = 0, []

    for line in texts["cases.ndjson"].splitlines():
        case: dict[str, Any] = json.loads(line)
        names = sorted(n for n in texts if f"/{case['case']}/" in f"/{n}" and n.endswith(".json"))
        events = [one for name in names for one in _documents(texts[name])]
        if len(events) != len(case["events"]):
            continue
        for raw, want in zip(events, case["events"], strict=True):
            native = _read(json.dumps(raw).encode()).fields["cw.vendor"]
            for name, value in want.items():
                claimed += 1
                if str(native.get(name)) != str(value):
                    differences.append((case["case"], name, value, native.get(name)))

    print(f"windows: {claimed - len(differences)}/{claimed} native values as in SigmaHQ's cases")
    assert claimed > 4_000
    assert len(differences) / claimed <= 0.01, differences[:5]


def _documents(text: bytes) -> list[dict[str, Any]]:
    """One document, a list of them, or one after the other."""
    found, at, rest = [], 0, text.decode("utf-8-sig")
    while rest[at:].strip():
        at += len(rest[at:]) - len(rest[at:].lstrip())
        one, at = json.JSONDecoder().raw_decode(rest, at)
        found += one if isinstance(one, list) else [one]
    return found


def test_recorded_attacks_are_read_with_their_categories(data: Path) -> None:
    lines = []
    with gzip.open(data / "sigma/otrf_windows_100k.ndjson.gz") as opened:
        for number, line in enumerate(opened):
            if number >= 20_000:
                break
            if number % 17 == 0:
                lines.append(line.strip())

    found = [_read(line) for line in lines]

    unread = [event for event in found if event.is_malformed]
    assert len(unread) <= 1
    services = Counter(event.logsource.service for event in found)
    assert services["sysmon"] > 300
    assert {e.logsource.category for e in found if e.logsource.service == "sysmon"} >= {
        "process_creation",
        "image_load",
        "registry_set",
        "process_access",
    }
    assert [e for e in found if e.fields.get("cw.time_source") == "collector"] == []


def test_crowdsec_and_we_see_the_same_failed_logins(data: Path) -> None:
    archive = data / "logs/suite_crowdsec_hub_tests.tar.gz"
    found = 0
    for case in ("windows-logs", "windows-bf"):
        log = next(one for one in members(archive) if f"/{case}/{case}.log" in f"/{one}")
        for line in member(archive, log).split("\n"):
            if "<EventID>4625<" in line:
                fields = _read(line.encode()).fields
                found += 1
                assert (fields["event.action"], fields["event.outcome"]) == ("login", "failure")
                assert fields["source.ip"] == "192.168.9.212"

    assert found >= 7


def test_windows_keeps_the_promises_of_a_collector() -> None:
    for sample in (BEAT, FLAT, XML):
        assert looks_like_windows(sample)
        check_collector(windows, [sample], mutants_each=60)
