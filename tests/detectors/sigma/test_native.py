"""Rules of SigmaHQ over what our collectors make: their names, their log sources."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cityward.event import Event, LogSource, Record
from collectors.logs.windows import windows
from detectors.sigma.engine import Engine
from detectors.sigma.filter import covers
from detectors.sigma.load import load_folder
from detectors.sigma.native import OURS, elsewhere
from detectors.sigma.view import View
from tests.detectors.sigma.city import engine, event, rule_of
from tests.detectors.sigma.test_truth import cases, unpacked

NOW = datetime(2026, 1, 5, tzinfo=UTC)


@pytest.mark.slow
def test_sigmahq_regression_data_through_our_collector_all_202_of_202(data: Path, tmp_path: Path):
    folder = unpacked(data, "sigmahq_regression", tmp_path)
    engine = Engine(load_folder(folder / "rules_under_test"))
    wrong, tried = [], 0

    for case in cases(folder):
        tried += 1
        lines = [json.dumps(event).encode() for event in case["events"]]
        events = list(windows(Record(line, "pc", at, NOW) for at, line in enumerate(lines)))
        found = [one for one in engine.detect(events) if one.analytic.id == case["rule_id"]]
        if not found:
            wrong.append((case["case"], [str(event.logsource) for event in events]))

    assert (tried, wrong) == (202, [])


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"cw.vendor": {"Image": "a.exe"}}, "Image", "a.exe"),
        ({"cw.vendor": {"Image": "b.exe"}, "Image": "a.exe"}, "Image", "a.exe"),
        ({"url.query": "id=1"}, "cs-uri-query", "id=1"),
        ({"http.response.status_code": 404}, "sc-status", 404),
        ({"destination.domain": "a.example"}, "r-dns", "a.example"),
        ({"url.domain": "b.example", "destination.domain": "a"}, "cs-host", "b.example"),
    ],
)
def test_a_sources_own_name_finds_what_we_keep(fields, name, value):
    view = View(fields)

    assert view.has(name)
    assert list(view.values(name)) == [value]


def test_a_field_of_ours_is_looked_for_nowhere_else():
    view = View({"cw.vendor": {"source.ip": "192.0.2.1"}})

    assert elsewhere("source.ip") == ()
    assert not view.has("source.ip")
    assert list(view.values("source.ip")) == []


def test_every_field_that_stands_for_another_is_in_the_table():
    from cityward.fields import FIELDS

    assert [name for names in OURS.values() for name in names if name not in FIELDS] == []


@pytest.mark.parametrize(
    ("wanted", "given", "is_covered"),
    [
        ("registry_event", "registry_set", True),
        ("registry_event", "registry_event", True),
        ("registry_set", "registry_event", False),
        ("", "registry_set", True),
        ("registry_event", "Registry_Set", True),
        ("file_event", "FILE_EVENT", True),
    ],
)
def test_a_narrower_category_is_part_of_a_wider_one(wanted, given, is_covered):
    assert covers(LogSource(category=wanted), LogSource(category=given)) is is_covered


def test_however_an_event_writes_its_log_source_all_say_the_same_of_it():
    one = engine(rule_of("  s: {f: a}\n  condition: s\n"))
    seen = event(0.0, LogSource(service="TEST"), f="a")
    (rule,) = one.rules.rules

    assert len(list(one.detect([seen]))) == 1
    assert one.matches(rule, seen)
    assert [check.selection for check in one.explain(rule, seen).checks] == ["s"]
    assert one.states()[0].arriving


def test_a_deleted_key_is_known_by_what_the_event_says():
    line = json.dumps(
        {
            "Channel": "Microsoft-Windows-Sysmon/Operational",
            "EventID": 12,
            "EventType": "DeleteValue",
            "TargetObject": "HKLM\\X",
        }
    )

    (event,) = windows([Record(line.encode(), "pc", 1, NOW)])

    assert isinstance(event, Event)
    assert event.logsource.category == "registry_delete"
