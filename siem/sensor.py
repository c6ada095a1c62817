"""A sensor: it reads and collects like a node, and ships what it keeps to one.

Events go into the spool of the sensor first. A thread of its own ships them from there, batch by
batch as they were committed, and forgets what the node has made durable; so neither a broken line
nor a killed process loses or doubles any. When the disk quota is reached, the oldest batches go
first; how many events they held is told to the node, which counts them as lost.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import secrets
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
from cryptography import x509

from cityward import Event, Finding, TransientError, Unsafe
from collectors.readers.sensors import BATCH_MAX_BYTES, EVENTS_MAX
from siem import assembly
from siem.assets import Inventory
from siem.authority import NODE, read_token
from siem.config import Settings
from siem.node import Clock, Node, now_utc
from siem.sharing import certificates
from siem.sharing.certificates import new_key, write_secret
from siem.store.events import EventStore
from siem.store.room import is_full
from siem.store.spool import Batch, pairs, segments

IN_FLIGHT = 8
"""Batches that are sent before the first of them is acknowledged."""
ALIVE_S = 20.0
"""With nothing to ship, a blank line says so often that the sensor is there."""
LOOK_S = 0.25
TALK_S = 30.0
FINISH_S = 3.0
RETRY_S, RETRY_MAX_S = 1.0, 60.0
ANSWER_MAX_BYTES = 65_536
NOT_THE_NODE = "who answers is not the node that made the token"
NOTHING_TOLD = "Check the address, and the clock here; nothing was told to it."

log = logging.getLogger(__name__)


class Sensor(Node):
    """A node that concludes nothing: its spool is emptied by a shipper, not by compaction."""

    shipper: Shipper

    def recover(self) -> None:
        """What was kept is shipped; there is no detector that had to see it again."""
        self._batch_number = self.events.last_batch

    def detect(self, events: Sequence[Event]) -> list[Finding]:
        """The node detects."""
        return []

    def tidy(self) -> None:
        """Forget what was shipped, and the oldest of what cannot be."""
        if self._is_due("compact", 1.0):
            self.make_room()

    def make_room(self) -> int:
        """On a full disk only what the node has, and what is over the quota, may go."""
        try:
            return self.shipper.trim()
        except OSError as error:
            if not is_full(error):
                raise
            return 0


def sensor_of(settings: Settings, *, clock: Clock = now_utc) -> Sensor:
    """A sensor with its store open; its shipper is made, not yet started."""
    inventory = Inventory((), ())
    sensor = Sensor(
        operator=settings.operator,
        sector=settings.sector,
        site=settings.site,
        sources=list(assembly.sources_of(settings, clock)),
        inventory=inventory,
        detectors=(),
        events=assembly.events_of(settings, clock, write=True),
        db=assembly.db_of(settings, inventory, clock),
        clock=clock,
    )
    quota_bytes = int(settings.retention.disk_quota_gb * 1e9)
    sensor.shipper = Shipper(sensor.events, settings.state_path, settings.sensor.node, quota_bytes)
    return sensor


class Shipper(threading.Thread):
    """Ships the spool of a sensor to its node, for as long as the process lives.

    Args:
        events: The sensor's store; only its spool is used.
        state: Folder with certificate and key, see `enrol`.
        node: `host:port` of the node's sensor port.
        quota_bytes: What the spool may take; 0: as much as there is.
    """

    def __init__(self, events: EventStore, state: Path, node: str, quota_bytes: int) -> None:
        super().__init__(name="shipper", daemon=True)
        self.acked = 0
        """Batches up to here are durable at the node."""
        self.sent = 0
        """Batches up to here are on their way, or there."""
        self.error = ""
        """Why nothing is shipped; empty while the connection stands."""
        self.ended = threading.Event()
        self._failures = 0
        self._channel: ssl.SSLSocket | None = None
        self._events, self._state, self._quota_bytes = events, state, quota_bytes
        self._host, self._port = _address(node)
        self._spool, self._after = _spool_id(state)
        self._kept = state / "shipped.json"
        self._lost, self._lost_up_to = _read_lost(self._kept)
        self._deciding = threading.Lock()
        """Held by who decides whether a batch is shipped or given up."""
        self._newest = events.last_batch
        """The node can have no batch behind it."""

    def run(self) -> None:
        """Ship; after a failure again, at growing intervals."""
        while not self.ended.is_set():
            try:
                with self._connected() as channel:
                    self._ship(channel)
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                self._failed(str(error))
            except Exception as error:  # a fault of ours must not end the shipping for good
                log.exception("The shipper failed.")
                self._failed(repr(error))

    def _failed(self, why: str) -> None:
        self._failures += 1
        said = f"{self._host} port {self._port}: {why}"
        if said != self.error and not self.ended.is_set():
            log.warning("Nothing is shipped, %s; it waits in the spool.", said)
        self.error, self.sent = said, self.acked
        self.ended.wait(min(RETRY_S * 2.0 ** min(self._failures - 1, 10), RETRY_MAX_S))

    def finish(self) -> None:
        """Ship what is kept, for a moment; what is left goes at the next start."""
        until_s = time.monotonic() + FINISH_S
        while self.acked < self._events.last_batch and not self.error:
            if time.monotonic() > until_s:
                break
            time.sleep(LOOK_S / 5)
        self.stop()

    def stop(self) -> None:
        """End the connection, whatever it waits for."""
        self.ended.set()
        if self._channel is not None:
            with contextlib.suppress(OSError):
                # Not its own `shutdown`: the thread would go on without TLS.
                socket.socket.shutdown(self._channel, socket.SHUT_RDWR)

    def trim(self) -> int:
        """Delete segments that were shipped whole; over the quota the oldest that were not.

        Returns:
            Bytes that are free now.
        """
        found = segments(self._events.folder)
        before = used = sum(one.path.stat().st_size for one in found)
        for segment, following in pairs(found):
            if following is None:
                break
            with self._deciding:
                if following.first - 1 > self.acked:
                    # What is on its way is neither lost nor durable yet.
                    is_room = not self._quota_bytes or used <= self._quota_bytes
                    if is_room or segment.first <= self.sent:
                        break
                    self._give_up(segment.batches(), "The spool is full")
                used -= segment.path.stat().st_size
                segment.path.unlink()
        return before - used

    def _give_up(self, batches: Iterable[Batch], why: str) -> None:
        """Count what goes unshipped, before it goes: a kill between the two counts it once."""
        known = max(self.acked, self._lost_up_to)
        gone = [one.commit for one in batches if one.commit.batch > known]
        if gone:
            self._lost += sum(one.events for one in gone)
            self._lost_up_to = gone[-1].batch
            self._keep_lost()
            log.error("%s: %d events are lost so far.", why, self._lost)

    def _keep_lost(self) -> None:
        said = {"lost": self._lost, "up_to": self._lost_up_to}
        write_secret(self._kept, msgspec.json.encode(said))

    # ---- the connection

    def _connected(self) -> ssl.SSLSocket:
        context = _context((self._state / "node.pem").read_text(encoding="ascii"))
        context.load_cert_chain(self._state / "sensor.key")
        return _connection(self._host, self._port, context)

    def _ship(self, channel: ssl.SSLSocket) -> None:
        self._channel = channel
        channel.sendall(msgspec.json.encode({"cw.spool": self._spool}) + b"\n")
        answers = channel.makefile("rb")
        acked = _acked(answers.readline(ANSWER_MAX_BYTES))
        self._failures, self.error = 0, ""
        log.info("Shipping to %s port %d.", self._host, self._port)
        if acked > self._newest:
            return self._begin_anew()
        self.acked = self.sent = max(acked, self._after)
        waiting: deque[int] = deque()
        said_s = time.monotonic()
        for batch in self._tail(self.acked):
            # With nothing to ship, or what cannot be, all that is on its way is heard of first.
            most = IN_FLIGHT - 1 if batch is not None and _is_fit(batch) else 0
            while len(waiting) > most:
                self._hear(answers.readline(ANSWER_MAX_BYTES), waiting)
            if batch is not None and self._is_claimed(batch):
                channel.sendall(_message(batch, self._lost))
                waiting.append(batch.commit.batch)
                said_s = time.monotonic()
            elif time.monotonic() - said_s > ALIVE_S:
                channel.sendall(b"\n")
                said_s = time.monotonic()

    def _hear(self, line: bytes, waiting: deque[int]) -> None:
        self.acked = max(self.acked, _acked(line))
        while waiting and waiting[0] <= self.acked:
            waiting.popleft()

    def _is_claimed(self, batch: Batch) -> bool:
        """Whether a batch is shipped: not if it was given up, nor if no node would take it."""
        with self._deciding:
            if batch.commit.batch <= self._lost_up_to:
                return False
            if not _is_fit(batch):
                self._give_up([batch], "A batch is damaged or too large")
                return False
            self.sent = batch.commit.batch
            self._newest = max(self._newest, self.sent)
            return True

    def _begin_anew(self) -> None:
        """Its numbers come again, and the node would take new batches for those it has."""
        log.error("The node has more of this spool than there is here, as if it was set back.")
        with self._deciding:
            self._after = self._lost_up_to = self._newest
            self._lost = 0
            self._keep_lost()
            self._spool = _new_spool(self._state, self._after)

    def _tail(self, after: int) -> Iterator[Batch | None]:
        """Batches behind a number as they are committed; None when there is no further one yet."""
        segment, at = None, 0
        while not self.ended.is_set():
            last = self._events.last_batch
            found = segments(self._events.folder)
            here = [one for one in found if segment is None or one.first >= segment.first]
            for one, following in pairs(here):
                if following is not None and following.first - 1 <= after:
                    continue
                if segment is None or one.first != segment.first:
                    segment, at = one, 0
                for batch in _until(one.batches(at), last):
                    at = batch.end
                    if batch.commit.batch > after:
                        after = batch.commit.batch
                        yield batch
            yield None
            self.ended.wait(LOOK_S)


def enrol(state: Path, node: str, token: str) -> str:
    """Make a key, and have the node sign it; the token serves once.

    Returns:
        Name of the sensor.

    Raises:
        Unsafe: the token is none, or who answers is not the node that made it.
        TransientError: nobody answers, or the node refuses.
    """
    said = read_token(token)
    key, request = new_key(said.name)
    host, port = _address(node)
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Nothing is said to who is not known yet; its authority is compared with the token.
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    try:
        with _connection(host, port, blind) as channel:
            greeting = channel.makefile("rb").readline(ANSWER_MAX_BYTES)
        authority = _authority(_member(greeting, "authority"), said.authority)
        # By the authority the node is known, and not only one of its sensors.
        with _connection(host, port, _context(authority)) as channel:
            answers = channel.makefile("rb")
            answers.readline(ANSWER_MAX_BYTES)
            asked = {"cw.enrol": token, "request": request}
            channel.sendall(msgspec.json.encode(asked) + b"\n")
            certificate = _member(answers.readline(ANSWER_MAX_BYTES), "certificate")
    except ssl.SSLCertVerificationError as error:
        raise Unsafe(f"{NOT_THE_NODE}: {error}", "--enrol", NOTHING_TOLD) from error
    except (OSError, ValueError) as error:
        todo = "Check address and port; the node's log says why it refuses."
        raise TransientError(f"no certificate: {error}", node, todo) from error
    write_secret(state / "node.pem", authority.encode())
    # Key and certificate in one file: a kill between two would leave a pair that is none.
    write_secret(state / "sensor.key", key + certificate.encode())
    return said.name


def is_enrolled(state: Path) -> bool:
    """Whether there is a certificate."""
    return all((state / name).exists() for name in ("sensor.key", "node.pem"))


def _authority(said: str, fingerprint: str) -> str:
    """The authority that made a token, and nothing else that who answers may have added."""
    try:
        made = x509.load_pem_x509_certificate(said.encode())
    except ValueError as error:
        raise Unsafe(NOT_THE_NODE, "--enrol", NOTHING_TOLD) from error
    if certificates.fingerprint(made) != fingerprint:
        raise Unsafe(NOT_THE_NODE, "--enrol", NOTHING_TOLD)
    return certificates.pem(made)


def _address(node: str) -> tuple[str, int]:
    host, _, port = node.rpartition(":")
    return host.strip("[]"), int(port)


def _context(authority: str) -> ssl.SSLContext:
    """For the connection to a node that is known by its authority (PEM)."""
    context = ssl.create_default_context(cadata=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _connection(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    made = socket.create_connection((host, port), timeout=TALK_S)
    return context.wrap_socket(made, server_hostname=NODE)


def _member(line: bytes, name: str) -> str:
    said = msgspec.json.decode(line, type=dict[str, str]) if line else {}
    if name not in said:
        raise ValueError(said.get("refused", "the node ended the connection"))
    return said[name]


def _acked(line: bytes) -> int:
    if not line:
        raise ConnectionResetError("the node ended the connection")
    said = msgspec.json.decode(line, type=dict[str, int | str])
    if "refused" in said:
        raise ConnectionRefusedError(said["refused"])
    return int(said.get("cw.acked", 0))


def _is_fit(batch: Batch) -> bool:
    return (
        batch.is_sound and len(batch.lines) <= BATCH_MAX_BYTES and batch.commit.events <= EVENTS_MAX
    )


def _until(batches: Iterable[Batch], last: int) -> Iterator[Batch]:
    """What is durable here: a batch whose sync fails is taken back, and its number comes again."""
    return itertools.takewhile(lambda one: one.commit.batch <= last, batches)


def _message(batch: Batch, lost: int) -> bytes:
    """A batch as it stands in the spool, and how many events this spool has ever lost."""
    commit = batch.commit
    return batch.lines + b'{"cw.batch":%d,"events":%d,"crc":%d,"places":%s,"lost":%d}\n' % (
        commit.batch, commit.events, commit.crc, bytes(commit.places), lost,
    )  # fmt: skip


def _spool_id(state: Path) -> tuple[str, int]:
    """By what the batches of this spool are told from those of another, and where they begin."""
    path = state / "spool.id"
    if not path.exists():
        return _new_spool(state, 0), 0
    name, _, after = path.read_text(encoding="ascii").strip().partition(" ")
    return name, int(after or 0)


def _new_spool(state: Path, after: int) -> str:
    name = secrets.token_hex(16)
    write_secret(state / "spool.id", f"{name} {after}".encode())
    return name


def _read_lost(path: Path) -> tuple[int, int]:
    try:
        said = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError):
        return 0, 0
    return said.get("lost", 0), said.get("up_to", 0)
