"""Hyperscan's databases, kept from one start to the next: to make one takes seconds.

A file that another person could have written is not believed: what is in it is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from detectors.sigma import kept

try:
    import hyperscan
except ImportError:  # no wheel for this platform: words are looked for one by one
    hyperscan = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

KEPT_FROM = 30
"""A database of fewer words is sooner made than read."""
KEPT_MOST = 500
"""The last used ones stay: each changed list of words is another database."""


class Databases:
    """Makes databases of words.

    Args:
        folder: Where they are kept, ours alone; None keeps none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def of(self, words: Sequence[bytes], any_case: bool = False) -> Any:
        """The database that finds the number of each word; None if there is no Hyperscan.

        Args:
            words: The words.
            any_case: True if ASCII letters of either case are the same.
        """
        if hyperscan is None:
            return None
        path = self._path(words, any_case)
        if path is not None and (known := _read(path)) is not None:
            return known
        database = hyperscan.Database()
        flags = hyperscan.HS_FLAG_SINGLEMATCH | (hyperscan.HS_FLAG_CASELESS if any_case else 0)
        try:
            database.compile(
                expressions=words,
                ids=list(range(len(words))),
                flags=[flags] * len(words),
                literal=True,
            )
        except hyperscan.error as error:  # a processor that it does not know
            log.warning("Words are looked for one by one, Hyperscan says: %r.", error)
            return None
        if path is not None:
            _write(path, hyperscan.dumpb(database))
        return database

    def _path(self, words: Sequence[bytes], any_case: bool) -> Path | None:
        if self._folder is None or len(words) < KEPT_FROM:
            return None
        made_by = f"{_version()} {any_case}"
        digest = hashlib.blake2b(made_by.encode(), digest_size=16)
        digest.update(b"".join([len(word).to_bytes(4, "big") + word for word in words]))
        return self._folder / f"{digest.hexdigest()}.hs"


@cache
def _version() -> str:
    return version("hyperscan")


def _read(path: Path) -> Any:
    try:
        content = kept.read(path)
        if content is None:
            return None
        database = hyperscan.loadb(content, hyperscan.HS_MODE_BLOCK)
        database.scratch = hyperscan.Scratch(database)
        os.utime(path)  # what is used stays the longest
        return database
    except (OSError, hyperscan.error):
        return None


def _write(path: Path, content: bytes) -> None:
    """Keep a database; if that is not possible, the next start takes longer."""
    with contextlib.suppress(OSError):
        kept.write(path, content)
        every = sorted(path.parent.glob("*.hs"), key=lambda one: one.stat().st_mtime_ns)
        for old in every[:-KEPT_MOST]:
            old.unlink(missing_ok=True)
