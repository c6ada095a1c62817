"""What others say is true: SigmaHQ's regression data and rules, the specification, pySigma."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sigma.collection import SigmaCollection
from sigma.correlations import SigmaCorrelationRule
from sigma.exceptions import SigmaError
from sigma.rule import SigmaRule

from cityward import documents
from cityward.documents import Document
from cityward.errors import RuleError
from cityward.event import Event, LogSource, Record
from detectors.sigma import condition
from detectors.sigma.engine import Engine
from detectors.sigma.lines import MODIFIERS
from detectors.sigma.load import load_folder, load_text, read_document
from detectors.sigma.rule import Absence, Correlation, CorrelationType, Filter, Rule
from detectors.sigma.view import View
from tests.detectors.sigma.city import reasons
from tests.detectors.sigma.pysigma_twin import Twin

TIME = datetime(2026, 1, 5, tzinfo=UTC)
RECORD = Record(b"", "cases", 1, TIME)


def unpacked(data: Path, name: str, folder: Path) -> Path:
    with tarfile.open(data / "sigma" / f"{name}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def cases(folder: Path) -> Iterator[dict[str, Any]]:
    for line in (folder / "cases.ndjson").read_text().splitlines():
        yield json.loads(line)


def events_of(case: dict[str, Any]) -> list[Event]:
    given = {key: case["logsource"].get(key, "") for key in ("category", "product", "service")}
    return [Event(TIME, LogSource(**given), fields, RECORD) for fields in case["events"]]


def test_sigmahq_regression_data_all_202_of_202(data: Path, tmp_path: Path) -> None:
    folder = unpacked(data, "sigmahq_regression", tmp_path)
    engine = Engine(load_folder(folder / "rules_under_test"))
    wrong, tried = [], 0

    for case in cases(folder):
        tried += 1
        wanted = case.get("corrected_match_count", case["expected_match_count"])
        found = list(engine.detect(events_of(case)))
        count = sum(one.analytic.id == case["rule_id"] for one in found)
        if count != wanted and not (wanted is None and count >= 1):
            wrong.append((case["case"], wanted, count))

    assert (tried, wrong) == (202, [])


def test_pysigma_agrees_on_every_regression_rule_and_event(data: Path, tmp_path: Path) -> None:
    folder = unpacked(data, "sigmahq_regression", tmp_path)
    rules = load_folder(folder / "rules_under_test").rules
    events = [event for case in cases(folder) for event in case["events"]]
    differ, held = [], 0

    for rule in rules:
        twin = Twin(SigmaRule.from_yaml(Path(rule.document.file).read_text()))
        for event in events:
            ours = rule.detection.holds(View(event))
            held += ours
            if ours != twin.matches(event):
                differ.append((rule.title, event))

    assert held > 224
    assert differ == []


@pytest.mark.slow
def test_all_3728_rules_of_sigmahq_load(data: Path, tmp_path: Path, record_property: Any) -> None:
    folder = unpacked(data, "sigmahq_rules", tmp_path)
    start_s = time.process_time()

    rules = load_folder(folder)

    record_property("load_s", time.process_time() - start_s)
    assert reasons(rules) == []
    assert len(rules.rules) == 3728
    assert {one.analytic.framework for one in rules.rules if one.analytic.techniques} == {
        "attack-enterprise"
    }


def test_all_samples_of_the_specification_load(data: Path) -> None:
    kinds = []
    with tarfile.open(data / "sigma" / "sigma_spec_schema_samples.tar.gz") as archive:
        for member in archive.getmembers():
            if member.name.endswith(".yml"):
                text = archive.extractfile(member) or io.BytesIO()
                kinds.append(type(read_document(documents.parse(text.read())[0])))

    assert sorted(kind.__name__ for kind in kinds) == sorted(
        [Correlation.__name__] * 8 + [Filter.__name__] * 2 + [Rule.__name__] * 2
    )


WRONG: list[Any] = [None, 7, "x", [], {}, ["x"], {"x": "y"}, True]
LENIENT = {
    # What says nothing of what is detected: `rule check` warns, the rule works.
    *("title", "id", "status", "description", "author", "date", "modified", "references", "tags"),
    *("falsepositives", "taxonomy", "related", "fields", "scope", "license", "level"),
    # One for a list of one, as pySigma takes it; no group is one group; words alone are keywords.
    *("correlation.rules", "correlation.group-by", "filter.rules", "filter.selection"),
    *("detection.selection", "detection.keywords", "detection.filter", "detection.+"),
}


def wrong(value: Any, *place: Any) -> Iterator[tuple[str, Any]]:
    """A document with one part left out, added, or of another kind; and the section it is in."""
    for key in value:
        where = ".".join(map(str, (*place, key)))
        yield where, {name: one for name, one in value.items() if name != key}
        for other in WRONG:
            yield where, {**value, key: other}
        if isinstance(value[key], dict) and len(place) < 2:
            for inner, changed in wrong(value[key], *place, key):
                yield inner, {**value, key: changed}
    yield ".".join((*place, "+")), {**value, "zzz": "x"}


def test_what_the_schemas_of_the_specification_refuse_is_refused(
    data: Path, tmp_path: Path
) -> None:
    folder = unpacked(data, "sigma_spec_schema_samples", tmp_path)
    schemas = {
        kind: jsonschema.Draft202012Validator(json.loads(file.read_text()))
        for kind, file in (
            ("correlation", folder / "json-schema" / "sigma-correlation-rules-schema.json"),
            ("filter", folder / "json-schema" / "sigma-filters-schema.json"),
            ("detection", folder / "json-schema" / "sigma-detection-rule-schema.json"),
        )
    }
    taken, refused = set(), 0

    for file in sorted(folder.rglob("*.yml")):
        value = documents.parse(file.read_bytes())[0].value
        schema = next(one for kind, one in schemas.items() if kind in value)
        for where, changed in wrong(value):
            if schema.is_valid(json.loads(json.dumps(changed, default=str))):
                continue
            try:
                read_document(Document(changed, file.name, {}))
            except RuleError:
                refused += 1
            else:
                taken.add(".".join(where.split(".")[:2]))

    assert {
        one for one in taken if one not in LENIENT and one.split(".")[0] not in LENIENT
    } == set()
    assert refused > 300


HEAD = {"title": "T", "logsource": {"service": "test"}}


@pytest.mark.parametrize("key", ["f|utf16le|base64", "f|cidr|expand"])
def test_pysigma_knows_no_utf16le_and_expands_no_network(key: str) -> None:
    value = {**HEAD, "detection": {"s": {key: "%a%"}, "condition": "s"}}

    with pytest.raises(SigmaError):
        SigmaRule.from_dict(value)
    assert isinstance(read_document(Document(value, "<text>", {})), Rule)


def test_pysigma_refuses_a_condition_with_two_limits() -> None:
    section = {
        "type": "event_count",
        "rules": ["a"],
        "timespan": "5m",
        "condition": {"gte": 3, "lt": 9},
    }
    value = {"title": "T", "correlation": section}

    with pytest.raises(SigmaError):
        SigmaCorrelationRule.from_dict(value)
    assert isinstance(read_document(Document(value, "<text>", {})), Correlation)


def test_pysigma_refuses_a_document_without_detection_correlation_or_filter() -> None:
    section = {"trigger": "a", "expected": "b", "within": "5m", "by": ["f"]}
    value = {"title": "T", "cw_absence": section}

    with pytest.raises(SigmaError):
        SigmaCollection.from_dicts([value])
    assert isinstance(read_document(Document(value, "<text>", {})), Absence)


def test_pysigma_ignores_a_filter_that_binds_to_nothing() -> None:
    rule = {**HEAD, "detection": {"s": {"f": "a"}, "condition": "s"}}
    section = {"rules": ["gone"], "s": {"f": "b"}, "condition": "not s"}
    own = {"reason": "r", "expires": "2030-01-01"}
    given = [rule, {**HEAD, "title": "F", "filter": section, "cityward": own}]

    SigmaCollection.from_dicts(given).resolve_rule_references()

    text = "---\n".join(json.dumps(one) + "\n" for one in given)
    assert "3: the filter binds to nothing: no rule gone" in reasons(load_text(text))


def test_the_page_names_every_modifier_and_every_kind_of_correlation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "rules.md").read_text()
    named = set(re.findall(r"`([\w-]+)`", page.partition("## All of Sigma")[2]))

    assert MODIFIERS - named == set()
    assert set(get_args(CorrelationType)) - named == set()


# --- Random rules and conditions ---------------------------------------------------------------

NAMES = ("a", "b", "c", "d")


def expressions() -> st.SearchStrategy[Any]:
    """Nested tuples: a name, ("not", x), ("and" | "or", x, y)."""
    return st.recursive(
        st.sampled_from(NAMES),
        lambda inner: st.one_of(
            st.tuples(st.just("not"), inner),
            st.tuples(st.sampled_from(["and", "or"]), inner, inner),
        ),
        max_leaves=12,
    )


def written(expression: Any, around: str = "") -> str:
    """As a Sigma condition, with only the brackets that precedence needs."""
    if isinstance(expression, str):
        return expression
    if expression[0] == "not":
        return f"not {written(expression[1], 'not')}"
    text = f" {expression[0]} ".join(written(one, expression[0]) for one in expression[1:])
    needs = around == "not" or (around == "and" and expression[0] == "or")
    return f"({text})" if needs else text


def truth(expression: Any, row: dict[str, bool]) -> bool:
    if isinstance(expression, str):
        return row[expression]
    if expression[0] == "not":
        return not truth(expression[1], row)
    known = [truth(one, row) for one in expression[1:]]
    return all(known) if expression[0] == "and" else any(known)


@given(expressions())
def test_random_conditions_agree_with_their_truth_table(expression: Any) -> None:
    read = condition.parse(written(expression), NAMES)

    for number in range(16):
        row = {name: bool(number >> place & 1) for place, name in enumerate(NAMES)}
        assert condition.holds(read, row.__getitem__) is truth(expression, row)


WORDS = st.sampled_from(
    ["a", "A", "ab", "-a b", "/ab", "a*", "*b", "?b", r"a\*", r"\\a", "ba ab", "10.0.0.1", "7", ""]
)
TEXT_KEYS = st.sampled_from(
    [
        *("f", "g", "f|contains", "f|startswith", "g|endswith", "f|contains|all", "f|cased"),
        *("f|windash|contains", "f|contains|cased", "f|neq", "g|contains|neq", "f|windash"),
    ]
)
REFERENCES = ("", "|contains", "|startswith", "|neq")
LINES = st.one_of(
    st.tuples(TEXT_KEYS, st.lists(WORDS, min_size=1, max_size=3)),
    st.tuples(st.sampled_from(["f|base64", "g|base64offset|contains"]), st.just("ab")),
    st.tuples(st.sampled_from(["f|lt", "g|gte", "f"]), st.sampled_from([6, 7, 7.5])),
    st.tuples(st.sampled_from(["f|re", "f|re|i"]), st.sampled_from(["^a", "b$", "a.b", "A+"])),
    st.tuples(st.just("f|cidr"), st.sampled_from(["10.0.0.0/8", "192.168.0.0/16"])),
    st.tuples(st.sampled_from(["f|exists", "g|exists"]), st.booleans()),
    st.tuples(
        st.sampled_from(["f|fieldref", "f|fieldref|contains", "f|fieldref|neq"]), st.just("g")
    ),
    st.tuples(st.just("g"), st.none()),
)
SELECTIONS = st.lists(LINES, min_size=1, max_size=3).map(dict)
TEXTS = [
    "a",
    "A",
    "ab",
    "BA",
    "-a b",
    "/a B",
    "x /ab",
    "xb",
    "a*",
    r"\a",
    "YWI=",
    "10.0.0.1",
    "7",
    "",
]
SEEN = st.sampled_from([*TEXTS, 6, 7, 7.5, None])


LINES_AND_SEEN = (LINES, st.lists(st.tuples(SEEN, SEEN), min_size=4, max_size=12))


@settings(max_examples=300, deadline=None)
@given(*LINES_AND_SEEN)
def test_random_lines_agree_with_pysigma(line: tuple[str, Any], seen: list[Any]) -> None:
    _agree(line, seen)


@pytest.mark.full
@settings(max_examples=5_000, deadline=None)
@given(*LINES_AND_SEEN)
def test_many_random_lines_agree_with_pysigma(line: tuple[str, Any], seen: list[Any]) -> None:
    _agree(line, seen)


def _agree(line: tuple[str, Any], seen: list[Any]) -> None:
    value = {
        "title": "T",
        "logsource": {"service": "test"},
        "detection": {"a": dict([line]), "condition": "a"},
    }

    rule = read_document(documents.parse(json.dumps(value))[0])
    twin = Twin(SigmaRule.from_dict(value))

    assert isinstance(rule, Rule)
    for f, g in seen:
        event = {"f": f, "g": g}
        assert rule.detection.holds(View(event)) is twin.matches(event), event


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(SELECTIONS, st.lists(SELECTIONS, min_size=1, max_size=2))
            for name in ("b", "c")
        }
        | {"d": st.lists(WORDS.filter(bool), min_size=1, max_size=2)},
    ),
    SELECTIONS,
    expressions(),
    st.lists(st.fixed_dictionaries({}, optional={"f": SEEN, "g": SEEN}), min_size=1, max_size=6),
)
def test_random_rules_agree_with_pysigma(
    others: dict[str, Any], first: Any, expression: Any, events: list[dict[str, Any]]
) -> None:
    selections = {"a": first, **others}
    text = written(expression)
    for name in NAMES:
        if name not in selections:
            selections[name] = {"f": "a"}
    value = {
        "title": "T",
        "logsource": {"service": "test"},
        "detection": {**selections, "condition": text},
    }

    rule = read_document(documents.parse(json.dumps(value))[0])
    twin = Twin(SigmaRule.from_dict(value))

    assert isinstance(rule, Rule)
    for event in events:
        assert rule.detection.holds(View(event)) is twin.matches(event), event
