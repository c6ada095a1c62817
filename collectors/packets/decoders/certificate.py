"""X.509 certificates: who, by whom, for which names and from when to when; nothing is verified.

References:
    RFC 5280, sections 4.1 (certificate) and 4.2.1.6 (subject alternative name).
    RFC 4514 (names as text).
"""

from __future__ import annotations

import hashlib
import ipaddress
from datetime import UTC, datetime
from typing import Any

from collectors.packets.decoders import ber
from collectors.packets.decoders.pairs import printable

NAMES_MAX = 32
"""Alternative names that are kept."""
ATTRIBUTES_MAX = 16
"""Parts of a name that are read."""
ATTRIBUTES: dict[bytes, str] = {
    bytes.fromhex("550403"): "CN",
    bytes.fromhex("550405"): "serialNumber",
    bytes.fromhex("550406"): "C",
    bytes.fromhex("550407"): "L",
    bytes.fromhex("550408"): "ST",
    bytes.fromhex("55040a"): "O",
    bytes.fromhex("55040b"): "OU",
    bytes.fromhex("2a864886f70d010901"): "emailAddress",
    bytes.fromhex("0992268993f22c640119"): "DC",
}
ALTERNATIVE_NAMES = bytes.fromhex("551d11")

_SEQUENCE, _OCTETS, _UTC_TIME, _GENERAL_TIME = 0x30, 0x04, 0x17, 0x18
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_TEXT_NAMES, _ADDRESS_NAME = (0x81, 0x82, 0x86), 0x87


def certificate(data: bytes, side: str) -> dict[str, Any]:
    """Fields of a DER certificate under `tls.{side}`.

    Raises:
        BerError: it is none.
    """
    whole = ber.expect(data, 0, len(data), _SEQUENCE)
    signed = ber.expect(data, whole.at, whole.stop, _SEQUENCE)
    parts = ber.elements(data, signed.at, signed.stop, 12)
    if parts and parts[0].tag == _VERSION:
        parts = parts[1:]
    if len(parts) < 5:
        raise ber.BerError(f"a certificate has at least 5 parts, not {len(parts)}")
    issuer, validity, subject = parts[2:5]
    found: dict[str, Any] = {
        f"tls.{side}.hash.sha256": hashlib.sha256(data).hexdigest().upper(),
        f"tls.{side}.subject": _name(data, subject),
        f"tls.{side}.issuer": _name(data, issuer),
    }
    times = ber.elements(data, validity.at, validity.stop, 2)
    for one, end in zip(times, ("not_before", "not_after"), strict=False):
        if when := _time(data, one):
            found[f"tls.{side}.{end}"] = when
    if names := _alternative_names(data, parts):
        found[f"tls.{side}.x509.alternative_names"] = names
    return found


def _name(data: bytes, name: ber.Element) -> str:
    """A name as RFC 4514 writes it: the most particular part first."""
    found = []
    for group in ber.elements(data, name.at, name.stop, ATTRIBUTES_MAX):
        for pair in ber.elements(data, group.at, group.stop, ATTRIBUTES_MAX):
            parts = ber.elements(data, pair.at, pair.stop, 2)
            if len(parts) < 2:
                raise ber.BerError(f"the attribute at byte {pair.at} has no value")
            key, value = (data[one.at : one.stop] for one in parts)
            label = ATTRIBUTES.get(key) or ber.oid(key, 0, len(key))
            text = printable(value).replace("\\", "\\\\").replace(",", "\\,")
            found.append(f"{label}={text}")
    return ", ".join(reversed(found[:ATTRIBUTES_MAX]))


def _time(data: bytes, one: ber.Element) -> datetime | None:
    """A time in UTC; None if it is none, as small devices send."""
    text = data[one.at : one.stop]
    if one.tag == _UTC_TIME:
        text = (b"19" if text[:2] >= b"50" else b"20") + text
    digits = text[:14]
    if len(digits) < 14 or not digits.isdigit() or text[14:] != b"Z":
        return None
    values = [int(digits[:4]), *(int(digits[at : at + 2]) for at in range(4, 14, 2))]
    try:
        return datetime(*values, tzinfo=UTC)  # type: ignore[misc, arg-type]
    except ValueError:
        return None


def _alternative_names(data: bytes, parts: list[ber.Element]) -> list[str]:
    block = next((one for one in parts[5:] if one.tag == _EXTENSIONS), None)
    if block is None:
        return []
    listed = ber.expect(data, block.at, block.stop, _SEQUENCE)
    for extension in ber.elements(data, listed.at, listed.stop, 64):
        inside = ber.elements(data, extension.at, extension.stop, 3)
        if not inside or data[inside[0].at : inside[0].stop] != ALTERNATIVE_NAMES:
            continue
        if inside[-1].tag != _OCTETS:
            raise ber.BerError(f"the extension at byte {extension.at} has no value")
        names = ber.expect(data, inside[-1].at, inside[-1].stop, _SEQUENCE)
        found = (_general_name(data, one) for one in ber.elements(data, names.at, names.stop))
        return [name for name in found if name][:NAMES_MAX]
    return []


def _general_name(data: bytes, one: ber.Element) -> str:
    raw = data[one.at : one.stop]
    if one.tag in _TEXT_NAMES:
        return printable(raw)
    if one.tag == _ADDRESS_NAME and len(raw) in (4, 16):
        return str(ipaddress.ip_address(raw))
    return ""
