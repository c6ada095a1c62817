"""What the parts of this room say to each other: playbook, plan, facts, check.

A playbook is a graph of steps. For one finding it becomes a *plan*: the commands it would give, on
which targets, for how long, what depends on them, and what each check of the gate says. A *run* is
a plan that goes on; its journal is the truth about what was done.

References:
    CACAO Security Playbooks 2.0 (step types, extensions); OpenC2 Language 1.0 (verbs, targets).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

import msgspec

from cityward import Asset, Command, Target
from cityward.plugin import ActuatorSpec

ActionClass = Literal["A0", "A1", "A2", "A3", "A4"]
"""A0 tells and collects; A1 is reversible and outside or at the edge; A2 is one own device or
account; A3 a narrow conduit towards a control zone; A4 is never executed."""

Stage = Literal["draft", "shadow", "approve_all", "live"]
Rollback = Literal["device", "lease", "journal", "none"]
"""Who ends the effect: the device by itself, a lease that is not renewed, the journal's timer."""
StepType = Literal[
    "start",
    "end",
    "action",
    "parallel",
    "if-condition",
    "switch-condition",
    "while-condition",
    "playbook-action",
]
Guard = Literal["corroborated", "mode:normal", "not_peak", "redundant_peer_up"]


class BlastLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Most that a step may touch, its dependants included."""

    assets: int = 1
    services: int = 0
    people: int = 0
    """Who use the services, as the settings say; not known is too many."""


class Verify(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is read back after an action, and by when it has to be so."""

    expect: dict[str, Any]
    within: timedelta


class Safety(msgspec.Struct, frozen=True, kw_only=True):
    """The safety extension of a step."""

    action_class: ActionClass = "A0"
    time_box: timedelta | None = None
    """Longest effect; needed from A1 up."""
    rollback: Rollback = "none"
    verify: Verify | None = None
    blast_limit: BlastLimit = BlastLimit()
    requires: tuple[Guard, ...] = ()


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """What an action step does: an OpenC2 verb on a target by an actuator, or a person's task."""

    actuator: str
    """Name of an actuator; `manual` asks a person: `args` has `text` and the `role` it is for."""
    type: str = "cityward-actuator"
    """Command type of CACAO: `cityward-actuator`, `manual`, `http-api`, `openc2-http`, `ssh`."""
    verb: str = ""
    target: Mapping[str, str] = {}
    """`type` and `value`; a value may be a variable of the run, `${finding.source.ip}`."""
    args: Mapping[str, Any] = {}


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a playbook."""

    id: str
    """`action--…`, as CACAO writes it; made from playbook and name, so it stays the same."""
    name: str
    type: StepType
    description: str = ""
    action: Action | None = None
    safety: Safety = Safety()
    when: Mapping[str, Any] = {}
    """Condition of an if or while step, over the variables of the run (`cityward/when.py`)."""
    on_completion: str = ""
    on_success: str = ""
    on_failure: str = ""
    on_true: str = ""
    on_false: str = ""
    cases: Mapping[str, str] = {}
    """Of a switch: value to step."""
    switch: str = ""
    next_steps: tuple[str, ...] = ()
    """Of a parallel step."""
    playbook: str = ""
    """Id of the playbook that a step calls; its steps are within it, from `next_steps` on."""
    exception: str = ""
    """Of a step that calls: where its playbook goes when a step within it fails."""
    rounds_max: int = 0
    """Of a while step: after so many rounds it fails."""
    deadline: timedelta = timedelta(minutes=5)
    """Within so long it has to end."""


class Rate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often a playbook may run."""

    per_hour: int = 10
    at_once: int = 3
    cooldown: timedelta = timedelta(minutes=15)
    """For the same asset or indicator."""


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What CACAO says of a playbook beside what it does."""

    created_by: str = ""
    """Name of who wrote it."""
    created: datetime | None = None
    modified: datetime | None = None
    types: tuple[str, ...] = ()
    activities: tuple[str, ...] = ()
    sectors: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    severity: int | None = None
    """0 to 100, of what it responds to."""
    impact: int | None = None
    """0 to 100, of what it does itself."""


class Called(msgspec.Struct, frozen=True, kw_only=True):
    """A playbook whose steps stand within another; that one is worth no more than this one."""

    id: str
    name: str
    version: str
    stage: Stage
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    signed_by: str = ""
    waived_by: str = ""


class Playbook(msgspec.Struct, frozen=True, kw_only=True):
    """A playbook that was checked; unknown verbs and missing failure paths are refused."""

    id: str
    """`playbook--UUID`."""
    name: str
    description: str
    version: str
    """Hash of its CACAO form, and of the versions of those it calls."""
    steps: Mapping[str, Step]
    start: str
    exception: str
    """Step that is taken when a step without a failure path of its own fails."""
    trigger: Mapping[str, Any] = {}
    """Condition on the finding; none: only people start it."""
    group_by: tuple[str, ...] = ()
    """Fields of the finding; one run at a time for the same values."""
    stage: Stage = "shadow"
    rate: Rate = Rate()
    valid_from: datetime | None = None
    valid_until: datetime | None = None
    signed_by: str = ""
    """Name of the key whose signature was verified; empty: unsigned."""
    waived_by: str = ""
    """Name of the key that lets it go live without runs in shadow; empty: none does."""
    file: str = ""
    about: About = About()
    called: tuple[Called, ...] = ()
    """Every playbook whose steps are among its own."""


# ---- The world, as the gate is told of it


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator's settings allow."""

    zones: Mapping[str, frozenset[str]] = {}
    """Action class to the types of zones in which it may act."""
    blast_share: float = 0.1
    """Most of the assets of a zone that a step may affect; one is always allowed."""
    actuator_per_hour: int = 20
    zone_in_force: int = 5
    alone: bool = False
    """A corroborated A1 step of a live playbook needs no person."""
    exercises: bool = False
    """The actuators are simulators: act on findings of an exercise, and on no others."""


