"""PROFINET DCP: how devices are found, named and given their IP address, without any password.

Understood: identify, get, set and hello, requests and answers, which share `ot.link_id`; of their
blocks the IP address, name of station, type, vendor and device id, role, alias, instance, and the
controls (start and end of a transaction, blinking, reset to factory settings). Every set is a
command: the address it gives is in `ot.value_raw`, the name too; a reset is `dcp_factory_reset`.

Not understood: blocks of manufacturers and DHCP options, which are listed with their numbers;
cyclic real-time frames of the same ethertype, which are counted in their flow; whether an answer
was asked for, since a conversation is what one sender says: `ot.link_id` joins both.

References:
    IEC 61158-6-10:2019, 4.3 (DCP syntax), 4.3.1.4 (blocks); 4.2.2.3 (FrameID).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from socket import inet_ntoa
from struct import Struct
from typing import Any, NamedTuple

from cityward import LogSource, Session, decoder
from collectors.packets.decoders.pairs import printable, unreadable

PROFINET_DCP = LogSource(category="ot_protocol", service="profinet_dcp")

ETHERTYPE = 0x8892
FRAMES = {0xFEFC: "hello", 0xFEFD: "get_set", 0xFEFE: "identify", 0xFEFF: "identify"}
"""FrameIDs of DCP; all others of this ethertype are no DCP."""
SERVICES: dict[int, str] = {3: "get", 4: "set", 5: "identify", 6: "hello"}
OPERATIONS = {"get": "read", "set": "config", "identify": "discovery", "hello": "discovery"}
BLOCKS_MAX = 64
TEXT_MAX = 240
"""Longest name of station."""

BLOCKS: dict[tuple[int, int], str] = {
    (1, 1): "mac_address",
    (1, 2): "ip",
    (1, 3): "ip_suite",
    (2, 1): "station_type",
    (2, 2): "name_of_station",
    (2, 3): "device_id",
    (2, 4): "device_role",
    (2, 5): "device_options",
    (2, 6): "alias",
    (2, 7): "device_instance",
    (2, 8): "oem_device_id",
    (5, 1): "start_transaction",
    (5, 2): "end_transaction",
    (5, 3): "signal",
    (5, 4): "response",
    (5, 5): "factory_reset",
    (5, 6): "reset_to_factory",
    (6, 1): "device_initiative",
    (255, 255): "all",
}
RESETS = frozenset(("factory_reset", "reset_to_factory"))
ERRORS: dict[int, str] = {
    0: "",
    1: "option_not_supported",
    2: "suboption_not_supported",
    3: "suboption_not_set",
    4: "resource_error",
    5: "set_not_possible",
    6: "in_operation_set_not_possible",
}
_CONTROL, _RESPONSE = 5, 4

_HEAD = Struct(">HBBIHH")
_BLOCK = Struct(">BBH")
_REQUEST, _SUCCESS, _NOT_SUPPORTED = 0, 1, 5
_PERMANENT = 1

Fields = dict[str, Any]


class Block(NamedTuple):
    """One block of a message."""

    name: str
    info: int
    """Qualifier of a set, information of an answer; 0 where a block has none."""
    value: bytes


@decoder("profinet_dcp", PROFINET_DCP, transport="link", ethertypes=(ETHERTYPE,))
class ProfinetDcp:
    """What one sender asks, sets and answers."""

    def __init__(self, session: Session) -> None:
        self._base: Fields = {
            **session.base,
            "event.kind": "event",
            "event.category": ["process_control"],
            "event.outcome": "unknown",
        }

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`; a FrameID, a service and a type of service of DCP."""
        if len(head) < _HEAD.size or (head[0] << 8 | head[1]) not in FRAMES:
            return False
        return head[2] in SERVICES and head[3] in (_REQUEST, _SUCCESS, _NOT_SUPPORTED)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        if len(data) >= 2 and (data[0] << 8 | data[1]) not in FRAMES:
            return len(data), ()
        return len(data), [self._read(data)]

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; every frame is whole by itself."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; nothing is kept."""
        return ()

    def _read(self, data: bytes) -> Fields:
        if len(data) < _HEAD.size:
            return self._unreadable(f"{len(data)} bytes are no DCP header")
        _, code, kind, xid, _, length = _HEAD.unpack_from(data)
        service = SERVICES.get(code)
        if service is None or kind not in (_REQUEST, _SUCCESS, _NOT_SUPPORTED):
            return self._unreadable(f"service {code} of type {kind} is not known")
        # A hello has the type of a request and nobody answers it.
        is_request = kind == _REQUEST
        fields: Fields = {
            **self._base,
            "event.action": f"dcp_{service}",
            "event.sequence": xid,
            "ot.function.code": str(code),
            "ot.function.name": service,
            "ot.operation": OPERATIONS[service],
            "ot.is_command": is_request and service == "set",
            "ot.direction": "request" if is_request else "response",
            "ot.link_id": f"dcp-{xid:08x}-{service}",
        }
        if service == "hello":
            fields["ot.direction"] = "unsolicited"
        elif not is_request:
            fields["event.outcome"] = "success" if kind == _SUCCESS else "failure"
            if kind == _NOT_SUPPORTED:
                fields["ot.exception"] = "service_not_supported"
        stop = _HEAD.size + length
        if stop > len(data):
            why = f"the header claims {length} bytes of blocks, {len(data) - _HEAD.size} are there"
            return unreadable(fields, why)
        has_values = not (service == "get" and is_request)
        has_info = has_values and not (service == "identify" and is_request)
        blocks, why = (_blocks if has_values else _options)(data, _HEAD.size, stop, has_info)
        _describe(fields, blocks, service, is_request)
        return unreadable(fields, why) if why else fields

    def _unreadable(self, why: str) -> Fields:
        return unreadable(self._base, why)


