"""The port to which sensors elsewhere ship their events, over mutual TLS.

A sensor speaks lines of JSON, as they stand in its spool: the lines of a batch, then a commit line
with the batch's number and sum. The node answers with the number of what is durable.

    sensor  {"cw.spool": "4c1f…"}                             what numbers it counts by
    node    {"cw.acked": 41}                                  the last batch that is durable here
    sensor  {"@timestamp": …}⏎ … {"cw.batch": 42, "events": 2, "crc": …, "places": {…}}
    node    {"cw.acked": 42}                                  after the commit

Who shows no certificate is told who the node is (`{"authority": PEM}`) and may only ask for one:
`{"cw.enrol": token, "request": PEM}`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import ssl
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from cityward.errors import CitywardError, InputError
from cityward.event import Record
from cityward.plugin import Framing
from collectors.readers.batch import PAUSE_S, Batch, Clock, utc_now

LINE_MAX_BYTES = 1 << 20
BATCH_MAX_BYTES = 32 << 20
EVENTS_MAX = 20_000
CONNECTIONS_MAX = 256
WAITING = 16
"""Batches of all sensors that wait for the node; a full queue makes sensors wait."""
SILENT_S = 90.0
"""A sensor says at least so often that it is there; a quiet connection is closed."""

log = logging.getLogger(__name__)


class Authority(Protocol):
    """Who may ship: fulfilled by the node, which signs the certificates of its sensors."""

    def context(self) -> ssl.SSLContext:
        """For the port: its own certificate, and those of sensors asked for."""
        ...

    def sensor(self, certificate: bytes) -> str:
        """Name of the sensor that showed a certificate (DER); CitywardError if it is revoked."""
        ...

    def greeting(self) -> Mapping[str, str]:
        """What is said to those who show no certificate, so that they know the node first."""
        ...

    def enrol(self, token: str, request: str) -> Mapping[str, str]:
        """A certificate for a token that was not used yet; CitywardError otherwise."""
        ...


class _Commit(msgspec.Struct, frozen=True):
    batch: int = msgspec.field(name="cw.batch")
    events: int
    crc: int
    places: msgspec.Raw
    lost: int = 0
    """Events that the spool has ever lost."""


class _Place(msgspec.Struct):
    """Where the source stands."""

    sensors: dict[str, tuple[str, int, int]] = {}
    """Spool of each, number of its last batch, and how many events it has ever lost."""
    told: int = 0
    """How often a sensor came or went."""


class Shipped(NamedTuple):
    """A batch as it came."""

    sensor: str
    spool: str
    number: int
    lines: list[bytes]
    lost: int


class Refused(Exception):  # noqa: N818
    """What a sensor said is not in order; its connection is closed."""


class Sensors:
    """Receives what sensors ship; each batch once, acknowledged after the commit of the node.

    A record is an event of a sensor, `<sensor>|<batch>|<number>` its place. That a sensor came or
    went is a record too.

    Args:
        host: Address to listen on.
        port: TCP port; 0 for any free one.
        source: Id of the source.
        authority: Says who may ship.
        clock: Gives `Record.received`.
    """

    framing: Framing = "lines"

    def __init__(
        self, host: str, port: int, source: str, authority: Authority, *, clock: Clock = utc_now
    ) -> None:
        self.host, self.port, self.source = host, port, source
        self._authority = authority
        self._clock = clock
        self._listening: socket.socket | None = None
        self._queue: queue.Queue[Shipped] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        self._taken: dict[str, tuple[str, int]] = {}
        """Sensor to spool and number of the last batch that went into the queue."""
        self._durable: dict[str, tuple[str, int]] = {}
        self._links: dict[str, _Link] = {}
        self._states: list[tuple[str, str]] = []
        self._rejected: Counter[str] = Counter()
        self._room = threading.BoundedSemaphore(CONNECTIONS_MAX)

    def open(self) -> None:
        """Bind; `port` is the real one afterwards. `read` does this if nobody did.

        Raises:
            InputError: the address cannot be bound.
        """
        if self._listening is not None:
            return
        try:
            self._listening = socket.create_server((self.host, self.port), backlog=64)
        except OSError as error:
            raise InputError(
                f"cannot listen on {self.host or '*'} port {self.port}: {error.strerror or error}",
                f"source {self.source}",
                "Choose a free port.",
            ) from error
        self.port = self._listening.getsockname()[1]
        self._listening.settimeout(PAUSE_S)

    def read(self, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        """Yield batches; the place holds the last one of each sensor."""
        stood = msgspec.convert(place or {}, _Place)
        with self._lock:
            self._durable = {name: at[:2] for name, at in stood.sensors.items()}
            self._taken = dict(self._durable)
        self.open()
        ended = threading.Event()
        accepting = threading.Thread(target=self._accept, args=(ended,), daemon=True)
        accepting.start()
        try:
            while not stop.is_set() or not self._queue.empty():
                yield self._told(stood)
                yield self._next(stood)
        finally:
            ended.set()
            accepting.join()
            self._close()

    def _next(self, stood: _Place) -> Batch:
        rejected = self._rejects()
        try:
            one = self._queue.get(timeout=PAUSE_S)
        except queue.Empty:
            return Batch(self.source, [], msgspec.to_builtins(stood), rejected=rejected)
        received = self._clock()
        records = [
            Record(line, self.source, f"{one.sensor}|{one.number}|{at}", received)
            for at, line in enumerate(one.lines)
        ]
        spool, _, lost = stood.sensors.get(one.sensor, ("", 0, 0))
        before = lost if spool == one.spool else 0
        stood.sensors[one.sensor] = (one.spool, one.number, one.lost)
        place, done = msgspec.to_builtins(stood), self._done(one)
        return Batch(self.source, records, place, max(one.lost - before, 0), rejected, done=done)

    def _told(self, stood: _Place) -> Batch:
        """That sensors came or went, as records."""
        with self._lock:
            states, self._states = self._states, []
        received = self._clock()
        records = [
            Record(
                msgspec.json.encode({"cw.sensor": name, "state": state}),
                self.source,
                f"{name}|state|{stood.told + at}",
                received,
            )
            for at, (name, state) in enumerate(states)
        ]
        stood.told += len(records)
        return Batch(self.source, records, msgspec.to_builtins(stood))

    def _rejects(self) -> dict[str, int]:
        with self._lock:
            rejected, self._rejected = dict(self._rejected), Counter()
        return rejected

    def _done(self, one: Shipped) -> Callable[[], None]:
        def done() -> None:
            with self._lock:
                self._durable[one.sensor] = (one.spool, one.number)
                link = self._links.get(one.sensor)
            if link is not None and link.spool == one.spool:
                link.acknowledge(one.number)

        return done

    # ---- connections, each in a thread of its own

    def _accept(self, ended: threading.Event) -> None:
        assert self._listening is not None
        context = self._authority.context()
        while not ended.is_set():
            try:
                made, address = self._listening.accept()
            except TimeoutError:
                continue
            except OSError:  # the caller went away, or there is no file handle left
                ended.wait(PAUSE_S)
                continue
            if not self._room.acquire(blocking=False):
                made.close()
                self._reject("too_many_connections")
                continue
            threading.Thread(
                target=self._serve, args=(made, context, str(address[0]), ended), daemon=True
            ).start()

    def _serve(
        self, made: socket.socket, context: ssl.SSLContext, peer: str, ended: threading.Event
    ) -> None:
        made.settimeout(SILENT_S)
        try:
            with context.wrap_socket(made, server_side=True) as channel:
                try:
                    self._talk(channel, ended)
                finally:
                    # What was read by lines holds the connection open.
                    _hang_up(channel)
        except Refused as why:
            self._reject("out_of_order")
            log.warning("What a sensor at %s says is not in order: %s.", peer, why)
        except CitywardError as why:
            self._reject("not_admitted")
            log.warning("A sensor at %s is not admitted: %s", peer, why)
        except (OSError, ValueError) as why:
            log.info("The connection of %s ended: %s.", peer, why)
        finally:
            made.close()
            self._room.release()

    def _talk(self, channel: ssl.SSLSocket, ended: threading.Event) -> None:
        certificate = channel.getpeercert(binary_form=True)
        if certificate is None:
            self._enrol(channel)
        else:
            self._receive(channel, certificate, ended)

    def _enrol(self, channel: ssl.SSLSocket) -> None:
        channel.sendall(msgspec.json.encode(self._authority.greeting()) + b"\n")
        asked = _object(_Lines(channel).line())
        token, request = asked.get("cw.enrol"), asked.get("request")
        if not isinstance(token, str) or not isinstance(request, str):
            raise Refused("no certificate, and no request for one")
        channel.sendall(msgspec.json.encode(self._authority.enrol(token, request)) + b"\n")

    def _receive(self, channel: ssl.SSLSocket, certificate: bytes, ended: threading.Event) -> None:
        link = _Link(channel, self._authority.sensor(certificate))
        hello = _object(link.lines.line()).get("cw.spool")
        if not isinstance(hello, str) or not 0 < len(hello) <= 64:
            raise Refused("it does not say what it counts by")
        link.spool = hello
        with self._lock:
            before = self._links.get(link.name)
            self._links[link.name] = link
            self._states.append((link.name, "connected"))
            spool, number = self._durable.get(link.name, ("", 0))
        if before is not None:
            before.close()
        link.acknowledge(number if spool == link.spool else 0)
        try:
            while not ended.is_set():
                shipped = link.batch()
                self._authority.sensor(certificate)
                self._take(link, shipped, ended)
        finally:
            with self._lock:
                if self._links.get(link.name) is link:
                    del self._links[link.name]
                    self._states.append((link.name, "gone"))

    def _take(self, link: _Link, shipped: Shipped, ended: threading.Event) -> None:
        """One batch; one that was taken before is acknowledged when, or as, it is durable."""
        with self._lock:
            spool, number = self._taken.get(link.name, ("", 0))
            is_known = spool == link.spool and shipped.number <= number
            if not is_known:
                self._taken[link.name] = (link.spool, shipped.number)
            durable = self._durable.get(link.name, ("", 0))
        if is_known:
            if durable[0] == link.spool and durable[1] >= shipped.number:
                link.acknowledge(shipped.number)
            return
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(shipped, timeout=PAUSE_S)
                return

    def _reject(self, why: str) -> None:
        with self._lock:
            self._rejected[why] += 1

    def _close(self) -> None:
        with self._lock:
            links = list(self._links.values())
        for link in links:
            link.close()
        if self._listening is not None:
            self._listening.close()
            self._listening = None


class _Lines:
    """Lines of a connection, bounded; blank ones only say that the other end is there."""

    def __init__(self, channel: ssl.SSLSocket) -> None:
        self._file = channel.makefile("rb")

    def line(self) -> bytes:
        while True:
            line = self._file.readline(LINE_MAX_BYTES + 1)
            if not line.endswith(b"\n"):
                if len(line) > LINE_MAX_BYTES:
                    raise Refused("a line without an end")
                raise ConnectionResetError("the other end is gone")
            if line.strip():
                return line


class _Link:
    """The connection of one sensor."""

    def __init__(self, channel: ssl.SSLSocket, name: str) -> None:
        self.name = name
        self.spool = ""
        self.lines = _Lines(channel)
        self._channel = channel
        self._sending = threading.Lock()

    def batch(self) -> Shipped:
        """The next batch; `Refused` if it is none."""
        lines: list[bytes] = []
        size = 0
        while not (line := self.lines.line()).startswith(b'{"cw.batch":'):
            lines.append(line.rstrip(b"\r\n"))
            size += len(line)
            if size > BATCH_MAX_BYTES or len(lines) > EVENTS_MAX:
                raise Refused("a batch without an end")
        try:
            commit = msgspec.json.decode(line, type=_Commit)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Refused(f"a commit line that is none: {error}") from error
        data = b"".join(one + b"\n" for one in lines)
        crc = zlib.crc32(bytes(commit.places), zlib.crc32(data))
        if commit.events != len(lines) or commit.crc != crc or commit.batch < 1:
            raise Refused(f"batch {commit.batch} is not what its commit line says")
        return Shipped(self.name, self.spool, commit.batch, lines, max(commit.lost, 0))

    def acknowledge(self, number: int) -> None:
        """Say what is durable; a connection that is gone is told when it comes back."""
        with self._sending, contextlib.suppress(OSError, ValueError):
            self._channel.sendall(b'{"cw.acked":%d}\n' % number)

    def close(self) -> None:
        """End the connection, whatever its thread waits for."""
        _hang_up(self._channel)


def _hang_up(channel: ssl.SSLSocket) -> None:
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)


def _object(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Refused(f"no JSON object: {error}") from error
