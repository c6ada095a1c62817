"""From a policy file to a `Policy`, or to a refusal that names file, key and reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from cityward import ConfigError, RuleError
from cityward.documents import Document, Place, parse
from cityward.fields import FIELDS, FINDING_FIELDS, PERSONAL, SHARED_FIELDS
from cityward.when import compile_when
from siem.sharing import transforms
from siem.sharing.external import Plan
from siem.sharing.policy import (
    ANSWERS,
    APPROVALS,
    CLOSEST_TLP,
    NEEDED,
    PAP,
    RELEASES,
    TELLS,
    TLP,
    Policy,
    Rule,
    Samples,
    content_hash,
    way,
)
from siem.sharing.samples import AUDIENCE, MARKING
from siem.sharing.tokens import Hmac, Tokens

BASELINE = Path(__file__).parent / "baseline.yml"
"""What ships; a policy inherits it by its name."""

KNOWN = {**FIELDS, **FINDING_FIELDS}
SPREAD = ("tlp", "pap", "retention", "approval", "precision", "fields", "legal_basis")
"""What `defaults` may say for every rule."""
POLICY_KEYS = {
    *("policy", "operator", "inherits", "defaults", "audiences", "rules", "tests", "answers"),
    *("templates", "categories", "samples"),
}
SAMPLES_KEYS = {"release", "operator", "drop"}
RULE_KEYS = {*SPREAD, "name", "when", "to", "release", "purpose", "templates", "categories"}
TEST_KEYS = {"name", "given", "rule", "must_leave", "must_stay"}
BASELINE_KEYS = {
    *("baseline", "audiences", "tlp", "pap", "retention", "precision", "fields", "wider")
}
WIDER_KEYS = {"name", "when", "audiences", "tlp", "pap", "retention", "precision", "fields"}

TEMPLATES: dict[str, tuple[str, ...]] = {
    "finding.title": (
        "{rule.name}",
        "{finding.type}, severity {finding.severity}",
        "{finding.type}",
    ),
    "finding.description": (
        "{rule.name}: {finding.type}, severity {finding.severity}, on a {cw.asset.type}",
        "{rule.name}: {finding.type}, severity {finding.severity}",
        "{finding.type}, severity {finding.severity}",
        "{finding.type}",
    ),
}
"""Texts where the policy gives none; the first all of whose fields leave counts."""
CATEGORIES = {"url.path": transforms.PATH_CLASSES}
"""Classes where the policy gives none."""

DEFAULTS: dict[str, Any] = {
    "tlp": "amber+strict",
    "pap": "amber",
    "retention": "90d",
    "approval": "auto",
    "precision": {"time": "1h", "place": "1km"},
}
RULES_MAX = 200
TESTS_MAX = 500

_SPAN = re.compile(r"(\d{1,5})\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LENGTH = re.compile(r"(\d{1,5})\s*(m|km)")
_NAME = re.compile(r"[a-z0-9][a-z0-9_./-]{0,63}")
_EXACT = "exact"

_TEST_TOKENS = Tokens(b"test" * 8, Hmac(b"test" * 8))
"""Tests are about which fields leave; they run where no root was exchanged, too."""
_TEST_PLAN = Plan(["10.0.0.0/8"])
"""Where nothing says which addresses are ours."""
_TEST_NOW = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
_TEST_FINDING: dict[str, Any] = {
    "finding.id": "00000000-0000-5000-8000-000000000000",
    "finding.revision": 1,
    "finding.type": "detection",
    "finding.severity": "high",
    "finding.status": "new",
    "finding.verdict": "unknown",
    "finding.mode": "normal",
    "finding.first_seen": _TEST_NOW,
    "finding.last_seen": _TEST_NOW,
}
"""What a test need not say of its finding."""
_VALUE_MIN = 4


class Limits(NamedTuple):
    """What a rule may say at most."""

    audiences: frozenset[str]
    tlp: str
    pap: str
    retention: timedelta
    time: timedelta
    place: float
    fields: Mapping[str, frozenset[str]]


class Wider(NamedTuple):
    """Limits for rules whose condition says at least `when`."""

    when: Mapping[str, Any]
    limits: Limits


class Baseline(NamedTuple):
    """What the city's operators agreed on."""

    id: str
    limits: Limits
    wider: tuple[Wider, ...]
    data: bytes

    def limits_for(self, when: Mapping[str, Any]) -> Limits:
        """What a rule with a condition may say."""
        found = self.limits
        for one in self.wider:
            if _is_within(when, one.when):
                found = _union(found, one.limits)
        return found


