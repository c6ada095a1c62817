"""TLS of the console: its certificate, and what doctor says of it.

References:
    RFC 5280 (certificates), RFC 8996 (nothing below TLS 1.2).
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cityward import ConfigError
from siem.config import Console
from siem.sharing.certificates import SKEW, pem, private_pem, write_secret

SELF_SIGNED_DAYS = 825
"""Browsers refuse a certificate that holds longer."""
SOON = timedelta(days=30)


def context_of(console: Console) -> ssl.SSLContext | None:
    """How the console is served; None: without TLS.

    Raises:
        ConfigError: certificate or key cannot be read, or do not belong together.
    """
    if not console.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    cert, key = (Path(one).expanduser() for one in (console.tls_cert, console.tls_key))
    try:
        # Without a password OpenSSL would ask on the terminal.
        context.load_cert_chain(cert, key, password="")
    except (OSError, ssl.SSLError) as error:
        why = "they are no certificate with its key" if isinstance(error, ssl.SSLError) else error
        raise ConfigError(
            f"the console's certificate cannot be used: {why}",
            f"console.tls_cert {cert}, console.tls_key {key}",
            "Name a PEM certificate with its chain, and its key without a password.",
        ) from error
    return context


def valid_until(console: Console) -> datetime:
    """Until when the certificate of the console holds."""
    path = Path(console.tls_cert).expanduser()
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc


def make_self_signed(folder: Path, now: datetime) -> tuple[Path, Path]:
    """A certificate for this machine's own names, and its key, which only its owner reads."""
    host = socket.gethostname()
    names: list[x509.GeneralName] = [
        x509.DNSName(one) for one in dict.fromkeys(("localhost", host, socket.getfqdn()))
    ]
    names += [x509.IPAddress(ipaddress.ip_address(one)) for one in ("127.0.0.1", "::1")]
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = folder / "console.pem", folder / "console.key"
    write_secret(key_path, private_pem(key))
    write_secret(cert_path, pem(made).encode())
    return cert_path, key_path
