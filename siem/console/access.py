"""Who may see and do what: sign-in, sessions, tokens for programs, rights of the roles."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import Response

from siem.console.protocol import Home
from siem.store.protocol import Person

SESSION = "cityward_session"
BEFORE = "cityward_before"
"""Cookie that ties the sign-in form to the browser that got it."""
ENDED_MAX = 10_000

SESSION_MAX_S = 12 * 3600
PASSWORD_MAX = 1024
PASSWORD_LEAST = 12

_ANALYST = frozenset(
    (
        *("findings", "triage", "incidents", "cases", "hunt", "rules", "assets", "health"),
        *("metrics", "routes", "self", "playbooks", "approvals", "halt"),
    )
)
_APPROVER = frozenset(
    (
        *("approvals", "approve", "playbooks", "halt"),
        *("findings", "incidents", "assets", "health", "self"),
    )
)
_PEER = frozenset(("city", "campaigns", "shared", "self"))
_CISO = _PEER | {"operators", "duties", "incidents", "cases", "health", "metrics", "propose"}
RIGHTS: dict[str, frozenset[str]] = {
    "administrator": frozenset(
        ("health", "metrics", "routes", "self", "people", "audit", "send", "operators")
    ),
    "analyst": _ANALYST | {"sharing", "share", "plan", "approve"},
    "engineer": _ANALYST | {"inventory", "switch", "stage"},
    "approver": _APPROVER,
    "ciso": _CISO,
    "peer": _PEER,
    "authority": _PEER,
}
"""Parts of the console by role; `triage` changes findings, `inventory` assets, `switch` rules;
`send` tests a route; `share` decides what leaves and takes it back; `plan` starts a playbook,
`approve` says yes or no to it, `halt` undoes and stops, `stage` says how far it may go,
`propose` asks operators of a campaign to plan one, or to say why not. What of
the shared findings a person sees there says `siem/city/reading.py`.
"""

OPENS: dict[str, frozenset[str]] = {
    "read": (_ANALYST | _CISO | {"sharing"}) - {"triage", "cases", "halt", "propose"},
    "triage": frozenset({"triage", "cases"}),
    "respond": frozenset({"plan", "approve", "halt", "propose"}),
    "tune": frozenset({"inventory", "switch", "stage"}),
    "admin": frozenset({"people", "audit", "send"}),
}
"""Parts that a token opens by its scopes, as far as its person may."""

LANDS_ON = {
    "administrator": "/health",
    "analyst": "/findings",
    "engineer": "/findings",
    "approver": "/approvals",
    "ciso": "/city",
    "peer": "/city",
    "authority": "/city",
}


class NotSignedIn(Exception):  # noqa: N818 – a state, not a fault
    """Nobody is signed in: a page leads to the form, a program gets 401."""


class MustChange(Exception):  # noqa: N818 – a state, not a fault
    """The password is a one-time one: nothing opens before the person has chosen their own."""


class NotYours(Exception):  # noqa: N818 – a refusal, not a fault
    """The person's role does not include this part."""

    def __init__(self, person: Person | None, part: str) -> None:
        super().__init__(part)
        self.person = person
        self.part = part


@dataclass(frozen=True, slots=True)
class Session:
    """A person and how they came in."""

    person: Person
    csrf: str
    """Token that every form of this session carries; empty for a token of a program."""
    scopes: tuple[str, ...] = ()
    """Of the token of a program."""

    @property
    def by_token(self) -> bool:
        """True for a program; it sends no cookie, so no other site can use it."""
        return not self.csrf

    def may(self, part: str) -> bool:
        """Whether one of the person's roles includes a part, and the token opens it."""
        if self.by_token and not any(part in OPENS.get(one, ()) for one in self.scopes):
            return False
        return any(part in RIGHTS.get(role, ()) for role in self.person.roles)


