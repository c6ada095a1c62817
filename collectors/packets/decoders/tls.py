"""TLS: who says hello to whom and under which name, what was agreed, which certificate was shown.

Understood: the hellos of both sides with versions, server name, application protocols, cipher, JA3,
JA3S and JA4; the first certificate of each side up to TLS 1.2; alerts before encryption. One event
for a client's hello, one for a server's with its certificate, one for an alert.

Not understood: anything encrypted, so also the certificate of TLS 1.3; whether a certificate is
genuine; SSL 2; DTLS and QUIC.

References:
    RFC 8446, sections 4.1 to 4.2, 5.1 and 6; RFC 5246, sections 6.2, 7.2 and 7.4.
    RFC 8701 (GREASE).
    JA3 and JA3S (Salesforce), JA4 for TLS clients (FoxIO, "JA4: TLS Client Fingerprinting").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import Any, NamedTuple

import msgspec

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.ber import BerError
from collectors.packets.decoders.certificate import certificate
from collectors.packets.decoders.pairs import broken, printable, unreadable
from collectors.packets.decoders.tls_names import ALERTS, CIPHERS, VERSIONS

TLS = LogSource(category="network", service="tls")

RECORD_MAX = (1 << 14) + 2_048
"""Bytes of a record, encrypted ones included (RFC 5246, section 6.2.3)."""
HANDSHAKE_MAX = 65_536
"""Bytes of a handshake message that are kept; of a longer one it is said."""
GREASE = frozenset(0x0A0A + 0x1010 * number for number in range(16))
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""Random of a server's hello that asks for another hello (RFC 8446, section 4.1.3)."""

_CHANGE, _ALERT, _HANDSHAKE, _DATA, _HEARTBEAT = 20, 21, 22, 23, 24
_SKIPPED = (_DATA, _HEARTBEAT)
_TYPES = (_CHANGE, _ALERT, _HANDSHAKE, *_SKIPPED)
_CLIENT_HELLO, _SERVER_HELLO, _CERTIFICATE, _SERVER_DONE = 1, 2, 11, 14
_SNI, _GROUPS, _FORMATS, _SIGNATURES, _ALPN, _VERSIONS = 0, 10, 11, 13, 16, 43
_HEAD = Struct(">BHH")
_WORD = Struct(">H")

Fields = dict[str, Any]


class TlsError(ValueError):
    """A handshake message that is none; the text says why."""


class Hello(NamedTuple):
    """The parts of a hello that both sides have."""

    version: int
    random: bytes
    ciphers: list[int]
    extensions: dict[int, bytes]
    """In the order in which they stand there."""
    session: bytes


class Lane(msgspec.Struct):
    """One direction."""

    handshake: bytearray = msgspec.field(default_factory=bytearray)
    """Bytes of handshake messages that are not whole."""
    skip: int = 0
    """Bytes of a record that nobody reads."""
    pass_over: int = 0
    """Bytes of a handshake message that is too long to be kept."""
    is_encrypted: bool = False
    is_lost: bool = False
    rest: int = 0


