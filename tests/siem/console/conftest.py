"""A console on a node in memory, and a browser that talks to nobody else."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, expect
from starlette.testclient import TestClient

from siem.console.access import Access
from siem.console.app import make_app
from tests.programs import PATIENCE_S
from tests.siem.console import fake

CHROMIUM = "/usr/bin/chromium"
expect.set_options(timeout=PATIENCE_S * 1000)
QUIET = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
)


@pytest.fixture
def node() -> fake.FakeNode:
    return fake.operator()


@pytest.fixture
def client(node: fake.FakeNode) -> Iterator[TestClient]:
    """Somebody who is not signed in; one loop answers all that is asked, not one for each."""
    app = make_app(node, Access(node, fake.HASHER))
    with TestClient(app, follow_redirects=False) as client:
        yield client


@pytest.fixture
def signed_in(client: TestClient) -> Callable[..., TestClient]:
    def enter(name: str = "i.vasko") -> TestClient:
        sign_in(client, name)
        return client

    return enter


def csrf_of(text: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', text)
    assert found, "no form with a token on this page"
    return found[1]


def sign_in(client: TestClient, name: str, password: str = fake.PASSWORD) -> Any:
    token = csrf_of(client.get("/sign-in").text)
    return client.post("/sign-in", data={"csrf": token, "name": name, "password": password})


@dataclass(frozen=True)
class Served:
    """A console that listens on a port of this host."""

    base: str
    node: Any
    """The fake behind it."""


@pytest.fixture
def serve_app() -> Iterator[Callable[[Any], str]]:
    """Serves an application on a port of this host; gives its address."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: Any) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        servers.append((server, thread))
        return f"http://127.0.0.1:{port}"

    yield start
    for server, thread in servers:
        server.should_exit = True
        thread.join(PATIENCE_S)


@pytest.fixture
def serve(serve_app: Callable[[Any], str]) -> Callable[[fake.FakeNode], Served]:
    def start(node: fake.FakeNode) -> Served:
        return Served(serve_app(make_app(node, Access(node, fake.HASHER))), node)

    return start


@pytest.fixture(scope="session", autouse=True)
def patient_pages() -> Iterator[None]:
    """A page waits for what it is told to do as long as a test waits for what it expects."""
    new = Browser.new_context

    def new_context(browser: Browser, **said: Any) -> BrowserContext:
        made = new(browser, **said)
        made.set_default_timeout(PATIENCE_S * 1000)
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Browser, "new_context", new_context)
        yield


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    return {"executable_path": CHROMIUM, "args": list(QUIET), "timeout": PATIENCE_S * 1000}
