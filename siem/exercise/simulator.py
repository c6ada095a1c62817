"""A gateway that is none: a simulator, which keeps what it would deny in a file.

The demo uses it where the kernel's packet filter is not ours to change. No packet is dropped; all
else is as at a gateway: what is denied is read back, and forgotten by itself when its time is over.

    [response.actuators.simulator]
    file = "/var/lib/cityward/simulated.json"
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from cityward import Command, State, Target, TransientError, Unsafe, actuator
from playbooks.targets import is_spelled

SLACK = timedelta(seconds=2)
"""What ends so much earlier is as long as was wanted."""
NAME = "simulator"


@actuator(
    NAME,
    verbs={"deny": "allow"},
    targets=("ipv4_net", "ipv6_net"),
    action_class="A1",
    rollback="device",
)
class Simulator:
    """Keep what would be denied, and until when, in a file.

    Args:
        file: Where; it appears with the first that is denied.
        clock: Tells when the time of something is over.
    """

    def __init__(
        self, *, file: str, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._file = Path(file)
        self._clock = clock

    def plan(self, verb: str, target: Target, until: datetime) -> Iterator[Command]:
        """Deny it, unless it is denied for so long."""
        if verb != "deny":
            raise _refused(verb)
        state = self.probe(target)
        if state.until is None or until - state.until > SLACK:
            yield Command(verb, target, undo="allow", until=until, prior=state.found)

    def apply(self, command: Command) -> None:
        """Deny it until then, or bring back what was there before."""
        name = self._name(command.target)
        until: datetime | None = command.until
        if command.verb == "allow":
            said = command.prior.get("until")
            until = datetime.fromisoformat(str(said)) if said else None
        elif command.verb != "deny":
            raise _refused(command.verb)
        denied = self._denied() | ({name: until} if until else {})
        if until is None:
            denied.pop(name, None)
        self._write(denied)

    def probe(self, target: Target) -> State:
        """Whether it would be denied, and until when."""
        until = self._denied().get(self._name(target))
        if until is None:
            return State(False, found={"denied": False})
        return State(True, until, {"denied": True, "until": until.isoformat()})

    def _name(self, target: Target) -> str:
        if target.type not in self.cityward_spec.targets or not is_spelled(target):  # type: ignore[attr-defined]
            what = f"{target.value[:80]!r} is no address or network"
            raise Unsafe(what, f"target {target.type[:40]}", "Act by hand.")
        return target.value

    def _denied(self) -> dict[str, datetime]:
        """What is denied now; what was over is forgotten."""
        if not self._file.parent.is_dir():
            raise TransientError(f"{self._file.parent} is no folder", NAME, "Make it.")
        try:
            kept = msgspec.json.decode(self._file.read_bytes(), type=dict[str, datetime])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            raise TransientError(str(error), str(self._file), "Look at the file.") from error
        now = self._clock()
        return {name: until for name, until in kept.items() if until > now}

    def _write(self, denied: dict[str, datetime]) -> None:
        beside = self._file.with_name(self._file.name + ".new")
        try:
            beside.write_bytes(msgspec.json.encode(denied))
            os.replace(beside, self._file)
        except OSError as error:
            raise TransientError(str(error), str(self._file), "Check the folder.") from error


def _refused(verb: str) -> Unsafe:
    return Unsafe(f"{verb[:40]!r} is no verb of the {NAME}", NAME, "Use deny.")
