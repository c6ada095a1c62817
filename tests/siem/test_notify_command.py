"""`cityward route`, and the process that tells people."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from siem import cli
from siem import config as settings_file
from siem.commands import doctor
from tests.programs import PATIENCE_S
from tests.siem.notify_fakes import mail_server

ROUTE = """
[[route]]
id = "duty"
to = "mail"
server = "127.0.0.1:{port}"
transport = "tcp"
sender = "cityward@port.example"
receivers = ["duty@port.example"]
when = {{ "finding.severity" = ["high", "critical"] }}
"""


def settings(folder: Path, port: int) -> Path:
    file = folder / "cityward.toml"
    head = f'state_dir = "{folder / "state"}"\noperator = "op-port"\n[console]\nport = 0\n'
    file.write_text(head + ROUTE.format(port=port))
    return file


def run(*words: str) -> int:
    return cli.run([str(word) for word in words])


def said(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_test_goes_out_and_its_answer_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mail_server() as fake:
        file = str(settings(tmp_path, fake.port))
        assert run("route", "list", "-c", file) == 0
        assert said(capsys)[0]["sent"] == 0
        assert not (tmp_path / "state").exists()

        assert run("route", "test", "duty", "-c", file) == 0
    assert b"Subject: [TEST] Test of the route duty of op-port" in fake.mails[0][2]

    assert said(capsys)[0]["answer"] == "250 2.0.0 queued as 4711"
    assert run("route", "deliveries", "-c", file) == 0
    assert [(one["route"], one["state"]) for one in said(capsys)] == [("duty", "sent")]
    assert run("route", "-c", file) == 0
    assert said(capsys)[0]["last"] == "sent: 250 2.0.0 queued as 4711"


def test_a_test_that_fails_says_so_and_is_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mail_server() as fake:
        file = str(settings(tmp_path, fake.port))
    assert run("route", "test", "duty", "-c", file) == 5

    (row,) = said(capsys)
    assert (row["state"], row["answer"]) == ("dead", "Connection refused")


def test_doctor_says_what_a_route_lacks_and_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAIL_PASSWORD", raising=False)
    with mail_server() as fake:
        file = settings(tmp_path, fake.port)
        node = settings_file.load(file)
        run("route", "test", "duty", "-c", str(file))
        assert [(one.state, one.what) for one in doctor._routes(node)] == [
            ("ok", "mail, 1 sent: 250 2.0.0 queued as 4711")
        ]
    run("route", "test", "duty", "-c", str(file))
    assert [one.what for one in doctor._routes(node)] == [
        "the last delivery failed: Connection refused"
    ]

    file.write_text(file.read_text() + 'user = "cw"\nsecret_env = "MAIL_PASSWORD"\n')
    (missing,) = doctor._routes(settings_file.load(file))
    assert (missing.state, missing.what) == ("wrong", "the variable MAIL_PASSWORD is not set")


def test_an_unknown_route_is_an_error_of_the_command_line(tmp_path: Path) -> None:
    assert run("route", "test", "nobody", "-c", str(settings(tmp_path, 25))) == 2


def test_a_wrong_field_stops_the_node_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = settings(tmp_path, 25)
    file.write_text(file.read_text().replace("finding.severity", "finding.severty"))

    assert run("run", "--path-only", "-c", str(file)) == 4
    assert "findings have no field 'finding.severty'" in capsys.readouterr().err


AUTH = """
[models]
on = false

[[source]]
id = "auth"
reader = "file"
collector = "sshd"
path = "{path}"
"""


@pytest.mark.slow
def test_a_node_tells_of_its_very_first_finding(tmp_path: Path) -> None:
    log = tmp_path / "auth.log"
    line = (
        "Mar  1 10:00:0{n} gw-7 sshd[81{n}]: Failed password for root from 203.0.113.7 port 4 ssh2"
    )
    log.write_text("".join(line.format(n=n) + "\n" for n in range(7)))
    with mail_server() as fake:
        file = settings(tmp_path, fake.port)
        said = file.read_text().replace('["high", "critical"]', '["medium", "high"]')
        file.write_text(said + AUTH.format(path=log))
        words = [sys.executable, "-m", "siem.cli", "run", "-c", str(file)]
        node = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + PATIENCE_S
            while not fake.mails and time.monotonic() < until:
                time.sleep(0.2)
        finally:
            node.terminate()
        assert node.wait(PATIENCE_S) == 0

    assert b"203.0.113.7 failed to log in 5 times" in fake.mails[0][2]
    assert len(fake.mails) == 1
