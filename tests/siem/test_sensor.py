"""A sensor and its node over mutual TLS: admitted once, nothing lost, nothing twice."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from cityward import ConfigError, Record, TransientError, Unsafe
from cityward.checks import check_collector
from collectors.readers import sensors
from collectors.readers.sensors import Sensors
from collectors.shipped import shipped
from siem import config, sensor
from siem.authority import SensorAuthority, read_token
from siem.node import now_utc
from siem.store.events import EventStore
from siem.store.spool import Segment, commit_line, segments
from tests.programs import PATIENCE_S, wait_until

LINE = "Feb 25 14:34:10 belka sshd[31602]: Failed password for root from 192.0.2.{} port 50273 ssh2"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Port:
    """A node's port for sensors, read by a thread; batches are durable when `keep` says so."""

    def __init__(self, state: Path, clock: Callable[[], datetime] = now_utc) -> None:
        self.authority = SensorAuthority(state, clock)
        self.reader = Sensors("127.0.0.1", 0, "sensors", self.authority)
        self.records: list[str] = []
        self.lost = 0
        self.rejected: Counter[str] = Counter()
        self.keeps = threading.Event()
        self.keeps.set()
        self.place: object = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.reader.port}"

    def start(self) -> None:
        self._stop.clear()
        self.reader.open()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join(PATIENCE_S)

    def _read(self) -> None:
        for batch in self.reader.read(self.place, self._stop):
            self.rejected.update(batch.rejected)
            while not self.keeps.wait(0.1) and not self._stop.is_set():
                continue
            if self._stop.is_set() and not self.keeps.is_set():
                return
            self.lost += batch.lost
            self.place = batch.place
            # Last: who waits for records asks then for what was lost before them.
            self.records += [record.data.decode() for record in batch.records]
            batch.done()

    @property
    def states(self) -> list[str]:
        return [json.loads(one)["state"] for one in self.records if "cw.sensor" in one]

    @property
    def events(self) -> list[str]:
        return [json.loads(one)["message"] for one in self.records if "cw.sensor" not in one]


@pytest.fixture
def port(tmp_path) -> Iterator[Port]:
    made = Port(tmp_path / "node")
    made.start()
    yield made
    made.stop()


class Spool:
    """A sensor without readers: its store, and the thread that ships it."""

    def __init__(self, state: Path, node: str, quota_bytes: int = 0, **named) -> None:
        self.state = state
        self.events = EventStore(state / "events", **named)
        self.shipper = sensor.Shipper(self.events, state, node, quota_bytes)

    def keep(self, *messages: str) -> None:
        documents = [
            {
                "@timestamp": datetime(2026, 3, 1, tzinfo=UTC),
                "message": message,
                "cw.record.place": message,
                "cw.operator": "somebody else",
            }
            for message in messages
        ]
        self.events.append(documents, {})

    def stop(self) -> None:
        self.shipper.stop()
        self.shipper.join(PATIENCE_S)
        self.events.close()


@pytest.fixture
def spool(tmp_path, port) -> Iterator[Spool]:
    state = tmp_path / "sensor"
    sensor.enrol(state, port.address, port.authority.add("quay-4"))
    made = Spool(state, port.address)
    yield made
    if made.shipper.is_alive():
        made.stop()


def test_what_a_sensor_keeps_comes_to_the_node_in_order(port, spool):
    sent = [f"m{number}" for number in range(3_000)]
    for start in range(0, 3_000, 100):
        spool.keep(*sent[start : start + 100])
    spool.shipper.start()

    wait_until(lambda: len(port.events) == 3_000)

    assert port.events == sent
    wait_until(lambda: spool.shipper.acked == 30)


