"""A fake Elasticsearch for tests: a real OpenSearch behind a proxy that rewrites what differs.

So it proves that our class speaks as the client of Elasticsearch wants, and that requests are
whole; that the real server answers as OpenSearch does, it can not prove. What it rewrites:
content types and product header, points in time, `flattened`, life cycles, the version.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

VERSION = "9.4.0"
_COMPATIBLE = "application/vnd.elasticsearch+{}; compatible-with=9"
_PASSED_ON = ("authorization", "content-encoding")


class FakeElasticsearch:
    """The proxy, while it runs: where it listens and what it was asked."""

    def __init__(self, behind: str, ca: str | None) -> None:
        self.behind = urlsplit(behind)
        self.context = ssl.create_default_context(cafile=ca) if ca else None
        self.policies: dict[str, Any] = {}
        """Documents of index lifecycle management, which OpenSearch does not have."""
        self.requests: list[tuple[str, str, str]] = []
        """Method, path and content type of each request, as the client sent it."""
        self.url = ""

    def connection(self) -> http.client.HTTPConnection:
        """One to the real server."""
        host, port = self.behind.hostname or "", self.behind.port
        if self.behind.scheme == "https":
            return http.client.HTTPSConnection(host, port, context=self.context, timeout=60)
        return http.client.HTTPConnection(host, port, timeout=60)


@contextmanager
def fake_elasticsearch(behind: str, ca: str | None = None) -> Iterator[FakeElasticsearch]:
    """Run the proxy before a real OpenSearch."""
    fake = FakeElasticsearch(behind, ca)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeElasticsearch
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.behind = self.fake.connection()

    def finish(self) -> None:
        self.behind.close()
        super().finish()

    def log_message(self, *said: Any) -> None:
        """Nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        kind = self.headers.get("content-type", "")
        self.fake.requests.append((self.command, self.path, kind))
        if body and "compatible-with=9" not in kind:
            self._send(400, b'{"error": "no content type of version 9"}')
            return
        path, _, query = self.path.partition("?")
        if path.startswith("/_ilm/policy/"):
            self._lifecycle(path, body)
            return
        if path.endswith("/_settings") and b'"lifecycle"' in body:
            self._send(200, b'{"acknowledged": true}')
            return
        path, body = _asked(self.command, path, body)
        headers = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
        if body:
            plain = "x-ndjson" if "ndjson" in kind else "json"
            headers["content-type"] = f"application/{plain}"
        target = f"{path}?{query}" if query else path
        self.behind.request(self.command, target, body or None, headers)
        found = self.behind.getresponse()
        self._send(found.status, _told(self.command, path, found.read()))

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _answer  # noqa: N815 – names of the library

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("X-Elastic-Product", "Elasticsearch")
        self.send_header("Content-Type", _COMPATIBLE.format("json"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _lifecycle(self, path: str, body: bytes) -> None:
        name = path.rpartition("/")[2]
        if self.command == "PUT":
            self.fake.policies[name] = json.loads(body)
            self._send(200, b'{"acknowledged": true}')
        elif name in self.fake.policies:
            self._send(200, json.dumps({name: self.fake.policies[name]}).encode())
        else:
            self._send(404, b'{"error": {"type": "resource_not_found_exception"}}')


def _asked(method: str, path: str, body: bytes) -> tuple[str, bytes]:
    """A request as OpenSearch wants it."""
    if method == "DELETE" and path == "/_pit":
        return "/_search/point_in_time", json.dumps({"pit_id": [json.loads(body)["id"]]}).encode()
    if path.endswith("/_pit"):
        return path.removesuffix("/_pit") + "/_search/point_in_time", body
    if path.startswith("/_index_template/") and body:
        told = json.loads(body.replace(b'"flattened"', b'"flat_object"'))
        told["template"].get("settings", {}).get("index", {}).pop("lifecycle", None)
        body = json.dumps(told).encode()
    return path, body


def _told(method: str, path: str, body: bytes) -> bytes:
    """An answer as Elasticsearch gives it."""
    if path.endswith("/_search/point_in_time") and b'"pit_id"' in body:
        found = json.loads(body)
        if method == "POST":
            return json.dumps({"id": found["pit_id"], "_shards": found["_shards"]}).encode()
        return json.dumps({"succeeded": True, "num_freed": len(found["pits"])}).encode()
    if path == "/":
        found = json.loads(body)
        found["version"] = {"number": VERSION, "build_flavor": "default"}
        return json.dumps(found | {"tagline": "You Know, for Search"}).encode()
    if path.startswith("/_index_template/"):
        return body.replace(b'"flat_object"', b'"flattened"')
    return body
