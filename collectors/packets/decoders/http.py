"""HTTP/1: one event a request and one a response, paired in order; WebSocket and OCPP inside.

Understood: requests and responses of HTTP/1.0 and 1.1 with pipelining, bodies by length, in chunks
or until the end (counted, of a text in a request the first 2 KiB are kept), the user name of Basic
and Digest credentials, and after an upgrade the messages of a WebSocket; those of OCPP 1.6 and
2.0.1 become events of a charging station (log source `ot_protocol`, `ocpp`).

Not understood: HTTP/2 and anything inside TLS; compressed bodies; other protocols in a WebSocket,
of which only the size is said; a WebSocket whose beginning was not seen. Passwords are never kept.

References:
    RFC 9110 (semantics), RFC 9112 (HTTP/1.1), RFC 7617 (Basic).
    RFC 6455 (WebSocket), see `websocket.py`; OCPP, see `collectors/energy/ocpp_messages.py`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from cityward import LogSource, Session, decoder
from collectors.energy.ocpp_messages import Exchange, looks_like_call
from collectors.packets import heads
from collectors.packets.decoders.pairs import link_prefix, say, unreadable
from collectors.packets.decoders.websocket import Frames, Message
from collectors.packets.secrets import without_secrets

HTTP = LogSource(category="webserver", service="http")

BODY_SHOWN = 2_048
"""Bytes of the text body of a request that are kept."""
OPEN_MAX = 64
"""Requests of one connection that wait for their response."""
ODD_MAX = 8
"""Values of a head that look like an attack and are kept."""
PROTOCOL_MAX = 32
"""Characters of the name of a protocol inside of a WebSocket; what is longer is a token."""
LINE_MAX = 256
"""Bytes of a line with the size of a chunk, and of trailers behind the last one."""

METHODS = (
    *("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"),
    *("PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "SEARCH", "REPORT"),
    *("NOTIFY", "SUBSCRIBE", "UNSUBSCRIBE", "M-SEARCH"),
)
"""RFC 9110, section 9; WebDAV (RFC 4918, 5323, 3253) and UPnP."""

Fields = dict[str, Any]

_REQUEST = re.compile(rb"(?:" + b"|".join(map(re.escape, (m.encode() for m in METHODS))) + rb") "
                      rb"[\x21-\xff]{1,8192} HTTP/1\.[01]\r?\n")  # fmt: skip
_RESPONSE = re.compile(rb"HTTP/1\.[01] [1-5]\d\d(?: [^\r\n]{0,512})?\r?\n")
_CUT_REQUEST = re.compile(rb"(?:GET|HEAD|POST|PUT|DELETE) [/h][\x21-\xff]{512,}\Z")
_NEXT = re.compile(
    rb"(?:(?:" + b"|".join(re.escape(m.encode()) for m in METHODS) + rb") [\x21-\xff]{1,4096} )?"
    rb"HTTP/1\.[01][\r\n ]"
)
_METHOD = re.compile(r"[A-Z][A-Z\-]{1,23}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")
_TEXTS = ("text/", "application/x-www-form-urlencoded", "application/json", "application/xml")
_BEGINS = bytes({ord(method[0]) for method in METHODS} | {ord("H")})


class Asked(msgspec.Struct, gc=False):
    """A request that waits for its response."""

    link: str
    time_s: float
    method: str
    shown: Fields
    """Fields that the response repeats."""


class Lane(msgspec.Struct):
    """One direction."""

    mode: str = "head"
    """What comes next: `head`, `body` (of known length), `size` (of a chunk), `trailer`, `rest`
    (a body until the end), `lost`, `wait` (for the answer to an upgrade), `frames`, `tunnel`."""
    left: int = 0
    """Bytes of the body or chunk that are still to come."""
    chunked: bool = False
    held: Fields | None = None
    """A request whose body is collected."""
    body: bytes = b""
    size: int = 0
    rest: int = 0
    """Bytes that wait for more behind them."""


@decoder("http", HTTP, ports=(80, 8000, 8080, 8180), begins=_BEGINS)
class Http:
    """One HTTP/1 connection."""

    def __init__(self, session: Session) -> None:
        self._base = {**session.base, **_ALWAYS}
        self._ends = f"{session.client}>{session.server}"
        self._link = ""
        self._count = 0
        self._lanes = (Lane(), Lane())
        self._open: deque[Asked] = deque()
        self._frames: tuple[Frames, Frames] | None = None
        self._ocpp: Exchange | None = None
        self._is_other = False
        self._url = ""

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a request line or a status line."""
        return bool(_REQUEST.match(head) or _RESPONSE.match(head) or _CUT_REQUEST.match(head))

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
            used = self._step(lane, data, at, from_client, time_s, found)
            if not used:
                break
            at += used
        lane.rest = end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; within a body of known length the gap may be all that is lost."""
        lane = self._lanes[from_client]
        if lane.mode == "frames" and self._frames:
            self._frames[from_client].gap()
        elif lane.mode != "tunnel":
            lane.mode = "lost"
        lane.rest = 0

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; requests whose body or response never came."""
        found: list[Fields] = []
        for lane, from_client in zip(self._lanes, (False, True), strict=True):
            who = "client" if from_client else "server"
            self._release(lane, found, "its body is not whole")
            if lane.rest and lane.mode == "head":
                why = f"the conversation ended {lane.rest} bytes into a head of the {who}"
                found.append(self._unreadable(why))
            lane.rest, lane.mode = 0, "tunnel"
        for asked in self._open:
            found.append(
                {
                    **self._base,
                    **asked.shown,
                    "event.action": "http_unanswered",
                    "event.outcome": "unknown",
                    "event.reason": f"no response to the {asked.method}",
                    "ot.link_id": asked.link,
                }
            )
        self._open.clear()
        if self._ocpp:
            found += [{**self._base, **fields} for fields in self._ocpp.end()]
        return found

    # ------------------------------------------------------------------------- one part

    def _step(
        self, lane: Lane, data: bytes, at: int, from_client: bool, time_s: float,
        found: list[Fields],
    ) -> int:  # fmt: skip
        """Read what comes next; how many bytes it was, 0 if more have to come."""
        end = len(data)
        match lane.mode:
            case "head":
                return self._head(lane, data, at, from_client, time_s, found)
            case "body":
                return self._body(lane, data, at, found)
            case "size" | "trailer":
                return self._chunk(lane, data, at, found)
            case "frames":
                return self._messages(data, at, from_client, time_s, found)
            case "wait":
                return 0
            case "lost":
                self._release(lane, found, "bytes of its body are missing")
                start = _NEXT.search(data, at)
                if start is None:
                    # A start line may have begun at the very end.
                    line = data.rfind(b"\n", max(at, end - 4_096)) + 1
                    return (max(line, at) if line else end) - at
                lane.mode = "head"
                if start.start() > at:
                    return start.start() - at
                return self._head(lane, data, at, from_client, time_s, found)
            case _:
                lane.size += end - at
                return end - at

    def _head(
        self, lane: Lane, data: bytes, at: int, from_client: bool, time_s: float,
        found: list[Fields],
    ) -> int:  # fmt: skip
        if data[at] in b"\r\n":
            return 1
        stop = heads.end_of(data, at)
        if stop < 0:
            if len(data) - at <= heads.HEAD_MAX:
                return 0
            found.append(self._unreadable(f"a head without end in {heads.HEAD_MAX} bytes"))
            lane.mode = "lost"
            return len(data) - at
        head = heads.read(data[at:stop])
        is_response = head.start.startswith("HTTP/1.")
        read = self._response if is_response else self._request
        why = read(lane, head, from_client, time_s, found)
        if why:
            found.append(self._unreadable(why))
            lane.mode = "lost"
        return stop - at

    def _request(
        self, lane: Lane, head: heads.Head, from_client: bool, time_s: float, found: list[Fields]
    ) -> str:
        """Read a request; what is wrong with it, so that it is none."""
        method, _, more = head.start.partition(" ")
        target, _, version = more.rpartition(" ")
        if not target or not version.startswith("HTTP/1.") or not _METHOD.fullmatch(method):
            return f"no request line: {without_secrets(head.start[:128])!r}"
        names = head.names
        target = without_secrets(target)
        shown = _url_fields(method, target, names.get("host", ""))
        self._count += 1
        link = f"{self._link}{self._count}"
        fields: Fields = {
            **self._base,
            **shown,
            "event.action": "http_request",
            "event.type": ["access"],
            "http.version": version[5:],
            "url.original": target,
            "ot.direction": "request",
            "ot.link_id": link,
            **_asked_with(head, target),
        }
        if not from_client:
            say(fields, "the server sent a request")
        if len(self._open) >= OPEN_MAX:
            self._open.popleft()
            say(fields, f"a request given up unanswered, {OPEN_MAX} are open")
        self._open.append(Asked(link, time_s, method, shown))
        why = self._framing(lane, head, fields)
        if why:
            say(fields, why)
        lane.held = fields
        if lane.mode == "head" or not _is_text(names.get("content-type", "")):
            self._release(lane, found)
        if "websocket" in names.get("upgrade", "").lower() and lane.mode == "head":
            lane.mode = "wait"
        return ""

    def _response(
        self, lane: Lane, head: heads.Head, from_client: bool, time_s: float, found: list[Fields]
    ) -> str:
        version, _, more = head.start.partition(" ")
        status = more[:3]
        if not (status.isascii() and status.isdigit()) or not 100 <= int(status) <= 599:
            return f"no status line: {head.start[:128]!r}"
        code, names = int(status), head.names
        is_final = code >= 200 or code == 101
        asked = self._open[0] if self._open else None
        if asked and is_final:
            self._open.popleft()
        fields: Fields = {
            **self._base,
            **(asked.shown if asked else {}),
            "event.action": "http_response",
            "event.outcome": "failure" if code >= 400 else "success",
            "http.version": version[5:],
            "http.response.status_code": code,
            "ot.direction": "response",
        }
        if asked:
            fields["ot.link_id"] = asked.link
            if time_s >= asked.time_s:
                fields["event.duration"] = int((time_s - asked.time_s) * 1e9)
        else:
            say(fields, "no request was seen for this response")
        if "content-type" in names:
            fields["http.response.mime_type"] = _mime(names["content-type"])
        vendor = {name: _shown(name, names[name]) for name in _SHOWN_ANSWERS if name in names}
        if vendor:
            fields["cw.vendor"] = vendor
        if head.fault:
            say(fields, head.fault)
        if from_client:
            say(fields, "the client sent a response")
        method = asked.method if asked else ""
        self._after_response(lane, head, code, method, asked, fields)
        found.append(fields)
        return ""

    def _after_response(
        self, lane: Lane, head: heads.Head, code: int, method: str, asked: Asked | None,
        fields: Fields,
    ) -> None:  # fmt: skip
        """What follows a response, in both directions (RFC 9112, section 6.3)."""
        other = self._lanes[self._lanes[0] is lane]
        if code == 101 or (method == "CONNECT" and code < 300 and code >= 200):
            wants = head.names.get("upgrade", "").lower()
            lane.mode = other.mode = "frames" if wants == "websocket" else "tunnel"
            if lane.mode == "frames":
                deflate = "permessage-deflate" in head.names.get("sec-websocket-extensions", "")
                self._frames = (Frames(False, deflate), Frames(True, deflate))
                self._url = asked.shown.get("url.path", "") if asked else ""
                if head.names.get("sec-websocket-protocol", "").lower().startswith("ocpp"):
                    self._begin_ocpp(head.names["sec-websocket-protocol"].lower())
            return
        if other.mode == "wait" and code >= 200:
            other.mode = "head"
        if code < 200 or code in (204, 304) or method == "HEAD":
            return
        why = self._framing(lane, head, fields, until_end=True)
        if why:
            say(fields, why)

    def _framing(
        self, lane: Lane, head: heads.Head, fields: Fields, until_end: bool = False
    ) -> str:
        """How long the body is; what is wrong with what the head says of it."""
        lane.chunked, lane.size, lane.body = False, 0, b""
        names = head.names
        lane.mode = "head"
        if "transfer-encoding" in names:
            lane.chunked = names["transfer-encoding"].lower().endswith("chunked")
            lane.mode = "size" if lane.chunked else "rest" if until_end else "head"
            if "content-length" in names:
                return "both Content-Length and Transfer-Encoding, as in request smuggling"
            return "" if lane.chunked or until_end else "a transfer encoding that is not chunked"
        if "content-length" not in names:
            lane.mode = "rest" if until_end else "head"
            return ""
        lane.left = heads.length_of(head)
        if lane.left < 0:
            lane.mode, lane.left = "lost", 0
            return f"Content-Length {names['content-length'][:64]!r} is no length"
        side = "response" if until_end else "request"
        fields[f"http.{side}.body.bytes"] = lane.left
        lane.mode = "body" if lane.left else "head"
        return ""

    def _body(self, lane: Lane, data: bytes, at: int, found: list[Fields]) -> int:
        used = min(lane.left, len(data) - at)
        if lane.held is not None:
            lane.body += data[at : at + min(used, BODY_SHOWN - len(lane.body))]
        lane.left -= used
        lane.size += used
        if not lane.left:
            lane.mode = "size" if lane.chunked else "head"
        if lane.held is not None and (lane.mode == "head" or len(lane.body) >= BODY_SHOWN):
            self._release(lane, found)
        return used

    def _chunk(self, lane: Lane, data: bytes, at: int, found: list[Fields]) -> int:
        """A line with the size of a chunk, the end of the chunk before it, or a trailer line."""
        stop = data.find(b"\n", at, at + LINE_MAX) + 1
        if not stop:
            if len(data) - at < LINE_MAX:
                return 0
            found.append(self._unreadable("no size of a chunk where one has to be"))
            lane.mode = "lost"
            return len(data) - at
        line = data[at:stop]
        if lane.mode == "trailer":
            if line in (b"\r\n", b"\n"):
                lane.mode = "head"
                self._release(lane, found)
            return stop - at
        if line in (b"\r\n", b"\n") and lane.size:
            return stop - at
        size = _CHUNK.fullmatch(line)
        if size is None:
            found.append(self._unreadable(f"no size of a chunk: {line[:32]!r}"))
            lane.mode = "lost"
            return stop - at
        lane.left = int(size[1], 16)
        lane.mode = "body" if lane.left else "trailer"
        return stop - at

    def _release(self, lane: Lane, found: list[Fields], why: str = "") -> None:
        """Give out the request that waited for its body."""
        fields = lane.held
        if fields is None:
            return
        lane.held = None
        if lane.body:
            text = lane.body.decode("utf-8", "backslashreplace")
            fields["http.request.body.content"] = without_secrets(text)
            lane.body = b""
        if why:
            say(fields, why)
        found.append(fields)

    # ------------------------------------------------------------------------- inside

    def _messages(
        self, data: bytes, at: int, from_client: bool, time_s: float, found: list[Fields]
    ) -> int:
        assert self._frames is not None
        used, messages = self._frames[from_client].feed(data, at)
        for message in messages:
            if message.fault:
                found.append(self._unreadable(message.fault))
            elif message.is_text and self._speaks_ocpp(message):
                assert self._ocpp is not None
                said = self._ocpp.read(message.data, from_client, time_s)
                found += [{**self._base, **fields} for fields in said]
            else:
                found.append(self._websocket(message, from_client))
        return used

    def _speaks_ocpp(self, message: Message) -> bool:
        if self._ocpp is None and not self._is_other:
            self._is_other = not looks_like_call(message.data)
            if not self._is_other:
                self._begin_ocpp("")
        return self._ocpp is not None

    def _begin_ocpp(self, version: str) -> None:
        charger = self._url.rstrip("/").rpartition("/")[2]
        self._ocpp = Exchange(charger, version.removeprefix("ocpp"), self._link)

    def _websocket(self, message: Message, from_client: bool) -> Fields:
        fields: Fields = {
            **self._base,
            "event.action": f"websocket_{message.name}",
            "network.application": "websocket",
            "ot.direction": "request" if from_client else "unsolicited",
            "url.path": self._url,
            "cw.vendor": {"bytes": message.size},
        }
        if message.code:
            fields["event.code"] = str(message.code)
        return fields

    def _unreadable(self, why: str) -> Fields:
        return unreadable(self._base, why)


