"""`cityward rule`: what it prints, and how it leaves."""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from siem import assembly, config
from siem.assets import from_settings
from siem.cli import run
from siem.node import now_utc
from siem.ruleset import RULES_FOLDER
from siem.samples import collect
from siem.store.protocol import OFF_IN_SETTINGS, Switch
from siem.store.rulebook import Version

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


def test_what_is_wrong_stands_in_the_order_of_its_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.yml"
    file.write_text("---\n".join(["title: No rule\n"] * 12))

    assert run(["rule", "check", str(file), "-o", "ndjson"]) == 4

    assert [row["where"] for row in rows(capsys)] == [f"{file}:{line}" for line in range(1, 24, 2)]


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


@pytest.mark.parametrize("named", [(), ("-",)], ids=["alone", "dash"])
def test_a_line_is_tried_on_every_rule_of_its_log_source(
    named: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write(tmp_path)
    from_standard_input(monkeypatch, LINE.encode() + b"\n")

    assert run(["rule", "try", *named, "--rules", str(file), "-o", "ndjson"]) == 0
    found = {row["rule"]: row for row in rows(capsys) if row["action"] != "finding"}
    assert found["Root fails to log in"]["result"] == "matched"
    assert found["SSH login"]["result"] == "no match"
    assert found["SSH login"]["why"] == "login: event.outcome is success – saw failure"
    assert found["Root fails to log in"]["fields"]["source.ip"] == "192.0.2.1"
    assert found["Root fails to log in"]["collector"] == "syslog"


FILTER = """\
title: Not root of the gateway
id: 0d4f4c1e-3f0a-4c53-9d0a-8f6d6b1b9a21
description: Its own look after the night.
author: me
logsource: {product: linux, service: sshd}
filter:
  rules: [6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11]
  ours: {source.ip: 192.0.2.1}
  condition: not ours
taxonomy: cityward
cityward: {expires: EXPIRES, reason: Its own look after the night.}
"""


def test_a_line_is_tried_on_what_counts_at_the_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules").mkdir()
    file = write(tmp_path / "rules")
    (tmp_path / "cityward.toml").write_text(
        'operator = "op-x"\nstate_dir = "state"\n[rules]\nshipped = false\nfolders = ["rules"]\n'
    )
    monkeypatch.chdir(tmp_path)
    settings = config.load(tmp_path / "cityward.toml")
    assembly.node_of(settings, sources=[]).close()
    other = tmp_path / "other.yml"
    other.write_text(RULE.replace("title: Root fails", "title: Root failed"))
    hides = tmp_path / "filter.yml"
    soon = datetime.now(UTC) + timedelta(days=30)
    hides.write_text(FILTER.replace("EXPIRES", f"{soon:%Y-%m-%d}"))

    def tried(*more: str) -> tuple[str, str, str, bool]:
        from_standard_input(monkeypatch, LINE.encode() + b"\n")
        capsys.readouterr()
        assert run(["rule", "try", *more, "-o", "ndjson"]) == 0
        row, *findings = rows(capsys)
        return row["rule"], row["result"], row["why"], bool(findings)

    def does(*words: str) -> None:
        assert run([*words, "--reason", "to see what a trial says", "--yes"]) == 0

    before = tried()
    does("rule", "deploy", str(other))
    deployed, as_in_its_file = tried(), tried("--rules", str(file))
    does("filter", "add", str(hides))
    filtered = tried()
    (tmp_path / "auth.log").write_text(LINE + "\n")
    assert run(["ingest", "auth.log", "-o", "ndjson"]) == 0
    read = rows(capsys)
    with closing(assembly.db_of(settings, from_settings(settings), now_utc)) as db:
        off = Switch("6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11", False, "works", "ada", now_utc())
        assert db.accounts.switch(off)
    switched = tried()

    assert (before[0], before[1], before[3]) == ("Root fails to log in", "matched", True)
    assert (deployed[0], deployed[3]) == ("Root failed to log in", True)
    assert (as_in_its_file[0], as_in_its_file[3]) == ("Root fails to log in", True)
    assert (filtered[1], filtered[3]) == ("no match", False)
    assert "source.ip is 192.0.2.1" in filtered[2]
    assert read == []
    assert switched[1:] == ("not evaluated", "switched off by ada: works", False)


ELSEWHERE = RULE.replace("title: Root fails", "title: Elsewhere root fails").replace(
    "sshd}", "sudo}"
)
REFUSED = RULE.replace("user.name: root", "user.name|zzz: root").replace("7b11", "7b12")
AGAIN = """\
title: Root fails again and again
id: 6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b13
level: high
correlation:
  type: event_count
  rules: [b2a2e1a6-0000-4000-8000-000000000001]
  group-by: [source.ip]
  timespan: 10m
  condition: {gte: 5}
"""
FAILED = """\
title: A failed login
id: b2a2e1a6-0000-4000-8000-000000000001
logsource: {product: linux, service: sshd}
level: low
detection: {a: {event.outcome: failure}, condition: a}
taxonomy: cityward
"""


def test_of_named_rules_it_is_told_what_became_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "others.yml"
    file.write_text("---\n".join((ELSEWHERE, REFUSED, AGAIN, FAILED)))
    from_standard_input(monkeypatch, LINE.encode() + b"\n")
    code = run(["rule", "try", "--rules", str(file), "-o", "ndjson"])
    said = {row["rule"]: row for row in rows(capsys) if row["action"] == "rule"}
    from_standard_input(monkeypatch, LINE.encode() + b"\n")

    assert run(["rule", "try", "--rules", str(file), "-o", "table"]) == code == 4
    assert {name: row["result"] for name, row in said.items()} == {
        f"{file}:22": "refused",
        "Elsewhere root fails to log in": "not asked",
        "Root fails again and again": "no finding",
    }
    assert "unknown modifier 'zzz'" in said[f"{file}:22"]["why"]
    story = capsys.readouterr().out
    assert "Of the rules that were named\n" in story
    assert "no event of its log source came: linux/*/sudo" in story
    assert "its condition never held" in story


def test_a_correlation_that_was_deployed_is_tried_in_a_new_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "both.yml").write_text(f"{FAILED}---\n{AGAIN}")
    (tmp_path / "cityward.toml").write_text(
        'operator = "op-x"\nstate_dir = "state"\n[rules]\nshipped = false\nfolders = ["rules"]\n'
    )
    monkeypatch.chdir(tmp_path)
    settings = config.load(tmp_path / "cityward.toml")
    assembly.node_of(settings, sources=[]).close()
    id, other = "6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b13", AGAIN.replace("gte: 5", "gte: 4")
    deployed = Version(0, id, "correlation", "Again", other, "", "ada", "why", now_utc(), True)
    with closing(assembly.db_of(settings, from_settings(settings), now_utc)) as db:
        db.rulebook.deploy(deployed, seen=0)
    (tmp_path / "mine.yml").write_text(AGAIN.replace("gte: 5", "gte: 1"))
    from_standard_input(monkeypatch, LINE.encode() + b"\n")
    capsys.readouterr()

    assert run(["rule", "try", "--rules", "mine.yml", "-o", "ndjson"]) == 0

    assert "Root fails again and again" in [row["rule"] for row in rows(capsys)]


