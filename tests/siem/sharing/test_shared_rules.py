"""Of which shipped rules a sample may leave: the page says of how many none may, and why."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from cityward.event import Event
from detectors.sigma.rule import Speaking
from detectors.sigma.samples import Case, events_of, read_samples, samples_file
from siem import assembly, library
from siem import samples as runs
from siem.assets import from_settings
from siem.config import Settings
from siem.releasing import Releasing
from siem.sharing.external import Plan
from siem.sharing.policy import Samples
from siem.store.protocol import Document
from siem.store.rulebook import Protected
from tests.siem.sharing.proposing import TokenPolicy

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PAGE = Path(__file__).parents[3] / "docs" / "sharing.md"


@pytest.mark.slow
def test_of_all_shipped_rules_but_those_that_the_page_counts_a_sample_may_leave(
    tmp_path: Path,
) -> None:
    shared = library.shipped()
    policy: Any = TokenPolicy(lets_out=lambda document: False)
    policy.samples = Samples(release="person")
    policy.plan = Plan(["10.0.0.0/8", "192.0.2.0/24"])
    kept: list[Protected] = []
    stays: Counter[str] = Counter()
    settings = Settings(state_dir=str(tmp_path))
    with closing(assembly.db_of(settings, from_settings(settings), lambda: NOW)) as db:
        rows = SimpleNamespace(protected=lambda finding: kept)  # what is protected, and no more
        fake: Any = SimpleNamespace(rulebook=rows, inventory=db.inventory)
        for one in shared.speaking():
            case = first_case(one)
            kept[:] = [Protected(one.id, "f", "", each, "ada", NOW) for each in stored(one, case)]
            lists = {name: tuple(values) for name, values in case.placeholders.items()}
            here = msgspec.structs.replace(settings, lists=lists)
            why = Releasing(here, fake, lambda: policy, lambda: NOW, lambda: shared).offer("f").why
            if why:
                stays["lists" if "lists of this site" in why else "others"] += 1

    text = " ".join(PAGE.read_text().split())
    said = re.search(r"Of the (\d+) rules that come with cityward those are (\d+): (\d+) ask", text)
    assert said is not None
    every, all_that_stay, lists = map(int, said.groups())
    assert every == len([*shared.speaking()])
    assert (stays["lists"], stays.total()) == (lists, all_that_stay)


def first_case(one: Speaking) -> Case:
    """The first that the rule matches."""
    samples = read_samples(samples_file(Path(one.document.file)))
    return next(each for each in samples.cases if each.kind == "must match")


def stored(one: Speaking, case: Case) -> list[Document]:
    """The events of a case, as a node keeps them."""
    events = sorted(events_of(case, one, runs.collect), key=lambda event: event.time)
    return [_stored(event) for event in events]


def _stored(event: Event) -> Document:
    return {
        **event.fields,
        "@timestamp": event.time,
        "event.ingested": event.time,
        "cw.logsource.category": event.logsource.category,
        "cw.logsource.product": event.logsource.product,
        "cw.logsource.service": event.logsource.service,
        "cw.record.source": "sample",
        "cw.record.place": "1",
        "cw.record.number": 0,
    }
