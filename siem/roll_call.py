"""The roll call of rules: a node's log says which are refused, missing or gone, once a change."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from siem.output import visible

if TYPE_CHECKING:
    from detectors.sigma.engine import RuleState

log = logging.getLogger(__name__)

TOLD_MAX = 5
"""How many are named; the others are counted."""


class RollCall:
    """Remembers which rules counted, and says what has become otherwise.

    Args:
        folders: Where rules come from.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._there: dict[str, str] = {}
        self._refused: list[str] = []
        self._missing: list[str] = []

    def call(self, states: Iterable[RuleState]) -> None:
        """Take the rules as they have just been taken up."""
        there: dict[str, str] = {}
        refused: list[str] = []
        for one in states:
            if one.state == "refused":
                refused.append(visible(f"{one.file}: {one.reason}"))
            elif one.state == "on" and one.kind != "filter":
                there[one.id] = visible(f"{one.title} ({one.file})")
        missing = [str(one) for one in self._folders if not os.access(one, os.R_OK)]
        gone = [said for id, said in self._there.items() if id not in there]
        if missing and missing != self._missing:
            log.warning("No rules come from %s, which cannot be read.", _some(missing))
        if gone:
            log.warning("These rules do not count any more: %s.", _some(gone))
        if refused and refused != self._refused:
            said = "Of the rules %d can be asked, %d had to be refused: %s."
            log.warning(said, len(there), len(refused), _some(refused))
        elif not refused and (self._refused or there.keys() != self._there.keys()):
            log.info("Of the rules %d can be asked, none had to be refused.", len(there))
        self._there, self._refused, self._missing = there, refused, missing


def _some(said: Sequence[str]) -> str:
    more = [f"and {len(said) - TOLD_MAX} more"] if len(said) > TOLD_MAX else []
    return "; ".join([*said[:TOLD_MAX], *more])
