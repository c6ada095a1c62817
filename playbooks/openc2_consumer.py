"""An OpenC2 consumer: takes commands over HTTP, and has one actuator carry them out.

It acts for whoever has its token or a certificate that it knows, on nothing but what the packet
filter profile names, and never for longer than it was told: a `deny` without an end is refused, and
`allow` takes back what was denied, it opens nothing. The same request again is answered as before
and does nothing; what it remembers for that is in memory, so that after a restart a repeated `deny`
is carried out again, which makes it last as long again at most.

References:
    OpenC2 Language Specification 1.0, section 3.3.2 (responses), 4 (conformance); Profile for
    Stateless Packet Filtering 1.0, section 2.3; Transfer via HTTPS 1.0, section 3.
"""

from __future__ import annotations

import hashlib
import hmac
import http.server
import logging
import socket
import ssl
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from cityward import Command, Target, TransientError, Unsafe
from cityward.plugin import Actuator
from playbooks import openc2
from playbooks.openc2 import Answer, Refused

BODY_MAX = 65_536
ID_MAX = 128
REMEMBERED = 10_000
LONGEST = timedelta(days=1)
PER_MINUTE = 60
AT_ONCE = 16
STEP_S = 10.0

_COMMAND = {"action", "target", "args", "actuator", "command_id"}
_ARGS = {"start_time", "stop_time", "duration", "response_requested", openc2.PROFILE}
_WISHES = ("none", "ack", "status", "complete")
_ONLY: Mapping[str, Any] = {"drop_process": "none", "direction": "both", "persistent": False}
"""What the profile lets a producer ask for, and the one of it that the filter does."""

log = logging.getLogger(__name__)
Json = dict[str, Any]


