"""`cityward person`: who may sign in to the console of this node."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec
from cyclopts import Parameter

from cityward import InputError
from siem import assembly
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import ConfigFile, Output, settings_with_state, who
from siem.node import now_utc
from siem.output import visible
from siem.store.accounts import roles_of
from siem.store.embedded import NodeDb
from siem.store.protocol import Person, Role

COLUMNS = ("name", "roles", "disabled", "one_time_password", "last_sign_in")
Roles = Annotated[list[Role] | None, Parameter(name=["--role"], negative=())]


def list_(*, config: ConfigFile = None, output: Output = None) -> int:
    """List who may sign in, with their roles, and who may not any more.

    Example: cityward person list

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    from siem.console.people import document

    with opened(config) as db:
        rows = [document(one) for one in db.people()]
    streams.write(rows, streams.form_for(output, sys.stdout), COLUMNS)
    return 0


def add(name: str, *, role: Roles = None, audience: str = "", config: ConfigFile = None) -> int:
    """Add a person; a one-time password is printed, at the first sign-in they choose their own.

    Example: cityward person add ada --role analyst --role administrator

    Args:
        name: Under which they sign in.
        role: engineer, analyst, approver or administrator, at a hub ciso, peer, authority or
            administrator; once for each. If none is given: analyst, at a hub ciso.
        audience: Of an authority: prefecture, police, civil-protection or csirt; of a peer: the
            operator it belongs to.
        config: Settings file; otherwise the first one found counts.
    """
    from siem.console.access import password_hash
    from siem.console.people import new_password

    password = new_password()
    with opened(config) as db:
        roles = roles_of(role or ("ciso" if "ciso" in db.accounts.offers else "analyst",))
        hashed = password_hash(password)
        person = Person(name, roles, hashed, one_time=True, audience=audience)
        if db.person(name) is not None:
            raise InputError(f"{name} is there already", "name", "See cityward person list.")
        action = f"person: add, {' '.join(person.roles)}"
        db.accounts.put(person, who(), action, now_utc())
    _say_password(name, password)
    return 0


def disable(name: str, *, config: ConfigFile = None) -> int:
    """Let a person in no more: their sessions and tokens end at once.

    Example: cityward person disable ada

    Args:
        name: Of the person.
        config: Settings file; otherwise the first one found counts.
    """
    with opened(config) as db:
        person = _known(db, name)
        after = msgspec.structs.replace(person, disabled=True, epoch=person.epoch + 1)
        db.accounts.put(after, who(), "person: disable", now_utc())
    print(f"{visible(name)} may not sign in any more.", file=sys.stderr)
    return 0


def enable(name: str, *, config: ConfigFile = None) -> int:
    """Let a person in again who was disabled.

    Example: cityward person enable ada

    Args:
        name: Of the person.
        config: Settings file; otherwise the first one found counts.
    """
    with opened(config) as db:
        person = _known(db, name)
        after = msgspec.structs.replace(person, disabled=False, epoch=person.epoch + 1)
        db.accounts.put(after, who(), "person: enable", now_utc())
    print(f"{visible(name)} may sign in.", file=sys.stderr)
    return 0


def reset(name: str, *, role: Roles = None, audience: str = "", config: ConfigFile = None) -> int:
    """Give a person a new one-time password, and other roles if some are named.

    It works without the console: so nobody is locked out of their own node.
    Example: cityward person reset ada

    Args:
        name: Of the person.
        role: The roles they have from now on; without it they keep theirs.
        audience: With new roles: of an authority which one, of a peer its operator.
        config: Settings file; otherwise the first one found counts.
    """
    from siem.console.access import password_hash
    from siem.console.people import new_password

    password = new_password()
    with opened(config) as db:
        person = _known(db, name)
        after = msgspec.structs.replace(
            person,
            roles=roles_of(role) if role else person.roles,
            audience=audience if role else person.audience,
            password_hash=password_hash(password),
            one_time=True,
            epoch=person.epoch + 1,
        )
        db.accounts.put(after, who(), f"person: reset, {' '.join(after.roles)}", now_utc())
    _say_password(name, password)
    return 0


def _known(db: NodeDb, name: str) -> Person:
    person = db.person(name)
    if person is None:
        raise InputError(f"nobody is called {name[:80]!r}", "name", "See cityward person list.")
    return person


def _say_password(name: str, password: str) -> None:
    print(f"account   {visible(name)}")
    print(f"password  {password}")
    print("It is shown this once, and has to be changed at the next sign-in.", file=sys.stderr)


@contextmanager
def opened(config: str | None) -> Iterator[NodeDb]:
    """The state of the node that the settings name."""
    settings = settings_with_state(config)
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        yield db
    finally:
        db.close()
