"""A hub of the kill tests: puts what a seed says, and tells of each batch that is acknowledged.

Run as `writer.py HOME SHARES SEED`; the home is a file, or a cluster as JSON. What was
acknowledged before is not put again; the batch that was on its way may be.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from siem.city.commons import Commons, Write
from siem.city.sqlite import SqliteCommons

BATCH = 100
BEGIN = datetime(2026, 1, 20, tzinfo=UTC)
OPERATORS = ("op-metro", "op-port", "op-power", "op-water")


def plan(shares: int, seed: int) -> list[tuple[int, int]]:
    """Shares and their revisions in the order in which they are put: each 1 to 5 times."""
    dice = random.Random(seed)
    sent = [
        (number, revision)
        for number in range(shares)
        for revision in dice.choices(range(1, 6), k=dice.randint(1, 5))
    ]
    dice.shuffle(sent)
    return sent


def write(number: int, revision: int) -> Write:
    """One share in one of its revisions."""
    seen = BEGIN + timedelta(minutes=number)
    document = {
        "cw.share.id": f"share-{number}",
        "cw.share.revision": revision,
        "cw.share.audiences": ["city-soc"],
        "cw.operator": OPERATORS[number % len(OPERATORS)],
        "cw.marking.tlp": "green",
        "finding.first_seen": seen,
        "finding.last_seen": seen + timedelta(seconds=revision),
        "finding.title": f"Scan {number}",
        "finding.severity": "high",
        "source.token": [f"j:1:{number % 97}"],
    }
    return Write(document, revision)


def batches(shares: int, seed: int) -> Iterator[list[Write]]:
    """The plan in batches."""
    sent = plan(shares, seed)
    for start in range(0, len(sent), BATCH):
        yield [write(*one) for one in sent[start : start + BATCH]]


def open_home(home: str) -> Commons:
    """The common store at home there."""
    if not home.startswith("{"):
        return SqliteCommons(Path(home))
    from siem.city.cluster import ClusterCommons, Names
    from siem.store.opensearch import OpenSearchCluster

    told = json.loads(home)
    cluster = OpenSearchCluster(
        [told["url"]], user=told["user"], password=told["password"], ca=Path(told["ca_file"])
    )
    return ClusterCommons(cluster, names=Names(told["prefix"]))


def run(commons: Commons, shares: int, seed: int) -> None:
    """Put everything that is not acknowledged."""
    link = commons.records.get("link", "test")
    done, version = (link.value["seq"], link.version) if link else (0, None)
    for number, batch in enumerate(batches(shares, seed), 1):
        if number <= done:
            continue
        waiting = batch
        while waiting:
            outcomes = commons.put(waiting)
            waiting = [one for one, how in zip(waiting, outcomes, strict=True) if how == "later"]
        version = commons.records.put("link", "test", {"seq": number}, version)
        print(number, flush=True)


if __name__ == "__main__":
    run(open_home(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
