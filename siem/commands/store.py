"""`cityward store`: the search cluster of a node or a hub."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from cityward import ConfigError
from siem import output as streams
from siem.commands.common import ConfigFile, Output, settings_of, stopping
from siem.config import Settings
from siem.node import now_utc

if TYPE_CHECKING:
    from siem.clusters import Attached

AT_ONCE = 500
COLUMNS = ("what", "here", "there", "state")
LETTERS = ("time", "error", "reason", "index", "id")


def init(*, config: ConfigFile = None) -> int:
    """Make the cluster ready: templates, and what deletes old months where it can do that itself.

    A running node and a hub do the same by themselves; this one shows beforehand whether it works.
    Example: cityward store init

    Args:
        config: Settings file; otherwise the first one found counts.
    """
    with _attached(config) as attached:
        print(f"cluster    {attached.said.url}, {attached.cluster.health().version}")
        for line in attached.prepare():
            print(line)
    return 0


def verify(*, config: ConfigFile = None, output: Output = None) -> int:
    """Compare the cluster with what this node has: templates, every finding, how many events.

    Leaves with 3 if something is missing there. Example: cityward store verify

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    with _attached(config) as attached:
        rows = list(attached.compared(now_utc()))
    streams.write(rows, streams.form_for(output, sys.stdout), COLUMNS)
    return 3 if any(row["state"] != "ok" for row in rows) else 0


def retain(*, config: ConfigFile = None) -> int:
    """Delete whole months that are not kept any more; a running node does it every hour.

    Example: cityward store retain

    Args:
        config: Settings file; otherwise the first one found counts.
    """
    with _attached(config) as attached:
        gone = attached.retain(now_utc())
    for name in gone:
        print(name)
    print(f"{len(gone)} indices went.", file=sys.stderr)
    return 0


def replay(*, show: bool = False, config: ConfigFile = None, output: Output = None) -> int:
    """Send again what the cluster refused, once the cause is mended.

    What it refuses again is kept again; then it leaves with 7.
    Example: cityward store replay --show

    Args:
        show: Only list what was refused, and why.
        config: Settings file; otherwise the first one found counts.
        output: Form of the list: table, json, ndjson or csv; ndjson for a pipe.
    """
    if show:
        return _show(_settings(config), output)
    with _attached(config) as attached, stopping(threading.Event()) as stop:
        writer = attached.writer(stop)
        letters = attached.dead.taken()
        while some := [one.lines() for one in islice(letters, AT_ONCE)]:
            if not writer.send(some):
                print("Stopped; what was not sent is kept for the next time.", file=sys.stderr)
                return 130
    tally = writer.tally
    print(
        f"{tally.written} written, {tally.old} were there already, {tally.dead} refused again.",
        file=sys.stderr,
    )
    return 7 if tally.dead else 0


def _show(settings: Settings, output: Output) -> int:
    import msgspec

    from siem.clusters import dead_letters_of

    rows: list[dict[str, Any]] = []
    for letter in dead_letters_of(settings):
        (where,) = msgspec.json.decode(letter.action).values()
        said = {"time": letter.time, "error": letter.error, "reason": letter.reason}
        rows.append({**said, "index": where["_index"], "id": where["_id"]})
    streams.write(rows, streams.form_for(output, sys.stdout), LETTERS)
    print(f"{len(rows)} documents were refused.", file=sys.stderr)
    return 0


@contextmanager
def _attached(named: str | None) -> Iterator[Attached]:
    from siem.clusters import attach

    attached = attach(_settings(named))
    try:
        yield attached
    finally:
        attached.close()


def _settings(named: str | None) -> Settings:
    settings, origin = settings_of(named)
    if settings.cluster is None:
        raise ConfigError(
            "there is no cluster",
            f"[cluster] ({origin})",
            "Name one in the settings: docs/opensearch.md.",
        )
    return settings
