"""`cityward rule release` and `rule aside`: protected samples that leave, and that came."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cityward import InputError
from siem import assembly, leaving, register
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import ConfigFile, Output, UsageError, settings_with_state, who
from siem.node import now_utc
from siem.output import text, visible
from siem.store.outgoing import TERMINAL

if TYPE_CHECKING:
    from siem.releasing import Releasing
    from siem.sharing.samples import Offer

Reason = Annotated[str, Parameter(name=["--reason"])]
Switch = Annotated[bool, Parameter(negative=())]

COLUMNS = ("event", "field", "here", "leaves")


def release(
    finding: str,
    *,
    reason: Reason = "",
    yes: Switch = False,
    config: ConfigFile = None,
    output: Output = None,
) -> int:
    """Let the events of a finding that was right protect the same rule at other operators.

    Every address, name, user and host is replaced; what leaves is shown. Without --yes nothing
    does. It leaves with 6 if the sharing policy forbids it, or if the rule would not match any
    more. Take it back with cityward share withdraw.
    Example: cityward rule release 0b8f4e1c --reason "the same tool may come to others"

    Args:
        finding: Id of a finding that cityward rule protected lists, or how it begins.
        reason: Why; it stays here.
        yes: Let it out.
        config: Settings file; otherwise the first one found counts.
        output: Form of what is shown: table, json, ndjson or csv.
    """
    with _releasing(config) as releasing:
        id = _one([one.finding for one in releasing.own() if one.events], finding, "finding")
        offer = releasing.offer(id)
        streams.write(list(_rows(offer)), streams.form_for(output, sys.stdout), COLUMNS)
        if offer.why:
            _say(f"No: {offer.why}")
            return 6
        told = "under your name" if offer.is_named else "under a name that stands for you"
        _say(f"It is for all operators, {told}, for {offer.days} days.")
        if not yes:
            _say("Nothing has left; let it out with --yes.")
            return 0
        sample = releasing.release(id, offer.seen, who() + TERMINAL, reason)
        more = "; two people who signed in have to say yes first" if offer.people > 1 else ""
        _say(f"Sample {sample} is let out{more}.")
    return 0


def aside(
    sample: str = "",
    *,
    from_: Annotated[str, Parameter(name=["--from"])] = "",
    reason: Reason = "",
    back: Switch = False,
    config: ConfigFile = None,
) -> int:
    """Let a sample of another operator forbid nothing here; what we found right stays protected.

    With --from all that the operator let out and will let out.
    Example: cityward rule aside 5f1c9a02 --reason "our historian does that"

    Args:
        sample: Id of a sample that cityward rule protected lists, or how it begins.
        from_: An operator, as cityward rule protected names it; instead of a sample.
        reason: Why; it stands in the audit trail.
        back: Let it count again, or all of the operator.
        config: Settings file; otherwise the first one found counts.
    """
    if bool(sample) is bool(from_):
        what = "one of both is needed"
        raise UsageError(what, "SAMPLE or --from", "Name a sample, or an operator.")
    with _releasing(config) as releasing:
        if from_:
            return _all_aside(releasing, from_, reason, back=back)
        id = _one([one.id for one in releasing.foreign()], sample, "sample of another operator")
        if not releasing.set_aside(id, who() + TERMINAL, reason, aside=not back):
            raise InputError("it is so already", id, "See cityward rule protected.")
    _say("It counts again." if back else "It is set aside: it forbids nothing here.")
    return 0


def _all_aside(releasing: Releasing, operator: str, reason: str, *, back: bool) -> int:
    count = releasing.set_operator_aside(operator, who() + TERMINAL, reason, aside=not back)
    if count is None:
        known = ", ".join(sorted({one.operator for one in releasing.foreign()})) or "nobody"
        what = "it is so already, or nothing is of this operator"
        raise InputError(what, operator, f"There are samples of {known}.")
    said = "1 sample" if count == 1 else f"{count:,} samples"
    if back:
        _say(f"All of {operator} count again: {said}.")
    else:
        _say(f"All of {operator} are set aside: {said}, and those that come.")
    return 0


def _rows(offer: Offer) -> Iterator[dict[str, Any]]:
    from siem.sharing.samples import compared

    for number, (before, after) in enumerate(offer.events, 1):
        for one in sorted(compared(before, after), key=lambda one: one.name):
            leaves = "" if one.leaves is None else one.leaves
            yield {"event": number, "field": one.name, "here": text(one.here), "leaves": leaves}


def _one(ids: Sequence[str], begin: str, what: str) -> str:
    found = [one for one in dict.fromkeys(ids) if begin and one.startswith(begin)]
    if len(found) != 1:
        said = f"{len(found)} begin with" if found else "none is called"
        raise InputError(f"{what}: {said} {begin[:80]!r}", "ID", "See cityward rule protected.")
    return found[0]


def _say(line: str) -> None:
    print(visible(line), file=sys.stderr)


@contextmanager
def _releasing(config: str | None) -> Iterator[Releasing]:
    from siem.releasing import Releasing

    settings = settings_with_state(config)
    with closing(assembly.db_of(settings, from_settings(settings), now_utc)) as db:
        assets = register.known(settings, db.inventory.assets(merged=True))
        yield Releasing(settings, db, lambda: leaving.policy_of(settings, assets), now_utc)
