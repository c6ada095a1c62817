"""LoRaWAN sensors: uplinks as ChirpStack, The Things Stack, LORIOT and ThingPark pass them on.

Send: let the node subscribe to the network server (`reader = "mqtt"`, `collector = "lorawan"`,
topics `application/+/device/+/event/#` for ChirpStack, `v3/+/devices/+/#` for The Things Stack), or
let the server post them into a folder (`reader = "folder"`); one JSON object an uplink.

Understood: ChirpStack 3 and 4, The Things Stack 2 and 3, LORIOT, ThingPark and gateways of
Milesight: device, application, counter, port, signal, gateways; each measurement that the network
server decoded, or that the payload of a Milesight sensor or of Cayenne LPP says; joins, and
counters that fall or stand still.

Not understood: payloads of other makers that the network server does not decode (kept in
hexadecimal); digital channels of Milesight without the name of the model, what its sensors store
and send later, their serial numbers and versions, and the access points that a tracker hears.

References:
    LoRaWAN 1.0.4, section 4.3.1.5 (frame counter); ChirpStack, "Event types"; The Things Stack,
    "Data Formats"; LORIOT, "Application output message format"; Actility, "ThingPark LRC-AS tunnel
    interface".
"""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from cityward import Event, LogSource, Record, collector
from collectors.city.lorawan_payload import CELSIUS, PERCENT, Measure, decode, model_of
from collectors.values import clean, count, flat, moment, read_json, real, scalar, text, word

LORAWAN = LogSource(category="sensor_reading", service="lorawan")

DEVICES_MAX = 65_536
"""Counters that are remembered; who was silent for longest goes."""
UPLINKS_MAX, MEASURES_MAX = 4_096, 256
"""Of one record, of one uplink."""
GATEWAYS_MAX, PAYLOAD_MAX = 16, 512

READING = {
    "event.kind": "metric",
    "event.category": ["environment"],
    "event.action": "reading",
    "event.dataset": "lorawan.uplink",
    "cw.domain": ["physical"],
}
UNITS = {
    "temperature": CELSIUS,
    "humidity": PERCENT,
    "battery": PERCENT,
    "co2": "[ppm]",
    "distance": "mm",
    "battery_voltage": "V",
}
"""Units of names that network servers' decoders share; others say none."""

Object = Mapping[str, Any]


class Uplink(NamedTuple):
    """What every network server says, in its own words."""

    server: str
    kind: str
    """`uplink`, `join`, or another kind of message in the server's word."""
    device: str | None
    """EUI, 16 hexadecimal digits."""
    when: datetime | None
    name: str | None = None
    application: str | None = None
    counter: Any = None
    port: Any = None
    payload: bytes = b""
    decoded: Any = None
    gateways: tuple[Object, ...] = ()
    """`id`, `rssi`, `snr` of each, and `latitude` and `longitude` if known."""
    models: tuple[Any, ...] = ()
    """Names in which the model may stand."""
    vendor: Object = MappingProxyType({})


def _base(uplink: Uplink) -> dict[str, Any]:
    """What all events of an uplink share."""
    vendor: dict[str, Any] = {"server": uplink.server}
    fields: dict[str, Any] = {
        **READING,
        "phys.point": uplink.device,
        "cw.time_source": "source" if uplink.when else "collector",
        "cw.vendor": vendor,
    }
    if uplink.name:
        fields["host.name"] = uplink.name
    if (counter := count(uplink.counter)) is not None:
        fields["event.sequence"] = counter
    for name, value in (("application", uplink.application), ("port", uplink.port)):
        if value is not None:
            vendor[name] = scalar(value)
    best = _best(uplink.gateways)
    if best:
        vendor["gateways"] = ", ".join(clean(str(one["id"])) for one in uplink.gateways)
        for name in ("rssi", "snr"):
            if (number := real(best.get(name))) is not None:
                vendor[name] = number
    vendor.update(
        {name: scalar(value) for name, value in uplink.vendor.items() if value is not None}
    )
    return fields


def _best(gateways: tuple[Object, ...]) -> Object:
    """Who heard it loudest."""
    return max(gateways, key=lambda one: real(one.get("rssi")) or -1_000.0, default={})


