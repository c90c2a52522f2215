/* Shared by the probes: entering a network namespace, a clock, exit with one line. */
#ifndef VNIC_BENCH_COMMON_H
#define VNIC_BENCH_COMMON_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static inline void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* Moves this thread into the namespace at `path` (as /run/netns/NAME); files and sockets that it
 * opens later belong to it. */
static inline void enter_netns(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET))
        die(path);
    close(fd);
}

static inline uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Ends the probe when its parent, the harness, is killed, so that it does not go on loading the
 * machine. */
static inline void end_with_parent(void) { prctl(PR_SET_PDEATHSIG, SIGKILL); }
#endif
