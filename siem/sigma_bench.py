"""The Sigma engine on lines of JSON: its speed beside a peer's.

Each run is a process of its own on one core, which loads the rules, then reads the file line by
line, decoded as it comes. What loading costs is taken off alike: of ours by its own clock, of the
peer by a run on an empty file. Runs of both alternate, so that a noisy machine is noisy for both.
No process is a copy of one that has loaded the rules: the first write to each page of its memory
would be counted as the engine's, up to as much again as deciding took.

In the race rules are routed as the peer does it with `--logsource-routing`: a rule is passed over
only if a part of the log source that both name differs. A node is stricter: an event has to name
what a rule wants, and narrower registry categories count as `registry_event`. So a race finds more
than a node would on lines that name no `service`, or a product alone, and loads longer: plans are
larger. The tests hold its counts against rsigma's, lane by lane; none differs.
"""

from __future__ import annotations

import gc
import json
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
from pathlib import Path
from typing import IO, Any

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
BUFFER_BYTES = 1 << 18
"""So large parts of a file are read: with small ones, cutting long lines takes thrice as long."""
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
    """CPU of a pass on Events that came before, without reading and decoding; of correlations of
    the first; 0: none."""
    wall_s: float
    """How long the first pass took."""
    counts: Mapping[str, int]
    """Matches of the first pass by rule."""
    rss_mb: int
    load_s: float = 0.0
    """CPU of loading the rules, which were compiled before."""
    rules: int = 0


# ---- Our run, in a process of its own


def ours(rules: Path, lane: Path, batch: int, kept: Path, wait: Callable[[], object]) -> Run:
    """Measure here; the process should do nothing else.

    Args:
        rules: Folder of Sigma rules; if correlations are among them, findings are counted.
        lane: JSON lines.
        batch: Lines at once.
        kept: Folder where what was compiled is kept for the next run.
        wait: Called when the rules are loaded; comes back when it is time.
    """
    began = time.process_time()
    loaded = load_folder(rules, compiled=kept / "rules")
    engine = PeerRouted(loaded, databases=kept)
    engine.prepare(for_lines=True)
    load_s = time.process_time() - began
    gc.freeze()
    wait()
    run = _correlated if loaded.correlations else _matched
    return msgspec.structs.replace(run(engine, lane, batch), load_s=load_s, rules=len(loaded.rules))


def _matched(engine: Engine, lane: Path, batch: int) -> Run:
    clock = Clock()
    events, counts = counted(engine, lane, batch)
    cold_s, wall_s = clock.lap()
    counted(engine, lane, batch)
    warm_s, _ = clock.lap()
    _detected(lane, batch, engine.matched)  # of lines it has not learnt how Events look
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
    with lane.open("rb", buffering=BUFFER_BYTES) as file:
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
    with lane.open("rb", buffering=BUFFER_BYTES) as file:
        for lines in _batched(file, batch):
            events += len(lines)
            for _, matched in engine.matched_lines(lines, TIME):
                if matched is None:
                    events -= 1
                else:
                    for one in matched:
                        found[one.id] += 1
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
    with tempfile.TemporaryDirectory(prefix="cityward-bench-") as name:
        folder = Path(name)
        kept, parts = folder / "compiled", folder / "parts"
        for one in (kept, parts):
            one.mkdir(mode=0o700)
        for lane in sigma_lanes.lanes(paths, rules, folder, fresh):
            yield from _raced(lane, peer, rounds, batches, kept)
            if cores > 1 and not lane.is_whole:  # whose groups would be torn apart
                yield _side_by_side(lane, rounds, split(lane.file, cores, parts), kept)


def _raced(
    lane: Lane, peer: str, rounds: int, batches: Sequence[int], kept: Path
) -> Iterator[dict[str, Any]]:
    _alone(lane, Path(os.devnull), BATCH, kept)  # the first one compiles the rules
    ran: list[list[Run]] = []
    theirs: list[Peer] = []
    for _ in range(rounds):
        ran.append([_alone(lane, lane.file, batch, kept) for batch in batches])
        if peer:
            theirs.append(_peer(peer, lane, ran[0][0].events))
    for runs in zip(*ran, strict=True):
        row = _row(lane.name, runs) | _of_rules(lane)
        yield row | (_compared(row, runs[0], theirs) if theirs else {})


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
        "load_s": round(min(one.load_s for one in runs), 2),
        "rules": first.rules,
    }


