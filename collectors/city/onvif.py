"""Cameras, doors and alarm inputs that speak ONVIF: notifications as XML, one document each.

Send: subscribe at the device (basic notification or pull point) and write each SOAP answer to a
folder (`reader = "folder"`, `collector = "onvif"`); a recorder's metadata stream is read as well.

Understood: motion, tamper, scene change, lost signal, recognised objects, lines crossed, digital
inputs and relays, hardware failures, recording, doors (mode, forced, open too long, tamper) and
decisions on credentials, with time, device, source and values. What a topic says first
(`Initialized`) is a state, a change is an event.

Not understood: pictures and shapes in metadata streams; makers' own topics are kept with their
values.

References:
    ONVIF Core 23.06, 9 (event handling) and annex on topics; ONVIF Access Control 21.06 and Door
    Control 21.06, "Notification topics"; OASIS WS-BaseNotification 1.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from cityward import Event, LogSource, Record, collector
from collectors.values import clean, moment

VIDEO = LogSource(category="video", service="onvif")
ACCESS = LogSource(category="physical_access", service="onvif")

DOCUMENT_MAX = 4 << 20
MESSAGES_MAX = 10_000
ITEMS_MAX = 64

TOPICS: tuple[tuple[str, LogSource, str, str], ...] = (
    ("videosource/motionalarm", VIDEO, "video_motion", "motion"),
    ("cellmotiondetector/motion", VIDEO, "video_motion", "motion"),
    ("motionregiondetector/motion", VIDEO, "video_motion", "motion"),
    ("tamperdetector", VIDEO, "camera_tampered", "tampered"),
    ("videosource/tamper", VIDEO, "camera_tampered", "tampered"),
    ("globalscenechange", VIDEO, "camera_tampered", "occluded"),
    ("imagetoo", VIDEO, "camera_image_bad", "occluded"),
    ("signalloss", VIDEO, "camera_signal_lost", "offline"),
    ("videosource/connectionfailed", VIDEO, "camera_signal_lost", "offline"),
    ("linedetector/crossed", VIDEO, "video_line_crossed", ""),
    ("fielddetector/objectsinside", VIDEO, "video_object_detected", ""),
    ("objectdetection", VIDEO, "video_object_detected", ""),
    ("peopledetect", VIDEO, "video_object_detected", ""),
    ("vehicledetect", VIDEO, "video_object_detected", ""),
    ("facedetect", VIDEO, "video_object_detected", ""),
    ("trigger/digitalinput", ACCESS, "digital_input", "active"),
    ("trigger/relay", ACCESS, "relay_output", "active"),
    ("hardwarefailure", VIDEO, "device_failure", "failed"),
    ("processorusage", VIDEO, "device_load", ""),
    ("recordingconfig/jobstate", VIDEO, "recording_state", ""),
    ("operationmode/shutdown", VIDEO, "device_shut_down", "offline"),
    ("operationmode/uploadinitiated", VIDEO, "device_update_started", ""),
    ("door/state/dooralarm", ACCESS, "door_alarm", ""),
    ("door/state/doortamper", ACCESS, "door_tamper", ""),
    ("door/state/doorfault", ACCESS, "door_fault", ""),
    ("door/state/doorphysicalstate", ACCESS, "door_physical_state", ""),
    ("door/state/lockphysicalstate", ACCESS, "door_lock_state", ""),
    ("door/state/doormode", ACCESS, "door_mode", ""),
    ("accesscontrol/accessgranted", ACCESS, "access_granted", ""),
    ("accesscontrol/accesstaken", ACCESS, "access_taken", ""),
    ("accesscontrol/accessnottaken", ACCESS, "access_not_taken", ""),
    ("accesscontrol/denied", ACCESS, "access_denied", ""),
    ("accesscontrol/duress", ACCESS, "access_duress", ""),
)
"""Part of a topic in lower case → log source, action, state while it lasts."""
DOOR_STATES = {
    "doorforcedopen": "forced",
    "dooropentoolong": "held_open",
    "tamperdetected": "tampered",
    "faultdetected": "failed",
    "open": "open",
    "closed": "closed",
    "locked": "locked",
    "unlocked": "unlocked",
    "normal": "normal",
    "notintamper": "normal",
    "notinfault": "normal",
}
CREDENTIALS = ("CredentialHolderName", "CredentialToken", "Card")
POINTS = (
    *("DoorToken", "AccessPointToken", "VideoSourceConfigurationToken", "VideoSourceToken"),
    *("VideoSource", "Source", "InputToken", "RelayToken", "Token"),
)
OBJECTS = ("ClassTypes", "ObjectType", "ClassType", "Type")
YES, NO = frozenset(("true", "1", "active")), frozenset(("false", "0", "inactive"))


def looks_like_onvif(head: bytes) -> bool:
    """XML with notifications in ONVIF's own namespace."""
    start = head[:16_384]
    return (
        start.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"<"
        and b"NotificationMessage" in start
        and b"onvif.org/ver10" in start
    )


