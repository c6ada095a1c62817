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
import math
import queue
import re
import select
import socket
import ssl
import threading
import time
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
BATCH_MAX_BYTES = 128 << 20
EVENTS_MAX = 1_000_000
"""A batch of an interface under load: 32,768 packets, some with many messages."""
CHUNK_BYTES = 64 << 10
WAITING, WAITING_MAX_BYTES = 16, 128 << 20
"""Batches of all sensors that wait for the node; with so many, or so much, sensors wait."""
STATES_MAX = 1_000
"""So often may sensors come and go while the node is busy; then it is only counted."""
SILENT_S = 90.0
"""A sensor says at least so often that it is there; a quiet connection is closed."""
RETURN_S = 300.0
"""After its start a node waits so long for the sensors it had, before they are said to be gone."""
STRANGER_S = 20.0
"""Within so long a connection says whose it is, or is closed."""
STRANGERS_MAX, STRANGERS_EACH_MAX = 64, 16
"""Connections that have not said whose they are: of all addresses, and of one."""
SPOOL = re.compile(r"[0-9a-zA-Z]{1,64}")
SPOOL_SHOWN = 8
"""Characters of its spool that tell the batches of a sensor from those of its earlier self."""
LOG_EVERY_S = 60.0
"""A refusal of each kind is logged at most so often; all are counted."""

log = logging.getLogger(__name__)


class Authority(Protocol):
    """Who may ship: fulfilled by the node, which signs the certificates of its sensors."""

    def context(self) -> ssl.SSLContext:
        """For the port: its own certificate, and those of sensors asked for."""
        ...

    def sensor(self, certificate: bytes) -> str:
        """Name of the sensor that showed a certificate (DER); CitywardError if it is revoked."""
        ...

    def admits(self, name: str) -> bool:
        """Whether a sensor of this name may connect."""
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
    size: int
    lost: int


class Refused(Exception):  # noqa: N818
    """What a sensor said is not in order; its connection is closed."""


