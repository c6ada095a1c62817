"""Assets from elsewhere: a table of a CMDB, or what NetBox (Malcolm's too) exports of its devices.

What cannot be understood is said with its line; what can be kept beside it is kept.

References:
    RFC 4180 (CSV); NetBox REST API, `dcim/devices`, and its table export.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import msgspec

from cityward import Asset, InputError
from siem.store.inventory import EDITABLE, spoken

BYTES_MAX = 64 << 20
_CHOOSY = frozenset(("criticality", "never_touch", "safety_related", "purdue"))
"""Fields that do not take any text."""
_TEXTS = frozenset(
    ("name", "vendor", "model", "firmware", "site", "owner_role", "location", "zone", "type")
)
LISTS = ("addresses", "roles", "serves", "depends_on")
FIELDS = ("id", *sorted(EDITABLE))
"""What a column may be mapped to."""

TYPES = (
    *("plc", "rtu", "ied", "hmi", "control_server", "historian", "safety_controller", "gateway"),
    *("workstation", "jump_host", "vpn_server", "switch", "router", "firewall", "field_io"),
    *("application_server", "camera", "vms_server", "access_controller", "signal_controller"),
    *("message_sign", "siren", "ev_charger", "level_gauge", "weather_station", "fare_gate"),
    *("ticket_machine", "onboard_unit", "crane_plc", "ais_receiver", "gnss_receiver"),
    *("mqtt_broker", "iot_gateway", "street_light_controller"),
)
"""Types of assets: those of ATT&CK for ICS, and of a city."""

_TYPE_WORDS = {
    "programmable_logic_controller": "plc",
    "remote_terminal_unit": "rtu",
    "intelligent_electronic_device": "ied",
    "protection_relay": "ied",
    "relay": "ied",
    "human_machine_interface": "hmi",
    "operator_panel": "hmi",
    "scada": "control_server",
    "scada_server": "control_server",
    "data_historian": "historian",
    "safety_instrumented_system": "safety_controller",
    "sis": "safety_controller",
    "data_gateway": "gateway",
    "engineering_workstation": "workstation",
    "pc": "workstation",
    "jump_server": "jump_host",
    "bastion": "jump_host",
    "vpn": "vpn_server",
    "network_switch": "switch",
    "access_switch": "switch",
    "core_switch": "switch",
    "remote_io": "field_io",
    "server": "application_server",
    "ip_camera": "camera",
    "cctv": "camera",
    "nvr": "vms_server",
    "charging_station": "ev_charger",
    "charge_point": "ev_charger",
    "traffic_controller": "signal_controller",
    "broker": "mqtt_broker",
}
_COLUMNS = {
    "asset_id": "id",
    "ci_id": "id",
    "device": "name",
    "hostname": "name",
    "host_name": "name",
    "host": "name",
    "display_name": "name",
    "ci_name": "name",
    "address": "addresses",
    "ip": "addresses",
    "ips": "addresses",
    "ip_address": "addresses",
    "ipv4": "addresses",
    "ipv4_address": "addresses",
    "ipv6_address": "addresses",
    "primary_ip": "addresses",
    "primary_ip4": "addresses",
    "primary_ip6": "addresses",
    "mac": "addresses",
    "mac_address": "addresses",
    "role": "type",
    "device_role": "type",
    "class": "type",
    "category": "type",
    "manufacturer": "vendor",
    "device_type": "model",
    "firmware_version": "firmware",
    "network_zone": "zone",
    "security_zone": "zone",
    "importance": "criticality",
    "owner": "owner_role",
    "tenant": "owner_role",
    "latitude_longitude": "location",
}
"""Names that columns have elsewhere."""
_CRITICALITIES = {"low": 1, "medium": 3, "moderate": 3, "high": 4, "very_high": 5, "critical": 5}
_YES = {"yes": True, "y": True, "x": True, "no": False, "n": False}
_NETBOX = frozenset(("device_type", "role", "device_role", "primary_ip4", "manufacturer"))
"""A file that has two of these columns was written by NetBox, whose `id` and `type` are its own."""


class Read(msgspec.Struct, frozen=True):
    """What a file holds."""

    assets: Sequence[Asset]
    problems: Sequence[str]
    """What was not understood, with its line."""
    rejected: int
    """Lines that could not become an asset."""


def read(data: bytes, *, mapping: Mapping[str, str], zones: Set[str] = frozenset()) -> Read:
    """Read a table or a JSON export of devices.

    Args:
        data: The file.
        mapping: Column (or key) to field, before the names that are known anyway.
        zones: Zones of the settings; empty: any is believed.

    Raises:
        InputError: it is neither, or a column is mapped to what is no field.
    """
    if wrong := sorted(set(mapping.values()) - set(FIELDS) - {""}):
        raise InputError(
            f"{wrong[0]!r} is no field of an asset", "--map", f"One of: {', '.join(FIELDS)}."
        )
    text = data.decode("utf-8-sig", "backslashreplace")
    is_json = text.lstrip()[:1] in ("{", "[")
    rows = _json_rows(text) if is_json else _csv_rows(text)
    return _Reader({_word(key): value for key, value in mapping.items()}, zones).all(rows)


class _Reader:
    """Reads the rows of one file."""

    def __init__(self, mapping: Mapping[str, str], zones: Set[str]) -> None:
        self.mapping = mapping
        self.zones = zones
        self.problems: list[str] = []
        self.unknown: dict[str, None] = {}
        self.made: dict[str, Asset] = {}
        self.is_netbox = False

    def all(self, rows: Iterable[tuple[int, Mapping[str, Any]]]) -> Read:
        """Every row, then what was left out of all of them."""
        rejected = 0
        for line, row in rows:
            rejected += not self._take(line, row)
        if self.unknown:
            names = ", ".join(list(self.unknown)[:20])
            self.problems.append(f"columns that are not taken: {names}")
        return Read(list(self.made.values()), self.problems, rejected)

    def _take(self, line: int, row: Mapping[str, Any]) -> bool:
        said = self._said(line, row)
        id = said.pop("id", "") or _id_of(said.get("name", "")) or next(iter(said["addresses"]), "")
        if not id:
            self.problems.append(f"line {line}: no id, no name and no address; left out")
            return False
        try:
            asset = spoken(Asset(id=str(id)[:200]), said)
        except InputError as error:
            self.problems.append(f"line {line}: {error.where}: {error.what}; left out")
            return False
        before = self.made.get(asset.id)
        if before is not None:
            self.problems.append(
                f"line {line}: {asset.id} is there twice; its addresses are joined"
            )
            joined = tuple(dict.fromkeys((*before.addresses, *asset.addresses)))
            asset = msgspec.structs.replace(before, addresses=joined)
        self.made[asset.id] = asset
        return True

    def _said(self, line: int, row: Mapping[str, Any]) -> dict[str, Any]:
        said: dict[str, Any] = {"addresses": []}
        self.is_netbox = self.is_netbox or len(_NETBOX.intersection(map(_word, row))) > 1
        for column, given in row.items():
            word = _word(column)
            name = self.mapping.get(word)
            if name is None:
                name = "model" if self.is_netbox and word == "type" else _COLUMNS.get(word, word)
                name = "" if self.is_netbox and word == "id" else name
            if name not in FIELDS:
                if name:
                    self.unknown[str(column)[:60]] = None
                continue
            value = _plain(given)
            if value in ("", None, []):
                continue
            if name in LISTS:
                parts = value if isinstance(value, list) else re.split(r"[,;\s]+", str(value))
                said.setdefault(name, [])
                said[name] += [str(one).strip() for one in parts if str(one).strip()]
            elif name not in said:
                said[name] = value
        return self._checked(line, said)

    def _checked(self, line: int, said: dict[str, Any]) -> dict[str, Any]:
        addresses = []
        for one in said["addresses"]:
            address, is_one = address_of(one)
            addresses.append(address)
            if not is_one:
                self.problems.append(
                    f"line {line}: {one!r} is no IP or MAC address; kept as a name"
                )
        said["addresses"] = list(dict.fromkeys(addresses))
        if "type" in said:
            word = _word(said["type"])
            said["type"] = _TYPE_WORDS.get(word, word)
            if said["type"] not in TYPES:
                self.problems.append(f"line {line}: the type {word!r} is unknown; kept as it is")
        if self.zones and said.get("zone") and said["zone"] not in self.zones:
            zone = said.pop("zone")
            self.problems.append(f"line {line}: {zone!r} is no zone of the settings; left empty")
        if "criticality" in said:
            word = _word(said["criticality"])
            said["criticality"] = _CRITICALITIES.get(word, str(said["criticality"]))
        for name in ("never_touch", "safety_related"):
            if name in said:
                said[name] = _YES.get(str(said[name]).lower(), said[name])
        for name in _CHOOSY & said.keys():
            self._drop_wrong(line, said, name)
        return {n: str(value) if n in _TEXTS else value for n, value in said.items()}

    def _drop_wrong(self, line: int, said: dict[str, Any], name: str) -> None:
        """Say a value that cannot be; the rest of the line is kept."""
        try:
            spoken(Asset(id="x"), {name: said[name]})
        except InputError:
            value = said.pop(name)
            self.problems.append(f"line {line}: {name} {str(value)[:60]!r} cannot be; left empty")


def address_of(text: str) -> tuple[str, bool]:
    """An address as events write it, without the length of its network; False if it is none."""
    host = text.partition("/")[0].strip()
    try:
        return str(ipaddress.ip_address(host)), True
    except ValueError:
        pass
    digits = re.sub(r"[-:.]", "", host)
    if re.fullmatch(r"[0-9A-Fa-f]{12}", digits):
        return bytes.fromhex(digits).hex("-").upper(), True
    return text, False


def _csv_rows(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows of a table with the line each begins at."""
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    if not reader.fieldnames or len(reader.fieldnames) < 2:
        raise InputError(
            "no table and no JSON", "line 1", "Name the columns in the first line: name,ip,type."
        )
    line = reader.line_num + 1
    try:
        for row in reader:
            yield line, {key: value for key, value in row.items() if isinstance(key, str)}
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"no CSV: {error}", f"line {line}", "Mend the quotes.") from error


