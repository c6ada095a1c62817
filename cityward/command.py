"""Command: one change to the world, and the verb that takes it back."""

from __future__ import annotations

from datetime import datetime

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
    until: datetime
