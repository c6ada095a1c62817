"""Protected samples between operators: events of a finding that was right, made nobody's.

A sample is the one thing made of events that ever leaves, so it leaves by a list of its own: what
an event did stays as it is, who and what it was about is replaced, everything else is left out.
Within one sample the same name is always replaced by the same one, and distances of time stay, so
that a rule that looks for either still matches.

Both ends check the form. So the hub takes no name that was not replaced, and a sample cannot speak
of a receiver's own machines: nothing real has the addresses and names that a sample may hold, but
for the private addresses, of which a network at the end of each range was taken. What the rule
says itself is no secret, and may stand in a sample where nothing else may (`Words`).

References:
    RFC 5737 and 3849 (addresses for documentation), RFC 7042 section 2.1.1 (the same for MAC),
    RFC 6676 (multicast), RFC 2606 (names).
"""

from __future__ import annotations

import ipaddress
import math
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

import msgspec

from cityward import InputError, Unsafe
from cityward.fields import FIELDS
from siem.sharing.envelope import Envelope
from siem.sharing.external import Address, Plan, address_of
from siem.sharing.policy import ECHO_MIN, is_of
from siem.sharing.share import NAMESPACE
from siem.sharing.transforms import round_time
from siem.sharing.wire import Sample
from siem.store.protocol import Document
from siem.store.samples import EVENTS_MAX, Foreign, Release, State

TIME = "@timestamp"
STAND_IN = "sample-value-"
"""Begins what stands for a value that a rule only wants to be there."""
AUDIENCE, MARKING = "peers", "green"
"""Whom a sample is for, and the marking under which all operators may read it."""
BYTES_MAX = 64 << 10
LIST_MAX = 20
DAY = timedelta(days=1)
EXPIRES_WITHIN = timedelta(days=400)
ROUNDED_TO = timedelta(hours=1)
"""The first event of a sample is put to the begin of such an interval."""
KEPT = frozenset(
    (
        *("event.action", "event.category", "event.code", "event.kind", "event.outcome"),
        *("event.type", "event.severity", "event.reason", "event.duration"),
        *("network.transport", "network.protocol", "network.application", "network.direction"),
        *("network.type", "network.bytes", "network.packets"),
        *("source.port", "source.bytes", "source.packets"),
        *("destination.port", "destination.bytes", "destination.packets"),
        *("process.name", "process.parent.name", "file.extension", "file.size"),
        *("http.request.method", "http.request.body.bytes", "http.response.status_code"),
        *("http.response.body.bytes", "http.version", "url.scheme"),
        *("dns.type", "dns.question.type", "dns.answers.type", "dns.answers.ttl"),
        *("dns.op_code", "dns.response_code"),
        *("tls.version", "tls.version_protocol", "tls.next_protocol", "tls.resumed", "tls.cipher"),
        *("log.level", "log.syslog.facility.name", "log.syslog.severity.name"),
        *("log.syslog.priority", "error.code", "error.type"),
        *("cw.logsource.category", "cw.logsource.product", "cw.logsource.service"),
        *("cw.source.zone_type", "cw.source.purdue", "cw.destination.zone_type"),
        *("cw.destination.purdue", "cw.asset.zone_type", "cw.asset.purdue", "cw.conduit.allowed"),
        *("ot.operation", "ot.is_command", "ot.direction", "ot.function.code", "ot.function.name"),
        *("ot.function.sub", "ot.point.count", "ot.point.type", "ot.value", "ot.value_prev"),
        *("ot.unit_of_measure", "ot.cause", "ot.exception"),
        *("phys.state", "phys.state_prev", "phys.reading", "phys.quantity", "phys.unit"),
        *("phys.quality", "phys.speed", "phys.object", "phys.priority_class"),
    )
)
"""Fields that say what was done; their texts only as words, see `_WORD`."""

