"""Policer: what exceeds a rate and burst is dropped, or led to another output. Nothing waits."""
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.element cimport Element
from dataplane.graph.work cimport Work
from dataplane.packet.pool cimport Batch, Context, Packet
from shaping.virtual_clock cimport VirtualClock

cdef struct PolicerSetting:      # derived from rate and burst by control
    uint64_t rate_bps            # 0: unlimited
    uint64_t burst_ns            # how far the clock may lie behind now

cdef class Policer(Element):
    cdef PolicerSetting setting
    cdef VirtualClock clock
    cdef bint leads              # excess leaves by output 1
    cdef object _burst_ns        # int, or None where the burst was given in bytes
    cdef object _burst_bytes
    cdef void process(self, Context *ctx, Batch *batch) noexcept nogil
    cdef uint32_t conforming_segments(self, const Packet *p, uint64_t now_ns) noexcept nogil
    cdef uint32_t take_part(self, Context *ctx, uint32_t index, uint32_t count) noexcept nogil
    cdef void exceed(self, Context *ctx, uint32_t index) noexcept nogil
    cdef void apply(self, const PolicerSetting *setting, uint64_t now_ns) noexcept nogil

cdef class SetPolicerRate(Work):
    # A change of rate as Work, which needs no GIL.
    cdef Policer policer
    cdef PolicerSetting setting
    cdef void run(self, Context *ctx) noexcept nogil
