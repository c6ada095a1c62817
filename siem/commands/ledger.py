"""`cityward ledger`: what was sent to the city, and proof of it."""

from __future__ import annotations

import sys
from typing import Any

from siem import output as streams
from siem.commands.common import ConfigFile, Output, settings_with_state, span
from siem.commands.person import opened
from siem.node import now_utc
from siem.sharing.identity import Identity
from siem.sharing.ledger import as_document, compared, exported, prove
from siem.sharing.wire import ACCESS, MIRROR, Held

COLUMNS = ("seq", "sent", "type", "state", "rule", "approvers", "fields", "share")
ACCESS_COLUMNS = ("day", "person", "reads", "shares", "first", "last")


def search(
    *words: str,
    since: str = "",
    until: str = "",
    limit: int = 200,
    config: ConfigFile = None,
    output: Output = None,
) -> int:
    """List what was sent, newest first, with the rule that let it out and the names that left.

    Example: cityward ledger search withdraw --since 7d

    Args:
        words: Only what holds all of these: a share id, a token, a rule, a person, a type.
        since: Only what was sent since then: 24h, 7d or a time.
        until: Only what was sent before then.
        limit: So many at most.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    wanted = span(since, until, now_utc())
    with opened(config) as db:
        rows = [as_document(one) for one in db.outgoing.ledger(" ".join(words), wanted, limit)]
    form = streams.form_for(output, sys.stdout)
    if form == "table":
        rows = [row | {"fields": len(row["fields"])} for row in rows]
    streams.write(rows, form, COLUMNS)
    return 0


def verify(*, config: ConfigFile = None) -> int:
    """Prove that everything sent stands here as it was sent, and that the hub took it.

    Each record is looked at: its place, its bytes, its signature, its receipt. Leaves with 3 if one
    does not fit, and names the first.
    Example: cityward ledger verify

    Args:
        config: Settings file; otherwise the first one found counts.
    """
    settings = settings_with_state(config)
    identity = Identity(settings.state_path)
    hubs = identity.hub().keys if identity.has_joined else {}
    with opened(config) as db:
        proof = prove(db.outgoing, settings.operator, identity.own_keys(), hubs)
    print(f"records    {proof.lines}")
    print(f"receipted  {proof.receipted}")
    if proof.lost:
        print(f"lost       {proof.lost} with an older state")
    if proof.refused:
        print(f"refused    {proof.refused} by the hub, for good; others have their numbers")
    print(f"head       {proof.head or '-'}")
    print(f"state      {proof.fault or 'whole'}")
    if proof.fault:
        print("Keep a copy of the state folder before anything else.", file=sys.stderr)
    return 3 if proof.fault else 0


def mirror(*, config: ConfigFile = None, output: Output = None) -> int:
    """Ask the hub what it holds of this operator, and compare it with the ledger.

    Leaves with 3 if they differ.
    Example: cityward ledger mirror

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    from siem.sharing.link import listed

    held = listed(Identity(settings_with_state(config).state_path), MIRROR, Held)
    with opened(config) as db:
        rows = list(compared(db.outgoing, held))
    streams.write(rows, streams.form_for(output, sys.stdout), ("share", "what"))
    print(f"{len(held):,} shares are at the hub, {len(rows):,} differ.", file=sys.stderr)
    return 3 if rows else 0


def access(*, config: ConfigFile = None, output: Output = None) -> int:
    """Ask the hub who read what this operator shared, by day.

    Example: cityward ledger access

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    from siem.sharing.link import listed

    rows = listed(Identity(settings_with_state(config).state_path), ACCESS, dict[str, Any])
    streams.write(rows, streams.form_for(output, sys.stdout), ACCESS_COLUMNS)
    if not rows:
        print("Nobody has read anything yet.", file=sys.stderr)
    return 0


def export(*, config: ConfigFile = None, output: Output = None) -> int:
    """Write everything that was sent, with signatures and receipts, the oldest first.

    Example: cityward ledger export

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    with opened(config) as db:
        streams.write(exported(db.outgoing), streams.form_for(output, sys.stdout), COLUMNS)
    return 0
