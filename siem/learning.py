"""What a node learns of its assets by listening: who is there, who talks with whom, who commands.

Nothing is asked and nothing is sent. The hot path is one look-up an event: what was seen before
costs no more than that. What is seen for the first time becomes an event of its own, beside the one
that showed it and in the same batch, so both are durable or neither; the learner's memory follows
with the checkpoint, and after a crash the batches behind it teach it the same again.

References:
    IEC 62443-2-1, asset inventory; IEC 62443-3-2, zones and conduits.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from cityward import Event, LogSource, Record
from siem.assets import Inventory
from siem.store.inventory import Kept
from siem.store.protocol import Conduit, Learnt, Observed
from siem.store.query import from_micros, micros

SOURCE = "inventory"
"""Source of the events that the learner makes; their place says what was new."""
CHANGE = LogSource(category="inventory_change", product="cityward", service="inventory")

LINKS_MOST = 65_536
"""Combinations that are remembered as seen; then the memory begins anew, which costs no event."""
CONDUITS_MOST = 5_000
WRITERS_MOST = 256
LIST_MOST = 64
"""Peers, protocols, words and names that are kept of one asset."""
TEXT_MOST = 200
EPHEMERAL = 49_152
"""First port that means nothing by itself (RFC 6335, section 6)."""

NAMING = frozenset(
    (
        *("arp", "bacnet", "cdp", "cip", "dhcp", "dhcpv6", "enip", "llmnr", "lldp", "mdns"),
        *("modbus", "nbns", "netbios", "opcua", "profinet", "profinet_dcp", "s7comm", "snmp"),
        *("ssdp", "umas"),
    )
)
"""Protocols in which a device says who it is; elsewhere `host.name` names who wrote a log."""
_LINK_LAYER = frozenset(("arp", "dhcp", "lldp"))
"""Protocols whose sender's MAC address is its own, not that of a router on the way."""
_SELF = {
    "vendor": ("vendor_name", "vendor", "manufacturer", "manufacturer_name"),
    "model": ("product_name", "model_name", "model", "product_code", "device_type", "order_code"),
    "firmware": ("revision", "firmware", "firmware_revision", "software_version", "version"),
}
"""What an asset is said to be, and where `cw.vendor` of an identity says it."""
_COUNTS = ("external", "unanswered", "full")
"""Why something that was seen is not kept."""


class _Link:
    """One combination that was seen before, with what its next sight brings up to date."""

    __slots__ = ("is_touched", "records", "time")

    def __init__(self, records: Sequence[Observed | Conduit], time: datetime) -> None:
        self.records = records
        self.time = time
        self.is_touched = True


