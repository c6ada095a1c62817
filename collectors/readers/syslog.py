"""Syslog over UDP (RFC 5426) and over TCP in both framings (RFC 6587)."""

from __future__ import annotations

import errno
import re
import selectors
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from cityward.errors import InputError
from cityward.event import Record
from cityward.plugin import Framing
from collectors.readers.batch import (
    MAX_BATCH_BYTES,
    MAX_RECORDS,
    PAUSE_S,
    Batch,
    Clock,
    utc_now,
)
from collectors.readers.lines import CUT_BYTES, LINE_MAX_BYTES

DATAGRAM_MAX_BYTES = 65_536
"""No UDP datagram is longer (jumbograms of RFC 2675 aside), so none is ever cut."""
RECEIVE_BUFFER_BYTES = 8 << 20
CHUNK_BYTES = 64 << 10
CONNECTIONS_MAX = 256
IDLE_S = 600.0
SILENT_S = 10.0
"""When all connections are taken, one that was silent for so long gives way to a new one."""
SO_RCVBUFFORCE = 33
SO_MEMINFO = 55
SK_MEMINFO_DROPS = 8
"""Linux, `asm-generic/socket.h` and `linux/sock_diag.h`: drops of a socket, the counter that
SO_RXQ_OVFL tells too, but only with the next datagram."""
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_COUNT = re.compile(rb"([1-9][0-9]{0,6}) <")
"""RFC 6587 3.4.1: MSG-LEN SP SYSLOG-MSG, and a message begins with `<` (RFC 5424 6)."""
_COUNT_BEGUN = re.compile(rb"[1-9][0-9]{0,6} ?\Z")


class Message(NamedTuple):
    """A message as it was framed."""

    data: bytes
    cut: bool
    """True if it was longer than `CUT_BYTES` or its end never came."""


