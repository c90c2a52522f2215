"""Notifications between front end and device; see notifier.h."""

cdef extern from "notifier.h" nogil:
    # Before the first signal of a process, with the GIL.
    void notifier_prepare()
    int notifier_signal(int fd, int kind)
    bint notifier_drain(int fd, int kind)
    void notifier_unwatch(int epoll, int fd)

# The descriptor of one direction of a ring's notifications.
cdef struct Notifier:
    int fd                   # -1: none
    int kind                 # NOTIFIER_* of notifier.h
