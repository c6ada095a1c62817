"""Events in a search cluster as a node copies them, and the same as its engine sees them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cityward import Event
from siem.node import event_of
from siem.store.lines import Encoder, documents_of, event_id
from siem.store.mirror import event_write
from siem.store.protocol import Document
from siem.store.templates import Names
from tests.opensearch import Server

NOW = datetime(2026, 1, 5, tzinfo=UTC)
BULK = 1_000
ASKED_AT_ONCE = 20


class Indexed:
    """Some events of one operator.

    Args:
        server: A running OpenSearch.
        prefix: Begin of the names of its indices.
        events: As collectors give them.
    """

    def __init__(self, server: Server, prefix: str, events: Iterable[Event]) -> None:
        self._server = server
        self.names = Names(prefix, "op")
        for name, body in self.names.templates().items():
            assert server.ask("PUT", f"/_index_template/{name}", body)[0] == 200
        index = self.names.events_in("2026.01")
        assert server.ask("PUT", f"/{index}")[0] == 200
        lines = Encoder().lines([_document(one, place) for place, one in enumerate(events)])
        self.events = {
            event_id("op", "s", one["cw.record.place"], 0): event_of(one)
            for one in documents_of(lines)
        }
        written = [event_write(line + b"\n", self.names).decode() for line in lines.splitlines()]
        for start in range(0, len(written), BULK):
            lines_ = "".join(written[start : start + BULK])
            status, said = server.ask("POST", "/_bulk?refresh=true", lines_)
            assert (status, said["errors"]) == (200, False), str(said)[:2000]

    def found(self, queries: Sequence[Mapping[str, Any]]) -> list[set[str]]:
        """Ids of the events that each query finds; of one that was refused, why."""
        made: list[set[str]] = []
        for start in range(0, len(queries), ASKED_AT_ONCE):
            lines = []
            for one in queries[start : start + ASKED_AT_ONCE]:
                body = {"query": one, "size": 10_000, "_source": False}
                lines += [json.dumps({"index": self.names.events}), json.dumps(body)]
            _, said = self._server.ask("POST", "/_msearch", "\n".join(lines) + "\n")
            for one in said["responses"]:
                if "error" in one:
                    made.append({json.dumps(one["error"])[:500]})
                else:
                    made.append({hit["_id"] for hit in one["hits"]["hits"]})
        return made


def _document(event: Event, number: int) -> Document:
    parts = {
        f"cw.logsource.{part}": getattr(event.logsource, part)
        for part in ("category", "product", "service")
        if getattr(event.logsource, part)
    }
    return {
        "@timestamp": event.time,
        **event.fields,
        **parts,
        "cw.operator": "op",
        "cw.record.source": "s",
        "cw.record.place": str(number),
        "cw.record.number": 0,
        "event.ingested": NOW,
    }
