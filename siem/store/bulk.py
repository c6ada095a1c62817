"""Writing much to a cluster: nothing is lost, nothing stands there twice, whatever it answers.

A write says by itself that it may be repeated: a finding has its revision as external version, an
event is created once under its id. So what was not answered is sent again.

References:
    OpenSearch 2.19 and Elasticsearch 9, bulk API: each item has a status of its own.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

import msgspec

from cityward.errors import CitywardError, ConfigError, TransientError
from siem.store.dead_letters import DeadLetters
from siem.store.protocol import Conflict
from siem.store.protocol_cluster import Cluster, Refused, Result

log = logging.getLogger(__name__)

FLIGHTS = 2
"""Requests on their way at most: one is taken in while the next one travels."""
CHUNK_BYTES = 2 * 1024 * 1024
CHUNK_WRITES = 2_000
"""A request is no larger; twice as much was no faster, and takes the cluster's memory."""
BACKOFF_S, BACKOFF_MAX_S = 0.25, 30.0
MEANWHILE_S = 1.0
QUIET_S = 60.0
"""The same trouble is not logged more often."""
FAULTS_MOST = 20
"""So often an item may break the cluster (500) before it is put aside."""

OK = frozenset((200, 201))
OLD = 409
MISSING = 404
NEVER = 400
BROKEN = 500
TOO_LARGE = 413
UNREADABLE = frozenset((NEVER, TOO_LARGE))

T = TypeVar("T")
Chunk = tuple[T, Sequence[bytes]]
"""What is told once all of its writes are settled, and the writes, each as `Write.lines()`."""


class Tally(msgspec.Struct):
    """What became of writes, since the start."""

    written: int = 0
    old: int = 0
    """An equal or newer document was there."""
    dead: int = 0
    """Refused for good, and kept in the dead letters."""
    retried: int = 0
    """Writes that were sent once more."""
    trouble: str = ""
    """Why writes wait now; empty: they do not."""


