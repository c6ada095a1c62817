"""The nodes of the exercise and its hub: each a process of its own, none left behind."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cityward import TransientError
from siem import assembly
from siem import config as settings_file
from siem.assets import from_settings
from siem.city.authority import Operators
from siem.common_store import commons_of
from siem.config import Settings
from siem.console.access import password_hash
from siem.exercise.gateway import Gateway
from siem.exercise.processes import below, die_with, kill
from siem.exercise.saltmere import Place, captures_of, hub_settings
from siem.exercise.shelf import PLAYBOOK, Shelf
from siem.hub import EXCHANGE
from siem.node import now_utc
from siem.sharing.identity import Identity
from siem.sharing.link import join
from siem.sharing.policy import example_for
from siem.store.protocol import Person, Role

PERSON = "demo"
OFFICER = "duty"
"""Says yes or no to what playbooks would do; somebody else than who looks at findings."""
STOP_S = 15.0
LAST_WORDS_S = 3.0
_SAYS = "console "


class Child:
    """A process of the exercise: its folder, its console, who may sign in.

    Args:
        operator: Whose it is.
        name: As people know it.
        folder: Where its settings and its state are; made anew.
        words: What it is started with.
    """

    def __init__(self, operator: str, name: str, folder: Path, words: Sequence[str]) -> None:
        self.operator = operator
        self.name = name
        self.folder = folder
        self.file = folder / "cityward.toml"
        self.password = secrets.token_urlsafe(9)
        self.address = ""
        """Of the console; known when it answers."""
        self._words = words
        self._log = folder / "process.log"
        self._process: subprocess.Popen[bytes] | None = None

    def _write(self, text: str, people: Mapping[str, tuple[Role, ...]]) -> Settings:
        """Write its settings, and let its people in."""
        self.file.write_text(text, encoding="utf-8")
        settings = settings_file.load(self.file)
        db = assembly.db_of(settings, from_settings(settings), now_utc)
        kept = password_hash(self.password)
        for name, roles in people.items():
            db.add_person(Person(name, roles, kept))
        db.close()
        return settings

    def start(self) -> None:
        """Start the process; it ends with us, however we end."""
        words = [sys.executable, "-m", "siem.cli", *self._words, "--config", str(self.file)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Its own session: Ctrl+C comes to us, and we end it in order.
                start_new_session=True,
                preexec_fn=die_with(os.getpid()),  # noqa: PLW1509 – before the first thread
            )

    def answers(self) -> bool:
        """Whether the console has said its address, which is known then."""
        for line in self._log.read_text(errors="replace").splitlines():
            if line.startswith(_SAYS):
                self.address = line.removeprefix(_SAYS).strip()
        return bool(self.address)

    def fault(self, what: str) -> TransientError:
        """An error that says what happened to this process, with its last words."""
        if self._process is not None:
            # One that is ending says why at its very end.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(LAST_WORDS_S)
        said = self._log.read_text(errors="replace") if self._log.is_file() else ""
        return TransientError(
            f"{self.operator} {what}",
            f"its log: {said[-2_000:].strip() or 'it said nothing'}",
            "Try again; if it stays so, report it with these lines.",
        )

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the process; 0 before the start."""
        return self._process.pid if self._process else 0

    def tell_to_stop(self) -> None:
        """Ask the process to finish its batch and end."""
        if self._process and self.is_running:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Wait until the process has ended; one that does not is killed with all its children."""
        if self._process is None:
            return
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            for pid in (*below(self._process.pid), self._process.pid):
                kill(pid)
            self._process.wait()


class OneHub(Child):
    """The hub of the exercise: it admits the operators, and joins what they share.

    Args:
        folder: Where its settings and its state are; made anew.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("city", "Saltmere, the hub", folder, ["hub"])
        self.port = _free_port("tcp")
        self.tokens: dict[str, str] = {}
        """By operator: admits its node, once."""

    def prepare(self, sectors: Mapping[str, str]) -> None:
        """Write settings, make keys, and a token for every operator.

        Args:
            sectors: Sector of each operator.
        """
        self.folder.mkdir(parents=True)
        settings = self._write(
            hub_settings(self.folder, self.port, PLAYBOOK), {PERSON: ("ciso", "administrator")}
        )
        commons = commons_of(settings, now_utc)
        operators = Operators(commons.records, settings.state_path / EXCHANGE, now_utc)
        operators.make()
        self.tokens = {name: operators.add(name, sector) for name, sector in sectors.items()}
        commons.close()

    @property
    def url(self) -> str:
        """Where operators reach it."""
        return f"https://127.0.0.1:{self.port}"


class OneNode(Child):
    """A node of the exercise.

    Args:
        place: The operator.
        folder: Where its settings, state and inputs are; made anew.
        hub: The hub that it joins.
        join_key: File with the root of the join tokens, which all operators have.
        shelf: Its playbooks, and who has to have signed them.
    """

    def __init__(
        self, place: Place, folder: Path, hub: OneHub, join_key: Path, shelf: Shelf
    ) -> None:
        super().__init__(place.operator, place.name, folder, ["run"])
        self.place = place
        self._shelf = shelf
        self.ports: dict[str, int] = {}
        self._hub = hub
        self._join_key = join_key
        self._settings: Settings | None = None

    def prepare(self, gateway: Gateway) -> None:
        """Write settings and policy, make pipes and folders, let its people in.

        Args:
            gateway: What its playbooks act on.
        """
        self.folder.mkdir(parents=True)
        for feed in self.place.feeds:
            if feed.kind.startswith("syslog"):
                self.ports[feed.id] = _free_port(feed.kind)
            elif feed.kind == "folder":
                (self.folder / feed.id).mkdir()
            elif feed.kind == "tap":
                for name in captures_of(feed)[1:]:
                    os.mkfifo(self.folder / f"{name}.pcap", 0o600)
        policy = self.folder / "policy.yml"
        policy.write_text(example_for(self.operator), encoding="utf-8")
        sections = {
            "sharing": {
                "hub": self._hub.url,
                "policy": str(policy),
                "join_key_file": str(self._join_key),
            },
            "response": self._shelf.settings,
            f"response.actuators.{gateway.actuator}": gateway.settings,
        }
        text = self.place.settings(self.folder, self.ports, sections)
        people: dict[str, tuple[Role, ...]] = {
            PERSON: ("engineer", "analyst", "administrator"),
            OFFICER: ("approver",),
        }
        self._settings = self._write(text, people)

    def join(self) -> None:
        """Be admitted by the hub, which answers."""
        settings = self._settings
        assert settings is not None
        db = assembly.db_of(settings, from_settings(settings), now_utc)
        try:
            identity = Identity(settings.state_path)
            join(identity, db.outgoing, self._hub.url, self._hub.tokens[self.operator], "token")
        finally:
            db.close()


def _free_port(kind: str) -> int:
    what = socket.SOCK_DGRAM if kind == "syslog_udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, what) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
