"""`cityward operator`: who shares with the city; here a node joins its hub."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from siem import assembly
from siem.assets import from_settings
from siem.commands.common import ConfigFile, UsageError, settings_of
from siem.node import now_utc


def join(
    url: str, *, token_env: str = "", token_file: Path | None = None, config: ConfigFile = None
) -> int:
    """Have the city's hub admit this node; the token serves once and for an hour.

    The node makes its keys here, knows the hub by the token, and gets a certificate that it renews
    by itself. What leaves then is what the sharing policy says.
    Example: cityward operator join https://hub.city.example:8443 --token-file token

    Args:
        url: Address of the hub.
        token_env: Variable of the environment that holds the token.
        token_file: File that holds the token; `-` is standard input.
        config: Settings file; otherwise the first one found counts.
    """
    from siem.sharing.certificates import read_token
    from siem.sharing.identity import Identity
    from siem.sharing.link import join as join_hub
    from siem.sharing.wire import TOKEN_PREFIX

    settings, _ = settings_of(config)
    token = _token(token_env, token_file)
    option = "--token-env" if token_env else "--token-file"
    name = read_token(token, TOKEN_PREFIX, option).name
    if name != settings.operator:
        what = f"the token is for {name}, this node is {settings.operator}"
        raise UsageError(what, option, "Ask for a token of this operator, or correct `operator`.")
    db = assembly.db_of(settings, from_settings(settings), now_utc)
    try:
        identity = Identity(settings.state_path)
        hub = join_hub(identity, db.outgoing, url.rstrip("/"), token, option)
    finally:
        db.close()
    until = identity.certificate().not_valid_after_utc
    print(f"{hub.operator} has joined {hub.url}; its certificate holds until {until:%Y-%m-%d}.")
    if settings.sharing.hub.rstrip("/") != hub.url:
        print(f'Add to the settings: [sharing] hub = "{hub.url}"', file=sys.stderr)
    return 0


def _token(env: str, file: Path | None) -> str:
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
