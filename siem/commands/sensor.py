"""`cityward collect`, and `source add sensor`: a sensor that ships its events to a node."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from cityward import ConfigError, TransientError
from siem import output as streams
from siem.authority import TOKEN_HOURS, SensorAuthority
from siem.commands.common import ConfigFile, Output, settings_of
from siem.commands.run import settings_with_file, stop_on_signals
from siem.config import Settings
from siem.logs import log_to
from siem.node import now_utc
from siem.node import run as run_node

Kind = Literal["sensor"]
COLUMNS = ("name", "state", "valid_until", "token_until")


def collect(
    *,
    config: ConfigFile = None,
    enrol: Annotated[str, Parameter(name="--enrol", allow_leading_hyphen=True)] = "",
) -> int:
    """Run a sensor: read and collect here, and ship the events to a node.

    What the node has not made durable waits in the spool, over restarts of either.

    Example: cityward collect --config sensor.toml

    Args:
        config: Settings file of the sensor; otherwise the first one found counts.
        enrol: The token that the node printed; needed once. `-` reads it from standard input.
    """
    from siem import sensor

    _, settings = settings_with_file(config)
    log_to(settings)
    if not settings.sensor.node:
        todo = 'Add: [sensor] node = "node.example:8766".'
        raise ConfigError("no node is named to ship to", "sensor.node", todo)
    if enrol:
        token = sys.stdin.readline().strip() if enrol == "-" else enrol
        name = sensor.enrol(settings.state_path, settings.sensor.node, token)
        print(f"This sensor is {name} to {settings.sensor.node}.", file=sys.stderr)
    if not sensor.is_enrolled(settings.state_path):
        todo = "On the node: cityward source add sensor NAME; here: cityward collect --enrol TOKEN."
        raise ConfigError("this sensor has no certificate yet", str(settings.state_path), todo)
    made = sensor.sensor_of(settings)
    stop_on_signals(made)
    made.shipper.start()
    try:
        run_node(made)
        made.shipper.finish()
    except OSError as error:
        raise TransientError(
            f"the spool cannot be written: {error.strerror or error}",
            str(settings.state_path),
            "Make room and start it again; nothing kept is lost.",
        ) from error
    finally:
        made.close()
    return 0


def add(kind: Kind, name: str, *, config: ConfigFile = None) -> int:
    """Print a token by which a new sensor is admitted, once and within a day.

    Example: cityward source add sensor quay-4

    Args:
        kind: What is added; other sources are tables of the settings.
        name: Name of the sensor: a-z, 0-9, `-`, `_`.
        config: Settings file of the node; otherwise the first one found counts.
    """
    settings, _ = settings_of(config)
    port = next((one.listen for one in settings.source if one.reader == "sensors"), "")
    token = _authority(settings).add(name)
    print(token)
    print(f"It serves once, within {TOKEN_HOURS} hours. On the sensor:", file=sys.stderr)
    print("  cityward collect --config sensor.toml --enrol -", file=sys.stderr)
    if not port:
        print(
            "This node has no port for sensors yet. Add to its settings:\n"
            '  [[source]]\n  id = "sensors"\n  reader = "sensors"\n  listen = "0.0.0.0:8766"',
            file=sys.stderr,
        )
    return 0


def list_(*, config: ConfigFile = None, output: Output = None) -> int:
    """List the sensors of this node: admitted, waiting, revoked, and until when.

    Example: cityward source sensors

    Args:
        config: Settings file; otherwise the first one found counts.
        output: Form of the result: table, json, ndjson or csv; ndjson for a pipe.
    """
    settings, _ = settings_of(config)
    rows = [_row(one) for one in _authority(settings).admissions()]
    streams.write(rows, streams.form_for(output, sys.stdout), COLUMNS)
    if not rows:
        print("No sensor was added: cityward source add sensor NAME.", file=sys.stderr)
    return 0


def remove(kind: Kind, name: str, *, config: ConfigFile = None) -> int:
    """Admit a sensor no more.

    Example: cityward source remove sensor quay-4

    Args:
        kind: What is removed; other sources are tables of the settings.
        name: Its name.
        config: Settings file; otherwise the first one found counts.
    """
    settings, _ = settings_of(config)
    _authority(settings).revoke(name)
    print(f"{name} is admitted no more.", file=sys.stderr)
    return 0


def _authority(settings: Settings) -> SensorAuthority:
    return SensorAuthority(settings.state_path, now_utc)


def _row(one: Any) -> dict[str, Any]:
    said = msgspec.structs.asdict(one)
    shown = {name: said[name] for name in ("name", "valid_until", "token_until", "serial")}
    return shown | {"state": one.state(now_utc())}
