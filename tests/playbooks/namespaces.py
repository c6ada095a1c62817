"""Three network namespaces: outside, a gateway, inside; and sockets in each of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.programs import PATIENCE_S, program

STRANGER, NEIGHBOUR, PARTNER = "203.0.113.7", "203.0.113.8", "203.0.113.200"
STRANGER_6 = "2001:db8:1::7"
SERVER, SERVER_6 = "10.77.0.2", "2001:db8:2::2"
PORT = 8502
CLONE_NEWNET = 0x40000000

OWN_RULES = """
table inet filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    tcp dport { 8502, 8503 } accept
    meta l4proto ipv6-icmp accept
  }
}
"""
"""What a gateway has: established connections are accepted first."""


class City:
    """The namespaces and an echo server inside."""

    def __init__(self) -> None:
        mark = uuid.uuid4().hex[:6]
        self.outside, self.gateway, self.inside = (f"cw{one}{mark}" for one in "ogi")
        self._servers: list[socket.socket] = []

    @property
    def nft(self) -> tuple[str, ...]:
        """How nft is called at the gateway."""
        return (program("ip"), "netns", "exec", self.gateway, program("nft"))

    def build(self) -> None:
        for name in (self.outside, self.gateway, self.inside):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        self._link(self.outside, "out", [f"{one}/24" for one in (STRANGER, NEIGHBOUR, PARTNER)])
        self._link(self.inside, "in", [f"{SERVER}/24", f"{SERVER_6}/64"])
        for link, addresses in {
            "out": ("203.0.113.1/24", "2001:db8:1::1/64"),
            "in": ("10.77.0.1/24", "2001:db8:2::1/64"),
        }.items():
            for one in addresses:
                address(self.gateway, link, one)
        address(self.outside, "eth", f"{STRANGER_6}/64")
        for name, v4, v6 in (
            (self.outside, "203.0.113.1", "2001:db8:1::1"),
            (self.inside, "10.77.0.1", "2001:db8:2::1"),
        ):
            ip("-n", name, "route", "add", "default", "via", v4)
            ip("-n", name, "-6", "route", "add", "default", "via", v6)
        with within(self.gateway):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        subprocess.run([*self.nft, "-f", "-"], input=OWN_RULES.encode(), check=True)
        for port in (PORT, PORT + 1):
            self._serve(port)
        until = time.monotonic() + PATIENCE_S
        while self.is_cut(STRANGER_6) or self.is_cut(PARTNER):
            assert time.monotonic() < until, "neighbours are not found"

    def _link(self, name: str, peer: str, addresses: list[str]) -> None:
        ip("link", "add", peer, "netns", self.gateway, "type", "veth",
           "peer", "name", "eth", "netns", name)  # fmt: skip
        ip("-n", self.gateway, "link", "set", peer, "up")
        ip("-n", name, "link", "set", "eth", "up")
        for one in addresses:
            address(name, "eth", one)

    def _serve(self, port: int) -> None:
        with within(self.inside):
            listening = socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True
            )
        self._servers.append(listening)
        threading.Thread(target=_echo, args=(listening,), daemon=True).start()

    def connect(
        self, source: str = STRANGER, *, port: int = PORT, wait_s: float = 3
    ) -> socket.socket:
        """A connection from outside to the server inside."""
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        with within(self.outside):
            one = socket.socket(family, socket.SOCK_STREAM)
        one.settimeout(wait_s)
        try:
            one.bind((source, 0))
            one.connect((SERVER_6 if ":" in source else SERVER, port))
        except OSError:
            one.close()
            raise
        return one

    def reaches(self, source: str = STRANGER, *, port: int = PORT, wait_s: float = 3) -> bool:
        try:
            with self.connect(source, port=port, wait_s=wait_s) as one:
                return speaks(one)
        except OSError:
            return False

    def is_cut(self, source: str = STRANGER, *, port: int = PORT) -> bool:
        """Whether nothing comes back, for as long as is much on one machine."""
        return not self.reaches(source, port=port, wait_s=0.3)

    def tear_down(self) -> None:
        for one in self._servers:
            one.close()
        for name in (self.outside, self.gateway, self.inside):
            subprocess.run([program("ip"), "netns", "del", name], check=False, capture_output=True)


def speaks(one: socket.socket, wait_s: float = 3) -> bool:
    """Whether a word sent comes back."""
    one.settimeout(min(wait_s, one.gettimeout() or wait_s))
    try:
        one.sendall(b"hello")
        return one.recv(16) == b"hello"
    except OSError:
        return False


def ip(*words: str) -> None:
    subprocess.run([program("ip"), *words], check=True, capture_output=True)


def address(name: str, link: str, one: str) -> None:
    ip("-n", name, "address", "add", one, "dev", link, *(["nodad"] if ":" in one else []))


@contextlib.contextmanager
def within(name: str) -> Iterator[None]:
    """Sockets that this thread makes here are in the namespace, and stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{name}") as there:
        if libc.setns(there.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            yield
        finally:
            libc.setns(home.fileno(), CLONE_NEWNET)


def _echo(listening: socket.socket) -> None:
    def answer(one: socket.socket) -> None:
        with one, contextlib.suppress(OSError):
            while data := one.recv(100):
                one.sendall(data)

    while True:
        try:
            one, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=answer, args=(one,), daemon=True).start()
