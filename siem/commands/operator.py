"""`cityward operator`: who shares with the city; a hub admits them, a node joins."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from cyclopts import Parameter

from cityward import ConfigError
from siem import assembly
from siem import output as streams
from siem.assets import from_settings
from siem.commands.common import ConfigFile, Output, UsageError, settings_of, who
from siem.config import Settings
from siem.node import now_utc

if TYPE_CHECKING:
    from siem.city.authority import Operators
    from siem.city.commons import Records

Switch = Annotated[bool, Parameter(negative=())]

COLUMNS = ("operator", "state", "certificate_until", "heard", "seq", "gaps", "refused", "sector")


def enrol(name: str, *, sector: str = "", config: ConfigFile = None) -> int:
    """Print a token by which a new operator is admitted, once and within an hour.

    A known operator gets a new certificate by it, and goes on where it was.
    Example: cityward operator enrol op-metro --sector transport.public

    Args:
        name: The operator, as `operator` in the settings of its node says.
        sector: Its sector, as in the list of the schema.
        config: Settings file of the hub; otherwise the first one found counts.
    """
    settings = _hub_settings(config)
    with _operators(settings) as (operators, _):
        token = operators.add(name, sector)
    _audit(settings, "operator enrol", name)
    print(token)
    print("It serves once, within 60 minutes. At the operator's node:", file=sys.stderr)
    assert settings.hub is not None
    port = settings.hub.listen.rpartition(":")[2]
    url = f"https://{settings.hub.names[0]}:{port}"
    print(f"  cityward operator join {url} --token-file FILE", file=sys.stderr)
    return 0


def admit(file: Path, *, config: ConfigFile = None) -> int:
    """Admit an operator that cannot call this hub, by the file that its node made.

    What it shares then comes through the drop.
    Example: cityward operator admit request.json

    Args:
        file: Made by `cityward operator request` at the node.
        config: Settings file of the hub; otherwise the first one found counts.
    """
    from siem.sharing.wire import Enrolling

    settings = _hub_settings(config)
    try:
        asked = msgspec.json.decode(file.read_bytes(), type=Enrolling)
    except (OSError, msgspec.MsgspecError) as error:
        what = f"no request: {error}"
        raise UsageError(what, str(file), "Make it: cityward operator request.") from error
    with _operators(settings) as (operators, _):
        name, enrolled = operators.enrol(asked.token, asked.csr, asked.signing_key)
    _audit(settings, "operator admit", name)
    print(f"{name} is admitted; envelopes up to {enrolled.seq} were taken of it.", file=sys.stderr)
    return 0


def list_(*, config: ConfigFile = None, output: Output = None) -> int:
    """List the operators of this hub: state, end of the certificate, last envelope, gaps.

    Example: cityward operator list

    Args:
        config: Settings file of the hub; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    from siem.city.links import links

    with _operators(_hub_settings(config)) as (operators, records):
        rows = [_row(one) for one in links(operators, records, now_utc())]
    streams.write(rows, streams.form_for(output, sys.stdout), COLUMNS)
    if not rows:
        print("No operator was admitted: cityward operator enrol NAME.", file=sys.stderr)
    return 0


def revoke(name: str, *, config: ConfigFile = None) -> int:
    """Take nothing of an operator any more, from its next request on.

    Example: cityward operator revoke op-metro

    Args:
        name: The operator.
        config: Settings file of the hub; otherwise the first one found counts.
    """
    settings = _hub_settings(config)
    with _operators(settings) as (operators, _):
        operators.revoke(name)
    _audit(settings, "operator revoke", name)
    print(f"Nothing is taken of {name} any more.", file=sys.stderr)
    return 0


