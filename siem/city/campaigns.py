"""Campaigns: what the hub says of shares that belong together, to whom, and how much of it.

The city's SOC gets the whole of it. For peers and for each authority there is a document of its
own, made only of shares that they may know, without operators, tokens and small counts: so no
query, count or sort over it can tell more than it says. Each operator whose shares are in it gets a
letter that says which of its own shares are meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from cityward.errors import TransientError
from cityward.fields import SCHEMA_VERSION
from cityward.finding import SEVERITIES, severity_rank
from detectors.sigma.sentence import timespan
from siem.city.commons import CITY, TLP, Commons, Records, Rights, Write
from siem.city.joins import Found, Joins, Kept, News, id_of
from siem.city.reading import OPEN_TLP
from siem.sharing.envelope import Kind, payload_hash
from siem.store.protocol import AUTHORITIES, Document

TOLD = "told"
"""Kind of the records of what an operator was told of a campaign."""
SOC = "city-soc"
OPEN_TO = ("peers", *AUTHORITIES)
CONCERNED_TLP = (*OPEN_TLP, "amber")
"""What the operators concerned may see of each other's shares, if they are for peers."""
PAP = ("clear", "green", "amber", "red")
MEMBERS_MAX, TOKENS_MAX, TECHNIQUES_MAX = 500, 50, 20
SAID_MAX = 50
"""Shares of an operator that a proposal may name."""
TITLE_MAX = 120
ABSENT_MAX = 100_000
WRITES = 100
"""Documents that are written at once."""
COARSE = 0.75
"""Share of the confidence that is left where for some only network or registered domain are the
same: behind those of a large provider are many who have nothing to do with each other."""
OURS = Rights(audiences=(), tlp=(), own=CITY, operators=(CITY,))
_SAME = ("cw.share.revision", "finding.modified")
"""What may differ in two documents that say the same."""

WHY = {
    "token": "{operators} saw the same {indicator} within {span}",
    "sequence": "{operators} saw {techniques} in this order within {span}",
    "place": "cyber and physical findings of {operators} came from {place} within {span}",
    "heartbeat": "{operators} fell silent within {span}",
}
"""Why a campaign was joined."""
EXACT = "indicator"
SOME = "network or domain, some of them the same address,"
NONE = "network or domain, not the same address,"
"""What is the same, if not one indicator for all of them."""
COARSE_NAME = "Same network or domain at several operators"


class Send(Protocol):
    """Leaves an envelope for an operator, see `siem/city/letters.py`."""

    def __call__(
        self,
        operator: str,
        kind: Kind,
        payload: Mapping[str, Any],
        *,
        share_id: str = "",
        revision: int = 0,
        audiences: Sequence[str] = (),
        tlp: str = "",
        pap: str = "",
        derived_from: Sequence[str] = (),
        expires: datetime | None = None,
    ) -> int:
        """Durable when it returns the number of the envelope."""
        ...


