"""Open a ticket at a desk, once: it is looked for by our key before it is made.

The desk has a collection of tickets that is asked with `GET url?external_id=KEY` (a list, or an
object with a list in it) and added to with `POST url` and a JSON object. Names of its fields are
settings, since each desk has its own.

    [response.actuators.ticket]
    url = "https://desk.operator.example/api/tickets"
    token_env = "CITYWARD_DESK_TOKEN"
    names = { title = "subject", text = "description" }
    also = { queue = "soc" }

References:
    RFC 9110, section 9.3 (methods); draft-ietf-httpapi-idempotency-key-header (Idempotency-Key).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

import msgspec

from cityward import Command, State, Target, Unsafe, actuator
from playbooks.actuators.text import key_of, line, listed, only, text
from playbooks.actuators.web import Resolve, Web, json_of, resolved, split
from playbooks.targets import NOWHERE

NAMES = {"title": "title", "text": "text", "severity": "severity", "key": "external_id"}
"""What we say, and under which name."""


@actuator("ticket", verbs={"create": ""}, action_class="A0", rollback="none")
class Ticket:
    """Open a ticket with `title`, `text` and `severity`.

    Args:
        url: Collection of tickets.
        token: Sent as `Authorization: Bearer …`.
        names: Names of our fields at this desk, see `NAMES`.
        also: Fields that every ticket has there.
        allowed: Addresses that the name in `url` may lead to, where they are loopback or the like.
        ca_file: PEM file that the server is checked by; empty: the system's.
        resolve: Finds the addresses of a name.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str = "",
        names: Mapping[str, str] | None = None,
        also: Mapping[str, Any] | None = None,
        allowed: Sequence[str] = (),
        ca_file: str = "",
        resolve: Resolve = resolved,
    ) -> None:
        self._web = Web(
            [*listed(allowed, "ticket.allowed"), split(url)[1]], ca_file=ca_file, resolve=resolve
        )
        self._url, self._also = url, dict(also or {})
        self._names = {**NAMES, **(names or {})}
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """Always one: which ticket it is, its key says."""
        _check(verb, target)
        yield Command(verb, target, undo="", until=until)

    def apply(self, command: Command) -> None:
        """Open it, unless one with this key is there."""
        _check(command.verb, command.target)
        key, args = key_of(command), only(command.args, "title", "text", "severity")
        if self._is_there(key):
            return
        said = {"title": line(args.get("title")), "text": text(args.get("text"))}
        if "severity" in args:
            said["severity"] = line(args["severity"], 40)
        made = {self._names[name]: value for name, value in {**said, "key": key}.items()}
        headers = {**self._headers, "Content-Type": "application/json", "Idempotency-Key": key}
        self._web.ask("POST", self._url, msgspec.json.encode({**self._also, **made}), headers)

    def probe(self, target: Target) -> State:
        """Tickets are found by their key only."""
        _check("create", target)
        return State(False)

    def _is_there(self, key: str) -> bool:
        query = urlencode({self._names["key"]: key})
        found = json_of(self._web.ask("GET", f"{self._url}?{query}", headers=self._headers))
        lists = found.values() if isinstance(found, dict) else [found]
        return any(
            isinstance(ticket, dict) and ticket.get(self._names["key"]) == key
            for tickets in lists
            if isinstance(tickets, list)
            for ticket in tickets
        )


def _check(verb: str, target: Target) -> None:
    if verb != "create":
        raise Unsafe(f"{verb[:40]!r} is no verb of ticket", "ticket", "Use create.")
    if target != NOWHERE:
        raise Unsafe(f"{target.value[:80]!r}: a ticket has no target", "ticket", "Leave it out.")
