"""One capture in depth: scapy and tshark dissect it, each in a process of its own.

Dissectors read what an attacker sent, so they are never in our process: each is a program that is
started for one capture, with limits on memory, time and files, without a network, and with nothing
of our environment. One that dies takes nothing with it: the frame at which it died is said, and it
is started again behind it. Neither is needed; what is missing is said.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

HERE = Path(__file__).parent
WORKERS = {"scapy": "scapy_worker.py", "tshark": "pyshark_worker.py"}
"""Name of a dissector, to the program that is started."""
MISSING = 3
"""Exit code of a worker whose library or program is not there."""
LINE_MAX = 1 << 20
ENDS_S = 5.0
"""Between its last word and its end."""
CONFINED = str(HERE / "confined.py")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}


class Limits(msgspec.Struct, frozen=True):
    """What a worker may use."""

    memory_bytes: int = 2 << 30
    """Address space, of which much is only reserved."""
    cpu_s: int = 30
    wall_s: float = 60.0
    """For all starts together."""
    frames: int = 2_000
    """A capture of more is dissected so far."""
    bytes_out: int = 32 << 20
    """Of all its lines."""
    starts: int = 4
    """It is started so often; what is behind the last death stays as it is."""


class Dissection(NamedTuple):
    """What a dissector made of a capture."""

    tool: str
    frames: int
    """Dissected; 0 if the tool is missing."""
    deaths: tuple[int, ...]
    """Frames at which its process died."""
    notes: tuple[str, ...]
    path: Path | None
    """Its lines, JSON; None: there are none."""


LIMITS = Limits()


def dissect(
    capture: Path, *, tools: Sequence[str] = tuple(WORKERS), limits: Limits = LIMITS
) -> list[Dissection]:
    """Dissect a capture by every tool; their lines are written beside it.

    Args:
        capture: A pcap file that does not change.
        tools: Of `WORKERS`.
        limits: Of each of them.
    """
    return [_Worker(capture, tool, limits).run() for tool in tools]


class _Worker:
    """One tool on one capture, through all its deaths."""

    def __init__(self, capture: Path, tool: str, limits: Limits) -> None:
        self.capture, self.tool, self.limits = capture, tool, limits
        self.until = time.monotonic() + limits.wall_s
        self.last, self.frames, self.size = 0, 0, 0
        self.deaths: list[int] = []
        self.notes: list[str] = []
        self.is_over = False

    def run(self) -> Dissection:
        path = self.capture.with_suffix(f".{self.tool}.jsonl")
        unfinished = path.with_suffix(".part")
        unfinished.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(unfinished, flags, 0o600), "wb") as file:
            for _ in range(self.limits.starts):
                self._start(file.write)
                if self.is_over:
                    break
            else:
                self.notes.append(f"given up behind frame {self.last}: it died too often")
        if not self.frames:
            unfinished.unlink()
            return Dissection(self.tool, 0, tuple(self.deaths), tuple(self.notes), None)
        unfinished.rename(path)
        return Dissection(self.tool, self.frames, tuple(self.deaths), tuple(self.notes), path)

    def _start(self, write: Callable[[bytes], Any]) -> None:
        """One life of the worker."""
        own = self.limits
        limits = [str(own.memory_bytes), str(own.cpu_s), str(own.bytes_out)]
        words = [str(self.capture), str(self.last), str(own.frames)]
        process = subprocess.Popen(
            [sys.executable, "-I", CONFINED, *limits, str(HERE / WORKERS[self.tool]), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        try:
            for line in self._lines(process):
                self._take(line, write)
                if self.is_over:
                    break
            if not self.is_over:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(ENDS_S)
        finally:
            # Whatever it started goes with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if self.is_over:
            return
        if code == MISSING:
            self.notes.append(f"{self.tool} is not installed")
            self.is_over = True
        else:
            self.last += 1
            self.deaths.append(self.last)
            said = {"frame": self.last, "fault": f"the worker died: {_why(code)}"}
            write(json.dumps(said).encode() + b"\n")

    def _lines(self, process: subprocess.Popen[bytes]) -> Iterator[bytes]:
        """Lines of a worker, until it ends or its time is over."""
        assert process.stdout is not None
        fd, rest = process.stdout.fileno(), b""
        with selectors.DefaultSelector() as waiting:
            waiting.register(fd, selectors.EVENT_READ)
            while True:
                left = self.until - time.monotonic()
                if left <= 0 or not waiting.select(left):
                    self.notes.append(f"its time was over behind frame {self.last}")
                    self.is_over = True
                    return
                data = os.read(fd, 1 << 16)
                if not data:
                    return
                self.size += len(data)
                if self.size > self.limits.bytes_out or len(rest) > LINE_MAX:
                    self.notes.append(f"it said too much behind frame {self.last}")
                    self.is_over = True
                    return
                *lines, rest = (rest + data).split(b"\n")
                yield from lines

    def _take(self, line: bytes, write: Callable[[bytes], Any]) -> None:
        try:
            said = json.loads(line)
            if "end" in said:
                self.is_over = True
            elif "isolated" in said:
                if not said["isolated"] and not self.notes:
                    self.notes.append("it could not be parted from the network")
            else:
                self.last = max(self.last + 1, int(said["frame"]))
                self.frames += 1
                write(line + b"\n")
        except (ValueError, TypeError, KeyError, RecursionError):
            self.notes.append(f"it said no JSON behind frame {self.last}")
            self.is_over = True


def _why(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