class Facts(Protocol):
    """What the gate and the plan may ask; `siem` fulfils it for one moment and one operator."""

    @property
    def operator(self) -> str:
        """Whose node this is."""
        ...

    @property
    def now(self) -> datetime:
        """The node's clock."""
        ...

    def stopped(self) -> Sequence[str]:
        """Kill switches that are on: `global`, `playbook:…`, `actuator:…`; rows and a file."""
        ...

    @property
    def limits(self) -> Limits:
        """What the settings allow."""
        ...

    def actuator(self, name: str) -> ActuatorSpec | None:
        """What an actuator of this operator says of itself; None: this node has no such one."""
        ...

    def trusts(self, key: str) -> bool:
        """Whether the signatures of a key, by its name, still count."""
        ...

    def owner_of(self, target: Target) -> str:
        """Operator whose it is; `peer`: of one that is not known; empty: nobody's we know."""
        ...

    def assets_in(self, target: Target) -> Sequence[Asset]:
        """Every asset that a target meets: all in a network, both ends, the sender first."""
        ...

    def asset_of(self, target: Target) -> Asset | None:
        """The inventory's asset with this address, name or id."""
        ...

    def is_confirmed(self, asset: Asset) -> bool:
        """Whether a person confirmed it in the last 30 days."""
        ...

    def is_external(self, target: Target) -> bool:
        """Outside the operator's own plan and the published ranges of its peers."""
        ...

    def kept(self, target: Target) -> str:
        """Why it is on the keep list (partner, authority, shared cloud …); empty: it is not."""
        ...

    def zone_type(self, target: Target) -> str:
        """IEC 62443 zone type; `external` for what is outside, empty if it is not known."""
        ...

    def protected(self, target: Target) -> str:
        """Why it is a protected peer (gateway, DNS, time, broker, historian, SIEM …), or empty."""
        ...

    def nonessential(self, target: Target) -> str:
        """Why a person says that the process can do without this connection; empty: nobody did."""
        ...

    def mode(self, target: Target) -> str:
        """What is going on at the place of a target now: `normal`, `maintenance` and so on."""
        ...

    def dependants(self, target: Target) -> Sequence[str]:
        """What depends on it: by the inventory, and who began to talk to it in the last 24 h."""
        ...

    def people(self, name: str) -> int | None:
        """How many people use a service or an asset; None: nobody has said it."""
        ...

    def zone_size(self, zone: str) -> int:
        """Assets of a zone."""
        ...

    def redundant_peers(self, asset: Asset) -> Sequence[Asset]:
        """The other members of its redundancy group."""
        ...

    def is_up(self, asset: Asset) -> bool:
        """Whether it was seen in the last minutes."""
        ...

    def is_peak(self) -> bool:
        """Whether it is a time at which the operator wants no intervention."""
        ...

    def precision(self, rule_id: str) -> float | None:
        """Measured precision of a rule; None: nobody judged it."""
        ...

    def analytics(self, finding: Mapping[str, Any]) -> Sequence[str]:
        """Own analytics (rule and model ids) that spoke of the same thing, this one included."""
        ...

    def runs_since(self, playbook: str, since: datetime) -> int:
        """Runs of a playbook that began since; the one that asks is not counted."""
        ...

    def running(self, playbook: str) -> int:
        """Runs of a playbook that are not over; the one that asks is not counted."""
        ...

    def last_run(self, playbook: str, target: Target) -> datetime | None:
        """When a playbook last gave a command on a target; the run that asks is not counted."""
        ...

    def commands_since(self, actuator: str, since: datetime) -> int:
        """Commands that an actuator was given, undoing left out."""
        ...

    def in_force(self, place: str) -> int:
        """Effects that hold on an asset, or in a zone, now."""
        ...

    def failures(self, actuator: str) -> Sequence[datetime]:
        """Failures of an actuator since a person last closed its circuit breaker."""
        ...

    def rollbacks(self, actuator: str) -> Sequence[datetime]:
        """When people took back what an actuator did, since its breaker was last closed."""
        ...


