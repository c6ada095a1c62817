"""The link to the hub: a thread of the path process that only ever calls outward, by mutual TLS.

It sends one envelope at a time, keeps its receipt, fetches what the hub has for this operator, and
renews its certificate. What fails is tried again at growing intervals; the path never waits for it.

References:
    RFC 9110 (HTTP), RFC 8446 (TLS 1.3).
"""

from __future__ import annotations

import base64
import binascii
import gzip
import http.client
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
from cryptography import x509

from cityward import CitywardError, TransientError, Unsafe
from siem.sharing import proposals, samples
from siem.sharing.certificates import fingerprint, new_key, pem, read_token
from siem.sharing.envelope import KINDS, Envelope, Signed, split, verified
from siem.sharing.identity import Hub, Identity, known_by, public_text, renewal_due
from siem.sharing.outbox import Outbox
from siem.sharing.wire import (
    AUTHORITY,
    ENROL,
    INBOX,
    MESSAGES,
    RENEW,
    TOKEN_PREFIX,
    Enrolled,
    Enrolling,
    InboxLine,
    Renewed,
    Renewing,
)
from siem.store.outgoing import Desk, Head, LinkState, OutgoingStore, Told
from siem.store.samples import Foreign

TALK_S = 30.0
LOOK_S = 0.25
"""With nothing to send, the outbox is looked at so often."""
INBOX_EVERY_S = 10.0
RENEW_AGAIN_S = 3_600.0
STATE_EVERY_S = 10.0
RETRY_S, RETRY_MAX_S = 1.0, 60.0
STOP_S = 3.0
ANSWER_MAX_BYTES = 4 << 20
LIST_MAX_BYTES = 256 << 20
"""A list of all that the hub holds of an operator."""
GZIP_MIN_BYTES = 1_024
NOT_THE_HUB = "who answers is not the hub that made the token"
NOTHING_TOLD = "Check the address, and the clock here; nothing was told to it."
_GONE = (
    http.client.RemoteDisconnected, http.client.CannotSendRequest, ConnectionError,
    ssl.SSLEOFError, ssl.SSLZeroReturnError,
)  # fmt: skip
"""How a connection ends that the other side closed since the last answer."""

_BUSY = (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS)
"""Nothing is wrong with what was sent."""

