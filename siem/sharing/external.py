"""What is external by the operator's own address plan: only that may become a join token.

A joined value of one's own would tell every operator that holds the root who one is talking of; so
private, shared, local and multicast addresses, those of the own zones and assets, and what peers
published never count as external, and no name below an own domain does. The documentation networks
of RFC 5737 and 3849 do: nothing real has them, and exercises are played with them.

References:
    RFC 6890 (special-purpose addresses), RFC 6598, RFC 6761 and 6762 (special-use names).
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NEVER = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
    *("224.0.0.0/4", "240.0.0.0/4"),
    *("::/127", "64:ff9b:1::/48", "100::/64", "2001::/32", "2002::/16", "fc00::/7"),
    *("fe80::/10", "fec0::/10", "ff00::/8"),
)
"""Networks that nobody is outside of; 6to4 and Teredo too, since they hold another address."""

NAMES_NEVER = {
    *("arpa", "corp", "home", "internal", "intranet", "invalid", "lan", "local", "localhost"),
    *("localdomain", "onion", "private", "test", "workgroup"),
}
"""Last labels of names that mean something else in every house, or hold an address."""

PREFIX = {4: 24, 6: 48}
"""Length of the network that stands for an address."""

SECOND_LEVELS = {
    *("ac", "co", "com", "edu", "gob", "gouv", "gov", "ltd", "mil", "ne", "net", "nom", "or"),
    "org",
}
"""Before a country these are no owner's name: `example.co.uk` is one, `co.uk` is not."""
SHARED_HOSTS = {
    *("amazonaws.com", "azurewebsites.net", "blogspot.com", "cloudfront.net", "ddns.net"),
    *("duckdns.org", "dyndns.org", "fly.dev", "github.io", "herokuapp.com", "netlify.app"),
    *("no-ip.org", "pages.dev", "vercel.app", "web.app", "workers.dev"),
}
"""Below these everyone can have a name; the label before it is the owner's."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z0-9-]{2,63}")


class Plan:
    """Whose addresses and names are whose.

    Args:
        networks: Own networks and single addresses, in CIDR form.
        peers: Networks that other operators of the city published.
        domains: Own domains and those of peers.
    """

    def __init__(
        self, networks: Iterable[str] = (), peers: Iterable[str] = (), domains: Iterable[str] = ()
    ) -> None:
        own = [ipaddress.ip_network(one, strict=False) for one in networks]
        others = [ipaddress.ip_network(one, strict=False) for one in (*NEVER, *peers)]
        self.is_empty = not own
        """Nothing says which addresses are ours, so none is known to be external."""
        self._spans = {version: _spans([*own, *others], version) for version in PREFIX}
        self._domains = tuple(one for one in map(name_of, domains) if one)
        self.is_external = lru_cache(maxsize=65_536)(self._is_external)
        self.is_external_name = lru_cache(maxsize=16_384)(self._is_external_name)

    def _is_external(self, address: Address) -> bool:
        """Whether an address is nobody's whom we know."""
        return not self.is_empty and not self._meets(address.version, int(address), int(address))

    def network_of(self, address: Address) -> Network | None:
        """The /24 or /48 around an external address; None if some of it is ours or a peer's."""
        length = PREFIX[address.version]
        around = ipaddress.ip_network((address, length), strict=False)
        first, last = int(around.network_address), int(around.broadcast_address)
        return None if self._meets(address.version, first, last) else around

    def _is_external_name(self, name: str) -> bool:
        """Whether a name in canonical form is nobody's whom we know."""
        if name.rpartition(".")[2] in NAMES_NEVER:
            return False
        return not any(name == own or name.endswith(f".{own}") for own in self._domains)

    def _meets(self, version: int, first: int, last: int) -> bool:
        """Whether a span of addresses meets one of ours."""
        starts, ends = self._spans[version]
        at = bisect_right(starts, last)
        return at > 0 and ends[at - 1] >= first


@lru_cache(maxsize=16_384)
def address_of(text: str) -> Address | None:
    """An address in canonical form: without scope, IPv4 within IPv6 as IPv4."""
    try:
        address = ipaddress.ip_address(text.strip().partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def name_of(text: str) -> str | None:
    """A domain name in canonical form: lower case, IDNA, no dot at its end; None if it is none.

    References:
        RFC 5891 (IDNA 2008), UTS 46 mapping.
    """
    name = text.strip().rstrip(".").lower()
    if not name.isascii():
        import idna

        try:
            name = idna.encode(name, uts46=True).decode()
        except idna.IDNAError:
            return None
    return name if _NAME.fullmatch(name) and not name.rpartition(".")[2].isdigit() else None


def registered(name: str) -> str | None:
    """The part of a name that somebody registered, by a short table; None if it is not below one.

    The public suffix list would say it of more names; where this table does not know a suffix, two
    labels count, which joins too much rather than telling too much.
    """
    labels = name.split(".")
    last_two = ".".join(labels[-2:])
    is_suffix = last_two in SHARED_HOSTS or (len(labels[-1]) == 2 and labels[-2] in SECOND_LEVELS)
    wanted = 3 if is_suffix else 2
    return ".".join(labels[-wanted:]) if len(labels) >= wanted else None


def _spans(networks: Sequence[Network], version: int) -> tuple[list[int], list[int]]:
    """First and last addresses of networks, without overlaps, ascending."""
    spans: list[list[int]] = []
    of_version = (one for one in networks if one.version == version)
    for one in sorted((int(n.network_address), int(n.broadcast_address)) for n in of_version):
        if spans and one[0] <= spans[-1][1] + 1:
            spans[-1][1] = max(spans[-1][1], one[1])
        else:
            spans.append(list(one))
    return [first for first, _ in spans], [last for _, last in spans]
