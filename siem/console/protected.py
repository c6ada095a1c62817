"""Protected samples of a rule: what we let out of ours, and what other operators let out.

A person sees each event beside what would leave of it, lets it out with a reason, and takes it
back. Letting out is for people alone: no program may.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError, InputError
from siem.console import formats
from siem.console.body import body_of
from siem.console.site import Fault, NodeSite, see_other
from siem.console.triage import text
from siem.console.view import path_of
from siem.sharing.samples import RELEASED, Offer, compared
from siem.store.protocol import Conflict

DONE = {
    "release": "It is let out as soon as enough people have said yes.",
    "approve": "You said yes to it.",
    "withdraw": "It is taken back from all operators.",
    "aside": "It is set aside: it forbids nothing here.",
    "back": "It counts again.",
    "aside-all": "All of this operator are set aside, also those that come.",
    "back-all": "All of this operator count again.",
}
GLYPHS = {
    "due": "degraded",
    "approval": "degraded",
    "older": "degraded",
    "sent": "degraded",
    "taken": "running",
    "refused": "risk",
    "withdraw": "degraded",
    "withdrawn": "blind",
}
"""Sign of a state of what was let out."""
OWN_SHOWN = 50


class Protected:
    """The page of the protected samples of a rule."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.releases = site.node.releases

    def page(self, request: Request, rule_id: str) -> Response:
        """Samples of ours and of others; with `finding`, what would leave of one."""
        session = self.site.access.enter(request, "rules")
        view = self.site.view_of(request)
        rule = next((one for one in self.site.node.rules() if one.id == rule_id), None)
        own, foreign = self.releases.own(rule_id), self.releases.foreign(rule_id)
        if rule is None and not own and not foreign:
            what = f"no rule has the id {rule_id[:80]}"
            return self.site.unknown(request, session, "rules", what, "Look in the list of rules.")
        offer, fault = self._offer(rule_id, view.one("finding"))
        chosen = next((one for one in foreign if one.id == view.one("sample")), None)
        return self.site.page(
            request,
            session,
            "protected.html",
            title="Protected samples",
            current="rules",
            rule_id=rule_id,
            rule_title=rule.title if rule else "A rule that does not count here",
            own=own[:OWN_SHOWN],
            every=len(own),
            foreign=foreign,
            offer=offer,
            events=[compared(before, after) for before, after in offer.events] if offer else [],
            chosen=chosen,
            their_events=self.releases.events(chosen.id) if chosen else [],
            words=RELEASED,
            glyphs=GLYPHS,
            fault=fault,
            done=DONE.get(view.one("done"), ""),
            may_share=session.may("share"),
            may_tune=session.may("switch"),
        )

    def _offer(self, rule_id: str, finding: str) -> tuple[Offer | None, Fault | None]:
        if not finding:
            return None, None
        try:
            offer = self.releases.offer(finding)
        except CitywardError as error:
            return None, Fault.of(error)
        return (offer if offer.rule == rule_id else None), None

    async def share(self, request: Request, rule_id: str) -> Response:
        """Let a sample out, say yes to it, or take it back; no program may."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, rule_id, form, "share", self._shared)

    async def judge(self, request: Request, rule_id: str) -> Response:
        """Set samples of another operator aside, one or all, or let them count again; say why."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, rule_id, form, "switch", self._judged)

    def _change(
        self,
        request: Request,
        rule_id: str,
        form: FormData,
        part: str,
        do: Callable[[str, str, FormData, str], None],
    ) -> Response:
        session = self.site.access.enter_by_form(request, part, text(form, "csrf"))
        act = text(form, "act")
        do(act, text(form, "id"), form, session.person.name)
        if formats.form_of(request):
            return formats.json({"done": act, "id": text(form, "id")})
        return see_other(f"{path_of('rules', rule_id, 'protected')}?done={act}")

    def _shared(self, act: str, id: str, form: FormData, by: str) -> None:
        reason = text(form, "reason").strip()
        match act:
            case "release":
                self.releases.release(id, text(form, "seen"), by, reason)
            case "approve":
                _did(self.releases.approve(id, by), "it does not wait for you")
            case "withdraw":
                _did(self.releases.withdraw(id, by, reason), "it is not out")
            case _:
                raise InputError(f"no act is called {act[:40]!r}", "act", "Load the page again.")

    def _judged(self, act: str, id: str, form: FormData, by: str) -> None:
        reason = text(form, "reason").strip()
        aside = act.startswith("aside")
        match act:
            case "aside" | "back":
                is_done = self.releases.set_aside(id, by, reason, aside=aside)
            case "aside-all" | "back-all":
                one = next((each for each in self.releases.foreign() if each.id == id), None)
                is_done = one is not None and (
                    self.releases.set_operator_aside(one.operator, by, reason, aside=aside)
                    is not None
                )
            case _:
                what = f"no act is called {act[:40]!r}"
                raise InputError(what, "act", "aside, back, aside-all or back-all.")
        _did(is_done, "it is so already, or gone")


def _did(is_done: bool, what: str) -> None:
    if not is_done:
        raise Conflict(what, "sample", "Load the page again.")
