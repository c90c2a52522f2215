"""A guest's memory, mapped from the descriptors that its front end sent (vhost-user: Memory regions
description), and the log of pages that the device has written."""
cimport cython
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from dataplane.vatomic cimport va_or_u8

cdef enum:
    REGIONS_MOST = 32        # of one guest: what lookups that miss have to search
    PAGE_SHIFT = 12          # a bit of the log stands for 4 KiB, whatever the page size

cdef struct Region:
    uint64_t guest           # guest physical address of its first byte
    uint64_t user            # the front end's own address of it
    uint64_t size            # in bytes; 0: no region
    uint8_t *host            # this process's address of it
    uint8_t *reserved        # the mapping with its guards
    size_t reserved_bytes
    int watched              # its entry in the table of SIGBUS; -1: none

cdef struct MemoryTable:
    uint32_t count
    uint32_t broken          # 1: its file was truncated, zeros were mapped over it; atomic
    Region regions[REGIONS_MOST]


@cython.final
cdef class GuestMemory:
    cdef MemoryTable *table
    cdef int map_region(self, region) except -1
    cdef void unmap_region(self, Region *region) noexcept


cdef struct PageLog:
    uint8_t *bits            # NULL: nothing is logged
    uint64_t pages           # bits that it has


@cython.final
cdef class DirtyLog:
    cdef PageLog log
    cdef MemoryTable area    # the log's file may be truncated, too: its single region is watched


cdef void map_file(Region *region, int fd, uint64_t offset, uint32_t *broken, what) except *
cdef void unmap_file(Region *region) noexcept
cdef uint8_t *search_guest(const MemoryTable *memory, uint32_t *last, uint64_t address,
                           uint64_t length) noexcept nogil


cdef inline uint8_t *guest_at(const MemoryTable *memory, uint32_t *last, uint64_t address,
                              uint64_t length) noexcept nogil:
    """Where `length` bytes at a guest physical address are; NULL unless all of them are in one
    region. A length of 0 needs a valid address, too.

    last: the region of the caller's last hit, tried first. Each ring has its own, because its
    buffers mostly are in one region.
    """
    cdef const Region *region = &memory.regions[last[0]]
    # below the region, the difference wraps to more than any size
    cdef uint64_t offset = address - region.guest
    if offset < region.size and length <= region.size - offset:
        return region.host + offset
    return search_guest(memory, last, address, length)


cdef inline uint8_t *user_at(const MemoryTable *memory, uint64_t address,
                             uint64_t length) noexcept nogil:
    """The same by an address of the front end, as the parts of rings have. Not for every packet."""
    cdef uint32_t i
    cdef uint64_t offset
    for i in range(memory.count):
        offset = address - memory.regions[i].user
        if offset < memory.regions[i].size and length <= memory.regions[i].size - offset:
            return memory.regions[i].host + offset
    return NULL


cdef inline uint64_t guest_of(const MemoryTable *memory, uint64_t user) noexcept nogil:
    """The guest physical address of an address of the front end that is in the memory."""
    cdef uint32_t i
    for i in range(memory.count):
        if user - memory.regions[i].user < memory.regions[i].size:
            return memory.regions[i].guest + (user - memory.regions[i].user)
    return 0


cdef inline void log_write(const PageLog *log, uint64_t address, uint64_t length) noexcept nogil:
    """Marks the pages of `length` bytes at a guest physical address as written. Called after the
    write and before the index that tells of it, so that a page which is copied meanwhile is copied
    again."""
    cdef uint64_t page, end
    if log.bits == NULL or length == 0:
        return
    page, end = address >> PAGE_SHIFT, (address + length - 1) >> PAGE_SHIFT
    # the guest chose the address: pages that the log does not have are left out
    while page <= end and page < log.pages:
        # atomic: the front end clears bits at the same time
        va_or_u8(log.bits + (page >> 3), <uint8_t>(1 << (page & 7)))
        page += 1
