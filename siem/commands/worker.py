"""`cityward worker`: makes transitions of playbook runs when Redis rings."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from typing import Annotated

from cyclopts import Parameter

from cityward import ConfigError
from playbooks.journal import QUEUES, UNDOES, Queue
from playbooks.runner import Runner
from siem import assembly
from siem.assets import from_settings
from siem.bell import LOOKED, redis_password
from siem.commands.common import ConfigFile, settings_of
from siem.config import Settings
from siem.logs import log_to
from siem.node import now_utc
from siem.response import Shelf

log = logging.getLogger(__name__)

TEND_S = 1.0
END_S = 35.0
"""A little longer than what a worker takes for the transitions under way."""


def worker(
    *,
    queues: Annotated[tuple[Queue, ...], Parameter(negative=())] = (),
    processes: int = 2,
    config: ConfigFile = None,
) -> int:
    """Work for a node's playbooks, on its state folder, when its Redis rings.

    What undoes effects has a process of its own, which nothing else can fill. Ctrl+C ends after
    the transitions under way; whatever is killed, the journal says where runs stand.
    Example: cityward worker

    Args:
        queues: Only these: control, actuate, enrich, notify, rollback. Otherwise all.
        processes: So many transitions at once.
        config: Settings file; otherwise the first one found counts.
    """
    from playbooks import tasks

    settings, file = settings_of(config)
    if not settings.response.redis:
        what = "no Redis is named, so the node runs its playbooks itself"
        raise ConfigError(what, f"response.redis ({file})", "Name one, or start no worker.")
    log_to(settings)
    mine = queues or tuple(one for one in QUEUES if one != UNDOES)
    app = tasks.app_of(
        settings.response.redis,
        lambda: _runner(settings),
        password=redis_password(settings),
        queues=mine,
        looked=settings.state_path / LOOKED,
    )
    if queues:
        return tasks.work(app, queues=mine, processes=processes)
    ended = threading.Event()
    undoing = threading.Thread(target=_undoing, args=(file, ended), name="undoing", daemon=True)
    undoing.start()
    try:
        return tasks.work(app, queues=mine, processes=processes)
    finally:
        ended.set()
        undoing.join(2 * END_S)


def _undoing(file: str, ended: threading.Event) -> None:
    """Have the worker of the queue `rollback`, and another one when it is gone, until the end."""
    words = [sys.executable, "-m", "siem.cli", "worker", "--queues", UNDOES, "--processes", "1"]
    while not ended.is_set():
        worker = subprocess.Popen([*words, "--config", file], start_new_session=True)
        while not ended.wait(TEND_S) and worker.poll() is None:
            pass
        if not ended.is_set():
            log.warning("The worker that undoes is gone; another one begins.")
        worker.terminate()
        try:
            worker.wait(END_S)
        except subprocess.TimeoutExpired:
            log.warning("The worker that undoes is killed; the journal knows where it stood.")
        with contextlib.suppress(ProcessLookupError):  # and what it has left behind
            os.killpg(worker.pid, signal.SIGKILL)


def _runner(settings: Settings) -> Runner:
    """The runner of one process of the worker."""
    inventory = from_settings(settings)
    db = assembly.db_of(settings, inventory, now_utc)
    return Shelf(settings, db, assembly.events_of(settings, now_utc, write=False)).runner()
