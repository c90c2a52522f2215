"""MarkTable. The contract is in mark_table.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free


cdef int mark_table_fill(MarkTable *table, dict rates, object kept) except -1:
    """Makes the table of {mark: bit/s}, 0: no limit, and of the marks in `kept` that it does not
    have. Raises MemoryError."""
    cdef uint32_t bits = 1, at
    cdef MarkTable made
    others = [mark for mark in kept if mark not in rates]
    made.count = <uint32_t>(len(rates) + len(others))
    while (<uint64_t>1 << bits) < 2 * <uint64_t>made.count:
        bits += 1
    made.shift, made.mask = 64 - bits, (<uint32_t>1 << bits) - 1
    made.entries = <MarkEntry *>calloc(<size_t>1 << bits, sizeof(MarkEntry))
    if made.entries == NULL:
        raise MemoryError(f"{len(rates)} rates of marks")
    for mark, rate_bps in [*rates.items(), *((mark, None) for mark in others)]:
        at = <uint32_t>(int(mark) * 0x9E3779B97F4A7C15 % (1 << 64) >> made.shift)
        while made.entries[at].used:
            at = (at + 1) & made.mask
        made.entries[at].used, made.entries[at].mark = True, mark
        made.entries[at].policy.rate_bps = rate_bps or 0
        made.entries[at].policy.kept = rate_bps is None
    table[0] = made
    return 0


cdef void mark_table_free(MarkTable *table) noexcept nogil:
    free(table.entries)
    table.entries = NULL
