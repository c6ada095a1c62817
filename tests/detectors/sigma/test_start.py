"""What is made when an engine starts, and what it need not make again."""

from __future__ import annotations

from pathlib import Path

from cityward.event import LogSource
from detectors.sigma.databases import KEPT_FROM
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_text
from tests.detectors.sigma.city import event

RULE = """title: Rule {number}
logsource: {{category: {category}}}
detection:
  s: {{f|contains: word{number}}}
  k: [key{number}]
  condition: s or k
"""


def rules(number: int) -> str:
    return "---\n".join(RULE.format(number=one, category="test") for one in range(number))


def test_a_second_start_finds_the_databases_of_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        engine = Engine(load_text(rules(10 * KEPT_FROM)), databases=tmp_path)
        engine.prepare()

        assert len([*engine.detect([event(0, LogSource("test"), f="a word7 b", g="key3")])]) == 2
        assert len([*tmp_path.glob("*.hs")]) == 2


def test_rules_of_a_log_source_stand_in_the_order_they_were_loaded() -> None:
    text = [
        RULE.format(number=number, category=category)
        for number, category in enumerate(["registry_event", "registry_set", "other"] * 2)
    ]
    engine = Engine(load_text("---\n".join(text)))

    routed = engine._routed(LogSource(category="registry_set"))

    assert [one.rule.title for one in routed] == [f"Rule {number}" for number in (0, 1, 3, 4)]
