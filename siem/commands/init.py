"""`cityward init`: a settings file, keys and a first account."""

from __future__ import annotations

import json
import re
import secrets
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from cityward import CitywardError, Unsafe
from cityward.fields import SECTORS
from siem import assembly
from siem import config as settings_file
from siem.assets import from_settings
from siem.commands.common import UsageError, who
from siem.config import NEEDED, Settings
from siem.config import Source as SourceSettings
from siem.node import now_utc
from siem.output import visible
from siem.store.accounts import roles_of
from siem.store.protocol import Person, Role

LISTEN = "127.0.0.1:5514"
_SYSLOG = re.compile(r"(syslog_udp|syslog_tcp|syslog)(?::(.+:\d{1,5}))?")

HEAD = """\
# Settings of a cityward node; docs/settings.md explains every one.
# Check it with: cityward doctor

# Stable id of the operator, part of every event; do not change it later.
operator = {operator}
name = {name}
sector = {sector}

# Everything the node keeps is in here: events, findings, accounts, keys.
state_dir = {state_dir}

[console]
# Only this machine can open the console. Before you open it to others set tls_cert and tls_key,
# or put a TLS proxy in front and set secure_cookie = true.
host = "127.0.0.1"
port = 8765

[retention]
events_days = 30
findings_days = 365
# When this is full, the oldest events go first, and are counted.
disk_quota_gb = 20.0
"""

HUB = """\
# Settings of the hub of a city; docs/settings.md explains every one.

# What the hub itself concludes is under this name.
operator = "city"
name = {name}

# Everything the hub keeps is in here: shared findings, campaigns, accounts, keys.
state_dir = {state_dir}

[console]
# Only this machine can open the console. Before you open it to others set tls_cert and tls_key,
# or put a TLS proxy in front and set secure_cookie = true.
host = "127.0.0.1"
port = 8765

[hub]
# Operators come here, over mutual TLS. Name the address that they reach, and all its names.
listen = "127.0.0.1:8443"
names = ["localhost", "127.0.0.1"]
# The services of the city and a map of its districts; docs/hub.md says how they are written.
# services = "services.yml"
# map = "districts.geojson"

# Shares stand in a file of state_dir. A city with a standby hub keeps them in a cluster:
# [cluster]
# url = "https://search.city.example:9200"
# user = "cityward"
# secret_env = "CITYWARD_CLUSTER_PASSWORD"
"""

SOURCE = """
[[source]]
id = {id}
reader = {reader}
{key} = {value}
"""

TAIL = """
# More sources: reader is one of file, folder, capture, interface, syslog_udp, syslog_tcp, udp,
# http, mqtt; docs/sources.md says how each kind of device is sent.
# [[source]]
# id = "gate-firewall"
# reader = "file"
# path = "/var/log/firewall.log"

# Zones and devices: they make findings say where, and give rules their lists.
# [[zone]]
# id = "substation-7"
# type = "control"
# networks = ["192.0.2.0/24"]
#
# [[asset]]
# id = "rtu-7"
# type = "rtu"
# addresses = ["192.0.2.17"]
# zone = "substation-7"
# criticality = 4
#
# [[asset]]
# id = "scada-1"
# addresses = ["192.0.2.5"]
# zone = "substation-7"
# roles = ["ot_writer", "iec104_master"]

# What is shared with the city: nothing without a policy; docs/sharing.md says how. Only an address
# that lies in none of your networks is external, and joined: name them here, or in the zones.
# [sharing]
# hub = "https://hub.city.example:8443"
# policy = "/etc/cityward/policy.yml"
# own_networks = ["10.0.0.0/8"]
"""


