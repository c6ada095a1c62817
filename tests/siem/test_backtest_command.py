"""`cityward rule backtest` as a person at a shell meets it."""

from __future__ import annotations

import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from siem import assembly, cli
from siem.assets import from_settings
from siem.commands import common
from siem.config import Settings
from siem.node import now_utc

RULE = """\
title: Root
id: 6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11
level: low
logsource: {service: sshd}
detection:
  one: {user.name: root}
  condition: one
cityward: {sentence: "root from {source.ip}"}
"""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a node that kept three logins of root an hour ago, and has the rule deployed."""
    settings = Settings(state_dir=str(tmp_path / "state"))
    assembly.db_of(settings, from_settings(settings), now_utc).close()
    store = assembly.events_of(settings, now_utc, write=True)
    at = datetime.now(UTC) - timedelta(hours=1)
    store.append(
        [
            {
                "@timestamp": at + timedelta(seconds=number),
                "user.name": "root",
                "source.ip": f"192.0.2.{number}",
                "cw.logsource.service": "sshd",
                "event.ingested": at,
                "cw.record.source": "s",
                "cw.record.place": str(number),
                "cw.record.number": 0,
            }
            for number in range(3)
        ],
        {},
    )
    store.close()
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "root.yml").write_text(RULE)
    file = tmp_path / "cityward.toml"
    file.write_text(f'state_dir = "{tmp_path}/state"\n[rules]\nfolders = ["{tmp_path}/rules"]\n')
    monkeypatch.setenv("CITYWARD_CONFIG", str(file))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_it_would_have_said_is_told_and_leaves_with_three(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.run(["rule", "backtest", "rules/root.yml", "-o", "table"])

    said = capsys.readouterr()
    assert code == 3
    assert "It would have spoken 3 times in 3 events since 2" in said.out
    assert "(no asset)" not in said.out
    assert "192.0.2.2: root from 192.0.2.2" in said.out
    assert re.fullmatch(r"Root: 3 events looked at, 1 of 1 files read, \d+\.\d s\n", said.err)


def test_a_draft_is_held_against_what_is_deployed(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (node / "draft.yml").write_text(RULE.replace("root}", "root, source.ip: 192.0.2.1}", 1))
    words = ["rule", "backtest", "draft.yml", "--against", "deployed", "-q", "-o"]

    assert cli.run([*words, "table"]) == 3
    assert "which says 3: 0 new, 2 gone." in capsys.readouterr().out
    assert cli.run([*words, "ndjson"]) == 3
    rows = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0]["part"] == "total"
    assert (rows[0]["would"], rows[0]["deployed"], rows[0]["gone"]) == (1, 3, 2)
    assert {row["sentence"] for row in rows if row["part"] == "gone"} == {
        "root from 192.0.2.0",
        "root from 192.0.2.2",
    }
    assert cli.run(["rule", "backtest", "rules/root.yml", "--against", "deployed", "-q"]) == 0


def test_nothing_found_no_list_no_rule_and_no_file_leave_each_with_its_code(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (node / "nobody.yml").write_text(RULE.replace("root}", "nobody}"))
    (node / "list.yml").write_text(RULE.replace("user.name: root", '"user.name|expand": "%x%"'))
    (node / "broken.yml").write_text(RULE.replace("condition: one", "condition: two"))

    codes = [
        cli.run(["rule", "backtest", f"{name}.yml", "-o", "table"])
        for name in ("nobody", "list", "broken", "missing")
    ]

    said = capsys.readouterr()
    assert codes == [0, 4, 4, 7]
    assert "It is not evaluated here: needs %x%." in said.out
    assert f"{node}/broken.yml:7" in said.err


def test_of_a_folder_what_is_refused_is_told_and_the_rest_is_tried(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = RULE.replace("6f0d4bb0", "7f0d4bb0")
    (node / "rules" / "a.yml").write_text(other.replace("condition: one", "condition: two"))
    (node / "rules" / "b.yml").write_text("title: [")
    (node / "rules" / "c.yml").write_bytes(b"\xff")
    words = ["rule", "backtest", "rules", "-q", "-o", "table"]

    assert cli.run(words) == 4
    said = capsys.readouterr()
    assert "It would have spoken 3 times" in said.out
    lines = sorted(said.err.splitlines())
    assert lines[0].startswith("Not tried: it cannot be read (")
    assert f"{node}/rules/a.yml:7" in said.err
    assert f"{node}/rules/b.yml:2" in said.err
    assert len(lines) == 3

    (node / "rules" / "a.yml").unlink()
    (node / "rules" / "b.yml").unlink()
    assert cli.run(words) == 7
    assert "It would have spoken 3 times" in capsys.readouterr().out


def test_a_time_of_which_nothing_is_kept_is_said(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rule", "backtest", "rules/root.yml", "--until", "2d", "-q", "-o", "table"]

    assert cli.run(words) == 0
    assert capsys.readouterr().out == "Root\n  No event of this time is kept.\n"


def test_what_is_damaged_is_listed_and_leaves_with_seven(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    day = node / "state" / "events" / "parquet" / "day=2026-03-01"
    day.mkdir()
    (day / f"{0:016d}-{0:016d}.parquet").write_bytes(b"PAR1 and no end")

    words = ["rule", "backtest", "rules/root.yml", "-q", "-o", "table"]
    code = cli.run(words)

    said = capsys.readouterr()
    assert code == 7
    assert "It would have spoken 3 times" in said.out
    assert "Not looked at:" in said.err
    assert f"{day}/" in said.err
    assert cli.run([*words, "--until", "2d"]) == 7
    assert "No event of this time was looked at." in capsys.readouterr().out


def test_a_search_says_which_files_it_could_not_read_and_leaves_with_seven(
    node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["search", "user.name:root", "-q", "-o", "csv"]) == 0
    assert capsys.readouterr().err == ""
    day = node / "state" / "events" / "parquet" / "day=2026-03-01"
    day.mkdir()
    (day / f"{0:016d}-{0:016d}.parquet").write_bytes(b"PAR1 and no end")

    code = cli.run(["search", "user.name:root", "-q", "-o", "csv"])

    said = capsys.readouterr()
    assert code == 7
    assert len(said.out.splitlines()) == 4
    assert "1 file could not be read, so events may be missing:" in said.err
    assert f"  {day}/" in said.err


def test_the_first_interrupt_tells_what_it_had_come_to(
    node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        common.Teller, "progress", lambda teller, text: signal.raise_signal(signal.SIGINT)
    )

    code = cli.run(["rule", "backtest", "rules", "-o", "table"])

    said = capsys.readouterr()
    assert code == 130
    assert "It would have spoken 3 times in 3 events since 2" in said.out
    assert "Interrupted" in said.err
