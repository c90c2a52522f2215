"""Where the bytes of a mapping lie, for modules that lay C structs over shared memory."""
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t


cdef inline uint8_t *mapping_base(object mapping) except NULL:
    """Address of the first byte of an mmap object, which stays valid while the object is open."""
    cdef Py_buffer view
    PyObject_GetBuffer(mapping, &view, PyBUF_WRITABLE)
    cdef uint8_t *base = <uint8_t *>view.buf
    PyBuffer_Release(&view)
    return base
