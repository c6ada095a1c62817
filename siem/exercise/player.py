"""Plays records into the sources of the nodes, and counts what it gave."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from siem.exercise.evening import Clock, Put
from siem.exercise.frames import pcap_head, pcap_record
from siem.exercise.nodes import OneNode
from siem.exercise.saltmere import captures_of

DOCUMENT = "{number:06}.pb"
READER_S = 120.0
"""A pipe that nobody reads for so long stays unread, also on a busy machine."""


class _Outlet(Protocol):
    """Where the records of one source go."""

    def put(self, put: Put, clock: Clock) -> None: ...

    def close(self) -> None: ...


class _Log:
    """A log file that grows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def put(self, put: Put, clock: Clock) -> None:
        self._file.write(put.data + b"\n")

    def close(self) -> None:
        self._file.close()


class _Folder:
    """Documents that appear in a folder, each whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0

    def put(self, put: Put, clock: Clock) -> None:
        self._number += 1
        name = DOCUMENT.format(number=self._number)
        being_written = self._path / f".{name}"
        being_written.write_bytes(put.data)
        being_written.rename(self._path / name)

    def close(self) -> None:
        return


class _Udp:
    """Syslog over UDP."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", port))

    def put(self, put: Put, clock: Clock) -> None:
        self._socket.send(put.data)

    def close(self) -> None:
        self._socket.close()


class _Tcp:
    """Syslog over TCP with counted octets, RFC 6587, 3.4.1."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))

    def put(self, put: Put, clock: Clock) -> None:
        self._socket.sendall(b"%d %s" % (len(put.data), put.data))

    def close(self) -> None:
        self._socket.close()


class _Capture:
    """A capture, into a file or into a pipe from which the node reads it as it is made."""

    def __init__(self, path: Path) -> None:
        self._file = _open_pipe(path) if path.is_fifo() else path.open("wb")
        self._file.write(pcap_head())

    def put(self, put: Put, clock: Clock) -> None:
        time_us = round(clock.time(put.at_s).timestamp() * 1e6)
        self._file.write(pcap_record(time_us, put.data))

    def close(self) -> None:
        self._file.close()


def _open_pipe(path: Path) -> BinaryIO:
    """Open a pipe that somebody reads.

    Raises:
        OSError: nobody does.
    """
    until_s = time.monotonic() + READER_S
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > until_s:
                raise
            time.sleep(0.05)
            continue
        os.set_blocking(fd, True)
        return os.fdopen(fd, "wb")


class Player:
    """Gives a node what happens at its operator.

    Args:
        node: The node that reads it.
    """

    def __init__(self, node: OneNode) -> None:
        self.node = node
        self.given: Counter[str] = Counter()
        """Records by source."""
        self._outlets: dict[str, _Outlet] = {}
        self._kinds = {
            name: feed.kind
            for feed in node.place.feeds
            for name in (captures_of(feed) if feed.kind == "tap" else (feed.id,))
        }

    def touch(self) -> None:
        """Make the files that are there before anything happens."""
        for source, kind in self._kinds.items():
            if kind == "file":
                self._outlet(source)
        for feed in self.node.place.feeds:
            if feed.kind == "tap":
                self._outlet(captures_of(feed)[0])

    def put(self, put: Put, clock: Clock) -> None:
        """Give one record."""
        self._outlet(put.source).put(put, clock)
        self.given[put.source] += 1

    def is_tap(self, source: str) -> bool:
        """Whether a source is a capture."""
        return self._kinds[source] == "tap"

    def done(self, *sources: str) -> None:
        """Nothing more comes from some sources; without any, from all."""
        for source in sources or tuple(self._outlets):
            if outlet := self._outlets.pop(source, None):
                outlet.close()

    def _outlet(self, source: str) -> _Outlet:
        if source not in self._outlets:
            self._outlets[source] = self._opened(source)
        return self._outlets[source]

    def _opened(self, source: str) -> _Outlet:
        folder, kind = self.node.folder, self._kinds[source]
        if kind == "file":
            return _Log(folder / f"{source}.log")
        if kind == "folder":
            return _Folder(folder / source)
        if kind == "tap":
            return _Capture(folder / f"{source}.pcap")
        return (_Udp if kind == "syslog_udp" else _Tcp)(self.node.ports[source])


def play(
    given: Sequence[tuple[Player, Sequence[Put]]], clock: Clock, stop: threading.Event
) -> None:
    """Play to all nodes at once, each record when its time has come.

    Args:
        given: For every player what it gives.
        clock: When it began, and how fast it passes.
        stop: Ends it early.
    """
    every = sorted(
        ((put, player) for player, puts in given for put in puts), key=lambda one: one[0].at_s
    )
    last = {(id(player), put.source): number for number, (put, player) in enumerate(every)}
    for number, (put, player) in enumerate(every):
        wait_s = clock.time(put.at_s).timestamp() - time.time()
        if stop.wait(wait_s) if wait_s > 0.002 else stop.is_set():
            break
        player.put(put, clock)
        # A capture is whole when its last frame is in it.
        if last[id(player), put.source] == number and player.is_tap(put.source):
            player.done(put.source)
    for player, _ in given:
        player.done()


def write(player: Player, puts: Iterable[Put], clock: Clock) -> None:
    """Write what was before the evening, at once."""
    player.touch()
    for put in sorted(puts, key=lambda one: one.at_s):
        player.put(put, clock)
    player.done()
