/* Another CPU of the guest, which writes into its memory between any two reads of the device.
 *
 * The fuzz build includes this before every module of virt (setup.py), so that each read of shared
 * memory is followed by the next write that the input has planned: a value that is read twice is
 * not the same twice. In other builds nothing is written. */
#ifndef VNIC_FUZZ_INTERFERE_H
#define VNIC_FUZZ_INTERFERE_H
#include <stdint.h>
#include <string.h>

#define INTERFERENCES 8

struct interference {
    uint8_t *at[INTERFERENCES];       /* two bytes, in the hostile guest's memory */
    uint16_t value[INTERFERENCES];
    uint32_t wait[INTERFERENCES];     /* reads to let pass before it */
    uint32_t next, count;
};

#ifdef VNIC_FUZZ
#include "vatomic.h"

extern struct interference vnic_interference;    /* main.c */

static inline void vnic_interfere(void)
{
    struct interference *plan = &vnic_interference;
    while (plan->next < plan->count && plan->wait[plan->next]-- == 0) {
        memcpy(plan->at[plan->next], &plan->value[plan->next], 2);
        plan->next++;
    }
}

/* A macro is not expanded within itself. */
#define va_copied() (va_copied(), vnic_interfere())
#define va_load_relaxed_u16(p) ({ uint16_t read_ = va_load_relaxed_u16(p); vnic_interfere(); read_; })
#define va_load_acquire_u16(p) ({ uint16_t read_ = va_load_acquire_u16(p); vnic_interfere(); read_; })
#else
static struct interference vnic_interference;
#endif
#endif
