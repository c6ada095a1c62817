"""Decoders against other people's implementations of the same protocol."""

from __future__ import annotations

import random
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua
from asyncua.common.connection import SecureConnection, TransportLimits
from asyncua.crypto.security_policies import SecurityPolicyNone
from asyncua.ua.ua_binary import struct_to_binary, uatcp_to_binary
from pymodbus.framer import FramerSocket
from pymodbus.pdu import DecodePDU, ExceptionResponse, bit_message, register_message
from pymodbus.pdu.pdu import ModbusPDU

from cityward import plugin
from collectors.packets.decoders.modbus import VALUES_SHOWN, Modbus
from collectors.packets.decoders.opcua import Opcua
from collectors.packets.packets import Packets
from tests.collectors.packets.decoders.streams import Wire, session
from tests.collectors.packets.wire import chunks, collected
from tests.programs import PATIENCE_S, program

pytestmark = pytest.mark.slow
ROUNDS = 1_500

# ---- Modbus by pymodbus

Told = dict[str, Any]
_POINTS = {1: "coil", 2: "discrete_input", 3: "holding_register", 4: "input_register", 5: "coil",
           6: "holding_register", 15: "coil", 16: "holding_register", 22: "holding_register",
           23: "holding_register"}  # fmt: skip
_BITS = {
    1: (bit_message.ReadCoilsRequest, bit_message.ReadCoilsResponse),
    2: (bit_message.ReadDiscreteInputsRequest, bit_message.ReadDiscreteInputsResponse),
}
_REGISTERS = {
    3: (register_message.ReadHoldingRegistersRequest,
        register_message.ReadHoldingRegistersResponse),
    4: (register_message.ReadInputRegistersRequest, register_message.ReadInputRegistersResponse),
}  # fmt: skip
_EXCEPTIONS = (1, 2, 3, 4, 5, 6, 8, 10, 11)


def _values(values: list[Any]) -> Told:
    shown = [int(value) for value in values[:VALUES_SHOWN]]
    said = {"ot.value": shown[0]}
    if len(values) > 1:
        text = ",".join(map(str, shown))
        said["ot.value_raw"] = text + (",…" if len(values) > VALUES_SHOWN else "")
    return said


