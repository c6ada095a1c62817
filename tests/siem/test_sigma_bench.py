"""`cityward bench sigma`: lanes as they are measured, the peer, and cases from outside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from cityward import LogSource
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_folder
from siem import cli, sigma_bench
from tests.detectors.sigma.test_truth import unpacked

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
wanted = {"product": "windows", "category": "process_creation"}
for line in sys.stdin:
    event = json.loads(line)
    if all(event.get(part, one) == one for part, one in wanted.items()) and "whoami" in line:
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

    assert (row["lane"], row["events"], row["matches"], row["rules"]) == ("lane", 4, 2, 1)
    assert row["differ"] == ""
    assert min(row[name] for name in ("cold_per_s", "warm_per_s", "rsigma_per_s", "rss_mb")) > 0


def test_a_windows_event_without_a_log_source_gets_one() -> None:
    hinted = [json.loads(sigma_bench.hinted(json.dumps(one).encode())) for one in EVENTS]

    assert [one.get("category") for one in hinted] == ["process_creation", "file_event", None, None]
    assert [one["product"] for one in hinted] == ["windows", "windows", "windows", "linux"]


def test_rules_that_count_differently_are_named() -> None:
    assert sigma_bench.differences({"a": 1, "b": 2}, {"a": 1, "c": 3}) == "b 2/0; c 0/3"
    assert sigma_bench.differences({str(n): 1 for n in range(7)}, {}).endswith("; 2 more")


def test_only_a_part_that_both_name_is_in_the_way_of_a_rule() -> None:
    wanted = LogSource("process_creation", "windows")

    for given in (LogSource(), LogSource("", "Windows", "security")):
        assert not sigma_bench.conflict(wanted, given)
    for given in (LogSource("registry_set", "windows"), LogSource(product="linux")):
        assert sigma_bench.conflict(wanted, given)
    assert sigma_bench.conflict(LogSource("registry_event"), LogSource("registry_set"))


LANES = {
    "raw_windows": 224,
    "structured_windows": 6_489,
    "cisco_syslog": 14_134,
    "sysmon_file_event": 505,
    "mixed_schema": 1_629,
    "match_heavy": 9_996,
    "no_match": 0,
    "low_match": 6_590,
}
"""What rsigma 0.23.0 finds with routing: the table of the data's README, "Lanes"."""


@pytest.fixture
def sigmahq(data: Path, tmp_path: Path) -> Engine:
    """The rules that rsigma's table was made with."""
    folder = unpacked(data, "sigmahq_rules", tmp_path / "sigmahq")
    return sigma_bench.PeerRouted(load_folder(folder / "rules"))


@pytest.mark.slow
def test_every_lane_matches_as_often_as_with_rsigma(
    data: Path, tmp_path: Path, sigmahq: Engine
) -> None:
    folder = unpacked(data, "rsigma_lanes", tmp_path)

    found = {name: sigma_bench.counted(sigmahq, folder / f"{name}.ndjson") for name in LANES}

    assert {name: (events, counts.total()) for name, (events, counts) in found.items()} == {
        name: (10_000, matches) for name, matches in LANES.items()
    }


@pytest.mark.full
def test_recorded_attacks_match_as_often_as_with_rsigma(
    data: Path, tmp_path: Path, sigmahq: Engine
) -> None:
    (lane,) = sigma_bench.lanes([data / "sigma" / "otrf_windows_100k.ndjson.gz"], tmp_path)

    events, counts = sigma_bench.counted(sigmahq, lane)

    assert (events, counts.total(), len(counts)) == (100_464, 783, 97)


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
    folder = unpacked(data, "sigmahq_regression", tmp_path)

    assert sigma_bench.conformance(folder / "cases.ndjson") == (202, [])