@collector(VIDEO, framing="document", looks_like=looks_like_onvif, strength=75)
def onvif(records: Iterable[Record]) -> Iterator[Event]:
    """Read documents: one event a notification."""
    for record in records:
        try:
            root = _root(record.data)
        except ValueError as error:
            yield Event.malformed(record, VIDEO, why=str(error))
            continue
        number = 0
        for message in root.iter():
            if _name(message) == "NotificationMessage":
                yield _notification(message, record, number)
                number += 1
                if number == MESSAGES_MAX:
                    break
        if not number:
            yield Event.malformed(record, VIDEO, why="a document without a notification")


def _root(data: bytes) -> Element:
    if len(data) > DOCUMENT_MAX:
        raise ValueError(f"a document of {len(data):,} bytes; {DOCUMENT_MAX:,} are read")
    try:
        root: Element = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise ValueError(f"no XML: {type(error).__name__}: {error}"[:300]) from None
    return root


def _name(part: Element) -> str:
    return part.tag.rpartition("}")[2] if isinstance(part.tag, str) else ""


def _inside(part: Element, name: str) -> Element | None:
    return next((one for one in part.iter() if _name(one) == name), None)


def _notification(message: Element, record: Record, number: int) -> Event:
    topic = _topic(message)
    content = next((one for one in message.iter() if one.get("UtcTime")), None)
    if not topic or content is None:
        why = "a notification without a topic" if not topic else "a notification without UtcTime"
        return Event.malformed(record, VIDEO, why=why, number=number)
    time = moment(content.get("UtcTime"))
    if time is None:
        why = f"no time in UtcTime: {content.get('UtcTime')!r:.80}"
        return Event.malformed(record, VIDEO, why=why, number=number)
    source, data = _items(content, ("Source", "Key")), _items(content, ("Data",))
    logsource, action, lasting = _meaning(topic)
    is_first = content.get("PropertyOperation") == "Initialized"
    fields: dict[str, Any] = {
        "event.kind": "state" if is_first else "event",
        "event.category": [logsource.category],
        "event.action": action,
        "event.dataset": "onvif.notification",
        "cw.domain": ["physical"],
    }
    point = next((source[name] for name in POINTS if source.get(name)), "")
    if point or source:
        fields["phys.point"] = point or next(iter(source.values()))
    if state := _state(action, lasting, data):
        fields["phys.state"] = state
    _person(action, {**source, **data}, fields)
    seen = next((data[name] for name in OBJECTS if data.get(name)), "")
    if action == "video_object_detected":
        fields["phys.object"] = (seen or _of_topic(topic)).lower()
    fields["cw.vendor"] = {
        "topic": topic,
        "operation": clean(content.get("PropertyOperation") or ""),
        **{f"source.{name}": value for name, value in source.items() if value},
        **{
            f"data.{name}": value
            for name, value in data.items()
            if value and name not in CREDENTIALS
        },
    }
    producer = _inside(message, "ProducerReference")
    address = None if producer is None else _inside(producer, "Address")
    if address is not None and address.text:
        fields["cw.vendor"]["producer"] = clean(address.text.strip())
    return Event(time, logsource, fields, record, number)


def _topic(message: Element) -> str:
    """`tns1:VideoSource/MotionAlarm` without the prefixes, which everyone may choose."""
    part = _inside(message, "Topic")
    said = clean((part.text or "").strip()) if part is not None else ""
    return "/".join(step.rpartition(":")[2] for step in said[:512].split("/"))


def _items(content: Element, parts: tuple[str, ...]) -> dict[str, str]:
    """Simple items: name and value."""
    found: dict[str, str] = {}
    for part in content:
        if _name(part) not in parts:
            continue
        for item in part.iter():
            name = item.get("Name")
            if _name(item) == "SimpleItem" and name and len(found) < ITEMS_MAX:
                found[clean(name)[:128]] = clean(item.get("Value") or "")
    return found


def _meaning(topic: str) -> tuple[LogSource, str, str]:
    plain = topic.lower()
    for part, logsource, action, state in TOPICS:
        if part in plain:
            return logsource, action, state
    return VIDEO, "onvif_notification", ""


def _of_topic(topic: str) -> str:
    """`MyRuleDetector/PeopleDetect` → `people`."""
    return topic.rpartition("/")[2].removesuffix("Detect").removesuffix("Detection") or "object"


def _state(action: str, lasting: str, data: dict[str, str]) -> str:
    """What the point is in: a door says it by name, others are or are not in it."""
    for value in data.values():
        plain = value.lower()
        if action.startswith("door_"):
            if plain in DOOR_STATES:
                return DOOR_STATES[plain]
        elif lasting and plain in YES:
            return lasting
        elif lasting and plain in NO:
            return "normal"
    return ""


def _person(action: str, items: dict[str, str], fields: dict[str, Any]) -> None:
    if not action.startswith("access_"):
        return
    if action in ("access_granted", "access_denied"):
        fields["event.outcome"] = "success" if action == "access_granted" else "failure"
    token, holder = items.get("CredentialToken") or items.get("Card"), items.get(CREDENTIALS[0])
    if token or holder:
        fields["phys.subject"] = token or holder
    if reason := items.get("Reason"):
        fields["event.reason"] = reason