def join(
    url: str,
    *,
    token_env: str = "",
    token_file: Path | None = None,
    restored: Switch = False,
    config: ConfigFile = None,
) -> int:
    """Have the city's hub admit this node; the token serves once and for an hour.

    The node makes its keys here, knows the hub by the token, and gets a certificate that it renews
    by itself. What leaves then is what the sharing policy says.
    Example: cityward operator join https://hub.city.example:8443 --token-file token

    Args:
        url: Address of the hub.
        token_env: Variable of the environment that holds the token.
        token_file: File that holds the token; `-` is standard input.
        restored: The state came from a backup: the ledger goes on behind what the hub has, and
            says how many records were lost.
        config: Settings file; otherwise the first one found counts.
    """
    from siem.sharing.identity import Identity
    from siem.sharing.link import join as join_hub

    settings, _ = settings_of(config)
    token, option = _token(settings, token_env, token_file)
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        identity = Identity(settings.state_path)
        hub = join_hub(identity, db.outgoing, url.rstrip("/"), token, option, restored=restored)
    finally:
        db.close()
    until = identity.certificate().not_valid_after_utc
    print(f"{hub.operator} has joined {hub.url}; its certificate holds until {until:%Y-%m-%d}.")
    if settings.sharing.hub.rstrip("/") != hub.url:
        print(f'Add to the settings: [sharing] hub = "{hub.url}"', file=sys.stderr)
    return 0


def request(
    file: Path,
    *,
    token_env: str = "",
    token_file: Path | None = None,
    config: ConfigFile = None,
) -> int:
    """Write the file by which a hub admits a node that cannot call it: behind a data diode.

    It holds the token, this node's public key, and nothing that is secret once it was used.
    Example: cityward operator request request.json --token-file token

    Args:
        file: Where to; somebody carries it to the hub.
        token_env: Variable of the environment that holds the token.
        token_file: File that holds the token; `-` is standard input.
        config: Settings file; otherwise the first one found counts.
    """
    from siem.sharing.certificates import write_secret
    from siem.sharing.identity import Identity
    from siem.sharing.link import request_of

    settings, _ = settings_of(config)
    token, option = _token(settings, token_env, token_file)
    _, asked = request_of(Identity(settings.state_path), token, option)
    write_secret(file, msgspec.json.encode(asked))
    print(f"At the hub: cityward operator admit {file.name}", file=sys.stderr)
    return 0


def _token(settings: Settings, env: str, file: Path | None) -> tuple[str, str]:
    """A token for this operator, and the option that named it."""
    from siem.sharing.certificates import read_token
    from siem.sharing.wire import TOKEN_PREFIX

    text = _secret(env, file)
    option = "--token-env" if env else "--token-file"
    name = read_token(text, TOKEN_PREFIX, option).name
    if name != settings.operator:
        what = f"the token is for {name}, this node is {settings.operator}"
        raise UsageError(what, option, "Ask for a token of this operator, or correct `operator`.")
    return text, option


def _secret(env: str, file: Path | None) -> str:
    """A secret is never a word of the command line: there everybody on the machine reads it."""
    if bool(env) == (file is not None):
        what = "one place has to hold the token"
        raise UsageError(what, "join", "Name --token-env or --token-file.")
    if env:
        text = os.environ.get(env, "")
    elif str(file) == "-":
        text = sys.stdin.readline()
    else:
        assert file is not None
        try:
            text = file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            what = f"the token cannot be read: {error}"
            raise UsageError(what, "--token-file", "Check the file.") from error
    if not text.strip():
        what = f"{env or file} is empty"
        raise UsageError(what, "join", "Put the token there that the hub printed.")
    return text.strip()


def _hub_settings(config: str | None) -> Settings:
    settings, origin = settings_of(config)
    if settings.hub is None:
        what = "these are the settings of a node, operators are admitted at the hub"
        raise ConfigError(what, f"hub ({origin})", "Name the hub's settings file with --config.")
    return settings


@contextmanager
def _operators(settings: Settings) -> Iterator[tuple[Operators, Records]]:
    from siem.city.authority import FOLDER, Operators
    from siem.common_store import commons_of

    commons = commons_of(settings, now_utc)
    try:
        folder = settings.state_path / FOLDER
        yield Operators(commons.records, folder, now_utc), commons.records
    finally:
        commons.close()


def _audit(settings: Settings, action: str, name: str) -> None:
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        db.audit(who(), action, name, now_utc())
    finally:
        db.close()


def _row(link: Any) -> dict[str, Any]:
    said = msgspec.structs.asdict(link)
    names = ("operator", "state", "certificate_until", "heard", "seq", "gaps", "refused")
    return {name: said[name] for name in names} | {"sector": link.sector}
