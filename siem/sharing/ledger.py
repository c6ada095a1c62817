"""The ledger: proof of all that was sent, and of what the hub said it took.

A line is looked at in four ways: its place in the chain, its keyed hash (policy, rule, approvers
and names of fields are under it), the signature over the very bytes that left, and the receipt that
the hub signed over their hash. Who writes the database cannot make a line that passes the second,
who also has the operator's keys cannot make one that passes the last.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cityward import Unsafe
from siem.sharing.envelope import Envelope, Signed, key_id, verified
from siem.sharing.outbox import check_receipt, receipt_of
from siem.sharing.wire import Held
from siem.store.outgoing import Head, Line, OutgoingStore

Keys = Mapping[str, Ed25519PublicKey]
"""Public keys by their short name."""


class Proof(msgspec.Struct, frozen=True):
    """What looking at the whole ledger came to."""

    lines: int = 0
    receipted: int = 0
    head: str = ""
    """Hash of the chain up to the last line; heartbeats carry it to the hub, which signs it."""
    lost: int = 0
    """Records that were lost with an older state, as was said when the node joined again."""
    refused: int = 0
    """Envelopes that the hub would never take; another one has their number."""
    fault: str = ""
    """What does not fit, and at which record; empty if all fits."""


def keys_of(*keys: Ed25519PublicKey) -> Keys:
    """Public keys by their short name."""
    return {key_id(key): key for key in keys}


def prove(store: OutgoingStore, operator: str, own: Keys, hubs: Keys) -> Proof:
    """Look at the whole ledger; the first record that does not fit is named.

    Args:
        store: Where it is.
        operator: Whose it is.
        own: Keys that this operator signed with.
        hubs: Keys that its hub signed with.
    """
    before = store.anchor()
    fault = "" if store.is_sealed("ledger_anchor", before) else "the seal of its begin was changed"
    lines = receipted = lost = refused = 0
    open_: Line | None = None
    gaps = store.gaps()
    for line in store.lines():
        if gap := gaps.get(before.seq):
            lost += gap.seq - before.seq
            before = Head(gap.seq, gap.hash, before.chain)
        lines += 1
        receipted += bool(line.receipt)
        fault = fault or _lost_receipt(open_, line) or _wrong(store, line, before, operator, own)
        fault = fault or _wrong_receipt(line, operator, hubs)
        open_ = line if line.state == "sent" else None
        if line.state == "refused":
            refused += 1
            before = Head(before.seq, before.hash, line.chain)
        else:
            before = Head(line.seq, line.hash, line.chain)
    if gap := gaps.get(before.seq):
        lost += gap.seq - before.seq
        before = Head(gap.seq, gap.hash, before.chain)
    head = store.head()
    if not fault and not store.is_sealed("ledger_head", head):
        fault = "the seal of the last record was changed"
    if not fault and head.seq > before.seq:
        fault = f"record {before.seq + 1} is missing: there were {head.seq}"
    if not fault and (head.seq, head.chain) != (before.seq, before.chain):
        fault = f"the last record is {before.seq}, its seal names {head.seq}"
    return Proof(lines, receipted, before.chain if lines else "", lost, refused, fault)


def _wrong(store: OutgoingStore, line: Line, before: Head, operator: str, own: Keys) -> str:
    """What does not fit of the bytes of a line; empty if all does."""
    named = f"record {line.seq}"
    if line.seq != before.seq + 1:
        return f"record {before.seq + 1} is missing"
    signed = Signed(line.data, line.signature)
    if line.hash != signed.hash:
        return f"{named}: its bytes were changed"
    if line.chain != store.chained(line, before.chain):
        return f"{named} was changed"
    try:
        said = _opened(signed, own)
    except Unsafe as error:
        return f"{named}: {error.what}"
    if said.prev != before.hash:
        return f"{named} does not name the one before it"
    of = (said.operator, said.seq, said.type, said.share_id, said.policy, said.rule)
    if of != (operator, line.seq, line.type, line.share_id, line.policy, line.rule):
        return f"{named} says something else than its bytes"
    return ""


def _opened(signed: Signed, keys: Keys) -> Envelope:
    """An envelope, by the key that it names.

    Raises:
        Unsafe: it is none, or its signature does not hold.
    """
    try:
        named = msgspec.json.decode(signed.data, type=Envelope).key_id
    except (msgspec.MsgspecError, RecursionError) as error:
        raise Unsafe("it is no envelope", "ledger", "") from error
    if named not in keys:
        raise Unsafe(f"nobody has the key {named[:16]}", "ledger", "")
    return verified(signed, keys[named])


def _wrong_receipt(line: Line, operator: str, hubs: Keys) -> str:
    named = f"record {line.seq}"
    if bool(line.receipt) != (line.state == "receipted"):
        return f"{named} lost its receipt, or has one that it should not have"
    if not line.receipt:
        return ""
    signed = Signed(line.receipt, line.receipt_signature)
    try:
        key = hubs.get(msgspec.json.decode(line.receipt, type=Envelope).key_id)
        if key is None:
            return f"{named}: its receipt was signed by a key that is not the hub's"
        check_receipt(receipt_of(signed, key), line, operator)
    except Unsafe as error:
        return f"{named}: its receipt does not fit, {error.what}"
    except (msgspec.MsgspecError, RecursionError):
        return f"{named}: its receipt is none"
    return ""


def _lost_receipt(open_: Line | None, line: Line) -> str:
    """One envelope is on its way at a time: only the last one may be without an answer."""
    if open_ is None or line.state == "not receipted":
        return ""
    return f"record {open_.seq} lost its receipt"


def compared(store: OutgoingStore, held: Iterable[Held]) -> Iterator[dict[str, str]]:
    """In what the hub's copies and this ledger differ; what is under way is not compared."""
    there = {one.share_id: one for one in held}
    for ours, is_answered in store.all_shared():
        theirs = there.pop(ours.share_id, None)
        if not is_answered:
            continue
        if theirs and ours.state == "withdrawn":
            yield {"share": ours.share_id, "what": "was taken back, and is there"}
        elif theirs and theirs.payload_sha256 != ours.payload_sha256:
            yield {"share": ours.share_id, "what": "is there with another content"}
        elif not theirs and ours.state == "shared":
            yield {"share": ours.share_id, "what": "is not there: it expired, or was not kept"}
    for one in there.values():
        yield {"share": one.share_id, "what": "is there, and was not sent from here"}