class Sensors:
    """Receives what sensors ship; each batch once, acknowledged after the commit of the node.

    A record is an event of a sensor, `<sensor>|<spool>.<batch>|<number>` its place. That a sensor
    came or went is a record too.

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
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._taken: dict[str, tuple[str, int]] = {}
        """Sensor to spool and number of the last batch that went into the queue."""
        self._durable: dict[str, tuple[str, int]] = {}
        self._links: dict[str, _Link] = {}
        self._turns: dict[str, threading.Lock] = {}
        """Held by the one connection of a sensor that may put into the queue: order is kept."""
        self._strangers: dict[ssl.SSLSocket, tuple[str, float]] = {}
        """Address and begin of each connection that has not said whose it is."""
        self._states: list[tuple[str, str]] = []
        self._rejected: Counter[str] = Counter()
        self._quiet_until_s: dict[str, float] = {}
        self._return_until_s = math.inf

    def open(self) -> None:
        """Bind; `port` is the real one afterwards. `read` does this if nobody did.

        Raises:
            InputError: the address cannot be bound.
        """
        if self._listening is not None:
            return
        try:
            self._listening = _listening(self.host, self.port)
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
        self._taken = {name: at[:2] for name, at in stood.sensors.items()}
        # Of a reader that begins again, the place is given, but maybe not durable yet.
        self._durable = {**self._taken, **self._durable}
        self.open()
        self._return_until_s = time.monotonic() + RETURN_S
        ended = threading.Event()
        accepting = threading.Thread(
            target=self._accept, args=(self._authority.context(), ended), daemon=True
        )
        accepting.start()
        try:
            # What waits at the end is not acknowledged, and comes again.
            while not stop.is_set():
                self._miss(stood)
                if self._states:
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
        with self._lock:
            self._waiting_bytes -= one.size
        received = self._clock()
        # A sensor that begins anew counts its batches from 1 again.
        begun = f"{one.sensor}|{one.spool[:SPOOL_SHOWN]}.{one.number}"
        records = [
            Record(line, self.source, f"{begun}|{at}", received)
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

    def _miss(self, stood: _Place) -> None:
        """Say once that sensors did not come back after the start of the node."""
        if time.monotonic() < self._return_until_s:
            return
        self._return_until_s = math.inf
        admitted = [name for name in stood.sensors if self._authority.admits(name)]
        with self._lock:
            for name in admitted:
                if name not in self._links:
                    self._changed(name, "gone")

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

    def _accept(self, context: ssl.SSLContext, ended: threading.Event) -> None:
        assert self._listening is not None
        while not ended.is_set():
            self._hurry()
            try:
                made, address = self._listening.accept()
            except TimeoutError:
                continue
            except OSError:  # the caller went away, or there is no file handle left
                ended.wait(PAUSE_S)
                continue
            self._begin(made, context, str(address[0]), ended)

    def _begin(
        self, made: socket.socket, context: ssl.SSLContext, peer: str, ended: threading.Event
    ) -> None:
        """Give a connection a thread, if there are not too many of which nothing is known."""
        with self._lock:
            of_peer = sum(address == peer for address, _ in self._strangers.values())
            is_room = len(self._strangers) < STRANGERS_MAX and of_peer < STRANGERS_EACH_MAX
        if not is_room:
            made.close()
            self._reject("too_many_connections", "Too many connections at once from %s.", peer)
            return
        try:
            made.settimeout(STRANGER_S)
            channel = context.wrap_socket(made, server_side=True, do_handshake_on_connect=False)
        except OSError:  # it is gone already
            made.close()
            return
        with self._lock:
            self._strangers[channel] = peer, time.monotonic()
        threading.Thread(target=self._serve, args=(channel, peer, ended), daemon=True).start()

    def _hurry(self) -> None:
        """Close connections that take too long to say whose they are."""
        now_s = time.monotonic()
        with self._lock:
            late = [
                one for one, (_, since_s) in self._strangers.items() if now_s - since_s > STRANGER_S
            ]
        for one in late:
            _hang_up(one)

    def _serve(self, channel: ssl.SSLSocket, peer: str, ended: threading.Event) -> None:
        try:
            with channel:
                channel.do_handshake()
                self._talk(_Link(channel), channel.getpeercert(binary_form=True), ended)
        except Refused as why:
            what = "What a sensor at %s says is not in order: %s."
            self._reject("out_of_order", what, peer, why)
        except (CitywardError, ssl.SSLCertVerificationError) as why:
            self._reject("not_admitted", "A sensor at %s is not admitted: %s", peer, why)
        except (OSError, ValueError) as why:
            log.info("The connection of %s ended: %s.", peer, why)
        finally:
            self._is_known(channel)

    def _is_known(self, channel: ssl.SSLSocket) -> None:
        with self._lock:
            self._strangers.pop(channel, None)

    def _talk(self, link: _Link, certificate: bytes | None, ended: threading.Event) -> None:
        try:
            if certificate is None:
                self._enrol(link)
            else:
                self._receive(link, certificate, ended)
        except CitywardError as why:
            link.say({"refused": str(why)})
            raise
        finally:
            link.end()

    def _enrol(self, link: _Link) -> None:
        link.say(self._authority.greeting())
        asked = _object(link.line())
        token, request = asked.get("cw.enrol"), asked.get("request")
        if not isinstance(token, str) or not isinstance(request, str):
            raise Refused("no certificate, and no request for one")
        link.say(self._authority.enrol(token, request))

    def _receive(self, link: _Link, certificate: bytes, ended: threading.Event) -> None:
        link.spool = _object(link.line()).get("cw.spool", "")
        link.name = self._authority.sensor(certificate)
        if not isinstance(link.spool, str) or not SPOOL.fullmatch(link.spool):
            raise Refused("it does not say what it counts by")
        with self._turn(link):
            try:
                while not ended.is_set():
                    shipped = link.batch()
                    self._authority.sensor(certificate)
                    self._take(link, shipped, ended)
            finally:
                with self._lock:
                    if self._links.get(link.name) is link:
                        del self._links[link.name]
                        self._changed(link.name, "gone")

    def _turn(self, link: _Link) -> threading.Lock:
        """Take the place of an earlier connection of the sensor; what that took is queued first."""
        with self._lock:
            before = self._links.get(link.name)
            self._links[link.name] = link
            self._changed(link.name, "connected")
            spool, number = self._durable.get(link.name, ("", 0))
            link.acknowledge(number if spool == link.spool else 0)
            turn = self._turns.setdefault(link.name, threading.Lock())
        if before is not None:
            before.close()
        self._is_known(link.channel)
        return turn

    def _take(self, link: _Link, shipped: Shipped, ended: threading.Event) -> None:
        """One batch; one that was taken before is acknowledged when, or as, it is durable."""
        spool, number = self._taken.get(link.name, ("", 0))
        if spool == link.spool and shipped.number <= number:
            with self._lock:
                durable = self._durable.get(link.name, ("", 0))
                if durable[0] == link.spool and durable[1] >= shipped.number:
                    link.acknowledge(shipped.number)
            return
        while not (ended.is_set() or link.is_closed):
            if self._is_queued(shipped):
                self._taken[link.name] = (link.spool, shipped.number)
                return
            link.say_durable()

    def _is_queued(self, shipped: Shipped) -> bool:
        """Whether there was room for a batch, within a moment."""
        with self._lock:
            is_room = not self._waiting_bytes or (
                self._waiting_bytes + shipped.size <= WAITING_MAX_BYTES
            )
            self._waiting_bytes += shipped.size if is_room else 0
        if not is_room:
            time.sleep(PAUSE_S)
            return False
        try:
            self._queue.put(shipped, timeout=PAUSE_S)
        except queue.Full:
            with self._lock:
                self._waiting_bytes -= shipped.size
            return False
        return True

    def _changed(self, name: str, state: str) -> None:
        """That a sensor came or went, to be said; the lock is held."""
        if len(self._states) < STATES_MAX:
            self._states.append((name, state))
        else:
            self._rejected["too_many_changes"] += 1

    def _reject(self, why: str, text: str, *said: object) -> None:
        now_s = time.monotonic()
        with self._lock:
            self._rejected[why] += 1
            is_loud = now_s >= self._quiet_until_s.get(why, 0.0)
            if is_loud:
                self._quiet_until_s[why] = now_s + LOG_EVERY_S
        log.log(logging.WARNING if is_loud else logging.INFO, text, *said)

    def _close(self) -> None:
        with self._lock:
            links, strangers = list(self._links.values()), list(self._strangers)
            turns = list(self._turns.values())
        for link in links:
            link.close()
        for one in strangers:
            _hang_up(one)
        for turn in turns:
            with turn:  # nobody puts anything into the queue any more
                pass
        self._queue, self._waiting_bytes = queue.Queue(WAITING), 0
        if self._listening is not None:
            self._listening.close()
            self._listening = None


class _Link:
    """A connection; its own thread alone reads and writes, for TLS allows no two at once."""

    def __init__(self, channel: ssl.SSLSocket) -> None:
        self.name = ""
        self.spool = ""
        self.channel = channel
        self.is_closed = False
        self._data = bytearray()
        self._durable = self._said = -1
        self._woken, self._waker = socket.socketpair()
        for one in (channel, self._woken, self._waker):
            one.setblocking(False)
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)

    # ---- by others

    def acknowledge(self, number: int) -> None:
        """Have it say what is durable; the lock of the reader is held."""
        self._durable = max(self._durable, number)
        with contextlib.suppress(OSError):  # full: it is woken anyway; closed: it is gone
            self._waker.send(b"\0")

    def close(self) -> None:
        """End the connection, whatever its thread waits for."""
        self.is_closed = True
        _hang_up(self.channel)

    # ---- by its thread

    def end(self) -> None:
        """Let go of what it was woken by."""
        self._woken.close()
        self._waker.close()

    def line(self) -> bytes:
        """The next line; blank ones only say that the other end is there."""
        searched = 0
        while True:
            end = self._data.find(b"\n", searched) + 1
            if end:
                line = bytes(self._data[:end])
                del self._data[:end]
                if line.strip():
                    return line
                searched = 0
                continue
            searched = len(self._data)
            if searched > LINE_MAX_BYTES:
                raise Refused("a line without an end")
            self._data += self._received()

    def batch(self) -> Shipped:
        """The next batch; `Refused` if it is none."""
        lines: list[bytes] = []
        size = 0
        while not (line := self.line()).startswith(b'{"cw.batch":'):
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
        return Shipped(self.name, self.spool, commit.batch, lines, size, max(commit.lost, 0))

    def say(self, what: Mapping[str, str]) -> None:
        """Say something short; the other end may be gone."""
        with contextlib.suppress(OSError):
            self.channel.sendall(msgspec.json.encode(what) + b"\n")

    def say_durable(self) -> None:
        """Say what became durable since the last time."""
        number = self._durable
        if number == self._said:
            return
        try:
            self.channel.send(b'{"cw.acked":%d}\n' % number)
        except ssl.SSLWantWriteError as error:
            raise Refused("it does not hear what is acknowledged") from error
        self._said = number

    def _received(self) -> bytes:
        while True:
            self.say_durable()
            try:
                data = self.channel.recv(CHUNK_BYTES)
            except ssl.SSLWantReadError:
                if not self._poll.poll(SILENT_S * 1000):
                    raise TimeoutError("it was silent for too long") from None
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(CHUNK_BYTES)
                continue
            if not data:
                raise ConnectionResetError("the other end is gone")
            return data


def _listening(host: str, port: int) -> socket.socket:
    is_all = host in ("", "::") and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if is_all or ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=64, dualstack_ipv6=is_all)


def _hang_up(channel: ssl.SSLSocket) -> None:
    # Not `channel.shutdown`: its reader would go on without TLS.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(channel, socket.SHUT_RDWR)


def _object(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Refused(f"no JSON object: {error}") from error