_NEVER = (http.client.BAD_REQUEST, http.client.FORBIDDEN)
"""These very bytes may never be taken."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class RefusalError(CitywardError):
    """The hub answered, and does not take it."""

    exit_code = 6

    def __init__(self, status: int, what: str, where: str, todo: str) -> None:
        super().__init__(what, where, todo)
        self.status = status


class Channel:
    """One connection to a hub, kept open.

    Args:
        url: `https://name:port`.
        context: Makes the TLS context of a new connection.
    """

    def __init__(self, url: str, context: Callable[[], ssl.SSLContext]) -> None:
        parts = urlsplit(url)
        self.url = url
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._context = context
        self._open: http.client.HTTPSConnection | None = None

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        kind: str = "",
        most: int = ANSWER_MAX_BYTES,
    ) -> bytes:
        """What the hub answers.

        Raises:
            RefusalError: it does not do it.
            OSError, http.client.HTTPException: it does not answer, or is not the hub.
        """
        headers = {"Content-Type": kind} if kind else {}
        if len(body) >= GZIP_MIN_BYTES:
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        was_open = self._open is not None
        try:
            return self._asked(method, path, body, headers, most)
        except _GONE:
            if not was_open:
                raise
            # It was closed while nobody spoke; all requests may be repeated.
            return self._asked(method, path, body, headers, most)

    def _asked(
        self, method: str, path: str, body: bytes, headers: dict[str, str], most: int
    ) -> bytes:
        if self._open is None:
            self._open = http.client.HTTPSConnection(
                self._host, self._port, timeout=TALK_S, context=self._context()
            )
        try:
            self._open.request(method, path, body or None, headers)
            answer = self._open.getresponse()
            said = answer.read(most + 1)
        except BaseException:
            self.close()
            raise
        if len(said) > most:
            self.close()
            raise Unsafe("an answer that does not end", f"{self.url}{path}", "Ask the hub.")
        if answer.will_close:
            self.close()
        if answer.status != http.client.OK:
            raise _refused(answer.status, said, path)
        return said

    def close(self) -> None:
        """End it."""
        if self._open is not None:
            self._open.close()
            self._open = None


class Link(threading.Thread):
    """Sends what the outbox has, for as long as the process lives.

    Args:
        outbox: Makes the envelopes; only this thread uses it.
        identity: Keys and certificate.
        clock: The node's time.
        url: Where the hub is.
        plans: Responses are on here, so that something may come of a proposal.
        words_of: What a shared rule says itself, so that samples of it may.
    """

    def __init__(
        self,
        outbox: Outbox,
        identity: Identity,
        clock: Callable[[], datetime],
        url: str,
        *,
        plans: bool = True,
        words_of: Callable[[str], samples.Words] = samples.no_words,
    ) -> None:
        super().__init__(name="link", daemon=True)
        self.ended = threading.Event()
        self._outbox, self._store = outbox, outbox.store
        self._identity, self._clock = identity, clock
        self._plans = plans
        self._words_of = words_of
        self._known: Hub | None = None
        self._channel = Channel(url, self._secure)
        self._failures = 0
        self._again_s = self._renew_s = self._inbox_s = self._said_s = 0.0
        self._state = LinkState()

    def run(self) -> None:
        """Look, send, listen, until `stop`."""
        while not self.ended.is_set():
            if not self.turn():
                self.ended.wait(LOOK_S)
        self._channel.close()

    def stop(self) -> None:
        """End; an envelope under way is given a little time, else its bytes go again later."""
        self.ended.set()
        if self.is_alive():
            self.join(STOP_S)

    def turn(self) -> bool:
        """One round; False if there was nothing to do, or nobody to tell."""
        try:
            looked = self._outbox.offer()
            if time.monotonic() < self._again_s:
                return bool(looked)
            return self._said() or bool(looked)
        except RefusalError as error:
            is_busy = error.status in _BUSY or error.status >= http.client.INTERNAL_SERVER_ERROR
            self._failed("unreachable" if is_busy else "refused", str(error))
        except (OSError, http.client.HTTPException, CitywardError, msgspec.MsgspecError) as error:
            self._failed("unreachable", str(error) or repr(error))
        except Exception as error:  # a fault of ours must not end the sharing for good
            log.exception("The link to the hub failed.")
            self._failed("unreachable", repr(error))
        return False

    def _said(self) -> bool:
        """Say what is due, hear what there is."""
        now_s = time.monotonic()
        self._hub()
        if now_s >= self._renew_s:
            self._renew_s = now_s + RENEW_AGAIN_S
            self._renew()
        signed = self._outbox.next()
        if signed is not None:
            answer = self._asked(signed)
            if answer is None:
                return True
            self._outbox.receipted(split(answer), self._hub().key)
            self._well()
        if now_s >= self._inbox_s:
            self._inbox_s = now_s + INBOX_EVERY_S
            now = self._clock()
            fetch_inbox(
                self._channel, self._store, self._hub(), now, plans=self._plans,
                words_of=self._words_of,
            )  # fmt: skip
            self._well()
        return signed is not None

    def _asked(self, signed: Signed) -> bytes | None:
        """The receipt of an envelope; None if it was refused for good, and is sealed anew."""
        try:
            return self._channel.ask("POST", MESSAGES, signed.lines(), "application/x-cityward")
        except RefusalError as error:
            if error.status in _NEVER and self._outbox.again():
                return None
            raise

    def _hub(self) -> Hub:
        """The hub that was joined; a node may join while this thread runs."""
        if self._known is None:
            self._known = self._identity.hub()
        return self._known

    def _secure(self) -> ssl.SSLContext:
        return self._identity.context(self._hub().authority)

    def _renew(self) -> None:
        """At two thirds of its life the certificate is made anew, on a new key."""
        if not renewal_due(self._identity.certificate(), self._clock()):
            return
        key, csr = new_key(self._hub().operator)
        asked = msgspec.json.encode(Renewing(csr=csr))
        answer = self._channel.ask("POST", RENEW, asked, "application/json")
        made = msgspec.json.decode(answer, type=Renewed)
        self._identity.keep_certificate(key, made.certificate)
        self._channel.close()
        log.info("The certificate for the hub was renewed.")

    # ---- how it stands

    def _well(self) -> None:
        self._failures, self._again_s = 0, 0.0
        self._say("linked", "")

    def _failed(self, state: str, why: str) -> None:
        self._channel.close()
        self._known = None
        self._failures += 1
        wait_s = min(RETRY_S * 2.0 ** min(self._failures - 1, 10), RETRY_MAX_S)
        # Not all operators at once when the hub is back.
        self._again_s = time.monotonic() + wait_s * random.uniform(0.5, 1.0)
        self._say(state, why.splitlines()[0][:300])

    def _say(self, state: str, error: str) -> None:
        """Keep how it stands, when it changes and now and then."""
        is_news = (state, error) != (self._state.state, self._state.error)
        now, now_s = self._clock(), time.monotonic()
        if is_news and error:
            log.warning("Nothing reaches the hub, %s; it waits in the outbox.", error)
        elif is_news:
            log.info("Linked to %s.", self._channel.url)
        if not is_news and now_s < self._said_s:
            return
        self._said_s = now_s + STATE_EVERY_S
        self._state = LinkState(
            state=state,  # type: ignore[arg-type]
            error=error,
            since=now if is_news else self._state.since,
            heard=now if state == "linked" else self._state.heard,
            certificate_until=(
                self._identity.certificate().not_valid_after_utc
                if self._identity.has_joined
                else None
            ),
        )
        try:
            self._store.set_link(self._state)
        except TransientError as trouble:
            log.warning("The state of the link is not kept: %s", trouble.what)


def fetch_inbox(
    channel: Channel,
    store: OutgoingStore,
    hub: Hub,
    now: datetime,
    *,
    plans: bool = True,
    words_of: Callable[[str], samples.Words] = samples.no_words,
) -> int:
    """Fetch what the hub has for this operator, and keep it; returns how much it was.

    Raises:
        Unsafe: an envelope of it was not signed by the hub; it and what follows is not kept.
    """
    answer = channel.ask("GET", f"{INBOX}?after={store.heard()}")
    count = 0
    for told, said in _told(answer, hub, now):
        sample = _sample(said, now, words_of) if said.type == "sample" else None
        with store.desk() as desk:
            desk.tell(told)
            if said.type == "proposal":
                _propose(desk, said, hub.operator, now, plans=plans)
            elif sample is not None:
                _protect(desk, said, sample)
        if said.type not in KINDS:
            log.warning("The hub sent a %.40s, which this version does not understand.", said.type)
        count += 1
    return count


def _propose(desk: Desk, said: Envelope, operator: str, now: datetime, *, plans: bool) -> None:
    """Keep a proposal; what is none stays in the inbox as it came, and nothing comes of it."""
    try:
        if not desk.propose(proposals.read(said, operator, now, plans=plans)):
            raise Unsafe("too many proposals are open", f"envelope {said.seq}", "Answer some.")
    except Unsafe as error:
        log.warning("A proposal of the city is not taken, %s: %s.", error.where, error.what)


def _sample(
    said: Envelope, now: datetime, words_of: Callable[[str], samples.Words]
) -> Foreign | Unsafe:
    """What came as a sample, read while nothing is being written: rules may be read for it."""
    try:
        return samples.read(said, now, words_of)
    except Unsafe as error:
        return error


def _protect(desk: Desk, said: Envelope, sample: Foreign | Unsafe) -> None:
    """Keep a sample of another operator; what is none does not stay in the inbox either."""
    try:
        if isinstance(sample, Unsafe):
            raise sample
        if why := desk.samples.take(sample):
            raise Unsafe(why, f"envelope {said.seq}", "Set some aside; they end by themselves.")
    except Unsafe as error:
        log.warning("A sample of another operator is not taken, %s: %s.", error.where, error.what)
        desk.samples.forget(said.share_id)


def _told(answer: bytes, hub: Hub, now: datetime) -> Iterator[tuple[Told, Envelope]]:
    for text in answer.splitlines():
        line = msgspec.json.decode(text, type=InboxLine)
        try:
            signed = Signed(line.data.encode(), base64.b64decode(line.signature, validate=True))
        except binascii.Error as error:
            raise Unsafe("no signature", f"inbox {line.n}", "Ask the hub.") from error
        said = verified(signed, hub.key)
        yield Told(line.n, now, said.type, said.share_id, signed.data, signed.signature), said


def listed(identity: Identity, path: str, kind: type[T]) -> list[T]:
    """What the hub tells an operator about its own shares: `MIRROR` or `ACCESS`.

    Raises:
        ConfigError: this node has joined no hub.
        RefusalError: the hub does not tell.
        TransientError: it does not answer.
    """
    hub = identity.hub()
    channel = Channel(hub.url, lambda: identity.context(hub.authority))
    try:
        answer = channel.ask("GET", path, most=LIST_MAX_BYTES)
        return [msgspec.json.decode(line, type=kind) for line in answer.splitlines()]
    except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
        todo = "Try again; cityward doctor says how it stands with the hub."
        raise TransientError(f"no answer: {error}", hub.url, todo) from error
    finally:
        channel.close()


# ---- Joining


def request_of(identity: Identity, token: str, option: str) -> tuple[bytes, Enrolling]:
    """A new private key, and what a hub is asked for with it.

    Raises:
        Unsafe: the token is none.
    """
    key, csr = new_key(read_token(token, TOKEN_PREFIX, option).name)
    signing = public_text(identity.signing_key().public_key())
    return key, Enrolling(token=token, csr=csr, signing_key=signing)


def join(
    identity: Identity,
    store: OutgoingStore,
    url: str,
    token: str,
    option: str,
    *,
    restored: bool = False,
) -> Hub:
    """Have a hub admit this node; the token serves once.

    Args:
        identity: Where keys and certificate are kept.
        store: The ledger, which goes on behind what the hub has of this operator.
        url: `https://name:port` of the hub.
        token: What the hub printed.
        option: Where a person gave it, for messages.
        restored: The ledger is older than what the hub has, and goes on with a gap.

    Raises:
        Unsafe: the token is none, or who answers is not the hub that made it.
        RefusalError: the hub does not admit us.
        TransientError: nobody answers.
    """
    said = read_token(token, TOKEN_PREFIX, option)
    key, asked = request_of(identity, token, option)
    head = _answered(store)
    asked = msgspec.structs.replace(asked, seq=head.seq, prev=head.hash)
    try:
        authority = _authority(url, said.authority)
        # Only now that it is known, by the authority that the token names, anything is told.
        channel = Channel(url, lambda: known_by(authority))
        answer = channel.ask("POST", ENROL, msgspec.json.encode(asked), "application/json")
        channel.close()
        enrolled = msgspec.json.decode(answer, type=Enrolled)
    except ssl.SSLCertVerificationError as error:
        raise Unsafe(f"{NOT_THE_HUB}: {error.verify_message}", url, NOTHING_TOLD) from error
    except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
        todo = "Check address and port; the log of the hub says why it refuses."
        raise TransientError(f"no certificate: {error}", url, todo) from error
    _go_on(store, enrolled, url, restored=restored)
    before = identity.hub() if identity.has_joined else Hub(url="", operator="", authority="")
    hub = Hub(
        url=url,
        operator=said.name,
        authority=authority,
        signing_keys=_with(before.signing_keys, enrolled.signing_key),
        own_keys=_with(before.own_keys, asked.signing_key),
    )
    identity.keep_certificate(key, enrolled.certificate)
    identity.keep_hub(hub)
    return hub


def _with(keys: tuple[str, ...], newest: str) -> tuple[str, ...]:
    return (*(one for one in keys if one != newest), newest)


def _answered(store: OutgoingStore) -> Head:
    """The head of the ledger without what is on its way, which goes again by itself."""
    with store.desk() as desk:
        line, head = desk.on_the_way(), desk.head()
    if line is None:
        return head
    return Head(line.seq - 1, msgspec.json.decode(line.data, type=Envelope).prev)


def _authority(url: str, wanted: str) -> str:
    """The authority that made a token, and nothing else that who answers may have added."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.minimum_version = ssl.TLSVersion.TLSv1_3
    # Nothing is said to who is not known yet; its authority is compared with the token.
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    channel = Channel(url, lambda: blind)
    try:
        made = x509.load_pem_x509_certificate(channel.ask("GET", AUTHORITY))
    except (ValueError, RefusalError) as error:
        raise Unsafe(NOT_THE_HUB, url, NOTHING_TOLD) from error
    finally:
        channel.close()
    if fingerprint(made) != wanted:
        raise Unsafe(NOT_THE_HUB, url, NOTHING_TOLD)
    return pem(made)


