/* Time stamps of capture files, without overflow on any input. */
#ifndef VNIC_FORMATS_H
#define VNIC_FORMATS_H
#include <stdint.h>

/* Converts `ticks`, of which a second has `ticks_a_second`, plus `offset_s`, to *nanoseconds since the
 * epoch. Returns 0, without a result, where that does not fit into 63 bits or is before the epoch. */
static inline int vnic_nanoseconds(uint64_t ticks, uint64_t ticks_a_second, int64_t offset_s, uint64_t *nanoseconds)
{
    unsigned __int128 since;
    __int128 all;
    if (offset_s == 0) { /* the two usual resolutions: a division of 128 bits is some 20 ns */
        if (ticks_a_second == 1000000000u && ticks <= INT64_MAX) {
            *nanoseconds = ticks;
            return 1;
        }
        if (ticks_a_second == 1000000u && ticks <= INT64_MAX / 1000) {
            *nanoseconds = ticks * 1000;
            return 1;
        }
    }
    since = (unsigned __int128)ticks * 1000000000u / ticks_a_second;
    all = (__int128)offset_s * 1000000000 + (__int128)since;
    if (all < 0 || all > INT64_MAX)
        return 0;
    *nanoseconds = (uint64_t)all;
    return 1;
}

/* value * factor / divisor, rounded down, computed with 128 bits; 2^64 - 1 if the result is larger. */
static inline uint64_t vnic_scale(uint64_t value, uint64_t factor, uint64_t divisor)
{
    unsigned __int128 scaled = (unsigned __int128)value * factor / divisor;
    return scaled > UINT64_MAX ? UINT64_MAX : (uint64_t)scaled;
}
#endif
