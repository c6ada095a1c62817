"""What was called wrong before a rule was tuned says nothing of it now."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from detectors.sigma.load import load_text
from siem import ruleset
from siem.config import Settings
from siem.console.rules import Noise, noise_of
from siem.store import embedded
from siem.store.embedded import NodeDb
from siem.store.protocol import Change
from siem.tuning import Tuner
from tests.siem.test_tuning import (
    FILTER,
    NOW,
    RULE,
    RULE_ID,
    attempts,
    db,
    findings,
    seen,
    settings,
    tuner,
)

__all__ = ["db", "settings", "tuner"]


def test_a_filter_tunes_its_rule_and_what_builds_on_it(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    before = ruleset.tuned_at(tuner.rules, db)
    text = FILTER.replace("SOURCE", "192.0.2.8")
    tuner.deploy(tuner.examine(text), "a.ana", "why", NOW)
    rules = Tuner(settings, db).rules
    (many,) = rules.correlations

    assert before == {}
    assert ruleset.tuned_at(rules, db) == {RULE_ID: NOW, many.id: NOW}


def test_what_builds_on_an_absence_is_tuned_with_what_that_builds_on(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    more = load_text(
        RULE
        + f"""---
title: Nothing after it
id: {RULE_ID[:-1]}2
level: low
cw_absence: {{trigger: {RULE_ID}, expected: {RULE_ID}, within: 1m, by: [source.ip]}}
---
title: Often nothing
id: {RULE_ID[:-1]}3
level: low
correlation:
  {{type: event_count, rules: {RULE_ID[:-1]}2, group-by: [source.ip], timespan: 1h,
   condition: {{gte: 2}}}}
"""
    )
    tuner.deploy(tuner.examine(RULE.replace("medium", "high")), "a.ana", "why", NOW)

    assert [error.what for error in more.refused] == []
    assert {*ruleset.tuned_at(more, db)} == {f"{RULE_ID[:-1]}{number}" for number in "123"}


def test_a_rule_that_is_taken_back_is_as_it_was(
    settings: Settings, db: NodeDb, tuner: Tuner
) -> None:
    number = tuner.deploy(tuner.examine(RULE.replace("medium", "high")), "a.ana", "why", NOW)
    tuned = ruleset.tuned_at(Tuner(settings, db).rules, db)
    tuner.revert(RULE_ID, 0, "a.ana", "why", NOW)

    assert number
    assert tuned[RULE_ID] == NOW
    assert ruleset.tuned_at(Tuner(settings, db).rules, db) == {}


def test_only_what_is_called_wrong_after_it_was_tuned_lowers_confidence_and_is_noise(
    settings: Settings, db: NodeDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "COUNTED_FOR_S", 0.0)
    tuned = {RULE_ID: NOW - timedelta(hours=1)}

    def found(minute: int, source: str) -> float:
        """Confidence of a new finding."""
        seen(settings, db, attempts(source, minute=minute))
        (one,) = findings(db, f"rule.id:{RULE_ID} AND source.ip:{source}")
        return float(one["finding.confidence"])

    def said(verdict: str) -> None:
        ids = [one["finding.id"] for one in findings(db, "finding.verdict:unknown")]
        db.change(ids, Change(verdict=verdict), "a.ana", NOW)

    for number in range(10):
        found(0, f"192.0.2.{number}")
    said("benign")
    db.tuned_at = {RULE_ID: tuned[RULE_ID].replace(year=2025)}
    all_count = found(1, "198.51.100.1")
    db.tuned_at = tuned
    after = found(2, "198.51.100.2")
    noise = [
        noise_of(db, NOW, one).get(RULE_ID, Noise()) for one in ({}, db.tuned_at, {"other": NOW})
    ]

    assert (all_count, after) == (0.25, 0.5)
    assert noise == [Noise(10, 10), Noise(), Noise(10, 10)]
    said("true_positive")
    assert noise_of(db, NOW, tuned)[RULE_ID] == Noise(0, 2)
    assert msgspec.structs.astuple(noise_of(db, NOW, {})[RULE_ID]) == (10, 12)
