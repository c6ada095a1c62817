"""`cityward share`: what may leave this operator, what would, and how it is taken back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, validators
from msgspec import to_builtins

from cityward import ConfigError, InputError
from siem import assembly, leaving
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import (
    ConfigFile,
    Output,
    UsageError,
    settings_of,
    settings_with_state,
    span,
    who,
)
from siem.config import Settings
from siem.node import now_utc
from siem.register import known
from siem.sharing import preview as previews
from siem.sharing.certificates import write_secret
from siem.sharing.identity import Identity
from siem.sharing.inbox import COLUMNS as INBOX_COLUMNS
from siem.sharing.inbox import newest, told_row
from siem.sharing.policy import Policy, example_for
from siem.sharing.readers import readers as asked_readers
from siem.sharing.tokens import fingerprint, new_root, root_of, root_text
from siem.sharing.wire import Reason
from siem.store.embedded import NodeDb
from siem.store.outgoing import TERMINAL, Waiting
from siem.store.protocol import Document, Range

FINDINGS_MAX = 10_000
"""So many findings are looked at, the newest."""
CELL_MAX = 60
"""Longest value in a table; programs get all of it."""

RULE_COLUMNS = ("rule", "audiences", "tlp", "pap", "approval", "time", "fields")
TOLD_COLUMNS = ("audience", "findings", "rules", "fields")
STEP_COLUMNS = ("field", "kept here", "transform", "leaves as", "leaves")
DIFFERENCE_COLUMNS = ("title", "before", "after", "more", "less", "id")
READER_COLUMNS = ("day", "person", "reads", "shares", "first", "last")
WAITING_COLUMNS = ("share_id", "rule", "offered", "yes", "state", "finding")

Given = Annotated[Path, Parameter(validator=validators.Path(exists=True, dir_okay=False))]
Switch = Annotated[bool, Parameter(negative=())]


def example(file: Path | None = None, *, config: ConfigFile = None) -> int:
    """Write a sharing policy with comments, to begin with.

    Example: cityward share example policy.yml

    Args:
        file: Where to; otherwise it is printed.
        config: Settings file; otherwise the first one found counts.
    """
    settings, _ = settings_of(config)
    text = example_for(settings.operator)
    if file is None:
        print(text, end="")
        return 0
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except OSError as error:
        todo = "Name another file."
        raise UsageError(f"not written: {error.strerror}", str(file), todo) from error
    print(f"{file} is written. Next: cityward share check {file}", file=sys.stderr)
    return 0


def check(file: Given, *, config: ConfigFile = None, output: Output = None) -> int:
    """Accept a sharing policy, or say what is wrong with it; its own tests are run.

    Example: cityward share check policy.yml

    Args:
        file: The policy.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings, _ = settings_of(config)
    policy = leaving.policy_of(settings, file=str(file))
    assert policy is not None
    rows: list[dict[str, Any]] = [
        {
            "rule": rule.name,
            "audiences": rule.audiences,
            "tlp": rule.tlp,
            "pap": rule.pap,
            "approval": rule.approval,
            "time": rule.time.total_seconds(),
            "fields": [f"{way.field}: {way.transform}" for way in rule.ways],
        }
        for rule in policy.rules
    ]
    form = streams.form_for(output, sys.stdout)
    if form == "table":
        rows = [
            row | {"fields": len(row["fields"]), "time": f"{row['time']:.0f} s"} for row in rows
        ]
    streams.write(rows, form, RULE_COLUMNS)
    tested = f"{policy.tested} {'test' if policy.tested == 1 else 'tests'} passed"
    print(f"{file} is accepted, {tested}; policy {policy.hash[:12]}", file=sys.stderr)
    for line in warnings_of(policy):
        print(line, file=sys.stderr)
    return 0