@decoder("tls", TLS, ports=(443, 8443), begins=b"\x16")
class Tls:
    """One TLS connection."""

    def __init__(self, session: Session) -> None:
        self.encrypted_records = 0
        self.skipped_bytes = 0
        self._always = {
            **session.base,
            "network.protocol": "tls",
            "event.category": ["network"],
            "event.type": ["protocol"],
            "tls.version_protocol": "tls",
        }
        self._lanes = (Lane(), Lane())
        self._asked: Fields = {}
        """Of the client's hello, what later events repeat."""
        self._waits = False
        """No server has answered it yet."""
        self._asked_session = b""
        self._is_modern = False
        """TLS 1.3 was chosen."""
        self._hello: Fields | None = None
        """The server's hello, while its certificate may follow."""

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a record with a hello whose lengths agree."""
        if len(head) < 11 or head[0] != _HANDSHAKE or head[5] not in (_CLIENT_HELLO, _SERVER_HELLO):
            return False
        _, version, length = _HEAD.unpack_from(head)
        inside = int.from_bytes(head[6:9])
        return (
            version in VERSIONS
            and head[9] == 3
            and head[10] <= 4
            and 40 <= length <= RECORD_MAX
            and 36 <= inside <= HANDSHAKE_MAX
            and (len(head) < 44 or head[43] <= 32)
        )

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        found: list[Fields] = []
        at, end = 0, len(data)
        while at < end:
            if lane.skip:
                step = min(lane.skip, end - at)
                lane.skip -= step
                at += step
                continue
            if end - at < 5:
                break
            kind, version, length = _HEAD.unpack_from(data, at)
            if kind not in _TYPES or version >> 8 != 3 or length > RECORD_MAX:
                at = self._find(data, at, lane, found)
                continue
            lane.is_lost = False
            if kind in _SKIPPED or lane.is_encrypted:
                self.encrypted_records += 1
                lane.skip = length
                at += 5
                continue
            stop = at + 5 + length
            if stop > end:
                break
            found += self._record(kind, data[at + 5 : stop], lane, from_client)
            at = stop
        lane.rest = end - at
        return at, found

    def gap(self, from_client: bool) -> None:
        """See `Decoder`."""
        lane = self._lanes[from_client]
        lane.handshake.clear()
        lane.skip = lane.pass_over = lane.rest = 0
        lane.is_lost = True

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; a hello whose certificate did not come, or that nobody answered."""
        found = self._server_hello_is_over()
        if self._waits and not self._lanes[False].is_lost:
            fields = {**self._always, **self._asked, "event.action": "tls_unanswered"}
            why = "no server answered the hello of the client"
            found.append({**fields, "event.outcome": "unknown", "event.reason": why})
            self._waits = False
        for lane, who in zip(self._lanes, ("server", "client"), strict=True):
            if lane.handshake or (lane.rest and not lane.is_lost):
                why = f"the conversation ended within a message of the {who}"
                found.append(unreadable(self._always, why))
                lane.handshake.clear()
            lane.rest = 0
        return found

    def _find(self, data: bytes, at: int, lane: Lane, found: list[Fields]) -> int:
        """Where the next record may begin; says once that there is none here."""
        if not lane.is_lost:
            why = f"no TLS record begins with {data[at : at + 5].hex()}"
            found.append(unreadable(self._always, why))
            lane.is_lost = True
            lane.handshake.clear()
        last = len(data) - 4
        for start in range(at + 1, last):
            kind, version, length = _HEAD.unpack_from(data, start)
            if kind in _TYPES and version in VERSIONS and 0 < length <= RECORD_MAX:
                break
        else:
            start = max(at + 1, last)
        self.skipped_bytes += start - at
        return start

    def _record(self, kind: int, data: bytes, lane: Lane, from_client: bool) -> Iterator[Fields]:
        if kind == _CHANGE:
            # From TLS 1.3 on it means nothing, and another hello may follow it.
            lane.is_encrypted = not self._is_modern
            yield from self._server_hello_is_over()
        elif kind == _ALERT:
            yield from self._server_hello_is_over()
            if len(data) == 2:
                yield self._alert(data, from_client)
            else:
                yield unreadable(self._always, f"an alert has 2 bytes, not {len(data)}")
        else:
            yield from self._handshake(data, lane, from_client)

    def _handshake(self, data: bytes, lane: Lane, from_client: bool) -> Iterator[Fields]:
        if lane.pass_over:
            step = min(lane.pass_over, len(data))
            lane.pass_over -= step
            data = data[step:]
        kept = lane.handshake
        kept += data
        while len(kept) >= 4:
            length = int.from_bytes(kept[1:4])
            if length > HANDSHAKE_MAX:
                why = f"a handshake message of {length} bytes is not read"
                yield unreadable(self._always, why)
                lane.pass_over = max(0, length + 4 - len(kept))
                del kept[: length + 4]
                continue
            if len(kept) < length + 4:
                return
            message = bytes(kept[4 : length + 4])
            kind = kept[0]
            del kept[: length + 4]
            yield from self._message(kind, message, from_client)

    def _message(self, kind: int, data: bytes, from_client: bool) -> Iterator[Fields]:
        try:
            if kind == _CLIENT_HELLO and from_client:
                yield self._client_hello(data)
            elif kind == _SERVER_HELLO and not from_client:
                yield from self._server_hello(data)
            elif kind == _CERTIFICATE:
                yield from self._certificate(data, from_client)
            elif kind == _SERVER_DONE:
                yield from self._server_hello_is_over()
        except (TlsError, BerError) as error:
            fields = unreadable(self._always, str(error))
            yield from self._server_hello_is_over()
            yield fields

    def _client_hello(self, data: bytes) -> Fields:
        hello = _hello(data, is_client=True)
        self._asked_session = hello.session
        name = _server_name(hello.extensions.get(_SNI, b""))
        protocols = _alpn(hello.extensions.get(_ALPN, b""))
        offered = _offered_versions(hello)
        own: Fields = {
            **self._always,
            "event.action": "tls_client_hello",
            "tls.version": VERSIONS.get(max(offered), f"0x{max(offered):04x}"),
            "tls.client.ja3": _ja3(hello),
            "cw.vendor": {
                "ja4": ja4(hello, protocols),
                "versions": ",".join(VERSIONS.get(one, f"0x{one:04x}") for one in offered[:8]),
                "ciphers": len(hello.ciphers),
            },
        }
        if name:
            own["tls.client.server_name"] = name
        if protocols:
            own["cw.vendor"]["alpn"] = ",".join(printable(one) for one in protocols[:8])
        self._waits = True
        self._asked = {
            key: own[key] for key in ("tls.client.server_name", "tls.client.ja3") if key in own
        }
        return own

    def _server_hello(self, data: bytes) -> Iterator[Fields]:
        hello = _hello(data, is_client=False)
        chosen = hello.extensions.get(_VERSIONS, b"")
        version = _WORD.unpack(chosen)[0] if len(chosen) == 2 else hello.version
        cipher = hello.ciphers[0]
        own: Fields = {
            **self._always,
            **self._asked,
            "event.action": "tls_server_hello",
            "event.outcome": "success",
            "tls.version": VERSIONS.get(version, f"0x{version:04x}"),
            "tls.cipher": CIPHERS.get(cipher, f"0x{cipher:04x}"),
            "tls.server.ja3s": _md5(
                f"{hello.version},{cipher},{'-'.join(map(str, hello.extensions))}"
            ),
        }
        if protocols := _alpn(hello.extensions.get(_ALPN, b"")):
            own["tls.next_protocol"] = printable(protocols[0])
        if not self._asked:
            own["event.reason"] = "no hello of the client was seen"
        yield from self._server_hello_is_over()
        self._is_modern = version >= 0x0304
        self._waits = False
        if hello.random == RETRY:
            own["event.action"] = "tls_hello_retry"
            own["event.outcome"] = "unknown"
            yield own
            return
        if self._is_modern:
            # What follows is encrypted, though its records are called application data.
            yield own
            return
        own["tls.resumed"] = bool(hello.session) and hello.session == self._asked_session
        self._hello = own

    def _certificate(self, data: bytes, from_client: bool) -> Iterator[Fields]:
        first = _first_certificate(data)
        if from_client:
            if first:
                own = {**self._always, "event.action": "tls_client_certificate"}
                yield {**own, **certificate(first, "client")}
            return
        hello = self._hello
        if hello is None:
            hello = {**self._always, "event.action": "tls_server_certificate"}
        self._hello = None
        if first:
            try:
                hello |= certificate(first, "server")
            except BerError as error:
                broken(hello, f"certificate: {error}")
        yield hello

    def _alert(self, data: bytes, from_client: bool) -> Fields:
        name = ALERTS.get(data[1]) or f"alert_{data[1]}"
        own = {**self._always, **self._asked, "event.action": "tls_alert", "event.code": name}
        own["cw.vendor"] = {"sender": "client" if from_client else "server"}
        own["event.outcome"] = "failure" if data[0] == 2 else "unknown"
        if not from_client:
            self._waits = False
        return own

    def _server_hello_is_over(self) -> list[Fields]:
        """The server's hello, if nothing more will come to it."""
        hello, self._hello = self._hello, None
        return [hello] if hello else []


