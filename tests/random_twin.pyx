"""A class for tests/test_random.py over the functions of dataplane/graph/random_stream.pxd."""
from libc.stdint cimport uint64_t
from dataplane.graph.random_stream cimport RandomStream, random_at, random_below, random_next, random_unit


cdef class TwinStream:
    cdef RandomStream stream

    def __cinit__(self, uint64_t key, uint64_t count=0):
        self.stream.key, self.stream.count = key, count

    def next(self):
        return random_next(&self.stream)

    def at(self, uint64_t n):
        return random_at(&self.stream, n)

    def below(self, uint64_t bound):
        return random_below(&self.stream, bound)

    def unit(self):
        return random_unit(&self.stream)

    @property
    def count(self):
        return self.stream.count
