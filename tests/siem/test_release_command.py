"""`cityward rule release`, `rule aside` and `rule protected`, as a person types them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from detectors.sigma.load import load_folder
from siem import assembly, cli, config, library
from siem.assets import from_settings
from siem.node import now_utc
from siem.store.embedded import NodeDb
from siem.store.samples import Foreign
from tests.siem.test_tuning import RULE, RULE_ID, attempts, right, seen

Capture = pytest.CaptureFixture[str]
FOREIGN = "5f1c9a02-0000-4000-8000-000000000001"


def node(folder: Path) -> NodeDb:
    settings = config.load(folder / "cityward.toml")
    return assembly.db_of(settings, from_settings(settings), now_utc)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with a finding that was right, and a sample of another operator."""
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "wrong.yml").write_text(RULE)
    (tmp_path / "cityward.toml").write_text(
        f'operator = "op-metro"\nstate_dir = "{tmp_path}/state"\n'
        f'[rules]\nshipped = false\nfolders = ["{rules}"]\n[sharing]\npolicy = "policy.yml"\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(library, "shipped", lambda: load_folder(rules))
    assert cli.run(["share", "example", "policy.yml"]) == 0
    db = node(tmp_path)
    seen(config.load(tmp_path / "cityward.toml"), db, attempts("198.51.100.7", user="m.rossi"))
    right(db, f"rule.id:{RULE_ID}")
    foreign = Foreign(
        id=FOREIGN, rule=RULE_ID, operator="operator-1", received=now_utc(),
        expires=now_utc() + timedelta(days=9),
        events=({"@timestamp": now_utc(), "event.action": "ssh_login"},),
    )  # fmt: skip
    with db.outgoing.desk() as desk:
        assert desk.samples.take(foreign) == ""
    db.close()
    return tmp_path


def rows(capsys: Capture, *words: str) -> list[dict[str, str]]:
    capsys.readouterr()
    assert cli.run([*words, "-o", "json"]) == 0
    found: list[dict[str, str]] = json.loads(capsys.readouterr().out)
    return found


def ours(capsys: Capture) -> dict[str, str]:
    return next(one for one in rows(capsys, "rule", "protected") if one["from"] == "here")


def test_a_person_sees_what_would_leave_before_they_let_it_out(
    folder: Path, capsys: Capture
) -> None:
    id = ours(capsys)["finding"]

    shown = {one["field"]: one for one in rows(capsys, "rule", "release", id[:8])}
    assert (shown["user.name"]["here"], shown["user.name"]["leaves"]) == (
        "m.rossi", "sample-user-1",
    )  # fmt: skip
    assert (shown["message"]["here"][:6], shown["message"]["leaves"]) == ("Failed", "")
    assert ours(capsys)["state"] == ""

    assert cli.run(["rule", "release", id[:8], "--reason", "it was real", "--yes"]) == 0
    assert ours(capsys)["state"].startswith("waits to be sent: ")


def test_what_is_out_is_taken_back_by_its_id(folder: Path, capsys: Capture) -> None:
    id = ours(capsys)["finding"]
    cli.run(["rule", "release", id, "--reason", "it was real", "--yes"])
    sample = ours(capsys)["state"].rpartition(" ")[2]

    assert cli.run(["share", "withdraw", sample, "--reason", "consent"]) == 0

    assert ours(capsys)["state"] == f"taken back: {sample}"


def test_a_policy_that_forbids_it_is_told_and_nothing_leaves(folder: Path, capsys: Capture) -> None:
    policy = folder / "policy.yml"
    policy.write_text(policy.read_text().replace("release: person", "release: none"))
    id = ours(capsys)["finding"]
    capsys.readouterr()

    assert cli.run(["rule", "release", id, "--reason", "why", "--yes"]) == 6

    assert "the sharing policy lets no sample out" in capsys.readouterr().err
    assert ours(capsys)["state"] == ""


def test_a_sample_of_another_operator_is_set_aside_and_counts_again(
    folder: Path, capsys: Capture
) -> None:
    def state() -> str:
        (one,) = [one for one in rows(capsys, "rule", "protected") if one["from"] == "operator-1"]
        return one["state"]

    assert state() == "counts"
    assert cli.run(["rule", "aside", FOREIGN[:8], "--reason", "our historian"]) == 0
    assert state().startswith("set aside by ")
    assert cli.run(["rule", "aside", FOREIGN[:8], "--reason", "our historian"]) == 7
    assert cli.run(["rule", "aside", FOREIGN[:8], "--reason", "it was not", "--back"]) == 0
    assert state() == "counts"
    assert cli.run(["rule", "aside", "nothing", "--reason", "why"]) == 7
    assert cli.run(["rule", "aside", FOREIGN[:8], "--from", "operator-1", "--reason", "why"]) == 2
    assert cli.run(["rule", "aside", "--reason", "why"]) == 2


def test_all_of_an_operator_are_set_aside_also_what_comes_and_count_again(
    folder: Path, capsys: Capture
) -> None:
    def states() -> dict[str, str]:
        return {one["finding"][-1]: one["state"] for one in rows(capsys, "rule", "protected")
                if one["from"] != "here"}  # fmt: skip

    comes(folder, 2, "operator-1")
    comes(folder, 3, "operator-2")
    all_aside = ["rule", "aside", "--from", "operator-1", "--reason", "they test with us"]

    assert cli.run(all_aside) == 0
    assert "All of operator-1 are set aside: 2 samples, and those" in capsys.readouterr().err
    assert cli.run(all_aside) == 7
    assert "There are samples of operator-1, operator-2." in capsys.readouterr().err
    comes(folder, 4, "operator-1")
    found = states()
    assert [found[one][:12] for one in "1234"] == [
        "set aside by",
        "set aside by",
        "counts",
        "set aside by",
    ]
    assert found["4"].endswith(", with all of this operator")
    db = node(folder)
    assert {one.finding[-1] for one in db.rulebook.protected() if one.operator} == {"3"}
    db.close()

    assert cli.run([*all_aside, "--back"]) == 0
    assert "All of operator-1 count again: 3 samples." in capsys.readouterr().err
    assert [*states().values()] == ["counts"] * 4
    assert cli.run([*all_aside[:3], "operator-9", "--reason", "why"]) == 7


def comes(folder: Path, number: int, operator: str) -> None:
    """One more sample of another operator."""
    db = node(folder)
    foreign = Foreign(
        id=f"{FOREIGN[:-1]}{number}", rule=RULE_ID, operator=operator, received=now_utc(),
        expires=now_utc() + timedelta(days=9),
        events=({"@timestamp": now_utc(), "event.action": "ssh_login"},),
    )  # fmt: skip
    with db.outgoing.desk() as desk:
        assert desk.samples.take(foreign) == ""
    db.close()


def test_what_has_ended_is_not_said_to_be_out(folder: Path, capsys: Capture) -> None:
    id = ours(capsys)["finding"]
    cli.run(["rule", "release", id, "--reason", "it was real", "--yes"])
    sample = ours(capsys)["state"].rpartition(" ")[2]
    db = node(folder)
    with db.outgoing.desk() as desk:
        (one,) = db.samples.releases()
        desk.samples.set_sent(one, 1, now_utc(), now_utc() - timedelta(days=1))
    db.close()

    state = ours(capsys)["state"]

    assert state.startswith("was let out until 20")
    assert state.endswith(sample)
