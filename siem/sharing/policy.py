"""The sharing policy: one YAML file of an operator; what may leave, to whom, in which form.

It is an allow-list under a baseline of the city that it may only narrow. Rules are asked in order,
the first that holds counts, and a finding of which none holds stays. A file is accepted as a whole
or refused with file, key and reason; its own tests run before.

References:
    federation.md, "Sharing policy"; TLP 2.0 (FIRST) as the city reads it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import msgspec

from cityward.fields import PERSONAL
from cityward.when import When
from siem.sharing import transforms
from siem.sharing.external import Plan, address_of
from siem.sharing.share import Approval, Share, share_id
from siem.sharing.tokens import Tokens
from siem.sharing.transforms import TOKEN_FIELDS, Stays

EXAMPLE = Path(__file__).parent / "example.yml"
TLP = ("clear", "green", "amber", "amber+strict", "red")
"""From open to closed."""
PAP = ("clear", "green", "amber", "red")
CLOSEST_TLP = {
    "city-soc": "amber+strict",
    "peers": "green",
    "police": "green",
    "prefecture": "green",
    "civil-protection": "green",
    "csirt": "green",
}
"""Every audience, and the most closed marking under which it may read; nothing `red` leaves."""
APPROVALS: tuple[Approval, ...] = ("auto", "person", "two_person")
ANSWERS = ("none", "state", "reason")
"""Of a proposal: nothing; `planned`, `applied` …; also why, by a word of a list. Nothing else."""
RELEASES = ("none", "person", "two_person")
"""Who may let out a protected sample: nobody, a person, two persons."""
TELLS = ("hidden", "named")
"""Whether other operators are told whose sample it is."""
MODES = ("normal", "maintenance", "exercise", "test")
NEEDED = "finding.first_seen"
"""It names the hub's index."""
DAY = timedelta(days=1)
INT64 = 1 << 63
TEXT_MAX = 1_000
"""A longer value is no word of a list; it stays."""
ECHO_MIN = 5
"""A kept-back name of fewer letters is not looked for in what leaves: `root` is a word, too."""
_OWN_NAMES = ("host.name", "cw.asset.asset_id", "cw.asset.zone", "phys.point", "cw.site")
_WORDS = ("finding.", "event.", "network.", "ot.", "threat.")
"""Fields of these begin hold words of the schema, which may also be somebody's name."""

MORE_TOKENS = "source.token"
_READABLE = ("keep", "template", "category")
"""Transforms whose result is still text of the finding."""

Made = Any
"""What became of a value, or why it stays (`Stays`)."""


class Scene(NamedTuple):
    """What a transform may look at besides the value."""

    document: Mapping[str, Any]
    at: datetime
    plan: Plan
    tokens: Tokens


Maker = Callable[[Any, Scene], Made]


