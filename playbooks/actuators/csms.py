"""A small central system for charging stations, with the few words an actuator needs.

Stations call in over WebSocket (`/ocpp/ID`, OCPP 1.6 or 2.0.1); whoever has the token asks about
them and takes them out of service over HTTP on the same port. It takes every tag for good and
bills nothing: it is for tests, exercises and small closed fleets. A large central system offers
the same two questions by a few lines of its own.

    GET  /stations/CP-17               {"id", "version", "connected", "operative", "charging"}
    POST /stations/CP-17/availability  {"operative": false} → {"status": "Accepted"}

While a session charges the answer is 409 and nothing changes. `operative` is null until the
station has said how it is.

References:
    OCPP-J 1.6, sections 3 (handshake) and 4 (messages); OCPP 1.6, sections 5.2 (ChangeAvailability)
    and 4.9 (StatusNotification); OCPP 2.0.1 part 2, G03/G04, E; part 4, sections 3 and 4.
    RFC 6455, sections 4.2 (handshake of a server) and 5.2 (frames).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import re
import secrets
import struct
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import msgspec

log = logging.getLogger(__name__)

VERSIONS = ("ocpp2.0.1", "ocpp1.6")
BUSY = frozenset(("Charging", "SuspendedEV", "SuspendedEVSE", "Occupied"))
"""Of a connector: somebody charges, or may (2.0.1 says only that a cable is there)."""
OUT = "Unavailable"
INTERVAL_S = 60
SILENCE_S = 3 * INTERVAL_S
ANSWER_S = 10.0
SHOWN_S = 3.0
"""So long may a station take to tell that it has changed."""
MESSAGE_MAX_BYTES = 65_536
BODY_MAX_BYTES = 1_024
CONNECTORS_MAX = 64
TRANSACTIONS_MAX = 64

_ACCEPT = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_STATION = re.compile(r"/stations/([A-Za-z0-9][A-Za-z0-9_.:@-]{0,127})(/availability)?")
_SOCKET = re.compile(r"/ocpp/([A-Za-z0-9][A-Za-z0-9_.:@-]{0,127})")
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
Json = dict[str, Any]


class Station:
    """One station: what it said of itself, and the connection it has."""

    def __init__(self, name: str, password: str) -> None:
        self.name, self.password = name, password
        self.version = ""
        self.connectors: dict[str, str] = {}
        self.transactions: set[str] = set()
        self.changed = threading.Condition()
        self.turn = threading.Lock()
        self.socket: Socket | None = None
        self._answers: dict[str, Any] = {}
        self._numbers = count(1)

    @property
    def is_operative(self) -> bool | None:
        """Whether anything of it is in service; None: it has not said so."""
        said = {at: one for at, one in self.connectors.items() if at != "0"}
        said = said or self.connectors
        return any(one != OUT for one in said.values()) if said else None

    @property
    def is_charging(self) -> bool:
        """Whether somebody charges, as far as is known."""
        return bool(self.transactions) or not BUSY.isdisjoint(self.connectors.values())

    def state(self) -> Json:
        """What is told of it."""
        with self.changed:
            return {
                "id": self.name,
                "version": self.version,
                "connected": self.socket is not None,
                "operative": self.is_operative,
                "charging": self.is_charging,
            }

    def set_operative(self, wanted: bool) -> tuple[int, Json]:
        """Change the availability of the whole station; a running session is never touched."""
        with self.turn:
            if not wanted and self.is_charging:
                return 409, {"status": "charging"}
            said = self._change(wanted)
            if said == "Scheduled" and not wanted:
                # A session began meanwhile; it is not to end in a dead station.
                self._change(True)
                return 409, {"status": "charging"}
            if said != "Accepted":
                return (409 if said else 503), {"status": said or "no answer"}
            with self.changed:
                self.changed.wait_for(lambda: self.is_operative == wanted, SHOWN_S)
            return 200, {"status": said}

    def _change(self, wanted: bool) -> str:
        kind = "Operative" if wanted else "Inoperative"
        said: Json = {"connectorId": 0, "type": kind}
        if self.version == "ocpp2.0.1":
            said = {"operationalStatus": kind}
        answer = self._call("ChangeAvailability", said)
        status = answer.get("status", "") if isinstance(answer, dict) else ""
        return status if isinstance(status, str) else ""

    def _call(self, action: str, said: Json) -> Any:
        """Ask the station; None: it does not answer."""
        mark = secrets.token_hex(8)
        with self.changed:
            to, self._answers[mark] = self.socket, None
        try:
            if to is not None:
                to.say([2, mark, action, said])
        except OSError:
            to = None
        with self.changed:
            if to is not None:
                self.changed.wait_for(lambda: self._answers[mark] is not None, ANSWER_S)
            return self._answers.pop(mark)

    def heard(self, message: Any) -> list[Any] | None:
        """Take one message of the station; what it is answered."""
        if not isinstance(message, list) or len(message) < 3 or not isinstance(message[1], str):
            return None
        if message[0] in (3, 4):
            with self.changed:
                if message[1] in self._answers:
                    self._answers[message[1]] = message[2] if message[0] == 3 else {}
                    self.changed.notify_all()
            return None
        if message[0] != 2 or len(message) < 4 or not isinstance(message[3], dict):
            return None
        with self.changed:
            answer = self._answer(str(message[2]), message[3])
            self.changed.notify_all()
        if answer is None:
            return [4, message[1], "NotImplemented", "", {}]
        return [3, message[1], answer]

    def _answer(self, action: str, said: Json) -> Json | None:
        now = datetime.now(UTC).isoformat()
        is_new = self.version == "ocpp2.0.1"
        match action:
            case "BootNotification":
                self.transactions.clear()
                return {"currentTime": now, "interval": INTERVAL_S, "status": "Accepted"}
            case "Heartbeat":
                return {"currentTime": now}
            case "StatusNotification":
                at = str(said.get("connectorId"))
                at = f"{said.get('evseId')}/{at}" if is_new else at
                if at in self.connectors or len(self.connectors) < CONNECTORS_MAX:
                    self.connectors[at] = str(said.get("connectorStatus" if is_new else "status"))
                return {}
            case "Authorize":
                return {"idTokenInfo" if is_new else "idTagInfo": {"status": "Accepted"}}
            case "StartTransaction":
                number = next(self._numbers)
                self._began(str(number))
                return {"transactionId": number, "idTagInfo": {"status": "Accepted"}}
            case "StopTransaction":
                self.transactions.discard(str(said.get("transactionId")))
                return {}
            case "TransactionEvent":
                about = said.get("transactionInfo")
                name = str(about.get("transactionId")) if isinstance(about, dict) else ""
                if said.get("eventType") == "Ended":
                    self.transactions.discard(name)
                else:
                    self._began(name)
                return {}
            case "MeterValues" | "NotifyReport" | "NotifyEvent" | "SecurityEventNotification":
                return {}
            case "DataTransfer":
                return {"status": "UnknownVendorId"}
        return None

    def _began(self, transaction: str) -> None:
        if len(self.transactions) < TRANSACTIONS_MAX:
            self.transactions.add(transaction[:64])


class Socket:
    """The server's end of a WebSocket."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._in, self._out = handler.rfile, handler.wfile
        self._writing = threading.Lock()

    def say(self, message: Any) -> None:
        """Send a message; a connection that is gone is noticed by who reads."""
        self._send(_TEXT, msgspec.json.encode(message))

    def messages(self) -> Any:
        """Text messages until the other side is gone.

        Raises:
            ValueError: this is no WebSocket of a client, or a message is too long.
        """
        whole = b""
        while head := self._read(2):
            is_last, code, length = head[0] & 0x80, head[0] & 0x0F, head[1] & 0x7F
            if not head[1] & 0x80:
                raise ValueError("a frame without a mask")
            if length > 125:
                size = 2 if length == 126 else 8
                length = int.from_bytes(self._read(size), "big")
            if len(whole) + length > MESSAGE_MAX_BYTES:
                raise ValueError("too long a message")
            mask, data = self._read(4), self._read(length)
            data = bytes(one ^ mask[at & 3] for at, one in enumerate(data))
            if code == _CLOSE:
                return self._send(_CLOSE, data[:2])
            if code == _PING:
                self._send(_PONG, data[:125])
            elif code in (0, _TEXT):
                whole += data
                if is_last:
                    yield whole
                    whole = b""

    def _read(self, size: int) -> bytes:
        data = self._in.read(size)
        if len(data) < size:
            raise ValueError("the connection ended")
        return data

    def _send(self, code: int, data: bytes) -> None:
        size = len(data)
        length = bytes([size]) if size < 126 else b"\x7e" + struct.pack("!H", size)
        with self._writing:
            self._out.write(bytes([0x80 | code]) + length + data)
            self._out.flush()


