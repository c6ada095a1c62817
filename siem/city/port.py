"""The port of the exchange: HTTP over mutual TLS, where every request has an operator.

Who shows no certificate may ask for the authority's and bring a token, and nothing else. All that
is refused is answered in three parts – what, where, what to do – and stands in the audit trail.

References:
    RFC 8446 (TLS 1.3), RFC 9110 (HTTP), RFC 1952 (gzip).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from cityward import CitywardError, TransientError, Unsafe
from siem.city.authority import Operator
from siem.city.exchange import Exchange
from siem.city.intake import Refused
from siem.city.refusals import Rate
from siem.sharing.envelope import BYTES_MAX, split
from siem.sharing.wire import (
    ACCESS,
    AUTHORITY,
    ENROL,
    INBOX,
    MESSAGES,
    MIRROR,
    RENEW,
    Enrolling,
    Renewing,
)
from siem.store.protocol import Conflict

BODY_MAX = BYTES_MAX + 1_024
"""An envelope and its signature."""
DRAINED_MAX = 1 << 20
"""So much of what is too large is heard out, so that the answer can be heard, too."""
HEAD_MAX = 16 << 10
SMALL_MAX = 32 << 10
"""Body of a request for a certificate."""
STRANGER = "a stranger"
"""Who did not get as far as to have an address here: TLS ended before."""
CLOSE_S = 2.0

T = TypeVar("T")
log = logging.getLogger(__name__)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much is taken of whom."""

    operator_per_s: float = 500.0
    operator_burst: float = 2_000.0
    address_per_s: float = 1_000.0
    address_burst: float = 4_000.0
    enrol_per_s: float = 0.2
    """Tokens that one address may try."""
    enrol_burst: float = 10.0
    connections: int = 1_000
    connections_each: int = 64
    """Of one address: operators may share one behind a translation."""
    strangers: int = 200
    """Connections whose TLS is not up yet."""
    handshake_s: float = 10.0
    request_s: float = 30.0
    """From its first byte until its answer was sent."""
    quiet_s: float = 120.0
    """A connection without a request is kept so long."""


