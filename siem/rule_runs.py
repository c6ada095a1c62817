"""Samples of rules, run when somebody asks, and remembered until the rule's file changes."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cityward.errors import CitywardError
from siem.console.protocol import Sample, Samples
from siem.store.protocol import RuleState

if TYPE_CHECKING:
    from detectors.sigma.rule import RuleSet

log = logging.getLogger(__name__)

KEPT = 500


class Runs:
    """Runs samples, one rule after the other."""

    def __init__(self, rules: Callable[[], RuleSet]) -> None:
        self._rules = rules
        self._known: OrderedDict[tuple[str, int, int], Samples] = OrderedDict()
        self._turn = threading.Lock()

    def of(self, rule: RuleState, *, run: bool) -> Samples | None:
        """What the samples of a rule came to; None if nobody has run them since it changed."""
        from detectors.sigma.samples import samples_file

        file = Path(rule.file.rpartition(":")[0] or rule.file)
        cases = samples_file(file)
        key = (rule.id, _changed_at(file), _changed_at(cases))
        if key in self._known:
            return self._known[key]
        if not run:
            return None
        with self._turn:
            found = self._known[key] = self._run(rule, file, cases)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return found

    def _run(self, rule: RuleState, file: Path, cases: Path) -> Samples:
        from detectors.sigma.samples import read_samples
        from siem import samples as runs

        if not cases.is_file():
            return Samples(cases.name, reason="No samples stand beside the rule.")
        try:
            rules = self._rules()
            one = next((each for each in rules.speaking() if each.id == rule.id), None)
            if one is None:
                return Samples(cases.name, reason="The rule cannot be loaded.")
            made = [
                Sample(each.name, each.kind, each.passed, each.problems)
                for each in runs.outcomes(one, rules, read_samples(cases))
            ]
        except CitywardError as error:
            return Samples(cases.name, reason=f"They cannot be read: {error.what}.")
        except Exception:  # a sample is a document of somebody; the page must still come
            log.exception("The samples of %s failed.", rule.id)
            return Samples(cases.name, reason="They failed; the log says why.")
        return Samples(cases.name, made)


def _changed_at(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0
