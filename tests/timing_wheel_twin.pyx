"""A class for tests/test_timing_wheel.py over shaping/timing_wheel.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.packet.pool cimport Context, PacketPool
from dataplane.packet.queue cimport pool_records
from shaping.timing_wheel cimport TimingWheel


cdef class TwinWheel:
    """A TimingWheel over the records of a pool, whose packets the caller numbers."""
    cdef PacketPool pool
    cdef Context records
    cdef TimingWheel wheel

    def __init__(self, PacketPool pool):
        self.pool, self.wheel = pool, TimingWheel()
        pool_records(pool, &self.records)

    def put(self, uint32_t index, uint64_t release_ns, uint64_t now_ns):
        self.records.now_ns = now_ns
        self.wheel.put(&self.records, index, release_ns)

    def take(self):
        due_ns = self.wheel.due_ns
        return due_ns, self.wheel.take(&self.records)

    @property
    def due_ns(self):
        return self.wheel.due_ns

    @property
    def counts(self):
        return self.wheel.small, self.wheel.large

    @property
    def packed(self):
        return self.wheel.packed(self.records.packets)

    def adopt(self, uint64_t now_ns, tuple packed):
        self.wheel.adopt(self.records.packets, self.records.small_count, self.records.total_count,
                         now_ns, packed)

    def write_release(self, uint32_t index, uint64_t release_ns):
        before = self.records.packets[index].release_ns
        self.records.packets[index].release_ns = release_ns
        return before

    def clear(self):
        self.wheel.clear()