def test_what_is_not_durable_is_not_acknowledged_and_comes_once(port, spool):
    port.keeps.clear()
    spool.keep("a")
    spool.shipper.start()
    time.sleep(0.5)
    assert spool.shipper.acked == 0

    spool.shipper.stop()
    spool.shipper.join(PATIENCE_S)
    again = sensor.Shipper(spool.events, spool.state, port.address, 0)
    again.start()
    time.sleep(0.5)
    port.keeps.set()

    wait_until(lambda: again.acked == 1)
    spool.keep("b")
    wait_until(lambda: again.acked == 2)
    assert port.events == ["a", "b"]
    again.stop()


def test_a_node_that_was_away_gets_all_of_it_once(port, spool):
    spool.shipper.start()
    spool.keep("a")
    wait_until(lambda: port.events == ["a"])
    port.stop()
    spool.keep("b", "c")
    port.start()

    wait_until(lambda: port.events == ["a", "b", "c"])
    assert "gone" in port.states


def test_a_sensor_that_did_not_come_back_after_a_start_of_the_node_is_gone(
    port, spool, monkeypatch
):
    other = SensorAuthority(spool.state.parent / "node", now_utc)
    sensor.enrol(spool.state.parent / "old", port.address, other.add("revoked"))
    for state in (spool.state, spool.state.parent / "old"):
        Raw(port, state).ship([1])
    wait_until(lambda: port.events == ["1", "1"])
    port.stop()
    other.revoke("revoked")
    port.records.clear()
    port.reader._states.clear()
    monkeypatch.setattr(sensors, "RETURN_S", 0.5)
    port.start()

    wait_until(lambda: bool(port.records))

    assert [json.loads(one) for one in port.records] == [{"cw.sensor": "quay-4", "state": "gone"}]


def test_a_node_that_died_before_its_commit_gets_the_batch_again(tmp_path, port, spool):
    port.keeps.clear()
    spool.keep("a")
    spool.shipper.start()
    time.sleep(0.5)
    assert port.events == []
    number = port.reader.port
    port.stop()

    again = Port(tmp_path / "node")
    again.reader.port = number
    again.start()

    wait_until(lambda: again.events == ["a"])
    again.stop()


def test_a_sensor_that_begins_anew_is_not_taken_for_its_old_self(tmp_path, port, spool):
    spool.keep("old")
    spool.shipper.start()
    wait_until(lambda: port.events == ["old"])
    spool.stop()

    anew = Spool(tmp_path / "other", port.address)
    sensor.enrol(anew.state, port.address, port.authority.add("quay-4"))
    anew.keep("new")
    anew.shipper.start()

    wait_until(lambda: port.events == ["old", "new"])
    anew.stop()


def test_a_full_spool_gives_up_the_oldest_and_says_how_many(tmp_path, port):
    state = tmp_path / "sensor"
    sensor.enrol(state, port.address, port.authority.add("quay-4"))
    made = Spool(state, port.address, 20_000, segment_max_bytes=5_000)
    sent = [f"{number:04d}" + "x" * 900 for number in range(60)]
    for one in sent:
        made.keep(one)
    made.shipper.trim()
    made.shipper.start()

    wait_until(lambda: bool(port.events) and port.events[-1] == sent[-1])

    assert port.lost > 0
    assert port.lost + len(port.events) == 60
    assert port.events == sent[port.lost :]
    made.stop()


def test_what_is_durable_at_the_node_leaves_the_spool(port, tmp_path):
    state = tmp_path / "sensor"
    sensor.enrol(state, port.address, port.authority.add("quay-4"))
    made = Spool(state, port.address, segment_max_bytes=2_000)
    for number in range(20):
        made.keep(f"{number}" + "x" * 500)
    before = len(list((state / "events" / "spool").iterdir()))
    made.shipper.start()
    wait_until(lambda: made.shipper.acked == 20)

    freed = made.shipper.trim()

    assert freed > 0
    assert before > 5
    assert len(list((state / "events" / "spool").iterdir())) == 1
    assert port.lost == 0
    made.stop()


# ---- Who is admitted


