"""The console of a node or hub as a process of its own, started again when it ends by itself.

It serves people and delivers to them, so a node without it would find and nobody would hear.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

LAST_ANSWERS_S = 3.0
"""The console may finish what it answers for so long."""
AGAIN_S, AGAIN_MAX_S = 1.0, 60.0
"""It is started again after so long; after twice as long each time it ends at once."""

log = logging.getLogger(__name__)


class ConsoleProcess:
    """The console; it ends with this process, however that ends.

    Args:
        file: The settings.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._told = threading.Event()
        self._starting = threading.Lock()
        self._process = self._started()
        threading.Thread(target=self._watch, name="console", daemon=True).start()

    def tell_to_stop(self) -> None:
        """Ask it to end; it is not started again."""
        with self._starting:
            self._told.set()
            self._process.terminate()

    def wait(self) -> None:
        """Wait for its end: a download under way must not keep it, nor its fault our good end."""
        try:
            self._process.wait(timeout=LAST_ANSWERS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "siem.cli", "serve", "--with-parent"]
        # Its own session: Ctrl+C comes to us, and we end it after the last batch.
        return subprocess.Popen(
            [*words, "--config", str(self._file)], start_new_session=True, stdin=subprocess.PIPE
        )

    def _watch(self) -> None:
        again_s = AGAIN_S
        while True:
            began_s = time.monotonic()
            code = self._process.wait()
            if self._told.is_set():
                return
            if time.monotonic() - began_s > AGAIN_MAX_S:
                again_s = AGAIN_S
            log.error("The console ended with %d; it is started again in %d s.", code, again_s)
            if self._told.wait(again_s):
                return
            again_s = min(2 * again_s, AGAIN_MAX_S)
            with self._starting:
                if self._told.is_set():
                    return
                self._process = self._started()
