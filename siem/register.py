"""The inventory as people see and change it: of the settings, approved, or only seen.

The settings file wins: an asset that stands there is changed there. What is approved counts beside
it; what was only observed describes no event and gives no rule its list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from cityward import Asset, InputError
from siem.config import Settings
from siem.store.embedded import NodeDb
from siem.store.inventory import Kept, names_of
from siem.store.protocol import AssetRow, Conduit, Observed, Origin, ZoneRow


def known(settings: Settings, kept: Iterable[Kept]) -> list[Asset]:
    """Assets that count: those of the settings, and what is approved beside them."""
    told = {address.lower() for one in settings.asset for address in (one.id, *one.addresses)}
    approved = [
        msgspec.structs.replace(
            one.asset,
            addresses=tuple(a for a in _addresses(one) if a.lower() not in told),
        )
        for one in kept
        if one.state == "approved" and not one.merged_into and one.id.lower() not in told
    ]
    return [*settings.asset, *approved]


def _addresses(kept: Kept) -> Sequence[str]:
    """What an approved asset answers to; the ids that were merged into it among them."""
    return tuple(dict.fromkeys((*kept.asset.addresses, *kept.aliases)))


class Register:
    """All assets of a node in one list; fulfils `siem.store.protocol.Assets`."""

    def __init__(self, db: NodeDb, settings: Settings) -> None:
        self._db = db
        self._settings = settings

    # ---- Reading

    def assets(self) -> list[AssetRow]:
        """All assets by name or id; what was seen of one of the settings stands with it."""
        kept = {one.id: one for one in self._db.inventory.assets(merged=True)}
        found = self._db.inventory.open_findings()
        told = {
            address: asset.id
            for asset in self._settings.asset
            for address in (asset.id, *asset.addresses)
        }
        seen_of: dict[str, Observed] = {}
        own: list[Kept] = []
        for one in kept.values():
            owner = _owner(one, kept, told)
            if owner == one.id and owner not in told:
                own.append(one)
            if one.seen is not None:
                seen_of[owner] = _joined(seen_of.get(owner), one.seen, owner)
        made = [_row(one, seen_of.get(one.id), found) for one in own]
        for asset in self._settings.asset:
            count = sum(found.get(name, 0) for name in {asset.id, asset.name, *asset.addresses})
            seen = seen_of.get(asset.id)
            made.append(AssetRow(asset, "approved", "settings", seen, findings=count))
        return sorted(
            made, key=lambda row: ((row.asset.name or row.asset.id).lower(), row.asset.id)
        )

    def asset(self, name: str) -> AssetRow | None:
        """The asset with this id, alias, name or address."""
        rows = self.assets()
        exact = next((row for row in rows if row.asset.id == name), None)
        return exact or next((row for row in rows if name in names_of(row)), None)

    def conduits(self) -> Sequence[Conduit]:
        """Traffic between zones that was seen."""
        return self._db.inventory.conduits()

    def zones(self) -> Sequence[ZoneRow]:
        """Zones of the settings."""
        return [
            ZoneRow(one.id, one.type, one.purdue, tuple(one.networks))
            for one in self._settings.zone
        ]

    def learning(self) -> Mapping[str, int]:
        """Counters of the learning; `until` is there as long as nothing is news."""
        numbers = self._db.inventory.learning()
        if "since" in numbers and not numbers.get("over"):
            hours = self._settings.inventory.learning_hours
            numbers["until"] = numbers["since"] + int(hours * 3_600_000_000)
        return numbers

    # ---- Changing

    def approve(self, ids: Sequence[str], by: str, why: str, now: datetime, **said: object) -> int:
        """Approve assets, with what a person says of them."""
        self._refuse_settings(ids)
        return self._db.inventory.say(ids, "approved", by, why, now, **said)

    def correct(self, id: str, by: str, why: str, now: datetime, **said: object) -> int:
        """Change what is said of an asset; its state stays.

        Raises:
            InputError: there is no such asset, or it stands in the settings.
        """
        self._refuse_settings([id])
        row = self._one(id)
        return self._db.inventory.say([id], row.state, by, why, now, **said)

    def retire(self, ids: Sequence[str], by: str, why: str, now: datetime) -> int:
        """Say that assets are gone."""
        self._refuse_settings(ids)
        known = {row.asset.id for row in self.assets()}
        for one in ids:
            if one not in known:
                raise _not_there(one)
        return self._db.inventory.say(ids, "retired", by, why, now)

    def merge(self, id: str, other: str, by: str, why: str, now: datetime) -> int:
        """Make two one."""
        self._refuse_settings([id, other])
        return self._db.inventory.merge(id, other, by, why, now)

    def approve_conduits(self, ids: Sequence[str], by: str, why: str, now: datetime) -> int:
        """Approve traffic between zones."""
        return self._db.inventory.approve_conduits(ids, by, why, now)

    def put(self, assets: Iterable[Asset], by: str, why: str, now: datetime) -> int:
        """Take assets over from elsewhere as approved; what was seen at their addresses joins them.

        Returns:
            How many were not known so already.
        """
        store = self._db.inventory
        kept = {one.id: one for one in store.assets()}
        seen = {
            address: one.id
            for one in kept.values()
            if one.state == "observed" and one.record is None
            for address in _seen_at(one)
        }
        joined: set[str] = set()
        done = 0
        for asset in assets:
            said = _news(asset, kept.get(asset.id))
            if said is None:
                continue
            done += 1
            store.say([asset.id], "approved", by, why, now, **said)
            for other in {seen[one] for one in asset.addresses if one in seen}:
                if other != asset.id and other not in joined:
                    store.merge(asset.id, other, by, why, now)
                    joined.add(other)
        return done

    def _one(self, id: str) -> AssetRow:
        row = next((row for row in self.assets() if row.asset.id == id), None)
        if row is None:
            raise _not_there(id)
        return row

    def _refuse_settings(self, ids: Iterable[str]) -> None:
        told = {one.id for one in self._settings.asset}
        for id in ids:
            if id in told:
                raise InputError(
                    f"{id} stands in the settings file", f"asset {id}", "Change it there."
                )


def _not_there(id: str) -> InputError:
    return InputError(f"there is no asset {id[:80]!r}", "asset", "Look in the list of assets.")


def _news(asset: Asset, before: Kept | None) -> dict[str, Any] | None:
    """What somebody else says of an asset; None if it is approved and known so already."""
    said: dict[str, Any] = {
        name: value
        for name, value in msgspec.structs.asdict(asset).items()
        if name not in ("id", "last_confirmed") and value != getattr(Asset(id=asset.id), name)
    }
    if before is None:
        return said
    if "addresses" in said:
        said["addresses"] = tuple(dict.fromkeys((*asset.addresses, *before.asset.addresses)))
    is_known = all(getattr(before.asset, name) == value for name, value in said.items())
    return None if is_known and before.state == "approved" else said


def _owner(one: Kept, kept: Mapping[str, Kept], told: Mapping[str, str]) -> str:
    """Id of the asset that a row is part of: of the settings, merged into, or itself."""
    passed: set[str] = set()
    while one.merged_into in kept and one.id not in passed:
        passed.add(one.id)
        one = kept[one.merged_into]
    return next((told[name] for name in _seen_at(one) if name in told), one.id)


def _row(one: Kept, seen: Observed | None, found: Mapping[str, int]) -> AssetRow:
    origin: Origin = "person" if one.record is not None else "learnt"
    row = AssetRow(one.asset, one.state, origin, seen, one.aliases, one.history)
    return msgspec.structs.replace(row, findings=sum(found.get(n, 0) for n in names_of(row)))


def _seen_at(one: Kept) -> Sequence[str]:
    return (one.id, *(one.seen.addresses if one.seen else ()))


def _joined(before: Observed | None, seen: Observed, id: str) -> Observed:
    """What was seen at several addresses of one asset."""
    if before is None:
        return seen if seen.id == id else msgspec.structs.replace(seen, id=id)
    lists = ("addresses", "names", "speaks", "words", "peers", "writers")
    joined = {
        name: [*dict.fromkeys((*getattr(before, name), *getattr(seen, name)))] for name in lists
    }
    return msgspec.structs.replace(
        before,
        first_seen=min(before.first_seen, seen.first_seen),
        last_seen=max(before.last_seen, seen.last_seen),
        **joined,
    )
