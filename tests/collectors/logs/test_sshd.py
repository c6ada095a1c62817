"""sshd: who logged in, who failed, against the labels of three other projects."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from cityward import Event, Record
from collectors.logs.sshd import sshd
from tests.collectors.suites import crowdsec, wazuh

NOW = datetime(2005, 8, 14, 12, 0, tzinfo=UTC)

NO_ADDRESS = "the line names no address; fail2ban remembers it from an earlier line of the process"
MODE = "fail2ban labels the same line as failure in its aggressive mode, and so do we"
USERS = "fail2ban remembers the other user that the process tried before"
MISSES = {
    173: NO_ADDRESS,
    175: MODE,
    203: NO_ADDRESS,
    208: NO_ADDRESS,
    250: USERS,
    252: USERS,
    262: USERS,
    271: MODE,
    289: NO_ADDRESS,
    295: NO_ADDRESS,
    301: NO_ADDRESS,
    322: NO_ADDRESS,
    324: NO_ADDRESS,
    354: "closed without a fault of its own; fail2ban remembers the fault of an earlier line",
    359: NO_ADDRESS,
    388: NO_ADDRESS,
    390: NO_ADDRESS,
    396: NO_ADDRESS,
}
"""Lines of the labelled file on which we differ, and why; our collector remembers nothing."""

LABEL = "# failJSON:"


def _read(line: bytes, now: datetime = NOW) -> Event:
    (event,) = sshd([Record(line, "s", 0, now)])
    return event


def _host(event: Event) -> str | None:
    return event.fields.get("source.ip") or event.fields.get("source.domain")


def _is_failure(event: Event) -> bool:
    fields = event.fields
    failed = fields.get("event.outcome") == "failure" and _host(event) is not None
    return failed and fields["event.category"] == ["authentication"]


def _agrees(label: dict[str, object], event: Event) -> bool:
    if _is_failure(event) is not label["match"]:
        return False
    if not label["match"]:
        return True
    time = datetime.fromisoformat(str(label["time"])).replace(tzinfo=UTC)
    if event.record.data[:2] in (b"20", b"<3"):
        time -= timedelta(hours=2)  # labels are in the local time of the source's test machine
    return (
        event.time.replace(microsecond=0) == time
        and label.get("host", _host(event)) == _host(event)
        and label.get("user", "") in (event.fields.get("user.name", ""), "")
    )


def test_fail2ban_and_we_agree_on_every_label_but_the_named_ones(data):
    lines = (data / "logs/sshd_fail2ban_labelled.log").read_text().split("\n")
    labels = [number for number, line in enumerate(lines) if line.startswith(LABEL)]
    misses = []

    for number in labels:
        at = next(n for n in range(number + 1, len(lines)) if lines[n][:1] not in ("", "#"))
        event = _read(lines[at].encode())
        assert event.fields["event.action"] != "ssh_log", lines[at]
        if not _agrees(json.loads(lines[number].removeprefix(LABEL)), event):
            misses.append(at + 1)

    assert len(labels) == 155
    assert misses == sorted(MISSES)


@pytest.mark.parametrize("case", ["sshd-logs", "opnsense-sshd"])
def test_crowdsec_and_we_find_the_same_address_and_user(data, case):
    lines, expected = crowdsec(data / "logs/suite_crowdsec_hub_tests.tar.gz", case)

    found = [_read(line) for line in lines]

    wanted = [(want.get("source_ip"), want.get("target_user")) for want in expected]
    ours = [(event.fields.get("source.ip"), event.fields.get("user.name")) for event in found]
    read = [(got, want) for got, want in zip(ours, wanted, strict=True) if want[0]]
    assert len(read) >= 5
    # A user that CrowdSec does not name is no contradiction.
    assert [(got, want) for got, want in read if got != (want[0], want[1] or got[1])] == []


def test_a_closed_session_is_no_failure_as_crowdsec_says(data):
    lines, expected = crowdsec(data / "logs/suite_crowdsec_hub_tests.tar.gz", "sshd-logs-fp")

    found = [_read(line) for line in lines]

    assert {want["ok"] for want in expected} == {"false"}
    assert {(event.fields["event.action"], _is_failure(event)) for event in found} == {
        ("ssh_session", False)
    }


def test_every_sshd_line_of_wazuh_is_read(data):
    lines = wazuh(data / "logs/suite_wazuh_rule_tests.tar.gz", " sshd")

    found = [_read(line) for line in lines]

    assert len(found) == 50
    assert [event.record.data for event in found if event.is_malformed] == []
    assert {event.fields["process.name"] for event in found} <= {"sshd", "sshd(pam_unix)"}


def test_the_brute_force_log_is_six_invalid_users_of_one_address(data):
    lines = (data / "logs/sshd_bruteforce.log").read_bytes().split(b"\n")

    found = [_read(line) for line in lines if line]

    assert [event.fields["user.name"] for event in found] == [
        "pascal",
        "pascal1",
        "pascal2",
        "pascal3",
        "pascal4",
        "pascal5",
    ]
    assert {event.fields["source.ip"] for event in found} == {"35.188.49.176"}
    assert {event.fields["event.reason"] for event in found} == {"invalid user"}


MESSAGES = [
    # message, action, outcome, user, address, port
    (
        "Accepted publickey for git from 192.0.2.1 port 57904 ssh2: RSA SHA256:abc",
        ("ssh_login", "success", "git", "192.0.2.1", 57904),
    ),
    (
        "Accepted password for a b from 192.0.2.1 port 1 ssh2",
        ("ssh_login", "success", "a b", "192.0.2.1", 1),
    ),
    (
        "Failed password for root from 192.0.2.1 port 22 ssh2",
        ("ssh_login", "failure", "root", "192.0.2.1", 22),
    ),
    (
        "Failed password for invalid user x from 9.9.9.9 from 192.0.2.1 port 2 ssh2",
        ("ssh_login", "failure", "x from 9.9.9.9", "192.0.2.1", 2),
    ),
    (
        "Failed none for root from 192.0.2.1 port 36942 ssh2",
        ("ssh_method_refused", "unknown", "root", "192.0.2.1", 36942),
    ),
    (
        "Invalid user  from 192.0.2.68 port 34916",
        ("ssh_login", "failure", None, "192.0.2.68", 34916),
    ),
    (
        "Connection closed by authenticating user t 127.0.0.1 port 5 192.0.2.11 port 46039 "
        "[preauth]",
        ("ssh_disconnect", "failure", "t 127.0.0.1 port 5", "192.0.2.11", 46039),
    ),
    (
        "Disconnected from user a 192.0.2.1 port 43042",
        ("ssh_disconnect", "unknown", "a", "192.0.2.1", 43042),
    ),
    (
        "drop connection #10 from [192.0.2.1]:50 on [192.0.2.2]:22 past MaxStartups",
        ("ssh_connection", "failure", None, "192.0.2.1", 50),
    ),
    (
        "Bad protocol version identification 'x' from 6.6.6.6' from 192.0.2.1 port 3",
        ("ssh_protocol_fault", "failure", None, "192.0.2.1", 3),
    ),
    (
        "Failed password for a from 192.0.2.1 port 99999 ssh2",
        ("ssh_login", "failure", "a", "192.0.2.1", None),
    ),
    ("Something new", ("ssh_log", None, None, None, None)),
]


@pytest.mark.parametrize(("message", "meaning"), MESSAGES)
def test_a_message_has_its_meaning(message, meaning):
    event = _read(f"Feb 12 14:10:21 gw sshd[1]: {message}".encode())

    names = ("event.action", "event.outcome", "user.name", "source.ip", "source.port")
    assert tuple(event.fields.get(name) for name in names) == meaning


def test_a_name_instead_of_an_address_is_a_domain():
    event = _read(b"Feb 12 14:10:21 gw sshd[1]: Invalid user a from host.example port 7")

    assert event.fields["source.domain"] == "host.example"
    assert "source.ip" not in event.fields
