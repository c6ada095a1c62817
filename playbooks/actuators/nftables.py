"""Deny addresses and connections at a Linux gateway, by set elements that expire by themselves.

Everything is in a table of our own, which `nft delete table inet cityward` takes away whole. For
each length of prefix there is a set of its own, so that networks within one another never clash.
Its chains come before connection tracking: what they drop, no rule for established connections
can accept, so a session that goes on is cut. The kernel forgets an element when its time is over,
whether or not anything of ours still runs.

    [response.actuators.nftables]
    program = ["ssh", "-oBatchMode=yes", "cityward@gateway", "sudo", "nft"]
    keep = ["192.0.2.0/24"]

References:
    libnftables-json(5); nft(8), sections "SETS" and "ADDRESS FAMILIES" (hooks and priorities).
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from cityward import Command, ConfigError, State, Target, TransientError, Unsafe, actuator
from playbooks.actuators.text import listed
from playbooks.targets import Network, connection_of, is_spelled, networks_of

SLACK = timedelta(seconds=2)
"""The kernel tells whole seconds; so much shorter is as long as was wanted."""
LONGEST = timedelta(days=31)
ANSWER_S = 20.0
SET_SIZE = 65_535
PRIORITY = -290
"""Behind defragmentation (-400), before connection tracking (-200)."""
CHAINS = {"in": "prerouting", "out": "output"}
ENDS = {"saddr": ("in",), "daddr": ("in", "out")}
"""Where a packet is dropped for which of its ends."""

_TABLE = re.compile(r"[a-z][a-z0-9_]{0,30}")
Json = dict[str, Any]


class Place(msgspec.Struct, frozen=True):
    """Where a target is in the table: its set, its element, and the rules that look it up."""

    set: str
    type: str | list[str]
    element: Any
    rules: dict[str, tuple[str, Any]]
    """By their comment: chain, and what of a packet is looked up."""


class Seen(msgspec.Struct, frozen=True):
    """The table as it is."""

    rules: frozenset[tuple[str, str]]
    """Chain and comment."""
    elements: Mapping[tuple[str, str], int | None]
    """Set and element to the seconds that are left; None: for ever."""


@actuator(
    "nftables",
    verbs={"deny": "allow"},
    targets=("ipv4_net", "ipv6_net", "ipv4_connection", "ipv6_connection"),
    action_class="A1",
    rollback="device",
)
class Nftables:
    """Deny addresses, networks and connections at a gateway.

    Args:
        program: How `nft` is called; words of the settings only, the rest goes through its input.
        table: Name of our table.
        keep: Addresses and networks that are never denied, whoever asks.
        clock: Tells how long an element has to live.
    """

    def __init__(
        self,
        *,
        program: Sequence[str] = ("nft",),
        table: str = "cityward",
        keep: Sequence[str] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not _TABLE.fullmatch(table):
            raise ConfigError(f"{table!r} is no name of a table", "nftables.table", "Use a-z.")
        try:
            self._keep = [ipaddress.ip_network(one) for one in listed(keep, "nftables.keep")]
        except ValueError as error:
            raise ConfigError(str(error), "nftables.keep", "Name a network.") from error
        self._program = listed(program, "nftables.program")
        self._own = {"family": "inet", "table": table}
        self._clock = clock

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """The element if it is not there for so long; the gateway is asked whether it takes it."""
        if verb != "deny":
            raise Unsafe(f"{verb[:40]!r} is no verb of nftables", "nftables", "Use deny.")
        place = self._place(target)
        self._check_kept(target)
        seen = self._see()
        state = self._state(place, seen)
        if state.is_applied and (state.until is None or until - state.until <= SLACK):
            return
        self._run("-c", self._present(place, seen, self._left(until)))
        yield Command(verb, target, undo="allow", until=until, prior=state.found)

    def apply(self, command: Command) -> None:
        """Let the element live until then, or bring back what was there before."""
        place = self._place(command.target)
        if command.verb == "deny":
            self._check_kept(command.target)
            self._run("", self._present(place, self._see(), self._left(command.until)))
        elif command.verb == "allow":
            self._restore(place, command.prior)
        else:
            raise Unsafe(f"{command.verb[:40]!r} is no verb of nftables", "nftables", "Use deny.")

    def probe(self, target: Target) -> State:
        """Whether the gateway drops it, and until when."""
        return self._state(self._place(target), self._see())

    # ---- Targets

    def _place(self, target: Target) -> Place:
        """Where a target has its element.

        Raises:
            Unsafe: it is none of ours, or must not be touched.
        """
        if target.type not in self.cityward_spec.targets or not is_spelled(target):  # type: ignore[attr-defined]
            raise _refused(target, "is no address, network or connection")
        networks = networks_of(target)
        connection = connection_of(target)
        for one in networks:
            address = one.network_address
            if address.is_loopback or address.is_multicast or address.is_unspecified:
                raise _refused(target, "is no address of one machine")
        if connection is None:
            return _of_network(networks[0])
        if any(one.prefixlen < one.max_prefixlen for one in networks):
            raise _refused(target, "has no single address at each end")
        return _of_connection(networks, connection.protocol, connection.dst_port)

    def _check_kept(self, target: Target) -> None:
        """Refuse to begin; what was kept later still comes back."""
        for network in networks_of(target):
            if any(one.version == network.version and one.overlaps(network) for one in self._keep):
                raise _refused(target, "is on the keep list of this gateway")

    # ---- The table

    def _see(self) -> Seen:
        """Read the table back."""
        tables = [one.get("table", {}) for one in self._list("tables")]
        if not any(
            (one.get("family"), one.get("name")) == ("inet", self._own["table"]) for one in tables
        ):
            return Seen(frozenset(), {})
        rules, elements = set(), {}
        for one in self._list("table", "inet", self._own["table"]):
            if rule := one.get("rule"):
                rules.add((rule["chain"], rule.get("comment", "")))
            elif found := one.get("set"):
                for element in found.get("elem", ()):
                    said = element.get("elem") if isinstance(element, dict) else None
                    value, left = (said["val"], said.get("expires")) if said else (element, None)
                    elements[found["name"], _key(value)] = left
        return Seen(frozenset(rules), elements)

    def _state(self, place: Place, seen: Seen) -> State:
        key = (place.set, _key(place.element))
        rules_are_there = all(
            (where, name) in seen.rules for name, (where, _) in place.rules.items()
        )
        if key not in seen.elements:
            return State(False, found={"denied": False})
        left = seen.elements[key]
        until = None if left is None else self._clock() + timedelta(seconds=left)
        found = {"denied": True, "until": until.isoformat() if until else ""}
        return State(rules_are_there, until, found)

    def _present(self, place: Place, seen: Seen, left_s: int | None) -> list[Json]:
        """One transaction after which the element is there, and for so long.

        It is added, deleted and added, since adding what is there leaves its time as it was.
        """
        own = self._own
        made: list[Json] = [{"add": {"table": {"family": "inet", "name": own["table"]}}}]
        for name, hook in CHAINS.items():
            chain = {"name": name, "type": "filter", "hook": hook, "prio": PRIORITY}
            made.append({"add": {"chain": {**own, **chain, "policy": "accept"}}})
        kind = {"name": place.set, "type": place.type, "flags": ["timeout"], "size": SET_SIZE}
        made.append({"add": {"set": {**own, **kind}}})
        for name, (where, left) in place.rules.items():
            if (where, name) not in seen.rules:
                match = {"match": {"op": "==", "left": left, "right": f"@{place.set}"}}
                rule = {"chain": where, "comment": name, "expr": [match, {"drop": None}]}
                made.append({"add": {"rule": {**own, **rule}}})
        return [*made, *self._absent(place), self._element("add", place, left_s)]

    def _absent(self, place: Place) -> list[Json]:
        """Deleting what may not be there: it is added first."""
        return [self._element("add", place, None), self._element("delete", place, None)]

    def _restore(self, place: Place, prior: Mapping[str, Any]) -> None:
        seen = self._see()
        left = None
        if is_denied := prior.get("denied") is True:
            if prior.get("until"):
                rest = _moment(prior["until"]) - self._clock()
                is_denied = rest > timedelta()
                left = math.ceil(rest.total_seconds())
            if is_denied:
                return self._run("", self._present(place, seen, left))
        if (place.set, _key(place.element)) in seen.elements:
            self._run("", self._absent(place))
        return None

    def _element(self, verb: str, place: Place, left_s: int | None) -> Json:
        value = place.element
        if left_s is not None:
            value = {"elem": {"val": value, "timeout": left_s}}
        return {verb: {"element": {**self._own, "name": place.set, "elem": [value]}}}

    def _left(self, until: datetime) -> int:
        """Seconds until then; never none, which would be for ever."""
        left = until - self._clock()
        if not timedelta() < left <= LONGEST:
            raise Unsafe(
                f"{until.isoformat()} is not within {LONGEST.days} days from now",
                "nftables",
                "Plan it again.",
            )
        return math.ceil(left.total_seconds())

    # ---- The program

    def _list(self, *what: str) -> list[Json]:
        try:
            said = json.loads(self._call("-j", "list", *what))
            return [one for one in said["nftables"] if isinstance(one, dict)]
        except (ValueError, KeyError, TypeError) as error:
            raise TransientError(
                f"nft says no JSON: {error!r}", "nftables", "Is it nft 0.9.1 or newer?"
            ) from error

    def _run(self, mode: str, commands: Sequence[Json]) -> None:
        modes = [mode] if mode else []
        self._call(*modes, "-j", "-f", "-", said=json.dumps({"nftables": commands}))

    def _call(self, *words: str, said: str = "") -> str:
        try:
            done = subprocess.run(
                [*self._program, *words],
                input=said,
                capture_output=True,
                text=True,
                timeout=ANSWER_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TransientError(
                str(error), "nftables", "Is nft there, and may we call it?"
            ) from error
        if done.returncode:
            why = " ".join(done.stderr.split())[:300] or f"exit code {done.returncode}"
            raise TransientError(f"nft refuses: {why}", "nftables", "Look at the gateway.")
        return done.stdout


def _of_network(network: Network) -> Place:
    version, length = network.version, network.prefixlen
    name = f"deny{version}_{length}"
    rules: dict[str, tuple[str, Any]] = {}
    for end, chains in ENDS.items():
        left: Any = _payload("ip" if version == 4 else "ip6", end)
        if length < network.max_prefixlen:
            left = {"&": [left, str(network.netmask)]}
        rules |= {f"{name} {end} {chain}": (chain, left) for chain in chains}
    return Place(name, f"ipv{version}_addr", str(network.network_address), rules)


def _of_connection(ends: Sequence[Network], protocol: str, port: int) -> Place:
    """Both directions are dropped, so that a connection that is there ends."""
    version = ends[0].version
    if (version, protocol) == (6, "icmp"):
        protocol = "ipv6-icmp"
    name = f"flow{version}" + ("_port" if port else "")
    layer = "ip" if version == 4 else "ip6"
    kind = [f"ipv{version}_addr"] * 2 + ["inet_proto"]
    value: list[Any] = [str(one.network_address) for one in ends] + [protocol]
    if port:
        kind, value = [*kind, "inet_service"], [*value, port]
    rules: dict[str, tuple[str, Any]] = {}
    for way, fields in {
        "there": ("saddr", "daddr", "dport"),
        "back": ("daddr", "saddr", "sport"),
    }.items():
        looked = [
            _payload(layer, fields[0]),
            _payload(layer, fields[1]),
            {"meta": {"key": "l4proto"}},
        ]
        if port:
            looked.append(_payload("th", fields[2]))
        rules |= {f"{name} {way} {chain}": (chain, {"concat": looked}) for chain in CHAINS}
    return Place(name, kind, {"concat": value}, rules)


def _key(value: Any) -> str:
    """An element in one spelling: nft writes some addresses of IPv6 in another way than we do."""
    if isinstance(value, dict):
        return " . ".join(map(_key, value.get("concat", ())))
    if isinstance(value, str) and ":" in value:
        return str(ipaddress.ip_address(value))
    return str(value)


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _moment(said: Any) -> datetime:
    try:
        found = datetime.fromisoformat(said)
    except (TypeError, ValueError):
        found = datetime.min
    if found.tzinfo is None:
        raise Unsafe(f"{str(said)[:40]!r} is no time", "nftables", "Look at the gateway.")
    return found


def _refused(target: Target, why: str) -> Unsafe:
    return Unsafe(f"{target.value[:80]!r} {why}", f"target {target.type[:40]}", "Act by hand.")