class Way(NamedTuple):
    """How one field leaves."""

    field: str
    transform: str
    to: str
    """Field in which it stands outside."""
    make: Maker
    is_list: bool
    """The field takes several values."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of the policy, with the defaults in it."""

    name: str
    when: When
    condition: Mapping[str, Any]
    """`when` as written."""
    audiences: tuple[str, ...]
    tlp: str
    pap: str
    retention: timedelta
    time: timedelta
    """Interval to which times are rounded."""
    approval: Approval
    legal_basis: str
    ways: tuple[Way, ...]
    """Fields that leave, texts last: they are made of the others."""
    templates: Mapping[str, tuple[str, ...]]
    dropped: frozenset[str] = frozenset()
    """Fields that the rule names so that they stay."""


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy says of protected samples."""

    release: str = "none"
    """One of `RELEASES`."""
    operator: str = "hidden"
    """One of `TELLS`."""
    drop: frozenset[str] = frozenset()
    """Fields that stay here, beside all that always do."""
    retention: timedelta = timedelta(days=90)
    """So long after it was sent a sample is over."""

    @property
    def people(self) -> int:
        """How many have to say yes; 0: it is forbidden."""
        return RELEASES.index(self.release)

    def lets_out(self, payload: Mapping[str, Any]) -> bool:
        """Whether a sample that was let out under another policy may leave, or stay out."""
        fields = {name for event in payload.get("events", ()) for name in event}
        is_open = self.operator == "named" or not payload.get("is_named")
        is_kept = any(is_of(one, self.drop) for one in fields)
        return bool(self.people) and is_open and not is_kept


def is_of(field: str, named: Collection[str]) -> bool:
    """Whether a field, or one that it lies within, is among the named."""
    parts = field.split(".")
    return any(".".join(parts[:count]) in named for count in range(len(parts), 0, -1))


class Step(NamedTuple):
    """What became of one field of a finding."""

    field: str
    value: Any
    transform: str
    """Empty: no rule names the field."""
    to: str
    """Field in which it stands outside; empty: it stays."""
    made: Any
    """What leaves, or why nothing does, in words."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that was accepted."""

    id: str
    """As the file names it."""
    hash: str
    """Of the content of policy and baseline."""
    file: str
    rules: tuple[Rule, ...]
    plan: Plan
    tokens: Tokens
    tested: int
    """Tests of the file that were run."""
    answers: str = "none"
    """How much the city is told of what becomes of its proposals: one of `ANSWERS`."""
    samples: Samples = Samples()

    def share(self, document: Mapping[str, Any], now: datetime) -> Share | None:
        """What leaves of a finding; None if nothing does."""
        rule = self.rule_of(document)
        return None if rule is None else self._share(rule, document, now)

    def rule_of(self, document: Mapping[str, Any]) -> Rule | None:
        """The first rule that holds."""
        return next((rule for rule in self.rules if rule.when(document)), None)

    def trace(self, document: Mapping[str, Any], now: datetime) -> tuple[Share | None, list[Step]]:
        """What leaves of a finding, and what became of each of its fields."""
        fields = sorted(name for name, value in document.items() if not _is_nothing(value))
        rule = self.rule_of(document)
        share = None if rule is None else self._share(rule, document, now)
        if rule is None or share is None:
            why = "no rule holds for it" if rule is None else self._why_not(rule, document, now)
            return None, [Step(name, document[name], "", "", why) for name in fields]
        steps = [
            step
            if not step.to or step.to in share.payload
            else step._replace(to="", made="it would repeat what stays here")
            for step in self._steps(rule, document, now)
        ]
        mode = "finding.mode"
        if not any(step.field == mode for step in steps):
            steps.append(Step(mode, document.get(mode), "keep", mode, _mode(document)))
        known = {step.field for step in steps}
        for name in fields:
            if name not in known:
                why = str(Stays.DROPPED) if name in rule.dropped else "no rule names it"
                steps.append(Step(name, document[name], "", "", why))
        return share, sorted(steps, key=lambda step: step.field)

    def _why_not(self, rule: Rule, document: Mapping[str, Any], now: datetime) -> str:
        """Why nothing of a finding leaves although a rule holds."""
        if _expires(document, rule, now) <= now:
            return f"it is older than the retention of rule {rule.name}"
        return f"it has no {NEEDED}, or no id"

    def _share(self, rule: Rule, document: Mapping[str, Any], now: datetime) -> Share | None:
        steps = [step for step in self._steps(rule, document, now) if step.to]
        if echoes := _echoes(steps, document):
            steps = [step for step in steps if step not in echoes]
        payload: dict[str, Any] = {}
        for step in steps:
            if step.to in payload:  # tokens of several values
                payload[step.to] = list(dict.fromkeys([*payload[step.to], *step.made]))
            else:
                payload[step.to] = step.made
        left = {step.field for step in steps} | {"finding.mode"}
        expires = _expires(document, rule, now)
        if NEEDED not in payload or expires <= now or not document.get("finding.id"):
            return None
        payload["finding.mode"] = _mode(document)
        return Share(
            share_id=share_id(document["finding.id"]),
            finding=document["finding.id"],
            revision=document.get("finding.revision", 1),
            policy=self.hash,
            rule=rule.name,
            audiences=rule.audiences,
            tlp=rule.tlp,
            pap=rule.pap,
            expires=expires,
            payload=payload,
            kept=tuple(
                sorted(n for n, v in document.items() if n not in left and not _is_nothing(v))
            ),
            approval=rule.approval,
        )

    def _steps(self, rule: Rule, document: Mapping[str, Any], now: datetime) -> Iterator[Step]:
        scene = Scene(document, min(_last_seen(document, now), now), self.plan, self.tokens)
        shared: dict[str, Any] = {}
        for way in rule.ways:
            value = document.get(way.field)
            made: Made
            if way.transform == "template":
                made = transforms.filled(rule.templates[way.field], shared)
            elif _is_nothing(value):
                continue
            else:
                made = way.make(value, scene)
            if isinstance(made, Stays):
                yield Step(way.field, value, way.transform, "", str(made))
                continue
            if way.transform == "join" and not way.is_list:
                # A field of one value has the exact token of now, the others stand with those
                # of addresses.
                made, *more = made
                if more:
                    yield Step(way.field, value, way.transform, MORE_TOKENS, more)
            shared[way.to] = made
            yield Step(way.field, value, way.transform, way.to, made)