NAMES = {
    "source.mac": "mac",
    "destination.mac": "mac",
    "host.mac": "mac",
    "user.name": "user",
    "user.id": "user",
    "user.email": "user",
    "user.domain": "domain",
    "related.user": "user",
    "host.name": "host",
    "host.hostname": "host",
    "related.hosts": "host",
    "observer.name": "host",
    "observer.hostname": "host",
    "log.syslog.hostname": "host",
    "source.domain": "domain",
    "destination.domain": "domain",
    "url.domain": "domain",
    "dns.question.name": "domain",
    "dns.question.registered_domain": "domain",
    "dns.answers.name": "domain",
    "tls.client.server_name": "domain",
    "cw.source.asset_id": "asset",
    "cw.destination.asset_id": "asset",
    "cw.asset.asset_id": "asset",
    "cw.source.zone": "zone",
    "cw.destination.zone": "zone",
    "cw.asset.zone": "zone",
    "cw.conduit.id": "conduit",
    "cw.site": "site",
    "ot.unit": "number",
    "ot.common_address": "number",
    "ot.point.address": "number",
    "ot.point.tag": "point",
    "ot.link_id": "link",
    "ot.mqtt.topic": "topic",
    "ot.mqtt.client_id": "client",
    "ot.charger.id": "charger",
    "ot.charger.connector": "number",
    "ot.trip.id": "trip",
    "ot.trip.route": "route",
    "phys.point": "point",
    "phys.subject": "subject",
    "phys.track": "track",
}
"""Fields that say who or what it was, and what sort of name each holds."""
ADDRESSES = frozenset(name for name, one in FIELDS.items() if one.type in ("ip", "ip[]"))
REPLACED = ADDRESSES | NAMES.keys()
MAY_LEAVE = KEPT | REPLACED
"""All that a sample may hold besides the time."""

_WORD = re.compile(r"[A-Za-z0-9_.:+/-]{1,48}( [A-Za-z0-9_.:+/-]{1,24}){0,3}")
_ONE_WORD = re.compile(r"[A-Za-z0-9_.:+/-]{1,48}")
_PROGRAM = re.compile(r"[A-Za-z0-9_.:+-]{1,48}")
_NARROW = {
    "event.reason": _ONE_WORD,
    "process.name": _PROGRAM,
    "process.parent.name": _PROGRAM,
}
"""Of these only a single word, since logs put whole sentences into them; and no path of a program,
since folders have names of people."""
_LIKE_ADDRESS = re.compile(
    r"(?<!\d)(?<!\d[._-])(\d{1,3}[._-]){3}\d{1,3}(?![._-]?\d)"
    r"|([0-9a-f]{2}[-_:.]){5}[0-9a-f]{2}|:[0-9a-f]{0,4}:",
    re.IGNORECASE,
)
"""An address within a word: `login_from_10_1_2_3`. What goes on, as an object id does, is none."""
_NO_LETTER = re.compile(r"[^a-z0-9]+")
_NAMED_TOO = ("cw.operator", "observer.serial_number")
"""Names that are not replaced, but stay."""

_HOMES = (
    ("10.0.0.0/8", "10.254.253.0/24"),
    ("172.16.0.0/12", "172.31.253.0/24"),
    ("192.168.0.0/16", "192.168.253.0/24"),
    ("100.64.0.0/10", "100.127.253.0/24"),
    ("169.254.0.0/16", "169.254.253.0/24"),
    ("224.0.0.0/4", "233.252.0.0/24"),
    ("fc00::/7", "fdfe:cdfe::/120"),
    ("fe80::/10", "fe80::fdfe:0/120"),
    ("ff00::/8", "ff15::fdfe:0/120"),
)
"""What is special stays special: a network, and where its addresses are put."""
_OURS = ("192.0.2.0/24", "2001:db8:1::/120")
_OUTSIDE = ("203.0.113.0/24", "2001:db8:2::/120")
_HOME_OF = [(ipaddress.ip_network(one), ipaddress.ip_network(home)) for one, home in _HOMES]
_PLACES = [
    *(home for _, home in _HOME_OF),
    *map(ipaddress.ip_network, (*_OURS, *_OUTSIDE)),
]
_NOBODYS = frozenset(
    ("0.0.0.0", "255.255.255.255", "::", *(f"127.0.0.{n}" for n in range(256)), "::1")
)
"""Addresses that every machine has."""
_GROUPS = [
    ipaddress.ip_network(one)
    for one in ("224.0.0.0/24", "ff01::/112", "ff02::/112", "ff02::1:0/112")
]
"""Groups with a meaning of their own, the same everywhere; that of a solicited node is none, it
holds the end of its address."""
_MAC = "00-00-5E-00-53-{:02X}"
_MADE = {
    "mac": re.compile(r"00-00-5E-00-53-[0-9A-F]{2}"),
    "domain": re.compile(r"sample-[1-9]\d{0,3}\.example"),
}