def init(
    folder: Path = Path(),
    *,
    name: str = "",
    sector: str = "",
    source: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    account: str = "",
    role: Role | None = None,
    hub: Annotated[bool, Parameter(negative=())] = False,
    tls: Annotated[bool, Parameter(negative=())] = False,
    yes: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Make a node: its settings file, its keys and a first account.

    On a terminal it asks what is not given. Example: cityward init node --yes --sector other

    Args:
        folder: Where cityward.toml and the state go; it is made if it is not there.
        name: Name of the operator as people know it.
        sector: Its sector, e.g. transport.public.
        source: What is read: a file, a folder, a capture, or syslog_udp:127.0.0.1:5514; may be
            given several times.
        account: Name of the first account; your account's name otherwise.
        role: Its role: engineer, analyst, approver or administrator, at a hub ciso or
            administrator; it administers the node or hub in any case.
        hub: Make the hub of a city instead.
        tls: Make a self-signed certificate, and serve the console over HTTPS with it.
        yes: Do not ask; take the defaults for what is not given.
    """
    path = folder / "cityward.toml"
    if path.exists() or (folder / "state" / "node.db").exists():
        raise Unsafe("there is a node already", str(path), "Name another folder; nothing changed.")
    if not yes and not sys.stdin.isatty() and not sector and not hub:
        raise UsageError("nobody is there to ask", "--sector", "Give it, or --yes for the default.")
    asked = _Questions(ask=not yes and sys.stdin.isatty())
    if hub:
        name = name or asked.text("Name of the city", folder.resolve().name)
        account = account or asked.text("Name of the first account", who())
        text = _hub_text(folder, name, tls=tls)
        return _finish(path, text, account, role or "ciso")
    name = name or asked.text("Name of the operator", folder.resolve().name)
    sector = sector or asked.one_of("Sector", SECTORS, "other")
    if sector not in SECTORS:
        raise UsageError(f"{sector!r} is no sector", "--sector", f"One of {', '.join(SECTORS)}.")
    sources = [_source(one) for one in source or asked.several("Source to read", _source)]
    account = account or asked.text("Name of the first account", who())
    text = _settings_text(folder, name, sector, sources, tls=tls)
    return _finish(path, text, account, role or "engineer")


def _finish(path: Path, text: str, account: str, role: Role) -> int:
    settings = settings_file.parse(tomllib.loads(text), str(path))
    password = _make(path, text, settings, account, role)
    _say_done(path, settings, account, password)
    return 0


class _Questions:
    """Asks on the terminal; the default where nobody is to be asked."""

    def __init__(self, *, ask: bool) -> None:
        self._ask = ask

    def text(self, question: str, default: str) -> str:
        """A line of text."""
        if not self._ask:
            return default
        print(f"{question} [{default}]: ", end="", file=sys.stderr, flush=True)
        return input().strip() or default

    def one_of(self, question: str, choices: Sequence[str], default: str) -> str:
        """One of some words, by number or by name."""
        if not self._ask:
            return default
        for number, choice in enumerate(choices, 1):
            print(f"  {number:>2}  {choice}", file=sys.stderr)
        while True:
            said = self.text(question, default)
            if said.isdigit() and 0 < int(said) <= len(choices):
                return choices[int(said) - 1]
            if said in choices:
                return said
            print(f"{visible(said)} is none of them.", file=sys.stderr)

    def several(self, question: str, check: object) -> list[str]:
        """Words until an empty line; syslog on this machine if nobody is asked."""
        if not self._ask:
            return [f"syslog_udp:{LISTEN}"]
        print("A file, a folder, a capture or syslog_udp:127.0.0.1:5514.", file=sys.stderr)
        found: list[str] = []
        while said := self.text(question, "no more"):
            if said == "no more":
                break
            try:
                made = _source(said)
            except CitywardError as error:
                print(f"{error.what}. {error.todo}", file=sys.stderr)
                continue
            print(f"  {made.id}: {made.reader}", file=sys.stderr)
            found.append(said)
        return found


def _source(said: str) -> SourceSettings:
    """A source as a person names it.

    Raises:
        UsageError: it is not there.
        InputError: no collector recognises it.
    """
    if found := _SYSLOG.fullmatch(said):
        reader = "syslog_udp" if found[1] == "syslog" else found[1]
        return msgspec.convert(
            {"id": reader.replace("_", "-"), "reader": reader, "listen": found[2] or LISTEN},
            SourceSettings,
        )
    path = Path(said).expanduser().resolve()
    id_ = re.sub(r"[^a-z0-9]+", "-", path.name.lower()).strip("-")[:64] or "source"
    if path.is_dir():
        return SourceSettings(id=id_, reader="folder", path=str(path))
    if not path.is_file():
        raise UsageError(f"{visible(said)} is not there", "--source", "Check the path.")
    from cityward.plugin import load

    known = assembly.file_source(path, load("collectors"))
    return SourceSettings(
        id=id_, reader="capture" if known.framing == "packets" else "file", path=str(path)
    )


def _settings_text(
    folder: Path, name: str, sector: str, sources: Sequence[SourceSettings], *, tls: bool
) -> str:
    operator = "op-" + (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "local")
    said = {"operator": operator, "name": name, "sector": sector}
    said["state_dir"] = str((folder / "state").resolve())
    text = HEAD.format(**{key: _quoted(value) for key, value in said.items()})
    if tls:
        text = _with_tls(text, folder)
    taken: set[str] = set()
    for one in sources:
        id_, number = one.id, 1
        while id_ in taken:
            number += 1
            id_ = f"{one.id}-{number}"
        taken.add(id_)
        key = NEEDED.get(one.reader, "path")
        text += SOURCE.format(
            id=_quoted(id_), reader=_quoted(one.reader), key=key, value=_quoted(one.where)
        )
    return text + TAIL


def _hub_text(folder: Path, name: str, *, tls: bool) -> str:
    state = str((folder / "state").resolve())
    text = HUB.format(name=_quoted(name), state_dir=_quoted(state))
    return _with_tls(text, folder) if tls else text


def _with_tls(text: str, folder: Path) -> str:
    for key, file in (("tls_key", "console.key"), ("tls_cert", "console.pem")):
        line = f"{key} = {_quoted(str((folder / 'state' / file).resolve()))}\n"
        text = text.replace("port = 8765\n", f"port = 8765\n{line}", 1)
    return text


def _quoted(value: str) -> str:
    # A basic string of TOML takes the escapes of JSON; DEL it wants escaped, JSON does not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _make(path: Path, text: str, settings: Settings, account: str, role: Role) -> str:
    """Write everything; returns the password."""
    from siem.console.access import password_hash
    from siem.tls import make_self_signed

    password = secrets.token_urlsafe(12)
    try:
        settings.state_path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for key in ("operator.key", "session.key"):
            assembly.secret_of(settings.state_path, key)
        if settings.console.tls_cert:
            make_self_signed(settings.state_path, now_utc())
        db = assembly.db_of(settings, from_settings(settings), now_utc)
        db.add_person(Person(account, roles_of((role, "administrator")), password_hash(password)))
        db.audit(who(), "hub made" if settings.hub else "node made", str(path), now_utc())
        db.close()
        if settings.hub:
            from siem.hub import make_keys

            make_keys(settings)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise Unsafe(
            f"cannot be written: {error.strerror}", str(path), "Name a folder of your own."
        ) from error
    return password


def _say_done(path: Path, settings: Settings, account: str, password: str) -> None:
    console = settings.console
    print(f"settings  {path}")
    scheme = "https" if console.tls_cert else "http"
    print(f"console   {scheme}://{console.host}:{console.port}/")
    print(f"account   {visible(account)}")
    print(f"password  {password}")
    print("The password is shown this once; only its hash is kept.", file=sys.stderr)
    run = "hub" if settings.hub else "run"
    print(f"Next: cityward doctor -c {path}, cityward {run} -c {path}", file=sys.stderr)