def compile_policy(
    data: bytes,
    file: str,
    *,
    plan: Plan,
    tokens: Tokens,
    operator: str = "",
    baseline: Baseline | None = None,
) -> Policy:
    """Accept a policy, or say why not.

    Args:
        data: The file.
        file: Its name, for messages.
        plan: Which addresses are ours.
        tokens: Makes what `local` and `join` leave behind.
        operator: Whose node this is; empty: it is not asked.
        baseline: What the city agreed on; None: what ships.

    Raises:
        ConfigError: it is refused; the message names the place and the reason.
    """
    base = baseline or load_baseline()
    said = _Reader(_parsed(data, file))
    rules = tuple(_rules(said, base))
    if operator and said.text("operator") != operator:
        raise said.fault(("operator",), f"it is not for {operator}", "Use this operator's file.")
    policy = Policy(
        id=said.text("policy"),
        hash=content_hash(data, base.data),
        file=file,
        rules=rules,
        plan=plan,
        tokens=tokens,
        tested=len(said.list("tests")),
        answers=said.one_of(ANSWERS, "answers", ()) or "none",
        samples=_samples(said, base),
    )
    tried = _TEST_PLAN if plan.is_empty else plan
    _run_tests(said, msgspec.structs.replace(policy, tokens=_TEST_TOKENS, plan=tried))
    return policy


