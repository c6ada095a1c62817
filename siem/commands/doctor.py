"""`cityward doctor`: what is wrong with this node, why, and the next step."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from cityward import CitywardError, ConfigError, plugin
from siem import assembly, ruleset, tls
from siem import config as settings_file
from siem import output as streams
from siem.assets import from_settings
from siem.bell import LOOKED
from siem.commands.common import ConfigFile, Output
from siem.commands.share import warnings_of
from siem.commands.source import states_of
from siem.config import Settings, Source
from siem.leaving import policy_of
from siem.node import now_utc
from siem.notify.routes import routes_of
from siem.sharing.identity import TODO as JOIN_TODO
from siem.sharing.identity import Identity
from siem.store.notices import Tally
from siem.store.room import DISK_LOW_BYTES

COLUMNS = ("check", "state", "what", "next")
BUILT = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
"""No clock that is right shows a time before this."""
POLICY_TODO = "Write one: cityward share example; docs/sharing.md says how."
HUB_TODO = "Check sharing.hub and the way there; what waits is sent when it answers."
AGAIN_TODO = "Ask the hub for a new token: cityward operator join."
WORKERS_TODO = "Start cityward worker, look at its log; the node goes on meanwhile, more slowly."
LOOKED_S = 60.0
"""Workers look every five seconds."""
CLUSTER_S = 5.0
TOLD_MAX = 20
"""Refused rules that are told one by one."""
EVENTS_LOCK, HUB_LOCK = "events/writer.lock", "hub.lock"
LOCAL = ("127.", "::1", "localhost")


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    check: str
    state: Literal["ok", "note", "wrong"]
    what: str
    next: str = ""
    code: int = 3
    """Exit code if it is wrong: 4 for what a file says."""


def doctor(*, config: ConfigFile = None, output: Output = None) -> int:
    """Look at settings, rights, clock, disk, store, ports, sources and rules of a node or hub.

    Leaves with 3 if something is wrong, with 4 if it is in a settings or rule file.
    Example: cityward doctor -c cityward.toml

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    found = list(_checks(config))
    rows = [{name: getattr(one, name) for name in COLUMNS} for one in found]
    streams.write(rows, streams.form_for(output, sys.stdout), COLUMNS)
    wrong = [one for one in found if one.state == "wrong"]
    said = (
        f"{len(wrong)} of {len(found)} checks found something wrong." if wrong else "All is well."
    )
    print(said, file=sys.stderr)
    return max((one.code for one in wrong), default=0)


def _checks(named: str | None) -> Iterator[Check]:
    try:
        path = settings_file.find(named)
        settings = settings_file.load(path) if path else Settings()
    except ConfigError as error:
        yield _wrong("settings", error)
        return
    if path is None:
        yield Check(
            "settings", "note", "there is no file, the defaults count", "Make one: cityward init"
        )
    else:
        yield Check("settings", "ok", f"{path}: operator {settings.operator}, {settings.sector}")
        yield from _settings_rights(path)
    running = _is_running(settings)
    for group in plugin.GROUPS:
        yield from (_wrong("plug-in", error) for error in plugin.broken(group))
    looks = (_state, _clock, _disk, _store, _people, _tls, _rules, _routes, _sharing, _sources)
    for look in (*looks, _workers, _cluster):
        try:
            yield from look(settings)
        except (CitywardError, OSError) as error:
            yield _wrong(look.__name__.strip("_"), error)
    if running:
        kind = "hub" if settings.hub else "node"
        yield Check("ports", "ok", f"the {kind} is running and holds its ports")
    else:
        yield from _ports(settings)


def _wrong(check: str, error: CitywardError | OSError) -> Check:
    if isinstance(error, CitywardError):
        code = error.exit_code if error.exit_code in (3, 4) else 3
        return Check(check, "wrong", f"{error.what} ({error.where})", error.todo, code)
    return Check(check, "wrong", str(error), "Check path and permissions.")


def _settings_rights(path: Path) -> Iterator[Check]:
    if path.stat().st_mode & stat.S_IWOTH:
        yield Check("rights", "wrong", f"everybody may write {path}", f"chmod o-w {path}")


def _state(settings: Settings) -> Iterator[Check]:
    state = settings.state_path
    if not state.exists():
        yield Check("rights", "note", f"{state} is not there yet", "cityward run makes it.")
        return
    if not os.access(state, os.R_OK | os.W_OK | os.X_OK):
        yield Check(
            "rights",
            "wrong",
            f"{state} cannot be written",
            f"Give it to this account: chown {state}",
        )
        return
    open_ = [
        path
        for path in (*state.glob("*.key"), *state.glob("node.db*"))
        if path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP)
        and state.stat().st_mode & stat.S_IXOTH
    ]
    if open_:
        yield Check("rights", "wrong", f"others may read {open_[0]}", f"chmod -R go= {state}")
    else:
        yield Check("rights", "ok", f"{state} is ours alone")