def _measures(uplink: Uplink) -> tuple[list[Measure], bytes, str]:
    """Measurements, what of the payload is not understood, and who decoded it."""
    if isinstance(uplink.decoded, dict) and uplink.decoded:
        found = [_named(name, value) for name, value in flat(uplink.decoded).items()]
        return [one for one in found if one is not None], b"", "network server"
    port = count(uplink.port)
    measures, rest = decode(uplink.payload[:PAYLOAD_MAX], port, model_of(*uplink.models))
    return measures, rest, "cityward" if measures else "nobody"


def _named(name: str, value: Any) -> Measure | None:
    """A value that the network server decoded; a list is a state, in JSON."""
    if value is None or value in ("", [], {}):
        return None
    if isinstance(value, bool):
        return Measure(name, "true" if value else "false")
    number = None if isinstance(value, str) else real(value)
    if number is None:
        return Measure(name, str(scalar(value)))
    return Measure(name, number, UNITS.get(name.rpartition(".")[2].lower(), ""))


def _reading(measure: Measure) -> dict[str, Any]:
    fields: dict[str, Any] = {"phys.quantity": measure.name}
    if isinstance(measure.value, str):
        return {**fields, "event.kind": "state", "phys.state": measure.value}
    fields["phys.reading"] = measure.value
    if measure.unit:
        fields["phys.unit"] = measure.unit
    return fields


# ---- Network servers


def read(said: Object) -> Uplink | None:
    """A message in the words of whichever network server wrote it; None if none did."""
    for key, reader in SERVERS:
        if key in said:
            found: Uplink | None = reader(said)
            return found
    return None


def _chirpstack(said: Object) -> Uplink:
    """ChirpStack 4: the kind of a message is in its topic, so its fields have to tell."""
    info = _object(said, "deviceInfo")
    kind = next((kind for key, kind in CHIRPSTACK_KINDS if key in said), "message")
    return Uplink(
        *("chirpstack", kind, _eui(info.get("devEui")), moment(said.get("time"))),
        name=text(info.get("deviceName")),
        application=text(info.get("applicationName")) or word(info.get("applicationId")),
        counter=_zero_left_out(said, "fCnt", kind),
        port=_zero_left_out(said, "fPort", kind),
        payload=_base64(said.get("data")),
        decoded=said.get("object"),
        gateways=_gateways(said.get("rxInfo"), "gatewayId", "rssi", "snr"),
        models=(info.get("deviceProfileName"), info.get("deviceName")),
        vendor={
            "dev_addr": said.get("devAddr"),
            "margin": said.get("margin"),
            "battery": said.get("batteryLevel"),
            "level": said.get("level"),
            "code": said.get("code"),
            "description": said.get("description"),
        },
    )


CHIRPSTACK_KINDS = (
    ("rxInfo", "uplink"),
    ("data", "uplink"),
    ("margin", "status"),
    ("level", "log"),
    ("acknowledged", "acknowledged"),
    ("downlinkId", "sent"),
    ("devAddr", "join"),
)
"""Which field only this kind of message has; asked in this order."""


def _zero_left_out(said: Object, key: str, kind: str) -> Any:
    """A number that JSON of protocol buffers may leave out where it is zero."""
    return said.get(key, 0 if kind == "uplink" else None)


def _chirpstack_3(said: Object) -> Uplink:
    """ChirpStack 3, and gateways of Milesight, which write alike."""
    kind = "uplink" if "rxInfo" in said or "data" in said else "join"
    decoded = said.get("object")
    if decoded is None and isinstance(raw := said.get("objectJSON"), str) and raw:
        try:
            decoded = read_json(raw.encode("utf-8", "replace"))
        except ValueError:
            decoded = None
    heard = _gateways(said.get("rxInfo"), "gatewayID", "rssi", "loRaSNR")
    return Uplink(
        *("chirpstack", kind, _eui(said.get("devEUI"))),
        moment(said.get("time")) or _first_time(said.get("rxInfo")),
        name=text(said.get("deviceName")),
        application=text(said.get("applicationName")) or word(said.get("applicationID")),
        counter=said.get("fCnt"),
        port=said.get("fPort"),
        payload=_base64(said.get("data")),
        decoded=decoded,
        gateways=heard or _gateways(said.get("rxInfo"), "mac", "rssi", "loRaSNR"),
        models=(said.get("deviceProfileName"), said.get("deviceName")),
        vendor={"dev_addr": said.get("devAddr")},
    )


