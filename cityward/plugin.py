"""How a part says what it is, and how all parts are found: decorators and entry points.

Groups: `cityward.collectors`, `cityward.decoders`, `cityward.detectors`, `cityward.actuators`.
Our own parts come in through the same groups as anyone's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib.metadata import entry_points
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from cityward.command import Command, State, Target
from cityward.errors import PluginError
from cityward.event import Event, LogSource, Record
from cityward.finding import Finding

Framing = Literal["lines", "document", "packets"]
Transport = Literal["tcp", "udp", "link"]
Collect = Callable[[Iterable[Record]], Iterator[Event]]
LooksLike = Callable[[bytes], bool]
T = TypeVar("T")

log = logging.getLogger(__name__)


class CollectorSpec(msgspec.Struct, frozen=True):
    """What `@collector` noted about a collector."""

    logsource: LogSource
    framing: Framing = "lines"
    """`lines`: one record a line or datagram; `document`: one record a file or poll answer;
    `packets`: chunks of a capture."""
    looks_like: LooksLike | None = None
    """Cheap test on the first bytes (≤ 64 KiB) by which `cityward ingest` recognises a file."""
    strength: int = 50
    """Who is asked first when several look alike: the more particular, the higher."""


def collector(
    logsource: LogSource,
    *,
    framing: Framing = "lines",
    looks_like: LooksLike | None = None,
    strength: int = 50,
) -> Callable[[T], T]:
    """Mark a collector: a function `records -> events`, or a class whose instances are one.

    A function is called anew with each batch and remembers nothing. A class is made once a source
    and called with each batch; it may have `tick(now) -> events`, called when time passes, and
    `end() -> events`, called when its source ends.
    """

    def mark(part: T) -> T:
        part.cityward_spec = CollectorSpec(logsource, framing, looks_like, strength)  # type: ignore[attr-defined]
        return part

    return mark


class Session(msgspec.Struct):
    """Constants of one conversation, made once: what each of its events starts with.

    Without IP (`link`) a conversation is all frames of one kind from one sender: `source.mac` and
    `destination.mac` of its first frame, and everything comes from the client.
    """

    base: dict[str, Any]
    """`source.*` (who started it), `destination.*`, `network.*`; events are `{**base, own}`."""
    client: str
    server: str
    """`ip:port`, or the hardware address, of both ends."""


class Decoder(Protocol):
    """One conversation of one application protocol; bytes in order in, fields out."""

    def __init__(self, session: Session) -> None: ...

    @staticmethod
    def recognises(head: bytes) -> bool:
        """Cheap structural test on the first bytes of either direction (TCP) or a datagram."""
        ...

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[dict[str, Any]]]:
        """Decode what is whole.

        Args:
            data: Bytes of this direction not yet consumed, in order; a datagram for UDP; what is
                behind the ethertype for `link`.
            from_client: Direction: True from `session.client` to `session.server`.
            time_s: Epoch seconds of the packet that brought the newest byte.
            frame: Its frame number, from 1.

        Returns:
            How many bytes are done with (the rest comes again with more behind it), and the fields
            of each message, complete (`{**session.base, …}`). A malformed message is fields with
            `event.kind: pipeline_error` and `event.reason`. Never raises on any input.
            A message of another log source than the decoder's says so in `cw.logsource.service`
            and `cw.logsource.category`.
        """
        ...

    def gap(self, from_client: bool) -> None:
        """Bytes of this direction are missing; find the next message boundary by structure."""
        ...

    def end(self) -> Sequence[dict[str, Any]]:
        """The conversation is over: what was still open (a request nobody answered)."""
        ...


class DecoderSpec(msgspec.Struct, frozen=True):
    """What `@decoder` noted about a decoder."""

    name: str
    logsource: LogSource
    transports: tuple[Transport, ...]
    """What carries it: a stream in order (`tcp`), datagrams (`udp`), frames without IP (`link`)."""
    ports: tuple[int, ...] = ()
    """Where it is expected; it is recognised by structure on any port."""
    ethertypes: tuple[int, ...] = ()
    """Frames of which kinds are its own, for `link`."""
    begins: bytes = b""
    """Bytes with one of which every conversation begins, so that others need not be looked at;
    empty: any."""


def decoder(
    name: str,
    logsource: LogSource,
    *,
    transport: Transport | Sequence[Transport] = "tcp",
    ports: Sequence[int] = (),
    ethertypes: Sequence[int] = (),
    begins: bytes = b"",
) -> Callable[[T], T]:
    """Mark a decoder class (see `Decoder`); `session.base["network.transport"]` says what it got.

    Args:
        name: What `network.protocol` says.
        logsource: Of its events.
        transport: What carries it, one or several (see `DecoderSpec`).
        ports: Where it is expected.
        ethertypes: Which frames are its own, for `link`.
        begins: First bytes that a conversation can have; empty: any.
    """
    transports = (transport,) if isinstance(transport, str) else tuple(transport)

    def mark(part: T) -> T:
        part.cityward_spec = DecoderSpec(  # type: ignore[attr-defined]
            name, logsource, transports, tuple(ports), tuple(ethertypes), begins
        )
        return part

    return mark


class Detector(Protocol):
    """Events as they come, and time as it passes; state is per key, bounded, and can be saved."""

    name: str

    def detect(self, events: Sequence[Event]) -> Iterator[Finding]:
        """Look at a batch; called in the order of arrival, times may be unordered."""
        ...

    def tick(self, now: datetime) -> Iterator[Finding]:
        """Time has come to `now` (event time of the node): silence and absence speak here."""
        ...

    def snapshot(self) -> bytes:
        """State as bytes of our own making (JSON, npz; never a pickle)."""
        ...

    def restore(self, state: bytes) -> None:
        """Take a snapshot back; ValueError, and no change, if it is of another version."""
        ...


class Actuator(Protocol):
    """One outside program; it looks at the world first, and plans only what is missing.

    It knows nothing of queues, approvals or clocks. Made with the keyword arguments that the
    settings of the operator give it; secrets come as values that the application has looked up.
    """

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """Commands that are missing for `verb` on `target` to hold until then; none: it holds.

        Raises:
            Unsafe: the verb or target is none of this actuator's.
            TransientError: the program does not answer.
        """
        ...

    def apply(self, command: Command) -> None:
        """Make it so; the same command again changes nothing. An undo restores `command.prior`."""
        ...

    def probe(self, target: Target) -> State:
        """What is so now; changes nothing."""
        ...


class ActuatorSpec(msgspec.Struct, frozen=True):
    """What `@actuator` noted about an actuator."""

    name: str
    verbs: Mapping[str, str]
    """OpenC2 verb to the verb that takes it back; empty for what needs no taking back."""
    targets: tuple[str, ...]
    """OpenC2 target types it acts on."""
    action_class: str
    """`A0` to `A3`: the least that a step with it has to say."""
    rollback: str
    """Who ends the effect: `device`, `lease`, `journal` or `none`."""


def actuator(
    name: str,
    *,
    verbs: Mapping[str, str],
    targets: Sequence[str] = (),
    action_class: str = "A1",
    rollback: str = "journal",
) -> Callable[[T], T]:
    """Mark an actuator class (see `Actuator` and `ActuatorSpec`)."""

    def mark(part: T) -> T:
        part.cityward_spec = ActuatorSpec(  # type: ignore[attr-defined]
            name, dict(verbs), tuple(targets), action_class, rollback
        )
        return part

    return mark


GROUPS = ("collectors", "decoders", "detectors", "actuators")
_MARKED = ("collectors", "decoders", "actuators")


def load(group: str) -> dict[str, Any]:
    """Load every part of a group (one of `GROUPS`) by name; a broken one is logged and left out."""
    found = {}
    for name, part in _parts(group):
        if isinstance(part, PluginError):
            log.error("%s is left out: %s. %s", part.where, part.what, part.todo)
        else:
            found[name] = part
    return found


def broken(group: str) -> list[PluginError]:
    """What `load` leaves out, and why."""
    return [part for _, part in _parts(group) if isinstance(part, PluginError)]


def _parts(group: str) -> Iterator[tuple[str, Any]]:
    """Every part by name, or why it cannot be one."""
    for point in sorted(entry_points(group=f"cityward.{group}"), key=lambda point: point.name):
        try:
            part = point.load()
            if group in _MARKED and not hasattr(part, "cityward_spec"):
                raise TypeError(f"{point.value} is not marked as one of the {group}")
        except Exception as error:  # whatever a stranger's module does when it is imported
            part = PluginError(
                f"{type(error).__name__}: {error}",
                f"entry point {point.name} = {point.value} in cityward.{group}",
                "Mend or remove the package that brings it.",
            )
        yield point.name, part
