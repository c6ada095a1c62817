"""Decisions at a terminal: plan, approve, refuse, undo, stop; a refusal leaves with 6."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from siem import assembly, cli
from siem.assets import from_settings
from siem.commands import response
from siem.config import load
from siem.node import now_utc
from siem.store.protocol import Person
from tests.siem.console.fake_response import SCANNER, FakeResponder, library

FINDING = {
    "finding.id": "f1",
    "finding.title": "Scanner at the perimeter",
    "finding.severity": "high",
    "source.ip": "198.51.100.73",
}
Said = tuple[int, str, str]
Cityward = Callable[..., Said]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A node with one run that waits, one effect in force, and three people."""
    file = tmp_path / "cityward.toml"
    file.write_text(f'operator = "op-energy"\nstate_dir = "{tmp_path}/state"\n')
    known = load(file)
    known.state_path.mkdir()
    with closing(assembly.db_of(known, from_settings(known), now_utc)) as db:
        for name, roles in (("ada", ("analyst",)), ("bo", ("approver",)), ("eve", ("engineer",))):
            db.accounts.add(Person(name, msgspec.convert(roles, tuple), "x"))
        desk = FakeResponder(db.runs, lambda id: FINDING, lambda: datetime.now(UTC))
        desk.shelf = library()
        desk.waiting(SCANNER, "f1", "ada", "run-waits")
        desk.applied(SCANNER, "f1", "ada", "run-held")
    return file


@pytest.fixture
def cityward(
    settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cityward:
    monkeypatch.setenv("CITYWARD_CONFIG", str(settings))

    def run(*words: str, by: str = "bo") -> Said:
        monkeypatch.setattr(response, "who", lambda: by)
        capsys.readouterr()
        code = cli.run(("playbook", *words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_what_waits_is_listed_and_a_yes_is_kept(cityward: Cityward) -> None:
    code, out, _ = cityward("approve")
    assert code == 0
    assert "run-waits  Block the scanner for 4 h?" in out

    code, _, err = cityward("approve", "run-waits", "--reason", "checked")

    assert code == 0
    assert "is kept, as approver" in err


@pytest.mark.parametrize(
    ("by", "words", "said"),
    [
        ("ada", (), "You asked for it"),
        ("eve", (), "eve is no analyst or approver"),
        ("mallory", (), "mallory is no analyst or approver"),
        ("bo", ("--plan", "0000"), "not the one that you saw"),
    ],
)
def test_a_yes_that_does_not_count_leaves_with_6(
    by: str, words: tuple[str, ...], said: str, cityward: Cityward
) -> None:
    code, _, err = cityward("approve", "run-waits", "--reason", "x", *words, by=by)

    assert code == 6
    assert said in err
    assert "yes: nobody yet" in cityward("approve")[1]


def test_a_run_that_waits_for_nothing_takes_no_yes(cityward: Cityward) -> None:
    assert cityward("approve", "run-held", "--reason", "x")[0] == 6


def test_what_is_in_force_is_listed_and_undone(cityward: Cityward) -> None:
    code, out, _ = cityward("list", "--in-force", "-o", "ndjson")
    row = json.loads(out)
    assert (code, row["what"], row["target"]) == (0, "deny", "ipv4_net 198.51.100.73")
    assert row["why"] == "Scanner at the perimeter"

    assert cityward("undo", row["effect"][:8], "--reason", "the partner called")[0] == 0
    assert cityward("undo", "run-held")[0] == 0
    assert cityward("undo", "ffff")[0] == 7


def test_a_no_needs_a_reason(cityward: Cityward) -> None:
    assert cityward("refuse", "run-waits", "--reason", " ")[0] == 2
    assert cityward("refuse", "run-waits", "--reason", "our own scanner")[0] == 0
    assert cityward("refuse", "nothing", "--reason", "x")[0] == 7


def test_stop_and_start_are_kept_with_who_and_why(cityward: Cityward, settings: Path) -> None:
    assert cityward("stop", "--reason", "wrong target")[0] == 0
    assert cityward("stop", "--reason", "x", "--actuator", "nftables")[0] == 0
    known = load(settings)
    with closing(assembly.db_of(known, from_settings(known), now_utc)) as db:
        assert [(one.name, one.by) for one in db.runs.switches()] == [
            ("actuator:nftables", "bo"),
            ("global", "bo"),
        ]

    assert cityward("start", "--reason", "mended")[0] == 0
    (known.state_path / "STOP").touch()
    code, _, err = cityward("start", "--reason", "mended")

    assert code == 6
    assert "a file stops everything still" in err


def test_a_real_finding_is_planned_and_started_only_where_responses_are_on(
    tmp_path: Path, cityward: Cityward, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        f"2026-03-01T10:00:{second:02}+00:00 gw sshd[7]: Failed password for root from 192.0.2.7"
        f" port 4{second:03} ssh2\n"
        for second in range(8)
    )
    (tmp_path / "auth.log").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    cli.run(("init", "node", "--yes", "--sector", "energy.electricity", "--source", "auth.log"))
    file = tmp_path / "node" / "cityward.toml"
    cli.run(("ingest", "--keep", "auth.log", "-c", str(file)))
    known = load(file)
    with closing(assembly.db_of(known, from_settings(known), now_utc)) as db:
        ((_, finding),) = db.changes_after(0, 10)
    said = ("run", "remote-access-guessing", "--finding", finding, "-c", str(file))

    code, out, _ = cityward(*said)
    assert code == 0
    assert "Nothing was sent." in out
    code, _, err = cityward(*said, "--live")
    assert code == 6
    assert "responses are off" in err

    file.write_text(file.read_text() + "\n[response]\non = true\n")
    code, _, err = cityward(*said, "--live")
    assert code == 0
    assert "is started. Somebody else approves it" in err
    assert cityward(*said, "--live")[0] == 7
