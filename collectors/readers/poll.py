"""A web address that is asked again and again; what changed is a record."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec

from cityward.errors import TransientError
from cityward.event import Record
from cityward.plugin import Framing
from collectors.readers.batch import PAUSE_S, Batch, Clock, utc_now

BODY_MAX_BYTES = 16 << 20
"""A longer answer is rejected, and counted as `too_long`."""
ASK_S = 30.0
"""So long may an answer take to begin, and each piece of it to follow."""
ANSWER_S = 300.0
"""So long may an answer take in all."""
BACK_OFF_MAX_S = 3_600.0
"""A server that fails is asked again after at most so long, whatever it wishes."""


class Place(msgspec.Struct, frozen=True):
    """How much was read, and by what the server knows the last answer."""

    number: int = 0
    etag: str = ""
    modified: str = ""
    sha256: str = ""


class HttpPoll:
    """Asks a server with GET; unchanged answers (RFC 9110, 13.1) are no records.

    An answer is one batch: the whole of it for `document`, its lines for `lines`. A redirection is
    not followed, for the credentials are meant for the server that was named.

    Args:
        url: What is asked.
        source: Id of the source.
        framing: What the collector wants.
        every_s: Time from one question to the next.
        headers: Sent with each question, credentials among them.
        clock: Gives `Record.received`.
    """

    def __init__(
        self,
        url: str,
        source: str,
        framing: Framing = "document",
        *,
        every_s: float = 60.0,
        headers: Mapping[str, str] | None = None,
        clock: Clock = utc_now,
    ) -> None:
        self.url = url
        self.source = source
        self.framing: Framing = framing
        self.every_s = every_s
        self._headers = {"User-Agent": "cityward", **(headers or {})}
        self._clock = clock
        self._failures = 0
        self._due_s = 0.0

    def read(self, place: Any | None, stop: threading.Event) -> Iterator[Batch]:
        """Ask when it is time.

        Raises:
            TransientError: no answer, or one that is none; asked again after a growing while.
        """
        stood = msgspec.convert(place or {}, Place)
        with httpx2.Client(timeout=ASK_S, headers=self._headers) as client:
            while not stop.is_set():
                if time.monotonic() < self._due_s:
                    stop.wait(PAUSE_S)
                    # After a failure nothing is said, so that Health goes on to show it.
                    if not self._failures:
                        yield Batch(self.source, [], msgspec.to_builtins(stood))
                    continue
                batch = self._ask(client, stood)
                stood = msgspec.convert(batch.place, Place)
                yield batch

    def _ask(self, client: httpx2.Client, stood: Place) -> Batch:
        known = {"If-None-Match": stood.etag, "If-Modified-Since": stood.modified}
        headers = {name: value for name, value in known.items() if value}
        try:
            with client.stream("GET", self.url, headers=headers) as answer:
                if answer.status_code == httpx2.codes.NOT_MODIFIED:
                    return self._asked(Batch(self.source, [], msgspec.to_builtins(stood)))
                if answer.status_code != httpx2.codes.OK:
                    raise self._failed(_refusal(answer), answer.headers.get("retry-after", ""))
                return self._asked(self._batch(answer, stood))
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise self._failed(f"{type(error).__name__}: {error}") from error

    def _batch(self, answer: httpx2.Response, stood: Place) -> Batch:
        body = bytearray()
        until_s = time.monotonic() + ANSWER_S
        for piece in answer.iter_bytes():
            if time.monotonic() > until_s:
                raise self._failed("does not end its answer")
            body += piece
            if len(body) > BODY_MAX_BYTES:
                place = msgspec.structs.replace(stood, etag="", modified="", sha256="")
                rejected = {"too_long": 1}
                return Batch(self.source, [], msgspec.to_builtins(place), rejected=rejected)
        sha256 = hashlib.sha256(body).hexdigest()
        found = [] if sha256 == stood.sha256 else self._parts(bytes(body))
        received = self._clock()
        records = [
            Record(data, self.source, stood.number + at, received) for at, data in enumerate(found)
        ]
        place = Place(
            number=stood.number + len(records),
            etag=_sendable(answer.headers.get("etag", "")),
            modified=_sendable(answer.headers.get("last-modified", "")),
            sha256=sha256,
        )
        return Batch(self.source, records, msgspec.to_builtins(place))

    def _parts(self, body: bytes) -> list[bytes]:
        if self.framing != "lines":
            return [body]
        return [line for line in body.splitlines() if line.strip()]

    def _asked(self, batch: Batch) -> Batch:
        self._failures = 0
        self._due_s = time.monotonic() + self.every_s
        return batch

    def _failed(self, why: str, retry_after: str = "") -> TransientError:
        self._failures += 1
        growing_s = max(self.every_s, 1.0) * 2.0 ** min(self._failures - 1, 12)
        wait_s = min(max(growing_s, self._wished_s(retry_after)), BACK_OFF_MAX_S)
        self._due_s = time.monotonic() + wait_s
        todo = f"It is asked again in {wait_s:.0f} s; check url and credentials."
        return TransientError(why, f"source {self.source}, {_without_secrets(self.url)}", todo)

    def _wished_s(self, retry_after: str) -> float:
        """What the server asks for: seconds, or a date (RFC 9110, 10.2.3)."""
        if retry_after.isdecimal() and len(retry_after) < 10:
            return float(retry_after)
        try:
            when = parsedate_to_datetime(retry_after)
            return (when - self._clock()).total_seconds()
        except (ValueError, TypeError, OverflowError):  # no date, or one without a zone
            return 0.0


def _sendable(value: str) -> str:
    """What may be sent back as it came (RFC 9110, 5.5); an answer is told by its sum then."""
    return value if value.isascii() else ""


def _without_secrets(url: str) -> str:
    """An address for the log: keys stand before the host, and behind the question mark."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "its url"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _refusal(answer: httpx2.Response) -> str:
    if where := answer.headers.get("location", ""):
        return f"answers with {answer.status_code} and points to {where[:200]!r}"
    return f"answers with {answer.status_code} {answer.reason_phrase}"
