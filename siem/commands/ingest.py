"""`cityward ingest`: files and captures through the same path, without any set-up."""

from __future__ import annotations

import hashlib
import os
import re
import select
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path

import msgspec

from cityward import CitywardError, Event, InputError, LogSource
from cityward.finding import Severity, severity_rank
from cityward.plugin import load
from collectors.recognise import expand
from siem import assembly
from siem import config as settings_file
from siem import output as streams
from siem.commands.common import ConfigFile, Output, Quiet, Teller, UsageError, stopping
from siem.config import Settings
from siem.node import Gathered, Source, now_utc
from siem.output import Form, many, visible
from siem.store.embedded import NodeDb
from siem.store.protocol import Document, Range, RuleState

COLUMNS = (
    "finding.severity",
    "finding.title",
    "finding.description",
    "finding.count",
    "source.ip",
    "finding.first_seen",
)
EVENT_COLUMNS = (
    "@timestamp",
    "event.action",
    "source.ip",
    "source.mac",
    "destination.ip",
    "ot.unit",
    "event.outcome",
    "event.reason",
)
STDIN = ("-", "/dev/stdin")
PIPE_WAIT_S = 0.2
ROOM_BYTES = 1 << 28
"""Room that a pipe leaves in the temporary folder."""
MAX_FINDINGS = 10_000
"""More than a person reads; `cityward run` keeps them all."""
NEEDS_NAMED = 3
WORDS = {"lines": "record", "document": "document", "packets": "packet"}
"""What a record of each framing is called."""


def ingest(
    *paths: str,
    config: ConfigFile = None,
    output: Output = None,
    events: bool = False,
    collector: str = "",
    fail_on: Severity | None = None,
    keep: bool = False,
    quiet: Quiet = False,
) -> int:
    """Read files and captures, and print what they mean.

    Every file is recognised by its first bytes; nothing has to be set up. The state is thrown
    away, so a second run says the same. Example: cityward ingest capture.pcap auth.log

    Args:
        paths: Captures, logs, feeds, folders of them; - is standard input.
        config: Settings file; its inventory, zones and rules are used, as they count at its node.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
        events: Print the events instead of the findings.
        collector: Name of the collector that shall read them, where none recognises them.
        fail_on: Leave with 3 if there is a finding of this level or above.
        keep: Keep events and findings in the node of the settings file, which must not be
            running; what it has read before is not read again.
        quiet: Do not say what was read.
    """
    if not paths:
        raise UsageError("no file was named", "cityward ingest", "Name a file, or - for a pipe.")
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cityward-")))
        stop = stack.enter_context(stopping(threading.Event()))
        settings = _settings(config, None if keep else scratch / "state")
        files = list(_files(paths, scratch, stop))
        if not files:
            raise UsageError("there is no file in it", paths[0], "Name a file or a full folder.")
        book = None if keep else stack.enter_context(_book(config))
        run = _Run(settings, files, collector, quiet, keep, stop, book)
        stack.callback(run.close)
        run.go()
        form = streams.form_for(output, sys.stdout)
        if run.read_any:
            _print(run, form, events)
        worst = max((severity_rank(one) for one in run.severities), default=-1)
    if run.stop.is_set():
        told = "the same command goes on there" if keep else "the rest was not read"
        print(f"Interrupted; {told}.", file=sys.stderr)
        return 130
    if fail_on and worst >= severity_rank(fail_on):
        return 3
    return 7 if run.refused else 0


def _settings(named: str | None, scratch: Path | None) -> Settings:
    """The settings in force, or the defaults; with a state that is thrown away, or their own."""
    path = settings_file.find(named)
    settings = settings_file.load(path) if path else Settings()
    if scratch is not None:
        return msgspec.structs.replace(settings, state_dir=str(scratch), source=())
    if path is None:
        raise UsageError("there is no node to keep it in", "--keep", "Make one: cityward init")
    return settings


def _book(named: str | None) -> AbstractContextManager[NodeDb | None]:
    """What people deployed and approved at the node of the settings in force, if there is one."""
    path = settings_file.find(named)
    return assembly.book_of(settings_file.load(path)) if path else nullcontext()


def _files(paths: Sequence[str], scratch: Path, stop: threading.Event) -> Iterator[Path]:
    for one in paths:
        path = Path(one)
        if one in STDIN:
            yield _piped(scratch, stop)
        elif path.is_dir():
            yield from (inner for inner in sorted(path.rglob("*")) if inner.is_file())
        elif not path.exists():
            raise UsageError(f"{visible(one)} is not there", "cityward ingest", "Check the path.")
        else:
            yield path


