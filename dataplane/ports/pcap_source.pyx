"""PcapSource. The contract is in pcap_source.pxd."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from dataplane.capture.reader cimport CaptureReader, Record
from dataplane.element cimport NEVER
from dataplane.packet cimport (HEADROOM, LARGE_FRAME, NO_PACKET, PACKET_TRUNCATED, Batch, Context, Packet, batch_add, packet_alloc,
                               packet_buffer, packet_capacity, packet_data)
from dataplane.port cimport OFFLOAD_ALL, Port

cdef enum:
    TRAILER_MOST = 1024          # bytes of options that travel with a packet


cdef class PcapSource(Port):
    """Delivers the packets of a capture at their recorded instants, plus `shift_ns`. Transmits nothing: what is sent into it is lost.

    Frames are as captured: no offloads. One that the capture cut is marked (PACKET_TRUNCATED) and is worth its original length to a
    shaper. Options of pcapng's packets travel along as far as there is room behind the frame. reader: not shared with anybody.
    """

    def __init__(self, str name, CaptureReader reader not None, uint32_t number=0, uint32_t queues=1, *, int64_t shift_ns=0):
        super().__init__(name, number, queues, OFFLOAD_ALL)
        self.reader = reader
        self.scheduled = True
        self.shift_ns = shift_ns
        self.next_ns = 0
        with nogil:
            self.advance()
        self.first_ns = self.record.time_ns if self.next_ns != NEVER else 0

    @property
    def error(self):
        """What ended the capture early, or None."""
        return self.reader.error

    def close(self):
        self.reader.close()
        self.next_ns = NEVER

    cdef void advance(self) noexcept nogil:
        """Reads the next packet; next_ns becomes its instant."""
        cdef int64_t due
        if self.reader.next(&self.record) != 1:
            self.next_ns = NEVER
            return
        due = <int64_t>self.record.time_ns + self.shift_ns
        if due < <int64_t>self.next_ns:
            self.out_of_order += 1
        else:
            self.next_ns = <uint64_t>due

    cdef uint32_t take(self, Context *ctx, uint32_t queue) noexcept nogil:
        """The packet that is due, or NO_PACKET."""
        cdef const Record *record = &self.record
        cdef uint32_t index, bytes = record.options_bytes
        cdef Packet *p
        if record.captured > LARGE_FRAME:
            self.too_long += 1
            return NO_PACKET
        index = packet_alloc(ctx, record.captured)
        if index == NO_PACKET:
            return NO_PACKET
        p = &ctx.packets[index]
        p.timestamp_ns = ctx.now_ns
        p.port, p.queue = <uint16_t>self.number, <uint16_t>queue
        memcpy(packet_data(ctx, index), record.data, record.captured)
        if record.captured < record.original:
            p.flags |= PACKET_TRUNCATED
            p.original_length = record.original
        # Only options in the machine's byte order can be written back as they are; the end-of-options mark is the writer's.
        if bytes and not record.swapped and bytes <= TRAILER_MOST and (
                HEADROOM + record.captured + bytes <= packet_capacity(ctx, index)):
            bytes = whole_options(record.options, bytes)
            p.trailer_bytes = <uint16_t>bytes
            memcpy(packet_buffer(ctx, index) + packet_capacity(ctx, index) - bytes, record.options, bytes)
        return index

    cdef uint32_t rx_burst(self, Context *ctx, uint32_t queue, Batch *batch, uint32_t limit) noexcept nogil:
        cdef uint32_t index, taken = 0, before = batch.count
        if queue:
            return 0
        while taken < limit and self.next_ns <= ctx.now_ns:
            index = self.take(ctx, queue)
            if index == NO_PACKET:
                self.stats[0].rx_dropped += 1
            else:
                self.stats[0].rx_packets += 1
                self.stats[0].rx_bytes += self.record.captured
                batch_add(batch, index)
            taken += 1
            self.advance()
        return batch.count - before


cdef uint32_t whole_options(const uint8_t *options, uint32_t bytes) noexcept nogil:
    """Bytes of the options that are complete, without the end mark."""
    cdef uint32_t at = 0, padded
    cdef uint16_t head[2]
    while at + 4 <= bytes:
        memcpy(head, options + at, 4)
        padded = 4 + ((<uint32_t>head[1] + 3) & ~<uint32_t>3)
        if head[0] == 0 or at + padded > bytes:
            break
        at += padded
    return at
