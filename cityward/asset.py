"""Asset: one device of the inventory."""

from __future__ import annotations

import msgspec


class Asset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device that an operator owns or that was observed."""

    id: str
    """Stable id in the inventory."""
    name: str = ""
    """Name as people know it."""
    type: str = ""
    """ATT&CK for ICS asset (`plc`, `rtu` …) or a city one (`camera`, `level_gauge` …)."""
    addresses: tuple[str, ...] = ()
    """IP and MAC addresses, host names, gauge or vehicle ids."""
    vendor: str = ""
    """Who made it."""
    model: str = ""
    """What its maker calls it."""
    firmware: str = ""
    """Version of its firmware."""
    zone: str = ""
    """IEC 62443 zone id."""
    zone_type: str = ""
    """Kind of that zone, where no zone of the file says it."""
    purdue: float | None = None
    """Purdue level, 0 to 5, 3.5 for the DMZ."""
    site: str = ""
    """Depot, substation, terminal, junction."""
    location: str = ""
    """`latitude,longitude`, WGS 84."""
    criticality: int = 2
    """1 to 5; it raises the risk of findings about it."""
    safety_related: bool = False
    """A wrong action could hurt people."""
    essential_function: str = ""
    """What the operator cannot do without it."""
    serves: tuple[str, ...] = ()
    """Ids of assets or services that need it."""
    depends_on: tuple[str, ...] = ()
    """Ids of assets that it needs."""
    owner_role: str = ""
    """Role that answers for it."""
    never_touch: bool = False
    """No playbook may act on it."""
    roles: tuple[str, ...] = ()
    """What the rules may rely on: `ot_writer`, `iec104_master`, `engineering_host` …"""
    last_confirmed: str = ""
    """Date of the last confirmation by a person; empty: only observed."""
