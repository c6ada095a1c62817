"""Rules: what the node evaluates, what it cannot, and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from cityward.errors import CitywardError, InputError, Unsafe
from cityward.finding import SEVERITIES, VERDICTS
from siem.console import formats
from siem.console.access import Session
from siem.console.body import body_of
from siem.console.protocol import Sample, Samples
from siem.console.site import PAGE_MAX, ROWS_MAX, NodeSite, number_in, rules_of, see_other
from siem.console.triage import text
from siem.console.view import PAGE_ROWS, Chip, View, chart, path_of, share
from siem.store.protocol import OFF_IN_SETTINGS, Findings, Range, RuleState, Switch
from siem.store.query import quoted
from siem.store.rulebook import Draft

SORTS = ("title", "level", "state", "evaluated", "matches", "noise", "share")
CHARTED = timedelta(days=30)
RULEBOOK = "rulebook/"
"""Where what was deployed is said to stand."""
WRONG = ("false_positive", "benign")
RIGHT = ("true_positive", "suspicious")
GROUPS_MAX = 10_000
"""Groups of judged findings that are counted for the noise of rules."""
TO_SILENCE = (
    "If the finding was not right, change its verdict; set samples of others aside under Never to"
    " be silenced; or name the rule under rules.off in the settings file."
)
"""How a rule is switched off all the same, so that more than one click does it."""
_STATES = ("refused", "not evaluated", "on")


class Noise(msgspec.Struct, frozen=True):
    """What people said of the findings of a rule in 30 days."""

    wrong: int = 0
    """Called false or benign."""
    judged: int = 0

    @property
    def share(self) -> str:
        """In words; empty: nobody has judged any."""
        return share(self.wrong, self.judged) if self.judged else ""


QUIET = Noise()


class Rules:
    """The pages of rules."""

    def __init__(self, site: NodeSite) -> None:
        self.site = site
        self.node = site.node

    def listing(self, request: Request) -> Response:
        """All rules, as a page or for programs."""
        session = self.site.access.enter(request, "rules")
        form = formats.form_of(request)
        view = self.site.view_of(request)
        every = rules_of(self.node)
        noise: Mapping[str, Noise] = {}
        if session.may("findings"):
            tuned = self.node.tuning.tuned_at()
            noise = noise_of(self.node.findings, self.node.now(), tuned)
        rows = select(every, view, noise)
        limit = number_in(view.one("limit"), PAGE_ROWS, 0, ROWS_MAX if form else PAGE_MAX)
        offset = number_in(view.one("offset"), 0, 0, 1_000_000)
        shown = rows[offset : offset + limit]
        if form:
            self.site.exported(session, request)
            listed = [_listed(rule, noise.get(rule.id, QUIET)) for rule in shown]
            said = {"query": view.one("q"), "offset": offset, "limit": limit}
            return formats.rows(form, listed, len(rows), said, "rules")
        return self.site.page(
            request,
            session,
            "rules.html",
            title="Rules",
            current="rules",
            query_path="/rules",
            rows=shown,
            total=len(rows),
            offset=offset,
            limit=limit,
            every=len(every),
            states=Counter(rule.state for rule in every),
            noise=noise,
            quiet=QUIET,
            heavy=[rule for rule in every if rule.state == "on" and rule.heavy],
            drafts=self._drafts() if session.may("switch") else [],
            query_hint="Title, id, technique or log source",
        )

    def one(self, request: Request, rule_id: str) -> Response:
        """One rule with its text, as a page or as JSON."""
        session = self.site.access.enter(request, "rules")
        form = formats.form_of(request)
        rule = next((one for one in self.node.rules() if one.id == rule_id), None)
        if rule is not None:
            rule = msgspec.structs.replace(rule, text=self._text_of(rule))
        if rule is None:
            what = f"no rule has the id {rule_id[:80]}"
            return self.site.unknown(request, session, "rules", what, "Look in the list of rules.")
        view = self.site.view_of(request)
        samples = self._samples(rule, run=bool(view.one("samples")))
        if form:
            cases = msgspec.to_builtins(samples) if samples else None
            return formats.json(msgspec.to_builtins(rule) | {"samples": cases})
        found = View("/findings", ()).adding(Chip("rule.id", rule.id))
        return self.site.page(
            request,
            session,
            "rule.html",
            title=rule.title,
            current="rules",
            rule=rule,
            samples=samples,
            **self._found(session, rule),
            switch=next((s for s in self.node.accounts.switches() if s.rule == rule.id), None),
            is_fixed=rule.reason == OFF_IN_SETTINGS,
            notice=view.one("done") if view.one("done") in ("on", "off") else "",
            lines=[parts(line) for line in rule.text.splitlines()[:2000]],
            findings=found if session.may("findings") else "",
            fault_line=_fault_line(rule),
            filters=self.node.tuning.filters(rule.id),
            protected=self.node.tuning.protected(rule.id),
            right=self._right(rule.id),
            to_silence=TO_SILENCE,
            foreign=len(self.node.releases.foreign(rule.id)),
        )

    def _text_of(self, rule: RuleState) -> str:
        """The text that counts: what was deployed here, or its file."""
        source = self.node.tuning.source(rule.id) if is_deployed(rule) else None
        return source.counts if source is not None else self.node.rule_text(rule)

    def _samples(self, rule: RuleState, *, run: bool) -> Samples | None:
        """Its samples; those of what was deployed stand beside no file."""
        if not is_deployed(rule) or rule.kind == "filter":
            return self.node.samples(rule, run=run)
        if not run:
            return None
        newest = next(iter(self.node.tuning.history(rule.id)), None)
        if newest is None:
            return Samples("", reason="The rule cannot be loaded.")
        try:
            outcomes = self.node.tuning.examine(newest.text, newest.samples).outcomes
        except CitywardError as error:
            return Samples("", reason=f"They cannot be read: {error.what}.")
        cases = [Sample(one.name, one.kind, one.passed, one.problems) for one in outcomes]
        return Samples(f"of version {newest.number}", cases)

    def _drafts(self) -> list[tuple[Draft, str]]:
        """What people write on, newest first, with what it is called now."""
        titles = {one.id: one.title for one in self.node.rules()}
        return [(one, titles.get(one.document, "a new one")) for one in self.node.tuning.drafts()]

    def _found(self, session: Session, rule: RuleState) -> dict[str, Any]:
        """What it found in 30 days, and how often people said that it was right."""
        if not session.may("findings"):
            return {"chart": None, "verdicts": None}
        findings, now = self.node.findings, self.node.now()
        span = Range(now - CHARTED, now + timedelta(minutes=5))
        query = f"rule.id:{quoted(rule.id)}"
        tuned = self.node.tuning.tuned_at().get(rule.id)
        since = Range() if tuned is None else Range(since=tuned)
        counts = {
            one: findings.search(
                f"{query} AND finding.verdict:{one}", since if one in WRONG else Range(), limit=0
            ).total
            for one in VERDICTS
        }
        right, wrong = (sum(counts[one] for one in said) for said in (RIGHT, WRONG))
        verdicts = {
            "counts": counts,
            "right": right,
            "wrong": wrong,
            "open": counts["unknown"],
            "tuned": tuned,
            "precision": share(right, right + wrong) if right + wrong else "",
        }
        drawn = chart(findings.histogram(query, span, 30), span, SEVERITIES[::-1])
        return {"chart": drawn, "verdicts": verdicts}

    # ---- On and off

    async def change(self, request: Request) -> Response:
        """Switch rules on or off, with a reason; the node takes it up within a second."""
        form = await body_of(request)
        return await run_in_threadpool(self._change, request, form)

    def _change(self, request: Request, form: FormData) -> Response:
        session = self.site.access.enter_by_form(request, "switch", text(form, "csrf"))
        act, by, now = text(form, "act"), session.person.name, self.node.now()
        ids = [one for one in form.getlist("id") if isinstance(one, str)]
        known = {one.id: one for one in rules_of(self.node)}
        if act not in ("on", "off") or not ids:
            raise InputError(f"no act is called {act[:40]!r}, or no rule named", "act", "on or off")
        for one in ids:
            if one not in known:
                raise InputError(f"no rule has the id {one[:80]}", "id", "Look in the list.")
            if known[one].reason == OFF_IN_SETTINGS:
                raise InputError(f"{one} is off in the settings file", "id", "Change it there.")
            if act == "off" and (right := self._right(one)):
                raise Unsafe(
                    f"it would silence what was right: {right}", known[one].title, TO_SILENCE
                )
        done = sum(
            self.node.accounts.switch(Switch(one, act == "on", text(form, "reason"), by, now))
            for one in ids
        )
        if formats.form_of(request):
            return formats.json({"changed": done})
        return see_other(path_of("rules", ids[0]) + f"?done={act}")

    def _right(self, rule: str) -> str:
        """What a rule found that was right and may not be silenced; empty: nothing.

        A finding that is not kept any more is no obstacle: nobody could change its verdict.
        """
        foreign = (one for one in self.node.releases.foreign(rule) if not one.is_aside)
        kept = self.node.findings.get
        found = [f"finding {one}" for one in self.node.tuning.protected(rule) if kept(one)]
        found += [f"a sample of {one.operator}" for one in foreign]
        more = f" and {len(found) - 1:,} more" if len(found) > 1 else ""
        return found[0] + more if found else ""


def is_deployed(rule: RuleState) -> bool:
    """True if it was deployed here, so that it stands in no file."""
    return rule.file.startswith(RULEBOOK)


def noise_of(
    findings: Findings, now: datetime, tuned: Mapping[str, datetime]
) -> Mapping[str, Noise]:
    """What people said of the findings of each rule in 30 days, by its id.

    Args:
        findings: These.
        now: The time.
        tuned: When rules were changed: what was called wrong before does not count.
    """
    span = Range(now - CHARTED, now + timedelta(minutes=5))
    wrong, right = (_judged(findings, one, span) for one in (WRONG, RIGHT))
    for rule, since in tuned.items():
        if wrong[rule] and since > span.since:
            wrong[rule] = _judged(findings, WRONG, Range(since, span.until), rule)[rule]
    return {one: Noise(wrong[one], wrong[one] + right[one]) for one in {*wrong, *right}}


def _judged(
    findings: Findings, verdicts: Sequence[str], span: Range, rule: str = ""
) -> Counter[str]:
    """How many findings people said one of these of, by rule, or of one rule."""
    query = " OR ".join(f"finding.verdict:{one}" for one in verdicts)
    counted = Counter[str]()
    only = f"rule.id:{quoted(rule)} AND " if rule else ""
    for row in findings.groups(f"{only}({query})", span, limit=GROUPS_MAX).rows:
        counted[row["rule.id"]] += row["findings"]
    return counted


def select(rules: Sequence[RuleState], view: View, noise: Mapping[str, Noise]) -> list[RuleState]:
    """Rules that hold all words of the query, sorted.

    Raises:
        CitywardError: The list cannot be sorted so, or there is no such state.
    """
    words = view.one("q").lower().split()
    state, sort = view.one("state"), view.one("sort", "state")
    key = sort.removeprefix("-")
    if key not in SORTS:
        raise CitywardError(
            f"rules cannot be sorted by {sort[:60]!r}", "sort", f"Write {', '.join(SORTS)}."
        )
    if state and state not in _STATES:
        raise CitywardError(
            f"no state of rules is called {state[:60]!r}", "state", f"Write {', '.join(_STATES)}."
        )
    found = [
        rule
        for rule in rules
        if (not state or rule.state == state) and all(word in _text(rule) for word in words)
    ]
    found.sort(key=lambda rule: (-_level(rule), rule.title.lower(), rule.id))
    found.sort(key=lambda rule: _key(rule, key, noise), reverse=sort.startswith("-"))
    return found


def _listed(rule: RuleState, noise: Noise) -> dict[str, Any]:
    said = {name: value for name, value in msgspec.to_builtins(rule).items() if name != "text"}
    return {**said, "judged": noise.judged, "noise": noise.wrong}


def parts(line: str) -> list[tuple[str, str]]:
    """A line of YAML cut into pieces with a class each; for the eye only."""
    comment = re.search(r"(?:^|\s)#.*$", line)
    code, said = (line[: comment.start()], line[comment.start() :]) if comment else (line, "")
    key = re.match(r"(\s*(?:- )?)([\w.|%@-]+)(:)(\s.*)?$", code)
    made = [("", code)]
    if key:
        made = [("", key[1]), ("y-k", key[2] + key[3]), (_value_class(key[4] or ""), key[4] or "")]
    return [part for part in (*made, ("y-c", said)) if part[1]]


def _value_class(value: str) -> str:
    text = value.strip()
    if re.fullmatch(r"-?\d+(\.\d+)?", text):
        return "y-n"
    return "y-s" if text[:1] in "'\"" else ""


def _fault_line(rule: RuleState) -> int:
    found = (
        re.search(r":(\d{1,6})\b|line (\d{1,6})", rule.reason) if rule.state == "refused" else None
    )
    return int(found[1] or found[2]) if found else 0


def _text(rule: RuleState) -> str:
    said = (rule.title, rule.id, rule.logsource, rule.state, rule.level, rule.author, rule.file)
    return " ".join((*said, *rule.techniques, *rule.tactics)).lower()


def _level(rule: RuleState) -> int:
    return SEVERITIES.index(rule.level) if rule.level in SEVERITIES else 0


def _key(rule: RuleState, key: str, noise: Mapping[str, Noise]) -> Any:
    if key == "noise":
        return noise.get(rule.id, QUIET).wrong
    if key == "level":
        return _level(rule)
    if key == "state":
        return _STATES.index(rule.state) if rule.state in _STATES else 0
    value = getattr(rule, key)
    return value.lower() if isinstance(value, str) else value