RELEASED: Mapping[State, str] = {
    "due": "waits to be sent",
    "approval": "waits for one more person",
    "older": "waits until the hub understands samples",
    "sent": "on its way",
    "taken": "let out",
    "refused": "not kept by the hub",
    "withdraw": "is taken back",
    "withdrawn": "taken back",
}
"""How it stands with what was let out, in words."""


class Own(msgspec.Struct, frozen=True):
    """A finding of ours whose events are protected."""

    finding: str
    rule: str
    events: int
    """0: it is not called right any more."""
    by: str
    """Whose verdict it is."""
    time: datetime
    release: Release | None = None
    """What was let out of it last."""


class Offer(msgspec.Struct, frozen=True):
    """What would leave of a finding."""

    finding: str
    rule: str
    title: str
    """Of the rule."""
    events: tuple[tuple[Document, Document | None], ...]
    """Each as it is kept, and as it would leave; None: it stays."""
    why: str = ""
    """What forbids it, in words; empty: it may leave."""
    seen: str = ""
    """Hash of all that would leave: who lets it out has seen this."""
    payload: bytes = b""
    policy: str = ""
    people: int = 0
    """How many have to say yes."""
    is_named: bool = False
    """Other operators are told whose it is."""
    days: int = 0
    """So long after it was sent it is over."""


class Compared(msgspec.Struct, frozen=True):
    """A field of an event, and what becomes of it."""

    name: str
    here: Any
    leaves: Any
    """None: it stays here."""
    how: str
    """In words."""


class Words(Protocol):
    """What the rule of a sample says itself; see `siem/literals.py`."""

    @property
    def fields(self) -> frozenset[str]:
        """Fields of which it says a value."""
        ...

    @property
    def present(self) -> frozenset[str]:
        """Fields that only have to be there, or to be told apart."""
        ...

    def of(self, field: str, value: Any) -> Any:
        """What a value is in the rule's own words; None: it says nothing of it."""
        ...

    def allows(self, field: str, value: Any) -> bool:
        """Whether a sample may hold a value since the rule says it, or stands for one."""
        ...


class NoWords:
    """Of a rule that nobody knows."""

    fields: frozenset[str] = frozenset()
    present: frozenset[str] = frozenset()

    def of(self, field: str, value: Any) -> None:
        """Nothing."""

    def allows(self, field: str, value: Any) -> bool:
        """Nothing."""
        return False


def no_words(rule: str) -> Words:
    """Of any rule."""
    return NoWords()