class Csms:
    """The central system, in threads of its own.

    Args:
        stations: Name of each station to its password (OCPP security profile 1); nobody else may
            call in.
        token: What the HTTP questions have to bring.
        host: Where it listens; TLS is in front of it.
        port: 0 for any.
    """

    def __init__(
        self, stations: Mapping[str, str], token: str, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.stations = {name: Station(name, word) for name, word in stations.items()}
        known, secret = self.stations, f"Bearer {token}".encode()

        class Handler(_Handler):
            stations, bearer = known, secret

        self._server = _Server((host, port), Handler)
        self.port = int(self._server.server_address[1])

    def start(self) -> None:
        """Listen, until `stop`."""
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, _: Any, address: Any) -> None:
        """Somebody hung up in the middle."""
        log.debug("A connection of %s ended in %r.", address, sys.exc_info()[1])


class _Handler(BaseHTTPRequestHandler):
    """Stations by WebSocket, questions by HTTP."""

    stations: Mapping[str, Station]
    bearer: bytes
    timeout = 30
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A station that calls in, or a question."""
        if found := _SOCKET.fullmatch(self.path):
            self._serve(self.stations.get(found[1]))
        elif station := self._asked(""):
            self._say(200, station.state())

    def do_POST(self) -> None:
        """Set the availability of a station."""
        if not (station := self._asked("/availability")):
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_MAX_BYTES:
            return self._say(400, {"status": "no body"})
        try:
            said = msgspec.json.decode(self.rfile.read(int(length)), type=dict[str, bool])
            self._say(*station.set_operative(said["operative"]))
        except (msgspec.DecodeError, KeyError):
            self._say(400, {"status": "say operative"})

    def _asked(self, wanted: str) -> Station | None:
        said = self.headers.get("Authorization", "").encode()
        found = _STATION.fullmatch(self.path)
        if not hmac.compare_digest(said, self.bearer):
            self._say(401, {"status": "who?"})
        elif not found or (found[2] or "") != wanted or found[1] not in self.stations:
            self._say(404, {"status": "no such station"})
        else:
            return self.stations[found[1]]
        return None

    def _serve(self, station: Station | None) -> None:
        """Talk with a station until it is gone."""
        offered = [one.strip() for one in self.headers.get("Sec-WebSocket-Protocol", "").split(",")]
        version = next((one for one in VERSIONS if one in offered), "")
        key = self.headers.get("Sec-WebSocket-Key", "")
        if station is None or not self._is_it(station):
            return self._say(401, {"status": "who?"})
        if not version or self.headers.get("Upgrade", "").lower() != "websocket":
            return self._say(400, {"status": f"speak {' or '.join(VERSIONS)}"})
        digest = hashlib.sha1(f"{key}{_ACCEPT}".encode(), usedforsecurity=False).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(digest).decode())
        self.send_header("Sec-WebSocket-Protocol", version)
        self.end_headers()
        self.connection.settimeout(SILENCE_S)
        self.close_connection = True
        self._talk(station, version)

    def _talk(self, station: Station, version: str) -> None:
        mine = Socket(self)
        with station.changed:
            station.socket, station.version = mine, version
        try:
            for data in mine.messages():
                if (answer := station.heard(msgspec.json.decode(data))) is not None:
                    mine.say(answer)
        except (OSError, ValueError, RecursionError):
            pass  # whatever it was, the station calls in again
        finally:
            with station.changed:
                if station.socket is mine:
                    station.socket = None
                    station.changed.notify_all()

    def _is_it(self, station: Station) -> bool:
        wanted = base64.b64encode(f"{station.name}:{station.password}".encode())
        said = self.headers.get("Authorization", "").encode()
        return hmac.compare_digest(said, b"Basic " + wanted)

    def _say(self, status: int, said: Json) -> None:
        body = msgspec.json.encode(said)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing: what stations do is in their own events."""