Outcome = Literal["allow", "needs approval", "deny"]


class Check(msgspec.Struct, frozen=True):
    """What one check of the gate says, with the facts it saw."""

    number: int
    name: str
    outcome: Outcome
    why: str
    """A sentence for the person who decides."""
    saw: Mapping[str, Any] = {}


def outcome_of(checks: Sequence[Check]) -> Outcome:
    """The strictest of several checks; none at all deny."""
    said = {check.outcome for check in checks}
    if not said or "deny" in said:
        return "deny"
    return "needs approval" if "needs approval" in said else "allow"


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One action of a plan."""

    step: str
    name: str
    action_class: ActionClass
    actuator: str
    target: Target
    commands: tuple[Command, ...]
    """What is missing in the world as it is now; none: it is so already."""
    prior: Mapping[str, Any] = {}
    """State found, which undoing restores."""
    until: datetime | None = None
    undo: str = ""
    """How it ends, in words."""
    dependants: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    manual: str = ""
    """What a person has to do, for a manual step or after a denial."""

    @property
    def outcome(self) -> Outcome:
        """What its checks say together."""
        return outcome_of(self.checks)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a playbook would do about a finding, in the world as it is now."""

    playbook: str
    version: str
    finding: str
    revision: int
    """Of the finding that it was made for."""
    operator: str
    made: datetime
    actions: tuple[Planned, ...]
    variables: Mapping[str, Any] = {}

    @property
    def hash(self) -> str:
        """What an approval binds to: what would be done, to what, for how long, what the gate says.

        Neither its words, nor the moment at which it was made.
        """
        said = (
            *(self.playbook, self.version, self.finding, self.operator),
            [_done(action, self.made) for action in self.actions],
        )
        return hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()


def _done(action: Planned, made: datetime) -> Any:
    commands = [
        (one.verb, one.target, one.undo, one.args, one.prior, one.until - made)
        for one in action.commands
    ]
    lasts = action.until and action.until - made
    checks = [(check.number, check.outcome) for check in action.checks]
    how = (action.step, action.action_class, action.actuator, action.target, lasts)
    return (*how, action.prior, commands, checks, bool(action.manual))


# ---- Runs

StepState = Literal[
    "pending",
    "gated",
    "waiting_approval",
    "intended",
    "applied",
    "verified",
    "rolling_back",
    "rolled_back",
    "done",
    "failed",
    "denied",
    "expired",
    "cancelled",
]
RunState = Literal["planned", "running", "waiting", "done", "failed", "denied", "cancelled"]
