"""Keep the packets around a finding: cut from the capture rings, hashed, dissected.

A piece of evidence is three kinds of files in one folder: the packets (`ID.pcap`), what dissectors
say of them (`ID.scapy.jsonl`, `ID.tshark.jsonl`), and a note (`ID.json`) with SHA-256, holder, time
and until when it is kept. Its id is the hash of the command's key, so the same command again finds
it there. The folder is bounded: what has expired goes, then the oldest.

    [response.actuators.evidence]
    keep_days = 30
    gb = 1.0

In a playbook the step says `copy` with a target of addresses; its arguments are those of `ARGS`:

    action: copy
    target: {type: ipv4_net, value: "${finding.source.ip}"}
    args: {finding: "${finding.id}", since: "${finding.first_seen}"}

References:
    OpenC2 Language Specification 1.0, section 3.3.1.1 (`copy`: duplicate a data flow); ISO/IEC
    27037, 6.9 (who holds evidence, unchanged since when).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec

from cityward import Command, ConfigError, State, Target, TransientError, Unsafe, actuator
from playbooks.actuators.text import key_of, only
from playbooks.targets import connection_of, is_spelled, networks_of
from playbooks.variables import NOT_THERE

ARGS = ("finding", "since", "until", "ports")
"""Id of the finding; first and last moment (ISO 8601); ports of which one is at either end."""
AROUND = timedelta(minutes=1)
"""Before the first and behind the last moment."""
LATELY = timedelta(minutes=10)
"""Without a first moment: so far back."""
SPAN_MAX = timedelta(days=7)
PORTS_MAX = 16
FUTURE = timedelta(minutes=5)


class Cut(Protocol):
    """What was cut."""

    @property
    def packets(self) -> int: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def first(self) -> datetime | None: ...  # noqa: D102
    @property
    def last(self) -> datetime | None: ...  # noqa: D102
    @property
    def notes(self) -> Sequence[str]:
        """What is missing, in words."""
        ...


class Cutter(Protocol):
    """Cuts packets out of what was captured lately; the application hands it in."""

    def __call__(
        self,
        path: Path,
        *,
        networks: Sequence[str],
        ports: Sequence[int],
        since: datetime,
        until: datetime,
    ) -> Cut:
        """Write the packets of one network, or between two, to a file; none: no file."""
        ...


class Dissector(Protocol):
    """Dissects a capture; the application hands it in."""

    def __call__(self, capture: Path) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Each tool with what is to be noted of it; its lines lie beside the capture."""
        ...


Tell = Callable[[str, Mapping[str, Any]], None]
"""Writes an entry of evidence on a finding, once however often it is told."""


