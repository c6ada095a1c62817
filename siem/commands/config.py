"""`cityward config`: what is in force, and what may be set."""

from __future__ import annotations

import sys

import msgspec

from siem.commands.common import ConfigFile, settings_of
from siem.config import Settings

__all__ = ["ConfigFile", "schema", "settings_of", "show"]


def show(*, config: ConfigFile = None) -> int:
    """Print the settings in force, defaults included.

    Example: cityward config show

    Args:
        config: Settings file; otherwise the first one found counts.
    """
    settings, origin = settings_of(config)
    print(f"from {origin}", file=sys.stderr)
    print(msgspec.json.format(msgspec.json.encode(settings)).decode())
    return 0


def schema() -> int:
    """Print the JSON Schema of the settings file, for editors.

    Example: cityward config schema
    """
    found = msgspec.json.schema(Settings)
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
    return 0