def test_of_a_named_rule_that_is_off_it_is_told_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = FAILED.replace("event.outcome: failure", "user.name|expand: '%nobody%'")
    (tmp_path / "mine.yml").write_text(f"{needs}---\n{AGAIN}---\n{ELSEWHERE}")
    (tmp_path / "cityward.toml").write_text(
        f'[rules]\nshipped = false\noff = ["{ELSEWHERE.partition("id: ")[2][:36]}"]\n'
    )
    monkeypatch.chdir(tmp_path)
    from_standard_input(monkeypatch, LINE.encode() + b"\n")

    assert run(["rule", "try", "--rules", "mine.yml", "-o", "ndjson"]) == 0

    said = {row["rule"]: (row["result"], row["why"]) for row in rows(capsys)}
    assert said["A failed login"] == ("not evaluated", "needs %nobody%")
    assert said["Root fails again and again"][0] == "not evaluated"
    assert said["Elsewhere root fails to log in"] == ("not evaluated", OFF_IN_SETTINGS)


@pytest.mark.parametrize("barred", ["", "operator.key", "node.db"])
def test_a_state_that_is_not_for_us_is_left_out_and_that_is_said(
    barred: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = config.Settings(state_dir=str(tmp_path), rules=config.Rules(shipped=False))
    assembly.node_of(settings, sources=[]).close()
    access, path = os.access, tmp_path / barred
    monkeypatch.setattr(os, "access", lambda asked, how: asked != path and access(asked, how))

    with assembly.book_of(settings) as book:
        assert book is None

    assert f"left out: {path} is not for us" in caplog.text


def test_a_named_rule_counts_in_the_place_of_one_of_the_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = RULES_FOLDER / "shared" / "ssh_login_failed.yml"
    file = tmp_path / "mine.yml"
    file.write_text(shipped.read_text().replace("title: ", "title: My own – ", 1))
    from_standard_input(monkeypatch, LINE.encode() + b"\n")

    assert run(["rule", "try", "--rules", str(file), "-o", "ndjson"]) == 0

    (told,) = [row for row in rows(capsys) if "SSH login failed" in row["rule"]]
    assert told["rule"].startswith("My own – ")


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


# ---- list and show


def test_rules_are_listed_as_the_node_said_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = watched(tmp_path, capsys)

    assert run(["rule", "list", "-c", settings, "-o", "ndjson"]) == 0
    (row,) = rows(capsys)
    told = {name: row[name] for name in ("title", "state", "evaluated", "matches", "arriving")}
    assert told == {
        "title": "Root fails to log in",
        "state": "on",
        "evaluated": 1,
        "matches": 1,
        "arriving": True,
    }
    assert row["remarks"] == []
    assert run(["rule", "-c", settings, "-o", "table", "--state", "off", "--state", "refused"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "0 of 1 rules\n")


def test_where_no_node_has_run_the_rules_of_the_files_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = written(tmp_path)

    assert run(["rule", "list", "-c", settings, "-o", "csv"]) == 0
    assert capsys.readouterr().out == (
        "state,level,title,evaluated,matches,share,remarks,id\n"
        "on,low,Root fails to log in,0,0,0.0,nothing has arrived for it yet,"
        "6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11\n"
    )


def test_what_was_switched_off_says_by_whom_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    settings = watched(tmp_path, capsys)
    loaded = config.load(Path(settings))
    with closing(assembly.db_of(loaded, from_settings(loaded), now_utc)) as db:
        switch = Switch("6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11", False, "mills", "ada", now_utc())
        db.accounts.switch(switch)

    assert run(["rule", "list", "-c", settings, "-o", "table", "--state", "off"]) == 0
    out = capsys.readouterr().out
    assert re.search(
        r"not evaluated +low +Root fails to log in +1 +1 +switched off by ada: mills +6f0d4bb0", out
    )


@pytest.mark.parametrize("word", ["6f0d4bb0", "ROOT fails to log in", "fails"])
def test_all_that_is_known_of_a_rule_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    settings = watched(tmp_path, capsys)

    assert run(["rule", "show", word, "-c", settings, "-o", "table"]) == 0
    out = capsys.readouterr().out
    assert "title           Root fails to log in\n" in out
    assert "events seen     1\nmatches         1\n" in out
    assert "log source      linux/*/sshd\narriving        yes\n" in out
    assert "false positive  Me.\n" in out
    assert run(["rule", "show", word, "-c", settings, "-o", "json"]) == 0
    (row,) = msgspec.json.decode(capsys.readouterr().out)
    assert (row["id"], row["matches"]) == ("6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11", 1)


def test_a_rule_that_is_none_or_several_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = written(tmp_path)
    other = RULE.replace("6f0d4bb0", "6f0d4bb1").replace("Root", "Toor")
    (tmp_path / "rules" / "other.yml").write_text(other)

    assert run(["rule", "show", "nobody", "-c", settings]) == 2
    assert "there is no rule 'nobody'" in capsys.readouterr().err
    assert run(["rule", "show", "6f0d4bb", "-c", settings]) == 2
    assert "'6f0d4bb' stands for 2 rules" in capsys.readouterr().err


def written(folder: Path) -> str:
    """A settings file with the one rule, and a line for it."""
    (folder / "rules").mkdir()
    write(folder / "rules")
    (folder / "auth.log").write_text(LINE + "\n")
    settings = folder / "cityward.toml"
    settings.write_text(
        f'state_dir = "{folder / "state"}"\n[rules]\nshipped = false\n'
        f'folders = ["{folder / "rules"}"]\n'
    )
    return str(settings)


def watched(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Settings of a node that has read the line."""
    settings = written(folder)
    assert run(["ingest", "--keep", str(folder / "auth.log"), "-c", settings, "-q"]) == 0
    capsys.readouterr()
    return settings