class Note(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of one piece of evidence."""

    id: str
    key: str
    finding: str = ""
    target: Target
    time: datetime
    """When it was made."""
    until: datetime
    """It is kept until then."""
    holder: str
    since: datetime
    """First moment that was looked for."""
    to: datetime
    """Last one."""
    packets: int = 0
    bytes: int = 0
    sha256: str = ""
    first: datetime | None = None
    last: datetime | None = None
    notes: tuple[str, ...] = ()
    tools: dict[str, dict[str, Any]] = {}

    def entry(self) -> dict[str, Any]:
        """As a finding says it (`cw.evidence[]`)."""
        return {
            "ref": f"evidence/{self.id}.pcap" if self.packets else f"evidence/{self.id}.json",
            "kind": "pcap",
            "sha256": self.sha256,
            "bytes": self.bytes,
            "time": self.time.isoformat(),
            "holder": self.holder,
            "until": self.until.isoformat(),
        }


@actuator(
    "evidence",
    verbs={"copy": ""},
    targets=("ipv4_net", "ipv6_net", "ipv4_connection", "ipv6_connection"),
    action_class="A0",
    rollback="none",
)
class Evidence:
    """Keep the packets of an address, a network or a connection.

    Args:
        folder: Where evidence is kept.
        cut: Cuts packets out of the rings.
        dissect: Dissects a capture; None: nothing does.
        tell: Writes the entry on the finding; None: the note alone says it.
        holder: Operator that holds it.
        keep_days: It is kept for so long.
        gb: Bytes (10⁹) that all of it takes at most.
        clock: Tells the time.
    """

    def __init__(
        self,
        *,
        folder: Path | str,
        cut: Cutter,
        dissect: Dissector | None = None,
        tell: Tell | None = None,
        holder: str = "",
        keep_days: float = 30.0,
        gb: float = 1.0,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not (0 < keep_days <= 3650 and gb > 0):
            what = f"{keep_days} days and {gb} GB keep nothing"
            raise ConfigError(what, "evidence.keep_days", "Keep it for days, in some space.")
        self._folder, self._cut, self._dissect, self._tell = Path(folder), cut, dissect, tell
        self._holder, self._keep = holder, timedelta(days=keep_days)
        self._bytes_most, self._clock = int(gb * 1e9), clock

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """Always one: each finding has evidence of its own, and a key says which."""
        _check(verb, target)
        yield Command(verb, target, undo="", until=until)

    def apply(self, command: Command) -> None:
        """Cut, hash and dissect, unless this command's evidence is there."""
        _check(command.verb, command.target)
        key, args = key_of(command), only(command.args, *ARGS)
        since, until = self._span(args)
        ports = _ports(args, command.target)
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            note = self._note(name)
            if note is None:
                note = self._make(name, command, (since, until), ports)
        except OSError as error:
            what = f"evidence cannot be kept: {error.strerror or type(error).__name__}"
            raise TransientError(what, str(self._folder), "Make room on the disk.") from error
        if self._tell is not None and note.finding:
            self._tell(note.finding, note.entry())

    def probe(self, target: Target) -> State:
        """Whether packets of it are kept, by the newest note."""
        _check("copy", target)
        of_it = [one for one in self.kept() if one.target == target and one.packets]
        if not of_it:
            return State(False)
        note = max(of_it, key=lambda one: one.time)
        return State(True, note.until, found={"ref": note.entry()["ref"], "sha256": note.sha256})

    def kept(self) -> list[Note]:
        """All that is kept; what cannot be read is left out."""
        try:
            names = sorted(one.stem for one in self._folder.glob("*.json"))
        except OSError:
            return []
        return [note for name in names if (note := self._note(name)) is not None]

    def _make(
        self, name: str, command: Command, span: tuple[datetime, datetime], ports: Sequence[int]
    ) -> Note:
        path, now = self._folder / f"{name}.pcap", self._clock()
        networks = [str(one) for one in networks_of(command.target)]
        self._make_room(now)
        cut = self._cut(path, networks=networks, ports=ports, since=span[0], until=span[1])
        tools = {}
        if cut.packets and self._dissect is not None:
            tools = {tool: dict(said) for tool, said in self._dissect(path)}
        finding = command.args.get("finding", "")
        note = Note(
            id=name,
            key=command.key,
            finding=finding if isinstance(finding, str) else "",
            target=command.target,
            time=now,
            until=now + self._keep,
            holder=self._holder,
            since=span[0],
            to=span[1],
            packets=cut.packets,
            bytes=cut.bytes,
            sha256=cut.sha256,
            first=cut.first,
            last=cut.last,
            notes=tuple(cut.notes),
            tools=tools,
        )
        _write(self._folder / f"{name}.json", msgspec.json.encode(note))
        self._make_room(now, but=name)
        return note

    def _note(self, name: str) -> Note | None:
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode((self._folder / f"{name}.json").read_bytes(), type=Note)
        return None

    def _make_room(self, now: datetime, but: str = "") -> None:
        """Remove what has expired, then the oldest, until the rest fits."""
        pieces: dict[str, list[tuple[Path, int]]] = {}
        for path in self._folder.iterdir():
            pieces.setdefault(path.name.partition(".")[0], []).append((path, path.stat().st_size))
        notes = {name: self._note(name) for name in pieces if name != but}
        total = sum(size for files in pieces.values() for _, size in files)
        # What has no note was left by a process that ended while it made it.
        order = sorted(notes, key=lambda name: note.time if (note := notes[name]) else _NEVER)
        for name in order:
            note = notes[name]
            if note is not None and note.until > now and total <= self._bytes_most:
                continue
            for path, size in pieces[name]:
                path.unlink(missing_ok=True)
                total -= size

    def _span(self, args: Mapping[str, Any]) -> tuple[datetime, datetime]:
        now = self._clock()
        until = _moment(args.get("until"), "until") or now
        since = _moment(args.get("since"), "since") or until - LATELY
        if until < since or until - since > SPAN_MAX or until > now + FUTURE:
            what = f"{since.isoformat()} to {until.isoformat()} is no span of the last days"
            raise Unsafe(what, "args.since", "Name the moments of the finding.")
        return since - AROUND, until + AROUND


_NEVER = datetime.min.replace(tzinfo=UTC)


def _check(verb: str, target: Target) -> None:
    if verb != "copy":
        raise Unsafe(f"{verb[:40]!r} is no verb of evidence", "evidence", "Use copy.")
    if not is_spelled(target) or not networks_of(target):
        what = f"{target.value[:80]!r} is no address, network or connection"
        raise Unsafe(what, f"target {target.type[:40]}", "Collect it by hand.")


def _ports(args: Mapping[str, Any], target: Target) -> list[int]:
    connection = connection_of(target)
    said = args.get("ports") or (
        [connection.dst_port] if connection and connection.dst_port else []
    )
    found = [said] if isinstance(said, int | str) else said
    if not isinstance(found, list | tuple) or len(found) > PORTS_MAX:
        raise Unsafe(f"{str(said)[:60]!r} are no ports", "args.ports", "Name a few ports.")
    for one in found:
        word = str(one)
        if not (word.isascii() and word.isdecimal() and len(word) <= 5 and int(word) <= 65_535):
            raise Unsafe(f"{word[:20]!r} is no port", "args.ports", "Name a few ports.")
    return [int(one) for one in found]


def _moment(value: Any, name: str) -> datetime | None:
    if value in (None, "", NOT_THERE):
        return None
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value)[:40])
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    what = f"{str(value)[:40]!r} is no time with its offset"
    raise Unsafe(what, f"args.{name}", "Name the moments of the finding.")


def _write(path: Path, data: bytes) -> None:
    """All of a file or nothing of it, for its owner only."""
    unfinished = path.with_suffix(".part")
    unfinished.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(unfinished, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
