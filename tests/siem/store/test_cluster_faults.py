"""A real OpenSearch that refuses, hangs and dies while much is written: nothing lost or doubled.

`faults` is a server of its own with a write queue of one and little room for requests on their way,
so that it refuses whole requests and single items.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from siem.store.bulk import BulkWriter, Chunk
from siem.store.dead_letters import DeadLetters
from siem.store.opensearch import OpenSearchCluster
from siem.store.protocol_cluster import Result, Write
from tests import opensearch as server_of_tests
from tests.opensearch import Server, own_server
from tests.programs import PATIENCE_S, is_crowded

pytestmark = pytest.mark.slow

TIMEOUT_S = 2.0
"""A tenth of what a node waits: so are the pauses of the server."""
HANGS_S = 5.0
CHUNK = 50


class Watched(OpenSearchCluster):
    """Counts requests on their way, and what they were answered."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self.flying = self.most = 0
        self.statuses: dict[str, int] = {}
        self._lock = threading.Lock()

    def bulk(self, writes: Sequence[bytes], *, refresh: bool = False) -> Sequence[Result]:
        with self._lock:
            self.flying += 1
            self.most = max(self.most, self.flying)
        try:
            results = super().bulk(writes, refresh=refresh)
            self._count(*(f"item {one.status}" for one in results))
            return results
        except Exception as error:
            self._count(type(error).__name__)
            raise
        finally:
            with self._lock:
                self.flying -= 1

    def _count(self, *words: str) -> None:
        with self._lock:
            for word in words:
                self.statuses[word] = self.statuses.get(word, 0) + 1


class Load:
    """One writer in a thread of its own: findings in two revisions and events, in chunks."""

    def __init__(self, server: Server, prefix: str, folder: Path) -> None:
        self.cluster = Watched(
            [server.url],
            user=server.user,
            password=server.password,
            ca=Path(server.ca_file),
            timeout_s=TIMEOUT_S,
        )
        self.index = f"{prefix}-load"
        self.dead = DeadLetters(folder / "dead.ndjson")
        self.stop = threading.Event()
        self.enough = threading.Event()
        self.writer = BulkWriter(self.cluster, self.dead, self.stop, backoff_s=0.05)
        self.told: list[int] = []

    def chunks(self, least: int) -> Iterator[Chunk[int]]:
        """Each number a chunk: new events, and findings in a first and a second revision.

        They do not end before it is enough: a fault has to come while something is written.
        """
        pad = "x" * 200
        for number in itertools.count():
            if number >= least and self.enough.is_set():
                return
            writes: list[bytes] = []
            for place in range(CHUNK):
                source = b'{"chunk":%d,"place":%d,"pad":"%s"}' % (number, place, pad.encode())
                writes.append(Write(self.index, f"e{number}-{place}", source).lines())
            for revision in (1, 2):
                source = b'{"chunk":%d,"revision":%d}' % (number, revision)
                writes.append(Write(self.index, f"f{number}", source, version=revision).lines())
            yield number, writes

    def run(self, least: int) -> threading.Thread:
        """Write so many chunks in a thread, and more until it is enough."""

        def write() -> None:
            for number in self.writer.flow(self.chunks(least)):
                self.told.append(number)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        return thread

    def until(self, count: int) -> None:
        """Wait until so many chunks are settled."""
        await_(lambda: len(self.told) >= count)

    def end(self, thread: threading.Thread) -> float:
        """It is enough; how many seconds it took until all is settled."""
        begun = time.monotonic()
        self.enough.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "it takes too long"
        return time.monotonic() - begun

    def check(self, least: int) -> None:
        """Everything is there, once, and the newest; nothing is with the dead."""
        chunks = len(self.told)
        assert chunks >= least
        assert self.told == list(range(chunks))
        self.cluster.refresh(self.index)
        assert self.cluster.count(self.index, {"match_all": {}}) == chunks * (CHUNK + 1)
        assert self.cluster.count(self.index, {"term": {"revision": 2}}) == chunks
        assert len(self.dead) == 0
        assert self.cluster.most <= 2


