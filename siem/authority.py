"""Who may ship events to this node: its own certificate authority, and tokens that serve once.

Everything is in `state/sensors/`: the authority, the certificate of the port, and one file a
sensor. A sensor is admitted by a token that a person carries over, see `siem/sharing/certificates`.
"""

from __future__ import annotations

import hmac
import re
import ssl
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509

from cityward import ConfigError, Unsafe
from siem.node import Clock
from siem.sharing import certificates
from siem.sharing.certificates import Authority, Token, common_name, key_of_request, write_secret

NODE = "cityward-node"
"""Name in the certificate of every node's port; a sensor knows its node by the authority."""
TOKEN_HOURS = 24
SENSOR_DAYS = 730
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
PREFIX = "cw1."


class Admission(msgspec.Struct, frozen=True):
    """What the node knows of one sensor."""

    name: str
    token_sha256: str = ""
    """Of the secret; empty once it was used."""
    token_until: datetime | None = None
    serial: str = ""
    """Of its certificate, hexadecimal."""
    valid_until: datetime | None = None
    revoked: bool = False

    def state(self, now: datetime) -> str:
        """In a word."""
        if self.revoked:
            return "revoked"
        if self.valid_until is not None:
            return "admitted" if self.valid_until > now else "expired"
        return "waiting" if self.token_until and self.token_until > now else "token expired"


class SensorAuthority:
    """Signs the certificates of the sensors of one node; see `collectors.readers.sensors`."""

    def __init__(self, state: Path, clock: Clock) -> None:
        self._folder = state / "sensors"
        self._clock = clock
        self._authority = Authority(self._folder, clock, "sensors")

    def admissions(self) -> list[Admission]:
        """All sensors that were ever added."""
        return [_read(path) for path in sorted(self._folder.glob("*.json"))]

    def add(self, name: str) -> str:
        """A token for a new sensor, or for a known one that shall have a new certificate.

        Raises:
            ConfigError: the name is none, or the authority has lost its key.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no name of a sensor", "NAME", "Write a-z, 0-9, - or _.")
        until = self._clock() + timedelta(hours=TOKEN_HOURS)
        with self._authority.locked():
            self._authority.make()
            token = self._authority.token(name)
            known = self._known(name) or Admission(name)
            self._keep(msgspec.structs.replace(known, token_sha256=token.hash, token_until=until))
        return token.text(PREFIX)

    def revoke(self, name: str) -> None:
        """Admit a sensor no more; an open connection ends with its next batch.

        Raises:
            ConfigError: there is none of this name.
        """
        with self._authority.locked():
            known = self._known(name)
            if known is None:
                todo = "cityward source sensors names them."
                raise ConfigError(f"there is no sensor {name!r}", "NAME", todo)
            self._keep(msgspec.structs.replace(known, revoked=True, token_sha256=""))

    # ---- what the port asks

    def context(self) -> ssl.SSLContext:
        """For the port: its own certificate, and those of sensors asked for."""
        with self._authority.locked():
            self._authority.make()
            return self._authority.context([NODE])

    def sensor(self, certificate: bytes) -> str:
        """Name of the sensor that showed a certificate.

        Raises:
            Unsafe: it was revoked, it expired, or another one took its place.
        """
        shown = x509.load_der_x509_certificate(certificate)
        name = common_name(shown)
        known = self._known(name) if NAME.fullmatch(name) else None
        is_known = known and not known.revoked and known.serial == f"{shown.serial_number:x}"
        if not is_known or shown.not_valid_after_utc < self._clock():
            raise Unsafe("its certificate is not in force", f"sensor {name}", "Add it again.")
        return name

    def admits(self, name: str) -> bool:
        """Whether a sensor of this name may connect."""
        known = self._known(name) if NAME.fullmatch(name) else None
        return known is not None and known.state(self._clock()) == "admitted"

    def enrol(self, token: str, request: str) -> Mapping[str, str]:
        """Sign the key of a sensor that brings its token; the token serves once.

        Raises:
            Unsafe: the token is none, was used, or is too old; or the request is none.
        """
        said = read_token(token)
        where = f"sensor {said.name}"
        with self._authority.locked():
            known = self._known(said.name)
            if known is None or not hmac.compare_digest(known.token_sha256, said.hash):
                raise Unsafe("the token is not in force", where, "Make a new one.")
            if known.token_until is None or known.token_until < self._clock():
                raise Unsafe("the token is too old", where, "Make a new one.")
            key = key_of_request(request, said.name, where)
            certificate = self._authority.signed(said.name, key, SENSOR_DAYS)
            self._keep(
                Admission(
                    said.name,
                    serial=f"{certificate.serial_number:x}",
                    valid_until=certificate.not_valid_after_utc,
                )
            )
        return {"certificate": certificates.pem(certificate)}

    def greeting(self) -> Mapping[str, str]:
        """The authority's certificate, which a new sensor compares with its token."""
        return {"authority": self._authority.certificate}

    # ---- the files

    def _known(self, name: str) -> Admission | None:
        path = self._folder / f"{name}.json"
        return _read(path) if path.exists() else None

    def _keep(self, admission: Admission) -> None:
        write_secret(self._folder / f"{admission.name}.json", msgspec.json.encode(admission))


def read_token(token: str) -> Token:
    """What the token of a sensor holds.

    Raises:
        Unsafe: it is none.
    """
    said = certificates.read_token(token, PREFIX, "--enrol")
    if not NAME.fullmatch(said.name):
        raise Unsafe("no token", "--enrol", "Copy the whole line that was printed.")
    return said


def _read(path: Path) -> Admission:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Admission)
    except msgspec.MsgspecError as error:
        todo = "Remove the file and add the sensor again."
        raise ConfigError(f"no admission: {error}", str(path), todo) from error