def way(field: str, kind: str, transform: str, rule: Mapping[str, Any]) -> Way:
    """How a field leaves under a transform.

    Args:
        field: Its name.
        kind: Its type.
        transform: What becomes of it.
        rule: `time`, `place` and `categories` of its rule.
    """
    make = _MAKERS[transform](field, {**rule, "kind": kind})
    is_list = field in TOKEN_FIELDS or kind.endswith("[]")
    if transform in ("local", "join", "trunc", "category"):
        make = _each(make, is_list=is_list or transform == "join")
    return Way(field, transform, TOKEN_FIELDS.get(field, field), make, is_list)


def _each(make: Maker, *, is_list: bool) -> Maker:
    """The same for a field with several values; what stays is left out."""

    def made(value: Any, scene: Scene) -> Made:
        several = value if isinstance(value, (list, tuple)) else (value,)
        found: list[Any] = []
        why: Stays | None = None
        for one in several:
            part = make(one, scene) if isinstance(one, str) else Stays.UNREADABLE
            if isinstance(part, Stays):
                why = part
            else:
                found += part if isinstance(part, list) else [part]
        found = list(dict.fromkeys(found))
        if not found:
            return why or Stays.UNREADABLE
        return found if is_list else found[0]

    return made


def _keep(field: str, rule: Mapping[str, Any]) -> Maker:
    kind, is_list = rule["kind"].removesuffix("[]"), rule["kind"].endswith("[]")
    fits = _FITS[kind]

    def made(value: Any, scene: Scene) -> Made:
        if not is_list:
            return value if fits(value) else Stays.UNREADABLE
        several = list(value) if isinstance(value, (list, tuple)) else [value]
        return several if several and all(map(fits, several)) else Stays.UNREADABLE

    return made


def is_time(value: Any) -> TypeGuard[datetime]:
    """Whether a value is a time with its offset."""
    return isinstance(value, datetime) and value.tzinfo is not None


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_MAX and value.isprintable()


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int) and abs(value) < INT64


def _drop(field: str, rule: Mapping[str, Any]) -> Maker:
    return lambda value, scene: Stays.DROPPED


def _local(field: str, rule: Mapping[str, Any]) -> Maker:
    def made(value: str, scene: Scene) -> Made:
        name = transforms.typed(field, value)
        return Stays.UNREADABLE if name is None else scene.tokens.local(name)

    return made


def _join(field: str, rule: Mapping[str, Any]) -> Maker:
    def made(value: str, scene: Scene) -> Made:
        if scene.tokens.joiner is None:
            return Stays.NO_ROOT
        names = transforms.indicators(field, value, scene.document, scene.plan)
        return names if isinstance(names, Stays) else scene.tokens.joined(names, scene.at)

    return made


def _trunc(field: str, rule: Mapping[str, Any]) -> Maker:
    return lambda value, scene: transforms.trunc(field, value, scene.plan)