def preview(
    *,
    since: str = "7d",
    until: str = "",
    audience: str = "",
    finding: str = "",
    policy: str = "",
    against: str = "",
    config: ConfigFile = None,
    output: Output = None,
) -> int:
    """Show what would leave of the findings here: the very documents, beside what stays.

    Example: cityward share preview --since 7d --policy policy.yml

    Args:
        since: Findings last seen since then: 24h, 7d, a date.
        until: … and before then.
        audience: Only what this one would be told.
        finding: Only this one, by its id or the begin of it.
        policy: Another policy than the one in force.
        against: Show what that other policy lets out more and less than this one; `deployed` is the
            one in force.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings = settings_with_state(config)
    now = now_utc()
    form = streams.form_for(output, sys.stdout)
    with _opened(settings) as db:
        documents = _documents(db, span(since, until, now), finding)
        assets = known(settings, db.inventory.assets())
    chosen = leaving.policy_of(settings, assets, file=policy or None)
    shown = list(previews.preview(chosen, documents, now))
    if against:
        other = leaving.policy_of(settings, assets, file=None if against == "deployed" else against)
        before = previews.preview(other, documents, now)
        return _say_difference(previews.difference(before, shown), form)
    if form != "table":
        streams.write(map(previews.row, previews.for_audience(shown, audience)), form, ())
        return 0
    return _say_preview(shown, audience, chosen, whole=bool(finding))


def join_key(
    action: Literal["new", "show", "import"],
    *,
    from_file: Given | None = None,
    from_env: str = "",
    replace: Switch = False,
    config: ConfigFile = None,
) -> int:
    """Make, show or import the root of the join tokens, which operators hand over by themselves.

    Example: cityward share join-key new

    Args:
        action: new makes one, show prints it for another operator to import, import takes one
            from a file or a variable, never from the command line.
        from_file: import: the file that holds it.
        from_env: import: the variable of the environment that holds it.
        replace: In place of the one that is there; what was shared before joins no more.
        config: Settings file; otherwise the first one found counts.
    """
    settings, origin = settings_of(config)
    if action == "show":
        root = leaving.join_root(settings)
        if root is None:
            todo = "Make one, or import that of another operator."
            raise ConfigError("no join key is set", str(leaving.join_key_path(settings)), todo)
        print(root_text(root))
    else:
        if settings.sharing.join_key_env:
            what = f"the settings take it from the variable {settings.sharing.join_key_env}"
            raise ConfigError(what, origin, "Set that variable, or name a join_key_file.")
        root = new_root() if action == "new" else _imported(from_file, from_env)
        path = leaving.join_key_path(settings)
        if path.exists() and not replace:
            what = "there is a join key already"
            raise UsageError(what, str(path), "--replace puts this one in its place.")
        write_secret(path, root_text(root).encode() + b"\n")
        print(f"The join key is in {path}.", file=sys.stderr)
    print(f"Compare aloud: {fingerprint(root)}", file=sys.stderr)
    return 0


def withdraw(
    id: str = "",
    *,
    reason: Reason,
    rule: str = "",
    token: str = "",
    since: str = "",
    until: str = "",
    note: str = "",
    config: ConfigFile = None,
    output: Output = None,
) -> int:
    """Take back what was shared, for good: by id, rule, token or time; what is named must all hold.

    Example: cityward share withdraw --rule external-attackers --reason error

    Args:
        id: The share.
        reason: error, false_positive, consent, legal or expired.
        rule: What this rule of the policy let out.
        token: What holds this token: j:…, p:…, l:….
        since: What was sent since then: 24h, 7d, a date.
        until: … and before then.
        note: In words, for the hub.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings = settings_with_state(config)
    if not (id or rule or token or since or until):
        what = "nothing says what is taken back"
        raise UsageError(what, "withdraw", "Name an id, --rule, --token or --since.")
    now = now_utc()
    sent = span(since, until, now) if since or until else None
    with _opened(settings) as db:
        gone = db.outgoing.withdraw(
            who(), reason, now, note=note, share_id=id, rule=rule, token=token, sent=sent
        )
    if id and not gone:
        todo = "cityward ledger search names what was shared."
        raise InputError(f"{id!r} is not shared", "ID", todo)
    streams.write(
        [{"share_id": one} for one in gone], streams.form_for(output, sys.stdout), ("share_id",)
    )
    shares = "share is" if len(gone) == 1 else "shares are"
    said = f"{len(gone):,} {shares} taken back; the ledger has the receipts."
    print(
        said if gone else "Nothing that is shared is meant; nothing was taken back.",
        file=sys.stderr,
    )
    return 0


