"""People and their tokens: who may sign in, with which roles, and which programs may read."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import InputError
from siem.console import formats
from siem.console.access import PASSWORD_LEAST, NotYours, Session
from siem.console.body import body_of
from siem.console.site import Site, see_other
from siem.console.triage import text
from siem.console.view import path_of
from siem.store.accounts import roles_of
from siem.store.protocol import Person, Token

ACTS = {
    "add": "Added {}.",
    "roles": "Changed the roles of {}.",
    "disable": "Disabled {}; their sessions and tokens end.",
    "enable": "Enabled {}.",
    "reset": "Gave {} a new password.",
    "end": "Ended the sessions of {}.",
}
"""What may be done with a person, and what is said afterwards."""

ROLE_WORDS = {
    "ciso": "City, Campaigns, Operators, Incidents, Duties",
    "engineer": "Findings, Hunt, Rules, Assets; changes findings, assets, rules, playbooks",
    "analyst": "Findings, Hunt, Rules, Assets; changes findings, plans and approves responses",
    "approver": "Approvals, Playbooks, Findings, Assets; approves responses to the process",
    "peer": "what one operator has shared, and what is for all operators",
    "authority": "what its audience was given, and nothing else",
    "administrator": "Health, People, Audit; no findings unless also another",
}
SCOPE_WORDS = {
    "read": "read findings, events, rules, assets and health",
    "triage": "change findings",
    "respond": "start, approve, refuse and undo responses, stop playbooks",
    "tune": "change assets, rules, filters, and how far playbooks may go",
    "admin": "people, tokens and the audit trail",
}
DAYS_MAX = 3660


class People:
    """The pages of people and tokens, and everybody's own password."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.node = site.node
        self.accounts = site.node.accounts

    # ---- People

    def listing(self, request: Request) -> Response:
        """Who may sign in, as a page or for programs."""
        session = self.site.access.enter(request, "people")
        form = formats.form_of(request)
        words = self.site.view_of(request).one("q").lower().split()
        every = self.accounts.people()
        rows = [one for one in every if all(word in _text(one) for word in words)]
        if form:
            self.site.exported(session, request)
            return formats.rows(form, [document(one) for one in rows], len(rows), {}, "people")
        return self._page(
            request, session, "people.html", rows=rows, every=len(every), query_path="/people",
            query_hint="Name, role or state",
        )  # fmt: skip

    def one(self, request: Request, name: str) -> Response:
        """One person with their tokens, as a page or as JSON."""
        session = self.site.access.enter(request, "people")
        person = self.accounts.person(name)
        if person is None:
            what, todo = f"nobody is called {name[:80]}", "Look in the list of people."
            return self.site.unknown(request, session, "people", what, todo)
        tokens = [one for one in self.accounts.tokens() if one.person == name]
        if formats.form_of(request):
            return formats.json(document(person) | {"tokens": [token_document(t) for t in tokens]})
        return self._page(
            request, session, "person.html", title=name, person=person, tokens=tokens,
            home=path_of("people", name),
        )  # fmt: skip

    async def change(self, request: Request) -> Response:
        """Add, change or disable a person, by a form or as JSON."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, form)

    def _change(self, request: Request, form: FormData) -> Response:
        session = self._enter(request, form)
        act, name = text(form, "act"), text(form, "name").strip()
        if act not in ACTS:
            raise InputError(f"no act is called {act[:40]!r}", "act", f"One of {', '.join(ACTS)}.")
        person, password = self._changed(act, name, form)
        action = f"person: {act}" + (f", {' '.join(person.roles)}" if act in _WITH_ROLES else "")
        self.accounts.put(person, session.person.name, action, self.node.now())
        if formats.form_of(request):
            made = {"password": password} if password else {}
            return formats.json({"person": document(person)} | made)
        if password:
            said = {"what": f"One-time password of {name}", "secret": password, "name": name}
            return self._page(request, session, "secret.html", **said, back=path_of("people", name))
        return see_other(path_of("people", name) + f"?done={act}")

    def _changed(self, act: str, name: str, form: FormData) -> tuple[Person, str]:
        """The person after an act, and the password that was made for it."""
        before = self.accounts.person(name)
        roles = roles_of(str(one) for one in form.getlist("role"))
        audience = text(form, "audience").strip()
        if act == "add":
            if before is not None:
                raise InputError(f"{name} is there already", "name", "Choose another name.")
            password = new_password()
            hashed = self.site.access.hash(password)
            return Person(name, roles, hashed, one_time=True, audience=audience), password
        if before is None:
            raise InputError(f"nobody is called {name[:80]!r}", "name", "Look in the list.")
        after = msgspec.structs.replace(before, epoch=before.epoch + 1)
        if act == "roles":
            return msgspec.structs.replace(after, roles=roles, audience=audience), ""
        if act == "reset":
            password = new_password()
            hashed = self.site.access.hash(password)
            return msgspec.structs.replace(after, password_hash=hashed, one_time=True), password
        disabled = {"disable": True, "enable": False}.get(act, before.disabled)
        return msgspec.structs.replace(after, disabled=disabled), ""

    # ---- Tokens

    def tokens(self, request: Request) -> Response:
        """Tokens of programs, as a page or for programs."""
        session = self.site.access.enter(request, "people")
        form = formats.form_of(request)
        rows = self.accounts.tokens()
        if form:
            self.site.exported(session, request)
            listed = [token_document(one) for one in rows]
            return formats.rows(form, listed, len(rows), {}, "tokens")
        return self._page(
            request, session, "tokens.html", title="Tokens", rows=rows,
            names=[one.name for one in self.accounts.people() if not one.disabled],
            scopes=SCOPE_WORDS,
        )  # fmt: skip

    async def change_token(self, request: Request) -> Response:
        """Make a token, which is shown this once, or revoke one."""
        form = await body_of(request)
        return await run_in_threadpool(self._change_token, request, form)

    def _change_token(self, request: Request, form: FormData) -> Response:
        session = self._enter(request, form)
        now, by = self.node.now(), session.person.name
        act, as_data = text(form, "act"), bool(formats.form_of(request))
        if act == "revoke":
            done = self.accounts.revoke(text(form, "id"), by, now)
            return formats.json({"revoked": int(done)}) if as_data else see_other("/tokens")
        if act != "add":
            raise InputError(f"no act is called {act[:40]!r}", "act", "Write add or revoke.")
        secret, token = made_token(
            text(form, "person").strip() or by,
            text(form, "name").strip(),
            tuple(str(one) for one in form.getlist("scope")),
            expiry(text(form, "days"), now),
        )
        self.accounts.add_token(hash_of(secret), token, by, now)
        if as_data:
            return formats.json({"token": secret, **token_document(token)})
        said = {"what": f"Token {token.name}", "secret": secret, "name": token.person}
        return self._page(request, session, "secret.html", **said, back="/tokens")

    # ---- One's own password

    def password_form(self, request: Request) -> Response:
        """The form for one's own password."""
        return self._password_page(request, self.site.access.enter(request, "self"))

    async def password(self, request: Request) -> Response:
        """Change one's own password; all other sessions end."""
        form = await body_of(request)
        return await run_in_threadpool(self._password, request, form)

    def _password(self, request: Request, form: FormData) -> Response:
        access = self.site.access
        session = access.enter(request, "self")
        if session.by_token or not access.check_form(session, text(form, "csrf")):
            raise NotYours(session.person, "form")
        address = request.client.host if request.client else "unknown"
        name, new = session.person.name, text(form, "new")
        with access.turn:
            if wait_s := access.wait_s(name, address):
                error = f"Too many tries. Wait {wait_s:.0f} s."
                return self._password_page(request, session, error, 429)
            fits = access.check_password(name, text(form, "password"), address)
        if fits is None:
            self.node.audit(name, "password refused", address, self.node.now())
            return self._password_page(request, session, "The old password does not fit.", 401)
        if error := weakness(new, name):
            return self._password_page(request, session, error, 400)
        if new != text(form, "again"):
            return self._password_page(request, session, "The two new ones differ.", 400)
        person = msgspec.structs.replace(
            fits, password_hash=access.hash(new), one_time=False, epoch=fits.epoch + 1
        )
        self.accounts.put(person, name, "person: own password", self.node.now())
        response = see_other("/")
        access.open(response, request, person)
        return response

    def _password_page(
        self, request: Request, session: Session, error: str = "", status: int = 200
    ) -> Response:
        return self.site.page(
            request, session, "password.html", status, title="Password", current="",
            error=error, least=PASSWORD_LEAST,
        )  # fmt: skip

    # ---- Both

    def _enter(self, request: Request, form: FormData) -> Session:
        return self.site.access.enter_by_form(request, "people", text(form, "csrf"))

    def _page(self, request: Request, session: Session, template: str, **context: Any) -> Response:
        done = self.site.view_of(request).one("done")
        name = str(context["person"].name) if "person" in context else ""
        shared = {
            "title": "People",
            "current": "people",
            "roles": {one: ROLE_WORDS[one] for one in self.accounts.offers},
            "notice": ACTS[done].format(name) if done in ACTS and name else "",
        }
        return self.site.page(request, session, template, **(shared | context))


