/* SIGBUS in guest memory. The file behind a mapping belongs to the front end, which may truncate it
 * at any time: an access beyond its end raises SIGBUS, which would end the process and with it all
 * other guests. The handler maps zero pages over the range that faulted and marks its memory as
 * broken; the access is repeated and succeeds, and the port stops its rings at its next burst.
 *
 * A fault elsewhere goes to the handler that was there before. Included by one module only, since a
 * process has one table. */
#ifndef VNIC_VIRT_SIGBUS_H
#define VNIC_VIRT_SIGBUS_H
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0x4000
#endif

#define SIGBUS_RANGES 16384   /* ranges of all guests: 512 guests of 32 regions */

struct sigbus_range {
    uint32_t version;         /* odd while the entry is written */
    uintptr_t start, end;     /* start 0: free */
    uint32_t *broken;         /* set to 1 after a fault */
};

static struct sigbus_range sigbus_ranges[SIGBUS_RANGES];
static uint32_t sigbus_count; /* entries that have ever been in use */
static struct sigaction sigbus_previous;

/* The handler takes no lock, since the thread that it interrupts may be writing an entry. An entry
 * is valid if its version is even and the same before and after it was read; the entry of a range
 * that faults is not written at that time, because memory in use is not unmapped. */
static int sigbus_find(uintptr_t at, struct sigbus_range *found)
{
    uint32_t i, version, count = __atomic_load_n(&sigbus_count, __ATOMIC_ACQUIRE);
    for (i = 0; i < count; i++) {
        struct sigbus_range *each = &sigbus_ranges[i];
        version = __atomic_load_n(&each->version, __ATOMIC_ACQUIRE);
        found->start = __atomic_load_n(&each->start, __ATOMIC_RELAXED);
        found->end = __atomic_load_n(&each->end, __ATOMIC_RELAXED);
        found->broken = __atomic_load_n(&each->broken, __ATOMIC_RELAXED);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);  /* the fields before the second look */
        if (!(version & 1) && version == __atomic_load_n(&each->version, __ATOMIC_RELAXED)
            && found->start && at >= found->start && at < found->end)
            return 1;
    }
    return 0;
}

static void sigbus_handler(int number, siginfo_t *info, void *context)
{
    struct sigbus_range found;
    int saved = errno;
    (void)context;
    /* mmap is a plain system call, hence usable in a handler. */
    if (info->si_code > 0 && sigbus_find((uintptr_t)info->si_addr, &found)
        && mmap((void *)found.start, found.end - found.start, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED) {
        __atomic_store_n(found.broken, 1, __ATOMIC_RELEASE);
        errno = saved;
        return;
    }
    /* Not ours: the previous handler gets it when the access is repeated, or now if the signal was
     * sent by a process. */
    sigaction(SIGBUS, &sigbus_previous, NULL);
    if (info->si_code <= 0)
        raise(number);
    errno = saved;
}

/* Installs the handler unless it is the current one; 0, or -1 with errno. */
static int sigbus_install(void)
{
    struct sigaction wanted, current;
    if (sigaction(SIGBUS, NULL, &current))
        return -1;
    if (current.sa_flags & SA_SIGINFO && current.sa_sigaction == sigbus_handler)
        return 0;
    memset(&wanted, 0, sizeof(wanted));
    wanted.sa_sigaction = sigbus_handler;
    wanted.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&wanted.sa_mask);
    sigbus_previous = current;
    return sigaction(SIGBUS, &wanted, NULL);
}

static void sigbus_write(struct sigbus_range *each, uintptr_t start, uintptr_t end,
                         uint32_t *broken)
{
    __atomic_store_n(&each->version, each->version + 1, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);      /* the odd version before the fields */
    __atomic_store_n(&each->start, start, __ATOMIC_RELAXED);
    __atomic_store_n(&each->end, end, __ATOMIC_RELAXED);
    __atomic_store_n(&each->broken, broken, __ATOMIC_RELAXED);
    __atomic_store_n(&each->version, each->version + 1, __ATOMIC_RELEASE);
}

/* Adds a range; its entry, or -1 if the table is full. The caller holds the GIL, which makes it the
 * only writer. */
static int sigbus_add(uintptr_t start, uintptr_t end, uint32_t *broken)
{
    uint32_t i;
    for (i = 0; i < SIGBUS_RANGES; i++)
        if (!sigbus_ranges[i].start) {
            sigbus_write(&sigbus_ranges[i], start, end, broken);
            if (i >= sigbus_count)
                __atomic_store_n(&sigbus_count, i + 1, __ATOMIC_RELEASE);
            return (int)i;
        }
    return -1;
}

/* Removes the entry before its range is unmapped. */
static void sigbus_remove(int entry)
{
    sigbus_write(&sigbus_ranges[entry], 0, 0, NULL);
}
#endif
