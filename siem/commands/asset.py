"""`cityward asset`: what is there, what a person approves of it, and what comes from elsewhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from cityward import InputError
from siem import assembly, cmdb
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import (
    ConfigFile,
    Output,
    Quiet,
    UsageError,
    settings_with_state,
    who,
)
from siem.config import Settings
from siem.node import now_utc
from siem.output import text, visible
from siem.register import Register
from siem.store.inventory import document, matches, names_of
from siem.store.protocol import AssetRow
from siem.store.query import from_micros

COLUMNS = (
    "state",
    "id",
    "name",
    "type",
    "zone",
    "addresses",
    "speaks",
    "findings",
    "last_seen",
)
Reason = Annotated[str, Parameter(name=["--reason"])]
State = Literal["observed", "approved", "retired"]


def list_(
    *words: str,
    state: State | None = None,
    zone: str = "",
    config: ConfigFile = None,
    output: Output = None,
    quiet: Quiet = False,
) -> int:
    """List the assets of this node: those of the settings, approved ones, observed ones.

    Example: cityward asset list --state observed

    Args:
        words: Only those in which all of these words stand: an address, a type, a protocol.
        state: Only those of this state.
        zone: Only those of this zone.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
        quiet: Do not say how many there are in all, and whether the node is still learning.
    """
    with _opened(config) as (register, _):
        every = register.assets()
        numbers = register.learning()
    rows = [document(one) for one in every if matches(one, words, state=state or "", zone=zone)]
    streams.write(rows, streams.form_for(output, sys.stdout), COLUMNS)
    if not quiet:
        print(f"{len(rows):,} of {len(every):,} assets", file=sys.stderr)
        _say_learning(numbers)
    return 0


def show(id: str, *, config: ConfigFile = None, output: Output = None) -> int:
    """Show all that is known of one asset: what people said, what was seen, who changed what.

    Example: cityward asset show 192.0.2.70

    Args:
        id: Its id, its name or one of its addresses.
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    with _opened(config) as (register, _):
        row = _one(register, id)
    form = streams.form_for(output, sys.stdout)
    whole = document(row) | {
        "peers": list(row.seen.peers) if row.seen else [],
        "words": list(row.seen.words) if row.seen else [],
        "history": [dict(one) for one in row.history],
    }
    if form != "table":
        streams.write([whole], form, tuple(whole))
        return 0
    for name, value in whole.items():
        if name != "history" and value not in (None, "", [], False):
            print(f"{name.replace('_', ' '):<18} {visible(text(value))}")
    print("\nhistory")
    for line in row.history:
        why = f": {line['why']}" if line["why"] else ""
        print(visible(f"  {line['time'][:19]}Z  {line['what']} by {line['by']}{why}"))
    return 0


def approve(
    *ids: str,
    name: str | None = None,
    type: str | None = None,
    zone: str | None = None,
    site: str | None = None,
    criticality: int | None = None,
    role: Annotated[list[str] | None, Parameter(name=["--role"], negative=())] = None,
    address: Annotated[list[str] | None, Parameter(name=["--address"], negative=())] = None,
    never_touch: bool | None = None,
    reason: Reason = "",
    config: ConfigFile = None,
) -> int:
    """Approve assets, or correct what is said of approved ones; the node takes it up at once.

    Example: cityward asset approve 192.0.2.5 --role ot_writer --reason "the SCADA server"

    Args:
        ids: Ids of the assets; a new id makes a new asset.
        name: Its name as people know it.
        type: What it is: plc, rtu, hmi, camera …
        zone: The zone it is in.
        site: Where it stands.
        criticality: 1 to 5; it raises the risk of findings about it.
        role: What rules may rely on, e.g. ot_writer; once for each role.
        address: An IP or MAC address; once for each. They replace those before.
        never_touch: No playbook may act on it.
        reason: Why; kept in its history.
        config: Settings file; otherwise the first one found counts.
    """
    _named(ids)
    said: dict[str, Any] = {
        "name": name,
        "type": type,
        "zone": zone,
        "site": site,
        "criticality": criticality,
        "roles": tuple(role) if role is not None else None,
        "addresses": tuple(cmdb.address_of(a)[0] for a in address) if address else None,
        "never_touch": never_touch,
    }
    said = {field: value for field, value in said.items() if value is not None}
    with _opened(config) as (register, settings):
        zones = {one.id for one in settings.zone}
        if zone and zones and zone not in zones:
            raise UsageError(f"there is no zone {zone!r}", "--zone", ", ".join(sorted(zones)) + ".")
        # An id that is not there yet is a new asset; an address of one that is, means that one.
        named = [row.asset.id if (row := register.asset(id)) else id for id in ids]
        done = register.approve(named, who(), reason, now_utc(), **said)
    print(f"{done:,} of {len(ids):,} assets changed", file=sys.stderr)
    return 0


def retire(*ids: str, reason: Reason = "", config: ConfigFile = None) -> int:
    """Say that assets are gone; one that is seen again is marked.

    Example: cityward asset retire rtu-7 --reason "replaced by rtu-8"

    Args:
        ids: Ids of the assets.
        reason: Why; kept in its history.
        config: Settings file; otherwise the first one found counts.
    """
    _named(ids)
    with _opened(config) as (register, _):
        named = [_one(register, id).asset.id for id in ids]
        done = register.retire(named, who(), reason, now_utc())
    print(f"{done:,} of {len(ids):,} assets changed", file=sys.stderr)
    return 0


