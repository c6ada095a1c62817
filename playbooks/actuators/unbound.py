"""Answer a domain name at a resolver with nothing, or with the address of a sinkhole.

The resolver is unbound, told through its own control program; names and records go through the
input of that program, its words are those of the settings. A local zone is answered before what
is cached. It is gone when unbound reads its files again, so the journal ends it, and looks.

    [response.actuators.unbound]
    program = ["unbound-control", "-c", "/etc/unbound/unbound.conf"]
    sinkhole = ["192.0.2.99"]
    keep = ["operator.example", "supplier.example"]

References:
    unbound-control(8), `local_zones`, `local_datas`; unbound.conf(5), `local-zone` types.
    RFC 1035, section 3.1 (a name and those under it).
"""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from cityward import Command, ConfigError, State, Target, TransientError, Unsafe, actuator
from playbooks.actuators.text import listed
from playbooks.targets import is_spelled

ANSWER_S = 20.0
TTL_S = 60
NOTHING, SINKHOLE = "always_nxdomain", "redirect"
TYPES = {"deny": NOTHING, "redirect": SINKHOLE}
RECORDS_MAX = 200
"""A name with more records of the resolver's own is none that a stranger uses."""
NEVER = ("arpa", "localhost", "local", "internal", "home.arpa")
"""Names that belong to nobody outside."""


class Zone(msgspec.Struct, frozen=True):
    """A local zone as it is; without a type there is none."""

    type: str = ""
    records: tuple[str, ...] = ()
    """Of the name and those under it, as unbound writes them."""
    within: str = ""
    """Local zone that it would be made in."""


@actuator(
    "unbound",
    verbs={"deny": "allow", "redirect": "allow"},
    targets=("domain_name",),
    action_class="A1",
    rollback="journal",
)
class Unbound:
    """Deny a domain name and all under it, or redirect it to a sinkhole.

    Args:
        program: How `unbound-control` is called.
        sinkhole: Addresses that a redirected name has; empty: `redirect` is refused.
        keep: Domains that are never hidden, nor what is over or under them.
    """

    def __init__(
        self,
        *,
        program: Sequence[str] = ("unbound-control",),
        sinkhole: Sequence[str] = (),
        keep: Sequence[str] = (),
    ) -> None:
        try:
            self._sinkhole = [
                ipaddress.ip_address(one) for one in listed(sinkhole, "unbound.sinkhole")
            ]
        except ValueError as error:
            raise ConfigError(str(error), "unbound.sinkhole", "Name an address.") from error
        self._program = listed(program, "unbound.program")
        self._keep = tuple(one.lower().strip(".") for one in listed(keep, "unbound.keep"))

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """The local zone, unless it is there."""
        if verb not in TYPES:
            raise _refused(verb, "is no verb of unbound")
        name, zone = self._name(target), self._zone(target)
        self._check_kept(name)
        if verb == "redirect" and not self._sinkhole:
            raise _refused(name, "cannot be redirected: no sinkhole is in the settings")
        if zone != self._wanted(verb, name, zone):
            yield Command(verb, target, undo="allow", until=until, prior=_found(zone))

    def apply(self, command: Command) -> None:
        """Put the local zone there, or bring back what was there before."""
        name, zone = self._name(command.target), self._zone(command.target)
        if command.verb in TYPES:
            self._check_kept(name)
            self._make(name, zone, self._wanted(command.verb, name, zone))
        elif command.verb == "allow":
            self._make(name, zone, _zone_of(command.prior))
        else:
            raise _refused(command.verb, "is no verb of unbound")

    def probe(self, target: Target) -> State:
        """Whether the resolver hides the name."""
        name, zone = self._name(target), self._zone(target)
        is_applied = bool(zone.type) and any(
            zone == self._wanted(verb, name, zone) for verb in TYPES
        )
        return State(is_applied, found=_found(zone))

    def _wanted(self, verb: str, name: str, zone: Zone) -> Zone:
        """The zone as the verb wants it; with `deny` its records stay, unseen.

        Raises:
            Unsafe: it is within another one. When unbound 1.17 is given a zone within a zone, the
                neighbours of the new one slip out of the old one.
        """
        if zone.within:
            raise _refused(name, f"is within {zone.within}, which this resolver answers itself")
        if verb == "deny":
            return Zone(NOTHING, zone.records)
        records = (
            f"{name}.\t{TTL_S}\tIN\t{'A' if one.version == 4 else 'AAAA'}\t{one}"
            for one in self._sinkhole
        )
        return Zone(SINKHOLE, tuple(sorted(records)))

    def _name(self, target: Target) -> str:
        if target.type != "domain_name" or not is_spelled(target):
            raise _refused(target.value, "is no domain name")
        name = target.value
        if any(_is_in(name, one) for one in NEVER):
            raise _refused(name, "is a name of this network")
        return name

    def _check_kept(self, name: str) -> None:
        """Refuse to begin; what was kept later still comes back."""
        if any(_is_in(name, one) or _is_in(one, name) for one in self._keep):
            raise _refused(name, "is on the keep list of this resolver")

    # ---- The resolver

    def _zone(self, target: Target) -> Zone:
        name = target.value
        lines = [one.split() for one in self._say("list_local_zones").splitlines()]
        types = {one[0].rstrip(".").lower(): one[1] for one in lines if len(one) == 2}
        if name not in types:
            return Zone(within=next((one for one in types if one and _is_in(name, one)), ""))
        type = types[name]
        records = sorted(
            line
            for line in self._say("list_local_data").splitlines()
            if _is_in(line.partition("\t")[0].rstrip(".").lower(), name)
        )
        if len(records) > RECORDS_MAX:
            raise _refused(name, f"has {len(records)} records here, too many to bring back")
        return Zone(type, tuple(records))

    def _make(self, name: str, now: Zone, wanted: Zone) -> None:
        """Change what differs, the type first, so that the name is never answered by accident."""
        if not wanted.type:
            if now.type:
                self._say("local_zones_remove", [name])
            return
        if now.type != wanted.type:
            self._say("local_zones", [f"{name} {wanted.type}"])
        if now.records != wanted.records:
            if now.records:
                gone = sorted({one.partition("\t")[0] for one in now.records})
                self._say("local_datas_remove", gone)
            self._say("local_datas", wanted.records)

    def _say(self, command: str, lines: Iterable[str] = ()) -> str:
        said = "".join(f"{line}\n" for line in lines)
        try:
            done = subprocess.run(
                [*self._program, command],
                input=said,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ANSWER_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TransientError(str(error), "unbound", "Is unbound-control there?") from error
        if done.returncode or done.stdout.startswith("error"):
            why = " ".join((done.stderr or done.stdout).split())[:300]
            raise TransientError(f"unbound refuses {command}: {why}", "unbound", "Look at it.")
        return done.stdout


def _is_in(name: str, domain: str) -> bool:
    return name == domain or name.endswith(f".{domain}")


def _found(zone: Zone) -> dict[str, Any]:
    return {"type": zone.type, "records": list(zone.records)}


def _zone_of(prior: Mapping[str, Any]) -> Zone:
    """The zone that was found before; lines only, whoever kept them."""
    records = [str(one) for one in prior.get("records") or ()]
    type = str(prior.get("type") or "")
    if any(not one.replace("\t", " ").isprintable() for one in (*records, type)):
        raise _refused(type, "is no zone that was found here")
    return Zone(type, tuple(records))


def _refused(value: str, why: str) -> Unsafe:
    return Unsafe(f"{value[:80]!r} {why}", "unbound", "Act by hand, at the resolver.")
