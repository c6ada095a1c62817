"""A message as JSON, posted to a web address and signed.

The signature is HMAC-SHA256 over the time of sending, a dot and the body, with the shared secret:
`X-Cityward-Signature: t=1790000000,v1=…`. A receiver computes it anew, and refuses what is old.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import Any

import httpx2
import msgspec

from siem.notify.answer import TIMEOUT_S, Answer, Refused, context_of, words
from siem.notify.routes import DRY, Route
from siem.notify.text import link_of, mark_of
from siem.store.notices import Delivery, Item

FORMAT = 1
AGAIN = (408, 425, 429)
"""Refusals that ask for patience, as all of 500 and more do."""


def send(delivery: Delivery, route: Route, operator: str, now: datetime) -> Answer:
    """Post a message; a redirection is a refusal, since the message is meant for one address.

    Raises:
        Refused: the answer is not one of 200 to 299.
        OSError, TransientError: there is no answer, or the secret is missing.
    """
    posted = body_of(delivery, route, operator)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "cityward",
        "X-Cityward-Delivery": delivery.id,
        "X-Cityward-Signature": signature(posted, route.secret(), int(now.timestamp())),
    }
    try:
        with (
            httpx2.Client(timeout=TIMEOUT_S, verify=context_of(route)) as client,
            client.stream("POST", route.said.url, content=posted, headers=headers) as answer,
        ):
            status, reason = answer.status_code, answer.reason_phrase
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    said = words("HTTP", status, reason)
    if 200 <= status < 300:
        return Answer(said)
    raise Refused(said, permanent=300 <= status < 500 and status not in AGAIN)


def body_of(delivery: Delivery, route: Route, operator: str) -> bytes:
    """What is posted; at each attempt the same."""
    message = delivery.message
    return msgspec.json.encode(
        {
            "format": FORMAT,
            "delivery": delivery.id,
            "made": delivery.made,
            "kind": delivery.kind,
            "route": delivery.route,
            "operator": operator,
            "exercise": bool(mark_of(message.items)),
            "findings": [_finding(one, route) for one in message.items],
            "more": message.more,
            "held": message.why,
        }
    )


def signature(posted: bytes, secret: str, at: int) -> str:
    """The header that proves who sent a body, and when."""
    signed = hmac.new(secret.encode(), f"{at}.".encode() + posted, hashlib.sha256)
    return f"t={at},v1={signed.hexdigest()}"


def _finding(item: Item, route: Route) -> dict[str, Any]:
    finding = item.finding
    said = {"news": item.news, "exercise": finding.get("finding.mode") in DRY}
    link = link_of(route, finding)
    return {**said, **({"link": link} if link else {}), **finding}
