"""One question to a web server whose address was looked at first.

A name is resolved once, and the connection goes to the address that was looked at, so that a name
service cannot change its mind in between. No redirection is followed and no proxy is asked. What is
not on the public network is refused unless the operator listed it: a *name* that is listed may lead
into private networks; loopback, link-local and metadata addresses have to be listed themselves.

References:
    RFC 6890 (special-purpose addresses); RFC 6052 and 8215 (IPv4 within IPv6, NAT64), RFC 3056
    (6to4), RFC 4380 (Teredo); RFC 9110, section 15.4 (redirection).
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

import msgspec

from cityward import ConfigError, TransientError, Unsafe

STEP_S = 10.0
WHOLE_S = 30.0
"""So long may everything take, however slowly a server drips."""
ANSWER_MAX_BYTES = 65_536
SENT_MAX_BYTES = 262_144
AGAIN = (408, 425, 429)
"""Refusals that ask for patience, as those of 500 and more do."""
NEVER = (501, 505)
"""Of those the ones that no patience changes: the server cannot do that.

References:
    RFC 9110, sections 15.6.2 and 15.6.6.
"""
PORTS = {"http": 80, "https": 443}

METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            *("169.254.169.254", "169.254.170.2", "fe80::a9fe:a9fe", "fd00:ec2::254"),
            *("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd20:ce::254"),
        ),
    )
)
"""Where clouds tell a machine its secrets; some of them look public or private."""
_EMBEDDED = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 96),
    (ipaddress.IPv6Network("::/96"), 96),
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 96),
    (ipaddress.IPv6Network("64:ff9b::/96"), 96),
    (ipaddress.IPv6Network("64:ff9b:1::/48"), 96),
    (ipaddress.IPv6Network("2002::/16"), 16),
)
"""Networks of IPv6 in which an address of IPv4 is meant, and behind how many bits it stands."""
_HOST = re.compile(r"[a-z0-9_.-]{1,253}")
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/?-]{0,2000}")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Iterable[str]]


class Answer(msgspec.Struct, frozen=True):
    """What a server answered."""

    status: int
    body: bytes


def resolved(host: str, port: int) -> Iterable[str]:
    """Addresses of a name, as the system finds them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(one[4][0]) for one in found]