class BulkWriter:
    """Sends chunks, a few at a time, and again what was not taken; any home."""

    def __init__(
        self,
        cluster: Cluster,
        dead: DeadLetters,
        stop: threading.Event,
        *,
        flights: int = FLIGHTS,
        backoff_s: float = BACKOFF_S,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take up a cluster.

        Args:
            cluster: Where to.
            dead: What it will never take goes there.
            stop: Set to give up what waits.
            flights: Requests on their way at most.
            backoff_s: Longest first pause; it doubles with each try that took nothing.
            chance: 0 to 1, for pauses that differ.
        """
        self.tally = Tally()
        self._cluster = cluster
        self._dead = dead
        self._stop = stop
        self._flights = flights
        self._backoff_s = backoff_s
        self._chance = chance
        self._lock = threading.Lock()
        self._quiet_until_s = 0.0
        self._told = False
        self._air = threading.BoundedSemaphore(flights)

    def flow(
        self, chunks: Iterable[Chunk[T]], meanwhile: Callable[[], None] = lambda: None
    ) -> Iterator[T]:
        """Send chunks; gives back what each one tells, in order, once it is settled.

        Settled is what was written, what is there in an equal or newer form, and what is kept in
        the dead letters. It ends early, without telling the rest, when `stop` is set.

        Args:
            chunks: A few are made before they can be sent, no more.
            meanwhile: Called now and then while the cluster lets us wait.
        """
        waiting: deque[tuple[T, Future[bool]]] = deque()
        for told, writes in chunks:
            waiting.append((told, self._depart(writes)))
            while waiting and (len(waiting) >= self._flights or waiting[0][1].done()):
                first, future = waiting.popleft()
                if not _awaited(future, meanwhile):
                    return
                yield first
        for first, future in waiting:
            if not _awaited(future, meanwhile):
                return
            yield first

    def send(self, writes: Sequence[bytes]) -> bool:
        """Settle some writes; False if that was stopped."""
        return all(self.flow([(True, writes)])) and not self._stop.is_set()

    @property
    def dropped(self) -> int:
        """Refused documents for which the dead letters had no room."""
        return self._dead.dropped

    # ---- One flight

    def _depart(self, writes: Sequence[bytes]) -> Future[bool]:
        """A thread a chunk: it must not keep a process that is stopped while a cluster hangs."""
        future: Future[bool] = Future()

        def fly() -> None:
            try:
                future.set_result(self._settle(writes))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=fly, name="bulk", daemon=True).start()
        return future

    def _settle(self, writes: Sequence[bytes]) -> bool:
        left: Sequence[bytes] = writes
        faults: Counter[bytes] = Counter()
        tries = 0
        while left:
            if self._stop.is_set():
                return False
            rest = self._tried(left, faults)
            if rest:
                self.tally.retried += len(rest)
                tries = 0 if len(rest) < len(left) else tries + 1
                if self._stop.wait(self._pause_s(tries)):
                    return False
            left = rest
        return True

    def _pause_s(self, tries: int) -> float:
        """Nobody comes back together with the others, and nobody at once."""
        longest = min(BACKOFF_MAX_S, self._backoff_s * 2.0 ** min(tries, 20))
        return longest * (0.5 + self._chance() / 2)

    def _tried(self, writes: Sequence[bytes], faults: Counter[bytes]) -> list[bytes]:
        """Send writes once; gives back those that have to be sent again."""
        try:
            with self._air:
                results = self._cluster.bulk(writes)
        except Refused as error:
            if error.status not in UNREADABLE:
                # Not what we sent, but where to: a proxy, another server.
                return self._held_back(writes, error)
            if len(writes) == 1:
                self._bury([(writes[0], f"http {error.status}", error.what)])
                return []
            middle = len(writes) // 2
            return self._tried(writes[:middle], faults) + self._tried(writes[middle:], faults)
        except (TransientError, ConfigError, Conflict) as error:
            return self._held_back(writes, error)
        return self._sorted_out(writes, results, faults)

    def _held_back(self, writes: Sequence[bytes], error: CitywardError) -> list[bytes]:
        self._trouble(error.what)
        return list(writes)

    def _sorted_out(
        self, writes: Sequence[bytes], results: Sequence[Result], faults: Counter[bytes]
    ) -> list[bytes]:
        again: list[bytes] = []
        refused: list[tuple[bytes, str, str]] = []
        missing: set[str] = set()
        done = old = 0
        why = ""
        for write, result in zip(writes, results, strict=True):
            status = result.status
            if status in OK:
                done += 1
            elif status == OLD or (status == MISSING and not result.error):
                old += 1
            elif status == NEVER or (status == BROKEN and faults[write] >= FAULTS_MOST):
                refused.append((write, result.error, result.reason))
            else:
                again.append(write)
                if status == BROKEN:
                    faults[write] += 1
                if status == MISSING:
                    missing.add(index_of(write))
                else:
                    why = f"{status} {result.error}: {result.reason}"
        with self._lock:
            self.tally.written += done
            self.tally.old += old
        self._bury(refused)
        for index in missing:
            self._make(index)
        if why:
            self._trouble(why)
        elif not again:
            self._well()
        return again

    def _bury(self, refused: Sequence[tuple[bytes, str, str]]) -> None:
        if not refused:
            return
        self._dead.add(refused)
        with self._lock:
            self.tally.dead += len(refused)
            first = self.tally.dead == len(refused)
        if first:
            _, error, reason = refused[0]
            log.error("The cluster refused a document: %s, %s.", error, reason[:300])

    def _make(self, index: str) -> None:
        """An index of a new month, after its template."""
        try:
            self._cluster.create_index(index)
        except CitywardError as error:
            self._trouble(error.what)

    # ---- What people are told

    def _trouble(self, why: str) -> None:
        now_s = time.monotonic()
        with self._lock:
            self.tally.trouble = " ".join(why.split())[:300]
            # A busy cluster takes some and refuses some, many times a second.
            is_new = now_s >= self._quiet_until_s
            if is_new:
                self._quiet_until_s, self._told = now_s + QUIET_S, True
        if is_new:
            log.warning("The cluster does not take all, it is tried again: %s.", why)

    def _well(self) -> None:
        with self._lock:
            self.tally.trouble = ""
            told, self._told = self._told, False
        if told:
            log.info("The cluster takes documents again.")


def _awaited(future: Future[bool], meanwhile: Callable[[], None]) -> bool:
    while True:
        try:
            return future.result(timeout=MEANWHILE_S)
        except TimeoutError:
            if future.done():
                raise
            meanwhile()


class _Where(msgspec.Struct):
    index: str = msgspec.field(name="_index")


_action_of = msgspec.json.Decoder(dict[str, _Where]).decode


def index_of(write: bytes) -> str:
    """Name of the index a write goes to."""
    (where,) = _action_of(write[: write.index(b"\n")]).values()
    return where.index


def chunked(writes: Iterable[tuple[T, bytes]], nothing: T) -> Iterator[Chunk[T]]:
    """Writes in chunks of a bearable size; each tells what its last write told.

    Args:
        writes: What is told once this write and all before it are settled, and the write; an
            empty one only tells.
        nothing: Told by no chunk, since more of the same follows.
    """
    some: list[bytes] = []
    size = 0
    told = nothing
    for told, write in writes:
        if write:
            some.append(write)
            size += len(write)
        if told is not nothing and (size >= CHUNK_BYTES // 2 or len(some) >= CHUNK_WRITES // 2):
            yield told, some
            some, size = [], 0
        elif size >= CHUNK_BYTES or len(some) >= CHUNK_WRITES:
            yield nothing, some
            some, size = [], 0
    if some or told is not nothing:
        yield told, some
