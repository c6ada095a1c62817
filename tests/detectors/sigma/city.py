"""Short ways to make rules and events for the tests of the Sigma engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cityward.event import Event, LogSource, Record
from detectors.sigma.engine import Engine
from detectors.sigma.load import load_text
from detectors.sigma.rule import RuleSet

START = datetime(2026, 1, 5, 10, tzinfo=UTC)
TEST = LogSource(service="test")
HEAD = "title: T\nlogsource: {service: test}\nlevel: high\n"


def event(
    at_s: float = 0.0, /, logsource: LogSource = TEST, data: bytes = b"", **fields: Any
) -> Event:
    """An event some seconds after START; `source__ip` stands for `source.ip`."""
    named = {name.replace("__", "."): value for name, value in fields.items()}
    time = START + timedelta(seconds=at_s)
    return Event(time, logsource, named, Record(data, "test", 1, time))


def engine(text: str, placeholders: Mapping[str, Sequence[str]] | None = None) -> Engine:
    """An engine on documents that must all load."""
    rules = load_text(text)
    assert not rules.refused, [str(error) for error in rules.refused]
    return Engine(rules, placeholders)


def rule_of(detection: str) -> str:
    """A whole rule around a detection section, which is indented by two."""
    return f"{HEAD}detection:\n{detection}"


def reasons(rules: RuleSet) -> list[str]:
    """What was refused, each as `line: reason`."""
    return [f"{error.where.rpartition(':')[2]}: {error.what}" for error in rules.refused]
