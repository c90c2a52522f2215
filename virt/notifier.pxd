"""Notifications between front end and device; see notifier.h."""

cdef extern from "notifier.h" nogil:
    int notifier_signal(int fd, bint is_socket)
    bint notifier_drain(int fd, bint is_socket)
    void notifier_unwatch(int epoll, int fd)

# The descriptor of one direction of a ring's notifications.
cdef struct Notifier:
    int fd                   # -1: none
    bint is_socket
