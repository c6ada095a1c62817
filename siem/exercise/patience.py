"""Waits as long as something moves: a busy machine is slow, and that is no fault.

How long a city needs depends on what else its machine does, so no wait here has a fixed end. It
ends when nothing is lacking any more, or when nothing has moved for a long while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cityward import TransientError

STILL_S = 120.0
"""What goes on at all moves in less, also on a small part of one processor."""
LOOK_EVERY_S = 0.5
TELL_EVERY_S = 15.0


class Patience:
    """Waits for one thing after the other.

    Args:
        says: Is told now and then what is waited for.
        stop: Ends every wait.
        check: Raises when a process has ended, for which there is no sense in waiting.
        still_s: How long nothing may move.
    """

    def __init__(
        self,
        says: Callable[[str], None],
        stop: threading.Event,
        check: Callable[[], None],
        still_s: float = STILL_S,
    ) -> None:
        self._says = says
        self._stop = stop
        self._check = check
        self._still_s = still_s

    def until_nothing(self, lacks: Callable[[], str]) -> str:
        """Wait until nothing is lacking.

        Args:
            lacks: Says what is, with the numbers that move; a console that does not answer in time
                is asked again.

        Returns:
            What is lacking still, though nothing moves any more; empty: nothing, or it was stopped.

        Raises:
            TransientError: a process has ended, or a console does not answer at all.
        """
        lacking, moved_s = "no console answers", time.monotonic()
        told_s = moved_s
        while not self._stop.is_set():
            self._check()
            began_s = time.monotonic()
            now_lacking, fault = _asked(lacks, lacking)
            now_s = time.monotonic()
            if now_lacking != lacking:
                lacking, moved_s = now_lacking, now_s
            if not lacking:
                return ""
            if now_s - moved_s > self._still_s:
                if fault is not None:
                    raise fault
                return lacking
            if now_s - told_s >= TELL_EVERY_S:
                self._says(f"Waiting: {lacking} …")
                told_s = now_s
            # To look is work for the nodes, too: half of the time is for their own.
            self._stop.wait(max(LOOK_EVERY_S, now_s - began_s))
        return ""


def _asked(lacks: Callable[[], str], before: str) -> tuple[str, TransientError | None]:
    try:
        return lacks(), None
    except TransientError as error:
        return before, error
