"""Makes the state of an older cityward, for the test that it is still opened.

    git worktree add /tmp/old 848c3e5
    cd /tmp/old && PYTHONPATH=. python …/tests/siem/states/make.py …/tests/siem/states/format_2

(848c3e5 wrote format 2; format 1 was made at 404f269 by this script as it was then.)
It writes `format_2.tar.gz` – the state of a node that died with events that were not detected yet –
and `format_2.json`: what that version itself says of it after its next start. The rule is no part
of the state: `rule.yml` beside this file.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from siem import assembly
from siem.config import Settings, parse
from siem.store.protocol import Change, Person, Range

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
HERE = Path(__file__).parent


def settings_of(state: Path, rules: Path) -> Settings:
    """Settings of the node."""
    return parse(
        {
            "state_dir": str(state),
            "operator": "op-old",
            "rules": {"shipped": False, "folders": [str(rules)]},
            "models": {"on": False},
        }
    )


def lines(minute: int) -> bytes:
    """Twelve failed logins."""
    return b"".join(
        f"2026-01-05T10:{minute:02d}:{number:02d}Z gw sshd[{number}]: Failed password for root"
        f" from 192.0.2.{number % 3 + 1} port {4_000 + number} ssh2\n".encode()
        for number in range(12)
    )


def make(state: Path, rules: Path, logs: Path) -> None:
    """A node: archived events, newer ones, and some that it died with."""
    clock = [NOW]
    paths = [logs / f"{name}.log" for name in "abc"]
    for minute, path in enumerate(paths):
        path.write_bytes(lines(minute))
    collectors = assembly.load("collectors")
    sources = [assembly.file_source(path, collectors, named="syslog") for path in paths]
    node = assembly.node_of(settings_of(state, rules), sources=sources, clock=lambda: clock[0])
    for source in sources:
        for gathered in node.collect_from(source):
            events = node.keep(gathered)
            if source is not sources[-1]:
                node.conclude(node.detect(events))
        if source is sources[0]:
            node.finish()
            clock[0] += timedelta(minutes=5)
            node.events.compact(node.events.last_batch, wait=True)
    db = node.db
    db.add_person(Person("i.vasko", ("analyst",), "$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA"))
    first = db.search("", Range()).rows[0]["finding.id"]
    change = Change(status="in_progress", assignee="i.vasko", comment="I look into it.")
    db.change([first], change, "i.vasko", clock[0])
    db.audit("i.vasko", "signed in", "192.0.2.9", clock[0])
    node.close()


def said(state: Path, rules: Path) -> dict[str, object]:
    """What a version says of the state after a start."""
    node = assembly.node_of(settings_of(state, rules), sources=[], clock=lambda: NOW)
    node.recover()
    node.finish()
    found = {
        "events": sorted(
            node.events.search("", Range(), limit=1_000).rows,
            key=lambda one: (one["cw.record.source"], one["@timestamp"]),
        ),
        "findings": sorted(
            (
                {**one, "events": len(node.db.events_of(one["finding.id"]))}
                for one in node.db.search("", Range(), limit=1_000).rows
            ),
            key=lambda one: str(one["finding.id"]),
        ),
        "audit": [[one.by, one.action, one.about] for one in node.db.audited()],
        "people": [[one.name, one.role, one.password_hash] for one in node.db.people()],
    }
    node.close()
    return msgspec.json.decode(msgspec.json.encode(found))  # type: ignore[no-any-return]


def main(target: Path) -> None:
    """Make both files."""
    with tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        make(folder / "state", HERE, folder)
        with tarfile.open(target.with_suffix(".tar.gz"), "w:gz") as tar:
            for path in sorted((folder / "state").rglob("*")):
                if path.is_file() and path.suffix not in (".lock", ".tmp"):
                    tar.add(path, path.relative_to(folder))
        shutil.copytree(folder / "state", folder / "again")
        text = msgspec.json.format(msgspec.json.encode(said(folder / "again", HERE)))
        target.with_suffix(".json").write_bytes(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