def _piped(scratch: Path, stop: threading.Event) -> Path:
    """Standard input as a file, since a capture's kind shows only in its first bytes.

    Ctrl+C is its end: what came is read.
    """
    path = scratch / "stdin"
    pipe = sys.stdin.fileno()
    with path.open("wb") as file:
        while not stop.is_set():
            if not select.select([pipe], [], [], PIPE_WAIT_S)[0]:
                continue
            if not (data := os.read(pipe, 1 << 20)):
                break
            file.write(data)
            if shutil.disk_usage(scratch).free < ROOM_BYTES:
                raise UsageError(
                    "the pipe does not fit into the temporary folder",
                    str(scratch),
                    "Write it to a file elsewhere, or set TMPDIR.",
                )
    stop.clear()
    return path


class _Run:
    """One pass over some files."""

    def __init__(
        self,
        settings: Settings,
        files: Sequence[Path],
        collector: str,
        quiet: bool,
        keep: bool,
        stop: threading.Event,
        book: NodeDb | None,
    ) -> None:
        self.refused = 0
        self.read_any = False
        self.severities: list[str] = []
        self._tell = Teller(quiet)
        self._keep = keep
        self._logsources: set[LogSource] = set()
        self._hints: dict[str, None] = {}
        self._began = now_utc()
        self._settings = settings
        self.node = assembly.node_of(
            settings, sources=list(self._sources(files, collector)), event_time=True, book=book
        )
        self.node.stop = self.stop = stop
        self._others = self.node.db.sources()
        self._first_batch = self.node.events.last_batch

    def _sources(self, files: Sequence[Path], collector: str) -> Iterator[Source]:
        collectors = load("collectors")
        if collector and collector not in collectors:
            raise UsageError(
                f"no collector is called {collector!r}",
                "--collector",
                "Write one of: " + ", ".join(sorted(collectors)) + ".",
            )
        names: Counter[str] = Counter()
        for path in files:
            known = _named_source(self._settings, path) if self._keep else None
            source = _lasting_name(path) if self._keep else _name(path)
            source = source if known is None else known.id
            names[source] += 1
            source = source if names[source] == 1 else f"{source}#{names[source]}"
            named = collector or ("" if known is None else known.collector)
            try:
                if known is not None and known.reader == "folder":
                    what = f"{path.name} is read by the node itself, as source {known.id}"
                    raise InputError(what, str(path), "Start the node: cityward run.")
                yield assembly.file_source(path, collectors, source=source, named=named)
            except CitywardError as error:
                self.refused += 1
                said = error.what if path.name in error.what else f"{path.name} {error.what}"
                self._tell.line(f"not read: {visible(said)}")
                self._hints[error.todo] = None

    def go(self) -> None:
        """Read everything, one file after the other, so that the same files say the same."""
        node = self.node
        if self._keep:
            node.recover()
        for number, source in enumerate(node.sources, 1):
            if self.stop.is_set():
                break
            file = _File(source, f"{number} of {len(node.sources)}")
            for gathered in node.collect_from(source):
                if gathered.batch is None and self.stop.is_set():
                    break
                events = node.keep(gathered)
                node.conclude(node.detect(events))
                file.note(gathered, events)
                self._logsources.update(event.logsource for event in events)
                self._tell.progress(file.progress)
            self._report(file)
        for detector in node.detectors:
            # The end of what was read is no silence, and no window has to wait for more.
            node.conclude(list(getattr(detector, "leftover", tuple)()))
        node.finish()
        for hint in self._hints:
            self._tell.line(hint)
        self._tell.line(_unasked(node.db.rules(), self._logsources))

    def _report(self, file: _File) -> None:
        failed = file.source.state.state == "failed"
        self.refused += failed
        self.read_any = self.read_any or not failed
        for line in file.told():
            self._tell.line(line)

    def close(self) -> None:
        """Let go of the node; the sources it reads otherwise stay in its list."""
        node = self.node
        mine = {source.id for source in node.sources}
        others = [one for one in self._others if one.source not in mine]
        states = [*others, *(source.state for source in node.sources)]
        if self._keep and states:
            node.db.keep((), node.db.checkpoint()[0], sources=states)
        node.events.close()
        node.db.close()

    def findings(self) -> Sequence[Document]:
        """All findings that this run made or made grow, worst first."""
        asked = f'finding.modified:>="{self._began:%Y-%m-%dT%H:%M:%S.%fZ}"' if self._keep else ""
        page = self.node.db.search(asked, Range(), limit=MAX_FINDINGS)
        if page.total > len(page.rows):
            self._tell.line(f"{page.total:,} findings; the {len(page.rows):,} worst are printed.")
        self.severities = [row["finding.severity"] for row in page.rows]
        return page.rows

    def events(self) -> Iterator[Document]:
        """All events of this run in the order in which they were kept."""
        for _, documents in self.node.events.replay(self._first_batch):
            yield from documents


