"""Playbooks of an operator: those that ship, and those in the folders of the settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from cityward import ConfigError
from playbooks.model import Playbook
from playbooks.playbook import LIBRARY, Loaded, read_folders, specs
from playbooks.sign import PublicKey, read_key
from playbooks.source import Specs
from siem.config import Settings


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
