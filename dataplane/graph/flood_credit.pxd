"""FloodCredit: what an engine may spend on copies of flooded packets, so that one port's broadcasts do not hold up the
packets of others.

A copy costs its length and FLOOD_PACKET bytes. The engine earns FLOOD_RATE; what it has not spent it keeps, up
to FLOOD_MOST, so that a broadcast to a thousand ports goes out at once. Of that, an iteration may spend
FLOOD_BUDGET, so that it stays short. In virtual time there is no bound: the order of packets must not depend
on it.

The rate is what the kernel can take in besides: each copy enters its container by the softirq of the CPU that the
engine runs on, so that unbounded copies fill that CPU's queue, and a neighbour's packet waits behind them. At 64
bytes it allows 119,000 copies a second, at 1514 bytes 89,000 (1.1 Gbit/s), at 64 KiB 7,200 (3.8 Gbit/s).
"""
from libc.stdint cimport uint64_t
from dataplane.packet.pool cimport Context

cdef enum:
    FLOOD_PACKET = 4096          # bytes' worth of work for each copy, whatever its length
    FLOOD_BUDGET = 131072        # some 0.1 ms
    FLOOD_MOST = 8388608
    FLOOD_RATE = 2               # nanoseconds for a byte

cdef struct FloodCredit:
    uint64_t bytes               # that may be spent
    uint64_t given               # of them, to the iteration that runs
    uint64_t now_ns              # up to when it was earned


cdef inline void flood_begin(FloodCredit *credit, Context *ctx) noexcept nogil:
    """At the beginning of an iteration: takes off what the last one spent, and gives this one its budget."""
    cdef uint64_t earned = (ctx.now_ns - credit.now_ns) // FLOOD_RATE
    credit.bytes -= credit.given - ctx.flood_budget
    credit.bytes = min(credit.bytes + min(earned, <uint64_t>FLOOD_MOST), <uint64_t>FLOOD_MOST)
    credit.now_ns = ctx.now_ns
    credit.given = ctx.flood_budget = min(credit.bytes, <uint64_t>FLOOD_BUDGET) if credit.bytes > FLOOD_PACKET else 0


cdef inline void flood_spend(Context *ctx, uint64_t length) noexcept nogil:
    """Of a copy. The last one of an iteration may cost more than there is."""
    cdef uint64_t cost = length + FLOOD_PACKET
    ctx.flood_budget = ctx.flood_budget - cost if ctx.flood_budget > cost else 0
