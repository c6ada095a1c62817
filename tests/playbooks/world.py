"""A small world for the gate and the plan: `Facts` as plain data, an actuator that remembers."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from cityward import Asset, Command, State, Target, Unsafe, actuator
from cityward.plugin import ActuatorSpec
from playbooks import targets
from playbooks.model import Action, BlastLimit, Limits, Playbook, Safety, Step

NOW = datetime(2026, 11, 12, 3, 0, tzinfo=UTC)
OUTER = frozenset({"enterprise", "dmz", "iot", "physical_security", "remote_access", "external"})
ZONES = {"A1": OUTER, "A2": OUTER, "A3": OUTER | {"supervisory", "control", "field"}}
LIMITS = Limits(zones=ZONES)
ONE = BlastLimit()
RULE = "0a4b3c52-0000-4000-8000-000000000001"
OTHER = "0a4b3c52-0000-4000-8000-000000000002"
SCANNER = "203.0.113.7"
OWN = [ipaddress.ip_network(one) for one in ("10.0.0.0/8", "2001:db8:10::/48")]
PEERS = [ipaddress.ip_network("198.51.100.0/24")]


@actuator(
    "gateway",
    verbs={"deny": "allow"},
    targets=("ipv4_net", "ipv6_net", "ipv4_connection", "domain_name"),
    action_class="A1",
    rollback="device",
)
class Gateway:
    """Denies what it is told, in memory."""

    def __init__(self) -> None:
        self.denied: dict[Target, datetime] = {}

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        if verb != "deny":
            raise Unsafe(f"{verb} is no verb of gateway", "gateway", "Use deny.")
        if target not in self.denied:
            yield Command(verb, target, undo="allow", until=until)

    def apply(self, command: Command) -> None:
        if command.verb == "deny":
            self.denied[command.target] = command.until
        else:
            self.denied.pop(command.target, None)

    def probe(self, target: Target) -> State:
        return State(target in self.denied, self.denied.get(target), {"is_there": False})


@actuator("broker", verbs={"contain": "allow"}, targets=("device",), action_class="A2")
class Broker(Gateway):
    """Cuts off a client."""

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        if target not in self.denied:
            yield Command(verb, target, undo="allow", until=until)


@actuator("mail", verbs={"set": ""}, targets=(), action_class="A0", rollback="none")
class Mail(Gateway):
    """Tells."""

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        yield Command(verb, target, undo="", until=until)


ACTUATORS: Mapping[str, type] = {"gateway": Gateway, "broker": Broker, "mail": Mail}


def actuators() -> dict[str, Any]:
    """One of each."""
    return {name: kind() for name, kind in ACTUATORS.items()}


@dataclass
class World:
    """What the gate may ask, as data; everything is well unless a test says otherwise."""

    assets: Sequence[Asset] = ()
    operator: str = "op-tram"
    now: datetime = NOW
    limits: Limits = LIMITS
    on: Sequence[str] = ()
    keys: Sequence[str] = ("release",)
    keep: Mapping[str, str] = field(default_factory=dict)
    peers: Mapping[str, str] = field(default_factory=dict)
    """Protected peers."""
    zones: Mapping[str, str] = field(default_factory=dict)
    """Network to zone type."""
    flows: Mapping[str, str] = field(default_factory=dict)
    """Value of a connection to why it is not essential."""
    modes: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    served: Mapping[str, int] = field(default_factory=dict)
    """Service or asset to how many people use it."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    groups: Sequence[Sequence[str]] = ()
    up: Sequence[str] = ()
    confirmed: bool = True
    peak: bool = False
    precisions: Mapping[str, float] = field(default_factory=dict)
    spoke: Sequence[str] = (RULE, OTHER)
    runs: int = 0
    open: int = 0
    last: datetime | None = None
    commands: int = 0
    held: Mapping[str, int] = field(default_factory=dict)
    failed: Sequence[datetime] = ()
    taken_back: Sequence[datetime] = ()

    def stopped(self) -> Sequence[str]:
        return self.on

    def actuator(self, name: str) -> ActuatorSpec | None:
        kind = ACTUATORS.get(name)
        return kind.cityward_spec if kind else None  # type: ignore[attr-defined]

    def trusts(self, key: str) -> bool:
        return key in self.keys

    def owner_of(self, target: Target) -> str:
        if self.assets_in(target):
            return self.operator
        met = [any(_meets(one, net) for net in PEERS) for one in targets.networks_of(target)]
        return "peer" if any(met) else ""

    def assets_in(self, target: Target) -> Sequence[Asset]:
        networks = targets.networks_of(target)
        return [
            one
            for one in self.assets
            if target.value in (one.id, one.name, *one.addresses)
            or any(_holds(net, address) for net in networks for address in one.addresses)
        ]

    def asset_of(self, target: Target) -> Asset | None:
        return next(iter(self.assets_in(target)), None)

    def is_confirmed(self, asset: Asset) -> bool:
        return self.confirmed

    def is_external(self, target: Target) -> bool:
        networks = targets.networks_of(target)
        if target.type == "domain_name":
            return not target.value.endswith("tram.example")
        return bool(networks) and not any(
            _meets(one, net) for one in networks for net in (*OWN, *PEERS)
        )

    def kept(self, target: Target) -> str:
        return self.keep.get(target.value, "")

    def zone_type(self, target: Target) -> str:
        for one in self.assets_in(target):
            if one.zone_type:
                return one.zone_type
        for text, kind in self.zones.items():
            net = ipaddress.ip_network(text)
            if any(_meets(one, net) for one in targets.networks_of(target)):
                return kind
        return "external" if self.is_external(target) else ""

    def protected(self, target: Target) -> str:
        return self.peers.get(target.value, "")

    def nonessential(self, target: Target) -> str:
        return self.flows.get(target.value, "")

    def mode(self, target: Target) -> str:
        return self.modes.get(target.value, "normal")

    def dependants(self, target: Target) -> Sequence[str]:
        return self.needs.get(target.value, ())

    def people(self, name: str) -> int | None:
        return self.served.get(name)

    def zone_size(self, zone: str) -> int:
        return self.sizes.get(zone, 0)

    def redundant_peers(self, asset: Asset) -> Sequence[Asset]:
        return [
            one
            for group in self.groups
            if asset.id in group
            for one in self.assets
            if one.id in group and one.id != asset.id
        ]

    def is_up(self, asset: Asset) -> bool:
        return asset.id in self.up

    def is_peak(self) -> bool:
        return self.peak

    def precision(self, rule_id: str) -> float | None:
        return self.precisions.get(rule_id)

    def analytics(self, finding: Mapping[str, Any]) -> Sequence[str]:
        return self.spoke

    def runs_since(self, playbook: str, since: datetime) -> int:
        return self.runs

    def running(self, playbook: str) -> int:
        return self.open

    def last_run(self, playbook: str, target: Target) -> datetime | None:
        return self.last

    def commands_since(self, actuator: str, since: datetime) -> int:
        return self.commands

    def in_force(self, place: str) -> int:
        return self.held.get(place, 0)

    def failures(self, actuator: str) -> Sequence[datetime]:
        return self.failed

    def rollbacks(self, actuator: str) -> Sequence[datetime]:
        return self.taken_back


