"""`cityward ingest`: files and captures through the same path, without any set-up."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from cityward import CitywardError, InputError
from cityward.finding import Severity, severity_rank
from cityward.plugin import load
from siem import assembly
from siem import config as settings_file
from siem import output as streams
from siem.config import Settings
from siem.node import Node, Source, settle_memory
from siem.output import Form, visible
from siem.store.protocol import Document, Range

COLUMNS = ("finding.severity", "finding.title", "finding.description", "finding.count")
EVENT_COLUMNS = ("@timestamp", "event.action", "source.ip", "destination.ip", "event.outcome")
PROGRESS_EVERY_S = 10.0
MAX_FINDINGS = 10_000
"""More than a person reads; `cityward run` keeps them all."""


def ingest(
    *paths: str,
    config: Annotated[str | None, Parameter(name=["--config", "-c"])] = None,
    output: Annotated[Form | None, Parameter(name=["--output", "-o"])] = None,
    events: bool = False,
    collector: str = "",
    fail_on: Severity | None = None,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"])] = False,
) -> int:
    """Read files and captures, and print what they mean.

    Every file is recognised by its first bytes; nothing has to be set up. Without settings the
    state is thrown away, so a second run says the same. Example: cityward ingest capture.pcap

    Args:
        paths: Captures, logs, feeds, folders of them; - is standard input.
        config: Settings file: its inventory, zones and rules are used, its state is not.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
        events: Print the events instead of the findings.
        collector: Name of the collector that shall read them, where none recognises them.
        fail_on: Leave with 3 if there is a finding of this level or above.
        quiet: Do not say what was read.
    """
    files = list(_files(paths))
    if not files:
        raise InputError("no file was named", "cityward ingest", "Name at least one file.")
    with tempfile.TemporaryDirectory(prefix="cityward-") as state:
        run = _Run(_settings(config, state), files, collector, quiet)
        run.go()
        rows = run.events() if events else run.findings()
        _print(rows, output, EVENT_COLUMNS if events else COLUMNS)
        worst = max((severity_rank(one) for one in run.severities), default=-1)
    if fail_on and worst >= severity_rank(fail_on):
        return 3
    return 7 if run.refused else 0


def _settings(named: str | None, state: str) -> Settings:
    """The settings in force, or the defaults, with a state that is thrown away."""
    path = settings_file.find(named)
    settings = settings_file.load(path) if path else Settings()
    return msgspec.structs.replace(settings, state_dir=state, source=())


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for one in paths:
        path = Path(one)
        if path.is_dir():
            yield from (inner for inner in sorted(path.rglob("*")) if inner.is_file())
        else:
            yield path


class _Run:
    """One pass over some files."""

    def __init__(
        self, settings: Settings, files: Sequence[Path], collector: str, quiet: bool
    ) -> None:
        self.quiet = quiet
        self.refused = 0
        self.severities: list[str] = []
        self._started_s = self._said_s = time.monotonic()
        sources = list(self._sources(files, collector))
        self.node = assembly.node_of(settings, sources=sources, event_time=True)

    def _sources(self, files: Sequence[Path], collector: str) -> Iterator[Source]:
        collectors = load("collectors")
        if collector and collector not in collectors:
            known = ", ".join(sorted(collectors))
            raise InputError(f"no collector is called {collector!r}", "--collector", known)
        names: dict[str, int] = {}
        for path in files:
            number = names[path.name] = names.get(path.name, 0) + 1
            source = path.name if number == 1 else f"{path.name}#{number}"
            try:
                yield assembly.file_source(path, collectors, source=source, named=collector)
            except CitywardError as error:
                self.refused += 1
                self._say(f"{visible(path.name)}: not read: {error.what}. {error.todo}")

    def go(self) -> None:
        """Read everything, one file after the other, so that the same files say the same."""
        node = self.node
        settle_memory()
        for source in node.sources:
            began_s = time.monotonic()
            for gathered in node.collect_from(source):
                node.conclude(node.detect(node.keep(gathered)))
                self._progress(source)
            self._report(node, source, time.monotonic() - began_s)
        node.finish()

    def _progress(self, source: Source) -> None:
        if time.monotonic() - self._said_s > PROGRESS_EVERY_S:
            self._said_s = time.monotonic()
            self._say(f"{source.id}: {source.state.records:,} records so far")

    def _report(self, node: Node, source: Source, took_s: float) -> None:
        state = source.state
        if state.state == "failed":
            self.refused += 1
            self._say(f"{visible(source.id)}: failed: {state.error}")
            return
        parts = [
            f"{state.records:,} records",
            f"{state.events:,} events",
            f"{state.rejected:,} rejected",
        ]
        if state.malformed:
            parts.append(f"{state.malformed:,} unreadable")
        if state.cut:
            parts.append(f"{state.cut:,} cut")
        if state.lost:
            parts.append(f"{state.lost:,} lost")
        rate = state.records / took_s if took_s else 0.0
        self._say(f"{visible(source.id)} ({source.name}): {', '.join(parts)}, {rate:,.0f}/s")

    def findings(self) -> Iterator[Document]:
        """All findings, worst first."""
        yield from self._found()

    def events(self) -> Iterator[Document]:
        """All events in the order in which they were kept."""
        self._found()
        for _, documents in self.node.events.replay(0):
            yield from documents

    def _found(self) -> Sequence[Document]:
        rows = self.node.db.search("", Range(), limit=MAX_FINDINGS).rows
        self.severities = [row["finding.severity"] for row in rows]
        return rows

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr)


def _print(rows: Iterator[Document], form: Form | None, columns: Sequence[str]) -> None:
    chosen = streams.form_for(form, sys.stdout)
    found: Any = rows
    if chosen == "table":
        found = list(rows)
        if not found:
            print("Nothing to report.")
            return
    streams.write(found, chosen, columns)
