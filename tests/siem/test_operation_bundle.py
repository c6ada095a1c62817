"""The bundle for machines without a network: made, installed and used without one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINE = "2026-01-05T10:00:{:02d}Z gw sshd[7]: Failed password for root from 192.0.2.7 port 1 ssh2\n"


def _offline() -> list[str]:
    """Words before a command that take its network away, where that may be done."""
    words = ["unshare", "-n"]
    tried = subprocess.run([*words, "true"], check=False, capture_output=True)
    return [] if tried.returncode else words


def _run(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, **more}
    return subprocess.run(
        [*_offline(), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def _bundle(folder: Path, wheel: bytes) -> Path:
    """A folder as `scripts/bundle` makes it, with one wheel."""
    (folder / "wheels").mkdir(parents=True)
    (folder / "wheels" / "a-1-py3-none-any.whl").write_bytes(wheel)
    (folder / "made-for").write_text("2.7 Plan9 pdp11\n")
    (folder / "install").write_text((ROOT / "scripts" / "install").read_text())
    words = "sha256sum install made-for wheels/*.whl > SHA256SUMS"
    subprocess.run(["bash", "-c", words], cwd=folder, check=True)
    return folder


def test_a_bundle_that_was_changed_or_is_for_another_machine_installs_nothing(
    tmp_path: Path,
) -> None:
    made = _bundle(tmp_path / "bundle", b"wheel")
    other = _run("bash", made / "install", tmp_path / "venv")
    (made / "wheels" / "a-1-py3-none-any.whl").write_bytes(b"evil!")
    changed = _run("bash", made / "install", tmp_path / "venv")

    assert (other.returncode, changed.returncode) == (4, 4)
    assert "is for Python 2.7 Plan9 pdp11" in other.stderr
    assert "not as it was made" in changed.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.full
def test_the_bundle_is_installed_and_reads_a_log_without_a_network(tmp_path: Path) -> None:
    made = subprocess.run(
        [ROOT / "scripts" / "bundle", tmp_path], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("cityward-*-offline.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    folder = tmp_path / archive.name.removesuffix(".tar.gz")
    (tmp_path / "auth.log").write_text("".join(LINE.format(number) for number in range(20)))

    installed = _run("bash", folder / "install", tmp_path / "venv")
    read = _run(tmp_path / "venv" / "bin" / "cityward", "ingest", tmp_path / "auth.log")

    assert installed.returncode == 0, installed.stderr
    assert re.search(r"cityward [1-9]|cityward 0\.[1-9]", installed.stderr)
    assert read.returncode == 0, read.stderr
    assert "192.0.2.7" in read.stdout
    assert "20 records, 20 events" in read.stderr
