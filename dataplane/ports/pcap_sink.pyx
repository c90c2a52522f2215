"""PcapSink and DropRecorder. The contract is in pcap_sink.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.capture.writer cimport CaptureWriter
from dataplane.graph.element cimport Element
from dataplane.engine.engine cimport Engine
from dataplane.engine.meter cimport Meter
from dataplane.packet.pool cimport Batch, Context, Packet, packet_free, packet_wire_bytes
from dataplane.graph.port cimport NO_MTU, TX_IO_ERROR, TX_TOO_LONG, Port, fits_mtu

from dataplane.errors import ConfigError


cdef class PcapSink(Port):
    """Writes packets as interface `interface` of `writer`, at the engine's time, and meters them.
    Receives nothing.

    writer: several sinks may share one; None: packets are metered and freed. After a failed write
    packets are dropped (io_error). offloads: frames that need others are completed before
    (checksums, segments). mtu: longer frames are dropped (too_long), as by a TAP of that MTU.
    """

    MOVABLE = False              # it has meters

    def __init__(self, str name, CaptureWriter writer, uint32_t interface=0, *, uint32_t number=0,
                 uint32_t queues=1,
                 uint32_t offloads=0, uint32_t mtu=NO_MTU):
        super().__init__(name, number, queues, offloads)
        if writer is not None and interface >= writer.interfaces:
            raise ConfigError(f"{name}: interface {interface}; {writer.path} has "
                              f"{writer.interfaces}, from 0")
        self.writer, self.interface, self.mtu = writer, interface, mtu
        self._kept = []

    @property
    def meters(self):
        """The meters in use, by class (a packet's mark)."""
        return {i: <Meter>self.meters[i] for i in range(CLASSES + 1) if self.meters[i] != NULL}

    cdef Meter meter(self, uint32_t number):
        made = Meter()
        self._kept.append(made)
        self.meters[number] = <void *>made
        return made

    cdef uint32_t tx_burst(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        cdef uint32_t i, index, number, wire_bytes, left = 0, sent = 0
        cdef uint64_t bytes = 0, more_bytes = 0
        cdef uint32_t limit = self.queues - 1
        cdef Packet *p
        queue = queue if queue < limit else limit
        for i in range(batch.count):
            index = batch.index[i]
            p = &ctx.packets[index]
            if not fits_mtu(p, self.mtu):
                p.tx_status = TX_TOO_LONG
                batch.index[left] = index
                left += 1
                continue
            if self.writer is not None and not self.writer.write_packet(
                    ctx, index, self.interface, ctx.now_ns, NULL, 0):
                p.tx_status = TX_IO_ERROR
                batch.index[left] = index
                left += 1
                continue
            number = p.mark if p.mark < CLASSES else CLASSES
            if self.meters[number] == NULL:
                with gil:
                    self.meter(number)
            wire_bytes = packet_wire_bytes(p)
            (<Meter>self.meters[number]).note(ctx.now_ns, ctx.now_ns - p.timestamp_ns, wire_bytes)
            bytes += p.length
            # no GSO frames here, but perhaps truncated ones
            more_bytes += wire_bytes - p.length
            packet_free(ctx, index)
            sent += 1
        self.stats[queue].tx_packets += sent
        self.stats[queue].tx_bytes += bytes
        self.stats[queue].tx_more_bytes += more_bytes
        self.stats[queue].tx_dropped += left
        batch.count = left
        return sent


cdef class DropRecorder:
    """Meters every packet that an element of `engines` drops, by element and reason; writes it to
    `writer`, where there is one, with "dropped: ELEMENT: REASON" as comment."""

    def __init__(self, CaptureWriter writer, uint32_t interface, engines):
        cdef Engine engine
        self.writer, self.interface, self._comments, self.meters = writer, interface, {}, {}
        for engine in engines:
            engine.ctx.on_drop_who = <void *>self
            engine.ctx.on_drop = record_drop
        self._engines = list(engines)

    def close(self):
        """Unregisters from the engines."""
        cdef Engine engine
        for engine in self._engines:
            engine.ctx.on_drop = NULL
            engine.ctx.on_drop_who = NULL
        self._engines = []

    cdef void record(self, Context *ctx, void *element, uint32_t index,
                     uint32_t reason) noexcept nogil:
        cdef Packet *p = &ctx.packets[index]
        with gil:
            key = (<uint64_t>element, reason)
            if key not in self._comments:
                dropper = <Element>element
                name = f"{dropper.name}: {type(dropper).DROP_REASONS[reason]}"
                self._comments[key] = f"dropped: {name}".encode(), self.meters.setdefault(
                    name, Meter())
            comment, meter = self._comments[key]
            (<Meter>meter).note(ctx.now_ns, ctx.now_ns - p.timestamp_ns, packet_wire_bytes(p))
            if self.writer is not None:
                self.writer.write_packet(ctx, index, self.interface, ctx.now_ns,
                                         <const char *><bytes>comment,
                                         <uint32_t>len(comment))


cdef void record_drop(void *who, Context *ctx, void *element, uint32_t index,
                      uint32_t reason) noexcept nogil:
    (<DropRecorder>who).record(ctx, element, index, reason)
