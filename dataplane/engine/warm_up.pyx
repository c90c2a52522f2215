"""WarmUp. The contract is in warm_up.pxd.

After a sleep the data and code of the packets' path are not cached, nor are their address
translations (a switch of address space flushes the TLB where the CPU does not tag its entries).
Cache misses one after another cost more than the work of all elements; prefetches overlap.
bench/README.md has the gain.
"""
from cpython.ref cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from dataplane.graph.port cimport Port
from dataplane.vatomic cimport va_prefetch

cdef enum:
    LINE = 64                # bytes of a cache line
    ELEMENTS_MOST = 128      # with more elements, only code is prefetched
    OBJECT_MOST = 512        # bytes per object: the fields used per packet come first
    CODE_FIRST = 640         # bytes of a class's first method (Element.process, Port.rx_burst)
    CODE_OTHER = 192         # bytes of each further method
    ELEMENT_METHODS = 6      # process to flush, see element.pxd
    PORT_METHODS = 2         # rx_burst and tx_burst, see port.pxd
    # Cython's layout of an extension type: PyObject_HEAD (two words), then the pointer to its
    # vtable
    VTABLE = 2


cdef class WarmUp:
    """The cache lines of elements, of the objects in their `Element.companions`, and of their code.
    With many elements the code only: the next packet will not visit most of them."""

    def __init__(self, elements):
        self.many, self.seen = len(elements) > ELEMENTS_MOST, set()
        for element in elements:
            if self.many and type(element) in self.seen:
                continue
            self.seen.add(type(element))
            self.add_element(element, self.many)

    cdef bint covers(self, list fresh) except -1:
        """Whether adding these elements leaves the prefetched lines as they are."""
        if not self.many:
            return False
        for element in fresh:
            if type(element) not in self.seen:
                return False
        return True

    cdef int add_element(self, object element, bint code_only) except -1:
        if not code_only:
            self.add_object(element)
        self.add_methods(element, ELEMENT_METHODS)
        for companion in element.companions():
            if not code_only:
                self.add_object(companion)
            if isinstance(companion, Port):
                self.add_methods(companion, PORT_METHODS)
        return 0

    cdef void add(self, const void *start, uint32_t bytes) noexcept:
        cdef const char *line = <const char *>(<uint64_t>start & ~<uint64_t>(LINE - 1))
        cdef uint32_t i
        while line < <const char *>start + bytes and self.count < WARM_LINES:
            for i in range(self.count):
                if self.lines[i] == line:
                    break
            else:
                self.lines[self.count] = line
                self.count += 1
            line += LINE

    cdef void add_object(self, object thing) noexcept:
        self.add(<PyObject *>thing, min(<uint32_t>type(thing).__basicsize__, <uint32_t>OBJECT_MOST))

    cdef void add_methods(self, object thing, uint32_t methods) noexcept:
        """Adds the code of the first `methods` entries of the vtable of an Element or a Port."""
        cdef void **table = (<void ***><PyObject *>thing)[VTABLE]
        cdef uint32_t i
        self.add(table, methods * sizeof(void *))
        for i in range(methods):
            self.add(table[i], CODE_OTHER if i else CODE_FIRST)

    cdef void prefetch(self) noexcept nogil:
        cdef uint32_t i
        for i in range(self.count):
            va_prefetch(self.lines[i])
