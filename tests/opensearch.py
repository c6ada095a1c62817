"""A real OpenSearch for tests: one server for a whole run, shared by its workers.

    def test_…(opensearch: Server, index_prefix: str) -> None:

`opensearch` starts the server when the first test asks for it (10 s and more on a busy machine)
and it is gone a second after pytest has ended, however that ended. Every index and template of a
test begins with its own `index_prefix`; what is left of them is deleted after it. The user
`cityward` may do everything with names that begin with `cw-`, and nothing else.

Whoever runs tests often keeps a server: where `scripts/opensearch start` has one running, tests use
that one and leave it, but for what begins with their prefixes. CITYWARD_TEST_OPENSEARCH names
the folder of another one.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.programs import PATIENCE_S, program

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts/opensearch"
KEPT = "CITYWARD_TEST_OPENSEARCH"


@dataclass(frozen=True)
class Server:
    """A running server, and who may use it."""

    url: str
    home: Path
    user: str = ""
    password: str = ""
    """Of the user `cityward`."""
    admin_password: str = ""
    """Of the user `admin`, who may make roles and people."""
    ca_file: str = ""

    @property
    def pid(self) -> int:
        """Number of its process."""
        return int((self.home / "pid").read_text())

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | str | None = None,
        *,
        user: str = "admin",
        password: str = "",
    ) -> tuple[int, Any]:
        """Status and answer of a plain request, by default the administrator's: no client of ours
        is between."""
        data = body if isinstance(body, str) else json.dumps(body) if body is not None else None
        request = urllib.request.Request(
            self.url + path,
            data.encode() if data is not None else None,
            {
                "Content-Type": "application/x-ndjson"
                if isinstance(body, str)
                else "application/json"
            },
            method=method,
        )
        context = None
        if self.ca_file:
            context = ssl.create_default_context(cafile=self.ca_file)
            login = f"{user}:{password or self.admin_password}".encode()
            request.add_header("Authorization", "Basic " + base64.b64encode(login).decode())
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S, context=context) as answer:
                said = answer.read()
                return answer.status, json.loads(said) if said else None
        except urllib.error.HTTPError as error:
            said = error.read()
            try:
                return error.code, json.loads(said)
            except ValueError:
                return error.code, said.decode(errors="replace")


@pytest.fixture(scope="session")
def opensearch() -> Server:
    """The server of this run, with the Security plugin."""
    kept = os.environ.get(KEPT)
    shown = _script("show", "--json", *(["--home", kept] if kept else []))
    if shown.returncode == 0:
        return _read(json.loads(shown.stdout))
    # Under xdist every worker is a child of the one process that is pytest.
    owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    home = Path(tempfile.gettempdir()) / f"cityward-opensearch-{owner}"
    with Path(f"{home}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server = start(home, until=owner)
    return server


@pytest.fixture
def index_prefix(opensearch: Server) -> Iterator[str]:
    """Begin of the names of a test's own indices and templates."""
    prefix = f"cw-{uuid.uuid4().hex[:10]}"
    yield prefix
    forget(opensearch, prefix)


def forget(server: Server, prefix: str) -> None:
    """Delete the indices and templates whose names begin so."""
    server.ask("DELETE", f"/{prefix}*?expand_wildcards=all&ignore_unavailable=true")
    server.ask("DELETE", f"/_index_template/{prefix}*")


@contextlib.contextmanager
def own_server(*settings: str, plain: bool = False, heap: str = "512m") -> Iterator[Server]:
    """A server of one's own, for faults: further `settings` as `key=value`."""
    with tempfile.TemporaryDirectory(prefix="cityward-opensearch-") as folder:
        Path(folder).chmod(0o755)
        home = Path(folder) / "server"
        words = [word for one in settings for word in ("--set", one)]
        words += ["--heap", heap, *(["--plain"] if plain else [])]
        try:
            yield start(home, *words, until=os.getpid())
        finally:
            stop(home)


def start(home: Path, *words: str, until: int) -> Server:
    """Start a server in a folder, or again on what is there; it ends with the process `until`."""
    program("java")
    done = _script(
        "start",
        "--home",
        str(home),
        "--port",
        "0",
        "--quick",
        "--json",
        "--until",
        str(until),
        *words,
    )
    if done.returncode != 0:
        pytest.fail(f"scripts/opensearch: {done.stderr}")
    return _read(json.loads(done.stdout.splitlines()[-1]))


def stop(home: Path) -> None:
    """Stop the server of a folder."""
    _script("stop", "--home", str(home))


def _script(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], check=False, capture_output=True, text=True
    )


def _read(told: Mapping[str, str]) -> Server:
    if "ca_file" not in told:
        return Server(told["url"], Path(told["home"]))
    return Server(
        told["url"],
        Path(told["home"]),
        told["user"],
        Path(told["password_file"]).read_text().strip(),
        Path(told["admin_password_file"]).read_text().strip(),
        told["ca_file"],
    )
