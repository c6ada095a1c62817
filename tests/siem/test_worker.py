"""`cityward worker` as a person or systemd has it: it looks, is tended, and ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from cityward import ConfigError
from siem.bell import LOOKED
from siem.cli import app
from siem.commands import worker as command
from siem.commands.doctor import _workers
from siem.config import Response, Settings
from tests.playbooks.storm import redis_at
from tests.programs import PATIENCE_S

pytestmark = pytest.mark.skipif(not shutil.which("redis-server"), reason="no redis-server here")


def _settings(folder: Path, redis: str) -> Path:
    file = folder / "cityward.toml"
    file.write_text(
        f'state_dir = "{folder}/state"\nmodels.on = false\nrules.shipped = false\n'
        f'[response]\non = true\nredis = "{redis}"\n'
    )
    return file


def _until(is_so: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    ends_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < ends_s, "it never came about"
        time.sleep(0.1)


def _undoing(worker: int) -> list[int]:
    """The process that only undoes: the child that leads a session of its own."""
    found = []
    for file in Path(f"/proc/{worker}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found += [int(one) for one in file.read_text().split()]
    return [pid for pid in found if _session(pid) == pid]


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:  # it has just been buried
        return 0


def _alive_in(groups: tuple[int, ...]) -> list[str]:
    """Processes of these groups; one that is dead and was only not buried yet is none."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = entry.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) in groups and state not in "ZX":
            found.append(entry.parent.name)
    return found


@pytest.mark.slow
def test_a_worker_looks_by_itself_tends_what_undoes_and_ends_with_all_it_has(
    tmp_path: Path,
) -> None:
    looked = tmp_path / "state" / "worker.looked"
    with redis_at(tmp_path) as redis:
        words = [sys.executable, "-m", "siem.cli", "worker", "--processes", "1", "--config"]
        file = _settings(tmp_path, redis.url)
        worker = subprocess.Popen([*words, str(file)], stderr=subprocess.DEVNULL)
        try:
            _until(looked.exists)
            _until(lambda: _undoing(worker.pid))
            (first,) = _undoing(worker.pid)

            os.kill(first, signal.SIGKILL)

            _until(lambda: _undoing(worker.pid) not in ([], [first]))
            (second,) = _undoing(worker.pid)
            worker.terminate()
            assert worker.wait(PATIENCE_S) == 0
            _until(lambda: not _alive_in((first, second)))
        finally:
            worker.kill()


@pytest.mark.parametrize(
    ("ago_s", "state", "what"),
    [
        (None, "wrong", "none has ever looked at the journal"),
        (120, "wrong", "they are down, or Redis is"),
        (5, "ok", "last look at the journal"),
    ],
)
def test_the_doctor_says_whether_somebody_works(
    tmp_path: Path, ago_s: float | None, state: str, what: str
) -> None:
    settings = Settings(
        state_dir=str(tmp_path), response=Response(redis="redis://127.0.0.1:1/0", on=True)
    )
    if ago_s is not None:
        (tmp_path / LOOKED).touch()
        os.utime(tmp_path / LOOKED, (time.time() - ago_s,) * 2)

    (check,) = _workers(settings)

    assert check.state == state
    assert what in check.what


def test_a_worker_without_a_redis_says_that_the_node_does_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the node runs its playbooks itself"):
        app(["worker", "--config", str(_settings(tmp_path, ""))])


def test_a_worker_that_ends_at_once_is_not_begun_again_and_again_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Ended(threading.Event):
        waited = 0

        def wait(self, timeout: float | None = None) -> bool:
            self.waited += 1
            if self.waited == 3:
                self.set()
            return self.is_set()

    class Gone:
        begun, pid = 0, 0

        def __init__(self, *words: object, **more: object) -> None:
            Gone.begun += 1
            assert Gone.begun <= 3

        def poll(self) -> int:
            return 1

        terminate = wait = lambda *within: None

    monkeypatch.setattr(command.subprocess, "Popen", Gone)
    monkeypatch.setattr(command.os, "killpg", lambda *group: None)
    command._undoing("cityward.toml", Ended())

    assert Gone.begun == 3
