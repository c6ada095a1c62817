"""People, tokens and the audit trail from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from siem import assembly
from siem import config as settings_file
from siem.assets import from_settings
from siem.cli import run
from siem.console.people import hash_of
from siem.node import now_utc
from siem.store.embedded import NodeDb


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeDb:
    monkeypatch.chdir(tmp_path)
    text = f'operator = "op-x"\nstate_dir = "{tmp_path / "state"}"\n'
    (tmp_path / "cityward.toml").write_text(text)
    settings = settings_file.load(tmp_path / "cityward.toml")
    return assembly.db_of(settings, from_settings(settings), now_utc)


def test_people_come_and_go(db: NodeDb, capsys: pytest.CaptureFixture[str]) -> None:
    codes = [
        run(["person", "add", "ada", "--role", "analyst", "--role", "administrator"]),
        run(["person", "add", "bob", "--role", "administrator"]),
        run(["person", "disable", "ada"]),
        run(["person", "enable", "ada"]),
        run(["person", "reset", "ada", "--role", "engineer"]),
        run(["person", "disable", "bob"]),
    ]
    capsys.readouterr()
    run(["person", "-o", "json"])

    rows = json.loads(capsys.readouterr().out)
    assert codes[:5] == [0] * 5
    assert codes[5] != 0
    assert [(row["name"], row["roles"], row["one_time_password"]) for row in rows] == [
        ("ada", ["engineer"], True),
        ("bob", ["administrator"], True),
    ]
    assert [one.action for one in db.audited(limit=2)] == [
        "person: reset, engineer",
        "person: enable",
    ]


def test_a_token_is_printed_once_and_revoked(
    db: NodeDb, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["person", "add", "ada"])
    capsys.readouterr()

    made = run(["token", "add", "ticket desk", "--person", "ada", "--scope", "triage"])
    secret = capsys.readouterr().out.strip()

    held = db.accounts.holder_of(hash_of(secret), now_utc())
    assert made == 0
    assert held is not None
    assert held[1].scopes == ("triage",)
    assert run(["token", "revoke", held[1].id]) == 0
    assert run(["token", "revoke", held[1].id]) != 0
    assert db.accounts.holder_of(hash_of(secret), now_utc()) is None
    assert secret not in msgspec.json.encode(db.audited()).decode()


def test_the_trail_is_listed_and_verified(db: NodeDb, capsys: pytest.CaptureFixture[str]) -> None:
    run(["person", "add", "ada"])
    capsys.readouterr()
    run(["audit", "list", "ada", "-o", "json"])
    head = json.loads(capsys.readouterr().out)[0]["hash"]

    whole = run(["audit", "verify", "--head", head])
    other = run(["audit", "verify", "--head", "0" * 64])
    db._db.execute("DROP TRIGGER audit_unchanged")
    db._db.execute("UPDATE audit SET person = 'eve'")
    touched = run(["audit", "verify"])

    assert (whole, other, touched) == (0, 3, 3)
    assert "line 1 was changed" in capsys.readouterr().out