def load_baseline(path: Path = BASELINE) -> Baseline:
    """Read what the city's operators agreed on.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        what = f"the baseline cannot be read: {error.strerror}"
        raise ConfigError(what, str(path), "Check sharing.baseline in the settings.") from error
    said = _Reader(_parsed(data, str(path)))
    said.only(BASELINE_KEYS)
    limits = _limits(said, ())
    wider = []
    for number in range(len(said.list("wider"))):
        place: Place = ("wider", number)
        said.only(WIDER_KEYS, place)
        condition = said.mapping("when", place)
        compile_when(condition, said.where((*place, "when")))
        wider.append(Wider(condition, _limits(said, place)))
    return Baseline(said.text("baseline"), limits, tuple(wider), data)


def _parsed(data: bytes, file: str) -> Document:
    try:
        documents = parse(data, file)
    except RuleError as error:
        raise ConfigError(error.what, error.where, error.todo) from error
    if len(documents) != 1 or not isinstance(documents[0].value, dict):
        raise ConfigError("no mapping of keys", file, "Begin with policy: and operator:.")
    return documents[0]


class _Reader:
    """A YAML document, read key by key, each error with its place."""

    def __init__(self, document: Document) -> None:
        self.document = document

    def where(self, place: Place) -> str:
        """File, line and key path of a part."""
        path = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place)
        return f"{self.document.where(*place)}, {path.lstrip('.') or 'top level'}"

    def fault(self, place: Place, what: str, todo: str) -> ConfigError:
        """An error at a part."""
        return ConfigError(what, self.where(place), todo)

    def at(self, place: Place) -> Any:
        """A part; None if there is none."""
        value = self.document.value
        for one in place:
            if isinstance(value, dict):
                value = value.get(one)
            elif isinstance(value, list) and isinstance(one, int) and one < len(value):
                value = value[one]
            else:
                return None
        return value

    def only(self, keys: set[str], place: Place = ()) -> None:
        """Refuse a part that is no mapping, or has other keys."""
        value = self.at(place)
        if not isinstance(value, dict):
            raise self.fault(place, f"{value!r} is no mapping of keys", "See docs/sharing.md.")
        for key in value:
            if key not in keys:
                known = ", ".join(sorted(keys))
                raise self.fault((*place, str(key)), f"{key!r} is no key here", f"One of {known}.")

    def mapping(self, key: str, place: Place = ()) -> dict[str, Any]:
        """A mapping of texts; empty if it is not there."""
        value = self.at((*place, key))
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value):
            raise self.fault((*place, key), f"{value!r} is no mapping of names", "Write {a: b}.")
        return value

    def list(self, key: str, place: Place = ()) -> list[Any]:
        """A list; empty if it is not there."""
        value = self.at((*place, key))
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.fault((*place, key), f"{value!r} is no list", "Write [a, b].")
        return value

    def names(self, key: str, place: Place = ()) -> tuple[str, ...]:
        """A list of texts."""
        found = self.list(key, place)
        for number, one in enumerate(found):
            if not isinstance(one, str):
                raise self.fault((*place, key, number), f"{one!r} is no name", "Quote it.")
        return tuple(found)

    def text(self, key: str, place: Place = ()) -> str:
        """A text that has to be there."""
        value = self.at((*place, key))
        if not isinstance(value, str) or not value.strip():
            raise self.fault((*place, key), f"{key} is missing", f"Write {key}: …")
        return value

    def one_of(self, allowed: Sequence[str], key: str, place: Place) -> str | None:
        """A word of a list, if it is there."""
        value = self.at((*place, key))
        if value is None:
            return None
        if value not in allowed:
            raise self.fault(
                (*place, key), f"{value!r} is no {key}", f"One of {', '.join(allowed)}."
            )
        return str(value)

    def span(self, key: str, place: Place) -> timedelta | None:
        """A span of time, if it is there."""
        value = self.at((*place, key))
        if value is None:
            return None
        found = _SPAN.fullmatch(str(value))
        seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
        if not seconds:
            raise self.fault((*place, key), f"{value!r} is no span of time", "Write 1m, 6h or 90d.")
        return timedelta(seconds=seconds)

    def length(self, key: str, place: Place) -> float | None:
        """A length in metres, 0 for `exact`, if it is there."""
        value = self.at((*place, key))
        if value is None:
            return None
        if value == _EXACT:
            return 0.0
        found = _LENGTH.fullmatch(str(value))
        metres = int(found[1]) * (1000.0 if found[2] == "km" else 1.0) if found else 0.0
        if not metres:
            raise self.fault((*place, key), f"{value!r} is no length", "Write 500m, 1km or exact.")
        return metres


def _limits(said: _Reader, place: Place) -> Limits:
    """What a baseline, or a part of it, allows; what it does not say is the narrowest."""
    fields = {}
    for name, written in said.mapping("fields", place).items():
        ways = [written] if isinstance(written, str) else written
        where = (*place, "fields", name)
        if name not in KNOWN:
            raise said.fault(where, f"{name} is no field", "See cityward/fields.py.")
        if not isinstance(ways, list) or not all(one in transforms.TRANSFORMS for one in ways):
            raise said.fault(where, f"{ways!r} are no transforms", "Write [keep] or [join, trunc].")
        fields[name] = frozenset(ways)
    precision = (*place, "precision")
    length = said.length("place", precision)
    return Limits(
        audiences=frozenset(_audiences(said, "audiences", place)),
        tlp=said.one_of(TLP, "tlp", place) or TLP[-2],
        pap=said.one_of(PAP, "pap", place) or PAP[-1],
        retention=said.span("retention", place) or timedelta(days=1),
        time=said.span("time", precision) or timedelta(days=1),
        place=float("inf") if length is None else length,
        fields=fields,
    )


def _audiences(said: _Reader, key: str, place: Place) -> tuple[str, ...]:
    found = said.names(key, place)
    for number, one in enumerate(found):
        if one not in CLOSEST_TLP:
            known = ", ".join(CLOSEST_TLP)
            raise said.fault((*place, key, number), f"{one!r} is no audience", f"One of {known}.")
    return found


def _union(one: Limits, other: Limits) -> Limits:
    names = one.fields.keys() | other.fields.keys()
    nothing: frozenset[str] = frozenset()
    return Limits(
        audiences=one.audiences | other.audiences,
        tlp=min(one.tlp, other.tlp, key=TLP.index),
        pap=min(one.pap, other.pap, key=PAP.index),
        retention=max(one.retention, other.retention),
        time=min(one.time, other.time),
        place=min(one.place, other.place),
        fields={n: one.fields.get(n, nothing) | other.fields.get(n, nothing) for n in names},
    )


def _is_within(narrow: Mapping[str, Any], wide: Mapping[str, Any]) -> bool:
    """Whether a condition says at least what another one says."""
    return all(
        name in narrow and set(_listed(narrow[name])) <= set(_listed(wanted))
        for name, wanted in wide.items()
    )


def _listed(value: Any) -> list[Any]:
    return [str(one) for one in (value if isinstance(value, list) else [value])]


def _rules(said: _Reader, base: Baseline) -> Iterator[Rule]:
    """The rules of a policy, each held against the baseline."""
    said.only(POLICY_KEYS)
    if not _NAME.fullmatch(said.text("policy")):
        raise said.fault(("policy",), "no id", "Lower case, digits, -, _, ., /.")
    if said.text("inherits") != base.id:
        what = f"there is no baseline {said.text('inherits')!r}"
        raise said.fault(("inherits",), what, f"Write inherits: {base.id}.")
    if said.at(("defaults",)) is not None:
        said.only(set(SPREAD), ("defaults",))
    rules = said.list("rules")
    if not rules or len(rules) > RULES_MAX:
        what = f"{len(rules)} rules"
        raise said.fault(("rules",), what, f"Write 1 to {RULES_MAX}.")
    seen: set[str] = set()
    for number in range(len(rules)):
        place: Place = ("rules", number)
        said.only(RULE_KEYS, place)
        name = said.text("name", place)
        if not _NAME.fullmatch(name) or name in seen:
            raise said.fault(
                (*place, "name"), f"{name!r} is there twice or no name", "Lower case, digits, -."
            )
        seen.add(name)
        yield _Compiled(said, place, base).rule(name)


def _samples(said: _Reader, base: Baseline) -> Samples:
    """What a policy says of protected samples; they are for all operators, or stay."""
    place: Place = ("samples",)
    if said.at(place) is None:
        return Samples()
    said.only(SAMPLES_KEYS, place)
    release = said.one_of(RELEASES, "release", place) or "none"
    widest = base.limits
    is_open = AUDIENCE in widest.audiences and TLP.index(widest.tlp) <= TLP.index(MARKING)
    if release != "none" and not is_open:
        what = "the baseline lets nothing out to peers"
        raise said.fault((*place, "release"), what, "Write none, or agree on another baseline.")
    dropped = said.names("drop", place)
    for number, one in enumerate(dropped):
        if one not in FIELDS:
            where = (*place, "drop", number)
            raise said.fault(where, f"{one} is no field of an event", "Mend the name.")
    retention = said.span("retention", ("defaults",)) or timedelta(days=90)
    return Samples(
        release=release,
        operator=said.one_of(TELLS, "operator", place) or "hidden",
        drop=frozenset(dropped),
        retention=min(retention, widest.retention),
    )


class _Compiled:
    """One rule on its way."""

    def __init__(self, said: _Reader, place: Place, base: Baseline) -> None:
        self.said = said
        self.place = place
        self.condition = said.mapping("when", place)
        self.limits = base.limits_for(self.condition)
        self.base = base

    def rule(self, name: str) -> Rule:
        """The rule, once nothing speaks against it."""
        said, place = self.said, self.place
        if said.at((*place, "when")) is None:
            raise said.fault((*place, "when"), "when is missing", "All findings are {}.")
        if said.at((*place, "release")) is not None:
            raise said.fault(
                (*place, "release"),
                "aggregates over persons are not made yet, so this rule would tell of single ones",
                "Leave the rule out; until then these findings stay here.",
            )
        for field in self.condition:
            if field not in KNOWN:
                raise said.fault((*place, "when", field), f"{field} is no field", "Mend the name.")
        when = compile_when(self.condition, said.where((*place, "when")))
        tlp, tlp_at = self._word(TLP, "tlp")
        pap, _ = self._word(PAP, "pap")
        audiences, audiences_at = self._audiences()
        self._held(tlp, tlp_at, audiences, audiences_at)
        retention = self._span("retention")
        precision, places = self._precision()
        fields = self._fields()
        basis = self._basis()
        templates, categories = self._texts(fields), self._classes(fields)
        options = {**precision, "categories": categories}
        ways = []
        for field, (transform, at) in fields.items():
            self._field(field, transform, at, basis, places)
            if transform != "drop":
                ways.append(way(field, KNOWN[field].type, transform, options))
        if NEEDED not in {one.field for one in ways}:
            raise said.fault(
                (*place, "fields"),
                f"{NEEDED} is missing",
                f"Add {NEEDED}: round; it names an index.",
            )
        return Rule(
            name=name,
            when=when,
            condition=self.condition,
            audiences=audiences,
            tlp=tlp,
            pap=pap,
            retention=retention,
            time=precision["time"],
            approval=self._approval(),
            legal_basis=basis,
            ways=tuple(sorted(ways, key=lambda one: one.transform == "template")),
            templates=templates,
            dropped=frozenset(name for name, (how, _) in fields.items() if how == "drop"),
        )

    def _at(self, key: str) -> Place | None:
        """Where the rule, or else the defaults, say something."""
        for place in (self.place, ("defaults",)):
            if self.said.at((*place, key)) is not None:
                return place
        return None

    def _word(self, allowed: Sequence[str], key: str) -> tuple[str, Place]:
        """A marking, not more open than the baseline's."""
        at = self._at(key)
        word = self.said.one_of(allowed, key, at) if at is not None else None
        word = word or DEFAULTS[key]
        where = (*(at or self.place), key)
        widest = getattr(self.limits, key)
        if allowed.index(word) < allowed.index(widest):
            self._refuse(where, f"{key} {word} is more open than the baseline's {widest}", widest)
        return word, where

    def _refuse(self, where: Place, what: str, widest: object) -> None:
        raise self.said.fault(where, what, f"At most {widest}, or agree on another baseline.")

    def _audiences(self) -> tuple[tuple[str, ...], Place]:
        at, key = (self.place, "to")
        if self.said.at((*at, key)) is None:
            at, key = ((), "audiences")
        found = _audiences(self.said, key, at)
        if not found:
            raise self.said.fault((*self.place, "to"), "to is missing", "Write to: [city-soc].")
        wide = [one for one in found if one not in self.limits.audiences]
        if wide:
            widest = ", ".join(sorted(self.limits.audiences))
            self._refuse((*at, key), f"{wide[0]} may not be told this by the baseline", widest)
        return tuple(dict.fromkeys(found)), (*at, key)

    def _held(self, tlp: str, tlp_at: Place, audiences: Sequence[str], at: Place) -> None:
        """Refuse an audience that the marking does not let read."""
        if tlp == "red":
            todo = "Tell the persons yourself; amber+strict is for the city SOC."
            raise self.said.fault(tlp_at, "red is for named persons; it never leaves", todo)
        for one in audiences:
            closest = CLOSEST_TLP[one]
            if TLP.index(tlp) > TLP.index(closest):
                what = f"{one} may not read tlp {tlp}"
                raise self.said.fault(at, what, f"Leave {one} out, or mark it {closest}.")

    def _span(self, key: str) -> timedelta:
        at = self._at(key)
        found = self.said.span(key, at) if at is not None else None
        found = found or timedelta(days=90)
        if found > self.limits.retention:
            widest = f"{self.limits.retention.days}d"
            self._refuse((*(at or self.place), key), f"{key} of {found.days}d is too long", widest)
        return found

    def _precision(self) -> tuple[dict[str, Any], dict[str, Place]]:
        """Sizes of time and place, each from the rule or else from the defaults."""
        found: dict[str, Any] = {}
        places = {}
        for key, read in (("time", self.said.span), ("place", self.said.length)):
            options = [(*self.place, "precision"), ("defaults", "precision")]
            value = None
            for at in options:
                value = read(key, at)
                if value is not None:
                    break
            places[key] = (*at, key)
            if value is None:
                value = timedelta(hours=1) if key == "time" else 1000.0
            if value < getattr(self.limits, key):
                self._refuse(places[key], f"{key} is finer than the baseline's", self._widest(key))
            found[key] = value
        return found, places

    def _widest(self, key: str) -> str:
        widest = getattr(self.limits, key)
        if isinstance(widest, timedelta):
            return f"{widest.total_seconds():.0f}s"
        return f"{widest:.0f}m"

    def _fields(self) -> dict[str, tuple[str, Place]]:
        """Field to its transform and where that is said; the rule counts before the defaults."""
        found = {}
        for place in (("defaults",), self.place):
            for field, transform in self.said.mapping("fields", place).items():
                found[field] = (transform, (*place, "fields", field))
        return found

    def _field(
        self, field: str, transform: Any, at: Place, basis: str, places: Mapping[str, Place]
    ) -> None:
        """Refuse a field that may not leave, or not in this form."""
        said = self.said
        if field in SHARED_FIELDS or field not in KNOWN:
            raise said.fault(at, f"{field} is no field of a finding", "Mend the name.")
        if transform not in transforms.TRANSFORMS:
            known = ", ".join(transforms.TRANSFORMS)
            raise said.fault(at, f"{transform!r} is no transform", f"One of {known}.")
        if transform == "drop":
            return
        kind = KNOWN[field].type.removesuffix("[]")
        if kind not in transforms.TRANSFORMS[transform]:
            fits = ", ".join(n for n, kinds in transforms.TRANSFORMS.items() if kind in kinds)
            what = f"{transform} does not fit {field}, which is {kind}"
            raise said.fault(at, what, f"One of {fits}.")
        if kind == "ip" and field not in transforms.TOKEN_FIELDS:
            raise said.fault(
                at, f"{field} has no field for tokens", "Only source.ip and destination.ip have."
            )
        if transform == "keep" and field in PERSONAL and not basis:
            what = f"{field} can identify a person"
            raise said.fault(at, what, "Name the legal_basis of the rule, or write local.")
        if transform == "join" and field not in transforms.JOINABLE:
            raise said.fault(at, f"{field} is no indicator that joins", "Write local or drop.")
        if transform == "trunc" and kind != "ip" and field not in transforms.NAMES:
            raise said.fault(at, f"{field} has nothing to cut off", "Write local or drop.")
        if transform == "grid" and self.said.at(places["place"]) == _EXACT:
            raise said.fault(at, "an exact place is no grid", "Write keep, or a precision in m.")
        allowed = self.limits.fields.get(field, frozenset())
        if transform not in allowed and "keep" not in allowed:
            widest = " or ".join(sorted(allowed)) or "drop"
            self._refuse(at, f"{transform} of {field} is wider than the baseline", widest)

    def _basis(self) -> str:
        at = self._at("legal_basis")
        return self.said.text("legal_basis", at) if at is not None else ""

    def _approval(self) -> Any:
        at = self._at("approval")
        return (at is not None and self.said.one_of(APPROVALS, "approval", at)) or "auto"

    def _texts(self, fields: Mapping[str, tuple[str, Place]]) -> dict[str, tuple[str, ...]]:
        """The templates of a rule: its own, the policy's, ours."""
        found = {}
        for field, (transform, at) in fields.items():
            if transform != "template":
                continue
            texts, where = self._own("templates", field)
            texts = [texts] if isinstance(texts, str) else texts or list(TEMPLATES.get(field, ()))
            if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
                raise self.said.fault(where, f"{texts!r} are no texts", "Write 'a {rule.name}'.")
            if not texts:
                raise self.said.fault(at, f"{field} has no template", "Add one to templates:.")
            outside = {
                transforms.TOKEN_FIELDS.get(one, one)
                for one, (how, _) in fields.items()
                if how not in ("drop", "template")
            }
            for hole in (one for text in texts for one in transforms.holes(text)):
                if self._own("templates", field)[0] is not None and hole not in outside:
                    todo = "Name it under fields, or leave it out."
                    raise self.said.fault(where, f"{{{hole}}} does not leave", todo)
            found[field] = tuple(texts)
        return found

    def _classes(self, fields: Mapping[str, tuple[str, Place]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field, (transform, at) in fields.items():
            if transform != "category":
                continue
            classes, where = self._own("categories", field)
            if classes is None and field not in CATEGORIES:
                raise self.said.fault(at, f"{field} has no classes", "Add them to categories:.")
            found[field] = CATEGORIES[field] if classes is None else self._class(classes, where)
        return found

    def _class(self, classes: Any, where: Place) -> dict[str, tuple[str, ...]]:
        if not isinstance(classes, dict) or not all(
            isinstance(parts, list) and all(isinstance(one, str) and one for one in parts)
            for parts in classes.values()
        ):
            raise self.said.fault(where, "no classes", "Write {class: [part, part]}.")
        return {str(name): tuple(map(str.lower, parts)) for name, parts in classes.items()}

    def _own(self, key: str, field: str) -> tuple[Any, Place]:
        """What the rule, or else the policy, says of a field."""
        for place in (self.place, ()):
            value = self.said.mapping(key, place).get(field)
            if value is not None:
                return value, (*place, key, field)
        return None, (*self.place, key, field)


def _run_tests(said: _Reader, policy: Policy) -> None:
    """Run the tests of the file; the first that fails refuses it."""
    if len(said.list("tests")) > TESTS_MAX:
        raise said.fault(("tests",), "too many tests", f"At most {TESTS_MAX}.")
    for number in range(len(said.list("tests"))):
        place: Place = ("tests", number)
        said.only(TEST_KEYS, place)
        given = {name: _utc(value) for name, value in said.mapping("given", place).items()}
        for name in given:
            if name not in KNOWN:
                raise said.fault((*place, "given", name), f"{name} is no field", "Mend the name.")
        document = {**_TEST_FINDING, **given}
        share = policy.share(document, _TEST_NOW + timedelta(hours=1))
        payload = share.payload if share else {}
        wanted = said.at((*place, "rule"))
        if wanted is not None and wanted != (share.rule if share else "none"):
            what = f"{share.rule if share else 'none'} lets it out, not {wanted}"
            raise said.fault((*place, "rule"), what, "Mend the rule or the test; none is no rule.")
        for at, name in enumerate(said.names("must_leave", place)):
            if name not in payload:
                where = (*place, "must_leave", at)
                raise said.fault(where, f"{name} does not leave", "Mend the rule or the test.")
        texts = [text for value in payload.values() for text in _strings(value)]
        for at, name in enumerate(said.names("must_stay", place)):
            where = (*place, "must_stay", at)
            if name in payload:
                raise said.fault(where, f"{name} leaves", "Mend the rule or the test.")
            if name not in document and name not in SHARED_FIELDS:
                raise said.fault(where, f"{name} is not in given", "Give it a value to look for.")
            hidden = [one for one in _strings(document.get(name)) if len(one) >= _VALUE_MIN]
            if any(one.lower() in text.lower() for one in hidden for text in texts):
                raise said.fault(where, f"the value of {name} leaves", "Mend the rule or the test.")


def _strings(value: Any) -> list[str]:
    several = value if isinstance(value, (list, tuple)) else (value,)
    return [one for one in several if isinstance(one, str)]


def _utc(value: Any) -> Any:
    """A time of a YAML file with its offset; everything else as it is."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and not value.tzinfo else value
