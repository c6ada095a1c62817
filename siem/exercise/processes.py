"""Processes of the exercise: none outlives it, and all their memory is counted."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""Linux, prctl(2)."""
SAMPLE_S = 0.5


def die_with(parent: int) -> Callable[[], None]:
    """What a child does before it becomes a program: ask to be ended when its parent is."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def kill(pid: int) -> None:
    """End a process at once, if it is there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


class Memory:
    """Watches how much memory this process and all below it hold together."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        """Highest sum of resident memory that was seen."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Look once more and end."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        done = False
        while not done:
            done = self._stop.wait(SAMPLE_S)
            pids = (os.getpid(), *below(os.getpid()))
            self.peak_mb = max(self.peak_mb, sum(map(_rss_mb, pids)))


def below(pid: int) -> Iterator[int]:
    """All processes that a process started, and those that these started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for task in tasks:
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            yield child
            yield from below(child)


def cpu_s(pid: int) -> float:
    """Seconds of a processor that a process has had; 0.0: it is not there."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    user, system = words[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _rss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    found = next((line for line in lines if line.startswith("VmRSS:")), "VmRSS: 0 kB")
    return int(found.split()[1]) / 1024
