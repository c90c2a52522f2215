/* Notifications of a virtqueue: 8 bytes through an eventfd, a pipe or a stream socket of the front
 * end. No call may block, since the peer decides whether it reads them. */
#ifndef VNIC_VIRT_NOTIFIER_H
#define VNIC_VIRT_NOTIFIER_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

/* The kinds of notifications.py. */
#define NOTIFIER_EVENTFD 0
#define NOTIFIER_SOCKET 1
#define NOTIFIER_PIPE 2

/* Eventfds and pipes were set to O_NONBLOCK, but the peer shares the open file and may remove that
 * at any time. For a pipe, RWF_NOWAIT holds for one call; for writes to an eventfd there is no such
 * flag, and to ask first (poll) leaves the peer the time until the write. But the kernel itself
 * signals an eventfd without waiting: when a request of Linux AIO completes (IOCB_FLAG_RESFD). The
 * request here reads no bytes of the eventfd, which is refused or done, but completes at once. It
 * was measured to take 0.9 us, where a write takes 0.3. A counter that is full stays full, so that
 * the peer is notified all the same. */
static aio_context_t notifier_requests;    /* 0: none, as where AIO is left out or forbidden */

/* Called with the GIL, before an engine has an eventfd to signal. */
static void notifier_prepare(void)
{
    static int tried;
    if (!tried && syscall(SYS_io_setup, 64, &notifier_requests) < 0)
        notifier_requests = 0;
    tried = 1;
}

/* Forgets completed requests, of which there is room for some hundreds: the ring of them is shared
 * with the kernel (struct aio_ring of fs/aio.c), and user space sets its head, as libaio does.
 * Threads may do so at the same time: one that sets it back a little is corrected by the next. */
static inline void notifier_reap(void)
{
    uint32_t *ring = (uint32_t *)notifier_requests;    /* id, entries, head, tail, magic, ... */
    if (ring[4] == 0xA10A10A1)
        __atomic_store_n(&ring[2], __atomic_load_n(&ring[3], __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
}

static inline int notifier_signal_eventfd(int fd)
{
    struct iocb request, *requests = &request;
    struct pollfd asked = {fd, POLLOUT, 0};
    uint64_t one = 1;
    if (notifier_requests) {
        memset(&request, 0, sizeof(request));
        request.aio_lio_opcode = IOCB_CMD_PREAD;
        request.aio_fildes = (uint32_t)fd;
        request.aio_flags = IOCB_FLAG_RESFD;
        request.aio_resfd = (uint32_t)fd;
        notifier_reap();
        if (syscall(SYS_io_submit, notifier_requests, 1, &requests) == 1)
            return 0;
    }
    /* Without AIO, also in a process that was forked: nothing better is left. */
    if (syscall(SYS_ppoll, &asked, 1, &(struct timespec){0, 0}, NULL, 0) != 1)
        return EAGAIN;
    return syscall(SYS_write, fd, &one, sizeof(one)) < 0 ? errno : 0;
}

/* Notifies the peer; 0, or the error. EAGAIN: it has not read earlier notifications, hence knows. A
 * socket may be a blocking one whose mode the peer shares: MSG_DONTWAIT holds for one call. */
static inline int notifier_signal(int fd, int kind)
{
    uint64_t one = 1;
    struct iovec vector = {&one, sizeof(one)};
    long done;
    if (kind == NOTIFIER_EVENTFD)
        return notifier_signal_eventfd(fd);
    /* system calls, not glibc's cancellation points: engines are never cancelled */
    if (kind == NOTIFIER_SOCKET)
        done = syscall(SYS_sendto, fd, &one, sizeof(one), MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0);
    else {
        done = pwritev2(fd, &vector, 1, -1, RWF_NOWAIT);
        if (done < 0 && errno == EOPNOTSUPP)      /* before Linux 6.4: O_NONBLOCK holds */
            done = syscall(SYS_write, fd, &one, sizeof(one));
    }
    return done < 0 ? errno : 0;
}

/* Reads what has come; 1 while the peer can send more, 0 if it never will again. */
static inline int notifier_drain(int fd, int kind)
{
    char buffer[4096];    /* of a pipe or socket, many notifications at once */
    struct iovec vector = {buffer, sizeof(buffer)};
    ssize_t got;
    if (kind == NOTIFIER_SOCKET)
        got = syscall(SYS_recvfrom, fd, buffer, sizeof(buffer), MSG_DONTWAIT, NULL, NULL);
    else {
        got = preadv2(fd, &vector, 1, -1, RWF_NOWAIT);
        if (got < 0 && errno == EOPNOTSUPP)       /* pipes before Linux 6.4: O_NONBLOCK holds */
            got = syscall(SYS_read, fd, buffer, sizeof(buffer));
    }
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
}

static inline void notifier_unwatch(int epoll, int fd)
{
    struct epoll_event unused;
    epoll_ctl(epoll, EPOLL_CTL_DEL, fd, &unused);
}
#endif
