"""Refusals: who is asked too much of, and what of it is said in the audit trail.

Everybody may knock, so nothing here grows with how many do.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import datetime

KEYS_MAX = 10_000
SAME_S = 10.0
"""The same refusal of the same sender is written at most so often; those between are counted."""
LINES_MAX, LINES_S = 300, 60.0
"""Refusals that are written in so long, whatever they are; those beyond are counted."""

Audit = Callable[[str, str, str, datetime], None]
"""Keeps who did what of what, and when; see `siem.store.embedded.NodeDb.audit`."""


class Refusals:
    """Writes refusals into the audit trail, and counts those that repeat.

    Args:
        audit: The audit trail.
        clock: The hub's time.
        monotonic: The time that passes here.
    """

    def __init__(
        self,
        audit: Audit,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._audit = audit
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._written: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._counted: Counter[tuple[str, str]] = Counter()
        self._begun_s, self._lines, self._beyond = monotonic(), 0, 0

    def note(self, by: str, what: str, where: str) -> None:
        """Keep that somebody was refused."""
        key, now_s = (by, what), self._monotonic()
        with self._lock:
            if now_s - self._begun_s > LINES_S:
                self._begun_s, self._lines = now_s, 0
            if now_s - self._written.get(key, -SAME_S) < SAME_S:
                self._counted[key] += 1
                return
            if self._lines >= LINES_MAX:
                self._beyond += 1
                return
            self._lines += 1
            self._written[key] = now_s
            self._written.move_to_end(key)
            again = self._counted.pop(key, 0)
            beyond, self._beyond = self._beyond, 0
            while len(self._written) > KEYS_MAX:
                self._counted.pop(self._written.popitem(last=False)[0], None)
        more = f", and {again} more since the last" if again else ""
        more += f", and {beyond} of others" if beyond else ""
        self._audit(by, "exchange refused", f"{what} ({where}){more}", self._clock())


class Rate:
    """How much may be asked by each of many: so many a second, and so many at once.

    Args:
        per_s: Requests a second.
        burst: Requests at once.
        monotonic: The time that passes here.
    """

    def __init__(
        self, per_s: float, burst: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_s, self._burst = per_s, burst
        self._monotonic = monotonic
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, who: str) -> bool:
        """Whether one more may be asked; it is counted."""
        now_s = self._monotonic()
        left, since_s = self._left.pop(who, (self._burst, now_s))
        left = min(self._burst, left + (now_s - since_s) * self._per_s)
        is_allowed = left >= 1
        self._left[who] = (left - is_allowed, now_s)
        if len(self._left) > KEYS_MAX:
            self._left.popitem(last=False)
        return is_allowed