_ALWAYS: Fields = {
    "network.protocol": "http",
    "event.category": ["web", "network"],
}
_REQUEST_NAMES = {
    "user-agent": "user_agent.original",
    "referer": "http.request.referrer",
    "content-type": "http.request.mime_type",
}
_SHOWN_NAMES = ("upgrade", "x-forwarded-for", "sec-websocket-protocol")
_SHOWN_ANSWERS = ("server", "location", "upgrade", "sec-websocket-protocol")
_NEVER = frozenset(("authorization", "proxy-authorization", "cookie"))
"""What may hold a secret."""


def _asked_with(head: heads.Head, target: str) -> Fields:
    """What the values of a request's head say: who asks, with what, and what is odd in them."""
    names = head.names
    fields = {
        field: _shown(name, names[name]) for name, field in _REQUEST_NAMES.items() if name in names
    }
    if "?" in target:
        fields["url.query"] = target.partition("?")[2]
    if user := heads.user_of(head):
        fields["user.name"] = user
    odd = [
        name
        for name, value in names.items()
        if "${" in value and name not in _REQUEST_NAMES and name not in _NEVER
    ]
    vendor = {name: _shown(name, names[name]) for name in _SHOWN_NAMES if name in names}
    vendor |= {name: names[name] for name in odd[:ODD_MAX]}
    return {
        **fields,
        **({"cw.vendor": vendor} if vendor else {}),
        **({"event.reason": head.fault} if head.fault else {}),
    }


def _url_fields(method: str, target: str, host: str) -> Fields:
    """Where a request goes, of its target and Host (RFC 9112, section 3.3)."""
    fields: Fields = {"http.request.method": method}
    path = target.partition("?")[0]
    if "://" in path[:16]:
        host, slash, more = path.partition("://")[2].partition("/")
        path = slash + more
        fields["url.full"] = target
    elif host and path.startswith("/"):
        fields["url.full"] = f"http://{host}{target}"
    if path:
        fields["url.path"] = path
    if host:
        # The port stands behind a colon, an address of IPv6 in brackets.
        host = host.rpartition("@")[2]
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        fields["url.domain"] = name
    return fields


def _shown(name: str, value: str) -> str:
    """A value of a head as an event keeps it."""
    if name == "content-type":
        return _mime(value)
    if name == "sec-websocket-protocol":
        # Browsers have no other place for the token that they log in with.
        protocols = (one.strip() for one in value.split(","))
        return ", ".join(one if len(one) <= PROTOCOL_MAX else "***" for one in protocols)
    return without_secrets(value)


def _mime(value: str) -> str:
    return value.partition(";")[0].strip().lower()


def _is_text(content_type: str) -> bool:
    return not content_type or content_type.lower().startswith(_TEXTS)
