"""What a policy would let out of findings that are here: the very documents, beside what stays.

Nothing is sent and nothing is kept; the same code makes the documents that really leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from cityward.fields import PERSONAL
from siem.sharing.policy import Policy, Step
from siem.sharing.share import Share

TELLING = (".ip", ".name", ".asset_id", ".location", "finding.description", "finding.title")
"""How fields end that people look for first among what stays."""
WORDS = {
    "keep": "as it is",
    "template": "made anew of what leaves",
    "local": "a name that only we can resolve",
    "join": "tokens that join at other operators",
    "trunc": "cut to its network or registered name",
    "grid": "the middle of its grid cell",
    "round": "rounded down",
    "bucket": "lower limit of its range",
    "category": "its class",
    "drop": "nothing",
}
"""What a transform does, for a person."""


class Shown(msgspec.Struct, frozen=True):
    """One finding, and what would leave of it."""

    finding: Mapping[str, Any]
    share: Share | None
    """What leaves; None: nothing."""
    leaves: Sequence[Step]
    """Fields that leave, in which form, and what is sent beside them."""
    stays: Sequence[Step]
    """Fields that stay, and why."""

    @property
    def id(self) -> str:
        """Of the finding."""
        return str(self.finding.get("finding.id", ""))


class Difference(msgspec.Struct, frozen=True):
    """What a changed policy does to one finding."""

    id: str
    title: str
    before: str
    """Rule that lets it out now; empty: it stays."""
    after: str
    more: Sequence[str]
    """What would leave that does not now: fields with their values, audiences, a wider marking."""
    less: Sequence[str]


class Tally(msgspec.Struct, frozen=True):
    """What one audience would be told."""

    audience: str
    findings: int
    rules: Mapping[str, int]
    fields: Sequence[str]
    """Every field that it would see at least once."""


def preview(
    policy: Policy | None, documents: Iterable[Mapping[str, Any]], now: datetime
) -> Iterator[Shown]:
    """What would leave of each finding."""
    for document in documents:
        if policy is None:
            why = "there is no policy"
            steps = [Step(name, value, "", "", why) for name, value in document.items()]
            yield Shown(document, None, (), sorted(steps, key=_telling))
            continue
        share, steps = policy.trace(document, now)
        if share is not None:
            steps += _made_anew(share, steps)
        leaves = [step for step in steps if step.to]
        stays = sorted((step for step in steps if not step.to), key=_telling)
        yield Shown(document, share, leaves, stays)


def _telling(step: Step) -> tuple[bool, str]:
    """What tells most of a person or a place stands first."""
    return step.field not in PERSONAL and not step.field.endswith(TELLING), step.field


def _made_anew(share: Share, steps: Sequence[Step]) -> list[Step]:
    """What leaves without a field of its own here."""
    known = {step.to for step in steps}
    return [
        Step("", None, "keep", name, value)
        for name, value in share.payload.items()
        if name not in known
    ]


def tallies(shown: Iterable[Shown], audience: str = "") -> list[Tally]:
    """What each audience would be told, by its name."""
    told: dict[str, list[Share]] = {}
    for one in shown:
        for name in one.share.audiences if one.share else ():
            if audience in ("", name):
                told.setdefault(name, []).append(one.share)  # type: ignore[arg-type]
    found = []
    for name, shares in sorted(told.items()):
        rules: dict[str, int] = {}
        for share in shares:
            rules[share.rule] = rules.get(share.rule, 0) + 1
        fields = sorted({field for share in shares for field in share.payload})
        found.append(Tally(name, len(shares), rules, fields))
    return found


def reasons(shown: Iterable[Shown]) -> dict[str, int]:
    """Why findings stay as a whole, counted."""
    found: dict[str, int] = {}
    for one in shown:
        if one.share is None and one.stays:
            why = str(one.stays[0].made)
            found[why] = found.get(why, 0) + 1
    return found


def for_audience(shown: Iterable[Shown], audience: str) -> list[Shown]:
    """Only what an audience would be told; empty: all."""
    return [
        one
        for one in shown
        if not audience or (one.share is not None and audience in one.share.audiences)
    ]


def difference(before: Iterable[Shown], after: Iterable[Shown]) -> list[Difference]:
    """What a changed policy lets out more and less, finding by finding, without what is alike."""
    known = {one.id: one for one in before}
    found = []
    for one in after:
        had, has = _said(known.get(one.id)), _said(one)
        if had == has:
            continue
        old = known.get(one.id)
        found.append(
            Difference(
                id=one.id,
                title=str(one.finding.get("finding.title", "")),
                before=old.share.rule if old and old.share else "",
                after=one.share.rule if one.share else "",
                more=sorted(has - had),
                less=sorted(had - has),
            )
        )
    return found


def _said(shown: Shown | None) -> set[str]:
    """All that a share says, line by line."""
    share = shown.share if shown else None
    if share is None:
        return set()
    said = {f"{name}: {_text(value)}" for name, value in share.payload.items()}
    said |= {f"to {one}" for one in share.audiences}
    return said | {f"tlp {share.tlp}", f"pap {share.pap}", f"approval {share.approval}"}


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return value.isoformat() if isinstance(value, datetime) else str(value)


def row(one: Shown) -> dict[str, Any]:
    """One finding of a preview, as programs read it: the document that leaves, and what stays."""
    share = one.share
    found: dict[str, Any] = {
        "finding.id": one.id,
        "finding.title": one.finding.get("finding.title", ""),
        "finding.severity": one.finding.get("finding.severity", ""),
        "finding.last_seen": one.finding.get("finding.last_seen"),
        "rule": share.rule if share else "",
        "audiences": list(share.audiences) if share else [],
        "tlp": share.tlp if share else "",
        "pap": share.pap if share else "",
        "approval": share.approval if share else "",
        "expires": share.expires if share else None,
        "share_id": share.share_id if share else "",
        "leaves": share.payload if share else {},
        "transforms": {step.to: step.transform for step in one.leaves},
        "stays": {step.field: step.made for step in one.stays},
    }
    return found
