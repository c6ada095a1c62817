"""A real mosquitto with dynamic security: clients are cut off, refused, and come back."""

from __future__ import annotations

import glob
import queue
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from cityward import Command, ConfigError, Target, TransientError, Unsafe
from playbooks.actuators import mosquitto
from playbooks.actuators.mosquitto import Mosquitto
from tests.programs import PATIENCE_S, program

UNTIL = datetime.now(UTC) + timedelta(hours=1)
GATE, BRIDGE = Target("account", "gate-7"), Target("account", "scada-bridge")

pytestmark = pytest.mark.slow


class Broker:
    """A mosquitto whose clients the plugin knows."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = int(one.getsockname()[1])
        plugins = glob.glob("/usr/lib/*/mosquitto_dynamic_security.so")
        known, settings = folder / "clients.json", folder / "mosquitto.conf"
        self._ctrl("dynsec", "init", str(known), "admin", "secret")
        settings.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\nuser root\n"
            f"plugin {plugins[0]}\nplugin_opt_config_file {known}\n"
        )
        self.process = subprocess.Popen(
            [program("mosquitto"), "-c", str(settings)], stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + PATIENCE_S
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            assert time.monotonic() < until, "mosquitto does not listen"
            time.sleep(0.05)
        for name in ("gate-7", "scada-bridge"):
            self.said("createClient", name, "-p", "secret")

    def said(self, *words: str) -> str:
        """What the plugin answers mosquitto's own program."""
        server = ("-h", "127.0.0.1", "-p", str(self.port), "-u", "admin", "-P", "secret")
        return self._ctrl(*server, "dynsec", *words)

    def _ctrl(self, *words: str) -> str:
        done = subprocess.run(
            [program("mosquitto_ctrl"), *words], check=True, capture_output=True, text=True
        )
        return done.stdout

    def actuator(self, **named: object) -> Mosquitto:
        named = {"user": "admin", "password": "secret", "keep": ["scada-bridge"], **named}
        return Mosquitto(url=f"mqtt://127.0.0.1:{self.port}", **named)

    def session(self, name: str = "gate-7") -> Session:
        return Session(self.port, name)


class Session:
    """A device that wants to be connected."""

    def __init__(self, port: int, name: str) -> None:
        self._heard: queue.Queue[str] = queue.Queue()
        self.client = client = mqtt.Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.username_pw_set(name, "secret")
        client.on_connect = lambda *said: self._heard.put(str(said[3]))
        client.on_disconnect = lambda *said: self._heard.put("cut off")
        client.connect("127.0.0.1", port)
        client.loop_start()

    def heard(self, wait_s: float = PATIENCE_S) -> str:
        try:
            return self._heard.get(timeout=wait_s)
        except queue.Empty:
            return ""

    def end(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture(scope="module")
def broker(tmp_path_factory) -> Iterator[Broker]:
    made = Broker(tmp_path_factory.mktemp("broker"))
    yield made
    made.process.terminate()
    made.process.wait(PATIENCE_S)


@pytest.fixture(autouse=True)
def enabled(broker):
    yield
    broker.said("enableClient", "gate-7")


def undone(command: Command) -> Command:
    return Command(command.undo, command.target, "deny", UNTIL, prior=command.prior)


def test_a_live_session_is_cut_off_and_refused_until_it_is_undone(broker):
    gate, bridge = broker.session(), broker.session("scada-bridge")
    assert (gate.heard(), bridge.heard()) == ("Success", "Success")
    (command,) = broker.actuator().plan("deny", GATE, UNTIL)
    assert gate.heard(0.1) == ""

    broker.actuator().apply(command)

    assert gate.heard() == "cut off"
    assert "Disabled" in broker.said("getClient", "gate-7")
    refused = broker.session()
    assert refused.heard() == "Not authorized"
    assert bridge.heard(0.1) == ""

    broker.actuator().apply(undone(command))

    again = broker.session()
    assert again.heard() == "Success"
    for one in (gate, bridge, refused, again):
        one.end()


def test_a_client_that_is_disabled_needs_no_command(broker):
    actuator = broker.actuator()
    (command,) = actuator.plan("deny", GATE, UNTIL)
    actuator.apply(command)

    actuator.apply(command)

    assert list(actuator.plan("deny", GATE, UNTIL)) == []


def test_undoing_leaves_a_client_disabled_that_was_disabled_before(broker):
    broker.said("disableClient", "gate-7")
    actuator = broker.actuator()
    found = actuator.probe(GATE).found

    actuator.apply(Command("allow", GATE, "deny", UNTIL, prior=found))

    assert actuator.probe(GATE).is_applied


@pytest.mark.parametrize(
    ("type", "value"),
    [
        ("account", "nobody"),
        ("account", 'x","command":"deleteClient'),
        ("account", ""),
        ("ipv4_net", "203.0.113.7"),
    ],
)
def test_clients_that_are_unknown_are_refused(broker, type, value):
    actuator, target = broker.actuator(), Target(type, value)

    with pytest.raises(Unsafe):
        list(actuator.plan("deny", target, UNTIL))
    for verb in ("deny", "allow"):
        with pytest.raises(Unsafe):
            actuator.apply(Command(verb, target, "", UNTIL))


def test_a_client_that_is_kept_is_left_alone_and_one_kept_since_is_let_in(broker):
    (command,) = broker.actuator().plan("deny", GATE, UNTIL)
    broker.actuator().apply(command)

    later = broker.actuator(keep=[GATE.value])
    with pytest.raises(Unsafe, match="keep list"):
        list(later.plan("deny", GATE, UNTIL))
    with pytest.raises(Unsafe, match="keep list"):
        later.apply(command)
    assert later.probe(GATE).is_applied
    later.apply(Command("allow", GATE, "deny", UNTIL, prior=command.prior))

    assert not later.probe(GATE).is_applied


@pytest.mark.parametrize("name", ["scada-bridge", "admin"])
def test_clients_that_are_kept_are_not_disabled(broker, name):
    with pytest.raises(Unsafe, match="keep list"):
        broker.actuator().apply(Command("deny", Target("account", name), "allow", UNTIL))


def test_a_broker_that_does_not_listen_to_us_is_asked_again_later(broker, monkeypatch):
    monkeypatch.setattr(mosquitto, "ANSWER_S", 1.0)
    for named in ({"password": "wrong"}, {"user": "gate-7"}):
        with pytest.raises(TransientError):
            broker.actuator(**named).probe(Target("account", "other"))
    with pytest.raises(TransientError):
        Mosquitto(url="mqtt://127.0.0.1:1").probe(GATE)
    with pytest.raises(ConfigError):
        Mosquitto(url="http://127.0.0.1")
