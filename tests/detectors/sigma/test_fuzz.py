"""Rule files with random damage: each loads, or is refused with file and line; nothing else."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
import yaml

from cityward.documents import Document
from cityward.errors import RuleError
from detectors.sigma import bind
from detectors.sigma.engine import Engine
from detectors.sigma.load import Loaded, load_text, read_document
from tests.detectors.sigma.city import event

BATCH = 2_500
WHERE = re.compile(r"<text>(:\d+)?")

SEEDS = [
    """title: One
name: one
id: 11111111-1111-4111-8111-111111111111
status: test
date: 2026-01-05
tags: [attack.t0836, attack.impair-process-control]
logsource: {category: ot_protocol, product: x, service: modbus, definition: some}
detection:
  a: {f|contains|all: [a, 'b*'], g|windash|base64offset|contains: ' -x', h: null, i: 5}
  b: [{f|re|i: '^a+b$'}, {g|cidr: [10.0.0.0/8, '2001:db8::/32']}, word]
  c: [word, 42]
  d: {f|exists: true, g|fieldref|neq: h, t|hour|gte: 7, u|utf16le|base64: x, v|cased: Ab}
  e: {'|all': [one, two], w|expand: '%writers%-x', n|neq: [1, 2.5, true], s|startswith: 'a?c'}
  _h: {f|lt: 5}
  condition: (1 of a* or all of them) and not (b or c) and not 1 of _*
falsepositives: [none]
level: high
cityward: {sentence: '{f} x[, y {g}].', impact: [loss_of_control], confidence: 0.7}
""",
    """title: Two
name: two
correlation:
  type: value_percentile
  rules: [one, three]
  group-by: [f, who]
  timespan: 5m
  aliases: {who: {one: g, three: h}}
  condition: {field: i, percentile: 95, gte: 5, lt: 9}
  generate: true
level: low
""",
    """title: Three
name: three
logsource: {service: test}
detection: {s: {f: 1}, condition: [s, not s]}
""",
    """title: Four
correlation: {type: temporal_ordered, rules: [one, three], timespan: 1h, group-by: f}
""",
    """title: Five
correlation: {type: temporal, timespan: 90s, condition: one and not (three or two)}
""",
    """title: Six
logsource: {service: test}
cityward: {reason: known, expires: 2099-01-01}
filter: {rules: [three], s: {f: 2}, condition: not s}
""",
    """title: Seven
cw_absence: {trigger: one, expected: three, within: 5m, before: 1m, by: [f]}
""",
]
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, float("inf"), float("nan"), 2**70, "", " ", "*", "?", "\\"),
    *("|", "a|b|c", "%x%", "1 of them", "all of *", "not", "(", ")", "x" * 5_000, "ä\u2015\x07"),
    *([], {}, [[]], [{}], {"": 1}, {"a": {"b": 1}}, [None], "any", "5m", "0s", "-5m", "9" * 400),
    *("(?=x)", "(a|b){999}", "[", "10.0.0.1/8", "::/0", "\ud800", "2026-01-05", "attack.t0836"),
    *({"gte": 1}, {"gte": "1"}, {"field": [], "lt": 1}, ["one", "one"], b"\xff", (1, 2), {1: 2}),
]
TOKENS = [
    *("|", ":", "- ", "[", "]", "{", "}", "&a ", "*a", "!!binary ", "!!set ", "!!pairs ", "'", '"'),
    *("\n", "\n---\n", "#", "%", "?", "|all", "|re", "|cidr", "|expand", "null", "~", "<<: ", "\t"),
    *("condition", "timeframe: 5m\n", "action: global\n", " | count() > 5", "1 of ", "not ", "\0"),
]
VALUES = [yaml.safe_load(text) for text in SEEDS]


def damaged_text(dice: random.Random) -> str:
    """A file whose characters, lines or words are not as they were."""
    text = "---\n".join(dice.sample(SEEDS, dice.randint(1, 2)))
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(len(text) + 1)
        end = min(len(text), place + dice.choice([0, 1, 1, 5, 40]))
        lines = text.splitlines(keepends=True)
        text = dice.choice(
            [
                text[:place] + dice.choice(TOKENS) + text[end:],
                text[:place] + text[end:],
                text[:place] + chr(dice.randrange(0x300)) + text[end:],
                "".join(dice.sample(lines, len(lines))),
                text[:place] + text[place:end] * dice.randint(2, 30) + text[end:],
            ]
        )
    return text


def damaged_value(dice: random.Random, value: Any, depth: int = 0) -> Any:
    """A document of which one part, somewhere, is another one."""
    if depth > 0 and (not isinstance(value, (dict, list)) or not value or dice.random() < 0.2):
        return dice.choice([*ODD, value, [value, value], {"x": value}, dice.choice(VALUES)])
    if isinstance(value, list):
        place = dice.randrange(len(value))
        return [*value[:place], damaged_value(dice, value[place], depth + 1), *value[place + 1 :]]
    key = dice.choice(list(value))
    kept = dict(value)
    match dice.randrange(6):
        case 0:
            del kept[key]
        case 1:
            modifiers = ("|re", "|all", "|neq", "|cidr", "|wide", "|hour", "|lt", "|x", "|cased")
            kept[f"{key}{dice.choice(modifiers)}"] = kept.pop(key)
        case 2:
            kept[dice.choice(list(dice.choice(VALUES)))] = value[key]
        case _:
            kept[key] = damaged_value(dice, value[key], depth + 1)
    return kept


def check_faults(faults: list[RuleError] | tuple[RuleError, ...]) -> None:
    for fault in faults:
        assert fault.what
        assert WHERE.fullmatch(fault.where), (fault.what, fault.where)


def load_texts(dice: random.Random, number: int) -> int:
    rules = 0
    for _ in range(number):
        text = damaged_text(dice)
        try:
            loaded = load_text(text)
        except Exception as error:
            raise AssertionError(text) from error
        check_faults(loaded.refused)
        rules += len(loaded.speaking())
    return rules


def read_values(dice: random.Random, number: int) -> int:
    """Without YAML, which costs ten times what the rest does."""
    good: list[Loaded] = []
    faults: list[RuleError] = []
    for _ in range(number):
        value = damaged_value(dice, dice.choice(VALUES))
        if dice.random() < 0.3:
            value = damaged_value(dice, value)
        try:
            good.append(read_document(Document(value, "<text>", {})))
        except RuleError as fault:
            faults.append(fault)
        except Exception as error:
            raise AssertionError(repr(value)) from error
    rules = bind.bind(good, faults)
    check_faults(rules.refused)
    one = Engine(rules, {"writers": ["a"]})
    list(one.detect([event(0, f="a", g="b", i=7), event(1, f=1, h="10.0.0.1")]))
    assert [state.id for state in one.states() if state.faults] == []
    return len(good)


def run(seed: int) -> None:
    dice = random.Random(seed)

    assert load_texts(dice, BATCH // 2) > 0
    assert read_values(dice, BATCH // 2) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_20_000_damaged_rule_files_are_rules_or_faults_with_a_place(seed: int) -> None:
    run(seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(100, 140))
def test_100_000_damaged_rule_files_are_rules_or_faults_with_a_place(seed: int) -> None:
    run(seed)