class Port:
    """Serves the exchange, in a thread of its own.

    Args:
        exchange: Takes what operators send.
        listening: The socket; it is closed by `stop`.
        names: By which operators call this hub.
        limits: How much is taken of whom.
    """

    def __init__(
        self,
        exchange: Exchange,
        listening: socket.socket,
        names: Sequence[str],
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.exchange = exchange
        self._listening = listening
        self._context = exchange.operators.context(names)
        self._context.sslobject_class = type("Object", (_Object,), {"port": self})
        self.open: Counter[str] = Counter()
        """Connections by address."""
        self.strangers: dict[Channel, float] = {}
        """Connections whose TLS is not up yet, and when they came."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._listening.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """End; what is under way is given a little time."""
        if self._loop is not None and self._ending is not None:
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)

    def refuse(self, by: str, error: CitywardError) -> None:
        """Keep a refusal, without waiting for it."""
        if self._loop is not None:
            self._loop.run_in_executor(None, self.exchange.refuse, by, error)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        config = uvicorn.Config(
            app=make_app(self.exchange, self.limits),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=HEAD_MAX,
            timeout_keep_alive=int(self.limits.quiet_s),
        )
        config.load()
        state = ServerState()
        made = type("Made", (Channel,), {"port": self})
        server = await self._loop.create_server(
            lambda: self._accepted(made(config, state, {})),
            sock=self._listening,
            ssl=self._context,
            ssl_handshake_timeout=self.limits.handshake_s,
            ssl_shutdown_timeout=CLOSE_S,
        )
        self._ready.set()
        await self._ending.wait()
        server.close()
        for one in list(state.connections):
            one.shutdown()
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=CLOSE_S)

    def _accepted(self, channel: Channel) -> Channel:
        """A connection begins; who never gets through TLS must not keep others out."""
        assert self._loop is not None
        now_s = self._loop.time()
        for one, since_s in list(self.strangers.items()):
            if now_s - since_s <= self.limits.handshake_s:
                break
            del self.strangers[one]
        if len(self.strangers) >= self.limits.strangers:
            what = "too many connections that do not speak"
            self.refuse(STRANGER, Refused(503, what, "TLS", "Try again later."))
            raise ConnectionRefusedError(what)
        self.strangers[channel] = now_s
        return channel


class _Object(ssl.SSLObject):
    """TLS that says why it did not believe a certificate."""

    port: ClassVar[Port]

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            what = f"a certificate that is not believed: {error.verify_message}"
            self.port.refuse(STRANGER, Refused(401, what, "TLS", "Enrol first."))
            raise


class Channel(H11Protocol):
    """One connection: whose certificate it shows, and how long it may take."""

    port: ClassVar[Port]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """TLS is up."""
        self.port.strangers.pop(self, None)
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._who = self.client[0] if self.client else STRANGER
        shown = transport.get_extra_info("ssl_object")
        certificate = shown.getpeercert(binary_form=True) if shown else None
        self.app_state = {**self.app_state, "certificate": certificate}
        self.port.open[self._who] += 1
        limits = self.port.limits
        is_full = self.port.open.total() > limits.connections
        if is_full or self.port.open[self._who] > limits.connections_each:
            self._end(503, "too many connections", "Keep one, and use it again.")
        self._time()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._untime()
        self.port.open[self._who] -= 1
        if not self.port.open[self._who]:
            del self.port.open[self._who]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A request begins, or goes on."""
        if self.transport.is_closing():
            return
        if self._timer is None:
            self._time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """The answer was sent; between two requests it may be quiet for longer."""
        self._untime()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP, or its head is too long."""
        self._end(400, "no HTTP request", "Speak HTTP/1.1, with a short head.")

    def _time(self) -> None:
        self._timer = self.loop.call_later(self.port.limits.request_s, self._late)

    def _untime(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self._end(408, "a request that takes too long", "Send it whole, and read the answer.")

    def _end(self, status: int, what: str, todo: str) -> None:
        """Answer, if nothing was answered yet, and close."""
        error = Refused(status, what, "connection", todo)
        self.port.refuse(self._who, error)
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = _body_of(error)
            head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            self.transport.write(head.encode() + body)
        self.transport.close()
        self.loop.call_later(CLOSE_S, self.transport.abort)


# ---- What is asked


def make_app(exchange: Exchange, limits: Limits) -> Starlette:
    """The endpoints; whose request it is stands in `request.state`, see `Channel`."""
    doors = _Doors(exchange, limits)
    routes = [
        Route(AUTHORITY, doors.stranger(doors.authority), methods=["GET"]),
        Route(ENROL, doors.stranger(doors.enrol), methods=["POST"]),
        Route(MESSAGES, doors.operator(doors.messages), methods=["POST"]),
        Route(INBOX, doors.operator(doors.inbox), methods=["GET"]),
        Route(RENEW, doors.operator(doors.renew), methods=["POST"]),
        Route(MIRROR, doors.operator(doors.mirror), methods=["GET"]),
        Route(ACCESS, doors.operator(doors.access), methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: doors.elsewhere})
    app.router.redirect_slashes = False
    return app


Door = Callable[[Request], Awaitable[Response]]


class _Doors:
    """What each endpoint does; everything that may wait for the store is done by other threads."""

    def __init__(self, exchange: Exchange, limits: Limits) -> None:
        self._exchange = exchange
        self._limits = limits
        self._operators = exchange.operators
        self._by_address = Rate(limits.address_per_s, limits.address_burst)
        self._by_operator = Rate(limits.operator_per_s, limits.operator_burst)
        self._enrolling = Rate(limits.enrol_per_s, limits.enrol_burst)

    # ---- who may come in

    def stranger(self, inner: Door) -> Door:
        """For who has no certificate yet."""

        async def door(request: Request) -> Response:
            return await self._guarded(request, _address(request), inner)

        return door

    def operator(self, inner: Callable[[Request, Operator], Awaitable[Response]]) -> Door:
        """For who shows a certificate that is in force, looked at with every request."""

        async def known(request: Request) -> Response:
            certificate = request.state.certificate
            if certificate is None:
                raise Refused(401, "no certificate was shown", "TLS", "Enrol first.")
            operator = await run_in_threadpool(self._operators.of, certificate)
            request.state.who = operator.name
            if not self._by_operator.allows(operator.name):
                raise Refused(
                    429, "too many requests", f"operator {operator.name}", "Send fewer a second."
                )
            return await inner(request, operator)

        async def door(request: Request) -> Response:
            return await self._guarded(request, _address(request), known)

        return door

    async def _guarded(self, request: Request, address: str, inner: Door) -> Response:
        request.state.who = address
        try:
            if not self._by_address.allows(address):
                raise Refused(429, "too many requests", "this address", "Send fewer a second.")
            return await inner(request)
        except ClientDisconnect:
            return Response(status_code=400)
        except (Conflict, TransientError) as error:
            return _answer(Refused(503, error.what, error.where, error.todo))
        except CitywardError as error:
            await run_in_threadpool(self._exchange.refuse, request.state.who, error)
            return _answer(error)
        except Exception:
            log.exception("The exchange failed.")
            return _answer(Refused(500, "a fault of the hub", "exchange", "Try again later."))

    async def elsewhere(self, request: Request, error: Exception) -> Response:
        """There is no such endpoint, or it is asked in another way."""
        status = error.status_code if isinstance(error, HTTPException) else 404
        refused = Refused(status, "nothing is here", "exchange", "See docs/exchange.md.")
        await run_in_threadpool(self._exchange.refuse, _address(request), refused)
        return _answer(refused)

    # ---- for strangers

    async def authority(self, request: Request) -> Response:
        """The authority's certificate, to be compared with the fingerprint in a token."""
        return Response(self._operators.authority.certificate, media_type="application/x-pem-file")

    async def enrol(self, request: Request) -> Response:
        """A certificate for a token."""
        if not self._enrolling.allows(_address(request)):
            raise Refused(429, "too many tokens were tried", "this address", "Wait a minute.")
        asked = _read(await self._body(request, SMALL_MAX), Enrolling)
        name, enrolled = await run_in_threadpool(self._exchange.enrol, asked)
        await run_in_threadpool(self._exchange.told, name, "operator enrolled", _address(request))
        return _json(enrolled)

    # ---- for operators

    async def messages(self, request: Request, operator: Operator) -> Response:
        """Take an envelope; the answer is its receipt."""
        signed = _split(await self._body(request, BODY_MAX))
        try:
            answer = await run_in_threadpool(self._exchange.take, operator.name, signed, operator)
        except Refused as error:  # it stands in the audit trail already
            return _answer(error)
        return Response(answer.lines(), media_type="application/x-cityward")

    async def inbox(self, request: Request, operator: Operator) -> Response:
        """What the hub has for an operator."""
        after = request.query_params.get("after", "0")
        if not (after.isascii() and after.isdecimal() and len(after) <= 15):
            raise Refused(400, "after is no number", "after", "Name the last one that you have.")
        lines = self._exchange.inbox(operator.name, int(after))
        return Response(await run_in_threadpool(_lines, lines), media_type=NDJSON)

    async def renew(self, request: Request, operator: Operator) -> Response:
        """A new certificate over the old one."""
        asked = _read(await self._body(request, SMALL_MAX), Renewing)
        return _json(await run_in_threadpool(self._operators.renew, operator.name, asked.csr))

    async def mirror(self, request: Request, operator: Operator) -> Response:
        """What the hub holds of the asker."""
        return StreamingResponse(_each(self._exchange.mirror(operator.name)), media_type=NDJSON)

    async def access(self, request: Request, operator: Operator) -> Response:
        """Who read what the asker shared."""
        return StreamingResponse(_each(self._exchange.accesses(operator.name)), media_type=NDJSON)

    async def _body(self, request: Request, most: int) -> bytes:
        """What was sent, unpacked.

        Raises:
            Refused: it is too large, or packed in a way that it never ends.
        """
        data, size = bytearray(), 0
        async for chunk in request.stream():
            size += len(chunk)
            if size <= most:
                data += chunk
            elif size > most + DRAINED_MAX:
                break
        if size > most:
            raise _too_large()
        packing = request.headers.get("content-encoding", "")
        if packing not in ("", "identity", "gzip"):
            raise Refused(415, "a packing that is not known", "body", "Use gzip, or none.")
        return _unpacked(bytes(data), most) if packing == "gzip" else bytes(data)


NDJSON = "application/x-ndjson"


def _too_large() -> Refused:
    return Refused(413, "more than an envelope may hold", "body", f"At most {BYTES_MAX:,} bytes.")


def _unpacked(data: bytes, most: int) -> bytes:
    reader = zlib.decompressobj(wbits=31)
    try:
        plain = reader.decompress(data, most + 1)
    except zlib.error as error:
        raise Refused(400, "no gzip", "body", "Pack it again.") from error
    if len(plain) > most or reader.unconsumed_tail:
        raise _too_large()
    if not reader.eof or reader.unused_data:
        raise Refused(400, "no gzip", "body", "Pack it again, once.")
    return plain


def _split(body: bytes) -> Any:
    try:
        return split(body)
    except Unsafe as error:
        status = 413 if len(body) > BYTES_MAX else 400
        raise Refused(status, error.what, error.where, error.todo) from error


def _read(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        what = f"not what is asked here: {str(error)[:100]}"
        raise Refused(400, what, "body", "Send what the protocol says.") from error


def _lines(rows: Iterable[Any]) -> bytes:
    return b"".join(msgspec.json.encode(one) + b"\n" for one in rows)


def _each(rows: Iterable[Any]) -> Iterator[bytes]:
    return (msgspec.json.encode(one) + b"\n" for one in rows)


def _address(request: Request) -> str:
    return request.client.host if request.client else STRANGER


def _json(said: Any) -> Response:
    return Response(msgspec.json.encode(said), media_type="application/json")


def _answer(error: CitywardError) -> Response:
    status = error.status if isinstance(error, Refused) else 403
    headers = {"Connection": "close"}
    if status in (429, 503):
        headers["Retry-After"] = "1"
    return Response(_body_of(error), status, headers, "application/json")


def _body_of(error: CitywardError) -> bytes:
    more: Mapping[str, Any] = error.said if isinstance(error, Refused) else {}
    said = {"what": error.what, "where": error.where, "todo": error.todo}
    return msgspec.json.encode({"error": said, **more})