class Learner:
    """Knows what was seen, and says what is new.

    Args:
        inventory: What people and settings say; assets in it are no news.
        hours: So long after the first event nothing is news (`learning_hours`).
        most: Observed assets that are kept; a scan must not fill the memory.
        has_zones: Zones are declared, so what lies outside of them is not ours.
    """

    def __init__(
        self,
        inventory: Inventory,
        *,
        hours: float = 24.0,
        most: int = 20_000,
        has_zones: bool = False,
    ) -> None:
        self.inventory = inventory
        self.hours = timedelta(hours=hours)
        self.most = most
        self.has_zones = has_zones
        self.since: datetime | None = None
        self.is_over = not hours
        self.refused: Counter[str] = Counter()
        self._assets: dict[str, Observed] = {}
        self._conduits: dict[str, Conduit] = {}
        self._ids: dict[str, str] = {}
        self._links: dict[tuple[Any, ...], _Link] = {}
        self._touched: list[_Link] = []
        self._changed: dict[str, Observed | Conduit] = {}
        self._own: dict[str, bool] = {}
        self._is_counted = False

    def load(
        self, assets: Iterable[Kept], conduits: Iterable[Conduit], numbers: Mapping[str, int]
    ) -> None:
        """Take up what is kept; after people changed it, what was learnt since stays."""
        for one in assets:
            id = one.merged_into or one.id
            for address in (one.id, *one.aliases, *one.asset.addresses, *_addresses(one)):
                known = self.inventory.find(address)
                self._ids[address] = known.id if known else id
            if one.merged_into:
                self._assets.pop(one.id, None)
            elif one.seen is not None:
                self._assets.setdefault(one.id, one.seen)
        for conduit in conduits:
            self._conduits.setdefault(conduit.id, conduit)
        if self.since is None and "since" in numbers:
            self.since = from_micros(numbers["since"])
        self.is_over = self.is_over or bool(numbers.get("over"))
        for name in _COUNTS:
            self.refused[name] = max(self.refused[name], numbers.get(name, 0))
        self._links.clear()

    @property
    def until(self) -> datetime | None:
        """End of the learning period; None: it is over, or has not begun."""
        return None if self.is_over or self.since is None else self.since + self.hours

    # ---- The hot path

    def learn(self, events: Sequence[Event], now: datetime, *, again: bool = False) -> list[Event]:
        """Learn from a batch; what is new in it, as events.

        Args:
            events: As the node described them.
            now: The node's time; it says whether the learning period is over.
            again: They come from the store, and what was new in them is there already.
        """
        links, touched = self._links, self._touched
        news: list[Event] = []
        for event in events:
            get = event.fields.get
            key = (
                get("source.ip") or get("source.mac"),
                get("destination.ip") or get("destination.mac"),
                get("network.protocol"),
                get("destination.port"),
                get("event.action"),
                get("event.outcome"),
                get("ot.is_command"),
                get("host.name"),
            )
            try:
                link = links.get(key)
            except TypeError:  # a field from outside that cannot be a key
                continue
            if link is None:
                news += self._meet(event, key, now)
            else:
                link.time = event.time
                if not link.is_touched:
                    link.is_touched = True
                    touched.append(link)
        if events and self.since is None:
            self.since, self._is_counted = now, True
        if again:
            self.is_over = self.is_over or any(
                one.fields.get("event.action") == "learning_ended" for one in events
            )
            return []
        if self.is_over:
            return news
        return [self._end(now)] if self.since and now >= self.since + self.hours and events else []

    def changes(self) -> Learnt | None:
        """What is new or was seen again since the last call; None: nothing."""
        for link in self._touched:
            link.is_touched = False
            for record in link.records:
                record.last_seen = max(record.last_seen, link.time)
                self._changed[record.id] = record
        self._touched.clear()
        if not self._changed and not self._is_counted:
            return None
        changed, self._changed, self._is_counted = [*self._changed.values()], {}, False
        numbers = {**self.refused, "over": int(self.is_over)}
        if self.since is not None:
            numbers["since"] = micros(self.since)
        return Learnt(
            [one for one in changed if isinstance(one, Observed)],
            [one for one in changed if isinstance(one, Conduit)],
            numbers,
        )

    # ---- What was not seen before

    def _meet(self, event: Event, key: tuple[Any, ...], now: datetime) -> Iterator[Event]:
        """Learn from a combination that is new; remember it, unless the device says who it is."""
        fields = event.fields
        if event.logsource.category == CHANGE.category or event.is_malformed:
            return
        source, destination = _text(key[0]), _text(key[1])
        # What a filter let pass has not been answered yet.
        is_answered = event.logsource.category != "firewall" and _is_answered(fields)
        heard, is_new = self._asset(source, "source", event)
        if heard is not None:
            if is_new:
                yield self._new_asset(heard, event, "source", destination, now)
            _describe(heard, fields, "client", destination)
        asked, is_new = self._asset(destination, "destination", event, must_answer=not is_answered)
        if asked is not None:
            if is_new:
                yield self._new_asset(asked, event, "destination", source, now)
            _describe(asked, fields, "server", source)
        conduit, is_new = self._conduit(event) if is_answered else (None, False)
        if conduit is not None and is_new:
            yield self._new_conduit(conduit, event, now)
        if asked is not None and fields.get("ot.is_command") is True and _is_room(asked, source):
            asked.writers.append(source)
            yield self._new_writer(asked, event, source, now)
        if self._names(event, heard, asked) or _is_long(key):
            return
        if len(self._links) >= LINKS_MOST:
            self._links.clear()
        records = tuple(one for one in (heard, asked, conduit) if one is not None)
        link = self._links[key] = _Link(records, event.time)
        self._touched.append(link)

    def _refuse(self, why: str) -> None:
        self.refused[why] += 1
        self._is_counted = True

    def _asset(
        self, address: str, end: str, event: Event, *, must_answer: bool = False
    ) -> tuple[Observed | None, bool]:
        """What is kept of the asset at an address, and whether it is new and nobody's yet."""
        id = self._ids.get(address)
        known = None
        if id is None:
            if not address:
                return None, False
            known = self.inventory.find(address)
            if known is None and not self._is_ours(address, end, event.fields):
                self._refuse("external")
                return None, False
            id = known.id if known else address[:TEXT_MOST]
        found, is_new = self._assets.get(id), False
        if found is None:
            if must_answer or len(self._assets) >= self.most:
                self._refuse("unanswered" if must_answer else "full")
                return None, False
            zone = event.fields.get(f"cw.{end}.zone", "")
            found = Observed(id, event.time, event.time, [address], zone=zone)
            self._assets[id] = found
            is_new = known is None
        self._ids[address] = id
        _add(found.addresses, address)
        found.first_seen = min(found.first_seen, event.time)
        self._changed[found.id] = found
        return found, is_new

    def _is_ours(self, address: str, end: str, fields: Mapping[str, Any]) -> bool:
        """An address of a device in a zone of ours; without zones, one that is not public."""
        kind = fields.get(f"cw.{end}.zone_type", "")
        is_outside = kind == "external" or (self.has_zones and not kind)
        if is_outside and not _is_mac(address):
            return False
        found = self._own.get(address)
        if found is None:
            if len(self._own) >= LINKS_MOST:
                self._own.clear()
            found = self._own[address] = _is_device(address, is_zoned=bool(kind))
        return found

    def _conduit(self, event: Event) -> tuple[Conduit | None, bool]:
        """The conduit that traffic between two zones used, and whether it is new."""
        fields = event.fields
        source = fields.get("cw.source.zone", "") or "external"
        destination = fields.get("cw.destination.zone", "") or "external"
        if source == destination or not self.has_zones:
            return None, False
        protocol = fields.get("network.protocol") or fields.get("network.transport") or "ip"
        port = fields.get("destination.port") or 0
        if not fields.get("network.protocol") and port >= EPHEMERAL:
            port = 0
        id = f"{source}>{destination}/{str(protocol)[:TEXT_MOST]}/{port}"
        found = self._conduits.get(id)
        is_new = found is None
        if found is None:
            if len(self._conduits) >= CONDUITS_MOST:
                self._refuse("full")
                return None, False
            found = Conduit(
                id, source, destination, str(protocol)[:TEXT_MOST], port, event.time, event.time
            )
            self._conduits[id] = found
        found.first_seen = min(found.first_seen, event.time)
        self._changed[id] = found
        return found, is_new

    def _names(self, event: Event, heard: Observed | None, asked: Observed | None) -> bool:
        """Take the names that a device gives itself; True if the event has any."""
        fields = event.fields
        protocol = fields.get("network.protocol")
        if protocol not in NAMING:
            return False
        record = asked if fields.get("ot.direction") == "response" else heard
        macs = [_dashed(one) for one in _texts(fields.get("host.mac"))]
        named = [*_texts(fields.get("host.ip")), *macs]
        if named:
            # A server speaks of its client: it is the client that has the name.
            record = next((self._assets.get(self._ids.get(one, "")) for one in named), None)
        name = fields.get("host.name") or fields.get("host.hostname")
        said = fields.get("cw.vendor")
        if isinstance(said, dict):
            name = name or said.get("name_of_station")
        firmware = fields.get("ot.firmware.version")
        is_said = isinstance(said, dict) and any(
            key in said for keys in _SELF.values() for key in keys
        )
        if record is None or not (name or firmware or is_said or protocol in _LINK_LAYER):
            return False
        _add(record.names, name)
        if protocol in _LINK_LAYER and record is heard:
            macs.append(_text(fields.get("source.mac")))
        for mac in macs:
            is_room = len(record.addresses) < LIST_MOST  # a forger changes its own with each ask
            if is_room and mac not in self._ids and _is_device(mac, is_zoned=True):
                self._ids[mac] = record.id
                _add(record.addresses, mac)
        if isinstance(said, dict):
            for what, keys in _SELF.items():
                value = next((said[key] for key in keys if said.get(key)), None)
                if value is not None:
                    setattr(record, what, str(value)[:TEXT_MOST])
        if isinstance(firmware, str):
            record.firmware = firmware[:TEXT_MOST]
        record.last_seen = max(record.last_seen, event.time)
        self._changed[record.id] = record
        return True

    # ---- Events

    def _new_asset(
        self, record: Observed, event: Event, end: str, peer: str, now: datetime
    ) -> Event:
        fields = event.fields
        address = record.addresses[0]
        where = f" in zone {record.zone}" if record.zone else ""
        what = fields.get("network.protocol") or fields.get("network.transport") or "traffic"
        said = {
            ("source.mac" if _is_mac(address) else "source.ip"): address,
            "cw.asset.asset_id": record.id,
            "message": f"{address}{where} was seen for the first time: {what} with {peer or 'all'}",
            **_given(fields, "network.protocol", "network.transport"),
        }
        for name in ("zone", "zone_type", "purdue"):
            if f"cw.{end}.{name}" in fields:
                said[f"cw.asset.{name}"] = fields[f"cw.{end}.{name}"]
        return _made("new_asset", record.id, said, event, now)

    def _new_conduit(self, conduit: Conduit, event: Event, now: datetime) -> Event:
        fields = event.fields
        said = {
            **_given(fields, *_ENDS),
            "message": f"{conduit.protocol} from zone {conduit.source} to zone"
            f" {conduit.destination}, port {conduit.port}, was seen for the first time",
            "cw.source.zone": conduit.source,
            "cw.destination.zone": conduit.destination,
        }
        return _made("new_conduit", conduit.id, said, event, now)

    def _new_writer(self, asked: Observed, event: Event, writer: str, now: datetime) -> Event:
        fields = event.fields
        said = {
            **_given(fields, *_ENDS, "ot.operation", "ot.function.name"),
            "message": f"{writer} commanded {asked.id} for the first time",
            "cw.asset.asset_id": asked.id,
        }
        return _made("new_writer", f"{writer}>{asked.id}", said, event, now)

    def _end(self, now: datetime) -> Event:
        """The learning period is over: say what was learnt."""
        self.is_over, self._is_counted = True, True
        why = (
            f"{len(self._assets)} assets and {len(self._conduits)} conduits were learnt in"
            f" {self.hours.total_seconds() / 3600:g} h; from now on what is new is an event"
        )
        record = Record(b"", SOURCE, "learning_ended", now)
        said = {**_CONSTANT, "event.action": "learning_ended", "message": why}
        return Event(now, CHANGE, said, record)