class ToldOf(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator was told last of a campaign."""

    what: str
    """`campaign`, `update`, `withdrawn`."""
    at: datetime
    revision: int
    hash: str
    """Of what was said, so that nothing is said twice."""
    shares: tuple[str, ...] = ()
    """Its own shares that it was told are meant, the newest …"""
    tokens: tuple[str, ...] = ()
    """… its own tokens that join them …"""
    tlp: str = ""
    pap: str = ""
    """… and the marking: a proposal says no more than that."""


class Campaigns:
    """Writes campaigns, and tells operators of them.

    Args:
        commons: The common store.
        send: Leaves an envelope for an operator.
        clock: The hub's time.
        threshold: Counts of operators below it are not told.
        then: Hears what an operator was told: who, of which campaign, and what.
    """

    def __init__(
        self,
        commons: Commons,
        send: Send,
        clock: Callable[[], datetime],
        threshold: int = 3,
        then: Callable[[str, str, Document], None] = lambda operator, campaign, letter: None,
    ) -> None:
        self._commons = commons
        self._records = commons.records
        self._send = send
        self._clock = clock
        self._threshold = threshold
        self._then = then
        self._absent: set[str] = set()
        """What is known not to be there, so that it need not be removed."""

    def take(self, news: News, joins: Joins) -> dict[str, int]:
        """Write what has changed, and tell those concerned; the same news twice change nothing.

        Returns:
            How many campaigns were written, and how many removed.

        Raises:
            TransientError: the store does not answer; the news have to be taken again.
        """
        gone = self._end(news.gone)
        writes: list[Write] = []
        removed: list[str] = []
        left: list[tuple[str, str]] = []
        for found in news.found:
            there = self._commons.get(OURS, found.id)
            left += [(one, found.id) for one in {*_operators_in(there)} - {*operators_of(found)}]
            writes += self._changed(whole(found), there)
            for audience in OPEN_TO:
                id = variant(found.id, audience)
                seen = _seen(found, audience, joins)
                if seen is not None:
                    document = opened(seen, id, audience, self._threshold)
                    writes += self._changed(document, self._commons.get(OURS, id))
                else:
                    removed.append(id)
        self._put(writes)
        self._absent -= {one.document["cw.share.id"] for one in writes}
        if stale := [one for one in removed if one not in self._absent]:
            self._commons.remove(stale)
            self._absent.update(stale if len(self._absent) < ABSENT_MAX else ())
        for operator, campaign in left:
            self._tell_end(operator, campaign)
        for found in news.found:
            for operator in operators_of(found):
                self._tell(operator, found, joins)
        written = sum("cw.campaign.operators" in one.document for one in writes)
        return {"campaigns_changed": written, "campaigns_removed": gone}

    # ---- documents

    def _changed(self, document: Document, there: Document | None) -> Iterator[Write]:
        """What is to be written, unless it says what is there already."""
        if there is None or _said(there) != _said(document):
            revision = int(there["cw.share.revision"]) + 1 if there else 1
            modified = self._clock() if SOC in document["cw.share.audiences"] else None
            # Who gets times by the hour must not learn from this one when a share came.
            own = {
                "cw.share.revision": revision,
                "finding.modified": modified or _hour(self._clock()),
            }
            yield Write({**document, **own}, revision)

    def _put(self, writes: Sequence[Write]) -> None:
        for at in range(0, len(writes), WRITES):
            if "later" in self._commons.put(writes[at : at + WRITES]):
                raise TransientError("the store is busy", "campaigns", "It is tried again.")

    def _end(self, ids: Iterable[str]) -> int:
        """Nothing holds these together any more."""
        count = 0
        for id in ids:
            for operator in _operators_in(self._commons.get(OURS, id)):
                self._tell_end(operator, id)
            count += self._commons.remove([id])
            self._commons.remove([variant(id, audience) for audience in OPEN_TO])
        return count

    # ---- letters

    def _tell(self, operator: str, found: Found, joins: Joins) -> None:
        """Tell an operator, as far as the others allow it; what it was told already stays so."""
        seen = joins.within(found, lambda one: _may_know(one, operator))
        own = [one for one in seen.shares if one.operator == operator] if seen else []
        if seen is None or not own or set(operators_of(seen)) == {operator}:
            return self._tell_end(operator, found.id)
        payload = letter(seen, operator, self._threshold)
        others = [one for one in seen.shares if one.operator != operator]
        self._say(
            operator,
            found.id,
            payload,
            tlp=_strictest(others, "cw.marking.tlp", TLP),
            pap=_strictest(seen.shares, "cw.marking.pap", PAP),
            derived_from=[one.id for one in own][-MEMBERS_MAX:],
        )
        self._then(operator, found.id, payload)
        return None

    def _say(
        self,
        operator: str,
        campaign: str,
        payload: Document,
        *,
        tlp: str,
        pap: str,
        derived_from: Sequence[str],
    ) -> None:
        plain = msgspec.to_builtins(payload)
        hash_, name = payload_hash(plain), f"{campaign}/{operator}"
        found = self._records.get(TOLD, name)
        before = msgspec.convert(found.value, ToldOf) if found else None
        if before and before.hash == hash_:
            return
        revision = before.revision + 1 if before else 1
        kind: Kind = "update" if before else "share"
        self._send(
            operator, kind, plain,
            share_id=campaign, revision=revision, tlp=tlp, pap=pap, derived_from=derived_from,
        )  # fmt: skip
        said = ToldOf(
            what="update" if before else "campaign",
            at=self._clock(),
            revision=revision,
            hash=hash_,
            shares=tuple(derived_from)[-SAID_MAX:],
            tokens=tuple(payload["cw.campaign.tokens"]),
            tlp=tlp,
            pap=pap,
        )
        self._records.put(TOLD, name, msgspec.to_builtins(said), found.version if found else None)

    def _tell_end(self, operator: str, campaign: str) -> None:
        name = f"{campaign}/{operator}"
        found = self._records.get(TOLD, name)
        if found is None or found.value["what"] == "withdrawn":
            return
        before = msgspec.convert(found.value, ToldOf)
        revision = before.revision + 1
        self._send(operator, "withdraw", {"reason": "error"}, share_id=campaign, revision=revision)
        said = ToldOf(what="withdrawn", at=self._clock(), revision=revision, hash="")
        self._records.put(TOLD, name, msgspec.to_builtins(said), found.version)


def told(records: Records, campaign: str, operators: Iterable[str]) -> Iterator[tuple[str, ToldOf]]:
    """What operators were told of a campaign last."""
    for operator in operators:
        if found := records.get(TOLD, f"{campaign}/{operator}"):
            yield operator, msgspec.convert(found.value, ToldOf)


# ---- What is said of a campaign


def whole(found: Found) -> Document:
    """All of it, for the city's SOC."""
    titles = Counter(one.document.get("finding.title", "") for one in found.shares)
    common = max(titles, key=lambda one: (titles[one], one))
    operators = operators_of(found)
    names = f"{len(operators)} operators ({', '.join(operators)})"
    if len(operators) == 1:
        names = f"one operator ({operators[0]})"
    count = len(found.shares)
    return {
        **_shared_part(found, found.id, names),
        "finding.title": _titled(_name(found), common),
        "finding.description": f"{_why(found, names, _place(found))} It rests on {count} shares.",
        "finding.first_seen": found.shares[0].first,
        "finding.last_seen": max(one.last for one in found.shares),
        "finding.count": count,
        "cw.campaign.operators": operators,
        "cw.campaign.sectors": sectors_of(found.shares),
        "cw.campaign.tokens": list(found.tokens)[:TOKENS_MAX],
        "cw.share.derived_from": [one.id for one in found.shares][-MEMBERS_MAX:],
        "cw.share.audiences": [SOC],
        "cw.marking.tlp": _strictest(found.shares, "cw.marking.tlp", TLP),
    }


def opened(found: Found, id: str, audience: str, threshold: int) -> Document:
    """What peers or an authority get: no operator, no token, no small count, times by the hour."""
    hours = {
        "finding.first_seen": _hour(found.shares[0].first),
        "finding.last_seen": _hour(max(one.last for one in found.shares)),
    }
    return {
        **_open_part(found, id, threshold),
        **hours,
        "cw.share.audiences": [audience],
        "cw.marking.tlp": _strictest(found.shares, "cw.marking.tlp", TLP),
    }


def letter(found: Found, operator: str, threshold: int) -> Document:
    """What an operator whose shares are in it gets: the open part, and what is its own."""
    own = [one for one in found.shares if one.operator == operator]
    tokens = {token for one in own for token in one.tokens}
    return {
        **_open_part(found, found.id, threshold),
        "finding.first_seen": own[0].first,
        "finding.last_seen": max(one.last for one in own),
        "cw.campaign.tokens": [one for one in found.tokens if one in tokens][:TOKENS_MAX],
        "cw.share.derived_from": [one.id for one in own][-MEMBERS_MAX:],
    }


def _open_part(found: Found, id: str, threshold: int) -> Document:
    count = len(operators_of(found))
    is_told = count >= threshold
    names = f"{count} operators" if is_told else f"<{threshold} operators"
    return {
        **_shared_part(found, id, names),
        "finding.title": _name(found),
        "finding.description": _why(found, names, "one place"),
        **({"cw.campaign.sectors": sectors_of(found.shares)} if is_told else {}),
    }


def _shared_part(found: Found, id: str, names: str) -> Document:
    rule = found.rule
    techniques = dict.fromkeys(
        str(technique)
        for one in found.shares
        for technique in one.document.get("threat.technique.id", ())
    )
    return {
        "cw.schema": SCHEMA_VERSION,
        "cw.share.id": id,
        "cw.operator": CITY,
        "cw.campaign.join": found.join,
        "cw.analytic.type": "correlation",
        "cw.marking.pap": _strictest(found.shares, "cw.marking.pap", PAP),
        "finding.type": "correlation",
        "finding.severity": severity_of(found),
        "finding.confidence": confidence_of(found),
        "finding.cause": rule.own.cause,
        "finding.category": list(rule.own.category),
        "finding.impact": list(rule.own.impact),
        "finding.mode": found.shares[0].mode,
        "rule.id": rule.id,
        "rule.name": rule.analytic.name,
        **({"threat.technique.id": [*techniques][:TECHNIQUES_MAX]} if techniques else {}),
    }


def _why(found: Found, names: str, place: str) -> str:
    techniques = found.bursts[0].group[1][0].replace(",", ", ")
    said = WHY[found.join].format(
        operators=names,
        span=timespan(found.rule.timespan_s),
        techniques=techniques,
        place=place,
        indicator=_same(found),
    )
    return f"{said[0].upper()}{said[1:]}."


def _place(found: Found) -> str:
    return found.bursts[0].group[1][0]


def _titled(rule: str, common: str) -> str:
    title = f"{rule}: {common}" if common else rule
    return title if len(title) <= TITLE_MAX else f"{title[: TITLE_MAX - 1]}…"


def _name(found: Found) -> str:
    is_coarse = found.join == "token" and _same(found) != EXACT
    return COARSE_NAME if is_coarse else found.rule.analytic.name


def _same(found: Found) -> str:
    """What is the same: one indicator for all, or for some, or only what is around it."""
    exact = [one.members for one in found.bursts if one.group[1][0].startswith("j:")]
    if not exact:
        return NONE
    linked, before = exact[0], frozenset[str]()
    while linked != before:
        before = linked
        linked = linked.union(*(one for one in exact if not one.isdisjoint(linked)))
    is_all = all(one <= linked for one in exact)
    theirs = {one.operator for one in found.shares if one.id in linked}
    return EXACT if is_all and theirs == set(operators_of(found)) else SOME


def severity_of(found: Found) -> str:
    """The worst of the shares; of one indicator at several operators one step more."""
    worst = max(severity_rank(one.document.get("finding.severity", "low")) for one in found.shares)
    if found.join == "token" and _same(found) == NONE:
        return SEVERITIES[worst]
    if found.join == "token":
        # `fatal` is for people who were harmed, which no join can know.
        return SEVERITIES[max(worst, min(worst + 1, severity_rank("critical")))]
    return SEVERITIES[max(worst, severity_rank(found.rule.analytic.level))]


def confidence_of(found: Found) -> float:
    """The rule's; less where for some only the network around is the same."""
    is_coarse = found.join == "token" and _same(found) != EXACT
    return round(found.rule.own.confidence * (COARSE if is_coarse else 1.0), 2)


def operators_of(found: Found) -> list[str]:
    """Whose shares they are; of a lost heartbeat, whose it was."""
    named = {
        name
        for one in found.shares
        for name in (
            one.document["cw.campaign.operators"] if one.operator == CITY else (one.operator,)
        )
    }
    return sorted(named)


def _operators_in(campaign: Document | None) -> Sequence[str]:
    return campaign.get("cw.campaign.operators", ()) if campaign else ()


def sectors_of(shares: Iterable[Kept]) -> list[str]:
    """Their sectors."""
    return sorted({sector for one in shares if (sector := one.document.get("cw.sector"))})


def _seen(found: Found, audience: str, joins: Joins) -> Found | None:
    """A campaign as an audience outside the city's SOC may know it."""
    if found.join == "heartbeat":
        return None
    return joins.within(found, lambda one: _is_for(one, audience))


def variant(campaign: str, audience: str) -> str:
    """Id of what an audience gets of a campaign."""
    return id_of(f"{campaign} {audience}")


def _is_for(share: Kept, audience: str) -> bool:
    document = share.document
    return audience in document["cw.share.audiences"] and document["cw.marking.tlp"] in OPEN_TLP


def _may_know(share: Kept, operator: str) -> bool:
    document = share.document
    is_for_peers = "peers" in document["cw.share.audiences"]
    return share.operator == operator or (
        is_for_peers and document["cw.marking.tlp"] in CONCERNED_TLP
    )


def _strictest(shares: Iterable[Kept], name: str, order: Sequence[str]) -> str:
    said = [order.index(value) for one in shares if (value := one.document.get(name)) in order]
    return order[max(said, default=1)]


def _hour(time: datetime) -> datetime:
    return time.replace(minute=0, second=0, microsecond=0)


def _said(document: Document) -> Document:
    return {k: v for k, v in document.items() if k not in _SAME}
