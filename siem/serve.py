"""The console's process: the files of a node, as the web console sees them."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cityward import ConfigError
from cityward.documents import MAX_BYTES
from siem import assembly, ruleset, tls
from siem.assets import from_settings
from siem.config import Settings
from siem.console.protocol import Hearing, Samples, Usage
from siem.duties import Duties
from siem.hearing import hearing
from siem.leaving import SharingDesk
from siem.node import Clock, now_utc
from siem.notify.routes import Route, routes_of
from siem.notify.worker import Notifier
from siem.register import Register, known
from siem.responding import ResponseDesk
from siem.rule_runs import Runs
from siem.store.accounts import Accounts
from siem.store.cases import CaseStore
from siem.store.notices import NoticeStore
from siem.store.protocol import Assets, Document, Events, Findings, Range, RuleState, SourceState
from siem.store.room import DISK_LOW_BYTES
from siem.store.trail import Audited, Proof
from siem.workbench import Workbench

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from siem.releasing import Releasing


class Served:
    """A node behind its console; it writes triage and audit, never events."""

    def __init__(self, settings: Settings, clock: Clock = now_utc, file: str = "") -> None:
        self._settings = settings
        self._file = file
        self._samples = Runs(lambda: ruleset.rules_of(settings, self._db))
        self._clock = clock
        self._events = assembly.events_of(settings, clock, write=False)
        self._db = assembly.db_of(settings, from_settings(settings), clock)
        self._register = Register(self._db, settings)
        self._routes = routes_of(settings.route)
        self._deadlines = assembly.deadlines_of(settings)
        self._sharing = SharingDesk(
            settings,
            self._db.outgoing,
            self._db.proposals,
            lambda: known(settings, self._db.inventory.assets(merged=True)),
        )
        self._response = ResponseDesk(settings, self._db, self._events, clock)
        self._workbench = Workbench(settings, self._db, clock)
        self.operator = settings.operator
        self.sector = settings.sector
        self.secret = assembly.secret_of(settings.state_path, "session.key")

    @property
    def findings(self) -> Findings:
        """Where findings are kept."""
        return self._db

    @property
    def events(self) -> Events:
        """Where events are kept."""
        return self._events

    @property
    def inventory(self) -> Assets:
        """What is known of assets, zones and conduits."""
        return self._register

    def now(self) -> datetime:
        """The node's time."""
        return self._clock()

    @property
    def response(self) -> ResponseDesk:
        """What playbooks plan and do here."""
        return self._response

    @property
    def tuning(self) -> Workbench:
        """Rules and filters as people change them."""
        return self._workbench

    @cached_property
    def releases(self) -> Releasing:
        """Protected samples that leave, and those that came."""
        from siem.releasing import Releasing

        return Releasing(self._settings, self._db, self._sharing.policy, self._clock)

    @property
    def sharing(self) -> SharingDesk:
        """What may leave, what waits, what left."""
        return self._sharing

    @property
    def accounts(self) -> Accounts:
        """People, tokens, saved views, switched rules."""
        return self._db.accounts

    @property
    def cases(self) -> CaseStore:
        """Where incidents are kept."""
        return self._db.cases

    @property
    def deadlines(self) -> Duties:
        """Duties that may stand on an incident."""
        return self._deadlines

    def case_findings(self, ids: Sequence[str]) -> Sequence[Document]:
        """The findings of an incident that are there, oldest first."""
        found = [one for one in map(self._db.get, ids) if one is not None]
        return sorted(found, key=lambda one: one["finding.first_seen"])

    def sources(self) -> Sequence[SourceState]:
        """What every source has sent."""
        return self._db.sources()

    def rules(self) -> Sequence[RuleState]:
        """What is known of every rule; one that was switched just now is shown so already."""
        return ruleset.known(self._settings, self._db)

    def disk(self) -> Sequence[Usage]:
        """How full the store is."""
        quota = int(self._settings.retention.disk_quota_gb * 1e9)
        events = sum(self._events.usage().values())
        db = sum(path.stat().st_size for path in self._settings.state_path.glob("node.db*"))
        return [Usage("events", events, quota), Usage("node.db", db, 0)]

    def facts(self) -> Mapping[str, str]:
        """What else Health says of the node."""
        retention = self._settings.retention
        disk = shutil.disk_usage(self._settings.state_path)
        is_low = disk.free < DISK_LOW_BYTES
        free = f"{disk.free / 1e9:,.1f} of {disk.total / 1e9:,.0f} GB free"
        return {
            "The disk": f"nearly full: {free}; make room" if is_low else free,
            "Events are kept": f"{retention.events_days} days",
            "Findings are kept": f"{retention.findings_days} days after they were closed",
            **self._copies(),
        }

    def _copies(self) -> Mapping[str, str]:
        """How the copying into the node's own cluster goes, if it has one."""
        if self._settings.cluster is None:
            return {}
        from siem.store.mirror import in_words, state_of

        return {"Copies in the cluster": in_words(state_of(self._db), self._clock())[1]}

    def rule_text(self, rule: RuleState) -> str:
        """A rule as it stands in its file."""
        try:
            with Path(rule.file.rpartition(":")[0]).open("rb") as file:
                return file.read(MAX_BYTES).decode("utf-8", "backslashreplace")
        except OSError:
            return ""

    def samples(self, rule: RuleState, *, run: bool) -> Samples | None:
        """The samples of a rule as they came out; without `run` only if that is known already."""
        return self._samples.of(rule, run=run)

    def hearing(self) -> Hearing:
        """What a first source could be, and why those that are set up bring nothing."""
        return hearing(self._settings, self.sources(), self._events, self._clock(), file=self._file)

    @property
    def routes(self) -> Mapping[str, Route]:
        """Whom the node tells of findings."""
        return self._routes

    @property
    def notices(self) -> NoticeStore:
        """What was told, and what waits."""
        return self._db.notices

    def notifier(self) -> Notifier | None:
        """The threads that tell people of findings; None if no route is set."""
        if not self._routes:
            return None
        return Notifier(
            self._routes, self.notices, self.operator, self._clock, self._settings.state_path
        )

    def close(self) -> None:
        """Let go of the stores."""
        self._workbench.close()
        self._events.close()
        self._db.close()

    def audit(self, by: str, action: str, about: str, now: datetime) -> None:
        """Keep what a person did."""
        self._db.audit(by, action, about, now)

    def trail(
        self, words: str, span: Range, limit: int = 50, offset: int = 0
    ) -> tuple[Sequence[Audited], int]:
        """Lines of the audit trail."""
        return self._db.trail(words, span, limit, offset)

    def audit_proof(self) -> Proof:
        """Whether the whole audit trail is as it was written."""
        return self._db.audit_proof()


