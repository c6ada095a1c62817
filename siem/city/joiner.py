"""The joiner: hears what operators share, joins it, and writes the campaigns that come of it.

What is shared waits in a short queue; one thread takes it out. A withdrawal is mended before it is
answered: its receipt says what rested on the share.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from cityward.errors import CitywardError
from cityward.fields import SCHEMA_VERSION
from detectors.sigma.rule import RuleSet
from siem.city.campaigns import OURS, Campaigns
from siem.city.commons import CITY, CITY_SOC, Commons, Write
from siem.city.joins import HORIZON, Joins, News, id_of
from siem.city.known import Link
from siem.sharing.wire import Heartbeat
from siem.store.protocol import Document, Range

WAITING_MAX = 5_000
"""Shares that wait to be joined; with more, who takes envelopes waits too."""
WAIT_S = 2.0
BATCH = 1_000
SEARCHED = 20
"""Share ids in one search for campaigns that rest on them."""
TIDY_EVERY = timedelta(minutes=1)
SETTLING = timedelta(minutes=6)
"""After a hub began, operators have so long to be heard of: it may be we who were away."""

log = logging.getLogger(__name__)


class Joiner:
    """What is joined at this hub; any thread may tell it of shares.

    Args:
        commons: The common store.
        campaigns: Writes what was found.
        rules: The correlations of the hub.
        links: How operators are linked now.
        clock: The hub's time.
    """

    def __init__(
        self,
        commons: Commons,
        campaigns: Campaigns,
        rules: RuleSet,
        links: Callable[[], Sequence[Link]],
        clock: Callable[[], datetime],
    ) -> None:
        self._commons = commons
        self._campaigns = campaigns
        self._rules = rules
        self._links = links
        self._clock = clock
        self._joins = Joins(rules)
        self._waiting: queue.Queue[Document] = queue.Queue(WAITING_MAX)
        self._turn = threading.RLock()
        self._owed: list[News] = []
        """What the store did not take yet."""
        self._has_missed = False
        self._began: datetime | None = None
        self._tidied = clock()

    def __len__(self) -> int:
        return len(self._joins)

    # ---- heard from the exchange

    def shared(self, document: Document) -> None:
        """A share is durable; it may have been told before."""
        try:
            self._waiting.put(document, timeout=WAIT_S)
        except queue.Full:
            # It is in the store, and will be found there.
            self._has_missed = True

    def withdrawn(self, operator: str, share_ids: Sequence[str]) -> Mapping[str, Any]:
        """Shares are gone; what rests on them is mended when this returns."""
        with self._turn:
            self._take_waiting()
            # What another has shared under such an id is answered like what nobody has.
            ours = [one for one in share_ids if not self._is_of_another(one, operator)]
            for at in range(0, len(ours), SEARCHED):
                self._recall(ours[at : at + SEARCHED])
            for one in ours:
                self._joins.remove(one)
            return self._settle()

    def heard(self, operator: str, heartbeat: Heartbeat) -> None:
        """An operator is there: who is not is looked for by `look`."""

    # ---- what the hub's loop does

    def rebuild(self) -> None:
        """Begin anew from the common store: after a start, and when this hub takes over."""
        with self._turn:
            now = self._clock()
            self._joins, self._owed, members = Joins(self._rules), [], set[str]()
            for one in self._commons.scan(now - HORIZON):
                if "cw.campaign.join" not in one:
                    self._joins.add(one, now)
                elif "cw.share.derived_from" in one:
                    self._joins.know(one["cw.share.id"])
                    members.update(one["cw.share.derived_from"])
            self._add_members(members)
            self._settle()
            self._began = now

    def stop(self) -> None:
        """This hub is not the active one any more."""
        self._began = None

    def step(self, wait_s: float = 0.2) -> None:
        """Join what was shared; returns at once if there is something, else after a while."""
        try:
            first = self._waiting.get(timeout=wait_s)
        except queue.Empty:
            first = None
        if self._began is None:
            return
        if self._has_missed:
            self._has_missed = False
            self.rebuild()
        with self._turn:
            if first is not None:
                self._joins.add(first, self._clock())
            self._take_waiting()
            self._settle()
            if (now := self._clock()) - self._tidied > TIDY_EVERY:
                self._tidied = now
                self._joins.tidy(now)

    def look(self) -> None:
        """Keep which operators fell silent, as shares of the city's own that are joined too."""
        now = self._clock()
        if self._began is None or now - self._began < SETTLING:
            return
        for link in self._links():
            if link.state == "silent" and link.heartbeat is not None:
                document = _loss(link, link.heartbeat)
                there = self._commons.get(OURS, document["cw.share.id"])
                if there is None and self._commons.put([Write(document, 1)]) == ["written"]:
                    self.shared(document)

    # ----

    def _take_waiting(self) -> None:
        now = self._clock()
        for _ in range(BATCH):
            try:
                self._joins.add(self._waiting.get_nowait(), now)
            except queue.Empty:
                return

    def _settle(self) -> dict[str, int]:
        """Write what has changed; what the store does not take now is owed."""
        news = self._joins.news()
        if news.found or news.gone:
            self._owed.append(news)
        done: dict[str, int] = {}
        while self._owed:
            done = self._campaigns.take(self._owed[0], self._joins)
            del self._owed[0]
        return done

    def _is_of_another(self, share_id: str, operator: str) -> bool:
        found = self._commons.get(CITY_SOC, share_id)
        whose = found["cw.operator"] if found else self._joins.whose(share_id)
        return whose not in ("", operator)

    def _recall(self, share_ids: Sequence[str]) -> None:
        """Campaigns of long ago that rest on these are taken up again, to be mended."""
        words = " or ".join(_quoted(one) for one in share_ids)
        page = self._commons.search(OURS, f"cw.share.derived_from:({words})", Range(), limit=1_000)
        for one in page.rows:
            self._joins.know(one["cw.share.id"])
            self._add_members(one["cw.share.derived_from"])

    def _add_members(self, ids: Iterable[str]) -> None:
        now = self._clock()
        for one in ids:
            if one not in self._joins and (found := self._commons.get(CITY_SOC, one)):
                self._joins.add(found, now, is_member=True)


