"""Syslog: every form of envelope, and who reads the message."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cityward import Record
from collectors.logs.envelope import envelope
from collectors.logs.syslog import syslog
from tests.collectors.suites import members, wazuh

NOW = datetime(2026, 1, 25, 12, 0, tzinfo=UTC)

FORMS = [
    # line, time, host, app, pid, message
    (
        b"Feb 12 14:10:21 gw sshd[16378]: Invalid user a",
        "2025-02-12T14:10:21+00:00",
        ("gw", "sshd", 16378, "Invalid user a"),
    ),
    (b"<34>Oct 11 22:14:15 m su: x", "2025-10-11T22:14:15+00:00", ("m", "su", None, "x")),
    (b"Jan 26 11:00:00 gw a: tomorrow", "2026-01-26T11:00:00+00:00", ("gw", "a", None, "tomorrow")),
    (
        b"Jan 27 00:00:00 gw a: last year",
        "2025-01-27T00:00:00+00:00",
        ("gw", "a", None, "last year"),
    ),
    (b"Feb 29 00:00:00 gw a: leap", "2024-02-29T00:00:00+00:00", ("gw", "a", None, "leap")),
    (b"Jan  5 2020 01:31:41 gw a: x", "2020-01-05T01:31:41+00:00", ("gw", "a", None, "x")),
    (b"Jan  5 01:31:41 2020 gw a: x", "2020-01-05T01:31:41+00:00", ("gw", "a", None, "x")),
    (b"Jan  5 01:31:41.25 gw a: x", "2026-01-05T01:31:41.250000+00:00", ("gw", "a", None, "x")),
    (b"Jan  5 01:31:41 UTC: gw a: x", "2026-01-05T01:31:41+00:00", ("gw", "a", None, "x")),
    (b"Jan  5 01:31:41 gw gw a[2]: x", "2026-01-05T01:31:41+00:00", ("gw", "a", 2, "x")),
    (
        b"Jan 5 11:15:05 kernel: [ 1.000001] x",
        "2026-01-05T11:15:05+00:00",
        ("", "kernel", None, "[ 1.000001] x"),
    ),
    (
        b"Mar  3 00:17:22 [sshd]: User root",
        "2025-03-03T00:17:22+00:00",
        ("", "sshd", None, "User root"),
    ),
    (
        b"Mar  3 00:17:22 [sshd] User root",
        "2025-03-03T00:17:22+00:00",
        ("", "sshd", None, "User root"),
    ),
    (
        b"Nov 11 22:46:29 h sshd(pam_unix)[15794]: 2 more",
        "2025-11-11T22:46:29+00:00",
        ("h", "sshd(pam_unix)", 15794, "2 more"),
    ),
    (
        b"Jul  3 14:59:17 h sshd-session[1571]: x",
        "2025-07-03T14:59:17+00:00",
        ("h", "sshd-session", 1571, "x"),
    ),
    (
        b"Jan  1 00:00:00 h last message repeated 3 times",
        "2026-01-01T00:00:00+00:00",
        ("h", "", None, "last message repeated 3 times"),
    ),
    (
        b"<189>123: *Mar 1 18:46:11.123: %SYS-5-CONFIG_I: by vty0",
        "2025-03-01T18:46:11.123000+00:00",
        ("", "%SYS-5-CONFIG_I", None, "by vty0"),
    ),
    (
        b"2023-11-14T00:20:42.738197+01:00 srv sshd[1]: x",
        "2023-11-13T23:20:42.738197+00:00",
        ("srv", "sshd", 1, "x"),
    ),
    (
        b"2020-03-23 06:47:42.801612-0700  localhost sshd[3186]: x",
        "2020-03-23T13:47:42.801612+00:00",
        ("localhost", "sshd", 3186, "x"),
    ),
    (
        b"2016-10-06T00:17:09.669794202Z stdout F hello",
        "2016-10-06T00:17:09.669794+00:00",
        ("", "", None, "hello"),
    ),
    (b"1700000000.123 h sshd[3]: x", "2023-11-14T22:13:20.123000+00:00", ("h", "sshd", 3, "x")),
    (
        b'<38>1 2019-07-08T17:40:17.95-04:00 h.example sshd 555 - [a@1 b="[c]"][d e="\\"]"] x y',
        "2019-07-08T21:40:17.950000+00:00",
        ("h.example", "sshd", 555, "x y"),
    ),
    (b"<38>1 - - - - - -", "2026-01-25T12:00:00+00:00", ("", "", None, "")),
    (b"<13>hello", "2026-01-25T12:00:00+00:00", ("", "", None, "hello")),
    (
        b"[50028442.088484] IN=eth0",
        "2026-01-25T12:00:00+00:00",
        ("", "kernel", None, "[50028442.088484] IN=eth0"),
    ),
    (
        b'{"log":"Oct 30 10:09:23 gw a[1]: x\\n","time":"2023-11-14T00:20:42.7Z"}',
        "2025-10-30T10:09:23+00:00",
        ("gw", "a", 1, "x"),
    ),
    (
        b'{"log":"bare\\n","time":"2023-11-14T00:20:42.7Z"}',
        "2023-11-14T00:20:42.700000+00:00",
        ("", "", None, "bare"),
    ),
    (
        b"Dec 31 23:59:60 gw a: leap second",
        "2025-12-31T23:59:59+00:00",
        ("gw", "a", None, "leap second"),
    ),
]


@pytest.mark.parametrize(("line", "time", "parts"), FORMS, ids=[str(n) for n in range(len(FORMS))])
def test_the_envelope_of_every_form_is_read(line, time, parts):
    found = envelope(line, NOW)

    assert (found.time.isoformat(), (found.host, found.app, found.pid, found.message)) == (
        time,
        parts,
    )


def test_a_priority_is_a_facility_and_a_severity():
    found = envelope(b"<34>Oct 11 22:14:15 m su: x", NOW)

    assert (found.facility, found.severity) == ("auth", "crit")
    assert envelope(b"<999>Oct 11 22:14:15 m su: x", NOW).priority is None


@pytest.mark.parametrize(
    "line", [b"", b"no structure", b"Feb 30 10:00:00 h a: x", b"Foo 12 10:00:00 h a: x", b"{}"]
)
def test_a_line_without_structure_is_reported_and_the_next_is_read(line):
    lines = [line, b"Feb 12 14:10:21 gw app[3]: fine"]

    bad, good = syslog(Record(data, "s", place, NOW) for place, data in enumerate(lines))

    assert bad.is_malformed
    assert bad.fields["event.reason"]
    assert good.fields["message"] == "fine"


def test_a_repeated_message_is_as_many_events_and_no_more_than_fifty():
    def line(times: bytes) -> Record:
        said = b"message repeated " + times + b" times: [ Failed password for a from 192.0.2.1]"
        return Record(b"Jun 12 16:20:12 leto sshd[4]: " + said, "s", 0, NOW)

    three, many = list(syslog([line(b"3")])), list(syslog([line(b"999999999")]))

    assert [event.number for event in three] == [0, 1, 2]
    assert {event.fields["source.ip"] for event in three} == {"192.0.2.1"}
    assert {event.fields["cw.vendor"]["repeated"] for event in many} == {999_999_999}
    assert len(many) == 50


def test_each_program_has_its_reader_and_the_rest_is_kept():
    lines = [
        b"Jun 12 16:20:12 h sshd[4]: Invalid user a from 192.0.2.1 port 1",
        b"Jun 12 16:20:12 h kernel: DROP IN=eth0 OUT= SRC=192.0.2.1 DST=192.0.2.2 PROTO=UDP",
        b"Jun 12 16:20:12 h kernel: eth0: link up",
        b'Jun 12 16:20:12 h suricata[9]: {"timestamp":"2022-07-12T06:22:33+0000",'
        b'"event_type":"alert","src_ip":"192.0.2.1","alert":{"signature_id":1}}',
        b"Jun 12 16:20:12 h cron[7]: (root) CMD (x)",
    ]

    found = list(syslog(Record(data, "s", place, NOW) for place, data in enumerate(lines)))

    assert [event.fields["event.action"] for event in found] == [
        "ssh_login",
        "packet_denied",
        "log",
        "suricata_alert",
        "log",
    ]
    assert [event.logsource.service for event in found] == [
        "sshd",
        "netfilter",
        "syslog",
        "alert",
        "syslog",
    ]
    assert {event.fields["host.name"] for event in found} == {"h"}


def test_lines_of_many_products_have_an_envelope_with_a_time(data):
    archive = data / "logs/suite_wazuh_rule_tests.tar.gz"
    assert len([name for name in members(archive) if name.endswith(".ini")]) == 39
    lines = [line for line in wazuh(archive, " ") if line[:4].isalpha() or line[3:4] == b" "]
    lines = [line for line in lines if line[:3] in MONTHS]

    found = list(syslog(Record(line, "s", 0, NOW) for line in lines))

    assert len(lines) == 99
    assert [event.record.data for event in found if event.is_malformed] == []
    assert {event.fields["cw.time_source"] for event in found} == {"source"}


MONTHS = (
    b"Jan",
    b"Feb",
    b"Mar",
    b"Apr",
    b"May",
    b"Jun",
    b"Jul",
    b"Aug",
    b"Sep",
    b"Oct",
    b"Nov",
    b"Dec",
)
