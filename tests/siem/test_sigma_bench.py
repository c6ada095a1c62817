"""`cityward bench sigma`: lanes as they are measured, the peer, and cases from outside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import msgspec
import pytest

from cityward import InputError, LogSource
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_folder, load_text
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


@pytest.mark.parametrize("wrong", ["rules", "lane", "no rules", "no lines"])
def test_nothing_is_measured_where_there_is_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    (folder / "empty").mkdir()
    (folder / "text.ndjson").write_text("no JSON\n")
    rules = {"rules": "nowhere", "no rules": "empty"}.get(wrong, "rules")
    lane = {"lane": "nowhere", "no lines": "text.ndjson"}.get(wrong, "lane.ndjson.gz")

    words = ["--rules", str(folder / rules), str(folder / lane), "--rounds", "1", "--batch", "512"]

    assert cli.run(["bench", "sigma", *words]) == 7
    assert capsys.readouterr().out == ""


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


def test_a_run_that_fails_says_why(folder: Path, tmp_path: Path) -> None:
    lane = sigma_lanes.Lane("gone", tmp_path / "gone.ndjson", folder / "rules")

    with pytest.raises(InputError, match=r"measuring failed: .*No such file .*gone\.ndjson"):
        sigma_bench._alone(lane, lane.file, 512, tmp_path)


def test_a_lane_may_be_called_as_its_parts_are(folder: Path, tmp_path: Path) -> None:
    lane = tmp_path / "part-0.ndjson.gz"
    lane.write_bytes((folder / "lane.ndjson.gz").read_bytes())

    rows = [*sigma_bench.rows(folder / "rules", [lane], rounds=1, batches=(512,), cores=2)]

    assert [(row["events"], row["matches"]) for row in rows] == [(4, 2), (4, 2)]


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


def test_a_peer_that_seems_to_take_no_time_is_given_no_rate() -> None:
    run = sigma_bench.Run(512, 10, 1.0, 1.0, 1.0, 1.0, {}, 1)
    peers = [sigma_bench.Peer("p", 2.0, whole_s, 1, {}, 1) for whole_s in (1.5, 3.0)]
    row = sigma_bench._row("lane", [run])

    said = sigma_bench._compared(row, run, peers)
    assert (said["rsigma_per_s"], said["cold_ratio"], said["counts"]) == (None, None, "same")
    said = sigma_bench._compared(row, run, peers[1:])
    assert (said["rsigma_per_s"], said["cold_ratio"]) == (10, 1.0)


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
        {"logsource": {}},
    )

    assert run(folder, file) == 0
    assert "6 of 6 cases hold" in capsys.readouterr().err


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
    assert {*found} == {"more", "none", "gone", "bad", ""}
    assert "1 of 6 cases hold" in said.err


NEEDS = RULE.replace("Image|endswith: whoami.exe", "Image|expand: '%q%'")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rule_path": "no/such.yml"}, "there is no such rule"),
        ({"rule": ""}, "there is no rule in it (rule)"),
        ({"rule_path": ""}, "there is neither rule nor rule_path"),
        ({"rule_id": "33333333-3333-4333-8333-333333333333"}, "no rule in it has the id 33333333-"),
        ({"rule": NEEDS}, "Whoami is not evaluated: needs %q%"),
        ({"logsource": "windows"}, "got `str` - at `$.logsource`"),
        ({"logsource": {}, "rule": ""}, "there is no rule in it"),
        ({"events": ["x"]}, "got `str` - at `$.events[0]`"),
        ({"events": [{"@timestamp": "2026-13-45"}]}, "'2026-13-45' is no time"),
        ({"expected_match_count": "0"}, "got `str` - at `$.expected_match_count`"),
    ],
)
def test_a_case_of_which_nothing_runs_fails_and_the_others_run(
    folder: Path, change: dict[str, object], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    none = {"expected_match_count": 0, "events": [{"Image": "cmd.exe"}]}
    file = cases(folder, {}, {**none, **change}, none)

    assert run(folder, file) == 3

    said = capsys.readouterr()
    (failed,) = json.loads(said.out)
    assert (failed["where"], failed["wanted"]) == (f"{file}:2", "a case that can be run")
    assert reason in failed["found"]
    assert "2 of 3 cases hold" in said.err


def test_a_misspelt_count_is_told_and_what_else_somebody_says_is_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(cases(folder, {"source": "somebody"}, {"expected_matchcount": 1}))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    del lines[1]["expected_match_count"]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert run(folder, str(file)) == 3

    said = capsys.readouterr()
    (failed,) = json.loads(said.out)
    what = "there is no expected_match_count, and expected_matchcount is not known"
    assert what in failed["found"]
    assert "1 of 2 cases hold" in said.err


def test_a_case_whose_rule_fails_on_an_event_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = Engine(load_text(RULE)).states()
    failing = [msgspec.structs.replace(one, faults=1) for one in states]
    monkeypatch.setattr(Engine, "states", lambda _: failing)

    assert run(folder, cases(folder, {})) == 3
    assert "Whoami fails on an event" in capsys.readouterr().out


def test_a_corrected_count_of_null_corrects_nothing(folder: Path) -> None:
    assert run(folder, cases(folder, {"corrected_match_count": None})) == 0
    wrong = cases(folder, {"expected_match_count": 2, "corrected_match_count": None})
    assert run(folder, wrong) == 3


def test_every_event_with_which_a_correlation_holds_counts(folder: Path) -> None:
    rule = f"""{RULE}name: who
