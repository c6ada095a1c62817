"""`cityward backup` and `restore`: the state of a node in one file, and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from siem import assembly
from siem import config as settings_file
from siem.assets import from_settings
from siem.commands.common import ConfigFile, settings_with_state, who
from siem.node import now_utc
from siem.output import visible
from siem.store import backup as store


def backup(
    file: Path,
    *,
    config: ConfigFile = None,
    no_secrets: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Write the state of a node into one file; the node may run meanwhile.

    The file holds events, findings, inventory, audit trail, settings and keys: keep it as safe as
    the node. It has its name when it is whole. Example: cityward backup node.tar

    Args:
        file: Where to; it must not exist.
        config: Settings file; otherwise the first one found counts.
        no_secrets: Leave out keys, accounts and tokens; for a copy that others may look into.
    """
    settings = settings_with_state(config)
    now = now_utc()
    made = store.backup(
        settings.state_path,
        settings_file.find(config),
        file,
        operator=settings.operator,
        now=now,
        secrets=not no_secrets,
    )
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    db.audit(who(), "backup made", str(file), now)
    db.close()
    size = sum(one.bytes for one in made.files)
    print(f"{file}: {len(made.files)} files, {size / 1e6:,.1f} MB", file=sys.stderr)
    return 0


def restore(file: Path, folder: Path) -> int:
    """Bring a backup back into an empty folder: its settings, and its state.

    Every file is compared with its SHA-256 before anything has its name.
    Example: cityward restore node.tar elsewhere

    Args:
        file: A file that cityward backup made.
        folder: Where to; it is made, or must be empty.
    """
    made = store.restore(file, folder)
    settings, state = folder / store.SETTINGS, (folder / "state").resolve()
    print(f"settings  {settings}" if settings.exists() else "settings  none were in the backup")
    print(f"state     {state}")
    print(f"made      {made.made:%Y-%m-%d %H:%M:%S}Z by {visible(made.operator)}")
    if not made.secrets:
        print(
            f"It has no keys and no accounts: copy operator.key and session.key into {state} before"
            " the first start, or known findings will come a second time.",
            file=sys.stderr,
        )
    said = settings_file.load(settings) if settings.exists() else None
    if said and said.state_path.resolve() != state:
        print(f'Next: set state_dir = "{state}" in {settings}, or move it there.', file=sys.stderr)
    runs = "hub" if said and said.hub else "run"
    print(f"Then: cityward doctor -c {settings}, cityward {runs} -c {settings}", file=sys.stderr)
    return 0