def as_document(line: Line, *, whole: bool = False) -> dict[str, Any]:
    """A line as commands and pages show it.

    Args:
        line: Of the ledger.
        whole: With the bytes that left, their signature, and the receipt: all to prove it with.
    """
    said: dict[str, Any] = {
        "seq": line.seq,
        "sent": line.sent,
        "type": line.type,
        "share": line.share_id,
        "finding": line.finding,
        "rule": line.rule,
        "policy": line.policy,
        "approvers": list(line.approvers),
        "fields": list(line.fields),
        "state": line.state,
        "received": line.received,
        "hub": _did(line),
        "hash": line.hash,
        "chain": line.chain,
    }
    if whole:
        said |= {
            "data": line.data.decode(),
            "signature": base64.b64encode(line.signature).decode(),
            "receipt": line.receipt.decode(),
            "receipt_signature": base64.b64encode(line.receipt_signature).decode(),
        }
    return said


def _did(line: Line) -> dict[str, Any]:
    """What the hub says it did with it: nothing much, unless it was withdrawn or not kept."""
    try:
        return msgspec.json.decode(line.receipt, type=_Answered).payload.did
    except msgspec.MsgspecError:
        return {}


class _Done(msgspec.Struct, frozen=True):
    did: dict[str, Any] = {}


class _Answered(msgspec.Struct, frozen=True):
    payload: _Done


def exported(store: OutgoingStore) -> Iterator[dict[str, Any]]:
    """Every line with all that proves it, the oldest first."""
    return (as_document(line, whole=True) for line in store.lines())
