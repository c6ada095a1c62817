"""What becomes of a line or a capture, step by step: for somebody who writes a rule."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from cityward import Event, Finding, InputError
from cityward.finding import Check
from cityward.plugin import load
from detectors.sigma.engine import Engine
from detectors.sigma.filter import covers
from siem import assembly
from siem import config as settings_file
from siem.config import Settings
from siem.node import Node, Source

INPUT_MAX_BYTES = 256 << 20
"""How much is taken from standard input."""


class RuleStep(msgspec.Struct, frozen=True):
    """What a rule said of an event."""

    title: str
    file: str
    result: str
    """`matched`, `no match` or `not evaluated`."""
    why: tuple[str, ...] = ()
    """The lines that held, or those that kept it from matching."""


class Step(msgspec.Struct, frozen=True):
    """An event and what came of it; without an event, what came of time passing."""

    number: int
    collector: str
    event: Event | None
    rules: tuple[RuleStep, ...] = ()
    findings: tuple[Finding, ...] = ()


def settings_of(named: str | None, rules: Sequence[str] = ()) -> Settings:
    """Inventory, lists and rules of the settings in force; models stay out of a trial."""
    path = settings_file.find(named)
    settings = settings_file.load(path) if path else Settings()
    folders = (*settings.rules.folders, *rules)
    return msgspec.structs.replace(
        settings,
        source=(),
        rules=msgspec.structs.replace(settings.rules, folders=folders),
        models=msgspec.structs.replace(settings.models, on=False),
    )


def of_file(path: str, *, settings: Settings, named: str = "") -> Iterator[Step]:
    """Read a file, or standard input, through the path of a node whose state is thrown away.

    Raises:
        InputError: it cannot be read, or no collector recognises it.
    """
    collectors = load("collectors")
    if named and named not in collectors:
        raise InputError(
            f"no collector is called {named!r}", "--collector", ", ".join(sorted(collectors))
        )
    with tempfile.TemporaryDirectory(prefix="cityward-") as folder:
        file = _kept(Path(folder)) if path == "-" else Path(path)
        source = assembly.file_source(file, collectors, source=file.name, named=named)
        own = msgspec.structs.replace(settings, state_dir=f"{folder}/state")
        node = assembly.node_of(own, sources=[source], event_time=True)
        try:
            yield from _steps(node, source)
        finally:
            node.close()


def _kept(folder: Path) -> Path:
    """Standard input as a file: a capture cannot be recognised and read in one go."""
    file = folder / "standard-input"
    data = sys.stdin.buffer.read(INPUT_MAX_BYTES + 1)
    if len(data) > INPUT_MAX_BYTES:
        raise InputError(
            f"more than {INPUT_MAX_BYTES >> 20} MiB", "standard input", "Name the file instead."
        )
    file.write_bytes(data)
    return file


def first(steps: Iterable[Step], limit: int) -> Iterator[Step]:
    """The first events, and every finding behind them."""
    rest = iter(steps)
    yield from islice(rest, limit)
    for step in rest:
        if step.findings:
            yield msgspec.structs.replace(step, event=None, rules=())


def _steps(node: Node, source: Source) -> Iterator[Step]:
    engine = next(one for one in node.detectors if isinstance(one, Engine))
    idle = {one.id: one.reason for one in engine.states() if one.state != "on"}
    number = 0
    for gathered in node.collect_from(source):
        if gathered.error:
            raise InputError(gathered.error, source.id, "Check the file.")
        for event in node.keep(gathered):
            number += 1
            found = tuple(engine.detect([event]))
            yield Step(number, source.name, event, tuple(_rules(engine, idle, event)), found)
        if left := tuple(node.detect([])):
            yield Step(number, source.name, None, findings=left)


def _rules(engine: Engine, idle: dict[str, str], event: Event) -> Iterator[RuleStep]:
    """Every rule of the log source."""
    for rule in engine.rules.rules:
        if not covers(rule.logsource, event.logsource):
            continue
        file = rule.document.where()
        if rule.id in idle:
            yield RuleStep(rule.title, file, "not evaluated", (idle[rule.id],))
            continue
        matched = engine.matches(rule, event)
        told = engine.explain(rule, event).checks if matched else engine.against(rule, event)
        result = "matched" if matched else "no match"
        yield RuleStep(rule.title, file, result, tuple(in_words(one) for one in told))


def in_words(one: Check) -> str:
    """A line of a rule, and what was seen."""
    negated = "not " if one.negated else ""
    return f"{negated}{one.selection}: {one.field} {one.wanted} – saw {one.saw}"