def _clock(settings: Settings) -> Iterator[Check]:
    now = now_utc()
    files = [settings.state_path / "node.db", settings.state_path / "node.db-wal"]
    newest = max((path.stat().st_mtime for path in files if path.exists()), default=0.0)
    if now < BUILT:
        yield Check("clock", "wrong", f"the clock shows {now:%Y-%m-%d}", "Set it; then use NTP.")
    elif newest > now.timestamp() + 60:
        ahead_s = newest - now.timestamp()
        yield Check(
            "clock", "wrong", f"the state is {ahead_s:,.0f} s ahead of the clock", "Set the clock."
        )
    elif _is_synchronised() is False:
        yield Check(
            "clock", "note", f"{now:%Y-%m-%d %H:%M:%S}Z, not synchronised", "Switch NTP on."
        )
    else:
        yield Check("clock", "ok", f"{now:%Y-%m-%d %H:%M:%S}Z")


def _is_synchronised() -> bool | None:
    """What the system says of its clock; None if it says nothing."""
    program = shutil.which("timedatectl")
    if program is None:
        return None
    words = [program, "show", "--property=NTPSynchronized", "--value"]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip())


def _disk(settings: Settings) -> Iterator[Check]:
    place = settings.state_path
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    used = sum(path.stat().st_size for path in settings.state_path.rglob("*") if path.is_file())
    quota_gb = settings.retention.disk_quota_gb
    room = int(quota_gb * 1e9) - used
    said = f"{free / 1e9:.1f} GB free, {used / 1e9:.1f} of {quota_gb:g} GB used"
    if free < DISK_LOW_BYTES:
        yield Check("disk", "wrong", said, "Make room, or move state_dir.")
    elif free < room:
        yield Check("disk", "note", f"{said}: the quota is more than there is", "Lower it.")
    else:
        yield Check("disk", "ok", said)


def _store(settings: Settings) -> Iterator[Check]:
    state = settings.state_path
    if not (state / "node.db").is_file():
        yield Check("store", "note", "nothing is kept yet", "cityward run begins.")
        return
    assembly.db_of(settings, from_settings(settings), now_utc).close()
    if not (state / "events").is_dir():
        yield Check("store", "ok", "no events are kept yet")
        return
    events = assembly.events_of(settings, now_utc, write=False)
    usage = events.usage()
    events.close()
    said = ", ".join(f"{part} {size / 1e6:,.1f} MB" for part, size in usage.items() if size)
    if usage.get("quarantine"):
        yield Check(
            "store",
            "wrong",
            f"damaged batches were set aside: {said}",
            f"Look into {state / 'events' / 'quarantine'}; a failing disk is the usual reason.",
        )
    else:
        yield Check("store", "ok", said or "no events are kept yet")


def _people(settings: Settings) -> Iterator[Check]:
    if not (settings.state_path / "node.db").is_file():
        return
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    people = db.people()
    db.close()
    if people:
        yield Check("accounts", "ok", f"{len(people)}: {', '.join(one.name for one in people[:5])}")
    else:
        yield Check("accounts", "note", "nobody may sign in", "cityward init makes an account.")


def _tls(settings: Settings) -> Iterator[Check]:
    console = settings.console
    if tls.context_of(console) is None:
        return
    key, until, now = Path(console.tls_key).expanduser(), tls.valid_until(console), now_utc()
    said = f"the console's certificate holds until {until:%Y-%m-%d}"
    if key.stat().st_mode & stat.S_IRWXO:
        yield Check("tls", "wrong", f"everybody may read {key}", f"chmod o= {key}", 4)
    if until <= now:
        todo = "Renew it, and start the console again."
        yield Check("tls", "wrong", f"{said}: it has expired", todo, 4)
    elif until - now < tls.SOON:
        yield Check("tls", "note", said, "Renew it, and start the console again.")
    else:
        yield Check("tls", "ok", said)