def test_a_token_serves_once(port, tmp_path):
    token = port.authority.add("quay-4")
    sensor.enrol(tmp_path / "one", port.address, token)

    with pytest.raises(TransientError, match="not in force"):
        sensor.enrol(tmp_path / "two", port.address, token)
    assert not sensor.is_enrolled(tmp_path / "two")
    wait_until(lambda: port.rejected["not_admitted"] == 1)


def test_a_node_restored_without_its_secrets_says_so(tmp_path):
    authority = SensorAuthority(tmp_path, now_utc)
    authority.add("quay-4")
    (tmp_path / "sensors" / "ca.key").unlink()

    with pytest.raises(ConfigError, match="key of the sensors' authority"):
        authority.context()


def test_a_token_is_good_for_a_day(tmp_path):
    now = datetime(2026, 3, 1, tzinfo=UTC)
    authority = SensorAuthority(tmp_path, lambda: now)
    token = authority.add("quay-4")
    now += timedelta(hours=25)

    with pytest.raises(Unsafe, match="too old"):
        authority.enrol(token, "")


def test_the_node_keeps_no_secret_of_a_token(port, tmp_path):
    token = port.authority.add("quay-4")

    secret = read_token(token).secret

    kept = b"".join(one.read_bytes() for one in (tmp_path / "node").rglob("*") if one.is_file())
    assert secret not in kept
    assert token.encode() not in kept


def test_who_is_not_the_node_that_made_the_token_is_told_nothing(port, tmp_path):
    stranger = SensorAuthority(tmp_path / "stranger", now_utc)
    token = stranger.add("quay-4")

    with pytest.raises(Unsafe, match="not the node"):
        sensor.enrol(tmp_path / "sensor", port.address, token)


@pytest.mark.parametrize("token", ["", "x", "cw1.", "cw1.e30=", "cw1." + "A" * 5_000])
def test_what_is_no_token_is_refused(tmp_path, token):
    with pytest.raises(Unsafe, match="no token"):
        sensor.enrol(tmp_path, "127.0.0.1:1", token)


def test_a_revoked_sensor_ships_no_more(port, spool):
    spool.shipper.start()
    spool.keep("a")
    wait_until(lambda: port.events == ["a"])

    port.authority.revoke("quay-4")
    spool.keep("b")

    wait_until(lambda: port.rejected["not_admitted"] > 0)
    assert port.events == ["a"]


def test_an_older_certificate_of_a_sensor_is_not_in_force(port, spool, tmp_path):
    sensor.enrol(tmp_path / "new", port.address, port.authority.add("quay-4"))
    spool.keep("a")
    spool.shipper.start()

    wait_until(lambda: port.rejected["not_admitted"] > 0)
    assert port.events == []


def test_a_certificate_of_another_authority_is_not_believed(port, tmp_path):
    other = Port(tmp_path / "other")
    other.start()
    sensor.enrol(tmp_path / "sensor", other.address, other.authority.add("quay-4"))
    other.stop()
    made = Spool(tmp_path / "sensor", port.address)
    made.keep("a")
    made.shipper.start()

    wait_until(lambda: bool(made.shipper.error))
    assert port.events == []
    made.stop()


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"cw.enrol": 7}\n',
        b'{"cw.spool": "x"}\n{"cw.batch":1,"events":0,"crc":0,"places":{}}\n',
        b"x" * 2_000_000,
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
    ],
)
def test_who_shows_no_certificate_may_only_ask_for_one(port, said):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port.reader.port)) as made,
        context.wrap_socket(made) as channel,
    ):
        answers = channel.makefile("rb")
        assert b"authority" in answers.readline()
        try:
            channel.sendall(said)
            assert answers.readline() == b""
        except OSError:
            pass

    wait_until(lambda: port.rejected["out_of_order"] == 1)
    assert port.events == []