def _things_stack(said: Object) -> Uplink:
    """The Things Stack 3: every kind of message has an object of its own."""
    ids, up = _object(said, "end_device_ids"), _object(said, "uplink_message")
    kind = next((kind for key, kind in THINGS_KINDS if key in said), "message")
    version = _object(up, "version_ids")
    return Uplink(
        *("things_stack", kind, _eui(ids.get("dev_eui"))),
        moment(up.get("received_at")) or moment(said.get("received_at")),
        name=text(ids.get("device_id")),
        application=text(_object(ids, "application_ids").get("application_id")),
        counter=_zero_left_out(up, "f_cnt", kind),
        port=_zero_left_out(up, "f_port", kind),
        payload=_base64(up.get("frm_payload")),
        decoded=up.get("decoded_payload"),
        gateways=_gateways(up.get("rx_metadata"), "gateway_ids", "rssi", "snr"),
        models=(version.get("model_id"), ids.get("device_id")),
        vendor={
            "dev_addr": ids.get("dev_addr"),
            "brand": version.get("brand_id"),
            "model": version.get("model_id"),
        },
    )


THINGS_KINDS = (
    ("uplink_message", "uplink"),
    ("join_accept", "join"),
    ("location_solved", "location"),
    ("service_data", "service"),
    ("downlink_failed", "downlink_failed"),
    ("downlink_nack", "downlink_nack"),
    ("downlink_ack", "acknowledged"),
    ("downlink_sent", "sent"),
    ("downlink_queued", "queued"),
)


def _things_network_2(said: Object) -> Uplink:
    """The Things Network 2, as private stacks still write."""
    about = _object(said, "metadata")
    return Uplink(
        *("things_network_2", "uplink", _eui(said.get("hardware_serial"))),
        moment(about.get("time")),
        name=text(said.get("dev_id")),
        application=text(said.get("app_id")),
        counter=said.get("counter"),
        port=said.get("port"),
        payload=_base64(said.get("payload_raw")),
        decoded=said.get("payload_fields"),
        gateways=_gateways(about.get("gateways"), "gtw_id", "rssi", "snr"),
        models=(said.get("dev_id"),),
        vendor={"is_retry": said.get("is_retry")},
    )


def _loriot(said: Object) -> Uplink | None:
    """LORIOT: `rx` as heard first, `gw` with all gateways, which may come for the same uplink."""
    if "EUI" not in said:
        return None
    command = said.get("cmd")
    kind = {"rx": "uplink", "gw": "uplink", "txd": "sent", "join": "join"}.get(str(command)[:8])
    alone = {"gweui": said.get("gweui", "loriot"), **said} if "rssi" in said else None
    decoded = said.get("decoded")
    return Uplink(
        *("loriot", kind or "message", _eui(said.get("EUI")), _milliseconds(said.get("ts"))),
        name=text(said.get("title")),
        application=word(said.get("appid")),
        counter=said.get("fcnt"),
        port=said.get("port"),
        payload=_hex(said.get("data")),
        decoded=_object(said, "decoded").get("data", decoded),
        gateways=_gateways(said.get("gws") or [alone], "gweui", "rssi", "snr"),
        models=(said.get("title"),),
        vendor={"dev_addr": said.get("devaddr"), "late": said.get("offline") is True or None},
    )


