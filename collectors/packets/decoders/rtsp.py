"""RTSP: what is asked of a camera or a recorder, and what it answers; one event a message.

Understood: RTSP 1.0 over TCP: requests and responses joined by CSeq, URL, status, user agent and
server, the user name of Basic and Digest credentials, session and transport; media that is
interleaved in the connection is passed over.

Not understood: RTSP 2.0, RTSP inside HTTP or TLS, and the media: RTP and RTCP are not looked at.
Passwords are never kept.

References:
    RFC 2326, sections 4 (messages), 6 and 7, 10 (methods), 10.12 (interleaved data), 12 (headers).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets import heads
from collectors.packets.decoders.pairs import link_prefix, say, unreadable
from collectors.packets.secrets import without_secrets

RTSP = LogSource(category="video", service="rtsp")

OPEN_MAX = 64
"""Requests of one connection that wait for their response."""
NUMBER_MAX = 32
"""Characters of a CSeq."""

METHODS: dict[str, tuple[str, bool]] = {
    "OPTIONS": ("discovery", False),
    "DESCRIBE": ("discovery", False),
    "ANNOUNCE": ("config", True),
    "SETUP": ("session", False),
    "PLAY": ("read", False),
    "PAUSE": ("session", False),
    "TEARDOWN": ("session", False),
    "GET_PARAMETER": ("read", False),
    "SET_PARAMETER": ("config", True),
    "REDIRECT": ("config", True),
    "RECORD": ("write", True),
}
"""Operation of each method (RFC 2326, section 10), and whether it can change a device."""

Fields = dict[str, Any]

_REQUEST = re.compile(
    rb"(?:" + "|".join(METHODS).encode() + rb") [\x21-\x7e]{1,2048} RTSP/1\.0\r?\n"
)
_RESPONSE = re.compile(rb"RTSP/1\.0 [1-5]\d\d(?: [^\r\n]{0,256})?\r?\n")
_NEXT = re.compile(
    rb"(?:(?:" + "|".join(METHODS).encode() + rb") [\x21-\x7e]{1,2048} )?RTSP/1\.0[\r\n ]"
)
_METHOD = re.compile(r"[A-Z][A-Z_\-]{1,23}")
_BEGINS = bytes({ord(method[0]) for method in METHODS} | {ord("$")})


class Asked(msgspec.Struct, gc=False):
    """A request that waits for its response."""

    link: str
    time_s: float
    shown: Fields


class Lane(msgspec.Struct):
    """One direction."""

    lost: bool = False
    skip: int = 0
    """Bytes of a body or of media that are still to come."""
    rest: int = 0
    """Bytes of a head that is not yet whole."""


@decoder("rtsp", RTSP, ports=(554, 8554), begins=_BEGINS)
class Rtsp:
    """One RTSP connection."""

    def __init__(self, session: Session) -> None:
        self._base = {**session.base, **_ALWAYS}
        self._ends = f"{session.client}>{session.server}"
        self._link = ""
        self._count = 0
        self._lanes = (Lane(), Lane())
        self._open: dict[tuple[bool, str], Asked] = {}

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a request line or a status line."""
        return bool(_REQUEST.match(head) or _RESPONSE.match(head))

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if not self._link:
            self._link = link_prefix(self._ends, time_s)
        lane = self._lanes[from_client]
        found: list[Fields] = []
        at, end = 0, len(data)
        while at < end:
            if lane.skip:
                used = min(lane.skip, end - at)
                lane.skip -= used
            else:
                used = self._step(lane, data, at, from_client, time_s, found)
            if not used:
                break
            at += used
        lane.rest = 0 if lane.lost else end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        lane.lost, lane.skip, lane.rest = True, 0, 0

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; requests nobody answered, and heads that were cut."""
        found = [
            {
                **self._base,
                **asked.shown,
                "event.action": "rtsp_unanswered",
                "event.outcome": "unknown",
                "event.reason": f"no response to the {asked.shown['ot.function.name']}",
                "ot.is_command": False,
                "ot.link_id": asked.link,
            }
            for asked in self._open.values()
        ]
        self._open.clear()
        for lane, who in zip(self._lanes, ("server", "client"), strict=True):
            if lane.rest:
                why = f"the conversation ended {lane.rest} bytes into a head of the {who}"
                found.append(self._unreadable(why))
                lane.rest = 0
        return found

    def _step(
        self, lane: Lane, data: bytes, at: int, from_client: bool, time_s: float,
        found: list[Fields],
    ) -> int:  # fmt: skip
        """Read what comes next; how many bytes it was, 0 if more have to come."""
        end = len(data)
        if lane.lost:
            start = _NEXT.search(data, at)
            if start is None:
                line = data.rfind(b"\n", max(at, end - 2_048)) + 1
                return (max(line, at) if line else end) - at
            lane.lost = False
            if start.start() > at:
                return start.start() - at
        if data[at] == 0x24:
            # Interleaved media: a dollar, the channel, the length (section 10.12).
            if end - at < 4:
                return 0
            lane.skip = int.from_bytes(data[at + 2 : at + 4])
            return 4
        if data[at] in b"\r\n":
            return 1
        stop = heads.end_of(data, at)
        if stop < 0:
            if end - at <= heads.HEAD_MAX:
                return 0
            found.append(self._unreadable(f"a head without end in {heads.HEAD_MAX} bytes"))
            lane.lost = True
            return end - at
        head = heads.read(data[at:stop])
        lane.skip = heads.length_of(head)
        is_response = head.start.startswith("RTSP/")
        fields = self._response(head, from_client, time_s) if is_response else {}
        if not is_response:
            fields = self._request(head, from_client, time_s)
        if lane.skip < 0:
            lane.skip, lane.lost = 0, True
            say(fields, "Content-Length is no length")
        if "event.kind" in fields:
            lane.skip, lane.lost = 0, True
        found.append(fields)
        return stop - at

    def _request(self, head: heads.Head, from_client: bool, time_s: float) -> Fields:
        method, _, more = head.start.partition(" ")
        target, _, version = more.rpartition(" ")
        if not target or not version.startswith("RTSP/") or not _METHOD.fullmatch(method):
            return self._unreadable(f"no request line: {without_secrets(head.start[:128])!r}")
        names = head.names
        operation, is_command = METHODS.get(method, ("", False))
        target = without_secrets(target)
        shown: Fields = {"ot.function.name": method.lower(), "url.original": target}
        if operation:
            shown["ot.operation"] = operation
        host, path = _place(target)
        if host:
            shown["url.domain"] = host
        if path:
            shown["url.path"] = path
        user = heads.user_of(head)
        if user:
            shown["user.name"] = user
        self._count += 1
        link = f"{self._link}{self._count}"
        fields = {
            **self._base,
            **shown,
            "event.action": f"rtsp_{method.lower()}" if operation else "rtsp_unknown_method",
            "ot.direction": "request" if from_client else "unsolicited",
            "ot.is_command": is_command,
            "ot.link_id": link,
        }
        if "user-agent" in names:
            fields["user_agent.original"] = names["user-agent"]
        self._number(fields, head)
        self._details(fields, head)
        cseq = names.get("cseq", "")[:NUMBER_MAX]
        key = (from_client, cseq)
        if key in self._open:
            say(fields, f"CSeq {cseq} again before its response")
        elif len(self._open) >= OPEN_MAX:
            self._open.pop(next(iter(self._open)))
            say(fields, f"a request given up unanswered, {OPEN_MAX} are open")
        self._open[key] = Asked(link, time_s, shown)
        return fields

    def _response(self, head: heads.Head, from_client: bool, time_s: float) -> Fields:
        status = head.start.partition(" ")[2][:3]
        if not (status.isascii() and status.isdigit()) or not 100 <= int(status) <= 599:
            return self._unreadable(f"no status line: {head.start[:128]!r}")
        key = (not from_client, head.names.get("cseq", "")[:NUMBER_MAX])
        asked = self._open.get(key)
        if asked and status[0] != "1":
            del self._open[key]
        name = asked.shown["ot.function.name"] if asked else "response"
        fields = {
            **self._base,
            **(asked.shown if asked else {}),
            "event.action": f"rtsp_{name}" if name.upper() in METHODS else "rtsp_response",
            "event.code": status,
            "event.outcome": "failure" if status[0] in "45" else "success",
            "ot.direction": "response",
            "ot.is_command": False,
        }
        if fields["event.outcome"] == "failure":
            fields["ot.exception"] = head.start[9:][:128]
        if asked:
            fields["ot.link_id"] = asked.link
            if time_s >= asked.time_s:
                fields["event.duration"] = int((time_s - asked.time_s) * 1e9)
        else:
            say(fields, "no request was seen for this response")
        if status == "401" or (asked and "user.name" in asked.shown):
            fields["event.category"] = ["authentication", "network"]
        self._number(fields, head)
        self._details(fields, head)
        return fields

    def _number(self, fields: Fields, head: heads.Head) -> None:
        cseq = head.names.get("cseq", "")
        if cseq.isascii() and cseq.isdigit() and len(cseq) < 16:
            fields["event.sequence"] = int(cseq)
        else:
            say(fields, "no CSeq")

    def _details(self, fields: Fields, head: heads.Head) -> None:
        vendor = {name: head.names[name] for name in _SHOWN if name in head.names}
        challenge = head.names.get("www-authenticate", "")
        if challenge:
            vendor["www-authenticate"] = challenge.partition(" ")[0].lower()
        if vendor:
            fields["cw.vendor"] = vendor
        if head.fault:
            say(fields, head.fault)

    def _unreadable(self, why: str) -> Fields:
        return unreadable(self._base, why)


_ALWAYS: Fields = {
    "network.protocol": "rtsp",
    "event.category": ["network"],
}
_SHOWN = ("server", "session", "transport", "content-type", "public")


def _place(target: str) -> tuple[str, str]:
    """Host without port, and path, of `rtsp://host:port/path`."""
    scheme, _, more = target.partition("://")
    if not more or not scheme.lower().startswith("rtsp"):
        return "", ""
    host, slash, path = more.partition("/")
    host = host.rpartition("@")[2]
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name, slash + path.partition("?")[0]