def _describe(fields: Fields, blocks: list[Block], service: str, is_request: bool) -> None:
    """Say what the blocks contain."""
    vendor: Fields = {"blocks": ",".join(block.name for block in blocks)}
    shown = []
    for block in blocks:
        if block.name == "response" and not is_request:
            _result(fields, block)
            continue
        read = _READERS.get(block.name)
        said = read(block.value) if read and block.value else {}
        vendor |= said
        if "ip" in said or "name_of_station" in said:
            shown.append(said.get("ip") or said["name_of_station"])
        if service == "set" and is_request:
            vendor["permanent"] = bool(block.info & _PERMANENT)
            if block.name in RESETS:
                fields["event.action"] = "dcp_factory_reset"
                fields["ot.operation"] = "restart"
            elif block.name == "signal":
                fields["event.action"] = "dcp_signal"
    if shown:
        fields["ot.value_raw"] = ",".join(shown)
    if name := vendor.get("name_of_station"):
        fields["ot.unit"] = name
    fields["cw.vendor"] = vendor


def _result(fields: Fields, block: Block) -> None:
    """What became of one block of a set; the option is where others have their information."""
    option = BLOCKS.get((block.info >> 8, block.info & 0xFF), f"option_{block.info:04x}")
    error = block.value[0] if block.value else 0
    if error:
        fields["event.outcome"] = "failure"
        fields["ot.exception"] = ERRORS.get(error, str(error))
        fields["event.reason"] = f"{option} was not set"


def _blocks(data: bytes, at: int, stop: int, has_info: bool) -> tuple[list[Block], str]:
    """Blocks with values, padded to even lengths; and why reading ended early."""
    found: list[Block] = []
    while at + _BLOCK.size <= stop:
        if len(found) >= BLOCKS_MAX:
            return found, f"more than {BLOCKS_MAX} blocks"
        option, suboption, size = _BLOCK.unpack_from(data, at)
        at += _BLOCK.size
        if at + size > stop:
            return found, f"block {option}.{suboption} claims {size} bytes, {stop - at} are there"
        value = data[at : at + size]
        info = 0
        if has_info and size >= 2:
            info, value = value[0] << 8 | value[1], value[2:]
        found.append(Block(_name(option, suboption), info, value))
        at += size + (size & 1)
    return found, ""


def _options(data: bytes, at: int, stop: int, has_info: bool) -> tuple[list[Block], str]:
    """The options that a get asks for."""
    stop = min(stop, at + 2 * (BLOCKS_MAX + 1))
    options = zip(data[at:stop:2], data[at + 1 : stop : 2], strict=False)
    found = [Block(_name(*option), 0, b"") for option in options]
    if len(found) > BLOCKS_MAX:
        return found[:BLOCKS_MAX], f"more than {BLOCKS_MAX} options"
    return found, ""


def _name(option: int, suboption: int) -> str:
    return BLOCKS.get((option, suboption), f"option_{option}.{suboption}")


# ------------------------------------------------------------------------- contents of blocks


def _ip(raw: bytes) -> Fields:
    if len(raw) < 12:
        return {}
    return {
        "ip": inet_ntoa(raw[:4]),
        "netmask": inet_ntoa(raw[4:8]),
        "gateway": inet_ntoa(raw[8:12]),
    }


def _ids(raw: bytes) -> Fields:
    if len(raw) < 4:
        return {}
    return {"vendor_id": f"0x{raw[:2].hex()}", "device_id": f"0x{raw[2:4].hex()}"}


def _text(name: str) -> Callable[[bytes], Fields]:
    return lambda raw: {name: printable(raw.rstrip(b"\0"), TEXT_MAX)}


_ROLES = ("io_device", "io_controller", "io_multidevice", "pn_supervisor")

_READERS: dict[str, Callable[[bytes], Fields]] = {
    "ip": _ip,
    "ip_suite": _ip,
    "station_type": _text("station_type"),
    "name_of_station": _text("name_of_station"),
    "alias": _text("alias"),
    "device_id": _ids,
    "device_role": lambda raw: {
        "device_role": ",".join(name for bit, name in enumerate(_ROLES) if raw[0] >> bit & 1)
    },
}
"""Name of a block → its contents as fields of `cw.vendor`."""
