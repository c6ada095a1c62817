"""Cameras and doors of a UniFi Protect console: its list of events, or one event a line.

Send: let a small job ask the console for `/proxy/protect/api/events` and write the answer to a
folder (`reader = "folder"`), or the node ask it (`reader = "http"`), with
`collector = "unifi-video"`.

Understood: motion and recognised objects, licence plates, who opened the console, doors and their
sensors, cards and fingerprints at readers, devices that were adopted or lost their connection, with
start, end, device and user. Cards, plates and fingers are `phys.subject` (personal).

Not understood: pictures, heat maps and where in the picture something was; kinds of events that
newer versions bring are kept under their own name.

References:
    UniFi Protect 5, private API, `events`; kinds as listed in uilibs/uiprotect, `EventType`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cityward import Event, LogSource, Record, collector
from collectors.values import clean, count, flat, moment, read_json, real, scalar, text

VIDEO = LogSource(category="video", product="unifi_protect")
ACCESS = LogSource(category="physical_access", product="unifi_protect")

KINDS: dict[str, tuple[LogSource, str, str]] = {
    "motion": (VIDEO, "video_motion", ""),
    "smartDetectZone": (VIDEO, "video_object_detected", ""),
    "smartDetectLine": (VIDEO, "video_object_detected", ""),
    "smartDetectLoiterZone": (VIDEO, "video_object_detected", ""),
    "smartAudioDetect": (VIDEO, "video_sound_detected", ""),
    "access": (VIDEO, "video_access", ""),
    "disconnect": (VIDEO, "device_disconnected", "offline"),
    "offline": (VIDEO, "device_disconnected", "offline"),
    "cameraConnected": (VIDEO, "device_connected", "online"),
    "reconnect": (VIDEO, "device_connected", "online"),
    "cameraPowerCycling": (VIDEO, "device_restarted", ""),
    "reboot": (VIDEO, "device_restarted", ""),
    "factoryReset": (VIDEO, "device_reset", ""),
    "deviceAdopted": (VIDEO, "device_adopted", ""),
    "deviceUnadopted": (VIDEO, "device_removed", ""),
    "fwUpdate": (VIDEO, "device_updated", ""),
    "recordingDeleted": (VIDEO, "recording_deleted", ""),
    "recordingOff": (VIDEO, "recording_stopped", "stopped"),
    "lightMotion": (VIDEO, "light_motion", ""),
    "sensorMotion": (ACCESS, "sensor_motion", ""),
    "sensorOpened": (ACCESS, "door_opened", "open"),
    "sensorClosed": (ACCESS, "door_closed", "closed"),
    "sensorAlarm": (ACCESS, "sensor_alarm", "alarm"),
    "sensorWaterLeak": (ACCESS, "water_leak", "flooded"),
    "sensorBatteryLow": (ACCESS, "battery_low", ""),
    "ring": (ACCESS, "doorbell_rung", ""),
    "doorAccess": (ACCESS, "door_access", ""),
    "doorlockOpened": (ACCESS, "door_unlocked", "unlocked"),
    "doorlockClosed": (ACCESS, "door_locked", "locked"),
    "nfcCardScanned": (ACCESS, "card_read", ""),
    "fingerprintIdentified": (ACCESS, "fingerprint_read", ""),
}
"""Kind of event → log source, action and the state it leaves its device in."""
OBJECTS = {"licensePlate": "vehicle", "face": "person", "smoke": "smoke"}
"""Classes that have another name here; others keep their own."""
POINTS = ("sensorId", "lightId", "doorlockId", "chimeId", "deviceId")
PERSONAL = {"nfc": "nfcId", "fingerprint": "ulpId", "licensePlate": "name"}
"""Parts of the metadata that tell a person, and their key; they are in `phys.subject` only."""


def looks_like_unifi(head: bytes) -> bool:
    """A list of events, or lines of them."""
    start = head[:8_192].lstrip()
    return start[:1] in b"[{" and b'"smartDetectTypes"' in start and b'"type"' in start


@collector(VIDEO, framing="document", looks_like=looks_like_unifi, strength=75)
def unifi_video(records: Iterable[Record]) -> Iterator[Event]:
    """Read events of the console: one event each."""
    for record in records:
        number = 0
        try:
            for one in _parts(record.data):
                yield _event(one, record, number)
                number += 1
        except ValueError as error:
            yield Event.malformed(record, VIDEO, why=str(error), number=number)
            continue
        if not number:
            yield Event.malformed(record, VIDEO, why="a list without events")


def _parts(data: bytes) -> Iterator[Any]:
    """Entries of a list, or lines.

    Raises:
        ValueError: no JSON.
    """
    if data.lstrip()[:1] == b"[":
        found = read_json(b'{"events":' + data + b"}").get("events")
        yield from found if isinstance(found, list) else ()
        return
    for line in data.split(b"\n"):
        if line.strip():
            try:
                yield read_json(line)
            except ValueError as error:
                yield error


def _event(one: Any, record: Record, number: int) -> Event:
    if not isinstance(one, dict) or not (kind := text(one.get("type"))):
        why = f"no event: {one}" if isinstance(one, ValueError) else "no event: it has no type"
        return Event.malformed(record, VIDEO, why=why, number=number)
    start, end = _time(one.get("start")), _time(one.get("end"))
    if start is None:
        why = f"no time in start: {one.get('start')!r:.80}"
        return Event.malformed(record, VIDEO, why=why, number=number)
    logsource, action, state = KINDS.get(kind, (VIDEO, "unifi_event", ""))
    said = one.get("metadata")
    said = said if isinstance(said, dict) else {}
    metadata = {name: _plain(value) for name, value in said.items()}
    fields: dict[str, Any] = {
        "event.kind": "event",
        "event.category": [logsource.category],
        "event.action": action,
        "event.dataset": "unifi_protect.event",
        "event.start": start,
        "cw.domain": ["physical"],
    }
    if end is not None and end >= start:
        fields["event.end"] = end
        if (took_ns := count(round((end - start).total_seconds() * 1e9))) is not None:
            fields["event.duration"] = took_ns
    if state:
        fields["phys.state"] = state
    if action == "device_disconnected":
        fields["cw.domain"] = ["availability"]
    if point := _point(one, metadata):
        fields["phys.point"] = point
    _who(kind, one, metadata, fields)
    _what(one, metadata, fields)
    if reason := text(metadata.get("reason")):
        fields["event.reason"] = reason
    fields["cw.vendor"] = _vendor(one, metadata, kind)
    return Event(start, logsource, fields, record, number)


def _time(epoch_ms: Any) -> Any:
    value = real(epoch_ms)
    return None if value is None or value <= 0 else moment(value / 1_000)


def _plain(value: Any) -> Any:
    """`{"text": "x"}` is how the console writes `"x"`."""
    if isinstance(value, dict) and len(value) == 1:
        return value.get("text", value.get("url", value))
    return value


def _point(one: dict[str, Any], metadata: dict[str, Any]) -> str | None:
    if camera := text(one.get("camera")):
        return camera
    return next((found for name in POINTS if (found := text(metadata.get(name)))), None)


def _who(kind: str, one: dict[str, Any], metadata: dict[str, Any], fields: dict[str, Any]) -> None:
    """The person, as user of the console or as what a reader saw of them."""
    if user := text(one.get("user")):
        fields["user.id"] = user
    if name := text(metadata.get("adoptedBy")):
        fields["user.name"] = name
    for part, key in PERSONAL.items():
        seen = metadata.get(part)
        if isinstance(seen, dict):
            if subject := text(seen.get(key)):
                fields["phys.subject"] = subject
            if user := text(seen.get("userId")):
                fields["user.id"] = user
    if kind == "fingerprintIdentified":
        fields["event.outcome"] = "success" if "phys.subject" in fields else "failure"
        if "phys.subject" not in fields:
            fields["event.reason"] = "a finger that nobody here has"
    elif kind == "nfcCardScanned":
        fields["event.outcome"] = "success" if "user.id" in fields else "failure"
        if "user.id" not in fields:
            fields["event.reason"] = "a card that nobody here has"


def _what(one: dict[str, Any], metadata: dict[str, Any], fields: dict[str, Any]) -> None:
    seen = one.get("smartDetectTypes")
    if isinstance(seen, list) and seen and (first := text(seen[0])):
        fields["phys.object"] = OBJECTS.get(first, first)
    if (score := count(one.get("score"))) and score <= 100:
        fields["event.severity"] = score


def _vendor(one: dict[str, Any], metadata: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {"type": clean(kind)}
    for name in ("id", "smartDetectTypes", "partition", "category"):
        if value := one.get(name):
            found[name] = scalar(value)
    rest = {name: value for name, value in metadata.items() if name not in PERSONAL}
    for name, value in list(flat(rest).items())[:64]:
        if value not in (None, "", [], {}):
            found[f"metadata.{name}"] = scalar(value)
    return found
