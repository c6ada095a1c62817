"""`cityward audit`: what people did, and whether the record of it is as it was written."""

from __future__ import annotations

import sys

from siem import output as streams
from siem.commands.common import ConfigFile, Output, span
from siem.commands.person import opened
from siem.node import now_utc

COLUMNS = ("number", "time", "person", "action", "target")


def list_(
    *words: str,
    since: str = "",
    until: str = "",
    limit: int = 200,
    config: ConfigFile = None,
    output: Output = None,
) -> int:
    """List what people did, newest first.

    Example: cityward audit list sign-in --since 24h

    Args:
        words: Only lines in which all of these words stand: a person, an action, a target.
        since: Only lines since then: 24h, 7d or a time.
        until: Only lines before then.
        limit: So many at most.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    from siem.console.audit import document

    wanted = span(since, until, now_utc())
    with opened(config) as db:
        found, total = db.trail(" ".join(words), wanted, limit)
    streams.write([document(one) for one in found], streams.form_for(output, sys.stdout), COLUMNS)
    print(f"{len(found):,} of {total:,} lines", file=sys.stderr)
    return 0


def verify(*, head: str = "", config: ConfigFile = None) -> int:
    """Prove that no line of the audit trail was changed, added or taken out.

    Leaves with 3 if one was. The hash of the last line, written down elsewhere, proves with --head
    later that nobody has brought back an older copy of the whole state.
    Example: cityward audit verify

    Args:
        head: Hash of a line that must still be there.
        config: Settings file; otherwise the first one found counts.
    """
    with opened(config) as db:
        proof = db.audit_proof()
        has = not head or db.has_line(head)
    fault = proof.fault or ("" if has else f"no line has the hash {head[:64]}")
    print(f"lines  {proof.lines}")
    print(f"head   {proof.head or '-'}")
    print(f"state  {fault or 'whole'}")
    if fault:
        print("Keep a copy of the state folder before anything else.", file=sys.stderr)
    return 3 if fault else 0
