"""Saltmere, a city that does not exist: its four operators, their devices, their settings.

Addresses outside are those that documents may use (RFC 5737, RFC 3849), those inside are private
(RFC 1918); which ones, the seed says.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from random import Random
from typing import Any, Literal

import msgspec

Kind = Literal["file", "folder", "tap", "syslog_udp", "syslog_tcp"]

CAPTURES = 7
"""Captures of a tap: what it recorded in the afternoon, and one for every sixth of the evening."""
NETS = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
OUTSIDERS = 200
STRANGERS = 60
"""Of each operator, for its steps."""
DATA = Path(__file__).parent / "data"
"""Services and districts of Saltmere, for its hub."""
SPARE = 4
"""Outside addresses that a step may use; those of two steps are never the same."""


class Feed(msgspec.Struct, frozen=True):
    """What a node reads: a source of its settings, or the captures of a tap."""

    id: str
    kind: Kind
    collector: str


class Place:
    """One operator: zones, devices and what it reads.

    Args:
        operator: Id of the operator.
        name: As people know it.
        sector: Of the sector list.
        network: First two octets of its private network.
        random: Draws the addresses of the devices.
    """

    def __init__(self, operator: str, name: str, sector: str, network: str, random: Random) -> None:
        self.operator = operator
        self.name = name
        self.sector = sector
        self.zones: dict[str, dict[str, Any]] = {}
        self.assets: dict[str, dict[str, Any]] = {}
        self.lists: dict[str, list[str]] = {}
        self.feeds: list[Feed] = []
        self._network = network
        self._random = random
        self._free: dict[str, list[str]] = {}

    def zone(self, name: str, kind: str, third: int) -> None:
        """Add a zone with a network of its own."""
        network = f"{self._network}.{third}.0/24"
        self.zones[name] = {"id": name, "type": kind, "networks": [network]}
        self._free[name] = [str(one) for one in ipaddress.ip_network(network).hosts()]
        self._random.shuffle(self._free[name])

    def add(self, names: str, zone: str, kind: str, *roles: str, criticality: int = 2) -> None:
        """Add devices; every name gets an address."""
        for name in names.split():
            self.assets[name] = {
                "id": name,
                "type": kind,
                "addresses": [self._free[zone].pop()],
                "zone": zone,
                "criticality": criticality,
                "roles": list(roles),
            }

    def of(self, name: str) -> str:
        """Address of a device."""
        return str(self.assets[name]["addresses"][0])

    def named(self, beginning: str) -> list[str]:
        """Names of the devices that begin so."""
        return [name for name in self.assets if name.startswith(beginning)]

    def addresses(self, beginning: str) -> list[str]:
        """Addresses of the devices whose names begin so."""
        return [self.of(name) for name in self.named(beginning)]

    def unused(self, zone: str, count: int) -> list[str]:
        """Addresses of a zone at which there is no device."""
        return self._free[zone][:count]

    def read(self, source: str, kind: Kind, collector: str) -> None:
        """Add something that the node reads."""
        self.feeds.append(Feed(source, kind, collector))

    def settings(
        self,
        folder: Path,
        ports: Mapping[str, int],
        sections: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> str:
        """The settings of its node, as TOML.

        Args:
            folder: Where state and inputs are.
            ports: Port of each source that listens.
            sections: By name: what leaves, what playbooks may do.
        """
        lines = [*self._settings(folder, ports)]
        for name, values in (sections or {}).items():
            lines += ["", f"[{name}]", *_pairs(values)]
        return "\n".join(lines) + "\n"

    def _settings(self, folder: Path, ports: Mapping[str, int]) -> Iterator[str]:
        yield from _pairs(
            {
                "operator": self.operator,
                "name": self.name,
                "sector": self.sector,
                "mode": "exercise",
                "state_dir": str(folder / "state"),
            }
        )
        yield from ("", "[console]", "port = 0", "", "[lists]")
        yield from _pairs(self.lists)
        for feed in self.feeds:
            for source in _sources(feed, folder, ports):
                yield from ("", "[[source]]", *_pairs(source))
        for zone in self.zones.values():
            yield from ("", "[[zone]]", *_pairs(zone))
        for asset in self.assets.values():
            yield from ("", "[[asset]]", *_pairs(asset))


def _sources(feed: Feed, folder: Path, ports: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    if feed.kind == "tap":
        for name in captures_of(feed):
            yield {"id": name, "reader": "capture", "path": str(folder / f"{name}.pcap")}
        return
    said = {"id": feed.id, "reader": feed.kind, "collector": feed.collector}
    if feed.kind.startswith("syslog"):
        yield {**said, "listen": f"127.0.0.1:{ports[feed.id]}"}
    elif feed.kind == "folder":
        yield {**said, "path": str(folder / feed.id), "glob": "*.pb"}
    else:
        yield {**said, "path": str(folder / f"{feed.id}.log")}


def hub_settings(folder: Path, port: int, propose: str) -> str:
    """The settings of the city's hub, as TOML.

    Args:
        folder: Where its state is.
        port: Of its exchange.
        propose: Playbook that it proposes to operators of a campaign.
    """
    head = {
        "operator": "city",
        "name": "Saltmere",
        "mode": "exercise",
        "state_dir": str(folder / "state"),
    }
    hub = {
        "listen": f"127.0.0.1:{port}",
        "services": str(DATA / "saltmere-services.yml"),
        "map": str(DATA / "saltmere.geojson"),
        "propose": propose,
    }
    lines = [*_pairs(head), "", "[console]", "port = 0", "", "[hub]", *_pairs(hub)]
    return "\n".join(lines) + "\n"


def captures_of(feed: Feed) -> list[str]:
    """Names of the captures of a tap; that of the afternoon is the first."""
    return [f"{feed.id}-{number}" for number in range(CAPTURES)]


def _pairs(values: Mapping[str, Any]) -> Iterator[str]:
    # What JSON writes of text, numbers, true, false and flat lists of them is TOML as well.
    return (f"{name} = {json.dumps(value)}" for name, value in values.items())


class City:
    """All operators, and who there is outside.

    Args:
        seed: Which city; the same number is the same city.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        random = Random(f"{seed}:addresses")
        self._outside = _outside(random)
        taken = {*self._outside}
        self._strangers = {
            operator: _strangers(net, taken, Random(f"{seed}:{operator}"))
            for operator, net in zip(OPERATORS, (*NETS, ""), strict=True)
        }
        self.scanner = _ipv6(Random(f"{seed}:scanner"))
        """The one address outside that comes to two operators."""
        networks = [f"10.{second}" for second in random.sample(range(8, 250), len(OPERATORS))]
        self.places: dict[str, Place] = {}
        for (operator, (name, sector, furnish)), network in zip(
            OPERATORS.items(), networks, strict=True
        ):
            place = self.places[operator] = Place(operator, name, sector, network, random)
            furnish(place)

    def outsider(self, operator: str, step: int, number: int = 0) -> str:
        """An address outside that nobody but this step uses; the last one is IPv6.

        Those of two operators are in different networks, since a network joins too.

        Args:
            operator: Whom it comes to.
            step: Number among the steps of that operator.
            number: Which of its `SPARE` addresses.
        """
        return self._strangers[operator][step * SPARE + number]

    @property
    def internet(self) -> list[str]:
        """Addresses outside that ordinary traffic comes from and goes to, IPv4."""
        return [one for one in self._outside[OUTSIDERS // 2 :] if ":" not in one]


def _outside(random: Random) -> list[str]:
    every = [str(host) for net in NETS for host in ipaddress.ip_network(net).hosts()]
    found = random.sample(every, OUTSIDERS)
    for at in range(SPARE - 1, OUTSIDERS, SPARE):
        found[at] = _ipv6(random)
    return found


def _strangers(net: str, taken: Set[str], random: Random) -> list[str]:
    """Addresses of a network, every last of `SPARE` one of IPv6; without a network all of them."""
    if not net:
        return [_ipv6(random) for _ in range(STRANGERS)]
    hosts = [str(host) for host in ipaddress.ip_network(net).hosts()]
    free = random.sample([host for host in hosts if host not in taken], STRANGERS)
    return [_ipv6(random) if at % SPARE == SPARE - 1 else one for at, one in enumerate(free)]


def _ipv6(random: Random) -> str:
    low = random.sample(range(0x1000, 0xFFFF), 2)
    return f"2001:db8:{low[0]:x}::{low[1]:x}"


def _metro(place: Place) -> None:
    place.zone("dispatch", "supervisory", 10)
    place.zone("roadside", "field", 20)
    place.zone("signs", "iot", 30)
    place.zone("office", "enterprise", 40)
    place.add("dispatch-1 dispatch-2", "dispatch", "control_server", criticality=5)
    place.add("jump-1", "dispatch", "jump_host", "jump_host")
    place.add(_many("cabinet", 8), "roadside", "signal_controller", criticality=4)
    place.add(_many("sign", 6), "signs", "message_sign")
    place.add(_many("desk", 10), "office", "workstation")
    place.add("vpn-1", "office", "vpn_server")
    place.lists = {
        "dispatch_servers": place.addresses("dispatch-"),
        "passenger_signs": place.addresses("sign-"),
        "signal_controllers": place.named("cabinet-"),
    }
    place.read("cabinets", "file", "sshd")
    place.read("signs", "file", "zeek")
    place.read("vehicles", "folder", "gtfs-realtime")
    place.read("office", "syslog_udp", "syslog")


def _grid(place: Place) -> None:
    place.zone("control-centre", "supervisory", 10)
    place.zone("substations", "control", 20)
    place.zone("heating", "control", 30)
    place.zone("office", "enterprise", 40)
    place.add("scada-1", "control-centre", "control_server", "iec104_master", criticality=5)
    place.add("scada-2", "control-centre", "control_server", "ot_writer", criticality=5)
    place.add("engineering-1", "control-centre", "workstation", "engineering_host")
    place.add("historian-1", "control-centre", "historian")
    place.add(_many("rtu", 4), "substations", "rtu", criticality=5)
    place.add(_many("plc", 3), "heating", "plc", criticality=4)
    place.add(_many("desk", 10), "office", "workstation")
    place.read("tap", "tap", "packets")
    place.read("bastion", "syslog_tcp", "syslog")
    place.read("firewall", "syslog_udp", "syslog")


def _port(place: Place) -> None:
    place.zone("terminal", "supervisory", 10)
    place.zone("cranes", "control", 20)
    place.zone("office", "enterprise", 40)
    place.zone("gateway", "remote_access", 50)
    place.add("manager-1", "terminal", "control_server", "ot_writer", criticality=5)
    place.add("engineering-1", "terminal", "workstation", "engineering_host")
    place.add(_many("yard", 6), "terminal", "workstation")
    place.add(_many("crane", 4), "cranes", "crane_plc", criticality=5)
    place.add("files-1", "office", "application_server")
    place.add(_many("desk", 30), "office", "workstation")
    place.add("gateway-1", "gateway", "vpn_server", criticality=4)
    place.lists = {
        "crane_plcs": place.addresses("crane-"),
        "crane_nets": place.zones["cranes"]["networks"],
        "crane_peers": [place.of("manager-1"), place.of("engineering-1")],
        "remote_gateways": ["gateway-1"],
    }
    place.read("tap", "tap", "packets")
    place.read("gateway", "file", "sshd")
    place.read("office", "syslog_udp", "syslog")


def _city(place: Place) -> None:
    place.zone("sensors", "iot", 10)
    place.zone("cameras", "iot", 20)
    place.zone("video", "physical_security", 30)
    place.zone("town-hall", "enterprise", 40)
    place.add("broker-1", "town-hall", "mqtt_broker")
    place.add("jump-1", "town-hall", "jump_host", "jump_host")
    place.add(_many("desk", 10), "town-hall", "workstation")
    place.add(_many("sensor", 8), "sensors", "weather_station")
    place.add(_many("camera", 24), "cameras", "camera")
    place.add(_many("recorder", 2), "video", "vms_server", criticality=3)
    for name in ("mill-bridge", "lock-gate", "harbour-mouth"):
        place.assets[name] = {"id": name, "type": "level_gauge", "criticality": 4}
    place.lists = {"mqtt_brokers": [place.of("broker-1")], "cameras": place.named("camera-")}
    place.read("tap", "tap", "packets")
    place.read("gauges", "file", "river-readings")
    place.read("devices", "syslog_tcp", "syslog")


def _many(name: str, count: int) -> str:
    return " ".join(f"{name}-{number}" for number in range(1, count + 1))


OPERATORS: dict[str, tuple[str, str, Callable[[Place], None]]] = {
    "op-metro": ("Saltmere Metro", "transport.public", _metro),
    "op-grid": ("Saltmere Power and Heat", "energy.electricity", _grid),
    "op-port": ("Port of Saltmere", "transport.maritime", _port),
    "op-city": ("City of Saltmere", "administration.local", _city),
}
"""Id, name, sector, and who furnishes it."""