def _compared(row: Mapping[str, Any], run: Run, theirs: Sequence[Peer]) -> dict[str, Any]:
    first, load_s = theirs[0], min(one.load_s for one in theirs)
    spent_s = min(one.whole_s for one in theirs) - load_s
    # A machine that became quicker between two runs leaves nothing that could be said.
    their_per_s = round(run.events * first.times / spent_s) if spent_s > 0 else None
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


def _side_by_side(lane: Lane, rounds: int, parts: Sequence[Path], kept: Path) -> dict[str, Any]:
    """How much sooner several cores are through with the lane than one; the slowest counts."""
    alone: list[Run] = []
    beside: list[Run] = []
    for _ in range(rounds):
        alone.append(_alone(lane, lane.file, BATCH, kept))
        beside.append(_slowest(_beside(lane, parts, BATCH, kept)))
    return {
        **_row(f"{lane.name}, {len(parts)} cores", beside),
        **_of_rules(lane),
        "one_core_ratio": _times_as_fast(alone, beside, lambda one: one.cold_s),
        "one_core_wall_ratio": _times_as_fast(alone, beside, lambda one: one.wall_s),
    }


def _times_as_fast(
    one: Sequence[Run], other: Sequence[Run], seconds: Callable[[Run], float]
) -> float:
    return round(min(map(seconds, one)) / min(map(seconds, other)), 2)


def _of_rules(lane: Lane) -> dict[str, str]:
    return {"revision": sigma_lanes.revision(lane.rules), "routing": ROUTING}


def _slowest(runs: Sequence[Run]) -> Run:
    """Runs side by side as one: its events are those of all, its times those of the slowest."""
    counts = Counter[str]()
    for one in runs:
        counts.update(one.counts)
    return msgspec.structs.replace(
        runs[0],
        events=sum(one.events for one in runs),
        cold_s=max(one.cold_s for one in runs),
        warm_s=max(one.warm_s for one in runs),
        detect_s=max(one.detect_s for one in runs),
        wall_s=max(one.wall_s for one in runs),
        counts=counts,
        rss_mb=sum(one.rss_mb for one in runs),
    )


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


def _alone(lane: Lane, file: Path, batch: int, kept: Path) -> Run:
    (run,) = _beside(lane, [file], batch, kept)
    return run


def _beside(lane: Lane, files: Sequence[Path], batch: int, kept: Path) -> list[Run]:
    """Measure files side by side, each in a process on a core of its own.

    All begin when the last one has loaded the rules.
    """
    with ExitStack() as stack:
        complaints = [stack.enter_context(tempfile.TemporaryFile()) for _ in files]
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [*_on_one_core(number), sys.executable, "-m", "siem.sigma_bench",
                     str(lane.rules), str(file), str(batch), str(kept)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints[number],
                )
            )
            for number, file in enumerate(files)
        ]  # fmt: skip
        pipes = [(one.stdin, one.stdout) for one in processes]
        for _, said in pipes:
            assert said is not None
            said.readline()
        for begin, _ in pipes:
            assert begin is not None
            with suppress(BrokenPipeError):
                begin.close()
        return [*map(_run_of, processes, complaints, files)]


def _run_of(process: subprocess.Popen[bytes], complaints: IO[bytes], file: Path) -> Run:
    assert process.stdout is not None
    said = process.stdout.read()
    if process.wait() != 0:
        *_, last = ["", *_end_of(complaints).splitlines()]  # of a trace, what it says
        what = f"measuring failed: {last}"
        raise InputError(what, str(file), "Check the rules and the lines.")
    return msgspec.json.decode(said, type=Run)


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
            what = f"{PEER} failed: {_end_of(complaints)}"
            raise InputError(what, program, "Try it by hand.")
        said.seek(0)
        counts = Counter(_rule_of(line) for line in said if line.startswith(b"{"))
    return used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, counts


def _end_of(complaints: IO[bytes]) -> str:
    """The last of what a program complained of."""
    complaints.seek(0)
    return complaints.read().decode(errors="replace").strip()[-200:]


def _rule_of(line: bytes) -> str:
    found = json.loads(line)
    return str(found.get("rule_id") or found.get("rule", {}).get("id") or found.get("rule_title"))


def _on_one_core(number: int = 0) -> list[str]:
    cores = sorted(os.sched_getaffinity(0))
    core = cores[-1 - number % len(cores)]
    return ["taskset", "-c", str(core)] if shutil.which("taskset") else []


def _loaded() -> None:
    sys.stdout.write("loaded\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    rules, lane, batch, kept = sys.argv[1:]
    run = ours(Path(rules), Path(lane), int(batch), Path(kept), _loaded)
    sys.stdout.buffer.write(msgspec.json.encode(run))
