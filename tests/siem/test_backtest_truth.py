"""A backtest says what the engine says when the same events pass it again, event by event."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from cityward import Event, Finding, LogSource, Record
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_folder, load_text
from detectors.sigma.rule import Rule, RuleSet, Speaking
from detectors.sigma.samples import events_of, read_samples, samples_file
from siem import backtest as backtests
from siem import node, pushdown
from siem.backtest import Backtest, backtest
from siem.ruleset import RULES_FOLDER
from siem.samples import alone, collect
from siem.store import distinct
from siem.store.archive import MEMORY_LIMIT, Looking
from siem.store.events import EventStore, event_id
from siem.store.protocol import Document, Range
from tests.detectors.sigma.plain import Plain

START = datetime(2026, 3, 1, 6, tzinfo=UTC)
NOW = START + timedelta(days=900)
HERE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
"""A list of one's own stands in the place of that of all tests: a busy machine is no fault here."""


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

    def take(findings: Iterable[Finding]) -> None:
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


# ---- random rules over random events

WORDS = (
    "a",
    "A",
    "ab",
    "b a",
    "",
    "5",
    "05",
    "true",
    "10.1.0.5",
    "a\0b",
    "it's",
    "ä",
    "2026-03-01T06:00:07",
)
NUMBERS = (0, 5, 7, -1, 502)
VENDOR: tuple[Any, ...] = (*WORDS, *NUMBERS, 1.5, True, None, ["a", "ab"], [], [1, {"Name": "a"}])


def random_events(count: int, seed: int) -> list[Document]:
    """Events in which every kind of column is sometimes missing, and some values never repeat."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        vendor: dict[str, Any] = {
            "Image": draw.choice(VENDOR),
            "EventData.Name": draw.choice(VENDOR),
            "EventData": {"Name": draw.choice(VENDOR), "User": draw.choice(WORDS)},
            "query": draw.choice(VENDOR),
        }
        fields = {
            "event.action": draw.choice(WORDS),
            "message": f"{draw.choice(WORDS)} {number}",
            "source.ip": f"10.{draw.randrange(3)}.0.{draw.randrange(9)}",
            "source.port": draw.choice(NUMBERS),
            "phys.reading": draw.choice([0.0, 5.0, 1.5, -1.5, 1e16]),
            "ot.is_command": draw.random() < 0.5,
            "tags": draw.choice([[], ["a"], ["a", "b a"], ["5"]]),
            "event.created": START + timedelta(hours=draw.randrange(60)),
            "dns.question.name": draw.choice(WORDS),
            "cw.vendor": {name: vendor[name] for name in vendor if draw.random() < 0.5},
        }
        at = START + timedelta(seconds=7 * number)
        kept = {name: value for name, value in fields.items() if draw.random() < 0.7}
        service = LogSource(service=draw.choice(["test", "test", "other"]))
        found.append(document(Event(at, service, kept, Record(b"", "s", number, at)), number, at))
    return found


NAMES = (
    "event.action",
    "message",
    "source.ip",
    "source.port",
    "phys.reading",
    "ot.is_command",
    "tags",
    "event.created",
    "@timestamp",
    "event.id",
    "user.name",
    "Image",
    "EventData.Name",
    "cw.vendor.EventData.User",
    "cw.vendor",
    "query",
    "nothing.here",
)
MANY = [*WORDS[:4], *(f"x{number}" for number in range(40))]
"""More than are compared one by one."""
LISTS = {"words": ["ab", "b a", "5"], "nets": ["10.1.0.0/30", "10.2.0.0/16"]}
LINES = st.one_of(
    st.tuples(st.sampled_from(["", "|cased", "|neq"]), st.sampled_from(WORDS + NUMBERS)),
    st.tuples(
        st.sampled_from(["", "|contains", "|endswith", "|contains|neq", "|contains|cased"]),
        st.just(MANY),
    ),
    st.tuples(
        st.sampled_from(["|startswith|cased", "|contains|cased", "|windash|contains", "|re|i"]),
        st.sampled_from(["A", "a", "b a", "-1", "\u00e4"]),
    ),
    st.tuples(st.just("|base64offset|contains"), st.sampled_from(["a", "ab"])),
    st.tuples(st.just("|contains|expand"), st.just("%words%")),
    st.tuples(st.just("|cidr|expand"), st.just("%nets%")),
    st.tuples(
        st.sampled_from(["|day", "|week", "|month|lt", "|year|gte", "|hour|lte", "|minute|gt"]),
        st.sampled_from([1, 2, 9, 23, 40, 2026]),
    ),
    st.tuples(st.sampled_from(["|lt", "|gte", "|gt"]), st.sampled_from([1.5, -0.5, 6])),
    st.tuples(st.just(""), st.sampled_from([True, None, 1.5])),
    st.tuples(
        st.sampled_from(["", "|contains", "|startswith", "|endswith", "|contains|all", "|re"]),
        st.lists(st.sampled_from([*WORDS[:4], "5", "3", "1", "."]), min_size=1, max_size=3),
    ),
    st.tuples(st.just("|contains|neq"), st.sampled_from(["a", "5"])),
    st.tuples(st.just(""), st.sampled_from(["a*", "*b*", "?", "*"])),
    st.tuples(st.just("|exists"), st.booleans()),
    st.tuples(st.just("|cidr"), st.sampled_from(["10.1.0.0/16", "10.1.0.4/31", "fd00::/8"])),
    st.tuples(st.sampled_from(["|gt", "|lte"]), st.sampled_from(NUMBERS)),
    st.tuples(st.sampled_from(["|hour", "|minute|gte"]), st.sampled_from([6, 7, 30])),
    st.tuples(
        st.sampled_from(["|fieldref", "|fieldref|neq", "|fieldref|startswith"]),
        st.sampled_from(["event.action", "Image", "message", "user.name"]),
    ),
)
MAPS = st.dictionaries(st.sampled_from(NAMES), LINES, min_size=1, max_size=2).map(
    lambda made: {f"{name}{line[0]}": line[1] for name, line in made.items()}
)
KEYWORDS = st.one_of(
    st.lists(st.sampled_from(["ab", "10.1.0.5", "b a 3", "502", "1.5", "T07"]), min_size=1),
    st.builds(lambda words: {"|all": words}, st.lists(st.sampled_from(["a", "5", "true"]))),
)
SELECTIONS = st.one_of(MAPS, MAPS, st.lists(MAPS, min_size=2, max_size=2), KEYWORDS)
CONDITIONS = ("x", "not x", "x and y", "x and not y", "x or not y", "not (x and y)", "1 of them")


@st.composite
def documents(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A rule, sometimes with a filter that expires."""
    rule = {
        "title": "R",
        "name": "rule",
        "id": "6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b11",
        "level": "low",
        "logsource": {"service": "test"},
        "detection": {
            "x": draw(SELECTIONS),
            "y": draw(SELECTIONS),
            "condition": draw(st.sampled_from(CONDITIONS)),
        },
    }
    if draw(st.booleans()):
        return [rule]
    tuned = {
        "title": "F",
        "id": "6f0d4bb0-5f0c-4c43-a7a5-1d6f6a5d7b12",
        "logsource": {"service": "test"},
        "filter": {"rules": ["rule"], "z": draw(MAPS), "condition": "not z"},
        "cityward": {
            "reason": "test",
            "expires": draw(st.sampled_from(["2026-03-02", "2027-01-01"])),
        },
    }
    return [rule, tuned]


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Half an hour around midnight, in a file and the spool."""
    return _around_midnight(tmp_path_factory.mktemp("events"), 300, files=1)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Six hours, in two files and the spool."""
    return _around_midnight(tmp_path_factory.mktemp("many"), 3_000, files=2)


