"""A backtest says what the engine says when the same events pass it again, event by event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cityward import Event, Finding
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_folder
from detectors.sigma.rule import Rule, RuleSet
from detectors.sigma.samples import events_of, read_samples, samples_file
from siem import backtest as backtests
from siem import node
from siem.backtest import Backtest, backtest
from siem.ruleset import RULES_FOLDER
from siem.samples import Speaking, alone, collect
from siem.store.archive import MEMORY_LIMIT, Looking
from siem.store.events import EventStore, event_id
from siem.store.protocol import Document, Range

START = datetime(2026, 3, 1, 6, tzinfo=UTC)
NOW = START + timedelta(days=900)


class Stored:
    """Some events in files and in the spool, and the same as a node takes them up again."""

    def __init__(self, folder: Path, documents: Sequence[Document], files: int) -> None:
        self.events: list[Event] = []
        clock = START
        store = EventStore.open(folder, lambda: clock)
        step = len(documents) // (files + 1) + 1
        for batch, place in enumerate(range(0, len(documents), step), 1):
            store.append(documents[place : place + step], {})
            for _, again in store.replay(batch - 1):
                self.events += [node.event_of(one) for one in again]
            if batch <= files:
                clock += timedelta(seconds=61)
                store.compact(batch, wait=True)
        store.close()
        self._looking = Looking(folder, MEMORY_LIMIT)

    def said(
        self, rule: str, rules: RuleSet, placeholders: dict[str, list[str]] | None = None
    ) -> Backtest:
        return backtest(
            self._looking, rule, rules, span=Range(), now=NOW, placeholders=placeholders or {}
        )


@pytest.fixture(autouse=True)
def every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that would be said is shown, not only the newest."""
    monkeypatch.setattr(backtests, "SAMPLES_MAX", 1_000_000)


def document(event: Event, number: int, at: datetime) -> Document:
    parts = {
        f"cw.logsource.{part}": getattr(event.logsource, part)
        for part in ("category", "product", "service")
        if getattr(event.logsource, part)
    }
    return {
        "@timestamp": at,
        **event.fields,
        **parts,
        "cw.operator": "op",
        "cw.record.source": "s",
        "cw.record.place": str(number),
        "cw.record.number": 0,
        "event.ingested": at,
    }


def id_of(event: Event) -> str:
    fields = event.fields
    return event_id("op", "s", fields["cw.record.place"], fields["cw.record.number"])


# ---- every rule that is shipped


@pytest.mark.slow
def test_every_shipped_rule_would_have_said_what_a_replay_says(tmp_path: Path) -> None:
    rules = load_folder(RULES_FOLDER)
    lists: dict[str, list[str]] = {}
    documents: list[Document] = []
    for place, one in enumerate(rules.speaking()):
        begin = START + timedelta(hours=3 * place)
        for case in read_samples(samples_file(Path(one.document.file))).cases:
            if case.frames:
                continue  # the packet path takes long; what it makes is among the events
            for name, values in case.placeholders.items():
                lists[name] = sorted({*lists.get(name, ()), *map(str, values)})
            events = events_of(case, one, collect)
            first = min((event.time for event in events), default=begin)
            for event in events:
                at = begin + (event.time - first)
                documents.append(document(event, len(documents), at))
            begin += timedelta(minutes=20)
    stored = Stored(tmp_path, documents, files=3)
    engine = Engine(rules, lists)

    spoke = 0
    for one in rules.speaking():
        if isinstance(one, Rule):
            wanted = sorted(id_of(event) for event in stored.events if engine.matches(one, event))
        else:
            wanted = sorted(_replayed(one, rules, lists, stored.events))
        found = stored.said(one.id, rules, lists)
        assert sorted(said.event for said in found.samples) == wanted, one.analytic.name
        assert found.total.would == len(wanted)
        spoke += bool(wanted)
    assert spoke > 0.95 * len(rules.speaking())


def _replayed(
    one: Speaking, rules: RuleSet, lists: dict[str, list[str]], events: Sequence[Event]
) -> list[str]:
    """Events that decide the findings of a correlation or an absence, by a node's clock."""
    engine = Engine(alone(one, rules), lists)
    found: list[str] = []

    def take(findings: Iterator[Finding]) -> None:
        for finding in findings:
            if finding.analytic.id == one.id:
                found.append(id_of(finding.events[-1]))

    before = events[0].time
    for event in [*events, None]:
        now = NOW if event is None else event.record.received
        for minutes in (1, 5, 30, 170):
            if (at := before + timedelta(minutes=minutes)) < now:
                take(engine.tick(at))
        take(engine.tick(now))
        if event is not None:
            take(engine.detect([event]))
        before = now
    return found
