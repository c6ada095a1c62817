"""Responses that the city proposes to operators of a campaign, and what they answered.

The hub decides nothing at an operator. A proposal names a playbook that the operator may have
under this name, the operator's own shares that are meant, and a token that it has shared itself:
nothing in it goes beyond the letter that told it of the campaign, and who was told of none is
proposed nothing. The console leaves what a person wants in the records; the active process sends
it, and takes the answers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from cityward import InputError, TransientError
from cityward.finding import severity_rank
from siem.city.campaigns import TOLD, Send, ToldOf
from siem.city.commons import Commons, Records, Rights
from siem.city.intake import Refused
from siem.sharing.proposals import in_words
from siem.sharing.tokens import tokens_in
from siem.sharing.wire import Proposal, ProposalAnswer
from siem.store.faults import fault
from siem.store.protocol import Conflict, Document

WANTED, PROPOSED = "proposing", "proposed"
"""Kinds of records: what people want proposed, until it is sent; and of each campaign and operator
what was proposed, with the answers."""
HUB = "hub"
"""Who proposes where a setting says so."""
COUNTS_FOR = timedelta(hours=24)
"""So long a proposal counts; what was done by then ends by the operator's own playbook."""
BY_ITSELF_FROM = "high"
"""Severity of a campaign, as its operator was told of it, from which the hub proposes by itself."""
OF_CAMPAIGN_MAX = 20
"""Proposals to one operator for one campaign; the oldest answered one makes room."""
WANTED_MAX = 100
LOOKED_AT = 20
"""Shares in which a token is looked for."""
REASON_MAX = 500
ADDRESSES = frozenset({"source.token", "destination.token"})
EXACT = "j:"
TRIES = 5
_LINE = re.compile(r"[^\x00-\x1f\x7f]+")