class Masks:
    """What stands for a name within one sample: always the same.

    Args:
        plan: Which addresses are ours, so that what is outside stays outside.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._made: dict[tuple[str, str], Any] = {}
        self._counts: dict[str, int] = {}

    def of(self, field: str, value: Any) -> Any:
        """What stands for a value.

        Raises:
            InputError: it is no name, or there are too many.
        """
        if isinstance(value, (list, tuple)):
            return [self.of(field, one) for one in value[:LIST_MAX]]
        if field in ADDRESSES:
            return self._address(str(value))
        kind, said = NAMES[field], str(value)
        known = self._made.get((kind, said))
        if known is None:
            known = self._made[kind, said] = self._name(kind)
        return int(known) if FIELDS[field].type == "long" else known

    def stand_in(self, value: str) -> str:
        """What stands for a value that only has to be there, or to be told apart."""
        key = ("value", value)
        if key not in self._made:
            self._made[key] = self._name("value")
        return str(self._made[key])

    def _name(self, kind: str) -> str:
        n = self._next(kind)
        if kind == "mac":
            return _MAC.format(self._within(n, 255))
        if kind == "number":
            return str(n)
        return f"sample-{n}.example" if kind == "domain" else f"sample-{kind}-{n}"

    def _address(self, text: str) -> str:
        address = address_of(text)
        if address is None:
            raise InputError("an address that is none", "sample", "Its event is broken.")
        if str(address) in _NOBODYS or any(address in one for one in _GROUPS):
            return str(address)
        home = self._home(address)
        key = ("address", str(address))
        if key not in self._made:
            number = self._within(self._next(str(home)), 254)
            self._made[key] = str(home.network_address + number)
        return str(self._made[key])

    def _home(self, address: Address) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
        for network, home in _HOME_OF:
            if address.version == network.version and address in network:
                return home
        outside = _OUTSIDE if self._plan.is_external(address) else _OURS
        return ipaddress.ip_network(outside[address.version == 6])

    def _next(self, kind: str) -> int:
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._counts[kind]

    @staticmethod
    def _within(number: int, most: int) -> int:
        if number > most:
            raise InputError("too many different addresses", "sample", "It cannot be released.")
        return number


def masked(
    events: Sequence[Document],
    plan: Plan,
    dropped: frozenset[str] = frozenset(),
    words: Words | None = None,
) -> list[Document]:
    """Events as they may leave: the same things done by nobody.

    Args:
        events: As they are kept, the oldest first.
        plan: Which addresses are ours.
        dropped: Fields that the policy keeps here.
        words: What the rule says itself.

    Returns:
        Flat names of the schema; times as aware datetimes.

    Raises:
        InputError: there are too many different addresses in them.
    """
    masks = Masks(plan)
    words = words or NoWords()
    first = min(one[TIME] for one in events)
    back = first - round_time(first, ROUNDED_TO)
    made = [
        {TIME: one[TIME] - back}
        | {
            name: masks.of(name, value) if name in REPLACED else value
            for name, value in sorted(one.items())
            if name in MAY_LEAVE - dropped and _is_said(name, value)
        }
        for one in events
    ]
    hidden = set(_names(events))
    made = [
        {name: value for name, value in one.items() if not _repeats(name, value, hidden)}
        for one in made
    ]
    return [
        one | dict(_by_the_rule(event, one, words, masks, dropped))
        for event, one in zip(events, made, strict=True)
    ]


def _by_the_rule(
    event: Document, made: Document, words: Words, masks: Masks, dropped: frozenset[str]
) -> Iterator[tuple[str, Any]]:
    """Fields that hold what the rule says, or what stands for what it only wants to be there."""
    for name in sorted(words.fields | words.present):
        if is_of(name, dropped) or (name in KEPT and name in made):  # that leaves as it is
            continue
        said = [one for one in _values(event, name) if isinstance(one, (str, int, float))]
        found = [_said(name, one, words, masks) for one in said]
        if all(one is None for one in found):
            continue
        several = [one for one in found if one is not None][:LIST_MAX]
        is_list = FIELDS[name].type.endswith("[]") if name in FIELDS else len(several) > 1
        yield name, several if is_list else several[0]


def _said(name: str, value: Any, words: Words, masks: Masks) -> Any:
    """One value as it may leave; None: it stays."""
    said = words.of(name, value)
    if said is None and name in REPLACED:
        return masks.of(name, value)
    if said is None and name in words.present and name not in MAY_LEAVE:
        return masks.stand_in(str(value))
    return said


def _values(event: Mapping[str, Any], name: str) -> Sequence[Any]:
    """Values of a field, within another one too, as a source's own fields are kept."""
    if name in event:
        value = event[name]
        return value if isinstance(value, (list, tuple)) else (value,)
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        inner = event.get(".".join(parts[:count]))
        if isinstance(inner, Mapping):
            return _values(inner, ".".join(parts[count:]))
    return ()


def compared(before: Document, after: Document | None) -> list[Compared]:
    """Fields of an event, those that leave first, each with what becomes of it."""
    leaves = after or {}
    names = sorted({*before, *leaves}, key=lambda one: (one not in leaves, one))
    return [
        Compared(name, _here(before, name), leaves.get(name), _how(name, leaves.get(name)))
        for name in names
    ]


def _here(event: Document, name: str) -> Any:
    if name in event:
        return event[name]
    found = _values(event, name)
    return found[0] if len(found) == 1 else list(found)