def await_(there: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it takes too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def faults() -> Iterator[Server]:
    with own_server(
        "thread_pool.write.size=1",
        "thread_pool.write.queue_size=1",
        "indexing_pressure.memory.limit=200kb",
    ) as server:
        yield server


@pytest.fixture
def load(faults: Server, tmp_path: Path) -> Iterator[Load]:
    made = Load(faults, "cw-faults", tmp_path)
    mappings = {
        "dynamic": False,
        "properties": {"revision": {"type": "long"}, "chunk": {"type": "long"}},
    }
    faults.ask("PUT", f"/{made.index}", {"mappings": mappings})
    yield made
    made.stop.set()
    faults.ask("DELETE", f"/{made.index}")
    made.cluster.close()


def _set(server: Server, index: str, **settings: Any) -> None:
    status, answer = server.ask(
        "PUT",
        f"/{index}/_settings",
        {name.replace("__", "."): one for name, one in settings.items()},
    )
    assert status == 200, answer


@contextlib.contextmanager
def _pushing(server: Server, index: str) -> Iterator[None]:
    """Others who write at the same time as much as they can."""
    stop = threading.Event()
    body = "".join('{"index":{}}\n{"pad":"%s"}\n' % ("y" * 500) for _ in range(100))

    def push() -> None:
        while not stop.is_set():
            server.ask("POST", f"/{index}/_bulk", body)

    threads = [threading.Thread(target=push, daemon=True) for _ in range(4)]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        stop.set()
        for one in threads:
            one.join()


def test_busy_for_whole_requests_and_for_single_items(faults: Server, load: Load) -> None:
    faults.ask("PUT", f"/{load.index}-others", {"settings": {"number_of_shards": 5}})
    seen = load.cluster.statuses

    with _pushing(faults, f"{load.index}-others"):
        thread = load.run(40)
        await_(lambda: seen.get("TransientError", 0) + seen.get("item 429", 0) > 0)
        load.end(thread)
    faults.ask("DELETE", f"/{load.index}-others")

    load.check(40)


def test_a_write_block_and_a_disk_at_its_flood_stage(faults: Server, load: Load) -> None:
    thread = load.run(60)
    for name in ("index__blocks__write", "index__blocks__read_only_allow_delete"):
        before = len(load.told)
        _set(faults, load.index, **{name: True})
        # A queue of one says 429 in between.
        await_(lambda: "cluster_block_exception" in load.writer.tally.trouble)
        _set(faults, load.index, **{name: None})
        load.until(before + 5)
    load.end(thread)

    load.check(60)
    assert load.writer.tally.trouble == ""


def test_an_index_that_is_red_until_it_heals(faults: Server, load: Load) -> None:
    faults.ask("DELETE", f"/{load.index}")
    settings = {"index.routing.allocation.require._name": "nobody"}
    mappings = {"dynamic": False, "properties": {"revision": {"type": "long"}}}
    faults.ask(
        "PUT",
        f"/{load.index}?wait_for_active_shards=0",
        {"settings": settings, "mappings": mappings},
    )

    thread = load.run(10)
    await_(lambda: bool(load.writer.tally.trouble))
    _set(faults, load.index, **{"index.routing.allocation.require._name": None})
    load.end(thread)

    load.check(10)


def test_a_cluster_that_hangs(faults: Server, load: Load) -> None:
    thread = load.run(60)
    load.until(5)
    os.kill(faults.pid, signal.SIGSTOP)
    try:
        time.sleep(HANGS_S)
    finally:
        os.kill(faults.pid, signal.SIGCONT)
    took_s = load.end(thread)

    load.check(60)
    assert load.cluster.statuses.get("TransientError", 0) > 0
    assert took_s < 60 or is_crowded()


def test_a_cluster_that_is_killed_and_started_again(faults: Server, load: Load) -> None:
    thread = load.run(150)
    load.until(10)
    os.kill(faults.pid, signal.SIGKILL)
    await_(lambda: bool(load.writer.tally.trouble))
    words = ("--set", "thread_pool.write.size=1", "--set", "thread_pool.write.queue_size=1")
    server_of_tests.start(faults.home, *words, until=os.getpid())
    load.end(thread)

    load.check(150)
