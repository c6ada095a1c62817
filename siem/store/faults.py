"""Named fault points: where the kill tests end the process, and where disks are full."""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

_NAME, _, _NTH = os.environ.get("CITYWARD_FAULT", "").partition(":")
_PASSED: Counter[str] = Counter()
FULL: Counter[str] = Counter()
"""At these points the disk is full for so many passages; `CITYWARD_FULL` is `name:passages,…`."""
for _one in filter(None, os.environ.get("CITYWARD_FULL", "").split(",")):
    FULL[_one.partition(":")[0]] = int(_one.partition(":")[2] or 1)


def fault(name: str) -> None:
    """End the process with SIGKILL if `CITYWARD_FAULT` is `name` or `name:nth`; else do nothing.

    Raises:
        OSError: the disk is full here, see `FULL`.
    """
    if FULL and FULL[name] > 0:
        FULL[name] -= 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"fault {name}")
    if _NAME and is_due(name):
        os.kill(os.getpid(), signal.SIGKILL)


def is_due(name: str) -> bool:
    """Whether the process ends at this passage; for what has to break something first."""
    if name != _NAME:
        return False
    _PASSED[name] += 1
    return _PASSED[name] == int(_NTH or 1)