def _how(name: str, leaves: Any) -> str:
    if leaves is None:
        return "stays here"
    if name == TIME:
        return "moved, distances stay"
    several = leaves if isinstance(leaves, list) else [leaves]
    if all(_may_stand(name, one) for one in several):
        return "replaced" if name in REPLACED else "as it is"
    is_stand_in = all(str(one).startswith(STAND_IN) for one in several)
    return "replaced" if is_stand_in else "in the rule's own words"


def _is_said(name: str, value: Any) -> bool:
    """Whether a field has something that may be said in its form."""
    if value is None or value in ("", [], ()):
        return False
    if name in REPLACED:
        return True
    plain = list(value) if isinstance(value, tuple) else value
    return _fits(name, plain) and not (isinstance(plain, list) and len(plain) > LIST_MAX)


def _names(events: Sequence[Document]) -> Iterator[str]:
    """Names and addresses that stay here, as they are looked for in what leaves."""
    for event in events:
        for name in {*REPLACED, *_NAMED_TOO} & event.keys():
            value = event[name]
            for one in value if isinstance(value, (list, tuple)) else (value,):
                if name in ADDRESSES:
                    yield str(one).lower()
                elif NAMES.get(name) != "number":
                    yield from filter(None, map(_looked_for, _pieces(name, str(one))))


def _pieces(name: str, text: str) -> Iterator[str]:
    """A name, and what people call it: without its domain."""
    yield text
    yield from re.split(r"[@\\]", text)
    if NAMES.get(name) in ("host", "domain"):
        yield text.partition(".")[0]


def _looked_for(name: str) -> str:
    """How a name is looked for: a short one, as `root`, only as a word among others."""
    plain = _letters(name)
    if len(plain) >= ECHO_MIN:
        return plain
    return f" {plain} " if len(plain) > 1 and not plain.isdecimal() else ""


def _letters(text: str) -> str:
    """Letters and digits alone: a name written in another way is the same name."""
    return _NO_LETTER.sub("", text.lower())


def _repeats(name: str, value: Any, hidden: Collection[str]) -> bool:
    """Whether a name that stays here can be read in what stays as it is."""
    if name not in KEPT:
        return False
    texts = value if isinstance(value, list) else [value]
    said = [one.lower() for one in texts if isinstance(one, str)]
    written = [each for text in said for each in (text, _letters(text), _words(text))]
    return any(one in each for each in written for one in hidden)


def _words(text: str) -> str:
    words = _NO_LETTER.sub(" ", text).split()
    return f" {' '.join(words)} " if len(words) > 1 else ""


def sample_id(finding: str, number: int) -> str:
    """The id under which a sample leaves; released anew after a withdrawal, another one."""
    return str(uuid.uuid5(NAMESPACE, f"sample {number}\0{finding}"))


def ends_at(now: datetime, retention: timedelta) -> datetime:
    """When a sample ends: by the day, since all operators read it, and not when it was let out."""
    return round_time(now, DAY) + DAY + retention


def plain(said: Sample) -> dict[str, Any]:
    """The payload, without what is not said."""
    made: dict[str, Any] = msgspec.to_builtins(said)
    return {name: value for name, value in made.items() if value}


# ---- What comes in


def checked(
    payload: Mapping[str, Any], where: str, words_of: Callable[[str], Words] = no_words
) -> Sample:
    """A sample as it may be kept, whoever sends it.

    Args:
        payload: What came.
        where: Of what an error speaks.
        words_of: What the rule of this id says itself; only asked of what may not leave otherwise.

    Raises:
        Unsafe: it is none, says too much, or names something that was not replaced.
    """
    if len(msgspec.json.encode(payload)) > BYTES_MAX:
        raise Unsafe("a sample that is too long", where, f"At most {BYTES_MAX:,} bytes.")
    try:
        said = msgspec.convert(payload, Sample)
        times = [msgspec.convert(one.get(TIME), datetime) for one in said.events]
    except (msgspec.ValidationError, RecursionError) as error:
        raise Unsafe(f"no sample: {str(error)[:200]}", where, "Update the node.") from error
    if any(one.tzinfo is None or not 1970 <= one.year < 9999 for one in times):
        raise Unsafe("a sample with a time that is none", where, "Send times in UTC.")
    if times != sorted(times):
        raise Unsafe("a sample that is out of order", where, "Send the oldest first.")
    for one in said.events:
        for name, value in one.items():
            if name != TIME:
                _check_field(name, value, where, lambda: words_of(said.rule))
    return said


