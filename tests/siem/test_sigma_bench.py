"""`cityward bench sigma`: lanes as they are measured, the peer, and cases from outside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from cityward import LogSource
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_folder
from siem import cli, sigma_bench, sigma_cases, sigma_lanes
from siem.exercise import bench as city_bench
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
FAILURES = [
    {"category": "authentication", "User": user, "EventType": "failure"}
    for user in ("a", "a", "b", "a", "a", "a", "b")
]
BURST = """
title: Failure
id: a-failure
logsource: {category: authentication}
detection: {one: {EventType: failure}, condition: one}
---
title: Burst
id: a-failure-burst
level: low
correlation:
  {type: event_count, rules: [a-failure], group-by: [User], timespan: 5m, condition: {gte: 3}}
"""
PEER = """#!/usr/bin/env python3
import json, sys
if sys.argv[1] == "--version":
    print("fake 1.0")
    sys.exit()
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
def test_a_lane_is_measured_in_every_batch_beside_the_peer(folder: Path) -> None:
    one, many, beside = sigma_bench.rows(
        folder / "rules",
        [folder / "lane.ndjson.gz"],
        str(folder / "peer"),
        rounds=1,
        batches=(1, 512),
        cores=2,
    )

    for row in (one, many):
        assert (row["lane"], row["events"], row["matches"], row["rules"]) == ("lane", 4, 2, 1)
        assert (row["counts"], row["matching_rules"], row["rsigma"]) == ("same", 1, "fake 1.0")
        speeds = ("cold_per_s", "warm_per_s", "detect_per_s", "rsigma_per_s")
        assert min(row[name] for name in (*speeds, "rss_mb", "rsigma_rss_mb", "load_s")) > 0
    assert (one["batch"], many["batch"]) == (1, 512)
    assert (beside["lane"], beside["events"], beside["matches"]) == ("lane, 2 cores", 4, 2)
    assert beside["one_core_ratio"] > 0


@pytest.mark.slow
def test_a_lane_with_correlations_brings_its_rules_whatever_their_ids(folder: Path) -> None:
    lane = folder / "burst.ndjson"
    lane.write_text("".join(json.dumps(one) + "\n" for one in FAILURES))
    lane.with_suffix(".yml").write_text(BURST)

    (row,) = sigma_bench.rows(folder / "rules", [lane], rounds=1, batches=(64,))

    # Seven failures; three of one user complete the window, a fourth and a fifth go on with it.
    assert (row["events"], row["matches"], row["matching_rules"]) == (7, 7 + 3, 2)
    assert (row["warm_per_s"], row["rules"]) == (None, 1)
    assert row["detect_per_s"] > row["cold_per_s"] > 0


@pytest.mark.slow
def test_the_demos_evening_is_measured_in_nodes_and_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["bench", "sigma", "--rounds", "1", "-o", "json"]) == 0

    (row,) = json.loads(capsys.readouterr().out)
    assert row["lane"] == "city"
    assert row["events"] > 10_000
    assert row["findings"] > 20
    assert row["warm_per_s"] > row["lines_per_s"] > row["node_per_s"] > 0


def test_an_evening_has_what_every_operator_reads() -> None:
    evening = {place.operator: [put.at_s for put in puts] for place, puts in city_bench.evening(1)}

    assert len(evening) == 4
    assert all(times == sorted(times) and times[-1] > 3_000 for times in evening.values())
    assert min(min(times) for times in evening.values()) < 0


def test_in_a_fresh_lane_no_text_comes_twice_and_rules_still_look(tmp_path: Path) -> None:
    event = {"EventID": 1, "Channel": SYSMON, "Image": "C:\\x.exe", "more": {"a": ["b", 7]}}
    lane = tmp_path / "lane.ndjson"
    lane.write_text(2 * (json.dumps(event) + "\n"))

    made = sigma_lanes.fresh_values(lane, tmp_path).read_text().splitlines()

    assert [json.loads(line) for line in made] == [
        {**event, "Image": f"C:\\x.exe {n}", "more": {"a": [f"b {n}", 7]}} for n in range(2)
    ]


def test_a_lane_comes_a_second_time_with_fresh_values(folder: Path, tmp_path: Path) -> None:
    given = [folder / "lane.ndjson.gz"]

    found = list(sigma_lanes.lanes(given, folder / "rules", tmp_path, fresh=True))

    assert [one.name for one in found] == ["lane", "lane, fresh"]
    assert all(one.rules == folder / "rules" and one.file.is_file() for one in found)


@pytest.mark.slow
def test_a_broken_line_of_a_lane_is_left_out(folder: Path, tmp_path: Path) -> None:
    lane = tmp_path / "broken.ndjson.gz"
    lines = [b"\n", *(json.dumps(one).encode() + b"\n" for one in EVENTS), b"[1]\n", b"{\n"]
    with gzip.open(lane, "wb") as file:
        file.writelines(lines)

    rows = [*sigma_bench.rows(folder / "rules", [lane], rounds=1, batches=(512,), fresh=True)]

    assert [(row["events"], row["matches"]) for row in rows] == [(4, 2), (4, 0)]


def test_a_revision_is_that_of_content_and_place(folder: Path) -> None:
    rules = folder / "rules"
    before = sigma_lanes.revision(rules)

    (rules / "readme.md").write_text("no rule")
    assert sigma_lanes.revision(rules) == before

    (rules / "win" / "one.yml").rename(rules / "one.yml")
    assert sigma_lanes.revision(rules) != before


def test_lines_are_dealt_out_and_none_is_lost(tmp_path: Path) -> None:
    lane = tmp_path / "lane.ndjson"
    lane.write_text("1\n2\n3\n")

    parts = sigma_bench.split(lane, 2, tmp_path)

    assert [one.read_text() for one in parts] == ["1\n3\n", "2\n"]


def test_a_windows_event_without_a_log_source_gets_one() -> None:
    hinted = [json.loads(sigma_lanes.hinted(json.dumps(one).encode())) for one in EVENTS]

    assert [one.get("category") for one in hinted] == ["process_creation", "file_event", None, None]
    assert [one["product"] for one in hinted] == ["windows", "windows", "windows", "linux"]


@pytest.mark.parametrize("wrong", [["--batch", "0"], ["--rounds", "0"], ["--cores", "0"]])
def test_a_bench_of_nothing_is_refused(folder: Path, wrong: list[str]) -> None:
    words = ["bench", "sigma", str(folder / "lane.ndjson.gz"), "--rules", str(folder / "rules")]

    assert cli.run([*words, *wrong]) == 7
    assert cli.run(words[:3]) == 7


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
    (lane,) = sigma_lanes.lanes(
        [data / "sigma" / "otrf_windows_100k.ndjson.gz"], tmp_path, tmp_path
    )

    events, counts = sigma_bench.counted(sigmahq, lane.file)

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

    assert sigma_cases.conformance(folder / "cases.ndjson") == (202, [])
