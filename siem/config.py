"""Settings: one TOML file, read once, handed down as plain arguments.

Every setting has a default that is safe for a control network: listen only, local only.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from cityward import Asset, ConfigError
from cityward.fields import SECTORS
from siem.notify.settings import Route, wrong_routes

ReaderKind = Literal[
    "file",
    "folder",
    "capture",
    "interface",
    "syslog_udp",
    "syslog_tcp",
    "udp",
    "http",
    "mqtt",
    "sensors",
]

_Outer = Literal["enterprise", "dmz", "iot", "physical_security", "remote_access", "external"]
_Inner = Literal["supervisory", "control", "field"]
ZoneType = Literal[_Outer, _Inner, "safety"]
"""Kinds of zones; only a zone of the first kinds may be acted in, and to the second ones a flow may
be cut. Nothing acts on safety."""

PORT_MAX = 65_535
DAYS_MAX = 36_500
MONTHS_MAX = 1_200
QUOTA_MAX_GB = 1e9
EVERY_MIN_S = 1.0
RING_HOURS_MAX = 168
HUB_OPERATOR = "city"
"""Operator id of a hub: what it concludes itself is under it."""
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_HUB = re.compile(r"https://([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:\d{1,5})?/?")
_CLUSTER = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?/?")
_LOOPBACK = re.compile(r"http://(localhost|127\.[0-9.]+|\[::1\])(:|/|$)")
_PREFIX = re.compile(r"[a-z][a-z0-9-]{0,31}")
_REDIS = re.compile(r"(rediss?://(\[[0-9a-f:.]+\]|[a-z0-9.-]+)(:\d{1,5})?(/\d{1,2})?|unix:///\S+)")
_DOMAIN = re.compile(r"([a-z0-9_-]{1,63}\.)+(?!\d+$)[a-z0-9-]{2,63}")
_CLOCK = r"([01]\d|2[0-3]):[0-5]\d"
_DAY = "(mo|tu|we|th|fr|sa|su)"
PEAK = re.compile(rf"({_DAY}(-{_DAY})? )?{_CLOCK}-{_CLOCK}")
"""A span of peak hours."""
SECRETS = {"secret", "password", "token", "key"}
"""Last words of the names of settings that would hold a secret."""

NEEDED = {
    "interface": "interface",
    **dict.fromkeys(("syslog_udp", "syslog_tcp", "udp", "sensors"), "listen"),
    **dict.fromkeys(("http", "mqtt"), "url"),
}
"""What a source needs to be told; the others need a path."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: a name it does not know is an error, not a comment."""