def _thingpark(said: Object) -> Uplink:
    """ThingPark of Actility, for operators and for enterprises."""
    key = next(key for key in THINGPARK_KINDS if key in said)
    up = _object(said, key)
    driver, customer = _object(up, "DriverCfg"), _object(up, "CustomerData")
    heard = _object(up, "Lrrs").get("Lrr") or [up]
    return Uplink(
        *("thingpark", THINGPARK_KINDS[key], _eui(up.get("DevEUI")), moment(up.get("Time"))),
        name=text(customer.get("name")),
        application=word(up.get("CustomerID")),
        counter=up.get("FCntUp"),
        port=up.get("FPort"),
        payload=_hex(up.get("payload_hex")),
        decoded=up.get("payload"),
        gateways=_gateways(heard, "Lrrid", "LrrRSSI", "LrrSNR"),
        models=(
            _object(driver, "mod").get("mId"),
            _object(customer, "alr").get("pro"),
            customer.get("name"),
        ),
        vendor={
            "dev_addr": up.get("DevAddr"),
            "late": up.get("Late") in (1, "1") or None,
            "lost": up.get("LostUplinksAS"),
        },
    )


THINGPARK_KINDS = {
    "DevEUI_uplink": "uplink",
    "DevEUI_join": "join",
    "DevEUI_downlink_Sent": "sent",
    "DevEUI_location": "location",
    "DevEUI_notification": "notification",
}

SERVERS: tuple[tuple[str, Any], ...] = (
    ("end_device_ids", _things_stack),
    ("deviceInfo", _chirpstack),
    ("devEUI", _chirpstack_3),
    ("hardware_serial", _things_network_2),
    *((key, _thingpark) for key in THINGPARK_KINDS),
    ("cmd", _loriot),
)
"""Which key only this server writes, and how its messages are read."""
_MARKS = (b'"dev_eui"', b'"devEui"', b'"devEUI"', b'"payload_raw"', b'"DevEUI"', b'"EUI"')


def looks_like_lorawan(head: bytes) -> bool:
    """JSON with the key of a network server and one for the device."""
    start = head.lstrip()[:8_192]
    return (
        start[:1] in (b"{", b"[")
        and any(f'"{key}"'.encode() in start for key, _ in SERVERS)
        and any(mark in start for mark in _MARKS)
    )


@collector(LORAWAN, framing="document", looks_like=looks_like_lorawan, strength=70)
class Lorawan:
    """Reads uplinks; remembers how far each device has counted."""

    def __init__(self) -> None:
        self._counters: OrderedDict[str, tuple[int, datetime | None]] = OrderedDict()

    def __call__(self, records: Iterable[Record]) -> Iterator[Event]:
        """Events of each record."""
        for record in records:
            for number, event in enumerate(self._read(record)):
                yield Event(event.time, LORAWAN, event.fields, record, number)

    def _read(self, record: Record) -> Iterator[Event]:
        for said in _documents(record.data):
            if isinstance(said, str):
                yield Event.malformed(record, LORAWAN, why=said)
                continue
            uplink = read(said)
            if uplink is None or uplink.device is None:
                why = "no uplink of a network server that is known"
                yield Event.malformed(record, LORAWAN, why=why if uplink is None else "no device")
                continue
            yield from self._events(uplink, record)

    def _events(self, uplink: Uplink, record: Record) -> Iterator[Event]:
        time = uplink.when or record.received
        base = _base(uplink)
        vendor = base["cw.vendor"]
        if uplink.kind != "uplink":
            if uplink.kind == "join":
                self._counters.pop(str(uplink.device), None)
            said = {"event.kind": "event", "event.action": f"lorawan_{uplink.kind}"}
            yield Event(time, LORAWAN, {**base, **said}, record)
            return
        measures, rest, by = _measures(uplink)
        vendor["decoded_by"] = by
        if rest:
            vendor["payload"] = rest[:PAYLOAD_MAX].hex()
        for measure in measures[:MEASURES_MAX]:
            yield Event(time, LORAWAN, {**base, **_reading(measure)}, record)
        if not measures:
            said = {"event.kind": "event", "event.action": "lorawan_uplink"}
            yield Event(time, LORAWAN, {**base, **said}, record)
        elif len(measures) > MEASURES_MAX:
            why = f"{len(measures) - MEASURES_MAX} measurements too many in one uplink"
            yield Event.malformed(record, LORAWAN, why=why, fields=base)
        if why := self._back(uplink):
            flag: dict[str, Any] = {
                "event.kind": "event",
                "event.category": ["network"],
                "cw.domain": ["cyber"],
                "event.action": "lorawan_counter_back",
                "event.outcome": "unknown",
                "event.reason": why,
            }
            yield Event(time, LORAWAN, {**base, **flag}, record)

    def _back(self, uplink: Uplink) -> str:
        """Why the counter is not as it must be; empty if it is."""
        counter, device = count(uplink.counter), str(uplink.device)
        if counter is None or uplink.vendor.get("late"):
            return ""
        before = self._counters.get(device)
        self._counters[device] = counter, uplink.when
        self._counters.move_to_end(device)
        if len(self._counters) > DEVICES_MAX:
            self._counters.popitem(last=False)
        if before is None or counter > before[0]:
            return ""
        if counter < before[0]:
            return f"frame counter {counter} after {before[0]}, without a join in between"
        # The broker may deliver a message twice; then its time is the same, too.
        return "" if uplink.when == before[1] else f"frame counter {counter} came twice"


