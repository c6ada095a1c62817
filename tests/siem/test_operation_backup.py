"""Backup and restore: of a node that runs, of one that dies meanwhile, and of damaged files."""

from __future__ import annotations

import io
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import msgspec
import pytest

from siem import assembly
from siem.city.sqlite import SqliteCommons
from siem.config import load
from siem.store import backup as store
from tests.programs import PATIENCE_S
from tests.siem.test_node import (
    LINES,
    _end,
    _found,
    _kept,
    _line,
    _node_folder,
    _start,
    _until,
)

POINTS = (
    "backup-db",
    "backup-between",
    "backup-write",
    "backup-manifest",
    "backup-before-rename",
)


def _cityward(*words: str | Path, fault: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "siem.cli", *map(str, words)],
        env={**os.environ, "CITYWARD_FAULT": fault},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def _ran(folder: Path, lines: int = LINES) -> Path:
    """A node that has read some lines and was stopped."""
    config = _node_folder(folder)
    (folder / "auth.log").write_bytes(b"".join(_line(number) for number in range(lines)))
    node = _start(config)
    _until(config, lines, node)
    _end(node)
    return config


def _restored(backup: Path, folder: Path) -> Path:
    """The settings of a node that a backup was restored to."""
    done = _cityward("restore", backup, folder)
    assert done.returncode == 0, done.stderr
    config = folder / "cityward.toml"
    text = config.read_text()
    old = text.split('state_dir = "')[1].split('"')[0]
    config.write_text(text.replace(old, str(folder / "state")))
    return config


def _made(folder: Path) -> Path:
    """A backup of a small state, without a process."""
    state = folder / "state"
    assembly.secret_of(state, "operator.key")
    (state / "events" / "spool").mkdir(parents=True)
    (state / "events" / "format").write_text("1\n")
    file = folder / "node.tar"
    store.backup(state, None, file, operator="op", now=assembly.now_utc(), secrets=True)
    return file


def test_a_backup_of_a_running_node_has_what_was_acknowledged_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    config = _node_folder(tmp_path / "old")
    log = tmp_path / "old" / "auth.log"
    log.write_bytes(b"".join(_line(number) for number in range(LINES)))
    node = _start(config)
    _until(config, LINES, node)

    done = _cityward("backup", tmp_path / "node.tar", "--config", config)
    with log.open("ab") as file:
        file.write(b"".join(_line(number) for number in range(LINES, 2 * LINES)))
    _until(config, 2 * LINES, node)
    node.kill()
    node.wait()
    restored = _restored(tmp_path / "node.tar", tmp_path / "new")
    at_the_backup = _kept(restored)
    again = _start(restored)
    _until(restored, 2 * LINES, again)
    _end(again)

    assert done.returncode == 0, done.stderr
    assert len(at_the_backup) == LINES
    assert set(at_the_backup.values()) == {1}
    assert len(_kept(restored)) == 2 * LINES
    assert set(_kept(restored).values()) == {1}
    assert _found(restored) == (1, 2 * LINES)
    assert not (tmp_path / "old" / "state" / store.STAGED).exists()
    for path in (tmp_path / "node.tar", tmp_path / "new" / "state" / "operator.key"):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_node_that_is_killed_during_its_backup_loses_and_doubles_nothing(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    config = _node_folder(tmp_path / "old")
    log = tmp_path / "old" / "auth.log"
    log.write_bytes(b"".join(_line(number) for number in range(LINES)))
    node = _start(config)
    _until(config, LINES, node)
    with log.open("ab") as file:
        file.write(b"".join(_line(number) for number in range(LINES, 20 * LINES)))

    words = [sys.executable, "-m", "siem.cli", "backup", str(tmp_path / "b.tar"), "-c", str(config)]
    backup = subprocess.Popen(words, stderr=subprocess.PIPE)
    while not (tmp_path / "old" / "state" / store.STAGED).exists() and backup.poll() is None:
        time.sleep(0.005)
    node.send_signal(signal.SIGKILL)
    node.wait()
    assert backup.wait(PATIENCE_S) == 0
    restored = _restored(tmp_path / "b.tar", tmp_path / "new")
    right_after = _kept(restored, 30 * LINES)
    again = _start(restored)
    _until(restored, 20 * LINES, again)
    _end(again)

    assert len(right_after) >= LINES
    assert set(right_after.values()) == {1}
    kept = _kept(restored, 30 * LINES)
    assert (len(kept), set(kept.values())) == (20 * LINES, {1})
    assert _found(restored) == (1, 20 * LINES)


@pytest.mark.slow
def test_a_backup_that_is_killed_leaves_no_file_of_that_name_and_the_next_one_is_whole(
    tmp_path: Path,
) -> None:
    (tmp_path / "old").mkdir()
    config = _ran(tmp_path / "old")

    for point in POINTS:
        killed = _cityward("backup", tmp_path / "b.tar", "-c", config, fault=point)
        assert killed.returncode == -signal.SIGKILL, point
        assert not (tmp_path / "b.tar").exists()
    done = _cityward("backup", tmp_path / "b.tar", "-c", config)

    assert done.returncode == 0, done.stderr
    assert len(_kept(_restored(tmp_path / "b.tar", tmp_path / "new"))) == LINES
    assert not (tmp_path / "old" / "state" / store.STAGED).exists()


def test_a_backup_without_secrets_has_no_key_no_account_and_no_trace_of_one(
    tmp_path: Path,
) -> None:
    done = _cityward("init", tmp_path / "node", "--yes", "--account", "i.vasko")
    assert done.returncode == 0, done.stderr
    config = tmp_path / "node" / "cityward.toml"
    key = (load(config).state_path / "operator.key").read_bytes()

    done = _cityward("backup", tmp_path / "b.tar", "--no-secrets", "-c", config)

    assert done.returncode == 0, done.stderr
    data = (tmp_path / "b.tar").read_bytes()
    assert key not in data
    assert b"argon2" not in data
    said = _cityward("restore", tmp_path / "b.tar", tmp_path / "new")
    assert "operator.key" in said.stderr
    with sqlite3.connect(tmp_path / "new" / "state" / "node.db") as db:
        assert db.execute("SELECT count(*) FROM people").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM audit").fetchone() != (0,)


def test_every_damaged_byte_of_a_backup_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    file = _made(tmp_path)
    whole = file.read_bytes()
    with tarfile.open(file) as tar:
        content = sorted(one.offset_data for one in tar)

    for place in content:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(Exception, match=r"no sound backup") as caught:
            store.restore(file, tmp_path / "new")
        assert caught.value.exit_code == 7  # type: ignore[attr-defined]
    for length in (0, 100, *content):
        file.write_bytes(whole[:length])
        with pytest.raises(Exception, match=r"no sound backup"):
            store.restore(file, tmp_path / "new")

    assert not (tmp_path / "new").exists()


def _changed(file: Path, change: dict[str, object], name: str = "") -> None:
    """Write a backup again with another manifest, or with a file of another name."""
    with tarfile.open(file) as tar:
        found = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    found[store.MANIFEST] = msgspec.json.encode(
        {**msgspec.json.decode(found[store.MANIFEST]), **change}
    )
    with tarfile.open(file, "w") as tar:
        for number, (called, data) in enumerate(found.items()):
            info = tarfile.TarInfo(name if name and number == 0 else called)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2, "formats": "new"}, "format 2 of the backup is newer than 1"),
        ({"formats": {"events": 99}}, "format 99 of the events is newer"),
        ({"formats": {"node.db": 99}}, "format 99 of the node.db is newer"),
        ({"files": []}, "is not as it was"),
        ({"files": 7}, "cannot be read"),
    ],
)
def test_a_newer_format_and_a_false_manifest_are_refused_in_words(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    file = _made(tmp_path)
    _changed(file, change)

    with pytest.raises(Exception, match=said):
        store.restore(file, tmp_path / "new")

    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "state/../../evil", "elsewhere/evil", "."]
)
def test_a_file_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    file = _made(tmp_path)
    _changed(file, {}, name)

    with pytest.raises(Exception, match="is no place in a state"):
        store.restore(file, tmp_path / "new")

    assert not list(tmp_path.rglob("evil"))


