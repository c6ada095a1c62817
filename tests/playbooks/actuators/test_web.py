"""Where a web address may lead: not to this machine, its neighbours, or what tells it secrets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from cityward import ConfigError, TransientError, Unsafe
from playbooks.actuators import web
from playbooks.actuators.web import Web, resolved
from tests.siem.notify_fakes import FakeWeb, web_server

NEAR = (
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "127.255.255.254",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0177.0.0.1",
    "017700000001",
    "0",
    "0.0.0.0",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "[::1]",
    "[::]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::80ff:fffe]",
    "[::ffff:0:127.0.0.1]",
    "169.254.169.254",
    "169.254.170.2",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::]",
    "[fe80::1]",
    "[fe80::a9fe:a9fe]",
    "[fd00:ec2::254]",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "255.255.255.255",
    "[ff02::1]",
)
"""Spellings of loopback, link-local and metadata addresses."""
PRIVATE = ("10.1.2.3", "172.16.0.1", "192.168.1.1", "[fd12:3456::1]", "[::ffff:10.0.0.1]")
UNPLAIN = (
    "ftp://hooks.example/",
    "file:///etc/passwd",
    "gopher://127.0.0.1/",
    "//hooks.example/",
    "hooks.example",
    "http://",
    "https://user:secret@hooks.example/",
    "https://hooks.example@127.0.0.1/",
    "https://hooks.example\\@127.0.0.1/",
    "https://hooks.example#@127.0.0.1/",
    "https://hooks.example/a b",
    "https://hooks.example/\r\nX: 1",
    "https://hooks.example:0/",
    "https://hooks.example:99999/",
    "https://[fe80::1%25eth0]/",
    "https://[::1",
    "https://①②⑦.⓪.⓪.①/",
    "https://127。0。0。1/",
    "https://hooks.example/\x00",
    "",
)


def anywhere(host: str, port: int) -> list[str]:
    """A name service that knows one public name, and numbers as the system does."""
    return ["93.184.216.34"] if host.endswith("example") else list(resolved(host, port))


def test_there_are_forty_spellings():
    assert len(set(NEAR)) >= 40


@pytest.mark.parametrize("host", [*NEAR, *PRIVATE])
def test_what_is_not_public_is_refused_however_it_is_spelled(host):
    for scheme in ("http", "https"):
        with pytest.raises((Unsafe, TransientError)) as refused:
            Web(public=True, resolve=anywhere).checked(f"{scheme}://{host}/latest")
        # A spelling that the system does not know leads nowhere.
        assert isinstance(refused.value, Unsafe) or "not found" in str(refused.value)


@pytest.mark.parametrize("url", UNPLAIN)
def test_what_is_no_plain_web_address_is_refused(url):
    with pytest.raises(Unsafe):
        Web(["0.0.0.0/0", "::/0", "hooks.example"], resolve=anywhere).checked(url)


def test_only_what_is_listed_is_asked_unless_anything_public_will_do():
    url = "https://hooks.example/a"

    assert str(Web(public=True, resolve=anywhere).checked(url)[1]) == "93.184.216.34"
    assert Web(["hooks.example"], resolve=anywhere).checked(url)
    assert Web(["93.184.216.0/24"], resolve=anywhere).checked(url)
    with pytest.raises(Unsafe):
        Web(["other.example"], resolve=anywhere).checked(url)


@pytest.mark.parametrize(
    ("address", "is_asked"),
    [("10.1.2.3", True), ("127.0.0.1", False), ("169.254.169.254", False), ("::1", False)],
)
def test_a_listed_name_may_lead_into_private_networks_but_not_home(address, is_asked):
    asked = Web(["hooks.example"], resolve=lambda *_: [address])

    if is_asked:
        assert asked.checked("https://hooks.example/")
    else:
        with pytest.raises(Unsafe):
            asked.checked("https://hooks.example/")
        assert Web([address], resolve=lambda *_: [address]).checked("https://hooks.example/")


def test_one_bad_address_among_good_ones_is_enough_to_refuse():
    with pytest.raises(Unsafe):
        Web(public=True, resolve=lambda *_: ["93.184.216.34", "127.0.0.1"]).checked(
            "https://hooks.example/"
        )


@pytest.fixture
def sink() -> Iterator[FakeWeb]:
    with web_server() as fake:
        yield fake


def test_a_name_is_resolved_once_and_the_address_that_was_looked_at_is_asked(sink):
    answers = iter((["127.0.0.1"], ["127.0.0.9"], ["127.0.0.9"]))
    asked = Web(["127.0.0.1"], resolve=lambda *_: next(answers))

    asked.ask("POST", f"http://hooks.example:{sink.port}/", b"{}")

    assert next(answers) == ["127.0.0.9"]
    assert sink.posts[0][0]["host"] == f"hooks.example:{sink.port}"


def test_no_proxy_of_the_environment_is_asked(sink, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert Web(["127.0.0.1"]).ask("POST", f"http://127.0.0.1:{sink.port}/", b"{}").status == 204


def test_a_server_that_drips_is_cut_off(monkeypatch):
    monkeypatch.setattr(web, "WHOLE_S", 0.5)
    listening = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def drip() -> None:
        one, _ = listening.accept()
        with one:
            one.sendall(b"HTTP/1.1 200 OK\r\n")
            while not done.wait(0.05):
                try:
                    one.sendall(b"X: y\r\n")
                except OSError:
                    return

    threading.Thread(target=drip, daemon=True).start()

    with pytest.raises(TransientError):
        Web(["127.0.0.1"]).ask("POST", f"http://127.0.0.1:{listening.getsockname()[1]}/", b"{}")

    done.set()
    listening.close()


def test_what_is_listed_has_to_be_a_name_or_a_network():
    with pytest.raises(ConfigError):
        Web(["https://hooks.example/"])