---
title: Often
id: 22222222-2222-4222-8222-222222222222
level: low
correlation: {{type: event_count, rules: [who], timespan: 1h, condition: {{gte: 2}}}}
"""
    often = {
        "rule": rule,
        "rule_id": "22222222-2222-4222-8222-222222222222",
        "events": [{"Image": "whoami.exe"}] * 4,
        "expected_match_count": 3,
    }

    assert run(folder, cases(folder, often)) == 0


def test_an_absence_is_told_as_time_passes_and_after_the_last_event(folder: Path) -> None:
    cmd = RULE.replace("whoami", "cmd").replace("11111111-1111", "33333333-1111")
    rule = f"""{RULE}name: who
---{cmd}name: cmd
---
title: Alone
name: alone
id: 22222222-2222-4222-8222-222222222222
level: low
cw_absence: {{trigger: who, expected: cmd, within: 10s}}
"""
    chained = f"""{rule}---
title: Alone, then cmd
id: 44444444-4444-4444-8444-444444444444
level: low
correlation: {{type: temporal_ordered, rules: [alone, cmd], timespan: 1m}}
"""
    times = ("10:00:00", "10:00:30", "11:00:00", "11:00:10", "12:00:00")
    case = {
        "rule": rule,
        "rule_id": "22222222-2222-4222-8222-222222222222",
        "events": [
            {"@timestamp": f"2026-01-05T{time}Z", "Image": image}
            for time, image in zip(times, ["whoami.exe", "cmd.exe"] * 3, strict=False)
        ],
        "expected_match_count": 2,
    }
    upper = {"rule": chained, "rule_id": "44444444-4444-4444-8444-444444444444"}

    # The upper one hears of the first absence in time for what comes twenty seconds later.
    assert run(folder, cases(folder, case, {**case, **upper, "expected_match_count": 1})) == 0


def test_cases_may_be_packed_and_begin_with_a_mark_of_byte_order(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Path(cases(folder, {}, {})).read_bytes()
    packed = folder / "cases.ndjson.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines))

    assert run(folder, str(packed)) == 0

    said = capsys.readouterr()
    assert (json.loads(said.out), said.err) == ([], "2 of 2 cases hold\n")
    packed.write_bytes(packed.read_bytes()[:-20])
    assert run(folder, str(packed)) == 7
    assert "cannot be read" in capsys.readouterr().err


def test_no_folder_of_rules_is_one_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = cases(folder, {}, {})

    assert cli.run(["bench", "sigma", "--conformance", file, "--rules", "nowhere"]) == 7
    assert "there is no such folder\nnowhere" in capsys.readouterr().err


def test_a_file_without_a_case_proves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, cases(folder)) == 7
    assert "there is no case in it" in capsys.readouterr().err


@pytest.mark.slow
def test_sigmahqs_cases_hold_as_a_person_runs_them(data: Path, tmp_path: Path) -> None:
    folder = unpacked(data, "sigmahq_regression", tmp_path)

    assert sigma_cases.conformance(folder / "cases.ndjson") == (202, [])
