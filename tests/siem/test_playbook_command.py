"""`cityward playbook` as a person meets it: list, show, check, build, sign."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from siem import cli

MINE = """\
name: Night scan
description: Keeps a scanner out at night.
created_by: night shift
created: 2026-11-28
trigger: {when: {rule.id: a857feef-da01-49e1-9429-51e6b5bc5d7e}}
workflow_exception: ask
workflow:
  start: {type: start, on_completion: block}
  block:
    type: action
    class: A1
    time_box: PT1H
    rollback: device
    agent: nftables
    commands:
      - type: cityward-actuator
        command: {action: deny, target: {ipv4_net: "${finding.source.ip}"}}
    on_success: end
    on_failure: ask
  ask:
    type: action
    agent: duty officer
    commands: [{type: manual, command: "Block ${finding.source.ip} by hand."}]
    on_completion: end
  end: {type: end}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CITYWARD_CONFIG", raising=False)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "night.yml").write_text(MINE)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.run(["playbook", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_six_playbooks_ship_in_shadow(capsys):
    code, out, _ = run(capsys, "list", "-o", "ndjson")
    rows = [json.loads(line) for line in out.splitlines()]

    assert code == 0
    assert len(rows) == 6
    assert {row["stage"] for row in rows} == {"shadow"}
    assert {row["signed"] for row in rows} == {"cityward, as shipped"}


def test_the_steps_of_one_are_shown_in_words(capsys):
    code, out, err = run(capsys, "show", "rogue-ot-master", "-o", "csv")

    assert code == 0
    assert "cut,action,A3,nftables: deny ${finding.source.ip}" in out
    assert '30 min,device,"then end, else ask"' in out
    assert "shadow" in err


def test_a_step_that_calls_another_playbook_names_it(capsys, here):
    calls = "  block: {type: playbook-action, playbook_id: External scanner at the perimeter,\n"
    begin, rest = MINE.split("  block:\n", maxsplit=1)[0], MINE[MINE.index("  ask:\n") :]
    (here / "own" / "outer.yml").write_text(
        f"{begin}{calls}    on_success: end, on_failure: ask}}\n{rest}"
    )

    code, out, _ = run(capsys, "show", "own/outer.yml", "-o", "csv")

    assert code == 0
    assert "block,playbook-action,,calls External scanner at the perimeter,," in out


def test_a_file_is_printed_as_it_is_to_begin_ones_own_with(capsys):
    assert run(capsys, "show", "own/night.yml", "--file")[1] == MINE


def test_a_fault_is_told_with_its_line(capsys, here):
    (here / "own" / "night.yml").write_text(MINE.replace("    time_box: PT1H\n", ""))

    code, out, _ = run(capsys, "check", "own", "-o", "csv")

    assert code == 4
    assert "own/night.yml:9,a step of class A1 without time_box," in out


def test_what_is_built_is_the_same_playbook(capsys, here):
    built = run(capsys, "build", "own/night.yml", "night.json")
    checked = run(capsys, "check", "night.json", "-o", "table")

    assert built[0] == 0
    assert json.loads((here / "night.json").read_text())["spec_version"] == "cacao-2.0"
    assert (checked[0], checked[1]) == (0, "Nothing is wrong.\n")


def test_a_playbook_from_elsewhere_is_shown_and_not_taken(capsys, here):
    foreign = {"type": "playbook", "name": "X\x1b[2J", "workflow": {"a": {"type": "start"}}}
    (here / "foreign.json").write_text(json.dumps(foreign))

    shown = run(capsys, "show", "foreign.json", "-o", "table")
    checked = run(capsys, "check", "foreign.json", "-o", "csv")

    assert shown[0] == 0
    assert "it is shown, and never run" in shown[2]
    assert "\x1b" not in shown[1] + shown[2]
    assert checked[0] == 4


def test_a_signed_playbook_counts_by_the_key_in_the_settings(capsys, here):
    (here / "own" / "night.yml").write_text(MINE)
    made = run(capsys, "sign", "--new-key", "soc")
    signed = run(capsys, "sign", "own/night.yml", "--key", "soc.key")
    (here / "cityward.toml").write_text(
        'operator = "op-x"\n'
        '[response]\nshipped = false\nfolders = ["own"]\nkeys = ["soc.pub.yml"]\n'
    )

    code, out, err = run(capsys, "list", "-c", "cityward.toml", "-o", "ndjson")

    assert (made[0], signed[0], code) == (0, 0, 0), made[2] + signed[2] + err
    assert (here / "soc.key").stat().st_mode & 0o77 == 0
    assert json.loads(out)["signed"] == "soc"

    (here / "own" / "night.yml").write_text(MINE.replace("PT1H", "PT9H"))
    code, _, err = run(capsys, "list", "-c", "cityward.toml", "-o", "ndjson")

    assert code == 4
    assert "changed after soc signed it" in err


def test_a_key_is_not_written_over(capsys):
    run(capsys, "sign", "--new-key", "soc")

    code, _, err = run(capsys, "sign", "--new-key", "soc")

    assert code == 2
    assert "it is there already" in err


def test_a_name_that_leads_out_of_the_folder_is_no_name(capsys):
    assert run(capsys, "sign", "--new-key", "../x")[0] == 2


def test_what_is_not_there_is_said(capsys):
    code, _, err = run(capsys, "show", "nobody")

    assert code == 7
    assert "there is no playbook nobody" in err
