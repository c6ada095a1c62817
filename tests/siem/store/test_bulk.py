"""Writing much: what becomes of each write, whatever the cluster answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cityward import ConfigError, TransientError
from siem.store.bulk import FAULTS_MOST, BulkWriter, chunked, index_of
from siem.store.dead_letters import DeadLetters
from siem.store.protocol_cluster import Refused, Result, Write

Answer = Callable[[bytes], Result]
DONE = Result(201)


class Scripted:
    """A cluster that answers as a test says: each request by the next word, then well."""

    def __init__(self, *words: Exception | Answer) -> None:
        self.words = list(words)
        self.taken: list[bytes] = []
        self.made: list[str] = []
        self.flying = 0
        self.most = 0
        self.slow_s = 0.0
        self._lock = threading.Lock()

    def bulk(self, writes: Sequence[bytes], *, refresh: bool = False) -> Sequence[Result]:
        with self._lock:
            self.flying += 1
            self.most = max(self.most, self.flying)
            word = self.words.pop(0) if self.words else None
        time.sleep(self.slow_s)
        try:
            if isinstance(word, Exception):
                raise word
            results = [word(one) if word else DONE for one in writes]
            self.taken += [
                one for one, result in zip(writes, results, strict=True) if result.status == 201
            ]
            return results
        finally:
            with self._lock:
                self.flying -= 1

    def create_index(self, name: str) -> bool:
        self.made.append(name)
        return True


@pytest.fixture
def dead(tmp_path: Path) -> DeadLetters:
    return DeadLetters(tmp_path / "cluster/dead-letters.ndjson")


def _writer(cluster: Scripted, dead: DeadLetters, **more: Any) -> BulkWriter:
    return BulkWriter(cluster, dead, more.pop("stop", threading.Event()), backoff_s=0.001, **more)  # type: ignore[arg-type]


def _write(number: int, index: str = "cw-x") -> bytes:
    return Write(index, str(number), b'{"n":%d}' % number, version=1).lines()


def _by(**answers: Result) -> Answer:
    """Answers by document id, as `_7`; the others are taken."""

    def answer(write: bytes) -> Result:
        number = msgspec.json.decode(write.split(b"\n")[1])["n"]
        return answers.get(f"_{number}", DONE)

    return answer


BUSY = Result(429, "rejected_execution_exception", "queue is full")


@pytest.mark.parametrize(
    "trouble",
    [
        TransientError("429"),
        ConfigError("401"),
        Refused("301", status=301),
        _by(_1=BUSY, _2=Result(503, "unavailable_shards_exception", "")),
        _by(_1=Result(403, "cluster_block_exception", "index read-only")),
        _by(_1=Result(500, "exception", "")),
    ],
    ids=["whole", "closed", "elsewhere", "items", "block", "broken"],
)
def test_what_was_not_taken_is_sent_again_and_nothing_else(
    trouble: Exception | Answer, dead: DeadLetters
) -> None:
    cluster = Scripted(trouble, trouble)
    writer = _writer(cluster, dead)

    assert writer.send([_write(number) for number in range(5)])

    assert sorted(cluster.taken) == [_write(number) for number in range(5)]
    assert writer.tally.written == 5
    assert writer.tally.trouble == ""
    assert len(dead) == 0


def test_an_older_one_that_comes_late_is_done(dead: DeadLetters) -> None:
    cluster = Scripted(_by(_1=Result(409, "version_conflict_engine_exception", "")))
    writer = _writer(cluster, dead)

    assert writer.send([_write(1), _write(2)])

    assert (writer.tally.written, writer.tally.old) == (1, 1)


def test_a_refused_document_goes_to_the_dead_letters_and_can_be_sent_again(
    dead: DeadLetters,
) -> None:
    cluster = Scripted(_by(_1=Result(400, "mapper_parsing_exception", "no ip")))
    writer = _writer(cluster, dead)

    assert writer.send([_write(1), _write(2)])
    [letter] = dead
    again = list(dead.taken())

    assert (letter.error, letter.reason) == ("mapper_parsing_exception", "no ip")
    assert letter.lines() == _write(1)
    assert again == [letter]
    assert len(dead) == 0
    assert writer.tally.dead == 1


def test_a_request_that_is_too_large_is_halved_until_the_culprit_is_alone(
    dead: DeadLetters,
) -> None:
    class Narrow(Scripted):
        def bulk(self, writes: Sequence[bytes], *, refresh: bool = False) -> Sequence[Result]:
            if len(writes) > 2 or _write(3) in writes:
                raise Refused("413", status=413)
            return super().bulk(writes)

    cluster = Narrow()

    assert _writer(cluster, dead).send([_write(number) for number in range(8)])

    assert sorted(cluster.taken) == [_write(number) for number in range(8) if number != 3]
    assert [letter.lines() for letter in dead] == [_write(3)]


def test_an_index_that_is_missing_is_made(dead: DeadLetters) -> None:
    cluster = Scripted(_by(_1=Result(404, "index_not_found_exception", "")))

    assert _writer(cluster, dead).send([_write(1), _write(2)])

    assert cluster.made == ["cw-x"]
    assert sorted(cluster.taken) == [_write(1), _write(2)]


def test_what_breaks_the_cluster_again_and_again_is_put_aside(dead: DeadLetters) -> None:
    broken = _by(_1=Result(500, "exception", "fault"))
    cluster = Scripted(*[broken] * (FAULTS_MOST + 1))

    assert _writer(cluster, dead, chance=lambda: 0.0, stop=_Quick()).send([_write(1), _write(2)])

    assert cluster.taken == [_write(2)]
    assert len(dead) == 1


class _Quick(threading.Event):
    """A clock that does not wait."""

    def wait(self, timeout: float | None = None) -> bool:
        return self.is_set()


def test_pauses_grow_differ_and_are_bounded(dead: DeadLetters) -> None:
    pauses: list[float] = []

    class Noted(_Quick):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return False

    cluster = Scripted(*[TransientError("busy")] * 12)
    writer = BulkWriter(cluster, dead, Noted(), chance=iter([0.0, 1.0] * 6).__next__)  # type: ignore[arg-type]
    writer.send([_write(1)])

    assert pauses[:4] == [0.25, 1.0, 1.0, 4.0]
    assert max(pauses) == 30.0


def test_two_requests_are_on_their_way_at_most_and_are_told_of_in_order(
    dead: DeadLetters,
) -> None:
    cluster = Scripted()
    cluster.slow_s = 0.01
    chunks = [(number, [_write(number)]) for number in range(12)]

    told = list(_writer(cluster, dead).flow(chunks))

    assert told == list(range(12))
    assert cluster.most == 2


def test_a_stop_gives_up_what_waits_and_tells_nothing_of_it(dead: DeadLetters) -> None:
    stop = threading.Event()

    class Dead(Scripted):
        def bulk(self, writes: Sequence[bytes], *, refresh: bool = False) -> Sequence[Result]:
            if writes == [_write(2)]:
                stop.set()
                raise TransientError("gone")
            return super().bulk(writes)

    told = list(
        _writer(Dead(), dead, stop=stop, flights=1).flow([(n, [_write(n)]) for n in range(5)])
    )

    assert told == [0, 1]


def test_the_dead_letters_are_bounded_and_count_what_had_no_room(tmp_path: Path) -> None:
    dead = DeadLetters(tmp_path / "dead.ndjson", max_bytes=400)

    dead.add([(_write(number), "error", "reason") for number in range(10)])

    assert 0 < len(dead) < 10
    assert dead.dropped == 10 - len(dead)
    assert dead.path.stat().st_size <= 400
    assert dead.path.stat().st_mode & 0o777 == 0o600


def test_a_replay_that_was_interrupted_goes_on(dead: DeadLetters) -> None:
    dead.add([(_write(1), "e", "r"), (_write(2), "e", "r")])
    interrupted = dead.taken()
    next(interrupted)
    interrupted.close()
    dead.add([(_write(3), "e", "r")])

    assert [one.lines() for one in dead.taken()] == [_write(1), _write(2), _write(3)]
    assert list(dead.taken()) == []


def test_a_torn_dead_letter_is_passed_over(dead: DeadLetters) -> None:
    dead.add([(_write(1), "e", "r")])
    with dead.path.open("ab") as file:
        file.write(b'{"time":"2026')
    dead.add([(_write(2), "e", "r")])

    assert [one.lines() for one in dead] == [_write(1), _write(2)]


def test_chunks_are_bounded_and_only_the_last_write_of_a_batch_is_told() -> None:
    writes = [(None, b"x" * 1_000_000), (None, b"x" * 1_000_000), (7, b"x" * 1_000_000)]
    writes += [(None, b"y"), (8, b"y"), (9, b"")]

    chunks = list(chunked(writes, None))

    assert [(told, len(some)) for told, some in chunks] == [(7, 3), (9, 2)]
    assert max(sum(map(len, some)) for _, some in chunks) <= 3_000_000
    assert list(chunked([], None)) == []


def test_the_index_of_a_write_is_read_from_its_first_line() -> None:
    assert index_of(_write(1, "cw-findings-op-2026.03")) == "cw-findings-op-2026.03"
