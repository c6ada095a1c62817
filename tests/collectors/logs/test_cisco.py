"""Cisco: what the messages of ASA and IOS mean, against Wazuh's cases."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.logs.cisco import cisco, looks_like_cisco
from tests.collectors.suites import wazuh_cases

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ARCHIVE = "logs/suite_wazuh_rule_tests.tar.gz"
NAMES = (
    "event.action",
    "event.outcome",
    "source.ip",
    "source.port",
    "destination.ip",
    "destination.port",
    "user.name",
)


def _read(line: str | bytes) -> Event:
    data = line.encode() if isinstance(line, str) else line
    (event,) = cisco([Record(data, "s", 0, NOW)])
    return event


A, B, C = "192.0.2.7", "10.0.0.1", "10.1.1.1"
MESSAGES: list[tuple[str, tuple[Any, ...]]] = [
    (
        f"%ASA-4-106100: access-list in denied tcp inside/{B}(4000) -> outside/{A}(80) hit-cnt 1",
        ("packet_denied", None, B, 4000, A, 80, None),
    ),
    (
        f"%ASA-6-106100: access-list in permitted udp in/{B}(4000) -> out/{A}(53) hit-cnt 1",
        ("packet_allowed", None, B, 4000, A, 53, None),
    ),
    (
        rf"%ASA-4-106023: Deny udp src out:{A}/22 (D\u) dst in:{B}/161 by access-group "
        '"out" [0x0, 0x0]',
        ("packet_denied", None, A, 22, B, 161, None),
    ),
    (
        f"%ASA-6-302013: Built outbound TCP connection 9 for out:{A}/22 ({A}/22) to "
        f"in:{B}/53496 ({B}/53496)",
        ("connection_started", None, B, 53496, A, 22, None),
    ),
    (
        f"%ASA-6-302015: Built inbound UDP connection 9 for out:2001:db8::1/5000 (x) to dmz:{B}/53",
        ("connection_started", None, "2001:db8::1", 5000, B, 53, None),
    ),
    (
        f"%ASA-6-302014: Teardown TCP connection 9 for out:{A}/53 to in:{B}/1032 duration "
        "1:00:02 bytes 526 TCP FINs",
        ("connection_ended", None, B, 1032, A, 53, None),
    ),
    (
        f"%ASA-6-302020: Built inbound ICMP connection for faddr {A}/0 gaddr 9.9.9.9/1 laddr {B}/1",
        ("connection_started", None, A, None, B, None, None),
    ),
    (
        "%ASA-6-113015: AAA user authentication Rejected : reason = Invalid password : local "
        f"database : user = ann : user IP = {A}",
        ("vpn_login", "failure", A, None, None, None, "ann"),
    ),
    (
        "%ASA-6-113012: AAA user authentication Successful : local database : user = ann",
        ("vpn_login", "success", None, None, None, None, "ann"),
    ),
    (
        f"%ASA-4-113019: Group = VPN, Username = ann, IP = {A}, Session disconnected. Session "
        "Type: SSL, Duration: 0h:01m:02s, Bytes xmt: 1, Bytes rcv: 2, Reason: User Requested",
        ("vpn_logout", None, A, None, None, None, "ann"),
    ),
    (
        f"%ASA-6-716039: Group <VPN> User <ann> IP <{A}> Authentication: rejected, Session Type: W",
        ("vpn_login", "failure", A, None, None, None, "ann"),
    ),
    (
        f"%ASA-5-713904: Group = {A}, IP = {A}, No crypto map bound to interface... dropping pkt",
        ("vpn_log", None, A, None, None, None, None),
    ),
    (
        f"%ASA-6-611102: User authentication failed: IP address: {A}, Uname: admin",
        ("device_login", "failure", A, None, None, None, "admin"),
    ),
    (
        f'%ASA-6-605004: Login denied from {A}/32597 to out:{B}/ssh for user "root"',
        ("device_login", "failure", A, 32597, B, 22, "root"),
    ),
    (
        f"%ASA-7-710005: UDP request discarded from {A}/68 to out:255.255.255.255/bootps",
        ("packet_denied", None, A, 68, "255.255.255.255", 67, None),
    ),
    (
        f"%ASA-4-733101: [ {A}] is attacking. Current burst rate is 1 per second",
        ("threat_detected", None, A, None, None, None, None),
    ),
    (
        f"%ASA-5-111010: User 'ann', running 'CLI' from IP {A}, executed 'no logging'",
        ("device_command", None, A, None, None, None, "ann"),
    ),
    (
        f"%SYS-5-CONFIG_I: Configured from console by admin on vty0 ({C})",
        ("device_config", None, C, None, None, None, "admin"),
    ),
    (
        f"%SEC_LOGIN-4-LOGIN_FAILED: Login failed [user: admin] [Source: {A}] [localport: 22] "
        "[Reason: Login Authentication Failed] at 18:46:11 UTC Sat Mar 1 2025",
        ("device_login", "failure", A, None, None, None, "admin"),
    ),
    (
        f"%SEC_LOGIN-5-LOGIN_SUCCESS: Login Success [user: admin] [Source: {A}] [localport: 22]",
        ("device_login", "success", A, None, None, None, "admin"),
    ),
    (
        f"%SSH-5-SSH2_USERAUTH: User 'bob' authentication for SSH2 Session from {A} (tty = 0) "
        "using crypto cipher 'aes', hmac 'x' Failed",
        ("device_login", "failure", A, None, None, None, "bob"),
    ),
    (
        f"%SYS-6-LOGOUT: User admin has exited tty session 2({C})",
        ("device_logout", None, C, None, None, None, "admin"),
    ),
    (
        f"%SEC-6-IPACCESSLOGDP: list OUT denied icmp {A} -> {B} (8/0), 1 packet",
        ("packet_denied", None, A, None, B, None, None),
    ),
    (
        f"%SEC-6-IPACCESSLOGS: list 1 permitted {A} 1 packet",
        ("packet_allowed", None, A, None, None, None, None),
    ),
    (
        "%IPV6_ACL-6-ACCESSLOGP: list V6/10 denied tcp 2001:db8::1(3000) -> 2001:db8::2(22), 1 p",
        ("packet_denied", None, "2001:db8::1", 3000, "2001:db8::2", 22, None),
    ),
    ("%OSPF-5-ADJCHG: Process 1, Nbr 1.1.1.1", ("log", None, None, None, None, None, None)),
]


@pytest.mark.parametrize(("message", "meaning"), MESSAGES)
def test_a_message_has_its_meaning(message: str, meaning: tuple[Any, ...]) -> None:
    event = _read(f"<166>Oct 14 2024 13:46:40 fw1 : {message}")

    assert tuple(event.fields.get(name) for name in NAMES) == meaning
    assert event.time == datetime(2024, 10, 14, 13, 46, 40, tzinfo=UTC)
    assert (event.fields["host.name"], event.fields["log.syslog.priority"]) == ("fw1", 166)


def test_a_link_that_goes_down_says_which_and_how() -> None:
    event = _read("%LINK-3-UPDOWN: Interface GigabitEthernet0/1, changed state to down")

    assert event.fields["event.reason"] == "GigabitEthernet0/1 is down"
    assert (event.fields["event.code"], event.fields["event.severity"]) == ("LINK-UPDOWN", 3)


HEADS = [
    ("<189>123: router1: *Mar  1 2025 18:46:11.123 CET: ", "router1"),
    ("<189>124: Mar  1 2025 18:46:11.123: ", None),
    ("<189>Mar  1 2025 18:46:11 sw1 131: ", "sw1"),
    ("Mar  1 2025 18:46:11 sw1 ", "sw1"),
    ("<189>1 2025-03-01T18:46:11Z sw1 - - - - : ", "sw1"),
]


@pytest.mark.parametrize(("head", "host"), HEADS)
def test_each_head_of_a_message_is_read(head: str, host: str | None) -> None:
    event = _read(head + "%SYS-5-CONFIG_I: Configured from console by console")

    assert event.time.replace(microsecond=0) == datetime(2025, 3, 1, 18, 46, 11, tzinfo=UTC)
    assert event.fields.get("host.name") == host
    assert "process.name" not in event.fields


SEVERITY = {"64001": "1", "64002": "2", "64003": "3", "64004": "4", "64005": "56", "64006": "7"}
"""Wazuh's general rules tell the severities apart."""
MEANT = {
    "64007": ("device_login", "failure"),
    "64008": ("account_changed", None),
    "64009": ("device_login", "success"),
    "64010": ("device_login", "failure"),
    "64011": ("threat_detected", None),
    "64012": ("threat_denied", None),
    "64013": ("packet_denied", None),
    "64017": ("threat_denied", None),
    "64018": ("vpn_login", "failure"),
    "64019": ("vpn_login", "success"),
    "64020": ("account_locked", None),
    "64022": ("link_state", None),
    "64023": ("device_config", None),
    "64024": ("device_config", None),
    "64025": ("device_command", None),
    "64026": ("device_command", None),
    "64027": ("account_changed", None),
    "20100": ("threat_detected", None),
    "4100": ("packet_denied", None),
}
"""Its particular rules, and what our event says of the same."""
DIFFERENT = {"64021": "refusing new connections is a state of the device, kept with its code"}


