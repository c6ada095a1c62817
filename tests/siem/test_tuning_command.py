"""`cityward filter` and `rule deploy`, `revert`, `history`, `protected`, as a person types them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from siem import assembly, cli, config
from siem.assets import from_settings
from siem.node import now_utc
from siem.store.embedded import NodeDb
from tests.siem.test_tuning import (
    FILTER,
    FILTER_ID,
    MANY,
    RULE,
    RULE_ID,
    SAMPLES,
    attempts,
    findings,
    right,
    seen,
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node that has found a wrong password of two sources."""
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "wrong.yml").write_text(RULE)
    (rules / "wrong.test.yml").write_text(SAMPLES)
    (tmp_path / "cityward.toml").write_text(
        f'state_dir = "{tmp_path}/state"\n[rules]\nshipped = false\nfolders = ["{rules}"]\n'
    )
    monkeypatch.chdir(tmp_path)
    settings = config.load(tmp_path / "cityward.toml")
    db = node(tmp_path)
    seen(settings, db, [*attempts("192.0.2.7"), *attempts("192.0.2.8", minute=1)])
    db.close()
    return tmp_path


def node(folder: Path) -> NodeDb:
    settings = config.load(folder / "cityward.toml")
    return assembly.db_of(settings, from_settings(settings), now_utc)


def of_source(folder: Path, source: str) -> str:
    db = node(folder)
    (one,) = findings(db, f"source.ip:{source}")
    db.close()
    return str(one["finding.id"])


