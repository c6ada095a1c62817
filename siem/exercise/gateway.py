"""Gateways of the exercise: nft in network namespaces of its own, or a simulator named as such.

The namespaces belong to processes that only sleep: they are gone when these have ended, and these
end with the exercise, however that ends. A packet is really sent from outside to see what a
gateway does with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from cityward import Target
from siem.exercise.processes import die_with
from siem.exercise.simulator import NAME, Simulator

CLONE_NEWNET = 0x40000000
"""Linux, unshare(2)."""
PORT = 22
WAIT_S = 0.4
"""Nothing on one machine takes so long."""
TOOLS = ("nft", "ip", "nsenter")


class Gateway(Protocol):
    """What keeps the stranger out of one operator."""

    @property
    def actuator(self) -> str:
        """Name of the actuator that the node is given."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What that is told."""
        ...

    def lets_in(self) -> bool:
        """Whether the stranger gets in now."""
        ...

    def close(self) -> None:
        """Leave nothing behind."""
        ...


class SimulatedGateway:
    """A file; nothing is really kept out.

    Args:
        folder: Where it is.
        operator: Whose.
        stranger: Who may be kept out.
    """

    actuator = NAME

    def __init__(self, folder: Path, operator: str, stranger: str) -> None:
        self.settings: Mapping[str, Any] = {"file": str(folder / f"{operator}.simulated.json")}
        self._simulator = Simulator(**self.settings)
        self._stranger = Target("ipv6_net", stranger)

    def lets_in(self) -> bool:
        """Whether the file does not name the stranger."""
        return not self._simulator.probe(self._stranger).is_applied

    def close(self) -> None:
        """The folder goes with the exercise."""


class RealGateway:
    """Two network namespaces with a wire between them: the stranger's, and that of the gateway.

    Args:
        stranger: Its address, IPv6.

    Raises:
        OSError: they cannot be made here.
        subprocess.SubprocessError: likewise.
    """

    actuator = "nftables"

    def __init__(self, stranger: str) -> None:
        self._stranger = stranger
        self._own = f"{stranger.rpartition('::')[0]}::1"
        self._holders: list[subprocess.Popen[bytes]] = []
        self._server: socket.socket | None = None
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    @property
    def settings(self) -> Mapping[str, Any]:
        """How `nft` is called at this gateway."""
        return {"program": [*self._at(self._gateway), "nft"]}

    @property
    def _gateway(self) -> int:
        return self._holders[0].pid

    @property
    def _outside(self) -> int:
        return self._holders[1].pid

    def _build(self) -> None:
        self._holders += [_namespace(), _namespace()]
        self._ip(
            self._gateway,
            "link set lo up",
            f"link add wire type veth peer name wire netns {self._outside}",
            f"address add {self._own}/64 dev wire nodad",
            "link set wire up",
        )
        self._ip(
            self._outside, f"address add {self._stranger}/64 dev wire nodad", "link set wire up"
        )
        with _within(self._gateway):
            self._server = socket.create_server((self._own, PORT), family=socket.AF_INET6)
        if not any(self.lets_in() for _ in range(10)):
            raise OSError("no packet comes through the namespaces of the demo")

    def lets_in(self) -> bool:
        """Whether a connection of the stranger comes about."""
        assert self._server is not None
        with _within(self._outside):
            one = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        with one:
            one.settimeout(WAIT_S)
            try:
                one.bind((self._stranger, 0))
                one.connect((self._own, PORT))
            except OSError:
                return False
            self._server.accept()[0].close()
            return True

    def close(self) -> None:
        """End what holds the namespaces; they go with it."""
        if self._server is not None:
            self._server.close()
        for one in self._holders:
            one.kill()
            one.wait()

    def _ip(self, pid: int, *lines: str) -> None:
        text = "".join(f"{line}\n" for line in lines).encode()
        words = [*self._at(pid), "ip", "-batch", "-"]
        subprocess.run(words, input=text, check=True, capture_output=True)

    @staticmethod
    def _at(pid: int) -> list[str]:
        return ["nsenter", f"--net=/proc/{pid}/ns/net"]


def cannot_be_real() -> str:
    """Why no gateway can be made here; empty: one can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    missing = [one for one in TOOLS if shutil.which(one) is None]
    if missing:
        return f"there is no {', '.join(missing)} here"
    try:
        RealGateway("2001:db8::2").close()
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return ""


def _namespace() -> subprocess.Popen[bytes]:
    """A process that sleeps in a network namespace of its own, and ends with us."""
    libc, end_with_us = ctypes.CDLL(None, use_errno=True), die_with(os.getpid())

    def unshare() -> None:
        end_with_us()
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "no network namespace can be made")

    return subprocess.Popen(
        ["sleep", "infinity"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # Its own session: Ctrl+C comes to us, and we end it in order.
        start_new_session=True,
        preexec_fn=unshare,  # noqa: PLW1509 – before the first thread
    )


@contextlib.contextmanager
def _within(pid: int) -> Iterator[None]:
    """Sockets that this thread makes here are in the namespace of a process, and stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/proc/{pid}/ns/net") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "the namespace cannot be entered")
        try:
            yield
        finally:
            libc.setns(home.fileno(), CLONE_NEWNET)
