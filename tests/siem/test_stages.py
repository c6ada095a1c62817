"""How far a playbook may go: nothing goes live before this very version has shown what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import InputError, Unsafe
from playbooks import playbook as files
from playbooks import sign
from playbooks.flow import new_run
from playbooks.model import Action, Playbook
from playbooks.playbook import SHIPPED_BY
from playbooks.runner import Runner
from siem import assembly, cli
from siem.assets import from_settings
from siem.commands import response
from siem.config import load
from siem.node import now_utc
from siem.response import Shelf
from siem.store.embedded import NodeDb
from siem.store.stages import SHADOW_RUNS, staged
from tests.playbooks.kit import NOON, Clock, Planner, allows, db_at, deny, playbook, run_of
from tests.playbooks.recorder import Recorder
from tests.playbooks.test_playbook import GOOD, KNOWN


@pytest.fixture
def db(tmp_path):
    made = db_at(tmp_path, Clock())
    yield made
    made.close()


def block(**said: Any) -> Playbook:
    one = playbook(deny("block"), stage="shadow", signed_by="soc")
    return msgspec.structs.replace(one, **said)


def shadowed(db: NodeDb, folder: Path, one: Playbook, times: int, begin: int = 0) -> None:
    """Runs of a playbook in shadow, to their end."""
    actuators = {"recorder": Recorder(folder / "device")}
    runner = Runner(db.runs, actuators, Planner(actuators, db.runs.now), allows)
    for number in range(begin, begin + times):
        plan = run_of(one, "x", NOON).plan
        assert db.runs.start(new_run(f"r{number}", one, plan, db.runs.now(), stage="shadow"))
        while change := runner.advance(f"r{number}"):
            if change.wake is None:
                break


def test_nothing_goes_live_before_it_has_shown_itself_twenty_times(db, tmp_path):
    shadowed(db, tmp_path, block(), SHADOW_RUNS - 1)

    with pytest.raises(Unsafe, match="block ran 19 of 20 times in shadow as it is now"):
        db.stages.put(block(), "live", "eve", "I am sure", NOON)
    assert staged(block(), db.stages.all()).stage == "shadow"

    shadowed(db, tmp_path, block(), 1, begin=SHADOW_RUNS)
    db.stages.put(block(), "live", "eve", "20 right plans", NOON)
    assert staged(block(), db.stages.all()).stage == "live"


def test_a_changed_file_begins_anew(db, tmp_path):
    shadowed(db, tmp_path, block(), SHADOW_RUNS)
    db.stages.put(block(), "live", "eve", "20 right plans", NOON)
    changed = block(version="2")

    assert staged(changed, db.stages.all()).stage == "shadow"
    assert db.stages.shadow_runs(changed) == 0
    with pytest.raises(Unsafe, match="0 of 20"):
        db.stages.put(changed, "live", "eve", "it was live before", NOON)


def test_only_runs_in_shadow_that_came_to_their_end_count(db, tmp_path):
    one = block(stage="live")
    plan = run_of(one, "x", NOON).plan
    assert db.runs.start(new_run("acts", one, plan, NOON, stage="live"))
    assert db.runs.start(new_run("open", one, plan, NOON, stage="shadow"))
    shadowed(db, tmp_path, one, 1)

    assert db.stages.shadow_runs(one) == 1


def test_the_other_stages_need_no_runs_but_a_reason(db):
    for stage in ("draft", "approve_all", "shadow"):
        db.stages.put(block(), stage, "eve", "trying", NOON)
        assert staged(block(), db.stages.all()).stage == stage
    with pytest.raises(InputError, match="reason"):
        db.stages.put(block(), "draft", "eve", "  ", NOON)


def test_a_run_goes_no_further_than_what_was_said_of_its_playbook_since(tmp_path):
    file = tmp_path / "cityward.toml"
    file.write_text(f'state_dir = "{tmp_path}/state"\n[response]\non = true\n')
    settings = load(file)
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    action = Action(
        actuator="recorder", verb="deny", target={"type": "ipv4_net", "value": "192.0.2.7"}
    )
    step = msgspec.structs.replace(deny("block"), action=action)
    one = playbook(step, stage="live", signed_by=SHIPPED_BY)
    shelf, run = Shelf(settings, db, None), run_of(one, "x", NOON)  # type: ignore[arg-type]
    planned = Planner({"recorder": Recorder(tmp_path / "device")}, now_utc)(run, one.steps["block"])

    def why() -> str:
        return shelf._gate(run, planned)[1].why

    assert "shadow" not in why()
    db.stages.put(one, "shadow", "eve", "it blocks partners", NOON)
    assert "is in shadow" in why()
    db.stages.put(block(version="2"), "draft", "eve", "another version", NOON)
    assert "shadow" not in why()
    db.close()


def test_a_file_that_calls_itself_live_is_in_shadow_until_it_may(db):
    assert staged(block(stage="live"), {}).stage == "shadow"
    assert staged(block(stage="live", waived_by="soc"), {}).stage == "live"
    assert staged(block(stage="approve_all"), {}).stage == "approve_all"


def test_a_signed_waiver_stands_for_the_runs_of_that_very_file(db, tmp_path):
    private, public = sign.new_key(NOON)
    (tmp_path / "soc.pub.yml").write_bytes(public)
    key, path = sign.read_key(tmp_path / "soc.pub.yml"), tmp_path / "scan.yml"
    path.write_text(GOOD)
    waiver = sign.beside(path, sign.WAIVER)
    waiver.write_bytes(sign.sign(path.read_bytes(), private, "soc", NOON, sign.WAIVER))

    waived = files.read_signed(path, KNOWN, [key], NOON)
    assert (waived.waived_by, waived.signed_by) == ("soc", "")
    db.stages.put(waived, "live", "eve", "ran elsewhere", NOON)

    path.write_text(GOOD + "# changed\n")
    assert files.read_signed(path, KNOWN, [key], NOON).waived_by == ""
    path.write_text(GOOD)
    gone = msgspec.structs.replace(key, revoked=NOON)
    assert files.read_signed(path, KNOWN, [gone], NOON).waived_by == ""
    waiver.write_bytes(sign.sign(path.read_bytes(), private, "soc", NOON))
    assert files.read_signed(path, KNOWN, [key], NOON).waived_by == "", "a signature is no waiver"


# ---- At a terminal


def test_the_command_says_how_far_and_refuses_live(tmp_path, monkeypatch, capsys):
    file = tmp_path / "cityward.toml"
    file.write_text(f'operator = "op-energy"\nstate_dir = "{tmp_path}/state"\n')
    settings = load(file)
    assembly.db_of(settings, from_settings(settings), now_utc).close()
    monkeypatch.setenv("CITYWARD_CONFIG", str(file))
    monkeypatch.setattr(response, "who", lambda: "eve")

    assert cli.run(["playbook", "stage", "external-scanner"]) == 0
    assert "stage shadow. 0 of 20 runs in shadow as it is now." in capsys.readouterr().out

    assert cli.run(["playbook", "stage", "external-scanner", "live", "--reason", "hurry"]) == 6
    assert "ran 0 of 20 times in shadow as it is now" in capsys.readouterr().err

    said = ["approve_all", "--reason", "the plans were right"]
    assert cli.run(["playbook", "stage", "external-scanner", *said]) == 0
    assert "is in stage approve_all" in capsys.readouterr().out
    assert cli.run(["playbook", "list", "-o", "csv"]) == 0
    assert "approve_all" in capsys.readouterr().out


def test_a_waiver_is_signed_at_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("scan.yml").write_bytes((files.LIBRARY / "external-scanner.yml").read_bytes())
    assert cli.run(["playbook", "sign", "--new-key", "soc"]) == 0

    assert cli.run(["playbook", "sign", "scan.yml", "--key", "soc.key", "--waive"]) == 0

    assert "may go live at once: scan.yml.waiver" in capsys.readouterr().err
    assert not Path("scan.yml.sig").exists()
