"""Share: what a policy lets out of one finding, before an envelope is made of it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Literal

import msgspec

NAMESPACE = uuid.UUID("5d1bb4f2-6c0e-5f43-9a55-1b1f5f6d2c08")
"""Of the ids under which findings leave."""

Approval = Literal["auto", "person", "two_person"]
"""Who says yes before it leaves: nobody, a person, two persons."""


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What leaves of a finding, to whom and under which marking."""

    share_id: str
    finding: str
    """Its id; it stays here."""
    revision: int
    policy: str
    """Content hash of the policy that let it out."""
    rule: str
    audiences: tuple[str, ...]
    tlp: str
    pap: str
    expires: datetime
    """When it is withdrawn by itself."""
    payload: dict[str, Any]
    """Flat names of the schema; dates as aware datetimes."""
    kept: tuple[str, ...]
    """Names of the fields that stay here."""
    approval: Approval = "auto"


def share_id(finding_id: str) -> str:
    """The id under which a finding is known outside: the same for every revision."""
    return str(uuid.uuid5(NAMESPACE, finding_id))
