"""`cityward rule`: what it prints, and how it leaves."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from siem.cli import run
from siem.samples import collect

LINE = "Jan  5 10:00:00 gw sshd[1]: Failed password for root from 192.0.2.1 port 5 ssh2"

RULE = """\
title: Root fails to log in
id: 6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11
description: Somebody tried root.
author: me
tags: [attack.t1110.001]
logsource: {product: linux, service: sshd}
detection:
  login: {event.action: ssh_login, user.name: root}
  condition: login
falsepositives: [Me.]
level: low
taxonomy: cityward
cityward: {sentence: "{source.ip} tried root."}
"""
SAMPLES = f"""\
cases:
  - {{name: tried, kind: must match, events: [{{event.action: ssh_login, user.name: root}}]}}
  - {{name: tried in the log, kind: must match, collector: sshd, records: ["{LINE}"]}}
  - {{name: me, kind: near miss, events: [{{event.action: ssh_login, user.name: me}}]}}
  - {{name: session, kind: near miss, events: [{{event.action: ssh_session, user.name: root}}]}}
  - {{name: nothing, kind: ordinary, events: [{{event.action: ssh_session}}]}}
  - {{name: more of it, kind: ordinary, events: [{{event.action: ssh_connection}}]}}
"""


def write(folder: Path, rule: str = RULE, samples: str = SAMPLES) -> Path:
    file = folder / "root.yml"
    file.write_text(rule)
    (folder / "root.test.yml").write_text(samples)
    return file


def rows(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    out = capsys.readouterr().out
    return [msgspec.json.decode(line) for line in out.splitlines()]


def from_standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_a_good_rule_has_nothing_to_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path)

    assert run(["rule", "check", str(file), "-o", "table"]) == 0
    assert capsys.readouterr().out == "Nothing is wrong.\n"


def test_a_fault_is_told_with_file_and_line_and_leaves_with_four(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, RULE.replace("user.name: root", "user.nam: root"))

    assert run(["rule", "check", str(file), "-o", "ndjson"]) == 4
    assert rows(capsys) == [
        {
            "where": f"{file}:8",
            "severity": "error",
            "what": "user.nam is no field of the table",
        }
    ]


def test_a_warning_counts_only_if_it_was_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, RULE.replace("author: me\n", ""))

    assert run(["rule", "check", str(file), "-o", "ndjson"]) == 0
    assert run(["rule", "check", str(file), "-o", "ndjson", "--strict"]) == 4
    assert {row["what"] for row in rows(capsys)} == {"`author` is missing"}


def test_samples_run_through_the_collector_and_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path)

    assert run(["rule", "test", str(file), "-o", "ndjson"]) == 0
    assert [(row["case"], row["result"]) for row in rows(capsys)] == [
        ("tried", "ok"),
        ("tried in the log", "ok"),
        ("me", "ok"),
        ("session", "ok"),
        ("nothing", "ok"),
        ("more of it", "ok"),
    ]


def test_a_sample_that_fails_says_why_and_leaves_with_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = SAMPLES.replace("name: me, kind: near miss", "name: me, kind: must match")
    file = write(tmp_path, samples=samples)

    assert run(["rule", "test", str(file), "-o", "ndjson"]) == 3
    failed = [row for row in rows(capsys) if row["result"] == "failed"]
    assert [(row["case"], row["why"]) for row in failed] == [
        ("me", "0 findings, expected 1"),
        ("without login: user.name", "no case notices"),
    ]


def test_a_line_of_the_rule_that_no_case_misses_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line for line in SAMPLES.splitlines() if "name: session" not in line]
    file = write(tmp_path, samples="\n".join(lines))

    assert run(["rule", "test", str(file), "-o", "ndjson"]) == 3
    failed = [row["case"] for row in rows(capsys) if row["result"] == "failed"]
    assert failed == ["without login: event.action"]


def test_a_rule_that_cannot_be_loaded_fails_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, RULE.replace("condition: login", "condition: logins"))

    assert run(["rule", "test", str(file), "-o", "ndjson"]) == 3
    assert [(row["rule"], row["case"]) for row in rows(capsys)] == [(f"{file}:9", "(loading)")]


def test_a_path_that_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["rule", "check", str(tmp_path / "none.yml")]) == 7
    assert capsys.readouterr().err.startswith("there is no such file or folder\n")


def test_a_line_is_tried_on_every_rule_of_its_log_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path)
    from_standard_input(monkeypatch, LINE.encode() + b"\n")

    assert run(["rule", "try", "--rules", str(file), "-o", "ndjson"]) == 0
    found = {row["rule"]: row for row in rows(capsys) if row["action"] != "finding"}
    assert found["Root fails to log in"]["result"] == "matched"
    assert found["SSH login"]["result"] == "no match"
    assert found["SSH login"]["why"] == "login: event.outcome is success – saw failure"
    assert found["Root fails to log in"]["fields"]["source.ip"] == "192.0.2.1"
    assert found["Root fails to log in"]["collector"] == "syslog"


def test_a_trial_reads_as_a_story(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path)
    from_standard_input(monkeypatch, LINE.encode() + b"\n")

    assert run(["rule", "try", "--rules", str(file), "-o", "table"]) == 0
    out = capsys.readouterr().out
    assert "Event 1, read by syslog, log source linux/*/sshd" in out
    assert "  event.action                 ssh_login\n" in out
    assert "matched       Root fails to log in" in out
    assert "login: event.action is ssh_login – saw ssh_login" in out
    assert "Finding, low: Root fails to log in\n  192.0.2.1 tried root.\n" in out


def test_a_rule_that_needs_a_list_says_so(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    file = data / "energy/modbus_quickdraw_attacks_1.pcap"

    assert run(["rule", "try", str(file), "--limit", "1", "-o", "ndjson"]) == 0
    found = rows(capsys)
    why = {row["rule"]: (row["result"], row["why"]) for row in found if row["event"] == 1}
    assert why["Modbus write, host is no writer"] == ("not evaluated", "needs %ot_writers%")
    assert {row["event"] for row in found if row["action"] != "finding"} == {1}
    assert sum(row["action"] == "finding" for row in found) == 8


def test_what_nobody_recognises_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from_standard_input(monkeypatch, b"\x00\x01\x02\x03")

    assert run(["rule", "try"]) == 7
    assert "--collector" in capsys.readouterr().err


def test_an_unknown_collector_is_refused_with_those_that_there_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from_standard_input(monkeypatch, LINE.encode())

    assert run(["rule", "try", "--collector", "sshdd"]) == 7
    assert "no collector is called 'sshdd'" in capsys.readouterr().err


def test_the_wrong_kind_of_records_is_refused() -> None:
    with pytest.raises(ValueError, match="packets reads packets"):
        collect("packets", [b"a line"], [])
    with pytest.raises(ValueError, match="no collector is called 'nobody'"):
        collect("nobody", [b"a line"], [])


@pytest.mark.parametrize("verb", ["check", "test", "try"])
def test_help_shows_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(["rule", verb, "--help"])

    assert "Example:" in capsys.readouterr().out