# ---- Values


def _documents(data: bytes) -> Iterator[Object | str]:
    """Objects of a record: one, a list of them, or one a line; or why there is none."""
    lines = [data]
    stripped = data.strip()
    if stripped[:1] == b"[":
        try:
            found = read_json(b'{"all":' + stripped + b"}")["all"]
        except ValueError as error:
            yield str(error)
            return
        for one in found[:UPLINKS_MAX]:
            yield _unwrapped(one) if isinstance(one, dict) else "a list of something else"
        if not found or len(found) > UPLINKS_MAX:
            yield f"a list of {len(found)} messages"
        return
    try:
        yield _unwrapped(read_json(data))
        return
    except ValueError as error:
        lines = [line for line in stripped.split(b"\n", UPLINKS_MAX) if line.strip()]
        if len(lines) < 2 or stripped.count(b"{") < 2 or not lines[1].lstrip().startswith(b"{"):
            yield str(error)
            return
    for line in lines:
        try:
            yield _unwrapped(read_json(line))
        except ValueError as error:
            yield str(error)


def _unwrapped(said: dict[str, Any]) -> Object:
    """The console of The Things Stack exports messages inside an event."""
    inner = said.get("data")
    return inner if isinstance(inner, dict) and "end_device_ids" in inner else said


def _object(part: Object, name: str) -> dict[str, Any]:
    found = part.get(name)
    return found if isinstance(found, dict) else {}


def _gateways(found: Any, key: str, rssi: str, snr: str) -> tuple[Object, ...]:
    if not isinstance(found, list):
        return ()
    heard = []
    for one in found[:GATEWAYS_MAX]:
        if not isinstance(one, dict) or key not in one:
            continue
        name = one[key]
        if isinstance(name, dict):
            name = name.get("gateway_id")
        if name is not None:
            heard.append({"id": str(scalar(name))[:64], "rssi": one.get(rssi), "snr": one.get(snr)})
    return tuple(heard)


def _first_time(found: Any) -> datetime | None:
    first = found[0] if isinstance(found, list) and found else None
    return moment(first.get("time")) if isinstance(first, dict) else None


def _eui(value: Any) -> str | None:
    """16 hexadecimal digits, of which some servers write base64; whatever else is kept as it is."""
    said = text(value)
    if said is None:
        return None
    plain = said.replace("-", "").replace(":", "").lower()
    if len(plain) == 16 and all(sign in "0123456789abcdef" for sign in plain):
        return plain
    raw = _base64(said)
    return raw.hex() if len(raw) == 8 else said[:64]


def _base64(value: Any) -> bytes:
    if not isinstance(value, str):
        return b""
    try:
        return base64.b64decode(value[: 4 * PAYLOAD_MAX], validate=True)
    except (ValueError, binascii.Error):
        return b""


def _hex(value: Any) -> bytes:
    try:
        return bytes.fromhex(value[: 4 * PAYLOAD_MAX]) if isinstance(value, str) else b""
    except ValueError:
        return b""


def _milliseconds(value: Any) -> datetime | None:
    number = real(value)
    return None if number is None else moment(number / 1_000)