def _exchange(code: int, chance: random.Random) -> tuple[ModbusPDU, ModbusPDU, Told, Told]:
    """A request, its answer, and what is to be said of both."""
    address, count = chance.randrange(60_000), chance.randint(1, 120)
    words = [chance.randrange(65_536) for _ in range(count)]
    bits = [chance.random() < 0.5 for _ in range(count)]
    place = {"ot.point.address": address, "ot.point.count": count}
    if code in _BITS:
        asks, answers = _BITS[code]
        padded = bits + [False] * (-count % 8)
        return asks(address=address, count=count), answers(bits=padded), place, _values(bits)
    if code in _REGISTERS:
        asks, answers = _REGISTERS[code]
        return asks(address=address, count=count), answers(registers=words), place, _values(words)
    one = {"ot.point.address": address, "ot.point.count": 1}
    if code == 5:
        said = one | _values(bits[:1])
        asked = bit_message.WriteSingleCoilRequest(address=address, bits=bits[:1])
        return asked, bit_message.WriteSingleCoilResponse(address=address, bits=bits[:1]), said, one
    if code == 6:
        asked = register_message.WriteSingleRegisterRequest(address=address, registers=words[:1])
        done = register_message.WriteSingleRegisterResponse(address=address, registers=words[:1])
        return asked, done, one | _values(words[:1]), one
    if code == 15:
        asked = bit_message.WriteMultipleCoilsRequest(address=address, bits=bits)
        done = bit_message.WriteMultipleCoilsResponse(address=address, count=count)
        return asked, done, place | _values(bits), place
    if code == 16:
        asked = register_message.WriteMultipleRegistersRequest(address=address, registers=words)
        done = register_message.WriteMultipleRegistersResponse(address=address, count=count)
        return asked, done, place | _values(words), place
    if code == 22:
        masks = {"and_mask": words[0], "or_mask": words[-1]}
        said = one | {"ot.value_raw": f"and=0x{words[0]:04x} or=0x{words[-1]:04x}"}
        asked = register_message.MaskWriteRegisterRequest(address=address, **masks)
        return (
            asked,
            register_message.MaskWriteRegisterResponse(address=address, **masks),
            said,
            one,
        )
    asked = register_message.ReadWriteMultipleRegistersRequest(
        read_address=address, read_count=count, write_address=address // 2, write_registers=words
    )
    done = register_message.ReadWriteMultipleRegistersResponse(registers=words)
    said = place | {"ot.point.address": address // 2} | _values(words)
    return asked, done, said, {}


def test_pymodbus_and_we_say_the_same_of_random_messages() -> None:
    chance, framer = random.Random(1), FramerSocket(DecodePDU(True))
    line, seen = Wire(Modbus(session())), Counter[int]()
    for number in range(ROUNDS):
        code = chance.choice(list(_POINTS))
        unit, sequence = chance.randrange(248), number & 0xFFFF
        asked, answer, said, answered = _exchange(code, chance)
        if chance.random() < 0.2:
            exception = chance.choice(_EXCEPTIONS)
            answer, answered = ExceptionResponse(code, exception), {"event.code": str(exception)}
        for message in (asked, answer):
            message.dev_id, message.transaction_id = unit, sequence
        always = {"ot.function.code": str(code), "ot.unit": str(unit), "event.sequence": sequence}
        always["ot.point.type"] = _POINTS[code]

        (request,) = line.send(framer.buildFrame(asked), True)
        (response,) = line.send(framer.buildFrame(answer), False)

        assert {**request, **always, **said} == request
        assert {**response, **always, **answered} == response
        assert request["ot.link_id"] == response["ot.link_id"]
        seen[code] += 1
    assert seen.keys() == _POINTS.keys()


# ---- OPC UA by asyncua


def _node(chance: random.Random) -> ua.NodeId:
    name: Any = chance.randrange(1 << 32) if chance.random() < 0.5 else f"pump.{chance.random()}"
    return ua.NodeId(name, chance.randint(1, 300))


_KINDS: dict[ua.VariantType, Callable[[random.Random], Any]] = {
    ua.VariantType.Boolean: lambda chance: chance.random() < 0.5,
    ua.VariantType.SByte: lambda chance: chance.randint(-128, 127),
    ua.VariantType.Byte: lambda chance: chance.randrange(256),
    ua.VariantType.Int16: lambda chance: chance.randint(-(1 << 15), (1 << 15) - 1),
    ua.VariantType.UInt16: lambda chance: chance.randrange(1 << 16),
    ua.VariantType.Int32: lambda chance: chance.randint(-(1 << 31), (1 << 31) - 1),
    ua.VariantType.UInt32: lambda chance: chance.randrange(1 << 32),
    ua.VariantType.Int64: lambda chance: chance.randint(-(1 << 62), 1 << 62),
    ua.VariantType.Double: lambda chance: chance.uniform(-1e9, 1e9),
    ua.VariantType.String: lambda chance: f"text {chance.random()}",
}
_BAD = {
    ua.StatusCodes.BadUserAccessDenied: "bad_user_access_denied",
    ua.StatusCodes.BadNodeIdUnknown: "bad_node_id_unknown",
    ua.StatusCodes.BadNotWritable: "bad_not_writable",
}


class Peer:
    """Both ends of a connection, by the other implementation, and our decoder between them."""

    def __init__(self) -> None:
        self.ends = SecureConnection(SecurityPolicyNone(), TransportLimits())
        self.line = Wire(Opcua(session(server="10.0.0.2:4840")))
        self.number = 0

    def says(self, body: Any, from_client: bool, kind: ua.MessageType) -> dict[str, Any]:
        data = self.ends.message_to_binary(struct_to_binary(body), kind, self.number)
        (found,) = self.line.send(bytes(data), from_client)
        return dict(found)

    def exchange(self, asks: Any, answers: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        self.number += 1
        asks.RequestHeader.RequestHandle = answers.ResponseHeader.RequestHandle = self.number
        kind = ua.MessageType.SecureMessage
        if isinstance(asks, ua.OpenSecureChannelRequest):
            kind = ua.MessageType.SecureOpen
        return self.says(asks, True, kind), self.says(answers, False, kind)


def _written(value: Any) -> Told:
    if isinstance(value, str):
        return {"ot.value_raw": value}
    return {"ot.value": pytest.approx(value) if isinstance(value, float) else int(value)}


def _place(node: ua.NodeId) -> str:
    letter = "i" if isinstance(node.Identifier, int) else "s"
    return f"ns={node.NamespaceIndex};{letter}={node.Identifier}"


def test_asyncua_and_we_say_the_same_of_random_services() -> None:
    chance, peer = random.Random(2), Peer()
    hello = ua.Hello()
    hello.EndpointUrl = "opc.tcp://pump-7:4840"
    (greeted,) = peer.line.send(uatcp_to_binary(ua.MessageType.Hello, hello), True)
    assert greeted["event.action"] == "opcua_hello"
    peer.line.send(uatcp_to_binary(ua.MessageType.Acknowledge, ua.Acknowledge()), False)
    opened, _ = peer.exchange(ua.OpenSecureChannelRequest(), ua.OpenSecureChannelResponse())
    assert opened["cw.vendor"]["security_policy"] == "None"

    for _ in range(ROUNDS):
        node, kind = _node(chance), chance.choice(list(_KINDS))
        value = _KINDS[kind](chance)
        variant = ua.Variant(value, kind)
        code, why = chance.choice(list(_BAD.items()))
        asks, answers, said, answered = _service(chance, node, variant, code)

        request, response = peer.exchange(asks, answers)

        assert request["cw.vendor"]["node"] == _place(node)
        assert request["event.sequence"] == response["event.sequence"] == peer.number
        assert {**request, **said} == request
        if answered is None:
            answered = {"event.outcome": "failure", "ot.exception": why}
        assert {**response, **answered} == response


def _service(
    chance: random.Random, node: ua.NodeId, variant: ua.Variant, code: int
) -> tuple[Any, Any, Told, Told | None]:
    """A request, its answer, and what is to be said of both; None of an answer that refuses."""
    value, is_refused = _written(variant.Value), chance.random() < 0.3
    match chance.randrange(3):
        case 0:
            read, was_read = ua.ReadRequest(), ua.ReadResponse()
            read.Parameters.NodesToRead = [ua.ReadValueId(node, ua.AttributeIds.Value)]
            was_read.Results = [ua.DataValue(variant)]
            if is_refused:
                was_read.Results = [ua.DataValue(StatusCode=ua.StatusCode(code))]
            said: Told = {"event.action": "opcua_read", "ot.is_command": False}
            return read, was_read, said, None if is_refused else value
        case 1:
            write, written = ua.WriteRequest(), ua.WriteResponse()
            one = ua.WriteValue(node, ua.AttributeIds.Value, None, ua.DataValue(variant))
            write.Parameters.NodesToWrite = [one]
            written.Results = [ua.StatusCode(code if is_refused else 0)]
            said = {"event.action": "opcua_write", "ot.is_command": True, **value}
        case _:
            write, written = ua.CallRequest(), ua.CallResponse()
            one = ua.CallMethodRequest(ua.NodeId(9, 1), node, [variant])
            write.Parameters.MethodsToCall = [one]
            written.Results = [ua.CallMethodResult(ua.StatusCode(code if is_refused else 0))]
            said = {"event.action": "opcua_call", "ot.is_command": True}
            said["ot.operation"] = "control"
    return write, written, said, None if is_refused else {"event.outcome": "success"}


# ---- Real captures by tshark

Row = tuple[str, ...]


def _theirs(capture: Path, wanted: str, columns: tuple[str, ...]) -> dict[int, list[list[str]]]:
    """Frame → for each column what it holds, one value a message."""
    asked = [word for name in ("frame.number", *columns) for word in ("-e", name)]
    said = subprocess.run(
        [program("tshark"), "-r", str(capture), "-Y", wanted, "-T", "fields", *asked],
        capture_output=True, text=True, check=True, timeout=PATIENCE_S,
    ).stdout  # fmt: skip
    found = {}
    for line in said.splitlines():
        frame, *cells = line.split("\t")
        found[int(frame)] = [cell.split(",") if cell else [] for cell in cells]
    return found


def _ours(capture: Path, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(Frame, fields) of each message, in the order of the capture."""
    collector = Packets({name: plugin.load("decoders")[name]})
    for event in collected(collector, chunks(capture)):
        if event.logsource.category != "flow" and event.number < 1_000_000:
            assert isinstance(event.record.place, int)
            yield event.record.place, dict(event.fields)


def _first(cells: list[list[str]], at: int) -> str:
    return cells[at][0] if cells[at] else ""


def _s7(fields: dict[str, Any]) -> Row:
    code = int(fields["ot.function.code"], 16)
    if code >> 4 in (4, 8):
        return "7", str(code & 15), str(int(fields["ot.function.sub"], 16))
    return "job", f"{code:#04x}", ""


def _their_s7(cells: list[list[str]]) -> Iterator[Row]:
    kind, function, group, sub = (_first(cells, at) for at in range(4))
    if kind == "7":
        yield "7", group, str(int(sub, 0))
    elif function:
        yield "job", function, ""


def _enip(fields: dict[str, Any]) -> Row:
    answers = 0x80 if fields["ot.direction"] == "response" else 0
    code = int(fields["ot.function.code"], 16)
    if fields["event.action"].startswith("cip_"):
        return "cip", f"{code | answers:#04x}"
    return "enip", f"{code:#06x}"


def _their_enip(cells: list[list[str]]) -> Iterator[Row]:
    yield ("cip", _first(cells, 1)) if cells[1] else ("enip", _first(cells, 0))


def _mqtt(fields: dict[str, Any]) -> Row:
    return (str(fields["ot.function.code"]),)


def _their_mqtt(cells: list[list[str]]) -> Iterator[Row]:
    yield from ((kind,) for kind in cells[0])


def _snmp(fields: dict[str, Any]) -> Row:
    return (
        fields["ot.function.code"],
        str(fields["event.sequence"]),
        fields["ot.point.tag"].split(",")[0],
    )


def _their_snmp(cells: list[list[str]]) -> Iterator[Row]:
    yield _first(cells, 0), _first(cells, 1), _first(cells, 2)


def _coap(fields: dict[str, Any]) -> Row:
    kind, _, detail = fields["ot.function.code"].partition(".")
    code = int(kind) << 5 | int(detail)
    path = fields.get("url.path", "") if 0 < code < 32 else ""
    return str(code), str(fields["event.sequence"]), path


def _their_coap(cells: list[list[str]]) -> Iterator[Row]:
    code = _first(cells, 0)
    path = "/" + "/".join(cells[2]) if 0 < int(code) < 32 else ""
    yield code, _first(cells, 1), path


_SEEN_BY_TSHARK: dict[str, tuple[str, str, tuple[str, ...], Any, Any, int]] = {
    "s7comm": (
        "energy/s7comm_snap7_read_write_stop_download.pcap",
        "s7comm",
        ("s7comm.header.rosctr", "s7comm.param.func", "s7comm.param.userdata.funcgroup",
         "s7comm.param.userdata.subfunc"),
        _s7, _their_s7, 63,
    ),
    "enip": (
        "port/enip_cip_icsnpp_example.pcap",
        "enip && tcp",
        ("enip.command", "cip.service"),
        _enip, _their_enip, 269,
    ),
    "mqtt": (
        "city/mqtt_zeek.pcap", "mqtt", ("mqtt.msgtype",), _mqtt, _their_mqtt, 20
    ),
    "snmp": (
        "energy/iec61850_mms_and_goose.pcap",
        "snmp",
        ("snmp.data", "snmp.request_id", "snmp.name"),
        _snmp, _their_snmp, 14,
    ),
    "coap": (
        "city/coap_mqtt.pcap",
        "coap && frame.number > 5",
        ("coap.code", "coap.mid", "coap.opt.uri_path"),
        _coap, _their_coap, 14,
    ),
}  # fmt: skip
"""Decoder → capture, filter and columns of tshark, what of a message is compared, and how many of
its messages agree: all. CoAP begins with five messages whose options nobody has registered."""


@pytest.mark.parametrize("name", _SEEN_BY_TSHARK)
def test_tshark_and_we_say_the_same_of_a_capture(name: str, data: Path) -> None:
    file, wanted, columns, of_ours, of_theirs, count = _SEEN_BY_TSHARK[name]
    theirs = Counter(
        (frame, row)
        for frame, cells in _theirs(data / file, wanted, columns).items()
        for row in of_theirs(cells)
    )
    seen = {frame for frame, _ in theirs}
    ours = Counter(
        (frame, of_ours(fields)) for frame, fields in _ours(data / file, name) if frame in seen
    )

    agreed = (theirs & ours).total()
    missing = list((theirs - ours).items())
    # One message may be several events, each about an item of it.
    more = [one for one in ours if one not in theirs]
    assert (agreed, missing, more) == (theirs.total(), [], [])
    assert agreed == count
