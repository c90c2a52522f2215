"""Atomics on plain integers in shared memory, and the debug build's invariant check (see
vatomic.h)."""
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "vatomic.h" nogil:
    uint32_t va_load_relaxed_u32(const uint32_t *p)
    uint32_t va_load_acquire_u32(const uint32_t *p)
    void va_store_relaxed_u32(uint32_t *p, uint32_t v)
    void va_store_release_u32(uint32_t *p, uint32_t v)
    uint32_t va_exchange_u32(uint32_t *p, uint32_t v)
    uint32_t va_add_u32(uint32_t *p, uint32_t v)
    uint32_t va_sub_u32(uint32_t *p, uint32_t v)
    bint va_cas_u32(uint32_t *p, uint32_t *seen, uint32_t v)
    uint64_t va_load_relaxed_u64(const uint64_t *p)
    uint64_t va_load_acquire_u64(const uint64_t *p)
    void va_store_relaxed_u64(uint64_t *p, uint64_t v)
    void va_store_release_u64(uint64_t *p, uint64_t v)
    bint va_cas_u64(uint64_t *p, uint64_t *seen, uint64_t v)
    void *va_load_acquire_ptr(void **p)
    void va_store_release_ptr(void **p, void *v)
    bint va_cas_ptr(void **p, void **seen, void *v)
    void va_fence()
    void va_prefetch(const void *p)
    void va_pause()
    void vnic_check(bint condition, const char *what)
