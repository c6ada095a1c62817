"""Messages of control protocols, as the devices of the exercise send them."""

from __future__ import annotations

import struct
from collections.abc import Sequence

# ---- Modbus/TCP, MODBUS Messaging on TCP/IP Implementation Guide V1.0b, section 3.1.3

READ_HOLDING, WRITE_SINGLE, UMAS = 3, 6, 0x5A
MODBUS_PORT = 502


def modbus(transaction: int, unit: int, pdu: bytes) -> bytes:
    """A message with its header."""
    return struct.pack(">HHHB", transaction & 0xFFFF, 0, len(pdu) + 1, unit) + pdu


def read_holding(address: int, count: int) -> bytes:
    """Ask for holding registers."""
    return struct.pack(">BHH", READ_HOLDING, address, count)


def holding(values: Sequence[int]) -> bytes:
    """The answer with their values."""
    return struct.pack(f">BB{len(values)}H", READ_HOLDING, 2 * len(values), *values)


def write_single(address: int, value: int) -> bytes:
    """Set a holding register; the answer is the same."""
    return struct.pack(">BHH", WRITE_SINGLE, address, value)


def umas(session: int, function: int, data: bytes = b"") -> bytes:
    """A message of an engineering session with a Modicon controller, inside Modbus."""
    return bytes((UMAS, session, function)) + data


# ---- IEC 60870-5-104

IEC104_PORT = 2404
STARTDT_ACT, STARTDT_CON = b"\x68\x04\x07\0\0\0", b"\x68\x04\x0b\0\0\0"
MEASURED_FLOAT, DOUBLE_COMMAND, INTERROGATION = 13, 46, 100
"""Type identifications M_ME_NC_1, C_DC_NA_1, C_IC_NA_1; IEC 60870-5-101, 7.2.1.1."""
SPONTANEOUS, ACTIVATION, CONFIRMATION, TERMINATION, INTERROGATED = 3, 6, 7, 10, 20
"""Causes of transmission; IEC 60870-5-101, 7.2.3."""


class Station:
    """Numbers the messages of one connection with one station.

    Args:
        address: Common address of the station.
    """

    def __init__(self, address: int) -> None:
        self.address = address
        self._sent = [0, 0]

    def asks(self, kind: int, cause: int, objects: bytes, count: int = 1) -> bytes:
        """A message of the controlling station."""
        return self._message(0, kind, cause, objects, count)

    def tells(self, kind: int, cause: int, objects: bytes, count: int = 1) -> bytes:
        """A message of the controlled station."""
        return self._message(1, kind, cause, objects, count)

    def _message(self, side: int, kind: int, cause: int, objects: bytes, count: int) -> bytes:
        unit = struct.pack("<BBBBH", kind, count, cause, 0, self.address) + objects
        numbers = struct.pack("<HH", self._sent[side] << 1, self._sent[1 - side] << 1)
        self._sent[side] = (self._sent[side] + 1) & 0x7FFF
        return struct.pack("<BB", 0x68, 4 + len(unit)) + numbers + unit


def point(address: int) -> bytes:
    """Address of an information object."""
    return address.to_bytes(3, "little")


def measured(address: int, value: float) -> bytes:
    """A short floating point value of good quality."""
    return point(address) + struct.pack("<fB", value, 0)


def double_command(address: int, *, on: bool) -> bytes:
    """Switch on or off, executed at once."""
    return point(address) + bytes((2 if on else 1,))


def interrogation() -> bytes:
    """Ask for everything: qualifier 20, the whole station."""
    return point(0) + bytes((20,))


# ---- GTFS-realtime 2.0, gtfs-realtime.proto; protobuf encoding


def feed(time_s: int, entities: Sequence[bytes]) -> bytes:
    """A FeedMessage: header of version 2.0, whole data set, and its entities."""
    header = _text(1, "2.0") + _number(2, 0) + _number(3, time_s)
    return _part(1, header) + b"".join(_part(2, one) for one in entities)


def vehicle(
    track: str, trip: str, route: str, place: tuple[float, float], speed: float, time_s: int
) -> bytes:
    """An entity with the position of a vehicle.

    Args:
        track: Id of the vehicle.
        trip: Trip it makes.
        route: Route of the trip.
        place: Latitude and longitude.
        speed: Metres a second.
        time_s: When it was there.
    """
    position = _float(1, place[0]) + _float(2, place[1]) + _float(5, speed)
    said = _part(1, _text(1, trip) + _text(5, route)) + _part(2, position)
    said += _number(5, time_s) + _part(8, _text(1, track))
    return _text(1, track) + _part(4, said)


def trip_update(trip: str, route: str, delay_s: int, time_s: int) -> bytes:
    """An entity with the delay of a trip; not negative."""
    said = _part(1, _text(1, trip) + _text(5, route)) + _number(4, time_s) + _number(5, delay_s)
    return _text(1, trip) + _part(3, said)


def trip_cancelled(trip: str, route: str, time_s: int) -> bytes:
    """An entity that says that a trip does not run: schedule relationship CANCELED."""
    said = _part(1, _text(1, trip) + _number(4, 3) + _text(5, route)) + _number(4, time_s)
    return _text(1, trip) + _part(3, said)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _part(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field: int, text: str) -> bytes:
    return _part(field, text.encode())


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
