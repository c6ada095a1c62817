"""Programs of the system that some tests need."""

from __future__ import annotations

import os
import shutil

import pytest

PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def program(name: str) -> str:
    """Path of a program; the test is skipped where it is missing, never in CI."""
    found = shutil.which(name, path=PLACES)
    if found is None:
        why = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found
