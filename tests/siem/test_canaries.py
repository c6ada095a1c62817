"""What a rule must find is shown to it as it runs."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from detectors.sigma.engine import Engine
from detectors.sigma.load import load_folder, load_text
from siem import assembly
from siem import canaries as module
from siem.canaries import Canaries, Canary, sample_of
from siem.config import Settings
from siem.ruleset import RULES_FOLDER, samples_beside

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
RULE = """\
title: Rule {number}
id: 00000000-0000-4000-8000-00000000000{number}
logsource: {{service: test}}
detection:
  s: {{f: {word}}}
  condition: s
"""
SAMPLES = """\
cases:
  - {name: raw, kind: must match, collector: syslog, records: [a]}
  - {name: other, kind: ordinary, events: [{f: b}]}
  - {name: one, kind: must match, events: [{f: a}]}
"""
HIDES = """\
title: Hides
id: 00000000-0000-4000-8000-0000000000f1
logsource: {service: test}
filter:
  rules: [00000000-0000-4000-8000-000000000001]
  s: {f: a}
  condition: not s
cityward: {reason: it is noise, expires: 2027-01-01}
"""


@pytest.fixture(autouse=True)
def at_each_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.0)


def asked(*documents: str, samples: str = SAMPLES, ticks: int = 4) -> Canaries:
    rules = load_text("\n---\n".join(documents))
    assert not rules.refused
    engine = Engine(rules, {"wide": ["a"]})
    canaries = Canaries(lambda: engine, lambda _: samples)
    for _ in range(ticks):
        assert list(canaries.tick(NOW)) == []
    assert [state.matches for state in engine.states() if state.kind == "rule"] == [0] * len(
        engine.rules.rules
    )
    return canaries


def test_rules_are_asked_in_turn_and_nothing_is_counted() -> None:
    one, other = (RULE.format(number=number, word=word) for number, word in [(1, "a"), (2, "b")])

    canaries = asked(one, other)

    assert canaries.of("00000000-0000-4000-8000-000000000001") == Canary(NOW, True)
    assert canaries.of("00000000-0000-4000-8000-000000000002") == Canary(NOW, False)


def test_a_filter_that_hides_what_the_rule_must_find_is_seen() -> None:
    canaries = asked(RULE.format(number=1, word="a"), HIDES)

    assert canaries.of("00000000-0000-4000-8000-000000000001") == Canary(NOW, False)


@pytest.mark.parametrize(
    "samples", ["", "cases: [", SAMPLES.replace("kind: must match, e", "kind: near miss, e")]
)
def test_without_a_sample_there_is_no_canary(samples: str) -> None:
    canaries = asked(RULE.format(number=1, word="a"), samples=samples)

    assert canaries.of("00000000-0000-4000-8000-000000000001") is None


def test_lists_of_the_site_are_no_matter_of_samples() -> None:
    listed = RULE.format(number=1, word="a").replace("{f: a}", '{f|expand: "%wide%"}')

    assert asked(listed).of("00000000-0000-4000-8000-000000000001") is None


def test_a_rule_that_went_is_forgotten() -> None:
    engines = [Engine(load_text(RULE.format(number=number, word="a"))) for number in (1, 2)]
    canaries = Canaries(lambda: engines[0], lambda _: SAMPLES)
    list(canaries.tick(NOW))
    del engines[0]
    for _ in range(2):
        list(canaries.tick(NOW))

    assert canaries.of("00000000-0000-4000-8000-000000000001") is None
    assert canaries.of("00000000-0000-4000-8000-000000000002") == Canary(NOW, True)


def test_every_shipped_rule_without_lists_finds_its_canary() -> None:
    engine = Engine(load_folder(RULES_FOLDER))
    plain = [rule for rule in engine.rules.rules if not rule.needs]
    samples = {rule.id: sample_of(rule, samples_beside(rule)) for rule in plain}

    missed = [
        rule.title
        for rule in plain
        if samples[rule.id] and not any(engine.matches(rule, one) for one in samples[rule.id])
    ]

    assert missed == []
    assert sum(map(bool, samples.values())) > 60


def test_a_node_shows_the_last_canary_of_its_rules(tmp_path: Path) -> None:
    node = assembly.node_of(Settings(state_dir=str(tmp_path)))
    for _ in range(len(node.detectors[0].rules.rules)):  # type: ignore[attr-defined]
        assert node.detect([]) == []
    node.finish()

    states = [state for state in node.db.rules() if state.canary_at is not None]
    node.close()
    assert len(states) > 60
    assert all(state.canary_found for state in states)
