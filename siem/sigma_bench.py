"""The Sigma engine on lines of JSON: its speed beside a peer's.

Each run is a process of its own on one core, which loads the rules, then reads the file line by
line, decoded as it comes. What loading costs is taken off alike: of ours by its own clock, of the
peer by a run on an empty file. Runs of both alternate, so that a noisy machine is noisy for both.
Batches of several sizes are measured in copies of one process, each with its memories as they are
after loading.

In the race rules are routed as the peer does it with `--logsource-routing`: a rule is passed over
only if a part of the log source that both name differs. A node is stricter: an event has to name
what a rule wants, and narrower registry categories count as `registry_event`. So a race finds more
than a node would on lines that name no `service`, or a product alone, and loads longer: plans are
larger. The tests hold its counts against rsigma's, lane by lane; none differs.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec

from cityward import Event, InputError, LogSource, Record
from detectors.sigma.engine import Engine
from detectors.sigma.jsonlines import BROKEN, event_of
from detectors.sigma.load import load_folder
from siem import sigma_lanes
from siem.sigma_lanes import Lane

PEER = "rsigma"
ROUTING = "only a part that both name"
ROUNDS = 3
PEER_EVENTS = 100_000
BATCH = 512
TIME = datetime(2026, 1, 5, tzinfo=UTC)
RECORD = Record(b"", "bench", 0, TIME)
BATCHES = (1, 64, 512, 4096)
TABLE = (
    *("lane", "batch", "events", "cold_per_s", "warm_per_s", "detect_per_s", f"{PEER}_per_s"),
    *("cold_ratio", "warm_ratio", "matches", "counts", "load_s", "rss_mb"),
    *("one_core_ratio", "one_core_wall_ratio"),
)
"""What a table shows; JSON has also rules, their revision, routing, and what the peer needs."""


class Run(msgspec.Struct, frozen=True):
    """What one process measured."""

    batch: int
    """Lines at once; of the peer 0."""
    events: int
    cold_s: float
    """CPU of the first pass, reading and decoding included."""
    warm_s: float
    """CPU of a second pass; 0: there was none."""
    detect_s: float
    """CPU of a third pass, without reading and decoding; of correlations of the first; 0: none."""
    wall_s: float
    """How long the first pass took."""
    counts: Mapping[str, int]
    """Matches of the first pass by rule."""
    rss_mb: int


class Measured(msgspec.Struct, frozen=True):
    """A process: what loading cost, and what its copies measured after it."""

    load_s: float
    rules: int
    rss_mb: int
    """While loading."""
    runs: Sequence[Run]
    """By size of a batch."""
    beside: Sequence[Run] = ()
    """Copies on several cores at the same time, each with its share of the lines."""


# ---- Our run, in a process of its own


def ours(rules: Path, lane: Path, batches: Sequence[int] = (BATCH,), cores: int = 1) -> Measured:
    """Measure here; the process should do nothing else.

    Args:
        rules: Folder of Sigma rules; if correlations are among them, findings are counted.
        lane: JSON lines.
        batches: Lines at once; each is measured on its own.
        cores: So many copies also share the lines, side by side.
    """
    began = time.process_time()
    loaded = load_folder(rules)
    engine = PeerRouted(loaded)
    engine.prepare(for_lines=True)
    load_s = time.process_time() - began
    gc.freeze()
    run = _correlated if loaded.correlations else _matched
    runs = [in_copies([partial(run, engine, lane, batch)])[0] for batch in batches]
    beside: list[Run] = []
    if cores > 1 and not loaded.correlations:  # whose groups would be torn apart
        with tempfile.TemporaryDirectory(prefix="cityward-bench-") as folder:
            parts = split(lane, cores, Path(folder))
            beside = in_copies([partial(run, engine, part, BATCH) for part in parts])
    return Measured(load_s, len(loaded.rules), _rss_mb(), runs, beside)


def _matched(engine: Engine, lane: Path, batch: int) -> Run:
    clock = Clock()
    events, counts = counted(engine, lane, batch)
    cold_s, wall_s = clock.lap()
    counted(engine, lane, batch)
    warm_s, _ = clock.lap()
    detect_s, _ = _detected(lane, batch, engine.matched)
    return Run(batch, events, cold_s, warm_s, detect_s, wall_s, counts, _rss_mb())


def _correlated(engine: Engine, lane: Path, batch: int) -> Run:
    """With correlations an event that comes again is another event: there is only a first pass."""
    clock = Clock()
    counts = Counter[str]()
    detect_s, events = _detected(lane, batch, partial(_told, engine, counts))
    for finding in engine.leftover():
        counts[finding.analytic.id] += finding.count
    cold_s, wall_s = clock.lap()
    for state in engine.states():
        if state.kind == "rule":  # what only correlations build on matches in silence
            counts[state.id] = state.matches
    return Run(batch, events, cold_s, 0.0, detect_s, wall_s, counts, _rss_mb())


def _told(engine: Engine, counts: Counter[str], events: Sequence[Event]) -> Iterator[None]:
    for finding in engine.detect(events):
        counts[finding.analytic.id] += finding.count
        yield


def _detected(
    lane: Path, batch: int, detect: Callable[[Sequence[Event]], Iterable[object]]
) -> tuple[float, int]:
    """CPU seconds of deciding alone, on Events that are decoded already, and how many they are."""
    spent_s, number = 0.0, 0
    with lane.open("rb") as file:
        for lines in _batched(file, batch):
            events = [*_events(lines)]
            began = time.process_time()
            deque(detect(events), maxlen=0)
            spent_s += time.process_time() - began
            number += len(events)
    return spent_s, number


class Clock:
    """CPU and time that pass."""

    def __init__(self) -> None:
        self._at = time.process_time(), time.perf_counter()

    def lap(self) -> tuple[float, float]:
        """Seconds of CPU and of time since it was made, or asked last."""
        before, self._at = self._at, (time.process_time(), time.perf_counter())
        return self._at[0] - before[0], self._at[1] - before[1]


def _rss_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def in_copies(works: Sequence[Callable[[], Run]]) -> list[Run]:
    """Do each in a copy of this process; several side by side, each on a core of its own."""
    context = multiprocessing.get_context("fork")
    cores = sorted(os.sched_getaffinity(0) if len(works) == 1 else range(os.cpu_count() or 1))
    answers = []
    for number, work in enumerate(works):
        answer, given = context.Pipe(duplex=False)
        core = cores[-1 - number % len(cores)]
        process = context.Process(target=_in_copy, args=(work, core, given))
        process.start()
        given.close()  # so that a copy that fails is an end and no waiting for ever
        answers.append((process, answer))
    found = [answer.recv() for _, answer in answers]
    for process, _ in answers:
        process.join()
    return found


def _in_copy(work: Callable[[], Run], core: int, given: Connection) -> None:
    os.sched_setaffinity(0, {core})
    given.send(work())


def split(lane: Path, parts: int, folder: Path) -> list[Path]:
    """A lane's lines dealt out in turn."""
    made = [folder / f"part-{number}.ndjson" for number in range(parts)]
    with ExitStack() as stack:
        files = [stack.enter_context(one.open("wb")) for one in made]
        with lane.open("rb") as lines:
            for number, line in enumerate(lines):
                files[number % parts].write(line)
    return made


