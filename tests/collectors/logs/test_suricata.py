"""Suricata: alerts and the rest of EVE."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from cityward import Record
from collectors.logs.suricata import suricata
from tests.collectors.suites import crowdsec

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def _read(lines):
    return list(suricata(Record(line, "s", place, NOW) for place, line in enumerate(lines)))


def _one(**line):
    said = {"timestamp": "2026-03-01T10:00:00.5+0000", "event_type": "alert", **line}
    (event,) = _read([json.dumps(said).encode()])
    return event


def test_crowdsec_and_we_find_the_same_alerts(data):
    lines, expected = crowdsec(
        data / "logs/suite_crowdsec_hub_tests.tar.gz", "suricata-logs-evelog"
    )

    found = _read(lines)

    assert [event.fields["event.dataset"] for event in found] == [
        "suricata.alert",
        "suricata.alert",
        "suricata.flow",
        "suricata.stats",
        "suricata.alert",
        "suricata.flow",
        "suricata.stats",
        "suricata.alert",
    ]
    for event, want in zip(found, expected, strict=True):
        fields = event.fields
        assert (fields["event.kind"] == "alert" if want["ok"] == "true" else True) is True
        if want["ok"] == "true":
            assert fields["source.ip"] == want["source_ip"]
            assert fields["destination.ip"] == want["dest_ip"]
            assert str(fields["destination.port"]) == want["dest_port"]
            assert fields["network.transport"] == want["proto"].lower()
            assert fields["rule.id"] == want["suricata_alert_signature_id"]
            assert fields["rule.name"] == want["suricata_alert_signature"]
            assert fields["rule.version"] == want["suricata_alert_signature_rev"]
            assert str(fields["event.severity"]) == want["suricata_rule_severity"]
            assert str(fields["cw.vendor"]["flow_id"]) == want["suricata_flow_id"]
            assert event.time.isoformat() == f"{want['time']}+00:00"


def test_the_alerts_of_the_log_have_their_severities(data):
    lines = (data / "logs/suricata_eve_alerts.log").read_bytes().split(b"\n")

    found = _read(line for line in lines if line)

    assert [(e.fields["source.ip"], e.fields["event.severity"]) for e in found] == [
        ("1.2.3.4", 1),
        ("2.2.3.4", 2),
        ("2.2.3.4", 2),
        ("2.2.3.4", 2),
    ]
    assert {str(e.logsource) for e in found} == {"suricata/*/alert"}


def test_a_flow_says_whether_it_was_answered():
    def flow(packets, tcp):
        counted = {"pkts_toserver": 2, "pkts_toclient": packets, "bytes_toserver": 108}
        times = {"start": "2026-03-01T10:00:00+0000", "end": "2026-03-01T10:00:01.5+0000"}
        return _one(event_type="flow", flow={**counted, **times, "reason": "timeout"}, tcp=tcp)

    answered, refused, silent = flow(1, {}), flow(1, {"rst": True}), flow(0, {})

    assert [e.fields["event.outcome"] for e in (answered, refused, silent)] == [
        "success",
        "failure",
        "failure",
    ]
    assert answered.fields["event.action"] == "flow_ended"
    assert answered.fields["event.duration"] == 1_500_000_000
    assert answered.fields["source.packets"] == 2
    assert str(answered.logsource) == "suricata/flow/flow"


def test_techniques_of_a_rule_are_named():
    metadata = {"mitre_technique_id": ["T1190"], "mitre_tactic_id": ["TA0001"]}

    event = _one(alert={"signature_id": 5, "action": "blocked", "metadata": metadata})

    assert event.fields["threat.technique.id"] == ["T1190"]
    assert event.fields["threat.tactic.id"] == ["TA0001"]
    assert event.fields["threat.framework"] == "attack-enterprise"
    assert event.fields["event.type"] == ["denied"]


def test_the_question_of_a_dns_record_is_found_in_both_versions():
    old = _one(event_type="dns", dns={"type": "query", "rrname": "a.example", "rrtype": "A"})
    new = _one(event_type="dns", dns={"queries": [{"rrname": "a.example", "rrtype": "A"}]})

    assert old.fields["dns.question.name"] == "a.example"
    assert new.fields["dns.question.name"] == "a.example"


def test_modbus_is_process_control():
    event = _one(
        event_type="modbus",
        modbus={"request": {"unit_id": 3, "function_raw": 6, "function_code": "WrSingleReg"}},
    )

    assert event.fields["ot.unit"] == "3"
    assert event.fields["ot.function.code"] == "6"
    assert event.fields["event.category"] == ["network", "process_control"]


def test_values_of_a_wrong_type_go_to_the_vendor():
    event = _one(src_ip="10.0.0.300", src_port=-1, dest_port="80", proto=["TCP"])

    assert "source.ip" not in event.fields
    assert "source.port" not in event.fields
    assert event.fields["destination.port"] == 80
    assert event.fields["cw.vendor"]["src_ip"] == "10.0.0.300"
    assert event.fields["cw.vendor"]["src_port"] == -1
    assert event.fields["cw.vendor"]["proto"] == '["TCP"]'


def test_a_broken_line_is_reported_and_the_next_is_read():
    good = b'{"timestamp":"2026-03-01T10:00:00Z","event_type":"anomaly"}'

    found = _read([b'{"timestamp":', b"[]", b'{"timestamp":"x","event_type":"a"}', good])

    assert [event.is_malformed for event in found] == [True, True, True, False]


@pytest.mark.parametrize("agent", [b"\\ud800", b"\xff\xfe", b"\x00", b"\x07"])
def test_a_sender_cannot_make_an_alert_unreadable(agent):
    line = (
        b'{"timestamp":"2026-03-01T10:00:00Z","event_type":"alert","alert":{"signature_id":7},'
        b'"http":{"http_user_agent":"a' + agent + b'b"}}'
    )

    (event,) = _read([line])

    assert event.fields["rule.id"] == "7"
    assert event.fields["user_agent.original"].startswith("a")
    event.fields["user_agent.original"].encode()
