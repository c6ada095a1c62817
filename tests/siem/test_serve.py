"""The console as a process: what it believes, and what it leaves behind."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from siem import assembly, ruleset
from siem import config as settings_file
from siem.assets import from_settings
from siem.console.access import password_hash
from siem.node import now_utc
from siem.store.protocol import Person
from tests.programs import PATIENCE_S
from tests.siem.console.conftest import csrf_of

SECURE = "[console]\nport = 0\nsecure_cookie = true\n"
PLAIN = "[console]\nport = 0\n"


class Console:
    """The console of a node that has one person, in a process of its own."""

    def __init__(self, folder: Path, console: str) -> None:
        file = folder / "cityward.toml"
        file.write_text(f'state_dir = "{folder / "state"}"\n{console}')
        self.settings = settings_file.load(file)
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        db = self.db()
        db.add_person(Person("i.vasko", ("analyst",), password_hash("right")))
        db.close()
        assembly.events_of(self.settings, now_utc, write=True).close()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "siem.cli", "serve", "--config", str(file)],
            stderr=subprocess.PIPE,
            text=True,
            env={"TMPDIR": str(self.temporary)},
        )
        assert self.process.stderr is not None
        base = self.process.stderr.readline().removeprefix("console ").strip()
        self.http = httpx.Client(base_url=base, timeout=PATIENCE_S)

    def db(self):  # type: ignore[no-untyped-def]
        return assembly.db_of(self.settings, from_settings(self.settings), now_utc)

    def sign_in(self, password: str, **headers: str) -> httpx.Response:
        form = self.http.get("/sign-in")
        # A secure cookie is not sent over HTTP; a proxy would have received it over HTTPS.
        headers["cookie"] = form.headers["set-cookie"].partition(";")[0]
        data = {"name": "i.vasko", "password": password, "csrf": csrf_of(form.text)}
        return self.http.post("/sign-in", data=data, headers=headers)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def console(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Console]:
    made = Console(tmp_path, request.param)
    yield made
    made.http.close()
    made.process.kill()
    made.process.wait()


@pytest.mark.parametrize(
    ("console", "address"),
    [(PLAIN, "127.0.0.1"), (SECURE, "203.0.113.9")],
    indirect=["console"],
)
def test_only_a_proxy_may_say_where_a_request_came_from(console: Console, address: str) -> None:
    console.sign_in("wrong", **{"x-forwarded-for": "203.0.113.9"})

    db = console.db()
    tries = [(one.action, one.about) for one in db.audited()]
    db.close()
    assert tries == [("sign-in refused", address)]


@pytest.mark.parametrize("console", [PLAIN], indirect=True)
def test_a_console_that_is_told_to_stop_leaves_nothing_in_the_temporary_folder(
    console: Console,
) -> None:
    console.sign_in("right")
    asked = console.http.get("/hunt").status_code
    during = [path.name for path in console.temporary.iterdir()]

    code = console.stop()

    assert (asked, code) == (200, 0)
    assert [re.sub(r"-\w+$", "", name) for name in during] == ["cityward-look"]
    assert list(console.temporary.iterdir()) == []


@pytest.mark.parametrize("console", [PLAIN], indirect=True)
def test_the_page_of_a_rule_shows_its_text(console: Console) -> None:
    states = ruleset.states_alone(console.settings)
    rule = next(one for one in states if "vehicle_too_fast" in one.file)
    db = console.db()
    db.keep((), 0, rules=[rule])
    db.close()
    console.sign_in("right")

    page = console.http.get(f"/rules/{rule.id}").text
    whole = console.http.get(f"/rules/{rule.id}.json").json()["text"]

    assert whole == (ruleset.RULES_FOLDER / "transport" / "vehicle_too_fast.yml").read_text()
    assert '<span class="y-k">detection:</span>' in page