def _hello(data: bytes, is_client: bool) -> Hello:
    """Read a hello.

    Raises:
        TlsError: its parts do not fit.
    """
    if len(data) < 38:
        raise TlsError(f"a hello has at least 38 bytes, not {len(data)}")
    at = 35 + data[34]
    session = data[35:at]
    size = 2
    if is_client:
        size = _word(data, at)
        at += 2
    if size % 2 or not size or at + size > len(data):
        raise TlsError(f"{size} bytes of cipher suites do not fit a hello of {len(data)} bytes")
    ciphers = [_WORD.unpack_from(data, place)[0] for place in range(at, at + size, 2)]
    at += size
    at += 1 + data[at] if is_client and at < len(data) else 1
    extensions: dict[int, bytes] = {}
    if at + 2 <= len(data):
        stop = at + 2 + _word(data, at)
        if stop > len(data):
            raise TlsError(f"the extensions claim {stop - len(data)} bytes too many")
        at += 2
        while at + 4 <= stop:
            kind, length = _word(data, at), _word(data, at + 2)
            if at + 4 + length > stop:
                raise TlsError(f"extension {kind} claims {length} bytes, {stop - at - 4} are left")
            extensions[kind] = data[at + 4 : at + 4 + length]
            at += 4 + length
    return Hello(_word(data, 0), data[2:34], ciphers, extensions, session)


