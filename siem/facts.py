"""What the gate and the plan are told of the world: fulfils `playbooks.model.Facts`.

`FactBook` is made once a process; `at(now)` gives the facts of a moment. What people say – assets,
settings, calendar, verdicts, switches – is read anew when it has changed, what was observed each
time it is asked for. What is not known is said to be not known, which the gate takes for no.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import msgspec

from cityward import Asset, CitywardError, Target
from cityward.plugin import ActuatorSpec
from detectors.sigma.correlation import bases_of
from detectors.sigma.rule import Rule
from playbooks import sign, targets
from playbooks.model import Limits
from playbooks.playbook import SHIPPED_BY
from playbooks.safety import is_model
from playbooks.targets import Network
from siem import register
from siem.config import Flow, Response, Settings
from siem.leaving import plan_of
from siem.modes import Modes
from siem.modes import of_settings as modes_of
from siem.ruleset import rules_of
from siem.sharing.external import PREFIX, address_of, name_of
from siem.sharing.external import Plan as AddressPlan
from siem.store.embedded import NodeDb
from siem.store.protocol import Events, Range
from siem.store.query import quoted

CONFIRMED_FOR = timedelta(days=30)
LOOKED_BACK = timedelta(hours=24)
"""Of the flows that say who talks to a target."""
TALKERS_MAX = 500
"""So many of those who talk to a target are looked at; more are too many for any limit."""
UP_WITHIN = timedelta(minutes=15)
NEAR_S = 7_200.0
"""Findings so near in time speak of the same thing, if they name the same."""
JUDGED_LEAST = 20
"""With fewer verdicts a precision says nothing."""
RIGHT, WRONG = ("true_positive", "suspicious"), ("false_positive", "benign")
UNCOUNTED = {*WRONG, "test", "duplicate", "insufficient_data"}
"""Verdicts after which a finding does not speak for another any more."""
SPEAKING = {"detection", "anomaly", "correlation", "hazard"}
"""Types of findings that say something of the world, not of the node."""
PROTECTED_TYPES = {
    "gateway": "gateway",
    "router": "gateway",
    "firewall": "gateway",
    "historian": "historian",
    "mqtt_broker": "broker",
}
"""Types of assets that are protected peers without a role that says so."""
ANY_RULE = "*"
STOP_FILE = "STOP"
_STRICTEST = ("safety", "field", "control", "supervisory")
"""Of the zones that a network meets, the first of these counts."""
_DAYS = ("mo", "tu", "we", "th", "fr", "sa", "su")
_PEAK = re.compile(r"(?:(\w\w)(?:-(\w\w))? )?(\d\d:\d\d)-(\d\d:\d\d)")


class Rows(Protocol):
    """What the journal of runs tells; `siem.store.runs.RunStore` fulfils it."""

    def stopped(self) -> Sequence[str]:
        """Kill switches that are on."""
        ...

    def runs_but(self, playbook: str, since: datetime, but: str) -> int:
        """Runs of a playbook that began since; one is left out."""
        ...

    def open_but(self, playbook: str, but: str) -> int:
        """Runs of a playbook that are not over; one is left out."""
        ...

    def last_command(self, playbook: str, target: Target, but: str) -> datetime | None:
        """When runs of a playbook, one left out, last acted on a target."""
        ...

    def commands_since(self, actuator: str, since: datetime) -> int:
        """Effects of an actuator that began since."""
        ...

    def targets_but(self, but: str) -> Sequence[Target]:
        """Targets of the effects that hold now, those of one run left out."""
        ...

    def failures(self, actuator: str) -> Sequence[datetime]:
        """Failures since a person last closed the breaker of an actuator."""
        ...

    def rollbacks(self, actuator: str) -> Sequence[datetime]:
        """When people took back what it did, since its breaker was last closed."""
        ...


class FactBook:
    """Where the facts come from; made once a process.

    Args:
        settings: What the file says.
        db: Inventory, calendar and findings.
        events: The flows of the last day.
        rows: The journal of runs.
        specs: What the installed actuators say of themselves, by name.
        bases: Of each correlation the rules that it is made of; see `bases_in`.
    """

    def __init__(
        self,
        settings: Settings,
        db: NodeDb,
        events: Events,
        rows: Rows,
        specs: Mapping[str, ActuatorSpec],
        bases: Mapping[str, frozenset[str]] | None = None,
    ) -> None:
        self.bases = bases or {}
        self.settings = settings
        self.db = db
        self.events = events
        self.rows = rows
        self.specs = {name: specs[name] for name in settings.response.actuators if name in specs}
        self._known: Known | None = None
        self._version = -1

    def at(self, now: datetime, run: str = "") -> Facts:
        """The facts of a moment.

        Args:
            now: The node's time.
            run: The run that asks; it does not count against its own limits.
        """
        version = self.db.inventory.version()
        if self._known is None or version != self._version:
            kept = self.db.inventory.assets(merged=True)
            assets = register.known(self.settings, kept)
            entries = [*modes_of(self.settings), *self.db.inventory.entries()]
            modes = Modes(self.settings.mode, entries)
            self._known, self._version = Known(self.settings, assets, modes), version
        return Facts(self, self._known, now, run)


def book_of(
    settings: Settings, db: NodeDb, events: Events, specs: Mapping[str, ActuatorSpec]
) -> FactBook:
    """The facts of a node, with its rules read to know which correlation is made of which."""
    bases = bases_in(rules_of(settings, db).speaking())
    return FactBook(settings, db, events, db.runs, specs, bases)


class Known:
    """What people have said of the world, by address and by name."""

    def __init__(self, settings: Settings, assets: Iterable[Asset], modes: Modes) -> None:
        self.modes = modes
        self.zone_types: dict[str, str] = {zone.id: zone.type for zone in settings.zone}
        self.networks = [
            (ipaddress.ip_network(text), zone) for zone in settings.zone for text in zone.networks
        ]
        self.assets = {one.id: self._placed(one) for one in assets}
        self.plan: AddressPlan = plan_of(settings, self.assets.values())
        self.peers = [ipaddress.ip_network(one) for one in settings.sharing.peer_networks]
        self.own = [ipaddress.ip_network(one) for one in settings.sharing.own_networks]
        self.by_name: dict[str, list[Asset]] = {}
        self.by_network: list[tuple[Network, Asset]] = []
        self.sizes: Counter[str] = Counter(one.zone for one in self.assets.values())
        for asset in self.assets.values():
            for name in {asset.id, asset.name, *asset.addresses} - {""}:
                self.by_name.setdefault(_folded(name), []).append(asset)
                if (network := _network(name)) is not None:
                    self.by_network.append((network, asset))
        self.needed_by = self._needed_by()

    def _placed(self, asset: Asset) -> Asset:
        """An asset with the zone that its address is in, where nobody has said it."""
        zone = asset.zone
        if not zone:
            names = (asset.id, *asset.addresses)
            found = (network for name in names if (network := _network(name)))
            zone = next((one.id for network in found for one in self.zones_of(network)), "")
        kind = self.zone_types.get(zone, asset.zone_type)
        return msgspec.structs.replace(asset, zone=zone, zone_type=kind)

    def zones_of(self, network: Network) -> list[Any]:
        """Zones that a network meets, that of the narrowest network first."""
        met = [pair for pair in self.networks if _meets(network, pair[0])]
        if network.prefixlen == network.max_prefixlen:
            met = sorted(met, key=lambda pair: -pair[0].prefixlen)[:1]
        return [zone for _, zone in met]

    def _needed_by(self) -> dict[str, set[str]]:
        """Asset to what directly needs it: assets by id, services by name."""
        needs: dict[str, set[str]] = {}
        for asset in self.assets.values():
            for name in asset.serves:
                needs.setdefault(asset.id, set()).add(self.id_of(name))
            for name in asset.depends_on:
                needs.setdefault(self.id_of(name), set()).add(asset.id)
        return needs

    def id_of(self, name: str) -> str:
        """Id of the asset that a name or an address means; itself, if it is none."""
        found = self.by_name.get(_folded(name))
        return found[0].id if found else name

    def depend_on(self, asset: str) -> set[str]:
        """All that needs an asset, however far away."""
        found: set[str] = set()
        waiting = [asset]
        while waiting:
            for one in self.needed_by.get(waiting.pop(), set()) - found - {asset}:
                found.add(one)
                waiting.append(one)
        return found


class Facts:
    """The facts of one moment; fulfils `playbooks.model.Facts`."""

    def __init__(self, book: FactBook, known: Known, now: datetime, run: str = "") -> None:
        self._book = book
        self._known = known
        self._run = run
        self._now = now
        self._depend: dict[Target, tuple[str, ...]] = {}

    # ---- Here and now

    @property
    def operator(self) -> str:
        """Whose node this is."""
        return self._book.settings.operator

    @property
    def now(self) -> datetime:
        """The node's clock."""
        return self._now

    @property
    def _said(self) -> Response:
        return self._book.settings.response

    @cached_property
    def limits(self) -> Limits:
        """What the settings allow."""
        said = self._said
        return Limits(
            zones={name: frozenset(getattr(said.zones, name)) for name in ("A1", "A2", "A3")},
            blast_share=said.blast_share,
            actuator_per_hour=said.actuator_per_hour,
            zone_in_force=said.zone_in_force,
            alone=said.alone,
            exercises=said.exercises,
        )

    def stopped(self) -> Sequence[str]:
        """Kill switches that are on: rows and the local file."""
        on = list(self._book.rows.stopped())
        if stop_file(self._book.settings).exists():
            on.append("global")
        return list(dict.fromkeys(on))

    def actuator(self, name: str) -> ActuatorSpec | None:
        """What an actuator says of itself; None: the settings do not name it."""
        return self._book.specs.get(name)

    def trusts(self, key: str) -> bool:
        """Whether the settings still name a key, and it is not revoked."""
        if key == SHIPPED_BY:
            return self._said.shipped
        return any(_is_good(Path(one).expanduser(), key, self._now) for one in self._said.keys)

    def mode(self, target: Target) -> str:
        """What is going on at the place of a target, by settings and calendar."""
        found = self.assets_in(target)
        fields = {"cw.asset.zone": next(iter(self._zones(target)), "")}
        if found:
            fields |= {"cw.asset.asset_id": found[0].id, "cw.site": found[0].site}
        return self._known.modes.at(fields, self._now)

    def is_peak(self) -> bool:
        """Whether one of the spans of peak hours holds."""
        local = self._now.astimezone(ZoneInfo(self._said.time_zone))
        return any(_is_within(local, span) for span in self._said.peak_hours)

    # ---- Targets

    def assets_in(self, target: Target) -> Sequence[Asset]:
        """Every asset that a target meets, by address, network or name."""
        networks = targets.networks_of(target)
        found: dict[str, Asset] = {}
        for one in networks:
            is_one = one.prefixlen == one.max_prefixlen
            named = self._known.by_name.get(str(one.network_address), ()) if is_one else ()
            met = (asset for network, asset in self._known.by_network if _meets(one, network))
            found |= {asset.id: asset for asset in (*named, *met)}
        if not networks:
            for name in _names(target):
                found |= {asset.id: asset for asset in self._known.by_name.get(_folded(name), ())}
        return list(found.values())

    def asset_of(self, target: Target) -> Asset | None:
        """The first asset that a target meets."""
        return next(iter(self.assets_in(target)), None)

    def owner_of(self, target: Target) -> str:
        """This operator, `peer`, or empty."""
        if self.assets_in(target):
            return self.operator
        networks = targets.networks_of(target)
        if any(_meets(one, peer) for one in networks for peer in self._known.peers):
            return "peer"
        zones = [net for net, zone in self._known.networks if zone.type != "external"]
        is_own = any(_meets(one, own) for one in networks for own in (*zones, *self._known.own))
        return self.operator if is_own else ""

    def is_confirmed(self, asset: Asset) -> bool:
        """Whether a person confirmed it in the last 30 days."""
        try:
            day = date.fromisoformat(asset.last_confirmed[:10])
        except ValueError:
            return False
        began = datetime.combine(day, time(), UTC)
        return self._now - CONFIRMED_FOR <= began <= self._now + timedelta(days=1)

    def is_external(self, target: Target) -> bool:
        """Whether all of it is nobody's whom we know."""
        if self.assets_in(target):
            return False
        plan = self._known.plan
        if target.type == "domain_name":
            name = name_of(target.value)
            return name is not None and plan.is_external_name(name)
        networks = targets.networks_of(target)
        return bool(networks) and all(_is_outside(plan, one) for one in networks)

    def kept(self, target: Target) -> str:
        """Why it, or some of it, is on the keep list."""
        return next((why for name, why in self._said.keep.items() if _names_it(name, target)), "")

    def zone_type(self, target: Target) -> str:
        """The strictest type of the zones that a target meets."""
        kinds = {one.zone_type for one in self.assets_in(target) if one.zone_type}
        kinds |= {self._known.zone_types[one] for one in self._zones(target)}
        for kind in _STRICTEST:
            if kind in kinds:
                return kind
        if kinds:
            return min(kinds)
        return "external" if self.is_external(target) else ""

    def _zones(self, target: Target) -> Iterator[str]:
        for asset in self.assets_in(target):
            if asset.zone in self._known.zone_types:
                yield asset.zone
        for one in targets.networks_of(target):
            yield from (zone.id for zone in self._known.zones_of(one))

    def protected(self, target: Target) -> str:
        """Why it is a protected peer: its role or type, or because the settings say so."""
        found = self.assets_in(target)
        names = {name for one in found for name in (one.id, one.name, *one.addresses)} - {""}
        for name, what in (*self._said.protected.items(), *self._spoken_to()):
            if _names_it(name, target) or name in names:
                return what or name
        for asset in found:
            roles = [role for role in asset.roles if role in self._said.protected_roles]
            if roles or asset.type in PROTECTED_TYPES:
                return (roles or [PROTECTED_TYPES[asset.type]])[0].replace("_", " ")
        return ""

    def _spoken_to(self) -> Iterator[tuple[str, str]]:
        """What this node itself needs: hub, cluster, queue, mail servers, ports it listens on."""
        settings = self._book.settings
        urls = {settings.sharing.hub: "the hub", self._said.redis: "the queue of playbooks"}
        if settings.cluster is not None:
            urls |= dict.fromkeys(settings.cluster.urls, "the search cluster")
        for route in settings.route:
            urls |= {route.url: f"route {route.id}", f"//{route.server}": f"route {route.id}"}
        for source in settings.source:
            urls[f"//{source.listen}"] = "a node of cityward"
        urls[f"//{settings.console.host}"] = "a node of cityward"
        for url, what in urls.items():
            host = _host(url)
            if host and host not in ("0.0.0.0", "::"):
                yield host, f"{what} ({host})"

    def nonessential(self, target: Target) -> str:
        """Why a person listed this connection, all of it, as not essential."""
        said = targets.connection_of(target)
        ends = targets.networks_of(target)
        if said is None or len(ends) != 2:
            return ""
        for flow in self._said.nonessential:
            is_port = flow.port in (0, said.dst_port)
            if is_port and self._lies_in(ends[0], flow.source) and self._lies_in(
                ends[1], flow.destination
            ):  # fmt: skip
                return _why(flow)
        return ""

    def _lies_in(self, network: Network, place: str) -> bool:
        """Whether all of a network lies in a zone, an asset or a network of the settings."""
        if (wanted := _network(place)) is not None:
            return _within(network, wanted)
        if place in self._known.zone_types:
            nets = [net for net, zone in self._known.networks if zone.id == place]
            zones = self._known.zones_of(network)
            is_there = [zone.id for zone in zones] == [place]
            return is_there and any(_within(network, one) for one in nets)
        assets = self._known.by_name.get(_folded(place), ())
        return any(
            _within(network, own)
            for asset in assets
            for name in asset.addresses
            if (own := _network(name)) is not None
        )

    # ---- What hangs on it

    def dependants(self, target: Target) -> Sequence[str]:
        """Ids of assets, names of services, addresses of others, by inventory and flows."""
        if target not in self._depend:
            found: dict[str, None] = {}
            for asset in self._acted_on(target):
                found |= dict.fromkeys(sorted(self._known.depend_on(asset.id)))
            found |= dict.fromkeys(self._talkers(target))
            for asset in self._acted_on(target):
                found.pop(asset.id, None)
            self._depend[target] = tuple(found)
        return self._depend[target]

    def _acted_on(self, target: Target) -> Sequence[Asset]:
        """Of a connection its sender."""
        if targets.connection_of(target) is None:
            return self.assets_in(target)
        sender, _ = targets.networks_of(target)
        return self.assets_in(Target(f"ipv{sender.version}_net", str(sender)))

    def _talkers(self, target: Target) -> Iterator[str]:
        """Who began to talk to it in the last day; of a connection nobody, it is one flow."""
        if targets.connection_of(target) is not None:
            return
        places = [targets.spelled(one) for one in targets.networks_of(target)] or [
            address
            for asset in self.assets_in(target)
            for address in (asset.id, *asset.addresses)
            if _network(address) is not None
        ]
        if target.type == "domain_name":
            query = f"dns.question.name:{quoted(target.value)}"
        elif places:
            query = f"destination.ip:({' OR '.join(quoted(one) for one in places)})"
        else:
            return
        span = Range(self._now - LOOKED_BACK, self._now + timedelta(minutes=1))
        values, _ = self._book.events.top_values(query, span, "source.ip", TALKERS_MAX)
        strangers = 0
        for address, _ in values:
            talker = Target("ipv6_net" if ":" in address else "ipv4_net", address)
            asset = self.asset_of(talker)
            if asset is None and self.is_external(talker):
                strangers += 1
            else:
                yield asset.id if asset is not None else address
        if strangers:
            yield f"{strangers} addresses outside"

    def people(self, name: str) -> int | None:
        """How many people use a service or an asset, as the settings say."""
        return self._said.people.get(name)

    def zone_size(self, zone: str) -> int:
        """Assets of a zone."""
        return self._known.sizes[zone]

    def redundant_peers(self, asset: Asset) -> Sequence[Asset]:
        """Assets of its type that serve the same."""
        serves = set(asset.serves)
        return [
            one
            for one in self._known.assets.values()
            if one.id != asset.id and one.type == asset.type and serves & set(one.serves)
        ]

    def is_up(self, asset: Asset) -> bool:
        """Whether it was seen in the last minutes."""
        names = {asset.id, *asset.addresses}
        return any(
            one.seen.last_seen >= self._now - UP_WITHIN
            for one in self._book.db.inventory.assets(merged=True)
            if one.seen is not None and names & {one.id, *one.seen.addresses}
        )

    # ---- What speaks for it

    def precision(self, rule_id: str) -> float | None:
        """Share of right ones among what people judged; None: too few."""
        right, wrong = (self._judged(rule_id, verdicts) for verdicts in (RIGHT, WRONG))
        judged = right + wrong
        return right / judged if judged >= JUDGED_LEAST else None

    def _judged(self, rule_id: str, verdicts: Sequence[str]) -> int:
        query = f"rule.id:{quoted(rule_id)} AND finding.verdict:({' OR '.join(verdicts)})"
        return self._book.db.search(query, Range(), limit=0).total

    def analytics(self, finding: Mapping[str, Any]) -> Sequence[str]:
        """Own analytics that spoke of the same address, or the same asset, within two hours.

        Two of which one is made of the other, or both of the same rule, count as one.
        """
        if not self._speaks(finding):
            return ()
        near = self._book.db.related(str(finding.get("finding.id", "")), NEAR_S)
        said = {str(finding["rule.id"]): finding.get("cw.analytic.type")}
        for one in near:
            if self._speaks(one) and _is_same(one, finding):
                said.setdefault(str(one["rule.id"]), one.get("cw.analytic.type"))
        return list(_independent(said, self._book.bases))

    def _speaks(self, finding: Mapping[str, Any]) -> bool:
        """Whether a finding is what an own rule, model or person concluded of the real world."""
        is_own = finding.get("cw.operator", self.operator) == self.operator
        kind = finding.get("cw.analytic.type")
        is_model_named = is_model(str(finding.get("rule.id", "")))
        return (
            is_own
            and bool(finding.get("rule.id"))
            and kind in ("rule", "correlation", "model", "manual")
            and (kind == "model") == is_model_named
            and finding.get("finding.type", "detection") in SPEAKING
            and finding.get("finding.verdict", "unknown") not in UNCOUNTED
        )

    # ---- What was done

    def runs_since(self, playbook: str, since: datetime) -> int:
        """Runs of a playbook that began since, without the one that asks."""
        return self._book.rows.runs_but(playbook, since, self._run)

    def running(self, playbook: str) -> int:
        """Runs of a playbook that are not over, without the one that asks."""
        return self._book.rows.open_but(playbook, self._run)

    def last_run(self, playbook: str, target: Target) -> datetime | None:
        """When others of its runs last acted on a target."""
        return self._book.rows.last_command(playbook, target, self._run)

    def commands_since(self, actuator: str, since: datetime) -> int:
        """Commands that an actuator was given."""
        return self._book.rows.commands_since(actuator, since)

    def in_force(self, place: str) -> int:
        """Effects of other runs that hold on an asset, or in a zone."""
        held = (self._acted_on(one) for one in self._book.rows.targets_but(self._run))
        return sum(any(place in (one.id, one.zone) for one in assets) for assets in held)

    def failures(self, actuator: str) -> Sequence[datetime]:
        """Failures since its breaker was last closed."""
        return self._book.rows.failures(actuator)

    def rollbacks(self, actuator: str) -> Sequence[datetime]:
        """When people took back what it did."""
        return self._book.rows.rollbacks(actuator)