def test_a_batch_that_is_not_what_it_says_is_not_taken(port, spool):
    context = ssl.create_default_context(cafile=spool.state / "node.pem")
    context.load_cert_chain(spool.state / "sensor.key")
    with (
        socket.create_connection(("127.0.0.1", port.reader.port)) as made,
        context.wrap_socket(made, server_hostname="cityward-node") as channel,
    ):
        channel.sendall(b'{"cw.spool":"x"}\n{"message":"a"}\n')
        channel.sendall(b'{"cw.batch":1,"events":1,"crc":7,"places":{}}\n')
        answers = channel.makefile("rb")
        assert answers.readline() == b'{"cw.acked":0}\n'
        assert answers.readline() == b""

    wait_until(lambda: port.rejected["out_of_order"] == 1)
    assert port.events == []


class Raw:
    """A hostile or hasty sensor: it says what a test tells it to."""

    def __init__(self, port: Port, state: Path, spool: str = "4c1f") -> None:
        context = ssl.create_default_context(cafile=state / "node.pem")
        context.load_cert_chain(state / "sensor.key")
        made = socket.create_connection(("127.0.0.1", port.reader.port), timeout=PATIENCE_S)
        self.channel = context.wrap_socket(made, server_hostname="cityward-node")
        self.channel.sendall(b'{"cw.spool":"%s"}\n' % spool.encode())
        self.answers = self.channel.makefile("rb")
        self.hello = self.answers.readline()

    def ship(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            line = b'{"message":"%d"}\n' % number
            commit = b'{"cw.batch":%d,"events":1,"crc":%d,"places":{}}\n'
            self.channel.sendall(line + commit % (number, zlib.crc32(b"{}", zlib.crc32(line))))


def test_connections_that_follow_each_other_keep_the_order_while_the_node_is_busy(port, spool):
    port.keeps.clear()
    links = []
    for turn in range(4):
        links.append(Raw(port, spool.state))
        links[-1].ship(range(1, 20 + turn))
        time.sleep(0.4)
    port.keeps.set()
    wait_until(lambda: len(port.events) >= 18)

    last = Raw(port, spool.state)
    last.ship(range(1, 26))

    wait_until(lambda: len(port.events) >= 25)
    assert port.events == [str(number) for number in range(1, 26)]


def test_who_never_ends_a_handshake_keeps_no_sensor_away(port, spool, monkeypatch):
    monkeypatch.setattr(sensors, "STRANGER_S", 1.0)
    silent = [socket.create_connection(("127.0.0.1", port.reader.port)) for _ in range(40)]
    time.sleep(0.3)
    spool.keep("a")
    spool.shipper.start()

    wait_until(lambda: port.events == ["a"])

    assert port.rejected["too_many_connections"] >= 40 - sensors.STRANGERS_EACH_MAX
    for one in silent:
        one.close()


def test_who_says_a_letter_now_and_then_is_closed(port, monkeypatch):
    monkeypatch.setattr(sensors, "STRANGER_S", 1.0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    made = socket.create_connection(("127.0.0.1", port.reader.port), timeout=PATIENCE_S)
    channel = context.wrap_socket(made)
    until = time.monotonic() + PATIENCE_S

    with pytest.raises(OSError):  # noqa: PT011, PT012 – which one, and when, is a matter of the moment
        while time.monotonic() < until:
            channel.sendall(b"x")
            time.sleep(0.1)


class Deaf:
    """A channel whose other end takes nothing."""

    def __init__(self) -> None:
        self._one, self._other = socket.socketpair()
        self.fileno, self.setblocking = self._one.fileno, self._one.setblocking

    def send(self, data: bytes) -> int:
        raise ssl.SSLWantWriteError

    def recv(self, size: int) -> bytes:
        raise ssl.SSLWantReadError


def test_who_does_not_hear_what_is_acknowledged_holds_nobody_up():
    link = sensors._Link(Deaf())  # type: ignore[arg-type]

    link.acknowledge(7)  # as the node does, in the one thread of its path

    with pytest.raises(sensors.Refused, match="does not hear"):
        link.line()
    link.end()


def test_another_sensor_cannot_pass_for_the_node_at_an_enrolment(port, spool, tmp_path):
    """It has a certificate of the same authority, and knows the authority's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(spool.state / "sensor.key")
    listening = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def pretend() -> None:
        greeting = json.dumps({"authority": (spool.state / "node.pem").read_text()})
        for _ in range(2):
            try:
                with context.wrap_socket(listening.accept()[0], server_side=True) as channel:
                    channel.sendall(greeting.encode() + b"\n")
                    heard.append(channel.recv(10_000))
            except OSError:
                continue

    threading.Thread(target=pretend, daemon=True).start()
    token = port.authority.add("quay-5")

    with pytest.raises(Unsafe, match="not the node"):
        sensor.enrol(tmp_path / "new", f"127.0.0.1:{listening.getsockname()[1]}", token)
    assert not any(heard)
    listening.close()


def test_a_certificate_that_expires_ends_an_open_connection(tmp_path):
    now = [now_utc()]
    port = Port(tmp_path / "node", lambda: now[0])
    port.start()
    sensor.enrol(tmp_path / "sensor", port.address, port.authority.add("quay-4"))
    link = Raw(port, tmp_path / "sensor")
    link.ship([1])
    wait_until(lambda: port.events == ["1"])

    now[0] += timedelta(days=731)
    link.ship([2])

    wait_until(lambda: port.rejected["not_admitted"] == 1)
    assert port.events == ["1"]
    port.stop()


def test_a_port_listens_on_ipv6(tmp_path):
    port = Port(tmp_path / "node")
    port.reader.host = "::1"
    port.start()

    name = sensor.enrol(tmp_path, f"[::1]:{port.reader.port}", port.authority.add("quay-4"))

    assert name == "quay-4"
    port.stop()


# ---- The spool of a sensor


def test_a_damaged_batch_is_counted_and_those_behind_it_are_shipped(port, spool):
    for one in ("first", "second", "third"):
        spool.keep(one)
    (path,) = (spool.state / "events" / "spool").iterdir()
    path.write_bytes(path.read_bytes().replace(b'"message":"second"', b'"message":"sec0nd"'))
    spool.shipper.start()

    wait_until(lambda: port.events == ["first", "third"])

    assert port.lost == 1


def test_a_commit_line_that_is_being_written_joins_no_batches():
    """A reader may see half of it at the end of the file, and the rest a moment later."""
    line = b'{"@timestamp":"2026-03-01T00:00:00Z"}\n'
    first, second, third = (commit_line(number, line, 1, b"{}") for number in (1, 2, 3))

    class Torn(io.BytesIO):
        def __iter__(self) -> Iterator[bytes]:
            return iter((line, first, line, second[:20], second[20:], line, third))

    class Place:
        def open(self, mode: str) -> Torn:
            return Torn()

    read = list(Segment(Place(), 1).batches())  # type: ignore[arg-type]

    assert [(one.commit.batch, one.is_sound) for one in read] == [(1, True)]


def test_what_is_not_synced_yet_is_not_shipped(port, spool):
    spool.keep("a")
    spool.keep("b")
    spool.events._batch = 1  # as while the second is being synced
    spool.shipper.start()
    wait_until(lambda: port.events == ["a"])
    time.sleep(0.6)
    assert port.events == ["a"]

    spool.events._batch = 2

    wait_until(lambda: port.events == ["a", "b"])


def test_a_spool_that_was_set_back_loses_and_doubles_nothing(port, spool, tmp_path):
    """A sensor restored from a snapshot counts on from a number that the node has already."""
    spool.keep("a")
    spool.shipper.start()
    wait_until(lambda: spool.shipper.acked == 1)
    shutil.copytree(spool.state, tmp_path / "snapshot")
    spool.keep("b")
    spool.keep("c")
    wait_until(lambda: spool.shipper.acked == 3)
    spool.stop()

    restored = Spool(tmp_path / "snapshot", port.address)
    restored.keep("d")
    restored.shipper.start()

    wait_until(lambda: "d" in port.events)
    assert port.events == ["a", "b", "c", "d"]
    restored.stop()


def test_what_is_given_up_is_not_shipped_as_well(port, tmp_path):
    state = tmp_path / "sensor"
    sensor.enrol(state, port.address, port.authority.add("quay-4"))
    made = Spool(state, port.address, 2_000, segment_max_bytes=1_000)
    for number in range(10):
        made.keep(f"{number}" + "x" * 500)
    batches = [one for part in segments(state / "events") for one in part.batches()]
    made.shipper.trim()

    assert not made.shipper._is_claimed(batches[0])
    assert made.shipper._is_claimed(batches[-1])
    made.events.close()


def test_a_sensor_is_told_why_it_is_not_admitted(port, spool):
    port.authority.revoke("quay-4")
    spool.shipper.start()

    wait_until(lambda: "not in force" in spool.shipper.error)


# ---- What the node makes of it


def test_the_collector_of_shipped_events_keeps_its_promises():
    sample = (
        b'{"@timestamp":"2026-03-01T00:00:00Z","event.action":"login","source.ip":"192.0.2.1",'
        b'"cw.logsource.product":"linux","cw.logsource.service":"sshd","cw.operator":"op-x",'
        b'"cw.asset.zone":"z","observer.name":"auth","event.ingested":"2026-03-01T00:00:01Z",'
        b'"cw.record.place":"7"}'
    )

    check_collector(shipped, [sample])


NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_only_the_port_says_that_a_sensor_is_gone():
    line = b'{"cw.sensor":"quay-4","state":"gone"}'

    said, forged = shipped(
        [Record(line, "s", "quay-4|state|1", NOW), Record(line, "s", "quay-5|4c1f.1|0", NOW)]
    )

    assert said.fields["event.action"] == "sensor_gone"
    assert forged.is_malformed


@pytest.mark.parametrize("product", [["linux"], {"a": 1}, 7, None, "x" * 5_000])
def test_a_log_source_that_is_none_is_malformed(product):
    line = json.dumps({"@timestamp": "2026-03-01T00:00:00Z", "cw.logsource.product": product})

    (event,) = shipped([Record(line.encode(), "s", "quay-4|4c1f.1|0", NOW)])

    assert event.is_malformed


def test_the_line_by_which_an_event_came_is_not_what_its_source_said():
    line = b'{"@timestamp":"2026-03-01T00:00:00Z","event.action":"read"}'

    (event,) = shipped([Record(line, "s", "quay-4|4c1f.1|0", NOW)])

    assert not event.record.data


# ---- Two processes, killed again and again


def start(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "siem.cli", *words],
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )


def settle(folder: Path, port: int) -> tuple[Path, Path]:
    node, one = folder / "node.toml", folder / "sensor.toml"
    node.write_text(
        f'state_dir = "{folder}/node"\nmodels.on = false\nrules.shipped = false\n[[source]]\n'
        f'id = "sensors"\nreader = "sensors"\nlisten = "127.0.0.1:{port}"\n'
    )
    one.write_text(
        f'state_dir = "{folder}/sensor"\nsensor.node = "127.0.0.1:{port}"\n[[source]]\n'
        f'id = "auth"\nreader = "file"\npath = "{folder}/auth.log"\ncollector = "sshd"\n'
    )
    return node, one


@pytest.mark.slow
def test_processes_that_are_killed_lose_nothing_and_double_nothing(tmp_path):
    chance = random.Random(7)
    port = free_port()
    node_file, sensor_file = settle(tmp_path, port)
    log = tmp_path / "auth.log"
    log.write_text("")
    node = start(["run", "--path-only", "-c", str(node_file)])
    authority = SensorAuthority(tmp_path / "node", now_utc)
    token = authority.add("quay-4")
    wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
    sensor.enrol(tmp_path / "sensor", f"127.0.0.1:{port}", token)
    one = start(["collect", "-c", str(sensor_file)])
    total = 0
    try:
        for _ in range(6):
            for _ in range(40):
                with log.open("a") as file:
                    file.writelines(LINE.format(total + at) + "\n" for at in range(25))
                total += 25
                time.sleep(0.02)
            time.sleep(chance.random())
            if chance.random() < 0.5:
                os.kill(node.pid, signal.SIGKILL)
                node.wait()
                node = start(["run", "--path-only", "-c", str(node_file)])
            else:
                os.kill(one.pid, signal.SIGKILL)
                one.wait()
                one = start(["collect", "-c", str(sensor_file)])
        wait_until(lambda: len(stored(tmp_path / "node")) >= total)
    finally:
        for process in (one, node):
            process.terminate()
            process.wait(PATIENCE_S)
    found = stored(tmp_path / "node")
    seen = Counter(line for line, _ in found)

    assert len(seen) == total
    assert set(seen.values()) == {1}
    assert len({place for _, place in found}) == total


def stored(state: Path) -> list[tuple[str, str]]:
    """Line and place of the sensor's events in the node's files; an oracle that asks no store.

    The spool is read first: what a compaction moves in between is then in both, and is left out
    by the number of its batch.
    """
    folder = state / "events"
    waiting: list[bytes] = []
    for path in sorted((folder / "spool").glob("*.ndjson")):
        with suppress(FileNotFoundError):  # it is in the archive by now
            waiting.append(path.read_bytes())
    archive = sorted((folder / "parquet").glob("*/*.parquet"))
    found = archived(archive)
    last = max((int(path.stem.partition("-")[2]) for path in archive), default=0)
    for number, line, place in (event for data in waiting for event in spooled(data)):
        if number > last:
            found.append((line, place))
    return found


def archived(files: list[Path]) -> list[tuple[str, str]]:
    if not files:
        return []
    names = [str(path) for path in files]
    what = 'SELECT "event.original", "cw.record.place" FROM read_parquet(?, union_by_name=true)'
    where = "WHERE coalesce(\"event.action\", '') NOT IN ?"
    return duckdb.execute(f"{what} {where}", [names, STATES]).fetchall()


def spooled(data: bytes) -> Iterator[tuple[int, str, str]]:
    """Batch, line and place of what is committed in a segment."""
    waiting: list[tuple[str, str]] = []
    for line in data.splitlines():
        if line.startswith(b'{"cw.segment":'):
            continue
        try:
            said = json.loads(line)
        except ValueError:
            return
        if "cw.batch" in said:
            yield from ((said["cw.batch"], *one) for one in waiting)
            waiting = []
        elif said.get("event.action") not in STATES:
            waiting.append((said["event.original"], said["cw.record.place"]))


STATES = ("sensor_connected", "sensor_gone")


def test_settings_of_a_sensor_name_its_node(tmp_path):
    _, file = settle(tmp_path, 8766)

    assert config.load(file).sensor.node == "127.0.0.1:8766"


def test_a_sensor_ships_to_no_port_0(tmp_path):
    _, file = settle(tmp_path, 0)

    with pytest.raises(ConfigError, match="address:port"):
        config.load(file)


def test_a_node_has_one_port_for_sensors(tmp_path):
    file, _ = settle(tmp_path, 8766)
    another = '[[source]]\nid = "more"\nreader = "sensors"\nlisten = "127.0.0.1:8767"\n'
    file.write_text(file.read_text() + another)

    with pytest.raises(ConfigError, match="one port"):
        config.load(file)
