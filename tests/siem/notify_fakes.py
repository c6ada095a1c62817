"""Receivers on this machine: a mail server, a web server, a syslog server; fakes, in threads."""

from __future__ import annotations

import base64
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class FakeMail:
    """What a mail server was given, and what it shall say."""

    port: int = 0
    mails: list[tuple[str, list[str], bytes]] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    refuse: dict[str, str] = field(default_factory=dict)
    """Answer to `RCPT` by address."""
    logins: list[tuple[str, str]] = field(default_factory=list)
    password: str = "right"
    data: str = "250 2.0.0 queued as 4711"
    """Answer to the message."""


@dataclass
class FakeWeb:
    """What a web server was posted, and what it shall answer."""

    port: int = 0
    posts: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    status: int = 204
    paths: list[str] = field(default_factory=list)


@dataclass
class FakeSyslog:
    """What a syslog server received, whole connections or datagrams."""

    port: int = 0
    received: list[bytes] = field(default_factory=list)


Pair = tuple[Path, Path]
"""A certificate and its key."""


def context_of(pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    return context


@contextmanager
def mail_server(starttls: Pair | None = None, tls: Pair | None = None) -> Iterator[FakeMail]:
    """A mail server that speaks as much SMTP (RFC 5321, 3207, 4954) as a client needs."""
    fake = FakeMail()

    class Handler(socketserver.StreamRequestHandler):
        def say(self, text: str) -> None:
            self.wfile.write(text.encode() + b"\r\n")

        def secure(self, pair: Pair) -> None:
            self.connection = context_of(pair).wrap_socket(self.connection, server_side=True)
            self.rfile = self.connection.makefile("rb")
            self.wfile = self.connection.makefile("wb", buffering=0)

        def handle(self) -> None:
            try:
                self.serve()
            except OSError:
                fake.commands.append("broken off")
            finally:
                self.connection.close()

        def serve(self) -> None:
            if tls:
                self.secure(tls)
            self.say("220 fake.example")
            sender, receivers = "", []
            while line := self.rfile.readline().decode().rstrip("\r\n"):
                fake.commands.append(line)
                verb = line.partition(" ")[0].upper()
                if verb == "EHLO":
                    is_secure = isinstance(self.connection, ssl.SSLSocket)
                    self.say("250-fake.example")
                    self.say("250-STARTTLS" if starttls and not is_secure else "250-8BITMIME")
                    self.say("250 AUTH PLAIN" if is_secure else "250 SIZE")
                elif verb == "STARTTLS" and starttls:
                    self.say("220 go on")
                    self.secure(starttls)
                elif verb == "AUTH":
                    _, user, password = base64.b64decode(line.split()[2]).decode().split("\0")
                    fake.logins.append((user, password))
                    self.say("235 ok" if password == fake.password else "535 5.7.8 no")
                elif verb == "MAIL":
                    sender, receivers = line.partition(":")[2], []
                    self.say("250 ok")
                elif verb == "RCPT":
                    address = line.partition("<")[2].partition(">")[0]
                    said = fake.refuse.get(address, "250 ok")
                    receivers += [address] if said.startswith("250") else []
                    self.say(said)
                elif verb == "DATA":
                    self.say("354 go on")
                    body = b"".join(iter(self.rfile.readline, b".\r\n"))
                    if fake.data.startswith("250"):
                        fake.mails.append((sender, receivers, body))
                    self.say(fake.data)
                elif verb == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("250 ok" if verb in ("RSET", "NOOP") else "502 no")

    with _served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as port:
        fake.port = port
        yield fake


@contextmanager
def web_server() -> Iterator[FakeWeb]:
    """A web server that keeps what it is posted."""
    fake = FakeWeb()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            fake.paths.append(self.path)
            fake.posts.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(fake.status)
            if fake.status in (302, 307):
                self.send_header("location", f"http://127.0.0.1:{fake.port}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with _served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as port:
        fake.port = port
        yield fake


@contextmanager
def syslog_server(*, udp: bool = False, tls: Pair | None = None) -> Iterator[FakeSyslog]:
    """A syslog server that reads to the end and closes."""
    fake = FakeSyslog()

    class Stream(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if tls is None:
                fake.received.append(self.rfile.read())
                return
            try:
                with context_of(tls).wrap_socket(self.connection, server_side=True) as secure:
                    fake.received.append(secure.makefile("rb").read())
            except OSError:
                fake.received.append(b"")

    class Datagram(socketserver.DatagramRequestHandler):
        def handle(self) -> None:
            fake.received.append(self.rfile.read())

    kind, handler = (
        (socketserver.ThreadingUDPServer, Datagram)
        if udp
        else (socketserver.ThreadingTCPServer, Stream)
    )
    with _served(kind(("127.0.0.1", 0), handler)) as port:  # type: ignore[arg-type]
        fake.port = port
        yield fake


@contextmanager
def _served(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]  # type: ignore[misc]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
