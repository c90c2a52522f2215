"""FlowClocks. The contract is in flow_clocks.pxd."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MADV_HUGEPAGE
    void *MAP_FAILED
    void *mmap(void *at, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *at, size_t length)
    int madvise(void *at, size_t length, int advice)

cdef enum:
    HUGE_BYTES = 2097152         # of a huge page

cdef packed struct SavedClock:       # of `packed`, little endian
    uint32_t number
    uint64_t next_ns
    uint64_t word


@cython.final
cdef class FlowClocks:
    """At least `count` clocks; their number is a power of two."""

    def __init__(self, uint32_t count):
        cdef uint32_t sets = 1
        cdef uintptr_t start
        while sets * WAYS < count:
            sets *= 2
        self.count, self.set_mask = sets * WAYS, sets - 1
        self.unmap()
        self._bytes = <size_t>self.count * sizeof(FlowClock) + HUGE_BYTES
        self._memory = mmap(NULL, self._bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                            -1, 0)
        if self._memory == MAP_FAILED:
            self._memory = NULL
            raise MemoryError(f"{count} flows")
        start = <uintptr_t>self._memory + HUGE_BYTES - 1
        self.clocks = <FlowClock *>(start - start % HUGE_BYTES)

    def __dealloc__(self):
        self.unmap()

    cdef void unmap(self) noexcept nogil:
        if self._memory != NULL:
            munmap(self._memory, self._bytes)
            self._memory = NULL

    cdef void touch(self) noexcept nogil:
        """Allocates the pages, before there are packets; huge ones, where the kernel has some,
        since each packet may need another page of a large table."""
        madvise(self.clocks, <size_t>self.count * sizeof(FlowClock), MADV_HUGEPAGE)
        self.clear()

    cdef FlowClock *claim(self, uint64_t hash, uint64_t now_ns, bint *shared) noexcept nogil:
        """`find` for a flow that has no clock in the first cache line."""
        cdef FlowClock *flows = &self.clocks[(hash & self.set_mask) * WAYS]
        cdef FlowClock *common
        cdef uint32_t way
        for way in range(<uint32_t>WAYS // 2, <uint32_t>WAYS):
            if flows[way].word >> TAG_SHIFT == hash >> TAG_SHIFT:
                return &flows[way]
        common = &flows[hash >> WAY_SHIFT & (WAYS - 1)]
        if flow_is_idle(common, now_ns) or not common.word >> REMAINDER_BITS & 1:
            for way in range(<uint32_t>WAYS):
                if flow_is_idle(&flows[way], now_ns):
                    flows[way].next_ns, flows[way].word = 0, hash >> TAG_SHIFT << TAG_SHIFT
                    return &flows[way]
            common.word |= <uint64_t>1 << REMAINDER_BITS
        shared[0] = True
        return common

    cdef uint32_t busy_of(self, uint32_t first, uint32_t end, uint64_t now_ns) noexcept nogil:
        """How many of the clocks `first` to `end` - 1 are ahead of now."""
        cdef uint32_t i, busy = 0
        for i in range(first, end):
            busy += not flow_is_idle(&self.clocks[i], now_ns)
        return busy

    cdef void clear(self) noexcept nogil:
        memset(self.clocks, 0, <size_t>self.count * sizeof(FlowClock))

    # -- state -------------------------------------------------------------------------------------

    cdef bytes packed(self, uint64_t now_ns):
        """The clocks that are ahead of now, for `adopt`."""
        cdef uint32_t i, at = 0, busy = self.busy_of(0, self.count, now_ns)
        cdef bytes found = PyBytes_FromStringAndSize(NULL, busy * sizeof(SavedClock))
        cdef SavedClock *saved = <SavedClock *>PyBytes_AS_STRING(found)
        for i in range(self.count):
            if not flow_is_idle(&self.clocks[i], now_ns):
                saved[at].number = i
                saved[at].next_ns, saved[at].word = self.clocks[i].next_ns, self.clocks[i].word
                at += 1
        return found

    cdef bint adopt(self, bytes packed, uint64_t most_ns) noexcept:
        """Takes the clocks of another table of this size; all others are free. False, with nothing
        changed: `packed` is not of such a table, or has a clock later than `most_ns`."""
        cdef uint32_t i
        cdef size_t count = len(packed) // sizeof(SavedClock)
        cdef const SavedClock *saved = <const SavedClock *>PyBytes_AS_STRING(packed)
        if len(packed) % sizeof(SavedClock) or count > self.count:
            return False
        for i in range(<uint32_t>count):
            if (saved[i].number >= self.count or saved[i].next_ns > most_ns
                    or (i and saved[i].number <= saved[i - 1].number)):
                return False
        self.clear()
        for i in range(<uint32_t>count):
            self.clocks[saved[i].number].next_ns = saved[i].next_ns
            self.clocks[saved[i].number].word = saved[i].word
        return True