def _word(data: bytes, at: int) -> int:
    if at + 2 > len(data):
        raise TlsError(f"a hello of {len(data)} bytes is cut")
    return int.from_bytes(data[at : at + 2])


def _words(data: bytes, at: int) -> list[int]:
    """Words behind the bytes that count them, as far as they are there."""
    whole = (len(data) - at) // 2 * 2
    return [_WORD.unpack_from(data, place)[0] for place in range(at, at + whole, 2)]


def _server_name(data: bytes) -> str:
    return printable(data[5 : 5 + _length(data, 3)]) if len(data) > 5 and not data[2] else ""


def _length(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2])


def _alpn(data: bytes) -> list[bytes]:
    found, at = [], 2
    while at < len(data) and data[at]:
        found.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return found


def _offered_versions(hello: Hello) -> list[int]:
    offered = hello.extensions.get(_VERSIONS, b"")
    return [one for one in _words(offered, 1) if one not in GREASE] or [hello.version]


def _first_certificate(data: bytes) -> bytes:
    """The certificate of the sender itself; a list may be empty."""
    if len(data) < 3 or int.from_bytes(data[:3]) != len(data) - 3:
        raise TlsError("the list of certificates does not fit its message")
    if len(data) < 6:
        return b""
    length = int.from_bytes(data[3:6])
    if length > len(data) - 6:
        raise TlsError(f"a certificate claims {length} bytes, {len(data) - 6} are left")
    return data[6 : 6 + length]


# Fingerprints.


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _ja3(hello: Hello) -> str:
    formats = hello.extensions.get(_FORMATS, b"")
    lists = (
        hello.ciphers,
        hello.extensions,
        _words(hello.extensions.get(_GROUPS, b""), 2),
        formats[1:],
    )
    shown = ("-".join(str(one) for one in some if one not in GREASE) for some in lists)
    return _md5(f"{hello.version},{','.join(shown)}")


def ja4(hello: Hello, protocols: Sequence[bytes]) -> str:
    """The fingerprint of a client over TCP: counts, then hashes of sorted suites and extensions."""
    ciphers = [one for one in hello.ciphers if one not in GREASE]
    extensions = [one for one in hello.extensions if one not in GREASE]
    version = {0x0304: "13", 0x0303: "12", 0x0302: "11", 0x0301: "10", 0x0300: "s3"}.get(
        max(_offered_versions(hello)), "00"
    )
    first = (
        f"t{version}{'d' if _SNI in hello.extensions else 'i'}"
        f"{min(len(ciphers), 99):02d}{min(len(extensions), 99):02d}{_ends(protocols)}"
    )
    listed = _hexes(sorted(one for one in extensions if one not in (_SNI, _ALPN)))
    signatures = _hexes(_words(hello.extensions.get(_SIGNATURES, b""), 2))
    return "_".join(
        (
            first,
            _short_hash(_hexes(sorted(ciphers))),
            _short_hash(f"{listed}_{signatures}" if listed and signatures else listed),
        )
    )


def _hexes(numbers: Sequence[int]) -> str:
    return ",".join(f"{one:04x}" for one in numbers)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else "0" * 12


def _ends(protocols: Sequence[bytes]) -> str:
    """First and last letter of the first application protocol."""
    if not protocols or not protocols[0]:
        return "00"
    text = protocols[0].decode("latin-1")
    if all(end.isascii() and end.isalnum() for end in (text[0], text[-1])):
        return text[0] + text[-1]
    digits = protocols[0].hex()
    return digits[0] + digits[-1]
