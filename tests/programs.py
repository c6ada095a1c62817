"""Programs of the system that some tests need."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable

import pytest

PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))

PATIENCE_S = 180.0
"""How long a test waits for what has to come: many times what a quiet machine takes."""


def wait_until(is_so: Callable[[], object], why: str = "it never came about") -> None:
    """Wait until something is so."""
    until_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < until_s, why
        time.sleep(0.02)


def is_crowded(per_core: float = 4) -> bool:
    """Whether so many others compute that a time says nothing of what took it."""
    return os.getloadavg()[0] > per_core * (os.cpu_count() or 1)


def program(name: str) -> str:
    """Path of a program; the test is skipped where it is missing, never in CI."""
    found = shutil.which(name, path=PLACES)
    if found is None:
        why = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found