def _check_field(name: str, value: Any, where: str, words: Callable[[], Words]) -> None:
    several = value if isinstance(value, list) else [value]
    is_right_form = name not in FIELDS or FIELDS[name].type.endswith("[]") is isinstance(
        value, list
    )
    if 0 < len(several) <= LIST_MAX and is_right_form:
        odd = [one for one in several if not _may_stand(name, one)]
        if not odd or all(words().allows(name, one) for one in odd):
            return
    if name not in MAY_LEAVE:
        what = f"{name[:60]!r} in a sample, which no sample may hold"
        raise Unsafe(what, where, "Update the node.")
    raise Unsafe(f"a value of {name} that no sample may hold", where, "Update the node.")


def _may_stand(name: str, value: Any) -> bool:
    """Whether a sample of any rule may hold a value."""
    if name not in MAY_LEAVE or (name in REPLACED and not _is_made(name, value)):
        return False
    return _FITS[FIELDS[name].type.removesuffix("[]")](name, value)


def _is_made(name: str, value: Any) -> bool:
    """Whether a value stands for a name, and is none itself."""
    if name in ADDRESSES:
        return isinstance(value, str) and _is_made_address(value)
    kind = NAMES[name]
    if kind == "number":
        return str(value).isascii() and str(value).isdigit() and len(str(value)) <= 4
    pattern = _MADE.get(kind) or re.compile(rf"sample-{kind}-[1-9]\d{{0,3}}")
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_made_address(text: str) -> bool:
    address = address_of(text)
    if address is None or str(address) != text:
        return False
    places = (*_GROUPS, *_PLACES)
    return text in _NOBODYS or any(
        address.version == one.version and address in one for one in places
    )


def _fits(name: str, value: Any) -> bool:
    """Whether a value has the type of its field, and a text is a word."""
    kind = FIELDS[name].type
    if kind.endswith("[]"):
        return isinstance(value, list) and all(_FITS[kind[:-2]](name, one) for one in value)
    return _FITS[kind](name, value)


def _is_word(name: str, value: Any) -> bool:
    if not isinstance(value, str):
        return False
    is_word = _NARROW.get(name, _WORD).fullmatch(value) is not None
    return is_word and (name in REPLACED or _LIKE_ADDRESS.search(value) is None)


def _is_whole(name: str, value: Any) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _is_number(name: str, value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


_FITS: Mapping[str, Callable[[str, Any], bool]] = {
    "keyword": _is_word,
    "ip": lambda name, value: isinstance(value, str),
    "long": _is_whole,
    "double": _is_number,
    "float": _is_number,
    "boolean": lambda name, value: isinstance(value, bool),
}


def read(envelope: Envelope, now: datetime, words_of: Callable[[str], Words] = no_words) -> Foreign:
    """A sample of another operator, as the hub passes it on and a node keeps it.

    Args:
        envelope: Of the hub; its signature was checked.
        now: The node's time.
        words_of: See `checked`.

    Raises:
        Unsafe: it is none.
    """
    where = f"sample of envelope {envelope.seq}"
    said = checked(envelope.payload, where, words_of)
    if not said.operator:
        raise Unsafe("a sample that nobody released", where, "Ask the hub.")
    expires = envelope.expires
    if expires is None or expires.tzinfo is None or not now < expires < now + EXPIRES_WITHIN:
        raise Unsafe("a sample that is over, or never ends", where, "Ask the hub.")
    try:
        is_id = str(uuid.UUID(envelope.share_id)) == envelope.share_id
    except ValueError:
        is_id = False
    if not is_id:
        raise Unsafe("a sample without an id", where, "Ask the hub.")
    return Foreign(
        id=envelope.share_id,
        rule=said.rule,
        operator=said.operator,
        received=now,
        expires=expires,
        events=tuple({**one, TIME: msgspec.convert(one[TIME], datetime)} for one in said.events)[
            :EVENTS_MAX
        ],
    )
