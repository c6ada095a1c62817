"""`cityward config`: what is in force, and what may be set."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
from cyclopts import Parameter

from siem import config
from siem.config import Settings

ConfigFile = Annotated[str | None, Parameter(name=["--config", "-c"])]


def settings_of(named: str | None) -> tuple[Settings, str]:
    """The settings in force and where they come from."""
    path = config.find(named)
    return (config.load(path), str(path)) if path else (Settings(), "defaults")


def show(*, config: ConfigFile = None) -> int:
    """Print the settings in force, defaults included.

    Args:
        config: Settings file; otherwise the first one found counts.
    """
    settings, origin = settings_of(config)
    print(f"from {origin}", file=sys.stderr)
    print(msgspec.json.format(msgspec.json.encode(settings)).decode())
    return 0


def schema() -> int:
    """Print the JSON Schema of the settings file, for editors."""
    found = msgspec.json.schema(Settings)
    print(msgspec.json.format(msgspec.json.encode(found)).decode())
    return 0