def _go_on(store: OutgoingStore, enrolled: Enrolled, url: str, *, restored: bool) -> None:
    """The ledger goes on behind what the hub has; a new one, where the old one is lost."""
    with store.desk() as desk:
        head = desk.head()
        desk.set_takes(())  # it may be another hub, and an older one
        if enrolled.had is not None:
            desk.tell_again(enrolled.had)
        is_behind = head.seq < enrolled.seq
        is_behind |= head.seq == enrolled.seq > 0 and head.hash != enrolled.prev
        if (head.seq, head.hash) == (enrolled.seq, enrolled.prev):
            # The hub has what is on its way; it need not be asked for a receipt that it would not
            # give to who signs with another key now.
            desk.set_dropped(head.seq)
        elif not head.seq and enrolled.seq:
            desk.go_on(enrolled.seq, enrolled.prev)
        elif is_behind and restored:
            desk.resume(enrolled.seq, enrolled.prev)
        elif is_behind:
            raise Unsafe(
                f"the hub has {enrolled.seq} envelopes of this operator, not those {head.seq} here",
                url,
                "Restore a newer backup; or join again with another token and --restored.",
            )


class _Error(msgspec.Struct, frozen=True):
    what: str = ""
    todo: str = "The audit trail of the hub says why."


class _Answer(msgspec.Struct, frozen=True):
    error: _Error = _Error()


def _refused(status: int, said: bytes, path: str) -> RefusalError:
    """What the hub says is wrong, in its own words if they are some."""
    try:
        error = msgspec.json.decode(said, type=_Answer).error
    except msgspec.MsgspecError:
        error = _Error()
    what = error.what or f"status {status}"
    return RefusalError(status, f"the hub refuses: {what[:200]}", path, error.todo[:200])
