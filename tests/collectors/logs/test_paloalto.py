"""Palo Alto: the columns of each type of log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.logs.paloalto import looks_like_paloalto, paloalto
from collectors.logs.syslog import syslog

NOW = datetime(2026, 3, 1, tzinfo=UTC)
FIRST = "1,2024/05/01 12:00:01,007051000012345"
ENDS = (
    f"{FIRST},{{}},2561,2024/05/01 12:00:01,10.0.0.5,192.0.2.8,198.51.100.1,192.0.2.8,out rule,"
    "city\\ann,,ssl,vsys1,trust,untrust,ethernet1/2,ethernet1/1,fwd,2024/05/01 12:00:01,4711,1,"
    "50123,443,61000,443,0x400053,tcp,{}"
)
TRAFFIC = (
    ENDS.format("TRAFFIC,end", "allow")
    + ",5300,1300,4000,20,2024/05/01 11:59:00,61,any,0,123,0x0,10.0.0.0-10.255.255.255,GR,0,12,8,"
    "tcp-fin,0,0,0,0,,fw1,from-policy,,,0,,0,,N/A,0,0,0,0,x,0,0,,,,,,,,,,,,,,,,,,,,,,,,"
    "2024-05-01T14:00:01.123+02:00,,"
)
THREAT = (
    ENDS.format("THREAT,vulnerability", "reset-both")
    + ',"a,b.exe",Log4j RCE(91991),any,critical,client-to-server,5,0x0,US,GR,0,,0,,,1,,,,,,,,0,0,'
    "0,0,0,,fw1,,,,GET"
)
SYSTEM = (
    f"{FIRST},SYSTEM,auth,0,2024/05/01 12:00:01,,auth-fail,,0,0,general,medium,"
    "\"failed authentication for user 'admin'. Reason: Invalid username/password. From: "
    '192.0.2.9.",7,0x0,0,0,0,0,,fw1'
)
CONFIG = (
    f"{FIRST},CONFIG,0,0,2024/05/01 12:00:01,192.0.2.9,,set,admin,Web,Succeeded,"
    "vsys vsys1 rulebase,8,0x0,0,0,0,0,,fw1"
)
VPN = (
    f"{FIRST},GLOBALPROTECT,0,2305,2024/05/01 12:00:01,vsys1,gateway-auth,login,LDAP,,ann,GR,pc7,"
    "192.0.2.9,0.0.0.0,0.0.0.0,0.0.0.0,h,s,6.0,Windows,10,1,,Authentication failed,,failure,,0,,0,g"
)


def _read(line: str, collector: Any = paloalto) -> Event:
    event: Event
    (event,) = collector([Record(line.encode(), "s", 0, NOW)])
    return event


def test_a_session_has_its_columns() -> None:
    event = _read(TRAFFIC)

    fields = event.fields
    assert event.time == datetime(2024, 5, 1, 12, 0, 1, 123_000, tzinfo=UTC)
    assert (fields["source.ip"], fields["source.port"]) == ("10.0.0.5", 50123)
    assert (fields["destination.ip"], fields["destination.port"]) == ("192.0.2.8", 443)
    assert (fields["source.bytes"], fields["destination.bytes"]) == (1300, 4000)
    assert (fields["source.packets"], fields["destination.packets"]) == (12, 8)
    assert (fields["event.action"], fields["event.duration"]) == ("connection_ended", 61 * 10**9)
    assert (fields["rule.name"], fields["user.name"]) == ("out rule", "city\\ann")
    assert (fields["host.name"], fields["event.reason"]) == ("fw1", "tcp-fin")
    assert str(event.logsource) == "paloalto/firewall/traffic"


@pytest.mark.parametrize(
    ("line", "action", "outcome", "source", "user"),
    [
        (TRAFFIC.replace(",allow,", ",deny,"), "packet_denied", None, "10.0.0.5", "city\\ann"),
        (THREAT, "vulnerability_denied", None, "10.0.0.5", "city\\ann"),
        (SYSTEM, "device_login", "failure", "192.0.2.9", "admin"),
        (CONFIG, "device_config", "success", "192.0.2.9", "admin"),
        (VPN, "vpn_login", "failure", "192.0.2.9", "ann"),
        (VPN.replace(",failure,", ",success,"), "vpn_login", "success", "192.0.2.9", "ann"),
        (f"{FIRST},HIPMATCH,0,1,2024/05/01 12:00:01,x,y", "hipmatch_0", None, None, None),
    ],
)
def test_each_type_has_its_meaning(
    line: str, action: str, outcome: str | None, source: str | None, user: str | None
) -> None:
    fields = _read(line).fields

    assert fields["event.action"] == action
    assert fields.get("event.outcome") == outcome
    assert fields.get("source.ip") == source
    assert fields.get("user.name") == user


def test_a_threat_is_an_alert_with_its_signature() -> None:
    fields = _read(THREAT).fields

    assert (fields["event.kind"], fields["event.severity"]) == ("alert", 5)
    assert (fields["rule.id"], fields["rule.name"]) == ("91991", "Log4j RCE")
    assert fields["file.name"] == "a,b.exe"


@pytest.mark.parametrize(
    "head", ["<14>May  1 12:00:01 fw9 ", "<14>1 2024-05-01T12:00:01Z fw9 - - - - "]
)
def test_a_syslog_port_hands_the_line_on(head: str) -> None:
    event = _read(head + SYSTEM, syslog)

    assert event.logsource.product == "paloalto"
    assert event.fields["user.name"] == "admin"


def test_paloalto_keeps_the_promises_of_a_collector() -> None:
    samples = [line.encode() for line in (TRAFFIC, THREAT, SYSTEM, CONFIG, VPN)]
    assert looks_like_paloalto(b"\n".join(samples))
    check_collector(paloalto, samples, mutants_each=80)
