"""What a node says in its log of the rules that it takes up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from siem import assembly, cli
from siem.config import Rules, Settings
from siem.node import Node

RULE = """\
title: Rule {number}
id: 00000000-0000-4000-8000-00000000000{number}
logsource: {{service: test}}
detection: {{s: {{f: {number}}}, condition: s}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "rules"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"{number}.yml").write_text(RULE.format(number=number))
    return folder


def settings_of(folder: Path) -> Settings:
    rules = Rules(shipped=False, folders=(str(folder),))
    return Settings(state_dir=str(folder.parent / "state"), rules=rules)


@pytest.fixture
def node(folder: Path) -> Iterator[Node]:
    node = assembly.node_of(settings_of(folder), sources=[])
    yield node
    node.close()


def said(node: Node, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log has when the node has looked for changes."""
    caplog.clear()
    node._reread()
    return [one.getMessage() for one in caplog.records]


def test_a_node_whose_rules_are_well_has_nothing_to_warn_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    assembly.node_of(settings_of(folder), sources=[]).close()

    assert [one.getMessage() for one in caplog.records if one.name == "siem.roll_call"] == [
        "Of the rules 2 can be asked, none had to be refused."
    ]


def test_a_rule_whose_file_breaks_is_said_once(
    node: Node, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "1.yml").write_text(RULE.format(number=1).replace("title:", "title: ["))

    gone, refused = said(node, caplog)

    assert gone == f"These rules do not count any more: Rule 1 ({folder}/1.yml:1)."
    assert refused.startswith("Of the rules 1 can be asked, 1 had to be refused: ")
    assert f"{folder}/1.yml:2: no YAML" in refused
    assert said(node, caplog) == []


def test_a_rule_that_is_mended_is_said_too(
    node: Node, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "1.yml").write_text("title: nothing else")
    said(node, caplog)
    caplog.set_level(logging.INFO)

    (folder / "1.yml").write_text(RULE.format(number=1))

    assert said(node, caplog) == ["Of the rules 2 can be asked, none had to be refused."]


def test_a_file_in_capitals_is_a_rule_whose_change_is_seen(
    node: Node, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    (folder / "3.YAML").write_text(RULE.format(number=3))

    assert said(node, caplog) == ["Of the rules 3 can be asked, none had to be refused."]


def test_a_folder_that_is_moved_away_is_said(
    node: Node, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.rename(folder.with_name("elsewhere"))

    missing, gone = said(node, caplog)

    assert missing == f"No rules come from {folder}, which cannot be read."
    assert gone.startswith(f"These rules do not count any more: Rule 1 ({folder}/1.yml:1); Rule 2 ")
    assert said(node, caplog) == []


def test_of_forty_refused_rules_five_are_named_where_a_log_is_read(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(40):
        (folder / f"bad-{number:02}.yml").write_text("title: nothing else")
    settings, file = tmp_path / "cityward.toml", tmp_path / "auth.log"
    settings.write_text(f'[rules]\nshipped = false\nfolders = ["{folder}", "{tmp_path}/none"]\n')
    file.write_text("Mar  1 03:12:00 gw-7 sshd[90]: Failed password for root from 203.0.113.7\n")

    assert cli.run(["ingest", str(file), "-c", str(settings), "-q"]) == 0

    missing, refused = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert missing == f"No rules come from {tmp_path}/none, which cannot be read."
    assert refused.startswith("Of the rules 2 can be asked, 40 had to be refused: ")
    assert refused.count("bad-") == 5
    assert refused.endswith("; and 35 more.")
