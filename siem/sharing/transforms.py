"""Transforms: what becomes of a field before it leaves, each a small pure function.

| name | result |
|---|---|
| `keep`, `drop` | the value; nothing |
| `template` | text made of a template and of fields that leave |
| `local` | `l:` and a token that only this operator can make |
| `join` | `j:` and `p:` tokens that are equal at every operator, of external values only |
| `trunc` | `n:` and the /24 or /48 of an external address; the registered part of a name |
| `grid`, `round` | a place on a grid, a time to an interval; `precision` sets the sizes |
| `bucket`, `category` | lower limit of a range; name of a class |

An address never stays in a field for addresses: what became of it stands in `source.token` or
`destination.token`. Everything else is replaced in place; where a field takes one value only, the
further tokens of a joined one stand in `source.token`, too.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from siem.sharing.external import Address, Plan, address_of, name_of, registered

_PLAIN = ("keyword", "date", "long", "double", "float", "boolean", "geo_point")
TRANSFORMS = {
    "keep": _PLAIN,
    "drop": (*_PLAIN, "text", "ip", "flat_object"),
    "template": ("text",),
    "local": ("keyword", "ip"),
    "join": ("keyword", "ip"),
    "trunc": ("keyword", "ip"),
    "grid": ("geo_point",),
    "round": ("date",),
    "bucket": ("long", "double", "float"),
    "category": ("keyword",),
}
"""Every transform, and the types of fields it takes: an address or free text is never kept."""

TOKEN_FIELDS = {"source.ip": "source.token", "destination.ip": "destination.token"}
"""Where it stands what became of an address; the other fields for addresses cannot leave."""


class Kind(NamedTuple):
    """What sort of indicator a field holds, and whose it has to be before it may be joined."""

    prefix: str
    whose: str
    """`value`: the value itself says it; else the field whose address must be external."""


NAME = Kind("domain-name", "value")
_CLIENT = Kind("tls-fingerprint", "source.ip")
_SERVER = Kind("tls-fingerprint", "destination.ip")
JOINABLE: dict[str, Kind] = {
    "source.ip": Kind("addr", "value"),
    "destination.ip": Kind("addr", "value"),
    "source.domain": NAME,
    "destination.domain": NAME,
    "url.domain": NAME,
    "dns.question.name": NAME,
    "dns.question.registered_domain": NAME,
    "dns.answers.name": NAME,
    "tls.client.server_name": NAME,
    "tls.client.ja3": _CLIENT,
    "tls.client.hash.sha256": _CLIENT,
    "tls.server.ja3s": _SERVER,
    "tls.server.hash.sha256": _SERVER,
    "file.hash.sha256": Kind("file-hash", ""),
    "file.hash.md5": Kind("file-hash", ""),
    "related.hash": Kind("file-hash", ""),
    "url.path": Kind("url-path", "source.ip"),
}
"""Fields that may be joined; a hash of a file is nobody's."""
NAMES = frozenset(name for name, kind in JOINABLE.items() if kind is NAME)

PATH_CLASSES = {
    "traversal": ("../", "..%2f", "%2e%2e", "/etc/passwd"),
    "secrets_file": ("/.env", "/.aws", "/.ssh", "/config.json", "/web.config", "/id_rsa"),
    "source_control": ("/.git", "/.svn", "/.hg"),
    "cms": ("/wp-", "/wordpress", "/xmlrpc.php", "/joomla", "/drupal"),
    "database_admin": ("phpmyadmin", "/pma", "/adminer", "/mysql"),
    "cgi": ("/cgi-bin", ".cgi"),
    "framework": ("/actuator", "/jenkins", "/solr", "/struts", "/vendor/phpunit", "/telescope"),
    "remote_access": ("/remote/", "/dana-na", "/vpn", "/owa", "/autodiscover", "/rdweb"),
    "camera": ("/onvif", "/cgi/snapshot", "/isapi", "/axis-cgi"),
    "login": ("login", "signin", "/auth"),
    "admin": ("/admin", "/manager", "/console"),
    "api": ("/api", "/graphql", "/rest/"),
}
"""Class of a path asked for at a web server, the first that fits; everything else is `other`."""

_STEPS = (1, 2, 5)
_M_PER_DEGREE = 111_320.0
_PATH_MAX = 3
_NUMBER = re.compile(r"\d+")
_RANDOM = re.compile(r"[0-9a-f-]{16,}")
_PLACE = re.compile(r"-?\d{1,2}(\.\d{1,12})?,-?\d{1,3}(\.\d{1,12})?")
_HOLE = re.compile(r"\{([^{}]+)\}")
_UTC_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)


class Stays(StrEnum):
    """Why a value does not leave although a rule names its field."""

    DROPPED = "the rule drops it"
    OURS = "it is ours or a peer's, or not known to be external"
    NO_ROOT = "no join key was exchanged"
    UNREADABLE = "it has no form that could be canonical"
    NOTHING = "nothing that its template needs leaves"


def round_time(time: datetime, step: timedelta) -> datetime:
    """The begin of the interval that a time falls into."""
    return time - (time - _UTC_BEGIN) % step


