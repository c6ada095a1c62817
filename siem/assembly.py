"""Put a node together from its settings: readers with collectors, detectors, stores."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from cityward import ConfigError, Detector, InputError
from cityward.plugin import CollectorSpec, load
from collectors.readers import FileReader, FolderReader, Reader, SyslogTcp, SyslogUdp
from collectors.recognise import recognise
from siem import config, duties, register
from siem.assets import Inventory, from_settings
from siem.bell import bell_of
from siem.canaries import Canaries
from siem.config import Settings
from siem.evidence import RINGS
from siem.learning import SOURCE as LEARNT
from siem.learning import Learner
from siem.modes import Modes
from siem.modes import of_settings as modes_of
from siem.node import Clock, Node, Source, now_utc
from siem.refusals import ResponseWatch
from siem.roll_call import RollCall
from siem.ruleset import (
    rule_folders,
    rules_of,
    samples_of,
    stamp,
    states_of,
    switched_off,
    tuned_at,
)
from siem.store.embedded import NodeDb
from siem.store.events import EventStore
from siem.store.faults import fault
from siem.store.protocol import HUB_ROLES, NODE_ROLES

if TYPE_CHECKING:
    from detectors.sigma.engine import Engine
    from detectors.sigma.rule import RuleSet

log = logging.getLogger(__name__)

HEAD_BYTES = 65_536
"""How much of a file is looked at to recognise it."""

FOLDER_SAMPLE = 20
"""How many files of a folder are looked at to recognise them."""

SECRET_BYTES = 32


def node_of(
    settings: Settings,
    *,
    sources: Sequence[Source] | None = None,
    clock: Clock = now_utc,
    event_time: bool = False,
    book: NodeDb | None = None,
    tried: Mapping[str, str] | None = None,
) -> Node:
    """A node with its stores open and its rules loaded.

    Args:
        settings: What the file says.
        sources: What is read; otherwise what the settings name.
        clock: The node's time.
        event_time: Time passes as the events say, not as the clock does (files of the past).
        book: Where it stands what people deployed, switched, approved and announced; otherwise in
            the node's own state.
        tried: Texts of rules and filters that count in the place of others of the same id.

    Raises:
        ConfigError: the state folder is newer than this program, or a setting is impossible.
    """
    inventory = from_settings(settings)
    db = db_of(settings, inventory, clock)
    book = book or db
    learner = Learner(
        inventory,
        hours=settings.inventory.learning_hours,
        most=settings.inventory.assets_most,
        has_zones=bool(settings.zone),
    )
    modes = Modes(settings.mode)
    off: dict[str, str] = {}
    roll = RollCall(rule_folders(settings))

    def ruled() -> tuple[Hashable, ...]:
        """Another one if the rules have changed, here or in a file."""
        return book.rulebook.number(), stamp(settings)

    seen = ruled()
    detectors = detectors_of(settings, rules_of(settings, book, tried=tried))

    def reread() -> None:
        """Take up what people have approved, corrected, announced and switched."""
        off.clear()
        off.update(switched_off(settings, book))
        inventory.use(register.known(settings, book.inventory.assets(merged=True)))
        learnt = db.inventory
        learner.load(learnt.assets(merged=True), learnt.conduits(), learnt.learning())
        modes.use([*modes_of(settings), *book.inventory.entries()])
        nonlocal seen
        if seen != (now := ruled()):
            detectors[0] = engine().with_rules(rules_of(settings, book, tried=tried))
            seen = now
        db.tuned_at = tuned_at(engine().rules, book)
        engine().use_placeholders(inventory.placeholders(settings.lists))
        roll.call(engine().states())

    def engine() -> Engine:
        """The Sigma engine; another one after each change of the rules."""
        return cast("Engine", detectors[0])

    reread()
    open_cases = partial(db.cases.all, open_only=True)
    canaries = Canaries(engine, partial(samples_of, book))
    detectors += [duties.DutyWatch(deadlines_of(settings), open_cases), ResponseWatch(db.runs)]
    detectors.append(canaries)
    return Node(
        operator=settings.operator,
        sector=settings.sector,
        site=settings.site,
        mode=settings.mode,
        sources=sources if sources is not None else list(sources_of(settings, clock)),
        inventory=inventory,
        detectors=detectors,
        events=events_of(settings, clock, write=True),
        db=db,
        findings_days=settings.retention.findings_days,
        clock=clock,
        event_time=event_time,
        rule_states=lambda: states_of(engine(), off, canaries),
        off=off.keys(),
        learner=learner,
        modes=modes,
        version=lambda: (db.inventory.version(), ruled()),
        reread=reread,
    )


@contextlib.contextmanager
def book_of(settings: Settings) -> Iterator[NodeDb | None]:
    """What people did at the node of these settings; None: there is none, or it is not for us."""
    state = settings.state_path
    file, key = state / "node.db", state / "operator.key"
    needed = {state: os.R_OK | os.X_OK, key: os.R_OK, file: os.R_OK | os.W_OK}
    barred = [
        path for path, how in needed.items() if os.path.exists(path) and not os.access(path, how)
    ]
    if barred:
        log.warning("What was deployed at the node is left out: %s is not for us.", barred[0])
    if barred or not file.is_file():
        yield None
        return
    with contextlib.closing(db_of(settings, from_settings(settings), now_utc)) as db:
        yield db


def events_of(settings: Settings, clock: Clock, *, write: bool) -> EventStore:
    """The events in the state folder."""
    return EventStore(
        settings.state_path / "events",
        clock,
        write=write,
        retention_days=settings.retention.events_days,
        quota_bytes=int(settings.retention.disk_quota_gb * 1e9),
    )


def db_of(settings: Settings, inventory: Inventory, clock: Clock) -> NodeDb:
    """Everything else in the state folder."""
    state = settings.state_path
    key = secret_of(state, "operator.key")
    is_hub = settings.hub is not None
    db = NodeDb(state / "node.db", key, asset_of=inventory.find, clock=clock, is_hub=is_hub)
    # A clock that is itself turned faster is none to be held against the machine's.
    db.runs.is_steady = clock is now_utc
    db.runs.bell = bell_of(settings)
    db.accounts.offers = HUB_ROLES if is_hub else NODE_ROLES
    return db


def secret_of(state: Path, name: str) -> bytes:
    """A secret of this node: 32 random bytes in a file that only its owner reads, made once.

    Raises:
        ConfigError: the file does not hold them.
    """
    path = state / name
    state.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        fault("secret")
        # It has its name when it is whole: an empty secret would be everyone's.
        made, unfinished = tempfile.mkstemp(dir=state)
        with os.fdopen(made, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, path)
        os.unlink(unfinished)
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        what = f"no secret: {len(secret)} bytes of {SECRET_BYTES}"
        raise ConfigError(what, str(path), "Restore it from a backup, or remove it for a new one.")
    return secret


def deadlines_of(settings: Settings) -> duties.Duties:
    """Duties that the law puts on an incident: the shipped ones, or the operator's own file."""
    path = Path(settings.deadlines).expanduser() if settings.deadlines else duties.SHIPPED
    return duties.load(path)


