"""The rules that are shipped, read once for all nodes that a test process starts.

    from tests.shipped import shipped_are_read  # noqa: F401 – a fixture, in a conftest

A node keeps in its state what it read of rules, and finds it there when it starts again. The state
of a test is new: half of what its start takes went into the same 200 files. With this it finds what
an earlier node kept of them; a file that is not among them, or has changed, is read as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from detectors.sigma import compiled
from detectors.sigma.load import read_folder
from siem.ruleset import RULES_FOLDER


@pytest.fixture(scope="session", autouse=True)
def shipped_are_read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A state without a file of its own has what was kept of the rules that are shipped."""
    read = compiled._read

    @cache
    def shipped() -> Path:
        kept = tmp_path_factory.mktemp("shipped") / "rules.compiled"
        with pytest.MonkeyPatch.context() as before:
            before.setattr(compiled, "_read", read)
            read_folder(RULES_FOLDER, compiled=kept)
        return kept

    def own_or_shipped(path: Path) -> Mapping[bytes, compiled.FileRules]:
        return read(path) or read(shipped())

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compiled, "_read", own_or_shipped)
        yield