class Playbook(NamedTuple):
    """What may be proposed."""

    name: str
    """By which operators know it: the name of the file that ships."""
    action: str
    """In words."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a person of the city wants proposed."""

    campaign: str
    operators: tuple[str, ...]
    playbook: str
    action: str
    reason: str
    by: str
    at: datetime


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What was proposed to an operator, and what it answered last."""

    id: str
    playbook: str
    action: str
    indicator: str
    reason: str
    by: str
    at: datetime
    until: datetime
    is_sent: bool = False
    state: str = ""
    why: str = ""
    answered: datetime | None = None

    @property
    def is_over(self) -> bool:
        """Whether the operator has said its last word on it."""
        return self.state not in ("", "planned", "approved", "applied")

    def answer(self, now: datetime) -> str:
        """In words; empty: none yet."""
        if not self.state:
            return "No answer before it ended" if self.until < now else ""
        return in_words(self.state, self.why)


class _Of(msgspec.Struct, frozen=True, kw_only=True):
    """All that was proposed to one operator for one campaign."""

    at: datetime
    given: tuple[Given, ...] = ()


class Proposals:
    """Sends what is wanted, and keeps what is answered; of the active process.

    Args:
        commons: The common store.
        send: Leaves an envelope for an operator.
        clock: The hub's time.
        by_itself: What is proposed for every severe campaign with an address; None: nothing.
    """

    def __init__(
        self,
        commons: Commons,
        send: Send,
        clock: Callable[[], datetime],
        by_itself: Playbook | None = None,
    ) -> None:
        self._commons = commons
        self._records = commons.records
        self._send = send
        self._clock = clock
        self._by_itself = by_itself

    def step(self) -> int:
        """Send what people want; returns how many envelopes were left."""
        count = 0
        for name, kept in list(self._records.all(WANTED)):
            wanted = msgspec.convert(kept.value, Wanted)
            for operator in wanted.operators:
                count += self._propose(operator, wanted, name)
            with suppress(Conflict):
                self._records.delete(WANTED, name, kept.version)
        return count

    def told(self, operator: str, campaign: str, letter: Document) -> None:
        """An operator was just told of a campaign: propose to it, where the setting says so."""
        way = self._by_itself
        severity = str(letter.get("finding.severity", "low"))
        if way is None or severity_rank(severity) < severity_rank(BY_ITSELF_FROM):
            return
        wanted = Wanted(
            campaign=campaign, operators=(operator,), playbook=way.name, action=way.action,
            reason=f"{letter.get('finding.title', 'Campaign')}, {severity}", by=HUB,
            at=self._clock(),
        )  # fmt: skip
        self._propose(operator, wanted, way.name, needs_address=True)

    def _propose(
        self, operator: str, wanted: Wanted, name: str, *, needs_address: bool = False
    ) -> bool:
        """Leave it for an operator, once; False: it was, or there is nothing that it may know."""
        id = hashlib.sha256(f"{wanted.campaign}\0{operator}\0{name}".encode()).hexdigest()[:32]
        of, version = self._of(operator, wanted.campaign)
        one = next((one for one in of.given if one.id == id), None)
        told = said_of(self._records, operator, wanted.campaign)
        if told is None or (one is not None and one.is_sent):
            return False
        if one is None:
            indicator = self._address(operator, told)
            if needs_address and not indicator:
                return False
            now = self._clock()
            one = Given(
                id=id, playbook=wanted.playbook, action=wanted.action, indicator=indicator,
                reason=wanted.reason, by=wanted.by, at=now, until=now + COUNTS_FOR,
            )  # fmt: skip
            self._keep(operator, wanted.campaign, _with(of, one), version)
            fault("proposal-before-letter")
        payload = Proposal(
            id=id, operator=operator, playbook=one.playbook, action=one.action,
            indicator=one.indicator, reason=one.reason, by=one.by,
        )  # fmt: skip
        self._send(
            operator, "proposal", msgspec.to_builtins(payload), share_id=wanted.campaign,
            tlp=told.tlp, pap=told.pap, derived_from=told.shares, expires=one.until,
        )  # fmt: skip
        fault("proposal-after-letter")
        self._change(operator, wanted.campaign, id, is_sent=True)
        return True

    def _address(self, operator: str, told: ToldOf) -> str:
        """A token of an address that joins the campaign and that the operator has shared itself."""
        joined = {one for one in told.tokens if one.startswith(EXACT)}
        own = Rights(audiences=(), tlp=(), own=operator, operators=(operator,))
        for id in reversed(told.shares[-LOOKED_AT:]):
            share = self._commons.get(own, id) or {}
            names: dict[str, set[str]] = {}
            for name, token in tokens_in(share):
                names.setdefault(token, set()).add(name)
            for token, fields in names.items():
                if token in joined and fields <= ADDRESSES:
                    return token
        return ""

    def answered(self, operator: str, campaign: str, payload: Mapping[str, Any]) -> None:
        """Keep how a proposal stands at an operator; said twice it changes nothing.

        Raises:
            Refused: it is no answer, or of what was not proposed to this operator.
        """
        where = f"operator {operator}"
        try:
            said = msgspec.convert(payload, ProposalAnswer)
        except msgspec.ValidationError as error:
            what = f"no answer to a proposal: {str(error)[:200]}"
            raise Refused(400, what, where, "Update the node.") from error
        is_known = said.state != "new" and self._change(
            operator, campaign, said.proposal,
            state=said.state, why=said.why, answered=self._clock(),
        )  # fmt: skip
        if not is_known:
            raise Refused(403, "an answer to what was not proposed", where, "Answer what was.")

    # ---- records

    def _of(self, operator: str, campaign: str) -> tuple[_Of, str | None]:
        found = self._records.get(PROPOSED, _name(operator, campaign))
        if found is None:
            return _Of(at=self._clock()), None
        return msgspec.convert(found.value, _Of), found.version

    def _keep(self, operator: str, campaign: str, of: _Of, version: str | None) -> None:
        value = msgspec.to_builtins(msgspec.structs.replace(of, at=self._clock()))
        self._records.put(PROPOSED, _name(operator, campaign), value, version)

    def _change(self, operator: str, campaign: str, id: str, **changes: Any) -> bool:
        """Change one of them; False: there is none such."""
        for _ in range(TRIES):
            of, version = self._of(operator, campaign)
            if not any(one.id == id for one in of.given):
                return False
            given = tuple(
                msgspec.structs.replace(one, **changes) if one.id == id else one for one in of.given
            )
            with suppress(Conflict):  # an answer came while it was marked as sent
                self._keep(operator, campaign, _Of(at=of.at, given=given), version)
                return True
        raise TransientError("a record that changes all the time", "proposal", "It comes again.")


# ---- for the console


def want(records: Records, wanted: Wanted, operators: Iterable[str]) -> None:
    """Have it proposed by the active process.

    Args:
        records: The hub's memory.
        wanted: What a person asks for.
        operators: All that are enrolled; none of the others may be named to one.

    Raises:
        InputError: nothing of it may be proposed.
    """
    if not wanted.operators:
        raise InputError("no operator is chosen", "operator", "Choose one that was told of it.")
    for operator in wanted.operators:
        if not said_of(records, operator, wanted.campaign):
            what = f"{operator[:60]} was not told of this campaign"
            todo = "Its shares, or those of others, are not for it to know; call it instead."
            raise InputError(what, "operator", todo)
        _check_anew(records, wanted, operator)
    if not 0 < len(wanted.reason) <= REASON_MAX or not _LINE.fullmatch(wanted.reason):
        what = f"the reason is empty, no line, or longer than {REASON_MAX} characters"
        raise InputError(what, "reason", "Say why, in a line.")
    if named := sorted(one for one in operators if _names(wanted.reason, one)):
        what = f"the reason names an operator: {', '.join(named)}"
        raise InputError(what, "reason", "Each of them reads it; leave names out.")
    if sum(1 for _ in records.all(WANTED)) >= WANTED_MAX:
        what = "many proposals wait to be sent"
        raise TransientError(what, "campaigns", "Does the process of the hub run? Try again.")
    said = msgspec.to_builtins(wanted)
    name = hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()[:32]
    with suppress(Conflict):  # the same form, sent twice
        records.put(WANTED, name, said, None)


def _names(reason: str, operator: str) -> bool:
    """Whether it stands there as a word; names have dots and dashes, too."""
    word = rf"(?<![a-z0-9]){re.escape(operator)}(?![a-z0-9])"
    return re.search(word, reason.lower()) is not None


def _check_anew(records: Records, wanted: Wanted, operator: str) -> None:
    """Refuse what was proposed already and is not over."""
    open_ = [
        one.playbook
        for _, one in given(records, wanted.campaign, (operator,))
        if not one.is_over and one.until > wanted.at
    ]
    waits = [one.playbook for one in waiting(records, wanted.campaign) if operator in one.operators]
    if wanted.playbook in (*open_, *waits):
        what = f"{wanted.playbook} was proposed to {operator} for this campaign already"
        raise InputError(what, "operator", "See what it answers, or leave it out.")


def waiting(records: Records, campaign: str) -> Iterator[Wanted]:
    """What is wanted of a campaign and not sent yet."""
    for _, kept in records.all(WANTED):
        if kept.value.get("campaign") == campaign:
            yield msgspec.convert(kept.value, Wanted)


def given(records: Records, campaign: str, operators: Iterable[str]) -> Iterator[tuple[str, Given]]:
    """What was proposed of a campaign, with the answers."""
    for operator in operators:
        if found := records.get(PROPOSED, _name(operator, campaign)):
            for one in msgspec.convert(found.value, _Of).given:
                yield operator, one


def said_of(records: Records, operator: str, campaign: str) -> ToldOf | None:
    """What an operator was told of a campaign and still holds; None: nothing."""
    found = records.get(TOLD, _name(operator, campaign))
    told = msgspec.convert(found.value, ToldOf) if found else None
    return told if told is not None and told.what != "withdrawn" and told.shares else None


def _name(operator: str, campaign: str) -> str:
    return f"{campaign[:64]}/{operator}"


def _with(of: _Of, one: Given) -> _Of:
    kept: Sequence[Given] = of.given
    while len(kept) >= OF_CAMPAIGN_MAX:
        oldest = next((each for each in kept if each.answered), kept[0])
        kept = [each for each in kept if each is not oldest]
    return _Of(at=of.at, given=(*kept, one))
