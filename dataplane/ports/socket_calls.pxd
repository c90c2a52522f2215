"""System calls of ports over sockets (socket(7), recvmmsg(2), sendmmsg(2), epoll_ctl(2)), never
blocking.

They are glibc's without its cancellation points, which cost atomic operations in a process with
threads: engines are never cancelled."""
from libc.stdint cimport uint32_t

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <stdint.h>
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <unistd.h>
    static inline int socket_receive(int fd, struct mmsghdr *messages, unsigned count)
    { return (int)syscall(SYS_recvmmsg, fd, messages, count, MSG_DONTWAIT, NULL); }
    static inline int socket_send(int fd, struct mmsghdr *messages, unsigned count)
    { return (int)syscall(SYS_sendmmsg, fd, messages, count, MSG_DONTWAIT | MSG_NOSIGNAL); }
    static inline int socket_watch(int epoll, int operation, int fd, uint32_t events)
    {
        struct epoll_event event = {events, {0}};
        return epoll_ctl(epoll, operation, fd, &event);
    }
    /* Adds 1 to an eventfd. */
    static inline void socket_ring(int fd)
    {
        uint64_t one = 1;
        syscall(SYS_write, fd, &one, sizeof(one));
    }
    """
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    cdef struct msghdr:
        void *msg_name
        uint32_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    cdef struct mmsghdr:
        msghdr msg_hdr
        uint32_t msg_len
    int socket_receive(int fd, mmsghdr *messages, unsigned count) nogil
    int socket_send(int fd, mmsghdr *messages, unsigned count) nogil
    int socket_watch(int epoll, int operation, int fd, uint32_t events) nogil
    void socket_ring(int fd) nogil
    enum:
        MSG_TRUNC, EPOLL_CTL_MOD, EPOLL_CTL_DEL, EPOLLIN, EPOLLOUT
