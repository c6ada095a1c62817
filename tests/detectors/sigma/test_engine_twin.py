"""The engine and the plain walk say the same of every event."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cityward.event import Event, LogSource, Record
from collectors.logs.windows import SYSMON, windows
from detectors.sigma import plan
from detectors.sigma.load import load_folder, load_text
from detectors.sigma.rule import RuleSet
from detectors.sigma.samples import events_of, read_samples, samples_file
from siem.ruleset import RULES_FOLDER
from siem.samples import collect
from tests.detectors.sigma.city import START, TEST, event
from tests.detectors.sigma.plain import differences
from tests.detectors.sigma.test_truth import cases, unpacked

# --- Random rules, random events ---------------------------------------------------------------

FIELDS = ("f", "g", "n.m.f", "cs-method", "http.request.method", "source.ip", "@timestamp")
WORDS = st.sampled_from(
    [
        *("a", "A", "ab", "-a b", "/ab", "a*", "*b", "?b", "a*b*c", r"a\*", r"\\a", "*", "", " "),
        *(
            "ÄÖ",
            "äö*",
            "*ß",
            "Σ",
            "*ς",
            "42",
            "42.0",
            "1",
            "true",
            "10.0.0.1",
            "4*",
            "\n",
            "*a\nb*",
        ),
    ]
)
TEXTS = ["a", "A", "ab", "ABC", "-a b", "/a B", "a*", r"\a", "äÖ", "ß", "ΑΣ", "ας", "σ", "42"]
TEXTS += ["42.0", "1", "true", "True", "10.0.0.1", "::ffff:10.0.0.1", "", " ", "\n", "xa\nby"]
TEXTS += ["\ud800a", "aaaaXb" * 900, "GET", "YWI="]
SCALARS = st.sampled_from(
    [*TEXTS, 42, 42.0, 42.5, 1, 1.0, 0, -0.0, True, False, None, 10**400, float("nan"), START]
)
SEEN = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=3),
    st.lists(st.one_of(SCALARS, st.lists(SCALARS, max_size=2)), max_size=2),
    st.dictionaries(st.sampled_from(["f", "m", "m.f", "x"]), SCALARS, max_size=2),
    st.fixed_dictionaries({"m": st.dictionaries(st.sampled_from(["f", "x"]), SCALARS)}),
    st.lists(st.dictionaries(st.sampled_from(["f", "m.f"]), SCALARS, max_size=1), max_size=2),
)
NAMES = st.sampled_from([*FIELDS, "n", "n.m", "x", "cw.vendor", "cw.vendor.f", "cw.f"])
EVENTS = st.lists(
    st.tuples(st.dictionaries(NAMES, SEEN, max_size=5), st.integers(0, 3), st.booleans()),
    min_size=1,
    max_size=8,
)

FIELD = st.sampled_from(FIELDS)
TEXT_KINDS = st.sampled_from(
    [
        *("", "|contains", "|startswith", "|endswith", "|contains|all", "|cased", "|neq"),
        *("|contains|cased", "|startswith|cased", "|contains|neq", "|windash|contains", "|all"),
        "|base64offset|contains",
    ]
)


def lines(kinds: st.SearchStrategy[str], values: st.SearchStrategy[Any]) -> Any:
    return st.tuples(st.tuples(FIELD, kinds).map("".join), values)


LINES = st.one_of(
    lines(TEXT_KINDS, st.lists(WORDS.filter(bool), min_size=1, max_size=3)),
    lines(st.just(""), st.sampled_from([42, 42.0, 1, True, False, "", None])),
    lines(st.sampled_from(["|lt", "|gte"]), st.sampled_from([1, 42, 42.5])),
    lines(st.sampled_from(["|hour", "|day|gt"]), st.sampled_from([5, 10])),
    lines(st.sampled_from(["|re", "|re|i"]), st.sampled_from(["^a", "b$", "a.b", "[äÄ]", "A+"])),
    lines(st.just("|cidr"), st.sampled_from(["10.0.0.0/8", "::/0", "0.0.0.0/0"])),
    lines(st.just("|exists"), st.booleans()),
    lines(st.sampled_from(["|fieldref", "|fieldref|neq", "|fieldref|contains"]), FIELD),
)
GROUPS = st.lists(LINES, min_size=1, max_size=3).map(dict)
SELECTIONS = st.one_of(
    GROUPS,
    st.lists(GROUPS, min_size=1, max_size=2),
    st.lists(WORDS.filter(lambda word: word.strip("*")), min_size=1, max_size=2),
)
CONDITIONS = st.sampled_from(
    [
        *("a", "a and b", "a or b", "not a", "a and not b", "not (a or b)", "1 of them"),
        *("not a or not b", "not (a and not b) and (b or not a)", "all of them"),
    ]
)
SOURCES = [
    TEST,
    LogSource(service="other"),
    LogSource(product="p", service="test"),
    LogSource("registry_set", "p"),
]
WANTED = [{"service": "test"}, {"product": "p"}, {"category": "registry_event"}]
RULES = st.lists(
    st.tuples(SELECTIONS, SELECTIONS, CONDITIONS, st.sampled_from(WANTED)), min_size=1, max_size=4
)
FIRST_FROM = st.sampled_from([1, 8])
"""A field that so many rules begin with is looked at first."""
FILTER = st.none() | st.tuples(GROUPS, st.sampled_from(["2026-01-05", "2026-01-06", "2027-01-01"]))


def written(rules: list[Any], tuning: Any) -> str:
    """Rules, and a filter for all of them, as documents (JSON is YAML)."""
    documents = [
        {
            "title": "T",
            "id": f"00000000-0000-4000-8000-00000000000{number}",
            "logsource": wanted,
            "detection": {"a": a, "b": b, "condition": condition},
        }
        for number, (a, b, condition, wanted) in enumerate(rules)
    ]
    if tuning is not None:
        documents.append(
            {
                "title": "F",
                "logsource": {},
                "cityward": {"reason": "r", "expires": tuning[1]},
                "filter": {"rules": "any", "s": tuning[0], "condition": "not s"},
            }
        )
    return "\n---\n".join(json.dumps(one) for one in documents)


def near(rules: list[Any]) -> Iterator[tuple[dict[str, Any], int, bool]]:
    """Events that have what the rules ask for: of others few match, and agreeing says little."""
    for number, (a, b, *_) in enumerate(rules):
        first, second = wanted_by(a), wanted_by(b)
        for fields in (first, second, first | second):
            for source in (0, 2, 3):
                yield fields, source, number % 2 == 0


def wanted_by(selection: Any) -> dict[str, Any]:
    """Fields as the first group of a selection has them; signs are left out."""
    group = selection[0] if isinstance(selection, list) else selection
    lines = group.items() if isinstance(group, dict) else [("x", group)]
    found = {}
    for key, value in lines:
        one = value[0] if isinstance(value, list) else value
        found[key.partition("|")[0]] = one.replace("*", "") if isinstance(one, str) else one
    return found


def made(given: list[Any]) -> list[Event]:
    """Events of several days and log sources, with a record or without."""
    return [
        msgspec.structs.replace(
            event(
                86_400.0 * (number % 8), SOURCES[source], b"raw A\xff b*" if with_record else b""
            ),
            fields=fields,
        )
        for number, (fields, source, with_record) in enumerate(given)
    ]


@settings(max_examples=200, deadline=None)
@given(RULES, FILTER, EVENTS, st.sampled_from([1, 3, 512]), FIRST_FROM)
def test_engine_and_plain_walk_agree_on_random_rules_and_events(
    rules: list[Any], tuning: Any, given: list[Any], batch: int, first_from: int
) -> None:
    events = made([*given, *near(rules)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "GATED_FROM", first_from)
        assert differences(load_text(written(rules, tuning)), events, batch) == []


@pytest.mark.full
@pytest.mark.parametrize("part", range(10))
@settings(max_examples=3_000, deadline=None)
@given(RULES, FILTER, EVENTS, st.sampled_from([1, 3, 512]), FIRST_FROM)
def test_engine_and_plain_walk_agree_on_very_many_rules_and_events(
    part: int, rules: list[Any], tuning: Any, given: list[Any], batch: int, first_from: int
) -> None:
    """30,000 in all; workers share the parts."""
    events = made([*given, *near(rules)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "GATED_FROM", first_from)
        assert differences(load_text(written(rules, tuning)), events, batch) == []


# --- Real events -------------------------------------------------------------------------------


def otrf(data: Path, step: int) -> Iterator[Record]:
    """Lines of the recorded attack simulations, from all of them."""
    with gzip.open(data / "sigma" / "otrf_windows_100k.ndjson.gz") as file:
        for number, line in enumerate(itertools.islice(file, 0, None, step)):
            yield Record(line.rstrip(b"\n"), "otrf", number, START)


def published(folder: Path) -> Iterator[tuple[LogSource, Record]]:
    """The events with which SigmaHQ tests its rules: nearly each matches one."""
    for case in cases(folder):
        parts = (case["logsource"].get(part) or "" for part in ("category", "product", "service"))
        logsource = LogSource(*parts)
        for number, one in enumerate(case["events"]):
            yield logsource, Record(json.dumps(one).encode(), "case", number, START)


def flat(record: Record) -> Event:
    """An event with its native names, and the log source that the data's README hints at."""
    fields = json.loads(record.data)
    category = ""
    if fields.get("Channel") == "Microsoft-Windows-Sysmon/Operational":
        category = SYSMON.get(int(fields["EventID"]), "")
    product = "windows" if "Channel" in fields else ""
    return Event(START, LogSource(category, product), fields, Record(b"", "otrf", 1, START))


