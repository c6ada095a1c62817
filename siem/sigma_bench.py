"""The Sigma engine on lines of JSON: its speed beside a peer's, and cases from outside.

Each run is a process of its own on one core, which loads the rules, then reads the file line by
line, decoded as it comes. What loading costs is taken off alike: of ours by its own clock, of the
peer by a run on an empty file. Runs of both alternate, so that a noisy machine is noisy for both.

In the race rules are routed as the peer does it with `--logsource-routing`: a rule is passed over
only if a part of the log source that both name differs. A node is stricter: an event has to name
what a rule wants, and narrower registry categories count as `registry_event`. So a race finds more
than a node would on lines that name no `service`, or a product alone, and loads longer: plans are
larger. The tests hold its counts against rsigma's, lane by lane; none differs. Cases are routed as
a node does it.
"""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from cityward import Event, InputError, LogSource, Record
from cityward.errors import CitywardError
from collectors.logs.windows import SYSMON
from detectors.sigma.engine import Engine, _Active
from detectors.sigma.load import load_folder, load_text

PEER = "rsigma"
ROUNDS = 3
BATCH = 512
TIME = datetime(2026, 1, 5, tzinfo=UTC)
RECORD = Record(b"", "bench", 0, TIME)
HINTED = {code: SYSMON[code] for code in (*range(1, 16), *range(17, 24))}
"""Category of a Sysmon event by its number, for recordings that do not name it: those that the
data's README hints at, since the peer's counts there are of these."""


class Run(msgspec.Struct, frozen=True):
    """What one process measured."""

    events: int
    load_s: float
    cold_s: float
    """CPU of the first pass, reading and decoding included."""
    warm_s: float
    """CPU of a second pass; 0: there was none."""
    counts: Mapping[str, int]
    """Matches of the first pass by rule."""
    rss_mb: int


# ---- Lanes


def lanes(paths: Sequence[Path], work: Path) -> Iterator[Path]:
    """Files of lines, unpacked, each with the log source in its lines.

    Args:
        paths: `.ndjson`, `.ndjson.gz`, or folders of them.
        work: Where what is unpacked goes.
    """
    for path in paths:
        if path.is_dir():
            yield from lanes(sorted(path.glob("*.ndjson*")), work)
        elif path.suffix == ".gz":
            made = work / path.name.removesuffix(".gz")
            with gzip.open(path, "rb") as packed, made.open("wb") as file:
                file.writelines(map(hinted, packed))
            yield made
        elif path.is_file():
            yield path
        else:
            raise InputError("there is no such file", str(path), "Name files of JSON lines.")


def hinted(line: bytes) -> bytes:
    """A line with `product` and `category`, if it has none and is of the Windows event log."""
    event = msgspec.json.decode(line)
    if "product" in event or "Channel" not in event:
        return line
    event["product"] = "windows"
    if "Sysmon" in str(event["Channel"]) and (kind := HINTED.get(_number(event.get("EventID")))):
        event["category"] = kind
    return msgspec.json.encode(event) + b"\n"


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return -1


# ---- Our run, in a process of its own


def ours(rules: Path, lane: Path, batch: int = BATCH, passes: int = 2) -> Run:
    """Measure here; the process should do nothing else."""
    began = time.process_time()
    engine = PeerRouted(load_folder(rules))
    engine.prepare()
    load_s = time.process_time() - began
    counts, events, spent = Counter[str](), 0, []
    for _ in range(passes):
        began = time.process_time()
        events, found = counted(engine, lane, batch)
        spent.append(time.process_time() - began)
        counts = counts or found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return Run(events, load_s, spent[0], spent[1] if passes > 1 else 0.0, counts, peak)


def counted(engine: Engine, lane: Path, batch: int = BATCH) -> tuple[int, Counter[str]]:
    """How many events a lane has, and how many each rule matches."""
    events, found = 0, Counter[str]()
    with lane.open("rb") as file:
        for lines in _batched(file, batch):
            events += len(lines)
            for _, matched in engine.matched([*map(_event, lines)]):
                found.update(one.id for one in matched)
    return events, found


