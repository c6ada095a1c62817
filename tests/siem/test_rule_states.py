"""What the node says of how a rule is doing is what the engine knows of it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from detectors.sigma import correlation as correlations
from siem.ruleset import states_of
from siem.store.embedded import NodeDb
from siem.store.protocol import RuleState
from tests.detectors.sigma.city import engine, event

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
RULES = """\
title: Base
name: base
id: 00000000-0000-4000-8000-000000000001
logsource: {service: test}
detection:
  s: {event.action: a}
  condition: s
---
title: Often
id: 00000000-0000-4000-8000-000000000002
correlation:
  type: event_count
  rules: base
  timespan: 1m
  group-by: [user.name]
  condition: {gte: 5}
"""


def test_what_a_correlation_loses_is_counted_kept_and_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(correlations, "GROUPS_MAX", 2)
    one = engine(RULES)
    seen = [event(at, event__action="a", user__name=str(at)) for at in range(4)]
    list(one.detect([*seen, event(5, event__action="a")]))

    db = NodeDb(tmp_path / "node.db", b"key")
    db.keep((), 0, rules=states_of(one, {}), now=NOW)
    _, often = db.rules()
    db.close()

    assert often.lost == {"ungrouped": 1, "evicted": 2}
    assert often.losses == [
        "1 event without a field by which it is grouped",
        "2 groups gone for want of room",
    ]
    assert often.troubles == ["2 groups gone for want of room"]


def test_what_was_kept_before_losses_were_is_read() -> None:
    before = {"id": "x", "title": "X", "level": "low", "state": "on", "faults": 3, "arriving": True}

    state = msgspec.json.decode(msgspec.json.encode(before), type=RuleState)

    assert state.lost == {}
    assert state.remarks == ["failed on 3 events, and was passed over there"]


def test_a_correlation_all_of_whose_events_have_no_group_is_in_trouble() -> None:
    state = RuleState("x", "X", "low", "on", arriving=True, evaluated=5, lost={"ungrouped": 5})

    assert state.troubles == ["5 events without a field by which it is grouped"]
    assert msgspec.structs.replace(state, evaluated=6).troubles == []
