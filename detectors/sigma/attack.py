"""ATT&CK tags of rules: which technique and tactic they mean, in version 19.

References:
    MITRE ATT&CK for ICS and Enterprise, v19.1; the table is made by `scripts/attack-table`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import msgspec

TABLE = Path(__file__).parent / "data" / "attack.json"
FRAMEWORKS = ("attack-ics", "attack-enterprise")

_TECHNIQUE = re.compile(r"t\d{4}(\.\d{3})?")
_OTHER = re.compile(r"[gsmc]\d{4}|ds\d{4}|det\d{4}")
"""Groups, software, mitigations, campaigns, data sources: tags, but no technique."""


class Framework(msgspec.Struct, frozen=True):
    """One of MITRE's matrices."""

    version: str
    techniques: dict[str, tuple[str, ...]]
    """Id to name and the short names of its tactics."""
    tactics: dict[str, tuple[str, str]]
    """Short name to id and name."""
    replaced: dict[str, str]
    """Id of an older version to the one that stands for it now."""


class Meaning(msgspec.Struct, frozen=True):
    """What the ATT&CK tags of a rule say."""

    techniques: tuple[str, ...] = ()
    """Ids as written, in version 19: `T1692.001`."""
    tactics: tuple[str, ...] = ()
    """Ids: `TA0106`. Those named, else those of the techniques."""
    framework: str = ""
    unknown: tuple[str, ...] = ()
    """Tags that begin with `attack.` and mean nothing in the table."""


@cache
def table() -> Mapping[str, Framework]:
    """Both frameworks by name."""
    raw = msgspec.json.decode(TABLE.read_bytes())
    return {name: msgspec.convert(raw[name], Framework) for name in FRAMEWORKS}


def read_tags(tags: Iterable[str]) -> Meaning:
    """Sort out the tags of a rule; ids of version 18 and before are put into version 19."""
    words = [tag[7:].lower() for tag in tags if tag.lower().startswith("attack.")]
    techniques = [_current(word.upper()) for word in words if _TECHNIQUE.fullmatch(word)]
    named = [word.replace("_", "-") for word in words if not _TECHNIQUE.fullmatch(word)]
    framework = _framework_of(techniques, named)
    if not framework:
        return Meaning(unknown=tuple(word for word in words if not _OTHER.fullmatch(word)))
    ours = table()[framework]
    tactics = [word for word in named if word in ours.tactics]
    if not tactics:
        tactics = [short for one in techniques for short in ours.techniques.get(one, ("",))[1:]]
    unknown = [one for one in techniques if not technique_name(one)]
    unknown += [
        word
        for word in named
        if not _OTHER.fullmatch(word) and not any(word in one.tactics for one in table().values())
    ]
    return Meaning(
        tuple(dict.fromkeys(techniques)),
        tuple(dict.fromkeys(ours.tactics[short][0] for short in tactics)),
        framework,
        tuple(unknown),
    )


def technique_name(technique: str) -> str:
    """Name of a technique; empty if the table does not have it."""
    for framework in table().values():
        if technique in framework.techniques:
            return framework.techniques[technique][0]
    return ""


def _current(technique: str) -> str:
    for framework in table().values():
        if technique in framework.replaced:
            return framework.replaced[technique]
    return technique


def _framework_of(techniques: list[str], tactics: list[str]) -> str:
    """The framework of the first technique, else the one that knows the tactics."""
    for technique in techniques:
        for name, framework in table().items():
            if technique in framework.techniques:
                return name
    for name in reversed(FRAMEWORKS):
        if any(tactic in table()[name].tactics for tactic in tactics):
            return name
    return ""
