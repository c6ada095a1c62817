"""A fake hub on a port of its own: TLS and HTTP are real, what is behind them is `FakeHub`."""

from __future__ import annotations

import base64
import gzip
import ssl
import threading
from collections.abc import Callable
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509

from siem.sharing import certificates
from siem.sharing.certificates import Authority, common_name, key_of_request
from siem.sharing.envelope import Signed, split
from siem.sharing.identity import public_text
from siem.sharing.readers import ACCESS
from siem.sharing.wire import (
    AUTHORITY,
    ENROL,
    INBOX,
    MESSAGES,
    RENEW,
    TOKEN_PREFIX,
    Enrolled,
    Enrolling,
    InboxLine,
    Renewed,
    Renewing,
)
from tests.siem.sharing.standin import OPERATOR, FakeHub


class FakeServer:
    """Serves until it is closed; what a test sets decides what it does wrong."""

    def __init__(self, folder: Path, hub: FakeHub, clock: Callable[[], Any]) -> None:
        self.hub = hub
        self.authority = Authority(folder / "hub", clock, "operators")
        with self.authority.locked():
            self.authority.make()
            context = self.authority.context(["localhost", "127.0.0.1"])
        self.token = self.authority.token(OPERATOR)
        self.days = 30.0
        self.seq, self.prev = 0, "0" * 64
        self.status = 200
        self.mute = False
        """It takes envelopes and hangs up without an answer."""
        self.forge: Callable[[Signed], Signed] = lambda receipt: receipt
        self.box: list[Signed] = []
        self.reads: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str, str]] = []
        """Method, path, and whose certificate was shown."""
        self.closes = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self._server.server_port}"

    @property
    def said(self) -> str:
        """The token as a person carries it."""
        return self.token.text(TOKEN_PREFIX)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str, body: bytes, name: str) -> bytes:
        if path == AUTHORITY:
            return self.authority.certificate.encode()
        if path == ENROL:
            asked = msgspec.json.decode(body, type=Enrolling)
            assert asked.token == self.said
            return msgspec.json.encode(
                Enrolled(
                    certificate=self._signed(asked.csr),
                    signing_key=public_text(self.hub.public),
                    seq=self.seq,
                    prev=self.prev,
                )
            )
        assert name == OPERATOR
        if path == RENEW:
            asked_again = msgspec.json.decode(body, type=Renewing)
            return msgspec.json.encode(Renewed(certificate=self._signed(asked_again.csr)))
        if path == MESSAGES:
            return self.forge(self.hub.take(split(body))).lines()
        if path == ACCESS:
            return b"".join(msgspec.json.encode(one) + b"\n" for one in self.reads)
        assert path.startswith(f"{INBOX}?after=")
        after = int(path.partition("=")[2])
        lines = [
            InboxLine(n, base64.b64encode(one.signature).decode(), one.data.decode())
            for n, one in enumerate(self.box, 1)
            if n > after
        ]
        return b"".join(msgspec.json.encode(one) + b"\n" for one in lines)

    def _signed(self, csr: str) -> str:
        key = key_of_request(csr, OPERATOR, "")
        made = self.authority.signed(OPERATOR, key, self.days)
        return certificates.pem(made) + self.authority.certificate

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                self._answer(body)

            def _answer(self, body: bytes) -> None:
                assert isinstance(self.connection, ssl.SSLSocket)
                shown = self.connection.getpeercert(binary_form=True)
                name = common_name(x509.load_der_x509_certificate(shown)) if shown else ""
                served.asked.append((self.command, self.path, name))
                status = served.status
                if status != 200:
                    error = {"what": "no", "where": "here", "todo": "Wait."}
                    answer = msgspec.json.encode({"error": error})
                else:
                    answer = served.answer(self.path, body, name)
                if served.mute:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)
                self.close_connection = served.closes

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


WHILE = timedelta(days=21)
"""After so long a certificate of thirty days is renewed."""
