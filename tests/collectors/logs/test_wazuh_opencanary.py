"""Alerts of Wazuh and touches of a decoy."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cityward import Event, Record
from cityward.checks import check_collector
from collectors.logs.opencanary import looks_like_opencanary, opencanary
from collectors.logs.syslog import syslog
from collectors.logs.wazuh import looks_like_wazuh, wazuh

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ALERT = {
    "timestamp": "2024-05-01T10:00:00.123+0200",
    "rule": {
        "level": 5,
        "description": "sshd: Attempt to login using a non-existent user",
        "id": "5710",
        "mitre": {"id": ["T1110.001"], "tactic": ["Credential Access"], "technique": ["Guessing"]},
        "groups": ["syslog", "sshd", "authentication_failed"],
    },
    "agent": {"id": "001", "name": "gw-1", "ip": "10.0.0.5"},
    "manager": {"name": "wz"},
    "id": "1714550400.1",
    "full_log": "May  1 10:00:00 gw-1 sshd[1]: Invalid user x from 192.0.2.9 port 5",
    "decoder": {"name": "sshd"},
    "data": {"srcip": "192.0.2.9", "srcport": "5", "srcuser": "x"},
    "location": "/var/log/auth.log",
}
TOUCH = {
    "dst_host": "10.0.0.9",
    "dst_port": 22,
    "local_time": "2024-05-01 12:00:00.123",
    "logdata": {"USERNAME": "root", "PASSWORD": "s3cret-word", "LOCALVERSION": "SSH-2.0-O"},
    "logtype": 4002,
    "node_id": "canary-1",
    "src_host": "192.0.2.9",
    "src_port": 4711,
    "utc_time": "2024-05-01 10:00:00.123",
}


def _read(line: dict[str, Any], collector: Any, head: bytes = b"") -> Event:
    event: Event
    (event,) = collector([Record(head + json.dumps(line).encode(), "s", 0, NOW)])
    return event


def test_an_alert_names_rule_agent_and_who_did_it() -> None:
    event = _read(ALERT, wazuh)

    fields = event.fields
    assert event.time == datetime(2024, 5, 1, 8, 0, 0, 123_000, tzinfo=UTC)
    assert (fields["event.kind"], fields["event.outcome"]) == ("alert", "failure")
    assert (fields["rule.id"], fields["event.severity"]) == ("5710", 5)
    assert (fields["host.name"], fields["host.ip"]) == ("gw-1", ["10.0.0.5"])
    assert (fields["source.ip"], fields["source.port"]) == ("192.0.2.9", 5)
    assert fields["user.name"] == "x"
    assert fields["threat.technique.id"] == ["T1110.001"]


def test_a_touch_of_a_decoy_names_who_and_no_password() -> None:
    event = _read(TOUCH, opencanary)

    fields = event.fields
    assert event.time == datetime(2024, 5, 1, 10, 0, 0, 123_000, tzinfo=UTC)
    assert (fields["event.action"], fields["event.outcome"]) == ("ssh_login", "failure")
    assert (fields["source.ip"], fields["destination.port"]) == ("192.0.2.9", 22)
    assert (fields["host.name"], fields["user.name"]) == ("canary-1", "root")
    assert "s3cret-word" not in repr(fields)
    assert fields["cw.vendor"]["password"] == "given, not kept"
    assert "root" in fields["event.original"]


def test_what_is_broken_gives_no_password_away() -> None:
    (event,) = opencanary([Record(json.dumps(TOUCH).encode()[:-5], "s", 0, NOW)])

    assert event.is_malformed
    assert event.fields["event.original"] == "left out: it may hold a password"


@pytest.mark.parametrize(
    ("kind", "action", "is_alert"),
    [
        (5001, "port_scan", True),
        (3000, "http_request", True),
        (77_777, "canary_touched", True),
        (1001, "canary_log", False),
    ],
)
def test_a_kind_has_its_action(kind: int, action: str, is_alert: bool) -> None:
    fields = _read({**TOUCH, "logtype": kind}, opencanary).fields

    assert fields["event.action"] == action
    assert (fields["event.kind"] == "alert") is is_alert


@pytest.mark.parametrize(
    ("line", "head", "product"),
    [
        (ALERT, b"<132>May  1 10:00:00 wz ossec: ", "wazuh"),
        (TOUCH, b"<14>May  1 10:00:00 c1 opencanaryd: ", "opencanary"),
        ({"EventID": 4625, "Channel": "Security"}, b"<14>May  1 10:00:00 dc1 nx: ", "windows"),
    ],
)
def test_a_syslog_port_hands_json_to_its_reader(
    line: dict[str, Any], head: bytes, product: str
) -> None:
    event = _read(line, syslog, head)

    assert event.logsource.product == product
    assert "log.syslog.priority" in event.fields


def test_both_keep_the_promises_of_a_collector() -> None:
    alert, touch = json.dumps(ALERT).encode(), json.dumps(TOUCH).encode()
    assert looks_like_wazuh(alert)
    assert looks_like_opencanary(touch)
    assert not looks_like_wazuh(touch)
    check_collector(wazuh, [alert])
    check_collector(opencanary, [touch])
