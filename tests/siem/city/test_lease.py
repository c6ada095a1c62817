"""Of two hubs one is active; one that was stopped and comes back can acknowledge nothing."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cityward import ConfigError
from siem.city.authority import Operators
from siem.city.commons import Commons
from siem.city.lease import Lease, alone
from siem.city.links import links
from siem.city.sqlite import SqliteCommons
from siem.sharing.envelope import Signed, split
from tests.programs import PATIENCE_S
from tests.siem.city.city import Node, share_id

ROOT = Path(__file__).parents[3]


class Clock:
    """Seconds that a test lets pass."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def commons(tmp_path: Path) -> Iterator[SqliteCommons]:
    made = SqliteCommons(tmp_path / "commons.db")
    yield made
    made.close()


def test_a_standby_takes_over_when_the_lease_is_not_renewed_for_its_whole_time(commons):
    clock = Clock()
    one, two = (Lease(commons.records, name, monotonic=clock) for name in ("one", "two"))

    assert (one.step(), two.step()) == (True, False)
    for _ in range(5):
        clock.now_s += 3.0
        assert (one.step(), two.step()) == (True, False)
    clock.now_s += 9.0
    assert not two.step()
    clock.now_s += 1.5
    assert two.step()
    assert (one.is_active, one.step(), two.step()) == (False, False, True)
    assert two.token == 2


def test_a_lease_that_is_given_back_is_taken_at_once(commons):
    clock = Clock()
    one, two = (Lease(commons.records, name, monotonic=clock) for name in ("one", "two"))
    one.step()
    two.step()

    one.give_up()

    assert not one.is_active
    assert two.step()


def test_a_hub_whose_store_does_not_answer_stands_down(commons):
    clock = Clock()
    one = Lease(commons.records, "one", monotonic=clock)
    one.step()
    clock.now_s += 10.0

    assert one.token == 0
    assert one.step()
    assert one.token == 1


def test_a_store_in_files_has_no_standby(tmp_path):
    with (
        alone(tmp_path / "hub.lock"),
        pytest.raises(ConfigError, match="another hub runs on this state"),
        alone(tmp_path / "hub.lock"),
    ):
        pass
    with alone(tmp_path / "hub.lock"):
        pass


def test_a_standby_without_the_keys_of_the_exchange_does_not_make_others(commons, tmp_path):
    def operators(folder: str) -> Operators:
        return Operators(commons.records, tmp_path / folder, lambda: datetime.now(UTC))

    operators("one").make()
    operators("one").make()

    with pytest.raises(ConfigError, match="its keys are not here"):
        operators("two").make()
    shutil.copytree(tmp_path / "one", tmp_path / "copied")
    operators("copied").make()
    assert not (tmp_path / "two" / "ca.key").exists()


# ---- Real processes


class Process:
    """A hub in a process of its own."""

    def __init__(self, state: Path, holder: str, *words: str, **env: str) -> None:
        self.said: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.siem.city.hub_process", str(state), holder, *words],
            cwd=ROOT,
            env=os.environ | env,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line.strip())

    def wait_for(self, word: str) -> str:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            for line in self.said:
                if line.startswith(word):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"{word} does not come: {self.said}")

    def wait_until_stopped(self) -> None:
        stat = Path(f"/proc/{self._process.pid}/stat")
        until = time.monotonic() + PATIENCE_S
        while stat.read_text().rpartition(") ")[2][0] != "T":
            assert time.monotonic() < until, "it does not stop"
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def ended(self) -> int:
        return self._process.wait(PATIENCE_S)

    def connection(self, context: ssl.SSLContext) -> http.client.HTTPSConnection:
        port = int(self.wait_for("port").split()[1])
        return http.client.HTTPSConnection("localhost", port, timeout=PATIENCE_S, context=context)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()


class Member:
    """An operator that sends to whichever hub takes it."""

    def __init__(self, state: Path) -> None:
        self.commons: Commons = SqliteCommons(state / "commons.db")
        self.operators = Operators(
            self.commons.records, state / "exchange", lambda: datetime.now(UTC)
        )
        self.node = Node("op-grid")
        token = self.operators.add("op-grid")
        _, enrolled = self.operators.enrol(token, self.node.request, self.node.signing_key)
        self.context = ssl.create_default_context(cadata=self.operators.authority.certificate)
        (state / "op.pem").write_bytes(self.node.private + enrolled.certificate.encode())
        self.context.load_cert_chain(state / "op.pem")

    def post(self, one: http.client.HTTPSConnection, signed: Signed) -> None:
        one.request("POST", "/exchange/v1/messages", signed.lines())

    def send(self, hub: Process, signed: Signed) -> tuple[int, bytes]:
        one = hub.connection(self.context)
        self.post(one, signed)
        answer = one.getresponse()
        return answer.status, answer.read()

    def documents(self) -> list[str]:
        found = self.commons.scan(datetime(2000, 1, 1, tzinfo=UTC))
        return sorted(one["cw.share.id"] for one in found)


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    made = Member(tmp_path)
    yield made
    made.commons.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    started: list[Process] = []

    def begin(holder: str, *words: str, **env: str) -> Process:
        started.append(Process(tmp_path, holder, *words, **env))
        return started[-1]

    yield begin
    for one in started:
        one.end()


@pytest.mark.slow
@pytest.mark.parametrize("point", ["exchange-put", "exchange-receipt"])
def test_a_hub_that_is_frozen_while_it_takes_acknowledges_nothing_when_it_wakes(
    start, member, point
):
    old = start("old", point)
    old.wait_for("active")
    frozen, node = old.connection(member.context), member.node
    first = node.share()

    member.post(frozen, first)
    old.wait_until_stopped()
    new = start("new")
    new.wait_for("active")
    status, answer = member.send(new, first)
    second, gone = node.share(), node.withdraw(share_id(first))
    later = [member.send(new, one)[0] for one in (second, gone)]
    old.signal(signal.SIGCONT)
    said = frozen.getresponse()

    assert (status, later) == (200, [200, 200])
    assert split(answer)
    assert (said.status, b"another hub has taken over" in said.read()) == (503, True)
    third = node.share()
    assert member.send(old, third)[0] == 503
    assert member.send(new, third)[0] == 200
    assert member.documents() == sorted([share_id(second), share_id(third)])
    (link,) = links(member.operators, member.commons.records, datetime.now(UTC))
    assert (link.seq, link.shares, link.withdrawals, link.refused) == (4, 3, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["exchange-receipt", "exchange-link"])
def test_a_hub_that_is_killed_while_it_takes_loses_and_doubles_nothing(start, member, point):
    hub = start("one", CITYWARD_FAULT=f"{point}:2")
    hub.wait_for("active")
    sent = [member.node.share() for _ in range(3)]

    assert member.send(hub, sent[0])[0] == 200
    with pytest.raises((ConnectionError, http.client.HTTPException, ssl.SSLError)):
        member.send(hub, sent[1])
    assert hub.ended() == -signal.SIGKILL
    again = start("two")
    again.wait_for("active")
    answers = [member.send(again, one) for one in (*sent[1:], *sent)]

    assert [status for status, _ in answers] == [200] * 5
    assert answers[0] == answers[3]
    assert answers[1] == answers[4]
    assert member.documents() == sorted(map(share_id, sent))
    (link,) = links(member.operators, member.commons.records, datetime.now(UTC))
    assert (link.seq, link.refused) == (3, 0)
