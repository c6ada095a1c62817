"""Targets: what a command may act on, checked by its type; whatever else is refused.

A value comes from a playbook, or as a whole from one field of a finding, so it may be anything that
a stranger sent. It becomes a target only in the one spelling that its type has; no quote, blank or
control character of anybody's is in any of them.

References:
    OpenC2 Language Specification 1.0, section 3.4.1 (target types) and 3.4.1.9 to .12 (networks,
    connections); RFC 4291, section 2.5.5.2 (IPv4 within IPv6); RFC 5952 (spelling of IPv6).
"""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from cityward import Target, Unsafe

VALUE_MAX = 512
PREFIX_LEAST = {4: 24, 6: 48}
"""No wider network is a target: what it would cut off, nobody could oversee."""

_TOKEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}")
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,31}|x-[a-z0-9-]{1,40}:[a-z][a-z0-9_-]{0,40}")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{4,253}}$)(?:{_LABEL}\.)+(?!\d+$)[a-z0-9-]{{2,63}}")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_MAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}@([A-Za-z0-9.-]{4,253})")
_URI = re.compile(r"https?://[A-Za-z0-9.\[\]:-]{1,253}(?:/[A-Za-z0-9._~/-]{0,200})?")
_PROTOCOLS = ("tcp", "udp", "icmp", "sctp")
_PORT_MAX = 65_535

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


NOWHERE = Target("", "")
"""Of what has no target: a mail, a ticket."""


class Connection(msgspec.Struct, frozen=True, omit_defaults=True):
    """Value of an `ipv4_connection` or `ipv6_connection`, in OpenC2's words."""

    src_addr: str
    dst_addr: str
    protocol: str = "tcp"
    dst_port: int = 0
    """0: any."""


def target_of(type: str, said: Mapping[str, Any] | str) -> Target:
    """A target in its one spelling.

    Args:
        type: OpenC2 target type, or one of an actuator's own (`x-vendor:thing`).
        said: Its value; of a connection its parts by their names in OpenC2, or these as JSON.

    Raises:
        Unsafe: this is no value of the type.
    """
    if not _TYPE.fullmatch(type):
        raise _refused(type, "", "is no type of a target")
    if type in ("ipv4_connection", "ipv6_connection"):
        return _connection(type, said)
    value = said if isinstance(said, str) else said.get("value", "")
    if not isinstance(value, str) or not 0 < len(value) <= VALUE_MAX:
        raise _refused(type, value, f"is no value of a few to {VALUE_MAX} characters")
    if type in ("ipv4_net", "ipv6_net"):
        network = network_of(value)
        return Target(f"ipv{network.version}_net", spelled(network))
    return Target(type, _SPELLINGS.get(type, _token)(value))


def network_of(value: str) -> Network:
    """The network, or the address as one, that a value spells.

    Raises:
        Unsafe: it is none, or too wide a one.
    """
    try:
        network = ipaddress.ip_network(value)
    except ValueError:
        raise _refused("address", value, "is no address or network") from None
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen == 128:
        address = network.network_address
        if address.scope_id is not None:
            raise _refused("address", value, "has a scope")
        if address.ipv4_mapped is not None:
            network = ipaddress.ip_network(address.ipv4_mapped)
    first, last = network.network_address, network.broadcast_address
    if any(_is_nobodys(one) for one in (first, last)):
        raise _refused("address", value, "is nobody's own address")
    if network.prefixlen < PREFIX_LEAST[network.version]:
        raise _refused("address", value, f"is wider than /{PREFIX_LEAST[network.version]}")
    return network


def connection_of(target: Target) -> Connection | None:
    """The parts of a connection; None if a target is none."""
    if target.type not in ("ipv4_connection", "ipv6_connection"):
        return None
    try:
        return msgspec.json.decode(target.value, type=Connection)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None