_ENDS = (
    "source.ip",
    "source.mac",
    "destination.ip",
    "destination.port",
    "network.protocol",
    "network.transport",
)
_CONSTANT = {
    "event.kind": "asset",
    "event.category": ["host"],
    "event.type": ["info"],
    "event.outcome": "success",
    "event.dataset": "cityward.inventory",
}


def _addresses(kept: Kept) -> Sequence[str]:
    return kept.seen.addresses if kept.seen else ()


def _made(action: str, what: str, said: Mapping[str, Any], event: Event, now: datetime) -> Event:
    """An event about what was new; its place is what, so it has the same id whenever it is made."""
    record = Record(b"", SOURCE, f"{action} {what}", now)
    return Event(event.time, CHANGE, {**_CONSTANT, "event.action": action, **said}, record)


def _describe(record: Observed, fields: Mapping[str, Any], part: str, peer: str) -> None:
    """Protocols, words and peers that an event shows of an asset."""
    protocol = fields.get("network.protocol")
    if isinstance(protocol, str):
        _add(record.speaks, f"{protocol} {part}")
    else:
        port, transport = fields.get("destination.port"), fields.get("network.transport")
        if isinstance(port, int) and port < EPHEMERAL and transport:
            _add(record.speaks, f"{transport}/{port} {part}")
    _add(record.words, fields.get("ot.function.name"))
    _add(record.peers, peer)


