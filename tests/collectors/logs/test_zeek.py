"""Zeek: both forms of its logs."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime

import pytest

from cityward import Record
from collectors.logs.zeek import Zeek

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def _records(data: bytes) -> list[Record]:
    lines = data.split(b"\n")
    return [Record(line, "s", place, NOW) for place, line in enumerate(lines) if line]


def test_the_vertical_scan_is_fifty_flows(data):
    log = (data / "network/portscan_vertical_zeek_conn.log").read_bytes()

    found = list(Zeek()(_records(log)))

    fields = [event.fields for event in found]
    pairs = Counter((one["source.ip"], one["destination.ip"]) for one in fields)
    assert len(found) == 50
    assert pairs[("192.168.1.9", "45.33.32.156")] == 46
    assert len({one["destination.port"] for one in fields}) == 44
    assert Counter(one["cw.vendor"]["conn_state"] for one in fields) == {
        "REJ": 43,
        "SF": 4,
        "RSTO": 3,
    }
    assert Counter(one["event.outcome"] for one in fields) == {"failure": 46, "success": 4}
    assert {str(event.logsource) for event in found} == {"zeek/flow/conn"}


def test_the_infected_windows_has_766_labelled_flows(data):
    log = (data / "network/ctu_win7_zeek_conn_labelled.log").read_bytes()

    found = list(Zeek()(_records(log)))

    flows = [event for event in found if event.fields["event.action"] == "flow_ended"]
    assert len(flows) == 766
    assert {event.fields["event.action"] for event in found} == {"flow_ended", "log_header"}
    assert Counter(event.fields["cw.vendor"]["label"] for event in flows) == {
        "Malicious": 719,
        "Benign": 44,
        "Unknown": 3,
    }
    first = flows[0].fields
    assert flows[0].time.isoformat() == "2023-02-22T00:00:03.714845+00:00"
    assert (first["source.ip"], first["destination.port"]) == ("192.168.1.107", 5888)
    assert (first["event.outcome"], first["event.duration"]) == ("failure", 37_629_000)


def test_a_header_is_remembered_over_batches_and_replaced_by_the_next():
    zeek = Zeek()
    head = b"#separator \\x09\n#path\tdns\n#fields\tts\tquery\n"
    list(zeek(_records(head)))

    (first,) = zeek(_records(b"1.5\ta.example"))
    list(zeek(_records(b"#fields\tquery\tts")))
    (second,) = zeek(_records(b"b.example\t2.5"))

    assert first.fields["dns.question.name"] == "a.example"
    assert second.fields["dns.question.name"] == "b.example"
    assert str(second.logsource) == "zeek/*/dns"


@pytest.mark.parametrize(
    "line", [b"1.5\ta.example\ttoo many", b"1.5", b"-\ta.example", b"x\ta.example"]
)
def test_a_broken_line_is_reported_and_the_next_is_read(line):
    zeek = Zeek()

    found = list(zeek(_records(b"#fields\tts\tquery\n" + line + b"\n1.5\tb.example")))

    assert [event.is_malformed for event in found] == [False, True, False]


def test_values_before_any_header_are_reported():
    (event,) = Zeek()(_records(b"1.5\ta.example"))

    assert event.fields["event.reason"] == "a line of values before any #fields header"


LOGS = [
    # line, service, fields
    (
        {"_path": "ssh", "ts": "2026-03-01T10:00:00.5Z", "auth_success": False, "client": "SSH-2"},
        ("ssh", {"event.action": "ssh_login", "event.outcome": "failure"}),
    ),
    (
        {"ts": 1.5, "uid": "C", "uri": "/x", "method": "GET", "status_code": 404},
        ("http", {"http.request.method": "GET", "event.outcome": "failure"}),
    ),
    (
        {"_path": "ssl", "ts": 1.5, "server_name": "a.example", "ja3": "abc"},
        ("ssl", {"tls.client.server_name": "a.example", "network.protocol": "tls"}),
    ),
    (
        {"_path": "notice", "ts": 1.5, "note": "Scan::Port", "src": "192.0.2.1", "p": 22},
        ("notice", {"event.kind": "alert", "rule.name": "Scan::Port", "source.ip": "192.0.2.1"}),
    ),
    (
        {"_path": "modbus", "ts": 1.5, "func": "READ_COILS", "unit": 3},
        ("modbus", {"ot.function.name": "READ_COILS", "ot.unit": "3"}),
    ),
    (
        {"_path": "weird", "ts": 1.5, "id.orig_h": "192.0.2.1", "name": "bad_checksum"},
        ("weird", {"source.ip": "192.0.2.1", "cw.vendor": {"name": "bad_checksum"}}),
    ),
]


@pytest.mark.parametrize(("line", "wanted"), LOGS, ids=[wanted[0] for _, wanted in LOGS])
def test_each_log_has_its_fields(line, wanted):
    (event,) = Zeek()(_records(json.dumps(line).encode()))

    assert event.logsource.service == wanted[0]
    assert {name: event.fields[name] for name in wanted[1]} == wanted[1]


def test_each_file_of_a_folder_has_its_own_header():
    lines = [
        ("zeek/conn.log", b"#path\tconn"),
        ("zeek/conn.log", b"#fields\tts\tid.orig_h"),
        ("zeek/dns.log", b"#path\tdns"),
        ("zeek/dns.log", b"#fields\tts\tquery"),
        ("zeek/conn.log", b"1.5\t192.0.2.1"),
        ("zeek/dns.log", b"1.5\ta.example"),
    ]

    events = list(Zeek()(Record(data, source, 0, NOW) for source, data in lines))

    assert (events[4].logsource.service, events[4].fields["source.ip"]) == ("conn", "192.0.2.1")
    assert (events[5].logsource.service, events[5].fields["dns.question.name"]) == (
        "dns",
        "a.example",
    )


def test_a_new_instance_goes_on_with_the_memory_of_the_one_before():
    before, after = Zeek(), Zeek()
    list(before(_records(b"#separator \\x7c\n#path|dns\n#fields|ts|query")))

    after.memory = json.loads(json.dumps(before.memory))
    (event,) = after(_records(b"1.5|a.example"))

    assert event.fields["dns.question.name"] == "a.example"
