"""Celery rings the runner's bell on other processors; it knows nothing, and may lose everything.

A message says which run may have something to do. It may come late, five times, or never: the
journal says what is due, and the reaper rings again. No chord, chain, `countdown`, `eta` or
`revoke` is used for control.

References:
    Celery 5.7, "Configuration and defaults"; "Using Redis", caveats on the visibility timeout.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from celery import Celery

from playbooks.journal import QUEUES, Queue
from playbooks.runner import Runner

log = logging.getLogger(__name__)

ADVANCE, REAP = "playbooks.advance", "playbooks.reap"
REAP_EVERY_S = 5.0
SOFT_S, HARD_S = 45, 60
"""A transition that takes longer is ended; the next one asks the device what came of it."""
VISIBILITY_S = 180
"""Redis gives a message anew that nobody has acknowledged for so long; a task that ran longer
would run a second time while the first still runs, so it is three times the longest."""
RING_S = 2.0
"""Who rings waits so long for Redis; the reaper rings again."""

CONF: Mapping[str, Any] = {
    # A message is done with when its transition is: a killed worker's is given anew.
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


def app_of(url: str, runner: Callable[[], Runner] | None = None, *, password: str = "") -> Celery:
    """The Celery application over a Redis.

    Args:
        url: `redis://host:6379/0`, or `rediss://`.
        runner: Makes the runner of a process, when its first message comes; None for who rings.
        password: Of Redis.
    """
    app = Celery("cityward", broker=_with_password(url, password), set_as_current=False)
    app.conf.update(CONF)
    app.conf.task_routes = {REAP: {"queue": "control"}}
    app.conf.beat_schedule = {
        "reap": {
            "task": REAP,
            "schedule": REAP_EVERY_S,
            "options": {"expires": REAP_EVERY_S, "queue": "control"},
        }
    }
    if runner is not None:
        _tasks(app, runner)
    return app


def _tasks(app: Celery, make: Callable[[], Runner]) -> None:
    made: dict[int, Runner] = {}

    def runner() -> Runner:
        # A child of the worker must not use the connections of the process it was forked from.
        if os.getpid() not in made:
            made.clear()
            made[os.getpid()] = make()
        return made[os.getpid()]

    @app.task(name=ADVANCE)  # type: ignore[untyped-decorator]
    def advance(run: str) -> None:
        if not isinstance(run, str):
            return  # somebody else writes to our Redis
        change = runner().advance(run)
        if change is not None and change.wake is not None and change.wake <= runner().now():
            ring(app, [(run, change.queue)])

    @app.task(name=REAP)  # type: ignore[untyped-decorator]
    def reap() -> None:
        ring(app, runner().reaper().items())


def ring(app: Celery, runs: Iterable[tuple[str, Queue]]) -> bool:
    """Say that runs may have something to do; False if Redis does not answer."""
    try:
        for run, queue in runs:
            app.send_task(ADVANCE, args=[run], queue=queue, retry=False, ignore_result=True)
    except Exception as error:  # of Celery, of kombu, of redis, of the system
        log.warning("Redis does not answer, the reaper rings again: %s.", type(error).__name__)
        return False
    return True


def work(
    app: Celery, *, queues: Iterable[str] = QUEUES, processes: int = 2, reaps: bool = True
) -> int:
    """Be a worker until SIGTERM; returns its exit code."""
    worker = app.Worker(
        queues=list(queues),
        concurrency=processes,
        pool="prefork",
        beat=reaps,
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
