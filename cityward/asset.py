"""Asset: one device of the inventory."""

from __future__ import annotations

import msgspec


class Asset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device that an operator owns or that was observed."""

    id: str
    name: str = ""
    type: str = ""
    """ATT&CK for ICS asset (`plc`, `rtu` …) or a city one (`camera`, `level_gauge` …)."""
    addresses: tuple[str, ...] = ()
    """IP and MAC addresses, host names, gauge or vehicle ids."""
    vendor: str = ""
    model: str = ""
    firmware: str = ""
    zone: str = ""
    """IEC 62443 zone id."""
    zone_type: str = ""
    purdue: float | None = None
    """0 to 5, 3.5 for the DMZ."""
    site: str = ""
    location: str = ""
    """`latitude,longitude`, WGS 84."""
    criticality: int = 2
    """1 to 5."""
    safety_related: bool = False
    essential_function: str = ""
    serves: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    owner_role: str = ""
    never_touch: bool = False
    roles: tuple[str, ...] = ()
    """What the rules may rely on: `ot_writer`, `iec104_master`, `engineering_host` …"""
    last_confirmed: str = ""
    """Date of the last confirmation by a person; empty: only observed."""
