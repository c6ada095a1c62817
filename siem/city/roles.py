"""Roles of a cluster that holds the common store: the second wall behind the hub's own rights.

Who takes shares in can write them and cannot read one of them back; who shows them cannot write
them. Only the joins do both, since they withdraw.

References:
    OpenSearch 2.19, Security plugin, permissions and default action groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cityward.errors import ConfigError
from siem.city.cluster import Names
from siem.store.protocol_cluster import Cluster, Refused

API = "/_plugins/_security/api/roles"
_SEARCHED = (
    "read",
    "indices:admin/get",
    "indices:admin/refresh*",
    "indices:monitor/settings/get",
    "indices:data/read/point_in_time/create",
    "indices:data/read/point_in_time/delete",
)
_PREPARING = ("indices:admin/index_template/get", "indices:admin/index_template/put")
_KEPT = (*_SEARCHED, "create_index", "indices:admin/forcemerge*")
_SEARCHING = ("cluster_composite_ops_ro", "indices:data/read/point_in_time/delete")


def roles(names: Names) -> dict[str, dict[str, Any]]:
    """Documents of the roles by name: `exchange`, `joins`, `console` after the prefix."""
    return {
        f"{names.prefix}-exchange": _role(
            ("cluster_composite_ops",),
            {
                names.shared: (
                    "indices:data/write/index",
                    "indices:data/write/bulk*",
                    "create_index",
                ),
                names.places: ("crud",),
            },
        ),
        f"{names.prefix}-joins": _role(
            ("cluster_composite_ops", "cluster_monitor", *_SEARCHING, *_PREPARING),
            {
                names.shared: (*_KEPT, "write", "indices:admin/delete"),
                names.hub: (*_KEPT, "crud"),
            },
        ),
        f"{names.prefix}-console": _role(
            ("cluster_composite_ops", *_SEARCHING),
            {names.shared: _SEARCHED, names.records: (*_SEARCHED, "crud"), names.places: ("read",)},
        ),
    }


def _role(of_cluster: Sequence[str], of: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {
        "cluster_permissions": list(of_cluster),
        "index_permissions": [
            {"index_patterns": [pattern], "allowed_actions": list(actions)}
            for pattern, actions in of.items()
        ],
    }


def told(cluster: Cluster, names: Names) -> str:
    """Write the roles if this account may, and say what became of it."""
    try:
        there = put_roles(cluster, names)
    except ConfigError:
        return "roles      are not made: this account may not, an administrator of the cluster may"
    if not there:
        return "roles      are not made: the cluster has no Security plugin"
    return f"roles      {', '.join(roles(names))}"


def put_roles(cluster: Cluster, names: Names = Names()) -> bool:  # noqa: B008 – it is frozen
    """Write the roles; again, it changes nothing. False where the cluster has no such plugin."""
    for name, body in roles(names).items():
        try:
            if cluster.request("PUT", f"{API}/{name}", body) is None:
                return False
        except Refused as error:
            if "no handler found" in error.what:
                return False
            raise
    return True
