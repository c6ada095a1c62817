"""`cityward playbook plan` and `breaker`, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cityward import Analytic, Finding
from siem import assembly, cli
from siem.assets import from_settings
from siem.config import load
from siem.node import now_utc
from siem.store.protocol import Range

PORT_SCAN = "7e536e20-724d-4d43-b901-fb0f998f9cc8"


@pytest.fixture
def node(tmp_path: Path) -> tuple[str, str]:
    """Settings of a node with one finding, and its id."""
    file = tmp_path / "cityward.toml"
    file.write_text(
        f'operator = "op-tram"\nstate_dir = "{tmp_path}/state"\n'
        '[[zone]]\nid = "dmz"\ntype = "dmz"\nnetworks = ["10.4.0.0/24"]\n'
        '[response.actuators.ticket]\nurl = "https://desk.example/tickets"\n'
    )
    settings = load(file)
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    fields = {"source.ip": "203.0.113.7", "cw.operator": "op-tram"}
    found = Finding(
        analytic=Analytic(id=PORT_SCAN, name="Port scan", kind="correlation", version="1"),
        title="Port scan from outside",
        description="203.0.113.7 tried 200 ports",
        severity="high",
        group=(("source.ip", "203.0.113.7"),),
        first_seen=now_utc(),
        last_seen=now_utc(),
        events=(),
        fields=fields,
    )
    db.keep([found], checkpoint=1)
    (row,) = db.search("", Range()).rows
    db.close()
    return str(file), row["finding.id"]


def say(capsys: Any, *words: str) -> tuple[int, str, str]:
    code = cli.run(words)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_plan_is_read_before_somebody_says_yes(capsys: Any, node: tuple[str, str]) -> None:
    config, id = node

    code, out, _ = say(
        capsys, "playbook", "plan", "external-scanner", "--finding", id[:12], "-c", config,
        "-o", "table",
    )  # fmt: skip

    assert code == 0
    lines = out.splitlines()
    assert lines[0] == (
        "External scanner at the perimeter: what it would do about Port scan from outside (high)"
    )
    assert "Nothing was sent." in lines[1]
    assert "1  tell (A0, ticket): would be done" in lines
    assert any(one.endswith("  block (A1, nftables): not done") for one in lines)
    assert any(
        "NO       3 actuator: op-tram has set up no actuator nftables." in one for one in lines
    )
    assert any("NO       9 corroboration: Only one rule says so" in one for one in lines)
    assert "   instead  By hand: block 203.0.113.7." in lines


def test_a_plan_is_json_for_programs(capsys: Any, node: tuple[str, str]) -> None:
    config, id = node

    _, out, _ = say(
        capsys, "playbook", "plan", "external-scanner", "--finding", id, "-c", config, "-o", "json"
    )

    made = json.loads(out)
    assert len(made["hash"]) == 64
    assert (made["operator"], made["finding"]) == ("op-tram", id)
    assert {"tell", "block"} <= {one["name"] for one in made["actions"]}


def test_what_is_not_there_is_said(capsys: Any, node: tuple[str, str]) -> None:
    config, id = node
    plan = ("playbook", "plan")

    _, _, no_finding = say(capsys, *plan, "external-scanner", "--finding", "ffff", "-c", config)
    _, _, no_playbook = say(capsys, *plan, "nothing", "--finding", id, "-c", config)
    _, _, no_actuator = say(capsys, "playbook", "breaker", "nftables", "-c", config)

    assert "there is no finding ffff" in no_finding
    assert "there is no playbook nothing" in no_playbook
    assert "no actuator is called nftables" in no_actuator


def test_a_breaker_is_looked_at_and_closed(capsys: Any, node: tuple[str, str]) -> None:
    config, _ = node

    code, out, _ = say(
        capsys, "playbook", "breaker", "ticket", "--close", "the desk is back", "-c", config
    )

    assert code == 0
    assert out.startswith("The circuit breaker of ticket is closed. 0 failures and 0 rollbacks")
