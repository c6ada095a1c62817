"""`cityward bench`: reproducible speed figures with the machine's description."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from cityward import ConfigError, InputError
from siem import bench, output
from siem.commands.common import ConfigFile, settings_of
from siem.output import Form


def node(
    *paths: Path,
    form: Annotated[Form | None, Parameter(name=["--output", "-o"])] = None,
) -> int:
    """Measure the whole path on files: CPU by stage, events a second, memory over ten times.

    Example: cityward bench node capture.pcap auth.log

    Args:
        paths: Captures and logs, read by the collectors that recognise them.
        form: Form of the result: table, json, ndjson or csv.
    """
    if not paths:
        raise InputError("no file was named", "cityward bench node", "Name files to measure with.")
    rows = list(bench.node_rows(paths))
    _print(rows, form)
    return 0


def packets(
    *,
    form: Annotated[Form | None, Parameter(name=["--output", "-o"])] = None,
) -> int:
    """Measure packets to flows and messages, beside softflowd and nfstream where they are there.

    It runs from a checkout, where its captures are made. Example: cityward bench packets

    Args:
        form: Form of the result: table, json, ndjson or csv.
    """
    return _script("bench_packets", form)


def protocols(
    *,
    form: Annotated[Form | None, Parameter(name=["--output", "-o"])] = None,
) -> int:
    """Measure every decoder on a real capture of its protocol, beside tshark.

    It runs from a checkout with the shared captures. Example: cityward bench protocols

    Args:
        form: Form of the result: table, json, ndjson or csv.
    """
    return _script("bench_protocols", form)


def hub(
    *,
    config: ConfigFile = None,
    seconds: float = 5.0,
    form: Annotated[Form | None, Parameter(name=["--output", "-o"])] = None,
) -> int:
    """Measure what a hub takes: shared findings a second, with signatures and receipts.

    Hub and operators are here, the channel between them is the real one. With a `[cluster]` in the
    settings it is measured too, under indices of its own. Example: cityward bench hub

    Args:
        config: Settings file with the cluster; otherwise the first one found counts.
        seconds: How long each number of operators is measured.
        form: Form of the result: table, json, ndjson or csv.
    """
    from siem import hub_bench

    settings, _ = settings_of(config)
    homes = [None, settings.cluster] if settings.cluster else [None]
    _print([row for home in homes for row in hub_bench.rows(home, seconds=seconds)], form)
    return 0


def sigma(
    *lanes: Path,
    rules: Path | None = None,
    conformance: Path | None = None,
    rsigma: str = "",
    rounds: int = 3,
    batch: Annotated[tuple[int, ...], Parameter(negative=())] = (1, 64, 512, 4096),
    fresh: Annotated[bool, Parameter(negative=())] = False,
    cores: int = 1,
    form: Annotated[Form | None, Parameter(name=["--output", "-o"])] = None,
) -> int:
    """Measure the Sigma engine on lines of JSON, beside rsigma; or run cases from outside.

    Without rsigma on the path, or named, it measures cityward alone. Without lines it measures our
    own rules on the events of the demo's evening, in a node and alone. With cases it prints those
    that fail, on standard error how many hold, and leaves with 3 if one fails.
    Example: cityward bench sigma --rules sigma/rules otrf.ndjson.gz

    Args:
        lanes: Files of JSON lines, `.ndjson` or `.ndjson.gz`, or folders of them. A `.yml` of the
            same name beside one holds its rules.
        rules: Folder of Sigma rules; of cases: where their paths begin.
        conformance: A file of cases, `.ndjson` or `.ndjson.gz`, one JSON object a line: `events` (a
            list of objects, `@timestamp` is their time) and `rule` (its text, with what it builds
            on) or `rule_path`; where needed `case` (its name), `rule_id` (whose matches count;
            otherwise all), `logsource` (of the events; otherwise the rule's), `placeholders` (lists
            by name), `expected_match_count` (null: at least one), `corrected_match_count` (which
            then counts). A rule counts once for each event it matches; a correlation for each event
            with which its condition holds; an absence for each trigger that stays alone, when the
            time after the last event has passed as well. A case that cannot be run fails.
        rsigma: Its program.
        rounds: So often each is run, alternating; the best counts.
        batch: Lines that are decided at once; may be given several times.
        fresh: Also each lane with values that never come twice, as an attack would.
        cores: Also so many processes side by side, each with its share of the lines.
        form: Form of the result: table, json, ndjson or csv.
    """
    from siem import sigma_bench, sigma_cases
    from siem.exercise import bench as city

    if conformance is not None:
        tried, failed = sigma_cases.conformance(conformance, rules)
        rows = [msgspec.structs.asdict(one) for one in failed]
        output.write(rows, output.form_for(form, sys.stdout), sigma_cases.Failed.__struct_fields__)
        print(f"{tried - len(failed):,} of {tried:,} cases hold", file=sys.stderr)
        return 3 if failed else 0
    if not lanes:
        _print([city.measured(rounds)], form)
        return 0
    if rules is None:
        what = "there are lines, but no rules"
        raise InputError(what, "cityward bench sigma", "Name them with --rules FOLDER.")
    if not batch or min(*batch, rounds, cores, 1) < 1:
        what = "sizes, rounds and cores are at least 1"
        raise InputError(what, "cityward bench sigma", "Write --batch 512.")
    if not rules.exists():
        raise InputError("there is no such folder", str(rules), "Check the path.")
    peer = rsigma or shutil.which(sigma_bench.PEER) or ""
    found = [*sigma_bench.rows(rules, lanes, peer, rounds, sorted(batch), fresh=fresh, cores=cores)]
    for row in found:
        # To measure nothing is no measurement.
        if not row["events"]:
            raise InputError("no line of it is a JSON object", row["lane"], "Name lines of JSON.")
        if not row["rules"]:
            raise InputError("there is no rule for it", row["lane"], "Name a folder of rules.")
    columns = [name for name in sigma_bench.TABLE if any(name in row for row in found)]
    _print(found, form, columns)
    return 0


def index(
    *,
    documents: int = 20_000,
    config: ConfigFile = None,
    form: Annotated[Form | None, Parameter(name=["--output", "-o"])] = None,
) -> int:
    """Measure documents a second into the cluster of the settings, beside plain bulk requests.

    It makes indices of its own there and deletes them. Example: cityward bench index

    Args:
        documents: Events in each round, and a quarter as many findings.
        config: Settings file; otherwise the first one found counts.
        form: Form of the result: table, json, ndjson or csv.
    """
    from siem import index_bench

    settings, origin = settings_of(config)
    if settings.cluster is None:
        raise ConfigError("there is no cluster", f"[cluster] ({origin})", "See docs/opensearch.md.")
    _print(list(index_bench.rows(settings.cluster, documents)), form)
    return 0


def backtest(
    *,
    events: int = 10_000_000,
    folder: Path | None = None,
    form: Annotated[Form | None, Parameter(name=["--output", "-o"])] = None,
) -> int:
    """Measure backtests over four weeks of events, beside a walk over each of them.

    The store is made first, which takes some minutes; with --folder it is kept for another time.
    Ten times as many events are the same files linked ten times.
    Example: cityward bench backtest --events 280000

    Args:
        events: How many are kept.
        folder: Where the store is made, or is already; otherwise a temporary folder.
        form: Form of the result: table, json, ndjson or csv.
    """
    import tempfile

    from siem import backtest_bench

    with tempfile.TemporaryDirectory(prefix="cityward-bench-") as temporary:
        _print(list(backtest_bench.rows(folder or Path(temporary) / "events", events)), form)
    return 0


def playbook(
    *,
    runs: int = 500,
    form: Annotated[Form | None, Parameter(name=["--output", "-o"])] = None,
) -> int:
    """Measure playbook runs: transitions a second, latencies, and a storm in which all is killed.

    It runs from a checkout, with a redis-server of its own. Example: cityward bench playbook

    Args:
        runs: Of each storm, one in the node and one in workers, with a tenth as many kills.
        form: Form of the result: table, json, ndjson or csv.
    """
    return _script("bench_playbook", form, str(runs))


def _script(name: str, form: Form | None, *more: str) -> int:
    root = Path(__file__).parents[2]
    if not (root / "tests" / "benchmarks" / f"{name}.py").is_file():
        raise InputError("there is no checkout", str(root), "Clone the project and run it there.")
    words = [sys.executable, "-m", f"tests.benchmarks.{name}", "json", *more]
    done = subprocess.run(words, check=True, capture_output=True, cwd=root)
    _print(json.loads(done.stdout), form)
    return 0


def _print(
    rows: list[dict[str, Any]], form: Form | None, columns: Sequence[str] | None = None
) -> None:
    machine = ", ".join(f"{name} {value}" for name, value in bench.machine().items())
    print(machine, file=sys.stderr)
    output.write(rows, output.form_for(form, sys.stdout), columns or list(rows[0]))