def serve(settings: Settings, listening: socket.socket, file: str = "") -> None:
    """Serve the console on a socket until the process is told to stop; `file` has the settings."""
    from siem.console.app import make_app, make_city_app

    # A signal must not end us before the stores are closed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    if settings.hub is not None:
        from siem.hub import view_of

        hub = view_of(settings)
        with closing(hub):
            _answer(settings, make_city_app(hub), listening)
        return
    node = Served(settings, file=file)
    notifier = node.notifier()
    with closing(node):
        app = make_app(node)
        threading.Thread(target=node.tuning.read_ahead, name="rules", daemon=True).start()
        if notifier is not None:
            notifier.start()
        try:
            _answer(settings, app, listening)
        finally:
            if notifier is not None:
                notifier.stop()


def _answer(settings: Settings, app: ASGIApp, listening: socket.socket) -> None:
    """Answer requests until the process is told to stop."""
    import uvicorn

    context = tls.context_of(settings.console)
    is_behind_proxy = settings.console.secure_cookie and context is None
    if is_behind_proxy:
        app = _as_https(app)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        # Without a proxy anybody could name another address, and so try passwords for ever.
        proxy_headers=is_behind_proxy,
        ssl_context_factory=(lambda *_: context) if context else None,
    )
    uvicorn.Server(config).run(sockets=[listening])


def _as_https(app: ASGIApp) -> ASGIApp:
    """Behind a TLS proxy every request came over HTTPS, whatever the last hop was."""

    async def told(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "scheme": "https"}
        await app(scope, receive, send)

    return told


def listen(settings: Settings) -> socket.socket:
    """The socket of the console; port 0 takes a free one.

    Raises:
        ConfigError: the address is taken or is not ours.
    """
    host, port = settings.console.host, settings.console.port
    try:
        return socket.create_server((host, port), family=_family(host), reuse_port=False)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            "console.host, console.port",
            "Stop what listens there, or set another port.",
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def address_of(listening: socket.socket, *, secure: bool = False) -> str:
    """The address that a browser opens."""
    host, port = listening.getsockname()[:2]
    scheme = "https" if secure else "http"
    return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"
