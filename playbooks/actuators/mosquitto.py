"""Disable a client of an MQTT broker: its session ends, and it is refused until it is enabled.

The broker is mosquitto with its dynamic security plugin, which is told by messages on
`$CONTROL/dynamic-security/v1`; who may send them is a client with the role `admin` of the plugin.
The broker keeps what it was told, so only the journal ends it.

    [response.actuators.mosquitto]
    url = "mqtts://broker.example:8883"
    user = "cityward"
    password_env = "CITYWARD_BROKER_PASSWORD"
    keep = ["scada-bridge"]

References:
    mosquitto 2.0, "Dynamic Security Plugin", sections "getClient", "disableClient".
"""

from __future__ import annotations

import queue
import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from cityward import Command, ConfigError, State, Target, TransientError, Unsafe, actuator
from playbooks.actuators.text import listed
from playbooks.targets import is_spelled

CONTROL = "$CONTROL/dynamic-security/v1"
ANSWERS = f"{CONTROL}/response"
ANSWER_S = 10.0
PORTS = {"mqtt": 1883, "mqtts": 8883}
NOT_THERE = "Client not found"


@actuator(
    "mosquitto",
    verbs={"deny": "allow"},
    targets=("account",),
    action_class="A2",
    rollback="journal",
)
class Mosquitto:
    """Deny a client of the broker, by its user name there.

    Args:
        url: `mqtt://name:port`, or `mqtts://…` with TLS.
        user: Ours at the broker.
        password: Of this user.
        ca_file: PEM file that the broker's certificate is checked by; empty: the system's.
        keep: User names that are never disabled; our own never is.
    """

    def __init__(
        self,
        *,
        url: str,
        user: str = "",
        password: str = "",
        ca_file: str = "",
        keep: Sequence[str] = (),
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise ConfigError(
                f"{url!r} is no mqtt://name:port", "mosquitto.url", "Name the broker."
            )
        self._place = (parts.hostname, parts.port or PORTS[parts.scheme])
        self._has_tls = parts.scheme == "mqtts"
        self._user, self._password, self._ca_file = user, password, ca_file
        self._keep = frozenset((*listed(keep, "mosquitto.keep"), user))

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """Disable the client, unless it is disabled."""
        if verb != "deny":
            raise _refused(verb, "is no verb of mosquitto")
        self._check_kept(target)
        state = self.probe(target)
        if not state.is_applied:
            yield Command(verb, target, undo="allow", until=until, prior=state.found)

    def apply(self, command: Command) -> None:
        """Disable the client, or bring back what it was before."""
        name = self._client(command.target)
        if command.verb not in ("deny", "allow"):
            raise _refused(command.verb, "is no verb of mosquitto")
        if command.verb == "deny":
            self._check_kept(command.target)
        is_disabled = command.verb == "deny" or command.prior.get("disabled") is True
        self._ask("disableClient" if is_disabled else "enableClient", name)

    def probe(self, target: Target) -> State:
        """Whether the broker refuses the client."""
        said = self._ask("getClient", self._client(target))
        try:
            is_disabled = said["data"]["client"].get("disabled", False) is True
        except (KeyError, TypeError, AttributeError):
            raise self.failed("the broker says nothing of the client") from None
        return State(is_disabled, found={"disabled": is_disabled})

    def _client(self, target: Target) -> str:
        if target.type != "account" or not is_spelled(target):
            raise _refused(target.value, "is no name of a client")
        return target.value

    def _check_kept(self, target: Target) -> None:
        """Refuse to begin; what was kept later still comes back."""
        if target.value in self._keep:
            raise _refused(target.value, "is on the keep list of this broker")

    def _ask(self, command: str, name: str) -> Mapping[str, Any]:
        """Let the plugin do one command.

        Raises:
            Unsafe: there is no such client.
            TransientError: the broker does not answer, or refuses.
        """
        mark = secrets.token_hex(8)
        said = {"command": command, "username": name, "correlationData": mark}
        answer = _Conversation(self).about(mark, msgspec.json.encode({"commands": [said]}))
        error = answer.get("error")
        if error == NOT_THERE:
            raise _refused(name, "is no client of this broker")
        if error:
            raise self.failed(f"the broker refuses {command}: {str(error)[:200]}")
        return answer

    def connected(self, client: mqtt.Client) -> None:
        """Call the broker."""
        if self._user:
            client.username_pw_set(self._user, self._password)
        try:
            if self._has_tls:
                client.tls_set(self._ca_file or None)
            client.connect(*self._place)
        except (OSError, ValueError) as error:
            raise self.failed(str(error)) from error

    def failed(self, why: str) -> TransientError:
        """What is said when the broker does not do it."""
        host, port = self._place
        return TransientError(
            why, f"broker {host}:{port}", "Look at the broker and our role there."
        )


class _Conversation:
    """One question on a connection of its own."""

    def __init__(self, broker: Mosquitto) -> None:
        self._broker = broker
        self._heard: queue.Queue[Mapping[str, Any] | str] = queue.Queue(100)
        self._client = client = mqtt.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.on_connect = self._connected
        client.on_subscribe = self._subscribed
        client.on_message = self._arrived

    def about(self, mark: str, question: bytes) -> Mapping[str, Any]:
        """Ask when our subscription is there, and wait for the answer with our mark."""
        client = self._client
        self._broker.connected(client)
        client.loop_start()
        try:
            if (heard := self._next()) != "subscribed":
                raise self._broker.failed(str(heard))
            client.publish(CONTROL, question, qos=1)
            while True:
                heard = self._next()
                if isinstance(heard, str):
                    raise self._broker.failed(heard)
                if heard.get("correlationData") == mark:
                    return heard
        finally:
            client.disconnect()
            client.loop_stop()

    def _next(self) -> Mapping[str, Any] | str:
        try:
            return self._heard.get(timeout=ANSWER_S)
        except queue.Empty:
            return f"no answer within {ANSWER_S:.0f} s; is the dynamic security plugin loaded?"

    def _say(self, heard: Mapping[str, Any] | str) -> None:
        if not self._heard.full():
            self._heard.put_nowait(heard)

    def _connected(self, client: mqtt.Client, _: Any, __: Any, reason: Any, ___: Any) -> None:
        if reason.is_failure:
            self._say(f"the broker refuses us: {reason}")
        else:
            client.subscribe(ANSWERS, qos=1)

    def _subscribed(self, _: Any, __: Any, ___: Any, reasons: Any, ____: Any) -> None:
        is_refused = any(reason.is_failure for reason in reasons)
        self._say("we may not hear the answers of the plugin" if is_refused else "subscribed")

    def _arrived(self, _: mqtt.Client, __: Any, message: mqtt.MQTTMessage) -> None:
        try:
            said = msgspec.json.decode(message.payload, type=dict[str, list[dict[str, Any]]])
        except msgspec.DecodeError:
            return
        for one in said.get("responses", ()):
            self._say(one)


def _refused(value: str, why: str) -> Unsafe:
    return Unsafe(f"{value[:80]!r} {why}", "mosquitto", "Act by hand, at the broker.")