def _given(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def _is_answered(fields: Mapping[str, Any]) -> bool:
    """Somebody was there: an answer, a report, or what only follows a TCP handshake."""
    if fields.get("event.outcome") == "success":
        return True
    direction = fields.get("ot.direction")
    return bool(direction) and (direction != "request" or fields.get("network.transport") == "tcp")


def _is_room(asked: Observed, writer: str) -> bool:
    """Whether it is a writer that is not known yet."""
    return bool(writer) and writer not in asked.writers and len(asked.writers) < WRITERS_MOST


def _is_long(key: Iterable[Any]) -> bool:
    """Whether it is not worth its memory: no device has such a name."""
    return any(isinstance(one, str) and len(one) > TEXT_MOST for one in key)


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _dashed(mac: str) -> str:
    """A MAC address as ECS writes it."""
    return mac.replace(":", "-").upper()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _is_mac(address: str) -> bool:
    return len(address) == 17 and address[2] in "-:"


def _is_device(address: str, *, is_zoned: bool) -> bool:
    """One device's own address: no group, no host itself; and where no zone says so, not public."""
    if _is_mac(address):
        try:
            return not int(address[:2], 16) & 1 and address[:17] != "00-00-00-00-00-00"
        except ValueError:
            return False
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if ip.is_multicast or ip.is_unspecified or ip.is_loopback or address == "255.255.255.255":
        return False
    return is_zoned or not ip.is_global


def _add(listed: list[str], value: Any) -> None:
    """One more, if it is a text, is new, and there is room."""
    if isinstance(value, str) and value and len(listed) < LIST_MOST:
        value = value[:TEXT_MOST]
        if value not in listed:
            listed.append(value)
