"""A charging station out of service over a real WebSocket; the station is a simulator."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from cityward import Command, Target, TransientError, Unsafe
from cityward.checks import INJECTIONS
from playbooks.actuators import csms
from playbooks.actuators.csms import Csms
from playbooks.actuators.ocpp import Ocpp
from tests.programs import PATIENCE_S

UNTIL = datetime.now(UTC) + timedelta(hours=1)
CP = Target("device", "CP-17")
VERSIONS = ("ocpp1.6", "ocpp2.0.1")


class StationSimulator:
    """A charging station with one connector, as OCPP 1.6 or 2.0.1 has it; no hardware in it."""

    def __init__(self, port: int, version: str, *, name: str = "CP-17") -> None:
        self.is_new = version == "ocpp2.0.1"
        self.is_operative, self.is_charging, self.is_deaf = True, False, False
        self.asked: list[dict[str, Any]] = []
        self._number, self._heard = 0, threading.Condition()
        self._answers: dict[str, Any] = {}
        word = base64.b64encode(f"{name}:secret".encode()).decode()
        self._open = contextlib.ExitStack()
        self.link: ClientConnection = self._open.enter_context(
            connect(
                f"ws://127.0.0.1:{port}/ocpp/{name}",
                subprotocols=[version],
                additional_headers={"Authorization": f"Basic {word}"},
            )
        )
        threading.Thread(target=self._listen, daemon=True).start()
        self.call("BootNotification", {"reason": "PowerUp"} if self.is_new else {})
        self.tell()

    def tell(self) -> None:
        """Say how the connector is."""
        busy = "Occupied" if self.is_new else "Charging"
        status = (
            "Unavailable" if not self.is_operative else busy if self.is_charging else "Available"
        )
        if self.is_new:
            said = {"evseId": 1, "connectorId": 1, "connectorStatus": status}
        else:
            said = {"connectorId": 1, "errorCode": "NoError", "status": status}
        self.call("StatusNotification", said)

    def begin(self, *, told: bool = True) -> None:
        """Somebody begins to charge."""
        self.is_charging = True
        if told:
            if self.is_new:
                said = {"eventType": "Started", "transactionInfo": {"transactionId": "t1"}}
                self.call("TransactionEvent", said)
            else:
                self.transaction = self.call("StartTransaction", {"connectorId": 1})[
                    "transactionId"
                ]
            self.tell()

    def finish(self) -> None:
        self.is_charging = False
        if self.is_new:
            said = {"eventType": "Ended", "transactionInfo": {"transactionId": "t1"}}
            self.call("TransactionEvent", said)
        else:
            self.call("StopTransaction", {"transactionId": self.transaction})
        self.tell()

    def call(self, action: str, said: dict[str, Any]) -> Any:
        self._number += 1
        mark = str(self._number)
        self.link.send(json.dumps([2, mark, action, said]))
        with self._heard:
            is_here = self._heard.wait_for(lambda: mark in self._answers, PATIENCE_S)
            assert is_here, f"no answer to {action}"
            return self._answers.pop(mark)

    def _listen(self) -> None:
        with contextlib.suppress(Exception):
            for text in self.link:
                message = json.loads(text)
                if message[0] == 2:
                    self.asked.append(message[3])
                    if not self.is_deaf:
                        threading.Thread(target=self._change, args=(message,), daemon=True).start()
                else:
                    with self._heard:
                        self._answers[message[1]] = message[2]
                        self._heard.notify_all()

    def _change(self, message: list[Any]) -> None:
        name = "operationalStatus" if self.is_new else "type"
        wanted = message[3][name] == "Operative"
        status = "Scheduled" if self.is_charging and not wanted else "Accepted"
        if status == "Accepted":
            self.is_operative = wanted
        self.link.send(json.dumps([3, message[1], {"status": status}]))
        self.tell()

    def end(self) -> None:
        self._open.close()


@pytest.fixture
def central() -> Iterator[Csms]:
    made = Csms({"CP-17": "secret", "CP-18": "secret"}, "t0k")
    made.start()
    yield made
    made.stop()


@pytest.fixture(params=VERSIONS)
def station(request, central) -> Iterator[StationSimulator]:
    made = StationSimulator(central.port, request.param)
    yield made
    made.end()


@pytest.fixture
def actuator(central) -> Ocpp:
    return Ocpp(url=f"http://127.0.0.1:{central.port}", token="t0k")


def undone(command: Command) -> Command:
    return Command(command.undo, command.target, "deny", UNTIL, prior=command.prior)


def test_a_station_is_taken_out_of_service_and_comes_back(station, actuator):
    (command,) = actuator.plan("deny", CP, UNTIL)
    assert (station.is_operative, station.asked) == (True, [])

    actuator.apply(command)
    actuator.apply(command)

    assert not station.is_operative
    assert actuator.probe(CP).is_applied
    assert list(actuator.plan("deny", CP, UNTIL)) == []
    actuator.apply(undone(command))
    assert station.is_operative
    assert not actuator.probe(CP).is_applied
    name = "operationalStatus" if station.is_new else "type"
    assert [one[name] for one in station.asked] == ["Inoperative", "Operative"]
    assert all(one.get("connectorId", 0) == 0 for one in station.asked)


def test_a_station_that_charges_is_left_alone_until_it_is_done(station, actuator):
    (command,) = actuator.plan("deny", CP, UNTIL)
    station.begin()

    with pytest.raises(Unsafe, match="charges"):
        list(actuator.plan("deny", CP, UNTIL))
    with pytest.raises(Unsafe, match="409"):
        actuator.apply(command)
    assert station.asked == []

    station.finish()
    actuator.apply(command)
    assert not station.is_operative


def test_a_session_that_began_unseen_is_not_left_to_end_in_a_dead_station(station, actuator):
    (command,) = actuator.plan("deny", CP, UNTIL)
    station.begin(told=False)

    with pytest.raises(Unsafe, match="409"):
        actuator.apply(command)

    name = "operationalStatus" if station.is_new else "type"
    assert [one[name] for one in station.asked] == ["Inoperative", "Operative"]
    assert station.is_operative


def test_undoing_leaves_a_station_out_of_service_that_was_so_before(station, actuator):
    station.is_operative = False
    station.tell()
    found = actuator.probe(CP).found

    actuator.apply(Command("allow", CP, "deny", UNTIL, prior=found))

    assert found == {"operative": False}
    assert not station.is_operative


def test_a_station_that_is_silent_or_away_is_asked_again_later(
    central, station, actuator, monkeypatch
):
    monkeypatch.setattr(csms, "ANSWER_S", 0.3)
    (command,) = actuator.plan("deny", CP, UNTIL)
    station.is_deaf = True
    with pytest.raises(TransientError, match="503"):
        actuator.apply(command)

    station.end()
    until = time.monotonic() + PATIENCE_S
    while central.stations["CP-17"].state()["connected"]:
        assert time.monotonic() < until
    with pytest.raises(TransientError, match="not connected"):
        actuator.probe(CP)
    with pytest.raises(TransientError, match="has not said"):
        actuator.probe(Target("device", "CP-18"))


@pytest.mark.parametrize("value", ["CP-99", "CP-17/../CP-18", "", *INJECTIONS])
def test_stations_that_are_unknown_are_refused(actuator, value):
    target = Target("device", value)

    with pytest.raises(Unsafe):
        list(actuator.plan("deny", target, UNTIL))
    for verb in ("deny", "allow"):
        with pytest.raises(Unsafe):
            actuator.apply(Command(verb, target, "", UNTIL))


def test_a_station_that_is_kept_is_left_alone_and_one_kept_since_comes_back(
    station, central, actuator
):
    (command,) = actuator.plan("deny", CP, UNTIL)
    actuator.apply(command)

    later = Ocpp(url=f"http://127.0.0.1:{central.port}", token="t0k", keep=[CP.value])
    with pytest.raises(Unsafe, match="keep list"):
        list(later.plan("deny", CP, UNTIL))
    with pytest.raises(Unsafe, match="keep list"):
        later.apply(command)
    assert later.probe(CP).is_applied
    later.apply(Command("allow", CP, "deny", UNTIL, prior=command.prior))

    assert not later.probe(CP).is_applied


def test_who_does_not_know_the_secret_is_turned_away(central, station):
    with pytest.raises(Unsafe, match="401"):
        Ocpp(url=f"http://127.0.0.1:{central.port}", token="wrong").probe(CP)
    for name, subprotocols in (("CP-17", ["ocpp1.6"]), ("CP-99", ["ocpp1.6"])):
        place = f"ws://127.0.0.1:{central.port}/ocpp/{name}"
        with pytest.raises(InvalidStatus), connect(place, subprotocols=subprotocols):
            pass
    assert station.call("Heartbeat", {})["currentTime"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "[]", "{}", "[2]", '[2,"1","Heartbeat"]', '[2,1,"Heartbeat",{}]', "[" * 9_000),
        '[2,"1","StatusNotification",[]]',
        '[3,"nobody",{}]',
        '[4,"nobody","x","y",{}]',
        '[2,"1","TransactionEvent",{"transactionInfo":7}]',
        "A" * 70_000,
    ],
)
def test_what_a_station_makes_up_harms_nobody_else(central, text):
    strange, good = StationSimulator(central.port, "ocpp1.6", name="CP-18"), None

    with contextlib.suppress(Exception):
        strange.link.send(text)
    good = StationSimulator(central.port, "ocpp1.6")

    assert good.call("Heartbeat", {})["currentTime"]
    good.end()
    strange.end()


def test_a_question_of_the_wrong_shape_is_refused(central, station):
    for body in (b"", b"{}", b'{"operative": "no"}', b"A" * 2_000):
        link = http.client.HTTPConnection("127.0.0.1", central.port, timeout=PATIENCE_S)
        link.request("POST", "/stations/CP-17/availability", body, {"Authorization": "Bearer t0k"})
        assert link.getresponse().status == 400
        link.close()
    assert station.asked == []
