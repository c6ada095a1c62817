"""Messages of an MQTT broker, acknowledged when they are durable."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from cityward.errors import ConfigError, TransientError
from cityward.event import Record
from cityward.plugin import Framing
from collectors.readers.batch import MAX_BATCH_BYTES, PAUSE_S, Batch, Clock, utc_now
from collectors.readers.lines import CUT_BYTES

PORTS = {"mqtt": 1883, "mqtts": 8883}
CONNECT_S = 15.0
KEEP_ALIVE_S = 60
KEPT_S = 7 * 86_400
"""So long a broker keeps messages for a node that is away (MQTT 5, 3.1.2.11.2)."""
PACKET_MAX_BYTES = 1 << 20
"""Longer messages a broker does not send (MQTT 5, 3.1.2.11.4)."""
IN_FLIGHT = 256
"""So many messages a broker sends without an acknowledgement (MQTT 5, 3.1.2.11.3); hence no older
one comes again, and so many are known again after a restart."""


class Got(NamedTuple):
    """A message as it came."""

    key: str
    topic: str
    payload: bytes
    mid: int
    qos: int
    client: mqtt.Client


class Mqtt:
    """Subscribes with quality of service 1; a PUBACK follows the commit of the node.

    The broker keeps the session of a node that is away. A message that it sends again, since its
    PUBACK was lost, is known by its content and number and is no second record. A record's place
    is `<topic>|<number>`; numbers go on over restarts.

    Args:
        broker: `mqtt://host:port` or `mqtts://host:port`.
        topics: Topic filters.
        source: Id of the source.
        framing: What the collector wants; a message is one record.
        client_id: By which the broker knows the session; one node, one id.
        user: Name at the broker; empty for none.
        password: Its secret.
        ca_file: Certificates of authorities for `mqtts`; empty for the system's.
        clock: Gives `Record.received`.

    Raises:
        ConfigError: the address is none.

    References:
        MQTT 5.0, sections 3.1.2.11 (session), 3.3.1.1 (DUP), 4.3.2 (quality of service 1).
    """

    def __init__(
        self,
        broker: str,
        topics: Sequence[str],
        source: str,
        framing: Framing = "lines",
        *,
        client_id: str,
        user: str = "",
        password: str = "",
        ca_file: str = "",
        clock: Clock = utc_now,
    ) -> None:
        address = urlsplit(broker)
        if address.scheme not in PORTS or not address.hostname:
            what = f"{broker!r} is no broker"
            raise ConfigError(what, f"source {source}", "Write mqtt://host:1883 or mqtts://host.")
        self.source = source
        self.framing: Framing = framing
        self._host, self._port = address.hostname, address.port or PORTS[address.scheme]
        self._tls = address.scheme == "mqtts"
        self._topics = tuple(topics)
        self._client_id = client_id
        self._user, self._password, self._ca_file = user, password, ca_file
        self._clock = clock
        self._lock = threading.Lock()
        self._durable: dict[str, None] = {}
        self._unacknowledged: dict[str, list[Got]] = {}

    def read(self, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        """Yield what comes; the place holds the messages whose PUBACK the broker may lack.

        Raises:
            TransientError: no connection, or it was lost.
        """
        place = place or {}
        number = place.get("number", 0)
        given = deque(place.get("given", []), IN_FLIGHT)
        self._remember(given)
        link = _Link(self, stop)
        link.open()
        try:
            while not stop.is_set():
                taken = link.take()
                received = self._clock()
                records = [
                    Record(
                        one.payload[:CUT_BYTES], self.source, f"{one.topic}|{number + at}", received
                    )
                    for at, one in enumerate(taken)
                ]
                number += len(records)
                keys = [one.key for one in taken if one.qos]
                given.extend(keys)
                place = {"number": number, "given": list(given)}
                cut = sum(len(one.payload) > CUT_BYTES for one in taken)
                yield Batch(self.source, records, place, cut=cut, done=self._done(keys))
                if link.lost and not taken:
                    raise self.failed(link.lost)
        finally:
            link.close()

    def failed(self, why: str) -> TransientError:
        """What is said when the broker is not there."""
        where = f"source {self.source}, {self._host} port {self._port}"
        return TransientError(why, where, "It is tried again; check broker, user and password.")

    def client(self) -> mqtt.Client:
        """A client that is not connected yet."""
        made = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        if self._user:
            made.username_pw_set(self._user, self._password)
        if self._tls:
            try:
                made.tls_set(ca_certs=self._ca_file or None)
            except OSError as error:
                what = f"no certificates of authorities: {error.strerror or error}"
                where = f"source {self.source}, ca_file {self._ca_file}"
                raise ConfigError(what, where, "Name a PEM file that the node may read.") from error
        return made

    def connect(self, client: mqtt.Client) -> None:
        """Open the connection with a session that the broker keeps."""
        wishes = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        wishes.SessionExpiryInterval = KEPT_S
        wishes.MaximumPacketSize = PACKET_MAX_BYTES
        wishes.ReceiveMaximum = IN_FLIGHT
        client.connect(self._host, self._port, KEEP_ALIVE_S, clean_start=False, properties=wishes)

    def subscribe(self, client: mqtt.Client) -> None:
        """Ask for the topics; retained messages only come with the first subscription."""
        once = SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB)
        client.subscribe([(topic, once) for topic in self._topics])

    def begin_session(self) -> None:
        """The broker knows us no more: what it sends from now on is new, whatever its number."""
        with self._lock:
            self._durable.clear()
            self._unacknowledged.clear()

    def is_new(self, got: Got, again: bool) -> bool:
        """Whether a message was not given yet; one that was is acknowledged when it is durable."""
        with self._lock:
            if again and got.key in self._durable:
                _acknowledge(got)
                return False
            if again and got.key in self._unacknowledged:
                self._unacknowledged[got.key].append(got)
                return False
            self._unacknowledged[got.key] = [got]
            return True

    def forget(self, got: Got) -> None:
        """A message that was taken and never given: the broker sends it again."""
        with self._lock:
            self._unacknowledged.pop(got.key, None)

    def _done(self, keys: Sequence[str]) -> Callable[[], None]:
        def done() -> None:
            with self._lock:
                waiting = [got for key in keys for got in self._unacknowledged.pop(key, ())]
            self._remember(keys)
            for got in waiting:
                _acknowledge(got)

        return done

    def _remember(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._durable.pop(key, None)
                self._durable[key] = None
            while len(self._durable) > IN_FLIGHT:
                del self._durable[next(iter(self._durable))]


class _Link:
    """One connection: the library's thread brings messages, `take` gives them on."""

    def __init__(self, reader: Mqtt, stop: threading.Event) -> None:
        self.lost = ""
        """Why the connection is no more."""
        self._reader, self._stop = reader, stop
        self._client = reader.client()
        self._queue: queue.Queue[Got] = queue.Queue(IN_FLIGHT)
        self._answered = threading.Event()

    def open(self) -> None:
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.on_message = self._arrived
        self._client.on_subscribe = self._subscribed
        try:
            self._reader.connect(self._client)
        except (OSError, ValueError) as error:
            raise self._reader.failed(f"cannot be reached: {error}") from error
        self._client.loop_start()
        until_s = time.monotonic() + CONNECT_S
        while not self._answered.wait(PAUSE_S) and not self._stop.is_set():
            if time.monotonic() > until_s:
                self.lost = "does not answer"
                break
        if self.lost:
            self.close()
            raise self._reader.failed(self.lost)

    def close(self) -> None:
        self._client.disconnect()
        self._stop_waiting()
        self._client.loop_stop()
        while not self._queue.empty():
            self._reader.forget(self._queue.get_nowait())

    def take(self) -> list[Got]:
        """What has come, for as long as a batch may wait."""
        taken: list[Got] = []
        size = 0
        try:
            taken.append(self._queue.get(timeout=PAUSE_S))
            while size < MAX_BATCH_BYTES:
                taken.append(self._queue.get_nowait())
                size += len(taken[-1].payload)
        except queue.Empty:
            pass
        return taken

    def _stop_waiting(self) -> None:
        self.lost = self.lost or "closed"

    def _connected(self, client: mqtt.Client, _: Any, flags: Any, reason: Any, __: Any) -> None:
        if reason.is_failure:
            self.lost = f"refuses the connection: {reason}"
        else:
            if not flags.session_present:
                self._reader.begin_session()
            try:
                self._reader.subscribe(client)
            except ValueError as error:
                self.lost = f"cannot be asked for these topics: {error}"
        self._answered.set()

    def _subscribed(self, _: Any, __: Any, ___: Any, reasons: Any, ____: Any) -> None:
        refused = [str(one) for one in reasons if one.is_failure]
        if refused:
            self.lost = f"refuses {len(refused)} of {len(reasons)} topics: {refused[0]}"

    def _disconnected(self, _: Any, __: Any, ___: Any, reason: Any, ____: Any) -> None:
        self.lost = self.lost or f"closed the connection: {reason}"
        self._answered.set()

    def _arrived(self, client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        got = _got(client, message)
        if message.qos and not self._reader.is_new(got, message.dup):
            return
        # While the node is busy the broker is not read: it keeps what it has.
        while not (self.lost or self._stop.is_set()):
            try:
                return self._queue.put(got, timeout=PAUSE_S)
            except queue.Full:
                continue
        self._reader.forget(got)


def _got(client: mqtt.Client, message: mqtt.MQTTMessage) -> Got:
    try:
        topic = message.topic
    except UnicodeDecodeError:  # a broker that does not look (MQTT 5, 3.3.2.1)
        topic = ""
    said = hashlib.sha256(b"%d|%s|" % (message.mid, topic.encode()))
    said.update(message.payload)
    return Got(
        said.hexdigest()[:16],
        topic,
        bytes(message.payload),
        message.mid,
        message.qos,
        client,
    )


def _acknowledge(got: Got) -> None:
    # On a connection that is no more this does nothing: the broker sends the message again.
    if got.qos and got.client.is_connected():
        got.client.ack(got.mid, got.qos)
