"""`cityward openc2-consumer`: takes OpenC2 commands for a packet filter of this machine."""

from __future__ import annotations

import os
import ssl
import sys
import threading
from pathlib import Path

from cityward import ConfigError, InputError
from playbooks import openc2
from playbooks.openc2_consumer import Consumer, Gate, Server
from siem.actuators import actuators_of
from siem.commands.common import ConfigFile, UsageError, settings_of, stopping
from siem.logs import log_to

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def consumer(
    *,
    listen: str = "127.0.0.1:8790",
    actuator: str = "nftables",
    token_env: str = "",
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    client_ca: Path | None = None,
    names: tuple[str, ...] = (),
    asset_id: str = "",
    config: ConfigFile = None,
) -> int:
    """Take OpenC2 commands (packet filter profile) and have an actuator of the settings obey.

    Producers show a token, or a certificate that the client authority signed with one of the names.
    Every deny ends by itself; what the actuator keeps free stays free. Ctrl+C ends.
    Example: cityward openc2-consumer --token-env CITYWARD_OPENC2_TOKEN

    Args:
        listen: Address and port; others than this machine's own need a certificate.
        actuator: One of `response.actuators` in the settings.
        token_env: Variable of the environment that holds the token.
        tls_cert: Certificate with its chain, PEM: it speaks HTTPS.
        tls_key: Private key of it.
        client_ca: Certificates of the authorities that producers are believed by.
        names: Names of producers in their certificates.
        asset_id: Name of this filter; commands for another one are refused.
        config: Settings file; otherwise the first one found counts.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise UsageError(f"{listen!r} is no address:port", "--listen", "Write 127.0.0.1:8790.")
    host = host.strip("[]")
    if tls_cert is None and host not in LOOPBACK:
        todo = "Give --tls-cert and --tls-key, or listen on 127.0.0.1."
        raise UsageError(f"commands to {host} would be readable on the way", "--listen", todo)
    if bool(names) != (client_ca is not None):
        raise UsageError("names need an authority, and it names", "--client-ca", "Give both.")
    token = os.environ.get(token_env, "") if token_env else ""
    gate = Gate(token=token, names=names)
    if gate.is_shut:
        todo = "Set a variable and name it with --token-env, or give --client-ca and --names."
        raise UsageError("nobody could give commands", "--token-env", todo)
    settings, origin = settings_of(config)
    part = actuators_of(settings).get(actuator)
    if part is None:
        todo = f"Write the table [response.actuators.{actuator}]."
        raise ConfigError(f"{actuator} is not set up", f"response.actuators ({origin})", todo)
    log_to(settings)
    context = _context(tls_cert, tls_key, client_ca, is_asked=not token) if tls_cert else None
    try:
        server = Server((host, int(port)), Consumer(part, asset_id=asset_id), gate, context)
    except OSError as error:
        raise InputError(str(error), listen, "Choose another port.") from error
    scheme = "https" if context else "http"
    place = f"[{host}]" if ":" in host else host
    where = f"{scheme}://{place}:{server.server_address[1]}{openc2.PATH}"
    print(f"Commands for {actuator} go to {where}; Ctrl+C ends.", file=sys.stderr, flush=True)
    with stopping(threading.Event()) as stop:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stop.wait()
    server.shutdown()
    server.server_close()
    return 0


def _context(
    cert: Path, key: Path | None, client_ca: Path | None, *, is_asked: bool
) -> ssl.SSLContext:
    """TLS 1.2 or newer; with an authority certificates of producers are looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if is_asked else ssl.CERT_OPTIONAL
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{error}", str(cert), "Check certificate, key and authority.") from error
    return context
