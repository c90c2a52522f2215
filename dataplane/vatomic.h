/* Atomic access to plain integers in shared memory.
 *
 * Fields that threads or processes share are plain integers, because Cython (C mode) has no C11
 * _Atomic, and numpy views or other languages must be able to map them. Every access to such a
 * field uses one of these functions. The ordering is in the name; a comment at the call gives
 * its reason. */
#ifndef VNIC_VATOMIC_H
#define VNIC_VATOMIC_H
#include <stdint.h>

static inline uint32_t va_load_relaxed_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint32_t va_load_acquire_u32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void va_store_relaxed_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void va_store_release_u32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint32_t va_exchange_u32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
static inline uint32_t va_add_u32(uint32_t *p, uint32_t v) { return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL); }
static inline uint32_t va_sub_u32(uint32_t *p, uint32_t v) { return __atomic_fetch_sub(p, v, __ATOMIC_ACQ_REL); }
/* Strong compare-exchange; returns 1 on success, else stores the value found in *seen. */
static inline int va_cas_u32(uint32_t *p, uint32_t *seen, uint32_t v)
{ return __atomic_compare_exchange_n(p, seen, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE); }

static inline uint64_t va_load_relaxed_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint64_t va_load_acquire_u64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void va_store_relaxed_u64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void va_store_release_u64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline int va_cas_u64(uint64_t *p, uint64_t *seen, uint64_t v)
{ return __atomic_compare_exchange_n(p, seen, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE); }

/* 16 bits: the indices and flags of a guest's rings (virtio 1.2, 2.7 and 2.8). */
static inline uint16_t va_load_relaxed_u16(const uint16_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint16_t va_load_acquire_u16(const uint16_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void va_store_relaxed_u16(uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void va_store_release_u16(uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
/* Sets bits of a byte that another process reads and clears at the same time. */
static inline void va_or_u8(uint8_t *p, uint8_t v) { __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }

static inline void *va_load_acquire_ptr(void **p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void va_store_release_ptr(void **p, void *v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline int va_cas_ptr(void **p, void **seen, void *v)
{ return __atomic_compare_exchange_n(p, seen, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE); }

/* Full fence: orders a store before a later load, as the sleep/doorbell handshake needs. */
static inline void va_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
/* What was copied from memory that another process changes is not read there again: without it, the
 * compiler may read a value twice instead of keeping it. Costs no instruction. */
static inline void va_copied(void) { __asm__ __volatile__("" ::: "memory"); }
/* A hint to load this line, and the translation of its page, into the caches. Never faults. */
static inline void va_prefetch(const void *p) { __builtin_prefetch(p); }
/* The same for a line that is written soon. The builtin loads it for reading only, unless the compiler
 * is told of an instruction that all x86-64 CPUs have or take for none. */
static inline void va_prefetch_write(const void *p)
{
#if defined(__x86_64__)
    __asm__ __volatile__("prefetchw %0" : : "m"(*(const char *)p));
#else
    __builtin_prefetch(p, 1);
#endif
}
static inline void va_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Only in debug and sanitizer builds (VNIC_DEBUG): a broken internal invariant aborts the
 * process with its location. */
#ifdef VNIC_DEBUG
#include <stdio.h>
#include <stdlib.h>
#define vnic_check(condition, what) do { if (!(condition)) { \
    fprintf(stderr, "vnic: broken invariant: %s (%s:%d)\n", what, __FILE__, __LINE__); abort(); } } while (0)
#else
#define vnic_check(condition, what) ((void)(what))
#endif
#endif
