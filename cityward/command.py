"""Command: one change to the world, and the verb that takes it back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec


class Target(msgspec.Struct, frozen=True):
    """What a command acts on.

    References:
        OpenC2 Language Specification 1.0, section 3.4.1 (target types).
    """

    type: str
    value: str


class Command(msgspec.Struct, frozen=True):
    """One OpenC2 verb on one target, with the verb that undoes it."""

    verb: str
    target: Target
    undo: str
    """Verb that takes it back; empty for what needs no taking back (a mail, a ticket)."""
    until: datetime
    args: Mapping[str, Any] = {}
    key: str = ""
    """Names this effect, once and for all: the same key is the same effect."""
    token: int = 0
    """Of the runner that gives it; an actuator's runner refuses one lower than it has seen."""
    prior: Mapping[str, Any] = {}
    """State found before, which an undo restores."""


class State(msgspec.Struct, frozen=True):
    """What an actuator sees of a target in the world."""

    is_applied: bool
    until: datetime | None = None
    """When the device forgets it by itself."""
    found: Mapping[str, Any] = {}
    """Enough to restore it, in the actuator's own words."""
    is_known: bool = True
    """False: the device cannot be asked, and this process has not told it."""