def _around_midnight(folder: Path, count: int, files: int) -> Stored:
    found = random_events(count, seed=1)
    for one in found:
        one["@timestamp"] += timedelta(hours=17, minutes=40)
    return Stored(folder, found, files)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=HERE)
@given(texts=documents(), small=st.booleans())
def test_a_random_rule_matches_the_same_events(
    some: Stored, texts: list[dict[str, Any]], small: bool
) -> None:
    _agree(some, texts, small)


@pytest.mark.full
@settings(max_examples=200, deadline=None, suppress_health_check=HERE)
@given(texts=documents(), small=st.booleans())
def test_many_random_rules_match_the_same_of_many_events(
    many: Stored, texts: list[dict[str, Any]], small: bool
) -> None:
    _agree(many, texts, small)


def _agree(stored: Stored, texts: list[dict[str, Any]], small: bool) -> None:
    text = "\n---\n".join(msgspec.json.encode(one).decode() for one in texts)
    rules = load_text(text)
    if rules.refused or not rules.rules:
        reject()
    rule = rules.rules[0]
    plain = Plain(rules, LISTS)
    wanted = sorted(id_of(event) for event in stored.events if plain.matched(event))

    with pytest.MonkeyPatch.context() as patched:
        if small:  # so every column has too many values, and conditions are too long
            patched.setattr(distinct, "VALUES_MAX", 3)
            patched.setattr(pushdown, "LITERALS_MAX", 4)
            patched.setattr(pushdown, "TOGETHER_MAX", 2)
            patched.setattr(backtests, "LITERALS_MAX", 4)
            patched.setattr(distinct, "UNREPEATED", 10)
            patched.setattr(distinct, "_read", lambda path, size: None)
            patched.setattr(distinct, "_write", lambda path, data: None)
        found = stored.said(rule.id, rules, LISTS)

    assert sorted(said.event for said in found.samples) == wanted, text
    assert found.total.would == len(wanted)
    assert sum(counts.would for _, counts in found.days) == len(wanted)
    assert sum(counts.would for _, counts in found.assets) == len(wanted)
