"""Named fault points: where the kill tests end the process."""

from __future__ import annotations

import os
import signal
from collections import Counter

_NAME, _, _NTH = os.environ.get("CITYWARD_FAULT", "").partition(":")
_PASSED: Counter[str] = Counter()


def fault(name: str) -> None:
    """End the process with SIGKILL if `CITYWARD_FAULT` is `name` or `name:nth`; else do nothing."""
    if _NAME and is_due(name):
        os.kill(os.getpid(), signal.SIGKILL)


def is_due(name: str) -> bool:
    """Whether the process ends at this passage; for what has to break something first."""
    if name != _NAME:
        return False
    _PASSED[name] += 1
    return _PASSED[name] == int(_NTH or 1)
