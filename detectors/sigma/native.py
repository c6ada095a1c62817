"""Where an event of ours keeps what SigmaHQ's rules ask for by a source's own name.

Rules of others name fields as the source does: `Image` of Sysmon, `cs-uri-query` of a web server.
A collector keeps such names under `cw.vendor`, or has a field of ours for them. A name that an
event has itself is never looked for elsewhere.

References:
    SigmaHQ, "Sigma taxonomy appendix": generic, web server, proxy, firewall and DNS fields.
"""

from __future__ import annotations

from functools import lru_cache

from cityward.fields import FIELDS

OURS: dict[str, tuple[str, ...]] = {
    "c-ip": ("source.ip",),
    "s-ip": ("destination.ip",),
    "s-port": ("destination.port",),
    "cs-method": ("http.request.method",),
    "cs-host": ("url.domain", "destination.domain"),
    "cs-uri": ("url.original",),
    "c-uri": ("url.original",),
    "cs-uri-stem": ("url.path",),
    "c-uri-stem": ("url.path",),
    "cs-uri-query": ("url.query",),
    "c-uri-query": ("url.query",),
    "c-uri-extension": ("file.extension",),
    "cs-referer": ("http.request.referrer",),
    "cs-referrer": ("http.request.referrer",),
    "cs-user-agent": ("user_agent.original",),
    "c-useragent": ("user_agent.original",),
    "cs-username": ("user.name",),
    "cs-version": ("http.version",),
    "sc-status": ("http.response.status_code",),
    "r-dns": ("url.domain", "destination.domain"),
    "src_ip": ("source.ip",),
    "src_port": ("source.port",),
    "dst_ip": ("destination.ip",),
    "dst_port": ("destination.port",),
    "username": ("user.name",),
    "query": ("dns.question.name",),
    "record_type": ("dns.question.type",),
    "answer": ("dns.answers.data",),
    "answers": ("dns.answers.data",),
    "id.orig_h": ("source.ip",),
    "id.orig_p": ("source.port",),
    "id.resp_h": ("destination.ip",),
    "id.resp_p": ("destination.port",),
    "method": ("http.request.method",),
    "status_code": ("http.response.status_code",),
    "user_agent": ("user_agent.original",),
    "uri": ("url.original",),
    "qtype_name": ("dns.question.type",),
}
"""A source's own name to the fields of ours that hold the same."""


@lru_cache(maxsize=65_536)
def elsewhere(name: str) -> tuple[str, ...]:
    """Names under which a field that an event does not have may stand; none for one of ours."""
    if name in FIELDS or name.startswith("cw.vendor."):
        return ()
    return (f"cw.vendor.{name}", *OURS.get(name, ()))