class Tries:
    """Counts failed sign-ins by name and by address, in bounded memory.

    Args:
        allowed: Failures of one key within the window before it has to wait.
        window_s: How long a failure counts.
        kept: Keys remembered; the oldest go first.
    """

    def __init__(
        self,
        allowed: int = 10,
        window_s: float = 300.0,
        kept: int = 10_000,
        tick: Callable[[], float] = time.monotonic,
    ) -> None:
        self.allowed = allowed
        self.window_s = window_s
        self.kept = kept
        self._tick = tick
        self._failed: OrderedDict[str, list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_s(self, *keys: str) -> float:
        """Seconds until these keys may try again; 0 if they may now."""
        with self._lock:
            return max((self._wait_s(key) for key in keys), default=0.0)

    def failed(self, *keys: str) -> None:
        """Remember a failure of each key."""
        with self._lock:
            for key in keys:
                self._failed[key] = [*self._recent(key)[-self.allowed :], self._tick()]
                self._failed.move_to_end(key)
            while len(self._failed) > self.kept:
                self._failed.popitem(last=False)

    def worked(self, *keys: str) -> None:
        """Forget the failures of a key."""
        with self._lock:
            for key in keys:
                self._failed.pop(key, None)

    def _recent(self, key: str) -> list[float]:
        return [at for at in self._failed.get(key, ()) if at > self._tick() - self.window_s]

    def _wait_s(self, key: str) -> float:
        recent = self._recent(key)
        if len(recent) < self.allowed:
            return 0.0
        return recent[-self.allowed] + self.window_s - self._tick()


class Access:
    """The door of the console."""

    def __init__(self, node: Home, hasher: PasswordHasher | None = None) -> None:
        self.node = node
        self.by_name = Tries()
        self.by_address = Tries(allowed=30)
        self._hasher = hasher or PasswordHasher()
        self._signer = URLSafeTimedSerializer(node.secret, salt="cityward session")
        self._nobody = self._hasher.hash(secrets.token_hex(16))
        self.turn = threading.Lock()
        """One sign-in after the other: a hash takes 64 MiB, and a failure counts for the next."""
        self._ended: OrderedDict[str, None] = OrderedDict()
        self.session_cookie = cookie_name(SESSION, node.secret)
        self.before_cookie = cookie_name(BEFORE, node.secret)

    def session(self, request: Request) -> Session | None:
        """Who sent a request, by session cookie or by token."""
        bearer = request.headers.get("authorization", "")
        if bearer[:7].lower() == "bearer ":
            digest = hashlib.sha256(bearer[7:].strip().encode()).hexdigest()
            held = self.node.accounts.holder_of(digest, self.node.now())
            return Session(held[0], "", held[1].scopes) if held else None
        return self._by_cookie(request.cookies.get(self.session_cookie, ""))

    def enter(self, request: Request, part: str) -> Session:
        """The session of a request that may see a part.

        Raises:
            NotSignedIn: Nobody is signed in.
            MustChange: The password has to be changed first.
            NotYours: The role does not include the part.
        """
        session = self.session(request)
        if session is None:
            raise NotSignedIn
        if session.person.one_time and part != "self":
            raise MustChange
        if not session.may(part):
            raise NotYours(session.person, part)
        return session

    def enter_by_form(self, request: Request, part: str, token: str) -> Session:
        """The session of a form that changes a part, and came from a page of this session.

        Args:
            request: What was sent.
            part: What it changes.
            token: What the form carries.

        Raises:
            NotSignedIn: Nobody is signed in.
            MustChange: The password has to be changed first.
            NotYours: The role does not include the part, or the form is from elsewhere.
        """
        session = self.enter(request, part)
        if not self.check_form(session, token):
            raise NotYours(session.person, "form")
        return session

    def check_form(self, session: Session, token: str) -> bool:
        """Whether a form came from a page of this session."""
        return session.by_token or hmac.compare_digest(session.csrf.encode(), token.encode())

    def check_password(self, name: str, password: str, address: str) -> Person | None:
        """The person, if name and password fit; every failure is counted."""
        person = self.node.accounts.person(name) if name else None
        if person and person.disabled:
            person = None
        try:
            self._hasher.verify(
                person.password_hash if person else self._nobody, password[:PASSWORD_MAX]
            )
        except (Argon2Error, InvalidHashError):
            person = None
        if person is None:
            self.by_name.failed(name[:200])
            self.by_address.failed(_network(address))
            return None
        self.by_name.worked(name[:200])
        return person

    def hash(self, password: str) -> str:
        """What is kept of a password."""
        return self._hasher.hash(password[:PASSWORD_MAX])

    def wait_s(self, name: str, address: str) -> float:
        """Seconds until this name or address may try again."""
        return max(self.by_name.wait_s(name[:200]), self.by_address.wait_s(_network(address)))

    def open(self, response: Response, request: Request, person: Person) -> None:
        """Give the browser a session."""
        said = {"name": person.name, "csrf": secrets.token_urlsafe(24), "of": _stamp(person)}
        set_cookie(response, request, self.session_cookie, self._dump(said), SESSION_MAX_S)
        response.delete_cookie(self.before_cookie)

    def close(self, response: Response, session: Session | None) -> None:
        """End the session, also for whoever has a copy of its cookie."""
        response.delete_cookie(self.session_cookie)
        if session and not session.by_token:
            self._ended[session.csrf] = None
            while len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)

    def before(self, request: Request) -> tuple[str, str]:
        """Cookie and form token for somebody who is not signed in yet."""
        cookie = request.cookies.get(self.before_cookie, "")
        if not 20 <= len(cookie) <= 100:
            cookie = secrets.token_urlsafe(24)
        return cookie, self._before_token(cookie)

    def check_before(self, request: Request, token: str) -> bool:
        """Whether a sign-in form came from a page of ours in this browser."""
        cookie = request.cookies.get(self.before_cookie, "")
        return bool(cookie) and hmac.compare_digest(
            self._before_token(cookie).encode(), token.encode()
        )

    def _before_token(self, cookie: str) -> str:
        return hmac.new(self.node.secret, b"before " + cookie.encode(), "sha256").hexdigest()

    def _dump(self, said: dict[str, str]) -> str:
        dumped = self._signer.dumps(said)
        return dumped if isinstance(dumped, str) else dumped.decode()

    def _by_cookie(self, cookie: str) -> Session | None:
        if not cookie or len(cookie) > 4000:
            return None
        try:
            said = self._signer.loads(cookie, max_age=SESSION_MAX_S)
            person = self.node.accounts.person(said["name"])
            fits = person is not None and not person.disabled and said["of"] == _stamp(person)
            fits = fits and said["csrf"] not in self._ended
            return Session(person, said["csrf"]) if person and fits else None
        except (BadSignature, KeyError, TypeError):
            return None


def password_hash(password: str) -> str:
    """What is kept of a password: Argon2id, as the library writes it."""
    return PasswordHasher().hash(password)


def cookie_name(name: str, secret: bytes) -> str:
    """Name of a cookie of one node: all ports of a host share their cookies."""
    return f"{name}_{hmac.new(secret, name.encode(), 'sha256').hexdigest()[:8]}"


def set_cookie(
    response: Response, request: Request, name: str, value: str, age_s: int | None = None
) -> None:
    """Set a cookie that no script reads and no other site sends."""
    response.set_cookie(
        name,
        value,
        max_age=age_s,
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


def _network(address: str) -> str:
    """Whose tries are counted together: of IPv6 a network, since a host has all its addresses."""
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(found.ipv4_mapped or ipaddress.IPv6Network((found, 64), strict=False))


def _stamp(person: Person) -> str:
    """Changes with password, roles and epoch, so that a change ends the sessions of before."""
    said = f"{' '.join(person.roles)}\0{person.password_hash}\0{person.epoch}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]
