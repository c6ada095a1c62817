"""Syslog over UDP and TCP: framings, lies, bounds."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cityward.errors import InputError
from collectors.readers import Batch, SyslogTcp, SyslogUdp
from collectors.readers.syslog import Framer, Message
from tests.programs import PATIENCE_S


class Running:
    """A reader in a thread, as in a node."""

    def __init__(self, reader: SyslogUdp | SyslogTcp, place: int | None = None) -> None:
        self.reader = reader
        self.batches: list[Batch] = []
        self.stop = threading.Event()
        reader.open()
        self._thread = threading.Thread(target=self._read, args=(place,))
        self._thread.start()

    def _read(self, place: int | None) -> None:
        self.batches.extend(self.reader.read(place, self.stop))

    def end(self) -> None:
        self.stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


class Live(Running):
    """The same, with batches seen while they come."""

    def _read(self, place: int | None) -> None:
        for batch in self.reader.read(place, self.stop):
            self.batches.append(batch)

    def wait(self, records: int) -> None:
        self.wait_for(lambda: sum(len(batch.records) for batch in self.batches) >= records)

    def wait_for(self, what: object) -> None:
        end = time.monotonic() + PATIENCE_S
        while not what() and time.monotonic() < end:  # type: ignore[operator]
            time.sleep(0.02)

    @property
    def data(self) -> list[bytes]:
        return [record.data for batch in self.batches for record in batch.records]


@contextmanager
def live(reader: SyslogUdp | SyslogTcp, place: int | None = None) -> Iterator[Live]:
    running = Live(reader, place)
    try:
        yield running
    finally:
        running.end()


def tcp(port: int, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sender:
        sender.sendall(data)


# ---- framing


def frames(data: bytes) -> list[Message]:
    framer = Framer()
    return framer.feed(data) + framer.end()


def test_both_framings_may_be_mixed_on_one_connection() -> None:
    data = b"7 <1>one\n<2>two\r\n\n8 <3>three8 <4>fo\nur\n\n<5>five"

    found = [message.data for message in frames(data)]

    assert found == [b"<1>one", b"<2>two", b"<3>three", b"<4>fo\nur", b"<5>five"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"5 <1>one and more\n<2>two\n", [b"<1>on", b"e and more", b"<2>two"]),
        (b"99999999 <1>one\n<2>two\n", [b"99999999 <1>one", b"<2>two"]),
        (b"9999999 <1>one\n<2>two\n", [b"9999999 <1>one", b"<2>two"]),
        (b"0 <1>one\n", [b"0 <1>one"]),
        (b"-5 <1>one\n", [b"-5 <1>one"]),
        (b"12 monkeys\n2024-01-01 a date\n", [b"12 monkeys", b"2024-01-01 a date"]),
        (b"1 <1 <1 <", [b"<", b"<", b"<"]),
        (b"12", [b"12"]),
        (b"12 ", [b"12 "]),
        (b"\n\r\n \n", []),
        (b"", []),
    ],
)
def test_a_count_that_lies_hides_no_later_message(data: bytes, expected: list[bytes]) -> None:
    found = frames(data)

    assert [message.data for message in found] == expected
    assert not any(message.cut for message in found)


def test_a_message_whose_end_never_came_is_given_and_said() -> None:
    assert frames(b"100 <1>one") == [Message(b"<1>one", True)]


@pytest.mark.parametrize("framing", [b"%d ", b""])
def test_64_kib_are_whole_and_more_is_cut_in_either_framing(framing: bytes) -> None:
    whole, long = b"<1>" + b"w" * 65_533, b"<1>" + b"l" * 900_000
    first = framing % len(whole) if framing else b""
    second = framing % len(long) if framing else b""

    found = frames(first + whole + b"\r\n" + second + long + b"\r\n<2>end\n")

    assert found == [
        Message(whole, False),
        Message(long[:65_536], True),
        Message(b"<2>end", False),
    ]


soup = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [b"<34>", b"\n", b"\r\n", b"7 <1>a", b"1000000 <", b"9999999 <", b"12", b" ", b"0 <"]
        ),
        st.tuples(st.integers(1, 60), st.binary(max_size=50)).map(
            lambda pair: b"%d <%s" % pair,
        ),
        st.integers(65_530, 65_540).map(lambda n: b"<" + b"z" * n),
    ),
    max_size=15,
)


@settings(max_examples=300, deadline=None)
@given(soup, st.integers(0, 2**32))
def test_messages_are_the_same_however_the_bytes_are_cut(parts: list[bytes], seed: int) -> None:
    data, chance = b"".join(parts), random.Random(seed)
    framer, at, found = Framer(), 0, []

    while at < len(data):
        size = chance.choice([1, 2, 3, 9, 1000, 65_536])
        found += framer.feed(data[at : at + size])
        at += size
    found += framer.end()

    assert found == frames(data)
    assert all(0 < len(message.data) <= 65_536 for message in found)


# ---- UDP


def test_each_datagram_is_a_record_with_its_sender_and_a_number() -> None:
    with (
        live(SyslogUdp("127.0.0.1", 0, "udp"), place=40) as running,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for data in (b"<34>one\n", b"\xff\x00", b"x" * 65_507):
            sender.sendto(data, ("127.0.0.1", running.reader.port))
        running.wait(3)

    records = [record for batch in running.batches for record in batch.records]
    assert [(r.data, r.place, r.source) for r in records] == [
        (b"<34>one\n", "127.0.0.1|40", "udp"),
        (b"\xff\x00", "127.0.0.1|41", "udp"),
        (b"x" * 65_507, "127.0.0.1|42", "udp"),
    ]
    assert running.batches[-1].place == 43


def test_datagrams_of_ipv4_and_ipv6_are_received_with_plain_addresses() -> None:
    with live(SyslogUdp("", 0, "udp")) as running:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"<1>x", (host, running.reader.port))
        running.wait(2)

    peers = {str(r.place).split("|")[0] for batch in running.batches for r in batch.records}
    assert peers == {"127.0.0.1", "::1"}


def test_what_the_kernel_drops_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.readers.syslog.RECEIVE_BUFFER_BYTES", 20_000)
    reader = SyslogUdp("127.0.0.1", 0, "udp")
    reader.open()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number in range(500):
            sender.sendto(b"%d" % number + b" " * 500, ("127.0.0.1", reader.port))

    stop, records, lost = threading.Event(), 0, 0
    for batch in reader.read(None, stop):
        records, lost = records + len(batch.records), lost + batch.lost
        if not batch.records:
            stop.set()

    assert 0 < records < 500
    assert records + lost == 500


def test_a_port_that_is_taken_is_said() -> None:
    first = SyslogTcp("127.0.0.1", 0, "tcp")
    first.open()

    with pytest.raises(InputError, match=str(first.port)):
        SyslogTcp("127.0.0.1", first.port, "tcp").open()

    first.close()


# ---- TCP


def test_messages_of_many_connections_all_arrive_once() -> None:
    with live(SyslogTcp("127.0.0.1", 0, "tcp")) as running:
        senders = [
            threading.Thread(
                target=tcp,
                args=(
                    running.reader.port,
                    b"".join(
                        b"<1>%d %d\n" % (c, n) if c % 2 else b"9 <1>%d %04d" % (c, n)
                        for n in range(1000)
                    ),
                ),
            )
            for c in range(8)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        running.wait(8000)

    assert sorted(running.data) == sorted(
        b"<1>%d %d" % (c, n) if c % 2 else b"<1>%d %04d" % (c, n)
        for c in range(8)
        for n in range(1000)
    )
    places = [str(r.place) for batch in running.batches for r in batch.records]
    assert places == [f"127.0.0.1|{n}" for n in range(8000)]
    assert max(len(batch.records) for batch in running.batches) <= 1000


def test_a_cut_message_is_delivered_and_counted() -> None:
    with live(SyslogTcp("127.0.0.1", 0, "tcp")) as running:
        tcp(running.reader.port, b"<1>" + b"x" * 200_000 + b"\n<1>short\n50 <1>gone")
        running.wait(3)

    assert [len(data) for data in running.data] == [65_536, 8, 7]
    assert sum(batch.cut for batch in running.batches) == 2
    assert sum(batch.lost + sum(batch.rejected.values()) for batch in running.batches) == 0


def test_connections_beyond_the_bound_are_turned_away_and_counted() -> None:
    with live(SyslogTcp("127.0.0.1", 0, "tcp", connections_max=2)) as running:
        senders = [socket.create_connection(("127.0.0.1", running.reader.port)) for _ in range(5)]
        for sender in senders[:2]:
            sender.sendall(b"<1>here\n")
        running.wait(2)
        running.wait_for(lambda: sum(sum(b.rejected.values()) for b in running.batches) >= 3)
        for sender in senders:
            sender.close()

    rejected = [batch.rejected for batch in running.batches if batch.rejected]
    assert sum(one["too_many_connections"] for one in rejected) == 3
    assert running.data == [b"<1>here", b"<1>here"]


def test_a_silent_connection_gives_way_to_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.readers.syslog.SILENT_S", 0.0)
    with (
        live(SyslogTcp("127.0.0.1", 0, "tcp", connections_max=1)) as running,
        socket.create_connection(("127.0.0.1", running.reader.port)) as silent,
    ):
        silent.sendall(b"<1>first\n<1>half")
        running.wait(1)
        tcp(running.reader.port, b"<1>second\n")
        running.wait(3)

    assert sorted(running.data) == [b"<1>first", b"<1>half", b"<1>second"]


def test_an_idle_connection_is_closed_and_its_last_words_are_kept() -> None:
    with (
        live(SyslogTcp("127.0.0.1", 0, "tcp", idle_s=0.3)) as running,
        socket.create_connection(("127.0.0.1", running.reader.port)) as sender,
    ):
        sender.sendall(b"<1>no line end")
        running.wait(1)
        sender.settimeout(PATIENCE_S)
        end = sender.recv(1)

    assert running.data == [b"<1>no line end"]
    assert end == b""


def test_numbers_go_on_after_a_restart() -> None:
    with live(SyslogTcp("127.0.0.1", 0, "tcp")) as first:
        tcp(first.reader.port, b"<1>a\n<1>b\n")
        first.wait(2)
    with live(SyslogTcp("127.0.0.1", 0, "tcp"), first.batches[-1].place) as second:
        tcp(second.reader.port, b"<1>c\n")
        second.wait(1)

    places = [r.place for batch in first.batches + second.batches for r in batch.records]
    assert places == ["127.0.0.1|0", "127.0.0.1|1", "127.0.0.1|2"]


def test_idle_sockets_say_so_and_end_when_told() -> None:
    for reader in (SyslogUdp("127.0.0.1", 0, "u"), SyslogTcp("127.0.0.1", 0, "t")):
        stop = threading.Event()
        batches = reader.read(7, stop)

        idle = [next(batches) for _ in range(2)]
        stop.set()

        assert [(batch.records, batch.place) for batch in idle] == [([], 7), ([], 7)]
        assert list(batches) == []