def networks_of(target: Target) -> tuple[Network, ...]:
    """The networks that a target names: one, or of a connection sender and receiver; or none."""
    try:
        if target.type in ("ipv4_net", "ipv6_net"):
            return (network_of(target.value),)
        if (connection := connection_of(target)) is not None:
            return network_of(connection.src_addr), network_of(connection.dst_addr)
    except Unsafe:
        pass
    return ()


def is_spelled(target: Target) -> bool:
    """Whether a target is what `target_of` makes of it."""
    try:
        return target_of(target.type, target.value) == target
    except Unsafe:
        return False


def words(target: Target) -> str:
    """A target as people read it."""
    if (connection := connection_of(target)) is not None:
        port = f" port {connection.dst_port}" if connection.dst_port else ""
        return f"{connection.src_addr} to {connection.dst_addr}, {connection.protocol}{port}"
    return target.value


def _connection(type: str, said: Mapping[str, Any] | str) -> Target:
    if isinstance(said, str):
        try:
            parts = json.loads(said) if len(said) <= VALUE_MAX else None
        except (ValueError, RecursionError):
            parts = None
    else:
        parts = said.get("value") or {key: said[key] for key in said if key != "type"}
        if isinstance(parts, str):
            return _connection(type, parts)
    known = Connection.__struct_fields__
    if not isinstance(parts, Mapping) or not set(parts) <= set(known):
        raise _refused(type, parts, f"is not made of {', '.join(known)}")
    ends = [network_of(str(parts.get(end, ""))) for end in ("src_addr", "dst_addr")]
    if ends[0].version != ends[1].version:
        raise _refused(type, parts, "has ends of two kinds")
    protocol, port = parts.get("protocol", "tcp"), str(parts.get("dst_port", 0))
    if protocol not in _PROTOCOLS:
        raise _refused(type, protocol, f"is none of {', '.join(_PROTOCOLS)}")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= _PORT_MAX):
        raise _refused(type, port, "is no port")
    # The very text of the default: only that one is left out when it is written.
    made = Connection(spelled(ends[0]), spelled(ends[1]), sys.intern(protocol), int(port))
    return Target(f"ipv{ends[0].version}_connection", msgspec.json.encode(made).decode())


def _is_nobodys(address: Address) -> bool:
    """Loopback, link-local, multicast, unspecified and broadcast addresses are no device."""
    if address.is_loopback or address.is_link_local or address.is_multicast:
        return True
    return address.is_unspecified or (address.version == 4 and address.is_reserved)


def spelled(network: Network) -> str:
    """A network as a target has it: of one address that address."""
    is_one = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if is_one else str(network)


def _token(value: str) -> str:
    if not _TOKEN.fullmatch(value) or ".." in value:
        raise _refused("name", value, "is no plain name")
    return value


def _by(pattern: re.Pattern[str], what: str, *, lower: bool = True) -> Callable[[str], str]:
    def one_spelling(value: str) -> str:
        value = value.lower() if lower and value.isascii() else value
        if not pattern.fullmatch(value):
            raise _refused(what, value, f"is no {what}")
        return value

    return one_spelling


def _domain(value: str) -> str:
    return _by(_NAME, "domain name")(value.removesuffix("."))


def _mail(value: str) -> str:
    found = _MAIL.fullmatch(value)
    if found is None or ".." in value:
        raise _refused("mail address", value, "is no mail address")
    return value.removesuffix(found[1]) + _domain(found[1])


_SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "domain_name": _domain,
    "email_addr": _mail,
    "mac_addr": lambda value: _by(_MAC, "hardware address")(value.replace("-", ":")),
    "uri": _by(_URI, "web address", lower=False),
}
"""Types with a spelling of their own; the others are plain names."""


def _refused(type: str, value: Any, why: str) -> Unsafe:
    return Unsafe(
        f"{str(value)[:60]!r} {why}", f"target {type[:40]}", "Look at the finding, and act by hand."
    )