@pytest.fixture(scope="module")
def sigmahq(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], RuleSet]:
    """SigmaHQ's rules, unpacked when asked for."""

    @cache
    def load(data: Path) -> RuleSet:
        folder = tmp_path_factory.mktemp("sigmahq")
        return load_folder(unpacked(data, "sigmahq_rules", folder) / "rules")

    return load


@pytest.mark.slow
def test_both_agree_on_recorded_attacks_as_they_were_written(
    data: Path, sigmahq: Callable[[Path], RuleSet], tmp_path: Path
) -> None:
    folder = unpacked(data, "sigmahq_regression", tmp_path)
    known = [
        Event(START, logsource, json.loads(record.data), record)
        for logsource, record in published(folder)
    ]
    others = (flat(record) for record in otrf(data, 40))

    assert differences(sigmahq(data), itertools.chain(known, others), least=200) == []


@pytest.mark.slow
def test_both_agree_on_recorded_attacks_as_our_collector_reads_them(
    data: Path, sigmahq: Callable[[Path], RuleSet], tmp_path: Path
) -> None:
    """Native names stand in a nested field there."""
    folder = unpacked(data, "sigmahq_regression", tmp_path)
    events = list(windows(record for _, record in published(folder)))

    assert differences(sigmahq(data), events, least=200) == []


@pytest.mark.full
def test_both_agree_on_every_recorded_attack(
    data: Path, sigmahq: Callable[[Path], RuleSet]
) -> None:
    events = (flat(record) for record in otrf(data, 1))

    assert differences(sigmahq(data), events, least=100) == []


@pytest.mark.slow
def test_both_agree_on_the_samples_of_every_shipped_rule() -> None:
    rules = load_folder(RULES_FOLDER)
    events: list[Event] = []
    placeholders: dict[str, Sequence[str]] = {}
    for one in rules.speaking():
        for case in read_samples(samples_file(Path(one.document.file))).cases:
            events += events_of(case, one, collect)
            placeholders |= case.placeholders

    assert len(events) > 1_000
    assert differences(rules, events, placeholders=placeholders, least=500) == []
