"""Who at the hub read what this operator shared: the hub's access log, asked for over the link."""

from __future__ import annotations

import http.client
from datetime import datetime

import msgspec

from cityward import TransientError
from siem.sharing.identity import Identity
from siem.sharing.link import Channel

ACCESS = "/exchange/v1/access"


class Read(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody's reading on one day; what a newer hub adds is passed over."""

    day: str
    person: str
    reads: int
    shares: int
    """Documents that were answered, each time counted."""
    first: datetime
    last: datetime


def readers(identity: Identity) -> list[Read]:
    """Who read ours, the newest day first.

    Raises:
        ConfigError: this node has joined no hub.
        RefusalError: the hub does not say it.
        TransientError: it does not answer, or not in a form that can be read.
    """
    hub = identity.hub()
    channel = Channel(hub.url, lambda: identity.context(hub.authority))
    try:
        lines = channel.ask("GET", ACCESS).splitlines()
        found = [msgspec.json.decode(line, type=Read) for line in lines]
    except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
        what = f"the hub does not answer: {error}"
        raise TransientError(what, f"{hub.url}{ACCESS}", "Try it again later.") from error
    finally:
        channel.close()
    return sorted(found, key=lambda one: (one.day, one.last), reverse=True)
