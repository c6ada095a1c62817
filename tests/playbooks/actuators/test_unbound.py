"""A real unbound with a control socket of its own: names vanish, are redirected, and come back."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cityward import Command, ConfigError, Target, TransientError, Unsafe
from cityward.checks import INJECTIONS
from playbooks.actuators.unbound import Unbound
from tests.programs import PATIENCE_S, program

UNTIL = datetime.now(UTC) + timedelta(hours=1)
EVIL, OWN = Target("domain_name", "evil.example"), Target("domain_name", "city.example")
SETTINGS = """
server:
  interface: 127.0.0.1
  port: {port}
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "{folder}"
  pidfile: "{folder}/pid"
  use-syslog: no
  logfile: "{folder}/log"
  module-config: "iterator"
  do-not-query-localhost: no
  local-zone: "city.example." transparent
  local-data: "city.example. 60 IN A 192.0.2.10"
  local-data: "www.city.example. 60 IN A 192.0.2.11"
  local-data: 'city.example. 60 IN TXT "a; b"'
forward-zone:
  name: "."
  forward-addr: 127.0.0.1@{upstream}
remote-control:
  control-enable: yes
  control-interface: {folder}/ctl
  control-use-cert: no
"""

pytestmark = pytest.mark.slow


class Resolver:
    """An unbound, and questions to it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind(("127.0.0.1", 0))
            self.port = int(one.getsockname()[1])
        settings = folder / "unbound.conf"
        self.upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.upstream.bind(("127.0.0.1", 0))
        threading.Thread(target=_answer, args=(self.upstream,), daemon=True).start()
        upstream = self.upstream.getsockname()[1]
        settings.write_text(SETTINGS.format(port=self.port, folder=folder, upstream=upstream))
        self.control = (program("unbound-control"), "-c", str(settings))
        self.process = subprocess.Popen([program("unbound"), "-c", str(settings)])
        until = time.monotonic() + PATIENCE_S
        while subprocess.run(
            [*self.control, "status"], check=False, capture_output=True
        ).returncode:
            assert time.monotonic() < until, "unbound does not answer"
            time.sleep(0.05)

    def asked(self, name: str) -> str:
        """Address of a name, or the response code."""
        labels = b"".join(bytes([len(one)]) + one.encode() for one in name.split("."))
        question = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(PATIENCE_S)
            one.sendto(question, ("127.0.0.1", self.port))
            said = one.recv(512)
        if code := said[3] & 15:
            return {3: "NXDOMAIN"}.get(code, str(code))
        return socket.inet_ntoa(said[-4:]) if said[7] else "nothing"

    def everything(self) -> list[str]:
        return [
            line
            for what in ("list_local_zones", "list_local_data")
            for line in sorted(
                subprocess.run(
                    [*self.control, what], check=True, capture_output=True, text=True
                ).stdout.splitlines()
            )
        ]


def _answer(one: socket.socket) -> None:
    """A resolver elsewhere, to which every name has the same address."""
    head = struct.pack("!5H", 0x8180, 1, 1, 0, 0)
    address = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("203.0.113.66")
    with contextlib.suppress(OSError):
        while True:
            asked, sender = one.recvfrom(512)
            end = asked.index(b"\0", 12) + 5
            one.sendto(asked[:2] + head + asked[12:end] + address, sender)


@pytest.fixture(scope="module")
def resolver(tmp_path_factory) -> Iterator[Resolver]:
    made = Resolver(tmp_path_factory.mktemp("unbound"))
    yield made
    made.process.terminate()
    made.process.wait(PATIENCE_S)
    made.upstream.close()


@pytest.fixture
def actuator(resolver) -> Unbound:
    return Unbound(
        program=resolver.control, sinkhole=["192.0.2.99"], keep=["kept.example", "deep.a.example"]
    )


def undone(command: Command) -> Command:
    return Command(command.undo, command.target, command.verb, UNTIL, prior=command.prior)


@pytest.mark.parametrize("target", [EVIL, OWN])
@pytest.mark.parametrize(("verb", "answer"), [("deny", "NXDOMAIN"), ("redirect", "192.0.2.99")])
def test_a_name_is_hidden_and_comes_back_as_it_was(resolver, actuator, target, verb, answer):
    before, was = resolver.everything(), resolver.asked(target.value)
    (command,) = actuator.plan(verb, target, UNTIL)
    assert resolver.everything() == before

    actuator.apply(command)

    assert resolver.asked(target.value) == answer
    assert resolver.asked(f"www.{target.value}") == answer
    assert resolver.asked("other.example") == "203.0.113.66"
    assert actuator.probe(target).is_applied
    assert list(actuator.plan(verb, target, UNTIL)) == []
    during = resolver.everything()
    actuator.apply(command)
    assert resolver.everything() == during

    actuator.apply(undone(command))
    actuator.apply(undone(command))

    assert resolver.asked(target.value) == was
    assert resolver.everything() == before
    assert not actuator.probe(target).is_applied


