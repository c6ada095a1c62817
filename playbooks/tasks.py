"""Celery rings the runner's bell on other processors; it knows nothing, and may lose everything.

A message says only that there may be something to do. It may come late, five times, or never: the
worker asks the journal what is due, makes one transition after the other until nothing is, and
looks again every few seconds unasked. So the order of work is the journal's, whatever stands in a
queue: what has to be undone first. No chord, chain, `countdown`, `eta` or `revoke` is used.

References:
    Celery 5.7, "Configuration and defaults"; "Using Redis", caveats on the visibility timeout.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from celery import Celery

from playbooks.journal import QUEUES, Change, Queue
from playbooks.runner import Runner

log = logging.getLogger(__name__)

WORK, LOOK = "playbooks.work", "playbooks.look"
LOOK_EVERY_S = 5.0
WORK_S = 5.0
"""A message's work begins no transition after so long; another message goes on with the rest."""
SOFT_S, HARD_S = 45, 60
"""A transition that takes longer is ended; the next one asks the device what came of it."""
VISIBILITY_S = 180
"""Redis gives a message anew that nobody has acknowledged for so long; a task that ran longer
would run a second time while the first still runs, so it is three times the longest."""
RING_S = 2.0
"""Who rings waits so long for Redis, also for one that takes the connection and says nothing."""
SILENT_S = 5.0
"""A Redis that did not answer is left alone for so long: the workers look by themselves."""
RINGS_MAX = 8
"""Messages for many runs at once; so many processes can take part from the first moment."""

CONF: Mapping[str, Any] = {
    # A message is done with when its work is: a killed worker's is given anew.
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "worker_prefetch_multiplier": 1,
    "broker_transport_options": {
        "visibility_timeout": VISIBILITY_S,
        # By default recovery of a killed worker took 98 s, so it takes 12.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "queue_order_strategy": "priority",
        "socket_connect_timeout": RING_S,
        "socket_keepalive": True,
    },
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_heartbeat": 10,
    "task_time_limit": HARD_S,
    "task_soft_time_limit": SOFT_S,
    "worker_soft_shutdown_timeout": 30,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    # Whoever can write to Redis must not be able to run code here.
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    # The journal holds results.
    "task_ignore_result": True,
    "result_expires": 3600,
    "worker_hijack_root_logger": False,
    "worker_enable_remote_control": False,
    "enable_utc": True,
    "task_default_queue": "control",
    "task_create_missing_queues": True,
}


def app_of(
    url: str,
    runner: Callable[[], Runner] | None = None,
    *,
    password: str = "",
    queues: Sequence[Queue] = QUEUES,
    looked: Path | None = None,
) -> Celery:
    """The Celery application over a Redis.

    Args:
        url: `redis://host:6379/0`, or `rediss://`.
        runner: Makes the runner of a process, when its first message comes; None for who rings.
        password: Of Redis.
        queues: What a worker works for; it looks by itself through the first of them.
        looked: A file that is touched whenever it does, so that others see that it lives.
    """
    app = Celery("cityward", broker=_with_password(url, password), set_as_current=False)
    app.conf.update(CONF)
    if runner is None:  # a worker waits on Redis for longer: it listens
        options = {**CONF["broker_transport_options"], "socket_timeout": RING_S}
        app.conf.broker_transport_options = options
    app.conf.beat_schedule = {
        "look": {
            "task": LOOK,
            "schedule": LOOK_EVERY_S,
            "options": {"expires": LOOK_EVERY_S, "queue": queues[0]},
        }
    }
    if runner is not None:
        _tasks(app, runner, Bell(lambda: app_of(url, password=password)), queues, looked)
    return app


def _tasks(
    app: Celery,
    make: Callable[[], Runner],
    bell: Bell,
    queues: Sequence[Queue],
    looked: Path | None,
) -> None:
    made: dict[int, Runner] = {}

    def runner() -> Runner:
        # A child of the worker must not use the connections of the process it was forked from.
        if os.getpid() not in made:
            made.clear()
            made[os.getpid()] = make()
        return made[os.getpid()]

    @app.task(name=WORK)  # type: ignore[untyped-decorator]
    def work() -> None:
        ends_s = time.monotonic() + WORK_S
        for change in runner().work(queues):
            if change is not None and change.queue not in queues and _is_due(change, runner()):
                bell(change.queue, 1)
            if time.monotonic() > ends_s:
                bell(queues[0], 1)
                return

    @app.task(name=LOOK)  # type: ignore[untyped-decorator]
    def look() -> None:
        for queue, count in Counter(runner().due().values()).items():
            bell(queue, count)
        if looked is not None:
            looked.touch()


def _is_due(change: Change, runner: Runner) -> bool:
    return change.wake is not None and change.wake <= runner.now()


class Bell:
    """Says to workers that so many runs of a queue may have something to do.

    Args:
        make: The application that rings, when it first does.
    """

    def __init__(self, make: Callable[[], Celery]) -> None:
        self._make = make
        self._app: Celery | None = None
        self._silent_until_s = 0.0

    def __call__(self, queue: Queue, count: int) -> bool:
        """Ring; False if Redis does not answer, or did not a moment ago."""
        if time.monotonic() < self._silent_until_s:
            return False
        try:
            if self._app is None:
                self._app = self._make()
            for _ in range(min(count, RINGS_MAX)):
                self._app.send_task(WORK, queue=queue, retry=False, ignore_result=True)
        except Exception as error:  # of Celery, of kombu, of redis, of the system
            self._silent_until_s = time.monotonic() + SILENT_S
            log.warning("Nobody was rung for, workers look by themselves: %s.", error)
            return False
        return True


def work(app: Celery, *, queues: Sequence[Queue] = QUEUES, processes: int = 2) -> int:
    """Be a worker until SIGTERM; returns its exit code."""
    worker = app.Worker(
        queues=list(queues),
        concurrency=processes,
        pool="prefork",
        beat=True,
        scheduler="celery.beat:Scheduler",  # the schedule is in the journal, no file beside it
        hostname=f"cityward-{os.getpid()}@%h",
        loglevel="WARNING",
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        optimization="fair",
    )
    worker.start()
    return int(worker.exitcode or 0)


def _with_password(url: str, password: str) -> str:
    if not password:
        return url
    parts = urlsplit(url)
    place = f"{parts.username or ''}:{quote(password, safe='')}@{parts.hostname}"
    port = f":{parts.port}" if parts.port else ""
    return urlunsplit(parts._replace(netloc=place + port))
