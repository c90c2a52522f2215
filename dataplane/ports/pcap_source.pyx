"""PcapSource. The contract is in pcap_source.pxd."""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from dataplane.capture.reader cimport CaptureReader, Record
from dataplane.graph.element cimport NEVER
from dataplane.graph.offload cimport restore_gso
from dataplane.packet.pool cimport (HEADROOM, LARGE_FRAME, NO_PACKET, PACKET_TRUNCATED, Batch,
                                    Context, Packet, batch_add, packet_alloc, packet_buffer,
                                    packet_capacity, packet_data)
from dataplane.graph.offload cimport LINK_HEADERS, OFFLOAD_ALL
from dataplane.graph.port cimport Port

from dataplane.capture.reader import CaptureReader as OpenReader
from dataplane.errors import ConfigError, VnicError, one_line

cdef extern from "capture/formats.h" nogil:
    uint64_t vnic_scale(uint64_t value, uint64_t factor, uint64_t divisor)

MODES = {"captured": RECORDED, "pps": PACKETS_A_SECOND, "rate": BITS_A_SECOND, "asap": AT_ONCE}

cdef uint64_t CLOCK_END_NS = (<uint64_t>1 << 63) - 1    # 292 years

cdef enum:
    TRAILER_MOST = 1024          # bytes of options that are kept with a packet


