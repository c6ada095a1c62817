"""What became of an attempt to deliver."""

from __future__ import annotations

import ssl
from typing import Any

import msgspec

from cityward import TransientError
from siem.notify.routes import Route
from siem.notify.text import line

TIMEOUT_S = 20.0


class Answer(msgspec.Struct, frozen=True):
    """A receiver's answer that it has the message."""

    said: str
    """Its words: the reply of a mail server, the status of a webhook."""
    left: tuple[str, ...] = ()
    """Receivers that did not get it, while others did."""


class Refused(Exception):  # noqa: N818 – an answer, not a fault
    """A receiver does not want the message, or not now."""

    def __init__(self, said: str, *, permanent: bool = False) -> None:
        super().__init__(said)
        self.said = said
        self.permanent = permanent


def words(*said: Any) -> str:
    """What a server said, as one line that is safe to show."""
    joined = " ".join(
        one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in said
    )
    return line(" ".join(joined.split()))


def context_of(route: Route) -> ssl.SSLContext:
    """TLS to the server of a route, which has to prove its name.

    Raises:
        TransientError: the file of authorities cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=route.said.ca_file or None)
    except OSError as error:
        raise TransientError(
            f"no certificates: {error}", f"route {route.id}, ca_file", "Name a PEM file."
        ) from error


def place_of(route: Route) -> tuple[str, int]:
    """Host and port of a server."""
    host, _, port = route.said.server.rpartition(":")
    return host.strip("[]"), int(port)
