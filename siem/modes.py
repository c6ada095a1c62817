"""What is going on, when and where: the mode of an event, from the calendar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from siem.config import Settings
from siem.store.protocol import ModeEntry

_ZONES = ("cw.asset.zone", "cw.destination.zone", "cw.source.zone")
_ASSETS = ("cw.asset.asset_id", "cw.destination.asset_id", "cw.source.asset_id")


class Modes:
    """The modes of a node; of several that hold, the one for the smallest part does.

    Assets are smaller than a zone, a zone than a site; of two alike the one that began last holds.
    """

    def __init__(self, usual: str, entries: Sequence[ModeEntry] = ()) -> None:
        self.usual = usual
        self.use(entries)

    def use(self, entries: Sequence[ModeEntry]) -> None:
        """Take other entries: a person has changed the calendar."""
        self.entries = sorted(
            entries, key=lambda one: (_rank(one), one.since, one.number), reverse=True
        )

    def at(self, fields: Mapping[str, Any], time: datetime) -> str:
        """The mode that holds at the time and the place of an event."""
        for one in self.entries:
            if one.since <= time < one.until and _covers(one, fields):
                return one.mode
        return self.usual


def of_settings(settings: Settings) -> list[ModeEntry]:
    """The entries of the settings file."""
    return [ModeEntry(**msgspec.structs.asdict(one)) for one in settings.calendar]


def _rank(entry: ModeEntry) -> int:
    return 3 if entry.assets else 2 if entry.zone else 1 if entry.site else 0


def _covers(entry: ModeEntry, fields: Mapping[str, Any]) -> bool:
    if entry.site and fields.get("cw.site") != entry.site:
        return False
    if entry.zone and all(fields.get(name) != entry.zone for name in _ZONES):
        return False
    return not entry.assets or any(fields.get(name) in entry.assets for name in _ASSETS)
