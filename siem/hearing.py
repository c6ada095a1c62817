"""The first source: which interfaces hear something, and why a source brings nothing.

Only looks: at `/proc/net`, at the files that the settings name, at the states of the sources. It
opens no socket and writes nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from siem.config import NEEDED, Settings, Source
from siem.console.protocol import Heard, Hearing, Why
from siem.store.protocol import Events, Range, SourceState

NET = Path("/proc/net")
SYS = Path("/sys/class/net")
LOOKED_BACK = timedelta(hours=1)
ENOUGH_FLOWS = 50
"""Fewer say nothing about a mirror port."""
ONE_WAY = 0.5
"""If more TCP flows than this have no packet of the server, one direction is missing."""

_UDP, _TCP = ("udp", "udp6"), ("tcp", "tcp6")
_LISTENING = {"syslog_tcp": _TCP, "sensors": _TCP}
_TCP_LISTEN = "0A"
"""State of a listening socket in `/proc/net/tcp`."""


def hearing(
    settings: Settings,
    states: Sequence[SourceState],
    events: Events,
    now: datetime,
    *,
    file: str = "",
    net: Path = NET,
) -> Hearing:
    """All that the page for the first source shows."""
    by_id = {one.source: one for one in states}
    silent = [
        why
        for one in settings.source
        if (why := why_silent(one, by_id.get(one.id), net)) is not None
    ]
    return Hearing(
        interfaces=list(interfaces(settings, net)),
        silent=silent,
        hints=list(_one_way(settings, by_id, events, now)),
        file=file,
    )


def interfaces(settings: Settings, net: Path = NET, sys: Path = SYS) -> Iterator[Heard]:
    """Network interfaces and what they received since the machine started (proc(5))."""
    used = {one.interface for one in settings.source if one.reader == "interface"}
    try:
        lines = (net / "dev").read_text(encoding="utf-8").splitlines()[2:]
    except OSError:
        return
    for line in lines:
        name, _, numbers = line.partition(":")
        said = numbers.split()
        if len(said) < 2:
            continue
        name = name.strip()
        is_up = _read(sys / name / "operstate") in ("up", "unknown")
        yield Heard(name, int(said[1]), int(said[0]), is_up, name in used)


def why_silent(one: Source, state: SourceState | None, net: Path = NET) -> Why | None:
    """Why a source of the settings has brought no event; None if it has."""
    if state is not None and state.events > state.malformed:
        return None
    what, todo = _why(one, state, net)
    return Why(one.id, one.reader, what, todo)


def _why(one: Source, state: SourceState | None, net: Path) -> tuple[str, str]:
    if state is not None and state.error:
        what, *_, todo = state.error.split("\n") if "\n" in state.error else (state.error, "")
        return f"it failed: {what}", todo or _todo_of(what)
    if state is not None and state.malformed:
        what = f"all {state.malformed:,} records could not be read by {state.collector}"
        return what, f"Name the right collector: source {one.id}, collector. See Health for one."
    if state is not None and state.rejected:
        return f"all {state.rejected:,} records were rejected", "Look at Health for the reason."
    if one.path:
        return _why_file(one)
    if NEEDED.get(one.reader) == "listen":
        return _why_port(one, net)
    if one.reader == "interface":
        return _why_interface(one, state, net)
    if state is None:
        return "the path of this node does not run", "Start it: cityward run."
    return "nothing was sent yet", "Look at the other end: its address, its rights, its clock."


def _why_file(one: Source) -> tuple[str, str]:
    path = Path(one.path).expanduser()
    try:
        found = path.stat()
    except OSError as error:
        if error.errno == errno.EACCES:
            return f"{path} may not be read", "Put the account of the node into its group."
        return f"{path} is not there", "Check the path, or wait until it is written."
    if not os.access(path, os.R_OK):
        return f"{path} may not be read", "Put the account of the node into its group."
    if path.is_dir():
        has = any(path.glob(one.glob))
        return (
            ("nothing of the folder has become an event", "Look at Health.")
            if has
            else (f"no file of {path} fits {one.glob}", "Check the pattern: glob.")
        )
    if not found.st_size:
        return f"{path} is empty", "It is read as soon as something is written."
    return "the file was not read yet", "Start the node: cityward run."


def _why_port(one: Source, net: Path) -> tuple[str, str]:
    host, _, port = one.listen.rpartition(":")
    kinds = _LISTENING.get(one.reader, _UDP)
    if not any(_is_bound(net / kind, int(port), kind in _TCP) for kind in kinds):
        what = f"nobody listens on {one.listen}"
        if int(port) < 1024:
            return what, "Ports below 1024 need CAP_NET_BIND_SERVICE; or set a higher one."
        return what, "Start the node: cityward run; its log says why a port is not bound."
    if host.strip("[]") in ("127.0.0.1", "::1", "localhost"):
        what = f"it listens on {one.listen}, which only this machine reaches"
        return what, 'Write listen = "0.0.0.0:…" or the address of the management network.'
    what = f"it listens on {one.listen}, and nothing has arrived"
    return what, "Check the sender's address and port, and the firewalls on the way."


def _why_interface(one: Source, state: SourceState | None, net: Path) -> tuple[str, str]:
    found = {each.name: each for each in interfaces(Settings(), net)}
    if one.interface not in found:
        known = ", ".join(sorted(found)) or "none"
        return f"there is no interface {one.interface}", f"There are: {known}."
    if not found[one.interface].is_up:
        return f"{one.interface} is down", f"ip link set {one.interface} up; check the cable."
    if state is None:
        return "the path of this node does not run", "Start it: cityward run."
    what = f"{one.interface} is up, and no packet has become an event"
    return what, "Check that the mirror port (SPAN) of the switch is on and leads here."


def _todo_of(error: str) -> str:
    lower = error.lower()
    if "permission" in lower or "not permitted" in lower:
        return "Give the right: CAP_NET_RAW for an interface, the group for a file."
    if "in use" in lower:
        return "Stop what listens there, or set another port."
    if "no such file" in lower:
        return "Check the path."
    return "cityward doctor says more."


def _is_bound(file: Path, port: int, is_tcp: bool) -> bool:
    try:
        lines = file.read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return False
    for line in lines:
        words = line.split()
        if len(words) > 3 and int(words[1].rpartition(":")[2], 16) == port:
            return words[3] == _TCP_LISTEN if is_tcp else True
    return False


def _one_way(
    settings: Settings, states: Mapping[str, SourceState], events: Events, now: datetime
) -> Iterator[Why]:
    """Mirror ports that show only one direction of the traffic."""
    span = Range(now - LOOKED_BACK, now + timedelta(minutes=5))
    for one in settings.source:
        if one.reader != "interface" or one.id not in states:
            continue
        flows = f'cw.record.source:"{one.id}" AND network.transport:tcp AND source.packets:>=2'
        total = events.search(flows, span, 0).total
        if total < ENOUGH_FLOWS:
            continue
        half = events.search(f"{flows} AND destination.packets:0", span, 0).total
        if half / total > ONE_WAY:
            what = f"{half:,} of {total:,} TCP flows of the last hour have no answer"
            todo = "The mirror port copies one direction only: switch on both (rx and tx)."
            yield Why(one.id, one.reader, what, todo)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""
