"""Give commands to a packet filter that speaks OpenC2 over HTTP(S).

Each `deny` says for how long (`duration`), so that the filter forgets it by itself. A filter of
cityward (`cityward openc2-consumer`) is asked what it denies; one of another make cannot be, since
the profile has no such query: there what it acknowledged to this process counts, until its end, and
what it may have acknowledged to another one is taken back unasked.

    [response.actuators.openc2]
    url = "https://filter.operator.example/.well-known/openc2"
    token_env = "CITYWARD_FILTER_TOKEN"

References:
    OpenC2 Language Specification 1.0; Profile for Stateless Packet Filtering 1.0, section 2;
    Specification for Transfer of OpenC2 Messages via HTTPS 1.0, section 3.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from cityward import Command, State, Target, TransientError, Unsafe, actuator
from playbooks import openc2
from playbooks.actuators.text import key_of
from playbooks.actuators.web import Resolve, Web, json_of, resolved, split
from playbooks.targets import is_spelled, networks_of

SLACK = timedelta(seconds=2)
REMEMBERED = 10_000
_UNREADABLE = "the filter says nothing that can be read"


@actuator(
    "openc2",
    verbs={"deny": "allow"},
    targets=openc2.NETWORKS + openc2.CONNECTIONS,
    action_class="A1",
    rollback="device",
)
class OpenC2:
    """Deny addresses, networks and connections at a filter elsewhere.

    Args:
        url: Where it takes commands.
        token: Sent as `Authorization: Bearer …`.
        asset_id: Name of the filter, if several listen there.
        cert_file: PEM file with our certificate and its key, for mutual TLS.
        ca_file: PEM file that the filter is checked by; empty: the system's.
        allowed: Addresses that the name in `url` may lead to, where they are loopback or the like.
        resolve: Finds the addresses of a name.
        clock: Tells how long a command holds.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str = "",
        asset_id: str = "",
        cert_file: str = "",
        ca_file: str = "",
        allowed: Sequence[str] = (),
        resolve: Resolve = resolved,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        listed = [*allowed, split(url)[1]]
        self._web = Web(listed, ca_file=ca_file, cert_file=cert_file, resolve=resolve)
        self._url, self._clock = url, clock
        self._headers = {"Content-Type": openc2.COMMAND_TYPE, "Accept": openc2.RESPONSE_TYPE}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._profile = {openc2.PROFILE: {"asset_id": asset_id} if asset_id else {}}
        self._said: dict[Target, datetime] = {}
        self._is_ours: bool | None = None

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """A command, unless the filter denies it for so long already."""
        if verb != "deny":
            raise Unsafe(f"{verb[:40]!r} is no verb of openc2", "openc2", "Use deny.")
        state = self.probe(target)
        if state.is_applied and state.until is not None and until - state.until <= SLACK:
            return
        yield Command(verb, target, undo="allow", until=until, prior=state.found)

    def apply(self, command: Command) -> None:
        """Deny it until then, or bring back what was there before."""
        _check(command.target)
        if command.verb == "deny":
            self._deny(command, command.until)
        elif command.verb == "allow":
            before = str(command.prior.get("until", ""))
            until = datetime.fromisoformat(before) if before else None
            # A shorter deny would change nothing at a filter that denies for longer.
            self._order("allow", command, {})
            self._said.pop(command.target, None)
            if until is not None and until > self._clock():
                self._deny(command, until)
        else:
            raise Unsafe(f"{command.verb[:40]!r} is no verb of openc2", "openc2", "Use deny.")

    def probe(self, target: Target) -> State:
        """What the filter says that it denies."""
        _check(target)
        if self._tells_state():
            query = {"action": "query", "target": {openc2.STATE: openc2.said(target)}}
            try:
                found = self._query(query)[openc2.OWN]
                until_ms = found.get("until")
                until = None if until_ms is None else datetime.fromtimestamp(until_ms / 1000, UTC)
                is_applied = found["is_applied"] is True
            except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
                raise TransientError(_UNREADABLE, "openc2", "Look at the filter.") from error
        else:
            until = self._said.get(target)
            is_applied = until is not None and until > self._clock()
        if not is_applied:
            # What another process of ours has told a filter of another make, it alone knows.
            return State(False, found={"until": ""}, is_known=self._tells_state())
        return State(True, until, found={"until": until.isoformat() if until else ""})

    def _tells_state(self) -> bool:
        """Whether it is one of ours; it is asked until it has answered once."""
        if self._is_ours is None:
            profiles = self._query({"action": "query", "target": {"features": ["profiles"]}})
            named = profiles.get("profiles")
            self._is_ours = isinstance(named, list) and openc2.OWN in named
        return self._is_ours

    def _query(self, query: Mapping[str, Any]) -> Mapping[str, Any]:
        found = self._ask(query, str(uuid.uuid4())).get("results")
        if not isinstance(found, dict):
            raise TransientError(_UNREADABLE, "openc2", "Look at the filter.")
        return found

    def _deny(self, command: Command, until: datetime) -> None:
        left_ms = int((until - self._clock()) / timedelta(milliseconds=1))
        if left_ms <= 0:
            raise Unsafe(f"{until.isoformat()} is over", "openc2", "Plan it again.")
        args = {"duration": left_ms, openc2.PROFILE: {"drop_process": "none"}}
        self._order("deny", command, args)
        self._said[command.target] = until
        if len(self._said) > REMEMBERED:
            del self._said[next(iter(self._said))]

    def _order(self, action: str, command: Command, args: Mapping[str, Any]) -> None:
        """Give a command; the same one again has the same id."""
        about = (key_of(command), action, command.target, command.until, command.token)
        id = hashlib.sha256(msgspec.json.encode(about)).hexdigest()[:32]
        said = {
            "action": action,
            "target": openc2.said(command.target),
            "args": {**args, "response_requested": "complete"},
            "actuator": self._profile,
            "command_id": id,
        }
        status = self._ask(said, id).get("status")
        if status not in (openc2.OK, openc2.CREATED):
            # 102 says that it was taken, which is not that it holds.
            what = f"the filter answers {str(status)[:20]}"
            raise TransientError(what, "openc2", "Look at the filter.")

    def _ask(self, said: Mapping[str, Any], request: str) -> Mapping[str, Any]:
        headers = {**self._headers, "X-Request-ID": request}
        answer = self._web.ask("POST", self._url, msgspec.json.encode(said), headers)
        found = json_of(answer)
        if not isinstance(found, dict) or not isinstance(found.get("status"), int):
            raise TransientError("the answer is no response", "openc2", "Look at the filter.")
        status = found["status"]
        is_later = status >= openc2.FAULT and status != openc2.NOT_IMPLEMENTED
        if is_later or status == openc2.TOO_MANY:
            raise TransientError(f"the filter answers {status}", "openc2", "Look at the filter.")
        if status >= openc2.BAD:
            raise Unsafe(f"the filter answers {status}", "openc2", "Look at the filter.")
        return found


def _check(target: Target) -> None:
    if not is_spelled(target) or not networks_of(target):
        what = f"{target.value[:80]!r} is no address, network or connection"
        raise Unsafe(what, f"target {target.type[:40]}", "Act by hand.")