def rows(capsys: Capture, *words: str) -> list[dict[str, object]]:
    assert cli.run([*words, "-o", "json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_a_noisy_finding_becomes_a_filter_and_is_taken_back(folder: Path, capsys: Capture) -> None:
    add = ["filter", "add", "--from", of_source(folder, "192.0.2.8")[:8], "--field", "source.ip"]
    add += ["--reason", "our scanner"]

    assert cli.run(add) == 0
    assert "Nothing has changed" in capsys.readouterr().err
    assert rows(capsys, "filter", "list") == []

    assert cli.run([*add, "--yes"]) == 0
    said = capsys.readouterr()
    (one,) = rows(capsys, "filter", "list")
    assert "source.ip: 192.0.2.8" in said.err
    assert (one["state"], one["reason"], one["rules"]) == ("on", "our scanner", "Wrong password")

    remove = ["filter", "remove", str(one["id"]), "--reason", "it has moved"]
    assert cli.run(remove) == 0
    assert cli.run([*remove, "--yes"]) == 0
    capsys.readouterr()
    assert rows(capsys, "filter", "list") == []
    states = [each["state"] for each in rows(capsys, "rule", "history", str(one["id"]))]
    assert states == ["taken back", ""]


def test_what_was_right_is_told_and_kept(folder: Path, capsys: Capture) -> None:
    db = node(folder)
    id = right(db, "source.ip:192.0.2.7")["finding.id"]
    db.close()

    (one,) = rows(capsys, "rule", "protected")
    code = cli.run(["filter", "add", "--from", id, "--reason", "why", "--yes"])

    assert (one["finding"], one["title"], one["from"]) == (id, "Wrong password", "here")
    assert code == 6
    assert "would not be made any more" in capsys.readouterr().err


def test_the_reason_of_a_file_counts_and_the_same_is_not_added_twice(
    folder: Path, capsys: Capture
) -> None:
    until = (now_utc() + timedelta(days=30)).date()
    text = FILTER.replace("SOURCE", "192.0.2.8").replace("2026-03-01", str(until))
    (folder / "mine.yml").write_text(text)

    assert cli.run(["filter", "add", "mine.yml", "--yes"]) == 0
    capsys.readouterr()
    (one,) = rows(capsys, "filter", "list")
    (version,) = rows(capsys, "rule", "history", FILTER_ID)
    assert cli.run(["filter", "add", "mine.yml", "--yes"]) == 6

    said = capsys.readouterr().err
    assert one["reason"] == version["reason"] == "it looks for weak passwords at night"
    assert f"No: mine.yml:6: error: Not the scanner ({FILTER_ID}) hides the same already" in said


def test_a_filter_says_which_rule_it_binds_to_and_what_builds_on_that(
    folder: Path, capsys: Capture
) -> None:
    (folder / "rules" / "many.yml").write_text(MANY)
    add = ["filter", "add", "--from", of_source(folder, "192.0.2.8"), "--reason", "our scanner"]

    assert cli.run(add) == 0

    bound = "It binds to Wrong password. What builds on it does not get what is hidden either: "
    assert f"{bound}Many wrong passwords.\n" in capsys.readouterr().err


def test_a_filter_of_a_file_that_has_ended_is_not_added(folder: Path, capsys: Capture) -> None:
    (folder / "old.yml").write_text(FILTER.replace("2026-03-01", "2020-01-01"))

    assert cli.run(["filter", "add", "old.yml", "--reason", "x", "--yes"]) == 6
    assert cli.run(["rule", "deploy", "old.yml", "--reason", "x", "--yes"]) == 6

    assert "the filter ends on 2020-01-01, which is past" in capsys.readouterr().err
    assert rows(capsys, "filter", "list") == []


def test_a_rule_is_deployed_and_reverted(folder: Path, capsys: Capture) -> None:
    for level in ("high", "critical"):
        (folder / "mine.yml").write_text(RULE.replace("medium", level))
        deploy = ["rule", "deploy", "mine.yml", "--reason", f"it is {level}"]
        assert cli.run(deploy) == 0
        assert cli.run([*deploy, "--yes"]) == 0
    capsys.readouterr()
    newest, oldest = rows(capsys, "rule", "history", RULE_ID)

    back = ["rule", "revert", RULE_ID, "--to", str(oldest["version"]), "--reason", "too loud"]
    assert cli.run(["rule", "revert", RULE_ID, "--to", "999", "--reason", "too loud"]) == 2
    assert cli.run([*back, "--yes"]) == 0
    capsys.readouterr()

    texts = [str(one["text"]) for one in rows(capsys, "rule", "history", RULE_ID)]
    assert (newest["state"], newest["reason"]) == ("counts", "it is critical")
    assert ["level: high" in text for text in texts] == [True, False, True]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (RULE.replace("condition: failed", "condition: wrong"), "mine.yml:8"),
        (RULE.replace(f"id: {RULE_ID}\n", ""), "mine.yml:1"),
        (RULE.replace("title:", "tags: [attack.t9999]\ntitle:"), "mine.yml:"),
        (f"{RULE}---{RULE}", "mine.yml"),
    ],
)
def test_what_is_wrong_with_a_rule_is_told_with_its_file(
    text: str, where: str, folder: Path, capsys: Capture
) -> None:
    (folder / "mine.yml").write_text(text)

    assert cli.run(["rule", "deploy", "mine.yml", "--reason", "why", "--yes"]) != 0

    said = capsys.readouterr().err
    assert where in said
    assert "<text>" not in said
    assert "rulebook/" not in said


def test_a_rule_whose_samples_fail_is_not_deployed(folder: Path, capsys: Capture) -> None:
    (folder / "mine.yml").write_text(RULE.replace("failure", "success"))

    assert cli.run(["rule", "deploy", "mine.yml", "--reason", "why", "--yes"]) == 6

    said = capsys.readouterr().err
    assert "FAILED  must match: a wrong one" in said


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("filter add --reason x", 2),
        ("filter add one.yml --from abcd --reason x", 2),
        ("filter add one.yml --reason x --days 0", 2),
        ("filter add missing.yml --reason x", 2),
        ("filter add --from ffffffff --reason x", 2),
        ("filter remove nothing --reason x", 2),
        ("rule history nothing", 2),
        ("rule deploy missing.yml --reason x", 2),
    ],
)
def test_what_cannot_be_is_said(folder: Path, capsys: Capture, words: str, code: int) -> None:
    (folder / "one.yml").write_text(FILTER.replace("SOURCE", "192.0.2.8"))

    assert cli.run(words.split()) == code
    assert len(capsys.readouterr().err.splitlines()) >= 2
