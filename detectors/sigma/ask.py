"""What rules ask of a field, and what holds of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from time import perf_counter_ns
from typing import Any

from detectors.sigma.matchers import Comparison, Like, Number, Reference
from detectors.sigma.texts import Text

log = logging.getLogger(__name__)

SAMPLED = 8
"""Of so many tests one is timed."""


class Ask:
    """One thing that rules ask of a field: whether any of some comparisons holds.

    Equal ones of different rules are one object, so that what holds is a set of objects.
    """

    __slots__ = ("__weakref__", "_count", "comparisons", "failed", "field", "others", "spent_ns")

    def __init__(self, field: str | None, comparisons: frozenset[Comparison]) -> None:
        self.field = field
        self.comparisons = comparisons
        self.failed = Failed()
        self.others = {one.field for one in comparisons if isinstance(one, Reference)}
        """Fields with which it compares: then a value alone says nothing."""
        self.spent_ns = 0
        """Time that its tests took: one in `SAMPLED` is timed."""
        self._count = 0

    def put(self, test: Callable[[Any], bool], values: Iterable[Any]) -> object:
        """Itself if it holds on one of the values, its failure if it fails, otherwise None."""
        self._count += 1
        if self._count % SAMPLED:
            return self._put(test, values)
        start_ns = perf_counter_ns()
        said = self._put(test, values)
        self.spent_ns += SAMPLED * (perf_counter_ns() - start_ns)
        return said

    def _put(self, test: Callable[[Any], bool], values: Iterable[Any]) -> object:
        try:
            for value in values:
                if test(value):
                    return self
        except Exception:  # what fails must not silence the others
            if not self.failed.is_told:
                self.failed.is_told = True
                log.exception("What rules ask of %s fails on a value.", self.field or "keywords")
            return self.failed
        return None


class Failed:
    """Stands among what holds for an `Ask` that raised an error."""

    is_told = False


def is_look_up(ask: Ask) -> bool:
    """True if tables alone decide it."""
    return all(
        (isinstance(one, Like) and not one.cased and _is_whole(one.text))
        or (isinstance(one, Number) and one.how == "eq" and not one.part)
        for one in ask.comparisons
    )


def _is_whole(text: Text) -> bool:
    return not text or (len(text) == 1 and isinstance(text[0], str))


Held = frozenset[object]
"""Every `Ask` that holds, and the `Failed` of those that failed."""
NOTHING: Held = frozenset()
