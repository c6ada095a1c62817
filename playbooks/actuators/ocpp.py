"""Take a charging station out of service, and back, through its central system.

A station that charges is left alone. The central system is asked two questions over HTTP, see
`playbooks/actuators/csms.py`, which is a small one.

    [response.actuators.ocpp]
    url = "https://csms.operator.example"
    token_env = "CITYWARD_CSMS_TOKEN"
    keep = ["CP-AMBULANCE-1"]

References:
    OCPP 1.6, section 5.2 (ChangeAvailability); OCPP 2.0.1 part 2, use cases G03 and G04.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec

from cityward import Command, State, Target, TransientError, Unsafe, actuator
from playbooks.actuators.text import listed
from playbooks.actuators.web import Resolve, Web, json_of, resolved, split
from playbooks.targets import is_spelled


@actuator(
    "ocpp", verbs={"deny": "allow"}, targets=("device",), action_class="A2", rollback="journal"
)
class Ocpp:
    """Deny service at a charging station, by its name at the central system.

    Args:
        url: Of the central system.
        token: Sent as `Authorization: Bearer …`.
        keep: Stations that are never taken out of service.
        allowed: Addresses that the name in `url` may lead to, where they are loopback or the like.
        ca_file: PEM file that the server is checked by; empty: the system's.
        resolve: Finds the addresses of a name.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str,
        keep: Sequence[str] = (),
        allowed: Sequence[str] = (),
        ca_file: str = "",
        resolve: Resolve = resolved,
    ) -> None:
        self._web = Web(
            [*listed(allowed, "ocpp.allowed"), split(url)[1]], ca_file=ca_file, resolve=resolve
        )
        self._url, self._keep = url.rstrip("/"), frozenset(listed(keep, "ocpp.keep"))
        self._headers = {"Authorization": f"Bearer {token}"}

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """Out of service, unless it is; refused while somebody charges."""
        if verb != "deny":
            raise _refused(verb, "is no verb of ocpp")
        self._check_kept(target)
        said = self._look(target)
        if said["operative"]:
            if said["charging"]:
                raise _refused(target.value, "charges somebody")
            yield Command(verb, target, undo="allow", until=until, prior={"operative": True})

    def apply(self, command: Command) -> None:
        """Take it out of service, or bring back what it was before."""
        place = self._place(command.target)
        if command.verb not in ("deny", "allow"):
            raise _refused(command.verb, "is no verb of ocpp")
        is_operative = command.verb == "allow" and command.prior.get("operative") is not False
        if command.verb == "deny":
            self._check_kept(command.target)
        if self._look(command.target)["operative"] == is_operative:
            return
        body = msgspec.json.encode({"operative": is_operative})
        headers = {**self._headers, "Content-Type": "application/json"}
        self._web.ask("POST", f"{place}/availability", body, headers)

    def probe(self, target: Target) -> State:
        """Whether it is out of service."""
        is_operative = self._look(target)["operative"]
        return State(not is_operative, found={"operative": is_operative})

    def _check_kept(self, target: Target) -> None:
        """Refuse to begin; what was kept later still comes back."""
        if target.value in self._keep:
            raise _refused(target.value, "is on the keep list of this central system")

    def _look(self, target: Target) -> Mapping[str, Any]:
        said = json_of(self._web.ask("GET", self._place(target), headers=self._headers))
        if not isinstance(said, dict) or not isinstance(said.get("operative"), bool):
            what = f"{target.value} has not said whether it is in service"
            raise TransientError(what, "ocpp", "Look at the station.")
        if said.get("connected") is not True:
            raise TransientError(f"{target.value} is not connected", "ocpp", "Look at the station.")
        return {"operative": said["operative"], "charging": said.get("charging") is not False}

    def _place(self, target: Target) -> str:
        if target.type != "device" or not is_spelled(target):
            raise _refused(target.value, "is no name of a station")
        return f"{self._url}/stations/{quote(target.value, safe='@:')}"


def _refused(value: str, why: str) -> Unsafe:
    return Unsafe(f"{value[:80]!r} {why}", "ocpp", "Act by hand, at the central system.")
