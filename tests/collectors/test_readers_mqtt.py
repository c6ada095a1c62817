"""The MQTT reader against a real mosquitto: nothing lost, nothing twice."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from cityward import ConfigError, TransientError
from collectors.readers import Batch
from collectors.readers.mqtt import Got, Mqtt
from tests.programs import PATIENCE_S, program


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Broker:
    """A mosquitto of its own that may be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._settings = folder / "mosquitto.conf"
        self._settings.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {folder}/\nmax_queued_messages 0\nuser root\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [program("mosquitto"), "-c", str(self._settings)], stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise TimeoutError("mosquitto does not listen")

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(PATIENCE_S)

    def publish(self, *payloads: str, topic: str = "city/gauge", qos: int = 1) -> None:
        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        for payload in payloads:
            client.publish(topic, payload, qos).wait_for_publish(PATIENCE_S)
        client.disconnect()
        client.loop_stop()


@pytest.fixture
def broker(tmp_path) -> Iterator[Broker]:
    made = Broker(tmp_path)
    made.start()
    yield made
    made.stop()


def reader(broker: Broker, **named) -> Mqtt:
    return Mqtt(broker.url, ["city/#"], "gauges", client_id="cityward-test", **named)


def read(reader: Mqtt, place: object, wanted: int, *, done: bool = True) -> list[Batch]:
    """Batches until so many records came and a little longer, or patience is at its end."""
    stop, found, until = threading.Event(), [], time.monotonic() + PATIENCE_S
    for batch in reader.read(place, stop):
        found.append(batch)
        if done:
            batch.done()
        enough = sum(len(one.records) for one in found) >= wanted and not batch.records
        if enough or time.monotonic() > until:
            stop.set()
    return found


def payloads(batches: list[Batch]) -> list[str]:
    return [record.data.decode() for batch in batches for record in batch.records]


def subscribed(broker: Broker) -> object:
    """A session of the reader at the broker; its place."""
    read(reader(broker), None, 0)
    return None


def test_messages_become_records_that_name_their_topic(broker):
    subscribed(broker)
    broker.publish("2.41", "2.42")

    found = read(reader(broker), None, 2)

    records = [record for batch in found for record in batch.records]
    assert [record.data for record in records] == [b"2.41", b"2.42"]
    assert [record.place for record in records] == ["city/gauge|0", "city/gauge|1"]


def test_what_was_sent_while_the_node_was_away_comes_when_it_is_back(broker):
    place = read(reader(broker), None, 0)[-1].place
    sent = [f"m{number}" for number in range(1_000)]
    broker.publish(*sent)

    found = read(reader(broker), place, 1_000)

    assert payloads(found) == sent
    assert found[-1].place["number"] == 1_000


def test_what_was_not_acknowledged_comes_again(broker):
    subscribed(broker)
    broker.publish("a", "b", "c")
    assert payloads(read(reader(broker), None, 3, done=False)) == ["a", "b", "c"]

    again = read(reader(broker), None, 3)

    assert payloads(again) == ["a", "b", "c"]
    assert payloads(read(reader(broker), again[-1].place, 0)) == []


def test_what_is_durable_and_comes_again_is_no_second_record(broker):
    subscribed(broker)
    broker.publish("a", "b", "c")
    place = read(reader(broker), None, 3, done=False)[-1].place
    broker.publish("d")

    assert payloads(read(reader(broker), place, 1)) == ["d"]


def test_a_message_that_comes_again_before_the_commit_is_acknowledged_with_it(broker):
    subscribed(broker)
    broker.publish("a")
    one = reader(broker)
    first = read(one, None, 1, done=False)
    stop, found = threading.Event(), []
    for batch in one.read(first[-1].place | {"given": []}, stop):
        found.append(batch)
        if len(found) == 3:
            for given in first:
                given.done()
        if len(found) == 5:
            stop.set()

    assert payloads(found) == []
    assert payloads(read(reader(broker), first[-1].place, 0)) == []


def test_equal_messages_are_as_many_records(broker):
    subscribed(broker)
    broker.publish(*["same"] * 5)

    assert payloads(read(reader(broker), None, 5)) == ["same"] * 5


def test_a_broker_that_restarts_is_said_and_loses_nothing(broker):
    one = reader(broker)
    place = read(one, None, 0)[-1].place
    broker.publish("before")
    found = []

    def read_until_it_fails() -> None:
        for batch in one.read(place, threading.Event()):
            found.append(batch)
            batch.done()
            if payloads(found) == ["before"]:
                broker.stop()

    with pytest.raises(TransientError, match="closed the connection"):
        read_until_it_fails()
    broker.start()
    broker.publish("after")

    assert payloads(read(one, found[-1].place, 1)) == ["after"]


def test_a_broker_that_is_not_there_is_named():
    one = Mqtt(f"mqtt://127.0.0.1:{free_port()}", ["#"], "gauges", client_id="c")

    with pytest.raises(TransientError, match="cannot be reached"):
        next(one.read(None, threading.Event()))


def test_an_address_that_is_no_broker_is_refused():
    with pytest.raises(ConfigError, match="is no broker"):
        Mqtt("http://example.org", ["#"], "gauges", client_id="c")


def test_a_long_message_is_cut_and_counted(broker):
    subscribed(broker)
    broker.publish("x" * 70_000)

    found = read(reader(broker), None, 1)

    assert [len(record.data) for batch in found for record in batch.records] == [65_536]
    assert sum(batch.cut for batch in found) == 1


def test_a_topic_that_cannot_be_is_said(broker):
    wrong = Mqtt(broker.url, ["city/#/x"], "gauges", client_id="cityward-test")

    with pytest.raises(TransientError, match="topics"):
        next(wrong.read(None, threading.Event()))


def test_a_file_of_authorities_that_is_not_there_is_said(tmp_path):
    wrong = Mqtt(
        "mqtts://127.0.0.1:1", ["x"], "g", client_id="c", ca_file=str(tmp_path / "none.pem")
    )

    with pytest.raises(ConfigError, match="certificates of authorities"):
        next(wrong.read(None, threading.Event()))


def test_a_session_that_begins_anew_brings_no_known_messages():
    """A broker that lost its sessions counts from 1 again; gauges often say the same again."""
    one = Mqtt("mqtt://127.0.0.1", ["x"], "g", client_id="c")
    got = Got("key", "x", b"0.5", 1, 1, one.client())
    one._remember(["key"])
    assert not one.is_new(got, again=True)

    one.begin_session()

    assert one.is_new(got, again=True)