def stop_file(settings: Settings) -> Path:
    """While it is there, nothing is applied."""
    named = settings.response.stop_file
    return Path(named).expanduser() if named else settings.state_path / STOP_FILE


# ---- Names and addresses


def _folded(name: str) -> str:
    return name.strip().lower().rstrip(".")


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(address_of(text) or text, strict=False)
    except ValueError:
        return None


def _meets(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _within(one: Network, other: Network) -> bool:
    return one.version == other.version and one.subnet_of(other)  # type: ignore[arg-type]


def _is_outside(plan: AddressPlan, network: Network) -> bool:
    """Whether every address of a network is external."""
    if network.prefixlen >= PREFIX[network.version] and plan.network_of(network.network_address):
        return not plan.is_empty
    # Some of what is around it is ours or a peer's: each address decides.
    is_small = network.num_addresses <= 256
    return is_small and all(plan.is_external(one) for one in network)


def _names(target: Target) -> Iterator[str]:
    """Names by which the inventory may know a target that is no address."""
    yield target.value
    if target.type == "uri":
        yield _host(target.value)
    elif target.type == "email_addr":
        yield target.value.rpartition("@")[2]
    elif target.type == "mac_addr":
        yield target.value.replace(":", "-")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _names_it(name: str, target: Target) -> bool:
    """Whether an address, a network or a domain of a list is, holds, or is in a target."""
    wanted = _network(name)
    networks = targets.networks_of(target)
    if wanted is not None:
        names = [net for one in _names(target) if (net := _network(one)) is not None]
        return any(_meets(one, wanted) for one in (*networks, *names))
    own = _folded(name)
    return any(
        one == own or one.endswith(f".{own}") or own.endswith(f".{one}")
        for one in map(_folded, _names(target))
        if one and not networks
    )


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two findings are about the same address, or, where none is said, the same asset."""
    field = "source.ip" if other.get("source.ip") else "cw.asset.asset_id"
    return bool(other.get(field)) and one.get(field) == other.get(field)


def _independent(said: Mapping[str, Any], bases: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """Analytics that share no rule, in their order; of an unknown correlation any rule is one."""
    taken: set[str] = set()
    for name, kind in said.items():
        is_unknown = kind == "correlation" and name not in bases
        roots = bases.get(name, frozenset({ANY_RULE if is_unknown else name}))
        if kind != "model":
            is_same = taken and (is_unknown or ANY_RULE in taken)
            if is_same or roots & taken:
                continue
            taken |= roots
        yield name


def bases_in(rules: Iterable[Any]) -> dict[str, frozenset[str]]:
    """Of each correlation of a rule set the rules, at the bottom, that it is made of."""
    direct = {one.analytic.id: bases_of(one) for one in rules if not isinstance(one, Rule)}

    def bottom(name: str, passed: frozenset[str]) -> frozenset[str]:
        if name not in direct or name in passed:
            return frozenset({name})
        return frozenset().union(*(bottom(one, passed | {name}) for one in direct[name]))

    return {name: bottom(name, frozenset()) for name in direct}


def _why(flow: Flow) -> str:
    port = f" port {flow.port}" if flow.port else ""
    return f"{flow.source} to {flow.destination}{port}, {flow.why}"


def _is_good(path: Path, key: str, now: datetime) -> bool:
    try:
        found = sign.read_key(path)
    except CitywardError:
        return False
    return found.name == key and not found.fault(now)


# ---- Peak hours


def _is_within(local: datetime, span: str) -> bool:
    """Whether a local time lies in `mo-fr 16:00-19:00`; past midnight it is the day it began."""
    parts = _PEAK.fullmatch(span)
    if parts is None:
        return True
    first, last, begin, end = parts.groups()
    clock = f"{local:%H:%M}"
    if begin <= end:
        return begin <= clock < end and _is_day(local.weekday(), first, last)
    if clock >= begin:
        return _is_day(local.weekday(), first, last)
    return clock < end and _is_day((local.weekday() - 1) % 7, first, last)


def _is_day(day: int, first: str | None, last: str | None) -> bool:
    if first is None:
        return True
    begin = _DAYS.index(first)
    end = _DAYS.index(last or first)
    return (day - begin) % 7 <= (end - begin) % 7