def grid(point: str, metres: float) -> str | None:
    """The middle of the cell that a place falls into; cells are the same at every operator."""
    try:
        latitude, longitude = (float(part) for part in point.split(","))
    except ValueError:
        return None
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        return None
    high = metres / _M_PER_DEGREE
    row = math.floor(latitude / high)
    middle = max(-90.0, min(90.0, (row + 0.5) * high))
    # Cells get wider in degrees towards the poles; by their row, so that all of a row are alike.
    wide = high / max(math.cos(math.radians(middle)), 0.01)
    east = max(-180.0, min(180.0, (math.floor(longitude / wide) + 0.5) * wide))
    return f"{middle:.5f},{east:.5f}"


def is_place(point: str) -> bool:
    """Whether a text is `lat,lon` on this planet."""
    return (
        _PLACE.fullmatch(point) is not None
        and abs(float(point.partition(",")[0])) <= 90
        and abs(float(point.partition(",")[2])) <= 180
    )


def bucket(number: float) -> float | None:
    """The lower limit of the range 0, 1, 2, 5, 10, 20, 50 … that a number falls into."""
    if not math.isfinite(number):
        return None
    if number < 0:
        return -_upper(-number) if isinstance(number, int) else float(-_upper(-number))
    if number < 1:
        return type(number)(0)
    power = 10 ** (len(str(int(number))) - 1)
    return type(number)(max(step for step in _STEPS if step * power <= number) * power)


def _upper(number: float) -> int:
    """The first limit that is not less than a positive number."""
    power: int = 10 ** (len(str(math.ceil(number))) - 1)
    return next(step for step in (*_STEPS, 10) if step * power >= number) * power


def category(value: str, classes: Mapping[str, Sequence[str]]) -> str:
    """The first class one of whose parts stands in a value; otherwise `other`."""
    said = value.lower()
    named = (name for name, parts in classes.items() if any(part in said for part in parts))
    return next(named, "other")


def canonical_path(path: str) -> str:
    """A path as tools ask for it at every victim: its first parts, without numbers and keys."""
    parts = path.lower().partition("?")[0].split("/")[: _PATH_MAX + 1]
    return "/".join(_NUMBER.sub("0", _RANDOM.sub("0", part)) for part in parts)


def typed(field: str, value: str) -> str | None:
    """A value in canonical form behind its type, as it goes into any keyed transform."""
    if field.endswith(".ip"):
        address = address_of(value)
        return None if address is None else f"ipv{address.version}-addr:{address}"
    if field in NAMES:
        name = name_of(value)
        return None if name is None else f"domain-name:{name}"
    kind = JOINABLE.get(field)
    said = unicodedata.normalize("NFKC", value).strip().lower()
    return f"{kind.prefix if kind else field}:{said}"


def indicators(
    field: str, value: str, document: Mapping[str, Any], plan: Plan
) -> list[tuple[str, str]] | Stays:
    """Marks and canonical values of an external value, the exact one first."""
    kind = JOINABLE[field]
    if kind.prefix == "addr":
        return _of_address(value, plan)
    if kind is NAME:
        return _of_name(value, plan)
    if kind.whose and not _is_external(document.get(kind.whose), plan):
        return Stays.OURS
    said = canonical_path(value) if kind.prefix == "url-path" else value.strip().lower()
    return [("j", f"{kind.prefix}:{said}")] if said else Stays.UNREADABLE


def _of_address(value: str, plan: Plan) -> list[tuple[str, str]] | Stays:
    address = address_of(value)
    if address is None:
        return Stays.UNREADABLE
    if not plan.is_external(address):
        return Stays.OURS
    around = plan.network_of(address)
    prefix = [("p", f"ipv{address.version}-addr:{around}")] if around else []
    return [("j", f"ipv{address.version}-addr:{address}"), *prefix]


def _of_name(value: str, plan: Plan) -> list[tuple[str, str]] | Stays:
    if address_of(value):
        return _of_address(value, plan)
    name = name_of(value)
    if name is None:
        return Stays.UNREADABLE
    if not plan.is_external_name(name):
        return Stays.OURS
    owner = registered(name)
    coarse = [("p", f"domain-name:{owner}")] if owner else []
    return [("j", f"domain-name:{name}"), *coarse]


def trunc(field: str, value: str, plan: Plan) -> str | Stays:
    """The network around an external address, the registered part of an external name."""
    address: Address | None = address_of(value)
    if address is not None:
        around = plan.network_of(address) if plan.is_external(address) else None
        return f"n:{around}" if around else Stays.OURS
    name = name_of(value) if field in NAMES else None
    if name is None:
        return Stays.UNREADABLE
    if not plan.is_external_name(name):
        return Stays.OURS
    return registered(name) or Stays.UNREADABLE


def filled(texts: Sequence[str], shared: Mapping[str, Any]) -> str | Stays:
    """The first text all of whose `{fields}` leave, filled with what leaves."""
    for text in texts:
        if all(name in shared for name in holes(text)):
            return _HOLE.sub(lambda hole: words(shared[hole[1]]), text)
    return Stays.NOTHING


def holes(text: str) -> list[str]:
    """Names of the fields that a template needs."""
    return _HOLE.findall(text)


def words(value: Any) -> str:
    """A value that leaves, within a text."""
    if isinstance(value, (list, tuple)):
        return ", ".join(words(one) for one in value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return str(value)


def _is_external(value: Any, plan: Plan) -> bool:
    address = address_of(value) if isinstance(value, str) else None
    return address is not None and plan.is_external(address)