def test_a_name_that_no_file_has_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("state/evil")
    info.pax_headers = {"path": "state/evil\0"}
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(info)

    with pytest.raises(Exception, match="is no place in a state"):
        store.restore(tmp_path / "b.tar", tmp_path / "new")


def test_a_small_file_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("state/evil")
    info.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1",
        "GNU.sparse.size": str(1 << 40),
    }  # fmt: skip
    info.size = 1
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        tar.addfile(info, io.BytesIO(b"x"))

    with pytest.raises(Exception, match="is no file"):
        store.restore(tmp_path / "b.tar", tmp_path / "new")


def test_a_backup_is_not_written_into_what_somebody_else_put_there(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "b.tar.part").symlink_to(tmp_path / "theirs")

    store.backup(
        tmp_path / "state",
        None,
        tmp_path / "b.tar",
        operator="x",
        now=assembly.now_utc(),
        secrets=True,
    )

    assert not (tmp_path / "theirs").exists()
    assert (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_not_empty_and_a_file_that_is_there_are_left_alone(
    tmp_path: Path,
) -> None:
    file = _made(tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").touch()

    full = _cityward("restore", file, tmp_path / "new")
    with pytest.raises(Exception, match="there already"):
        store.backup(
            tmp_path / "state", None, file, operator="op", now=assembly.now_utc(), secrets=True
        )

    assert full.returncode == 6
    assert "not empty" in full.stderr
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["mine"]


def test_a_hub_is_backed_up_with_what_was_shared(tmp_path: Path) -> None:
    assert _cityward("init", "--hub", tmp_path / "hub", "--yes").returncode == 0
    commons = SqliteCommons(tmp_path / "hub" / "state" / "commons.db")
    commons.records.put("tombstone", "one", {"at": 1}, None)
    # The last write is in the log beside the file only: a plain copy would not have it.
    backup = tmp_path / "hub.tar"

    done = _cityward("backup", backup, "--config", tmp_path / "hub" / "cityward.toml")

    commons.close()
    assert done.returncode == 0, done.stderr
    assert _cityward("restore", backup, tmp_path / "again").returncode == 0
    again = SqliteCommons(tmp_path / "again" / "state" / "commons.db")
    found = again.records.get("tombstone", "one")
    again.close()
    assert found is not None
    assert found.value == {"at": 1}
    keys = tmp_path / "again" / "state" / "exchange"
    assert (keys / "ca.key").read_bytes() == (
        tmp_path / "hub" / "state" / "exchange" / "ca.key"
    ).read_bytes()