class Consumer:
    """Carries out commands, one at a time; knows nothing of HTTP.

    Args:
        actuator: What denies and allows.
        asset_id: Name of this filter; a command for another one is refused.
        longest: No `deny` lasts longer.
        per_minute: Commands that are looked at, from everybody together.
        clock: Tells the time.
    """

    def __init__(
        self,
        actuator: Actuator,
        *,
        asset_id: str = "",
        longest: timedelta = LONGEST,
        per_minute: int = PER_MINUTE,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._actuator, self._asset_id, self._clock = actuator, asset_id, clock
        self._longest, self._per_minute = longest, per_minute
        self._lately: deque[datetime] = deque()
        self._done: OrderedDict[tuple[str, str], tuple[bytes, Answer]] = OrderedDict()
        self._rules: OrderedDict[int, Target] = OrderedDict()
        self._turn = threading.Lock()

    def handle(self, body: bytes, who: str, request: str) -> Answer | None:
        """Carry out a command; None: no response was wanted.

        Args:
            body: A command, JSON.
            who: The producer, as it was authenticated.
            request: Id of the request, if it has one; a command may bring its own.
        """
        try:
            command = _command(body)
            args = _args(command)
            own = _text(command, "command_id") or request
            if not 0 < len(own) <= ID_MAX:
                raise Refused(openc2.BAD, "a command or its request needs an id")
            with self._turn:
                answer = self._once(command, args, (who, own))
        except Refused as refused:
            return refused.answer
        wish = args.get("response_requested", "complete")
        if wish == "none":
            return None
        return Answer(openc2.PROCESSING) if wish == "ack" and answer.status == 200 else answer

    def _once(self, command: Json, args: Json, id: tuple[str, str]) -> Answer:
        # A duration shrinks from one try to the next; what it is about stays.
        about = msgspec.json.encode((command["action"], command["target"]), order="deterministic")
        if known := self._done.get(id):
            if known[0] != about:
                raise Refused(openc2.BAD, "this id was another command's")
            return known[1]
        self._limit()
        try:
            answer = self._act(command, args, id)
        except Unsafe as error:
            log.warning("A command of %s was refused: %s.", id[0], error.what)
            answer = Answer(openc2.FORBIDDEN, "the filter refuses it")
        except TransientError as error:
            log.error("A command of %s could not be carried out: %s.", id[0], error.what)
            raise Refused(openc2.UNAVAILABLE, "the filter does not answer") from error
        except Refused:
            raise
        except Exception as error:
            log.exception("A command of %s could not be carried out.", id[0])
            raise Refused(openc2.FAULT, "a fault of the consumer, see its log") from error
        self._done[id] = (about, answer)
        if len(self._done) > REMEMBERED:
            self._done.popitem(last=False)
        return answer

    def _limit(self) -> None:
        now = self._clock()
        while self._lately and now - self._lately[0] > timedelta(minutes=1):
            self._lately.popleft()
        if len(self._lately) >= self._per_minute:
            raise Refused(openc2.TOO_MANY, f"more than {self._per_minute} commands a minute")
        self._lately.append(now)

    # ---- Actions

    def _act(self, command: Json, args: Json, id: tuple[str, str]) -> Answer:
        self._check_actuator(command.get("actuator", {}))
        action = command["action"]
        ((kind, value),) = command["target"].items()
        if action == "query":
            return self._query(kind, value, args)
        if action == "deny":
            return self._deny(openc2.target_in(kind, value), self._end(args), id)
        if {"duration", "stop_time"} & set(args):
            raise Refused(openc2.NOT_IMPLEMENTED, f"{action} has no end here")
        if action == "allow":
            return self._allow(openc2.target_in(kind, value), id)
        if action == "delete" and kind == openc2.RULE:
            target = self._rules.get(value) if isinstance(value, int) else None
            if target is None:
                raise Refused(openc2.NOT_FOUND, "there is no such rule")
            return self._allow(target, id)
        raise Refused(openc2.NOT_IMPLEMENTED, "there is no such action on this target here")

    def _deny(self, target: Target, until: datetime, id: tuple[str, str]) -> Answer:
        key = _key(id)
        for one in self._actuator.plan("deny", target, until):
            self._actuator.apply(msgspec.structs.replace(one, key=key))
        log.warning("%s denied %s until %s.", id[0], target.value, until.isoformat())
        number = _rule_number(target)
        self._rules[number] = target
        if len(self._rules) > REMEMBERED:
            self._rules.popitem(last=False)
        return Answer(openc2.OK, results={openc2.PROFILE: {"rule_number": number}})

    def _allow(self, target: Target, id: tuple[str, str]) -> Answer:
        now = self._clock()
        self._actuator.apply(Command("allow", target, undo="deny", until=now, key=_key(id)))
        log.warning("%s allowed %s.", id[0], target.value)
        return Answer(openc2.OK)

    def _query(self, kind: str, value: Any, args: Json) -> Answer:
        if set(args) - {"response_requested"} or args.get("response_requested") not in (
            None,
            "complete",
        ):
            raise Refused(openc2.BAD, "a query has no arguments but a complete response")
        if kind == openc2.STATE and isinstance(value, dict) and len(value) == 1:
            state = self._actuator.probe(openc2.target_in(*next(iter(value.items()))))
            found: Json = {"is_applied": state.is_applied}
            if state.until is not None:
                found["until"] = _ms(state.until)
            return Answer(openc2.OK, results={openc2.OWN: found})
        if kind != "features":
            raise Refused(openc2.NOT_IMPLEMENTED, "there is no such query here")
        is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
        if not is_list or len(set(value)) < len(value) or set(value) - set(openc2.FEATURES):
            raise Refused(openc2.BAD, "these are no features")
        own = self._features()
        return Answer(openc2.OK, results={name: own[name] for name in value})

    def _features(self) -> Json:
        spec = self._actuator.cityward_spec  # type: ignore[attr-defined]
        targets = [one for one in spec.targets if one in openc2.NETWORKS + openc2.CONNECTIONS]
        pairs = {"deny": targets, "allow": targets, "delete": [openc2.RULE], "query": ["features"]}
        return {
            "versions": [openc2.VERSION],
            "profiles": [openc2.PROFILE, openc2.OWN],
            "pairs": pairs,
            "rate_limit": self._per_minute,
        }

    # ---- What a command asks for

    def _check_actuator(self, said: Any) -> None:
        if not isinstance(said, dict) or set(said) - {openc2.PROFILE}:
            raise Refused(openc2.NOT_IMPLEMENTED, "there is no such profile here")
        wanted = said.get(openc2.PROFILE, {})
        if not isinstance(wanted, dict):
            raise Refused(openc2.BAD, "these are no specifiers of an actuator")
        if wanted and wanted != {"asset_id": self._asset_id}:
            raise Refused(openc2.NOT_FOUND, "this is another actuator")

    def _end(self, args: Json) -> datetime:
        now = self._clock()
        if args.get("start_time", 0) > _ms(now):
            raise Refused(openc2.NOT_IMPLEMENTED, "nothing is put off here")
        if ("duration" in args) == ("stop_time" in args):
            raise Refused(openc2.BAD, "a deny needs its duration, or its stop_time")
        left_ms = args["duration"] if "duration" in args else args["stop_time"] - _ms(now)
        if not 0 < left_ms <= self._longest / timedelta(milliseconds=1):
            hours = self._longest / timedelta(hours=1)
            raise Refused(openc2.BAD, f"a deny ends within {hours:g} h from now")
        return now + timedelta(milliseconds=left_ms)


def _command(body: bytes) -> Json:
    """The envelope of a command, checked."""
    try:
        command = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        command = None
    if not isinstance(command, dict) or set(command) - _COMMAND or not body:
        raise Refused(openc2.BAD, "this is no command")
    action, target = command.get("action"), command.get("target")
    if not isinstance(action, str) or action not in openc2.ACTIONS:
        raise Refused(openc2.BAD, "this is no action")
    if not isinstance(target, dict) or len(target) != 1:
        raise Refused(openc2.BAD, "a command has one target")
    return command


def _args(command: Json) -> Json:
    args = command.get("args", {})
    if not isinstance(args, dict):
        raise Refused(openc2.BAD, "these are no arguments")
    if set(args) - _ARGS:
        raise Refused(openc2.NOT_IMPLEMENTED, "there is no such argument here")
    for name in ("start_time", "stop_time", "duration"):
        value = args.get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
            raise Refused(openc2.BAD, f"{name} is a number of milliseconds")
    if args.get("response_requested", "complete") not in _WISHES:
        raise Refused(openc2.BAD, "there is no such response")
    own = args.get(openc2.PROFILE, {})
    if not isinstance(own, dict):
        raise Refused(openc2.BAD, "these are no arguments of the profile")
    if any(name not in _ONLY or _ONLY[name] != value for name, value in own.items()):
        can = ", ".join(f"{name}: {str(value).lower()}" for name, value in _ONLY.items())
        raise Refused(openc2.NOT_IMPLEMENTED, f"only {can}")
    return args


def _text(command: Json, name: str) -> str:
    value = command.get(name, "")
    if not isinstance(value, str):
        raise Refused(openc2.BAD, f"{name} is a text")
    return value


def _key(id: tuple[str, str]) -> str:
    return hashlib.sha256("\n".join(id).encode(errors="replace")).hexdigest()[:32]


def _rule_number(target: Target) -> int:
    said = hashlib.sha256(f"{target.type}\n{target.value}".encode()).digest()
    return int.from_bytes(said[:4], "big") >> 1


def _ms(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


# ---- HTTP


class Gate:
    """Who may give commands: the holder of the token, or of a certificate with a known name."""

    def __init__(self, *, token: str = "", names: Sequence[str] = ()) -> None:
        self._token, self._names = token.encode(), frozenset(names)

    @property
    def is_shut(self) -> bool:
        """Nobody may."""
        return not self._token and not self._names

    def who(self, authorization: str, certificate: Mapping[str, Any] | None) -> str:
        """The producer's name; empty: nobody's we know."""
        names = set(_names(certificate or {}))
        if known := names & self._names:
            return min(known)
        given = authorization.removeprefix("Bearer ").encode(errors="replace")
        if self._token and hmac.compare_digest(given, self._token):
            return "token"
        return ""


def _names(certificate: Mapping[str, Any]) -> Sequence[str]:
    subject = [value for part in certificate.get("subject", ()) for key, value in part
               if key == "commonName"]  # fmt: skip
    return [
        *subject,
        *(value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"),
    ]


class Server(http.server.ThreadingHTTPServer):
    """Takes commands at `/.well-known/openc2`.

    Args:
        address: Where it listens; port 0 takes a free one.
        consumer: Carries them out.
        gate: Who may give them.
        tls: With a client authority, producers show certificates; None: plain HTTP.
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(
        self,
        address: tuple[str, int],
        consumer: Consumer,
        gate: Gate,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)
        self.consumer, self.gate, self.tls = consumer, gate, tls
        self.places = threading.BoundedSemaphore(AT_ONCE)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve in a thread, if there is one left."""
        if not self.places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection; its TLS begins here, so that nobody waits for a slow one."""
        try:
            request.settimeout(STEP_S)
            if self.tls is not None:
                request = self.tls.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:
            self.shutdown_request(request)
        finally:
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the producer's matter."""
        log.debug("A connection of %s broke.", client_address, exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    server_version = "cityward"
    sys_version = ""

    def do_POST(self) -> None:
        request = self.headers.get("X-Request-ID", "")[:ID_MAX]
        certificate: Mapping[str, Any] = getattr(self.connection, "getpeercert", dict)()
        who = self.server.gate.who(self.headers.get("Authorization", ""), certificate)
        if not who:
            return self._say(Answer(openc2.UNAUTHORIZED, "who are you?"), request)
        if self.path != openc2.PATH:
            return self._say(Answer(openc2.NOT_FOUND, f"commands go to {openc2.PATH}"), request)
        if self.headers.get_content_type() != "application/openc2-cmd+json":
            return self._say(Answer(openc2.BAD, f"send {openc2.COMMAND_TYPE}"), request)
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal() and int(length[:9]) <= BODY_MAX):
            return self._say(Answer(openc2.BAD, "its length is missing or too much"), request)
        body = self.rfile.read(int(length))
        return self._say(self.server.consumer.handle(body, who, request), request)

    def _say(self, answer: Answer | None, request: str) -> None:
        body = b"" if answer is None else msgspec.json.encode(answer)
        # 102 is no final status of HTTP.
        status = answer.status if answer is not None and answer.status >= 400 else 200
        self.send_response(status)
        self.send_header("Content-Type", openc2.RESPONSE_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-cache, no-store")
        if request.isprintable() and request.isascii() and request:
            self.send_header("X-Request-ID", request)
        if status == openc2.UNAUTHORIZED:
            self.send_header("WWW-Authenticate", "Bearer")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
