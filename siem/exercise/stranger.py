"""Reads a node over HTTP like anybody who was told a name and a password, and judges it."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from http.cookiejar import CookieJar
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from siem.exercise.nodes import PERSON, Child, OneNode
from siem.exercise.saltmere import captures_of
from siem.exercise.steps import Expected
from siem.store.protocol import Document

TIMEOUT_S = 60.0
"""A console on a busy machine is slow; one that has ended refuses at once."""
READ_ATTEMPTS = 3
ROWS = 1_000
MODEL = "model."
"""Ids of models begin so."""
SILENCE = "model.silence."
RESPONSE = "response."
"""Of what playbooks say: that a step was refused, that they need a person."""
_TOKEN = re.compile(r'name="csrf" value="([^"]+)"')


class Visitor:
    """A person at a console, of the hub or of a node.

    Args:
        child: The process; its console answers.
        person: Who it is.
    """

    def __init__(self, child: Child, person: str = PERSON) -> None:
        self._child = child
        self._person = person
        self.is_signed_in = False
        jar = urllib.request.HTTPCookieProcessor(CookieJar())
        # No proxy of the environment stands between us and our own machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), jar)

    def sign_in(self) -> None:
        """Sign in by the form.

        Raises:
            TransientError: the console does not answer, or lets nobody in.
        """
        said = {"name": self._person, "password": self._child.password}
        self._post("sign-in", "sign-in", said)
        self.is_signed_in = True

    def shared(self) -> list[Document]:
        """What operators have shared, at the hub."""
        return self._rows("shared.json", {"from": "all", "limit": ROWS})

    def campaigns(self) -> list[Document]:
        """What the hub has joined."""
        return self._rows("campaigns.json", {"from": "all", "limit": ROWS})

    def answers(self, campaign: str) -> list[Document]:
        """What operators answered to what the city proposed, at the hub."""
        told = self._document(f"campaigns/{quote(campaign)}.json")["told"]
        return [one for one in told if one["answer"]]

    def _post(self, page: str, path: str, said: Mapping[str, str]) -> None:
        """Send a form as its page shows it."""
        found = _TOKEN.search(self._read(page).decode())
        if found is None:
            raise self._child.fault(f"shows no form at {page}")
        self._read(path, urlencode({**said, "csrf": found[1]}).encode())

    def _rows(self, path: str, asked: Mapping[str, Any] | None = None) -> list[Document]:
        rows: list[Document] = self._document(path, asked)["rows"]
        return rows

    def _document(self, path: str, asked: Mapping[str, Any] | None = None) -> Document:
        said = self._read(f"{path}?{urlencode(asked or {})}")
        document: Document = msgspec.json.decode(said)
        return document

    def _read(self, path: str, form: bytes | None = None) -> bytes:
        attempts = 1 if form else READ_ATTEMPTS
        while True:
            attempts -= 1
            try:
                with self._opener.open(self._child.address + path, form, TIMEOUT_S) as answer:
                    return bytes(answer.read())
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                if attempts and _is_slow(error):
                    continue
                at = self._child.address
                self._child.answers()  # one that was started again may have another address
                raise self._child.fault(f"does not answer at {at}: {error}") from error


def _is_slow(error: Exception) -> bool:
    return isinstance(getattr(error, "reason", error), TimeoutError)


class Stranger(Visitor):
    """A person at the console of one node.

    Args:
        node: The node; its console answers.
    """

    def __init__(self, node: OneNode) -> None:
        super().__init__(node)
        self.node = node

    def sources(self) -> list[Document]:
        """State of every source."""
        return self._rows("health.json")

    def findings(self) -> list[Document]:
        """All single findings."""
        return self._rows(
            "findings.json", {"group": "none", "status": "all", "from": "all", "limit": ROWS}
        )

    def leaving(self) -> int:
        """How many findings may leave, as the page Sharing shows it."""
        rows = self._rows("sharing.json", {"since": "24h", "limit": ROWS})
        return sum(bool(row["share_id"]) for row in rows)

    def events(self, query: str) -> int:
        """How many events match a query of the query bar."""
        asked = {"q": query, "from": "all", "limit": 1}
        return int(self._document("hunt.json", asked)["total"])


def accounted(stranger: Stranger, sources: Iterable[Document]) -> Counter[str]:
    """Records of each source that became an event, went into a flow, or were rejected.

    Every line, datagram and document becomes at least one event, and its first has the number 0;
    a packet goes into a flow, so of captures the node's own count is taken.
    """
    taps = {
        name
        for feed in stranger.node.place.feeds
        if feed.kind == "tap"
        for name in captures_of(feed)
    }
    found: Counter[str] = Counter()
    for state in sources:
        source = state["source"]
        if source in taps:
            found[source] = state["records"]
        else:
            query = f'observer.name:"{source}" AND cw.record.number:0'
            found[source] = stranger.events(query) + state["rejected"]
    return found


class Verdict(msgspec.Struct, frozen=True):
    """What came of the evening, for one node or for all."""

    operators: int = 0
    sources: int = 0
    records: int = 0
    events: int = 0
    rejected: int = 0
    findings: int = 0
    expected: int = 0
    found: int = 0
    missed: int = 0
    false: int = 0
    lost: int = 0
    shared: int = 0
    """Findings that left their operator."""
    campaigns: int = 0
    """What the hub made of them."""
    kept_back: int = 0
    """Findings that stayed at home."""
    runs: dict[str, int] = {}
    """Of playbooks, by their state."""
    effects_applied: int = 0
    effects_undone: int = 0
    in_force: int = 0
    first_finding_s: float | None = None
    """Seconds from the start of the command to the first finding that was seen over HTTP."""
    peak_rss_mb: int = 0

    @property
    def holds(self) -> bool:
        """Whether everything that was promised came, and nothing else."""
        is_clean = self.effects_undone == self.effects_applied and not self.in_force
        return is_clean and not (self.missed or self.false or self.lost)


def is_of(finding: Document, expected: Expected, rule_ids: Mapping[str, str]) -> bool:
    """Whether a finding is the one that a step promised."""
    return finding["rule.id"] == rule_ids[expected.rule] and _names(finding, expected)


def is_noticed(finding: Document, expected: Expected) -> bool:
    """Whether a model noticed a step by itself: it names who or what the step's findings name.

    What a model says depends on all that it learnt before, so no step promises it; but it is not
    false either.
    """
    is_model = finding["rule.id"].startswith(MODEL)
    return is_model and bool(expected.field) and _names(finding, expected)


def is_after(finding: Document, ended: datetime) -> bool:
    """Whether a model says that it is silent since the evening ended, which is true."""
    is_silence = finding["rule.id"].startswith(SILENCE)
    return is_silence and datetime.fromisoformat(finding["finding.last_seen"]) > ended


def _names(finding: Document, expected: Expected) -> bool:
    value = finding.get(expected.field) if expected.field else expected.value
    return expected.value in value if isinstance(value, list) else value == expected.value


def judge(
    stranger: Stranger,
    given: Mapping[str, int],
    promised: Sequence[Expected],
    rule_ids: Mapping[str, str],
    *,
    ended: datetime,
    is_held_back: bool = False,
) -> tuple[Verdict, list[Expected], list[Document], Counter[str]]:
    """Compare what a node shows with what it was given and what was promised.

    Args:
        stranger: Somebody who is signed in there.
        given: Records by source, as the player counted them.
        promised: The findings that must be there.
        rule_ids: Id of each rule by its path in the library.
        ended: When the last record was given.
        is_held_back: Whether playbooks do not get their way; only then they may say so.

    Returns:
        The verdict, what is missed, the findings that nobody promised, and records lost by source.
    """
    sources, findings = stranger.sources(), stranger.findings()
    there = accounted(stranger, sources)
    missed = [one for one in promised if not any(is_of(row, one, rule_ids) for row in findings)]
    false = [
        row
        for row in findings
        if not (is_held_back and row["rule.id"].startswith(RESPONSE))
        and not is_after(row, ended)
        and not any(is_of(row, one, rule_ids) or is_noticed(row, one) for one in promised)
    ]
    lost = Counter(given) - there
    verdict = Verdict(
        operators=1,
        sources=len(sources),
        records=sum(given.values()),
        events=sum(state["events"] for state in sources),
        rejected=sum(state["rejected"] for state in sources),
        findings=len(findings),
        expected=len(promised),
        found=len(promised) - len(missed),
        missed=len(missed),
        false=len(false),
        lost=lost.total(),
    )
    return verdict, missed, false, lost
