"""Pace: interrupts a thread by a timer signal so that it runs in short steps with pauses between.

For work beside engines that must not delay their packets. A low priority is not enough: a thread of
nice 19 keeps the CPU for a slice of up to 3 ms, and while it runs the CPU does not become idle, so
the kernel does not pull waiting threads to it. A thread of SCHED_IDLE is preempted at once, but
starves where all CPUs are busy. Pauses need no privilege, leave the CPU idle often, and lengthen
the work by a known factor.

Sources: timer_create(2), SIGEV_THREAD_ID; signal-safety(7), which lists timer_settime and
clock_nanosleep.
"""
import os

from libc.errno cimport errno

# For a worker that starts while another one's engines run: a third of one CPU. The engines' threads
# get the CPU back after 0.5 ms; a TAP's queue holds 20 ms of 100,000 packets/s.
STEP_NS, PAUSE_NS = 500_000, 1_000_000

cdef extern from *:
    """
    #include <errno.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef sigev_notify_thread_id
    #define sigev_notify_thread_id _sigev_un._tid
    #endif

    static timer_t vnic_pace_timer;
    static struct itimerspec vnic_pace_step;
    static struct timespec vnic_pace_pause;

    static void vnic_pace_handler(int number)
    {
        int before = errno;
        clock_nanosleep(CLOCK_MONOTONIC, 0, &vnic_pace_pause, NULL);
        /* the next step begins when the thread runs again */
        timer_settime(vnic_pace_timer, 0, &vnic_pace_step, NULL);
        errno = before;
    }

    static int vnic_pace_start(long step_ns, long pause_ns)
    {
        struct sigaction action;
        struct sigevent event;
        memset(&action, 0, sizeof action);
        memset(&event, 0, sizeof event);
        memset(&vnic_pace_step, 0, sizeof vnic_pace_step);
        vnic_pace_step.it_value.tv_nsec = step_ns;
        vnic_pace_pause.tv_sec = 0;
        vnic_pace_pause.tv_nsec = pause_ns;
        action.sa_handler = vnic_pace_handler;
        action.sa_flags = SA_RESTART;
        if (sigaction(SIGRTMAX, &action, NULL) < 0)
            return -1;
        event.sigev_notify = SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMAX;
        event.sigev_notify_thread_id = (int)syscall(SYS_gettid);
        if (timer_create(CLOCK_MONOTONIC, &event, &vnic_pace_timer) < 0)
            return -1;
        return timer_settime(vnic_pace_timer, 0, &vnic_pace_step, NULL);
    }

    static void vnic_pace_stop(void)
    {
        timer_delete(vnic_pace_timer);  /* a signal that is pending then causes one more pause */
    }
    """
    int vnic_pace_start(long step_ns, long pause_ns)
    void vnic_pace_stop()


cdef class Pace:
    """A context manager: inside it, the thread alternately runs for `step_ns` and pauses for
    `pause_ns`.

    At most one in a process at a time; the process may not use SIGRTMAX for anything else. Raises
    ValueError unless both times are above 0 and below 1 s, OSError where the kernel has no timer
    left (RLIMIT_SIGPENDING).
    """

    cdef long step_ns, pause_ns

    def __init__(self, long step_ns, long pause_ns):
        if not (0 < step_ns < 1_000_000_000 and 0 < pause_ns < 1_000_000_000):
            raise ValueError(f"pace: {step_ns} ns and {pause_ns} ns; "
                             "expected times above 0 and below 1 s")
        self.step_ns, self.pause_ns = step_ns, pause_ns

    def __enter__(self):
        if vnic_pace_start(self.step_ns, self.pause_ns) < 0:
            raise OSError(errno, os.strerror(errno))
        return self

    def __exit__(self, *exception):
        vnic_pace_stop()
