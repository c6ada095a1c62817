"""The console over HTTPS: its certificate, its cookies, and what doctor says of it."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2 as httpx
import pytest

from cityward import ConfigError
from siem import config, tls
from siem.commands import doctor


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node whose console has a certificate of its own."""
    words = [sys.executable, "-m", "siem.cli", "init", "node", "--yes", "--tls"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "console   https://127.0.0.1:8765/" in done.stdout
    file = tmp_path / "node" / "cityward.toml"
    file.write_text(file.read_text().replace("port = 8765", "port = 0"))
    return file


@pytest.fixture
def console(node: Path) -> Iterator[str]:
    words = [sys.executable, "-m", "siem.cli", "serve", "--config", str(node)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    yield process.stderr.readline().removeprefix("console ").strip()
    process.kill()
    process.wait()


def _said(settings: config.Settings) -> list[tuple[str, str]]:
    return [(one.state, one.what) for one in doctor._tls(settings)]


def test_the_console_speaks_https_and_its_cookie_goes_over_nothing_else(
    console: str, node: Path
) -> None:
    believed = ssl.create_default_context(cafile=node.parent / "state" / "console.pem")

    with httpx.Client(base_url=console, verify=believed) as http:
        form = http.get("/sign-in")
        told = http.get("/sign-in", headers={"x-forwarded-for": "203.0.113.9"})

    assert console.startswith("https://127.0.0.1:")
    assert (form.status_code, told.status_code) == (200, 200)
    assert re.search("; secure", form.headers["set-cookie"], re.IGNORECASE)


def test_nothing_older_than_tls_1_2_is_spoken(console: str) -> None:
    host, port = console.removeprefix("https://").strip("/").split(":")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1

    with socket.create_connection((host, int(port))) as sock, pytest.raises(ssl.SSLError):
        old.wrap_socket(sock)


def test_doctor_looks_at_the_certificate_and_at_its_key(node: Path) -> None:
    settings = config.load(node)
    state = node.parent / "state"

    assert [state for state, _ in _said(settings)] == ["ok"]
    (state / "console.key").chmod(0o644)
    assert ("wrong", f"everybody may read {state}/console.key") in _said(settings)
    (state / "console.key").chmod(0o600)
    for days, expected in (
        (-tls.SELF_SIGNED_DAYS - 1, "wrong"),
        (-tls.SELF_SIGNED_DAYS + 9, "note"),
    ):
        tls.make_self_signed(state, datetime.now(UTC) + timedelta(days=days))
        assert [state for state, _ in _said(settings)] == [expected]


def test_a_certificate_without_its_key_is_refused_in_words(node: Path) -> None:
    key = node.parent / "state" / "console.key"
    cert = node.parent / "state" / "console.pem"

    with pytest.raises(ConfigError, match="needs its key"):
        config.parse({"console": {"tls_cert": str(cert)}})
    for change in (lambda: key.write_bytes(cert.read_bytes()), key.unlink):
        change()
        with pytest.raises(ConfigError, match="cannot be used"):
            tls.context_of(config.load(node).console)


def test_the_key_is_its_owners_alone(node: Path) -> None:
    assert os.stat(node.parent / "state" / "console.key").st_mode & 0o777 == 0o600
