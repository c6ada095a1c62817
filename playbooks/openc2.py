"""OpenC2: what a command and its response say, for the stateless packet filter profile.

    {"action": "deny", "target": {"ipv4_net": "192.0.2.7"}, "args": {"duration": 60000},
     "actuator": {"slpf": {}}, "command_id": "…"}

References:
    OpenC2 Language Specification 1.0, sections 3.3 (commands), 3.4 (types); Open Command and
    Control Profile for Stateless Packet Filtering 1.0, section 2; Specification for Transfer of
    OpenC2 Messages via HTTPS 1.0, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from cityward import Target, Unsafe
from playbooks.targets import connection_of, target_of

PATH = "/.well-known/openc2"
COMMAND_TYPE = "application/openc2-cmd+json;version=1.0"
RESPONSE_TYPE = "application/openc2-rsp+json;version=1.0"
VERSION = "1.0"
PROFILE = "slpf"
OWN = "x-cityward"
"""Name of our extension: a query of the state of a target, which the profile has not."""
STATE = f"{OWN}:state"

ACTIONS = frozenset(
    (
        *("scan", "locate", "query", "deny", "contain", "allow", "start", "stop", "restart"),
        *("cancel", "set", "update", "redirect", "create", "delete", "detonate", "restore"),
        *("copy", "investigate", "remediate"),
    )
)
"""Section 3.3.1.1."""
FEATURES = ("versions", "profiles", "pairs", "rate_limit")
NETWORKS = ("ipv4_net", "ipv6_net")
CONNECTIONS = ("ipv4_connection", "ipv6_connection")
RULE = "slpf:rule_number"

OK, CREATED, PROCESSING = 200, 201, 102
BAD, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 400, 401, 403, 404
TOO_MANY, FAULT, NOT_IMPLEMENTED, UNAVAILABLE = 429, 500, 501, 503


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A response."""

    status: int
    status_text: str = ""
    results: dict[str, Any] = {}


class Refused(Exception):  # noqa: N818 – an answer, not a fault
    """A command that is not carried out."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.answer = Answer(status, why)


def said(target: Target) -> dict[str, Any]:
    """A target as OpenC2 says it."""
    connection = connection_of(target)
    if connection is None:
        return {target.type: target.value}
    parts: dict[str, Any] = {
        "src_addr": connection.src_addr,
        "dst_addr": connection.dst_addr,
        "protocol": connection.protocol,
    }
    if connection.dst_port:
        parts["dst_port"] = connection.dst_port
    return {target.type: parts}


def target_in(kind: str, value: Any) -> Target:
    """The target that a command names.

    Raises:
        Refused: it is none, or none that this profile acts on.
    """
    if kind not in NETWORKS + CONNECTIONS:
        raise Refused(NOT_IMPLEMENTED, "there is no such target here")
    is_whole = isinstance(value, str) if kind in NETWORKS else isinstance(value, Mapping)
    if not is_whole or not value:
        raise Refused(BAD, f"this is no {kind}")
    if isinstance(value, Mapping):
        if value.get("src_port"):
            raise Refused(NOT_IMPLEMENTED, "src_port is not looked at here")
        if not {"src_addr", "dst_addr", "protocol"} <= set(value):
            raise Refused(NOT_IMPLEMENTED, "both addresses and the protocol are needed here")
        value = {key: one for key, one in value.items() if key != "src_port"}
    try:
        target = target_of(kind, value)
    except Unsafe as error:
        raise Refused(BAD, f"this is no {kind} that may be acted on") from error
    if target.type != kind:
        raise Refused(BAD, f"this is no {kind}")
    return target