def inbox(*, everything: Switch = False, config: ConfigFile = None, output: Output = None) -> int:
    """List what the city told us: campaigns that our shares are part of.

    Example: cityward share inbox

    Args:
        everything: Every message, not only the newest word on each campaign.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    with _opened(settings_with_state(config)) as db:
        rows = [told_row(one) for one in db.outgoing.inbox(1_000)]
    rows = rows if everything else newest(rows)
    streams.write(rows, streams.form_for(output, sys.stdout), INBOX_COLUMNS)
    if not rows:
        print("The city has told us nothing yet.", file=sys.stderr)
    return 0


def readers(*, config: ConfigFile = None, output: Output = None) -> int:
    """List who at the hub read what we shared: by day, person, and how often. The hub is asked.

    Example: cityward share readers

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    rows = [
        to_builtins(one) for one in asked_readers(Identity(settings_with_state(config).state_path))
    ]
    streams.write(rows, streams.form_for(output, sys.stdout), READER_COLUMNS)
    if not rows:
        print("Nobody at the hub has read what we shared.", file=sys.stderr)
    return 0


def approve(
    id: str = "",
    *,
    refuse: Switch = False,
    reason: str = "",
    config: ConfigFile = None,
    output: Output = None,
) -> int:
    """Say yes or no to what waits for a person before it leaves; without an id list it.

    Where a rule wants two persons, only who signed in to the console counts.
    Example: cityward share approve

    Args:
        id: The share.
        refuse: Say no: it stays here as long as policy and rule are the same.
        reason: Why; it stands in the audit trail.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings = settings_with_state(config)
    with _opened(settings) as db:
        if id:
            if not reason:
                todo = "Say why, in a sentence."
                raise UsageError("a decision needs its reason", "--reason", todo)
            now = now_utc()
            if not db.outgoing.approve(id, who() + TERMINAL, now, yes=not refuse):
                todo = "cityward share approve lists what waits."
                raise UsageError(f"nothing waits under {id}", "id", todo)
            db.audit(who(), "sharing: reason", f"{id}: {reason}", now)
        rows = [_waiting_row(db, one) for one in db.outgoing.waiting("approval")]
    streams.write(rows, streams.form_for(output, sys.stdout), WAITING_COLUMNS)
    if not rows:
        print("Nothing waits for a person.", file=sys.stderr)
    return 0


def warnings_of(policy: Policy) -> Iterator[str]:
    """Why values that a policy joins stay here all the same."""
    if not any(way.transform == "join" for rule in policy.rules for way in rule.ways):
        return
    if policy.tokens.joiner is None:
        yield "No join key is set, so what is to be joined stays: cityward share join-key."
    if policy.plan.is_empty:
        yield (
            "No network is named as ours, so no address is known to be external and what is to be"
            " joined stays: add [[zone]] or sharing.own_networks to the settings."
        )


def _waiting_row(db: NodeDb, one: Waiting) -> dict[str, Any]:
    return {
        "share_id": one.share_id,
        "rule": one.rule,
        "offered": one.offered,
        "yes": db.outgoing.approvers(one.share_id, one.policy, one.rule),
        "state": one.state,
        "finding": one.finding,
    }


def _imported(file: Path | None, variable: str) -> bytes:
    if file is not None:
        return root_of(file.read_text(encoding="utf-8", errors="replace"), str(file))
    if variable:
        if not os.environ.get(variable):
            raise UsageError(f"{variable} is not set", "--from-env", "Set the variable.")
        return root_of(os.environ[variable], variable)
    raise UsageError("nothing to import", "join-key import", "Add --from-file or --from-env.")


def _documents(db: NodeDb, wanted: Range, finding: str) -> Sequence[Document]:
    rows = db.search("", wanted, "-finding.last_seen", FINDINGS_MAX).rows
    if not finding:
        return rows
    found = [row for row in rows if row["finding.id"].startswith(finding)]
    if not found:
        todo = "cityward finding list names them; --since may be too short."
        raise UsageError(f"no finding is called {finding!r}", "--finding", todo)
    return found


def _say_preview(
    shown: Sequence[previews.Shown], audience: str, policy: Policy | None, *, whole: bool
) -> int:
    """Each audience with what it would be told, then an example of each rule."""
    if policy is None:
        print("There is no policy, so nothing leaves.", file=sys.stderr)
    else:
        for line in warnings_of(policy):
            print(line, file=sys.stderr)
    told = previews.for_audience(shown, audience)
    leave = [one for one in told if one.share]
    rows = [
        {
            "audience": one.audience,
            "findings": one.findings,
            "rules": ", ".join(f"{name} {count}" for name, count in one.rules.items()),
            "fields": len(one.fields),
        }
        for one in previews.tallies(told, audience)
    ]
    streams.write(rows, "table", TOLD_COLUMNS)
    seen: set[str] = set()
    for one in told if whole else leave:
        rule = one.share.rule if one.share else ""
        if rule in seen and not whole:
            continue
        seen.add(rule)
        _say_one(one)
    print(
        f"\n{len(leave):,} of {len(shown):,} findings would leave"
        + (f" to {audience}" if audience else "")
        + "; nothing was sent.",
        file=sys.stderr,
    )
    for why, count in previews.reasons(shown).items():
        print(f"{count:,} stay: {why}.", file=sys.stderr)
    return 0


def _say_one(one: previews.Shown) -> None:
    share = one.share
    title = streams.visible(str(one.finding.get("finding.title", "")))
    if share is None:
        print(f"\n{title} ({one.id[:8]}) stays here.")
    else:
        wait = "" if share.approval == "auto" else f", waits for {share.approval.replace('_', ' ')}"
        told = ", ".join(share.audiences)
        print(
            f"\nRule {share.rule}, tlp {share.tlp}, pap {share.pap}, to {told}{wait},"
            f" until {share.expires:%Y-%m-%d}\n{title} ({one.id[:8]})"
        )
    rows = [
        {
            "field": step.field,
            "kept here": _cell(step.value),
            "transform": step.transform,
            "leaves as": step.to if step.to != step.field else "",
            "leaves": _cell(step.made),
        }
        for step in one.leaves
    ]
    rows += [
        {
            "field": step.field,
            "kept here": _cell(step.value),
            "transform": "",
            "leaves as": "",
            "leaves": f"– {step.made}",
        }
        for step in one.stays
    ]
    streams.write(rows, "table", STEP_COLUMNS)


def _cell(value: Any) -> str:
    said = streams.text(value)
    return said if len(said) <= CELL_MAX else f"{said[: CELL_MAX - 1]}…"


def _say_difference(found: Sequence[previews.Difference], form: streams.Form) -> int:
    rows = [
        {
            "id": one.id[:8] if form == "table" else one.id,
            "title": one.title,
            "before": one.before or "stays",
            "after": one.after or "stays",
            "more": one.more,
            "less": one.less,
        }
        for one in found
    ]
    streams.write(rows, form, DIFFERENCE_COLUMNS)
    if not rows:
        print("Both policies let out the same.", file=sys.stderr)
    return 3 if rows else 0


@contextmanager
def _opened(settings: Settings) -> Iterator[NodeDb]:
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        yield db
    finally:
        db.close()