class Framer:
    """Bytes of one connection in, messages out; each message says its own framing.

    A count above 1 MiB is not believed: what follows is read up to the next line end.
    """

    def __init__(self) -> None:
        self._undecided = b""
        self._left = 0
        self._in_line = False
        self._held = bytearray()
        self._length = 0

    def feed(self, chunk: bytes) -> list[Message]:
        """Messages that are whole now."""
        found: list[Message] = []
        data, at = self._undecided + chunk, 0
        self._undecided = b""
        while at < len(data):
            if self._left:
                part = data[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                self._keep(part)
                if not self._left:
                    self._close(found)
            elif self._in_line:
                end = data.find(b"\n", at)
                self._keep(data[at : end if end >= 0 else len(data)])
                at = end + 1 if end >= 0 else len(data)
                if end >= 0:
                    self._close(found)
            elif (count := _COUNT.match(data, at)) and int(count[1]) <= LINE_MAX_BYTES:
                self._left = int(count[1])
                at = count.end() - 1
            elif _COUNT_BEGUN.match(data, at):
                self._undecided = data[at:]
                break
            else:
                self._in_line = True
        return found

    def end(self) -> list[Message]:
        """The last message when the connection is over."""
        found: list[Message] = []
        self._keep(self._undecided)
        self._undecided = b""
        self._close(found, whole=not self._left)
        return found

    def _keep(self, part: bytes) -> None:
        self._length += len(part)
        # One byte more than a record has: it can be the CR of the line end.
        room = CUT_BYTES + 1 - len(self._held)
        if room > 0:
            self._held += part[:room]

    def _close(self, found: list[Message], whole: bool = True) -> None:
        data = bytes(self._held)
        cut = self._length > len(data)
        if not cut:
            data = data.removesuffix(b"\n").removesuffix(b"\r")
            cut = len(data) > CUT_BYTES
        if data and not data.isspace():
            found.append(Message(data[:CUT_BYTES], cut or not whole))
        self._held.clear()
        self._length = self._left = 0
        self._in_line = False


class Received(NamedTuple):
    """A message and the address it came from."""

    peer: str
    message: Message


class _Syslog:
    """What both transports share: numbering, batches, sockets.

    A record's place is `<address of the sender>|<number>`; numbers go on over restarts.
    """

    framing: Framing = "lines"
    _kind: socket.SocketKind

    def __init__(self, host: str, port: int, source: str, *, clock: Clock = utc_now) -> None:
        self.host = host
        self.port = port
        self.source = source
        self._clock = clock
        self._sockets: list[socket.socket] = []
        self._waiting: deque[Received] = deque()
        self._rejected: Counter[str] = Counter()

    def open(self) -> None:
        """Bind; `port` is the real one afterwards. `read` does this if nobody did.

        Raises:
            InputError: the address cannot be bound.
        """
        if self._sockets:
            return
        try:
            for family, address in _addresses(self.host, self.port, self._kind):
                try:
                    bound = self._bind(family, (address, self.port))
                except OSError as error:
                    if self._sockets and error.errno in _NO_SUCH_FAMILY:
                        continue
                    raise
                self._sockets.append(bound)
                self.port = bound.getsockname()[1]
        except OSError as error:
            self.close()
            raise InputError(
                f"cannot listen on {self.host or '*'} port {self.port}: {error.strerror or error}",
                f"source {self.source}",
                "Choose a free port; below 1024 the service needs CAP_NET_BIND_SERVICE.",
            ) from error

    def close(self) -> None:
        """Let go of the port."""
        for one in self._sockets:
            one.close()
        self._sockets = []

    def read(self, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        """Yield batches; numbering goes on from `place`."""
        number = place if isinstance(place, int) else 0
        self.open()
        try:
            with selectors.DefaultSelector() as selector:
                for one in self._sockets:
                    selector.register(one, selectors.EVENT_READ)
                while not stop.is_set() or self._waiting:
                    if not stop.is_set():
                        self._receive(selector)
                    batch = self._batch(number)
                    number = batch.place
                    yield batch
        finally:
            self.close()

    def _receive(self, selector: selectors.BaseSelector) -> None:
        """Fill `_waiting` until it makes a batch or time is up."""
        until_s = time.monotonic() + PAUSE_S
        size = 0
        while len(self._waiting) < MAX_RECORDS and size < MAX_BATCH_BYTES:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return
            for key, _ in selector.select(left_s):
                size += self._ready(key, selector)

    def _batch(self, number: int) -> Batch:
        received = self._clock()
        taken = [self._waiting.popleft() for _ in range(min(MAX_RECORDS, len(self._waiting)))]
        records = [
            Record(message.data, self.source, f"{peer}|{number + at}", received)
            for at, (peer, message) in enumerate(taken)
        ]
        rejected, self._rejected = dict(self._rejected), Counter()
        return Batch(
            self.source,
            records,
            number + len(records),
            lost=self._lost(),
            rejected=rejected,
            cut=sum(one.message.cut for one in taken),
        )

    def _bind(self, family: int, address: tuple[str, int]) -> socket.socket:
        made = socket.socket(family, self._kind)
        try:
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self._prepare(made)
            made.bind(address)
            self._bound(made)
        except OSError:
            made.close()
            raise
        made.setblocking(False)
        return made

    def _prepare(self, made: socket.socket) -> None:
        """Options before the socket is bound."""

    def _bound(self, made: socket.socket) -> None:
        """What follows the binding."""

    def _ready(self, key: selectors.SelectorKey, selector: selectors.BaseSelector) -> int:
        """Take what a socket has; gives the number of bytes."""
        raise NotImplementedError

    def _lost(self) -> int:
        return 0


class SyslogUdp(_Syslog):
    """Datagrams, one record each; what the kernel dropped is counted as lost.

    Args:
        host: Address or name to listen on, IPv4 or IPv6; empty for all.
        port: UDP port, 514 as registered; 0 for any free one.
        source: Id of the source.
        clock: Gives `Record.received`.
    """

    _kind = socket.SOCK_DGRAM

    def __init__(self, host: str, port: int, source: str, *, clock: Clock = utc_now) -> None:
        super().__init__(host, port, source, clock=clock)
        self._dropped: dict[socket.socket, int] = {}

    def _prepare(self, made: socket.socket) -> None:
        try:
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        except OSError:  # only with CAP_NET_ADMIN; else as much as net.core.rmem_max allows
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)

    def _ready(self, key: selectors.SelectorKey, selector: selectors.BaseSelector) -> int:
        size = 0
        while len(self._waiting) < MAX_RECORDS and size < MAX_BATCH_BYTES:
            try:
                data, address = key.fileobj.recvfrom(DATAGRAM_MAX_BYTES)  # type: ignore[union-attr]
            except OSError:  # nothing left, or an ICMP error of someone we never spoke to
                break
            self._waiting.append(Received(_peer(address), Message(data, False)))
            size += len(data)
        return size

    def _lost(self) -> int:
        lost = 0
        for one in self._sockets:
            dropped = _drops(one)
            # The kernel's counter has 32 bits.
            lost += (dropped - self._dropped.get(one, 0)) % (1 << 32)
            self._dropped[one] = dropped
        return lost


class Connection:
    """One sender."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.framer = Framer()
        self.heard_s = time.monotonic()


class SyslogTcp(_Syslog):
    """Connections in octet counting and line framing, also mixed.

    `rejected` counts connections turned away as `too_many_connections`, one each.

    Args:
        host: Address or name to listen on, IPv4 or IPv6; empty for all.
        port: TCP port, 601 as registered; 0 for any free one.
        source: Id of the source.
        idle_s: A connection that is silent for so long is closed.
        connections_max: How many there may be at a time.
        clock: Gives `Record.received`.
    """

    _kind = socket.SOCK_STREAM

    def __init__(
        self,
        host: str,
        port: int,
        source: str,
        *,
        idle_s: float = IDLE_S,
        connections_max: int = CONNECTIONS_MAX,
        clock: Clock = utc_now,
    ) -> None:
        super().__init__(host, port, source, clock=clock)
        self._idle_s = idle_s
        self._connections_max = connections_max
        self._connections: dict[socket.socket, Connection] = {}

    def close(self) -> None:
        """Let go of the port and of all connections."""
        for one in self._connections:
            one.close()
        self._connections = {}
        super().close()

    def _prepare(self, made: socket.socket) -> None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def _bound(self, made: socket.socket) -> None:
        made.listen(128)

    def _receive(self, selector: selectors.BaseSelector) -> None:
        super()._receive(selector)
        now_s = time.monotonic()
        for one, connection in list(self._connections.items()):
            if now_s - connection.heard_s > self._idle_s:
                self._end(one, selector)

    def _ready(self, key: selectors.SelectorKey, selector: selectors.BaseSelector) -> int:
        ready = key.fileobj
        assert isinstance(ready, socket.socket)
        if ready in self._sockets:
            self._accept(ready, selector)
            return 0
        connection = self._connections.get(ready)
        # A full batch is taken first; what a connection has waits in the kernel.
        if connection is None or len(self._waiting) >= MAX_RECORDS:
            return 0
        try:
            chunk = ready.recv(CHUNK_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            chunk = b""
        if not chunk:
            self._end(ready, selector)
            return 0
        connection.heard_s = time.monotonic()
        self._wait(connection, connection.framer.feed(chunk))
        return len(chunk)

    def _accept(self, listening: socket.socket, selector: selectors.BaseSelector) -> None:
        try:
            made, address = listening.accept()
        except OSError:  # the sender went away, or this process has no file handle left
            return
        if len(self._connections) >= self._connections_max and not self._made_room(selector):
            made.close()
            self._rejected["too_many_connections"] += 1
            return
        made.setblocking(False)
        self._connections[made] = Connection(_peer(address))
        selector.register(made, selectors.EVENT_READ)

    def _made_room(self, selector: selectors.BaseSelector) -> bool:
        silent = min(self._connections, key=lambda one: self._connections[one].heard_s)
        if time.monotonic() - self._connections[silent].heard_s < SILENT_S:
            return False
        self._end(silent, selector)
        return True

    def _end(self, one: socket.socket, selector: selectors.BaseSelector) -> None:
        connection = self._connections.pop(one)
        selector.unregister(one)
        one.close()
        self._wait(connection, connection.framer.end())

    def _wait(self, connection: Connection, messages: list[Message]) -> None:
        self._waiting.extend(Received(connection.peer, message) for message in messages)


def _addresses(host: str, port: int, kind: socket.SocketKind) -> list[tuple[int, str]]:
    """Families and addresses to bind; all of them for an empty host."""
    found = socket.getaddrinfo(host or None, port, type=kind, flags=socket.AI_PASSIVE)
    # IPv4 first: where IPv6 is switched off, that is enough.
    return sorted({(int(family), str(address[0])) for family, *_, address in found})


def _peer(address: Any) -> str:
    """Address without the zone of a link-local one."""
    return str(address[0]).partition("%")[0]


def _drops(one: socket.socket) -> int:
    try:
        words = one.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * (SK_MEMINFO_DROPS + 1))
    except OSError:  # not Linux, or older than 4.12
        return 0
    if len(words) < 4 * (SK_MEMINFO_DROPS + 1):
        return 0
    return int(struct.unpack_from("=I", words, 4 * SK_MEMINFO_DROPS)[0])