class Source(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that is read."""

    id: str
    """Stable name of the source; part of every event id, so do not change it."""
    reader: ReaderKind
    """What brings the records: `file`, `folder`, `capture`, `interface`, `syslog_udp`,
    `syslog_tcp`, `udp` (datagrams of any kind), `http` (asks an address), `mqtt` (a broker),
    `sensors` (the port to which sensors elsewhere ship)."""
    path: str = ""
    """File, folder or capture to read."""
    glob: str = "*"
    """Which files of a folder."""
    follow: bool = True
    """Go on reading a file as it grows and is rotated."""
    listen: str = "127.0.0.1:5514"
    """Address and port on which syslog, datagrams or what sensors ship are received."""
    interface: str = ""
    """Network interface to listen on."""
    ring_hours: float = 0.0
    """Keep the packets of an interface for so long, as evidence (docs/evidence.md); 0: no ring, or
    1 h if `ring_gb` is set."""
    ring_gb: float = 0.0
    """Most disk that its packets take; 0: no ring, or 2 GB if `ring_hours` is set."""
    url: str = ""
    """Address that is asked (`http`), or of a broker: `mqtts://broker.example`, `mqtt://…:1883`."""
    every_s: float = 60.0
    """Seconds from one question to the next."""
    topics: tuple[str, ...] = ("#",)
    """Topic filters to subscribe to."""
    user: str = ""
    """Name of this node at the broker."""
    secret_env: str = ""
    """Variable of the environment that holds the password at the broker, or the token that is sent
    to a web address."""
    header: str = "Authorization"
    """Header in which that token is sent; as `Bearer …` in this one."""
    ca_file: str = ""
    """Certificates of the authorities that a broker is believed by; empty: the system's."""
    collector: str = ""
    """Which collector reads it (docs/sources.md); empty: as the table of readers there says. `udp`,
    `http` and `mqtt` need one."""
    quiet_ok: bool = False
    """Do not report that this source is silent."""

    @property
    def where(self) -> str:
        """What it reads: a path, a port, an interface, an address."""
        return str(getattr(self, NEEDED.get(self.reader, "path")))


class Zone(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A zone of the network.

    References:
        IEC 62443-3-2, zones and conduits.
    """

    id: str
    """Name of the zone."""
    type: ZoneType
    """What kind of zone it is."""
    networks: tuple[str, ...] = ()
    """Networks that belong to it, in CIDR form; the narrowest wins."""
    purdue: float | None = None
    """Purdue level, 0 to 5, 3.5 for the DMZ."""


class Console(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The web console."""

    host: str = "127.0.0.1"
    """Address to listen on; set `tls_cert`, or put a TLS proxy in front, before you open it to
    others."""
    port: int = 8765
    """Port to listen on; 0 takes a free one."""
    secure_cookie: bool = False
    """Send the session cookie over HTTPS only; set it behind a TLS proxy."""
    tls_cert: str = ""
    """Certificate with its chain, PEM: the console itself speaks HTTPS, TLS 1.2 or newer."""
    tls_key: str = ""
    """Private key of it, PEM without a password; only the console's account may read it."""


class Log(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What services log."""

    file: str = ""
    """File for the log of `cityward run` and `serve`; it may be moved away by logrotate. Empty:
    standard error, which the journal of systemd keeps."""


class Retention(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long things are kept, and how much disk they may take."""

    events_days: int = 30
    """Days that events are kept."""
    findings_days: int = 365
    """Days that closed findings are kept after their last match."""
    disk_quota_gb: float = 20.0
    """Disk for the state folder; when it is full the oldest events go first and are counted."""


class Rules(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which Sigma documents run."""

    shipped: bool = True
    """Use the rule library that comes with cityward."""
    folders: tuple[str, ...] = ()
    """Folders with own rules, filters and correlations."""
    pipelines: tuple[str, ...] = ()
    """Processing pipelines of pySigma (files) that put rules of others in our fields' names."""
    off: tuple[str, ...] = ()
    """Ids of rules that shall not run here."""
    share_max: float = 0.0
    """A rule that takes a larger part of the time of all is set aside, and says so; 0: none is."""


class Models(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The online anomaly models."""

    on: bool = True
    """Run the models."""


class Inventory(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the node learns its assets."""

    learning_hours: float = 24.0
    """Hours after the first start in which what is new is learnt without an event."""
    assets_most: int = 20_000
    """Observed assets that are kept at most; what comes beyond is counted."""


class Calendar(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A span of time with another mode: everywhere, or at a site, in a zone, at assets."""

    since: datetime
    """Begin, with its offset: `2026-03-01T22:00:00Z`."""
    until: datetime
    """End; it does not belong to the span any more."""
    mode: Literal["normal", "maintenance", "exercise", "test"]
    """What is going on."""
    site: str = ""
    """Only at this site."""
    zone: str = ""
    """Only in this zone."""
    assets: tuple[str, ...] = ()
    """Only at these assets."""
    reason: str = ""
    """Why, for those who ask later."""


class Sensor(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a sensor ships to, for `cityward collect`."""

    node: str = ""
    """Address and port of the node's source with `reader = "sensors"`."""


class Sharing(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may leave this operator, and how; without a policy nothing does."""

    policy: str = ""
    """File with the sharing policy; empty: nothing leaves."""
    baseline: str = ""
    """File with what the operators of the city agreed on, which the policy may only narrow; empty:
    the one that ships."""
    hub: str = ""
    """Address of the city's hub, `https://hub.city.example:8443`; empty: no link."""
    clocks: bool = False
    """Tell the city which legal clocks run here: duty and due time, nothing of the incident."""
    drop_dir: str = ""
    """Folder in which signed envelopes are left for a data diode or a carrier; empty: none."""
    join_key_env: str = ""
    """Variable of the environment that holds the root of the join tokens."""
    join_key_file: str = ""
    """File that holds the root of the join tokens; only the account of the node may read it."""
    own_networks: tuple[str, ...] = ()
    """Own public networks besides those of the zones, in CIDR form; none of their addresses is
    joined."""
    peer_networks: tuple[str, ...] = ()
    """Networks that other operators of the city published; no address of them is joined."""
    own_domains: tuple[str, ...] = ()
    """Own domains and those of peers; no name in them is joined."""


class Hub(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hub of the city; a file with this table, even an empty one, is one of a hub."""

    listen: str = "127.0.0.1:8443"
    """Address and port on which operators reach the exchange, over mutual TLS."""
    names: tuple[str, ...] = ("localhost", "127.0.0.1")
    """Names and addresses by which operators call it; they stand in its certificate."""
    threshold: int = 3
    """Peers and authorities are told no count of operators below it."""
    services: str = ""
    """File with the services of the city; empty: none are shown."""
    map: str = ""
    """GeoJSON file with the districts of the city; empty: no map."""
    drop_dir: str = ""
    """Folder in which signed envelopes arrive that came over a data diode or by a carrier."""
    shares_days: int = 400
    """Days that shared findings are kept at most, whatever their operator says."""
    propose: str = ""
    """Playbook that the hub proposes by itself to operators of a campaign of level high or above
    with an address in common, for example `external-scanner`; empty: only people propose."""


class Cluster(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A search cluster of one's own: a node's copies go there; to a hub it is the common store."""

    url: str
    """Address, `https://search.example:9200`; several nodes with a comma between."""
    kind: Literal["opensearch", "elasticsearch"] = "opensearch"
    """What it is: OpenSearch 2 or Elasticsearch 9."""
    user: str = ""
    """Name of the account there."""
    secret_env: str = ""
    """Variable of the environment that holds its password."""
    secret_file: str = ""
    """File that holds its password; only the account of the service may read it."""
    ca_file: str = ""
    """Certificates of the authorities that the cluster is believed by; empty: the system's."""
    prefix: str = "cw"
    """Begin of the names of all indices and templates."""
    events: bool = True
    """Copy events too; otherwise a node copies findings only."""
    months: int = 13
    """Months that findings and shared findings are kept there, the running one included."""
    events_months: int = 3
    """Months that events are kept there, the running one included."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Addresses of its nodes."""
        return tuple(one.strip() for one in self.url.split(","))


class Flow(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traffic that a person says the process can do without; only such may a playbook cut."""

    source: str
    """Zone, asset or network that starts it."""
    destination: str
    """Zone, asset or network that it goes to."""
    port: int = 0
    """Port it goes to; 0: any."""
    why: str
    """Why nothing needs it, for those who approve."""


class Zones(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """In which types of zones the steps of each action class may act; in `safety` none may."""

    A1: tuple[Literal[_Outer, _Inner], ...] = get_args(_Outer)
    """Reversible, outside or at the edge."""
    A2: tuple[Literal[_Outer, _Inner], ...] = get_args(_Outer)
    """Reversible, one own device or account."""
    A3: tuple[Literal[_Outer, _Inner], ...] = (*get_args(_Outer), *get_args(_Inner))
    """One flow that is listed as not essential; the zones of both its ends count."""

    def allow(self, action_class: str, zone_type: str) -> bool:
        """Whether a class may act in a zone of a type."""
        return zone_type in getattr(self, action_class, ())


class Response(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What playbooks may do here; without `on` they only plan."""

    on: bool = False
    """Run playbooks; their safety gate and the people who approve still decide each step."""
    shipped: bool = True
    """Use the playbooks that come with cityward."""
    folders: tuple[str, ...] = ()
    """Folders with own playbooks."""
    keys: tuple[str, ...] = ()
    """Files with the public keys whose signatures on playbooks count; names are those of the
    files."""
    actuators: dict[str, dict[str, Any]] = {}
    """Outside programs that commands go to: one table by the name of each, with what it needs to
    be told. Secrets are named: `secret_env`, `password_file`."""
    alone: bool = False
    """Start steps of class A1 without a person, if the finding is corroborated and the playbook is
    `live`."""
    exercises: bool = False
    """The actuators are simulators: act on findings of an exercise or a test, and on no others."""
    keep: dict[str, str] = {}
    """Addresses, networks and domains that are never blocked, and why: partners, authorities,
    suppliers, shared clouds."""
    protected: dict[str, str] = {}
    """Addresses, networks, names and assets that are never acted on, and what they are: gateways,
    name servers, nodes of cityward."""
    protected_roles: tuple[str, ...] = (
        *("gateway", "dns", "time", "broker", "historian", "siem", "remote_hands"),
        "emergency",
    )
    """Assets with one of these roles are never acted on."""
    peak_hours: tuple[str, ...] = ()
    """When nobody should intervene: `06:30-09:00`, `mo-fr 16:00-19:00`."""
    time_zone: str = "UTC"
    """Time zone of the peak hours: `Europe/Paris`."""
    zones: Zones = Zones()
    nonessential: tuple[Flow, ...] = ()
    """Traffic that a step of class A3 may cut, one table a flow."""
    people: dict[str, int] = {}
    """How many people use a service that assets serve, or an asset: `"line-2" = 40000`. A step that
    would affect a service of which nobody says it is refused."""
    blast_share: float = 0.1
    """Most of the assets of a zone that a step may affect, its dependants included."""
    actuator_per_hour: int = 20
    """Commands that one actuator is given in an hour, at most; undoing is never limited."""
    zone_in_force: int = 5
    """Effects that may hold in one zone at a time; blocks of what is external do not count."""
    redis: str = ""
    """Address of the Redis that wakes workers, `rediss://redis.example:6379/0`; empty: the node
    runs playbooks itself."""
    redis_secret_env: str = ""
    """Variable of the environment that holds its password."""
    stop_file: str = ""
    """While this file is there nothing is applied; empty: `STOP` in the state folder."""


class Settings(_Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of a node."""

    operator: str = "op-local"
    """Stable id of the operator: lower case, digits, `-`, `_`, `.`."""
    name: str = ""
    """Name of the operator as people know it."""
    sector: str = "other"
    """Sector of the operator; the list is below."""
    site: str = ""
    """Depot, substation, terminal, junction; for events that do not say it."""
    state_dir: str = "~/.local/state/cityward"
    """Folder of everything the node keeps."""
    deadlines: str = ""
    """File of the legal duties and their deadlines; empty: the shipped one, for the EU."""
    mode: Literal["normal", "maintenance", "exercise", "test"] = "normal"
    """What is going on at the operator; `exercise` and `test` never leave as real."""
    console: Console = Console()
    log: Log = Log()
    retention: Retention = Retention()
    rules: Rules = Rules()
    models: Models = Models()
    inventory: Inventory = Inventory()
    sensor: Sensor = Sensor()
    sharing: Sharing = Sharing()
    hub: Hub | None = None
    cluster: Cluster | None = None
    response: Response = Response()
    source: tuple[Source, ...] = ()
    """What is read, one table a source."""
    zone: tuple[Zone, ...] = ()
    """Zones of the network, one table a zone."""
    asset: tuple[Asset, ...] = ()
    """Devices, one table a device."""
    route: tuple[Route, ...] = ()
    """Whom the node tells of findings, one table a route."""
    calendar: tuple[Calendar, ...] = ()
    """Spans of another mode, one table a span."""
    lists: dict[str, tuple[str, ...]] = {}
    """Values for the `%placeholders%` of rules that the inventory cannot give."""

    @property
    def state_path(self) -> Path:
        """Folder of the state, with `~` resolved."""
        return Path(self.state_dir).expanduser()


SEARCH_PATH = (
    "cityward.toml",
    "~/.config/cityward/cityward.toml",
    "/etc/cityward/cityward.toml",
)
"""Where the file is looked for, after `--config` and `CITYWARD_CONFIG`; the first one counts."""


def find(named: str | None, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Path of the settings file, or None if there is none.

    Raises:
        ConfigError: a file was named and is not there.
    """
    for origin, path in (
        ("--config", named),
        ("CITYWARD_CONFIG", environment.get("CITYWARD_CONFIG")),
    ):
        if path:
            if not Path(path).is_file():
                raise ConfigError(f"{path} is no file", origin, "Name an existing settings file.")
            return Path(path)
    for place in SEARCH_PATH:
        if Path(place).expanduser().is_file():
            return Path(place).expanduser()
    return None


def load(path: Path) -> Settings:
    """Read a settings file.

    Raises:
        ConfigError: the file is no TOML, or a setting is unknown, of a wrong type or impossible;
            the message names file and key.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"no TOML: {error}", str(path), "Mend the syntax.") from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", str(path), "Check it.") from error
    return parse(raw, str(path))


def parse(raw: Mapping[str, Any], where: str = "settings") -> Settings:
    """Check a settings mapping; see `load`."""
    try:
        settings = msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at ")
        place = key.strip("`").removeprefix("$.").removeprefix("$") or "top level"
        raise ConfigError(what, f"{where}, {place}", "See docs/settings.md.") from error
    for place, what in _impossible(settings):
        raise ConfigError(what, f"{where}, {place}", "See docs/settings.md.")
    return settings


def _impossible(settings: Settings) -> Iterator[tuple[str, str]]:
    if not NAME.fullmatch(settings.operator):
        yield "operator", f"{settings.operator!r} is no operator id"
    if settings.sector not in SECTORS:
        yield "sector", f"{settings.sector!r} is no sector"
    yield from _twice("source", [source.id for source in settings.source])
    yield from _twice("route", [route.id for route in settings.route])
    yield from _twice("zone", [zone.id for zone in settings.zone])
    yield from _twice("asset", [asset.id for asset in settings.asset])
    zones = {zone.id for zone in settings.zone}
    for number, asset in enumerate(settings.asset):
        if asset.zone and zones and asset.zone not in zones:
            yield f"asset[{number}].zone", f"{asset.zone!r} is no zone of this file"
    ports = [number for number, one in enumerate(settings.source) if one.reader == "sensors"]
    for number in ports[1:]:
        # A sensor that comes to another port would ship again what the first one has.
        yield f"source[{number}].reader", "one port for sensors serves them all"
    for number, source in enumerate(settings.source):
        key = NEEDED.get(source.reader, "path")
        if not getattr(source, key):
            yield f"source[{number}].{key}", f"a {source.reader} source needs {key}"
        if not source.every_s >= EVERY_MIN_S:
            yield f"source[{number}].every_s", f"a question every {source.every_s} s is too many"
        if source.ring_hours or source.ring_gb:
            yield from ((f"source[{number}].{key}", what) for key, what in _wrong_ring(source))
        if key == "listen" and not _is_address(source.listen):
            yield f"source[{number}].listen", f"{source.listen!r} is no address:port"
    if (node := settings.sensor.node) and (not _is_address(node) or int(node.split(":")[-1]) == 0):
        yield "sensor.node", f"{node!r} is no address:port"
    if not 0 <= settings.console.port <= PORT_MAX:
        yield "console.port", f"{settings.console.port} is no port"
    if bool(settings.console.tls_cert) != bool(settings.console.tls_key):
        yield "console.tls_key", "a certificate needs its key, and a key its certificate"
    if not 0 <= settings.rules.share_max < 1:
        yield "rules.share_max", f"{settings.rules.share_max} is no part of the time; 0 is no limit"
    kept = settings.retention
    if not (1 <= kept.events_days <= DAYS_MAX and 1 <= kept.findings_days <= DAYS_MAX):
        yield "retention", f"things are kept for 1 to {DAYS_MAX} days"
    if not 0 <= kept.disk_quota_gb <= QUOTA_MAX_GB:
        yield "retention.disk_quota_gb", f"{kept.disk_quota_gb} is no size; 0 is no limit"
    if settings.inventory.learning_hours < 0 or settings.inventory.assets_most < 0:
        yield "inventory", "hours and assets are no less than 0"
    yield from (("sharing." + key, what) for key, what in _wrong_sharing(settings.sharing))
    if settings.hub:
        yield from _wrong_hub(settings, settings.hub)
    if settings.cluster:
        yield from (("cluster." + key, what) for key, what in _wrong_cluster(settings.cluster))
    yield from (("response." + key, what) for key, what in _wrong_response(settings.response))
    yield from wrong_routes(settings.route)
    for number, entry in enumerate(settings.calendar):
        if entry.since.tzinfo is None or entry.until.tzinfo is None:
            yield f"calendar[{number}]", "a time needs its offset, e.g. Z"
        elif entry.until <= entry.since:
            yield f"calendar[{number}].until", "the end is not after the begin"


def _wrong_ring(source: Source) -> Iterator[tuple[str, str]]:
    if source.reader != "interface":
        yield "ring_hours", "only an interface keeps a ring of packets"
    if not 0 <= source.ring_hours <= RING_HOURS_MAX:
        yield "ring_hours", f"packets are kept for at most {RING_HOURS_MAX} h"
    if not 0 <= source.ring_gb <= QUOTA_MAX_GB:
        yield "ring_gb", f"{source.ring_gb} is no size"
    if not NAME.fullmatch(source.id):
        yield "id", f"{source.id!r} is no name of a folder: lower case, digits, - _ ."


def _wrong_hub(settings: Settings, hub: Hub) -> Iterator[tuple[str, str]]:
    if settings.operator != HUB_OPERATOR:
        yield "operator", f"a hub is the operator {HUB_OPERATOR}"
    if settings.source:
        yield "source", "a hub reads no sources: give it a node of its own"
    if not _is_address(hub.listen):
        yield "hub.listen", f"{hub.listen!r} is no address:port"
    if not hub.names:
        yield "hub.names", "operators need a name by which they call it"
    if hub.threshold < 1:
        yield "hub.threshold", "a threshold is 1 or more"
    if not 1 <= hub.shares_days <= DAYS_MAX:
        yield "hub.shares_days", f"things are kept for 1 to {DAYS_MAX} days"


def _wrong_sharing(sharing: Sharing) -> Iterator[tuple[str, str]]:
    if sharing.hub and not _HUB.fullmatch(sharing.hub):
        yield "hub", f"{sharing.hub!r} is no https://name:port"
    if sharing.join_key_env and sharing.join_key_file:
        yield "join_key_file", "join_key_env names the root already"
    for key in ("own_networks", "peer_networks"):
        for network in getattr(sharing, key):
            try:
                ipaddress.ip_network(network)
            except ValueError:
                yield key, f"{network!r} is no network; write 192.0.2.0/24"


def _wrong_cluster(cluster: Cluster) -> Iterator[tuple[str, str]]:
    for url in cluster.urls:
        if not _CLUSTER.fullmatch(url):
            yield "url", f"{url!r} is no https://name:port"
        elif cluster.user and url.startswith("http:") and not _LOOPBACK.match(url):
            yield "url", "a password needs https, but on this machine"
    if cluster.secret_env and cluster.secret_file:
        yield "secret_file", "secret_env names the password already"
    if bool(cluster.user) != bool(cluster.secret_env or cluster.secret_file):
        yield "user", "a user needs a password, and a password its user"
    if not _PREFIX.fullmatch(cluster.prefix):
        yield "prefix", f"{cluster.prefix!r} begins no index: lower case, digits, -"
    if not (1 <= cluster.months <= MONTHS_MAX and 1 <= cluster.events_months <= MONTHS_MAX):
        yield "months", f"things are kept for 1 to {MONTHS_MAX} months"


def _wrong_response(response: Response) -> Iterator[tuple[str, str]]:
    for name, told in response.actuators.items():
        if not NAME.fullmatch(name):
            yield "actuators", f"{name!r} is no name of an actuator"
        for key in told:
            if key.rpartition("_")[2] in SECRETS:
                yield f"actuators.{name}.{key}", f"a secret is named, not written: {key}_env"
    for key in response.keep:
        if _network(key) is None and not _DOMAIN.fullmatch(key.lower()):
            yield "keep", f"{key!r} is no address, network or domain"
    for span in response.peak_hours:
        if not PEAK.fullmatch(span):
            yield "peak_hours", f"{span!r} is no span; write mo-fr 06:30-09:00"
    try:
        ZoneInfo(response.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        yield "time_zone", f"{response.time_zone!r} is no time zone"
    for number, flow in enumerate(response.nonessential):
        if not 0 <= flow.port <= PORT_MAX:
            yield f"nonessential[{number}].port", f"{flow.port} is no port"
        if not (flow.source and flow.destination and flow.why):
            yield f"nonessential[{number}]", "a flow has two ends and a reason"
    for name, count in response.people.items():
        if count < 0:
            yield f"people.{name}", f"{count} people are none"
    if not 0 < response.blast_share <= 1:
        yield "blast_share", f"{response.blast_share} is no share: more than 0, at most 1"
    if response.actuator_per_hour < 0 or response.zone_in_force < 0:
        yield "actuator_per_hour", "limits are no less than 0"
    if response.redis and not _REDIS.fullmatch(response.redis):
        yield "redis", f"{response.redis!r} is no rediss://name:port/0"


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return None


def _is_address(text: str) -> bool:
    _, colon, port = text.rpartition(":")
    return bool(colon) and port.isascii() and port.isdecimal() and int(port) <= PORT_MAX


def _twice(table: str, ids: list[str]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for number, one in enumerate(ids):
        if one in seen or not one:
            yield f"{table}[{number}].id", f"{one!r} is there twice or empty"
        seen.add(one)
