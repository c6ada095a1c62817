"""The library of rules that comes with cityward: all operators share it, whatever they add."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

from siem.ruleset import NODE_RULES

if TYPE_CHECKING:
    from detectors.sigma.rule import RuleSet
    from siem.literals import Literals


@cache
def shipped() -> RuleSet:
    """Rules, correlations, absences and filters; read once, in a second or two."""
    from detectors.sigma.load import load_folder

    return load_folder(*NODE_RULES)


@cache
def shipped_ids() -> frozenset[str]:
    """Ids of all of them."""
    return frozenset(one.id for one in (*shipped().speaking(), *shipped().filters))


@lru_cache(maxsize=512)
def words_of(rule: str) -> Literals:
    """What one of them says itself; of any other nothing."""
    from detectors.sigma.rule import RuleSet
    from siem.literals import Literals
    from siem.samples import alone

    one = next((each for each in shipped().speaking() if each.id == rule), None)
    return Literals(RuleSet() if one is None else alone(one, shipped()))