def _name(path: Path) -> str:
    """The name of a file as text, also where its bytes are no UTF-8."""
    return path.name.encode(errors="backslashreplace").decode()


def _named_source(settings: Settings, path: Path) -> settings_file.Source | None:
    """The source of the settings that reads a file, too: where one ends the other goes on."""
    whole = path.resolve()
    for one in settings.source:
        place = Path(one.path).expanduser().resolve() if one.path else None
        if place is None:
            continue
        if one.reader in ("file", "capture") and place == whole:
            return one
        if (
            one.reader == "folder"
            and place in whole.parents
            and _is_matched(place, one.glob, whole)
        ):
            return one
    return None


def _is_matched(folder: Path, glob: str, whole: Path) -> bool:
    return any(found.resolve() == whole for found in folder.glob(glob))


def _lasting_name(path: Path) -> str:
    """A source id that stays with what is in a file: a log that grows or is rotated keeps it."""
    with path.open("rb") as file:
        raw = file.read(assembly.HEAD_BYTES)
    head = expand(raw)
    first_line, _, rest = head.partition(b"\n")
    lasting = first_line if rest and b"\0" not in head else head + str(path.stat().st_size).encode()
    return f"{_name(path)}@{hashlib.sha256(lasting).hexdigest()[:8]}"


def _unasked(rules: Iterable[RuleState], seen: Iterable[LogSource]) -> str:
    """Which rules of what arrived could not be asked, since a list of the site is missing."""
    came = [str(one).split("/") for one in seen]
    missing = [
        one
        for one in rules
        if one.state == "not evaluated"
        and any(map(partial(_covers, one.logsource.split("/")), came))
    ]
    if not missing:
        return ""
    needs = sorted(set(re.findall(r"%[\w.-]+%", " ".join(one.reason for one in missing))))
    rules_ = "1 rule was" if len(missing) == 1 else f"{len(missing)} rules were"
    more = " …" if len(needs) > NEEDS_NAMED else ""
    named = ", ".join(needs[:NEEDS_NAMED])
    return f"{rules_} not asked for want of lists of this site ({named}{more}): see docs/rules.md"


def _covers(wanted: Sequence[str], came: Sequence[str]) -> bool:
    return len(wanted) == len(came) and all(
        want in ("*", got) for want, got in zip(wanted, came, strict=True)
    )


class _File:
    """What one file gave."""

    def __init__(self, source: Source, number: str) -> None:
        self.source = source
        self._number = number
        self._began_s = time.monotonic()
        self._records = 0
        self._rejected: Counter[str] = Counter()
        self._unreadable = ""

    def note(self, gathered: Gathered, events: Sequence[Event]) -> None:
        """Count what a batch gave."""
        if gathered.batch is not None:
            self._records += len(gathered.batch.records)
            self._rejected.update(gathered.batch.rejected)
        bad = next((event for event in events if event.is_malformed), None)
        if bad is not None and not self._unreadable:
            self._unreadable = f"at {bad.record.place}: {bad.fields.get('event.reason', '')}"

    @property
    def progress(self) -> str:
        """Where the reading stands."""
        state = self.source.state
        said = f"{many(state.records, WORDS[self.source.framing])}, {self._rate():,.0f}/s"
        return f"{visible(self.source.id)} ({self._number}): {said}"

    def told(self) -> Iterator[str]:
        """What was read, in a line or two."""
        state, name = self.source.state, visible(self.source.id)
        if state.state == "failed":
            yield f"{name}: failed: {visible(state.error)}"
            return
        if state.records and not self._records:
            yield f"{name}: was read before, nothing is new"
            return
        parts = [
            many(state.records, WORDS[self.source.framing]),
            many(state.events, "event"),
            f"{state.rejected:,} rejected{_reasons(self._rejected)}",
        ]
        for count, word in (
            (state.malformed, "unreadable"),
            (state.cut, "cut"),
            (state.lost, "lost"),
        ):
            parts += [f"{count:,} {word}"] if count else []
        yield f"{name} ({self.source.name}): {', '.join(parts)}, {self._rate():,.0f}/s"
        if self._unreadable:
            yield f"  first unreadable {visible(self._unreadable)[:200]}"
        for note in getattr(self.source.reader, "notes", ()):
            yield f"  {visible(note)}"

    def _rate(self) -> float:
        took_s = time.monotonic() - self._began_s
        return self._records / took_s if took_s else 0.0


def _reasons(counts: Counter[str]) -> str:
    said = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items()))
    return f" ({said})" if said else ""


def _print(run: _Run, form: Form, events: bool) -> None:
    findings = run.findings()
    if events:
        streams.write(run.events(), form, EVENT_COLUMNS)
    elif form == "table" and not findings:
        print("Nothing to report.")
    else:
        streams.write_findings(findings, form, COLUMNS)