def _rules(settings: Settings) -> Iterator[Check]:
    for folder in settings.rules.folders:
        if not Path(folder).expanduser().is_dir():
            yield Check("rules", "wrong", f"{folder} is no folder", "Mend rules.folders.", 4)
    known = ruleset.states_alone(settings)
    refused = [one for one in known if one.state == "refused"]
    for one in refused[:TOLD_MAX]:
        what = f"{one.reason} ({one.file})"
        yield Check("rules", "wrong", what, _check_of([one.file], settings), 4)
    if more := [one.file for one in refused[TOLD_MAX:]]:
        what = f"{len(more)} more are refused"
        yield Check("rules", "wrong", what, _check_of(more, settings), 4)
    waiting = [one for one in known if one.state == "not evaluated"]
    said = f"{len(known) - len(waiting) - len(refused)} of {len(known)} rules are asked"
    if not known:
        yield Check("rules", "note", "there is no rule", "Set rules.shipped or rules.folders.")
    elif waiting:
        needs = sorted(set(re.findall(r"%[\w.-]+%", " ".join(one.reason for one in waiting))))
        yield Check(
            "rules", "note", f"{said}; the others need {', '.join(needs)}", "See docs/rules.md."
        )
    elif not refused:
        yield Check("rules", "ok", said)


def _check_of(files: Sequence[str], settings: Settings) -> str:
    """The command that says the same of files, with the folders of the settings they are in."""
    folders = dict.fromkeys(
        str(Path(folder).expanduser())
        for file in files
        for folder in settings.rules.folders
        if Path(file).is_relative_to(Path(folder).expanduser())
    )
    return " ".join(["cityward rule check", *map(shlex.quote, folders)])


def _cluster(settings: Settings) -> Iterator[Check]:
    """Whether the cluster answers, and how the copying into it goes."""
    if settings.cluster is None:
        return
    from siem.clusters import connect, dead_letters_of
    from siem.store.mirror import in_words, state_of

    cluster = connect(settings.cluster, timeout_s=CLUSTER_S)
    try:
        health = cluster.health()
    except CitywardError as error:
        yield _wrong("cluster", error)
    else:
        well = health.status != "red"
        yield Check(
            "cluster",
            "ok" if well else "wrong",
            f"{health.version} is {health.status}",
            "" if well else "Shards are missing: look at its log.",
        )
    finally:
        cluster.close()
    if settings.hub or not (settings.state_path / "node.db").is_file():
        return
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    goes_well, said = in_words(state_of(db), now_utc())
    db.close()
    if refused := len(dead_letters_of(settings)):
        todo = "See them: cityward store replay --show"
        yield Check("copies", "wrong", f"{refused} documents were refused", todo)
    elif goes_well or not _is_running(settings):
        yield Check("copies", "ok" if goes_well else "note", said)
    else:
        yield Check("copies", "wrong", said, "Look at the cluster; what waits is kept here.")


def _routes(settings: Settings) -> Iterator[Check]:
    """Whom the node tells, whether it has the secrets for it, and what it could not deliver."""
    db = None
    if (settings.state_path / "node.db").is_file():
        db = assembly.db_of(settings, from_settings(settings), now_utc)
    for id, route in routes_of(settings.route).items():
        tally = db.notices.tally(id) if db else Tally()
        last = tally.last.answer if tally.last else "nothing was sent yet"
        try:
            route.secret()
        except CitywardError as error:
            yield Check(f"route {id}", "wrong", error.what, error.todo)
            continue
        if tally.last and tally.last.state != "sent":
            what = f"the last delivery failed: {last}"
            yield Check(f"route {id}", "wrong", what, f"cityward route test {id}")
        else:
            yield Check(f"route {id}", "ok", f"{route.said.to}, {tally.sent} sent: {last}")
    if db:
        db.close()


def _sharing(settings: Settings) -> Iterator[Check]:
    """Whether the policy holds, what waits to leave, and whether the hub hears this node."""
    said = settings.sharing
    if not said.hub and not said.drop_dir:
        return
    policy = policy_of(settings)
    if policy is None:
        yield Check("sharing", "note", "there is no policy, only heartbeats leave", POLICY_TODO)
    else:
        yield from (Check("sharing", "note", line) for line in warnings_of(policy))
    identity = Identity(settings.state_path)
    if said.hub and not identity.has_joined:
        yield Check("hub", "wrong", "this node has not joined it", JOIN_TODO)
        return
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        link, tally = db.outgoing.link(), db.outgoing.tally()
    finally:
        db.close()
    what = f"{tally.shared:,} shared, {tally.waiting:,} wait, {tally.approval:,} want a yes"
    if tally.dropped:
        what += f", {tally.dropped:,} were never sent since the outbox was full"
    if tally.refused:
        what += f", {tally.refused:,} were refused and sealed anew"
    if link.error and _is_running(settings):
        since = f"{link.since:%Y-%m-%d %H:%MZ}" if link.since else "-"
        todo = AGAIN_TODO if "not in force" in link.error else HUB_TODO
        yield Check("hub", "wrong", f"{link.error}, since {since}; {what}", todo)
    else:
        yield Check("hub", "ok", f"{said.hub or said.drop_dir}: {what}")
    if said.hub and (until := identity.certificate().not_valid_after_utc) < now_utc():
        what = f"the certificate for the hub ended {until:%Y-%m-%d}"
        yield Check("hub", "wrong", what, JOIN_TODO)


