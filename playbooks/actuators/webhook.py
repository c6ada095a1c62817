"""Tell a web address of a step, signed, as JSON.

The signature is HMAC-SHA256 over the time of sending, a dot and the body, with the shared secret:
`X-Cityward-Signature: t=1790000000,v1=…`. A receiver computes it anew and refuses what is old.
`X-Cityward-Delivery` is the same at each attempt, so a receiver sees what it has already.

    [response.actuators.webhook]
    url = "https://hooks.operator.example/cityward"
    secret_env = "CITYWARD_HOOK_SECRET"
    allowed = ["hooks.operator.example"]

References:
    RFC 2104 (HMAC); `playbooks/actuators/web.py` for where it may go.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import msgspec

from cityward import Command, ConfigError, State, Target, Unsafe, actuator
from playbooks.actuators.text import key_of, listed
from playbooks.actuators.web import Resolve, Web, resolved, split
from playbooks.targets import NOWHERE, is_spelled

FORMAT = 1


@actuator("webhook", verbs={"create": ""}, targets=("uri",), action_class="A0", rollback="none")
class Webhook:
    """Post the arguments of a step to a web address.

    Args:
        url: Where it goes unless the step names a `uri`.
        secret: Shared with the receiver.
        allowed: Names, addresses and networks that a step may name; that of `url` is one.
        public: Whether a step may name any public address.
        ca_file: PEM file that servers are checked by; empty: the system's.
        clock: Time of sending.
        resolve: Finds the addresses of a name.
    """

    def __init__(
        self,
        *,
        url: str = "",
        secret: str = "",
        allowed: Sequence[str] = (),
        public: bool = False,
        ca_file: str = "",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        resolve: Resolve = resolved,
    ) -> None:
        if not secret:
            raise ConfigError("there is no secret to sign with", "webhook", "Name secret_env.")
        places = [*listed(allowed, "webhook.allowed"), *([split(url)[1]] if url else ())]
        self._web = Web(places, public=public, ca_file=ca_file, resolve=resolve)
        self._url, self._secret, self._clock = url, secret, clock

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """Always one: a message is sent anew."""
        self._place(verb, target)
        yield Command(verb, target, undo="", until=until)

    def apply(self, command: Command) -> None:
        """Post it."""
        url, key = self._place(command.verb, command.target), key_of(command)
        said = {"format": FORMAT, "delivery": key, "said": dict(command.args)}
        try:
            body = msgspec.json.encode(said)
        except (TypeError, ValueError) as error:
            raise Unsafe(f"no JSON: {type(error).__name__}", "args", "Say it in text.") from None
        headers = {
            "Content-Type": "application/json",
            "X-Cityward-Delivery": key,
            "X-Cityward-Signature": self._signature(body),
        }
        self._web.ask("POST", url, body, headers)

    def probe(self, target: Target) -> State:
        """Nothing is kept that could be looked at."""
        self._place("create", target)
        return State(False)

    def _place(self, verb: str, target: Target) -> str:
        if verb != "create":
            raise Unsafe(f"{verb[:40]!r} is no verb of webhook", "webhook", "Use create.")
        if target == NOWHERE:
            if not self._url:
                raise Unsafe("there is no address", "webhook", "Set url, or name a uri.")
            return self._url
        if target.type != "uri" or not is_spelled(target):
            raise Unsafe(f"{target.value[:80]!r} is no web address", "webhook", "Name a uri.")
        self._web.checked(target.value)
        return target.value

    def _signature(self, body: bytes) -> str:
        at = int(self._clock().timestamp())
        signed = hmac.new(self._secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
        return f"t={at},v1={signed.hexdigest()}"