def _batched(file: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for line in file:
        batch.append(line)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _event(line: bytes) -> Event:
    fields = msgspec.json.decode(line)
    parts = (fields.get(part) for part in ("category", "product", "service"))
    named = (part.strip() if isinstance(part, str) else "" for part in parts)
    return Event(TIME, LogSource(*named), fields, RECORD)


def conflict(wanted: LogSource, given: LogSource) -> bool:
    """True if a part that both log sources name is not the same."""
    pairs = zip(msgspec.structs.astuple(wanted), msgspec.structs.astuple(given), strict=True)
    return any(one and other and one != other.lower() for one, other in pairs)


class PeerRouted(Engine):
    """The engine with the peer's routing: a part that one of both does not name is no obstacle."""

    def _routed(self, logsource: LogSource) -> tuple[_Active, ...]:
        active = self._active.values()
        return tuple(one for one in active if not conflict(one.rule.logsource, logsource))


# ---- The race


def rows(
    rules: Path, paths: Sequence[Path], peer: str = "", rounds: int = ROUNDS, batch: int = BATCH
) -> Iterator[dict[str, Any]]:
    """A row a lane: events a CPU second of both, their ratios, and whether they found the same.

    Args:
        rules: Folder of Sigma rules.
        paths: Lanes.
        peer: Its program; empty: ours alone.
        rounds: So often each is run; the best counts.
        batch: Lines at once.
    """
    with tempfile.TemporaryDirectory(prefix="cityward-bench-") as folder:
        for lane in lanes(paths, Path(folder)):
            yield _raced(rules, lane, peer, rounds, batch)


def _raced(rules: Path, lane: Path, peer: str, rounds: int, batch: int) -> dict[str, Any]:
    ran: list[Run] = []
    theirs: list[Run] = []
    for _ in range(rounds):
        ran.append(_in_child(rules, lane, batch))
        if peer:
            theirs.append(_peer(peer, rules, lane, ran[0].events))
    cold, warm = min(one.cold_s for one in ran), min(one.warm_s for one in ran)
    row: dict[str, Any] = {
        "lane": lane.stem.removesuffix(".ndjson"),
        "events": ran[0].events,
        "matches": sum(ran[0].counts.values()),
        "rules": len(ran[0].counts),
        "cold_per_s": round(ran[0].events / cold),
        "warm_per_s": round(ran[0].events / warm),
        "load_s": round(min(one.load_s for one in ran), 2),
        "rss_mb": max(one.rss_mb for one in ran),
    }
    if theirs:
        their_s = min(one.cold_s for one in theirs)
        row |= {
            f"{PEER}_per_s": round(ran[0].events / their_s),
            "cold_ratio": round(their_s / cold, 2),
            "warm_ratio": round(their_s / warm, 2),
            "differ": differences(ran[0].counts, theirs[0].counts),
            f"{PEER}_load_s": round(min(one.load_s for one in theirs), 2),
        }
    return row


def differences(one: Mapping[str, int], other: Mapping[str, int]) -> str:
    """Rules whose counts differ, each with both; empty: they agree."""
    names = sorted(id for id in {*one, *other} if one.get(id, 0) != other.get(id, 0))
    said = [f"{id} {one.get(id, 0)}/{other.get(id, 0)}" for id in names[:5]]
    return "; ".join(said) + (f"; {len(names) - 5} more" if len(names) > 5 else "")


def _in_child(rules: Path, lane: Path, batch: int) -> Run:
    words = [sys.executable, "-m", "siem.sigma_bench", str(rules), str(lane), str(batch)]
    done = subprocess.run([*_on_one_core(), *words], capture_output=True, check=True)
    return msgspec.json.decode(done.stdout, type=Run)


def _peer(program: str, rules: Path, lane: Path, events: int) -> Run:
    """The peer on a lane, and on nothing, for what loading costs it."""
    load_s, _ = _peer_run(program, rules, Path(os.devnull))
    whole_s, counts = _peer_run(program, rules, lane)
    return Run(events, load_s, max(whole_s - load_s, 1e-6), 0.0, counts, 0)


def _peer_run(program: str, rules: Path, lane: Path) -> tuple[float, Counter[str]]:
    words = [
        *_on_one_core(), program, "engine", "eval", "-r", str(rules), "--logsource-routing",
        "--output-format", "ndjson",
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with lane.open("rb") as given, tempfile.TemporaryFile() as said:
        done = subprocess.run(
            words, stdin=given, stdout=said, stderr=subprocess.PIPE, check=False,
            env={**os.environ, "RAYON_NUM_THREADS": "1", "TOKIO_WORKER_THREADS": "1"},
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode not in (0, 1):
            what = done.stderr.decode(errors="replace").strip()[-200:]
            raise InputError(f"{PEER} failed: {what}", program, "Try it by hand.")
        said.seek(0)
        counts = Counter(_rule_of(line) for line in said if line.startswith(b"{"))
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return spent, counts


def _rule_of(line: bytes) -> str:
    found = json.loads(line)
    return str(found.get("rule_id") or found.get("rule", {}).get("id") or found.get("rule_title"))


def _on_one_core() -> list[str]:
    core = max(os.sched_getaffinity(0))
    return ["taskset", "-c", str(core)] if shutil.which("taskset") else []


# ---- Conformance


class Failed(msgspec.Struct, frozen=True):
    """A case that came to something else than it should."""

    case: str
    wanted: str
    found: str


def conformance(cases: Path, rules: Path | None = None) -> tuple[int, list[Failed]]:
    """Run cases from outside: how many there are, and which failed.

    A case is a line of JSON: `case`, `rule_id`, `rule_path` below `rules` (or `rule`, its text),
    `expected_match_count` (null: at least one) or `corrected_match_count`, `logsource`, `events`.

    Args:
        cases: The file.
        rules: Folder of the rules; otherwise `rules_under_test` or the folder of the file.

    Raises:
        InputError: the file cannot be read.
    """
    beside = cases.parent / "rules_under_test"
    folder = rules or (beside if beside.is_dir() else cases.parent)
    tried = 0
    failed: list[Failed] = []
    try:
        with cases.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    tried += 1
                    failed += _failed(line, f"line {number}", folder)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", str(cases), "Check it.") from error
    return tried, failed


def _failed(line: bytes, name: str, folder: Path) -> Iterator[Failed]:
    try:
        case = msgspec.json.decode(line, type=dict[str, Any])
        name = str(case.get("case", name))
        wanted = case.get("corrected_match_count", case.get("expected_match_count"))
        found = _matches(case, folder)
    except (CitywardError, msgspec.MsgspecError, KeyError, TypeError, ValueError, OSError) as error:
        yield Failed(name, "a case that can be run", str(error).splitlines()[0])
        return
    if found != wanted if wanted is not None else found < 1:
        yield Failed(name, "at least 1" if wanted is None else str(wanted), str(found))


def _matches(case: Mapping[str, Any], folder: Path) -> int:
    rules = load_text(case["rule"]) if "rule" in case else load_folder(folder / case["rule_path"])
    for refused in rules.refused:
        raise refused
    given = case.get("logsource") or {}
    parts = [str(given.get(part) or "") for part in ("category", "product", "service")]
    logsource = LogSource(*parts) if given else rules.rules[0].logsource
    record = Record(b"", "case", 0, TIME)
    events = [
        Event(_time(fields), logsource, dict(fields), record, number)
        for number, fields in enumerate(case["events"])
    ]
    found = Engine(rules, case.get("placeholders") or {}).detect(events)
    wanted = case.get("rule_id")
    return sum(one.count for one in found if wanted in (None, one.analytic.id))


def _time(fields: Mapping[str, Any]) -> datetime:
    try:
        time_ = datetime.fromisoformat(str(fields["@timestamp"]))
    except (KeyError, ValueError):
        return TIME
    return time_ if time_.tzinfo else time_.replace(tzinfo=UTC)


if __name__ == "__main__":
    made = ours(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.buffer.write(msgspec.json.encode(made))