@pytest.mark.parametrize(
    "value",
    [
        *("EVIL.example", "evil.example."),
        *("example", "1.0.0.127.in-addr.arpa", "printer.local", "a..example", "-c"),
        *INJECTIONS,
    ],
)
def test_names_that_are_none_are_refused(resolver, actuator, value):
    target = Target("domain_name", value)

    for verb in ("deny", "redirect", "allow"):
        with pytest.raises(Unsafe):
            actuator.apply(Command(verb, target, "", UNTIL))
    with pytest.raises(Unsafe):
        list(actuator.plan("deny", target, UNTIL))


@pytest.mark.parametrize("name", ["kept.example", "a.kept.example", "a.example"])
def test_names_that_are_kept_are_not_hidden(actuator, name):
    target = Target("domain_name", name)

    with pytest.raises(Unsafe, match="keep list"):
        list(actuator.plan("deny", target, UNTIL))
    for verb in ("deny", "redirect"):
        with pytest.raises(Unsafe, match="keep list"):
            actuator.apply(Command(verb, target, "allow", UNTIL))


def test_a_name_that_is_kept_since_is_answered_again(resolver, actuator):
    (command,) = actuator.plan("deny", EVIL, UNTIL)
    actuator.apply(command)

    later = Unbound(program=resolver.control, keep=[EVIL.value])
    with pytest.raises(Unsafe, match="keep list"):
        list(later.plan("deny", EVIL, UNTIL))
    with pytest.raises(Unsafe, match="keep list"):
        later.apply(command)
    assert later.probe(EVIL).is_applied
    later.apply(Command("allow", EVIL, "deny", UNTIL, prior=command.prior))

    assert not later.probe(EVIL).is_applied


def test_a_name_within_a_zone_of_the_resolver_is_refused_since_its_neighbours_would_slip_out(
    resolver, actuator
):
    before = resolver.everything()

    for verb in ("deny", "redirect"):
        with pytest.raises(Unsafe, match=r"within city\.example"):
            list(actuator.plan(verb, Target("domain_name", "www.city.example"), UNTIL))
        with pytest.raises(Unsafe, match=r"within city\.example"):
            actuator.apply(Command(verb, Target("domain_name", "www.city.example"), "", UNTIL))
    assert not actuator.probe(Target("domain_name", "www.city.example")).is_applied

    assert resolver.everything() == before


def test_a_name_over_one_that_is_hidden_is_hidden_and_undone_alone(resolver, actuator):
    under = Target("domain_name", "a.b.example")
    (first,) = actuator.plan("deny", under, UNTIL)
    actuator.apply(first)
    (second,) = actuator.plan("deny", Target("domain_name", "b.example"), UNTIL)
    actuator.apply(second)
    hidden = [resolver.asked(one) for one in ("a.b.example", "b.example", "c.b.example")]

    actuator.apply(undone(second))

    assert hidden == ["NXDOMAIN"] * 3
    assert resolver.asked("c.b.example") == "203.0.113.66"
    assert resolver.asked("a.b.example") == "NXDOMAIN"
    actuator.apply(undone(first))


def test_a_prior_state_that_was_tampered_with_is_no_way_in(resolver, actuator):
    before = resolver.everything()

    for prior in (
        {"type": "static\ncity.example always_nxdomain"},
        {"type": "static", "records": ["evil.example.\t60\tIN\tA\t1.2.3.4\nx. 1 IN A 1.2.3.4"]},
    ):
        with pytest.raises(Unsafe):
            actuator.apply(Command("allow", EVIL, "deny", UNTIL, prior=prior))

    assert resolver.everything() == before


def test_a_resolver_that_does_not_answer_is_asked_again_later(actuator):
    for words in (("/nowhere/unbound-control",), ("false",), ("echo", "error")):
        with pytest.raises(TransientError):
            Unbound(program=words).probe(EVIL)


def test_without_a_sinkhole_nothing_is_redirected(resolver):
    with pytest.raises(Unsafe):
        list(Unbound(program=resolver.control).plan("redirect", EVIL, UNTIL))
    with pytest.raises(ConfigError):
        Unbound(sinkhole=["evil.example"])
