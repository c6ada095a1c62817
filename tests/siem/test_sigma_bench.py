"""`cityward bench sigma`: lanes as they are measured, the peer, and cases from outside."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import pytest

from siem import cli, sigma_bench

RULE = """
title: Whoami
id: 11111111-1111-4111-8111-111111111111
level: low
logsource: {product: windows, category: process_creation}
detection: {one: {Image|endswith: whoami.exe}, condition: one}
"""
SYSMON = "Microsoft-Windows-Sysmon/Operational"
EVENTS = [
    {"Channel": SYSMON, "EventID": 1, "Image": "C:\\whoami.exe"},
    {"Channel": SYSMON, "EventID": 11, "Image": "C:\\whoami.exe"},
    {"Channel": "Security", "EventID": 4688, "Image": "C:\\whoami.exe"},
    {"product": "linux", "Image": "whoami.exe"},
]
CASE = {
    "case": "one",
    "rule_id": "11111111-1111-4111-8111-111111111111",
    "rule_path": "win/one.yml",
    "expected_match_count": 1,
    "logsource": {"product": "windows", "category": "process_creation"},
    "events": [{"Image": "C:\\whoami.exe"}, {"Image": "C:\\cmd.exe"}],
}
PEER = """#!/usr/bin/env python3
import json, sys
for line in sys.stdin:
    event = json.loads(line)
    if event.get("category") == "process_creation" and "whoami" in event["Image"]:
        print(json.dumps({"rule_id": "11111111-1111-4111-8111-111111111111"}))
"""
"""A fake of rsigma that knows one rule."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules" / "win").mkdir(parents=True)
    (tmp_path / "rules" / "win" / "one.yml").write_text(RULE)
    with gzip.open(tmp_path / "lane.ndjson.gz", "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in EVENTS)
    (tmp_path / "peer").write_text(PEER)
    (tmp_path / "peer").chmod(0o755)
    return tmp_path


@pytest.mark.slow
def test_a_lane_is_measured_beside_the_peer(folder: Path) -> None:
    (row,) = sigma_bench.rows(
        folder / "rules", [folder / "lane.ndjson.gz"], str(folder / "peer"), rounds=1, batch=2
    )

    assert (row["lane"], row["events"], row["matches"], row["rules"]) == ("lane", 4, 1, 1)
    assert row["differ"] == ""
    assert min(row[name] for name in ("cold_per_s", "warm_per_s", "rsigma_per_s", "rss_mb")) > 0


def test_a_windows_event_without_a_log_source_gets_one() -> None:
    hinted = [json.loads(sigma_bench.hinted(json.dumps(one).encode())) for one in EVENTS]

    assert [one.get("category") for one in hinted] == ["process_creation", "file_event", None, None]
    assert [one["product"] for one in hinted] == ["windows", "windows", "windows", "linux"]


def test_rules_that_count_differently_are_named() -> None:
    assert sigma_bench.differences({"a": 1, "b": 2}, {"a": 1, "c": 3}) == "b 2/0; c 0/3"
    assert sigma_bench.differences({str(n): 1 for n in range(7)}, {}).endswith("; 2 more")


def cases(folder: Path, *changes: dict[str, object]) -> str:
    file = folder / "cases.ndjson"
    file.write_text("".join(json.dumps({**CASE, **change}) + "\n" for change in changes))
    return str(file)


def run(folder: Path, file: str) -> int:
    words = ["bench", "sigma", "--conformance", file, "--rules", str(folder / "rules")]
    return cli.run([*words, "-o", "json"])


def test_cases_from_outside_hold(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = cases(
        folder,
        {},
        {"expected_match_count": None},
        {"expected_match_count": 7, "corrected_match_count": 1},
        {"rule_path": "", "rule": RULE},
        {"logsource": None},
    )

    assert run(folder, file) == 0
    assert "5 of 5 cases hold" in capsys.readouterr().err


def test_each_case_that_fails_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = cases(
        folder,
        {},
        {"case": "more", "expected_match_count": 2},
        {"case": "none", "expected_match_count": None, "events": []},
        {"case": "gone", "rule_path": "no.yml"},
        {"case": "bad", "rule": "title: x"},
    )
    with Path(file).open("a") as more:
        more.write("no json\n")

    assert run(folder, file) == 3

    said = capsys.readouterr()
    found = {one["case"]: (one["wanted"], one["found"]) for one in json.loads(said.out)}
    assert found["more"] == ("2", "1")
    assert found["none"] == ("at least 1", "0")
    assert {*found} == {"more", "none", "gone", "bad", "line 6"}
    assert "1 of 6 cases hold" in said.err


@pytest.mark.slow
def test_sigmahqs_cases_hold_as_a_person_runs_them(data: Path, tmp_path: Path) -> None:
    with tarfile.open(data / "sigma" / "sigmahq_regression.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")

    assert sigma_bench.conformance(tmp_path / "cases.ndjson") == (202, [])
