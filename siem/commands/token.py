"""`cityward token`: tokens with which programs ask the console of this node."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import Parameter

from cityward import InputError
from siem import output as streams
from siem.commands.common import ConfigFile, Output, who
from siem.commands.person import opened
from siem.node import now_utc

COLUMNS = ("id", "name", "person", "scopes", "created", "expires", "used", "revoked")
Scope = Literal["read", "triage", "respond", "tune", "admin"]


def list_(*, config: ConfigFile = None, output: Output = None) -> int:
    """List the tokens of programs: whose, what for, what they open, when they were used last.

    Example: cityward token list

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    from siem.console.people import token_document

    with opened(config) as db:
        rows = [token_document(one) for one in db.accounts.tokens()]
    streams.write(rows, streams.form_for(output, sys.stdout), COLUMNS)
    return 0


def add(
    name: str,
    *,
    person: str,
    scope: Annotated[list[Scope] | None, Parameter(name=["--scope"], negative=())] = None,
    days: int = 90,
    config: ConfigFile = None,
) -> int:
    """Make a token for a program; it is printed this once, only its hash is kept.

    Example: cityward token add "ticket desk" --person ada --scope read --scope triage

    Args:
        name: What it is for.
        person: Whose rights it has, as far as its scopes go.
        scope: read, triage, respond, tune (assets and rules) or admin (people, tokens, audit
            trail); once for each, read if none is given.
        days: After so many days it ends; 0: not by itself.
        config: Settings file; otherwise the first one found counts.
    """
    from siem.console.people import expiry, hash_of, made_token

    now = now_utc()
    expires = expiry(str(days) if days else "", now)
    secret, token = made_token(person, name, tuple(dict.fromkeys(scope or ("read",))), expires)
    with opened(config) as db:
        db.accounts.add_token(hash_of(secret), token, who(), now)
    print(secret)
    said = f"It is shown this once; its id is {token.id}. Send it as Authorization: Bearer …"
    print(said, file=sys.stderr)
    return 0


def revoke(id: str, *, config: ConfigFile = None) -> int:
    """Make a token worthless at once.

    Example: cityward token revoke 1f0c2a9b7d3e

    Args:
        id: Its id, as cityward token list shows it.
        config: Settings file; otherwise the first one found counts.
    """
    with opened(config) as db:
        done = db.accounts.revoke(id, who(), now_utc())
    if not done:
        what = f"no token that still opens something has the id {id[:40]!r}"
        raise InputError(what, "id", "See cityward token list.")
    print("It opens nothing any more.", file=sys.stderr)
    return 0