def _sources(settings: Settings) -> Iterator[Check]:
    if not settings.source and not settings.hub:
        yield Check("sources", "note", "nothing is read", "Add a [[source]] to the settings.")
    failed = dict(_failed(settings)) if _is_running(settings) else {}
    for one in settings.source:
        path = Path(one.path)
        if one.path and not path.exists():
            waits = one.reader == "file" and one.follow
            yield Check(
                f"source {one.id}",
                "note" if waits else "wrong",
                f"{one.path} is not there" + (" yet" if waits else ""),
                "Check the path." + ("" if one.collector else " Name its collector, too."),
            )
        elif one.path and not os.access(path, os.R_OK):
            yield Check(
                f"source {one.id}",
                "wrong",
                f"{one.path} may not be read",
                "Put this account into its group.",
            )
        else:
            chosen = msgspec.structs.replace(settings, source=(one,))
            try:
                (source,) = assembly.sources_of(chosen)
            except CitywardError as error:
                yield _wrong(f"source {one.id}", error)
            else:
                said = failed.get(one.id)
                yield said or Check(
                    f"source {one.id}", "ok", f"{one.reader}, read by {source.name}"
                )


def _workers(settings: Settings) -> Iterator[Check]:
    """Whether somebody works on playbooks, where a Redis is to ring for them."""
    if not settings.response.redis:
        return
    try:
        looked_s = (settings.state_path / LOOKED).stat().st_mtime
    except FileNotFoundError:
        yield Check("workers", "wrong", "none has ever looked at the journal", WORKERS_TODO)
        return
    what = f"last look at the journal {datetime.fromtimestamp(looked_s, UTC):%Y-%m-%d %H:%M:%S}Z"
    if now_utc().timestamp() - looked_s > LOOKED_S:
        yield Check("workers", "wrong", f"{what}: they are down, or Redis is", WORKERS_TODO)
    else:
        yield Check("workers", "ok", what)


def _failed(settings: Settings) -> Iterator[tuple[str, Check]]:
    """What the running node says of sources that failed."""
    for id, state in states_of(settings).items():
        if state.state == "failed":
            what, *more = state.error.split("\n")
            todo = more[-1] if more else f"See cityward source show {id}."
            yield id, Check(f"source {id}", "wrong", what, todo)


def _is_running(settings: Settings) -> bool:
    """Whether another process holds the events, or the state of a hub."""
    name = HUB_LOCK if settings.hub else EVENTS_LOCK
    try:
        with (settings.state_path / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _ports(settings: Settings) -> Iterator[Check]:
    console = settings.console
    yield _port("port of the console", console.host, console.port, socket.SOCK_STREAM)
    if settings.hub:
        host, _, port = settings.hub.listen.rpartition(":")
        yield _port("port of the exchange", host.strip("[]"), int(port), socket.SOCK_STREAM)
    is_secure = console.secure_cookie or console.tls_cert
    if not console.host.startswith(LOCAL) and not is_secure:
        yield Check(
            "console",
            "wrong",
            f"others can open it on {console.host} without TLS",
            "Set console.tls_cert and tls_key, or put a TLS proxy in front and set secure_cookie.",
            4,
        )
    for one in settings.source:
        if settings_file.NEEDED.get(one.reader) == "listen":
            yield _source_port(one)


def _source_port(one: Source) -> Check:
    host, _, port = one.listen.rpartition(":")
    is_tcp = one.reader in ("syslog_tcp", "sensors")
    kind = socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM
    return _port(f"port of {one.id}", host.strip("[]"), int(port), kind)


def _port(check: str, host: str, port: int, kind: socket.SocketKind) -> Check:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, kind) as sock:
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
    except OSError as error:
        todo = "Stop what listens there, or set another port."
        if error.errno == errno.EACCES:
            todo = "Ports below 1024 need CAP_NET_BIND_SERVICE; or set a higher one."
        return Check(check, "wrong", f"{host} port {port}: {error.strerror}", todo)
    return Check(check, "ok", f"{host} port {port} is free")
