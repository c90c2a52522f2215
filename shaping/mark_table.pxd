"""MarkTable: a policy for each of some marks (Packet.mark), by open addressing."""
from libc.stdint cimport uint32_t, uint64_t
from shaping.virtual_clock cimport VirtualClock

cdef enum:
    MARKS_MOST = 1024            # policies of a table

cdef struct Policy:              # a rate that packets have in common
    VirtualClock clock
    uint64_t rate_bps            # 0: no limit
    uint64_t last_ns             # when the last packet is sent; of one that is cut, its end
    bint kept                    # its mark has no rate any more; kept while its packets wait

cdef struct MarkEntry:
    Policy policy
    uint32_t mark
    bint used

cdef struct MarkTable:
    MarkEntry *entries           # a power of two of them, at least twice as many as are used
    uint32_t mask
    uint32_t shift
    uint32_t count

cdef inline Policy *mark_policy(const MarkTable *table, uint32_t mark) noexcept nogil:
    """The policy of a mark; NULL: it has none."""
    # Fibonacci hashing: the high bits of the product are well mixed
    cdef uint32_t at = <uint32_t>((mark * <uint64_t>0x9E3779B97F4A7C15) >> table.shift)
    while table.entries[at].used:
        if table.entries[at].mark == mark:
            return &table.entries[at].policy
        at = (at + 1) & table.mask
    return NULL

cdef int mark_table_fill(MarkTable *table, dict rates, object kept) except -1
cdef void mark_table_free(MarkTable *table) noexcept nogil
