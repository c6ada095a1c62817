"""A changed playbook counts without a restart; what runs goes on as it was planned."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from playbooks import sign
from playbooks.flow import new_run
from siem import assembly, playbooks
from siem.assets import from_settings
from siem.config import Settings, load
from siem.node import now_utc
from siem.playbooks import Library
from siem.responding import ResponseDesk
from tests.playbooks.kit import run_of
from tests.siem.test_playbook_command import MINE


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playbooks, "LOOK_S", 0.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    own, file = tmp_path / "own", tmp_path / "cityward.toml"
    own.mkdir()
    private, public = sign.new_key(now_utc())
    (tmp_path / "soc.key").write_bytes(private)
    (tmp_path / "soc.pub.yml").write_bytes(public)
    file.write_text(
        f'operator = "op-energy"\nstate_dir = "{tmp_path}/state"\n[response]\nshipped = false\n'
        f'folders = ["{own}"]\nkeys = ["{tmp_path}/soc.pub.yml"]\n'
    )
    return load(file)


def write(folder: Path, text: str = MINE) -> Path:
    path = folder / "own" / "night.yml"
    path.write_text(text)
    private = (folder / "soc.key").read_bytes()
    sign.beside(path).write_bytes(sign.sign(text.encode(), private, "soc", now_utc()))
    return path


def names(library: Library) -> list[tuple[str, str]]:
    return [(one.description, one.signed_by) for one in library.loaded().playbooks]


def test_new_changed_and_removed_files_count_without_a_restart(settings, tmp_path):
    library = Library(settings, now_utc)
    assert names(library) == []

    path = write(tmp_path)
    assert names(library) == [("Keeps a scanner out at night.", "soc")]
    path = write(tmp_path, MINE.replace("Keeps a", "Kept the"))
    assert names(library) == [("Kept the scanner out at night.", "soc")]
    sign.beside(path).unlink()
    assert names(library) == [("Kept the scanner out at night.", "")]
    path.write_text("name: half")
    assert names(library) == []
    assert [one.where.partition(":")[0] for one in library.loaded().refused] == [str(path)]
    path.unlink()
    assert library.loaded().refused == ()


def test_what_has_not_changed_is_not_read_again(settings, tmp_path):
    write(tmp_path)
    library = Library(settings, now_utc)

    assert library.loaded() is library.loaded()


def test_the_files_are_looked_at_now_and_then_only(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(playbooks, "LOOK_S", 60.0)
    library = Library(settings, now_utc)
    library.loaded()

    write(tmp_path)

    assert names(library) == []


def test_a_key_that_cannot_be_read_leaves_all_as_it_was(settings, tmp_path, caplog):
    write(tmp_path)
    library = Library(settings, now_utc)
    before = names(library)

    (tmp_path / "soc.pub.yml").write_text("broken")

    assert names(library) == before
    assert "Playbooks stay as they were read before" in caplog.text


def test_an_open_run_keeps_the_version_it_was_planned_with(settings, tmp_path):
    write(tmp_path)
    with (
        closing(assembly.db_of(settings, from_settings(settings), now_utc)) as db,
        closing(assembly.events_of(settings, now_utc, write=False)) as events,
    ):
        desk = ResponseDesk(settings, db, events, now_utc)
        (one,) = desk.playbooks()
        assert db.runs.start(new_run("r1", one, run_of(one, "x", now_utc()).plan, now_utc()))

        write(tmp_path, MINE.replace("PT1H", "PT2H"))

        (changed,) = desk.playbooks()
        kept = db.runs.get("r1")
        assert changed.version != one.version
        assert kept is not None
        assert kept.playbook.version == one.version