def run(joiner: Joiner, is_active: Callable[[], bool], stop: threading.Event) -> None:
    """Join until `stop` is set, while this hub is the active one."""
    was_active = False
    while not stop.is_set():
        try:
            if is_active() and not was_active:
                joiner.rebuild()
            elif was_active and not is_active():
                joiner.stop()
            was_active = is_active()
            joiner.step()
        except CitywardError as error:
            log.warning("Nothing is joined now: %s.", error.what)
            stop.wait(1.0)
        except Exception:  # a fault of ours must not end the joining for good
            log.exception("The joins failed.")
            stop.wait(1.0)


def _quoted(id: str) -> str:
    """An id as a phrase of the query bar, whatever its characters."""
    escaped = id.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _loss(link: Link, since: datetime) -> Document:
    """That an operator fell silent."""
    id = id_of(f"heartbeat {link.operator} {since.isoformat()}")
    return {
        "cw.schema": SCHEMA_VERSION,
        "cw.share.id": id,
        "cw.share.revision": 1,
        "cw.share.audiences": ["city-soc"],
        "cw.operator": CITY,
        "cw.campaign.operators": [link.operator],
        **({"cw.sector": link.sector} if link.sector else {}),
        "cw.marking.tlp": "amber",
        "cw.marking.pap": "green",
        "event.action": "heartbeat_lost",
        "finding.type": "health",
        "finding.title": f"No heartbeat of {link.operator}",
        "finding.severity": "medium",
        "finding.impact": ["loss_of_view"],
        "finding.mode": link.mode,
        "finding.first_seen": since,
        "finding.last_seen": since,
    }
