"""One active hub: a lease in the common store, and a fence behind it.

Who holds the lease renews it at a third of its time; a standby that sees it unchanged for the whole
of its time, by its own clock, takes over. The new holder writes its number into the record of every
link before it takes anything, so the one that was active before – stopped, or cut off for a while –
finds another version there and can acknowledge nothing any more.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cityward import ConfigError, TransientError
from siem.city.commons import Records
from siem.store.protocol import Conflict

TTL_S = 10.0
LEASE, HUB = "lease", "hub"
"""Kind and name of the record of the lease."""
LINK, OUT = "link", "link-out"
"""Kinds of the records of what was taken of an operator, and of what it was sent."""

log = logging.getLogger(__name__)


class Lease:
    """The right to be the active hub; `step` is called by one thread, every `every_s` seconds.

    Args:
        records: The hub's memory.
        holder: Who we are, for people.
        alone: No other hub can be there, see `alone`: a lease that was left is taken at once.
        ttl_s: Seconds without a renewal after which a standby takes over.
        monotonic: The time that passes here.
    """

    def __init__(
        self,
        records: Records,
        holder: str,
        *,
        alone: bool = False,
        ttl_s: float = TTL_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._holder = holder
        self._alone = alone
        self._ttl_s = ttl_s
        self._monotonic = monotonic
        self._token = 0
        self._version: str | None = ""
        """The lease as it was seen last: ours, if we hold it."""
        self._since_s = 0.0
        """When it was seen so first, or renewed."""

    @property
    def every_s(self) -> float:
        """How often it is renewed."""
        return self._ttl_s / 3

    @property
    def token(self) -> int:
        """The fence of the active hub, higher than that of any before; 0: we are not active."""
        is_fresh = self._monotonic() - self._since_s < self._ttl_s
        return self._token if is_fresh else 0

    @property
    def is_active(self) -> bool:
        """Whether we are the active hub."""
        return self.token > 0

    def step(self) -> bool:
        """Renew the lease, or take it if nobody holds it; returns whether we are active."""
        try:
            if self._token:
                self._renew()
            else:
                self._watch()
        except TransientError as error:
            log.warning("The lease cannot be kept: %s.", error.what)
        return self.is_active

    def give_up(self) -> None:
        """Let a standby take over at once; called at the end."""
        if self._token and self._version:
            self._token = 0
            try:
                self._records.delete(LEASE, HUB, self._version)
            except (Conflict, TransientError):
                log.warning("The lease could not be given back; a standby waits for its end.")

    def _renew(self) -> None:
        now_s = self._monotonic()
        try:
            self._version = self._put(self._token, self._version)
            self._since_s = now_s
        except Conflict:
            log.warning("Another hub has taken over.")
            self._token, self._version, self._since_s = 0, "", now_s

    def _watch(self) -> None:
        now_s = self._monotonic()
        found = self._records.get(LEASE, HUB)
        version = found.version if found else None
        if version != self._version:
            self._version, self._since_s = version, now_s
        is_left = now_s - self._since_s >= self._ttl_s or self._alone
        if found is not None and not is_left:
            return
        token = max(int(found.value["token"]) if found else 0, self._highest_fence()) + 1
        try:
            self._version = self._put(token, version)
        except Conflict:
            return
        fence(self._records, token)
        self._token, self._since_s = token, now_s
        log.info("This hub is active, with fence %d.", token)

    def _highest_fence(self) -> int:
        """A lease that was given back is gone; the fences it set are not."""
        return max(
            (int(one.value["fence"]) for kind in (LINK, OUT) for _, one in self._records.all(kind)),
            default=0,
        )

    def _put(self, token: int, version: str | None) -> str:
        said = {"holder": self._holder, "token": token}
        return self._records.put(LEASE, HUB, said, version)


def fence(records: Records, token: int) -> None:
    """Write the number of the new active hub into every link; see above."""
    for kind in (LINK, OUT):
        for name, _ in list(records.all(kind)):
            while not _is_fenced(records, kind, name, token):
                log.info("Link %s was written to meanwhile.", name)


def _is_fenced(records: Records, kind: str, name: str, token: int) -> bool:
    """Whether it holds now; not if the hub before us has just written, which is read again."""
    found = records.get(kind, name)
    if found is None or int(found.value["fence"]) >= token:
        return True
    try:
        records.put(kind, name, {**found.value, "fence": token}, found.version)
    except Conflict:
        return False
    return True


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a file that only one hub can hold: a store in files has no standby.

    Raises:
        ConfigError: another hub holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                "another hub runs on this state, and a store in files has no standby",
                str(path),
                "Stop the other one; for a standby, keep the shares in a cluster.",
            ) from error
        os.set_inheritable(file.fileno(), False)
        yield
