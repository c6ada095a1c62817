"""Inventory: assets and zones; describes events, and gives rules their site lists."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from cityward import Asset, ConfigError, Event
from siem.config import Settings, Zone

ROLE_LISTS = {
    "ot_writer": "ot_writers",
    "iec104_master": "iec104_masters",
    "engineering_host": "engineering_hosts",
    "jump_host": "jump_hosts",
    "scanner": "scanners",
}
"""Role of an asset to the placeholder of rules that holds the addresses of all who have it."""

_ENDS = ("source", "destination")
_NAMES = ("phys.point", "phys.track", "host.name")
"""Fields that may name the affected asset, most telling first."""


class Inventory:
    """The devices and zones of one operator.

    Raises:
        ConfigError: a network or a location cannot be read.
    """

    def __init__(self, assets: Sequence[Asset], zones: Sequence[Zone]) -> None:
        self._zones = {zone.id: zone for zone in zones}
        self._networks = sorted(
            ((_network(text, zone), zone) for zone in zones for text in zone.networks),
            key=lambda pair: -pair[0].prefixlen,
        )
        self.use(assets)

    def use(self, assets: Sequence[Asset]) -> None:
        """Take other assets: a person has approved or corrected some."""
        self.assets = {asset.id: asset for asset in assets}
        self._by_name = {
            name.lower(): asset
            for asset in assets
            for name in (asset.id, asset.name, *asset.addresses)
            if name
        }
        self._end = lru_cache(maxsize=65_536)(self._describe_end)

    def find(self, name: str) -> Asset | None:
        """The asset with this id, name or address."""
        return self._by_name.get(name.lower())

    def describe(self, event: Event) -> dict[str, Any]:
        """Fields that the inventory adds: zone and asset of each end and of the affected asset."""
        fields = event.fields
        said: dict[str, Any] = {}
        for end in _ENDS:
            address = fields.get(f"{end}.ip") or fields.get(f"{end}.mac")
            if address is not None:
                said.update(self._end(end, address))
        affected = self._affected(fields)
        if affected is not None:
            said.update(self._end("asset", affected))
        return said

    def _affected(self, fields: Mapping[str, Any]) -> str | None:
        """What the event is about: a named device, else the end that is asked, if it is ours."""
        for name in (*_NAMES, "destination.ip", "source.ip"):
            value = fields.get(name)
            if isinstance(value, str) and value.lower() in self._by_name:
                return value
        return None

    def _describe_end(self, end: str, address: str) -> dict[str, Any]:
        asset = self.find(address)
        zone = self._zones.get(asset.zone) if asset and asset.zone else self._zone_of(address)
        said: dict[str, Any] = {}
        if zone is not None:
            said[f"cw.{end}.zone"] = zone.id
            said[f"cw.{end}.zone_type"] = zone.type
        purdue = asset.purdue if asset and asset.purdue is not None else zone and zone.purdue
        if purdue is not None:
            said[f"cw.{end}.purdue"] = purdue
        if asset is not None:
            said[f"cw.{end}.asset_id"] = asset.id
            if asset.site and end == "asset":
                said["cw.site"] = asset.site
        return said

    def _zone_of(self, address: str) -> Zone | None:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return None
        for network, zone in self._networks:
            if ip.version == network.version and ip in network:
                return zone
        return None

    def placeholders(self, lists: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
        """Values for the `%placeholders%` of rules; a list nobody gave is not there.

        `own_nets` holds the networks of all zones but the external ones, `<zone type>_nets` those
        of one kind (`control_nets`, `iot_nets`), the lists of `ROLE_LISTS` addresses of assets;
        what the settings give by name comes on top.
        """
        given: dict[str, tuple[str, ...]] = {}
        for role, name in ROLE_LISTS.items():
            holders = [asset for asset in self.assets.values() if role in asset.roles]
            if holders:
                given[name] = tuple(sorted(address for a in holders for address in a.addresses))
        inside = [
            network
            for zone in self._zones.values()
            if zone.type != "external"
            for network in zone.networks
        ]
        if inside:
            given["own_nets"] = tuple(inside)
        for zone in self._zones.values():
            if zone.networks:
                name = f"{zone.type}_nets"
                given[name] = (*given.get(name, ()), *zone.networks)
        given.update({name: tuple(values) for name, values in lists.items()})
        return given


def from_settings(settings: Settings) -> Inventory:
    """The inventory that the settings file holds."""
    return Inventory(settings.asset, settings.zone)


def _network(text: str, zone: Zone) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}", f"zone {zone.id}", "Write 192.0.2.0/24.") from error
