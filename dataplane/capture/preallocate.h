/* Disk space ahead of a file that is written from its beginning to its end. */
#ifndef VNIC_PREALLOCATE_H
#define VNIC_PREALLOCATE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define VNIC_EXT4_MAGIC 0xEF53 /* of ext2 and ext3, too, which refuse fallocate where they lack it */

/* Whether space ahead makes writing cheaper: only on ext4, whose delayed allocation reserves each page by itself. On tmpfs it
 * costs memory, and other file systems were not measured. */
static inline int vnic_gains_by_space(int descriptor)
{
    struct stat file;
    struct statfs system;
    return fstat(descriptor, &file) == 0 && S_ISREG(file.st_mode) && fstatfs(descriptor, &system) == 0
        && system.f_type == VNIC_EXT4_MAGIC;
}

/* Allocates `bytes` at `offset` without a change of the file's size. Returns 0 where the file system refuses. */
static inline int vnic_allocate(int descriptor, uint64_t offset, uint64_t bytes)
{
    return fallocate(descriptor, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes) == 0;
}

/* Frees what was allocated beyond the file's end. */
static inline void vnic_free_space(int descriptor)
{
    struct stat file;
    if (fstat(descriptor, &file) == 0 && ftruncate(descriptor, file.st_size) != 0)
        return; /* the space stays with the file: it is of no use there, and does no harm */
}
#endif
