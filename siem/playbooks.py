"""Playbooks of an operator: those that ship, and those in the folders of the settings."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

from cityward import ConfigError
from playbooks.model import Playbook
from playbooks.playbook import LIBRARY, Loaded, files_of, read_folders, specs
from playbooks.sign import SUFFIXES, PublicKey, beside, read_key
from playbooks.source import Specs
from siem.config import Settings

log = logging.getLogger(__name__)

LOOK_S = 2.0
"""So often the files are looked at, at most."""


def playbooks_of(settings: Settings, now: datetime, known: Specs | None = None) -> Loaded:
    """Every playbook that may count here, with who signed it; what is refused says why.

    Args:
        settings: Name folders and keys.
        now: Whether a key counts.
        known: Actuators that steps may name; otherwise those that are installed.

    Raises:
        ConfigError: a file of the setting `keys` is no public key.
    """
    own = [Path(one).expanduser() for one in settings.response.folders]
    folders = [LIBRARY, *own] if settings.response.shipped else own
    return read_folders(folders, specs() if known is None else known, keys_of(settings), now)


class Library:
    """The playbooks of a node, read anew when a file of theirs has changed.

    What runs goes on as it was planned: a run keeps its playbook. A file that is refused counts no
    more, as if it had been taken away; with a key that cannot be read all stays as it was.

    Args:
        settings: Name folders and keys.
        clock: Whether a key counts.
    """

    def __init__(self, settings: Settings, clock: Callable[[], datetime]) -> None:
        self._settings = settings
        self._clock = clock
        self._turn = threading.Lock()
        self._loaded: Loaded | None = None
        self._stamp: tuple[object, ...] = ()
        self._looked_s = 0.0

    def loaded(self) -> Loaded:
        """All that counts, and what is refused.

        Raises:
            ConfigError: at first, a key cannot be read.
        """
        with self._turn:
            if self._loaded is None or time.monotonic() - self._looked_s >= LOOK_S:
                self._loaded = self._read(self._loaded)
                self._looked_s = time.monotonic()
            return self._loaded

    def _read(self, before: Loaded | None) -> Loaded:
        stamp = stamp_of(self._settings)
        if before is not None and stamp == self._stamp:
            return before
        # Taken before the files are read: what changes meanwhile is read once more.
        self._stamp = stamp
        try:
            found = playbooks_of(self._settings, self._clock())
        except ConfigError as error:
            if before is None:
                raise
            log.error("Playbooks stay as they were read before: %s: %s.", error.where, error.what)
            return before
        if before is not None:
            log.info("Playbooks were read anew: %d count.", len(found.playbooks))
        for one in found.refused:
            log.warning("A playbook is refused: %s: %s.", one.where, one.what)
        return found


def stamp_of(settings: Settings) -> tuple[object, ...]:
    """Another one if a playbook, a signature or a key of the operator has changed."""
    files = [Path(one).expanduser() for one in settings.response.keys]
    for folder in (Path(one).expanduser() for one in settings.response.folders):
        for path in files_of(folder):
            files += (path, *(beside(path, context) for context in SUFFIXES))
    return tuple((str(path), *_state(path)) for path in files)


def _state(path: Path) -> tuple[int, ...]:
    try:
        said = path.stat()
    except OSError:
        return ()
    return said.st_mtime_ns, said.st_size, said.st_ino


def named(playbooks: Iterable[Playbook], name: str) -> Playbook | None:
    """A playbook by id, name or file name."""
    names = ((one, (one.id, one.name.lower(), Path(one.file).stem)) for one in playbooks)
    return next((one for one, called in names if name.lower() in called), None)


def keys_of(settings: Settings) -> list[PublicKey]:
    """Keys whose signatures count here.

    Raises:
        ConfigError: a file is no public key, or two have one name.
    """
    keys = [read_key(Path(one).expanduser()) for one in settings.response.keys]
    names = Counter(one.name for one in keys)
    for name, count in names.items():
        if count > 1:
            # A run remembers the name; revoking one key must not leave it to the other.
            raise ConfigError(f"two keys are called {name}", "response.keys", "Rename one's file.")
    return keys
