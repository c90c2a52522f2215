"""NICs of kind `capture`: capture files in place of a container. The NIC sends the frames of one,
each at its time from BEGIN_NS after the NIC's start on, and writes those that it receives to
another.

The start is stored with the configuration, so that the next worker continues where the last one
was: during an upgrade with the next frame; after a crash with the frame that is due, as a sender
that does not wait for vnic. The written file is continued.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from dataplane.descriptors import system_error
from dataplane.errors import ConfigError
from vnic.device.kinds.contract import NicKind, Origin, Settings, UncontainedNic

if TYPE_CHECKING:
    from dataplane.graph.element import Element
    from dataplane.ports.pcap_source import PcapSource
    from dataplane.ports.pcap_writer import PcapWriter


# from the start of a NIC to its first frame: the others of its file are up by then
BEGIN_NS = 200_000_000


class CaptureNic(UncontainedNic):
    """A NIC that receives from `source`, and transmits into `sink`. None: it receives nothing, or
    drops packets to transmit."""

    def __init__(
        self, settings: Settings, number: int, source: PcapSource | None, sink: PcapWriter | None
    ) -> None:
        from dataplane.elements.counter import Discard
        from dataplane.elements.nic_tx import NicTx
        from dataplane.elements.rss import Rss
        from dataplane.graph.port import Port

        super().__init__(settings, source or Port(settings.name, number))
        self._source, self._sink = source, sink
        name = f"{settings.name}.tx"
        self.tx: Element = (
            Discard(name=name) if sink is None else NicTx(sink, Rss(queues=1), name=name)
        )

    def status(self) -> dict[str, Any]:
        """The NIC's state and settings, as a dict. read_error: why reading ended early."""
        settings = self.settings
        return {
            "kind": "capture",
            "interface": settings.read or settings.write,
            "pid": None,
            "netns": None,
            "mac": self.mac,
            "mtu": settings.mtu,
            "queues": 1,
            "offloads": [],
            "rx_packets": self.queue_statistics()[0]["rx_packets"],
            "tx_packets": self.queue_statistics()[0]["tx_packets"],
            "read": settings.read,
            "write": settings.write,
            "read_error": None if self._source is None else self._source.error,
        }

    def queue_statistics(self) -> list[dict[str, int]]:
        """One dict: received from the file that is read, transmitted to the one that is written."""
        [counted] = self.port.queue_statistics()
        if self._sink is not None:
            [sent] = self._sink.queue_statistics()
            counted = {key: counted[key] + sent[key] for key in counted}
        return [counted]

    def close(self) -> None:
        """Closes both files after writing the waiting packets."""
        super().close()
        if self._sink is not None:
            self._sink.close()


class CaptureKind(NicKind[CaptureNic]):
    """A file that is read, a file that is written, or both."""

    NAME = "capture"
    SETTINGS = frozenset({"read", "write", "mac", "mtu"})
    WHY = "files take the place of its container"

    def open(self, settings: Settings, number: int, origin: Origin) -> CaptureNic:
        from dataplane.engine.clock import Clock
        from dataplane.ports.pcap_writer import PcapWriter

        _check(settings)
        resumes = settings.began_ns is not None
        began_ns = settings.began_ns or Clock().now_ns + BEGIN_NS
        with ExitStack() as undo:
            source = sink = None
            if settings.read is not None:
                source = _source(settings, number, began_ns)
                undo.callback(source.close)
            if settings.write is not None:
                pcapng = settings.write.endswith(".pcapng")
                sink = PcapWriter(
                    f"nic {settings.name}",
                    settings.write,
                    number,
                    offloads=0,
                    pcapng=pcapng,
                    resume=resumes,
                )
                undo.callback(sink.close)
            nic = CaptureNic(settings, number, source, sink)
            undo.pop_all()
            settings.began_ns = began_ns
            return nic


def _check(settings: Settings) -> None:
    """Raises ConfigError for files that cannot be those of a NIC."""
    label = f"nic {settings.name}"
    if settings.read is None and settings.write is None:
        raise ConfigError(
            f"{label}: has neither read nor write: "
            f"expected the path of a capture file in one of them"
        )
    for word, path in (("read", settings.read), ("write", settings.write)):
        if path is not None and not os.path.isabs(path):
            raise ConfigError(
                f"{label}: {word}: {path} is a relative path: expected one that begins with /"
            )
    if settings.read is None:
        return
    try:
        found = os.stat(settings.read)
    except OSError as error:
        raise ConfigError(f"{label}: read: {settings.read}: {system_error(error)}") from None
    if not stat.S_ISREG(found.st_mode):  # opening a pipe could block
        raise ConfigError(
            f"{label}: read: {settings.read} is not a file: expected a pcap or pcapng file"
        )
    if settings.write is not None and os.path.realpath(settings.read) == os.path.realpath(
        settings.write
    ):
        raise ConfigError(f"{label}: write: is the file that it reads: expected another one")


def _source(settings: Settings, number: int, began_ns: int) -> PcapSource:
    """The port that delivers the file's packets; if it began in an earlier worker, from the packet
    that is due now."""
    from dataplane.capture.reader import CaptureReader
    from dataplane.engine.clock import Clock
    from dataplane.ports.pcap_source import PcapSource

    reader = CaptureReader(str(settings.read))
    try:
        # A TCP frame longer than the MTU was a GSO frame.
        source = PcapSource(f"{settings.name}.in", reader, number, held=True, mtu=settings.mtu)
        source.start(began_ns)
        source.skip_until(Clock().now_ns)
        return source
    except BaseException:
        reader.close()
        raise
