"""NetFlow, IPFIX and sFlow on the wire: flows that somebody reports to somebody else.

Understood: what the collectors `netflow` and `sflow` understand, from the datagrams of a capture;
events say the flow that is reported, `observer.ip` says who reported it.

Not understood: what the collectors do not; records whose template was sent before the capture
began wait for it, as far as its conversation lasts.

References:
    RFC 3954 (NetFlow 9), RFC 7011 (IPFIX); sFlow.org, sFlow Version 5.
"""

from __future__ import annotations

from collections.abc import Sequence

from cityward import Session, decoder
from collectors.flows.ends import Fields
from collectors.flows.netflow import FLOW, Exports, is_export
from collectors.flows.sflow import SFLOW, Samples, is_sflow

TEMPLATES_MAX, ELEMENTS_MAX = 128, 1_024
"""Of one conversation, of which there may be many."""
HELD_MAX_BYTES = 16_384
PORTS = (2055, 2056, 4739, 9555, 9995, 9996)
"""4739 is registered for IPFIX; the others are customs."""


@decoder("netflow", FLOW, transport="udp", ports=PORTS, begins=b"\x00")
class NetflowDatagrams:
    """One exporter that reports to one collector."""

    def __init__(self, session: Session) -> None:
        self._exports = Exports(TEMPLATES_MAX, ELEMENTS_MAX, HELD_MAX_BYTES)
        self._exporters = {
            True: str(session.base.get("source.ip", session.client)),
            False: str(session.base.get("destination.ip", session.server)),
        }

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`."""
        return is_export(head)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        told = self._exports.read(data, self._exporters[from_client])
        return len(data), [{"network.protocol": "netflow", **fields} for _, fields in told]

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; datagrams have none."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; nothing is open."""
        return ()


@decoder("sflow", SFLOW, transport="udp", ports=(6343,), begins=b"\x00")
class SflowDatagrams:
    """One switch that sends its samples to one collector."""

    def __init__(self, session: Session) -> None:
        self._samples = Samples()

    @staticmethod
    def recognises(head: bytes) -> bool:
        """See `Decoder`."""
        return is_sflow(head)

    def feed(
        self, data: bytes, from_client: bool, time_s: float, frame: int
    ) -> tuple[int, Sequence[Fields]]:
        """See `Decoder`."""
        told = self._samples.read(data)
        return len(data), [{"network.protocol": "sflow", **fields} for fields in told]

    def gap(self, from_client: bool) -> None:
        """See `Decoder`; datagrams have none."""

    def end(self) -> Sequence[Fields]:
        """See `Decoder`; nothing is open."""
        return ()
