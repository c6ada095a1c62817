"""What the city told this operator: envelopes of the hub, as people and programs read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from siem.sharing.envelope import KINDS, Envelope
from siem.store.outgoing import Told

COLUMNS = ("time", "type", "title", "severity", "operators", "join", "tlp", "share_id")


def told_row(told: Told) -> dict[str, Any]:
    """One envelope; its signature was checked when it came."""
    try:
        said = msgspec.json.decode(told.data, type=Envelope)
    except msgspec.MsgspecError:
        return {"n": told.n, "time": told.received, "type": told.type, "share_id": told.share_id}
    is_known = said.type in KINDS
    # What a newer type says, it may say in another form.
    payload = said.payload if is_known else {}
    title = payload.get("finding.title") or payload.get("action", "")
    return {
        "n": told.n,
        "time": told.received,
        "type": said.type,
        "share_id": said.share_id,
        "revision": said.revision,
        "title": title if is_known else "Not understood: bring this node up to date",
        "description": payload.get("finding.description", ""),
        "severity": payload.get("finding.severity", ""),
        "operators": payload.get("cw.campaign.operators", []),
        "join": payload.get("cw.campaign.join", ""),
        "tlp": said.tlp,
        "pap": said.pap,
        "expires": said.expires,
        "derived_from": list(said.derived_from),
        "payload": said.payload,
    }


def newest(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest word on each share, the newest first; what was taken back is left out.

    A proposal says nothing new of its campaign, and stands with the proposals; a sample of another
    operator stands with the rule that it protects. What this version does not understand says
    nothing of any share either, but is shown.
    """
    seen: set[str] = set()
    found = []
    for row in rows:
        if row["type"] not in KINDS:
            found.append(row)
            continue
        if row["share_id"] in seen or row["type"] in ("proposal", "sample"):
            continue
        seen.add(row["share_id"])
        if row["type"] != "withdraw":
            found.append(row)
    return found
