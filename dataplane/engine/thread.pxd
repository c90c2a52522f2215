"""EngineThread: an OS thread that runs the iterations of engines, and sleeps when none has work.

After Snap, section 2.4. Engines arrive in the thread's inbox and leave when their `destination` is
another thread; neither thread waits for the other.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from dataplane.engine.balancer cimport Balancer
from dataplane.engine.clock cimport Clock
from dataplane.engine.engine cimport Engine
from dataplane.engine.polling cimport pollfd

cpdef enum:
    ENGINES_MOST = 64  # per thread and group: compacting may put a whole group on one thread

cdef void *UNDER_WAY             # engine.owner of an engine in an inbox

cdef class EngineThread:
    cdef readonly str name
    cdef readonly Clock clock
    cdef readonly object cpus            # list of CPUs that it may run on; None: any
    # how long the thread polls while idle before it sleeps; NEVER: it does not sleep
    cdef readonly uint64_t spin_ns
    cdef readonly object guarantee       # dataplane.groups.guarantee.Guarantee or None
    cdef readonly tuple cgroups          # dataplane.engine.cgroup.Cgroups to join
    cdef readonly dict refused           # reason by path for each cgroup that it could not join
    cdef readonly int thread_id          # gettid(2); 0 before it runs
    # how the guarantee is enforced: "deadline", "rr", "budget" or "none"
    cdef readonly str scheduling
    # interval at which resting engines are polled while others are busy
    cdef public uint64_t look_ns
    cdef PyObject *engines[ENGINES_MOST] # borrowed: the engines' runner holds references
    cdef uint32_t count
    cdef void *inbox                     # shared: stack of arriving engines, linked by next_engine
    cdef uint32_t stopping               # shared
    cdef uint32_t sleeping  # shared: a thread that adds to the inbox must write to wake_descriptor
    cdef int wake_descriptor
    cdef pollfd *descriptors             # of all engines, when there are several
    cdef uint32_t room
    cdef uint64_t gathered               # generation of the contents of `descriptors`
    cdef uint64_t pass_ns                # when the last sleep or pass ended
    cdef uint64_t looked_ns              # when all engines were last polled, or a sleep ended
    # how late sleeps end that only a timer ends; how early the one before a deadline is to end
    cdef uint64_t late_ns, early_ns, early_for_ns
    cdef uint64_t fair_ns                # the lowest fair_ns of engines with work
    # Accounting.
    cdef int64_t cpu_clock               # clockid_t of the thread; -1: it does not run
    cdef uint64_t settled_cpu_ns, settled_at_ns, slept_ns
    cdef uint64_t overhead_ns            # CPU time while the thread had no engine
    # Budget of runtime_ns per period_ns where the kernel does not enforce it; control sets it; 0:
    # none.
    cdef uint64_t runtime_ns, period_ns, window_ns, window_cpu_ns, window_slept_ns
    cdef readonly uint64_t throttled     # number of periods whose budget was spent
    cdef Balancer balancer
    cdef object _thread, _references, _error, _started
    cdef uint64_t thread_cpu_ns(self) noexcept nogil
    cdef void accept(self, void *engine) noexcept nogil
    cdef void adopt(self) noexcept nogil
    cdef void give_away(self, uint32_t place) noexcept nogil
    cdef bint serve(self, Engine engine) noexcept nogil
    cdef void count_overrun(self, Engine engine, uint64_t took_ns) noexcept nogil
    cdef void settle(self) noexcept nogil
    cdef void throttle(self) noexcept nogil
    cdef void sleep(self, uint64_t deadline_ns) noexcept nogil
    cdef uint64_t wait(self, uint64_t deadline_ns, uint64_t now) noexcept nogil
    cdef void learn(self, uint64_t waited_ns, uint64_t slept_ns) noexcept nogil
    cdef void gather(self, pollfd *into) noexcept nogil
    cdef void scatter(self, const pollfd *out, bint any) noexcept nogil
    cdef uint64_t now(self) noexcept nogil
    cdef bint rests(self, Engine engine) noexcept nogil
    cdef uint64_t one_pass(self, bint *more, bint *any) noexcept nogil
    cdef void run(self) noexcept nogil