def _grid(field: str, rule: Mapping[str, Any]) -> Maker:
    metres = rule["place"]

    def made(value: Any, scene: Scene) -> Made:
        return (isinstance(value, str) and transforms.grid(value, metres)) or Stays.UNREADABLE

    return made


def _round(field: str, rule: Mapping[str, Any]) -> Maker:
    step = rule["time"]

    def made(value: Any, scene: Scene) -> Made:
        return transforms.round_time(value, step) if is_time(value) else Stays.UNREADABLE

    return made


def _bucket(field: str, rule: Mapping[str, Any]) -> Maker:
    def made(value: Any, scene: Scene) -> Made:
        fits = _FITS[rule["kind"]](value)
        found = transforms.bucket(value) if fits else None
        return Stays.UNREADABLE if found is None else found

    return made


def _category(field: str, rule: Mapping[str, Any]) -> Maker:
    classes = rule["categories"][field]
    return lambda value, scene: transforms.category(value, classes)


_FITS: dict[str, Callable[[Any], bool]] = {
    "keyword": _is_word,
    "geo_point": lambda value: isinstance(value, str) and transforms.is_place(value),
    "long": _is_whole,
    "double": _is_number,
    "float": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "date": is_time,
}
"""Whether a value is what the type of its field says; the hub refuses a share with another."""
_MAKERS: dict[str, Callable[[str, Mapping[str, Any]], Maker]] = {
    "keep": _keep,
    "drop": _drop,
    "template": _drop,
    "local": _local,
    "join": _join,
    "trunc": _trunc,
    "grid": _grid,
    "round": _round,
    "bucket": _bucket,
    "category": _category,
}


def _echoes(steps: Sequence[Step], document: Mapping[str, Any]) -> list[Step]:
    """What would leave although something that stays can be read in it: a rule named after a host.

    Tokens are not looked at: they are drawn by a key, and hold what they hold by chance.
    """
    kept = {step.field for step in steps if step.transform == "keep"}
    names = (name for name in (*PERSONAL, *_OWN_NAMES) if name in document and name not in kept)
    hidden = [one for name in names for one in _texts(document[name]) if len(one) >= ECHO_MIN]
    hidden += [one for name in document if name.endswith(".ip") for one in _texts(document[name])]
    if not hidden:
        return []
    return [
        step
        for step in steps
        if step.transform in _READABLE
        and any(_is_echo(step, text, one) for text in _texts(step.made) for one in hidden)
    ]


def _is_echo(step: Step, text: str, hidden: str) -> bool:
    if hidden.lower() not in text.lower():
        return False
    # A word of the schema may also be somebody's name: a user called `medium`; no address is.
    is_word = step.transform == "keep" and step.field.startswith(_WORDS)
    return len(text) > len(hidden) or not is_word or address_of(hidden) is not None


def _texts(value: Any) -> list[str]:
    several = value if isinstance(value, (list, tuple)) else (value,)
    return [one for one in several if isinstance(one, str) and one]


def _expires(document: Mapping[str, Any], rule: Rule, now: datetime) -> datetime:
    """When a share ends: retention after the day of its last match, which tells no more of it."""
    step = max(DAY, rule.time)
    return transforms.round_time(min(_last_seen(document, now), now), step) + step + rule.retention


def _last_seen(document: Mapping[str, Any], now: datetime) -> datetime:
    for name in ("finding.last_seen", "finding.first_seen"):
        time = document.get(name)
        if is_time(time):
            return time
    return now


def _mode(document: Mapping[str, Any]) -> str:
    """It always leaves: what was played is marked everywhere."""
    mode = document.get("finding.mode")
    return next((one for one in MODES if one == mode), MODES[0])


def _is_nothing(value: Any) -> bool:
    return value is None or value in ("", [], ())


def example_for(operator: str) -> str:
    """The policy that ships as an example, for an operator."""
    text = EXAMPLE.read_text(encoding="utf-8")
    return text.replace("op-example", operator).replace("op-local", operator)


def content_hash(*texts: bytes) -> str:
    """Hash of the files that say what may leave."""
    total = hashlib.sha256()
    for text in texts:
        total.update(hashlib.sha256(text).digest())
    return total.hexdigest()
