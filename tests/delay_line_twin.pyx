"""A class for tests/test_delay_line.py over shaping/delay_line.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.packet.pool cimport Context, PacketPool
from dataplane.packet.queue cimport (pool_records, queue_head, queue_indices,
                                     queue_length, queue_packed)
from shaping.delay_line cimport DelayLine


cdef class TwinLine:
    """A DelayLine over the records of a pool, whose packets the caller numbers."""
    cdef PacketPool pool
    cdef Context records
    cdef DelayLine line

    def __init__(self, PacketPool pool):
        self.pool, self.line = pool, DelayLine()
        pool_records(pool, &self.records)

    def put(self, uint32_t index, uint64_t release_ns):
        self.line.put(&self.records, index, release_ns)

    def take(self):
        due_ns = self.line.due_ns(&self.records)
        return due_ns, self.line.take(&self.records)

    @property
    def due_ns(self):
        return self.line.due_ns(&self.records)

    @property
    def counts(self):
        return self.line.small, self.line.large

    @property
    def shift(self):
        return self.line.shift

    def packed(self):
        return queue_packed(self.records.packets, self.line.head,
                            self.line.small + self.line.large)

    def adopt(self, bytes packed):
        queue_head(self.records.packets, self.records.total_count, packed)
        return self.line.adopt(self.records.packets, self.records.small_count,
                               queue_indices(packed), queue_length(packed))

    def write_release(self, uint32_t index, uint64_t release_ns):
        self.records.packets[index].release_ns = release_ns

    def clear(self):
        self.line.clear()
