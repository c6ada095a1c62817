"""Actuators as the settings set them up; the secrets that they name are looked up here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from inspect import signature
from pathlib import Path
from typing import Any

from cityward import Actuator, CitywardError, ConfigError, plugin
from cityward.plugin import ActuatorSpec
from siem import evidence
from siem.config import SECRETS, Settings


def specs() -> dict[str, ActuatorSpec]:
    """What the installed actuators say of themselves, by name."""
    return {name: part.cityward_spec for name, part in plugin.load("actuators").items()}


def actuators_of(
    settings: Settings,
    environment: Mapping[str, str] = os.environ,
    *,
    tell: evidence.Tell | None = None,
    clock: Callable[[], datetime] | None = None,
) -> dict[str, Actuator]:
    """The actuators that the section `response.actuators` names.

    Args:
        settings: What the file says.
        environment: Where secrets are.
        tell: Writes an entry of evidence on a finding (`siem.evidence.teller`).
        clock: Of the journal, by which effects end; None: each by the system's.

    Raises:
        ConfigError: one is not installed, is told something that it does not know, or its secret
            is not there.
    """
    parts = plugin.load("actuators")
    given = evidence.given(settings, tell)
    made: dict[str, Actuator] = {}
    for name, said in settings.response.actuators.items():
        where = f"response.actuators.{name}"
        if name not in parts:
            todo = f"Installed are: {', '.join(sorted(parts)) or 'none'}."
            raise ConfigError(f"no actuator is called {name!r}", where, todo)
        try:
            own = {**given.get(name, {}), **_clock(parts[name], clock)}
            made[name] = parts[name](**_told(said, where, environment), **own)
        except CitywardError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error), where, "See the page of the actuator.") from error
    return made


def _clock(part: Any, clock: Callable[[], datetime] | None) -> dict[str, Any]:
    """The journal's clock for what acts for a time: that of the system may be set meanwhile."""
    acts = part.cityward_spec.action_class != "A0"
    return {"clock": clock} if clock and acts and "clock" in signature(part).parameters else {}


def _told(said: Mapping[str, Any], where: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Its arguments, with `…_env` and, for secrets, `…_file` looked up."""
    told: dict[str, Any] = {}
    for key, value in said.items():
        name, _, kind = key.rpartition("_")
        is_secret = name.rpartition("_")[2] in SECRETS
        if kind == "env" and is_secret:
            if not environment.get(str(value)):
                raise ConfigError(f"{value} is not set", f"{where}.{key}", "Set the variable.")
            told[name] = environment[str(value)]
        elif kind == "file" and is_secret:
            told[name] = _read(Path(str(value)).expanduser(), f"{where}.{key}")
        else:
            told[key] = value
    return told


def _read(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", where, "Check the file.") from error