cdef class PcapSource(Port):
    """Delivers the packets of a capture at their recorded times, plus `shift_ns`. Transmits
    nothing: packets sent into it are lost.

    Frames are as captured. A TCP frame longer than `mtu` (0: unlimited) becomes the GSO frame that
    a host of that MTU passed to its NIC. A frame that the capture truncated is marked
    (PACKET_TRUNCATED); shapers count its original length. A frame longer than any buffer is
    truncated in the same way, and the receiving NIC drops it as too long. pcapng options are kept
    with the packet if they fit behind the frame. reader: not shared. held: no packet is delivered
    before `start`.
    """

    def __init__(self, str name, CaptureReader reader not None, uint32_t number=0,
                 uint32_t queues=1, *, int64_t shift_ns=0,
                 bint held=False, uint32_t mtu=0):
        super().__init__(name, number, queues, OFFLOAD_ALL)
        self.reader = reader
        self.scheduled = True
        self.mtu = mtu
        self.shift_ns = shift_ns
        self.next_ns = 0
        with nogil:
            self.advance()
        self.first_ns = self.record.time_ns if self.next_ns != NEVER else 0
        self.waiting = held and self.next_ns != NEVER
        if held:
            self.next_ns = NEVER

    def start(self, uint64_t begin_ns, str mode="captured", uint64_t factor=1, uint64_t divisor=1,
              *, uint32_t loops=1,
              uint64_t lead_ns=0):
        """Starts a held source; once, on the engine's thread. Packets are due by the engine's clock
        from `begin_ns` on.

        A capture without packets is done at once; one that ends with an error is not played again.

        mode: "captured" (factor / divisor times as fast), "pps" (factor / divisor packets a
        second), "rate" (factor bit/s), "asap". loops: how often the capture is played. lead_ns: how
        long before a packet the engine stops sleeping.
        """
        if mode not in MODES or factor == 0 or divisor == 0 or loops == 0:
            raise ConfigError(f"{self.name}: schedule {mode} {factor}/{divisor}, {loops} loops")
        self.schedule.mode = MODES[mode]
        self.schedule.factor, self.schedule.divisor = factor, divisor
        self.lead_ns = lead_ns
        self.rounds = loops - 1 if self.waiting or self.next_ns != NEVER else 0
        self.begin_ns = begin_ns
        self.sequence = self.sent_bits = 0
        self.round_first_ns = self.record.time_ns
        self.round_packets = 1
        if self.waiting:
            self.waiting, self.next_ns = False, begin_ns

    def skip_until(self, uint64_t now_ns):
        """Skips the packets that were due before an instant. Only while no engine serves the port,
        after `start`."""
        with nogil:
            while self.next_ns < now_ns:
                self.advance()

    def save_state(self, direction):
        """`position`: packets of the capture before the next one."""
        return {"position": self.sequence} if direction == "rx" else {}

    def load_state(self, direction, dict state):
        if direction != "rx":
            return
        position = state.get("position")
        if set(state) != {"position"} or type(position) is not int or not 0 <= position < 1 << 63:
            raise VnicError(f"port {self.name}: its state is not a position in a capture")
        while self.next_ns != NEVER and self.sequence < <uint64_t>position:
            self.advance()

    @property
    def done(self):
        """Whether the last packet of the last round was delivered. Any thread may read it."""
        return self.next_ns == NEVER and self.rounds == 0 and not self.waiting

    @property
    def error(self):
        """The error that ended the capture, or its rounds, early; or None."""
        return self.failure or self.reader.error

    def close(self):
        self.reader.close()
        self.next_ns = NEVER

    cdef void advance(self) noexcept nogil:
        """Reads the next packet; next_ns becomes its due time."""
        cdef int64_t due
        self.sequence += 1
        self.sent_bits += 8 * <uint64_t>self.record.original
        if self.reader.next(&self.record) != 1:
            self.next_ns = NEVER
            if self.rounds:
                with gil:
                    self.again()
            return
        if self.begin_ns:
            self.round_packets += 1
            self.next_ns = max(self.next_ns, self.instant())
            return
        due = <int64_t>self.record.time_ns + self.shift_ns
        if due < <int64_t>self.next_ns:
            self.out_of_order += 1
        else:
            self.next_ns = <uint64_t>due

    @cython.final
    cdef uint64_t instant(self) noexcept nogil:
        """When the next packet is due: computed from the beginning, so errors do not add up."""
        cdef uint64_t since = (self.record.time_ns - self.round_first_ns
                               if self.record.time_ns > self.round_first_ns else 0)
        cdef uint64_t after = 0
        if self.schedule.mode == RECORDED:
            after = vnic_scale(since, self.schedule.divisor, self.schedule.factor)
        elif self.schedule.mode == PACKETS_A_SECOND:
            after = vnic_scale(self.sequence, 1000000000 * self.schedule.divisor,
                               self.schedule.factor)
        elif self.schedule.mode == BITS_A_SECOND:
            after = vnic_scale(self.sent_bits, 1000000000, self.schedule.factor)
        # At most the clock's end: a few bits a second and a few thousand packets exceed it.
        return self.begin_ns + min(after, CLOCK_END_NS - self.begin_ns)

    cdef void again(self) noexcept:
        """Restarts the capture. With recorded times, the next round begins a mean gap after the
        last packet."""
        cdef uint64_t length = self.instant() - self.begin_ns
        if self.reader.error is not None:
            # Each further round would end at the same place.
            self.rounds = 0
            return
        try:
            reader = OpenReader(self.reader.path)
        except Exception as error:
            # The file was removed or replaced meanwhile. Packets read so far were delivered.
            self.failure = f"{one_line(error)}, at the start of another round"
            self.rounds = 0
            return
        self.reader.close()
        self.finished_packets += self.reader.packets
        self.reader = reader
        if self.schedule.mode == RECORDED:
            length += length // max(self.round_packets - 1, <uint64_t>1)
            self.begin_ns += min(length, CLOCK_END_NS - self.begin_ns)
        if self.reader.next(&self.record) == 1:
            self.round_first_ns, self.round_packets = self.record.time_ns, 1
            self.next_ns = self.instant()
            # after next_ns, so that `done` stays False between rounds
            self.rounds -= 1
            return
        if self.reader.error is None:
            self.failure = f"{self.reader.path}: has no packets, at the start of another round"
        self.rounds = 0

    @property
    def packets(self):
        """Packets read so far, over all rounds."""
        return self.finished_packets + self.reader.packets

    @cython.final
    cdef uint32_t take(self, Context *ctx, uint32_t queue) noexcept nogil:
        """Allocates the packet that is due; or NO_PACKET."""
        cdef const Record *record = &self.record
        cdef uint32_t index, bytes = record.options_bytes, captured = record.captured
        cdef Packet *p
        if captured > LARGE_FRAME:
            captured = LARGE_FRAME
            self.too_long += 1
        index = packet_alloc(ctx, captured)
        if index == NO_PACKET:
            return NO_PACKET
        p = &ctx.packets[index]
        # when it was due
        p.timestamp_ns = (self.next_ns if self.begin_ns and self.schedule.mode != AT_ONCE
                          else ctx.now_ns)
        p.port, p.queue = <uint16_t>self.number, <uint16_t>queue
        memcpy(packet_data(ctx, index), record.data, captured)
        if captured < record.original:
            p.flags |= PACKET_TRUNCATED
            p.original_length = record.original
        if self.edits:
            # before the GSO fields, which depend on the edited frame
            self.edit(ctx, index)
        if self.mtu and p.length > self.mtu + LINK_HEADERS and not p.flags & PACKET_TRUNCATED:
            restore_gso(packet_data(ctx, index), p, self.mtu)
        # Only options in the machine's byte order are copied; the writer adds the end mark.
        if bytes and not record.swapped and bytes <= TRAILER_MOST and (
                HEADROOM + captured + bytes <= packet_capacity(ctx, index)):
            bytes = whole_options(record.options, bytes)
            p.trailer_bytes = <uint16_t>bytes
            memcpy(packet_buffer(ctx, index) + packet_capacity(ctx, index) - bytes, record.options,
                   bytes)
        return index

    cdef void edit(self, Context *ctx, uint32_t index) noexcept nogil:
        """Changes a frame before it is delivered; called where `edits` is set."""

    @cython.final
    cdef void deliver(self, Context *ctx, uint32_t queue, Batch *batch) noexcept nogil:
        """Adds the packet that is due to the batch, and counts it."""
        cdef uint32_t index = self.take(ctx, queue)
        cdef Packet *p
        if index == NO_PACKET:
            self.stats[0].rx_dropped += 1
            return
        p = &ctx.packets[index]
        self.stats[0].rx_packets += 1
        self.stats[0].rx_bytes += p.length
        if p.flags & PACKET_TRUNCATED:           # Parse counts the segments of GSO frames
            self.stats[0].rx_more_bytes += p.original_length - p.length
        batch_add(batch, index)

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch,
                           uint32_t limit) noexcept nogil:
        cdef uint32_t taken = 0, before = batch.count
        if queue:
            return 0
        while taken < limit and self.next_ns <= ctx.now_ns:
            self.deliver(ctx, queue, batch)
            taken += 1
            PcapSource.advance(self)             # SideSource's comes here only to call this one
        return batch.count - before


cdef uint32_t whole_options(const uint8_t *options, uint32_t bytes) noexcept nogil:
    """Bytes of the complete options, without the end mark."""
    cdef uint32_t at = 0, padded
    cdef uint16_t head[2]
    while at + 4 <= bytes:
        memcpy(head, options + at, 4)
        padded = 4 + ((<uint32_t>head[1] + 3) & ~<uint32_t>3)
        if head[0] == 0 or at + padded > bytes:
            break
        at += padded
    return at
