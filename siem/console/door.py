"""Sign-in, sign-out, a person's own settings, the list of keys."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from siem.console.access import NotSignedIn, NotYours, set_cookie
from siem.console.site import Shell, Site, back_to, see_other
from siem.console.triage import text
from siem.console.view import ago

YEAR_S = 365 * 86_400
UNKNOWN = "unknown name"
"""Who tried to sign in, in the audit trail, if nobody is called so."""
SETTINGS = {"theme": ("system", "light", "dark"), "keys": ("on", "off"), "fold": ("on", "off")}
"""What a person may choose; kept in the browser only."""

Keys = tuple[tuple[str, str], ...]
AROUND: Keys = (
    ("t", "time"),
    ("[", "earlier"),
    ("]", "later"),
    ("-", "zoom out"),
    ("y", "copy link"),
    ("Esc", "close"),
)
LISTS: Keys = (("j", "next row"), ("k", "row before"), ("x", "select"), ("Enter", "open"))
TRIAGE: Keys = (
    ("a", "take"),
    ("w", "in progress"),
    ("r", "resolve, asks for the verdict"),
    ("s", "suppress, asks until when"),
    ("c", "comment"),
    ("i", "to an incident"),
    ("f", "a filter from this"),
)
WORKBENCH: Keys = (
    ("Ctrl Space", "words that fit"),
    ("Ctrl S", "save the draft"),
    ("Ctrl Z", "undo"),
    ("Esc", "leave the text"),
)


def keys_of(shell: Shell) -> list[tuple[str, Keys]]:
    """The keys of a console in groups, each with what it does."""
    goes = tuple((f"g {one.key}", f"go to {one.word}") for one in shell.nav)
    groups = [("Everywhere", (("/", "query"), ("?", "this list"), *goes, *AROUND))]
    groups.append(("Lists", LISTS))
    if any(one.part == "findings" for one in shell.nav):
        groups.append(("Findings", TRIAGE))
    if any(one.part == "rules" for one in shell.nav):
        groups.append(("Rule workbench", WORKBENCH))
    return groups


class Door:
    """The pages around the others."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.access = site.access

    def start(self, request: Request) -> Response:
        """Where a role begins."""
        session = self.access.session(request)
        if session is None:
            raise NotSignedIn
        if session.person.one_time:
            return see_other("/password")
        return see_other(self.site.shell.start(session.person.role))

    def form(self, request: Request) -> Response:
        """The sign-in form."""
        return self._form(request, request.query_params.get("next", "/"))

    async def sign_in(self, request: Request) -> Response:
        """Check name and password."""
        form = await request.form(max_files=0, max_fields=20)
        return await run_in_threadpool(self._sign_in, request, form)

    async def sign_out(self, request: Request) -> Response:
        """End the session of this browser."""
        form = await request.form(max_files=0, max_fields=20)
        return await run_in_threadpool(self._sign_out, request, form)

    async def set(self, request: Request) -> Response:
        """Keep a setting in a cookie."""
        form = await request.form(max_files=0, max_fields=20)
        return await run_in_threadpool(self._set, request, form)

    def keys(self, request: Request) -> Response:
        """The list of keys."""
        session = self.access.enter(request, "self")
        return self.site.page(
            request, session, "keys.html", title="Keys", current="",
            groups=keys_of(self.site.shell),
        )  # fmt: skip

    def _form(
        self, request: Request, onward: str, error: str = "", name: str = "", status: int = 200
    ) -> Response:
        cookie, token = self.access.before(request)
        context = {
            "operator": self.site.node.operator,
            "csrf": token,
            "next": back_to(onward),
            "error": error,
            "name": name,
        }
        response = self.site.html(request, "sign_in.html", context, status)
        set_cookie(response, request, self.access.before_cookie, cookie)
        return response

    def _sign_in(self, request: Request, form: FormData) -> Response:
        name, onward = text(form, "name").strip(), text(form, "next")
        address = request.client.host if request.client else "unknown"
        if not self.access.check_before(request, text(form, "csrf")):
            return self._form(request, onward, "This form is too old. Send it again.", name, 403)
        person = None
        with self.access.turn:
            wait_s = self.access.wait_s(name, address)
            if not wait_s:
                person = self.access.check_password(name, text(form, "password"), address)
        if wait_s:
            error = f"Too many tries. Wait {ago(wait_s)}."
            response = self._form(request, onward, error, name, 429)
            response.headers["retry-after"] = str(int(wait_s) + 1)
            return response
        now = self.site.node.now()
        if person is None:
            # What is nobody's name may be a password in the wrong field, and the trail keeps it.
            known = self.site.node.accounts.person(name) is not None
            self.site.node.audit(name if known else UNKNOWN, "sign-in refused", address, now)
            return self._form(request, onward, "Name or password do not fit.", name, 401)
        self.site.node.audit(person.name, "sign-in", address, now)
        self.site.node.accounts.signed_in(person.name, now)
        response = see_other(back_to(onward, "/"))
        self.access.open(response, request, person)
        return response

    def _sign_out(self, request: Request, form: FormData) -> Response:
        session = self.access.session(request)
        response = see_other("/sign-in")
        if session:
            if not self.access.check_form(session, text(form, "csrf")):
                raise NotYours(session.person, "form")
            self.site.node.audit(session.person.name, "sign-out", "", self.site.node.now())
        self.access.close(response, session)
        return response

    def _set(self, request: Request, form: FormData) -> Response:
        self.access.enter_by_form(request, "self", text(form, "csrf"))
        response = see_other(back_to(text(form, "back")))
        for name, allowed in SETTINGS.items():
            if (value := text(form, name)) in allowed:
                set_cookie(response, request, f"cityward_{name}", value, YEAR_S)
        return response
