"""Frames and captures, built byte by byte: what a tap on a wire of the exercise records."""

from __future__ import annotations

import ipaddress
import struct
from random import Random

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
TCP, UDP = 6, 17
SNAPLEN = 65_535

Frame = tuple[float, bytes]
"""Seconds of the evening, bytes on the wire."""


def pcap_head() -> bytes:
    """First bytes of a capture of Ethernet frames with times in microseconds.

    References:
        draft-ietf-opsawg-pcap, section 4.
    """
    return struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, SNAPLEN, 1)


def pcap_record(time_us: int, frame: bytes) -> bytes:
    """A frame as it stands in a capture."""
    seconds, rest = divmod(time_us, 1_000_000)
    return struct.pack("<IIII", seconds, rest, len(frame), len(frame)) + frame


def mac_of(address: str) -> bytes:
    """A locally administered MAC address that belongs to an IP address."""
    return b"\x02\x00" + ipaddress.ip_address(address).packed[-4:]


def segment(
    source: tuple[str, int],
    target: tuple[str, int],
    flags: int,
    numbers: tuple[int, int],
    data: bytes = b"",
) -> bytes:
    """A TCP segment in its frame.

    Args:
        source: Address and port of the sender.
        target: Address and port of the receiver.
        flags: FIN, SYN, RST, PSH, ACK.
        numbers: Sequence and acknowledgement number.
        data: Payload.
    """
    ports = struct.pack(">HH", source[1], target[1])
    seq, ack = (number & 0xFFFFFFFF for number in numbers)
    head = ports + struct.pack(">IIBBHHH", seq, ack, 0x50, flags, 29_200, 0, 0)
    return _frame(source[0], target[0], TCP, head + data, 16)


def datagram(source: tuple[str, int], target: tuple[str, int], data: bytes) -> bytes:
    """A UDP datagram in its frame."""
    head = struct.pack(">HHHH", source[1], target[1], 8 + len(data), 0)
    return _frame(source[0], target[0], UDP, head + data, 6)


def _frame(source: str, target: str, protocol: int, body: bytes, checksum_at: int) -> bytes:
    one, two = ipaddress.ip_address(source), ipaddress.ip_address(target)
    pseudo = one.packed + two.packed
    if one.version == 4:
        pseudo += struct.pack(">BBH", 0, protocol, len(body))
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, 64, protocol, 0)
        head += one.packed + two.packed
        head = head[:10] + _checksum(head) + head[12:]
        kind = 0x0800
    else:
        pseudo += struct.pack(">IHBB", len(body), 0, 0, protocol)
        head = struct.pack(">IHBB", 6 << 28, len(body), protocol, 64) + one.packed + two.packed
        kind = 0x86DD
    check = _checksum(pseudo + body)
    body = body[:checksum_at] + check + body[checksum_at + 2 :]
    return mac_of(target) + mac_of(source) + struct.pack(">H", kind) + head + body


def _checksum(data: bytes) -> bytes:
    """Ones' complement sum, RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF or 0xFFFF)


class Talk:
    """One TCP connection, frame by frame; time passes with every frame.

    Args:
        client: Who starts it.
        server: Who is called.
        port: The server's port.
        at_s: When it starts, seconds of the evening.
        random: Gives port, sequence numbers and pauses.
        pace_s: Usual pause between a frame and its answer, seconds.
    """

    def __init__(
        self,
        client: str,
        server: str,
        port: int,
        at_s: float,
        random: Random,
        pace_s: float = 0.05,
    ) -> None:
        self.frames: list[Frame] = []
        self.now_s = at_s
        self._ends = (client, random.randint(32_768, 60_999)), (server, port)
        self._next = [random.getrandbits(32), random.getrandbits(32)]
        self._random = random
        self._pace_s = pace_s

    def open(self) -> Talk:
        """The three steps of RFC 9293, 3.5."""
        self._send(0, SYN, 1, ack=False)
        self._send(1, SYN | ACK, 1)
        self._send(0, ACK)
        return self

    def ask(self, data: bytes, *answers: bytes) -> Talk:
        """The client sends something, and the server answers."""
        self._send(0, PSH | ACK, len(data), data)
        for answer in answers:
            self.tell(answer)
        return self

    def tell(self, data: bytes) -> Talk:
        """The server sends something by itself."""
        self._send(1, PSH | ACK, len(data), data)
        return self

    def wait(self, until_s: float) -> Talk:
        """Nothing happens until a second of the evening."""
        self.now_s = max(self.now_s, until_s)
        return self

    def close(self) -> Talk:
        """Both sides say that they are done."""
        self._send(0, FIN | ACK, 1)
        self._send(1, FIN | ACK, 1)
        self._send(0, ACK)
        return self

    def refused(self) -> Talk:
        """The client calls, and nobody listens on that port."""
        self._send(0, SYN, 1, ack=False)
        self._send(1, RST | ACK)
        return self

    def unanswered(self, tries: int = 2) -> Talk:
        """The client calls, and nothing comes back."""
        for _ in range(tries):
            self._send(0, SYN, ack=False)
        return self

    def _send(
        self, side: int, flags: int, length: int = 0, data: bytes = b"", *, ack: bool = True
    ) -> None:
        numbers = (self._next[side], self._next[1 - side] if ack else 0)
        frame = segment(self._ends[side], self._ends[1 - side], flags, numbers, data)
        self.frames.append((self.now_s, frame))
        self._next[side] += length
        self.now_s += self._pace_s * (0.5 + self._random.random())
