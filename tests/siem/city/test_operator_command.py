"""`cityward operator` at the hub: admit, list, revoke."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from siem import cli
from siem.city.lease import alone

HUB = 'operator = "city"\nstate_dir = "{}"\n[hub]\n'


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "hub.toml"
    file.write_text(HUB.format(tmp_path / "state"))
    monkeypatch.setenv("CITYWARD_CONFIG", str(file))
    return file


def test_an_operator_is_admitted_listed_and_revoked(hub, capsys):
    assert cli.run(["operator", "enrol", "op-metro", "--sector", "transport.public"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("cwo1.")
    assert "within 60 minutes" in err
    assert "cityward operator join https://localhost:8443" in err

    assert cli.run(["operator", "list", "-o", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["operator"], row["state"], row["seq"]) == ("op-metro", "waiting", 0)
    assert row["sector"] == "transport.public"

    assert cli.run(["operator", "revoke", "op-metro"]) == 0
    cli.run(["operator", "list", "-o", "json"])
    assert json.loads(capsys.readouterr().out)[0]["state"] == "revoked"
    cli.run(["audit", "list", "-o", "json"])
    acts = [one["action"] for one in json.loads(capsys.readouterr().out)]
    assert acts[:2] == ["operator revoke", "operator enrol"]


def test_the_doctor_looks_at_a_hub_as_one(hub, tmp_path, capsys):
    cli.run(["operator", "list"])
    capsys.readouterr()
    cli.run(["doctor", "-o", "json"])
    checks = {one["check"] for one in json.loads(capsys.readouterr().out)}
    assert "port of the exchange" in checks
    assert "sources" not in checks

    with alone(tmp_path / "state" / "hub.lock"):
        cli.run(["doctor", "-o", "csv"])
    assert "the hub is running and holds its ports" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["enrol", "../x"], "no name of an operator"),
        (["enrol", "city"], "no name of an operator"),
        (["enrol", "op-x", "--sector", "press"], "no sector"),
        (["revoke", "op-x"], "there is no operator 'op-x'"),
    ],
)
def test_what_cannot_be_is_said(hub, capsys, words, said):
    assert cli.run(["operator", *words]) == 4
    assert said in capsys.readouterr().err


def test_a_node_admits_nobody(tmp_path, monkeypatch, capsys):
    file = tmp_path / "node.toml"
    file.write_text(f'state_dir = "{tmp_path / "state"}"\n')
    monkeypatch.setenv("CITYWARD_CONFIG", str(file))

    assert cli.run(["operator", "enrol", "op-x"]) == 4
    assert "at the hub" in capsys.readouterr().err
