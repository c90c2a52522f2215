/* Notifications of a virtqueue: 8 bytes through an eventfd, a pipe or a stream socket of the front
 * end. No call may block, since the peer decides whether it reads them. */
#ifndef VNIC_VIRT_NOTIFIER_H
#define VNIC_VIRT_NOTIFIER_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

/* Notifies the peer; 0, or the error. EAGAIN: it has not read earlier notifications, hence knows.
 * A socket may be a blocking one whose mode the peer shares: MSG_DONTWAIT holds for this call only.
 * Eventfds and pipes were set to O_NONBLOCK; a peer that removes it and fills them blocks its own
 * engine, and the kernel has no flag for a single write to an eventfd. */
static inline int notifier_signal(int fd, int is_socket)
{
    uint64_t one = 1;
    /* system calls, not glibc's cancellation points: engines are never cancelled */
    long done = is_socket
        ? syscall(SYS_sendto, fd, &one, sizeof(one), MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0)
        : syscall(SYS_write, fd, &one, sizeof(one));
    return done < 0 ? errno : 0;
}

/* Reads what has come; 1 while the peer can send more, 0 if it never will again. */
static inline int notifier_drain(int fd, int is_socket)
{
    char buffer[4096];    /* of a pipe or socket, many notifications at once */
    struct iovec vector = {buffer, sizeof(buffer)};
    ssize_t got;
    if (is_socket)
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