def detectors_of(settings: Settings, rules: RuleSet) -> list[Detector]:
    """The Sigma engine, first, and the models."""
    from detectors.anomaly.series import Series
    from detectors.anomaly.silence import Silence
    from detectors.anomaly.surprise import Surprise
    from detectors.sigma.engine import Engine

    state = settings.state_path
    words = state / "words" if state.is_dir() else None
    engine = Engine(rules, share_max=settings.rules.share_max or None, databases=words)
    if not settings.models.on:
        return [engine]
    quiet = [LEARNT, *(one.id for one in settings.source if one.quiet_ok)]
    return [engine, Surprise(), Series(), Silence(quiet=quiet)]


# ---- sources


def specs_of(collectors: Mapping[str, Any]) -> dict[str, CollectorSpec]:
    """What each collector says of itself."""
    return {name: part.cityward_spec for name, part in collectors.items()}


def file_source(
    path: Path, collectors: Mapping[str, Any], *, source: str = "", named: str = ""
) -> Source:
    """A file that is read once, by the collector that recognises it.

    Raises:
        InputError: it cannot be read, or no collector recognises it.
    """
    name = named or _recognised(path, collectors)
    framing = collectors[name].cityward_spec.framing
    source = source or path.name
    reader: Reader
    if framing == "packets":
        from collectors.packets.capture import CaptureReader

        reader = CaptureReader(path, source)
    else:
        reader = FileReader("-" if str(path) == "-" else path, source, framing)
    return Source(reader, name, collectors[name])


def _recognised(path: Path, collectors: Mapping[str, Any]) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", str(path), "Check the path and its permissions."
        ) from error
    name = recognise(head, path.name, specs_of(collectors))
    if name is None:
        what = "is empty" if not head else "is of no kind that a collector recognises"
        raise InputError(
            f"{path.name} {what}",
            str(path),
            "Name its collector with --collector: " + ", ".join(sorted(collectors)) + ".",
        )
    return name


def sources_of(settings: Settings, clock: Clock = now_utc) -> Iterator[Source]:
    """What the settings name, each with its reader and collector.

    Raises:
        ConfigError, InputError: a source cannot be, or its file is of no known kind.
    """
    collectors = load("collectors")
    for one in settings.source:
        name = one.collector or _collector_for(one, collectors)
        if name not in collectors:
            raise ConfigError(
                f"no collector is called {name!r}",
                f"source {one.id}",
                "Write one of: " + ", ".join(sorted(collectors)) + ".",
            )
        framing = collectors[name].cityward_spec.framing
        reader = _reader(one, framing, clock, settings)
        yield Source(reader, name, collectors[name])