def counted(engine: Engine, lane: Path, batch: int = BATCH) -> tuple[int, Counter[str]]:
    """How many events a lane has, broken lines left out, and how many each rule matches."""
    events, found = 0, Counter[str]()
    with lane.open("rb") as file:
        for lines in _batched(file, batch):
            events += len(lines)
            for _, matched in engine.matched_lines(lines, TIME):
                if matched is None:
                    events -= 1
                else:
                    found.update(one.id for one in matched)
    return events, found


def _batched(file: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while lines := [*islice(file, size)]:
        yield lines


def _events(lines: Iterable[bytes]) -> Iterator[Event]:
    for line in lines:
        with suppress(*BROKEN):
            yield event_of(line, TIME)


def conflict(wanted: LogSource, given: LogSource) -> bool:
    """True if a part that both log sources name is not the same."""
    pairs = zip(msgspec.structs.astuple(wanted), msgspec.structs.astuple(given), strict=True)
    return any(one and other and one != other.lower() for one, other in pairs)


class PeerRouted(Engine):
    """The engine with the peer's routing: a part that one of both does not name is no obstacle."""

    def _covers(self, wanted: LogSource, given: LogSource) -> bool:
        return not conflict(wanted, given)


# ---- The race


class Peer(msgspec.Struct, frozen=True):
    """What the other program is, and what it did."""

    version: str
    load_s: float
    """CPU of a run on nothing."""
    whole_s: float
    """CPU of a run on the lane, which comes as often as it takes for `PEER_EVENTS`."""
    times: int
    counts: Mapping[str, int]
    """Matches by rule, of all times."""
    rss_mb: int


def rows(
    rules: Path,
    paths: Sequence[Path],
    peer: str = "",
    rounds: int = ROUNDS,
    batches: Sequence[int] = BATCHES,
    *,
    fresh: bool = False,
    cores: int = 1,
) -> Iterator[dict[str, Any]]:
    """A row a lane and batch: events a CPU second of both, ratios, whether they found the same.

    Args:
        rules: Folder of Sigma rules.
        paths: Lanes.
        peer: Its program; empty: ours alone.
        rounds: So often each is run; the best counts.
        batches: Lines at once.
        fresh: Also each lane with values that never come twice.
        cores: Of ours also so many copies side by side, each with its share of the lines.
    """
    with tempfile.TemporaryDirectory(prefix="cityward-bench-") as folder:
        for lane in sigma_lanes.lanes(paths, rules, Path(folder), fresh):
            yield from _raced(lane, peer, rounds, batches, cores)


def _raced(
    lane: Lane, peer: str, rounds: int, batches: Sequence[int], cores: int
) -> Iterator[dict[str, Any]]:
    ran: list[Measured] = []
    theirs: list[Peer] = []
    for _ in range(rounds):
        ran.append(_in_child(lane, batches, cores))
        if peer:
            theirs.append(_peer(peer, lane, ran[0].runs[0].events))
    common = {
        "load_s": round(min(one.load_s for one in ran), 2),
        "rules": ran[0].rules,
        "revision": sigma_lanes.revision(lane.rules),
        "routing": ROUTING,
    }
    for number in range(len(batches)):
        row = _row(lane.name, [one.runs[number] for one in ran])
        yield row | common | (_compared(row, ran[0].runs[number], theirs) if theirs else {})
    if ran[0].beside:
        yield _side_by_side(lane.name, ran) | common


def _row(lane: str, runs: Sequence[Run]) -> dict[str, Any]:
    first = runs[0]
    return {
        "lane": lane,
        "events": first.events,
        "batch": first.batch,
        "cold_per_s": _rate(first.events, [one.cold_s for one in runs]),
        "warm_per_s": _rate(first.events, [one.warm_s for one in runs]),
        "detect_per_s": _rate(first.events, [one.detect_s for one in runs]),
        "matches": sum(first.counts.values()),
        "matching_rules": len(first.counts),
        "rss_mb": max(one.rss_mb for one in runs),
    }


def _compared(row: Mapping[str, Any], run: Run, theirs: Sequence[Peer]) -> dict[str, Any]:
    first, load_s = theirs[0], min(one.load_s for one in theirs)
    spent_s = max(min(one.whole_s for one in theirs) - load_s, 1e-6)
    their_per_s = round(run.events * first.times / spent_s)
    ours = {id: count * first.times for id, count in run.counts.items()}
    return {
        f"{PEER}_per_s": their_per_s,
        "cold_ratio": _ratio(row["cold_per_s"], their_per_s),
        "warm_ratio": _ratio(row["warm_per_s"], their_per_s),
        "counts": differences(ours, first.counts) or "same",
        f"{PEER}_load_s": round(load_s, 2),
        f"{PEER}_rss_mb": max(one.rss_mb for one in theirs),
        PEER: first.version,
    }


def _side_by_side(lane: str, ran: Sequence[Measured]) -> dict[str, Any]:
    """How much sooner several cores are through with the lane than one; the slowest counts."""
    alone = [next(run for run in one.runs if run.batch == BATCH) for one in ran]
    beside = [[*one.beside] for one in ran]
    cores, events = len(beside[0]), alone[0].events
    cpu_s = min(max(run.cold_s for run in runs) for runs in beside)
    wall_s = min(max(run.wall_s for run in runs) for runs in beside)
    return {
        "lane": f"{lane}, {cores} cores",
        "events": events,
        "batch": BATCH,
        "cold_per_s": round(events / cpu_s),
        "warm_per_s": _rate(events, [max(run.warm_s for run in runs) for runs in beside]),
        "matches": sum(sum(run.counts.values()) for run in beside[0]),
        "rss_mb": max(sum(run.rss_mb for run in runs) for runs in beside),
        "one_core_ratio": round(min(one.cold_s for one in alone) / cpu_s, 2),
        "one_core_wall_ratio": round(min(one.wall_s for one in alone) / wall_s, 2),
    }


def _rate(events: int, seconds: Sequence[float]) -> int | None:
    best_s = min(seconds)
    return round(events / best_s) if best_s else None


def _ratio(one: int | None, other: int | None) -> float | None:
    return round(one / other, 2) if one and other else None


def differences(one: Mapping[str, int], other: Mapping[str, int]) -> str:
    """Rules whose counts differ, each with both; empty: they agree."""
    names = sorted(id for id in {*one, *other} if one.get(id, 0) != other.get(id, 0))
    said = [f"{id} {one.get(id, 0)}/{other.get(id, 0)}" for id in names[:5]]
    return "; ".join(said) + (f"; {len(names) - 5} more" if len(names) > 5 else "")


def _in_child(lane: Lane, batches: Sequence[int], cores: int) -> Measured:
    numbers = [str(number) for number in (cores, *batches)]
    words = [sys.executable, "-m", "siem.sigma_bench", str(lane.rules), str(lane.file), *numbers]
    done = subprocess.run([*_on_one_core(), *words], capture_output=True, check=True)
    return msgspec.json.decode(done.stdout, type=Measured)


def _peer(program: str, lane: Lane, events: int) -> Peer:
    """The peer on a lane, and on nothing, for what loading costs it."""
    said = subprocess.run([program, "--version"], capture_output=True, check=False, text=True)
    version, _, _ = said.stdout.partition("\n")
    # Loading takes as long as tens of thousands of events; it remembers none, so more are as good.
    times = 1 if lane.is_whole else max(1, PEER_EVENTS // max(events, 1))
    load_s, _, _ = _peer_run(program, lane, 0)
    whole_s, rss_mb, counts = _peer_run(program, lane, times)
    return Peer(version, load_s, whole_s, times, counts, rss_mb)


def _peer_run(program: str, lane: Lane, times: int) -> tuple[float, int, Counter[str]]:
    """Seconds of CPU, MB, and matches by rule of the peer on a lane that comes so often."""
    words = [
        *_on_one_core(), program, "engine", "eval", "-r", str(lane.rules), "--logsource-routing",
        "--output-format", "ndjson",
    ]  # fmt: skip
    alone = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKIO_WORKER_THREADS": "1"}
    with (
        tempfile.TemporaryFile() as lines,
        tempfile.TemporaryFile() as said,
        tempfile.TemporaryFile() as complaints,
    ):
        for _ in range(times):
            with lane.file.open("rb") as given:
                shutil.copyfileobj(given, lines)
        lines.seek(0)
        process = subprocess.Popen(words, stdin=lines, stdout=said, stderr=complaints, env=alone)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, 1):
            complaints.seek(0)
            what = complaints.read().decode(errors="replace").strip()[-200:]
            raise InputError(f"{PEER} failed: {what}", program, "Try it by hand.")
        said.seek(0)
        counts = Counter(_rule_of(line) for line in said if line.startswith(b"{"))
    return used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, counts


def _rule_of(line: bytes) -> str:
    found = json.loads(line)
    return str(found.get("rule_id") or found.get("rule", {}).get("id") or found.get("rule_title"))


def _on_one_core() -> list[str]:
    core = max(os.sched_getaffinity(0))
    return ["taskset", "-c", str(core)] if shutil.which("taskset") else []


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[3:]]
    made = ours(Path(sys.argv[1]), Path(sys.argv[2]), numbers[1:], numbers[0])
    sys.stdout.buffer.write(msgspec.json.encode(made))
