"""`cityward route`, and the process that tells people."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from siem import assembly, cli
from siem import config as settings_file
from siem.assets import from_settings
from siem.commands import doctor
from siem.node import now_utc
from tests.siem.notify_fakes import mail_server
from tests.siem.test_notify import match

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


@pytest.mark.slow
def test_the_process_of_the_console_tells_people(tmp_path: Path) -> None:
    with mail_server() as fake:
        file = settings(tmp_path, fake.port)
        node = settings_file.load(file)
        assembly.events_of(node, now_utc, write=True).close()
        words = [sys.executable, "-m", "siem.cli", "serve", "-c", str(file)]
        console = subprocess.Popen(words, stderr=subprocess.PIPE)
        try:
            assert console.stderr is not None
            console.stderr.readline()
            db = assembly.db_of(node, from_settings(node), now_utc)
            until = time.monotonic() + 20
            while db.notices.tally("duty").sent == 0 and time.monotonic() < until:
                # The route begins when the console has taken it up.
                at = now_utc()
                db.keep([match(at, asset=f"rtu-{at}", source=str(at))], checkpoint=1, now=at)
                time.sleep(0.3)
            db.close()
        finally:
            console.terminate()
        assert console.wait(20) == 0

    assert b"[high] Password guessed" in fake.mails[0][2]