def _collector_for(one: config.Source, collectors: Mapping[str, Any]) -> str:
    """Captures and interfaces bring packets, syslog ports syslog; files are looked at.

    Raises:
        ConfigError: nothing can be looked at beforehand, and no collector is named.
        InputError: a file is of no known kind.
    """
    given = {
        "capture": "packets",
        "interface": "packets",
        "syslog_udp": "syslog",
        "syslog_tcp": "syslog",
        "sensors": "shipped",
    }
    if one.reader in given:
        return given[one.reader]
    if one.reader == "folder":
        return _of_folder(one, collectors)
    if one.reader == "file":
        return _of_file(one, collectors)
    raise ConfigError(
        f"what {one.reader} brings cannot be looked at beforehand",
        f"source {one.id}, collector",
        "Name its collector: " + ", ".join(sorted(collectors)) + ".",
    )


def _of_file(one: config.Source, collectors: Mapping[str, Any]) -> str:
    """By its first bytes; one that is yet to come must not keep a node from its other sources."""
    path = Path(one.path)
    try:
        is_empty = not path.stat().st_size
    except FileNotFoundError:
        is_empty = True
    except OSError:
        is_empty = False
    if one.follow and is_empty:
        _say_guess(one, "there is nothing in it yet")
        return "syslog"
    try:
        return _recognised(path, collectors)
    except InputError as error:
        todo = f"Name the collector of source {one.id}: " + ", ".join(sorted(collectors)) + "."
        raise InputError(error.what, error.where, todo) from error


def _of_folder(one: config.Source, collectors: Mapping[str, Any]) -> str:
    """What its files have in common."""
    specs, found = specs_of(collectors), set()
    names = (path for path in Path(one.path).glob(one.glob) if path.is_file())
    for path in islice(names, FOLDER_SAMPLE):
        try:
            with path.open("rb") as file:
                found.add(recognise(file.read(HEAD_BYTES), path.name, specs))
        except OSError:
            continue
    known = sorted(name for name in found if name)
    if len(known) == 1:
        return known[0]
    if known:
        _say_guess(one, "its files are of several kinds, " + ", ".join(known))
    else:
        _say_guess(one, "no file of a known kind is in it yet")
    return "syslog"


def _say_guess(one: config.Source, why: str) -> None:
    log.warning("%s is read as syslog: %s; name the collector of source %s.", one.path, why, one.id)


def _ring(one: config.Source, settings: Settings) -> Any:
    """Where the packets of an interface are kept, if they are."""
    from collectors.packets.ring import GB, HOURS, Ring

    if not (one.ring_hours or one.ring_gb):
        return None
    folder = settings.state_path / RINGS / one.id
    return Ring(folder, hours=one.ring_hours or HOURS, gb=one.ring_gb or GB)


def _reader(one: config.Source, framing: Any, clock: Clock, settings: Settings) -> Reader:
    if framing == "packets" and one.reader == "folder":
        raise ConfigError(
            "a folder of captures is not read",
            f"source {one.id}",
            "Write a source for each capture.",
        )
    if framing == "packets" and one.reader == "file":
        one = msgspec.structs.replace(one, reader="capture")
    if one.reader == "file":
        return FileReader(Path(one.path), one.id, framing, one.follow, clock=clock)
    if one.reader == "folder":
        return FolderReader(Path(one.path), one.glob, one.id, framing, clock=clock)
    if one.reader == "capture":
        from collectors.packets.capture import CaptureReader

        return CaptureReader(Path(one.path), one.id, clock)
    if one.reader == "interface":
        from collectors.packets.interface import InterfaceReader

        return InterfaceReader(one.interface, one.id, ring=_ring(one, settings), clock=clock)
    if one.reader == "http":
        from collectors.readers.poll import HttpPoll

        return HttpPoll(
            one.url, one.id, framing, every_s=one.every_s, headers=_credentials(one), clock=clock
        )
    if one.reader == "mqtt":
        from collectors.readers.mqtt import Mqtt

        client_id = f"cityward-{settings.operator}-{one.id}"
        return Mqtt(
            one.url, one.topics, one.id, framing, client_id=client_id,
            user=one.user, password=_secret(one), ca_file=one.ca_file, clock=clock,
        )  # fmt: skip
    host, _, port = one.listen.rpartition(":")
    if one.reader == "sensors":
        from collectors.readers.sensors import Sensors
        from siem.authority import SensorAuthority

        authority = SensorAuthority(settings.state_path, clock)
        return Sensors(host.strip("[]"), int(port), one.id, authority, clock=clock)
    kind = SyslogTcp if one.reader == "syslog_tcp" else SyslogUdp
    return kind(host.strip("[]"), int(port), one.id, clock=clock)


def _credentials(one: config.Source) -> dict[str, str]:
    secret = _secret(one)
    scheme = "Bearer " if one.header.lower() == "authorization" else ""
    return {one.header: scheme + secret} if secret else {}


def _secret(one: config.Source) -> str:
    if not one.secret_env:
        return ""
    secret = os.environ.get(one.secret_env, "")
    if not secret:
        raise ConfigError(
            f"the variable {one.secret_env} is not set",
            f"source {one.id}, secret_env",
            "Set it where the node is started, for instance in its systemd unit.",
        )
    return secret