def _json_rows(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Devices of a JSON list, of NetBox's `results`, or one a line."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _json_lines(text)
    if isinstance(found, dict):
        found = found.get("results") or found.get("devices") or [found]
    for number, one in enumerate(found if isinstance(found, list) else [], 1):
        row = dict(one) if isinstance(one, dict) else {}
        kind = row.get("device_type")
        if isinstance(kind, dict) and "manufacturer" in kind:
            row.setdefault("manufacturer", kind["manufacturer"])
        yield number, row


def _json_lines(text: str) -> list[Any]:
    made = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            made += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise InputError(f"no JSON: {error}", f"line {number}", "Mend it.") from error
    return made


def _plain(value: Any) -> Any:
    """A value; of an object of NetBox its address, name or value."""
    if isinstance(value, dict):
        if "model" in value:
            return value["model"]
        for name in ("address", "name", "value", "slug", "display"):
            if value.get(name):
                return _plain(value[name])
        return ""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    # What a spreadsheet would take for a formula has been quoted by our own export.
    return value.strip().removeprefix("'") if isinstance(value, str) else value


def _word(text: object) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(text).lower()).strip("_")


def _id_of(name: object) -> str:
    return re.sub(r"[^\w.:-]+", "-", str(name).strip()).strip("-").lower()
