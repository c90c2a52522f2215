"""GuestMemory, DirtyLog. The contract is in guest_memory.pxd."""
import mmap
import os
import stat
from typing import NamedTuple

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from dataplane.vatomic cimport va_load_relaxed_u32

from dataplane.errors import ConfigError

cdef extern from "sigbus.h":
    int sigbus_install()
    int sigbus_add(uintptr_t start, uintptr_t end, uint32_t *broken)
    void sigbus_remove(int entry)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/mman.h>
    #ifndef MADV_DONTDUMP
    #define MADV_DONTDUMP 16
    #endif
    /* Reserves addresses without memory; what touches them, faults. */
    static void *memory_reserve(size_t bytes)
    { return mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); }
    /* No MAP_POPULATE: the front end chose the size, and pages that it does not use cost nothing.
     * MADV_DONTDUMP: a core file would contain the guest's data. */
    static int memory_map(void *at, size_t bytes, int fd, long offset)
    {
        if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd,
                 offset) == MAP_FAILED)
            return -1;
        madvise(at, bytes, MADV_DONTDUMP);
        return 0;
    }
    """
    void *memory_reserve(size_t bytes)
    int memory_map(void *at, size_t bytes, int fd, long offset)
    int munmap(void *address, size_t bytes)
    void *MAP_FAILED

cdef enum:
    ALIGNMENT_MOST = 1 << 30             # the largest huge page that a file system here has

_WORDS = 1 << 64
_ADVICE = "the front end has to share its memory: start QEMU with memory-backend-memfd,share=on"


class MemoryRegion(NamedTuple):
    """A part of a guest's memory: its guest physical address, its size in bytes, the front end's
    own address of it, and where it begins in the file `fd`, which the caller may close once it is
    mapped."""

    guest: int
    size: int
    user: int
    offset: int
    fd: int


cdef void map_file(Region *region, int fd, uint64_t offset, uint32_t *broken, what) except *:
    """Maps region.size bytes of a file from `offset` on, between pages that cannot be accessed, and
    has their faults survived. Raises ConfigError."""
    cdef uint64_t align, start, span
    cdef void *reserved
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise ConfigError(f"{what}: descriptor {fd}: {error.strerror}") from None
    # a device would be something else than memory that this process reads and writes at will
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{what}: its descriptor is not a memory file; {_ADVICE}")
    # before it is mapped: an access beyond the file's end raises SIGBUS
    if offset + region.size > <uint64_t>status.st_size:
        raise ConfigError(f"{what}: bytes {offset} to {offset + region.size} of a file of "
                          f"{status.st_size}; the front end has to send the file of that memory")
    # hugetlbfs maps whole huge pages only, and reports their size here
    align = max(mmap.PAGESIZE, status.st_blksize)
    if align & (align - 1) or align > ALIGNMENT_MOST:
        align = mmap.PAGESIZE
    start = offset & ~(align - 1)
    span = (offset - start + region.size + align - 1) & ~(align - 1)
    reserved = memory_reserve(span + 3 * align)
    if reserved == MAP_FAILED:
        raise ConfigError(f"{what}: {region.size} bytes: {os.strerror(errno)}")
    region.reserved, region.reserved_bytes = <uint8_t *>reserved, span + 3 * align
    region.host = <uint8_t *>((<uintptr_t>reserved + 2 * align - 1) & ~(align - 1))
    region.watched = -1
    if memory_map(region.host, span, fd, <long>start) < 0:
        reason = os.strerror(errno)
        unmap_file(region)
        raise ConfigError(f"{what}: cannot be mapped: {reason}; {_ADVICE}")
    region.watched = sigbus_add(<uintptr_t>region.host, <uintptr_t>region.host + span, broken)
    if region.watched < 0 or sigbus_install() < 0:
        unmap_file(region)
        raise ConfigError(f"{what}: too many regions in this process: stop other guests first")
    region.host += offset - start


cdef void unmap_file(Region *region) noexcept:
    if region.watched >= 0:
        sigbus_remove(region.watched)
    if region.reserved != NULL:
        munmap(region.reserved, region.reserved_bytes)
    region.reserved, region.watched, region.size = NULL, -1, 0


cdef uint8_t *search_guest(const MemoryTable *memory, uint32_t *last, uint64_t address,
                           uint64_t length) noexcept nogil:
    cdef uint32_t i
    cdef uint64_t offset
    for i in range(memory.count):
        offset = address - memory.regions[i].guest
        if offset < memory.regions[i].size and length <= memory.regions[i].size - offset:
            last[0] = i
            return memory.regions[i].host + offset
    return NULL


cdef class GuestMemory:
    """The memory of one guest: up to 32 regions (MemoryRegion).

    Raises ConfigError for regions that overlap or exceed 64 bits, and for files that are too short
    or cannot be mapped; then nothing is mapped. Files that are truncated later are survived: zeros
    are mapped in their place, and `broken` becomes True.

    A VirtioPort that uses it must not run while regions are added or removed, and has to be given
    the memory again (`set_memory`) afterwards.
    """

    def __cinit__(self, *args, **kwargs):
        self.table = <MemoryTable *>calloc(1, sizeof(MemoryTable))
        if self.table == NULL:
            raise MemoryError("guest memory")

    def __init__(self, regions=()):
        self.close()
        try:
            for region in regions:
                self.add(region)
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        if self.table != NULL:
            self.close()
            free(self.table)

    def add(self, region):
        """Maps one more region (MemoryRegion)."""
        what = f"guest memory at {region.guest:#x}"
        if self.table.count >= REGIONS_MOST:
            raise ConfigError(f"{what}: there are {REGIONS_MOST} regions already; no "
                              "more are supported")
        if region.size < 1 or region.offset < 0 or min(region.guest, region.user) < 0:
            raise ConfigError(f"{what}: a region of {region.size} bytes at offset {region.offset}; "
                              "expected at least 1 byte and no negative number")
        # Python's integers do not wrap: sums are checked before they are stored in 64 bits
        if (max(region.guest, region.user) + region.size > _WORDS
                or region.offset + region.size > _WORDS // 2):
            raise ConfigError(f"{what}: {region.size} bytes at offset {region.offset} exceed the "
                              "address space")
        for i in range(self.table.count):
            for mine, other in ((region.guest, self.table.regions[i].guest),
                                (region.user, self.table.regions[i].user)):
                if mine < other + self.table.regions[i].size and other < mine + region.size:
                    raise ConfigError(f"{what}: overlaps the region at "
                                      f"{self.table.regions[i].guest:#x}")
        self.map_region(region)

    cdef int map_region(self, region) except -1:
        cdef Region *found = &self.table.regions[self.table.count]
        found.guest, found.user, found.size = region.guest, region.user, region.size
        try:
            map_file(found, region.fd, region.offset, &self.table.broken,
                     f"guest memory at {region.guest:#x}")
        except BaseException:
            found.size = 0               # a lookup by a stale hint finds no region here
            raise
        self.table.count += 1
        return 0

    cdef void unmap_region(self, Region *region) noexcept:
        """Unmaps a region; the last one takes its place."""
        unmap_file(region)
        self.table.count -= 1
        region[0] = self.table.regions[self.table.count]
        self.table.regions[self.table.count].size = 0
        self.table.regions[self.table.count].reserved = NULL
        self.table.regions[self.table.count].watched = -1

    def remove(self, guest, size, user):
        """Unmaps the region with these addresses and this size. Raises ConfigError."""
        for i in range(self.table.count):
            if (self.table.regions[i].guest, self.table.regions[i].size,
                    self.table.regions[i].user) == (guest, size, user):
                self.unmap_region(&self.table.regions[i])
                return
        raise ConfigError(f"guest memory at {guest:#x}: there is no region of {size} bytes with "
                          "that address")

    def close(self):
        """Unmaps all regions. Only when no port uses the memory. May be called twice."""
        while self.table.count:
            self.unmap_region(&self.table.regions[self.table.count - 1])

    @property
    def broken(self):
        """Whether a file was truncated while it was in use."""
        return va_load_relaxed_u32(&self.table.broken) != 0

    def __len__(self):
        """The number of regions."""
        return self.table.count

    def read(self, uint64_t address, uint64_t length):
        """`length` bytes at a guest physical address; None unless all are in one region."""
        cdef uint32_t last = 0
        cdef uint8_t *found = guest_at(self.table, &last, address, length)
        return None if found == NULL else found[:length]


cdef class DirtyLog:
    """The log of written pages, while a guest migrates: a file of the front end with a bit per 4
    KiB of guest physical memory (vhost-user: Migration). `size` bytes of it from `offset` on are
    the log.

    Raises ConfigError for a file that is too short or cannot be mapped.
    """

    def __cinit__(self, *args, **kwargs):
        self.area.regions[0].watched = -1

    def __init__(self, int fd, size, offset):
        if size < 1 or offset < 0 or size + offset > _WORDS // 2:
            raise ConfigError(f"log of written pages: {size} bytes at offset {offset}")
        self.close()
        self.area.regions[0].size = size
        map_file(&self.area.regions[0], fd, offset, &self.area.broken, "log of written pages")
        self.log.bits, self.log.pages = self.area.regions[0].host, <uint64_t>size << 3

    def __dealloc__(self):
        self.close()

    @property
    def broken(self):
        """Whether its file was truncated while it was in use."""
        return va_load_relaxed_u32(&self.area.broken) != 0

    def close(self):
        """Unmaps it. Only when no port uses it. May be called twice."""
        self.log.bits = NULL
        unmap_file(&self.area.regions[0])
