"""FloodCredit: a token bucket that bounds an engine's copies of flooded packets, so that one port's
broadcasts do not delay the packets of others.

A copy costs its length plus FLOOD_PACKET bytes. The bucket fills at FLOOD_RATE up to FLOOD_MOST,
enough for a broadcast to a thousand ports at once. An iteration may spend at most FLOOD_BUDGET, so
that it stays short. In virtual time there is no bound: the order of packets must not depend on it.

The rate leaves room for the kernel's work: each copy enters its container in a softirq on the
engine's CPU, so unbounded copies would fill that CPU's queue, and other NICs' packets would wait
behind them. The rate allows 119,000 copies/s of 64 bytes, 89,000 of 1514 bytes (1.1 Gbit/s), 7,200
of 64 KiB (3.8 Gbit/s).

While packets wait to be flooded, time earns at most FLOOD_BUDGET per iteration. Otherwise an engine
that the kernel let wait for a CPU would make up for it, iteration after iteration without a sleep,
when CPUs are scarcest.
"""
from libc.stdint cimport uint64_t
from dataplane.packet.pool cimport Context

cdef enum:
    FLOOD_REFUSED = 2            # a bit of ctx.backlog, see flood_refuse
    FLOOD_PACKET = 4096          # a copy's constant cost, in bytes
    FLOOD_BUDGET = 131072        # bytes per iteration: some 0.1 ms
    FLOOD_MOST = 8388608         # bytes
    FLOOD_RATE = 2               # nanoseconds per byte

cdef struct FloodCredit:
    uint64_t bytes               # tokens in the bucket
    uint64_t given               # the budget at the start of this iteration
    uint64_t now_ns              # when the bucket was last filled


cdef inline void flood_begin(FloodCredit *credit, Context *ctx) noexcept nogil:
    """Begins an iteration: subtracts what the last one spent, fills the bucket, and sets
    ctx.flood_budget."""
    cdef uint64_t earned = (ctx.now_ns - credit.now_ns) // FLOOD_RATE
    cdef uint64_t most = FLOOD_MOST if ctx.unfinished == NULL else FLOOD_BUDGET
    credit.bytes -= credit.given - ctx.flood_budget
    credit.bytes = min(credit.bytes + min(earned, most), <uint64_t>FLOOD_MOST)
    credit.now_ns = ctx.now_ns
    credit.given = ctx.flood_budget = (min(credit.bytes, <uint64_t>FLOOD_BUDGET)
                                       if credit.bytes > FLOOD_PACKET else 0)


cdef inline void flood_spend(Context *ctx, uint64_t length) noexcept nogil:
    """Spends the cost of a copy of `length` bytes. The last copy of an iteration may exceed the
    budget."""
    cdef uint64_t cost = length + FLOOD_PACKET
    ctx.flood_budget = ctx.flood_budget - cost if ctx.flood_budget > cost else 0


cdef inline void flood_refuse(Context *ctx) noexcept nogil:
    """Tells the engine that a packet was dropped because too many of its port wait to be flooded.
    The engine pauses the source that it is polling, see Engine.pause."""
    ctx.backlog |= FLOOD_REFUSED
