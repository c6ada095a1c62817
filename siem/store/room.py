"""A full disk: how it is known, and what goes first to make room.

Order: old events go, by the retention and by the quota; then, when nothing can be written, the
oldest days of events; then the node waits, and so do its sources. Findings, inventory and audit
trail never go.
"""

from __future__ import annotations

import errno
from datetime import timedelta

DISK_LOW_BYTES = 1 << 30
"""Less room than this is said before it is too late."""
ROOM_BYTES = 128 * 1024 * 1024
"""Freed at once, so that not every batch has to ask."""
SPARED = timedelta(days=1)
"""Today's and yesterday's events never go: what fills the disk may be somebody else."""
_SQLITE_FULL = 13


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk is why something could not be written."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return getattr(error, "sqlite_errorcode", 0) == _SQLITE_FULL or is_full(error.__cause__)
