"""The threads that work the outbox: one plans, one a route delivers."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cityward import CitywardError
from siem.notify import mail, syslog, webhook
from siem.notify.answer import Answer, Refused, words
from siem.notify.routes import Route
from siem.store.faults import fault
from siem.store.notices import Delivery, NoticeStore

T = TypeVar("T")

log = logging.getLogger(__name__)

POLL_S = 1.0
FAULT_S = 10.0
"""After a fault of ours, or of the disk, the thread goes on after so long."""
FIRST_AGAIN = timedelta(seconds=30)
LAST_AGAIN = timedelta(hours=1)
"""A failed delivery is tried again after 30 s, then after twice as long, at most after an hour; one
that was refused for good after an hour each time, since somebody may mend the settings."""
ATTEMPTS_MAX = 30
"""So often it is tried, about a day; then it is dead, and Health says so."""
STOP_S = 5.0


def send(delivery: Delivery, route: Route, operator: str, now: datetime) -> Answer:
    """Hand a message over, in the way of its route.

    Raises:
        Refused, OSError, CitywardError: it was not taken, not reached, or cannot be sent so.
    """
    if route.said.to == "mail":
        return mail.send(delivery, route, operator)
    if route.said.to == "webhook":
        return webhook.send(delivery, route, operator, now)
    return syslog.send(delivery, route, operator)


def attempt(
    delivery: Delivery,
    route: Route,
    operator: str,
    notices: NoticeStore,
    now: datetime,
    *,
    last: bool = False,
) -> bool:
    """Try a delivery once and note what came of it; True if all its receivers have it.

    Args:
        delivery: What is delivered.
        route: Over which.
        operator: Whose node it is.
        notices: Where the outcome is kept.
        now: The node's time.
        last: It is not tried again.
    """
    permanent, left = False, delivery.receivers
    try:
        answer = send(delivery, route, operator, now)
    except Refused as error:
        said, permanent = error.said, error.permanent
    except CitywardError as error:
        said = error.what
    except OSError as error:
        said = words(error.strerror or error)
    except Exception as error:  # one message must not keep the others
        log.exception("Delivery %s failed.", delivery.id)
        said = f"a fault of ours: {type(error).__name__}"
    else:
        fault("notify-sent-before-record")
        if not answer.left:
            notices.sent(delivery.id, delivery.receivers, answer.said, now)
            return True
        said, left = answer.said, answer.left
    log.warning("Route %s: %s.", route.id, said)
    again = None if last else _again(delivery.attempts + 1, now, permanent=permanent)
    notices.failed(delivery.id, left, said, now, again)
    return False


def _again(attempts: int, now: datetime, *, permanent: bool = False) -> datetime | None:
    """When a delivery is tried after so many attempts; None: never."""
    if attempts >= ATTEMPTS_MAX:
        return None
    wait = LAST_AGAIN if permanent else FIRST_AGAIN * 2 ** min(attempts - 1, 10)
    return now + min(wait, LAST_AGAIN)


class Notifier:
    """Works the outbox of a node until it is stopped; of several processes only one does."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        notices: NoticeStore,
        operator: str,
        clock: Callable[[], datetime],
        state: Path,
    ) -> None:
        self._routes = routes
        self._notices = notices
        self._operator = operator
        self._clock = clock
        self._lock = state / "notify.lock"
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin, in a thread."""
        self._run(self._plan, "notify")

    def stop(self) -> None:
        """End; a delivery under way is given a little time, else it is sent again later."""
        self._stop.set()
        until = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _run(self, work: Callable[..., None], name: str, *words: Route) -> None:
        thread = threading.Thread(target=work, args=words, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _plan(self) -> None:
        held = self._turn()
        if held is None:
            return
        try:
            self._keep_on(lambda: self._notices.begin(list(self._routes.values()), self._clock()))
            for route in self._routes.values():
                self._run(self._deliver, f"notify {route.id}", route)
            while not self._stop.is_set():
                if not self._keep_on(lambda: self._notices.plan(self._routes, self._clock())):
                    self._stop.wait(POLL_S)
        finally:
            os.close(held)

    def _turn(self) -> int | None:
        """The right to deliver, once no other process has it; None if we end before."""
        held = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        while not self._stop.is_set():
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return held
            except BlockingIOError:
                self._stop.wait(POLL_S)
        os.close(held)
        return None

    def _deliver(self, route: Route) -> None:
        while not self._stop.is_set():
            if not self._keep_on(lambda: self._deliver_one(route)):
                self._stop.wait(POLL_S)

    def _deliver_one(self, route: Route) -> bool:
        now = self._clock()
        delivery = self._notices.due(route.id, now)
        if delivery is None:
            return False
        attempt(delivery, route, self._operator, self._notices, now)
        return True

    def _keep_on(self, work: Callable[[], T]) -> T | None:
        """Do something; what fails is said, and done again after a while."""
        while not self._stop.is_set():
            try:
                return work()
            except CitywardError as error:
                log.error("Notifications wait: %s", error.what)
            except Exception:  # people must hear of the next finding
                log.exception("Notifications wait.")
            self._stop.wait(FAULT_S)
        return None
