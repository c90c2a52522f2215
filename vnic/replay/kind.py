"""NICs with captures instead of containers: they receive from one, and transmit into another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataplane.capture.reader import CaptureReader
from dataplane.capture.writer import CaptureWriter
from dataplane.elements.nic_tx import NicTx
from dataplane.elements.rss import Rss
from dataplane.graph.port import Port
from dataplane.ports.pcap_sink import PcapSink
from dataplane.ports.pcap_source import PcapSource
from dataplane.ports.side_source import SharedCapture, SideSource, Split
from dataplane.wire.rewrite import Rewrite
from vnic.device.kinds.contract import (
    INTERFACE,
    NicKind,
    Origin,
    Settings,
    UncontainedNic,
    offloads_of,
)


class ReplayNic(UncontainedNic):
    """A NIC that receives from `source` (None: nothing) and transmits into `sink`."""

    def __init__(
        self, config: Settings, number: int, source: PcapSource | None, sink: PcapSink
    ) -> None:
        super().__init__(config, source or Port(config.name, number, config.queues))
        self.source, self.sink = source, sink
        self.rss = Rss(config.rss.key, config.rss.table, queues=config.queues)
        self.tx = NicTx(sink, self.rss, name=f"{config.name}.tx")

    def status(self) -> dict[str, Any]:
        """The NIC's settings."""
        return {
            "interface": self.settings.interface,
            "mac": self.settings.mac,
            "mtu": self.settings.mtu,
            "queues": self.port.queues,
        }

    def queue_statistics(self) -> list[dict[str, int]]:
        """One dict per queue: received from the capture, transmitted to the other."""
        pairs = zip(self.port.queue_statistics(), self.sink.queue_statistics(), strict=True)
        return [{key: received[key] + sent[key] for key in received} for received, sent in pairs]


class ReplayKind(NicKind[ReplayNic]):
    """NICs over `readers` (by NIC's name) and `writer`, whose interfaces have the NICs'
    numbers.

    split: assigns the only reader's packets to the NICs by side. rewrite: changes to frames. macs:
    the NICs' MAC addresses, which replace those of frames. shifts: nanoseconds added to the times
    of a NIC's packets. It takes the settings of a NIC with an interface, since it stands for one.
    """

    NAME = "replay"
    SETTINGS = INTERFACE

    def __init__(
        self,
        readers: Mapping[str, CaptureReader],
        writer: CaptureWriter | None,
        *,
        held: bool = False,
        split: Split | None = None,
        rewrite: Rewrite | None = None,
        macs: bytes = b"",
        shifts: Mapping[str, int] | None = None,
    ) -> None:
        self.readers, self.writer, self.held = dict(readers), writer, held
        self.rewrite, self.macs, self.shifts = rewrite, macs, shifts or {}
        self.shared = (
            None if split is None else SharedCapture(next(iter(self.readers.values())), split)
        )

        self.nics: dict[str, ReplayNic] = {}

    def open(self, config: Settings, number: int, origin: Origin) -> ReplayNic:
        reader = self.readers.get(config.name)
        queues = config.queues
        source = self._source(f"{config.name}.in", reader, number, config)
        interface = number if self.writer else 0
        sink = PcapSink(
            f"{config.name}.out",
            self.writer,
            interface,
            number=number,
            queues=queues,
            offloads=offloads_of(config.offloads),
            mtu=config.mtu,
        )
        nic = self.nics[config.name] = ReplayNic(config, number, source, sink)
        return nic

    def _source(
        self, name: str, reader: CaptureReader | None, number: int, config: Settings
    ) -> PcapSource | None:
        if self.shared is not None:
            reader = self.shared.reader
        if reader is None:
            return None
        # A TCP frame longer than the MTU was a GSO frame, if the container sends such frames.
        mtu = config.mtu if config.offloads.tso else 0
        shift = self.shifts.get(config.name, 0)
        if self.shared is None and self.rewrite is None and not self.macs and not shift:
            return PcapSource(name, reader, number, config.queues, held=self.held, mtu=mtu)
        source = SideSource(
            name,
            reader,
            number,
            config.queues,
            held=self.held,
            mtu=mtu,
            shared=self.shared,
            side=number,
            rewrite=self.rewrite,
            macs=self.macs,
        )
        source.shift(shift)
        return source
