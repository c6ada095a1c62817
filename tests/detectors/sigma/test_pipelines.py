"""Rules of others in the words of our events: pySigma's processing pipelines, by file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from detectors.sigma.load import load_folder
from detectors.sigma.rule import RuleSet
from detectors.sigma.view import View
from tests.detectors.sigma.city import reasons

HEAD = "title: T\nlogsource: {category: process_creation, product: windows}\n"
MAPPING = """
name: ours
transformations:
  - type: field_name_mapping
    mapping: {Image: process.executable, User: [user.name, source.user.name], Dropped: user.id}
"""


def loaded(folder: Path, pipeline: str, *rules: str) -> RuleSet:
    (folder / "rules").mkdir(exist_ok=True)
    (folder / "map.yml").write_text(pipeline)
    for number, rule in enumerate(rules):
        (folder / "rules" / f"{number}.yml").write_text(rule)
    return load_folder(folder / "rules", pipelines=[folder / "map.yml"])


def holds(folder: Path, pipeline: str, detection: str, **fields: Any) -> bool:
    rules = loaded(folder, pipeline, f"{HEAD}detection:\n{detection}")
    assert reasons(rules) == []
    return rules.rules[0].detection.holds(
        View({k.replace("__", "."): v for k, v in fields.items()})
    )


def test_fields_are_renamed_and_lines_stay_as_they_were_written(tmp_path: Path) -> None:
    rules = loaded(
        tmp_path,
        MAPPING,
        HEAD
        + "detection:\n  s:\n    Image|endswith|windash: '\\\\-x*'\n    Other|utf16le|base64: a\n"
        "  k: [one, two]\n  n:\n    - Image|re: a+\n    - Image: null\n  condition: s or k or n\n",
    )

    assert rules.rules[0].document.value["detection"] == {
        "s": {"process.executable|endswith|windash": r"\\-x*", "Other|utf16le|base64": "a"},
        "k": ["one", "two"],
        "n": [{"process.executable|re": "a+"}, {"process.executable": None}],
        "condition": "s or k or n",
    }


@pytest.mark.parametrize(("dashes", "refused"), [(5, False), (6, True), (60, True)])
def test_dashes_that_stand_for_too_many_texts_are_refused(
    tmp_path: Path, dashes: int, refused: bool
) -> None:
    text = "-a " * dashes
    rules = loaded(
        tmp_path,
        MAPPING,
        f"{HEAD}detection:\n  s: {{User|windash|contains: '{text}'}}\n  condition: s\n",
        f"{HEAD}detection:\n  s: {{User: bob}}\n  condition: s\n",
    )

    assert len(rules.rules) == 2 - refused
    assert [one.what for one in rules.refused] == [
        "the pipelines cannot be applied: the dashes stand for too many texts"
    ] * refused


def test_a_field_that_has_several_names_holds_in_any_of_them(tmp_path: Path) -> None:
    detection = "  s: {User|contains: bob, Image: x}\n  condition: s\n"

    assert holds(tmp_path, MAPPING, detection, user__name="xbobx", process__executable="X")
    assert holds(tmp_path, MAPPING, detection, source__user__name="bob", process__executable="x")
    assert not holds(tmp_path, MAPPING, detection, user__name="bob")
    assert not holds(tmp_path, MAPPING, detection, User="bob", process__executable="x")


@pytest.mark.parametrize(
    ("transformation", "line", "fields", "expected"),
    [
        ("{type: add_condition, conditions: {EventID: 1}}", "f: x", {"f": "x", "EventID": 1}, True),
        ("{type: add_condition, conditions: {EventID: 1}}", "f: x", {"f": "x"}, False),
        (
            "{type: add_condition, negated: true, conditions: {EventID: 1}}",
            "f: x",
            {"f": "x", "EventID": 1},
            False,
        ),
        ("{type: replace_string, regex: '^C:', replacement: 'D:'}", "f: C:x*", {"f": "d:xy"}, True),
        (
            "{type: replace_string, regex: '^C:', replacement: 'D:'}",
            "f: C:x*",
            {"f": "c:xy"},
            False,
        ),
        (
            "{type: replace_string, regex: a, replacement: b}",
            r"f: '\*a*'",
            {"f": "*bb"},
            True,
        ),
        ("{type: replace_string, regex: a, replacement: b}", r"f: '\*a*'", {"f": "xb"}, False),
        ("{type: replace_string, regex: a, replacement: b}", "f|neq: [a, ca]", {"f": "b"}, False),
        ("{type: replace_string, regex: a, replacement: b}", "f|neq: [a, ca]", {"f": "a"}, True),
        (
            "{type: replace_string, regex: a, replacement: b}",
            "f|contains|all: [a, ca]",
            {"f": "xcb"},
            True,
        ),
        (
            "{type: replace_string, regex: a, replacement: b}",
            "f|contains|all: [a, ca]",
            {"f": "xb"},
            False,
        ),
        ("{type: map_string, mapping: {a: [b, c]}}", "f: a", {"f": "c"}, True),
        ("{type: regex, method: ignore_case_flag}", "f: a*c", {"f": "ABC"}, True),
        ("{type: set_value, value: 7}", "f: a", {"f": "7"}, True),
        ("{type: convert_type, target_type: num}", "f: '7'", {"f": 7.0}, True),
        ("{type: case, method: upper}", "f|cased: a", {"f": "A"}, True),
        ("{type: field_name_prefix, prefix: win.}", "f|gt: 5", {"win.f": 6}, True),
        ("{type: field_name_suffix, suffix: .k}", "f|fieldref: g", {"f.k": 1, "g.k": 1}, True),
        (
            "{type: drop_detection_item, field_name_conditions: "
            "[{type: include_fields, fields: [g]}]}",
            "g: 1\n    f: x",
            {"f": "x"},
            True,
        ),
        ("{type: wildcard_placeholders}", "f|expand: 'a%p%'", {"f": "abc"}, True),
        ("{type: value_placeholders}", "f|expand: 'a%p%'", {"f": "ay"}, True),
        (
            "{type: hashes_fields, valid_hash_algos: [MD5], field_prefix: hash.}",
            "h: 1",
            {"h": 1},
            True,
        ),
        (
            "{type: field_name_mapping, mapping: {f: h}}",
            "f|cidr: 10.0.0.0/8",
            {"h": "10.1.1.1"},
            True,
        ),
        ("{type: field_name_mapping, mapping: {f: h}}", "f|exists: true", {"h": None}, True),
        (
            "{type: field_name_mapping, mapping: {f: h}}",
            "f|hour|gte: 3",
            {"h": "2026-01-01T04:00"},
            True,
        ),
    ],
)
def test_transformation(
    tmp_path: Path, transformation: str, line: str, fields: dict[str, Any], expected: bool
) -> None:
    pipeline = f"vars: {{p: [x, y]}}\ntransformations:\n  - {transformation}\n"

    assert holds(tmp_path, pipeline, f"  s:\n    {line}\n  condition: s\n", **fields) is expected


def test_a_log_source_is_changed_where_the_rule_has_the_one_that_is_named(tmp_path: Path) -> None:
    pipeline = (
        "transformations:\n  - type: change_logsource\n    product: host\n    service: shell\n"
        "    rule_conditions: [{type: logsource, category: process_creation}]\n"
    )
    other = HEAD.replace("process_creation", "dns")
    detection = "detection: {s: {f: 1}, condition: s}\n"

    rules = loaded(tmp_path, pipeline, HEAD + detection, other + detection)

    assert [str(rule.logsource) for rule in rules.rules] == ["host/*/shell", "windows/dns/*"]


def test_what_is_in_our_words_already_is_left_alone(tmp_path: Path) -> None:
    rule = f"name: ours\ntaxonomy: cityward\n{HEAD}detection: {{s: {{Image: 1}}, condition: s}}\n"
    many = (
        "title: M\ncityward: {sentence: many}\n"
        "correlation: {type: event_count, rules: ours, group-by: Image, timespan: 1m, "
        "condition: {gte: 2}}\n"
    )

    rules = loaded(tmp_path, MAPPING, f"{rule}---\n{many}")

    assert rules.rules[0].detection.fields() == {"Image"}
    assert rules.correlations[0].group_by == ("Image",)


CORRELATION = (
    "title: M\ncorrelation: {type: value_count, rules: base, group-by: [Image, who], timespan: 1m, "
    "aliases: {who: {base: Dropped}}, condition: {gte: 2, lt: 9, field: Dropped}}\n"
)
BASE = f"name: base\n{HEAD}detection: {{s: {{Image: 1}}, condition: s}}\n"


def test_fields_of_a_correlation_are_renamed_too(tmp_path: Path) -> None:
    one = loaded(tmp_path, MAPPING, f"{BASE}---\n{CORRELATION}").correlations[0]

    assert (one.group_by, one.field) == (("process.executable", "who"), ("user.id",))
    assert list(one.aliases["who"].values()) == ["user.id"]


def test_a_field_of_a_correlation_whose_name_depends_on_the_rule_is_refused(
    tmp_path: Path,
) -> None:
    some = MAPPING + "    rule_conditions: [{type: logsource, product: windows}]\n"

    rules = loaded(tmp_path, some, f"{BASE}---\n{CORRELATION}")

    assert rules.correlations == ()
    assert reasons(rules) == [
        "7: the pipelines cannot be applied: what Image is called here depends on the rule; "
        "write its name here"
    ]


def test_a_filter_of_others_is_translated_like_the_rule_it_tunes(tmp_path: Path) -> None:
    tuning = (
        "title: F\nlogsource: {product: windows}\n"
        "cityward: {reason: known, expires: 2099-01-01}\n"
        "filter: {rules: base, s: {User: bob}, condition: not s}\n"
    )

    rules = loaded(tmp_path, MAPPING, f"{BASE}---\n{tuning}")

    assert rules.rules[0].filters[0].detection.fields() == {"user.name", "source.user.name"}


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        ("transformations: [{type: rule_failure, message: not here}]", "not here"),
        ("transformations: [{type: drop_detection_item}]", "the selection is empty"),
        ("transformations: [{type: http_get}]", "pySigma does not take the pipeline"),
        ("transformations: []", "the pipeline has no transformations"),
        ("transformations: x", "the pipeline has no transformations"),
        ("[1]", "a pipeline is one mapping"),
        ("transformations: [{type: command_placeholders, cmd: id}]", "reaches outside"),
        (
            "transformations: [{type: nest, items: [{type: file_placeholders, path: /x}]}]",
            "reaches outside",
        ),
        ("a: &a [*a]", "alias"),
        (
            "transformations: [{type: query_expression_placeholders, expression: '{id}'}]",
            "of a query",
        ),
    ],
)
def test_what_a_pipeline_cannot_do_is_said_once_with_its_place(
    tmp_path: Path, pipeline: str, reason: str
) -> None:
    rule = f"{HEAD}detection: {{s: {{f|expand: '%x%'}}, condition: s}}\n"

    rules = loaded(tmp_path, pipeline + "\n", rule)

    assert rules.rules == ()
    assert len(rules.refused) == 1
    assert reason in rules.refused[0].what
    assert rules.refused[0].where.startswith(str(tmp_path))


def test_an_unusable_pipeline_is_one_fault_however_many_rules_there_are(tmp_path: Path) -> None:
    rules = loaded(tmp_path, "transformations: x\n", BASE, BASE.replace("base", "more"))

    assert [error.where for error in rules.refused] == [f"{tmp_path / 'map.yml'}:1"]


def test_without_pysigma_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sigma.processing.pipeline", None)

    rules = loaded(tmp_path, MAPPING, BASE)

    assert [(one.what, one.todo) for one in rules.refused] == [
        ("a pipeline needs pySigma", "Install it: pip install 'cityward[pipelines]'.")
    ]


def test_a_cached_translation_is_read_again_when_the_pipeline_changes(tmp_path: Path) -> None:
    loaded(tmp_path, MAPPING, f"{HEAD}detection: {{s: {{User: b, Image: x}}, condition: s}}\n")
    folder, pipeline, kept = tmp_path / "rules", tmp_path / "map.yml", tmp_path / "kept" / "rules"

    first = load_folder(folder, pipelines=[pipeline], compiled=kept)
    second = load_folder(folder, pipelines=[pipeline], compiled=kept)
    pipeline.write_text(MAPPING.replace("process.executable", "process.name"))
    third = load_folder(folder, pipelines=[pipeline], compiled=kept)

    assert first == second
    assert "process.executable" in second.rules[0].detection.fields()
    assert "process.name" in third.rules[0].detection.fields()
