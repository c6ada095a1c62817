"""Conformance suites of other projects, read from their archives."""

from __future__ import annotations

import re
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

_EXPECTED = re.compile(
    r'results\["s01-parse"\]\["[^"]+"\]\[(\d+)\]\.(?:Success == (true|false)'
    r'|Evt\.(?:Parsed|Meta)\["([^"]+)"\] == "((?:[^"\\]|\\.)*)")'
)


@lru_cache(maxsize=4)
def _texts(archive: Path) -> dict[str, str]:
    """Every file of an archive, read in one go: opening it anew for each case takes minutes."""
    found = {}
    with tarfile.open(archive) as tar:
        for one in tar:
            if one.isfile() and (opened := tar.extractfile(one)) is not None:
                found[one.name] = opened.read().decode("utf-8", "backslashreplace")
    return found


def member(archive: Path, name: str) -> str:
    """Text of one file of an archive."""
    return next(text for one, text in _texts(archive).items() if f"/{one}".endswith(f"/{name}"))


def members(archive: Path) -> list[str]:
    """Names of the files of an archive."""
    return list(_texts(archive))


def crowdsec(archive: Path, case: str) -> tuple[list[bytes], list[dict[str, str]]]:
    """Lines of a CrowdSec case and what its parser must find in each; `ok` says if it must."""
    log = next(name for name in members(archive) if re.search(rf"(?:^|/){case}/[^/]*\.log$", name))
    lines = [line.encode() for line in member(archive, log).split("\n") if line.strip()]
    expected: list[dict[str, str]] = [{} for _ in lines]
    for number, ok, name, value in _EXPECTED.findall(member(archive, f"{case}/parser.assert")):
        expected[int(number)].update({"ok": ok} if ok else {name: value})
    return lines, expected


_SAID = re.compile(
    r'results\["s0\d-[a-z]+"\]\["([^"]+)"\]\[(\d+)\]\.(?:Success == (true|false)'
    r'|Evt\.(?:Parsed|Meta)\["([^"]+)"\] == "((?:[^"\\]|\\.)*)")'
)


def crowdsec_parsed(
    archive: Path, case: str, parser: str = ""
) -> tuple[list[bytes], list[dict[str, str]]]:
    """Lines of a case and what all its parsers say of each, with escapes taken back.

    Lines that its own parser (`parser`, else the last that is no enrichment) does not count, such
    as comments, are counted as it does.
    """
    log = next(name for name in members(archive) if re.search(rf"(?:^|/){case}/[^/]*\.log$", name))
    lines = [line.encode() for line in member(archive, log).split("\n") if line.strip()]
    expected: list[dict[str, str]] = [{} for _ in lines]
    for who, number, ok, name, value in _SAID.findall(member(archive, f"{case}/parser.assert")):
        if int(number) >= len(lines) or (parser and parser not in who):
            continue
        said = {"ok": ok} if ok else {name: re.sub(r"\\(.)", r"\1", value)}
        expected[int(number)].update(said)
    return lines, expected


def wazuh(archive: Path, word: str) -> list[bytes]:
    """Every log line of the Wazuh cases that contains a word."""
    lines = []
    for name in members(archive):
        if name.endswith(".ini"):
            found = re.findall(r"(?m)^log \d+ (?:pass|fail) = (.*)$", member(archive, name))
            lines += [line.encode() for line in found if word in line]
    return lines


class WazuhCase(NamedTuple):
    """One log line and what Wazuh makes of it."""

    line: bytes
    rule: str
    level: int
    decoder: str


def wazuh_cases(archive: Path, file: str) -> list[WazuhCase]:
    """The lines of one `.ini` file that must match, with the rule and decoder below them."""
    found = []
    for part in re.split(r"(?m)^\[", member(archive, file)):
        said = dict(re.findall(r"(?m)^(rule|alert|decoder) *= *(\S+)", part))
        for line in re.findall(r"(?m)^log \d+ pass *= *(.*)$", part):
            case = WazuhCase(line.encode(), said["rule"], int(said["alert"]), said["decoder"])
            found.append(case)
    return found
