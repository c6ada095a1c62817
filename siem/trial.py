"""What becomes of a line or a capture, step by step: for somebody who writes a rule."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import msgspec

from cityward import Event, Finding, InputError
from cityward.finding import Check
from cityward.plugin import load
from detectors.sigma.engine import Engine
from detectors.sigma.filter import covers
from detectors.sigma.load import rule_files
from detectors.sigma.rule import Rule
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
    """`matched`, `no match` or `not evaluated`; of a rule that was named also `not asked`,
    `no finding` or `refused`."""
    why: tuple[str, ...] = ()
    """The lines that held, or those that kept it from matching."""


class Step(msgspec.Struct, frozen=True):
    """An event and what came of it; without one, what came of time passing, or of named rules."""

    number: int
    collector: str
    event: Event | None
    rules: tuple[RuleStep, ...] = ()
    findings: tuple[Finding, ...] = ()


def settings_of(named: str | None) -> Settings:
    """Inventory, lists and rules of the settings in force; models stay out of a trial."""
    path = settings_file.find(named)
    settings = settings_file.load(path) if path else Settings()
    models = msgspec.structs.replace(settings.models, on=False)
    return msgspec.structs.replace(settings, source=(), models=models)


def of_file(
    path: str, *, settings: Settings, named: str = "", rules: Sequence[str] = ()
) -> Iterator[Step]:
    """Read a file, or standard input, through the path of a node whose state is thrown away.

    What people deployed, switched off and approved at the node of the settings counts here, too.

    Args:
        path: The file; `-` is standard input.
        settings: Of the node.
        named: The collector; empty: it is recognised.
        rules: Files and folders that are tried beside the others; what they hold counts as it
            stands there, whatever was deployed.

    Raises:
        InputError: it cannot be read, or no collector recognises it.
    """
    collectors = load("collectors")
    if named and named not in collectors:
        raise InputError(
            f"no collector is called {named!r}", "--collector", ", ".join(sorted(collectors))
        )
    with (
        tempfile.TemporaryDirectory(prefix="cityward-") as folder,
        assembly.book_of(settings) as book,
    ):
        file = _kept(Path(folder)) if path == "-" else Path(path)
        source = assembly.file_source(file, collectors, source=file.name, named=named)
        texts = {str(file): _text_of(file) for one in rules for file in rule_files(Path(one))}
        own = msgspec.structs.replace(settings, state_dir=f"{folder}/state")
        node = assembly.node_of(own, sources=[source], event_time=True, book=book, tried=texts)
        try:
            yield from _steps(node, source, texts)
        finally:
            node.close()


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"it cannot be read: {error}", str(file), "Check the file.") from error


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
    """The first events, and behind them every finding, and what became of named rules."""
    rest = iter(steps)
    yield from islice(rest, limit)
    for step in rest:
        if step.event is None:
            yield step
        elif step.findings:
            yield msgspec.structs.replace(step, event=None, rules=())


def _steps(node: Node, source: Source, named: Collection[str]) -> Iterator[Step]:
    engine = next(one for one in node.detectors if isinstance(one, Engine))
    idle = {one.id: one.reason for one in node.rule_states() if one.state != "on"}
    number, told, spoke = 0, set[str](), set[str]()
    for gathered in node.collect_from(source):
        if gathered.error:
            raise InputError(gathered.error, source.id, "Check the file.")
        for event in node.keep(gathered):
            number += 1
            found = tuple(one for one in engine.detect([event]) if one.analytic.id not in node.off)
            rules = tuple(_rules(engine, idle, event))
            told.update(one.file for one in rules)
            spoke.update(one.analytic.id for one in found)
            yield Step(number, source.name, event, rules, found)
        if left := tuple(node.detect([])):
            spoke.update(one.analytic.id for one in left)
            yield Step(number, source.name, None, findings=left)
    if untold := tuple(_untold(engine, idle, named, told, spoke)):
        yield Step(number, source.name, None, untold)


def _untold(
    engine: Engine,
    idle: Mapping[str, str],
    named: Collection[str],
    told: Collection[str],
    spoke: Collection[str],
) -> Iterator[RuleStep]:
    """Rules of the files that were named of which no event tells anything, each with the reason."""
    for error in engine.rules.refused:
        if error.where.rpartition(":")[0] in named or error.where in named:
            yield RuleStep("", error.where, "refused", (error.what, error.todo))
    for one in engine.rules.speaking():
        where = one.document.where()
        if one.document.file not in named or where in told or one.id in spoke:
            continue
        if one.id in idle:
            yield RuleStep(one.analytic.name, where, "not evaluated", (idle[one.id],))
        elif isinstance(one, Rule):
            why = f"no event of its log source came: {one.logsource}"
            yield RuleStep(one.title, where, "not asked", (why,))
        else:
            yield RuleStep(one.analytic.name, where, "no finding", ("its condition never held",))


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
