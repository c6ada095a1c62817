"""`cityward rule add`: what rules of others could tell here, and their folder in the settings."""

from __future__ import annotations

import json
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import ConfigError
from siem import adopt
from siem.cli import run

SETTINGS = """\
operator = "op-test"
state_dir = "state"

[[source]]
id = "hosts"
reader = "syslog_udp"
collector = "windows"

[rules]
shipped = false

[lists]
admins = ["ann"]
"""
RULE = """\
title: {title}
id: {id}
author: Somebody Else
license: DRL-1.1
logsource: {source}
detection:
  found: {found}
  condition: found
level: high
"""
SPEAKS = ("Speaks", "{product: windows, category: process_creation}", r"{Image|endswith: \x.exe}")
RULES = {
    "speaks": SPEAKS,
    "listed": ("Listed", "{product: windows, service: security}", "{User|expand: '%admins%'}"),
    "unlisted": ("Unlisted", "{product: windows, service: security}", "{User|expand: '%vips%'}"),
    "silent": ("Silent", "{product: zeek, service: http}", "{uri: /x}"),
    "unread": ("Unread", "{product: okta, service: okta}", "{eventtype: x}"),
    "strange": ("Strange", "{category: dns}", "{nobody.has.this: x}"),
}
COUNTED = """\
title: Counted
id: 00000000-0000-4000-8000-0000000000ff
author: Somebody Else
correlation: {type: event_count, rules: [%s], timespan: 1m, condition: {gte: 5}}
level: high
"""
IDS = {name: f"00000000-0000-4000-8000-{number:012d}" for number, name in enumerate(RULES)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rules of somebody else: six, a correlation, and one that is none."""
    place = tmp_path / "theirs"
    place.mkdir()
    for name, (title, source, found) in RULES.items():
        text = RULE.format(title=title, id=IDS[name], source=source, found=found)
        (place / f"{name}.yml").write_text(text)
    (place / "counted.yml").write_text(COUNTED % IDS["silent"])
    (place / "wrong.yml").write_text("title: Wrong\nlogsource: {category: dns}\ndetection: {}\n")
    (place / "LICENSE").write_text("# Detection Rule License 1.1\n")
    return place


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    file = tmp_path / "cityward.toml"
    file.write_text(SETTINGS)
    return file


def rows(capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], str]:
    said = capsys.readouterr()
    return [msgspec.json.decode(line) for line in said.out.splitlines()], said.err


def test_each_rule_says_whether_it_could_speak_here(
    folder: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["rule", "add", str(folder), "-c", str(settings), "--each", "-o", "ndjson"]) == 0

    found, _ = rows(capsys)
    assert {row["rule"]: (row["state"], row["why"]) for row in found} == {
        "Speaks": ("can speak", ""),
        "Listed": ("can speak", ""),
        "Unlisted": ("needs a list", "%vips%"),
        "Silent": ("no source", "a source for zeek"),
        "Unread": ("not read", "no collector reads it"),
        "Strange": ("no such field", "nobody.has.this"),
        "Counted": ("no source", "a source for zeek"),
    }
    assert {row["author"] for row in found} == {"Somebody Else"}
    assert {row["license"] for row in found} == {"DRL-1.1", ""}


def test_a_log_source_says_how_many_speak_and_what_the_others_want(
    folder: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["rule", "add", str(folder), "-c", str(settings), "-o", "ndjson"]) == 0

    found, said = rows(capsys)
    assert {row["logsource"]: (row["rules"], row["speak"], row["needs"]) for row in found} == {
        "windows/*/security": (2, 1, "%vips% (1)"),
        "windows/process_creation/*": (1, 1, ""),
        "zeek/*/http": (2, 0, "a source for zeek"),
        "okta/*/okta": (1, 0, "no collector reads it"),
        "*/dns/*": (1, 0, "fields that no event has: nobody.has.this"),
    }
    assert "7 rules in" in said
    assert "2 can speak here" in said
    assert "by Somebody Else\n" in said
    assert "licence: DRL-1.1: 6 rules" in said
    assert "LICENSE: Detection Rule License 1.1" in said


def test_what_is_there_already_and_what_is_none_is_told_with_its_line(
    folder: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = "32f37b1f-426a-48e9-8fab-3f4541a1bbe0"
    (folder / "known.yml").write_text(
        RULE.format(title="K", id=known, source="{category: dns}", found="{query: x}")
    )
    settings.write_text(SETTINGS.replace("shipped = false", ""))
    run(["rule", "add", str(folder), "-c", str(settings), "-o", "ndjson"])

    _, said = rows(capsys)
    assert f"there already: {folder}/known.yml:2: id 32f37b1f" in said
    assert f"refused: {folder}/wrong.yml:3: the condition is missing" in said


def test_one_rule_of_one_author_is_one(
    folder: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["rule", "add", str(folder / "speaks.yml"), "-c", str(settings), "-o", "json"]) == 0

    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("1 rule in ")
    assert said[1].startswith("by ")
    assert "authors" not in said[1]
    assert any(line.startswith("licence: ") and line.endswith(": 1 rule") for line in said)


def test_nothing_is_written_unless_it_is_asked_for(
    folder: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["rule", "add", str(folder), "-c", str(settings), "-o", "ndjson"])

    assert settings.read_text() == SETTINGS
    assert f'folders = ["{folder}"]' in capsys.readouterr().err


def test_the_folder_comes_into_the_settings_once_and_its_rules_run(
    folder: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.chmod(0o640)
    words = ["rule", "add", str(folder), "-c", str(settings), "--yes", "-o", "ndjson"]

    assert run(words) == 0
    assert tomllib.loads(settings.read_text())["rules"]["folders"] == [str(folder)]
    assert settings.stat().st_mode & 0o777 == 0o640
    first, _ = rows(capsys)
    assert run(words) == 0
    again, said = rows(capsys)
    assert "The folder is in the settings already." in said
    assert again == first
    assert tomllib.loads(settings.read_text())["rules"]["folders"] == [str(folder)]


@pytest.mark.parametrize(
    "before",
    [
        "",
        'operator = "x"\n',
        "[rules]\nshipped = false\n",
        "[rules] # ours\n# folders = []\n\n[console]\nport = 1\n",
        "[rules]\nfolders = []\n",
        '[rules]\nfolders = ["a"]\noff = ["b"]\n',
        '[rules]\nfolders = [\n  "a",  # old\n]\n[[source]]\nid = "s"\n',
    ],
)
def test_a_settings_file_keeps_everything_else(before: str) -> None:
    old, new = tomllib.loads(before), tomllib.loads(adopt.with_folder(before, "/their rules"))

    folders = new["rules"].pop("folders")
    assert sorted(folders) == sorted([*old.get("rules", {}).pop("folders", []), "/their rules"])
    assert new == {"rules": {}} | old


@pytest.mark.parametrize("before", ['rules = {folders = ["a"]}\n', 'rules.folders = ["a"]\n'])
def test_a_settings_file_of_another_shape_is_left_to_a_person(before: str) -> None:
    with pytest.raises(ConfigError, match="cannot be changed without harm"):
        adopt.with_folder(before, "/their rules")


@pytest.mark.slow
def test_of_the_rules_of_sigmahq_all_are_judged_and_most_of_windows_speak(
    data: Path, tmp_path: Path, settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(data / "sigma/sigmahq_rules.tar.gz") as archive:
        archive.extractall(tmp_path / "sigma", filter="data")

    assert run(["rule", "add", str(tmp_path / "sigma"), "-c", str(settings), "-o", "ndjson"]) == 0

    found, said = rows(capsys)
    by_source = {row["logsource"]: (row["rules"], row["speak"]) for row in found}
    assert sum(count for count, _ in by_source.values()) == 3_728
    assert by_source["windows/process_creation/*"] == (1_408, 1_408)
    assert by_source["linux/process_creation/*"] == (141, 0)
    assert by_source["*/webserver/*"] == (82, 0)
    assert "by 867 authors" in said
    assert "refused" not in said


PIPELINE = """\
transformations:
  - type: field_name_mapping
    mapping: {nobody.has.this: dns.question.name}
"""


def test_a_pipeline_puts_their_rules_in_our_words_and_goes_into_the_settings(
    folder: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = tmp_path / "map.yml"
    pipeline.write_text(PIPELINE)
    asked = ["rule", "add", str(folder), "--pipeline", str(pipeline), "-c", str(settings)]

    assert run([*asked, "--each", "-o", "json"]) == 0
    states = {row["rule"]: row["why"] for row in json.loads(capsys.readouterr().out)}
    assert run([*asked, "--yes"]) == 0

    assert "nobody.has.this" not in states["Strange"]
    assert tomllib.loads(settings.read_text())["rules"]["pipelines"] == [str(pipeline)]


def test_a_pipeline_that_cannot_be_used_is_told(
    folder: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = tmp_path / "map.yml"
    pipeline.write_text("transformations: [{type: rename}]\n")

    assert run(["rule", "add", str(folder), "--pipeline", str(pipeline), "-c", str(settings)]) == 4

    assert f"{pipeline}:1: pySigma does not take the pipeline" in capsys.readouterr().err