class Web:
    """Where questions may go.

    Args:
        listed: Names, addresses and networks that the operator allows.
        public: Whether any public address will do, or only what is listed.
        ca_file: PEM file that servers are checked by; empty: the system's.
        cert_file: PEM file with our certificate, its chain and its key; empty: we show none.
        resolve: Finds the addresses of a name.
    """

    def __init__(
        self,
        listed: Iterable[str] = (),
        *,
        public: bool = False,
        ca_file: str = "",
        cert_file: str = "",
        resolve: Resolve = resolved,
    ) -> None:
        self._networks, self._names = [], set()
        for one in listed:
            try:
                self._networks.append(ipaddress.ip_network(one))
            except ValueError:
                if not _HOST.fullmatch(one.lower()):
                    what = f"{one!r} is no name, address or network"
                    raise ConfigError(what, "allowed", "Name a host or a network.") from None
                self._names.add(one.lower())
        self._public, self._ca_file, self._resolve = public, ca_file, resolve
        self._cert_file = cert_file

    def ask(
        self, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask a server.

        Raises:
            Unsafe: the address must not be asked, or the answer is a refusal for good.
            TransientError: there is no answer, or it asks for patience.
        """
        if len(body) > SENT_MAX_BYTES:
            raise Unsafe(f"{len(body)} bytes are too many", shown(url), "Say less.")
        parts, address = self.checked(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        said = {"User-Agent": "cityward", "Accept": "application/json", **(headers or {})}
        try:
            with self._connected(parts, address) as connection:
                connection.request(method, path, body or None, said)
                answer = connection.getresponse()
                found = Answer(answer.status, answer.read(ANSWER_MAX_BYTES))
        except (OSError, http.client.HTTPException, ValueError) as error:
            # The words of an error may show a header; its kind does not.
            why = f"{type(error).__name__}, no answer"
            raise TransientError(why, shown(url), "Look at the server.") from None
        if 200 <= found.status < 300:
            return found
        what = f"the answer is HTTP {found.status}"
        if found.status in AGAIN or (found.status >= 500 and found.status not in NEVER):
            raise TransientError(what, shown(url), "Look at the server.")
        raise Unsafe(what, shown(url), "Look at address and secret; redirections are not followed.")

    def checked(self, url: str) -> tuple[SplitResult, Address]:
        """Parts of an address, and where to connect.

        Raises:
            Unsafe: it is none, or leads where nothing of ours may go.
            TransientError: the name is not found.
        """
        parts, host = split(url)
        port = parts.port or PORTS[parts.scheme]
        try:
            found = [
                ipaddress.ip_address(one.partition("%")[0]) for one in self._resolve(host, port)
            ]
        except (OSError, UnicodeError) as error:
            raise TransientError(f"{host[:100]} is not found", shown(url), str(error)) from error
        except ValueError:
            found = []
        if not found or not all(self._may(host, one) for one in found):
            raise Unsafe(
                "this address must not be asked",
                shown(url),
                "The operator lists it in the settings of the actuator, under allowed.",
            )
        return parts, found[0]

    def _may(self, host: str, address: Address) -> bool:
        meant = list(meanings(address))
        if any(
            network.version == address.version and address in network for network in self._networks
        ):
            return True
        if any(_is_near(one) for one in meant):
            return False
        if host in self._names:
            return True
        return self._public and all(one.is_global and not one.is_multicast for one in meant)

    @contextlib.contextmanager
    def _connected(
        self, parts: SplitResult, address: Address
    ) -> Iterator[http.client.HTTPConnection]:
        host, port = parts.hostname or "", parts.port or PORTS[parts.scheme]
        connection = http.client.HTTPConnection(host, port, timeout=STEP_S)
        plain = socket.create_connection((str(address), port), STEP_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sock = plain
        was_cut = threading.Event()
        ends = threading.Timer(WHOLE_S, _cut, (plain, was_cut))
        ends.daemon = True
        ends.start()
        try:
            if parts.scheme == "https":
                connection.default_port = PORTS["https"]
                context = ssl.create_default_context(cafile=self._ca_file or None)
                if self._cert_file:
                    context.load_cert_chain(self._cert_file)
                connection.sock = context.wrap_socket(plain, server_hostname=host)
            yield connection
            # What was cut off in its headers looks like an answer with fewer of them.
            if was_cut.is_set():
                raise TimeoutError(f"no answer within {WHOLE_S} s")
        finally:
            ends.cancel()
            connection.close()
            plain.close()


def split(url: str) -> tuple[SplitResult, str]:
    """Parts of a web address, if it is written plainly.

    Raises:
        Unsafe: it has a user, blanks, a backslash, another scheme or whatever else misleads.
    """
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise Unsafe("this is no web address", shown(url), "Write https://name/path.") from None
    is_plain = (
        url.isascii()
        and url.isprintable()
        and parts.scheme in PORTS
        and (_HOST.fullmatch(host) or _is_six(host))
        and "@" not in parts.netloc
        and not parts.fragment
        and port != 0
        and _PATH.fullmatch(parts.path + parts.query)
    )
    if not is_plain:
        raise Unsafe("this is no plain web address", shown(url), "Write https://name/path.")
    return parts, host


def shown(url: str) -> str:
    """A web address as it may be shown: without what could be a secret."""
    return ascii(url.partition("?")[0][:120])


def meanings(address: Address) -> Iterator[Address]:
    """An address, and those of IPv4 that are within it."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        for network, before in _EMBEDDED:
            if address in network:
                yield ipaddress.IPv4Address(int(address) >> (96 - before) & 0xFFFFFFFF)
        if address.teredo:
            yield from address.teredo


def _is_near(address: Address) -> bool:
    """Whether it is this machine, its neighbours or what tells it secrets."""
    return (
        address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or address in METADATA
        or (address.version == 4 and address.packed[0] in (0, 255))
    )


def _is_six(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6 and "%" not in host
    except ValueError:
        return False


def _cut(one: socket.socket, was_cut: threading.Event) -> None:
    was_cut.set()
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)


def json_of(answer: Answer) -> Any:
    """What an answer says, or nothing if it is no JSON."""
    try:
        return msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return None