def _meets(one: Any, other: Any) -> bool:
    return bool(one.version == other.version and one.overlaps(other))


def _holds(net: Any, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in net
    except ValueError:
        return False


# ---- Playbooks and findings


def action(
    name: str,
    actuator: str = "gateway",
    verb: str = "deny",
    target: Mapping[str, str] | None = None,
    *,
    action_class: str = "A1",
    args: Mapping[str, Any] | None = None,
    limit: BlastLimit = ONE,
    requires: Sequence[str] = (),
    **on: str,
) -> Step:
    """An action step that ends after an hour."""
    told = actuator == "manual" or action_class == "A0"
    return Step(
        id=f"action--{name}",
        name=name,
        type="action",
        action=Action(
            actuator=actuator,
            verb=verb,
            target={"type": "ipv4_net", "value": "${finding.source.ip}"}
            if target is None
            else target,
            args=args or {},
        ),
        safety=Safety(
            action_class=action_class,  # type: ignore[arg-type]
            time_box=None if told else timedelta(hours=1),
            rollback="none" if told else "device",
            blast_limit=limit,
            requires=tuple(requires),  # type: ignore[arg-type]
        ),
        **on,
    )


def playbook(*steps: Step, **said: Any) -> Playbook:
    """Steps one after another, live and signed; each id is followed by the next."""
    ends = {"end--1": Step(id="end--1", name="end", type="end")}
    tells = action("tell", "mail", "set", {}, action_class="A0", on_completion="end--1")
    ids = [step.id for step in steps] + ["end--1"]
    linked = {
        step.id: step
        if step.on_completion or step.on_success or step.type != "action"
        else msgspec.structs.replace(step, on_success=after, on_failure=tells.id)
        for step, after in zip(steps, ids[1:], strict=True)
    }
    start = Step(id="start--1", name="start", type="start", on_completion=ids[0])
    values: dict[str, Any] = {
        "id": "playbook--1",
        "name": "block-scanner",
        "description": "Block a scanner.",
        "version": "1",
        "stage": "live",
        "signed_by": "release",
        **said,
    }
    every = {start.id: start, **linked, tells.id: tells, **ends}
    return Playbook(steps=every, start=start.id, exception=tells.id, **values)


def finding(**said: Any) -> dict[str, Any]:
    """A finding about an external scanner."""
    return {
        "finding.id": "5e0f7f2e-6f36-5a0e-9a53-8d1d3c3c8f11",
        "finding.revision": 3,
        "finding.title": "Port scan from outside",
        "finding.severity": "high",
        "finding.mode": "normal",
        "cw.operator": "op-tram",
        "cw.marking.pap": "green",
        "cw.analytic.type": "rule",
        "rule.id": RULE,
        "source.ip": SCANNER,
        **said,
    }


CAMERA = Asset(id="camera-1", type="camera", addresses=("10.4.0.9",), zone="cams", zone_type="iot")
PLC = Asset(id="plc-1", type="plc", addresses=("10.7.0.5",), zone="z7", zone_type="control")
HMI = Asset(
    id="hmi-1", type="workstation", addresses=("10.6.0.5",), zone="ops", zone_type="supervisory"
)
