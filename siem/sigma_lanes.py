"""Lanes of a race of Sigma engines: files of JSON lines, and the rules that belong to them.

A folder `work` takes what has to be made: what is unpacked, lines with the log source that they
lack, rules whose ids are no UUIDs, and the attack in which no value comes twice.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cityward import InputError
from collectors.logs.windows import SYSMON
from detectors.sigma.jsonlines import BROKEN
from detectors.sigma.load import rule_files

HINTED = {code: SYSMON[code] for code in (*range(1, 16), *range(17, 24))}
"""Category of a Sysmon event by its number, for recordings that do not name it: those that the
data's README hints at, since the peer's counts there are of these."""
ROUTES = frozenset({"product", "category", "service", "Channel", "EventID", "Provider_Name"})
"""What an attacker leaves as it is, so that as many rules as before look at the event."""
_ID = re.compile(r"(?m)^id:\s*(\S+)\s*$")


class Lane(msgspec.Struct, frozen=True):
    """What is raced on."""

    name: str
    file: Path
    rules: Path
    """Folder of rules."""
    is_whole: bool = False
    """It has correlations: what comes again counts with what was before."""


def lanes(paths: Sequence[Path], rules: Path, work: Path, fresh: bool = False) -> Iterator[Lane]:
    """Every lane, unpacked, each with the log source in its lines.

    Args:
        paths: `.ndjson`, `.ndjson.gz`, or folders of them. A `.yml` beside a file that is called
            as it is holds its own rules: so a lane brings its correlations.
        rules: Folder of the rules for all others.
        work: Where what is made goes.
        fresh: Each a second time, with values that never come twice.
    """
    for file in _files(paths, work):
        name = file.name.removesuffix(".ndjson")
        own = file.with_suffix(".yml")
        has_own = own.is_file()
        lane = Lane(name, file, with_uuids(own, work) if has_own else rules, is_whole=has_own)
        yield lane
        if fresh:
            yield Lane(f"{name}, fresh", fresh_values(file, work), lane.rules, has_own)


def _files(paths: Sequence[Path], work: Path) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from _files(sorted(path.glob("*.ndjson*")), work)
        elif path.suffix == ".gz":
            made = work / path.name.removesuffix(".gz")
            with gzip.open(path, "rb") as packed, made.open("wb") as file:
                file.writelines(map(hinted, packed))
            yield made
        elif path.is_file():
            yield path
        else:
            raise InputError("there is no such file", str(path), "Name files of JSON lines.")


def hinted(line: bytes) -> bytes:
    """A line with `product` and `category`, if it has none and is of the Windows event log."""
    event = _read(line)
    if "product" in event or "Channel" not in event:
        return line
    event["product"] = "windows"
    if "Sysmon" in str(event["Channel"]) and (kind := HINTED.get(_number(event.get("EventID")))):
        event["category"] = kind
    return msgspec.json.encode(event) + b"\n"


def _read(line: bytes) -> dict[str, Any]:
    """What a line says; nothing if it is broken."""
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except BROKEN:
        return {}


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return -1


def fresh_values(file: Path, work: Path) -> Path:
    """The lane as an attack on every memory: no text comes twice, whatever the field.

    What routes an event stays, and so do numbers; words within a text are still found.
    """
    made = work / f"{file.name.removesuffix('.ndjson')}-fresh.ndjson"
    with file.open("rb") as lines, made.open("wb") as out:
        for number, line in enumerate(lines):
            changed = {
                name: value if name in ROUTES else _fresh(value, f" {number:x}")
                for name, value in _read(line).items()
            }
            out.write(msgspec.json.encode(changed) + b"\n" if changed else line)
    return made


def _fresh(value: Any, ending: str) -> Any:
    if isinstance(value, str):
        return value + ending
    if isinstance(value, list):
        return [_fresh(one, ending) for one in value]
    if isinstance(value, dict):
        return {name: _fresh(one, ending) for name, one in value.items()}
    return value


def with_uuids(rules: Path, work: Path) -> Path:
    """A file of rules with a UUID for each id that is none: those are refused here."""
    text = rules.read_text(encoding="utf-8")
    for id in sorted({*_ID.findall(text)}, key=len, reverse=True):
        if not _is_uuid(id):
            whole = rf"(?<![\w-]){re.escape(id)}(?![\w-])"
            text = re.sub(whole, str(uuid.uuid5(uuid.NAMESPACE_OID, id)), text)
    folder = work / f"{rules.stem}-rules"
    folder.mkdir(exist_ok=True)
    (folder / rules.name).write_text(text, encoding="utf-8")
    return folder


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def revision(rules: Path) -> str:
    """What the rules were, wherever they came from: a digest of every file and its place."""
    found = hashlib.sha256()
    for file in sorted(rule_files(rules)):
        place = str(file.relative_to(rules)) if rules.is_dir() else file.name
        found.update(f"{place}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:10]
