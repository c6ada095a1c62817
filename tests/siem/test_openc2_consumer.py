"""`cityward openc2-consumer` as a process of its own: token, mutual TLS, a real nftables."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from cityward import Command, TransientError, Unsafe
from playbooks.actuators.openc2 import OpenC2
from playbooks.targets import target_of
from siem.sharing.certificates import Authority, key_of_request, new_key, pem
from tests.playbooks.namespaces import PARTNER, STRANGER, City
from tests.programs import PATIENCE_S

CITYWARD = (sys.executable, "-m", "siem.cli", "openc2-consumer", "--listen", "127.0.0.1:0")
TOKEN = "s3cret-t0ken"
HOST = target_of("ipv4_net", STRANGER)
ROOT = Path(__file__).parents[2]
LAST_S = 15.0
"""The last denial lasts until the consumer has ended, also on a busy machine, and not for long."""


def settings(folder: Path, nft: Sequence[str]) -> Path:
    path = folder / "cityward.toml"
    words = json.dumps(list(nft))
    path.write_text(
        f'state_dir = "{folder}"\n[response.actuators.nftables]\nprogram = {words}\n'
        f'keep = ["{PARTNER}"]\n'
    )
    return path


@contextmanager
def consumer(folder: Path, nft: Sequence[str], *words: str) -> Iterator[str]:
    """A consumer that runs; where it takes commands."""
    environment = {**os.environ, "FILTER_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*CITYWARD, "-c", str(settings(folder, nft)), *words],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )
    try:
        assert process.stderr is not None
        found = None
        for line in process.stderr:
            if found := re.search(r"go to (\S+);", line):
                break
        assert found, "it did not start"
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def deny(key: str, seconds: float) -> Command:
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return Command("deny", HOST, undo="allow", until=until, key=key)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nft") or not shutil.which("ip"), reason="needs root, nft"
)
def test_a_command_over_http_cuts_a_stranger_off_and_ends_by_itself(tmp_path: Path) -> None:
    city = City()
    try:
        city.build()
        with consumer(tmp_path, city.nft, "--token-env", "FILTER_TOKEN") as url:
            part = OpenC2(url=url, token=TOKEN, allowed=["127.0.0.1"])
            before = city.reaches(STRANGER)
            part.apply(deny("k1", 60))
            during = (city.reaches(STRANGER), city.reaches(PARTNER), part.probe(HOST).is_applied)
            part.apply(Command("allow", HOST, undo="", until=datetime.now(UTC), key="k2"))
            after = (city.reaches(STRANGER), part.probe(HOST).is_applied)
            part.apply(deny("k3", LAST_S))
            partner = Command(
                "deny", target_of("ipv4_net", PARTNER), "", deny("", 60).until, key="k4"
            )
            with pytest.raises(Unsafe, match="HTTP 403"):
                part.apply(partner)
        # The consumer is gone, and what it denied ends all the same.
        blocked = city.reaches(STRANGER)
        until = datetime.now(UTC) + timedelta(seconds=LAST_S + 4)
        while not city.reaches(STRANGER):
            assert datetime.now(UTC) < until
    finally:
        city.tear_down()

    assert before
    assert during == (False, True, True)
    assert after == (True, False)
    assert not blocked


@pytest.mark.slow
def test_with_mutual_tls_only_a_known_certificate_gives_commands(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca", lambda: datetime.now(UTC), "filters")
    with authority.locked():
        authority.make()
        authority.context(["localhost"])
    for name in ("soc", "stranger"):
        key, request = new_key(name)
        certificate: x509.Certificate = authority.signed(name, key_of_request(request, name, ""), 1)
        (tmp_path / f"{name}.pem").write_bytes(pem(certificate).encode() + key)
    ca = str(tmp_path / "ca" / "ca.pem")
    own = ("--tls-cert", str(tmp_path / "ca/port.pem"), "--tls-key", str(tmp_path / "ca/port.key"))

    with consumer(tmp_path, ["true"], *own, "--client-ca", ca, "--names", "soc") as listens:
        url = listens.replace("127.0.0.1", "localhost")

        def producer(name: str) -> OpenC2:
            cert = str(tmp_path / f"{name}.pem") if name else ""
            return OpenC2(url=url, cert_file=cert, ca_file=ca, allowed=["127.0.0.1", "::1"])

        # `true` is no nft: the command comes as far as the filter, which is not there.
        with pytest.raises(TransientError, match="HTTP 503"):
            producer("soc").apply(deny("k1", 60))
        with pytest.raises(Unsafe, match="HTTP 401"):
            producer("stranger").apply(deny("k1", 60))
        with pytest.raises(TransientError, match="no answer"):
            producer("").apply(deny("k1", 60))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "nobody could give commands"),
        (["--listen", "0.0.0.0:0", "--token-env", "FILTER_TOKEN"], "would be readable on the way"),
        (["--names", "soc"], "names need an authority"),
        (["--token-env", "FILTER_TOKEN", "--actuator", "unbound"], "unbound is not set up"),
    ],
)
def test_a_door_that_would_be_open_or_of_no_use_is_refused(
    words: list[str], why: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from siem import cli

    monkeypatch.setenv("FILTER_TOKEN", TOKEN)

    code = cli.run(["openc2-consumer", *words, "-c", str(settings(tmp_path, ["true"]))])

    assert code in (2, 4)
    assert why in capsys.readouterr().err
