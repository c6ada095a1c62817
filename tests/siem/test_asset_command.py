"""`cityward asset` and `cityward calendar`, as a person types them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from siem import assembly, cli
from siem.assets import from_settings
from siem.config import load
from siem.node import now_utc
from siem.store.protocol import Learnt, Observed

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "cityward.toml"
    file.write_text(
        f'state_dir = "{tmp_path}/state"\n'
        '[[zone]]\nid = "bay-7"\ntype = "control"\nnetworks = ["192.0.2.64/26"]\n'
        '[[asset]]\nid = "scada-1"\naddresses = ["192.0.2.5"]\n'
    )
    settings = load(file)
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    seen = [
        Observed(id, NOON, NOON, [id], speaks=["modbus server"], zone="bay-7")
        for id in ("192.0.2.70", "192.0.2.71", "192.0.2.5")
    ]
    db.keep([], checkpoint=1, learnt=Learnt(seen, numbers={"since": 1_767_614_400_000_000}))
    db.close()
    return str(file)


def say(capsys: Any, *words: str) -> tuple[int, str, str]:
    code = cli.run(words)
    out, err = capsys.readouterr()
    return code, out, err


def rows(capsys: Any, config: str, *words: str) -> list[dict[str, Any]]:
    _, out, _ = say(capsys, "asset", "list", *words, "-c", config)
    return [json.loads(line) for line in out.splitlines()]


def test_a_noun_alone_lists_and_says_that_the_node_learns(capsys: Any, config: str) -> None:
    code, out, err = say(capsys, "asset", "-c", config, "-o", "csv")

    assert code == 0
    assert out.splitlines()[0].startswith("state,id,name,type,zone,addresses,speaks,findings")
    assert "3 of 3 assets" in err
    assert "until 2026-01-06 12:00 UTC nothing is news" in err


def test_approving_correcting_merging_and_retiring_leave_a_history(
    capsys: Any, config: str
) -> None:
    why = ("--reason", "walked there", "-c", config)
    say(capsys, "asset", "approve", "192.0.2.70", "--role", "ot_writer", "--type", "plc", *why)
    say(capsys, "asset", "merge", "192.0.2.70", "192.0.2.71", *why)
    say(capsys, "asset", "retire", "192.0.2.71", *why)
    code, out, _ = say(capsys, "asset", "show", "192.0.2.70", "-c", config, "-o", "json")

    (shown,) = json.loads(out)
    assert code == 0
    assert (shown["state"], shown["type"], shown["roles"]) == ("retired", "plc", ["ot_writer"])
    assert shown["addresses"] == ["192.0.2.70", "192.0.2.71"]
    assert shown["aliases"] == ["192.0.2.71"]
    assert [one["what"] for one in shown["history"]] == [
        "approved (type, roles)",
        "merged 192.0.2.71 into it",
        "retired",
    ]
    assert {one["why"] for one in shown["history"]} == {"walked there"}
    assert [one["id"] for one in rows(capsys, config, "--state", "retired")] == ["192.0.2.70"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("show", "nope"), 2, "there is no asset 'nope'"),
        (("show", "192.0.2.7"), 2, "Did you mean 192.0.2.70, 192.0.2.71?"),
        (("approve",), 2, "no asset was named"),
        (("approve", "192.0.2.70", "--zone", "moon"), 2, "there is no zone 'moon'"),
        (("approve", "192.0.2.70", "--criticality", "9"), 7, "criticality 9"),
        (("approve", "scada-1"), 7, "stands in the settings file"),
        (("merge", "192.0.2.70", "192.0.2.70"), 7, "cannot be merged"),
        (("import", "/no/such/file"), 7, "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    words: tuple[str, ...], code: int, said: str, capsys: Any, config: str
) -> None:
    before = rows(capsys, config)

    got, _, err = say(capsys, "asset", *words, "-c", config)

    assert got == code
    assert said in err
    assert rows(capsys, config) == before


def test_an_import_is_dry_until_yes_and_takes_over_what_was_seen(
    capsys: Any, config: str, tmp_path: Path
) -> None:
    table = tmp_path / "cmdb.csv"
    table.write_text("Host,IP,Class\nplc-7,192.0.2.70,PLC\nscada-1,192.0.2.5,SCADA\n,,\n")
    before = rows(capsys, config)

    dry, _, said = say(capsys, "asset", "import", str(table), "-c", config)
    same = rows(capsys, config)
    done, _, _ = say(capsys, "asset", "import", str(table), "--yes", "-c", config)
    again, _, last = say(capsys, "asset", "import", str(table), "--yes", "-c", config)

    assert (dry, done, again) == (7, 7, 7)
    assert "2 assets read: 1 new, 0 known, 1 of the settings, 1 left out" in said
    assert "add --yes" in said
    assert "line 4: no id, no name and no address; left out" in said
    assert same == before
    assert "0 assets changed" in last
    found = {one["id"]: one for one in rows(capsys, config)}
    assert set(found) == {"plc-7", "192.0.2.71", "scada-1"}
    assert found["plc-7"]["state"] == "approved"
    assert found["plc-7"]["speaks"] == ["modbus server"]


def test_what_is_exported_is_read_again(capsys: Any, config: str, tmp_path: Path) -> None:
    words = ("--role", "ot_writer", "--name", "=RTU", "-c", config)
    say(capsys, "asset", "approve", "192.0.2.70", *words)
    _, table, _ = say(capsys, "asset", "export", "-c", config)
    (tmp_path / "all.csv").write_text(table)

    _, _, said = say(capsys, "asset", "import", str(tmp_path / "all.csv"), "--yes", "-c", config)

    assert "3 assets read: 0 new, 2 known, 1 of the settings, 0 left out" in said
    (found,) = rows(capsys, config, "ot_writer")
    assert (found["name"], found["roles"]) == ("=RTU", ["ot_writer"])


def test_a_span_is_added_listed_and_removed(capsys: Any, config: str) -> None:
    add = ("calendar", "add", "maintenance", "--until", "4h", "--zone", "bay-7", "-c", config)
    added, _, said = say(capsys, *add)
    _, listed, _ = say(capsys, "calendar", "-c", config)
    removed, _, _ = say(capsys, "calendar", "remove", "1", "-c", config)
    twice, _, _ = say(capsys, "calendar", "remove", "1", "-c", config)

    assert (added, removed, twice) == (0, 0, 2)
    assert "entry 1 added: maintenance until" in said
    row = json.loads(listed)
    assert (row["number"], row["mode"], row["zone"], row["holds"]) == (
        1,
        "maintenance",
        "bay-7",
        "now",
    )
    wrong, _, err = say(capsys, *add[:-3], "moon", "-c", config)
    assert (wrong, "there is no zone 'moon'" in err) == (2, True)
