"""A sensor: it reads and collects like a node, and ships what it keeps to one.

Events go into the spool of the sensor first. A thread of its own ships them from there, batch by
batch as they were committed, and forgets what the node has made durable; so neither a broken line
nor a killed process loses or doubles any. When the disk quota is reached, the oldest batches go
first; how many events they held is told to the node, which counts them as lost.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes

from cityward import Event, Finding, TransientError, Unsafe
from siem import assembly
from siem.assets import Inventory
from siem.authority import NODE, new_key, read_token, write_secret
from siem.config import Settings
from siem.node import Clock, Node, now_utc
from siem.store.events import EventStore
from siem.store.spool import Batch, Segment, pairs, segments

IN_FLIGHT = 8
"""Batches that are sent before the first of them is acknowledged."""
ALIVE_S = 20.0
"""With nothing to ship, a blank line says so often that the sensor is there."""
LOOK_S = 0.25
TALK_S = 30.0
FINISH_S = 5.0
RETRY_S, RETRY_MAX_S = 1.0, 60.0
GREETING_MAX_BYTES = 65_536

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
            self.shipper.trim()


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
        self._channel: ssl.SSLSocket | None = None
        self._events, self._state, self._quota_bytes = events, state, quota_bytes
        self._host, _, port = node.rpartition(":")
        self._port = int(port)
        self._spool = _spool_id(state)
        self._kept = state / "shipped.json"
        self._lost, self._lost_up_to = _read_lost(self._kept)

    def run(self) -> None:
        """Ship; after a failure again, at growing intervals."""
        failures = 0
        while not self.ended.is_set():
            try:
                with self._connected() as channel:
                    failures, self.error = 0, ""
                    log.info("Shipping to %s port %d.", self._host, self._port)
                    self._ship(channel)
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                failures += 1
                said = f"{self._host} port {self._port}: {error}"
                if said != self.error:
                    log.warning("Nothing is shipped, %s; it waits in the spool.", said)
                self.error, self.sent = said, self.acked
                self.ended.wait(min(RETRY_S * 2.0 ** min(failures - 1, 10), RETRY_MAX_S))

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
                self._channel.shutdown(socket.SHUT_RDWR)

    def trim(self) -> None:
        """Delete segments that were shipped whole; over the quota the oldest that were not."""
        used = sum(one.path.stat().st_size for one in segments(self._events.folder))
        for segment, following in pairs(segments(self._events.folder)):
            if following is None:
                return
            if following.first - 1 > self.acked:
                # What is on its way is neither lost nor durable yet.
                is_room = not self._quota_bytes or used <= self._quota_bytes
                if is_room or segment.first <= self.sent:
                    return
                self._give_up(segment)
            used -= segment.path.stat().st_size
            segment.path.unlink()

    def _give_up(self, segment: Segment) -> None:
        """Count what goes unshipped, before it goes: a kill between the two counts it once."""
        gone = [
            one for one in segment.batches() if one.commit.batch > max(self.acked, self._lost_up_to)
        ]
        if gone:
            self._lost += sum(one.commit.events for one in gone)
            self._lost_up_to = gone[-1].commit.batch
            self._keep_lost()
            log.error("The spool is full: %d events are lost so far.", self._lost)

    def _keep_lost(self) -> None:
        said = {"lost": self._lost, "up_to": self._lost_up_to}
        write_secret(self._kept, msgspec.json.encode(said))

    # ---- the connection

    def _connected(self) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=self._state / "node.pem")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(self._state / "sensor.pem", self._state / "sensor.key")
        made = socket.create_connection((self._host, self._port), timeout=TALK_S)
        return context.wrap_socket(made, server_hostname=NODE)

    def _ship(self, channel: ssl.SSLSocket) -> None:
        self._channel = channel
        channel.sendall(msgspec.json.encode({"cw.spool": self._spool}) + b"\n")
        answers = channel.makefile("rb")
        self.acked = self.sent = _acked(answers.readline(256))
        waiting: deque[Batch] = deque()
        said_s = time.monotonic()
        for batch in self._tail(self.acked):
            if batch is None:
                while waiting:
                    self._hear(answers.readline(256), waiting)
                if time.monotonic() - said_s > ALIVE_S:
                    channel.sendall(b"\n")
                    said_s = time.monotonic()
                continue
            if len(waiting) >= IN_FLIGHT:
                self._hear(answers.readline(256), waiting)
            self.sent = batch.commit.batch
            channel.sendall(_message(batch, self._lost))
            waiting.append(batch)
            said_s = time.monotonic()

    def _hear(self, line: bytes, waiting: deque[Batch]) -> None:
        self.acked = max(self.acked, _acked(line))
        while waiting and waiting[0].commit.batch <= self.acked:
            waiting.popleft()

    def _tail(self, after: int) -> Iterator[Batch | None]:
        """Batches behind a number as they are committed; None when there is no further one yet."""
        segment, at = None, 0
        while not self.ended.is_set():
            found = segments(self._events.folder)
            here = [one for one in found if segment is None or one.first >= segment.first]
            for one, following in pairs(here):
                if following is not None and following.first - 1 <= after:
                    continue
                if segment is None or one.first != segment.first:
                    segment, at = one, 0
                for batch in one.batches(at):
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
    name, _, fingerprint = read_token(token)
    key, request = new_key(name)
    host, _, port = node.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Not yet known by its authority: it is compared with the token before anything is said.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, int(port)), timeout=TALK_S) as made,
            context.wrap_socket(made) as channel,
        ):
            answers = channel.makefile("rb")
            authority = _member(answers.readline(GREETING_MAX_BYTES), "authority")
            _compare(channel, authority, fingerprint)
            asked = {"cw.enrol": token, "request": request}
            channel.sendall(msgspec.json.encode(asked) + b"\n")
            certificate = _member(answers.readline(GREETING_MAX_BYTES), "certificate")
    except (OSError, ValueError) as error:
        todo = "Check address and port; the node's log says why it refuses."
        raise TransientError(f"no certificate: {error}", node, todo) from error
    write_secret(state / "sensor.key", key)
    write_secret(state / "sensor.pem", certificate.encode())
    write_secret(state / "node.pem", authority.encode())
    return name


def is_enrolled(state: Path) -> bool:
    """Whether there is a certificate."""
    return all((state / name).exists() for name in ("sensor.key", "sensor.pem", "node.pem"))


def _compare(channel: ssl.SSLSocket, authority: str, fingerprint: str) -> None:
    """Hold that the token was made by who answers, and that the connection is theirs."""
    try:
        made = x509.load_pem_x509_certificate(authority.encode())
        shown = channel.getpeercert(binary_form=True)
        x509.load_der_x509_certificate(shown or b"").verify_directly_issued_by(made)
        is_theirs = made.fingerprint(hashes.SHA256()).hex() == fingerprint
    except (ValueError, TypeError, InvalidSignature):
        is_theirs = False
    if not is_theirs:
        what = "who answers is not the node that made the token"
        raise Unsafe(what, "--enrol", "Check the address; nothing was told to it.")


def _member(line: bytes, name: str) -> str:
    said = msgspec.json.decode(line, type=dict[str, str]) if line else {}
    if name not in said:
        raise ValueError("the node ended the connection")
    return said[name]


def _acked(line: bytes) -> int:
    if not line:
        raise ConnectionResetError("the node ended the connection")
    said: Any = msgspec.json.decode(line, type=dict[str, int])
    return int(said.get("cw.acked", 0))


def _message(batch: Batch, lost: int) -> bytes:
    """A batch as it stands in the spool, and how many events this spool has ever lost."""
    commit = batch.commit
    return batch.lines + b'{"cw.batch":%d,"events":%d,"crc":%d,"places":%s,"lost":%d}\n' % (
        commit.batch, commit.events, commit.crc, bytes(commit.places), lost,
    )  # fmt: skip


def _spool_id(state: Path) -> str:
    """By what the batches of this spool are told from those of an earlier one."""
    path = state / "spool.id"
    if not path.exists():
        write_secret(path, secrets.token_hex(16).encode())
    return path.read_text(encoding="ascii").strip()


def _read_lost(path: Path) -> tuple[int, int]:
    try:
        said = msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError):
        return 0, 0
    return said.get("lost", 0), said.get("up_to", 0)