_WITH_ROLES = ("add", "roles")


def document(person: Person) -> dict[str, Any]:
    """A person as programs read them: everything but the password."""
    return {
        "name": person.name,
        "roles": list(person.roles),
        **({"audience": person.audience} if person.audience else {}),
        "disabled": person.disabled,
        "one_time_password": person.one_time,
        "last_sign_in": person.seen,
    }


def token_document(token: Token) -> dict[str, Any]:
    """A token as programs read it; never the token itself."""
    return msgspec.structs.asdict(token) | {"scopes": list(token.scopes)}


def made_token(
    person: str, name: str, scopes: tuple[str, ...], expires: datetime | None
) -> tuple[str, Token]:
    """A new token: what the program sends, and what is kept of it."""
    secret = f"cw_{secrets.token_urlsafe(32)}"
    return secret, Token(hash_of(secret)[:12], person, name, scopes, expires=expires)


def hash_of(secret: str) -> str:
    """What is kept of a token: 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def expiry(days: str, now: datetime) -> datetime | None:
    """When a token of so many days ends; nothing: it does not.

    Raises:
        InputError: it is no number of days.
    """
    if not days.strip():
        return None
    if not (days.isascii() and days.isdecimal() and len(days) < 9 and 0 < int(days) <= DAYS_MAX):
        raise InputError(f"{days[:40]!r} is no number of days", "days", f"1 to {DAYS_MAX:,}.")
    return now + timedelta(days=int(days))


def new_password() -> str:
    """A one-time password that can be read out at the telephone."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(letters) for _ in range(4)) for _ in range(4))


def weakness(password: str, name: str) -> str:
    """Why a password is none; empty if it will do (NIST SP 800-63B: length, no riddles)."""
    if len(password) < PASSWORD_LEAST:
        return f"The new password has fewer than {PASSWORD_LEAST} characters."
    if name.lower() in password.lower() or len(set(password)) < 5:
        return "The new password is too easy to guess."
    return ""


def _text(person: Person) -> str:
    state = "disabled" if person.disabled else "enabled"
    return " ".join((person.name, state, *person.roles)).lower()
