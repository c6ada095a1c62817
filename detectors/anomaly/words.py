"""What a model says: one sentence with numbers, a title, and the terms behind the score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERBS = {
    "read": ("reads", "read"),
    "write": ("writes", "wrote"),
    "control": ("controls", "controlled"),
    "select": ("selects", "selected"),
    "diagnostic": ("diagnoses", "diagnosed"),
    "report": ("reports", "reported"),
}
"""`ot.operation` → what it does, and what nobody did."""

POINTS = {
    "coil": "coil",
    "discrete_input": "input",
    "holding_register": "register",
    "input_register": "input register",
}
"""`ot.point.type` → what a person calls it; others are points."""

TITLES = {
    "source": "Host never spoke to this device before",
    "function by source": "Host does what it never did here",
    "function": "Function never used on this device",
    "exception": "Error this device hardly ever answers",
    "address by function": "Touches a point nobody touched before",
    "address": "Touches a point nobody touched before",
    "unit": "Addresses a unit never seen here",
    "value by address": "Value this point never had",
    "value": "Value this device never had",
    "cause by type": "Cause of transmission unusual here",
    "quantity": "Asks for an unusual number of points",
    "peer": "Talks to a peer it never talked to",
    "service by peer": "Uses a new service of a known peer",
    "service": "Uses a service it never used",
    "service by state": "Service ends in an unusual way",
    "state": "Conversations end in an unusual way",
    "bytes by service": "Unusual amount of data for this service",
    "bytes out": "Sends an unusual amount of data",
    "bytes in": "Receives an unusual amount of data",
    "packets": "Unusual number of packets",
    "duration": "Conversation of unusual length",
    "hour class": "Active at an unusual hour",
    "transition": "Messages in an unusual order",
    "gap": "Unusual pause between messages",
}
"""Leading term → title. The first of these that is among the new terms leads."""
LEADS = tuple(TITLES)


def span(seconds: float) -> str:
    """A length of time as a person says it: `41 days`, `6 min`."""
    if seconds < 90.0:
        return f"{max(seconds, 0.0):.0f} s"
    if seconds < 5_400.0:
        return f"{seconds / 60.0:.0f} min"
    if seconds < 172_800.0:
        return f"{seconds / 3_600.0:.0f} h"
    return f"{seconds / 86_400.0:.0f} days"


def number(value: Any) -> str:
    """A number without needless digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def point(fields: Mapping[str, Any]) -> str:
    """`register 2`, `point 1101`; empty if no address is given."""
    if fields.get("ot.point.address") is None:
        return ""
    kind = str(fields.get("ot.point.type") or "")
    return f"{POINTS.get(kind, 'point')} {fields['ot.point.address']}"


def title(lead: str, fields: Mapping[str, Any]) -> str:
    """At most 45 characters on what is new."""
    what = point(fields).rpartition(" ")[0]
    verbs = VERBS.get(str(fields.get("ot.operation")))
    if lead in ("address", "address by function") and what and verbs:
        return f"{verbs[0].capitalize()} a {what} nobody {verbs[1]} before"[:45]
    return TITLES.get(lead, "Unusual for this device")


def ot_sentence(
    lead: str,
    fields: Mapping[str, Any],
    watched_s: float,
    new: bool,
    usual: tuple[float, float] | None,
) -> str:
    """One sentence on an OT message: who does what to what, since when that is new, which value."""
    get = fields.get
    source, device = get("source.ip", "A host"), get("destination.ip", "a device")
    if get("ot.direction") in ("response", "unsolicited"):
        source, device = device, source
    operation = str(get("ot.operation") or "")
    verb, past = VERBS.get(operation, ("", ""))
    where = point(fields)
    name = str(get("ot.function.name") or get("ot.function.code") or operation or "a message")
    if get("ot.direction") in ("response", "unsolicited"):
        does, did = f"answers {name} {f'for {where} ' if where else ''}to", "it never did"
    elif verb and where:
        does, did = f"{verb} {where} of", f"nobody {past}"
    else:
        does, did = f"sends {name} to", "nobody sent"
    since = span(watched_s)
    said = f"{source} {does} {device}"
    if lead == "source" and new:
        said += f", to which it never spoke in {since}"
    elif lead == "function by source" and new:
        said += f", which this host never did in {since}"
    elif lead in ("address by function", "address", "function", "unit") and new:
        said += f", which {did} in {since}"
    else:
        said += f"; {TITLES.get(lead, 'this').lower()}, {'new' if new else 'rare'} in {since}"
    if get("ot.value") is not None:
        said += f"; value {number(get('ot.value'))}"
        if usual:
            said += f", usual {number(usual[0])} to {number(usual[1])}"
    if get("ot.exception"):
        said += f"; exception {get('ot.exception')}"
    return said


def flow_sentence(
    lead: str, fields: Mapping[str, Any], service: str, state: str, watched_s: float, new: bool
) -> str:
    """One sentence on a flow."""
    get = fields.get
    source, peer = get("source.ip", "A host"), get("destination.ip", "a host")
    since = span(watched_s)
    said = f"{source} uses {service} of {peer}"
    if lead == "peer" and new:
        said += f", to which it never spoke in {since}"
    elif new:
        said += f"; {TITLES.get(lead, 'this').lower()}, new in {since}"
    else:
        said += f"; {TITLES.get(lead, 'this').lower()}, rare in {since}"
    sent, received = get("source.bytes"), get("destination.bytes")
    if sent is not None or received is not None:
        said += f"; {sent or 0} bytes out, {received or 0} in, ended {state}"
    return said


def saw(feature: str, fields: Mapping[str, Any]) -> str:
    """What a term saw, as a person reads it."""
    get = fields.get
    function = get("ot.function.name") or get("ot.function.code") or ""
    seen = {
        "source": get("source.ip"),
        "function": function,
        "unit": get("ot.unit") or get("ot.common_address"),
        "address": get("ot.point.address"),
        "quantity": get("ot.point.count"),
        "value": get("ot.value", get("ot.value_raw")),
        "exception": get("ot.exception"),
        "transition": f"then {function}",
        "function by source": f"{function} from {get('source.ip')}",
        "address by function": f"{function} at {get('ot.point.address')}",
        "value by address": f"{get('ot.value', get('ot.value_raw'))} at {get('ot.point.address')}",
        "cause by type": f"{get('ot.cause')} with {get('ot.point.type')}",
        "peer": get("destination.ip"),
        "service": get("network.protocol") or get("destination.port"),
        "service by peer": f"{get('destination.port')} of {get('destination.ip')}",
        "bytes out": get("source.bytes"),
        "bytes in": get("destination.bytes"),
        "bytes by service": f"{get('source.bytes')} to port {get('destination.port')}",
        "duration": get("event.duration"),
    }.get(feature)
    return "none" if seen is None else str(seen)[:200]
