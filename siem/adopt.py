"""Rules of others: what of a folder can speak here, and what would have to be sent for the rest.

Nothing is copied: a folder is named in the settings, and its rules keep their authors and licence.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

import msgspec

from cityward import ConfigError, LogSource, RuleError, plugin
from cityward.fields import FIELDS
from collectors.logs import windows
from detectors.sigma.correlation import bases_of
from detectors.sigma.load import load_folder
from detectors.sigma.matchers import Placeholders
from detectors.sigma.native import OURS
from detectors.sigma.rule import Absence, Correlation, Rule, RuleSet, Speaking
from siem.config import Settings

State = Literal["can speak", "no source", "not read", "no such field", "needs a list"]

ANY = "*"
"""Part of a log source that follows from what the device says."""
SENT: Mapping[str, tuple[LogSource, ...]] = {
    "windows": (
        *(
            LogSource(category=one, product="windows")
            for one in {
                *windows.SYSMON.values(),
                *windows.REGISTRY.values(),
                *windows.CATEGORIES.values(),
            }
        ),
        *(LogSource(product="windows", service=one) for one in windows.SERVICES.values()),
    ),
    "zeek": (
        LogSource(product="zeek", service=ANY),
        LogSource(category="flow", product="zeek", service="conn"),
    ),
    "web-access": (LogSource("webserver", "nginx", ANY), LogSource("webserver", "apache", ANY)),
    "suricata": (LogSource(ANY, "suricata", ANY),),
    "cisco": (LogSource(ANY, "cisco", ANY), LogSource("firewall", "", "")),
    "fortigate": (LogSource(ANY, "fortigate", ANY), LogSource("firewall", "", "")),
    "paloalto": (LogSource(ANY, "paloalto", ANY), LogSource("firewall", "", "")),
    "mikrotik": (LogSource(ANY, "mikrotik", ANY), LogSource("firewall", "", "")),
    "cef": (LogSource("firewall", "", "cef"),),
}
"""What a collector makes beside the log source it is registered with."""
NATIVE = frozenset(SENT) | {"leef", "opencanary", "wazuh", "pf"}
"""Collectors that keep the names of the source beside ours, so that any name may be there."""
BY_SYSLOG = frozenset({"sshd", "netfilter", "cisco", "fortigate", "paloalto", "mikrotik", "pf"})
"""What the collector `syslog` hands on to."""
PACKETS = frozenset({"capture", "interface"})
"""Readers of packets."""


class Verdict(msgspec.Struct, frozen=True):
    """What would become of one rule here."""

    rule: Speaking
    logsource: str
    state: State
    why: str = ""


class Report(msgspec.Struct, frozen=True):
    """What a folder holds."""

    verdicts: tuple[Verdict, ...]
    twice: tuple[RuleError, ...]
    """Documents whose id is loaded already."""
    refused: tuple[RuleError, ...]
    licences: tuple[str, ...]
    """What the rules say of their licence, and the files that say it."""


def look_at(
    folder: Path,
    settings: Settings,
    others: Sequence[Path],
    lists: Placeholders,
    pipelines: Sequence[Path] = (),
) -> Report:
    """Load a folder beside the rules that run here, and judge each of its rules.

    Args:
        folder: A file or folder of Sigma documents.
        settings: Whose sources count as configured.
        others: Folders that are loaded already.
        lists: The placeholders that inventory and settings give.
        pipelines: What puts rules of others in our words.
    """
    rules = load_folder(*others, folder, pipelines=pipelines)
    mine = [one for one in rules.speaking() if _is_below(Path(one.document.file), folder)]
    theirs = (folder, *pipelines)
    faults = [one for one in rules.refused if any(_is_below(_file_of(one), p) for p in theirs)]
    twice = [one for one in faults if one.what.startswith("id ")]
    return Report(
        tuple(_verdicts(mine, rules, senders(), configured(settings), lists)),
        tuple(twice),
        tuple(one for one in faults if one not in twice),
        tuple(_licences(folder, mine)),
    )


def _is_below(file: Path, folder: Path) -> bool:
    return file == folder or folder in file.parents


def _file_of(error: RuleError) -> Path:
    file, colon, line = error.where.rpartition(":")
    return Path(file if colon and line.isdigit() else error.where)


def senders() -> dict[str, tuple[LogSource, ...]]:
    """Every collector that is installed, with the log sources it gives."""
    found = {
        name: (part.cityward_spec.logsource, *SENT.get(name, ()))
        for name, part in plugin.load("collectors").items()
    }
    decoded = (part.cityward_spec.logsource for part in plugin.load("decoders").values())
    found["packets"] = (*found.get("packets", ()), *decoded, LogSource(category="flow"))
    return found


def configured(settings: Settings) -> frozenset[str]:
    """Collectors that a source of the settings leads to; without a name it may be any of them."""
    named = set()
    for source in settings.source:
        if source.reader in PACKETS:
            named.add("packets")
        elif source.collector:
            named.add(source.collector)
        elif source.reader.startswith("syslog"):
            named.add("syslog")
        else:
            return frozenset(plugin.load("collectors"))
    return frozenset(named | (BY_SYSLOG if "syslog" in named else set()))


# ---- One rule


def _verdicts(
    mine: Sequence[Speaking],
    rules: RuleSet,
    given: Mapping[str, tuple[LogSource, ...]],
    here: frozenset[str],
    lists: Placeholders,
) -> Iterator[Verdict]:
    judged = {rule.id: _of_rule(rule, given, here, lists) for rule in rules.rules}
    every: list[Correlation | Absence] = [*rules.correlations, *rules.absences]
    built = {one.id: one for one in every}
    order = TopologicalSorter({one.id: bases_of(one) for one in every}).static_order()
    for name in order:
        if name in built:
            bases = [judged[base] for base in bases_of(built[name])]
            judged[name] = _of_bases(built[name], bases)
    yield from (judged[one.id] for one in mine)


def _of_bases(one: Correlation | Absence, bases: Sequence[Verdict]) -> Verdict:
    lacking = [base for base in bases if base.state != "can speak"]
    worst = lacking[0] if lacking else bases[0]
    return Verdict(one, worst.logsource, worst.state, worst.why)


def _of_rule(
    rule: Rule,
    given: Mapping[str, tuple[LogSource, ...]],
    here: frozenset[str],
    lists: Placeholders,
) -> Verdict:
    who = sorted(
        name for name, each in given.items() if any(_gives(one, rule.logsource) for one in each)
    )
    source = str(rule.logsource)
    if not who:
        return Verdict(rule, source, "not read", "no collector reads it")
    if not NATIVE.intersection(who) and (strange := _strange(rule)):
        return Verdict(rule, source, "no such field", ", ".join(strange))
    if not here.intersection(who):
        return Verdict(rule, source, "no source", f"a source for {' or '.join(who)}")
    if lacking := sorted(rule.needs - lists.keys()):
        return Verdict(rule, source, "needs a list", ", ".join(f"%{one}%" for one in lacking))
    return Verdict(rule, source, "can speak")


def _gives(given: LogSource, wanted: LogSource) -> bool:
    """True if events of `given` reach rules for `wanted`; one part at least is the very same."""
    pairs = [
        (part, has)
        for part, has in (
            (wanted.category, given.category),
            (wanted.product, given.product),
            (wanted.service, given.service),
        )
        if part
    ]
    return all(has in (part, ANY) for part, has in pairs) and any(p == has for p, has in pairs)


def _strange(rule: Rule) -> list[str]:
    return sorted(
        name
        for name in rule.detection.fields()
        if name not in FIELDS and name not in OURS and not name.startswith("cw.vendor.")
    )


# ---- The whole folder


def by_logsource(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """A row a log source, the most rules first: how many can speak, and what the others want."""
    rows: dict[str, Counter[tuple[str, str]]] = {}
    for one in verdicts:
        rows.setdefault(one.logsource, Counter())[one.state, one.why] += 1
    return [
        {
            "logsource": logsource,
            "rules": counts.total(),
            "speak": counts["can speak", ""],
            "needs": "; ".join(_wants(counts)),
        }
        for logsource, counts in sorted(rows.items(), key=lambda row: (-row[1].total(), row[0]))
    ]


def _wants(counts: Counter[tuple[str, str]]) -> Iterator[str]:
    fields = [why for state, why in counts if state == "no such field"]
    for (state, why), count in counts.most_common():
        if state == "needs a list":
            yield f"{why} ({count})"
        elif state in ("no source", "not read"):
            yield why
    if fields:
        names = sorted({name for why in fields for name in why.split(", ")})
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"fields that no event has: {', '.join(names[:3])}{more}"


def _licences(folder: Path, mine: Iterable[Speaking]) -> Iterator[str]:
    said = Counter(one.analytic.license for one in mine)
    for licence, count in said.most_common():
        yield f"{licence or 'no licence named'}: {count:,} {'rule' if count == 1 else 'rules'}"
    places = [folder, folder.parent] if folder.is_dir() else [folder.parent]
    for file in sorted(file for place in places for file in place.glob("LICEN[SC]E*")):
        yield f"{file}: {_first_line(file)}"


def _first_line(file: Path) -> str:
    with file.open("rb") as opened:
        lines = opened.read(4096).decode("utf-8", "replace").splitlines()
    return next((line.strip("# \t") for line in lines if line.strip()), "")


# ---- Into the settings


def with_folder(text: str, folder: str) -> str:
    """A settings file that names one more folder of rules; everything else as it was.

    Raises:
        ConfigError: it cannot be done without harm; a person has to write the line.
    """
    return _with_one(text, "folders", folder)


def with_pipeline(text: str, file: str) -> str:
    """A settings file that names one more pipeline, before the others; see `with_folder`."""
    return _with_one(text, "pipelines", file)


def _with_one(text: str, key: str, value: str) -> str:
    quoted = f'"{value}"'
    head = re.search(r"^\[rules\][ \t]*(?:#.*)?$", text, re.MULTILINE)
    if head is None:
        changed = f"{text.rstrip()}\n\n[rules]\n{key} = [{quoted}]\n".lstrip()
    else:
        end = re.compile(r"^\[", re.MULTILINE).search(text, head.end())
        section = text[head.end() : end.start() if end else None]
        here, found = re.subn(
            rf"^({key}\s*=\s*\[)\s*(\]?)",
            lambda seen: f"{seen[1]}{quoted}{seen[2] or ', '}",
            section,
            count=1,
            flags=re.MULTILINE,
        )
        here = here if found else f"\n{key} = [{quoted}]{section}"
        changed = text[: head.end()] + here + (text[end.start() :] if end else "")
    _check(text, changed, key, value)
    return changed


def _check(before: str, after: str, key: str, value: str) -> None:
    old, new = tomllib.loads(before), _parsed(after)
    rules = old.setdefault("rules", {})
    rules[key] = [value, *rules.get(key, [])]
    if new != old:
        raise ConfigError(
            "the settings are written in a way that cannot be changed without harm",
            "[rules]",
            f'Add "{value}" to `{key}` yourself.',
        )


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def write(path: Path, text: str) -> None:
    """Replace a settings file as a whole; who may read it stays as it was."""
    made, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(made, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, stat.S_IMODE(path.stat().st_mode))
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