def merge(id: str, other: str, *, reason: Reason = "", config: ConfigFile = None) -> int:
    """Make two assets one: their addresses are joined, the other id stays as an alias.

    Example: cityward asset merge rtu-7 02-00-00-00-00-07 --reason "its second interface"

    Args:
        id: The asset that stays.
        other: The one that becomes a part of it.
        reason: Why; kept in its history.
        config: Settings file; otherwise the first one found counts.
    """
    with _opened(config) as (register, _):
        into, gone = _one(register, id).asset.id, _one(register, other).asset.id
        register.merge(into, gone, who(), reason, now_utc())
    print(f"{visible(gone)} is a part of {visible(into)} now", file=sys.stderr)
    return 0


def export(*, config: ConfigFile = None, output: Output = "csv") -> int:
    """Write the whole inventory, for a table or another system; `import` reads it again.

    Example: cityward asset export > assets.csv

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: csv, json, ndjson or table.
    """
    with _opened(config) as (register, _):
        rows = [document(one) for one in register.assets()]
    streams.write(rows, output or "csv", tuple(rows[0]) if rows else COLUMNS)
    return 0


def import_(
    path: str,
    *,
    map: Annotated[list[str] | None, Parameter(name=["--map"], negative=())] = None,
    yes: Annotated[bool, Parameter(name=["--yes"], negative=())] = False,
    reason: Reason = "",
    config: ConfigFile = None,
) -> int:
    """Take assets over from a CMDB (CSV) or NetBox (JSON or CSV), as approved ones.

    Without --yes it only says what would happen. What is not understood is said with its line.

    Example: cityward asset import cmdb.csv --map "Host=name" --map "Importance=criticality"

    Args:
        path: The file; - is standard input.
        map: COLUMN=FIELD for a column whose name does not say it; an empty FIELD leaves it out.
        yes: Do it.
        reason: Why; kept in the history of each asset.
        config: Settings file; otherwise the first one found counts.
    """
    mapping = dict(_mapped(one) for one in map or ())
    data = _data(path)
    with _opened(config) as (register, settings):
        read = cmdb.read(data, mapping=mapping, zones={one.id for one in settings.zone})
        told = {one.id for one in settings.asset}
        own = [one for one in read.assets if one.id not in told]
        known = {row.asset.id for row in register.assets()}
        for one in read.problems:
            print(visible(one), file=sys.stderr)
        for one in sorted({asset.id for asset in read.assets} & told):
            print(f"{visible(one)} stands in the settings file and stays so", file=sys.stderr)
        new = sum(one.id not in known for one in own)
        print(
            f"{len(read.assets):,} assets read: {new:,} new, {len(own) - new:,} known,"
            f" {len(read.assets) - len(own):,} of the settings, {read.rejected:,} left out",
            file=sys.stderr,
        )
        if not yes:
            print("Nothing is changed yet; add --yes to do it.", file=sys.stderr)
            return 7 if read.rejected else 0
        why = reason or f"import of {Path(path).name}"
        done = register.put(own, who(), why, now_utc())
    print(f"{done:,} assets changed", file=sys.stderr)
    return 7 if read.rejected else 0


@contextmanager
def _opened(config: str | None) -> Iterator[tuple[Register, Settings]]:
    settings = settings_with_state(config)
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        yield Register(db, settings), settings
    finally:
        db.close()


def _one(register: Register, named: str) -> AssetRow:
    found = register.asset(named)
    if found is None:
        near = [
            row.asset.id
            for row in register.assets()
            if any(named.lower() in name.lower() for name in names_of(row))
        ]
        hint = f"Did you mean {', '.join(near[:5])}?" if near else "cityward asset list names them."
        raise UsageError(f"there is no asset {visible(named)[:60]!r}", "ID", visible(hint))
    return found


def _named(ids: tuple[str, ...]) -> None:
    if not ids:
        raise UsageError("no asset was named", "ID", "cityward asset list names them.")


def _mapped(text: str) -> tuple[str, str]:
    column, equals, field = text.rpartition("=")
    if not equals or not re.search(r"\w", column):
        raise UsageError(f"{text!r} is no COLUMN=FIELD", "--map", 'Write --map "Host name=name".')
    return column, field


def _data(path: str) -> bytes:
    try:
        if path in ("-", "/dev/stdin"):
            data = sys.stdin.buffer.read(cmdb.BYTES_MAX + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(cmdb.BYTES_MAX + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path, "Check the path.") from error
    if len(data) > cmdb.BYTES_MAX:
        raise InputError(f"more than {cmdb.BYTES_MAX >> 20} MiB", path, "Split the file.")
    return data


def _say_learning(numbers: Any) -> None:
    if until := numbers.get("until"):
        said = f"Still learning: until {from_micros(until):%Y-%m-%d %H:%M} UTC nothing is news."
        print(said, file=sys.stderr)
    if full := numbers.get("full"):
        print(f"{full:,} sights were refused: there is no room for more assets.", file=sys.stderr)