@pytest.mark.parametrize(("file", "lines"), [("cisco_asa.ini", 87), ("cisco_ios.ini", 5)])
def test_wazuh_and_we_agree_on_every_line(data: Path, file: str, lines: int) -> None:
    cases = wazuh_cases(data / ARCHIVE, file)
    agree, differ = 0, set()

    for case in cases:
        fields = _read(case.line).fields
        if case.rule in SEVERITY:
            same = str(fields["event.severity"]) in SEVERITY[case.rule]
        else:
            said = (fields["event.action"], fields.get("event.outcome"))
            same = said == MEANT.get(case.rule)
        agree += same
        differ |= set() if same else {case.rule}

    print(f"{file}: {agree}/{len(cases)} agree with Wazuh")
    assert len(cases) == lines
    assert differ <= set(DIFFERENT)
    assert agree / len(cases) >= 0.97


def test_the_ends_of_every_line_that_names_two_are_read(data: Path) -> None:
    cases = wazuh_cases(data / ARCHIVE, "cisco_asa.ini")

    missing = [
        case.line
        for case in cases
        if b" from " in case.line and b" to " in case.line and b"https:" not in case.line
        if "destination.ip" not in _read(case.line).fields
    ]

    assert missing == []


def test_cisco_keeps_the_promises_of_a_collector() -> None:
    samples = [f"<166>Oct 14 2024 13:46:40 fw1 : {message}".encode() for message, _ in MESSAGES]
    assert looks_like_cisco(b"\n".join(samples))
    check_collector(cisco, samples, mutants_each=40)


def test_a_long_message_takes_no_long_time() -> None:
    for part in ("from ", "a" * 64 + "/", "User ", "from x:1.1.1.1 ", "(" * 40):
        _read("%ASA-6-302013: " + part * 20_000)
